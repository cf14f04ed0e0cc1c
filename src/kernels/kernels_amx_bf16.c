/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AMX-BF16: products with BF16 and F16 weights. TDPBF16PS takes 16 x 16 outputs 32 columns further:
 * it sums the products of the even and of the odd columns, each in order from 0 on by fused
 * multiply-adds, and adds even + odd to the output; subnormal numbers are zeros. A few tokens wait
 * for memory, and do the same by AVX-512, with the same bits.
 *
 * F16 keeps the accuracy of float32: a float16 is the sum of two bfloat16, hi + lo, and a float32
 * that of three, x1 + x2 + x3, so that all products are exact. hi x1 is one sum; hi x3, hi x2, lo
 * x2 and lo x1, in this order and 2^-8 of it at most, are another; lo x3, 2^-24 of it, is left out.
 *
 * Weights are read in panels of 16 rows, one tile of 16 pairs of columns after the other, packed so
 * or brought into that order here: of BF16 row r's pair k is at 16 k + r; of F16 the even ones of
 * 16 rows come first and then the odd ones. Columns are cut into pieces of even length, at most
 * MAX_STEPS tiles, whose sums are added in order: it depends on n only.
 */
#include "kernels/tile16.h"

#include <string.h>

enum {
    SIDE = 16,      /* rows or tokens of a tile */
    COLUMNS = 32,   /* of a tile, 64 bytes */
    MAX_STEPS = 24, /* tiles of a piece of columns */
    TERMS = 3,      /* of a float32 */
    FEW = 4,        /* tokens that wait for memory */
    AHEAD = 8192,   /* bytes; the processor looks ahead no further than a small page */
};

typedef struct {
    _Alignas(64) uint8_t at[SIDE][64];
} operand;

/* Tile registers: sums, tokens, weights. Macros, because the intrinsics make text of them. */
#define SUM0 0
#define SUM1 1
#define SUM2 2
#define SUM3 3
#define FIRST0 4
#define FIRST1 5
#define SECOND0 6
#define SECOND1 7

static void configure(void)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = SIDE;
        c.row_bytes[i] = 64;
    }
    load_config(&c);
}

struct job {
    float *y;
    size_t ldy;
    const uint8_t *w, *x; /* at the first column of the piece */
    size_t row_bytes, x_bytes, term_bytes, rows, n_tok;
    size_t steps, columns; /* of the piece: tiles, columns of w from there on */
    bool packed;           /* w is panels, row_bytes apart */
    bool more;             /* y holds the sum of earlier pieces */
};

INLINE int terms_of(enum cr_type type)
{
    return type == CR_F16 ? TERMS : 1;
}

/* ---- operands -------------------------------------------------------------------------- */

/* The upper halves of 32 floats. */
INLINE __m512i upper_halves(__m512i a, __m512i b)
{
    static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                     23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                     45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(a, _mm512_loadu_si512(odd), b);
}

/* The upper half of each float, and what it leaves of it: both exact. */
INLINE __m512 top_of(__m512i v)
{
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000)));
}

INLINE __m512 rest_of(__m512 v)
{
    return _mm512_sub_ps(v, top_of(_mm512_castps_si512(v)));
}

INLINE __m512i bf16_of(__m512 a, __m512 b)
{
    return upper_halves(_mm512_castps_si512(a), _mm512_castps_si512(b));
}

INLINE __mmask32 first_columns(size_t n)
{
    return n >= COLUMNS ? 0xffffffffu : (1u << n) - 1;
}

static void split_f32(uint16_t *dst, const float *src, size_t n)
{
    const size_t term = cr_split_columns(n);
    for (size_t i = 0; i < n; i += COLUMNS) {
        const __mmask32 m = first_columns(n - i);
        __m512 a = _mm512_maskz_loadu_ps((__mmask16)m, src + i);
        __m512 b = _mm512_maskz_loadu_ps((__mmask16)(m >> 16), src + i + 16);
        UNROLL for (size_t t = 0; t < TERMS; t++)
        {
            _mm512_storeu_si512(dst + t * term + i, bf16_of(a, b));
            a = rest_of(a);
            b = rest_of(b);
        }
    }
}

