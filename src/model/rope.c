/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rotary position embedding (Su et al. 2021, arXiv 2104.09864): pair i of a head turns by
 * pos * freq[i], freq[i] = base^(-2i / d). Longer contexts scale the frequencies:
 *   linear  freq / factor
 *   yarn    Peng et al. 2023, arXiv 2309.00071: high frequencies stay, low ones are divided by the
 *           factor, between them a ramp; cos and sin grow by 1 + 0.1 ln(factor)
 *   llama3  comes ready-made in the tensor rope_freqs.weight: freq / rope_freqs
 *   longrope  Ding et al. 2024, arXiv 2402.13753 (phi3): rope_factors_short.weight up to the
 * original context, rope_factors_long.weight beyond; cos and sin grow by a factor that the file
 * has. Only the short ones are used, and the context ends where they do. Any other scaling is
 * refused by name.
 */
#include "model/model.h"

#include "base/log.h"
#include "base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum { KEY_SIZE = 96 };

struct scaling {
    enum { SCALE_NONE, SCALE_LINEAR, SCALE_YARN, SCALE_LONG } kind;
    float factor, attn_factor, beta_fast, beta_slow;
    uint32_t original_ctx;
};

/* Reads <arch>.rope.<name>; a number must be finite and in (lo, hi). */
static enum cr_status read_float(const cr_gguf *g, const char *arch, const char *name, float lo,
                                 float hi, float *out, struct cr_error *err)
{
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "%s.rope.%s", arch, name);
    enum cr_status status = cr_gguf_f32(g, key, false, out, err);
    if (status == CR_NOT_FOUND)
        return CR_OK;
    if (status == CR_OK && !(*out > lo && *out < hi))
        status = cr_error_set(err, CR_FORMAT,
                              "%s: key %s: want more than %g and less than %g, "
                              "found %g",
                              cr_gguf_name(g), key, (double)lo, (double)hi, (double)*out);
    return status;
}

/* longrope: the factors themselves are a tensor. */
static enum cr_status read_long(const cr_model *m, const cr_gguf *g, const char *arch,
                                struct scaling *s, struct cr_error *err)
{
    char key[KEY_SIZE];
    s->kind = SCALE_LONG;
    s->original_ctx = (uint32_t)m->n_ctx_train;
    enum cr_status status =
        read_float(g, arch, "scaling.attn_factor", 0, 1e3f, &s->attn_factor, err);
    snprintf(key, sizeof key, "%s.rope.scaling.original_context_length", arch);
    if (status == CR_OK)
        status = cr_gguf_u32(g, key, false, &s->original_ctx, err);
    if (status == CR_OK && s->original_ctx == 0)
        status = cr_error_set(err, CR_FORMAT, "%s: key %s is 0", cr_gguf_name(g), key);
    return status == CR_NOT_FOUND ? CR_OK : status;
}

static enum cr_status read_scaling(const cr_model *m, const cr_gguf *g, const char *arch,
                                   struct scaling *s, struct cr_error *err)
{
    *s = (struct scaling){SCALE_NONE, 1, 1, 32, 1, (uint32_t)m->n_ctx_train};
    if (cr_gguf_tensor(g, "rope_factors_short.weight")) /* with or without a type */
        return read_long(m, g, arch, s, err);
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    struct cr_str kind;
    enum cr_status status = cr_gguf_str(g, key, false, &kind, err);
    if (status == CR_OK && cr_str_eq(kind, "linear")) {
        s->kind = SCALE_LINEAR;
    } else if (status == CR_OK && cr_str_eq(kind, "yarn")) {
        s->kind = SCALE_YARN;
    } else if (status == CR_OK && !cr_str_eq(kind, "none")) {
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: key %s: want none, linear or yarn, found %.*s", cr_gguf_name(g),
                            key, kind.n < 40 ? (int)kind.n : 40, kind.p);
    } else if (status == CR_NOT_FOUND) {
        /* the key of older files, a linear factor by another name */
        status = read_float(g, arch, "scale_linear", 0, 1e6f, &s->factor, err);
        s->kind = s->factor != 1 ? SCALE_LINEAR : SCALE_NONE;
    }
    if (status == CR_OK && s->kind != SCALE_NONE)
        status = read_float(g, arch, "scaling.factor", 0, 1e6f, &s->factor, err);
    if (status == CR_OK && s->kind == SCALE_YARN) {
        status = read_float(g, arch, "scaling.attn_factor", 0, 1e3f, &s->attn_factor, err);
        if (status == CR_OK)
            status = read_float(g, arch, "scaling.yarn_beta_fast", 0, 1e6f, &s->beta_fast, err);
        if (status == CR_OK)
            status = read_float(g, arch, "scaling.yarn_beta_slow", 0, 1e6f, &s->beta_slow, err);
        snprintf(key, sizeof key, "%s.rope.scaling.original_context_length", arch);
        if (status == CR_OK)
            status = cr_gguf_u32(g, key, false, &s->original_ctx, err);
        if (status == CR_NOT_FOUND)
            status = CR_OK;
        if (status == CR_OK && s->original_ctx == 0)
            status = cr_error_set(err, CR_FORMAT, "%s: key %s is 0", cr_gguf_name(g), key);
    }
    return status;
}

