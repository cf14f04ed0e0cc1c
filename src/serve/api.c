/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of OpenAI's chat completions, completions and embeddings; parsing by dialect. */
#include "serve/api.h"

#include "base/mem.h"
#include "serve/read.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- chat messages ------------------------------------------------------------------------ */

/* The calls of an assistant's message, as text behind its content. */
static bool add_calls(struct cr_reader *in, struct cr_buf *b, json_t *calls, size_t m)
{
    size_t i;
    json_t *call;
    if (calls && !json_is_null(calls) && !json_is_array(calls))
        return cr_read_bad(in, "messages", "message %zu: tool_calls: want an array", m);
    json_array_foreach(calls, i, call)
    {
        json_t *f = json_object_get(call, "function");
        const char *name = json_string_value(json_object_get(f, "name"));
        const char *arguments = json_string_value(json_object_get(f, "arguments"));
        if (!name || !arguments)
            return cr_read_bad(in, "messages",
                               "message %zu: tool call %zu: want {\"function\": {\"name\", "
                               "\"arguments\"}}",
                               m, i);
        if (b->len)
            cr_buf_puts(b, "\n");
        if (!cr_tool_call_text(b, name, arguments))
            return cr_read_no_memory(in);
    }
    return true;
}

static bool read_assistant(struct cr_reader *in, json_t *m, size_t i)
{
    static const char *const types[] = {"text", "refusal", NULL};
    json_t *content = json_object_get(m, "content"), *calls = json_object_get(m, "tool_calls");
    struct cr_buf b;
    cr_buf_init(&b, (size_t)1 << 26);
    cr_buf_puts(&b, "");
    bool ok = true;
    if (content && !json_is_null(content)) {
        char *s = cr_read_content(in, "messages", content, types);
        ok = s && cr_buf_puts(&b, s);
        cr_free(s);
    } else if (json_array_size(calls) == 0) {
        ok = cr_read_bad(in, "messages", "message %zu: has no content", i);
    }
    if (ok && add_calls(in, &b, calls, i))
        return cr_read_add_message(in, "assistant", cr_buf_detach(&b, NULL));
    cr_buf_deinit(&b);
    return false;
}

static bool read_tool_result(struct cr_reader *in, json_t *m, size_t i)
{
    static const char *const types[] = {"text", NULL};
    if (!json_is_string(json_object_get(m, "tool_call_id")))
        return cr_read_bad(in, "messages", "message %zu: a tool's message needs tool_call_id", i);
    char *s = cr_read_content(in, "messages", json_object_get(m, "content"), types);
    struct cr_buf b;
    cr_buf_init(&b, (size_t)1 << 26);
    bool ok = s && cr_tool_result_text(&b, s);
    cr_free(s);
    if (ok)
        return cr_read_add_message(in, "tool", cr_buf_detach(&b, NULL));
    cr_buf_deinit(&b);
    return in->e->http ? false : cr_read_no_memory(in);
}

static bool read_messages(struct cr_reader *in)
{
    static const char *const types[] = {"text", NULL};
    json_t *v = cr_read_field(in, "messages");
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n == 0 || n > CR_API_MAX_MESSAGES)
        return cr_read_bad(in, "messages", "want an array of 1 to %d messages",
                           CR_API_MAX_MESSAGES);
    for (size_t i = 0; i < n; i++) {
        json_t *m = json_array_get(v, i);
        const char *role = json_string_value(json_object_get(m, "role"));
        bool ok;
        role = role ? role : "none";
        if (strcmp(role, "assistant") == 0)
            ok = read_assistant(in, m, i);
        else if (strcmp(role, "tool") == 0)
            ok = read_tool_result(in, m, i);
        else if (strcmp(role, "user") == 0 || strcmp(role, "system") == 0 ||
                 strcmp(role, "developer") == 0) {
            char *s = cr_read_content(in, "messages", json_object_get(m, "content"), types);
            ok = s && cr_read_add_message(in, role[0] == 'u' ? "user" : "system", s);
        } else
            ok = cr_read_bad(in, "messages",
                             "message %zu: want a role of system, developer, user, assistant or "
                             "tool, got \"%s\"",
                             i, role);
        if (!ok)
            return false;
    }
    return true;
}

