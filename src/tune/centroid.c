/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of a centroid pool: spherical k-means of the rows' centred, normalised q_x with k = N;
 * then softmax(cos / tau) per row (soft), tau such that the mean of exp(entropy) is 2.5, or the
 * nearest centroid alone (hard). With very many rows the centroids come from an even sample.
 */
#include "adapt/blend.h"
#include "base/mem.h"
#include "tune/trainer.h"

#include <math.h>
#include <string.h>

enum { SAMPLE = 16384, RESTARTS = 10 };
static const float WANTED_PERPLEXITY = 2.5f;

static void centre(cr_trainer *t)
{
    size_t dim = (size_t)t->m->q_dim, n = t->data.n_rows;
    for (size_t i = 0; i < dim; i++) {
        double sum = 0;
        for (size_t r = 0; r < n; r++)
            sum += (double)t->data.qx[r * dim + i];
        t->qx_mean[i] = (float)(sum / (double)n);
    }
    for (size_t r = 0; r < n; r++) {
        float *x = t->data.qx + r * dim;
        double sum = 0;
        for (size_t i = 0; i < dim; i++) {
            x[i] -= t->qx_mean[i];
            sum += (double)x[i] * (double)x[i];
        }
        float scale = sum > 0 ? (float)(1 / sqrt(sum)) : 0;
        for (size_t i = 0; i < dim; i++)
            x[i] *= scale;
    }
}

static enum cr_status find_centroids(cr_trainer *t, struct cr_error *err)
{
    size_t dim = (size_t)t->m->q_dim, n = t->data.n_rows, take = n < SAMPLE ? n : SAMPLE;
    float *x = take < n ? cr_alloc(take * dim, sizeof *x) : t->data.qx;
    int *label = cr_alloc(take, sizeof *label);
    enum cr_status status =
        x && label ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "clusters: out of memory");
    for (size_t i = 0; !status && take < n && i < take; i++)
        memcpy(x + i * dim, t->data.qx + i * n / take * dim, dim * sizeof *x);
    if (!status)
        status =
            cr_kmeans(x, take, (int)dim, t->opt.n, RESTARTS, t->opt.seed, t->centroids, label, err);
    cr_free(label);
    if (take < n)
        cr_free(x);
    return status;
}

/* s [n_rows, N] = cosines with the centroids; the nearest is the row's label. */
static void cosines(cr_trainer *t, float *s)
{
    size_t dim = (size_t)t->m->q_dim, n = (size_t)t->opt.n;
    for (size_t r = 0; r < t->data.n_rows; r++) {
        t->label[r] = 0;
        for (size_t k = 0; k < n; k++) {
            s[r * n + k] = t->m->k->dot(t->data.qx + r * dim, t->centroids + k * dim, dim);
            if (s[r * n + k] > s[r * n + t->label[r]])
                t->label[r] = (uint32_t)k;
        }
    }
}

enum cr_status cr_centroid_weights(cr_trainer *t, struct cr_error *err)
{
    size_t rows = t->data.n_rows, n = (size_t)t->opt.n, dim = (size_t)t->m->q_dim;
    if (rows < n)
        return cr_error_set(err, CR_INVALID, "training data: %zu rows for %zu clusters", rows, n);
    t->qx_mean = cr_alloc(dim, sizeof *t->qx_mean);
    t->centroids = cr_alloc(n * dim, sizeof *t->centroids);
    t->label = cr_alloc(rows, sizeof *t->label);
    t->table = cr_alloc(rows * n, sizeof *t->table);
    if (!t->qx_mean || !t->centroids || !t->label || !t->table)
        return cr_error_set(err, CR_NO_MEMORY, "clusters: out of memory for %zu rows", rows);
    centre(t);
    enum cr_status status = find_centroids(t, err);
    if (status)
        return status;
    cosines(t, t->table);
    t->tau = cr_fit_temperature(t->table, rows, t->opt.n, WANTED_PERPLEXITY);
    for (size_t r = 0; r < rows; r++) {
        t->key[r] = t->opt.hard ? t->label[r] : (uint32_t)r;
        for (size_t k = 0; k < n && !t->opt.hard; k++)
            t->table[r * n + k] /= t->tau;
        if (!t->opt.hard)
            t->m->k->softmax(t->table + r * n, n);
    }
    if (t->opt.hard) {
        memset(t->table, 0, n * n * sizeof *t->table);
        for (size_t k = 0; k < n; k++)
            t->table[k * n + k] = 1;
    }
    cr_free(t->data.qx); /* large, and not needed again */
    t->data.qx = NULL;
    return CR_OK;
}
