/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PEFT directories: adapter_config.json and adapter_model.safetensors. Tensors are named
 * base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight; rows of q and k are in Hugging
 * Face order and are permuted for GGUF `llama` models. Pickles are never read.
 */
#include "adapt/json_text.h"
#include "adapt/lora_bind.h"
#include "adapt/peft_config.h"
#include "adapt/safetensors.h"
#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#ifdef CRAYON_JSON
enum { MAX_CONFIG = 1 << 20, SHOWN = 80, KEY_SIZE = 96 };

static const char *const hf_names[CR_LIN_COUNT] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

/* "base_model.model." + "model.layers.N.NAME" (a causal model) or "layers.N.NAME" (its trunk) +
 * ".lora_A.weight". bare: the second form. */
static bool parse_name(const char *name, bool *bare, uint64_t *layer, enum cr_linear *lin,
                       int *is_b)
{
    static const char front[] = "base_model.model.", trunk[] = "model.", list[] = "layers.";
    if (strncmp(name, front, sizeof front - 1) != 0)
        return false;
    name += sizeof front - 1;
    *bare = strncmp(name, trunk, sizeof trunk - 1) != 0;
    name += *bare ? 0 : sizeof trunk - 1;
    size_t used;
    if (strncmp(name, list, sizeof list - 1) != 0 ||
        !cr_lora_layer_number(name + sizeof list - 1, strlen(name) - sizeof list + 1, layer, &used))
        return false;
    name += sizeof list - 1 + used;
    char want[KEY_SIZE];
    for (int l = 0; l < CR_LIN_COUNT; l++)
        for (int b = 0; b < 2; b++) {
            snprintf(want, sizeof want, ".%s.lora_%c.weight", hf_names[l], b ? 'B' : 'A');
            if (strcmp(name, want) == 0) {
                *lin = (enum cr_linear)l;
                *is_b = b;
                return true;
            }
        }
    return false;
}

static const char *why_unknown(const char *name)
{
    if (strstr(name, "magnitude"))
        return "DoRA";
    if (strstr(name, "lm_head") || strstr(name, "embed"))
        return "LoRA on the embedding or the output head";
    return strstr(name, "bias") ? "bias" : "unknown target";
}

static void place_tensors(struct cr_lora_source *s, const struct cr_safetensors *st, bool *bare)
{
    for (size_t i = 0; i < st->n; i++) {
        const struct cr_st_tensor *t = &st->tensors[i];
        uint64_t layer;
        enum cr_linear lin;
        int is_b;
        bool b;
        if (!parse_name(t->name, &b, &layer, &lin, &is_b)) {
            cr_refuse(&s->bad, CR_UNSUPPORTED, "%.*s (%s)", SHOWN, t->name, why_unknown(t->name));
        } else if (t->type == CR_TYPE_END || t->n_dims != 2) {
            cr_refuse(&s->bad, CR_FORMAT, "%.*s (want a float matrix)", SHOWN, t->name);
        } else {
            *bare = b;
            cr_lora_place(
                s, layer, lin, is_b,
                (struct cr_lora_half){
                    t->data, t->type, t->shape[0], t->shape[1], {t->name, strlen(t->name)}});
        }
    }
}

/* Every module of the model: named by the config and found in the file, or neither. */
static void apply_config(struct cr_lora_source *s, cr_peft_config *c, bool bare)
{
    char key[KEY_SIZE];
    for (int i = 0; i < s->m->n_layers * CR_LIN_COUNT; i++) {
        struct cr_lora_slot *slot = &s->slots[i];
        int layer = i / CR_LIN_COUNT;
        snprintf(key, sizeof key, "%slayers.%d.%s", bare ? "" : "model.", layer,
                 hf_names[i % CR_LIN_COUNT]);
        bool found = slot->half[0].data || slot->half[1].data;
        bool target = cr_peft_config_targets(c, key, layer);
        if (target && !found)
            cr_refuse(&s->bad, CR_FORMAT, "%s (a target without tensors)", key);
        else if (found && !target)
            cr_refuse(&s->bad, CR_FORMAT, "%s (not among the target modules)", key);
        if (!found)
            continue;
        cr_peft_config_scale(c, key, &slot->want_rank, &slot->alpha);
        slot->rslora = cr_peft_config_rslora(c);
    }
    cr_peft_config_finish(c, s->path, &s->bad);
}

static enum cr_status bind_files(cr_adapter **out, struct cr_lora_source *s,
                                 const struct cr_safetensors *st, cr_peft_config *c,
                                 struct cr_error *err)
{
    bool bare = false;
    const char *hash = cr_safetensors_note(st, "crayon.base_hash");
    const char *name = cr_safetensors_note(st, "crayon.name");
    const char *task = cr_safetensors_note(st, "crayon.task_name");
    enum cr_status status = cr_lora_check_base(s->m, hash, hash ? strlen(hash) : 0, s->path, err);
    if (status != CR_OK)
        return status;
    place_tensors(s, st, &bare);
    apply_config(s, c, bare);
    const char *slash = strrchr(s->path, '/');
    status = cr_lora_bind(s, name ? name : slash && slash[1] ? slash + 1 : s->path, out, err);
    if (status != CR_OK)
        return status;
    char *copy = task ? cr_strdup(task) : NULL;
    if (copy) {
        cr_free((*out)->task_name);
        (*out)->task_name = copy;
    }
    uint64_t rank;
    double alpha;
    cr_peft_config_scale(c, "", &rank, &alpha);
    (*out)->alpha = (float)alpha;
    return CR_OK;
}

