/* SPDX-License-Identifier: Apache-2.0 */
/* Guesses at the next tokens. */
#include "model/speculate.h"

#include "base/mem.h"

#include <string.h>

enum { LONGEST_MATCH = 3, SHORTEST_MATCH = 2, DRAFT_GUESSES = 4 };

static enum cr_status check_draft(const cr_model *m, const cr_model *draft, struct cr_error *err)
{
    if (m->n_vocab != draft->n_vocab)
        return cr_error_set(err, CR_INVALID, "draft model: want a vocabulary of %d, found %d",
                            m->n_vocab, draft->n_vocab);
    for (int32_t id = 0; id < m->n_vocab; id++) {
        const char *a, *b;
        size_t n = cr_token_bytes(m, id, true, &a);
        if (n != cr_token_bytes(draft, id, true, &b) || memcmp(a, b, n) != 0)
            return cr_error_set(err, CR_INVALID, "draft model: token %d is another there", (int)id);
    }
    return CR_OK;
}

enum cr_status cr_speculation_init(struct cr_speculation *p, const cr_session *s,
                                   const struct cr_generate *g, struct cr_error *err)
{
    *p = (struct cr_speculation){.lookup = g->lookup, .draft = g->draft};
    if (!p->lookup && !p->draft)
        return CR_OK;
    if (p->draft) {
        enum cr_status st = check_draft(cr_session_model(s), cr_session_model(p->draft), err);
        if (st)
            return st;
    }
    p->cap = (size_t)cr_session_ctx(s) + 1;
    p->ids = cr_alloc(p->cap, sizeof *p->ids);
    if (!p->ids)
        return cr_error_set(err, CR_NO_MEMORY, "generate: out of memory");
    p->n = g->n_prompt < p->cap ? g->n_prompt : p->cap;
    memcpy(p->ids, g->prompt, p->n * sizeof *p->ids);
    return CR_OK;
}

void cr_speculation_deinit(struct cr_speculation *p)
{
    cr_free(p->ids);
    *p = (struct cr_speculation){0};
}

/* What followed the latest place where the last tokens stood before; long matches first. */
static int look_up(const struct cr_speculation *p, int32_t *out, int most)
{
    for (size_t len = LONGEST_MATCH; len >= SHORTEST_MATCH; len--) {
        if (p->n < len + 1)
            continue;
        const int32_t *tail = p->ids + p->n - len;
        for (size_t at = p->n - len; at-- > 0;) {
            if (memcmp(p->ids + at, tail, len * sizeof *tail) != 0)
                continue;
            size_t from = at + len, n = p->n - from;
            n = n < (size_t)most ? n : (size_t)most;
            memcpy(out, p->ids + from, n * sizeof *out);
            return (int)n;
        }
    }
    return 0;
}

static int32_t most_likely(const float *logits, int n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* What the draft model would say. It guesses nothing where it fails. */
static int ask_draft(struct cr_speculation *p, int32_t *out, int most)
{
    int n = 0, n_vocab = cr_session_model(p->draft)->n_vocab;
    most = most < DRAFT_GUESSES ? most : DRAFT_GUESSES;
    if (most < 1 || p->n + (size_t)most > (size_t)cr_session_ctx(p->draft) ||
        cr_session_sync(p->draft, p->ids, p->n, NULL, NULL))
        return 0;
    while (n < most) {
        out[n] = most_likely(cr_session_logits(p->draft), n_vocab);
        n++;
        if (n < most && cr_session_step(p->draft, out[n - 1], NULL))
            break;
    }
    return n;
}

enum cr_status cr_speculation_step(struct cr_speculation *p, cr_session *s, int32_t id, int left,
                                   struct cr_error *err)
{
    if (!p->ids)
        return cr_session_step(s, id, err);
    if (p->n < p->cap)
        p->ids[p->n++] = id;
    if (p->at + 1 < p->n_tried && p->tried[p->at + 1] == id) {
        p->n_accepted++;
        cr_session_select(s, ++p->at);
        return CR_OK;
    }
    cr_speculation_end(p, s);
    int room = cr_session_ctx(s) - cr_session_length(s) - 1, most = CR_MAX_GUESSES, n = 0;
    most = most < left ? most : left;
    most = most < room ? most : room;
    most = most < cr_session_try_most(s) - 1 ? most : cr_session_try_most(s) - 1;
    p->tried[0] = id;
    if (p->lookup && most > 0)
        n = look_up(p, p->tried + 1, most);
    if (n == 0 && p->draft)
        n = ask_draft(p, p->tried + 1, most);
    p->n_guessed += (size_t)n;
    p->n_tried = n + 1;
    p->at = 0;
    return cr_session_try(s, p->tried, n + 1, err);
}

void cr_speculation_end(struct cr_speculation *p, cr_session *s)
{
    if (p->n_tried > p->at + 1)
        cr_session_keep(s, cr_session_length(s) - (p->n_tried - p->at - 1));
    p->n_tried = p->at = 0;
}
