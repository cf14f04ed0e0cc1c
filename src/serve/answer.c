/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One job from checked request to reply: ids, generation or scoring, JSON. Runs on the worker's
 * thread, which owns the session. Streams append events while tokens come.
 */
#include "serve/job.h"

#include "base/mem.h"
#include "model/session.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

/* ---- log-probabilities ------------------------------------------------------------------ */

struct top {
    int n;
    int32_t ids[CR_API_MAX_TOP];
    float logprobs[CR_API_MAX_TOP];
};

static float log_sum_exp(const float *logits, int n)
{
    float max = logits[0];
    for (int i = 1; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp((double)(logits[i] - max));
    return max + (float)log(sum);
}

/* The k most likely ids, ties to the lower id. */
static void top_of(struct top *t, const float *logits, int n_vocab, int k, float lse)
{
    t->n = 0;
    for (int32_t id = 0; id < n_vocab; id++) {
        float x = logits[id] - lse;
        if (t->n == k && (k == 0 || x <= t->logprobs[k - 1]))
            continue;
        int at = t->n < k ? t->n++ : k - 1;
        for (; at > 0 && t->logprobs[at - 1] < x; at--) {
            t->logprobs[at] = t->logprobs[at - 1];
            t->ids[at] = t->ids[at - 1];
        }
        t->logprobs[at] = x;
        t->ids[at] = id;
    }
}

/* The log-probabilities of one choice, in the form of its endpoint. */
struct probs {
    json_t *chat;                          /* chat: [{token, logprob, bytes, top_logprobs}] */
    json_t *tokens, *values, *tops, *offs; /* completions: parallel arrays */
    size_t offset;                         /* bytes of text before the next token */
};

static json_t *token_json(const cr_model *m, int32_t id)
{
    const char *bytes;
    size_t n = cr_token_bytes(m, id, true, &bytes);
    return cr_api_token_text(bytes, n);
}

static json_t *bytes_json(const cr_model *m, int32_t id)
{
    const char *bytes;
    size_t n = cr_token_bytes(m, id, true, &bytes);
    json_t *a = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, json_integer((uint8_t)bytes[i]));
    return a;
}

static json_t *chat_entry(const cr_model *m, int32_t id, float logprob, bool *ok)
{
    json_t *e = json_object();
    cr_api_put(e, "token", token_json(m, id), ok);
    cr_api_put(e, "logprob", json_real((double)logprob), ok);
    cr_api_put(e, "bytes", bytes_json(m, id), ok);
    return e;
}

/* logits NULL: the first token of a prompt, which has no probability. */
static void probs_add(struct probs *p, bool chat, const cr_model *m, int32_t id,
                      const float *logits, int n_top)
{
    int n_vocab = cr_model_info(m)->n_vocab;
    float lse = logits ? log_sum_exp(logits, n_vocab) : 0;
    struct top top = {0};
    bool ok = true;
    if (logits)
        top_of(&top, logits, n_vocab, n_top, lse);
    if (chat) {
        json_t *e = chat_entry(m, id, logits[id] - lse, &ok), *list = json_array();
        for (int i = 0; i < top.n; i++)
            json_array_append_new(list, chat_entry(m, top.ids[i], top.logprobs[i], &ok));
        cr_api_put(e, "top_logprobs", list, &ok);
        json_array_append_new(p->chat, e);
        return;
    }
    const char *bytes;
    json_array_append_new(p->tokens, token_json(m, id));
    json_array_append_new(p->offs, json_integer((json_int_t)p->offset));
    p->offset += cr_token_bytes(m, id, false, &bytes);
    json_array_append_new(p->values, logits ? json_real((double)(logits[id] - lse)) : json_null());
    if (!logits) {
        json_array_append_new(p->tops, json_null());
        return;
    }
    /* Keyed by text: of two ids with the same text the more likely one, which came first, stays. */
    json_t *map = json_object();
    for (int i = 0; i < top.n; i++) {
        json_t *key = token_json(m, top.ids[i]);
        const char *text = json_string_value(key);
        if (text && !json_object_get(map, text))
            cr_api_put(map, text, json_real((double)top.logprobs[i]), &ok);
        json_decref(key);
    }
    json_array_append_new(p->tops, map);
}

static void probs_init(struct probs *p, bool chat)
{
    *p = (struct probs){0};
    if (chat) {
        p->chat = json_array();
        return;
    }
    p->tokens = json_array();
    p->values = json_array();
    p->tops = json_array();
    p->offs = json_array();
}

