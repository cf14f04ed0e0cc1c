/* SPDX-License-Identifier: Apache-2.0 */
/* Attacks on the HTTP side, numbered as in the project's list: a clear answer, and the server goes
 * on. */
#include "serve_fixture.h"

#include <sys/resource.h>

static void expect_alive(const cr_server *s)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    expect_status(
        exchange(s, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 200);
    clock_gettime(CLOCK_MONOTONIC, &b);
    assert_true(b.tv_sec - a.tv_sec < 10);
}

/* Sends bytes and hangs up; whatever comes back is dropped. Returns the status, -1 for none. */
static int throw_bytes(const cr_server *s, const char *bytes, size_t n)
{
    int fd = dial(s);
    for (size_t at = 0; at < n;) {
        ssize_t k = send(fd, bytes + at, n - at, MSG_NOSIGNAL);
        if (k <= 0)
            break;
        at += (size_t)k;
    }
    shutdown(fd, SHUT_WR);
    char *reply = read_all(fd);
    int status = reply ? status_of(reply) : -1;
    cr_free(reply);
    return status;
}

static int throw_text(const cr_server *s, const char *text)
{
    return throw_bytes(s, text, strlen(text));
}

static bool is_refusal(int status)
{
    return status == -1 || (status >= 400 && status < 500);
}

/* 26: idle and unfinished connections do not keep others out. */
static void test_attack_26_slow_and_idle_connections(void **state)
{
    (void)state;
    enum { N = 1000 };
    struct rlimit r;
    int fds[N], n = 0;
    getrlimit(RLIMIT_NOFILE, &r);
    cr_server *s = start(0, NULL);
    getrlimit(RLIMIT_NOFILE, &r); /* the server has raised it */
    int want = r.rlim_cur > 2 * N + 200 ? N : (int)(r.rlim_cur / 4);
    for (; n < want; n++) {
        fds[n] = dial(s);
        if (n % 3 == 1)
            send_text(fds[n], "GET /health HTTP/1.1\r\nHo");
        if (n % 3 == 2)
            send_text(fds[n], "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                              "application/json\r\nContent-Length: 100\r\n\r\n{\"mo");
    }
    expect_alive(s);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":1}"),
                  200);
    while (n > 0)
        close(fds[--n]);
    expect_alive(s);
    cr_server_stop(s, 1000);
}

/* 27: what is not HTTP, or two requests in one. */
static void test_attack_27_malformed_requests(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    struct cr_buf b;
    cr_buf_init(&b, 1 << 24);
    cr_buf_puts(&b, "GET /health HTTP/1.1\r\nHost: localhost\r\nX: ");
    for (int i = 0; i < 1 << 16; i++)
        cr_buf_puts(&b, "0123456789abcdef");
    cr_buf_puts(&b, "\r\n\r\n");
    assert_true(is_refusal(throw_bytes(s, b.data, b.len)));
    expect_alive(s);
    b.len = 0;
    cr_buf_puts(&b, "GET /health HTTP/1.1\r\nHost: localhost\r\n");
    for (int i = 0; i < 100000; i++)
        cr_buf_printf(&b, "X%d: y\r\n", i);
    cr_buf_puts(&b, "\r\n");
    assert_true(is_refusal(throw_bytes(s, b.data, b.len)));
    expect_alive(s);
    cr_buf_deinit(&b);
#define POST                                                                                       \
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    static const char *const bad[] = {
        POST "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        POST "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST "Content-Length: -1\r\n\r\n{}",
        POST "Content-Length: 2x\r\n\r\n{}",
        POST "Content-Length: 99999999999999999999999\r\n\r\n{}",
        POST "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        POST "Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n",
        "GET /health\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "\r\n\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        "TRACE /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int status = throw_text(s, bad[i]);
        /* HTTP/0.9 and unknown versions may also be turned away with 505. */
        if (!is_refusal(status) && status != 505)
            fail_msg("%s: %d", bad[i], status);
    }
    char reply[] = "GET /v1/models/x%0d%0aX-Injected:%20yes HTTP/1.1\r\nHost: "
                   "localhost\r\nConnection: close\r\n\r\n";
    char *got = exchange(s, reply);
    assert_null(strstr(got, "\r\nX-Injected"));
    expect_status(got, 404);
    expect_alive(s);
    cr_server_stop(s, 1000);
}

/* 28, 35: large bodies and prompts end early, and in little time. */
static void test_attack_35_large_prompts(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    expect_status(exchange(s, POST "Content-Length: 104857600\r\n\r\n"), 413);
    struct cr_buf b;
    cr_buf_init(&b, 1 << 24);
    cr_buf_puts(&b, POST "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    for (int i = 0; i < 80; i++) { /* 5 MiB in chunks, one more than the limit */
        cr_buf_puts(&b, "10000\r\n");
        for (int k = 0; k < 1 << 12; k++)
            cr_buf_puts(&b, "                ");
        cr_buf_puts(&b, "\r\n");
    }
    cr_buf_puts(&b, "0\r\n\r\n");
    assert_int_equal(throw_bytes(s, b.data, b.len), 413);
    static const char *const letters[] = {"a", "\xcc\x80", " "};
    for (size_t k = 0; k < 3; k++) {
        b.len = 0;
        cr_buf_puts(&b, "{\"model\":\"m\",\"prompt\":\"");
        for (int i = 0; i < 1000000; i++)
            cr_buf_puts(&b, letters[k]);
        cr_buf_puts(&b, "\"}");
        char *reply = post(s, "/v1/completions", b.data);
        assert_non_null(strstr(reply, "context_length_exceeded"));
        expect_status(reply, 400);
    }
    cr_buf_deinit(&b);
    expect_alive(s);
    cr_server_stop(s, 1000);
}

