/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of `crayon eval`: tasks read from files (eval_tasks.c), rows, that is ways to answer
 * (eval_rows.c), the runs over both (eval.c), statistics and output (eval_report.c).
 */
#ifndef CR_EVAL_H
#define CR_EVAL_H

#include "adapt/blend.h"
#include "common.h"
#include "measure.h"

struct cr_eval_task {
    char *name, *group;          /* group: "" until it is known */
    struct cr_example *examples; /* [n_examples] what the user gives; strings are borrowed */
    struct cr_example *test;     /* [n_test] rows with answers */
    size_t n_examples, n_test;
};

struct cr_eval_tasks {
    struct cr_eval_task *v;
    size_t n, cap;
    struct cr_examples *files; /* own the strings */
    size_t n_files, cap_files;
};

/* Reads the files and draws examples and test rows by seed. Test rows: of split "test" or without
 * a split. Examples: the file's own rows of split "examples", "train" or "dev"; else the sibling
 * file NAME.examples, NAME.dev or NAME.train; else test rows, which then are not tested. */
enum cr_status cr_eval_tasks_read(struct cr_eval_tasks *t, const struct cr_args *a,
                                  struct cr_error *err);
/* Groups: --groups FILE (lines "TASK GROUP"), else the rows' own, else "pool" for tasks in the
 * index of `pool` (may be NULL) and "unseen" for others, else "all". */
enum cr_status cr_eval_tasks_group(struct cr_eval_tasks *t, const struct cr_args *a,
                                   const cr_pool *pool, struct cr_error *err);
void cr_eval_tasks_deinit(struct cr_eval_tasks *t);

enum cr_eval_kind {
    CR_EVAL_BASE,
    CR_EVAL_DELTA,  /* an adapter or a palette: the same for every task */
    CR_EVAL_SINGLE, /* one adapter of a pool */
    CR_EVAL_SOLVER, /* weights solved from the task's examples */
    CR_EVAL_ORACLE, /* told which task it is: the weights that the pool learned for it; the mean
                       weights for tasks that are not in its index */
};

struct cr_eval_row {
    char *name;
    enum cr_eval_kind kind;
    const cr_pool *pool; /* of SINGLE, SOLVER, ORACLE */
    enum cr_solver solver;
    enum cr_view view;
    int single;
    cr_delta *delta;         /* of DELTA; owned */
    struct cr_worked worked; /* of a palette, or none; owned */
    bool shown;              /* the task's own examples stand in front (--worked); delta borrowed */
};

struct cr_eval_rows {
    struct cr_eval_row *v;
    size_t n, cap;
    cr_pool **pools; /* owned; the first is that of --pool */
    char **pool_paths;
    size_t n_pools, cap_pools;
};

/* The rows that the options ask for: base; each --adapter; --palette; of --pool uniform, singles,
 * solvers and oracle; each --row NAME=FILE[:HOW]; with --worked each of them once more. */
enum cr_status cr_eval_rows_make(struct cr_eval_rows *r, const struct cr_args *a,
                                 struct cr_setup *s, struct cr_error *err);
void cr_eval_rows_deinit(struct cr_eval_rows *r);

/* What one row did on one task. */
struct cr_eval_cell {
    struct cr_measure m;
    uint8_t *correct; /* [m.n] */
    double solve_ms;
};

struct cr_eval {
    const struct cr_args *a;
    struct cr_setup setup;
    struct cr_eval_tasks tasks;
    struct cr_eval_rows rows;
    struct cr_eval_cell *cells;         /* [tasks.n * rows.n], row index innermost */
    size_t n_done;                      /* tasks with all their cells */
    size_t against;                     /* row that the others are compared with */
    size_t n_tokens, n_cut, n_left_out; /* prompts cut; worked examples that did not fit */
    double seconds;
    char **groups; /* [n_groups] borrowed names, in order of appearance */
    size_t n_groups;
};

/* Mean over the tasks of a group, with the 95 % interval of a bootstrap over tasks and over the
 * rows of each; and the same for the difference from another row on the same draws. */
struct cr_eval_stat {
    size_t n_tasks, n_rows, n_short; /* n_short: rows without options */
    double mean, low, high;
    double diff, diff_low, diff_high;
};
/* row, against: indices of rows. Draws depend on the seed only, so all rows see the same. */
enum cr_status cr_eval_statistic(const struct cr_eval *e, size_t group, size_t row, size_t against,
                                 struct cr_eval_stat *out, struct cr_error *err);
/* Table or JSON on standard output, and the chart of --svg. Returns the exit code. */
int cr_eval_report(struct cr_eval *e);

#endif
