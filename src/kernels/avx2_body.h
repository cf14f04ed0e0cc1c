/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX2 + FMA + F16C, with or without AVX-VNNI: included once for each of the two levels, each built
 * with its own flags.
 *
 * Quantised products: 8 rows at a time, one row per 32-bit lane. A block of 8 rows is transposed
 * into tiles whose vector g holds bytes 4g..4g+3 of a group of every row, so that four bytes of an
 * activation, broadcast, meet all rows at once and no sum ever crosses lanes. Every lane then does
 * just what kernels_ref.c says, group after group: the results are the same bits. With few tokens
 * the tile lives in registers; with many, a panel of tiles is made once and reused for all tokens.
 *
 * Without VNNI, codes that use all of a signed byte are multiplied with their signs. With it, codes
 * are unsigned as in kernels_avx512.c: 128 more for Q8_0 and IQ4_NL, whose sums begin lower.
 *
 * The float kernels are those of vector.h, with 8 lanes.
 */
#ifndef CR_AVX2_BODY_H
#define CR_AVX2_BODY_H

#define CR_WIDENS 8192

#include "kernels/groups.h"
#include "kernels/levels.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#if defined(__AVXVNNI__)
enum { VNNI = 1, STREAMS = 0, SIDE = 6 }; /* 6 integer and 6 float sums in 16 registers */
#else
enum { VNNI = 0, STREAMS = 4, SIDE = 4 }; /* 4, and 4 sums of 16 bits */
#define CR_MANY 1 /* many tokens as many.h says */
#endif

enum { LANES = 8, GROUPS = CR_QK / 4 };

typedef __m256 vf;
typedef __m256i vm;

/* -1 in lanes [begin, end). */
INLINE __m256i v_lanes(size_t begin, size_t end)
{
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)begin), i),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32((int)end), i));
}

INLINE vf v_load_mask(const float *p, vm mask)
{
    return _mm256_maskload_ps(p, mask);
}
INLINE void v_store_mask(float *p, vf v, vm mask)
{
    _mm256_maskstore_ps(p, mask, v);
}
INLINE vf v_zero(void)
{
    return _mm256_setzero_ps();
}

/* One group of 32 columns of 8 rows. w: the codes as they are in the file, unsigned; those of Q8_0
 * and IQ4_NL signed, or with 128 added. */
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

/* Codes that use the whole range of a signed byte. */
INLINE bool is_signed(enum cr_type type)
{
    return type == CR_Q8_0 || type == CR_IQ4_NL;
}

/* Unsigned codes are too large by this, negated; 0: they are right. */
INLINE int sum_factor(enum cr_type type)
{
    return VNNI && is_signed(type) ? -128 : -code_offset(type);
}

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

/* `even` in the low and `odd` in the high nibbles of 4 vectors. */
INLINE void split_nibbles(__m256i even[4], __m256i odd[4], const __m256i v[4])
{
    const __m256i low = _mm256_set1_epi8(15);
    UNROLL for (int g = 0; g < 4; g++)
    {
        odd[g] = _mm256_and_si256(_mm256_srli_epi16(v[g], 4), low);
        even[g] = _mm256_and_si256(v[g], low);
    }
}

/* The 4 bytes at p of each of 8 rows. */
INLINE __m256i dwords(const uint8_t *p, size_t rb)
{
    return _mm256_setr_epi32(load_i32(p), load_i32(p + rb), load_i32(p + 2 * rb),
                             load_i32(p + 3 * rb), load_i32(p + 4 * rb), load_i32(p + 5 * rb),
                             load_i32(p + 6 * rb), load_i32(p + 7 * rb));
}

/* Adds 16 to the codes whose bit in the rows' 32 bits is set. */
INLINE void add_fifth_bits(__m256i w[GROUPS], __m256i bits)
{
    UNROLL for (int g = 0; g < GROUPS; g++)
    { /* to each of a row's 4 codes the byte that has their bits */
        const int at = g / 2 * 0x01010101;
        const __m256i from =
            _mm256_setr_epi32(at, at + 0x04040404, at + 0x08080808, at + 0x0c0c0c0c, at,
                              at + 0x04040404, at + 0x08080808, at + 0x0c0c0c0c);
        const __m256i bit = _mm256_set1_epi32(g % 2 ? (int)0x80402010 : 0x08040201);
        __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(bits, from), bit);
        set = _mm256_and_si256(_mm256_cmpeq_epi8(set, bit), _mm256_set1_epi8(16));
        w[g] = _mm256_or_si256(w[g], set);
    }
}

