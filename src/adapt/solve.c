/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Solvers that need no labels, from unit embeddings and a pool's index to weights. Everything is
 * small (tens of weights, hundreds of prototypes), so this is plain double arithmetic in a fixed
 * order: the same on every machine and at every kernel level.
 */
#include "adapt/solve.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

/* Eight sums side by side: a fixed order, and no wait for the one before. */
static double dot(const float *a, const float *b, int n)
{
    double s[8] = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            s[j] += (double)a[i + j] * (double)b[i + j];
    for (; i < n; i++)
        s[0] += (double)a[i] * (double)b[i];
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static const char *const solver_names[CR_SOLVE_COUNT] = {
    "uniform", "softmax", "meanw", "simplex", "knn", "nearest", "mean", "pick", "refine"};
static const char *const level_names[CR_LEVEL_COUNT] = {"instant", "measured", "refined", "tuned"};

const char *cr_solver_name(enum cr_solver s)
{
    return (unsigned)s < CR_SOLVE_COUNT ? solver_names[s] : "unknown";
}

const char *cr_level_name(enum cr_level l)
{
    return (unsigned)l < CR_LEVEL_COUNT ? level_names[l] : "unknown";
}

static int by_name(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return i;
    return -1;
}

int cr_solver_by_name(const char *name)
{
    return by_name(solver_names, CR_SOLVE_COUNT, name);
}

int cr_level_by_name(const char *name)
{
    return by_name(level_names, CR_LEVEL_COUNT, name);
}

void cr_similarities(const struct cr_index_view *iv, const float *q, float *s)
{
    for (int t = 0; t < iv->n_entries; t++)
        s[t] = (float)dot(q, iv->proto + (size_t)t * (size_t)iv->dim, iv->dim);
}

bool cr_mean_direction(const float *unit, size_t n, int dim, size_t skip, float *q)
{
    double norm = 0;
    for (int d = 0; d < dim; d++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += i == skip ? 0 : (double)unit[i * (size_t)dim + (size_t)d];
        q[d] = (float)sum;
        norm += sum * sum;
    }
    norm = sqrt(norm);
    if (!(norm > 0) || !isfinite(norm))
        return false;
    for (int d = 0; d < dim; d++)
        q[d] = (float)(q[d] / norm);
    return true;
}

void cr_softmax_tau(const float *s, int n, float tau, float *p)
{
    float max = s[0];
    for (int i = 1; i < n; i++)
        max = s[i] > max ? s[i] : max;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        p[i] = (float)exp(((double)s[i] - (double)max) / (double)tau);
        sum += (double)p[i];
    }
    for (int i = 0; i < n; i++)
        p[i] = (float)((double)p[i] / sum);
}

/* exp of the entropy of softmax(s / tau): how many entries share the weight. */
static double perplexity(const float *s, int n, double tau)
{
    double max = (double)s[0], z = 0, zs = 0;
    for (int i = 1; i < n; i++)
        max = (double)s[i] > max ? (double)s[i] : max;
    for (int i = 0; i < n; i++) {
        double a = ((double)s[i] - max) / tau, e = exp(a);
        z += e;
        zs += a * e;
    }
    return exp(log(z) - zs / z);
}

float cr_fit_temperature(const float *s, size_t n_rows, int n, float want)
{
    double low = log(1e-6), high = log(1e6); /* the mean grows with tau: bisection on log tau */
    for (int step = 0; step < 64; step++) {
        double mid = (low + high) / 2, mean = 0;
        for (size_t i = 0; i < n_rows; i++)
            mean += perplexity(s + i * (size_t)n, n, exp(mid));
        if (mean / (double)(n_rows ? n_rows : 1) < (double)want)
            low = mid;
        else
            high = mid;
    }
    return (float)exp((low + high) / 2);
}

/* ---- SIMPLEX ---- */

/* The smallest weight that the entropy term may leave, where ln w ends. */
static const double floor_weight = 1e-12;

