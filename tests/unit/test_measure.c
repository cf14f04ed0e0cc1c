/* SPDX-License-Identifier: Apache-2.0 */
/* Sums of scores, and F1 of answers. */
#include "measure.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static double f1(const char *got, const char *want)
{
    return cr_token_f1(got, &want, 1);
}

static void near(double got, double want)
{
    if (!(fabs(got - want) < 1e-12))
        fail_msg("%g, want %g", got, want);
}

static void test_f1(void **state)
{
    (void)state;
    near(f1(" the Eiffel Tower. ", "Eiffel tower"), 1);
    near(f1("tower", "the Eiffel Tower"), 2.0 * 1 / (1 + 2));
    near(f1("a b b c", "b b d"), 2.0 * 2 / (3 + 3)); /* "a" is an article; b counts twice */
    near(f1("b", "b b"), 2.0 * 1 / 3);
    near(f1("cat", "dog"), 0);
    near(f1("", "dog"), 0);
    near(f1("", ""), 1);
    near(f1("the", "a"), 1); /* nothing but articles on both sides */
    near(f1("U.S.A.", "usa"), 1);
    near(f1("\xd0\x9c\xd0\xbe\xd1\x81\xd0\xba\xd0\xb2\xd0\xb0",
            "\xd0\xbc\xd0\xbe\xd1\x81\xd0\xba\xd0\xb2\xd0\xb0"),
         1); /* capital M in Cyrillic */
    near(f1("a\xff\xfe z", "z"), f1("a z", "z"));
    static const char *const many[] = {"no", "yes sir", "yes"};
    near(cr_token_f1("Yes!", many, 3), 1);
    near(cr_token_f1("x", many, 0), 0);
}

static void test_f1_of_long_texts(void **state)
{
    (void)state;
    static char big[100000];
    for (size_t i = 0; i + 1 < sizeof big; i++)
        big[i] = i % 7 ? 'x' : ' ';
    assert_true(f1(big, big) > 0.99);
    memset(big, 'y', sizeof big - 1);
    near(f1(big, "y"), 0);
}

static void test_sums(void **state)
{
    (void)state;
    struct cr_example_score s[4] = {
        {.n_options = 4, .has_answer = true, .correct = true, .loss = 1},
        {.n_options = 2}, /* no answer */
        {.n_options = 1, .has_answer = true, .correct = false, .loss = 3},
        {.n_options = 4, .has_answer = true, .correct = true, .loss = 2},
    };
    struct cr_measure m;
    uint8_t correct[4] = {9, 9, 9, 9};
    cr_measure_scores(s, 4, &m, correct);
    assert_int_equal(m.n, 3);
    assert_int_equal(m.n_choices, 2);
    assert_int_equal(m.n_short, 1);
    near(m.accuracy, 2.0 / 3);
    near(m.loss, 2);
    assert_true(isnan(m.f1));
    assert_true(correct[0] == 1 && correct[1] == 0 && correct[2] == 1 && correct[3] == 9);
    cr_measure_scores(s, 0, &m, NULL);
    assert_true(isnan(m.accuracy));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f1),
        cmocka_unit_test(test_f1_of_long_texts),
        cmocka_unit_test(test_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
