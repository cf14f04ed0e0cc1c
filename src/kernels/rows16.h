/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of 16 rows with one token, from where the rows lie in the file: no transposition. The
 * loads are the limit here, so a block, or 32 codes of it, is one load. Two rows' loads make a
 * vector; its integer products are added to one sum for each row at the end, so that the floats
 * follow, lane by lane, in the order of kernels_ref.c: the results are the same bits.
 */
#ifndef CR_ROWS16_H
#define CR_ROWS16_H

#include "kernels/tile16.h"

/* 32 bytes of rows i and i + 4 (i < 4), i + 4 and i + 8 (else). */
INLINE void load_wide(__m512i out[8], const uint8_t *p, size_t rb)
{
    const uint8_t *p4 = p + 4 * rb;
    UNROLL for (int i = 0; i < 8; i++)
    {
        const size_t at = (size_t)(i % 4) * rb + (i < 4 ? 0 : 8 * rb);
        __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)(p + at)));
        out[i] = _mm512_inserti64x4(low, _mm256_loadu_si256((const void *)(p4 + at)), 1);
    }
}

/* The dword at p of each row. */
INLINE __m512i load_dwords(const uint8_t *p, size_t rb)
{
    __m512i v[4];
    UNROLL for (int i = 0; i < 4; i++)
    {
        v[i] = _mm512_setzero_si512();
        UNROLL for (int j = 0; j < 4; j++)
        {
            int32_t four;
            memcpy(&four, p + (size_t)(4 * j + i) * rb, sizeof four);
            v[i] = _mm512_mask_set1_epi32(v[i], (__mmask16)(1u << (4 * j + i)), four);
        }
    }
    return _mm512_or_si512(_mm512_or_si512(v[0], v[1]), _mm512_or_si512(v[2], v[3]));
}

/* The sums of 4 lanes, those of v[i] in lane i of each 16 bytes. */
INLINE __m512i sum_fours(const __m512i v[4])
{
    __m512i a =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    __m512i b =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Where sums of 4 products begin, when unsigned codes are too large by `extra`. */
INLINE __m512i sums_start(int extra, __m512i x)
{
    const __m512i zero = _mm512_setzero_si512();
    if (extra == 0)
        return zero;
    return _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)extra), x));
}

INLINE __m512 add_sums(__m512 acc, __m512 d, const struct cr_block_q8a *x, __m512i sums)
{
    return _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(x->d)), _mm512_cvtepi32_ps(sums), acc);
}

/* acc + a group of unsigned codes that lie as load_wide gives them, times x. m: the minimum, or the
 * scale of the second half in Q6_K. */
INLINE __m512 add_wide(enum cr_type type, __m512 acc, const __m512i w[8], int extra, __m512 d,
                       __m512 m, const struct cr_block_q8a *x)
{
    const __m512i v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)x->q));
    const __m512i start = sums_start(extra, v);
    __m512i dot[8];
    UNROLL for (int i = 0; i < 8; i++)
    {
        dot[i] = _mm512_dpbusd_epi32(start, w[i], v);
    }
    const __m512i low = sum_fours(dot), high = sum_fours(dot + 4);
    const __m512i first = _mm512_shuffle_i32x4(low, high, 0x88);
    const __m512i second = _mm512_shuffle_i32x4(low, high, 0xdd);
    if (type == CR_Q6_K)
        return add_sums(add_sums(acc, d, x, first), m, x, second);
    acc = add_sums(acc, d, x, _mm512_add_epi32(first, second));
    return has_minimum(type) ? _mm512_fmadd_ps(m, _mm512_set1_ps(x->s), acc) : acc;
}

INLINE __m512 add_q8_0(__m512 acc, const uint8_t *p, size_t rb, const struct cr_block_q8a *x)
{
    const __m512i flip = _mm512_set1_epi8(-128);
    __m512i w[8];
    load_wide(w, p + 2, rb);
    UNROLL for (int i = 0; i < 8; i++)
    {
        w[i] = _mm512_xor_si512(w[i], flip);
    }
    __m512 d = widen_scales(load_dwords(p, rb));
    return add_wide(CR_Q8_0, acc, w, 128, d, d, x);
}

INLINE void low_nibbles(__m512i out[8], const __m512i v[8], bool high)
{
    UNROLL for (int i = 0; i < 8; i++)
    {
        out[i] = high ? _mm512_srli_epi16(v[i], 4) : v[i];
        out[i] = _mm512_and_si512(out[i], _mm512_set1_epi8(15));
    }
}

/* w |= (bits << shift) & mask; to the right where shift is negative. */
INLINE void add_bits(__m512i w[8], const __m512i bits[8], int shift, int mask)
{
    UNROLL for (int i = 0; i < 8; i++)
    {
        __m512i b = shift > 0   ? _mm512_slli_epi16(bits[i], shift)
                    : shift < 0 ? _mm512_srli_epi16(bits[i], -shift)
                                : bits[i];
        w[i] = _mm512_or_si512(w[i], _mm512_and_si512(b, _mm512_set1_epi8((char)mask)));
    }
}

