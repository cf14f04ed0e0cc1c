/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blending: embeds the examples, solves for weights (solve.c), and with labels tries several starts
 * (PICK) and searches on from the best (REFINE, refine.c). The weights are all that changes between
 * evaluations, so each costs one blend of the pool and one scoring pass.
 */
#include "adapt/blend.h"

#include "adapt/solve.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_EVALS = 32, MAX_EVALS = 40, MAX_STARTS = 5 };

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

void cr_blend_result_deinit(struct cr_blend_result *r)
{
    cr_free(r->weights);
    cr_free(r->q_c);
    *r = (struct cr_blend_result){0};
}

void cr_level_options(enum cr_level level, const cr_pool *p, struct cr_blend_options *opt)
{
    bool middle = level != CR_LEVEL_INSTANT && p->index.mid_proto;
    opt->view = middle ? CR_VIEW_MIDDLE : CR_VIEW_QX;
    opt->solver = level >= CR_LEVEL_REFINED     ? CR_SOLVE_REFINE
                  : p->kind == CR_POOL_CENTROID ? CR_SOLVE_SOFTMAX
                  : p->kind == CR_POOL_LIBRARY  ? CR_SOLVE_KNN
                                                : CR_SOLVE_UNIFORM;
}

/* ---- the index ---- */

static bool has_index(const cr_pool *p)
{
    return p->index.n_entries > 0;
}

static enum cr_status index_view(struct cr_index_view *iv, const cr_pool *p, enum cr_view view,
                                 struct cr_error *err)
{
    const struct cr_pool_index *x = &p->index;
    bool qx = view == CR_VIEW_QX;
    *iv = (struct cr_index_view){.n = p->n,
                                 .n_entries = x->n_entries,
                                 .dim = cr_view_dim(p->model, view),
                                 .proto = qx ? x->qx_proto : x->mid_proto,
                                 .weights = x->weights,
                                 .tau = qx ? x->tau_qx : x->tau_middle,
                                 .kind = p->kind};
    return has_index(p) ? cr_pool_check_view(p, view, err) : CR_OK;
}

/* Mean and standard deviation of n values. */
static void spread(const float *v, size_t n, float *mean, float *std)
{
    double sum = 0, sum2 = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i];
    sum /= (double)n;
    for (size_t i = 0; i < n; i++)
        sum2 += ((double)v[i] - sum) * ((double)v[i] - sum);
    *mean = (float)sum;
    *std = (float)sqrt(sum2 / (double)n);
}

static float dot(const float *a, const float *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)a[i] * (double)b[i];
    return (float)s;
}

/* Fills q_c, the nearest entry, and what the examples say about their own scope: how near each is
 * to the others (left out itself) and to its nearest prototype. */
static enum cr_status describe(const struct cr_index_view *iv, const float *unit, size_t n,
                               struct cr_blend_result *out, struct cr_error *err)
{
    float *block = cr_alloc((size_t)iv->n_entries + (size_t)iv->dim + 2 * n, sizeof *block);
    out->q_c = cr_alloc((size_t)iv->dim, sizeof *out->q_c);
    if (!block || !out->q_c) {
        cr_free(block);
        return cr_error_set(err, CR_NO_MEMORY, "blend: out of memory for %zu examples", n);
    }
    float *s = block, *others = s + iv->n_entries, *own = others + iv->dim, *near = own + n;
    if (!cr_mean_direction(unit, n, iv->dim, n, out->q_c)) {
        cr_free(block);
        return cr_error_set(err, CR_INVALID,
                            "the embeddings of the %zu examples cancel out or are not finite", n);
    }
    size_t n_own = 0;
    for (size_t i = 0; i < n; i++) {
        const float *u = unit + i * (size_t)iv->dim;
        cr_similarities(iv, u, s);
        near[i] = s[cr_argmax(s, iv->n_entries)];
        if (n > 1 && cr_mean_direction(unit, n, iv->dim, i, others))
            own[n_own++] = dot(u, others, iv->dim);
    }
    spread(near, n, &out->near_mean, &out->near_std);
    out->scope_mean = out->scope_std = NAN;
    if (n_own)
        spread(own, n_own, &out->scope_mean, &out->scope_std);
    cr_similarities(iv, out->q_c, s);
    out->nearest = cr_argmax(s, iv->n_entries);
    out->nearest_similarity = s[out->nearest];
    cr_free(block);
    return CR_OK;
}

/* ---- PICK and REFINE ---- */

struct search {
    const cr_pool *pool;
    const struct cr_blend_options *opt;
    cr_scorer *scorer;
    const char *what;
    int done, total;
    size_t n_labelled;
};

static bool still_wanted(void *ud, size_t done, size_t total)
{
    (void)done;
    (void)total;
    const struct search *s = ud;
    return !s->opt->progress || s->opt->progress(s->opt->ud, s->what, s->done, s->total);
}

