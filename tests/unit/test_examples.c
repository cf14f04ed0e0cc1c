/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of examples: every form, every refusal by line number, the limits, xz, the prompt. */
#include "adapt/examples.h"
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef CRAYON_LZMA
#include <lzma.h>
#endif

static struct cr_examples e;
static struct cr_error err;

static enum cr_status parse(const char *text, const char *name)
{
    memset(&err, 0, sizeof err);
    return cr_examples_parse(&e, text, strlen(text), name, CR_EXAMPLES_AUTO, &err);
}

static void refused(const char *text, const char *name, enum cr_status want, uint64_t line,
                    const char *part)
{
    assert_int_equal(parse(text, name), want);
    if (err.pos != line || !strstr(err.msg, part))
        fail_msg("want line %d and \"%s\", found line %d: %s", (int)line, part, (int)err.pos,
                 err.msg);
    assert_null(e.v);
    assert_null(e.arena);
}

static void test_task_lines(void **state)
{
    (void)state;
    assert_int_equal(
        parse("\xef\xbb\xbf{\"task\":\"t\",\"question\":\"q\",\"context\":\"c\",\"choices\":"
              "[\"a\",\"b\"],\"answer\":1,\"group\":\"g\",\"extra\":{\"x\":[1]}}\r\n"
              "\n"
              "{\"question\":\"capital?\",\"answer\":\"Rome\",\"aliases\":[\"Roma\"],\"split\":"
              "\"test\"}\n"
              "{\"question\":\"x\",\"choices\":[\"a\",\"b\"],\"answer\":\"b\"}\n"
              "{\"question\":\"x\",\"context\":\"\",\"choices\":null,\"answer\":null}",
              "f.jsonl"),
        CR_OK);
    assert_int_equal(e.n, 4);
    assert_string_equal(e.v[0].task, "t");
    assert_string_equal(e.v[0].context, "c");
    assert_int_equal(e.v[0].answer_index, 1);
    assert_string_equal(e.v[0].answer, "b");
    assert_string_equal(e.v[0].group, "g");
    assert_null(e.v[0].split);
    assert_string_equal(e.v[1].split, "test");
    assert_int_equal(e.v[1].line, 3);
    assert_string_equal(e.v[1].task, "");
    assert_int_equal(e.v[1].answer_index, -1);
    assert_string_equal(e.v[1].aliases[0], "Roma");
    assert_int_equal(e.v[2].answer_index, 1);
    assert_null(e.v[3].context);
    assert_null(e.v[3].answer);
    char *p = cr_example_prompt(&e.v[0]), *q = cr_example_prompt(&e.v[1]);
    assert_string_equal(p, "Context: c\nQuestion: q\nAnswer:");
    assert_string_equal(q, "Question: capital?\nAnswer:");
    cr_free(p);
    cr_free(q);
    cr_examples_deinit(&e);
}

static void test_other_lines(void **state)
{
    (void)state;
    assert_int_equal(
        parse("{\"messages\":[{\"role\":\"system\",\"content\":\"be kind\"},"
              "{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
              "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}\n"
              "{\"messages\":[{\"role\":\"user\",\"content\":\"only a question\"}]}\n"
              "{\"prompt\":\"p\",\"completion\":\" done \\n\"}\n"
              "{\"text\":\"some text\"}\n",
              "noname"),
        CR_OK);
    assert_int_equal(e.n, 4);
    assert_string_equal(e.v[0].question, "c");
    assert_string_equal(e.v[0].answer, "d");
    assert_string_equal(e.v[0].context, "be kind\nuser: a\nassistant: b");
    assert_string_equal(e.v[1].question, "only a question");
    assert_null(e.v[1].answer);
    assert_string_equal(e.v[2].answer, "done");
    assert_string_equal(e.v[3].question, "some text");
    cr_examples_deinit(&e);
}

