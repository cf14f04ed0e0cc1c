/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pool files: GGUF in, GGUF out (the keys and tensors are listed in pool.h). All tensors are
 * accounted for and all values looked at once, when the pool is opened; B then stays in the mapped
 * file. The identity of a pool is a SHA-256 over the header and samples of every tensor.
 */
#include "adapt/adapter.h"
#include "adapt/lora_bind.h"
#include "adapt/pool.h"
#include "base/mem.h"
#include "base/sha256.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

enum { SHOWN = 80, SAMPLE = 512 };
static const float UNIT_TOLERANCE = 0.01f; /* of the length of a prototype */

static const char *const form_names[] = {"shared", "separate"};
static const char *const kind_names[] = {"library", "centroid", "lora"};

static enum cr_status no_memory(const char *path, struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
}

/* ---- keys ---- */

static enum cr_status read_choice(const cr_gguf *g, const char *path, const char *key,
                                  const char *const *names, int n, int *out, struct cr_error *err)
{
    struct cr_str s;
    enum cr_status status = cr_gguf_str(g, key, true, &s, err);
    if (status != CR_OK)
        return status;
    for (int i = 0; i < n; i++)
        if (cr_str_eq(s, names[i])) {
            *out = i;
            return CR_OK;
        }
    return cr_error_set(err, CR_UNSUPPORTED, "%s: %s is \"%.*s\", want %s or %s", path, key,
                        (int)(s.n < SHOWN ? s.n : SHOWN), s.p, names[0], names[n - 1]);
}

/* UTF-8 without NUL, as a C string. */
static enum cr_status copy_text(struct cr_str s, const char *path, const char *what, char **out,
                                struct cr_error *err)
{
    utf8proc_int32_t c = 0;
    for (size_t i = 0; i < s.n;) {
        utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)s.p + i, (utf8proc_ssize_t)(s.n - i), &c);
        if (n <= 0 || c == 0)
            return cr_error_set_at(err, CR_FORMAT, i, "%s: %s is not UTF-8 text", path, what);
        i += (size_t)n;
    }
    *out = cr_strndup(s.p, s.n);
    return *out ? CR_OK : no_memory(path, err);
}

/* A text key that may be absent; replaces *out. */
static enum cr_status read_text(const cr_gguf *g, const char *path, const char *key, char **out,
                                struct cr_error *err)
{
    struct cr_str s;
    enum cr_status status = cr_gguf_str(g, key, false, &s, err);
    if (status == CR_NOT_FOUND)
        return CR_OK;
    char *text = NULL;
    if (status == CR_OK)
        status = copy_text(s, path, key, &text, err);
    if (status == CR_OK) {
        cr_free(*out);
        *out = text;
    }
    return status;
}

static enum cr_status expect_text(const cr_gguf *g, const char *path, const char *key,
                                  const char *want, struct cr_error *err)
{
    struct cr_str s;
    enum cr_status status = cr_gguf_str(g, key, true, &s, err);
    if (status == CR_OK && !cr_str_eq(s, want))
        status = cr_error_set(err, CR_FORMAT, "%s: %s: want \"%s\", file has \"%.*s\"", path, key,
                              want, (int)(s.n < SHOWN ? s.n : SHOWN), s.p);
    return status;
}

struct shape { /* what cr_pool_new needs */
    int form, kind;
    uint32_t n, rank, version;
    float alpha;
    bool target[CR_LIN_COUNT];
};

