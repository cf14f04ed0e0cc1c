/* SPDX-License-Identifier: Apache-2.0 */
/* How far a question lies from a palette's task, by its embedding; formulas in signals.h. */
#include "base/mem.h"
#include "route/signals.h"

#include <math.h>

/* A handful of examples can agree so well that their deviation means nothing. */
static const float min_std = 0.02f;

static float dot(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

static float at_least(float std)
{
    return std > min_std ? std : min_std;
}

static float deviations(float value, float mean, float std)
{
    return (mean - value) / at_least(std);
}

/* Far from the task, and the more so when another entry of the index is near: the half was chosen
 * on the 15M model, docs/routing.md has the numbers. One example has no leave-one-out mean. */
static float demand(const struct cr_signals *s, const struct cr_palette *p)
{
    if (isnan(s->scope_z))
        return s->near_z;
    if (isnan(s->near) || isnan(p->near_mean))
        return s->scope_z;
    return s->scope_z + 0.5f * (s->near - p->near_mean) / at_least(p->scope_std);
}

enum cr_status cr_signals_scope_vector(struct cr_signals *s, const cr_palette *p,
                                       const cr_pool *pool, const float *v, struct cr_error *err)
{
    if (!pool)
        return CR_OK;
    int dim = cr_view_dim(pool->model, p->view);
    const float *proto = p->view == CR_VIEW_QX ? pool->index.qx_proto : pool->index.mid_proto;
    if (p->q_c && p->dim != dim)
        return cr_error_set(err, CR_INVALID,
                            "palette %s: its task embedding has %d numbers, the model's view %d",
                            p->name, p->dim, dim);
    float *unit = cr_alloc((size_t)dim, sizeof *unit);
    if (!unit)
        return cr_error_set(err, CR_NO_MEMORY, "signals: out of memory");
    cr_pool_normalise(pool, p->view, v, unit);
    if (proto && pool->index.n_entries > 0) {
        s->near = -1;
        for (int t = 0; t < pool->index.n_entries; t++) {
            float c = dot(unit, proto + (size_t)t * (size_t)dim, dim);
            s->near = c > s->near ? c : s->near;
        }
        s->near_z = deviations(s->near, p->near_mean, p->near_std);
    }
    if (p->q_c) {
        s->scope = dot(unit, p->q_c, dim);
        s->scope_z = deviations(s->scope, p->scope_mean, p->scope_std);
    }
    s->demand_scope = demand(s, p);
    cr_free(unit);
    return CR_OK;
}

enum cr_status cr_signals_scope(struct cr_signals *s, cr_model *m, const cr_palette *p,
                                const cr_pool *pool, const struct cr_example *e,
                                struct cr_error *err)
{
    int dim = cr_view_dim(m, p->view);
    float *v = cr_alloc((size_t)dim, sizeof *v);
    if (!v)
        return cr_error_set(err, CR_NO_MEMORY, "signals: out of memory");
    enum cr_status st = cr_embed_examples(m, p->view, e, 1, v, err);
    if (st == CR_OK)
        st = cr_signals_scope_vector(s, p, pool, v, err);
    cr_free(v);
    return st;
}
