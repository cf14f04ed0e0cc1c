/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor types: the table of names and block sizes, the 16-bit floats, and the plain C conversions
 * that say what a block means. Speed lives in the kernel tables.
 *
 * Block layouts follow the GGUF format; groups.h reads them.
 */
#include "kernels/quant.h"

#include "kernels/groups.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

_Static_assert(sizeof(struct cr_block_q4_0) == 18, "a Q4_0 block is 18 bytes in a file");
_Static_assert(sizeof(struct cr_block_q4_1) == 20, "a Q4_1 block is 20 bytes in a file");
_Static_assert(sizeof(struct cr_block_q8_0) == 34, "a Q8_0 block is 34 bytes in a file");
_Static_assert(sizeof(struct cr_block_q5_0) == 22, "a Q5_0 block is 22 bytes in a file");
_Static_assert(sizeof(struct cr_block_q5_1) == 24, "a Q5_1 block is 24 bytes in a file");
_Static_assert(sizeof(struct cr_block_q4_k) == 144, "a Q4_K block is 144 bytes in a file");
_Static_assert(sizeof(struct cr_block_q5_k) == 176, "a Q5_K block is 176 bytes in a file");
_Static_assert(sizeof(struct cr_block_q6_k) == 210, "a Q6_K block is 210 bytes in a file");
_Static_assert(sizeof(struct cr_block_iq4_nl) == 18, "an IQ4_NL block is 18 bytes in a file");
_Static_assert(sizeof(struct cr_block_q8a) == 44, "an activation block has no padding");

static const struct cr_type_info unknown_type = {NULL, 0, 0, false};

/* Indexed by GGUF's type number. The last field says what crayon can compute with. */
static const struct cr_type_info type_table[CR_TYPE_END] = {
    [CR_F32] = {"F32", 1, 4, true},
    [CR_F16] = {"F16", 1, 2, true},
    [CR_Q4_0] = {"Q4_0", 32, 18, true},
    [CR_Q4_1] = {"Q4_1", 32, 20, true},
    [CR_Q5_0] = {"Q5_0", 32, 22, true},
    [CR_Q5_1] = {"Q5_1", 32, 24, true},
    [CR_Q8_0] = {"Q8_0", 32, 34, true},
    [9] = {"Q8_1", 32, 36, false},
    [10] = {"Q2_K", 256, 84, false},
    [11] = {"Q3_K", 256, 110, false},
    [CR_Q4_K] = {"Q4_K", 256, 144, true},
    [CR_Q5_K] = {"Q5_K", 256, 176, true},
    [CR_Q6_K] = {"Q6_K", 256, 210, true},
    [15] = {"Q8_K", 256, 292, false},
    [16] = {"IQ2_XXS", 256, 66, false},
    [17] = {"IQ2_XS", 256, 74, false},
    [18] = {"IQ3_XXS", 256, 98, false},
    [19] = {"IQ1_S", 256, 50, false},
    [CR_IQ4_NL] = {"IQ4_NL", 32, 18, true},
    [21] = {"IQ3_S", 256, 110, false},
    [22] = {"IQ2_S", 256, 82, false},
    [23] = {"IQ4_XS", 256, 136, false},
    [24] = {"I8", 1, 1, false},
    [25] = {"I16", 1, 2, false},
    [26] = {"I32", 1, 4, false},
    [27] = {"I64", 1, 8, false},
    [28] = {"F64", 1, 8, false},
    [29] = {"IQ1_M", 256, 56, false},
    [CR_BF16] = {"BF16", 1, 2, true},
    [34] = {"TQ1_0", 256, 54, false},
    [35] = {"TQ2_0", 256, 66, false},
    [39] = {"MXFP4", 32, 17, false},
};

const struct cr_type_info *cr_type_info(uint32_t type)
{
    return type < CR_TYPE_END ? &type_table[type] : &unknown_type;
}