/* The block at p of each of 8 rows, rb bytes apart, of a type with one group in a block. */
INLINE struct tile load_tile(enum cr_type type, const uint8_t *p, size_t rb)
{
    struct tile t;
    const bool five = type == CR_Q5_0 || type == CR_Q5_1;
    t.d = scales(p, rb);
    t.m = has_minimum(type) ? scales(p + 2, rb) : _mm256_setzero_ps();
    const __m256i flip = _mm256_set1_epi8(VNNI ? -128 : 0);
    if (type == CR_Q8_0) {
        transpose_8x16(t.w, p + 2, rb);
        transpose_8x16(t.w + 4, p + 18, rb);
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = _mm256_xor_si256(t.w[g], flip);
        }
        return t;
    }
    p += has_minimum(type) ? 4 : 2;
    transpose_8x16(t.w, p + (five ? 4 : 0), rb);
    split_nibbles(t.w, t.w + 4, t.w);
    if (five)
        add_fifth_bits(t.w, dwords(p, rb));
    if (type == CR_IQ4_NL) {
        const __m128i values = _mm_loadu_si128((const void *)iq4_values);
        const __m256i table = _mm256_xor_si256(_mm256_broadcastsi128_si256(values), flip);
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = _mm256_shuffle_epi8(table, t.w[g]);
        }
    }
    return t;
}

/* Byte j of each lane, which is not negative unless is_signed, as float. */
INLINE __m256 lane_byte(__m256i v, int j, bool is_signed)
{
    v = _mm256_slli_epi32(v, 24 - 8 * j);
    return _mm256_cvtepi32_ps(is_signed ? _mm256_srai_epi32(v, 24) : _mm256_srli_epi32(v, 24));
}

/* Q4_K and Q5_K. */
INLINE void load_tiles_k4(enum cr_type type, struct tile *out, const uint8_t *p, size_t rb)
{
    const bool five = type == CR_Q5_K;
    const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15);
    const __m256i top = _mm256_set1_epi8(48), sixteen = _mm256_set1_epi8(16);
    __m256i head[4], fifth[GROUPS];
    transpose_8x16(head, p, rb); /* d and m; 3 times 4 bytes that hold six-bit numbers */
    const __m256 d = scales(p, rb), m = scales(p + 2, rb);
    const __m256i high = _mm256_srli_epi32(head[3], 4);
    const __m256i s[2] = {_mm256_and_si256(head[1], six),
                          _mm256_or_si256(_mm256_and_si256(head[3], four),
                                          _mm256_and_si256(_mm256_srli_epi32(head[1], 2), top))};
    const __m256i mins[2] = {_mm256_and_si256(head[2], six),
                             _mm256_or_si256(_mm256_and_si256(high, four),
                                             _mm256_and_si256(_mm256_srli_epi32(head[2], 2), top))};
    if (five) {
        transpose_8x16(fifth, p + 16, rb);
        transpose_8x16(fifth + 4, p + 32, rb);
    }
    p += five ? 48 : 16;
    UNROLL for (int j = 0; j < 8; j++)
    {
        out[j].d = _mm256_mul_ps(d, lane_byte(s[j / 4], j % 4, false));
        out[j].m = _mm256_mul_ps(_mm256_sub_ps(_mm256_setzero_ps(), m),
                                 lane_byte(mins[j / 4], j % 4, false));
    }
    UNROLL for (int c = 0; c < 4; c++)
    {
        __m256i v[GROUPS];
        transpose_8x16(v, p + 32 * c, rb);
        transpose_8x16(v + 4, p + 32 * c + 16, rb);
        split_nibbles(out[2 * c].w, out[2 * c + 1].w, v);
        split_nibbles(out[2 * c].w + 4, out[2 * c + 1].w + 4, v + 4);
    }
    if (!five)
        return;
    UNROLL for (int j = 0; j < 8; j++)
    {
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            __m256i bit =
                j < 4 ? _mm256_slli_epi16(fifth[g], 4 - j) : _mm256_srli_epi16(fifth[g], j - 4);
            out[j].w[g] = _mm256_or_si256(out[j].w[g], _mm256_and_si256(bit, sixteen));
        }
    }
}

