/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who answers: a pure function of numbers. A question is sent when its demand passes the threshold
 * that the budget gives (calibrate.h):
 *   RANDOM  hash of the request below the budget
 *   CONF    demand_conf  > Q_conf(1 - budget)
 *   SCOPE   demand_scope > Q_scope(1 - budget)
 *   CRAYON  max(F_conf(demand_conf), F_scope(demand_scope)) > Q_either(1 - budget): confidence low
 *           or scope far, with both thresholds chosen so that the union meets the budget
 *   LEARNED the log-odds of "device wrong, server right" (learned.h) > their Q(1 - budget)
 * F is the distribution function of the calibration examples, Q its inverse. A demand equal to the
 * threshold stays on the device.
 *
 * Instead of by a budget the threshold may be chosen by a bound on errors: the largest one that
 * lets at most a share max_wrong of questions be kept and answered wrong (learned.h).
 */
#ifndef CR_RULES_H
#define CR_RULES_H

#include "route/signals.h"

enum cr_rule {
    CR_RULE_RANDOM,
    CR_RULE_CONF,
    CR_RULE_SCOPE,
    CR_RULE_CRAYON,
    CR_RULE_LEARNED,
    CR_RULE_COUNT
};
const char *cr_rule_name(enum cr_rule r); /* "random", "conf", "scope", "crayon", "learned" */
int cr_rule_by_name(const char *name);    /* -1 */

struct cr_decision {
    bool server;
    char why[480];           /* one printable sentence */
    float confidence, scope; /* of the signals; NAN: unknown */
    float min_confidence;    /* sent below it; NAN: confidence plays no part */
    float max_far;  /* sent when demand_scope is above it, in deviations; NAN: scope plays no
                     * part */
    float gain;     /* LEARNED: the chance that a server helps; else NAN */
    float max_gain; /* sent above it */
};

/* Sets d->why; bytes that are not printable become '?'. */
void cr_decision_why(struct cr_decision *d, const char *fmt, ...) CR_PRINTF(2, 3);

/* Whether the rule can hold the budget with this palette (NULL: none): CR_INVALID with what to do
 * about it when a calibration is missing, was made for the other kind of answer, or the budget is
 * not in [0, 1]. Rules with budget 0 or 1 need nothing. */
enum cr_status cr_rule_ready(enum cr_rule r, double budget, const cr_palette *p, bool options,
                             struct cr_error *err);
/* Decides; a rule that is not ready keeps the question on the device and says why. */
void cr_rule_decide(enum cr_rule r, double budget, const cr_palette *p, const struct cr_signals *s,
                    struct cr_decision *out);
/* The same by a bound on errors, max_wrong in (0, 1); RANDOM cannot give one. */
enum cr_status cr_rule_ready_wrong(enum cr_rule r, double max_wrong, const cr_palette *p,
                                   bool options, struct cr_error *err);
void cr_rule_decide_wrong(enum cr_rule r, double max_wrong, const cr_palette *p,
                          const struct cr_signals *s, struct cr_decision *out);

#endif
