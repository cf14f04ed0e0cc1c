/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block of 16 rows as a tile of 64-byte vectors: vector g holds bytes 4g..4g+3 of every row, one
 * row per 32-bit lane. Shared by the AVX-512 and AMX levels.
 */
#ifndef CR_TILE16_H
#define CR_TILE16_H

#include "kernels/levels.h"

#include <immintrin.h>

enum { GROUPS = CR_QK / 4 };

/* One block of 16 rows. The codes are those of the file, as signed bytes; or, unsigned: 128 more
 * for Q8_0, 8 more for Q4_0. */
struct tile {
    __m512i w[GROUPS];
    __m512 d, m;
};

/* 16 bytes of each of 16 rows, as 4 vectors of one dword per row. */
INLINE void transpose_16x16(__m512i out[4], const uint8_t *p, size_t rb)
{
    __m512i a[4];
    UNROLL for (int i = 0; i < 4; i++)
    {
        const uint8_t *q = p + (size_t)i * rb;
        a[i] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)q));
        a[i] = _mm512_inserti32x4(a[i], _mm_loadu_si128((const void *)(q + 4 * rb)), 1);
        a[i] = _mm512_inserti32x4(a[i], _mm_loadu_si128((const void *)(q + 8 * rb)), 2);
        a[i] = _mm512_inserti32x4(a[i], _mm_loadu_si128((const void *)(q + 12 * rb)), 3);
    }
    __m512i t0 = _mm512_unpacklo_epi32(a[0], a[1]), t1 = _mm512_unpackhi_epi32(a[0], a[1]);
    __m512i t2 = _mm512_unpacklo_epi32(a[2], a[3]), t3 = _mm512_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm512_unpacklo_epi64(t0, t2);
    out[1] = _mm512_unpackhi_epi64(t0, t2);
    out[2] = _mm512_unpacklo_epi64(t1, t3);
    out[3] = _mm512_unpackhi_epi64(t1, t3);
}

/* The low 16 bits of each lane as float16. */
INLINE __m512 widen_scales(__m512i v)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}

/* The block at p of each of 16 rows, rb bytes apart. */
INLINE struct tile load_tile_16(enum cr_type type, const uint8_t *p, size_t rb, bool is_signed)
{
    struct tile t;
    const __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i at = _mm512_mullo_epi32(row, _mm512_set1_epi32((int)rb));
    __m512i head = _mm512_i32gather_epi32(at, (const void *)p, 1);
    t.d = widen_scales(head);
    t.m = type == CR_Q4_1 ? widen_scales(_mm512_srli_epi32(head, 16)) : _mm512_setzero_ps();
    if (type == CR_Q8_0) {
        const __m512i flip = _mm512_set1_epi8(-128);
        transpose_16x16(t.w, p + 2, rb);
        transpose_16x16(t.w + 4, p + 18, rb);
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = is_signed ? t.w[g] : _mm512_xor_si512(t.w[g], flip);
        }
        return t;
    }
    const __m512i low = _mm512_set1_epi8(15);
    transpose_16x16(t.w, p + (type == CR_Q4_1 ? 4 : 2), rb);
    UNROLL for (int g = 0; g < 4; g++)
    {
        t.w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(t.w[g], 4), low);
        t.w[g] = _mm512_and_si512(t.w[g], low);
    }
    if (is_signed && type == CR_Q4_0) {
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = _mm512_sub_epi8(t.w[g], _mm512_set1_epi8(8));
        }
    }
    return t;
}

#endif