static enum cr_status read_shape(const cr_gguf *g, cr_model *m, const char *path, struct shape *s,
                                 struct cr_error *err)
{
    struct cr_str hash;
    enum cr_status status = expect_text(g, path, "general.type", "crayon.pool", err);
    if (status == CR_OK)
        status = cr_gguf_u32(g, "crayon.pool.version", true, &s->version, err);
    if (status == CR_OK && s->version != 1 && s->version != 2)
        status = cr_error_set(err, CR_UNSUPPORTED,
                              "%s: pool version %u, this program reads 1 and 2", path, s->version);
    if (status == CR_OK)
        status = expect_text(g, path, "general.architecture", m->info.arch, err);
    if (status == CR_OK)
        status = cr_gguf_str(g, "crayon.pool.base_hash", true, &hash, err);
    if (status == CR_OK)
        status = cr_lora_check_base(m, hash.p, hash.n, path, err);
    if (status == CR_OK)
        status = read_choice(g, path, "crayon.pool.form", form_names, 2, &s->form, err);
    if (status == CR_OK)
        status = read_choice(g, path, "crayon.pool.kind", kind_names, 3, &s->kind, err);
    if (status == CR_OK)
        status = cr_gguf_u32(g, "crayon.pool.n", true, &s->n, err);
    if (status == CR_OK)
        status = cr_gguf_u32(g, "crayon.pool.rank", true, &s->rank, err);
    if (status == CR_OK)
        status = cr_gguf_f32(g, "crayon.pool.alpha", true, &s->alpha, err);
    if (status != CR_OK)
        return status;
    uint32_t width = s->form == CR_POOL_SEPARATE ? s->n : 1;
    if (s->n < 1 || s->n > CR_POOL_MAX_N || s->rank < 1 || s->rank > CR_LORA_MAX_RANK / width)
        return cr_error_set(err, CR_FORMAT,
                            "%s: %u adapters of rank %u; want 1 to %d, rank 1 to %u", path, s->n,
                            s->rank, CR_POOL_MAX_N, CR_LORA_MAX_RANK / width);
    if (!isfinite(s->alpha) || s->alpha == 0 || fabsf(s->alpha) > 1e6f)
        return cr_error_set(err, CR_FORMAT, "%s: crayon.pool.alpha is %g", path, (double)s->alpha);
    return CR_OK;
}

static enum cr_status read_training(const cr_gguf *g, cr_pool *p, struct cr_error *err)
{
    static const char *const modes[] = {"soft", "hard"};
    int mode = 0;
    enum cr_status status = read_text(g, p->path, "general.name", &p->name, err);
    if (status == CR_OK)
        status = read_text(g, p->path, "crayon.pool.command", &p->command, err);
    if (status == CR_OK && p->kind == CR_POOL_CENTROID)
        status = read_choice(g, p->path, "crayon.pool.mode", modes, 2, &mode, err);
    p->hard = mode == 1;
    const struct cr_gguf_kv *seed = cr_gguf_find(g, "crayon.pool.seed");
    if (status == CR_OK)
        status = cr_gguf_u32(g, "crayon.pool.steps", false, &p->steps, err);
    if (status == CR_OK || status == CR_NOT_FOUND)
        status = cr_gguf_u32(g, "crayon.pool.worked", false, &p->worked, err);
    if (status == CR_OK || status == CR_NOT_FOUND)
        status = cr_gguf_f32(g, "crayon.pool.loss", false, &p->loss, err);
    if (seed && seed->type == CR_GGUF_U64)
        memcpy(&p->seed, seed->data, sizeof p->seed);
    return status == CR_NOT_FOUND ? CR_OK : status;
}

/* ---- adapters ---- */

static bool is_index_tensor(struct cr_str name)
{
    static const char *const names[] = {"index.qx.mean",      "index.qx.proto",
                                        "index.middle.mean",  "index.middle.std",
                                        "index.middle.proto", "index.weights"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (cr_str_eq(name, names[i]))
            return true;
    return false;
}

struct found { /* [n_layers * CR_LIN_COUNT] */
    const struct cr_tensor *half[2];
};

/* NULL, or the types that this version has. */
static const char *refuse_type(const struct shape *s, int is_b, uint32_t type)
{
    const bool floats = type == CR_F16 || type == CR_F32;
    if (s->version == 1)
        return floats ? NULL : "F16 or F32";
    if (type == CR_Q8_0 || (floats && !is_b))
        return NULL;
    return is_b ? "Q8_0" : "Q8_0, F16 or F32";
}

/* Every tensor of the file finds its slot, or is refused. */
static void place_tensors(const cr_gguf *g, const cr_model *m, struct shape *s, struct found *found,
                          struct cr_refusals *bad)
{
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        int is_b, n = (int)(t->name.n < SHOWN ? t->name.n : SHOWN);
        uint64_t layer;
        enum cr_linear lin;
        if (is_index_tensor(t->name))
            continue;
        if (!cr_lora_gguf_name(t->name, &layer, &lin, &is_b) || layer >= (uint64_t)m->n_layers) {
            cr_refuse(bad, CR_FORMAT, "%.*s (unknown tensor)", n, t->name.p);
            continue;
        }
        const struct cr_matrix *w = cr_model_linear(m, 0, lin);
        uint64_t sets = s->form == CR_POOL_SEPARATE || is_b ? s->n : 1;
        uint64_t ne0 = is_b ? s->rank : (uint64_t)w->n_in;
        uint64_t ne1 = is_b ? (uint64_t)w->n_out : s->rank;
        const char *want = refuse_type(s, is_b, t->type);
        if (is_b && s->version == 2) {
            ne0 *= ne1;
            ne1 = sets;
            sets = 1;
        }
        if (want)
            cr_refuse(bad, CR_UNSUPPORTED, "%.*s (want %s)", n, t->name.p, want);
        else if (t->ne[0] != ne0 || t->ne[1] != ne1 || t->ne[2] != sets || t->ne[3] != 1)
            cr_refuse(bad, CR_FORMAT, "%.*s (%llu x %llu x %llu, want %llu x %llu x %llu)", n,
                      t->name.p, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                      (unsigned long long)t->ne[2], (unsigned long long)ne0,
                      (unsigned long long)ne1, (unsigned long long)sets);
        found[layer * CR_LIN_COUNT + lin].half[is_b] = t;
        s->target[lin] = true;
    }
}

