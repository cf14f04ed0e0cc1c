/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tools in text. The system message lists them; a call is
 *     <tool_call>
 *     {"name": "NAME", "arguments": {...}}
 *     </tool_call>
 * in the assistant's text, and a result is <tool_response>...</tool_response> in the user's: the
 * form that Hermes, Qwen and SmolLM models were trained on. The grammar lets a call have this form
 * only, so taking it out of the text again needs no parser of JSON.
 */
#include "base/mem.h"
#include "serve/choice.h"
#include "serve/job.h"
#include "serve/read.h"
#include "serve/reply.h"

#include <stdio.h>
#include <string.h>

/* ---- into the prompt ------------------------------------------------------------------------ */

bool cr_read_add_tool(struct cr_reader *in, const char *param, json_t *name, json_t *description,
                      json_t *parameters)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    const char *s = json_string_value(name);
    size_t n = s ? strlen(s) : 0, i;
    json_t *other;
    if (n == 0 || n > 64 || strspn(s, letters) != n)
        return cr_read_bad(in, param,
                           "a tool's name: want 1 to 64 letters, digits, \"_\", \"-\" or \".\"");
    if (parameters && !json_is_null(parameters) && !json_is_object(parameters))
        return cr_read_bad(in, param, "tool %s: parameters: want a JSON schema", s);
    if (!in->r->tools)
        in->r->tools = json_array();
    json_array_foreach(in->r->tools, i, other)
    {
        if (strcmp(json_string_value(json_object_get(other, "name")), s) == 0)
            return cr_read_bad(in, param, "two tools are named %s", s);
    }
    bool whole = json_is_object(parameters) && json_object_size(parameters);
    json_t *tool = json_pack("{s:O, s:O?, s:o}", "name", name, "description",
                             json_is_string(description) ? description : NULL, "parameters",
                             whole ? json_incref(parameters)
                                   : json_pack("{s:s, s:{}}", "type", "object", "properties"));
    return json_array_append_new(in->r->tools, tool) == 0 || cr_read_no_memory(in);
}

bool cr_tool_call_text(struct cr_buf *b, const char *name, const char *arguments)
{
    return cr_buf_puts(b, "<tool_call>\n{\"name\": \"") && cr_buf_puts(b, name) &&
           cr_buf_puts(b, "\", \"arguments\": ") && cr_buf_puts(b, *arguments ? arguments : "{}") &&
           cr_buf_puts(b, "}\n</tool_call>");
}

bool cr_tool_result_text(struct cr_buf *b, const char *result)
{
    return cr_buf_puts(b, "<tool_response>\n") && cr_buf_puts(b, result) &&
           cr_buf_puts(b, "\n</tool_response>");
}

static bool list_tools(struct cr_buf *b, json_t *tools)
{
    size_t i;
    json_t *tool;
    bool ok = cr_buf_puts(
        b, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
           "You are provided with function signatures within <tools></tools> XML tags:\n<tools>");
    json_array_foreach(tools, i, tool)
    {
        char *text = cr_api_string(tool, NULL);
        ok = ok && text && cr_buf_puts(b, "\n{\"type\": \"function\", \"function\": ") &&
             cr_buf_puts(b, text) && cr_buf_puts(b, "}");
        cr_free(text);
    }
    return ok && cr_buf_puts(
                     b, "\n</tools>\n\nFor each function call, return a json object with function "
                        "name and arguments within <tool_call></tool_call> XML tags:\n"
                        "<tool_call>\n{\"name\": <function-name>, \"arguments\": "
                        "<args-json-object>}\n</tool_call>");
}

/* Results of tools that follow each other become one message of the user. */
static bool join_results(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    size_t n = 0;
    for (size_t i = 0; i < r->n_messages; i++) {
        struct cr_message *m = &r->messages[i], *last = n ? &r->messages[n - 1] : NULL;
        bool tool = strcmp(m->role, "tool") == 0;
        bool joins = tool && last && strcmp(last->role, "tool") == 0;
        if (joins) {
            char *both = cr_asprintf("%s\n%s", last->content, m->content);
            if (!both)
                return cr_read_no_memory(in);
            cr_free((void *)(uintptr_t)last->content);
            cr_free((void *)(uintptr_t)m->content);
            last->content = both;
            m->content = NULL;
        } else {
            struct cr_message moved = *m;
            m->content = NULL;
            r->messages[n++] = moved;
        }
    }
    for (size_t i = 0; i < n; i++)
        if (strcmp(r->messages[i].role, "tool") == 0)
            r->messages[i].role = "user";
    r->n_messages = n;
    return true;
}

bool cr_tools_instruct(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    if (!join_results(in))
        return false;
    if (r->tool_choice == CR_TOOLS_NONE || !r->tools)
        return true;
    if (r->format != CR_FORMAT_TEXT)
        return cr_read_bad(in, "response_format", "cannot be had together with tools");
    struct cr_buf b;
    cr_buf_init(&b, (size_t)1 << 26);
    bool has_system = r->n_messages && strcmp(r->messages[0].role, "system") == 0;
    bool ok = !has_system || (cr_buf_puts(&b, r->messages[0].content) && cr_buf_puts(&b, "\n\n"));
    ok = ok && list_tools(&b, r->tools);
    char *text = ok ? cr_buf_detach(&b, NULL) : NULL;
    cr_buf_deinit(&b);
    if (!text)
        return cr_read_no_memory(in);
    if (has_system) {
        cr_free((void *)(uintptr_t)r->messages[0].content);
        r->messages[0].content = text;
        return true;
    }
    if (!cr_read_add_message(in, "system", text))
        return false;
    struct cr_message last = r->messages[r->n_messages - 1];
    memmove(r->messages + 1, r->messages, (r->n_messages - 1) * sizeof *r->messages);
    r->messages[0] = last;
    return true;
}

