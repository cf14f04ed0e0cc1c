/* SPDX-License-Identifier: Apache-2.0 */
/* route/signals.c: each signal against a value worked out by hand. */
#include "route/signals.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define NEAR(a, b) assert_true(fabs((double)(a) - (double)(b)) < 1e-5)

static void test_nothing_is_known_at_first(void **state)
{
    (void)state;
    struct cr_signals s;
    cr_signals_init(&s);
    assert_true(isnan(s.p1) && isnan(s.mean) && isnan(s.quantile[0]) && isnan(s.scope) &&
                isnan(s.demand_conf) && isnan(s.demand_scope) && isnan(s.change));
}

static void test_text(void **state)
{
    (void)state;
    struct cr_meter m;
    struct cr_signals s;
    assert_int_equal(cr_meter_init(&m, 5, false, NULL), CR_OK);
    uint64_t before = cr_mem_count();
    static const float logprobs[5] = {-0.1f, -0.4f, -0.2f, -0.3f, -1.0f};
    for (int i = 0; i < 5; i++)
        cr_meter_token(&m, i, logprobs[i], NULL, 0);
    cr_meter_token(&m, 0, -50.0f, NULL, 0); /* past the capacity: left out */
    cr_signals_init(&s);
    cr_signals_text(&s, &m);
    assert_true(cr_mem_count() == before);
    assert_int_equal(s.n, 5);
    NEAR(s.mean, -0.4);
    NEAR(s.quantile[0], -1.0);
    NEAR(s.quantile[1], -1.0 + 0.4 * 0.6); /* 10 % of the way through 4 gaps */
    NEAR(s.quantile[2], -0.4);
    NEAR(s.quantile[3], -0.3);
    NEAR(s.confidence, exp(-0.4));
    NEAR(s.demand_conf, 1 - exp(-0.4));
    NEAR(s.log_length, log(6));
    assert_true(isnan(s.p1) && isnan(s.entropy)); /* no logits were given */
    cr_meter_reset(&m);
    cr_signals_text(&s, &m); /* no answer at all */
    NEAR(s.demand_conf, 1);
    cr_meter_token(&m, 0, -INFINITY, NULL, 0);
    cr_signals_text(&s, &m);
    NEAR(s.demand_conf, 1);
    cr_meter_reset(&m);
    cr_meter_token(&m, 0, NAN, NULL, 0);
    cr_signals_text(&s, &m);
    NEAR(s.demand_conf, 1);
    cr_meter_deinit(&m);
}

static void test_logits_give_the_likeliest_token(void **state)
{
    (void)state;
    /* p = 1/2, 1/4, 1/8, 1/8 */
    const float logits[4] = {(float)log(4), (float)log(2), 0, 0};
    struct cr_meter m;
    struct cr_signals s;
    for (int id = 0; id < 4; id++) { /* whichever token was drawn */
        assert_int_equal(cr_meter_init(&m, 8, id == 0, NULL), CR_OK);
        cr_meter_token(&m, id, logits[id] - (float)log(8), logits, 4);
        cr_signals_init(&s);
        cr_signals_text(&s, &m);
        NEAR(s.p1, 0.5);
        NEAR(s.margin, 0.25);
        NEAR(s.mean, log(0.5));
        NEAR(s.confidence, 0.5);
        if (id == 0)
            NEAR(s.entropy, 1.75 * log(2));
        else
            assert_true(isnan(s.entropy));
        cr_meter_deinit(&m);
    }
}

static void test_options(void **state)
{
    (void)state;
    /* 8 * sum / bytes = ln 2, 0, -inf */
    struct cr_option_score o[3] = {
        {.sum = (float)(log(2) * 5 / 8 - 8), .n_tokens = 2, .n_bytes = 5},
        {.sum = -8, .n_tokens = 1, .n_bytes = 5},
        {.sum = -INFINITY, .n_tokens = 1, .n_bytes = 3}};
    struct cr_signals s;
    cr_signals_init(&s);
    cr_signals_options(&s, o, 3);
    assert_true(s.options);
    NEAR(s.p1, 2.0 / 3);
    NEAR(s.margin, 1.0 / 3);
    NEAR(s.entropy, log(3) - 2.0 / 3 * log(2));
    NEAR(s.confidence, 2.0 / 3);
    NEAR(s.mean, o[0].sum / 2);
    assert_true(isnan(s.quantile[0]));
    for (int i = 0; i < 3; i++)
        o[i].sum = NAN;
    cr_signals_options(&s, o, 3);
    NEAR(s.demand_conf, 1);
    cr_signals_options(&s, o, 0);
    NEAR(s.demand_conf, 1);
}

static void test_change(void **state)
{
    (void)state;
    const float a[2] = {(float)log(3), 0}, b[2] = {0, (float)log(3)}, c[2] = {5, 5};
    NEAR(cr_signal_change(a, a, 2), 0);
    NEAR(cr_signal_change(a, b, 2), 1);   /* |3/4 - 1/4| twice */
    NEAR(cr_signal_change(a, c, 2), 0.5); /* |3/4 - 1/2| twice */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_known_at_first),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_logits_give_the_likeliest_token),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
