/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.c: the identities that the whole program leans on, bit for bit, on small random models of
 * every architecture and type and on the shipped one; then limits, memory and failures.
 */
#include "unit/tiny_gguf.h"

#include "model/session.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "unit/new_session.h"

#define MODEL CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf"

enum { N_SPECS = 15 };

/* All types and architectures; head_dim of its own; q, k and v of different types. */
static struct tiny spec(int i)
{
    struct tiny t[N_SPECS] = {
        tiny_typed("llama", CR_F32),  tiny_typed("llama", CR_Q8_0),  tiny_typed("qwen2", CR_Q4_0),
        tiny_typed("qwen3", CR_Q4_1), tiny_typed("llama", CR_F16),   tiny_typed("llama", CR_BF16),
        tiny_typed("qwen2", CR_F32),  tiny_typed("qwen3", CR_Q8_0),  tiny_typed("llama", CR_Q4_K),
        tiny_typed("qwen3", CR_Q5_K), tiny_typed("qwen2", CR_Q5_0),  tiny_typed("llama", CR_Q5_1),
        tiny_typed("gemma3", CR_F16), tiny_typed("smollm3", CR_F32), tiny_typed("phi3", CR_Q8_0)};
    t[1].tied = false;
    t[2].v_type = CR_F16;
    t[3].head_dim = 32;
    t[3].embd_type = CR_Q8_0;
    t[4].n_kv_heads = 4;
    t[5].norm_type = CR_F16;
    t[6].n_kv_heads = 1;
    t[7].norm_type = CR_BF16;
    for (int k = 8; k < 10; k++) { /* K-types come in 256 */
        t[k].n_embd = t[k].n_ff = 256;
        t[k].head_dim = 64;
        t[k].embd_type = t[k].v_type = CR_Q6_K;
        t[k].n_layers = 2;
    }
    t[10].embd_type = CR_IQ4_NL;
    t[12].n_layers = 7;
    t[12].window = 11;
    t[13].n_layers = 5;
    t[14].window = 17;
    return t[i];
}

static void random_ids(struct cr_rng *r, int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)cr_rng_below(r, TINY_VOCAB);
}

static void sync_ids(cr_session *s, const int32_t *ids, size_t n, size_t *n_run)
{
    struct cr_error err;
    if (cr_session_sync(s, ids, n, n_run, &err) != CR_OK)
        fail_msg("%s", err.msg);
}

/* Collects the logits of wanted tokens: rows [token][V]. */
struct rows {
    float *v;
    size_t width, calls, last;
};

static void collect(void *ud, size_t token, const float *x)
{
    struct rows *r = ud;
    if (r->calls && token <= r->last)
        fail_msg("token %zu after %zu", token, r->last);
    memcpy(r->v + token * r->width, x, r->width * sizeof *x);
    r->calls++;
    r->last = token;
}

static struct rows new_rows(size_t n, size_t width)
{
    struct rows r = {.v = cr_alloc0(n * width, sizeof(float)), .width = width};
    assert_non_null(r.v);
    return r;
}

/* Runs ids as one plain sequence from the end of the cache, in pieces of at most `piece`. */
static void run_plain(cr_session *s, const int32_t *ids, size_t n, size_t piece, struct rows *r)
{
    struct cr_batch_token *tokens = cr_alloc(n, sizeof *tokens);
    int base = cr_session_length(s);
    for (size_t done = 0; done < n;) {
        size_t k = n - done < piece ? n - done : piece;
        for (size_t i = 0; i < k; i++)
            tokens[i] = (struct cr_batch_token){
                .id = ids[done + i], .pos = base + (int32_t)(done + i), .want = true};
        struct rows part = {.v = r->v + done * r->width, .width = r->width};
        const struct cr_batch b = {.tokens = tokens, .n = k, .on_logits = collect, .ud = &part};
        struct cr_error err;
        if (cr_session_run(s, &b, &err) != CR_OK)
            fail_msg("%s", err.msg);
        assert_int_equal(part.calls, k);
        done += k;
    }
    cr_free(tokens);
}

static void same_bits(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: value %zu: %.9g and %.9g", what, i, (double)a[i], (double)b[i]);
}

static const char *levels[] = {"ref", "avx2",    "avx512",  "neon",
                               "amx", "avxvnni", "dotprod", "i8mm"};

/* Calls fn with every model spec at every level of this machine. */
static void each_model(void (*fn)(cr_model *m))
{
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        if (!cr_kernels_level((enum cr_cpu)l))
            continue;
        for (int i = 0; i < N_SPECS; i++) {
            struct tiny t = spec(i);
            const struct cr_model_options opt = {.n_threads = 2, .cpu = levels[l]};
            cr_model *m = tiny_open(&t, &opt);
            fn(m);
            cr_model_close(m);
        }
    }
}

