/* SPDX-License-Identifier: Apache-2.0 */
/* The router ties rule, upstream and ledger together. */
#include "route/route.h"

#include "base/log.h"
#include "base/mem.h"
#include "route/mask.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* Sends beyond the budget's share that a router may make before the cap holds: a fresh router has
 * seen too few requests for a share to mean anything. */
enum { CAP_SLACK = 5, MAX_WINDOW = 1 << 20, MAX_UPSTREAMS = 8 };
/* How much one question moves the budget that the rule is given; see cr_router_decide. */
static const double gain = 0.02;

struct cr_router {
    enum cr_rule rule;
    double budget, max_wrong;
    uint64_t seed;
    bool offline;
    cr_upstream *upstream[MAX_UPSTREAMS];
    size_t n_upstreams;
    cr_masker *masker; /* NULL: texts leave as they are */
    double max_cost, max_spend, spend_hours;
    char *ledger_path;
    pthread_mutex_t lock;       /* of all below */
    cr_ledger *ledger;          /* NULL until the first send */
    uint64_t n_decided, n_sent; /* by rule, in the window; wishes not counted */
    size_t window, at;          /* 0: all questions count */
    uint8_t *sent;              /* [window] ring: was it sent? */
    double shift;               /* of the budget that the rule is given */
    double reserved;            /* what the requests on their way can cost at most */
};

static enum cr_status check_options(const struct cr_router_options *opt, struct cr_error *err)
{
    if (!(opt->budget >= 0 && opt->budget <= 1))
        return cr_error_set(err, CR_INVALID, "budget: want a share from 0 to 1, found %g",
                            opt->budget);
    if (!(opt->max_wrong >= 0 && opt->max_wrong < 1))
        return cr_error_set(err, CR_INVALID, "max-wrong: want a share between 0 and 1, found %g",
                            opt->max_wrong);
    if (opt->window < 0 || opt->window > MAX_WINDOW)
        return cr_error_set(err, CR_INVALID, "budget window: want 0 to %d questions, found %d",
                            MAX_WINDOW, opt->window);
    if (opt->n_upstreams > MAX_UPSTREAMS)
        return cr_error_set(err, CR_INVALID, "upstream: want at most %d, found %zu", MAX_UPSTREAMS,
                            opt->n_upstreams);
    if (!(opt->max_spend >= 0) || !(opt->spend_hours >= 0))
        return cr_error_set(err, CR_INVALID, "max-spend: want money and hours of 0 or more");
    return CR_OK;
}

static enum cr_status open_upstreams(cr_router *r, const struct cr_router_options *opt,
                                     struct cr_error *err)
{
    size_t n = !opt->upstream ? 0 : opt->n_upstreams ? opt->n_upstreams : 1;
    for (size_t i = 0; i < n; i++) {
        const struct cr_upstream_options *u = &opt->upstream[i];
        if (opt->max_spend > 0 && u->price_in <= 0 && u->price_out <= 0)
            return cr_error_set(err, CR_INVALID, "max-spend: the prices of %s are not known",
                                u->url ? u->url : "the upstream");
        enum cr_status st = cr_upstream_new(&r->upstream[i], u, err);
        if (st != CR_OK)
            return st;
        r->n_upstreams = i + 1;
    }
    return CR_OK;
}

enum cr_status cr_router_new(cr_router **out, const struct cr_router_options *opt,
                             struct cr_error *err)
{
    *out = NULL;
    enum cr_status st = check_options(opt, err);
    if (st != CR_OK)
        return st;
    cr_router *r = cr_alloc0(1, sizeof *r);
    if (!r)
        return cr_error_set(err, CR_NO_MEMORY, "router: out of memory");
    r->rule = opt->rule;
    r->budget = opt->budget;
    r->max_wrong = opt->max_wrong;
    r->window = (size_t)opt->window;
    r->seed = opt->seed;
    r->offline = opt->offline;
    r->max_cost = opt->max_cost;
    r->max_spend = opt->max_spend;
    r->spend_hours = opt->spend_hours > 0 ? opt->spend_hours : 24;
    pthread_mutex_init(&r->lock, NULL);
    if ((opt->ledger_path && !(r->ledger_path = cr_strdup(opt->ledger_path))) ||
        (r->window && !(r->sent = cr_alloc0(r->window, 1))))
        st = cr_error_set(err, CR_NO_MEMORY, "router: out of memory");
    if (st == CR_OK && opt->mask)
        st = cr_masker_new(&r->masker, opt->mask_patterns, opt->n_mask_patterns, err);
    if (st == CR_OK)
        st = open_upstreams(r, opt, err);
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
    for (size_t i = 0; i < r->n_upstreams; i++)
        cr_upstream_free(r->upstream[i]);
    cr_masker_free(r->masker);
    pthread_mutex_destroy(&r->lock);
    cr_free(r->sent);
    cr_free(r->ledger_path);
    cr_free(r);
}

