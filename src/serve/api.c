/* SPDX-License-Identifier: Apache-2.0 */
/* Reads requests strictly and writes errors and strings. One function per group of fields. */
#include "serve/api.h"

#include "base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void cr_api_error_set(struct cr_api_error *e, int http, const char *param, const char *code,
                      const char *fmt, ...)
{
    struct cr_error printable; /* cr_error_set makes the text safe to show */
    char msg[sizeof printable.msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    cr_error_set(&printable, CR_INVALID, "%s", msg);
    *e = (struct cr_api_error){.http = http, .code = code};
    e->type = http == 401   ? "authentication_error"
              : http == 403 ? "permission_error"
              : http == 503 ? "overloaded_error"
              : http >= 500 ? "server_error"
                            : "invalid_request_error";
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    memcpy(e->msg, printable.msg, sizeof e->msg);
}

void cr_api_error_from(struct cr_api_error *e, const struct cr_error *err)
{
    if (err->status == CR_LIMIT)
        cr_api_error_set(e, 400, "messages", "context_length_exceeded", "%s", err->msg);
    else
        cr_api_error_set(e, cr_status_http(err->status), NULL, NULL, "%s", err->msg);
}

void cr_api_put(json_t *object, const char *key, json_t *v, bool *ok)
{
    if (json_object_set_new(object, key, v) != 0)
        *ok = false;
}

json_t *cr_api_error_json(const struct cr_api_error *e)
{
    bool ok = true;
    json_t *inner = json_object(), *outer = json_object();
    cr_api_put(inner, "message", cr_api_text(e->msg, strlen(e->msg)), &ok);
    cr_api_put(inner, "type", json_string(e->type), &ok);
    cr_api_put(inner, "param", e->param[0] ? json_string(e->param) : json_null(), &ok);
    cr_api_put(inner, "code", e->code ? json_string(e->code) : json_null(), &ok);
    cr_api_put(outer, "error", inner, &ok);
    if (!ok) {
        json_decref(outer);
        return NULL;
    }
    return outer;
}

json_t *cr_api_text(const char *text, size_t n)
{
    json_t *whole = json_stringn(text, n);
    if (whole)
        return whole;
    struct cr_buf b;
    cr_buf_init(&b, n * 3 + 1);
    for (size_t i = 0; i < n;) {
        size_t k = 1;
        json_t *one = NULL;
        for (; k <= 4 && i + k <= n && !(one = json_stringn(text + i, k)); k++) {
        }
        if (one) {
            cr_buf_add(&b, text + i, k);
            json_decref(one);
            i += k;
        } else {
            cr_buf_puts(&b, "\xef\xbf\xbd");
            i++;
        }
    }
    json_t *v = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.len);
    cr_buf_deinit(&b);
    return v;
}

json_t *cr_api_token_text(const char *bytes, size_t n)
{
    json_t *v = json_stringn(n ? bytes : "", n);
    if (v)
        return v;
    char text[6 + 4 * 64 + 1] = "bytes:";
    size_t len = 6;
    for (size_t i = 0; i < n && i < 64; i++)
        len += (size_t)snprintf(text + len, sizeof text - len, "\\x%02x", (uint8_t)bytes[i]);
    return json_stringn(text, len);
}

bool cr_api_dump(struct cr_buf *b, const char *before, json_t *v, const char *after)
{
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    bool ok = text && cr_buf_puts(b, before) && cr_buf_puts(b, text) && cr_buf_puts(b, after);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    if (text)
        release(text);
    return ok;
}

/* ---- reading --------------------------------------------------------------------------- */

struct reader {
    json_t *root;
    struct cr_api_error *e; /* the first fault wins */
};

