/* SPDX-License-Identifier: Apache-2.0 */
/* What `route calibrate` found: table, JSON, chart. */
#ifdef CRAYON_ROUTE

#include "messages.h"
#include "route.h"
#include "route/calibrate.h"
#include "route/learned.h"
#include "svg.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N_BUDGETS = 5 };
static const double budgets[N_BUDGETS] = {0.02, 0.05, 0.1, 0.2, 0.3};

/* ---- table ---- */

static void print_cell(double v)
{
    if (isnan(v))
        cr_out_puts("        -");
    else
        cr_outf("  %7.1f", 100 * v);
}

/* What --max-wrong would keep: the share of these rows at or below its threshold. */
static void print_accepted(const struct cr_calibration *c)
{
    static const double limits[] = {0.01, 0.05, 0.1, 0.2};
    cr_out_puts("max-wrong   kept by conf   by scope   by crayon   by learned\n");
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const struct cr_learned *l = &c->learned;
        double kept[4] = {
            cr_calibration_kept(c->conf, c->wrong_conf, c->n_rows, limits[i]),
            c->has_scope ? cr_calibration_kept(c->scope, c->wrong_scope, c->n_rows, limits[i])
                         : (double)NAN,
            c->has_scope ? cr_calibration_kept(c->either, c->wrong_either, c->n_rows, limits[i])
                         : (double)NAN,
            l->n_rows ? cr_calibration_kept(l->knots, l->wrong, l->n_rows, limits[i])
                      : (double)NAN};
        cr_outf("%7.0f %%  ", 100 * limits[i]);
        for (int k = 0; k < 4; k++)
            print_cell(kept[k]);
        cr_out_puts(" %\n");
    }
}

static void print_thresholds(const struct cr_calibration *c)
{
    cr_out_puts("budget   conf: below   scope: beyond   crayon: below, or beyond\n");
    for (int b = 0; b < N_BUDGETS; b++) {
        double level = 1 - budgets[b];
        cr_outf("%5.1f %%  %11.4f", 100 * budgets[b], 1 - cr_calibration_quantile(c->conf, level));
        if (!c->has_scope) {
            cr_out_puts("   unknown         unknown\n");
            continue;
        }
        double both = cr_calibration_quantile(c->either, level);
        cr_outf("   %13.3f   %13.4f, %9.3f\n", cr_calibration_quantile(c->scope, level),
                1 - cr_calibration_quantile(c->conf, both),
                cr_calibration_quantile(c->scope, both));
    }
    const struct cr_learned *l = &c->learned;
    if (l->n_rows) {
        cr_outf(
            "learned (fitted on %d rows, thresholds from %d others): chance that a server helps "
            "above",
            l->n_fitted, l->n_rows);
        for (int b = 0; b < N_BUDGETS; b++)
            cr_outf(" %.4f", cr_learned_chance(cr_calibration_quantile(l->knots, 1 - budgets[b])));
        cr_out_puts("\n");
    }
    if (c->labelled)
        print_accepted(c);
    cr_outf("the smallest share that %d examples can hold is %.1f %%\n", c->n_rows,
            100 * cr_calibration_resolution(c));
}

static void print_study(const struct cr_study *s)
{
    cr_outf("\ndevice right %.1f %%, server right %.1f %%%s\n", 100 * s->device_accuracy,
            100 * s->server_accuracy,
            s->server_known ? "" : " (not asked: taken to be always right, an upper bound)");
    cr_out_puts("accuracy in % when a share of the questions is sent (share really sent)\n"
                "budget     line   oracle");
    for (int r = 0; r < CR_RULE_COUNT; r++)
        cr_outf("  %7s        ", cr_rule_name((enum cr_rule)r));
    cr_out_puts("\n");
    for (int b = 0; b < CR_STUDY_POINTS; b++) {
        cr_outf("%4.0f %%", 100 * cr_study_budgets[b]);
        print_cell(s->line[b]);
        print_cell(s->oracle[b]);
        for (int r = 0; r < CR_RULE_COUNT; r++) {
            print_cell(s->accuracy[b][r]);
            if (isnan(s->sent[b][r]))
                cr_out_puts("        ");
            else
                cr_outf(" (%5.1f)", 100 * s->sent[b][r]);
        }
        cr_out_puts("\n");
    }
    cr_out_puts("above line   ");
    print_cell(s->area_oracle);
    for (int r = 0; r < CR_RULE_COUNT; r++) {
        print_cell(s->area[r]);
        cr_out_puts("        ");
    }
    cr_out_puts("\n");
}