enum cr_status cr_router_ready(const cr_router *r, const cr_palette *p, struct cr_error *err)
{
    return r->max_wrong > 0 ? cr_rule_ready_wrong(r->rule, r->max_wrong, p, false, err)
                            : cr_rule_ready(r->rule, r->budget, p, false, err);
}

const char *cr_router_destination(const cr_router *r)
{
    return r->n_upstreams ? cr_upstream_url(r->upstream[0]) : NULL;
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

/* The rule's word, by the budget that the past leaves it. False where it cannot judge: what stays
 * for that is no part of any share. With the lock held. */
static bool rule_says(const cr_router *r, const cr_palette *p, const struct cr_signals *s,
                      struct cr_decision *out)
{
    if (r->max_wrong > 0) {
        cr_rule_decide_wrong(r->rule, r->max_wrong, p, s, out);
        return cr_rule_ready_wrong(r->rule, r->max_wrong, p, s->options, NULL) == CR_OK;
    }
    bool judges = cr_rule_ready(r->rule, r->budget, p, s->options, NULL) == CR_OK;
    double given = r->budget;
    if (judges && r->budget > 0 && r->budget < 1 && r->rule != CR_RULE_RANDOM) {
        given += r->shift;
        given = given < 0 ? 0 : given > 1 ? 1 : given;
    }
    cr_rule_decide(r->rule, given, p, s, out);
    return judges;
}

/* May one more be sent? With the lock held. */
static bool room(const cr_router *r)
{
    uint64_t sent = r->n_sent - (r->window ? r->sent[r->at] : 0);
    uint64_t decided = r->n_decided + (r->window == 0 || r->n_decided < r->window);
    return r->budget >= 1 || (double)(sent + 1) <= r->budget * (double)decided + CAP_SLACK;
}

/* Writes down where a question goes. With the lock held. */
static void count(cr_router *r, bool goes)
{
    r->n_decided += r->window == 0 || r->n_decided < r->window;
    r->n_sent += goes;
    r->shift += gain * (r->budget - (double)goes);
    if (r->window) {
        r->n_sent -= r->sent[r->at];
        r->sent[r->at] = goes;
        r->at = (r->at + 1) % r->window;
    }
}

/* The reason when there is no room. With the lock held. */
static void used_up(const cr_router *r, char words[96])
{
    snprintf(words, 96, "the budget of %g is used up: %llu of the last %llu sent", r->budget,
             (unsigned long long)r->n_sent, (unsigned long long)r->n_decided);
}

static void check_way_out(const cr_router *r, struct cr_decision *d)
{
    if (d->server && r->offline)
        overrule(d, "offline");
    else if (d->server && !r->n_upstreams)
        overrule(d, "no upstream is set");
}

void cr_router_decide(cr_router *r, const cr_palette *p, const struct cr_signals *s,
                      enum cr_route_wish wish, struct cr_decision *out)
{
    char words[96] = "";
    pthread_mutex_lock(&r->lock);
    if (rule_says(r, p, s, out) && wish == CR_ROUTE_AUTO) {
        bool goes = out->server && room(r);
        count(r, goes);
        if (out->server && !goes)
            used_up(r, words);
    }
    pthread_mutex_unlock(&r->lock);
    if (wish != CR_ROUTE_AUTO) {
        out->server = wish == CR_ROUTE_SERVER;
        cr_decision_why(out, "asked for by the request");
    } else if (*words) {
        overrule(out, words);
    }
    check_way_out(r, out);
}

/* Is the rule's word, in *out, the same for the surest answer as for the least sure? *judges: see
 * rule_says. With the lock held. */
static bool is_certain(const cr_router *r, const cr_palette *p, const struct cr_signals *s,
                       struct cr_decision *out, bool *judges)
{
    struct cr_signals sure = *s;
    struct cr_decision most;
    sure.confidence = 1;
    sure.demand_conf = 0;
    rule_says(r, p, &sure, &most);
    *judges = rule_says(r, p, s, out); /* what is not known counts as demanding */
    return out->server == most.server && isnan(out->gain); /* LEARNED reads more of the answer */
}

bool cr_router_decide_early(cr_router *r, const cr_palette *p, const struct cr_signals *s,
                            enum cr_route_wish wish, struct cr_decision *out)
{
    char words[96];
    if (wish != CR_ROUTE_AUTO) {
        cr_router_decide(r, p, s, wish, out);
        return true;
    }
    pthread_mutex_lock(&r->lock);
    bool full = !room(r), judges, certain = is_certain(r, p, s, out, &judges);
    bool capped = full && (!certain || out->server), decided = certain || full;
    if (judges && decided)
        count(r, out->server && !full);
    used_up(r, words);
    pthread_mutex_unlock(&r->lock);
    if (capped && certain) {
        overrule(out, words);
    } else if (capped) {
        out->server = false;
        cr_decision_why(out, "%s", words);
    }
    check_way_out(r, out);
    return decided;
}

const char *cr_router_closed(const cr_router *r)
{
    return !r->n_upstreams                         ? "no upstream is set"
           : r->offline                            ? "offline"
           : r->budget <= 0 && !(r->max_wrong > 0) ? "the budget is 0"
                                                   : NULL;
}

static enum cr_status open_ledger(cr_router *r, struct cr_error *err)
{
    pthread_mutex_lock(&r->lock);
    enum cr_status st = r->ledger ? CR_OK : cr_ledger_open(&r->ledger, r->ledger_path, err);
    pthread_mutex_unlock(&r->lock);
    return cr_error_prefix(err, st, "nothing was sent, for it could not be recorded");
}

/* ,"NAME":VALUE; what is not known is left out. */
static void add_number(struct cr_buf *b, const char *name, double v)
{
    if (isfinite(v))
        cr_buf_printf(b, ",\"%s\":%.6g", name, v);
}

void cr_router_note(cr_router *r, const char *request_id, const char *palette,
                    const struct cr_signals *s, const struct cr_decision *d)
{
    struct cr_error err;
    struct cr_buf b;
    if (open_ledger(r, &err) != CR_OK) {
        cr_log(CR_LOG_DEBUG, "%s", err.msg);
        return;
    }
    cr_buf_init(&b, 1 << 16);
    cr_buf_printf(&b, "{\"rule\":\"%s\",\"palette\":\"", cr_rule_name(r->rule));
    for (const char *p = palette ? palette : ""; *p; p++) /* a name, not any text */
        if ((unsigned char)*p >= 0x20 && *p != '"' && *p != '\\')
            cr_buf_add(&b, p, 1);
    cr_buf_puts(&b, "\"");
    add_number(&b, "budget", r->budget);
    if (r->max_wrong > 0)
        add_number(&b, "max_wrong", r->max_wrong);
    add_number(&b, "confidence", (double)s->confidence);
    add_number(&b, "sent_below", (double)d->min_confidence);
    add_number(&b, "far", (double)s->demand_scope);
    add_number(&b, "sent_beyond", (double)d->max_far);
    add_number(&b, "gain", (double)d->gain);
    add_number(&b, "sent_above", (double)d->max_gain);
    add_number(&b, "scope", (double)s->scope);
    add_number(&b, "near", (double)s->near);
    add_number(&b, "mean", (double)s->mean);
    add_number(&b, "tokens", (double)s->n);
    cr_buf_puts(&b, "}");
    struct cr_ledger_decision note = {.request_id = request_id,
                                      .route = d->server ? "server" : "device",
                                      .why = d->why,
                                      .detail = b.data};
    if (b.failed || cr_ledger_note(r->ledger, &note, &err) != CR_OK)
        cr_log(CR_LOG_WARN, "%s", b.failed ? "no memory to note a decision" : err.msg);
    cr_buf_deinit(&b);
}

/* Money that is left in the window, what is on its way taken off. */
static enum cr_status money_left(cr_router *r, double *left, struct cr_error *err)
{
    double spent;
    enum cr_status st = open_ledger(r, err);
    if (st == CR_OK)
        st = cr_ledger_spent(r->ledger, r->spend_hours, &spent, err);
    if (st != CR_OK)
        return st;
    pthread_mutex_lock(&r->lock);
    *left = r->max_spend - spent - r->reserved;
    pthread_mutex_unlock(&r->lock);
    if (*left > 0)
        return CR_OK;
    return cr_error_set(
        err, CR_POLICY,
        "the spending limit of %g in %g hours is reached: %g is spent or on its way", r->max_spend,
        r->spend_hours, r->max_spend - *left);
}

/* ---- masked text and the way back ---- */

struct cr_relay {
    cr_mask *mask;
    struct cr_unmask unmask;
    struct cr_buf piece;
    bool (*on_text)(void *ud, const char *text, size_t len);
    bool (*cancelled)(void *ud);
    void *ud;
};

enum { MAX_RESTORED = 1 << 28 };

static bool relay_text(void *ud, const char *text, size_t len)
{
    struct cr_relay *y = ud;
    y->piece.len = 0;
    if (!cr_unmask_feed(&y->unmask, text, len, &y->piece))
        return false;
    return !y->on_text || !y->piece.len || y->on_text(y->ud, y->piece.data, y->piece.len);
}

static bool relay_cancelled(void *ud)
{
    struct cr_relay *y = ud;
    return y->cancelled && y->cancelled(y->ud);
}

static void relay_free(struct cr_relay *y)
{
    if (!y)
        return;
    cr_mask_free(y->mask);
    cr_buf_deinit(&y->piece);
    cr_free(y);
}

/* Masks the messages of `a` and turns its callbacks to the relay. */
static enum cr_status mask_ask(const cr_router *r, struct cr_ask *a, struct cr_relay **out,
                               struct cr_error *err)
{
    struct cr_relay *y = cr_alloc0(1, sizeof *y);
    *out = NULL;
    if (!y)
        return cr_error_set(err, CR_NO_MEMORY, "mask: out of memory");
    enum cr_status st =
        cr_mask_new(&y->mask, r->masker, a->messages, a->n_messages, &a->messages, err);
    if (st != CR_OK) {
        cr_free(y);
        return st;
    }
    cr_buf_init(&y->piece, MAX_RESTORED);
    y->unmask.mask = y->mask;
    y->on_text = a->on_text;
    y->cancelled = a->cancelled;
    y->ud = a->ud;
    a->on_text = a->on_text ? relay_text : NULL;
    a->cancelled = a->cancelled ? relay_cancelled : NULL;
    a->ud = y;
    *out = y;
    return CR_OK;
}

/* The answer as the user knows his words. */
static enum cr_status restore(struct cr_relay *y, struct cr_remote_answer *answer,
                              struct cr_error *err)
{
    struct cr_buf b;
    cr_buf_init(&b, MAX_RESTORED);
    bool ok = relay_text(y, NULL, 0) &&
              (!answer->text ||
               (cr_mask_restore(y->mask, answer->text, answer->n_text, &b) && cr_buf_puts(&b, "")));
    if (ok && answer->text) {
        cr_free(answer->text);
        answer->text = cr_buf_detach(&b, &answer->n_text);
        ok = answer->text != NULL;
    }
    cr_buf_deinit(&b);
    return ok ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "mask: out of memory, or cancelled");
}

