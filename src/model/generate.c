/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt to text: sync the session, choose tokens, hand out text (textout.c). */
#include "model/speculate.h"
#include "model/textout.h"

#include <math.h>
#include <time.h>

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Tokens in the session that were chosen. */
static int length_without(const struct cr_speculation *p, const cr_session *s)
{
    return cr_session_length(s) - (p->n_tried > p->at ? p->n_tried - p->at - 1 : 0);
}

/* Chooses tokens until something ends it. */
static enum cr_status decode(cr_session *s, cr_sampler *sampler, const struct cr_generate *g,
                             struct cr_speculation *guesses, struct cr_text_out *o,
                             struct cr_generated *out, double start, struct cr_error *err)
{
    const cr_model *m = cr_session_model(s);
    for (int i = 0; i < g->max_tokens; i++) {
        const float *logits = cr_session_logits(s);
        float logprob;
        int32_t id = cr_sampler_next(sampler, logits, g->on_token ? &logprob : NULL);
        if (!isfinite(logits[id]))
            return cr_error_set(err, CR_FORMAT,
                                "generate: the model's output is not a number (damaged weights?)");
        if (out->n_decode++ == 0)
            out->first_token_ms = now_ms() - start;
        if (g->on_token && !g->on_token(g->ud, id, logprob)) {
            o->cancelled = true;
            return CR_OK;
        }
        if (!g->ignore_end && cr_token_is_end(m, id)) {
            out->finish = CR_FINISH_STOP;
            return CR_OK;
        }
        const char *bytes;
        size_t n = cr_token_bytes(m, id, false, &bytes);
        cr_text_out_add(o, bytes, n);
        if (o->stopped || o->cancelled || i + 1 == g->max_tokens ||
            length_without(guesses, s) == cr_session_ctx(s))
            return CR_OK;
        enum cr_status status = cr_speculation_step(guesses, s, id, g->max_tokens - i - 2, err);
        if (status != CR_OK)
            return status;
    }
    return CR_OK;
}

enum cr_status cr_generate(cr_session *s, const struct cr_generate *g, struct cr_generated *out,
                           struct cr_error *err)
{
    struct cr_generated local;
    out = out ? out : &local;
    *out = (struct cr_generated){.finish = CR_FINISH_LENGTH};
    cr_sampler *sampler = NULL;
    struct cr_text_out o;
    struct cr_speculation guesses = {0};
    if (g->max_tokens < 0)
        return cr_error_set(err, CR_INVALID, "generate: max_tokens: want 0 or more, got %d",
                            g->max_tokens);
    enum cr_status status = cr_text_out_init(&o, g->stop, g->n_stop, g->on_text, g->ud, err);
    if (status == CR_OK)
        status = cr_sampler_new(&sampler, cr_session_model(s), &g->sampling, err);
    if (status != CR_OK)
        return status;
    double start = now_ms(), ready;
    status = cr_session_sync(s, g->prompt, g->n_prompt, &out->n_prefill, err);
    ready = now_ms();
    if (status == CR_OK) {
        out->n_cached = g->n_prompt - out->n_prefill;
        out->prefill_ms = ready - start;
        for (size_t i = 0; i < g->n_prompt; i++)
            cr_sampler_accept(sampler, g->prompt[i]);
        status = cr_speculation_init(&guesses, s, g, err);
        if (status == CR_OK)
            status = decode(s, sampler, g, &guesses, &o, out, start, err);
        cr_speculation_end(&guesses, s);
        out->n_guessed = guesses.n_guessed;
        out->n_accepted = guesses.n_accepted;
        cr_speculation_deinit(&guesses);
    }
    if (status == CR_OK)
        cr_text_out_end(&o);
    out->decode_ms = now_ms() - ready;
    if (o.cancelled)
        out->finish = CR_FINISH_CANCELLED;
    else if (o.stopped)
        out->finish = CR_FINISH_STOP;
    cr_sampler_free(sampler);
    return status;
}
