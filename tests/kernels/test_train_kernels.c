/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The training kernels of every level of this machine. Small integers make every order of adding
 * give the same float, so products are compared exactly, at all tails and with guards around the
 * output; the element-wise gradients are compared with the formula in double.
 */
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/train_levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { GUARD = 17, MAX_LEVELS = 5 };
static const struct cr_train_kernels *levels[MAX_LEVELS];
static int n_levels;

static void find_levels(void)
{
    levels[n_levels++] = cr_train_kernels_get(CR_CPU_REF);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (cr_cpu_has(CR_CPU_AVX2))
        levels[n_levels++] = &cr_train_avx2;
    if (cr_cpu_has(CR_CPU_AVX512))
        levels[n_levels++] = &cr_train_avx512;
    if (cr_cpu_has(CR_CPU_AVX512) && __builtin_cpu_supports("avx512bf16"))
        levels[n_levels++] = &cr_train_bf16;
    if (cr_train_kernels_get(CR_CPU_AMX) == &cr_train_amx)
        levels[n_levels++] = &cr_train_amx;
#endif
}

static float *integers(size_t n, uint64_t seed)
{
    struct cr_rng rng;
    float *x = cr_alloc(n, sizeof *x);
    cr_rng_init(&rng, seed);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((int)cr_rng_below(&rng, 15) - 7);
    return x;
}

static float *reals(size_t n, double scale, uint64_t seed)
{
    struct cr_rng rng;
    float *x = cr_alloc(n, sizeof *x);
    cr_rng_init(&rng, seed);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(scale * cr_rng_normal(&rng));
    return x;
}

/* want [rows, n] inside got [rows, ld], and nothing written beside it. */
static void same(const char *what, const char *level, const float *got, size_t ld,
                 const float *want, size_t rows, size_t n)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < ld; i++)
            if (got[r * ld + i] != (i < n ? want[r * n + i] : GUARD))
                fail_msg("%s %s: [%zu, %zu] of [%zu, %zu]: want %g, got %g", what, level, r, i,
                         rows, n, (double)(i < n ? want[r * n + i] : GUARD),
                         (double)got[r * ld + i]);
}

static void thin_case(const struct cr_train_kernels *k, size_t rows, size_t r, size_t n)
{
    size_t ldu = r + 3, ldy = n + 2, ldb = n + 1;
    float *u = integers(rows * ldu, 1), *y = integers(rows * ldy, 2), *b = integers(r * ldb, 3);
    size_t most = (rows + 1) * (n + r + 8) + (r + 1) * (n + 8);
    float *want = cr_alloc0(most, sizeof *want), *got = cr_alloc(most, sizeof *got);
    for (size_t t = 0; t < rows; t++)
        for (size_t o = 0; o < n; o++) {
            want[t * n + o] = y[t * ldy + o];
            for (size_t j = 0; j < r; j++)
                want[t * n + o] += u[t * ldu + j] * b[j * ldb + o];
        }
    for (size_t t = 0; t < rows; t++)
        for (size_t o = 0; o < ldy; o++)
            got[t * ldy + o] = o < n ? y[t * ldy + o] : GUARD;
    k->thin_out(got, ldy, u, ldu, b, ldb, rows, r, n);
    same("thin_out", k->name, got, ldy, want, rows, n);

    for (size_t t = 0; t < rows; t++)
        for (size_t j = 0; j < r; j++) {
            want[t * r + j] = 0;
            for (size_t o = 0; o < n; o++)
                want[t * r + j] += y[t * ldy + o] * b[j * ldb + o];
        }
    for (size_t i = 0; i < rows * ldu; i++)
        got[i] = GUARD;
    k->thin_in(got, ldu, y, ldy, b, ldb, rows, r, n);
    same("thin_in", k->name, got, ldu, want, rows, r);

    for (size_t j = 0; j < r; j++)
        for (size_t o = 0; o < n; o++) {
            want[j * n + o] = 0;
            for (size_t t = 0; t < rows; t++)
                want[j * n + o] += u[t * ldu + j] * y[t * ldy + o];
        }
    for (size_t i = 0; i < r * ldb; i++)
        got[i] = GUARD;
    k->thin_outer(got, ldb, u, ldu, y, ldy, rows, r, n);
    same("thin_outer", k->name, got, ldb, want, r, n);
    float *all[] = {u, y, b, want, got};
    for (size_t i = 0; i < 5; i++)
        cr_free(all[i]);
}

static void thin_products(void **state)
{
    (void)state;
    const size_t rows[] = {0, 1, 2, 47}, ranks[] = {1, 2, 7, 8, 9, 24}, ns[] = {1, 15, 16, 17, 70};
    for (int l = 0; l < n_levels; l++)
        for (size_t a = 0; a < 4; a++)
            for (size_t b = 0; b < 6; b++)
                for (size_t c = 0; c < 5; c++)
                    thin_case(levels[l], rows[a], ranks[b], ns[c]);
}

