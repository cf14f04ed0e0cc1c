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
 * The device can answer whatever goes wrong with the server, and has answered where the rule asks
 * how sure it was. Nothing is sent that the ledger did not record first.
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
    double budget;    /* share of questions that may leave, [0, 1] */
    double max_wrong; /* above 0: thresholds by this bound on errors, the budget is a cap only */
    int window;       /* the budget holds over so many last questions; 0: over all */
    uint64_t seed;    /* of RANDOM */
    const struct cr_upstream_options *upstream; /* [n_upstreams], asked in order; NULL: none */
    size_t n_upstreams;                         /* 0 with upstream given: 1 */
    double max_cost;                  /* most for one answer; 0: no limit; an ask may say less */
    double max_spend;                 /* money that may be spent in any spend_hours; 0: no limit */
    double spend_hours;               /* 0: 24; what other processes spent counts, by the ledger */
    bool mask;                        /* personal data is masked before it leaves (mask.h) */
    const char *const *mask_patterns; /* [n_mask_patterns] what else is */
    size_t n_mask_patterns;
    const char *ledger_path; /* NULL: the default place */
    bool offline;            /* nothing is ever sent, decisions say so */
};

/* What the caller of one request wants (request field crayon.route). */
enum cr_route_wish { CR_ROUTE_AUTO, CR_ROUTE_DEVICE, CR_ROUTE_SERVER };

/* CR_INVALID for a bad budget or upstream, and for max_spend where a price is missing. The ledger
 * is opened at the first send. Free with cr_router_free. */
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

/*
 * Decides for one request. p NULL: no palette.
 *
 * The threshold of a budget comes from n examples, so the share that it really sends has a standard
 * error of sqrt(2 budget (1 - budget) / n), and drifts with the questions. Therefore the router
 * follows up: each question moves the budget that the rule is given by 0.02 * (budget - sent), so
 * that after T questions the share lies within 1.02 / (0.02 T) of the budget for any stream
 * (Gibbs and Candes, Adaptive Conformal Inference, arXiv 2106.00170), in practice far closer.
 * The budget is also a cap over the window, from the first question on: what would pass it by more
 * than 5 questions stays on the device.
 *
 * A wish for the server passes rule and cap, never `offline`. Wishes do not count.
 */
void cr_router_decide(cr_router *r, const cr_palette *p, const struct cr_signals *s,
                      enum cr_route_wish wish, struct cr_decision *out);

/* Why no question leaves by rule whatever it is: no upstream, offline, a budget of 0; NULL: one
 * may.
 */
const char *cr_router_closed(const cr_router *r);

/* Decides as cr_router_decide does, before the model has answered, where no answer could change the
 * decision: RANDOM and SCOPE always, CRAYON where the question lies out of scope, every rule where
 * the request wishes, a palette cannot be judged or the budget is used up. s holds what the
 * question tells. False: the answer matters; nothing was counted, *out is undefined. */
bool cr_router_decide_early(cr_router *r, const cr_palette *p, const struct cr_signals *s,
                            enum cr_route_wish wish, struct cr_decision *out);

/* Notes a decision in the ledger, so that `crayon route explain ID` can tell it later. palette: its
 * name, or NULL. What cannot be noted is logged, no more. */
void cr_router_note(cr_router *r, const char *request_id, const char *palette,
                    const struct cr_signals *s, const struct cr_decision *d);

/* See upstream.h; for several upstreams out->next holds what the next one would get. CR_POLICY when
 * offline or the spending limit is reached, CR_INVALID without an upstream. */
enum cr_status cr_router_prepare(cr_router *r, const struct cr_ask *ask, struct cr_outgoing *out,
                                 struct cr_error *err);
/* Records, sends, completes the record; asks the next upstream when one fails before any text came.
 * Each is a row of its own; bytes and tries of `answer` are of all. An unwritable ledger is an
 * error before anything leaves. out->url and out->model then name the upstream that answered. */
enum cr_status cr_router_send(cr_router *r, struct cr_outgoing *out,
                              struct cr_remote_answer *answer, struct cr_error *err);
/* prepare and send in one. */
enum cr_status cr_router_ask(cr_router *r, const struct cr_ask *ask,
                             struct cr_remote_answer *answer, struct cr_error *err);
/* Turns a decision for the server back: route device, why "upstream failed: MESSAGE". */
void cr_router_failed(struct cr_decision *d, const struct cr_error *err);

#endif