/* Q6_K: the codes are 32 too large; d and m are the scales of the two halves. */
INLINE void load_tiles_k6(struct tile *out, const uint8_t *p, size_t rb)
{
    const __m256i top = _mm256_set1_epi8(48);
    const __m256 d = scales(p + 208, rb);
    __m256i s[4];
    transpose_8x16(s, p + 192, rb);
    UNROLL for (int j = 0; j < 8; j++)
    {
        out[j].d = _mm256_mul_ps(d, lane_byte(s[j / 2], 2 * (j % 2), true));
        out[j].m = _mm256_mul_ps(d, lane_byte(s[j / 2], 2 * (j % 2) + 1, true));
    }
    UNROLL for (int half = 0; half < 2; half++)
    {
        struct tile *t = out + 4 * half;
        __m256i h[GROUPS], v[GROUPS];
        transpose_8x16(h, p + 128 + 32 * half, rb);
        transpose_8x16(h + 4, p + 144 + 32 * half, rb);
        UNROLL for (int c = 0; c < 2; c++)
        {
            transpose_8x16(v, p + 64 * half + 32 * c, rb);
            transpose_8x16(v + 4, p + 64 * half + 32 * c + 16, rb);
            split_nibbles(t[c].w, t[c + 2].w, v);
            split_nibbles(t[c].w + 4, t[c + 2].w + 4, v + 4);
        }
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            __m256i bits[4] = {_mm256_slli_epi16(h[g], 4), _mm256_slli_epi16(h[g], 2), h[g],
                               _mm256_srli_epi16(h[g], 2)};
            UNROLL for (int c = 0; c < 4; c++)
            {
                t[c].w[g] = _mm256_or_si256(t[c].w[g], _mm256_and_si256(bits[c], top));
            }
        }
    }
}

INLINE void load_tiles(enum cr_type type, struct tile *out, const uint8_t *p, size_t rb)
{
    if (type == CR_Q4_K || type == CR_Q5_K)
        load_tiles_k4(type, out, p, rb);
    else if (type == CR_Q6_K)
        load_tiles_k6(out, p, rb);
    else
        *out = load_tile(type, p, rb);
}

/* How many vectors of pairs of products, each at most 2 * 127 * the largest code, stay below 2^15
 * when they are added: 8 of 4-bit codes, 4 of 5 bits, 2 of 6 bits. */
INLINE int pairs_in_16_bits(enum cr_type type)
{
    const bool five = type == CR_Q5_0 || type == CR_Q5_1 || type == CR_Q5_K;
    return is_signed(type) ? 1 : type == CR_Q6_K ? 2 : five ? 4 : 8;
}

/* The integer sums of tile columns 4 begin .. 4 end - 1 by T activations. */
#if defined(__AVXVNNI__)
INLINE void integer_sums(enum cr_type type, int T, __m256i *dot, const struct tile *tile,
                         const struct cr_block_q8a *const *x, size_t b, int begin, int end)
{
    (void)type;
    UNROLL for (int t = 0; t < T; t++)
    {
        dot[t] = _mm256_setzero_si256();
    }
    UNROLL for (int g = begin; g < end; g++)
    {
        UNROLL for (int t = 0; t < T; t++)
        {
            __m256i v = _mm256_set1_epi32(load_i32(x[t][b].q + 4 * g));
            dot[t] = _mm256_dpbusd_avx_epi32(dot[t], tile->w[g], v);
        }
    }
}
#else
INLINE void integer_sums(enum cr_type type, int T, __m256i *dot, const struct tile *tile,
                         const struct cr_block_q8a *const *x, size_t b, int begin, int end)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const int step = pairs_in_16_bits(type);
    __m256i pairs[SIDE];
    UNROLL for (int g = begin; g < end; g++)
    {
        __m256i w = tile->w[g], size = _mm256_abs_epi8(w);
        UNROLL for (int t = 0; t < T; t++)
        {
            __m256i v = _mm256_set1_epi32(load_i32(x[t][b].q + 4 * g));
            if (is_signed(type)) /* |w| times x with the sign of w */
                v = _mm256_maddubs_epi16(size, _mm256_sign_epi8(v, w));
            else
                v = _mm256_maddubs_epi16(w, v);
            pairs[t] = g % step == 0 ? v : _mm256_add_epi16(pairs[t], v);
            if (g % step == step - 1) {
                v = _mm256_madd_epi16(pairs[t], ones);
                dot[t] = g < begin + step ? v : _mm256_add_epi32(dot[t], v);
            }
        }
    }
}
#endif

