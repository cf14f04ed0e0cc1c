/* SPDX-License-Identifier: Apache-2.0 */
/* Task files by name: stems, siblings, folders. */
#include "base/bytes.h"
#include "base/mem.h"
#include "tasks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/crayon-tasks-XXXXXX";
static const char *const files[] = {"b.test.jsonl.xz", "b.train.jsonl.xz", "a.test.jsonl",
                                    "a.dev.jsonl",     "plain.csv",        ".hidden.test.jsonl",
                                    "notes.md"};
enum { N_FILES = sizeof files / sizeof *files };

static char *in_dir(const char *name)
{
    return cr_asprintf("%s/%s", dir, name);
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    for (size_t i = 0; i < N_FILES; i++) {
        char *path = in_dir(files[i]);
        if (cr_file_write(path, "", 0, NULL))
            return -1;
        cr_free(path);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FILES; i++) {
        char *path = in_dir(files[i]);
        unlink(path);
        cr_free(path);
    }
    return rmdir(dir);
}

static void test_stems(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"data/arc_easy.test.jsonl.xz", "arc_easy"},
        {"x.csv", "x"},
        {"a.b.train.jsonl", "a.b"},
        {"test.jsonl", "test"},
        {"/p/.test.jsonl", ".test"},
        {"lora.gguf", "lora.gguf"},
        {"", ""},
        {"dir.test.jsonl/x.txt", "x"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *stem = cr_task_stem(cases[i][0]);
        assert_string_equal(stem, cases[i][1]);
        cr_free(stem);
    }
}

static void test_siblings(void **state)
{
    (void)state;
    char *path = in_dir("b.test.jsonl.xz"), *want = in_dir("b.train.jsonl.xz");
    char *found = cr_task_sibling(path, "train");
    assert_string_equal(found, want);
    cr_free(found);
    assert_null(cr_task_sibling(path, "dev"));
    assert_null(cr_task_sibling("plain.csv", "train"));
    cr_free(path);
    cr_free(want);
}

/* The paths that `--tasks DIR` gives for a split, as their names joined by blanks. */
static enum cr_status list(const char *where, const char *split, char *out, size_t size)
{
    struct cr_args a;
    struct cr_paths p;
    struct cr_error err;
    const char *argv[] = {"crayon", "eval", "--tasks", where};
    assert_int_equal(cr_args_parse(&a, 4, argv, NULL, &err), CR_OK);
    enum cr_status st = cr_task_paths(&p, &a, split, &err);
    out[0] = '\0';
    for (size_t i = 0; i < p.n; i++)
        snprintf(out + strlen(out), size - strlen(out), "%s%s", i ? " " : "",
                 strrchr(p.v[i], '/') + 1);
    cr_paths_deinit(&p);
    cr_args_deinit(&a);
    return st;
}

static void test_folders(void **state)
{
    (void)state;
    char names[512];
    assert_int_equal(list(dir, "test", names, sizeof names), CR_OK);
    assert_string_equal(names, "a.test.jsonl b.test.jsonl.xz");
    assert_int_equal(list(dir, "train", names, sizeof names), CR_OK);
    assert_string_equal(names, "b.train.jsonl.xz");
    assert_int_equal(list(dir, "examples", names, sizeof names), CR_OK);
    assert_string_equal(names, "plain.csv"); /* none of that split: files without one */
    assert_int_equal(list("/tmp/no-such-folder", "test", names, sizeof names), CR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stems),
        cmocka_unit_test(test_siblings),
        cmocka_unit_test(test_folders),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
