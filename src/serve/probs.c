/* SPDX-License-Identifier: Apache-2.0 */
/* Most likely tokens and the shapes of OpenAI's log-probabilities. */
#include "serve/probs.h"

#include <math.h>

struct top {
    int n;
    int32_t ids[CR_API_MAX_TOP];
    float logprobs[CR_API_MAX_TOP];
};

float cr_log_sum_exp(const float *logits, int n)
{
    float max = logits[0];
    for (int i = 1; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)expf(logits[i] - max);
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

static json_t *chat_entry(const cr_model *m, int32_t id, float logprob)
{
    return json_pack("{s:o, s:f, s:o}", "token", token_json(m, id), "logprob", (double)logprob,
                     "bytes", bytes_json(m, id));
}

static void add_chat(struct cr_probs *p, const cr_model *m, int32_t id, float logprob,
                     const struct top *top)
{
    bool ok = true;
    json_t *e = chat_entry(m, id, logprob), *list = json_array();
    for (int i = 0; i < top->n; i++)
        json_array_append_new(list, chat_entry(m, top->ids[i], top->logprobs[i]));
    cr_api_put(e, "top_logprobs", list, &ok);
    json_array_append_new(p->chat, e);
}

void cr_probs_add(struct cr_probs *p, bool chat, const cr_model *m, int32_t id, const float *logits,
                  float lse, int n_top)
{
    struct top top = {0};
    if (logits)
        top_of(&top, logits, cr_model_info(m)->n_vocab, n_top, lse);
    if (chat) {
        add_chat(p, m, id, logits[id] - lse, &top);
        return;
    }
    const char *bytes;
    bool ok = true;
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

void cr_probs_init(struct cr_probs *p, bool chat)
{
    *p = (struct cr_probs){0};
    if (chat) {
        p->chat = json_array();
        return;
    }
    p->tokens = json_array();
    p->values = json_array();
    p->tops = json_array();
    p->offs = json_array();
}

json_t *cr_probs_take(struct cr_probs *p, bool chat)
{
    size_t offset = p->offset;
    json_t *v = chat ? json_pack("{s:o}", "content", p->chat)
                     : json_pack("{s:o, s:o, s:o, s:o}", "tokens", p->tokens, "token_logprobs",
                                 p->values, "top_logprobs", p->tops, "text_offset", p->offs);
    cr_probs_init(p, chat);
    p->offset = offset;
    return v;
}

void cr_probs_deinit(struct cr_probs *p)
{
    json_decref(p->chat);
    json_decref(p->tokens);
    json_decref(p->values);
    json_decref(p->tops);
    json_decref(p->offs);
    *p = (struct cr_probs){0};
}
