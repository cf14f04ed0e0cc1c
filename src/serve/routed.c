/* SPDX-License-Identifier: Apache-2.0 */
/* From a held answer to a decision, and the threads that ask servers. */
#include "serve/routed.h"

#ifdef CRAYON_ROUTE

#include "base/log.h"
#include "base/mem.h"
#include "route/route.h"
#include "serve/job.h"
#include "serve/reply.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum { MAX_AWAY = 64 }; /* jobs that threads ask for; more are answered here */

struct cr_routing {
    cr_router *router;
    const struct cr_serve_options *opt;
    struct cr_metrics *metrics;
    cr_worker *worker;
    pthread_mutex_t lock;
    pthread_cond_t change;
    int n_away;
    atomic_bool stopping;
};

struct away { /* a job on its way to the server */
    cr_routing *r;
    struct cr_job *j;
    bool begun; /* text of the server has gone out */
};

enum cr_status cr_routing_new(cr_routing **out, const struct cr_serve_options *opt,
                              struct cr_metrics *metrics, cr_worker *worker, struct cr_error *err)
{
    *out = NULL;
    if (!opt->router)
        return CR_OK;
    cr_routing *r = cr_alloc0(1, sizeof *r);
    if (!r)
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    r->router = opt->router;
    r->opt = opt;
    r->metrics = metrics;
    r->worker = worker;
    pthread_mutex_init(&r->lock, NULL);
    cr_cond_init(&r->change);
    *out = r;
    return CR_OK;
}

json_t *cr_routing_json(const cr_routing *r, const struct cr_target *t)
{
    struct cr_error err;
    if (!r)
        return NULL;
    const char *why = cr_router_closed(r->router);
    if (!why && cr_router_ready(r->router, t->palette, &err) != CR_OK)
        why = err.msg;
    return why ? json_pack("{s:b, s:s}", "routed", 0, "why", why) : json_pack("{s:b}", "routed", 1);
}

bool cr_routing_wait(cr_routing *r, int ms)
{
    return !r || cr_wait_for_zero(&r->n_away, &r->lock, &r->change, ms);
}

void cr_routing_free(cr_routing *r)
{
    if (!r)
        return;
    atomic_store(&r->stopping, true);
    pthread_mutex_lock(&r->lock);
    while (r->n_away > 0) /* each sees it within 50 ms */
        pthread_cond_wait(&r->change, &r->lock);
    pthread_mutex_unlock(&r->lock);
    pthread_cond_destroy(&r->change);
    pthread_mutex_destroy(&r->lock);
    cr_free(r);
}

/* ---- the decision ---------------------------------------------------------------------------- */

static enum cr_route_wish wish_of(const struct cr_job *j)
{
    const char *w = j->req.route;
    return !w || strcmp(w, "auto") == 0 ? CR_ROUTE_AUTO
           : strcmp(w, "server") == 0   ? CR_ROUTE_SERVER
                                        : CR_ROUTE_DEVICE;
}

/* What keeps a request here whatever the router says; NULL: nothing. */
static const char *obstacle(const struct cr_job *j)
{
    const struct cr_api_request *q = &j->req;
    if (!q->chat)
        return "completions are answered on the device";
    if (q->n != 1 || q->logprobs)
        return "several choices and log-probabilities are made on the device";
    if (q->tool_choice != CR_TOOLS_NONE || q->format != CR_FORMAT_TEXT)
        return "tools and schemas are honoured on the device";
    return NULL;
}

/* The last message of the user is what a palette's task is about. */
static const char *question_of(const struct cr_job *j)
{
    for (size_t i = j->req.n_messages; i > 0; i--)
        if (strcmp(j->req.messages[i - 1].role, "user") == 0)
            return j->req.messages[i - 1].content;
    return "";
}

static void confidence_of(struct cr_signals *s, const struct cr_choice *c)
{
    struct cr_meter m = {.tops = c->tops, .cap = (size_t)c->max_new, .n = c->n_tops};
    cr_signals_text(s, &m);
}

