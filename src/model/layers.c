/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forward pass, for a chunk of up to CHUNK tokens at a time:
 *
 *     x = E[id]
 *     for each layer:
 *         q, k, v = W_q n, W_k n, W_v n              n = rmsnorm(x)
 *         q, k = rope(q), rope(k);  k, v -> cache
 *         x += W_o attention(q, cache)
 *         x += W_down (silu(W_gate n) * (W_up n))    n = rmsnorm(x)
 *     logits = W_out rmsnorm(x)
 *
 * gemma3 norms what W_o and W_down give before it is added, has gelu in place of silu, and layers
 * that see a window only; some layers of smollm3 have no rope.
 *
 * Every W y may have a delta beside it: W y + B (A y).
 *
 * Why the result does not depend on chunking, packing or threads: work is split over tokens, heads
 * and rows only, each output is one kernel call's business, and kernels.h promises that an output
 * depends on its own inputs only. Token-wise work runs before each group of linears, in the order
 * of the tokens; the row-wise products are the bulk and are split over all threads also for one
 * token.
 */
#include "model/session_impl.h"

#include <string.h>

/* ---- the steps of a layer ---- */

static const float *norm_for_attention(cr_session *s, size_t t)
{
    size_t E = (size_t)s->m->n_embd;
    s->k->rmsnorm(s->normed + t * E, s->x + t * E, s->m->layers[s->layer].attn_norm, E,
                  s->m->norm_eps);
    return s->normed + t * E;
}

static const float *attended(cr_session *s, size_t t)
{
    return s->att + t * (size_t)s->m->q_dim;
}

/* x += out, after its own norm where the model has one. */
static void add_out(cr_session *s, size_t t, const float *norm)
{
    size_t E = (size_t)s->m->n_embd;
    float *out = s->out + t * E;
    if (norm)
        s->k->rmsnorm(out, out, norm, E, s->m->norm_eps);
    s->k->add(s->x + t * E, out, E);
}

static const float *norm_for_ffn(cr_session *s, size_t t)
{
    size_t E = (size_t)s->m->n_embd;
    add_out(s, t, s->m->layers[s->layer].attn_post);
    s->k->rmsnorm(s->normed + t * E, s->x + t * E, s->m->layers[s->layer].ffn_norm, E,
                  s->m->norm_eps);
    return s->normed + t * E;
}

static const float *gate_and_up(cr_session *s, size_t t)
{
    size_t F = (size_t)s->m->n_ff;
    (s->m->gelu ? s->k->gelu_mul : s->k->silu_mul)(s->gate + t * F, s->up + t * F, F);
    return s->gate + t * F;
}

static void add_ffn(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    for (size_t t = begin; t < end; t++)
        add_out(s, t, s->m->layers[s->layer].ffn_post);
}

static const float *norm_for_output(cr_session *s, size_t t)
{
    size_t E = (size_t)s->m->n_embd;
    s->k->rmsnorm(s->normed + t * E, s->x + t * E, s->m->output_norm, E, s->m->norm_eps);
    return s->normed + t * E;
}

/* ---- a chunk ---- */

static void embed(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    for (size_t t = begin; t < end; t++) {
        cr_model_embed(s->m, s->tokens[t].t.id, s->x + t * (size_t)s->m->n_embd);
        cr_rope_angles(s->m, s->tokens[t].t.pos, cr_token_angles(s, t, 0));
    }
}

/* Once k and v of the last layer are in the cache, only the tokens whose result is wanted go on. */
static void keep_wanted(cr_session *s, bool any)
{
    size_t E = (size_t)s->m->n_embd, Q = (size_t)s->m->q_dim, n = 0;
    for (size_t t = 0; t < s->n && any; t++) {
        if (!s->tokens[t].t.want)
            continue;
        if (n != t) {
            s->tokens[n] = s->tokens[t];
            memcpy(s->x + n * E, s->x + t * E, E * sizeof(float));
            memcpy(s->q + n * Q, s->q + t * Q, Q * sizeof(float));
        }
        n++;
    }
    s->n = n;
}

