/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a GPU, the frozen weights on it, uploads, and matrix products by
 * cuBLAS. */
#include "cuda/gpu.h"

#include "base/mem.h"
#include "tune/ops.h"

#include <string.h>

enum { WORKSPACE = 32 << 20, BLAS_ERROR = 10000, ALIGN = 256, PIECE = 16 };

static void note(struct cr_gpu *g, cudaError_t e)
{
    if (e != cudaSuccess && !g->failed)
        g->failed = (int)e;
}

static void note_blas(struct cr_gpu *g, cublasStatus_t e)
{
    if (e != CUBLAS_STATUS_SUCCESS && !g->failed)
        g->failed = BLAS_ERROR + (int)e;
}

static size_t up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- memory ---- */

/* Hands out pieces of a block, or only counts them while the block is NULL. */
struct carver {
    char *block;
    size_t n;
};

static void *carve(struct carver *c, size_t n, size_t size)
{
    void *piece = c->block ? c->block + c->n : NULL;
    c->n += up(n * size, ALIGN);
    return piece;
}

static int n_targets(const struct cr_stage_shape *st)
{
    int n = 0;
    for (int i = 0; i < st->n_lins; i++)
        n += st->target[i];
    return n;
}

static void set_sizes(struct cr_gpu *g)
{
    const struct cr_stage_shape *st = g->p->stage;
    for (int i = 0; i < CR_STAGE_COUNT; i++)
        g->ld[i] = (int)up(st[i].ld, 8);
    g->ld_e = g->ld[CR_STAGE_O] > g->ld[CR_STAGE_DOWN] ? g->ld[CR_STAGE_O] : g->ld[CR_STAGE_DOWN];
    g->ld_vocab = (int)up((size_t)g->m->n_vocab, 8);
    g->ldv = (int)up((size_t)g->p->n * (size_t)g->p->rank, 8);
}

/* The linears of a layer as the thin kernels see them. */
static void set_thin(struct cr_gpu *g)
{
    const struct cr_lowrank *p = g->p;
    struct cr_thin *t = &g->thin_layer;
    g->thin = g->shape.train && p->form == CR_POOL_SHARED && p->rank == 8 &&
              g->m->n_embd <= CR_THIN_WIDEST;
    *t = (struct cr_thin){.n = p->n, .s = p->scale};
    for (int s = 0; s < CR_STAGE_COUNT; s++) {
        const struct cr_stage_shape *st = &p->stage[s];
        struct cr_thin_stage *to = &g->thin_stage[s];
        *to = (struct cr_thin_stage){st->n_lins, (int)st->n_out, (int)st->n_u, {{0}}};
        g->thin_begin[s] = t->total;
        for (int i = 0; i < st->n_lins; i++) {
            to->lin[i] =
                (struct cr_thin_lin){(int)st->out_at[i], (int)st->lin_out[i],
                                     (int)(st->u_at[i] - st->n_out), st->target[i] ? t->total : -1};
            if (!st->target[i])
                continue;
            t->at[t->n_lins] = t->total;
            t->size[t->n_lins] = (int)(p->r * st->lin_out[i]);
            t->from[t->n_lins] = st->b_at[i];
            t->total += t->size[t->n_lins++];
        }
    }
    g->thin_begin[CR_STAGE_COUNT] = t->total;
    g->slab_at[0] = 0;
    for (int s = 0; s < CR_STAGE_COUNT; s++)
        g->slab_at[s + 1] = g->slab_at[s] + p->stage[s].n_u * p->stage[s].n_in;
}

static void carve_weights(struct cr_gpu *g, struct carver *c)
{
    const cr_model *m = g->m;
    size_t e = (size_t)m->n_embd;
    for (int l = 0; l < m->n_layers; l++)
        for (int s = 0; s < CR_STAGE_COUNT; s++)
            g->w[l][s] = carve(c, g->p->stage[s].ld * g->p->stage[s].n_in, 2);
    g->embd = carve(c, (size_t)m->n_vocab * e, 2);
    g->output = m->output.data == m->embd.data ? g->embd : carve(c, (size_t)m->n_vocab * e, 2);
    g->norms = carve(c, (2 * (size_t)m->n_layers + 1) * e, sizeof(float));
    g->bias =
        carve(c, m->layers[0].bias_q ? (size_t)m->n_layers * g->p->stage[CR_STAGE_QKV].n_out : 0,
              sizeof(float));
    g->rope = carve(c, g->shape.longest * (size_t)m->head_dim, sizeof(float));
}

