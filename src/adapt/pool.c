/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool in memory and its blend. SHARED: delta B = alpha / rank * sum_n w_n B_n, one pass over all
 * B_n, and A is borrowed, so the blend has the rank of one adapter. SEPARATE: the A's of the
 * adapters between the first and the last with a weight stand one after another in the pool, so
 * their stack is borrowed too; B becomes [n_out, count * rank] with the weights folded in. Every
 * output is a sum in the order of n: threads cannot change it.
 */
#include "adapt/pool.h"

#include "adapt/adapter.h"
#include "adapt/lora_bind.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

enum { RUN = 64 /* adapters that are mixed in one pass over the output */, LINE = 64 };

/* The numbers, names and pairs table; no room for values yet. */
static cr_pool *new_shell(const cr_model *m, enum cr_pool_form form, enum cr_pool_kind kind, int n,
                          int rank, float alpha)
{
    cr_pool *p = cr_alloc0(1, sizeof *p);
    if (!p)
        return NULL;
    p->form = form;
    p->kind = kind;
    p->n = n;
    p->rank = rank;
    p->alpha = alpha;
    p->n_layers = m->n_layers;
    p->model = m;
    p->name = cr_strdup("");
    p->command = cr_strdup("");
    p->path = cr_strdup("");
    p->base_hash = cr_strdup(cr_model_hash((cr_model *)(uintptr_t)m));
    p->pairs = cr_alloc0((size_t)m->n_layers * CR_LIN_COUNT, sizeof *p->pairs);
    if (p->name && p->command && p->path && p->base_hash && p->pairs)
        return p;
    cr_pool_close(p);
    return NULL;
}

static enum cr_status new_pool(cr_pool **out, const cr_model *m, enum cr_pool_form form,
                               enum cr_pool_kind kind, int n, int rank, float alpha,
                               const bool target[CR_LIN_COUNT], bool with_b, struct cr_error *err)
{
    *out = NULL;
    if (n < 1 || n > CR_POOL_MAX_N || rank < 1 || rank > CR_LORA_MAX_RANK ||
        (form == CR_POOL_SEPARATE && n * rank > CR_LORA_MAX_RANK) || !isfinite(alpha))
        return cr_error_set(err, CR_INVALID, "pool: %d adapters of rank %d, alpha %g", n, rank,
                            (double)alpha);
    cr_pool *p = new_shell(m, form, kind, n, rank, alpha);
    size_t per_layer = 0, a_rows = (size_t)rank * (form == CR_POOL_SEPARATE ? (size_t)n : 1);
    size_t b_cols = with_b ? (size_t)n * (size_t)rank : 0;
    for (int l = 0; l < CR_LIN_COUNT; l++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)l);
        if (target[l])
            per_layer += a_rows * (size_t)w->n_in + b_cols * (size_t)w->n_out;
    }
    if (!p || !(p->data = cr_alloc0((size_t)m->n_layers * per_layer, sizeof(float)))) {
        cr_pool_close(p);
        return cr_error_set(err, CR_NO_MEMORY, "pool: out of memory for %zu floats",
                            (size_t)m->n_layers * per_layer);
    }
    float *at = p->data;
    for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++) {
        int l = i % CR_LIN_COUNT;
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)l);
        if (!target[l])
            continue;
        p->n_targets += !p->target[l];
        p->target[l] = true;
        p->pairs[i].a = at;
        at += a_rows * (size_t)w->n_in;
        p->pairs[i].b = with_b ? at : NULL;
        at += b_cols * (size_t)w->n_out;
    }
    *out = p;
    return CR_OK;
}

enum cr_status cr_pool_new(cr_pool **out, const cr_model *m, enum cr_pool_form form,
                           enum cr_pool_kind kind, int n, int rank, float alpha,
                           const bool target[CR_LIN_COUNT], struct cr_error *err)
{
    return new_pool(out, m, form, kind, n, rank, alpha, target, true, err);
}

enum cr_status cr_pool_new_without_b(cr_pool **out, const cr_model *m, enum cr_pool_form form,
                                     enum cr_pool_kind kind, int n, int rank, float alpha,
                                     const bool target[CR_LIN_COUNT], struct cr_error *err)
{
    return new_pool(out, m, form, kind, n, rank, alpha, target, false, err);
}

