/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task embeddings on the model of the repository: q_x against a computation from the dequantised
 * weights and against the queries that the forward pass makes; the middle view against a plain run.
 */
#include "adapt/embed.h"

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

static struct cr_example examples[] = {
    {.question = "Which gas do plants take in?", .task = "t", .answer_index = -1},
    {.question = "Did it rain?", .context = "The streets were wet.", .answer_index = -1},
    {.question = "x", .answer_index = -1},
    {.question = "A longer line, \xc3\xa9t\xc3\xa9 and \xe6\x97\xa5\xe6\x9c\xac, of many tokens.",
     .answer_index = -1},
};
enum { N = sizeof examples / sizeof *examples };

static void must(enum cr_status st, const struct cr_error *err)
{
    if (st)
        fail_msg("%s", err->msg);
}

static struct cr_ids content(const struct cr_example *e)
{
    struct cr_ids ids = {0};
    struct cr_error err;
    if (e->context)
        must(cr_answer_encode(model, e->context, false, &ids, &err), &err);
    must(cr_answer_encode(model, e->question, false, &ids, &err), &err);
    return ids;
}

static void norm_token(int32_t id, float *x)
{
    size_t E = (size_t)model->n_embd;
    double ss = 0;
    cr_dequantize_ref(model->embd.type, x,
                      (const char *)model->embd.data + (size_t)id * model->embd.row_bytes, E);
    for (size_t i = 0; i < E; i++)
        ss += (double)x[i] * (double)x[i];
    ss = 1 / sqrt(ss / (double)E + (double)model->norm_eps);
    for (size_t i = 0; i < E; i++)
        x[i] = (float)(x[i] * ss * (double)model->layers[0].attn_norm[i]);
}

/* out [q_dim]: the mean over tokens of the query that each token gets, exact or as the forward pass
 * multiplies (activations quantised beside quantised weights). */
static void mean_query(const struct cr_ids *ids, bool as_forward, double *out)
{
    const struct cr_matrix *w = cr_model_linear(model, 0, CR_LIN_Q);
    size_t E = (size_t)model->n_embd, Q = (size_t)model->q_dim;
    float *x = cr_alloc(E, sizeof *x), *row = cr_alloc(E, sizeof *row);
    float *y = cr_alloc(Q, sizeof *y);
    struct cr_block_q8a *blocks = cr_alloc(E / 32, sizeof *blocks);
    assert_true(x && row && y && blocks);
    bool quantise = w->type != CR_F32 && w->type != CR_F16 && w->type != CR_BF16;
    memset(out, 0, Q * sizeof *out);
    for (size_t t = 0; t < ids->n; t++) {
        norm_token(ids->v[t], x);
        if (as_forward) {
            if (quantise)
                model->k->quantize_q8a(blocks, x, E);
            model->k->matmul[w->type](y, Q, w->data, w->row_bytes, quantise ? (void *)blocks : x,
                                      quantise ? E / 32 * sizeof *blocks : E * sizeof *x, Q, 1, E);
        }
        for (size_t r = 0; r < Q; r++) {
            double s = as_forward ? (double)y[r] : 0;
            if (!as_forward) {
                cr_dequantize_ref(w->type, row, (const char *)w->data + r * w->row_bytes, E);
                for (size_t i = 0; i < E; i++)
                    s += (double)row[i] * (double)x[i];
            }
            out[r] += s / (double)ids->n;
        }
    }
    cr_free(blocks);
    cr_free(y);
    cr_free(row);
    cr_free(x);
}

static double relative(const double *want, const float *got, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += (want[i] - (double)got[i]) * (want[i] - (double)got[i]);
        norm += want[i] * want[i];
    }
    return sqrt(diff / norm);
}

static void test_qx_is_the_mean_query(void **state)
{
    (void)state;
    size_t Q = (size_t)cr_view_dim(model, CR_VIEW_QX);
    assert_int_equal(Q, model->q_dim);
    float *got = cr_alloc(N * Q, sizeof *got);
    double *want = cr_alloc(Q, sizeof *want);
    assert_true(got && want);
    struct cr_error err;
    must(cr_embed_examples(model, CR_VIEW_QX, examples, N, got, &err), &err);
    for (size_t i = 0; i < N; i++) {
        struct cr_ids ids = content(&examples[i]);
        mean_query(&ids, false, want);
        double exact = relative(want, got + i * Q, Q);
        mean_query(&ids, true, want);
        double forward = relative(want, got + i * Q, Q);
        print_message("example %zu: %zu tokens, relative difference to the dequantised weights "
                      "%.1e, to the forward pass %.1e\n",
                      i, ids.n, exact, forward);
        assert_true(exact < 1e-5);
        assert_true(forward < 2e-2); /* 8-bit activations */
        cr_free(ids.v);
    }
    cr_free(want);
    cr_free(got);
}

struct sum {
    double *v;
    size_t n;
};

static void add_hidden(void *ud, size_t token, const float *hidden)
{
    (void)token;
    struct sum *s = ud;
    for (int i = 0; i < model->n_embd; i++)
        s->v[i] += (double)hidden[i];
    s->n++;
}

