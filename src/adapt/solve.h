/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pure mathematics behind blend.h: embeddings and losses in, weights out; no model run.
 * Formulas in docs/method.md.
 */
#ifndef CR_SOLVE_H
#define CR_SOLVE_H

#include "adapt/blend.h"

static const float CR_KNN_TEMPERATURE = 0.03F; /* docs/method.md: of the task library */
static const float CR_SIMPLEX_LAMBDA = 0.01F;  /* pulls SIMPLEX gently towards equal weights */

/* What the solvers need of a pool's index in one view. */
struct cr_index_view {
    int n, n_entries, dim;
    const float *proto;   /* [n_entries, dim] unit rows */
    const float *weights; /* [n_entries, n] */
    float tau;            /* of centroid pools */
    enum cr_pool_kind kind;
};
/* s[t] = q . proto_t */
void cr_similarities(const struct cr_index_view *iv, const float *q, float *s);
/* Index of the largest; ties: the lower one. */
int cr_argmax(const float *s, int n);
/* q = normalise(mean of the n unit rows but `skip`); skip n: none left out. False when that mean is
 * zero. */
bool cr_mean_direction(const float *unit, size_t n, int dim, size_t skip, float *q);
/* p = softmax(s / tau), p may be s. */
void cr_softmax_tau(const float *s, int n, float tau, float *p);
/* Weights by one of the solvers that need no labels (UNIFORM to MEAN). temperature: of KNN, 0 for
 * the default. unit [n_examples, dim]; q_c [dim]. CR_INVALID names a solver that this kind of pool
 * does not have. */
enum cr_status cr_solve(const struct cr_index_view *iv, enum cr_solver solver, float temperature,
                        const float *unit, size_t n_examples, const float *q_c, float *w,
                        struct cr_error *err);

/* (1+1) evolution strategy. loss fills per_example [n_examples] for weights w [n]; a status other
 * than CR_OK ends the search: CR_CANCELLED with the best so far, others as errors. */
struct cr_refine {
    int n;
    size_t n_examples;
    enum cr_status (*loss)(void *ud, const float *w, float *per_example, struct cr_error *err);
    void *ud;
    float sigma;       /* first step size, > 0 */
    bool not_negative; /* weights below 0 are tried as 0 (centroid pools) */
    int max_evals;
    uint64_t seed;
    /* out */
    int n_evals, n_accepted;
    float loss_start, loss_end; /* means */
    bool stopped;
};
/* w: the start in, the result out, never with a higher mean loss. start_loss [n_examples]: the
 * losses of the start. */
enum cr_status cr_refine(struct cr_refine *r, float *w, const float *start_loss,
                         struct cr_error *err);

#endif
