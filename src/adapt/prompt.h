/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Token ids of an example: the prompt, and the texts that follow it. Training, scoring, embedding
 * and generation all use these two functions, so that they see the same ids.
 */
#ifndef CR_PROMPT_H
#define CR_PROMPT_H

#include "adapt/examples.h"
#include "model/model.h"

/* Appends the ids of cr_example_prompt(e), with BOS in front where the model asks for it. */
enum cr_status cr_prompt_encode(const cr_model *m, const struct cr_example *e, struct cr_ids *ids,
                                struct cr_error *err);
/* Appends the ids of " " + text (+ "\n" if end_line), tokenised on its own, no BOS. A SentencePiece
 * tokenizer that puts the blank there by itself is not given a second one. */
enum cr_status cr_answer_encode(const cr_model *m, const char *text, bool end_line,
                                struct cr_ids *ids, struct cr_error *err);

#endif
