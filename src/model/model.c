/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a GGUF file to a model: read the numbers of the architecture, check each against the others,
 * bind every tensor by name with its shape and type, and refuse what is left over. A tensor that
 * nobody uses would mean that we compute something else than the file's author meant.
 *
 * Weights stay in the mapping and are never copied; only small vectors that the file holds in
 * another type than float32 get a copy.
 */
#include "model/model.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/sha256.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    NAME_SIZE = 96,
    MAX_EMBD = 1 << 16,
    MAX_FF = 1 << 20,
    MAX_HEADS = 1 << 12,
    MAX_HEAD_DIM = 1 << 12,
    MAX_VOCAB = 1 << 22,
    HASH_SAMPLE = 4096 /* bytes of each end of a tensor that go into the hash */
};

/* What an architecture is made of, by enum cr_arch. */
static const struct arch {
    const char *name;
    bool neox, head_norms, post_norms, gelu, fused;
    enum { NEVER, MAY, MUST } bias; /* of q, k and v */
    int no_rope_every;              /* every n-th layer is not rotated; 0: all are */
} archs[] = {
    {.name = "llama", .bias = MAY},
    {.name = "qwen2", .bias = MUST, .neox = true},
    {.name = "qwen3", .neox = true, .head_norms = true},
    {.name = "gemma3", .neox = true, .head_norms = true, .post_norms = true, .gelu = true},
    {.name = "smollm3", .bias = MAY, .no_rope_every = 4},
    {.name = "phi3", .neox = true, .fused = true},
};
#define ARCH_NAMES "llama, qwen2, qwen3, gemma3, smollm3 or phi3"

static enum cr_status no_memory(const cr_gguf *g, struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", cr_gguf_name(g));
}

/* ---- numbers ---- */

static enum cr_status read_arch(cr_model *m, struct cr_error *err)
{
    const cr_gguf *g = m->gguf;
    struct cr_str s;
    enum cr_status status = cr_gguf_str(g, "general.type", false, &s, err);
    if (status == CR_OK && !cr_str_eq(s, "model"))
        return cr_error_set(err, CR_INVALID, "%s: want a model, found general.type \"%.*s\"",
                            cr_gguf_name(g), s.n < 40 ? (int)s.n : 40, s.p);
    if (status == CR_OK || status == CR_NOT_FOUND)
        status = cr_gguf_str(g, "general.architecture", true, &s, err);
    if (status != CR_OK)
        return status;
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (cr_str_eq(s, archs[i].name)) {
            m->arch = (enum cr_arch)i;
            m->info.arch = archs[i].name;
            return CR_OK;
        }
    return cr_error_set(err, CR_UNSUPPORTED, "%s: want architecture " ARCH_NAMES ", found \"%.*s\"",
                        cr_gguf_name(g), s.n < 40 ? (int)s.n : 40, s.p);
}

/* Reads <arch>.<name> into *out; when absent *out stays (or is refused if required). */
static enum cr_status read_int(const cr_model *m, const char *name, bool required, int lo, int hi,
                               int *out, struct cr_error *err)
{
    char key[NAME_SIZE];
    snprintf(key, sizeof key, "%s.%s", m->info.arch, name);
    uint32_t v;
    enum cr_status status = cr_gguf_u32(m->gguf, key, required, &v, err);
    if (status == CR_NOT_FOUND)
        return CR_OK;
    if (status != CR_OK)
        return status;
    if (v < (uint32_t)lo || v > (uint32_t)hi)
        return cr_error_set(err, v > (uint32_t)hi ? CR_LIMIT : CR_FORMAT,
                            "%s: key %s: want %d to %d, found %" PRIu32, cr_gguf_name(m->gguf), key,
                            lo, hi, v);
    *out = (int)v;
    return CR_OK;
}

static enum cr_status disagree(const cr_model *m, struct cr_error *err, const char *fmt, ...)
    CR_PRINTF(3, 4);

