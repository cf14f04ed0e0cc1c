/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A random model made in memory, for tests of training: 3 layers, width 32, 4 heads on 2 kv heads,
 * FFN 64, vocabulary 97. What sets an architecture apart is there: bias (qwen2), head norms
 * (qwen3), a layer without rotation (smollm3), windows, GELU and norms after (gemma3), windows and
 * rotation of a part of each head (phi3). float32 or quantised weights.
 */
#ifndef CR_TEST_TINY_MODEL_H
#define CR_TEST_TINY_MODEL_H

#include "gradient.h"
#include "model/model.h"

enum {
    TINY_LAYERS = 3,
    TINY_EMBD = 32,
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_DIM = 16,
    TINY_FF = 64,
    TINY_VOCAB = 97
};

struct tiny {
    cr_model m;
    struct cr_layer layers[TINY_LAYERS];
    float freq[2 * TINY_DIM / 2];
    void *owned[128];
    int n_owned;
};

static float *tiny_vector(struct tiny *t, size_t n, double mean, double scale)
{
    float *v = new_normal(n, scale, (uint64_t)t->n_owned + 1000);
    for (size_t i = 0; i < n; i++)
        v[i] += (float)mean;
    t->owned[t->n_owned++] = v;
    return v;
}

static struct cr_matrix tiny_matrix(struct tiny *t, uint32_t type, int n_out, int n_in)
{
    float *w = tiny_vector(t, (size_t)n_out * (size_t)n_in, 0, 1 / sqrt(n_in));
    struct cr_matrix m = {.data = w,
                          .type = type,
                          .n_in = n_in,
                          .n_out = n_out,
                          .row_bytes = cr_row_bytes(type, (size_t)n_in)};
    if (type == CR_F32)
        return m;
    char *q = cr_alloc((size_t)n_out, m.row_bytes);
    for (int r = 0; r < n_out; r++)
        cr_quantize_ref(type, q + (size_t)r * m.row_bytes, w + (size_t)r * (size_t)n_in,
                        (size_t)n_in);
    t->owned[t->n_owned++] = q;
    m.data = q;
    return m;
}

static struct tiny *tiny_new(enum cr_arch arch, uint32_t type)
{
    struct tiny *t = cr_alloc0(1, sizeof *t);
    cr_model *m = &t->m;
    const bool gemma = arch == CR_ARCH_GEMMA3, phi = arch == CR_ARCH_PHI3;
    const int q = TINY_HEADS * TINY_DIM, kv = TINY_KV_HEADS * TINY_DIM;
    const int shape[CR_LIN_COUNT][2] = {
        {q, TINY_EMBD},       {kv, TINY_EMBD},      {kv, TINY_EMBD},     {TINY_EMBD, q},
        {TINY_FF, TINY_EMBD}, {TINY_FF, TINY_EMBD}, {TINY_EMBD, TINY_FF}};
    m->arch = arch;
    m->n_layers = TINY_LAYERS;
    m->n_embd = TINY_EMBD;
    m->n_heads = TINY_HEADS;
    m->n_kv_heads = TINY_KV_HEADS;
    m->head_dim = TINY_DIM;
    m->rope_dim = phi ? 12 : TINY_DIM;
    m->n_ff = TINY_FF;
    m->n_vocab = TINY_VOCAB;
    m->n_ctx_train = 64;
    m->q_dim = q;
    m->kv_dim = kv;
    m->rope_neox = arch != CR_ARCH_LLAMA && arch != CR_ARCH_SMOLLM3;
    m->norm_eps = 1e-5f;
    m->rope_mscale = phi ? 1.25f : 1;
    m->n_ropes = gemma ? 2 : 1;
    m->embd_scale = gemma ? sqrtf(TINY_EMBD) : 1;
    m->attn_scale = gemma ? 0.3f : 1 / sqrtf(TINY_DIM);
    m->gelu = gemma;
    m->pages = CR_PAGES_MAP;
    m->rope_freq = t->freq;
    for (int i = 0; i < m->n_ropes * m->rope_dim / 2; i++)
        t->freq[i] = powf(i < m->rope_dim / 2 ? 10000 : 100,
                          -(float)(i % (m->rope_dim / 2)) / (float)(m->rope_dim / 2));
    if (cr_kernels_get(&m->k, NULL, NULL)) /* the level of this machine */
        return NULL;
    if (cr_threads_new(&m->threads, 1, NULL))
        return NULL;
    m->embd = tiny_matrix(t, type, TINY_VOCAB, TINY_EMBD);
    m->output = tiny_matrix(t, type, TINY_VOCAB, TINY_EMBD);
    m->output_norm = tiny_vector(t, TINY_EMBD, 1, 0.2);
    m->layers = t->layers;
    for (int l = 0; l < TINY_LAYERS; l++) {
        struct cr_layer *w = &t->layers[l];
        for (int i = 0; i < CR_LIN_COUNT; i++)
            w->lin[i] = tiny_matrix(t, type, shape[i][0], shape[i][1]);
        w->attn_norm = tiny_vector(t, TINY_EMBD, 1, 0.2);
        w->ffn_norm = tiny_vector(t, TINY_EMBD, 1, 0.2);
        w->rope = arch == CR_ARCH_SMOLLM3 && l == 1 ? -1 : gemma && l < 2 ? 1 : 0;
        w->window = phi || (gemma && l < 2) ? 5 : 0;
        if (arch == CR_ARCH_QWEN2) {
            w->bias_q = tiny_vector(t, (size_t)q, 0, 0.3);
            w->bias_k = tiny_vector(t, (size_t)kv, 0, 0.3);
            w->bias_v = tiny_vector(t, (size_t)kv, 0, 0.3);
        }
        if (gemma) {
            w->attn_post = tiny_vector(t, TINY_EMBD, 1, 0.2);
            w->ffn_post = tiny_vector(t, TINY_EMBD, 1, 0.2);
        }
        if (arch == CR_ARCH_QWEN3 || gemma) {
            w->norm_q = tiny_vector(t, TINY_DIM, 1, 0.2);
            w->norm_k = tiny_vector(t, TINY_DIM, 1, 0.2);
        }
    }
    return t;
}

static void tiny_matrix_to_float(struct tiny *t, struct cr_matrix *w)
{
    size_t n = (size_t)w->n_in, rows = (size_t)w->n_out;
    float *to = cr_alloc(rows * n, sizeof *to);
    for (size_t r = 0; r < rows; r++)
        cr_dequantize_ref(w->type, to + r * n, (const char *)w->data + r * w->row_bytes, n);
    t->owned[t->n_owned++] = to;
    *w = (struct cr_matrix){.data = to,
                            .type = CR_F32,
                            .n_in = w->n_in,
                            .n_out = w->n_out,
                            .row_bytes = n * sizeof *to};
}

/* The same model with float32 weights. */
static inline void tiny_to_float(struct tiny *t)
{
    tiny_matrix_to_float(t, &t->m.embd);
    tiny_matrix_to_float(t, &t->m.output);
    for (int l = 0; l < TINY_LAYERS; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++)
            tiny_matrix_to_float(t, &t->layers[l].lin[i]);
}

static void tiny_free(struct tiny *t)
{
    for (int i = 0; i < t->n_owned; i++)
        cr_free(t->owned[i]);
    cr_threads_free(t->m.threads);
    cr_free(t);
}

#endif
