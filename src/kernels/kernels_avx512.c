/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX-512 (F, BW, DQ, VL, VNNI).
 *
 * Quantised products as in kernels_avx2.c, with 16 rows: one row per 32-bit lane, a block of 16
 * rows transposed into a tile whose vector g holds bytes 4g..4g+3 of every row. VPDPBUSD multiplies
 * unsigned weight codes by the signed codes of an activation, broadcast from where they lie. Q8_0
 * codes are made unsigned by adding 128 and those of Q4_0 are 8 too large in the file, so the
 * integer sum of a group begins with -128 or -8 times the sum of the activation's codes and comes
 * out exact; other types likewise. The floats then follow kernels_ref.c, so the results are the
 * same bits.
 *
 * The float kernels are those of vector.h, with 16 lanes.
 */
#include "kernels/rows16.h"
#include "kernels/sums16.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum {
    LANES = 16,
    SIDE = 12, /* 12 sums and the 8 vectors of a tile in 32 registers */
    STREAMS = 0,
};

typedef __m512 vf;
typedef __mmask16 vm;

INLINE void load_tiles(enum cr_type type, struct tile *out, const uint8_t *p, size_t rb)
{
    if (type == CR_Q4_K || type == CR_Q5_K)
        load_tiles_k4(type, out, p, rb);
    else if (type == CR_Q6_K)
        load_tiles_k6(out, p, rb);
    else
        *out = load_tile_16(type, p, rb, false);
}

/* Lanes [begin, end). */
INLINE vm v_lanes(size_t begin, size_t end)
{
    return (vm)((1u << end) - (1u << begin));
}
INLINE vf v_load_mask(const float *p, vm mask)
{
    return _mm512_maskz_loadu_ps(mask, p);
}
INLINE void v_store_mask(float *p, vf v, vm mask)
{
    _mm512_mask_storeu_ps(p, mask, v);
}
INLINE vf v_zero(void)
{
    return _mm512_setzero_ps();
}

/* ---- quantised products ---------------------------------------------------------------- */

/* Unsigned codes are too large by this, negated; 0: they are right. */
INLINE int sum_factor(enum cr_type type)
{
    return type == CR_Q8_0 || type == CR_IQ4_NL ? -128 : -code_offset(type);
}

INLINE int load_i32(const void *p)
{
    int v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* sums[t][2 b], [2 b + 1]: where the integer sums of the group, or its two halves, begin. */
INLINE void multiply(enum cr_type type, int T, vf *acc, const struct tile *tile,
                     const struct cr_block_q8a *const *x, const int32_t *const *sums, size_t b)
{
    const bool halves = type == CR_Q6_K;
    const int parts = halves ? 2 : 1;
    UNROLL for (int t = 0; t < T; t++)
    {
        const struct cr_block_q8a *xb = &x[t][b];
        __m512i dot[2];
        UNROLL for (int h = 0; h < parts; h++)
        {
            dot[h] = sum_factor(type) ? _mm512_set1_epi32(sums[t][2 * b + (size_t)h])
                                      : _mm512_setzero_si512();
        }
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            __m512i v = _mm512_set1_epi32(load_i32(xb->q + 4 * g));
            dot[halves && g >= 4] = _mm512_dpbusd_epi32(dot[halves && g >= 4], tile->w[g], v);
        }
        vf d = _mm512_mul_ps(tile->d, _mm512_set1_ps(xb->d));
        acc[t] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot[0]), acc[t]);
        if (halves) {
            d = _mm512_mul_ps(tile->m, _mm512_set1_ps(xb->d));
            acc[t] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot[1]), acc[t]);
        }
        if (has_minimum(type))
            acc[t] = _mm512_fmadd_ps(tile->m, _mm512_set1_ps(xb->s), acc[t]);
    }
}

#define CR_READS_ROWS
INLINE vf add_block(enum cr_type type, vf acc, const uint8_t *p, size_t rb,
                    const struct cr_block_q8a *x, bool more, const uint8_t *next)
{
    if (type == CR_Q6_K)
        return add_k6(acc, p, rb, x, next);
    if (type == CR_Q4_K || type == CR_Q5_K)
        return add_k4(type, acc, p, rb, x, next);
    ask_for(next, LANES * block_bytes(type));
    if (type == CR_Q8_0)
        return add_q8_0(acc, p, rb, x);
    if (more && type != CR_Q5_0 && type != CR_Q5_1)
        return add_small(type, acc, p, rb, x, -sum_factor(type));
    const struct tile tile = load_tile_16(type, p, rb, false);
    const int32_t sum = sum_factor(type) * x->sum, *sums = &sum;
    multiply(type, 1, &acc, &tile, &x, &sums, 0);
    return acc;
}

