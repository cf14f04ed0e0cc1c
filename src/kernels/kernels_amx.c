/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AMX-INT8 on top of AVX-512: quantised products of many tokens; all else is the AVX-512 level's.
 *
 * A tile of 16 rows (tile16.h) is already what TDPBSSD takes as its second operand, and 16
 * activations, read from where they lie, are its first: one instruction gives the 16 x 16 integer
 * sums of one block of 32. They go through memory into vectors of 16 rows, which are scaled and
 * added in the order of kernels_ref.c. The integers are exact, so the results are the same bits.
 *
 * Each call loads the tile configuration and releases it: no state is left between calls.
 */
#include "kernels/tile16.h"

#include <string.h>

enum {
    SIDE = 16,      /* tokens of one tile */
    PANEL = 48,     /* blocks in a panel */
    MIN_TOKENS = 8, /* fewer are faster without tiles */
    AHEAD = 2,      /* blocks that the tile unit is ahead of the floats; measured */
    N_SUMS = 4,
};

/* Tile registers: sums and activations of 16 tokens, of the last few tokens, weights. Macros,
 * because the intrinsics make text of them. */
#define SUMS 0
#define TOKENS 1
#define LAST_SUMS 2
#define LAST_TOKENS 3
#define WEIGHTS 4

static void configure(size_t last)
{
    struct tile_config c = {.palette = 1};
    c.rows[SUMS] = c.rows[TOKENS] = SIDE;
    c.rows[LAST_SUMS] = c.rows[LAST_TOKENS] = (uint8_t)(last ? last : 1);
    c.row_bytes[SUMS] = c.row_bytes[LAST_SUMS] = 64;
    c.row_bytes[TOKENS] = c.row_bytes[LAST_TOKENS] = CR_QK;
    c.rows[WEIGHTS] = GROUPS;
    c.row_bytes[WEIGHTS] = 64;
    load_config(&c);
}

struct job {
    float *y;
    size_t ldy;
    const uint8_t *x; /* the first token of the tile, at the first block of the panel */
    size_t x_bytes, n_blocks;
    const struct tile *panel;
    __mmask16 mask;
    bool more; /* y holds the sum of earlier panels */
};

/* sums[t][r] = integer products of block b, for 16 tokens or the last few. */
INLINE void integer_sums(bool full, int32_t sums[SIDE][16], const struct job *j, size_t b)
{
    const int8_t *q = ((const struct cr_block_q8a *)(const void *)j->x)[b].q;
    _tile_loadd(WEIGHTS, j->panel[b].w, 64);
    if (full) {
        _tile_zero(SUMS);
        _tile_loadd(TOKENS, q, j->x_bytes);
        _tile_dpbssd(SUMS, TOKENS, WEIGHTS);
        _tile_stored(SUMS, sums, 64);
    } else {
        _tile_zero(LAST_SUMS);
        _tile_loadd(LAST_TOKENS, q, j->x_bytes);
        _tile_dpbssd(LAST_SUMS, LAST_TOKENS, WEIGHTS);
        _tile_stored(LAST_SUMS, sums, 64);
    }
}

/* acc[t] += d_w d_x sums[t] (+ m_w s_x) */
INLINE __m512 scale_and_add(enum cr_type type, __m512 acc, const int32_t sums[16],
                            const struct tile *w, const struct cr_block_q8a *x)
{
    __m512 d = _mm512_mul_ps(w->d, _mm512_set1_ps(x->d));
    acc = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(_mm512_load_si512(sums)), acc);
    return type == CR_Q4_1 ? _mm512_fmadd_ps(w->m, _mm512_set1_ps(x->s), acc) : acc;
}

/* 16 rows by 16 tokens. */
INLINE void full_tile(enum cr_type type, const struct job *j)
{
    _Alignas(64) int32_t sums[N_SUMS][SIDE][16];
    __m512 acc[SIDE];
    UNROLL for (size_t t = 0; t < SIDE; t++)
    {
        acc[t] = j->more ? _mm512_maskz_loadu_ps(j->mask, j->y + t * j->ldy) : _mm512_setzero_ps();
        __builtin_prefetch(j->y + t * j->ldy, 1); /* else its miss would hold up the sums' stores */
    }
    for (size_t b = 0; b < AHEAD && b < j->n_blocks; b++)
        integer_sums(true, sums[b], j, b);
    for (size_t b = 0; b < j->n_blocks; b++) {
        if (b + AHEAD < j->n_blocks)
            integer_sums(true, sums[(b + AHEAD) % N_SUMS], j, b + AHEAD);
        UNROLL for (size_t t = 0; t < SIDE; t++)
        {
            const struct cr_block_q8a *x = (const void *)(j->x + t * j->x_bytes);
            acc[t] = scale_and_add(type, acc[t], sums[b % N_SUMS][t], &j->panel[b], x + b);
        }
    }
    UNROLL for (size_t t = 0; t < SIDE; t++)
    {
        _mm512_mask_storeu_ps(j->y + t * j->ldy, j->mask, acc[t]);
    }
}

