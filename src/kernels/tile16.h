/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block of 16 rows as a tile of 64-byte vectors: vector g holds bytes 4g..4g+3 of every row, one
 * row per 32-bit lane. Shared by the AVX-512 and AMX levels.
 */
#ifndef CR_TILE16_H
#define CR_TILE16_H

#include "kernels/groups.h"
#include "kernels/levels.h"

#include <immintrin.h>

enum { GROUPS = CR_QK / 4 };

/* One group of 32 columns of 16 rows. The codes are those of the file, as signed bytes; or,
 * unsigned: 128 more for Q8_0 and IQ4_NL, and code_offset more for the others. */
struct tile {
    __m512i w[GROUPS];
    __m512 d, m;
};

/* Blocks [begin, end) of a panel, as packed.h lays it out, with signed codes. */
void cr_load_panel_16(enum cr_type type, struct tile *out, const uint8_t *panel, size_t begin,
                      size_t end);

/* The operand of LDTILECFG. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "the layout that LDTILECFG reads");

#ifdef __AMX_TILE__
/* GCC 12 believes that LDTILECFG reads 8 bytes, and would leave the other stores out. */
INLINE void load_config(const struct tile_config *c)
{
    __asm__ volatile("" ::"r"(c) : "memory");
    _tile_loadconfig(c);
}
#endif

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

/* `even` in the low and `odd` in the high nibbles of 4 vectors. */
INLINE void split_nibbles(__m512i even[4], __m512i odd[4], const __m512i v[4])
{
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int g = 0; g < 4; g++)
    {
        odd[g] = _mm512_and_si512(_mm512_srli_epi16(v[g], 4), low);
        even[g] = _mm512_and_si512(v[g], low);
    }
}

/* Adds 16 to the codes whose bit in the rows' 32 bits is set. */
INLINE void add_fifth_bits(__m512i w[GROUPS], __m512i bits)
{
    const __m512i sixteen = _mm512_set1_epi8(16);
    UNROLL for (int g = 0; g < GROUPS; g++)
    { /* to each of a row's 4 codes the byte that has their bits */
        const int at = g / 2 * 0x01010101;
        const __m512i from = _mm512_setr_epi32(
            at, at + 0x04040404, at + 0x08080808, at + 0x0c0c0c0c, at, at + 0x04040404,
            at + 0x08080808, at + 0x0c0c0c0c, at, at + 0x04040404, at + 0x08080808, at + 0x0c0c0c0c,
            at, at + 0x04040404, at + 0x08080808, at + 0x0c0c0c0c);
        const __m512i bit = _mm512_set1_epi32(g % 2 ? (int)0x80402010 : 0x08040201);
        __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, from), bit);
        w[g] = _mm512_mask_add_epi8(w[g], set, w[g], sixteen);
    }
}

/* The block at p of each of 16 rows, rb bytes apart, of a type with one group in a block. */
INLINE struct tile load_tile_16(enum cr_type type, const uint8_t *p, size_t rb, bool is_signed)
{
    struct tile t;
    const __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const bool five = type == CR_Q5_0 || type == CR_Q5_1;
    __m512i head, fifth = row;
    if (five) { /* faster than two gathers */
        __m512i v[4];
        transpose_16x16(v, p, rb);
        head = v[0];
        fifth = type == CR_Q5_1
                    ? v[1]
                    : _mm512_or_si512(_mm512_srli_epi32(v[0], 16), _mm512_slli_epi32(v[1], 16));
    } else {
        __m512i at = _mm512_mullo_epi32(row, _mm512_set1_epi32((int)rb));
        head = _mm512_i32gather_epi32(at, (const void *)p, 1);
    }
    t.d = widen_scales(head);
    t.m = has_minimum(type) ? widen_scales(_mm512_srli_epi32(head, 16)) : _mm512_setzero_ps();
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
    p += has_minimum(type) ? 4 : 2;
    transpose_16x16(t.w, p + (five ? 4 : 0), rb);
    split_nibbles(t.w, t.w + 4, t.w);
    if (five)
        add_fifth_bits(t.w, fifth);
    if (type == CR_IQ4_NL) {
        const __m128i values = _mm_loadu_si128((const void *)iq4_values);
        const __m128i flip = _mm_set1_epi8(is_signed ? 0 : -128);
        const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(values, flip));
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = _mm512_shuffle_epi8(table, t.w[g]);
        }
    }
    if (is_signed && code_offset(type) != 0) {
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = _mm512_sub_epi8(t.w[g], _mm512_set1_epi8((char)code_offset(type)));
        }
    }
    return t;
}

/* Byte j of each lane, which is not negative unless is_signed, as float. */
INLINE __m512 byte_16(__m512i v, int j, bool is_signed)
{
    v = _mm512_slli_epi32(v, (unsigned)(24 - 8 * j));
    return _mm512_cvtepi32_ps(is_signed ? _mm512_srai_epi32(v, 24) : _mm512_srli_epi32(v, 24));
}

/* The scales of a block of Q4_K or Q5_K: group j has d byte_16(s[j / 4], j % 4). */
struct k4_scales {
    __m512 d, less; /* less: -m */
    __m512i s[2], mins[2];
};

