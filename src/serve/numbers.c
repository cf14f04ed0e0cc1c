/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers within bounds, and literal values, as rules. */
#include "serve/schema_impl.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS = 15, FRACTION = 6, MAX_RESIDUE = 128, MAX_MULTIPLES = 2000, MAX_NESTED = 2000 };
static const int64_t LARGEST = 999999999999999; /* exact in a double, and 15 digits */
static const int64_t SMALL = 999999999;         /* with six digits behind the point: still exact */

/* ---- digits ------------------------------------------------------------------------------- */

static uint32_t digit_rule(cr_grammar *g)
{
    uint32_t rule = cr_rule_new(g);
    struct cr_row r;
    cr_row_init(&r, g);
    cr_row_range(&r, '0', '9');
    cr_rule_add(&r, rule);
    return rule;
}

/* All texts of n digits from a to b, as alternatives of a new rule. */
static uint32_t same_length(cr_grammar *g, uint64_t a, uint64_t b, int n, uint32_t digit)
{
    uint32_t rule = cr_rule_new(g);
    struct cr_row r;
    uint64_t unit = 1;
    for (int i = 1; i < n; i++)
        unit *= 10;
    cr_row_init(&r, g);
    if (n == 0) {
        cr_rule_add(&r, rule);
        return rule;
    }
    uint64_t first = a / unit, last = b / unit;
    bool whole_first = a % unit == 0, whole_last = b % unit == unit - 1;
    if (first == last && !(whole_first && whole_last)) {
        cr_row_byte(&r, (char)('0' + first));
        cr_row_rule(&r, same_length(g, a % unit, b % unit, n - 1, digit));
        cr_rule_add(&r, rule);
        return rule;
    }
    if (!whole_first) {
        cr_row_byte(&r, (char)('0' + first++));
        cr_row_rule(&r, same_length(g, a % unit, unit - 1, n - 1, digit));
        cr_rule_add(&r, rule);
    }
    if (!whole_last) {
        cr_row_byte(&r, (char)('0' + last--));
        cr_row_rule(&r, same_length(g, 0, b % unit, n - 1, digit));
        cr_rule_add(&r, rule);
    }
    if (first <= last) { /* as unsigned: last is never below 0, for first was less */
        cr_row_range(&r, (unsigned)('0' + first), (unsigned)('0' + last));
        cr_row_repeat(&r, digit, (uint32_t)n - 1, (uint32_t)n - 1);
        cr_rule_add(&r, rule);
    }
    return rule;
}

/* The numbers from a to b without leading zeros; behind them `tail` where it is not 0. */
static void add_between(cr_grammar *g, uint32_t rule, const char *sign, int64_t a, int64_t b,
                        uint32_t tail, uint32_t digit)
{
    uint64_t low = 0, high = 9;
    for (int n = 1; n <= DIGITS && a <= b; n++) {
        uint64_t from = (uint64_t)a > low ? (uint64_t)a : low,
                 to = (uint64_t)b < high ? (uint64_t)b : high;
        if (from <= to) {
            struct cr_row r;
            cr_row_init(&r, g);
            cr_row_text(&r, sign, strlen(sign));
            cr_row_rule(&r, same_length(g, from, to, n, digit));
            if (tail)
                cr_row_rule(&r, tail);
            cr_rule_add(&r, rule);
        }
        low = high + 1;
        high = high * 10 + 9;
    }
}

/* Integers from lo to hi. */
static void add_integers(cr_grammar *g, uint32_t rule, int64_t lo, int64_t hi)
{
    uint32_t digit = digit_rule(g);
    add_between(g, rule, "", lo > 0 ? lo : 0, hi, 0, digit);
    if (lo < 0)
        add_between(g, rule, "-", hi < 0 ? -hi : 1, -lo, 0, digit);
}

/* ---- bounds ------------------------------------------------------------------------------- */

struct bounds {
    double lo, hi;
    bool lo_open, hi_open; /* the bound itself is out */
    bool any;              /* at least one was given */
};

static bool read_bound(struct cr_compiler *c, json_t *schema, const char *name, double *out,
                       bool *given)
{
    json_t *v = json_object_get(schema, name);
    *given = v != NULL;
    if (v && !json_is_number(v))
        return cr_schema_refuse(c, name, "want a number");
    if (v)
        *out = json_number_value(v);
    return true;
}

static bool read_bounds(struct cr_compiler *c, json_t *schema, struct bounds *b)
{
    double v = 0;
    bool given;
    *b = (struct bounds){.lo = -INFINITY, .hi = INFINITY};
    if (!read_bound(c, schema, "minimum", &v, &given))
        return false;
    if (given)
        b->lo = v;
    b->any |= given;
    if (!read_bound(c, schema, "exclusiveMinimum", &v, &given))
        return false;
    if (given && v >= b->lo)
        b->lo = v, b->lo_open = true;
    b->any |= given;
    if (!read_bound(c, schema, "maximum", &v, &given))
        return false;
    if (given)
        b->hi = v;
    b->any |= given;
    if (!read_bound(c, schema, "exclusiveMaximum", &v, &given))
        return false;
    if (given && v <= b->hi)
        b->hi = v, b->hi_open = true;
    b->any |= given;
    return true;
}

