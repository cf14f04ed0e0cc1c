/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The low-rank part against its definition, written out: what it adds forward, in both forms; its
 * gradients are those of the definition; the start is seeded; the export has the pool's layout.
 */
#include "tiny_model.h"
#include "tune/lowrank.h"
#include "tune/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { N = 3, RANK = 2, ROWS = 10, GROUPS = 2, LAYER = 1 };
static const size_t begin[GROUPS + 1] = {0, 4, ROWS};
static const bool no_k[CR_LIN_COUNT] = {true, false, true, true, true, true, true};

struct job {
    struct tiny *t;
    struct cr_lowrank p;
    struct cr_groups g;
    float *params, *x, *y, *c, *scratch, a[GROUPS * N];
};

static void job_init(struct job *j, enum cr_pool_form form)
{
    const struct cr_stage_shape *st = &j->p.stage[CR_STAGE_QKV];
    memset(j, 0, sizeof *j);
    j->t = tiny_new(CR_ARCH_LLAMA, CR_F32);
    cr_lowrank_init(&j->p, &j->t->m, form, N, RANK, 3, no_k, GROUPS);
    fill_normal(j->a, GROUPS * N, 1, 1);
    j->g = (struct cr_groups){GROUPS, begin, j->a};
    j->params = new_normal(j->p.n_params, 0.5, 2);
    j->x = new_normal(ROWS * st->n_in, 1, 3);
    j->c = new_normal(ROWS * st->ld, 1, 4);
    j->y = cr_alloc0(ROWS * st->ld, sizeof(float));
    j->scratch = cr_alloc(cr_lowrank_scratch(&j->p, ROWS, GROUPS), sizeof(float));
}

static void job_deinit(struct job *j)
{
    float *all[] = {j->params, j->x, j->c, j->y, j->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cr_free(all[i]);
    tiny_free(j->t);
}

/* y_ext = [0, A x] and then the low-rank part. */
static void forward(struct job *j)
{
    const struct cr_stage_shape *st = &j->p.stage[CR_STAGE_QKV];
    memset(j->y, 0, ROWS * st->ld * sizeof(float));
    j->p.k->gemm_nt(ROWS, st->n_u, st->n_in, 1, j->x, st->n_in,
                    j->params + cr_lowrank_a(&j->p, LAYER, CR_STAGE_QKV), st->n_in, false,
                    j->y + st->n_out, st->ld);
    cr_lowrank_forward(&j->p, j->params, LAYER, CR_STAGE_QKV, &j->g, j->y, j->scratch);
}

/* s * sum_n a_n B_n (A_n x), output o of linear i for row t, from the pool's own layout. */
static double defined(const struct job *j, const cr_pool *pool, int i, size_t t, size_t o)
{
    const struct cr_stage_shape *st = &j->p.stage[CR_STAGE_QKV];
    const struct cr_pool_pair *pair = &pool->pairs[LAYER * CR_LIN_COUNT + (int)st->lin[i]];
    double sum = 0;
    for (size_t n = 0; n < N; n++) {
        for (size_t r = 0; r < RANK; r++) {
            const float *a =
                pair->a + ((j->p.form == CR_POOL_SHARED ? 0 : n * RANK) + r) * st->n_in;
            double u = 0;
            for (size_t k = 0; k < st->n_in; k++)
                u += (double)a[k] * j->x[t * st->n_in + k];
            sum += (double)j->a[(t < begin[1] ? 0 : N) + n] * u *
                   pair->b[(n * st->lin_out[i] + o) * RANK + r];
        }
    }
    return sum * 3 / RANK;
}

/* A pool with room for the tiny model's pairs, made by hand. */
static cr_pool *pool_new(const struct job *j)
{
    cr_pool *p = cr_alloc0(1, sizeof *p);
    p->n = N;
    p->rank = RANK;
    p->form = j->p.form;
    p->n_layers = TINY_LAYERS;
    p->pairs = cr_alloc0(TINY_LAYERS * CR_LIN_COUNT, sizeof *p->pairs);
    for (int i = 0; i < TINY_LAYERS * CR_LIN_COUNT; i++) {
        if (!no_k[i % CR_LIN_COUNT])
            continue;
        p->pairs[i].a = cr_alloc((size_t)N * RANK * TINY_FF, sizeof(float));
        p->pairs[i].b = cr_alloc((size_t)N * RANK * TINY_FF, sizeof(float));
    }
    return p;
}

static void pool_free(cr_pool *p)
{
    for (int i = 0; i < TINY_LAYERS * CR_LIN_COUNT; i++) {
        cr_free(p->pairs[i].a);
        cr_free(p->pairs[i].b);
    }
    cr_free(p->pairs);
    cr_free(p);
}

static void forward_is_the_definition(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        struct job j;
        job_init(&j, (enum cr_pool_form)form);
        const struct cr_stage_shape *st = &j.p.stage[CR_STAGE_QKV];
        cr_pool *pool = pool_new(&j);
        cr_lowrank_export(&j.p, j.params, pool);
        forward(&j);
        for (int i = 0; i < st->n_lins; i++) {
            for (size_t t = 0; t < ROWS; t++) {
                for (size_t o = 0; o < st->lin_out[i]; o++) {
                    double want = st->target[i] ? defined(&j, pool, i, t, o) : 0;
                    double got = j.y[t * st->ld + st->out_at[i] + o];
                    if (fabs(got - want) > 1e-4 * (1 + fabs(want)))
                        fail_msg("form %d linear %d: want %g, got %g", form, i, want, got);
                }
            }
        }
        pool_free(pool);
        job_deinit(&j);
    }
}