struct simplex {
    int n;
    double lambda;
    double *gram; /* [n, n] C C^T */
    double *w;    /* [n] */
    double *g;    /* [n] gradient of the quadratic part: 2 (G w - C q) */
};

static double slope(const struct simplex *s, int i)
{
    double w = s->w[i] > floor_weight ? s->w[i] : floor_weight;
    return s->g[i] + (s->lambda > 0 ? s->lambda * (log(w) + 1) : 0);
}

/* The best step t of moving weight t from `down` to `up`: exact for the parabola, by bisection of
 * the derivative with the entropy term. */
static double line_search(const struct simplex *s, int up, int down)
{
    const double *gu = s->gram + (size_t)up * (size_t)s->n;
    double curve =
        2 * (gu[up] + s->gram[(size_t)down * (size_t)s->n + (size_t)down] - 2 * gu[down]);
    double slope0 = s->g[up] - s->g[down];
    double most = s->w[down] - (s->lambda > 0 ? floor_weight : 0);
    if (s->lambda <= 0)
        return curve * most > -slope0 ? -slope0 / curve : most;
    double low = 0, high = most;
    for (int step = 0; step < 60; step++) {
        double t = (low + high) / 2;
        double d = slope0 + curve * t +
                   s->lambda * (log(s->w[up] + t) - log(fmax(s->w[down] - t, floor_weight)));
        if (d < 0)
            low = t;
        else
            high = t;
    }
    return (low + high) / 2;
}

/* Pairwise exchange (the idea of SMO, Platt 1998): move weight from the entry whose gradient is
 * largest to the one whose gradient is smallest until the two agree. Linear convergence, exact
 * zeros, a step costs n. */
