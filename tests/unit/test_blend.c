/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blending end to end on the model of the repository with a small pool made here: three tasks in
 * the index, whose prototypes are real embeddings and whose weights are planted.
 */
#include "adapt/blend.h"

#include "adapt/palette.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { N = 4, RANK = 2, TASKS = 3, ROWS = 4 };

static cr_model *model;
static struct cr_error err;

#define Q(text, c, right)                                                                          \
    {                                                                                              \
        .question = text, .choices = c, .n_choices = 2, .answer_index = right                      \
    }
static char *yes_no[] = {"yes", "no"}, *moods[] = {"happy", "sad"}, *places[] = {"north", "south"};
static struct cr_example rows[TASKS][ROWS] = {
    {Q("Is the sea made of water?", yes_no, 0), Q("Is a stone soft?", yes_no, 1),
     Q("Is ice cold?", yes_no, 0), Q("Is the moon a fruit?", yes_no, 1)},
    {Q("What a wonderful and lovely day we had!", moods, 0),
     Q("My dog died and I cry all night.", moods, 1), Q("I love this funny film.", moods, 0),
     Q("That was a terrible, boring evening.", moods, 1)},
    {Q("Norway lies in which half of the Earth map?", places, 0),
     Q("Chile lies in which half of the Earth map?", places, 1),
     Q("Canada lies in which half of the Earth map?", places, 0),
     Q("Australia lies in which half of the Earth map?", places, 1)},
};

static void must(enum cr_status st)
{
    if (st)
        fail_msg("%s", err.msg);
}

/* mean over all rows and unit prototypes of each task, for one view. */
static void index_of(enum cr_view v, float *mean, float *proto)
{
    size_t D = (size_t)cr_view_dim(model, v);
    float *x = cr_alloc0(TASKS * ROWS * D, sizeof *x);
    assert_non_null(x);
    for (size_t t = 0; t < TASKS; t++)
        must(cr_embed_examples(model, v, rows[t], ROWS, x + t * ROWS * D, &err));
    memset(mean, 0, D * sizeof *mean);
    for (size_t i = 0; i < TASKS * ROWS; i++)
        for (size_t d = 0; d < D; d++)
            mean[d] += x[i * D + d] / (TASKS * ROWS);
    memset(proto, 0, TASKS * D * sizeof *proto);
    for (size_t t = 0; t < TASKS; t++) {
        for (size_t i = 0; i < ROWS; i++) {
            double s = 0;
            for (size_t d = 0; d < D; d++) {
                float *y = &x[(t * ROWS + i) * D + d];
                *y -= mean[d];
                s += (double)*y * (double)*y;
            }
            for (size_t d = 0; d < D; d++)
                proto[t * D + d] += (float)(x[(t * ROWS + i) * D + d] / sqrt(s));
        }
        double s = 0;
        for (size_t d = 0; d < D; d++)
            s += (double)proto[t * D + d] * (double)proto[t * D + d];
        for (size_t d = 0; d < D; d++)
            proto[t * D + d] = (float)(proto[t * D + d] / sqrt(s));
    }
    cr_free(x);
}