/* 16 rows of 16 pairs as 16 pairs of 16 rows. */
INLINE void turn(operand *out, const uint8_t *p, size_t row_bytes)
{
    UNROLL for (int i = 0; i < 4; i++)
    {
        __m512i v[4];
        transpose_16x16(v, p + 16 * i, row_bytes);
        UNROLL for (int g = 0; g < 4; g++)
        {
            _mm512_store_si512(out->at[4 * i + g], v[g]);
        }
    }
}

/* Tile s of the panel of F16 or BF16 whose first row is at w; of its rows `rows` are there. */
INLINE void load_panel(enum cr_type type, operand *out, const uint8_t *w, size_t row_bytes,
                       size_t rows, size_t columns, size_t s)
{
    const __mmask32 m = first_columns(columns - COLUMNS * s);
    w += 64 * s;
    if (rows >= SIDE && m == 0xffffffffu) {
        turn(out, w, row_bytes);
    } else {
        operand a;
        for (size_t i = 0; i < SIDE; i++)
            _mm512_store_si512(a.at[i], i < rows ? _mm512_maskz_loadu_epi16(m, w + i * row_bytes)
                                                 : _mm512_setzero_si512());
        turn(out, a.at[0], 64);
    }
    for (int k = 0; type == CR_F16 && k < SIDE; k++) { /* even columns, then odd ones */
        __m512i v = _mm512_load_si512(out->at[k]);
        _mm256_store_si256((void *)out->at[k], _mm512_cvtepi32_epi16(v));
        _mm256_store_si256((void *)(out->at[k] + 32),
                           _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
    }
}

INLINE __m512 load_halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}

/* Pairs of hi, or of what hi leaves, from even and odd values. */
INLINE __m512i pairs_of(__m512 even, __m512 odd)
{
    __m512i a = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, a, _mm512_castps_si512(odd));
}

INLINE void split_panel(operand *hi, operand *lo, const uint8_t *tile)
{
    for (int k = 0; k < SIDE; k++) {
        const __m512 even = load_halves(tile + 64 * k), odd = load_halves(tile + 64 * k + 32);
        _mm512_store_si512(hi->at[k], pairs_of(even, odd));
        _mm512_store_si512(lo->at[k], pairs_of(rest_of(even), rest_of(odd)));
    }
}

INLINE size_t rows_at(const struct job *j, size_t r)
{
    return j->rows - r < SIDE ? j->rows - r : SIDE;
}

/* Tile s of the panel of rows r .. r + 15: where it lies, or made at `made`. */
INLINE const uint8_t *panel_tile(enum cr_type type, operand *made, const struct job *j, size_t r,
                                 size_t s)
{
    if (j->packed)
        return j->w + r / SIDE * j->row_bytes + s * sizeof(operand);
    load_panel(type, made, j->w + r * j->row_bytes, j->row_bytes, rows_at(j, r), j->columns, s);
    return made->at[0];
}

/* ---- results --------------------------------------------------------------------------- */

typedef struct {
    __m512 at[SIDE]; /* by token; lanes are rows */
} outputs;

/* y[i][..] = sums (+ small), after what earlier pieces left there. */
INLINE void add_outputs(enum cr_type type, const struct job *j, float *y, const __m512 *sums,
                        const __m512 *small, size_t n_tok, __mmask16 rows)
{
    for (size_t i = 0; i < n_tok; i++, y += j->ldy) {
        __m512 v = sums[i];
        if (type == CR_F16)
            v = _mm512_add_ps(v, small[i]);
        if (j->more)
            v = _mm512_add_ps(_mm512_maskz_loadu_ps(rows, y), v);
        _mm512_mask_storeu_ps(y, rows, v);
    }
}

