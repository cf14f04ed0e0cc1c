/* SPDX-License-Identifier: Apache-2.0 */
/* The ids of prompts and answers; see prompt.h. */
#include "adapt/prompt.h"

#include "base/mem.h"

#include <string.h>

enum cr_status cr_prompt_encode(const cr_model *m, const struct cr_example *e, struct cr_ids *ids,
                                struct cr_error *err)
{
    char *text = cr_example_prompt(e);
    if (!text)
        return cr_error_set(err, CR_NO_MEMORY, "prompt: out of memory");
    enum cr_status st = cr_tokenizer_encode(m->tok, text, strlen(text), CR_TOKENIZE_BOS, ids, err);
    cr_free(text);
    return st;
}

/* Does the tokenizer begin every text with a blank of its own? One letter shows it. */
static enum cr_status adds_blank(const cr_model *m, bool *yes, struct cr_error *err)
{
    struct cr_ids probe = {0};
    enum cr_status st = cr_tokenizer_encode(m->tok, "a", 1, 0, &probe, err);
    const char *bytes;
    *yes =
        !st && probe.n && cr_tokenizer_bytes(m->tok, probe.v[0], false, &bytes) && bytes[0] == ' ';
    cr_free(probe.v);
    return st;
}

enum cr_status cr_answer_encode(const cr_model *m, const char *text, bool end_line,
                                struct cr_ids *ids, struct cr_error *err)
{
    bool blank;
    enum cr_status st = adds_blank(m, &blank, err);
    if (st)
        return st;
    char *s = cr_asprintf("%s%s%s", blank ? "" : " ", text, end_line ? "\n" : "");
    if (!s)
        return cr_error_set(err, CR_NO_MEMORY, "answer: out of memory");
    st = cr_tokenizer_encode(m->tok, s, strlen(s), 0, ids, err);
    cr_free(s);
    return st;
}