static cr_pool *make_pool(enum cr_pool_kind kind)
{
    bool target[CR_LIN_COUNT] = {[CR_LIN_Q] = true, [CR_LIN_V] = true};
    int n = kind == CR_POOL_LORA ? 1 : kind == CR_POOL_CENTROID ? TASKS : N;
    cr_pool *p;
    must(cr_pool_new(&p, model, CR_POOL_SHARED, kind, n, RANK, 2, target, &err));
    struct cr_rng rng;
    cr_rng_init(&rng, 7);
    for (int l = 0; l < p->n_layers; l++) {
        for (int k = 0; k < CR_LIN_COUNT; k++) {
            struct cr_pool_pair *pair = &p->pairs[l * CR_LIN_COUNT + k];
            const struct cr_matrix *w = cr_model_linear(model, l, (enum cr_linear)k);
            for (int i = 0; target[k] && i < RANK * w->n_in; i++)
                pair->a[i] = 0.05F * (float)cr_rng_normal(&rng);
            for (int i = 0; target[k] && i < n * RANK * w->n_out; i++)
                pair->b[i] = 0.05F * (float)cr_rng_normal(&rng);
        }
    }
    if (kind == CR_POOL_LORA)
        return p;
    must(cr_pool_index_alloc(p, TASKS, &err));
    struct cr_pool_index *x = &p->index;
    index_of(CR_VIEW_QX, x->qx_mean, x->qx_proto);
    index_of(CR_VIEW_MIDDLE, x->mid_mean, x->mid_proto);
    for (int d = 0; d < model->n_embd; d++)
        x->mid_std[d] = 1;
    for (int t = 0; t < TASKS; t++)
        for (int i = 0; i < n; i++)
            x->weights[t * n + i] =
                kind == CR_POOL_CENTROID ? (float)(i == t) : (float)cr_rng_normal(&rng);
    x->tau_qx = x->tau_middle = 0.1F;
    return p;
}

static double loss_of(const cr_pool *p, cr_scorer *s, const float *w)
{
    cr_delta *d;
    const struct cr_example_score *r;
    must(cr_pool_blend(&d, p, w, &err));
    must(cr_scorer_run(s, d, &r, NULL, NULL, &err));
    cr_delta_free(d);
    double sum = 0;
    for (int i = 0; i < ROWS; i++)
        sum += (double)r[i].loss / ROWS;
    return sum;
}

static void test_each_task_finds_its_entry(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    for (int v = 0; v < 2; v++) {
        for (int t = 0; t < TASKS; t++) {
            struct cr_blend_options opt = {
                .solver = CR_SOLVE_KNN, .view = (enum cr_view)v, .temperature = 1e-3F};
            struct cr_blend_result r;
            must(cr_blend_examples(model, p, &opt, rows[t], ROWS, &r, &err));
            assert_int_equal(r.nearest, t);
            assert_true(r.nearest_similarity > 0.999F); /* its own prototype */
            assert_int_equal(r.n, N);
            for (int i = 0; i < N; i++)
                assert_true(fabsf(r.weights[i] - p->index.weights[t * N + i]) < 1e-4F);
            assert_true(isfinite(r.scope_mean) && isfinite(r.near_std));
            assert_true(r.scope_mean <= 1 && r.near_mean <= 1);
            assert_true(isnan(r.loss_end));
            assert_non_null(r.q_c);
            if (v == 0 && t == 0)
                print_message("instant: embed %.2f ms, solve %.3f ms\n", r.embed_ms, r.solve_ms);
            cr_blend_result_deinit(&r);
        }
    }
    cr_pool_close(p);
}

static void test_scope_of_one_and_of_equal_examples(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    struct cr_blend_options opt = {.solver = CR_SOLVE_KNN};
    struct cr_blend_result r;
    must(cr_blend_examples(model, p, &opt, rows[0], 1, &r, &err));
    assert_true(isnan(r.scope_mean) && isnan(r.scope_std) && isfinite(r.near_mean));
    cr_blend_result_deinit(&r);
    struct cr_example same[3] = {rows[0][0], rows[0][0], rows[0][0]};
    must(cr_blend_examples(model, p, &opt, same, 3, &r, &err));
    assert_true(fabsf(r.scope_mean - 1) < 1e-5F && r.scope_std < 1e-5F);
    cr_blend_result_deinit(&r);
    assert_int_equal(cr_blend_examples(model, p, &opt, rows[0], 0, &r, &err), CR_INVALID);
    cr_pool_close(p);
}

