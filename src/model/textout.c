/* SPDX-License-Identifier: Apache-2.0 */
/* Stop strings and whole characters: see textout.h. */
#include "model/textout.h"

#include "base/utf8.h"

#include <string.h>

static void give(struct cr_text_out *o, const char *text, size_t n)
{
    if (n && !o->cancelled && o->on_text && !o->on_text(o->ud, text, n))
        o->cancelled = true;
}

/* Hands out the first n pending bytes but for an unfinished character at their end, which stays
 * unless `final`. */
static void flush(struct cr_text_out *o, size_t n, bool final)
{
    size_t at = 0;
    while (at < n) {
        size_t good = cr_utf8_valid(o->pending + at, n - at);
        give(o, o->pending + at, good);
        at += good;
        if (at == n)
            break;
        size_t bad = cr_utf8_bad(o->pending + at, n - at);
        unsigned char lead = (unsigned char)o->pending[at];
        if (!final && at + bad == n && lead >= 0xC2 && lead <= 0xF4)
            break;
        give(o, "\xEF\xBF\xBD", 3);
        at += bad;
    }
    memmove(o->pending, o->pending + at, o->n - at);
    o->n -= at;
}

/* Is there a stop string that ends at pending[end]? Its start, else end. */
static size_t stop_start(struct cr_text_out *o, size_t end)
{
    size_t start = end;
    for (size_t i = 0; i < o->n_stop; i++) {
        size_t len = strlen(o->stop[i]);
        if (len <= end && end - len < start && memcmp(o->pending + end - len, o->stop[i], len) == 0)
            start = end - len, o->which = i;
    }
    return start;
}

/* Bytes at the end of pending that begin a stop string. */
static size_t stop_begun(const struct cr_text_out *o)
{
    size_t longest = 0;
    for (size_t i = 0; i < o->n_stop; i++) {
        size_t len = strlen(o->stop[i]);
        for (size_t k = len - 1 < o->n ? len - 1 : o->n; k > longest; k--)
            if (memcmp(o->pending + o->n - k, o->stop[i], k) == 0)
                longest = k;
    }
    return longest;
}

static void add_piece(struct cr_text_out *o, const char *bytes, size_t n)
{
    size_t old = o->n;
    memcpy(o->pending + o->n, bytes, n);
    o->n += n;
    for (size_t end = old + 1; end <= o->n; end++) {
        size_t start = stop_start(o, end);
        if (start < end) {
            o->n = start;
            flush(o, start, true);
            o->stopped = true;
            return;
        }
    }
    flush(o, o->n - stop_begun(o), false);
}

void cr_text_out_add(struct cr_text_out *o, const char *bytes, size_t n)
{
    while (n > 0 && !o->stopped && !o->cancelled) {
        size_t k = n < CR_TEXT_PIECE ? n : CR_TEXT_PIECE;
        add_piece(o, bytes, k);
        bytes += k;
        n -= k;
    }
}

void cr_text_out_end(struct cr_text_out *o)
{
    if (!o->stopped)
        flush(o, o->n, true);
}

enum cr_status cr_text_out_init(struct cr_text_out *o, const char *const *stop, size_t n_stop,
                                bool (*on_text)(void *, const char *, size_t), void *ud,
                                struct cr_error *err)
{
    *o = (struct cr_text_out){.stop = stop, .n_stop = n_stop, .on_text = on_text, .ud = ud};
    if (n_stop > CR_TEXT_MAX_STOPS)
        return cr_error_set(err, CR_LIMIT, "generate: want at most %d stop strings, got %zu",
                            CR_TEXT_MAX_STOPS, n_stop);
    for (size_t i = 0; i < n_stop; i++) {
        size_t len = strlen(stop[i]);
        if (len == 0 || len > CR_TEXT_MAX_STOP_BYTES)
            return cr_error_set(err, len ? CR_LIMIT : CR_INVALID,
                                "generate: stop string %zu: want 1 to %d bytes, got %zu", i,
                                CR_TEXT_MAX_STOP_BYTES, len);
    }
    return CR_OK;
}
