/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the blocks of a file mean, one group of 32 values at a time, in plain C: the codes as signed
 * bytes and the numbers that turn them into values. Most types have one group in a block, K-types
 * have eight. The conversions and the reference products are written on top of this.
 */
#ifndef CR_GROUPS_H
#define CR_GROUPS_H

#include "kernels/quant.h"

#include <string.h>

/* value[i] = d[i / 16] * q[i] + m. The d and m of K-types are products of a float16 and an integer
 * of at most 8 bits: exact in float32. */
struct group {
    float d[2], m; /* m: 0 where the type has no minimum */
    int8_t q[CR_QK];
};

/* Groups in a block. */
static inline int groups_of(uint32_t type)
{
    return type == CR_Q4_K || type == CR_Q5_K || type == CR_Q6_K ? CR_QK_K / CR_QK : 1;
}

/* Bytes of a block, for loops that the compiler shall know the length of. */
static inline size_t block_bytes(uint32_t type)
{
    switch (type) {
    case CR_Q8_0:
        return sizeof(struct cr_block_q8_0);
    case CR_Q4_1:
        return sizeof(struct cr_block_q4_1);
    case CR_Q5_0:
        return sizeof(struct cr_block_q5_0);
    case CR_Q5_1:
        return sizeof(struct cr_block_q5_1);
    case CR_Q4_K:
        return sizeof(struct cr_block_q4_k);
    case CR_Q5_K:
        return sizeof(struct cr_block_q5_k);
    case CR_Q6_K:
        return sizeof(struct cr_block_q6_k);
    default: /* Q4_0, IQ4_NL */
        return sizeof(struct cr_block_q4_0);
    }
}

static inline bool has_minimum(uint32_t type)
{
    return type == CR_Q4_1 || type == CR_Q5_1 || type == CR_Q4_K || type == CR_Q5_K;
}

/* What is subtracted from a code as it is in the file. */
static inline int code_offset(uint32_t type)
{
    return type == CR_Q4_0 ? 8 : type == CR_Q5_0 ? 16 : type == CR_Q6_K ? 32 : 0;
}

/* IQ4_NL: the values of the 16 codes. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

static inline float group_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return cr_f16_to_f32(h);
}

/* Scale and minimum of group j in the 12 bytes of Q4_K and Q5_K: six bits each, the upper two of
 * groups 4 to 7 above those of groups 0 to 3. */
static inline void six_bits(const uint8_t *s, int j, int *scale, int *min)
{
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

/* Bytes 0-15 of q hold values 0-15 in their low and 16-31 in their high nibbles; bit i of the 32
 * bits at h, if there are any, is the fifth of value i. */
static inline void unpack_halves(struct group *g, const uint8_t *q, const uint8_t *h, int offset)
{
    uint32_t bits = 0;
    if (h)
        memcpy(&bits, h, sizeof bits);
    for (int i = 0; i < 16; i++) {
        g->q[i] = (int8_t)((int)((q[i] & 15) | (bits >> i & 1) << 4) - offset);
        g->q[i + 16] = (int8_t)((int)(q[i] >> 4 | (bits >> (i + 16) & 1) << 4) - offset);
    }
}

/* Q4_K and Q5_K: bytes 32 c .. 32 c + 31 of q hold group 2 c in their low and 2 c + 1 in their high
 * nibbles; bit j of byte i of h is the fifth of value i of group j. */
static inline void unpack_k4(struct group *g, const uint8_t *p, int j, bool five)
{
    const uint8_t *h = p + 16, *q = p + (five ? 48 : 16) + j / 2 * 32;
    int scale, min;
    six_bits(p + 4, j, &scale, &min);
    g->d[0] = g->d[1] = group_f16(p) * (float)scale;
    g->m = -(group_f16(p + 2) * (float)min);
    for (int i = 0; i < CR_QK; i++)
        g->q[i] = (int8_t)((q[i] >> 4 * (j & 1) & 15) | (five ? (h[i] >> j & 1) << 4 : 0));
}

/* Q6_K: each half of 128 values has 64 bytes of q and 32 of h. Its groups 0 and 1 are the low
 * nibbles of the first and second 32 bytes of q, groups 2 and 3 the high ones; h has the upper two
 * bits of value i of its four groups in byte i. A scale for each 16 values. */
static inline void unpack_k6(struct group *g, const uint8_t *p, int j)
{
    const int half = j / 4, part = j % 4;
    const uint8_t *q = p + 64 * half + 32 * (part & 1), *h = p + 128 + 32 * half;
    const float d = group_f16(p + 208);
    g->d[0] = d * (float)(int8_t)p[192 + 2 * j];
    g->d[1] = d * (float)(int8_t)p[193 + 2 * j];
    for (int i = 0; i < CR_QK; i++)
        g->q[i] = (int8_t)(((q[i] >> 4 * (part / 2) & 15) | (h[i] >> 2 * part & 3) << 4) - 32);
}

/* Group j of the block at p, any address, of a type with blocks. */
static inline void unpack_group(struct group *g, uint32_t type, const uint8_t *p, int j)
{
    g->m = 0;
    if (type == CR_Q4_K || type == CR_Q5_K) {
        unpack_k4(g, p, j, type == CR_Q5_K);
        return;
    }
    if (type == CR_Q6_K) {
        unpack_k6(g, p, j);
        return;
    }
    g->d[0] = g->d[1] = group_f16(p);
    p += 2;
    if (has_minimum(type)) {
        g->m = group_f16(p);
        p += 2;
    }
    if (type == CR_Q8_0)
        memcpy(g->q, p, CR_QK);
    else if (type == CR_Q5_0 || type == CR_Q5_1)
        unpack_halves(g, p + 4, p, code_offset(type));
    else
        unpack_halves(g, p, NULL, code_offset(type));
    for (int i = 0; type == CR_IQ4_NL && i < CR_QK; i++)
        g->q[i] = iq4_values[g->q[i]];
}

#endif
