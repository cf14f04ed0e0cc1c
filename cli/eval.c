/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon eval`: every row (a way to answer) on every task. A task's rows are tokenised once and
 * its examples embedded once per view; then each row only makes its delta and runs the scorer.
 */
#include "eval.h"

#include "base/mem.h"
#include "messages.h"
#include "verbs.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct evaluation {
    struct cr_eval e;
    struct cr_progress line;
    struct cr_error err;
    /* of the task at hand */
    const struct cr_eval_task *task;
    size_t at, row;
    cr_scorer *test, *examples; /* examples: made when a row needs labels */
    cr_scorer *behind;          /* test behind the worked examples of a row: made when needed */
    struct cr_worked shown;     /* the task's examples for --worked: made when needed */
    float *embedding[2];        /* by view: [n_examples, dim], made when needed */
};

static enum cr_status no_memory(struct evaluation *v)
{
    return cr_error_set(&v->err, CR_NO_MEMORY, "out of memory evaluating %s", v->task->name);
}

/* Share of all work that is done: tasks count alike, rows inside a task too. */
static bool show(struct evaluation *v, double part)
{
    double rows = (double)v->e.rows.n;
    char detail[128];
    snprintf(detail, sizeof detail, "task %zu/%zu %.60s: %.30s", v->at + 1, v->e.tasks.n,
             v->task->name, v->e.rows.v[v->row].name);
    cr_progress_show(&v->line, (double)v->at + ((double)v->row + part) / rows, (double)v->e.tasks.n,
                     detail);
    return !cr_interrupted();
}

static bool on_score(void *ud, size_t done, size_t total)
{
    return show(ud, total ? 0.9 * (double)done / (double)total : 0);
}

static bool on_solve(void *ud, const char *what, int done, int total)
{
    (void)what;
    (void)done;
    (void)total;
    return show(ud, 0);
}

static bool stop_now(void *ud)
{
    return !show(ud, 0.95);
}

/* The examples' embeddings in a view, as unit vectors of this pool; free *unit with cr_free. */
static enum cr_status unit_of(struct evaluation *v, const cr_pool *p, enum cr_view view,
                              float **unit)
{
    size_t n = v->task->n_examples, dim = (size_t)cr_view_dim(v->e.setup.model, view);
    float **raw = &v->embedding[view];
    *unit = NULL;
    enum cr_status st = cr_pool_check_view(p, view, &v->err);
    if (st)
        return st;
    if (!*raw) {
        *raw = cr_alloc(n * dim, sizeof **raw);
        st = *raw ? cr_embed_examples(v->e.setup.model, view, v->task->examples, n, *raw, &v->err)
                  : no_memory(v);
    }
    if (!st && !(*unit = cr_alloc(n * dim, sizeof **unit)))
        st = no_memory(v);
    for (size_t i = 0; !st && i < n; i++)
        cr_pool_normalise(p, view, *raw + i * dim, *unit + i * dim);
    return st;
}

static enum cr_status solve(struct evaluation *v, const struct cr_eval_row *row, float *w)
{
    struct cr_blend_options o = {.solver = row->solver,
                                 .view = row->view,
                                 .temperature = (float)cr_arg_real(v->e.a, CR_OPT_TAU),
                                 .max_evals = cr_arg_int(v->e.a, CR_OPT_EVALS),
                                 .seed = cr_arg_seed(v->e.a, CR_OPT_SEED),
                                 .progress = on_solve,
                                 .ud = v};
    struct cr_blend_result r;
    float *unit = NULL;
    enum cr_status st = CR_OK;
    if (!v->task->n_examples)
        return cr_error_set(&v->err, CR_INVALID, "task %s has no examples to blend from",
                            v->task->name);
    if (row->pool->index.n_entries)
        st = unit_of(v, row->pool, row->view, &unit);
    if (!st && row->solver >= CR_SOLVE_PICK && !v->examples)
        st = cr_scorer_new(&v->examples, v->e.setup.model, NULL, v->task->examples,
                           v->task->n_examples, &v->err);
    if (!st)
        st = cr_blend_solve(row->pool, &o, unit, v->task->n_examples, v->examples, &r, &v->err);
    cr_free(unit);
    if (st)
        return st;
    memcpy(w, r.weights, (size_t)row->pool->n * sizeof *w);
    bool stopped = r.stopped;
    cr_blend_result_deinit(&r);
    return stopped ? cr_error_set(&v->err, CR_CANCELLED, "interrupted") : CR_OK;
}

/* What the pool learned for this task by name; the mean of all entries if it is not one of them. */
static void oracle(const cr_pool *p, const char *task, float *w)
{
    const struct cr_pool_index *x = &p->index;
    size_t n = (size_t)p->n;
    memset(w, 0, n * sizeof *w);
    for (int t = 0; t < x->n_entries; t++)
        if (!strcmp(x->names[t], task)) {
            memcpy(w, x->weights + (size_t)t * n, n * sizeof *w);
            return;
        }
    for (int t = 0; t < x->n_entries; t++)
        for (size_t k = 0; k < n; k++)
            w[k] += x->weights[(size_t)t * n + k] / (float)x->n_entries;
}

/* The delta of a row for the task at hand; *owned is to be freed, NULL if it is the row's own. */
static enum cr_status delta_of(struct evaluation *v, const struct cr_eval_row *row,
                               const cr_delta **delta, cr_delta **owned)
{
    *delta = row->delta;
    *owned = NULL;
    if (row->kind == CR_EVAL_BASE || row->kind == CR_EVAL_DELTA)
        return CR_OK;
    float *w = cr_alloc0((size_t)row->pool->n, sizeof *w);
    enum cr_status st = w ? CR_OK : no_memory(v);
    if (!st && row->kind == CR_EVAL_SINGLE)
        w[row->single] = 1;
    else if (!st && row->kind == CR_EVAL_ORACLE)
        oracle(row->pool, v->task->name, w);
    else if (!st)
        st = solve(v, row, w);
    if (!st)
        st = cr_pool_blend(owned, row->pool, w, &v->err);
    *delta = *owned;
    cr_free(w);
    return st;
}

/* The first of the task's examples that have an answer. */
static enum cr_status show_examples(struct evaluation *v)
{
    struct cr_example shown[CR_WORKED_MAX];
    size_t n = 0, most = (size_t)cr_arg_int(v->e.a, CR_OPT_WORKED);
    for (size_t i = 0; i < v->task->n_examples && n < most; i++)
        if (v->task->examples[i].answer && v->task->examples[i].answer[0])
            shown[n++] = v->task->examples[i];
    return cr_worked_init(&v->shown, v->e.setup.model, shown, n, &v->err);
}

/* The test rows as the row puts them, and what stands in front of them. */
static enum cr_status scorer_of(struct evaluation *v, const struct cr_eval_row *row,
                                cr_scorer **out, const struct cr_worked **worked)
{
    *worked = row->shown ? &v->shown : &row->worked;
    *out = v->test;
    if (!row->shown && !row->worked.n)
        return CR_OK;
    enum cr_status st = row->shown && !v->shown.n ? show_examples(v) : CR_OK;
    cr_scorer_free(v->behind);
    v->behind = NULL;
    if (!st)
        st = cr_scorer_new(&v->behind, v->e.setup.model, *worked, v->task->test, v->task->n_test,
                           &v->err);
    *out = v->behind;
    v->e.n_left_out += st ? 0 : cr_scorer_n_left_out(v->behind);
    return st;
}

static enum cr_status run_row(struct evaluation *v, const struct cr_eval_row *row,
                              struct cr_eval_cell *cell)
{
    cr_scorer *scorer = NULL;
    const struct cr_worked *worked;
    const struct cr_example_score *scores;
    const cr_delta *delta;
    cr_delta *owned;
    double start = cr_now();
    show(v, 0);
    enum cr_status st = delta_of(v, row, &delta, &owned);
    cell->solve_ms = 1e3 * (cr_now() - start);
    if (!st && !(cell->correct = cr_alloc0(v->task->n_test, 1)))
        st = no_memory(v);
    if (!st)
        st = scorer_of(v, row, &scorer, &worked);
    if (!st)
        st = cr_scorer_run(scorer, delta, &scores, on_score, v, &v->err);
    if (!st) {
        cr_measure_scores(scores, v->task->n_test, &cell->m, cell->correct);
        v->e.n_tokens += cr_scorer_n_tokens(scorer);
    }
    if (!st && cell->m.n_short && cr_arg_flag(v->e.a, CR_OPT_F1)) {
        cr_session *s;
        st = cr_session_new(&s, v->e.setup.model, 0, &v->err);
        if (!st) {
            cr_session_set_delta(s, delta);
            st = cr_measure_f1(s, worked, v->task->test, v->task->n_test, &cell->m.f1, stop_now, v,
                               &v->err);
        }
        cr_session_free(s);
    }
    cr_delta_free(owned);
    return st;
}

static enum cr_status run_task(struct evaluation *v, size_t at)
{
    v->at = at;
    v->task = &v->e.tasks.v[at];
    enum cr_status st =
        cr_scorer_new(&v->test, v->e.setup.model, NULL, v->task->test, v->task->n_test, &v->err);
    if (!st)
        v->e.n_cut += cr_scorer_n_cut(v->test);
    for (v->row = 0; !st && v->row < v->e.rows.n; v->row++) {
        st = run_row(v, &v->e.rows.v[v->row], &v->e.cells[at * v->e.rows.n + v->row]);
        if (st && st != CR_CANCELLED)
            st =
                cr_error_prefix(&v->err, st, "%s, row %s", v->task->name, v->e.rows.v[v->row].name);
    }
    cr_scorer_free(v->test);
    cr_scorer_free(v->examples);
    cr_scorer_free(v->behind);
    cr_worked_deinit(&v->shown);
    v->test = v->examples = v->behind = NULL;
    for (int i = 0; i < 2; i++) {
        cr_free(v->embedding[i]);
        v->embedding[i] = NULL;
    }
    return st;
}

static enum cr_status list_groups(struct evaluation *v)
{
    struct cr_eval *e = &v->e;
    e->groups = cr_alloc(e->tasks.n, sizeof *e->groups);
    if (!e->groups)
        return cr_error_set(&v->err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < e->tasks.n; i++) {
        size_t g = 0;
        while (g < e->n_groups && strcmp(e->groups[g], e->tasks.v[i].group))
            g++;
        if (g == e->n_groups)
            e->groups[e->n_groups++] = e->tasks.v[i].group;
    }
    return CR_OK;
}

static enum cr_status prepare(struct evaluation *v)
{
    struct cr_eval *e = &v->e;
    enum cr_status st = cr_setup_open(&e->setup, e->a, 0, &v->err);
    if (!st)
        st = cr_eval_rows_make(&e->rows, e->a, &e->setup, &v->err);
    const char *against = cr_arg_text(e->a, CR_OPT_AGAINST);
    while (!st && e->against < e->rows.n && strcmp(e->rows.v[e->against].name, against))
        e->against++;
    if (!st && e->against == e->rows.n)
        st = cr_error_set(&v->err, CR_NOT_FOUND, "--against names no row: \"%s\"", against);
    if (!st)
        st = cr_eval_tasks_read(&e->tasks, e->a, &v->err);
    if (!st)
        st = cr_eval_tasks_group(&e->tasks, e->a, e->rows.n_pools ? e->rows.pools[0] : NULL,
                                 &v->err);
    if (!st)
        st = list_groups(v);
    if (st)
        return st;
    size_t rows = 0;
    for (size_t i = 0; i < e->tasks.n; i++)
        rows += e->tasks.v[i].n_test;
    cr_note("%zu tasks, %zu test rows, %zu ways to answer", e->tasks.n, rows, e->rows.n);
    e->cells = cr_alloc0(e->tasks.n * e->rows.n, sizeof *e->cells);
    return e->cells ? CR_OK : cr_error_set(&v->err, CR_NO_MEMORY, "out of memory");
}

int cr_cli_eval(const struct cr_args *a)
{
    struct evaluation v = {.e = {.a = a}};
    cr_interrupt_catch();
    enum cr_status st = prepare(&v);
    cr_progress_begin(&v.line, "eval");
    double start = cr_now();
    for (size_t i = 0; !st && i < v.e.tasks.n; i++) {
        st = run_task(&v, i);
        v.e.n_done += !st;
    }
    v.e.seconds = cr_now() - start;
    cr_progress_end(&v.line);
    int code = 0;
    bool partial = st == CR_CANCELLED && v.e.n_done;
    if (partial)
        cr_warn("interrupted: %zu of %zu tasks are done", v.e.n_done, v.e.tasks.n);
    if (!st || partial)
        code = cr_eval_report(&v.e);
    if (!code && st)
        code = partial ? cr_status_exit_code(st) : cr_fail(&v.err);
    for (size_t i = 0; v.e.cells && i < v.e.tasks.n * v.e.rows.n; i++)
        cr_free(v.e.cells[i].correct);
    cr_free(v.e.cells);
    cr_free(v.e.groups);
    cr_eval_tasks_deinit(&v.e.tasks);
    cr_eval_rows_deinit(&v.e.rows);
    cr_setup_close(&v.e.setup);
    return code;
}
