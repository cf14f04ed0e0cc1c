/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both forms of a pool as matrix products: thin ones by kernels of their own, which read each
 * matrix once. The scratch of a stage: B_eff or scaled u of one linear
 * first, then dB of each linear, then dA; _back fills it, _add empties it into the gradients. So
 * all that is costly happens before the workers have to queue for the common gradients.
 */
#include "tune/lowrank.h"

#include "tune/ops.h"

#include <math.h>
#include <string.h>

static const struct {
    int n;
    enum cr_linear lin[3];
} stage_lins[CR_STAGE_COUNT] = {
    {3, {CR_LIN_Q, CR_LIN_K, CR_LIN_V}},
    {1, {CR_LIN_O}},
    {2, {CR_LIN_GATE, CR_LIN_UP}},
    {1, {CR_LIN_DOWN}},
};

void cr_lowrank_init(struct cr_lowrank *p, const cr_model *m, enum cr_pool_form form, int n,
                     int rank, float alpha, const bool target[CR_LIN_COUNT], size_t n_weight_rows)
{
    memset(p, 0, sizeof *p);
    p->k = cr_train_kernels_get(m->k->level);
    p->form = form;
    p->n = n;
    p->rank = rank;
    p->n_layers = m->n_layers;
    p->scale = alpha / (float)rank;
    p->r = form == CR_POOL_SHARED ? (size_t)rank : (size_t)rank * (size_t)n;
    size_t at = 0;
    for (int s = 0; s < CR_STAGE_COUNT; s++) {
        struct cr_stage_shape *st = &p->stage[s];
        st->n_lins = stage_lins[s].n;
        for (int i = 0; i < st->n_lins; i++) {
            st->lin[i] = stage_lins[s].lin[i];
            const struct cr_matrix *w = cr_model_linear(m, 0, st->lin[i]);
            st->n_in = (size_t)w->n_in;
            st->lin_out[i] = (size_t)w->n_out;
            st->out_at[i] = st->n_out;
            st->n_out += st->lin_out[i];
            st->target[i] = target[st->lin[i]];
        }
        for (int i = 0; i < st->n_lins; i++) {
            st->u_at[i] = st->n_out + st->n_u;
            st->n_u += st->target[i] ? p->r : 0;
        }
        st->ld = st->n_out + st->n_u;
        st->a_at = at;
        at += st->n_u * st->n_in;
        for (int i = 0; i < st->n_lins; i++) {
            st->b_at[i] = at;
            at += st->target[i] ? (size_t)n * (size_t)rank * st->lin_out[i] : 0;
        }
    }
    p->layer_size = at;
    p->n_adapter = p->weights_at = at * (size_t)p->n_layers;
    p->n_weight_rows = n_weight_rows;
    p->learn_weights = n_weight_rows > 0;
    p->n_params = p->n_adapter + n_weight_rows * (size_t)n;
}

void cr_lowrank_start(const struct cr_lowrank *p, float *params, struct cr_rng *rng)
{
    memset(params, 0, p->n_adapter * sizeof *params);
    for (int layer = 0; layer < p->n_layers; layer++) {
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &p->stage[s];
            float *a = params + cr_lowrank_a(p, layer, (enum cr_stage)s);
            double bound = 1 / sqrt((double)st->n_in);
            for (size_t i = 0; i < st->n_u * st->n_in; i++)
                a[i] = (float)((2 * cr_rng_double(rng) - 1) * bound);
        }
    }
    double n = p->n;
    for (size_t i = p->weights_at; i < p->n_params; i++)
        params[i] = (float)(1 / n + 0.5 * cr_rng_normal(rng) / sqrt(n));
}

/* ---- scratch: [first][dB of each linear][dA] ---- */

/* Floats of dB of one linear: SHARED one B_eff per group, SEPARATE all N. */
static size_t db_floats(const struct cr_lowrank *p, const struct cr_stage_shape *st, int i,
                        size_t n_groups)
{
    return !st->target[i] ? 0 : st->lin_out[i] * p->r * (p->form == CR_POOL_SHARED ? n_groups : 1);
}