/* The pair index that turns `turns` times over the original context. */
static float yarn_pair(float turns, float d, float base, float original_ctx)
{
    return d * logf(original_ctx / (turns * 6.28318530718f)) / (2 * logf(base));
}

static void apply_yarn(cr_model *m, const struct scaling *s, float base)
{
    int n = m->rope_dim / 2;
    float d = (float)m->rope_dim, ctx = (float)s->original_ctx;
    float low = floorf(yarn_pair(s->beta_fast, d, base, ctx));
    float high = ceilf(yarn_pair(s->beta_slow, d, base, ctx));
    low = low > 0 ? low : 0;
    high = high < d - 1 ? high : d - 1;
    float width = high - low > 0.001f ? high - low : 0.001f;
    for (int i = 0; i < n; i++) {
        float ramp = ((float)i - low) / width;
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        m->rope_freq[i] = m->rope_freq[i] / s->factor * ramp + m->rope_freq[i] * (1 - ramp);
    }
    m->rope_mscale = s->attn_factor * (s->factor > 1 ? 1 + 0.1f * logf(s->factor) : 1);
}

/* Divides by the tensor `name` where the file has it. */
static enum cr_status apply_tensor(cr_model *m, const cr_gguf *g, const char *name,
                                   struct cr_error *err)
{
    const struct cr_tensor *t = cr_gguf_tensor(g, name);
    if (!t)
        return CR_OK;
    int n = m->rope_dim / 2;
    if (t->type != CR_F32 || t->ne[0] != (uint64_t)n || t->bytes != (size_t)n * sizeof(float))
        return cr_error_set(
            err, CR_FORMAT, "%s: tensor %s: want F32 [%d], found %s [%" PRIu64 ",%" PRIu64 "]",
            cr_gguf_name(g), name, n, cr_type_info(t->type)->name, t->ne[0], t->ne[1]);
    const float *divide = t->data;
    for (int i = 0; i < n; i++) {
        if (!(divide[i] > 0 && divide[i] < 1e6f))
            return cr_error_set(err, CR_FORMAT,
                                "%s: tensor %s: value %d: want more than 0 and less than 1e6, "
                                "found %g",
                                cr_gguf_name(g), name, i, (double)divide[i]);
        m->rope_freq[i] /= divide[i];
    }
    return CR_OK;
}

enum cr_status cr_rope_setup(cr_model *m, const cr_gguf *g, const char *arch, struct cr_error *err)
{
    float base = 10000, local_base = 10000;
    struct scaling s;
    enum cr_status status = read_float(g, arch, "freq_base", 1, 1e12f, &base, err);
    if (status == CR_OK && m->n_ropes > 1)
        status = read_float(g, arch, "freq_base_swa", 1, 1e12f, &local_base, err);
    if (status == CR_OK)
        status = read_scaling(m, g, arch, &s, err);
    if (status != CR_OK)
        return status;
    int n = m->rope_dim / 2;
    m->rope_freq = cr_alloc((size_t)(m->n_ropes * n), sizeof *m->rope_freq);
    if (!m->rope_freq)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", cr_gguf_name(g));
    m->rope_mscale = 1;
    for (int i = 0; i < n; i++)
        m->rope_freq[i] = 1.0f / powf(base, (float)(2 * i) / (float)m->rope_dim);
    if (s.kind == SCALE_YARN)
        apply_yarn(m, &s, base);
    for (int i = 0; i < n && s.kind == SCALE_LINEAR; i++)
        m->rope_freq[i] /= s.factor;
    for (int i = 0; i < n && m->n_ropes > 1; i++) /* windows are never scaled */
        m->rope_freq[n + i] = 1.0f / powf(local_base, (float)(2 * i) / (float)m->rope_dim);
    if (s.kind == SCALE_LONG) {
        m->rope_mscale = s.attn_factor;
        if (s.original_ctx < (uint32_t)m->n_ctx_train) {
            cr_log(CR_LOG_INFO,
                   "%s: context limited to that of its short factors, %" PRIu32 " of %d tokens",
                   cr_gguf_name(g), s.original_ctx, m->n_ctx_train);
            m->n_ctx_train = (int)s.original_ctx;
        }
        return apply_tensor(m, g, "rope_factors_short.weight", err);
    }
    return apply_tensor(m, g, "rope_freqs.weight", err);
}

void cr_rope_angles(const cr_model *m, int32_t pos, float *cs)
{
    for (int i = 0; i < m->n_ropes * (m->rope_dim / 2); i++) {
        float angle = (float)pos * m->rope_freq[i];
        cs[2 * i] = cosf(angle) * m->rope_mscale;
        cs[2 * i + 1] = sinf(angle) * m->rope_mscale;
    }
}
