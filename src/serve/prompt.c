/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a request to the ids of its prompt. A text stands as it came, messages in the chat template;
 * for a palette or another blend in the task form that its pool was trained in (docs/method.md),
 * whose answer is one line. The target's worked examples stand in front of a text and of the task
 * form.
 */
#include "serve/job.h"

#include "base/mem.h"
#include "model/model.h"

#include <string.h>

enum { MAX_CONTEXT = 1 << 26 };

/* Tools and schemas speak through the chat template, and a conversation of the task form ends with
 * the user. */
static bool may_be_task(const struct cr_api_request *q)
{
    return q->chat && q->n_messages && q->tool_choice == CR_TOOLS_NONE &&
           q->format == CR_FORMAT_TEXT && strcmp(q->messages[q->n_messages - 1].role, "user") == 0;
}

/* The last message is the question, what came before it the context. */
static enum cr_status task_ids(const cr_model *m, const struct cr_api_request *q,
                               struct cr_ids *ids, struct cr_error *err)
{
    struct cr_buf context;
    size_t last = q->n_messages - 1;
    cr_buf_init(&context, MAX_CONTEXT);
    for (size_t i = 0; i < last; i++)
        cr_example_add_turn(&context, q->messages[i].role, q->messages[i].content);
    struct cr_example e = {.task = (char *)(uintptr_t) "",
                           .question = (char *)(uintptr_t)q->messages[last].content,
                           .context = last ? context.data : NULL,
                           .answer_index = -1};
    enum cr_status status = context.failed
                                ? cr_error_set(err, CR_NO_MEMORY, "out of memory for the messages")
                                : cr_prompt_encode(m, &e, ids, err);
    cr_buf_deinit(&context);
    return status;
}

static enum cr_status copy_ids(const cr_model *m, const struct cr_api_prompt *p, struct cr_ids *ids,
                               struct cr_error *err)
{
    int n_vocab = cr_model_info(m)->n_vocab;
    for (size_t i = 0; i < p->n_ids; i++)
        if (p->ids[i] >= n_vocab)
            return cr_error_set(err, CR_INVALID, "prompt: id %d is not in the vocabulary of %d",
                                (int)p->ids[i], n_vocab);
    if (!(ids->v = cr_alloc(p->n_ids, sizeof *ids->v)))
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    ids->n = ids->cap = p->n_ids;
    memcpy(ids->v, p->ids, p->n_ids * sizeof *p->ids);
    return CR_OK;
}

enum cr_status cr_prompt_make(struct cr_prompt *out, const struct cr_target *t,
                              const struct cr_api_request *q, const struct cr_api_prompt *p,
                              int n_ctx, struct cr_error *err)
{
    const cr_model *m = t->model;
    size_t most = q->worked < 0 ? t->worked.n : (size_t)q->worked, own;
    bool task = q->form == CR_PROMPT_TASK || (q->form == CR_PROMPT_AUTO && (t->palette || t->pool));
    *out = (struct cr_prompt){.task = task && may_be_task(q)};
    if (q->chat && q->form == CR_PROMPT_TASK && !out->task)
        return cr_error_set(err, CR_INVALID,
                            "crayon.form: \"task\" wants messages that end with the user's, and no "
                            "tools or schema");
    struct cr_ids *ids = &out->ids;
    enum cr_status status;
    if (out->task)
        status = task_ids(m, q, ids, err);
    else if (q->chat)
        status = cr_chat_tokenize(m, q->messages, q->n_messages, true, &ids->v, &ids->n, err);
    else if (p->text)
        status = cr_tokenize(m, p->text, p->n_text, CR_TOKENIZE_BOS, &ids->v, &ids->n, err);
    else
        status = copy_ids(m, p, ids, err);
    ids->cap = ids->cap ? ids->cap : ids->n;
    own = ids->n;
    /* What the tokenizer put before a text is not the client's: neither echoed nor scored. */
    out->n_hidden = p && p->text && cr_tokenizer_add_bos(m->tok) && own > 1;
    if (status == CR_OK && own && (out->task || (p && p->text)))
        status = cr_worked_put(&t->worked, m, most, cr_worked_room(n_ctx, q->max_tokens), ids, 0,
                               &out->n_worked, err);
    out->n_hidden += p && p->text ? ids->n - own : 0;
    return status;
}