static void scope_of(cr_routing *r, struct cr_signals *s, const struct cr_job *j)
{
    const char *question = question_of(j);
    struct cr_example e = {
        .task = (char *)"", .question = (char *)(uintptr_t)question, .answer_index = -1};
    struct cr_error err;
    s->request = cr_request_hash(cr_router_seed(r->router), question, strlen(question));
    const struct cr_target *t = j->target;
    if (t->palette && t->pool &&
        cr_signals_scope(s, t->model, t->palette, t->pool, &e, &err) != CR_OK)
        cr_log(CR_LOG_WARN, "scope of %s: %s", j->id, err.msg);
}

static void keep(struct cr_job *j, const struct cr_decision *d)
{
    j->routed.server = d->server;
    snprintf(j->routed.why, sizeof j->routed.why, "%s", d->why);
}

static void note(cr_routing *r, struct cr_job *j, const struct cr_signals *s,
                 const struct cr_decision *d)
{
    const struct cr_palette *p = j->target->palette;
    cr_router_note(r->router, j->id, p ? p->name : NULL, s, d);
    keep(j, d);
}

void cr_routing_begin(cr_routing *r, struct cr_job *j, struct cr_api_error *e)
{
    struct cr_routed *d = &j->routed;
    enum cr_route_wish wish = wish_of(j);
    const char *here = !r ? "this server has no upstream" : obstacle(j);
    *d = (struct cr_routed){.confidence = NAN, .scope = NAN, .cost = NAN};
    if (!here && wish == CR_ROUTE_DEVICE)
        here = "asked for by the request";
    if (!here && wish == CR_ROUTE_AUTO)
        here = cr_router_closed(r->router); /* then the text need not wait */
    if (here && wish == CR_ROUTE_SERVER)
        cr_api_error_set(e, 400, "crayon.route", NULL, "crayon.route: cannot go to a server: %s",
                         here);
    snprintf(d->why, sizeof d->why, "%s", here ? here : "");
    d->hold = !here;
}

/* The decision stands; one for the server takes a place among those that are away. */
static void settle(cr_routing *r, struct cr_job *j, const struct cr_decision *decision)
{
    struct cr_routed *d = &j->routed;
    note(r, j, &d->signals, decision);
    d->known = true;
    d->scope = (double)d->signals.scope;
    pthread_mutex_lock(&r->lock);
    d->away = d->server && r->n_away < MAX_AWAY;
    r->n_away += d->away;
    pthread_mutex_unlock(&r->lock);
    if (d->server && !d->away) {
        struct cr_decision full = {.server = false};
        cr_decision_why(&full, "%d requests are on their way to the server, no more are sent",
                        (int)MAX_AWAY);
        note(r, j, &d->signals, &full);
    }
}

void cr_routing_early(cr_routing *r, struct cr_job *j)
{
    struct cr_routed *d = &j->routed;
    struct cr_decision decision;
    if (!d->hold)
        return;
    cr_signals_init(&d->signals);
    scope_of(r, &d->signals, j);
    if (!cr_router_decide_early(r->router, j->target->palette, &d->signals, wish_of(j), &decision))
        return;
    settle(r, j, &decision);
    d->hold = d->away;
    cr_free(j->choices[0].tops); /* nobody asks any more how sure each token was */
    j->choices[0].tops = NULL;
}

void cr_routing_decide(cr_routing *r, struct cr_job *j)
{
    struct cr_routed *d = &j->routed;
    struct cr_decision decision;
    confidence_of(&d->signals, &j->choices[0]);
    cr_router_decide(r->router, j->target->palette, &d->signals, wish_of(j), &decision);
    settle(r, j, &decision);
    d->confidence = (double)d->signals.confidence;
}

/* ---- asking the server ----------------------------------------------------------------------- */