static bool bad(struct reader *in, const char *param, const char *fmt, ...) CR_PRINTF(3, 4);
static bool bad(struct reader *in, const char *param, const char *fmt, ...)
{
    char msg[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    if (!in->e->http)
        cr_api_error_set(in->e, 400, param, NULL, "%s: %s", param, msg);
    return false;
}

static bool no_memory(struct reader *in)
{
    if (!in->e->http)
        cr_api_error_set(in->e, 503, NULL, NULL, "out of memory");
    return false;
}

/* Absent and null are the same: the default stays. */
static json_t *field(const struct reader *in, const char *name)
{
    json_t *v = json_object_get(in->root, name);
    return json_is_null(v) ? NULL : v;
}

static bool read_int(struct reader *in, const char *name, int64_t min, int64_t max, int64_t *out)
{
    json_t *v = field(in, name);
    if (!v)
        return true;
    if (!json_is_integer(v))
        return bad(in, name, "want an integer");
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return bad(in, name, "want %lld to %lld, got %lld", (long long)min, (long long)max,
                   (long long)i);
    *out = i;
    return true;
}

static bool read_real(struct reader *in, const char *name, double min, double max, float *out)
{
    json_t *v = field(in, name);
    if (!v)
        return true;
    if (!json_is_number(v))
        return bad(in, name, "want a number");
    double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return bad(in, name, "want %g to %g, got %g", min, max, x);
    *out = (float)x;
    return true;
}

static bool read_bool(struct reader *in, const char *name, bool *out)
{
    json_t *v = field(in, name);
    if (!v)
        return true;
    if (!json_is_boolean(v))
        return bad(in, name, "want true or false");
    *out = json_is_true(v);
    return true;
}

/* Fields that would change the answer and that we do not have. */
static bool refuse_unsupported(struct reader *in)
{
    static const char *const names[] = {"tools",         "functions",  "tool_choice",
                                        "function_call", "logit_bias", "suffix",
                                        "audio",         "prediction", "web_search_options"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *v = field(in, names[i]);
        bool harmless = !v || (json_is_array(v) && json_array_size(v) == 0) ||
                        (json_is_object(v) && json_object_size(v) == 0) ||
                        (json_is_string(v) &&
                         (strcmp(json_string_value(v), "none") == 0 || json_string_length(v) == 0));
        if (!harmless)
            return bad(in, names[i], "is not supported by this server");
    }
    float zero = 0;
    int64_t one = 1;
    if (!read_real(in, "presence_penalty", -2, 2, &zero) ||
        (zero != 0 && !bad(in, "presence_penalty", "is not supported by this server")) ||
        !read_real(in, "frequency_penalty", -2, 2, &zero) ||
        (zero != 0 && !bad(in, "frequency_penalty", "is not supported by this server")) ||
        !read_int(in, "n", 1, 128, &one) ||
        (one != 1 && !bad(in, "n", "only 1 is supported, got %lld", (long long)one)) ||
        !read_int(in, "best_of", 1, 128, &one) ||
        (one != 1 && !bad(in, "best_of", "only 1 is supported, got %lld", (long long)one)))
        return false;
    json_t *format = field(in, "response_format");
    if (format) {
        const char *type = json_string_value(json_object_get(format, "type"));
        if (!type)
            return bad(in, "response_format", "want an object with a type");
        if (strcmp(type, "text") != 0)
            return bad(in, "response_format", "only \"text\" is supported, got \"%s\"", type);
    }
    return true;
}

static bool read_stop(struct reader *in, struct cr_api_request *r)
{
    json_t *v = field(in, "stop");
    if (!v)
        return true;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > CR_API_MAX_STOP)
        return bad(in, "stop", "want at most %d strings, got %zu", CR_API_MAX_STOP, n);
    for (size_t i = 0; i < n; i++) {
        json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s) || json_string_length(s) == 0)
            return bad(in, "stop", "want a string or an array of strings that are not empty");
        if (strlen(json_string_value(s)) != json_string_length(s))
            return bad(in, "stop", "holds a NUL character");
        if (!(r->stop[i] = cr_strdup(json_string_value(s))))
            return no_memory(in);
        r->n_stop = i + 1;
    }
    return true;
}

