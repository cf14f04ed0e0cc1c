/* SPDX-License-Identifier: Apache-2.0 */
/* Palettes: what is written is read back, every refusal names its key, hashes are compared. */
#include "adapt/palette.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define HASH_A "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define HASH_B "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"

enum { DIM = 17, N = 5 };

static cr_model *model;
static struct cr_error err;
static char dir[] = "/tmp/crayon-palette-XXXXXX";

static void must(enum cr_status st)
{
    if (st)
        fail_msg("%s", err.msg);
}

static void fill(cr_palette *p, float *weights, float *q_c)
{
    for (int i = 0; i < N; i++)
        weights[i] = (float)(i - 1) * 0.371F;
    for (int i = 0; i < DIM; i++)
        q_c[i] = (float)sin(i) / 3;
    *p = (cr_palette){.name = "mine \"x\" \xc3\xa9",
                      .base_hash = HASH_A,
                      .base_name = "base",
                      .pool_hash = HASH_B,
                      .pool_path = "pool.gguf",
                      .n = N,
                      .weights = weights,
                      .solver = CR_SOLVE_REFINE,
                      .level = CR_LEVEL_REFINED,
                      .view = CR_VIEW_MIDDLE,
                      .dim = DIM,
                      .q_c = q_c,
                      .scope_mean = 0.81F,
                      .scope_std = 0.05F,
                      .near_mean = NAN,
                      .near_std = NAN,
                      .n_examples = 8,
                      .n_held_out = 4,
                      .before = 0.25F,
                      .after = 0.75F,
                      .loss_before = NAN,
                      .loss_after = 1e-7F,
                      .metric = "accuracy",
                      .created = "2026-01-02T03:04:05Z"};
}

static char *read_text(const char *path, size_t *len)
{
    char *json;
    must(cr_file_read(path, 1 << 20, &json, len, &err));
    return json;
}

static void same(float a, float b)
{
    assert_true(a == b || (isnan(a) && isnan(b)));
}

static void test_written_is_read_back(void **state)
{
    (void)state;
    char path[100];
    snprintf(path, sizeof path, "%s/a.palette", dir);
    float weights[N], q_c[DIM];
    cr_palette p, *q;
    fill(&p, weights, q_c);
    for (int calibrated = 0; calibrated < 3; calibrated++) {
        struct cr_calibration *c = &p.calibration;
        c->n_rows = calibrated ? 200 : 0;
        c->has_scope = calibrated == 2;
        c->options = calibrated == 2;
        for (int i = 0; i < CR_CALIBRATION_KNOTS; i++) {
            c->conf[i] = (float)i / 7;
            c->scope[i] = (float)i - 9;
            c->either[i] = (float)i / 32;
            c->wrong_conf[i] = c->wrong_scope[i] = c->wrong_either[i] = i;
            c->learned.knots[i] = (float)i / 3 - 5;
            c->learned.wrong[i] = 2 * i;
        }
        c->labelled = calibrated != 0;
        c->learned.n_rows = calibrated == 2 ? 100 : 0;
        c->learned.n_fitted = 90;
        for (int i = 0; i < CR_LEARNED_FEATURES; i++) {
            c->learned.mean[i] = (float)i;
            c->learned.std[i] = (float)i + 0.5F;
            c->learned.weight[i] = -(float)i / 3;
        }
        must(cr_palette_write(&p, path, &err));
        size_t len;
        char *json = read_text(path, &len);
        if (!calibrated)
            assert_true(len < 1024);
        must(cr_palette_parse(&q, json, len, path, &err));
        cr_free(json);
        assert_string_equal(q->name, p.name);
        assert_string_equal(q->base_hash, p.base_hash);
        assert_string_equal(q->pool_hash, p.pool_hash);
        assert_string_equal(q->pool_path, "pool.gguf");
        assert_string_equal(q->metric, "accuracy");
        assert_string_equal(q->created, p.created);
        assert_int_equal(q->n, N);
        assert_memory_equal(q->weights, weights, sizeof weights);
        assert_int_equal(q->solver, CR_SOLVE_REFINE);
        assert_int_equal(q->level, CR_LEVEL_REFINED);
        assert_int_equal(q->view, CR_VIEW_MIDDLE);
        assert_int_equal(q->dim, DIM);
        for (int i = 0; i < DIM; i++)
            assert_true(fabsf(q->q_c[i] - q_c[i]) < 1e-3F);
        same(q->scope_mean, p.scope_mean);
        same(q->near_mean, p.near_mean);
        same(q->loss_before, p.loss_before);
        same(q->loss_after, p.loss_after);
        assert_int_equal(q->n_examples, 8);
        assert_int_equal(q->calibration.n_rows, c->n_rows);
        if (calibrated) {
            assert_int_equal(q->calibration.has_scope, c->has_scope);
            assert_int_equal(q->calibration.options, c->options);
            assert_true(q->calibration.labelled);
            assert_memory_equal(q->calibration.wrong_conf, c->wrong_conf, sizeof c->wrong_conf);
            assert_int_equal(q->calibration.learned.n_rows, c->learned.n_rows);
            assert_memory_equal(q->calibration.conf, c->conf, sizeof c->conf);
        }
        if (c->has_scope)
            assert_memory_equal(q->calibration.either, c->either, sizeof c->either);
        if (c->has_scope)
            assert_memory_equal(q->calibration.wrong_either, c->wrong_either,
                                sizeof c->wrong_either);
        if (c->learned.n_rows)
            assert_memory_equal(&q->calibration.learned, &c->learned, sizeof c->learned);
        cr_palette_close(q);
    }
    unlink(path);
}

