/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding spans, naming them, and the way back. Numbers are found by hand, for they need check
 * digits; addresses, keys and the user's patterns by PCRE2 without JIT and with match limits.
 * Each text is looked at alone and joined with its neighbours: all messages in order, and those of
 * each role, so that what is split over messages is found too.
 */
#include "route/mask.h"

#include "base/mem.h"
#include "route/mask_find.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum {
    MAX_PATTERNS = 64,
    MATCH_LIMIT = 200000, /* steps of one match; a hostile pattern ends within milliseconds */
    DEPTH_LIMIT = 2000,
    MAX_TEXT = 64 << 20,
    N_BUILT_IN = 4
};

static const char *const kind_names[CR_MASK_KINDS] = {"EMAIL", "PHONE",  "CARD", "IBAN",
                                                      "KEY",   "BASE64", "TEXT"};

/* Longer alternatives first. The parts are bounded, so that no text makes them quadratic. */
static const struct {
    enum cr_mask_kind kind;
    const char *pattern;
} built_in[N_BUILT_IN] = {
    {CR_MASK_EMAIL,
     "[\\p{L}\\p{N}._%+\\-']{1,64}+@(?:[\\p{L}\\p{N}\\-]{1,63}+\\.){1,8}\\p{L}{2,24}"},
    {CR_MASK_KEY, "-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\\s]{0,8000}"
                  "(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"},
    {CR_MASK_KEY, "(?<![A-Za-z0-9])(?:sk|pk|rk|ghp|gho|ghu|ghs|ghr|github_pat|glpat|hf|npm|pypi|"
                  "xox[abeprs]|AKIA|ASIA|AIza|ya29|eyJ)[A-Za-z0-9_\\-.]{12,4000}"},
    {CR_MASK_KEY,
     "(?i)(?<=bearer |password=|passwd=|api_key=|apikey=|token=|secret=)[^\\s\"'&,;]{6,"
     "512}"},
};

struct cr_masker {
    pcre2_code *code[N_BUILT_IN + MAX_PATTERNS];
    enum cr_mask_kind kind[N_BUILT_IN + MAX_PATTERNS];
    char *pattern[N_BUILT_IN + MAX_PATTERNS]; /* for messages; NULL: built in */
    size_t n;
    pcre2_match_context *limits;
};

struct value {
    char *token, *text;
};

struct cr_mask {
    struct value *v;
    size_t n, cap;
    int n_of[CR_MASK_KINDS];
    char nonce[5];
    struct cr_message *masked;
    size_t n_masked;
};

/* ---- patterns ---- */

static enum cr_status compile(cr_masker *m, enum cr_mask_kind kind, const char *pattern, bool own,
                              struct cr_error *err)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C,
                      &code, &at, NULL);
    if (!re) {
        char text[120] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return cr_error_set(err, CR_INVALID, "mask pattern \"%.100s\": %s at byte %zu", pattern,
                            text, (size_t)at);
    }
    m->code[m->n] = re;
    m->kind[m->n] = kind;
    if (own && !(m->pattern[m->n] = cr_strdup(pattern))) {
        m->n++;
        return cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    }
    m->n++;
    return CR_OK;
}

enum cr_status cr_masker_new(cr_masker **out, const char *const *patterns, size_t n,
                             struct cr_error *err)
{
    *out = NULL;
    if (n > MAX_PATTERNS)
        return cr_error_set(err, CR_LIMIT, "mask: want at most %d patterns, found %zu",
                            MAX_PATTERNS, n);
    cr_masker *m = cr_alloc0(1, sizeof *m);
    enum cr_status st = CR_OK;
    if (!m)
        return cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    m->limits = pcre2_match_context_create(NULL);
    if (!m->limits)
        st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    if (st == CR_OK) {
        pcre2_set_match_limit(m->limits, MATCH_LIMIT);
        pcre2_set_depth_limit(m->limits, DEPTH_LIMIT);
    }
    for (size_t i = 0; i < N_BUILT_IN && st == CR_OK; i++)
        st = compile(m, built_in[i].kind, built_in[i].pattern, false, err);
    for (size_t i = 0; i < n && st == CR_OK; i++)
        st = compile(m, CR_MASK_TEXT, patterns[i], true, err);
    if (st != CR_OK) {
        cr_masker_free(m);
        return st;
    }
    *out = m;
    return CR_OK;
}

