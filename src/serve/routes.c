/* SPDX-License-Identifier: Apache-2.0 */
/* Every path of the server in one table, and the small answers that need no run of the model. */
#include "serve/http.h"

#include "base/mem.h"
#include "model/model.h"
#include "serve/special.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- models --------------------------------------------------------------------------------- */

static json_t *model_json(cr_server *s, const struct cr_target *t)
{
    char *id = cr_shelf_id(s->shelf, t);
    json_t *o = json_pack(
        "{s:o, s:s, s:I, s:s, s:i, s:s?}", "id", id ? cr_api_text(id, strlen(id)) : json_null(),
        "object", "model", "created", (json_int_t)t->created, "owned_by", "crayon", "max_model_len",
        cr_server_ctx(s), "parent", t->name[0] ? cr_shelf_model_name(s->shelf) : NULL);
    json_t *routing = cr_routing_json(cr_worker_routing(s->worker), t);
    if (routing)
        json_object_set_new(o, "crayon", routing);
    cr_free(id);
    return o;
}

static json_t *each_model(cr_server *s, json_t *(*fn)(cr_server *, const struct cr_target *))
{
    struct cr_target *v[CR_SHELF_MAX];
    size_t n = cr_shelf_all(s->shelf, v, CR_SHELF_MAX);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, fn(s, v[i]));
        cr_target_unref(v[i]);
    }
    return list;
}

static enum MHD_Result get_models(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    return cr_send_json(
        c, t, 200, json_pack("{s:s, s:o}", "object", "list", "data", each_model(s, model_json)));
}

static enum MHD_Result get_model(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    struct cr_target *found = cr_shelf_find(s->shelf, t->rest);
    if (!found)
        return cr_send_error(c, t, 404, "model", "model_not_found", "there is no such model");
    enum MHD_Result done = cr_send_json(c, t, 200, model_json(s, found));
    cr_target_unref(found);
    return done;
}

/* ---- Ollama's lists ------------------------------------------------------------------------- */

static json_t *details(cr_server *s)
{
    const struct cr_model_info *info = cr_model_info(s->opt.model);
    char size[32];
    snprintf(size, sizeof size, "%lluM", (unsigned long long)(info->n_params / 1000000));
    return json_pack("{s:s, s:s, s:s, s:[s], s:s, s:s}", "parent_model", "", "format", "gguf",
                     "family", info->arch, "families", info->arch, "parameter_size", size,
                     "quantization_level", info->type_name);
}

