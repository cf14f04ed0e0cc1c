/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task files -> token rows. A row is prompt + answer; the last answer token is never an input, so a
 * row of n tokens runs n - 1. Nothing is cut: a row that is too long is left out and counted.
 */
#ifndef CR_DATA_H
#define CR_DATA_H

#include "adapt/embed.h"
#include "tune/backward.h"

enum { CR_DATA_PROBES = 200 }; /* examples of a task kept for the index */

struct cr_train_row {
    size_t at;                   /* first id */
    uint32_t n_prompt, n_answer; /* tokens; both > 0 */
    uint32_t task;
};

struct cr_train_task {
    char *name;
    size_t n_rows;
    size_t first_probe, n_probes;
};

struct cr_train_data {
    size_t n_tasks, n_rows, n_ids;
    struct cr_train_task *tasks; /* in the order of first appearance */
    struct cr_train_row *rows;   /* task by task */
    int32_t *ids;
    size_t n_tokens, n_answer_tokens, longest;    /* that are run; rows once each */
    size_t n_too_long, n_no_answer, n_over_limit; /* left out */
    struct cr_examples probes;                    /* task by task */
    uint32_t *probe_row;                          /* [probes.n] row of each probe */
    float *qx;                                    /* [n_rows, q_dim] if asked for, else NULL */
};

struct cr_data_options {
    const char *const *files;
    size_t n_files;
    int rows_per_task, max_tokens; /* rows_per_task 0: all */
    uint64_t seed;
    bool want_qx;
    const struct cr_example *examples; /* in place of files; one task unless they name theirs */
    size_t n_examples;
};

/* The task of a line is its "task" field, else the file's name up to the first dot. Free with
 * cr_data_deinit. CR_INVALID when nothing is left to train on. */
enum cr_status cr_data_read(struct cr_train_data *d, cr_model *m, const struct cr_data_options *opt,
                            struct cr_error *err);
void cr_data_deinit(struct cr_train_data *d);
size_t cr_data_bytes(const struct cr_train_data *d);
/* Identity of rows, tasks and ids, for checkpoints. */
void cr_data_hash(const struct cr_train_data *d, char hex[65]);
static inline size_t cr_row_tokens(const struct cr_train_row *r)
{
    return (size_t)r->n_prompt + r->n_answer - 1;
}

#endif
