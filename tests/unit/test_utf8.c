/* SPDX-License-Identifier: Apache-2.0 */
/* utf8.c against the tables of the Unicode Standard (3.9, tables 3-7 to 3-11). */
#include "base/mem.h"
#include "base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void check_repair(const char *in, const char *want)
{
    size_t len;
    char *out = cr_utf8_repair(in, strlen(in), &len);
    assert_non_null(out);
    assert_string_equal(out, want);
    assert_int_equal(len, strlen(want));
    cr_free(out);
}

#define R "\xEF\xBF\xBD"

static void test_every_code_point(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x120000; c++) {
        char s[4];
        size_t n;
        if (c < 0x80) {
            s[0] = (char)c;
            n = 1;
        } else if (c < 0x800) {
            s[0] = (char)(0xC0 | c >> 6);
            s[1] = (char)(0x80 | (c & 63));
            n = 2;
        } else if (c < 0x10000) {
            s[0] = (char)(0xE0 | c >> 12);
            s[1] = (char)(0x80 | (c >> 6 & 63));
            s[2] = (char)(0x80 | (c & 63));
            n = 3;
        } else {
            s[0] = (char)(0xF0 | c >> 18);
            s[1] = (char)(0x80 | (c >> 12 & 63));
            s[2] = (char)(0x80 | (c >> 6 & 63));
            s[3] = (char)(0x80 | (c & 63));
            n = 4;
        }
        bool good = (c < 0xD800 || c > 0xDFFF) && c < 0x110000;
        assert_int_equal(cr_utf8_valid(s, n), good ? n : 0);
        assert_int_equal(cr_utf8_valid(s, n - 1), 0); /* cut short */
    }
}

static void test_repair_follows_the_standard(void **state)
{
    (void)state;
    check_repair("", "");
    check_repair("plain ascii, longer than eight", "plain ascii, longer than eight");
    check_repair("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                 "A",
                 R R R R R R R R "A"); /* table 3-8: overlong forms */
    check_repair("\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                 "A",
                 R R R R R R R R "A"); /* table 3-9: surrogates */
    check_repair("\xF4\x91\x92\x93\xFF"
                 "A\x80\xBF"
                 "B",
                 R R R R R "A" R R "B"); /* table 3-10: other */
    check_repair("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                 "A",
                 R R R R "A"); /* table 3-11: truncated sequences */
    check_repair("12345678\xFF"
                 "12345678",
                 "12345678" R "12345678");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point),
        cmocka_unit_test(test_repair_follows_the_standard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
