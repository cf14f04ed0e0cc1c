/* SPDX-License-Identifier: Apache-2.0 */
/* Ollama's /api/chat, /api/generate and /api/embed: streams of JSON lines, on by default. */
#include "base/mem.h"
#include "serve/read.h"
#include "serve/reply.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- reading ------------------------------------------------------------------------------ */

/* "options" holds what OpenAI has at the top. */
static bool read_options(struct cr_reader *in)
{
    static const char *const ignored[] = {"num_ctx", "num_keep", "num_thread", "num_batch",
                                          "num_gpu", "main_gpu", "use_mmap",   "numa"};
    static const char *const refused[] = {"mirostat", "tfs_z", "typical_p"};
    struct cr_api_request *r = in->r;
    struct cr_sampling *s = &r->sampling;
    json_t *v = cr_read_field(in, "options");
    int64_t top_k = 40, seed = 0, most = -1, last_n = 64;
    *s = cr_sampling_default();
    s->top_p = 0.9f;
    s->min_p = 0;
    if (v && !json_is_object(v))
        return cr_read_bad(in, "options", "want an object");
    struct cr_reader o = {v, in->e, r};
    if (!cr_read_real(&o, "temperature", 0, 100, &s->temperature) ||
        !cr_read_real(&o, "top_p", 0, 1, &s->top_p) ||
        !cr_read_real(&o, "min_p", 0, 1, &s->min_p) ||
        !cr_read_real(&o, "repeat_penalty", 0.01, 10, &s->repeat_penalty) ||
        !cr_read_real(&o, "presence_penalty", -2, 2, &r->presence_penalty) ||
        !cr_read_real(&o, "frequency_penalty", -2, 2, &r->frequency_penalty) ||
        !cr_read_int(&o, "top_k", 0, 1 << 20, &top_k) ||
        !cr_read_int(&o, "seed", INT64_MIN, INT64_MAX, &seed) ||
        !cr_read_int(&o, "num_predict", -2, 1 << 20, &most) ||
        !cr_read_int(&o, "repeat_last_n", -1, 1024, &last_n) || !cr_read_stop(&o, "stop") ||
        !cr_read_refuse(&o, refused, COUNT(refused)) ||
        !cr_read_ignore(&o, ignored, COUNT(ignored)))
        return false;
    s->top_k = (int)top_k;
    s->seed = cr_read_field(&o, "seed") ? (uint64_t)seed : 1;
    s->repeat_last_n = (int)(last_n < 0 ? 1024 : last_n);
    r->max_tokens = (int)(most < 0 ? -1 : most);
    return true;
}

static bool read_format(struct cr_reader *in)
{
    json_t *v = cr_read_field(in, "format");
    if (!v || (json_is_string(v) && json_string_length(v) == 0))
        return true;
    if (json_is_string(v) && strcmp(json_string_value(v), "json") == 0) {
        in->r->format = CR_FORMAT_JSON;
        return true;
    }
    if (!json_is_object(v))
        return cr_read_bad(in, "format", "want \"json\" or a JSON schema");
    in->r->format = CR_FORMAT_SCHEMA;
    in->r->schema = json_incref(v);
    return true;
}

static bool read_message(struct cr_reader *in, json_t *m, size_t i)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    const char *role = json_string_value(json_object_get(m, "role"));
    json_t *content = json_object_get(m, "content"), *calls = json_object_get(m, "tool_calls"), *k;
    struct cr_buf b;
    size_t r = 0, at;
    while (role && r < 4 && strcmp(role, roles[r]) != 0)
        r++;
    if (!role || r == 4)
        return cr_read_bad(in, "messages",
                           "message %zu: want a role of system, user, assistant or tool", i);
    if (json_array_size(json_object_get(m, "images")))
        return cr_read_bad(in, "messages", "message %zu: images are not supported", i);
    char *s =
        content && !json_is_null(content) ? cr_read_copy(in, "messages", content) : cr_strdup("");
    if (!s)
        return false;
    cr_buf_init(&b, (size_t)1 << 26);
    bool ok = r == 3 ? cr_tool_result_text(&b, s) : cr_buf_puts(&b, s);
    cr_free(s);
    json_array_foreach(calls, at, k)
    {
        json_t *f = json_object_get(k, "function");
        const char *name = json_string_value(json_object_get(f, "name"));
        json_t *v = json_object_get(f, "arguments");
        char *arguments = cr_api_string(v, NULL);
        if (!name || !v)
            ok = cr_read_bad(in, "messages",
                             "message %zu: want tool_calls with function name and arguments", i);
        ok = ok && arguments && (!b.len || cr_buf_puts(&b, "\n")) &&
             cr_tool_call_text(&b, name, arguments);
        cr_free(arguments);
    }
    if (ok)
        return cr_read_add_message(in, roles[r], cr_buf_detach(&b, NULL));
    cr_buf_deinit(&b);
    return cr_read_no_memory(in);
}

static bool read_chat(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    json_t *messages = cr_read_field(in, "messages"), *tools = cr_read_field(in, "tools"), *v;
    size_t i;
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return cr_read_bad(in, "messages", "want an array of messages");
    json_array_foreach(messages, i, v)
    {
        if (!read_message(in, v, i))
            return false;
    }
    if (tools && (!json_is_array(tools) || json_array_size(tools) > CR_API_MAX_TOOLS))
        return cr_read_bad(in, "tools", "want an array of at most %d tools", CR_API_MAX_TOOLS);
    json_array_foreach(tools, i, v)
    {
        json_t *f = json_object_get(v, "function");
        if (!cr_read_add_tool(in, "tools", json_object_get(f, "name"),
                              json_object_get(f, "description"), json_object_get(f, "parameters")))
            return false;
    }
    r->parallel_tools = true;
    r->tool_choice = r->tools ? CR_TOOLS_AUTO : CR_TOOLS_NONE;
    return true;
}