/* The signals and their AUROCs as one list. */
struct named {
    const char *name;
    double v;
};
enum { N_NAMED = 7 + CR_N_QUANTILES };
static void name_aurocs(const struct cr_study *s, struct named out[N_NAMED])
{
    static const char *const quantiles[CR_N_QUANTILES] = {"q0", "q10", "q25", "q50"};
    const struct named first[7] = {{"confidence", s->auroc_conf},   {"p1", s->auroc_p1},
                                   {"margin", s->auroc_margin},     {"entropy", s->auroc_entropy},
                                   {"log_length", s->auroc_length}, {"change", s->auroc_change},
                                   {"scope", s->auroc_scope}};
    memcpy(out, first, sizeof first);
    for (int k = 0; k < CR_N_QUANTILES; k++)
        out[7 + k] = (struct named){quantiles[k], s->auroc_quantile[k]};
}

static void print_aurocs(const struct cr_study *s)
{
    struct named v[N_NAMED];
    name_aurocs(s, v);
    cr_out_puts("AUROC of \"wrong\":");
    for (int i = 0; i < N_NAMED; i++)
        if (!isnan(v[i].v))
            cr_outf(" %s %.3f", v[i].name, v[i].v);
    cr_out_puts("\n");
}

void cr_route_report_print(const struct cr_route_report *r)
{
    cr_outf("%zu examples answered %s%s\n\n", r->n,
            r->options ? "by choosing among options" : "on the device as run does",
            r->stored ? "; thresholds are in the palette" : "; not stored");
    print_thresholds(r->calibration);
    if (*r->no_learned)
        cr_outf("%s\n", r->no_learned);
    if (r->has_study) {
        print_study(&r->study);
        print_aurocs(&r->study);
    }
    if (r->n_outside) {
        cr_outf("\n%zu questions out of scope: ", r->n_outside);
        if (isnan(r->auroc_outside))
            cr_out_puts("scope is unknown");
        else
            cr_outf("scope tells them with AUROC %.3f", r->auroc_outside);
        cr_outf("; sent at a budget of %g:", r->budget);
        for (int k = 0; k < CR_RULE_COUNT; k++)
            cr_outf(" %s %.1f %%", cr_rule_name((enum cr_rule)k), 100 * r->sent_outside[k]);
        cr_out_puts("\n");
    }
    if (r->bytes_out)
        cr_outf("\n%llu bytes left the device\n", (unsigned long long)r->bytes_out);
}

/* ---- JSON ---- */

static void study_json(struct cr_json *j, const struct cr_study *s)
{
    struct named v[N_NAMED];
    cr_json_open(j, "study", '{');
    cr_json_bool(j, "server_asked", s->server_known);
    cr_json_real(j, "device_accuracy", s->device_accuracy);
    cr_json_real(j, "server_accuracy", s->server_accuracy);
    cr_json_open(j, "points", '[');
    for (int b = 0; b < CR_STUDY_POINTS; b++) {
        cr_json_open(j, NULL, '{');
        cr_json_real(j, "budget", cr_study_budgets[b]);
        cr_json_real(j, "line", s->line[b]);
        cr_json_real(j, "oracle", s->oracle[b]);
        for (int r = 0; r < CR_RULE_COUNT; r++) {
            cr_json_open_line(j, cr_rule_name((enum cr_rule)r), '{');
            cr_json_real(j, "sent", s->sent[b][r]);
            cr_json_real(j, "accuracy", s->accuracy[b][r]);
            cr_json_close(j);
        }
        cr_json_close(j);
    }
    cr_json_close(j);
    cr_json_open(j, "area_above_line", '{');
    for (int r = 0; r < CR_RULE_COUNT; r++)
        cr_json_real(j, cr_rule_name((enum cr_rule)r), s->area[r]);
    cr_json_real(j, "oracle", s->area_oracle);
    cr_json_close(j);
    name_aurocs(s, v);
    cr_json_open(j, "auroc_wrong", '{');
    for (int i = 0; i < N_NAMED; i++)
        cr_json_real(j, v[i].name, v[i].v);
    cr_json_close(j);
    cr_json_close(j);
}

