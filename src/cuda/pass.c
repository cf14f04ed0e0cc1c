/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forward and backward of a packed batch on the GPU, as tune/backward.c has
 * them: the order and the names are the same. Differences: all rows of a layer
 * run at once; behind the last layer's attention the wanted rows are gathered;
 * the low-rank part of a linear is one product with v = s a_n u, K = N r wide,
 * whatever the form of the pool, but for SHARED pools of rank 8, which have
 * kernels of their own (thin.cu).
 */
#include "cuda/gpu.h"

static int n_scaled(const struct cr_stage_shape *st)
{
    int n = 0;
    for (int i = 0; i < st->n_lins; i++)
        n += st->target[i];
    return n;
}

struct rows { /* of a part of a layer */
    int n;
    const int *group;
    const struct cr_chunk *chunks;
    int n_chunks;
    const void *weights; /* of the chunks, on the thin path */
    float *da;
};

static bool is_last(const struct cr_gpu *g, int layer)
{
    return layer + 1 == g->m->n_layers;
}

static struct rows all_rows(const struct cr_gpu *g, const struct cr_gpu_batch *b)
{
    return (struct rows){b->n_tokens, b->group, b->chunks, b->n_chunks, g->chunk_weights[0], g->da};
}

/* Rows behind the attention of a layer. */
static struct rows rows_of(const struct cr_gpu *g, const struct cr_gpu_batch *b, int layer)
{
    if (!is_last(g, layer))
        return all_rows(g, b);
    return (struct rows){b->n_rows,       b->row_group,        b->row_chunks,
                         b->n_row_chunks, g->chunk_weights[1], g->da_rows};
}

static struct cr_scale scale_of(const struct cr_gpu *g, const struct cr_gpu_batch *b,
                                const struct cr_stage_shape *st)
{
    return (struct cr_scale){
        .n = g->p->n,
        .rank = g->p->rank,
        .shared = g->p->form == CR_POOL_SHARED,
        .s = g->p->scale,
        .a = b->a,
        .n_lins = n_scaled(st),
        .u_step = (int)g->p->r,
        .ldv = g->ldv,
        .v_step = g->shape.n_tokens * (size_t)g->ldv,
    };
}

static const float *norm_of(const struct cr_gpu *g, int layer, int which)
{
    return g->norms + (size_t)(2 * layer + which) * (size_t)g->m->n_embd;
}

/* ---- a stage, there and back ---- */

/* y [rows, ldy] = x W_ext^T and the low-rank part; u is kept in keep unless
 * NULL. */
static void stage_forward(struct cr_gpu *g, const struct cr_gpu_batch *b, int layer,
                          enum cr_stage stage, const struct rows *r, const uint16_t *x, uint16_t *y,
                          int ldy, uint16_t *keep)
{
    const struct cr_stage_shape *st = &g->p->stage[stage];
    const struct cr_scale sc = scale_of(g, b, st);
    size_t k = (size_t)sc.n * (size_t)sc.rank;
    cr_gpu_nt(g, (size_t)r->n, g->low ? st->ld : st->n_out, st->n_in, x, (int)st->n_in,
              g->w[layer][stage], (int)st->n_in, y, ldy);
    if (!g->low || g->thin)
        return;
    cr_k_scale(g->stream, &sc, r->group, g->v, y + st->n_out, ldy, keep, (int)st->n_u, r->n);
    for (int i = 0, at = 0; i < st->n_lins; i++)
        if (st->target[i])
            cr_gpu_nn(g, (size_t)r->n, st->lin_out[i], k, g->v + (size_t)at++ * sc.v_step, g->ldv,
                      g->copy + cr_lowrank_b(g->p, layer, stage, i), (int)st->lin_out[i],
                      y + st->out_at[i], ldy, true);
}

/* From dy [rows, lddy]: du behind it, gradients of B and a, then dx [rows,
 * n_in] unless NULL. */