static void test_pick_takes_the_best_start(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    cr_scorer *s;
    must(cr_scorer_new(&s, model, NULL, rows[1], ROWS, &err));
    struct cr_blend_options opt = {.solver = CR_SOLVE_PICK};
    struct cr_blend_result r, start;
    must(cr_blend_examples(model, p, &opt, rows[1], ROWS, &r, &err));
    assert_true(fabs(loss_of(p, s, r.weights) - (double)r.loss_end) < 1e-5);
    static const enum cr_solver solvers[] = {CR_SOLVE_KNN, CR_SOLVE_MEAN, CR_SOLVE_NEAREST};
    for (int i = 0; i < 3; i++) {
        opt.solver = solvers[i];
        must(cr_blend_examples(model, p, &opt, rows[1], ROWS, &start, &err));
        double loss = loss_of(p, s, start.weights);
        assert_true((double)r.loss_end <= loss + 1e-6);
        if (i == 0)
            assert_true(fabs(loss - (double)r.loss_start) < 1e-5);
        cr_blend_result_deinit(&start);
    }
    cr_blend_result_deinit(&r);
    cr_scorer_free(s);
    cr_pool_close(p);
}

struct watch {
    int calls, stop_at;
    const char *last;
};

static bool watch(void *ud, const char *what, int done, int total)
{
    struct watch *w = ud;
    assert_true(done >= 0 && done <= total);
    w->last = what;
    return ++w->calls != w->stop_at;
}

static void test_refine_never_ends_worse(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        cr_pool *p = make_pool((enum cr_pool_kind)kind);
        cr_scorer *s;
        must(cr_scorer_new(&s, model, NULL, rows[2], ROWS, &err));
        struct cr_blend_options opt = {.solver = CR_SOLVE_REFINE, .max_evals = 12, .seed = 3};
        struct cr_blend_result r, again;
        must(cr_blend_examples(model, p, &opt, rows[2], ROWS, &r, &err));
        assert_true(r.loss_end <= r.loss_start);
        assert_int_equal(r.n_evals, 12);
        assert_true(fabs(loss_of(p, s, r.weights) - (double)r.loss_end) < 1e-5);
        for (int i = 0; i < r.n; i++)
            assert_true(isfinite(r.weights[i]) && (kind != CR_POOL_CENTROID || r.weights[i] >= 0));
        must(cr_blend_examples(model, p, &opt, rows[2], ROWS, &again, &err));
        assert_memory_equal(again.weights, r.weights, (size_t)r.n * sizeof(float)); /* seeded */
        print_message("kind %d: loss %.3f -> %.3f, %d accepted\n", kind, (double)r.loss_start,
                      (double)r.loss_end, r.n_accepted);
        cr_blend_result_deinit(&again);
        cr_blend_result_deinit(&r);
        cr_scorer_free(s);
        cr_pool_close(p);
    }
}

/* Wherever the caller stops, weights come back, the best so far. */
static void test_stopping(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    struct cr_blend_options opt = {.solver = CR_SOLVE_KNN};
    struct cr_blend_result knn, r;
    must(cr_blend_examples(model, p, &opt, rows[0], ROWS, &knn, &err));
    for (int at = 1; at < 40; at += 6) {
        struct watch w = {.stop_at = at};
        opt = (struct cr_blend_options){
            .solver = CR_SOLVE_REFINE, .max_evals = 8, .progress = watch, .ud = &w};
        must(cr_blend_examples(model, p, &opt, rows[0], ROWS, &r, &err));
        assert_int_equal(r.stopped, w.calls >= at);
        for (int i = 0; i < N; i++)
            assert_true(isfinite(r.weights[i]));
        if (at == 1) /* nothing was measured: the start that needs no labels */
            assert_memory_equal(r.weights, knn.weights, N * sizeof(float));
        cr_blend_result_deinit(&r);
    }
    cr_blend_result_deinit(&knn);
    cr_pool_close(p);
}

