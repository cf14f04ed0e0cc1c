/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tokens keep a text inside its grammar. All tokens stand in the order of their bytes with
 * the length that each shares with the one before, so one walk steps through every common beginning
 * once. What is found for a frame is kept with the grammar, and so for the next token, answer and
 * request.
 */
#include "serve/constraint.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_TOKEN = 256,      /* bytes; longer tokens are never chosen */
    WALK_STEPS = 40000000 /* of frames by bytes in one walk: some seconds */
};

struct token {
    const char *bytes;
    uint16_t n, shared; /* length; bytes in common with the token before */
    int32_t id;
};

struct cr_token_tree {
    struct token *v;
    size_t n, n_words;    /* words of a mask */
    uint32_t *ends;       /* [n_words] mask of the tokens that end a text */
    uint32_t longest;     /* one more than the longest token */
    struct cr_frames *at; /* [longest]: where each beginning of a token leads, in a walk */
    uint64_t steps;       /* of that walk */
};

struct cr_constraint {
    cr_token_tree *tree;
    cr_grammar *g;
    struct cr_frames *now, *next;
};

/* ---- tokens ------------------------------------------------------------------------------- */

static int by_bytes(const void *a, const void *b)
{
    const struct token *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    if (order == 0)
        order = (x->n > y->n) - (x->n < y->n);
    return order ? order : (x->id > y->id) - (x->id < y->id);
}