static void stage_back(struct cr_gpu *g, const struct cr_gpu_batch *b, int layer,
                       enum cr_stage stage, const struct rows *r, uint16_t *dy, int lddy,
                       const uint16_t *u, int ldu, uint16_t *dx, bool first)
{
    const struct cr_stage_shape *st = &g->p->stage[stage];
    const struct cr_scale sc = scale_of(g, b, st);
    size_t k = (size_t)sc.n * (size_t)sc.rank, rows = (size_t)r->n;
    if (g->thin && stage != CR_STAGE_GATE_UP) /* else with SwiGLU */
        cr_k_thin_back(g->stream, &g->thin_layer, &g->thin_stage[stage], r->chunks, r->n_chunks,
                       g->beff, dy, lddy, u, ldu, g->part);
    for (int i = 0, at = 0; i < st->n_lins && !g->thin; i++)
        if (st->target[i])
            cr_gpu_nt(g, rows, k, st->lin_out[i], dy + st->out_at[i], lddy,
                      g->copy + cr_lowrank_b(g->p, layer, stage, i), (int)st->lin_out[i],
                      g->dv + (size_t)at++ * sc.v_step, g->ldv);
    if (!g->thin)
        cr_k_scale_back(g->stream, &sc, r->chunks, r->n_chunks, g->v, g->dv, u, ldu, dy + st->n_out,
                        lddy, g->p->learn_weights ? r->da : NULL);
    for (int i = 0, at = 0; i < st->n_lins && !g->thin; i++)
        if (st->target[i])
            cr_gpu_tn_float(g, k, st->lin_out[i], rows, g->v + (size_t)at++ * sc.v_step, g->ldv,
                            dy + st->out_at[i], lddy,
                            g->grads + cr_lowrank_b(g->p, layer, stage, i), (int)st->lin_out[i],
                            !first);
    if (dx)
        cr_gpu_nn(g, rows, st->n_in, st->ld, dy, lddy, g->w[layer][stage], (int)st->n_in, dx,
                  (int)st->n_in, false);
}

/* Gradient of A, once the stage's input x is there; on the thin path thin_finish adds it up. */
static void stage_add(struct cr_gpu *g, int layer, enum cr_stage stage, const struct rows *r,
                      const uint16_t *dy, int lddy, const uint16_t *x, bool first)
{
    const struct cr_stage_shape *st = &g->p->stage[stage];
    if (g->thin) {
        cr_k_thin_grad_a(g->stream, g->slabs + g->slab_at[stage], g->slab_at[CR_STAGE_COUNT],
                         dy + st->n_out, lddy, (int)st->n_u, x, (int)st->n_in, r->n);
        return;
    }
    cr_gpu_tn_float(g, st->n_u, st->n_in, (size_t)r->n, dy + st->n_out, lddy, x, (int)st->n_in,
                    g->grads + cr_lowrank_a(g->p, layer, stage), (int)st->n_in, !first);
}

/* ---- the layer, there and back ---- */

static struct cr_flash flash_of(const struct cr_gpu *g, const struct cr_gpu_batch *b, int layer)
{
    const cr_model *m = g->m;
    return (struct cr_flash){
        .rows = b->n_tokens,
        .n_heads = m->n_heads,
        .n_kv_heads = m->n_kv_heads,
        .head_dim = m->head_dim,
        .neox = m->rope_neox,
        .qkv = g->kept[layer].qkv,
        .ld = g->ld[CR_STAGE_QKV],
        .rope = g->rope,
        .pos = b->pos,
        .seg = b->seg,
        .pre = b->pre,
        .pre_end = b->pre_end,
        .end = b->end,
        .lse = g->shape.train ? g->kept[layer].lse : NULL,
        .delta = g->delta,
        .scale = m->attn_scale,
        .see_most = b->see_most,
        .seen_most = b->seen_most,
    };
}

/* ---- the thin path ---- */

static void thin_mix(struct cr_gpu *g, const struct cr_gpu_batch *b, int layer)
{
    if (g->thin)
        cr_k_thin_mix(g->stream, &g->thin_layer, g->beff,
                      g->params + (size_t)layer * g->p->layer_size, b->a, b->n_groups);
}

