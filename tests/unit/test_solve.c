/* SPDX-License-Identifier: Apache-2.0 */
/* Solvers on planted answers: softmax, temperature, SIMPLEX, kNN, nearest, mean, and refusals. */
#include "adapt/solve.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DIM = 48, N = 8, T = 20 };

static struct cr_rng rng;

static void random_unit(float *v)
{
    double s = 0;
    for (int i = 0; i < DIM; i++) {
        v[i] = (float)cr_rng_normal(&rng);
        s += (double)v[i] * (double)v[i];
    }
    for (int i = 0; i < DIM; i++)
        v[i] = (float)(v[i] / sqrt(s));
}

static double objective(const float *c, const float *q, double lambda, const float *w)
{
    double f = 0;
    for (int d = 0; d < DIM; d++) {
        double r = (double)q[d];
        for (int n = 0; n < N; n++)
            r -= (double)w[n] * (double)c[n * DIM + d];
        f += r * r;
    }
    for (int n = 0; n < N; n++)
        f += w[n] > 0 ? lambda * (double)w[n] * log((double)w[n]) : 0;
    return f;
}

static void test_simplex_returns_the_planted_mixture(void **state)
{
    (void)state;
    cr_rng_init(&rng, 3);
    for (int trial = 0; trial < 30; trial++) {
        float c[N * DIM], want[N], q[DIM] = {0}, w[N];
        double sum = 0;
        for (int n = 0; n < N; n++) {
            random_unit(c + n * DIM);
            want[n] = trial % 3 == 0 && n % 2 ? 0 : (float)cr_rng_double(&rng);
            sum += (double)want[n];
        }
        for (int n = 0; n < N; n++) {
            want[n] = (float)(want[n] / sum);
            for (int d = 0; d < DIM; d++)
                q[d] += want[n] * c[n * DIM + d];
        }
        assert_int_equal(cr_simplex_solve(c, N, DIM, q, 0, w, NULL), CR_OK);
        for (int n = 0; n < N; n++)
            assert_true(fabs((double)w[n] - (double)want[n]) < 1e-4);
    }
}

/* With the entropy term, and with a q that no mixture reaches, no random neighbour is better. */
static void test_simplex_is_a_minimum(void **state)
{
    (void)state;
    cr_rng_init(&rng, 4);
    for (int trial = 0; trial < 40; trial++) {
        float c[N * DIM], q[DIM], w[N], other[N];
        float lambda = trial % 4 == 0 ? 0.0F : trial % 4 == 1 ? 0.01F : trial % 4 == 2 ? 0.3F : 5;
        for (int n = 0; n < N; n++)
            random_unit(c + n * DIM);
        if (trial % 5 == 4)
            memcpy(c + DIM, c, DIM * sizeof *c); /* two equal centroids */
        random_unit(q);
        assert_int_equal(cr_simplex_solve(c, N, DIM, q, lambda, w, NULL), CR_OK);
        double best = objective(c, q, (double)lambda, w), sum = 0;
        for (int n = 0; n < N; n++) {
            assert_true(w[n] >= 0);
            sum += (double)w[n];
        }
        assert_true(fabs(sum - 1) < 1e-5);
        for (int k = 0; k < 200; k++) {
            int i = (int)cr_rng_below(&rng, N), j = (int)cr_rng_below(&rng, N);
            float t = w[j] * (float)cr_rng_double(&rng) * (k & 1 ? 1 : 1e-2F);
            memcpy(other, w, sizeof w);
            other[i] += t;
            other[j] -= t;
            assert_true(objective(c, q, (double)lambda, other) >= best - 2e-6);
        }
    }
}

