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
 *
 * Legend: t token of the chunk, E n_embd, Q q_dim = heads * D, KV kv_dim = kv heads * D, F n_ff,
 * V n_vocab. Arrays of the chunk are dense: [n, width].
 */
#include "model/session.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

enum {
    CHUNK = 256,     /* tokens in one pass: enough to keep the kernels busy, few enough for L2 */
    ROW_GRAIN = 16,  /* rows of a matrix that stay on one thread */
    TOKEN_GRAIN = 4, /* tokens of elementwise work that stay on one thread */
    RANK_TILE = 64,  /* ranks of a delta applied at a time; bounds `low` without knowing the rank */
    TMP_ROWS = 256,  /* rows and tokens of a delta's product before it is added */
    TMP_TOKENS = 16,
    SIDE = 4,               /* tokens that attend side by side where they see the same cells */
    LOGIT_FLOATS = 1 << 20, /* logits held at a time, in whole tokens: 1 to MAX_LOGIT_ROWS */
    MAX_LOGIT_ROWS = 64,
    MAX_PARTS = 3
};

/* One product of a group that shares its input: y[t] = W in[t] + B (A in[t]). */
struct part {
    const struct cr_matrix *w;
    float *y;   /* [n, w->n_out] */
    int lin;    /* enum cr_linear; -1: never has a delta */
    float *low; /* [n, RANK_TILE] A in, one tile of ranks */
};

struct chunk_token {
    struct cr_batch_token t; /* its cell and delta are set, placed or not */
    size_t index;            /* in the batch */
};

/* Makes the input of the next products for token t and returns it. */
typedef const float *input_fn(cr_session *s, size_t t);

struct cr_session {
    cr_model *m;
    const struct cr_kernels *k;
    const cr_delta *delta;
    uint64_t delta_id; /* 0: none */
    int n_ctx, n_cells, n_ids;
    bool has_logits;
    int logits_row; /* what cr_session_logits gives */
    size_t chunk, logit_rows;
    int32_t *ids;      /* [n_ctx] what cr_session_sync remembers, n_ids of them */
    uint16_t *k_cache; /* [n_layers, kv heads, n_ctx / TILE, D, TILE] float16 */
    uint16_t *v_cache; /* [n_layers, kv heads, n_ctx, D] */
    /* the chunk */
    size_t n;                   /* tokens */
    int layer, max_rank;        /* of the tokens' deltas */
    struct chunk_token *tokens; /* [chunk] */
    float *angles;              /* [chunk, n_ropes, rope_dim / 2, 2] cos, sin */
    float *x;                   /* [chunk, E] the residual stream */
    float *normed;              /* [chunk, E] */
    float *att;                 /* [chunk, Q], the same memory as normed */
    float *q;                   /* [chunk, Q] */
    float *out;                 /* [chunk, E], the same memory as q */
    float *k_new, *v_new;       /* [chunk, KV] */
    float *gate, *up;           /* [chunk, F] */
    char *quantised;            /* [chunk] rows of q8a blocks of the current input */
    uint16_t *halves;           /* [chunk, n_in] the current input in bfloat16 */
    float *low;                 /* [MAX_PARTS, chunk, RANK_TILE] */
    float *scores;              /* [threads, SIDE, n_ctx] */
    float *tmp;                 /* [threads, TMP_TOKENS, TMP_ROWS] */
    float *logits;              /* [logit_rows, V] */
    /* the group of products at work */
    struct part parts[MAX_PARTS];
    int n_parts, tile;
    input_fn *input;
    const float *in; /* [n, n_in] */
    size_t n_in, quantised_bytes;
    bool quantise, halve; /* whether some product takes that form of it */
};

/* ---- memory: one block, carved ---- */

struct carver {
    char *base; /* NULL: only count */
    size_t at;
};

