/* SPDX-License-Identifier: Apache-2.0 */
/* Log-probabilities of the tokens of one choice, in the form of its endpoint. */
#ifndef CR_PROBS_H
#define CR_PROBS_H

#include "serve/api.h"

struct cr_probs {
    json_t *chat;                          /* chat: [{token, logprob, bytes, top_logprobs}] */
    json_t *tokens, *values, *tops, *offs; /* completions: parallel arrays */
    size_t offset;                         /* bytes of text before the next token */
};

void cr_probs_init(struct cr_probs *p, bool chat);
void cr_probs_deinit(struct cr_probs *p);
/* logits NULL: the first token of a prompt, which has no probability. lse: log of the sum of the
 * logits' exponentials; every number comes from logit - lse, so equal ones are equal floats. */
void cr_probs_add(struct cr_probs *p, bool chat, const cr_model *m, int32_t id, const float *logits,
                  float lse, int n_top);
/* Hands the arrays over as the "logprobs" value; p goes on empty with its offset. NULL: out of
 * memory. */
json_t *cr_probs_take(struct cr_probs *p, bool chat);
/* log sum exp of logits [n_vocab]. */
float cr_log_sum_exp(const float *logits, int n);

#endif
