/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of a live server: options, tools, schemas, palettes, the cache, and many at a time. */
#include "locale_fixture.h"
#include "serve_fixture.h"

#include "adapt/palette.h"
#include "adapt/pool.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <sys/stat.h>

static char folder[64];

/* ---- helpers ------------------------------------------------------------------------------ */

static char *post_with(const cr_server *s, const char *path, const char *key, const char *body)
{
    char head[512];
    int fd = dial(s);
    snprintf(
        head, sizeof head,
        "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: "
        "Bearer %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
        path, key, strlen(body));
    send_text(fd, head);
    send_text(fd, body);
    return read_all(fd);
}

static json_t *ask_with(const cr_server *s, const char *path, const char *key, const char *body)
{
    char *reply = post_with(s, path, key, body);
    if (status_of(reply) != 200)
        fail_msg("%s: %s", body, reply);
    json_t *v = body_of(reply);
    cr_free(reply);
    return v;
}

static json_t *ask(const cr_server *s, const char *path, const char *body)
{
    return ask_with(s, path, "", body);
}

static json_t *at(json_t *v, const char *array, size_t i)
{
    return json_array_get(json_object_get(v, array), i);
}

static const char *text_of(json_t *v, size_t i)
{
    json_t *c = at(v, "choices", i);
    json_t *m = json_object_get(c, "message");
    return json_string_value(m ? json_object_get(m, "content") : json_object_get(c, "text"));
}

static json_int_t cached_of(json_t *v)
{
    return json_integer_value(json_object_get(
        json_object_get(json_object_get(v, "usage"), "prompt_tokens_details"), "cached_tokens"));
}

static void *many(size_t n, size_t size)
{
    void *p = cr_alloc0(n, size);
    assert_non_null(p);
    return p;
}

/* A palette with random weights over the shipped pool. */
static void write_palette(const char *name, uint64_t seed)
{
    struct cr_error err;
    char path[160], hash[65];
    struct cr_rng r;
    cr_pool *pool;
    const char *pool_path = CR_SOURCE_DIR "/models/crayon-15m-pool.gguf";
    if (cr_pool_open(&pool, model, pool_path, &err) != CR_OK)
        fail_msg("%s", err.msg);
    cr_rng_init(&r, seed);
    int n = cr_pool_size(pool);
    float *w = many((size_t)n, sizeof *w);
    for (int i = 0; i < n; i++)
        w[i] = (float)cr_rng_normal(&r) * 0.5f;
    snprintf(hash, sizeof hash, "%s", pool->hash);
    struct cr_palette p = {.name = (char *)(uintptr_t)name,
                           .base_hash = (char *)(uintptr_t)cr_model_hash(model),
                           .base_name = (char *)(uintptr_t) "m",
                           .pool_hash = hash,
                           .pool_path = (char *)(uintptr_t)pool_path,
                           .n = n,
                           .weights = w,
                           .solver = CR_SOLVE_KNN,
                           .scope_mean = NAN,
                           .scope_std = NAN,
                           .near_mean = NAN,
                           .near_std = NAN,
                           .n_examples = 1,
                           .before = NAN,
                           .after = NAN,
                           .loss_before = NAN,
                           .loss_after = NAN,
                           .metric = (char *)(uintptr_t) "",
                           .created = (char *)(uintptr_t) "2026-01-01T00:00:00Z"};
    snprintf(path, sizeof path, "%s/%s.palette", folder, name);
    if (cr_palette_write(&p, path, &err) != CR_OK)
        fail_msg("%s", err.msg);
    cr_free(w);
    cr_pool_close(pool);
}