/* A target has A and B in every layer, all B of one type. */
static void check_complete(const cr_model *m, const struct shape *s, const struct found *found,
                           uint32_t *b_type, struct cr_refusals *bad)
{
    int n_targets = 0;
    *b_type = CR_TYPE_END;
    for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++) {
        if (!s->target[i % CR_LIN_COUNT])
            continue;
        n_targets++;
        for (int b = 0; b < 2; b++)
            if (!found[i].half[b])
                cr_refuse(bad, CR_FORMAT, "blk.%d.%s.weight.lora_%c (missing)", i / CR_LIN_COUNT,
                          cr_linear_names[i % CR_LIN_COUNT], b ? 'b' : 'a');
        const struct cr_tensor *b = found[i].half[1];
        if (b && *b_type == CR_TYPE_END)
            *b_type = b->type;
        if (b && b->type != *b_type)
            cr_refuse(bad, CR_FORMAT, "%.*s (%s, the others %s)",
                      (int)(b->name.n < SHOWN ? b->name.n : SHOWN), b->name.p,
                      cr_type_info(b->type)->name, cr_type_info(*b_type)->name);
    }
    if (n_targets == 0)
        cr_refuse(bad, CR_FORMAT, "no adapter tensors");
}

/* No scale is NaN or infinity. */
static bool blocks_finite(const struct cr_block_q8_0 *b, size_t n)
{
    bool bad = false;
    for (size_t i = 0; i < n; i++)
        bad |= (b[i].d & 0x7c00) == 0x7c00;
    return !bad;
}

/* No NaN or infinity: an exponent of all ones. Four or two values at a time. */
static bool all_finite(uint32_t type, const void *data, size_t bytes)
{
    if (type == CR_Q8_0)
        return blocks_finite(data, bytes / sizeof(struct cr_block_q8_0));
    const uint64_t mask = type == CR_F16 ? 0x7c007c007c007c00u : 0x7f8000007f800000u;
    const uint64_t one = type == CR_F16 ? 0x0400040004000400u : 0x0080000000800000u;
    const uint64_t top = type == CR_F16 ? 0x8000800080008000u : 0x8000000080000000u;
    uint64_t bad = 0, v;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        memcpy(&v, (const uint8_t *)data + i, 8);
        bad |= ((v & mask) + one) & top;
    }
    v = 0;
    memcpy(&v, (const uint8_t *)data + i, bytes - i);
    bad |= ((v & mask) + one) & top;
    return bad == 0;
}

struct load_job {
    cr_pool *p;
    const struct found *found;
    atomic_int bad; /* slot * 2 + half + 1 of a tensor with NaN or infinity */
};

/* A of a slot to float32, B left where it is; both looked at. */
static void load_pairs(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct load_job *job = ud;
    for (size_t i = begin; i < end; i++) {
        const struct cr_tensor *a = job->found[i].half[0], *b = job->found[i].half[1];
        if (!a)
            continue;
        if (!all_finite(a->type, a->data, a->bytes))
            atomic_store(&job->bad, (int)i * 2 + 1);
        if (!all_finite(b->type, b->data, b->bytes))
            atomic_store(&job->bad, (int)i * 2 + 2);
        job->p->model->k->dequantize[a->type](job->p->pairs[i].a, a->data,
                                              (size_t)(a->ne[0] * a->ne[1] * a->ne[2]));
        job->p->pairs[i].b_file = b->data;
    }
}

