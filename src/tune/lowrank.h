/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trained part of a pool: where each number stands in one flat vector of parameters, and what
 * it adds to the linear layers, forward and backward.
 *
 *   SHARED     y = W x + s (sum_n a_n B_n) (A x)     A [r, n_in], B_n [n_out, r]
 *   SEPARATE   y = W x + s sum_n a_n B_n (A_n x)     A_n [r, n_in], B_n [n_out, r]
 *
 * SHARED mixes the B of a group of tokens first (B_eff = s sum_n a_n B_n, one product for all
 * groups), so N adapters cost about what one does. SEPARATE is one LoRA of rank N r whose hidden
 * numbers are scaled by a_n per group.
 *
 * Linears that read the same input form a stage, and A stands below W in one matrix
 *     W_ext [n_out + n_u, n_in] = [W of each linear; A of each target]
 * so that one product gives y and u = A x, and in the backward pass one product with
 * dy_ext = [dy, du] gives dx = W^T dy + A^T du. A row of y_ext is therefore [y..., u...].
 *
 * Layout of the parameters: per layer and stage A of all its linears, then the transposed B of each
 * linear, B^T [N, r, n_out]; after all layers the weights a [n_weight_rows, N].
 */
#ifndef CR_LOWRANK_H
#define CR_LOWRANK_H

#include "adapt/pool.h"
#include "base/rng.h"
#include "kernels/train.h"

enum cr_stage { CR_STAGE_QKV, CR_STAGE_O, CR_STAGE_GATE_UP, CR_STAGE_DOWN, CR_STAGE_COUNT };

struct cr_stage_shape {
    int n_lins;
    enum cr_linear lin[3];
    size_t n_in, n_out;           /* n_out: of all its linears */
    size_t out_at[3], lin_out[3]; /* first column and width of each linear in y_ext */
    size_t u_at[3], n_u;          /* first column of u of each linear (in y_ext); all columns */
    size_t ld;                    /* n_out + n_u: width of a row of y_ext */
    size_t a_at;                  /* of the stage's A [n_u, n_in], from the layer's start */
    size_t b_at[3];               /* of B */
    bool target[3];
};

struct cr_lowrank {
    const struct cr_train_kernels *k;
    enum cr_pool_form form;
    int n, rank, n_layers;
    bool learn_weights; /* a is trained: its gradient is computed */
    float scale;        /* s = alpha / rank */
    size_t r;           /* hidden numbers of a linear: rank, or N * rank */
    struct cr_stage_shape stage[CR_STAGE_COUNT];
    size_t layer_size, n_adapter; /* floats of a layer, of all layers */
    size_t weights_at, n_weight_rows, n_params;
};

/* The tokens that share weights: group g holds rows [begin[g], begin[g + 1]). */
struct cr_groups {
    size_t n;
    const size_t *begin; /* [n + 1] */
    const float *a;      /* [n, N] */
};

void cr_lowrank_init(struct cr_lowrank *p, const cr_model *m, enum cr_pool_form form, int n,
                     int rank, float alpha, const bool target[CR_LIN_COUNT], size_t n_weight_rows);
/* A uniform in +-1 / sqrt(n_in) (as PEFT), B 0, a = 1 / N + 0.5 normal / sqrt(N). */
void cr_lowrank_start(const struct cr_lowrank *p, float *params, struct cr_rng *rng);
static inline size_t cr_lowrank_a(const struct cr_lowrank *p, int layer, enum cr_stage s)
{
    return (size_t)layer * p->layer_size + p->stage[s].a_at;
}
static inline size_t cr_lowrank_b(const struct cr_lowrank *p, int layer, enum cr_stage s, int i)
{
    return (size_t)layer * p->layer_size + p->stage[s].b_at[i];
}

/* Floats of scratch for batches of n_tokens rows in at most n_groups groups. */
size_t cr_lowrank_scratch(const struct cr_lowrank *p, size_t n_tokens, size_t n_groups);

/* y += the low-rank part, for rows of y_ext [rows, ld] whose u columns are already A x. */
void cr_lowrank_forward(const struct cr_lowrank *p, const float *params, int layer,
                        enum cr_stage stage, const struct cr_groups *g, float *y_ext,
                        float *scratch);
/* First half of the gradient: fills the u columns of dy_ext [rows, ld], adds to da [n groups, N]
 * (when weights are learned), and leaves dB in scratch for _add. u [rows, ldu] as in the forward
 * pass: the u columns of y_ext. */
void cr_lowrank_back(const struct cr_lowrank *p, const float *params, int layer,
                     enum cr_stage stage, const struct cr_groups *g, float *dy_ext, const float *u,
                     size_t ldu, float *da, float *scratch);
/* Then dA = du^T x, into scratch. x [rows, n_in] is the stage's input. */
void cr_lowrank_back_a(const struct cr_lowrank *p, enum cr_stage stage, const struct cr_groups *g,
                       const float *dy_ext, const float *x, size_t ldx, float *scratch);
/* Last: adds what scratch holds to the gradients (laid out as the parameters). */
void cr_lowrank_add(const struct cr_lowrank *p, int layer, enum cr_stage stage,
                    const struct cr_groups *g, const float *scratch, float *grads);

/* One adapter (n = 1) of the rank of the delta's pairs: its values, so that training goes on from
 * there. CR_INVALID names the linear whose rank or presence differs. */
enum cr_status cr_lowrank_import(const struct cr_lowrank *p, const cr_delta *d, float *params,
                                 struct cr_error *err);
/* Writes the adapters into a pool of the same shape. */
void cr_lowrank_export(const struct cr_lowrank *p, const float *params, cr_pool *pool);

#endif
