/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense products in float32, on the vectors of train_vector.h.
 *
 * The second factor is packed in panels of NR = 2 TV columns, row by row, so that a step along k
 * reads two vectors side by side; the first is read where it lies, one number of each of MR rows
 * broadcast. That makes MR x 2 sums in registers. k is cut into pieces of KC, for which a panel
 * stays in the L1 cache, and rows into pieces of MC, which stay in the L2 cache. Every output is
 * one chain of multiply-adds along k, cut at multiples of KC, whatever the rows around it.
 */
#ifndef CR_TRAIN_GEMM_H
#define CR_TRAIN_GEMM_H

#include "kernels/train_vector.h"

enum {
    NR = 2 * TV,
#if defined(__AVX512F__) || defined(__aarch64__)
    MR = 12, /* 24 sums of 32 registers */
#else
    MR = 6, /* 12 sums of 16 registers */
#endif
    KC = 256,
    MC = 40 * MR
};

#if defined(__x86_64__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

/* sums [R, NR] = a b; b is a panel, of which V vectors matter. a [R, k] has its numbers rs apart
 * down and cs along. */
INLINE void gemm_sums(int R, int V, float *sums, const float *a, size_t rs, size_t cs,
                      const float *b, size_t k)
{
    tv sum[MR][2];
    const float *at[4] = {a, a + 3 * rs, a + 6 * rs, a + 9 * rs}; /* each of three rows */
    UNROLL for (int t = 0; t < R; t++)
    {
        sum[t][0] = sum[t][1] = (tv){0};
    }
    for (size_t i = 0; i < k; i++, b += NR) {
        tv w0 = tv_load(b), w1 = V > 1 ? tv_load(b + TV) : (tv){0};
        UNROLL for (int t = 0; t < R; t++)
        {
            tv x = tv_set(at[t / 3][(size_t)(t % 3) * rs]);
            IN_REGISTER(x); /* one load, not one per use */
            sum[t][0] += x * w0;
            if (V > 1)
                sum[t][1] += x * w1;
        }
        UNROLL for (int j = 0; j < (R + 2) / 3; j++)
        {
            at[j] += cs;
            __asm__("" : "+r"(at[j])); /* else the compiler keeps 12 pointers, and spills them */
        }
    }
    UNROLL for (int t = 0; t < R; t++)
    {
        UNROLL for (int v = 0; v < V; v++)
        {
            tv_store(sums + t * NR + v * TV, sum[t][v]);
        }
    }
}

/* Each size is a function of its own: inlined, the compiler runs out of registers. */
typedef void gemm_sums_fn(float *sums, const float *a, size_t rs, size_t cs, const float *b,
                          size_t k);
#define GEMM_SUMS(name, R, V)                                                                      \
    static __attribute__((noinline)) void name(float *sums, const float *a, size_t rs, size_t cs,  \
                                               const float *b, size_t k)                           \
    {                                                                                              \
        gemm_sums(R, V, sums, a, rs, cs, b, k);                                                    \
    }
GEMM_SUMS(gemm_full_2, MR, 2)
GEMM_SUMS(gemm_full_1, MR, 1)
GEMM_SUMS(gemm_four_2, 4, 2)
GEMM_SUMS(gemm_four_1, 4, 1)
GEMM_SUMS(gemm_one_2, 1, 2)
GEMM_SUMS(gemm_one_1, 1, 1)

/* c [rows, n] = or += alpha sums. */
INLINE void gemm_store(float *c, size_t ldc, const float *sums, size_t rows, size_t n, float alpha,
                       bool add)
{
    for (size_t t = 0; t < rows; t++) {
        for (size_t o = 0; o < n; o += TV) {
            tv y = alpha * tv_load(sums + t * NR + o);
            float *to = c + t * ldc + o;
            if (n - o >= TV)
                tv_store(to, add ? tv_load(to) + y : y);
            else
                tv_store_part(to, add ? tv_load_part(to, n - o) + y : y, n - o);
        }
    }
}

/* One panel of c, for any number of rows; n <= NR. */
static void gemm_panel(float *c, size_t ldc, const float *a, size_t rs, size_t cs, const float *b,
                       size_t rows, size_t n, size_t k, float alpha, bool add)
{
    static gemm_sums_fn *const sizes[3][2] = {
        {gemm_full_1, gemm_full_2}, {gemm_four_1, gemm_four_2}, {gemm_one_1, gemm_one_2}};
    _Alignas(64) float sums[MR * NR];
    for (size_t t = 0, step; t < rows; t += step) {
        int size = rows - t >= MR ? 0 : rows - t >= 4 ? 1 : 2;
        step = size == 0 ? MR : size == 1 ? 4 : 1;
        sizes[size][n > TV](sums, a + t * rs, rs, cs, b, k);
        gemm_store(c + t * ldc, ldc, sums, step, n, alpha, add);
    }
}

static size_t at_most(size_t n, size_t most)
{
    return n < most ? n : most;
}

static void gemm_packed(float *c, size_t ldc, const float *a, size_t rs, size_t cs,
                        const float *panels, size_t depth, size_t m, size_t n, size_t k,
                        float alpha, bool add)
{
    size_t i = 0;
    do { /* once for k = 0: c is cleared */
        for (size_t t = 0; t < m; t += MC) {
            for (size_t o = 0; o < n; o += NR)
                gemm_panel(c + t * ldc + o, ldc, a + t * rs + i * cs, rs, cs,
                           panels + o * depth + i * NR, at_most(m - t, MC), at_most(n - o, NR),
                           at_most(k - i, KC), alpha, add || i > 0);
        }
        i += KC;
    } while (i < k);
}

