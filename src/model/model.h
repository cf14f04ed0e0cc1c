/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model: numbers, pointers into the mapped file, kernel table and thread pool. Immutable after
 * cr_model_open; shared by sessions, trainers and adapters.
 */
#ifndef CR_MODEL_H
#define CR_MODEL_H

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/chat.h"
#include "model/delta.h"

#include <pthread.h>

enum { CR_MAX_LAYERS = 256, CR_MAX_CTX = 1 << 20 };
enum { CR_MAX_ROPES = 2 };
enum cr_arch {
    CR_ARCH_LLAMA,
    CR_ARCH_QWEN2,
    CR_ARCH_QWEN3,
    CR_ARCH_GEMMA3,
    CR_ARCH_SMOLLM3,
    CR_ARCH_PHI3
};

struct cr_matrix {
    const void *data; /* [n_out, n_in], rows of row_bytes */
    uint32_t type;
    int n_in, n_out;
    size_t row_bytes;
    const void *packed; /* panels for cr_kernels.matmul_packed; NULL: read data */
    size_t panel_bytes;
};

struct cr_layer {
    struct cr_matrix lin[CR_LIN_COUNT];    /* enum cr_linear */
    const float *attn_norm;                /* [n_embd] */
    const float *ffn_norm;                 /* [n_embd] */
    const float *bias_q, *bias_k, *bias_v; /* qwen2: [n_out], else NULL */
    const float *norm_q, *norm_k;          /* qwen3, gemma3: [head_dim], else NULL */
    const float *attn_post, *ffn_post;     /* gemma3: norms of what is added to x, else NULL */
    int window;                            /* sees this many positions, its own included; 0: all */
    int rope;                              /* which rotation of the model; -1: none */
};

struct cr_model {
    struct cr_model_info info;
    enum cr_arch arch;
    /* numbers; E = n_embd, H heads, G kv heads, D head_dim */
    int n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    int q_dim, kv_dim; /* H * D, G * D */
    int rope_dim;      /* the first values of a head that are rotated: all but in some phi3 */
    int n_ropes;       /* rotations: gemma3 has two, for all positions and for a window */
    bool rope_neox;    /* pairs (i, i + rope_dim / 2); llama and smollm3: (2i, 2i+1) */
    bool gelu;         /* gemma3: GELU where the others have SiLU */
    bool fused;        /* phi3: q, k, v and gate, up are pieces of one tensor each */
    float embd_scale;  /* gemma3: sqrt(E), else 1 */
    float attn_scale;  /* of q k, as a rule 1 / sqrt(D) */
    float norm_eps;
    float *rope_freq;  /* [n_ropes, rope_dim / 2] inverse frequencies, scaling applied */
    float rope_mscale; /* factor on cos and sin (YaRN, longrope), else 1 */
    /* weights */
    struct cr_matrix embd, output; /* output == embd when tied */
    const float *output_norm;
    struct cr_layer *layers;
    /* parts */
    cr_gguf *gguf;
    cr_tokenizer *tok;
    enum cr_chat chat;
    char *default_system;
    const struct cr_kernels *k;
    cr_threads *threads;
    struct cr_compute *compute; /* runs packed batches (compute.h); borrowed; NULL: the CPU */
    char *path, *name;
    float *owned; /* float32 copies of small tensors that the file holds in another type */
    enum cr_pages pages;
    enum cr_kv kv;
    bool placed;          /* cr_model_place is done */
    char *copy;           /* what it made, or NULL */
    pthread_mutex_t lock; /* of hash, and of placing */
    char hash[65];
};

/* cr_model_open over an open file: takes g over, also on failure. path is for messages and info. */
enum cr_status cr_model_from_gguf(cr_model **out, cr_gguf *g, const char *path,
                                  const struct cr_model_options *opt, struct cr_error *err);
/* pages.c: makes the private copy of the weights, once, if the model's options ask for it. Called
 * by cr_session_new: products with the matrices may be running only in sessions that exist. */
enum cr_status cr_model_place(cr_model *m, struct cr_error *err);
/* Do the model's options allow a copy of so much in huge pages? */
bool cr_may_copy(const cr_model *m, size_t bytes);
/* Lets go of the file's pages that lie wholly in data; they come back when they are read. */
void cr_drop_mapped(const void *data, size_t bytes);
/* delta_pack.c: packs the pairs of a delta that stand beside quantised weights for the kernels of
 * this machine, in 8 bits: a quarter of the memory to read. The rest, and all where memory lacks or
 * the level packs nothing, stays float32. Call once, before the delta is used. */
void cr_delta_pack(const cr_model *m, cr_delta *d);
/* The same in parts, for deltas with the same A: cr_delta_pack_a packs A alone, of a delta that
 * needs no B. cr_delta_place_b makes room for the B of d beside the packed A of `a`, which must
 * outlive d; false: nothing of d will be packed. Then cr_delta_pack_b packs the B of each pair, in
 * any thread. */
void cr_delta_pack_a(const cr_model *m, cr_delta *d);
bool cr_delta_place_b(const cr_model *m, cr_delta *d, const cr_delta *a);
void cr_delta_pack_b(const cr_model *m, cr_delta *d, int layer, enum cr_linear lin);
/* rope.c: fills rope_freq and rope_mscale from the keys <arch>.rope.* and rope_freqs.weight. */
enum cr_status cr_rope_setup(cr_model *m, const cr_gguf *g, const char *arch, struct cr_error *err);
/* cos and sin of position pos for cr_kernels.rope_*: cs [n_ropes, rope_dim / 2, 2]. */
void cr_rope_angles(const cr_model *m, int32_t pos, float *cs);
/* Row `id` of the embedding as float32 [n_embd]. */
void cr_model_embed(const cr_model *m, int32_t id, float *out);
/* The n_out x n_in matrix of a linear layer. */
const struct cr_matrix *cr_model_linear(const cr_model *m, int layer, enum cr_linear lin);

#endif
