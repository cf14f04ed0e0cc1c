/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One GPU with a frozen model and a pool on it: its memory, its matrix
 * products, and the forward and backward pass of a packed batch. Everything is
 * queued on one stream; nothing waits for the GPU but cr_gpu_sync and the
 * functions that say so. A failure is remembered, later calls do nothing
 * useful, and cr_gpu_sync returns it.
 *
 * Weights W_ext = [W; A] of a stage (tune/lowrank.h) and activations are
 * bfloat16; sums, norms, softmax, loss, gradients of the parameters and AdamW
 * are float32.
 *
 * Legend: T tokens, R rows whose logits are wanted, E n_embd, Q, KV, F, V as in
 * tune/backward.c.
 */
#ifndef CR_CUDA_GPU_H
#define CR_CUDA_GPU_H

#include "cuda/kernels.h"
#include "tune/device.h"

#include <cublas_v2.h>

struct cr_gpu_shape { /* the most that any batch has */
    size_t n_tokens, n_rows, n_groups, n_batches, longest, n_targets;
    bool train; /* activations of all layers are kept, and there is a way back */
};

/* The numbers of a batch on the GPU. */
struct cr_gpu_batch {
    int n_tokens, n_rows, n_groups, n_chunks, n_row_chunks;
    const int *ids, *pos, *seg, *end, *pre, *pre_end, *group; /* [n_tokens] */
    const int *row, *id, *row_group;                          /* [n_rows] */
    const float *weight;                                      /* [n_rows] */
    const struct cr_chunk *chunks, *row_chunks;
    const int *begin, *row_begin;    /* [n_groups + 1] first chunk of each group */
    const int *see_most, *seen_most; /* orders of pieces of 16 tokens, for the attention */
    const int *key;                  /* [n_groups] */
    const float *a;                  /* [n_groups, N] */
};

struct cr_gpu_kept { /* of one layer */
    uint16_t *x, *qkv, *o, *u_o, *mid, *gu, *u_d;
    float *lse;
};

struct cr_gpu {
    int device;
    const cr_model *m;
    const struct cr_lowrank *p;
    struct cr_gpu_shape shape;
    bool low; /* the low-rank part is on */
    cudaStream_t stream;
    cublasHandle_t blas;
    int failed; /* first cudaError or, from 10000 on, cublasStatus */
    char *block;
    size_t bytes;
    /* weights */
    uint16_t *w[CR_MAX_LAYERS][CR_STAGE_COUNT]; /* [n_out + n_u, n_in] */
    uint16_t *embd, *output;
    float *norms; /* per layer attn and ffn, then output [E]; then biases q, k, v */
    float *bias;  /* [layers, Q + 2 KV] or NULL */
    float *rope;
    /* parameters */
    float *params, *grads, *m1, *m2;
    uint16_t *copy; /* params in bfloat16 */
    uint64_t *spread;
    int n_spread;
    struct cr_adam_state *state;
    double *partial;
    /* activations */
    struct cr_gpu_kept kept[CR_MAX_LAYERS];
    uint16_t *last, *o_rows;  /* [R, E], [R, Q] of the last layer */
    uint16_t *h, *y, *hh, *v; /* scratch of both ways */
    uint16_t *dh, *dh_rows, *dx, *dx_rows, *d_o, *d_o_rows, *dqkv, *dv;
    float *delta, *da, *da_rows, *a;
    float *logits, *loss;
    int ld[CR_STAGE_COUNT], ld_e, ld_vocab, ldv;
    /* the thin path, of SHARED pools of rank 8 */
    bool thin;
    struct cr_thin thin_layer;
    struct cr_thin_stage thin_stage[CR_STAGE_COUNT];
    int thin_begin[CR_STAGE_COUNT + 1]; /* numbers of B_eff of each stage */
    uint16_t *beff, *part;
    void *chunk_weights[2]; /* of the chunks of all tokens, and of the rows */
    size_t da_step;
    float *slabs; /* of gradients of A, and where those of each stage are */
    size_t slab_at[CR_STAGE_COUNT + 1];
    void *du_part;
    int *chunks_done; /* 0 between kernels */
    /* upload */
    int *host, *numbers;
    size_t n_numbers, cap_numbers;
    unsigned char *classes; /* scratch of cr_gpu_order */
};

