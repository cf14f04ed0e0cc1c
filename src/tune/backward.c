/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pass of a micro-batch. Legend: E n_embd, Q = H * D, KV = G * D, F n_ff, V n_vocab, T tokens,
 * R rows of the part of a layer after attention: T, but the answer rows alone in the last layer.
 * y_ext rows are [outputs, u = A x] as lowrank.h says; the u columns of `o` and `down`, whose
 * outputs are added to the residual stream at once, are kept apart.
 */
#include "tune/backward.h"

#include "base/mem.h"
#include "tune/ops.h"

#include <string.h>

enum {
    LOGIT_ROWS = 64,  /* answers whose logits are held at a time */
    VOCAB_BLOCK = 256 /* rows of the output matrix dequantised at a time */
};

struct kept {     /* of one layer, for the way back */
    float *x;     /* [T, E] input */
    float *qkv;   /* [T, ld] before norm and rotation */
    float *o;     /* [R, Q] attention output */
    float *u_o;   /* [R, n_u] */
    float *raw_o; /* [R, E] output of `o` before its own norm (gemma3), else empty */
    float *mid;   /* [R, E] residual stream after attention */
    float *gu;    /* [R, ld] gate and up */
    float *u_d;   /* [R, n_u] */
    float *raw_d; /* [R, E] as raw_o, of `down` */
};

struct cr_pass {
    const cr_model *m;
    const struct cr_lowrank *p;
    const struct cr_frozen *frozen;
    const struct cr_pass_shared *tables;
    bool recompute;
    struct kept *layers;    /* [n_layers] */
    float *last;            /* [answers, E] output of the last layer */
    float *w;               /* a stage's W_ext, or a block of the output matrix */
    float *y;               /* [T, widest ld] y_ext of o and down; dy_ext of all */
    float *dx;              /* [T, E] gradient of the residual stream */
    float *wide;            /* [T, widest n_in] gradient of a stage's input */
    float *in;              /* [T, widest n_in] a stage's input */
    float *q, *k;           /* [T, Q], [T, KV] after norm and rotation */
    float *logits;          /* [LOGIT_ROWS, V] */
    float *attention, *low; /* scratch */
    int32_t *limit;         /* [T] */
    size_t *row;            /* [T] row of the sequence's tokens that a query row stands for */
    float *block;           /* owns all of the above floats */
};

/* ---- turns ---- */

enum cr_status cr_turns_init(struct cr_turns *t, size_t n_slots, struct cr_error *err)
{
    t->n_slots = n_slots;
    t->next = cr_alloc0(n_slots, sizeof *t->next);
    if (!t->next)
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->moved, NULL);
    return CR_OK;
}

void cr_turns_deinit(struct cr_turns *t)
{
    if (!t->next)
        return;
    pthread_cond_destroy(&t->moved);
    pthread_mutex_destroy(&t->lock);
    cr_free(t->next);
    t->next = NULL;
}

void cr_turns_reset(struct cr_turns *t)
{
    memset(t->next, 0, t->n_slots * sizeof *t->next);
}

