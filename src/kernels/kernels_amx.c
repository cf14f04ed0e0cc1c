/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AMX-INT8 on top of AVX-512: quantised products of many tokens; all else is the AVX-512 level's.
 *
 * A tile of 16 rows (tile16.h) is already what TDPBSSD takes as its second operand, be it made from
 * the file's rows or from packed panels, and 16 activations, read from where they lie, are its
 * first: one instruction gives the 16 x 16 integer sums of one block of 32. They go through memory
 * into vectors of 16 rows, which are scaled and added in the order of kernels_ref.c. The integers
 * are exact, so the results are the same bits.
 *
 * While tiles are in use, an Emerald Rapids does one 512-bit float operation in a cycle and not two
 * (measured), so that the 48 or 64 of a block's float step, not the products, are the limit.
 *
 * Each call loads the tile configuration and releases it: no state is left between calls.
 */
#include "kernels/tile16.h"

#include <string.h>

enum {
    SIDE = 16,      /* tokens of one tile */
    PANEL = 24,     /* blocks of a panel at a time: they and their activations stay in the nearest
                       cache; a multiple of the 8 groups of a K-type's block */
    GROUP = 4,      /* panels */
    MIN_TOKENS = 8, /* fewer are faster without tiles */
    AHEAD = 4,      /* blocks that the tile unit is ahead of the floats; measured */
    N_SUMS = 4,
};

/* Tile registers: four sums, one after the other, and activations of 16 tokens; the same of the
 * last few tokens; weights. Macros, because the intrinsics make text of them. */
#define SUMS0 0
#define SUMS1 1
#define SUMS2 2
#define SUMS3 3
#define TOKENS 4
#define LAST_SUMS 5
#define LAST_TOKENS 6
#define WEIGHTS 7

static void configure(size_t last)
{
    struct tile_config c = {.palette = 1};
    for (int i = SUMS0; i <= TOKENS; i++) {
        c.rows[i] = SIDE;
        c.row_bytes[i] = i == TOKENS ? CR_QK : 64;
    }
    c.rows[LAST_SUMS] = c.rows[LAST_TOKENS] = (uint8_t)(last ? last : 1);
    c.row_bytes[LAST_SUMS] = 64;
    c.row_bytes[LAST_TOKENS] = CR_QK;
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

INLINE const int8_t *codes_at(const struct job *j, size_t b)
{
    return ((const struct cr_block_q8a *)(const void *)j->x)[b].q;
}

/* Activations of block b by its weights, which are loaded, into its register. */
INLINE void multiply(const struct job *j, size_t b)
{
    _tile_loadd(TOKENS, codes_at(j, b), j->x_bytes);
    switch (b % N_SUMS) {
    case 0:
        _tile_zero(SUMS0);
        _tile_dpbssd(SUMS0, TOKENS, WEIGHTS);
        break;
    case 1:
        _tile_zero(SUMS1);
        _tile_dpbssd(SUMS1, TOKENS, WEIGHTS);
        break;
    case 2:
        _tile_zero(SUMS2);
        _tile_dpbssd(SUMS2, TOKENS, WEIGHTS);
        break;
    default:
        _tile_zero(SUMS3);
        _tile_dpbssd(SUMS3, TOKENS, WEIGHTS);
    }
}

/* sums[t][r] = integer products of block b. */
INLINE void store_sums(int32_t sums[SIDE][16], size_t b)
{
    switch (b % N_SUMS) {
    case 0:
        _tile_stored(SUMS0, sums, 64);
        break;
    case 1:
        _tile_stored(SUMS1, sums, 64);
        break;
    case 2:
        _tile_stored(SUMS2, sums, 64);
        break;
    default:
        _tile_stored(SUMS3, sums, 64);
    }
}

/* acc[t] += d_w d_x sums[t] (+ m_w s_x) */
INLINE __m512 scale_and_add(enum cr_type type, __m512 acc, const int32_t sums[16],
                            const struct tile *w, const struct cr_block_q8a *x)
{
    __m512 d = _mm512_mul_ps(w->d, _mm512_set1_ps(x->d));
    acc = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(_mm512_load_si512(sums)), acc);
    return has_minimum(type) ? _mm512_fmadd_ps(w->m, _mm512_set1_ps(x->s), acc) : acc;
}

