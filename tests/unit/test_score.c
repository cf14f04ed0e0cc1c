/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores on the model of the repository: against plain stepping through each option, packed against
 * alone (bit for bit), one thread against two, the losses by hand, long prompts, stopping.
 */
#include "adapt/score.h"

#include "adapt/prompt.h"
#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static cr_model *model;
static char *yes_no[] = {"yes", "no", "it depends on the weather of the day"};
static char *animals[] = {"a dog", "the cat", "some birds", "fish"};
static struct cr_example examples[] = {
    {.question = "Is the sea wet?", .choices = yes_no, .n_choices = 3, .answer_index = 0},
    {.question = "Who sat on the mat?",
     .context = "The cat sat on the mat.",
     .choices = animals,
     .n_choices = 4,
     .answer_index = 1},
    {.question = "Name the capital of France.", .answer_index = -1, .answer = "Paris"},
    {.question = "No answer is known.", .answer_index = -1},
    {.question = "Choices without an answer.",
     .choices = animals,
     .n_choices = 4,
     .answer_index = -1},
};
enum { N = sizeof examples / sizeof *examples };

static void must(enum cr_status st, const struct cr_error *err)
{
    if (st)
        fail_msg("%s", err->msg);
}

/* Sum of log-probabilities by stepping through one sequence, in double. */
static double by_steps(cr_session *s, const struct cr_example *e, const char *text, bool line,
                       bool *greedy, int *n_tokens)
{
    struct cr_ids ids = {0};
    struct cr_error err;
    must(cr_prompt_encode(model, e, &ids, &err), &err);
    size_t n = ids.n;
    must(cr_answer_encode(model, text, line, &ids, &err), &err);
    must(cr_session_sync(s, ids.v, n, NULL, &err), &err);
    double total = 0;
    *greedy = true;
    for (size_t i = n; i < ids.n; i++) {
        const float *l = cr_session_logits(s);
        double sum = 0;
        int best = 0;
        for (int v = 0; v < model->n_vocab; v++) {
            sum += exp((double)l[v]);
            best = l[v] > l[best] ? v : best;
        }
        total += (double)l[ids.v[i]] - log(sum);
        *greedy &= best == ids.v[i];
        if (i + 1 < ids.n)
            must(cr_session_step(s, ids.v[i], &err), &err);
    }
    *n_tokens = (int)(ids.n - n);
    cr_free(ids.v);
    return total;
}

static void test_scores_equal_stepping(void **state)
{
    (void)state;
    struct cr_error err;
    cr_session *s;
    must(cr_session_new(&s, model, 256, &err), &err);
    cr_scorer *scorer;
    const struct cr_example_score *r;
    must(cr_scorer_new(&scorer, model, NULL, examples, N, &err), &err);
    must(cr_scorer_run(scorer, NULL, &r, NULL, NULL, &err), &err);
    assert_int_equal(cr_scorer_n_cut(scorer), 0);
    for (int i = 0; i < N; i++) {
        const struct cr_example *e = &examples[i];
        bool is_short = !e->n_choices;
        assert_int_equal(r[i].n_options, is_short ? (e->answer ? 1 : 0) : e->n_choices);
        double best = -INFINITY, z = 0, nll = 0, right = 0;
        int choice = 0;
        for (int k = 0; k < r[i].n_options; k++) {
            bool greedy;
            int n_tokens;
            const char *text = is_short ? e->answer : e->choices[k];
            double want = by_steps(s, e, text, is_short, &greedy, &n_tokens);
            const struct cr_option_score *o = &r[i].options[k];
            assert_true(fabs(want - (double)o->sum) < 1e-4 * fabs(want));
            assert_int_equal(o->is_greedy, greedy);
            assert_int_equal(o->n_tokens, n_tokens);
            assert_int_equal(o->n_bytes, strlen(text));
            double score = want / (double)strlen(text);
            if (score > best) {
                best = score;
                choice = k;
            }
            z += exp(8 * score);
            if (is_short || k == e->answer_index) {
                nll = -want / n_tokens;
                right = 8 * score;
            }
        }
        bool known = is_short ? e->answer != NULL : e->answer_index >= 0;
        assert_int_equal(r[i].has_answer, known);
        if (!r[i].n_options)
            continue;
        assert_int_equal(r[i].choice, choice);
        if (!known)
            continue;
        double loss = is_short ? nll : log(z) - right + 0.3 * nll;
        assert_true(fabs((double)r[i].nll - nll) < 1e-4);
        assert_true(fabs((double)r[i].loss - loss) < 1e-3);
        assert_int_equal(r[i].correct,
                         is_short ? r[i].options[0].is_greedy : choice == e->answer_index);
    }
    cr_scorer_free(scorer);
    cr_session_free(s);
}