static void carve_params(struct cr_gpu *g, struct carver *c)
{
    size_t n = g->p->n_params, train = g->shape.train ? n : 0;
    g->params = carve(c, train, sizeof(float));
    g->grads = carve(c, train, sizeof(float));
    g->m1 = carve(c, train, sizeof(float));
    g->m2 = carve(c, train, sizeof(float));
    g->copy = carve(c, n, 2);
    g->n_spread = g->m->n_layers * CR_STAGE_COUNT;
    g->spread = carve(c, 3 * (size_t)g->n_spread, sizeof *g->spread);
    g->state = carve(c, 1, sizeof *g->state);
    g->partial = carve(c, CR_ADAM_BLOCKS, sizeof *g->partial);
}

static void carve_kept(struct cr_gpu *g, struct carver *c)
{
    const struct cr_stage_shape *st = g->p->stage;
    size_t t = g->shape.n_tokens, e = (size_t)g->m->n_embd, q = (size_t)g->m->q_dim;
    int n = g->m->n_layers;
    for (int l = 0; l < n; l++) {
        struct cr_gpu_kept *k = &g->kept[l];
        size_t r = g->shape.train && l + 1 == n ? g->shape.n_rows : t;
        if (!g->shape.train && l > 1) { /* only what the layer itself reads is kept */
            *k = g->kept[l - 2];
            continue;
        }
        k->x = carve(c, t * e, 2);
        if (!g->shape.train && l == 1) {
            uint16_t *x = k->x;
            *k = g->kept[0];
            k->x = x;
            continue;
        }
        k->qkv = carve(c, t * (size_t)g->ld[CR_STAGE_QKV], 2);
        k->o = carve(c, t * q, 2);
        k->u_o = carve(c, r * st[CR_STAGE_O].n_u, 2);
        k->mid = carve(c, r * e, 2);
        k->gu = carve(c, r * (size_t)g->ld[CR_STAGE_GATE_UP], 2);
        k->u_d = carve(c, r * st[CR_STAGE_DOWN].n_u, 2);
        k->lse = carve(c, t * (size_t)g->m->n_heads, sizeof(float));
    }
}

static void carve_scratch(struct cr_gpu *g, struct carver *c)
{
    size_t t = g->shape.n_tokens, r = g->shape.n_rows, e = (size_t)g->m->n_embd;
    size_t q = (size_t)g->m->q_dim, f = (size_t)g->m->n_ff, back = g->shape.train ? t : 0;
    size_t back_r = g->shape.train ? r : 0, lins = 1, n = (size_t)g->p->n;
    size_t chunks = (t + r) / CR_CHUNK_ROWS + g->shape.n_groups;
    for (int s = 0; s < CR_STAGE_COUNT; s++)
        lins = most(lins, (size_t)n_targets(&g->p->stage[s]));
    g->da_step = chunks * n;
    size_t thin = g->thin && back ? (size_t)g->thin_layer.total : 0;
    size_t wide = g->thin ? 0 : lins * t * (size_t)g->ldv,
           splits = g->thin ? (size_t)cr_k_thin_splits(&g->thin_layer) : 1;
    size_t logit_rows = r < CR_GPU_LOGIT_ROWS ? r : CR_GPU_LOGIT_ROWS;
    g->last = carve(c, r * e, 2);
    g->o_rows = carve(c, r * q, 2);
    g->h = carve(c, t * e, 2);
    g->dh_rows = carve(c, back_r * e, 2);
    g->dx_rows = carve(c, back_r * (size_t)g->ld_e, 2);
    g->v = carve(c, wide, 2);
    g->dv = carve(c, back ? wide : 0, 2);
    g->da = carve(c, back ? splits * chunks * n : 0, sizeof(float));
    g->da_rows = carve(c, back ? splits * chunks * n : 0, sizeof(float));
    g->a = carve(c, g->shape.n_groups * n, sizeof(float));
    for (int i = 0; i < 2; i++)
        g->chunk_weights[i] = carve(c, thin ? cr_k_thin_weights_bytes((int)n, chunks) : 0, 1);
    g->chunks_done = carve(c, thin ? chunks : 0, sizeof *g->chunks_done);
    /* What a layer alone needs, there or back; the logits lie over it, between the two. Of hh on
     * the one hand, and d_o and dqkv on the other, one is alive at a time; dh, behind a product, is
     * so when d_o is not. */
    struct carver logits = *c;
    g->y = carve(c, t * (size_t)g->ld_e, 2);
    g->dx = back ? g->y : NULL; /* y is of the way there */
    struct carver feed = *c;
    g->hh = carve(&feed, t * f, 2);
    g->dh = g->d_o = carve(c, back * most(q, e), 2);
    g->dqkv = carve(c, back * (size_t)g->ld[CR_STAGE_QKV], 2);
    c->n = most(c->n, feed.n);
    g->d_o_rows = carve(c, back_r * q, 2);
    g->delta = carve(c, back * (size_t)g->m->n_heads, sizeof(float));
    g->beff = carve(c, g->shape.n_groups * thin, 2);
    g->part = carve(c, chunks * thin, 2);
    g->du_part =
        carve(c, thin ? cr_k_thin_du_bytes(&g->thin_stage[CR_STAGE_GATE_UP], chunks) : 0, 1);
    g->slabs = carve(c, thin ? (size_t)cr_k_thin_slabs((int)t) * g->slab_at[CR_STAGE_COUNT] : 0,
                     sizeof *g->slabs);
    g->logits = carve(&logits, logit_rows * (size_t)g->ld_vocab, sizeof(float));
    c->n = most(c->n, logits.n);
    g->loss = carve(c, r, sizeof(float));
    /* each array of a batch is rounded up to 16 bytes */
    size_t chunk = sizeof(struct cr_chunk) / sizeof(int);
    g->cap_numbers = g->shape.n_batches * (8 * t + 4 * r + 2 * chunk * chunks +
                                           (3 + n) * (g->shape.n_groups + 1) + 32 * 4) +
                     2 * g->shape.n_targets + 64;
    g->numbers = carve(c, g->cap_numbers, sizeof(int));
}