void cr_masker_free(cr_masker *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        pcre2_code_free(m->code[i]);
        cr_free(m->pattern[i]);
    }
    pcre2_match_context_free(m->limits);
    cr_free(m);
}

/* All matches of pattern i. A match that cannot be decided is an error: fail closed. */
static enum cr_status find_pattern(const cr_masker *m, size_t i, const char *text, size_t len,
                                   struct cr_spans *spans, struct cr_error *err)
{
    pcre2_match_data *md = pcre2_match_data_create(1, NULL);
    enum cr_status st = CR_OK;
    if (!md)
        return cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    for (size_t at = 0; at < len && st == CR_OK;) {
        int rc = pcre2_match(m->code[i], (PCRE2_SPTR)text, len, at, 0, md, m->limits);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0) {
            st = cr_error_set(
                err, CR_POLICY,
                "mask pattern %s%.80s%s: passes its limit on this text, so nothing was "
                "sent",
                m->pattern[i] ? "\"" : "", m->pattern[i] ? m->pattern[i] : "built in",
                m->pattern[i] ? "\"" : "");
            break;
        }
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(md);
        size_t from = o[0], to = o[1];
        if (to > from && !cr_spans_add(spans, from, to, m->kind[i]))
            st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
        at = to > at && to > from ? to : at + 1;
        while (at < len &&
               ((unsigned char)text[at] & 0xc0) == 0x80) /* an empty match: one character on */
            at++;
    }
    pcre2_match_data_free(md);
    return st;
}

/* All kinds but base64. */
static enum cr_status find_plain(const cr_masker *m, const char *text, size_t len,
                                 struct cr_spans *spans, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    for (size_t i = 0; i < m->n && st == CR_OK; i++)
        st = find_pattern(m, i, text, len, spans, err);
    if (st == CR_OK && !cr_find_numbers(text, len, spans))
        st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    return st;
}

/* Base64 whose bytes hold something to mask is masked whole. */
static enum cr_status find_base64(const cr_masker *m, const char *text, size_t len,
                                  struct cr_spans *spans, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    for (size_t from = 0, to; st == CR_OK && cr_base64_next(text, len, &from, &to); from = to) {
        struct cr_spans inside = {0};
        size_t n;
        char *bytes = cr_base64_decode(text + from, to - from, &n);
        if (!bytes)
            st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
        else
            st = find_plain(m, bytes, n, &inside, err);
        if (st == CR_OK && inside.n && !cr_spans_add(spans, from, to, CR_MASK_BASE64))
            st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
        cr_free(inside.v);
        cr_free(bytes);
    }
    return st;
}

/* ---- messages ---- */

/* The messages of one role (NULL: all) put together, and where each begins. */
static enum cr_status find_joined(const cr_masker *m, const struct cr_message *messages, size_t n,
                                  const char *role, struct cr_spans *of_message,
                                  struct cr_error *err)
{
    struct cr_buf all;
    struct cr_spans found = {0};
    enum cr_status st = CR_OK;
    cr_buf_init(&all, MAX_TEXT);
    for (size_t i = 0; i < n; i++)
        if (!role || strcmp(messages[i].role, role) == 0)
            cr_buf_puts(&all, messages[i].content);
    if (all.failed)
        st = cr_error_set(err, CR_LIMIT, "mask: the messages are longer than %d bytes", MAX_TEXT);
    if (st == CR_OK && all.len)
        st = find_plain(m, all.data, all.len, &found, err);
    if (st == CR_OK && all.len)
        st = find_base64(m, all.data, all.len, &found, err);
    size_t begin = 0;
    for (size_t i = 0; i < n && st == CR_OK; i++) {
        if (role && strcmp(messages[i].role, role) != 0)
            continue;
        size_t end = begin + strlen(messages[i].content);
        for (size_t k = 0; k < found.n && st == CR_OK; k++) {
            size_t from = found.v[k].from > begin ? found.v[k].from : begin;
            size_t to = found.v[k].to < end ? found.v[k].to : end;
            if (from < to &&
                !cr_spans_add(&of_message[i], from - begin, to - begin, found.v[k].kind))
                st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
        }
        begin = end;
    }
    cr_free(found.v);
    cr_buf_deinit(&all);
    return st;
}