/* ---- identities ---- */

static void prefill_is_steps(cr_model *m)
{
    enum { N = 70 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 3);
    random_ids(&rng, ids, N);
    size_t V = (size_t)m->n_vocab;
    struct rows all = new_rows(N, V), split = new_rows(N, V);
    cr_session *s = new_session(m, 0);
    struct cr_error err;
    run_plain(s, ids, N, N, &all);
    cr_session_reset(s);
    run_plain(s, ids, N, 7, &split);
    same_bits(all.v, split.v, N * V, "pieces of 7");
    cr_session_reset(s);
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(cr_session_step(s, ids[i], &err), CR_OK);
        same_bits(all.v + i * V, cr_session_logits(s), V, "steps");
    }
    sync_ids(s, ids, 40, NULL);
    same_bits(all.v + 39 * V, cr_session_logits(s), V, "sync");
    for (size_t i = 0; i < N * V; i++)
        assert_true(isfinite(all.v[i]));
    cr_session_free(s);
    cr_free(all.v);
    cr_free(split.v);
}

static void test_prefill_is_steps(void **state)
{
    (void)state;
    each_model(prefill_is_steps);
}

/* A prefix in cells [0, P), then three continuations packed token by token in turn, against each
 * sequence alone. */
static void packed_is_separate(cr_model *m)
{
    enum { P = 9, N = 3, K = 11 };
    int32_t prefix[P], rest[N][K];
    struct cr_rng rng;
    cr_rng_init(&rng, 4);
    random_ids(&rng, prefix, P);
    random_ids(&rng, rest[0], N * K);
    size_t V = (size_t)m->n_vocab;
    struct cr_batch_token tokens[P + N * K];
    for (int i = 0; i < P; i++)
        tokens[i] = (struct cr_batch_token){.id = prefix[i], .pos = i, .want = i == P - 1};
    for (int n = 0; n < N; n++)
        for (int i = 0; i < K; i++)
            tokens[P + n * K + i] = (struct cr_batch_token){.id = rest[n][i],
                                                            .pos = P + i,
                                                            .pre_begin = 0,
                                                            .pre_end = P,
                                                            .seg_begin = P + n * K,
                                                            .want = true};
    struct rows packed = new_rows(P + N * K, V);
    cr_session *s = new_session(m, 0);
    const struct cr_batch b = {
        .tokens = tokens, .n = P + N * K, .on_logits = collect, .ud = &packed};
    struct cr_error err;
    if (cr_session_run(s, &b, &err) != CR_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(packed.calls, 1 + N * K);
    for (int n = 0; n < N; n++) {
        int32_t ids[P + K];
        memcpy(ids, prefix, sizeof prefix);
        memcpy(ids + P, rest[n], sizeof rest[n]);
        struct rows alone = new_rows(P + K, V);
        cr_session_reset(s);
        run_plain(s, ids, P + K, P + K, &alone);
        same_bits(alone.v + (P - 1) * V, packed.v + (P - 1) * V, V, "end of prefix");
        same_bits(alone.v + P * V, packed.v + (size_t)(P + n * K) * V, K * V, "packed");
        cr_free(alone.v);
    }
    cr_session_free(s);
    cr_free(packed.v);
}

static void test_packed_is_separate(void **state)
{
    (void)state;
    each_model(packed_is_separate);
}

static cr_delta *random_delta(const cr_model *m, int rank, float gain, uint64_t seed)
{
    size_t n = 0;
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)i);
        n += (size_t)rank * (size_t)(w->n_in + w->n_out);
    }
    cr_delta *d;
    struct cr_error err;
    assert_int_equal(cr_delta_new(&d, m->n_layers, n * (size_t)m->n_layers, &err), CR_OK);
    struct cr_rng rng;
    cr_rng_init(&rng, seed);
    float *p = d->data;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            size_t n_a = (size_t)rank * (size_t)w->n_in, n_b = (size_t)rank * (size_t)w->n_out;
            for (size_t k = 0; k < n_a; k++)
                p[k] = 0.1f * (float)cr_rng_normal(&rng);
            for (size_t k = 0; k < n_b; k++)
                p[n_a + k] = gain * (float)cr_rng_normal(&rng);
            *cr_delta_at(d, l, (enum cr_linear)i) =
                (struct cr_low_rank){.rank = rank, .a = p, .b = p + n_a};
            p += n_a + n_b;
        }
    d->max_rank = rank;
    if (seed % 2)
        cr_delta_pack(m, d);
    return d;
}

