/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels that are one simple loop over elements, with no sum and no function call: every level
 * compiles this same text with its own flags and lets the compiler use the vectors. The results are
 * the same bits at every level. Formulas: kernels.h.
 */
#ifndef CR_PLAIN_H
#define CR_PLAIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static void add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void axpy(float *y, float a, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* To the nearest, ties to even; NaN stays NaN. */
static void f32_to_bf16(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, src + i, sizeof u);
        uint32_t near = (u + 0x7fffu + (u >> 16 & 1)) >> 16, quiet = u >> 16 | 0x40u;
        dst[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet : near);
    }
}

/* A rotation of each pair (a, b) by its angle: (a cos - b sin, a sin + b cos). */
static void rope_neox(float *x, const float *cs, size_t d)
{
    for (size_t i = 0; i < d / 2; i++) {
        float a = x[i], b = x[i + d / 2], c = cs[2 * i], s = cs[2 * i + 1];
        x[i] = a * c - b * s;
        x[i + d / 2] = a * s + b * c;
    }
}

#endif