static void free_index(struct cr_pool_index *x)
{
    for (int i = 0; i < x->n_entries; i++) {
        if (x->names)
            cr_free(x->names[i]);
        if (x->about)
            cr_free(x->about[i]);
    }
    cr_free(x->names);
    cr_free(x->about);
    cr_free(x->rows);
    cr_free(x->weights);
    cr_free(x->qx_mean);
    cr_free(x->qx_proto);
    cr_free(x->mid_mean);
    cr_free(x->mid_std);
    cr_free(x->mid_proto);
    *x = (struct cr_pool_index){0};
}

enum cr_status cr_pool_index_alloc(cr_pool *p, int n_entries, struct cr_error *err)
{
    struct cr_pool_index *x = &p->index;
    free_index(x);
    if (n_entries < 0 || n_entries > CR_POOL_MAX_ENTRIES)
        return cr_error_set(err, CR_LIMIT, "pool: %d index entries, the limit is %d", n_entries,
                            CR_POOL_MAX_ENTRIES);
    size_t t = (size_t)n_entries, q = (size_t)p->model->q_dim, e = (size_t)p->model->n_embd;
    x->n_entries = n_entries;
    x->names = cr_alloc0(t, sizeof *x->names);
    x->about = cr_alloc0(t, sizeof *x->about);
    x->rows = cr_alloc0(t, sizeof *x->rows);
    x->weights = cr_alloc0(t * (size_t)p->n, sizeof(float));
    x->qx_mean = cr_alloc0(q, sizeof(float));
    x->qx_proto = cr_alloc0(t * q, sizeof(float));
    x->mid_mean = cr_alloc0(e, sizeof(float));
    x->mid_std = cr_alloc0(e, sizeof(float));
    x->mid_proto = cr_alloc0(t * e, sizeof(float));
    if (x->names && x->about && x->rows && x->weights && x->qx_mean && x->qx_proto && x->mid_mean &&
        x->mid_std && x->mid_proto)
        return CR_OK;
    free_index(x);
    return cr_error_set(err, CR_NO_MEMORY, "pool: out of memory for %d index entries", n_entries);
}

static void copy_floats(float **to, const float *from, size_t n)
{
    if (from) {
        memcpy(*to, from, n * sizeof **to);
    } else {
        cr_free(*to);
        *to = NULL;
    }
}

enum cr_status cr_pool_index_copy(cr_pool *to, const cr_pool *from, struct cr_error *err)
{
    struct cr_pool_index *x = &to->index;
    const struct cr_pool_index *y = &from->index;
    size_t t = (size_t)y->n_entries, q = (size_t)to->model->q_dim, e = (size_t)to->model->n_embd;
    if (!t)
        return CR_OK;
    enum cr_status st = cr_pool_index_alloc(to, y->n_entries, err);
    for (size_t i = 0; !st && i < t; i++) {
        x->names[i] = cr_strdup(y->names[i]);
        x->about[i] = cr_strdup(y->about[i]);
        x->rows[i] = y->rows[i];
        if (!x->names[i] || !x->about[i])
            st = cr_error_set(err, CR_NO_MEMORY, "pool: out of memory for the index");
    }
    if (st)
        return st;
    for (size_t i = 0; i < t * (size_t)to->n; i++)
        x->weights[i] = to->n == from->n ? y->weights[i] : 1;
    copy_floats(&x->qx_mean, y->qx_mean, q);
    copy_floats(&x->qx_proto, y->qx_proto, t * q);
    copy_floats(&x->mid_mean, y->mid_mean, e);
    copy_floats(&x->mid_std, y->mid_std, e);
    copy_floats(&x->mid_proto, y->mid_proto, t * e);
    x->tau_qx = y->tau_qx;
    x->tau_middle = y->tau_middle;
    return CR_OK;
}

void cr_pool_close(cr_pool *p)
{
    if (!p)
        return;
    free_index(&p->index);
    cr_delta_free(p->shared_a);
    cr_gguf_close(p->file);
    cr_free(p->held);
    cr_free(p->data);
    cr_free(p->pairs);
    cr_free(p->base_hash);
    cr_free(p->path);
    cr_free(p->command);
    cr_free(p->name);
    cr_free(p);
}

int cr_pool_size(const cr_pool *p)
{
    return p->n;
}

/* Values [at, at + n) of all B of a pair, blocks of its type: a pointer into float32, or filled
 * into tmp [n]. */
static const float *b_values(const cr_pool *p, const struct cr_pool_pair *pair, size_t at, size_t n,
                             float *tmp)
{
    if (pair->b)
        return pair->b + at;
    const void *from = pair->b_file + cr_row_bytes(p->b_type, at);
    if (p->b_type == CR_F32)
        return from;
    p->model->k->dequantize[p->b_type](tmp, from, n);
    return tmp;
}

