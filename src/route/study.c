/* SPDX-License-Identifier: Apache-2.0 */
/* Accuracy against share sent; see the header for what is compared. */
#include "route/study.h"

#include "base/mem.h"
#include "route/calibrate.h"

#include <math.h>
#include <stdlib.h>

const double cr_study_budgets[CR_STUDY_POINTS] = {0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1};

struct work {
    const struct cr_study_row *rows;
    size_t n;
    bool server_known;
    struct cr_palette half[2];   /* [h]: calibrated on the rows of the other half */
    float *score, *conf, *scope; /* [n] */
    size_t *order;               /* [n] */
};

static bool server_right(const struct work *w, size_t i)
{
    return !w->server_known || w->rows[i].server_right;
}

/* ---- thresholds ---- */

static enum cr_status fit_half(struct work *w, size_t h, bool has_scope, struct cr_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < w->n; i++)
        if (i % 2 != h) {
            w->conf[n] = w->rows[i].signals.demand_conf;
            w->scope[n++] = w->rows[i].signals.demand_scope;
        }
    w->half[h].name = "study";
    struct cr_calibration *c = &w->half[h].calibration;
    enum cr_status st = cr_calibration_fit(c, w->conf, has_scope ? w->scope : NULL, n,
                                           w->rows[0].signals.options, err);
    struct cr_study_row *other = st == CR_OK ? cr_alloc(n, sizeof *other) : NULL;
    if (st == CR_OK && !other)
        st = cr_error_set(err, CR_NO_MEMORY, "study: out of memory");
    for (size_t i = 0, k = 0; i < w->n && st == CR_OK; i++)
        if (i % 2 != h)
            other[k++] = w->rows[i];
    if (st == CR_OK)
        st = cr_calibration_label(c, other, n, w->server_known, NULL, NULL, err);
    cr_free(other);
    return st;
}

/* Whether both halves can be judged by the rule. */
static bool can_do(const struct work *w, enum cr_rule r, bool has_scope)
{
    if (r == CR_RULE_LEARNED)
        return w->half[0].calibration.learned.n_rows && w->half[1].calibration.learned.n_rows;
    return has_scope || r == CR_RULE_RANDOM || r == CR_RULE_CONF;
}

static void count_rule(struct work *w, struct cr_study *s, int b, enum cr_rule rule)
{
    size_t sent = 0, right = 0;
    for (size_t i = 0; i < w->n; i++) {
        struct cr_decision d;
        cr_rule_decide(rule, cr_study_budgets[b], &w->half[i % 2], &w->rows[i].signals, &d);
        sent += d.server;
        right += d.server ? server_right(w, i) : w->rows[i].device_right;
    }
    s->sent[b][rule] = (double)sent / (double)w->n;
    s->accuracy[b][rule] = (double)right / (double)w->n;
}

/* ---- rankings ---- */

static _Thread_local const float *sort_by;
static int descending(const void *a, const void *b)
{
    size_t i = *(const size_t *)a, k = *(const size_t *)b;
    if (sort_by[i] != sort_by[k])
        return sort_by[i] < sort_by[k] ? 1 : -1;
    return (i > k) - (i < k);
}

/* Sends in the order of falling score: the mean over all shares of (accuracy - line). */
static double area_above(struct work *w, const struct cr_study *s)
{
    for (size_t i = 0; i < w->n; i++)
        w->order[i] = i;
    sort_by = w->score;
    qsort(w->order, w->n, sizeof *w->order, descending);
    double n = (double)w->n, right = s->device_accuracy * n, sum = 0;
    for (size_t k = 0; k < w->n; k++) {
        size_t i = w->order[k];
        double before = right;
        right += (double)server_right(w, i) - (double)w->rows[i].device_right;
        sum += (before + right) / 2 / n; /* trapezium */
    }
    return sum / n - (s->device_accuracy + s->server_accuracy) / 2;
}

/* Score of the oracle: what sending would gain. */
static float gain(const struct work *w, size_t i)
{
    return (float)server_right(w, i) - (float)w->rows[i].device_right;
}

static float rule_score(const struct work *w, enum cr_rule rule, size_t i)
{
    const struct cr_signals *s = &w->rows[i].signals;
    if (rule == CR_RULE_CONF)
        return s->demand_conf;
    if (rule == CR_RULE_SCOPE)
        return s->demand_scope;
    if (rule == CR_RULE_RANDOM)
        return (float)(s->request >> 40);
    const struct cr_calibration *c = &w->half[i % 2].calibration;
    if (rule == CR_RULE_LEARNED)
        return (float)cr_learned_score(&c->learned, s);
    return (float)cr_calibration_either(c, s->demand_conf, s->demand_scope);
}

