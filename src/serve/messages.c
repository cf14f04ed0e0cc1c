/* SPDX-License-Identifier: Apache-2.0 */
/* Anthropic's /v1/messages and /v1/messages/count_tokens. */
#include "base/mem.h"
#include "serve/read.h"
#include "serve/reply.h"

#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

static const char *const text_types[] = {"text", NULL};

/* ---- reading ------------------------------------------------------------------------------ */

static bool flush_text(struct cr_reader *in, const char *role, struct cr_buf *b)
{
    bool ok = b->len == 0 || cr_read_add_message(in, role, cr_buf_detach(b, NULL));
    cr_buf_deinit(b);
    cr_buf_init(b, (size_t)1 << 26);
    return ok;
}

static bool read_result(struct cr_reader *in, json_t *part)
{
    json_t *content = json_object_get(part, "content");
    char *s = content ? cr_read_content(in, "messages", content, text_types) : cr_strdup("");
    struct cr_buf b;
    if (!s)
        return false;
    cr_buf_init(&b, (size_t)1 << 26);
    bool ok = cr_tool_result_text(&b, s);
    cr_free(s);
    return ok && cr_read_add_message(in, "tool", cr_buf_detach(&b, NULL));
}

static bool read_part(struct cr_reader *in, const char *role, json_t *part, struct cr_buf *b)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    if (type && strcmp(type, "text") == 0) {
        char *s = cr_read_copy(in, "messages", json_object_get(part, "text"));
        bool ok = s && cr_buf_puts(b, s);
        cr_free(s);
        return ok;
    }
    if (type && strcmp(type, "tool_use") == 0) {
        const char *name = json_string_value(json_object_get(part, "name"));
        json_t *v = json_object_get(part, "input");
        char *input = cr_api_string(v, NULL);
        bool ok = !name || !v ? cr_read_bad(in, "messages", "tool_use needs name and input")
                              : input && (!b->len || cr_buf_puts(b, "\n")) &&
                                    cr_tool_call_text(b, name, input);
        cr_free(input);
        return ok;
    }
    if (type && strcmp(type, "tool_result") == 0)
        return flush_text(in, role, b) && read_result(in, part);
    if (type && (strcmp(type, "thinking") == 0 || strcmp(type, "redacted_thinking") == 0))
        return true;
    return cr_read_bad(in, "messages", "content of type \"%s\" is not supported",
                       type ? type : "none");
}

static bool read_message(struct cr_reader *in, json_t *m, size_t i)
{
    const char *role = json_string_value(json_object_get(m, "role"));
    json_t *content = json_object_get(m, "content"), *part;
    struct cr_buf b;
    size_t k;
    if (!role || (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0))
        return cr_read_bad(in, "messages", "message %zu: want the role user or assistant", i);
    role = role[0] == 'u' ? "user" : "assistant";
    if (json_is_string(content)) {
        char *s = cr_read_copy(in, "messages", content);
        return s && cr_read_add_message(in, role, s);
    }
    if (!json_is_array(content))
        return cr_read_bad(in, "messages", "message %zu: want content", i);
    cr_buf_init(&b, (size_t)1 << 26);
    bool ok = true;
    json_array_foreach(content, k, part) ok = ok && read_part(in, role, part, &b);
    ok = ok && flush_text(in, role, &b);
    cr_buf_deinit(&b);
    return ok || cr_read_no_memory(in);
}

