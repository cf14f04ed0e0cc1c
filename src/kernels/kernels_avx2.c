/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX2 + FMA + F16C.
 *
 * Quantised products: 8 rows at a time, one row per 32-bit lane. A block of 8 rows is transposed
 * into a tile whose vector g holds bytes 4g..4g+3 of every row, so that four bytes of an
 * activation, broadcast, meet all rows at once and no sum ever crosses lanes. Every lane then does
 * just what kernels_ref.c says, block after block: the results are the same bits. With few tokens
 * the tile lives in registers; with many, a panel of tiles is made once and reused for all tokens.
 *
 * Float products: lanes along n, one accumulator of 8 lanes per output, the tail zero-filled, and
 * one fixed tree at the end. The tile of rows x tokens only decides which outputs are computed side
 * by side, never the order within one.
 */
#include "kernels/levels.h"
#include "kernels/plain.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum {
    LANES = 8,
    GROUPS = CR_QK / 4,
    PANEL = 48,      /* blocks in a panel: 48 * 320 bytes stay in the first-level cache */
    SIDE = 4,        /* most tokens of one inner loop: 4 sums and 4 float sums in 16 registers */
    TOKEN_TILE = 64, /* tokens per pass over the weights */
};

/* One block of 8 rows. w: unsigned codes of 4-bit types, signed ones of Q8_0. */
struct tile {
    __m256i w[GROUPS];
    __m256 d, m;
};

INLINE uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE int load_i32(const void *p)
{
    int v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* ---- quantised products ---------------------------------------------------------------- */

/* 16 bytes of each of 8 rows, as 4 vectors of one dword per row. */
INLINE void transpose_8x16(__m256i out[4], const uint8_t *p, size_t rb)
{
    __m256i a[4];
    UNROLL for (int i = 0; i < 4; i++)
    {
        __m128i lo = _mm_loadu_si128((const void *)(p + (size_t)i * rb));
        __m128i hi = _mm_loadu_si128((const void *)(p + (size_t)(i + 4) * rb));
        a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(lo), hi, 1);
    }
    __m256i t0 = _mm256_unpacklo_epi32(a[0], a[1]), t1 = _mm256_unpackhi_epi32(a[0], a[1]);
    __m256i t2 = _mm256_unpacklo_epi32(a[2], a[3]), t3 = _mm256_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm256_unpacklo_epi64(t0, t2);
    out[1] = _mm256_unpackhi_epi64(t0, t2);
    out[2] = _mm256_unpacklo_epi64(t1, t3);
    out[3] = _mm256_unpackhi_epi64(t1, t3);
}

/* The float16 at p of each of 8 rows. */
INLINE __m256 scales(const uint8_t *p, size_t rb)
{
    __m128i h = _mm_cvtsi32_si128(load_u16(p));
    h = _mm_insert_epi16(h, load_u16(p + rb), 1);
    h = _mm_insert_epi16(h, load_u16(p + 2 * rb), 2);
    h = _mm_insert_epi16(h, load_u16(p + 3 * rb), 3);
    h = _mm_insert_epi16(h, load_u16(p + 4 * rb), 4);
    h = _mm_insert_epi16(h, load_u16(p + 5 * rb), 5);
    h = _mm_insert_epi16(h, load_u16(p + 6 * rb), 6);
    h = _mm_insert_epi16(h, load_u16(p + 7 * rb), 7);
    return _mm256_cvtph_ps(h);
}

/* The block at p of each of 8 rows, rb bytes apart. */
INLINE struct tile load_tile(enum cr_type type, const uint8_t *p, size_t rb)
{
    struct tile t;
    t.d = scales(p, rb);
    t.m = type == CR_Q4_1 ? scales(p + 2, rb) : _mm256_setzero_ps();
    if (type == CR_Q8_0) {
        transpose_8x16(t.w, p + 2, rb);
        transpose_8x16(t.w + 4, p + 18, rb);
        return t;
    }
    const __m256i low = _mm256_set1_epi8(15);
    transpose_8x16(t.w, p + (type == CR_Q4_1 ? 4 : 2), rb);
    UNROLL for (int g = 0; g < 4; g++)
    {
        t.w[g + 4] = _mm256_and_si256(_mm256_srli_epi16(t.w[g], 4), low);
        t.w[g] = _mm256_and_si256(t.w[g], low);
    }
    return t;
}

