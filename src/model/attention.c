/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over the KV cache, which holds float16 or 8 bits with a scale for each 32 values.
 *
 * A piece of work is one kv head with a few tokens that see the same cells: all of its query heads
 * by those tokens are rows, computed block of cells by block of cells, so that a block is read from
 * far away once. Scores are kept whole: one softmax in a fixed order, so that nothing depends on
 * how the cells were cut. A single token with many cells, which all threads share, takes three
 * rounds instead: scores by blocks, softmax by heads, the mix by columns. It gives the same bits.
 */
#include "model/session_impl.h"

#include <string.h>

enum {
    BLOCK = 256,         /* cells that a block has: their keys stay in the nearest caches */
    COLUMNS = CR_QK,     /* of a head that one thread mixes: a cache line of values */
    LONG = 512,          /* cells from which on threads share a single token's head */
    INLINE_OPS = 1 << 16 /* products that one thread does before others have woken up */
};

/* Bias, norm and rotation (angles NULL: none) of the heads of one vector. */
static void turn_heads(const cr_session *s, float *x, int n_heads, const float *bias,
                       const float *norm, const float *angles)
{
    size_t D = (size_t)s->m->head_dim;
    if (bias)
        s->k->add(x, bias, (size_t)n_heads * D);
    for (int h = 0; h < n_heads; h++, x += D) {
        if (norm)
            s->k->rmsnorm(x, x, norm, D, s->m->norm_eps);
        if (angles)
            (s->m->rope_neox ? s->k->rope_neox : s->k->rope_norm)(x, angles,
                                                                  (size_t)s->m->rope_dim);
    }
}

float *cr_token_angles(const cr_session *s, size_t t, int rope)
{
    size_t at = t * (size_t)s->m->n_ropes + (size_t)rope;
    return rope < 0 ? NULL : s->angles + at * (size_t)s->m->rope_dim;
}

/* ---- the cache ---- */

size_t cr_cache_tile_bytes(const cr_model *m)
{
    size_t D = (size_t)m->head_dim;
    return m->kv == CR_KV_Q8_0 ? cr_kv8_tile(D) : CR_KV_TILE * D * sizeof(uint16_t);
}

/* Where the keys, or values, of the layer's kv head begin. */
static char *head_cells(const cr_session *s, char *cache, size_t kv_head)
{
    size_t head = (size_t)s->layer * (size_t)s->m->n_kv_heads + kv_head;
    return cache + head * (cr_whole_tiles((size_t)s->n_ctx) / CR_KV_TILE) * s->tile_bytes;
}

static void store_f16(const cr_session *s, char *keys, char *values, size_t cell, const float *k,
                      const float *v)
{
    size_t D = (size_t)s->m->head_dim;
    uint16_t half[CR_KV_TILE], *to = (uint16_t *)(void *)keys;
    for (size_t i = 0; i < D; i += CR_KV_TILE) {
        size_t n = D - i < CR_KV_TILE ? D - i : CR_KV_TILE;
        s->k->f32_to_f16(half, k + i, n);
        for (size_t j = 0; j < n; j++)
            to[(i + j) * CR_KV_TILE + cell] = half[j];
    }
    s->k->f32_to_f16((uint16_t *)(void *)values + cell * D, v, D);
}

static void store_q8(const cr_session *s, char *keys, char *values, size_t cell, const float *k,
                     const float *v)
{
    size_t D = (size_t)s->m->head_dim;
    uint16_t *k_scales = (uint16_t *)(void *)(keys + CR_KV_TILE * D);
    uint16_t *v_scales = (uint16_t *)(void *)(values + CR_KV_TILE * D);
    for (size_t i = 0; i < D; i += CR_QK) {
        struct cr_block_q8a b;
        s->k->quantize_q8a(&b, k + i, CR_QK);
        k_scales[i / CR_QK * CR_KV_TILE + cell] = cr_f32_to_f16(b.d);
        for (size_t j = 0; j < CR_QK; j++)
            keys[((i + j) / 4 * CR_KV_TILE + cell) * 4 + j % 4] = (char)(b.q[j] ^ s->k->kv_flip);
        s->k->quantize_q8a(&b, v + i, CR_QK);
        v_scales[i / CR_QK * CR_KV_TILE + cell] = cr_f32_to_f16(b.d);
        memcpy(values + cell * D + i, b.q, CR_QK);
    }
}