INLINE __mmask16 rows_from(const struct job *j, size_t r)
{
    return (__mmask16)((1u << rows_at(j, r)) - 1);
}

/* ---- many tokens ----------------------------------------------------------------------- */

/* 16 tokens of the first factor: term i of step s begins at at + i * term + s * step. */
struct tokens {
    const uint8_t *at;
    size_t term, step, stride, n;
};

/* BF16: T times 16 tokens by P times 16 rows, whose panels lie at w. */
INLINE void tile_bf16(int T, int P, const struct job *j, const struct tokens *t,
                      const uint8_t *const w[2], float *y, size_t r)
{
    outputs out;
    _tile_zero(SUM0);
    _tile_zero(SUM1);
    _tile_zero(SUM2);
    _tile_zero(SUM3);
    for (size_t s = 0; s < j->steps; s++) {
        _tile_loadd(FIRST0, t[0].at + s * t[0].step, t[0].stride);
        _tile_loadd(SECOND0, w[0] + s * sizeof(operand), 64);
        _tile_dpbf16ps(SUM0, FIRST0, SECOND0);
        if (P == 2) {
            _tile_loadd(SECOND1, w[1] + s * sizeof(operand), 64);
            _tile_dpbf16ps(SUM1, FIRST0, SECOND1);
        }
        if (T == 2) {
            _tile_loadd(FIRST1, t[1].at + s * t[1].step, t[1].stride);
            _tile_dpbf16ps(SUM2, FIRST1, SECOND0);
        }
        if (T == 2 && P == 2)
            _tile_dpbf16ps(SUM3, FIRST1, SECOND1);
    }
    _tile_stored(SUM0, out.at, 64);
    add_outputs(CR_BF16, j, y, out.at, out.at, t[0].n, rows_from(j, r));
    if (P == 2) {
        _tile_stored(SUM1, out.at, 64);
        add_outputs(CR_BF16, j, y + SIDE, out.at, out.at, t[0].n, rows_from(j, r + SIDE));
    }
    y += SIDE * j->ldy;
    if (T == 2) {
        _tile_stored(SUM2, out.at, 64);
        add_outputs(CR_BF16, j, y, out.at, out.at, t[1].n, rows_from(j, r));
    }
    if (T == 2 && P == 2) {
        _tile_stored(SUM3, out.at, 64);
        add_outputs(CR_BF16, j, y + SIDE, out.at, out.at, t[1].n, rows_from(j, r + SIDE));
    }
}

/* F16: 16 tokens by P times 16 rows. Sums: SUM0 and SUM1; the small ones SUM2 and SUM3. */
INLINE void tile_f16(int P, const struct job *j, const struct tokens *t, operand hi[2][MAX_STEPS],
                     operand lo[2][MAX_STEPS], float *y, size_t r)
{
    outputs out, small;
    _tile_zero(SUM0);
    _tile_zero(SUM1);
    _tile_zero(SUM2);
    _tile_zero(SUM3);
    for (size_t s = 0; s < j->steps; s++) {
        const uint8_t *x = t->at + s * t->step;
        _tile_loadd(FIRST0, x + 2 * t->term, t->stride);
        _tile_loadd(SECOND0, hi[0][s].at, 64);
        _tile_dpbf16ps(SUM2, FIRST0, SECOND0); /* hi x3 */
        if (P == 2) {
            _tile_loadd(SECOND1, hi[1][s].at, 64);
            _tile_dpbf16ps(SUM3, FIRST0, SECOND1);
        }
        _tile_loadd(FIRST0, x, t->stride);
        _tile_dpbf16ps(SUM0, FIRST0, SECOND0); /* hi x1 */
        if (P == 2)
            _tile_dpbf16ps(SUM1, FIRST0, SECOND1);
        _tile_loadd(FIRST1, x + t->term, t->stride);
        _tile_dpbf16ps(SUM2, FIRST1, SECOND0); /* hi x2 */
        if (P == 2)
            _tile_dpbf16ps(SUM3, FIRST1, SECOND1);
        _tile_loadd(SECOND0, lo[0][s].at, 64);
        _tile_dpbf16ps(SUM2, FIRST1, SECOND0); /* lo x2 */
        if (P == 2) {
            _tile_loadd(SECOND1, lo[1][s].at, 64);
            _tile_dpbf16ps(SUM3, FIRST1, SECOND1);
        }
        _tile_dpbf16ps(SUM2, FIRST0, SECOND0); /* lo x1 */
        if (P == 2)
            _tile_dpbf16ps(SUM3, FIRST0, SECOND1);
    }
    _tile_stored(SUM0, out.at, 64);
    _tile_stored(SUM2, small.at, 64);
    add_outputs(CR_F16, j, y, out.at, small.at, t->n, rows_from(j, r));
    if (P == 2) {
        _tile_stored(SUM1, out.at, 64);
        _tile_stored(SUM3, small.at, 64);
        add_outputs(CR_F16, j, y + SIDE, out.at, small.at, t->n, rows_from(j, r + SIDE));
    }
}