/* acc[t] += tile * group b of x[t]. sums[t][2 b], [2 b + 1]: what is added to the integer sums of
 * the group, or of its two halves. */
INLINE void multiply(enum cr_type type, int T, __m256 *acc, const struct tile *tile,
                     const struct cr_block_q8a *const *x, const int32_t *const *sums, size_t b)
{
    const int parts = type == CR_Q6_K ? 2 : 1;
    UNROLL for (int part = 0; part < parts; part++)
    {
        __m256i dot[SIDE];
        integer_sums(type, T, dot, tile, x, b, part * 4, (part + 1) * GROUPS / parts);
        UNROLL for (int t = 0; t < T; t++)
        {
            const struct cr_block_q8a *xb = &x[t][b];
            if (sum_factor(type) != 0)
                dot[t] = _mm256_add_epi32(dot[t], _mm256_set1_epi32(sums[t][2 * b + (size_t)part]));
            __m256 d = _mm256_mul_ps(part ? tile->m : tile->d, _mm256_set1_ps(xb->d));
            acc[t] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(dot[t]), acc[t]);
            if (has_minimum(type))
                acc[t] = _mm256_fmadd_ps(tile->m, _mm256_set1_ps(xb->s), acc[t]);
        }
    }
}

static void sum_codes(enum cr_type type, int32_t *sums, const struct cr_block_q8a *x,
                      size_t n_groups)
{
    const __m256i ones = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (size_t b = 0; b < n_groups; b++) {
        __m256i q = _mm256_loadu_si256((const void *)x[b].q);
        q = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), ones16);
        q = _mm256_add_epi32(q, _mm256_shuffle_epi32(q, 0x4e));
        q = _mm256_add_epi32(q, _mm256_shuffle_epi32(q, 0xb1));
        int lo = _mm256_extract_epi32(q, 0), hi = _mm256_extract_epi32(q, 4);
        sums[2 * b] = sum_factor(type) * (type == CR_Q6_K ? lo : lo + hi);
        sums[2 * b + 1] = sum_factor(type) * hi;
    }
}

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
        dst[b].sum = _mm_cvtsi128_si32(s);
        dst[b].s = d * (float)dst[b].sum;
    }
}

/* ---- the operations of vector.h -------------------------------------------------------- */

enum { FLOAT_ROWS = 4, FLOAT_SIDE = 3, MIX_SIDE = 4, MIX_COLUMNS = 3 };