static size_t carve_all(struct cr_gpu *g, char *block)
{
    struct carver c = {block, 0};
    set_sizes(g);
    set_thin(g);
    carve(&c, WORKSPACE, 1);
    carve_weights(g, &c);
    carve_params(g, &c);
    carve_kept(g, &c);
    carve_scratch(g, &c);
    return c.n;
}

size_t cr_gpu_bytes(const cr_model *m, const struct cr_lowrank *p, const struct cr_gpu_shape *s)
{
    struct cr_gpu *g = cr_alloc0(1, sizeof *g);
    if (!g)
        return 0;
    g->m = m;
    g->p = p;
    g->shape = *s;
    size_t n = carve_all(g, NULL);
    cr_free(g);
    return n;
}

enum cr_status cr_gpu_check(const cr_model *m, struct cr_error *err)
{
    bool known =
        (m->arch == CR_ARCH_LLAMA || m->arch == CR_ARCH_QWEN2) && m->layers && !m->layers[0].norm_q;
    if (!known)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "cuda: runs models of the architectures llama and qwen2 only");
    if (!cr_k_attention_can(m->head_dim))
        return cr_error_set(err, CR_UNSUPPORTED,
                            "cuda: heads of 16, 32, 48, 64, 80, 96 or 128 numbers, the model has "
                            "%d",
                            m->head_dim);
    if (m->n_embd % 8 || m->n_ff % 8 || m->q_dim % 8 || m->kv_dim % 8)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "cuda: wants widths that are multiples of 8, the model has %d and %d",
                            m->n_embd, m->n_ff);
    if (m->n_embd > CR_NORM_WIDEST)
        return cr_error_set(err, CR_UNSUPPORTED, "cuda: wants a width up to %d, the model has %d",
                            CR_NORM_WIDEST, m->n_embd);
    return CR_OK;
}

/* ---- weights ---- */

/* Waits: what comes after runs on another stream than a plain cudaMemcpy would.
 */
static void put(struct cr_gpu *g, void *to, const void *from, size_t bytes)
{
    note(g, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, g->stream));
    note(g, cudaStreamSynchronize(g->stream));
}

static void put_floats(struct cr_gpu *g, float *to, const float *from, size_t n)
{
    put(g, to, from, n * sizeof *to);
}

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 64); /* NaN stays NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

struct convert {
    const cr_model *m;
    const struct cr_matrix *w;
    float *rows; /* [threads, n_in] */
    uint16_t *to;
};