/* A greedy continuation scored as a short answer is exact; changing it is not. */
static void test_greedy_text_is_exact(void **state)
{
    (void)state;
    struct cr_error err;
    cr_session *s;
    must(cr_session_new(&s, model, 256, &err), &err);
    struct cr_ids ids = {0};
    must(cr_prompt_encode(model, &examples[0], &ids, &err), &err);
    size_t n = ids.n;
    must(cr_session_sync(s, ids.v, n, NULL, &err), &err);
    for (int i = 0; i < 6; i++) {
        const float *l = cr_session_logits(s);
        int32_t best = 0;
        for (int32_t v = 1; v < model->n_vocab; v++)
            best = l[v] > l[best] ? v : best;
        assert_true(cr_ids_push(&ids, best));
        must(cr_session_step(s, best, &err), &err);
    }
    float lp[6];
    bool greedy;
    must(cr_score_tokens(s, ids.v, n, ids.v + n, 6, lp, &greedy, &err), &err);
    assert_true(greedy);
    for (int i = 0; i < 6; i++)
        assert_true(lp[i] < 0 && isfinite(lp[i]));
    ids.v[n + 3] ^= 1;
    must(cr_score_tokens(s, ids.v, n, ids.v + n, 6, lp, &greedy, &err), &err);
    assert_false(greedy);
    assert_int_equal(cr_score_tokens(s, ids.v, 0, ids.v, 3, lp, &greedy, &err), CR_INVALID);
    assert_int_equal(cr_score_tokens(s, ids.v, 2, ids.v, 0, lp, &greedy, &err), CR_INVALID);
    int32_t bad = model->n_vocab;
    assert_int_equal(cr_score_tokens(s, ids.v, 2, &bad, 1, lp, &greedy, &err), CR_INVALID);
    bad = -1;
    assert_int_equal(cr_score_tokens(s, ids.v, 2, &bad, 1, lp, &greedy, &err), CR_INVALID);
    cr_free(ids.v);
    cr_session_free(s);
}

static void test_score_tokens_equals_the_scorer(void **state)
{
    (void)state;
    struct cr_error err;
    cr_scorer *scorer;
    const struct cr_example_score *r;
    must(cr_scorer_new(&scorer, model, NULL, examples, N, &err), &err);
    must(cr_scorer_run(scorer, NULL, &r, NULL, NULL, &err), &err);
    cr_session *s;
    must(cr_session_new(&s, model, 256, &err), &err);
    for (int k = 0; k < 4; k++) {
        struct cr_ids p = {0}, c = {0};
        must(cr_prompt_encode(model, &examples[1], &p, &err), &err);
        must(cr_answer_encode(model, animals[k], false, &c, &err), &err);
        float lp[16];
        must(cr_score_tokens(s, p.v, p.n, c.v, c.n, lp, NULL, &err), &err);
        double sum = 0;
        for (size_t i = 0; i < c.n; i++)
            sum += (double)lp[i];
        assert_true((float)sum == r[1].options[k].sum);
        cr_free(p.v);
        cr_free(c.v);
    }
    cr_session_free(s);
    cr_scorer_free(scorer);
}

