/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where an answer comes from: the device's own, or a server's after the rule, the preview and the
 * ledger. The device's answer is never lost: whatever fails, it is given, and `why` says so.
 */
#include "answer.h"

#include "base/mem.h"
#include "messages.h"
#include "model/session.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TEXT = 1 << 28 };

enum cr_status cr_answer_init(struct cr_answer *ans, size_t n, struct cr_error *err)
{
    *ans = (struct cr_answer){.cap = n};
    cr_buf_init(&ans->text, MAX_TEXT);
    ans->ids = cr_alloc(n, sizeof *ans->ids);
    ans->logprobs = cr_alloc(n, sizeof *ans->logprobs);
    ans->tops = cr_alloc(n, sizeof *ans->tops);
    return ans->ids && ans->logprobs && ans->tops
               ? CR_OK
               : cr_error_set(err, CR_NO_MEMORY, "out of memory for %zu tokens", n);
}

void cr_answer_deinit(struct cr_answer *ans)
{
    cr_buf_deinit(&ans->text);
    cr_free(ans->ids);
    cr_free(ans->logprobs);
    cr_free(ans->tops);
}

void cr_answer_reset(struct cr_answer *ans)
{
    ans->n = 0;
    ans->text.len = 0;
    ans->left_bytes = 0;
    ans->cost = NAN;
}

void cr_answer_token(struct cr_answer *ans, const cr_session *s, int32_t id, float logprob)
{
    if (ans->n == ans->cap)
        return;
    const float *logits = cr_session_logits(s);
    int n_vocab = cr_model_info(cr_session_model(s))->n_vocab;
    float top = logits[0];
    for (int i = 1; i < n_vocab; i++)
        top = logits[i] > top ? logits[i] : top;
    ans->ids[ans->n] = id;
    ans->logprobs[ans->n] = logprob;
    ans->tops[ans->n++] = fminf(0, logprob + (top - logits[id]));
}

#ifndef CRAYON_ROUTE

bool cr_cli_answer_waits(const struct cr_args *a)
{
    (void)a;
    return false;
}

enum cr_status cr_cli_router_open(cr_cli_router **out, const struct cr_args *a, struct cr_setup *s,
                                  struct cr_error *err)
{
    (void)s;
    *out = NULL;
    if (cr_arg_text(a, CR_OPT_UPSTREAM))
        return cr_error_set(err, CR_UNSUPPORTED, "--upstream: built without routing");
    return CR_OK;
}

void cr_cli_router_close(cr_cli_router *r)
{
    (void)r;
}

enum cr_status cr_cli_answer(cr_cli_router *r, const struct cr_args *a, const struct cr_setup *s,
                             const struct cr_message *messages, size_t n_messages,
                             struct cr_answer *ans, struct cr_error *err)
{
    (void)r, (void)a, (void)s, (void)messages, (void)n_messages, (void)err;
    double sum = 0;
    for (size_t i = 0; i < ans->n; i++)
        sum += (double)ans->tops[i];
    ans->route = "device";
    snprintf(ans->why, sizeof ans->why, "built without routing");
    ans->confidence = ans->n ? exp(sum / (double)ans->n) : 0;
    ans->scope = NAN;
    return CR_OK;
}

#else

#include "consent.h"
#include "routing.h"

#include <sys/random.h>

struct cr_cli_router {
    cr_router *router;
    bool yes;
};

bool cr_cli_answer_waits(const struct cr_args *a)
{
    return cr_arg_text(a, CR_OPT_UPSTREAM) && !cr_arg_flag(a, CR_OPT_OFFLINE);
}

enum cr_status cr_cli_router_open(cr_cli_router **out, const struct cr_args *a, struct cr_setup *s,
                                  struct cr_error *err)
{
    *out = NULL;
    if (!cr_arg_text(a, CR_OPT_UPSTREAM))
        return CR_OK;
    cr_cli_router *r = cr_alloc0(1, sizeof *r);
    enum cr_status st =
        r ? cr_routing_open(&r->router, a, err) : cr_error_set(err, CR_NO_MEMORY, "out of memory");
    if (!st)
        st = cr_router_ready(r->router, s->palette, err);
    if (!st)
        st = cr_setup_scope(s, err);
    if (st) {
        cr_cli_router_close(r);
        return st;
    }
    r->yes = cr_arg_flag(a, CR_OPT_YES);
    *out = r;
    return CR_OK;
}

void cr_cli_router_close(cr_cli_router *r)
{
    if (r)
        cr_router_free(r->router);
    cr_free(r);
}

/* ---- signals ---- */

/* The last message of the user is what the palette's task is about. */
static const char *question_of(const struct cr_message *messages, size_t n)
{
    for (size_t i = n; i > 0; i--)
        if (!strcmp(messages[i - 1].role, "user"))
            return messages[i - 1].content;
    return "";
}

