/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sums over 16 lanes, in one fixed tree: lane l with l + 8, then ((0+1)+(2+3)) + ((4+5)+(6+7)).
 * Side by side they take half as many shuffles. Shared by the AVX-512 levels.
 */
#ifndef CR_SUMS16_H
#define CR_SUMS16_H

#include "kernels/levels.h"

#include <immintrin.h>

/* Lane l with l + 8. */
INLINE __m256 fold(__m512 v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

INLINE float sum_lanes(__m512 v)
{
    __m256 h = fold(v);
    h = _mm256_hadd_ps(h, h);
    h = _mm256_hadd_ps(h, h);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

/* y = the sums of a, b, c and d. */
INLINE void store_sums(float *y, __m512 a, __m512 b, __m512 c, __m512 d)
{
    __m256 h = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

/* Halves of the sums of a (16 bytes each), then those of b. */
INLINE __m512 fold_two(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

/* Neighbours of a, then those of b, in each 16 bytes. */
INLINE __m512 add_neighbours(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

/* Four rows' a and b: the first and the second halves of the sums of a, then those of b. */
INLINE __m512 sum_halves(__m512 a0, __m512 a1, __m512 a2, __m512 a3, __m512 b0, __m512 b1,
                         __m512 b2, __m512 b3)
{
    return add_neighbours(add_neighbours(fold_two(a0, b0), fold_two(a1, b1)),
                          add_neighbours(fold_two(a2, b2), fold_two(a3, b3)));
}

/* y[0] to y[3] = sums of a's rows, y[ldy] of b's; then of c's and d's, where there are four. */
INLINE void store_halves(float *y, size_t ldy, __m512 ab, __m512 cd, bool four)
{
    __m512 v =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    _mm_storeu_ps(y, _mm512_castps512_ps128(v));
    _mm_storeu_ps(y + ldy, _mm512_extractf32x4_ps(v, 1));
    if (four) {
        _mm_storeu_ps(y + 2 * ldy, _mm512_extractf32x4_ps(v, 2));
        _mm_storeu_ps(y + 3 * ldy, _mm512_extractf32x4_ps(v, 3));
    }
}

/* y[t * ldy + r] = the sum of acc[r][t], r < 4, t < T (1, 2 or 6). */
INLINE void store_tile(float *y, size_t ldy, int T, __m512 acc[4][6])
{
    __m512 pair[3];
    if (T == 1) {
        store_sums(y, acc[0][0], acc[1][0], acc[2][0], acc[3][0]);
        return;
    }
    UNROLL for (int i = 0; i < T / 2; i++)
    {
        const int a = 2 * i, b = a + 1;
        pair[i] = sum_halves(acc[0][a], acc[1][a], acc[2][a], acc[3][a], acc[0][b], acc[1][b],
                             acc[2][b], acc[3][b]);
    }
    if (T == 6)
        store_halves(y, ldy, pair[0], pair[1], true);
    store_halves(y + (size_t)(T - 2) * ldy, ldy, pair[T / 2 - 1], pair[T / 2 - 1], false);
}

#endif
