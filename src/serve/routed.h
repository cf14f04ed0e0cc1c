/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing in the request path. A request that may be routed is answered by the model first and
 * held back; when the answer is whole its signals are known, the router decides, and the answer is
 * let go or a thread asks the server. Where the rule asks only for the question the decision comes
 * first, and an answer of this device is not held. Whatever fails before a byte of the server's
 * text has gone out, the model's answer is given and `why` says so.
 *
 * Only chats with one choice and free text are routed: a server is not asked to honour our schemas,
 * tools and log-probabilities.
 */
#ifndef CR_ROUTED_H
#define CR_ROUTED_H

#include "base/error.h"

struct cr_job;
struct cr_serve_options;
struct cr_api_error;
struct cr_metrics;
typedef struct cr_routing cr_routing;

/* Of one job. */
struct cr_routed {
    bool hold;   /* the text waits for the decision, or as the answer if the server fails */
    bool away;   /* the worker gives the job to a thread that asks the server */
    bool server; /* who answered */
    bool known;  /* the decision, and the numbers below */
    char why[480];
    double confidence, scope, cost; /* NAN: unknown */
    uint64_t left_bytes;
};

/* opt->router and what it logs by; borrowed, lives longer. Without a router *out is NULL. */
enum cr_status cr_routing_new(cr_routing **out, const struct cr_serve_options *opt,
                              struct cr_metrics *metrics, struct cr_error *err);
/* Waits until no thread is asking, at most ms milliseconds; false: one still is. */
bool cr_routing_wait(cr_routing *r, int ms);
/* Cancels what is asking, waits for it. */
void cr_routing_free(cr_routing *r);

/* Before the model runs: shall the job's text be held? Decides where that is possible now. Fills
 * j->routed. e is set for a wish that cannot be granted. r may be NULL. */
void cr_routing_begin(cr_routing *r, struct cr_job *j, struct cr_api_error *e);
/* When the answer of a held job is whole: decides, if that has not been done. The worker lets the
 * text go, or, when j->routed.away is set then, calls cr_routing_start as the last thing that it
 * does with the job.
 */
void cr_routing_decide(cr_routing *r, struct cr_job *j);
/* Takes the worker's reference. */
void cr_routing_start(cr_routing *r, struct cr_job *j);

#endif