/* C = 2 A B or C += 2 A B: the three orders, and B packed beforehand in two pieces. */
static void gemm_case(const struct cr_train_kernels *k, size_t m, size_t n, size_t depth, bool add)
{
    size_t lda = depth + 3, ldt = m + 1, ldb = n + 2, ldw = depth + 1, ldc = n + 5;
    size_t part = depth / 2, w = k->panel_width;
    float *a = integers(m * lda, 1), *b = integers(depth * ldb + ldb, 2);
    float *at = cr_alloc0(depth * ldt + ldt, sizeof *at);
    float *bt = cr_alloc0(n * ldw, sizeof *bt), *want = cr_alloc(m * n, sizeof *want);
    float *got = cr_alloc(m * ldc, sizeof *got);
    float *panels[2];
    for (int i = 0; i < 2; i++)
        panels[i] = cr_alloc(cr_panels_floats(k, n, depth + 1), sizeof *panels[i]);
    for (size_t i = 0; i < depth; i++) {
        for (size_t t = 0; t < m; t++)
            at[i * ldt + t] = a[t * lda + i];
        for (size_t o = 0; o < n; o++)
            bt[o * ldw + i] = b[i * ldb + o];
    }
    for (size_t t = 0; t < m; t++)
        for (size_t o = 0; o < n; o++) {
            want[t * n + o] = add ? GUARD : 0;
            for (size_t i = 0; i < depth; i++)
                want[t * n + o] += 2 * a[t * lda + i] * b[i * ldb + o];
        }
    k->pack_rows(panels[0], depth, bt, ldw, n, depth);
    k->pack_columns(panels[1], depth, b, ldb, n, part);
    k->pack_columns(panels[1] + part * w, depth, b + part * ldb, ldb, n, depth - part);
    assert_memory_equal(panels[0], panels[1], cr_panels_floats(k, n, depth) * sizeof(float));
    for (int order = 0; order < 4; order++) {
        for (size_t i = 0; i < m * ldc; i++)
            got[i] = GUARD;
        if (order == 0)
            k->gemm_nn(m, n, depth, 2, a, lda, b, ldb, add, got, ldc);
        else if (order == 1)
            k->gemm_nt(m, n, depth, 2, a, lda, bt, ldw, add, got, ldc);
        else if (order == 2)
            k->gemm_tn(m, n, depth, 2, at, ldt, b, ldb, add, got, ldc);
        else
            k->gemm_packed(got, ldc, a, lda, 1, panels[0], depth, m, n, depth, 2, add);
        same("gemm", k->name, got, ldc, want, m, n);
    }
    float *all[] = {a, b, at, bt, want, got, panels[0], panels[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cr_free(all[i]);
}

static void dense_products(void **state)
{
    (void)state;
    const size_t ms[] = {1, 4, 6, 12, 35, 500}, ns[] = {1, 7, 8, 15, 16, 17, 33, 64},
                 ks[] = {0, 1, 17, 300};
    for (int l = 0; l < n_levels; l++)
        for (size_t i = 0; i < 6; i++)
            for (size_t j = 0; j < 8; j++)
                for (size_t d = 0; d < 4; d++)
                    gemm_case(levels[l], ms[i], ns[j], ks[d], (i + j + d) % 2);
}

static void near(const char *what, const char *level, size_t i, double got, double want,
                 double bound)
{
    if (!(fabs(got - want) <= bound * (1 + fabs(want))))
        fail_msg("%s %s: [%zu]: want %g, got %g", what, level, i, want, got);
}

static void element_wise(void **state)
{
    (void)state;
    enum { N = 77 };
    for (int l = 0; l < n_levels; l++) {
        const struct cr_train_kernels *k = levels[l];
        float *g = reals(N, 4, 1), *u = reals(N, 1, 2), *d = reals(N, 1, 3), dg[N], du[N];
        g[0] = 300, g[1] = -300, g[2] = 0;
        k->silu_mul_back(dg, du, d, g, u, N);
        for (size_t i = 0; i < N; i++) {
            double s = 1 / (1 + exp(-(double)g[i]));
            near("silu, gate", k->name, i, (double)dg[i],
                 (double)d[i] * (double)u[i] * s * (1 + (double)g[i] * (1 - s)), 2e-6);
            near("silu, up", k->name, i, (double)du[i], (double)d[i] * (double)g[i] * s, 2e-6);
        }
        k->gelu_mul_back(dg, du, d, g, u, N);
        for (size_t i = 0; i < N; i++) {
            double x = (double)g[i], c = sqrt(8 / acos(-1));
            double s = 1 / (1 + exp(-c * (x + 0.044715 * x * x * x)));
            double slope = c * (1 + 3 * 0.044715 * x * x);
            near("gelu, gate", k->name, i, (double)dg[i],
                 (double)d[i] * (double)u[i] * (s + x * s * (1 - s) * slope), 4e-6);
            near("gelu, up", k->name, i, (double)du[i], (double)d[i] * x * s, 2e-6);
        }
        double squares = 0, mixed = 0;
        memcpy(dg, d, sizeof dg);
        k->rmsnorm_back(dg, d, g, u, N, 1e-5f);
        for (size_t i = 0; i < N; i++) {
            squares += (double)g[i] * (double)g[i];
            mixed += (double)u[i] * (double)d[i] * (double)g[i];
        }
        double r = 1 / sqrt(squares / N + 1e-5);
        for (size_t i = 0; i < N; i++)
            near("rmsnorm", k->name, i, (double)dg[i],
                 (double)d[i] + r * (double)u[i] * (double)d[i] -
                     (double)g[i] * r * r * r / N * mixed,
                 2e-6);
        memcpy(dg, d, sizeof dg);
        k->softmax_back(dg, u, 0.3f, 0.5f, N);
        for (size_t i = 0; i < N; i++)
            near("softmax", k->name, i, (double)dg[i],
                 (double)u[i] * ((double)d[i] - (double)0.3f) * 0.5, 1e-6);
        cr_free(d);
        cr_free(u);
        cr_free(g);
    }
}

/* y = x w^T through panels, put whole or as a transpose, in two pieces. */
static void bf16_case(const struct cr_train_kernels *k, size_t rows, size_t n, size_t depth)
{
    size_t ldx = depth + 3, ldy = n + 2, cut = depth / 2, size = cr_bf16_panels_size(n, depth);
    float *x = integers(rows * ldx, 1), *w = integers(n * depth, 2);
    float *wt = cr_alloc(n * depth, sizeof *wt), *want = cr_alloc0(rows * n, sizeof *want);
    float *got = cr_alloc(rows * ldy, sizeof *got);
    size_t padded = (rows + 31) / 32 * 32 * cr_bf16_depth(depth);
    uint16_t *a = cr_alloc0(padded, sizeof *a), *panels = cr_alloc0(size, sizeof *panels);
    uint16_t *other = cr_alloc0(size, sizeof *other);
    for (size_t o = 0; o < n; o++)
        for (size_t i = 0; i < depth; i++)
            wt[i * n + o] = w[o * depth + i];
    cr_bf16_put(panels, depth, 0, w, n / 2);
    cr_bf16_put(panels, depth, n / 2, w + n / 2 * depth, n - n / 2);
    cr_bf16_put_transposed(other, depth, 0, wt, cut, n);
    cr_bf16_put_transposed(other, depth, cut, wt + cut * n, depth - cut, n);
    assert_memory_equal(panels, other, size * sizeof *panels);
    for (size_t t = 0; t < rows; t++)
        for (size_t o = 0; o < n; o++)
            for (size_t i = 0; i < depth; i++)
                want[t * n + o] += x[t * ldx + i] * w[o * depth + i];
    for (size_t i = 0; i < rows * ldy; i++)
        got[i] = GUARD;
    k->bf16_rows(a, x, ldx, rows, depth);
    k->bf16_matmul(got, ldy, a, panels, rows, n, depth);
    same("bf16_matmul", k->name, got, ldy, want, rows, n);
    void *all[] = {x, w, wt, want, got, a, panels, other};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cr_free(all[i]);
}

static void bf16_products(void **state)
{
    (void)state;
    const size_t rows[] = {1, 12, 13, 32, 33, 70}, ns[] = {1, 16, 17, 32, 50},
                 ks[] = {1, 31, 32, 70};
    for (int l = 0; l < n_levels; l++) {
        if (!levels[l]->bf16_matmul)
            continue;
        for (size_t a = 0; a < 6; a++)
            for (size_t b = 0; b < 5; b++)
                for (size_t c = 0; c < 4; c++)
                    bf16_case(levels[l], rows[a], ns[b], ks[c]);
        uint16_t to[32];
        const float x[] = {1.00390625f, 1.01171875f, -3.0e38f, 1e-20f, 0.0f}; /* ties to even */
        levels[l]->bf16_rows(to, x, 5, 1, 5);
        for (size_t i = 0; i < 5; i++)
            assert_int_equal(to[i], cr_f32_to_bf16(x[i]));
        assert_int_equal(to[5] | to[31], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_products),
        cmocka_unit_test(thin_products),
        cmocka_unit_test(element_wise),
        cmocka_unit_test(bf16_products),
    };
    find_levels();
    for (int l = 0; l < n_levels; l++)
        print_message("level %s\n", levels[l]->name);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