static cr_server *start_with(struct cr_serve_options opt)
{
    cr_server *s;
    struct cr_error err;
    opt.model = model;
    opt.model_name = "m";
    opt.n_ctx = 512;
    if (cr_server_start(&s, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return s;
}

#define USER(text) "\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]"

/* ---- options ------------------------------------------------------------------------------ */

static void test_choices_seed_and_stop(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    json_t *a = ask(s, "/v1/chat/completions",
                    "{\"model\":\"m\"," USER("Tell me") ",\"max_tokens\":12,\"n\":3,\"seed\":5}");
    json_t *b = ask(s, "/v1/chat/completions",
                    "{\"model\":\"m\"," USER("Tell me") ",\"max_tokens\":12,\"n\":2,\"seed\":5}");
    assert_int_equal(json_array_size(json_object_get(a, "choices")), 3);
    assert_string_equal(text_of(a, 0), text_of(b, 0));
    assert_string_equal(text_of(a, 1), text_of(b, 1));
    assert_string_not_equal(text_of(a, 0), text_of(a, 1));
    json_decref(b);
    b = ask(
        s, "/v1/completions",
        "{\"model\":\"m\",\"prompt\":\"Once upon a time\",\"max_tokens\":40,\"temperature\":0}");
    char stop[8] = "", body[256];
    const char *text = text_of(b, 0);
    assert_true(strlen(text) > 12);
    memcpy(stop, text + 6, 3);
    json_t *quoted = json_string(stop);
    char *q = json_dumps(quoted, JSON_ENCODE_ANY);
    snprintf(body, sizeof body,
             "{\"model\":\"m\",\"prompt\":\"Once upon a time\",\"max_tokens\":40,\"temperature\":0,"
             "\"stop\":[\"not there\",%s]}",
             q);
    json_t *c = ask(s, "/v1/completions", body);
    assert_int_equal(strlen(text_of(c, 0)), strstr(text, stop) - text);
    assert_string_equal(json_string_value(json_object_get(at(c, "choices", 0), "finish_reason")),
                        "stop");
    free(q);
    json_decref(quoted);
    json_decref(a);
    json_decref(b);
    json_decref(c);
    cr_server_stop(s, 1000);
}

static long tokens_run(const cr_server *s)
{
    char *reply =
        exchange(s, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    const char *p = strstr(reply, "crayon_tokens_total{kind=\"run\",route=\"device\"} ");
    assert_non_null(p);
    long n = strtol(strchr(p, ' '), NULL, 10);
    cr_free(reply);
    return n;
}

/* n answers are those of n requests with the seeds in turn, and their prompt is run once, also
 * with one lane only. */
static void test_choices_share_their_prompt(void **state)
{
    (void)state;
    enum { N = 5, PROMPT = 300 };
    struct cr_buf prompt;
    char format[] = "{\"model\":\"m\",\"prompt\":[%s],\"max_tokens\":%d,\"n\":%d,\"seed\":%d}";
    cr_buf_init(&prompt, 1 << 16);
    for (int i = 0; i < PROMPT; i++)
        cr_buf_printf(&prompt, "%s%d", i ? "," : "", 300 + i * 7 % 97);
    for (int parallel = 1; parallel <= 8; parallel += 7) {
        cr_server *s = start_with((struct cr_serve_options){.parallel = parallel});
        char *body = cr_asprintf(format, prompt.data, 20, N, 40), key[16];
        json_t *all = ask(s, "/v1/completions", body);
        cr_free(body);
        /* the last token of an answer is not run */
        json_t *usage = json_object_get(all, "usage");
        long answer = (long)json_integer_value(json_object_get(usage, "completion_tokens"));
        assert_in_range(tokens_run(s), PROMPT + N - 1, PROMPT + N - 1 + answer);
        assert_int_equal(cached_of(all), 0);
        assert_int_equal(json_integer_value(json_object_get(usage, "prompt_tokens")), PROMPT);
        for (int i = 0; i < N; i++) {
            snprintf(key, sizeof key, "cold %d", i);
            body = cr_asprintf(format, prompt.data, 20, 1, 40 + i);
            json_t *one = ask_with(s, "/v1/completions", key, body);
            assert_int_equal(cached_of(one), 0);
            assert_string_equal(text_of(one, 0), text_of(all, (size_t)i));
            json_decref(one);
            cr_free(body);
        }
        json_decref(all);
        cr_server_stop(s, 1000);
    }
    cr_buf_deinit(&prompt);
}

static void test_bias_and_penalties(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    json_t *v = ask(s, "/v1/completions",
                    "{\"model\":\"m\",\"prompt\":[300,301],\"max_tokens\":4,\"temperature\":0,"
                    "\"logit_bias\":{\"500\":100},\"logprobs\":0}");
    json_t *tokens = json_object_get(json_object_get(at(v, "choices", 0), "logprobs"), "tokens");
    for (size_t i = 1; i < 4; i++)
        assert_true(json_equal(json_array_get(tokens, i), json_array_get(tokens, 0)));
    json_decref(v);
    v = ask(s, "/v1/completions",
            "{\"model\":\"m\",\"prompt\":[300,301],\"max_tokens\":4,\"temperature\":0,"
            "\"logit_bias\":{\"500\":40,\"501\":39},\"presence_penalty\":2,\"frequency_penalty\":2,"
            "\"logprobs\":0}");
    tokens = json_object_get(json_object_get(at(v, "choices", 0), "logprobs"), "tokens");
    assert_false(json_equal(json_array_get(tokens, 0), json_array_get(tokens, 1)));
    json_decref(v);
    expect_status(post(s, "/v1/completions",
                       "{\"model\":\"m\",\"prompt\":\"x\",\"logit_bias\":{\"99999999\":1}}"),
                  400);
    cr_server_stop(s, 1000);
}

/* ---- tools and schemas ---------------------------------------------------------------------- */

#define TOOLS                                                                                      \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{"    \
    "\"type\":"                                                                                    \
    "\"object\",\"properties\":{\"city\":{\"type\":\"string\",\"maxLength\":8},\"days\":{"         \
    "\"type\":"                                                                                    \
    "\"integer\",\"minimum\":1,\"maximum\":9}},\"required\":[\"city\",\"days\"]}}},{\"type\":"     \
    "\"function\","                                                                                \
    "\"function\":{\"name\":\"other\"}}]"

static void check_call(const char *name, const char *arguments)
{
    json_t *v = json_loads(arguments, 0, NULL);
    assert_string_equal(name, "get_weather");
    assert_non_null(v);
    assert_true(json_is_string(json_object_get(v, "city")));
    json_int_t days = json_integer_value(json_object_get(v, "days"));
    assert_true(days >= 1 && days <= 9);
    json_decref(v);
}

static void test_tool_calls_whole_and_streamed(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    const char *choice =
        "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"get_weather\"}}";
    char body[1024];
    for (int seed = 0; seed < 4; seed++) {
        snprintf(body, sizeof body,
                 "{\"model\":\"m\"," USER("Weather?") "," TOOLS
                                                      ",%s,\"seed\":%d,\"max_tokens\":120}",
                 choice, seed);
        json_t *v = ask(s, "/v1/chat/completions", body), *c = at(v, "choices", 0);
        json_t *m = json_object_get(c, "message"), *call = at(m, "tool_calls", 0);
        json_t *f = json_object_get(call, "function");
        assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "tool_calls");
        assert_true(json_is_null(json_object_get(m, "content")));
        assert_true(json_is_string(json_object_get(call, "id")));
        check_call(json_string_value(json_object_get(f, "name")),
                   json_string_value(json_object_get(f, "arguments")));
        snprintf(body, sizeof body,
                 "{\"model\":\"m\"," USER(
                     "Weather?") "," TOOLS ",%s,\"seed\":%d,\"max_tokens\":120,\"stream\":true}",
                 choice, seed);
        char *stream = post(s, "/v1/chat/completions", body), name[64] = "";
        struct cr_buf joined;
        int n_ids = 0, n_finish = 0;
        cr_buf_init(&joined, 1 << 16);
        for (char *p = stream; (p = strstr(p, "data: {")); p++) {
            json_t *e = json_loads(p + 6, JSON_DISABLE_EOF_CHECK, NULL);
            json_t *one = at(e, "choices", 0), *delta = json_object_get(one, "delta");
            json_t *k = at(delta, "tool_calls", 0), *kf = json_object_get(k, "function");
            n_ids += json_object_get(k, "id") != NULL;
            if (k)
                assert_int_equal(json_integer_value(json_object_get(k, "index")), 0);
            if (json_object_get(kf, "name"))
                snprintf(name, sizeof name, "%s", json_string_value(json_object_get(kf, "name")));
            if (kf)
                cr_buf_puts(&joined, json_string_value(json_object_get(kf, "arguments")));
            const char *finish = json_string_value(json_object_get(one, "finish_reason"));
            n_finish += finish && strcmp(finish, "tool_calls") == 0;
            const char *content = json_string_value(json_object_get(delta, "content"));
            assert_true(!content || !*content);
            json_decref(e);
        }
        assert_int_equal(n_ids, 1);
        assert_int_equal(n_finish, 1);
        assert_string_equal(joined.data, json_string_value(json_object_get(f, "arguments")));
        check_call(name, joined.data);
        cr_buf_deinit(&joined);
        cr_free(stream);
        json_decref(v);
    }
    expect_status(
        post(s, "/v1/chat/completions",
             "{\"model\":\"m\"," USER(
                 "x") "," TOOLS
                      ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"none\"}}}"),
        400);
    cr_server_stop(s, 1000);
}

static void test_schema_answers_parse(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    for (int seed = 0; seed < 6; seed++) {
        char body[1024];
        snprintf(
            body, sizeof body,
            "{\"model\":\"m\"," USER(
                "Who?") ",\"seed\":%d,\"max_tokens\":200,\"response_format\":{"
                        "\"type\":\"json_schema\",\"json_schema\":{\"name\":\"p\",\"strict\":true,"
                        "\"schema\":{"
                        "\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\","
                        "\"maxLength\":12},"
                        "\"kind\":{\"enum\":[\"cat\",\"catfish\",\"dog\"]},\"age\":{\"type\":"
                        "\"integer\","
                        "\"minimum\":0,\"maximum\":120}},\"required\":[\"name\",\"kind\",\"age\"],"
                        "\"additionalProperties\":false}}}}",
            seed);
        json_t *v = ask(s, "/v1/chat/completions", body);
        json_t *o = json_loads(text_of(v, 0), JSON_REJECT_DUPLICATES, NULL);
        if (!o)
            fail_msg("%s", text_of(v, 0));
        assert_int_equal(json_object_size(o), 3);
        json_int_t age = json_integer_value(json_object_get(o, "age"));
        assert_true(age >= 0 && age <= 120);
        json_decref(o);
        json_decref(v);
    }
    char *reply = post(
        s, "/v1/chat/completions",
        "{\"model\":\"m\"," USER("x") ",\"response_format\":{\"type\":\"json_schema\","
                                      "\"json_schema\":{\"name\":\"p\",\"schema\":{\"not\":{}}}}}");
    assert_non_null(strstr(reply, "keyword not"));
    expect_status(reply, 400);
    cr_server_stop(s, 1000);
}

/* ---- palettes, cache, batches --------------------------------------------------------------- */

static const char *const names[] = {"m", "m:a", "m:b"};
static const char *const prompts[] = {"Once upon a time", "Once upon a hill",
                                      "The capital of France", "Question: 1 + 1?\\nAnswer:"};

static void body_for(char body[512], size_t k)
{
    snprintf(
        body, 512,
        "{\"model\":\"%s\",\"prompt\":\"%s\",\"max_tokens\":%zu,\"temperature\":%s,\"seed\":%zu,"
        "\"logprobs\":1}",
        names[k % 3], prompts[k / 3 % 4], 5 + k % 7, k % 2 ? "0" : "1", k);
}

struct client {
    const cr_server *s;
    size_t k;
    json_t *reply;
};

static void *run_client(void *ud)
{
    struct client *c = ud;
    char body[512];
    body_for(body, c->k);
    c->reply = ask(c->s, "/v1/completions", body);
    return NULL;
}

/* 49: any mixture of palettes, warm or cold, alone or together, gives what a cold run gives. */
static void test_attack_49_mixtures_equal_cold_runs(void **state)
{
    (void)state;
    enum { N = 36, AT_A_TIME = 9 };
    char paths[2][160];
    const char *palettes[] = {paths[0], paths[1]};
    json_t *cold[N];
    struct cr_rng r;
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "b" : "a";
        write_palette(name, (uint64_t)i + 1);
        snprintf(paths[i], sizeof paths[i], "%s/%s.palette", folder, name);
    }
    struct cr_serve_options opt = {
        .palettes = palettes, .n_palettes = 2, .parallel = 4, .max_queue = 64};
    cr_server *s = start_with(opt);
    int n_different = 0;
    for (size_t k = 0; k < N; k++) {
        char body[512], key[32];
        body_for(body, k);
        snprintf(key, sizeof key, "cold-%zu", k); /* nobody else's cache */
        cold[k] = ask_with(s, "/v1/completions", key, body);
        assert_int_equal(cached_of(cold[k]), 0);
    }
    for (size_t k = 0; k + 2 < N; k += 3)
        n_different += strcmp(text_of(cold[k], 0), text_of(cold[k + 1], 0)) != 0;
    assert_true(n_different > 0); /* the palettes do something */
    cr_rng_init(&r, 3);
    json_int_t n_cached = 0;
    for (int round = 0; round < 8; round++) {
        struct client c[AT_A_TIME];
        pthread_t t[AT_A_TIME];
        for (size_t i = 0; i < AT_A_TIME; i++) {
            c[i] = (struct client){s, cr_rng_below(&r, N), NULL};
            pthread_create(&t[i], NULL, run_client, &c[i]);
        }
        for (size_t i = 0; i < AT_A_TIME; i++) {
            pthread_join(t[i], NULL);
            if (!json_equal(json_object_get(c[i].reply, "choices"),
                            json_object_get(cold[c[i].k], "choices")))
                fail_msg("request %zu differs: \"%s\" against \"%s\"", c[i].k,
                         text_of(c[i].reply, 0), text_of(cold[c[i].k], 0));
            n_cached += cached_of(c[i].reply);
            json_decref(c[i].reply);
        }
    }
    assert_true(n_cached > 0); /* some of them were warm */
    for (size_t k = 0; k < N; k++)
        json_decref(cold[k]);
    cr_server_stop(s, 1000);
}

/* 48: a second caller does not find the first one's prompt in the cache, the first one does. */
static void test_attack_48_callers_share_no_cache(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){.parallel = 2});
    const char *body = "{\"model\":\"m\",\"prompt\":\"A secret story about a long prompt\","
                       "\"max_tokens\":1,\"temperature\":0}";
    json_t *v = ask_with(s, "/v1/completions", "one", body);
    assert_int_equal(cached_of(v), 0);
    json_decref(v);
    v = ask_with(s, "/v1/completions", "two", body);
    assert_int_equal(cached_of(v), 0);
    json_decref(v);
    v = ask_with(s, "/v1/completions", "one", body);
    assert_true(cached_of(v) > 3);
    json_decref(v);
    cr_server_stop(s, 1000);
}