/* acc[t] += tile * block t, for T activations. sums[t]: what is added to the integer product. */
INLINE void multiply(enum cr_type type, int T, __m256 *acc, const struct tile *tile,
                     const struct cr_block_q8a *const *x, const int32_t *const *sums, size_t b)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i dot[SIDE];
    UNROLL for (int g = 0; g < GROUPS; g++)
    {
        __m256i w = tile->w[g], size = _mm256_abs_epi8(w);
        UNROLL for (int t = 0; t < T; t++)
        {
            __m256i v = _mm256_set1_epi32(load_i32(x[t][b].q + 4 * g));
            if (type == CR_Q8_0) /* |w| times x with the sign of w: pairs stay below 2^15 */
                v = _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(v, w)), ones);
            else /* 8 pairs of at most 15 * 127 * 2 stay below 2^15 too */
                v = _mm256_maddubs_epi16(w, v);
            if (g == 0)
                dot[t] = v;
            else
                dot[t] =
                    type == CR_Q8_0 ? _mm256_add_epi32(dot[t], v) : _mm256_add_epi16(dot[t], v);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        const struct cr_block_q8a *xb = &x[t][b];
        __m256i sum = type == CR_Q8_0 ? dot[t] : _mm256_madd_epi16(dot[t], ones);
        if (type == CR_Q4_0)
            sum = _mm256_add_epi32(sum, _mm256_set1_epi32(sums[t][b]));
        __m256 d = _mm256_mul_ps(tile->d, _mm256_set1_ps(xb->d));
        acc[t] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(sum), acc[t]);
        if (type == CR_Q4_1)
            acc[t] = _mm256_fmadd_ps(tile->m, _mm256_set1_ps(xb->s), acc[t]);
    }
}

/* What all inner loops of one call share. */
struct job {
    float *y;
    size_t ldy;
    const uint8_t *w; /* the first of 8 rows, at the first block of the panel */
    size_t row_bytes, block_size, n_blocks;
    __m256i mask;             /* lanes that are stored */
    bool more;                /* y holds the sum of earlier panels */
    const struct tile *panel; /* NULL: take tiles straight from w */
    int32_t (*sums)[PANEL];   /* by token: -8 times the sum of each block's codes; Q4_0 only */
};

INLINE void side_by_side(enum cr_type type, int T, const struct job *j, size_t t0, const uint8_t *x,
                         size_t x_bytes)
{
    __m256 acc[SIDE];
    const struct cr_block_q8a *xt[SIDE];
    const int32_t *sums[SIDE];
    float *y[SIDE];
    UNROLL for (int t = 0; t < T; t++)
    {
        xt[t] = (const void *)(x + (t0 + (size_t)t) * x_bytes);
        sums[t] = j->sums[t0 + (size_t)t];
        y[t] = j->y + (t0 + (size_t)t) * j->ldy;
        acc[t] = j->more ? _mm256_maskload_ps(y[t], j->mask) : _mm256_setzero_ps();
    }
    if (j->panel) {
        for (size_t b = 0; b < j->n_blocks; b++)
            multiply(type, T, acc, &j->panel[b], xt, sums, b);
    } else {
        const uint8_t *w = j->w;
        for (size_t b = 0; b < j->n_blocks; b++, w += j->block_size) {
            struct tile tile = load_tile(type, w, j->row_bytes);
            multiply(type, T, acc, &tile, xt, sums, b);
        }
    }
    UNROLL for (int t = 0; t < T; t++) _mm256_maskstore_ps(y[t], j->mask, acc[t]);
}

/* One panel of 8 rows against n_tok activations. */
INLINE void rows_by_tokens(enum cr_type type, struct job *j, const uint8_t *x, size_t x_bytes,
                           size_t n_tok)
{
    struct tile panel[PANEL];
    j->panel = NULL;
    if (n_tok > SIDE) {
        for (size_t b = 0; b < j->n_blocks; b++)
            panel[b] = load_tile(type, j->w + b * j->block_size, j->row_bytes);
        j->panel = panel;
    }
    size_t t = 0;
    for (; n_tok - t >= SIDE; t += SIDE)
        side_by_side(type, SIDE, j, t, x, x_bytes);
    if (n_tok - t == 3)
        side_by_side(type, 3, j, t, x, x_bytes);
    else if (n_tok - t == 2)
        side_by_side(type, 2, j, t, x, x_bytes);
    else if (n_tok - t == 1)
        side_by_side(type, 1, j, t, x, x_bytes);
}