static enum cr_status signals_of(struct cr_signals *sig, const struct cr_setup *s, bool with_scope,
                                 uint64_t seed, const char *question, struct cr_answer *ans,
                                 struct cr_error *err)
{
    struct cr_meter m = {.tops = ans->tops, .cap = ans->cap, .n = ans->n};
    struct cr_example e = {.task = (char *)"", .question = (char *)question, .answer_index = -1};
    cr_signals_init(sig);
    cr_signals_text(sig, &m); /* sorts tops, which are not needed any more */
    sig->request = cr_request_hash(seed, question, strlen(question));
    if (!with_scope || !s->palette || !s->pool)
        return CR_OK;
    return cr_signals_scope(sig, s->model, s->palette, s->pool, &e, err);
}

/* ---- the server's answer ---- */

static void request_id(char out[24])
{
    uint64_t v = 0;
    if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v)
        v = (uint64_t)(cr_now() * 1e9);
    snprintf(out, 24, "run-%016llx", (unsigned long long)v);
}

static bool interrupted(void *ud)
{
    (void)ud;
    return cr_interrupted();
}

static bool take_text(struct cr_answer *ans, const struct cr_remote_answer *got)
{
    struct cr_buf text;
    cr_buf_init(&text, MAX_TEXT);
    if (!cr_buf_add(&text, got->text, got->n_text)) {
        cr_buf_deinit(&text);
        return false;
    }
    cr_buf_deinit(&ans->text);
    ans->text = text;
    ans->n = 0; /* the device's tokens are not this text's */
    ans->finish = strcmp(got->finish, "length") ? CR_FINISH_STOP : CR_FINISH_LENGTH;
    return true;
}

/* Prepares, asks the user, sends. Any failure leaves the device's answer and changes d. */
static void ask_server(cr_cli_router *r, const struct cr_args *a, const struct cr_message *messages,
                       size_t n_messages, struct cr_answer *ans, struct cr_decision *d)
{
    struct cr_error err;
    struct cr_outgoing out;
    struct cr_remote_answer got = {0};
    struct cr_ask ask = {.messages = messages,
                         .n_messages = n_messages,
                         .max_tokens = cr_arg_int(a, CR_OPT_MAX_TOKENS),
                         .temperature = cr_arg_given(a, CR_OPT_TEMP)
                                            ? (float)cr_arg_real(a, CR_OPT_TEMP)
                                            : -1, /* the server's own */
                         .request_id = ans->request_id,
                         .reason = d->why,
                         .cancelled = interrupted};
    enum cr_status st = cr_router_prepare(r->router, &ask, &out, &err);
    if (!st) {
        enum cr_consent c = cr_consent_ask(&out, r->yes);
        if (c != CR_CONSENT_YES) {
            char said[sizeof d->why];
            memcpy(said, d->why, sizeof said);
            d->server = false;
            cr_decision_why(d, "%s (the rule said server: %s)",
                            c == CR_CONSENT_NO ? "you did not allow it to leave"
                                               : "not sent: without a terminal this needs --yes",
                            said);
            cr_outgoing_deinit(&out);
            return;
        }
        st = cr_router_send(r->router, &out, &got, &err);
        ans->left_bytes = got.bytes_out;
        if (got.cost >= 0)
            ans->cost = got.cost;
    }
    if (!st && !take_text(ans, &got))
        st = cr_error_set(&err, CR_NO_MEMORY, "out of memory for the answer");
    if (st)
        cr_router_failed(d, &err);
    else
        cr_note("%llu bytes left for %s", (unsigned long long)got.bytes_out, out.url);
    cr_remote_answer_deinit(&got);
    cr_outgoing_deinit(&out);
}

enum cr_status cr_cli_answer(cr_cli_router *r, const struct cr_args *a, const struct cr_setup *s,
                             const struct cr_message *messages, size_t n_messages,
                             struct cr_answer *ans, struct cr_error *err)
{
    struct cr_signals sig;
    struct cr_decision d = {0};
    const char *question = question_of(messages, n_messages);
    bool with_scope = r || cr_arg_flag(a, CR_OPT_JSON);
    enum cr_status st =
        signals_of(&sig, s, with_scope, cr_arg_seed(a, CR_OPT_SEED), question, ans, err);
    if (st)
        return st;
    if (r)
        cr_router_decide(r->router, s->palette, &sig, CR_ROUTE_AUTO, &d);
    else
        cr_decision_why(&d, "no upstream");
    request_id(ans->request_id);
    if (d.server)
        ask_server(r, a, messages, n_messages, ans, &d);
    if (r)
        cr_router_note(r->router, ans->request_id, s->palette ? s->palette->name : NULL, &sig, &d);
    if (r && !d.server)
        cr_note("answered on the device: %s", d.why);
    ans->route = d.server ? "server" : "device";
    memcpy(ans->why, d.why, sizeof ans->why);
    ans->confidence = (double)sig.confidence;
    ans->scope = (double)sig.scope;
    return CR_OK;
}

#endif
