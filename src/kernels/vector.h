/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Float kernels, written once for all vector widths. A level defines LANES and a vector type `vf`
 * with the small operations named v_ below, includes this file, and gets every table entry except
 * the quantised products and quantize_q8a.
 *
 *     v_zero() v_set1(a) v_load(p) v_store(p, v)      whole vectors, any address
 *     v_load_part(p, n) v_store_part(p, v, n)         n < LANES floats; zeros beyond
 *     v_lanes(begin, end) v_store_mask(p, v, mask)    only those lanes
 *     v_columns(out, p, rb)                           4 floats of each of LANES rows, by column
 *     v_load_f16(p) v_load_bf16(p) v_load_i8(p)       LANES values widened to float
 *     v_set1_f16(p)                                   one value, in every lane
 *     v_store_f16(p, v)                               round to nearest even
 *     v_add v_sub v_mul v_div                         v_fma(a, b, c) = a b + c, rounded once
 *     v_max(a, b) v_min(a, b)                         NaN where b is NaN
 *     v_round(v) v_scale(v, k)                        to nearest even; v 2^k, rounded once
 *     v_sum(v) v_top(v)                               over lanes, one fixed tree
 *     v_sum_tile(y, ldy, T, acc)                      y[t * ldy + r] = v_sum(acc[r][t]), 4 rows
 *
 * A sum over n runs in lanes: lane l adds the terms l, l + LANES, ... in order, the tail is filled
 * with zeros, and v_sum adds the lanes. Products of at most NARROW float32 columns, such as the
 * second factor of a low-rank change, would spend their time in v_sum: there a lane is a row
 * instead and adds its terms in order. FLOAT_ROWS x FLOAT_SIDE outputs are computed side by side,
 * but nothing of that can be seen in a result: every output has its own accumulator. A level that
 * defines CR_WIDENS widens so many columns of bfloat16 tokens, at most, before products with rows.
 */
#ifndef CR_VECTOR_H
#define CR_VECTOR_H

#include "kernels/groups.h"
#include "kernels/levels.h"
#include "kernels/plain.h"

#include <math.h>
#include <string.h>

/* ---- products -------------------------------------------------------------------------- */

/* LANES values of type F32, F16 or BF16. */
INLINE vf load_values(enum cr_type type, const uint8_t *p)
{
    return type == CR_F16    ? v_load_f16((const void *)p)
           : type == CR_BF16 ? v_load_bf16((const void *)p)
                             : v_load((const void *)p);
}

/* The first n < LANES of them, then zeros. */
INLINE vf load_last(enum cr_type type, const uint8_t *p, size_t n)
{
    if (type == CR_F32)
        return v_load_part((const void *)p, n);
    uint16_t buf[LANES] = {0};
    memcpy(buf, p, n * sizeof *buf);
    return load_values(type, (const void *)buf);
}

/* Where a tile of outputs lies. */
struct floats {
    float *y;
    size_t ldy;
    const uint8_t *w, *x;
    size_t row_bytes, x_bytes, n;
};

/* acc[r][t] += w[r] x[t] at column i; `part` columns, or LANES when it is 0. */
INLINE void float_step(enum cr_type type, enum cr_type x_type, int R, int T,
                       vf acc[FLOAT_ROWS][FLOAT_SIDE], const struct floats *f, size_t i,
                       size_t part)
{
    const size_t size = type == CR_F32 ? 4 : 2, x_size = x_type == CR_F32 ? 4 : 2;
    vf x[FLOAT_SIDE];
    UNROLL for (int t = 0; t < T; t++)
    {
        const uint8_t *p = f->x + (size_t)t * f->x_bytes + x_size * i;
        x[t] = part ? load_last(x_type, p, part) : load_values(x_type, p);
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        const uint8_t *p = f->w + (size_t)r * f->row_bytes + size * i;
        vf w = part ? load_last(type, p, part) : load_values(type, p);
        UNROLL for (int t = 0; t < T; t++)
        {
            acc[r][t] = v_fma(w, x[t], acc[r][t]);
        }
    }
}