/* Another B beside the A of a delta, packed as the palettes of a pool are. */
static cr_delta *sharing_delta(const cr_model *m, const cr_delta *of, float gain, uint64_t seed)
{
    size_t n = 0;
    for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++)
        n += (size_t)of->max_rank * (size_t)cr_model_linear(m, 0, i % CR_LIN_COUNT)->n_out;
    cr_delta *d;
    struct cr_error err;
    assert_int_equal(cr_delta_new(&d, m->n_layers, n, &err), CR_OK);
    struct cr_rng rng;
    cr_rng_init(&rng, seed);
    for (size_t i = 0, at = 0; i < (size_t)(m->n_layers * CR_LIN_COUNT); i++) {
        d->pairs[i] =
            (struct cr_low_rank){.rank = of->max_rank, .a = of->pairs[i].a, .b = d->data + at};
        at += (size_t)of->max_rank * (size_t)cr_model_linear(m, 0, i % CR_LIN_COUNT)->n_out;
    }
    for (size_t i = 0; i < n; i++)
        d->data[i] = gain * (float)cr_rng_normal(&rng);
    d->max_rank = of->max_rank;
    if (cr_delta_place_b(m, d, of))
        for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++)
            cr_delta_pack_b(m, d, i / CR_LIN_COUNT, i % CR_LIN_COUNT);
    assert_ptr_equal(d->stacks, of->stacks);
    return d;
}

/* Packed beside the A of another delta, a change has the bits of one that packs its own. */
static void shared_a_is_own(cr_model *m)
{
    enum { N = 20 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 13);
    random_ids(&rng, ids, N);
    size_t V = (size_t)m->n_vocab;
    struct rows shared = new_rows(N, V), own = new_rows(N, V);
    cr_session *s = new_session(m, 0);
    cr_delta *of = random_delta(m, 8, 0.1f, 3), *d = sharing_delta(m, of, 0.1f, 4);
    cr_session_set_delta(s, d);
    run_plain(s, ids, N, N, &shared);
    cr_delta_free(d);
    d = sharing_delta(m, of, 0.1f, 4);
    cr_free(d->packed_b);
    d->packed_b = NULL;
    cr_delta_pack(m, d);
    cr_session_reset(s);
    cr_session_set_delta(s, d);
    run_plain(s, ids, N, N, &own);
    same_bits(shared.v, own.v, N * V, "A of its own");
    cr_session_free(s);
    cr_delta_free(d);
    cr_delta_free(of);
    cr_free(shared.v);
    cr_free(own.v);
}

static void test_shared_a_is_own(void **state)
{
    (void)state;
    each_model(shared_a_is_own);
}

/* Sequences with different deltas, placed in their own cells of one session: prompts in pieces of
 * uneven size beside single steps of others, one of them over a prefix that lies behind it. Every
 * logit is that of the sequence run alone. */