static size_t first_floats(const struct cr_lowrank *p, const struct cr_stage_shape *st,
                           size_t n_tokens, size_t n_groups)
{
    size_t most = 0;
    if (p->form == CR_POOL_SEPARATE)
        return n_tokens * p->r;
    for (int i = 0; i < st->n_lins; i++) {
        size_t n = db_floats(p, st, i, n_groups);
        most = n > most ? n : most;
    }
    return most;
}

size_t cr_lowrank_scratch(const struct cr_lowrank *p, size_t n_tokens, size_t n_groups)
{
    size_t most = 0;
    for (int s = 0; s < CR_STAGE_COUNT; s++) {
        const struct cr_stage_shape *st = &p->stage[s];
        size_t n = first_floats(p, st, n_tokens, n_groups) + st->n_u * st->n_in;
        for (int i = 0; i < st->n_lins; i++)
            n += db_floats(p, st, i, n_groups);
        most = n > most ? n : most;
    }
    return most;
}

/* Start of dB of linear i; i = n_lins: of dA. */
static size_t db_at(const struct cr_lowrank *p, const struct cr_stage_shape *st,
                    const struct cr_groups *g, int i)
{
    size_t at = first_floats(p, st, g->begin[g->n], g->n);
    for (int j = 0; j < i; j++)
        at += db_floats(p, st, j, g->n);
    return at;
}

/* ---- products with a thin factor ---- */

enum { THIN = 32 }; /* widest rank for which the thin kernels win */

/* y [rows, n] += u [rows, r] b [r, n] */
static void out(const struct cr_lowrank *p, float *y, size_t ldy, const float *u, size_t ldu,
                const float *b, size_t rows, size_t r, size_t n)
{
    if (r <= THIN)
        p->k->thin_out(y, ldy, u, ldu, b, n, rows, r, n);
    else
        p->k->gemm_nn(rows, n, r, 1, u, ldu, b, n, true, y, ldy);
}

/* u [rows, r] = y [rows, n] b^T */
static void in(const struct cr_lowrank *p, float *u, size_t ldu, const float *y, size_t ldy,
               const float *b, size_t rows, size_t r, size_t n)
{
    if (r <= THIN)
        p->k->thin_in(u, ldu, y, ldy, b, n, rows, r, n);
    else
        p->k->gemm_nt(rows, r, n, 1, y, ldy, b, n, false, u, ldu);
}

/* c [r, n] = u^T y */
static void outer(const struct cr_lowrank *p, float *c, const float *u, size_t ldu, const float *y,
                  size_t ldy, size_t rows, size_t r, size_t n)
{
    if (r <= THIN)
        p->k->thin_outer(c, n, u, ldu, y, ldy, rows, r, n);
    else
        p->k->gemm_tn(r, n, rows, 1, u, ldu, y, ldy, false, c, n);
}

/* B_eff^T [groups, r, n_out] = s a B^T. */
static const float *mixed_b(const struct cr_lowrank *p, const struct cr_groups *g, const float *b,
                            size_t size, float *to)
{
    p->k->gemm_nn(g->n, size, (size_t)p->n, p->scale, g->a, (size_t)p->n, b, size, false, to, size);
    return to;
}

/* to [rows, N r] = s a_n u, each group with its own a. */
static void scale_u(const struct cr_lowrank *p, const struct cr_groups *g, const float *u,
                    size_t ldu, float *to)
{
    size_t rank = (size_t)p->rank;
    for (size_t group = 0; group < g->n; group++) {
        const float *a = g->a + group * (size_t)p->n;
        for (size_t t = g->begin[group]; t < g->begin[group + 1]; t++) {
            for (size_t i = 0; i < p->r; i++)
                to[t * p->r + i] = p->scale * a[i / rank] * u[t * ldu + i];
        }
    }
}

