/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NEON: the vectors that every AArch64 processor has, or with the dot products of Armv8.2 (SDOT) or
 * the small matrix products of Armv8.6 (SMMLA) as well. Included once for each of these levels,
 * each built with its own flags.
 *
 * Quantised products as in avx2_body.h, with 4 rows, one per 32-bit lane: a tile's vector g holds
 * bytes 4g..4g+3 of each row as signed codes. SMMLA takes 8 bytes of two rows by 8 bytes of two
 * tokens: there vector 2 o holds bytes 8o..8o+7 of rows 0 and 1, vector 2 o + 1 those of rows 2 and
 * 3. The integers are exact, so the order of their sums does not matter. The float kernels are
 * those of vector.h, with 4 lanes.
 */
#ifndef CR_NEON_BODY_H
#define CR_NEON_BODY_H

#include "kernels/groups.h"
#include "kernels/levels.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

enum {
    LANES = 4,
    GROUPS = CR_QK / 4,
    SIDE = 8, /* 8 integer and 8 float sums in 32 registers */
    STREAMS = 0,
};

typedef float32x4_t vf;
typedef struct {
    size_t begin, end;
} vm;

INLINE vm v_lanes(size_t begin, size_t end)
{
    return (vm){begin, end};
}
INLINE vf v_load_mask(const float *p, vm mask)
{
    float buf[LANES] = {0};
    for (size_t i = mask.begin; i < mask.end; i++)
        buf[i] = p[i];
    return vld1q_f32(buf);
}
INLINE void v_store_mask(float *p, vf v, vm mask)
{
    float buf[LANES];
    if (mask.begin == 0 && mask.end == LANES) {
        vst1q_f32(p, v);
        return;
    }
    vst1q_f32(buf, v);
    for (size_t i = mask.begin; i < mask.end; i++)
        p[i] = buf[i];
}
INLINE vf v_zero(void)
{
    return vdupq_n_f32(0);
}

/* ---- quantised products ---------------------------------------------------------------- */

/* One group of 32 columns of 4 rows. */
struct tile {
    int8x16_t w[GROUPS];
    vf d, m;
};

/* 16 bytes of each of 4 rows, as 4 vectors of one dword per row. */
INLINE void transpose_4x16(uint32x4_t out[4], const uint8_t *p, size_t rb)
{
    uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(p));
    uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(p + rb));
    uint32x4_t c = vreinterpretq_u32_u8(vld1q_u8(p + 2 * rb));
    uint32x4_t d = vreinterpretq_u32_u8(vld1q_u8(p + 3 * rb));
    uint64x2_t ab0 = vreinterpretq_u64_u32(vtrn1q_u32(a, b));
    uint64x2_t ab1 = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
    uint64x2_t cd0 = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
    uint64x2_t cd1 = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
    out[0] = vreinterpretq_u32_u64(vtrn1q_u64(ab0, cd0));
    out[1] = vreinterpretq_u32_u64(vtrn1q_u64(ab1, cd1));
    out[2] = vreinterpretq_u32_u64(vtrn2q_u64(ab0, cd0));
    out[3] = vreinterpretq_u32_u64(vtrn2q_u64(ab1, cd1));
}

/* The float16 at p of each of 4 rows. */
INLINE vf scales(const uint8_t *p, size_t rb)
{
    uint16_t h[LANES];
    for (size_t r = 0; r < LANES; r++)
        memcpy(&h[r], p + r * rb, sizeof *h);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
}

/* `even` in the low and `odd` in the high nibbles of 4 vectors. */
INLINE void split_nibbles(int8x16_t even[4], int8x16_t odd[4], const uint32x4_t v[4])
{
    UNROLL for (int g = 0; g < 4; g++)
    {
        uint8x16_t q = vreinterpretq_u8_u32(v[g]);
        even[g] = vreinterpretq_s8_u8(vandq_u8(q, vdupq_n_u8(15)));
        odd[g] = vreinterpretq_s8_u8(vshrq_n_u8(q, 4));
    }
}

/* The codes of a type as signed numbers. */
INLINE void subtract_offset(enum cr_type type, int8x16_t w[GROUPS])
{
    const int8x16_t offset = vdupq_n_s8((int8_t)code_offset(type));
    UNROLL for (int g = 0; g < GROUPS; g++)
    {
        w[g] = vsubq_s8(w[g], offset);
    }
}

