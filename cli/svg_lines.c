/* SPDX-License-Identifier: Apache-2.0 */
/* The line chart: a few series over 0 to 100, in the style of svg.c. */
#include "svg.h"

#include <math.h>
#include <stdio.h>

enum { WIDTH = 560, LEFT = 60, RIGHT = 130, TOP = 76, PLOT = 280, BOTTOM = 52 };

struct range {
    double low, high, step;
};

static struct range range_of(const struct cr_line_chart *c)
{
    double low = 100, high = 0;
    for (size_t i = 0; i < c->n; i++)
        for (size_t k = 0; k < c->lines[i].n; k++) {
            low = fmin(low, c->lines[i].y[k]);
            high = fmax(high, c->lines[i].y[k]);
        }
    struct range r = {.step = high - low > 40 ? 20 : high - low > 15 ? 10 : 5};
    r.low = fmax(0, floor(low / r.step) * r.step);
    r.high = fmax(ceil(high / r.step) * r.step, r.low + r.step);
    return r;
}

static double x_at(double x)
{
    return LEFT + (WIDTH - LEFT - RIGHT) * x / 100;
}

static double y_at(const struct range *r, double y)
{
    return TOP + PLOT * (1 - (y - r->low) / (r->high - r->low));
}

static void axes(struct cr_buf *out, const struct cr_line_chart *c, const struct range *r)
{
    char label[32];
    for (double v = r->low; v <= r->high + 1e-9; v += r->step) {
        cr_buf_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                      LEFT, WIDTH - RIGHT, y_at(r, v), y_at(r, v));
        snprintf(label, sizeof label, "%g", v);
        cr_svg_text(out, LEFT - 8, y_at(r, v) + 4, "tick", "end", label);
    }
    for (int v = 0; v <= 100; v += 20) {
        snprintf(label, sizeof label, "%d", v);
        cr_svg_text(out, x_at(v), TOP + PLOT + 18, "tick", "middle", label);
    }
    cr_svg_text(out, x_at(50), TOP + PLOT + 38, "note", "middle", c->x_name);
    cr_svg_text(out, LEFT - 40, TOP - 10, "note", "start", c->y_name);
}

static void line(struct cr_buf *out, const struct cr_line *l, const struct range *r, size_t i)
{
    const char *hue = cr_svg_hues[i % CR_SVG_HUES];
    cr_buf_puts(out, "<polyline fill=\"none\" stroke-width=\"2\" points=\"");
    for (size_t k = 0; k < l->n; k++)
        cr_buf_printf(out, "%.1f,%.1f ", x_at(l->x[k]), y_at(r, l->y[k]));
    cr_buf_printf(out, "\" stroke=\"%s\"%s/>\n", hue, i ? "" : " stroke-dasharray=\"5 4\"");
    for (size_t k = 0; k < l->n; k++)
        cr_buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"/>\n",
                      x_at(l->x[k]), y_at(r, l->y[k]), hue);
    double y = TOP + 14 + 22 * (double)i;
    cr_buf_printf(out,
                  "<rect x=\"%d\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\" fill=\"%s\"/>\n",
                  WIDTH - RIGHT + 20, y, hue);
    cr_svg_text(out, WIDTH - RIGHT + 38, y + 10, "name", "start", l->name);
}

void cr_svg_lines(struct cr_buf *out, const struct cr_line_chart *c)
{
    struct range r = range_of(c);
    cr_svg_head(out, WIDTH, TOP + PLOT + BOTTOM, c->title, c->subtitle);
    axes(out, c, &r);
    for (size_t i = 0; i < c->n; i++)
        line(out, &c->lines[i], &r, i);
    cr_buf_puts(out, "</svg>\n");
}
