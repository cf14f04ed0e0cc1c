/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An answer to one prompt, and where it came from. `run` fills it from the device; then
 * cr_cli_answer decides about it before anything is printed for good.
 */
#ifndef CR_ANSWER_H
#define CR_ANSWER_H

#include "common.h"

struct cr_answer {
    struct cr_buf text;
    int32_t *ids;    /* [n] chosen tokens */
    float *logprobs; /* [n] of each under the model's own distribution */
    size_t n, cap;
    enum cr_finish finish;
    struct cr_generated stats;
    const char *route; /* "device" or "server" */
    char why[256];     /* one sentence */
    double confidence; /* in [0, 1]; NAN: unknown */
    double scope;      /* similarity of the prompt to the palette's task; NAN: unknown */
};

/* Must the device's text wait for the decision (then it is not streamed)? */
bool cr_cli_answer_waits(const struct cr_args *a);
/* The decision: given the conversation and the device's answer, sets route, why, confidence and
 * scope, and replaces the text if a server answered. The device's answer stays when the server
 * fails. */
enum cr_status cr_cli_answer(const struct cr_args *a, const struct cr_setup *s,
                             const struct cr_message *messages, size_t n_messages,
                             struct cr_answer *ans, struct cr_error *err);

#endif