size_t cr_row_bytes(uint32_t type, size_t n)
{
    const struct cr_type_info *t = cr_type_info(type);
    if (t->block == 0 || n % t->block != 0 || n / t->block > SIZE_MAX / t->block_size)
        return 0;
    return n / t->block * t->block_size;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float cr_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 31, frac = h & 1023u;
    if (exp == 31) /* infinity, or NaN made quiet as the hardware does */
        return float_of(sign | 0x7f800000u | frac << 13 | (frac ? 0x400000u : 0));
    if (exp == 0) { /* zero and subnormals: frac * 2^-24, exact */
        float f = (float)frac * 0x1p-24f;
        return sign ? -f : f;
    }
    return float_of(sign | (exp + 112) << 23 | frac << 13);
}

uint16_t cr_f32_to_f16(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: a multiple of 2^-24; the sum rounds to even */
        float scaled = float_of(a) + 0.5f;
        return (uint16_t)(sign | (bits_of(scaled) - bits_of(0.5f)));
    }
    uint32_t even = a >> 13 & 1;
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + even) >> 13));
}

float cr_bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t cr_f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

/* ---- to float32 ------------------------------------------------------------------------ */

/* Values in mapped files may lie at odd addresses, so each is copied before it is read. */
void cr_dequantize_ref(uint32_t type, float *dst, const void *src, size_t n)
{
    const uint8_t *p = src;
    const struct cr_type_info *info = cr_type_info(type);
    if (type == CR_F32) {
        if (n > 0)
            memcpy(dst, src, n * sizeof *dst);
        return;
    }
    for (size_t i = 0; info->block == 1 && info->usable && i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        dst[i] = type == CR_F16 ? cr_f16_to_f32(h) : cr_bf16_to_f32(h);
    }
    for (size_t i = 0; info->block > 1 && info->usable && i < n; p += info->block_size) {
        for (int j = 0; j < groups_of(type); j++, i += CR_QK) {
            struct group g;
            unpack_group(&g, type, p, j);
            for (int k = 0; k < CR_QK; k++) /* without a minimum, -0 stays -0 */
                dst[i + (size_t)k] = has_minimum(type) ? g.d[k / 16] * (float)g.q[k] + g.m
                                                       : g.d[k / 16] * (float)g.q[k];
        }
    }
}

/* ---- from float32 ---------------------------------------------------------------------- */

/* Nearest code in [lo, hi]; a NaN becomes lo, so that the conversion to int is always defined. */
static int code(float v, float lo, float hi)
{
    float r = rintf(v);
    return (int)(r > lo ? (r < hi ? r : hi) : lo);
}

static float inverse(float d)
{
    return d != 0 ? 1 / d : 0;
}

/* The value of largest magnitude among n. */
static float furthest(const float *x, int n)
{
    float most = 0;
    for (int j = 0; j < n; j++)
        if (fabsf(x[j]) > fabsf(most))
            most = x[j];
    return most;
}

static void range(const float *x, float *lo, float *hi)
{
    *lo = FLT_MAX;
    *hi = -FLT_MAX;
    for (int j = 0; j < CR_QK; j++) {
        *lo = x[j] < *lo ? x[j] : *lo;
        *hi = x[j] > *hi ? x[j] : *hi;
    }
}

/* Codes of 4 or 5 bits into nibbles and, where h is not NULL, fifth bits. */
static void pack_halves(uint8_t q[16], uint8_t h[4], const uint8_t c[CR_QK])
{
    for (int j = 0; j < 16; j++)
        q[j] = (uint8_t)((c[j] & 15) | (c[j + 16] & 15) << 4);
    for (int j = 0; h && j < CR_QK; j++)
        h[j / 8] = (uint8_t)((j % 8 ? h[j / 8] : 0) | c[j] >> 4 << j % 8);
}

/* The value of largest magnitude becomes the end of the range that reaches further: -8 or -16. */
static uint16_t symmetric(uint8_t c[CR_QK], const float *x, int reach)
{
    float d = furthest(x, CR_QK) / (float)-reach, inv = inverse(d);
    for (int j = 0; j < CR_QK; j++)
        c[j] = (uint8_t)(code(x[j] * inv, (float)-reach, (float)(reach - 1)) + reach);
    return cr_f32_to_f16(d);
}

