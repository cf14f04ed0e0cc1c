/* SPDX-License-Identifier: Apache-2.0 */
/* The text functions of crayon.h: the tokenizer and the chat template of a model. */
#include "model/model.h"

#include "base/mem.h"

/* Hands the array of ids over; *ids is never NULL on success. */
static enum cr_status hand_over(enum cr_status status, struct cr_ids *from, int32_t **ids,
                                size_t *n, struct cr_error *err)
{
    if (status == CR_OK && !from->v && !(from->v = cr_alloc(1, sizeof *from->v)))
        status = cr_error_set(err, CR_NO_MEMORY, "tokens: out of memory");
    if (status != CR_OK) {
        cr_free(from->v);
        return status;
    }
    *ids = from->v;
    *n = from->n;
    return CR_OK;
}

enum cr_status cr_tokenize(const cr_model *m, const char *text, size_t len, unsigned flags,
                           int32_t **ids, size_t *n, struct cr_error *err)
{
    struct cr_ids list = {0};
    *ids = NULL;
    *n = 0;
    return hand_over(cr_tokenizer_encode(m->tok, text, len, flags, &list, err), &list, ids, n, err);
}

enum cr_status cr_chat_tokenize(const cr_model *m, const struct cr_message *messages, size_t n,
                                bool open_turn, int32_t **ids, size_t *n_ids, struct cr_error *err)
{
    struct cr_ids list = {0};
    const char *system = m->default_system[0] ? m->default_system : NULL;
    *ids = NULL;
    *n_ids = 0;
    return hand_over(cr_chat_encode(m->chat, m->tok, system, messages, n, open_turn, &list, err),
                     &list, ids, n_ids, err);
}

size_t cr_token_bytes(const cr_model *m, int32_t id, bool special, const char **bytes)
{
    return cr_tokenizer_bytes(m->tok, id, special, bytes);
}

bool cr_token_is_end(const cr_model *m, int32_t id)
{
    return cr_tokenizer_is_end(m->tok, id);
}

bool cr_token_is_control(const cr_model *m, int32_t id)
{
    return cr_tokenizer_is_control(m->tok, id);
}
