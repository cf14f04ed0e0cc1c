/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logits and greedy text against transformers on ten models (tests/golden/README.md says how the
 * files were made). Float weights: what is left is the float16 cache (rounding keys and values in
 * the reference too leaves 0.002). Quantised weights: activations are rounded to 8 bits as well,
 * and the same rounding put into the reference moves its logits as far, so those bounds are wide
 * and the greedy text is the sharper test.
 */
#include "model/session.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PROMPTS = 3, IDS = 32, PAIRS = 21, GREEDY = 64 };

static const float FLOAT_BOUND = 0.05f; /* logits have standard deviations of 3 to 8 */

struct golden {
    int32_t prompt[PROMPTS][IDS], greedy[PROMPTS][GREEDY];
    int32_t id[PROMPTS][IDS][PAIRS];
    float logit[PROMPTS][IDS][PAIRS];
};

/* ---- reading ---- */

static long number(char **at)
{
    char *end;
    long v = strtol(*at, &end, 10);
    assert_ptr_not_equal(end, *at);
    *at = end;
    return v;
}

static void read_line(char *line, struct golden *g, int *prompt, int *row)
{
    char *at = strchr(line, ' ');
    if (!at || strncmp(line, "lead ", 5) == 0)
        return;
    if (strncmp(line, "prompt ", 7) == 0) {
        assert_true(++*prompt < PROMPTS);
        *row = 0;
        for (int i = 0; i < IDS; i++)
            g->prompt[*prompt][i] = (int32_t)number(&at);
    } else if (strncmp(line, "logits ", 7) == 0) {
        assert_true(*prompt >= 0 && *row < IDS);
        for (int i = 0; i < PAIRS; i++) {
            g->id[*prompt][*row][i] = (int32_t)number(&at);
            g->logit[*prompt][*row][i] = strtof(at, &at);
        }
        ++*row;
    } else if (strncmp(line, "greedy ", 7) == 0) {
        assert_int_equal(*row, IDS);
        for (int i = 0; i < GREEDY; i++)
            g->greedy[*prompt][i] = (int32_t)number(&at);
    } else {
        fail_msg("unknown line: %.40s", line);
    }
}

static struct golden *read_golden(const char *name)
{
    char path[500], *text, *save = NULL;
    size_t n;
    struct cr_error err;
    snprintf(path, sizeof path, "%s/tests/golden/logits-%s.txt", CR_SOURCE_DIR, name);
    if (cr_file_read(path, 1 << 20, &text, &n, &err) != CR_OK)
        fail_msg("%s", err.msg);
    struct golden *g = cr_alloc0(1, sizeof *g);
    assert_non_null(g);
    int prompt = -1, row = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        read_line(line, g, &prompt, &row);
    assert_int_equal(prompt, PROMPTS - 1);
    cr_free(text);
    return g;
}

/* ---- comparing ---- */

struct rows {
    float *v;
    size_t width;
};

static void collect(void *ud, size_t token, const float *logits)
{
    const struct rows *r = ud;
    memcpy(r->v + token * r->width, logits, r->width * sizeof *logits);
}

static int32_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return (int32_t)best;
}

/* Compares one prompt; returns the largest logit difference. */
static float compare(cr_session *s, const struct golden *g, int p, int *n_argmax)
{
    size_t V = (size_t)cr_session_model(s)->n_vocab;
    struct rows rows = {cr_alloc(IDS * V, sizeof(float)), V};
    struct cr_batch_token tokens[IDS];
    struct cr_error err;
    for (int i = 0; i < IDS; i++)
        tokens[i] = (struct cr_batch_token){.id = g->prompt[p][i], .pos = i, .want = true};
    const struct cr_batch b = {.tokens = tokens, .n = IDS, .on_logits = collect, .ud = &rows};
    cr_session_reset(s);
    assert_non_null(rows.v);
    assert_int_equal(cr_session_run(s, &b, &err), CR_OK);
    float worst = 0;
    for (int i = 0; i < IDS; i++) {
        const float *x = rows.v + (size_t)i * V;
        *n_argmax += argmax(x, V) == g->id[p][i][0];
        for (int k = 0; k < PAIRS; k++)
            worst = fmaxf(worst, fabsf(x[g->id[p][i][k]] - g->logit[p][i][k]));
    }
    cr_free(rows.v);
    assert_int_equal(cr_session_sync(s, g->prompt[p], IDS, NULL, &err), CR_OK);
    for (int i = 0; i < GREEDY; i++) {
        int32_t id = argmax(cr_session_logits(s), V);
        if (id != g->greedy[p][i])
            fail_msg("prompt %d: greedy token %d: want %d, found %d", p, i, g->greedy[p][i], id);
        assert_int_equal(cr_session_step(s, id, &err), CR_OK);
    }
    return worst;
}