static void placed_is_separate(cr_model *m)
{
    enum { N = 6, LEN = 40, ROOM = 45, PRE = 9 };
    struct cr_error err;
    size_t V = (size_t)m->n_vocab;
    cr_delta *deltas[N] = {NULL, random_delta(m, 3, 0.3f, 1), random_delta(m, 70, 0.05f, 2),
                           random_delta(m, 8, 0.2f, 3)};
    deltas[4] = deltas[3]; /* two with one palette, the second behind a prefix of its own */
    deltas[5] = sharing_delta(m, deltas[3], 0.2f, 6); /* and one of the same pool */
    int32_t ids[N][LEN];
    struct cr_rng rng;
    cr_rng_init(&rng, 21);
    random_ids(&rng, ids[0], N * LEN);
    cr_session *s = new_session(m, N * ROOM + PRE), *alone = new_session(m, LEN);
    struct rows want = new_rows(N * LEN, V), got = new_rows(N * LEN, V);
    for (int n = 0; n < N; n++) {
        struct rows part = {.v = want.v + (size_t)n * LEN * V, .width = V};
        cr_session_set_delta(alone, deltas[n]);
        cr_session_reset(alone);
        run_plain(alone, ids[n], LEN, LEN, &part);
    }
    sync_ids(s, ids[0], 3, NULL); /* is forgotten */
    for (int done[N] = {0}, left = N * LEN; left > 0;) {
        struct cr_batch_token tokens[N * LEN];
        size_t n_tokens = 0, at[N * LEN];
        for (int n = N - 1; n >= 0; n--) {
            int piece = n == 2 ? 1 : 1 + (int)cr_rng_below(&rng, 7 * (uint64_t)n + 1);
            for (int i = 0; i < piece && done[n] < LEN; i++, done[n]++, left--) {
                bool pre = n == 4 && done[n] < PRE;
                at[n_tokens] = (size_t)(n * LEN + done[n]);
                tokens[n_tokens++] =
                    (struct cr_batch_token){.id = ids[n][done[n]],
                                            .pos = done[n],
                                            .pre_begin = n == 4 && !pre ? N * ROOM : 0,
                                            .pre_end = n == 4 && !pre ? N * ROOM + PRE : 0,
                                            .seg_begin = pre ? N * ROOM : n * ROOM,
                                            .cell = pre      ? N * ROOM + done[n]
                                                    : n == 4 ? n * ROOM + done[n] - PRE
                                                             : n * ROOM + done[n],
                                            .want = true,
                                            .delta = deltas[n]};
            }
        }
        struct rows part = new_rows(n_tokens, V);
        const struct cr_batch b = {
            .tokens = tokens, .n = n_tokens, .placed = true, .on_logits = collect, .ud = &part};
        if (cr_session_run(s, &b, &err) != CR_OK)
            fail_msg("%s", err.msg);
        assert_int_equal(part.calls, n_tokens);
        for (size_t i = 0; i < n_tokens; i++)
            memcpy(got.v + at[i] * V, part.v + i * V, V * sizeof(float));
        cr_free(part.v);
    }
    same_bits(want.v, got.v, N * LEN * V, "placed");
    assert_int_equal(cr_session_length(s), N * ROOM + PRE);
    size_t n_run;
    sync_ids(s, ids[0], 3, &n_run);
    assert_int_equal(n_run, 3);
    struct cr_batch_token bad = {.id = 1, .cell = N * ROOM + PRE};
    const struct cr_batch b = {.tokens = &bad, .n = 1, .placed = true};
    assert_int_equal(cr_session_run(s, &b, &err), CR_LIMIT);
    bad = (struct cr_batch_token){.id = 1, .cell = 4, .seg_begin = 5};
    assert_int_equal(cr_session_run(s, &b, &err), CR_INVALID);
    bad = (struct cr_batch_token){.id = 1, .cell = 4, .pre_begin = 4, .pre_end = 9};
    assert_int_equal(cr_session_run(s, &b, &err), CR_INVALID);
    bad = (struct cr_batch_token){.id = 1, .cell = 4, .pre_begin = 5, .pre_end = 1000};
    assert_int_equal(cr_session_run(s, &b, &err), CR_INVALID);
    cr_delta_free(deltas[5]);
    for (int n = 1; n < 4; n++)
        cr_delta_free(deltas[n]);
    cr_session_free(s);
    cr_session_free(alone);
    cr_free(want.v);
    cr_free(got.v);
}

static void test_placed_is_separate(void **state)
{
    (void)state;
    each_model(placed_is_separate);
}

/* Random edits of a running text: whatever the cache held, the logits are those of a cold run. */
static void warm_is_cold(cr_model *m)
{
    enum { MAX = 100, ROUNDS = 25 };
    int32_t ids[MAX];
    struct cr_rng rng;
    cr_rng_init(&rng, 5);
    random_ids(&rng, ids, MAX);
    cr_session *warm = new_session(m, 0), *cold = new_session(m, 0);
    size_t n = 10, saved = 0;
    struct cr_error err;
    for (int round = 0; round < ROUNDS; round++) {
        size_t at = cr_rng_below(&rng, n), n_run;
        if (cr_rng_below(&rng, 3) == 0)
            ids[at] = (int32_t)cr_rng_below(&rng, TINY_VOCAB);
        n = 1 + cr_rng_below(&rng, MAX - 1);
        sync_ids(warm, ids, n, &n_run);
        saved += n - n_run;
        assert_int_equal(cr_session_length(warm), n);
        cr_session_reset(cold);
        sync_ids(cold, ids, n, &n_run);
        assert_int_equal(n_run, n);
        same_bits(cr_session_logits(cold), cr_session_logits(warm), (size_t)m->n_vocab, "edit");
        if (n < MAX && cr_rng_below(&rng, 2)) {
            assert_int_equal(cr_session_step(warm, ids[n], &err), CR_OK);
            n++;
        }
    }
    assert_true(saved > 0);
    cr_session_free(warm);
    cr_session_free(cold);
}

static void test_warm_is_cold(void **state)
{
    (void)state;
    each_model(warm_is_cold);
}

static void test_threads_do_not_matter(void **state)
{
    (void)state;
    enum { N = 50 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 6);
    random_ids(&rng, ids, N);
    for (int i = 0; i < N_SPECS; i++) {
        struct rows first = {0};
        for (int threads = 1; threads <= 3; threads++) {
            struct tiny t = spec(i);
            const struct cr_model_options opt = {.n_threads = threads};
            cr_model *m = tiny_open(&t, &opt);
            size_t V = (size_t)m->n_vocab;
            struct rows r = new_rows(N, V);
            cr_session *s = new_session(m, 0);
            run_plain(s, ids, 40, 40, &r);
            struct rows rest = {.v = r.v + 40 * V, .width = V};
            run_plain(s, ids + 40, N - 40, 1, &rest);
            if (threads == 1)
                first = r;
            else
                same_bits(first.v, r.v, N * V, "threads");
            if (threads > 1)
                cr_free(r.v);
            cr_session_free(s);
            cr_model_close(m);
        }
        cr_free(first.v);
    }
}

