/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of the CUDA backend, as C functions that launch them on a stream.
 * bfloat16 is stored as uint16_t; rows of bfloat16 matrices start on 16 bytes
 * (every ld is a multiple of 8), sums are float32. No kernel adds with atomics:
 * each number is written by one thread in one fixed order, so the same input
 * gives the same bits.
 *
 * Launch errors are found by the caller (cudaPeekAtLastError).
 */
#ifndef CR_CUDA_KERNELS_H
#define CR_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- rows ---- */

/* x [rows, e] = table[ids] */
void cr_k_embed(cudaStream_t s, uint16_t *x, const uint16_t *table, const int *ids, int rows,
                int e);
/* h [rows, e] = RMSNorm(x) * w */
void cr_k_norm(cudaStream_t s, uint16_t *h, const uint16_t *x, const float *w, int rows, int e,
               float eps);
/* out [rows, e] = x[row] + y (ldy apart), h = RMSNorm(out) * w. row NULL: its
 * own; h NULL: none. */
void cr_k_add_norm(cudaStream_t s, uint16_t *out, uint16_t *h, const uint16_t *x, const int *row,
                   const uint16_t *y, int ldy, const float *w, int rows, int e, float eps);
/* dx [rows, lddx] = (add ? dx : 0) + gradient of h = RMSNorm(x) * w; h is made
 * again unless NULL. e is at most CR_NORM_WIDEST.
 */
enum { CR_NORM_WIDEST = 8192 };
void cr_k_norm_back(cudaStream_t s, uint16_t *dx, int lddx, bool add, uint16_t *h,
                    const uint16_t *dh, const uint16_t *x, const float *w, int rows, int e,
                    float eps);
/* h [rows, f] = silu(gate) * up, gu rows being [gate, up, ...] ld apart */
void cr_k_swiglu(cudaStream_t s, uint16_t *h, const uint16_t *gu, int ld, int rows, int f);
/* gu becomes its gradient, h [rows, f] is made again; dh [rows, f] */
void cr_k_swiglu_back(cudaStream_t s, uint16_t *gu, int ld, uint16_t *h, const uint16_t *dh,
                      int rows, int f);
/* y[:, 0:n] += bias */
void cr_k_bias(cudaStream_t s, uint16_t *y, int ld, const float *bias, int rows, int n);
/* Turns the first n_heads heads of d numbers of each row to its position; rope
 * [pos, d / 2, 2]. */
void cr_k_rope(cudaStream_t s, uint16_t *y, int ld, const float *rope, const int *pos, bool neox,
               int rows, int n_heads, int d);
/* to [rows, n] = from[row] */
void cr_k_gather(cudaStream_t s, uint16_t *to, int ldto, const uint16_t *from, int ldfrom,
                 const int *row, int rows, int n);
/* to[row] [.., n] = from; to was cleared */
void cr_k_scatter(cudaStream_t s, uint16_t *to, int ldto, const uint16_t *from, int ldfrom,
                  const int *row, int rows, int n);
/* to [rows, n] float32 = from[row] */
void cr_k_gather_float(cudaStream_t s, float *to, const uint16_t *from, int ldfrom, const int *row,
                       int rows, int n);
void cr_k_to_float(cudaStream_t s, float *to, const uint16_t *from, size_t n);
void cr_k_to_bf16(cudaStream_t s, uint16_t *to, const float *from, size_t n);

/* ---- low rank ---- */

/* Up to CR_CHUNK_ROWS rows that share weights. */
enum { CR_CHUNK_ROWS = 64 };
struct cr_chunk {
    int row, n_rows, group;
};

struct cr_scale {   /* of one stage */
    int n, rank;    /* adapters, and hidden numbers of each */
    bool shared;    /* u has rank columns per linear, else n * rank */
    float s;        /* alpha / rank */
    const float *a; /* [groups, n] */
    int n_lins;     /* with a low-rank part */
    int u_step;     /* columns of u per linear */
    int ldv;        /* of v and dv: [n_lins, rows_max, ldv] */
    size_t v_step;
};
/* v = s a u; keep (unless NULL) gets a copy of u [rows, n_lins * u_step],
 * ldkeep apart. */
