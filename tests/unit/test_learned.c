/* SPDX-License-Identifier: Apache-2.0 */
/* route/learned.c: the weights of a known model come back, the learned rule beats its best signal,
 * and the conformal bound on accepted-and-wrong holds on fresh rows. */
#include "route/learned.h"

#include "base/mem.h"
#include "base/rng.h"
#include "route/calibrate.h"
#include "route/rules.h"
#include "route/study.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N = 4000 };
static struct cr_study_row rows[N], fresh[N];

/* Wrong with log-odds 2 z1 + z2 - 0.5, where z1 shows in the confidence and z2 in the scope. */
static void draw(struct cr_rng *r, struct cr_study_row *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double z1 = cr_rng_normal(r), z2 = cr_rng_normal(r);
        struct cr_signals *s = &v[i].signals;
        cr_signals_init(s);
        s->demand_conf = (float)(0.5 + 0.1 * z1);
        s->confidence = 1 - s->demand_conf;
        s->demand_scope = (float)(3 * z2);
        s->scope_z = s->demand_scope;
        s->log_length = (float)cr_rng_normal(r); /* says nothing */
        v[i].device_right = cr_rng_double(r) >= cr_learned_chance(2 * z1 + z2 - 0.5);
        v[i].server_right = cr_rng_double(r) < 0.9;
    }
}

static void calibrate(struct cr_calibration *c, const struct cr_study_row *v, size_t n)
{
    float conf[N], scope[N];
    char why[160];
    for (size_t i = 0; i < n; i++) {
        conf[i] = v[i].signals.demand_conf;
        scope[i] = v[i].signals.demand_scope;
    }
    assert_int_equal(cr_calibration_fit(c, conf, scope, n, false, NULL), CR_OK);
    assert_int_equal(cr_calibration_label(c, v, n, false, NULL, why, NULL), CR_OK);
    assert_string_equal(why, "");
}

static void test_weights_come_back(void **state)
{
    (void)state;
    struct cr_learned l;
    struct cr_rng r;
    cr_rng_init(&r, 1);
    draw(&r, rows, N);
    assert_int_equal(cr_learned_fit(&l, rows, N, false, NULL), CR_OK);
    assert_int_equal(l.n_fitted, N);
    assert_true(fabs((double)l.weight[0] - 2) <
                0.25); /* demand_conf; the error of a weight is .06 */
    /* demand_scope and scope_z are the same number here and share its weight */
    assert_true(fabs((double)(l.weight[7] + l.weight[8]) - 1) < 0.2);
    assert_true(fabs((double)l.weight[6]) < 0.2);
    assert_true(fabs((double)l.bias + 0.5) < 0.2);
    for (int i = 1; i <= 5; i++) /* never known: no weight */
        assert_true(l.weight[i] == 0);
    /* what is not known counts as usual, what is absurd is bounded */
    struct cr_signals s;
    cr_signals_init(&s);
    assert_true(fabs(cr_learned_score(&l, &s) - (double)l.bias) < 1e-6);
    s.demand_conf = 1e30f;
    assert_true(cr_learned_score(&l, &s) < 20);
}

static void test_what_cannot_be_learned(void **state)
{
    (void)state;
    struct cr_learned l;
    struct cr_error err;
    struct cr_rng r;
    cr_rng_init(&r, 2);
    draw(&r, rows, 100);
    assert_int_equal(cr_learned_fit(&l, rows, 19, false, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "20 rows"));
    for (int i = 0; i < 100; i++)
        rows[i].device_right = true;
    assert_int_equal(cr_learned_fit(&l, rows, 100, false, &err), CR_INVALID);
    /* a server that is never right mends nothing */
    for (int i = 0; i < 100; i++)
        rows[i].device_right = rows[i].server_right = false;
    assert_int_equal(cr_learned_fit(&l, rows, 100, true, &err), CR_INVALID);
    /* the calibration stands without it and says why */
    struct cr_calibration c;
    float conf[100] = {0};
    char why[160];
    assert_int_equal(cr_calibration_fit(&c, conf, NULL, 100, false, NULL), CR_OK);
    assert_int_equal(cr_calibration_label(&c, rows, 100, true, NULL, why, NULL), CR_OK);
    assert_true(c.labelled && c.learned.n_rows == 0);
    assert_non_null(strstr(why, "rule learned"));
    struct cr_palette p = {.name = "t", .calibration = c};
    assert_int_equal(cr_rule_ready(CR_RULE_LEARNED, 0.1, &p, false, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "--learn"));
    assert_int_equal(cr_rule_ready_wrong(CR_RULE_LEARNED, 0.1, &p, false, &err), CR_INVALID);
    assert_int_equal(cr_rule_ready_wrong(CR_RULE_CONF, 0.1, &p, false, &err), CR_OK);
    assert_int_equal(cr_rule_ready_wrong(CR_RULE_RANDOM, 0.1, &p, false, &err), CR_INVALID);
    assert_int_equal(cr_rule_ready_wrong(CR_RULE_CONF, 0, &p, false, &err), CR_INVALID);
}

