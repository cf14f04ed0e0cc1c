/* SPDX-License-Identifier: Apache-2.0 */
/* AdamW against the formula in double, clipping, schedule, and the same bits at any thread count.
 */
#include "gradient.h"
#include "tune/optim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { N = 40000, TAIL = 39990 };

/* Five steps from a fixed start with n_threads; returns the parameters. */
static float *train(int n_threads, float clip, float decay)
{
    struct cr_adamw o = {0};
    cr_threads *t = NULL;
    assert_int_equal(cr_threads_new(&t, n_threads, NULL), CR_OK);
    assert_int_equal(cr_adamw_init(&o, N, NULL), CR_OK);
    o.lr = 0.01f;
    o.lr_tail = 0.1f;
    o.tail = TAIL;
    o.beta1 = 0.9f;
    o.beta2 = 0.99f;
    o.clip = clip;
    o.weight_decay = decay;
    float *p = new_normal(N, 1, 1), *g = cr_alloc(N, sizeof *g);
    for (long step = 1; step <= 5; step++) {
        fill_normal(g, N, 0.01, 100 + (uint64_t)step);
        double norm = cr_adamw_step(&o, t, p, g, step, 0.5f);
        assert_true(fabs(norm - 2) < 0.1); /* 0.01 * sqrt(40000) */
        assert_true(g[0] == 0 && g[N - 1] == 0);
    }
    cr_free(g);
    cr_adamw_deinit(&o);
    cr_threads_free(t);
    return p;
}

static void follows_the_formula(void **state)
{
    (void)state;
    const double clips[] = {0, 1}, decays[] = {0, 0.1};
    for (int k = 0; k < 2; k++) {
        float *got = train(1, (float)clips[k], (float)decays[k]), *p = new_normal(N, 1, 1);
        double *want = cr_alloc(N, sizeof *want), *m = cr_alloc0(N, sizeof *m),
               *v = cr_alloc0(N, sizeof *v);
        for (int i = 0; i < N; i++)
            want[i] = p[i];
        for (int step = 1; step <= 5; step++) {
            double sum = 0;
            fill_normal(p, N, 0.01, 100 + (uint64_t)step);
            for (int i = 0; i < N; i++)
                sum += (double)p[i] * p[i];
            double gain = clips[k] > 0 ? clips[k] / sqrt(sum) : 1;
            for (int i = 0; i < N; i++) {
                double g = p[i] * gain, lr = (i < TAIL ? 0.01 : 0.1) * 0.5;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                want[i] -= lr * (m[i] / (1 - pow(0.9, step)) /
                                     (sqrt(v[i] / (1 - pow(0.99, step))) + 1e-8) +
                                 (i < TAIL ? decays[k] : 0) * want[i]);
            }
        }
        for (int i = 0; i < N; i++)
            if (fabs(got[i] - want[i]) > 2e-5)
                fail_msg("parameter %d: want %g, got %g", i, want[i], (double)got[i]);
        cr_free(v);
        cr_free(m);
        cr_free(want);
        cr_free(p);
        cr_free(got);
    }
}

static void same_at_any_thread_count(void **state)
{
    (void)state;
    float *one = train(1, 1, 0);
    for (int n = 2; n <= 4; n++) {
        float *more = train(n, 1, 0);
        assert_memory_equal(one, more, N * sizeof *one);
        cr_free(more);
    }
    cr_free(one);
}

static void infinite_gradients_change_nothing(void **state)
{
    (void)state;
    struct cr_adamw o = {0};
    cr_threads *t = NULL;
    float p[3] = {1, 2, 3}, g[3] = {1, INFINITY, 0};
    assert_int_equal(cr_threads_new(&t, 1, NULL), CR_OK);
    assert_int_equal(cr_adamw_init(&o, 3, NULL), CR_OK);
    o.lr = 1;
    double norm = cr_adamw_step(&o, t, p, g, 1, 1);
    assert_true(isinf(norm));
    assert_true(p[0] == 1 && p[1] == 2 && p[2] == 3 && o.m[0] == 0 && g[1] == 0);
    cr_adamw_deinit(&o);
    cr_threads_free(t);
    cr_mem_fail_at(2, false);
    assert_int_equal(cr_adamw_init(&o, 3, NULL), CR_NO_MEMORY);
    cr_mem_fail_at(0, false);
}

static void schedule(void **state)
{
    (void)state;
    assert_true(fabsf(cr_lr_factor(0, 100, 0.05f, 0.05f) - 0.2f) < 1e-6f);
    assert_true(cr_lr_factor(4, 100, 0.05f, 0.05f) == 1);
    assert_true(cr_lr_factor(5, 100, 0.05f, 0.05f) == 1);
    assert_true(fabsf(cr_lr_factor(52, 100, 0.05f, 0.05f) - 0.525f) < 1e-6f);
    assert_true(fabsf(cr_lr_factor(99, 100, 0.05f, 0.05f) - 0.05f) < 1e-6f);
    assert_true(cr_lr_factor(0, 1, 0.05f, 0.05f) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(follows_the_formula),
        cmocka_unit_test(same_at_any_thread_count),
        cmocka_unit_test(infinite_gradients_change_nothing),
        cmocka_unit_test(schedule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