/* Bytes of GPU memory that it takes. */
size_t cr_gpu_bytes(const cr_model *m, const struct cr_lowrank *p, const struct cr_gpu_shape *s);
/* CR_UNSUPPORTED by name for a model that the kernels do not know. */
enum cr_status cr_gpu_check(const cr_model *m, struct cr_error *err);
/* Takes the memory and uploads the frozen weights; waits. m and p are borrowed.
 * Free with cr_gpu_free. */
enum cr_status cr_gpu_new(struct cr_gpu **out, int device, const cr_model *m,
                          const struct cr_lowrank *p, const struct cr_gpu_shape *s,
                          struct cr_error *err);
void cr_gpu_free(struct cr_gpu *g);
/* Makes the GPU current for the calling thread. */
void cr_gpu_use(struct cr_gpu *g);
/* Remembers a failed launch of this thread. */
void cr_gpu_note(struct cr_gpu *g);
enum cr_status cr_gpu_sync(struct cr_gpu *g, struct cr_error *err);

/* params [n_params] to the GPU, in float32 when training, and where the
 * products read them. Waits.
 */
void cr_gpu_put_params(struct cr_gpu *g, const float *params);
/* The same after they have changed there. */
void cr_gpu_spread(struct cr_gpu *g);

/* Room for n numbers that go to the GPU with the next cr_gpu_send: *there is
 * where they will be. */
void *cr_gpu_take(struct cr_gpu *g, size_t n, const int **there);
void cr_gpu_send(struct cr_gpu *g);

/* Rows in groups, cut in chunks. Returns how many. */
int cr_gpu_chunks(struct cr_gpu *g, const size_t *begin, size_t n_groups, size_t n_rows,
                  const struct cr_chunk **chunks, const int **first, const int **group_of_row);

/* The pieces of 16 rows by falling number of keys that they see and, unless end is NULL, of rows
 * that see them. The arrays are those of struct cr_flash, here; pre may be NULL. */
void cr_gpu_order(struct cr_gpu *g, struct cr_gpu_batch *b, const int *seg, const int *end,
                  const int *pre, const int *pre_end);

/* Layers [0, n_layers) of a batch; returns the residual stream [T or R, E] (R
 * behind the last layer). */
const uint16_t *cr_gpu_forward(struct cr_gpu *g, const struct cr_gpu_batch *b, int n_layers);
/* Logits of rows [at, at + rows) of the last layer's output into g->logits;
 * rows at most CR_GPU_LOGIT_ROWS. */
enum { CR_GPU_LOGIT_ROWS = 512 };
void cr_gpu_logits(struct cr_gpu *g, int at, int rows);
/* Forward, loss (added to state->loss) and backward. first: gradients of
 * adapters are written, else added to. */
void cr_gpu_pass(struct cr_gpu *g, const struct cr_gpu_batch *b, bool first);

/* Row-major products. C [m, n] = A B^T, A B (+ C if add) in bfloat16; C = A^T B
 * in float32. */
void cr_gpu_nt(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
               const uint16_t *b, int ldb, uint16_t *c, int ldc);
void cr_gpu_nt_float(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
                     const uint16_t *b, int ldb, float *c, int ldc);
void cr_gpu_nn(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
               const uint16_t *b, int ldb, uint16_t *c, int ldc, bool add);
void cr_gpu_tn_float(struct cr_gpu *g, size_t m, size_t n, size_t k, const uint16_t *a, int lda,
                     const uint16_t *b, int ldb, float *c, int ldc, bool add);

#endif
