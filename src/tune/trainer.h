/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of training (train.c, checkpoint.c, index.c, centroid.c) share: the trainer. */
#ifndef CR_TRAINER_H
#define CR_TRAINER_H

#include "tune/device.h"
#include "tune/peers.h"
#include "tune/train.h"

struct cr_trainer {
    cr_model *m;
    struct cr_train_options opt; /* strings are owned; defaults filled in */
    struct cr_train_plan plan;
    struct cr_train_data data;
    uint32_t *key; /* [n_rows] which weights a row has: task, cluster, row, or 0 */
    float *table;  /* [keys, N] weights that are not learned; library: NULL, they are params */
    struct cr_lowrank low;
    struct cr_frozen frozen;
    bool bf16;
    struct cr_batcher batcher;
    struct cr_packed packed;
    struct cr_pass_shape shape;
    size_t most_micros; /* of a step */
    struct cr_pass_shared rope;
    struct cr_turns turns;
    cr_pass *passes[CR_MAX_THREADS]; /* while running */
    float *params, *grads;           /* [low.n_params] */
    struct cr_adamw adam;
    size_t first_micro; /* of the step's share of this process */
    double *micro_loss; /* [micro-batches of a step] */
    float *losses;      /* [n_steps] of the steps done */
    long step;          /* steps done */
    size_t rows_total, rows_done;
    char *settings; /* "key=value\n" of all that a checkpoint must agree with */
    char *checkpoint;
    /* centroid pools */
    uint32_t *label;  /* [n_rows] nearest centroid */
    float *centroids; /* [N, q_dim] unit rows */
    float *qx_mean;   /* [q_dim] */
    float tau;
};

/* Weights of a centroid pool from the rows' q_x: fills key, table, label, centroids. */
enum cr_status cr_centroid_weights(cr_trainer *t, struct cr_error *err);

/* Checkpoint files: settings, step, losses, parameters and moments; written whole or not at all. */
enum cr_status cr_checkpoint_write(const cr_trainer *t, struct cr_error *err);
/* Loads what matches t->settings; CR_INVALID names the first setting that differs and both values.
 */
enum cr_status cr_checkpoint_read(cr_trainer *t, struct cr_error *err);

/* Entries of the index: tasks (and the weights that all share), or centroids. */
size_t cr_trainer_entries(const cr_trainer *t);

/* Fills pool->index from the probes. */
enum cr_status cr_index_build(const cr_trainer *t, cr_pool *pool, struct cr_error *err);

/* Bytes that this process can still take: the least of free memory, cgroup and address space. */
uint64_t cr_memory_available(void);

#endif