/* The pool with its A in memory and B in the file. */
static enum cr_status load_adapters(cr_pool **out, const cr_gguf *g, cr_model *m, const char *path,
                                    struct shape *s, struct cr_error *err)
{
    size_t n_slots = (size_t)m->n_layers * CR_LIN_COUNT;
    struct found *found = cr_alloc0(n_slots, sizeof *found);
    if (!found)
        return no_memory(path, err);
    struct cr_refusals bad = {0};
    uint32_t b_type;
    place_tensors(g, m, s, found, &bad);
    check_complete(m, s, found, &b_type, &bad);
    enum cr_status status = cr_refusals_report(&bad, path, err);
    if (status == CR_OK)
        status =
            cr_pool_new_without_b(out, m, (enum cr_pool_form)s->form, (enum cr_pool_kind)s->kind,
                                  (int)s->n, (int)s->rank, s->alpha, s->target, err);
    if (status == CR_OK) {
        struct load_job job = {.p = *out, .found = found};
        (*out)->b_type = b_type;
        cr_threads_run_dynamic(m->threads, n_slots, 1, load_pairs, &job);
        int at = atomic_load(&job.bad) - 1;
        if (at >= 0)
            status = cr_error_set(err, CR_FORMAT,
                                  "%s: blk.%d.%s.weight.lora_%c holds NaN or "
                                  "infinity",
                                  path, at / 2 / CR_LIN_COUNT,
                                  cr_linear_names[at / 2 % CR_LIN_COUNT], at % 2 ? 'b' : 'a');
    }
    cr_free(found);
    return status;
}

/* ---- index ---- */

/* A float32 tensor of the index, [rows, cols], all values finite. */
static enum cr_status read_floats(const cr_gguf *g, const char *path, const char *name,
                                  uint64_t cols, uint64_t rows, float *out, struct cr_error *err)
{
    const struct cr_tensor *t = cr_gguf_tensor(g, name);
    if (!t)
        return cr_error_set(err, CR_FORMAT, "%s: tensor %s is missing", path, name);
    if (t->type != CR_F32 || t->ne[0] != cols || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1)
        return cr_error_set(err, CR_FORMAT,
                            "%s: %s: want F32 %llu x %llu, file has type %u, "
                            "%llu x %llu",
                            path, name, (unsigned long long)cols, (unsigned long long)rows, t->type,
                            (unsigned long long)t->ne[0], (unsigned long long)t->ne[1]);
    if (!all_finite(CR_F32, t->data, t->bytes))
        return cr_error_set(err, CR_FORMAT, "%s: %s holds NaN or infinity", path, name);
    memcpy(out, t->data, t->bytes);
    return CR_OK;
}

/* [T] texts of an array key; absent: all "". */
static enum cr_status read_texts(const cr_gguf *g, const char *path, const char *key, int n,
                                 char **out, struct cr_error *err)
{
    const struct cr_gguf_kv *kv = cr_gguf_find(g, key);
    if (kv &&
        (kv->type != CR_GGUF_ARRAY || kv->elem_type != CR_GGUF_STRING || kv->n != (uint64_t)n))
        return cr_error_set(err, CR_FORMAT, "%s: %s: want %d texts, file has %llu values", path,
                            key, n, (unsigned long long)kv->n);
    const uint8_t *cursor = NULL;
    for (int i = 0; i < n; i++) {
        struct cr_str s = kv ? cr_gguf_next_str(kv, &cursor) : (struct cr_str){"", 0};
        enum cr_status status = copy_text(s, path, key, &out[i], err);
        if (status != CR_OK)
            return status;
    }
    return CR_OK;
}

static enum cr_status read_rows(const cr_gguf *g, cr_pool *p, struct cr_error *err)
{
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "crayon.pool.rows");
    if (!kv)
        return CR_OK;
    if (kv->type != CR_GGUF_ARRAY || kv->elem_type != CR_GGUF_U32 ||
        kv->n != (uint64_t)p->index.n_entries)
        return cr_error_set(err, CR_FORMAT, "%s: crayon.pool.rows: want %d unsigned numbers",
                            p->path, p->index.n_entries);
    memcpy(p->index.rows, kv->data, (size_t)kv->n * sizeof *p->index.rows);
    return CR_OK;
}