void cr_lowrank_forward(const struct cr_lowrank *p, const float *params, int layer,
                        enum cr_stage stage, const struct cr_groups *g, float *y_ext,
                        float *scratch)
{
    const struct cr_stage_shape *st = &p->stage[stage];
    size_t rows = g->begin[g->n], r = p->r;
    for (int i = 0; i < st->n_lins; i++) {
        if (!st->target[i])
            continue;
        const float *b = params + cr_lowrank_b(p, layer, stage, i), *u = y_ext + st->u_at[i];
        float *y = y_ext + st->out_at[i];
        size_t n_out = st->lin_out[i], size = n_out * r;
        if (p->form == CR_POOL_SEPARATE) {
            scale_u(p, g, u, st->ld, scratch);
            out(p, y, st->ld, scratch, r, b, rows, r, n_out);
            continue;
        }
        const float *mixed = mixed_b(p, g, b, size, scratch);
        for (size_t k = 0; k < g->n; k++)
            out(p, y + g->begin[k] * st->ld, st->ld, u + g->begin[k] * st->ld, st->ld,
                mixed + k * size, g->begin[k + 1] - g->begin[k], r, n_out);
    }
}

/* du = B_eff^T dy; dB_eff^T = u^T dy per group; da_n += s <dB_eff, B_n>. */
static void back_shared(const struct cr_lowrank *p, const struct cr_stage_shape *st, int i,
                        const struct cr_groups *g, const float *b, float *dy_ext, const float *u,
                        size_t ldu, float *da, float *scratch, float *db)
{
    size_t n_out = st->lin_out[i], r = p->r, size = n_out * r, n = (size_t)p->n;
    const float *mixed = mixed_b(p, g, b, size, scratch);
    for (size_t k = 0; k < g->n; k++) {
        size_t at = g->begin[k], rows = g->begin[k + 1] - at;
        const float *dy = dy_ext + at * st->ld + st->out_at[i];
        in(p, dy_ext + at * st->ld + st->u_at[i], st->ld, dy, st->ld, mixed + k * size, rows, r,
           n_out);
        outer(p, db + k * size, u + at * ldu, ldu, dy, st->ld, rows, r, n_out);
    }
    if (p->learn_weights)
        p->k->gemm_nt(g->n, n, size, p->scale, db, size, b, size, true, da, n);
}

/* With v = s a u: dv = dy B, dB^T = v^T dy, da_n += s <dv_n, u_n>, du = s a dv. */
static void back_separate(const struct cr_lowrank *p, const struct cr_stage_shape *st, int i,
                          const struct cr_groups *g, const float *b, float *dy_ext, const float *u,
                          size_t ldu, float *da, float *scratch, float *db)
{
    size_t n_out = st->lin_out[i], r = p->r, rank = (size_t)p->rank, rows = g->begin[g->n];
    const float *dy = dy_ext + st->out_at[i];
    float *du = dy_ext + st->u_at[i];
    scale_u(p, g, u, ldu, scratch);
    outer(p, db, scratch, r, dy, st->ld, rows, r, n_out);
    in(p, du, st->ld, dy, st->ld, b, rows, r, n_out);
    for (size_t k = 0; k < g->n; k++) {
        const float *a = g->a + k * (size_t)p->n;
        for (size_t t = g->begin[k]; t < g->begin[k + 1]; t++) {
            for (size_t j = 0; j < r; j++) {
                if (p->learn_weights)
                    da[k * (size_t)p->n + j / rank] +=
                        p->scale * du[t * st->ld + j] * u[t * ldu + j];
                du[t * st->ld + j] *= p->scale * a[j / rank];
            }
        }
    }
}

void cr_lowrank_back(const struct cr_lowrank *p, const float *params, int layer,
                     enum cr_stage stage, const struct cr_groups *g, float *dy_ext, const float *u,
                     size_t ldu, float *da, float *scratch)
{
    const struct cr_stage_shape *st = &p->stage[stage];
    for (int i = 0; i < st->n_lins; i++) {
        if (!st->target[i])
            continue;
        const float *b = params + cr_lowrank_b(p, layer, stage, i);
        const float *u_i = u + (st->u_at[i] - st->n_out);
        float *db = scratch + db_at(p, st, g, i);
        if (p->form == CR_POOL_SHARED)
            back_shared(p, st, i, g, b, dy_ext, u_i, ldu, da, scratch, db);
        else
            back_separate(p, st, i, g, b, dy_ext, u_i, ldu, da, scratch, db);
    }
}