/* ---- tools and format --------------------------------------------------------------------- */

static bool read_tools(struct cr_reader *in)
{
    json_t *v = cr_read_field(in, "tools"), *tool;
    size_t i;
    if (v && (!json_is_array(v) || json_array_size(v) > CR_API_MAX_TOOLS))
        return cr_read_bad(in, "tools", "want an array of at most %d tools", CR_API_MAX_TOOLS);
    json_array_foreach(v, i, tool)
    {
        const char *type = json_string_value(json_object_get(tool, "type"));
        json_t *f = json_object_get(tool, "function");
        if (!type || strcmp(type, "function") != 0 || !json_is_object(f))
            return cr_read_bad(in, "tools", "tool %zu: want {\"type\": \"function\", \"function\"}",
                               i);
        if (!cr_read_add_tool(in, "tools", json_object_get(f, "name"),
                              json_object_get(f, "description"), json_object_get(f, "parameters")))
            return false;
    }
    return true;
}

static bool read_tool_choice(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    json_t *v = cr_read_field(in, "tool_choice");
    r->tool_choice = r->tools ? CR_TOOLS_AUTO : CR_TOOLS_NONE;
    r->parallel_tools = true;
    if (!cr_read_bool(in, "parallel_tool_calls", &r->parallel_tools))
        return false;
    const char *s = json_string_value(v);
    const char *name = json_string_value(json_object_get(json_object_get(v, "function"), "name"));
    if (s && strcmp(s, "none") == 0)
        r->tool_choice = CR_TOOLS_NONE;
    else if (s && strcmp(s, "required") == 0)
        r->tool_choice = CR_TOOLS_REQUIRED;
    else if (name)
        r->tool_choice = CR_TOOLS_NAMED;
    else if (v && (!s || strcmp(s, "auto") != 0))
        return cr_read_bad(in, "tool_choice",
                           "want \"none\", \"auto\", \"required\" or {\"type\": \"function\", "
                           "\"function\": {\"name\"}}");
    if (r->tool_choice >= CR_TOOLS_REQUIRED && !r->tools)
        return cr_read_bad(in, "tool_choice", "needs tools");
    return !name || (r->tool_name = cr_strdup(name)) != NULL || cr_read_no_memory(in);
}

bool cr_read_schema(struct cr_reader *in, const char *param, json_t *holder)
{
    json_t *schema = json_object_get(holder, "schema"), *name = json_object_get(holder, "name");
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return cr_read_bad(in, param, "want a schema, which is an object");
    in->r->format = CR_FORMAT_SCHEMA;
    in->r->schema = json_incref(schema);
    return !json_is_string(name) || (in->r->schema_name = cr_read_copy(in, param, name)) != NULL;
}

static bool read_format(struct cr_reader *in)
{
    json_t *v = cr_read_field(in, "response_format");
    if (!v)
        return true;
    const char *type = json_string_value(json_object_get(v, "type"));
    if (type && strcmp(type, "text") == 0)
        return true;
    if (type && strcmp(type, "json_object") == 0) {
        in->r->format = CR_FORMAT_JSON;
        return true;
    }
    if (type && strcmp(type, "json_schema") == 0)
        return cr_read_schema(in, "response_format", json_object_get(v, "json_schema"));
    return cr_read_bad(in, "response_format",
                       "want the type text, json_object or json_schema, got \"%s\"",
                       type ? type : "none");
}

/* ---- prompts ------------------------------------------------------------------------------ */