/* k and v of one token into the cache. */
static void store_cell(cr_session *s, size_t cell, const float *k, const float *v)
{
    size_t D = (size_t)s->m->head_dim, tile = cell / CR_KV_TILE * s->tile_bytes;
    for (size_t h = 0; h < (size_t)s->m->n_kv_heads; h++, k += D, v += D)
        (s->m->kv == CR_KV_Q8_0 ? store_q8 : store_f16)(s, head_cells(s, s->k_cache, h) + tile,
                                                        head_cells(s, s->v_cache, h) + tile,
                                                        cell % CR_KV_TILE, k, v);
}

/* A part of a tile: `count` rows of one piece of `unit` bytes for each cell. */
struct lines {
    size_t base, unit, count;
};

/* Copies n cells between their places in two tiles. */
static void copy_lines(char *to, size_t b, const char *from, size_t a, size_t n, struct lines l)
{
    for (size_t i = 0; i < l.count; i++)
        memcpy(to + l.base + (i * CR_KV_TILE + b) * l.unit,
               from + l.base + (i * CR_KV_TILE + a) * l.unit, n * l.unit);
}

void cr_cache_copy(cr_session *s, size_t from, size_t to, size_t n)
{
    const size_t D = (size_t)s->m->head_dim, heads = (size_t)(s->m->n_layers * s->m->n_kv_heads);
    const size_t head_bytes = cr_whole_tiles((size_t)s->n_ctx) / CR_KV_TILE * s->tile_bytes;
    const bool q8 = s->m->kv == CR_KV_Q8_0;
    const struct lines scales = {CR_KV_TILE * D, sizeof(uint16_t), q8 ? D / CR_QK : 0};
    const struct lines keys = {0, q8 ? 4 : sizeof(uint16_t), q8 ? D / 4 : D};
    const struct lines values = {0, q8 ? D : D * sizeof(uint16_t), 1};
    for (size_t h = 0; h < heads; h++)
        for (size_t c = 0, run; c < n; c += run) { /* within one tile each */
            const size_t a = (from + c) % CR_KV_TILE, b = (to + c) % CR_KV_TILE;
            const size_t src = h * head_bytes + (from + c) / CR_KV_TILE * s->tile_bytes;
            const size_t dst = h * head_bytes + (to + c) / CR_KV_TILE * s->tile_bytes;
            run = CR_KV_TILE - cr_larger(a, b);
            run = run < n - c ? run : n - c;
            copy_lines(s->k_cache + dst, b, s->k_cache + src, a, run, keys);
            copy_lines(s->k_cache + dst, b, s->k_cache + src, a, run, scales);
            copy_lines(s->v_cache + dst, b, s->v_cache + src, a, run, values);
            copy_lines(s->v_cache + dst, b, s->v_cache + src, a, run, scales);
        }
}

void cr_attention_place(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const cr_model *m = s->m;
    const struct cr_layer *w = &m->layers[s->layer];
    size_t KV = (size_t)m->kv_dim;
    for (size_t t = begin; t < end; t++) {
        const float *angles = cr_token_angles(s, t, w->rope);
        float *k = s->k_new + t * KV, *v = s->v_new + t * KV;
        turn_heads(s, s->q + t * (size_t)m->q_dim, m->n_heads, w->bias_q, w->norm_q, angles);
        turn_heads(s, k, m->n_kv_heads, w->bias_k, w->norm_k, angles);
        if (w->bias_v)
            s->k->add(v, w->bias_v, KV);
        store_cell(s, (size_t)s->tokens[t].t.cell, k, v);
    }
}

/* What a token sees: cells [pre, pre + n_pre) of a shared prefix and then [seg, seg + n_seg). */
struct view {
    size_t pre, n_pre, seg, n_seg;
};

static struct view view_of(const cr_session *s, size_t t)
{
    const struct cr_batch_token *tok = &s->tokens[t].t;
    struct view v = {(size_t)tok->pre_begin, (size_t)(tok->pre_end - tok->pre_begin),
                     (size_t)tok->seg_begin, (size_t)(tok->cell + 1 - tok->seg_begin)};
    size_t window = (size_t)s->m->layers[s->layer].window;
    if (window && v.n_pre + v.n_seg > window) { /* the end of what it saw */
        size_t skip = v.n_pre + v.n_seg - window, of_pre = skip < v.n_pre ? skip : v.n_pre;
        v.pre += of_pre;
        v.n_pre -= of_pre;
        v.seg += skip - of_pre;
        v.n_seg -= skip - of_pre;
    }
    return v;
}