static void test_embeddings_of_every_length(void **state)
{
    (void)state;
    char path[100];
    snprintf(path, sizeof path, "%s/a.palette", dir);
    float weights[N], q_c[DIM];
    cr_palette p, *q;
    for (int dim = 0; dim <= DIM; dim++) {
        fill(&p, weights, q_c);
        p.dim = dim;
        must(cr_palette_write(&p, path, &err));
        size_t len;
        char *json = read_text(path, &len);
        must(cr_palette_parse(&q, json, len, path, &err));
        assert_int_equal(q->dim, dim);
        for (int i = 0; i < dim; i++)
            assert_true(q->q_c[i] == cr_f16_to_f32(cr_f32_to_f16(q_c[i])));
        cr_palette_close(q);
        cr_free(json);
    }
    unlink(path);
}

/* Replaces the first `from` of a good palette by `to`; the result must be refused for `part`. */
static void broken(const char *json, const char *from, const char *to, const char *part)
{
    const char *at = strstr(json, from);
    if (!at)
        fail_msg("no %s", from);
    char *text = cr_asprintf("%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    cr_palette *p;
    enum cr_status st = cr_palette_parse(&p, text, strlen(text), "f.palette", &err);
    if (st != CR_FORMAT || !strstr(err.msg, part) || !strstr(err.msg, "f.palette"))
        fail_msg("%s -> %s: status %d, want \"%s\", found: %s", from, to, st, part, err.msg);
    assert_null(p);
    cr_free(text);
}

static void test_refusals(void **state)
{
    (void)state;
    char path[100];
    snprintf(path, sizeof path, "%s/a.palette", dir);
    float weights[N], q_c[DIM];
    cr_palette p;
    fill(&p, weights, q_c);
    for (int i = 0; i < N; i++)
        weights[i] = 0.5F;
    p.calibration.n_rows = 1;
    must(cr_palette_write(&p, path, &err));
    size_t len;
    char *json = read_text(path, &len);
    unlink(path);
    const char *good = "[0.5,0.5,0.5,0.5,0.5]";
    broken(json, good, "[0.5,1e30,0.5,0.5,0.5]", "weights");
    broken(json, good, "[0.5,1e400,0.5,0.5,0.5]", "JSON");
    broken(json, good, "[0.5,NaN,0.5,0.5,0.5]", "JSON");
    broken(json, good, "[0.5,null,0.5,0.5,0.5]", "weights");
    broken(json, good, "[0.5,\"1\",0.5,0.5,0.5]", "weights");
    broken(json, good, "[0,0,0,0,-0.0]", "weights");
    broken(json, good, "5", "weights");
    broken(json, "\"crayon\": \"palette\"", "\"crayon\": \"pool\"", "crayon");
    broken(json, "\"version\": 1", "\"version\": 2", "worked"); /* 2 has worked examples, 1 none */
    broken(json, "\"version\": 1", "\"version\": 3", "version");
    broken(json, "\"version\": 1", "\"version\": 1, \"worked\": []", "worked");
    broken(json, "\"version\": 1", "\"version\": 1, \"extra\": 1", "extra");
    broken(json, "\"version\": 1", "\"version\": 1, \"version\": 1", "duplicate");
    broken(json, "\"solver\": \"refine\"", "\"solver\": \"magic\"", "solver");
    broken(json, "\"view\": \"middle\"", "\"view\": 1", "view");
    broken(json, "\"level\": \"refined\",", "", "level");
    broken(json, HASH_A, "0123", "sha256");
    broken(json, HASH_B, "", "sha256");
    broken(json, "\"dim\":17", "\"dim\":16", "f16");
    broken(json, "\"dim\":17", "\"dim\":-1", "dim");
    broken(json, "\"dim\":17", "\"dim\":99999999999", "dim");
    broken(json, "\"f16\":\"", "\"f16\":\"!", "f16");
    broken(json, "\"examples\": 8", "\"examples\": 8.5", "examples");
    broken(json, "\"examples\": 8", "\"examples\": -8", "examples");
    broken(json, "\"metric\":\"accuracy\"", "\"metric\":\"luck\"", "metric");
    broken(json, "\"mean\":", "\"mean\":\"x\",\"men\":", "men");
    broken(json, "\"rows\":1", "\"rows\":0", "rows");
    broken(json, "\"conf\":[0.0,", "\"conf\":[1.0,", "ascending");
    broken(json, "\"conf\":[0.0,", "\"conf\":[", "conf");
    broken(json, "\"either\":null", "\"either\":[]", "either");
    broken(json, "{", "[", "JSON");
    for (size_t cut = 0; cut + 2 < len; cut++) { /* every truncation */
        cr_palette *q;
        assert_int_equal(cr_palette_parse(&q, json, cut, "f", &err), CR_FORMAT);
        assert_null(q);
    }
    cr_free(json);
}

static void same_text(const char *a, const char *b)
{
    assert_int_equal(a == NULL, b == NULL);
    if (a)
        assert_string_equal(a, b);
}

/* Worked examples make version 2, which has one key more; readers of version 1 name the version. */
static void test_worked_examples(void **state)
{
    (void)state;
    char path[100], many[CR_PALETTE_WORKED_BYTES + 1], *choices[] = {"yes", "no \"way\""};
    snprintf(path, sizeof path, "%s/w.palette", dir);
    struct cr_example e[CR_WORKED_MAX + 1] = {
        {.question = "one\nline \xc3\xa9", .context = "where", .answer = "1", .answer_index = -1},
        {.question = "two", .answer = "no \"way\"", .choices = choices, .n_choices = 2},
    };
    float weights[N], q_c[DIM];
    cr_palette p, *q;
    fill(&p, weights, q_c);
    p.worked.v = e;
    p.worked.n = 2;
    must(cr_palette_write(&p, path, &err));
    size_t len;
    char *json = read_text(path, &len);
    assert_non_null(strstr(json, "\"version\": 2"));
    must(cr_palette_parse(&q, json, len, path, &err));
    assert_int_equal(q->worked.n, 2);
    for (size_t i = 0; i < 2; i++) {
        const struct cr_example *r = &q->worked.v[i];
        same_text(r->question, e[i].question);
        same_text(r->context, e[i].context);
        same_text(r->answer, e[i].answer);
        assert_int_equal(r->n_choices, e[i].n_choices);
        for (int k = 0; k < r->n_choices; k++)
            same_text(r->choices[k], choices[k]);
        assert_int_equal(r->answer_index, i ? 1 : -1);
    }
    cr_palette_close(q);
    broken(json, "\"version\": 2", "\"version\": 1", "worked");
    broken(json, "\"question\":\"two\"", "\"question\":\"\"", "question");
    broken(json, "\"question\":\"two\"", "\"question\":2", "question");
    broken(json, "\"question\":\"two\",", "", "question");
    broken(json, "\"question\":\"two\"", "\"question\":\"t\",\"line\":2", "line");
    broken(json, "\"answer\":\"1\"", "\"answer\":\"\"", "answer");
    broken(json, "\"answer\":\"1\"", "\"answer\":1", "answer");
    broken(json, "\"answer\":\"1\"", "\"answer\":\"a\\u0000b\"", "JSON");
    broken(json, "\"context\":\"where\"", "\"context\":null", "context");
    broken(json, "\"choices\":[\"yes\",", "\"choices\":[", "choices");
    broken(json, "\"choices\":[\"yes\",\"no", "\"choices\":[\"yes\",\"xo", "choices");
    broken(json, "\"worked\": [{", "\"worked\": [[],{", "worked");
    broken(json, "\"worked\": [", "\"worked\": [[[", "JSON");
    for (size_t cut = 0; cut + 2 < len; cut++)
        assert_int_equal(cr_palette_parse(&q, json, cut, "f", &err), CR_FORMAT);
    for (uint64_t i = 1; i < 60; i++) { /* no memory: nothing is left */
        size_t before = cr_mem_now();
        cr_mem_fail_at(i, false);
        enum cr_status st = cr_palette_parse(&q, json, len, path, &err);
        cr_mem_fail_at(0, false);
        assert_true(st == CR_OK || st == CR_NO_MEMORY || st == CR_FORMAT);
        cr_palette_close(q);
        assert_int_equal(cr_mem_now(), before);
    }
    cr_free(json);
    for (size_t i = 0; i <= CR_WORKED_MAX; i++)
        e[i] = (struct cr_example){.question = "q", .answer = "a", .answer_index = -1};
    p.worked.n = CR_WORKED_MAX + 1; /* one too many */
    assert_int_equal(cr_palette_write(&p, path, &err), CR_FORMAT);
    p.worked.n = CR_WORKED_MAX;
    must(cr_palette_write(&p, path, &err));
    memset(many, 'x', sizeof many);
    many[sizeof many - 1] = '\0';
    many[CR_PALETTE_WORKED_BYTES - 2 * CR_WORKED_MAX + 1] = '\0'; /* all of them: the limit */
    e[3].question = many;
    assert_int_equal(cr_palette_worked_bytes(&e[3]),
                     CR_PALETTE_WORKED_BYTES - 2 * (CR_WORKED_MAX - 1));
    must(cr_palette_write(&p, path, &err));
    e[5].answer = "ab"; /* one byte more */
    assert_int_equal(cr_palette_write(&p, path, &err), CR_FORMAT);
    assert_non_null(strstr(err.msg, "65536"));
    p.worked.v[5].answer = NULL; /* an example without an answer cannot be written */
    assert_int_not_equal(cr_palette_write(&p, path, &err), CR_OK);
    unlink(path);
}

/* The seeds of the fuzzer are good palettes, else it would only try the first check. */
static void test_fuzz_seeds_are_palettes(void **state)
{
    (void)state;
    const char *names[] = {"full", "base", "worked"};
    const int n[] = {3, 0, 3};
    for (int i = 0; i < 3; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/tests/fuzz/corpus/fuzz_palette/%s.palette", CR_SOURCE_DIR,
                 names[i]);
        size_t len;
        char *json = read_text(path, &len);
        cr_palette *p;
        must(cr_palette_parse(&p, json, len, path, &err));
        assert_int_equal(p->n, n[i]);
        assert_int_equal(p->worked.n, i == 2 ? 2 : 0);
        cr_palette_close(p);
        cr_free(json);
    }
}