/* Rows of length 1. */
static enum cr_status check_unit(const char *path, const char *name, const float *x, size_t rows,
                                 size_t cols, struct cr_error *err)
{
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t i = 0; i < cols; i++)
            sum += (double)x[r * cols + i] * x[r * cols + i];
        if (!(fabs(sqrt(sum) - 1) <= UNIT_TOLERANCE))
            return cr_error_set(err, CR_FORMAT, "%s: %s: row %zu has length %g, want 1", path, name,
                                r, sqrt(sum));
    }
    return CR_OK;
}

static enum cr_status read_tau(const cr_gguf *g, const cr_pool *p, const char *key, float *out,
                               struct cr_error *err)
{
    bool required = p->kind == CR_POOL_CENTROID;
    enum cr_status status = cr_gguf_f32(g, key, required, out, err);
    if (status == CR_NOT_FOUND && !required)
        return CR_OK;
    if (status == CR_OK && !(*out > 0 && isfinite(*out)))
        status = cr_error_set(err, CR_FORMAT, "%s: %s is %g, want more than 0", p->path, key,
                              (double)*out);
    return status;
}

/* The optional second view; frees its room when the file has none. */
static enum cr_status read_middle(const cr_gguf *g, cr_pool *p, struct cr_error *err)
{
    struct cr_pool_index *x = &p->index;
    uint64_t e = (uint64_t)p->model->n_embd, t = (uint64_t)x->n_entries;
    uint32_t layer = 0, want = (uint32_t)(p->n_layers / 2 - 1);
    if (!cr_gguf_tensor(g, "index.middle.mean") && !cr_gguf_tensor(g, "index.middle.std") &&
        !cr_gguf_tensor(g, "index.middle.proto")) {
        cr_free(x->mid_mean);
        cr_free(x->mid_std);
        cr_free(x->mid_proto);
        x->mid_mean = x->mid_std = x->mid_proto = NULL;
        return CR_OK;
    }
    enum cr_status status = cr_gguf_u32(g, "crayon.pool.middle_layer", true, &layer, err);
    if (status == CR_OK && layer != want)
        status = cr_error_set(err, CR_UNSUPPORTED, "%s: middle_layer is %u, want %u", p->path,
                              layer, want);
    if (status == CR_OK)
        status = read_tau(g, p, "crayon.pool.tau_middle", &x->tau_middle, err);
    if (status == CR_OK)
        status = read_floats(g, p->path, "index.middle.mean", e, 1, x->mid_mean, err);
    if (status == CR_OK)
        status = read_floats(g, p->path, "index.middle.std", e, 1, x->mid_std, err);
    if (status == CR_OK)
        status = read_floats(g, p->path, "index.middle.proto", e, t, x->mid_proto, err);
    for (uint64_t i = 0; i < e && status == CR_OK; i++)
        if (!(x->mid_std[i] > 0))
            status = cr_error_set(err, CR_FORMAT,
                                  "%s: index.middle.std: value %llu is %g, want "
                                  "more than 0",
                                  p->path, (unsigned long long)i, (double)x->mid_std[i]);
    if (status == CR_OK)
        status = check_unit(p->path, "index.middle.proto", x->mid_proto, (size_t)t, (size_t)e, err);
    return status;
}

static enum cr_status check_weights(const cr_pool *p, struct cr_error *err)
{
    for (int t = 0; t < p->index.n_entries; t++)
        for (int n = 0; n < p->n; n++) {
            float w = p->index.weights[(size_t)t * (size_t)p->n + (size_t)n];
            if (!(fabsf(w) <= CR_MAX_SCALE))
                return cr_error_set(err, CR_FORMAT, "%s: index.weights: row %d holds %g", p->path,
                                    t, (double)w);
            if (p->kind == CR_POOL_CENTROID && w != (float)(t == n))
                return cr_error_set(err, CR_FORMAT,
                                    "%s: index.weights of a centroid pool is not the identity",
                                    p->path);
        }
    return CR_OK;
}

