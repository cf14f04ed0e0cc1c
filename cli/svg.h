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

struct cr_line {
    const char *name;
    const double *x, *y; /* [n], x rising */
    size_t n;
};
struct cr_line_chart {
    const char *title, *subtitle, *x_name, *y_name;
    const struct cr_line *lines; /* [n] */
    size_t n;
};
/* Lines over a common x from 0 to 100, the names at their ends in a legend (svg_lines.c). */
void cr_svg_lines(struct cr_buf *out, const struct cr_line_chart *c);

/* Parts of every chart: opening tag with styles and titles; one text, escaped. The caller writes
 * "</svg>". */
enum { CR_SVG_HUES = 8 };
extern const char *const cr_svg_hues[CR_SVG_HUES];
void cr_svg_head(struct cr_buf *out, double width, double height, const char *title,
                 const char *subtitle);
void cr_svg_text(struct cr_buf *out, double x, double y, const char *css, const char *anchor,
                 const char *s);

#endif