static void *carve(struct carver *c, size_t n, size_t size)
{
    size_t at = c->at;
    c->at += (n * size + 63) / 64 * 64;
    return c->base ? c->base + at : NULL;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Cells of a cache for n tokens. */
static size_t whole_tiles(size_t n)
{
    return (n + CR_KV_TILE - 1) / CR_KV_TILE * CR_KV_TILE;
}

/* Sets the pointers of s into base, where s itself stands first; returns the bytes of it all. */
static size_t lay_out(cr_session *s, const cr_model *m, int n_ctx, char *base)
{
    struct carver c = {base, 0};
    size_t ctx = (size_t)n_ctx, E = (size_t)m->n_embd, Q = (size_t)m->q_dim, F = (size_t)m->n_ff;
    size_t KV = (size_t)m->kv_dim, V = (size_t)m->n_vocab, L = (size_t)m->n_layers;
    size_t threads = (size_t)cr_threads_count(m->threads);
    size_t n = ctx < CHUNK ? ctx : CHUNK;
    carve(&c, 1, sizeof *s);
    s->chunk = n;
    s->logit_rows = LOGIT_FLOATS / V;
    s->logit_rows = s->logit_rows < 1 ? 1 : s->logit_rows;
    s->logit_rows = s->logit_rows < MAX_LOGIT_ROWS ? s->logit_rows : MAX_LOGIT_ROWS;
    s->logit_rows = s->logit_rows < n ? s->logit_rows : n;
    s->ids = carve(&c, ctx, sizeof *s->ids);
    s->tokens = carve(&c, n, sizeof *s->tokens);
    s->angles = carve(&c, n * (size_t)(m->n_ropes * m->rope_dim), sizeof(float));
    s->x = carve(&c, n * E, sizeof(float));
    s->normed = s->att = carve(&c, n * larger(E, Q), sizeof(float));
    s->q = s->out = carve(&c, n * larger(E, Q), sizeof(float));
    s->k_new = carve(&c, n * KV, sizeof(float));
    s->v_new = carve(&c, n * KV, sizeof(float));
    s->gate = carve(&c, n * F, sizeof(float));
    s->up = carve(&c, n * F, sizeof(float));
    s->quantised_bytes = larger(larger(E, Q), F) / CR_QK * sizeof(struct cr_block_q8a);
    s->quantised = carve(&c, n, s->quantised_bytes);
    s->halves = carve(&c, n * larger(larger(E, Q), F), sizeof *s->halves);
    s->low = carve(&c, MAX_PARTS * n * RANK_TILE, sizeof(float));
    s->scores = carve(&c, threads * SIDE * ctx, sizeof(float));
    s->tmp = carve(&c, threads * TMP_TOKENS * TMP_ROWS, sizeof(float));
    s->logits = carve(&c, s->logit_rows * V, sizeof(float));
    s->k_cache = carve(&c, L * whole_tiles(ctx) * KV, sizeof *s->k_cache);
    s->v_cache = carve(&c, L * whole_tiles(ctx) * KV, sizeof *s->v_cache);
    return c.at;
}

size_t cr_session_bytes(const cr_model *m, int n_ctx)
{
    cr_session counted = {0};
    n_ctx = n_ctx ? n_ctx : m->n_ctx_train;
    return m->layers && n_ctx > 0 && n_ctx <= CR_MAX_CTX ? lay_out(&counted, m, n_ctx, NULL) : 0;
}

enum cr_status cr_session_new(cr_session **out, cr_model *m, int n_ctx, struct cr_error *err)
{
    *out = NULL;
    if (!m->layers)
        return cr_error_set(err, CR_INVALID, "session: %s was opened for its vocabulary only",
                            m->path);
    if (n_ctx < 0 || n_ctx > CR_MAX_CTX)
        return cr_error_set(err, CR_INVALID,
                            "session: want a context of 1 to %d tokens (0: the "
                            "model's %d), got %d",
                            CR_MAX_CTX, m->n_ctx_train, n_ctx);
    enum cr_status status = cr_model_place(m, err);
    if (status != CR_OK)
        return status;
    n_ctx = n_ctx ? n_ctx : m->n_ctx_train;
    size_t bytes = cr_session_bytes(m, n_ctx);
    /* not cleared: pages of the cache become real when they are first written */
    char *block = cr_alloc(1, bytes);
    if (!block)
        return cr_error_set(err, CR_NO_MEMORY, "session: out of memory: %d tokens need %zu bytes",
                            n_ctx, bytes);
    cr_session *s = (cr_session *)block;
    *s = (cr_session){.m = m, .k = m->k, .n_ctx = n_ctx};
    lay_out(s, m, n_ctx, block);
    *out = s;
    return CR_OK;
}

void cr_session_free(cr_session *s)
{
    cr_free(s);
}

/* ---- groups of products ---- */

/* The current input in the form that products with a type take. */
static const void *input_for(const cr_session *s, uint32_t type, size_t *row_bytes)
{
    switch (type) {
    case CR_F32:
    case CR_F16:
        *row_bytes = s->n_in * sizeof *s->in;
        return s->in;
    case CR_BF16:
        *row_bytes = s->n_in * sizeof *s->halves;
        return s->halves;
    default:
        *row_bytes = s->quantised_bytes;
        return s->quantised;
    }
}

static size_t ranks_in_tile(const struct cr_low_rank *d, int tile)
{
    int left = d->rank - tile * RANK_TILE;
    return (size_t)(left <= 0 ? 0 : left < RANK_TILE ? left : RANK_TILE);
}

/* The tokens from begin on that share a delta: returns where they end, at most `end`. *d is their
 * change of the part's layer, NULL for none. */
static size_t same_delta(const cr_session *s, const struct part *p, size_t begin, size_t end,
                         const struct cr_low_rank **d)
{
    const cr_delta *delta = s->tokens[begin].t.delta;
    *d = delta && p->lin >= 0 ? cr_delta_at(delta, s->layer, (enum cr_linear)p->lin) : NULL;
    size_t t = begin + 1;
    while (t < end && s->tokens[t].t.delta == delta)
        t++;
    return t;
}

/* low[t] = A[tile] in[t] for tokens [begin, end) of each part with a delta. */
static void low_pass(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const struct cr_low_rank *d;
    for (int i = 0; i < s->n_parts; i++) {
        const struct part *p = &s->parts[i];
        for (size_t t = begin, next; t < end; t = next) {
            next = same_delta(s, p, t, end, &d);
            size_t ranks = d ? ranks_in_tile(d, s->tile) : 0;
            if (ranks && d->packed_a)
                s->k->matmul_packed[CR_Q8_0](p->low + t * RANK_TILE, RANK_TILE, d->packed_a,
                                             s->k->panel_bytes(CR_Q8_0, s->n_in),
                                             s->quantised + t * s->quantised_bytes,
                                             s->quantised_bytes, ranks, next - t, s->n_in);
            else if (ranks)
                s->k->matmul[CR_F32](p->low + t * RANK_TILE, RANK_TILE,
                                     d->a + (size_t)s->tile * RANK_TILE * s->n_in,
                                     s->n_in * sizeof(float), s->in + t * s->n_in,
                                     s->n_in * sizeof(float), ranks, next - t, s->n_in);
        }
    }
}

/* Asks for memory that is read soon. Few tokens would wait for each small piece of a delta. */
static void ask_for(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + i);
}