struct tail {
    operand x[TERMS][MAX_STEPS];
};

/* The last n_tok % 16 tokens, with zeros after them. */
INLINE void load_tail(enum cr_type type, struct tail *tail, const struct job *j)
{
    const size_t first = j->n_tok / SIDE * SIDE;
    for (int i = 0; i < terms_of(type); i++)
        for (size_t s = 0; s < j->steps; s++)
            for (size_t t = 0; t < SIDE; t++) {
                const uint8_t *p = j->x + (first + t) * j->x_bytes + (size_t)i * j->term_bytes;
                _mm512_store_si512(tail->x[i][s].at[t], first + t < j->n_tok
                                                            ? _mm512_loadu_si512(p + 64 * s)
                                                            : _mm512_setzero_si512());
            }
}

INLINE struct tokens tokens_at(const struct job *j, const struct tail *tail, size_t t)
{
    if (j->n_tok - t >= SIDE)
        return (struct tokens){j->x + t * j->x_bytes, j->term_bytes, 64, j->x_bytes, SIDE};
    return (struct tokens){tail->x[0][0].at[0], sizeof tail->x[0], sizeof(operand), 64,
                           j->n_tok - t};
}

/* P times 16 rows from r on by all tokens. */
INLINE void rows_by_many(enum cr_type type, int P, const struct job *j, const struct tail *tail,
                         size_t r)
{
    operand hi[2][MAX_STEPS], lo[2][MAX_STEPS], made;
    const uint8_t *w[2];
    for (size_t p = 0; p < (size_t)P; p++) {
        for (size_t s = 0; s < j->steps; s++) {
            if (type == CR_F16)
                split_panel(&hi[p][s], &lo[p][s], panel_tile(type, &made, j, r + p * SIDE, s));
            else if (!j->packed)
                panel_tile(type, &hi[p][s], j, r + p * SIDE, s);
        }
        w[p] = j->packed ? panel_tile(type, &made, j, r + p * SIDE, 0) : hi[p][0].at[0];
    }
    w[1] = w[P - 1];
    for (size_t t = 0, step; t < j->n_tok; t += step) {
        float *y = j->y + t * j->ldy + r;
        const struct tokens x[2] = {tokens_at(j, tail, t),
                                    tokens_at(j, tail, t + SIDE < j->n_tok ? t + SIDE : t)};
        step = type == CR_BF16 && t + SIDE < j->n_tok ? 2 * SIDE : SIDE;
        if (type == CR_F16)
            tile_f16(P, j, x, hi, lo, y, r);
        else if (step == SIDE)
            tile_bf16(1, P, j, x, w, y, r);
        else
            tile_bf16(2, P, j, x, w, y, r);
    }
}

