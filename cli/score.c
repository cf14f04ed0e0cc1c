/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon score`: log-probabilities of given completions, JSONL in and out. */
#include "adapt/palette.h"

#include "adapt/score.h"
#include "base/mem.h"
#include "common.h"
#include "jsonout.h"
#include "lines.h"
#include "messages.h"
#include "verbs.h"

#include <math.h>
#include <string.h>

#ifdef CRAYON_JSON
#include <jansson.h>

/* Of a line that waits for its batch on a device. */
struct waiting {
    int32_t *prompt, *completion;
    size_t n_prompt, n, first;
    float *logprobs;
};

struct scoring {
    const struct cr_args *a;
    struct cr_setup setup;
    cr_session *session;
    struct cr_lines lines;
    struct cr_buf out;
    size_t n_lines, n_tokens;
    struct waiting *waiting; /* with a device */
    size_t n_waiting, cap_waiting, waiting_tokens;
    struct cr_error err;
};

/* A string by the tokenizer, or an array of ids as they are. Free *ids with cr_free. */
static enum cr_status ids_of(struct scoring *s, const json_t *v, const char *key, unsigned flags,
                             int32_t **ids, size_t *n)
{
    int n_vocab = cr_model_info(s->setup.model)->n_vocab;
    *ids = NULL;
    *n = 0;
    if (json_is_string(v))
        return cr_tokenize(s->setup.model, json_string_value(v), json_string_length(v), flags, ids,
                           n, &s->err);
    if (!json_is_array(v))
        return cr_lines_bad(&s->lines, CR_FORMAT, &s->err,
                            "\"%s\" must be a string or an array of token ids", key);
    size_t count = json_array_size(v);
    *ids = cr_alloc(count, sizeof **ids);
    if (!*ids)
        return cr_lines_bad(&s->lines, CR_NO_MEMORY, &s->err, "out of memory");
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(v, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= n_vocab)
            return cr_lines_bad(&s->lines, CR_FORMAT, &s->err,
                                "\"%s\"[%zu] must be a token id from 0 to %d", key, i, n_vocab - 1);
        (*ids)[i] = (int32_t)value;
    }
    *n = count;
    return CR_OK;
}

/* The palette's worked examples in front of a prompt, as far as they fit beside the completion. */
static enum cr_status put_worked(struct scoring *s, int32_t **p, size_t *n_p, size_t n_c)
{
    struct cr_ids ids = {*p, *n_p, *n_p};
    int ctx = cr_arg_int(s->a, CR_OPT_CTX);
    size_t most = (size_t)(ctx ? ctx : cr_model_info(s->setup.model)->n_ctx_train);
    enum cr_status st = cr_worked_put(&s->setup.palette->worked_ids, s->setup.model, CR_WORKED_MAX,
                                      most > n_c ? most - n_c : 0, &ids, 0, NULL, &s->err);
    *p = ids.v;
    *n_p = ids.n;
    return st;
}

/* Makes the session large enough for n tokens. */
static enum cr_status make_room(struct scoring *s, size_t n)
{
    if (s->session && (size_t)cr_session_ctx(s->session) >= n)
        return CR_OK;
    int most = cr_arg_int(s->a, CR_OPT_CTX);
    if (!most)
        most = cr_model_info(s->setup.model)->n_ctx_train;
    if (n > (size_t)most)
        return cr_lines_bad(&s->lines, CR_LIMIT, &s->err,
                            "prompt and completion have %zu tokens, the context holds %d", n, most);
    cr_session_free(s->session);
    s->session = NULL;
    size_t need = n * 2 < (size_t)most ? n * 2 : (size_t)most;
    return cr_setup_session(&s->setup, s->a, need, &s->session, &s->err);
}

static enum cr_status print_scores(struct scoring *s, const int32_t *ids, const float *logprobs,
                                   size_t n, size_t first, bool is_greedy)
{
    struct cr_json j;
    double sum = 0;
    s->out.len = 0;
    cr_json_begin(&j, &s->out, false);
    cr_json_open(&j, NULL, '{');
    cr_json_ids(&j, "tokens", ids, n);
    cr_json_open(&j, "logprobs", '[');
    for (size_t i = 0; i < n; i++) {
        cr_json_real(&j, NULL, i < first ? (double)NAN : (double)logprobs[i]);
        sum += i < first ? 0 : (double)logprobs[i];
    }
    cr_json_close(&j);
    cr_json_real(&j, "sum", sum);
    cr_json_bool(&j, "is_greedy", is_greedy);
    cr_json_close(&j);
    cr_buf_puts(&s->out, "\n");
    if (s->out.failed)
        return cr_lines_bad(&s->lines, CR_NO_MEMORY, &s->err, "out of memory");
    cr_out_text(s->out.data, s->out.len);
    return CR_OK;
}

static enum cr_status score_ids(struct scoring *s, const int32_t *prompt, size_t n_prompt,
                                const int32_t *completion, size_t n)
{
    if (!n_prompt && !n)
        return cr_lines_bad(&s->lines, CR_FORMAT, &s->err, "prompt and completion are empty");
    /* Nothing comes before the first token of an empty prompt: its log-probability is null. */
    size_t first = n_prompt ? 0 : 1;
    float *logprobs = cr_alloc(n, sizeof *logprobs);
    bool is_greedy = true;
    enum cr_status st = logprobs ? make_room(s, n_prompt + n)
                                 : cr_lines_bad(&s->lines, CR_NO_MEMORY, &s->err, "out of memory");
    if (!st && n > first)
        st = cr_score_tokens(s->session, first ? completion : prompt, first ? 1 : n_prompt,
                             completion + first, n - first, logprobs + first, &is_greedy, &s->err);
    if (!st)
        st = print_scores(s, completion, logprobs, n, first, is_greedy);
    cr_free(logprobs);
    s->n_tokens += n_prompt + n;
    return st;
}

/* ---- with a device: lines wait until they make a batch ---- */

enum { BATCH_TOKENS = 1 << 14 };

static void free_waiting(struct scoring *s)
{
    for (size_t i = 0; i < s->n_waiting; i++) {
        cr_free(s->waiting[i].prompt);
        cr_free(s->waiting[i].completion);
        cr_free(s->waiting[i].logprobs);
    }
    s->n_waiting = s->waiting_tokens = 0;
}

static enum cr_status flush(struct scoring *s)
{
    struct cr_score_job *jobs = cr_alloc0(s->n_waiting, sizeof *jobs);
    size_t n = 0;
    enum cr_status st = jobs ? CR_OK : cr_error_set(&s->err, CR_NO_MEMORY, "score: out of memory");
    for (size_t i = 0; !st && i < s->n_waiting; i++) {
        const struct waiting *w = &s->waiting[i];
        if (w->n > w->first) /* the first of an empty prompt has none */
            jobs[n++] = (struct cr_score_job){w->first ? w->completion : w->prompt,
                                              w->completion + w->first,
                                              w->first ? 1 : w->n_prompt,
                                              w->n - w->first,
                                              w->logprobs + w->first,
                                              true};
    }
    if (!st && n)
        st = cr_score_jobs(s->setup.model, s->setup.delta, jobs, n, &s->err);
    for (size_t i = 0, k = 0; !st && i < s->n_waiting; i++) {
        const struct waiting *w = &s->waiting[i];
        bool is_greedy = w->n > w->first ? jobs[k++].is_greedy : true;
        st = print_scores(s, w->completion, w->logprobs, w->n, w->first, is_greedy);
    }
    cr_free(jobs);
    free_waiting(s);
    return st;
}

/* Takes the ids over. */
static enum cr_status wait_ids(struct scoring *s, int32_t *prompt, size_t n_prompt,
                               int32_t *completion, size_t n)
{
    size_t most = (size_t)cr_model_info(s->setup.model)->n_ctx_train;
    struct waiting w = {prompt, completion, n_prompt, n, n_prompt ? 0 : 1, NULL};
    enum cr_status st = CR_OK;
    if (!n_prompt && !n)
        st = cr_lines_bad(&s->lines, CR_FORMAT, &s->err, "prompt and completion are empty");
    else if (n_prompt + n > most)
        st = cr_lines_bad(&s->lines, CR_LIMIT, &s->err,
                          "prompt and completion have %zu tokens, the context holds %zu",
                          n_prompt + n, most);
    if (!st && s->n_waiting == s->cap_waiting) {
        size_t cap = s->cap_waiting ? 2 * s->cap_waiting : 256;
        struct waiting *v = cr_realloc(s->waiting, cap, sizeof *v);
        if (v) {
            s->waiting = v;
            s->cap_waiting = cap;
        }
    }
    w.logprobs = st ? NULL : cr_alloc(n, sizeof *w.logprobs);
    if (!st && (!w.logprobs || s->n_waiting == s->cap_waiting))
        st = cr_lines_bad(&s->lines, CR_NO_MEMORY, &s->err, "out of memory");
    if (st) {
        cr_free(w.logprobs);
        cr_free(prompt);
        cr_free(completion);
        return st;
    }
    s->waiting[s->n_waiting++] = w;
    s->n_tokens += n_prompt + n;
    s->waiting_tokens += n_prompt + n;
    return s->waiting_tokens < BATCH_TOKENS ? CR_OK : flush(s);
}

static enum cr_status score_line(struct scoring *s, const char *line, size_t len)
{
    json_error_t je;
    json_t *o = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!o)
        return cr_lines_bad(&s->lines, CR_FORMAT, &s->err, "not valid JSON at byte %d: %s",
                            je.position, je.text);
    const json_t *prompt = json_object_get(o, "prompt"),
                 *completion = json_object_get(o, "completion");
    int32_t *p = NULL, *c = NULL;
    size_t n_p = 0, n_c = 0;
    enum cr_status st = CR_OK;
    if (!json_is_object(o) || !prompt || !completion)
        st = cr_lines_bad(&s->lines, CR_FORMAT, &s->err,
                          "want an object with \"prompt\" and \"completion\"");
    if (!st)
        st = ids_of(s, prompt, "prompt", CR_TOKENIZE_BOS, &p, &n_p);
    if (!st)
        st = ids_of(s, completion, "completion", 0, &c, &n_c);
    if (!st && json_is_string(prompt) && s->setup.palette)
        st = put_worked(s, &p, &n_p, n_c);
    if (!st && s->setup.compute) {
        st = wait_ids(s, p, n_p, c, n_c);
        p = c = NULL;
    } else if (!st) {
        st = score_ids(s, p, n_p, c, n_c);
    }
    cr_free(p);
    cr_free(c);
    json_decref(o);
    return st;
}

static bool is_blank(const char *line, size_t len)
{
    while (len && strchr(" \t\r", line[len - 1]))
        len--;
    return !len;
}

static enum cr_status score_all(struct scoring *s)
{
    enum cr_status st = cr_lines_open(&s->lines, s->a->n_rest ? s->a->rest[0] : NULL, &s->err);
    const char *line = NULL;
    size_t len;
    while (!st && !cr_out_failed()) {
        st = cr_lines_next(&s->lines, &line, &len, &s->err);
        if (st || !line)
            break;
        if (is_blank(line, len))
            continue;
        st = score_line(s, line, len);
        s->n_lines++;
    }
    if (s->n_waiting && (!st || st != CR_NO_MEMORY)) { /* also what stands before a bad line */
        struct cr_error bad = s->err;
        enum cr_status last = flush(s);
        if (st)
            s->err = bad;
        else
            st = last;
    }
    cr_lines_close(&s->lines);
    return st;
}

int cr_cli_score(const struct cr_args *a)
{
    struct scoring s = {.a = a};
    cr_buf_init(&s.out, 1 << 28);
    enum cr_status st = cr_setup_open(&s.setup, a, CR_SETUP_DELTA, &s.err);
    double start = cr_now();
    if (!st) {
        cr_interrupt_catch();
        st = score_all(&s);
    }
    if (!st)
        cr_summary(cr_model_info(s.setup.model), s.n_tokens, 1e3 * (cr_now() - start), 0, 0, NULL);
    free_waiting(&s);
    cr_free(s.waiting);
    cr_session_free(s.session);
    cr_setup_close(&s.setup);
    cr_buf_deinit(&s.out);
    return st ? cr_fail(&s.err) : 0;
}

#else /* CRAYON_JSON */

int cr_cli_score(const struct cr_args *a)
{
    (void)a;
    struct cr_error err;
    cr_error_set(&err, CR_UNSUPPORTED, "score: this program was built without JSON");
    return cr_fail(&err);
}

#endif
