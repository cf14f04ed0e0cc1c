/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The router: one handle that is configured once and then decides and asks.
 *
 *     cr_router_new(&r, &options, &err);
 *     cr_router_decide(r, palette, &signals, CR_ROUTE_AUTO, &decision);
 *     if (decision.server) {
 *         cr_router_prepare(r, &ask, &out, &err);    // cr_preview(&out, ...) may show it
 *         st = cr_router_send(r, &out, &answer, &err);
 *         if (st != CR_OK)                           // give the device's answer and say so:
 *             cr_router_failed(&decision, &err);     // why = "upstream failed: ..."
 *     }
 *
 * The device's answer exists before any decision (its forward pass gives the signals), so whatever
 * goes wrong there is an answer. Nothing is sent that the ledger did not record first.
 * Thread-safe: one worker may decide while several threads send.
 */
#ifndef CR_ROUTE_H
#define CR_ROUTE_H

#include "route/ledger.h"
#include "route/preview.h"
#include "route/rules.h"

typedef struct cr_router cr_router;

struct cr_router_options {
    enum cr_rule rule;
    double budget;                              /* share of questions that may leave, [0, 1] */
    uint64_t seed;                              /* of RANDOM */
    const struct cr_upstream_options *upstream; /* NULL: there is none */
    const char *ledger_path;                    /* NULL: the default place */
    bool offline;                               /* nothing is ever sent, decisions say so */
};

/* What the caller of one request wants (request field crayon.route). */
enum cr_route_wish { CR_ROUTE_AUTO, CR_ROUTE_DEVICE, CR_ROUTE_SERVER };

/* CR_INVALID for a bad budget or upstream. The ledger is opened at the first send. Free with
 * cr_router_free. */
enum cr_status cr_router_new(cr_router **out, const struct cr_router_options *opt,
                             struct cr_error *err);
void cr_router_free(cr_router *r);
/* cr_rule_ready for this router; ask it at start-up for each palette, so that a missing calibration
 * is an error then and not a reason later. */
enum cr_status cr_router_ready(const cr_router *r, const cr_palette *p, struct cr_error *err);
const char *cr_router_destination(const cr_router *r); /* NULL: no upstream */
enum cr_rule cr_router_rule(const cr_router *r);
double cr_router_budget(const cr_router *r);
uint64_t cr_router_seed(const cr_router *r);

/* Decides for one request. p NULL: no palette. The budget is also a cap over the life of the
 * handle: what would pass it by more than 5 requests stays on the device. A wish for the server
 * passes rule and cap, never `offline`. */
void cr_router_decide(cr_router *r, const cr_palette *p, const struct cr_signals *s,
                      enum cr_route_wish wish, struct cr_decision *out);

/* See upstream.h. CR_POLICY when offline, CR_INVALID without an upstream. */
enum cr_status cr_router_prepare(const cr_router *r, const struct cr_ask *ask,
                                 struct cr_outgoing *out, struct cr_error *err);
/* Records, sends, completes the record. An unwritable ledger is an error before anything leaves. */
enum cr_status cr_router_send(cr_router *r, const struct cr_outgoing *out,
                              struct cr_remote_answer *answer, struct cr_error *err);
/* prepare and send in one. */
enum cr_status cr_router_ask(cr_router *r, const struct cr_ask *ask,
                             struct cr_remote_answer *answer, struct cr_error *err);
/* Turns a decision for the server back: route device, why "upstream failed: MESSAGE". */
void cr_router_failed(struct cr_decision *d, const struct cr_error *err);

#endif
