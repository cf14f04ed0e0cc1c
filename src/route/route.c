/* SPDX-License-Identifier: Apache-2.0 */
/* The router ties rule, upstream and ledger together. */
#include "route/route.h"

#include "base/log.h"
#include "base/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* Sends beyond the budget's share that a router may make before the cap holds: a fresh router has
 * seen too few requests for a share to mean anything. */
enum { CAP_SLACK = 5 };

struct cr_router {
    enum cr_rule rule;
    double budget;
    uint64_t seed;
    bool offline;
    cr_upstream *upstream;
    char *ledger_path;
    pthread_mutex_t lock;       /* of all below */
    cr_ledger *ledger;          /* NULL until the first send */
    uint64_t n_decided, n_sent; /* by rule, wishes not counted */
};

enum cr_status cr_router_new(cr_router **out, const struct cr_router_options *opt,
                             struct cr_error *err)
{
    *out = NULL;
    if (!(opt->budget >= 0 && opt->budget <= 1))
        return cr_error_set(err, CR_INVALID, "budget: want a share from 0 to 1, found %g",
                            opt->budget);
    cr_router *r = cr_alloc0(1, sizeof *r);
    if (!r)
        return cr_error_set(err, CR_NO_MEMORY, "router: out of memory");
    r->rule = opt->rule;
    r->budget = opt->budget;
    r->seed = opt->seed;
    r->offline = opt->offline;
    pthread_mutex_init(&r->lock, NULL);
    enum cr_status st = CR_OK;
    if (opt->ledger_path && !(r->ledger_path = cr_strdup(opt->ledger_path)))
        st = cr_error_set(err, CR_NO_MEMORY, "router: out of memory");
    if (st == CR_OK && opt->upstream)
        st = cr_upstream_new(&r->upstream, opt->upstream, err);
    if (st != CR_OK) {
        cr_router_free(r);
        return st;
    }
    *out = r;
    return CR_OK;
}

void cr_router_free(cr_router *r)
{
    if (!r)
        return;
    cr_ledger_close(r->ledger);
    cr_upstream_free(r->upstream);
    pthread_mutex_destroy(&r->lock);
    cr_free(r->ledger_path);
    cr_free(r);
}

enum cr_status cr_router_ready(const cr_router *r, const cr_palette *p, struct cr_error *err)
{
    return cr_rule_ready(r->rule, r->budget, p, false, err);
}

const char *cr_router_destination(const cr_router *r)
{
    return r->upstream ? cr_upstream_url(r->upstream) : NULL;
}

enum cr_rule cr_router_rule(const cr_router *r)
{
    return r->rule;
}

double cr_router_budget(const cr_router *r)
{
    return r->budget;
}

uint64_t cr_router_seed(const cr_router *r)
{
    return r->seed;
}

/* Turns a decision for the server into one for the device: "WORDS (the rule said: ...)". */
static void overrule(struct cr_decision *d, const char *words)
{
    char said[sizeof d->why];
    memcpy(said, d->why, sizeof said);
    d->server = false;
    cr_decision_why(d, "%s (the rule said server: %s)", words, said);
}

void cr_router_decide(cr_router *r, const cr_palette *p, const struct cr_signals *s,
                      enum cr_route_wish wish, struct cr_decision *out)
{
    cr_rule_decide(r->rule, r->budget, p, s, out);
    if (wish != CR_ROUTE_AUTO) {
        out->server = wish == CR_ROUTE_SERVER;
        cr_decision_why(out, "asked for by the request");
    } else {
        char words[80] = "";
        pthread_mutex_lock(&r->lock);
        r->n_decided++;
        double most = r->budget * (double)r->n_decided + CAP_SLACK;
        bool capped = out->server && r->budget < 1 && (double)(r->n_sent + 1) > most;
        r->n_sent += out->server && !capped;
        if (capped)
            snprintf(words, sizeof words, "the budget of %g is used up: %llu of %llu sent",
                     r->budget, (unsigned long long)r->n_sent, (unsigned long long)r->n_decided);
        pthread_mutex_unlock(&r->lock);
        if (capped)
            overrule(out, words);
    }
    if (out->server && r->offline)
        overrule(out, "offline");
    else if (out->server && !r->upstream)
        overrule(out, "no upstream is set");
}

