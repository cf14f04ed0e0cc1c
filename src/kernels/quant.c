/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor types: the table of names and block sizes, the 16-bit floats, and the plain C conversions
 * that say what a block means. Speed lives in the kernel tables.
 *
 * Block layouts follow the GGUF format: 32 values a block; in the 4-bit types byte j holds value j
 * in its low and value j + 16 in its high nibble.
 */
#include "kernels/quant.h"

#include <float.h>
#include <math.h>
#include <string.h>

_Static_assert(sizeof(struct cr_block_q4_0) == 18, "a Q4_0 block is 18 bytes in a file");
_Static_assert(sizeof(struct cr_block_q4_1) == 20, "a Q4_1 block is 20 bytes in a file");
_Static_assert(sizeof(struct cr_block_q8_0) == 34, "a Q8_0 block is 34 bytes in a file");
_Static_assert(sizeof(struct cr_block_q8a) == 40, "an activation block has no padding");

static const struct cr_type_info unknown_type = {NULL, 0, 0, false};

/* Indexed by GGUF's type number. The last field says what crayon can compute with. */
static const struct cr_type_info type_table[CR_TYPE_END] = {
    [CR_F32] = {"F32", 1, 4, true},     [CR_F16] = {"F16", 1, 2, true},
    [CR_Q4_0] = {"Q4_0", 32, 18, true}, [CR_Q4_1] = {"Q4_1", 32, 20, true},
    [6] = {"Q5_0", 32, 22, false},      [7] = {"Q5_1", 32, 24, false},
    [CR_Q8_0] = {"Q8_0", 32, 34, true}, [9] = {"Q8_1", 32, 36, false},
    [10] = {"Q2_K", 256, 84, false},    [11] = {"Q3_K", 256, 110, false},
    [12] = {"Q4_K", 256, 144, false},   [13] = {"Q5_K", 256, 176, false},
    [14] = {"Q6_K", 256, 210, false},   [15] = {"Q8_K", 256, 292, false},
    [16] = {"IQ2_XXS", 256, 66, false}, [17] = {"IQ2_XS", 256, 74, false},
    [18] = {"IQ3_XXS", 256, 98, false}, [19] = {"IQ1_S", 256, 50, false},
    [20] = {"IQ4_NL", 32, 18, false},   [21] = {"IQ3_S", 256, 110, false},
    [22] = {"IQ2_S", 256, 82, false},   [23] = {"IQ4_XS", 256, 136, false},
    [24] = {"I8", 1, 1, false},         [25] = {"I16", 1, 2, false},
    [26] = {"I32", 1, 4, false},        [27] = {"I64", 1, 8, false},
    [28] = {"F64", 1, 8, false},        [29] = {"IQ1_M", 256, 56, false},
    [CR_BF16] = {"BF16", 1, 2, true},   [34] = {"TQ1_0", 256, 54, false},
    [35] = {"TQ2_0", 256, 66, false},   [39] = {"MXFP4", 32, 17, false},
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

static void dequantize_q4_0(float *dst, const struct cr_block_q4_0 *b)
{
    float d = cr_f16_to_f32(b->d);
    for (int j = 0; j < 16; j++) {
        dst[j] = d * (float)((b->q[j] & 15) - 8);
        dst[j + 16] = d * (float)((b->q[j] >> 4) - 8);
    }
}

static void dequantize_q4_1(float *dst, const struct cr_block_q4_1 *b)
{
    float d = cr_f16_to_f32(b->d), m = cr_f16_to_f32(b->m);
    for (int j = 0; j < 16; j++) {
        dst[j] = d * (float)(b->q[j] & 15) + m;
        dst[j + 16] = d * (float)(b->q[j] >> 4) + m;
    }
}

static void dequantize_q8_0(float *dst, const struct cr_block_q8_0 *b)
{
    float d = cr_f16_to_f32(b->d);
    for (int j = 0; j < CR_QK; j++)
        dst[j] = d * (float)b->q[j];
}

/* Blocks in a mapped file may lie at odd addresses, so each is copied before it is read. */
void cr_dequantize_ref(uint32_t type, float *dst, const void *src, size_t n)
{
    const unsigned char *p = src;
    union {
        uint16_t h;
        struct cr_block_q4_0 q4_0;
        struct cr_block_q4_1 q4_1;
        struct cr_block_q8_0 q8_0;
    } b;
    size_t step = cr_type_info(type)->block, size = cr_type_info(type)->block_size;
    if (type == CR_F32) {
        if (n > 0)
            memcpy(dst, src, n * sizeof *dst);
        return;
    }
    if (!cr_type_info(type)->usable)
        return;
    for (size_t i = 0; i < n; i += step, p += size) {
        memcpy(&b, p, size);
        if (type == CR_F16)
            dst[i] = cr_f16_to_f32(b.h);
        else if (type == CR_BF16)
            dst[i] = cr_bf16_to_f32(b.h);
        else if (type == CR_Q4_0)
            dequantize_q4_0(dst + i, &b.q4_0);
        else if (type == CR_Q4_1)
            dequantize_q4_1(dst + i, &b.q4_1);
        else
            dequantize_q8_0(dst + i, &b.q8_0);
    }
}

/* ---- from float32 ---------------------------------------------------------------------- */

/* Nearest code in [lo, hi]; a NaN becomes lo, so that the conversion to int is always defined. */
static int code(float v, float lo, float hi)
{
    float r = rintf(v);
    return (int)(r > lo ? (r < hi ? r : hi) : lo);
}

/* The value of largest magnitude becomes -8, the end of the range that reaches further. */
static void quantize_q4_0(struct cr_block_q4_0 *b, const float *x)
{
    float most = 0;
    for (int j = 0; j < CR_QK; j++)
        if (fabsf(x[j]) > fabsf(most))
            most = x[j];
    float d = most / -8, inv = d != 0 ? 1 / d : 0;
    b->d = cr_f32_to_f16(d);
    for (int j = 0; j < 16; j++)
        b->q[j] =
            (uint8_t)((code(x[j] * inv, -8, 7) + 8) | (code(x[j + 16] * inv, -8, 7) + 8) << 4);
}

static void quantize_q4_1(struct cr_block_q4_1 *b, const float *x)
{
    float lo = FLT_MAX, hi = -FLT_MAX;
    for (int j = 0; j < CR_QK; j++) {
        lo = x[j] < lo ? x[j] : lo;
        hi = x[j] > hi ? x[j] : hi;
    }
    float d = hi / 15 - lo / 15, inv = d != 0 ? 1 / d : 0;
    b->d = cr_f32_to_f16(d);
    b->m = cr_f32_to_f16(lo);
    for (int j = 0; j < 16; j++)
        b->q[j] =
            (uint8_t)(code((x[j] - lo) * inv, 0, 15) | code((x[j + 16] - lo) * inv, 0, 15) << 4);
}

static void quantize_q8_0(struct cr_block_q8_0 *b, const float *x)
{
    float most = 0;
    for (int j = 0; j < CR_QK; j++)
        most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
    float d = most / 127, inv = d != 0 ? 1 / d : 0;
    b->d = cr_f32_to_f16(d);
    for (int j = 0; j < CR_QK; j++)
        b->q[j] = (int8_t)code(x[j] * inv, -127, 127);
}

void cr_quantize_ref(uint32_t type, void *dst, const float *src, size_t n)
{
    unsigned char *p = dst;
    union {
        uint16_t h;
        struct cr_block_q4_0 q4_0;
        struct cr_block_q4_1 q4_1;
        struct cr_block_q8_0 q8_0;
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
        if (type == CR_F16)
            b.h = cr_f32_to_f16(src[i]);
        else if (type == CR_BF16)
            b.h = cr_f32_to_bf16(src[i]);
        else if (type == CR_Q4_0)
            quantize_q4_0(&b.q4_0, src + i);
        else if (type == CR_Q4_1)
            quantize_q4_1(&b.q4_1, src + i);
        else
            quantize_q8_0(&b.q8_0, src + i);
        memcpy(p, &b, size);
    }
}
