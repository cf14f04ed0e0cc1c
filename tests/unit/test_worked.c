/* SPDX-License-Identifier: Apache-2.0 */
/* Worked examples in front of a prompt: ids of another implementation, both tokenizer families,
 * what is left out where there is no room, and scores behind them. */
#include "adapt/score.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "two_models.h"

static char *const animals[] = {"a cat", "the big dog"};
static const struct cr_example shown[] = {
    {.question = "2 + 2?", .answer = "4", .answer_index = -1},
    {.question = "Who barks?", .context = "A dog.", .answer = "the dog", .answer_index = -1},
    {.question = "Which colour?", .answer = "It is blue.", .answer_index = -1},
};
enum { SHOWN = sizeof shown / sizeof *shown };
static const struct cr_example asked = {
    .question = "How many?", .context = "Two dogs.", .answer_index = -1};

/* Ids without a BOS in front. */
static struct cr_ids plain_ids(const cr_model *m, const struct cr_example *e)
{
    struct cr_ids ids = {0};
    must(cr_prompt_encode(m, e, &ids, &err));
    if (ids.v[0] == cr_tokenizer_bos(m->tok))
        memmove(ids.v, ids.v + 1, --ids.n * sizeof *ids.v);
    return ids;
}

/* What examples [first, SHOWN) and the question are, piece by piece. */
static struct cr_ids by_hand(const cr_model *m, size_t first, const struct cr_example *question)
{
    struct cr_ids all = {0};
    if (cr_tokenizer_add_bos(m->tok))
        assert_true(cr_ids_push(&all, cr_tokenizer_bos(m->tok)));
    for (size_t i = first; i <= SHOWN; i++) {
        struct cr_ids one = plain_ids(m, i < SHOWN ? &shown[i] : question);
        if (i < SHOWN)
            must(cr_answer_encode(m, shown[i].answer, true, &one, &err));
        for (size_t k = 0; k < one.n; k++)
            assert_true(cr_ids_push(&all, one.v[k]));
        cr_free(one.v);
    }
    return all;
}

static void test_pieces_and_one_bos(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        struct cr_worked w;
        struct cr_ids want = by_hand(models[m], 0, &asked), plain = plain_ids(models[m], &asked);
        size_t used = 9;
        must(cr_worked_init(&w, models[m], shown, SHOWN, &err));
        assert_int_equal(w.n, SHOWN);
        for (int bos = 0; bos < 2; bos++) { /* the prompt has its BOS, or none */
            struct cr_ids ids = {0};
            assert_true(cr_ids_push(&ids, 7)); /* what stands before is left alone */
            if (bos)
                must(cr_prompt_encode(models[m], &asked, &ids, &err));
            for (size_t i = 0; !bos && i < plain.n; i++)
                assert_true(cr_ids_push(&ids, plain.v[i]));
            must(cr_worked_put(&w, models[m], CR_WORKED_MAX, 1000, &ids, 1, &used, &err));
            assert_int_equal(used, SHOWN);
            assert_int_equal(ids.v[0], 7);
            assert_int_equal(ids.n, want.n + 1);
            assert_memory_equal(ids.v + 1, want.v, want.n * sizeof *want.v);
            cr_free(ids.v);
        }
        for (size_t i = 1; i < want.n; i++)
            assert_int_not_equal(want.v[i], cr_tokenizer_bos(models[m]->tok));
        cr_free(want.v);
        cr_free(plain.v);
        cr_worked_deinit(&w);
    }
}