void cr_turns_wait(struct cr_turns *t, size_t slot, size_t micro)
{
    pthread_mutex_lock(&t->lock);
    while (t->next[slot] != micro)
        pthread_cond_wait(&t->moved, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

void cr_turns_done(struct cr_turns *t, size_t slot)
{
    pthread_mutex_lock(&t->lock);
    t->next[slot]++;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
}

size_t cr_pass_slots(const cr_model *m)
{
    return (size_t)m->n_layers * CR_STAGE_COUNT;
}

/* ---- memory ---- */

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Hands out pieces of a block, or only counts them while `at` is NULL. Pieces start on cache lines.
 */
struct carver {
    float *at;
    size_t n;
};

static float *carve(struct carver *c, size_t n)
{
    float *piece = c->at ? c->at + c->n : NULL;
    c->n += (n + 15) / 16 * 16;
    return piece;
}

static void carve_pass(struct cr_pass *s, const struct cr_frozen *f,
                       const struct cr_pass_shape *shape, struct carver *c)
{
    const cr_model *m = f->m;
    const struct cr_lowrank *p = f->p;
    size_t t = shape->n_tokens, e = (size_t)m->n_embd, widest_in = 0, widest_ld = 0;
    const struct cr_stage_shape *st = p->stage;
    for (int i = 0; i < CR_STAGE_COUNT; i++) {
        widest_in = most(widest_in, st[i].n_in);
        widest_ld = most(widest_ld, st[i].ld);
    }
    float *qkv = NULL, *o = NULL, *gu = NULL;
    for (int l = 0; l < m->n_layers; l++) {
        struct kept kept, *k = s->layers ? &s->layers[l] : &kept;
        bool own = l == 0 || !shape->recompute; /* else those of the first layer serve all */
        size_t r = l + 1 < m->n_layers ? t : shape->n_answers;
        k->x = carve(c, t * e);
        k->qkv = qkv = own ? carve(c, t * st[CR_STAGE_QKV].ld) : qkv;
        k->o = o = own ? carve(c, r * (size_t)m->q_dim) : o;
        k->u_o = carve(c, r * st[CR_STAGE_O].n_u);
        k->raw_o = carve(c, m->layers[l].attn_post ? r * e : 0);
        k->mid = carve(c, r * e);
        k->gu = gu = own ? carve(c, r * st[CR_STAGE_GATE_UP].ld) : gu;
        k->u_d = carve(c, r * st[CR_STAGE_DOWN].n_u);
        k->raw_d = carve(c, m->layers[l].ffn_post ? r * e : 0);
    }
    s->last = carve(c, shape->n_answers * e);
    s->w = carve(c, most(cr_frozen_scratch(f, t), VOCAB_BLOCK * e));
    s->y = carve(c, t * widest_ld);
    s->dx = carve(c, t * e);
    s->wide = carve(c, t * widest_in);
    s->in = carve(c, t * widest_in);
    s->q = carve(c, t * (size_t)m->q_dim);
    s->k = carve(c, t * (size_t)m->kv_dim);
    s->logits = carve(c, LOGIT_ROWS * (size_t)m->n_vocab);
    s->attention = carve(
        c, most(cr_attention_scratch(p->k, m->head_dim, shape->longest), (size_t)m->head_dim));
    s->low = carve(c, cr_lowrank_scratch(p, t, shape->n_groups));
}

size_t cr_pass_bytes(const struct cr_frozen *f, const struct cr_pass_shape *s)
{
    struct cr_pass none = {0};
    struct carver c = {0};
    carve_pass(&none, f, s, &c);
    return c.n * sizeof(float) + s->n_tokens * (sizeof *none.limit + sizeof *none.row) +
           (size_t)f->m->n_layers * sizeof *none.layers + sizeof none;
}

double cr_pass_recompute_cost(const struct cr_frozen *f)
{
    const struct cr_stage_shape *st = f->p->stage;
    double all = 0, again = 0;
    for (int i = 0; i < CR_STAGE_COUNT; i++) {
        double work = (double)st[i].ld * (double)st[i].n_in;
        all += 2 * work; /* there and back */
        again += i == CR_STAGE_QKV || i == CR_STAGE_GATE_UP ? work : 0;
    }
    return again / all;
}

/* Floats of a table of rotations for one position. */
static size_t angles(const cr_model *m)
{
    return (size_t)m->n_ropes * (size_t)m->rope_dim;
}

size_t cr_pass_shared_bytes(const cr_model *m, const struct cr_pass_shape *s)
{
    return 2 * s->longest * angles(m) * sizeof(float);
}

enum cr_status cr_pass_shared_init(struct cr_pass_shared *t, const cr_model *m,
                                   const struct cr_pass_shape *s, struct cr_error *err)
{
    t->rope = cr_alloc(s->longest * angles(m), sizeof(float));
    t->rope_back = cr_alloc(s->longest * angles(m), sizeof(float));
    if (!t->rope || !t->rope_back) {
        cr_pass_shared_deinit(t);
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory for %zu positions",
                            s->longest);
    }
    cr_rope_table(m, t->rope, s->longest, 1.0f);
    cr_rope_table(m, t->rope_back, s->longest, -1.0f);
    return CR_OK;
}

void cr_pass_shared_deinit(struct cr_pass_shared *t)
{
    cr_free(t->rope);
    cr_free(t->rope_back);
    t->rope = t->rope_back = NULL;
}

enum cr_status cr_pass_new(cr_pass **out, const struct cr_frozen *f,
                           const struct cr_pass_shared *tables, const struct cr_pass_shape *shape,
                           struct cr_error *err)
{
    const cr_model *m = f->m;
    struct carver c = {0};
    *out = NULL;
    cr_pass *s = cr_alloc0(1, sizeof *s);
    if (!s)
        goto fail;
    s->m = m;
    s->p = f->p;
    s->frozen = f;
    s->tables = tables;
    s->recompute = shape->recompute;
    carve_pass(s, f, shape, &c);
    s->layers = cr_alloc0((size_t)m->n_layers, sizeof *s->layers);
    s->limit = cr_alloc(shape->n_tokens, sizeof *s->limit);
    s->row = cr_alloc(shape->n_tokens, sizeof *s->row);
    s->block = cr_alloc(c.n, sizeof(float));
    if (!s->layers || !s->limit || !s->row || !s->block)
        goto fail;
    c = (struct carver){s->block, 0};
    carve_pass(s, f, shape, &c);
    *out = s;
    return CR_OK;
fail:
    cr_pass_free(s);
    return cr_error_set(err, CR_NO_MEMORY,
                        "training: out of memory for the activations of %zu tokens",
                        shape->n_tokens);
}

void cr_pass_free(cr_pass *s)
{
    if (!s)
        return;
    cr_free(s->block);
    cr_free(s->row);
    cr_free(s->limit);
    cr_free(s->layers);
    cr_free(s);
}

/* ---- parts ---- */

/* y_ext [rows, ld] = x W_ext^T, and the low-rank part. */
static void stage_forward(cr_pass *s, const float *params, int layer, enum cr_stage stage,
                          const struct cr_groups *g, const float *x, float *y)
{
    cr_frozen_forward(s->frozen, params, layer, stage, x, g->begin[g->n], y, s->w);
    cr_lowrank_forward(s->p, params, layer, stage, g, y, s->low);
}

struct grads { /* where gradients go */
    float *params, *da;
    struct cr_turns *turns;
    size_t micro;
};

/* From dy in the first columns of s->y: du, gradients of B and a, then dx [rows, n_in] (unless
 * NULL). */
static void stage_back(cr_pass *s, const float *params, int layer, enum cr_stage stage,
                       const struct cr_groups *g, const float *u, size_t ldu, float *dx,
                       struct grads *to)
{
    cr_lowrank_back(s->p, params, layer, stage, g, s->y, u, ldu, to->da, s->low);
    if (dx)
        cr_frozen_back(s->frozen, params, layer, stage, s->y, g->begin[g->n], dx, s->w);
}

/* After stage_back, once the stage's input x is there: gradient of A, and everything into place. */
static void stage_add(cr_pass *s, int layer, enum cr_stage stage, const struct cr_groups *g,
                      const float *x, struct grads *to)
{
    size_t slot = (size_t)layer * CR_STAGE_COUNT + (size_t)stage;
    cr_lowrank_back_a(s->p, stage, g, s->y, x, s->p->stage[stage].n_in, s->low);
    if (to->turns)
        cr_turns_wait(to->turns, slot, to->micro);
    cr_lowrank_add(s->p, layer, stage, g, s->low, to->params);
    if (to->turns)
        cr_turns_done(to->turns, slot);
}

static void norm_rows(const cr_pass *s, float *y, const float *x, const float *w, size_t rows)
{
    size_t e = (size_t)s->m->n_embd;
    for (size_t t = 0; t < rows; t++)
        s->m->k->rmsnorm(y + t * e, x + t * e, w, e, s->m->norm_eps);
}

static void norm_rows_back(const cr_pass *s, float *dx, const float *dy, const float *x,
                           const float *w, size_t rows)
{
    size_t e = (size_t)s->m->n_embd;
    for (size_t t = 0; t < rows; t++)
        s->p->k->rmsnorm_back(dx + t * e, dy + t * e, x + t * e, w, e, s->m->norm_eps);
}

static void head_norms(const cr_pass *s, float *x, const float *w, int n_heads)
{
    size_t d = (size_t)s->m->head_dim;
    for (int h = 0; w && h < n_heads; h++)
        s->m->k->rmsnorm(x + (size_t)h * d, x + (size_t)h * d, w, d, s->m->norm_eps);
}

static bool is_last(const cr_pass *s, int layer)
{
    return layer + 1 == s->m->n_layers;
}

/* For each query row of the layer its token row and how many keys it sees; returns R. */
static size_t query_rows(cr_pass *s, int layer, const struct cr_micro *b)
{
    size_t n = 0;
    for (size_t q = 0; q < b->n_seqs; q++) {
        for (size_t t = b->seq[q]; t < b->seq[q + 1]; t++) {
            if (is_last(s, layer) && (n == b->n_answers || b->answer_row[n] != t))
                continue;
            s->row[n] = t;
            s->limit[n++] = (int32_t)(t - b->seq[q] + 1);
        }
    }
    return n;
}

/* Rotates heads to position pos where the layer does (some of smollm3 do not). */
static void turn(const cr_pass *s, int layer, float *x, int n_heads, const float *table, size_t pos)
{
    int rope = s->m->layers[layer].rope;
    if (rope >= 0)
        cr_rope_row(s->m, x, n_heads, table + pos * angles(s->m) + rope * s->m->rope_dim);
}

/* s->q [R, Q] and s->k [T, KV] from the kept qkv: norm of heads (qwen3), rotation. */
static void rotate(cr_pass *s, int layer, const struct cr_micro *b, size_t n_q)
{
    const cr_model *m = s->m;
    size_t ld = s->p->stage[CR_STAGE_QKV].ld, qd = (size_t)m->q_dim, kd = (size_t)m->kv_dim;
    const float *qkv = s->layers[layer].qkv;
    for (size_t i = 0; i < n_q; i++) {
        float *q = s->q + i * qd;
        memcpy(q, qkv + s->row[i] * ld, qd * sizeof *q);
        head_norms(s, q, m->layers[layer].norm_q, m->n_heads);
        turn(s, layer, q, m->n_heads, s->tables->rope, (size_t)s->limit[i] - 1);
    }
    for (size_t seq = 0; seq < b->n_seqs; seq++) {
        for (size_t t = b->seq[seq]; t < b->seq[seq + 1]; t++) {
            float *k = s->k + t * kd;
            memcpy(k, qkv + t * ld + qd, kd * sizeof *k);
            head_norms(s, k, m->layers[layer].norm_k, m->n_kv_heads);
            turn(s, layer, k, m->n_kv_heads, s->tables->rope, t - b->seq[seq]);
        }
    }
}

/* Attention of sequence `seq`, whose query rows are [q0, q0 + n_q). */
static struct cr_attention attention_of(const cr_pass *s, int layer, const struct cr_micro *b,
                                        size_t seq, size_t q0, size_t n_q)
{
    const cr_model *m = s->m;
    size_t ld = s->p->stage[CR_STAGE_QKV].ld, qd = (size_t)m->q_dim, kd = (size_t)m->kv_dim;
    size_t t = b->seq[seq];
    return (struct cr_attention){
        .kernels = m->k,
        .train = s->p->k,
        .n_heads = m->n_heads,
        .n_kv_heads = m->n_kv_heads,
        .head_dim = m->head_dim,
        .scale = m->attn_scale,
        .window = (size_t)m->layers[layer].window,
        .n_q = n_q,
        .n_kv = b->seq[seq + 1] - t,
        .q = s->q + q0 * qd,
        .ldq = qd,
        .k = s->k + t * kd,
        .ldk = kd,
        .v = s->layers[layer].qkv + t * ld + qd + kd,
        .ldv = ld,
        .limit = s->limit + q0,
    };
}

/* End of the query rows that belong to tokens before row `end`. */
static size_t query_end(const cr_pass *s, size_t q, size_t n_q, size_t end)
{
    while (q < n_q && s->row[q] < end)
        q++;
    return q;
}

static void add_bias(const cr_pass *s, int layer, size_t rows, float *qkv)
{
    const struct cr_layer *w = &s->m->layers[layer];
    const struct cr_stage_shape *st = &s->p->stage[CR_STAGE_QKV];
    const float *bias[3] = {w->bias_q, w->bias_k, w->bias_v};
    for (int i = 0; i < 3; i++) {
        for (size_t t = 0; bias[i] && t < rows; t++)
            s->m->k->add(qkv + t * st->ld + st->out_at[i], bias[i], st->lin_out[i]);
    }
}

/* to [rows, F] = silu(gate) * up, or gelu. */
static void feed(const cr_pass *s, const float *gu, size_t rows, float *to)
{
    size_t f = (size_t)s->m->n_ff, ld = s->p->stage[CR_STAGE_GATE_UP].ld;
    for (size_t t = 0; t < rows; t++) {
        memcpy(to + t * f, gu + t * ld, f * sizeof *to);
        (s->m->gelu ? s->m->k->gelu_mul : s->m->k->silu_mul)(to + t * f, gu + t * ld + f, f);
    }
}

/* x[i] = from[row of i] + the first E columns of y_ext; u [R, n_u] gets the others. row NULL: i.
 * With a norm `post` of its own the output is added after it, and kept before it in raw. */
static void add_output(const cr_pass *s, enum cr_stage stage, const float *post, const float *from,
                       const size_t *row, size_t rows, float *x, float *u, float *raw)
{
    size_t e = (size_t)s->m->n_embd, ld = s->p->stage[stage].ld, n_u = s->p->stage[stage].n_u;
    for (size_t i = 0; i < rows; i++) {
        float *y = s->y + i * ld;
        if (post) {
            memcpy(raw + i * e, y, e * sizeof *raw);
            s->m->k->rmsnorm(y, y, post, e, s->m->norm_eps);
        }
        memcpy(x + i * e, from + (row ? row[i] : i) * e, e * sizeof *x);
        s->m->k->add(x + i * e, y, e);
        memcpy(u + i * n_u, y + e, n_u * sizeof *u);
    }
}

/* ---- the layer, there and back ---- */

/* From x to the attention output o; returns R. */
static size_t attend(cr_pass *s, const float *params, int layer, const struct cr_micro *b)
{
    const cr_model *m = s->m;
    struct kept *k = &s->layers[layer];
    size_t qd = (size_t)m->q_dim;
    norm_rows(s, s->in, k->x, m->layers[layer].attn_norm, b->n_tokens);
    stage_forward(s, params, layer, CR_STAGE_QKV, &b->all, s->in, k->qkv);
    add_bias(s, layer, b->n_tokens, k->qkv);
    size_t n_q = query_rows(s, layer, b);
    rotate(s, layer, b, n_q);
    for (size_t seq = 0, q = 0; seq < b->n_seqs; seq++) {
        size_t end = query_end(s, q, n_q, b->seq[seq + 1]);
        struct cr_attention a = attention_of(s, layer, b, seq, q, end - q);
        cr_attention_forward(&a, k->o + q * qd, qd, s->attention);
        q = end;
    }
    return n_q;
}

/* From mid to gate and up. */
static void widen(cr_pass *s, const float *params, int layer, const struct cr_groups *g)
{
    struct kept *k = &s->layers[layer];
    norm_rows(s, s->in, k->mid, s->m->layers[layer].ffn_norm, g->begin[g->n]);
    stage_forward(s, params, layer, CR_STAGE_GATE_UP, g, s->in, k->gu);
}

static void layer_forward(cr_pass *s, const float *params, int layer, const struct cr_micro *b)
{
    struct kept *k = &s->layers[layer];
    const struct cr_layer *w = &s->m->layers[layer];
    const struct cr_groups *g = is_last(s, layer) ? &b->answers : &b->all;
    float *out = is_last(s, layer) ? s->last : s->layers[layer + 1].x;

    size_t n_q = attend(s, params, layer, b);
    stage_forward(s, params, layer, CR_STAGE_O, g, k->o, s->y);
    add_output(s, CR_STAGE_O, w->attn_post, k->x, s->row, n_q, k->mid, k->u_o, k->raw_o);

    widen(s, params, layer, g);
    feed(s, k->gu, n_q, s->in);
    stage_forward(s, params, layer, CR_STAGE_DOWN, g, s->in, s->y);
    add_output(s, CR_STAGE_DOWN, w->ffn_post, k->mid, NULL, n_q, out, k->u_d, k->raw_d);
}

/* dy_ext rows begin with dx (the gradient of the residual stream is that of the output), taken back
 * through the output's own norm. */
static void spread_dx(cr_pass *s, enum cr_stage stage, const float *post, const float *raw,
                      size_t rows)
{
    size_t e = (size_t)s->m->n_embd, ld = s->p->stage[stage].ld;
    for (size_t i = 0; i < rows; i++) {
        float *dy = s->y + i * ld;
        const float *dx = s->dx + i * e;
        if (post) {
            memset(dy, 0, e * sizeof *dy);
            s->p->k->rmsnorm_back(dy, dx, raw + i * e, post, e, s->m->norm_eps);
        } else
            memcpy(dy, dx, e * sizeof *dy);
    }
}

static void feed_forward_back(cr_pass *s, const float *params, int layer, size_t n_q,
                              const struct cr_groups *g, struct grads *to)
{
    struct kept *k = &s->layers[layer];
    size_t f = (size_t)s->m->n_ff, ld = s->p->stage[CR_STAGE_GATE_UP].ld;
    spread_dx(s, CR_STAGE_DOWN, s->m->layers[layer].ffn_post, k->raw_d, n_q);
    stage_back(s, params, layer, CR_STAGE_DOWN, g, k->u_d, s->p->stage[CR_STAGE_DOWN].n_u, s->wide,
               to);
    feed(s, k->gu, n_q, s->in);
    stage_add(s, layer, CR_STAGE_DOWN, g, s->in, to);

    for (size_t i = 0; i < n_q; i++)
        (s->m->gelu ? s->p->k->gelu_mul_back
                    : s->p->k->silu_mul_back)(s->y + i * ld, s->y + i * ld + f, s->wide + i * f,
                                              k->gu + i * ld, k->gu + i * ld + f, f);
    stage_back(s, params, layer, CR_STAGE_GATE_UP, g, k->gu + 2 * f, ld, s->wide, to);
    norm_rows(s, s->in, k->mid, s->m->layers[layer].ffn_norm, n_q);
    stage_add(s, layer, CR_STAGE_GATE_UP, g, s->in, to);
    norm_rows_back(s, s->dx, s->wide, k->mid, s->m->layers[layer].ffn_norm, n_q);
}

/* Takes the rotation (and the norm of heads) back: d [n_heads * D] in place; raw: before both. */
static void rotate_back(const cr_pass *s, int layer, float *d, const float *raw, const float *w,
                        int n_heads, size_t pos)
{
    size_t dim = (size_t)s->m->head_dim;
    turn(s, layer, d, n_heads, s->tables->rope_back, pos);
    for (int h = 0; w && h < n_heads; h++) {
        float *dy = s->attention; /* free by now */
        float *at = d + (size_t)h * dim;
        for (size_t i = 0; i < dim; i++) {
            dy[i] = at[i];
            at[i] = 0;
        }
        s->p->k->rmsnorm_back(at, dy, raw + (size_t)h * dim, w, dim, s->m->norm_eps);
    }
}

/* From d_o in s->wide [R, Q] to dy_ext of the qkv stage in s->y. */
static void attention_back(cr_pass *s, int layer, const struct cr_micro *b, size_t n_q)
{
    const cr_model *m = s->m;
    struct kept *k = &s->layers[layer];
    size_t ld = s->p->stage[CR_STAGE_QKV].ld, qd = (size_t)m->q_dim, kd = (size_t)m->kv_dim;
    rotate(s, layer, b, n_q);
    memset(s->y, 0, b->n_tokens * ld * sizeof *s->y);
    for (size_t seq = 0, q = 0; seq < b->n_seqs; seq++) {
        size_t end = query_end(s, q, n_q, b->seq[seq + 1]);
        struct cr_attention a = attention_of(s, layer, b, seq, q, end - q);
        float *dk = s->y + b->seq[seq] * ld + qd;
        cr_attention_back(&a, k->o + q * qd, s->wide + q * qd, qd, s->in + q * qd, qd, dk, ld,
                          dk + kd, ld, s->attention);
        q = end;
    }
    for (size_t i = 0; i < n_q; i++) {
        float *dq = s->y + s->row[i] * ld;
        memcpy(dq, s->in + i * qd, qd * sizeof *dq);
        rotate_back(s, layer, dq, k->qkv + s->row[i] * ld, m->layers[layer].norm_q, m->n_heads,
                    (size_t)s->limit[i] - 1);
    }
    for (size_t seq = 0; seq < b->n_seqs; seq++) {
        for (size_t t = b->seq[seq]; t < b->seq[seq + 1]; t++)
            rotate_back(s, layer, s->y + t * ld + qd, k->qkv + t * ld + qd, m->layers[layer].norm_k,
                        m->n_kv_heads, t - b->seq[seq]);
    }
}

/* Moves the rows of dx from the answers to their tokens, in place; other tokens get 0. */
static void scatter_answers(cr_pass *s, const struct cr_micro *b)
{
    size_t e = (size_t)s->m->n_embd, i = b->n_answers;
    for (size_t t = b->n_tokens;
         t-- > 0;) { /* from the end: an answer stands at or after its index */
        if (i > 0 && b->answer_row[i - 1] == t)
            memmove(s->dx + t * e, s->dx + --i * e, e * sizeof *s->dx);
        else
            memset(s->dx + t * e, 0, e * sizeof *s->dx);
    }
}

static void layer_back(cr_pass *s, const float *params, int layer, const struct cr_micro *b,
                       struct grads *to)
{
    const cr_model *m = s->m;
    struct kept *k = &s->layers[layer];
    const struct cr_groups *g = is_last(s, layer) ? &b->answers : &b->all;
    const struct cr_stage_shape *qkv = &s->p->stage[CR_STAGE_QKV];
    size_t n_q = query_rows(s, layer, b);

    if (s->recompute && !is_last(s, layer)) {
        attend(s, params, layer, b);
        widen(s, params, layer, g);
    }
    feed_forward_back(s, params, layer, n_q, g, to);

    spread_dx(s, CR_STAGE_O, m->layers[layer].attn_post, k->raw_o, n_q);
    stage_back(s, params, layer, CR_STAGE_O, g, k->u_o, s->p->stage[CR_STAGE_O].n_u, s->wide, to);
    stage_add(s, layer, CR_STAGE_O, g, k->o, to);

    attention_back(s, layer, b, n_q);
    stage_back(s, params, layer, CR_STAGE_QKV, &b->all, k->qkv + qkv->n_out, qkv->ld,
               layer > 0 ? s->wide : NULL, to);
    norm_rows(s, s->in, k->x, m->layers[layer].attn_norm, b->n_tokens);
    stage_add(s, layer, CR_STAGE_QKV, &b->all, s->in, to);
    if (layer == 0)
        return;
    if (is_last(s, layer))
        scatter_answers(s, b);
    norm_rows_back(s, s->dx, s->wide, k->x, m->layers[layer].attn_norm, b->n_tokens);
}

/* Loss over the answers, and dx [answers, E]. The output matrix is taken in blocks of the
 * vocabulary, twice: for the logits and, once they are gradients, for dx. */
static double loss_and_dx(cr_pass *s, const struct cr_micro *b)
{
    const cr_model *m = s->m;
    const struct cr_matrix *w = &m->output;
    size_t e = (size_t)m->n_embd, v = (size_t)m->n_vocab;
    double loss = 0;
    memset(s->dx, 0, b->n_answers * e * sizeof *s->dx);
    norm_rows(s, s->in, s->last, m->output_norm, b->n_answers);
    for (size_t at = 0; at < b->n_answers; at += LOGIT_ROWS) {
        size_t rows = b->n_answers - at < LOGIT_ROWS ? b->n_answers - at : LOGIT_ROWS;
        for (int back = 0; back < 2; back++) {
            for (size_t i = 0; i < rows && back; i++)
                loss += (double)b->answer_weight[at + i] *
                        (double)cr_cross_entropy(m->k, s->logits + i * v, v, b->answer_id[at + i],
                                                 b->answer_weight[at + i]);
            for (size_t first = 0; first < v; first += VOCAB_BLOCK) {
                size_t n = v - first < VOCAB_BLOCK ? v - first : VOCAB_BLOCK;
                for (size_t r = 0; r < n; r++)
                    m->k->dequantize[w->type](
                        s->w + r * e, (const char *)w->data + (first + r) * w->row_bytes, e);
                if (!back)
                    s->p->k->gemm_nt(rows, n, e, 1, s->in + at * e, e, s->w, e, false,
                                     s->logits + first, v);
                else
                    s->p->k->gemm_nn(rows, e, n, 1, s->logits + first, v, s->w, e, first > 0,
                                     s->wide + at * e, e);
            }
        }
    }
    norm_rows_back(s, s->dx, s->wide, s->last, m->output_norm, b->n_answers);
    return loss;
}

double cr_pass_run(cr_pass *s, const float *params, const struct cr_micro *b, float *grads,
                   float *da, struct cr_turns *turns, size_t micro)
{
    const cr_model *m = s->m;
    for (size_t t = 0; t < b->n_tokens; t++)
        cr_model_embed(m, b->ids[t], s->layers[0].x + t * (size_t)m->n_embd);
    for (int layer = 0; layer < m->n_layers; layer++)
        layer_forward(s, params, layer, b);
    double loss = loss_and_dx(s, b);
    if (!grads)
        return loss;
    struct grads to = {grads, da, turns, micro};
    memset(da, 0, b->all.n * (size_t)s->p->n * sizeof *da);
    for (int layer = m->n_layers; layer-- > 0;)
        layer_back(s, params, layer, b, &to);
    return loss;
}
