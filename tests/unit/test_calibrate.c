/* SPDX-License-Identifier: Apache-2.0 */
/* route/calibrate.c: quantiles, ranks, and the promise that a budget is met on a fresh split. */
#include "route/calibrate.h"

#include "base/rng.h"
#include "route/rules.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N = 20000 }; /* a share of such a split has a deviation of at most 0.35 points */
static float conf[N], scope[N], fresh_conf[N], fresh_scope[N];

/* Scores as routing sees them: confidence demand skewed towards 0, scope nearly normal with a heavy
 * tail, and both depend on each other. */
static void draw(struct cr_rng *r, float *c, float *s, size_t n, double tie)
{
    for (size_t i = 0; i < n; i++) {
        double hard = cr_rng_normal(r), u = cr_rng_double(r);
        c[i] = (float)(1 / (1 + exp(2 - 1.5 * hard - 0.5 * cr_rng_normal(r))));
        s[i] = (float)(0.5 * hard + cr_rng_normal(r) + (u < 0.05 ? 3 * cr_rng_double(r) : 0));
        if (cr_rng_double(r) < tie)
            c[i] = 0;
    }
}

static double share(enum cr_rule rule, double budget, const cr_palette *p, size_t n, uint64_t seed)
{
    size_t sent = 0;
    for (size_t i = 0; i < n; i++) {
        struct cr_signals s;
        struct cr_decision d;
        char text[32];
        cr_signals_init(&s);
        s.demand_conf = fresh_conf[i];
        s.confidence = 1 - s.demand_conf;
        s.demand_scope = fresh_scope[i];
        if (rule == CR_RULE_RANDOM)
            s.request = cr_request_hash(seed, text, (size_t)snprintf(text, sizeof text, "q%zu", i));
        cr_rule_decide(rule, budget, p, &s, &d);
        sent += d.server;
    }
    return (double)sent / (double)n;
}

static void test_budget_is_met_on_a_fresh_split(void **state)
{
    (void)state;
    static const double budgets[] = {0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1};
    struct cr_rng r;
    struct cr_palette p = {.name = "t"};
    double worst = 0;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        cr_rng_init(&r, seed);
        draw(&r, conf, scope, N, 0);
        draw(&r, fresh_conf, fresh_scope, N, 0);
        assert_int_equal(cr_calibration_fit(&p.calibration, conf, scope, N, false, NULL), CR_OK);
        for (size_t b = 0; b < sizeof budgets / sizeof *budgets; b++)
            for (int rule = 0; rule < CR_RULE_LEARNED; rule++) { /* that one: test_learned.c */
                double got = share((enum cr_rule)rule, budgets[b], &p, N, seed);
                double off = fabs(got - budgets[b]);
                worst = off > worst ? off : worst;
                if (off > 0.02)
                    print_message("%s, budget %g: sent %g\n", cr_rule_name((enum cr_rule)rule),
                                  budgets[b], got);
                assert_true(off <= 0.02);
            }
    }
    print_message("largest distance from the budget: %.4f\n", worst);
}

/* Both thresholds of CRAYON do work: some questions go for confidence alone, some for scope. */
static void test_union_uses_both(void **state)
{
    (void)state;
    struct cr_rng r;
    struct cr_palette p = {.name = "t"};
    cr_rng_init(&r, 9);
    draw(&r, conf, scope, N, 0);
    assert_int_equal(cr_calibration_fit(&p.calibration, conf, scope, N, false, NULL), CR_OK);
    size_t by_conf = 0, by_scope = 0, both = 0;
    for (size_t i = 0; i < N; i++) {
        struct cr_signals s;
        struct cr_decision d;
        cr_signals_init(&s);
        s.demand_conf = conf[i];
        s.confidence = 1 - conf[i];
        s.demand_scope = scope[i];
        cr_rule_decide(CR_RULE_CRAYON, 0.2, &p, &s, &d);
        bool low = s.confidence<d.min_confidence, far = s.demand_scope> d.max_far;
        assert_true(d.server == (low || far));
        by_conf += low && !far;
        by_scope += far && !low;
        both += low && far;
    }
    assert_true(by_conf > N / 50 && by_scope > N / 50 && both > 0);
    assert_true(fabs((double)(by_conf + by_scope + both) / N - 0.2) < 0.02);
}