/* The first examples go first, and never more of them than must. */
static void test_room(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        struct cr_worked w;
        must(cr_worked_init(&w, models[m], shown, SHOWN, &err));
        size_t size[SHOWN + 1];
        for (size_t first = 0; first <= SHOWN; first++) {
            struct cr_ids ids = by_hand(models[m], first, &asked);
            size[first] = ids.n;
            cr_free(ids.v);
        }
        for (size_t room = 0; room < size[0] + 3; room++) {
            size_t first = 0, used;
            while (first < SHOWN && size[first] > room)
                first++;
            struct cr_ids ids = {0}, want = by_hand(models[m], first, &asked);
            must(cr_prompt_encode(models[m], &asked, &ids, &err));
            must(cr_worked_put(&w, models[m], CR_WORKED_MAX, room, &ids, 0, &used, &err));
            assert_int_equal(used, SHOWN - first);
            assert_int_equal(ids.n, want.n);
            assert_memory_equal(ids.v, want.v, want.n * sizeof *want.v);
            cr_free(ids.v);
            cr_free(want.v);
        }
        cr_worked_deinit(&w);
    }
    for (size_t most = 0; most < SHOWN + 2; most++) { /* no more than were asked for */
        struct cr_worked w;
        struct cr_ids ids = {0}, want = by_hand(models[0], most < SHOWN ? SHOWN - most : 0, &asked);
        must(cr_worked_init(&w, models[0], shown, SHOWN, &err));
        must(cr_prompt_encode(models[0], &asked, &ids, &err));
        must(cr_worked_put(&w, models[0], most, 1000, &ids, 0, NULL, &err));
        assert_int_equal(ids.n, want.n);
        assert_memory_equal(ids.v, want.v, want.n * sizeof *want.v);
        cr_free(ids.v);
        cr_free(want.v);
        cr_worked_deinit(&w);
    }
    assert_int_equal(cr_worked_room(100, 10), 90);
    assert_int_equal(cr_worked_room(100, -1), 100 - CR_WORKED_ANSWER);
    assert_int_equal(cr_worked_room(10, 500), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    struct cr_worked w;
    struct cr_example many[CR_WORKED_MAX + 1];
    assert_int_equal(cr_worked_init(&w, models[0], &asked, 1, &err), CR_INVALID);
    cr_worked_deinit(&w);
    for (size_t i = 0; i <= CR_WORKED_MAX; i++)
        many[i] = shown[0];
    assert_int_equal(cr_worked_init(&w, models[0], many, CR_WORKED_MAX + 1, &err), CR_LIMIT);
    must(cr_worked_init(&w, models[0], many, CR_WORKED_MAX, &err));
    cr_worked_deinit(&w);
}

/* ---- tests/golden/worked.txt ---- */

static char *unescape(char *s)
{
    char *to = s;
    for (char *from = s; *from; from++)
        *to++ = *from != '\\' ? *from : *++from == 'n' ? '\n' : *from;
    *to = '\0';
    return s;
}

/* The fields of a line after its first word, split by tabs. */
static struct cr_example fields(char *line, bool answered)
{
    struct cr_example e = {.task = (char *)"", .answer_index = -1};
    e.context = strchr(line, '\t') + 1;
    e.question = strchr(e.context, '\t') + 1;
    e.question[-1] = '\0';
    if (answered) {
        e.answer = strchr(e.question, '\t') + 1;
        e.answer[-1] = '\0';
        unescape(e.answer);
    }
    unescape(e.question);
    e.context = *e.context ? unescape(e.context) : NULL;
    return e;
}

static void test_ids_of_the_evidence(void **state)
{
    (void)state;
    FILE *f = fopen(CR_SOURCE_DIR "/tests/golden/worked.txt", "r");
    static char line[CR_WORKED_MAX + 1][4096];
    struct cr_example e[CR_WORKED_MAX], question = {0};
    size_t n = 0, cases = 0;
    assert_non_null(f);
    while (fgets(line[n], sizeof line[n], f)) {
        line[n][strcspn(line[n], "\n")] = '\0';
        if (!strncmp(line[n], "example", 7)) {
            e[n] = fields(line[n], true);
            n++;
        } else if (!strncmp(line[n], "question", 8)) {
            static char copy[4096];
            snprintf(copy, sizeof copy, "%s", line[n]);
            question = fields(copy, false);
        } else {
            struct cr_worked w;
            struct cr_ids ids = {0};
            size_t at = 0, used;
            must(cr_worked_init(&w, models[0], e, n, &err));
            must(cr_prompt_encode(models[0], &question, &ids, &err));
            must(cr_worked_put(&w, models[0], CR_WORKED_MAX, 10000, &ids, 0, &used, &err));
            for (char *p = line[n] + 3; *p; at++) {
                assert_true(at < ids.n);
                assert_int_equal(ids.v[at], strtol(p, &p, 10));
            }
            assert_int_equal(at, ids.n);
            assert_int_equal(used, n);
            cr_free(ids.v);
            cr_worked_deinit(&w);
            n = 0;
            cases++;
        }
    }
    fclose(f);
    assert_int_equal(cases, 4);
}

/* ---- scores ---- */