/* The integers within the bounds, cut to 15 digits. */
static void integer_bounds(const struct bounds *b, int64_t *lo, int64_t *hi)
{
    double l = ceil(b->lo), h = floor(b->hi);
    if (b->lo_open && l == b->lo)
        l++;
    if (b->hi_open && h == b->hi)
        h--;
    *lo = l < -(double)LARGEST ? -LARGEST : l > (double)LARGEST ? LARGEST + 1 : (int64_t)l;
    *hi = h > (double)LARGEST ? LARGEST : h < -(double)LARGEST ? -LARGEST - 1 : (int64_t)h;
}

/* ---- multiples ---------------------------------------------------------------------------- */

/* Texts of digits whose number is a multiple of m: one rule for each remainder. */
static void add_multiples(cr_grammar *g, uint32_t rule, unsigned m)
{
    uint32_t rules[MAX_RESIDUE];
    struct cr_row r;
    cr_row_init(&r, g);
    for (unsigned k = 0; k < m; k++)
        rules[k] = cr_rule_new(g);
    for (unsigned k = 0; k < m; k++) {
        if (k == 0)
            cr_rule_add(&r, rules[k]);
        for (unsigned d = 0; d < 10; d++) {
            cr_row_byte(&r, (char)('0' + d));
            cr_row_rule(&r, rules[(k * 10 + d) % m]);
            cr_rule_add(&r, rules[k]);
        }
    }
    cr_row_byte(&r, '0');
    cr_rule_add(&r, rule);
    for (unsigned sign = 0; sign < 2; sign++)
        for (unsigned d = 1; d < 10; d++) {
            cr_row_text(&r, "-", sign);
            cr_row_byte(&r, (char)('0' + d));
            cr_row_rule(&r, rules[d % m]);
            cr_rule_add(&r, rule);
        }
}

static bool multiples(struct cr_compiler *c, json_t *v, const struct bounds *b, uint32_t rule)
{
    double m = json_is_number(v) ? json_number_value(v) : 0;
    int64_t lo, hi;
    if (!(m >= 1) || m != floor(m) || m > 1e9)
        return cr_schema_refuse(c, "multipleOf", "only whole numbers from 1 to 10^9 are supported");
    integer_bounds(b, &lo, &hi);
    if (m == 1) {
        add_integers(c->g, rule, lo, hi);
        return true;
    }
    int64_t step = (int64_t)m;
    if (b->any && hi >= lo && (hi - lo) / step <= MAX_MULTIPLES) {
        int64_t first = lo / step * step;
        json_t *values = json_array();
        for (int64_t x = first < lo ? first + step : first; x <= hi; x += step)
            json_array_append_new(values, json_integer(x));
        json_array_append_new(c->keep, values);
        return cr_schema_literals(c, values, rule);
    }
    if (b->any || m > MAX_RESIDUE)
        return cr_schema_refuse(c, "multipleOf", "%g within these bounds is not supported", m);
    add_multiples(c->g, rule, (unsigned)step);
    return true;
}

/* ---- numbers with a fraction ---------------------------------------------------------------- */

/* "." and digits; not_zero: one of them at least is none. */
static uint32_t fraction_rule(cr_grammar *g, uint32_t digit, uint32_t most, bool not_zero)
{
    uint32_t rule = cr_rule_new(g);
    struct cr_row r;
    cr_row_init(&r, g);
    cr_row_byte(&r, '.');
    cr_row_repeat(&r, digit, not_zero ? 0 : 1, not_zero ? most - 1 : most);
    if (not_zero)
        cr_row_range(&r, '1', '9');
    cr_rule_add(&r, rule);
    return rule;
}

static void any_number(cr_grammar *g, uint32_t rule)
{
    uint32_t digit = digit_rule(g), whole = cr_rule_new(g), sign = cr_rule_new(g),
             exponent = cr_rule_new(g), fraction = fraction_rule(g, digit, DIGITS, false);
    uint32_t e[8] = {0};
    struct cr_row r;
    cr_row_init(&r, g);
    cr_row_byte(&r, '0');
    cr_rule_add(&r, whole);
    cr_row_range(&r, '1', '9');
    cr_row_repeat(&r, digit, 0, DIGITS - 1);
    cr_rule_add(&r, whole);
    cr_row_byte(&r, '+');
    cr_rule_add(&r, sign);
    cr_row_byte(&r, '-');
    cr_rule_add(&r, sign);
    e['e' / 32] |= (uint32_t)1 << 'e' % 32;
    e['E' / 32] |= (uint32_t)1 << 'E' % 32;
    cr_row_set(&r, e);
    cr_row_repeat(&r, sign, 0, 1);
    cr_row_repeat(&r, digit, 1, 2);
    cr_rule_add(&r, exponent);
    uint32_t minus = cr_rule_new(g);
    cr_row_byte(&r, '-');
    cr_rule_add(&r, minus);
    cr_row_repeat(&r, minus, 0, 1);
    cr_row_rule(&r, whole);
    cr_row_repeat(&r, fraction, 0, 1);
    cr_row_repeat(&r, exponent, 0, 1);
    cr_rule_add(&r, rule);
}