/* Content is a string or an array of {"type": "text", "text"} parts. */
static char *read_content(struct reader *in, json_t *content)
{
    if (json_is_string(content)) {
        if (strlen(json_string_value(content)) != json_string_length(content)) {
            bad(in, "messages", "content holds a NUL character");
            return NULL;
        }
        char *s = cr_strdup(json_string_value(content));
        if (!s)
            no_memory(in);
        return s;
    }
    if (!json_is_array(content)) {
        bad(in, "messages", "content: want a string or an array of text parts");
        return NULL;
    }
    struct cr_buf b;
    cr_buf_init(&b, (size_t)1 << 26);
    size_t i;
    json_t *part;
    json_array_foreach(content, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        json_t *text = json_object_get(part, "text");
        if (!type || strcmp(type, "text") != 0 || !json_is_string(text) ||
            strlen(json_string_value(text)) != json_string_length(text)) {
            bad(in, "messages",
                "content part %zu: want {\"type\": \"text\", \"text\": str}, got "
                "type \"%s\"",
                i, type ? type : "none");
            cr_buf_deinit(&b);
            return NULL;
        }
        cr_buf_puts(&b, json_string_value(text));
    }
    char *s = cr_buf_detach(&b, NULL);
    if (!s)
        no_memory(in);
    return s;
}

static bool read_messages(struct reader *in, struct cr_api_request *r)
{
    static const char *const roles[] = {"system", "user", "assistant", "developer"};
    json_t *v = field(in, "messages");
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n == 0 || n > CR_API_MAX_MESSAGES)
        return bad(in, "messages", "want an array of 1 to %d messages", CR_API_MAX_MESSAGES);
    if (!(r->messages = cr_alloc0(n, sizeof *r->messages)))
        return no_memory(in);
    for (size_t i = 0; i < n; i++) {
        json_t *m = json_array_get(v, i);
        const char *role = json_string_value(json_object_get(m, "role"));
        size_t k = 0;
        while (role && k < 4 && strcmp(role, roles[k]) != 0)
            k++;
        if (!role || k == 4)
            return bad(in, "messages",
                       "message %zu: want a role of system, user or assistant, got "
                       "\"%s\"",
                       i, role ? role : "none");
        if (json_array_size(json_object_get(m, "tool_calls")) > 0)
            return bad(in, "messages", "message %zu: tool_calls are not supported", i);
        r->messages[i].role = roles[k == 3 ? 0 : k];
        r->n_messages = i + 1;
        if (!(r->messages[i].content = read_content(in, json_object_get(m, "content"))))
            return false;
    }
    return true;
}

