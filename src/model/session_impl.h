/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the session: what session.c (memory, batches, one sequence), layers.c (the forward pass of
 * a chunk), products.c (groups of matrices with one input, and their deltas) and attention.c (the
 * KV cache) share. Nobody else includes this.
 *
 * Legend: t token of the chunk, E n_embd, Q q_dim = heads * D, KV kv_dim = kv heads * D, F n_ff,
 * V n_vocab. Arrays of the chunk are dense: [n, width].
 */
#ifndef CR_SESSION_IMPL_H
#define CR_SESSION_IMPL_H

#include "model/session.h"

#include <stdatomic.h>

enum {
    CHUNK = 256,     /* tokens in one pass: enough to keep the kernels busy, few enough for L2 */
    ROW_GRAIN = 16,  /* rows of a matrix that stay on one thread */
    TOKEN_GRAIN = 4, /* tokens of elementwise work that stay on one thread */
    RANK_TILE = CR_MAX_LOW_RANK, /* ranks of a delta at a time; bounds `low` for any rank */
    MAX_PARTS = 3,
    LOW_BLOCKS = MAX_PARTS * RANK_TILE / CR_QK, /* of a stack */
    TMP_ROWS = 256, /* rows and tokens of a delta's product before it is added */
    TMP_TOKENS = 16,
    LOW_TOKENS = 18,        /* by all ranks of a stack, they fit the same memory */
    FEW_TOKENS = 16,        /* whose outputs stay near anyway */
    HEADS = 4,              /* of one kv head, side by side */
    CR_MAX_HEAD_DIM = 1024, /* for a cache of 8 bits */
    SIDE = 4                /* tokens that attend side by side where they see the same cells */
};

/* One product of a group that shares its input: y[t] = W in[t] + B (A in[t]). */
struct part {
    const struct cr_matrix *w;
    float *y;   /* [n, w->n_out] */
    int lin;    /* enum cr_linear; -1: never has a delta */
    float *low; /* [n, RANK_TILE] A in, one tile of ranks */
};

_Static_assert(LOW_TOKENS *MAX_PARTS *RANK_TILE <= TMP_ROWS * TMP_TOKENS, "a stack fits tmp");

struct chunk_token {
    struct cr_batch_token t; /* its cell and delta are set, placed or not */
    size_t index;            /* in the batch */
};

/* Makes the input of the next products for token t and returns it. */
typedef const float *input_fn(cr_session *s, size_t t);

struct cr_session {
    cr_model *m;
    const struct cr_kernels *k;
    const cr_delta *delta;
    uint64_t delta_id; /* 0: none */
    int n_ctx, n_cells, n_ids;
    bool has_logits;
    int logits_row; /* what cr_session_logits gives */
    size_t chunk, logit_rows;
    int32_t *ids;      /* [n_ctx] what cr_session_sync remembers, n_ids of them */
    size_t tile_bytes; /* of the keys, or values, of one kv head */
    char *k_cache;     /* [n_layers, kv heads, n_ctx / TILE] tiles: float16 [D, TILE], or Q8_0 */
    char *v_cache;     /* the same: float16 [TILE, D], or Q8_0 as kernels.h says */
    /* the chunk */
    size_t n;                   /* tokens */
    int layer, max_rank;        /* of the tokens' deltas */
    struct chunk_token *tokens; /* [chunk] */
    float *angles;              /* [chunk, n_ropes, rope_dim / 2, 2] cos, sin */
    float *x;                   /* [chunk, E] the residual stream */
    float *normed;              /* [chunk, E] */
    float *att;                 /* [chunk, Q], the same memory as normed */
    float *q;                   /* [chunk, Q] */
    float *out;                 /* [chunk, E], the same memory as q */
    float *k_new, *v_new;       /* [chunk, KV] */
    float *gate, *up;           /* [chunk, F] */
    char *quantised;            /* [chunk] rows of q8a blocks of the current input */
    uint16_t *halves;           /* [chunk, n_in] the current input in bfloat16 */
    uint16_t *terms;            /* [chunk, cr_split_values(n_in)] the same as sums of three */
    float *low;                 /* [MAX_PARTS, chunk, RANK_TILE] of deltas that are not packed */
    struct cr_block_q8a *low_codes; /* [chunk, LOW_BLOCKS] of packed ones */
    float *scores;                  /* [threads, SIDE, HEADS, n_ctx], or [heads, n_ctx] */
    float *tmp;                     /* [threads, TMP_TOKENS, TMP_ROWS] */
    float *logits;                  /* [logit_rows, V] */
    /* the group of products at work */
    struct part parts[MAX_PARTS];
    int n_parts, tile;
    input_fn *input;
    const float *in; /* [n, n_in] */
    size_t n_in, quantised_bytes;
    const struct cr_low_stack *stack; /* multiplied in this round, or NULL */
    atomic_size_t stack_left;         /* its rows that are not done */
    atomic_bool stack_ready;          /* low_codes are there */
    float stack_low[TOKEN_GRAIN * MAX_PARTS * RANK_TILE];
    bool quantise, halve, split; /* whether some product takes that form of it */
};

static inline size_t cr_larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Cells of a cache for n tokens. */
static inline size_t cr_whole_tiles(size_t n)
{
    return (n + CR_KV_TILE - 1) / CR_KV_TILE * CR_KV_TILE;
}

/* layers.c: runs s->tokens [n]. */
void cr_layers_run(cr_session *s, size_t n, const struct cr_batch *b);

/* products.c. Part i of the next group is a linear of the layer at work, with its delta. */
void cr_products_set(cr_session *s, int i, enum cr_linear lin, float *y);
/* Runs the group; `input` makes what stands in `in`. */
void cr_products_run(cr_session *s, input_fn *input, const float *in);

/* Calls a pass for pieces of the chunk's tokens. */
static inline void cr_by_tokens(cr_session *s, cr_rows_fn *pass)
{
    cr_threads_run(s->m->threads, s->n, TOKEN_GRAIN, pass, s);
}

/* attention.c: q, k and v of tokens [begin, end) become ready, k and v go into the cache. */
cr_rows_fn cr_attention_place;
size_t cr_cache_tile_bytes(const cr_model *m);
void cr_cache_copy(cr_session *s, size_t from, size_t to, size_t n); /* cells */
/* s->att from s->q. */
void cr_attention_run(cr_session *s);
/* The angles of token t by one of the model's rotations; -1: NULL. */
float *cr_token_angles(const cr_session *s, size_t t, int rope);

#endif