static void give_hidden(cr_session *s, const struct cr_batch *b)
{
    for (size_t t = 0; t < s->n; t++)
        if (s->tokens[t].t.want)
            b->on_hidden(b->ud, s->tokens[t].index, s->x + t * (size_t)s->m->n_embd);
}

struct early {
    const cr_session *s;
    const struct cr_batch *b;
    size_t first; /* token of the chunk */
};

static void give_early(void *ud, size_t begin, size_t end, int thread)
{
    const struct early *e = ud;
    (void)thread;
    for (size_t t = begin; t < end; t++)
        e->b->on_logits_early(e->b->ud, e->s->tokens[e->first + t].index,
                              e->s->logits + t * (size_t)e->s->m->n_vocab);
}

/* Logits of all tokens that are left, as many at a time as the buffer holds. */
static void give_logits(cr_session *s, const struct cr_batch *b)
{
    size_t E = (size_t)s->m->n_embd, V = (size_t)s->m->n_vocab, n_all = s->n;
    for (size_t done = 0; done < n_all; done += s->n) {
        s->n = n_all - done < s->logit_rows ? n_all - done : s->logit_rows;
        if (done)
            memmove(s->x, s->x + done * E, s->n * E * sizeof(float));
        s->parts[0] = (struct part){.w = &s->m->output, .y = s->logits, .lin = -1};
        s->n_parts = 1;
        cr_products_run(s, norm_for_output, s->normed);
        struct early e = {s, b, done};
        if (b->on_logits_early)
            cr_threads_run_dynamic(s->m->threads, s->n, 1, give_early, &e);
        for (size_t t = 0; t < s->n; t++)
            b->on_logits(b->ud, s->tokens[done + t].index, s->logits + t * V);
    }
}

/* Runs s->tokens [n]. */
void cr_layers_run(cr_session *s, size_t n, const struct cr_batch *b)
{
    const cr_model *m = s->m;
    const int tap = b->on_hidden ? b->hidden_layer : m->n_layers;
    const int last = b->on_hidden && b->stop_at_hidden ? tap : m->n_layers - 1;
    s->n = n;
    s->max_rank = 0;
    for (size_t t = 0; t < n; t++) {
        const struct cr_batch_token *tok = &s->tokens[t].t;
        s->n_cells = s->n_cells > tok->cell ? s->n_cells : tok->cell + 1;
        if (tok->delta && tok->delta->max_rank > s->max_rank)
            s->max_rank = tok->delta->max_rank;
    }
    cr_by_tokens(s, embed);
    if (tap == -1)
        give_hidden(s, b);
    for (s->layer = 0; s->layer <= last; s->layer++) {
        cr_products_set(s, 0, CR_LIN_Q, s->q);
        cr_products_set(s, 1, CR_LIN_K, s->k_new);
        cr_products_set(s, 2, CR_LIN_V, s->v_new);
        cr_products_run(s, norm_for_attention, s->normed);

        cr_by_tokens(s, cr_attention_place);
        if (s->layer == last)
            keep_wanted(s, tap == last || (b->on_logits && last == m->n_layers - 1));
        if (s->n == 0)
            break;
        cr_attention_run(s);
        cr_products_set(s, 0, CR_LIN_O, s->out);
        cr_products_run(s, attended, s->att);

        cr_products_set(s, 0, CR_LIN_GATE, s->gate);
        cr_products_set(s, 1, CR_LIN_UP, s->up);
        cr_products_run(s, norm_for_ffn, s->normed);

        cr_products_set(s, 0, CR_LIN_DOWN, s->out);
        cr_products_run(s, gate_and_up, s->gate);
        cr_by_tokens(s, add_ffn);
        if (s->layer == tap)
            give_hidden(s, b);
    }
    if (b->on_logits && last == m->n_layers - 1)
        give_logits(s, b);
}
