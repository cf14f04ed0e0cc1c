/* SPDX-License-Identifier: Apache-2.0 */
/* route/study.c on rows whose answers are known by construction. */
#include "route/study.h"

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

enum { N = 4000 };

/* P(device wrong) = demand_conf, scope far makes it wrong too; the server is right 9 of 10. */
static struct cr_study_row *make_rows(bool with_scope)
{
    struct cr_study_row *rows = cr_alloc0(N, sizeof *rows);
    struct cr_rng r;
    cr_rng_init(&r, 4);
    for (int i = 0; i < N; i++) {
        struct cr_signals *s = &rows[i].signals;
        char text[16];
        cr_signals_init(s);
        s->demand_conf = (float)cr_rng_double(&r);
        s->confidence = 1 - s->demand_conf;
        s->entropy = s->demand_conf;
        s->p1 = s->confidence;
        s->quantile[0] = -s->demand_conf;
        double z = cr_rng_normal(&r);
        if (with_scope)
            s->demand_scope = (float)z;
        s->request = cr_request_hash(1, text, (size_t)snprintf(text, sizeof text, "%d", i));
        rows[i].device_right = cr_rng_double(&r) > (double)s->demand_conf && z < 1.5;
        rows[i].server_right = cr_rng_double(&r) < 0.9;
    }
    return rows;
}

static void test_rules_beat_random_and_the_oracle_beats_rules(void **state)
{
    (void)state;
    struct cr_study_row *rows = make_rows(true);
    struct cr_study s;
    assert_int_equal(cr_study_make(&s, rows, N, true, NULL), CR_OK);
    assert_true(s.has_scope && s.server_known);
    for (int b = 0; b < CR_STUDY_POINTS; b++) {
        for (int r = 0; r < CR_RULE_COUNT; r++)
            assert_true(fabs(s.sent[b][r] - cr_study_budgets[b]) < 0.03);
        assert_true(fabs(s.accuracy[b][CR_RULE_RANDOM] - s.line[b]) < 0.03);
        assert_true(s.oracle[b] >= s.accuracy[b][CR_RULE_CRAYON] - 1e-9);
        if (b > 1 && b < 6)
            assert_true(s.accuracy[b][CR_RULE_CONF] > s.line[b] + 0.02);
    }
    assert_true(fabs(s.area[CR_RULE_RANDOM]) < 0.01);
    assert_true(s.area[CR_RULE_CONF] > 0.05);
    assert_true(s.area[CR_RULE_SCOPE] > 0.005);
    assert_true(s.area_oracle > s.area[CR_RULE_CRAYON]);
    assert_true(fabs(s.accuracy[0][CR_RULE_CONF] - s.device_accuracy) < 1e-9);
    assert_true(fabs(s.accuracy[CR_STUDY_POINTS - 1][CR_RULE_CONF] - s.server_accuracy) < 1e-9);
    assert_true(fabs(s.oracle[CR_STUDY_POINTS - 1] - s.server_accuracy) < 1e-9);
    assert_true(s.auroc_conf > 0.75 && fabs(s.auroc_conf - s.auroc_p1) < 1e-9);
    assert_true(fabs(s.auroc_conf - s.auroc_quantile[0]) < 1e-9);
    assert_true(s.auroc_scope > 0.52 && isnan(s.auroc_change));
    cr_free(rows);
}

static void test_without_server_or_scope(void **state)
{
    (void)state;
    struct cr_study_row *rows = make_rows(false);
    struct cr_study s;
    assert_int_equal(cr_study_make(&s, rows, N, false, NULL), CR_OK);
    assert_false(s.has_scope);
    assert_true(s.server_accuracy > 0.999999);
    assert_true(isnan(s.accuracy[2][CR_RULE_CRAYON]) && isnan(s.area[CR_RULE_SCOPE]));
    assert_true(s.accuracy[3][CR_RULE_CONF] > s.line[3]);
    assert_int_equal(cr_study_make(&s, rows, 3, false, NULL), CR_INVALID);
    rows[7].signals.demand_conf = NAN;
    assert_int_equal(cr_study_make(&s, rows, N, false, NULL), CR_INVALID);
    cr_free(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules_beat_random_and_the_oracle_beats_rules),
        cmocka_unit_test(test_without_server_or_scope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
