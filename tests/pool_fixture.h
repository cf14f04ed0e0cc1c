/* SPDX-License-Identifier: Apache-2.0 */
/* A random pool over the tiny model, for the tests of pools. Include after lora_fixture.h. */
#ifndef CR_TEST_POOL_FIXTURE_H
#define CR_TEST_POOL_FIXTURE_H

#include "adapt/pool.h"
#include "lora_fixture.h"

static inline void fx_unit_rows(float *x, int rows, int cols, struct cr_rng *rng)
{
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int i = 0; i < cols; i++) {
            x[r * cols + i] = (float)cr_rng_normal(rng);
            sum += x[r * cols + i] * x[r * cols + i];
        }
        for (int i = 0; i < cols; i++)
            x[r * cols + i] /= (float)sqrt(sum);
    }
}

/* n adapters of a rank on every linear but gate; values are float16 values, so that both file types
 * keep them. The index has n + 1 tasks (n for a centroid pool). */
static inline cr_pool *fx_random_pool(cr_model *m, enum cr_pool_form form, enum cr_pool_kind kind,
                                      int n, int rank, uint64_t seed)
{
    static const bool target[CR_LIN_COUNT] = {true, true, true, true, false, true, true};
    cr_pool *p;
    struct cr_error err;
    struct cr_rng rng;
    cr_rng_init(&rng, seed);
    if (cr_pool_new(&p, m, form, kind, n, rank, 1.5f * (float)rank, target, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = &m->layers[0].lin[i % CR_LIN_COUNT];
        int sets = form == CR_POOL_SEPARATE ? n : 1;
        if (!p->pairs[i].a)
            continue;
        for (int k = 0; k < sets * rank * w->n_in; k++)
            p->pairs[i].a[k] = cr_f16_to_f32(cr_f32_to_f16(0.1f * (float)cr_rng_normal(&rng)));
        for (int k = 0; k < n * rank * w->n_out; k++)
            p->pairs[i].b[k] = cr_f16_to_f32(cr_f32_to_f16(0.1f * (float)cr_rng_normal(&rng)));
    }
    int t = kind == CR_POOL_CENTROID ? n : n + 1;
    assert_int_equal(cr_pool_index_alloc(p, t, &err), CR_OK);
    struct cr_pool_index *x = &p->index;
    for (int i = 0; i < t; i++) {
        x->names[i] = cr_asprintf("task %d", i);
        x->about[i] = cr_asprintf("about task %d", i);
        x->rows[i] = (uint32_t)(100 + i);
        for (int k = 0; k < n; k++)
            x->weights[i * n + k] =
                kind == CR_POOL_CENTROID ? (float)(i == k) : (float)cr_rng_normal(&rng);
    }
    fx_unit_rows(x->qx_proto, t, m->q_dim, &rng);
    fx_unit_rows(x->mid_proto, t, m->n_embd, &rng);
    for (int i = 0; i < m->n_embd; i++)
        x->mid_std[i] = 0.5f + (float)cr_rng_double(&rng);
    x->tau_qx = 0.1f;
    x->tau_middle = 0.2f;
    return p;
}

static inline cr_pool *fx_open_pool(cr_model *m, const char *path)
{
    cr_pool *p;
    struct cr_error err;
    if (cr_pool_open(&p, m, path, &err))
        fail_msg("%s", err.msg);
    return p;
}

static inline cr_delta *fx_blend(const cr_pool *p, const float *weights)
{
    cr_delta *d;
    struct cr_error err;
    if (cr_pool_blend(&d, p, weights, &err))
        fail_msg("%s", err.msg);
    return d;
}

#endif
