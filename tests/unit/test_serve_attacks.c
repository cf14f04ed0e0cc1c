/* SPDX-License-Identifier: Apache-2.0 */
/* Attacks on the HTTP side, numbered as in the project's list: a clear answer, and the server goes
 * on. */
#include "serve_fixture.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>

static void expect_alive(const cr_server *s)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    expect_status(
        exchange(s, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 200);
    clock_gettime(CLOCK_MONOTONIC, &b);
    assert_true(b.tv_sec - a.tv_sec < 10);
}

/* Sends bytes and hangs up; whatever comes back is dropped. Returns the status, -1 for none (an
 * unfinished request may wait for its rest). */
static int throw_bytes(const cr_server *s, const char *bytes, size_t n)
{
    int fd = dial(s);
    struct timeval limit = {.tv_sec = 3};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
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

static long resident_pages(void)
{
    long all, resident;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &all, &resident), 2);
    fclose(f);
    return resident;
}

/* Opens n connections, a third each idle, in the middle of a head and of a body, and says so on
 * `out`; when a byte comes on `in`, how many are still open. Never returns. */
static void hold_connections(int port, int n, int in, int out)
{
    static const char *const texts[] = {
        "", "GET /health HTTP/1.1\r\nHo",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n{\"mo"};
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit r = {(rlim_t)n + 100, (rlim_t)n + 100};
    int *fds = calloc((size_t)n, sizeof *fds), held = 0;
    char byte;
    if (!fds || setrlimit(RLIMIT_NOFILE, &r) != 0)
        _exit(1);
    for (int i = 0; i < n; i++) {
        size_t len = strlen(texts[i % 3]);
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fds[i], (struct sockaddr *)&a, sizeof a) != 0 ||
            send(fds[i], texts[i % 3], len, MSG_NOSIGNAL) != (ssize_t)len)
            _exit(2);
    }
    if (write(out, &n, sizeof n) != sizeof n || read(in, &byte, 1) != 1)
        _exit(3);
    for (int i = 0; i < n; i++)
        held += recv(fds[i], &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
    _exit(write(out, &held, sizeof held) == sizeof held ? 0 : 4);
}

/* 26: 10,000 idle and unfinished connections do not keep others out, and take little memory. */
static void test_attack_26_slow_and_idle_connections(void **state)
{
    (void)state;
    enum { N = 10000 };
    struct rlimit r;
    struct timespec from, to;
    int in[2], out[2], held = 0, st;
    getrlimit(RLIMIT_NOFILE, &r);
    if (r.rlim_max < N + 300) {
        print_message("skip: the hard limit of open files is %llu, want %d\n",
                      (unsigned long long)r.rlim_max, N + 300);
        skip();
    }
    cr_server *s = start(0, NULL);
    expect_alive(s);
    long before = resident_pages();
    assert_true(pipe(in) == 0 && pipe(out) == 0);
    clock_gettime(CLOCK_MONOTONIC, &from);
    pid_t pid = fork();
    if (pid == 0)
        hold_connections(cr_server_port(s), N, in[0], out[1]);
    assert_int_equal(read(out[0], &held, sizeof held), sizeof held);
    expect_alive(s);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":1}"),
                  200);
    double kib = (double)(resident_pages() - before) * (double)sysconf(_SC_PAGESIZE) / 1024 / N;
    assert_int_equal(write(in[1], "", 1), 1);
    assert_int_equal(read(out[0], &held, sizeof held), sizeof held);
    clock_gettime(CLOCK_MONOTONIC, &to);
    print_message("%d of %d connections held, %.1f KiB each\n", held, N, kib);
    if (to.tv_sec - from.tv_sec < 4) /* later, idle ones go for those who come */
        assert_int_equal(held, N);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(kib < 16);
#endif
    assert_true(waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 0);
    expect_alive(s);
    cr_server_stop(s, 1000);
    for (int i = 0; i < 2; i++) {
        close(in[i]);
        close(out[i]);
    }
}

/* The other process of the test below: a server with few descriptors, until standard input ends. */
static int serve_with_few_descriptors(void)
{
    struct rlimit few = {.rlim_cur = 300, .rlim_max = 300};
    struct cr_model_options one = {.n_threads = 1};
    struct cr_serve_options opt = {.model_name = "m", .n_ctx = 64};
    cr_model *own;
    cr_server *s;
    char byte;
    if (cr_model_open(&own, CR_SOURCE_DIR "/tests/data/stories260K.gguf", &one, NULL) != CR_OK)
        return 1;
    opt.model = own;
    setrlimit(RLIMIT_NOFILE, &few);
    if (cr_server_start(&s, &opt, NULL) != CR_OK)
        return 2;
    int port = cr_server_port(s);
    if (write(STDOUT_FILENO, &port, sizeof port) != sizeof port ||
        read(STDIN_FILENO, &byte, 1) != 0)
        return 3;
    cr_server_stop(s, 1000);
    cr_model_close(own);
    return 0;
}

/* Starts it; its port. It ends when stop_fd is closed. */
static int start_other(int *stop_fd, pid_t *pid)
{
    int ready[2], stop[2], port = 0;
    assert_true(pipe(ready) == 0 && pipe(stop) == 0);
    *pid = fork();
    if (*pid == 0) {
        dup2(stop[0], STDIN_FILENO);
        dup2(ready[1], STDOUT_FILENO);
        close(stop[1]);
        execl("/proc/self/exe", "test_serve_attacks", "serve", (char *)NULL);
        _exit(4);
    }
    close(stop[0]);
    close(ready[1]);
    assert_int_equal(read(ready[0], &port, sizeof port), sizeof port);
    close(ready[0]);
    *stop_fd = stop[1];
    return port;
}