/* Digits that no text contains, so that nothing but our placeholders can look like one. */
static enum cr_status draw_nonce(cr_mask *m, const struct cr_message *messages, size_t n,
                                 struct cr_error *err)
{
    for (int tries = 0; tries < 1000; tries++) {
        uint16_t v;
        bool taken = false;
        if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v)
            return cr_error_set(err, CR_IO, "mask: the system gave no random bytes");
        snprintf(m->nonce, sizeof m->nonce, "%04x", v);
        char tail[8];
        snprintf(tail, sizeof tail, "_%s]", m->nonce);
        for (size_t i = 0; i < n && !taken; i++)
            taken = strstr(messages[i].content, tail) != NULL;
        if (!taken)
            return CR_OK;
    }
    return cr_error_set(err, CR_POLICY,
                        "mask: the text holds every placeholder, so nothing was sent");
}

/* The placeholder of a value: the one that it has, else a new one. NULL: out of memory. */
static const char *token_of(cr_mask *m, enum cr_mask_kind kind, const char *text, size_t len)
{
    for (size_t i = 0; i < m->n; i++)
        if (strlen(m->v[i].text) == len && memcmp(m->v[i].text, text, len) == 0)
            return m->v[i].token;
    if (m->n == m->cap) {
        size_t cap = m->cap ? 2 * m->cap : 16;
        struct value *v = cr_realloc(m->v, cap, sizeof *v);
        if (!v)
            return NULL;
        m->v = v;
        m->cap = cap;
    }
    struct value v = {.token =
                          cr_asprintf("[%s_%d_%s]", kind_names[kind], m->n_of[kind] + 1, m->nonce),
                      .text = cr_strndup(text, len)};
    if (!v.token || !v.text) {
        cr_free(v.token);
        cr_free(v.text);
        return NULL;
    }
    m->n_of[kind]++;
    m->v[m->n++] = v;
    return v.token;
}

static char *mask_one(cr_mask *m, const char *text, struct cr_spans *spans)
{
    struct cr_buf b;
    size_t done = 0, n;
    bool ok = true;
    cr_buf_init(&b, 2 * (size_t)MAX_TEXT);
    cr_spans_merge(spans);
    for (size_t i = 0; i < spans->n && ok; i++) {
        const struct cr_span *s = &spans->v[i];
        const char *token = token_of(m, s->kind, text + s->from, s->to - s->from);
        ok = token && cr_buf_add(&b, text + done, s->from - done) && cr_buf_puts(&b, token);
        done = s->to;
    }
    ok = ok && cr_buf_puts(&b, text + done);
    char *out = ok ? cr_buf_detach(&b, &n) : NULL;
    cr_buf_deinit(&b);
    return out;
}

static enum cr_status find_all(const cr_masker *masker, const struct cr_message *messages, size_t n,
                               struct cr_spans *spans, struct cr_error *err)
{
    enum cr_status st = find_joined(masker, messages, n, NULL, spans, err);
    for (size_t i = 0; i < n && st == CR_OK; i++) {
        st = find_joined(masker, &messages[i], 1, NULL, &spans[i], err);
        bool first = true; /* of its role */
        for (size_t k = 0; k < i; k++)
            first = first && strcmp(messages[k].role, messages[i].role) != 0;
        if (st == CR_OK && first)
            st = find_joined(masker, messages, n, messages[i].role, spans, err);
    }
    return st;
}

