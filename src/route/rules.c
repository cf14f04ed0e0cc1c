/* SPDX-License-Identifier: Apache-2.0 */
/* The four rules. Nothing here sees the text of a request (attack 43). */
#include "route/rules.h"

#include "route/calibrate.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const names[CR_RULE_COUNT] = {"random", "conf", "scope", "crayon"};

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

enum cr_status cr_rule_ready(enum cr_rule r, double budget, const cr_palette *p, bool options,
                             struct cr_error *err)
{
    if (!(budget >= 0 && budget <= 1))
        return cr_error_set(err, CR_INVALID, "budget: want a share from 0 to 1, found %g", budget);
    if (r == CR_RULE_RANDOM || budget <= 0 || budget >= 1)
        return CR_OK;
    if (!p)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: want a palette with a calibration, found no palette; give "
                            "--palette, or use --rule random",
                            names[r]);
    if (p->calibration.n_rows == 0)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: the palette (%s) has no calibration: run \"crayon route "
                            "calibrate\" once, or use --rule random",
                            names[r], label(p));
    if (r != CR_RULE_SCOPE && p->calibration.options != options)
        return cr_error_set(
            err, CR_INVALID, "rule %s: the palette (%s) is calibrated for %s, this answer is %s",
            names[r], label(p), p->calibration.options ? "options" : "generated text",
            options ? "an option" : "generated text");
    if (r != CR_RULE_CONF && !p->calibration.has_scope)
        return cr_error_set(err, CR_INVALID,
                            "rule %s: the palette (%s) has no scope statistics; use --rule conf",
                            names[r], label(p));
    return CR_OK;
}

static void explain_conf(const struct cr_signals *s, struct cr_decision *d, bool low)
{
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

void cr_rule_decide(enum cr_rule r, double budget, const cr_palette *p, const struct cr_signals *s,
                    struct cr_decision *d)
{
    struct cr_error err;
    *d = (struct cr_decision){
        .confidence = s->confidence, .scope = s->scope, .min_confidence = NAN, .max_far = NAN};
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
    if (r == CR_RULE_CRAYON)
        level = cr_calibration_quantile(c->either, level);
    bool low = false, far = false;
    if (r != CR_RULE_SCOPE) { /* an unknown confidence is low, an unknown scope is far */
        d->min_confidence = (float)(1 - cr_calibration_quantile(c->conf, level));
        low = isnan(s->demand_conf) ||
              (double)s->demand_conf > cr_calibration_quantile(c->conf, level);
    }
    if (r != CR_RULE_CONF) {
        d->max_far = (float)cr_calibration_quantile(c->scope, level);
        far = isnan(s->demand_scope) || s->demand_scope > d->max_far;
    }
    d->server = low || far;
    if (far || r == CR_RULE_SCOPE)
        explain_scope(s, d, far);
    else if (low || r == CR_RULE_CONF)
        explain_conf(s, d, low);
    else
        cr_decision_why(d, "confidence %.3f is not below %.3f and in scope (%.2f of %.2f)",
                        (double)s->confidence, (double)d->min_confidence, (double)s->demand_scope,
                        (double)d->max_far);
}
