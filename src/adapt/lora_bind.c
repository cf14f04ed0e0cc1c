/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the tensors of a LoRA file to pairs bound to a model: every check that both formats share.
 * All faults are collected before the load is refused, so that one look at the message is enough.
 */
#include "adapt/lora_bind.h"

#include "base/log.h"
#include "base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { SHOWN = 80 };        /* bytes of a name that go into a message */
enum { MORE_ROOM = 24 };    /* kept for "; and 18446744073709551615 more" in short form */
enum { SAMPLED_ROWS = 16 }; /* of a weight, to estimate its norm */

void cr_refuse(struct cr_refusals *r, enum cr_status status, const char *fmt, ...)
{
    char one[256];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(one, sizeof one, fmt, ap);
    va_end(ap);
    if (r->n++ == 0)
        r->status = status;
    size_t len = n < 0 ? 0 : (size_t)n < sizeof one ? (size_t)n : sizeof one - 1;
    size_t sep = r->len ? 2 : 0;
    if (r->n_shown + 1 != r->n || r->len + sep + len + MORE_ROOM >= sizeof r->text)
        return;
    memcpy(r->text + r->len, "; ", sep);
    memcpy(r->text + r->len + sep, one, len);
    r->len += sep + len;
    r->text[r->len] = '\0';
    r->n_shown++;
}

enum cr_status cr_refusals_report(const struct cr_refusals *r, const char *path,
                                  struct cr_error *err)
{
    if (r->n == 0)
        return CR_OK;
    size_t len = strlen(path), skip = len > SHOWN ? len - SHOWN : 0;
    char more[48] = "";
    if (r->n > r->n_shown)
        snprintf(more, sizeof more, "; and %zu more", r->n - r->n_shown);
    return cr_error_set(err, r->status, "%s%s: %s%s", skip ? "..." : "", path + skip, r->text,
                        more);
}

/* Bytes of a name for "%.*s". */
static int shown(struct cr_str s)
{
    return (int)(s.n < SHOWN ? s.n : SHOWN);
}

bool cr_lora_layer_number(const char *s, size_t n, uint64_t *layer, size_t *used)
{
    uint64_t v = 0;
    size_t i = 0;
    while (i < n && i < 7 && s[i] >= '0' && s[i] <= '9')
        v = v * 10 + (uint64_t)(s[i++] - '0');
    *layer = v;
    *used = i;
    return i > 0 && i < 7 && !(i > 1 && s[0] == '0');
}

bool cr_lora_gguf_name(struct cr_str name, uint64_t *layer, enum cr_linear *lin, int *is_b)
{
    static const char front[] = "blk.";
    const size_t skip = sizeof front - 1;
    size_t used;
    if (name.n < skip || memcmp(name.p, front, skip) != 0 ||
        !cr_lora_layer_number(name.p + skip, name.n - skip, layer, &used))
        return false;
    struct cr_str rest = {name.p + skip + used, name.n - skip - used};
    char want[64];
    for (int l = 0; l < CR_LIN_COUNT; l++)
        for (int b = 0; b < 2; b++) {
            snprintf(want, sizeof want, ".%s.weight.lora_%c", cr_linear_names[l], b ? 'b' : 'a');
            if (cr_str_eq(rest, want)) {
                *lin = (enum cr_linear)l;
                *is_b = b;
                return true;
            }
        }
    return false;
}

size_t cr_lora_hf_row(size_t row, int head_dim)
{
    size_t d = (size_t)head_dim, r = row % d;
    return row - r + (r % 2) * (d / 2) + r / 2;
}

bool cr_lora_is_permuted(const cr_model *m, enum cr_linear lin)
{
    return !m->rope_neox && (lin == CR_LIN_Q || lin == CR_LIN_K);
}

