/* SPDX-License-Identifier: Apache-2.0 */
/* route/route.c: decide, record, send, complete; nothing leaves unrecorded; the cap; the key's
 * canary (attack 46). */
#include "fake_upstream.h"

#include "base/bytes.h"
#include "base/mem.h"
#include "base/rng.h"
#include "route/calibrate.h"
#include "route/learned.h"
#include "route/route.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CANARY "CANARY-0f9d2c4b8e"
#define GOOD                                                                                       \
    "{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Paris\"},"       \
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}"

static struct fake fake;
static char folder[64], file[128], url[64];
static struct cr_upstream_options upstream;
static struct cr_router_options options;
static struct cr_error err;

static void behave(struct fake *f, int fd, int nth)
{
    (void)nth;
    /* a rude server: it repeats the key in its error */
    if (f->text)
        fake_reply(fd, "401 No", "", f->text);
    else
        fake_reply(fd, "200 OK", "", GOOD);
}

static int make(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/crayon-route-XXXXXX");
    if (!mkdtemp(folder) || !fake_start(&fake, behave))
        return -1;
    snprintf(file, sizeof file, "%s/ledger.db", folder);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", fake.port);
    upstream = (struct cr_upstream_options){.url = url, .model = "big", .key = CANARY};
    options = (struct cr_router_options){.rule = CR_RULE_RANDOM,
                                         .budget = 0.5,
                                         .seed = 1,
                                         .upstream = &upstream,
                                         .ledger_path = file};
    return 0;
}

static int clean(void **state)
{
    (void)state;
    char path[160];
    static const char *const ends[] = {"", "-wal", "-shm"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", file, ends[i]);
        remove(path);
    }
    fake_stop(&fake);
    return remove(folder);
}

static const struct cr_message question = {"user", "The capital of France?"};
static const struct cr_ask ask = {.messages = &question,
                                  .n_messages = 1,
                                  .temperature = -1,
                                  .request_id = "req-1",
                                  .reason = "confidence 0.1 is below 0.4"};

