/* SPDX-License-Identifier: Apache-2.0 */
/* base/lazy.c: libraries that are there, that are not, that lack a function; many threads at once;
 * that the lists of the three libraries name what those libraries export. */
#include "base/lazy.h"
#ifdef CRAYON_ROUTE
#include "route/curl_calls.h"
#include "route/sqlite_calls.h"
#endif
#ifdef CRAYON_SERVE
#include "serve/http_calls.h"
#endif

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define LIBM "libm.so.6"

static struct {
    double (*floor)(double);
    void (*nothing)(void);
} table;
static int n_finds;

static void find_floor(struct cr_lazy *lib)
{
    n_finds++;
    cr_lazy_find(lib, "floor", &table.floor);
}

static void find_nothing(struct cr_lazy *lib)
{
    cr_lazy_find(lib, "cr_no_such_function", &table.nothing);
    cr_lazy_find(lib, "floor", &table.floor);
}

static void *open_often(void *arg)
{
    for (int i = 0; i < 100; i++)
        if (cr_lazy_open(arg, NULL) || table.floor(2.5) != 2)
            return arg;
    return NULL;
}

static void test_threads_open_it_once(void **state)
{
    (void)state;
    struct cr_lazy lib = {.file = LIBM, .find = find_floor};
    pthread_t threads[8];
    void *failed;
    n_finds = 0;
    for (int i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_often, &lib), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(n_finds, 1);
}

static void test_a_missing_library_is_named(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_lazy lib = {.file = "libcrayon-nowhere.so.7", .find = find_floor};
    n_finds = 0;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cr_lazy_open(&lib, &err), CR_NOT_FOUND);
        assert_non_null(strstr(err.msg, "libcrayon-nowhere.so.7"));
    }
    assert_int_equal(n_finds, 0);
    lib.file = LIBM; /* installed meanwhile */
    assert_int_equal(cr_lazy_open(&lib, &err), CR_OK);
}

static void test_a_missing_function_is_named(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_lazy lib = {.file = LIBM, .find = find_nothing};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cr_lazy_open(&lib, &err), CR_NOT_FOUND);
        assert_non_null(strstr(err.msg, "cr_no_such_function"));
    }
    assert_null(table.nothing);
}

#if defined(CRAYON_LAZY) && defined(CRAYON_ROUTE) && defined(CRAYON_SERVE)
#define SAME(name)                                                                                 \
    do {                                                                                           \
        void *want = dlsym(handle, #name), *got;                                                   \
        memcpy(&got, &name, sizeof got);                                                           \
        assert_non_null(want);                                                                     \
        assert_ptr_equal(got, want);                                                               \
    } while (0)

static void test_the_lists_are_right(void **state)
{
    (void)state;
    assert_int_equal(cr_curl_load(NULL), CR_OK);
    assert_int_equal(cr_sqlite_load(NULL), CR_OK);
    assert_int_equal(cr_http_load(NULL), CR_OK);
    void *handle = dlopen(CR_LIBCURL, RTLD_NOW | RTLD_NOLOAD);
    CR_CURL_CALLS(SAME);
    handle = dlopen(CR_LIBSQLITE, RTLD_NOW | RTLD_NOLOAD);
    CR_SQLITE_CALLS(SAME);
    handle = dlopen(CR_LIBMICROHTTPD, RTLD_NOW | RTLD_NOLOAD);
    CR_HTTP_CALLS(SAME);
    assert_int_equal(sqlite3_libversion()[0], '3');
}
#else
static void test_the_lists_are_right(void **state)
{
    (void)state;
    skip();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_open_it_once),
        cmocka_unit_test(test_a_missing_library_is_named),
        cmocka_unit_test(test_a_missing_function_is_named),
        cmocka_unit_test(test_the_lists_are_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