enum cr_status cr_lora_check_base(const cr_model *m, const char *hash, size_t n, const char *path,
                                  struct cr_error *err)
{
    if (!hash)
        return CR_OK;
    /* the hash is computed once under the model's own lock; nothing else changes */
    const char *own = cr_model_hash((cr_model *)(uintptr_t)m);
    if (own && strlen(own) == n && memcmp(own, hash, n) == 0)
        return CR_OK;
    return cr_error_set(err, CR_INVALID, "%s: made for the base model %.*s, this one is %s", path,
                        (int)(n < 64 ? n : 64), hash, own ? own : "unknown");
}

/* The scale is rounded first, up where 127 of it would fall short of the largest value by half a
 * code: small scales are subnormal, and what they lack is not to be cut off the value. */
static void encode_q8_0(struct cr_block_q8_0 *b, const float *x)
{
    float top = 0;
    for (int i = 0; i < CR_QK; i++)
        top = fmaxf(top, fabsf(x[i]));
    b->d = cr_f32_to_f16(top / 127);
    if (127.5f * cr_f16_to_f32(b->d) < top)
        b->d++;
    const float d = cr_f16_to_f32(b->d);
    for (int i = 0; i < CR_QK; i++)
        b->q[i] = (int8_t)fmaxf(-127, fminf(127, d > 0 ? rintf(x[i] / d) : 0));
}

bool cr_lora_encode(const cr_model *m, uint32_t type, void *dst, const float *src, size_t n)
{
    if (type == CR_F32) {
        memcpy(dst, src, n * sizeof *src);
        return true;
    }
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(src[i]) <= 65504.0f))
            return false;
    if (type == CR_F16)
        m->k->f32_to_f16(dst, src, n);
    else
        for (size_t i = 0; i < n; i += CR_QK)
            encode_q8_0((struct cr_block_q8_0 *)dst + i / CR_QK, src + i);
    return true;
}

void cr_lora_place(struct cr_lora_source *s, uint64_t layer, enum cr_linear lin, int is_b,
                   struct cr_lora_half half)
{
    int n = shown(half.name);
    if (layer >= (uint64_t)s->m->n_layers) {
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (the model has %d layers)", n, half.name.p,
                  s->m->n_layers);
        return;
    }
    struct cr_lora_half *h = &s->slots[layer * CR_LIN_COUNT + (uint64_t)lin].half[is_b];
    if (h->data)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (given twice)", n, half.name.p);
    else
        *h = half;
}

/* One slot: both halves, shapes, rank, scale. */
static void check_slot(struct cr_lora_source *s, const struct cr_lora_slot *slot, int lin)
{
    const struct cr_lora_half *a = &slot->half[0], *b = &slot->half[1];
    const struct cr_matrix *w = cr_model_linear(s->m, 0, (enum cr_linear)lin);
    if (!a->data || !b->data) {
        const struct cr_lora_half *have = a->data ? a : b;
        cr_refuse(&s->bad, CR_FORMAT, "%.*s has no %s", shown(have->name), have->name.p,
                  a->data ? "B" : "A");
        return;
    }
    int na = shown(a->name), nb = shown(b->name);
    uint64_t n_in = (uint64_t)w->n_in, n_out = (uint64_t)w->n_out;
    uint64_t max = n_in > n_out ? n_in : n_out;
    max = max < CR_LORA_MAX_RANK ? max : CR_LORA_MAX_RANK;
    if (a->rows == 0 || a->rows > max)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (rank %llu, want 1 to %llu)", na, a->name.p,
                  (unsigned long long)a->rows, (unsigned long long)max);
    else if (slot->want_rank && a->rows != slot->want_rank)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (rank %llu, the settings say %llu)", na, a->name.p,
                  (unsigned long long)a->rows, (unsigned long long)slot->want_rank);
    else if (a->cols != n_in)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (%llu inputs, the model has %llu)", na, a->name.p,
                  (unsigned long long)a->cols, (unsigned long long)n_in);
    else if (b->rows != n_out || b->cols != a->rows)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (%llu x %llu, want %llu x %llu)", nb, b->name.p,
                  (unsigned long long)b->rows, (unsigned long long)b->cols,
                  (unsigned long long)n_out, (unsigned long long)a->rows);
    else if (!isfinite(slot->alpha) || slot->alpha == 0 || fabs(slot->alpha) > 1e9)
        cr_refuse(&s->bad, CR_FORMAT, "%.*s (alpha %g)", na, a->name.p, slot->alpha);
}

