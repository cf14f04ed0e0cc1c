/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What labels add to a calibration: the LEARNED rule and the conformal thresholds.
 *
 * LEARNED is a logistic model of "the device is wrong and the server right" over the signals. It is
 * fitted on answered rows: those of a labelled file of the user, or of tasks held out from the
 * pool, so that the user need not label anything. Its score is the log-odds.
 *
 * Conformal thresholds (Angelopoulos et al., Conformal Risk Control, arXiv 2208.02814): of n rows
 * exchangeable with the questions to come, let w(t) be those that are wrong and whose demand is at
 * most t. The largest t with (w(t) + 1) / (n + 1) <= epsilon accepts, on average over
 * calibrations, at most a share epsilon of questions whose answer is wrong, and sends the rest.
 */
#ifndef CR_LEARNED_H
#define CR_LEARNED_H

#include "route/signals.h"

struct cr_study_row { /* an answered example */
    struct cr_signals signals;
    bool device_right;
    bool server_right; /* read only where the server is known */
};

/* Fits the weights by Newton's method with a ridge of 1 on standardised features. server_known
 * false: the server is taken to be always right. CR_INVALID with fewer than 20 rows, or where all
 * of them or none would gain. */
enum cr_status cr_learned_fit(struct cr_learned *out, const struct cr_study_row *rows, size_t n,
                              bool server_known, struct cr_error *err);
/* The log-odds; what is not known counts as usual. */
double cr_learned_score(const struct cr_learned *l, const struct cr_signals *s);
/* e^x / (1 + e^x). */
double cr_learned_chance(double log_odds);

/*
 * Adds to c, which cr_calibration_fit made from the same rows: how many wrong answers lie below
 * each knot and, with `given` or else fitted on every second row, the LEARNED rule with knots from
 * the rows that it was not fitted on. Where it cannot be fitted c->learned.n_rows stays 0 and *why
 * says so ("" otherwise); the rest is filled. why may be NULL.
 */
enum cr_status cr_calibration_label(struct cr_calibration *c, const struct cr_study_row *rows,
                                    size_t n, bool server_known, const struct cr_learned *given,
                                    char why[160], struct cr_error *err);

/* The LEARNED rule `given` with knots from rows whose answers nobody knows: for budgets, not for
 * bounds. */
enum cr_status cr_calibration_learned(struct cr_calibration *c, const struct cr_study_row *rows,
                                      size_t n, const struct cr_learned *given,
                                      struct cr_error *err);

/* The largest knot that accepts at most a share max_wrong of wrong answers; -INFINITY when not even
 * the lowest does, or nothing is known. wrong[k]: wrong rows with a score of at most knot k. */
double cr_calibration_accept(const float knots[CR_CALIBRATION_KNOTS],
                             const int wrong[CR_CALIBRATION_KNOTS], int n, double max_wrong);
/* The share of the rows that this keeps. */
double cr_calibration_kept(const float knots[CR_CALIBRATION_KNOTS],
                           const int wrong[CR_CALIBRATION_KNOTS], int n, double max_wrong);

#endif
