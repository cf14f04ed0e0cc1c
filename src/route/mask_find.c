/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers that are what their check digits say. A number is read across single separators (blank,
 * hyphen, point, slash, their Unicode kin, zero-width marks) and must begin and end where digits
 * do: a part of a longer run of digits is no card.
 */
#include "route/mask_find.h"

#include "base/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RUN = 64, MIN_BASE64 = 16, MIN_KEY = 24, MIN_HEX = 32 };

bool cr_spans_add(struct cr_spans *s, size_t from, size_t to, enum cr_mask_kind kind)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        struct cr_span *v = cr_realloc(s->v, cap, sizeof *v);
        if (!v)
            return false;
        s->v = v;
        s->cap = cap;
    }
    s->v[s->n++] = (struct cr_span){from, to, kind};
    return true;
}

static int by_place(const void *a, const void *b)
{
    const struct cr_span *x = a, *y = b;
    if (x->from != y->from)
        return x->from < y->from ? -1 : 1;
    return x->to > y->to ? -1 : x->to < y->to;
}

void cr_spans_merge(struct cr_spans *s)
{
    size_t n = 0, longest = 0;
    if (s->n)
        qsort(s->v, s->n, sizeof *s->v, by_place);
    for (size_t i = 0; i < s->n; i++) {
        struct cr_span e = s->v[i];
        if (n && e.from < s->v[n - 1].to) {
            if (e.to - e.from > longest) {
                longest = e.to - e.from;
                s->v[n - 1].kind = e.kind;
            }
            if (e.to > s->v[n - 1].to)
                s->v[n - 1].to = e.to;
        } else {
            longest = e.to - e.from;
            s->v[n++] = e;
        }
    }
    s->n = n;
}

/* ---- digits ---- */

/* Bytes of the separator at p: 0 when there is none. */
static size_t separator(const char *p, size_t len)
{
    const unsigned char *u = (const unsigned char *)p;
    if (len && u[0] && strchr(" -./()\t\n\r", u[0]))
        return 1;
    if (len >= 2 && u[0] == 0xc2 && u[1] == 0xa0) /* no-break space */
        return 2;
    if (len >= 3 && u[0] == 0xe2 && u[1] == 0x80 &&
        ((u[2] >= 0x80 && u[2] <= 0x95) || u[2] == 0xaf)) /* spaces, zero width, hyphens */
        return 3;
    if (len >= 3 && u[0] == 0xe2 && u[1] == 0x81 && u[2] == 0xa0) /* word joiner */
        return 3;
    if (len >= 3 && u[0] == 0xef && u[1] == 0xbb && u[2] == 0xbf)
        return 3;
    return 0;
}

/* A run of letters that count, with separators between them: where each stands, and whether a group
 * begins (after a separator or at the run's edge) and ends there. */
