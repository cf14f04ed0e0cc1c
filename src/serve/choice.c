/* SPDX-License-Identifier: Apache-2.0 */
/* From logits to the next token of one choice, and from its tokens to text. */
#include "serve/choice.h"

#include "base/mem.h"
#include "serve/job.h"
#include "serve/reply.h"

#include <math.h>
#include <string.h>

static const char marker[] = "<tool_call>";

/* Text that has passed the stop strings. */
static bool on_text(void *ud, const char *text, size_t n)
{
    struct cr_choice *c = ud;
    if (c->job->task_form && c->text.len == 0 && n && *text == ' ') {
        text++; /* "Answer:" is followed by a blank and the answer */
        if (--n == 0)
            return true;
    }
    bool ok = c->calls ? cr_split_text(c, text, n)
                       : cr_buf_add(&c->text, text, n) &&
                             (!c->job->req.stream || c->job->routed.hold ||
                              cr_writer_of(c->job->req.kind)->piece(c, text, n));
    if (!ok)
        c->broken = true;
    return ok;
}

enum cr_status cr_choice_init(struct cr_choice *c, struct cr_job *job, size_t index,
                              struct cr_error *err)
{
    const struct cr_api_request *q = &job->req;
    *c = (struct cr_choice){.job = job, .index = index, .lane = -1};
    cr_buf_init(&c->text, CR_JOB_MAX_OUT);
    cr_buf_init(&c->held, CR_JOB_MAX_OUT);
    if (q->logprobs)
        cr_probs_init(&c->probs, q->chat);
    if (q->tool_choice != CR_TOOLS_NONE) {
        c->calls = cr_alloc0(CR_MAX_CALLS, sizeof *c->calls);
        c->watching = q->tool_choice == CR_TOOLS_AUTO;
        c->valid = c->watching ? 0 : UINT32_MAX; /* else the grammar allows calls only */
        if (!c->calls)
            return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    return cr_text_out_init(&c->out, job->stop, job->n_stop, on_text, c, err);
}

void cr_choice_deinit(struct cr_choice *c)
{
    for (size_t i = 0; c->calls && i < c->n_calls; i++)
        cr_buf_deinit(&c->calls[i].arguments);
    cr_free(c->calls);
    cr_free(c->ids);
    cr_free(c->tops);
    cr_free(c->counts);
    cr_sampler_free(c->sampler);
    cr_constraint_free(c->constraint);
    cr_probs_deinit(&c->probs);
    cr_buf_deinit(&c->text);
    cr_buf_deinit(&c->held);
    *c = (struct cr_choice){.lane = -1};
}

/* The echoed prompt stands before the answer. */
static bool echo(struct cr_choice *c)
{
    const cr_model *m = cr_target_model(c->job->target);
    for (size_t i = c->n_hidden; i < c->n_prompt; i++) {
        const char *bytes;
        size_t n = cr_token_bytes(m, c->ids[i], true, &bytes);
        if (!cr_buf_add(&c->text, bytes, n))
            return false;
    }
    return true;
}

enum cr_status cr_choice_begin(struct cr_choice *c, struct cr_error *err)
{
    const struct cr_api_request *q = &c->job->req;
    const cr_model *m = cr_target_model(c->job->target);
    struct cr_sampling p = q->sampling;
    p.seed += c->index; /* n choices of one prompt differ, and each can be had again */
    enum cr_status status = cr_sampler_new(&c->sampler, m, &p, err);
    if (status != CR_OK)
        return status;
    for (size_t i = 0; i < c->n_prompt; i++)
        cr_sampler_accept(c->sampler, c->ids[i]);
    if ((q->presence_penalty != 0 || q->frequency_penalty != 0) &&
        !(c->counts = cr_alloc0((size_t)cr_model_info(m)->n_vocab, sizeof *c->counts)))
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    if (q->echo && !echo(c))
        return cr_error_set(err, CR_LIMIT, "the prompt is too long to be echoed");
    if (q->echo && q->logprobs)
        cr_probs_add(&c->probs, q->chat, m, c->ids[c->n_hidden], NULL, 0, 0);
    c->begun = true;
    return CR_OK;
}

void cr_choice_finish(struct cr_choice *c, const char *finish)
{
    if (c->finish)
        return;
    cr_text_out_end(&c->out);
    if (c->calls)
        cr_split_end(c);
    c->finish = finish;
    if (strcmp(finish, "stop") == 0 && cr_reply_has_calls(c))
        c->finish = "tool_calls";
    if (c->job->req.stream && !c->job->routed.hold && !cr_writer_of(c->job->req.kind)->finish(c))
        c->broken = true;
}

/* ---- constraint --------------------------------------------------------------------------- */

/* Follows the bytes of a token until "<tool_call>" is there, then hands the rest to the grammar. A
 * call that goes wrong within the very token is text. */
static void watch(struct cr_choice *c, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] == marker[c->n_marker])
            c->n_marker++;
        else
            c->n_marker = bytes[i] == marker[0];
        if (c->n_marker < sizeof marker - 1)
            continue;
        c->n_marker = 0;
        uint32_t k = c->n_markers++;
        if (k < CR_MAX_CALLS && c->n_calls < CR_MAX_CALLS && cr_constraint_reset(c->constraint) &&
            cr_constraint_accept(c->constraint, bytes + i + 1, n - i - 1)) {
            c->valid |= (uint32_t)1 << k;
            c->watching = false;
            return;
        }
    }
}