/* Processor seconds of one answer about the i-th long prompt. */
static double seconds_of(cr_server *s, int i, const char *key)
{
    struct cr_buf b;
    struct timespec from, to;
    cr_buf_init(&b, 1 << 16);
    cr_buf_printf(&b, "{\"model\":\"m\",\"max_tokens\":1,\"prompt\":\"Story %d.", i);
    for (int k = 0; k < 180; k++)
        cr_buf_puts(&b, " A ship");
    cr_buf_puts(&b, "\"}");
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    json_decref(ask_with(s, "/v1/completions", key, b.data));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    cr_buf_deinit(&b);
    return (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* 48: what another caller has asked before cannot be seen in the time that an answer takes. */
static void test_attack_48_time_tells_nothing_of_others(void **state)
{
    (void)state;
    enum { ROUNDS = 7 };
    double first[ROUNDS], other[ROUNDS], again[ROUNDS];
    cr_server *s = start_with((struct cr_serve_options){.parallel = 4});
    seconds_of(s, -1, "one");
    for (int i = 0; i < ROUNDS; i++) {
        first[i] = seconds_of(s, i, "one");
        other[i] = seconds_of(s, i, "two");
        again[i] = seconds_of(s, i, "one");
    }
    cr_server_stop(s, 1000);
    qsort(first, ROUNDS, sizeof *first, by_size);
    qsort(other, ROUNDS, sizeof *other, by_size);
    qsort(again, ROUNDS, sizeof *again, by_size);
    double f = first[ROUNDS / 2], o = other[ROUNDS / 2], a = again[ROUNDS / 2];
    print_message("first %.1f ms, another caller %.1f, the first again %.1f\n", 1e3 * f, 1e3 * o,
                  1e3 * a);
    assert_true(a < 0.5 * f); /* a hit can be seen, so the rest means something */
    assert_true(o > 0.75 * f && o < 1.33 * f);
}

static void test_palettes_are_replaced_without_dropping_streams(void **state)
{
    (void)state;
    char path[160];
    const char *palettes[] = {path};
    struct cr_error err;
    size_t n = 9;
    write_palette("a", 1);
    snprintf(path, sizeof path, "%s/a.palette", folder);
    struct cr_serve_options opt = {.palettes = palettes, .n_palettes = 1, .adapter_dir = folder};
    cr_server *s = start_with(opt);
    const char *body = "{\"model\":\"m:a\",\"prompt\":\"Once upon a time\",\"max_tokens\":8,"
                       "\"temperature\":0}";
    json_t *before = ask(s, "/v1/completions", body);
    assert_int_equal(cr_server_reload(s, &n, &err), CR_OK);
    assert_int_equal(n, 0);
    int fd = dial(s);
    char first[64];
    post_on(
        fd, "/v1/completions",
        "{\"model\":\"m:a\",\"prompt\":\"Once upon a time\",\"max_tokens\":300,\"temperature\":1,"
        "\"stream\":true}");
    assert_true(recv(fd, first, sizeof first, 0) > 0);
    write_palette("a", 77);
    assert_int_equal(cr_server_reload(s, &n, &err), CR_OK);
    assert_int_equal(n, 1);
    json_t *after = ask(s, "/v1/completions", body);
    assert_string_not_equal(text_of(before, 0), text_of(after, 0));
    char *rest = read_all(fd);
    assert_non_null(strstr(rest, "[DONE]"));
    cr_free(rest);
    json_decref(before);
    json_decref(after);
    /* a broken file leaves what was there */
    FILE *f = fopen(path, "w");
    fputs("{", f);
    fclose(f);
    assert_int_not_equal(cr_server_reload(s, &n, &err), CR_OK);
    assert_non_null(strstr(err.msg, "a.palette"));
    after = ask(s, "/v1/completions", body);
    json_decref(after);
    /* by request */
    write_palette("c", 5);
    char load[256];
    snprintf(load, sizeof load, "{\"lora_name\":\"c\",\"lora_path\":\"%s/c.palette\"}", folder);
    json_decref(ask(s, "/v1/load_lora_adapter", load));
    json_decref(ask(s, "/v1/completions", "{\"model\":\"m:c\",\"prompt\":\"x\",\"max_tokens\":1}"));
    json_decref(ask(s, "/v1/unload_lora_adapter", "{\"lora_name\":\"c\"}"));
    expect_status(
        post(s, "/v1/completions", "{\"model\":\"m:c\",\"prompt\":\"x\",\"max_tokens\":1}"), 404);
    cr_server_stop(s, 1000);
}

/* 39: nothing is loaded from elsewhere, nor without the administrator's key. */
static void test_attack_39_admin_routes(void **state)
{
    (void)state;
    write_palette("a", 1);
    cr_server *s = start_with((struct cr_serve_options){0});
    expect_status(
        post(s, "/v1/load_lora_adapter", "{\"lora_name\":\"x\",\"lora_path\":\"/etc/passwd\"}"),
        403);
    cr_server_stop(s, 1000);
    s = start_with((struct cr_serve_options){.adapter_dir = folder, .admin_key = "boss"});
    char load[256];
    snprintf(load, sizeof load, "{\"lora_name\":\"x\",\"lora_path\":\"%s/a.palette\"}", folder);
    expect_status(post(s, "/v1/load_lora_adapter", load), 401);
    json_decref(ask_with(s, "/v1/load_lora_adapter", "boss", load));
    static const char *const bad[] = {"/../../../etc/passwd", "/.", "", "/none.palette"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(load, sizeof load, "{\"lora_name\":\"y\",\"lora_path\":\"%s%s\"}", folder, bad[i]);
        expect_status(post_with(s, "/v1/load_lora_adapter", "boss", load), 403);
    }
    expect_status(post_with(s, "/v1/load_lora_adapter", "boss",
                            "{\"lora_name\":\"y\",\"lora_path\":\"/proc/self/environ\"}"),
                  403);
    snprintf(load, sizeof load, "{\"lora_name\":\"../y\",\"lora_path\":\"%s/a.palette\"}", folder);
    expect_status(post_with(s, "/v1/load_lora_adapter", "boss", load), 400);
    expect_status(exchange(s, "GET /v1/models/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n"
                              "Connection: close\r\n\r\n"),
                  404);
    expect_status(exchange(s, "GET /health%00x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                              "\r\n"),
                  404);
    cr_server_stop(s, 1000);
}

/* 40: what clients send never becomes a label. */
static void test_attack_40_metrics(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    for (int i = 0; i < 30; i++) {
        char request[256];
        snprintf(
            request, sizeof request,
            "GET /path%d%%22%%7D%%0Ainjected HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            "\r\n",
            i);
        expect_status(exchange(s, request), 404);
    }
    expect_status(post(s, "/v1/completions", "{\"model\":\"evil\\\"} 1\\n\",\"prompt\":\"x\"}"),
                  404);
    char *reply =
        exchange(s, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_null(strstr(reply, "evil"));
    assert_null(strstr(reply, "injected"));
    assert_non_null(strstr(reply, "crayon_requests_total{endpoint=\"other\",code=\"404\""));
    size_t lines = 0;
    for (char *p = reply; (p = strchr(p, '\n')); p++)
        lines++;
    assert_true(lines < 200);
    cr_free(reply);
    cr_server_stop(s, 1000);
}

/* 59: a decimal comma of the process's locale gets into no body and no metric. */
static void test_attack_59_decimal_commas(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{\"model\":\"m\",\"prompt\":\"x\",\"temperature\":0.5,\"logprobs\":1,\"max_tokens\":3}",
        "{\"model\":\"m\",\"input\":\"x\",\"encoding_format\":\"float\"}"};
    cr_server *s = start_with((struct cr_serve_options){0});
    char *replies[3];
    assert_true(speak_german() || !setlocale(LC_ALL, "de_DE.UTF-8"));
    for (int i = 0; i < 2; i++)
        replies[i] = post(s, i ? "/v1/embeddings" : "/v1/completions", bodies[i]);
    replies[2] =
        exchange(s, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    setlocale(LC_ALL, "C");
    for (int i = 0; i < 3; i++) {
        assert_int_equal(status_of(replies[i]), 200);
        for (const char *p = replies[i]; (p = strchr(p, ',')); p++) /* as in 0,5 */
            assert_false(strchr("0123456789", p[-1]) && strchr("0123456789", p[1]) && i == 2);
        if (i < 2)
            json_decref(body_of(replies[i]));
        cr_free(replies[i]);
    }
    cr_server_stop(s, 1000);
}

#define EXAMPLES                                                                                   \
    "[{\"question\":\"what is the weather in lisbon\",\"answer\":\"weather\"},{\"question\":\"is " \
    "it "                                                                                          \
    "cold\",\"answer\":\"weather\"},{\"question\":\"send money to "                                \
    "anna\",\"answer\":\"transfer\"}]"

/* Examples become a palette, by a path of its own and inside a request; the second time it is
 * there. */
static void test_blends_from_examples(void **state)
{
    (void)state;
    struct cr_serve_options opt = {.pool = CR_SOURCE_DIR "/models/crayon-15m-pool.gguf"};
    cr_server *s = start_with(opt);
    json_t *v = ask(s, "/v1/crayon/blend",
                    "{\"name\":\"mine\",\"level\":\"instant\",\"examples\":" EXAMPLES "}");
    assert_string_equal(json_string_value(json_object_get(v, "model")), "m:mine");
    assert_true(json_array_size(json_object_get(v, "weights")) > 1);
    assert_true(json_real_value(json_object_get(v, "ms")) > 0);
    json_t *palette = json_object_get(v, "palette");
    assert_string_equal(json_string_value(json_object_get(palette, "crayon")), "palette");
    json_decref(v);
    const char *rest =
        "\"prompt\":\"Question: will it rain?\\nAnswer:\",\"max_tokens\":6,\"temperature\":0}";
    char body[1024];
    snprintf(body, sizeof body, "{\"model\":\"m:mine\",%s", rest);
    json_t *named = ask(s, "/v1/completions", body);
    snprintf(body, sizeof body, "{\"model\":\"m\",\"crayon\":{\"examples\":" EXAMPLES "},%s", rest);
    json_t *first = ask(s, "/v1/completions", body), *again = ask(s, "/v1/completions", body);
    assert_string_equal(text_of(named, 0), text_of(first, 0));
    assert_string_equal(text_of(first, 0), text_of(again, 0));
    assert_true(cached_of(again) > 0);
    json_t *c = json_object_get(first, "crayon");
    assert_true(json_real_value(json_object_get(c, "blend_ms")) > 0);
    assert_int_equal(json_array_size(json_object_get(c, "blend")), 1);
    json_decref(named);
    json_decref(first);
    json_decref(again);
    expect_status(post(s, "/v1/crayon/blend", "{\"examples\":[]}"), 400);
    expect_status(post(s, "/v1/crayon/blend", "{\"examples\":[{\"no\":1}]}"), 400);
    expect_status(post(s, "/v1/crayon/blend", "{\"name\":\"../x\",\"examples\":" EXAMPLES "}"),
                  400);
    cr_server_stop(s, 1000);
    s = start_with((struct cr_serve_options){0});
    expect_status(post(s, "/v1/crayon/blend", "{\"examples\":" EXAMPLES "}"), 400); /* no pool */
    cr_server_stop(s, 1000);
}

/* A server with a model of its own; what it calls itself. */
static void fingerprint_with(enum cr_kv kv, char *out, size_t size)
{
    struct cr_error err;
    const struct cr_model_options opt = {.kv = kv};
    cr_model *shared = model;
    if (cr_model_open(&model, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    cr_server *s = start_with((struct cr_serve_options){0});
    json_t *v =
        ask(s, "/v1/completions", "{\"model\":\"m\",\"prompt\":\"The sea\",\"max_tokens\":1}");
    snprintf(out, size, "%s", json_string_value(json_object_get(v, "system_fingerprint")));
    json_decref(v);
    cr_server_stop(s, 1000);
    cr_model_close(model);
    model = shared;
}

/* The same seed gives the same text as long as the fingerprint is the same; a cache of other types
 * gives other texts. */
static void test_the_fingerprint_tells_the_cache_type(void **state)
{
    (void)state;
    char f16[64], again[64], q8[64];
    fingerprint_with(CR_KV_F16, f16, sizeof f16);
    fingerprint_with(CR_KV_F16, again, sizeof again);
    fingerprint_with(CR_KV_Q8_0, q8, sizeof q8);
    assert_memory_equal(f16, "fp_", 3);
    assert_string_equal(f16, again);
    assert_string_not_equal(f16, q8);
}

static int make_folder(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/crayon-serve-XXXXXX");
    return mkdtemp(folder) ? open_model(state) : -1;
}

static int remove_folder(void **state)
{
    char path[160];
    for (const char *n = "abc"; *n; n++) {
        snprintf(path, sizeof path, "%s/%c.palette", folder, *n);
        unlink(path);
    }
    rmdir(folder);
    return close_model(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices_seed_and_stop),
        cmocka_unit_test(test_choices_share_their_prompt),
        cmocka_unit_test(test_bias_and_penalties),
        cmocka_unit_test(test_tool_calls_whole_and_streamed),
        cmocka_unit_test(test_schema_answers_parse),
        cmocka_unit_test(test_attack_49_mixtures_equal_cold_runs),
        cmocka_unit_test(test_attack_48_callers_share_no_cache),
        cmocka_unit_test(test_attack_48_time_tells_nothing_of_others),
        cmocka_unit_test(test_palettes_are_replaced_without_dropping_streams),
        cmocka_unit_test(test_blends_from_examples),
        cmocka_unit_test(test_the_fingerprint_tells_the_cache_type),
        cmocka_unit_test(test_attack_39_admin_routes),
        cmocka_unit_test(test_attack_40_metrics),
        cmocka_unit_test(test_attack_59_decimal_commas),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
