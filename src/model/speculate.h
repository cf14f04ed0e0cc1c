/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guesses at the next tokens, so that several can be run in one pass over the weights. A guess is
 * kept only if the sampler, given the logits that it would have had anyway, chooses it: the text is
 * the same as without guesses, bit for bit, at any temperature. Guesses come from the text so far
 * (what followed the last time the same tokens stood there) or from a smaller model with the same
 * vocabulary.
 */
#ifndef CR_SPECULATE_H
#define CR_SPECULATE_H

#include "model/session.h"

enum { CR_MAX_GUESSES = 7 };

struct cr_speculation {
    bool lookup;
    cr_session *draft; /* NULL: none */
    int32_t *ids;      /* [n] the text so far */
    size_t n, cap;
    int32_t tried[CR_MAX_GUESSES + 1]; /* what the session ran last: a chosen id, then guesses */
    int n_tried, at;                   /* tried[at] is the last that was chosen */
    size_t n_guessed, n_accepted;
};

/* CR_INVALID when the draft's vocabulary is another. Free with cr_speculation_deinit. */
enum cr_status cr_speculation_init(struct cr_speculation *p, const cr_session *s,
                                   const struct cr_generate *g, struct cr_error *err);
void cr_speculation_deinit(struct cr_speculation *p);
/* Makes the session's logits those after `id`, which was chosen: from the guesses if it was one of
 * them, else by running it with new guesses, at most `left`. */
enum cr_status cr_speculation_step(struct cr_speculation *p, cr_session *s, int32_t id, int left,
                                   struct cr_error *err);
/* Drops what was guessed too far from the session. */
void cr_speculation_end(struct cr_speculation *p, cr_session *s);

#endif