/* A prompt is a message of the user, unless it is raw. */
static bool read_generate(struct cr_reader *in)
{
    struct cr_api_request *r = in->r;
    char *system = NULL, *prompt = NULL;
    bool ok = cr_read_bool(in, "raw", &r->raw) && cr_read_string(in, "system", 0, &system) &&
              cr_read_string(in, "prompt", 0, &prompt);
    if (ok && !prompt)
        ok = cr_read_bad(in, "prompt", "want a prompt");
    if (ok && r->raw) {
        r->chat = false;
        r->prompts = cr_alloc0(1, sizeof *r->prompts);
        r->n_prompts = r->prompts != NULL;
        if (!r->prompts)
            ok = cr_read_no_memory(in);
        else
            r->prompts[0] = (struct cr_api_prompt){.text = prompt, .n_text = strlen(prompt)};
        if (r->prompts)
            prompt = NULL;
    } else if (ok) {
        if (system && *system)
            ok = cr_read_add_message(in, "system", system);
        else
            cr_free(system);
        system = NULL;
        if (ok) {
            ok = cr_read_add_message(in, "user", prompt);
            prompt = NULL;
        }
    }
    cr_free(system);
    cr_free(prompt);
    return ok;
}

bool cr_read_ollama(struct cr_reader *in)
{
    static const char *const refused[] = {"suffix", "images", "template", "context", "think"};
    static const char *const ignored[] = {"keep_alive"};
    struct cr_api_request *r = in->r;
    r->stream = true;
    if (!cr_read_bool(in, "stream", &r->stream) || !read_options(in) || !read_format(in) ||
        !cr_read_refuse(in, refused, COUNT(refused)) ||
        !cr_read_ignore(in, ignored, COUNT(ignored)))
        return false;
    r->chat = true;
    return r->kind == CR_API_OLLAMA_CHAT ? read_chat(in) : read_generate(in);
}

/* ---- writing ------------------------------------------------------------------------------ */

static void now_text(char out[40])
{
    struct timespec t;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    size_t n = strftime(out, 40, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, 40 - n, ".%06ldZ", t.tv_nsec / 1000);
}

/* {"model", "created_at", "message" or "response", "done"}; calls is taken, may be NULL. */
static json_t *line(const struct cr_job *j, const char *text, size_t n, json_t *calls, bool done)
{
    char now[40];
    now_text(now);
    json_t *s = cr_api_text(text, n);
    json_t *o =
        json_pack("{s:s, s:s, s:b}", "model", j->req.model, "created_at", now, "done", done);
    if (j->req.kind == CR_API_OLLAMA_GENERATE) {
        json_object_set_new(o, "response", s);
        json_decref(calls);
        return o;
    }
    json_t *m = json_pack("{s:s, s:o}", "role", "assistant", "content", s);
    if (calls)
        json_object_set_new(m, "tool_calls", calls);
    json_object_set_new(o, "message", m);
    return o;
}

static json_t *calls_json(const struct cr_choice *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->n_calls; i++) {
        const struct cr_call *k = &c->calls[i];
        json_t *v = json_loadb(k->arguments.data, k->arguments.len, JSON_DECODE_ANY, NULL);
        json_array_append_new(list, json_pack("{s:{s:s, s:o}}", "function", "name", k->name,
                                              "arguments", v ? v : json_object()));
    }
    return list;
}

static json_t *nanoseconds(double ms)
{
    return json_integer(ms > 0 ? (json_int_t)(ms * 1e6) : 0);
}

static void add_end(const struct cr_job *j, json_t *o)
{
    double now = cr_now_ms(), first = j->first_ms > 0 ? j->first_ms : now;
    bool ok = o != NULL;
    cr_api_put(o, "done_reason",
               json_string(strcmp(j->choices[0].finish, "length") == 0 ? "length" : "stop"), &ok);
    cr_api_put(o, "total_duration", nanoseconds(now - j->pushed_ms), &ok);
    cr_api_put(o, "load_duration", json_integer(0), &ok);
    cr_api_put(o, "prompt_eval_count", json_integer((json_int_t)j->n_prompt), &ok);
    cr_api_put(o, "prompt_eval_duration", nanoseconds(first - j->pushed_ms), &ok);
    cr_api_put(o, "eval_count", json_integer((json_int_t)j->n_answer), &ok);
    cr_api_put(o, "eval_duration", nanoseconds(now - first), &ok);
    cr_api_put(o, "crayon", cr_reply_crayon(j), &ok);
}

static json_t *whole(struct cr_job *j)
{
    const struct cr_choice *c = &j->choices[0];
    json_t *o = line(j, c->text.data, c->text.len, c->n_calls ? calls_json(c) : NULL, true);
    add_end(j, o);
    return o;
}

static void start(struct cr_job *j)
{
    (void)j;
}

static bool piece(struct cr_choice *c, const char *text, size_t n)
{
    return n == 0 || cr_job_add(c->job, "", line(c->job, text, n, NULL, false), "\n");
}

/* Calls are told whole, when they are complete. */
static bool call(struct cr_choice *c, size_t i, const char *arguments, size_t n)
{
    (void)c, (void)i, (void)arguments, (void)n;
    return true;
}

static bool finish(struct cr_choice *c)
{
    return c->n_calls == 0 ||
           cr_job_add(c->job, "", line(c->job, "", 0, calls_json(c), false), "\n");
}

static void end(struct cr_job *j)
{
    json_t *o = line(j, "", 0, NULL, true);
    add_end(j, o);
    cr_job_add(j, "", o, "\n");
}

const struct cr_writer cr_writer_ollama = {
    "application/x-ndjson", start, piece, call, finish, end, whole};
