/* SPDX-License-Identifier: Apache-2.0 */
/* The bar chart. All numbers are in pixels of the picture; it scales without loss. */
#include "svg.h"

#include "messages.h"

#include <math.h>
#include <string.h>

enum {
    LEFT = 56,
    RIGHT = 20,
    TOP = 76,
    PLOT = 260, /* height of the plot */
    BAR = 22,   /* width of a bar; a gap of 4 follows */
    STEP = 26,
    GROUP_GAP = 36,
    LEGEND_ROW = 22,
    LEGEND_COLUMN = 170,
};

/* Eight hues that differ in lightness too; series beyond eight repeat them, hatched by opacity. */
const char *const cr_svg_hues[CR_SVG_HUES] = {"#8a8f98", "#3b6fd4", "#e08a2e", "#2f9e6e",
                                              "#c9485b", "#8b5fc7", "#1f9bb0", "#b59a2a"};

static void escaped(struct cr_buf *out, const char *s)
{
    struct cr_buf clean;
    cr_buf_init(&clean, 1 << 16);
    cr_sanitise(&clean, s, strlen(s));
    for (const char *p = clean.data ? clean.data : ""; *p; p++) {
        if (*p == '<')
            cr_buf_puts(out, "&lt;");
        else if (*p == '>')
            cr_buf_puts(out, "&gt;");
        else if (*p == '&')
            cr_buf_puts(out, "&amp;");
        else if (*p == '"')
            cr_buf_puts(out, "&quot;");
        else
            cr_buf_add(out, p, 1);
    }
    cr_buf_deinit(&clean);
}

void cr_svg_text(struct cr_buf *out, double x, double y, const char *css, const char *anchor,
                 const char *s)
{
    cr_buf_printf(out, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", css, x, y,
                  anchor);
    escaped(out, s);
    cr_buf_puts(out, "</text>\n");
}

/* The smallest of 1, 2, 5 times a power of ten that is at least v. */
static double round_up(double v)
{
    double p = pow(10, floor(log10(v)));
    return v <= p ? p : v <= 2 * p ? 2 * p : v <= 5 * p ? 5 * p : 10 * p;
}

struct frame {
    double width, height, top_value;
    size_t columns; /* of the legend */
};

static double y_of(const struct frame *f, double v)
{
    return TOP + PLOT * (1 - fmin(fmax(v / f->top_value, 0), 1));
}

static struct frame frame_of(const struct cr_chart *c)
{
    struct frame f = {0};
    double most = 0;
    for (size_t i = 0; i < c->n_groups * c->n_series; i++) {
        if (isfinite(c->value[i]))
            most = fmax(most, c->value[i]);
        if (c->low[i] <= c->high[i])
            most = fmax(most, c->high[i]);
    }
    double step = round_up(fmax(most, 1e-6) / 5);
    f.top_value = step * ceil(fmax(most, 1e-6) / step * (1 - 1e-9));
    double plot = (double)c->n_groups * ((double)c->n_series * STEP + GROUP_GAP);
    f.width = fmax(LEFT + plot + RIGHT, 480);
    f.columns = (size_t)((f.width - LEFT) / LEGEND_COLUMN);
    f.columns = f.columns ? f.columns : 1;
    size_t rows = (c->n_series + f.columns - 1) / f.columns;
    f.height = TOP + PLOT + 48 + (double)rows * LEGEND_ROW + 12;
    return f;
}

void cr_svg_head(struct cr_buf *out, double width, double height, const char *title,
                 const char *subtitle)
{
    cr_buf_printf(out,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                  "width=\"%.0f\" height=\"%.0f\" role=\"img\">\n<title>",
                  width, height, width, height);
    escaped(out, title);
    cr_buf_puts(out, "</title>\n<style>\n"
                     "text { font-family: system-ui, sans-serif; }\n"
                     ".page { fill: #ffffff; }\n"
                     ".title { font-size: 17px; font-weight: 600; fill: #1d2127; }\n"
                     ".note, .tick, .value { font-size: 11px; fill: #5a626d; }\n"
                     ".value { font-size: 9.5px; }\n"
                     ".name { font-size: 12px; fill: #1d2127; }\n"
                     ".grid { stroke: #dde1e6; stroke-width: 1; }\n"
                     ".whisker { stroke: #1d2127; stroke-width: 1.2; opacity: .7; }\n"
                     "@media (prefers-color-scheme: dark) {\n"
                     ".page { fill: #15181d; }\n"
                     ".title, .name { fill: #e8eaed; }\n"
                     ".note, .tick, .value { fill: #a9b1bc; }\n"
                     ".grid { stroke: #2c323a; }\n"
                     ".whisker { stroke: #e8eaed; }\n"
                     "}\n</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n");
    cr_svg_text(out, LEFT - 40, 30, "title", "start", title);
    cr_svg_text(out, LEFT - 40, 50, "note", "start", subtitle);
}

