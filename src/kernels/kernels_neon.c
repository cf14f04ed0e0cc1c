/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NEON, the vectors that every AArch64 processor has.
 *
 * Quantised products as in kernels_avx2.c, with 4 rows, one per 32-bit lane: a tile's vector g
 * holds bytes 4g..4g+3 of each row as signed codes. The float kernels are those of vector.h, with 4
 * lanes.
 */
#include "kernels/levels.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

enum {
    LANES = 4,
    GROUPS = CR_QK / 4,
    SIDE = 8, /* 8 integer and 8 float sums in 32 registers */
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

INLINE struct tile load_tile(enum cr_type type, const uint8_t *p, size_t rb)
{
    struct tile t;
    uint32x4_t a[4];
    t.d = scales(p, rb);
    t.m = type == CR_Q4_1 ? scales(p + 2, rb) : v_zero();
    transpose_4x16(a, p + (type == CR_Q4_1 ? 4 : 2), rb);
    const int8x16_t off = vdupq_n_s8(type == CR_Q4_0 ? 8 : 0);
    UNROLL for (int g = 0; g < 4; g++)
    {
        uint8x16_t q = vreinterpretq_u8_u32(a[g]);
        t.w[g] = vreinterpretq_s8_u8(q);
        if (type != CR_Q8_0) {
            t.w[g] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(q, vdupq_n_u8(15))), off);
            t.w[g + 4] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(q, 4)), off);
        }
    }
    if (type == CR_Q8_0) {
        transpose_4x16(a, p + 18, rb);
        UNROLL for (int g = 0; g < 4; g++)
        {
            t.w[g + 4] = vreinterpretq_s8_u32(a[g]);
        }
    }
    return t;
}

INLINE void multiply(enum cr_type type, int T, vf *acc, const struct tile *tile,
                     const struct cr_block_q8a *const *x, const int32_t *const *sums, size_t b)
{
    int32x4_t dot[SIDE];
    (void)sums;
    UNROLL for (int t = 0; t < T; t++)
    {
        dot[t] = vdupq_n_s32(0);
    }
    UNROLL for (int g = 0; g < GROUPS; g++)
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
    UNROLL for (int t = 0; t < T; t++)
    {
        const struct cr_block_q8a *xb = &x[t][b];
        acc[t] = vfmaq_f32(acc[t], vmulq_n_f32(tile->d, xb->d), vcvtq_f32_s32(dot[t]));
        if (type == CR_Q4_1)
            acc[t] = vfmaq_n_f32(acc[t], tile->m, xb->s);
    }
}

/* The codes are signed as they are: no sums. */
INLINE int sum_factor(enum cr_type type)
{
    (void)type;
    return 0;
}

INLINE void sum_codes(int32_t *sums, const struct cr_block_q8a *x, size_t n_blocks, int factor)
{
    (void)sums;
    (void)x;
    (void)n_blocks;
    (void)factor;
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
        dst[b].s = d * (float)vaddvq_s32(sum);
    }
}

/* ---- the operations of vector.h -------------------------------------------------------- */

enum { FLOAT_ROWS = 4, FLOAT_SIDE = 4 };

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

const struct cr_kernels cr_kernels_neon = {
    .name = "neon",
    .level = CR_CPU_NEON,
    .matmul = {[CR_F32] = matmul_f32,
               [CR_F16] = matmul_f16,
               [CR_BF16] = matmul_bf16,
               [CR_Q8_0] = matmul_q8_0,
               [CR_Q4_0] = matmul_q4_0,
               [CR_Q4_1] = matmul_q4_1},
    .quantize_q8a = quantize_q8a,
    VECTOR_KERNELS,
};
