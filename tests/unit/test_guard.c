/* SPDX-License-Identifier: Apache-2.0 */
/* guard.c: files that shrink while they are mapped (ATTACKS 9). */
#include "unit/tiny_gguf.h"

#include "base/bytes.h"
#include "base/guard.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>

/* Each test installs for itself: cmocka sets handlers of its own around it. */
static void new_file(char path[32], size_t size)
{
    memcpy(path, "/tmp/crayon-test-XXXXXX", 24);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    char page[4096];
    memset(page, 7, sizeof page);
    for (size_t i = 0; i < size; i += sizeof page)
        assert_int_equal(write(fd, page, sizeof page), sizeof page);
    close(fd);
}

static void test_09_lost_pages_read_as_zeros(void **state)
{
    (void)state;
    char path[32], other_path[32];
    cr_guard_install();
    struct cr_map m, other;
    struct cr_error err;
    new_file(path, 1 << 20);
    new_file(other_path, 1 << 20);
    assert_int_equal(cr_map_open(&m, path, &err), CR_OK);
    assert_int_equal(cr_map_open(&other, other_path, &err), CR_OK);
    assert_int_equal(truncate(path, 1 << 18), 0);
    const volatile uint8_t *p = m.data;
    assert_int_equal(p[(1 << 18) - 1], 7);
    assert_false(cr_guard_damaged(m.data));
    assert_int_equal(p[(1 << 20) - 1], 0);
    assert_int_equal(p[1 << 19], 0);
    assert_int_equal(p[1 << 18], 0);
    assert_int_equal(p[0], 7);
    assert_true(cr_guard_damaged(m.data));
    assert_false(cr_guard_damaged(other.data));
    assert_false(cr_guard_damaged(NULL));
    cr_map_close(&m);
    assert_int_equal(other.data[1 << 19], 7);
    cr_map_close(&other);
    unlink(path);
    unlink(other_path);
}

static void test_09_a_model_that_shrinks(void **state)
{
    (void)state;
    char path[] = "/tmp/crayon-test-XXXXXX";
    cr_guard_install();
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct tiny t = tiny_default();
    t.n_ff = 1024;
    tiny_write(&t, path);
    cr_model *m;
    cr_session *s;
    struct cr_error err;
    assert_int_equal(cr_model_open(&m, path, NULL, &err), CR_OK);
    unlink(path); /* removing is harmless */
    assert_int_equal(cr_session_new(&s, m, 0, &err), CR_OK);
    assert_int_equal(cr_session_step(s, 1, &err), CR_OK);
    cr_session_free(s);
    cr_model_close(m);

    tiny_write(&t, path);
    assert_int_equal(cr_model_open(&m, path, NULL, &err), CR_OK);
    assert_int_equal(cr_session_new(&s, m, 0, &err), CR_OK);
    assert_int_equal(truncate(path, 1 << 17), 0);
    for (int i = 0; i < 2; i++) { /* and for good */
        assert_int_equal(cr_session_step(s, 1, &err), CR_IO);
        assert_non_null(strstr(err.msg, "cut short while in use"));
        assert_null(cr_session_logits(s));
        assert_int_equal(cr_session_length(s), 0);
    }
    cr_session_free(s);
    cr_model_close(m);
    unlink(path);
}

/* A SIGBUS that is not ours ends the process as before. */
static void test_09_other_bus_errors_are_not_hidden(void **state)
{
    (void)state;
    char path[32];
    new_file(path, 1 << 16);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        cr_guard_install();
        int fd = open(path, O_RDONLY);
        volatile char *p = mmap(NULL, 1 << 16, PROT_READ, MAP_PRIVATE, fd, 0);
        if (truncate(path, 0) == 0)
            _exit(p[4096]);
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    unlink(path);
}

static void test_more_mappings_than_slots(void **state)
{
    (void)state;
    char path[32];
    struct cr_map m[80];
    struct cr_error err;
    new_file(path, 4096);
    for (int i = 0; i < 80; i++)
        assert_int_equal(cr_map_open(&m[i], path, &err), CR_OK);
    for (int i = 0; i < 80; i++)
        cr_map_close(&m[i]);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_09_lost_pages_read_as_zeros),
        cmocka_unit_test(test_09_a_model_that_shrinks),
        cmocka_unit_test(test_09_other_bus_errors_are_not_hidden),
        cmocka_unit_test(test_more_mappings_than_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
