/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations of a transformer layer with their gradients, on rows of float32, beyond what the
 * kernel tables have (norm, softmax, SiLU, rotation, matrix products).
 * Each runs on the calling thread and writes no more than the rows it is given.
 *
 * Legend: ld* floats from one row to the next; d + name is the gradient of the loss by name.
 */
#ifndef CR_OPS_H
#define CR_OPS_H

#include "kernels/train.h"
#include "model/model.h"

/* Rotates n_heads heads of a row; cs [rope_dim] holds (cos, sin) pairs of its position. The
 * gradient is the same call with a table whose sines are negated. */
void cr_rope_row(const cr_model *m, float *x, int n_heads, const float *cs);
/* The table for positions 0..n-1: [n, n_ropes, rope_dim]; sign -1 for the gradient. */
void cr_rope_table(const cr_model *m, float *cs, size_t n, float sign);

/* Softmax cross-entropy of one row: returns -log softmax(logits)[target] and replaces logits by
 * weight * (softmax - one-hot). */
float cr_cross_entropy(const struct cr_kernels *k, float *logits, size_t n, int32_t target,
                       float weight);

/* Causal attention of one sequence. Query row i sees the last `window` keys of [0, limit[i]), or
 * with window 0 all of them; limits do not fall. Scores are q k times scale.
 * q [n_q, H * D], k and v [n_kv, G * D], o [n_q, H * D]; head h reads kv head h / (H / G). */
struct cr_attention {
    const struct cr_kernels *kernels;
    const struct cr_train_kernels *train;
    int n_heads, n_kv_heads, head_dim;
    float scale;
    size_t window;
    size_t n_q, n_kv;
    const float *q, *k, *v;
    size_t ldq, ldk, ldv;
    const int32_t *limit; /* [n_q] */
};
/* Floats of scratch that sequences of n_kv keys need. */
size_t cr_attention_scratch(const struct cr_train_kernels *k, int head_dim, size_t n_kv);
void cr_attention_forward(const struct cr_attention *a, float *o, size_t ldo, float *scratch);
/* dq is written, dk and dv (leading dimensions ldk, ldv of their own) are added to. o is the result
 * of the forward pass, d_o its gradient, both ldo apart. */
void cr_attention_back(const struct cr_attention *a, const float *o, const float *d_o, size_t ldo,
                       float *dq, size_t lddq, float *dk, size_t lddk, float *dv, size_t lddv,
                       float *scratch);

#endif