/* out = x[row] + y with its low-rank part, g->h = the norm of out by w. */
static void add_norm(struct cr_gpu *g, enum cr_stage stage, const struct rows *r, uint16_t *keep,
                     uint16_t *out, const uint16_t *x, const int *row, const float *w)
{
    const cr_model *m = g->m;
    if (g->thin)
        cr_k_thin_add_norm(g->stream, &g->thin_layer, &g->thin_stage[stage], r->chunks, r->n_chunks,
                           g->beff, g->y, g->ld_e, keep, out, g->h, x, row, w, m->norm_eps);
    else
        cr_k_add_norm(g->stream, out, g->h, x, row, g->y, g->ld_e, w, r->n, m->n_embd, m->norm_eps);
}

/* Gradients of A, B and a from what stages [from, to) left in slabs and part. */
static void thin_finish(struct cr_gpu *g, int layer, int from, int to, const struct rows *r,
                        bool first)
{
    int at = g->thin_begin[from], n = g->thin_begin[to] - at;
    size_t layer_at = (size_t)layer * g->p->layer_size;
    struct cr_thin_sums a = {0};
    if (!g->thin)
        return;
    for (int i = from; i < to; i++, a.n++) {
        a.from[a.n] = g->slab_at[i];
        a.to_at[a.n] = cr_lowrank_a(g->p, layer, (enum cr_stage)i);
        a.size[a.n] = g->slab_at[i + 1] - g->slab_at[i];
    }
    cr_k_thin_add_slabs(g->stream, &a, g->grads, g->slabs, g->slab_at[CR_STAGE_COUNT],
                        cr_k_thin_slabs(r->n), !first);
    cr_k_thin_sum(g->stream, &g->thin_layer, at, n, g->grads + layer_at, g->part, r->weights,
                  r->n_chunks, !first, g->p->learn_weights ? r->da : NULL, g->da_step,
                  g->copy + layer_at);
}

/* g->h holds the norm of the layer's input, and then that of its output. */
static void layer_forward(struct cr_gpu *g, const struct cr_gpu_batch *b, int layer)
{
    const cr_model *m = g->m;
    const struct cr_gpu_kept *k = &g->kept[layer];
    const struct rows all = all_rows(g, b), r = rows_of(g, b, layer);
    int f = m->n_ff, ldq = g->ld[CR_STAGE_QKV], ldg = g->ld[CR_STAGE_GATE_UP];
    bool train = g->shape.train;
    uint16_t *o = k->o;

    thin_mix(g, b, layer);
    stage_forward(g, b, layer, CR_STAGE_QKV, &all, g->h, k->qkv, ldq, NULL);
    const struct cr_thin_rope turn = {g->rope, b->pos, m->head_dim, m->q_dim + m->kv_dim};
    bool bias = m->layers[layer].bias_q, at_once = g->thin && !bias && !m->rope_neox;
    if (g->thin)
        cr_k_thin_add(g->stream, &g->thin_layer, &g->thin_stage[CR_STAGE_QKV], all.chunks,
                      all.n_chunks, g->beff, k->qkv, ldq, at_once ? &turn : NULL);
    if (bias) {
        int n = m->q_dim + 2 * m->kv_dim;
        cr_k_bias(g->stream, k->qkv, ldq, g->bias + (size_t)layer * (size_t)n, all.n, n);
    }
    if (!at_once)
        cr_k_rope(g->stream, k->qkv, ldq, g->rope, b->pos, m->rope_neox, all.n,
                  m->n_heads + m->n_kv_heads, m->head_dim);
    struct cr_flash flash = flash_of(g, b, layer);
    cr_k_attention(g->stream, &flash, o);
    if (is_last(g, layer)) {
        o = g->o_rows;
        cr_k_gather(g->stream, o, m->q_dim, k->o, m->q_dim, b->row, r.n, m->q_dim);
    }
    stage_forward(g, b, layer, CR_STAGE_O, &r, o, g->y, g->ld_e, train ? k->u_o : NULL);
    add_norm(g, CR_STAGE_O, &r, k->u_o, k->mid, k->x, is_last(g, layer) ? b->row : NULL,
             norm_of(g, layer, 1));
    stage_forward(g, b, layer, CR_STAGE_GATE_UP, &r, g->h, k->gu, ldg, NULL);
    if (g->thin)
        cr_k_thin_swiglu(g->stream, &g->thin_layer, &g->thin_stage[CR_STAGE_GATE_UP], r.chunks,
                         r.n_chunks, g->beff, g->hh, k->gu, ldg);
    else
        cr_k_swiglu(g->stream, g->hh, k->gu, ldg, r.n, f);
    stage_forward(g, b, layer, CR_STAGE_DOWN, &r, g->hh, g->y, g->ld_e, train ? k->u_d : NULL);
    add_norm(g, CR_STAGE_DOWN, &r, k->u_d, is_last(g, layer) ? g->last : g->kept[layer + 1].x,
             k->mid, NULL, norm_of(g, layer + 1, 0));
}

