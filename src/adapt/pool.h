/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool file: N base adapters and an index. GGUF with general.type = "crayon.pool".
 *
 * Keys: general.architecture, general.name, crayon.pool.version, .base_hash (cr_model_hash),
 *   .form "shared"|"separate", .kind "library"|"centroid"|"lora", .n, .rank, .alpha (float),
 *   .tasks [names], .descriptions [texts], .rows [u32 training rows per task], .middle_layer,
 *   .tau_qx, .tau_middle (centroid), .mode "soft"|"hard" (centroid), .command, .steps, .loss, .seed
 * Tensors, per layer L and linear in the GGUF naming, in version 1 F16 or F32:
 *   blk.L.NAME.weight.lora_a  ne = [n_in, rank]     (shared)   or [n_in, rank, N] (separate)
 *   blk.L.NAME.weight.lora_b  ne = [rank, n_out, N]  B_n as [n_out, rank], innermost rank
 *   index.qx.mean [q_dim], index.qx.proto [q_dim, T], index.middle.mean, .std [n_embd],
 *   index.middle.proto [n_embd, T], index.weights [N, T]
 * T entries of the index: the pool's training tasks (library) or its N centroids (centroid, T = N,
 * weights = identity). delta W = alpha / rank * sum_n w_n B_n A_n.
 * The index.middle tensors and crayon.pool.middle_layer are optional together; a pool of kind
 * "lora" (one plain LoRA, N = 1) may have no index at all. Names of tasks are labels, never paths.
 * A prototype is the mean of the normalised embeddings (view minus mean, for the middle view
 * divided by std) of the task's rows, normalised.
 * Version 2 has all B in Q8_0 with ne = [rank * n_out, N], since a block takes more than a rank:
 * the values lie in the same order. Its A may be Q8_0 too.
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

/* One linear of one layer. A new pool owns a and b in float32 (the trainer writes there). An opened
 * pool has A in float32 and B where it lies in the mapped file, in the pool's b_type: B is N times
 * larger and is only read to be blended. cr_pool_read_b serves both. */
struct cr_pool_pair {
    float *a;           /* shared [rank, n_in]; separate [N, rank, n_in]; NULL: not a target */
    float *b;           /* [N, n_out, rank], or NULL */
    const char *b_file; /* the same, or NULL */
    /* A copy by cr_pool_hold, or NULL: CR_POOL_RUN values of every adapter, then the next ones. */
    const char *b_held;
};

struct cr_pool {
    enum cr_pool_form form;
    enum cr_pool_kind kind;
    bool hard; /* centroid pool trained HARD */
    int n, rank, n_layers, n_targets;
    float alpha;
    bool target[CR_LIN_COUNT];
    char *path, *name, *base_hash, *command;
    /* how it was trained, 0 when not known; the loss is the last one reported */
    uint32_t steps, worked; /* worked: most worked examples in front of a row */
    uint64_t seed;
    float loss;
    char hash[65]; /* of an opened file: header and samples, like cr_model_hash; else "" */
    struct cr_pool_index index;
    struct cr_pool_pair *pairs; /* [n_layers * CR_LIN_COUNT] */
    uint32_t b_type;            /* of b_file: CR_F16, CR_F32 or CR_Q8_0 */
    float *data;                /* owns a and b */
    cr_gguf *file;              /* keeps b_file mapped, or NULL */
    void *held;                 /* owns b_held, or NULL */
    cr_delta *shared_a;         /* opened, SHARED: its A, packed once for all palettes; or NULL */
    const cr_model *model;
};

enum { CR_POOL_MAX_N = 1024, CR_POOL_MAX_ENTRIES = 1 << 16, CR_POOL_RUN = 64 };

/* An empty pool with room for its pairs, cleared. Free with cr_pool_close. */
enum cr_status cr_pool_new(cr_pool **out, const cr_model *m, enum cr_pool_form form,
                           enum cr_pool_kind kind, int n, int rank, float alpha,
                           const bool target[CR_LIN_COUNT], struct cr_error *err);
/* The same without room for B, for a pool whose B stays in its file. */
enum cr_status cr_pool_new_without_b(cr_pool **out, const cr_model *m, enum cr_pool_form form,
                                     enum cr_pool_kind kind, int n, int rank, float alpha,
                                     const bool target[CR_LIN_COUNT], struct cr_error *err);
/* Room for T index entries. */
enum cr_status cr_pool_index_alloc(cr_pool *p, int n_entries, struct cr_error *err);
/* The index of another pool of the same model, if it has one: names, prototypes, and its weights
 * where both have as many adapters, else 1. So what is tuned from a blend keeps the pool's view. */
enum cr_status cr_pool_index_copy(cr_pool *to, const cr_pool *from, struct cr_error *err);
/* Checks the pool as cr_pool_open does and writes it whole or not at all. type CR_F16, CR_F32 or
 * CR_Q8_0 for the adapters (CR_INVALID where a value does not fit F16); the index is float32. What
 * does not fill blocks stays F16: A where its n_in is no multiple of 32, all where the values of a
 * B are none. */
enum cr_status cr_pool_write(const cr_pool *p, const char *path, uint32_t type,
                             struct cr_error *err);
/* Packs the A that the palettes of a SHARED pool have in common, which may not change any more. */
void cr_pool_pack_a(cr_pool *p);
/* For a pool whose palettes change often, before the first one is mixed: copies B out of the file
 * into huge pages, in the order in which a mix reads it, and lets go of the file's pages. Does
 * nothing for pools that are SEPARATE or of float32, nor where the model's options or memory forbid
 * copies. */
void cr_pool_hold(cr_pool *p);
/* B of adapter n of a pair as float32 [n_out, rank], from wherever it lies. */
void cr_pool_read_b(const cr_pool *p, int layer, enum cr_linear lin, int n, float *b);
/* One plain LoRA (kind "lora", N = 1) as a SEPARATE pool of `groups` adapters: group g holds the
 * ranks [g, g + 1) * rank / groups, so all weights 1 give the LoRA itself and REFINE can weigh its
 * parts. No index. The rank must be a multiple of groups. Free with cr_pool_close; p may be closed
 * before. */
enum cr_status cr_pool_split_ranks(cr_pool **out, const cr_pool *p, int groups,
                                   struct cr_error *err);
/* CR_UNSUPPORTED when the pool has no index for this view (pools of kind "lora" may have none, and
 * the middle view is optional). */
enum cr_status cr_pool_check_view(const cr_pool *p, enum cr_view view, struct cr_error *err);
/* Embedding -> the unit vector that is compared with prototypes. v [dim] in, out [dim]; may be
 * the same. Zeros when v is the mean itself. The view must be there. */
void cr_pool_normalise(const cr_pool *p, enum cr_view view, const float *v, float *out);

#endif