static void ask_for_a(cr_session *s)
{
    const struct cr_low_rank *d;
    for (int i = 0; i < s->n_parts && s->n == 1; i++) {
        same_delta(s, &s->parts[i], 0, 1, &d);
        if (d && d->packed_a)
            ask_for(d->packed_a, s->k->panel_bytes(CR_Q8_0, s->n_in));
    }
}

static void ask_for_b(cr_session *s, const struct part *p, size_t begin, size_t end)
{
    const struct cr_low_rank *d;
    same_delta(s, p, 0, 1, &d);
    if (d && d->packed_b && s->n == 1) {
        size_t rank = (size_t)d->rank, at = s->k->low_bytes(begin, rank);
        ask_for((const char *)d->packed_b + at, s->k->low_bytes(end, rank) - at);
    }
}

/* Inputs of tokens [begin, end), in the formats that the products take. */
static void input_pass(void *ud, size_t begin, size_t end, int thread)
{
    cr_session *s = ud;
    ask_for_a(s);
    for (size_t t = begin; t < end; t++) {
        const float *in = s->input(s, t);
        if (s->quantise)
            s->k->quantize_q8a(
                (struct cr_block_q8a *)(void *)(s->quantised + t * s->quantised_bytes), in,
                s->n_in);
        if (s->halve)
            s->k->f32_to_bf16(s->halves + t * s->n_in, in, s->n_in);
    }
    low_pass(s, begin, end, thread);
}

