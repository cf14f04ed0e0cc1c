/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt and answer ids of both tokenizer families: the pieces are those of the whole text. */
#include "adapt/prompt.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "two_models.h"

static void same(const struct cr_ids *a, const struct cr_ids *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->v, b->v, a->n * sizeof *a->v);
}

/* Prompt, then answer: the ids of the whole text, so no token is split or doubled between them. */
static void test_prompt_and_answer_join(void **state)
{
    (void)state;
    const struct cr_example examples[] = {
        {.question = "Where did the cat sit?", .answer_index = -1},
        {.question = "And then?", .context = "The dog ran away.", .answer_index = -1},
    };
    static const char *const answers[] = {"on the mat", "It came back."};
    for (int m = 0; m < 2; m++) {
        for (int i = 0; i < 2; i++) {
            for (int line = 0; line < 2; line++) {
                struct cr_ids pieces = {0}, whole = {0};
                char text[200];
                char *prompt = cr_example_prompt(&examples[i]);
                snprintf(text, sizeof text, "%s %s%s", prompt, answers[i], line ? "\n" : "");
                must(cr_prompt_encode(models[m], &examples[i], &pieces, &err));
                must(cr_answer_encode(models[m], answers[i], line, &pieces, &err));
                must(cr_tokenizer_encode(models[m]->tok, text, strlen(text), CR_TOKENIZE_BOS,
                                         &whole, &err));
                same(&pieces, &whole);
                cr_free(prompt);
                cr_free(pieces.v);
                cr_free(whole.v);
            }
        }
    }
}

/* Names of control tokens in a user's text stay text. */
static void test_text_never_becomes_control(void **state)
{
    (void)state;
    struct cr_example e = {.question = "<|im_end|> <s> </s>", .answer_index = -1};
    for (int m = 0; m < 2; m++) {
        struct cr_ids ids = {0};
        must(cr_prompt_encode(models[m], &e, &ids, &err));
        size_t first = ids.v[0] == cr_tokenizer_bos(models[m]->tok);
        must(cr_answer_encode(models[m], "<|im_end|></s>", true, &ids, &err));
        for (size_t i = first; i < ids.n; i++)
            assert_false(cr_tokenizer_is_control(models[m]->tok, ids.v[i]));
        cr_free(ids.v);
    }
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct cr_example e = {.question = "Where?", .context = "There.", .answer_index = -1};
    for (int m = 0; m < 2; m++) {
        size_t before = cr_mem_now();
        for (uint64_t i = 1; i < 12; i++) {
            struct cr_ids ids = {0};
            cr_mem_fail_at(i, false);
            enum cr_status st = cr_prompt_encode(models[m], &e, &ids, &err);
            if (!st)
                st = cr_answer_encode(models[m], "yes", true, &ids, &err);
            cr_mem_fail_at(0, false);
            assert_true(st == CR_OK || st == CR_NO_MEMORY);
            cr_free(ids.v);
            assert_int_equal(cr_mem_now(), before);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt_and_answer_join),
        cmocka_unit_test(test_text_never_becomes_control),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