/* ---- rows ---- */

/* Tokens t0 .. t0 + n - 1 by query heads h0 .. h0 + n_heads - 1 of one kv head; token t's scores
 * with head h are row h * n + t. */
struct rows {
    cr_session *s;
    size_t t0, n, h0, n_heads, kv_head;
    float *scores;
    struct cr_block_q8a *q8; /* [n_heads, n, D / 32], for a cache of 8 bits */
};

/* A call's share of the rows: tokens side by side with one head, or heads with one token. */
struct call {
    const float *q;
    const struct cr_block_q8a *q8;
    float *y, *scores;
    size_t n, ldq, ldq8, lds;
};

static size_t calls_of(const struct rows *r)
{
    return r->n >= r->n_heads ? r->n_heads : r->n;
}

static struct call call_at(const struct rows *r, size_t i)
{
    const cr_session *s = r->s;
    const bool tokens = r->n >= r->n_heads;
    const size_t D = (size_t)s->m->head_dim, Q = (size_t)s->m->q_dim, ctx = (size_t)s->n_ctx;
    const size_t at = tokens ? r->t0 * Q + (r->h0 + i) * D : (r->t0 + i) * Q + r->h0 * D;
    const size_t row = tokens ? i * r->n : i, step = tokens ? 1 : r->n;
    return (struct call){.q = s->q + at,
                         .q8 = r->q8 + row * (D / CR_QK),
                         .y = s->att + at,
                         .scores = r->scores + row * ctx,
                         .n = tokens ? r->n : r->n_heads,
                         .ldq = tokens ? Q : D,
                         .ldq8 = step * (D / CR_QK),
                         .lds = step * ctx};
}

static void quantise_heads(const struct rows *r)
{
    const cr_session *s = r->s;
    size_t D = (size_t)s->m->head_dim, Q = (size_t)s->m->q_dim;
    for (size_t h = 0; h < r->n_heads && s->m->kv == CR_KV_Q8_0; h++)
        for (size_t t = 0; t < r->n; t++)
            s->k->quantize_q8a(r->q8 + (h * r->n + t) * (D / CR_QK),
                               s->q + (r->t0 + t) * Q + (r->h0 + h) * D, D);
}

/* Scores with cells [begin, end), from place `at` of every row on. */
static void score(const struct rows *r, size_t at, size_t begin, size_t end)
{
    const cr_session *s = r->s;
    const size_t D = (size_t)s->m->head_dim;
    const char *keys = head_cells(s, s->k_cache, r->kv_head);
    for (size_t i = 0; i < calls_of(r); i++) {
        const struct call c = call_at(r, i);
        if (s->m->kv == CR_KV_Q8_0)
            s->k->attn_scores_q8(c.scores + at, c.lds, c.q8, c.ldq8, c.n, (const void *)keys, begin,
                                 end, D, s->m->attn_scale);
        else
            s->k->attn_scores_f16(c.scores + at, c.lds, c.q, c.ldq, c.n, (const void *)keys, begin,
                                  end, D, s->m->attn_scale);
    }
}

/* Adds columns [first, last) of cells [begin, end), whose weights stand from place `at` on, for one
 * call, or for one row of it. */
static void mix(const struct rows *r, const struct call *c, size_t at, size_t begin, size_t end,
                size_t first, size_t last)
{
    const cr_session *s = r->s;
    const size_t D = (size_t)s->m->head_dim;
    const char *values = head_cells(s, s->v_cache, r->kv_head);
    if (s->m->kv == CR_KV_Q8_0)
        s->k->attn_mix_q8(c->y, c->ldq, c->scores + at, c->lds, c->n, (const void *)values, begin,
                          end, D, first, last);
    else
        s->k->attn_mix_f16(c->y + first, c->ldq, c->scores + at, c->lds, c->n,
                           (const uint16_t *)(const void *)values + begin * D + first, D,
                           end - begin, last - first);
}