static void convert_rows(void *ud, size_t begin, size_t end, int thread)
{
    const struct convert *c = ud;
    size_t n = (size_t)c->w->n_in;
    float *row = c->rows + (size_t)thread * n;
    for (size_t r = begin; r < end; r++) {
        c->m->k->dequantize[c->w->type](row, (const char *)c->w->data + r * c->w->row_bytes, n);
        for (size_t i = 0; i < n; i++)
            c->to[r * n + i] = to_bf16(row[i]);
    }
}

/* A matrix of the model to the GPU, through `stage` (room for it) and `rows`.
 */
static void put_matrix(struct cr_gpu *g, uint16_t *to, const struct cr_matrix *w, uint16_t *stage,
                       float *rows)
{
    struct convert c = {g->m, w, rows, stage};
    cr_threads_run(g->m->threads, (size_t)w->n_out, 16, convert_rows, &c);
    put(g, to, stage, (size_t)w->n_out * (size_t)w->n_in * sizeof *to);
}

static void put_vectors(struct cr_gpu *g)
{
    const cr_model *m = g->m;
    size_t e = (size_t)m->n_embd, q = (size_t)m->q_dim, kv = (size_t)m->kv_dim;
    for (size_t l = 0; l < (size_t)m->n_layers; l++) {
        const struct cr_layer *w = &m->layers[l];
        put_floats(g, g->norms + 2 * l * e, w->attn_norm, e);
        put_floats(g, g->norms + (2 * l + 1) * e, w->ffn_norm, e);
        if (!w->bias_q)
            continue;
        float *to = g->bias + l * (q + 2 * kv);
        put_floats(g, to, w->bias_q, q);
        put_floats(g, to + q, w->bias_k, kv);
        put_floats(g, to + q + kv, w->bias_v, kv);
    }
    put_floats(g, g->norms + 2 * (size_t)m->n_layers * e, m->output_norm, e);
}

static enum cr_status put_weights(struct cr_gpu *g, struct cr_error *err)
{
    const cr_model *m = g->m;
    size_t e = (size_t)m->n_embd, largest = (size_t)m->n_vocab * e, widest = e;
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)i);
        largest = most(largest, (size_t)w->n_out * (size_t)w->n_in);
        widest = most(widest, (size_t)w->n_in);
    }
    uint16_t *stage = cr_alloc(largest, sizeof *stage);
    float *rows = cr_alloc((size_t)cr_threads_count(m->threads) * widest, sizeof *rows);
    float *rope = cr_alloc(g->shape.longest * (size_t)m->head_dim, sizeof *rope);
    uint64_t *spread = cr_alloc(3 * (size_t)g->n_spread, sizeof *spread);
    bool ok = stage && rows && rope && spread;
    for (int l = 0; ok && l < m->n_layers; l++)
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &g->p->stage[s];
            size_t at = (size_t)l * CR_STAGE_COUNT + (size_t)s, n = (size_t)g->n_spread;
            for (int i = 0; i < st->n_lins; i++)
                put_matrix(g, g->w[l][s] + st->out_at[i] * st->n_in,
                           cr_model_linear(m, l, st->lin[i]), stage, rows);
            spread[at] = (uint64_t)(uintptr_t)(g->w[l][s] + st->n_out * st->n_in);
            spread[n + at] = cr_lowrank_a(g->p, l, (enum cr_stage)s);
            spread[2 * n + at] = st->n_u * st->n_in;
        }
    if (ok) {
        put_matrix(g, g->embd, &m->embd, stage, rows);
        if (g->output != g->embd)
            put_matrix(g, g->output, &m->output, stage, rows);
        put_vectors(g);
        cr_rope_table(m, rope, g->shape.longest, 1.0f);
        put_floats(g, g->rope, rope, g->shape.longest * (size_t)m->head_dim);
        put(g, g->spread, spread, 3 * (size_t)g->n_spread * sizeof *spread);
    }
    cr_free(spread);
    cr_free(rope);
    cr_free(rows);
    cr_free(stage);
    return ok ? CR_OK
              : cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory for the weights' way there");
}