/* y[t, r] += B[r, tile] low[t] for rows [begin, end) of a part and tokens [first, last). */
static void add_low(cr_session *s, const struct part *p, const struct cr_low_rank *d, size_t begin,
                    size_t end, size_t first, size_t last, float *tmp)
{
    size_t ranks = ranks_in_tile(d, s->tile), n_out = (size_t)p->w->n_out, rank = (size_t)d->rank;
    if (d->packed_b && s->tile == 0) { /* all ranks; begin begins a panel */
        const char *b = (const char *)d->packed_b + s->k->low_bytes(begin, rank);
        s->k->add_low(p->y + first * n_out + begin, n_out, b, p->low + first * RANK_TILE, RANK_TILE,
                      end - begin, last - first, rank);
        return;
    }
    for (size_t r = begin; r < end && ranks; r += TMP_ROWS) {
        size_t rows = end - r < TMP_ROWS ? end - r : TMP_ROWS;
        const float *b = d->b + r * rank + (size_t)s->tile * RANK_TILE;
        for (size_t t = first; t < last; t += TMP_TOKENS) {
            size_t n = last - t < TMP_TOKENS ? last - t : TMP_TOKENS;
            s->k->matmul[CR_F32](tmp, TMP_ROWS, b, rank * sizeof(float), p->low + t * RANK_TILE,
                                 RANK_TILE * sizeof(float), rows, n, ranks);
            for (size_t i = 0; i < n; i++)
                s->k->add(p->y + (t + i) * n_out + r, tmp + i * TMP_ROWS, rows);
        }
    }
}

static void add_delta(cr_session *s, const struct part *p, size_t begin, size_t end, int thread)
{
    const struct cr_low_rank *d;
    for (size_t t = 0, next; t < s->n; t = next) {
        next = same_delta(s, p, t, s->n, &d);
        if (d)
            add_low(s, p, d, begin, end, t, next, s->tmp + (size_t)thread * TMP_TOKENS * TMP_ROWS);
    }
}

/* Rows of a part in the stack of all parts: each part begins at a multiple of ROW_GRAIN. */
static size_t stacked_rows(const struct part *p)
{
    return ((size_t)p->w->n_out + ROW_GRAIN - 1) / ROW_GRAIN * ROW_GRAIN;
}

/* Calls fn for the piece of each part that lies in rows [begin, end) of all parts stacked. */
static void each_part(cr_session *s, size_t begin, size_t end, int thread,
                      void (*fn)(cr_session *, const struct part *, size_t, size_t, int))
{
    size_t first = 0;
    for (int i = 0; i < s->n_parts; i++) {
        size_t last = first + (size_t)s->parts[i].w->n_out;
        size_t b = larger(begin, first), e = end < last ? end : last;
        if (b < e)
            fn(s, &s->parts[i], b - first, e - first, thread);
        first += stacked_rows(&s->parts[i]);
    }
}