INLINE void many_tokens(enum cr_type type, const struct job *j)
{
    struct tail tail;
    if (j->n_tok % SIDE)
        load_tail(type, &tail, j);
    for (size_t r = 0; r < j->rows; r += 2 * SIDE)
        if (j->rows - r > SIDE)
            rows_by_many(type, 2, j, &tail, r);
        else
            rows_by_many(type, 1, j, &tail, r);
}

/* ---- few tokens ------------------------------------------------------------------------ */

/* Activations of few tokens as float32, and their running sums for 16 rows. */
struct few {
    float x[TERMS][FEW][MAX_STEPS * COLUMNS];
};

INLINE void widen_few(enum cr_type type, struct few *f, const struct job *j)
{
    for (size_t i = 0; i < (size_t)terms_of(type); i++)
        for (size_t t = 0; t < j->n_tok; t++) {
            const uint8_t *x = j->x + t * j->x_bytes + i * j->term_bytes;
            for (size_t k = 0; k < j->steps * COLUMNS; k += 16) {
                __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(x + 2 * k)));
                _mm512_storeu_si512(&f->x[i][t][k], _mm512_slli_epi32(h, 16));
            }
        }
}

/* For a tile's share of what is read soon, in the order of addresses: further on in the panel, or
 * the next 16 rows. Past the end it does no harm. */
INLINE void ask(const struct job *j, size_t r, size_t s)
{
    if (j->packed) {
        const uint8_t *next = j->w + r / SIDE * j->row_bytes + s * sizeof(operand) + AHEAD;
        UNROLL for (int i = 0; i < SIDE; i++)
        {
            __builtin_prefetch(next + 64 * i);
        }
        return;
    }
    size_t row = r + SIDE + s * SIDE / j->steps, line = s * SIDE % j->steps;
    for (int i = 0; i < SIDE; i++) {
        __builtin_prefetch(j->w + row * j->row_bytes + 64 * line);
        line = line + 1 < j->steps ? line + 1 : 0;
        row += line == 0;
    }
}

/* even + odd of one step; e and o: a factor's values of one pair. */
#define CHAIN(sum, e, o, x)                                                                        \
    sum[0] = _mm512_fmadd_ps(e, _mm512_set1_ps((x)[0]), sum[0]);                                   \
    sum[1] = _mm512_fmadd_ps(o, _mm512_set1_ps((x)[1]), sum[1])

/* BF16: T tokens by one panel. */
INLINE void few_bf16(int T, __m512 *sums, const struct few *f, const uint8_t *tile, size_t s)
{
    __m512 sum[FEW][2];
    UNROLL for (int t = 0; t < T; t++)
    {
        sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    }
    UNROLL for (int k = 0; k < SIDE; k++)
    {
        const __m512i v = _mm512_loadu_si512(tile + 64 * k);
        const __m512 e = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)), o = top_of(v);
        UNROLL for (int t = 0; t < T; t++)
        {
            CHAIN(sum[t], e, o, &f->x[0][t][COLUMNS * s + 2 * (size_t)k]);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        sums[t] = _mm512_add_ps(sums[t], _mm512_add_ps(sum[t][0], sum[t][1]));
    }
}

/* F16: one token by one panel. */
INLINE void few_f16(__m512 *sums, __m512 *small, const struct few *f, size_t t, const uint8_t *tile,
                    size_t s)
{
    __m512 sum[5][2];
    const float *x[TERMS];
    UNROLL for (int i = 0; i < TERMS; i++)
    {
        x[i] = &f->x[i][t][COLUMNS * s];
    }
    UNROLL for (int i = 0; i < 5; i++)
    {
        sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    }
    UNROLL for (int k = 0; k < SIDE; k++)
    {
        const __m512 e = load_halves(tile + 64 * k), o = load_halves(tile + 64 * k + 32);
        const __m512 lo_e = rest_of(e), lo_o = rest_of(o);
        const __m512 hi_e = top_of(_mm512_castps_si512(e)), hi_o = top_of(_mm512_castps_si512(o));
        CHAIN(sum[0], hi_e, hi_o, x[0] + 2 * k);
        CHAIN(sum[1], hi_e, hi_o, x[2] + 2 * k);
        CHAIN(sum[2], hi_e, hi_o, x[1] + 2 * k);
        CHAIN(sum[3], lo_e, lo_o, x[1] + 2 * k);
        CHAIN(sum[4], lo_e, lo_o, x[0] + 2 * k);
    }
    *sums = _mm512_add_ps(*sums, _mm512_add_ps(sum[0][0], sum[0][1]));
    UNROLL for (int i = 1; i < 5; i++)
    {
        *small = _mm512_add_ps(*small, _mm512_add_ps(sum[i][0], sum[i][1]));
    }
}