/* Codes 0 to top from the smallest value to the largest. */
static uint16_t between(uint8_t c[CR_QK], uint16_t *m, const float *x, int top)
{
    float lo, hi;
    range(x, &lo, &hi);
    float d = hi / (float)top - lo / (float)top, inv = inverse(d);
    for (int j = 0; j < CR_QK; j++)
        c[j] = (uint8_t)code((x[j] - lo) * inv, 0, (float)top);
    *m = cr_f32_to_f16(lo);
    return cr_f32_to_f16(d);
}

static void quantize_q4_0(struct cr_block_q4_0 *b, const float *x)
{
    uint8_t c[CR_QK];
    b->d = symmetric(c, x, 8);
    pack_halves(b->q, NULL, c);
}

static void quantize_q5_0(struct cr_block_q5_0 *b, const float *x)
{
    uint8_t c[CR_QK];
    b->d = symmetric(c, x, 16);
    pack_halves(b->q, b->h, c);
}

static void quantize_q4_1(struct cr_block_q4_1 *b, const float *x)
{
    uint8_t c[CR_QK];
    b->d = between(c, &b->m, x, 15);
    pack_halves(b->q, NULL, c);
}

static void quantize_q5_1(struct cr_block_q5_1 *b, const float *x)
{
    uint8_t c[CR_QK];
    b->d = between(c, &b->m, x, 31);
    pack_halves(b->q, b->h, c);
}

static void quantize_q8_0(struct cr_block_q8_0 *b, const float *x)
{
    float d = fabsf(furthest(x, CR_QK)) / 127, inv = inverse(d);
    b->d = cr_f32_to_f16(d);
    for (int j = 0; j < CR_QK; j++)
        b->q[j] = (int8_t)code(x[j] * inv, -127, 127);
}

static void quantize_iq4_nl(struct cr_block_iq4_nl *b, const float *x)
{
    uint8_t c[CR_QK];
    float d = furthest(x, CR_QK) / -127, inv = inverse(d);
    for (int j = 0; j < CR_QK; j++) {
        int at = 0;
        for (int k = 1; k < 16; k++)
            if (fabsf(x[j] * inv - iq4_values[k]) < fabsf(x[j] * inv - iq4_values[at]))
                at = k;
        c[j] = (uint8_t)at;
    }
    b->d = cr_f32_to_f16(d);
    pack_halves(b->q, NULL, c);
}

/* The float16 that makes 63 of the largest of 8 numbers, and the other numbers as multiples. */
static uint16_t six_bit_multiples(uint8_t c[8], const float v[8])
{
    float most = 0;
    for (int j = 0; j < 8; j++)
        most = v[j] > most ? v[j] : most;
    uint16_t h = cr_f32_to_f16(most / 63);
    float inv = inverse(cr_f16_to_f32(h));
    for (int j = 0; j < 8; j++)
        c[j] = (uint8_t)code(v[j] * inv, 0, 63);
    return h;
}

/* Scales, minima (none above 0) and codes 0 to top of 8 groups. */
static void quantize_k(uint16_t *d, uint16_t *m, uint8_t s[12], uint8_t c[CR_QK_K], const float *x,
                       int top)
{
    float scale[8], depth[8];
    uint8_t sc[8], mn[8];
    for (int j = 0; j < 8; j++) {
        float lo, hi;
        range(x + CR_QK * j, &lo, &hi);
        depth[j] = lo < 0 ? -lo : 0;
        scale[j] = hi / (float)top + depth[j] / (float)top;
    }
    *d = six_bit_multiples(sc, scale);
    *m = six_bit_multiples(mn, depth);
    for (int j = 0; j < 4; j++) {
        s[j] = (uint8_t)(sc[j] | sc[j + 4] >> 4 << 6);
        s[j + 4] = (uint8_t)(mn[j] | mn[j + 4] >> 4 << 6);
        s[j + 8] = (uint8_t)((sc[j + 4] & 15) | (mn[j + 4] & 15) << 4);
    }
    for (int i = 0; i < CR_QK_K; i++) {
        float step = cr_f16_to_f32(*d) * (float)sc[i / CR_QK];
        float min = cr_f16_to_f32(*m) * (float)mn[i / CR_QK];
        c[i] = (uint8_t)code((x[i] + min) * inverse(step), 0, (float)top);
    }
}