static enum cr_status read_index(const cr_gguf *g, cr_pool *p, struct cr_error *err)
{
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "crayon.pool.tasks");
    uint64_t t = kv ? kv->n : 0, q = (uint64_t)p->model->q_dim;
    if (t > CR_POOL_MAX_ENTRIES)
        return cr_error_set(err, CR_LIMIT, "%s: %llu index entries, the limit is %d", p->path,
                            (unsigned long long)t, CR_POOL_MAX_ENTRIES);
    if (t == 0 && p->kind == CR_POOL_LORA && !cr_gguf_tensor(g, "index.qx.proto"))
        return CR_OK;
    if (t == 0 || (p->kind == CR_POOL_CENTROID && t != (uint64_t)p->n))
        return cr_error_set(err, CR_FORMAT, "%s: crayon.pool.tasks names %llu entries, want %s",
                            p->path, (unsigned long long)t, t ? "one per adapter" : "at least 1");
    enum cr_status status = cr_pool_index_alloc(p, (int)t, err);
    struct cr_pool_index *x = &p->index;
    if (status == CR_OK)
        status = read_texts(g, p->path, "crayon.pool.tasks", (int)t, x->names, err);
    if (status == CR_OK)
        status = read_texts(g, p->path, "crayon.pool.descriptions", (int)t, x->about, err);
    if (status == CR_OK)
        status = read_rows(g, p, err);
    if (status == CR_OK)
        status = read_floats(g, p->path, "index.weights", (uint64_t)p->n, t, x->weights, err);
    if (status == CR_OK)
        status = check_weights(p, err);
    if (status == CR_OK)
        status = read_tau(g, p, "crayon.pool.tau_qx", &x->tau_qx, err);
    if (status == CR_OK)
        status = read_floats(g, p->path, "index.qx.mean", q, 1, x->qx_mean, err);
    if (status == CR_OK)
        status = read_floats(g, p->path, "index.qx.proto", q, t, x->qx_proto, err);
    if (status == CR_OK)
        status = check_unit(p->path, "index.qx.proto", x->qx_proto, (size_t)t, (size_t)q, err);
    return status == CR_OK ? read_middle(g, p, err) : status;
}

/* ---- opening ---- */

/* Header, then the first, a middle and the last half kilobyte of every tensor. */
static void hash_file(const cr_gguf *g, char hex[65])
{
    struct cr_sha256 s;
    cr_sha256_init(&s);
    cr_sha256_add(&s, cr_gguf_bytes(g), cr_gguf_header_size(g));
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        const uint8_t *data = t->data;
        if (t->bytes <= 3 * SAMPLE) {
            cr_sha256_add(&s, data, t->bytes);
            continue;
        }
        cr_sha256_add(&s, data, SAMPLE);
        cr_sha256_add(&s, data + (t->bytes - SAMPLE) / 2, SAMPLE);
        cr_sha256_add(&s, data + t->bytes - SAMPLE, SAMPLE);
    }
    cr_sha256_hex(&s, hex);
}

enum cr_status cr_pool_open(cr_pool **out, cr_model *m, const char *path, struct cr_error *err)
{
    *out = NULL;
    cr_pool *p = NULL;
    cr_gguf *g;
    struct shape s = {0};
    if (!m->layers)
        return cr_error_set(err, CR_INVALID, "%s: the model was opened for its vocabulary only",
                            path);
    enum cr_status status = cr_gguf_open(&g, path, err);
    if (status != CR_OK)
        return status;
    status = read_shape(g, m, path, &s, err);
    if (status == CR_OK)
        status = load_adapters(&p, g, m, path, &s, err);
    if (!p) {
        cr_gguf_close(g);
        return status;
    }
    p->file = g;
    char *copy = cr_strdup(path);
    if (status == CR_OK && !copy)
        status = no_memory(path, err);
    if (copy) {
        cr_free(p->path);
        p->path = copy;
    }
    if (status == CR_OK)
        status = read_training(g, p, err);
    if (status == CR_OK)
        status = read_index(g, p, err);
    if (status != CR_OK) {
        cr_pool_close(p);
        return status;
    }
    hash_file(g, p->hash);
    cr_pool_pack_a(p);
    *out = p;
    return CR_OK;
}

/* ---- writing ---- */

