/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bodies of the kernels of train.h, on the vectors of train_vector.h.
 * Included once per level, each built with its own flags.
 */
#ifndef CR_TRAIN_BODY_H
#define CR_TRAIN_BODY_H

#include "kernels/train.h"
#include "kernels/train_gemm.h"

#include <math.h>

enum {
    THIN = 8, /* rows of a thin factor at a time */
#if defined(__AVX512F__) || defined(__aarch64__)
    THIN_ROWS = 3 /* rows of the wide matrix in thin_in: 24 sums of 32 registers */
#else
    THIN_ROWS = 1
#endif
};

/* R rows of b against one row of u: y += u b. */
INLINE void thin_out_block(size_t R, float *y, size_t ldy, const float *u, size_t ldu,
                           const float *b, size_t ldb, size_t rows, size_t part)
{
    tv w[THIN];
    UNROLL for (size_t j = 0; j < R; j++)
    {
        w[j] = part ? tv_load_part(b + j * ldb, part) : tv_load(b + j * ldb);
    }
    for (size_t t = 0; t < rows; t++) {
        tv sum = part ? tv_load_part(y + t * ldy, part) : tv_load(y + t * ldy);
        UNROLL for (size_t j = 0; j < R; j++)
        {
            sum += u[t * ldu + j] * w[j];
        }
        if (part)
            tv_store_part(y + t * ldy, sum, part);
        else
            tv_store(y + t * ldy, sum);
    }
}

static void thin_out(float *y, size_t ldy, const float *u, size_t ldu, const float *b, size_t ldb,
                     size_t rows, size_t r, size_t n)
{
    for (size_t o = 0; o < n; o += TV) {
        size_t part = n - o < TV ? n - o : 0, j = 0;
        for (; j + THIN <= r; j += THIN)
            thin_out_block(THIN, y + o, ldy, u + j, ldu, b + j * ldb + o, ldb, rows, part);
        for (; j < r; j++)
            thin_out_block(1, y + o, ldy, u + j, ldu, b + j * ldb + o, ldb, rows, part);
    }
}

/* S rows of y against R rows of b. */
INLINE void thin_in_block(size_t S, size_t R, float *u, size_t ldu, const float *y, size_t ldy,
                          const float *b, size_t ldb, size_t n)
{
    tv sum[THIN_ROWS][THIN];
    UNROLL for (size_t t = 0; t < S; t++)
    {
        UNROLL for (size_t j = 0; j < R; j++)
        {
            sum[t][j] = (tv){0};
        }
    }
    for (size_t o = 0; o < n; o += TV) {
        size_t part = n - o < TV ? n - o : 0;
        tv x[THIN_ROWS];
        UNROLL for (size_t t = 0; t < S; t++)
        {
            x[t] = part ? tv_load_part(y + t * ldy + o, part) : tv_load(y + t * ldy + o);
        }
        UNROLL for (size_t j = 0; j < R; j++)
        {
            const float *from = b + j * ldb + o;
            tv w = part ? tv_load_part(from, part) : tv_load(from);
            UNROLL for (size_t t = 0; t < S; t++)
            {
                sum[t][j] += x[t] * w;
            }
        }
    }
    UNROLL for (size_t t = 0; t < S; t++)
    {
        UNROLL for (size_t j = 0; j < R; j++)
        {
            u[t * ldu + j] = tv_sum(sum[t][j]);
        }
    }
}

static void thin_in(float *u, size_t ldu, const float *y, size_t ldy, const float *b, size_t ldb,
                    size_t rows, size_t r, size_t n)
{
    for (size_t j = 0; j < r;) {
        size_t t = 0, width = r - j >= THIN ? THIN : 1;
        for (; width == THIN && t + THIN_ROWS <= rows; t += THIN_ROWS)
            thin_in_block(THIN_ROWS, THIN, u + t * ldu + j, ldu, y + t * ldy, ldy, b + j * ldb, ldb,
                          n);
        for (; t < rows; t++)
            if (width == THIN)
                thin_in_block(1, THIN, u + t * ldu + j, ldu, y + t * ldy, ldy, b + j * ldb, ldb, n);
            else
                thin_in_block(1, 1, u + t * ldu + j, ldu, y + t * ldy, ldy, b + j * ldb, ldb, n);
        j += width;
    }
}

INLINE void thin_outer_block(size_t R, float *c, size_t ldc, const float *u, size_t ldu,
                             const float *y, size_t ldy, size_t rows, size_t part)
{
    tv sum[THIN];
    UNROLL for (size_t j = 0; j < R; j++)
    {
        sum[j] = (tv){0};
    }
    for (size_t t = 0; t < rows; t++) {
        tv x = part ? tv_load_part(y + t * ldy, part) : tv_load(y + t * ldy);
        UNROLL for (size_t j = 0; j < R; j++)
        {
            sum[j] += u[t * ldu + j] * x;
        }
    }
    UNROLL for (size_t j = 0; j < R; j++)
    {
        if (part)
            tv_store_part(c + j * ldc, sum[j], part);
        else
            tv_store(c + j * ldc, sum[j]);
    }
}

