/* SPDX-License-Identifier: Apache-2.0 */
/* Embeddings: the task embeddings of adapt/embed.h as unit vectors. */
#include "serve/special.h"

#include "adapt/embed.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Little-endian float32 as base64: what OpenAI's clients ask for. */
static json_t *base64_json(const float *v, size_t n)
{
    const uint8_t *p = (const uint8_t *)v;
    size_t bytes = n * sizeof *v, len = (bytes + 2) / 3 * 4, at = 0;
    char *out = cr_alloc(len + 1, 1);
    for (size_t i = 0; out && i < bytes; i += 3) {
        uint32_t group = 0;
        for (size_t k = 0; k < 3; k++)
            group = group << 8 | (i + k < bytes ? p[i + k] : 0u);
        for (size_t k = 0; k < 4; k++)
            out[at++] = i + k > bytes ? '=' : digits[group >> (18 - 6 * k) & 63];
    }
    json_t *s = out ? json_stringn(out, len) : NULL;
    cr_free(out);
    return s;
}

static json_t *floats_json(const float *v, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_real((double)v[i]));
    return list;
}

static void to_unit(float *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i] * (double)v[i];
    for (size_t i = 0; i < n && sum > 0; i++)
        v[i] = (float)((double)v[i] / sqrt(sum));
}

/* The text of a prompt, which may have come as ids; free with cr_free. */
static char *text_of(const cr_model *m, const struct cr_api_prompt *p, struct cr_error *err)
{
    struct cr_buf b;
    if (p->text && strlen(p->text) != p->n_text) {
        cr_error_set(err, CR_INVALID, "input: holds a NUL character");
        return NULL;
    }
    cr_buf_init(&b, CR_JOB_MAX_OUT);
    cr_buf_puts(&b, p->text ? p->text : "");
    for (size_t i = 0; i < p->n_ids; i++) {
        const char *bytes;
        if (p->ids[i] >= cr_model_info(m)->n_vocab) {
            cr_error_set(err, CR_INVALID, "input: id %d is not in the vocabulary of %d",
                         (int)p->ids[i], cr_model_info(m)->n_vocab);
            cr_buf_deinit(&b);
            return NULL;
        }
        size_t n = cr_token_bytes(m, p->ids[i], false, &bytes);
        cr_buf_add(&b, bytes, n);
    }
    char *text = cr_buf_detach(&b, NULL);
    if (!text)
        cr_error_set(err, CR_NO_MEMORY, "out of memory");
    return text;
}

static enum cr_status embed_one(struct cr_job *j, const struct cr_api_prompt *p, float *out,
                                struct cr_error *err)
{
    cr_model *m = j->target->model;
    enum cr_view view = j->req.view_middle ? CR_VIEW_MIDDLE : CR_VIEW_QX;
    int32_t *ids = NULL;
    size_t n = 0;
    char *text = text_of(m, p, err);
    if (!text)
        return err->status;
    enum cr_status status = cr_tokenize(m, text, strlen(text), 0, &ids, &n, err);
    if (status == CR_OK && n == 0)
        status = cr_error_set(err, CR_INVALID, "input: is empty");
    if (status == CR_OK && n > (size_t)cr_model_info(m)->n_ctx_train)
        status = cr_error_set(err, CR_LIMIT, "the input has %zu tokens, the model's context %d", n,
                              cr_model_info(m)->n_ctx_train);
    j->n_prompt += n;
    cr_free(ids);
    struct cr_example e = {.task = (char *)"", .question = text, .answer_index = -1};
    if (status == CR_OK)
        status = cr_embed_examples(m, view, &e, 1, out, err);
    to_unit(out, (size_t)cr_view_dim(m, view));
    cr_free(text);
    return status;
}

static json_t *reply(struct cr_job *j, json_t *list)
{
    if (j->req.kind == CR_API_OLLAMA_EMBED)
        return json_pack("{s:s, s:o, s:I}", "model", j->req.model, "embeddings", list,
                         "prompt_eval_count", (json_int_t)j->n_prompt);
    return json_pack("{s:s, s:o, s:s, s:{s:I, s:I}}", "object", "list", "data", list, "model",
                     j->req.model, "usage", "prompt_tokens", (json_int_t)j->n_prompt,
                     "total_tokens", (json_int_t)j->n_prompt);
}

void cr_special_embed(cr_worker *w, struct cr_job *j)
{
    (void)w;
    const struct cr_api_request *q = &j->req;
    struct cr_error err = {.status = CR_OK};
    size_t dim =
        (size_t)cr_view_dim(j->target->model, q->view_middle ? CR_VIEW_MIDDLE : CR_VIEW_QX);
    float *v = cr_alloc(dim, sizeof *v);
    json_t *list = json_array();
    enum cr_status status = v ? CR_OK : cr_error_set(&err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < q->n_prompts && status == CR_OK; i++) {
        if (cr_job_client_gone(j)) {
            status = cr_error_set(&err, CR_CANCELLED, "the client went away");
            break;
        }
        status = embed_one(j, &q->prompts[i], v, &err);
        if (status != CR_OK)
            break;
        json_t *one = q->base64 ? base64_json(v, dim) : floats_json(v, dim);
        json_array_append_new(list, q->kind == CR_API_OLLAMA_EMBED
                                        ? one
                                        : json_pack("{s:s, s:I, s:o}", "object", "embedding",
                                                    "index", (json_int_t)i, "embedding", one));
    }
    cr_free(v);
    if (status == CR_OK && cr_job_add(j, "", reply(j, list), "")) {
        cr_job_news(j, 200, true);
        return;
    }
    if (status == CR_OK)
        cr_error_set(&err, CR_NO_MEMORY, "out of memory for the reply");
    else
        json_decref(list);
    struct cr_api_error e;
    cr_api_error_from(&e, &err);
    cr_job_fail(j, &e);
}
