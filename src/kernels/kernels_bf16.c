/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX512_BF16 on top of AVX-512: products of bfloat16 with VDPBF16PS, which multiplies 32 pairs and
 * adds them in float32, twice as many as a fused multiply-add. The instruction takes subnormal
 * inputs and gives subnormal sums as zero (docs/numerics.md). All else is the AVX-512 level's.
 *
 * Lane l of an output's one accumulator adds columns 2l, 2l + 1, 2l + 32, 2l + 33, ...; the tail is
 * filled with zeros; then the lanes are added. 4 rows by 6 tokens are computed side by side.
 */
#include "kernels/levels.h"

#include <immintrin.h>

enum { COLUMNS = 32, ROWS = 4, SIDE = 6, PASS = 64 };

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

/* Lane l with l + 8, then ((0+1)+(2+3)) + ((4+5)+(6+7)). */
INLINE __m256 fold(__m512 v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

INLINE void store_sums(float *y, __m512 a, __m512 b, __m512 c, __m512 d)
{
    __m256 h = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

INLINE float sum_lanes(__m512 v)
{
    __m256 h = _mm256_hadd_ps(fold(v), fold(v));
    h = _mm256_hadd_ps(h, h);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
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
            if (T == 1) /* the next rows: a single token waits for memory */
                __builtin_prefetch(p + (size_t)R * j->row_bytes + 2 * i);
            __m512bh w = whole ? load_whole(p, i) : load(p, i, j->n);
            UNROLL for (int t = 0; t < T; t++)
            {
                acc[r][t] = _mm512_dpbf16_ps(acc[r][t], w, x[t]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        float *y = j->y + (size_t)t * j->ldy;
        if (R == 4)
            store_sums(y, acc[0][t], acc[1][t], acc[2][t], acc[3][t]);
        else
            *y = sum_lanes(acc[0][t]);
    }
}

INLINE void rows_by_tokens(int R, struct job j, size_t n_tok)
{
    while (n_tok > 0) {
        size_t step = n_tok >= SIDE ? SIDE : n_tok >= 2 ? 2 : 1;
        if (step == SIDE)
            tile(R, SIDE, &j);
        else if (step == 2)
            tile(R, 2, &j);
        else
            tile(R, 1, &j);
        j.y += step * j.ldy;
        j.x += step * j.x_bytes;
        n_tok -= step;
    }
}

static void matmul_bf16(float *y, size_t ldy, const void *w, size_t row_bytes, const void *x,
                        size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    struct job j = {.ldy = ldy, .row_bytes = row_bytes, .x_bytes = x_bytes, .n = n};
    for (size_t t = 0; t < n_tok; t += PASS) {
        size_t n_pass = n_tok - t < PASS ? n_tok - t : PASS, step;
        j.x = (const uint8_t *)x + t * x_bytes;
        for (size_t r = 0; r < rows; r += step) {
            j.y = y + t * ldy + r;
            j.w = (const uint8_t *)w + r * row_bytes;
            step = rows - r >= ROWS ? ROWS : 1;
            if (step == ROWS)
                rows_by_tokens(ROWS, j, n_pass);
            else
                rows_by_tokens(1, j, n_pass);
        }
    }
}

void cr_kernels_add_bf16(struct cr_kernels *k)
{
    k->matmul[CR_BF16] = matmul_bf16;
}