/* The whole prompt alone in a session; the tokens of the content by their text. */
static void test_middle_is_the_mean_hidden_state(void **state)
{
    (void)state;
    size_t E = (size_t)cr_view_dim(model, CR_VIEW_MIDDLE);
    assert_int_equal(E, model->n_embd);
    assert_int_equal(cr_view_layer(model), model->n_layers / 2 - 1);
    float *got = cr_alloc(N * E, sizeof *got);
    struct sum sum = {.v = cr_alloc(E, sizeof *sum.v)};
    assert_true(got && sum.v);
    struct cr_error err;
    must(cr_embed_examples(model, CR_VIEW_MIDDLE, examples, N, got, &err), &err);
    cr_session *s;
    must(cr_session_new(&s, model, 512, &err), &err);
    for (size_t i = 0; i < N; i++) {
        struct cr_ids ids = {0}, c = content(&examples[i]);
        must(cr_prompt_encode(model, &examples[i], &ids, &err), &err);
        struct cr_batch_token tokens[512] = {{0}};
        size_t at = 0;
        for (size_t t = 0; t < ids.n; t++) {
            bool is_content = at < c.n && ids.v[t] == c.v[at] && t > 1;
            at += is_content;
            tokens[t] =
                (struct cr_batch_token){.id = ids.v[t], .pos = (int32_t)t, .want = is_content};
        }
        assert_int_equal(at, c.n); /* the pieces are tokenised as in the prompt */
        memset(sum.v, 0, E * sizeof *sum.v);
        sum.n = 0;
        struct cr_batch b = {.tokens = tokens,
                             .n = ids.n,
                             .on_hidden = add_hidden,
                             .hidden_layer = cr_view_layer(model),
                             .ud = &sum};
        cr_session_reset(s);
        must(cr_session_run(s, &b, &err), &err);
        for (size_t d = 0; d < E; d++)
            sum.v[d] /= (double)sum.n;
        assert_true(relative(sum.v, got + i * E, E) < 1e-5);
        cr_free(c.v);
        cr_free(ids.v);
    }
    cr_session_free(s);
    cr_free(sum.v);
    cr_free(got);
}

/* Many examples at once, over several passes, equal each alone, bit for bit. */
static void test_packing_changes_nothing(void **state)
{
    (void)state;
    enum { MANY = 120 };
    for (int v = 0; v < 2; v++) {
        size_t D = (size_t)cr_view_dim(model, (enum cr_view)v);
        struct cr_example many[MANY];
        for (int i = 0; i < MANY; i++)
            many[i] = examples[i * 7 % N];
        float *all = cr_alloc(MANY * D, sizeof *all), *one = cr_alloc(D, sizeof *one);
        assert_true(all && one);
        struct cr_error err;
        must(cr_embed_examples(model, (enum cr_view)v, many, MANY, all, &err), &err);
        for (int i = 0; i < MANY; i++) {
            must(cr_embed_examples(model, (enum cr_view)v, &many[i], 1, one, &err), &err);
            assert_memory_equal(one, all + (size_t)i * D, D * sizeof *one);
        }
        cr_free(one);
        cr_free(all);
    }
}

static void test_options_do_not_count(void **state)
{
    (void)state;
    char *choices[] = {"yes", "no"};
    struct cr_example e = examples[1];
    e.choices = choices;
    e.n_choices = 2;
    struct cr_error err;
    for (int v = 0; v < 2; v++) {
        size_t D = (size_t)cr_view_dim(model, (enum cr_view)v);
        float *a = cr_alloc(2 * D, sizeof *a);
        assert_non_null(a);
        must(cr_embed_examples(model, (enum cr_view)v, &e, 1, a, &err), &err);
        must(cr_embed_examples(model, (enum cr_view)v, &examples[1], 1, a + D, &err), &err);
        assert_memory_equal(a, a + D, D * sizeof *a);
        cr_free(a);
    }
}

static void test_long_and_out_of_memory(void **state)
{
    (void)state;
    char text[12001];
    for (int i = 0; i < 12000; i++)
        text[i] = i % 5 == 4 ? ' ' : "abcdefghijklmnopqrstuvwxyz"[i * i % 26];
    text[12000] = '\0';
    struct cr_example e = {.question = text, .answer_index = -1};
    struct cr_error err;
    size_t before = cr_mem_now();
    for (int v = 0; v < 2; v++) {
        size_t D = (size_t)cr_view_dim(model, (enum cr_view)v);
        float *a = cr_alloc(2 * D, sizeof *a);
        assert_non_null(a);
        must(cr_embed_examples(model, (enum cr_view)v, &e, 1, a, &err), &err);
        for (size_t i = 0; i < D; i++)
            assert_true(isfinite(a[i]));
        for (uint64_t i = 1; i < 30; i++) {
            size_t held = cr_mem_now();
            cr_mem_fail_at(i, false);
            enum cr_status st = cr_embed_examples(model, (enum cr_view)v, examples, 2, a, &err);
            cr_mem_fail_at(0, false);
            assert_true(st == CR_OK || st == CR_NO_MEMORY);
            assert_int_equal(cr_mem_now(), held);
        }
        cr_free(a);
    }
    assert_int_equal(cr_mem_now(), before);
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
        cmocka_unit_test(test_qx_is_the_mean_query),
        cmocka_unit_test(test_middle_is_the_mean_hidden_state),
        cmocka_unit_test(test_packing_changes_nothing),
        cmocka_unit_test(test_options_do_not_count),
        cmocka_unit_test(test_long_and_out_of_memory),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