enum cr_status cr_router_prepare(cr_router *r, const struct cr_ask *ask, struct cr_outgoing *out,
                                 struct cr_error *err)
{
    struct cr_ask a = *ask;
    struct cr_relay *relay = NULL;
    struct cr_outgoing *o = out;
    enum cr_status st = CR_OK;
    *out = (struct cr_outgoing){0};
    if (r->offline)
        return cr_error_set(err, CR_POLICY, "offline: nothing is sent");
    if (!r->n_upstreams)
        return cr_error_set(err, CR_INVALID, "no upstream is set");
    if (r->max_cost > 0)
        a.max_cost = a.max_cost > 0 && a.max_cost < r->max_cost ? a.max_cost : r->max_cost;
    if (r->max_spend > 0) {
        double left;
        st = money_left(r, &left, err);
        if (st != CR_OK)
            return st;
        a.max_cost = a.max_cost > 0 && a.max_cost < left ? a.max_cost : left;
    }
    if (r->masker)
        st = mask_ask(r, &a, &relay, err);
    if (st == CR_OK)
        st = cr_upstream_prepare(r->upstream[0], &a, out, err);
    for (size_t i = 1; i < r->n_upstreams && st == CR_OK; i++) {
        o->next = cr_alloc0(1, sizeof *o->next);
        if (!o->next)
            st = cr_error_set(err, CR_NO_MEMORY, "upstream: out of memory");
        else if ((st = cr_upstream_prepare(r->upstream[i], &a, o->next, err)) == CR_OK)
            o = o->next;
    }
    if (st != CR_OK) {
        cr_outgoing_deinit(out);
        relay_free(relay);
        return st;
    }
    out->relay = relay;
    out->n_masked = relay ? cr_mask_count(relay->mask) : 0;
    out->free_relay = relay_free;
    return CR_OK;
}

