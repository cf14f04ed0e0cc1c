/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training steps on one or more GPUs, of this process or of several. Micro-batch
 * k of a step runs on GPU k mod n of all; each GPU is fed by a thread of its own
 * and adds up its gradients, NCCL adds them over the GPUs, and every GPU makes
 * the same AdamW step on its copy of the parameters. Other processes are asked
 * for nothing but their losses and, once, the id by which NCCL finds them.
 */
#include "base/mem.h"
#include "cuda/cuda.h"
#include "cuda/gpu.h"
#include "cuda/nccl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_GPUS = 64 };

struct trainer {
    int first, n;                 /* this process's GPUs */
    struct cr_train_peers *peers; /* or NULL */
    struct cr_device_job job;
    struct cr_gpu *gpus[MAX_GPUS];
    struct cr_nccl *nccl; /* NULL with one GPU in all */
    /* the step at hand */
    const struct cr_packed *packed;
    struct cr_adam_args adam;
};

int cr_cuda_count(struct cr_error *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n < 1) {
        cr_error_set(err, CR_NOT_FOUND, "cuda: no GPU can be used: %s",
                     e != cudaSuccess ? cudaGetErrorString(e) : "none found");
        return 0;
    }
    return n;
}

void cr_cuda_name(int i, char *to, size_t size)
{
    struct cudaDeviceProp p;
    snprintf(to, size, "unknown");
    if (cudaGetDeviceProperties(&p, i) == cudaSuccess)
        snprintf(to, size, "%s, %zu MiB, compute capability %d.%d", p.name, p.totalGlobalMem >> 20,
                 p.major, p.minor);
}

/* ---- one micro-batch ---- */

/* Numbers of a micro-batch into the upload. */
static struct cr_gpu_batch put_micro(struct cr_gpu *g, const struct cr_packed *p,
                                     const struct cr_micro *m)
{
    struct cr_gpu_batch b = {
        .n_tokens = (int)m->n_tokens, .n_rows = (int)m->n_answers, .n_groups = (int)m->all.n};
    const int *there;
    size_t first_group = (size_t)(m->all.a - p->a) / (size_t)p->n;
    memcpy(cr_gpu_take(g, m->n_tokens, &b.ids), m->ids, m->n_tokens * sizeof *m->ids);
    int *pos = cr_gpu_take(g, m->n_tokens, &b.pos), *seg = cr_gpu_take(g, m->n_tokens, &b.seg);
    int *end = cr_gpu_take(g, m->n_tokens, &b.end);
    for (size_t s = 0; s < m->n_seqs; s++)
        for (size_t t = m->seq[s]; t < m->seq[s + 1]; t++) {
            pos[t] = (int)(t - m->seq[s]);
            seg[t] = (int)m->seq[s];
            end[t] = (int)m->seq[s + 1];
        }
    cr_gpu_order(g, &b, seg, end, NULL, NULL);
    int *row = cr_gpu_take(g, m->n_answers, &b.row);
    for (size_t i = 0; i < m->n_answers; i++)
        row[i] = (int)m->answer_row[i];
    memcpy(cr_gpu_take(g, m->n_answers, &b.id), m->answer_id, m->n_answers * sizeof *m->answer_id);
    memcpy(cr_gpu_take(g, m->n_answers, &there), m->answer_weight, m->n_answers * sizeof(float));
    b.weight = (const float *)(const void *)there;
    b.n_chunks =
        cr_gpu_chunks(g, m->all.begin, m->all.n, m->n_tokens, &b.chunks, &b.begin, &b.group);
    b.n_row_chunks = cr_gpu_chunks(g, m->answers.begin, m->answers.n, m->n_answers, &b.row_chunks,
                                   &b.row_begin, &b.row_group);
    int *key = cr_gpu_take(g, m->all.n, &b.key);
    for (size_t i = 0; i < m->all.n; i++)
        key[i] = (int)p->group_key[first_group + i];
    if (g->p->learn_weights) {
        b.a = g->a;
        return b;
    }
    size_t n = m->all.n * (size_t)p->n;
    memcpy(cr_gpu_take(g, n, &there), m->all.a, n * sizeof(float));
    b.a = (const float *)(const void *)there;
    return b;
}