static void sum_codes(int32_t *sums, const struct cr_block_q8a *x, size_t n_blocks)
{
    const __m256i ones = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (size_t b = 0; b < n_blocks; b++) {
        __m256i q = _mm256_loadu_si256((const void *)x[b].q);
        q = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), ones16);
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        sums[b] = -8 * _mm_cvtsi128_si32(s);
    }
}

/* -1 in lanes [begin, end). */
INLINE __m256i lanes(size_t begin, size_t end)
{
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)begin), i),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32((int)end), i));
}

/* All rows by at most TOKEN_TILE tokens, over the blocks that j tells of. The last rows that do not
 * fill a panel are done in a panel that begins earlier, and only they are stored; where there are
 * fewer than 8 rows in all, each fills a panel alone (distance 0). */
INLINE void all_rows(enum cr_type type, struct job *j, size_t rows, const uint8_t *x,
                     size_t x_bytes, size_t n_tok)
{
    const uint8_t *w = j->w;
    float *y = j->y;
    size_t row_bytes = j->row_bytes, r = 0;
    for (; rows - r >= LANES; r += LANES) {
        j->w = w + r * row_bytes;
        j->y = y + r;
        j->mask = lanes(0, LANES);
        rows_by_tokens(type, j, x, x_bytes, n_tok);
    }
    if (r < rows && rows >= LANES) {
        j->w = w + (rows - LANES) * row_bytes;
        j->y = y + rows - LANES;
        j->mask = lanes(LANES - (rows - r), LANES);
        rows_by_tokens(type, j, x, x_bytes, n_tok);
        r = rows;
    }
    for (; r < rows; r++) {
        j->w = w + r * row_bytes;
        j->y = y + r;
        j->row_bytes = 0;
        j->mask = lanes(0, 1);
        rows_by_tokens(type, j, x, x_bytes, n_tok);
    }
    j->row_bytes = row_bytes;
}

INLINE void matmul_blocks(enum cr_type type, float *y, size_t ldy, const uint8_t *w,
                          size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t rows,
                          size_t n_tok, size_t n_blocks)
{
    int32_t sums[TOKEN_TILE][PANEL];
    struct job j = {.ldy = ldy, .row_bytes = row_bytes, .sums = sums};
    j.block_size = type == CR_Q8_0   ? sizeof(struct cr_block_q8_0)
                   : type == CR_Q4_0 ? sizeof(struct cr_block_q4_0)
                                     : sizeof(struct cr_block_q4_1);
    for (size_t t = 0; n_blocks == 0 && t < n_tok; t++)
        memset(y + t * ldy, 0, rows * sizeof *y);
    for (size_t b = 0; b < n_blocks; b += PANEL) {
        j.n_blocks = n_blocks - b < PANEL ? n_blocks - b : PANEL;
        j.more = b > 0;
        for (size_t t = 0; t < n_tok; t += TOKEN_TILE) {
            size_t n = n_tok - t < TOKEN_TILE ? n_tok - t : TOKEN_TILE;
            const uint8_t *xt = x + t * x_bytes + b * sizeof(struct cr_block_q8a);
            for (size_t i = 0; type == CR_Q4_0 && i < n; i++)
                sum_codes(sums[i], (const void *)(xt + i * x_bytes), j.n_blocks);
            j.w = w + b * j.block_size;
            j.y = y + t * ldy;
            all_rows(type, &j, rows, xt, x_bytes, n);
        }
    }
}

#define MATMUL_BLOCKS(name, type)                                                                  \
    static void matmul_##name(float *y, size_t ldy, const void *w, size_t row_bytes,               \
                              const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)  \
    {                                                                                              \
        matmul_blocks(type, y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n / CR_QK);             \
    }
MATMUL_BLOCKS(q8_0, CR_Q8_0)
MATMUL_BLOCKS(q4_0, CR_Q4_0)
MATMUL_BLOCKS(q4_1, CR_Q4_1)