static void test_temperature_gives_the_wanted_entropy(void **state)
{
    (void)state;
    cr_rng_init(&rng, 5);
    static float s[300 * N];
    for (int i = 0; i < 300 * N; i++)
        s[i] = (float)(cr_rng_double(&rng) * 2 - 1);
    for (float want = 1.2F; want < 7.9F; want += 0.9F) {
        float tau = cr_fit_temperature(s, 300, N, want), p[N];
        double mean = 0;
        for (int i = 0; i < 300; i++) {
            double h = 0;
            cr_softmax_tau(s + i * N, N, tau, p);
            for (int n = 0; n < N; n++)
                h -= p[n] > 0 ? (double)p[n] * log((double)p[n]) : 0;
            mean += exp(h) / 300;
        }
        assert_true(fabs(mean - (double)want) < 1e-3);
    }
    assert_true(isfinite(cr_fit_temperature(s, 300, N, 100)));
    assert_true(isfinite(cr_fit_temperature(s, 0, N, 2.5F)));
}

static void test_softmax_of_large_values(void **state)
{
    (void)state;
    float s[3] = {1e30F, 1e30F, -1e30F}, p[3];
    cr_softmax_tau(s, 3, 0.03F, p);
    assert_true(p[0] == 0.5F && p[1] == 0.5F && p[2] == 0);
}

struct world {
    float proto[T * DIM], weights[T * N], unit[5 * DIM], q[DIM];
    struct cr_index_view iv;
};

static struct world *make_world(enum cr_pool_kind kind)
{
    static struct world w;
    cr_rng_init(&rng, 6);
    int entries = kind == CR_POOL_CENTROID ? N : T;
    memset(w.weights, 0, sizeof w.weights);
    for (int t = 0; t < entries; t++) {
        random_unit(w.proto + t * DIM);
        for (int n = 0; n < N; n++)
            w.weights[t * N + n] =
                kind == CR_POOL_CENTROID ? (float)(n == t) : (float)cr_rng_normal(&rng);
    }
    for (int i = 0; i < 5; i++) { /* examples near prototype 2 */
        random_unit(w.unit + i * DIM);
        double s = 0;
        for (int d = 0; d < DIM; d++) {
            float *v = &w.unit[i * DIM + d];
            *v = w.proto[2 * DIM + d] + 0.4F * *v;
            s += (double)*v * (double)*v;
        }
        for (int d = 0; d < DIM; d++)
            w.unit[i * DIM + d] = (float)(w.unit[i * DIM + d] / sqrt(s));
    }
    assert_true(cr_mean_direction(w.unit, 5, DIM, 5, w.q));
    w.iv = (struct cr_index_view){.n = N,
                                  .n_entries = entries,
                                  .dim = DIM,
                                  .proto = w.proto,
                                  .weights = w.weights,
                                  .tau = 0.1F,
                                  .kind = kind};
    return &w;
}

static void solve(struct world *w, enum cr_solver s, float temperature, float out[N])
{
    assert_int_equal(cr_solve(&w->iv, s, temperature, w->unit, 5, w->q, out, NULL), CR_OK);
    for (int n = 0; n < N; n++)
        assert_true(isfinite(out[n]));
}

static void test_library_solvers(void **state)
{
    (void)state;
    struct world *w = make_world(CR_POOL_LIBRARY);
    float out[N], s[T];
    solve(w, CR_SOLVE_NEAREST, 0, out);
    assert_memory_equal(out, w->weights + 2 * N, sizeof out);
    solve(w, CR_SOLVE_KNN, 1e-4F, out); /* cold: the nearest */
    for (int n = 0; n < N; n++)
        assert_true(fabs((double)out[n] - (double)w->weights[2 * N + n]) < 1e-5);
    float mean[N], hot[N];
    solve(w, CR_SOLVE_MEAN, 0, mean);
    solve(w, CR_SOLVE_KNN, 1e5F, hot); /* hot: the mean */
    for (int n = 0; n < N; n++) {
        double want = 0;
        for (int t = 0; t < T; t++)
            want += (double)w->weights[t * N + n] / T;
        assert_true(fabs((double)mean[n] - want) < 1e-6);
        assert_true(fabs((double)hot[n] - want) < 1e-4);
    }
    solve(w, CR_SOLVE_KNN, 0, out); /* the formula, at the default temperature */
    cr_similarities(&w->iv, w->q, s);
    for (int n = 0; n < N; n++) {
        double z = 0, sum = 0;
        for (int t = 0; t < T; t++) {
            double e = exp(((double)s[t] - 1) / 0.03);
            z += e;
            sum += e * (double)w->weights[t * N + n];
        }
        assert_true(fabs((double)out[n] - sum / z) < 1e-4);
    }
    solve(w, CR_SOLVE_UNIFORM, 0, out);
    assert_true(out[0] == 0.125F && out[7] == 0.125F);
    struct cr_error err;
    for (int k = CR_SOLVE_SOFTMAX; k <= CR_SOLVE_SIMPLEX; k++) {
        assert_int_equal(cr_solve(&w->iv, (enum cr_solver)k, 0, w->unit, 5, w->q, out, &err),
                         CR_INVALID);
        assert_non_null(strstr(err.msg, cr_solver_name((enum cr_solver)k)));
    }
}