static void areas(struct work *w, struct cr_study *s)
{
    for (int r = 0; r < CR_RULE_COUNT; r++) {
        s->area[r] = NAN;
        if (!can_do(w, (enum cr_rule)r, s->has_scope))
            continue;
        for (size_t i = 0; i < w->n; i++)
            w->score[i] = rule_score(w, (enum cr_rule)r, i);
        s->area[r] = area_above(w, s);
    }
    for (size_t i = 0; i < w->n; i++)
        w->score[i] = gain(w, i);
    s->area_oracle = area_above(w, s);
    for (int b = 0; b < CR_STUDY_POINTS; b++) { /* w->order is the oracle's now */
        size_t sent = (size_t)(cr_study_budgets[b] * (double)w->n + 0.5);
        double right = s->device_accuracy * (double)w->n;
        for (size_t k = 0; k < sent; k++)
            right += (double)gain(w, w->order[k]);
        s->oracle[b] = right / (double)w->n;
        s->line[b] =
            s->device_accuracy + cr_study_budgets[b] * (s->server_accuracy - s->device_accuracy);
    }
}

/* ---- signals ---- */

static double auroc_of(struct work *w, bool *wrong, float sign, size_t offset)
{
    for (size_t i = 0; i < w->n; i++) {
        float v = *(const float *)(const void *)((const char *)&w->rows[i].signals + offset);
        if (isnan(v))
            return NAN;
        w->score[i] = sign * v;
        wrong[i] = !w->rows[i].device_right;
    }
    return cr_auroc(w->score, wrong, w->n);
}

static enum cr_status aurocs(struct work *w, struct cr_study *s, struct cr_error *err)
{
    bool *wrong = cr_alloc(w->n, sizeof *wrong);
    if (!wrong)
        return cr_error_set(err, CR_NO_MEMORY, "study: out of memory");
#define AUROC(field, sign) auroc_of(w, wrong, sign, offsetof(struct cr_signals, field))
    s->auroc_conf = AUROC(demand_conf, 1);
    s->auroc_p1 = AUROC(p1, -1);
    s->auroc_margin = AUROC(margin, -1);
    s->auroc_entropy = AUROC(entropy, 1);
    s->auroc_length = AUROC(log_length, 1);
    s->auroc_change = AUROC(change, 1);
    s->auroc_scope = AUROC(demand_scope, 1);
    for (int k = 0; k < CR_N_QUANTILES; k++)
        s->auroc_quantile[k] = auroc_of(
            w, wrong, -1, offsetof(struct cr_signals, quantile) + (size_t)k * sizeof(float));
#undef AUROC
    cr_free(wrong);
    return CR_OK;
}

enum cr_status cr_study_make(struct cr_study *s, const struct cr_study_row *rows, size_t n,
                             bool known, struct cr_error *err)
{
    *s = (struct cr_study){.n = n, .server_known = known, .has_scope = true};
    if (n < 4)
        return cr_error_set(err, CR_INVALID, "study: want at least 4 answered examples, found %zu",
                            n);
    struct work w = {.rows = rows, .n = n, .server_known = known};
    size_t device = 0, server = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(rows[i].signals.demand_conf))
            return cr_error_set(err, CR_INVALID, "study: example %zu has no confidence", i + 1);
        s->has_scope = s->has_scope && !isnan(rows[i].signals.demand_scope);
        device += rows[i].device_right;
        server += server_right(&w, i);
    }
    s->device_accuracy = (double)device / (double)n;
    s->server_accuracy = (double)server / (double)n;
    w.score = cr_alloc(n, sizeof *w.score);
    w.conf = cr_alloc(n, sizeof *w.conf);
    w.scope = cr_alloc(n, sizeof *w.scope);
    w.order = cr_alloc(n, sizeof *w.order);
    enum cr_status st = w.score && w.conf && w.scope && w.order
                            ? CR_OK
                            : cr_error_set(err, CR_NO_MEMORY, "study: out of memory");
    for (size_t h = 0; h < 2 && st == CR_OK; h++)
        st = fit_half(&w, h, s->has_scope, err);
    if (st == CR_OK) {
        for (int b = 0; b < CR_STUDY_POINTS; b++)
            for (int r = 0; r < CR_RULE_COUNT; r++) {
                s->sent[b][r] = s->accuracy[b][r] = NAN;
                if (can_do(&w, (enum cr_rule)r, s->has_scope))
                    count_rule(&w, s, b, (enum cr_rule)r);
            }
        areas(&w, s);
        st = aurocs(&w, s, err);
    }
    cr_free(w.order);
    cr_free(w.scope);
    cr_free(w.conf);
    cr_free(w.score);
    return st;
}