void cr_pool_read_b(const cr_pool *p, int layer, enum cr_linear lin, int n, float *b)
{
    const struct cr_matrix *w = cr_model_linear(p->model, layer, lin);
    size_t count = (size_t)w->n_out * (size_t)p->rank;
    const float *from =
        b_values(p, &p->pairs[layer * CR_LIN_COUNT + (int)lin], (size_t)n * count, count, b);
    if (from != b)
        memcpy(b, from, count * sizeof *b);
}

enum cr_status cr_pool_split_ranks(cr_pool **out, const cr_pool *p, int groups,
                                   struct cr_error *err)
{
    *out = NULL;
    if (p->kind != CR_POOL_LORA || p->n != 1)
        return cr_error_set(err, CR_INVALID, "%s: only one plain LoRA has rank groups", p->path);
    if (groups < 1 || p->rank % groups)
        return cr_error_set(err, CR_INVALID, "%s: rank %d does not make %d groups", p->path,
                            p->rank, groups);
    int rank = p->rank / groups;
    cr_pool *q;
    enum cr_status st = cr_pool_new(&q, p->model, CR_POOL_SEPARATE, CR_POOL_LORA, groups, rank,
                                    p->alpha / (float)groups, p->target, err);
    float *b = NULL;
    for (int i = 0; !st && i < p->n_layers * CR_LIN_COUNT; i++) {
        int lin = i % CR_LIN_COUNT;
        const struct cr_matrix *w =
            cr_model_linear(p->model, i / CR_LIN_COUNT, (enum cr_linear)lin);
        size_t n_out = (size_t)w->n_out, n_in = (size_t)w->n_in, all = (size_t)p->rank;
        if (!p->pairs[i].a)
            continue;
        cr_free(b);
        b = cr_alloc(n_out * all, sizeof *b);
        if (!b) {
            st = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", p->path);
            break;
        }
        memcpy(q->pairs[i].a, p->pairs[i].a, all * n_in * sizeof *b); /* already group by group */
        cr_pool_read_b(p, i / CR_LIN_COUNT, (enum cr_linear)lin, 0, b);
        for (int g = 0; g < groups; g++)
            for (size_t o = 0; o < n_out; o++)
                memcpy(q->pairs[i].b + ((size_t)g * n_out + o) * (size_t)rank,
                       b + o * all + (size_t)g * (size_t)rank, (size_t)rank * sizeof *b);
    }
    cr_free(b);
    if (st)
        cr_pool_close(q);
    else
        *out = q;
    return st;
}

/* Values of one B of slot i. */
static size_t b_count(const cr_pool *p, size_t i)
{
    const enum cr_linear lin = (enum cr_linear)(i % CR_LIN_COUNT);
    return (size_t)cr_model_linear(p->model, 0, lin)->n_out * (size_t)p->rank;
}

static void hold_pairs(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_pool *p = ud;
    const size_t n = (size_t)p->n;
    for (size_t i = begin; i < end; i++) {
        const char *from = p->pairs[i].b_file;
        char *to = (char *)(uintptr_t)p->pairs[i].b_held;
        const size_t one = cr_row_bytes(p->b_type, b_count(p, i));
        const size_t most = cr_row_bytes(p->b_type, CR_POOL_RUN);
        for (size_t at = 0; to && at < one; at += most) {
            const size_t run = one - at < most ? one - at : most;
            for (size_t a = 0; a < n; a++, to += run)
                memcpy(to, from + a * one + at, run);
        }
        if (to && cr_gguf_is_mapped(p->file))
            cr_drop_mapped(from, n * one);
    }
}

void cr_pool_hold(cr_pool *p)
{
    const size_t slots = (size_t)p->n_layers * CR_LIN_COUNT;
    size_t bytes = 0;
    for (size_t i = 0; i < slots; i++)
        if (p->pairs[i].b_file)
            bytes += (size_t)p->n * cr_row_bytes(p->b_type, b_count(p, i));
    if (p->form != CR_POOL_SHARED || p->b_type == CR_F32 || !bytes || p->held ||
        !cr_may_copy(p->model, bytes))
        return;
    bytes = (bytes + CR_HUGE_PAGE - 1) / CR_HUGE_PAGE * CR_HUGE_PAGE;
    p->held = cr_alloc(bytes + CR_HUGE_PAGE, 1);
    char *at = p->held ? cr_huge_area(p->held, bytes) : NULL;
    for (size_t i = 0; at && i < slots; i++)
        if (p->pairs[i].b_file) {
            p->pairs[i].b_held = at;
            at += (size_t)p->n * cr_row_bytes(p->b_type, b_count(p, i));
        }
    if (at)
        cr_threads_run_dynamic(p->model->threads, slots, 1, hold_pairs, p);
}