/* ---- a step ---- */

/* In all processes. */
static int gpus(const struct trainer *t)
{
    return t->peers ? t->peers->size * t->n : t->n;
}

/* Queues all micro-batches of one GPU and the step. */
static void run_gpu(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct trainer *t = ud;
    const struct cr_packed *p = t->packed;
    size_t first = t->peers ? (size_t)(t->peers->rank * t->n) : 0, all = (size_t)gpus(t);
    for (size_t i = begin; i < end; i++) {
        struct cr_gpu *g = t->gpus[i];
        struct cr_gpu_batch *b = cr_alloc(p->n_micros, sizeof *b);
        size_t n = 0;
        if (!b) {
            g->failed = cudaErrorMemoryAllocation;
            continue;
        }
        cr_gpu_use(g);
        for (size_t k = first + i; k < p->n_micros; k += all)
            b[n++] = put_micro(g, p, &p->micros[k]);
        cr_gpu_send(g);
        cudaMemsetAsync(&g->state->loss, 0, sizeof g->state->loss, g->stream);
        size_t clear = n ? g->p->weights_at : 0; /* the products write the rest */
        cudaMemsetAsync(g->grads + clear, 0, (g->p->n_params - clear) * sizeof(float), g->stream);
        for (size_t k = 0; k < n; k++) {
            if (g->p->learn_weights)
                cr_k_weights(g->stream, g->a, g->params + g->p->weights_at, b[k].key, b[k].n_groups,
                             g->p->n);
            cr_gpu_pass(g, &b[k], k == 0);
        }
        if (t->nccl)
            cr_nccl_sum(t->nccl, (int)i, g->grads, g->p->n_params, g->stream);
        cr_k_adamw(g->stream, &t->adam, g->state, g->partial, g->params, g->grads, g->m1, g->m2,
                   g->copy);
        cr_gpu_spread(g);
        cr_gpu_note(g);
        cr_free(b);
    }
}

static enum cr_status step(struct cr_train_device *d, const struct cr_packed *p, long number,
                           float factor, double *loss, double *norm, struct cr_error *err)
{
    struct trainer *t = d->state;
    const struct cr_adamw *o = t->job.adam;
    struct cr_adam_state state;
    t->packed = p;
    t->adam = (struct cr_adam_args){
        .lr = o->lr * factor,
        .lr_tail = o->lr_tail * factor,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .decay = o->weight_decay,
        .clip = o->clip,
        .fix_m = (float)(1 / (1 - pow((double)o->beta1, (double)number))),
        .fix_v = (float)(1 / (1 - pow((double)o->beta2, (double)number))),
        .n = o->n,
        .tail = o->tail,
    };
    if (t->n == 1)
        run_gpu(t, 0, 1, 0);
    else
        cr_threads_run_dynamic(t->job.m->threads, (size_t)t->n, 1, run_gpu, t);
    *loss = *norm = 0;
    enum cr_status st = CR_OK;
    for (int i = 0; i < t->n && !st; i++) {
        struct cr_gpu *g = t->gpus[i];
        cr_gpu_use(g);
        cudaMemcpyAsync(&state, g->state, sizeof state, cudaMemcpyDeviceToHost, g->stream);
        st = cr_gpu_sync(g, err);
        *loss += state.loss;
        *norm = state.norm;
    }
    if (!st && t->nccl)
        st = cr_nccl_check(t->nccl, err);
    if (!st && t->peers)
        st = t->peers->sum_double(t->peers, loss, 1, err);
    return st;
}

/* ---- start and stop ---- */

static struct cr_gpu_shape shape_of(const struct cr_device_job *job, int n)
{
    return (struct cr_gpu_shape){
        .n_tokens = job->shape.n_tokens,
        .n_rows = job->shape.n_answers,
        .n_groups = job->shape.n_groups,
        .n_batches = (job->most_micros + (size_t)n - 1) / (size_t)n,
        .longest = job->shape.longest,
        .train = true,
    };
}

static uint64_t bytes(struct cr_train_device *d, const struct cr_device_job *job)
{
    struct trainer *t = d->state;
    struct cr_gpu_shape s = shape_of(job, gpus(t));
    return cr_gpu_bytes(job->m, job->low, &s);
}