/* Group 2 c in the low, group 2 c + 1 in the high nibbles of bytes 32 c .. 32 c + 31. */
static void pack_k(uint8_t q[128], const uint8_t c[CR_QK_K])
{
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = c + i / 32 * 64 + i % 32;
        q[i] = (uint8_t)((pair[0] & 15) | (pair[32] & 15) << 4);
    }
}

static void quantize_q4_k(struct cr_block_q4_k *b, const float *x)
{
    uint8_t c[CR_QK_K];
    quantize_k(&b->d, &b->m, b->s, c, x, 15);
    pack_k(b->q, c);
}

static void quantize_q5_k(struct cr_block_q5_k *b, const float *x)
{
    uint8_t c[CR_QK_K];
    quantize_k(&b->d, &b->m, b->s, c, x, 31);
    pack_k(b->q, c);
    memset(b->h, 0, sizeof b->h);
    for (int i = 0; i < CR_QK_K; i++)
        b->h[i % 32] = (uint8_t)(b->h[i % 32] | c[i] >> 4 << i / 32);
}

static void quantize_q6_k(struct cr_block_q6_k *b, const float *x)
{
    float scale[16];
    for (int j = 0; j < 16; j++)
        scale[j] = furthest(x + 16 * j, 16) / -32;
    b->d = cr_f32_to_f16(furthest(scale, 16) / -128);
    const float d = cr_f16_to_f32(b->d), inv = inverse(d);
    memset(b, 0, offsetof(struct cr_block_q6_k, s));
    for (int i = 0; i < CR_QK_K; i++) {
        b->s[i / 16] = (int8_t)code(scale[i / 16] * inv, -128, 127);
        int c = code(x[i] * inverse(d * (float)b->s[i / 16]), -32, 31) + 32;
        int half = i / 128, part = i % 128 / 32, at = i % 32;
        uint8_t *q = b->q + 64 * half + 32 * (part & 1) + at, *h = b->h + 32 * half + at;
        *q = (uint8_t)(*q | (c & 15) << 4 * (part / 2));
        *h = (uint8_t)(*h | c >> 4 << 2 * part);
    }
}

void cr_quantize_ref(uint32_t type, void *dst, const float *src, size_t n)
{
    unsigned char *p = dst;
    union {
        uint16_t h;
        struct cr_block_q4_0 q4_0;
        struct cr_block_q4_1 q4_1;
        struct cr_block_q5_0 q5_0;
        struct cr_block_q5_1 q5_1;
        struct cr_block_q8_0 q8_0;
        struct cr_block_q4_k q4_k;
        struct cr_block_q5_k q5_k;
        struct cr_block_q6_k q6_k;
        struct cr_block_iq4_nl iq4_nl;
    } b;
    size_t step = cr_type_info(type)->block, size = cr_type_info(type)->block_size;
    if (type == CR_F32) {
        if (n > 0)
            memcpy(dst, src, n * sizeof *src);
        return;
    }
    if (!cr_type_info(type)->usable)
        return;
    for (size_t i = 0; i < n; i += step, p += size) {
        switch (type) {
        case CR_F16:
            b.h = cr_f32_to_f16(src[i]);
            break;
        case CR_BF16:
            b.h = cr_f32_to_bf16(src[i]);
            break;
        case CR_Q4_0:
            quantize_q4_0(&b.q4_0, src + i);
            break;
        case CR_Q4_1:
            quantize_q4_1(&b.q4_1, src + i);
            break;
        case CR_Q5_0:
            quantize_q5_0(&b.q5_0, src + i);
            break;
        case CR_Q5_1:
            quantize_q5_1(&b.q5_1, src + i);
            break;
        case CR_Q4_K:
            quantize_q4_k(&b.q4_k, src + i);
            break;
        case CR_Q5_K:
            quantize_q5_k(&b.q5_k, src + i);
            break;
        case CR_Q6_K:
            quantize_q6_k(&b.q6_k, src + i);
            break;
        case CR_IQ4_NL:
            quantize_iq4_nl(&b.iq4_nl, src + i);
            break;
        default:
            quantize_q8_0(&b.q8_0, src + i);
        }
        memcpy(p, &b, size);
    }
}