static enum cr_status disagree(const cr_model *m, struct cr_error *err, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return cr_error_set(err, CR_FORMAT, "%s: %s.%s", cr_gguf_name(m->gguf), m->info.arch, text);
}

/* What changes the arithmetic and is not built here is refused by name. */
static enum cr_status refuse_extras(cr_model *m, struct cr_error *err)
{
    int experts = 0, value_dim = m->head_dim, splits = 1;
    uint32_t n = 1;
    enum cr_status status = cr_gguf_u32(m->gguf, "split.count", false, &n, err);
    splits = n > 1 ? 2 : 1;
    if (status == CR_NOT_FOUND)
        status = CR_OK;
    if (status == CR_OK)
        status = read_int(m, "expert_count", false, 0, 1 << 16, &experts, err);
    if (status == CR_OK)
        status = read_int(m, "attention.value_length", false, 1, MAX_HEAD_DIM, &value_dim, err);
    if (status == CR_OK)
        status = read_int(m, "rope.dimension_count", false, 1, MAX_HEAD_DIM, &m->rope_dim, err);
    if (status != CR_OK)
        return status;
    if (splits > 1)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: a part of a split model (split.count %" PRIu32
                            "); join the parts first",
                            cr_gguf_name(m->gguf), n);
    if (experts > 0)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: key %s.expert_count: want 0 (no mixture of experts), found %d",
                            cr_gguf_name(m->gguf), m->info.arch, experts);
    if (value_dim != m->head_dim)
        return disagree(m, err, "attention.value_length: want %d like the keys, found %d",
                        m->head_dim, value_dim);
    if (m->arch == CR_ARCH_PHI3 && (m->rope_dim > m->head_dim || m->rope_dim % 2 != 0))
        return disagree(m, err, "rope.dimension_count: want an even number up to %d, found %d",
                        m->head_dim, m->rope_dim);
    if (m->arch != CR_ARCH_PHI3 && m->rope_dim != m->head_dim)
        return disagree(m, err, "rope.dimension_count: want %d (whole heads), found %d",
                        m->head_dim, m->rope_dim);
    float cap = 0;
    char key[NAME_SIZE];
    snprintf(key, sizeof key, "%s.final_logit_softcapping", m->info.arch);
    status = cr_gguf_f32(m->gguf, key, false, &cap, err);
    if (status == CR_OK && cap != 0)
        return cr_error_set(err, CR_UNSUPPORTED, "%s: key %s: want 0, found %g",
                            cr_gguf_name(m->gguf), key, (double)cap);
    return status == CR_NOT_FOUND ? CR_OK : status;
}

/* Windows and rotations of the layers. */
static enum cr_status plan_layers(cr_model *m, struct cr_error *err)
{
    const struct arch *arch = &archs[m->arch];
    int window = 0, every = 6;
    enum cr_status status =
        read_int(m, "attention.sliding_window", false, 0, INT32_MAX, &window, err);
    if (status == CR_OK && m->arch == CR_ARCH_GEMMA3)
        status =
            read_int(m, "attention.sliding_window_pattern", false, 1, CR_MAX_LAYERS, &every, err);
    if (status != CR_OK)
        return status;
    const bool local = m->arch == CR_ARCH_GEMMA3 && window > 0;
    m->n_ropes = local ? 2 : 1;
    for (int l = 0; l < m->n_layers; l++) {
        struct cr_layer *w = &m->layers[l];
        if (arch->no_rope_every && (l + 1) % arch->no_rope_every == 0)
            w->rope = -1;
        if (local && (l + 1) % every != 0)
            w->rope = 1;
        w->window = w->rope == 1 || m->arch == CR_ARCH_PHI3 ? window : 0;
    }
    if (window > 0 && window < m->n_ctx_train && !local && m->arch != CR_ARCH_PHI3) {
        /* within the window, attention over all is what the model does */
        cr_log(CR_LOG_INFO, "%s: context limited to its sliding window, %d of %d tokens",
               cr_gguf_name(m->gguf), window, m->n_ctx_train);
        m->n_ctx_train = window;
    }
    return CR_OK;
}