/* n.f of one sign: n from `least`, which is open when n itself is out, to below `most`. */
static void add_fractions(cr_grammar *g, uint32_t rule, const char *sign, double least, bool open,
                          double most)
{
    uint32_t digit = digit_rule(g);
    double from = least <= 0 ? 0 : ceil(least), to = floor(most) - 1;
    to = to < (double)SMALL ? to : (double)SMALL;
    if (!(from <= to))
        return;
    if (open && from == (least <= 0 ? 0 : least) && least >= 0) {
        add_between(g, rule, sign, (int64_t)from, (int64_t)from,
                    fraction_rule(g, digit, FRACTION, true), digit);
        from++;
    }
    if (from <= to)
        add_between(g, rule, sign, (int64_t)from, (int64_t)to,
                    fraction_rule(g, digit, FRACTION, false), digit);
}

bool cr_schema_number(struct cr_compiler *c, json_t *schema, bool whole, uint32_t rule)
{
    struct bounds b;
    int64_t lo, hi;
    if (!read_bounds(c, schema, &b))
        return false;
    json_t *multiple = json_object_get(schema, "multipleOf");
    if (multiple)
        return multiples(c, multiple, &b, rule);
    if (!whole && !b.any) {
        any_number(c->g, rule);
        return true;
    }
    integer_bounds(&b, &lo, &hi);
    const int64_t most = whole ? LARGEST : SMALL;
    double below = floor(b.hi), above = ceil(b.lo);
    if (!whole && b.lo <= b.hi && lo > hi && !(below - 1 >= above || below > above))
        return cr_schema_refuse(c, b.lo_open ? "exclusiveMinimum" : "minimum",
                                "no whole number lies within the bounds");
    if (lo > hi && b.lo <= b.hi && (b.lo > (double)most || b.hi < -(double)most))
        return cr_schema_refuse(c, b.lo > 0 ? "minimum" : "maximum",
                                "numbers of more than %d digits are not supported", DIGITS);
    add_integers(c->g, rule, lo, hi);
    if (!whole && b.hi > 0)
        add_fractions(c->g, rule, "", b.lo, b.lo_open, b.hi);
    if (!whole && b.lo < 0)
        add_fractions(c->g, rule, "-", -b.hi, b.hi_open, -b.lo);
    return true;
}

/* ---- literals ----------------------------------------------------------------------------- */

struct text {
    char *s;
    size_t n;
};

static int by_text(const void *a, const void *b)
{
    const struct text *x = a, *y = b;
    int order = memcmp(x->s, y->s, x->n < y->n ? x->n : y->n);
    return order ? order : (x->n > y->n) - (x->n < y->n);
}

/* Texts [from, to) share their first `at` bytes; their rests become alternatives. */
static bool add_texts(cr_grammar *g, uint32_t rule, const struct text *v, size_t from, size_t to,
                      size_t at, int depth)
{
    struct cr_row r;
    if (depth > MAX_NESTED)
        return false;
    cr_row_init(&r, g);
    if (v[from].n == at)
        cr_rule_add(&r, rule);
    while (from < to && v[from].n == at)
        from++;
    while (from < to) {
        size_t end = from + 1, same = at + 1;
        while (end < to && v[end].s[at] == v[from].s[at])
            end++;
        while (same < v[from].n && same < v[end - 1].n && v[from].s[same] == v[end - 1].s[same])
            same++;
        cr_row_text(&r, v[from].s + at, same - at);
        if (same < v[end - 1].n) {
            uint32_t rest = cr_rule_new(g);
            cr_row_rule(&r, rest);
            cr_rule_add(&r, rule);
            if (!add_texts(g, rest, v, from, end, same, depth + 1))
                return false;
        } else {
            cr_rule_add(&r, rule);
        }
        from = end;
    }
    return true;
}

bool cr_schema_literals(struct cr_compiler *c, json_t *values, uint32_t rule)
{
    size_t n = json_array_size(values), i;
    struct text *v = cr_alloc0(n, sizeof *v);
    json_t *one;
    bool ok = v != NULL;
    json_array_foreach(values, i, one)
    {
        if (ok && !(v[i].s = cr_api_string(one, &v[i].n)))
            ok = false;
    }
    if (ok && n) {
        qsort(v, n, sizeof *v, by_text);
        ok = add_texts(c->g, rule, v, 0, n, 0, 0);
    }
    for (i = 0; v && i < n; i++)
        cr_free(v[i].s);
    cr_free(v);
    return ok || cr_schema_refuse(c, "enum", "is too large");
}