enum cr_status cr_mask_new(cr_mask **out, const cr_masker *masker,
                           const struct cr_message *messages, size_t n,
                           const struct cr_message **masked, struct cr_error *err)
{
    *out = NULL;
    *masked = NULL;
    for (size_t i = 0; i < n; i++)
        if (!messages[i].role || !messages[i].content)
            return cr_error_set(err, CR_INVALID, "message %zu: want role and content", i + 1);
    cr_mask *m = cr_alloc0(1, sizeof *m);
    struct cr_spans *spans = cr_alloc0(n + 1, sizeof *spans);
    enum cr_status st = CR_OK;
    if (m)
        m->masked = cr_alloc0(n + 1, sizeof *m->masked);
    if (!m || !spans || !m->masked)
        st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    if (st == CR_OK)
        st = draw_nonce(m, messages, n, err);
    if (st == CR_OK)
        st = find_all(masker, messages, n, spans, err);
    for (size_t i = 0; i < n && st == CR_OK; i++) {
        char *text = mask_one(m, messages[i].content, &spans[i]);
        if (!text)
            st = cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
        m->masked[i] = (struct cr_message){messages[i].role, text};
        m->n_masked = i + 1;
    }
    for (size_t i = 0; spans && i < n; i++)
        cr_free(spans[i].v);
    cr_free(spans);
    if (st != CR_OK) {
        cr_mask_free(m);
        return st;
    }
    *masked = m->masked;
    *out = m;
    return CR_OK;
}

void cr_mask_free(cr_mask *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        explicit_bzero(m->v[i].text, strlen(m->v[i].text));
        cr_free(m->v[i].text);
        cr_free(m->v[i].token);
    }
    for (size_t i = 0; i < m->n_masked; i++)
        cr_free((void *)(uintptr_t)m->masked[i].content);
    cr_free(m->masked);
    cr_free(m->v);
    cr_free(m);
}

size_t cr_mask_count(const cr_mask *m)
{
    return m->n;
}

/* ---- the way back ---- */

/* The value whose placeholder stands at text; NULL: none. */
static const struct value *value_at(const cr_mask *m, const char *text, size_t len)
{
    for (size_t i = 0; i < m->n; i++) {
        size_t n = strlen(m->v[i].token);
        if (n <= len && memcmp(m->v[i].token, text, n) == 0)
            return &m->v[i];
    }
    return NULL;
}

bool cr_mask_restore(const cr_mask *m, const char *text, size_t len, struct cr_buf *out)
{
    while (len) {
        const char *open = memchr(text, '[', len);
        size_t n = open ? (size_t)(open - text) : len;
        if (!cr_buf_add(out, text, n))
            return false;
        text += n;
        len -= n;
        const struct value *v = len ? value_at(m, text, len) : NULL;
        if (v && !cr_buf_puts(out, v->text))
            return false;
        if (!v && len && !cr_buf_add(out, text, 1))
            return false;
        n = v ? strlen(v->token) : len ? 1 : 0;
        text += n;
        len -= n;
    }
    return true;
}

/* How much of the end of text may be the beginning of a placeholder. */
static size_t open_end(const cr_mask *m, const char *text, size_t len)
{
    size_t most = sizeof((struct cr_unmask){0}.held) - 1;
    for (size_t n = len < most ? len : most; n > 0; n--) {
        if (text[len - n] != '[')
            continue;
        for (size_t i = 0; i < m->n; i++)
            if (strlen(m->v[i].token) > n && memcmp(m->v[i].token, text + len - n, n) == 0)
                return n;
    }
    return 0;
}

bool cr_unmask_feed(struct cr_unmask *u, const char *text, size_t len, struct cr_buf *out)
{
    if (!text) {
        bool ok = cr_buf_add(out, u->held, u->n_held);
        u->n_held = 0;
        return ok;
    }
    struct cr_buf all;
    cr_buf_init(&all, MAX_TEXT);
    bool ok = cr_buf_add(&all, u->held, u->n_held) && cr_buf_add(&all, text, len);
    size_t keep = ok && all.len ? open_end(u->mask, all.data, all.len) : 0;
    ok = ok && (all.len == keep || cr_mask_restore(u->mask, all.data, all.len - keep, out));
    if (ok && keep)
        memcpy(u->held, all.data + all.len - keep, keep);
    u->n_held = keep;
    cr_buf_deinit(&all);
    return ok;
}
