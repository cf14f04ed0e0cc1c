/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon logits`: raw little-endian float32 [n_tokens, n_vocab], one row after each token. */
#include "base/mem.h"
#include "common.h"
#include "messages.h"
#include "model/session.h"
#include "verbs.h"

#include <stdlib.h>
#include <string.h>

struct sink {
    struct cr_file_writer file;
    bool to_stdout;
    size_t row_bytes, last; /* last: index of the last token */
    char hash[9];           /* of its logits */
    enum cr_status st;
    struct cr_error err;
};

static void on_logits(void *ud, size_t token, const float *logits)
{
    struct sink *k = ud;
    if (k->st)
        return;
    if (token == k->last)
        cr_floats_hash(logits, k->row_bytes / sizeof *logits, k->hash);
    if (k->to_stdout)
        cr_out(logits, k->row_bytes);
    else
        k->st = cr_file_add(&k->file, logits, k->row_bytes, &k->err);
}

static bool cancelled(void *ud)
{
    const struct sink *k = ud;
    return k->st != CR_OK || cr_interrupted();
}

/* "1,2,3", each checked against the vocabulary. Free *ids with cr_free. */
static enum cr_status parse_ids(const char *text, int n_vocab, int32_t **ids, size_t *n,
                                struct cr_error *err)
{
    size_t count = 1;
    for (const char *p = text; *p; p++)
        count += *p == ',';
    *n = 0;
    *ids = cr_alloc(count, sizeof **ids);
    if (!*ids)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    for (const char *p = text; *n < count; p += strcspn(p, ",") + 1) {
        char word[24];
        size_t len = strcspn(p, ",");
        long long id = -1;
        memcpy(word, p, len < sizeof word ? len : 0);
        word[len < sizeof word ? len : 0] = '\0';
        if (!cr_parse_int(word, &id) || id < 0 || id >= n_vocab)
            return cr_error_set(err, CR_INVALID,
                                "token %zu of --tokens is \"%.*s\"; should be from 0 to %d", *n + 1,
                                (int)(len < 40 ? len : 40), p, n_vocab - 1);
        (*ids)[(*n)++] = (int32_t)id;
    }
    return CR_OK;
}

static enum cr_status ids_of(const struct cr_args *a, const struct cr_setup *s, int32_t **ids,
                             size_t *n, struct cr_error *err)
{
    const char *list = cr_arg_text(a, CR_OPT_TOKENS), *text = cr_arg_text(a, CR_OPT_PROMPT);
    if (list)
        return parse_ids(list, cr_model_info(s->model)->n_vocab, ids, n, err);
    enum cr_status st = cr_tokenize(s->model, text, strlen(text), CR_TOKENIZE_BOS, ids, n, err);
    return st || *n ? st : cr_error_set(err, CR_INVALID, "the prompt is empty");
}

static enum cr_status run_ids(cr_session *session, const int32_t *ids, size_t n, struct sink *k,
                              struct cr_error *err)
{
    struct cr_batch_token *tokens = cr_alloc0(n, sizeof *tokens);
    if (!tokens)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++)
        tokens[i] = (struct cr_batch_token){.id = ids[i], .pos = (int32_t)i, .want = true};
    struct cr_batch batch = {
        .tokens = tokens, .n = n, .on_logits = on_logits, .ud = k, .cancelled = cancelled};
    enum cr_status st = cr_session_run(session, &batch, err);
    cr_free(tokens);
    if (k->st) {
        *err = k->err;
        return k->st;
    }
    return st;
}

int cr_cli_logits(const struct cr_args *a)
{
    const char *path = cr_arg_text(a, CR_OPT_OUTPUT);
    if (!cr_arg_text(a, CR_OPT_TOKENS) == !cr_arg_text(a, CR_OPT_PROMPT))
        return cr_misuse("logits", "one of --tokens and --prompt is needed");
    struct cr_setup s;
    struct cr_error err;
    struct sink k = {.to_stdout = !strcmp(path, "-"), .file = {.fd = -1}};
    if (k.to_stdout && cr_out_is_tty())
        return cr_misuse("logits", "binary output does not go to a terminal");
    cr_session *session = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    double ms = 0;
    enum cr_status st = cr_setup_open(&s, a, CR_SETUP_DELTA, &err);
    if (!st)
        st = ids_of(a, &s, &ids, &n, &err);
    if (!st)
        st = cr_setup_session(&s, a, n, &session, &err);
    if (!st && !k.to_stdout)
        st = cr_file_begin(&k.file, path, &err);
    if (!st) {
        cr_interrupt_catch();
        k.last = n - 1;
        k.row_bytes = (size_t)cr_model_info(s.model)->n_vocab * sizeof(float);
        double start = cr_now();
        st = run_ids(session, ids, n, &k, &err);
        ms = 1e3 * (cr_now() - start);
        if (!st && !k.to_stdout)
            st = cr_file_commit(&k.file, &err);
        else if (!k.to_stdout)
            cr_file_abort(&k.file);
    }
    if (!st)
        cr_summary(cr_model_info(s.model), n, ms, 0, 0, k.hash);
    cr_session_free(session);
    cr_free(ids);
    cr_setup_close(&s);
    return st ? cr_fail(&err) : 0;
}
