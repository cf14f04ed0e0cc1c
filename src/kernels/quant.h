/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor types of model files: names, block sizes, and rows to and from float32. The reference
 * (plain C) conversions live here; the fast ones are in the kernel table.
 */
#ifndef CR_QUANT_H
#define CR_QUANT_H

#include "base/error.h"

/* Values are GGUF's tensor type numbers; these are the usable ones. */
enum cr_type {
    CR_F32 = 0,
    CR_F16 = 1,
    CR_Q4_0 = 2,
    CR_Q4_1 = 3,
    CR_Q5_0 = 6,
    CR_Q5_1 = 7,
    CR_Q8_0 = 8,
    CR_Q4_K = 12,
    CR_Q5_K = 13,
    CR_Q6_K = 14,
    CR_IQ4_NL = 20,
    CR_BF16 = 30,
    CR_TYPE_END = 64
};

struct cr_type_info {
    const char *name;    /* "Q8_0"; NULL for a type we do not know */
    uint32_t block;      /* values in a block */
    uint32_t block_size; /* bytes of a block */
    bool usable;         /* false: known by name only, for clear errors */
};

/* Values in a block, and in one of the K-types. What the bytes of a block mean: groups.h. */
enum { CR_QK = 32, CR_QK_K = 256 };
#define CR_USABLE_TYPES "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K or IQ4_NL"

struct cr_block_q4_0 {
    uint16_t d; /* float16 scale; value = d * (nibble - 8); low nibbles are values 0-15 */
    uint8_t q[16];
};
struct cr_block_q4_1 {
    uint16_t d, m; /* float16; value = d * nibble + m */
    uint8_t q[16];
};
struct cr_block_q5_0 {
    uint16_t d; /* float16; value = d * (code - 16) */
    uint8_t h[4], q[16];
};
struct cr_block_q5_1 {
    uint16_t d, m; /* float16; value = d * code + m */
    uint8_t h[4], q[16];
};
struct cr_block_q8_0 {
    uint16_t d; /* float16; value = d * q */
    int8_t q[32];
};
/* 8 groups of 32, each with a scale and a minimum of six bits: value = d scale code - m min */
struct cr_block_q4_k {
    uint16_t d, m;
    uint8_t s[12], q[128];
};
struct cr_block_q5_k {
    uint16_t d, m;
    uint8_t s[12], h[32], q[128];
};
/* 16 groups of 16, each with a scale: value = d scale (code - 32) */
struct cr_block_q6_k {
    uint8_t q[128], h[64];
    int8_t s[16];
    uint16_t d;
};
struct cr_block_iq4_nl {
    uint16_t d; /* float16; value = d * iq4_values[nibble] */
    uint8_t q[16];
};
/* An activation quantised for products with the blocks above: value = d * q, sum = sum of q,
 * s = d * sum. */
struct cr_block_q8a {
    float d, s;
    int32_t sum;
    int8_t q[32];
};

const struct cr_type_info *cr_type_info(uint32_t type); /* name NULL when unknown; never NULL */
/* Bytes of a row of n values; 0 if n is not a multiple of the block. */
size_t cr_row_bytes(uint32_t type, size_t n);

float cr_f16_to_f32(uint16_t h);
uint16_t cr_f32_to_f16(float f); /* round to nearest even */
float cr_bf16_to_f32(uint16_t h);
uint16_t cr_f32_to_bf16(float f); /* round to nearest even, NaN kept */

/* Plain C: n values of `type` at src to float32, and back (round to nearest; the scales of K-types
 * are taken from the range of each group, with no search for better ones). */
void cr_dequantize_ref(uint32_t type, float *dst, const void *src, size_t n);
void cr_quantize_ref(uint32_t type, void *dst, const float *src, size_t n);

#endif