INLINE vf v_set1(float a)
{
    return _mm256_set1_ps(a);
}
INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
INLINE void v_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
INLINE vf v_load_part(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, v_lanes(0, n));
}
INLINE void v_store_part(float *p, vf v, size_t n)
{
    _mm256_maskstore_ps(p, v_lanes(0, n), v);
}
INLINE void v_columns(vf out[4], const uint8_t *p, size_t rb)
{
    __m256i columns[4];
    transpose_8x16(columns, p, rb);
    UNROLL for (int i = 0; i < 4; i++)
    {
        out[i] = _mm256_castsi256_ps(columns[i]);
    }
}
INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
INLINE vf v_set1_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_set1_epi16((short)*p));
}
/* One load to both halves and one shuffle into the upper words. */
INLINE vf v_load_bf16(const uint16_t *p)
{
    const __m256i upper =
        _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1,
                         -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    __m256i h = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(h, upper));
}
INLINE vf v_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE void v_store_f16(uint16_t *p, vf v)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
INLINE vf v_round(vf v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* In two factors, of which only the last can round. */
INLINE vf v_scale(vf v, vf k)
{
    __m256i n = _mm256_cvtps_epi32(k), half = _mm256_srai_epi32(n, 1);
    __m256i rest = _mm256_sub_epi32(n, half), bias = _mm256_set1_epi32(127);
    __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(v, a), b);
}
/* ((0+1)+(2+3)) + ((4+5)+(6+7)) */
INLINE float v_sum(vf v)
{
    v = _mm256_hadd_ps(v, v);
    v = _mm256_hadd_ps(v, v);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
INLINE void v_sum_4(float *y, vf a, vf b, vf c, vf d)
{
    vf v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
INLINE void v_sum_tile(float *y, size_t ldy, int T, vf acc[FLOAT_ROWS][FLOAT_SIDE])
{
    UNROLL for (int t = 0; t < T; t++)
    {
        v_sum_4(y + (size_t)t * ldy, acc[0][t], acc[1][t], acc[2][t], acc[3][t]);
    }
}
INLINE float v_top(vf v)
{
    v = _mm256_max_ps(v, _mm256_permute2f128_ps(v, v, 1));
    v = _mm256_max_ps(v, _mm256_permute_ps(v, 0x4e));
    v = _mm256_max_ps(v, _mm256_permute_ps(v, 0xb1));
    return _mm256_cvtss_f32(v);
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

#include "kernels/vector.h" /* needs the operations above */

/* ---- packed products ------------------------------------------------------------------- */

enum {
    PACKED_FLIP = VNNI ? 0x80 : 0,
    PACKED_SIDE = VNNI ? 3 : 2, /* by two panels: their integer and float sums in 16 registers */
};

typedef __m256i vi;

INLINE vi vi_load(const void *p)
{
    return _mm256_loadu_si256(p);
}
INLINE vi vi_set4(const void *p)
{
    return _mm256_set1_epi32(load_i32(p));
}
INLINE vi vi_low(vi v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}
INLINE vi vi_high(vi v)
{
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}
INLINE vi vi_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}
INLINE vi vi_fifth(vi v, int g)
{
    v = g < 4 ? _mm256_slli_epi16(v, 4 - g) : _mm256_srli_epi16(v, g - 4);
    return _mm256_and_si256(v, _mm256_set1_epi8(16));
}
INLINE vi vi_upper(vi v, int g)
{
    v = g == 0   ? _mm256_slli_epi16(v, 4)
        : g == 1 ? _mm256_slli_epi16(v, 2)
        : g == 3 ? _mm256_srli_epi16(v, 2)
                 : v;
    return _mm256_and_si256(v, _mm256_set1_epi8(48));
}
INLINE vi vi_values(vi v)
{
    const __m128i values = _mm_loadu_si128((const void *)iq4_values);
    const __m128i flipped = _mm_xor_si128(values, _mm_set1_epi8((char)PACKED_FLIP));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(flipped), v);
}
INLINE vi vi_sub(vi a, vi b)
{
    return _mm256_sub_epi32(a, b);
}
/* 8 pairs of at most 2 * 15 * 127 stay below 2^15. */
INLINE bool sums_fit_16_bits(enum cr_type type)
{
    return !VNNI && pairs_in_16_bits(type) == 8;
}
INLINE vi vi_dot(enum cr_type type, vi acc, vi w, vi x)
{
#if defined(__AVXVNNI__)
    (void)type;
    return _mm256_dpbusd_avx_epi32(acc, w, x);
#else
    if (sums_fit_16_bits(type))
        return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
    x = is_signed(type) ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                        : _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
#endif
}
INLINE vf vi_float(enum cr_type type, vi v, const int32_t *sum)
{
    if (sums_fit_16_bits(type))
        v = _mm256_madd_epi16(v, _mm256_set1_epi16(1));
    if (type == CR_Q4_0 || type == CR_Q5_0)
        v = _mm256_sub_epi32(v,
                             _mm256_slli_epi32(_mm256_set1_epi32(*sum), type == CR_Q4_0 ? 3 : 4));
    if (VNNI && is_signed(type))
        v = _mm256_sub_epi32(v, _mm256_slli_epi32(_mm256_set1_epi32(*sum), 7));
    return _mm256_cvtepi32_ps(v);
}
INLINE vi vi_start(enum cr_type type, const int32_t *sum)
{
    (void)type;
    (void)sum;
    return _mm256_setzero_si256();
}

#include "kernels/packed.h" /* needs the operations above */

#include "kernels/blocks.h" /* and what packed.h makes for many tokens */

/* All of the level's table but its name. */
#define AVX2_KERNELS                                                                               \
    .matmul =                                                                                      \
        {[CR_F32] = matmul_f32, [CR_F16] = matmul_f16, [CR_BF16] = matmul_bf16, MATMUL_QUANTISED}, \
    .quantize_q8a = quantize_q8a, VECTOR_KERNELS, PACKED_KERNELS

#endif