void cr_lowrank_back_a(const struct cr_lowrank *p, enum cr_stage stage, const struct cr_groups *g,
                       const float *dy_ext, const float *x, size_t ldx, float *scratch)
{
    const struct cr_stage_shape *st = &p->stage[stage];
    outer(p, scratch + db_at(p, st, g, st->n_lins), dy_ext + st->n_out, st->ld, x, ldx,
          g->begin[g->n], st->n_u, st->n_in);
}

void cr_lowrank_add(const struct cr_lowrank *p, int layer, enum cr_stage stage,
                    const struct cr_groups *g, const float *scratch, float *grads)
{
    const struct cr_stage_shape *st = &p->stage[stage];
    float *to = grads + cr_lowrank_a(p, layer, stage);
    const float *da = scratch + db_at(p, st, g, st->n_lins);
    for (size_t i = 0; i < st->n_u * st->n_in; i++)
        to[i] += da[i];
    for (int i = 0; i < st->n_lins; i++) {
        const float *db = scratch + db_at(p, st, g, i);
        size_t size = st->lin_out[i] * p->r;
        to = grads + cr_lowrank_b(p, layer, stage, i);
        if (!st->target[i])
            continue;
        if (p->form == CR_POOL_SHARED) { /* dB_n += s sum_groups a_n dB_eff */
            p->k->gemm_tn((size_t)p->n, size, g->n, p->scale, g->a, (size_t)p->n, db, size, true,
                          to, size);
            continue;
        }
        for (size_t k = 0; k < size; k++)
            to[k] += db[k];
    }
}

/* to [n_out, r] = from^T [r, n_out] */
static void transpose(float *to, const float *from, size_t rank, size_t n_out)
{
    for (size_t o = 0; o < n_out; o++)
        for (size_t j = 0; j < rank; j++)
            to[o * rank + j] = from[j * n_out + o];
}

enum cr_status cr_lowrank_import(const struct cr_lowrank *p, const cr_delta *d, float *params,
                                 struct cr_error *err)
{
    size_t rank = (size_t)p->rank;
    for (int layer = 0; layer < p->n_layers; layer++) {
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &p->stage[s];
            float *a = params + cr_lowrank_a(p, layer, (enum cr_stage)s);
            for (int i = 0; i < st->n_lins; i++) {
                const struct cr_low_rank *from =
                    d->pairs ? &d->pairs[layer * CR_LIN_COUNT + (int)st->lin[i]] : NULL;
                bool there = from && from->rank > 0;
                if (p->n != 1 || there != st->target[i] || (there && from->rank != p->rank))
                    return cr_error_set(err, CR_INVALID,
                                        "training: layer %d, %s: the start has rank %d, the "
                                        "adapter %d",
                                        layer, cr_linear_names[st->lin[i]], there ? from->rank : 0,
                                        st->target[i] ? p->rank : 0);
                if (!there)
                    continue;
                memcpy(a + (st->u_at[i] - st->n_out) * st->n_in, from->a,
                       rank * st->n_in * sizeof(float));
                float *b = params + cr_lowrank_b(p, layer, (enum cr_stage)s, i);
                transpose(b, from->b, st->lin_out[i], rank);
                for (size_t k = 0; k < rank * st->lin_out[i]; k++)
                    b[k] /= p->scale; /* a delta has all scales folded into B */
            }
        }
    }
    return CR_OK;
}

void cr_lowrank_export(const struct cr_lowrank *p, const float *params, cr_pool *pool)
{
    size_t rank = (size_t)p->rank;
    for (int layer = 0; layer < p->n_layers; layer++) {
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &p->stage[s];
            const float *a = params + cr_lowrank_a(p, layer, (enum cr_stage)s);
            for (int i = 0; i < st->n_lins; i++) {
                struct cr_pool_pair *to = &pool->pairs[layer * CR_LIN_COUNT + (int)st->lin[i]];
                const float *b = params + cr_lowrank_b(p, layer, (enum cr_stage)s, i);
                size_t one = rank * st->lin_out[i];
                if (!st->target[i])
                    continue;
                memcpy(to->a, a + (st->u_at[i] - st->n_out) * st->n_in,
                       p->r * st->n_in * sizeof(float));
                for (size_t n = 0; n < (size_t)p->n; n++)
                    transpose(to->b + n * one, b + n * one, rank, st->lin_out[i]);
            }
        }
    }
}
