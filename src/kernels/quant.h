/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor types of model files: names, block sizes, and rows to and from float32. The reference
 * (plain C) conversions live here; the fast ones are in the kernel table.
 */
#ifndef CR_QUANT_H
#define CR_QUANT_H

#include "base/error.h"

/* Values are GGUF's tensor type numbers. Only those in CR_TYPE_LIST are usable. */
enum cr_type {
    CR_F32 = 0,
    CR_F16 = 1,
    CR_Q4_0 = 2,
    CR_Q4_1 = 3,
    CR_Q8_0 = 8,
    CR_BF16 = 30,
    CR_TYPE_END = 64
};

struct cr_type_info {
    const char *name;    /* "Q8_0"; NULL for a type we do not know */
    uint32_t block;      /* values in a block */
    uint32_t block_size; /* bytes of a block */
    bool usable;         /* false: known by name only (K-quants, for clear errors) */
};

enum { CR_QK = 32 };
struct cr_block_q4_0 {
    uint16_t d; /* float16 scale; value = d * (nibble - 8); low nibbles are values 0-15 */
    uint8_t q[16];
};
struct cr_block_q4_1 {
    uint16_t d, m; /* float16; value = d * nibble + m */
    uint8_t q[16];
};
struct cr_block_q8_0 {
    uint16_t d; /* float16; value = d * q */
    int8_t q[32];
};
/* An activation quantised for products with the blocks above: value = d * q, s = d * sum(q). */
struct cr_block_q8a {
    float d, s;
    int8_t q[32];
};

const struct cr_type_info *cr_type_info(uint32_t type); /* name NULL when unknown; never NULL */
/* Bytes of a row of n values; 0 if n is not a multiple of the block. */
size_t cr_row_bytes(uint32_t type, size_t n);

float cr_f16_to_f32(uint16_t h);
uint16_t cr_f32_to_f16(float f); /* round to nearest even */
float cr_bf16_to_f32(uint16_t h);
uint16_t cr_f32_to_bf16(float f); /* round to nearest even, NaN kept */

/* Plain C: n values of `type` at src to float32, and back (round to nearest). */
void cr_dequantize_ref(uint32_t type, float *dst, const void *src, size_t n);
void cr_quantize_ref(uint32_t type, void *dst, const float *src, size_t n);

#endif
