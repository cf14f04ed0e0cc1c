/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of a trained pool, from up to 200 examples of each task in both views. Its entries are
 * the tasks with their learned weights (library; for one LoRA the weight 1), or the centroids
 * (weights: the identity). The rows of a centroid are the examples that lie nearest to it.
 */
#include "adapt/blend.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "tune/trainer.h"

#include <math.h>
#include <string.h>

enum { ABOUT_BYTES = 96 };
static const float WANTED_PERPLEXITY = 2.5f;

struct build {
    const cr_trainer *t;
    cr_pool *pool;
    uint32_t *entry; /* [probes] entry of each probe */
    float *v;        /* [probes, dim] embeddings, then unit vectors */
};

static void entries_of_probes(struct build *b)
{
    const struct cr_train_data *d = &b->t->data;
    for (size_t i = 0; i < d->probes.n; i++) {
        uint32_t row = d->probe_row[i];
        b->entry[i] = b->t->opt.kind == CR_POOL_CENTROID ? b->t->label[row] : d->rows[row].task;
    }
}

/* Mean (and standard deviation, unless NULL) of each dimension over the probes. */
static void statistics(const struct build *b, size_t dim, float *mean, float *std)
{
    size_t n = b->t->data.probes.n;
    for (size_t i = 0; i < dim; i++) {
        double sum = 0, squares = 0;
        for (size_t r = 0; r < n; r++)
            sum += (double)b->v[r * dim + i];
        double mu = sum / (double)n;
        for (size_t r = 0; r < n; r++) {
            double x = (double)b->v[r * dim + i] - mu;
            squares += x * x;
        }
        double sigma = sqrt(squares / (double)n);
        mean[i] = (float)mu;
        if (std)
            std[i] = sigma > 1e-6 ? (float)sigma : 1e-6f;
    }
}

/* To length 1. What has no direction (a cluster without examples) gets the first axis. */
static void normalise(float *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i] * (double)v[i];
    if (sum == 0)
        v[0] = 1;
    for (size_t i = 0; i < n && sum > 0; i++)
        v[i] = (float)((double)v[i] / sqrt(sum));
}

/* proto [T, dim]: the normalised mean of the unit vectors of each entry's probes. */
static void prototypes(const struct build *b, enum cr_view view, size_t dim, float *proto)
{
    size_t entries = (size_t)b->pool->index.n_entries;
    memset(proto, 0, entries * dim * sizeof *proto);
    for (size_t r = 0; r < b->t->data.probes.n; r++) {
        float *v = b->v + r * dim, *to = proto + b->entry[r] * dim;
        cr_pool_normalise(b->pool, view, v, v);
        for (size_t i = 0; i < dim; i++)
            to[i] += v[i];
    }
    for (size_t e = 0; e < entries; e++)
        normalise(proto + e * dim, dim);
}

static enum cr_status embed_view(struct build *b, enum cr_view view, struct cr_error *err)
{
    const cr_trainer *t = b->t;
    struct cr_pool_index *x = &b->pool->index;
    size_t dim = (size_t)cr_view_dim(t->m, view), n = t->data.probes.n;
    b->v = cr_alloc(n * dim, sizeof *b->v);
    if (!b->v)
        return cr_error_set(err, CR_NO_MEMORY, "index: out of memory for %zu examples", n);
    enum cr_status status = cr_embed_examples(t->m, view, t->data.probes.v, n, b->v, err);
    if (!status && view == CR_VIEW_MIDDLE) {
        statistics(b, dim, x->mid_mean, x->mid_std);
        prototypes(b, view, dim, x->mid_proto);
    } else if (!status && t->opt.kind == CR_POOL_CENTROID) {
        memcpy(x->qx_mean, t->qx_mean, dim * sizeof *x->qx_mean);
        memcpy(x->qx_proto, t->centroids, (size_t)x->n_entries * dim * sizeof *x->qx_proto);
    } else if (!status) {
        statistics(b, dim, x->qx_mean, NULL);
        prototypes(b, view, dim, x->qx_proto);
    }
    return status;
}

