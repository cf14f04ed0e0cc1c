/* SPDX-License-Identifier: Apache-2.0 */
/* REFINE: falls on a planted bowl, never ends worse, keeps the halves, stops when told to. */
#include "adapt/solve.h"
#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { N = 8, EXAMPLES = 6 };

struct bowl {
    float centre[2][N]; /* of even and of odd examples */
    int calls, cancel_at, fail_at, nan_from;
};

static enum cr_status loss(void *ud, const float *w, float *out, struct cr_error *err)
{
    struct bowl *b = ud;
    b->calls++;
    if (b->calls == b->cancel_at)
        return cr_error_set(err, CR_CANCELLED, "stopped");
    if (b->calls == b->fail_at)
        return cr_error_set(err, CR_IO, "broken");
    for (int i = 0; i < EXAMPLES; i++) {
        double s = 0;
        for (int n = 0; n < N; n++) {
            double d = (double)w[n] - (double)b->centre[i & 1][n];
            s += d * d;
        }
        out[i] = b->nan_from && b->calls >= b->nan_from ? NAN : (float)(s + 0.1 * i);
    }
    return CR_OK;
}

static struct cr_refine search(struct bowl *b, int evals, uint64_t seed)
{
    return (struct cr_refine){.n = N,
                              .n_examples = EXAMPLES,
                              .loss = loss,
                              .ud = b,
                              .sigma = 0.2F,
                              .max_evals = evals,
                              .seed = seed};
}

static double mean(const float *x)
{
    double s = 0;
    for (int i = 0; i < EXAMPLES; i++)
        s += (double)x[i] / EXAMPLES;
    return s;
}

static void test_falls_into_the_bowl(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct bowl b = {.calls = 0};
        for (int n = 0; n < N; n++)
            b.centre[0][n] = b.centre[1][n] = 0.5F * (float)(n % 3);
        float w[N] = {0}, start[EXAMPLES], end[EXAMPLES];
        struct cr_error err;
        assert_int_equal(loss(&b, w, start, &err), CR_OK);
        b.calls = 0;
        struct cr_refine r = search(&b, 32, seed);
        assert_int_equal(cr_refine(&r, w, start, &err), CR_OK);
        assert_int_equal(r.n_evals, 32);
        assert_int_equal(b.calls, 32);
        assert_true(r.n_accepted > 0 && r.loss_end < r.loss_start);
        assert_int_equal(loss(&b, w, end, &err), CR_OK);
        assert_true(fabs(mean(end) - (double)r.loss_end) < 1e-5);
        b.calls = 0;
        float far[N] = {0};
        r = search(&b, 600, seed);
        assert_int_equal(cr_refine(&r, far, start, &err), CR_OK);
        for (int n = 0; n < N; n++)
            assert_true(fabs((double)far[n] - (double)b.centre[0][n]) < 0.05);
        float again[N] = {0};
        r = search(&b, 600, seed);
        assert_int_equal(cr_refine(&r, again, start, &err), CR_OK);
        assert_memory_equal(again, far, sizeof far); /* the same seed, the same search */
    }
}

/* Two groups want opposite things: at the point between them every step hurts one half. */
static void test_no_half_gets_worse(void **state)
{
    (void)state;
    struct bowl b = {.calls = 0};
    for (int n = 0; n < N; n++) {
        b.centre[0][n] = 1;
        b.centre[1][n] = -1;
    }
    float w[N] = {0.5F, 0.1F, -0.7F}, start[EXAMPLES], end[EXAMPLES];
    assert_int_equal(loss(&b, w, start, NULL), CR_OK);
    struct cr_refine r = search(&b, 200, 1);
    assert_int_equal(cr_refine(&r, w, start, NULL), CR_OK);
    assert_int_equal(loss(&b, w, end, NULL), CR_OK);
    for (int h = 0; h < 2; h++)
        assert_true(end[h] + end[h + 2] + end[h + 4] <= start[h] + start[h + 2] + start[h + 4]);
}

static void test_never_worse_and_finite(void **state)
{
    (void)state;
    struct bowl b = {.nan_from = 1}; /* already at the centre, and the loss is broken */
    float w[N] = {0}, start[EXAMPLES] = {0, 0.1F, 0.2F, 0.3F, 0.4F, 0.5F};
    struct cr_refine r = search(&b, 32, 1);
    assert_int_equal(cr_refine(&r, w, start, NULL), CR_OK);
    assert_int_equal(r.n_accepted, 0);
    for (int n = 0; n < N; n++)
        assert_true(w[n] == 0);
    b = (struct bowl){.nan_from = 0};
    r = search(&b, 32, 1);
    assert_int_equal(cr_refine(&r, w, start, NULL), CR_OK); /* at the minimum: nothing accepted */
    assert_int_equal(r.n_accepted, 0);
    assert_true(r.loss_end == r.loss_start);
}

static void test_stop_and_errors(void **state)
{
    (void)state;
    struct bowl b = {.cancel_at = 5};
    for (int n = 0; n < N; n++)
        b.centre[0][n] = b.centre[1][n] = 1;
    float w[N] = {0}, start[EXAMPLES];
    assert_int_equal(loss(&b, w, start, NULL), CR_OK);
    struct cr_error err;
    struct cr_refine r = search(&b, 32, 1);
    assert_int_equal(cr_refine(&r, w, start, &err), CR_OK);
    assert_true(r.stopped);
    assert_int_equal(r.n_evals, 3);
    b.calls = 0;
    b.cancel_at = 0;
    b.fail_at = 2;
    r = search(&b, 32, 1);
    assert_int_equal(cr_refine(&r, w, start, &err), CR_IO);
    assert_string_equal(err.msg, "broken");
    r = search(&b, 32, 1);
    r.sigma = 0;
    assert_int_equal(cr_refine(&r, w, start, &err), CR_INVALID);
    r = search(&b, 32, 1);
    cr_mem_fail_at(1, false);
    assert_int_equal(cr_refine(&r, w, start, &err), CR_NO_MEMORY);
    cr_mem_fail_at(0, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_falls_into_the_bowl),
        cmocka_unit_test(test_no_half_gets_worse),
        cmocka_unit_test(test_never_worse_and_finite),
        cmocka_unit_test(test_stop_and_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