static void test_writing_refuses_what_cannot_be_read(void **state)
{
    (void)state;
    char path[100];
    snprintf(path, sizeof path, "%s/a.palette", dir);
    float weights[N], q_c[DIM];
    cr_palette p;
    fill(&p, weights, q_c);
    weights[2] = NAN;
    assert_int_not_equal(cr_palette_write(&p, path, &err), CR_OK);
    fill(&p, weights, q_c);
    p.name = "\xff";
    assert_int_not_equal(cr_palette_write(&p, path, &err), CR_OK);
    fill(&p, weights, q_c);
    p.base_hash = "short";
    assert_int_not_equal(cr_palette_write(&p, path, &err), CR_OK);
    assert_int_equal(access(path, F_OK), -1); /* nothing was left behind */
    fill(&p, weights, q_c);
    snprintf(path, sizeof path, "%s/none/a.palette", dir);
    assert_int_not_equal(cr_palette_write(&p, path, &err), CR_OK);
}

static void test_open_checks_the_model(void **state)
{
    (void)state;
    char path[100], hash[65];
    snprintf(path, sizeof path, "%s/a.palette", dir);
    snprintf(hash, sizeof hash, "%s", cr_model_hash(model));
    float weights[N], q_c[DIM];
    cr_palette p, *q;
    fill(&p, weights, q_c);
    must(cr_palette_write(&p, path, &err));
    assert_int_equal(cr_palette_open(&q, model, path, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "0123456789abcdef")); /* both values */
    char some[17];
    snprintf(some, sizeof some, "%.16s", hash);
    assert_non_null(strstr(err.msg, some));
    p.base_hash = hash;
    must(cr_palette_write(&p, path, &err));
    assert_int_equal(cr_palette_open(&q, model, path, &err), CR_INVALID); /* embedding length */
    assert_non_null(strstr(err.msg, "17"));
    p.dim = 0;
    must(cr_palette_write(&p, path, &err));
    must(cr_palette_open(&q, model, path, &err));
    char want[120];
    snprintf(want, sizeof want, "%s/pool.gguf", dir);
    assert_string_equal(cr_palette_pool_path(q), want); /* beside the palette */
    cr_palette_close(q);
    p.n = 0; /* keeps the base model */
    must(cr_palette_write(&p, path, &err));
    must(cr_palette_open(&q, model, path, &err));
    assert_string_equal(cr_palette_pool_path(q), "");
    cr_delta *d = (cr_delta *)&p;
    must(cr_palette_delta(&d, q, NULL, &err));
    assert_null(d);
    cr_palette_close(q);
    unlink(path);
    assert_int_equal(cr_palette_open(&q, model, path, &err), CR_NOT_FOUND);
}

