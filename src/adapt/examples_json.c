/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One JSONL line -> one example: task lines, chat messages, prompt and completion, plain text. See
 * docs/formats.md. jansson checks UTF-8, depth, duplicate keys and numbers; here the types and the
 * meaning are checked.
 */
#include "adapt/examples_reader.h"

#ifdef CRAYON_JSON
#include <jansson.h>
#include <string.h>

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {"object", "array", "string", "integer",
                                        "real",   "true",  "false",  "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

/* A string field to the arena; NULL when absent or null. */
static enum cr_status take_string(struct cr_examples_reader *r, const json_t *o, const char *key,
                                  char **out)
{
    const json_t *v = json_object_get(o, key);
    *out = NULL;
    if (!v || json_is_null(v))
        return CR_OK;
    if (!json_is_string(v))
        return cr_examples_bad(r, CR_FORMAT, "\"%s\" must be a string, found %s", key,
                               type_name(v));
    *out = cr_arena_strndup(r->out->arena, json_string_value(v), json_string_length(v));
    return *out ? CR_OK : cr_examples_no_memory(r);
}

/* An array of non-empty strings; nothing when absent or null. */
static enum cr_status take_strings(struct cr_examples_reader *r, const json_t *o, const char *key,
                                   char ***out, int *n_out)
{
    const json_t *v = json_object_get(o, key);
    *out = NULL;
    *n_out = 0;
    if (!v || json_is_null(v))
        return CR_OK;
    if (!json_is_array(v))
        return cr_examples_bad(r, CR_FORMAT, "\"%s\" must be an array of strings, found %s", key,
                               type_name(v));
    size_t n = json_array_size(v);
    if (n > CR_EXAMPLES_MAX_CHOICES)
        return cr_examples_bad(r, CR_LIMIT, "\"%s\" has %zu entries, at most %d are read", key, n,
                               CR_EXAMPLES_MAX_CHOICES);
    char **list = cr_arena_alloc(r->out->arena, n, sizeof *list);
    if (!list)
        return cr_examples_no_memory(r);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_array_get(v, i);
        if (!json_is_string(s) || !json_string_length(s))
            return cr_examples_bad(r, CR_FORMAT, "\"%s\"[%zu] must be a string with text, found %s",
                                   key, i, json_is_string(s) ? "\"\"" : type_name(s));
        list[i] = cr_arena_strndup(r->out->arena, json_string_value(s), json_string_length(s));
        if (!list[i])
            return cr_examples_no_memory(r);
    }
    *out = list;
    *n_out = (int)n;
    return CR_OK;
}

static enum cr_status take_answer(struct cr_examples_reader *r, const json_t *o,
                                  struct cr_example *e)
{
    const json_t *v = json_object_get(o, "answer");
    if (!v || json_is_null(v))
        return CR_OK;
    if (json_is_string(v)) {
        enum cr_status st = take_string(r, o, "answer", &e->answer);
        if (!st && !*e->answer)
            st = cr_examples_bad(r, CR_FORMAT, "\"answer\" is empty; leave it out if not known");
        return st ? st : cr_examples_match_answer(r, e);
    }
    if (!json_is_integer(v))
        return cr_examples_bad(r, CR_FORMAT,
                               "\"answer\" must be an index of \"choices\" or a string, found %s",
                               type_name(v));
    json_int_t i = json_integer_value(v);
    if (!e->n_choices)
        return cr_examples_bad(r, CR_FORMAT,
                               "\"answer\" is the number %lld but there are no \"choices\"; "
                               "write a short answer as a string",
                               (long long)i);
    if (i < 0 || i >= e->n_choices)
        return cr_examples_bad(r, CR_FORMAT, "\"answer\" is %lld, want 0 to %d", (long long)i,
                               e->n_choices - 1);
    e->answer_index = (int)i;
    return CR_OK;
}

static enum cr_status task_line(struct cr_examples_reader *r, const json_t *o, struct cr_example *e)
{
    enum cr_status st = take_string(r, o, "question", &e->question);
    if (!st)
        st = take_string(r, o, "context", &e->context);
    if (!st)
        st = take_strings(r, o, "choices", &e->choices, &e->n_choices);
    if (!st && e->choices && e->n_choices < 2)
        st = cr_examples_bad(r, CR_FORMAT, "\"choices\" has %d entries, want at least 2",
                             e->n_choices);
    if (!st)
        st = take_answer(r, o, e);
    return st ? st : take_strings(r, o, "aliases", &e->aliases, &e->n_aliases);
}

/* Role and content of a message, checked. */
static enum cr_status message(struct cr_examples_reader *r, const json_t *list, size_t i,
                              const char **role, const char **content)
{
    const json_t *m = json_array_get(list, i);
    const json_t *who = json_object_get(m, "role"), *what = json_object_get(m, "content");
    if (!json_is_object(m) || !json_is_string(who) || !json_is_string(what))
        return cr_examples_bad(r, CR_FORMAT,
                               "\"messages\"[%zu] must have strings \"role\" and \"content\", "
                               "found role %s and content %s",
                               i, type_name(who), type_name(what));
    *role = json_string_value(who);
    *content = json_string_value(what);
    if (strcmp(*role, "system") && strcmp(*role, "user") && strcmp(*role, "assistant"))
        return cr_examples_bad(r, CR_FORMAT,
                               "\"messages\"[%zu] has role \"%.40s\", want system, user or "
                               "assistant",
                               i, *role);
    return CR_OK;
}