/* Factors that the others have as 1 and 1 / sqrt(D). */
static enum cr_status read_scales(cr_model *m, struct cr_error *err)
{
    char key[NAME_SIZE];
    /* the 27B model of gemma3 scales by its width for each head; its files do not say so */
    const bool wide = m->arch == CR_ARCH_GEMMA3 && m->n_layers == 62;
    m->embd_scale = m->arch == CR_ARCH_GEMMA3 ? sqrtf((float)m->n_embd) : 1;
    m->attn_scale = 1 / sqrtf((float)(wide ? m->n_embd / m->n_heads : m->head_dim));
    snprintf(key, sizeof key, "%s.attention.scale", m->info.arch);
    enum cr_status status = cr_gguf_f32(m->gguf, key, false, &m->attn_scale, err);
    if (status == CR_NOT_FOUND)
        return CR_OK;
    if (status == CR_OK && !(m->attn_scale > 0 && m->attn_scale < 1e3f))
        return cr_error_set(err, CR_FORMAT,
                            "%s: key %s: want more than 0 and less than 1000, "
                            "found %g",
                            cr_gguf_name(m->gguf), key, (double)m->attn_scale);
    return status;
}

static enum cr_status read_numbers(cr_model *m, struct cr_error *err)
{
    enum cr_status status;
    char key[NAME_SIZE];
    if ((status = read_int(m, "block_count", true, 1, CR_MAX_LAYERS, &m->n_layers, err)) ||
        (status = read_int(m, "context_length", true, 1, CR_MAX_CTX, &m->n_ctx_train, err)) ||
        (status = read_int(m, "embedding_length", true, 1, MAX_EMBD, &m->n_embd, err)) ||
        (status = read_int(m, "feed_forward_length", true, 1, MAX_FF, &m->n_ff, err)) ||
        (status = read_int(m, "attention.head_count", true, 1, MAX_HEADS, &m->n_heads, err)))
        return status;
    m->n_kv_heads = m->n_heads;
    m->head_dim = m->n_embd / m->n_heads;
    if ((status =
             read_int(m, "attention.head_count_kv", false, 1, MAX_HEADS, &m->n_kv_heads, err)) ||
        (status = read_int(m, "attention.key_length", false, 1, MAX_HEAD_DIM, &m->head_dim, err)))
        return status;
    if (m->n_heads % m->n_kv_heads != 0)
        return disagree(m, err, "attention.head_count_kv: want a divisor of %d heads, found %d",
                        m->n_heads, m->n_kv_heads);
    snprintf(key, sizeof key, "%s.attention.key_length", m->info.arch);
    if (!cr_gguf_find(m->gguf, key) && m->n_embd % m->n_heads != 0)
        return disagree(m, err, "embedding_length %d is not a multiple of %d heads", m->n_embd,
                        m->n_heads);
    if (m->head_dim % 2 != 0)
        return disagree(m, err, "attention.key_length: want an even number, found %d", m->head_dim);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", m->info.arch);
    if ((status = cr_gguf_f32(m->gguf, key, true, &m->norm_eps, err)))
        return status;
    if (!(m->norm_eps >= 0 && m->norm_eps < 1))
        return disagree(m, err, "attention.layer_norm_rms_epsilon: want 0 to 1, found %g",
                        (double)m->norm_eps);
    m->q_dim = m->n_heads * m->head_dim;
    m->kv_dim = m->n_kv_heads * m->head_dim;
    m->rope_dim = m->head_dim; /* unless a key says otherwise */
    m->rope_neox = archs[m->arch].neox;
    m->gelu = archs[m->arch].gelu;
    m->fused = archs[m->arch].fused;
    m->layers = cr_alloc0((size_t)m->n_layers, sizeof *m->layers);
    if (!m->layers)
        return no_memory(m->gguf, err);
    if ((status = refuse_extras(m, err)) || (status = read_scales(m, err)))
        return status;
    return plan_layers(m, err);
}