/* The end of the block that begins at cell b. */
static size_t block_end(size_t b, size_t end)
{
    size_t e = (b / BLOCK + 1) * BLOCK;
    return e < end ? e : end;
}

static void score_all(const struct rows *r, size_t at, size_t begin, size_t end)
{
    for (size_t b = begin, e; b < end; b = e) {
        e = block_end(b, end);
        score(r, at + b - begin, b, e);
    }
}

static void mix_all(const struct rows *r, size_t at, size_t begin, size_t end)
{
    for (size_t b = begin, e; b < end; b = e) {
        e = block_end(b, end);
        for (size_t i = 0; i < calls_of(r); i++) {
            const struct call c = call_at(r, i);
            mix(r, &c, at + b - begin, b, e, 0, (size_t)r->s->m->head_dim);
        }
    }
}

/* The tokens' views differ in n_seg only. The cells are computed for all of them as far as any
 * sees; each takes its own part. */
static void attend_rows(const struct rows *r)
{
    cr_session *s = r->s;
    const size_t D = (size_t)s->m->head_dim, Q = (size_t)s->m->q_dim, ctx = (size_t)s->n_ctx;
    const struct view all = view_of(s, r->t0);
    size_t n_seg[SIDE], most = 0, least = SIZE_MAX;
    for (size_t t = 0; t < r->n; t++) {
        n_seg[t] = view_of(s, r->t0 + t).n_seg;
        most = cr_larger(most, n_seg[t]);
        least = n_seg[t] < least ? n_seg[t] : least;
    }
    quantise_heads(r);
    score_all(r, 0, all.pre, all.pre + all.n_pre);
    score_all(r, all.n_pre, all.seg, all.seg + most);
    for (size_t h = 0; h < r->n_heads; h++)
        for (size_t t = 0; t < r->n; t++) {
            s->k->softmax(r->scores + (h * r->n + t) * ctx, all.n_pre + n_seg[t]);
            memset(s->att + (r->t0 + t) * Q + (r->h0 + h) * D, 0, D * sizeof(float));
        }
    mix_all(r, 0, all.pre, all.pre + all.n_pre);
    mix_all(r, all.n_pre, all.seg, all.seg + least);
    for (size_t t = 0; t < r->n; t++)
        for (size_t h = 0; h < r->n_heads && n_seg[t] > least; h++) {
            const struct call c = {.y = s->att + (r->t0 + t) * Q + (r->h0 + h) * D,
                                   .scores = r->scores + (h * r->n + t) * ctx,
                                   .n = 1};
            mix(r, &c, all.n_pre + least, all.seg + least, all.seg + n_seg[t], 0, D);
        }
}

/* ---- pieces of work ---- */

static size_t heads_of_kv(const cr_session *s)
{
    return (size_t)(s->m->n_heads / s->m->n_kv_heads);
}

/* Tokens t0 .. t0 + n - 1, some of which see other cells than others, with one kv head. */
static void attend_tokens(cr_session *s, size_t t0, size_t n, size_t kv_head, int thread)
{
    const size_t heads = heads_of_kv(s), last = t0 + n;
    float *scores = s->scores + (size_t)thread * SIDE * HEADS * (size_t)s->n_ctx;
    struct cr_block_q8a q8[SIDE * HEADS * CR_MAX_HEAD_DIM / CR_QK];
    for (size_t t = t0; t < last;) {
        const struct view a = view_of(s, t);
        size_t same = 1;
        for (; t + same < last; same++) {
            const struct view b = view_of(s, t + same);
            if (a.pre != b.pre || a.n_pre != b.n_pre || a.seg != b.seg)
                break;
        }
        for (size_t h = 0; h < heads; h += HEADS)
            attend_rows(&(struct rows){.s = s,
                                       .t0 = t,
                                       .n = same,
                                       .h0 = kv_head * heads + h,
                                       .n_heads = heads - h < HEADS ? heads - h : HEADS,
                                       .kv_head = kv_head,
                                       .scores = scores,
                                       .q8 = q8});
        t += same;
    }
}

/* Items are kv heads times groups of SIDE tokens, head by head, so that a head's cache is read
 * while it is near. */