/* The first text of the server has come: the model's own is forgotten and the reply begins. */
static bool begin_text(struct away *a)
{
    struct cr_job *j = a->j;
    struct cr_choice *c = &j->choices[0];
    struct cr_error err;
    a->begun = true;
    j->routed.hold = false;
    j->first_ms = cr_now_ms();
    j->task_form = false; /* the server was asked as a chat */
    j->n_worked = 0;
    c->text.len = 0;
    c->finish = NULL;
    if (cr_text_out_init(&c->out, (const char *const *)j->req.stop, j->req.n_stop, c->out.on_text,
                         c->out.ud, &err) != CR_OK)
        return false;
    if (j->req.stream) {
        cr_writer_of(j->req.kind)->start(j);
        cr_job_news(j, 200, false);
    }
    return true;
}

static bool on_text(void *ud, const char *text, size_t len)
{
    struct away *a = ud;
    struct cr_choice *c = &a->j->choices[0];
    if (!a->begun && !begin_text(a))
        return false;
    cr_text_out_add(&c->out, text, len);
    return !c->out.stopped && !c->out.cancelled;
}

static bool cancelled(void *ud)
{
    struct away *a = ud;
    return atomic_load(&a->r->stopping) || cr_job_client_gone(a->j);
}

static enum cr_status ask_server(struct away *a, struct cr_remote_answer *got, struct cr_error *err)
{
    struct cr_job *j = a->j;
    struct cr_outgoing out;
    struct cr_ask ask = {.messages = j->req.messages,
                         .n_messages = j->req.n_messages,
                         .max_tokens = j->req.max_tokens > 0 ? j->req.max_tokens : 0,
                         .temperature = j->req.sampling.temperature,
                         .max_cost = isfinite(j->req.max_cost) ? j->req.max_cost : 0,
                         .stream = j->req.stream,
                         .request_id = j->id,
                         .reason = j->routed.why,
                         .on_text = j->req.stream ? on_text : NULL,
                         .cancelled = cancelled,
                         .ud = a};
    enum cr_status st = cr_router_prepare(a->r->router, &ask, &out, err);
    if (st != CR_OK)
        return st;
    st = cr_router_send(a->r->router, &out, got, err);
    j->routed.left_bytes = got->bytes_out;
    if (got->cost >= 0)
        j->routed.cost = got->cost;
    cr_outgoing_deinit(&out);
    if (st == CR_OK && !a->begun && !on_text(a, got->text, got->n_text) &&
        !j->choices[0].out.stopped)
        st = cr_error_set(err, CR_NO_MEMORY, "out of memory for the answer");
    return st;
}

/* Ends the reply with the server's text. */
static void finish_server(struct cr_job *j, const struct cr_remote_answer *got)
{
    struct cr_choice *c = &j->choices[0];
    bool stopped = c->out.stopped;
    cr_text_out_end(&c->out);
    c->finish = !stopped && strcmp(got->finish, "length") == 0 ? "length" : "stop";
    if (got->tokens_in >= 0)
        j->n_prompt = (size_t)got->tokens_in;
    if (got->tokens_out >= 0)
        j->n_answer = (size_t)got->tokens_out;
    j->n_cached = 0;
    if (j->req.stream && !cr_writer_of(j->req.kind)->finish(c))
        c->broken = true;
}

/* The model's answer, where the server gives none: what was held, and true, or the model makes it
 * now, and false: the job is the worker's again. */
static bool give_here(cr_routing *r, struct cr_job *j)
{
    if (j->choices[0].finish) {
        cr_answer_release(j);
        cr_answer_reply(j);
        return true;
    }
    j->routed.hold = false;
    j->routed.failed = true;
    if (j->req.stream) {
        cr_writer_of(j->req.kind)->start(j);
        cr_job_news(j, 200, false);
    }
    return !cr_worker_push_back(r->worker, j);
}

/* What was away is over. */
static void end(cr_routing *r, struct cr_job *j, const char *how)
{
    cr_job_measure(j, r->metrics);
    cr_answer_note(r->opt, j, how);
    cr_job_unref(j);
}

static void back(cr_routing *r)
{
    pthread_mutex_lock(&r->lock);
    r->n_away--;
    pthread_cond_broadcast(&r->change);
    pthread_mutex_unlock(&r->lock);
}

