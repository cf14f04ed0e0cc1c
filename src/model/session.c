/* SPDX-License-Identifier: Apache-2.0 */
/* A session: its memory, batches of many sequences, and one plain sequence. */
#include "model/session_impl.h"

#include "base/mem.h"

#include <string.h>

/* ---- memory: one block, carved ---- */

enum {
    LOGIT_FLOATS = 1 << 20, /* logits held at a time, in whole tokens: 1 to MAX_LOGIT_ROWS */
    MAX_LOGIT_ROWS = 64
};

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
    s->normed = s->att = carve(&c, n * cr_larger(E, Q), sizeof(float));
    s->q = s->out = carve(&c, n * cr_larger(E, Q), sizeof(float));
    s->k_new = carve(&c, n * KV, sizeof(float));
    s->v_new = carve(&c, n * KV, sizeof(float));
    s->gate = carve(&c, n * F, sizeof(float));
    s->up = carve(&c, n * F, sizeof(float));
    s->quantised_bytes = cr_larger(cr_larger(E, Q), F) / CR_QK * sizeof(struct cr_block_q8a);
    s->quantised = carve(&c, n, s->quantised_bytes);
    s->halves = carve(&c, n * cr_larger(cr_larger(E, Q), F), sizeof *s->halves);
    s->terms = carve(&c, m->k->split_f32 ? n : 0, /* touched where there are F16 weights */
                     cr_split_values(cr_larger(cr_larger(E, Q), F)) * sizeof *s->terms);
    s->low = carve(&c, MAX_PARTS * n * RANK_TILE, sizeof(float));
    s->low_codes = carve(&c, n * LOW_BLOCKS, sizeof *s->low_codes);
    s->scores =
        carve(&c, cr_larger(threads * SIDE * HEADS, (size_t)m->n_heads) * ctx, sizeof(float));
    s->tmp = carve(&c, threads * TMP_TOKENS * TMP_ROWS, sizeof(float));
    s->logits = carve(&c, s->logit_rows * V, sizeof(float));
    s->tile_bytes = cr_cache_tile_bytes(m);
    s->k_cache =
        carve(&c, L * (size_t)m->n_kv_heads * cr_whole_tiles(ctx) / CR_KV_TILE, s->tile_bytes);
    s->v_cache =
        carve(&c, L * (size_t)m->n_kv_heads * cr_whole_tiles(ctx) / CR_KV_TILE, s->tile_bytes);
    return c.at;
}

size_t cr_session_bytes(const cr_model *m, int n_ctx)
{
    cr_session counted = {0};
    n_ctx = n_ctx ? n_ctx : m->n_ctx_train;
    return m->layers && n_ctx > 0 && n_ctx <= CR_MAX_CTX ? lay_out(&counted, m, n_ctx, NULL) : 0;
}

size_t cr_session_kv_bytes(const cr_model *m, int n_ctx)
{
    size_t ctx = (size_t)(n_ctx ? n_ctx : m->n_ctx_train);
    return 2 * (size_t)(m->n_layers * m->n_kv_heads) * (cr_whole_tiles(ctx) / CR_KV_TILE) *
           cr_cache_tile_bytes(m);
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
    if (m->kv == CR_KV_Q8_0 && (m->head_dim % CR_QK || m->head_dim > CR_MAX_HEAD_DIM))
        return cr_error_set(err, CR_UNSUPPORTED,
                            "session: a KV cache in q8_0 needs heads of a multiple of %d values up "
                            "to %d, those of %s have %d",
                            CR_QK, CR_MAX_HEAD_DIM, m->path, m->head_dim);
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
        cr_layers_run(s, n, b);
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
        cr_layers_run(s, k, &b);
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

void cr_session_copy(cr_session *s, int from, int to, int n)
{
    cr_cache_copy(s, (size_t)from, (size_t)to, (size_t)n);
    s->n_cells = s->n_cells > to + n ? s->n_cells : to + n;
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
