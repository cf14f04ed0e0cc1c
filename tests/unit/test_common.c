/* SPDX-License-Identifier: Apache-2.0 */
/* Finding models and pools by name, FILE:SCALE, sizes as text, the default sampling of `run`. */
#include "base/mem.h"
#include "common.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SMOLLM2 "smollm2-135m-instruct-q4_1"

static struct cr_error err;
static char dir[] = "/tmp/crayon-common-XXXXXX";

static void touch(const char *name)
{
    char *path = cr_asprintf("%s/%s", dir, name);
    assert_int_equal(cr_file_write(path, "x", 1, &err), CR_OK);
    cr_free(path);
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir) || chdir(dir))
        return -1;
    return mkdir("crayon", 0700) || mkdir("crayon/models", 0700) || setenv("XDG_DATA_HOME", dir, 1);
}

static int tear_down(void **state)
{
    (void)state;
    static const char *const names[] = {
        "crayon/models/m.gguf", "crayon/models", "crayon", "here.gguf",
        "a-q8_0-pool.gguf",     "b-pool.gguf",   "x:0.5",  SMOLLM2 "-pool.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        remove(names[i]);
    return chdir("/") || rmdir(dir);
}

static void test_models_are_found(void **state)
{
    (void)state;
    char *path;
    touch("crayon/models/m.gguf");
    touch("here.gguf");
    assert_int_equal(cr_model_locate("m", &path, &err), CR_OK);
    assert_true(!strncmp(path, dir, strlen(dir)) && strstr(path, "/crayon/models/m.gguf"));
    cr_free(path);
    assert_int_equal(cr_model_locate("here.gguf", &path, &err), CR_OK);
    assert_string_equal(path, "here.gguf");
    cr_free(path);
    assert_int_equal(cr_model_locate("./m", &path, &err), CR_NOT_FOUND);
    assert_int_equal(cr_model_locate("other", &path, &err), CR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "crayon/models"));
    assert_null(path);
}

static void test_pools_beside_models(void **state)
{
    (void)state;
    touch("a-q8_0-pool.gguf");
    touch("b-pool.gguf");
    char *path = cr_pool_beside("a-q8_0.gguf");
    assert_string_equal(path, "a-q8_0-pool.gguf");
    cr_free(path);
    path = cr_pool_beside("./b-q8_0.gguf");
    assert_string_equal(path, "./b-pool.gguf");
    cr_free(path);
    assert_null(cr_pool_beside("b-c-q8_0.gguf"));
    assert_null(cr_pool_beside("c.gguf"));
    assert_null(cr_pool_beside("x-y/c.gguf")); /* the folder's name is not the model's */
    assert_null(cr_pool_beside(""));
    /* a pool comes with the program, for the model's whole name (e2e_pool finds it); one beside the
     * model goes first */
    assert_null(cr_pool_beside(SMOLLM2 "-mine.gguf"));
    assert_null(cr_pool_beside("my-" SMOLLM2 ".gguf"));
    touch(SMOLLM2 "-pool.gguf");
    path = cr_pool_beside(SMOLLM2 ".gguf");
    assert_string_equal(path, SMOLLM2 "-pool.gguf");
    cr_free(path);
}

static void test_scales(void **state)
{
    (void)state;
    char *path;
    float scale;
    assert_int_equal(cr_split_scale("f.gguf:-0.5", &path, &scale, &err), CR_OK);
    assert_string_equal(path, "f.gguf");
    assert_true(scale == -0.5F);
    cr_free(path);
    assert_int_equal(cr_split_scale("a:b/f:2", &path, &scale, &err), CR_OK);
    assert_string_equal(path, "a:b/f");
    cr_free(path);
    touch("x:0.5"); /* exists under its whole name */
    assert_int_equal(cr_split_scale("x:0.5", &path, &scale, &err), CR_OK);
    assert_string_equal(path, "x:0.5");
    assert_true(scale == 1);
    cr_free(path);
    static const char *const bad[] = {"f:", "f:x", "f:nan", "f:1e9", "f: 1", "f:1 "};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cr_split_scale(bad[i], &path, &scale, &err), CR_INVALID);
}

static void test_sizes_as_text(void **state)
{
    (void)state;
    char t[16];
    assert_string_equal(cr_bytes_text(0, t), "0 B");
    assert_string_equal(cr_bytes_text(1023, t), "1023 B");
    assert_string_equal(cr_bytes_text(1536, t), "1.5 KiB");
    assert_string_equal(cr_bytes_text(UINT64_MAX, t), "16777216.0 TiB");
}

/* The table's defaults are the library's. */
static void test_default_sampling(void **state)
{
    (void)state;
    struct cr_args a;
    static const char *const argv[] = {"crayon", "run"};
    struct cr_sampling d = cr_sampling_default();
    assert_int_equal(cr_args_parse(&a, 2, argv, NULL, &err), CR_OK);
    assert_true((float)cr_arg_real(&a, CR_OPT_TEMP) == d.temperature);
    assert_int_equal(cr_arg_int(&a, CR_OPT_TOP_K), d.top_k);
    assert_true((float)cr_arg_real(&a, CR_OPT_TOP_P) == d.top_p);
    assert_true((float)cr_arg_real(&a, CR_OPT_MIN_P) == d.min_p);
    assert_true((float)cr_arg_real(&a, CR_OPT_REPEAT_PENALTY) == d.repeat_penalty);
    assert_int_equal(cr_arg_int(&a, CR_OPT_REPEAT_LAST_N), d.repeat_last_n);
    assert_true(cr_arg_seed(&a, CR_OPT_SEED) == d.seed);
    cr_args_deinit(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models_are_found), cmocka_unit_test(test_pools_beside_models),
        cmocka_unit_test(test_scales),           cmocka_unit_test(test_sizes_as_text),
        cmocka_unit_test(test_default_sampling),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
