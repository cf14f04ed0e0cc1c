/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of floats as wide as the level has them, for the kernels of training. */
#ifndef CR_TRAIN_VECTOR_H
#define CR_TRAIN_VECTOR_H

#include "kernels/levels.h"

#include <string.h>

#if defined(__AVX512F__)
enum { TV = 16 }; /* floats in a vector */
#elif defined(__AVX__)
enum { TV = 8 };
#else
enum { TV = 4 };
#endif
typedef float tv __attribute__((vector_size(4 * TV)));
typedef float tv_any __attribute__((vector_size(4 * TV), aligned(4), may_alias)); /* in memory */
typedef int32_t tvi __attribute__((vector_size(4 * TV)));

INLINE tv tv_load(const float *p)
{
    return *(const tv_any *)p;
}

INLINE void tv_store(float *p, tv v)
{
    *(tv_any *)p = v;
}

INLINE tv tv_set(float x)
{
    return x - (tv){0}; /* exact for -0 too, and so no operation */
}

/* The first n < TV floats, zeros beyond. */
INLINE tv tv_load_part(const float *p, size_t n)
{
    float buf[TV] = {0};
    memcpy(buf, p, n * sizeof *p);
    return tv_load(buf);
}

INLINE void tv_store_part(float *p, tv v, size_t n)
{
    float buf[TV];
    tv_store(buf, v);
    memcpy(p, buf, n * sizeof *p);
}

/* Halves are added on top of each other; the sum ends in lane 0. */
INLINE float tv_sum(tv v)
{
#if defined(__AVX512F__)
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1);
    v += __builtin_shufflevector(v, v, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0);
#elif defined(__AVX__)
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 2, 3, 0, 1);
    v += __builtin_shufflevector(v, v, 1, 0, 1, 0, 1, 0, 1, 0);
#else
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
    v += __builtin_shufflevector(v, v, 1, 0, 1, 0);
#endif
    return v[0];
}

#endif