static bool read_tools(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    json_t *v = cr_read_field(in, "tools"), *tool, *choice = cr_read_field(in, "tool_choice");
    size_t i;
    if (v && (!json_is_array(v) || json_array_size(v) > CR_API_MAX_TOOLS))
        return cr_read_bad(in, "tools", "want an array of at most %d tools", CR_API_MAX_TOOLS);
    json_array_foreach(v, i, tool)
    {
        const char *type = json_string_value(json_object_get(tool, "type"));
        if (type && strcmp(type, "custom") != 0)
            return cr_read_bad(in, "tools", "tool %zu: the type %.40s is not supported", i, type);
        if (!cr_read_add_tool(in, "tools", json_object_get(tool, "name"),
                              json_object_get(tool, "description"),
                              json_object_get(tool, "input_schema")))
            return false;
    }
    const char *type = json_string_value(json_object_get(choice, "type"));
    r->parallel_tools = !json_is_true(json_object_get(choice, "disable_parallel_tool_use"));
    r->tool_choice = r->tools ? CR_TOOLS_AUTO : CR_TOOLS_NONE;
    if (type && strcmp(type, "none") == 0) {
        r->tool_choice = CR_TOOLS_NONE;
    } else if (type && strcmp(type, "any") == 0) {
        r->tool_choice = CR_TOOLS_REQUIRED;
    } else if (type && strcmp(type, "tool") == 0) {
        r->tool_choice = CR_TOOLS_NAMED;
        if (!(r->tool_name = cr_read_copy(in, "tool_choice", json_object_get(choice, "name"))))
            return false;
    } else if (choice && (!type || strcmp(type, "auto") != 0)) {
        return cr_read_bad(in, "tool_choice", "want the type auto, any, tool or none");
    }
    if (r->tool_choice >= CR_TOOLS_REQUIRED && !r->tools)
        return cr_read_bad(in, "tool_choice", "needs tools");
    return true;
}

bool cr_read_claude(struct cr_reader *in)
{
    static const char *const refused[] = {"mcp_servers", "container"};
    static const char *const ignored[] = {"metadata", "service_tier"};
    struct cr_api_request *r = in->r;
    json_t *system = cr_read_field(in, "system"), *messages = cr_read_field(in, "messages"), *m;
    const char *thinking =
        json_string_value(json_object_get(cr_read_field(in, "thinking"), "type"));
    int64_t most = -1, top_k = 0;
    size_t i;
    if (!cr_read_int(in, "max_tokens", 1, 1 << 20, &most) ||
        !cr_read_real(in, "temperature", 0, 1, &r->sampling.temperature) ||
        !cr_read_real(in, "top_p", 0, 1, &r->sampling.top_p) ||
        !cr_read_int(in, "top_k", 0, 1 << 20, &top_k) || !cr_read_bool(in, "stream", &r->stream) ||
        !cr_read_stop(in, "stop_sequences") || !cr_read_refuse(in, refused, COUNT(refused)) ||
        !cr_read_ignore(in, ignored, COUNT(ignored)))
        return false;
    if (most < 0 && r->kind == CR_API_MESSAGES)
        return cr_read_bad(in, "max_tokens", "is needed");
    if (thinking && strcmp(thinking, "disabled") != 0)
        return cr_read_bad(in, "thinking", "is not supported by this server");
    r->max_tokens = (int)most;
    r->sampling.top_k = (int)top_k;
    if (system) {
        char *s = cr_read_content(in, "system", system, text_types);
        if (!s || !cr_read_add_message(in, "system", s))
            return false;
    }
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return cr_read_bad(in, "messages", "want an array of 1 to %d messages",
                           CR_API_MAX_MESSAGES);
    json_array_foreach(messages, i, m)
    {
        if (!read_message(in, m, i))
            return false;
    }
    return read_tools(in);
}

/* ---- writing ------------------------------------------------------------------------------ */

static const char *stop_reason(const struct cr_choice *c)
{
    return strcmp(c->finish, "length") == 0       ? "max_tokens"
           : strcmp(c->finish, "tool_calls") == 0 ? "tool_use"
           : c->stop_met                          ? "stop_sequence"
                                                  : "end_turn";
}

static json_t *usage(const struct cr_job *j, bool done)
{
    return json_pack("{s:I, s:I, s:I, s:i}", "input_tokens",
                     (json_int_t)(j->n_prompt - j->n_cached), "output_tokens",
                     (json_int_t)(done ? j->n_answer : 0), "cache_read_input_tokens",
                     (json_int_t)j->n_cached, "cache_creation_input_tokens", 0);
}