/* ---- blending ---- */

struct blend_job {
    const cr_pool *p;
    cr_delta *d;
    const float *weights;
    float scale;     /* alpha / rank */
    int first, last; /* adapters with a weight lie in [first, last] */
};

/* out[i] += sum_j w[j] b[j * ldb + i], i < count, j < n; b in the type of the file. */
static void mix(const cr_pool *p, float *out, const float *w, const void *b, size_t ldb, size_t n,
                size_t count)
{
    if (p->b_type == CR_F16)
        p->model->k->attn_mix_f16(out, 0, w, 0, 1, b, ldb, n, count);
    else
        p->model->k->mix_q8_0(out, w, b, ldb / CR_QK, n, count);
}

/* out[i] = scale * sum_n w_n B_n[at + i] for `count` of the `all` values of one B, each sum in the
 * order of n. Adapters without a weight are never read. */
static void blend_values(const struct blend_job *job, const struct cr_pool_pair *pair, float *out,
                         size_t at, size_t count, size_t all)
{
    const cr_pool *p = job->p;
    memset(out, 0, count * sizeof *out);
    for (size_t a = (size_t)job->first, n; a <= (size_t)job->last; a += n) {
        float w[RUN];
        for (n = 0; n < RUN && a + n <= (size_t)job->last && job->weights[a + n] != 0; n++)
            w[n] = job->scale * job->weights[a + n];
        const char *held = pair->b_held;
        if (held)
            held += cr_row_bytes(p->b_type, at * (size_t)p->n + a * count);
        for (size_t i = 0; held && i < cr_row_bytes(p->b_type, n * count); i += LINE)
            __builtin_prefetch(held + cr_row_bytes(p->b_type, (size_t)p->n * count) + i);
        if (n && held)
            mix(p, out, w, held, count, n, count);
        else if (n && !pair->b && p->b_type != CR_F32)
            mix(p, out, w, pair->b_file + cr_row_bytes(p->b_type, a * all + at), all, n, count);
        else
            for (size_t j = 0; j < n; j++)
                p->model->k->axpy(out, w[j], b_values(p, pair, (a + j) * all + at, count, NULL),
                                  count);
        n += n == 0;
    }
}

/* The n_out * rank values of one pair. */
static void blend_shared(const struct blend_job *job, int i, float *out, size_t all)
{
    const struct cr_pool_pair *pair = &job->p->pairs[i];
    const size_t step = pair->b_held ? CR_POOL_RUN : all;
    for (size_t at = 0; at < all; at += step)
        blend_values(job, pair, out + at, at, all - at < step ? all - at : step, all);
}

/* out[o, (a - first) * r + j] = scale * w_a * B_a[o, j] */
static void blend_separate(const struct blend_job *job, int i, float *out, size_t count)
{
    enum { SOME = 4096 }; /* whole blocks, perhaps not whole rows */
    float tmp[SOME];
    const cr_pool *p = job->p;
    size_t r = (size_t)p->rank, width = (size_t)(job->last - job->first + 1) * r;
    for (int a = job->first; a <= job->last; a++) {
        float s = job->scale * job->weights[a], *to = out + (size_t)(a - job->first) * r;
        for (size_t at = 0, j = 0; at < count; at += SOME) {
            size_t n = count - at < SOME ? count - at : SOME;
            const float *b = b_values(p, &p->pairs[i], (size_t)a * count + at, n, tmp);
            for (size_t k = 0; k < n; k++) {
                to[j] = s * b[k];
                if (++j == r) {
                    j = 0;
                    to += width;
                }
            }
        }
    }
}

