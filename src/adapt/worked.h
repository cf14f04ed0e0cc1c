/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worked examples: questions with their answers that stand in front of a question, so that the
 * model sees what answers look like. Each is the ids of its prompt and of its answer with the line
 * end, as they are trained (prompt.h), one behind the other; BOS comes once, in front of all.
 * Task embeddings and scope never see them.
 */
#ifndef CR_WORKED_H
#define CR_WORKED_H

#include "adapt/prompt.h"

enum {
    CR_WORKED_MAX = 16,
    CR_WORKED_ANSWER = 64, /* tokens of answer that are kept free beside them, at least */
};

struct cr_worked { /* tokenised once; all zero: none */
    size_t n;
    size_t end[CR_WORKED_MAX]; /* example i is ids [end[i - 1], end[i]), the first from 0 */
    struct cr_ids ids;
};

/* Tokenises n examples, each with an answer; CR_INVALID without one, CR_LIMIT for more than
 * CR_WORKED_MAX. Free with cr_worked_deinit in both cases. */
enum cr_status cr_worked_init(struct cr_worked *w, const cr_model *m, const struct cr_example *e,
                              size_t n, struct cr_error *err);
void cr_worked_deinit(struct cr_worked *w);
/* Puts them in front of the prompt ids [at, ids->n), behind its BOS if it has one, else behind a
 * BOS where the model asks for one. Of more than `most`, and where all of it would have more than
 * `room` tokens, the first examples are left out, one by one; the prompt itself is never touched.
 * *n_used (may be NULL): how many stand there, the last ones. w may be NULL. */
enum cr_status cr_worked_put(const struct cr_worked *w, const cr_model *m, size_t most, size_t room,
                             struct cr_ids *ids, size_t at, size_t *n_used, struct cr_error *err);
/* That room in a context of n_ctx tokens for an answer of at most max_tokens (< 0: no limit). */
static inline size_t cr_worked_room(int n_ctx, int max_tokens)
{
    int answer = max_tokens < 0 || max_tokens > CR_WORKED_ANSWER ? CR_WORKED_ANSWER : max_tokens;
    return n_ctx > answer ? (size_t)(n_ctx - answer) : 0;
}

#endif