/* The temperature of the middle view of a centroid pool, as that of q_x was found. */
static enum cr_status middle_temperature(struct build *b, struct cr_error *err)
{
    struct cr_pool_index *x = &b->pool->index;
    size_t n = b->t->data.probes.n, dim = (size_t)b->t->m->n_embd, k = (size_t)x->n_entries;
    float *s = cr_alloc(n * k, sizeof *s);
    if (!s)
        return cr_error_set(err, CR_NO_MEMORY, "index: out of memory");
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < k; i++)
            s[r * k + i] = b->t->m->k->dot(b->v + r * dim, x->mid_proto + i * dim, dim);
    x->tau_middle = cr_fit_temperature(s, n, (int)k, WANTED_PERPLEXITY);
    x->tau_qx = b->t->tau;
    cr_free(s);
    return CR_OK;
}

/* One line of at most ABOUT_BYTES bytes, cut between characters. */
static char *shorten(const char *text)
{
    char line[ABOUT_BYTES + 4];
    size_t n = 0;
    for (const char *p = text; *p && n < ABOUT_BYTES; p++)
        line[n++] = (unsigned char)*p < ' ' ? ' ' : *p;
    if (strlen(text) > n) {
        n = cr_utf8_valid(line, n);
        memcpy(line + n, "...", 3);
        n += 3;
    }
    return cr_strndup(line, n);
}

static enum cr_status describe(struct build *b, struct cr_error *err)
{
    const cr_trainer *t = b->t;
    struct cr_pool_index *x = &b->pool->index;
    bool centroid = t->opt.kind == CR_POOL_CENTROID;
    for (size_t i = 0; i < t->data.n_rows; i++)
        x->rows[centroid ? t->label[i] : t->data.rows[i].task]++;
    for (size_t e = 0; e < (size_t)x->n_entries; e++) {
        x->names[e] = centroid              ? cr_asprintf("cluster %zu", e + 1)
                      : e < t->data.n_tasks ? cr_strdup(t->data.tasks[e].name)
                                            : cr_strdup("any task");
        const char *question = "";
        for (size_t i = t->data.probes.n; i-- > 0;)
            question = b->entry[i] == e ? t->data.probes.v[i].question : question;
        x->about[e] = shorten(question);
        if (!x->names[e] || !x->about[e])
            return cr_error_set(err, CR_NO_MEMORY, "index: out of memory");
    }
    return CR_OK;
}

static void weights(const struct build *b)
{
    const cr_trainer *t = b->t;
    size_t n = (size_t)t->opt.n, entries = (size_t)b->pool->index.n_entries;
    float *w = b->pool->index.weights;
    for (size_t e = 0; e < entries; e++)
        for (size_t i = 0; i < n; i++)
            w[e * n + i] = t->opt.kind == CR_POOL_LIBRARY ? t->params[t->low.weights_at + e * n + i]
                           : t->opt.kind == CR_POOL_LORA  ? 1.0f
                                                          : (float)(e == i);
}

enum cr_status cr_index_build(const cr_trainer *t, cr_pool *pool, struct cr_error *err)
{
    struct build b = {.t = t, .pool = pool};
    size_t n = t->data.probes.n;
    enum cr_status status = cr_pool_index_alloc(pool, (int)cr_trainer_entries(t), err);
    b.entry = cr_alloc(n, sizeof *b.entry);
    if (!status && !b.entry)
        status = cr_error_set(err, CR_NO_MEMORY, "index: out of memory for %zu examples", n);
    if (!status) {
        entries_of_probes(&b);
        weights(&b);
        status = describe(&b, err);
    }
    for (int view = CR_VIEW_QX; view <= CR_VIEW_MIDDLE && !status; view++) {
        cr_free(b.v);
        b.v = NULL;
        status = embed_view(&b, (enum cr_view)view, err);
    }
    if (!status && t->opt.kind == CR_POOL_CENTROID)
        status = middle_temperature(&b, err);
    cr_free(b.v);
    cr_free(b.entry);
    return status;
}