/* The panel of row r by T tokens. Not inlined: it runs with subnormal numbers as zeros. */
INLINE void few_rows(enum cr_type type, int T, __m512 *sums, __m512 *small, const struct few *f,
                     const struct job *j, size_t r)
{
    for (int t = 0; t < T; t++)
        sums[t] = small[t] = _mm512_setzero_ps();
    for (size_t s = 0; s < j->steps; s++) {
        operand made;
        const uint8_t *tile = panel_tile(type, &made, j, r, s);
        ask(j, r, s);
        if (type == CR_BF16)
            few_bf16(T, sums, f, tile, s);
        for (int t = 0; type == CR_F16 && t < T; t++)
            few_f16(&sums[t], &small[t], f, (size_t)t, tile, s);
    }
}

#define FEW_ROWS(name, type, T)                                                                    \
    static __attribute__((noinline)) void name(__m512 *sums, __m512 *small, const struct few *f,   \
                                               const struct job *j, size_t r)                      \
    {                                                                                              \
        few_rows(type, T, sums, small, f, j, r);                                                   \
    }
FEW_ROWS(bf16_1, CR_BF16, 1)
FEW_ROWS(bf16_2, CR_BF16, 2)
FEW_ROWS(bf16_3, CR_BF16, 3)
FEW_ROWS(bf16_4, CR_BF16, 4)
FEW_ROWS(f16_1, CR_F16, 1)
FEW_ROWS(f16_2, CR_F16, 2)
FEW_ROWS(f16_3, CR_F16, 3)
FEW_ROWS(f16_4, CR_F16, 4)

INLINE void few_tokens(enum cr_type type, const struct job *j)
{
    enum { ZEROS = 0x8040 }; /* subnormal results, subnormal operands */
    static void (*const run[2][FEW])(__m512 *, __m512 *, const struct few *, const struct job *,
                                     size_t) = {{bf16_1, bf16_2, bf16_3, bf16_4},
                                                {f16_1, f16_2, f16_3, f16_4}};
    struct few f;
    const unsigned before = _mm_getcsr();
    widen_few(type, &f, j);
    for (size_t r = 0; r < j->rows; r += SIDE) {
        __m512 sums[FEW], small[FEW];
        _mm_setcsr(before | ZEROS);
        run[type == CR_F16][j->n_tok - 1](sums, small, &f, j, r);
        _mm_setcsr(before);
        for (size_t t = 0; t < j->n_tok; t++)
            add_outputs(type, j, j->y + t * j->ldy + r, &sums[t], &small[t], 1, rows_from(j, r));
    }
}

/* ---- products -------------------------------------------------------------------------- */

INLINE void matmul(enum cr_type type, struct job j, size_t n)
{
    const size_t all = (n + COLUMNS - 1) / COLUMNS, pieces = (all + MAX_STEPS - 1) / MAX_STEPS;
    const uint8_t *w = j.w, *x = j.x;
    for (size_t t = 0; n == 0 && t < j.n_tok; t++)
        memset(j.y + t * j.ldy, 0, j.rows * sizeof *j.y);
    if (j.n_tok > FEW)
        configure();
    for (size_t p = 0; p < pieces && j.n_tok; p++) {
        const size_t first = all * p / pieces;
        j.steps = all * (p + 1) / pieces - first;
        j.columns = n - first * COLUMNS;
        j.w = w + first * (j.packed ? sizeof(operand) : 64);
        j.x = x + 64 * first;
        j.more = p > 0;
        if (j.n_tok <= FEW)
            few_tokens(type, &j);
        else
            many_tokens(type, &j);
    }
    if (j.n_tok > FEW)
        _tile_release();
}