static void multiply(cr_session *s, const struct part *p, size_t begin, size_t end, int thread)
{
    const struct cr_matrix *w = p->w;
    size_t x_bytes;
    const void *x = input_for(s, w->type, &x_bytes);
    ask_for_b(s, p, begin, end);
    const char *rows = (const char *)w->data + begin * w->row_bytes;
    size_t row_bytes = w->row_bytes;
    if (w->packed) { /* begin is a multiple of ROW_GRAIN, so it begins a panel */
        rows = (const char *)w->packed + begin / s->k->panel_rows * w->panel_bytes;
        row_bytes = w->panel_bytes;
    }
    (w->packed ? s->k->matmul_packed : s->k->matmul)[w->type](
        p->y + begin, (size_t)w->n_out, rows, row_bytes, x, x_bytes, end - begin, s->n, s->n_in);
    add_delta(s, p, begin, end, thread);
}

static void row_pass(void *ud, size_t begin, size_t end, int thread)
{
    each_part(ud, begin, end, thread, multiply);
}

static void delta_pass(void *ud, size_t begin, size_t end, int thread)
{
    each_part(ud, begin, end, thread, add_delta);
}

static void by_tokens(cr_session *s, cr_rows_fn *pass)
{
    cr_threads_run(s->m->threads, s->n, TOKEN_GRAIN, pass, s);
}

/* Runs the products in s->parts. The first tile of a delta goes along; ranks past it, which are
 * rare, take further rounds. */
static void multiply_parts(cr_session *s, input_fn *input, const float *in)
{
    size_t rows = 0;
    int rank = 0;
    s->quantise = s->halve = false;
    s->n_in = (size_t)s->parts[0].w->n_in;
    s->input = input;
    s->in = in;
    s->tile = 0;
    for (int i = 0; i < s->n_parts; i++) {
        struct part *p = &s->parts[i];
        p->low = s->low + (size_t)i * s->chunk * RANK_TILE;
        rows += stacked_rows(p);
        rank = p->lin >= 0 ? s->max_rank : rank;
        s->halve |= p->w->type == CR_BF16;
        s->quantise |= p->w->type != CR_F32 && p->w->type != CR_F16 && p->w->type != CR_BF16;
    }
    by_tokens(s, input_pass);
    cr_threads_run(s->m->threads, rows, ROW_GRAIN, row_pass, s);
    for (s->tile = 1; s->tile * RANK_TILE < rank; s->tile++) {
        by_tokens(s, low_pass);
        cr_threads_run(s->m->threads, rows, ROW_GRAIN, delta_pass, s);
    }
}

static void set_part(cr_session *s, int i, enum cr_linear lin, float *y)
{
    s->parts[i] = (struct part){.w = &s->m->layers[s->layer].lin[lin], .y = y, .lin = (int)lin};
    s->n_parts = i + 1;
}

/* ---- the steps of a layer ---- */

static const float *norm_for_attention(cr_session *s, size_t t)
{
    size_t E = (size_t)s->m->n_embd;
    s->k->rmsnorm(s->normed + t * E, s->x + t * E, s->m->layers[s->layer].attn_norm, E,
                  s->m->norm_eps);
    return s->normed + t * E;
}

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
static float *token_angles(const cr_session *s, size_t t, int rope)
{
    size_t at = t * (size_t)s->m->n_ropes + (size_t)rope;
    return rope < 0 ? NULL : s->angles + at * (size_t)s->m->rope_dim;
}