static void test_centroid_solvers(void **state)
{
    (void)state;
    struct world *w = make_world(CR_POOL_CENTROID);
    float out[N], meanw[N];
    double sum = 0;
    solve(w, CR_SOLVE_SOFTMAX, 0, out);
    for (int n = 0; n < N; n++) {
        sum += (double)out[n];
        assert_true(n == 2 || out[n] < out[2]);
    }
    assert_true(fabs(sum - 1) < 1e-6);
    solve(w, CR_SOLVE_MEANW, 0, meanw);
    sum = 0;
    for (int n = 0; n < N; n++)
        sum += (double)meanw[n];
    assert_true(fabs(sum - 1) < 1e-6);
    float one[N]; /* of one example both are the same */
    assert_int_equal(cr_solve(&w->iv, CR_SOLVE_MEANW, 0, w->unit, 1, w->unit, one, NULL), CR_OK);
    assert_int_equal(cr_solve(&w->iv, CR_SOLVE_SOFTMAX, 0, w->unit, 1, w->unit, out, NULL), CR_OK);
    assert_memory_equal(one, out, sizeof out);
    solve(w, CR_SOLVE_SIMPLEX, 0, out);
    for (int n = 0; n < N; n++)
        assert_true(n == 2 || out[n] < out[2]);
    solve(w, CR_SOLVE_NEAREST, 0, out);
    assert_true(out[2] == 1 && out[0] == 0);
    w->iv.kind = CR_POOL_LORA; /* a plain LoRA is applied whole */
    solve(w, CR_SOLVE_KNN, 0, out);
    assert_true(out[0] == 1 && out[7] == 1);
}

static void test_mean_direction(void **state)
{
    (void)state;
    float x[3 * 2] = {1, 0, 0, 1, -1, 0}, q[2];
    assert_true(cr_mean_direction(x, 3, 2, 3, q));
    assert_true(fabsf(q[0]) < 1e-6F && fabsf(q[1] - 1) < 1e-6F);
    assert_true(cr_mean_direction(x, 3, 2, 1, q) == false); /* the rest cancels out */
    assert_true(cr_mean_direction(x, 3, 2, 2, q));
    assert_true(fabsf(q[0] - q[1]) < 1e-6F);
    x[0] = NAN;
    assert_false(cr_mean_direction(x, 3, 2, 3, q));
    assert_false(cr_mean_direction(x, 0, 2, 0, q));
}

static void test_names(void **state)
{
    (void)state;
    for (int i = 0; i < CR_SOLVE_COUNT; i++)
        assert_int_equal(cr_solver_by_name(cr_solver_name((enum cr_solver)i)), i);
    for (int i = 0; i < CR_LEVEL_COUNT; i++)
        assert_int_equal(cr_level_by_name(cr_level_name((enum cr_level)i)), i);
    assert_int_equal(cr_solver_by_name("magic"), -1);
    assert_int_equal(cr_level_by_name(""), -1);
    assert_string_equal(cr_solver_name(CR_SOLVE_COUNT), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simplex_returns_the_planted_mixture),
        cmocka_unit_test(test_simplex_is_a_minimum),
        cmocka_unit_test(test_temperature_gives_the_wanted_entropy),
        cmocka_unit_test(test_softmax_of_large_values),
        cmocka_unit_test(test_library_solvers),
        cmocka_unit_test(test_centroid_solvers),
        cmocka_unit_test(test_mean_direction),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