/* R rows (1 or 4) by T tokens. */
INLINE void float_tile(enum cr_type type, enum cr_type x_type, int R, int T, const struct floats *f)
{
    vf acc[FLOAT_ROWS][FLOAT_SIDE];
    size_t i = 0;
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int t = 0; t < T; t++)
        {
            acc[r][t] = v_zero();
        }
    }
    for (; f->n - i >= LANES; i += LANES)
        float_step(type, x_type, R, T, acc, f, i, 0);
    if (i < f->n)
        float_step(type, x_type, R, T, acc, f, i, f->n - i);
    if (R == 4) {
        v_sum_tile(f->y, f->ldy, T, acc);
        return;
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        f->y[(size_t)t * f->ldy] = v_sum(acc[0][t]);
    }
}

/* All rows by T tokens. */
INLINE void float_rows(enum cr_type type, enum cr_type x_type, int T, struct floats f, size_t rows)
{
    for (size_t r = 0, step; r < rows; r += step) {
        step = rows - r >= FLOAT_ROWS ? FLOAT_ROWS : 1;
        if (step == FLOAT_ROWS)
            float_tile(type, x_type, FLOAT_ROWS, T, &f);
        else
            float_tile(type, x_type, 1, T, &f);
        f.w += step * f.row_bytes;
        f.y += step;
    }
}

/* All rows by one token: FLOAT_ROWS streams of rows, each in the order of memory. */
INLINE void float_streams(enum cr_type type, enum cr_type x_type, struct floats f, size_t rows)
{
    for (size_t run; (run = stream_length(rows, FLOAT_ROWS, f.row_bytes)) > 0;
         rows -= FLOAT_ROWS * run) {
        float sums[FLOAT_ROWS];
        struct floats tile = f;
        tile.y = sums;
        tile.row_bytes = run * f.row_bytes;
        for (size_t r = 0; r < run; r++, tile.w += f.row_bytes) {
            float_tile(type, x_type, FLOAT_ROWS, 1, &tile);
            for (size_t i = 0; i < FLOAT_ROWS; i++)
                f.y[i * run + r] = sums[i];
        }
        f.w += FLOAT_ROWS * run * f.row_bytes;
        f.y += FLOAT_ROWS * run;
    }
    float_rows(type, x_type, 1, f, rows);
}

enum { NARROW = 64 };

/* The columns of LANES rows as vectors, a last group of fewer than 4 filled with zeros. */
INLINE void load_columns(vf out[NARROW], const uint8_t *w, size_t row_bytes, size_t n)
{
    size_t i = 0;
    for (; n - i >= 4; i += 4)
        v_columns(out + i, w + 4 * i, row_bytes);
    if (i < n) {
        float buf[LANES][4] = {{0}};
        for (size_t r = 0; r < LANES; r++)
            memcpy(buf[r], w + r * row_bytes + 4 * i, 4 * (n - i));
        v_columns(out + i, (const void *)buf, sizeof buf[0]);
    }
}