static void grid(struct cr_buf *out, const struct cr_chart *c, const struct frame *f)
{
    double step = round_up(f->top_value / 5.001);
    for (double v = 0; v <= f->top_value * 1.0001; v += step) {
        char label[32];
        struct cr_buf b;
        cr_buf_init(&b, sizeof label);
        cr_buf_printf(&b, "%g%s", v, c->unit);
        cr_buf_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                      LEFT, f->width - RIGHT, y_of(f, v), y_of(f, v));
        cr_svg_text(out, LEFT - 8, y_of(f, v) + 4, "tick", "end", b.data ? b.data : "");
        cr_buf_deinit(&b);
    }
}

static void bar(struct cr_buf *out, const struct cr_chart *c, const struct frame *f, size_t at,
                size_t series, double x)
{
    double v = c->value[at], y = y_of(f, v), label_y = y;
    if (!isfinite(v))
        return;
    cr_buf_printf(out,
                  "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" rx=\"2\" fill=\"%s\" "
                  "opacity=\"%s\"><title>",
                  x, y, BAR, TOP + PLOT - y, cr_svg_hues[series % CR_SVG_HUES],
                  series < CR_SVG_HUES ? "1" : ".55");
    escaped(out, c->series[series]);
    cr_buf_printf(out, ": %.1f%s</title></rect>\n", v, c->unit);
    if (c->low[at] <= c->high[at]) {
        double mid = x + BAR / 2.0, a = y_of(f, c->low[at]), b = y_of(f, c->high[at]);
        cr_buf_printf(out,
                      "<path class=\"whisker\" fill=\"none\" d=\"M%.1f %.1fH%.1fM%.1f %.1fV%.1f"
                      "M%.1f %.1fH%.1f\"/>\n",
                      mid - 4, b, mid + 4, mid, b, a, mid - 4, a, mid + 4);
        label_y = b;
    }
    cr_buf_printf(
        out, "<text class=\"value\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.1f</text>\n",
        x + BAR / 2.0, label_y - 4, v);
}

static void legend(struct cr_buf *out, const struct cr_chart *c, const struct frame *f)
{
    double y = TOP + PLOT + 48;
    for (size_t i = 0; i < c->n_series; i++) {
        double x = LEFT + (double)(i % f->columns) * LEGEND_COLUMN;
        double at = y + (double)(i / f->columns) * LEGEND_ROW;
        cr_buf_printf(out,
                      "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\" "
                      "fill=\"%s\" opacity=\"%s\"/>\n",
                      x, at, cr_svg_hues[i % CR_SVG_HUES], i < CR_SVG_HUES ? "1" : ".55");
        cr_svg_text(out, x + 18, at + 10, "name", "start", c->series[i]);
    }
}

void cr_svg_bars(struct cr_buf *out, const struct cr_chart *c)
{
    struct frame f = frame_of(c);
    cr_svg_head(out, f.width, f.height, c->title, c->subtitle);
    grid(out, c, &f);
    double x = LEFT + GROUP_GAP / 2.0;
    for (size_t g = 0; g < c->n_groups; g++) {
        double width = (double)c->n_series * STEP;
        for (size_t s = 0; s < c->n_series; s++)
            bar(out, c, &f, g * c->n_series + s, s, x + (double)s * STEP);
        cr_svg_text(out, x + width / 2, TOP + PLOT + 20, "name", "middle", c->groups[g]);
        x += width + GROUP_GAP;
    }
    legend(out, c, &f);
    cr_buf_puts(out, "</svg>\n");
}
