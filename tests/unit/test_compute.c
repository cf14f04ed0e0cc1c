/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam to a device (model/compute.h), with one that runs the batches on a session of its own:
 * scores and embeddings through it are those of the CPU, in big batches too.
 */
#include "adapt/embed.h"
#include "adapt/score.h"
#include "base/mem.h"
#include "model/compute.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

struct fake {
    cr_model *m;
    size_t n_calls;
    /* of a call */
    const struct cr_target *targets;
    size_t n_targets, at;
    float *logprob, *hidden;
    bool *best;
};

static void on_logits(void *ud, size_t token, const float *logits)
{
    struct fake *f = ud;
    size_t most = 0;
    double sum = 0;
    for (int i = 1; i < f->m->n_vocab; i++)
        most = logits[i] > logits[most] ? (size_t)i : most;
    for (int i = 0; i < f->m->n_vocab; i++)
        sum += exp((double)logits[i] - (double)logits[most]);
    for (; f->at < f->n_targets && f->targets[f->at].token == token; f->at++) {
        int32_t id = f->targets[f->at].id;
        f->logprob[f->at] = (float)((double)logits[id] - (double)logits[most] - log(sum));
        f->best[f->at] = id == (int32_t)most;
    }
}

static void on_hidden(void *ud, size_t token, const float *hidden)
{
    struct fake *f = ud;
    (void)token;
    memcpy(f->hidden, hidden, (size_t)f->m->n_embd * sizeof *hidden);
    f->hidden += f->m->n_embd;
}

static enum cr_status run(struct fake *f, const cr_delta *delta, struct cr_batch *b)
{
    cr_session *s;
    enum cr_status st = cr_session_new(&s, f->m, (int)b->n, NULL);
    if (st)
        return st;
    cr_session_set_delta(s, delta);
    st = cr_session_run(s, b, NULL);
    cr_session_free(s);
    f->n_calls++;
    return st;
}

static enum cr_status score(struct cr_compute *c, const cr_delta *delta,
                            const struct cr_batch_token *tokens, size_t n,
                            const struct cr_target *targets, size_t n_targets, float *logprob,
                            bool *best, struct cr_error *err)
{
    (void)err;
    struct fake *f = c->state;
    struct cr_batch b = {.tokens = tokens, .n = n, .on_logits = on_logits, .ud = f};
    f->targets = targets;
    f->n_targets = n_targets;
    f->at = 0;
    f->logprob = logprob;
    f->best = best;
    enum cr_status st = run(f, delta, &b);
    assert_true(f->at == n_targets); /* each target's token was wanted, and they rise */
    return st;
}

static enum cr_status hidden(struct cr_compute *c, const struct cr_batch_token *tokens, size_t n,
                             int layer, float *out, struct cr_error *err)
{
    (void)err;
    struct fake *f = c->state;
    struct cr_batch b = {.tokens = tokens,
                         .n = n,
                         .on_hidden = on_hidden,
                         .hidden_layer = layer,
                         .stop_at_hidden = true,
                         .ud = f};
    f->hidden = out;
    return run(f, NULL, &b);
}

enum { N = 12 };

static void examples(struct cr_example *e, char text[N][200], char **choices)
{
    for (int i = 0; i < N; i++) {
        int n = snprintf(text[i], sizeof text[i], "Is %d a number that we like", i * 31);
        for (int k = 0; k < i % 5; k++)
            n += snprintf(text[i] + n, sizeof text[i] - (size_t)n, " and is it more than %d", k);
        e[i] = (struct cr_example){.question = text[i],
                                   .answer = choices[i % 3],
                                   .choices = i % 4 ? choices : NULL,
                                   .n_choices = i % 4 ? 3 : 0,
                                   .answer_index = i % 4 ? i % 3 : -1};
    }
}

