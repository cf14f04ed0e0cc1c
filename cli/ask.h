/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking the device: how a text becomes a prompt, which sampling the options name, and one answer
 * with what routing needs to know about it. Shared by run and route, so that a calibration sees
 * what a run will see.
 */
#ifndef CR_ASK_H
#define CR_ASK_H

#include "adapt/examples.h"
#include "answer.h"

enum cr_form {
    CR_FORM_RAW,  /* the text goes on */
    CR_FORM_CHAT, /* the model's chat template */
    CR_FORM_TASK  /* "Question: TEXT\nAnswer:", as palettes are made; ends with the line */
};

/* --raw, --chat, else: a palette's task form, a chat where the model knows how, plain text. */
enum cr_form cr_form_of(const struct cr_args *a, const struct cr_setup *s);
/* Of --temp and the like. In the task form the temperature is 0 unless given. */
struct cr_sampling cr_sampling_of(const struct cr_args *a, enum cr_form form);
/* The example's question (and context) as the form has it. system may be NULL. The task form puts
 * the palette's worked examples in front, as many as `room` tokens hold with the question, and says
 * so where that is not all of them. Free *ids with cr_free. */
enum cr_status cr_form_ids(const struct cr_setup *s, enum cr_form form, const char *system,
                           const struct cr_example *e, size_t room, int32_t **ids, size_t *n,
                           struct cr_error *err);

#endif