static enum cr_status check(struct cr_train_device *d, const cr_model *m, struct cr_error *err)
{
    (void)d;
    return cr_gpu_check(m, err);
}

static void stop(struct cr_train_device *d)
{
    struct trainer *t = d->state;
    cr_nccl_free(t->nccl);
    t->nccl = NULL;
    for (int i = 0; i < t->n; i++) {
        cr_gpu_free(t->gpus[i]);
        t->gpus[i] = NULL;
    }
}

static enum cr_status start(struct cr_train_device *d, const struct cr_device_job *job,
                            const float *params, struct cr_error *err)
{
    struct trainer *t = d->state;
    struct cr_gpu_shape s = shape_of(job, gpus(t));
    size_t n = job->low->n_params * sizeof(float);
    enum cr_status st = CR_OK;
    t->job = *job;
    if (t->n > cr_threads_count(job->m->threads)) /* NCCL waits for the others in each */
        return cr_error_set(err, CR_LIMIT, "cuda: %d GPUs need as many threads, there are %d", t->n,
                            cr_threads_count(job->m->threads));
    for (int i = 0; i < t->n && !st; i++) {
        st = cr_gpu_new(&t->gpus[i], t->first + i, job->m, job->low, &s, err);
        if (st)
            break;
        struct cr_gpu *g = t->gpus[i];
        cr_gpu_put_params(g, params);
        cudaMemcpyAsync(g->m1, job->adam->m, n, cudaMemcpyHostToDevice, g->stream);
        cudaMemcpyAsync(g->m2, job->adam->v, n, cudaMemcpyHostToDevice, g->stream);
        st = cr_gpu_sync(g, err);
    }
    if (!st && gpus(t) > 1)
        st = cr_nccl_new(&t->nccl, t->first, t->n, t->peers, err);
    if (st)
        stop(d);
    return st;
}

static enum cr_status fetch(struct cr_train_device *d, float *params, float *m, float *v,
                            struct cr_error *err)
{
    struct trainer *t = d->state;
    struct cr_gpu *g = t->gpus[0];
    size_t n = g->p->n_params * sizeof(float);
    cr_gpu_use(g);
    cudaMemcpyAsync(params, g->params, n, cudaMemcpyDeviceToHost, g->stream);
    cudaMemcpyAsync(m, g->m1, n, cudaMemcpyDeviceToHost, g->stream);
    cudaMemcpyAsync(v, g->m2, n, cudaMemcpyDeviceToHost, g->stream);
    return cr_gpu_sync(g, err);
}

static void close_device(struct cr_train_device *d)
{
    if (!d)
        return;
    stop(d);
    cr_free(d->state);
    cr_free(d);
}

enum cr_status cr_cuda_train_new(struct cr_train_device **out, int n, struct cr_train_peers *peers,
                                 struct cr_error *err)
{
    *out = NULL;
    int there = cr_cuda_count(err);
    if (!there)
        return CR_NOT_FOUND;
    int n_local = peers ? peers->n_local : 1;
    n = n ? n : there / n_local;
    if (n < 1 || n > MAX_GPUS || n * n_local > there)
        return cr_error_set(
            err, CR_LIMIT,
            "cuda: %d GPUs are asked for (processes on this machine: %d), %d are there",
            n_local * (n ? n : 1), n_local, there);
    struct cr_train_device *d = cr_alloc0(1, sizeof *d);
    struct trainer *t = cr_alloc0(1, sizeof *t);
    if (!d || !t) {
        cr_free(d);
        cr_free(t);
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory");
    }
    t->n = n;
    t->first = peers ? peers->local * n : 0;
    t->peers = peers;
    *d = (struct cr_train_device){.name = "cuda",
                                  .precision = "bfloat16 on CUDA",
                                  .n_parallel = gpus(t),
                                  .state = t,
                                  .check = check,
                                  .bytes = bytes,
                                  .start = start,
                                  .step = step,
                                  .fetch = fetch,
                                  .stop = stop,
                                  .close = close_device};
    *out = d;
    return CR_OK;
}