/* Columns that fill no tile would be read past the tokens' ends: they go the way of AVX-512. */
static cr_matmul_fn *matmul_bf16_rest;

static void matmul_bf16(float *y, size_t ldy, const void *w, size_t row_bytes, const void *x,
                        size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    struct job j = {y, ldy, w, x, row_bytes, x_bytes, 0, rows, n_tok, 0, 0, false, false};
    if (n % COLUMNS)
        matmul_bf16_rest(y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);
    else
        matmul(CR_BF16, j, n);
}

static void matmul_packed_bf16(float *y, size_t ldy, const void *w, size_t bytes, const void *x,
                               size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    struct job j = {y, ldy, w, x, bytes, x_bytes, 0, rows, n_tok, 0, 0, true, false};
    matmul(CR_BF16, j, n);
}

static void matmul_f16(float *y, size_t ldy, const void *w, size_t row_bytes, const void *x,
                       size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    const size_t term = 2 * cr_split_columns(n);
    struct job j = {y, ldy, w, x, row_bytes, x_bytes, term, rows, n_tok, 0, 0, false, false};
    matmul(CR_F16, j, n);
}

static void matmul_packed_f16(float *y, size_t ldy, const void *w, size_t bytes, const void *x,
                              size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    const size_t term = 2 * cr_split_columns(n);
    struct job j = {y, ldy, w, x, bytes, x_bytes, term, rows, n_tok, 0, 0, true, false};
    matmul(CR_F16, j, n);
}

INLINE void pack_rows(enum cr_type type, uint8_t *dst, const uint8_t *w, size_t row_bytes,
                      size_t rows, size_t n)
{
    for (size_t r = 0; r < rows; r += SIDE)
        for (size_t s = 0; s < n / COLUMNS; s++, dst += sizeof(operand)) {
            operand tile;
            load_panel(type, &tile, w + r * row_bytes, row_bytes, rows - r < SIDE ? rows - r : SIDE,
                       n, s);
            memcpy(dst, &tile, sizeof tile);
        }
}

static void pack_bf16(void *dst, const void *w, size_t row_bytes, size_t rows, size_t n)
{
    pack_rows(CR_BF16, dst, w, row_bytes, rows, n);
}

static void pack_f16(void *dst, const void *w, size_t row_bytes, size_t rows, size_t n)
{
    pack_rows(CR_F16, dst, w, row_bytes, rows, n);
}

/* Those of the other types are AVX-512's. */
static size_t (*panel_bytes_rest)(enum cr_type type, size_t n);

static size_t panel_bytes(enum cr_type type, size_t n)
{
    if (type == CR_BF16 || type == CR_F16)
        return n % COLUMNS ? 0 : n / COLUMNS * sizeof(operand);
    return panel_bytes_rest(type, n);
}

void cr_kernels_add_amx_bf16(struct cr_kernels *k)
{
    matmul_bf16_rest = k->matmul[CR_BF16];
    panel_bytes_rest = k->panel_bytes;
    k->panel_bytes = panel_bytes;
    k->matmul[CR_BF16] = matmul_bf16;
    k->matmul[CR_F16] = matmul_f16;
    k->matmul_packed[CR_BF16] = matmul_packed_bf16;
    k->matmul_packed[CR_F16] = matmul_packed_f16;
    k->pack[CR_BF16] = pack_bf16;
    k->pack[CR_F16] = pack_f16;
    k->split_f32 = split_f32;
}