static void put_keys(cr_gguf_writer *w, const cr_pool *p, uint32_t type)
{
    const struct cr_pool_index *x = &p->index;
    size_t t = (size_t)x->n_entries;
    cr_gguf_put_str(w, "general.architecture", p->model->info.arch);
    cr_gguf_put_str(w, "general.type", "crayon.pool");
    cr_gguf_put_str(w, "general.name", p->name);
    cr_gguf_put_u32(w, "crayon.pool.version", type == CR_Q8_0 ? 2 : 1);
    cr_gguf_put_str(w, "crayon.pool.base_hash", p->base_hash);
    cr_gguf_put_str(w, "crayon.pool.form", form_names[p->form]);
    cr_gguf_put_str(w, "crayon.pool.kind", kind_names[p->kind]);
    cr_gguf_put_u32(w, "crayon.pool.n", (uint32_t)p->n);
    cr_gguf_put_u32(w, "crayon.pool.rank", (uint32_t)p->rank);
    cr_gguf_put_f32(w, "crayon.pool.alpha", p->alpha);
    cr_gguf_put_str(w, "crayon.pool.command", p->command);
    cr_gguf_put_u32(w, "crayon.pool.steps", p->steps);
    if (p->worked)
        cr_gguf_put_u32(w, "crayon.pool.worked", p->worked);
    cr_gguf_put_u64(w, "crayon.pool.seed", p->seed);
    cr_gguf_put_f32(w, "crayon.pool.loss", p->loss);
    if (p->kind == CR_POOL_CENTROID) {
        cr_gguf_put_str(w, "crayon.pool.mode", p->hard ? "hard" : "soft");
        cr_gguf_put_f32(w, "crayon.pool.tau_qx", x->tau_qx);
        if (x->mid_proto)
            cr_gguf_put_f32(w, "crayon.pool.tau_middle", x->tau_middle);
    }
    if (t == 0)
        return;
    cr_gguf_put_strs(w, "crayon.pool.tasks", (const char *const *)x->names, t);
    cr_gguf_put_strs(w, "crayon.pool.descriptions", (const char *const *)x->about, t);
    cr_gguf_put_u32s(w, "crayon.pool.rows", x->rows, t);
    if (x->mid_proto)
        cr_gguf_put_u32(w, "crayon.pool.middle_layer", (uint32_t)(p->n_layers / 2 - 1));
}

static void put_index(cr_gguf_writer *w, const cr_pool *p)
{
    const struct cr_pool_index *x = &p->index;
    uint64_t t = (uint64_t)x->n_entries, q = (uint64_t)p->model->q_dim;
    uint64_t e = (uint64_t)p->model->n_embd;
    if (t == 0)
        return;
    cr_gguf_put_tensor(w, "index.weights", CR_F32, 2, (uint64_t[]){(uint64_t)p->n, t}, x->weights);
    cr_gguf_put_tensor(w, "index.qx.mean", CR_F32, 1, &q, x->qx_mean);
    cr_gguf_put_tensor(w, "index.qx.proto", CR_F32, 2, (uint64_t[]){q, t}, x->qx_proto);
    if (!x->mid_proto)
        return;
    cr_gguf_put_tensor(w, "index.middle.mean", CR_F32, 1, &e, x->mid_mean);
    cr_gguf_put_tensor(w, "index.middle.std", CR_F32, 1, &e, x->mid_std);
    cr_gguf_put_tensor(w, "index.middle.proto", CR_F32, 2, (uint64_t[]){e, t}, x->mid_proto);
}

/* The type of A beside a B of `type`. */
static uint32_t type_of_a(uint32_t type, const struct cr_matrix *w)
{
    return type == CR_Q8_0 && w->n_in % CR_QK ? CR_F16 : type;
}

/* A and B of slot i as `type` at *to, which moves on. b has room for one B. */
static bool put_pair(cr_gguf_writer *w, const cr_pool *p, int i, uint32_t type, float *b,
                     uint8_t **to)
{
    enum cr_linear lin = (enum cr_linear)(i % CR_LIN_COUNT);
    const struct cr_matrix *m = cr_model_linear(p->model, i / CR_LIN_COUNT, lin);
    uint64_t r = (uint64_t)p->rank, n = (uint64_t)p->n;
    uint64_t sets = p->form == CR_POOL_SEPARATE ? n : 1;
    uint64_t ne_a[3] = {(uint64_t)m->n_in, r, sets}, ne_b[3] = {r, (uint64_t)m->n_out, n};
    const size_t na = (size_t)(ne_a[0] * r * sets), one = (size_t)(ne_b[1] * r);
    const uint32_t a_type = type_of_a(type, m);
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s.weight.lora_a", i / CR_LIN_COUNT, cr_linear_names[lin]);
    cr_gguf_put_tensor(w, name, a_type, sets > 1 ? 3 : 2, ne_a, *to);
    bool ok = cr_lora_encode(p->model, a_type, *to, p->pairs[i].a, na) &&
              all_finite(a_type, *to, cr_row_bytes(a_type, na));
    *to += cr_row_bytes(a_type, na);
    name[strlen(name) - 1] = 'b';
    if (type == CR_Q8_0)
        cr_gguf_put_tensor(w, name, type, 2, (uint64_t[]){one, n}, *to);
    else
        cr_gguf_put_tensor(w, name, type, 3, ne_b, *to);
    for (int k = 0; k < p->n && ok; k++) {
        cr_pool_read_b(p, i / CR_LIN_COUNT, lin, k, b);
        ok = cr_lora_encode(p->model, type, *to, b, one) &&
             all_finite(type, *to, cr_row_bytes(type, one));
        *to += cr_row_bytes(type, one);
    }
    return ok;
}