static json_t *tag_json(cr_server *s, const struct cr_target *t)
{
    char when[32];
    struct tm tm;
    time_t created = (time_t)t->created;
    char *id = cr_shelf_id(s->shelf, t);
    gmtime_r(&created, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_t *o =
        json_pack("{s:s?, s:s?, s:s, s:I, s:s, s:o}", "name", id, "model", id, "modified_at", when,
                  "size", (json_int_t)cr_model_info(s->opt.model)->file_bytes, "digest",
                  t->sha256[0] ? t->sha256 : cr_model_hash(s->opt.model), "details", details(s));
    cr_free(id);
    return o;
}

static enum MHD_Result get_tags(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    return cr_send_json(c, t, 200, json_pack("{s:o}", "models", each_model(s, tag_json)));
}

static enum MHD_Result get_version(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    (void)s;
    return cr_send_json(c, t, 200, json_pack("{s:s}", "version", CR_VERSION));
}

/* ---- health and numbers --------------------------------------------------------------------- */

static enum MHD_Result get_health(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    bool stopping = atomic_load(&s->draining);
    return cr_send_json(c, t, stopping ? 503 : 200,
                        json_pack("{s:s}", "status", stopping ? "stopping" : "ok"));
}

static enum MHD_Result get_metrics(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    struct cr_buf b;
    struct cr_metric_facts f = {.waiting = cr_worker_waiting(s->worker),
                                .connections = (int)s->connections.n,
                                .cpu = cr_model_info(s->opt.model)->cpu};
    f.running = cr_worker_active(s->worker) - f.waiting;
    f.resident_bytes = cr_shelf_bytes(s->shelf, &f.n_palettes);
    cr_buf_init(&b, 1 << 20);
    enum MHD_Result done =
        cr_metrics_text(&s->metrics, &f, &b)
            ? cr_send_bytes(c, t, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len)
            : cr_send_error(c, t, 503, NULL, NULL, "out of memory");
    cr_buf_deinit(&b);
    return done;
}

/* ---- tokens --------------------------------------------------------------------------------- */

/* The body as JSON; NULL: it was refused and *done is what to return. */
static json_t *body(struct MHD_Connection *c, struct cr_talk *t, enum MHD_Result *done)
{
    struct cr_api_error e = {0};
    json_t *v = cr_api_load(t->body.data, t->body.len, &e);
    if (!v)
        *done = cr_send_api_error(c, t, &e);
    return v;
}

static json_t *ids_json(const int32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *pieces_json(const cr_model *m, const int32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len = cr_token_bytes(m, ids[i], true, &bytes);
        json_array_append_new(list, json_pack("{s:i, s:o}", "id", (int)ids[i], "piece",
                                              cr_api_token_text(bytes, len)));
    }
    return list;
}

static enum MHD_Result send_library_error(struct MHD_Connection *c, struct cr_talk *t,
                                          const struct cr_error *err)
{
    struct cr_api_error e;
    cr_api_error_from(&e, err);
    return cr_send_api_error(c, t, &e);
}

static enum MHD_Result post_tokenize(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    enum MHD_Result done = MHD_NO;
    json_t *v = body(c, t, &done);
    if (!v)
        return done;
    json_t *content = json_object_get(v, "content"), *prompt = json_object_get(v, "prompt");
    json_t *text = content ? content : prompt;
    json_t *special = json_object_get(v, content ? "add_special" : "add_special_tokens");
    /* llama-server's default is none, vLLM's is all. */
    bool add = special && !json_is_null(special) ? json_is_true(special) : !content;
    unsigned flags = add ? CR_TOKENIZE_BOS : 0;
    int32_t *ids = NULL;
    size_t n = 0;
    struct cr_error err;
    if (json_is_true(json_object_get(v, "parse_special")))
        flags |= CR_TOKENIZE_SPECIAL;
    if (!json_is_string(text)) {
        done = cr_send_error(c, t, 400, "prompt", NULL, "prompt: want a string");
    } else if (cr_tokenize(s->opt.model, json_string_value(text), json_string_length(text), flags,
                           &ids, &n, &err) != CR_OK) {
        done = send_library_error(c, t, &err);
    } else {
        bool pieces = json_is_true(json_object_get(v, "with_pieces"));
        done = cr_send_json(c, t, 200,
                            json_pack("{s:o, s:I, s:i}", "tokens",
                                      pieces ? pieces_json(s->opt.model, ids, n) : ids_json(ids, n),
                                      "count", (json_int_t)n, "max_model_len", cr_server_ctx(s)));
    }
    cr_free(ids);
    json_decref(v);
    return done;
}

/* The text of ids, with the names of control tokens. */
static json_t *text_of(const cr_model *m, const int32_t *ids, size_t n)
{
    struct cr_buf b;
    cr_buf_init(&b, CR_JOB_MAX_OUT);
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len = cr_token_bytes(m, ids[i], true, &bytes);
        cr_buf_add(&b, bytes, len);
    }
    json_t *text = b.failed ? NULL : cr_api_text(b.data, b.len);
    cr_buf_deinit(&b);
    return text;
}

static enum MHD_Result post_detokenize(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    enum MHD_Result done = MHD_NO;
    json_t *v = body(c, t, &done);
    if (!v)
        return done;
    json_t *tokens = json_object_get(v, "tokens");
    size_t n = json_array_size(tokens);
    int32_t *ids = cr_alloc(n, sizeof *ids);
    bool ok = json_is_array(tokens) && ids;
    for (size_t i = 0; ok && i < n; i++) {
        json_t *id = json_array_get(tokens, i);
        ok = json_is_integer(id) && json_integer_value(id) >= 0 &&
             json_integer_value(id) < cr_model_info(s->opt.model)->n_vocab;
        ids[i] = (int32_t)json_integer_value(id);
    }
    if (!ok) {
        done = cr_send_error(c, t, 400, "tokens", NULL,
                             "tokens: want an array of ids of the vocabulary");
    } else {
        json_t *text = text_of(s->opt.model, ids, n);
        done = cr_send_json(c, t, 200, json_pack("{s:O, s:o}", "content", text, "prompt", text));
    }
    cr_free(ids);
    json_decref(v);
    return done;
}

/* What the model's name of a request says, else the model itself; a reference. */
static struct cr_target *target_of(cr_server *s, const struct cr_api_request *q)
{
    struct cr_target *t = cr_shelf_find(s->shelf, q->model);
    return t ? t : cr_shelf_find(s->shelf, cr_shelf_model_name(s->shelf));
}

static enum cr_status ids_of(cr_server *s, const struct cr_api_request *q, struct cr_ids *ids,
                             struct cr_error *err)
{
    struct cr_prompt made;
    struct cr_target *t = target_of(s, q);
    enum cr_status status = cr_prompt_make(&made, t, q, NULL, cr_server_ctx(s), err);
    *ids = made.ids;
    cr_target_unref(t);
    return status;
}

