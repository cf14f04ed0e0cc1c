/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OpenAI's /v1/responses, stateless: the whole conversation comes with each request, nothing is
 * stored. Streams are the named events of that API with their sequence numbers.
 */
#include "base/mem.h"
#include "serve/read.h"
#include "serve/reply.h"

#include <stdio.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- reading ------------------------------------------------------------------------------ */

static bool read_call(struct cr_reader *in, json_t *item)
{
    const char *name = json_string_value(json_object_get(item, "name"));
    const char *arguments = json_string_value(json_object_get(item, "arguments"));
    struct cr_buf b;
    if (!name || !arguments)
        return cr_read_bad(in, "input", "a function_call needs name and arguments");
    cr_buf_init(&b, (size_t)1 << 26);
    if (cr_tool_call_text(&b, name, arguments))
        return cr_read_add_message(in, "assistant", cr_buf_detach(&b, NULL));
    cr_buf_deinit(&b);
    return cr_read_no_memory(in);
}

static bool read_result(struct cr_reader *in, json_t *item)
{
    static const char *const types[] = {"input_text", "output_text", NULL};
    char *s = cr_read_content(in, "input", json_object_get(item, "output"), types);
    struct cr_buf b;
    if (!s)
        return false;
    cr_buf_init(&b, (size_t)1 << 26);
    bool ok = cr_tool_result_text(&b, s);
    cr_free(s);
    if (ok)
        return cr_read_add_message(in, "tool", cr_buf_detach(&b, NULL));
    cr_buf_deinit(&b);
    return cr_read_no_memory(in);
}

static bool read_item(struct cr_reader *in, json_t *item, size_t i)
{
    static const char *const types[] = {"input_text", "output_text", "text", NULL};
    static const char *const roles[] = {"user", "assistant", "system", "developer"};
    const char *type = json_string_value(json_object_get(item, "type"));
    const char *role = json_string_value(json_object_get(item, "role"));
    if (type && strcmp(type, "function_call") == 0)
        return read_call(in, item);
    if (type && strcmp(type, "function_call_output") == 0)
        return read_result(in, item);
    if (type && strcmp(type, "reasoning") == 0)
        return true;
    size_t k = 0;
    while (role && k < 4 && strcmp(role, roles[k]) != 0)
        k++;
    if ((type && strcmp(type, "message") != 0) || !role || k == 4)
        return cr_read_bad(in, "input", "item %zu: type %s with role %s is not supported", i,
                           type ? type : "none", role ? role : "none");
    char *s = cr_read_content(in, "input", json_object_get(item, "content"), types);
    return s && cr_read_add_message(in, k == 3 ? "system" : roles[k], s);
}

static bool read_input(struct cr_reader *in)
{
    json_t *v = cr_read_field(in, "input"), *item;
    char *instructions = NULL;
    size_t i;
    if (!cr_read_string(in, "instructions", 0, &instructions) ||
        (instructions && !cr_read_add_message(in, "system", instructions)))
        return false;
    if (json_is_string(v)) {
        char *s = cr_read_copy(in, "input", v);
        return s && cr_read_add_message(in, "user", s);
    }
    if (!json_is_array(v) || json_array_size(v) == 0)
        return cr_read_bad(in, "input", "want a string or an array of items");
    json_array_foreach(v, i, item)
    {
        if (!read_item(in, item, i))
            return false;
    }
    return true;
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
        if (!type || strcmp(type, "function") != 0)
            return cr_read_bad(in, "tools", "tool %zu: only the type function is supported", i);
        if (!cr_read_add_tool(in, "tools", json_object_get(tool, "name"),
                              json_object_get(tool, "description"),
                              json_object_get(tool, "parameters")))
            return false;
    }
    r->parallel_tools = true;
    r->tool_choice = r->tools ? CR_TOOLS_AUTO : CR_TOOLS_NONE;
    const char *s = json_string_value(choice),
               *name = json_string_value(json_object_get(choice, "name"));
    if (s && strcmp(s, "none") == 0)
        r->tool_choice = CR_TOOLS_NONE;
    else if (s && strcmp(s, "required") == 0)
        r->tool_choice = CR_TOOLS_REQUIRED;
    else if (name && (r->tool_name = cr_strdup(name)))
        r->tool_choice = CR_TOOLS_NAMED;
    else if (choice && (!s || strcmp(s, "auto") != 0))
        return cr_read_bad(in, "tool_choice",
                           "want \"none\", \"auto\", \"required\" or a function");
    if (r->tool_choice >= CR_TOOLS_REQUIRED && !r->tools)
        return cr_read_bad(in, "tool_choice", "needs tools");
    return cr_read_bool(in, "parallel_tool_calls", &r->parallel_tools);
}

static bool read_format(struct cr_reader *in)
{
    json_t *f = json_object_get(cr_read_field(in, "text"), "format");
    const char *type = json_string_value(json_object_get(f, "type"));
    if (!f || json_is_null(f) || (type && strcmp(type, "text") == 0))
        return true;
    if (type && strcmp(type, "json_object") == 0) {
        in->r->format = CR_FORMAT_JSON;
        return true;
    }
    if (type && strcmp(type, "json_schema") == 0)
        return cr_read_schema(in, "text.format", f);
    return cr_read_bad(in, "text.format", "want the type text, json_object or json_schema");
}