const uint16_t *cr_gpu_forward(struct cr_gpu *g, const struct cr_gpu_batch *b, int n_layers)
{
    const cr_model *m = g->m;
    uint16_t *x = g->kept[0].x;
    cr_k_embed(g->stream, x, g->embd, b->ids, b->n_tokens, m->n_embd);
    cr_k_norm(g->stream, g->h, x, norm_of(g, 0, 0), b->n_tokens, m->n_embd, m->norm_eps);
    for (int l = 0; l < n_layers; l++)
        layer_forward(g, b, l);
    return n_layers < m->n_layers ? g->kept[n_layers].x : g->last;
}

/* Gradients flow into g->dx, but behind the last layer's attention into
 * g->dx_rows. */
static void layer_back(struct cr_gpu *g, const struct cr_gpu_batch *b, int layer, bool first)
{
    const cr_model *m = g->m;
    struct cr_gpu_kept *k = &g->kept[layer];
    const struct rows all = all_rows(g, b), r = rows_of(g, b, layer);
    const struct cr_stage_shape *st = g->p->stage;
    int e = m->n_embd, q = m->q_dim, ldq = g->ld[CR_STAGE_QKV], ldg = g->ld[CR_STAGE_GATE_UP];
    bool last = is_last(g, layer);
    uint16_t *dx = last ? g->dx_rows : g->dx, *d_o = last ? g->d_o_rows : g->d_o;

    thin_mix(g, b, layer);
    stage_back(g, b, layer, CR_STAGE_DOWN, &r, dx, g->ld_e, k->u_d, (int)st[CR_STAGE_DOWN].n_u,
               g->hh, first);
    if (g->thin)
        cr_k_thin_swiglu_back(g->stream, &g->thin_layer, &g->thin_stage[CR_STAGE_GATE_UP], r.chunks,
                              r.n_chunks, g->beff, k->gu, ldg, g->hh, g->hh, g->part, g->du_part,
                              g->chunks_done);
    else
        cr_k_swiglu_back(g->stream, k->gu, ldg, g->hh, g->hh, r.n, m->n_ff);
    stage_add(g, layer, CR_STAGE_DOWN, &r, dx, g->ld_e, g->hh, first);

    stage_back(g, b, layer, CR_STAGE_GATE_UP, &r, k->gu, ldg, k->gu + st[CR_STAGE_GATE_UP].n_out,
               ldg, g->dh, first);
    cr_k_norm_back(g->stream, dx, g->ld_e, true, g->h, g->dh, k->mid, norm_of(g, layer, 1), r.n, e,
                   m->norm_eps);
    stage_add(g, layer, CR_STAGE_GATE_UP, &r, k->gu, ldg, g->h, first);

    stage_back(g, b, layer, CR_STAGE_O, &r, dx, g->ld_e, k->u_o, (int)st[CR_STAGE_O].n_u, d_o,
               first);
    stage_add(g, layer, CR_STAGE_O, &r, dx, g->ld_e, last ? g->o_rows : k->o, first);
    if (last) {
        thin_finish(g, layer, CR_STAGE_O, CR_STAGE_COUNT, &r, first);
        cudaMemsetAsync(g->d_o, 0, (size_t)all.n * (size_t)q * 2, g->stream);
        cr_k_scatter(g->stream, g->d_o, q, d_o, q, b->row, r.n, q);
        cudaMemsetAsync(g->dx, 0, (size_t)all.n * (size_t)g->ld_e * 2, g->stream);
        cr_k_scatter(g->stream, g->dx, g->ld_e, dx, g->ld_e, b->row, r.n, e);
    }
    struct cr_flash flash = flash_of(g, b, layer);
    cr_k_attention_back(g->stream, &flash, k->o, g->d_o, g->dqkv);

    stage_back(g, b, layer, CR_STAGE_QKV, &all, g->dqkv, ldq, k->qkv + st[CR_STAGE_QKV].n_out, ldq,
               layer > 0 ? g->dh : NULL, first);
    if (layer > 0)
        cr_k_norm_back(g->stream, g->dx, g->ld_e, true, g->h, g->dh, k->x, norm_of(g, layer, 0),
                       all.n, e, m->norm_eps);
    else
        cr_k_norm(g->stream, g->h, k->x, norm_of(g, layer, 0), all.n, e, m->norm_eps);
    stage_add(g, layer, CR_STAGE_QKV, &all, g->dqkv, ldq, g->h, first);
    thin_finish(g, layer, CR_STAGE_QKV, last ? CR_STAGE_O : CR_STAGE_COUNT, &all, first);
}

