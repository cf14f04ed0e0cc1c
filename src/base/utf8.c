/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 checking. One decoder step, `sequence`, is the definition; the rest loops over it. */
#include "base/utf8.h"

#include "base/mem.h"

#include <stdbool.h>
#include <string.h>

/* Reads one sequence at s (n > 0): its length when *ok, else the length of the ill-formed part. */
static size_t sequence(const unsigned char *s, size_t n, bool *ok)
{
    unsigned char c = s[0], lo = 0x80, hi = 0xBF; /* limits of the second byte */
    size_t want;
    *ok = false;
    if (c < 0x80) {
        *ok = true;
        return 1;
    }
    if (c >= 0xC2 && c <= 0xDF) {
        want = 2;
    } else if (c >= 0xE0 && c <= 0xEF) {
        want = 3;
        lo = c == 0xE0 ? 0xA0 : lo;
        hi = c == 0xED ? 0x9F : hi;
    } else if (c >= 0xF0 && c <= 0xF4) {
        want = 4;
        lo = c == 0xF0 ? 0x90 : lo;
        hi = c == 0xF4 ? 0x8F : hi;
    } else {
        return 1;
    }
    for (size_t i = 1; i < want; i++, lo = 0x80, hi = 0xBF)
        if (i == n || s[i] < lo || s[i] > hi)
            return i;
    *ok = true;
    return want;
}

size_t cr_utf8_valid(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (n - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if (!(eight & 0x8080808080808080u)) {
                i += sizeof eight;
                continue;
            }
        }
        bool ok;
        size_t len = sequence((const unsigned char *)s + i, n - i, &ok);
        if (!ok)
            return i;
        i += len;
    }
    return n;
}

size_t cr_utf8_bad(const char *s, size_t n)
{
    bool ok;
    return sequence((const unsigned char *)s, n, &ok);
}

char *cr_utf8_repair(const char *s, size_t n, size_t *out_len)
{
    *out_len = 0;
    if (n > SIZE_MAX / 3 - 1)
        return NULL;
    char *out = cr_alloc(3 * n + 1, 1); /* one bad byte becomes three */
    if (!out)
        return NULL;
    size_t len = 0;
    for (size_t i = 0; i < n;) {
        size_t good = cr_utf8_valid(s + i, n - i);
        memcpy(out + len, s + i, good);
        len += good;
        i += good;
        if (i < n) {
            memcpy(out + len, "\xEF\xBF\xBD", 3);
            len += 3;
            i += cr_utf8_bad(s + i, n - i);
        }
    }
    out[len] = '\0';
    *out_len = len;
    return out;
}