static enum MHD_Result post_template(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    enum MHD_Result done = MHD_NO;
    json_t *v = body(c, t, &done);
    struct cr_api_request q = {0};
    struct cr_api_error e;
    struct cr_error err;
    struct cr_ids ids = {0};
    size_t len = 0;
    if (!v)
        return done;
    if (!json_is_string(json_object_get(v, "model")))
        json_object_set_new(v, "model", json_string(cr_shelf_model_name(s->shelf)));
    char *text = cr_api_string(v, &len);
    json_decref(v);
    if (!text)
        return cr_send_error(c, t, 503, NULL, NULL, "out of memory");
    if (!cr_api_parse(&q, CR_API_CHAT, text, len, &e))
        done = cr_send_api_error(c, t, &e);
    else if (ids_of(s, &q, &ids, &err) != CR_OK)
        done = send_library_error(c, t, &err);
    else
        done = cr_send_json(c, t, 200,
                            json_pack("{s:o}", "prompt", text_of(s->opt.model, ids.v, ids.n)));
    cr_api_request_deinit(&q);
    cr_free(ids.v);
    cr_free(text);
    return done;
}

static enum MHD_Result get_tokenizer_info(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    const cr_model *m = s->opt.model;
    int32_t bos = cr_tokenizer_bos(m->tok), eos = cr_tokenizer_eos(m->tok);
    return cr_send_json(c, t, 200,
                        json_pack("{s:s, s:o, s:o, s:b, s:i, s:s, s:i}", "tokenizer_class",
                                  "crayon", "bos_token",
                                  bos < 0 ? json_null() : text_of(m, &bos, 1), "eos_token",
                                  eos < 0 ? json_null() : text_of(m, &eos, 1), "add_bos_token",
                                  cr_tokenizer_add_bos(m->tok), "vocab_size",
                                  cr_model_info(m)->n_vocab, "chat_template_name",
                                  cr_model_info(m)->chat, "model_max_length", cr_server_ctx(s)));
}

/* Anthropic's count needs the template but no run. */
static enum MHD_Result post_count(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    struct cr_api_request q;
    struct cr_api_error e;
    struct cr_error err;
    struct cr_ids ids = {0};
    enum MHD_Result done;
    if (!cr_api_parse(&q, CR_API_COUNT_TOKENS, t->body.data, t->body.len, &e))
        done = cr_send_api_error(c, t, &e);
    else if (ids_of(s, &q, &ids, &err) != CR_OK)
        done = send_library_error(c, t, &err);
    else
        done = cr_send_json(c, t, 200, json_pack("{s:I}", "input_tokens", (json_int_t)ids.n));
    cr_api_request_deinit(&q);
    cr_free(ids.v);
    return done;
}

static enum MHD_Result post_show(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    enum MHD_Result done = MHD_NO;
    json_t *v = body(c, t, &done);
    if (!v)
        return done;
    const char *name = json_string_value(json_object_get(v, "model"));
    if (!name)
        name = json_string_value(json_object_get(v, "name"));
    struct cr_target *target = name ? cr_shelf_find(s->shelf, name) : NULL;
    const struct cr_model_info *info = cr_model_info(s->opt.model);
    if (!target)
        done = cr_send_error(c, t, 404, "model", "model_not_found", "there is no such model");
    else
        done = cr_send_json(
            c, t, 200,
            json_pack("{s:s, s:s, s:s, s:o, s:{s:s, s:I, s:i, s:i, s:i}, s:[s, s, s]}", "modelfile",
                      "", "parameters", "", "template", info->chat, "details", details(s),
                      "model_info", "general.architecture", info->arch, "general.parameter_count",
                      (json_int_t)info->n_params, "context_length", cr_server_ctx(s),
                      "embedding_length", info->n_embd, "block_count", info->n_layers,
                      "capabilities", "completion", "tools", "embedding"));
    cr_target_unref(target);
    json_decref(v);
    return done;
}

/* ---- adapters ------------------------------------------------------------------------------- */

static enum MHD_Result get_lora(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    return cr_send_json(c, t, 200, cr_shelf_adapters_json(s->shelf));
}

