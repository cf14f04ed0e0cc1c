/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon info FILE`: what a file is and what is in it, without loading a model: GGUF models, LoRA
 * files, PEFT folders, pools and palettes. `adapter info` and `pool info` are the same with a check
 * of the kind.
 */
#include "info.h"
#include "adapt/palette.h"
#include "adapt/safetensors.h"
#include "base/mem.h"
#include "common.h"
#include "facts.h"
#include "messages.h"
#include "model/chat.h"
#include "model/gguf.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#ifdef CRAYON_JSON
#include <jansson.h>
#endif

enum { MAX_JSON = 1 << 24 };

static const char *const kind_names[] = {
    [CR_INFO_MODEL] = "model", [CR_INFO_LORA] = "lora",       [CR_INFO_PEFT] = "peft",
    [CR_INFO_POOL] = "pool",   [CR_INFO_PALETTE] = "palette",
};

const char *cr_info_kind_name(enum cr_info_kind kind)
{
    return kind_names[kind];
}

/* ---- GGUF ---- */

enum cr_info_kind cr_info_gguf_kind(const cr_gguf *g)
{
    struct cr_str type = {"", 0};
    cr_gguf_str(g, "general.type", false, &type, NULL);
    return cr_str_eq(type, "adapter")       ? CR_INFO_LORA
           : cr_str_eq(type, "crayon.pool") ? CR_INFO_POOL
                                            : CR_INFO_MODEL;
}

static void fact_kv_str(struct cr_facts *f, const cr_gguf *g, const char *key, const char *as)
{
    struct cr_str s;
    if (!cr_gguf_str(g, key, false, &s, NULL) && s.n)
        cr_fact_strn(f, as, s.p, s.n);
}

static void fact_kv_u32(struct cr_facts *f, const cr_gguf *g, const char *key, const char *as)
{
    uint32_t v;
    if (!cr_gguf_u32(g, key, false, &v, NULL))
        cr_fact_int(f, as, v);
}

static void fact_kv_f32(struct cr_facts *f, const cr_gguf *g, const char *key, const char *as)
{
    float v;
    if (!cr_gguf_f32(g, key, false, &v, NULL))
        cr_fact_real(f, as, (double)v);
}

/* "Q8_0 57, F32 17": tensors of each type; and all values. */
static void tensor_facts(struct cr_facts *f, const cr_gguf *g)
{
    size_t count[CR_TYPE_END] = {0}, n = cr_gguf_n_tensors(g);
    uint64_t values = 0;
    for (size_t i = 0; i < n; i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        values += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        if (t->type < CR_TYPE_END)
            count[t->type]++;
    }
    struct cr_buf types;
    cr_buf_init(&types, 1024);
    for (uint32_t t = 0; t < CR_TYPE_END; t++) {
        const char *name = cr_type_info(t)->name;
        if (count[t])
            cr_buf_printf(&types, "%s%s %zu", types.len ? ", " : "", name ? name : "?", count[t]);
    }
    cr_fact_int(f, "tensors", (long long)n);
    cr_fact_str(f, "types", types.data ? types.data : "");
    cr_fact_int(f, "values", (long long)values);
    cr_buf_deinit(&types);
}

/* Can this program run it? The answer of the loader itself. */
static void loader_facts(struct cr_facts *f, const char *path)
{
    cr_model *m;
    struct cr_error err;
    if (cr_model_open(&m, path, &(struct cr_model_options){.n_threads = 1}, &err)) {
        cr_fact_bool(f, "runs_here", false);
        cr_fact_str(f, "why_not", err.msg);
        return;
    }
    const struct cr_model_info *info = cr_model_info(m);
    cr_fact_bool(f, "runs_here", true);
    cr_fact_str(f, "chat_template", *info->chat ? info->chat : "none");
    cr_fact_bytes(f, "kv_and_scratch", cr_session_bytes(m, 0));
    cr_fact_str(f, "hash", cr_model_hash(m));
    cr_model_close(m);
}

static void model_facts(struct cr_facts *f, const cr_gguf *g, const char *path)
{
    static const struct {
        const char *key, *as;
    } numbers[] = {
        {"block_count", "layers"},
        {"embedding_length", "embedding"},
        {"attention.head_count", "heads"},
        {"attention.head_count_kv", "kv_heads"},
        {"feed_forward_length", "feed_forward"},
        {"context_length", "context"},
    };
    struct cr_str arch = {"", 0};
    if (!cr_gguf_str(g, "general.architecture", false, &arch, NULL))
        cr_fact_strn(f, "architecture", arch.p, arch.n);
    fact_kv_str(f, g, "general.license", "licence");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char key[160];
        snprintf(key, sizeof key, "%.*s.%s", (int)(arch.n < 64 ? arch.n : 64), arch.p,
                 numbers[i].key);
        fact_kv_u32(f, g, key, numbers[i].as);
    }
    const struct cr_gguf_kv *vocab = cr_gguf_find(g, "tokenizer.ggml.tokens");
    if (vocab && vocab->type == CR_GGUF_ARRAY)
        cr_fact_int(f, "vocabulary", (long long)vocab->n);
    fact_kv_str(f, g, "tokenizer.ggml.model", "tokenizer");
    fact_kv_str(f, g, "tokenizer.ggml.pre", "pre_tokenizer");
    loader_facts(f, path);
}

/* Rank and target linears of a LoRA, from the shapes of its tensors. */
static void lora_facts(struct cr_facts *f, const cr_gguf *g)
{
    uint64_t least = UINT64_MAX, most = 0;
    size_t pairs = 0;
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        if (t->name.n < 7 || memcmp(t->name.p + t->name.n - 7, ".lora_a", 7))
            continue;
        pairs++;
        least = t->ne[1] < least ? t->ne[1] : least;
        most = t->ne[1] > most ? t->ne[1] : most;
    }
    fact_kv_str(f, g, "general.architecture", "architecture");
    fact_kv_str(f, g, "adapter.lora.task_name", "task");
    fact_kv_str(f, g, "adapter.lora.prompt_prefix", "prompt_prefix");
    fact_kv_f32(f, g, "adapter.lora.alpha", "alpha");
    cr_fact_int(f, "pairs", (long long)pairs);
    if (pairs)
        cr_fact_int(f, "rank", (long long)most);
    if (pairs && least != most)
        cr_fact_int(f, "least_rank", (long long)least);
}

/* The index of a pool: one row per entry with its size and the adapters that weigh most. */
static void index_facts(struct cr_facts *f, const cr_gguf *g)
{
    const struct cr_gguf_kv *names = cr_gguf_find(g, "crayon.pool.tasks"),
                            *about = cr_gguf_find(g, "crayon.pool.descriptions"),
                            *rows = cr_gguf_find(g, "crayon.pool.rows");
    if (!names || names->type != CR_GGUF_ARRAY || names->elem_type != CR_GGUF_STRING)
        return;
    bool has_about = about && about->type == CR_GGUF_ARRAY && about->elem_type == CR_GGUF_STRING &&
                     about->n == names->n;
    bool has_rows = rows && rows->type == CR_GGUF_ARRAY && rows->elem_type == CR_GGUF_U32 &&
                    rows->n == names->n;
    const uint8_t *name_at = NULL, *about_at = NULL;
    cr_facts_list(f, "index", "index (name, rows trained on, about)");
    for (uint64_t i = 0; i < names->n; i++) {
        struct cr_str name = cr_gguf_next_str(names, &name_at), text = {"", 0};
        uint32_t n = 0;
        char shown[48], what[200];
        if (has_about)
            text = cr_gguf_next_str(about, &about_at);
        if (has_rows)
            memcpy(&n, rows->data + 4 * i, sizeof n);
        if (f->json) {
            cr_json_open_line(&f->j, NULL, '{');
            cr_json_strn(&f->j, "name", name.p, name.n);
            cr_json_uint(&f->j, "rows", n);
            cr_json_strn(&f->j, "about", text.p, text.n);
            cr_json_close(&f->j);
        }
        cr_facts_line(f, "  %-40s %7u  %s", cr_facts_clean(name.p, name.n, shown, sizeof shown), n,
                      cr_facts_clean(text.p, text.n, what, sizeof what));
    }
    cr_facts_list_end(f);
}

static void pool_facts(struct cr_facts *f, const cr_gguf *g)
{
    fact_kv_str(f, g, "general.architecture", "architecture");
    fact_kv_str(f, g, "crayon.pool.kind", "pool_kind");
    fact_kv_str(f, g, "crayon.pool.form", "form");
    fact_kv_str(f, g, "crayon.pool.mode", "mode");
    fact_kv_u32(f, g, "crayon.pool.n", "adapters");
    fact_kv_u32(f, g, "crayon.pool.rank", "rank");
    fact_kv_f32(f, g, "crayon.pool.alpha", "alpha");
    fact_kv_str(f, g, "crayon.pool.base_hash", "base_hash");
    fact_kv_u32(f, g, "crayon.pool.steps", "steps");
    fact_kv_u32(f, g, "crayon.pool.worked", "worked_examples");
    fact_kv_f32(f, g, "crayon.pool.loss", "loss");
    fact_kv_str(f, g, "crayon.pool.command", "command");
    index_facts(f, g);
}

static enum cr_status gguf_facts(struct cr_facts *f, const char *path, bool tensors,
                                 enum cr_info_kind *kind, struct cr_error *err)
{
    cr_gguf *g;
    enum cr_status st = cr_gguf_open(&g, path, err);
    if (st)
        return st;
    *kind = cr_info_gguf_kind(g);
    cr_fact_str(f, "kind", kind_names[*kind]);
    cr_fact_str(f, "path", path);
    fact_kv_str(f, g, "general.name", "name");
    cr_fact_bytes(f, "bytes", cr_gguf_size(g));
    cr_fact_int(f, "gguf_version", cr_gguf_version(g));
    tensor_facts(f, g);
    if (*kind == CR_INFO_LORA)
        lora_facts(f, g);
    else if (*kind == CR_INFO_POOL)
        pool_facts(f, g);
    else
        model_facts(f, g, path);
    if (tensors)
        cr_facts_list(f, "tensor_list", "tensors (name, type, shape from the inside)");
    for (size_t i = 0; tensors && i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        const char *type_name = cr_type_info(t->type)->name;
        char name[96];
        if (f->json) {
            cr_json_open_line(&f->j, NULL, '{');
            cr_json_strn(&f->j, "name", t->name.p, t->name.n);
            cr_json_str(&f->j, "type", type_name);
            cr_json_open_line(&f->j, "shape", '[');
            for (uint32_t d = 0; d < t->n_dims; d++)
                cr_json_uint(&f->j, NULL, t->ne[d]);
            cr_json_close(&f->j);
            cr_json_close(&f->j);
        }
        cr_facts_line(f, "  %-44s %-6s %llu x %llu x %llu",
                      cr_facts_clean(t->name.p, t->name.n, name, sizeof name),
                      type_name ? type_name : "?", (unsigned long long)t->ne[0],
                      (unsigned long long)t->ne[1], (unsigned long long)t->ne[2]);
    }
    if (tensors)
        cr_facts_list_end(f);
    cr_gguf_close(g);
    return CR_OK;
}

/* ---- PEFT folder ---- */

#ifdef CRAYON_JSON
static enum cr_status config_facts(struct cr_facts *f, const char *dir, struct cr_error *err)
{
    static const char *const keys[] = {"peft_type",
                                       "r",
                                       "lora_alpha",
                                       "use_rslora",
                                       "use_dora",
                                       "bias",
                                       "base_model_name_or_path"};
    char *path = cr_asprintf("%s/adapter_config.json", dir), *text = NULL;
    size_t len;
    json_error_t je;
    enum cr_status st = path ? cr_file_read(path, MAX_JSON, &text, &len, err)
                             : cr_error_set(err, CR_NO_MEMORY, "out of memory");
    json_t *o = st ? NULL : json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!st && !json_is_object(o))
        st = cr_error_set(err, CR_FORMAT, "%s: not a JSON object", path);
    for (size_t i = 0; !st && i < sizeof keys / sizeof *keys; i++) {
        const json_t *v = json_object_get(o, keys[i]);
        if (json_is_string(v))
            cr_fact_str(f, keys[i], json_string_value(v));
        else if (json_is_integer(v))
            cr_fact_int(f, keys[i], json_integer_value(v));
        else if (json_is_real(v))
            cr_fact_real(f, keys[i], json_real_value(v));
        else if (json_is_boolean(v))
            cr_fact_bool(f, keys[i], json_is_true(v));
    }
    const json_t *targets = json_object_get(o, "target_modules");
    struct cr_buf list;
    cr_buf_init(&list, 4096);
    if (json_is_string(targets))
        cr_buf_puts(&list, json_string_value(targets));
    for (size_t i = 0; i < json_array_size(targets); i++) {
        const char *s = json_string_value(json_array_get(targets, i));
        cr_buf_printf(&list, "%s%s", i ? ", " : "", s ? s : "?");
    }
    if (!st && list.len)
        cr_fact_strn(f, "target_modules", list.data, list.len);
    cr_buf_deinit(&list);
    json_decref(o);
    cr_free(text);
    cr_free(path);
    return st;
}
#else
static enum cr_status config_facts(struct cr_facts *f, const char *dir, struct cr_error *err)
{
    (void)f;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: built without JSON", dir);
}
#endif

static enum cr_status peft_facts(struct cr_facts *f, const char *dir, struct cr_error *err)
{
    cr_fact_str(f, "kind", kind_names[CR_INFO_PEFT]);
    cr_fact_str(f, "path", dir);
    enum cr_status st = config_facts(f, dir, err);
    char *path = cr_asprintf("%s/adapter_model.safetensors", dir);
    struct cr_map map;
    struct cr_safetensors tensors;
    if (!st && !path)
        st = cr_error_set(err, CR_NO_MEMORY, "out of memory");
    if (!st)
        st = cr_map_open(&map, path, err);
    if (!st) {
        st = cr_safetensors_parse(&tensors, map.data, map.size, path, err);
        if (!st) {
            cr_fact_bytes(f, "bytes", map.size);
            cr_fact_int(f, "tensors", (long long)tensors.n);
            cr_safetensors_deinit(&tensors);
        }
        cr_map_close(&map);
    }
    cr_free(path);
    return st;
}

/* ---- palette ---- */

static enum cr_status palette_facts(struct cr_facts *f, const char *path, struct cr_error *err)
{
    char *text;
    size_t len;
    cr_palette *p = NULL;
    enum cr_status st = cr_file_read(path, MAX_JSON, &text, &len, err);
    if (st)
        return st;
    st = cr_palette_parse(&p, text, len, path, err);
    cr_free(text);
    if (st)
        return st;
    cr_fact_str(f, "kind", kind_names[CR_INFO_PALETTE]);
    cr_fact_str(f, "path", path);
    cr_fact_str(f, "name", p->name);
    cr_fact_bytes(f, "bytes", len);
    cr_fact_str(f, "base", p->base_name);
    cr_fact_str(f, "base_hash", p->base_hash);
    cr_fact_str(f, "keeps_the_base", p->n ? "no" : "yes");
    cr_fact_str(f, "pool", p->pool_path);
    cr_fact_str(f, "pool_hash", p->pool_hash);
    cr_fact_str(f, "solver", cr_solver_name(p->solver));
    cr_fact_str(f, "level", cr_level_name(p->level));
    cr_fact_str(f, "created", p->created);
    cr_fact_int(f, "examples", p->n_examples);
    cr_fact_int(f, "held_out", p->n_held_out);
    cr_fact_str(f, "metric", p->metric);
    cr_fact_real(f, "before", (double)p->before);
    cr_fact_real(f, "after", (double)p->after);
    cr_fact_real(f, "loss_before", (double)p->loss_before);
    cr_fact_real(f, "loss_after", (double)p->loss_after);
    cr_fact_int(f, "worked_examples", (long long)p->worked.n);
    cr_fact_int(f, "calibration_rows", p->calibration.n_rows);
    if (f->json)
        cr_json_floats(&f->j, "weights", p->weights, (size_t)p->n);
    else
        cr_bars(f, p->weights, p->n);
    cr_palette_close(p);
    return CR_OK;
}

/* One bar per weight, to the right of zero or to the left. */
void cr_bars(struct cr_facts *f, const float *w, int n)
{
    enum { HALF = 24 };
    float most = 0;
    bool negative = false;
    for (int i = 0; i < n; i++) {
        float a = w[i] < 0 ? -w[i] : w[i];
        most = a > most ? a : most;
        negative = negative || w[i] < 0;
    }
    for (int i = 0; i < n; i++) {
        char line[3 * (2 * HALF + 2) + 1];
        size_t at = 0;
        int len = most > 0 ? (int)((w[i] < 0 ? -w[i] : w[i]) / most * HALF + 0.5F) : 0;
        int zero = negative ? HALF : 0, from = w[i] < 0 ? zero - len : zero;
        for (int c = 0; c < from; c++)
            line[at++] = ' ';
        for (int c = 0; c < len; c++) {
            memcpy(line + at, "\xe2\x96\x88", 3);
            at += 3;
        }
        line[at] = '\0';
        cr_facts_line(f, "  %3d %+8.3f %s", i, (double)w[i], line);
    }
}

/* ---- which is which ---- */

static enum cr_status describe(struct cr_facts *f, const char *path, bool tensors,
                               enum cr_info_kind *kind, struct cr_error *err)
{
    struct stat sb;
    if (stat(path, &sb))
        return cr_error_errno(err, "cannot open", path);
    if (S_ISDIR(sb.st_mode)) {
        *kind = CR_INFO_PEFT;
        return peft_facts(f, path, err);
    }
    struct cr_map map;
    enum cr_status st = cr_map_open(&map, path, err);
    if (st)
        return st;
    bool gguf = map.size >= 4 && !memcmp(map.data, "GGUF", 4);
    size_t i = 0;
    while (i < map.size && i < 64 && strchr(" \t\r\n", map.data[i]) && map.data[i])
        i++;
    bool json = i < map.size && map.data[i] == '{';
    cr_map_close(&map);
    if (gguf)
        return gguf_facts(f, path, tensors, kind, err);
    *kind = CR_INFO_PALETTE;
    if (json)
        return palette_facts(f, path, err);
    return cr_error_set(err, CR_FORMAT, "%s: neither a GGUF file, a PEFT folder nor a palette",
                        path);
}

int cr_info_print(const struct cr_args *a, const char *path, unsigned kinds)
{
    struct cr_facts f;
    struct cr_error err;
    enum cr_info_kind kind = CR_INFO_MODEL;
    bool tensors = a->v[CR_OPT_LIST_TENSORS].opt && cr_arg_flag(a, CR_OPT_LIST_TENSORS);
    cr_facts_begin(&f, cr_arg_flag(a, CR_OPT_JSON));
    enum cr_status st = describe(&f, path, tensors, &kind, &err);
    if (!st && !(kinds & (1u << kind)))
        st = cr_error_set(&err, CR_FORMAT, "%s: is a %s; `crayon info` shows it", path,
                          kind_names[kind]);
    if (!st)
        return cr_facts_print(&f);
    cr_facts_drop(&f);
    return cr_fail(&err);
}

int cr_cli_info(const struct cr_args *a)
{
    char *path;
    struct cr_error err;
    const char *name = a->n_rest ? a->rest[0] : NULL;
    if (cr_model_locate(name, &path, &err))
        return cr_fail(&err);
    int code = cr_info_print(a, path, CR_INFO_ANY);
    cr_free(path);
    return code;
}