/* ---- tensors ---- */

struct binder {
    cr_model *m;
    bool *used;        /* [n_tensors] */
    float *next_owned; /* where the next float32 copy goes */
    struct cr_error *err;
    enum cr_status status; /* the first failure; later calls do nothing */
};

static const struct cr_tensor *take(struct binder *b, const char *name, bool required)
{
    if (b->status != CR_OK)
        return NULL;
    const struct cr_tensor *t = cr_gguf_tensor(b->m->gguf, name);
    if (t)
        b->used[t - cr_gguf_tensor_at(b->m->gguf, 0)] = true;
    else if (required)
        b->status = cr_error_set(b->err, CR_FORMAT, "%s: tensor %s is missing",
                                 cr_gguf_name(b->m->gguf), name);
    return t;
}

static void wrong_shape(struct binder *b, const char *name, const char *types, const char *want,
                        const struct cr_tensor *t)
{
    char found[100];
    int n = snprintf(found, sizeof found, "[%" PRIu64, t->ne[0]);
    for (uint32_t d = 1; d < t->n_dims; d++)
        n += snprintf(found + n, sizeof found - (size_t)n, ",%" PRIu64, t->ne[d]);
    bool usable = cr_type_info(t->type)->usable;
    b->status = cr_error_set(b->err, usable ? CR_FORMAT : CR_UNSUPPORTED,
                             "%s: tensor %s: want %s %s, found %s %s]", cr_gguf_name(b->m->gguf),
                             name, types, want, cr_type_info(t->type)->name, found);
}

static void take_matrix(struct binder *b, const char *name, bool required, int n_in, int n_out,
                        struct cr_matrix *out)
{
    const struct cr_tensor *t = take(b, name, required);
    if (!t)
        return;
    if (t->ne[0] != (uint64_t)n_in || t->ne[1] != (uint64_t)n_out || t->ne[2] != 1 ||
        t->ne[3] != 1 || t->type >= CR_TYPE_END || !b->m->k->matmul[t->type]) {
        char want[40];
        snprintf(want, sizeof want, "[%d,%d]", n_in, n_out);
        wrong_shape(b, name, CR_USABLE_TYPES, want, t);
        return;
    }
    *out = (struct cr_matrix){.data = t->data,
                              .type = t->type,
                              .n_in = n_in,
                              .n_out = n_out,
                              .row_bytes = cr_row_bytes(t->type, (size_t)n_in)};
}

static const float *take_vector(struct binder *b, const char *name, bool required, int n)
{
    const struct cr_tensor *t = take(b, name, required);
    if (!t)
        return NULL;
    if (t->ne[0] != (uint64_t)n || t->ne[1] != 1 || t->ne[2] != 1 || t->ne[3] != 1 ||
        !cr_type_info(t->type)->usable) {
        char want[40];
        snprintf(want, sizeof want, "[%d]", n);
        wrong_shape(b, name, "F32 (or F16, BF16)", want, t);
        return NULL;
    }
    if (t->type == CR_F32)
        return t->data;
    float *copy = b->next_owned;
    cr_dequantize_ref(t->type, copy, t->data, (size_t)n);
    b->next_owned += n;
    return copy;
}

/* Rows of one tensor as n linears, first to last. */
static void take_pieces(struct binder *b, const char *name, int n_in, struct cr_matrix *out, int n,
                        const int n_out[])
{
    struct cr_matrix whole = {0};
    int rows = 0;
    for (int i = 0; i < n; i++)
        rows += n_out[i];
    take_matrix(b, name, true, n_in, rows, &whole);
    for (int i = 0; i < n && b->status == CR_OK; i++) {
        out[i] = whole;
        out[i].n_out = n_out[i];
        whole.data = (const char *)whole.data + (size_t)n_out[i] * whole.row_bytes;
    }
}