static void attend(void *ud, size_t begin, size_t end, int thread)
{
    cr_session *s = ud;
    size_t groups = (s->n + SIDE - 1) / SIDE;
    for (size_t i = begin; i < end; i++) {
        size_t t = i % groups * SIDE;
        attend_tokens(s, t, t + SIDE < s->n ? SIDE : s->n - t, i / groups, thread);
    }
}

/* ---- one token, many cells ---- */

/* The query heads of a kv head with the only token: whole rows at their own place in s->scores. */
static struct rows only_token(cr_session *s, size_t kv_head, struct cr_block_q8a *q8)
{
    const size_t heads = heads_of_kv(s);
    return (struct rows){.s = s,
                         .n = 1,
                         .h0 = kv_head * heads,
                         .n_heads = heads,
                         .kv_head = kv_head,
                         .scores = s->scores + kv_head * heads * (size_t)s->n_ctx,
                         .q8 = q8};
}

static size_t blocks_in(size_t n)
{
    return (n + BLOCK - 1) / BLOCK;
}

static void long_scores(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const struct view v = view_of(s, 0);
    const size_t of_pre = blocks_in(v.n_pre), of_seg = blocks_in(v.n_seg);
    struct cr_block_q8a q8[HEADS * CR_MAX_HEAD_DIM / CR_QK];
    for (size_t i = begin; i < end; i++) {
        const struct rows r = only_token(s, i / (of_pre + of_seg), q8);
        const size_t b = i % (of_pre + of_seg);
        const bool pre = b < of_pre;
        const size_t first = (pre ? b : b - of_pre) * BLOCK, n = pre ? v.n_pre : v.n_seg;
        const size_t from = (pre ? v.pre : v.seg) + first;
        quantise_heads(&r);
        score(&r, (pre ? 0 : v.n_pre) + first, from,
              from + (n - first < BLOCK ? n - first : BLOCK));
    }
}

static void long_softmax(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const struct view v = view_of(s, 0);
    for (size_t h = begin; h < end; h++)
        s->k->softmax(s->scores + h * (size_t)s->n_ctx, v.n_pre + v.n_seg);
}

static void long_mix(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const struct view v = view_of(s, 0);
    const size_t pieces = (size_t)s->m->head_dim / COLUMNS, D = (size_t)s->m->head_dim;
    for (size_t i = begin; i < end; i++) {
        const struct rows r = only_token(s, i / pieces, NULL);
        const struct call c = {.y = s->att + r.h0 * D,
                               .scores = r.scores,
                               .n = r.n_heads,
                               .ldq = D,
                               .lds = (size_t)s->n_ctx};
        const size_t first = i % pieces * COLUMNS, last = first + COLUMNS;
        for (size_t h = 0; h < r.n_heads; h++)
            memset(c.y + h * D + first, 0, COLUMNS * sizeof(float));
        mix(&r, &c, 0, v.pre, v.pre + v.n_pre, first, last);
        mix(&r, &c, v.n_pre, v.seg, v.seg + v.n_seg, first, last);
    }
}

static bool is_long(const cr_session *s, size_t cells)
{
    return s->n == 1 && cells >= LONG && cr_threads_count(s->m->threads) > 1 &&
           s->m->head_dim % COLUMNS == 0 && heads_of_kv(s) <= HEADS;
}

void cr_attention_run(cr_session *s)
{
    cr_threads *threads = s->m->threads;
    const size_t groups = (s->n + SIDE - 1) / SIDE, kv_heads = (size_t)s->m->n_kv_heads;
    const struct view v = view_of(s, s->n - 1);
    const size_t cells = v.n_pre + v.n_seg;
    if (s->n == 1 && cells * (size_t)s->m->q_dim <= INLINE_OPS) {
        attend(s, 0, kv_heads, 0);
    } else if (is_long(s, cells)) {
        cr_threads_run_dynamic(threads, kv_heads * (blocks_in(v.n_pre) + blocks_in(v.n_seg)), 1,
                               long_scores, s);
        cr_threads_run_dynamic(threads, (size_t)s->m->n_heads, 1, long_softmax, s);
        cr_threads_run_dynamic(threads, kv_heads * (size_t)s->m->head_dim / COLUMNS, 1, long_mix,
                               s);
    } else {
        cr_threads_run_dynamic(threads, groups * kv_heads,
                               groups < ROW_GRAIN / 2 ? 1 : ROW_GRAIN / 4, attend, s);
    }
}