/* Tokens [from, from + 4): in quarters, so that tile instructions stand between them. */
INLINE void four_tokens(enum cr_type type, __m512 acc[SIDE], const int32_t sums[SIDE][16],
                        const struct job *j, size_t b, size_t from)
{
    UNROLL for (size_t t = from; t < from + 4; t++)
    {
        const struct cr_block_q8a *x = (const void *)(j->x + t * j->x_bytes);
        acc[t] = scale_and_add(type, acc[t], sums[t], &j->panel[b], x + b);
    }
    __asm__ volatile("" ::: "memory"); /* keeps them apart */
}

/* 16 rows by 16 tokens. Sums go to memory two blocks after they were begun, and to the floats two
 * blocks later. */
INLINE void full_tile(enum cr_type type, const struct job *j)
{
    enum { STORED = AHEAD / 2 };
    _Alignas(64) int32_t sums[N_SUMS][SIDE][16];
    __m512 acc[SIDE];
    UNROLL for (size_t t = 0; t < SIDE; t++)
    {
        acc[t] = j->more ? _mm512_maskz_loadu_ps(j->mask, j->y + t * j->ldy) : _mm512_setzero_ps();
        __builtin_prefetch(j->y + t * j->ldy, 1); /* else its miss would hold up the sums' stores */
    }
    for (size_t b = 0; b < AHEAD; b++) {
        if (b < j->n_blocks) {
            _tile_loadd(WEIGHTS, j->panel[b].w, 64);
            multiply(j, b);
        }
        if (b >= STORED && b - STORED < j->n_blocks)
            store_sums(sums[b - STORED], b - STORED);
    }
    for (size_t b = 0; b < j->n_blocks; b++) {
        const int32_t(*s)[16] = (const int32_t(*)[16])sums[b % N_SUMS];
        const size_t next = b + AHEAD, done = b + STORED;
        four_tokens(type, acc, s, j, b, 0);
        if (next < j->n_blocks)
            _tile_loadd(WEIGHTS, j->panel[next].w, 64);
        four_tokens(type, acc, s, j, b, 4);
        if (next < j->n_blocks)
            multiply(j, next);
        four_tokens(type, acc, s, j, b, 8);
        if (done < j->n_blocks)
            store_sums(sums[done % N_SUMS], done);
        four_tokens(type, acc, s, j, b, 12);
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
        _tile_loadd(WEIGHTS, j->panel[b].w, 64);
        _tile_loadd(LAST_TOKENS, codes_at(j, b), j->x_bytes);
        _tile_zero(LAST_SUMS);
        _tile_dpbssd(LAST_SUMS, LAST_TOKENS, WEIGHTS);
        _tile_stored(LAST_SUMS, sums, 64);
        for (size_t t = 0; t < n_tok; t++) {
            const struct cr_block_q8a *x = (const void *)(j->x + t * j->x_bytes);
            acc[t] = scale_and_add(type, acc[t], sums[t], &j->panel[b], x + b);
        }
    }
    for (size_t t = 0; t < n_tok; t++)
        _mm512_mask_storeu_ps(j->y + t * j->ldy, j->mask, acc[t]);
}

/* Panels whose tiles are made before the tokens go by: the activations of 16 tokens are read from
 * the nearest cache by all but the first. */
struct panels {
    struct tile tiles[GROUP][PANEL];
    size_t first[GROUP], n; /* the first row of each */
    __mmask16 mask[GROUP];  /* its rows that are stored */
};

INLINE void by_all_tokens(enum cr_type type, struct job j, const struct panels *p, size_t n_tok)
{
    float *y = j.y;
    for (size_t t = 0; t < n_tok; t += SIDE) {
        for (size_t i = 0; i < p->n; i++) {
            j.panel = p->tiles[i];
            j.mask = p->mask[i];
            j.y = y + t * j.ldy + p->first[i];
            if (n_tok - t >= SIDE)
                full_tile(type, &j);
            else
                last_tile(type, &j, n_tok - t);
        }
        j.x += SIDE * j.x_bytes;
    }
}

