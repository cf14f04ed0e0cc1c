/* SPDX-License-Identifier: Apache-2.0 */
/* Verbs inside this process: with every allocation failing in turn they end with an error, not a
 * crash, and give everything back. */
#include "base/mem.h"
#include "verbs.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "messages.h"

#define MODEL CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf"
static char dir[] = "/tmp/crayon-verbs-XXXXXX";

/* Runs a line of words; the exit code. */
static int run(const char *line)
{
    static char store[1024];
    const char *argv[32] = {"crayon"};
    int argc = 1, code;
    struct cr_args a;
    struct cr_error err;
    snprintf(store, sizeof store, "%s", line);
    for (char *p = store; *p && argc < 32;) {
        argv[argc++] = p;
        p += strcspn(p, " ");
        if (*p)
            *p++ = '\0';
    }
    int real[2] = {dup(STDOUT_FILENO), dup(STDERR_FILENO)}, null = open("/dev/null", O_WRONLY);
    fflush(stdout);
    dup2(null, STDOUT_FILENO); /* what verbs print is not looked at here */
    dup2(null, STDERR_FILENO);
    if (cr_args_parse(&a, argc, argv, NULL, &err))
        code = cr_status_exit_code(err.status);
    else
        code = a.verb->run(&a);
    cr_args_deinit(&a);
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        dup2(real[i], STDOUT_FILENO + i);
        close(real[i]);
    }
    close(null);
    return code;
}

/* step: look at every step-th allocation only, where there are many. */
static void torture(const char *line, uint64_t step, int want)
{
    size_t before = cr_mem_now();
    uint64_t count = cr_mem_count();
    int code = run(line);
    if (code != want)
        fail_msg("%s: exit code %d, want %d", line, code, want);
    assert_int_equal(cr_mem_now(), before);
    count = cr_mem_count() - count;
    for (uint64_t n = 1; n <= count; n += step) {
        cr_mem_fail_at(n, true);
        code = run(line);
        cr_mem_fail_at(0, false);
        if (code == 0 && n + 2 < count && want == 0 && step == 1)
            fail_msg("%s: succeeds although allocation %llu fails", line, (unsigned long long)n);
        if (cr_mem_now() != before)
            fail_msg("%s: allocation %llu fails, %zu bytes are lost", line, (unsigned long long)n,
                     cr_mem_now() - before);
    }
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir) || chdir(dir))
        return -1;
    cr_msg_set_quiet(true);
    if (cr_file_write("lines.txt", "one\ntwo\n", 8, NULL) ||
        cr_file_write("score.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n", 32, NULL))
        return -1;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink("lines.txt");
    unlink("score.jsonl");
    unlink("out.f32");
    return chdir("/") || rmdir(dir);
}

static void test_version(void **state)
{
    (void)state;
    torture("version --json", 1, 0);
    torture("completion bash", 1, 0);
    torture("man", 1, 0);
}

static void test_tokenize(void **state)
{
    (void)state;
    torture("tokenize -m " MODEL " --lines lines.txt", 1, 0);
    torture("tokenize -m " MODEL " --lines nothing.txt", 1, 4);
}

static void test_score(void **state)
{
    (void)state;
    torture("score -m " MODEL " -t 1 score.jsonl", 3, 0);
    torture("score -m " MODEL " -t 1 lines.txt", 3, 3);
}

static void test_logits(void **state)
{
    (void)state;
    torture("logits -m " MODEL " -t 1 --tokens 1,2 -o out.f32", 3, 0);
}

static void test_run(void **state)
{
    (void)state;
    torture("run -m " MODEL " -t 1 -p hello -n 3 --stop x --json", 3, 0);
}

static void test_info(void **state)
{
    (void)state;
    torture("info " MODEL " --list-tensors", 5, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version), cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_score),   cmocka_unit_test(test_logits),
        cmocka_unit_test(test_run),     cmocka_unit_test(test_info),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