static void sum_codes(enum cr_type type, int32_t *sums, const struct cr_block_q8a *x,
                      size_t n_groups)
{
    const __m256i ones = _mm256_set1_epi8(1);
    for (size_t b = 0; b < n_groups; b++) {
        __m256i q = _mm256_loadu_si256((const void *)x[b].q);
        q = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, q);
        q = _mm256_add_epi32(q, _mm256_shuffle_epi32(q, 0x4e));
        q = _mm256_add_epi32(q, _mm256_shuffle_epi32(q, 0xb1));
        int lo = _mm256_extract_epi32(q, 0), hi = _mm256_extract_epi32(q, 4);
        sums[2 * b] = sum_factor(type) * (type == CR_Q6_K ? lo : lo + hi);
        sums[2 * b + 1] = sum_factor(type) * hi;
    }
}

#include "kernels/blocks.h" /* needs what is above */

/* d = max|x| / 127. The bits of |x| order like the numbers, and NaN and infinity above them all. */
static void quantize_q8a(struct cr_block_q8a *dst, const float *x, size_t n)
{
    const __m512i no_sign = _mm512_set1_epi32(0x7fffffff), lo = _mm512_set1_epi32(-127);
    for (size_t b = 0; b < n / CR_QK; b++, x += CR_QK) {
        __m512 v0 = _mm512_loadu_ps(x), v1 = _mm512_loadu_ps(x + 16);
        __m512i a0 = _mm512_and_si512(_mm512_castps_si512(v0), no_sign);
        __m512i a1 = _mm512_and_si512(_mm512_castps_si512(v1), no_sign);
        int top = _mm512_reduce_max_epi32(_mm512_max_epi32(a0, a1));
        float d = NAN;
        if (top < 0x7f800000)
            d = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(top))) / 127;
        __m512i q0 = _mm512_setzero_si512(), q1 = q0;
        if (d > 0) { /* the narrowing saturates at 127 and -128, hence the lower bound */
            const __m512 dv = _mm512_set1_ps(d), most = _mm512_set1_ps(127);
            v0 = _mm512_min_ps(_mm512_div_ps(v0, dv), most);
            v1 = _mm512_min_ps(_mm512_div_ps(v1, dv), most);
            q0 = _mm512_max_epi32(_mm512_cvtps_epi32(v0), lo);
            q1 = _mm512_max_epi32(_mm512_cvtps_epi32(v1), lo);
        }
        _mm_storeu_si128((void *)dst[b].q, _mm512_cvtepi32_epi8(q0));
        _mm_storeu_si128((void *)(dst[b].q + 16), _mm512_cvtepi32_epi8(q1));
        dst[b].d = d;
        dst[b].sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
        dst[b].s = d * (float)dst[b].sum;
    }
}

/* ---- the operations of vector.h -------------------------------------------------------- */

enum { FLOAT_ROWS = 4, FLOAT_SIDE = 6, MIX_SIDE = 4, MIX_COLUMNS = 4 };

INLINE vf v_set1(float a)
{
    return _mm512_set1_ps(a);
}
INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE void v_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
INLINE vf v_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(v_lanes(0, n), p);
}
INLINE void v_store_part(float *p, vf v, size_t n)
{
    _mm512_mask_storeu_ps(p, v_lanes(0, n), v);
}
INLINE void v_columns(vf out[4], const uint8_t *p, size_t rb)
{
    __m512i columns[4];
    transpose_16x16(columns, p, rb);
    UNROLL for (int i = 0; i < 4; i++)
    {
        out[i] = _mm512_castsi512_ps(columns[i]);
    }
}
INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
INLINE vf v_set1_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)*p));
}
INLINE vf v_load_bf16(const uint16_t *p)
{
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}
INLINE vf v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE void v_store_f16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
INLINE vf v_round(vf v)
{
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf v_scale(vf v, vf k)
{
    return _mm512_scalef_ps(v, k);
}
INLINE float v_sum(vf v)
{
    return sum_lanes(v);
}
INLINE void v_sum_tile(float *y, size_t ldy, int T, vf acc[FLOAT_ROWS][FLOAT_SIDE])
{
    store_tile(y, ldy, T, acc);
}
INLINE float v_top(vf v)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    h = _mm256_max_ps(h, _mm256_permute2f128_ps(h, h, 1));
    h = _mm256_max_ps(h, _mm256_permute_ps(h, 0x4e));
    h = _mm256_max_ps(h, _mm256_permute_ps(h, 0xb1));
    return _mm256_cvtss_f32(h);
}

/* By hand, because GCC 12 vectorises the plain loop with fused operations in spite of
 * -ffp-contract=off. */
static void rope_norm(float *x, const float *cs, size_t d)
{
    const __m512i even = _mm512_set1_epi64((long long)0x80000000u);
    for (size_t i = 0; i < d; i += LANES) {
        vm m = v_lanes(0, d - i < LANES ? (d - i) & ~(size_t)1 : LANES);
        vf v = v_load_mask(x + i, m), a = v_load_mask(cs + i, m);
        vf c = _mm512_moveldup_ps(a), s = _mm512_movehdup_ps(a);
        vf turned = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), s);
        turned = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(turned), even));
        v_store_mask(x + i, _mm512_add_ps(_mm512_mul_ps(v, c), turned), m);
    }
}