/* Chunks of 512 and the logits buffer are crossed; the shipped model, every level. */
static void test_the_shipped_model(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__ /* where threads meet, not how far */
    enum { N = 48, STEP = 20, REF = 4 };
#else
    enum { N = 600, STEP = 90, REF = 40 };
#endif
    int32_t *ids = cr_alloc(N, sizeof *ids);
    struct cr_rng rng;
    cr_rng_init(&rng, 7);
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)cr_rng_below(&rng, 8192);
    struct rows ref = {0};
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        if (!cr_kernels_level((enum cr_cpu)l))
            continue;
        struct cr_error err;
        cr_model *m;
        const struct cr_model_options opt = {.n_threads = 2, .cpu = levels[l]};
        if (cr_model_open(&m, MODEL, &opt, &err) != CR_OK)
            fail_msg("%s", err.msg);
        size_t V = (size_t)m->n_vocab, n = l == 0 ? REF : N; /* the reference is slow */
        struct rows all = new_rows(n, V), split = new_rows(n, V);
        cr_session *s = new_session(m, 0);
        run_plain(s, ids, n, n, &all);
        if (l == 0) {
            ref = all;
        } else {
            cr_session_reset(s);
            run_plain(s, ids, n, STEP, &split);
            same_bits(all.v, split.v, n * V, levels[l]);
            /* Levels sum in different orders, and an activation on the edge between two codes
             * may round the other way; logits here have a spread of about 3. */
            float worst = 0;
            for (size_t i = 0; i < REF * V; i++)
                worst = fmaxf(worst, fabsf(all.v[i] - ref.v[i]));
            print_message("          %s against ref: largest logit difference %.4f\n", levels[l],
                          (double)worst);
            assert_true(worst < 0.25f);
            cr_free(all.v);
        }
        cr_free(split.v);
        cr_session_free(s);
        cr_model_close(m);
    }
    cr_free(ref.v);
    cr_free(ids);
}

/* ---- deltas ---- */

static void delta_identities(cr_model *m)
{
    enum { N = 20 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 8);
    random_ids(&rng, ids, N);
    size_t V = (size_t)m->n_vocab;
    struct rows base = new_rows(N, V), r = new_rows(N, V), split = new_rows(N, V);
    cr_session *s = new_session(m, 0);
    run_plain(s, ids, N, N, &base);
    cr_delta *zero = random_delta(m, 5, 0, 1);
    cr_session_set_delta(s, zero);
    assert_int_equal(cr_session_length(s), 0); /* another delta, another cache */
    run_plain(s, ids, N, N, &r);
    same_bits(base.v, r.v, N * V, "zero delta");
    for (int rank = 1; rank <= 150; rank += 149) { /* one tile of ranks, and three */
        cr_delta *d = random_delta(m, rank, 0.1f, 2);
        cr_session_set_delta(s, d);
        run_plain(s, ids, N, N, &r);
        assert_memory_not_equal(base.v, r.v, N * V * sizeof(float));
        cr_session_set_delta(s, d);
        assert_int_equal(cr_session_length(s), N); /* the same delta keeps it */
        cr_session_reset(s);
        run_plain(s, ids, N, 3, &split);
        same_bits(r.v, split.v, N * V, "delta in pieces");
        cr_session_set_delta(s, NULL);
        cr_delta_free(d);
    }
    run_plain(s, ids, N, N, &r);
    same_bits(base.v, r.v, N * V, "base again");
    cr_delta_free(zero);
    cr_session_free(s);
    cr_free(base.v);
    cr_free(r.v);
    cr_free(split.v);
}

static void test_delta_identities(void **state)
{
    (void)state;
    each_model(delta_identities);
}

