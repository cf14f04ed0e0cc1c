/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LoRA files, bound to a model. Both formats become float32 pairs in GGUF row order (q and k rows
 * of PEFT files are permuted for `llama` models). Nothing is ignored: a tensor that finds no place,
 * or a setting that we cannot honour, refuses the load; the message names all of them up to its
 * size, then "and N more". A change larger than the weight it changes is logged as a warning.
 */
#ifndef CR_ADAPTER_H
#define CR_ADAPTER_H

#include "model/model.h"

struct cr_adapter {
    const cr_model *model;
    char *path, *name, *task_name; /* task_name: adapter.lora.task_name or "" */
    float alpha;                   /* as stored; already folded into `scale` */
    int n_layers, max_rank, n_pairs;
    struct cr_adapter_pair {
        int rank;    /* 0: no change */
        float scale; /* alpha / rank, or alpha / sqrt(rank) for rsLoRA */
        float *a;    /* [rank, n_in] */
        float *b;    /* [n_out, rank] */
    } * pairs;       /* [n_layers * CR_LIN_COUNT] */
    float *data;
};

/* Scales and weights beyond this, or not finite, are refused: no sane blend needs them. */
#define CR_MAX_SCALE 1000.0f

/* The effect probe: runs a fixed prompt with and without the delta and returns the largest absolute
 * difference of the logits (0: the adapter does nothing; infinity: logits are not finite). */
enum cr_status cr_delta_effect(cr_model *m, const cr_delta *d, float *max_diff,
                               struct cr_error *err);
/* Writes an adapter as a GGUF LoRA file or as a PEFT directory (type CR_F32 or CR_F16; CR_INVALID
 * where a value does not fit F16). GGUF has one alpha for all: pairs whose scale * rank differs
 * from it get the factor folded into B. PEFT keeps every pair exactly, by rank and alpha patterns.
 * Both name the base model's hash, which is checked when they are opened. */
enum cr_status cr_adapter_write_gguf(const cr_adapter *a, const cr_model *m, const char *path,
                                     uint32_t type, struct cr_error *err);
enum cr_status cr_adapter_write_peft(const cr_adapter *a, const cr_model *m, const char *dir,
                                     uint32_t type, struct cr_error *err);
/* An adapter from a delta (scale 1, alpha = rank), for export. Free with cr_adapter_close. */
enum cr_status cr_adapter_from_delta(cr_adapter **out, const cr_model *m, const cr_delta *d,
                                     const char *name, struct cr_error *err);
/* Writes the model with W + B A in `type` (F32, F16, BF16) for the changed linears. Weights of
 * unchanged linears are copied as they are. */
enum cr_status cr_merge_write(const cr_model *m, const cr_delta *d, const char *path, uint32_t type,
                              struct cr_error *err);

#endif