/* acc + a block of each row. As much is asked for at `next`. */
INLINE __m512 add_k4(enum cr_type type, __m512 acc, const uint8_t *p, size_t rb,
                     const struct cr_block_q8a *x, const uint8_t *next)
{
    const size_t part = 2 * block_bytes(type);
    const struct k4_scales k = load_k4_scales(p, rb);
    const uint8_t *codes = p + (type == CR_Q5_K ? 48 : 16);
    __m512i v[8], w[8], fifth[8];
    if (type == CR_Q5_K)
        load_wide(fifth, p + 16, rb);
    UNROLL for (int j = 0; j < 8; j++)
    {
        ask_for(next + (size_t)j * part, part);
        if (j % 2 == 0)
            load_wide(v, codes + 16 * (size_t)j, rb);
        low_nibbles(w, v, j % 2);
        if (type == CR_Q5_K)
            add_bits(w, fifth, 4 - j, 16);
        acc = add_wide(type, acc, w, 0, _mm512_mul_ps(k.d, byte_16(k.s[j / 4], j % 4, false)),
                       _mm512_mul_ps(k.less, byte_16(k.mins[j / 4], j % 4, false)), x + j);
    }
    return acc;
}

INLINE __m512 add_k6(__m512 acc, const uint8_t *p, size_t rb, const struct cr_block_q8a *x,
                     const uint8_t *next)
{
    const size_t part = 2 * block_bytes(CR_Q6_K);
    const __m512 d = widen_scales(_mm512_srli_epi32(load_dwords(p + 206, rb), 16));
    __m512i s[4], v[2][8], h[8], w[8];
    transpose_16x16(s, p + 192, rb);
    UNROLL for (int j = 0; j < 8; j++)
    {
        ask_for(next + (size_t)j * part, part);
        if (j % 4 == 0) {
            load_wide(h, p + 128 + 8 * (size_t)j, rb);
            load_wide(v[0], p + 16 * (size_t)j, rb);
            load_wide(v[1], p + 16 * (size_t)j + 32, rb);
        }
        low_nibbles(w, v[j % 2], j % 4 > 1);
        add_bits(w, h, 4 - 2 * (j % 4), 48);
        acc = add_wide(CR_Q6_K, acc, w, 32, _mm512_mul_ps(d, byte_16(s[j / 2], 2 * (j % 2), true)),
                       _mm512_mul_ps(d, byte_16(s[j / 2], 2 * (j % 2) + 1, true)), x + j);
    }
    return acc;
}

/* ---- blocks of one group with nibbles --------------------------------------------------- */

/* The first dword of each row, from load_wide's vectors. */
INLINE __m512i first_dwords(const __m512i v[8])
{
    const __m512i even = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
    __m512i q[2];
    UNROLL for (int i = 0; i < 2; i++)
    { /* rows 0 to 3, nothing, 4 to 7, nothing; and 8 on */
        q[i] = _mm512_unpacklo_epi64(_mm512_unpacklo_epi32(v[4 * i], v[4 * i + 1]),
                                     _mm512_unpacklo_epi32(v[4 * i + 2], v[4 * i + 3]));
    }
    return _mm512_permutex2var_epi64(q[0], even, q[1]);
}

/* 16 bytes of codes of rows i, i + 4, i + 8 and i + 12, from byte `head` on. */
INLINE __m512i codes_after(int head, __m512i low, __m512i high)
{
    const __m512i lane =
        _mm512_setr_epi64(0, 0, 0x0010001000100010, 0x0010001000100010, 0x0020002000200020,
                          0x0020002000200020, 0x0030003000300030, 0x0030003000300030);
    const __m512i word = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7));
    __m512i at =
        _mm512_add_epi16(lane, _mm512_add_epi16(word, _mm512_set1_epi16((short)(head / 2))));
    return _mm512_permutex2var_epi16(low, at, high);
}

/* Q4_0, Q4_1 and IQ4_NL. Reads 32 bytes of each row. */
INLINE __m512 add_small(enum cr_type type, __m512 acc, const uint8_t *p, size_t rb,
                        const struct cr_block_q8a *x, int extra)
{
    __m512i v[8], w[8], dot[4];
    load_wide(v, p, rb);
    const __m512i head = first_dwords(v);
    UNROLL for (int i = 0; i < 4; i++)
    {
        __m512i codes = codes_after(has_minimum(type) ? 4 : 2, v[i], v[4 + i]);
        w[i] = _mm512_and_si512(codes, _mm512_set1_epi8(15));
        w[4 + i] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
    }
    if (type == CR_IQ4_NL) {
        const __m128i values = _mm_loadu_si128((const void *)iq4_values);
        const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(values, _mm_set1_epi8(-128)));
        UNROLL for (int i = 0; i < 8; i++)
        {
            w[i] = _mm512_shuffle_epi8(table, w[i]);
        }
    }
    const __m512i x0 = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)x->q));
    const __m512i x1 = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(x->q + 16)));
    const __m512i start = _mm512_add_epi32(sums_start(extra, x0), sums_start(extra, x1));
    UNROLL for (int i = 0; i < 4; i++)
    {
        dot[i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, w[i], x0), w[4 + i], x1);
    }
    acc = add_sums(acc, widen_scales(head), x, sum_fours(dot));
    if (!has_minimum(type))
        return acc;
    __m512 m = widen_scales(_mm512_srli_epi32(head, 16));
    return _mm512_fmadd_ps(m, _mm512_set1_ps(x->s), acc);
}

#endif
