/* SPDX-License-Identifier: Apache-2.0 */
/* Sets of characters as rules over bytes. */
#include "serve/pattern.h"

#include <stdio.h>
#include <string.h>

void cr_chars_add(struct cr_chars *c, uint32_t first, uint32_t last)
{
    size_t i = 0, k;
    while (i < c->n && c->v[i].last + 1 < first)
        i++;
    for (k = i; k < c->n && c->v[k].first <= last + 1; k++) {
        first = c->v[k].first < first ? c->v[k].first : first;
        last = c->v[k].last > last ? c->v[k].last : last;
    }
    if (k == i && c->n == CR_CHARS_MAX) {
        c->failed = true;
        return;
    }
    memmove(c->v + i + 1, c->v + k, (c->n - k) * sizeof *c->v);
    c->n = c->n - (k - i) + 1;
    c->v[i].first = first;
    c->v[i].last = last;
}

void cr_chars_invert(struct cr_chars *c)
{
    struct cr_chars out = {.failed = c->failed};
    uint32_t at = 0;
    for (size_t i = 0; i < c->n; i++) {
        if (c->v[i].first > at)
            cr_chars_add(&out, at, c->v[i].first - 1);
        at = c->v[i].last + 1;
    }
    if (at <= 0x10FFFF)
        cr_chars_add(&out, at, 0x10FFFF);
    *c = out;
}

static size_t encode(uint32_t c, uint8_t out[4])
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xC0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xE0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        out[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    out[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

/* A range of characters of one length in UTF-8, cut until each byte is a range of its own. */
static void add_range(cr_grammar *g, uint32_t rule, uint32_t first, uint32_t last)
{
    uint8_t a[4], b[4];
    size_t n = encode(first, a);
    for (size_t i = 1; i < n; i++) {
        uint32_t low = ((uint32_t)1 << 6 * i) - 1;
        if ((first & ~low) == (last & ~low))
            continue;
        if (first & low) {
            add_range(g, rule, first, first | low);
            add_range(g, rule, (first | low) + 1, last);
            return;
        }
        if ((last & low) != low) {
            add_range(g, rule, first, (last & ~low) - 1);
            add_range(g, rule, last & ~low, last);
            return;
        }
    }
    encode(last, b);
    struct cr_row r;
    cr_row_init(&r, g);
    for (size_t i = 0; i < n; i++)
        cr_row_range(&r, a[i], b[i]);
    cr_rule_add(&r, rule);
}

static void add_text(cr_grammar *g, uint32_t rule, const char *text)
{
    struct cr_row r;
    cr_row_init(&r, g);
    cr_row_text(&r, text, strlen(text));
    cr_rule_add(&r, rule);
}

static void add_escape(cr_grammar *g, uint32_t rule, uint32_t c)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *known = c ? strchr(from, (int)c) : NULL;
    char text[8];
    if (known)
        snprintf(text, sizeof text, "\\%c", to[known - from]);
    else
        snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    add_text(g, rule, text);
}

/* The part of [first, last] that lies in [lo, hi]. */
static void add_part(cr_grammar *g, uint32_t rule, uint32_t first, uint32_t last, uint32_t lo,
                     uint32_t hi)
{
    first = first > lo ? first : lo;
    last = last < hi ? last : hi;
    if (first <= last)
        add_range(g, rule, first, last);
}

uint32_t cr_chars_rule(cr_grammar *g, const struct cr_chars *c)
{
    uint32_t rule = cr_rule_new(g), plain[8] = {0};
    bool any = false;
    for (size_t i = 0; i < c->n; i++) {
        uint32_t first = c->v[i].first, last = c->v[i].last;
        for (uint32_t b = first; b <= last && b < 0x80; b++) {
            if (b < 0x20 || b == '"' || b == '\\') {
                add_escape(g, rule, b);
            } else {
                plain[b / 32] |= (uint32_t)1 << b % 32;
                any = true;
            }
        }
        add_part(g, rule, first, last, 0x80, 0x7FF);
        add_part(g, rule, first, last, 0x800, 0xD7FF);
        add_part(g, rule, first, last, 0xE000, 0xFFFF);
        add_part(g, rule, first, last, 0x10000, 0x10FFFF);
    }
    if (any) {
        struct cr_row r;
        cr_row_init(&r, g);
        cr_row_set(&r, plain);
        cr_rule_add(&r, rule);
    }
    return rule;
}

uint32_t cr_any_char_rule(cr_grammar *g)
{
    struct cr_chars all = {.n = 0};
    cr_chars_add(&all, 0x20, '"' - 1);
    cr_chars_add(&all, '"' + 1, '\\' - 1);
    cr_chars_add(&all, '\\' + 1, 0x10FFFF);
    uint32_t rule = cr_chars_rule(g, &all), hex = cr_rule_new(g), tail = cr_rule_new(g);
    struct cr_row r;
    cr_row_init(&r, g);
    uint32_t digits[8] = {0}, simple[8] = {0}, not_d[8] = {0};
    for (const char *p = "0123456789abcdefABCDEF"; *p; p++) {
        digits[*p / 32] |= (uint32_t)1 << *p % 32;
        if (*p != 'd' && *p != 'D')
            not_d[*p / 32] |= (uint32_t)1 << *p % 32;
    }
    for (const char *p = "\"\\/bfnrt"; *p; p++)
        simple[*p / 32] |= (uint32_t)1 << *p % 32;
    cr_row_set(&r, digits);
    cr_rule_add(&r, hex);
    cr_row_set(&r, simple);
    cr_rule_add(&r, tail);
    /* \u of a surrogate is not written: half a pair is no character. */
    cr_row_byte(&r, 'u');
    cr_row_set(&r, not_d);
    cr_row_repeat(&r, hex, 3, 3);
    cr_rule_add(&r, tail);
    uint32_t d[8] = {0};
    d['d' / 32] |= (uint32_t)1 << 'd' % 32;
    d['D' / 32] |= (uint32_t)1 << 'D' % 32;
    cr_row_byte(&r, 'u');
    cr_row_set(&r, d);
    cr_row_range(&r, '0', '7');
    cr_row_repeat(&r, hex, 2, 2);
    cr_rule_add(&r, tail);
    cr_row_byte(&r, '\\');
    cr_row_rule(&r, tail);
    cr_rule_add(&r, rule);
    return rule;
}