static struct cr_ledger_totals totals(void)
{
    struct cr_ledger_totals t;
    cr_ledger *l;
    assert_int_equal(cr_ledger_open_read(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    cr_ledger_close(l);
    return t;
}

static bool check_row(void *ud, const struct cr_ledger_row *row)
{
    const struct cr_remote_answer *a = ud;
    assert_string_equal(row->request_id, "req-1");
    assert_string_equal(row->model, "big");
    assert_string_equal(row->reason, "confidence 0.1 is below 0.4");
    assert_string_equal(row->status, "ok");
    assert_non_null(strstr(row->destination, "/v1/chat/completions"));
    assert_int_equal(row->bytes_out, a->bytes_out);
    assert_int_equal(row->bytes_in, a->bytes_in);
    assert_int_equal(row->tokens_in, 7);
    assert_int_equal(row->tokens_out, 1);
    return true;
}

static void test_asks_and_records_to_the_byte(void **state)
{
    (void)state;
    cr_router *r;
    cr_ledger *l;
    struct cr_remote_answer a;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    assert_int_equal(cr_router_ask(r, &ask, &a, &err), CR_OK);
    assert_string_equal(a.text, "Paris");
    assert_int_equal(a.bytes_out, atomic_load(&fake.n_bytes));
    cr_router_free(r);
    assert_int_equal(cr_ledger_open_read(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_each(l, 0, check_row, &a, &err), CR_OK);
    cr_ledger_close(l);
    cr_remote_answer_deinit(&a);
    assert_int_equal(totals().rows, 1);
}

static bool has_canary(const char *path)
{
    char *data;
    size_t n;
    if (cr_file_read(path, 1 << 24, &data, &n, NULL) != CR_OK)
        return false;
    bool found = memmem(data, n, "CANARY", 6) != NULL;
    cr_free(data);
    return found;
}

static void test_46_failure_is_recorded_without_the_key(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_remote_answer a;
    struct cr_decision d = {.server = true};
    fake.text = "{\"error\":{\"message\":\"wrong key " CANARY " and " CANARY "\"}}";
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    assert_int_equal(cr_router_ask(r, &ask, &a, &err), CR_NETWORK);
    assert_null(a.text);
    cr_router_failed(&d, &err);
    assert_false(d.server);
    assert_non_null(strstr(d.why, "upstream failed: upstream: HTTP 401"));
    assert_null(strstr(d.why, "CANARY"));
    cr_router_free(r);
    assert_non_null(strstr(fake.request, CANARY)); /* it did reach the server */
    char path[160];
    snprintf(path, sizeof path, "%s-wal", file);
    assert_false(has_canary(file));
    assert_false(has_canary(path));
    struct cr_ledger_totals t = totals();
    assert_int_equal(t.failed, 1);
    assert_int_equal(t.bytes_out, atomic_load(&fake.n_bytes));
}

static void test_nothing_leaves_unrecorded(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_remote_answer a;
    options.ledger_path = "/dev/null/no/ledger.db";
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    assert_int_not_equal(cr_router_ask(r, &ask, &a, &err), CR_OK);
    assert_non_null(strstr(err.msg, "nothing was sent"));
    assert_int_equal(atomic_load(&fake.n_requests), 0);
    cr_router_free(r);
}

static struct cr_signals signals_nr(uint64_t request)
{
    struct cr_signals s;
    cr_signals_init(&s);
    s.request = request;
    return s;
}

static void test_wishes_and_offline(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_decision d;
    struct cr_remote_answer a;
    struct cr_signals low = signals_nr(0), high = signals_nr(UINT64_MAX);
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    cr_router_decide(r, NULL, &low, CR_ROUTE_AUTO, &d);
    assert_true(d.server);
    cr_router_decide(r, NULL, &low, CR_ROUTE_DEVICE, &d);
    assert_false(d.server);
    cr_router_decide(r, NULL, &high, CR_ROUTE_AUTO, &d);
    assert_false(d.server);
    cr_router_decide(r, NULL, &high, CR_ROUTE_SERVER, &d);
    assert_true(d.server);
    assert_string_equal(d.why, "asked for by the request");
    cr_router_free(r);

    options.offline = true;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    cr_router_decide(r, NULL, &low, CR_ROUTE_SERVER, &d);
    assert_false(d.server);
    assert_non_null(strstr(d.why, "offline"));
    assert_int_equal(cr_router_ask(r, &ask, &a, &err), CR_POLICY);
    cr_router_free(r);
    options.offline = false;
    options.upstream = NULL;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    cr_router_decide(r, NULL, &low, CR_ROUTE_AUTO, &d);
    assert_false(d.server);
    assert_non_null(strstr(d.why, "no upstream"));
    cr_router_free(r);
    options.budget = 1.5;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_INVALID);
}

/* Every question is demanding, as when all traffic leaves the task: the budget holds all the same.
 */
static void test_budget_is_a_cap(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_decision d;
    int sent = 0;
    options.budget = 0.1;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    for (int i = 0; i < 1000; i++) {
        struct cr_signals s = signals_nr(0);
        cr_router_decide(r, NULL, &s, CR_ROUTE_AUTO, &d);
        sent += d.server;
        if (i >= 10 && !d.server)
            assert_non_null(strstr(d.why, "used up"));
    }
    assert_int_equal(sent, 105);
    cr_router_free(r);
}

/* The follow-up: whatever the scores do, the share comes to the budget; here every second question
 * is as demanding as none of the calibration was, and the window forgets the past. */
static void test_share_follows_the_budget(void **state)
{
    (void)state;
    enum { N = 2000 };
    static float conf[500];
    struct cr_palette p = {.name = "t"};
    struct cr_rng rng;
    cr_rng_init(&rng, 4);
    for (int i = 0; i < 500; i++)
        conf[i] = (float)cr_rng_double(&rng);
    assert_int_equal(cr_calibration_fit(&p.calibration, conf, NULL, 500, false, NULL), CR_OK);
    options.rule = CR_RULE_CONF;
    options.budget = 0.3;
    for (int window = 0; window <= 500; window += 500)
        for (int drift = 0; drift < 3; drift++) { /* as calibrated, all easy, all hard */
            cr_router *r;
            int sent = 0, last = 0;
            options.window = window;
            assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
            for (int i = 0; i < N; i++) {
                struct cr_decision d;
                struct cr_signals s = signals_nr(0);
                double u = cr_rng_double(&rng);
                s.demand_conf = (float)(drift == 0 ? u : drift == 1 ? 0.6 * u : 0.5 + 0.5 * u);
                s.confidence = 1 - s.demand_conf;
                cr_router_decide(r, &p, &s, CR_ROUTE_AUTO, &d);
                sent += d.server;
                last += d.server && i >= N - 500;
            }
            cr_router_free(r);
            print_message("window %d, drift %d: sent %.4f, of the last 500 %.4f\n", window, drift,
                          (double)sent / N, last / 500.0);
            assert_true(fabs((double)sent / N - 0.3) < 0.02);
            assert_true(fabs(last / 500.0 - 0.3) < 0.03);
        }
}

/* What the rule cannot judge stays, however long nothing leaves, and is no part of the share. */
static void test_what_cannot_be_judged_stays(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_decision d;
    struct cr_palette bare = {.name = "bare"};
    options.rule = CR_RULE_CONF;
    options.budget = 0.3;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    for (int i = 0; i < 1000; i++) {
        struct cr_signals s = signals_nr(0);
        cr_router_decide(r, &bare, &s, CR_ROUTE_AUTO, &d);
        assert_false(d.server);
        assert_non_null(strstr(d.why, "has no calibration"));
    }
    cr_router_free(r);
}

/* The window forgets: after a quiet time the budget is there again, but never more than its share
 * of any window. */
static void test_window_slides(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_decision d;
    int in_window = 0;
    bool was[300] = {false};
    options.budget = 0.1;
    options.window = 100;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    for (int i = 0; i < 300; i++) {
        bool busy = i < 50 || i >= 200;
        struct cr_signals s = signals_nr(busy ? 0 : UINT64_MAX);
        cr_router_decide(r, NULL, &s, CR_ROUTE_AUTO, &d);
        was[i] = d.server;
        in_window += d.server - (i >= 100 && was[i - 100]);
        assert_true(in_window <= 15); /* 10 % of 100, and the 5 of a fresh start */
    }
    assert_true(was[200]);
    cr_router_free(r);
}

/* Two routers get the same questions: one may decide before it knows the answer, the other never.
 * They decide the same. Returns how many of 600 were decided early. */
static int both(enum cr_rule rule, double budget, double max_wrong, const struct cr_palette *p)
{
    cr_router *early, *late;
    struct cr_rng rng;
    int n_early = 0;
    cr_rng_init(&rng, 9);
    options.rule = rule;
    options.budget = budget;
    options.max_wrong = max_wrong;
    assert_int_equal(cr_router_new(&early, &options, &err), CR_OK);
    assert_int_equal(cr_router_new(&late, &options, &err), CR_OK);
    for (int i = 0; i < 600; i++) {
        struct cr_decision a, b;
        struct cr_signals s = signals_nr(cr_rng_u64(&rng));
        s.demand_scope = (float)(3 * cr_rng_double(&rng) - (i < 300 ? 1 : 0));
        bool known = cr_router_decide_early(early, p, &s, CR_ROUTE_AUTO, &a);
        s.demand_conf = (float)cr_rng_double(&rng);
        s.confidence = 1 - s.demand_conf;
        if (!known)
            cr_router_decide(early, p, &s, CR_ROUTE_AUTO, &a);
        cr_router_decide(late, p, &s, CR_ROUTE_AUTO, &b);
        if (a.server != b.server)
            fail_msg("%s, budget %g, question %d: %s; %s", cr_rule_name(rule), budget, i, a.why,
                     b.why);
        assert_null(strstr(a.why, "nan"));
        n_early += known;
    }
    cr_router_free(early);
    cr_router_free(late);
    return n_early;
}

static void test_what_is_decided_early_stands(void **state)
{
    (void)state;
    static float conf[300], scope[300];
    struct cr_study_row rows[300];
    struct cr_palette p = {.name = "t"}, bare = {.name = "bare"};
    struct cr_rng rng;
    cr_rng_init(&rng, 4);
    for (int i = 0; i < 300; i++) {
        conf[i] = (float)cr_rng_double(&rng);
        scope[i] = (float)(3 * cr_rng_double(&rng) - 1);
        cr_signals_init(&rows[i].signals);
        rows[i].device_right = conf[i] < 0.5f;
        rows[i].signals.demand_conf = conf[i];
        rows[i].signals.confidence = 1 - conf[i];
        rows[i].signals.demand_scope = scope[i];
    }
    assert_int_equal(cr_calibration_fit(&p.calibration, conf, scope, 300, false, NULL), CR_OK);
    assert_int_equal(cr_calibration_label(&p.calibration, rows, 300, false, NULL, NULL, NULL),
                     CR_OK);
    assert_true(p.calibration.learned.n_rows > 0);
    assert_int_equal(both(CR_RULE_RANDOM, 0.3, 0, &p), 600);
    assert_int_equal(both(CR_RULE_SCOPE, 0.3, 0, &p), 600);
    int n_crayon = both(CR_RULE_CRAYON, 0.3, 0, &p), n_conf = both(CR_RULE_CONF, 0.3, 0, &p);
    int n_learned = both(CR_RULE_LEARNED, 0.3, 0, &p);
    print_message("early of 600: crayon %d, conf %d, learned %d\n", n_crayon, n_conf, n_learned);
    assert_in_range(n_crayon, 60, 540);
    assert_in_range(n_conf, 0, 300); /* where the budget was used up */
    assert_in_range(n_learned, 0, 300);
    for (int rule = 0; rule < CR_RULE_COUNT; rule++) {
        assert_int_equal(both((enum cr_rule)rule, 1, 0, &p), 600);
        assert_int_equal(both((enum cr_rule)rule, 0, 0, &p), 600);
        assert_int_equal(both((enum cr_rule)rule, 0.3, 0, &bare), 600); /* cannot be judged */
        both((enum cr_rule)rule, 1, 0.1, &p);
    }
}

static void test_spending_limit(void **state)
{
    (void)state;
    cr_router *r;
    struct cr_outgoing out;
    struct cr_remote_answer a;
    options.max_spend = 0.01;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_INVALID); /* no prices */
    upstream.price_in = 1; /* 7 prompt tokens and 1 of answer cost 0.001007 */
    upstream.price_out = 1000;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    int sent = 0;
    enum cr_status st = CR_OK;
    for (; sent < 100 && st == CR_OK; sent++) {
        st = cr_router_prepare(r, &ask, &out, &err);
        if (st != CR_OK)
            break;
        assert_true(out.worst_cost > 0 && out.worst_cost <= 0.01); /* max_tokens was lowered */
        st = cr_router_send(r, &out, &a, &err);
        assert_true(fabs(a.cost - 0.001007) < 1e-9);
        cr_remote_answer_deinit(&a);
        cr_outgoing_deinit(&out);
    }
    assert_int_equal(st, CR_POLICY);
    assert_true(sent >= 8 && sent <= 10);
    print_message("%d answers, then: %s\n", sent, err.msg);
    assert_true(totals().cost <= 0.01);
    cr_router_free(r);
    /* another process sees the same ledger */
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    assert_int_equal(cr_router_ask(r, &ask, &a, &err), CR_POLICY);
    cr_router_free(r);
}

static void fail_all(struct fake *f, int fd, int nth)
{
    (void)f;
    (void)nth;
    fake_reply(fd, "400 Bad", "", "{\"error\":{\"message\":\"not today\"}}");
}

/* Several upstreams in order: the second answers when the first fails, with a row for each; the key
 * of one is never seen by the other. */
static void test_next_upstream_is_asked(void **state)
{
    (void)state;
    static struct fake first;
    struct cr_upstream_options both[2];
    struct cr_remote_answer a;
    struct cr_outgoing out;
    char first_url[64];
    cr_router *r;
    assert_true(fake_start(&first, fail_all));
    snprintf(first_url, sizeof first_url, "http://127.0.0.1:%d", first.port);
    both[0] = (struct cr_upstream_options){.url = first_url, .model = "one", .key = "KEY-ONE"};
    both[1] = (struct cr_upstream_options){.url = url, .model = "two", .key = "KEY-TWO"};
    options.upstream = both;
    options.n_upstreams = 2;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    assert_int_equal(cr_router_prepare(r, &ask, &out, &err), CR_OK);
    struct cr_buf b;
    cr_buf_init(&b, 1 << 16);
    assert_int_equal(cr_preview(&out, &b, &err), CR_OK);
    assert_non_null(strstr(b.data, "if that fails, the same to: http://127.0.0.1:"));
    cr_buf_deinit(&b);
    assert_int_equal(cr_router_send(r, &out, &a, &err), CR_OK);
    assert_string_equal(a.text, "Paris");
    assert_string_equal(out.model, "two");
    assert_non_null(strstr(first.request, "KEY-ONE"));
    assert_null(strstr(first.request, "KEY-TWO"));
    assert_non_null(strstr(fake.request, "KEY-TWO"));
    assert_null(strstr(fake.request, "KEY-ONE"));
    assert_non_null(strstr(fake.request, "\"two\""));
    assert_int_equal(a.bytes_out, atomic_load(&fake.n_bytes) + atomic_load(&first.n_bytes));
    cr_outgoing_deinit(&out);
    cr_remote_answer_deinit(&a);
    cr_router_free(r);
    fake_stop(&first);
    struct cr_ledger_totals t = totals();
    assert_int_equal(t.rows, 2);
    assert_int_equal(t.ok, 1);
    assert_int_equal(t.failed, 1);
    options.n_upstreams = 9;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_INVALID);
}