/* 60 examples packed into several passes give what each gives alone. */
static void test_packing_changes_nothing(void **state)
{
    (void)state;
    enum { MANY = 60 };
    struct cr_example many[MANY];
    for (int i = 0; i < MANY; i++)
        many[i] = examples[i * 3 % N];
    struct cr_error err;
    cr_scorer *all;
    const struct cr_example_score *ra, *ro;
    must(cr_scorer_new(&all, model, NULL, many, MANY, &err), &err);
    assert_true(cr_scorer_n_tokens(all) > (size_t)model->n_ctx_train);
    must(cr_scorer_run(all, NULL, &ra, NULL, NULL, &err), &err);
    for (int i = 0; i < MANY; i += 7) {
        cr_scorer *one;
        must(cr_scorer_new(&one, model, NULL, &many[i], 1, &err), &err);
        must(cr_scorer_run(one, NULL, &ro, NULL, NULL, &err), &err);
        for (int k = 0; k < ra[i].n_options; k++)
            assert_true(ra[i].options[k].sum == ro->options[k].sum);
        assert_true(ra[i].loss == ro->loss && ra[i].choice == ro->choice);
        cr_scorer_free(one);
    }
    cr_scorer_free(all);
}

static void test_one_thread_equals_two(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_model_options opt = {.n_threads = 1};
    cr_model *single;
    must(cr_model_open(&single, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &opt, &err), &err);
    cr_scorer *a, *b;
    const struct cr_example_score *ra, *rb;
    must(cr_scorer_new(&a, single, NULL, examples, N, &err), &err);
    must(cr_scorer_new(&b, model, NULL, examples, N, &err), &err);
    must(cr_scorer_run(a, NULL, &ra, NULL, NULL, &err), &err);
    must(cr_scorer_run(b, NULL, &rb, NULL, NULL, &err), &err);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < ra[i].n_options; k++)
            assert_true(ra[i].options[k].sum == rb[i].options[k].sum);
    cr_scorer_free(a);
    cr_scorer_free(b);
    cr_model_close(single);
}

/* A delta changes the scores; a second run without it gives the first ones again. */
static void test_delta(void **state)
{
    (void)state;
    struct cr_error err;
    size_t E = (size_t)model->n_embd, Q = (size_t)model->q_dim;
    cr_delta *d;
    must(cr_delta_new(&d, model->n_layers, E + Q, &err), &err);
    for (size_t i = 0; i < E + Q; i++)
        d->data[i] = 0.3F * (float)sin((double)i);
    *cr_delta_at(d, 2, CR_LIN_Q) = (struct cr_low_rank){.rank = 1, .a = d->data, .b = d->data + E};
    d->max_rank = 1;
    cr_scorer *s;
    const struct cr_example_score *r;
    must(cr_scorer_new(&s, model, NULL, examples, N, &err), &err);
    float sum[3];
    const cr_delta *deltas[3] = {NULL, d, NULL};
    for (int i = 0; i < 3; i++) {
        must(cr_scorer_run(s, deltas[i], &r, NULL, NULL, &err), &err);
        sum[i] = r[0].options[2].sum;
    }
    assert_true(sum[0] == sum[2]);
    assert_true(sum[0] != sum[1]);
    memset(d->data, 0, (E + Q) * sizeof(float)); /* a zero delta is the base, bit for bit */
    must(cr_scorer_run(s, d, &r, NULL, NULL, &err), &err);
    assert_true(r[0].options[2].sum == sum[0]);
    cr_scorer_free(s);
    cr_delta_free(d);
}

static void test_long_prompts_lose_their_beginning(void **state)
{
    (void)state;
    char text[6001];
    for (int i = 0; i < 6000; i++)
        text[i] = i % 6 == 5 ? ' ' : "abcdefghijklmnopqrstuvwxyz"[i * i % 26];
    text[6000] = '\0';
    struct cr_example e = {.question = text, .answer_index = -1, .answer = "yes"};
    struct cr_error err;
    cr_scorer *scorer;
    const struct cr_example_score *r;
    must(cr_scorer_new(&scorer, model, NULL, &e, 1, &err), &err);
    assert_int_equal(cr_scorer_n_cut(scorer), 1);
    must(cr_scorer_run(scorer, NULL, &r, NULL, NULL, &err), &err);
    struct cr_ids p = {0}, c = {0};
    must(cr_prompt_encode(model, &e, &p, &err), &err);
    must(cr_answer_encode(model, "yes", true, &c, &err), &err);
    size_t max = (size_t)model->n_ctx_train, keep = max - c.n;
    cr_session *s;
    must(cr_session_new(&s, model, (int)max, &err), &err);
    float lp[8];
    int32_t *kept = p.v + p.n - keep;
    if (p.v[0] == cr_tokenizer_bos(model->tok)) /* stays in front */
        kept[0] = p.v[0];
    must(cr_score_tokens(s, kept, keep, c.v, c.n, lp, NULL, &err), &err);
    double sum = 0;
    for (size_t i = 0; i < c.n; i++)
        sum += (double)lp[i];
    assert_true((float)sum == r[0].options[0].sum);
    assert_int_equal(cr_score_tokens(s, p.v, p.n, c.v, c.n, lp, NULL, &err), CR_LIMIT);
    cr_session_free(s);
    cr_free(p.v);
    cr_free(c.v);
    cr_scorer_free(scorer);
    struct cr_example too_long = {.question = "q", .answer_index = -1, .answer = text, .line = 17};
    assert_int_equal(cr_scorer_new(&scorer, model, NULL, &too_long, 1, &err), CR_LIMIT);
    assert_non_null(strstr(err.msg, "line 17"));
    assert_null(scorer);
}