/* 26: whoever fills all places and keeps each of them alive with a byte now and then is turned out
 * for those who come after. */
static void test_attack_26_dripping_connections_make_room(void **state)
{
    (void)state;
    enum { N = 600 };
    static int fds[N];
    int stop, st;
    pid_t pid;
    int port = start_other(&stop, &pid);
    for (int i = 0; i < N; i++) {
        fds[i] = dial_port(port);
        send(fds[i], "GET /health HTTP/1.1\r\nX: ", 25, MSG_NOSIGNAL);
        for (int k = 0; i % 50 == 49 && k <= i; k++)
            send(fds[k], "x", 1, MSG_NOSIGNAL);
        if (i % 50 == 49) {
            struct timeval limit = {.tv_sec = 5};
            int fd = dial_port(port);
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
            send_text(fd, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            expect_status(read_all(fd), 200);
        }
    }
    for (int i = 0; i < N; i++)
        close(fds[i]);
    close(stop);
    assert_int_equal(waitpid(pid, &st, 0), pid);
    assert_true(WIFEXITED(st) && WEXITSTATUS(st) == 0);
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
    static const char nul[] = "GET /v1/\0models HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_true(is_refusal(throw_bytes(s, nul, sizeof nul - 1)));
    char reply[] = "GET /v1/models/x%0d%0aX-Injected:%20yes HTTP/1.1\r\nHost: "
                   "localhost\r\nConnection: close\r\n\r\n";
    char *got = exchange(s, reply);
    assert_null(strstr(got, "\r\nX-Injected"));
    expect_status(got, 404);
    expect_alive(s);
    cr_server_stop(s, 1000);
}

/* 28, 35: large bodies and prompts end early, and in little time. */
static void test_attack_28_35_large_prompts(void **state)
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

/* 29 to 31, 36: nesting, broken text, keys that come twice, counts. */
static void test_attack_29_30_31_36_large_counts(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    struct cr_buf b;
    cr_buf_init(&b, 1 << 24);
    cr_buf_puts(&b, "{\"model\":\"m\",\"x\":");
    for (int i = 0; i < 100000; i++)
        cr_buf_puts(&b, "[");
    expect_status(post(s, "/v1/completions", b.data), 400);
    for (int i = 0; i < 100000; i++)
        cr_buf_puts(&b, "]");
    cr_buf_puts(&b, "}"); /* the same, and whole */
    expect_status(post(s, "/v1/completions", b.data), 400);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"\xc3\x28\"}"), 400);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"\xed\xa0\x80\"}"), 400);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"\\ud800\"}"), 400);
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

/* 37: web pages cannot reach the server: not by another name for this machine, not by a form, not
 * by asking first. */
static void test_attack_37_pages_of_others(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    static const struct {
        const char *headers;
        int status;
    } cases[] = {{"Host: localhost", 200},
                 {"Host: 127.0.0.1:8080", 200},
                 {"Host: [::1]:8080", 200},
                 {"Host: evil.example", 403},
                 {"Host: localhost.evil.example", 403},
                 {"Host: evil.example:8080", 403},
                 {"Host: 127.0.0.1.evil.example", 403},
                 {"Host: localhost@evil.example", 403},
                 {"Host: 0.0.0.0", 403},
                 {"Host: ", 403},
                 {"Host: [::1", 403},
                 {"Host: localhost\r\nOrigin: http://localhost:8080", 200},
                 {"Host: localhost\r\nOrigin: http://evil.example", 403},
                 {"Host: localhost\r\nOrigin: http://localhost.evil.example", 403},
                 {"Host: localhost\r\nOrigin: null", 403},
                 {"Host: localhost\r\nOrigin: *", 403},
                 {"Host: localhost\r\nOrigin: http://evil.example/localhost", 403}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char request[256];
        snprintf(request, sizeof request,
                 "GET /v1/models HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", cases[i].headers);
        char *reply = exchange(s, request);
        assert_null(strcasestr(reply, "Access-Control-"));
        if (status_of(reply) != cases[i].status)
            fail_msg("%s: %.40s", cases[i].headers, reply);
        cr_free(reply);
    }
    char *reply = exchange(s, "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: "
                              "http://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
                              "Connection: close\r\n\r\n");
    assert_null(strcasestr(reply, "Access-Control-"));
    expect_status(reply, 403);
    static const char *const types[] = {"text/plain", "application/x-www-form-urlencoded",
                                        "multipart/form-data; boundary=x", "application/jsonx"};
    for (size_t i = 0; i < 4; i++) {
        char request[256];
        snprintf(request, sizeof request,
                 "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n"
                 "Content-Length: 2\r\nConnection: close\r\n\r\n{}",
                 types[i]);
        expect_status(exchange(s, request), 415);
    }
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

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "serve") == 0)
        return serve_with_few_descriptors();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attack_21_text_is_no_control_token),
        cmocka_unit_test(test_attack_26_slow_and_idle_connections),
        cmocka_unit_test(test_attack_26_dripping_connections_make_room),
        cmocka_unit_test(test_attack_27_malformed_requests),
        cmocka_unit_test(test_attack_34_vanishing_clients_leave_nothing),
        cmocka_unit_test(test_attack_28_35_large_prompts),
        cmocka_unit_test(test_attack_29_30_31_36_large_counts),
        cmocka_unit_test(test_attack_37_pages_of_others),
        cmocka_unit_test(test_attack_38_keys),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