static void echo_placeholder(struct fake *f, int fd, int nth)
{
    (void)nth;
    char body[512], token[64] = "";
    const char *at = strstr(f->request, "[EMAIL_1_");
    if (at)
        snprintf(token, sizeof token, "%.*s", (int)strcspn(at, "]") + 1, at);
    snprintf(body, sizeof body,
             "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"to %.5s\"}}]}\n\n"
             "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s [\"},"
             "\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
             token, token + 5);
    fake_puts(fd,
              "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
    fake_puts(fd, body);
}

static bool collect(void *ud, const char *text, size_t len)
{
    return cr_buf_add(ud, text, len);
}

/* What left was masked, what came back is not; whole and streamed. */
static void test_44_masked_on_the_way_out(void **state)
{
    (void)state;
    static struct fake echo;
    cr_router *r;
    struct cr_remote_answer a;
    struct cr_buf seen;
    struct cr_message m = {"user", "mail john@example.org"};
    char echo_url[64];
    assert_true(fake_start(&echo, echo_placeholder));
    snprintf(echo_url, sizeof echo_url, "http://127.0.0.1:%d", echo.port);
    upstream.url = echo_url;
    options.mask = true;
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    cr_buf_init(&seen, 4096);
    struct cr_ask own = {.messages = &m,
                         .n_messages = 1,
                         .temperature = -1,
                         .stream = true,
                         .on_text = collect,
                         .ud = &seen};
    assert_int_equal(cr_router_ask(r, &own, &a, &err), CR_OK);
    assert_string_equal(a.text, "to john@example.org [");
    assert_int_equal(seen.len, a.n_text);
    assert_memory_equal(seen.data, a.text, seen.len);
    assert_null(strstr(echo.request, "john"));
    cr_remote_answer_deinit(&a);
    cr_buf_deinit(&seen);
    cr_router_free(r);
    fake_stop(&echo);
}

/* Attack 53: whichever allocation fails, the router says so or works, and the ledger is whole. */
static void test_53_out_of_memory(void **state)
{
    (void)state;
    struct cr_upstream_options both[2] = {upstream, upstream};
    int failed = 0;
    options.upstream = both;
    options.n_upstreams = 2;
    options.mask = true;
    options.window = 10;
    for (uint64_t n = 1; n < 400; n++) {
        struct cr_remote_answer a = {0};
        cr_router *r = NULL;
        cr_mem_fail_at(n, true);
        enum cr_status st = cr_router_new(&r, &options, &err);
        if (st == CR_OK)
            st = cr_router_ask(r, &ask, &a, &err);
        cr_mem_fail_at(0, false);
        cr_remote_answer_deinit(&a);
        cr_router_free(r);
        failed += st != CR_OK;
    }
    assert_true(failed > 20 && failed < 399);
    assert_int_equal(totals().pending, 0);
    assert_int_equal(totals().bytes_out, atomic_load(&fake.n_bytes));
}

static void *ask_often(void *ud)
{
    for (int i = 0; i < 5; i++) {
        struct cr_remote_answer a;
        struct cr_error e;
        if (cr_router_ask(ud, &ask, &a, &e) != CR_OK || strcmp(a.text, "Paris") != 0)
            return ud;
        cr_remote_answer_deinit(&a);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    cr_router *r;
    pthread_t t[3];
    assert_int_equal(cr_router_new(&r, &options, &err), CR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, ask_often, r), 0);
    for (int i = 0; i < 50; i++) {
        struct cr_decision d;
        struct cr_signals s = signals_nr((uint64_t)i << 58);
        cr_router_decide(r, NULL, &s, CR_ROUTE_AUTO, &d);
    }
    for (int i = 0; i < 3; i++) {
        void *bad;
        pthread_join(t[i], &bad);
        assert_null(bad);
    }
    cr_router_free(r);
    struct cr_ledger_totals sum = totals();
    assert_int_equal(sum.ok, 15);
    assert_int_equal(sum.bytes_out, atomic_load(&fake.n_bytes));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, make, clean)
    const struct CMUnitTest tests[] = {
        T(test_asks_and_records_to_the_byte),
        T(test_46_failure_is_recorded_without_the_key),
        T(test_nothing_leaves_unrecorded),
        T(test_wishes_and_offline),
        T(test_budget_is_a_cap),
        T(test_share_follows_the_budget),
        T(test_what_cannot_be_judged_stays),
        T(test_window_slides),
        T(test_what_is_decided_early_stands),
        T(test_spending_limit),
        T(test_next_upstream_is_asked),
        T(test_44_masked_on_the_way_out),
        T(test_53_out_of_memory),
        T(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