/* LANES rows by T tokens. */
INLINE void narrow_tile(int T, const struct floats *f, const vf *columns, vm mask)
{
    vf acc[8];
    UNROLL for (int t = 0; t < T; t++)
    {
        acc[t] = v_zero();
    }
    for (size_t i = 0; i < f->n; i++) {
        UNROLL for (int t = 0; t < T; t++)
        {
            float x;
            memcpy(&x, f->x + (size_t)t * f->x_bytes + 4 * i, sizeof x);
            acc[t] = v_fma(columns[i], v_set1(x), acc[t]);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        v_store_mask(f->y + (size_t)t * f->ldy, acc[t], mask);
    }
}

INLINE void narrow_rows(struct floats f, size_t n_tok, vm mask)
{
    vf columns[NARROW];
    load_columns(columns, f.w, f.row_bytes, f.n);
    while (n_tok > 0) {
        size_t step = n_tok >= 8 ? 8 : n_tok >= 4 ? 4 : 1;
        if (step == 8)
            narrow_tile(8, &f, columns, mask);
        else if (step == 4)
            narrow_tile(4, &f, columns, mask);
        else
            narrow_tile(1, &f, columns, mask);
        f.y += step * f.ldy;
        f.x += step * f.x_bytes;
        n_tok -= step;
    }
}

/* The last rows as in blocks.h: in a group that begins earlier, or each alone. */
static void matmul_narrow(struct floats all, size_t rows, size_t n_tok)
{
    for (size_t r = 0; r < rows;) {
        struct floats f = all;
        bool alone = rows < LANES;
        size_t first = alone || rows - r >= LANES ? r : rows - LANES;
        f.w += first * f.row_bytes;
        f.y += first;
        f.row_bytes = alone ? 0 : f.row_bytes;
        narrow_rows(f, n_tok, alone ? v_lanes(0, 1) : v_lanes(r - first, LANES));
        r = alone ? r + 1 : first + LANES;
    }
}

INLINE void dequantize_halves(enum cr_type type, float *dst, const uint8_t *p, size_t n);

#if defined(CR_WIDENS)
/* FLOAT_SIDE tokens in bfloat16, widened once for all rows: else that is half of the work. */
INLINE void widened_rows(struct floats f, size_t rows)
{
    float x[FLOAT_SIDE * CR_WIDENS];
    for (size_t t = 0; t < FLOAT_SIDE; t++)
        dequantize_halves(CR_BF16, x + t * f.n, f.x + t * f.x_bytes, f.n);
    f.x = (const void *)x;
    f.x_bytes = f.n * sizeof *x;
    float_rows(CR_BF16, CR_F32, FLOAT_SIDE, f, rows);
}
#endif

/* A few tokens stay in the first-level cache while they meet the rows of a pass, which stay in the
 * second. */
INLINE void matmul_floats(enum cr_type type, float *y, size_t ldy, const void *w, size_t row_bytes,
                          const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    struct floats f = {
        .y = y, .ldy = ldy, .w = w, .x = x, .row_bytes = row_bytes, .x_bytes = x_bytes, .n = n};
    if (type == CR_F32 && n <= NARROW) {
        matmul_narrow(f, rows, n_tok);
        return;
    }
    const enum cr_type x_type = type == CR_BF16 ? CR_BF16 : CR_F32;
    if (n_tok == 1) {
        float_streams(type, x_type, f, rows);
        return;
    }
    const size_t pass = rows_in_pass(row_bytes);
    for (size_t r = 0; r < rows; r += pass) {
        const size_t some = rows - r < pass ? rows - r : pass;
        for (size_t t = 0, step; t < n_tok; t += step) {
            f.w = (const uint8_t *)w + r * row_bytes;
            f.x = (const uint8_t *)x + t * x_bytes;
            f.y = y + t * ldy + r;
            step = n_tok - t >= FLOAT_SIDE ? FLOAT_SIDE : n_tok - t >= 2 ? 2 : 1;
#if defined(CR_WIDENS)
            if (type == CR_BF16 && step == FLOAT_SIDE && n <= CR_WIDENS) {
                widened_rows(f, some);
                continue;
            }
#endif
            if (step == FLOAT_SIDE)
                float_rows(type, x_type, FLOAT_SIDE, f, some);
            else if (step == 2)
                float_rows(type, x_type, 2, f, some);
            else
                float_rows(type, x_type, 1, f, some);
        }
    }
}

#define MATMUL_FLOATS(name, type)                                                                  \
    static void matmul_##name(float *y, size_t ldy, const void *w, size_t row_bytes,               \
                              const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)  \
    {                                                                                              \
        matmul_floats(type, y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);                     \
    }
MATMUL_FLOATS(f32, CR_F32)
MATMUL_FLOATS(f16, CR_F16)
MATMUL_FLOATS(bf16, CR_BF16)

