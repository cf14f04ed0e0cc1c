/* SPDX-License-Identifier: Apache-2.0 */
/* Replies of OpenAI's chat completions and completions, and what all dialects share. */
#include "serve/reply.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const struct cr_writer *cr_writer_of(enum cr_api_kind kind)
{
    switch (kind) {
    case CR_API_RESPONSES:
        return &cr_writer_responses;
    case CR_API_MESSAGES:
    case CR_API_COUNT_TOKENS:
        return &cr_writer_claude;
    case CR_API_OLLAMA_CHAT:
    case CR_API_OLLAMA_GENERATE:
    case CR_API_OLLAMA_EMBED:
        return &cr_writer_ollama;
    default:
        return &cr_writer_openai;
    }
}

bool cr_reply_has_calls(const struct cr_choice *c)
{
    return c->n_calls > 0 && c->calls[0].complete;
}

json_t *cr_reply_crayon(const struct cr_job *j)
{
    double sum = 0;
    for (size_t i = 0; i < j->n_choices; i++)
        sum += j->choices[i].sum_logprob;
    const struct cr_target *t = j->target;
    json_t *blend = json_array();
    if (t->name[0])
        json_array_append_new(blend, json_pack("{s:s, s:s?, s:f}", "name", t->name, "sha256",
                                               t->sha256[0] ? t->sha256 : NULL, "weight", 1.0));
    const struct cr_routed *d = &j->routed;
    double sure = isfinite(d->confidence)     ? d->confidence
                  : j->n_answer && !d->server ? exp(sum / (double)j->n_answer)
                                              : NAN;
    json_t *o =
        json_pack("{s:s, s:s, s:o, s:o, s:I}", "route", d->server ? "server" : "device", "why",
                  d->why, "confidence", isfinite(sure) ? json_real(sure) : json_null(), "blend",
                  blend, "left_device_bytes", (json_int_t)d->left_bytes);
    if (o && d->known) {
        json_object_set_new(o, "scope", isfinite(d->scope) ? json_real(d->scope) : json_null());
        json_object_set_new(o, "cost", isfinite(d->cost) ? json_real(d->cost) : json_null());
    }
    if (o && (j->n_worked || t->worked.n))
        json_object_set_new(o, "worked_examples", json_integer((json_int_t)j->n_worked));
    if (o && j->task_form)
        json_object_set_new(o, "form", json_string("task"));
    if (o && isfinite(j->blend_ms))
        json_object_set_new(o, "blend_ms", json_real(j->blend_ms));
    if (o && j->req.ignored)
        json_object_set(o, "ignored", j->req.ignored);
    return o;
}

bool cr_reply_event(struct cr_job *j, const char *type, json_t *o)
{
    char before[80];
    bool ok = o != NULL;
    cr_api_put(o, "type", json_string(type), &ok);
    snprintf(before, sizeof before, "event: %s\ndata: ", type);
    return cr_job_add(j, before, o, "\n\n") && ok;
}

static json_t *head(const struct cr_job *j, bool chunk)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s}", "id", j->id, "object",
                     !j->req.chat ? "text_completion"
                     : chunk      ? "chat.completion.chunk"
                                  : "chat.completion",
                     "created", (json_int_t)j->created, "model", j->req.model, "system_fingerprint",
                     j->fingerprint);
}

static json_t *usage(const struct cr_job *j)
{
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)j->n_prompt,
                     "completion_tokens", (json_int_t)j->n_answer, "total_tokens",
                     (json_int_t)(j->n_prompt + j->n_answer), "prompt_tokens_details",
                     "cached_tokens", (json_int_t)j->n_cached);
}

static json_t *call_json(const struct cr_call *k)
{
    return json_pack("{s:s, s:s, s:{s:s, s:o}}", "id", k->id, "type", "function", "function",
                     "name", k->name, "arguments",
                     cr_api_text(k->arguments.data, k->arguments.len));
}

/* ---- whole ---------------------------------------------------------------------------------- */