/* What cr_pool_open would refuse later. */
static enum cr_status check_index(const cr_pool *p, const char *path, struct cr_error *err)
{
    const struct cr_pool_index *x = &p->index;
    size_t t = (size_t)x->n_entries, q = (size_t)p->model->q_dim, e = (size_t)p->model->n_embd;
    if (t == 0)
        return p->kind == CR_POOL_LORA
                   ? CR_OK
                   : cr_error_set(err, CR_INVALID, "%s: a pool without an index", path);
    for (size_t i = 0; i < t; i++)
        if (!x->names[i] || !x->about[i])
            return cr_error_set(err, CR_INVALID, "%s: index entry %zu has no name or text", path,
                                i);
    enum cr_status status = check_unit(path, "index.qx.proto", x->qx_proto, t, q, err);
    if (status == CR_OK && x->mid_proto)
        status = check_unit(path, "index.middle.proto", x->mid_proto, t, e, err);
    return status == CR_OK ? check_weights(p, err) : status;
}

enum cr_status cr_pool_write(const cr_pool *p, const char *path, uint32_t type,
                             struct cr_error *err)
{
    if (type != CR_F16 && type != CR_F32 && type != CR_Q8_0)
        return cr_error_set(err, CR_INVALID, "%s: want type F16, F32 or Q8_0, got %u", path, type);
    enum cr_status status = check_index(p, path, err);
    if (status != CR_OK)
        return status;
    const size_t r = (size_t)p->rank, a_rows = p->form == CR_POOL_SEPARATE ? r * (size_t)p->n : r;
    size_t bytes = 0, widest = 0;
    for (int l = 0; l < CR_LIN_COUNT; l++) {
        const struct cr_matrix *w = cr_model_linear(p->model, 0, (enum cr_linear)l);
        widest = (size_t)w->n_out > widest ? (size_t)w->n_out : widest;
        if (p->target[l] && type == CR_Q8_0 && (size_t)w->n_out * r % CR_QK)
            type = CR_F16;
    }
    for (int l = 0; l < CR_LIN_COUNT; l++) {
        const struct cr_matrix *w = cr_model_linear(p->model, 0, (enum cr_linear)l);
        if (p->target[l])
            bytes +=
                (size_t)p->n_layers * (cr_row_bytes(type_of_a(type, w), a_rows * (size_t)w->n_in) +
                                       cr_row_bytes(type, (size_t)p->n * r * (size_t)w->n_out));
    }
    uint8_t *data = cr_alloc(bytes, 1), *to = data;
    float *b = cr_alloc(widest * r, sizeof *b);
    cr_gguf_writer *w = cr_gguf_writer_new();
    if (!data || !b || !w)
        status = no_memory(path, err);
    if (status == CR_OK)
        put_keys(w, p, type);
    for (int i = 0; i < p->n_layers * CR_LIN_COUNT && status == CR_OK; i++)
        if (p->pairs[i].a && !put_pair(w, p, i, type, b, &to))
            status = cr_error_set(err, CR_INVALID, "%s: blk.%d.%s has values that do not fit %s",
                                  path, i / CR_LIN_COUNT, cr_linear_names[i % CR_LIN_COUNT],
                                  cr_type_info(type)->name);
    if (status == CR_OK) {
        put_index(w, p);
        status = cr_gguf_write(w, path, err);
    }
    cr_gguf_writer_free(w);
    cr_free(b);
    cr_free(data);
    return status;
}
