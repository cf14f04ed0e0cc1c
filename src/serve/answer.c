/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a checked request to choices that the scheduler can run, and from ended choices to the rest
 * of the reply. Worker's thread.
 */
#include "serve/job.h"

#include "base/mem.h"
#include "model/model.h"
#include "serve/blend.h"
#include "serve/reply.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Room for the answer is kept with the ids, so that no token allocates. */
static enum cr_status set_ids(struct cr_choice *c, const int32_t *ids, size_t n, size_t n_ctx,
                              struct cr_error *err)
{
    const struct cr_api_request *q = &c->job->req;
    size_t room = n_ctx - n,
           want = q->max_tokens < 0 || (size_t)q->max_tokens > room ? room : (size_t)q->max_tokens;
    if (!(c->ids = cr_alloc(n + want, sizeof *c->ids)))
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    memcpy(c->ids, ids, n * sizeof *ids);
    c->n_ids = c->n_prompt = n;
    c->cap = n + want;
    c->max_new = (int)want;
    if (c->job->routed.hold && !(c->tops = cr_alloc(want, sizeof *c->tops)))
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    return CR_OK;
}

static enum cr_status one_prompt(struct cr_job *j, const struct cr_api_prompt *p, size_t first,
                                 size_t n_ctx, struct cr_error *err)
{
    const struct cr_api_request *q = &j->req;
    struct cr_prompt made;
    enum cr_status status = cr_prompt_make(&made, j->target, q, p, (int)n_ctx, err);
    size_t n = made.ids.n;
    j->task_form = made.task;
    j->n_worked = first && j->n_worked < made.n_worked ? j->n_worked : made.n_worked;
    if (first == 0) {
        for (size_t i = 0; i < q->n_stop; i++)
            j->stop[i] = q->stop[i];
        j->n_stop = q->n_stop;
        if (made.task)
            j->stop[j->n_stop++] = "\n";
    }
    if (status == CR_OK && n == 0)
        status = cr_error_set(err, CR_INVALID, "prompt: is empty");
    if (status == CR_OK && n + (q->max_tokens != 0) > n_ctx)
        status = cr_error_set(
            err, CR_LIMIT, "the prompt has %zu tokens, the context of this server %zu", n, n_ctx);
    for (size_t i = 0; i < (size_t)q->n && status == CR_OK; i++) {
        struct cr_choice *c = &j->choices[first + i];
        status = cr_choice_init(c, j, first + i, err);
        j->n_choices = first + i + 1;
        if (status == CR_OK)
            status = set_ids(c, made.ids.v, n, n_ctx, err);
        c->n_hidden = made.n_hidden;
    }
    j->n_prompt += n;
    cr_free(made.ids.v);
    return status;
}

static bool check_bias(const struct cr_job *j, struct cr_api_error *e)
{
    int n_vocab = cr_model_info(j->target->model)->n_vocab;
    for (size_t i = 0; i < j->req.n_bias; i++)
        if (j->req.bias_ids[i] >= n_vocab) {
            cr_api_error_set(e, 400, "logit_bias", NULL,
                             "logit_bias: id %d is not in the vocabulary of %d",
                             (int)j->req.bias_ids[i], n_vocab);
            return false;
        }
    return true;
}

static bool prepare_constraints(cr_worker *w, struct cr_job *j, struct cr_api_error *e)
{
    struct cr_error err;
    if (cr_worker_grammar(w, j, e) != CR_OK)
        return false;
    for (size_t i = 0; i < j->n_choices && j->grammar; i++)
        if (cr_constraint_new(&j->choices[i].constraint, cr_worker_tree(w, &err), j->grammar,
                              &err) != CR_OK) {
            cr_api_error_from(e, &err);
            return false;
        }
    return true;
}