static void bind_layer(struct binder *b, int l)
{
    const cr_model *m = b->m;
    struct cr_layer *w = &m->layers[l];
    const struct arch *arch = &archs[m->arch];
    const int E = m->n_embd, Q = m->q_dim, KV = m->kv_dim, F = m->n_ff;
    const int shapes[CR_LIN_COUNT][2] = {{E, Q}, {E, KV}, {E, KV}, {Q, E}, {E, F}, {E, F}, {F, E}};
    char name[NAME_SIZE];
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", l, cr_linear_names[i]);
        if (!arch->fused || i == CR_LIN_O || i == CR_LIN_DOWN)
            take_matrix(b, name, true, shapes[i][0], shapes[i][1], &w->lin[i]);
    }
    if (arch->fused) {
        snprintf(name, sizeof name, "blk.%d.attn_qkv.weight", l);
        take_pieces(b, name, E, &w->lin[CR_LIN_Q], 3, (const int[]){Q, KV, KV});
        snprintf(name, sizeof name, "blk.%d.ffn_up.weight", l);
        take_pieces(b, name, E, &w->lin[CR_LIN_GATE], 2, (const int[]){F, F});
    }
    const struct {
        const char *name;
        const float **to;
        int n;
        bool known, required;
    } vectors[] = {{"attn_norm.weight", &w->attn_norm, E, true, true},
                   {"ffn_norm.weight", &w->ffn_norm, E, true, true},
                   {"attn_q.bias", &w->bias_q, Q, arch->bias != NEVER, arch->bias == MUST},
                   {"attn_k.bias", &w->bias_k, KV, arch->bias != NEVER, arch->bias == MUST},
                   {"attn_v.bias", &w->bias_v, KV, arch->bias != NEVER, arch->bias == MUST},
                   {"attn_q_norm.weight", &w->norm_q, m->head_dim, arch->head_norms, true},
                   {"attn_k_norm.weight", &w->norm_k, m->head_dim, arch->head_norms, true},
                   {"post_attention_norm.weight", &w->attn_post, E, arch->post_norms, true},
                   {"post_ffw_norm.weight", &w->ffn_post, E, arch->post_norms, true}};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        if (!vectors[i].known)
            continue;
        snprintf(name, sizeof name, "blk.%d.%s", l, vectors[i].name);
        *vectors[i].to = take_vector(b, name, vectors[i].required, vectors[i].n);
    }
}

static enum cr_status refuse_unused(const struct binder *b)
{
    const cr_gguf *g = b->m->gguf;
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_str name = cr_gguf_tensor_at(g, i)->name;
        if (!b->used[i])
            return cr_error_set(b->err, CR_UNSUPPORTED,
                                "%s: tensor %.*s is not part of architecture %s as built here",
                                cr_gguf_name(g), name.n < 80 ? (int)name.n : 80, name.p,
                                b->m->info.arch);
    }
    return CR_OK;
}

/* Float32 copies needed for vectors of other types. Their number is bounded by the file's size. */
static size_t owned_floats(const cr_gguf *g)
{
    size_t n = 0;
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        if (t->type != CR_F32 && t->ne[1] == 1 && t->ne[0] < MAX_FF)
            n += t->ne[0];
    }
    return n;
}