static json_t *message_json(struct cr_job *j, bool done)
{
    const struct cr_choice *c = &j->choices[0];
    json_t *content = json_array();
    if (done && (c->text.len || c->n_calls == 0))
        json_array_append_new(content, json_pack("{s:s, s:o}", "type", "text", "text",
                                                 cr_api_text(c->text.data, c->text.len)));
    for (size_t i = 0; done && i < c->n_calls; i++) {
        const struct cr_call *k = &c->calls[i];
        json_t *input = json_loadb(k->arguments.data, k->arguments.len, JSON_DECODE_ANY, NULL);
        json_array_append_new(content,
                              json_pack("{s:s, s:s, s:s, s:o}", "type", "tool_use", "id", k->id,
                                        "name", k->name, "input", input ? input : json_object()));
    }
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:o, s:s?, s:s?, s:o}", "id", j->id, "type",
                          "message", "role", "assistant", "model", j->req.model, "content", content,
                          "stop_reason", done ? stop_reason(c) : NULL, "stop_sequence",
                          done && c->stop_met ? c->stop_met : NULL, "usage", usage(j, done));
    if (done && o)
        json_object_set_new(o, "crayon", cr_reply_crayon(j));
    return o;
}

static json_t *whole(struct cr_job *j)
{
    return message_json(j, true);
}

static void start(struct cr_job *j)
{
    cr_reply_event(j, "message_start", json_pack("{s:o}", "message", message_json(j, false)));
    cr_reply_event(j, "ping", json_object());
    j->block = -1;
}

static bool close_block(struct cr_job *j)
{
    bool open = j->block_open;
    j->block_open = false;
    return !open || cr_reply_event(j, "content_block_stop", json_pack("{s:i}", "index", j->block));
}

static bool open_block(struct cr_job *j, bool is_call, json_t *block)
{
    bool ok = close_block(j);
    j->block++;
    j->block_open = true;
    j->block_is_call = is_call;
    return cr_reply_event(j, "content_block_start",
                          json_pack("{s:i, s:o}", "index", j->block, "content_block", block)) &&
           ok;
}

static bool open_text(struct cr_job *j)
{
    return open_block(j, false, json_pack("{s:s, s:s}", "type", "text", "text", ""));
}

static bool piece(struct cr_choice *c, const char *text, size_t n)
{
    struct cr_job *j = c->job;
    if ((!j->block_open || j->block_is_call) && !open_text(j))
        return false;
    return cr_reply_event(j, "content_block_delta",
                          json_pack("{s:i, s:{s:s, s:o}}", "index", j->block, "delta", "type",
                                    "text_delta", "text", cr_api_text(text, n)));
}

static bool call(struct cr_choice *c, size_t i, const char *arguments, size_t n)
{
    struct cr_job *j = c->job;
    const struct cr_call *k = &c->calls[i];
    if (!arguments)
        return open_block(j, true,
                          json_pack("{s:s, s:s, s:s, s:{}}", "type", "tool_use", "id", k->id,
                                    "name", k->name, "input"));
    return cr_reply_event(j, "content_block_delta",
                          json_pack("{s:i, s:{s:s, s:o}}", "index", j->block, "delta", "type",
                                    "input_json_delta", "partial_json", cr_api_text(arguments, n)));
}

static bool finish(struct cr_choice *c)
{
    struct cr_job *j = c->job;
    if (j->block < 0 && !open_text(j))
        return false;
    return close_block(j);
}

static void end(struct cr_job *j)
{
    const struct cr_choice *c = &j->choices[0];
    cr_reply_event(j, "message_delta",
                   json_pack("{s:{s:s, s:s?}, s:o}", "delta", "stop_reason", stop_reason(c),
                             "stop_sequence", c->stop_met, "usage", usage(j, true)));
    cr_reply_event(j, "message_stop", json_object());
}

const struct cr_writer cr_writer_claude = {
    "text/event-stream", start, piece, call, finish, end, whole};