static json_t *choice_json(struct cr_choice *c)
{
    const struct cr_api_request *q = &c->job->req;
    json_t *text = cr_api_text(c->text.data, c->text.len);
    json_t *probs = q->logprobs ? cr_probs_take(&c->probs, q->chat) : json_null();
    json_t *o = json_pack("{s:I, s:o, s:s}", "index", (json_int_t)c->index, "logprobs", probs,
                          "finish_reason", c->finish);
    if (!q->chat) {
        json_object_set_new(o, "text", text);
        return o;
    }
    if (c->n_calls && c->text.len == 0) {
        json_decref(text);
        text = json_null();
    }
    json_t *m = json_pack("{s:s, s:o, s:n}", "role", "assistant", "content", text, "refusal");
    json_t *calls = json_array();
    for (size_t i = 0; i < c->n_calls; i++)
        json_array_append_new(calls, call_json(&c->calls[i]));
    if (c->n_calls)
        json_object_set(m, "tool_calls", calls);
    json_decref(calls);
    json_object_set_new(o, "message", m);
    return o;
}

static json_t *whole(struct cr_job *j)
{
    json_t *o = head(j, false), *choices = json_array();
    for (size_t i = 0; i < j->n_choices; i++)
        json_array_append_new(choices, choice_json(&j->choices[i]));
    bool ok = o != NULL;
    cr_api_put(o, "choices", choices, &ok);
    cr_api_put(o, "usage", usage(j), &ok);
    cr_api_put(o, "crayon", cr_reply_crayon(j), &ok);
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

/* ---- streams -------------------------------------------------------------------------------- */

/* One event: delta (chat) or text (completions) taken; finish NULL until the last of a choice. */
static bool chunk(struct cr_choice *c, json_t *part, const char *finish)
{
    struct cr_job *j = c->job;
    const struct cr_api_request *q = &j->req;
    json_t *probs = q->logprobs ? cr_probs_take(&c->probs, q->chat) : json_null();
    json_t *o = head(j, true);
    json_t *one =
        json_pack("{s:I, s:o, s:o, s:s?}", "index", (json_int_t)c->index,
                  q->chat ? "delta" : "text", part, "logprobs", probs, "finish_reason", finish);
    bool ok = o != NULL;
    cr_api_put(o, "choices", json_pack("[o]", one), &ok);
    if (q->include_usage)
        cr_api_put(o, "usage", json_null(), &ok);
    if (finish)
        cr_api_put(o, "crayon", cr_reply_crayon(j), &ok);
    if (ok)
        return cr_job_add(j, "data: ", o, "\n\n");
    json_decref(o);
    return false;
}

/* The first delta of a choice says the role. */
static bool role(struct cr_choice *c)
{
    if (!c->job->req.chat || c->job->role_sent[c->index])
        return true;
    c->job->role_sent[c->index] = true;
    bool probs = c->job->req.logprobs; /* those wait for the text */
    c->job->req.logprobs = false;
    bool ok = chunk(c, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), NULL);
    c->job->req.logprobs = probs;
    return ok;
}

static bool piece(struct cr_choice *c, const char *text, size_t n)
{
    json_t *s = cr_api_text(text, n);
    return role(c) && chunk(c, c->job->req.chat ? json_pack("{s:o}", "content", s) : s, NULL);
}

static bool call(struct cr_choice *c, size_t i, const char *arguments, size_t n)
{
    const struct cr_call *k = &c->calls[i];
    json_t *one =
        arguments ? json_pack("{s:I, s:{s:o}}", "index", (json_int_t)i, "function", "arguments",
                              cr_api_text(arguments, n))
                  : json_pack("{s:I, s:s, s:s, s:{s:s, s:s}}", "index", (json_int_t)i, "id", k->id,
                              "type", "function", "function", "name", k->name, "arguments", "");
    return role(c) && chunk(c, json_pack("{s:[o]}", "tool_calls", one), NULL);
}

static bool finish(struct cr_choice *c)
{
    return role(c) && chunk(c, c->job->req.chat ? json_object() : json_string(""), c->finish);
}

static void end(struct cr_job *j)
{
    if (j->req.include_usage) {
        json_t *o = head(j, true);
        bool ok = o != NULL;
        cr_api_put(o, "choices", json_array(), &ok);
        cr_api_put(o, "usage", usage(j), &ok);
        cr_job_add(j, "data: ", o, "\n\n");
    }
    cr_job_puts(j, "data: [DONE]\n\n");
}

static void start(struct cr_job *j)
{
    (void)j;
}

const struct cr_writer cr_writer_openai = {
    "text/event-stream", start, piece, call, finish, end, whole};