/* Packed into 8 bits, a change is the same but for a twentieth of it. */
static void packed_delta_is_near(cr_model *m)
{
    enum { N = 20 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 12);
    random_ids(&rng, ids, N);
    size_t V = (size_t)m->n_vocab;
    struct rows base = new_rows(N, V), r = new_rows(N, V), packed = new_rows(N, V);
    cr_session *s = new_session(m, 0);
    run_plain(s, ids, N, N, &base);
    cr_delta *d = random_delta(m, 8, 0.1f, 2);
    cr_session_set_delta(s, d);
    run_plain(s, ids, N, N, &r);
    cr_delta_pack(m, d);
    cr_session_reset(s);
    run_plain(s, ids, N, N, &packed);
    double change = 0, off = 0;
    for (size_t i = 0; i < N * V; i++) {
        change += pow((double)r.v[i] - (double)base.v[i], 2);
        off += pow((double)packed.v[i] - (double)r.v[i], 2);
    }
    assert_true(off <= 0.05 * 0.05 * change);
    if (m->layers[0].lin[CR_LIN_O].type == CR_Q8_0 && m->k->panel_rows)
        assert_true(off > 0);
    cr_session_free(s);
    cr_delta_free(d);
    cr_free(base.v);
    cr_free(r.v);
    cr_free(packed.v);
}

static void test_packed_delta_is_near(void **state)
{
    (void)state;
    each_model(packed_delta_is_near);
}

/* Beside the weights = merged into them: the model's own float32 matrices are changed in place. */
static void test_delta_is_merged_weights(void **state)
{
    (void)state;
    enum { N = 20 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 9);
    random_ids(&rng, ids, N);
    struct tiny t = tiny_default();
    cr_model *m = tiny_open(&t, NULL);
    size_t V = (size_t)m->n_vocab;
    struct rows beside = new_rows(N, V), merged = new_rows(N, V);
    cr_session *s = new_session(m, 0);
    cr_delta *d = random_delta(m, 70, 0.05f, 3);
    cr_session_set_delta(s, d);
    run_plain(s, ids, N, N, &beside);
    cr_session_set_delta(s, NULL);
    void *copies[3 * CR_LIN_COUNT];
    int n_copies = 0;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            struct cr_matrix *w = &m->layers[l].lin[i];
            const struct cr_low_rank *p = cr_delta_at(d, l, (enum cr_linear)i);
            float *x = cr_alloc((size_t)w->n_out, w->row_bytes);
            memcpy(x, w->data, (size_t)w->n_out * w->row_bytes);
            for (int o = 0; o < w->n_out; o++)
                for (int k = 0; k < p->rank; k++)
                    for (int c = 0; c < w->n_in; c++)
                        x[o * w->n_in + c] += p->b[o * p->rank + k] * p->a[k * w->n_in + c];
            w->data = copies[n_copies++] = x;
        }
    run_plain(s, ids, N, N, &merged);
    float worst = 0, largest = 0;
    for (size_t i = 0; i < N * V; i++) {
        worst = fmaxf(worst, fabsf(beside.v[i] - merged.v[i]));
        largest = fmaxf(largest, fabsf(merged.v[i]));
    }
    print_message("          beside against merged: logits up to %.1f differ by %.2g\n",
                  (double)largest, (double)worst);
    assert_true(worst < 1e-3f * largest); /* sums in another order, rounded into float16 caches */
    for (int i = 0; i < n_copies; i++)
        cr_free(copies[i]);
    cr_session_free(s);
    cr_delta_free(d);
    cr_model_close(m);
    cr_free(beside.v);
    cr_free(merged.v);
}

/* ---- hidden states ---- */

static void test_hidden_states(void **state)
{
    (void)state;
    enum { N = 12 };
    int32_t ids[N];
    struct cr_rng rng;
    cr_rng_init(&rng, 10);
    random_ids(&rng, ids, N);
    struct tiny t = tiny_typed("llama", CR_Q8_0);
    cr_model *m = tiny_open(&t, NULL);
    size_t E = (size_t)m->n_embd, V = (size_t)m->n_vocab;
    struct cr_batch_token tokens[N];
    for (int i = 0; i < N; i++)
        tokens[i] = (struct cr_batch_token){.id = ids[i], .pos = i, .want = i % 3 == 2};
    cr_session *s = new_session(m, 0);
    struct cr_error err;
    struct rows full = new_rows(N, E), early = new_rows(N, E), logits = new_rows(N, V);
    for (int layer = -1; layer < m->n_layers; layer++) {
        struct cr_batch b = {
            .tokens = tokens, .n = N, .on_hidden = collect, .ud = &full, .hidden_layer = layer};
        cr_session_reset(s);
        full.calls = early.calls = 0;
        assert_int_equal(cr_session_run(s, &b, &err), CR_OK);
        assert_int_equal(full.calls, N / 3);
        b.stop_at_hidden = true;
        b.ud = &early;
        cr_session_reset(s);
        assert_int_equal(cr_session_run(s, &b, &err), CR_OK);
        assert_int_equal(early.calls, N / 3);
        same_bits(full.v, early.v, N * E, "stopped early");
        if (layer == -1) {
            float embd[64];
            cr_model_embed(m, ids[2], embd);
            same_bits(embd, full.v + 2 * E, E, "embedding");
        }
    }
    /* the last state, normed and multiplied here, gives the logits */
    struct cr_batch b = {.tokens = tokens, .n = N, .on_logits = collect, .ud = &logits};
    cr_session_reset(s);
    assert_int_equal(cr_session_run(s, &b, &err), CR_OK);
    float normed[64], y[TINY_VOCAB];
    struct cr_block_q8a q[2];
    m->k->rmsnorm(normed, full.v + 2 * E, m->output_norm, E, m->norm_eps);
    m->k->quantize_q8a(q, normed, E);
    m->k->matmul[CR_Q8_0](y, V, m->output.data, m->output.row_bytes, q, sizeof q, V, 1, E);
    same_bits(y, logits.v + 2 * V, V, "logits of the last state");
    b.on_hidden = collect;
    b.hidden_layer = m->n_layers;
    assert_int_equal(cr_session_run(s, &b, &err), CR_INVALID);
    cr_session_free(s);
    cr_model_close(m);
    cr_free(full.v);
    cr_free(early.v);
    cr_free(logits.v);
}