/* d = max|x| / 127. The bits of |x| order like the numbers, and NaN and infinity above them all. */
static void quantize_q8a(struct cr_block_q8a *dst, const float *x, size_t n)
{
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i lo = _mm256_set1_epi32(-127), hi = _mm256_set1_epi32(127);
    for (size_t b = 0; b < n / CR_QK; b++, x += CR_QK) {
        __m256 v[4];
        __m256i top = _mm256_setzero_si256(), q[4];
        UNROLL for (int i = 0; i < 4; i++)
        {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            top = _mm256_max_epi32(top, _mm256_castps_si256(_mm256_and_ps(v[i], no_sign)));
        }
        __m128i m = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
        bool finite = _mm_cvtsi128_si32(m) < 0x7f800000;
        float d = finite ? _mm_cvtss_f32(_mm_castsi128_ps(m)) / 127 : NAN;
        __m256i sum = _mm256_setzero_si256();
        if (d > 0) {
            UNROLL for (int i = 0; i < 4; i++)
            {
                q[i] = _mm256_cvtps_epi32(_mm256_div_ps(v[i], _mm256_set1_ps(d)));
                q[i] = _mm256_min_epi32(_mm256_max_epi32(q[i], lo), hi);
                sum = _mm256_add_epi32(sum, q[i]);
            }
        } else {
            q[0] = q[1] = q[2] = q[3] = sum;
        }
        __m256i q16a = _mm256_packs_epi32(q[0], q[1]), q16b = _mm256_packs_epi32(q[2], q[3]);
        __m256i q8 = _mm256_packs_epi16(q16a, q16b); /* dwords in the order 0 2 4 6 1 3 5 7 */
        q8 = _mm256_permutevar8x32_epi32(q8, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((void *)dst[b].q, q8);
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        dst[b].d = d;
        dst[b].s = d * (float)_mm_cvtsi128_si32(s);
    }
}

/* ---- float products -------------------------------------------------------------------- */

enum { FLOAT_ROWS = 4, FLOAT_SIDE = 3 };

INLINE __m256 widen_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* 8 values of type F32, F16 or BF16. */
INLINE __m256 load_8(enum cr_type type, const uint8_t *p)
{
    if (type == CR_F32)
        return _mm256_loadu_ps((const void *)p);
    __m128i h = _mm_loadu_si128((const void *)p);
    return type == CR_F16 ? _mm256_cvtph_ps(h) : widen_bf16(h);
}

/* The first n < 8 of them, then zeros. */
INLINE __m256 load_tail(enum cr_type type, const uint8_t *p, size_t n)
{
    uint8_t buf[32] = {0};
    memcpy(buf, p, n * (type == CR_F32 ? 4 : 2));
    return load_8(type, buf);
}

/* The one tree: ((0+1)+(2+3)) + ((4+5)+(6+7)). */
INLINE float sum_lanes(__m256 v)
{
    v = _mm256_hadd_ps(v, v);
    v = _mm256_hadd_ps(v, v);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}

/* The same tree for four vectors at once. */
INLINE __m128 sum_lanes_4(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

/* R rows by T tokens. */
INLINE void float_tile(enum cr_type type, int R, int T, float *y, size_t ldy, const uint8_t *w,
                       size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t n)
{
    const size_t size = type == CR_F32 ? 4 : 2;
    __m256 acc[FLOAT_ROWS][FLOAT_SIDE], xv[FLOAT_SIDE];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++) acc[r][t] =
        _mm256_setzero_ps();
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) {
        UNROLL for (int t = 0; t < T; t++) xv[t] =
            _mm256_loadu_ps((const void *)(x + (size_t)t * x_bytes + 4 * i));
        UNROLL for (int r = 0; r < R; r++)
        {
            __m256 wv = load_8(type, w + (size_t)r * row_bytes + size * i);
            UNROLL for (int t = 0; t < T; t++) acc[r][t] = _mm256_fmadd_ps(wv, xv[t], acc[r][t]);
        }
    }
    if (i < n) {
        UNROLL for (int t = 0; t < T; t++) xv[t] =
            load_tail(CR_F32, x + (size_t)t * x_bytes + 4 * i, n - i);
        UNROLL for (int r = 0; r < R; r++)
        {
            __m256 wv = load_tail(type, w + (size_t)r * row_bytes + size * i, n - i);
            UNROLL for (int t = 0; t < T; t++) acc[r][t] = _mm256_fmadd_ps(wv, xv[t], acc[r][t]);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        if (R == 4)
            _mm_storeu_ps(y + (size_t)t * ldy,
                          sum_lanes_4(acc[0][t], acc[1][t], acc[2][t], acc[3][t]));
        else
            y[(size_t)t * ldy] = sum_lanes(acc[0][t]);
    }
}

INLINE void float_rows(enum cr_type type, int R, float *y, size_t ldy, const uint8_t *w,
                       size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t n_tok, size_t n)
{
    size_t t = 0;
    for (; n_tok - t >= FLOAT_SIDE; t += FLOAT_SIDE)
        float_tile(type, R, FLOAT_SIDE, y + t * ldy, ldy, w, row_bytes, x + t * x_bytes, x_bytes,
                   n);
    for (; t < n_tok; t++)
        float_tile(type, R, 1, y + t * ldy, ldy, w, row_bytes, x + t * x_bytes, x_bytes, n);
}

INLINE void matmul_floats(enum cr_type type, float *y, size_t ldy, const uint8_t *w,
                          size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t rows,
                          size_t n_tok, size_t n)
{
    for (size_t t = 0; t < n_tok; t += TOKEN_TILE) {
        size_t nt = n_tok - t < TOKEN_TILE ? n_tok - t : TOKEN_TILE, r = 0;
        for (; rows - r >= FLOAT_ROWS; r += FLOAT_ROWS)
            float_rows(type, FLOAT_ROWS, y + t * ldy + r, ldy, w + r * row_bytes, row_bytes,
                       x + t * x_bytes, x_bytes, nt, n);
        for (; r < rows; r++)
            float_rows(type, 1, y + t * ldy + r, ldy, w + r * row_bytes, row_bytes, x + t * x_bytes,
                       x_bytes, nt, n);
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
    __m256 acc[4];
    UNROLL for (int k = 0; k < 4; k++) acc[k] = _mm256_setzero_ps();
    size_t i = 0;
    for (; n - i >= 4 * LANES; i += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++) acc[k] =
            _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * k), _mm256_loadu_ps(b + i + 8 * k), acc[k]);
    for (; n - i >= LANES; i += LANES)
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), acc[0]);
    if (i < n)
        acc[1] = _mm256_fmadd_ps(load_tail(CR_F32, (const void *)(a + i), n - i),
                                 load_tail(CR_F32, (const void *)(b + i), n - i), acc[1]);
    return sum_lanes(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
}