/* Rows of a half to float32, in GGUF order; tmp holds one row. False if a value is not finite. */
static bool load_half(const cr_model *m, const struct cr_lora_half *h, bool permuted, float *dst,
                      void *tmp)
{
    size_t bytes = cr_row_bytes(h->type, (size_t)h->cols), n = (size_t)h->cols;
    bool finite = true;
    for (size_t r = 0; r < h->rows; r++) {
        size_t from = permuted ? cr_lora_hf_row(r, m->head_dim) : r;
        memcpy(tmp, (const uint8_t *)h->data + from * bytes, bytes);
        m->k->dequantize[h->type](dst + r * n, tmp, n);
        for (size_t i = 0; i < n; i++)
            finite = finite && isfinite(dst[r * n + i]);
    }
    return finite;
}

/* Frobenius norm of a weight from evenly spaced rows; 0 when out of memory. */
static double weight_norm(const cr_model *m, const struct cr_matrix *w)
{
    float *row = cr_alloc((size_t)w->n_in, sizeof *row);
    if (!row)
        return 0;
    int n = w->n_out < SAMPLED_ROWS ? w->n_out : SAMPLED_ROWS;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        size_t r = (size_t)i * (size_t)w->n_out / (size_t)n;
        m->k->dequantize[w->type](row, (const uint8_t *)w->data + r * w->row_bytes,
                                  (size_t)w->n_in);
        for (int j = 0; j < w->n_in; j++)
            sum += (double)row[j] * row[j];
    }
    cr_free(row);
    return sqrt(sum / n * w->n_out);
}

/* scale * sqrt(sum_j |b_j|^2 |a_j|^2): |B A| with its rank-one parts taken as orthogonal, so a
 * single huge value cannot hide. */
static double update_norm(const struct cr_adapter_pair *p, const struct cr_matrix *w)
{
    double sum = 0;
    for (int j = 0; j < p->rank; j++) {
        double a = 0, b = 0;
        for (int i = 0; i < w->n_in; i++)
            a += (double)p->a[(size_t)j * (size_t)w->n_in + (size_t)i] *
                 p->a[(size_t)j * (size_t)w->n_in + (size_t)i];
        for (int i = 0; i < w->n_out; i++)
            b += (double)p->b[(size_t)i * (size_t)p->rank + (size_t)j] *
                 p->b[(size_t)i * (size_t)p->rank + (size_t)j];
        sum += a * b;
    }
    return fabs(p->scale) * sqrt(sum);
}

/* Warns about changes larger than the weight itself, and about an adapter that changes nothing. */
static void warn_about_size(const cr_model *m, const cr_adapter *a)
{
    int n_large = 0;
    double total = 0, worst = 0, worst_w = 0;
    int at = 0;
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++) {
        if (a->pairs[i].rank == 0)
            continue;
        const struct cr_matrix *w =
            cr_model_linear(m, i / CR_LIN_COUNT, (enum cr_linear)(i % CR_LIN_COUNT));
        double u = update_norm(&a->pairs[i], w), norm = weight_norm(m, w);
        total += u;
        if (u <= norm)
            continue;
        if (n_large++ == 0 || u * worst_w > worst * norm) {
            worst = u;
            worst_w = norm;
            at = i;
        }
    }
    if (n_large)
        cr_log(CR_LOG_WARN,
               "%s: %d changes are larger than the weights they change; the worst, "
               "blk.%d.%s, has norm %.3g against %.3g",
               a->path, n_large, at / CR_LIN_COUNT, cr_linear_names[at % CR_LIN_COUNT], worst,
               worst_w);
    if (total == 0)
        cr_log(CR_LOG_WARN, "%s: changes nothing: every B A is zero", a->path);
}