/* Maps the weights; a directory that has only a pickle is refused by that name. */
static enum cr_status open_weights(struct cr_map *map, const char *dir, struct cr_error *err)
{
    char *path = cr_asprintf("%s/adapter_model.safetensors", dir);
    char *pickle = cr_asprintf("%s/adapter_model.bin", dir);
    enum cr_status status = CR_NO_MEMORY;
    struct stat st;
    if (!path || !pickle)
        cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", dir);
    else if (stat(path, &st) != 0 && stat(pickle, &st) == 0)
        status = cr_error_set(err, CR_UNSUPPORTED,
                              "%s: a pickle can run code and is never read; save the adapter with "
                              "safe_serialization",
                              pickle);
    else
        status = cr_map_open(map, path, err);
    cr_free(pickle);
    cr_free(path);
    return status;
}

enum cr_status cr_adapter_open_peft(cr_adapter **out, const cr_model *m, const char *dir,
                                    struct cr_error *err)
{
    *out = NULL;
    struct cr_lora_source s = {.m = m, .path = dir, .hf_rows = true};
    struct cr_map map = {0};
    struct cr_safetensors st = {0};
    cr_peft_config *config = NULL;
    char *text = NULL;
    size_t len;
    char *path = cr_asprintf("%s/adapter_config.json", dir);
    s.slots = cr_alloc0((size_t)m->n_layers * CR_LIN_COUNT, sizeof *s.slots);
    enum cr_status status = CR_OK;
    if (!path || !s.slots)
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", dir);
    if (status == CR_OK)
        status = cr_file_read(path, MAX_CONFIG, &text, &len, err);
    if (status == CR_OK)
        status = cr_peft_config_parse(&config, text, len, dir, &s.bad, err);
    if (status == CR_OK)
        status = open_weights(&map, dir, err);
    if (status == CR_OK)
        status = cr_safetensors_parse(&st, map.data, map.size, dir, err);
    if (status == CR_OK)
        status = bind_files(out, &s, &st, config, err);
    cr_safetensors_deinit(&st);
    cr_map_close(&map);
    cr_peft_config_free(config);
    cr_free(text);
    cr_free(s.slots);
    cr_free(path);
    return status;
}

/* ---- writing ---- */

/* The lists and patterns of a config for adapter a: r and lora_alpha of the first pair, patterns
 * with full module names for the others. alpha = scale * rank is exact in double, so reading gives
 * the same scale. */
static json_t *make_config(const cr_adapter *a)
{
    json_t *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    int count[CR_LIN_COUNT] = {0}, r = 0;
    double alpha = 0;
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++)
        count[i % CR_LIN_COUNT] += a->pairs[i].rank > 0;
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_adapter_pair *p = &a->pairs[i];
        int lin = i % CR_LIN_COUNT, layer = i / CR_LIN_COUNT;
        if (p->rank == 0)
            continue;
        char key[KEY_SIZE];
        snprintf(key, sizeof key, "model.layers.%d.%s", layer, hf_names[lin]);
        double want = (double)p->scale * p->rank;
        if (r == 0) {
            r = p->rank;
            alpha = want;
        }
        if (count[lin] < a->n_layers) /* some layers only: name the modules in full */
            json_array_append_new(targets, json_string(key));
        else if (layer == 0)
            json_array_append_new(targets, json_string(strchr(hf_names[lin], '.') + 1));
        if (p->rank != r)
            json_object_set_new(ranks, key, json_integer(p->rank));
        if (want != alpha)
            json_object_set_new(alphas, key, json_real(want));
    }
    return json_pack("{s:s,s:s,s:n,s:n,s:b,s:i,s:f,s:f,s:s,s:b,s:b,s:b,s:b,s:n,s:o,s:o,s:o}",
                     "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path",
                     "revision", "inference_mode", 1, "r", r, "lora_alpha", alpha, "lora_dropout",
                     0.0, "bias", "none", "fan_in_fan_out", 0, "use_rslora", 0, "use_dora", 0,
                     "init_lora_weights", 1, "modules_to_save", "target_modules", targets,
                     "rank_pattern", ranks, "alpha_pattern", alphas);
}

static enum cr_status write_config(const cr_adapter *a, const char *dir, struct cr_error *err)
{
    json_t *config = make_config(a);
    char *path = cr_asprintf("%s/adapter_config.json", dir);
    struct cr_buf text;
    cr_buf_init(&text, MAX_CONFIG);
    enum cr_status status;
    if (!path || !config || !cr_json_text(&text, config, JSON_INDENT(2) | JSON_REAL_PRECISION(17)))
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", dir);
    else
        status = cr_file_write(path, text.data, text.len, err);
    cr_buf_deinit(&text);
    cr_free(path);
    json_decref(config);
    return status;
}