/* false: nothing can follow. */
static bool follow(struct cr_choice *c, const char *bytes, size_t n)
{
    if (!c->constraint)
        return true;
    if (c->watching) {
        watch(c, bytes, n);
        return true;
    }
    if (!cr_constraint_accept(c->constraint, bytes, n))
        return false;
    if (!cr_constraint_must_end(c->constraint))
        return true;
    bool again = c->job->req.tool_choice == CR_TOOLS_AUTO && c->job->req.parallel_tools;
    c->watching = again;
    return again;
}

/* ---- choosing ----------------------------------------------------------------------------- */

static bool changes_logits(const struct cr_choice *c)
{
    return c->counts || c->job->req.n_bias || (c->constraint && !c->watching);
}

/* The logits as the request changes them, in scratch. */
static bool change(struct cr_choice *c, const cr_model *m, float *v)
{
    const struct cr_api_request *q = &c->job->req;
    size_t n = (size_t)cr_model_info(m)->n_vocab;
    for (size_t i = 0; i < n && c->counts; i++)
        if (c->counts[i])
            v[i] -= (float)c->counts[i] * q->frequency_penalty + q->presence_penalty;
    for (size_t i = 0; i < q->n_bias; i++)
        v[q->bias_ids[i]] += q->bias[i];
    return !c->constraint || c->watching || cr_constraint_mask(c->constraint, m, v);
}

static void fail(struct cr_choice *c, enum cr_status status, const char *msg)
{
    if (c->err.status == CR_OK)
        cr_error_set(&c->err, status, "%s", msg);
}

static float highest(const float *v, int n)
{
    float top = v[0];
    for (int i = 1; i < n; i++)
        top = v[i] > top ? v[i] : top;
    return top;
}

/* From the logits as they are, or as the request changed them. */
static void pick(struct cr_choice *c, const float *logits, bool changed)
{
    c->next = cr_sampler_next(c->sampler, logits, changed ? NULL : &c->next_logprob);
    c->picked = true;
}

void cr_choice_early(struct cr_choice *c, size_t at, const float *logits)
{
    if (!c->finish && c->err.status == CR_OK && at + 1 >= c->n_prompt && at + 1 == c->n_ids &&
        c->max_new > 0 && !changes_logits(c))
        pick(c, logits, false);
}

static void choose(struct cr_choice *c, const float *logits, float *scratch)
{
    struct cr_job *j = c->job;
    const struct cr_api_request *q = &j->req;
    const cr_model *m = cr_target_model(j->target);
    int n_vocab = cr_model_info(m)->n_vocab;
    bool changed = changes_logits(c);
    if (changed) {
        memcpy(scratch, logits, (size_t)n_vocab * sizeof *logits);
        if (!change(c, m, scratch)) {
            fail(c, CR_INTERNAL, "the model has no token that fits the wanted form");
            return;
        }
    }
    if (!c->picked)
        pick(c, changed ? scratch : logits, changed);
    c->picked = false;
    int32_t id = c->next;
    float logprob = c->next_logprob;
    if (!isfinite(logits[id])) {
        fail(c, CR_FORMAT, "the model's output is not a number (damaged weights?)");
        return;
    }
    if (c->n_new++ == 0 && j->first_ms == 0)
        j->first_ms = cr_now_ms();
    if (changed || q->logprobs) {
        float lse = cr_log_sum_exp(logits, n_vocab);
        logprob = logits[id] - lse;
        if (q->logprobs && (!cr_token_is_end(m, id) || q->echo))
            cr_probs_add(&c->probs, q->chat, m, id, logits, lse, q->top_logprobs);
    }
    c->sum_logprob += (double)logprob;
    if (c->tops && c->n_tops < (size_t)c->max_new)
        c->tops[c->n_tops++] = fminf(0, logprob + (highest(logits, n_vocab) - logits[id]));
    if (c->counts && c->counts[id] < UINT16_MAX)
        c->counts[id]++;
    if (cr_token_is_end(m, id)) {
        cr_choice_finish(c, "stop");
        return;
    }
    const char *bytes;
    size_t n = cr_token_bytes(m, id, false, &bytes);
    bool more = follow(c, bytes, n);
    cr_text_out_add(&c->out, bytes, n);
    if (c->out.stopped && c->out.which < q->n_stop) /* the form's own line end is no news */
        c->stop_met = q->stop[c->out.which];
    if (c->out.stopped || !more)
        cr_choice_finish(c, "stop");
    else if (c->n_new >= c->max_new || c->n_ids == c->cap)
        cr_choice_finish(c, "length");
    else
        c->ids[c->n_ids++] = id;
}

void cr_choice_logits(struct cr_choice *c, size_t at, const float *logits, float *scratch)
{
    const struct cr_api_request *q = &c->job->req;
    const cr_model *m = cr_target_model(c->job->target);
    if (c->finish || c->err.status != CR_OK)
        return;
    if (at + 1 <= c->n_hidden)
        return;
    if (at + 1 < c->n_prompt)
        cr_probs_add(&c->probs, q->chat, m, c->ids[at + 1], logits,
                     cr_log_sum_exp(logits, cr_model_info(m)->n_vocab), q->top_logprobs);
    else if (at + 1 == c->n_ids && c->max_new == 0)
        cr_choice_finish(c, "length");
    else if (at + 1 == c->n_ids)
        choose(c, logits, scratch);
    if (c->broken)
        fail(c, CR_LIMIT, "the reply is larger than this server gives");
}