/* Hands the arrays over as the "logprobs" value and empties p. */
static json_t *probs_json(struct probs *p, bool chat, bool *ok)
{
    json_t *v = json_object();
    if (chat) {
        cr_api_put(v, "content", p->chat, ok);
    } else {
        cr_api_put(v, "tokens", p->tokens, ok);
        cr_api_put(v, "token_logprobs", p->values, ok);
        cr_api_put(v, "top_logprobs", p->tops, ok);
        cr_api_put(v, "text_offset", p->offs, ok);
    }
    size_t offset = p->offset;
    *p = (struct probs){.offset = offset};
    return v;
}

static void probs_deinit(struct probs *p)
{
    json_decref(p->chat);
    json_decref(p->tokens);
    json_decref(p->values);
    json_decref(p->tops);
    json_decref(p->offs);
}

/* ---- one reply ------------------------------------------------------------------------------ */

struct reply {
    struct cr_answer_context *ctx;
    struct cr_job *job;
    cr_model *model;
    struct cr_buf text; /* of the choice that is being made */
    struct probs probs;
    bool role_sent, broken;
    size_t n_prompt, n_answer, n_cached;
    double sum_logprob, started_ms, first_ms;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static bool client_gone(struct cr_job *j)
{
    char c;
    if (atomic_load(&j->cancelled))
        return true;
    /* A suspended connection keeps its socket; an end of stream there means that nobody waits. */
    return !j->req.stream && j->fd >= 0 && recv(j->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static json_t *head(const struct reply *r, bool chunk, bool *ok)
{
    const struct cr_job *j = r->job;
    json_t *o = json_object();
    cr_api_put(o, "id", json_string(j->id), ok);
    cr_api_put(o, "object",
               json_string(j->req.chat ? chunk ? "chat.completion.chunk" : "chat.completion"
                                       : "text_completion"),
               ok);
    cr_api_put(o, "created", json_integer(j->created), ok);
    cr_api_put(o, "model", json_string(j->req.model), ok);
    cr_api_put(o, "system_fingerprint", json_string(r->ctx->fingerprint), ok);
    return o;
}

static json_t *usage_json(const struct reply *r, bool *ok)
{
    json_t *u = json_object(), *d = json_object();
    cr_api_put(u, "prompt_tokens", json_integer((json_int_t)r->n_prompt), ok);
    cr_api_put(u, "completion_tokens", json_integer((json_int_t)r->n_answer), ok);
    cr_api_put(u, "total_tokens", json_integer((json_int_t)(r->n_prompt + r->n_answer)), ok);
    cr_api_put(d, "cached_tokens", json_integer((json_int_t)r->n_cached), ok);
    cr_api_put(u, "prompt_tokens_details", d, ok);
    return u;
}

/* Who answered, with which blend, how sure: promise 4. */
static json_t *crayon_json(const struct reply *r, bool *ok)
{
    json_t *c = json_object();
    const char *blend = r->job->target->name;
    cr_api_put(c, "route", json_string("device"), ok);
    cr_api_put(c, "why", json_string("this server has no upstream"), ok);
    cr_api_put(c, "confidence",
               r->n_answer ? json_real(exp(r->sum_logprob / (double)r->n_answer)) : json_null(),
               ok);
    cr_api_put(c, "blend", blend[0] ? json_string(blend) : json_null(), ok);
    cr_api_put(c, "left_device_bytes", json_integer(0), ok);
    return c;
}

static json_t *choice_json(struct reply *r, size_t index, const char *finish, bool *ok)
{
    const struct cr_api_request *q = &r->job->req;
    json_t *c = json_object();
    cr_api_put(c, "index", json_integer((json_int_t)index), ok);
    json_t *text = cr_api_text(r->text.data ? r->text.data : "", r->text.len);
    if (q->chat) {
        json_t *m = json_object();
        cr_api_put(m, "role", json_string("assistant"), ok);
        cr_api_put(m, "content", text, ok);
        cr_api_put(m, "refusal", json_null(), ok);
        cr_api_put(c, "message", m, ok);
    } else {
        cr_api_put(c, "text", text, ok);
    }
    cr_api_put(c, "logprobs", q->logprobs ? probs_json(&r->probs, q->chat, ok) : json_null(), ok);
    cr_api_put(c, "finish_reason", finish ? json_string(finish) : json_null(), ok);
    return c;
}

/* One event of a stream: a piece of text, the end (finish not NULL), or the usage. */
static bool send_chunk(struct reply *r, const char *text, size_t n, const char *finish)
{
    const struct cr_api_request *q = &r->job->req;
    bool ok = true;
    json_t *o = head(r, true, &ok), *c = json_object(), *choices = json_array();
    cr_api_put(c, "index", json_integer(0), &ok);
    if (q->chat) {
        json_t *delta = json_object();
        if (!r->role_sent)
            cr_api_put(delta, "role", json_string("assistant"), &ok);
        if (!finish)
            cr_api_put(delta, "content", cr_api_text(text, n), &ok);
        cr_api_put(c, "delta", delta, &ok);
    } else {
        cr_api_put(c, "text", cr_api_text(text, n), &ok);
    }
    json_t *probs = json_null();
    if (q->logprobs) {
        probs = probs_json(&r->probs, q->chat, &ok);
        size_t offset = r->probs.offset;
        probs_init(&r->probs, q->chat);
        r->probs.offset = offset;
    }
    cr_api_put(c, "logprobs", probs, &ok);
    cr_api_put(c, "finish_reason", finish ? json_string(finish) : json_null(), &ok);
    json_array_append_new(choices, c);
    cr_api_put(o, "choices", choices, &ok);
    if (q->include_usage)
        cr_api_put(o, "usage", json_null(), &ok);
    if (finish)
        cr_api_put(o, "crayon", crayon_json(r, &ok), &ok);
    r->role_sent = true;
    return cr_job_add(r->job, "data: ", o, "\n\n") && ok;
}

static bool on_text(void *ud, const char *text, size_t n)
{
    struct reply *r = ud;
    if (!r->job->req.stream)
        return cr_buf_add(&r->text, text, n);
    if (!send_chunk(r, text, n, NULL))
        r->broken = true;
    return !r->broken;
}

static bool on_token(void *ud, int32_t id, float logprob)
{
    struct reply *r = ud;
    const struct cr_api_request *q = &r->job->req;
    if (r->n_answer++ == 0)
        r->first_ms = now_ms() - r->started_ms;
    r->sum_logprob += (double)logprob;
    if (q->logprobs && !cr_token_is_end(r->model, id))
        probs_add(&r->probs, q->chat, r->model, id, cr_session_logits(r->ctx->session),
                  q->top_logprobs);
    return !client_gone(r->job);
}

static const char *finish_name(enum cr_finish f)
{
    return f == CR_FINISH_STOP ? "stop" : "length";
}

/* Generates one choice from ids. */
static enum cr_status generate(struct reply *r, const int32_t *ids, size_t n, const char **finish,
                               struct cr_error *err)
{
    const struct cr_api_request *q = &r->job->req;
    cr_session *s = r->ctx->session;
    size_t room = (size_t)cr_session_ctx(s) - n;
    size_t want = q->max_tokens < 0 || (size_t)q->max_tokens > room ? room : (size_t)q->max_tokens;
    if (want == 0) {
        *finish = "length";
        return CR_OK;
    }
    struct cr_generate g = {.prompt = ids,
                            .n_prompt = n,
                            .max_tokens = (int)want,
                            .sampling = q->sampling,
                            .stop = (const char *const *)q->stop,
                            .n_stop = q->n_stop,
                            .on_text = on_text,
                            .on_token = on_token,
                            .ud = r};
    struct cr_generated done;
    enum cr_status status = cr_generate(s, &g, &done, err);
    if (status == CR_OK && done.finish == CR_FINISH_CANCELLED)
        return cr_error_set(err, r->broken ? CR_LIMIT : CR_CANCELLED,
                            r->broken ? "the reply is larger than the limit of %d bytes"
                                      : "the client went away (limit %d)",
                            (int)CR_JOB_MAX_OUT);
    if (status == CR_OK) {
        r->n_cached += done.n_cached;
        *finish = finish_name(done.finish);
    }
    return status;
}

/* Ids of one prompt, checked against vocabulary and context. Free *ids with cr_free. */
static enum cr_status prompt_ids(struct reply *r, const struct cr_api_prompt *p, int32_t **ids,
                                 size_t *n, struct cr_error *err)
{
    int n_vocab = cr_model_info(r->model)->n_vocab;
    enum cr_status status = CR_OK;
    *ids = NULL;
    if (r->job->req.chat) {
        status = cr_chat_tokenize(r->model, r->job->req.messages, r->job->req.n_messages, true, ids,
                                  n, err);
    } else if (p->text) {
        status = cr_tokenize(r->model, p->text, p->n_text, CR_TOKENIZE_BOS, ids, n, err);
    } else {
        *n = p->n_ids;
        if (!(*ids = cr_alloc(*n, sizeof **ids)))
            return cr_error_set(err, CR_NO_MEMORY, "out of memory");
        memcpy(*ids, p->ids, *n * sizeof **ids);
        for (size_t i = 0; i < *n; i++)
            if ((*ids)[i] >= n_vocab)
                return cr_error_set(err, CR_INVALID, "prompt: id %d is not in the vocabulary of %d",
                                    (int)(*ids)[i], n_vocab);
    }
    if (status == CR_OK && *n == 0)
        status = cr_error_set(err, CR_INVALID, "prompt: is empty");
    size_t ctx = (size_t)cr_session_ctx(r->ctx->session);
    if (status == CR_OK && *n + (r->job->req.max_tokens != 0) > ctx)
        status = cr_error_set(err, CR_LIMIT,
                              "the prompt has %zu tokens, the context of this server %zu", *n, ctx);
    return status;
}

struct echo {
    struct reply *r;
    const int32_t *ids;
    size_t n;
    float *last; /* [n_vocab] logits after the prompt */
};

static void on_echo_logits(void *ud, size_t token, const float *logits)
{
    struct echo *e = ud;
    if (token + 1 < e->n)
        probs_add(&e->r->probs, false, e->r->model, e->ids[token + 1], logits,
                  e->r->job->req.top_logprobs);
    else
        memcpy(e->last, logits, (size_t)cr_model_info(e->r->model)->n_vocab * sizeof *logits);
}

/* Log-probabilities of the prompt's own tokens, in one pass. last: logits after it. */
static enum cr_status score_prompt(struct reply *r, const int32_t *ids, size_t n, float *last,
                                   struct cr_error *err)
{
    struct cr_batch_token *tokens = cr_alloc0(n, sizeof *tokens);
    if (!tokens)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++)
        tokens[i] = (struct cr_batch_token){.id = ids[i], .pos = (int32_t)i, .want = true};
    struct echo e = {r, ids, n, last};
    struct cr_batch b = {
        .tokens = tokens, .n = n, .on_logits = on_echo_logits, .hidden_layer = -1, .ud = &e};
    probs_add(&r->probs, false, r->model, ids[0], NULL, 0);
    cr_session_reset(r->ctx->session);
    enum cr_status status = cr_session_run(r->ctx->session, &b, err);
    cr_session_reset(r->ctx->session);
    cr_free(tokens);
    return status;
}

/* The prompt comes back in front of the answer, with its log-probabilities where asked for. */
static enum cr_status echo_prompt(struct reply *r, const int32_t *ids, size_t n, bool *answered,
                                  const char **finish, struct cr_error *err)
{
    const struct cr_api_request *q = &r->job->req;
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len = cr_token_bytes(r->model, ids[i], true, &bytes);
        if (!cr_buf_add(&r->text, bytes, len))
            return cr_error_set(err, CR_LIMIT, "the prompt is too long to be echoed");
    }
    if (!q->logprobs)
        return CR_OK;
    float *last = cr_alloc((size_t)cr_model_info(r->model)->n_vocab, sizeof *last);
    cr_sampler *sampler = NULL;
    enum cr_status status = last ? score_prompt(r, ids, n, last, err)
                                 : cr_error_set(err, CR_NO_MEMORY, "out of memory");
    /* One token more needs no second pass: this is what evaluation harnesses ask for. */
    if (status == CR_OK && q->max_tokens == 1)
        status = cr_sampler_new(&sampler, r->model, &q->sampling, err);
    if (sampler) {
        float logprob;
        const char *bytes;
        int32_t id = cr_sampler_next(sampler, last, &logprob);
        r->n_answer++;
        r->sum_logprob += (double)logprob;
        probs_add(&r->probs, false, r->model, id, last, q->top_logprobs);
        size_t len = cr_token_bytes(r->model, id, false, &bytes);
        if (!cr_buf_add(&r->text, bytes, len))
            status = cr_error_set(err, CR_LIMIT, "the reply is too long");
        *finish = cr_token_is_end(r->model, id) ? "stop" : "length";
        *answered = true;
    }
    cr_sampler_free(sampler);
    cr_free(last);
    return status;
}

static enum cr_status one_choice(struct reply *r, const struct cr_api_prompt *p, size_t index,
                                 json_t *choices, struct cr_error *err)
{
    const struct cr_api_request *q = &r->job->req;
    const char *finish = "length";
    int32_t *ids = NULL;
    size_t n = 0;
    bool answered = false, ok = true;
    cr_buf_init(&r->text, CR_JOB_MAX_OUT);
    if (q->logprobs)
        probs_init(&r->probs, q->chat);
    enum cr_status status = prompt_ids(r, p, &ids, &n, err);
    if (status == CR_OK) {
        r->n_prompt += n;
        if (q->stream)
            cr_job_news(r->job, 200, false);
        if (q->echo)
            status = echo_prompt(r, ids, n, &answered, &finish, err);
    }
    if (status == CR_OK && !answered)
        status = generate(r, ids, n, &finish, err);
    if (status == CR_OK && q->stream)
        ok = send_chunk(r, "", 0, finish);
    else if (status == CR_OK)
        ok = json_array_append_new(choices, choice_json(r, index, finish, &ok)) == 0 && ok;
    if (!ok)
        status = cr_error_set(err, CR_NO_MEMORY, "out of memory");
    probs_deinit(&r->probs);
    r->probs = (struct probs){0};
    cr_buf_deinit(&r->text);
    cr_free(ids);
    return status;
}

static void reply_error(struct reply *r, const struct cr_error *err)
{
    struct cr_api_error e;
    cr_api_error_from(&e, err);
    bool started = r->job->http != 0; /* only this thread writes it */
    cr_job_add(r->job, started ? "data: " : "", cr_api_error_json(&e), started ? "\n\n" : "");
    cr_job_news(r->job, started ? 0 : e.http, true);
}

static void reply_whole(struct reply *r, json_t *choices)
{
    bool ok = true;
    json_t *o = head(r, false, &ok);
    cr_api_put(o, "choices", json_incref(choices), &ok);
    cr_api_put(o, "usage", usage_json(r, &ok), &ok);
    cr_api_put(o, "crayon", crayon_json(r, &ok), &ok);
    if (!cr_job_add(r->job, "", o, "") || !ok) {
        struct cr_error err;
        cr_error_set(&err, CR_NO_MEMORY, "out of memory for the reply");
        reply_error(r, &err);
        return;
    }
    cr_job_news(r->job, 200, true);
}

static void reply_stream_end(struct reply *r)
{
    bool ok = true;
    if (r->job->req.include_usage) {
        json_t *o = head(r, true, &ok);
        cr_api_put(o, "choices", json_array(), &ok);
        cr_api_put(o, "usage", usage_json(r, &ok), &ok);
        cr_job_add(r->job, "data: ", o, "\n\n");
    }
    pthread_mutex_lock(&r->job->lock);
    cr_buf_puts(&r->job->out, "data: [DONE]\n\n");
    pthread_mutex_unlock(&r->job->lock);
    cr_job_news(r->job, 0, true);
}

void cr_answer_job(struct cr_answer_context *ctx, struct cr_job *j)
{
    struct reply r = {.ctx = ctx, .job = j, .model = ctx->opt->model, .started_ms = now_ms()};
    struct cr_error err = {.status = CR_OK};
    enum cr_status status = CR_OK;
    json_t *choices = json_array();
    /* Two callers never share what the cache holds. */
    if (strcmp(ctx->caller, j->caller) != 0)
        cr_session_reset(ctx->session);
    memcpy(ctx->caller, j->caller, sizeof ctx->caller);
    cr_session_set_delta(ctx->session, j->target->delta);
    size_t n = j->req.chat ? 1 : j->req.n_prompts;
    for (size_t i = 0; i < n && status == CR_OK; i++)
        status = client_gone(j)
                     ? cr_error_set(&err, CR_CANCELLED, "the client went away")
                     : one_choice(&r, j->req.chat ? NULL : &j->req.prompts[i], i, choices, &err);
    if (status != CR_OK)
        reply_error(&r, &err);
    else if (j->req.stream)
        reply_stream_end(&r);
    else
        reply_whole(&r, choices);
    json_decref(choices);
    if (ctx->opt->on_request) {
        char line[256];
        snprintf(line, sizeof line,
                 "%s %s: %s, %zu prompt (%zu cached) + %zu tokens, first %.0f ms, all %.0f ms",
                 j->id, j->req.model, status == CR_OK ? "ok" : cr_status_text(status), r.n_prompt,
                 r.n_cached, r.n_answer, r.first_ms, now_ms() - r.started_ms);
        ctx->opt->on_request(ctx->opt->ud, line);
    }
}