static enum MHD_Result post_lora(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    json_error_t where;
    json_t *v = json_loadb(t->body.data ? t->body.data : "", t->body.len, JSON_REJECT_DUPLICATES,
                           &where),
           *one;
    int ids[CR_API_MAX_LORA];
    float scales[CR_API_MAX_LORA];
    size_t i, n = json_array_size(v);
    bool ok = json_is_array(v) && n <= CR_API_MAX_LORA;
    json_array_foreach(v, i, one)
    {
        json_t *id = json_object_get(one, "id"), *scale = json_object_get(one, "scale");
        double x = json_number_value(scale);
        ok = ok && json_is_integer(id) && json_integer_value(id) >= 0 &&
             json_integer_value(id) < CR_API_MAX_LORA && json_is_number(scale) && x >= -1000 &&
             x <= 1000;
        if (!ok)
            break;
        ids[i] = (int)json_integer_value(id);
        scales[i] = (float)x;
    }
    json_decref(v);
    struct cr_error err;
    if (!ok)
        return cr_send_error(c, t, 400, NULL, NULL,
                             "body: want an array of {\"id\": integer, \"scale\": number}");
    if (cr_shelf_set_scales(s->shelf, ids, scales, n, &err) != CR_OK)
        return send_library_error(c, t, &err);
    return cr_send_json(c, t, 200, json_pack("{s:b}", "success", 1));
}

/* A path that a client names has to lie below the folder that the owner has opened for this. */
static bool is_below(const char *dir, const char *path, char **full)
{
    char *root = dir ? realpath(dir, NULL) : NULL, *real = realpath(path, NULL);
    size_t n = root ? strlen(root) : 0;
    bool ok = root && real && strncmp(real, root, n) == 0 && real[n] == '/';
    *full = ok ? cr_strdup(real) : NULL;
    (free)(root); /* of realpath, not of ours */
    (free)(real);
    return *full != NULL;
}

/* The answer to a load; a palette that the rule cannot judge is told of here and in the log. */
static json_t *loaded_json(cr_server *s, const char *name)
{
    json_t *o = json_pack("{s:s, s:s}", "status", "loaded", "name", name);
    char *id = cr_asprintf("%s:%s", cr_shelf_model_name(s->shelf), name);
    struct cr_target *t = id ? cr_shelf_find(s->shelf, id) : NULL;
    json_t *routing = t ? cr_routing_json(cr_worker_routing(s->worker), t) : NULL;
    if (routing)
        json_object_set_new(o, "crayon", routing);
    if (t)
        cr_server_say_what_stays(s, t);
    cr_target_unref(t);
    cr_free(id);
    return o;
}

static enum MHD_Result post_load(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    enum MHD_Result done = MHD_NO;
    json_t *v = body(c, t, &done);
    if (!v)
        return done;
    const char *name = json_string_value(json_object_get(v, "lora_name"));
    const char *path = json_string_value(json_object_get(v, "lora_path"));
    bool replace = json_is_true(json_object_get(v, "load_inplace"));
    struct cr_error err;
    char *full = NULL;
    if (!name || !path)
        done = cr_send_error(c, t, 400, name ? "lora_path" : "lora_name", NULL,
                             "want lora_name and lora_path");
    else if (!s->opt.adapter_dir)
        done = cr_send_error(c, t, 403, "lora_path", NULL,
                             "this server loads no files by request: start it with --adapter-dir");
    else if (!is_below(s->opt.adapter_dir, path, &full))
        done = cr_send_error(c, t, 403, "lora_path", NULL,
                             "lora_path: is no file below the server's --adapter-dir");
    else if (cr_shelf_load(s->shelf, name, full, !replace, &err) != CR_OK)
        done = send_library_error(c, t, &err);
    else
        done = cr_send_json(c, t, 200, loaded_json(s, name));
    cr_free(full);
    json_decref(v);
    return done;
}

static enum MHD_Result post_unload(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    enum MHD_Result done = MHD_NO;
    json_t *v = body(c, t, &done);
    if (!v)
        return done;
    const char *name = json_string_value(json_object_get(v, "lora_name"));
    struct cr_error err;
    if (!name)
        done = cr_send_error(c, t, 400, "lora_name", NULL, "want lora_name");
    else if (cr_shelf_unload(s->shelf, name, &err) != CR_OK)
        done = send_library_error(c, t, &err);
    else
        done = cr_send_json(c, t, 200, json_pack("{s:s, s:s}", "status", "unloaded", "name", name));
    json_decref(v);
    return done;
}

static enum MHD_Result post_reload(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    size_t n = 0;
    struct cr_error err;
    if (cr_server_reload(s, &n, &err) != CR_OK)
        return send_library_error(c, t, &err);
    return cr_send_json(c, t, 200, json_pack("{s:I}", "reloaded", (json_int_t)n));
}

/* ---- the table ------------------------------------------------------------------------------ */