bool cr_read_responses(struct cr_reader *in)
{
    static const char *const refused[] = {"previous_response_id", "conversation", "background",
                                          "prompt", "max_tool_calls"};
    static const char *const ignored[] = {"store",        "metadata",         "user",
                                          "include",      "service_tier",     "reasoning",
                                          "top_logprobs", "prompt_cache_key", "safety_identifier"};
    static const char *const repeated[] = {"instructions", "tools",      "tool_choice",
                                           "text",         "truncation", "metadata"};
    struct cr_api_request *r = in->r;
    int64_t most = -1;
    if (!cr_read_refuse(in, refused, COUNT(refused)) ||
        !cr_read_ignore(in, ignored, COUNT(ignored)) ||
        !cr_read_real(in, "temperature", 0, 2, &r->sampling.temperature) ||
        !cr_read_real(in, "top_p", 0, 1, &r->sampling.top_p) ||
        !cr_read_int(in, "max_output_tokens", 1, 1 << 20, &most) ||
        !cr_read_bool(in, "stream", &r->stream) || !read_input(in) || !read_tools(in) ||
        !read_format(in))
        return false;
    json_t *truncation = cr_read_field(in, "truncation");
    if (truncation &&
        (!json_is_string(truncation) || strcmp(json_string_value(truncation), "disabled") != 0))
        return cr_read_bad(in, "truncation", "only \"disabled\" is supported: no input is cut");
    r->max_tokens = (int)most;
    r->include_usage = true;
    r->echoed = json_object();
    for (size_t i = 0; i < COUNT(repeated); i++)
        if (cr_read_field(in, repeated[i]))
            json_object_set(r->echoed, repeated[i], cr_read_field(in, repeated[i]));
    return true;
}

/* ---- writing ------------------------------------------------------------------------------ */

static json_t *repeated(const struct cr_job *j, const char *name, json_t *otherwise)
{
    json_t *v = json_object_get(j->req.echoed, name);
    if (!v)
        return otherwise;
    json_decref(otherwise);
    return json_incref(v);
}

static void item_id(const struct cr_job *j, size_t i, char out[64])
{
    snprintf(out, 64, "%s_%.32s_%zu", i ? "fc" : "msg", j->id + strcspn(j->id, "_") + 1, i);
}

static json_t *text_part(const struct cr_choice *c)
{
    return json_pack("{s:s, s:o, s:[], s:[]}", "type", "output_text", "text",
                     cr_api_text(c->text.data, c->text.len), "annotations", "logprobs");
}

/* Item 0 is the message, item i the i-th call. */
static json_t *item_json(const struct cr_choice *c, size_t i, bool done)
{
    char id[64];
    const struct cr_job *j = c->job;
    item_id(j, i, id);
    const char *status = !done ? "in_progress" : "completed";
    if (i == 0)
        return json_pack("{s:s, s:s, s:s, s:s, s:o}", "type", "message", "id", id, "status", status,
                         "role", "assistant", "content",
                         done ? json_pack("[o]", text_part(c)) : json_array());
    const struct cr_call *k = &c->calls[i - 1];
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:o}", "type", "function_call", "id", id, "call_id",
                     k->id, "name", k->name, "status", status, "arguments",
                     done ? cr_api_text(k->arguments.data, k->arguments.len) : json_string(""));
}

static json_t *response_json(const struct cr_job *j, bool done)
{
    const struct cr_choice *c = &j->choices[0];
    bool cut = done && c->finish && strcmp(c->finish, "length") == 0;
    json_t *output = json_array();
    for (size_t i = 0; done && i <= c->n_calls; i++)
        if (i || c->text.len || c->n_calls == 0)
            json_array_append_new(output, item_json(c, i, true));
    json_t *usage =
        done ? json_pack("{s:I, s:{s:I}, s:I, s:{s:i}, s:I}", "input_tokens",
                         (json_int_t)j->n_prompt, "input_tokens_details", "cached_tokens",
                         (json_int_t)j->n_cached, "output_tokens", (json_int_t)j->n_answer,
                         "output_tokens_details", "reasoning_tokens", 0, "total_tokens",
                         (json_int_t)(j->n_prompt + j->n_answer))
             : json_null();
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:s, s:n, s:o, s:o, s:o, s:s, s:o, s:b, s:n, s:{s:n, s:n}, s:b}",
                  "id", j->id, "object", "response", "created_at", (json_int_t)j->created, "status",
                  !done ? "in_progress"
                  : cut ? "incomplete"
                        : "completed",
                  "error", "incomplete_details",
                  cut ? json_pack("{s:s}", "reason", "max_output_tokens") : json_null(),
                  "instructions", repeated(j, "instructions", json_null()), "max_output_tokens",
                  j->req.max_tokens > 0 ? json_integer(j->req.max_tokens) : json_null(), "model",
                  j->req.model, "output", output, "parallel_tool_calls", j->req.parallel_tools,
                  "previous_response_id", "reasoning", "effort", "summary", "store", 0);
    bool ok = o != NULL;
    cr_api_put(o, "temperature", json_real((double)j->req.sampling.temperature), &ok);
    cr_api_put(o, "top_p", json_real((double)j->req.sampling.top_p), &ok);
    cr_api_put(o, "text", repeated(j, "text", json_pack("{s:{s:s}}", "format", "type", "text")),
               &ok);
    cr_api_put(o, "tool_choice", repeated(j, "tool_choice", json_string("auto")), &ok);
    cr_api_put(o, "tools", repeated(j, "tools", json_array()), &ok);
    cr_api_put(o, "truncation", json_string("disabled"), &ok);
    cr_api_put(o, "metadata", repeated(j, "metadata", json_object()), &ok);
    cr_api_put(o, "user", json_null(), &ok);
    cr_api_put(o, "usage", usage, &ok);
    if (done)
        cr_api_put(o, "crayon", cr_reply_crayon(j), &ok);
    return o;
}

