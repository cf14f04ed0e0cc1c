/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bar chart as SVG: groups of bars with whiskers, values above the bars, a legend below. Its
 * colours follow the reader's light or dark scheme; text is real text. No scripts, no outside
 * references.
 */
#ifndef CR_SVG_H
#define CR_SVG_H

#include "base/bytes.h"

struct cr_chart {
    const char *title, *subtitle, *unit; /* unit: of the values, such as "%" */
    size_t n_groups, n_series;
    const char *const *groups; /* [n_groups] */
    const char *const *series; /* [n_series] */
    /* [n_groups * n_series], series innermost; low > high: no whisker; NAN: no bar */
    const double *value, *low, *high;
};
void cr_svg_bars(struct cr_buf *out, const struct cr_chart *c);

#endif
