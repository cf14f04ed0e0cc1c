/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two LoRA readers share: a list of refusals that becomes one message, and the step from
 * "tensors found in a file" to a cr_adapter bound to a model. Readers fill the slots and call
 * cr_lora_bind, which checks shapes, ranks, scales and values.
 */
#ifndef CR_LORA_BIND_H
#define CR_LORA_BIND_H

#include "adapt/adapter.h"

/* A rank above this is refused. */
enum { CR_LORA_MAX_RANK = 4096 };

/* Everything that is wrong with a file, up to the room in a message. Zero-initialise. */
struct cr_refusals {
    char text[340];
    size_t len, n, n_shown;
    enum cr_status status; /* of the first */
};
void cr_refuse(struct cr_refusals *r, enum cr_status status, const char *fmt, ...) CR_PRINTF(3, 4);
/* CR_OK if there are none, else "PATH: a; b; and 3 more". */
enum cr_status cr_refusals_report(const struct cr_refusals *r, const char *path,
                                  struct cr_error *err);

/* One tensor of a file: [rows, cols], unaligned, borrowed while binding. */
struct cr_lora_half {
    const void *data; /* NULL: not found */
    uint32_t type;
    uint64_t rows, cols;
    struct cr_str name;
};
struct cr_lora_slot {
    struct cr_lora_half half[2]; /* A [rank, n_in], B [n_out, rank] */
    double alpha;
    uint64_t want_rank; /* what the settings say; 0: whatever A has */
    bool rslora;
};
struct cr_lora_source {
    const cr_model *m;
    const char *path;
    struct cr_lora_slot *slots; /* [n_layers * CR_LIN_COUNT] */
    bool hf_rows;               /* rows of q and k of B in the order of Hugging Face files */
    struct cr_refusals bad;
};

/* Puts a tensor in its slot; refuses a layer that the model lacks and a second tensor for a slot.
 */
void cr_lora_place(struct cr_lora_source *s, uint64_t layer, enum cr_linear lin, int is_b,
                   struct cr_lora_half half);
/* Checks and converts all slots. On success *out has pairs, max_rank, n_pairs and data set and
 * copies of name (may be empty) and path. */
enum cr_status cr_lora_bind(struct cr_lora_source *s, const char *name, cr_adapter **out,
                            struct cr_error *err);

/* Digits, then the rest. False if there is no plain decimal number of at most six digits. */
bool cr_lora_layer_number(const char *s, size_t n, uint64_t *layer, size_t *used);
/* "blk.12.attn_q.weight.lora_a" of GGUF files -> layer, linear, half. False for other names. */
bool cr_lora_gguf_name(struct cr_str name, uint64_t *layer, enum cr_linear *lin, int *is_b);
/* Row of a Hugging Face q or k matrix that GGUF `llama` files keep at row `row`: inside a head,
 * (i, half) becomes (half, i). */
size_t cr_lora_hf_row(size_t row, int head_dim);
/* B of this linear has its rows permuted between the two formats. */
bool cr_lora_is_permuted(const cr_model *m, enum cr_linear lin);

enum cr_status cr_adapter_open_gguf(cr_adapter **out, const cr_model *m, const char *path,
                                    struct cr_error *err);
enum cr_status cr_adapter_open_peft(cr_adapter **out, const cr_model *m, const char *dir,
                                    struct cr_error *err);
/* CR_INVALID when `hash` (may be NULL: not known) is not that of m. */
enum cr_status cr_lora_check_base(const cr_model *m, const char *hash, size_t n, const char *path,
                                  struct cr_error *err);
/* n values to `type` (CR_F32, CR_F16, or CR_Q8_0 for whole blocks); false when one does not fit. */
bool cr_lora_encode(const cr_model *m, uint32_t type, void *dst, const float *src, size_t n);

#endif
