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

struct cr_low_rank {
    int rank;       /* 0: this linear is unchanged */
    const float *a; /* [rank, n_in] */
    const float *b; /* [n_out, rank] */
    /* The same packed by cr_delta_pack, or NULL: A as Q8_0 panels, B by cr_kernels.pack_low. */
    const void *packed_a, *packed_b;
};

struct cr_delta {
    uint64_t id; /* unique per process: the cache key of a session */
    int n_layers, max_rank;
    struct cr_low_rank *pairs; /* [n_layers * CR_LIN_COUNT] */
    float *data;               /* owns a and b when they are not borrowed */
    char *packed;              /* owns packed_a and packed_b, or NULL */
    const void *keep_alive;    /* the pool whose A is borrowed, or NULL */
};

/* A delta with no pairs set and room for n_floats in data. Free with cr_delta_free. */
enum cr_status cr_delta_new(cr_delta **out, int n_layers, size_t n_floats, struct cr_error *err);
struct cr_low_rank *cr_delta_at(const cr_delta *d, int layer, enum cr_linear lin);

#endif
