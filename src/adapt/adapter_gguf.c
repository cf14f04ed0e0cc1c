/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GGUF LoRA files as llama.cpp reads and writes them: general.type "adapter", adapter.type "lora",
 * one adapter.lora.alpha for all, tensors blk.N.NAME.weight.lora_a ne = [n_in, rank] and .lora_b
 * ne = [rank, n_out], scale = alpha / rank. Rows are in GGUF order already.
 */
#include "adapt/lora_bind.h"
#include "base/log.h"
#include "base/mem.h"
#include "model/gguf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SHOWN = 80 };

static int shown(struct cr_str s)
{
    return (int)(s.n < SHOWN ? s.n : SHOWN);
}

static bool starts(struct cr_str s, const char *z)
{
    size_t n = strlen(z);
    return s.n >= n && memcmp(s.p, z, n) == 0;
}

/* A key that must hold exactly `want`. */
static enum cr_status expect_str(const cr_gguf *g, const char *path, const char *key,
                                 const char *want, struct cr_error *err)
{
    struct cr_str got;
    enum cr_status status = cr_gguf_str(g, key, true, &got, err);
    if (status != CR_OK)
        return status;
    if (!cr_str_eq(got, want))
        return cr_error_set(err, CR_FORMAT, "%s: %s: want \"%s\", file has \"%.*s\"", path, key,
                            want, shown(got), got.p);
    return CR_OK;
}

static void place_tensor(struct cr_lora_source *s, const struct cr_tensor *t)
{
    uint64_t layer;
    enum cr_linear lin;
    int is_b;
    const struct cr_type_info *type = cr_type_info(t->type);
    if (!cr_lora_gguf_name(t->name, &layer, &lin, &is_b))
        cr_refuse(&s->bad, CR_UNSUPPORTED, "%.*s (%s)", shown(t->name), t->name.p,
                  starts(t->name, "token_embd") || starts(t->name, "output.")
                      ? "LoRA on the embedding or the output head"
                      : "unknown target");
    else if (!type->usable)
        cr_refuse(&s->bad, CR_UNSUPPORTED, "%.*s (type %s)", shown(t->name), t->name.p,
                  type->name ? type->name : "unknown");
    else if (t->ne[2] != 1 || t->ne[3] != 1)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (%u dimensions, want 2)", shown(t->name), t->name.p,
                  t->n_dims);
    else
        cr_lora_place(s, layer, lin, is_b,
                      (struct cr_lora_half){t->data, t->type, t->ne[1], t->ne[0], t->name});
}

/* The keys: kind of file, architecture, base model, and what we cannot honour. */
static enum cr_status check_keys(const cr_gguf *g, const cr_model *m, const char *path,
                                 struct cr_error *err)
{
    enum cr_status status = expect_str(g, path, "general.type", "adapter", err);
    if (status == CR_OK)
        status = expect_str(g, path, "adapter.type", "lora", err);
    if (status == CR_OK)
        status = expect_str(g, path, "general.architecture", m->info.arch, err);
    struct cr_str hash = {NULL, 0}, prefix = {NULL, 0};
    if (status == CR_OK)
        status = cr_gguf_str(g, "crayon.base_hash", false, &hash, err);
    if (status == CR_NOT_FOUND || (status == CR_OK && hash.p))
        status = cr_lora_check_base(m, hash.p, hash.n, path, err);
    if (status != CR_OK)
        return status;
    if (cr_gguf_find(g, "adapter.alora.invocation_tokens"))
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: adapter.alora.invocation_tokens: adapters that start at a token "
                            "are not supported",
                            path);
    status = cr_gguf_str(g, "adapter.lora.prompt_prefix", false, &prefix, err);
    if (status == CR_OK && prefix.n)
        cr_log(CR_LOG_WARN, "%s: wants prompts to begin with \"%.*s\"; that is left to you", path,
               shown(prefix), prefix.p);
    return status == CR_NOT_FOUND ? CR_OK : status;
}

/* A string key as a fresh C string, "" when absent; NULL when out of memory. */
static char *dup_key(const cr_gguf *g, const char *key)
{
    struct cr_str s = {"", 0};
    (void)!cr_gguf_str(g, key, false, &s, NULL);
    return cr_strndup(s.p, s.n);
}

static enum cr_status bind_file(cr_adapter **out, const cr_gguf *g, struct cr_lora_source *s,
                                struct cr_error *err)
{
    float alpha = 0;
    enum cr_status status = check_keys(g, s->m, s->path, err);
    if (status == CR_OK)
        status = cr_gguf_f32(g, "adapter.lora.alpha", true, &alpha, err);
    if (status != CR_OK)
        return status;
    if (!isfinite(alpha) || alpha == 0)
        cr_refuse(&s->bad, CR_FORMAT, "adapter.lora.alpha is %g", (double)alpha);
    for (size_t i = 0; i < (size_t)s->m->n_layers * CR_LIN_COUNT; i++)
        s->slots[i].alpha = isfinite(alpha) && alpha != 0 ? (double)alpha : 1; /* said once */
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++)
        place_tensor(s, cr_gguf_tensor_at(g, i));
    char *name = dup_key(g, "general.name"), *task = dup_key(g, "adapter.lora.task_name");
    if (name && task)
        status = cr_lora_bind(s, name, out, err);
    else
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", s->path);
    cr_free(name);
    if (status != CR_OK) {
        cr_free(task);
        return status;
    }
    cr_free((*out)->task_name);
    (*out)->task_name = task;
    (*out)->alpha = alpha;
    return CR_OK;
}

