/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing in the request path. Where the question settles the decision it is made first: an answer
 * of this device streams, and a thread asks the server without the model having run. Else the model
 * answers and its text is held back; when the answer is whole its signals are known, the router
 * decides, and the answer is let go or a thread asks the server. Whatever fails before a byte of
 * the server's text has gone out, the model's answer is given, made now if need be, and `why` says
 * so.
 *
 * Only chats with one choice and free text are routed: a server is not asked to honour our schemas,
 * tools and log-probabilities.
 */
#ifndef CR_ROUTED_H
#define CR_ROUTED_H

#include "route/signals.h"

#include <jansson.h>

struct cr_job;
struct cr_target;
struct cr_worker;
struct cr_serve_options;
struct cr_api_error;
struct cr_metrics;
typedef struct cr_routing cr_routing;

/* Of one job. */
struct cr_routed {
    bool hold;                 /* the text waits for the decision, or for what the server says */
    bool away;                 /* the worker gives the job to a thread that asks the server */
    bool server;               /* who answered */
    bool failed;               /* the server gave nothing, so the model answers */
    bool known;                /* the decision, and the numbers below */
    struct cr_signals signals; /* what the question tells */
    char why[480];
    double confidence, scope, cost; /* NAN: unknown */
    uint64_t left_bytes;
};

/* opt->router, what it logs by, and the worker that answers where a server fails; borrowed, live
 * longer. Without a router *out is NULL. */
enum cr_status cr_routing_new(cr_routing **out, const struct cr_serve_options *opt,
                              struct cr_metrics *metrics, struct cr_worker *worker,
                              struct cr_error *err);
/* Waits until no thread is asking, at most ms milliseconds; false: one still is. */
bool cr_routing_wait(cr_routing *r, int ms);
/* Cancels what is asking, waits for it. */
void cr_routing_free(cr_routing *r);

/* {"routed": true} where the rule can judge questions to t, else {"routed": false, "why": "..."};
 * NULL without a router. */
json_t *cr_routing_json(const cr_routing *r, const struct cr_target *t);

/* May the job leave? Fills j->routed; e is set for a wish that cannot be granted. r may be NULL. */
void cr_routing_begin(cr_routing *r, struct cr_job *j, struct cr_api_error *e);
/* Before the model runs a job that is otherwise ready: decides where that is possible now. */
void cr_routing_early(cr_routing *r, struct cr_job *j);
/* When the answer of a held job is whole: decides. After either, with j->routed.away set, the
 * worker calls cr_routing_start as the last thing that it does with the job. */
void cr_routing_decide(cr_routing *r, struct cr_job *j);
/* Takes the worker's reference. */
void cr_routing_start(cr_routing *r, struct cr_job *j);

#endif
