/* SPDX-License-Identifier: Apache-2.0 */
/* Means and bootstrap intervals of `crayon eval` on made-up results. */
#include "base/rng.h"
#include "eval.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { TASKS = 40, ROWS = 50 };

static struct cr_eval e;
static struct cr_args args;
static struct cr_error err;
static struct cr_eval_task tasks[TASKS];
static struct cr_eval_row rows[2] = {{.name = (char *)"base"}, {.name = (char *)"other"}};
static struct cr_eval_cell cells[2 * TASKS];
static uint8_t correct[2 * TASKS][ROWS];
static char *groups[] = {(char *)"one", (char *)"two"};

/* Row 0 is right with probability p, row 1 with q, independently. */
static void fill(double p, double q)
{
    struct cr_rng rng;
    cr_rng_init(&rng, 3);
    for (size_t i = 0; i < 2 * TASKS; i++) {
        size_t hits = 0;
        for (size_t k = 0; k < ROWS; k++) {
            correct[i][k] = cr_rng_double(&rng) < (i % 2 ? q : p);
            hits += correct[i][k];
        }
        cells[i].correct = correct[i];
        cells[i].m = (struct cr_measure){.n = ROWS, .accuracy = (double)hits / ROWS};
    }
    for (size_t t = 0; t < TASKS; t++)
        tasks[t] = (struct cr_eval_task){.name = (char *)"t", .group = groups[t % 2]};
    e = (struct cr_eval){.a = &args,
                         .tasks = {.v = tasks, .n = TASKS},
                         .rows = {.v = rows, .n = 2},
                         .cells = cells,
                         .n_done = TASKS,
                         .groups = groups,
                         .n_groups = 2};
}

static int set_up(void **state)
{
    (void)state;
    static const char *const argv[] = {"crayon", "eval", "--tasks", "x"};
    return (int)cr_args_parse(&args, 4, argv, NULL, &err);
}

static int tear_down(void **state)
{
    (void)state;
    cr_args_deinit(&args);
    return 0;
}

static void test_means_and_intervals(void **state)
{
    (void)state;
    struct cr_eval_stat s, again;
    fill(0.5, 0.7);
    assert_int_equal(cr_eval_statistic(&e, 0, 1, 0, &s, &err), CR_OK);
    assert_int_equal(s.n_tasks, TASKS / 2);
    assert_int_equal(s.n_rows, TASKS / 2 * ROWS);
    double mean = 0, other = 0;
    for (size_t t = 0; t < TASKS; t += 2) {
        mean += cells[2 * t + 1].m.accuracy / (TASKS / 2);
        other += cells[2 * t].m.accuracy / (TASKS / 2);
    }
    assert_true(fabs(s.mean - mean) < 1e-12);
    assert_true(fabs(s.diff - (mean - other)) < 1e-12);
    assert_true(s.low < s.mean && s.mean < s.high);
    assert_true(s.diff_low > 0.1 && s.diff_high < 0.3);
    /* sampling 20 x 50 coins of 0.7, twice over (tasks and rows): sd about 0.02 */
    assert_true(s.high - s.low > 0.04 && s.high - s.low < 0.13);
    assert_int_equal(cr_eval_statistic(&e, 0, 1, 0, &again, &err), CR_OK);
    assert_memory_equal(&s, &again, sizeof s);
}

static void test_a_row_against_itself(void **state)
{
    (void)state;
    struct cr_eval_stat s;
    fill(0.5, 0.5);
    assert_int_equal(cr_eval_statistic(&e, 1, 0, 0, &s, &err), CR_OK);
    assert_true(s.diff == 0 && s.diff_low == 0 && s.diff_high == 0);
}

static void test_constant_rows_have_no_width(void **state)
{
    (void)state;
    struct cr_eval_stat s;
    fill(0, 1);
    assert_int_equal(cr_eval_statistic(&e, 0, 1, 0, &s, &err), CR_OK);
    assert_true(s.mean == 1 && s.low == 1 && s.high == 1 && s.diff_low == 1);
}

static void test_nothing_done_yet(void **state)
{
    (void)state;
    struct cr_eval_stat s;
    fill(0.5, 0.5);
    e.n_done = 1; /* the second group has no task yet */
    assert_int_equal(cr_eval_statistic(&e, 1, 0, 0, &s, &err), CR_OK);
    assert_int_equal(s.n_tasks, 0);
    assert_true(isnan(s.mean));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_means_and_intervals),
        cmocka_unit_test(test_a_row_against_itself),
        cmocka_unit_test(test_constant_rows_have_no_width),
        cmocka_unit_test(test_nothing_done_yet),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