/* Adds 16 to the codes whose bit in the rows' 32 bits, at p, is set. */
INLINE void add_fifth_bits(int8x16_t w[GROUPS], const uint8_t *p, size_t rb)
{
    static const uint8_t rows[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    uint32_t h[LANES];
    for (size_t r = 0; r < LANES; r++)
        memcpy(&h[r], p + r * rb, sizeof *h);
    const uint8x16_t bits = vreinterpretq_u8_u32(vld1q_u32(h));
    UNROLL for (int g = 0; g < GROUPS; g++)
    { /* to each of a row's 4 codes the byte that has their bits */
        uint8x16_t from = vaddq_u8(vld1q_u8(rows), vdupq_n_u8((uint8_t)(g / 2)));
        uint8x16_t bit = vreinterpretq_u8_u32(vdupq_n_u32(g % 2 ? 0x80402010u : 0x08040201u));
        uint8x16_t set = vandq_u8(vtstq_u8(vqtbl1q_u8(bits, from), bit), vdupq_n_u8(16));
        w[g] = vorrq_s8(w[g], vreinterpretq_s8_u8(set));
    }
}

/* The block at p of each of 4 rows, rb bytes apart, of a type with one group in a block. */
INLINE struct tile load_tile(enum cr_type type, const uint8_t *p, size_t rb)
{
    struct tile t;
    uint32x4_t a[GROUPS];
    const bool five = type == CR_Q5_0 || type == CR_Q5_1;
    t.d = scales(p, rb);
    t.m = has_minimum(type) ? scales(p + 2, rb) : v_zero();
    if (type == CR_Q8_0) {
        transpose_4x16(a, p + 2, rb);
        transpose_4x16(a + 4, p + 18, rb);
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = vreinterpretq_s8_u32(a[g]);
        }
        return t;
    }
    p += has_minimum(type) ? 4 : 2;
    transpose_4x16(a, p + (five ? 4 : 0), rb);
    split_nibbles(t.w, t.w + 4, a);
    if (five)
        add_fifth_bits(t.w, p, rb);
    if (type == CR_IQ4_NL) {
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            t.w[g] = vqtbl1q_s8(vld1q_s8(iq4_values), vreinterpretq_u8_s8(t.w[g]));
        }
    }
    if (code_offset(type) != 0)
        subtract_offset(type, t.w);
    return t;
}

/* Byte j of each lane as float. */
INLINE vf lane_byte(uint32x4_t v, int j)
{
    return vcvtq_f32_u32(vandq_u32(vshlq_u32(v, vdupq_n_s32(-8 * j)), vdupq_n_u32(255)));
}
INLINE vf lane_signed_byte(uint32x4_t v, int j)
{
    int32x4_t up = vreinterpretq_s32_u32(vshlq_u32(v, vdupq_n_s32(24 - 8 * j)));
    return vcvtq_f32_s32(vshrq_n_s32(up, 24));
}

/* w[g] |= (bits << shift) & mask; bits to the right where shift is negative. */
INLINE void or_bits(int8x16_t *w, uint32x4_t bits, int shift, uint8_t mask)
{
    uint8x16_t v = vshlq_u8(vreinterpretq_u8_u32(bits), vdupq_n_s8((int8_t)shift));
    *w = vorrq_s8(*w, vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(mask))));
}

/* Q4_K and Q5_K. */
INLINE void load_tiles_k4(enum cr_type type, struct tile *out, const uint8_t *p, size_t rb)
{
    const bool five = type == CR_Q5_K;
    const uint32x4_t six = vdupq_n_u32(0x3f3f3f3f), four = vdupq_n_u32(0x0f0f0f0f);
    const uint32x4_t top = vdupq_n_u32(0x30303030);
    const vf d = scales(p, rb), m = scales(p + 2, rb);
    uint32x4_t head[4], fifth[GROUPS], v[GROUPS];
    transpose_4x16(head, p, rb); /* d and m; 3 times 4 bytes that hold six-bit numbers */
    const uint32x4_t s[2] = {
        vandq_u32(head[1], six),
        vorrq_u32(vandq_u32(head[3], four), vandq_u32(vshrq_n_u32(head[1], 2), top))};
    const uint32x4_t mins[2] = {vandq_u32(head[2], six),
                                vorrq_u32(vandq_u32(vshrq_n_u32(head[3], 4), four),
                                          vandq_u32(vshrq_n_u32(head[2], 2), top))};
    if (five) {
        transpose_4x16(fifth, p + 16, rb);
        transpose_4x16(fifth + 4, p + 32, rb);
    }
    p += five ? 48 : 16;
    UNROLL for (int c = 0; c < 4; c++)
    {
        transpose_4x16(v, p + 32 * c, rb);
        transpose_4x16(v + 4, p + 32 * c + 16, rb);
        split_nibbles(out[2 * c].w, out[2 * c + 1].w, v);
        split_nibbles(out[2 * c].w + 4, out[2 * c + 1].w + 4, v + 4);
    }
    UNROLL for (int j = 0; j < 8; j++)
    {
        out[j].d = vmulq_f32(d, lane_byte(s[j / 4], j % 4));
        out[j].m = vmulq_f32(vnegq_f32(m), lane_byte(mins[j / 4], j % 4));
        if (!five)
            continue;
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            or_bits(&out[j].w[g], fifth[g], 4 - j, 16);
        }
    }
}

