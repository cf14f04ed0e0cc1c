/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A delta: a low-rank change of the linear layers, y = W x + B (A x), float32, all scales folded
 * into B. Made by adapt/ from LoRA files or pools, run by session.c beside the (quantised) weights.
 */
#ifndef CR_DELTA_H
#define CR_DELTA_H

#include "crayon.h"

enum cr_linear {
    CR_LIN_Q,
    CR_LIN_K,
    CR_LIN_V,
    CR_LIN_O,
    CR_LIN_GATE,
    CR_LIN_UP,
    CR_LIN_DOWN,
    CR_LIN_COUNT
};
/* GGUF names: "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down". */
extern const char *const cr_linear_names[CR_LIN_COUNT];

/* What linears take in: q, k and v share theirs, gate and up too. */
enum cr_input { CR_INPUT_ATTN, CR_INPUT_O, CR_INPUT_FFN, CR_INPUT_DOWN, CR_INPUT_COUNT };
extern const enum cr_input cr_linear_inputs[CR_LIN_COUNT];

struct cr_low_rank {
    int rank;       /* 0: this linear is unchanged */
    const float *a; /* [rank, n_in] */
    const float *b; /* [n_out, rank] */
    /* The same packed by cr_delta_pack, or NULL: B by cr_kernels.pack_low, A from row `stacked` of
     * the stack of its input, times 2^power, which B takes back. */
    const void *packed_b;
    int stacked, power;
};

/* The packed A of all linears with one input, one below the other: Q8_0 panels. */
struct cr_low_stack {
    int rows;
    const void *a;
};

struct cr_delta {
    uint64_t id; /* unique per process: the cache key of a session */
    int n_layers, max_rank;
    struct cr_low_rank *pairs;         /* [n_layers * CR_LIN_COUNT] */
    float *data;                       /* owns a and b when they are not borrowed */
    const struct cr_low_stack *stacks; /* [n_layers * CR_INPUT_COUNT], or NULL: nothing is packed */
    struct cr_low_stack *own_stacks;   /* the same, or NULL: borrowed from another delta */
    char *packed_a, *packed_b;         /* own what is packed, or NULL */
    const void *keep_alive; /* the pool whose A, plain and packed, is borrowed, or NULL */
};

/* A delta with no pairs set and room for n_floats in data. Free with cr_delta_free. */
enum cr_status cr_delta_new(cr_delta **out, int n_layers, size_t n_floats, struct cr_error *err);
struct cr_low_rank *cr_delta_at(const cr_delta *d, int layer, enum cr_linear lin);

const struct cr_low_stack *cr_delta_stack(const cr_delta *d, int layer, enum cr_input input);

#endif
