/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over the KV cache.
 */
#include "model/session_impl.h"

#include <string.h>

/* Bias, norm and rotation (angles NULL: none) of the heads of one vector. */
static void turn_heads(const cr_session *s, float *x, int n_heads, const float *bias,
                       const float *norm, const float *angles)
{
    size_t D = (size_t)s->m->head_dim;
    if (bias)
        s->k->add(x, bias, (size_t)n_heads * D);
    for (int h = 0; h < n_heads; h++, x += D) {
        if (norm)
            s->k->rmsnorm(x, x, norm, D, s->m->norm_eps);
        if (angles)
            (s->m->rope_neox ? s->k->rope_neox : s->k->rope_norm)(x, angles,
                                                                  (size_t)s->m->rope_dim);
    }
}

/* The angles of token t by one of the model's rotations. */
float *cr_token_angles(const cr_session *s, size_t t, int rope)
{
    size_t at = t * (size_t)s->m->n_ropes + (size_t)rope;
    return rope < 0 ? NULL : s->angles + at * (size_t)s->m->rope_dim;
}

/* Where the keys, or values, of the layer's kv head begin. */
static uint16_t *head_cells(const cr_session *s, uint16_t *cache, int kv_head)
{
    size_t head = (size_t)s->layer * (size_t)s->m->n_kv_heads + (size_t)kv_head;
    return cache + head * cr_whole_tiles((size_t)s->n_ctx) * (size_t)s->m->head_dim;
}

/* k and v of one token into the cache. */
static void store_cell(cr_session *s, size_t cell, const float *k, const float *v)
{
    size_t D = (size_t)s->m->head_dim;
    uint16_t half[CR_KV_TILE];
    for (int h = 0; h < s->m->n_kv_heads; h++, k += D, v += D) {
        uint16_t *keys = head_cells(s, s->k_cache, h) + cell / CR_KV_TILE * D * CR_KV_TILE;
        for (size_t i = 0; i < D; i += CR_KV_TILE) {
            size_t n = D - i < CR_KV_TILE ? D - i : CR_KV_TILE;
            s->k->f32_to_f16(half, k + i, n);
            for (size_t j = 0; j < n; j++)
                keys[(i + j) * CR_KV_TILE + cell % CR_KV_TILE] = half[j];
        }
        s->k->f32_to_f16(head_cells(s, s->v_cache, h) + cell * D, v, D);
    }
}

/* q, k and v of tokens [begin, end) become ready; k and v go into the cache. */
void cr_attention_place(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const cr_model *m = s->m;
    const struct cr_layer *w = &m->layers[s->layer];
    size_t KV = (size_t)m->kv_dim;
    for (size_t t = begin; t < end; t++) {
        const float *angles = cr_token_angles(s, t, w->rope);
        float *k = s->k_new + t * KV, *v = s->v_new + t * KV;
        turn_heads(s, s->q + t * (size_t)m->q_dim, m->n_heads, w->bias_q, w->norm_q, angles);
        turn_heads(s, k, m->n_kv_heads, w->bias_k, w->norm_k, angles);
        if (w->bias_v)
            s->k->add(v, w->bias_v, KV);
        store_cell(s, (size_t)s->tokens[t].t.cell, k, v);
    }
}

/* What a token sees: cells [pre, pre + n_pre) of a shared prefix and then [seg, seg + n_seg). */
struct view {
    size_t pre, n_pre, seg, n_seg;
};

static struct view view_of(const cr_session *s, size_t t)
{
    const struct cr_batch_token *tok = &s->tokens[t].t;
    struct view v = {(size_t)tok->pre_begin, (size_t)(tok->pre_end - tok->pre_begin),
                     (size_t)tok->seg_begin, (size_t)(tok->cell + 1 - tok->seg_begin)};
    size_t window = (size_t)s->m->layers[s->layer].window;
    if (window && v.n_pre + v.n_seg > window) { /* the end of what it saw */
        size_t skip = v.n_pre + v.n_seg - window, of_pre = skip < v.n_pre ? skip : v.n_pre;
        v.pre += of_pre;
        v.n_pre -= of_pre;
        v.seg += skip - of_pre;
        v.n_seg -= skip - of_pre;
    }
    return v;
}

/* n <= SIDE tokens, whose views differ in n_seg only, with one head. The cells are computed for all
 * of them as far as any sees; each takes its own part. */
static void attend_side(cr_session *s, size_t t0, size_t n, int head, float *scores)
{
    const cr_model *m = s->m;
    size_t D = (size_t)m->head_dim, Q = (size_t)m->q_dim, lds = (size_t)s->n_ctx;
    int kv_head = head / (m->n_heads / m->n_kv_heads);
    const uint16_t *k = head_cells(s, s->k_cache, kv_head);
    const uint16_t *v = head_cells(s, s->v_cache, kv_head);
    const float *q = s->q + t0 * Q + (size_t)head * D;
    float *y = s->att + t0 * Q + (size_t)head * D;
    const struct view all = view_of(s, t0);
    size_t n_seg[SIDE], most = 0, least = SIZE_MAX;
    for (size_t t = 0; t < n; t++) {
        n_seg[t] = view_of(s, t0 + t).n_seg;
        most = cr_larger(most, n_seg[t]);
        least = n_seg[t] < least ? n_seg[t] : least;
    }
    s->k->attn_scores_f16(scores, lds, q, Q, n, k, all.pre, all.pre + all.n_pre, D, m->attn_scale);
    s->k->attn_scores_f16(scores + all.n_pre, lds, q, Q, n, k, all.seg, all.seg + most, D,
                          m->attn_scale);
    for (size_t t = 0; t < n; t++) {
        s->k->softmax(scores + t * lds, all.n_pre + n_seg[t]);
        memset(y + t * Q, 0, D * sizeof *y);
    }
    s->k->attn_mix_f16(y, Q, scores, lds, n, v + all.pre * D, all.n_pre, D);
    s->k->attn_mix_f16(y, Q, scores + all.n_pre, lds, n, v + all.seg * D, least, D);
    for (size_t t = 0; t < n; t++)
        s->k->attn_mix_f16(y + t * Q, Q, scores + t * lds + all.n_pre + least, lds, 1,
                           v + (all.seg + least) * D, n_seg[t] - least, D);
}

/* Items are heads times groups of SIDE tokens, head by head, so that a head's cache is read while
 * it is near. */
static void attend(void *ud, size_t begin, size_t end, int thread)
{
    cr_session *s = ud;
    size_t groups = (s->n + SIDE - 1) / SIDE;
    float *scores = s->scores + (size_t)thread * SIDE * (size_t)s->n_ctx;
    for (size_t i = begin; i < end; i++) {
        size_t t = i % groups * SIDE, last = t + SIDE < s->n ? t + SIDE : s->n;
        while (t < last) {
            const struct view a = view_of(s, t);
            size_t n = 1;
            for (; t + n < last; n++) {
                const struct view b = view_of(s, t + n);
                if (a.pre != b.pre || a.n_pre != b.n_pre || a.seg != b.seg)
                    break;
            }
            attend_side(s, t, n, (int)(i / groups), scores);
            t += n;
        }
    }
}

void cr_attention_run(cr_session *s)
{
    size_t groups = (s->n + SIDE - 1) / SIDE;
    cr_threads_run_dynamic(s->m->threads, groups * (size_t)s->m->n_heads,
                           groups < ROW_GRAIN ? groups : ROW_GRAIN, attend, s);
}