/* ---- the head ---- */

void cr_gpu_logits(struct cr_gpu *g, int at, int rows)
{
    size_t e = (size_t)g->m->n_embd;
    cr_gpu_nt_float(g, (size_t)rows, (size_t)g->m->n_vocab, e, g->h + (size_t)at * e, (int)e,
                    g->output, (int)e, g->logits, g->ld_vocab);
}

/* Loss over the rows, and dx_rows. */
static void loss_and_dx(struct cr_gpu *g, const struct cr_gpu_batch *b)
{
    const cr_model *m = g->m;
    int e = m->n_embd;
    for (int at = 0; at < b->n_rows; at += CR_GPU_LOGIT_ROWS) {
        int rows = b->n_rows - at < CR_GPU_LOGIT_ROWS ? b->n_rows - at : CR_GPU_LOGIT_ROWS;
        cr_gpu_logits(g, at, rows);
        cr_k_cross_entropy(g->stream, g->loss + at, g->logits, g->ld_vocab, m->n_vocab, b->id + at,
                           b->weight + at, rows);
        cr_gpu_nn(g, (size_t)rows, (size_t)e, (size_t)m->n_vocab, (uint16_t *)g->logits,
                  2 * g->ld_vocab, g->output, e, g->dh_rows + (size_t)at * (size_t)e, e, false);
    }
    cr_k_sum(g->stream, &g->state->loss, g->loss, b->n_rows);
    cr_k_norm_back(g->stream, g->dx_rows, g->ld_e, false, NULL, g->dh_rows, g->last,
                   norm_of(g, m->n_layers, 0), b->n_rows, e, m->norm_eps);
}

void cr_gpu_pass(struct cr_gpu *g, const struct cr_gpu_batch *b, bool first)
{
    size_t n = (size_t)g->p->n;
    cr_gpu_forward(g, b, g->m->n_layers);
    loss_and_dx(g, b);
    int splits = g->thin ? cr_k_thin_splits(&g->thin_layer) : 1;
    size_t da = (size_t)splits * g->da_step * sizeof *g->da;
    if (g->thin) {
        cr_k_thin_weights(g->stream, g->chunk_weights[0], b->a, (int)n, b->chunks, b->n_chunks);
        cr_k_thin_weights(g->stream, g->chunk_weights[1], b->a, (int)n, b->row_chunks,
                          b->n_row_chunks);
    }
    cudaMemsetAsync(g->da, 0, da, g->stream);
    cudaMemsetAsync(g->da_rows, 0, da, g->stream);
    for (int l = g->m->n_layers; l-- > 0;)
        layer_back(g, b, l, first);
    if (g->p->learn_weights)
        cr_k_weights_back(g->stream, g->grads + g->p->weights_at, b->key, b->n_groups, (int)n,
                          g->da, b->begin, g->da_rows, b->row_begin, splits, g->da_step);
}