enum cr_status cr_router_prepare(const cr_router *r, const struct cr_ask *ask,
                                 struct cr_outgoing *out, struct cr_error *err)
{
    *out = (struct cr_outgoing){0};
    if (r->offline)
        return cr_error_set(err, CR_POLICY, "offline: nothing is sent");
    if (!r->upstream)
        return cr_error_set(err, CR_INVALID, "no upstream is set");
    return cr_upstream_prepare(r->upstream, ask, out, err);
}

static enum cr_status open_ledger(cr_router *r, struct cr_error *err)
{
    pthread_mutex_lock(&r->lock);
    enum cr_status st = r->ledger ? CR_OK : cr_ledger_open(&r->ledger, r->ledger_path, err);
    pthread_mutex_unlock(&r->lock);
    return cr_error_prefix(err, st, "nothing was sent, for it could not be recorded");
}

enum cr_status cr_router_send(cr_router *r, const struct cr_outgoing *out,
                              struct cr_remote_answer *answer, struct cr_error *err)
{
    struct cr_error local, late;
    int64_t id;
    err = err ? err : &local;
    *answer = (struct cr_remote_answer){.tokens_in = -1, .tokens_out = -1, .cost = -1};
    if (r->offline)
        return cr_error_set(err, CR_POLICY, "offline: nothing is sent");
    if (!r->upstream || !out->body)
        return cr_error_set(err, CR_INVALID, "no upstream is set, or nothing was prepared");
    int64_t paused = cr_upstream_paused_ms(r->upstream);
    if (paused > 0)
        return cr_error_set(err, CR_NETWORK, "paused for %lld ms more after repeated failures",
                            (long long)paused);
    enum cr_status st = open_ledger(r, err);
    struct cr_ledger_row row = {.request_id = out->request_id,
                                .destination = out->url,
                                .model = out->model,
                                .reason = out->reason,
                                .bytes_out = (int64_t)out->n_body};
    if (st == CR_OK)
        st = cr_ledger_begin(r->ledger, &row, &id, err);
    if (st != CR_OK)
        return st;
    st = cr_upstream_send(r->upstream, out, answer, err);
    char status[sizeof err->msg + 16] = "ok";
    if (st != CR_OK)
        snprintf(status, sizeof status, "failed: %s", err->msg);
    row.status = status;
    row.bytes_out = (int64_t)answer->bytes_out;
    row.bytes_in = (int64_t)answer->bytes_in;
    row.tokens_in = answer->tokens_in;
    row.tokens_out = answer->tokens_out;
    row.tries = answer->tries;
    row.cost = answer->cost;
    row.duration_ms = answer->ms;
    if (cr_ledger_finish(r->ledger, id, &row, &late) != CR_OK)
        cr_log(CR_LOG_WARN, "%s", late.msg); /* the pending row stands; the answer is good */
    return st;
}

enum cr_status cr_router_ask(cr_router *r, const struct cr_ask *ask,
                             struct cr_remote_answer *answer, struct cr_error *err)
{
    struct cr_outgoing out;
    *answer = (struct cr_remote_answer){.tokens_in = -1, .tokens_out = -1, .cost = -1};
    enum cr_status st = cr_router_prepare(r, ask, &out, err);
    if (st == CR_OK)
        st = cr_router_send(r, &out, answer, err);
    cr_outgoing_deinit(&out);
    return st;
}

void cr_router_failed(struct cr_decision *d, const struct cr_error *err)
{
    d->server = false;
    cr_decision_why(d, "upstream failed: %s", err->msg);
}