void cr_k_scale(cudaStream_t s, const struct cr_scale *p, const int *group, uint16_t *v,
                const uint16_t *u, int ldu, uint16_t *keep, int ldkeep, int rows);
/* v again; du = gradient of u; da [chunks, n] += that of a (unless NULL). du
 * may be u. */
void cr_k_scale_back(cudaStream_t s, const struct cr_scale *p, const struct cr_chunk *chunks,
                     int n_chunks, uint16_t *v, const uint16_t *dv, const uint16_t *u, int ldu,
                     uint16_t *du, int lddu, float *da);
/* ---- low rank, thin: SHARED pools of rank 8 (thin.cu) ---- */

struct cr_thin { /* the linears of a layer that have a low-rank part */
    int n, n_lins;
    float s;
    int at[7], size[7]; /* of each in B_eff: first number, 8 * n_out */
    int total;
    size_t from[7]; /* of B_0 of each, from the start of the layer's parameters */
};
struct cr_thin_lin {   /* of a stage */
    int out, width, u; /* first column and columns in y; first column in u */
    int beff;          /* first number in B_eff; < 0: no low-rank part */
};
struct cr_thin_stage {
    int n_lins, n_out, n_u;
    struct cr_thin_lin lin[3];
};
struct cr_thin_rope { /* pairs (2 i, 2 i + 1) of the first columns are turned */
    const float *table;
    const int *pos;
    int d, columns;
};
/* beff [groups, total] */
void cr_k_thin_mix(cudaStream_t s, const struct cr_thin *p, uint16_t *beff, const float *params,
                   const float *a, int groups);
/* y += B_eff u, u being the columns of y behind n_out. rope NULL: none. */
void cr_k_thin_add(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                   const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff, uint16_t *y,
                   int ld, const struct cr_thin_rope *rope);
/* The same for a stage of one linear that adds to the residual stream: out [rows, n_out] =
 * x[row] + y + B_eff u, h = RMSNorm(out) * w; keep [rows, n_u] gets u. row NULL: its own. At most
 * CR_THIN_WIDEST columns. */
enum { CR_THIN_WIDEST = 4096 };
void cr_k_thin_add_norm(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                        const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                        const uint16_t *y, int ld, uint16_t *keep, uint16_t *out, uint16_t *h,
                        const uint16_t *x, const int *row, const float *w, float eps);
/* h = silu(gate) * up with the low-rank part of both, which y does not get. */
void cr_k_thin_swiglu(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                      const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                      uint16_t *h, const uint16_t *y, int ld);
/* From dh: y becomes its gradient [dgate, dup, du], h is made again, and part as cr_k_thin_back.
 * Scratch: du_part of cr_k_thin_du_bytes, and done [chunks], which must be 0 and is 0 again. */
size_t cr_k_thin_du_bytes(const struct cr_thin_stage *st, size_t n_chunks);
void cr_k_thin_swiglu_back(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                           const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                           uint16_t *y, int ld, uint16_t *h, const uint16_t *dh, uint16_t *part,
                           void *du_part, int *done);
/* du^T x of a stage, over each of cr_k_thin_slabs pieces of the rows: to [slabs, step], of which
 * the stage has [n_u, n_in]. */
int cr_k_thin_slabs(int rows);
void cr_k_thin_grad_a(cudaStream_t s, float *to, size_t step, const uint16_t *du, int lddu, int n_u,
                      const uint16_t *x, int n_in, int rows);
/* to[...] = the sum of the slabs, or that added: size[i] numbers from from[i] on to to_at[i]. */
struct cr_thin_sums {
    int n;
    size_t from[4], to_at[4], size[4];
};
void cr_k_thin_add_slabs(cudaStream_t s, const struct cr_thin_sums *p, float *to,
                         const float *slabs, size_t step, int n_slabs, bool add);
/* du behind dy, and dB_eff of each chunk in bfloat16: part [chunks, total]. u may be where du goes.
 */
void cr_k_thin_back(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                    const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff, uint16_t *dy,
                    int ldy, const uint16_t *u, int ldu, uint16_t *part);
/* The weights a [groups, n] of chunks as cr_k_thin_sum reads them, in cr_k_thin_weights_bytes. */
size_t cr_k_thin_weights_bytes(int n, size_t n_chunks);
void cr_k_thin_weights(cudaStream_t s, void *to, const float *a, int n,
                       const struct cr_chunk *chunks, int n_chunks);
