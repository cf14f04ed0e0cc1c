/* SPDX-License-Identifier: Apache-2.0 */
/* The arena: pieces keep their content, are aligned, and all memory comes back. */
#include "base/arena.h"
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_pieces(void **state)
{
    (void)state;
    size_t before = cr_mem_now();
    struct cr_arena *a = cr_arena_new();
    assert_non_null(a);
    enum { N = 300 };
    unsigned char *p[N];
    for (size_t i = 0; i < N; i++) {
        size_t n = i % 7 == 3 ? 70000 + i : i % 5 == 1 ? 20000 : i;
        p[i] = cr_arena_alloc(a, n, 1);
        assert_non_null(p[i]);
        assert_int_equal((uintptr_t)p[i] % 16, 0);
        memset(p[i], (int)(i & 255), n);
    }
    for (size_t i = 0; i < N; i++) {
        size_t n = i % 7 == 3 ? 70000 + i : i % 5 == 1 ? 20000 : i;
        for (size_t j = 0; j < n; j++)
            assert_int_equal(p[i][j], i & 255);
    }
    assert_string_equal(cr_arena_strndup(a, "hello", 4), "hell");
    assert_null(cr_arena_alloc(a, SIZE_MAX / 2, 4));
    assert_null(cr_arena_strndup(a, "", SIZE_MAX));
    cr_arena_free(a);
    cr_arena_free(NULL);
    assert_int_equal(cr_mem_now(), before);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct cr_arena *a = cr_arena_new();
    cr_mem_fail_at(1, false);
    assert_null(cr_arena_alloc(a, 10, 10));
    assert_non_null(cr_arena_alloc(a, 10, 10));
    cr_mem_fail_at(0, false);
    cr_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