/* Both signals together rank better than each alone. */
static void test_learned_is_the_best_rule_here(void **state)
{
    (void)state;
    struct cr_study s;
    struct cr_rng r;
    cr_rng_init(&r, 3);
    draw(&r, rows, N);
    assert_int_equal(cr_study_make(&s, rows, N, false, NULL), CR_OK);
    assert_true(s.area[CR_RULE_LEARNED] > s.area[CR_RULE_CONF] + 0.01);
    assert_true(s.area[CR_RULE_LEARNED] > s.area[CR_RULE_CRAYON] + 0.01);
    assert_true(s.area[CR_RULE_LEARNED] < s.area_oracle);
    for (int b = 0; b < CR_STUDY_POINTS; b++)
        assert_true(fabs(s.sent[b][CR_RULE_LEARNED] - cr_study_budgets[b]) < 0.04);
}

static double kept_and_wrong(enum cr_rule rule, double max_wrong, const cr_palette *p,
                             const struct cr_study_row *v, size_t n, double *kept)
{
    size_t wrong = 0, stay = 0;
    for (size_t i = 0; i < n; i++) {
        struct cr_decision d;
        cr_rule_decide_wrong(rule, max_wrong, p, &v[i].signals, &d);
        stay += !d.server;
        wrong += !d.server && !v[i].device_right;
    }
    *kept = (double)stay / (double)n;
    return (double)wrong / (double)n;
}

/* The bound is on the mean over calibrations: 200 calibrations of 200 rows, 2,000 fresh rows each.
 * The error of the mean of wrong shares is below 0.2 points. */
static void test_bound_holds_on_fresh_rows(void **state)
{
    (void)state;
    static const double limits[] = {0.02, 0.05, 0.1, 0.2};
    enum { ROUNDS = 200, CALIBRATION = 200, FRESH = 2000 };
    for (size_t k = 0; k < 4; k++)
        for (int rule = CR_RULE_CONF; rule < CR_RULE_COUNT; rule++) {
            double sum = 0, sum_kept = 0, kept;
            for (int round = 0; round < ROUNDS; round++) {
                struct cr_rng r;
                struct cr_palette p = {.name = "t"};
                cr_rng_init(&r, (uint64_t)(100 + round));
                draw(&r, rows, CALIBRATION);
                draw(&r, fresh, FRESH);
                calibrate(&p.calibration, rows, CALIBRATION);
                sum += kept_and_wrong((enum cr_rule)rule, limits[k], &p, fresh, FRESH, &kept);
                sum_kept += kept;
            }
            print_message("%s, at most %.2f wrong: %.4f wrong, %.2f kept\n",
                          cr_rule_name((enum cr_rule)rule), limits[k], sum / ROUNDS,
                          sum_kept / ROUNDS);
            assert_true(sum / ROUNDS <= limits[k] + 0.002);
            /* it is no empty promise: a good part of what is allowed is used */
            if (limits[k] >= 0.1 && rule != CR_RULE_SCOPE)
                assert_true(sum / ROUNDS > 0.4 * limits[k] && sum_kept / ROUNDS > 0.1);
        }
}

/* ---- real rows ---- */

/* 1,000 signals of a task as the 15M model gave them; tests/golden/README.md says how. */
static size_t read_real(struct cr_study_row *v, const char *task)
{
    char line[512], name[64] = "";
    size_t n = 0;
    FILE *f = fopen(CR_SOURCE_DIR "/tests/golden/route-signals.txt", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) && n < N) {
        if (sscanf(line, "# task %63s", name) == 1 || line[0] == '#' || strcmp(name, task) != 0)
            continue;
        struct cr_signals *s = &v[n].signals;
        float right;
        cr_signals_init(s);
        assert_int_equal(sscanf(line, "%f %f %f %f %f %f %f %f %f %f %f", &s->demand_conf,
                                &s->demand_scope, &right, &s->mean, &s->quantile[0],
                                &s->quantile[1], &s->quantile[2], &s->quantile[3], &s->log_length,
                                &s->scope_z, &s->near_z),
                         11);
        s->confidence = 1 - s->demand_conf;
        v[n].device_right = v[n].server_right = right > 0;
        n++;
    }
    fclose(f);
    assert_int_equal(n, 1000);
    return n;
}

