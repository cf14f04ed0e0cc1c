/* SPDX-License-Identifier: Apache-2.0 */
/* route/upstream.c against a server that misbehaves: attack 42 as far as it needs no TLS. */
#include "fake_upstream.h"

#include "base/mem.h"
#include "route/upstream.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define GOOD                                                                                       \
    "{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"forty two\"},"   \
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}"
#define CANARY "CANARY-5b1f0e77"

static struct fake fake;
static struct cr_upstream_options options;
static char url[64];
static struct cr_remote_answer answer;
static struct cr_error err;
static double took_ms;

static int clean(void **state)
{
    (void)state;
    cr_remote_answer_deinit(&answer);
    return 0;
}

static double clock_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* Starts the server and sets short limits; a test changes options after this. */
static void start(void (*behave)(struct fake *, int, int))
{
    assert_true(fake_start(&fake, behave));
    snprintf(url, sizeof url, "http://127.0.0.1:%d", fake.port);
    options = (struct cr_upstream_options){.url = url,
                                           .model = "big",
                                           .key = CANARY,
                                           .stall_ms = 200,
                                           .total_ms = 3000,
                                           .backoff_ms = 20,
                                           .pause_ms = 100000};
}

static const struct cr_message question = {.role = "user", .content = "What is \"6*7\"? \xc3\xa9"};
static bool (*on_text)(void *ud, const char *text, size_t len);
static double max_cost;

static enum cr_status send_with(cr_upstream *u, bool stream)
{
    struct cr_ask ask = {.messages = &question,
                         .n_messages = 1,
                         .max_tokens = 16,
                         .temperature = 0,
                         .stream = stream,
                         .max_cost = max_cost,
                         .on_text = on_text};
    struct cr_outgoing out;
    enum cr_status st = cr_upstream_prepare(u, &ask, &out, &err);
    if (st != CR_OK)
        return st;
    double t = clock_ms();
    st = cr_upstream_send(u, &out, &answer, &err);
    took_ms = clock_ms() - t;
    cr_outgoing_deinit(&out);
    assert_true((st == CR_OK) == (answer.text != NULL));
    if (st != CR_OK)
        assert_null(strstr(err.msg, "CANARY")); /* attack 46 */
    return st;
}

static enum cr_status ask_once(bool stream)
{
    cr_upstream *u;
    assert_int_equal(cr_upstream_new(&u, &options, &err), CR_OK);
    enum cr_status st = send_with(u, stream);
    cr_upstream_free(u);
    return st;
}

/* ---- good servers ---- */

static void good(struct fake *f, int fd, int nth)
{
    (void)f;
    (void)nth;
    fake_reply(fd, "200 OK", "", GOOD);
}

static void test_whole_answer_and_exact_bytes(void **state)
{
    (void)state;
    start(good);
    assert_int_equal(ask_once(false), CR_OK);
    fake_stop(&fake);
    assert_string_equal(answer.text, "forty two");
    assert_string_equal(answer.finish, "stop");
    assert_int_equal(answer.tokens_in, 7);
    assert_int_equal(answer.tokens_out, 2);
    assert_int_equal(answer.tries, 1);
    assert_int_equal(answer.bytes_out, atomic_load(&fake.n_bytes)); /* to the byte */
    assert_true(answer.bytes_in > strlen(GOOD));
    assert_true(answer.cost < 0);
    assert_non_null(strstr(fake.request, "POST /v1/chat/completions HTTP/1.1\r\n"));
    assert_non_null(strstr(fake.request, "Authorization: Bearer " CANARY "\r\n"));
    assert_non_null(strstr(fake.request,
                           "{\"model\":\"big\",\"messages\":[{\"role\":\"user\",\"content\":"
                           "\"What is \\\"6*7\\\"? \xc3\xa9\"}],\"max_tokens\":16,"
                           "\"temperature\":0.0,\"stream\":false}"));
    assert_null(strcasestr(fake.request, "Accept-Encoding"));
}

static void test_url_is_completed(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"https://h", "https://h/v1/chat/completions"},
        {"https://h/", "https://h/v1/chat/completions"},
        {"https://h:8/v1", "https://h:8/v1/chat/completions"},
        {"https://h/api/v3/", "https://h/api/v3/chat/completions"},
        {"https://h/x/chat/completions", "https://h/x/chat/completions"},
        {"http://localhost:1", "http://localhost:1/v1/chat/completions"},
        {"http://[::1]:1", "http://[::1]:1/v1/chat/completions"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        cr_upstream *u;
        options = (struct cr_upstream_options){.url = pairs[i][0], .model = "m"};
        assert_int_equal(cr_upstream_new(&u, &options, &err), CR_OK);
        assert_string_equal(cr_upstream_url(u), pairs[i][1]);
        cr_upstream_free(u);
    }
}