/* One half as a tensor of `type` in Hugging Face row order at t->data, which has room. */
static bool fill_tensor(struct cr_st_tensor *t, const cr_adapter *a, int i, int is_b, uint32_t type,
                        uint8_t *to)
{
    const struct cr_adapter_pair *p = &a->pairs[i];
    enum cr_linear lin = (enum cr_linear)(i % CR_LIN_COUNT);
    const struct cr_matrix *w = cr_model_linear(a->model, i / CR_LIN_COUNT, lin);
    size_t rows = (size_t)(is_b ? w->n_out : p->rank), cols = (size_t)(is_b ? p->rank : w->n_in);
    size_t row_bytes = cr_row_bytes(type, cols);
    const float *from = is_b ? p->b : p->a;
    bool permuted = is_b && cr_lora_is_permuted(a->model, lin), ok = true;
    for (size_t r = 0; r < rows && ok; r++) {
        size_t hf = permuted ? cr_lora_hf_row(r, a->model->head_dim) : r;
        ok = cr_lora_encode(a->model, type, to + hf * row_bytes, from + r * cols, cols);
    }
    *t = (struct cr_st_tensor){
        .type = type, .n_dims = 2, .shape = {rows, cols}, .data = to, .bytes = rows * row_bytes};
    t->name = cr_asprintf("base_model.model.model.layers.%d.%s.lora_%c.weight", i / CR_LIN_COUNT,
                          hf_names[lin], is_b ? 'B' : 'A');
    return ok;
}

static enum cr_status write_weights(const cr_adapter *a, const char *dir, uint32_t type,
                                    struct cr_error *err)
{
    size_t bytes = 0, n = 0;
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(a->model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        bytes += cr_row_bytes(type, (size_t)a->pairs[i].rank * (size_t)(w->n_in + w->n_out));
    }
    char *hash = (char *)(uintptr_t)cr_model_hash((cr_model *)(uintptr_t)a->model);
    struct cr_st_note notes[4] = {{(char *)"format", (char *)"pt"},
                                  {(char *)"crayon.base_hash", hash},
                                  {(char *)"crayon.name", a->name},
                                  {(char *)"crayon.task_name", a->task_name}};
    struct cr_safetensors st = {.notes = notes, .n_notes = 4};
    char *path = cr_asprintf("%s/adapter_model.safetensors", dir);
    uint8_t *data = cr_alloc(bytes, 1), *to = data;
    st.tensors = cr_alloc0(2 * (size_t)a->n_pairs, sizeof *st.tensors);
    enum cr_status status = CR_OK;
    if (!path || !data || !st.tensors)
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", dir);
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT && status == CR_OK; i++)
        for (int is_b = 0; is_b < 2 && a->pairs[i].rank && status == CR_OK; is_b++) {
            struct cr_st_tensor *t = &st.tensors[n++];
            if (!fill_tensor(t, a, i, is_b, type, to))
                status = cr_error_set(
                    err, CR_INVALID, "%s: blk.%d.%s has values that do not fit %s", dir,
                    i / CR_LIN_COUNT, cr_linear_names[i % CR_LIN_COUNT], cr_type_info(type)->name);
            else if (!t->name)
                status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", dir);
            to += t->bytes;
        }
    st.n = n;
    if (status == CR_OK)
        status = cr_safetensors_write(&st, path, err);
    for (size_t i = 0; i < n; i++)
        cr_free(st.tensors[i].name);
    cr_free(st.tensors);
    cr_free(data);
    cr_free(path);
    return status;
}

enum cr_status cr_adapter_write_peft(const cr_adapter *a, const cr_model *m, const char *dir,
                                     uint32_t type, struct cr_error *err)
{
    if (a->model != m || (type != CR_F32 && type != CR_F16))
        return cr_error_set(err, CR_INVALID, "%s: %s", dir,
                            a->model != m ? "the adapter was opened for another model"
                                          : "want type F32 or F16");
    if (mkdir(dir, 0755) != 0 && errno != EEXIST)
        return cr_error_errno(err, "cannot create", dir);
    enum cr_status status = write_weights(a, dir, type, err);
    return status == CR_OK ? write_config(a, dir, err) : status;
}

#else /* without CRAYON_JSON */

enum cr_status cr_adapter_open_peft(cr_adapter **out, const cr_model *m, const char *dir,
                                    struct cr_error *err)
{
    (void)m;
    *out = NULL;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: PEFT directories: built without JSON", dir);
}

enum cr_status cr_adapter_write_peft(const cr_adapter *a, const cr_model *m, const char *dir,
                                     uint32_t type, struct cr_error *err)
{
    (void)a;
    (void)m;
    (void)type;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: PEFT directories: built without JSON", dir);
}

#endif