#include "kernels/vector.h" /* needs the operations above */

/* ---- packed products ------------------------------------------------------------------- */

enum {
    PACKED_FLIP = 0x80,
    PACKED_SIDE = 6, /* by two panels: 12 integer and 12 float sums in 32 registers */
};

typedef __m512i vi;

INLINE vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
INLINE vi vi_set4(const void *p)
{
    return _mm512_set1_epi32(load_i32(p));
}
INLINE vi vi_low(vi v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
INLINE vi vi_high(vi v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
INLINE vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
INLINE vi vi_fifth(vi v, int g)
{
    v = g < 4 ? _mm512_slli_epi16(v, 4 - g) : _mm512_srli_epi16(v, g - 4);
    return _mm512_and_si512(v, _mm512_set1_epi8(16));
}
INLINE vi vi_upper(vi v, int g)
{
    v = g == 0   ? _mm512_slli_epi16(v, 4)
        : g == 1 ? _mm512_slli_epi16(v, 2)
        : g == 3 ? _mm512_srli_epi16(v, 2)
                 : v;
    return _mm512_and_si512(v, _mm512_set1_epi8(48));
}
INLINE vi vi_values(vi v)
{
    const __m128i values = _mm_loadu_si128((const void *)iq4_values);
    const __m128i flipped = _mm_xor_si128(values, _mm_set1_epi8((char)PACKED_FLIP));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(flipped), v);
}
INLINE vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
/* -128, -8 or -16 times the sum of the activation's codes: see the top. */
INLINE vi vi_start(enum cr_type type, const int32_t *sum)
{
    const vi zero = _mm512_setzero_si512();
    const unsigned shift = type == CR_Q8_0 || type == CR_IQ4_NL ? 7 : type == CR_Q4_0 ? 3 : 4;
    if (sum_factor(type) == 0)
        return zero;
    return _mm512_sub_epi32(zero, _mm512_slli_epi32(_mm512_set1_epi32(*sum), shift));
}
INLINE vi vi_dot(enum cr_type type, vi acc, vi w, vi x)
{
    (void)type;
    return _mm512_dpbusd_epi32(acc, w, x);
}
INLINE vf vi_float(enum cr_type type, vi v, const int32_t *sum)
{
    (void)type;
    (void)sum;
    return _mm512_cvtepi32_ps(v);
}

#include "kernels/packed.h" /* needs the operations above */

/* Blocks [begin, end) of a panel, with signed codes. */
INLINE void load_panel(enum cr_type type, struct tile *out, const uint8_t *panel, size_t begin,
                       size_t end)
{
    const bool flipped = type == CR_Q8_0 || type == CR_IQ4_NL;
    const vi flip = _mm512_set1_epi8((char)PACKED_FLIP);
    const vi less = _mm512_set1_epi8((char)code_offset(type));
    for (size_t b = begin; b < end; b++, out++) {
        const uint8_t *codes = panel + codes_at(type, b);
        const vi fifth = vi_load(codes + (has_fifth(type) ? 4 * sizeof(vi) : 0));
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            vi w = load_codes(type, codes, fifth, g % 4, g / 4);
            out->w[g] = flipped ? _mm512_xor_si512(w, flip) : _mm512_sub_epi8(w, less);
        }
        load_scales(type, &out->d, &out->m, panel, b);
    }
}

void cr_load_panel_16(enum cr_type type, struct tile *out, const uint8_t *panel, size_t begin,
                      size_t end)
{
    switch (type) {
    case CR_Q8_0:
        load_panel(CR_Q8_0, out, panel, begin, end);
        break;
    case CR_Q4_0:
        load_panel(CR_Q4_0, out, panel, begin, end);
        break;
    case CR_Q4_1:
        load_panel(CR_Q4_1, out, panel, begin, end);
        break;
    case CR_Q5_0:
        load_panel(CR_Q5_0, out, panel, begin, end);
        break;
    case CR_Q5_1:
        load_panel(CR_Q5_1, out, panel, begin, end);
        break;
    case CR_Q4_K:
        load_panel(CR_Q4_K, out, panel, begin, end);
        break;
    case CR_Q5_K:
        load_panel(CR_Q5_K, out, panel, begin, end);
        break;
    default:
        load_panel(CR_IQ4_NL, out, panel, begin, end);
    }
}

const struct cr_kernels cr_kernels_avx512 = {
    .name = "avx512",
    .level = CR_CPU_AVX512,
    .matmul =
        {[CR_F32] = matmul_f32, [CR_F16] = matmul_f16, [CR_BF16] = matmul_bf16, MATMUL_QUANTISED},
    .quantize_q8a = quantize_q8a,
    VECTOR_KERNELS,
    PACKED_KERNELS,
};