static bool read_ids(struct cr_reader *in, const char *param, json_t *array,
                     struct cr_api_prompt *p)
{
    size_t n = json_array_size(array);
    if (!(p->ids = cr_alloc(n, sizeof *p->ids)))
        return cr_read_no_memory(in);
    for (size_t i = 0; i < n; i++) {
        json_t *v = json_array_get(array, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            return cr_read_bad(in, param, "element %zu: want token ids", i);
        p->ids[i] = (int32_t)json_integer_value(v);
    }
    p->n_ids = n;
    return true;
}

/* "text", ["text", ...], [ids] or [[ids], ...] */
static bool read_prompts(struct cr_reader *in, const char *param)
{
    struct cr_api_request *r = in->r;
    json_t *v = cr_read_field(in, param), *first = json_array_get(v, 0);
    bool many = json_is_array(v) && !json_is_integer(first);
    size_t n = many ? json_array_size(v) : 1;
    if ((!json_is_string(v) && !json_is_array(v)) || (json_is_array(v) && !first))
        return cr_read_bad(in, param, "want a string, strings, token ids or arrays of token ids");
    if (n > CR_API_MAX_PROMPTS)
        return cr_read_bad(in, param, "want at most %d prompts, got %zu", CR_API_MAX_PROMPTS, n);
    if (!(r->prompts = cr_alloc0(n, sizeof *r->prompts)))
        return cr_read_no_memory(in);
    r->n_prompts = n;
    for (size_t i = 0; i < n; i++) {
        json_t *one = many ? json_array_get(v, i) : v;
        struct cr_api_prompt *p = &r->prompts[i];
        if (json_is_string(one)) {
            p->n_text = json_string_length(one);
            if (!(p->text = cr_strndup(json_string_value(one), p->n_text)))
                return cr_read_no_memory(in);
        } else if (!json_is_array(one) || json_array_size(one) == 0) {
            return cr_read_bad(in, param, "element %zu: want a string or token ids", i);
        } else if (!read_ids(in, param, one, p)) {
            return false;
        }
    }
    return true;
}

/* ---- numbers ------------------------------------------------------------------------------ */

static bool read_lengths(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    int64_t max_tokens = r->chat ? -1 : 16, completion = -1, n = 1, best_of = -1;
    if (!cr_read_int(in, "max_tokens", r->chat, 1 << 20, &max_tokens) ||
        (r->chat && !cr_read_int(in, "max_completion_tokens", 1, 1 << 20, &completion)) ||
        !cr_read_int(in, "n", 1, CR_API_MAX_N, &n) ||
        (!r->chat && !cr_read_int(in, "best_of", 1, CR_API_MAX_N, &best_of)))
        return false;
    if (best_of >= 0 && best_of != n)
        return cr_read_bad(in, "best_of", "is supported only where it equals n, got %lld and %lld",
                           (long long)best_of, (long long)n);
    r->max_tokens = (int)(completion >= 0 ? completion : max_tokens);
    r->n = (int)n;
    return true;
}

static bool read_logprobs(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    int64_t top = 0;
    if (r->chat) {
        if (!cr_read_bool(in, "logprobs", &r->logprobs) ||
            !cr_read_int(in, "top_logprobs", 0, CR_API_MAX_TOP, &top))
            return false;
        if (top && !r->logprobs)
            return cr_read_bad(in, "top_logprobs", "needs logprobs: true");
    } else {
        top = -1;
        if (!cr_read_int(in, "logprobs", 0, CR_API_MAX_TOP, &top))
            return false;
        r->logprobs = top >= 0;
        top = top < 0 ? 0 : top;
    }
    r->top_logprobs = (int)top;
    return true;
}

static bool read_bias(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    json_t *v = cr_read_field(in, "logit_bias"), *value;
    const char *key;
    if (!v)
        return true;
    size_t n = json_object_size(v);
    if (!json_is_object(v) || n > CR_API_MAX_BIAS)
        return cr_read_bad(in, "logit_bias", "want an object of at most %d token ids",
                           CR_API_MAX_BIAS);
    r->bias_ids = cr_alloc(n, sizeof *r->bias_ids);
    r->bias = cr_alloc(n, sizeof *r->bias);
    if (!r->bias_ids || !r->bias)
        return cr_read_no_memory(in);
    json_object_foreach(v, key, value)
    {
        size_t len = strlen(key);
        double x = json_is_number(value) ? json_number_value(value) : NAN;
        if (len == 0 || len > 9 || strspn(key, "0123456789") != len)
            return cr_read_bad(in, "logit_bias", "\"%.40s\" is no token id", key);
        if (!(x >= -100 && x <= 100))
            return cr_read_bad(in, "logit_bias", "token %s: want a number from -100 to 100", key);
        r->bias_ids[r->n_bias] = (int32_t)strtol(key, NULL, 10);
        r->bias[r->n_bias++] = (float)x;
    }
    return true;
}

static bool read_stream(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    if (!cr_read_bool(in, "stream", &r->stream))
        return false;
    json_t *options = cr_read_field(in, "stream_options");
    if (!options)
        return true;
    if (!json_is_object(options) || !r->stream)
        return cr_read_bad(in, "stream_options", "want an object, and stream: true");
    json_t *usage = json_object_get(options, "include_usage");
    if (usage && !json_is_boolean(usage) && !json_is_null(usage))
        return cr_read_bad(in, "stream_options", "include_usage: want true or false");
    r->include_usage = json_is_true(usage);
    return true;
}

static bool read_sampling(struct cr_reader *in)
{
    struct cr_sampling *s = &in->r->sampling;
    int64_t seed = -1, top_k = 0;
    if (!cr_read_real(in, "temperature", 0, 2, &s->temperature) ||
        !cr_read_real(in, "top_p", 0, 1, &s->top_p) ||
        !cr_read_real(in, "min_p", 0, 1, &s->min_p) ||
        !cr_read_real(in, "repeat_penalty", 0.01, 10, &s->repeat_penalty) ||
        !cr_read_real(in, "presence_penalty", -2, 2, &in->r->presence_penalty) ||
        !cr_read_real(in, "frequency_penalty", -2, 2, &in->r->frequency_penalty) ||
        !cr_read_int(in, "top_k", 0, 1 << 20, &top_k) ||
        !cr_read_int(in, "seed", INT64_MIN, INT64_MAX, &seed))
        return false;
    if (s->top_p == 0) /* OpenAI: only the most likely token */
        s->temperature = 0, s->top_p = 1;
    s->top_k = (int)top_k;
    s->seed = cr_read_field(in, "seed") ? (uint64_t)seed : 1;
    return true;
}

bool cr_read_openai(struct cr_reader *in)
{
    /* The last are other servers' names for a format: an answer without it would be no answer. */
    static const char *const refused[] = {"functions",
                                          "function_call",
                                          "suffix",
                                          "audio",
                                          "prediction",
                                          "web_search_options",
                                          "grammar",
                                          "json_schema",
                                          "guided_json",
                                          "guided_regex",
                                          "guided_grammar",
                                          "guided_choice",
                                          "guided_decoding_backend",
                                          "structured_outputs"};
    static const char *const ignored[] = {"store",
                                          "metadata",
                                          "user",
                                          "service_tier",
                                          "safety_identifier",
                                          "prompt_cache_key",
                                          "reasoning_effort",
                                          "verbosity",
                                          "modalities"};
    struct cr_api_request *r = in->r;
    if (!read_sampling(in) || !read_lengths(in) || !read_logprobs(in) || !read_stream(in) ||
        !read_bias(in) || !cr_read_stop(in, "stop") ||
        !cr_read_refuse(in, refused, COUNT(refused)) ||
        !cr_read_ignore(in, ignored, COUNT(ignored)) || !read_format(in))
        return false;
    json_t *modalities = cr_read_field(in, "modalities"), *one;
    size_t i;
    json_array_foreach(modalities, i,
                       one) if (!json_is_string(one) ||
                                strcmp(json_string_value(one), "text") !=
                                    0) return cr_read_bad(in, "modalities",
                                                          "only \"text\" is supported");
    if (r->chat)
        return read_messages(in) && read_tools(in) && read_tool_choice(in);
    static const char *const chat_only[] = {"tools", "tool_choice"};
    if (!cr_read_refuse(in, chat_only, 2) || !cr_read_bool(in, "echo", &r->echo) ||
        !read_prompts(in, "prompt"))
        return false;
    if (r->stream && (r->n_prompts > 1 || r->echo))
        return cr_read_bad(in, "stream", "takes one prompt and no echo");
    if (r->n_prompts * (size_t)r->n > CR_API_MAX_CHOICES)
        return cr_read_bad(in, "n", "prompts times n: want at most %d, got %zu", CR_API_MAX_CHOICES,
                           r->n_prompts * (size_t)r->n);
    return true;
}

/* ---- embeddings --------------------------------------------------------------------------- */

bool cr_read_embeddings(struct cr_reader *in)
{
    static const char *const ignored[] = {"user", "truncate", "options", "keep_alive"};
    struct cr_api_request *r = in->r;
    char *format = NULL, *view = NULL;
    bool ok =
        cr_read_string(in, "encoding_format", 1, &format) && cr_read_string(in, "view", 1, &view);
    if (ok && format && strcmp(format, "float") != 0 && strcmp(format, "base64") != 0)
        ok = cr_read_bad(in, "encoding_format", "want \"float\" or \"base64\", got \"%s\"", format);
    if (ok && view && strcmp(view, "qx") != 0 && strcmp(view, "middle") != 0)
        ok = cr_read_bad(in, "view", "want \"middle\" or \"qx\", got \"%s\"", view);
    if (ok && cr_read_field(in, "dimensions"))
        ok = cr_read_bad(in, "dimensions", "is not supported by this server");
    r->base64 = format && strcmp(format, "base64") == 0;
    r->view_middle = !view || strcmp(view, "middle") == 0;
    cr_free(format);
    cr_free(view);
    return ok && cr_read_ignore(in, ignored, COUNT(ignored)) && read_prompts(in, "input");
}

/* ---- dialects ----------------------------------------------------------------------------- */

static bool read_all(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    if (!cr_read_string(in, "model", 1, &r->model))
        return false;
    if (!r->model)
        return cr_read_bad(in, "model", "want the name of a model, see /v1/models");
    if (!cr_read_extension(in))
        return false;
    switch (r->kind) {
    case CR_API_RESPONSES:
        return cr_read_responses(in) && cr_tools_instruct(in);
    case CR_API_MESSAGES:
    case CR_API_COUNT_TOKENS:
        return cr_read_claude(in) && cr_tools_instruct(in);
    case CR_API_OLLAMA_CHAT:
    case CR_API_OLLAMA_GENERATE:
        return cr_read_ollama(in) && cr_tools_instruct(in);
    case CR_API_EMBEDDINGS:
    case CR_API_OLLAMA_EMBED:
        return cr_read_embeddings(in);
    default:
        return cr_read_openai(in) && cr_tools_instruct(in);
    }
}

bool cr_api_parse(struct cr_api_request *r, enum cr_api_kind kind, const char *body, size_t len,
                  struct cr_api_error *e)
{
    *r = (struct cr_api_request){.kind = kind, .max_tokens = -1, .n = 1, .max_cost = NAN};
    *e = (struct cr_api_error){0};
    r->chat = kind == CR_API_CHAT || kind == CR_API_RESPONSES || kind == CR_API_MESSAGES ||
              kind == CR_API_COUNT_TOKENS || kind == CR_API_OLLAMA_CHAT;
    r->sampling = cr_sampling_default();
    r->sampling.temperature = 1;
    r->sampling.top_p = 1;
    r->sampling.min_p = 0;
    r->sampling.top_k = 0;
    json_t *root = cr_api_load(body, len, e);
    struct cr_reader in = {root, e, r};
    bool ok = root && read_all(&in);
    json_decref(root);
    return ok;
}

void cr_api_request_deinit(struct cr_api_request *r)
{
    for (size_t i = 0; i < r->n_messages; i++)
        cr_free((void *)(uintptr_t)r->messages[i].content);
    for (size_t i = 0; i < r->n_prompts; i++) {
        cr_free(r->prompts[i].text);
        cr_free(r->prompts[i].ids);
    }
    for (size_t i = 0; i < r->n_stop; i++)
        cr_free(r->stop[i]);
    cr_free(r->messages);
    cr_free(r->prompts);
    cr_free(r->model);
    cr_free(r->bias_ids);
    cr_free(r->bias);
    cr_free(r->schema_name);
    cr_free(r->tool_name);
    cr_free(r->adapter);
    cr_free(r->route);
    cr_free(r->lora);
    json_decref(r->schema);
    json_decref(r->tools);
    json_decref(r->examples);
    json_decref(r->ignored);
    json_decref(r->echoed);
    *r = (struct cr_api_request){0};
}
