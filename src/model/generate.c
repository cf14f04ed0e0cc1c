/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prompt to text: sync the session, choose tokens, hand out text. Bytes wait in `pending` while
 * they may still be the beginning of a stop string or of a character, so what is handed out is
 * whole UTF-8 and never has to be taken back. Bytes that are no UTF-8 become U+FFFD.
 *
 * The first stop string is the one that ends first, whichever way the tokens cut the text; among
 * those that end together, the longest.
 */
#include "model/session.h"

#include "base/utf8.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum {
    MAX_STOPS = 64,
    MAX_STOP_BYTES = 1024,
    PIECE = 256, /* bytes of a token looked at together */
    PENDING = MAX_STOP_BYTES + PIECE + 4
};

struct output {
    const struct cr_generate *g;
    char pending[PENDING];
    size_t n;
    bool stopped, cancelled;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* ---- text out ---- */

static void give(struct output *o, const char *text, size_t n)
{
    if (n && !o->cancelled && o->g->on_text && !o->g->on_text(o->g->ud, text, n))
        o->cancelled = true;
}

/* Hands out the first n pending bytes but for an unfinished character at their end, which stays
 * unless `final`. */
static void flush(struct output *o, size_t n, bool final)
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
static size_t stop_start(const struct output *o, size_t end)
{
    size_t start = end;
    for (size_t i = 0; i < o->g->n_stop; i++) {
        size_t len = strlen(o->g->stop[i]);
        if (len <= end && end - len < start &&
            memcmp(o->pending + end - len, o->g->stop[i], len) == 0)
            start = end - len;
    }
    return start;
}

/* Bytes at the end of pending that begin a stop string. */
static size_t stop_begun(const struct output *o)
{
    size_t longest = 0;
    for (size_t i = 0; i < o->g->n_stop; i++) {
        size_t len = strlen(o->g->stop[i]);
        for (size_t k = len - 1 < o->n ? len - 1 : o->n; k > longest; k--)
            if (memcmp(o->pending + o->n - k, o->g->stop[i], k) == 0)
                longest = k;
    }
    return longest;
}

static void add_piece(struct output *o, const char *bytes, size_t n)
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

static void add_token(struct output *o, const cr_model *m, int32_t id)
{
    const char *bytes;
    size_t n = cr_token_bytes(m, id, false, &bytes);
    while (n > 0 && !o->stopped && !o->cancelled) {
        size_t k = n < PIECE ? n : PIECE;
        add_piece(o, bytes, k);
        bytes += k;
        n -= k;
    }
}

/* ---- generation ---- */

static enum cr_status check(const struct cr_generate *g, struct cr_error *err)
{
    if (g->max_tokens < 0)
        return cr_error_set(err, CR_INVALID, "generate: max_tokens: want 0 or more, got %d",
                            g->max_tokens);
    if (g->n_stop > MAX_STOPS)
        return cr_error_set(err, CR_LIMIT, "generate: want at most %d stop strings, got %zu",
                            MAX_STOPS, g->n_stop);
    for (size_t i = 0; i < g->n_stop; i++) {
        size_t len = strlen(g->stop[i]);
        if (len == 0 || len > MAX_STOP_BYTES)
            return cr_error_set(err, len ? CR_LIMIT : CR_INVALID,
                                "generate: stop string %zu: want 1 to %d bytes, got %zu", i,
                                MAX_STOP_BYTES, len);
    }
    return CR_OK;
}

/* Chooses tokens until something ends it. */
static enum cr_status decode(cr_session *s, cr_sampler *sampler, struct output *o,
                             struct cr_generated *out, double start, struct cr_error *err)
{
    const struct cr_generate *g = o->g;
    const cr_model *m = cr_session_model(s);
    for (int i = 0; i < g->max_tokens; i++) {
        const float *logits = cr_session_logits(s);
        float logprob;
        int32_t id = cr_sampler_next(sampler, logits, g->on_token ? &logprob : NULL);
        if (!isfinite(logits[id]))
            return cr_error_set(err, CR_FORMAT,
                                "generate: the model's output is not a number (damaged weights?)");
        if (out->n_decode++ == 0)
            out->first_token_ms = now_ms() - start;
        if (g->on_token && !g->on_token(g->ud, id, logprob)) {
            o->cancelled = true;
            return CR_OK;
        }
        if (!g->ignore_end && cr_token_is_end(m, id)) {
            out->finish = CR_FINISH_STOP;
            return CR_OK;
        }
        add_token(o, m, id);
        if (o->stopped || o->cancelled || i + 1 == g->max_tokens ||
            cr_session_length(s) == cr_session_ctx(s))
            return CR_OK;
        enum cr_status status = cr_session_step(s, id, err);
        if (status != CR_OK)
            return status;
    }
    return CR_OK;
}

enum cr_status cr_generate(cr_session *s, const struct cr_generate *g, struct cr_generated *out,
                           struct cr_error *err)
{
    struct cr_generated local;
    out = out ? out : &local;
    *out = (struct cr_generated){.finish = CR_FINISH_LENGTH};
    cr_sampler *sampler = NULL;
    enum cr_status status = check(g, err);
    if (status == CR_OK)
        status = cr_sampler_new(&sampler, cr_session_model(s), &g->sampling, err);
    if (status != CR_OK)
        return status;
    struct output o = {.g = g};
    double start = now_ms(), ready;
    status = cr_session_sync(s, g->prompt, g->n_prompt, &out->n_prefill, err);
    ready = now_ms();
    if (status == CR_OK) {
        out->n_cached = g->n_prompt - out->n_prefill;
        out->prefill_ms = ready - start;
        for (size_t i = 0; i < g->n_prompt; i++)
            cr_sampler_accept(sampler, g->prompt[i]);
        status = decode(s, sampler, &o, out, start, err);
    }
    if (status == CR_OK && !o.stopped)
        flush(&o, o.n, true);
    out->decode_ms = now_ms() - ready;
    if (o.cancelled)
        out->finish = CR_FINISH_CANCELLED;
    else if (o.stopped)
        out->finish = CR_FINISH_STOP;
    cr_sampler_free(sampler);
    return status;
}