bool cr_answer_prepare(cr_worker *w, struct cr_job *j, int n_ctx, struct cr_api_error *e)
{
    const struct cr_api_request *q = &j->req;
    struct cr_error err = {.status = CR_OK};
    size_t n = q->chat ? 1 : q->n_prompts;
    *e = (struct cr_api_error){0};
    if (q->examples && !cr_blends_apply(cr_worker_blends(w), j, e))
        return false;
    cr_routing_begin(cr_worker_routing(w), j, e);
    if (e->http || !check_bias(j, e))
        return false;
    enum cr_status status = CR_OK;
    if (!(j->choices = cr_alloc0(n * (size_t)q->n, sizeof *j->choices)))
        status = cr_error_set(&err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n && status == CR_OK; i++)
        status =
            one_prompt(j, q->chat ? NULL : &q->prompts[i], i * (size_t)q->n, (size_t)n_ctx, &err);
    if (status != CR_OK) {
        cr_api_error_from(e, &err);
        if (status == CR_LIMIT && !q->chat)
            snprintf(e->param, sizeof e->param, "prompt");
        return false;
    }
    if (!prepare_constraints(w, j, e))
        return false;
    cr_routing_early(cr_worker_routing(w), j);
    return true;
}

/* One object a line; of texts only names. */
static void log_json(const struct cr_serve_options *opt, const struct cr_job *j, const char *how,
                     double now)
{
    char when[32];
    struct timespec ts;
    struct tm tm;
    struct cr_buf b;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:f}", "time", when, "event",
        "request", "id", j->id, "model", j->req.model ? j->req.model : "", "http", j->http, "route",
        j->routed.server ? "server" : "device", "result", how, "prompt_tokens",
        (json_int_t)j->n_prompt, "cached_tokens", (json_int_t)j->n_cached, "answer_tokens",
        (json_int_t)j->n_answer, "left_device_bytes", (json_int_t)j->routed.left_bytes, "first_ms",
        j->first_ms > 0 ? json_real(j->first_ms - j->pushed_ms) : json_null(), "all_ms",
        now - j->pushed_ms);
    cr_buf_init(&b, 1 << 16);
    if (o && cr_api_dump(&b, "", o, ""))
        opt->on_request(opt->ud, b.data);
    json_decref(o);
    cr_buf_deinit(&b);
}

void cr_answer_note(const struct cr_serve_options *opt, const struct cr_job *j, const char *how)
{
    char line[320];
    double now = cr_now_ms();
    if (!opt->on_request)
        return;
    if (opt->log_json) {
        log_json(opt, j, how, now);
        return;
    }
    snprintf(line, sizeof line,
             "%s %s: %s, %zu prompt (%zu cached) + %zu tokens, first %.0f ms, all %.0f ms", j->id,
             j->req.model, how, j->n_prompt, j->n_cached, j->n_answer,
             j->first_ms > 0 ? j->first_ms - j->pushed_ms : 0.0, now - j->pushed_ms);
    opt->on_request(opt->ud, line);
}

void cr_answer_release(struct cr_job *j)
{
    const struct cr_writer *writer = cr_writer_of(j->req.kind);
    bool held = j->routed.hold;
    j->routed.hold = false;
    if (!held || !j->req.stream)
        return;
    writer->start(j);
    cr_job_news(j, 200, false);
    for (size_t i = 0; i < j->n_choices; i++) {
        struct cr_choice *c = &j->choices[i];
        if ((c->text.len && !writer->piece(c, c->text.data, c->text.len)) || !writer->finish(c))
            c->broken = true;
    }
}

void cr_answer_reply(struct cr_job *j)
{
    const struct cr_writer *writer = cr_writer_of(j->req.kind);
    if (j->req.stream) {
        writer->end(j);
        cr_job_news(j, 0, true);
    } else if (cr_job_add(j, "", writer->whole(j), "")) {
        cr_job_news(j, 200, true);
    } else {
        struct cr_api_error e;
        cr_api_error_set(&e, 503, NULL, NULL, "out of memory for the reply");
        cr_job_fail(j, &e);
    }
}

void cr_answer_end(cr_worker *w, struct cr_job *j)
{
    const struct cr_error *bad = NULL;
    for (size_t i = 0; i < j->n_choices && !bad; i++)
        if (j->choices[i].err.status != CR_OK)
            bad = &j->choices[i].err;
    if (bad) {
        struct cr_api_error e;
        cr_api_error_from(&e, bad);
        cr_job_fail(j, &e);
        cr_answer_note(cr_worker_options(w), j, cr_status_text(bad->status));
        return;
    }
    if (j->routed.hold)
        cr_routing_decide(cr_worker_routing(w), j);
    if (j->routed.away)
        return;
    cr_answer_release(j);
    cr_answer_reply(j);
    cr_answer_note(cr_worker_options(w), j, j->routed.failed ? "ok, the server failed" : "ok");
}
