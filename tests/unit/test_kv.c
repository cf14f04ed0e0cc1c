/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The KV cache in float16 and in 8 bits, on the shipped model with contexts that threads share: the
 * same bits for one token after another, for batches with a shared prefix and for any number of
 * threads; half of the memory, and a text's perplexity within 0.2 % of that with float16.
 */
#include "unit/tiny_gguf.h"

#include "base/bytes.h"
#include "model/session.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "unit/new_session.h"

#define MODEL CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf"

enum { N = 700, LAST = 12 };

static cr_model *open_model(enum cr_kv kv, const char *cpu, int threads)
{
    cr_model *m;
    struct cr_error err;
    const struct cr_model_options opt = {.n_threads = threads, .cpu = cpu, .kv = kv};
    if (cr_model_open(&m, MODEL, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return m;
}

/* Logits of the wanted tokens, one after the other. */
static void collect(void *ud, size_t token, const float *logits)
{
    (void)token;
    float **to = ud;
    memcpy(*to, logits, 8192 * sizeof **to);
    *to += 8192;
}

static void run_batch(cr_session *s, const struct cr_batch_token *tokens, size_t n, bool placed,
                      float *out)
{
    struct cr_error err;
    const struct cr_batch b = {
        .tokens = tokens, .n = n, .placed = placed, .on_logits = collect, .ud = &out};
    if (cr_session_run(s, &b, &err) != CR_OK)
        fail_msg("%s", err.msg);
}

static void run(cr_session *s, const struct cr_batch_token *tokens, size_t n, float *out)
{
    run_batch(s, tokens, n, false, out);
}

static void same(const float *a, const float *b, const char *what)
{
    if (memcmp(a, b, LAST * 8192 * sizeof *a) != 0)
        fail_msg("%s: the logits differ", what);
}

/* The logits of the last tokens of a sequence of N: in one batch, one by one after the rest, and
 * as two sequences side by side over a shared prefix. */
static void ways_agree(enum cr_kv kv, const char *cpu)
{
    static float whole[LAST * 8192], steps[LAST * 8192], two[2 * LAST * 8192], alone[LAST * 8192];
    struct cr_batch_token t[N + LAST];
    struct cr_rng rng;
    cr_rng_init(&rng, 5);
    for (int i = 0; i < N; i++)
        t[i] = (struct cr_batch_token){
            .id = (int32_t)cr_rng_below(&rng, 8192), .pos = i, .want = i >= N - LAST};
    cr_model *m = open_model(kv, cpu, 2);
    cr_session *s = new_session(m, N + LAST);
    run(s, t, N, whole);
    cr_session_truncate(s, N - LAST);
    for (int i = 0; i < LAST; i++)
        run(s, &t[N - LAST + i], 1, steps + i * 8192);
    same(whole, steps, "one by one");
    cr_session_truncate(s, N - LAST);
    for (int i = 0; i < 2 * LAST; i++) {
        t[N - LAST + i] = t[N - LAST + i % LAST];
        t[N - LAST + i].pre_end = N - LAST;
        t[N - LAST + i].seg_begin = N - LAST + i / LAST * LAST;
    }
    run(s, t + N - LAST, 2 * LAST, two);
    same(whole, two, "after a shared prefix");
    same(whole, two + LAST * 8192, "the second after a shared prefix");
    /* and with the prefix copied to cells that begin elsewhere in a tile */
    cr_session *far = new_session(m, 2 * N + 8);
    run(far, t, N - LAST, alone);
    cr_session_copy(far, 0, N + 5, N - LAST);
    for (int i = 0; i < LAST; i++) {
        t[N - LAST + i].pre_end = 0;
        t[N - LAST + i].seg_begin = N + 5;
        t[N - LAST + i].cell = N + 5 + N - LAST + i;
    }
    run_batch(far, t + N - LAST, LAST, true, alone);
    same(whole, alone, "copied cells");
    cr_session_free(far);
    cr_session_free(s);
    cr_model_close(m);
    m = open_model(kv, cpu, 1);
    s = new_session(m, N);
    for (int i = 0; i < LAST; i++)
        t[N - LAST + i].pre_end = t[N - LAST + i].seg_begin = 0;
    run(s, t, N, alone);
    same(whole, alone, "one thread");
    cr_session_free(s);
    cr_model_close(m);
}

static void test_ways_agree(void **state)
{
    (void)state;
    static const char *const names[] = {"avx2", "avxvnni", "avx512", "neon", "dotprod"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct cr_kernels *k;
        if (cr_kernels_get(&k, names[i], NULL) != CR_OK)
            continue;
        ways_agree(CR_KV_F16, names[i]);
        ways_agree(CR_KV_Q8_0, names[i]);
    }
}

/* Bits that a token of the licence takes, in pieces of PIECE tokens: enough of them that chance
 * moves perplexity by less than the bound (150 tokens alone move it by half a per cent). */
static double bits_of_text(enum cr_kv kv)
{
    enum { PIECE = 150 };
    cr_model *m = open_model(kv, NULL, 1);
    cr_session *s = new_session(m, PIECE);
    struct cr_error err;
    char *text;
    int32_t *ids;
    size_t len, n;
    assert_int_equal(cr_file_read(CR_SOURCE_DIR "/LICENSE", 1 << 20, &text, &len, &err), CR_OK);
    assert_int_equal(cr_tokenize(m, text, len, false, &ids, &n, &err), CR_OK);
    double bits = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        if (i % PIECE == 0)
            cr_session_reset(s);
        assert_int_equal(cr_session_step(s, ids[i], &err), CR_OK);
        const float *l = cr_session_logits(s);
        float sum = 0;
        for (int v = 0; v < 8192; v++)
            sum += expf(l[v] - l[ids[i + 1]]);
        bits += log2((double)sum);
    }
    cr_free(ids);
    cr_free(text);
    cr_session_free(s);
    cr_model_close(m);
    return bits / (double)(n - 1);
}

static void test_quality(void **state)
{
    (void)state;
    const double f16 = bits_of_text(CR_KV_F16), q8 = bits_of_text(CR_KV_Q8_0);
    const double change = exp2(q8 - f16) - 1;
    print_message("          %.4f bits with f16, %.4f with q8_0: perplexity %+.3f %%\n", f16, q8,
                  100 * change);
    assert_true(fabs(change) < 0.002);
    assert_true(q8 != f16);
}

static void test_memory(void **state)
{
    (void)state;
    cr_model *f16 = open_model(CR_KV_F16, NULL, 1), *q8 = open_model(CR_KV_Q8_0, NULL, 1);
    const size_t cells = 1024, values = 2 * 8 * 128; /* of a cell in all layers */
    assert_int_equal(cr_session_kv_bytes(f16, 1024), 2 * cells * values);
    assert_int_equal(cr_session_kv_bytes(q8, 1024), 34 * cells * values / 32);
    assert_int_equal(cr_session_bytes(f16, 1024) - cr_session_bytes(q8, 1024),
                     cr_session_kv_bytes(f16, 1024) - cr_session_kv_bytes(q8, 1024));
    cr_model_close(f16);
    cr_model_close(q8);
}

static void test_odd_heads_are_refused(void **state)
{
    (void)state;
    struct tiny t = tiny_default(); /* heads of 16 values */
    const struct cr_model_options opt = {.kv = CR_KV_Q8_0};
    cr_model *m = tiny_open(&t, &opt);
    cr_session *s;
    struct cr_error err;
    assert_int_equal(cr_session_new(&s, m, 0, &err), CR_UNSUPPORTED);
    assert_null(s);
    assert_non_null(strstr(err.msg, "multiple of 32"));
    assert_non_null(strstr(err.msg, "have 16"));
    cr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ways_agree),
        cmocka_unit_test(test_quality),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_odd_heads_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