static void test_bad_settings_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *url, *key;
        enum cr_status want;
    } cases[] = {
        {"", NULL, CR_INVALID},
        {"h:80", NULL, CR_INVALID},
        {"ftp://h/", NULL, CR_INVALID},
        {"file:///etc/passwd", NULL, CR_INVALID},
        {"https://user:pw@h/", NULL, CR_INVALID},
        {"https://h/?key=1", NULL, CR_INVALID},
        {"https://h/#x", NULL, CR_INVALID},
        {"https://h\r\nX: y/", NULL, CR_INVALID},
        {"http://example.com/", NULL, CR_POLICY},
        {"http://10.0.0.1/", NULL, CR_POLICY},
        {"http://127.0.0.1.example.com/", NULL, CR_POLICY},
        {"https://h/", "two words", CR_INVALID},
        {"https://h/", "a\r\nX-Evil: 1", CR_INVALID},
        {"https://h/", "", CR_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_upstream *u;
        options =
            (struct cr_upstream_options){.url = cases[i].url, .model = "m", .key = cases[i].key};
        assert_int_equal(cr_upstream_new(&u, &options, &err), cases[i].want);
        assert_null(u);
    }
}

static char streamed[256];
static bool collect(void *ud, const char *text, size_t len)
{
    (void)ud;
    strncat(streamed, text, len);
    return true;
}

#define EVENTS "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
#define PIECE(s)                                                                                   \
    "data: {\"choices\":[{\"delta\":{\"content\":\"" s "\"},\"finish_reason\":null}]}\n\n"

/* Comments, CR LF, a role chunk, a usage chunk, and every byte on its own. */
static void stream_well(struct fake *f, int fd, int nth)
{
    (void)f;
    (void)nth;
    static const char body[] = EVENTS
        ": ping\r\n\r\nevent: x\r\n"
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}]}"
        "\r\n\r\n" PIECE("f\xc3\xa9"
                         "rt")
            PIECE(
                "y") "data:{\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\r\r"
                     "data: "
                     "{\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5}}\n\n"
                     "data: [DONE]\n\n";
    for (size_t i = 0; i + 1 < sizeof body && fake_write(fd, body + i, 1); i++) {
    }
}

static void test_stream(void **state)
{
    (void)state;
    start(stream_well);
    streamed[0] = '\0';
    on_text = collect;
    assert_int_equal(ask_once(true), CR_OK);
    on_text = NULL;
    fake_stop(&fake);
    assert_string_equal(answer.text, "f\xc3\xa9rty");
    assert_string_equal(streamed, answer.text);
    assert_string_equal(answer.finish, "length");
    assert_int_equal(answer.tokens_in, 9);
    assert_int_equal(answer.tokens_out, 5);
    assert_int_equal(answer.n_streamed, strlen(answer.text));
    assert_non_null(strstr(fake.request, "\"stream\":true"));
}

/* ---- bad replies: one table ---- */

static void raw(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_puts(fd, f->text);
}

#define JSON_HEAD "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"

