/* SPDX-License-Identifier: Apache-2.0 */
/* Quantiles of demand scores and back. The same knots serve Q and F, so a score passes Q(u) exactly
 * when its rank passes u, which is what makes the two thresholds of CRAYON one. */
#include "route/calibrate.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KNOTS = CR_CALIBRATION_KNOTS };

double cr_calibration_level(int k)
{
    double rest = 1 - (double)k / (KNOTS - 1);
    return 1 - rest * rest;
}

double cr_calibration_quantile(const float knots[KNOTS], double level)
{
    level = level < 0 ? 0 : level > 1 ? 1 : level;
    double at = (KNOTS - 1) * (1 - sqrt(1 - level)); /* inverse of the level of a knot */
    int k = (int)at < KNOTS - 2 ? (int)at : KNOTS - 2;
    double lo = cr_calibration_level(k), hi = cr_calibration_level(k + 1);
    double f = (level - lo) / (hi - lo);
    f = f < 0 ? 0 : f > 1 ? 1 : f;
    return (double)knots[k] + f * ((double)knots[k + 1] - (double)knots[k]);
}

double cr_calibration_rank(const float knots[KNOTS], double x)
{
    if (!(x >= (double)knots[0])) /* a NAN has no demand */
        return 0;
    if (x >= (double)knots[KNOTS - 1])
        return 1;
    int k = 0; /* the last knot that is <= x */
    while (k + 1 < KNOTS && (double)knots[k + 1] <= x)
        k++;
    double lo = cr_calibration_level(k), hi = cr_calibration_level(k + 1);
    return lo + (hi - lo) * (x - (double)knots[k]) / ((double)knots[k + 1] - (double)knots[k]);
}

double cr_calibration_resolution(const struct cr_calibration *c)
{
    return 1.0 / (c->n_rows + 1);
}

struct scored {
    float score;
    bool positive;
};
static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    return (x->score > y->score) - (x->score < y->score);
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void cr_calibration_knots(float knots[KNOTS], float *v, size_t n)
{
    qsort(v, n, sizeof *v, ascending);
    for (int k = 0; k < KNOTS; k++) {
        double at = cr_calibration_level(k) * ((double)n + 1) - 1; /* p = (i + 1) / (n + 1) */
        at = at < 0 ? 0 : at > (double)(n - 1) ? (double)(n - 1) : at;
        size_t lo = (size_t)at, hi = lo + 1 < n ? lo + 1 : lo;
        double f = at - (double)lo;
        knots[k] = (float)((1 - f) * (double)v[lo] + f * (double)v[hi]);
        if (k && knots[k] < knots[k - 1]) /* rounding */
            knots[k] = knots[k - 1];
    }
}

double cr_calibration_either(const struct cr_calibration *c, float conf, float scope)
{
    double a = isnan(conf) ? 1 : cr_calibration_rank(c->conf, (double)conf);
    double b = isnan(scope) ? 1 : cr_calibration_rank(c->scope, (double)scope);
    return a > b ? a : b;
}

enum cr_status cr_calibration_fit(struct cr_calibration *c, const float *conf, const float *scope,
                                  size_t n, bool options, struct cr_error *err)
{
    *c = (struct cr_calibration){0};
    if (n < 2 || n > INT32_MAX)
        return cr_error_set(err, CR_INVALID, "calibrate: want at least 2 examples, found %zu", n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(conf[i]) || (scope && !isfinite(scope[i])))
            return cr_error_set(err, CR_INVALID,
                                "calibrate: the score of example %zu is not finite", i + 1);
    float *v = cr_alloc(n, sizeof *v);
    if (!v)
        return cr_error_set(err, CR_NO_MEMORY, "calibrate: out of memory for %zu scores", n);
    memcpy(v, conf, n * sizeof *v);
    cr_calibration_knots(c->conf, v, n);
    if (scope) {
        memcpy(v, scope, n * sizeof *v);
        cr_calibration_knots(c->scope, v, n);
        for (size_t i = 0; i < n; i++)
            v[i] = (float)cr_calibration_either(c, conf[i], scope[i]);
        cr_calibration_knots(c->either, v, n);
    }
    cr_free(v);
    c->has_scope = scope != NULL;
    c->options = options;
    c->n_rows = (int)n;
    return CR_OK;
}

double cr_auroc(const float *score, const bool *positive, size_t n)
{
    struct scored *v = cr_alloc(n, sizeof *v);
    double n_pos = 0, rank_sum = 0;
    if (!v)
        return NAN;
    for (size_t i = 0; i < n; i++) {
        v[i] = (struct scored){score[i], positive[i]};
        n_pos += positive[i];
    }
    qsort(v, n, sizeof *v, by_score);
    for (size_t i = 0; i < n;) { /* runs of equal scores share their mean rank */
        size_t j = i;
        double in_run = 0;
        for (; j < n && !(v[j].score > v[i].score); j++)
            in_run += v[j].positive;
        rank_sum += in_run * ((double)i + 1 + (double)j) / 2;
        i = j;
    }
    cr_free(v);
    double n_neg = (double)n - n_pos;
    return n_pos > 0 && n_neg > 0 ? (rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg) : NAN;
}
