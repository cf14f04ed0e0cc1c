/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores and embeddings on a GPU: the forward pass over packed batches, with a
 * delta as a pool of one adapter. The delta is uploaded when it is not the one
 * of the last call.
 */
#include "base/mem.h"
#include "cuda/cuda.h"
#include "cuda/gpu.h"

#include <string.h>

enum { MAX_TOKENS = 16384 };

struct scores {
    cr_model *m;
    struct cr_lowrank low;
    struct cr_gpu *gpu; /* made with the first delta, again for one of a higher rank */
    int rank;
    uint64_t delta; /* id of the one that is there; 0: none */
    float *params;  /* [low.n_params] */
};

static size_t max_tokens(const cr_model *m)
{
    return m->n_ctx_train > MAX_TOKENS ? (size_t)m->n_ctx_train : MAX_TOKENS;
}

/* A GPU whose low-rank part has `rank` hidden numbers per linear. */
static enum cr_status set_rank(struct scores *s, int rank, struct cr_error *err)
{
    static const bool all[CR_LIN_COUNT] = {true, true, true, true, true, true, true};
    size_t n = max_tokens(s->m);
    struct cr_gpu_shape shape = {.n_tokens = n,
                                 .n_rows = n,
                                 .n_groups = 1,
                                 .n_batches = 1,
                                 .longest = (size_t)s->m->n_ctx_train,
                                 .n_targets = 4 * n};
    cr_gpu_free(s->gpu);
    s->gpu = NULL;
    s->delta = 0;
    cr_lowrank_init(&s->low, s->m, CR_POOL_SHARED, 1, rank, (float)rank, all, 0);
    cr_free(s->params);
    s->params = cr_alloc(s->low.n_params, sizeof *s->params);
    if (!s->params)
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory for a delta of rank %d", rank);
    s->rank = rank;
    return cr_gpu_new(&s->gpu, 0, s->m, &s->low, &shape, err);
}

/* The pair of a linear into the parameters: A as it is, B transposed, both
 * filled up with 0. */
static void put_pair(struct scores *s, const struct cr_low_rank *pair, int layer,
                     enum cr_stage stage, int i)
{
    const struct cr_stage_shape *st = &s->low.stage[stage];
    float *a =
        s->params + cr_lowrank_a(&s->low, layer, stage) + (st->u_at[i] - st->n_out) * st->n_in;
    float *b = s->params + cr_lowrank_b(&s->low, layer, stage, i);
    memset(a, 0, s->low.r * st->n_in * sizeof *a);
    memset(b, 0, s->low.r * st->lin_out[i] * sizeof *b);
    if (!pair->rank)
        return;
    memcpy(a, pair->a, (size_t)pair->rank * st->n_in * sizeof *a);
    for (size_t o = 0; o < st->lin_out[i]; o++)
        for (size_t j = 0; j < (size_t)pair->rank; j++)
            b[j * st->lin_out[i] + o] = pair->b[o * (size_t)pair->rank + j];
}

static enum cr_status set_delta(struct scores *s, const cr_delta *d, struct cr_error *err)
{
    int rank = d && d->max_rank > 8 ? d->max_rank : 8;
    if (!s->gpu || rank > s->rank) {
        enum cr_status st = set_rank(s, rank, err);
        if (st)
            return st;
    }
    cr_gpu_use(s->gpu);
    s->gpu->low = d != NULL;
    if (!d || d->id == s->delta)
        return CR_OK;
    for (int l = 0; l < s->m->n_layers; l++)
        for (int stage = 0; stage < CR_STAGE_COUNT; stage++)
            for (int i = 0; i < s->low.stage[stage].n_lins; i++)
                put_pair(s, cr_delta_at(d, l, s->low.stage[stage].lin[i]), l, (enum cr_stage)stage,
                         i);
    cr_gpu_put_params(s->gpu, s->params);
    s->delta = d->id;
    return CR_OK;
}

/* The tokens, and as rows those that are wanted: wanted [n] gives the row of
 * each, -1: none. */