/* The last user message is the question, an assistant message after it the answer; what came
 * before is the context, one "role: content" line each (a system message without its role). */
static enum cr_status chat_line(struct cr_examples_reader *r, const json_t *o, struct cr_example *e)
{
    const json_t *list = json_object_get(o, "messages");
    if (!json_is_array(list))
        return cr_examples_bad(r, CR_FORMAT, "\"messages\" must be an array, found %s",
                               type_name(list));
    size_t n = json_array_size(list);
    if (n < 1 || n > CR_EXAMPLES_MAX_CHOICES)
        return cr_examples_bad(r, CR_LIMIT, "\"messages\" has %zu entries, want 1 to %d", n,
                               CR_EXAMPLES_MAX_CHOICES);
    const char *role, *content;
    enum cr_status st = message(r, list, n - 1, &role, &content);
    if (st)
        return st;
    if (!strcmp(role, "assistant")) {
        n--;
        if (*content && !(e->answer = cr_arena_strndup(r->out->arena, content, strlen(content))))
            return cr_examples_no_memory(r);
    }
    if (n)
        st = message(r, list, n - 1, &role, &content);
    if (!st && (!n || strcmp(role, "user")))
        st = cr_examples_bad(r, CR_FORMAT,
                             "the last message before the answer must be from \"user\"");
    if (st)
        return st;
    if (!(e->question = cr_arena_strndup(r->out->arena, content, strlen(content))))
        return cr_examples_no_memory(r);
    struct cr_buf before;
    cr_buf_init(&before, CR_EXAMPLES_MAX_LINE);
    for (size_t i = 0; !st && i + 1 < n; i++) {
        st = message(r, list, i, &role, &content);
        if (!st)
            cr_example_add_turn(&before, role, content);
    }
    if (!st && before.failed)
        st = cr_examples_no_memory(r);
    if (!st && before.len &&
        !(e->context = cr_arena_strndup(r->out->arena, before.data, before.len)))
        st = cr_examples_no_memory(r);
    cr_buf_deinit(&before);
    return st;
}

static enum cr_status completion_line(struct cr_examples_reader *r, const json_t *o,
                                      struct cr_example *e)
{
    enum cr_status st = take_string(r, o, "prompt", &e->question);
    if (!st)
        st = take_string(r, o, "completion", &e->answer);
    if (st || !e->answer)
        return st;
    /* The old fine-tuning format asks for a leading blank; the prompt format adds its own. */
    size_t n = strlen(e->answer);
    while (n && strchr(" \t\r\n", e->answer[n - 1]))
        e->answer[--n] = '\0';
    while (*e->answer && strchr(" \t\r\n", *e->answer))
        e->answer++;
    if (!*e->answer)
        e->answer = NULL;
    return CR_OK;
}

static bool blank(const char *s)
{
    return !s[strspn(s, " \t\r\n")];
}

static enum cr_status example(struct cr_examples_reader *r, const json_t *o)
{
    static const char *const kinds[] = {"question", "messages", "prompt", "text"};
    int kind = -1;
    for (int k = 0; k < 4; k++) {
        if (!json_object_get(o, kinds[k]))
            continue;
        if (kind >= 0)
            return cr_examples_bad(r, CR_FORMAT, "has both \"%s\" and \"%s\", want one",
                                   kinds[kind], kinds[k]);
        kind = k;
    }
    struct cr_example e = {.answer_index = -1};
    enum cr_status st = take_string(r, o, "task", &e.task);
    if (!st)
        st = take_string(r, o, "group", &e.group);
    if (!st)
        st = take_string(r, o, "split", &e.split);
    if (st)
        return st;
    switch (kind) {
    case 0:
        st = task_line(r, o, &e);
        break;
    case 1:
        st = chat_line(r, o, &e);
        break;
    case 2:
        st = completion_line(r, o, &e);
        break;
    case 3:
        st = take_string(r, o, "text", &e.question);
        break;
    default:
        return cr_examples_bad(r, CR_FORMAT,
                               "want \"question\", \"messages\", \"prompt\" or \"text\"");
    }
    if (st)
        return st;
    if (!e.question || blank(e.question))
        return cr_examples_bad(r, CR_FORMAT, "the question is empty");
    if (e.context && blank(e.context))
        e.context = NULL;
    return cr_examples_add(r, e);
}

enum cr_status cr_examples_json_line(struct cr_examples_reader *r, const char *line, size_t len)
{
    json_error_t je;
    json_t *o = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    enum cr_status st;
    if (!o)
        st = cr_examples_bad(r, CR_FORMAT, "not valid JSON at byte %d: %s", je.position, je.text);
    else if (!json_is_object(o))
        st = cr_examples_bad(r, CR_FORMAT, "want a JSON object {...}, found %s", type_name(o));
    else
        st = example(r, o);
    json_decref(o);
    return st;
}

#else /* CRAYON_JSON */

enum cr_status cr_examples_json_line(struct cr_examples_reader *r, const char *line, size_t len)
{
    (void)line;
    (void)len;
    return cr_examples_bad(r, CR_UNSUPPORTED, "is JSON; built without JSON");
}

#endif