/* Where the keys, or values, of the layer's kv head begin. */
static uint16_t *head_cells(const cr_session *s, uint16_t *cache, int kv_head)
{
    size_t head = (size_t)s->layer * (size_t)s->m->n_kv_heads + (size_t)kv_head;
    return cache + head * whole_tiles((size_t)s->n_ctx) * (size_t)s->m->head_dim;
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
static void place_heads(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const cr_model *m = s->m;
    const struct cr_layer *w = &m->layers[s->layer];
    size_t KV = (size_t)m->kv_dim;
    for (size_t t = begin; t < end; t++) {
        const float *angles = token_angles(s, t, w->rope);
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
        most = larger(most, n_seg[t]);
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
        cr_rope_angles(s->m, s->tokens[t].t.pos, token_angles(s, t, 0));
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
        multiply_parts(s, norm_for_output, s->normed);
        for (size_t t = 0; t < s->n; t++)
            b->on_logits(b->ud, s->tokens[done + t].index, s->logits + t * V);
    }
}

/* Runs s->tokens [n]. */
static void run_chunk(cr_session *s, size_t n, const struct cr_batch *b)
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
    by_tokens(s, embed);
    if (tap == -1)
        give_hidden(s, b);
    for (s->layer = 0; s->layer <= last; s->layer++) {
        set_part(s, 0, CR_LIN_Q, s->q);
        set_part(s, 1, CR_LIN_K, s->k_new);
        set_part(s, 2, CR_LIN_V, s->v_new);
        multiply_parts(s, norm_for_attention, s->normed);

        by_tokens(s, place_heads);
        if (s->layer == last)
            keep_wanted(s, tap == last || (b->on_logits && last == m->n_layers - 1));
        if (s->n == 0)
            break;
        size_t groups = (s->n + SIDE - 1) / SIDE;
        cr_threads_run_dynamic(m->threads, groups * (size_t)m->n_heads,
                               groups < ROW_GRAIN ? groups : ROW_GRAIN, attend, s);
        set_part(s, 0, CR_LIN_O, s->out);
        multiply_parts(s, attended, s->att);

        set_part(s, 0, CR_LIN_GATE, s->gate);
        set_part(s, 1, CR_LIN_UP, s->up);
        multiply_parts(s, norm_for_ffn, s->normed);

        set_part(s, 0, CR_LIN_DOWN, s->out);
        multiply_parts(s, gate_and_up, s->gate);
        by_tokens(s, add_ffn);
        if (s->layer == tap)
            give_hidden(s, b);
    }
    if (b->on_logits && last == m->n_layers - 1)
        give_logits(s, b);
}

/* ---- batches ---- */

void cr_session_reset(cr_session *s)
{
    cr_session_truncate(s, 0);
}

void cr_session_truncate(cr_session *s, int n)
{
    n = n > 0 ? n : 0;
    s->n_cells = s->n_cells < n ? s->n_cells : n;
    s->n_ids = s->n_ids < s->n_cells ? s->n_ids : s->n_cells;
    s->has_logits = false;
}

static enum cr_status check_delta(const cr_session *s, const cr_delta *d, struct cr_error *err)
{
    if (d && d->n_layers != s->m->n_layers)
        return cr_error_set(err, CR_INVALID, "session: the delta has %d layers, the model %d",
                            d->n_layers, s->m->n_layers);
    return CR_OK;
}

static enum cr_status check_room(const cr_session *s, size_t n, struct cr_error *err)
{
    if (n > (size_t)(s->n_ctx - s->n_cells))
        return cr_error_set(err, CR_LIMIT,
                            "session: %zu tokens after %d do not fit in a context of %d", n,
                            s->n_cells, s->n_ctx);
    return check_delta(s, s->delta, err);
}

/* What was computed from a damaged file is worth nothing. */
static enum cr_status check_file(cr_session *s, struct cr_error *err)
{
    if (!cr_gguf_damaged(s->m->gguf))
        return CR_OK;
    cr_session_reset(s);
    return cr_error_set(err, CR_IO, "%s: the file was cut short while in use", s->m->path);
}

