/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of training: dense products in float32, products with a thin matrix (a low-rank
 * factor), the gradients of element-wise functions, and products with frozen weights in bfloat16.
 * One table per level as in kernels.h; the plain one is the same source at the compiler's base
 * level. All matrices are row-major float32 unless said otherwise; ld* is the distance of rows.
 *
 * Each output is a sum in a fixed order that does not depend on the number of rows of the call.
 */
#ifndef CR_KERNELS_TRAIN_H
#define CR_KERNELS_TRAIN_H

#include "kernels/kernels.h"

typedef void cr_gemm_fn(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                        const float *b, size_t ldb, bool add, float *c, size_t ldc);

struct cr_train_kernels {
    const char *name;
    /* C[m, n] = or (add) += alpha A B. nn: A [m, k], B [k, n]; nt: B [n, k]; tn: A [k, m]. */
    cr_gemm_fn *gemm_nn, *gemm_nt, *gemm_tn;
    /* The same for a B that is packed once and used more often: panels of panel_width columns, each
     * [depth, panel_width]. pack_rows: from b [n, k]; pack_columns: from b [k, n]; k rows of each
     * panel are written, n is filled up with zeros. gemm_packed reads the first k rows; A's
     * numbers are rs apart down and cs along. */
    size_t panel_width;
    void (*pack_rows)(float *panels, size_t depth, const float *b, size_t ldb, size_t n, size_t k);
    void (*pack_columns)(float *panels, size_t depth, const float *b, size_t ldb, size_t n,
                         size_t k);
    void (*gemm_packed)(float *c, size_t ldc, const float *a, size_t rs, size_t cs,
                        const float *panels, size_t depth, size_t m, size_t n, size_t k,
                        float alpha, bool add);
    /* y[t, o] += sum_j u[t, j] b[j, o]    u [rows, r], b [r, n], y [rows, n] */
    void (*thin_out)(float *y, size_t ldy, const float *u, size_t ldu, const float *b, size_t ldb,
                     size_t rows, size_t r, size_t n);
    /* u[t, j] = sum_o y[t, o] b[j, o] */
    void (*thin_in)(float *u, size_t ldu, const float *y, size_t ldy, const float *b, size_t ldb,
                    size_t rows, size_t r, size_t n);
    /* c[j, o] = sum_t u[t, j] y[t, o]     c [r, n] */
    void (*thin_outer)(float *c, size_t ldc, const float *u, size_t ldu, const float *y, size_t ldy,
                       size_t rows, size_t r, size_t n);
    /* f = silu(g) * u:  dg = df u s (1 + g (1 - s)), du = df g s, with s = 1 / (1 + exp(-g)). */
    void (*silu_mul_back)(float *dg, float *du, const float *df, const float *g, const float *u,
                          size_t n);
    /* f = gelu(g) * u by the tanh form:  dg = df u (s + g s (1 - s) z'), du = df g s, with
     * z = sqrt(8 / pi) (g + 0.044715 g^3), s = 1 / (1 + exp(-z)). */
    void (*gelu_mul_back)(float *dg, float *du, const float *df, const float *g, const float *u,
                          size_t n);
    /* y = x w r, r = 1 / sqrt(mean(x^2) + eps):  dx_i += r w_i dy_i - x_i r^3 / n sum_j w_j dy_j
     * x_j
     */
    void (*rmsnorm_back)(float *dx, const float *dy, const float *x, const float *w, size_t n,
                         float eps);
    /* s = softmax, scaled:  ds[i] = p[i] (ds[i] - sum) scale */
    void (*softmax_back)(float *ds, const float *p, float sum, float scale, size_t n);
    /* Products in bfloat16 with float32 sums; NULL where the CPU has no instruction for them.
     * rows: x [rows, k] -> a [rows, cr_bf16_depth(k)], rounded to nearest even, zeros beyond k.
     * matmul: y[t, o] = sum_i a[t, i] w[o, i] for w [n, k] in panels (cr_bf16_put). */
    void (*bf16_rows)(uint16_t *a, const float *x, size_t ldx, size_t rows, size_t k);
    void (*bf16_matmul)(float *y, size_t ldy, const uint16_t *a, const uint16_t *panels,
                        size_t rows, size_t n, size_t k);
};

/* Floats of the panels of a B with n columns. */
static inline size_t cr_panels_floats(const struct cr_train_kernels *k, size_t n, size_t depth)
{
    return (n + k->panel_width - 1) / k->panel_width * k->panel_width * depth;
}

/* The table for a level of the main kernels that this machine has. bf16 products come with the AMX
 * level, and with the AVX-512 level on AMD CPUs that have AVX512_BF16. The table is static. */
const struct cr_train_kernels *cr_train_kernels_get(enum cr_cpu level);

/*
 * Panels: w [n, k] in bfloat16 by panels of 16 rows, each with pairs of columns side by side:
 *     panel p, pair i, row l of the panel:  w[16 p + l, 2 i], w[16 p + l, 2 i + 1]
 * n is filled up to 16 and k to 32 with zeros. This is the second operand of AMX tiles and of
 * VDPBF16PS alike.
 */
size_t cr_bf16_depth(size_t k);                 /* k filled up */
size_t cr_bf16_panels_size(size_t n, size_t k); /* values */
/* Puts w[row0 .. row0 + rows) into panels that were cleared; w [rows, k] holds those rows alone. */
void cr_bf16_put(uint16_t *panels, size_t k, size_t row0, const float *w, size_t rows);
/* The same for the transpose of w: w [rows, n] are columns col0 .. col0 + rows of the [n, k]
 * matrix.
 */
void cr_bf16_put_transposed(uint16_t *panels, size_t k, size_t col0, const float *w, size_t rows,
                            size_t n);

#endif