/* ---- conversions ----------------------------------------------------------------------- */

static void dequantize_f32(float *dst, const void *src, size_t n)
{
    cr_dequantize_ref(CR_F32, dst, src, n);
}

static void dequantize_f16(float *dst, const void *src, size_t n)
{
    const uint8_t *p = src;
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        _mm256_storeu_ps(dst + i, load_8(CR_F16, p + 2 * i));
    cr_dequantize_ref(CR_F16, dst + i, p + 2 * i, n - i);
}

static void dequantize_bf16(float *dst, const void *src, size_t n)
{
    const uint8_t *p = src;
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        _mm256_storeu_ps(dst + i, load_8(CR_BF16, p + 2 * i));
    cr_dequantize_ref(CR_BF16, dst + i, p + 2 * i, n - i);
}

/* dst[i] = d * q[i] + m for 16 signed codes; the sum rounds by itself, as in the reference. */
INLINE void store_16(float *dst, __m128i q, __m256 d, __m256 m)
{
    __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
    __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q)));
    _mm256_storeu_ps(dst, _mm256_add_ps(_mm256_mul_ps(a, d), m));
    _mm256_storeu_ps(dst + 8, _mm256_add_ps(_mm256_mul_ps(b, d), m));
}

static void dequantize_q8_0(float *dst, const void *src, size_t n)
{
    const uint8_t *p = src;
    const __m256 minus_zero = _mm256_set1_ps(-0.0f); /* adds nothing, not even to -0 */
    for (size_t i = 0; i < n; i += CR_QK, p += sizeof(struct cr_block_q8_0)) {
        __m256 d = _mm256_set1_ps(_cvtsh_ss(load_u16(p)));
        store_16(dst + i, _mm_loadu_si128((const void *)(p + 2)), d, minus_zero);
        store_16(dst + i + 16, _mm_loadu_si128((const void *)(p + 18)), d, minus_zero);
    }
}

