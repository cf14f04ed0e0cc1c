/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of each step, and the packed micro-batches that they make.
 *
 * Every epoch is one shuffle of all rows by (seed, epoch); a step takes rows in that order until
 * the next would pass its token budget. So the step number alone says where in the data a run
 * stands. Within a step rows that share weights are put together, and the step is cut into
 * micro-batches of about equal size. None of this knows of threads.
 *
 * With worked examples the rows of a task stand in chains: up to worked + 1 of them behind each
 * other in one sequence, each answer in front of the next prompt. Every answer carries loss, so a
 * row is learned with 0 to `worked` examples of its task in view, for no more tokens than alone
 * (in-context tuning, Chen et al. 2022, https://arxiv.org/abs/2110.07814, MetaICL, Min et al. 2022,
 * https://arxiv.org/abs/2110.15943; there one answer a sequence carries loss).
 */
#ifndef CR_BATCH_H
#define CR_BATCH_H

#include "tune/data.h"

/* Marks in the lists of rows. */
#define CR_LINKED (1u << 31)  /* stands behind the row before it */
#define CR_GENERAL (1u << 30) /* has the weights that all tasks share */
#define CR_ROW (CR_GENERAL - 1)

struct cr_batcher {
    const struct cr_train_data *data;
    uint64_t seed;
    size_t tokens_per_step, tokens_per_batch;
    const uint32_t *key; /* [n_rows] rows with one key share weights */
    size_t epoch, at;
    int worked;     /* most examples in front of a row; 0: every row stands alone */
    double general; /* share of the chains that have key general_key in place of their own */
    uint32_t general_key;
    double alone;        /* share of the rows that stand alone all the same */
    size_t chain_tokens; /* the most tokens of a chain of several rows */
    uint32_t *order;     /* [n_rows] of this epoch; CR_LINKED: behind the row before it */
    uint32_t *rows;      /* rows of the step, chains sorted by the key of their first row */
    size_t *cut;         /* [n_micros + 1] first row of each micro-batch */
    uint64_t *sort;      /* scratch, as are the next four */
    uint32_t *copy;
    uint64_t *by_task;
    uint32_t *mixed, *starts;
    size_t n_rows, n_tokens, n_micros;
};

/* Free with cr_batcher_deinit. Also for a tokens_per_step below the longest row. */
enum cr_status cr_batcher_init(struct cr_batcher *b, const struct cr_train_data *d, uint64_t seed,
                               size_t tokens_per_step, size_t tokens_per_batch, const uint32_t *key,
                               struct cr_error *err);
void cr_batcher_deinit(struct cr_batcher *b);
/* Rows stand in chains of 1 to worked + 1 (> 1) rows and at most max_tokens tokens; about a share
 * `alone` (0 to 1) of the rows keeps standing alone. Rewinds. */
enum cr_status cr_batcher_chain(struct cr_batcher *b, int worked, double alone, size_t max_tokens,
                                struct cr_error *err);
/* A share of the chains gets this key in place of its own. Rewinds. */
void cr_batcher_general(struct cr_batcher *b, double share, uint32_t key);
/* Before the first step. */
void cr_batcher_rewind(struct cr_batcher *b);
/* Chooses the rows of the next step, going on to the next epoch where one ends: as many steps as
 * the caller likes. max_rows: stops early after so many rows (the end of the last epoch). */
void cr_batcher_next(struct cr_batcher *b, size_t max_rows);
/* Widens s to hold every micro-batch of the step. */
void cr_batcher_shape(const struct cr_batcher *b, struct cr_pass_shape *s);

/* The packed arrays of one step. */
struct cr_packed {
    struct cr_micro *micros; /* [n_micros] */
    size_t n_micros, n_groups;
    int n;               /* N */
    uint32_t *group_key; /* [n_groups] micro-batch by micro-batch */
    float *a;            /* [n_groups, N] */
    float *da;           /* [n_groups, N], for the passes to fill */
    /* what the micro-batches point into */
    int32_t *ids, *answer_id;
    float *weight;
    size_t *seq, *answer_row, *begin, *answer_begin;
};
size_t cr_packed_bytes(size_t tokens, size_t rows, size_t micros, int n);
/* Room for steps of at most so many tokens, rows and micro-batches. Free with cr_packed_deinit. */
enum cr_status cr_packed_init(struct cr_packed *p, size_t tokens, size_t rows, size_t micros, int n,
                              struct cr_error *err);
void cr_packed_deinit(struct cr_packed *p);
/* Fills it from the batcher's step; the weights of key k are table + k * N. */
void cr_packed_fill(struct cr_packed *p, const struct cr_batcher *b, const float *table);

#endif