static enum cr_status check_token(const cr_session *s, size_t i, const struct cr_batch_token *t,
                                  bool placed, int64_t cell, struct cr_error *err)
{
    int64_t most = placed ? s->n_ctx : cell; /* a placed token's prefix may lie behind it */
    if (t->id < 0 || t->id >= s->m->n_vocab)
        return cr_error_set(err, CR_INVALID, "session: token %zu: want an id from 0 to %d, got %d",
                            i, s->m->n_vocab - 1, (int)t->id);
    if (t->pos < 0 || t->pos >= CR_MAX_CTX)
        return cr_error_set(err, CR_INVALID,
                            "session: token %zu: want a position from 0 to %d, "
                            "got %d",
                            i, CR_MAX_CTX - 1, (int)t->pos);
    if (t->seg_begin < 0 || t->seg_begin > cell || t->pre_begin < 0 || t->pre_begin > t->pre_end ||
        t->pre_end > most ||
        (t->pre_begin < t->pre_end && t->pre_end > t->seg_begin && t->pre_begin <= cell))
        return cr_error_set(
            err, CR_INVALID, "session: token %zu in cell %d: bad ranges [%d,%d) and [%d,%d]", i,
            (int)cell, (int)t->pre_begin, (int)t->pre_end, (int)t->seg_begin, (int)cell);
    return CR_OK;
}

static enum cr_status check_tokens(const cr_session *s, const struct cr_batch *b,
                                   struct cr_error *err)
{
    enum cr_status status = b->placed ? CR_OK : check_room(s, b->n, err);
    for (size_t i = 0; i < b->n && status == CR_OK; i++) {
        const struct cr_batch_token *t = &b->tokens[i];
        if (b->placed && (t->cell < 0 || t->cell >= s->n_ctx))
            return cr_error_set(err, CR_LIMIT,
                                "session: token %zu: want a cell from 0 to %d, got %d", i,
                                s->n_ctx - 1, (int)t->cell);
        int64_t next = (int64_t)s->n_cells + (int64_t)i;
        status = check_token(s, i, t, b->placed, b->placed ? t->cell : next, err);
        if (status == CR_OK && b->placed)
            status = check_delta(s, t->delta, err);
    }
    return status;
}

enum cr_status cr_session_run(cr_session *s, const struct cr_batch *b, struct cr_error *err)
{
    enum cr_status status = check_tokens(s, b, err);
    if (status == CR_OK && b->on_hidden &&
        (b->hidden_layer < -1 || b->hidden_layer >= s->m->n_layers))
        status = cr_error_set(err, CR_INVALID, "session: want a hidden layer from -1 to %d, got %d",
                              s->m->n_layers - 1, b->hidden_layer);
    if (status != CR_OK)
        return status;
    s->has_logits = false;
    if (b->placed)
        s->n_ids = 0; /* any cell may be another's now */
    for (size_t done = 0; done < b->n;) {
        if (b->cancelled && b->cancelled(b->ud))
            return cr_error_set(err, CR_CANCELLED, "session: cancelled after %zu of %zu tokens",
                                done, b->n);
        size_t n = b->n - done < s->chunk ? b->n - done : s->chunk;
        for (size_t t = 0; t < n; t++) {
            struct cr_batch_token tok = b->tokens[done + t];
            if (!b->placed) {
                tok.cell = s->n_cells + (int32_t)t;
                tok.delta = s->delta;
            }
            s->tokens[t] = (struct chunk_token){tok, done + t};
        }
        run_chunk(s, n, b);
        done += n;
    }
    return check_file(s, err);
}

/* ---- one sequence ---- */

static void keep_logits(void *ud, size_t token, const float *logits)
{
    (void)token;
    (void)logits; /* they stay in the first row of s->logits */
    ((cr_session *)ud)->has_logits = true;
}

/* Appends ids to the plain sequence and runs them; logits for the last, or for all. */
static void append(cr_session *s, const int32_t *ids, size_t n, bool all)
{
    const struct cr_batch b = {.on_logits = keep_logits, .ud = s};
    s->has_logits = false;
    s->logits_row = 0;
    for (size_t done = 0; done < n;) {
        size_t k = n - done < s->chunk ? n - done : s->chunk;
        for (size_t t = 0; t < k; t++) {
            int32_t cell = s->n_cells + (int32_t)t;
            struct cr_batch_token tok = {.id = ids[done + t],
                                         .pos = cell,
                                         .want = all || done + t == n - 1,
                                         .cell = cell,
                                         .delta = s->delta};
            s->tokens[t] = (struct chunk_token){tok, done + t};
        }
        memcpy(s->ids + s->n_ids, ids + done, k * sizeof *ids);
        run_chunk(s, k, &b);
        s->n_ids += (int)k;
        done += k;
    }
}

