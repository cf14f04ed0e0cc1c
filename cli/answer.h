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
    float *tops;     /* [n] ln p1 of each step: of the likeliest token, whichever was chosen */
    size_t n, cap;
    enum cr_finish finish;
    struct cr_generated stats;
    char request_id[24]; /* of the ledger */
    const char *route;   /* "device" or "server" */
    char why[480];       /* one sentence */
    double confidence;   /* in [0, 1]; NAN: unknown */
    double scope;        /* similarity of the prompt to the palette's task; NAN: unknown */
    uint64_t left_bytes; /* HTTP bytes that left the device for this answer */
    double cost;         /* NAN: unknown */
};

/* Room for n tokens. Free with cr_answer_deinit in both cases. */
enum cr_status cr_answer_init(struct cr_answer *ans, size_t n, struct cr_error *err);
void cr_answer_deinit(struct cr_answer *ans);
/* Empties it for the next answer. */
void cr_answer_reset(struct cr_answer *ans);
/* One chosen token, told before the session runs it. */
void cr_answer_token(struct cr_answer *ans, const cr_session *s, int32_t id, float logprob);

typedef struct cr_cli_router cr_cli_router;

/* Makes a router of --upstream and the options beside it. *out stays NULL without --upstream. What
 * is wrong with the options, the key or the palette's calibration is said here, before anything
 * runs. Close with cr_cli_router_close. */
enum cr_status cr_cli_router_open(cr_cli_router **out, const struct cr_args *a, struct cr_setup *s,
                                  struct cr_error *err);
void cr_cli_router_close(cr_cli_router *r);

/* Must the device's text wait for the decision (then it is not streamed)? */
bool cr_cli_answer_waits(const struct cr_args *a);
/* The decision: given the conversation and the device's answer, sets route, why, confidence and
 * scope, and replaces the text if a server answered. The device's answer stays when the server
 * fails. r NULL: no server. */
enum cr_status cr_cli_answer(cr_cli_router *r, const struct cr_args *a, const struct cr_setup *s,
                             const struct cr_message *messages, size_t n_messages,
                             struct cr_answer *ans, struct cr_error *err);

#endif