static void test_bad_lines_are_named(void **state)
{
    (void)state;
    const char *j = "f.jsonl", *ok = "{\"question\":\"q\"}\n";
    char text[600];
#define BAD(json, status, part)                                                                    \
    do {                                                                                           \
        snprintf(text, sizeof text, "%s\n%s", ok, json);                                           \
        refused(text, j, status, 3, part);                                                         \
    } while (0)
    BAD("{\"question\":\"q\"", CR_FORMAT, "not valid JSON");
    BAD("{\"question\":\"q\",\"question\":\"q\"}", CR_FORMAT, "duplicate");
    BAD("{\"question\":\"q\\u0000\"}", CR_FORMAT, "u0000");
    BAD("{\"question\":\"\xff\"}", CR_FORMAT, "0xFF");
    BAD("[1]", CR_FORMAT, "found array");
    BAD("{\"q\":1}", CR_FORMAT, "want \"question\"");
    BAD("{\"question\":\" \"}", CR_FORMAT, "empty");
    BAD("{\"question\":5}", CR_FORMAT, "found integer");
    BAD("{\"question\":\"q\",\"text\":\"t\"}", CR_FORMAT, "both");
    BAD("{\"question\":\"q\",\"choices\":[\"a\"]}", CR_FORMAT, "at least 2");
    BAD("{\"question\":\"q\",\"choices\":[\"a\",\"\"]}", CR_FORMAT, "[1]");
    BAD("{\"question\":\"q\",\"choices\":\"ab\"}", CR_FORMAT, "array");
    BAD("{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":2}", CR_FORMAT, "want 0 to 1");
    BAD("{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":-1}", CR_FORMAT, "is -1");
    BAD("{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":1.0}", CR_FORMAT, "real");
    BAD("{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":\"c\"}", CR_FORMAT, "\"c\"");
    BAD("{\"question\":\"q\",\"answer\":4}", CR_FORMAT, "no \"choices\"");
    BAD("{\"question\":\"q\",\"answer\":99999999999999999999}", CR_FORMAT, "integer");
    BAD("{\"question\":\"q\",\"answer\":\"\"}", CR_FORMAT, "empty");
    BAD("{\"question\":\"q\",\"answer\":true}", CR_FORMAT, "true");
    BAD("{\"messages\":[]}", CR_LIMIT, "0 entries");
    BAD("{\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]}", CR_FORMAT, "wizard");
    BAD("{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", CR_FORMAT, "user");
    BAD("{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", CR_FORMAT, "array");
    BAD("{\"messages\":[7]}", CR_FORMAT, "[0]");
#undef BAD
    refused("\n\n", j, CR_FORMAT, 0, "no examples");
    refused("", j, CR_FORMAT, 0, "no examples");
}

static void test_deep_json_is_refused(void **state)
{
    (void)state;
    size_t n = 100000;
    char *deep = malloc(n + 1);
    assert_non_null(deep);
    memset(deep, '[', n);
    deep[n] = '\0';
    assert_int_equal(parse(deep, "f.jsonl"), CR_FORMAT);
    free(deep);
}

static void test_csv(void **state)
{
    (void)state;
    assert_int_equal(parse("id,Question ,Answer,choices,task\r\n"
                           "1,\"Say \"\"hi\"\", twice\",yes,yes | no,t\r\n"
                           "\r\n"
                           "2,\"two\nlines\",no,yes | no,\n"
                           "3,plain,,,u",
                           "f.csv"),
                     CR_OK);
    assert_int_equal(e.n, 3);
    assert_string_equal(e.v[0].question, "Say \"hi\", twice");
    assert_int_equal(e.v[0].answer_index, 0);
    assert_int_equal(e.v[0].n_choices, 2);
    assert_string_equal(e.v[0].choices[1], "no");
    assert_string_equal(e.v[1].question, "two\nlines");
    assert_int_equal(e.v[1].line, 4);
    assert_int_equal(e.v[1].answer_index, 1);
    assert_string_equal(e.v[2].question, "plain");
    assert_int_equal(e.v[2].line, 6);
    assert_null(e.v[2].answer);
    assert_string_equal(e.v[2].task, "u");
    cr_examples_deinit(&e);
    assert_int_equal(parse("text;label\na;b\n", "f.csv"), CR_OK);
    assert_string_equal(e.v[0].answer, "b");
    cr_examples_deinit(&e);
}