struct run {
    char c[MAX_RUN];
    size_t at[MAX_RUN];
    bool begins[MAX_RUN], ends[MAX_RUN];
    int n;
    bool cut; /* longer than MAX_RUN */
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}
static bool is_alnum(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Reads from `from`, where a letter that counts stands. Returns the end of the run. */
static size_t read_run(const char *text, size_t len, size_t from, bool (*counts)(char),
                       size_t most_separators, struct run *r)
{
    size_t at = from, end = from;
    bool fresh = true;
    r->n = 0;
    r->cut = false;
    while (at < len) {
        if (counts(text[at])) {
            if (r->n == MAX_RUN) {
                r->cut = true;
                break;
            }
            r->c[r->n] = text[at];
            r->at[r->n] = at;
            r->begins[r->n] = fresh;
            r->ends[r->n++] = false;
            fresh = false;
            end = ++at;
            continue;
        }
        size_t gap = 0, n = 0, s;
        while (n < most_separators && (s = separator(text + at + gap, len - at - gap)) > 0) {
            gap += s;
            n++;
        }
        if (!gap || at + gap >= len || !counts(text[at + gap]))
            break;
        r->ends[r->n - 1] = true;
        fresh = true;
        at += gap;
    }
    if (r->n)
        r->ends[r->n - 1] = !r->cut;
    return end;
}

/* Payment cards begin with 2 to 6. */
static bool card(const char *d, int n)
{
    int sum = 0;
    if (d[0] < '2' || d[0] > '6')
        return false;
    for (int i = 0; i < n; i++) {
        int v = d[n - 1 - i] - '0';
        v = i % 2 ? 2 * v : v;
        sum += v > 9 ? v - 9 : v;
    }
    return sum % 10 == 0;
}

/* Country, check digits, account: letters count 10 to 35, the first four stand last. */
static bool iban(const char *c, int n)
{
    unsigned rest = 0;
    if (n < 15 || n > 34 || is_digit(c[0]) || is_digit(c[1]) || !is_digit(c[2]) || !is_digit(c[3]))
        return false;
    for (int i = 0; i < n; i++) {
        char x = c[(i + 4) % n];
        unsigned v = is_digit(x) ? (unsigned)(x - '0') : (unsigned)(tolower(x) - 'a') + 10;
        rest = (rest * (v > 9 ? 100 : 10) + v) % 97;
    }
    return rest == 1;
}

/* Marks the longest part of the run that `test` accepts, from each beginning. */
static bool mark_parts(const struct run *r, int min, int max, bool (*test)(const char *, int),
                       enum cr_mask_kind kind, struct cr_spans *out)
{
    for (int i = 0; i < r->n; i++) {
        if (!r->begins[i])
            continue;
        for (int n = r->n - i < max ? r->n - i : max; n >= min; n--)
            if (r->ends[i + n - 1] && test(r->c + i, n)) {
                if (!cr_spans_add(out, r->at[i], r->at[i + n - 1] + 1, kind))
                    return false;
                i += n - 1;
                break;
            }
    }
    return true;
}

/*
 * Phone numbers: "+" or "00" and 8 to 15 digits; "0" and then 1 to 9, 9 to 12 digits, in groups or
 * not; or three, three and four digits with separators. `text` before the run decides "+".
 */
static bool mark_phone(const char *text, const struct run *r, struct cr_spans *out)
{
    for (int i = 0; i < r->n; i++) {
        if (!r->begins[i])
            continue;
        size_t from = r->at[i];
        bool plus = from > 0 && text[from - 1] == '+';
        bool zeros = r->n - i >= 2 && r->c[i] == '0' && r->c[i + 1] == '0';
        bool zero = r->n - i >= 2 && r->c[i] == '0' && r->c[i + 1] != '0' && !r->ends[i];
        int max = plus ? 15 : zeros ? 17 : 12, min = plus ? 8 : zeros ? 10 : 9, n = 0;
        if (plus || zeros || zero) {
            for (n = r->n - i < max ? r->n - i : max; n >= min && !r->ends[i + n - 1];)
                n--;
            n = n >= min ? n : 0;
        } else if (r->n - i >= 10 && r->ends[i + 2] && r->ends[i + 5] && r->ends[i + 9]) {
            n = 10;
        }
        if (!n)
            continue;
        from -= plus;
        if (from > 0 && text[from - 1] == '(')
            from--;
        if (!cr_spans_add(out, from, r->at[i + n - 1] + 1, CR_MASK_PHONE))
            return false;
        i += n - 1;
    }
    return true;
}

/* A word of 24 letters or more with small ones, big ones and digits, or of 32 hexadecimal ones. */
static bool mark_word(const char *text, size_t from, size_t to, struct cr_spans *out)
{
    bool low = false, high = false, digit = false, hex = true;
    for (size_t i = from; i < to; i++) {
        char c = text[i];
        low |= c >= 'a' && c <= 'z';
        high |= c >= 'A' && c <= 'Z';
        digit |= is_digit(c);
        hex &= is_digit(c) || (tolower(c) >= 'a' && tolower(c) <= 'f');
    }
    bool key = (to - from >= MIN_KEY && low && high && digit) ||
               (to - from >= MIN_HEX && hex && digit && (low || high));
    return !key || cr_spans_add(out, from, to, CR_MASK_KEY);
}

bool cr_find_numbers(const char *text, size_t len, struct cr_spans *out)
{
    struct run r;
    bool ok = true;
    for (size_t at = 0; at < len && ok;) { /* digits */
        if (!is_digit(text[at])) {
            at++;
            continue;
        }
        size_t end = read_run(text, len, at, is_digit, 3, &r);
        ok = mark_parts(&r, 13, 19, card, CR_MASK_CARD, out) && mark_phone(text, &r, out);
        /* A run that was cut goes on with its last group, else after it. */
        at = end;
        if (r.cut)
            for (int i = r.n - 1; i > 0; i--)
                if (r.begins[i]) {
                    at = r.at[i];
                    break;
                }
        while (r.cut && at == end && at < len && is_digit(text[at]))
            end = ++at;
    }
    for (size_t at = 0, word = 0; at < len && ok;) { /* letters and digits: words */
        if (!is_alnum(text[at])) {
            at++;
            continue;
        }
        if (at >= word) {
            word = at;
            while (word < len && (is_alnum(text[word]) || text[word] == '_' || text[word] == '-'))
                word++;
            ok = mark_word(text, at, word, out);
        }
        read_run(text, len, at, is_alnum, 1, &r);
        for (int n = r.n < 34 ? r.n : 34; n >= 15 && ok; n--)
            if (r.ends[n - 1] && iban(r.c, n)) {
                ok = cr_spans_add(out, at, r.at[n - 1] + 1, CR_MASK_IBAN);
                break;
            }
        while (at < len && is_alnum(text[at])) /* the next may begin after "_" */
            at++;
    }
    return ok;
}

/* ---- base64 ---- */

static int digit64(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (is_digit(c))
        return c - '0' + 52;
    return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : -1;
}

bool cr_base64_next(const char *text, size_t len, size_t *from, size_t *to)
{
    for (size_t at = *from; at < len;) {
        size_t end = at;
        while (end < len && digit64(text[end]) >= 0)
            end++;
        if (end - at >= MIN_BASE64) {
            while (end < len && text[end] == '=')
                end++;
            *from = at;
            *to = end;
            return true;
        }
        at = end + 1;
    }
    return false;
}

char *cr_base64_decode(const char *text, size_t len, size_t *n)
{
    char *out = cr_alloc(len + 1, 1);
    uint32_t bits = 0;
    int have = 0;
    *n = 0;
    for (size_t i = 0; out && i < len && text[i] != '='; i++) {
        bits = bits << 6 | (uint32_t)digit64(text[i]);
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[(*n)++] = (char)(bits >> have & 255u);
        }
    }
    if (out)
        out[*n] = '\0';
    return out;
}