static enum cr_status check_ids(const cr_session *s, const int32_t *ids, size_t n,
                                struct cr_error *err)
{
    for (size_t i = 0; i < n; i++) {
        const struct cr_batch_token t = {.id = ids[i]};
        enum cr_status status = check_token(s, i, &t, false, s->n_cells + (int64_t)i, err);
        if (status != CR_OK)
            return status;
    }
    return CR_OK;
}

enum cr_status cr_session_sync(cr_session *s, const int32_t *ids, size_t n, size_t *n_run,
                               struct cr_error *err)
{
    if (n_run)
        *n_run = 0;
    if (n == 0)
        return cr_error_set(err, CR_INVALID, "session: want at least one token, got none");
    if (n > (size_t)s->n_ctx)
        return cr_error_set(err, CR_LIMIT, "session: %zu tokens do not fit in a context of %d", n,
                            s->n_ctx);
    enum cr_status status = check_ids(s, ids, n, err);
    if (status != CR_OK)
        return status;
    size_t same = 0;
    while (same < n - 1 && same < (size_t)s->n_ids && s->ids[same] == ids[same])
        same++;
    cr_session_truncate(s, (int)same);
    status = check_room(s, n - same, err);
    if (status != CR_OK)
        return status;
    append(s, ids + same, n - same, false);
    if (n_run)
        *n_run = n - same;
    return check_file(s, err);
}

enum cr_status cr_session_step(cr_session *s, int32_t id, struct cr_error *err)
{
    enum cr_status status = check_ids(s, &id, 1, err);
    if (s->n_cells > s->n_ids)
        cr_session_truncate(s, s->n_ids); /* cells of another batch are not part of the sequence */
    if (status == CR_OK)
        status = check_room(s, 1, err);
    if (status != CR_OK)
        return status;
    append(s, &id, 1, false);
    return check_file(s, err);
}

enum cr_status cr_session_try(cr_session *s, const int32_t *ids, int n, struct cr_error *err)
{
    enum cr_status status = check_ids(s, ids, (size_t)n, err);
    if (s->n_cells > s->n_ids)
        cr_session_truncate(s, s->n_ids);
    if (status == CR_OK)
        status = check_room(s, (size_t)n, err);
    if (status != CR_OK)
        return status;
    append(s, ids, (size_t)n, true);
    return check_file(s, err);
}

int cr_session_try_most(const cr_session *s)
{
    return (int)s->logit_rows;
}

void cr_session_select(cr_session *s, int i)
{
    s->logits_row = i;
}

void cr_session_keep(cr_session *s, int n)
{
    bool has = s->has_logits;
    cr_session_truncate(s, n);
    s->has_logits = has;
}

void cr_session_set_delta(cr_session *s, const cr_delta *delta)
{
    uint64_t id = delta ? delta->id : 0;
    if (id != s->delta_id)
        cr_session_reset(s);
    s->delta = delta;
    s->delta_id = id;
}

const float *cr_session_logits(const cr_session *s)
{
    return s->has_logits ? s->logits + (size_t)s->logits_row * (size_t)s->m->n_vocab : NULL;
}

int cr_session_length(const cr_session *s)
{
    return s->n_cells;
}

int cr_session_ctx(const cr_session *s)
{
    return s->n_ctx;
}

cr_model *cr_session_model(const cr_session *s)
{
    return s->m;
}

const cr_delta *cr_session_delta(const cr_session *s)
{
    return s->delta;
}