/* min_argmax: how many of the 96 positions must have the reference's first choice. */
static void check(const char *name, const char *path, const char *cpu, float bound, int min_argmax)
{
    struct golden *g = read_golden(name);
    const struct cr_model_options opt = {.n_threads = 2, .cpu = cpu};
    cr_model *m;
    cr_session *s;
    struct cr_error err;
    if (cr_model_open(&m, path, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(cr_session_new(&s, m, IDS + GREEDY, &err), CR_OK);
    float worst = 0;
    int n_argmax = 0;
    for (int p = 0; p < PROMPTS; p++)
        worst = fmaxf(worst, compare(s, g, p, &n_argmax));
    print_message("          %-17s %-6s largest logit difference %.2g (bound %.2g), "
                  "%d of %d first choices\n",
                  name, cr_model_info(m)->cpu, (double)worst, (double)bound, n_argmax,
                  PROMPTS * IDS);
    assert_true(worst <= bound);
    assert_true(n_argmax >= min_argmax);
    cr_session_free(s);
    cr_model_close(m);
    cr_free(g);
}

static void check_levels(const char *name, const char *path, float bound, int min_argmax)
{
    for (int level = 0; level < CR_CPU_COUNT; level++) {
        const struct cr_kernels *k = cr_kernels_level((enum cr_cpu)level);
        if (k)
            check(name, path, k->name, bound, min_argmax);
    }
}

static void test_random_qwen2(void **state)
{
    (void)state;
    check_levels("random-qwen2", CR_SOURCE_DIR "/tests/data/random-qwen2.gguf", FLOAT_BOUND, 96);
}

static void test_random_qwen3(void **state)
{
    (void)state;
    check_levels("random-qwen3", CR_SOURCE_DIR "/tests/data/random-qwen3.gguf", FLOAT_BOUND, 96);
}

static void test_random_gemma3(void **state)
{
    (void)state;
    check_levels("random-gemma3", CR_SOURCE_DIR "/tests/data/random-gemma3.gguf", FLOAT_BOUND, 96);
}

static void test_random_smollm3(void **state)
{
    (void)state;
    check_levels("random-smollm3", CR_SOURCE_DIR "/tests/data/random-smollm3.gguf", FLOAT_BOUND,
                 96);
}

static void test_random_phi3(void **state)
{
    (void)state;
    check_levels("random-phi3", CR_SOURCE_DIR "/tests/data/random-phi3.gguf", FLOAT_BOUND, 96);
}

static void test_random_kquants(void **state)
{
    (void)state;
    check_levels("random-kquants", CR_SOURCE_DIR "/tests/data/random-kquants.gguf", 1, 90);
}

static void test_stories260k(void **state)
{
    (void)state;
    check_levels("stories260K", CR_SOURCE_DIR "/tests/data/stories260K.gguf", FLOAT_BOUND, 96);
}

static void test_15m_q8_0(void **state)
{
    (void)state;
    check("crayon-15m-q8_0", CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", NULL, 0.5f, 90);
}

/* Copies the shipped model with its Q8_0 matrices as F16. */
static void write_f16(const char *path)
{
    cr_gguf *g;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &err), CR_OK);
    cr_gguf_writer *w = cr_gguf_writer_new();
    void *blocks[512];
    size_t n_blocks = 0;
    for (size_t i = 0; i < cr_gguf_n_kv(g); i++)
        cr_gguf_put_kv(w, cr_gguf_kv_at(g, i));
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.p);
        if (t->type != CR_Q8_0) {
            cr_gguf_put_tensor(w, name, t->type, t->n_dims, t->ne, t->data);
            continue;
        }
        size_t n = t->ne[0] * t->ne[1];
        float *x = cr_alloc(n, sizeof *x);
        uint16_t *h = cr_alloc(n, sizeof *h);
        assert_true(x && h && n_blocks < 512);
        cr_dequantize_ref(CR_Q8_0, x, t->data, n);
        cr_quantize_ref(CR_F16, h, x, n);
        cr_free(x);
        cr_gguf_put_tensor(w, name, CR_F16, t->n_dims, t->ne, h);
        blocks[n_blocks++] = h;
    }
    if (cr_gguf_write(w, path, &err) != CR_OK)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < n_blocks; i++)
        cr_free(blocks[i]);
    cr_gguf_writer_free(w);
    cr_gguf_close(g);
}

static void test_15m_f16(void **state)
{
    (void)state;
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    write_f16(path);
    check("crayon-15m-f16", path, NULL, FLOAT_BOUND, 96);
    unlink(path);
}

static void test_smollm2(void **state)
{
    (void)state;
    const char *path = getenv("CRAYON_SMOLLM2"), *home = getenv("HOME");
    const char *data = getenv("XDG_DATA_HOME");
    char found[500];
    snprintf(found, sizeof found, "%s%s/crayon/models/smollm2-135m-instruct-q4_1.gguf",
             data   ? data
             : home ? home
                    : "",
             data ? "" : "/.local/share");
    path = path ? path : found;
    if (access(path, R_OK) != 0) {
        print_message("          skip: no %s (make models gets it)\n", path);
        skip();
    }
    check("smollm2-135m-q4_1", path, NULL, 1, 90);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_qwen2),  cmocka_unit_test(test_random_qwen3),
        cmocka_unit_test(test_random_gemma3), cmocka_unit_test(test_random_smollm3),
        cmocka_unit_test(test_random_phi3),   cmocka_unit_test(test_random_kquants),
        cmocka_unit_test(test_stories260k),   cmocka_unit_test(test_15m_q8_0),
        cmocka_unit_test(test_15m_f16),       cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