/* Converts the checked slots into a->data. */
static enum cr_status load_slots(struct cr_lora_source *s, cr_adapter *a, struct cr_error *err)
{
    size_t n_slots = (size_t)s->m->n_layers * CR_LIN_COUNT, floats = 0, widest = 0;
    for (size_t i = 0; i < n_slots; i++)
        for (int j = 0; j < 2; j++) {
            const struct cr_lora_half *h = &s->slots[i].half[j];
            if (!h->data)
                continue;
            floats += (size_t)(h->rows * h->cols); /* at most 4096 * (n_in + n_out) each */
            widest = h->cols > widest ? (size_t)h->cols : widest;
        }
    a->data = cr_alloc(floats, sizeof(float));
    void *tmp = cr_alloc(widest, sizeof(float));
    if (!a->data || !tmp) {
        cr_free(tmp);
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory for %zu floats", s->path, floats);
    }
    float *at = a->data;
    for (size_t i = 0; i < n_slots; i++) {
        const struct cr_lora_slot *slot = &s->slots[i];
        if (!slot->half[0].data)
            continue;
        struct cr_adapter_pair *p = &a->pairs[i];
        p->rank = (int)slot->half[0].rows;
        p->scale = (float)(slot->alpha / (slot->rslora ? sqrt(p->rank) : p->rank));
        p->a = at;
        at += slot->half[0].rows * slot->half[0].cols;
        p->b = at;
        at += slot->half[1].rows * slot->half[1].cols;
        bool permuted = s->hf_rows && cr_lora_is_permuted(s->m, (enum cr_linear)(i % CR_LIN_COUNT));
        for (int j = 0; j < 2; j++)
            if (!load_half(s->m, &slot->half[j], j == 1 && permuted, j ? p->b : p->a, tmp))
                cr_refuse(&s->bad, CR_FORMAT, "%.*s (holds NaN or infinity)",
                          shown(slot->half[j].name), slot->half[j].name.p);
        a->n_pairs++;
        a->max_rank = p->rank > a->max_rank ? p->rank : a->max_rank;
    }
    cr_free(tmp);
    return cr_refusals_report(&s->bad, s->path, err);
}

enum cr_status cr_lora_bind(struct cr_lora_source *s, const char *name, cr_adapter **out,
                            struct cr_error *err)
{
    size_t n_slots = (size_t)s->m->n_layers * CR_LIN_COUNT, n = 0;
    *out = NULL;
    for (size_t i = 0; i < n_slots; i++)
        if (s->slots[i].half[0].data || s->slots[i].half[1].data) {
            check_slot(s, &s->slots[i], (int)(i % CR_LIN_COUNT));
            n++;
        }
    if (n == 0 && s->bad.n == 0)
        cr_refuse(&s->bad, CR_FORMAT, "no LoRA tensors: it would change nothing");
    enum cr_status status = cr_refusals_report(&s->bad, s->path, err);
    if (status != CR_OK)
        return status;
    cr_adapter *a = cr_alloc0(1, sizeof *a);
    if (a) {
        a->model = s->m;
        a->n_layers = s->m->n_layers;
        a->path = cr_strdup(s->path);
        a->name = cr_strdup(name);
        a->task_name = cr_strdup("");
        a->pairs = cr_alloc0(n_slots, sizeof *a->pairs);
    }
    if (!a || !a->path || !a->name || !a->task_name || !a->pairs)
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", s->path);
    else
        status = load_slots(s, a, err);
    if (status != CR_OK) {
        cr_adapter_close(a);
        return status;
    }
    warn_about_size(s->m, a);
    *out = a;
    return CR_OK;
}