static void thin_outer(float *c, size_t ldc, const float *u, size_t ldu, const float *y, size_t ldy,
                       size_t rows, size_t r, size_t n)
{
    for (size_t o = 0; o < n; o += TV) {
        size_t part = n - o < TV ? n - o : 0, j = 0;
        for (; j + THIN <= r; j += THIN)
            thin_outer_block(THIN, c + j * ldc + o, ldc, u + j, ldu, y + o, ldy, rows, part);
        for (; j < r; j++)
            thin_outer_block(1, c + j * ldc + o, ldc, u + j, ldu, y + o, ldy, rows, part);
    }
}

/* ---- element-wise ---------------------------------------------------------------------- */

INLINE tv tv_where(tvi mask, tv yes, tv no)
{
    return (tv)(((tvi)yes & mask) | ((tvi)no & ~mask));
}

/* exp(x) = 2^n p(r), x = n ln 2 + r, |r| <= ln 2 / 2: Cephes' polynomial, about 2 ulp. */
INLINE tv tv_exp(tv x)
{
    x = tv_where(x < -87.0f, tv_set(-87.0f), x);
    x = tv_where(x > 88.0f, tv_set(88.0f), x);
    tv n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    n -= 12582912.0f;
    tv r = x - n * 0.693359375f + n * 2.12194440e-4f;
    tv p = tv_set(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    tvi bits = (__builtin_convertvector(n, tvi) + 127) << 23;
    return p * (tv)bits;
}

/* SiLU is g s(g), GELU g s(z(g)) with the logistic function s. */
INLINE void gated_back_step(bool gelu, tv *dg, tv *du, tv df, tv g, tv u)
{
    tv square = g * g;
    tv z = gelu ? g * (1.5957691216f + 0.0713548163f * square) : g;
    tv slope = gelu ? g * (1.5957691216f + 0.2140644488f * square) : g; /* g dz/dg */
    tv s = 1.0f / (1.0f + tv_exp(-z));
    *dg = df * u * s * (1.0f + slope * (1.0f - s));
    *du = df * g * s;
}

INLINE void gated_back(bool gelu, float *dg, float *du, const float *df, const float *g,
                       const float *u, size_t n)
{
    tv a, b;
    size_t i = 0;
    for (; i + TV <= n; i += TV) {
        gated_back_step(gelu, &a, &b, tv_load(df + i), tv_load(g + i), tv_load(u + i));
        tv_store(dg + i, a);
        tv_store(du + i, b);
    }
    if (i < n) {
        size_t left = n - i;
        gated_back_step(gelu, &a, &b, tv_load_part(df + i, left), tv_load_part(g + i, left),
                        tv_load_part(u + i, left));
        tv_store_part(dg + i, a, left);
        tv_store_part(du + i, b, left);
    }
}

static void silu_mul_back(float *dg, float *du, const float *df, const float *g, const float *u,
                          size_t n)
{
    gated_back(false, dg, du, df, g, u, n);
}

static void gelu_mul_back(float *dg, float *du, const float *df, const float *g, const float *u,
                          size_t n)
{
    gated_back(true, dg, du, df, g, u, n);
}

static void rmsnorm_back(float *dx, const float *dy, const float *x, const float *w, size_t n,
                         float eps)
{
    tv squares = {0}, mixed = {0};
    size_t i = 0;
    for (; i + TV <= n; i += TV) {
        tv v = tv_load(x + i);
        squares += v * v;
        mixed += tv_load(w + i) * tv_load(dy + i) * v;
    }
    if (i < n) {
        tv v = tv_load_part(x + i, n - i);
        squares += v * v;
        mixed += tv_load_part(w + i, n - i) * tv_load_part(dy + i, n - i) * v;
    }
    float r = 1.0f / sqrtf(tv_sum(squares) / (float)n + eps);
    float pull = r * r * r * tv_sum(mixed) / (float)n;
    for (i = 0; i + TV <= n; i += TV)
        tv_store(dx + i,
                 tv_load(dx + i) + r * tv_load(w + i) * tv_load(dy + i) - pull * tv_load(x + i));
    for (; i < n; i++)
        dx[i] += r * w[i] * dy[i] - pull * x[i];
}

static void softmax_back(float *ds, const float *p, float sum, float scale, size_t n)
{
    size_t i = 0;
    for (; i + TV <= n; i += TV)
        tv_store(ds + i, tv_load(p + i) * (tv_load(ds + i) - sum) * scale);
    for (; i < n; i++)
        ds[i] = p[i] * (ds[i] - sum) * scale;
}

#define TRAIN_KERNELS(level)                                                                       \
    .name = (level), .thin_out = thin_out, .thin_in = thin_in, .thin_outer = thin_outer,           \
    .silu_mul_back = silu_mul_back, .gelu_mul_back = gelu_mul_back, .rmsnorm_back = rmsnorm_back,  \
    .softmax_back = softmax_back, GEMM_KERNELS

#endif