static float dot(const float *a, const float *b, size_t n)
{
    vf acc[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    size_t i = 0;
    for (; n - i >= 4 * LANES; i += 4 * LANES) {
        UNROLL for (size_t k = 0; k < 4; k++)
        {
            acc[k] = v_fma(v_load(a + i + k * LANES), v_load(b + i + k * LANES), acc[k]);
        }
    }
    for (; n - i >= LANES; i += LANES)
        acc[0] = v_fma(v_load(a + i), v_load(b + i), acc[0]);
    if (i < n)
        acc[1] = v_fma(v_load_part(a + i, n - i), v_load_part(b + i, n - i), acc[1]);
    return v_sum(v_add(v_add(acc[0], acc[1]), v_add(acc[2], acc[3])));
}

/* ---- conversions ----------------------------------------------------------------------- */

INLINE void dequantize_halves(enum cr_type type, float *dst, const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        v_store(dst + i, load_values(type, p + 2 * i));
    if (i < n)
        v_store_part(dst + i, load_last(type, p + 2 * i, n - i), n - i);
}

/* The product and the sum round apart, as in the reference. Without a minimum, -0 is added: it
 * changes nothing, not even -0. */
INLINE void store_group(float *dst, const struct group *g, float m)
{
    UNROLL for (size_t i = 0; i < CR_QK; i += LANES)
    {
        v_store(dst + i, v_add(v_mul(v_load_i8(g->q + i), v_set1(g->d[i / 16])), v_set1(m)));
    }
}

INLINE void dequantize_blocks(enum cr_type type, float *dst, const uint8_t *p, size_t n)
{
    const size_t size = cr_type_info(type)->block_size;
    for (size_t i = 0; i < n; p += size) {
        for (int j = 0; j < groups_of(type); j++, i += CR_QK) {
            struct group g;
            unpack_group(&g, type, p, j);
            store_group(dst + i, &g, has_minimum(type) ? g.m : -0.0f);
        }
    }
}

static void dequantize_f32(float *dst, const void *src, size_t n)
{
    if (n > 0)
        memcpy(dst, src, n * sizeof *dst);
}

static void dequantize_f16(float *dst, const void *src, size_t n)
{
    dequantize_halves(CR_F16, dst, src, n);
}

static void dequantize_bf16(float *dst, const void *src, size_t n)
{
    dequantize_halves(CR_BF16, dst, src, n);
}

#define DEQUANTIZE_BLOCKS(name, type)                                                              \
    static void dequantize_##name(float *dst, const void *src, size_t n)                           \
    {                                                                                              \
        dequantize_blocks(type, dst, src, n);                                                      \
    }
DEQUANTIZE_BLOCKS(q8_0, CR_Q8_0)
DEQUANTIZE_BLOCKS(q4_0, CR_Q4_0)
DEQUANTIZE_BLOCKS(q4_1, CR_Q4_1)
DEQUANTIZE_BLOCKS(q5_0, CR_Q5_0)
DEQUANTIZE_BLOCKS(q5_1, CR_Q5_1)
DEQUANTIZE_BLOCKS(q4_k, CR_Q4_K)
DEQUANTIZE_BLOCKS(q5_k, CR_Q5_K)
DEQUANTIZE_BLOCKS(q6_k, CR_Q6_K)
DEQUANTIZE_BLOCKS(iq4_nl, CR_IQ4_NL)

static void f32_to_f16(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        v_store_f16(dst + i, v_load(src + i));
    if (i < n) {
        uint16_t buf[LANES];
        v_store_f16(buf, v_load_part(src + i, n - i));
        memcpy(dst + i, buf, (n - i) * sizeof *buf);
    }
}

/* ---- norm, softmax, silu --------------------------------------------------------------- */

static void rmsnorm(float *y, const float *x, const float *w, size_t n, float eps)
{
    float r = 1 / sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * r * w[i];
}

/* e^x = 2^k e^r with |r| <= ln 2 / 2; e^r by a polynomial of degree 6, minimax in relative error
 * (2^-28), its coefficients by Lawson's iteration. ln 2 in two pieces. Results go gradually to zero
 * and to infinity; NaN stays NaN. Error bound: docs/numerics.md. */
INLINE vf v_exp(vf x)
{
    x = v_min(v_set1(89), v_max(v_set1(-105), x));
    vf k = v_round(v_mul(x, v_set1(0x1.715476p+0f)));
    vf r = v_fma(k, v_set1(-0x1.62e4p-1f), x);
    r = v_fma(k, v_set1(-0x1.7f7d1cp-20f), r);
    vf p = v_set1(0x1.6a23dp-10f);
    p = v_fma(p, r, v_set1(0x1.123a2p-7f));
    p = v_fma(p, r, v_set1(0x1.5558f2p-5f));
    p = v_fma(p, r, v_set1(0x1.555492p-3f));
    p = v_fma(p, r, v_set1(0x1.fffffcp-2f));
    p = v_fma(p, v_mul(r, r), r);
    return v_scale(v_add(p, v_set1(1)), k);
}

static void softmax(float *x, size_t n)
{
    vf top = v_set1(x[0]), sum = v_zero();
    const size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES)
        top = v_max(v_load(x + i), top);
    float most = v_top(top);
    for (size_t i = whole; i < n; i++)
        most = x[i] > most ? x[i] : most;
    const vf shift = v_set1(-most);
    for (size_t i = 0; i < whole; i += LANES) {
        vf e = v_exp(v_add(v_load(x + i), shift));
        v_store(x + i, e);
        sum = v_add(sum, e);
    }
    if (whole < n) {
        v_store_part(x + whole, v_exp(v_add(v_load_part(x + whole, n - whole), shift)), n - whole);
        sum = v_add(sum, v_load_part(x + whole, n - whole));
    }
    float r = 1 / v_sum(sum);
    for (size_t i = 0; i < n; i++)
        x[i] *= r;
}