INLINE void dequantize_q4(enum cr_type type, float *dst, const uint8_t *p, size_t n)
{
    const __m128i low = _mm_set1_epi8(15);
    const __m128i off = _mm_set1_epi8(type == CR_Q4_0 ? 8 : 0);
    const size_t head = type == CR_Q4_0 ? 2 : 4;
    __m256 m = _mm256_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += CR_QK, p += head + 16) {
        __m256 d = _mm256_set1_ps(_cvtsh_ss(load_u16(p)));
        if (type == CR_Q4_1)
            m = _mm256_set1_ps(_cvtsh_ss(load_u16(p + 2)));
        __m128i q = _mm_loadu_si128((const void *)(p + head));
        store_16(dst + i, _mm_sub_epi8(_mm_and_si128(q, low), off), d, m);
        q = _mm_and_si128(_mm_srli_epi16(q, 4), low);
        store_16(dst + i + 16, _mm_sub_epi8(q, off), d, m);
    }
}

static void dequantize_q4_0(float *dst, const void *src, size_t n)
{
    dequantize_q4(CR_Q4_0, dst, src, n);
}

static void dequantize_q4_1(float *dst, const void *src, size_t n)
{
    dequantize_q4(CR_Q4_1, dst, src, n);
}

static void f32_to_f16(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        _mm_storeu_si128((void *)(dst + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++)
        dst[i] = cr_f32_to_f16(src[i]);
}

/* ---- norm, softmax, silu --------------------------------------------------------------- */

static void rmsnorm(float *y, const float *x, const float *w, size_t n, float eps)
{
    float r = 1 / sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * r * w[i];
}

/* e^x = 2^k e^r, |r| <= ln 2 / 2, e^r by a polynomial of degree 6 (minimax in relative error,
 * 2^-28). 2^k is applied in two factors, so that results go gradually to zero and to infinity.
 * Error bound: docs/numerics.md. NaN stays NaN: the operand order of min and max matters. */
INLINE __m256 exp_8(__m256 x)
{
    x = _mm256_min_ps(_mm256_set1_ps(89), _mm256_max_ps(_mm256_set1_ps(-105), x));
    __m256 k = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(0x1.6a23dp-10f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.123a2p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558f2p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555492p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1));
    __m256i n = _mm256_cvtps_epi32(k), half = _mm256_srai_epi32(n, 1);
    __m256i rest = _mm256_sub_epi32(n, half), bias = _mm256_set1_epi32(127);
    __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(p, a), b);
}

static void softmax(float *x, size_t n)
{
    const size_t tail = n % LANES, whole = n - tail;
    const __m256i mask = lanes(0, tail);
    __m256 top = _mm256_set1_ps(x[0]), sum = _mm256_setzero_ps(), e;
    for (size_t i = 0; i < whole; i += LANES)
        top = _mm256_max_ps(_mm256_loadu_ps(x + i), top);
    if (tail) /* lanes that are not loaded repeat x[0] */
        top = _mm256_max_ps(_mm256_blendv_ps(_mm256_set1_ps(x[0]),
                                             _mm256_maskload_ps(x + whole, mask),
                                             _mm256_castsi256_ps(mask)),
                            top);
    top = _mm256_max_ps(top, _mm256_permute2f128_ps(top, top, 1));
    top = _mm256_max_ps(top, _mm256_permute_ps(top, 0x4e));
    top = _mm256_max_ps(top, _mm256_permute_ps(top, 0xb1));
    for (size_t i = 0; i < whole; i += LANES) {
        e = exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + i), top));
        _mm256_storeu_ps(x + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    if (tail) {
        e = exp_8(_mm256_sub_ps(_mm256_maskload_ps(x + whole, mask), top));
        _mm256_maskstore_ps(x + whole, mask, e);
        sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(mask)));
    }
    float r = 1 / sum_lanes(sum);
    for (size_t i = 0; i < n; i++)
        x[i] *= r;
}

INLINE __m256 silu_8(__m256 g, __m256 u)
{
    __m256 e = exp_8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e)), u);
}