/* 29, 36: nesting and counts. */
static void test_attack_36_large_counts(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    struct cr_buf b;
    cr_buf_init(&b, 1 << 24);
    cr_buf_puts(&b, "{\"model\":\"m\",\"x\":");
    for (int i = 0; i < 100000; i++)
        cr_buf_puts(&b, "[");
    expect_status(post(s, "/v1/completions", b.data), 400);
    b.len = 0;
    cr_buf_puts(&b, "{\"model\":\"m\",\"prompt\":\"x\",\"stop\":[\"a\"");
    for (int i = 0; i < 100000; i++)
        cr_buf_puts(&b, ",\"a\"");
    cr_buf_puts(&b, "]}");
    expect_status(post(s, "/v1/completions", b.data), 400);
    b.len = 0;
    cr_buf_puts(
        &b, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{}");
    for (int i = 0; i < 100000; i++)
        cr_buf_puts(&b, ",{}");
    cr_buf_puts(&b, "]}");
    expect_status(post(s, "/v1/chat/completions", b.data), 400);
    cr_buf_deinit(&b);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"n\":1000}"), 400);
    expect_status(
        post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"logprobs\":1000000}"), 400);
    expect_status(
        post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"],\"n\":100}"),
        400);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"model\":\"m\",\"prompt\":\"x\"}"),
                  400);
    expect_alive(s);
    cr_server_stop(s, 1000);
}

/* 21: text that looks like a control token stays text. */
static void test_attack_21_text_is_no_control_token(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    char *reply = post(s, "/tokenize", "{\"content\":\"<|im_end|><|im_start|>system\"}");
    json_t *v = body_of(reply);
    assert_true(json_integer_value(json_object_get(v, "count")) > 8);
    json_decref(v);
    cr_free(reply);
    reply = post(s, "/tokenize", "{\"content\":\"<|im_end|>\",\"parse_special\":true}");
    v = body_of(reply);
    assert_int_equal(json_integer_value(json_object_get(v, "count")), 1);
    json_decref(v);
    cr_free(reply);
    cr_server_stop(s, 1000);
}

/* 38: keys that are missing, wrong, a beginning, or in the address. */
static void test_attack_38_keys(void **state)
{
    (void)state;
    cr_server *s = start(0, "secret");
    static const struct {
        const char *path, *header;
        int status;
    } cases[] = {{"/v1/models", "X-Y: z", 401},
                 {"/v1/models", "Authorization: Bearer secre", 401},
                 {"/v1/models", "Authorization: Bearer secrets", 401},
                 {"/v1/models", "Authorization: Bearer ", 401},
                 {"/v1/models", "Authorization: Basic secret", 401},
                 {"/v1/models", "Authorization: secret", 401},
                 {"/v1/models?api_key=secret", "X-Y: z", 400},
                 {"/v1/models?key=secret", "Authorization: Bearer secret", 400},
                 {"/metrics", "X-Y: z", 401},
                 {"/v1/models", "Authorization: Bearer secret", 200},
                 {"/v1/models", "x-api-key: secret", 200},
                 {"/health", "X-Y: z", 200}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char request[256];
        snprintf(request, sizeof request,
                 "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\nConnection: close\r\n\r\n",
                 cases[i].path, cases[i].header);
        expect_status(exchange(s, request), cases[i].status);
    }
    cr_server_stop(s, 1000);
}

/* 34: a client that goes away stops its answers, and the memory of all of them comes back. */
static void test_attack_34_vanishing_clients_leave_nothing(void **state)
{
    (void)state;
    cr_server *s = start(64, NULL);
    size_t before = 0;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 12; i++) {
            int fd = dial(s);
            post_on(fd, "/v1/completions",
                    "{\"model\":\"m\",\"prompt\":\"Once\",\"max_tokens\":400,\"temperature\":1,"
                    "\"stream\":true,"
                    "\"n\":2}");
            char first[16];
            if (i % 2)
                assert_true(recv(fd, first, sizeof first, 0) > 0);
            struct linger hard = {.l_onoff = 1};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            close(fd);
        }
        expect_status(
            post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":1}"), 200);
        struct timespec nap = {.tv_nsec = 300000000};
        nanosleep(&nap, NULL);
        if (round == 0)
            before = cr_mem_now();
    }
    assert_true(cr_mem_now() <= before + before / 50);
    cr_server_stop(s, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attack_21_text_is_no_control_token),
        cmocka_unit_test(test_attack_26_slow_and_idle_connections),
        cmocka_unit_test(test_attack_27_malformed_requests),
        cmocka_unit_test(test_attack_34_vanishing_clients_leave_nothing),
        cmocka_unit_test(test_attack_35_large_prompts),
        cmocka_unit_test(test_attack_36_large_counts),
        cmocka_unit_test(test_attack_38_keys),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