/* f = sum of c times the linears' outputs. */
static double value(void *ud)
{
    struct job *j = ud;
    const struct cr_stage_shape *st = &j->p.stage[CR_STAGE_QKV];
    double sum = 0;
    forward(j);
    for (size_t t = 0; t < ROWS; t++)
        for (size_t o = 0; o < st->n_out; o++)
            sum += (double)j->c[t * st->ld + o] * j->y[t * st->ld + o];
    return sum;
}

static void expect(const char *what, int form, double error)
{
    if (!(error < 2e-3))
        fail_msg("%s, form %d: relative error %g, bound 2e-3", what, form, error);
}

static void gradients(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        struct job j;
        float da[GROUPS * N] = {0};
        job_init(&j, (enum cr_pool_form)form);
        const struct cr_stage_shape *st = &j.p.stage[CR_STAGE_QKV];
        size_t a = cr_lowrank_a(&j.p, LAYER, CR_STAGE_QKV);
        float *grads = cr_alloc0(j.p.n_params, sizeof *grads);
        float *dx = cr_alloc0(ROWS * st->n_in, sizeof *dx);
        forward(&j);
        cr_lowrank_back(&j.p, j.params, LAYER, CR_STAGE_QKV, &j.g, j.c, j.y + st->n_out, st->ld, da,
                        j.scratch);
        cr_lowrank_back_a(&j.p, CR_STAGE_QKV, &j.g, j.c, j.x, st->n_in, j.scratch);
        cr_lowrank_add(&j.p, LAYER, CR_STAGE_QKV, &j.g, j.scratch, grads);
        j.p.k->gemm_nn(ROWS, st->n_in, st->n_u, 1, j.c + st->n_out, st->ld, j.params + a, st->n_in,
                       false, dx, st->n_in);
        expect("x", form, gradient_error(value, &j, j.x, dx, ROWS * st->n_in, 1e-2, 6));
        expect("A", form,
               gradient_error(value, &j, j.params + a, grads + a, st->n_u * st->n_in, 1e-2, 7));
        for (int i = 0; i < st->n_lins; i++) {
            size_t b = cr_lowrank_b(&j.p, LAYER, CR_STAGE_QKV, i);
            if (st->target[i])
                expect("B", form,
                       gradient_error(value, &j, j.params + b, grads + b, st->lin_out[i] * RANK * N,
                                      1e-2, 8));
        }
        expect("a", form, gradient_error(value, &j, j.a, da, GROUPS * N, 1e-2, 9));
        for (size_t i = 0; i < j.p.n_params; i++) /* nothing outside of this stage */
            if (i < a || i >= a + j.p.stage[CR_STAGE_O].a_at)
                assert_true(grads[i] == 0);
        cr_free(dx);
        cr_free(grads);
        job_deinit(&j);
    }
}

static void start(void **state)
{
    (void)state;
    struct job j;
    struct cr_rng rng;
    job_init(&j, CR_POOL_SHARED);
    float *again = cr_alloc(j.p.n_params, sizeof *again);
    for (int i = 0; i < 2; i++) {
        cr_rng_init(&rng, 42);
        cr_lowrank_start(&j.p, i ? again : j.params, &rng);
    }
    assert_memory_equal(again, j.params, j.p.n_params * sizeof *again);
    const struct cr_stage_shape *st = &j.p.stage[CR_STAGE_DOWN];
    const float *a = j.params + cr_lowrank_a(&j.p, 2, CR_STAGE_DOWN);
    float largest = 0;
    for (size_t i = 0; i < st->n_u * st->n_in; i++)
        largest = fabsf(a[i]) > largest ? fabsf(a[i]) : largest;
    assert_true(largest <= 0.125f && largest > 0.11f); /* 1 / sqrt(64) */
    const float *b = j.params + cr_lowrank_b(&j.p, 2, CR_STAGE_DOWN, 0);
    for (size_t i = 0; i < st->n_out * RANK * N; i++)
        assert_true(b[i] == 0);
    cr_free(again);
    job_deinit(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_the_definition),
        cmocka_unit_test(gradients),
        cmocka_unit_test(start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