enum cr_status cr_token_tree_new(cr_token_tree **out, const cr_model *m, struct cr_error *err)
{
    size_t n_vocab = (size_t)cr_model_info(m)->n_vocab;
    cr_token_tree *t = cr_alloc0(1, sizeof *t);
    *out = NULL;
    if (t) {
        t->n_words = (n_vocab + 31) / 32;
        t->v = cr_alloc(n_vocab, sizeof *t->v);
        t->ends = cr_alloc0(t->n_words, sizeof *t->ends);
    }
    if (!t || !t->v || !t->ends) {
        cr_token_tree_free(t);
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    for (size_t id = 0; id < n_vocab; id++) {
        const char *bytes;
        size_t n = cr_token_bytes(m, (int32_t)id, false, &bytes);
        if (cr_token_is_end(m, (int32_t)id))
            t->ends[id / 32] |= (uint32_t)1 << id % 32;
        else if (n > 0 && n <= MAX_TOKEN)
            t->v[t->n++] = (struct token){.bytes = bytes, .n = (uint16_t)n, .id = (int32_t)id};
    }
    qsort(t->v, t->n, sizeof *t->v, by_bytes);
    for (size_t i = 0; i < t->n; i++)
        t->longest = t->v[i].n + 1u > t->longest ? t->v[i].n + 1u : t->longest;
    for (size_t i = 1; i < t->n; i++) {
        uint16_t k = 0, most = t->v[i].n < t->v[i - 1].n ? t->v[i].n : t->v[i - 1].n;
        while (k < most && t->v[i].bytes[k] == t->v[i - 1].bytes[k])
            k++;
        t->v[i].shared = k;
    }
    if (!(t->at = cr_alloc(t->longest, sizeof *t->at))) {
        cr_token_tree_free(t);
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    *out = t;
    return CR_OK;
}

void cr_token_tree_free(cr_token_tree *t)
{
    if (!t)
        return;
    cr_free(t->at);
    cr_free(t->ends);
    cr_free(t->v);
    cr_free(t);
}

/* ---- one text ------------------------------------------------------------------------------- */

enum cr_status cr_constraint_new(cr_constraint **out, cr_token_tree *t, cr_grammar *g,
                                 struct cr_error *err)
{
    cr_constraint *c = cr_alloc0(1, sizeof *c);
    *out = NULL;
    if (c) {
        c->tree = t;
        c->g = cr_grammar_ref(g);
        c->now = cr_alloc(1, sizeof *c->now);
        c->next = cr_alloc(1, sizeof *c->next);
    }
    if (!c || !c->now || !c->next) {
        cr_constraint_free(c);
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    if (!cr_constraint_reset(c)) {
        cr_constraint_free(c);
        return cr_error_set(err, CR_UNSUPPORTED, "the schema allows too much at a time");
    }
    *out = c;
    return CR_OK;
}

void cr_constraint_free(cr_constraint *c)
{
    if (!c)
        return;
    cr_grammar_unref(c->g);
    cr_free(c->now);
    cr_free(c->next);
    cr_free(c);
}

bool cr_constraint_reset(cr_constraint *c)
{
    return cr_grammar_start(c->g, c->now);
}

static void swap(cr_constraint *c)
{
    struct cr_frames *was = c->now;
    c->now = c->next;
    c->next = was;
}

bool cr_constraint_accept(cr_constraint *c, const char *bytes, size_t n)
{
    struct cr_frames *before = n > 1 ? cr_alloc(1, sizeof *before) : NULL;
    bool ok = n <= 1 || before;
    if (before)
        *before = *c->now;
    for (size_t i = 0; i < n && ok; i++) {
        ok = cr_grammar_step(c->g, c->now, (uint8_t)bytes[i], c->next) &&
             (c->next->n || c->next->whole);
        if (ok)
            swap(c);
    }
    if (!ok && before)
        *c->now = *before;
    cr_free(before);
    return ok;
}

bool cr_constraint_may_end(const cr_constraint *c)
{
    return c->now->whole;
}

bool cr_constraint_must_end(const cr_constraint *c)
{
    return c->now->whole && c->now->n == 0;
}

/* ---- masks ---------------------------------------------------------------------------------- */

/* Walks all tokens from one frame; at[k] is where the first k + 1 bytes lead. */
static bool walk(cr_constraint *c, uint32_t frame, uint32_t *mask)
{
    cr_token_tree *t = c->tree;
    size_t dead = SIZE_MAX; /* the length at which the beginning at hand leaves the language */
    t->steps = 0;
    for (size_t i = 0; i < t->n; i++) {
        const struct token *k = &t->v[i];
        if (k->shared >= dead)
            continue;
        dead = SIZE_MAX;
        for (size_t b = k->shared; b < k->n; b++) {
            uint8_t byte = (uint8_t)k->bytes[b];
            bool ok = b == 0 ? cr_frame_step(c->g, frame, byte, &t->at[0])
                             : cr_grammar_step(c->g, &t->at[b - 1], byte, &t->at[b]);
            t->steps += b == 0 ? 1 : t->at[b - 1].n + 1;
            if (!ok || t->steps > WALK_STEPS)
                return false;
            if (t->at[b].n == 0 && (!t->at[b].whole || b + 1 < k->n)) {
                dead = b + 1;
                break;
            }
        }
        /* A text that is whole and over after b bytes takes no more: longer tokens are dead there.
         */
        if (dead == SIZE_MAX)
            mask[k->id / 32] |= (uint32_t)1 << k->id % 32;
    }
    return true;
}

/* The tokens that fit after a frame; NULL: past a bound, or out of memory. */
static const uint32_t *mask_of(cr_constraint *c, uint32_t frame)
{
    frame = cr_frame_canonical(c->g, frame, c->tree->longest);
    const uint32_t *known = cr_frame_mask(c->g, frame);
    if (known)
        return known;
    uint32_t *fresh = cr_alloc0(c->tree->n_words, sizeof *fresh), *kept = NULL;
    if (fresh && walk(c, frame, fresh) && (kept = cr_frame_new_mask(c->g, frame, c->tree->n_words)))
        memcpy(kept, fresh, c->tree->n_words * sizeof *fresh);
    cr_free(fresh);
    return kept;
}

bool cr_constraint_mask(cr_constraint *c, const cr_model *m, float *logits)
{
    size_t n_vocab = (size_t)cr_model_info(m)->n_vocab, n = c->tree->n_words, left = 0;
    uint32_t *all = cr_alloc0(n, sizeof *all);
    bool ok = all != NULL;
    for (uint32_t i = 0; i < c->now->n && ok; i++) {
        const uint32_t *mask = mask_of(c, c->now->v[i]);
        ok = mask != NULL;
        for (size_t w = 0; w < n && ok; w++)
            all[w] |= mask[w];
    }
    for (size_t w = 0; w < n && ok && c->now->whole; w++)
        all[w] |= c->tree->ends[w];
    for (size_t id = 0; id < n_vocab && ok; id++) {
        bool fits = all[id / 32] >> id % 32 & 1;
        logits[id] = fits ? logits[id] : -INFINITY;
        left += fits;
    }
    cr_free(all);
    return ok && left > 0;
}