/* loss [n_labelled] of the examples with answers, under weights w. */
static enum cr_status measure(void *ud, const float *w, float *loss, struct cr_error *err)
{
    struct search *s = ud;
    if (!still_wanted(s, 0, 0))
        return cr_error_set(err, CR_CANCELLED, "blend: stopped");
    cr_delta *d;
    const struct cr_example_score *r;
    enum cr_status st = cr_pool_blend(&d, s->pool, w, err);
    if (st)
        return st;
    st = cr_scorer_run(s->scorer, d, &r, still_wanted, s, err);
    cr_delta_free(d);
    if (st)
        return st;
    size_t k = 0;
    for (size_t i = 0; i < cr_scorer_n_examples(s->scorer); i++)
        if (r[i].has_answer)
            loss[k++] = r[i].loss;
    s->done++;
    return CR_OK;
}

struct start {
    enum cr_solver solver;
    float temperature;
};

/* The label-free default comes first, so that a search that is stopped at once returns it. */
static int starts_of(const cr_pool *p, float temperature, struct start out[MAX_STARTS])
{
    static const struct start library[] = {{CR_SOLVE_KNN, 0.0F},
                                           {CR_SOLVE_KNN, 0.1F},
                                           {CR_SOLVE_KNN, 0.3F},
                                           {CR_SOLVE_MEAN, 0},
                                           {CR_SOLVE_NEAREST, 0}};
    static const struct start centroid[] = {{CR_SOLVE_SOFTMAX, 0},
                                            {CR_SOLVE_MEANW, 0},
                                            {CR_SOLVE_SIMPLEX, 0},
                                            {CR_SOLVE_UNIFORM, 0},
                                            {CR_SOLVE_NEAREST, 0}};
    if (p->kind == CR_POOL_LORA || !has_index(p)) {
        out[0] = (struct start){CR_SOLVE_UNIFORM, 0};
        return 1;
    }
    memcpy(out, p->kind == CR_POOL_CENTROID ? centroid : library, sizeof library);
    out[0].temperature = temperature;
    return MAX_STARTS;
}

static double mean_of(const float *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i];
    return sum / (double)n;
}

/* Tries every start; w and loss are those of the best. */
static enum cr_status pick(struct search *s, const struct cr_index_view *iv, const float *unit,
                           size_t n, float *w, float *loss, struct cr_blend_result *out,
                           struct cr_error *err)
{
    struct start list[MAX_STARTS];
    int n_starts = starts_of(s->pool, s->opt->temperature, list);
    float *trial = cr_alloc((size_t)iv->n + s->n_labelled, sizeof *trial);
    if (!trial)
        return cr_error_set(err, CR_NO_MEMORY, "blend: out of memory");
    float *trial_loss = trial + iv->n;
    double best = INFINITY;
    enum cr_status st = CR_OK;
    s->what = "pick";
    s->done = 0;
    s->total = n_starts;
    for (int i = 0; !st && i < n_starts; i++) {
        st = cr_solve(iv, list[i].solver, list[i].temperature, unit, n, out->q_c, trial, err);
        if (!st && i == 0) {
            memcpy(w, trial, (size_t)iv->n * sizeof *w);
            out->start = list[i].solver;
        }
        if (!st)
            st = measure(s, trial, trial_loss, err);
        double mean = st ? INFINITY : mean_of(trial_loss, s->n_labelled);
        if (!st && i == 0) {
            out->loss_start = (float)mean;
            memcpy(loss, trial_loss, s->n_labelled * sizeof *loss);
        }
        if (mean < best) {
            best = mean;
            memcpy(w, trial, (size_t)iv->n * sizeof *w);
            memcpy(loss, trial_loss, s->n_labelled * sizeof *loss);
            out->start = list[i].solver;
            out->loss_end = (float)mean;
        }
    }
    cr_free(trial);
    return st;
}

/* The first step of REFINE: 0.3 of how much the weights differ among the entries of the index. A
 * pool without an index has no such measure; then the weights themselves give the scale. */
static float first_step(const struct cr_index_view *iv, const float *w)
{
    double var = 0, scale = 0;
    for (int n = 0; n < iv->n; n++) {
        double mean = 0;
        for (int t = 0; t < iv->n_entries; t++)
            mean += (double)iv->weights[(size_t)t * (size_t)iv->n + (size_t)n] / iv->n_entries;
        for (int t = 0; t < iv->n_entries; t++) {
            double d = (double)iv->weights[(size_t)t * (size_t)iv->n + (size_t)n] - mean;
            var += d * d / iv->n_entries / iv->n;
        }
        scale += fabs((double)w[n]) / iv->n;
    }
    double sigma = 0.3 * sqrt(var);
    return (float)(sigma > 0 ? sigma : scale > 0 ? 0.3 * scale : 0.1);
}

static size_t count_labelled(cr_scorer *scorer)
{
    return scorer ? cr_scorer_n_answers(scorer) : 0;
}

