/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX512_BF16 on top of AVX-512: products of bfloat16 with VDPBF16PS, which multiplies 32 pairs and
 * adds them in float32, twice as many as a fused multiply-add. The instruction takes subnormal
 * inputs and gives subnormal sums as zero (docs/numerics.md). All else is the AVX-512 level's.
 *
 * Lane l of an output's one accumulator adds columns 2l, 2l + 1, 2l + 32, 2l + 33, ...; the tail is
 * filled with zeros; then the lanes are added. 4 rows by 6 tokens are computed side by side.
 */
#include "kernels/sums16.h"

#include <immintrin.h>

enum { COLUMNS = 32, ROWS = 4, SIDE = 6 };

struct job {
    float *y;
    size_t ldy;
    const uint8_t *w, *x;
    size_t row_bytes, x_bytes, n;
};

INLINE __m512bh load(const uint8_t *p, size_t i, size_t n)
{
    __mmask32 mask = n - i >= COLUMNS ? 0xffffffffu : (1u << (n - i)) - 1;
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, p + 2 * i);
}

INLINE __m512bh load_whole(const uint8_t *p, size_t i)
{
    return (__m512bh)_mm512_loadu_si512(p + 2 * i);
}

/* R rows by T tokens. */
INLINE void tile(int R, int T, const struct job *j)
{
    __m512 acc[ROWS][SIDE];
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int t = 0; t < T; t++)
        {
            acc[r][t] = _mm512_setzero_ps();
        }
    }
    for (size_t i = 0; i < j->n; i += COLUMNS) {
        const bool whole = j->n - i >= COLUMNS;
        __m512bh x[SIDE];
        UNROLL for (int t = 0; t < T; t++)
        {
            const uint8_t *p = j->x + (size_t)t * j->x_bytes;
            x[t] = whole ? load_whole(p, i) : load(p, i, j->n);
        }
        UNROLL for (int r = 0; r < R; r++)
        {
            const uint8_t *p = j->w + (size_t)r * j->row_bytes;
            __m512bh w = whole ? load_whole(p, i) : load(p, i, j->n);
            UNROLL for (int t = 0; t < T; t++)
            {
                acc[r][t] = _mm512_dpbf16_ps(acc[r][t], w, x[t]);
            }
        }
    }
    if (R == ROWS) {
        store_tile(j->y, j->ldy, T, acc);
        return;
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        j->y[(size_t)t * j->ldy] = sum_lanes(acc[0][t]);
    }
}

/* All rows by T tokens. */
INLINE void rows_by_tokens(int T, struct job j, size_t rows)
{
    for (size_t r = 0, step; r < rows; r += step) {
        step = rows - r >= ROWS ? ROWS : 1;
        if (step == ROWS)
            tile(ROWS, T, &j);
        else
            tile(1, T, &j);
        j.w += step * j.row_bytes;
        j.y += step;
    }
}

/* All rows by one token, in streams as in vector.h. */
static void streams(struct job j, size_t rows)
{
    for (size_t run; (run = stream_length(rows, ROWS, j.row_bytes)) > 0; rows -= ROWS * run) {
        float sums[ROWS];
        struct job side = j;
        side.y = sums;
        side.row_bytes = run * j.row_bytes;
        for (size_t r = 0; r < run; r++, side.w += j.row_bytes) {
            tile(ROWS, 1, &side);
            for (size_t i = 0; i < ROWS; i++)
                j.y[i * run + r] = sums[i];
        }
        j.w += ROWS * run * j.row_bytes;
        j.y += ROWS * run;
    }
    rows_by_tokens(1, j, rows);
}

/* Passes as in vector.h. */
static void matmul_bf16(float *y, size_t ldy, const void *w, size_t row_bytes, const void *x,
                        size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    struct job j = {.ldy = ldy, .row_bytes = row_bytes, .x_bytes = x_bytes, .n = n};
    const size_t pass = rows_in_pass(row_bytes);
    if (n_tok == 1) {
        j.w = w;
        j.x = x;
        j.y = y;
        streams(j, rows);
        return;
    }
    for (size_t r = 0; r < rows; r += pass) {
        const size_t some = rows - r < pass ? rows - r : pass;
        for (size_t t = 0, step; t < n_tok; t += step) {
            j.w = (const uint8_t *)w + r * row_bytes;
            j.x = (const uint8_t *)x + t * x_bytes;
            j.y = y + t * ldy + r;
            step = n_tok - t >= SIDE ? SIDE : n_tok - t >= 2 ? 2 : 1;
            if (step == SIDE)
                rows_by_tokens(SIDE, j, some);
            else if (step == 2)
                rows_by_tokens(2, j, some);
            else
                rows_by_tokens(1, j, some);
        }
    }
}

void cr_kernels_add_bf16(struct cr_kernels *k)
{
    k->matmul[CR_BF16] = matmul_bf16;
}