static void test_bad_csv_is_named(void **state)
{
    (void)state;
    refused("a,b\n1,2\n", "f.csv", CR_FORMAT, 1, "column question");
    refused("question,text\n1,2\n", "f.csv", CR_FORMAT, 1, "both");
    refused("question,answer\n1,2\n3\n", "f.csv", CR_FORMAT, 3, "1 fields, the header has 2");
    refused("question,answer\n\"a\nb\",1\n\"open,2\n", "f.csv", CR_FORMAT, 4, "not closed");
    refused("question,answer\n\"a\"b,1\n", "f.csv", CR_FORMAT, 2, "after the closing");
    refused("question,answer\na\"b,1\n", "f.csv", CR_FORMAT, 2, "quote inside");
    refused("question,choices\na,b\n", "f.csv", CR_FORMAT, 2, "1 choices");
    refused("question,choices,answer\na,b | c,d\n", "f.csv", CR_FORMAT, 2, "\"d\"");
    refused("question\n\xe9t\xe9\n", "f.csv", CR_FORMAT, 2, "0xE9");
    refused("question,answer\n,x\n", "f.csv", CR_FORMAT, 2, "empty");
    refused("question\n", "f.csv", CR_FORMAT, 0, "no examples");
}

static void test_plain_lines(void **state)
{
    (void)state;
    assert_int_equal(parse("  first \r\n\nthird", "f.txt"), CR_OK);
    assert_int_equal(e.n, 2);
    assert_string_equal(e.v[0].question, "first");
    assert_int_equal(e.v[1].line, 3);
    assert_null(e.v[1].answer);
    cr_examples_deinit(&e);
    refused("ok\n\xc3\x28\n", "f.txt", CR_FORMAT, 2, "not UTF-8");
    assert_int_equal(cr_examples_parse(&e, "a\0b", 3, "f.txt", CR_EXAMPLES_AUTO, &err), CR_FORMAT);
}

static void test_limits(void **state)
{
    (void)state;
    size_t max = 1 << 20;
    char *line = malloc(max + 2);
    assert_non_null(line);
    memset(line, 'x', max + 1);
    assert_int_equal(cr_examples_parse(&e, line, max, "f.txt", CR_EXAMPLES_AUTO, &err), CR_OK);
    cr_examples_deinit(&e);
    assert_int_equal(cr_examples_parse(&e, line, max + 1, "f.txt", CR_EXAMPLES_AUTO, &err),
                     CR_LIMIT);
    memcpy(line, "question\n", 9);
    assert_int_equal(cr_examples_parse(&e, line, max + 1, "f.csv", CR_EXAMPLES_AUTO, &err), CR_OK);
    cr_examples_deinit(&e);
    free(line);

    size_t n = 1000000;
    char *many = malloc(2 * n + 2);
    assert_non_null(many);
    for (size_t i = 0; i <= n; i++)
        memcpy(many + 2 * i, "a\n", 2);
    assert_int_equal(cr_examples_parse(&e, many, 2 * n, "f", CR_EXAMPLES_AUTO, &err), CR_OK);
    assert_int_equal(e.n, n);
    cr_examples_deinit(&e);
    assert_int_equal(cr_examples_parse(&e, many, 2 * n + 2, "f", CR_EXAMPLES_AUTO, &err), CR_LIMIT);
    assert_int_equal(err.pos, n + 1);
    free(many);

    for (int k = 256; k <= 257; k++) {
        char text[4096] = "{\"question\":\"q\",\"choices\":[";
        size_t at = strlen(text);
        for (int i = 0; i < k; i++)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s\"%d\"", i ? "," : "", i);
        snprintf(text + at, sizeof text - at, "]}");
        assert_int_equal(parse(text, "f.jsonl"), k == 256 ? CR_OK : CR_LIMIT);
        if (k == 256)
            cr_examples_deinit(&e);
    }
}