/* ---- limits and failures ---- */

static void test_a_full_cache_runs_nothing(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *m = tiny_open(&t, NULL);
    cr_session *s = new_session(m, 8);
    struct cr_error err;
    int32_t ids[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    assert_int_equal(cr_session_ctx(s), 8);
    assert_null(cr_session_logits(s));
    assert_int_equal(cr_session_sync(s, ids, 9, NULL, &err), CR_LIMIT);
    assert_string_equal(err.msg, "session: 9 tokens do not fit in a context of 8");
    assert_int_equal(cr_session_length(s), 0);
    assert_int_equal(cr_session_sync(s, ids, 0, NULL, &err), CR_INVALID);
    sync_ids(s, ids, 8, NULL);
    assert_int_equal(cr_session_step(s, 1, &err), CR_LIMIT);
    assert_int_equal(cr_session_length(s), 8);
    size_t n_run;
    sync_ids(s, ids, 8, &n_run);
    assert_int_equal(n_run, 1);
    sync_ids(s, ids, 3, &n_run);
    assert_int_equal(n_run, 1);
    assert_int_equal(cr_session_length(s), 3);
    struct cr_batch_token tokens[6] = {{.id = 1}};
    const struct cr_batch b = {.tokens = tokens, .n = 6};
    assert_int_equal(cr_session_run(s, &b, &err), CR_LIMIT);
    cr_session_free(s);
    cr_model_close(m);
}

static void test_bad_tokens_are_refused(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *m = tiny_open(&t, NULL);
    cr_session *s = new_session(m, 16);
    struct cr_error err;
    static const int32_t bad_ids[] = {-1, TINY_VOCAB, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        int32_t ids[2] = {1, bad_ids[i]};
        assert_int_equal(cr_session_sync(s, ids, 2, NULL, &err), CR_INVALID);
        assert_int_equal(cr_session_step(s, bad_ids[i], &err), CR_INVALID);
        assert_int_equal(cr_session_length(s), 0);
    }
    int32_t ids[4] = {1, 2, 3, 4};
    sync_ids(s, ids, 4, NULL);
    static const struct cr_batch_token bad[] = {
        {.id = 1, .pos = -1},
        {.id = 1, .pos = CR_MAX_CTX},
        {.id = 1, .seg_begin = 5},
        {.id = 1, .seg_begin = -1},
        {.id = 1, .seg_begin = 4, .pre_begin = 3, .pre_end = 2},
        {.id = 1, .seg_begin = 4, .pre_begin = -1, .pre_end = 2},
        {.id = 1, .seg_begin = 4, .pre_begin = 0, .pre_end = 5},
        {.id = 1, .seg_begin = 2, .pre_begin = 0, .pre_end = 3},
        {.id = 1, .seg_begin = INT32_MAX},
        {.id = 1, .seg_begin = 4, .pre_begin = INT32_MIN, .pre_end = INT32_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct cr_batch b = {.tokens = &bad[i], .n = 1};
        assert_int_equal(cr_session_run(s, &b, &err), CR_INVALID);
        assert_int_equal(cr_session_length(s), 4);
    }
    cr_session_free(s);
    cr_model_close(m);
}

static bool always(void *ud)
{
    (void)ud;
    return true;
}

static void test_cancel_and_odd_batches(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *m = tiny_open(&t, NULL);
    cr_session *s = new_session(m, 16), *fresh = new_session(m, 16);
    struct cr_error err;
    struct cr_batch_token token = {.id = 1};
    struct cr_batch b = {.tokens = &token, .n = 1, .cancelled = always};
    assert_int_equal(cr_session_run(s, &b, &err), CR_CANCELLED);
    assert_int_equal(cr_session_length(s), 0);
    b.n = 0;
    assert_int_equal(cr_session_run(s, &b, &err), CR_OK);
    b.n = 1;
    b.cancelled = NULL;
    assert_int_equal(cr_session_run(s, &b, &err), CR_OK); /* nobody wants anything */
    assert_int_equal(cr_session_length(s), 1);
    /* cells of a batch are never taken for the sequence's */
    int32_t ids[3] = {1, 2, 3};
    assert_int_equal(cr_session_step(s, 1, &err), CR_OK);
    assert_int_equal(cr_session_length(s), 1);
    assert_int_equal(cr_session_run(s, &b, &err), CR_OK);
    assert_null(cr_session_logits(s));
    sync_ids(s, ids, 3, NULL);
    sync_ids(fresh, ids, 3, NULL);
    same_bits(cr_session_logits(s), cr_session_logits(fresh), TINY_VOCAB, "after a batch");
    cr_session_free(s);
    cr_session_free(fresh);
    cr_model_close(m);
}

static size_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    size_t total, resident = 0;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%zu %zu", &total, &resident), 2);
    fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static void test_memory_is_what_was_announced(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *m = tiny_open(&t, NULL);
    struct cr_error err;
    cr_session_free(new_session(m, 1)); /* the first one copies the weights */
    assert_true(m->info.copy_bytes > 0);
    for (int n_ctx = 0; n_ctx < 3000; n_ctx += 999) {
        size_t before = cr_mem_now();
        cr_session *s = new_session(m, n_ctx);
        assert_int_equal(cr_mem_now() - before, cr_session_bytes(m, n_ctx));
        cr_session_free(s);
        assert_int_equal(cr_mem_now(), before);
    }
    assert_int_equal(cr_session_bytes(m, -1), 0);
    assert_int_equal(cr_session_bytes(m, CR_MAX_CTX + 1), 0);
    cr_session *s;
    assert_int_equal(cr_session_new(&s, m, -1, &err), CR_INVALID);
    assert_int_equal(cr_session_new(&s, m, CR_MAX_CTX + 1, &err), CR_INVALID);
    assert_null(s);
    cr_mem_fail_at(1, false);
    assert_int_equal(cr_session_new(&s, m, 0, &err), CR_NO_MEMORY);
    assert_null(s);
    cr_mem_fail_at(0, false);
    /* a long cache costs its pages only when they are written */
    size_t resident = resident_bytes();
    s = new_session(m, 1 << 19);
    assert_true(cr_session_bytes(m, 1 << 19) > (size_t)1 << 27);
    size_t most = (size_t)1 << 22;
#ifdef __SANITIZE_ADDRESS__
    most += cr_session_bytes(m, 1 << 19) / 8; /* its shadow is written at once */
#endif
    assert_true(resident_bytes() < resident + most); /* it may also have fallen */
    /* and no step allocates */
    uint64_t count = cr_mem_count();
    for (int i = 0; i < 100; i++)
        assert_int_equal(cr_session_step(s, i, &err), CR_OK);
    assert_int_equal(cr_mem_count(), count);
    cr_session_free(s);
    cr_model_close(m);
}

static void test_a_foreign_delta_is_refused(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *m = tiny_open(&t, NULL);
    t.n_layers = 2;
    cr_model *other = tiny_open(&t, NULL);
    cr_delta *d = random_delta(other, 2, 1, 1);
    cr_session *s = new_session(m, 0);
    struct cr_error err;
    cr_session_set_delta(s, d);
    assert_int_equal(cr_session_step(s, 1, &err), CR_INVALID);
    assert_string_equal(err.msg, "session: the delta has 2 layers, the model 3");
    cr_session_free(s);
    cr_delta_free(d);
    cr_model_close(other);
    cr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_is_steps),
        cmocka_unit_test(test_packed_is_separate),
        cmocka_unit_test(test_shared_a_is_own),
        cmocka_unit_test(test_placed_is_separate),
        cmocka_unit_test(test_warm_is_cold),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_the_shipped_model),
        cmocka_unit_test(test_delta_identities),
        cmocka_unit_test(test_packed_delta_is_near),
        cmocka_unit_test(test_delta_is_merged_weights),
        cmocka_unit_test(test_hidden_states),
        cmocka_unit_test(test_a_full_cache_runs_nothing),
        cmocka_unit_test(test_bad_tokens_are_refused),
        cmocka_unit_test(test_cancel_and_odd_batches),
        cmocka_unit_test(test_memory_is_what_was_announced),
        cmocka_unit_test(test_a_foreign_delta_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
