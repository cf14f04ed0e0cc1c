/* SPDX-License-Identifier: Apache-2.0 */
/* The chart: balanced tags, escaped names, no numbers that XML readers refuse. */
#include "svg.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static size_t count(const char *s, const char *what)
{
    size_t n = 0;
    for (; (s = strstr(s, what)) != NULL; s += strlen(what))
        n++;
    return n;
}

static void test_chart(void **state)
{
    (void)state;
    static const char *const groups[] = {"pool", "un<seen>&\"x\x1b"};
    static const char *const series[] = {"base", "knn", "refine"};
    static const double v[] = {10, 50.5, 99, 0, (double)NAN, 33};
    static const double low[] = {5, 40, 1, 0, 1, 20}, high[] = {15, 60, 0, 0, 0, 40};
    struct cr_chart c = {"Title & more", "sub", " %", 2, 3, groups, series, v, low, high};
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    cr_svg_bars(&b, &c);
    assert_false(b.failed);
    assert_non_null(strstr(b.data, "Title &amp; more"));
    assert_non_null(strstr(b.data, "un&lt;seen&gt;&amp;&quot;x"));
    assert_null(strchr(b.data, '\x1b'));
    assert_null(strstr(b.data, "nan"));
    assert_null(strstr(b.data, "inf"));
    assert_int_equal(count(b.data, "<svg"), 1);
    assert_int_equal(count(b.data, "</svg>"), 1);
    assert_int_equal(count(b.data, "<text"), count(b.data, "</text>"));
    assert_int_equal(count(b.data, "class=\"whisker\""), 4); /* two have low > high or no bar */
    assert_int_equal(count(b.data, "<rect"), 1 + 5 + 3);     /* page, bars, legend */
    cr_buf_deinit(&b);
}

static void test_chart_of_zeros(void **state)
{
    (void)state;
    static const char *const one[] = {"x"};
    static const double zero[] = {0};
    struct cr_chart c = {"t", "s", "", 1, 1, one, one, zero, zero, zero};
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    cr_svg_bars(&b, &c);
    assert_null(strstr(b.data, "nan"));
    cr_buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chart),
        cmocka_unit_test(test_chart_of_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
