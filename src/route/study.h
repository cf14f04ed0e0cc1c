/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How well do the rules choose? From answered examples: accuracy against the share sent for each
 * rule, beside the straight line of RANDOM and the oracle, and how well each signal tells wrong
 * answers from right ones.
 *
 * Honest by cross-fitting: the thresholds for each half of the rows come from the other half.
 */
#ifndef CR_STUDY_H
#define CR_STUDY_H

#include "route/learned.h"
#include "route/rules.h"

enum { CR_STUDY_POINTS = 8 };
extern const double cr_study_budgets[CR_STUDY_POINTS]; /* 0 .05 .1 .2 .3 .5 .75 1 */

struct cr_study {
    size_t n;
    bool server_known; /* else the server is taken to be always right: an upper bound */
    bool has_scope;
    double device_accuracy, server_accuracy;
    /* [budget][rule]; NAN for a rule that lacks scope or rows */
    double sent[CR_STUDY_POINTS][CR_RULE_COUNT];     /* realised share */
    double accuracy[CR_STUDY_POINTS][CR_RULE_COUNT]; /* of all answers */
    double line[CR_STUDY_POINTS];                    /* random: device + budget (server - device) */
    double oracle[CR_STUDY_POINTS]; /* sends where only the server is right first */
    double area[CR_RULE_COUNT]; /* mean accuracy above the line over shares 0..1, by the ranking */
    double area_oracle;
    /* "wrong" told by each signal, the larger the more wrong; NAN where unknown */
    double auroc_conf, auroc_p1, auroc_margin, auroc_entropy, auroc_length, auroc_change,
        auroc_scope, auroc_quantile[CR_N_QUANTILES];
};

/* CR_INVALID for fewer than 4 rows or a row without a confidence. */
enum cr_status cr_study_make(struct cr_study *out, const struct cr_study_row *rows, size_t n,
                             bool server_known, struct cr_error *err);

#endif
