/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon run`: a prompt in, text out. The text is streamed; everything else goes to standard
 * error. On a terminal without --prompt it is a conversation, one line a turn.
 */
#include "adapt/adapter.h"
#include "adapt/palette.h"
#include "answer.h"
#include "ask.h"
#include "base/mem.h"
#include "jsonout.h"
#include "messages.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TURNS = 1024, MAX_LINE = 1 << 20 };

struct run {
    const struct cr_args *a;
    struct cr_setup setup;
    cr_session *session;
    cr_model *draft_model; /* of --draft, or NULL */
    cr_session *draft;
    struct cr_sampling sampling;
    const char *const *stop;
    size_t n_stop;
    enum cr_form form;
    bool stream;
    cr_cli_router *router; /* NULL: no --upstream */
    struct cr_answer ans;
    struct cr_error err;
};

static bool on_text(void *ud, const char *text, size_t len)
{
    struct run *r = ud;
    if (r->form == CR_FORM_TASK && r->ans.text.len == 0 && len && *text == ' ') {
        text++; /* "Answer:" is followed by a blank and the answer */
        len--;
    }
    if (!cr_buf_add(&r->ans.text, text, len))
        return false;
    if (r->stream)
        cr_out_text(text, len);
    return !cr_interrupted() && !cr_out_failed();
}

static bool on_token(void *ud, int32_t id, float logprob)
{
    struct run *r = ud;
    cr_answer_token(&r->ans, r->session, id, logprob);
    return !cr_interrupted();
}

/* The model of --draft, with as many tokens of context as the session. */
static enum cr_status open_draft(struct run *r)
{
    const char *name = cr_arg_text(r->a, CR_OPT_DRAFT);
    char *path;
    if (!name || r->draft)
        return CR_OK;
    enum cr_status st = cr_model_locate(name, &path, &r->err);
    if (st)
        return st;
    const struct cr_model_options opt = {.n_threads = cr_arg_int(r->a, CR_OPT_THREADS),
                                         .kv = cr_session_model(r->session)->kv};
    st = cr_model_open(&r->draft_model, path, &opt, &r->err);
    cr_free(path);
    int most = st ? 0 : cr_model_info(r->draft_model)->n_ctx_train;
    int n = cr_session_ctx(r->session);
    return st ? st : cr_session_new(&r->draft, r->draft_model, n < most ? n : most, &r->err);
}

/* Generates after the given ids and lets the router decide; fills r->ans. */
static enum cr_status answer(struct run *r, const int32_t *ids, size_t n,
                             const struct cr_message *messages, size_t n_messages)
{
    int max = cr_arg_int(r->a, CR_OPT_MAX_TOKENS);
    enum cr_status st = CR_OK;
    if (!r->session)
        st = cr_setup_session(&r->setup, r->a, n + (size_t)max, &r->session, &r->err);
    if (!st)
        st = open_draft(r);
    if (st)
        return st;
    struct cr_generate g = {
        .prompt = ids,
        .n_prompt = n,
        .max_tokens = max,
        .sampling = r->sampling,
        .stop = r->stop,
        .n_stop = r->n_stop,
        .ignore_end = cr_arg_flag(r->a, CR_OPT_IGNORE_END),
        .on_text = on_text,
        .on_token = on_token,
        .ud = r,
        .lookup = cr_arg_flag(r->a, CR_OPT_LOOKUP),
        .draft = r->draft,
    };
    cr_answer_reset(&r->ans);
    st = cr_generate(r->session, &g, &r->ans.stats, &r->err);
    if (st)
        return st;
    r->ans.finish = r->ans.stats.finish;
    if (r->ans.text.failed)
        return cr_error_set(&r->err, CR_NO_MEMORY, "out of memory holding the answer");
    return cr_cli_answer(r->router, r->a, &r->setup, messages, n_messages, &r->ans, &r->err);
}

static void blend_json(struct cr_json *j, const struct cr_setup *s)
{
    cr_json_open(j, "blend", '[');
    for (size_t i = 0; i < s->n_adapters; i++) {
        cr_json_open_line(j, NULL, '{');
        cr_json_str(j, "name", s->adapters[i]->name);
        cr_json_real(j, "weight", (double)s->scales[i]);
        cr_json_close(j);
    }
    for (int i = 0; s->palette && i < s->palette->n; i++) {
        char name[32];
        snprintf(name, sizeof name, "pool.%d", i);
        cr_json_open_line(j, NULL, '{');
        cr_json_str(j, "name", name);
        cr_json_real(j, "weight", (double)s->palette->weights[i]);
        cr_json_close(j);
    }
    cr_json_close(j);
}

static int print_json(const struct run *r)
{
    static const char *const finishes[] = {"stop", "length", "cancelled"};
    const struct cr_answer *ans = &r->ans;
    struct cr_buf b;
    struct cr_json j;
    cr_buf_init(&b, 1 << 28);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_strn(&j, "text", ans->text.data ? ans->text.data : "", ans->text.len);
    cr_json_ids(&j, "tokens", ans->ids, ans->n);
    cr_json_floats(&j, "logprobs", ans->logprobs, ans->n);
    cr_json_str(&j, "finish_reason", finishes[ans->finish]);
    cr_json_open(&j, "timings", '{');
    cr_json_fixed(&j, "load_ms", r->setup.load_ms, 3);
    cr_json_uint(&j, "copied_weight_bytes", cr_model_info(r->setup.model)->copy_bytes);
    cr_json_fixed(&j, "first_token_ms", ans->stats.first_token_ms, 3);
    cr_json_uint(&j, "prefill_tokens", ans->stats.n_prefill);
    cr_json_fixed(&j, "prefill_ms", ans->stats.prefill_ms, 3);
    cr_json_uint(&j, "decode_tokens", ans->stats.n_decode);
    cr_json_fixed(&j, "decode_ms", ans->stats.decode_ms, 3);
    cr_json_uint(&j, "guessed_tokens", ans->stats.n_guessed);
    cr_json_uint(&j, "accepted_tokens", ans->stats.n_accepted);
    cr_json_close(&j);
    cr_json_open(&j, "crayon", '{');
    cr_json_str(&j, "request_id", ans->request_id);
    cr_json_str(&j, "route", ans->route);
    cr_json_str(&j, "why", ans->why);
    cr_json_real(&j, "confidence", ans->confidence);
    cr_json_real(&j, "scope", ans->scope);
    cr_json_uint(&j, "left_device_bytes", ans->left_bytes);
    cr_json_real(&j, "cost", ans->cost);
    blend_json(&j, &r->setup);
    cr_json_close(&j);
    cr_json_close(&j);
    int code = cr_json_flush(&j);
    cr_buf_deinit(&b);
    return code;
}

static void summary(const struct run *r)
{
    char hash[9];
    cr_logits_hash(r->session, hash);
    if (r->ans.stats.n_guessed)
        cr_note("%zu of %zu guessed tokens accepted", r->ans.stats.n_accepted,
                r->ans.stats.n_guessed);
    cr_summary(cr_model_info(r->setup.model), r->ans.stats.n_prefill, r->ans.stats.prefill_ms,
               r->ans.stats.n_decode, r->ans.stats.decode_ms, hash);
}

/* Prints what was not streamed, and the end of the line. */
static void print_text(const struct run *r)
{
    if (!r->stream)
        cr_out_text(r->ans.text.data ? r->ans.text.data : "", r->ans.text.len);
    cr_out_text("\n", 1);
}

/* ---- one prompt ---- */

static enum cr_status prompt_ids(struct run *r, const char *text, size_t len,
                                 struct cr_message messages[2], size_t *n_messages, int32_t **ids,
                                 size_t *n)
{
    const char *system = cr_arg_text(r->a, CR_OPT_SYSTEM);
    *n_messages = 0;
    if (memchr(text, 0, len) && (r->form != CR_FORM_RAW || r->router))
        return cr_error_set(&r->err, CR_INVALID,
                            "the prompt holds a NUL byte; --raw%s takes any bytes",
                            r->router ? " without --upstream" : "");
    if (system)
        messages[(*n_messages)++] = (struct cr_message){"system", system};
    messages[(*n_messages)++] = (struct cr_message){"user", text};
    if (r->form == CR_FORM_TASK) {
        struct cr_example e = {.task = (char *)"", .question = (char *)text, .answer_index = -1};
        int ctx = cr_arg_int(r->a, CR_OPT_CTX), most = cr_arg_int(r->a, CR_OPT_MAX_TOKENS);
        ctx = ctx ? ctx : cr_model_info(r->setup.model)->n_ctx_train;
        return cr_form_ids(&r->setup, r->form, NULL, &e, cr_worked_room(ctx, most), ids, n,
                           &r->err);
    }
    if (r->form == CR_FORM_CHAT)
        return cr_chat_tokenize(r->setup.model, messages, *n_messages, true, ids, n, &r->err);
    unsigned flags = CR_TOKENIZE_BOS;
    if (cr_arg_flag(r->a, CR_OPT_SPECIAL))
        flags |= CR_TOKENIZE_SPECIAL;
    enum cr_status st = cr_tokenize(r->setup.model, text, len, flags, ids, n, &r->err);
    if (!st && !*n)
        st = cr_error_set(&r->err, CR_INVALID, "the prompt is empty");
    return st;
}

static int run_once(struct run *r)
{
    char *text = NULL;
    size_t len = 0, n = 0, n_messages;
    int32_t *ids = NULL;
    struct cr_message messages[2];
    int code = 0;
    enum cr_status st = cr_read_prompt(r->a, &text, &len, &r->err);
    if (!st)
        st = prompt_ids(r, text, len, messages, &n_messages, &ids, &n);
    if (!st)
        st = answer(r, ids, n, messages, n_messages);
    if (!st && cr_arg_flag(r->a, CR_OPT_JSON))
        code = print_json(r);
    else if (!st)
        print_text(r);
    if (!st)
        summary(r);
    cr_free(ids);
    cr_free(text);
    return st ? cr_fail(&r->err) : code;
}

/* ---- a conversation ---- */

/* One line from the terminal. *line is NULL at the end of input. */
static enum cr_status read_line(struct cr_buf *b, char **line, struct cr_error *err)
{
    b->len = 0;
    *line = NULL;
    if (!cr_msg_quiet())
        fputs("> ", stderr);
    char piece[4096];
    while (fgets(piece, sizeof piece, stdin)) {
        if (!cr_buf_puts(b, piece))
            return cr_error_set(err, CR_LIMIT, "a line is longer than %d bytes", MAX_LINE);
        if (b->data[b->len - 1] == '\n')
            break;
    }
    if (b->len && b->data[b->len - 1] == '\n')
        b->data[--b->len] = '\0';
    else if (!b->len)
        return CR_OK;
    *line = cr_strdup(b->data);
    return *line ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "out of memory");
}

/* The KV cache keeps the turns so far; each turn runs only what is new. */
static enum cr_status converse(struct run *r, struct cr_message *messages, size_t *n_messages)
{
    struct cr_buf input;
    cr_buf_init(&input, MAX_LINE);
    const char *system = cr_arg_text(r->a, CR_OPT_SYSTEM);
    char *copy = system ? cr_strdup(system) : NULL;
    enum cr_status st = cr_setup_session(&r->setup, r->a, 0, &r->session, &r->err);
    if (copy)
        messages[(*n_messages)++] = (struct cr_message){"system", copy};
    cr_note("a line is a turn; Ctrl-C stops an answer, Ctrl-D ends");
    while (!st && *n_messages + 2 <= MAX_TURNS && !cr_out_failed()) {
        char *line;
        int32_t *ids = NULL;
        size_t n;
        st = read_line(&input, &line, &r->err);
        if (!line && !cr_msg_quiet())
            fputs("\n", stderr); /* the prompt's line is still open */
        if (st || !line)
            break;
        messages[(*n_messages)++] = (struct cr_message){"user", line};
        st = cr_chat_tokenize(r->setup.model, messages, *n_messages, true, &ids, &n, &r->err);
        if (!st)
            st = answer(r, ids, n, messages, *n_messages);
        cr_free(ids);
        if (st)
            break;
        print_text(r);
        cr_interrupt_clear();
        char *text = cr_strndup(r->ans.text.data ? r->ans.text.data : "", r->ans.text.len);
        if (!text) {
            st = cr_error_set(&r->err, CR_NO_MEMORY, "out of memory");
            break;
        }
        messages[(*n_messages)++] = (struct cr_message){"assistant", text};
    }
    cr_buf_deinit(&input);
    return st;
}

static int run_conversation(struct run *r)
{
    struct cr_message *messages = cr_alloc0(MAX_TURNS, sizeof *messages);
    size_t n = 0;
    enum cr_status st =
        messages ? converse(r, messages, &n) : cr_error_set(&r->err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++)
        cr_free((void *)messages[i].content);
    cr_free(messages);
    if (st)
        return cr_fail(&r->err);
    if (r->ans.stats.n_prefill)
        summary(r);
    return 0;
}

static void choose_form(struct run *r)
{
    static const char *const line_end[] = {"\n"};
    r->form = cr_form_of(r->a, &r->setup);
    r->sampling = cr_sampling_of(r->a, r->form);
    r->stop = cr_arg_texts(r->a, CR_OPT_STOP, &r->n_stop);
    if (r->form == CR_FORM_TASK && !r->n_stop) { /* a trained answer is one line */
        r->stop = line_end;
        r->n_stop = 1;
    }
}

int cr_cli_run(const struct cr_args *a)
{
    struct run r = {.a = a};
    bool raw = cr_arg_flag(a, CR_OPT_RAW), json = cr_arg_flag(a, CR_OPT_JSON);
    if (raw && cr_arg_flag(a, CR_OPT_CHAT))
        return cr_misuse("run", "--raw and --chat exclude each other");
    if (raw && (cr_arg_text(a, CR_OPT_SYSTEM) || cr_arg_text(a, CR_OPT_TEMPLATE)))
        return cr_misuse("run", "--system and --template need a chat, not --raw");
    bool talk = !cr_arg_text(a, CR_OPT_PROMPT) && !raw && !json && isatty(STDIN_FILENO) == 1;
    int code;
    r.stream = !json && !cr_cli_answer_waits(a);
    enum cr_status st = cr_answer_init(&r.ans, (size_t)cr_arg_int(a, CR_OPT_MAX_TOKENS), &r.err);
    if (!st)
        st = cr_setup_open(&r.setup, a, CR_SETUP_DELTA, &r.err);
    if (!st)
        st = cr_cli_router_open(&r.router, a, &r.setup, &r.err);
    if (st) {
        code = cr_fail(&r.err);
    } else {
        choose_form(&r);
        cr_interrupt_catch();
        code = talk && r.form == CR_FORM_CHAT ? run_conversation(&r) : run_once(&r);
    }
    cr_cli_router_close(r.router);
    cr_session_free(r.draft);
    cr_model_close(r.draft_model);
    cr_session_free(r.session);
    cr_setup_close(&r.setup);
    cr_answer_deinit(&r.ans);
    return code;
}
