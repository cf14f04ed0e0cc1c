/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finite differences, for the tests of gradients. A gradient g of f at x is right when the slope of
 * f along a direction d is g . d: along g itself, along random directions and along single
 * coordinates. Slopes are central differences with steps e and 2e, extrapolated: the error left is
 * of order e^4, and float32 noise in f of about 1e-7 |f| leaves three to four digits.
 */
#ifndef CR_TEST_GRADIENT_H
#define CR_TEST_GRADIENT_H

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef double gradient_fn(void *ud); /* reads x, gives f */

static inline double slope(gradient_fn *f, void *ud, float *x, const float *saved, const double *d,
                           size_t n, double step)
{
    double at[2];
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < n; i++)
            x[i] = (float)(saved[i] + (side ? -step : step) * d[i]);
        at[side] = f(ud);
    }
    memcpy(x, saved, n * sizeof *x);
    return (at[0] - at[1]) / (2 * step);
}

/* The largest error over all directions, as a share of |g|. */
static inline double gradient_error(gradient_fn *f, void *ud, float *x, const float *g, size_t n,
                                    double step, uint64_t seed)
{
    enum { RANDOM = 3, SINGLE = 8 };
    struct cr_rng rng;
    float *saved = cr_alloc(n, sizeof *saved);
    double *d = cr_alloc(n, sizeof *d), norm = 0, worst = 0;
    cr_rng_init(&rng, seed);
    memcpy(saved, x, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        norm += (double)g[i] * g[i];
    norm = sqrt(norm);
    for (int k = 0; k < 1 + RANDOM + SINGLE; k++) {
        double length = 0, want = 0;
        size_t only = cr_rng_below(&rng, n);
        for (size_t i = 0; i < n; i++) {
            d[i] = k == 0 ? g[i] : k <= RANDOM ? cr_rng_normal(&rng) : i == only ? 1 : 0;
            length += d[i] * d[i];
        }
        for (size_t i = 0; i < n && length > 0; i++) {
            d[i] /= sqrt(length);
            want += d[i] * g[i];
        }
        double wide = slope(f, ud, x, saved, d, n, 2 * step),
               near = slope(f, ud, x, saved, d, n, step);
        double off = fabs((4 * near - wide) / 3 - want) / (norm + 1e-30);
        worst = off > worst ? off : worst;
    }
    cr_free(d);
    cr_free(saved);
    return norm > 0 ? worst : INFINITY; /* a gradient that is all 0 tests nothing */
}

static inline void fill_normal(float *x, size_t n, double scale, uint64_t seed)
{
    struct cr_rng rng;
    cr_rng_init(&rng, seed);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(scale * cr_rng_normal(&rng));
}

static inline float *new_normal(size_t n, double scale, uint64_t seed)
{
    float *x = cr_alloc(n, sizeof *x);
    fill_normal(x, n, scale, seed);
    return x;
}

#endif
