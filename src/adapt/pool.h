/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool file: N base adapters and an index. GGUF with general.type = "crayon.pool".
 *
 * Keys: general.architecture, general.name, crayon.pool.version = 1, .base_hash (cr_model_hash),
 *   .form "shared"|"separate", .kind "library"|"centroid"|"lora", .n, .rank, .alpha (float),
 *   .tasks [names], .descriptions [texts], .rows [u32 training rows per task], .middle_layer,
 *   .tau_qx, .tau_middle (centroid), .mode "soft"|"hard" (centroid), .command, .steps, .loss, .seed
 * Tensors, per layer L and linear in the GGUF naming, F16 or F32:
 *   blk.L.NAME.weight.lora_a  ne = [n_in, rank]     (shared)   or [n_in, rank, N] (separate)
 *   blk.L.NAME.weight.lora_b  ne = [rank, n_out, N]  B_n as [n_out, rank], innermost rank
 *   index.qx.mean [q_dim], index.qx.proto [q_dim, T], index.middle.mean, .std [n_embd],
 *   index.middle.proto [n_embd, T], index.weights [N, T]
 * T entries of the index: the pool's training tasks (library) or its N centroids (centroid, T = N,
 * weights = identity). delta W = alpha / rank * sum_n w_n B_n A_n.
 * A prototype is the mean of the normalised embeddings (view minus mean, for the middle view
 * divided by std) of the task's rows, normalised.
 */
#ifndef CR_POOL_H
#define CR_POOL_H

#include "adapt/embed.h"

enum cr_pool_form { CR_POOL_SHARED, CR_POOL_SEPARATE };
enum cr_pool_kind { CR_POOL_LIBRARY, CR_POOL_CENTROID, CR_POOL_LORA };

struct cr_pool_index {
    int n_entries;             /* T */
    char **names, **about;     /* [T] */
    uint32_t *rows;            /* [T] */
    float *weights;            /* [T, N] */
    float *qx_mean;            /* [q_dim] */
    float *qx_proto;           /* [T, q_dim], unit rows */
    float *mid_mean, *mid_std; /* [n_embd] */
    float *mid_proto;          /* [T, n_embd], unit rows */
    float tau_qx, tau_middle;  /* centroid temperatures */
};

struct cr_pool_pair { /* one linear of one layer, float32 */
    float *a;         /* shared [rank, n_in]; separate [N, rank, n_in] */
    float *b;         /* [N, n_out, rank] */
};

struct cr_pool {
    enum cr_pool_form form;
    enum cr_pool_kind kind;
    bool hard; /* centroid pool trained HARD */
    int n, rank, n_layers, n_targets;
    float alpha;
    bool target[CR_LIN_COUNT];
    char *path, *name, *base_hash, *command;
    char hash[65]; /* of the file: header and samples, like cr_model_hash */
    struct cr_pool_index index;
    struct cr_pool_pair *pairs; /* [n_layers * CR_LIN_COUNT]; a NULL: not a target */
    float *data;                /* owns a and b */
    const cr_model *model;
};

/* An empty pool with room for its pairs, cleared. Free with cr_pool_close. */
enum cr_status cr_pool_new(cr_pool **out, const cr_model *m, enum cr_pool_form form,
                           enum cr_pool_kind kind, int n, int rank, float alpha,
                           const bool target[CR_LIN_COUNT], struct cr_error *err);
/* Room for T index entries. */
enum cr_status cr_pool_index_alloc(cr_pool *p, int n_entries, struct cr_error *err);
/* type CR_F16 or CR_F32 for the adapters; the index is float32. */
enum cr_status cr_pool_write(const cr_pool *p, const char *path, uint32_t type,
                             struct cr_error *err);
/* Embedding -> the unit vector that is compared with prototypes. v [dim] in, out [dim]. */
void cr_pool_normalise(const cr_pool *p, enum cr_view view, const float *v, float *out);

#endif