/* With ties more than the budget may equal the threshold: they stay, so the share is below. */
static void test_ties_stay(void **state)
{
    (void)state;
    struct cr_rng r;
    struct cr_palette p = {.name = "t"};
    cr_rng_init(&r, 3);
    draw(&r, conf, scope, N, 0.6);
    draw(&r, fresh_conf, fresh_scope, N, 0.6);
    assert_int_equal(cr_calibration_fit(&p.calibration, conf, NULL, N, false, NULL), CR_OK);
    assert_true(fabs(share(CR_RULE_CONF, 0.2, &p, N, 1) - 0.2) < 0.02);
    assert_true(share(CR_RULE_CONF, 0.7, &p, N, 1) <= 0.42);
}

static void test_few_examples(void **state)
{
    (void)state;
    struct cr_calibration c;
    struct cr_rng r;
    struct cr_palette p = {.name = "t"};
    double sum = 0;
    assert_int_equal(cr_calibration_fit(&c, conf, NULL, 1, false, NULL), CR_INVALID);
    float bad[3] = {0.1f, NAN, 0.2f};
    assert_int_equal(cr_calibration_fit(&c, bad, NULL, 3, false, NULL), CR_INVALID);
    assert_int_equal(cr_calibration_fit(&c, conf, bad, 3, false, NULL), CR_INVALID);
    /* Weibull's quantile is right on average however few the examples are */
    cr_rng_init(&r, 11);
    draw(&r, fresh_conf, fresh_scope, N, 0);
    for (int i = 0; i < 400; i++) { /* the mean has a deviation of 0.3 points */
        draw(&r, conf, scope, 19, 0);
        assert_int_equal(cr_calibration_fit(&p.calibration, conf, NULL, 19, false, NULL), CR_OK);
        size_t sent = 0;
        double t = cr_calibration_quantile(p.calibration.conf, 0.9);
        for (int k = 0; k < N; k++)
            sent += (double)fresh_conf[k] > t;
        sum += (double)sent / N;
    }
    assert_true(fabs(sum / 400 - 0.1) < 0.01);
    assert_true(fabs(cr_calibration_resolution(&p.calibration) - 0.05) < 1e-9);
}

static void test_rank_is_the_inverse(void **state)
{
    (void)state;
    struct cr_rng r;
    struct cr_calibration c;
    cr_rng_init(&r, 5);
    draw(&r, conf, scope, N, 0);
    assert_int_equal(cr_calibration_fit(&c, conf, scope, N, false, NULL), CR_OK);
    for (int i = 1; i < 1000; i++) {
        double level = i / 1000.0, x = cr_calibration_quantile(c.scope, level);
        assert_true(fabs(cr_calibration_rank(c.scope, x) - level) < 1e-6);
    }
    assert_true(cr_calibration_rank(c.scope, -1e9) <= 0);
    assert_true(cr_calibration_rank(c.scope, 1e9) >= 1);
    assert_true(cr_calibration_rank(c.scope, (double)NAN) <= 0);
    for (int k = 1; k < CR_CALIBRATION_KNOTS; k++)
        assert_true(c.either[k] >= c.either[k - 1] && c.conf[k] >= c.conf[k - 1]);
}

static void test_auroc(void **state)
{
    (void)state;
    float score[6] = {0.1f, 0.2f, 0.3f, 0.4f, 0.4f, 0.5f};
    bool up[6] = {false, false, false, true, true, true};
    bool mixed[6] = {true, false, false, true, false, true};
    bool none[6] = {false, false, false, false, false, false};
    assert_true(fabs(cr_auroc(score, up, 6) - 1) < 1e-9);
    /* pairs: 0.1 loses to three (0), 0.4 wins two and ties one (2.5), 0.5 wins three: 5.5 of 9 */
    assert_true(fabs(cr_auroc(score, mixed, 6) - 5.5 / 9) < 1e-9);
    assert_true(isnan(cr_auroc(score, none, 6)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget_is_met_on_a_fresh_split),
        cmocka_unit_test(test_union_uses_both),
        cmocka_unit_test(test_ties_stay),
        cmocka_unit_test(test_few_examples),
        cmocka_unit_test(test_rank_is_the_inverse),
        cmocka_unit_test(test_auroc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