static bool read_ids(struct reader *in, json_t *array, struct cr_api_prompt *p)
{
    p->n_ids = json_array_size(array);
    if (!(p->ids = cr_alloc(p->n_ids, sizeof *p->ids)))
        return no_memory(in);
    for (size_t i = 0; i < p->n_ids; i++) {
        json_t *v = json_array_get(array, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            return bad(in, "prompt", "element %zu: want token ids", i);
        p->ids[i] = (int32_t)json_integer_value(v);
    }
    return true;
}

static bool read_text(struct reader *in, json_t *v, struct cr_api_prompt *p)
{
    p->n_text = json_string_length(v);
    if (!(p->text = cr_strndup(json_string_value(v), p->n_text)))
        return no_memory(in);
    return true;
}

/* "text", ["text", ...], [ids] or [[ids], ...] */
static bool read_prompts(struct reader *in, struct cr_api_request *r)
{
    json_t *v = field(in, "prompt"), *first = json_array_get(v, 0);
    bool many = json_is_array(v) && !json_is_integer(first);
    size_t n = many ? json_array_size(v) : 1;
    if ((!json_is_string(v) && !json_is_array(v)) || (json_is_array(v) && !first))
        return bad(in, "prompt", "want a string, strings, token ids or arrays of token ids");
    if (n > CR_API_MAX_PROMPTS)
        return bad(in, "prompt", "want at most %d prompts, got %zu", CR_API_MAX_PROMPTS, n);
    if (!(r->prompts = cr_alloc0(n, sizeof *r->prompts)))
        return no_memory(in);
    r->n_prompts = n;
    for (size_t i = 0; i < n; i++) {
        json_t *one = many ? json_array_get(v, i) : v;
        if (json_is_string(one) ? !read_text(in, one, &r->prompts[i])
            : json_is_array(one) && json_array_size(one) > 0
                ? !read_ids(in, one, &r->prompts[i])
                : !bad(in, "prompt", "element %zu: want a string or token ids", i))
            return false;
    }
    return true;
}

static bool read_lengths(struct reader *in, struct cr_api_request *r)
{
    int64_t max_tokens = r->chat ? -1 : 16, completion = -1;
    if (!read_int(in, "max_tokens", 0, 1 << 20, &max_tokens) ||
        (r->chat && !read_int(in, "max_completion_tokens", 0, 1 << 20, &completion)))
        return false;
    r->max_tokens = (int)(completion >= 0 ? completion : max_tokens);
    return true;
}

static bool read_logprobs(struct reader *in, struct cr_api_request *r)
{
    int64_t top = 0;
    if (r->chat) {
        if (!read_bool(in, "logprobs", &r->logprobs) ||
            !read_int(in, "top_logprobs", 0, CR_API_MAX_TOP, &top))
            return false;
        if (top && !r->logprobs)
            return bad(in, "top_logprobs", "needs logprobs: true");
    } else {
        top = -1;
        if (!read_int(in, "logprobs", 0, CR_API_MAX_TOP, &top))
            return false;
        r->logprobs = top >= 0;
        top = top < 0 ? 0 : top;
    }
    r->top_logprobs = (int)top;
    return true;
}

static bool read_stream(struct reader *in, struct cr_api_request *r)
{
    if (!read_bool(in, "stream", &r->stream))
        return false;
    json_t *options = field(in, "stream_options");
    if (!options)
        return true;
    if (!json_is_object(options) || !r->stream)
        return bad(in, "stream_options", "want an object, and stream: true");
    json_t *usage = json_object_get(options, "include_usage");
    if (usage && !json_is_boolean(usage))
        return bad(in, "stream_options", "include_usage: want true or false");
    r->include_usage = json_is_true(usage);
    return true;
}

static bool read_all(struct reader *in, struct cr_api_request *r)
{
    json_t *model = field(in, "model");
    if (!json_is_string(model) || json_string_length(model) == 0)
        return bad(in, "model", "want the name of a model, see /v1/models");
    if (!(r->model = cr_strdup(json_string_value(model))))
        return no_memory(in);
    int64_t seed = -1, top_k = 0;
    r->sampling = cr_sampling_default();
    r->sampling.temperature = 1;
    r->sampling.top_p = 1;
    r->sampling.min_p = 0;
    r->sampling.top_k = 0;
    if (!read_real(in, "temperature", 0, 2, &r->sampling.temperature) ||
        !read_real(in, "top_p", 0, 1, &r->sampling.top_p) ||
        !read_real(in, "min_p", 0, 1, &r->sampling.min_p) ||
        !read_real(in, "repeat_penalty", 0.01, 10, &r->sampling.repeat_penalty) ||
        !read_int(in, "top_k", 0, 1 << 20, &top_k) ||
        !read_int(in, "seed", INT64_MIN, INT64_MAX, &seed) || !read_lengths(in, r) ||
        !read_logprobs(in, r) || !read_stream(in, r) || !read_stop(in, r) ||
        !refuse_unsupported(in))
        return false;
    if (r->sampling.top_p == 0) /* OpenAI: only the most likely token */
        r->sampling.temperature = 0, r->sampling.top_p = 1;
    r->sampling.top_k = (int)top_k;
    r->sampling.seed = field(in, "seed") ? (uint64_t)seed : 1;
    if (r->chat)
        return read_messages(in, r);
    if (!read_bool(in, "echo", &r->echo) || !read_prompts(in, r))
        return false;
    if (r->stream && (r->n_prompts > 1 || r->echo))
        return bad(in, "stream", "takes one prompt and no echo");
    return true;
}

bool cr_api_parse(struct cr_api_request *r, bool chat, const char *body, size_t len,
                  struct cr_api_error *e)
{
    *r = (struct cr_api_request){.chat = chat, .max_tokens = -1};
    *e = (struct cr_api_error){0};
    json_error_t where;
    json_t *root =
        json_loadb(body ? body : "", len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    struct reader in = {root, e};
    bool ok = false;
    if (!root)
        cr_api_error_set(e, 400, NULL, NULL, "body is not JSON: %s at byte %d", where.text,
                         where.position);
    else if (!json_is_object(root))
        cr_api_error_set(e, 400, NULL, NULL, "body: want a JSON object");
    else
        ok = read_all(&in, r);
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
    *r = (struct cr_api_request){0};
}