static struct cr_gpu_batch put_tokens(struct cr_gpu *g, const struct cr_batch_token *tokens,
                                      size_t n, int32_t *wanted)
{
    const size_t begin[2] = {0, n};
    const int *there;
    struct cr_gpu_batch b = {.n_tokens = (int)n, .n_groups = 1};
    int *ids = cr_gpu_take(g, n, &b.ids), *pos = cr_gpu_take(g, n, &b.pos);
    int *seg = cr_gpu_take(g, n, &b.seg), *pre = cr_gpu_take(g, n, &b.pre);
    int *pre_end = cr_gpu_take(g, n, &b.pre_end);
    for (size_t t = 0; t < n; t++) {
        ids[t] = tokens[t].id;
        pos[t] = tokens[t].pos;
        seg[t] = tokens[t].seg_begin;
        pre[t] = tokens[t].pre_begin;
        pre_end[t] = tokens[t].pre_end;
        wanted[t] = tokens[t].want ? b.n_rows++ : -1;
    }
    cr_gpu_order(g, &b, seg, NULL, pre, pre_end);
    int *row = cr_gpu_take(g, (size_t)b.n_rows, &b.row);
    for (size_t t = 0; t < n; t++)
        if (wanted[t] >= 0)
            row[wanted[t]] = (int)t;
    b.n_chunks = cr_gpu_chunks(g, begin, 1, n, &b.chunks, &b.begin, &b.group);
    b.row_group = b.group; /* all 0 */
    float *a = cr_gpu_take(g, 1, &there);
    *a = 1;
    b.a = (const float *)(const void *)there;
    return b;
}

static enum cr_status check(const struct scores *s, const struct cr_batch_token *tokens, size_t n,
                            struct cr_error *err)
{
    if (n > max_tokens(s->m))
        return cr_error_set(err, CR_LIMIT, "cuda: a batch of %zu tokens, at most %zu", n,
                            max_tokens(s->m));
    for (size_t t = 0; t < n; t++)
        if (tokens[t].id < 0 || tokens[t].id >= s->m->n_vocab || tokens[t].pos < 0 ||
            tokens[t].pos >= s->m->n_ctx_train || tokens[t].seg_begin < 0 ||
            tokens[t].seg_begin > (int32_t)t || tokens[t].pre_end > (int32_t)t)
            return cr_error_set(err, CR_INVALID, "cuda: token %zu of a batch is out of range", t);
    return CR_OK;
}

static enum cr_status score(struct cr_compute *c, const cr_delta *delta,
                            const struct cr_batch_token *tokens, size_t n,
                            const struct cr_target *targets, size_t n_targets, float *logprob,
                            bool *best, struct cr_error *err)
{
    struct scores *s = c->state;
    enum cr_status st = check(s, tokens, n, err);
    if (!st && n_targets > 4 * max_tokens(s->m))
        st = cr_error_set(err, CR_LIMIT, "cuda: %zu targets in a batch, at most %zu", n_targets,
                          4 * max_tokens(s->m));
    if (!st)
        st = set_delta(s, delta, err);
    if (st || !n_targets)
        return st;
    int32_t *wanted = cr_alloc(n, sizeof *wanted);
    unsigned char *hit = cr_alloc(n_targets, 1);
    void *there = NULL;
    if (!wanted || !hit) {
        st = cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory for %zu tokens", n);
        goto end;
    }
    struct cr_gpu *g = s->gpu;
    const int *first_there, *id_there;
    struct cr_gpu_batch b = put_tokens(g, tokens, n, wanted);
    int *first = cr_gpu_take(g, (size_t)b.n_rows + 1, &first_there);
    int *id = cr_gpu_take(g, n_targets, &id_there);
    int row = 0;
    for (size_t i = 0; i < n_targets; i++) {
        id[i] = targets[i].id;
        while (row <= wanted[targets[i].token])
            first[row++] = (int)i;
    }
    while (row <= b.n_rows)
        first[row++] = (int)n_targets;
    if (cudaMalloc(&there, n_targets * 5) != cudaSuccess) {
        st = cr_error_set(err, CR_NO_MEMORY, "cuda: out of GPU memory for %zu targets", n_targets);
        goto end;
    }
    unsigned char *hit_there = (unsigned char *)there + 4 * n_targets;
    cr_gpu_send(g);
    cr_gpu_forward(g, &b, s->m->n_layers);
    for (int at = 0; at < b.n_rows; at += CR_GPU_LOGIT_ROWS) {
        int rows = b.n_rows - at < CR_GPU_LOGIT_ROWS ? b.n_rows - at : CR_GPU_LOGIT_ROWS;
        cr_gpu_logits(g, at, rows);
        cr_k_log_softmax(g->stream, there, hit_there, g->logits, g->ld_vocab, s->m->n_vocab,
                         first_there + at, id_there, rows);
    }
    cudaMemcpyAsync(logprob, there, n_targets * 4, cudaMemcpyDeviceToHost, g->stream);
    cudaMemcpyAsync(hit, hit_there, n_targets, cudaMemcpyDeviceToHost, g->stream);
    st = cr_gpu_sync(g, err);
    for (size_t i = 0; i < n_targets; i++)
        best[i] = hit[i];
end:
    cudaFree(there);
    cr_free(hit);
    cr_free(wanted);
    return st;
}