INLINE vf v_silu(vf g)
{
    return v_div(g, v_add(v_set1(1), v_exp(v_sub(v_zero(), g))));
}

static void silu_mul(float *g, const float *u, size_t n)
{
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        v_store(g + i, v_mul(v_silu(v_load(g + i)), v_load(u + i)));
    if (i < n)
        v_store_part(g + i, v_mul(v_silu(v_load_part(g + i, n - i)), v_load_part(u + i, n - i)),
                     n - i);
}

INLINE vf v_gelu(vf g)
{
    vf cube = v_mul(v_mul(g, g), g);
    vf z = v_mul(v_set1(-1.5957691216f), v_fma(v_set1(0.044715f), cube, g));
    return v_div(g, v_add(v_set1(1), v_exp(z)));
}

static void gelu_mul(float *g, const float *u, size_t n)
{
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        v_store(g + i, v_mul(v_gelu(v_load(g + i)), v_load(u + i)));
    if (i < n)
        v_store_part(g + i, v_mul(v_gelu(v_load_part(g + i, n - i)), v_load_part(u + i, n - i)),
                     n - i);
}

/* ---- attention over a float16 cache ---------------------------------------------------- */

/* The arguments of one call, moved on to the heads at work. */
struct attention {
    float *out;
    const float *in; /* heads, or probabilities */
    const uint16_t *kv;
    size_t ldo, ldi, ldv, begin, end, d;
    float scale;
};