static void test_42_bad_replies(void **state)
{
    (void)state;
    static const struct {
        const char *reply, *says;
    } cases[] = {
        {JSON_HEAD "{\"error\":{\"message\":\"no money\",\"type\":\"x\"}}", "no money"},
        {JSON_HEAD "{\"error\":\"bad key " CANARY " given\"}", "bad key ***"},
        {JSON_HEAD "<html>hello</html>", "no valid JSON"},
        {JSON_HEAD "{\"choices\":[{\"message\":{\"content\":\"cut", "no valid JSON"},
        {JSON_HEAD "{\"choices\":[],\"choices\":[]}", "no valid JSON"},
        {JSON_HEAD "{\"choices\":[{\"message\":{\"content\":\"\xff\"}}]}", "no valid JSON"},
        {JSON_HEAD "[]", "no JSON object"},
        {JSON_HEAD "", "no valid JSON"},
        {JSON_HEAD "{}", "choices"},
        {JSON_HEAD "{\"choices\":{}}", "choices"},
        {JSON_HEAD "{\"choices\":[]}", "no text"},
        {JSON_HEAD "{\"choices\":[{\"message\":{\"content\":null}}]}", "no text"},
        {JSON_HEAD "{\"choices\":[{\"message\":{\"content\":\"\"}}]}", "no text"},
        {JSON_HEAD "{\"choices\":[{\"message\":{\"content\":5}}]}", "no string"},
        {JSON_HEAD "{\"choices\":[7]}", "no text"},
        {EVENTS PIECE("half an ans"), "unfinished"},
        {EVENTS PIECE("half") "data: {\"choices\":[{\"del\n\n", "no valid JSON"},
        {EVENTS PIECE("half") "data: {\"error\":{\"message\":\"overloaded\"}}\n\n", "overloaded"},
        {EVENTS "data: [DONE]\n\n", "no text"},
        {EVENTS "", "unfinished"},
        {"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08", "compressed (gzip)"},
        {"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
         "compressed (gzip)"},
        {"HTTP/1.1 401 No\r\nConnection: close\r\n\r\n{\"error\":{\"message\":\"bad " CANARY "\"}}",
         "HTTP 401: bad ***"},
        {"HTTP/1.1 404 No\r\nConnection: close\r\n\r\n{\"detail\":\"\\u001b[2Jgone\"}",
         "HTTP 404: ?[2Jgone"},
        {"HTTP/1.1 204 No Content\r\n\r\n", "HTTP 204"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"choi", "http"},
        {"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nx", "http"},
        {"no http at all\n\n", "http"},
        {"", "http"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        start(raw);
        fake.text = cases[i].reply;
        enum cr_status st = ask_once(strncmp(cases[i].reply, EVENTS, sizeof EVENTS - 1) == 0);
        fake_stop(&fake);
        if (st != CR_NETWORK || !strstr(err.msg, cases[i].says))
            print_message("case %zu: status %d, \"%s\"\n", i, (int)st, err.msg);
        assert_int_equal(st, CR_NETWORK);
        assert_non_null(strstr(err.msg, cases[i].says));
        assert_int_equal(answer.tries, 1);
        cr_remote_answer_deinit(&answer);
    }
}

/* ---- time ---- */

static void silent(struct fake *f, int fd, int nth)
{
    (void)nth;
    (void)fd;
    fake_sleep(f, 5000);
}

static void test_42_silent_server_ends_in_time(void **state)
{
    (void)state;
    start(silent);
    options.total_ms = 300;
    assert_int_equal(ask_once(false), CR_NETWORK);
    fake_stop(&fake);
    assert_true(took_ms >= 250 && took_ms < 1500);
}

static void stalls(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_puts(fd, EVENTS PIECE("begin"));
    fake_sleep(f, 5000);
}

static void test_42_stalled_stream_ends_in_time(void **state)
{
    (void)state;
    start(stalls);
    assert_int_equal(ask_once(true), CR_NETWORK);
    fake_stop(&fake);
    assert_non_null(strstr(err.msg, "no byte for 200 ms"));
    assert_true(took_ms < 1500);
}

static void drips(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_puts(fd, EVENTS);
    while (!atomic_load(&f->stop) && fake_puts(fd, ": "))
        fake_sleep(f, 20);
}

static void test_42_dripping_stream_ends_in_time(void **state)
{
    (void)state;
    start(drips);
    options.total_ms = 500;
    assert_int_equal(ask_once(true), CR_NETWORK);
    fake_stop(&fake);
    assert_true(took_ms < 1500);
}

static bool stop_after_100(void *ud)
{
    (void)ud;
    static double begin;
    if (begin == 0)
        begin = clock_ms();
    return clock_ms() - begin > 100;
}

static void test_caller_can_cancel(void **state)
{
    (void)state;
    start(silent);
    cr_upstream *u;
    struct cr_outgoing out;
    struct cr_ask ask = {
        .messages = &question, .n_messages = 1, .temperature = -1, .cancelled = stop_after_100};
    assert_int_equal(cr_upstream_new(&u, &options, &err), CR_OK);
    assert_int_equal(cr_upstream_prepare(u, &ask, &out, &err), CR_OK);
    assert_null(strstr(out.body, "temperature"));
    assert_null(strstr(out.body, "max_tokens"));
    double t = clock_ms();
    assert_int_equal(cr_upstream_send(u, &out, &answer, &err), CR_CANCELLED);
    assert_true(clock_ms() - t < 1000);
    cr_outgoing_deinit(&out);
    cr_upstream_free(u);
    fake_stop(&fake);
}

/* ---- size ---- */

static void endless_stream(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_puts(fd, EVENTS);
    while (!atomic_load(&f->stop) && fake_puts(fd, PIECE("la la la la la la la la la la"))) {
    }
}
static void giant_line(struct fake *f, int fd, int nth)
{
    (void)nth;
    static char block[4096];
    memset(block, 'x', sizeof block);
    fake_puts(fd, EVENTS "data: ");
    while (!atomic_load(&f->stop) && fake_write(fd, block, sizeof block)) {
    }
}
static void endless_json(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_puts(fd, JSON_HEAD "{\"a\":\"");
    while (!atomic_load(&f->stop) && fake_puts(fd, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")) {
    }
}
static void endless_headers(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_puts(fd, "HTTP/1.1 200 OK\r\n");
    while (!atomic_load(&f->stop) &&
           fake_puts(fd, "X-Header: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")) {
    }
}
static void endless_continue(struct fake *f, int fd, int nth)
{
    (void)nth;
    while (!atomic_load(&f->stop) && fake_puts(fd, "HTTP/1.1 100 Continue\r\n\r\n")) {
    }
}
/* 1 MiB of JSON arrays inside arrays. */
static void deep_json(struct fake *f, int fd, int nth)
{
    (void)nth;
    (void)f;
    fake_puts(fd, JSON_HEAD);
    for (int i = 0; i < 1 << 16 && fake_puts(fd, "[[[[[[[[[[[[[[[["); i++) {
    }
}

static void test_42_size_is_bounded(void **state)
{
    (void)state;
    static const struct {
        void (*behave)(struct fake *, int, int);
        const char *says;
    } cases[] = {{endless_stream, "longer than 3000000"},
                 {giant_line, "a line of the stream"},
                 {endless_json, "longer than 3000000"},
                 {endless_headers, "headers"},
                 {endless_continue, ""},
                 {deep_json, "JSON"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        start(cases[i].behave);
        options.max_reply_bytes = 3000000;
        options.total_ms = 20000;
        size_t before = cr_mem_now();
        assert_int_equal(ask_once(true), CR_NETWORK);
        fake_stop(&fake);
        if (!strstr(err.msg, cases[i].says))
            print_message("case %zu: \"%s\"\n", i, err.msg);
        assert_non_null(strstr(err.msg, cases[i].says));
        assert_true(answer.bytes_in < 4000000);
        assert_int_equal(cr_mem_now(), before);
    }
}

/* ---- where it goes ---- */

static void redirects(struct fake *f, int fd, int nth)
{
    (void)nth;
    char reply[256];
    snprintf(reply, sizeof reply,
             "HTTP/1.1 307 Temporary Redirect\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n",
             f->text);
    fake_puts(fd, reply);
}

static void test_42_redirects_are_not_followed(void **state)
{
    (void)state;
    static struct fake other;
    char there[64];
    assert_true(fake_start(&other, good));
    snprintf(there, sizeof there, "http://127.0.0.1:%d/v1/chat/completions", other.port);
    const char *const targets[] = {there, "http://169.254.169.254/latest/meta-data", "/elsewhere",
                                   "file:///etc/passwd", "gopher://127.0.0.1:1/x"};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        start(redirects);
        fake.text = targets[i];
        assert_int_equal(ask_once(false), CR_NETWORK);
        fake_stop(&fake);
        assert_non_null(strstr(err.msg, "redirect"));
        assert_int_equal(atomic_load(&fake.n_requests), 1);
        assert_int_equal(answer.tries, 1);
    }
    fake_stop(&other);
    assert_int_equal(atomic_load(&other.n_requests), 0); /* neither text nor key went there */
}

static void test_42_forbidden_addresses(void **state)
{
    (void)state;
    static const char *const urls[] = {"http://169.254.169.254/",
                                       "https://169.254.169.254/",
                                       "https://[fe80::1]/",
                                       "https://0.0.0.0/",
                                       "https://[::ffff:169.254.1.1]/",
                                       "https://224.0.0.1/",
                                       "https://[::]/"};
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        options = (struct cr_upstream_options){
            .url = urls[i], .model = "m", .insecure = true, .total_ms = 2000};
        assert_int_equal(ask_once(false), CR_POLICY);
        assert_int_equal(answer.tries, 1);
        assert_int_equal(answer.bytes_out, 0);
    }
}

static void test_45_proxies_of_the_environment_are_ignored(void **state)
{
    (void)state;
    static struct fake proxy;
    char there[64];
    assert_true(fake_start(&proxy, good));
    snprintf(there, sizeof there, "http://127.0.0.1:%d", proxy.port);
    setenv("http_proxy", there, 1);
    setenv("ALL_PROXY", there, 1);
    start(good);
    assert_int_equal(ask_once(false), CR_OK);
    fake_stop(&fake);
    fake_stop(&proxy);
    unsetenv("http_proxy");
    unsetenv("ALL_PROXY");
    assert_int_equal(atomic_load(&proxy.n_requests), 0);
    assert_int_equal(atomic_load(&fake.n_requests), 1);
}

static void test_42_no_such_host(void **state)
{
    (void)state;
    options = (struct cr_upstream_options){
        .url = "https://nowhere.invalid/", .model = "m", .total_ms = 3000};
    assert_int_equal(ask_once(false), CR_NETWORK);
    assert_int_equal(answer.bytes_out, 0);
}

static void test_refused_connection_is_tried_again(void **state)
{
    (void)state;
    start(good);
    fake_stop(&fake); /* nobody listens there now */
    assert_int_equal(ask_once(false), CR_NETWORK);
    assert_int_equal(answer.tries, 3);
    assert_non_null(strstr(err.msg, "after 3 tries"));
    assert_true(took_ms >= 55); /* 20 + 40 ms */
}

/* ---- storms ---- */

static void fails_twice(struct fake *f, int fd, int nth)
{
    (void)f;
    if (nth == 1)
        fake_reply(fd, "429 Slow down", "Retry-After: 0\r\n", "{\"error\":{\"message\":\"slow\"}}");
    else if (nth == 2)
        fake_reply(fd, "503 Busy", "", "busy");
    else
        fake_reply(fd, "200 OK", "", GOOD);
}

static void test_busy_server_is_tried_again(void **state)
{
    (void)state;
    start(fails_twice);
    assert_int_equal(ask_once(false), CR_OK);
    fake_stop(&fake);
    assert_int_equal(answer.tries, 3);
    assert_true(took_ms >= 55);
    assert_int_equal(answer.bytes_out, atomic_load(&fake.n_bytes)); /* every try is counted */
}

static void always_429(struct fake *f, int fd, int nth)
{
    (void)nth;
    fake_reply(fd, "429 Slow down", f->text, "{\"error\":{\"message\":\"slow\"}}");
}

static void test_42_storm_stops(void **state)
{
    (void)state;
    cr_upstream *u;
    start(always_429);
    fake.text = "";
    assert_int_equal(cr_upstream_new(&u, &options, &err), CR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(send_with(u, false), CR_NETWORK);
    assert_non_null(strstr(err.msg, "HTTP 429: slow"));
    assert_int_equal(atomic_load(&fake.n_requests), 9);
    assert_true(cr_upstream_paused_ms(u) > 0);
    for (int i = 0; i < 100; i++) /* now nothing leaves at all */
        assert_int_equal(send_with(u, false), CR_NETWORK);
    assert_int_equal(atomic_load(&fake.n_requests), 9);
    assert_int_equal(answer.bytes_out, 0);
    assert_non_null(strstr(err.msg, "paused"));
    cr_upstream_free(u);
    fake_stop(&fake);
}

static void test_long_retry_after_is_not_waited_for(void **state)
{
    (void)state;
    start(always_429);
    fake.text = "Retry-After: 3600\r\n";
    assert_int_equal(ask_once(false), CR_NETWORK);
    fake_stop(&fake);
    assert_int_equal(answer.tries, 1);
    assert_true(took_ms < 1000);
}

static void pause_then_good(struct fake *f, int fd, int nth)
{
    (void)f;
    if (nth <= 3)
        fake_reply(fd, "500 Oops", "", "");
    else
        fake_reply(fd, "200 OK", "", GOOD);
}

static void test_pause_ends(void **state)
{
    (void)state;
    cr_upstream *u;
    start(pause_then_good);
    options.max_tries = 1;
    options.pause_ms = 60;
    assert_int_equal(cr_upstream_new(&u, &options, &err), CR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(send_with(u, false), CR_NETWORK);
    assert_int_equal(send_with(u, false), CR_NETWORK);
    nanosleep(&(struct timespec){.tv_nsec = 80000000}, NULL);
    assert_int_equal(send_with(u, false), CR_OK);
    assert_int_equal(cr_upstream_paused_ms(u), 0);
    cr_upstream_free(u);
    fake_stop(&fake);
}

/* ---- money (attack 47) ---- */

static void test_47_cost_ceiling(void **state)
{
    (void)state;
    start(endless_stream);
    options.price_in = 1;
    options.price_out = 10;
    options.total_ms = 20000;
    max_cost = 0.001; /* 100 tokens of answer at most, less the prompt */
    assert_int_equal(ask_once(false), CR_LIMIT);
    fake_stop(&fake);
    assert_non_null(strstr(err.msg, "cost ceiling"));
    char *cap = strstr(fake.request, "\"max_tokens\":");
    assert_non_null(cap);
    assert_int_equal(strtol(cap + 13, NULL, 10), 16); /* the caller's own limit is smaller */
    max_cost = 0.0001;
    assert_int_equal(ask_once(false), CR_POLICY); /* does not even pay for the prompt */
    options.price_out = 0;
    assert_int_equal(ask_once(false), CR_INVALID);
    max_cost = 0;

    start(good);
    options.price_in = 1;
    options.price_out = 10;
    assert_int_equal(ask_once(false), CR_OK);
    fake_stop(&fake);
    assert_true(answer.cost > 26.9e-6 && answer.cost < 27.1e-6); /* 7 * 1 + 2 * 10 per million */
}

static void test_bad_messages_are_refused(void **state)
{
    (void)state;
    cr_upstream *u;
    struct cr_outgoing out;
    options = (struct cr_upstream_options){.url = "https://h", .model = "m"};
    assert_int_equal(cr_upstream_new(&u, &options, &err), CR_OK);
    struct cr_message bad[] = {{.role = "user", .content = "\xff"},
                               {.role = NULL, .content = "x"},
                               {.role = "user", .content = NULL}};
    for (size_t i = 0; i < 3; i++) {
        struct cr_ask ask = {.messages = &bad[i], .n_messages = 1};
        assert_int_equal(cr_upstream_prepare(u, &ask, &out, &err), CR_INVALID);
        assert_null(out.body);
    }
    struct cr_ask none = {.n_messages = 0};
    assert_int_equal(cr_upstream_prepare(u, &none, &out, &err), CR_INVALID);
    cr_upstream_free(u);
}

static void test_46_key_reading(void **state)
{
    (void)state;
    char path[] = "/tmp/crayon-key-XXXXXX", *key;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, CANARY "\r\n", sizeof CANARY + 1), sizeof CANARY + 1);
    close(fd);
    assert_int_equal(cr_key_read(path, &key, &err), CR_OK);
    assert_string_equal(key, CANARY);
    cr_key_free(key);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(cr_key_read(path, &key, &err), CR_INVALID);
    unlink(path);
    assert_int_equal(cr_key_read(path, &key, &err), CR_NOT_FOUND);
    assert_null(key);

    setenv("CRAYON_API_KEY", CANARY, 1);
    char *where = getenv("CRAYON_API_KEY");
    assert_int_equal(cr_key_read(NULL, &key, &err), CR_OK);
    assert_string_equal(key, CANARY);
    assert_null(getenv("CRAYON_API_KEY"));
    assert_string_equal(where, ""); /* wiped in place */
    cr_key_free(key);
    assert_int_equal(cr_key_read(NULL, &key, &err), CR_OK); /* no key is fine */
    assert_null(key);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, clean)
    const struct CMUnitTest tests[] = {
        T(test_whole_answer_and_exact_bytes),
        T(test_url_is_completed),
        T(test_bad_settings_are_refused),
        T(test_stream),
        T(test_42_bad_replies),
        T(test_42_silent_server_ends_in_time),
        T(test_42_stalled_stream_ends_in_time),
        T(test_42_dripping_stream_ends_in_time),
        T(test_caller_can_cancel),
        T(test_42_size_is_bounded),
        T(test_42_redirects_are_not_followed),
        T(test_42_forbidden_addresses),
        T(test_45_proxies_of_the_environment_are_ignored),
        T(test_42_no_such_host),
        T(test_refused_connection_is_tried_again),
        T(test_busy_server_is_tried_again),
        T(test_42_storm_stops),
        T(test_long_retry_after_is_not_waited_for),
        T(test_pause_ends),
        T(test_47_cost_ceiling),
        T(test_bad_messages_are_refused),
        T(test_46_key_reading),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
