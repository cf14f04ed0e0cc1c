/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of binding that need no file: numbers in names, the row order, the list of refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "adapt/lora_bind.h"

#include <stdio.h>
#include <string.h>

static void test_layer_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool good;
        uint64_t layer;
        size_t used;
    } cases[] = {
        {"0.x", true, 0, 1}, {"12.", true, 12, 2},     {"999999", true, 999999, 6},
        {"", false, 0, 0},   {".1", false, 0, 0},      {"01", false, 0, 0},
        {"-1", false, 0, 0}, {"+1", false, 0, 0},      {" 1", false, 0, 0},
        {"00", false, 0, 0}, {"1000000", false, 0, 0}, {"18446744073709551617", false, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t layer;
        size_t used;
        assert_int_equal(cr_lora_layer_number(cases[i].text, strlen(cases[i].text), &layer, &used),
                         cases[i].good);
        if (cases[i].good) {
            assert_int_equal(layer, cases[i].layer);
            assert_int_equal(used, cases[i].used);
        }
    }
}

/* Inside a head of 6: GGUF rows 0 1 2 3 4 5 are Hugging Face rows 0 3 1 4 2 5. */
static void test_row_order(void **state)
{
    (void)state;
    static const size_t want[12] = {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
    for (size_t r = 0; r < 12; r++)
        assert_int_equal(cr_lora_hf_row(r, 6), want[r]);
}

static void test_refusals_fit_the_message(void **state)
{
    (void)state;
    struct cr_refusals none = {0}, few = {0}, many = {0};
    struct cr_error err;
    assert_int_equal(cr_refusals_report(&none, "p", &err), CR_OK);
    cr_refuse(&few, CR_FORMAT, "one %d", 1);
    cr_refuse(&few, CR_UNSUPPORTED, "two");
    assert_int_equal(cr_refusals_report(&few, "p", &err), CR_FORMAT); /* of the first */
    assert_string_equal(err.msg, "p: one 1; two");
    char path[1000];
    memset(path, 'x', sizeof path);
    path[999] = '\0';
    for (int i = 0; i < 1000000; i++)
        cr_refuse(&many, CR_FORMAT, "tensor %d", i);
    assert_int_equal(cr_refusals_report(&many, path, &err), CR_FORMAT);
    char end[64];
    snprintf(end, sizeof end, "; and %zu more", many.n - many.n_shown);
    assert_true(many.n_shown > 10);
    assert_string_equal(err.msg + strlen(err.msg) - strlen(end), end);
    /* a long one after short ones does not let later ones jump the queue */
    struct cr_refusals r = {0};
    memset(path, 'y', 250);
    path[250] = '\0';
    cr_refuse(&r, CR_FORMAT, "%s", path);
    cr_refuse(&r, CR_FORMAT, "%s", path);
    cr_refuse(&r, CR_FORMAT, "short");
    cr_refusals_report(&r, "p", &err);
    assert_null(strstr(err.msg, "short"));
    assert_non_null(strstr(err.msg, "and 2 more"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layer_numbers),
        cmocka_unit_test(test_row_order),
        cmocka_unit_test(test_refusals_fit_the_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