/* 16 rows by the last n_tok < 16 tokens. */
INLINE void last_tile(enum cr_type type, const struct job *j, size_t n_tok)
{
    _Alignas(64) int32_t sums[SIDE][16];
    __m512 acc[SIDE];
    for (size_t t = 0; t < n_tok; t++)
        acc[t] = j->more ? _mm512_maskz_loadu_ps(j->mask, j->y + t * j->ldy) : _mm512_setzero_ps();
    for (size_t b = 0; b < j->n_blocks; b++) {
        integer_sums(false, sums, j, b);
        for (size_t t = 0; t < n_tok; t++) {
            const struct cr_block_q8a *x = (const void *)(j->x + t * j->x_bytes);
            acc[t] = scale_and_add(type, acc[t], sums[t], &j->panel[b], x + b);
        }
    }
    for (size_t t = 0; t < n_tok; t++)
        _mm512_mask_storeu_ps(j->y + t * j->ldy, j->mask, acc[t]);
}

/* Blocks b .. b + n_blocks - 1 of 16 rows by all tokens. */
INLINE void one_panel(enum cr_type type, struct job j, const uint8_t *w, size_t row_bytes,
                      size_t n_tok)
{
    struct tile panel[PANEL];
    const size_t size = cr_type_info(type)->block_size;
    for (size_t b = 0; b < j.n_blocks; b++)
        panel[b] = load_tile_16(type, w + b * size, row_bytes, true);
    j.panel = panel;
    for (; n_tok >= SIDE; n_tok -= SIDE) {
        full_tile(type, &j);
        j.x += SIDE * j.x_bytes;
        j.y += SIDE * j.ldy;
    }
    if (n_tok > 0)
        last_tile(type, &j, n_tok);
}

INLINE void matmul_tiles(enum cr_type type, float *y, size_t ldy, const uint8_t *w,
                         size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t rows,
                         size_t n_tok, size_t n)
{
    if (n_tok < MIN_TOKENS || rows < 16) {
        cr_kernels_avx512.matmul[type](y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);
        return;
    }
    for (size_t t = 0; n == 0 && t < n_tok; t++)
        memset(y + t * ldy, 0, rows * sizeof *y);
    configure(n_tok % SIDE);
    struct job j = {.ldy = ldy, .x_bytes = x_bytes};
    for (size_t b = 0; b < n / CR_QK; b += PANEL) {
        j.n_blocks = n / CR_QK - b < PANEL ? n / CR_QK - b : PANEL;
        j.x = x + b * sizeof(struct cr_block_q8a);
        j.more = b > 0;
        for (size_t r = 0; r < rows;) { /* the last rows in a group that begins earlier */
            size_t first = rows - r < 16 ? rows - 16 : r;
            j.y = y + first;
            j.mask = (__mmask16)(0xffffu << (r - first));
            one_panel(type, j, w + first * row_bytes + b * cr_type_info(type)->block_size,
                      row_bytes, n_tok);
            r = first + 16;
        }
    }
    _tile_release();
}

#define MATMUL_TILES(name, type)                                                                   \
    static void matmul_##name(float *y, size_t ldy, const void *w, size_t row_bytes,               \
                              const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)  \
    {                                                                                              \
        matmul_tiles(type, y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);                      \
    }
MATMUL_TILES(q8_0, CR_Q8_0)
MATMUL_TILES(q4_0, CR_Q4_0)
MATMUL_TILES(q4_1, CR_Q4_1)

/* The AVX-512 table with these three in place of its own. */
void cr_kernels_fill_amx(struct cr_kernels *k)
{
    *k = cr_kernels_avx512;
    k->name = "amx";
    k->level = CR_CPU_AMX;
    k->matmul[CR_Q8_0] = matmul_q8_0;
    k->matmul[CR_Q4_0] = matmul_q4_0;
    k->matmul[CR_Q4_1] = matmul_q4_1;
}