enum cr_status cr_gpu_new(struct cr_gpu **out, int device, const cr_model *m,
                          const struct cr_lowrank *p, const struct cr_gpu_shape *s,
                          struct cr_error *err)
{
    *out = NULL;
    struct cr_gpu *g = cr_alloc0(1, sizeof *g);
    if (!g)
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory");
    g->device = device;
    g->m = m;
    g->p = p;
    g->shape = *s;
    g->low = true;
    g->bytes = carve_all(g, NULL);
    cr_gpu_use(g);
    size_t free_bytes = 0, all_bytes = 0;
    note(g, cudaMemGetInfo(&free_bytes, &all_bytes));
    enum cr_status st = CR_OK;
    if (!g->failed && g->bytes > free_bytes)
        st = cr_error_set(err, CR_LIMIT,
                          "cuda: needs %zu MiB of GPU memory, %zu are free: use a smaller "
                          "--batch-tokens",
                          g->bytes >> 20, free_bytes >> 20);
    if (!st)
        note(g, cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking));
    if (!st && !g->failed)
        note(g, cudaMalloc((void **)&g->block, g->bytes));
    if (!st && !g->failed)
        note_blas(g, cublasCreate(&g->blas));
    if (!st && !g->failed) {
        carve_all(g, g->block);
        note_blas(g, cublasSetStream(g->blas, g->stream));
        note_blas(g, cublasSetWorkspace(g->blas, g->block, WORKSPACE));
        note_blas(g, cublasSetMathMode(g->blas, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
        g->classes = cr_alloc(s->n_tokens / PIECE + 1, sizeof *g->classes);
        if (!g->classes)
            st = cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory");
        note(g, cudaMallocHost((void **)&g->host, g->cap_numbers * sizeof *g->host));
        note(g, cudaMemsetAsync(g->block, 0, g->bytes, g->stream));
    }
    if (!st && !g->failed)
        st = put_weights(g, err);
    if (!st)
        st = cr_gpu_sync(g, err);
    if (st) {
        cr_gpu_free(g);
        return st;
    }
    *out = g;
    return CR_OK;
}

void cr_gpu_free(struct cr_gpu *g)
{
    if (!g)
        return;
    cr_gpu_use(g);
    if (g->blas)
        cublasDestroy(g->blas);
    cudaFreeHost(g->host);
    cudaFree(g->block);
    if (g->stream)
        cudaStreamDestroy(g->stream);
    cr_free(g->classes);
    cr_free(g);
}

void cr_gpu_use(struct cr_gpu *g)
{
    note(g, cudaSetDevice(g->device));
}

void cr_gpu_note(struct cr_gpu *g)
{
    note(g, cudaGetLastError());
}

enum cr_status cr_gpu_sync(struct cr_gpu *g, struct cr_error *err)
{
    cr_gpu_note(g);
    if (g->stream)
        note(g, cudaStreamSynchronize(g->stream));
    if (!g->failed)
        return CR_OK;
    const char *text = g->failed < BLAS_ERROR
                           ? cudaGetErrorString((cudaError_t)g->failed)
                           : cublasGetStatusString((cublasStatus_t)(g->failed - BLAS_ERROR));
    return cr_error_set(err, g->failed == cudaErrorMemoryAllocation ? CR_NO_MEMORY : CR_INTERNAL,
                        "cuda: GPU %d: %s", g->device, text);
}

void cr_gpu_spread(struct cr_gpu *g)
{
    size_t n = (size_t)g->n_spread;
    cr_k_spread(g->stream, g->spread, g->spread + n, g->spread + 2 * n, g->n_spread, g->copy);
}

void cr_gpu_put_params(struct cr_gpu *g, const float *params)
{
    size_t n = g->p->n_params;
    float *from = g->params;
    if (!g->shape.train) /* by way of memory that is free now */
        note(g, cudaMalloc((void **)&from, n * sizeof *from));
    if (g->failed)
        return;
    put_floats(g, from, params, n);
    cr_k_to_bf16(g->stream, g->copy, from, n);
    cr_gpu_spread(g);
    note(g, cudaStreamSynchronize(g->stream));
    if (!g->shape.train)
        cudaFree(from);
}

/* ---- upload ---- */

void *cr_gpu_take(struct cr_gpu *g, size_t n, const int **there)
{
    int *here = g->host + g->n_numbers;
    *there = g->numbers + g->n_numbers;
    g->n_numbers += up(n, 4);
    return here;
}

void cr_gpu_send(struct cr_gpu *g)
{
    note(g, cudaMemcpyAsync(g->numbers, g->host, g->n_numbers * sizeof *g->host,
                            cudaMemcpyHostToDevice, g->stream));
    g->n_numbers = 0;
}

int cr_gpu_chunks(struct cr_gpu *g, const size_t *begin, size_t n_groups, size_t n_rows,
                  const struct cr_chunk **chunks, const int **first, const int **group_of_row)
{
    const int *there;
    int *group = cr_gpu_take(g, n_rows, group_of_row), n = 0;
    int *at = cr_gpu_take(g, n_groups + 1, first);
    struct cr_chunk *c =
        cr_gpu_take(g, (n_rows / CR_CHUNK_ROWS + n_groups) * (sizeof *c / sizeof(int)), &there);
    *chunks = (const struct cr_chunk *)(const void *)there;
    for (size_t i = 0; i < n_groups; i++) {
        at[i] = n;
        for (size_t row = begin[i]; row < begin[i + 1]; row++) {
            if ((row - begin[i]) % CR_CHUNK_ROWS == 0)
                c[n++] = (struct cr_chunk){(int)row, 0, (int)i};
            c[n - 1].n_rows++;
            group[row] = (int)i;
        }
    }
    at[n_groups] = n;
    return n;
}

enum { CLASSES = 128 }; /* of pieces, by their work in pieces; the last one has the longer ones */

/* Pieces by falling class. */
static void put_order(struct cr_gpu *g, int n, const int **there)
{
    int *order = cr_gpu_take(g, (size_t)n, there), begin[CLASSES + 1] = {0};
    for (int i = 0; i < n; i++)
        begin[CLASSES - g->classes[i]]++;
    for (int c = 0; c < CLASSES; c++)
        begin[c + 1] += begin[c];
    for (int i = 0; i < n; i++)
        order[begin[CLASSES - 1 - g->classes[i]]++] = i;
}

void cr_gpu_order(struct cr_gpu *g, struct cr_gpu_batch *b, const int *seg, const int *end,
                  const int *pre, const int *pre_end)
{
    int n = (b->n_tokens + PIECE - 1) / PIECE;
    for (int way = 0; way < (end ? 2 : 1); way++) {
        for (int i = 0; i < n; i++) {
            int first = i * PIECE,
                after = first + PIECE < b->n_tokens ? first + PIECE : b->n_tokens;
            int more = pre ? pre_end[after - 1] - pre[after - 1] : 0;
            int work = way ? end[after - 1] - first : after - seg[first] + (more > 0 ? more : 0);
            g->classes[i] = (unsigned char)(work < CLASSES * PIECE ? work / PIECE : CLASSES - 1);
        }
        put_order(g, n, way ? &b->seen_most : &b->see_most);
    }
}

/* ---- products ---- */

/* cuBLAS has columns first: C^T = op(B)^T op(A)^T. */
static void product(struct cr_gpu *g, bool ta, bool tb, size_t m, size_t n, size_t k,
                    const uint16_t *a, int lda, const uint16_t *b, int ldb, void *c, int ldc,
                    cudaDataType type, float beta)
{
    const float alpha = 1;
    if (!m || !n || g->failed)
        return;
    note_blas(g,
              cublasGemmEx(g->blas, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                           (int)n, (int)m, (int)k, &alpha, b, CUDA_R_16BF, ldb, a, CUDA_R_16BF, lda,
                           &beta, c, type, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void cr_gpu_nt(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
               const uint16_t *b, int ldb, uint16_t *c, int ldc)
{
    product(g, false, true, m, n, k, a, lda, b, ldb, c, ldc, CUDA_R_16BF, 0);
}

void cr_gpu_nt_float(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
                     const uint16_t *b, int ldb, float *c, int ldc)
{
    product(g, false, true, m, n, k, a, lda, b, ldb, c, ldc, CUDA_R_32F, 0);
}

void cr_gpu_nn(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
               const uint16_t *b, int ldb, uint16_t *c, int ldc, bool add)
{
    product(g, false, false, m, n, k, a, lda, b, ldb, c, ldc, CUDA_R_16BF, add ? 1 : 0);
}

void cr_gpu_tn_float(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
                     const uint16_t *b, int ldb, float *c, int ldc, bool add)
{
    product(g, true, false, m, n, k, a, lda, b, ldb, c, ldc, CUDA_R_32F, add ? 1 : 0);
}