enum cr_status cr_simplex_solve(const float *c, int n, int dim, const float *q, float lambda,
                                float *w, struct cr_error *err)
{
    enum { MAX_STEPS = 20000 };
    double *block = cr_alloc((size_t)n * ((size_t)n + 2), sizeof *block);
    if (!block)
        return cr_error_set(err, CR_NO_MEMORY, "simplex: out of memory for %d weights", n);
    struct simplex s = {.n = n,
                        .lambda = (double)lambda,
                        .gram = block,
                        .w = block + (size_t)n * (size_t)n,
                        .g = block + (size_t)n * ((size_t)n + 1)};
    for (int i = 0; i < n; i++) {
        const float *ci = c + (size_t)i * (size_t)dim;
        for (int j = 0; j <= i; j++)
            s.gram[(size_t)i * (size_t)n + (size_t)j] = s.gram[(size_t)j * (size_t)n + (size_t)i] =
                dot(ci, c + (size_t)j * (size_t)dim, dim);
        s.w[i] = 1.0 / n;
        s.g[i] = -2 * dot(ci, q, dim);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            s.g[i] += 2 * s.gram[(size_t)i * (size_t)n + (size_t)j] * s.w[j];
    for (int step = 0; step < MAX_STEPS; step++) {
        int up = 0, down = -1;
        for (int i = 0; i < n; i++) {
            if (slope(&s, i) < slope(&s, up))
                up = i;
            if (s.w[i] > (lambda > 0 ? floor_weight : 0) &&
                (down < 0 || slope(&s, i) > slope(&s, down)))
                down = i;
        }
        if (down < 0 || !(slope(&s, down) - slope(&s, up) > 1e-9))
            break;
        double t = line_search(&s, up, down);
        if (!(t > 0))
            break;
        s.w[up] += t;
        s.w[down] = s.w[down] > t ? s.w[down] - t : 0;
        for (int i = 0; i < n; i++) {
            const double *gi = s.gram + (size_t)i * (size_t)n;
            s.g[i] += 2 * t * (gi[up] - gi[down]);
        }
    }
    for (int i = 0; i < n; i++)
        w[i] = (float)s.w[i];
    cr_free(block);
    return CR_OK;
}

/* ---- the table of solvers ---- */

/* w = sum_t p_t a_t */
static void mix(const struct cr_index_view *iv, const float *p, float *w)
{
    for (int n = 0; n < iv->n; n++) {
        double sum = 0;
        for (int t = 0; t < iv->n_entries; t++)
            sum += (double)p[t] * (double)iv->weights[(size_t)t * (size_t)iv->n + (size_t)n];
        w[n] = (float)sum;
    }
}

int cr_argmax(const float *s, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = s[i] > s[best] ? i : best;
    return best;
}

/* p [n_entries]: how much of each index entry the solver takes. s: scratch [n_entries]. */
static enum cr_status shares(const struct cr_index_view *iv, enum cr_solver solver,
                             float temperature, const float *unit, size_t n_examples,
                             const float *q_c, float *p, float *s, struct cr_error *err)
{
    int n = iv->n_entries;
    cr_similarities(iv, q_c, s);
    switch (solver) {
    case CR_SOLVE_SOFTMAX:
        cr_softmax_tau(s, n, iv->tau, p);
        break;
    case CR_SOLVE_MEANW:
        memset(p, 0, (size_t)n * sizeof *p);
        for (size_t i = 0; i < n_examples; i++) {
            cr_similarities(iv, unit + i * (size_t)iv->dim, s);
            cr_softmax_tau(s, n, iv->tau, s);
            for (int t = 0; t < n; t++)
                p[t] += s[t] / (float)n_examples;
        }
        break;
    case CR_SOLVE_SIMPLEX:
        return cr_simplex_solve(iv->proto, n, iv->dim, q_c, CR_SIMPLEX_LAMBDA, p, err);
    case CR_SOLVE_KNN:
        cr_softmax_tau(s, n, temperature > 0 ? temperature : CR_KNN_TEMPERATURE, p);
        break;
    case CR_SOLVE_NEAREST:
        memset(p, 0, (size_t)n * sizeof *p);
        p[cr_argmax(s, n)] = 1;
        break;
    default: /* MEAN */
        for (int t = 0; t < n; t++)
            p[t] = 1.0F / (float)n;
    }
    return CR_OK;
}

enum cr_status cr_solve(const struct cr_index_view *iv, enum cr_solver solver, float temperature,
                        const float *unit, size_t n_examples, const float *q_c, float *w,
                        struct cr_error *err)
{
    if (solver == CR_SOLVE_UNIFORM || iv->kind == CR_POOL_LORA) {
        /* A plain LoRA is applied whole: its rank groups add up to it. */
        for (int n = 0; n < iv->n; n++)
            w[n] = iv->kind == CR_POOL_LORA ? 1 : 1.0F / (float)iv->n;
        return CR_OK;
    }
    bool centroid_only =
        solver == CR_SOLVE_SOFTMAX || solver == CR_SOLVE_MEANW || solver == CR_SOLVE_SIMPLEX;
    if ((unsigned)solver > CR_SOLVE_MEAN || (centroid_only && iv->kind != CR_POOL_CENTROID))
        return cr_error_set(err, CR_INVALID,
                            "the solver %s does not work on a %s pool; want uniform, knn, nearest "
                            "or mean",
                            cr_solver_name(solver),
                            iv->kind == CR_POOL_CENTROID ? "centroid" : "library");
    float *p = cr_alloc(2 * (size_t)iv->n_entries, sizeof *p);
    if (!p)
        return cr_error_set(err, CR_NO_MEMORY, "blend: out of memory");
    enum cr_status st =
        shares(iv, solver, temperature, unit, n_examples, q_c, p, p + iv->n_entries, err);
    if (!st)
        mix(iv, p, w);
    cr_free(p);
    for (int n = 0; !st && n < iv->n; n++)
        if (!isfinite(w[n]))
            return cr_error_set(err, CR_INTERNAL, "the solver %s gave weight %d = %g",
                                cr_solver_name(solver), n, (double)w[n]);
    return st;
}
