/* SPDX-License-Identifier: Apache-2.0 */
/* The five rules. Nothing here sees the text of a request (attack 43). */
#include "route/rules.h"

#include "route/calibrate.h"
#include "route/learned.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const names[CR_RULE_COUNT] = {"random", "conf", "scope", "crayon", "learned"};

const char *cr_rule_name(enum cr_rule r)
{
    return names[r];
}

int cr_rule_by_name(const char *name)
{
    for (int r = 0; r < CR_RULE_COUNT; r++)
        if (strcmp(name, names[r]) == 0)
            return r;
    return -1;
}

void cr_decision_why(struct cr_decision *d, const char *fmt, ...)
{
    struct cr_error clean; /* cr_error_set makes a text printable, also one that was cut */
    char text[2 * sizeof clean.msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    cr_error_set(&clean, CR_OK, "%s", text);
    static_assert(sizeof d->why == sizeof clean.msg, "a reason holds an error message");
    memcpy(d->why, clean.msg, sizeof d->why);
}

static const char *label(const struct cr_palette *p)
{
    return p->name && *p->name ? p->name : "given";
}

/* What any rule but RANDOM needs of a palette. */
static enum cr_status palette_ready(enum cr_rule r, const cr_palette *p, bool options,
                                    struct cr_error *err)
{
    if (!p)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: want a palette with a calibration, found no palette; give "
                            "--palette, or use --rule random",
                            names[r]);
    const struct cr_calibration *c = &p->calibration;
    if (c->n_rows == 0)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: the palette (%s) has no calibration: run \"crayon route "
                            "calibrate\" once, or use --rule random",
                            names[r], label(p));
    if (r != CR_RULE_SCOPE && c->options != options)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: the palette (%s) is calibrated for %s, this answer is %s",
                            names[r], label(p), c->options ? "options" : "generated text",
                            options ? "an option" : "generated text");
    if ((r == CR_RULE_SCOPE || r == CR_RULE_CRAYON) && !c->has_scope)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: the palette (%s) has no scope statistics; use --rule conf",
                            names[r], label(p));
    if (r == CR_RULE_LEARNED && c->learned.n_rows == 0)
        return cr_error_set(
            err, CR_INVALID,
            "rule learned: the palette (%s) has none; run \"crayon route calibrate\" "
            "with answered examples, or with --learn FILE",
            label(p));
    return CR_OK;
}

enum cr_status cr_rule_ready(enum cr_rule r, double budget, const cr_palette *p, bool options,
                             struct cr_error *err)
{
    if (!(budget >= 0 && budget <= 1))
        return cr_error_set(err, CR_INVALID, "budget: want a share from 0 to 1, found %g", budget);
    if (r == CR_RULE_RANDOM || budget <= 0 || budget >= 1)
        return CR_OK;
    return palette_ready(r, p, options, err);
}

enum cr_status cr_rule_ready_wrong(enum cr_rule r, double max_wrong, const cr_palette *p,
                                   bool options, struct cr_error *err)
{
    if (!(max_wrong > 0 && max_wrong < 1))
        return cr_error_set(err, CR_INVALID, "max-wrong: want a share between 0 and 1, found %g",
                            max_wrong);
    if (r == CR_RULE_RANDOM)
        return cr_error_set(err, CR_INVALID, "rule random: gives no bound on wrong answers");
    enum cr_status st = palette_ready(r, p, options, err);
    if (st == CR_OK && !p->calibration.labelled)
        st =
            cr_error_set(err, CR_INVALID,
                         "max-wrong: the palette (%s) was calibrated without answers; run \"crayon "
                         "route calibrate\" with answered examples",
                         label(p));
    return st;
}

static void explain_conf(const struct cr_signals *s, struct cr_decision *d, bool low)
{
    if (isnan(s->confidence)) /* no answer was made, and none would do */
        cr_decision_why(d, "any confidence is below %.3f", (double)d->min_confidence);
    else
        cr_decision_why(d, "confidence %.3f is %s %.3f", (double)s->confidence,
                        low ? "below" : "not below", (double)d->min_confidence);
}

static void explain_scope(const struct cr_signals *s, struct cr_decision *d, bool far)
{
    cr_decision_why(d, "%s: %.2f deviations from the task, limit %.2f",
                    far ? "out of scope" : "in scope", (double)s->demand_scope, (double)d->max_far);
}

static void decide_random(double budget, const struct cr_signals *s, struct cr_decision *d)
{
    double u = (double)(s->request >> 11) * 0x1p-53; /* uniform in [0, 1) */
    d->server = u < budget;
    cr_decision_why(d, "random draw %.4f is %s the budget %.4f", u,
                    d->server ? "below" : "not below", budget);
}