/* For the numbers [first, first + n) of B_eff: gradients of B, written or added to; and, unless da
 * is NULL, da [cr_k_thin_splits, da_step] of the chunks += <dB_eff, B_n>. */
int cr_k_thin_splits(const struct cr_thin *p);
void cr_k_thin_sum(cudaStream_t s, const struct cr_thin *p, int first_col, int n_cols, float *grads,
                   const uint16_t *part, const void *weights, int n_chunks, bool add, float *da,
                   size_t da_step, const uint16_t *copy);

/* a [groups, n] = table[key] */
void cr_k_weights(cudaStream_t s, float *a, const float *table, const int *key, int groups, int n);
/* grads[key] += the sum of the chunks of each group, in two lists of chunks,
 * each `splits` times step apart */
void cr_k_weights_back(cudaStream_t s, float *grads, const int *key, int groups, int n,
                       const float *da, const int *begin, const float *da2, const int *begin2,
                       int splits, size_t step);

/* ---- attention ---- */

struct cr_flash {
    int rows, n_heads, n_kv_heads, head_dim;
    bool neox;
    const uint16_t *qkv; /* [rows, ld] q and k, rotated, and v */
    int ld;
    const float *rope;        /* [positions, head_dim / 2, 2] cos and sin */
    const int *pos;           /* [rows] */
    const int *seg;           /* [rows] first row that a row sees, up to itself */
    const int *pre, *pre_end; /* [rows] and this range before it; NULL: none */
    const int *end;           /* [rows] end of the row's sequence; for the way back */
    float scale;              /* of q k */
    /* [ceil(rows / 16)] pieces of 16 rows: those that see most, and those that are seen by most,
     * first; NULL: in order */
    const int *see_most, *seen_most;
    float *lse;   /* [rows, n_heads] log2 of the sum of the softmax */
    float *delta; /* [rows, n_heads] scratch of the way back */
};
bool cr_k_attention_can(int head_dim);
/* o [rows, n_heads * head_dim] */
void cr_k_attention(cudaStream_t s, const struct cr_flash *f, uint16_t *o);
/* dqkv [rows, ld] from d_o: gradients of q and k before they were rotated, and
 * of v */
void cr_k_attention_back(cudaStream_t s, const struct cr_flash *f, const uint16_t *o,
                         const uint16_t *d_o, uint16_t *dqkv);

/* ---- loss ---- */

/* Per row of logits [rows, ld]: loss = weight * -log softmax(logits)[id], and in the place of the
 * logits weight * (softmax - one-hot) as bfloat16 [rows, 2 ld], whose columns from n to ld are 0.
 */
void cr_k_cross_entropy(cudaStream_t s, float *loss, float *logits, int ld, int n, const int *id,
                        const float *weight, int rows);
/* log softmax of the targets [first[row], first[row + 1]) of each row; best: it
 * is the argmax */
void cr_k_log_softmax(cudaStream_t s, float *logprob, unsigned char *best, const float *logits,
                      int ld, int n, const int *first, const int *id, int rows);
/* *sum += the values, in order */
void cr_k_sum(cudaStream_t s, double *sum, const float *v, int n);

/* ---- AdamW ---- */

struct cr_adam_state { /* on the device */
    double norm, loss;
    float gain;
    int bad; /* the norm is not finite: nothing is changed */
};
enum { CR_ADAM_BLOCKS = 512 };
struct cr_adam_args {
    float lr, lr_tail, beta1, beta2, decay, clip, fix_m, fix_v;
    size_t n, tail;
};
/* The norm into *state (partial: [CR_ADAM_BLOCKS] scratch), then the step; copy
 * [n] gets the parameters in bfloat16. */
void cr_k_adamw(cudaStream_t s, const struct cr_adam_args *a, struct cr_adam_state *state,
                double *partial, float *params, const float *grads, float *m, float *v,
                uint16_t *copy);

/* Copies pieces of n[i] numbers from `from` + at[i] to to[i] (addresses as
 * integers). */
void cr_k_spread(cudaStream_t s, const uint64_t *to, const uint64_t *at, const uint64_t *n,
                 int pieces, const uint16_t *from);

#ifdef __cplusplus
}
#endif
#endif