/* Rows as in the file, row_bytes apart, or packed, panels of 16 row_bytes apart. */
INLINE void matmul_tiles(enum cr_type type, bool packed, float *y, size_t ldy, const uint8_t *w,
                         size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t rows,
                         size_t n_tok, size_t n)
{
    if (n_tok < MIN_TOKENS || rows < 16) {
        (packed ? cr_kernels_avx512.matmul_packed
                : cr_kernels_avx512.matmul)[type](y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);
        return;
    }
    for (size_t t = 0; n == 0 && t < n_tok; t++)
        memset(y + t * ldy, 0, rows * sizeof *y);
    configure(n_tok % SIDE);
    struct job j = {.y = y, .ldy = ldy, .x_bytes = x_bytes};
    const size_t all = n / CR_QK, size = cr_type_info(type)->block_size;
    for (size_t b = 0; b < all; b += PANEL) {
        struct panels p;
        j.n_blocks = all - b < PANEL ? all - b : PANEL;
        j.x = x + b * sizeof(struct cr_block_q8a);
        j.more = b > 0;
        for (size_t r = 0; r < rows;) {
            for (p.n = 0; p.n < GROUP && r < rows; r = p.first[p.n++] + 16) {
                const size_t i = p.n, left = rows - r < 16 ? rows - r : 16;
                /* the last rows of a file in a group that begins earlier */
                const size_t early = packed ? 0 : 16 - left;
                p.first[i] = r - early;
                p.mask[i] = (__mmask16)(((1u << left) - 1) << early);
                if (packed) {
                    cr_load_panel_16(type, p.tiles[i], w + r / 16 * row_bytes, b, b + j.n_blocks);
                    continue;
                }
                const uint8_t *block = w + p.first[i] * row_bytes + b * size;
                for (size_t k = 0; k < j.n_blocks; k++)
                    p.tiles[i][k] = load_tile_16(type, block + k * size, row_bytes, true);
            }
            by_all_tokens(type, j, &p, n_tok);
        }
    }
    _tile_release();
}

#define MATMUL_TILES(name, type, packed)                                                           \
    static void name(float *y, size_t ldy, const void *w, size_t row_bytes, const void *x,         \
                     size_t x_bytes, size_t rows, size_t n_tok, size_t n)                          \
    {                                                                                              \
        matmul_tiles(type, packed, y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);              \
    }
MATMUL_TILES(rows_q8_0, CR_Q8_0, false)
MATMUL_TILES(rows_q4_0, CR_Q4_0, false)
MATMUL_TILES(rows_q4_1, CR_Q4_1, false)
MATMUL_TILES(rows_q5_0, CR_Q5_0, false)
MATMUL_TILES(rows_q5_1, CR_Q5_1, false)
MATMUL_TILES(rows_iq4_nl, CR_IQ4_NL, false)
MATMUL_TILES(panels_q8_0, CR_Q8_0, true)
MATMUL_TILES(panels_q4_0, CR_Q4_0, true)
MATMUL_TILES(panels_q4_1, CR_Q4_1, true)
MATMUL_TILES(panels_q5_0, CR_Q5_0, true)
MATMUL_TILES(panels_q5_1, CR_Q5_1, true)
MATMUL_TILES(panels_q4_k, CR_Q4_K, true)
MATMUL_TILES(panels_q5_k, CR_Q5_K, true)
MATMUL_TILES(panels_iq4_nl, CR_IQ4_NL, true)

/* The AVX-512 table with these in place of its own. Q6_K has two scales in a block, and keeps it.
 */
void cr_kernels_fill_amx(struct cr_kernels *k)
{
    *k = cr_kernels_avx512;
    k->name = "amx";
    k->level = CR_CPU_AMX;
    k->matmul[CR_Q8_0] = rows_q8_0;
    k->matmul[CR_Q4_0] = rows_q4_0;
    k->matmul[CR_Q4_1] = rows_q4_1;
    k->matmul[CR_Q5_0] = rows_q5_0;
    k->matmul[CR_Q5_1] = rows_q5_1;
    k->matmul[CR_IQ4_NL] = rows_iq4_nl;
    k->matmul_packed[CR_Q8_0] = panels_q8_0;
    k->matmul_packed[CR_Q4_0] = panels_q4_0;
    k->matmul_packed[CR_Q4_1] = panels_q4_1;
    k->matmul_packed[CR_Q5_0] = panels_q5_0;
    k->matmul_packed[CR_Q5_1] = panels_q5_1;
    k->matmul_packed[CR_Q4_K] = panels_q4_k;
    k->matmul_packed[CR_Q5_K] = panels_q5_k;
    k->matmul_packed[CR_IQ4_NL] = panels_iq4_nl;
}