static void decide_learned(const struct cr_calibration *c, double threshold,
                           const struct cr_signals *s, struct cr_decision *d)
{
    double score = cr_learned_score(&c->learned, s);
    d->gain = (float)cr_learned_chance(score);
    d->max_gain = (float)cr_learned_chance(threshold);
    d->server = score > threshold;
    cr_decision_why(d, "the chance that a server mends the answer is %.3f, %s %.3f",
                    (double)d->gain, d->server ? "above" : "not above", (double)d->max_gain);
}

/* Sent when conf is above its threshold or scope above its own; NAN: plays no part. What is not
 * known is demanding. */
static void decide_by(double conf, double scope, const struct cr_signals *s, struct cr_decision *d)
{
    bool low = false, far = false;
    if (!isnan(conf)) {
        d->min_confidence = (float)(1 - conf);
        low = isnan(s->demand_conf) || (double)s->demand_conf > conf;
    }
    if (!isnan(scope)) {
        d->max_far = (float)scope;
        far = isnan(s->demand_scope) || s->demand_scope > d->max_far;
    }
    d->server = low || far;
    if (far || isnan(conf))
        explain_scope(s, d, far);
    else if (low || isnan(scope))
        explain_conf(s, d, low);
    else
        cr_decision_why(d, "confidence %.3f is not below %.3f and in scope (%.2f of %.2f)",
                        (double)s->confidence, (double)d->min_confidence, (double)s->demand_scope,
                        (double)d->max_far);
}

static void begin(struct cr_decision *d, const struct cr_signals *s)
{
    *d = (struct cr_decision){.confidence = s->confidence,
                              .scope = s->scope,
                              .min_confidence = NAN,
                              .max_far = NAN,
                              .gain = NAN,
                              .max_gain = NAN};
}

void cr_rule_decide(enum cr_rule r, double budget, const cr_palette *p, const struct cr_signals *s,
                    struct cr_decision *d)
{
    struct cr_error err;
    begin(d, s);
    if (cr_rule_ready(r, budget, p, s->options, &err) != CR_OK) {
        cr_decision_why(d, "%s", err.msg);
        return;
    }
    if (budget <= 0 || budget >= 1) {
        d->server = budget >= 1;
        cr_decision_why(d, "the budget is %g", budget);
        return;
    }
    if (r == CR_RULE_RANDOM) {
        decide_random(budget, s, d);
        return;
    }
    const struct cr_calibration *c = &p->calibration;
    double level = 1 - budget;
    if (r == CR_RULE_LEARNED) {
        decide_learned(c, cr_calibration_quantile(c->learned.knots, level), s, d);
        return;
    }
    if (r == CR_RULE_CRAYON)
        level = cr_calibration_quantile(c->either, level);
    decide_by(r == CR_RULE_SCOPE ? (double)NAN : cr_calibration_quantile(c->conf, level),
              r == CR_RULE_CONF ? (double)NAN : cr_calibration_quantile(c->scope, level), s, d);
}

/* The threshold that belongs to a level of CRAYON's ranks; a level below all ranks accepts none. */
static double at_level(const float *knots, double level)
{
    return level < 0 ? -INFINITY : cr_calibration_quantile(knots, level);
}

void cr_rule_decide_wrong(enum cr_rule r, double max_wrong, const cr_palette *p,
                          const struct cr_signals *s, struct cr_decision *d)
{
    struct cr_error err;
    begin(d, s);
    if (cr_rule_ready_wrong(r, max_wrong, p, s->options, &err) != CR_OK) {
        cr_decision_why(d, "%s", err.msg);
        return;
    }
    const struct cr_calibration *c = &p->calibration;
    const struct cr_learned *l = &c->learned;
    double conf = NAN, scope = NAN;
    if (r == CR_RULE_LEARNED) {
        decide_learned(c, cr_calibration_accept(l->knots, l->wrong, l->n_rows, max_wrong), s, d);
        return;
    }
    if (r == CR_RULE_CONF)
        conf = cr_calibration_accept(c->conf, c->wrong_conf, c->n_rows, max_wrong);
    if (r == CR_RULE_SCOPE)
        scope = cr_calibration_accept(c->scope, c->wrong_scope, c->n_rows, max_wrong);
    if (r == CR_RULE_CRAYON) {
        double level = cr_calibration_accept(c->either, c->wrong_either, c->n_rows, max_wrong);
        conf = at_level(c->conf, level);
        scope = at_level(c->scope, level);
    }
    decide_by(conf, scope, s, d);
}