static enum cr_status bind_tensors(cr_model *m, struct cr_error *err)
{
    struct binder b = {.m = m, .err = err};
    b.used = cr_alloc0(cr_gguf_n_tensors(m->gguf), sizeof *b.used);
    size_t n = owned_floats(m->gguf);
    m->owned = n ? cr_alloc(n, sizeof(float)) : NULL;
    if (!b.used || (n && !m->owned)) {
        cr_free(b.used);
        return no_memory(m->gguf, err);
    }
    b.next_owned = m->owned;
    take_matrix(&b, "token_embd.weight", true, m->n_embd, m->n_vocab, &m->embd);
    m->output = m->embd;
    take_matrix(&b, "output.weight", false, m->n_embd, m->n_vocab, &m->output);
    m->output_norm = take_vector(&b, "output_norm.weight", true, m->n_embd);
    take(&b, "rope_freqs.weight", false); /* rope.c reads these */
    if (m->arch == CR_ARCH_PHI3) {
        take(&b, "rope_factors_short.weight", false);
        take(&b, "rope_factors_long.weight", false);
    }
    for (int l = 0; l < m->n_layers && b.status == CR_OK; l++)
        bind_layer(&b, l);
    enum cr_status status = b.status == CR_OK ? refuse_unused(&b) : b.status;
    cr_free(b.used);
    return status;
}

/* ---- text ---- */

static enum cr_status read_chat(cr_model *m, const char *by_name, struct cr_error *err)
{
    struct cr_str text = {"", 0};
    enum cr_status status = cr_gguf_str(m->gguf, "tokenizer.chat_template", false, &text, err);
    if (status != CR_OK && status != CR_NOT_FOUND)
        return status;
    m->chat = status == CR_OK ? cr_chat_recognise(text) : CR_CHAT_NONE;
    if (by_name) {
        m->chat = cr_chat_by_name(by_name);
        if (m->chat == CR_CHAT_UNKNOWN)
            return cr_error_set(err, CR_INVALID,
                                "chat template: want chatml, llama2, llama3, mistral, gemma, "
                                "zephyr or phi3, got \"%s\"",
                                by_name);
    }
    m->default_system = cr_chat_default_system(m->chat, text);
    return m->default_system ? CR_OK : no_memory(m->gguf, err);
}

static enum cr_status read_text(cr_model *m, const struct cr_model_options *opt,
                                struct cr_error *err)
{
    enum cr_status status = cr_tokenizer_new(&m->tok, m->gguf, err);
    if (status != CR_OK)
        return status;
    m->n_vocab = cr_tokenizer_size(m->tok);
    if (m->n_vocab < 1 || m->n_vocab > MAX_VOCAB)
        return cr_error_set(err, CR_LIMIT, "%s: want a vocabulary of 1 to %d, found %d",
                            cr_gguf_name(m->gguf), MAX_VOCAB, m->n_vocab);
    return read_chat(m, opt->template_name, err);
}

/* ---- open and close ---- */

static enum cr_status fill_info(cr_model *m, const char *path, struct cr_error *err)
{
    const cr_gguf *g = m->gguf;
    struct cr_model_info *info = &m->info;
    struct cr_str name = {"", 0};
    enum cr_status status = cr_gguf_str(g, "general.name", false, &name, err);
    if (status != CR_OK && status != CR_NOT_FOUND)
        return status;
    m->path = cr_strdup(path);
    m->name = cr_strndup(name.p, name.n);
    if (!m->path || !m->name)
        return no_memory(g, err);
    uint64_t bytes_of[CR_TYPE_END] = {0};
    uint32_t most = CR_F32;
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        info->n_params += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        info->weight_bytes += t->bytes;
        bytes_of[t->type] += t->bytes;
        most = bytes_of[t->type] > bytes_of[most] ? t->type : most;
    }
    info->type_name = cr_type_info(most)->name;
    info->path = m->path;
    info->name = m->name;
    info->cpu = m->k->name;
    info->chat = cr_chat_name(m->chat);
    info->n_layers = m->n_layers;
    info->n_embd = m->n_embd;
    info->n_heads = m->n_heads;
    info->n_kv_heads = m->n_kv_heads;
    info->head_dim = m->head_dim;
    info->n_ff = m->n_ff;
    info->n_vocab = m->n_vocab;
    info->n_ctx_train = m->n_ctx_train;
    info->n_threads = cr_threads_count(m->threads);
    info->file_bytes = cr_gguf_size(g);
    return CR_OK;
}