INLINE struct k4_scales load_k4_scales(const uint8_t *p, size_t rb)
{
    const __m512i six = _mm512_set1_epi8(63), four = _mm512_set1_epi8(15);
    const __m512i top = _mm512_set1_epi8(48);
    __m512i head[4];
    transpose_16x16(head, p, rb); /* d and m; 3 times 4 bytes that hold six-bit numbers */
    const __m512 m = widen_scales(_mm512_srli_epi32(head[0], 16));
    const __m512i high = _mm512_srli_epi32(head[3], 4);
    struct k4_scales k = {.d = widen_scales(head[0]),
                          .less = _mm512_sub_ps(_mm512_setzero_ps(), m)};
    k.s[0] = _mm512_and_si512(head[1], six);
    k.s[1] = _mm512_or_si512(_mm512_and_si512(head[3], four),
                             _mm512_and_si512(_mm512_srli_epi32(head[1], 2), top));
    k.mins[0] = _mm512_and_si512(head[2], six);
    k.mins[1] = _mm512_or_si512(_mm512_and_si512(high, four),
                                _mm512_and_si512(_mm512_srli_epi32(head[2], 2), top));
    return k;
}

/* Q4_K and Q5_K: 8 tiles with unsigned codes. */
INLINE void load_tiles_k4(enum cr_type type, struct tile *out, const uint8_t *p, size_t rb)
{
    const bool five = type == CR_Q5_K;
    const struct k4_scales k = load_k4_scales(p, rb);
    __m512i fifth[GROUPS];
    if (five) {
        transpose_16x16(fifth, p + 16, rb);
        transpose_16x16(fifth + 4, p + 32, rb);
    }
    p += five ? 48 : 16;
    UNROLL for (int j = 0; j < 8; j++)
    {
        out[j].d = _mm512_mul_ps(k.d, byte_16(k.s[j / 4], j % 4, false));
        out[j].m = _mm512_mul_ps(k.less, byte_16(k.mins[j / 4], j % 4, false));
    }
    UNROLL for (int c = 0; c < 4; c++)
    {
        __m512i v[GROUPS];
        transpose_16x16(v, p + 32 * c, rb);
        transpose_16x16(v + 4, p + 32 * c + 16, rb);
        split_nibbles(out[2 * c].w, out[2 * c + 1].w, v);
        split_nibbles(out[2 * c].w + 4, out[2 * c + 1].w + 4, v + 4);
    }
    if (!five)
        return;
    const __m512i sixteen = _mm512_set1_epi8(16);
    UNROLL for (int j = 0; j < 8; j++)
    {
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            __m512i bit =
                j < 4 ? _mm512_slli_epi16(fifth[g], 4 - j) : _mm512_srli_epi16(fifth[g], j - 4);
            out[j].w[g] = _mm512_or_si512(out[j].w[g], _mm512_and_si512(bit, sixteen));
        }
    }
}

/* Q6_K: 8 tiles with unsigned codes, 32 too large; d and m are the scales of the two halves. */
INLINE void load_tiles_k6(struct tile *out, const uint8_t *p, size_t rb)
{
    const __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_mullo_epi32(row, _mm512_set1_epi32((int)rb));
    const __m512i top = _mm512_set1_epi8(48);
    __m512i s[4]; /* d in the upper half of the last 4 bytes */
    const __m512i last = _mm512_i32gather_epi32(at, (const void *)(p + 206), 1);
    const __m512 d = widen_scales(_mm512_srli_epi32(last, 16));
    transpose_16x16(s, p + 192, rb);
    UNROLL for (int j = 0; j < 8; j++)
    {
        out[j].d = _mm512_mul_ps(d, byte_16(s[j / 2], 2 * (j % 2), true));
        out[j].m = _mm512_mul_ps(d, byte_16(s[j / 2], 2 * (j % 2) + 1, true));
    }
    UNROLL for (int half = 0; half < 2; half++)
    {
        struct tile *t = out + 4 * half;
        __m512i h[GROUPS], v[GROUPS];
        transpose_16x16(h, p + 128 + 32 * half, rb);
        transpose_16x16(h + 4, p + 144 + 32 * half, rb);
        UNROLL for (int c = 0; c < 2; c++)
        {
            transpose_16x16(v, p + 64 * half + 32 * c, rb);
            transpose_16x16(v + 4, p + 64 * half + 32 * c + 16, rb);
            split_nibbles(t[c].w, t[c + 2].w, v);
            split_nibbles(t[c].w + 4, t[c + 2].w + 4, v + 4);
        }
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t[0].w[g] =
                _mm512_or_si512(t[0].w[g], _mm512_and_si512(_mm512_slli_epi16(h[g], 4), top));
            t[1].w[g] =
                _mm512_or_si512(t[1].w[g], _mm512_and_si512(_mm512_slli_epi16(h[g], 2), top));
            t[2].w[g] = _mm512_or_si512(t[2].w[g], _mm512_and_si512(h[g], top));
            t[3].w[g] =
                _mm512_or_si512(t[3].w[g], _mm512_and_si512(_mm512_srli_epi16(h[g], 2), top));
        }
    }
}

#endif