/* V vectors of cells, from c on, by T heads: a lane is a cell. */
INLINE void score_cells(int V, int T, const struct attention *a, size_t c)
{
    vf acc[4][4];
    const uint16_t *k[4];
    UNROLL for (int v = 0; v < V; v++)
    {
        size_t cell = c + (size_t)v * LANES;
        k[v] = a->kv + cell / CR_KV_TILE * a->d * CR_KV_TILE + cell % CR_KV_TILE;
        UNROLL for (int t = 0; t < T; t++)
        {
            acc[v][t] = v_zero();
        }
    }
    for (size_t i = 0; i < a->d; i++) {
        vf key[4];
        UNROLL for (int v = 0; v < V; v++)
        {
            key[v] = v_load_f16(k[v] + i * CR_KV_TILE);
        }
        UNROLL for (int t = 0; t < T; t++)
        {
            vf q = v_set1(a->in[(size_t)t * a->ldi + i]);
            UNROLL for (int v = 0; v < V; v++)
            {
                acc[v][t] = v_fma(key[v], q, acc[v][t]);
            }
        }
    }
    UNROLL for (int v = 0; v < V; v++)
    {
        size_t cell = c + (size_t)v * LANES, first = cell < a->begin ? a->begin - cell : 0;
        size_t last = a->end - cell < LANES ? a->end - cell : LANES;
        UNROLL for (int t = 0; t < T; t++)
        {
            float *s = a->out + (size_t)t * a->ldo + cell - a->begin;
            vf scaled = v_mul(acc[v][t], v_set1(a->scale));
            if (first == 0 && last == LANES)
                v_store(s, scaled);
            else
                v_store_mask(s, scaled, v_lanes(first, last));
        }
    }
}

/* Few heads have few sums in flight: they take more cells at a time, as registers allow. */
INLINE void score_heads(int T, const struct attention *a)
{
    enum { MOST = 4, MOST_HEADS = LANES == 16 ? 3 : 1 };
    size_t c = a->begin / LANES * LANES;
    for (; T <= MOST_HEADS && a->end > c + (MOST - 1) * LANES; c += MOST * LANES)
        score_cells(MOST, T, a, c);
    for (; a->end > c + LANES; c += 2 * LANES)
        score_cells(2, T, a, c);
    if (a->end > c)
        score_cells(1, T, a, c);
}

static void attn_scores_f16(float *s, size_t lds, const float *q, size_t ldq, size_t n_q,
                            const uint16_t *k, size_t begin, size_t end, size_t d, float scale)
{
    struct attention a = {s, q, k, lds, ldq, 0, begin, end, d, scale};
    for (size_t t = 0, step; t < n_q; t += step) {
        step = n_q - t >= 4 ? 4 : n_q - t;
        a.out = s + t * lds;
        a.in = q + t * ldq;
        if (step == 4)
            score_heads(4, &a);
        else if (step == 3)
            score_heads(3, &a);
        else if (step == 2)
            score_heads(2, &a);
        else
            score_heads(1, &a);
    }
}