static void silu_mul(float *g, const float *u, size_t n)
{
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        _mm256_storeu_ps(g + i, silu_8(_mm256_loadu_ps(g + i), _mm256_loadu_ps(u + i)));
    if (i < n) {
        __m256i mask = lanes(0, n - i);
        __m256 v = silu_8(_mm256_maskload_ps(g + i, mask), _mm256_maskload_ps(u + i, mask));
        _mm256_maskstore_ps(g + i, mask, v);
    }
}

/* ---- attention over a float16 cache ---------------------------------------------------- */

static void attn_scores_f16(float *s, const float *q, const uint16_t *k, size_t stride, size_t n_kv,
                            size_t d, float scale)
{
    matmul_floats(CR_F16, s, 0, (const void *)k, stride * sizeof *k, (const void *)q, 0, n_kv, 1,
                  d);
    for (size_t j = 0; j < n_kv; j++)
        s[j] *= scale;
}

/* Columns [i, i + 8 C): the sums stay in registers over all j. */
INLINE void mix_columns(int C, float *y, const float *p, const uint16_t *v, size_t stride,
                        size_t n_kv)
{
    __m256 acc[8];
    UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_loadu_ps(y + 8 * c);
    for (size_t j = 0; j < n_kv; j++, v += stride) {
        __m256 pj = _mm256_set1_ps(p[j]);
        UNROLL for (int c = 0; c < C; c++) acc[c] =
            _mm256_fmadd_ps(pj, load_8(CR_F16, (const void *)(v + 8 * c)), acc[c]);
    }
    UNROLL for (int c = 0; c < C; c++) _mm256_storeu_ps(y + 8 * c, acc[c]);
}

static void attn_mix_f16(float *y, const float *p, const uint16_t *v, size_t stride, size_t n_kv,
                         size_t d)
{
    size_t i = 0;
    for (; d - i >= 64; i += 64)
        mix_columns(8, y + i, p, v + i, stride, n_kv);
    for (; d - i >= LANES; i += LANES)
        mix_columns(1, y + i, p, v + i, stride, n_kv);
    for (; i < d; i++)
        for (size_t j = 0; j < n_kv; j++)
            y[i] = fmaf(p[j], cr_f16_to_f32(v[j * stride + i]), y[i]);
}

/* By hand, because GCC 12 vectorises the plain loop with fused operations in spite of
 * -ffp-contract=off. */
static void rope_norm(float *x, const float *cs, size_t d)
{
    const __m256 even = _mm256_castsi256_ps(_mm256_set1_epi64x((long long)0x80000000u));
    size_t i = 0;
    for (; d - i >= LANES; i += LANES) {
        __m256 v = _mm256_loadu_ps(x + i), a = _mm256_loadu_ps(cs + i);
        __m256 c = _mm256_moveldup_ps(a), s = _mm256_movehdup_ps(a);
        __m256 turned = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), s);
        v = _mm256_add_ps(_mm256_mul_ps(v, c), _mm256_xor_ps(turned, even));
        _mm256_storeu_ps(x + i, v);
    }
    for (; i + 1 < d; i += 2) {
        float a = x[i], b = x[i + 1], c = cs[i], s = cs[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

const struct cr_kernels cr_kernels_avx2 = {
    .name = "avx2",
    .level = CR_CPU_AVX2,
    .matmul = {[CR_F32] = matmul_f32,
               [CR_F16] = matmul_f16,
               [CR_BF16] = matmul_bf16,
               [CR_Q8_0] = matmul_q8_0,
               [CR_Q4_0] = matmul_q4_0,
               [CR_Q4_1] = matmul_q4_1},
    .quantize_q8a = quantize_q8a,
    .dequantize = {[CR_F32] = dequantize_f32,
                   [CR_F16] = dequantize_f16,
                   [CR_BF16] = dequantize_bf16,
                   [CR_Q8_0] = dequantize_q8_0,
                   [CR_Q4_0] = dequantize_q4_0,
                   [CR_Q4_1] = dequantize_q4_1},
    .f32_to_f16 = f32_to_f16,
    .rmsnorm = rmsnorm,
    .softmax = softmax,
    .silu_mul = silu_mul,
    .add = add,
    .axpy = axpy,
    .dot = dot,
    .attn_scores_f16 = attn_scores_f16,
    .attn_mix_f16 = attn_mix_f16,
    .rope_norm = rope_norm,
    .rope_neox = rope_neox,
};