/* ---- out of the text ------------------------------------------------------------------------ */

enum { TEXT, HEAD, NAME, MIDDLE, ARGUMENTS, TAIL };

static const char open_mark[] = "<tool_call>", head[] = "\n{\"name\": \"",
                  middle[] = ", \"arguments\": ", tail[] = "}\n</tool_call>";

static bool give_text(struct cr_choice *c, const char *text, size_t n)
{
    /* What stands between and behind calls is white space. */
    while (c->n_calls && n && (*text == '\n' || *text == ' '))
        text++, n--;
    return n == 0 || (cr_buf_add(&c->text, text, n) &&
                      (!c->job->req.stream || cr_writer_of(c->job->req.kind)->piece(c, text, n)));
}

static bool give_call(struct cr_choice *c, const char *arguments, size_t n)
{
    return !c->job->req.stream ||
           cr_writer_of(c->job->req.kind)->call(c, c->n_calls - 1, arguments, n);
}

/* Text outside of calls: hands out all but what may be the beginning of a mark. */
static bool text_byte(struct cr_choice *c, char b)
{
    if (!cr_buf_add(&c->held, &b, 1))
        return false;
    size_t n = c->held.len, keep = sizeof open_mark - 1 < n ? sizeof open_mark - 1 : n;
    while (keep && memcmp(c->held.data + n - keep, open_mark, keep) != 0)
        keep--;
    if (keep == sizeof open_mark - 1) {
        bool valid = c->n_split < CR_MAX_CALLS && (c->valid >> c->n_split & 1);
        c->n_split++;
        if (valid && c->n_calls < CR_MAX_CALLS) {
            c->held.len = 0;
            struct cr_call *call = &c->calls[c->n_calls++];
            snprintf(call->id, sizeof call->id, "call_%.12s%02zu%02zu",
                     c->job->id + strcspn(c->job->id, "-_") + 1, c->index % 100, c->n_calls);
            cr_buf_init(&call->arguments, CR_JOB_MAX_OUT);
            cr_buf_puts(&call->arguments, "");
            c->phase = HEAD;
            c->at = 0;
            return n == keep || give_text(c, c->held.data, n - keep);
        }
        keep = 0;
    }
    if (n == keep)
        return true;
    bool ok = give_text(c, c->held.data, n - keep);
    memmove(c->held.data, c->held.data + n - keep, keep);
    c->held.len = keep;
    return ok;
}

/* true when the literal is through. */
static bool literal_byte(struct cr_choice *c, const char *literal)
{
    return literal[++c->at] == '\0';
}

/* One byte of the arguments, a JSON object; true when it was the last. */
static bool argument_byte(struct cr_choice *c, char b)
{
    if (c->in_string) {
        c->in_string = c->escaped || b != '"';
        c->escaped = !c->escaped && b == '\\';
        return false;
    }
    c->in_string = b == '"';
    c->depth += b == '{' || b == '[';
    c->depth -= b == '}' || b == ']';
    return c->depth == 0;
}

bool cr_split_text(struct cr_choice *c, const char *text, size_t n)
{
    bool ok = true;
    size_t from = 0; /* of the arguments that have not been handed out */
    for (size_t i = 0; i < n && ok; i++) {
        struct cr_call *call = c->n_calls ? &c->calls[c->n_calls - 1] : NULL;
        switch (c->phase) {
        case TEXT:
            ok = text_byte(c, text[i]);
            break;
        case HEAD:
            if (literal_byte(c, head))
                c->phase = NAME;
            break;
        case NAME:
            if (text[i] == '"') {
                c->phase = MIDDLE;
                c->at = 0;
                ok = give_call(c, NULL, 0);
            } else if (call->n_name + 1 < sizeof call->name) {
                call->name[call->n_name++] = text[i];
            }
            break;
        case MIDDLE:
            if (literal_byte(c, middle)) {
                c->phase = ARGUMENTS;
                c->depth = 0;
                from = i + 1;
            }
            break;
        case ARGUMENTS:
            if (argument_byte(c, text[i])) {
                ok = cr_buf_add(&call->arguments, text + from, i + 1 - from) &&
                     give_call(c, text + from, i + 1 - from);
                call->complete = true;
                c->phase = TAIL;
                c->at = 0;
            }
            break;
        default:
            if (literal_byte(c, tail))
                c->phase = TEXT;
        }
    }
    if (ok && c->phase == ARGUMENTS && from < n)
        ok = cr_buf_add(&c->calls[c->n_calls - 1].arguments, text + from, n - from) &&
             give_call(c, text + from, n - from);
    return ok;
}

void cr_split_end(struct cr_choice *c)
{
    if (c->phase == TEXT && c->held.len && !give_text(c, c->held.data, c->held.len))
        c->broken = true;
    c->held.len = 0;
}
