/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spherical k-means++ (Dhillon and Modha 2001; Arthur and Vassilvitskii 2007) for centroid pools:
 * rows and centroids have length 1, nearness is the dot product, a centroid is the normalised sum
 * of its rows. Seeds are drawn with probability in proportion to 2 - 2 cos, the squared distance.
 * The best of several restarts by the sum of cosines. A cluster that runs empty takes the row that
 * lies farthest from its centroid. The same seed gives the same clusters.
 */
#include "adapt/blend.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

enum { MAX_ROUNDS = 100 };

struct kmeans {
    const struct cr_kernels *kern;
    const float *x; /* [n, dim] */
    size_t n;
    int dim, k;
    float *c;     /* [k, dim] of this restart */
    int *label;   /* [n] */
    float *near;  /* [n] cosine with the own (or nearest so far) centroid */
    size_t *size; /* [k] */
};

static const float *row(const struct kmeans *s, size_t i)
{
    return s->x + i * (size_t)s->dim;
}

static float *centroid(const struct kmeans *s, int j)
{
    return s->c + (size_t)j * (size_t)s->dim;
}

static void set_centroid(struct kmeans *s, int j, size_t i)
{
    memcpy(centroid(s, j), row(s, i), (size_t)s->dim * sizeof(float));
}

static double distance(float cosine)
{
    double d = 2 - 2 * (double)cosine;
    return d > 0 ? d : 0;
}

static void seed_centroids(struct kmeans *s, struct cr_rng *rng)
{
    for (int j = 0; j < s->k; j++) {
        size_t pick = (size_t)cr_rng_below(rng, s->n);
        double total = 0;
        for (size_t i = 0; j && i < s->n; i++)
            total += distance(s->near[i]);
        if (total > 0) {
            double at = cr_rng_double(rng) * total;
            for (pick = 0; pick + 1 < s->n && (at -= distance(s->near[pick])) >= 0; pick++) {
            }
        }
        set_centroid(s, j, pick);
        for (size_t i = 0; i < s->n; i++) {
            float d = s->kern->dot(row(s, i), centroid(s, j), (size_t)s->dim);
            if (!j || d > s->near[i])
                s->near[i] = d;
        }
    }
}

/* Gives every row its nearest centroid; returns how many changed. */
static size_t assign(struct kmeans *s)
{
    size_t changed = 0;
    memset(s->size, 0, (size_t)s->k * sizeof *s->size);
    for (size_t i = 0; i < s->n; i++) {
        int best = 0;
        float cosine = -INFINITY;
        for (int j = 0; j < s->k; j++) {
            float d = s->kern->dot(row(s, i), centroid(s, j), (size_t)s->dim);
            if (d > cosine) {
                cosine = d;
                best = j;
            }
        }
        changed += best != s->label[i];
        s->label[i] = best;
        s->near[i] = cosine;
        s->size[best]++;
    }
    return changed;
}

/* c_j = normalise(sum of its rows); a sum of length 0 keeps the old centroid. */
static void update(struct kmeans *s, float *sums)
{
    size_t dim = (size_t)s->dim;
    memset(sums, 0, (size_t)s->k * dim * sizeof *sums);
    for (size_t i = 0; i < s->n; i++)
        s->kern->add(sums + (size_t)s->label[i] * dim, row(s, i), dim);
    for (int j = 0; j < s->k; j++) {
        float *sum = sums + (size_t)j * dim;
        double norm = sqrt((double)s->kern->dot(sum, sum, dim));
        for (size_t d = 0; norm > 0 && d < dim; d++)
            centroid(s, j)[d] = (float)(sum[d] / norm);
    }
}

/* Each empty cluster takes the farthest row of a cluster that can spare one. */
static void refill(struct kmeans *s)
{
    for (int j = 0; j < s->k; j++) {
        if (s->size[j])
            continue;
        size_t far = s->n;
        for (size_t i = 0; i < s->n; i++)
            if (s->size[s->label[i]] > 1 && (far == s->n || s->near[i] < s->near[far]))
                far = i;
        if (far == s->n)
            return;
        s->size[s->label[far]]--;
        s->size[j] = 1;
        s->label[far] = j;
        s->near[far] = 1;
    }
}

static double run_once(struct kmeans *s, struct cr_rng *rng, float *sums)
{
    for (size_t i = 0; i < s->n; i++)
        s->label[i] = -1;
    seed_centroids(s, rng);
    for (int round = 0; round < MAX_ROUNDS && assign(s); round++) {
        refill(s);
        update(s, sums);
    }
    assign(s);
    double total = 0;
    for (size_t i = 0; i < s->n; i++)
        total += (double)s->near[i];
    return total;
}

enum cr_status cr_kmeans(const float *x, size_t n, int dim, int k, int restarts, uint64_t seed,
                         float *centroids, int *label, struct cr_error *err)
{
    if (dim < 1 || k < 1 || restarts < 1 || (size_t)k > n)
        return cr_error_set(err, CR_INVALID,
                            "k-means: %d clusters of %zu rows [%d], %d restarts: want 1 or more "
                            "clusters, at most one a row",
                            k, n, dim, restarts);
    for (size_t i = 0; i < n * (size_t)dim; i++)
        if (!isfinite(x[i]))
            return cr_error_set(err, CR_INVALID, "k-means: row %zu holds %g", i / (size_t)dim,
                                (double)x[i]);
    struct kmeans s = {.x = x, .n = n, .dim = dim, .k = k};
    size_t floats = (size_t)k * (size_t)dim;
    float *sums = cr_alloc(floats, sizeof *sums);
    s.c = cr_alloc(floats, sizeof *s.c);
    s.label = cr_alloc(n, sizeof *s.label);
    s.near = cr_alloc(n, sizeof *s.near);
    s.size = cr_alloc((size_t)k, sizeof *s.size);
    enum cr_status st = cr_kernels_get(&s.kern, NULL, err);
    if (!st && (!sums || !s.c || !s.label || !s.near || !s.size))
        st = cr_error_set(err, CR_NO_MEMORY, "k-means: out of memory for %zu rows", n);
    struct cr_rng rng;
    cr_rng_init(&rng, seed);
    double best = -INFINITY;
    for (int r = 0; !st && r < restarts; r++) {
        double total = run_once(&s, &rng, sums);
        if (total > best) {
            best = total;
            memcpy(centroids, s.c, floats * sizeof *centroids);
            memcpy(label, s.label, n * sizeof *label);
        }
    }
    cr_free(s.size);
    cr_free(s.near);
    cr_free(s.label);
    cr_free(s.c);
    cr_free(sums);
    return st;
}