static void same_as_cpu(void **state)
{
    (void)state;
    cr_model *m;
    struct cr_error err;
    struct cr_example e[N];
    char text[N][200], *choices[] = {"yes", "no", "a blue bird that sings"};
    struct cr_model_options o = {.n_threads = 1};
    assert_int_equal(cr_model_open(&m, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &o, &err),
                     CR_OK);
    examples(e, text, choices);
    struct fake f = {.m = m};
    for (size_t most = 100; most <= 4000; most += 3900) { /* some batches, and one */
        struct cr_compute c = {
            .name = "fake", .state = &f, .max_tokens = most, .score = score, .hidden = hidden};
        cr_scorer *cpu, *dev;
        const struct cr_example_score *a, *b;
        assert_int_equal(cr_scorer_new(&cpu, m, NULL, e, N, &err), CR_OK);
        assert_int_equal(cr_scorer_run(cpu, NULL, &a, NULL, NULL, &err), CR_OK);
        size_t dim = (size_t)m->n_embd, calls;
        float *x = cr_alloc(N * dim, sizeof *x), *y = cr_alloc(N * dim, sizeof *y);
        assert_int_equal(cr_embed_examples(m, CR_VIEW_MIDDLE, e, N, x, &err), CR_OK);

        m->compute = &c;
        f.n_calls = 0;
        assert_int_equal(cr_scorer_new(&dev, m, NULL, e, N, &err), CR_OK);
        assert_int_equal(cr_scorer_run(dev, NULL, &b, NULL, NULL, &err), CR_OK);
        calls = f.n_calls;
        assert_int_equal(cr_embed_examples(m, CR_VIEW_MIDDLE, e, N, y, &err), CR_OK);
        m->compute = NULL;
        assert_true(most > 1000 ? calls == 1 : calls > 2);
        assert_memory_equal(x, y, N * dim * sizeof *x);
        for (int i = 0; i < N; i++) {
            assert_int_equal(a[i].n_options, b[i].n_options);
            assert_int_equal(a[i].choice, b[i].choice);
            assert_int_equal(a[i].correct, b[i].correct);
            for (int k = 0; k < a[i].n_options; k++) {
                assert_true(fabsf(a[i].options[k].sum - b[i].options[k].sum) < 1e-3f);
                assert_int_equal(a[i].options[k].is_greedy, b[i].options[k].is_greedy);
            }
        }
        cr_free(x);
        cr_free(y);
        cr_scorer_free(cpu);
        cr_scorer_free(dev);
    }
    cr_model_close(m);
}

/* Jobs of given tokens, as one call each gives them. */
static void jobs(void **state)
{
    (void)state;
    enum { JOBS = 7, MOST = 12 };
    cr_model *m;
    cr_session *s;
    struct cr_error err;
    struct cr_model_options o = {.n_threads = 1};
    struct cr_score_job job[JOBS];
    int32_t ids[JOBS][2 * MOST];
    float got[JOBS][MOST], want[MOST];
    assert_int_equal(cr_model_open(&m, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &o, &err),
                     CR_OK);
    for (size_t i = 0; i < JOBS; i++) {
        for (size_t k = 0; k < 2 * MOST; k++)
            ids[i][k] = (int32_t)((i * 131 + k * k * 17 + 5) % 500);
        job[i] = (struct cr_score_job){ids[i], ids[i] + MOST, 1 + i, 1 + i * 5 % MOST, got[i], 0};
    }
    struct fake f = {.m = m};
    struct cr_compute c = {.name = "fake", .state = &f, .max_tokens = 30, .score = score};
    m->compute = &c;
    assert_int_equal(cr_score_jobs(m, NULL, job, JOBS, &err), CR_OK);
    assert_true(f.n_calls > 1 && f.n_calls < JOBS);
    assert_int_equal(cr_session_new(&s, m, 2 * MOST, &err), CR_OK);
    for (size_t i = 0; i < JOBS; i++) {
        bool greedy;
        assert_int_equal(cr_score_tokens(s, job[i].prompt, job[i].n_prompt, job[i].completion,
                                         job[i].n, want, &greedy, &err),
                         CR_OK);
        assert_int_equal(greedy, job[i].is_greedy);
        for (size_t k = 0; k < job[i].n; k++)
            assert_true(fabsf(want[k] - got[i][k]) < 1e-3f);
    }
    job[3].n = 0;
    assert_int_equal(cr_score_jobs(m, NULL, job, JOBS, &err), CR_INVALID);
    m->compute = NULL;
    cr_session_free(s);
    cr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_as_cpu), cmocka_unit_test(jobs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
