/* SPDX-License-Identifier: Apache-2.0 */
/* The logistic rule and conformal thresholds; what they promise is in the header. */
#include "route/learned.h"

#include "base/mem.h"
#include "route/calibrate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { F = CR_LEARNED_FEATURES, KNOTS = CR_CALIBRATION_KNOTS, MIN_ROWS = 20, STEPS = 50 };

/* A feature further than this from its mean counts as this far: one odd number decides nothing. */
static const double most_deviations = 5;

static void features(const struct cr_signals *s, double x[F])
{
    const float v[F] = {s->demand_conf, s->quantile[0], s->quantile[1], s->quantile[2],
                        s->quantile[3], s->mean,        s->log_length,  s->demand_scope,
                        s->scope_z,     s->near_z};
    for (int i = 0; i < F; i++)
        x[i] = (double)v[i];
}

/* Standardised; what is not known is the mean. */
static void standardise(const struct cr_learned *l, const struct cr_signals *s, double x[F])
{
    features(s, x);
    for (int i = 0; i < F; i++) {
        x[i] = (x[i] - (double)l->mean[i]) / (double)l->std[i];
        x[i] = isnan(x[i]) ? 0 : fmax(-most_deviations, fmin(most_deviations, x[i]));
    }
}

double cr_learned_chance(double log_odds)
{
    return 1 / (1 + exp(-log_odds));
}

double cr_learned_score(const struct cr_learned *l, const struct cr_signals *s)
{
    double x[F], sum = (double)l->bias;
    standardise(l, s, x);
    for (int i = 0; i < F; i++)
        sum += (double)l->weight[i] * x[i];
    return sum;
}

static bool gains(const struct cr_study_row *r, bool server_known)
{
    return !r->device_right && (!server_known || r->server_right);
}

static void fit_scale(struct cr_learned *l, const struct cr_study_row *rows, size_t n, size_t step)
{
    for (int i = 0; i < F; i++) {
        double sum = 0, square = 0, count = 0;
        for (size_t r = 0; r < n; r += step) {
            double x[F];
            features(&rows[r].signals, x);
            if (!isfinite(x[i]))
                continue;
            sum += x[i];
            square += x[i] * x[i];
            count++;
        }
        double mean = count > 0 ? sum / count : 0;
        double var = count > 0 ? square / count - mean * mean : 0;
        l->mean[i] = (float)mean;
        l->std[i] = var > 1e-12 ? (float)sqrt(var) : 1;
    }
}

/* Solves a x = b in place, a symmetric positive definite [F + 1, F + 1]; x is left in b. */
static void solve(double a[F + 1][F + 1], double b[F + 1])
{
    for (int i = 0; i <= F; i++)
        for (int k = i + 1; k <= F; k++) {
            double f = a[k][i] / a[i][i];
            for (int j = i; j <= F; j++)
                a[k][j] -= f * a[i][j];
            b[k] -= f * b[i];
        }
    for (int i = F; i >= 0; i--) {
        for (int j = i + 1; j <= F; j++)
            b[i] -= a[i][j] * b[j];
        b[i] /= a[i][i];
    }
}

/* Every step-th row from the first. */
static enum cr_status fit(struct cr_learned *l, const struct cr_study_row *rows, size_t n,
                          size_t step, bool known, struct cr_error *err)
{
    size_t count = 0, positive = 0;
    double w[F + 1] = {0};
    *l = (struct cr_learned){0};
    for (size_t r = 0; r < n; r += step) {
        count++;
        positive += gains(&rows[r], known);
    }
    if (count < MIN_ROWS || positive == 0 || positive == count)
        return cr_error_set(err, CR_INVALID,
                            "rule learned: want at least %d rows to fit, some that a server would "
                            "mend and some not; found %zu, %zu of them to mend",
                            MIN_ROWS, count, positive);
    fit_scale(l, rows, n, step);
    for (int round = 0; round < STEPS; round++) {
        double a[F + 1][F + 1] = {{0}}, b[F + 1] = {0}, x[F + 1], moved = 0;
        for (size_t r = 0; r < n; r += step) {
            double z = 0;
            standardise(l, &rows[r].signals, x);
            x[F] = 1;
            for (int i = 0; i <= F; i++)
                z += w[i] * x[i];
            double p = cr_learned_chance(z), v = p * (1 - p);
            for (int i = 0; i <= F; i++) {
                b[i] += x[i] * ((double)gains(&rows[r], known) - p);
                for (int j = 0; j <= F; j++)
                    a[i][j] += v * x[i] * x[j];
            }
        }
        for (int i = 0; i < F; i++) { /* the ridge: none on the bias */
            a[i][i] += 1;
            b[i] -= w[i];
        }
        a[F][F] += 1e-9;
        solve(a, b);
        for (int i = 0; i <= F; i++) {
            double d = fmax(-2, fmin(2, b[i]));
            w[i] += d;
            moved += fabs(d);
        }
        if (moved < 1e-9)
            break;
    }
    for (int i = 0; i < F; i++)
        l->weight[i] = (float)w[i];
    l->bias = (float)w[F];
    l->n_fitted = (int)count;
    return CR_OK;
}