static void reserve(cr_router *r, double money)
{
    pthread_mutex_lock(&r->lock);
    r->reserved += money;
    pthread_mutex_unlock(&r->lock);
}

/* One upstream: records, sends, completes the record. */
static enum cr_status send_to(cr_router *r, cr_upstream *u, const struct cr_outgoing *out,
                              struct cr_remote_answer *answer, struct cr_error *err)
{
    struct cr_error late;
    int64_t id;
    *answer = (struct cr_remote_answer){.tokens_in = -1, .tokens_out = -1, .cost = -1};
    int64_t paused = cr_upstream_paused_ms(u);
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
    double worst = r->max_spend > 0 && out->worst_cost > 0 ? out->worst_cost : 0;
    reserve(r, worst);
    st = cr_upstream_send(u, out, answer, err);
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
    reserve(r, -worst);
    return st;
}

enum cr_status cr_router_send(cr_router *r, struct cr_outgoing *out,
                              struct cr_remote_answer *answer, struct cr_error *err)
{
    struct cr_error local;
    err = err ? err : &local;
    *answer = (struct cr_remote_answer){.tokens_in = -1, .tokens_out = -1, .cost = -1};
    if (r->offline)
        return cr_error_set(err, CR_POLICY, "offline: nothing is sent");
    if (!r->n_upstreams || !out->body)
        return cr_error_set(err, CR_INVALID, "no upstream is set, or nothing was prepared");
    enum cr_status st = CR_INTERNAL;
    uint64_t bytes_out = 0, bytes_in = 0;
    int tries = 0;
    double ms = 0, cost = 0;
    const struct cr_outgoing *o = out;
    for (size_t i = 0; i < r->n_upstreams && o; i++, o = o->next) {
        st = send_to(r, r->upstream[i], o, answer, err);
        answer->bytes_out = bytes_out += answer->bytes_out;
        answer->bytes_in = bytes_in += answer->bytes_in;
        answer->tries = tries += answer->tries;
        answer->ms = ms += answer->ms;
        if (answer->cost >= 0)
            cost += answer->cost;
        if (cost > 0)
            answer->cost = cost;
        out->url = o->url;
        out->model = o->model;
        if (st != CR_NETWORK || answer->n_streamed > 0)
            break;
    }
    if (out->relay && (st == CR_OK || answer->n_streamed > 0)) {
        enum cr_status back = restore(out->relay, answer, err);
        st = st == CR_OK ? back : st;
    }
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