static void test_refusals(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    struct cr_blend_result r;
    struct cr_blend_options opt = {.solver = CR_SOLVE_REFINE, .max_evals = 41};
    assert_int_equal(cr_blend_examples(model, p, &opt, rows[0], ROWS, &r, &err), CR_INVALID);
    assert_null(r.weights);
    struct cr_example plain[2] = {{.question = "no answer", .answer_index = -1},
                                  {.question = "none either", .answer_index = -1}};
    opt.max_evals = 0;
    assert_int_equal(cr_blend_examples(model, p, &opt, plain, 2, &r, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "answers"));
    opt.solver = CR_SOLVE_SOFTMAX;
    assert_int_equal(cr_blend_examples(model, p, &opt, plain, 2, &r, &err), CR_INVALID);
    cr_pool_close(p);
    p = make_pool(CR_POOL_LORA); /* no index: applied whole, whatever is asked */
    opt.solver = CR_SOLVE_KNN;
    must(cr_blend_examples(model, p, &opt, plain, 2, &r, &err));
    assert_true(r.n == 1 && r.weights[0] == 1 && r.nearest == -1 && !r.q_c);
    cr_blend_result_deinit(&r);
    cr_pool_close(p);
}

static void test_rank_groups_of_a_lora(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LORA), *q;
    assert_int_equal(cr_pool_split_ranks(&q, p, RANK + 1, &err), CR_INVALID);
    must(cr_pool_split_ranks(&q, p, RANK, &err));
    assert_int_equal(q->n, RANK);
    float w[RANK], whole = 1;
    for (int i = 0; i < RANK; i++)
        w[i] = 1;
    cr_scorer *s;
    must(cr_scorer_new(&s, model, NULL, rows[0], ROWS, &err));
    assert_float_equal(loss_of(p, s, &whole), loss_of(q, s, w), 1e-5);
    w[0] = 0;
    assert_true(fabs(loss_of(p, s, &whole) - loss_of(q, s, w)) > 1e-4);
    cr_scorer_free(s);
    struct cr_blend_result r;
    struct cr_blend_options opt = {.solver = CR_SOLVE_REFINE, .seed = 3};
    must(cr_blend_examples(model, q, &opt, rows[0], ROWS, &r, &err));
    assert_true(r.n == RANK && r.loss_end <= r.loss_start);
    cr_blend_result_deinit(&r);
    cr_pool_close(q);
    cr_pool_close(p);
    p = make_pool(CR_POOL_LIBRARY);
    assert_int_equal(cr_pool_split_ranks(&q, p, 2, &err), CR_INVALID);
    cr_pool_close(p);
}

static void test_levels(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    struct cr_blend_options opt = {.seed = 9};
    cr_level_options(CR_LEVEL_INSTANT, p, &opt);
    assert_true(opt.solver == CR_SOLVE_KNN && opt.view == CR_VIEW_QX && opt.seed == 9);
    cr_level_options(CR_LEVEL_MEASURED, p, &opt);
    assert_true(opt.solver == CR_SOLVE_KNN && opt.view == CR_VIEW_MIDDLE);
    cr_level_options(CR_LEVEL_REFINED, p, &opt);
    assert_true(opt.solver == CR_SOLVE_REFINE && opt.view == CR_VIEW_MIDDLE);
    cr_pool_close(p);
    p = make_pool(CR_POOL_CENTROID);
    cr_level_options(CR_LEVEL_INSTANT, p, &opt);
    assert_int_equal(opt.solver, CR_SOLVE_SOFTMAX);
    cr_pool_close(p);
}

