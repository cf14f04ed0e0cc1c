/* SPDX-License-Identifier: Apache-2.0 */
/* route/scope.c with real embeddings of the 15M model, in both views. */
#include "base/mem.h"
#include "route/signals.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static cr_model *model;
static cr_pool *pool;
static struct cr_error err;

static struct cr_example example(const char *text)
{
    return (struct cr_example){.task = (char *)"", .question = (char *)text, .answer_index = -1};
}

/* A pool whose index has two entries, each the embedding of one text, and nothing else. */
static int make(void **state)
{
    (void)state;
    bool target[CR_LIN_COUNT] = {true};
    struct cr_example e[2] = {example("play some jazz on spotify"),
                              example("what is the capital of France?")};
    if (cr_model_open(&model, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", NULL, &err) ||
        cr_pool_new(&pool, model, CR_POOL_SHARED, CR_POOL_LIBRARY, 2, 1, 1, target, &err) ||
        cr_pool_index_alloc(pool, 2, &err))
        return -1;
    int dim = cr_view_dim(model, CR_VIEW_MIDDLE);
    for (int i = 0; i < dim; i++)
        pool->index.mid_std[i] = 1;
    for (int view = 0; view < 2; view++) {
        float *proto = view == CR_VIEW_QX ? pool->index.qx_proto : pool->index.mid_proto;
        int n = cr_view_dim(model, (enum cr_view)view);
        float *v = cr_alloc(2 * (size_t)n, sizeof *v);
        if (!v || cr_embed_examples(model, (enum cr_view)view, e, 2, v, &err))
            return -1;
        for (int i = 0; i < 2; i++)
            cr_pool_normalise(pool, (enum cr_view)view, v + i * n, proto + i * n);
        cr_free(v);
    }
    return 0;
}

static int clean(void **state)
{
    (void)state;
    cr_pool_close(pool);
    cr_model_close(model);
    return 0;
}

static struct cr_palette palette_of(enum cr_view view)
{
    return (struct cr_palette){.name = (char *)"jazz",
                               .view = view,
                               .dim = cr_view_dim(model, view),
                               .q_c = view == CR_VIEW_QX ? pool->index.qx_proto
                                                         : pool->index.mid_proto,
                               .scope_mean = 0.9f,
                               .scope_std = 0.1f,
                               .near_mean = 0.8f,
                               .near_std = 0.2f};
}

static void test_scope_of_a_question(void **state)
{
    (void)state;
    for (int view = 0; view < 2; view++) {
        struct cr_palette p = palette_of((enum cr_view)view);
        struct cr_example own = example("play some jazz on spotify"),
                          near = example("play a rock song on spotify"),
                          other = example("what is the capital of France?");
        struct cr_signals a, b, c;
        cr_signals_init(&a);
        cr_signals_init(&b);
        cr_signals_init(&c);
        assert_int_equal(cr_signals_scope(&a, model, &p, pool, &own, &err), CR_OK);
        assert_int_equal(cr_signals_scope(&b, model, &p, pool, &near, &err), CR_OK);
        assert_int_equal(cr_signals_scope(&c, model, &p, pool, &other, &err), CR_OK);
        assert_true(fabs((double)a.scope - 1) < 1e-3 && fabs((double)a.near - 1) < 1e-3);
        assert_true(fabs((double)c.near - 1) < 1e-3 && c.scope < b.scope);
        assert_true(a.demand_scope < b.demand_scope && b.demand_scope < c.demand_scope);
        /* formulas of the header */
        assert_true(fabs((double)(b.scope_z - (0.9f - b.scope) / 0.1f)) < 1e-4);
        assert_true(fabs((double)(b.near_z - (0.8f - b.near) / 0.2f)) < 1e-4);
        assert_true(fabs((double)(b.demand_scope - b.scope_z - (b.near - 0.8f) / 0.2f)) < 1e-4);
        p.scope_mean = p.scope_std = NAN; /* a palette of one example */
        assert_int_equal(cr_signals_scope(&b, model, &p, pool, &near, &err), CR_OK);
        assert_true(b.demand_scope == b.near_z);
    }
}

static void test_what_is_missing(void **state)
{
    (void)state;
    struct cr_palette p = palette_of(CR_VIEW_QX);
    struct cr_example e = example("x");
    struct cr_signals s;
    cr_signals_init(&s);
    assert_int_equal(cr_signals_scope(&s, model, &p, NULL, &e, &err), CR_OK);
    assert_true(isnan(s.scope) && isnan(s.demand_scope));
    p.dim++;
    assert_int_equal(cr_signals_scope(&s, model, &p, pool, &e, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "jazz"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scope_of_a_question),
        cmocka_unit_test(test_what_is_missing),
    };
    return cmocka_run_group_tests(tests, make, clean);
}