int cr_route_report_json(const struct cr_route_report *r)
{
    const struct cr_calibration *c = r->calibration;
    struct cr_buf b;
    struct cr_json j;
    cr_buf_init(&b, 1 << 26);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_str(&j, "palette", r->palette);
    cr_json_str(&j, "examples", r->examples);
    cr_json_uint(&j, "n", r->n);
    cr_json_str(&j, "answers", r->options ? "options" : "text");
    cr_json_bool(&j, "stored", r->stored);
    cr_json_real(&j, "smallest_share", cr_calibration_resolution(c));
    cr_json_open(&j, "thresholds", '[');
    for (int k = 0; k < N_BUDGETS; k++) {
        double level = 1 - budgets[k];
        double both = c->has_scope ? cr_calibration_quantile(c->either, level) : (double)NAN;
        cr_json_open(&j, NULL, '{');
        cr_json_real(&j, "budget", budgets[k]);
        cr_json_real(&j, "conf_below", 1 - cr_calibration_quantile(c->conf, level));
        cr_json_real(&j, "scope_beyond",
                     c->has_scope ? cr_calibration_quantile(c->scope, level) : (double)NAN);
        cr_json_real(&j, "crayon_conf_below",
                     c->has_scope ? 1 - cr_calibration_quantile(c->conf, both) : (double)NAN);
        cr_json_real(&j, "crayon_scope_beyond",
                     c->has_scope ? cr_calibration_quantile(c->scope, both) : (double)NAN);
        cr_json_real(&j, "learned_above",
                     c->learned.n_rows
                         ? cr_learned_chance(cr_calibration_quantile(c->learned.knots, level))
                         : (double)NAN);
        cr_json_close(&j);
    }
    cr_json_close(&j);
    if (r->has_study)
        study_json(&j, &r->study);
    if (r->n_outside) {
        cr_json_open(&j, "out_of_scope", '{');
        cr_json_uint(&j, "n", r->n_outside);
        cr_json_real(&j, "auroc", r->auroc_outside);
        cr_json_real(&j, "budget", r->budget);
        cr_json_open(&j, "sent", '{');
        for (int k = 0; k < CR_RULE_COUNT; k++)
            cr_json_real(&j, cr_rule_name((enum cr_rule)k), r->sent_outside[k]);
        cr_json_close(&j);
        cr_json_close(&j);
    }
    cr_json_uint(&j, "left_device_bytes", r->bytes_out);
    cr_json_close(&j);
    int code = cr_json_flush(&j);
    cr_buf_deinit(&b);
    return code;
}

/* ---- chart ---- */

enum cr_status cr_route_report_svg(const struct cr_route_report *r, const char *path,
                                   struct cr_error *err)
{
    enum { N = CR_RULE_COUNT + 2 };
    const struct cr_study *s = &r->study;
    double x[N][CR_STUDY_POINTS], y[N][CR_STUDY_POINTS];
    struct cr_line lines[N];
    size_t n = 0;
    for (int k = 0; k < N; k++) {
        bool rule = k >= 1 && k <= CR_RULE_COUNT;
        int of = k - 1;
        if (rule && (of == CR_RULE_RANDOM || isnan(s->area[of])))
            continue;
        for (int b = 0; b < CR_STUDY_POINTS; b++) {
            x[n][b] = 100 * (rule ? s->sent[b][of] : cr_study_budgets[b]);
            y[n][b] = 100 * (rule ? s->accuracy[b][of] : k == 0 ? s->line[b] : s->oracle[b]);
        }
        lines[n] = (struct cr_line){.name = rule     ? cr_rule_name((enum cr_rule)of)
                                            : k == 0 ? "random"
                                                     : "oracle",
                                    .x = x[n],
                                    .y = y[n],
                                    .n = CR_STUDY_POINTS};
        n++;
    }
    char subtitle[160];
    snprintf(subtitle, sizeof subtitle, "%zu examples, device %.1f %%, server %.1f %%%s", r->n,
             100 * s->device_accuracy, 100 * s->server_accuracy,
             s->server_known ? "" : " (taken to be always right)");
    struct cr_line_chart c = {.title = "Accuracy against the share sent to the server",
                              .subtitle = subtitle,
                              .x_name = "share sent, %",
                              .y_name = "accuracy, %",
                              .lines = lines,
                              .n = n};
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    cr_svg_lines(&b, &c);
    enum cr_status st = b.failed ? cr_error_set(err, CR_NO_MEMORY, "out of memory drawing")
                                 : cr_file_write(path, b.data, b.len, err);
    cr_buf_deinit(&b);
    return st;
}

#endif