static enum cr_status solve_with_labels(const cr_pool *p, const struct cr_blend_options *opt,
                                        const struct cr_index_view *iv, const float *unit, size_t n,
                                        cr_scorer *scorer, struct cr_blend_result *out,
                                        struct cr_error *err)
{
    struct search s = {
        .pool = p, .opt = opt, .scorer = scorer, .n_labelled = count_labelled(scorer)};
    if (!s.n_labelled)
        return cr_error_set(err, CR_INVALID,
                            "the solver %s needs examples with answers, none of the %zu has one",
                            cr_solver_name(opt->solver), n);
    float *loss = cr_alloc(s.n_labelled, sizeof *loss);
    if (!loss)
        return cr_error_set(err, CR_NO_MEMORY, "blend: out of memory");
    enum cr_status st = pick(&s, iv, unit, n, out->weights, loss, out, err);
    if (!st && opt->solver == CR_SOLVE_REFINE) {
        struct cr_refine r = {.n = iv->n,
                              .n_examples = s.n_labelled,
                              .loss = measure,
                              .ud = &s,
                              .sigma = first_step(iv, out->weights),
                              .max_evals = opt->max_evals ? opt->max_evals : DEFAULT_EVALS,
                              .not_negative = p->kind == CR_POOL_CENTROID,
                              .seed = opt->seed};
        s.what = "refine";
        s.done = 0;
        s.total = r.max_evals;
        st = cr_refine(&r, out->weights, loss, err);
        out->n_evals = r.n_evals;
        out->n_accepted = r.n_accepted;
        out->loss_end = r.loss_end;
        out->stopped = r.stopped;
    }
    if (st == CR_CANCELLED) {
        out->stopped = true;
        st = CR_OK;
    }
    cr_free(loss);
    return st;
}

/* ---- entry points ---- */

enum cr_status cr_blend_solve(const cr_pool *p, const struct cr_blend_options *opt,
                              const float *unit, size_t n_examples, cr_scorer *scorer,
                              struct cr_blend_result *out, struct cr_error *err)
{
    double begin = now_ms();
    *out = (struct cr_blend_result){.n = p->n, .nearest = -1, .start = opt->solver};
    out->scope_mean = out->scope_std = out->near_mean = out->near_std = NAN;
    out->loss_start = out->loss_end = NAN;
    if (opt->max_evals < 0 || opt->max_evals > MAX_EVALS)
        return cr_error_set(err, CR_INVALID, "refine: %d evaluations, want 1 to %d (0: %d)",
                            opt->max_evals, MAX_EVALS, DEFAULT_EVALS);
    if (!n_examples)
        return cr_error_set(err, CR_INVALID, "blend: there are no examples");
    struct cr_index_view iv;
    enum cr_status st = index_view(&iv, p, opt->view, err);
    if (!st && has_index(p))
        st = describe(&iv, unit, n_examples, out, err);
    if (!st && !(out->weights = cr_alloc((size_t)p->n, sizeof *out->weights)))
        st = cr_error_set(err, CR_NO_MEMORY, "blend: out of memory");
    if (!st && opt->solver >= CR_SOLVE_PICK)
        st = solve_with_labels(p, opt, &iv, unit, n_examples, scorer, out, err);
    else if (!st)
        st = cr_solve(&iv, has_index(p) ? opt->solver : CR_SOLVE_UNIFORM, opt->temperature, unit,
                      n_examples, out->q_c, out->weights, err);
    out->solve_ms = now_ms() - begin;
    if (st)
        cr_blend_result_deinit(out);
    return st;
}

/* unit [n, dim]: the examples' embeddings, normalised by the pool. */
static enum cr_status embed_unit(cr_model *m, const cr_pool *p, enum cr_view view,
                                 const struct cr_example *e, size_t n, float **unit,
                                 struct cr_error *err)
{
    size_t dim = (size_t)cr_view_dim(m, view);
    *unit = cr_alloc(n * dim, sizeof **unit);
    if (!*unit)
        return cr_error_set(err, CR_NO_MEMORY, "blend: out of memory for %zu examples", n);
    enum cr_status st = cr_embed_examples(m, view, e, n, *unit, err);
    for (size_t i = 0; !st && i < n; i++)
        cr_pool_normalise(p, view, *unit + i * dim, *unit + i * dim);
    return st;
}

enum cr_status cr_blend_examples(cr_model *m, const cr_pool *p, const struct cr_blend_options *opt,
                                 const struct cr_example *e, size_t n, struct cr_blend_result *out,
                                 struct cr_error *err)
{
    *out = (struct cr_blend_result){0};
    if (p->model != m)
        return cr_error_set(err, CR_INVALID, "the pool %s was opened for another model",
                            p->name ? p->name : "");
    float *unit = NULL;
    cr_scorer *scorer = NULL;
    struct cr_index_view iv;
    double begin = now_ms();
    enum cr_status st = index_view(&iv, p, opt->view, err);
    if (!st && has_index(p))
        st = embed_unit(m, p, opt->view, e, n, &unit, err);
    double embed_ms = now_ms() - begin;
    begin = now_ms();
    if (!st && opt->solver >= CR_SOLVE_PICK)
        st = cr_scorer_new(&scorer, m, NULL, e, n, err);
    if (!st)
        st = cr_blend_solve(p, opt, unit, n, scorer, out, err);
    if (!st) {
        out->embed_ms = embed_ms;
        out->solve_ms = now_ms() - begin;
    }
    cr_scorer_free(scorer);
    cr_free(unit);
    return st;
}