/* Q6_K: d and m are the scales of the two halves. */
INLINE void load_tiles_k6(struct tile *out, const uint8_t *p, size_t rb)
{
    const vf d = scales(p + 208, rb);
    uint32x4_t s[4], h[GROUPS], v[GROUPS];
    transpose_4x16(s, p + 192, rb);
    UNROLL for (int half = 0; half < 2; half++)
    {
        struct tile *t = out + 4 * half;
        transpose_4x16(h, p + 128 + 32 * half, rb);
        transpose_4x16(h + 4, p + 144 + 32 * half, rb);
        UNROLL for (int c = 0; c < 2; c++)
        {
            transpose_4x16(v, p + 64 * half + 32 * c, rb);
            transpose_4x16(v + 4, p + 64 * half + 32 * c + 16, rb);
            split_nibbles(t[c].w, t[c + 2].w, v);
            split_nibbles(t[c].w + 4, t[c + 2].w + 4, v + 4);
        }
        UNROLL for (int c = 0; c < 4; c++)
        {
            UNROLL for (int g = 0; g < GROUPS; g++)
            {
                or_bits(&t[c].w[g], h[g], 4 - 2 * c, 48);
            }
            subtract_offset(CR_Q6_K, t[c].w);
        }
    }
    UNROLL for (int j = 0; j < 8; j++)
    {
        out[j].d = vmulq_f32(d, lane_signed_byte(s[j / 2], 2 * (j % 2)));
        out[j].m = vmulq_f32(d, lane_signed_byte(s[j / 2], 2 * (j % 2) + 1));
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
#if defined(__ARM_FEATURE_MATMUL_INT8)
    for (int j = 0; j < groups_of(type); j++) {
        UNROLL for (int o = 0; o < GROUPS; o += 2)
        {
            int32x4_t a = vreinterpretq_s32_s8(out[j].w[o]);
            int32x4_t b = vreinterpretq_s32_s8(out[j].w[o + 1]);
            out[j].w[o] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
            out[j].w[o + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
        }
    }
#endif
}

/* The integer sums of columns 4 begin .. 4 end - 1 of a tile by T activations; begin and end are
 * multiples of 4. */
#if defined(__ARM_FEATURE_MATMUL_INT8)
INLINE void integer_sums(int T, int32x4_t *dot, const struct tile *tile,
                         const struct cr_block_q8a *const *x, size_t b, int begin, int end)
{
    const int32x4_t zero = vdupq_n_s32(0);
    if (T == 1) { /* each lane half of the sum of a row */
        int32x4_t low = zero, high = zero;
        UNROLL for (int o = begin; o < end; o += 2)
        {
            int8x8_t q = vld1_s8(x[0][b].q + 4 * o);
            low = vdotq_s32(low, tile->w[o], vcombine_s8(q, q));
            high = vdotq_s32(high, tile->w[o + 1], vcombine_s8(q, q));
        }
        dot[0] = vpaddq_s32(low, high);
        return;
    }
    UNROLL for (int t = 0; t < T; t += 2)
    {
        int32x4_t low = zero, high = zero; /* row 0 by both tokens, row 1; rows 2 and 3 */
        UNROLL for (int o = begin; o < end; o += 2)
        {
            int8x16_t q = vcombine_s8(vld1_s8(x[t][b].q + 4 * o), vld1_s8(x[t + 1][b].q + 4 * o));
            low = vmmlaq_s32(low, tile->w[o], q);
            high = vmmlaq_s32(high, tile->w[o + 1], q);
        }
        dot[t] = vuzp1q_s32(low, high);
        dot[t + 1] = vuzp2q_s32(low, high);
    }
}
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE void integer_sums(int T, int32x4_t *dot, const struct tile *tile,
                         const struct cr_block_q8a *const *x, size_t b, int begin, int end)
{
    UNROLL for (int t = 0; t < T; t++)
    {
        dot[t] = vdupq_n_s32(0);
        UNROLL for (int g = begin; g < end; g += 4)
        {
            int8x16_t q = vld1q_s8(x[t][b].q + 4 * g);
            dot[t] = vdotq_laneq_s32(dot[t], tile->w[g], q, 0);
            dot[t] = vdotq_laneq_s32(dot[t], tile->w[g + 1], q, 1);
            dot[t] = vdotq_laneq_s32(dot[t], tile->w[g + 2], q, 2);
            dot[t] = vdotq_laneq_s32(dot[t], tile->w[g + 3], q, 3);
        }
    }
}
#else
INLINE void integer_sums(int T, int32x4_t *dot, const struct tile *tile,
                         const struct cr_block_q8a *const *x, size_t b, int begin, int end)
{
    UNROLL for (int t = 0; t < T; t++)
    {
        dot[t] = vdupq_n_s32(0);
    }
    UNROLL for (int g = begin; g < end; g++)
    {
        int8x16_t w = tile->w[g];
        UNROLL for (int t = 0; t < T; t++)
        {
            int32_t four;
            memcpy(&four, x[t][b].q + 4 * g, sizeof four);
            int8x16_t q = vreinterpretq_s8_s32(vdupq_n_s32(four));
            int16x8_t lo = vmull_s8(vget_low_s8(w), vget_low_s8(q));
            int16x8_t hi = vmull_high_s8(w, q); /* pairs are at most 2 * 128 * 127 < 2^15 */
            dot[t] = vpadalq_s16(dot[t], vpaddq_s16(lo, hi));
        }
    }
}
#endif

INLINE void multiply(enum cr_type type, int T, vf *acc, const struct tile *tile,
                     const struct cr_block_q8a *const *x, const int32_t *const *sums, size_t b)
{
    const int parts = type == CR_Q6_K ? 2 : 1;
    (void)sums;
    UNROLL for (int part = 0; part < parts; part++)
    {
        int32x4_t dot[SIDE];
        integer_sums(T, dot, tile, x, b, part * 4, (part + 1) * GROUPS / parts);
        UNROLL for (int t = 0; t < T; t++)
        {
            const struct cr_block_q8a *xb = &x[t][b];
            vf d = vmulq_n_f32(part ? tile->m : tile->d, xb->d);
            acc[t] = vfmaq_f32(acc[t], d, vcvtq_f32_s32(dot[t]));
            if (has_minimum(type))
                acc[t] = vfmaq_n_f32(acc[t], tile->m, xb->s);
        }
    }
}

/* The codes are signed as they are: no sums. */
INLINE int sum_factor(enum cr_type type)
{
    (void)type;
    return 0;
}

INLINE void sum_codes(enum cr_type type, int32_t *sums, const struct cr_block_q8a *x,
                      size_t n_groups)
{
    (void)type;
    (void)sums;
    (void)x;
    (void)n_groups;
}

#include "kernels/blocks.h" /* needs what is above */

/* d = max|x| / 127. The bits of |x| order like the numbers, and NaN and infinity above them all. */
static void quantize_q8a(struct cr_block_q8a *dst, const float *x, size_t n)
{
    for (size_t b = 0; b < n / CR_QK; b++, x += CR_QK) {
        uint32x4_t top = vdupq_n_u32(0);
        for (int i = 0; i < 8; i++)
            top = vmaxq_u32(top, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + 4 * i))));
        uint32_t most = vmaxvq_u32(top);
        float d;
        memcpy(&d, &most, sizeof d);
        d = most < 0x7f800000u ? d / 127 : NAN;
        int32x4_t sum = vdupq_n_s32(0), q = sum;
        for (int i = 0; i < 8; i++) {
            if (d > 0)
                q = vcvtnq_s32_f32(vdivq_f32(vld1q_f32(x + 4 * i), vdupq_n_f32(d)));
            q = vminq_s32(vmaxq_s32(q, vdupq_n_s32(-127)), vdupq_n_s32(127));
            sum = vaddq_s32(sum, q);
            int16x4_t half = vmovn_s32(q);
            int8x8_t codes = vmovn_s16(vcombine_s16(half, half));
            vst1_lane_s32((void *)(dst[b].q + 4 * i), vreinterpret_s32_s8(codes), 0);
        }
        dst[b].d = d;
        dst[b].sum = vaddvq_s32(sum);
        dst[b].s = d * (float)dst[b].sum;
    }
}