static enum cr_status load(cr_model *m, const char *path, const struct cr_model_options *opt,
                           struct cr_error *err)
{
    enum cr_status status;
    m->pages = opt->pages;
    m->kv = opt->kv;
    if ((status = cr_kernels_get(&m->k, opt->cpu, err)) || (status = read_arch(m, err)) ||
        (status = read_text(m, opt, err)))
        return status;
    if (!opt->vocab_only && ((status = read_numbers(m, err)) || (status = bind_tensors(m, err)) ||
                             (status = cr_rope_setup(m, m->gguf, m->info.arch, err))))
        return status;
    if ((status = cr_threads_new(&m->threads, opt->n_threads, err)))
        return status;
    return fill_info(m, path, err);
}

enum cr_status cr_model_from_gguf(cr_model **out, cr_gguf *g, const char *path,
                                  const struct cr_model_options *opt, struct cr_error *err)
{
    const struct cr_model_options defaults = {0};
    *out = NULL;
    cr_model *m = cr_alloc0(1, sizeof *m);
    if (!m) {
        enum cr_status status = no_memory(g, err);
        cr_gguf_close(g);
        return status;
    }
    m->gguf = g;
    pthread_mutex_init(&m->lock, NULL);
    enum cr_status status = load(m, path, opt ? opt : &defaults, err);
    if (status != CR_OK) {
        cr_model_close(m);
        return status;
    }
    *out = m;
    return CR_OK;
}

enum cr_status cr_model_open(cr_model **out, const char *path, const struct cr_model_options *opt,
                             struct cr_error *err)
{
    *out = NULL;
    cr_gguf *g;
    enum cr_status status = cr_gguf_open(&g, path, err);
    return status == CR_OK ? cr_model_from_gguf(out, g, path, opt, err) : status;
}

void cr_model_close(cr_model *m)
{
    if (!m)
        return;
    cr_threads_free(m->threads);
    cr_free(m->name);
    cr_free(m->path);
    cr_free(m->rope_freq);
    cr_free(m->owned);
    cr_free(m->copy);
    cr_free(m->layers);
    cr_free(m->default_system);
    cr_tokenizer_free(m->tok);
    pthread_mutex_destroy(&m->lock);
    cr_gguf_close(m->gguf);
    cr_free(m);
}

const struct cr_model_info *cr_model_info(const cr_model *m)
{
    return &m->info;
}

/* SHA-256 over the header (all keys, all shapes) and the two ends of every tensor. */
const char *cr_model_hash(cr_model *m)
{
    pthread_mutex_lock(&m->lock);
    if (!m->hash[0]) {
        struct cr_sha256 s;
        cr_sha256_init(&s);
        cr_sha256_add(&s, cr_gguf_bytes(m->gguf), cr_gguf_header_size(m->gguf));
        for (size_t i = 0; i < cr_gguf_n_tensors(m->gguf); i++) {
            const struct cr_tensor *t = cr_gguf_tensor_at(m->gguf, i);
            size_t whole = t->bytes <= 2 * HASH_SAMPLE ? t->bytes : HASH_SAMPLE;
            cr_sha256_add(&s, t->data, whole);
            if (whole < t->bytes)
                cr_sha256_add(&s, (const char *)t->data + t->bytes - HASH_SAMPLE, HASH_SAMPLE);
        }
        cr_sha256_hex(&s, m->hash);
    }
    pthread_mutex_unlock(&m->lock);
    return m->hash;
}

void cr_model_embed(const cr_model *m, int32_t id, float *out)
{
    const char *row = (const char *)m->embd.data + (size_t)id * m->embd.row_bytes;
    m->k->dequantize[m->embd.type](out, row, (size_t)m->n_embd);
    for (int i = 0; i < m->n_embd && m->embd_scale != 1; i++)
        out[i] *= m->embd_scale;
}

const struct cr_matrix *cr_model_linear(const cr_model *m, int layer, enum cr_linear lin)
{
    return &m->layers[layer].lin[lin];
}
