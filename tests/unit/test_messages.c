/* SPDX-License-Identifier: Apache-2.0 */
/* What may reach a terminal, and when there are colours. */
#include "messages.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* 41: what a model writes cannot drive the terminal; into a file it goes as it is. */
static void test_attack_41_answers_on_a_terminal(void **state)
{
    (void)state;
    static const char evil[] = "a\x1b[2J\x1b]0;t\x07\xc2\x9b"
                               "1mb";
    for (int tty = 0; tty < 2; tty++) {
        int fds[2] = {-1, -1};
        if (tty) {
            fds[0] = posix_openpt(O_RDWR | O_NOCTTY);
            assert_true(fds[0] >= 0 && grantpt(fds[0]) == 0 && unlockpt(fds[0]) == 0);
            fds[1] = open(ptsname(fds[0]), O_RDWR | O_NOCTTY);
        } else {
            assert_int_equal(pipe(fds), 0);
        }
        assert_true(fds[1] >= 0);
        pid_t pid = fork();
        if (pid == 0) {
            dup2(fds[1], STDOUT_FILENO);
            cr_msg_init();
            cr_out_text(evil, sizeof evil - 1);
            _exit(cr_out_failed());
        }
        char got[64] = "";
        ssize_t n = read(fds[0], got, sizeof got - 1);
        int st;
        assert_int_equal(waitpid(pid, &st, 0), pid);
        assert_true(WIFEXITED(st) && WEXITSTATUS(st) == 0 && n > 4);
        assert_int_equal(strchr(got, 0x1b) != NULL, !tty);
        assert_int_equal(strstr(got, "\xc2\x9b") != NULL, !tty);
        close(fds[0]);
        close(fds[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_characters_are_replaced),
        cmocka_unit_test(test_broken_utf8_is_replaced),
        cmocka_unit_test(test_colours),
        cmocka_unit_test(test_attack_41_answers_on_a_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