static enum cr_status hidden(struct cr_compute *c, const struct cr_batch_token *tokens, size_t n,
                             int layer, float *out, struct cr_error *err)
{
    struct scores *s = c->state;
    float *there = NULL;
    enum cr_status st = check(s, tokens, n, err);
    if (!st)
        st = set_delta(s, NULL, err);
    if (st)
        return st;
    int32_t *wanted = cr_alloc(n, sizeof *wanted);
    struct cr_gpu *g = s->gpu;
    if (!wanted)
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory for %zu tokens", n);
    struct cr_gpu_batch b = put_tokens(g, tokens, n, wanted);
    cr_free(wanted);
    size_t bytes = (size_t)b.n_rows * (size_t)s->m->n_embd * sizeof *out;
    cr_gpu_send(g);
    if (!b.n_rows)
        return cr_gpu_sync(g, err);
    if (cudaMalloc((void **)&there, bytes) != cudaSuccess)
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of GPU memory for %zu bytes", bytes);
    /* behind the last layer only the wanted rows are there */
    bool last = layer + 1 == s->m->n_layers;
    const uint16_t *x = cr_gpu_forward(g, &b, layer + 1);
    if (last)
        cr_k_to_float(g->stream, there, x, (size_t)b.n_rows * (size_t)s->m->n_embd);
    else
        cr_k_gather_float(g->stream, there, x, s->m->n_embd, b.row, b.n_rows, s->m->n_embd);
    cudaMemcpyAsync(out, there, bytes, cudaMemcpyDeviceToHost, g->stream);
    st = cr_gpu_sync(g, err);
    cudaFree(there);
    return st;
}

static void close_compute(struct cr_compute *c)
{
    if (!c)
        return;
    struct scores *s = c->state;
    cr_gpu_free(s->gpu);
    cr_free(s->params);
    cr_free(s);
    cr_free(c);
}

enum cr_status cr_cuda_compute_new(struct cr_compute **out, cr_model *m, struct cr_error *err)
{
    *out = NULL;
    enum cr_status st = cr_gpu_check(m, err);
    if (!st && !cr_cuda_count(err))
        st = CR_NOT_FOUND;
    if (st)
        return st;
    struct cr_compute *c = cr_alloc0(1, sizeof *c);
    struct scores *s = cr_alloc0(1, sizeof *s);
    if (!c || !s) {
        cr_free(c);
        cr_free(s);
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory");
    }
    s->m = m;
    *c = (struct cr_compute){.name = "cuda",
                             .state = s,
                             .max_tokens = max_tokens(m),
                             .score = score,
                             .hidden = hidden,
                             .close = close_compute};
    *out = c;
    return CR_OK;
}
