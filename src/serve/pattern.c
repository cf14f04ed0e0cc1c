/* SPDX-License-Identifier: Apache-2.0 */
/* Regular expressions by recursive descent straight into rules. */
#include "serve/pattern.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NESTED = 100, MAX_PATTERN = 4096 };

struct parser {
    cr_grammar *g;
    const char *p;
    char *why;
    int depth;
    struct cr_chars *set; /* of the class at hand */
};

static bool refuse(struct parser *in, const char *what)
{
    if (!in->why[0])
        snprintf(in->why, 160, "%s near \"%.30s\"", what, in->p);
    return false;
}

/* One UTF-8 character of the pattern. */
static uint32_t next_char(struct parser *in)
{
    const unsigned char *s = (const unsigned char *)in->p;
    int n = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    uint32_t c = n == 1 ? s[0] : s[0] & (0xFFu >> (n + 1));
    for (int i = 1; i < n; i++)
        c = c << 6 | (s[i] & 63u);
    in->p += n;
    return c;
}

static void add_class(struct cr_chars *c, char kind)
{
    struct cr_chars *one = cr_alloc0(1, sizeof *one);
    if (!one) {
        c->failed = true;
        return;
    }
    switch (kind | 32) {
    case 'd':
        cr_chars_add(one, '0', '9');
        break;
    case 'w':
        cr_chars_add(one, '0', '9');
        cr_chars_add(one, 'A', 'Z');
        cr_chars_add(one, '_', '_');
        cr_chars_add(one, 'a', 'z');
        break;
    default: /* white space */
        cr_chars_add(one, 9, 13);
        cr_chars_add(one, ' ', ' ');
        cr_chars_add(one, 0xA0, 0xA0);
        cr_chars_add(one, 0x1680, 0x1680);
        cr_chars_add(one, 0x2000, 0x200A);
        cr_chars_add(one, 0x2028, 0x2029);
        cr_chars_add(one, 0x202F, 0x202F);
        cr_chars_add(one, 0x205F, 0x205F);
        cr_chars_add(one, 0x3000, 0x3000);
        if (kind == 'S') { /* what some engines call white space is not drawn either */
            cr_chars_add(one, 0x1C, 0x1F);
            cr_chars_add(one, 0x85, 0x85);
            cr_chars_add(one, 0xFEFF, 0xFEFF);
        }
    }
    if (kind < 'a')
        cr_chars_invert(one);
    for (size_t i = 0; i < one->n; i++)
        cr_chars_add(c, one->v[i].first, one->v[i].last);
    c->failed |= one->failed;
    cr_free(one);
}

static bool hex(struct parser *in, int n, uint32_t *c)
{
    *c = 0;
    for (int i = 0; i < n; i++, in->p++) {
        char x = *in->p, low = (char)(x | 32);
        if (!((x >= '0' && x <= '9') || (low >= 'a' && low <= 'f')))
            return refuse(in, "a bad escape");
        *c = *c * 16 + (uint32_t)(x <= '9' ? x - '0' : low - 'a' + 10);
    }
    return true;
}