/* ---- the operations of vector.h -------------------------------------------------------- */

enum { FLOAT_ROWS = 4, FLOAT_SIDE = 4, MIX_SIDE = 4, MIX_COLUMNS = 4 };

INLINE vf v_set1(float a)
{
    return vdupq_n_f32(a);
}
INLINE vf v_load(const float *p)
{
    return vld1q_f32(p);
}
INLINE void v_store(float *p, vf v)
{
    vst1q_f32(p, v);
}
INLINE vf v_load_part(const float *p, size_t n)
{
    return v_load_mask(p, v_lanes(0, n));
}
INLINE void v_store_part(float *p, vf v, size_t n)
{
    v_store_mask(p, v, v_lanes(0, n));
}
INLINE void v_columns(vf out[4], const uint8_t *p, size_t rb)
{
    uint32x4_t columns[4];
    transpose_4x16(columns, p, rb);
    UNROLL for (int i = 0; i < 4; i++)
    {
        out[i] = vreinterpretq_f32_u32(columns[i]);
    }
}
INLINE vf v_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
INLINE vf v_set1_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_dup_u16(p)));
}
INLINE vf v_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
INLINE vf v_load_i8(const int8_t *p)
{
    int8_t q[8] = {p[0], p[1], p[2], p[3]};
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(q)))));
}
INLINE void v_store_f16(uint16_t *p, vf v)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
INLINE vf v_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}
INLINE vf v_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}
INLINE vf v_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}
INLINE vf v_div(vf a, vf b)
{
    return vdivq_f32(a, b);
}
INLINE vf v_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
INLINE vf v_max(vf a, vf b)
{
    return vmaxq_f32(a, b);
}
INLINE vf v_min(vf a, vf b)
{
    return vminq_f32(a, b);
}
INLINE vf v_round(vf v)
{
    return vrndnq_f32(v);
}
/* In two factors, of which only the last can round. */
INLINE vf v_scale(vf v, vf k)
{
    int32x4_t n = vcvtnq_s32_f32(k), half = vshrq_n_s32(n, 1), rest = vsubq_s32(n, half);
    int32x4_t bias = vdupq_n_s32(127);
    vf a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    vf b = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    return vmulq_f32(vmulq_f32(v, a), b);
}
/* (0+1) + (2+3) */
INLINE float v_sum(vf v)
{
    v = vpaddq_f32(v, v);
    return vgetq_lane_f32(vpaddq_f32(v, v), 0);
}
INLINE void v_sum_4(float *y, vf a, vf b, vf c, vf d)
{
    vst1q_f32(y, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
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
    return vmaxvq_f32(v);
}

static void rope_norm(float *x, const float *cs, size_t d)
{
    size_t i = 0;
    for (; d - i >= 2 * LANES; i += 2 * LANES) {
        float32x4x2_t v = vld2q_f32(x + i), a = vld2q_f32(cs + i), r;
        r.val[0] = vsubq_f32(vmulq_f32(v.val[0], a.val[0]), vmulq_f32(v.val[1], a.val[1]));
        r.val[1] = vaddq_f32(vmulq_f32(v.val[0], a.val[1]), vmulq_f32(v.val[1], a.val[0]));
        vst2q_f32(x + i, r);
    }
    for (; i + 1 < d; i += 2) {
        float a = x[i], b = x[i + 1], c = cs[i], s = cs[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

#include "kernels/vector.h" /* needs the operations above */

/* All of a level's table but its name. */
#define NEON_KERNELS                                                                               \
    .matmul =                                                                                      \
        {[CR_F32] = matmul_f32, [CR_F16] = matmul_f16, [CR_BF16] = matmul_bf16, MATMUL_QUANTISED}, \
    .quantize_q8a = quantize_q8a, .attn_scores_q8 = cr_attn_scores_q8_ref,                         \
    .attn_mix_q8 = cr_attn_mix_q8_ref, VECTOR_KERNELS

#endif