/* The scorer behind worked examples gives what the joined tokens give. */
static void test_scores_behind_examples(void **state)
{
    (void)state;
    cr_model *m = models[0];
    const struct cr_example e[] = {
        {.question = "Who sat?", .choices = (char **)animals, .n_choices = 2, .answer_index = 1},
        {.question = "How many?", .answer = "two dogs", .answer_index = -1},
        {.question = "No answer.", .answer_index = -1},
    };
    struct cr_worked w;
    cr_scorer *with, *without;
    cr_session *s;
    const struct cr_example_score *a, *b;
    must(cr_worked_init(&w, m, shown, SHOWN, &err));
    must(cr_scorer_new(&with, m, &w, e, 3, &err));
    must(cr_scorer_new(&without, m, NULL, e, 3, &err));
    must(cr_session_new(&s, m, 256, &err));
    must(cr_scorer_run(without, NULL, &b, NULL, NULL, &err));
    must(cr_scorer_run(with, NULL, &a, NULL, NULL, &err));
    assert_int_equal(cr_scorer_n_left_out(with), 0);
    assert_int_equal(cr_scorer_n_cut(with), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(a[i].n_options, b[i].n_options);
        for (int k = 0; k < a[i].n_options; k++) {
            const char *text = e[i].n_choices ? e[i].choices[k] : e[i].answer;
            struct cr_ids prompt = by_hand(m, 0, &e[i]), option = {0};
            float logprobs[32];
            bool greedy;
            double sum = 0;
            must(cr_answer_encode(m, text, !e[i].n_choices, &option, &err));
            must(cr_score_tokens(s, prompt.v, prompt.n, option.v, option.n, logprobs, &greedy,
                                 &err));
            for (size_t t = 0; t < option.n; t++)
                sum += (double)logprobs[t];
            assert_true(fabs(sum - (double)a[i].options[k].sum) < 1e-4 * fabs(sum));
            assert_int_equal(greedy, a[i].options[k].is_greedy);
            assert_true(a[i].options[k].sum != b[i].options[k].sum);
            cr_free(option.v);
            cr_free(prompt.v);
        }
    }
    cr_session_free(s);
    cr_scorer_free(with);
    cr_scorer_free(without);
    cr_worked_deinit(&w);
}

/* In a full context examples are left out before the prompt loses a token. */
static void test_scores_in_a_full_context(void **state)
{
    (void)state;
    cr_model *m = models[0];
    struct cr_worked w;
    cr_scorer *s;
    const struct cr_example_score *r;
    must(cr_worked_init(&w, m, shown, SHOWN, &err));
    char *text = cr_alloc0((size_t)m->n_ctx_train * 4, 1);
    struct cr_example e = {.question = text, .answer = "x", .answer_index = -1};
    size_t seen = 0;
    for (int words = 0; words < m->n_ctx_train + 8; words++) { /* " a" is one token */
        memcpy(text + (size_t)words * 2, " a", 2);
        struct cr_ids prompt = {0};
        must(cr_prompt_encode(m, &e, &prompt, &err));
        size_t n = prompt.n, more = 2 /* the answer and its line end */, left = 0;
        cr_free(prompt.v);
        if (n + w.ids.n + more + 4 < (size_t)m->n_ctx_train)
            continue;
        must(cr_scorer_new(&s, m, &w, &e, 1, &err));
        while (left < SHOWN &&
               n + w.ids.n - (left ? w.end[left - 1] : 0) + more > (size_t)m->n_ctx_train)
            left++;
        assert_int_equal(cr_scorer_n_left_out(s), left);
        assert_int_equal(cr_scorer_n_cut(s), n + more > (size_t)m->n_ctx_train);
        if (left != seen || words % 64 == 0)
            must(cr_scorer_run(s, NULL, &r, NULL, NULL, &err));
        seen = left;
        cr_scorer_free(s);
    }
    assert_int_equal(seen, SHOWN);
    cr_free(text);
    cr_worked_deinit(&w);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        size_t before = cr_mem_now();
        enum cr_status st = CR_NO_MEMORY;
        for (uint64_t i = 1; st && i < 200; i++) {
            struct cr_worked w;
            struct cr_ids ids = {0};
            cr_mem_fail_at(i, false);
            st = cr_worked_init(&w, models[m], shown, SHOWN, &err);
            if (!st)
                st = cr_prompt_encode(models[m], &asked, &ids, &err);
            if (!st)
                st = cr_worked_put(&w, models[m], CR_WORKED_MAX, 1000, &ids, 0, NULL, &err);
            cr_mem_fail_at(0, false);
            assert_true(st == CR_OK || st == CR_NO_MEMORY);
            cr_free(ids.v);
            cr_worked_deinit(&w);
            assert_int_equal(cr_mem_now(), before);
        }
        assert_int_equal(st, CR_OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_and_one_bos),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_ids_of_the_evidence),
        cmocka_unit_test(test_scores_behind_examples),
        cmocka_unit_test(test_scores_in_a_full_context),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
