/* SPDX-License-Identifier: Apache-2.0 */
/* A live server on a free loopback port, spoken to over plain sockets. */
#include "serve_fixture.h"

#define ASK "\"messages\":[{\"role\":\"user\",\"content\":\"Hello there\"}],\"temperature\":0"

static void test_chat_whole_and_streamed_agree(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    char *reply = post(s, "/v1/chat/completions", "{\"model\":\"m\"," ASK ",\"max_tokens\":12}");
    assert_int_equal(status_of(reply), 200);
    json_t *v = body_of(reply), *choice = json_array_get(json_object_get(v, "choices"), 0);
    const char *text =
        json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
    assert_non_null(text);
    assert_true(strlen(text) > 0);
    assert_non_null(json_string_value(json_object_get(choice, "finish_reason")));
    assert_true(json_integer_value(json_object_get(json_object_get(v, "usage"), "prompt_tokens")) >
                3);

    char *stream = post(s, "/v1/chat/completions",
                        "{\"model\":\"m\"," ASK ",\"max_tokens\":12,\"stream\":true,"
                        "\"stream_options\":{\"include_usage\":true}}");
    assert_int_equal(status_of(stream), 200);
    struct cr_buf joined;
    cr_buf_init(&joined, 1 << 20);
    int n_final = 0, n_usage = 0;
    for (char *p = stream; (p = strstr(p, "data: {")); p++) {
        json_t *e = json_loads(p + 6, JSON_DISABLE_EOF_CHECK, NULL);
        assert_non_null(e);
        json_t *c = json_array_get(json_object_get(e, "choices"), 0);
        const char *piece =
            json_string_value(json_object_get(json_object_get(c, "delta"), "content"));
        if (piece)
            cr_buf_puts(&joined, piece);
        if (c)
            assert_non_null(json_object_get(c, "finish_reason"));
        n_final += json_is_string(json_object_get(c, "finish_reason"));
        n_usage += json_is_object(json_object_get(e, "usage"));
        json_decref(e);
    }
    assert_string_equal(joined.data, text);
    assert_int_equal(n_final, 1);
    assert_int_equal(n_usage, 1);
    assert_non_null(strstr(stream, "data: [DONE]\n\n"));
    cr_buf_deinit(&joined);
    json_decref(v);
    cr_free(stream);
    cr_free(reply);
    cr_server_stop(s, 1000);
}

static void test_echo_scores_the_prompt(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    char *reply =
        post(s, "/v1/completions",
             "{\"model\":\"m\",\"prompt\":[[260,300,301,302],[310,311]],\"temperature\":0,"
             "\"max_tokens\":1,\"logprobs\":1,\"echo\":true,\"seed\":1234}");
    assert_int_equal(status_of(reply), 200);
    json_t *v = body_of(reply), *choices = json_object_get(v, "choices");
    assert_int_equal(json_array_size(choices), 2);
    for (size_t i = 0; i < 2; i++) {
        json_t *p = json_object_get(json_array_get(choices, i), "logprobs");
        size_t want = i ? 3 : 5;
        json_t *lp = json_object_get(p, "token_logprobs"),
               *top = json_object_get(p, "top_logprobs");
        assert_int_equal(json_array_size(lp), want);
        assert_int_equal(json_array_size(top), want);
        assert_true(json_is_null(json_array_get(lp, 0)));
        for (size_t k = 1; k < want; k++)
            assert_true(json_real_value(json_array_get(lp, k)) <= 0);
        /* greedy: the new token is the best one, and both numbers are the same */
        const char *key;
        json_t *value, *last = json_array_get(top, want - 1);
        json_object_foreach(last, key, value)
            assert_true(json_real_value(value) == json_real_value(json_array_get(lp, want - 1)));
    }
    json_decref(v);
    cr_free(reply);
    cr_server_stop(s, 1000);
}

