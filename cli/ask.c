/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt forms and sampling options. */
#include "ask.h"

#include "adapt/palette.h"
#include "base/mem.h"
#include "messages.h"

#include <string.h>

enum cr_form cr_form_of(const struct cr_args *a, const struct cr_setup *s)
{
    const char *chat = cr_model_info(s->model)->chat;
    if (cr_arg_flag(a, CR_OPT_RAW))
        return CR_FORM_RAW;
    if (cr_arg_flag(a, CR_OPT_CHAT))
        return CR_FORM_CHAT;
    if (s->palette)
        return CR_FORM_TASK;
    return *chat && strcmp(chat, "unknown") ? CR_FORM_CHAT : CR_FORM_RAW;
}

struct cr_sampling cr_sampling_of(const struct cr_args *a, enum cr_form form)
{
    bool task = form == CR_FORM_TASK && !cr_arg_given(a, CR_OPT_TEMP);
    return (struct cr_sampling){
        .temperature = task ? 0 : (float)cr_arg_real(a, CR_OPT_TEMP),
        .top_k = cr_arg_int(a, CR_OPT_TOP_K),
        .top_p = (float)cr_arg_real(a, CR_OPT_TOP_P),
        .min_p = (float)cr_arg_real(a, CR_OPT_MIN_P),
        .repeat_penalty = (float)cr_arg_real(a, CR_OPT_REPEAT_PENALTY),
        .repeat_last_n = cr_arg_int(a, CR_OPT_REPEAT_LAST_N),
        .seed = cr_arg_seed(a, CR_OPT_SEED),
    };
}

static enum cr_status chat_ids(const struct cr_setup *s, const char *system, const char *text,
                               int32_t **ids, size_t *n, struct cr_error *err)
{
    struct cr_message messages[2];
    size_t k = 0;
    if (system)
        messages[k++] = (struct cr_message){"system", system};
    messages[k++] = (struct cr_message){"user", text};
    return cr_chat_tokenize(s->model, messages, k, true, ids, n, err);
}

static enum cr_status task_ids(const struct cr_setup *s, const struct cr_example *e, size_t room,
                               struct cr_ids *ids, struct cr_error *err)
{
    const struct cr_worked *w = s->palette ? &s->palette->worked_ids : NULL;
    size_t used;
    enum cr_status st = cr_prompt_encode(s->model, e, ids, err);
    if (!st)
        st = cr_worked_put(w, s->model, CR_WORKED_MAX, room, ids, 0, &used, err);
    if (!st && w && used < w->n)
        cr_note("%zu of %zu worked examples fit beside the question: the context has room for %zu "
                "tokens of prompt",
                used, w->n, room);
    return st;
}

enum cr_status cr_form_ids(const struct cr_setup *s, enum cr_form form, const char *system,
                           const struct cr_example *e, size_t room, int32_t **ids, size_t *n,
                           struct cr_error *err)
{
    *ids = NULL;
    *n = 0;
    if (form == CR_FORM_TASK) {
        struct cr_ids list = {0};
        enum cr_status st = task_ids(s, e, room, &list, err);
        *ids = list.v;
        *n = list.n;
        return st;
    }
    char *joined = e->context ? cr_asprintf("%s\n%s", e->context, e->question) : NULL;
    if (e->context && !joined)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    const char *text = joined ? joined : e->question;
    enum cr_status st = form == CR_FORM_CHAT ? chat_ids(s, system, text, ids, n, err)
                                             : cr_tokenize(s->model, text, strlen(text),
                                                           CR_TOKENIZE_BOS, ids, n, err);
    if (!st && !*n)
        st = cr_error_set(err, CR_INVALID, "the prompt is empty");
    cr_free(joined);
    return st;
}
