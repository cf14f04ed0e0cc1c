/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From demand scores of in-task examples to thresholds. The scores are kept as 33 quantiles
 * (adapt/palette.h), Weibull's p = i / (n + 1), so that the expected share of a fresh question
 * above Q(1 - rho) is rho for any distribution; below 1 / (n + 1) no share can be held and the
 * largest score is the threshold.
 */
#ifndef CR_CALIBRATE_H
#define CR_CALIBRATE_H

#include "adapt/palette.h"

/* Fills c from demand scores [n]; scope NULL: not known. CR_INVALID for n < 2 or a value that is
 * not finite. */
enum cr_status cr_calibration_fit(struct cr_calibration *c, const float *conf, const float *scope,
                                  size_t n, bool options, struct cr_error *err);
/* The level of knot k: 1 - (1 - k / 32)^2. */
double cr_calibration_level(int k);
/* Q(level), level in [0, 1], and F(x), both linear between knots; F is 0 below and 1 above them. */
double cr_calibration_quantile(const float knots[CR_CALIBRATION_KNOTS], double level);
double cr_calibration_rank(const float knots[CR_CALIBRATION_KNOTS], double x);
/* The score of CRAYON: max of the ranks of both demands; an unknown demand has rank 1. */
double cr_calibration_either(const struct cr_calibration *c, float conf, float scope);
/* The knots of v [n], n >= 1, which is sorted. */
void cr_calibration_knots(float knots[CR_CALIBRATION_KNOTS], float *v, size_t n);
/* The smallest share that these examples can hold: 1 / (n_rows + 1). */
double cr_calibration_resolution(const struct cr_calibration *c);

/* Area under the curve of "score says positive": P(score of a positive > score of a negative),
 * ties half. NAN when one side is empty. */
double cr_auroc(const float *score, const bool *positive, size_t n);

#endif