static void test_refusals(void **state)
{
    (void)state;
    cr_server *s = start(0, NULL);
    expect_status(exchange(s, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), 200);
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: localhost:1\r\nConnection: close"
                              "\r\n\r\n"),
                  200);
    expect_status(exchange(s, "GET /v1/models/m HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n"
                              "\r\n"),
                  200);
    expect_status(exchange(s, "GET /v1/models/x HTTP/1.1\r\nHost: localhost\r\nConnection: close"
                              "\r\n\r\n"),
                  404);
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close"
                              "\r\n\r\n"),
                  403);
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"
                              "Connection: close\r\n\r\n"),
                  400);
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: "
                              "https://evil.example\r\nConnection: close\r\n\r\n"),
                  403);
    expect_status(exchange(s, "GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                              "Connection: close\r\n\r\n"),
                  405);
    expect_status(exchange(s, "GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close"
                              "\r\n\r\n"),
                  404);
    expect_status(exchange(s, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                              "text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"),
                  415);
    expect_status(exchange(s, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                              "application/json\r\nContent-Length: 1099511627776\r\n\r\n"),
                  413);
    expect_status(post(s, "/v1/completions", "{"), 400);
    expect_status(post(s, "/v1/completions", "{\"model\":\"other\",\"prompt\":\"x\"}"), 404);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":[999999]}"), 400);
    struct cr_buf longer;
    cr_buf_init(&longer, 1 << 20);
    cr_buf_puts(&longer, "{\"model\":\"m\",\"prompt\":\"");
    for (int i = 0; i < 3000; i++)
        cr_buf_puts(&longer, "word ");
    cr_buf_puts(&longer, "\"}");
    char *reply = post(s, "/v1/completions", longer.data);
    assert_non_null(strstr(reply, "context_length_exceeded"));
    expect_status(reply, 400);
    cr_buf_deinit(&longer);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":1}"),
                  200); /* it still works */
    cr_server_stop(s, 1000);
}

static void test_key_is_wanted(void **state)
{
    (void)state;
    cr_server *s = start(0, "secret");
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                              "\r\n"),
                  401);
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                              "secre\r\nConnection: close\r\n\r\n"),
                  401);
    expect_status(exchange(s, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                              "secret\r\nConnection: close\r\n\r\n"),
                  200);
    cr_server_stop(s, 1000);
    struct cr_serve_options opt = {.model = model, .model_name = "m", .host = "0.0.0.0"};
    struct cr_error err;
    assert_int_equal(cr_server_start(&s, &opt, &err), CR_POLICY);
    assert_null(s);
}

#define LONG                                                                                       \
    "{\"model\":\"m\",\"prompt\":\"Once upon a time\",\"max_tokens\":480,\"temperature\":1,"       \
    "\"stream\":true}"

static void test_full_queue_answers_503_at_once(void **state)
{
    (void)state;
    cr_server *s = start(1, NULL);
    int fds[8], n_busy = 0;
    for (int i = 0; i < 8; i++) {
        fds[i] = dial(s);
        post_on(fds[i], "/v1/completions", LONG);
    }
    for (int i = 0; i < 8; i++) {
        char *reply = read_all(fds[i]);
        int http = status_of(reply);
        assert_true(http == 200 || http == 503);
        if (http == 503) {
            n_busy++;
            assert_non_null(strcasestr(reply, "Retry-After:"));
        }
        cr_free(reply);
    }
    assert_true(n_busy >= 1 && n_busy <= 7);
    cr_server_stop(s, 1000);
}

static void test_gone_client_frees_the_worker(void **state)
{
    (void)state;
    cr_server *s = start(4, NULL);
    for (int i = 0; i < 4; i++) {
        int fd = dial(s);
        char first[64];
        post_on(fd, "/v1/completions", LONG);
        assert_true(recv(fd, first, sizeof first, 0) > 0);
        struct linger hard = {.l_onoff = 1};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(fd);
    }
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    expect_status(post(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":1}"),
                  200);
    clock_gettime(CLOCK_MONOTONIC, &b);
    (void)a, (void)b; /* a hang would end at the receive time-out of dial */
    cr_server_stop(s, 1000);
}

static void *stop_server(void *s)
{
    cr_server_stop(s, 60000);
    return NULL;
}

static void test_stop_drains(void **state)
{
    (void)state;
    cr_server *s = start(4, NULL);
    int fd = dial(s);
    char first[512];
    post_on(fd, "/v1/completions", LONG);
    assert_true(recv(fd, first, sizeof first, 0) > 0);
    pthread_t t;
    pthread_create(&t, NULL, stop_server, s);
    char *rest = read_all(fd);
    assert_non_null(strstr(rest, "[DONE]"));
    cr_free(rest);
    pthread_join(t, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_whole_and_streamed_agree),
        cmocka_unit_test(test_echo_scores_the_prompt),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_key_is_wanted),
        cmocka_unit_test(test_full_queue_answers_503_at_once),
        cmocka_unit_test(test_gone_client_frees_the_worker),
        cmocka_unit_test(test_stop_drains),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
