/* SPDX-License-Identifier: Apache-2.0 */
/* What may reach a terminal, and when there are colours. */
#include "messages.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void clean(const char *in, size_t n, const char *want)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 16);
    cr_sanitise(&b, in, n);
    assert_string_equal(b.data ? b.data : "", want);
    cr_buf_deinit(&b);
}

/* A literal and its length, NULs inside counted. */
#define BYTES(s) s, sizeof(s) - 1
#define BAD "\xef\xbf\xbd"

static void test_control_characters_are_replaced(void **state)
{
    (void)state;
    clean(BYTES("plain \xc3\xa9 \xf0\x9f\x98\x80\n\t."), "plain \xc3\xa9 \xf0\x9f\x98\x80\n\t.");
    clean(BYTES("\x1b[31mred\x1b]0;title\x07"), BAD "[31mred" BAD "]0;title" BAD);
    clean(BYTES("a\rb\x7f\0c"), "a" BAD "b" BAD BAD "c");
    clean(BYTES("\xc2\x9b"
                "2J\xc2\xa0."),
          BAD BAD "2J\xc2\xa0."); /* the C1 form of ESC [ */
    clean(BYTES(""), "");
}

static void test_broken_utf8_is_replaced(void **state)
{
    (void)state;
    clean(BYTES("\xff\xc0\xaf"), BAD BAD BAD);
    clean(BYTES("\xe2\x82"), BAD BAD);                 /* cut short */
    clean(BYTES("\xed\xa0\x80"), BAD BAD BAD);         /* surrogate */
    clean(BYTES("\xf4\x90\x80\x80"), BAD BAD BAD BAD); /* past U+10FFFF */
    clean(BYTES("\xe0\x80\xaf"), BAD BAD BAD);         /* overlong */
}

static void test_colours(void **state)
{
    (void)state;
    assert_true(cr_color_wanted(true, NULL, NULL, "xterm"));
    assert_true(cr_color_wanted(true, "", "", "xterm"));
    assert_false(cr_color_wanted(false, NULL, NULL, "xterm"));
    assert_false(cr_color_wanted(true, "1", NULL, "xterm"));
    assert_false(cr_color_wanted(true, NULL, NULL, "dumb"));
    assert_false(cr_color_wanted(true, NULL, NULL, NULL));
    assert_true(cr_color_wanted(false, NULL, "1", NULL));
    assert_false(cr_color_wanted(false, NULL, "0", "xterm"));
    assert_false(cr_color_wanted(true, "1", "1", "xterm")); /* the refusal wins */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_characters_are_replaced),
        cmocka_unit_test(test_broken_utf8_is_replaced),
        cmocka_unit_test(test_colours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