enum { MODELS = 8, TOKENS, ADMIN, OTHER }; /* of cr_metric_endpoints */

static const struct cr_route routes[] = {
    {"POST", "/v1/chat/completions", CR_USER, CR_API_CHAT, CR_API_CHAT, NULL, NULL},
    {"POST", "/v1/completions", CR_USER, CR_API_COMPLETIONS, CR_API_COMPLETIONS, NULL, NULL},
    {"POST", "/v1/responses", CR_USER, CR_API_RESPONSES, CR_API_RESPONSES, NULL, NULL},
    {"POST", "/v1/messages", CR_USER, CR_API_MESSAGES, CR_API_MESSAGES, NULL, NULL},
    {"POST", "/v1/messages/count_tokens", CR_USER, CR_API_COUNT_TOKENS, CR_API_COUNT_TOKENS,
     post_count, NULL},
    {"POST", "/v1/embeddings", CR_USER, CR_API_EMBEDDINGS, CR_API_EMBEDDINGS, NULL,
     cr_special_embed},
    {"POST", "/api/chat", CR_USER, CR_API_OLLAMA_CHAT, CR_API_OLLAMA_CHAT, NULL, NULL},
    {"POST", "/api/generate", CR_USER, CR_API_OLLAMA_GENERATE, CR_API_OLLAMA_GENERATE, NULL, NULL},
    {"POST", "/api/embed", CR_USER, CR_API_OLLAMA_EMBED, CR_API_EMBEDDINGS, NULL, cr_special_embed},
    {"POST", "/api/show", CR_USER, CR_API_OLLAMA_CHAT, MODELS, post_show, NULL},
    {"GET", "/api/tags", CR_USER, CR_API_OLLAMA_CHAT, MODELS, get_tags, NULL},
    {"GET", "/api/version", CR_USER, CR_API_OLLAMA_CHAT, OTHER, get_version, NULL},
    {"GET", "/v1/models", CR_USER, CR_API_CHAT, MODELS, get_models, NULL},
    {"GET", "/v1/models/*", CR_USER, CR_API_CHAT, MODELS, get_model, NULL},
    {"GET", "/", CR_PAGE, CR_API_CHAT, OTHER, cr_console_get, NULL},
    {"GET", "/console.css", CR_PAGE, CR_API_CHAT, OTHER, cr_console_get, NULL},
    {"GET", "/console.js", CR_PAGE, CR_API_CHAT, OTHER, cr_console_get, NULL},
    {"GET", "/v1/crayon/ledger", CR_ADMIN, CR_API_CHAT, ADMIN, cr_console_ledger, NULL},
    {"GET", "/health", CR_OPEN, CR_API_CHAT, OTHER, get_health, NULL},
    {"GET", "/metrics", CR_USER, CR_API_CHAT, OTHER, get_metrics, NULL},
    {"POST", "/tokenize", CR_USER, CR_API_CHAT, TOKENS, post_tokenize, NULL},
    {"POST", "/detokenize", CR_USER, CR_API_CHAT, TOKENS, post_detokenize, NULL},
    {"POST", "/apply-template", CR_USER, CR_API_CHAT, TOKENS, post_template, NULL},
    {"GET", "/tokenizer_info", CR_USER, CR_API_CHAT, TOKENS, get_tokenizer_info, NULL},
    {"POST", "/v1/crayon/blend", CR_USER, CR_API_KINDS, ADMIN, NULL, cr_special_blend},
    {"GET", "/lora-adapters", CR_USER, CR_API_CHAT, ADMIN, get_lora, NULL},
    {"POST", "/lora-adapters", CR_ADMIN, CR_API_CHAT, ADMIN, post_lora, NULL},
    {"POST", "/v1/load_lora_adapter", CR_ADMIN, CR_API_CHAT, ADMIN, post_load, NULL},
    {"POST", "/v1/unload_lora_adapter", CR_ADMIN, CR_API_CHAT, ADMIN, post_unload, NULL},
    {"POST", "/v1/crayon/reload", CR_ADMIN, CR_API_CHAT, ADMIN, post_reload, NULL},
};

static bool fits(const char *pattern, const char *path)
{
    size_t n = strlen(pattern);
    return pattern[n - 1] == '*' ? strncmp(pattern, path, n - 1) == 0 && path[n - 1]
                                 : strcmp(pattern, path) == 0;
}

const struct cr_route *cr_route_find(const char *method, const char *path, bool *known)
{
    *known = false;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (!fits(routes[i].path, path))
            continue;
        if (strcmp(routes[i].method, method) == 0)
            return &routes[i];
        *known = true;
    }
    return NULL;
}