/* Behind a backslash: a character (true in *one) or a class added to set. */
static bool escape(struct parser *in, struct cr_chars *set, uint32_t *c, bool *one)
{
    static const char from[] = "nrtfv", to[] = "\n\r\t\f\v";
    char x = *in->p;
    *one = true;
    if (x && strchr("dDwWsS", x)) {
        *one = false;
        add_class(set, x);
        in->p++;
        return true;
    }
    const char *known = x ? strchr(from, x) : NULL;
    if (known) {
        *c = (uint32_t)to[known - from];
        in->p++;
        return true;
    }
    if (x == 'x' || x == 'u') {
        in->p++;
        if (!hex(in, x == 'x' ? 2 : 4, c))
            return false;
        if (*c >= 0xD800 && *c < 0xE000)
            return refuse(in, "half a surrogate pair");
        return true;
    }
    if (!x || (x >= '0' && x <= '9') || (x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z'))
        return refuse(in, "an escape that is not supported");
    *c = next_char(in);
    return true;
}

static bool class(struct parser *in, struct cr_chars *set)
{
    bool inverted = *in->p == '^';
    in->p += inverted;
    while (*in->p != ']') {
        uint32_t first = 0, last;
        bool one = true;
        if (!*in->p)
            return refuse(in, "a class without end");
        if (*in->p == '\\') {
            in->p++;
            if (*in->p == 'b') {
                first = 8;
                in->p++;
            } else if (!escape(in, set, &first, &one)) {
                return false;
            }
        } else {
            first = next_char(in);
        }
        last = first;
        if (in->p[0] == '-' && in->p[1] && in->p[1] != ']') {
            bool single = true;
            in->p++;
            if (*in->p == '\\') {
                in->p++;
                if (!escape(in, set, &last, &single))
                    return false;
            } else {
                last = next_char(in);
            }
            if (!one || !single || last < first)
                return refuse(in, "a bad range");
        }
        if (one)
            cr_chars_add(set, first, last);
    }
    in->p++;
    if (inverted)
        cr_chars_invert(set);
    return !set->failed || refuse(in, "too many ranges");
}

static bool either(struct parser *in, uint32_t *rule, bool *empty);

/* A group, a class or a character. */
static bool atom(struct parser *in, uint32_t *rule, bool *empty)
{
    struct cr_chars *set = in->set;
    uint32_t c;
    bool one = true, ok = true;
    *empty = false;
    if (*in->p == '(') {
        in->p++;
        if (in->p[0] == '?') {
            if (in->p[1] != ':')
                return refuse(in, "look-around and named groups are not supported");
            in->p += 2;
        }
        if (++in->depth > MAX_NESTED)
            return refuse(in, "too many groups inside each other");
        if (!either(in, rule, empty))
            return false;
        in->depth--;
        if (*in->p != ')')
            return refuse(in, "a group without end");
        in->p++;
        return true;
    }
    set->n = 0;
    set->failed = false;
    switch (*in->p) {
    case '[':
        in->p++;
        ok = class(in, set);
        break;
    case '.':
        in->p++;
        cr_chars_add(set, '\n', '\n');
        cr_chars_add(set, '\r', '\r');
        cr_chars_add(set, 0x2028, 0x2029);
        cr_chars_invert(set);
        break;
    case '\\':
        in->p++;
        ok = escape(in, set, &c, &one);
        if (ok && one)
            cr_chars_add(set, c, c);
        break;
    case '^':
    case '$':
        return refuse(in, "an anchor inside");
    case '*':
    case '+':
    case '?':
    case '{':
        return refuse(in, "nothing to repeat");
    default:
        c = next_char(in);
        cr_chars_add(set, c, c);
    }
    if (ok)
        *rule = cr_chars_rule(in->g, set);
    return ok;
}

static bool number(struct parser *in, uint32_t *out)
{
    uint64_t v = 0;
    if (*in->p < '0' || *in->p > '9')
        return refuse(in, "a bad repetition");
    for (; *in->p >= '0' && *in->p <= '9'; in->p++) {
        v = v * 10 + (uint64_t)(*in->p - '0');
        if (v > INT32_MAX)
            return refuse(in, "a repetition that is too large");
    }
    *out = (uint32_t)v;
    return true;
}

/* * + ? {n} {n,} {n,m}, each also lazy, which means the same set of texts. */
static bool counts(struct parser *in, uint32_t *min, uint32_t *max)
{
    *min = *max = 1;
    switch (*in->p) {
    case '*':
        *min = 0;
        *max = CR_GRAMMAR_MANY;
        in->p++;
        break;
    case '+':
        *max = CR_GRAMMAR_MANY;
        in->p++;
        break;
    case '?':
        *min = 0;
        in->p++;
        break;
    case '{':
        in->p++;
        if (!number(in, min))
            return false;
        *max = *min;
        if (*in->p == ',') {
            in->p++;
            *max = CR_GRAMMAR_MANY;
            if (*in->p != '}' && !number(in, max))
                return false;
        }
        if (*in->p != '}' || *max < *min)
            return refuse(in, "a bad repetition");
        in->p++;
        break;
    default:
        return true;
    }
    in->p += *in->p == '?';
    return (*in->p != '*' && *in->p != '+' && *in->p != '?' && *in->p != '{') ||
           refuse(in, "a repetition of a repetition");
}

/* Atoms in a row, up to | ) $ or the end. */
static bool sequence(struct parser *in, struct cr_row *r, bool *empty)
{
    *empty = true;
    while (*in->p && *in->p != '|' && *in->p != ')' && !(*in->p == '$' && in->depth == 0)) {
        uint32_t rule, min, max;
        bool nothing;
        if (!atom(in, &rule, &nothing) || !counts(in, &min, &max))
            return false;
        if (nothing && (min != 1 || max != 1))
            return refuse(in, "a repetition of what may be empty");
        cr_row_repeat(r, rule, min, max);
        *empty = *empty && (nothing || min == 0);
    }
    return true;
}

static bool either(struct parser *in, uint32_t *rule, bool *empty)
{
    *rule = cr_rule_new(in->g);
    *empty = false;
    for (;;) {
        struct cr_row r;
        bool nothing;
        cr_row_init(&r, in->g);
        if (!sequence(in, &r, &nothing)) {
            cr_row_deinit(&r);
            return false;
        }
        cr_rule_add(&r, *rule);
        *empty |= nothing;
        if (*in->p != '|')
            return true;
        in->p++;
    }
}

bool cr_pattern_rule(cr_grammar *g, const char *pattern, uint32_t any, uint32_t *rule,
                     char why[160])
{
    struct parser in = {.g = g, .p = pattern, .why = why};
    why[0] = '\0';
    *rule = cr_rule_new(g);
    if (strlen(pattern) > MAX_PATTERN)
        return refuse(&in, "a pattern that is too long");
    if (!(in.set = cr_alloc0(1, sizeof *in.set)))
        return refuse(&in, "out of memory");
    bool ok = true;
    /* Each alternative may have its own anchors; without them the match may stand anywhere. */
    for (bool more = true; more && ok;) {
        struct cr_row r;
        bool nothing, begins = *in.p == '^';
        cr_row_init(&r, g);
        in.p += begins;
        if (!begins)
            cr_row_repeat(&r, any, 0, CR_GRAMMAR_MANY);
        ok = sequence(&in, &r, &nothing);
        bool ends = ok && *in.p == '$';
        in.p += ends;
        if (ok && !ends)
            cr_row_repeat(&r, any, 0, CR_GRAMMAR_MANY);
        if (ok && *in.p && *in.p != '|')
            ok = refuse(&in, *in.p == ')' ? "a group that was not begun" : "an anchor inside");
        if (ok)
            cr_rule_add(&r, *rule);
        cr_row_deinit(&r);
        more = ok && *in.p == '|';
        in.p += more;
    }
    cr_free(in.set);
    return ok;
}
