/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing in the request path of a live server: who answers, what the reply and its headers say,
 * what is sent, and that the model's answer is given when the server fails (attack 42).
 */
#include "fake_upstream.h"
#include "serve_fixture.h"
#include "worked_fixture.h"

#include "base/mem.h"
#include "route/route.h"

#define GOOD                                                                                       \
    "{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Paris it is\"}," \
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}"
#define EVENT(text) "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" text "\"}}]}\n\n"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Hello there\"}]"

static struct fake fake;
static char folder[64], file[128], url[64];
static cr_router *router;
static cr_server *server;
static struct cr_router_options options;
static struct cr_upstream_options upstream;

/* What the upstream does: a reply of "200 OK" as it is asked for, or what `text` names. */
static void behave(struct fake *f, int fd, int nth)
{
    const char *how = f->text ? f->text : "";
    if (strcmp(how, "hang once") == 0)
        how = nth == 1 ? "hang" : "500";
    bool stream = strstr(f->request, "\"stream\":true") != NULL;
    if (strcmp(how, "500") == 0)
        fake_reply(fd, "500 No", "", "{}");
    else if (strcmp(how, "hang") == 0)
        fake_sleep(f, 3000);
    else if (!stream)
        fake_reply(fd, "200 OK", "", GOOD);
    else {
        fake_puts(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: "
                      "close\r\n\r\n" EVENT("Paris ") EVENT("it "));
        if (strcmp(how, "cut") != 0)
            fake_puts(fd, EVENT("is") "data: {\"choices\":[{\"index\":0,\"delta\":{},"
                                      "\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
    }
}

static void begin_with(const char *const *palettes, size_t n)
{
    struct cr_error err;
    if (cr_router_new(&router, &options, &err) != CR_OK)
        fail_msg("%s", err.msg);
    struct cr_serve_options opt = {.model = model,
                                   .model_name = "m",
                                   .n_ctx = 256,
                                   .router = router,
                                   .palettes = palettes,
                                   .n_palettes = n};
    if (cr_server_start(&server, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
}

static void begin(void)
{
    begin_with(NULL, 0);
}

static int make(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/crayon-serve-route-XXXXXX");
    if (!mkdtemp(folder) || !fake_start(&fake, behave))
        return -1;
    snprintf(file, sizeof file, "%s/ledger.db", folder);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", fake.port);
    upstream = (struct cr_upstream_options){
        .url = url, .model = "big", .key = "CANARY-4711", .backoff_ms = 1};
    options = (struct cr_router_options){
        .rule = CR_RULE_RANDOM, .budget = 1, .upstream = &upstream, .ledger_path = file};
    return 0;
}

static int clean(void **state)
{
    (void)state;
    static const char *const ends[] = {"", "-wal", "-shm"};
    cr_server_stop(server, 2000);
    cr_router_free(router);
    server = NULL;
    router = NULL;
    fake_stop(&fake);
    for (int i = 0; i < 3; i++) {
        char path[160];
        snprintf(path, sizeof path, "%s%s", file, ends[i]);
        remove(path);
    }
    return remove(folder);
}

static char *send_it(const char *body)
{
    return post(server, "/v1/chat/completions", body);
}

struct seen {
    char text[512], route[16], why[512], id[64], confidence[32];
    json_int_t left;
};

/* The reply to a request that is not a stream. */
static struct seen ask(const char *extra, const char *route_header)
{
    char body[1024], want[64];
    struct seen s = {0};
    snprintf(body, sizeof body, "{\"model\":\"m\"," USER ",\"max_tokens\":6,\"temperature\":0%s}",
             extra);
    char *reply = send_it(body);
    if (status_of(reply) != 200)
        fail_msg("%s", reply);
    snprintf(want, sizeof want, "X-Crayon-Route: %s\r\n", route_header);
    if (!strstr(reply, want))
        fail_msg("want %s in %s", want, reply);
    assert_non_null(strstr(reply, "X-Request-Id: chatcmpl-"));
    assert_null(strstr(reply, "CANARY"));
    json_t *v = body_of(reply), *c = json_object_get(v, "crayon");
    json_t *choice = json_array_get(json_object_get(v, "choices"), 0);
    snprintf(s.text, sizeof s.text, "%s",
             json_string_value(json_object_get(json_object_get(choice, "message"), "content")));
    snprintf(s.route, sizeof s.route, "%s", json_string_value(json_object_get(c, "route")));
    snprintf(s.why, sizeof s.why, "%s", json_string_value(json_object_get(c, "why")));
    snprintf(s.id, sizeof s.id, "%s", json_string_value(json_object_get(v, "id")));
    char *sure = json_dumps(json_object_get(c, "confidence"), JSON_ENCODE_ANY);
    snprintf(s.confidence, sizeof s.confidence, "%s", sure);
    free(sure);
    s.left = json_integer_value(json_object_get(c, "left_device_bytes"));
    assert_string_equal(s.route, route_header);
    json_decref(v);
    cr_free(reply);
    return s;
}

static struct cr_ledger_totals totals(void)
{
    struct cr_ledger_totals t = {0};
    cr_ledger *l;
    if (cr_ledger_open_read(&l, file, NULL) == CR_OK) {
        assert_int_equal(cr_ledger_sum(l, &t, NULL), CR_OK);
        cr_ledger_close(l);
    }
    return t;
}

static char logged[1024];
static void remember_log(void *ud, enum cr_log_level level, const char *msg)
{
    (void)ud, (void)level;
    size_t n = strlen(logged);
    snprintf(logged + n, sizeof logged - n, "%s\n", msg);
}

/* What the rule cannot judge stays here: the log says so at the start, and each answer. */
static void test_what_is_not_calibrated_is_said_at_the_start(void **state)
{
    (void)state;
    options.rule = CR_RULE_CONF;
    options.budget = 0.5;
    cr_log_set(remember_log, NULL);
    begin();
    cr_log_set(NULL, NULL);
    assert_non_null(strstr(logged, "m: its questions stay here: rule conf: want a palette"));
    struct seen s = ask("", "device");
    assert_non_null(strstr(s.why, "want a palette"));
    assert_int_equal(totals().rows, 0);
    char *reply = exchange(server, "GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\n"
                                   "Connection: close\r\n\r\n");
    assert_non_null(strstr(reply, "\"crayon\":{\"routed\":false,\"why\":\"rule conf: want"));
    cr_free(reply);
}

/* The page of metrics once it has the line: a request is counted when its reply is out. Fails
 * without it after two seconds. Free with cr_free. */
static char *metrics_with(const char *line)
{
    for (int i = 0; i < 200; i++) {
        char *reply = exchange(server, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
                                       "Connection: close\r\n\r\n");
        if (strstr(reply, line))
            return reply;
        cr_free(reply);
        fake_sleep(&fake, 10);
    }
    fail_msg("no line %s", line);
    return NULL;
}

static void test_server_answers_and_says_so(void **state)
{
    (void)state;
    begin();
    char *models = exchange(server, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
                                    "Connection: close\r\n\r\n");
    assert_non_null(strstr(models, "\"crayon\":{\"routed\":true}"));
    cr_free(models);
    struct seen s = ask("", "server");
    assert_string_equal(s.text, "Paris it is");
    assert_string_equal(s.why, "the budget is 1");
    assert_string_equal(s.confidence, "null"); /* the model was not asked */
    assert_int_equal(s.left, atomic_load(&fake.n_bytes));
    assert_non_null(strstr(fake.request, "Authorization: Bearer CANARY-4711"));
    assert_non_null(strstr(fake.request, "\"model\":\"big\""));
    assert_non_null(strstr(fake.request, "Hello there"));
    assert_int_equal(totals().ok, 1);
    char want[96],
        *reply = metrics_with("crayon_tokens_total{kind=\"answer\",route=\"server\"} 3\n");
    snprintf(want, sizeof want, "crayon_upload_bytes_total %lld\n", (long long)s.left);
    assert_non_null(strstr(reply, want));
    assert_non_null(strstr(reply, "crayon_escalations_total{reason=\"rule\"} 1\n"));
    assert_non_null(strstr(reply, "crayon_tokens_total{kind=\"run\",route=\"device\"} 0\n"));
    assert_non_null(strstr(reply, "{endpoint=\"chat\",code=\"200\",route=\"server\"} 1\n"));
    cr_free(reply);
    /* and it can be explained */
    cr_ledger *l;
    assert_int_equal(cr_ledger_open_read(&l, file, NULL), CR_OK);
    assert_int_equal(cr_ledger_find(l, s.id, NULL, NULL, NULL, NULL), CR_OK);
    cr_ledger_close(l);
}

static void test_wishes(void **state)
{
    (void)state;
    begin();
    struct seen here = ask(",\"crayon\":{\"route\":\"device\"}", "device");
    assert_string_equal(here.why, "asked for by the request");
    assert_int_equal(atomic_load(&fake.n_requests), 0);
    cr_server_stop(server, 1000);
    cr_router_free(router);
    options.budget = 0;
    begin();
    struct seen none = ask("", "device");
    assert_string_equal(none.text, here.text);
    assert_string_equal(none.why, "the budget is 0");
    assert_string_equal(ask(",\"crayon\":{\"route\":\"server\"}", "server").text, "Paris it is");
    /* what a server could not honour stays here, or is refused when the server was wished for */
    struct seen tools = ask(",\"response_format\":{\"type\":\"json_object\"}", "device");
    assert_non_null(strstr(tools.why, "schemas"));
    char *reply = send_it("{\"model\":\"m\"," USER ",\"n\":2,\"crayon\":{\"route\":\"server\"}}");
    assert_int_equal(status_of(reply), 400);
    cr_free(reply);
    reply = send_it("{\"model\":\"m\"," USER ",\"crayon\":{\"route\":\"cloud\"}}");
    assert_int_equal(status_of(reply), 400);
    cr_free(reply);
}

static void test_42_device_answers_when_the_server_fails(void **state)
{
    (void)state;
    begin();
    struct seen here = ask(",\"crayon\":{\"route\":\"device\"}", "device");
    fake.text = "500";
    struct seen failed = ask("", "device");
    assert_string_equal(failed.text, here.text);
    assert_string_equal(failed.confidence, here.confidence);
    assert_non_null(strstr(failed.why, "upstream failed: after 3 tries: upstream: HTTP 500"));
    assert_int_equal(totals().failed, 1);
    /* a stream too: nothing of it is lost */
    char *reply =
        send_it("{\"model\":\"m\"," USER ",\"max_tokens\":6,\"temperature\":0,\"stream\":true}");
    assert_non_null(strstr(reply, "X-Crayon-Route: device"));
    assert_non_null(strstr(reply, "upstream failed"));
    assert_non_null(strstr(reply, "data: [DONE]"));
    cr_free(reply);
}

static void *stop_it(void *ud)
{
    cr_server_stop(ud, 10000);
    return NULL;
}

/* The server fails while this one drains: the model's answer is still made, and given. */
static void test_42_also_while_it_stops(void **state)
{
    (void)state;
    pthread_t t;
    fake.text = "hang once";
    begin();
    int fd = dial(server);
    post_on(fd, "/v1/chat/completions", "{\"model\":\"m\"," USER ",\"max_tokens\":3}");
    for (int i = 0; i < 500 && totals().pending == 0; i++)
        fake_sleep(&fake, 10);
    assert_int_equal(pthread_create(&t, NULL, stop_it, server), 0);
    char *reply = read_all(fd);
    pthread_join(t, NULL);
    server = NULL;
    if (status_of(reply) != 200 || !strstr(reply, "upstream failed"))
        fail_msg("%s", reply);
    cr_free(reply);
}

static void test_streams(void **state)
{
    (void)state;
    begin();
    static const char body[] =
        "{\"model\":\"m\"," USER ",\"max_tokens\":6,\"stream\":true,\"stop\":[\" is\"]}";
    char *reply = send_it(body);
    assert_int_equal(status_of(reply), 200);
    assert_non_null(strstr(reply, "X-Crayon-Route: server"));
    assert_non_null(
        strstr(reply, "\"content\":\"Paris \"") ? reply : strstr(reply, "\"content\":\"Paris\""));
    assert_null(strstr(reply, " is\"")); /* the request's stop string holds for the server too */
    assert_non_null(strstr(reply, "\"finish_reason\":\"stop\""));
    assert_non_null(strstr(reply, "\"route\":\"server\""));
    assert_non_null(strstr(reply, "data: [DONE]"));
    cr_free(reply);
    /* cut in the middle: an error in the stream, and no [DONE] as if all were well */
    fake.text = "cut";
    reply = send_it("{\"model\":\"m\"," USER ",\"max_tokens\":6,\"stream\":true}");
    assert_int_equal(status_of(reply), 200);
    assert_non_null(strstr(reply, "broke off"));
    assert_null(strstr(reply, "[DONE]"));
    cr_free(reply);
}

/* A rule that asks only for the question decides before the answer, so that what stays here
 * streams: many pieces, where a held answer is one. */
static void test_early_decisions_stream(void **state)
{
    (void)state;
    int n_here = 0, n_away = 0;
    options.budget = 0.5;
    begin();
    for (int i = 0; i < 24 && !(n_here && n_away); i++) {
        char body[512], key[32];
        snprintf(body, sizeof body,
                 "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello %d\"}],"
                 "\"max_tokens\":24,\"stream\":true,\"seed\":3,\"logit_bias\":{\"0\":-100}}",
                 i);
        char *reply = send_it(body);
        bool away = strstr(reply, "X-Crayon-Route: server") != NULL;
        int pieces = 0;
        for (const char *p = reply; (p = strstr(p, "\"content\":\"")); p++)
            pieces += p[11] != '"';
        snprintf(key, sizeof key, "\"route\":\"%s\"", away ? "server" : "device");
        if (!strstr(reply, key) || !strstr(reply, "random draw"))
            fail_msg("%s", reply);
        if (!away && pieces < 4)
            fail_msg("%d pieces: %s", pieces, reply);
        n_here += !away;
        n_away += away;
        cr_free(reply);
    }
    assert_true(n_here > 0 && n_away > 0);
    struct cr_ledger_totals t = totals();
    assert_int_equal(t.ok, n_away);
}

/* Attack 34 for the way out: the client goes, the server is not waited for. */
static void test_client_goes_away(void **state)
{
    (void)state;
    fake.text = "hang";
    begin();
    static const char body[] = "{\"model\":\"m\"," USER ",\"max_tokens\":2,\"stream\":true}";
    int fd = dial(server);
    post_on(fd, "/v1/chat/completions", body);
    for (int i = 0; i < 500 && atomic_load(&fake.n_requests) == 0 && totals().pending == 0; i++)
        fake_sleep(&fake, 10);
    close(fd);
    for (int i = 0; i < 200 && totals().failed == 0; i++)
        fake_sleep(&fake, 10);
    assert_int_equal(totals().failed, 1);
}

static void *ask_often(void *ud)
{
    for (int i = 0; i < 6; i++) {
        char *reply =
            send_it(i % 2 ? "{\"model\":\"m\"," USER ",\"max_tokens\":3}"
                          : "{\"model\":\"m\"," USER ",\"max_tokens\":3,\"stream\":true}");
        if (status_of(reply) != 200)
            atomic_fetch_add((atomic_int *)ud, 1);
        cr_free(reply);
    }
    return NULL;
}

static void test_many_at_a_time(void **state)
{
    (void)state;
    enum { N = 4 };
    pthread_t t[N];
    atomic_int bad = 0;
    options.budget = 0.5;
    begin();
    for (int i = 0; i < N; i++)
        assert_int_equal(pthread_create(&t[i], NULL, ask_often, &bad), 0);
    for (int i = 0; i < N; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(atomic_load(&bad), 0);
    struct cr_ledger_totals sum = totals();
    assert_int_equal(sum.pending, 0);
    assert_int_equal(sum.bytes_out, atomic_load(&fake.n_bytes));
}

static void test_page_and_ledger(void **state)
{
    (void)state;
    static const char *const paths[] = {"/", "/console.css", "/console.js"};
    static const char *const types[] = {"text/html", "text/css", "text/javascript"};
    setenv("XDG_STATE_HOME", folder, 1);
    begin();
    for (int i = 0; i < 3; i++) {
        char request[128], want[64];
        snprintf(request, sizeof request,
                 "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", paths[i]);
        int fd = dial(server);
        send_text(fd, request);
        char *reply = read_all(fd);
        assert_int_equal(status_of(reply), 200);
        snprintf(want, sizeof want, "Content-Type: %s", types[i]);
        assert_non_null(strstr(reply, want));
        assert_non_null(strstr(reply, "Content-Security-Policy: default-src 'none'; script-src "
                                      "'self'; style-src 'self'"));
        /* nothing from elsewhere: the one address is the name of SVG */
        for (const char *p = reply; (p = strstr(p, "http")) != NULL; p++)
            assert_true(strncmp(p, "http://www.w3.org/2000/svg", 26) == 0 ||
                        (p[4] != ':' && p[4] != 's'));
        assert_null(strstr(reply, "unsafe-inline"));
        if (i == 0)
            assert_null(strstr(reply, "style=\""));
        cr_free(reply);
    }
    int fd = dial(server);
    send_text(fd, "GET /v1/crayon/ledger HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    char *reply = read_all(fd);
    assert_int_equal(status_of(reply), 200);
    assert_non_null(strstr(reply, "{\"entries\":[],\"totals\":{\"rows\":0"));
    cr_free(reply);
    unsetenv("XDG_STATE_HOME");
}

/* A palette's worked examples are the user's: the server gets the messages and no more. */
static void test_worked_examples_stay_here(void **state)
{
    (void)state;
    char path[160];
    const char *palettes[] = {path};
    snprintf(path, sizeof path, "%s/w.palette", folder);
    fx_write_worked(path);
    begin_with(palettes, 1);
    remove(path);
    for (int stream = 0; stream < 2; stream++) {
        char body[512];
        snprintf(body, sizeof body,
                 "{\"model\":\"m:w\"," USER ",\"max_tokens\":6,\"temperature\":0,\"stream\":%s,"
                 "\"crayon\":{\"route\":\"%s\"}}",
                 stream ? "true" : "false", "server");
        char *reply = send_it(body);
        assert_int_equal(status_of(reply), 200);
        assert_non_null(strstr(reply, stream ? "it " : "Paris it is"));
        assert_null(strstr(reply, "\"worked_examples\":3"));
        cr_free(reply);
        assert_non_null(strstr(fake.request, "Hello there"));
        assert_null(strstr(fake.request, "canary"));
        assert_null(strstr(fake.request, "green apple"));
        assert_null(strstr(fake.request, "A tree."));
    }
    fake.text = "500"; /* the held answer is given: behind the examples, without its blank */
    char *reply = send_it("{\"model\":\"m:w\",\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"Which is canary four?\"}],\"max_tokens\":6,\"temperature\":0,"
                          "\"crayon\":{\"route\":\"server\"}}");
    fake.text = NULL;
    assert_int_equal(status_of(reply), 200);
    assert_non_null(strstr(reply, "\"content\":\"green apple\""));
    assert_non_null(strstr(reply, "\"worked_examples\":3"));
    cr_free(reply);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, make, clean)
    const struct CMUnitTest tests[] = {
        T(test_server_answers_and_says_so),
        T(test_wishes),
        T(test_worked_examples_stay_here),
        T(test_what_is_not_calibrated_is_said_at_the_start),
        T(test_42_device_answers_when_the_server_fails),
        T(test_42_also_while_it_stops),
        T(test_streams),
        T(test_early_decisions_stream),
        T(test_client_goes_away),
        T(test_many_at_a_time),
        T(test_page_and_ledger),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