struct watch {
    int calls, stop_at;
    size_t last, total;
};

static bool watch(void *ud, size_t done, size_t total)
{
    struct watch *w = ud;
    assert_true(done >= w->last && done <= total);
    w->last = done;
    w->total = total;
    return ++w->calls != w->stop_at;
}

static void test_progress_and_stop(void **state)
{
    (void)state;
    enum { MANY = 60 };
    struct cr_example many[MANY];
    for (int i = 0; i < MANY; i++)
        many[i] = examples[i % N];
    struct cr_error err;
    cr_scorer *s;
    const struct cr_example_score *r;
    must(cr_scorer_new(&s, model, NULL, many, MANY, &err), &err);
    struct watch w = {0};
    must(cr_scorer_run(s, NULL, &r, watch, &w, &err), &err);
    assert_true(w.calls > 1 && w.last == cr_scorer_n_tokens(s) && w.total == w.last);
    float sum = r[0].options[0].sum;
    w = (struct watch){.stop_at = 2};
    assert_int_equal(cr_scorer_run(s, NULL, &r, watch, &w, &err), CR_CANCELLED);
    assert_null(r);
    must(cr_scorer_run(s, NULL, &r, NULL, NULL, &err), &err); /* a stop spoils nothing */
    assert_true(r[0].options[0].sum == sum);
    cr_scorer_free(s);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct cr_error err;
    size_t before = cr_mem_now();
    for (uint64_t i = 1; i < 400; i++) {
        cr_scorer *s;
        cr_mem_fail_at(i, false);
        enum cr_status st = cr_scorer_new(&s, model, NULL, examples, 2, &err);
        cr_mem_fail_at(0, false);
        if (!st) {
            cr_scorer_free(s);
            assert_int_equal(cr_mem_now(), before);
            return;
        }
        assert_int_equal(st, CR_NO_MEMORY);
        assert_int_equal(cr_mem_now(), before);
    }
    fail_msg("never succeeded");
}

static void test_nothing_to_score(void **state)
{
    (void)state;
    struct cr_error err;
    cr_scorer *s;
    const struct cr_example_score *r;
    must(cr_scorer_new(&s, model, NULL, NULL, 0, &err), &err);
    must(cr_scorer_run(s, NULL, &r, NULL, NULL, &err), &err);
    cr_scorer_free(s);
    must(cr_scorer_new(&s, model, NULL, &examples[3], 1, &err), &err);
    must(cr_scorer_run(s, NULL, &r, NULL, NULL, &err), &err);
    assert_int_equal(r[0].n_options, 0);
    cr_scorer_free(s);
}

static int open_model(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_model_options opt = {.n_threads = 2};
    must(cr_model_open(&model, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &opt, &err), &err);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    cr_model_close(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores_equal_stepping),
        cmocka_unit_test(test_greedy_text_is_exact),
        cmocka_unit_test(test_score_tokens_equals_the_scorer),
        cmocka_unit_test(test_packing_changes_nothing),
        cmocka_unit_test(test_one_thread_equals_two),
        cmocka_unit_test(test_delta),
        cmocka_unit_test(test_long_prompts_lose_their_beginning),
        cmocka_unit_test(test_progress_and_stop),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_nothing_to_score),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