enum cr_status cr_learned_fit(struct cr_learned *out, const struct cr_study_row *rows, size_t n,
                              bool server_known, struct cr_error *err)
{
    return fit(out, rows, n, 1, server_known, err);
}

double cr_calibration_accept(const float knots[KNOTS], const int wrong[KNOTS], int n,
                             double max_wrong)
{
    double best = -INFINITY;
    for (int k = 0; k < KNOTS && n > 0; k++)
        if ((wrong[k] + 1.0) / (n + 1.0) <= max_wrong)
            best = (double)knots[k];
    return best;
}

double cr_calibration_kept(const float knots[KNOTS], const int wrong[KNOTS], int n,
                           double max_wrong)
{
    return cr_calibration_rank(knots, cr_calibration_accept(knots, wrong, n, max_wrong));
}

static void count_wrong(int wrong[KNOTS], const float knots[KNOTS], const float *score,
                        const bool *is_wrong, size_t n)
{
    for (int k = 0; k < KNOTS; k++) {
        wrong[k] = 0;
        for (size_t i = 0; i < n; i++)
            wrong[k] += is_wrong[i] && score[i] <= knots[k];
    }
}

static void label_scores(struct cr_calibration *c, const struct cr_study_row *rows, size_t n,
                         float *score, bool *wrong)
{
    for (size_t i = 0; i < n; i++) {
        score[i] = rows[i].signals.demand_conf;
        wrong[i] = !rows[i].device_right;
    }
    count_wrong(c->wrong_conf, c->conf, score, wrong, n);
    if (!c->has_scope)
        return;
    for (size_t i = 0; i < n; i++)
        score[i] = rows[i].signals.demand_scope;
    count_wrong(c->wrong_scope, c->scope, score, wrong, n);
    for (size_t i = 0; i < n; i++)
        score[i] = (float)cr_calibration_either(c, rows[i].signals.demand_conf,
                                                rows[i].signals.demand_scope);
    count_wrong(c->wrong_either, c->either, score, wrong, n);
}

enum cr_status cr_calibration_label(struct cr_calibration *c, const struct cr_study_row *rows,
                                    size_t n, bool server_known, const struct cr_learned *given,
                                    char why[160], struct cr_error *err)
{
    struct cr_error local = {.msg = ""};
    float *score = cr_alloc(n, sizeof *score), *sorted = cr_alloc(n, sizeof *sorted);
    bool *wrong = cr_alloc(n, sizeof *wrong);
    enum cr_status st = CR_OK;
    if (!score || !sorted || !wrong)
        st = cr_error_set(err, CR_NO_MEMORY, "calibrate: out of memory for %zu rows", n);
    if (st == CR_OK) {
        label_scores(c, rows, n, score, wrong);
        c->labelled = true;
        struct cr_learned *l = &c->learned;
        size_t step = given ? 1 : 2, first = given ? 0 : 1, m = 0;
        enum cr_status fitted = CR_OK;
        if (given)
            *l = *given;
        else
            fitted = fit(l, rows, n, step, server_known, &local);
        for (size_t i = first; i < n && fitted == CR_OK; i += step) {
            score[m] = (float)cr_learned_score(l, &rows[i].signals);
            wrong[m++] = !rows[i].device_right;
        }
        if (m >= 2) {
            memcpy(sorted, score, m * sizeof *score);
            cr_calibration_knots(l->knots, sorted, m);
            count_wrong(l->wrong, l->knots, score, wrong, m);
            l->n_rows = (int)m;
        }
    }
    if (why)
        snprintf(why, 160, "%.159s", local.msg);
    cr_free(wrong);
    cr_free(sorted);
    cr_free(score);
    return st;
}

enum cr_status cr_calibration_learned(struct cr_calibration *c, const struct cr_study_row *rows,
                                      size_t n, const struct cr_learned *given,
                                      struct cr_error *err)
{
    float *score = cr_alloc(n, sizeof *score);
    if (!score || n < 2)
        return cr_error_set(err, CR_NO_MEMORY, "calibrate: out of memory for %zu rows", n);
    c->learned = *given;
    for (size_t i = 0; i < n; i++)
        score[i] = (float)cr_learned_score(given, &rows[i].signals);
    cr_calibration_knots(c->learned.knots, score, n);
    for (int k = 0; k < KNOTS; k++)
        c->learned.wrong[k] = (int)n; /* for all that is known */
    c->learned.n_rows = (int)n;
    cr_free(score);
    return CR_OK;
}