/* ---- packing ---- */

/* Numbers of two vectors in turn: of their lower and of their upper halves. */
#if defined(__AVX512F__)
#define LOW(x, y)                                                                                  \
    __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(x, y)                                                                                 \
    __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif defined(__AVX__)
#define LOW(x, y) __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(x, y) __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOW(x, y) __builtin_shufflevector(x, y, 0, 4, 1, 5)
#define HIGH(x, y) __builtin_shufflevector(x, y, 2, 6, 3, 7)
#endif

/* TV x TV numbers, to[i, j] = from[j, i], in log2 TV rounds of a perfect shuffle of the rows. */
INLINE void transpose_block(float *to, const float *from, size_t ld)
{
    tv x[TV], y[TV];
    UNROLL for (int i = 0; i < TV; i++)
    {
        x[i] = tv_load(from + (size_t)i * ld);
    }
    UNROLL for (int round = 1; round < TV; round *= 2)
    {
        UNROLL for (int i = 0; i < TV / 2; i++)
        {
            y[2 * i] = LOW(x[i], x[i + TV / 2]);
            y[2 * i + 1] = HIGH(x[i], x[i + TV / 2]);
        }
        UNROLL for (int i = 0; i < TV; i++)
        {
            x[i] = y[i];
        }
    }
    UNROLL for (int i = 0; i < TV; i++)
    {
        tv_store(to + (size_t)i * NR, x[i]);
    }
}

/* One panel from rows of b [n, ldb], n <= NR: panel[i, o] = b[o, i]. */
static void pack_panel_rows(float *panel, const float *b, size_t ldb, size_t n, size_t k)
{
    size_t whole = k / TV * TV, o = 0;
    for (; o + TV <= n; o += TV) {
        for (size_t i = 0; i < whole; i += TV)
            transpose_block(panel + i * NR + o, b + o * ldb + i, ldb);
        for (size_t i = whole; i < k; i++)
            for (size_t j = o; j < o + TV; j++)
                panel[i * NR + j] = b[j * ldb + i];
    }
    for (size_t i = 0; i < k && o < NR; i++)
        for (size_t j = o; j < NR; j++)
            panel[i * NR + j] = j < n ? b[j * ldb + i] : 0;
}

/* One panel from columns of b [k, ldb], n <= NR: panel[i, o] = b[i, o]. */
static void pack_panel_columns(float *panel, const float *b, size_t ldb, size_t n, size_t k)
{
    for (size_t i = 0; i < k; i++, panel += NR, b += ldb) {
        if (n == NR) {
            tv_store(panel, tv_load(b));
            tv_store(panel + TV, tv_load(b + TV));
            continue;
        }
        for (size_t o = 0; o < NR; o++)
            panel[o] = o < n ? b[o] : 0;
    }
}

static void pack_rows(float *panels, size_t depth, const float *b, size_t ldb, size_t n, size_t k)
{
    for (size_t o = 0; o < n; o += NR)
        pack_panel_rows(panels + o * depth, b + o * ldb, ldb, at_most(n - o, NR), k);
}

static void pack_columns(float *panels, size_t depth, const float *b, size_t ldb, size_t n,
                         size_t k)
{
    for (size_t o = 0; o < n; o += NR)
        pack_panel_columns(panels + o * depth, b + o, ldb, at_most(n - o, NR), k);
}

/* ---- products of plain matrices: each piece of a panel is packed when it is needed ---- */

INLINE void gemm_plain(bool rows_of_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                       size_t rs, size_t cs, const float *b, size_t ldb, bool add, float *c,
                       size_t ldc)
{
    _Alignas(64) float panel[KC * NR];
    size_t i = 0;
    do { /* once for k = 0: c is cleared */
        size_t depth = at_most(k - i, KC);
        for (size_t o = 0; o < n; o += NR) {
            size_t width = at_most(n - o, NR);
            if (rows_of_b)
                pack_panel_rows(panel, b + o * ldb + i, ldb, width, depth);
            else
                pack_panel_columns(panel, b + i * ldb + o, ldb, width, depth);
            gemm_panel(c + o, ldc, a + i * cs, rs, cs, panel, m, width, depth, alpha, add || i > 0);
        }
        i += KC;
    } while (i < k);
}

static void gemm_nn(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, bool add, float *c, size_t ldc)
{
    gemm_plain(false, m, n, k, alpha, a, lda, 1, b, ldb, add, c, ldc);
}

static void gemm_nt(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, bool add, float *c, size_t ldc)
{
    gemm_plain(true, m, n, k, alpha, a, lda, 1, b, ldb, add, c, ldc);
}

static void gemm_tn(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, bool add, float *c, size_t ldc)
{
    gemm_plain(false, m, n, k, alpha, a, 1, lda, b, ldb, add, c, ldc);
}

#define GEMM_KERNELS                                                                               \
    .panel_width = NR, .pack_rows = pack_rows, .pack_columns = pack_columns,                       \
    .gemm_packed = gemm_packed, .gemm_nn = gemm_nn, .gemm_nt = gemm_nt, .gemm_tn = gemm_tn

#endif