/* Blend -> palette file -> opened again: the same scores as the blend itself. */
static void test_palette_round_trip(void **state)
{
    (void)state;
    char dir[] = "/tmp/crayon-blend-XXXXXX", pool_path[100], path[100];
    assert_non_null(mkdtemp(dir));
    snprintf(pool_path, sizeof pool_path, "%s/p.gguf", dir);
    snprintf(path, sizeof path, "%s/mine.palette", dir);
    cr_pool *made = make_pool(CR_POOL_LIBRARY), *p, *again;
    char names[TASKS][16];
    for (int t = 0; t < TASKS; t++) {
        snprintf(names[t], sizeof names[t], "task%d", t);
        if (!made->index.names[t])
            made->index.names[t] = cr_strdup(names[t]);
        if (!made->index.about[t])
            made->index.about[t] = cr_strdup("about");
    }
    must(cr_pool_write(made, pool_path, CR_F16, &err));
    cr_pool_close(made);
    must(cr_pool_open(&p, model, pool_path, &err));
    struct cr_blend_options opt = {.solver = CR_SOLVE_KNN};
    struct cr_blend_result r;
    must(cr_blend_examples(model, p, &opt, rows[1], ROWS, &r, &err));
    struct cr_palette made_palette = {.name = "mine",
                                      .base_hash = (char *)(uintptr_t)cr_model_hash(model),
                                      .base_name = "tiny",
                                      .pool_hash = p->hash,
                                      .pool_path = pool_path,
                                      .n = r.n,
                                      .weights = r.weights,
                                      .solver = CR_SOLVE_KNN,
                                      .dim = cr_view_dim(model, CR_VIEW_QX),
                                      .q_c = r.q_c,
                                      .scope_mean = r.scope_mean,
                                      .n_examples = ROWS,
                                      .metric = "",
                                      .created = ""};
    must(cr_palette_write(&made_palette, path, &err));
    cr_palette *palette;
    must(cr_palette_open(&palette, model, path, &err));
    must(cr_pool_open(&again, model, cr_palette_pool_path(palette), &err));
    cr_delta *d;
    must(cr_palette_delta(&d, palette, again, &err));
    cr_scorer *s;
    const struct cr_example_score *sc;
    must(cr_scorer_new(&s, model, NULL, rows[1], ROWS, &err));
    must(cr_scorer_run(s, d, &sc, NULL, NULL, &err));
    double sum = 0;
    for (int i = 0; i < ROWS; i++)
        sum += (double)sc[i].loss / ROWS;
    assert_true(sum == loss_of(p, s, r.weights));
    double cosine = 0;
    for (int i = 0; i < palette->dim; i++)
        cosine += (double)palette->q_c[i] * (double)r.q_c[i];
    assert_true(fabs(cosine - 1) < 1e-3);
    cr_scorer_free(s);
    cr_delta_free(d);
    cr_pool_close(again);
    cr_palette_close(palette);
    cr_blend_result_deinit(&r);
    cr_pool_close(p);
    unlink(path);
    unlink(pool_path);
    rmdir(dir);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    cr_pool *p = make_pool(CR_POOL_LIBRARY);
    struct cr_blend_options opt = {.solver = CR_SOLVE_KNN};
    size_t before = cr_mem_now();
    int refused = 0;
    for (uint64_t i = 1; i < 1000; i += i < 20 ? 1 : 49) {
        struct cr_blend_result r;
        opt.solver = i < 20 ? CR_SOLVE_KNN : CR_SOLVE_PICK;
        cr_mem_fail_at(i, false);
        enum cr_status st = cr_blend_examples(model, p, &opt, rows[0], 2, &r, &err);
        cr_mem_fail_at(0, false);
        refused += st == CR_NO_MEMORY;
        assert_true(st == CR_OK || st == CR_NO_MEMORY);
        if (!st)
            cr_blend_result_deinit(&r);
        assert_int_equal(cr_mem_now(), before);
    }
    assert_true(refused > 15);
    cr_pool_close(p);
}

static int open_model(void **state)
{
    (void)state;
    struct cr_model_options opt = {.n_threads = 2};
    must(cr_model_open(&model, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &opt, &err));
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
        cmocka_unit_test(test_each_task_finds_its_entry),
        cmocka_unit_test(test_scope_of_one_and_of_equal_examples),
        cmocka_unit_test(test_pick_takes_the_best_start),
        cmocka_unit_test(test_refine_never_ends_worse),
        cmocka_unit_test(test_stopping),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_rank_groups_of_a_lora),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_palette_round_trip),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