/* C vectors of columns, from i on, by T heads: their sums stay in registers over all cells. */
INLINE void mix_columns(int C, int T, const struct attention *a, size_t i)
{
    vf acc[4][4];
    UNROLL for (int t = 0; t < T; t++)
    {
        UNROLL for (int c = 0; c < C; c++)
        {
            acc[t][c] = v_load(a->out + (size_t)t * a->ldo + i + (size_t)c * LANES);
        }
    }
    const uint16_t *v = a->kv + i;
    for (size_t j = 0; j < a->end; j++, v += a->ldv) {
        vf value[4];
        UNROLL for (int c = 0; c < C; c++)
        {
            value[c] = v_load_f16(v + c * LANES);
        }
        UNROLL for (int t = 0; t < T; t++)
        {
            vf p = v_set1(a->in[(size_t)t * a->ldi + j]);
            UNROLL for (int c = 0; c < C; c++)
            {
                acc[t][c] = v_fma(p, value[c], acc[t][c]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        UNROLL for (int c = 0; c < C; c++)
        {
            v_store(a->out + (size_t)t * a->ldo + i + (size_t)c * LANES, acc[t][c]);
        }
    }
}

INLINE void mix_heads(int T, const struct attention *a)
{
    size_t i = 0;
    for (; a->d - i >= MIX_COLUMNS * LANES; i += MIX_COLUMNS * LANES)
        mix_columns(MIX_COLUMNS, T, a, i);
    for (; a->d - i >= 2 * LANES; i += 2 * LANES)
        mix_columns(2, T, a, i);
    for (; a->d - i >= LANES; i += LANES)
        mix_columns(1, T, a, i);
    for (; i < a->d; i++)
        for (int t = 0; t < T; t++) {
            float *y = a->out + (size_t)t * a->ldo + i;
            for (size_t j = 0; j < a->end; j++)
                *y = fmaf(a->in[(size_t)t * a->ldi + j], cr_f16_to_f32(a->kv[j * a->ldv + i]), *y);
        }
}

static void attn_mix_f16(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                         const uint16_t *v, size_t ldv, size_t n, size_t d)
{
    struct attention a = {y, p, v, ldy, ldp, ldv, 0, n, d, 1};
    for (size_t t = 0, step; t < n_q; t += step) {
        step = n_q - t >= MIX_SIDE ? MIX_SIDE : n_q - t;
        a.out = y + t * ldy;
        a.in = p + t * ldp;
        if (step == MIX_SIDE)
            mix_heads(MIX_SIDE, &a);
        else if (step == 3)
            mix_heads(3, &a);
        else if (step == 2)
            mix_heads(2, &a);
        else
            mix_heads(1, &a);
    }
}

/* n rows of B blocks: their sums stay in registers over all rows. */
INLINE void mix_blocks(int B, float *y, const float *p, const struct cr_block_q8_0 *v, size_t ldv,
                       size_t n)
{
    enum { C = CR_QK / LANES };
    vf acc[2][C];
    UNROLL for (int b = 0; b < B; b++)
    {
        UNROLL for (int c = 0; c < C; c++)
        {
            acc[b][c] = v_load(y + b * CR_QK + c * LANES);
        }
    }
    for (size_t j = 0; j < n; j++, v += ldv) {
        const vf weight = v_set1(p[j]);
        UNROLL for (int b = 0; b < B; b++)
        {
            const vf w = v_mul(weight, v_set1_f16(&v[b].d));
            UNROLL for (int c = 0; c < C; c++)
            {
                acc[b][c] = v_fma(w, v_load_i8(v[b].q + c * LANES), acc[b][c]);
            }
        }
    }
    UNROLL for (int b = 0; b < B; b++)
    {
        UNROLL for (int c = 0; c < C; c++)
        {
            v_store(y + b * CR_QK + c * LANES, acc[b][c]);
        }
    }
}

static void mix_q8_0(float *y, const float *p, const struct cr_block_q8_0 *v, size_t ldv, size_t n,
                     size_t d)
{
    for (; d >= 2 * CR_QK; d -= 2 * CR_QK, y += 2 * CR_QK, v += 2)
        mix_blocks(2, y, p, v, ldv, n);
    if (d)
        mix_blocks(1, y, p, v, ldv, n);
}

/* The entries of a level's table that come from here. */
#define VECTOR_KERNELS                                                                             \
    .dequantize = {[CR_F32] = dequantize_f32,   [CR_F16] = dequantize_f16,                         \
                   [CR_BF16] = dequantize_bf16, [CR_Q8_0] = dequantize_q8_0,                       \
                   [CR_Q4_0] = dequantize_q4_0, [CR_Q4_1] = dequantize_q4_1,                       \
                   [CR_Q5_0] = dequantize_q5_0, [CR_Q5_1] = dequantize_q5_1,                       \
                   [CR_Q4_K] = dequantize_q4_k, [CR_Q5_K] = dequantize_q5_k,                       \
                   [CR_Q6_K] = dequantize_q6_k, [CR_IQ4_NL] = dequantize_iq4_nl},                  \
    .f32_to_f16 = f32_to_f16, .f32_to_bf16 = f32_to_bf16, .rmsnorm = rmsnorm, .softmax = softmax,  \
    .silu_mul = silu_mul, .gelu_mul = gelu_mul, .add = add, .axpy = axpy, .dot = dot,              \
    .attn_scores_f16 = attn_scores_f16, .attn_mix_f16 = attn_mix_f16, .mix_q8_0 = mix_q8_0,        \
    .rope_norm = rope_norm, .rope_neox = rope_neox

#endif
