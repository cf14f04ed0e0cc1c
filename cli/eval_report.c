/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon eval`: means, intervals, the table, JSON and the chart. */
#include "base/mem.h"
#include "base/rng.h"
#include "eval.h"
#include "facts.h"
#include "messages.h"
#include "svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DRAWS = 1000, NAME_WIDTH = 28 };

static const struct cr_eval_cell *cell(const struct cr_eval *e, size_t task, size_t row)
{
    return &e->cells[task * e->rows.n + row];
}

/* ---- statistics ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void interval(double *v, double *low, double *high)
{
    qsort(v, DRAWS, sizeof *v, by_value);
    *low = v[(size_t)(0.025 * (DRAWS - 1) + 0.5)];
    *high = v[(size_t)(0.975 * (DRAWS - 1) + 0.5)];
}

/* One draw: tasks with replacement, and inside each its rows with replacement. */
static void one_draw(const struct cr_eval *e, const size_t *tasks, size_t n, size_t row,
                     size_t against, struct cr_rng *rng, double *mean, double *diff)
{
    double sum = 0, other = 0;
    for (size_t k = 0; k < n; k++) {
        size_t t = tasks[cr_rng_below(rng, n)], hits = 0, other_hits = 0;
        const struct cr_eval_cell *a = cell(e, t, row), *b = cell(e, t, against);
        for (size_t i = 0; i < a->m.n; i++) {
            size_t at = (size_t)cr_rng_below(rng, a->m.n);
            hits += a->correct[at];
            other_hits += b->correct[at];
        }
        sum += (double)hits / (double)a->m.n;
        other += (double)other_hits / (double)a->m.n;
    }
    *mean = sum / (double)n;
    *diff = (sum - other) / (double)n;
}

enum cr_status cr_eval_statistic(const struct cr_eval *e, size_t group, size_t row, size_t against,
                                 struct cr_eval_stat *out, struct cr_error *err)
{
    size_t *tasks = cr_alloc(e->tasks.n, sizeof *tasks), n = 0;
    double *means = cr_alloc(2 * DRAWS, sizeof *means);
    *out = (struct cr_eval_stat){0, 0, 0, NAN, NAN, NAN, NAN, NAN, NAN};
    if (!tasks || !means) {
        cr_free(tasks);
        cr_free(means);
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    double sum = 0, other = 0;
    for (size_t t = 0; t < e->n_done; t++) {
        if (strcmp(e->tasks.v[t].group, e->groups[group]) || !cell(e, t, row)->m.n)
            continue;
        tasks[n++] = t;
        out->n_rows += cell(e, t, row)->m.n;
        out->n_short += cell(e, t, row)->m.n_short;
        sum += cell(e, t, row)->m.accuracy;
        other += cell(e, t, against)->m.accuracy;
    }
    out->n_tasks = n;
    if (n) {
        struct cr_rng rng;
        cr_rng_init(&rng, cr_arg_seed(e->a, CR_OPT_SEED) + group);
        for (size_t d = 0; d < DRAWS; d++)
            one_draw(e, tasks, n, row, against, &rng, &means[d], &means[DRAWS + d]);
        out->mean = sum / (double)n;
        out->diff = (sum - other) / (double)n;
        interval(means, &out->low, &out->high);
        interval(means + DRAWS, &out->diff_low, &out->diff_high);
    }
    cr_free(tasks);
    cr_free(means);
    return CR_OK;
}

struct report {
    struct cr_eval *e;
    struct cr_eval_stat *stats; /* [n_groups * rows] row innermost */
};

static const struct cr_eval_stat *stat_at(const struct report *r, size_t group, size_t row)
{
    return &r->stats[group * r->e->rows.n + row];
}

/* Mean of a field over the tasks of a group where it is known. */
static double group_mean(const struct cr_eval *e, size_t group, size_t row, bool f1)
{
    double sum = 0;
    size_t n = 0;
    for (size_t t = 0; t < e->n_done; t++) {
        double v = f1 ? cell(e, t, row)->m.f1 : cell(e, t, row)->m.loss;
        if (strcmp(e->tasks.v[t].group, e->groups[group]) || isnan(v))
            continue;
        sum += v;
        n++;
    }
    return n ? sum / (double)n : NAN;
}

/* ---- text ---- */

static void group_table(const struct report *r, struct cr_buf *b)
{
    const struct cr_eval *e = r->e;
    for (size_t g = 0; g < e->n_groups; g++) {
        const struct cr_eval_stat *any = stat_at(r, g, 0);
        char name[64];
        if (!any->n_tasks)
            continue;
        cr_buf_printf(b,
                      "%s: %zu tasks, %zu rows, %zu of them short answers (exact match); accuracy "
                      "in %%, mean over tasks\n",
                      cr_facts_clean(e->groups[g], strlen(e->groups[g]), name, sizeof name),
                      any->n_tasks, any->n_rows, any->n_short);
        cr_buf_printf(b, "  %-*s %6s  %-15s %7s  %-15s %7s%s\n", NAME_WIDTH, "row", "mean", "95 %",
                      "against", "95 %", "loss", cr_arg_flag(e->a, CR_OPT_F1) ? "      F1" : "");
        for (size_t k = 0; k < e->rows.n; k++) {
            const struct cr_eval_stat *s = stat_at(r, g, k);
            char range[24], diff[24], f1[16] = "";
            snprintf(range, sizeof range, "[%.1f, %.1f]", 100 * s->low, 100 * s->high);
            snprintf(diff, sizeof diff, "[%+.1f, %+.1f]", 100 * s->diff_low, 100 * s->diff_high);
            if (cr_arg_flag(e->a, CR_OPT_F1))
                snprintf(f1, sizeof f1, " %7.3f", group_mean(e, g, k, true));
            cr_buf_printf(
                b, "  %-*s %6.1f  %-15s %+7.1f  %-15s %7.4f%s\n", NAME_WIDTH,
                cr_facts_clean(e->rows.v[k].name, strlen(e->rows.v[k].name), name, sizeof name),
                100 * s->mean, range, 100 * s->diff, diff, group_mean(e, g, k, false), f1);
        }
        cr_buf_puts(b, "\n");
    }
}

static void task_table(const struct report *r, struct cr_buf *b)
{
    const struct cr_eval *e = r->e;
    char name[64];
    cr_buf_printf(b, "%-*s %5s", NAME_WIDTH + 14, "task", "rows");
    for (size_t k = 0; k < e->rows.n; k++)
        cr_buf_printf(
            b, " %9.9s",
            cr_facts_clean(e->rows.v[k].name, strlen(e->rows.v[k].name), name, sizeof name));
    cr_buf_puts(b, "\n");
    for (size_t t = 0; t < e->n_done; t++) {
        const struct cr_eval_task *task = &e->tasks.v[t];
        cr_buf_printf(b, "%-*.*s %5zu", NAME_WIDTH + 14, NAME_WIDTH + 14,
                      cr_facts_clean(task->name, strlen(task->name), name, sizeof name),
                      cell(e, t, 0)->m.n);
        for (size_t k = 0; k < e->rows.n; k++)
            cr_buf_printf(b, " %9.1f", 100 * cell(e, t, k)->m.accuracy);
        cr_buf_puts(b, "\n");
    }
}

/* ---- JSON ---- */

static void group_json(const struct report *r, struct cr_json *j, size_t row)
{
    const struct cr_eval *e = r->e;
    cr_json_open(j, "macro", '{');
    for (size_t g = 0; g < e->n_groups; g++)
        if (stat_at(r, g, row)->n_tasks)
            cr_json_fixed(j, e->groups[g], stat_at(r, g, row)->mean, 5);
    cr_json_close(j);
    cr_json_open(j, "interval", '{');
    for (size_t g = 0; g < e->n_groups; g++) {
        const struct cr_eval_stat *s = stat_at(r, g, row);
        if (!s->n_tasks)
            continue;
        cr_json_open_line(j, e->groups[g], '{');
        cr_json_fixed(j, "low", s->low, 5);
        cr_json_fixed(j, "high", s->high, 5);
        cr_json_fixed(j, "against", s->diff, 5);
        cr_json_fixed(j, "against_low", s->diff_low, 5);
        cr_json_fixed(j, "against_high", s->diff_high, 5);
        cr_json_fixed(j, "loss", group_mean(e, g, row, false), 5);
        cr_json_fixed(j, "f1", group_mean(e, g, row, true), 5);
        cr_json_close(j);
    }
    cr_json_close(j);
}

/* Per task a 1 for each test row that is right and a 0 for the others. */
static void right_json(const struct report *r, struct cr_json *j, size_t row)
{
    const struct cr_eval *e = r->e;
    cr_json_open(j, "right", '{');
    for (size_t t = 0; t < e->n_done; t++) {
        const struct cr_eval_cell *c = cell(e, t, row);
        struct cr_buf text;
        cr_buf_init(&text, 1 << 28);
        for (size_t i = 0; i < c->m.n; i++)
            cr_buf_puts(&text, c->correct[i] ? "1" : "0");
        cr_json_str(j, e->tasks.v[t].name, text.data ? text.data : "");
        cr_buf_deinit(&text);
    }
    cr_json_close(j);
}

static int print_json(const struct report *r)
{
    const struct cr_eval *e = r->e;
    struct cr_buf b;
    struct cr_json j;
    cr_buf_init(&b, 1 << 28);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_str(&j, "model", cr_model_info(e->setup.model)->name);
    cr_json_str(&j, "model_hash", cr_model_hash(e->setup.model));
    cr_json_uint(&j, "seed", cr_arg_seed(e->a, CR_OPT_SEED));
    cr_json_int(&j, "shots", cr_arg_int(e->a, CR_OPT_SHOTS));
    cr_json_uint(&j, "tasks", e->n_done);
    cr_json_bool(&j, "complete", e->n_done == e->tasks.n);
    cr_json_uint(&j, "tokens", e->n_tokens);
    cr_json_uint(&j, "prompts_cut", e->n_cut);
    cr_json_uint(&j, "worked_left_out", e->n_left_out);
    cr_json_fixed(&j, "seconds", e->seconds, 1);
    cr_json_str(&j, "against", e->rows.v[e->against].name);
    cr_json_open(&j, "groups", '{');
    for (size_t g = 0; g < e->n_groups; g++) {
        cr_json_open_line(&j, e->groups[g], '[');
        for (size_t t = 0; t < e->n_done; t++)
            if (!strcmp(e->tasks.v[t].group, e->groups[g]))
                cr_json_str(&j, NULL, e->tasks.v[t].name);
        cr_json_close(&j);
    }
    cr_json_close(&j);
    cr_json_open(&j, "rows", '{');
    for (size_t k = 0; k < e->rows.n; k++) {
        cr_json_open(&j, e->rows.v[k].name, '{');
        group_json(r, &j, k);
        cr_json_open(&j, "task", '{');
        for (size_t t = 0; t < e->n_done; t++)
            cr_json_fixed(&j, e->tasks.v[t].name, cell(e, t, k)->m.accuracy, 5);
        cr_json_close(&j);
        right_json(r, &j, k);
        cr_json_close(&j);
    }
    cr_json_close(&j);
    cr_json_close(&j);
    int code = cr_json_flush(&j);
    cr_buf_deinit(&b);
    return code;
}

/* ---- chart ---- */

static enum cr_status write_chart(const struct report *r, const char *path, struct cr_error *err)
{
    const struct cr_eval *e = r->e;
    size_t n = e->n_groups * e->rows.n;
    double *v = cr_alloc(3 * n, sizeof *v);
    const char **names = cr_alloc(e->rows.n, sizeof *names);
    char subtitle[160];
    struct cr_buf b;
    cr_buf_init(&b, 1 << 24);
    enum cr_status st = v && names ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "out of memory");
    for (size_t k = 0; !st && k < e->rows.n; k++)
        names[k] = e->rows.v[k].name;
    for (size_t i = 0; !st && i < n; i++) {
        v[i] = 100 * r->stats[i].mean;
        v[n + i] = 100 * r->stats[i].low;
        v[2 * n + i] = 100 * r->stats[i].high;
    }
    if (!st) {
        snprintf(subtitle, sizeof subtitle,
                 "%s, %zu tasks, mean over tasks with 95 %% intervals, seed %llu",
                 cr_model_info(e->setup.model)->name, e->n_done,
                 (unsigned long long)cr_arg_seed(e->a, CR_OPT_SEED));
        struct cr_chart c = {.title = "Accuracy by group of tasks",
                             .subtitle = subtitle,
                             .unit = " %",
                             .n_groups = e->n_groups,
                             .n_series = e->rows.n,
                             .groups = (const char *const *)e->groups,
                             .series = names,
                             .value = v,
                             .low = v + n,
                             .high = v + 2 * n};
        cr_svg_bars(&b, &c);
        st = b.failed ? cr_error_set(err, CR_NO_MEMORY, "out of memory drawing the chart")
                      : cr_file_write(path, b.data, b.len, err);
    }
    cr_buf_deinit(&b);
    cr_free(names);
    cr_free(v);
    return st;
}

/* ---- all of it ---- */

static enum cr_status make(struct report *r, struct cr_error *err)
{
    const struct cr_eval *e = r->e;
    r->stats = cr_alloc(e->n_groups * e->rows.n, sizeof *r->stats);
    if (!r->stats)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    enum cr_status st = CR_OK;
    for (size_t g = 0; !st && g < e->n_groups; g++)
        for (size_t k = 0; !st && k < e->rows.n; k++)
            st = cr_eval_statistic(e, g, k, e->against, &r->stats[g * e->rows.n + k], err);
    return st;
}

int cr_eval_report(struct cr_eval *e)
{
    struct report r = {.e = e};
    struct cr_error err;
    const char *svg = cr_arg_text(e->a, CR_OPT_SVG);
    int code = 0;
    enum cr_status st = make(&r, &err);
    if (!st && cr_arg_flag(e->a, CR_OPT_JSON)) {
        code = print_json(&r);
    } else if (!st) {
        struct cr_buf b;
        cr_buf_init(&b, 1 << 26);
        task_table(&r, &b);
        cr_buf_puts(&b, "\n");
        group_table(&r, &b);
        if (b.failed)
            st = cr_error_set(&err, CR_NO_MEMORY, "out of memory");
        else
            cr_out(b.data, b.len);
        cr_buf_deinit(&b);
    }
    if (!st && svg)
        st = write_chart(&r, svg, &err);
    char peak[16];
    if (e->n_cut)
        cr_warn("%zu prompts were longer than the context and lost their beginning", e->n_cut);
    if (e->n_left_out)
        cr_warn("%zu worked examples did not fit the context beside their question", e->n_left_out);
    cr_note("%zu tokens in %.1f s, %.1f tok/s, peak %s", e->n_tokens, e->seconds,
            e->seconds > 0 ? (double)e->n_tokens / e->seconds : 0,
            cr_bytes_text(cr_peak_bytes(), peak));
    cr_free(r.stats);
    return st ? cr_fail(&err) : code;
}