static void write_file(const char *path, const void *data, size_t n)
{
    assert_int_equal(cr_file_write(path, data, n, NULL), CR_OK);
}

static void test_files(void **state)
{
    (void)state;
    char dir[] = "/tmp/crayon-examples-XXXXXX", path[100];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.jsonl", dir);
    assert_int_equal(cr_examples_read(&e, path, &err), CR_NOT_FOUND);
    const char *text = "{\"question\":\"q\",\"answer\":\"a\"}\n";
    write_file(path, text, strlen(text));
    assert_int_equal(cr_examples_read(&e, path, &err), CR_OK);
    assert_int_equal(e.n, 1);
    cr_examples_deinit(&e);
    unlink(path);
    snprintf(path, sizeof path, "%s/a.jsonl.xz", dir);
#ifdef CRAYON_LZMA
    uint8_t packed[1000];
    size_t n = 0;
    assert_int_equal(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC64, NULL, (const uint8_t *)text,
                                             strlen(text), packed, &n, sizeof packed),
                     LZMA_OK);
    write_file(path, packed, n);
    assert_int_equal(cr_examples_read(&e, path, &err), CR_OK);
    assert_string_equal(e.v[0].answer, "a");
    cr_examples_deinit(&e);
    for (size_t cut = 6; cut < n; cut++) {
        write_file(path, packed, cut);
        assert_int_equal(cr_examples_read(&e, path, &err), CR_FORMAT);
        assert_non_null(strstr(err.msg, path));
    }
#else
    write_file(path,
               "\xfd"
               "7zXZ\0",
               6);
    assert_int_equal(cr_examples_read(&e, path, &err), CR_UNSUPPORTED);
#endif
    unlink(path);
    rmdir(dir);
}

static void test_repository_data(void **state)
{
    (void)state;
#ifdef CRAYON_LZMA
    assert_int_equal(cr_examples_read(&e, CR_SOURCE_DIR "/data/train.jsonl.xz", &err), CR_OK);
    assert_true(e.n > 1000);
    for (size_t i = 0; i < e.n; i++) {
        assert_true(e.v[i].task[0]);
        assert_non_null(e.v[i].answer);
    }
    cr_examples_deinit(&e);
#else
    skip();
#endif
}

/* Every allocation fails once: a clear status, nothing leaks. */
static void test_out_of_memory(void **state)
{
    (void)state;
    const char *json =
        "{\"question\":\"q\",\"context\":\"c\",\"choices\":[\"a\",\"b\"],\"answer\":1}\n"
        "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":"
        "\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n";
    const char *files[][2] = {{json, "f.jsonl"},
                              {"question,choices,answer\n\"a\",b | c,c\n", "f.csv"}};
    size_t before = cr_mem_now();
    for (int f = 0; f < 2; f++) {
        for (uint64_t i = 1;; i++) {
            cr_mem_fail_at(i, false);
            enum cr_status st = parse(files[f][0], files[f][1]);
            cr_mem_fail_at(0, false);
            if (!st) {
                cr_examples_deinit(&e);
                break;
            }
            assert_int_equal(st, CR_NO_MEMORY);
            assert_int_equal(cr_mem_now(), before);
        }
    }
    assert_int_equal(cr_mem_now(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_task_lines),
        cmocka_unit_test(test_other_lines),
        cmocka_unit_test(test_bad_lines_are_named),
        cmocka_unit_test(test_deep_json_is_refused),
        cmocka_unit_test(test_csv),
        cmocka_unit_test(test_bad_csv_is_named),
        cmocka_unit_test(test_plain_lines),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_repository_data),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