static void test_pool_paths(void **state)
{
    (void)state;
    char path[100], pool[100], sub[100];
    snprintf(path, sizeof path, "%s/a.palette", dir);
    snprintf(pool, sizeof pool, "%s/x.gguf", dir);
    snprintf(sub, sizeof sub, "%s/sub", dir);
    must(cr_file_write(pool, "x", 1, &err));
    assert_int_equal(mkdir(sub, 0700), 0);
    float weights[N], q_c[DIM];
    cr_palette p, *q;
    fill(&p, weights, q_c);
    p.pool_path = pool;
    for (int below = 0; below < 2; below++) {
        if (!below)
            snprintf(path, sizeof path, "%s/sub/a.palette", dir);
        else
            snprintf(path, sizeof path, "%s/a.palette", dir);
        must(cr_palette_write(&p, path, &err));
        size_t len;
        char *json = read_text(path, &len);
        must(cr_palette_parse(&q, json, len, path, &err));
        cr_free(json);
        assert_string_equal(q->pool_path, below ? "x.gguf" : pool);
        cr_palette_close(q);
        unlink(path);
    }
    unlink(pool);
    rmdir(sub);
}

static void test_wrong_pool_is_refused(void **state)
{
    (void)state;
    float weights[N], q_c[DIM];
    cr_palette p;
    fill(&p, weights, q_c);
    cr_pool pool = {.n = N, .kind = CR_POOL_CENTROID, .path = "p.gguf"};
    memcpy(pool.hash, HASH_A, 65);
    cr_delta *d;
    assert_int_equal(cr_palette_delta(&d, &p, &pool, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "fedcba98"));
    assert_non_null(strstr(err.msg, "01234567"));
    memcpy(pool.hash, HASH_B, 65);
    pool.n = 7;
    assert_int_equal(cr_palette_delta(&d, &p, &pool, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "7"));
    pool.n = N; /* a negative weight and a centroid pool */
    assert_int_equal(cr_palette_delta(&d, &p, &pool, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "-0.371"));
    assert_null(d);
}

static int begin(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    struct cr_model_options opt = {.n_threads = 1};
    must(cr_model_open(&model, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &opt, &err));
    return 0;
}

static int end(void **state)
{
    (void)state;
    cr_model_close(model);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_is_read_back),
        cmocka_unit_test(test_embeddings_of_every_length),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_worked_examples),
        cmocka_unit_test(test_fuzz_seeds_are_palettes),
        cmocka_unit_test(test_writing_refuses_what_cannot_be_read),
        cmocka_unit_test(test_open_checks_the_model),
        cmocka_unit_test(test_pool_paths),
        cmocka_unit_test(test_wrong_pool_is_refused),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
