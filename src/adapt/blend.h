/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From examples to weights. Solvers behind one interface; formulas in docs/method.md.
 *   q_c = normalise(mean of the examples' unit embeddings); s_t = q_c . proto_t
 *   centroid pools: SOFTMAX w = softmax(s / tau); MEANW mean over examples of softmax(s(x) / tau);
 *                   SIMPLEX argmin over the simplex of |q_c - sum w_n c_n|^2 + lambda sum w ln w
 *   library pools:  KNN sum_t softmax(s / 0.03)_t a_t; NEAREST a of the best t; MEAN mean of a_t
 *   with labels:    PICK the start with the least loss on the examples; REFINE (1+1) evolution
 *                   strategy from there, accepted only if neither half of the examples gets worse.
 *   UNIFORM         1/N each.
 */
#ifndef CR_BLEND_H
#define CR_BLEND_H

#include "adapt/pool.h"
#include "adapt/score.h"

enum cr_solver {
    CR_SOLVE_UNIFORM,
    CR_SOLVE_SOFTMAX,
    CR_SOLVE_MEANW,
    CR_SOLVE_SIMPLEX,
    CR_SOLVE_KNN,
    CR_SOLVE_NEAREST,
    CR_SOLVE_MEAN,
    CR_SOLVE_PICK,
    CR_SOLVE_REFINE,
    CR_SOLVE_COUNT
};
/* TUNED goes on from REFINED by gradient steps (tune/fit.h); here it solves as REFINED does. */
enum cr_level {
    CR_LEVEL_INSTANT,
    CR_LEVEL_MEASURED,
    CR_LEVEL_REFINED,
    CR_LEVEL_TUNED,
    CR_LEVEL_COUNT
};

const char *cr_solver_name(enum cr_solver s); /* "knn", ... */
const char *cr_level_name(enum cr_level l);   /* "instant", "measured", "refined", "tuned" */
int cr_solver_by_name(const char *name);      /* -1 */
int cr_level_by_name(const char *name);       /* -1 */

struct cr_blend_options {
    enum cr_solver solver;
    enum cr_view view;
    float temperature; /* of KNN; 0: 0.03 */
    int max_evals;     /* of REFINE; 0: 32; at most 40 */
    uint64_t seed;     /* of REFINE */
    /* Told what is going on; false stops at the best so far. May be NULL. */
    bool (*progress)(void *ud, const char *what, int done, int total);
    void *ud;
};

struct cr_blend_result {
    int n;
    float *weights; /* [N]; free with cr_blend_result_deinit */
    double embed_ms, solve_ms;
    int n_evals, n_accepted;    /* REFINE */
    float loss_start, loss_end; /* mean over the examples with answers: of the weights that need no
                                   labels, and of the result. PICK and REFINE; else NAN */
    enum cr_solver start;       /* PICK, REFINE: which start won */
    float *q_c;                 /* [dim of the view] unit task embedding; NULL: pool has no index */
    float scope_mean, scope_std; /* leave-one-out q_x . q_c of the examples, in the view; NAN when
                                    there is one example only, or no index */
    float near_mean, near_std;   /* of max_t q_x . proto_t, in the view; NAN: no index */
    int nearest;                 /* index entry with the best similarity; -1: no index */
    float nearest_similarity;
    bool stopped; /* the caller stopped it; the best so far is returned */
};
void cr_blend_result_deinit(struct cr_blend_result *r);
/* What a level means for this pool: sets solver and view, leaves the rest alone. instant: KNN (or
 * SOFTMAX) on q_x; measured: the same on the middle view; refined: REFINE, starts from the middle
 * view. A pool without a middle index gets q_x. */
void cr_level_options(enum cr_level level, const cr_pool *p, struct cr_blend_options *opt);

/* Solves on given unit embeddings [n_examples, dim] (pure mathematics, no model run); scorer is
 * needed for PICK and REFINE only. A pool of kind lora without an index takes unit = NULL. */
enum cr_status cr_blend_solve(const cr_pool *p, const struct cr_blend_options *opt,
                              const float *unit, size_t n_examples, cr_scorer *scorer,
                              struct cr_blend_result *out, struct cr_error *err);
/* Embeds, solves, times. */
enum cr_status cr_blend_examples(cr_model *m, const cr_pool *p, const struct cr_blend_options *opt,
                                 const struct cr_example *e, size_t n, struct cr_blend_result *out,
                                 struct cr_error *err);
/* argmin over the simplex of |q - sum_n w_n C_n|^2 + lambda sum_n w_n ln w_n; C [n, dim]. */
enum cr_status cr_simplex_solve(const float *c, int n, int dim, const float *q, float lambda,
                                float *w, struct cr_error *err);
/* Spherical k-means++, best of `restarts`, seeded. x [n, dim] unit rows -> centroids [k, dim],
 * label[n]. */
enum cr_status cr_kmeans(const float *x, size_t n, int dim, int k, int restarts, uint64_t seed,
                         float *centroids, int *label, struct cr_error *err);
/* The temperature at which the mean over rows of exp(entropy(softmax(s / tau))) is `want`. */
float cr_fit_temperature(const float *s, size_t n_rows, int n, float want);

#endif