static void *run(void *ud)
{
    struct away a = *(struct away *)ud;
    struct cr_job *j = a.j;
    struct cr_remote_answer got = {0};
    struct cr_error err = {.status = CR_OK};
    cr_free(ud);
    bool here = true; /* the job ends with this thread */
    enum cr_status st = ask_server(&a, &got, &err);
    struct cr_metrics *m = a.r->metrics;
    atomic_fetch_add(wish_of(j) == CR_ROUTE_SERVER ? &m->by_wish : &m->by_rule, 1);
    atomic_fetch_add(&m->upload_bytes, got.bytes_out);
    if (got.cost > 0)
        atomic_fetch_add(&m->cost_micro, (unsigned long long)(got.cost * 1e6 + 0.5));
    /* A stop string of the request, met in the stream, ends it as asked. */
    bool stopped = a.begun && j->choices[0].out.stopped;
    if (st == CR_OK || stopped) {
        finish_server(j, &got);
        cr_answer_reply(j);
    } else if (a.begun) {
        struct cr_api_error e;
        cr_api_error_set(&e, 502, NULL, "upstream_failed", "the server's answer broke off: %s",
                         err.msg);
        cr_job_fail(j, &e);
    } else {
        struct cr_decision d = {.server = true};
        cr_router_failed(&d, &err);
        keep(j, &d);
        here = give_here(a.r, j);
    }
    if (st != CR_OK && !stopped)
        atomic_fetch_add(&m->failed, 1);
    cr_remote_answer_deinit(&got);
    if (here)
        end(a.r, j,
            st == CR_OK || stopped ? "ok, by the server"
            : a.begun              ? "the server broke off"
                                   : "ok, the server failed");
    back(a.r);
    return NULL;
}

void cr_routing_start(cr_routing *r, struct cr_job *j)
{
    pthread_t thread;
    pthread_attr_t attr;
    struct away *a = cr_alloc(1, sizeof *a);
    j->routed.away = false;
    if (a)
        *a = (struct away){r, j, false};
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    bool ok = a && pthread_create(&thread, &attr, run, a) == 0;
    pthread_attr_destroy(&attr);
    if (ok)
        return;
    cr_free(a);
    j->routed.server = false;
    snprintf(j->routed.why, sizeof j->routed.why, "upstream failed: the system gave no thread");
    if (give_here(r, j))
        end(r, j, "ok, the server failed");
    back(r);
}

#else /* CRAYON_ROUTE */

#include "serve/job.h"

#include <math.h>
#include <string.h>

enum cr_status cr_routing_new(cr_routing **out, const struct cr_serve_options *opt,
                              struct cr_metrics *metrics, cr_worker *worker, struct cr_error *err)
{
    (void)opt, (void)metrics, (void)worker, (void)err;
    *out = NULL;
    return CR_OK;
}

json_t *cr_routing_json(const cr_routing *r, const struct cr_target *t)
{
    (void)r, (void)t;
    return NULL;
}

bool cr_routing_wait(cr_routing *r, int ms)
{
    (void)r, (void)ms;
    return true;
}

void cr_routing_free(cr_routing *r)
{
    (void)r;
}

void cr_routing_begin(cr_routing *r, struct cr_job *j, struct cr_api_error *e)
{
    (void)r;
    j->routed = (struct cr_routed){.confidence = NAN, .scope = NAN, .cost = NAN};
    snprintf(j->routed.why, sizeof j->routed.why, "built without routing");
    if (j->req.route && strcmp(j->req.route, "server") == 0)
        cr_api_error_set(e, 400, "crayon.route", NULL, "crayon.route: built without routing");
}

void cr_routing_early(cr_routing *r, struct cr_job *j)
{
    (void)r, (void)j;
}

void cr_routing_decide(cr_routing *r, struct cr_job *j)
{
    (void)r, (void)j;
}

void cr_routing_start(cr_routing *r, struct cr_job *j)
{
    (void)r;
    cr_job_unref(j);
}

#endif