static json_t *whole(struct cr_job *j)
{
    return response_json(j, true);
}

static bool event(struct cr_job *j, const char *type, json_t *o)
{
    bool ok = o != NULL;
    cr_api_put(o, "sequence_number", json_integer(j->sequence++), &ok);
    return cr_reply_event(j, type, o) && ok;
}

static void start(struct cr_job *j)
{
    event(j, "response.created", json_pack("{s:o}", "response", response_json(j, false)));
    event(j, "response.in_progress", json_pack("{s:o}", "response", response_json(j, false)));
    j->block = -1;
}

static bool close_item(struct cr_choice *c)
{
    struct cr_job *j = c->job;
    if (!j->block_open)
        return true;
    char id[64];
    size_t i = j->block_is_call ? c->n_split_open : 0;
    bool ok;
    j->block_open = false;
    item_id(j, i, id);
    if (i) {
        const struct cr_call *k = &c->calls[i - 1];
        ok = event(j, "response.function_call_arguments.done",
                   json_pack("{s:s, s:i, s:s, s:o}", "item_id", id, "output_index", j->block,
                             "name", k->name, "arguments",
                             cr_api_text(k->arguments.data, k->arguments.len)));
    } else {
        ok = event(j, "response.output_text.done",
                   json_pack("{s:s, s:i, s:i, s:o, s:[]}", "item_id", id, "output_index", j->block,
                             "content_index", 0, "text", cr_api_text(c->text.data, c->text.len),
                             "logprobs")) &&
             event(j, "response.content_part.done",
                   json_pack("{s:s, s:i, s:i, s:o}", "item_id", id, "output_index", j->block,
                             "content_index", 0, "part", text_part(c)));
    }
    return ok &&
           event(j, "response.output_item.done",
                 json_pack("{s:i, s:o}", "output_index", j->block, "item", item_json(c, i, true)));
}

static bool open_item(struct cr_choice *c, size_t i)
{
    struct cr_job *j = c->job;
    char id[64];
    if (!close_item(c))
        return false;
    j->block++;
    j->block_open = true;
    j->block_is_call = i > 0;
    c->n_split_open = i;
    item_id(j, i, id);
    return event(
               j, "response.output_item.added",
               json_pack("{s:i, s:o}", "output_index", j->block, "item", item_json(c, i, false))) &&
           (i || event(j, "response.content_part.added",
                       json_pack("{s:s, s:i, s:i, s:{s:s, s:s, s:[]}}", "item_id", id,
                                 "output_index", j->block, "content_index", 0, "part", "type",
                                 "output_text", "text", "", "annotations")));
}

static bool piece(struct cr_choice *c, const char *text, size_t n)
{
    struct cr_job *j = c->job;
    char id[64];
    item_id(j, 0, id);
    if ((!j->block_open || j->block_is_call) && !open_item(c, 0))
        return false;
    return event(j, "response.output_text.delta",
                 json_pack("{s:s, s:i, s:i, s:o, s:[]}", "item_id", id, "output_index", j->block,
                           "content_index", 0, "delta", cr_api_text(text, n), "logprobs"));
}

static bool call(struct cr_choice *c, size_t i, const char *arguments, size_t n)
{
    struct cr_job *j = c->job;
    char id[64];
    item_id(j, i + 1, id);
    if (!arguments)
        return open_item(c, i + 1);
    return event(j, "response.function_call_arguments.delta",
                 json_pack("{s:s, s:i, s:o}", "item_id", id, "output_index", j->block, "delta",
                           cr_api_text(arguments, n)));
}

static bool finish(struct cr_choice *c)
{
    if (!c->job->block_open && c->n_calls == 0 && !open_item(c, 0))
        return false;
    return close_item(c);
}

static void end(struct cr_job *j)
{
    bool cut = strcmp(j->choices[0].finish, "length") == 0;
    event(j, cut ? "response.incomplete" : "response.completed",
          json_pack("{s:o}", "response", response_json(j, true)));
}

const struct cr_writer cr_writer_responses = {
    "text/event-stream", start, piece, call, finish, end, whole};