enum cr_status cr_adapter_open_gguf(cr_adapter **out, const cr_model *m, const char *path,
                                    struct cr_error *err)
{
    *out = NULL;
    cr_gguf *g;
    enum cr_status status = cr_gguf_open(&g, path, err);
    if (status != CR_OK)
        return status;
    struct cr_lora_source s = {.m = m, .path = path};
    s.slots = cr_alloc0((size_t)m->n_layers * CR_LIN_COUNT, sizeof *s.slots);
    if (s.slots)
        status = bind_file(out, g, &s, err);
    else
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    cr_free(s.slots);
    cr_gguf_close(g);
    return status;
}

/* The one alpha of a GGUF file: what the first pair needs, scale = alpha / rank. */
static float common_alpha(const cr_adapter *a)
{
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++)
        if (a->pairs[i].rank)
            return (float)((double)a->pairs[i].scale * a->pairs[i].rank);
    return 1;
}

/* A and B of pair i as `type` into the writer, at *to. */
static bool put_pair(cr_gguf_writer *w, const cr_adapter *a, int i, float alpha, uint32_t type,
                     uint8_t **to)
{
    const struct cr_adapter_pair *p = &a->pairs[i];
    enum cr_linear lin = (enum cr_linear)(i % CR_LIN_COUNT);
    const struct cr_matrix *m = cr_model_linear(a->model, i / CR_LIN_COUNT, lin);
    uint64_t rank = (uint64_t)p->rank, n_in = (uint64_t)m->n_in, n_out = (uint64_t)m->n_out;
    uint64_t ne_a[2] = {n_in, rank}, ne_b[2] = {rank, n_out};
    float given = alpha / (float)p->rank;
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s.weight.lora_a", i / CR_LIN_COUNT, cr_linear_names[lin]);
    cr_gguf_put_tensor(w, name, type, 2, ne_a, *to);
    bool ok = cr_lora_encode(a->model, type, *to, p->a, rank * n_in);
    *to += cr_row_bytes(type, rank * n_in);
    name[strlen(name) - 1] = 'b';
    cr_gguf_put_tensor(w, name, type, 2, ne_b, *to);
    if (given == p->scale) {
        ok = ok && cr_lora_encode(a->model, type, *to, p->b, rank * n_out);
    } else {
        for (uint64_t o = 0; o < n_out && ok; o++) { /* fold what alpha / rank does not say */
            float row[CR_LORA_MAX_RANK];
            for (uint64_t j = 0; j < rank; j++)
                row[j] = (float)((double)p->b[o * rank + j] * p->scale / given);
            ok = cr_lora_encode(a->model, type, *to + o * cr_row_bytes(type, rank), row, rank);
        }
    }
    *to += cr_row_bytes(type, rank * n_out);
    return ok;
}

enum cr_status cr_adapter_write_gguf(const cr_adapter *a, const cr_model *m, const char *path,
                                     uint32_t type, struct cr_error *err)
{
    if (a->model != m || (type != CR_F32 && type != CR_F16))
        return cr_error_set(err, CR_INVALID, "%s: %s", path,
                            a->model != m ? "the adapter was opened for another model"
                                          : "want type F32 or F16");
    size_t bytes = 0;
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        bytes += cr_row_bytes(type, (size_t)a->pairs[i].rank * (size_t)(w->n_in + w->n_out));
    }
    uint8_t *data = cr_alloc(bytes, 1), *to = data;
    cr_gguf_writer *w = cr_gguf_writer_new();
    enum cr_status status = CR_OK;
    if (!data || !w) {
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
        goto fail;
    }
    float alpha = common_alpha(a);
    cr_gguf_put_str(w, "general.architecture", m->info.arch);
    cr_gguf_put_str(w, "general.type", "adapter");
    cr_gguf_put_str(w, "general.name", a->name);
    cr_gguf_put_u32(w, "general.file_type", type == CR_F32 ? 0 : 1);
    cr_gguf_put_str(w, "adapter.type", "lora");
    cr_gguf_put_f32(w, "adapter.lora.alpha", alpha);
    if (*a->task_name)
        cr_gguf_put_str(w, "adapter.lora.task_name", a->task_name);
    cr_gguf_put_str(w, "crayon.base_hash", cr_model_hash((cr_model *)(uintptr_t)m));
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT && status == CR_OK; i++)
        if (a->pairs[i].rank && !put_pair(w, a, i, alpha, type, &to))
            status = cr_error_set(err, CR_INVALID, "%s: blk.%d.%s has values that do not fit %s",
                                  path, i / CR_LIN_COUNT, cr_linear_names[i % CR_LIN_COUNT],
                                  cr_type_info(type)->name);
    if (status == CR_OK)
        status = cr_gguf_write(w, path, err);
fail:
    cr_gguf_writer_free(w);
    cr_free(data);
    return status;
}