static void shuffle(struct cr_study_row *v, size_t n, struct cr_rng *r)
{
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)cr_rng_below(r, i);
        struct cr_study_row t = v[i - 1];
        v[i - 1] = v[k];
        v[k] = t;
    }
}

/* Half of the real rows calibrate, the other half are fresh, 60 times: the bound holds on average,
 * and the mean share that a budget sends is the budget. */
static void test_promises_hold_on_real_rows(void **state)
{
    (void)state;
    enum { ROUNDS = 60, HALF = 500 };
    static const char *const tasks[] = {"clinc150", "banking77"};
    static const double limits[] = {0.05, 0.1, 0.3};
    static double sent[CR_RULE_COUNT], wrong[3][CR_RULE_COUNT], kept[3][CR_RULE_COUNT];
    for (size_t t = 0; t < 2; t++) {
        struct cr_rng r;
        memset(sent, 0, sizeof sent);
        memset(wrong, 0, sizeof wrong);
        memset(kept, 0, sizeof kept);
        cr_rng_init(&r, 8);
        read_real(rows, tasks[t]);
        for (int round = 0; round < ROUNDS; round++) {
            struct cr_palette p = {.name = "t"};
            shuffle(rows, 2 * HALF, &r);
            calibrate(&p.calibration, rows, HALF);
            for (int rule = CR_RULE_CONF; rule < CR_RULE_COUNT; rule++) {
                for (size_t k = 0; k < 3; k++) {
                    double stay;
                    wrong[k][rule] +=
                        kept_and_wrong((enum cr_rule)rule, limits[k], &p, rows + HALF, HALF, &stay);
                    kept[k][rule] += stay;
                }
                for (size_t i = HALF; i < 2 * HALF; i++) {
                    struct cr_decision d;
                    cr_rule_decide((enum cr_rule)rule, 0.3, &p, &rows[i].signals, &d);
                    sent[rule] += d.server / (double)HALF;
                }
            }
        }
        for (int rule = CR_RULE_CONF; rule < CR_RULE_COUNT; rule++) {
            print_message("%s, %s: budget 30 %%: %.2f %% sent", tasks[t],
                          cr_rule_name((enum cr_rule)rule), 100 * sent[rule] / ROUNDS);
            assert_true(fabs(sent[rule] / ROUNDS - 0.3) < 0.01);
            for (size_t k = 0; k < 3; k++) {
                print_message("; at most %.0f %% wrong: %.2f %%, %.1f %% kept", 100 * limits[k],
                              100 * wrong[k][rule] / ROUNDS, 100 * kept[k][rule] / ROUNDS);
                assert_true(wrong[k][rule] / ROUNDS <= limits[k] + 0.004);
            }
            print_message("\n");
        }
        struct cr_study s;
        assert_int_equal(cr_study_make(&s, rows, 2 * HALF, false, NULL), CR_OK);
        print_message("%s, above the line: oracle %.1f, conf %.1f, crayon %.1f, learned %.1f\n",
                      tasks[t], 100 * s.area_oracle, 100 * s.area[CR_RULE_CONF],
                      100 * s.area[CR_RULE_CRAYON], 100 * s.area[CR_RULE_LEARNED]);
    }
}

static void test_accept(void **state)
{
    (void)state;
    float knots[CR_CALIBRATION_KNOTS];
    int wrong[CR_CALIBRATION_KNOTS];
    for (int k = 0; k < CR_CALIBRATION_KNOTS; k++) {
        knots[k] = (float)k;
        wrong[k] = k;
    }
    /* (wrong + 1) / 100 <= 0.1: wrong <= 9 */
    assert_true(cr_calibration_accept(knots, wrong, 99, 0.1) == 9);
    assert_true(cr_calibration_accept(knots, wrong, 99, 0.005) == -INFINITY);
    assert_true(cr_calibration_accept(knots, wrong, 0, 0.5) == -INFINITY);
    assert_true(cr_calibration_accept(knots, wrong, 99, 0.9) == 32);
    /* nothing can be promised: everything is sent, whatever the signals say */
    struct cr_palette p = {.name = "t"};
    struct cr_rng r;
    cr_rng_init(&r, 5);
    draw(&r, rows, N);
    calibrate(&p.calibration, rows, 50);
    for (int rule = CR_RULE_CONF; rule < CR_RULE_COUNT; rule++) {
        struct cr_decision d;
        cr_rule_decide_wrong((enum cr_rule)rule, 0.01, &p, &rows[0].signals, &d);
        assert_true(d.server);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_come_back),
        cmocka_unit_test(test_what_cannot_be_learned),
        cmocka_unit_test(test_learned_is_the_best_rule_here),
        cmocka_unit_test(test_bound_holds_on_fresh_rows),
        cmocka_unit_test(test_promises_hold_on_real_rows),
        cmocka_unit_test(test_accept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