static void blend_pairs(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct blend_job *job = ud;
    for (size_t i = begin; i < end; i++) {
        const struct cr_matrix *w =
            cr_model_linear(job->p->model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        float *b = (float *)(uintptr_t)job->d->pairs[i].b; /* inside the delta's own data */
        if (!b)
            continue;
        size_t count = (size_t)w->n_out * (size_t)job->p->rank;
        if (job->p->form == CR_POOL_SHARED)
            blend_shared(job, (int)i, b, count);
        else
            blend_separate(job, (int)i, b, count);
        cr_delta_pack_b(job->p->model, job->d, (int)(i / CR_LIN_COUNT),
                        (enum cr_linear)(i % CR_LIN_COUNT));
    }
}

/* Points every pair at its A in the pool and at its place for B in the delta. */
static void lay_out(struct blend_job *job, int rank)
{
    const cr_pool *p = job->p;
    float *at = job->d->data;
    for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(p->model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        if (!p->pairs[i].a)
            continue;
        size_t skip = p->form == CR_POOL_SEPARATE
                          ? (size_t)job->first * (size_t)p->rank * (size_t)w->n_in
                          : 0;
        job->d->pairs[i] = (struct cr_low_rank){.rank = rank, .a = p->pairs[i].a + skip, .b = at};
        at += (size_t)rank * (size_t)w->n_out;
    }
    job->d->max_rank = rank;
    job->d->keep_alive = p;
}

/* Without it, for lack of memory, each palette packs its own. */
void cr_pool_pack_a(cr_pool *p)
{
    if (p->form != CR_POOL_SHARED || cr_delta_new(&p->shared_a, p->n_layers, 0, NULL) != CR_OK)
        return;
    for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++)
        if (p->pairs[i].a)
            p->shared_a->pairs[i] = (struct cr_low_rank){.rank = p->rank, .a = p->pairs[i].a};
    cr_delta_pack_a(p->model, p->shared_a);
}

enum cr_status cr_pool_blend(cr_delta **out, const cr_pool *p, const float *weights,
                             struct cr_error *err)
{
    *out = NULL;
    struct blend_job job = {
        .p = p, .weights = weights, .scale = p->alpha / (float)p->rank, .first = p->n, .last = -1};
    for (int i = 0; i < p->n; i++) {
        if (!(fabsf(weights[i]) <= CR_MAX_SCALE))
            return cr_error_set(err, CR_INVALID, "pool: weight %d is %g, want a number within +-%g",
                                i + 1, (double)weights[i], (double)CR_MAX_SCALE);
        if (weights[i] != 0) {
            job.first = i < job.first ? i : job.first;
            job.last = i;
        }
    }
    if (job.last < 0) /* no weight at all: the base model */
        return cr_delta_new(out, p->n_layers, 0, err);
    int rank = p->form == CR_POOL_SHARED ? p->rank : (job.last - job.first + 1) * p->rank;
    size_t floats = 0;
    for (int l = 0; l < CR_LIN_COUNT; l++)
        if (p->target[l])
            floats += (size_t)cr_model_linear(p->model, 0, (enum cr_linear)l)->n_out;
    floats *= (size_t)p->n_layers * (size_t)rank;
    enum cr_status status = cr_delta_new(&job.d, p->n_layers, floats, err);
    if (status != CR_OK)
        return status;
    lay_out(&job, rank);
    const bool placed = p->shared_a && cr_delta_place_b(p->model, job.d, p->shared_a);
    cr_threads_run_dynamic(p->model->threads, (size_t)p->n_layers * CR_LIN_COUNT, 1, blend_pairs,
                           &job);
    if (!placed)
        cr_delta_pack(p->model, job.d);
    *out = job.d;
    return CR_OK;
}

/* ---- index ---- */

enum cr_status cr_pool_check_view(const cr_pool *p, enum cr_view view, struct cr_error *err)
{
    if (view == CR_VIEW_MIDDLE ? p->index.mid_proto != NULL : p->index.qx_proto != NULL)
        return CR_OK;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: the pool has no index for the %s view", p->path,
                        view == CR_VIEW_MIDDLE ? "middle" : "first-layer");
}

void cr_pool_normalise(const cr_pool *p, enum cr_view view, const float *v, float *out)
{
    const struct cr_pool_index *x = &p->index;
    bool middle = view == CR_VIEW_MIDDLE;
    size_t n = (size_t)(middle ? p->model->n_embd : p->model->q_dim);
    const float *mean = middle ? x->mid_mean : x->qx_mean;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = v[i] - mean[i];
        if (middle)
            out[i] /= x->mid_std[i];
        sum += (double)out[i] * out[i];
    }
    float scale = sum > 0 ? (float)(1 / sqrt(sum)) : 0;
    for (size_t i = 0; i < n; i++)
        out[i] *= scale;
}
