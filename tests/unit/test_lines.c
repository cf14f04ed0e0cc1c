/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of any bytes, whole or in pieces, with their numbers. */
#include "lines.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct cr_error err;

/* Every line of `data` as "[len]", NULs and all. */
static void check(const char *data, size_t n, const size_t *lengths, size_t n_lines)
{
    char path[] = "/tmp/crayon-lines-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
    struct cr_lines l;
    const char *line;
    size_t len, at = 0;
    assert_int_equal(cr_lines_open(&l, path, &err), CR_OK);
    for (size_t i = 0; i < n_lines; i++) {
        assert_int_equal(cr_lines_next(&l, &line, &len, &err), CR_OK);
        assert_non_null(line);
        assert_int_equal(len, lengths[i]);
        assert_memory_equal(line, data + at, len);
        assert_int_equal(l.line_no, i + 1);
        at += len + 1;
    }
    assert_int_equal(cr_lines_next(&l, &line, &len, &err), CR_OK);
    assert_null(line);
    cr_lines_close(&l);
    unlink(path);
}

static void test_lines(void **state)
{
    (void)state;
    check("", 0, NULL, 0);
    check("\n", 1, (size_t[]){0}, 1);
    check("a\n\nbc", 5, (size_t[]){1, 0, 2}, 3);
    check("a\0b\r\n\xff\n", 7, (size_t[]){4, 1}, 2);
}

static void test_lines_longer_than_a_read(void **state)
{
    (void)state;
    enum { N = 300000 };
    char *data = test_malloc(N);
    memset(data, 'x', N);
    data[65535] = data[65536] = data[200000] = '\n'; /* around the border of a read */
    check(data, N, (size_t[]){65535, 0, 200000 - 65537, N - 200001}, 4);
    test_free(data);
}

static void test_errors(void **state)
{
    (void)state;
    struct cr_lines l;
    assert_int_equal(cr_lines_open(&l, "/tmp", &err), CR_INVALID);
    cr_lines_close(&l);
    assert_int_equal(cr_lines_open(&l, "/tmp/no/such/file", &err), CR_NOT_FOUND);
    cr_lines_close(&l);
    l = (struct cr_lines){.name = "f", .line_no = 12};
    assert_int_equal(cr_lines_bad(&l, CR_FORMAT, &err, "bad %d", 1), CR_FORMAT);
    assert_string_equal(err.msg, "f: line 12: bad 1");
    assert_int_equal(err.pos, 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_lines_longer_than_a_read),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
