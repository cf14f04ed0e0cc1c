/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small random models for tests, written as GGUF files: any architecture, types and shape, always
 * the same for the same seed. The vocabulary is byte-level: id = byte, then a few more tokens.
 *
 *     struct tiny spec = tiny_default();
 *     spec.arch = "qwen2";
 *     cr_model *m = tiny_open(&spec, NULL);
 */
#ifndef CR_TEST_TINY_GGUF_H
#define CR_TEST_TINY_GGUF_H

#include "base/mem.h"
#include "base/rng.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TINY_AB = 256,    /* the token "ab" */
    TINY_START = 257, /* <|im_start|> */
    TINY_END = 258,   /* <|im_end|>, ends a text */
    TINY_VOCAB = 259
};

struct tiny {
    const char *arch;
    uint32_t type;      /* of all matrices but these: */
    uint32_t embd_type; /* token_embd and output */
    uint32_t v_type;    /* attn_v, so that q, k and v differ when wanted */
    uint32_t norm_type; /* vectors */
    int n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_ctx;
    int window; /* 0: no key */
    bool tied;
    uint64_t seed;
    float gain;          /* of the weights; 0 for a layer that changes nothing */
    const char *chat;    /* chat template or NULL */
    const uint8_t *next; /* not NULL: token i is followed by next[i] (i < 256), see tiny_script */
    /* may change keys and tensors before the file is written; a tensor or key of this name is
     * left out */
    const char *without;
    const char *set_key; /* this key of the architecture gets set_value instead */
    uint32_t set_value;
    void (*extra)(cr_gguf_writer *w);
};

static inline struct tiny tiny_default(void)
{
    return (struct tiny){.arch = "llama",
                         .type = CR_F32,
                         .embd_type = CR_F32,
                         .v_type = CR_F32,
                         .norm_type = CR_F32,
                         .n_layers = 3,
                         .n_embd = 64,
                         .n_heads = 4,
                         .n_kv_heads = 2,
                         .head_dim = 16,
                         .n_ff = 96,
                         .n_ctx = 128,
                         .tied = true,
                         .seed = 1,
                         .gain = 1};
}

static inline struct tiny tiny_typed(const char *arch, uint32_t type)
{
    struct tiny t = tiny_default();
    t.arch = arch;
    t.type = t.embd_type = t.v_type = type;
    return t;
}

/* Data of tensors lives until the file is written. */
struct tiny_writer {
    cr_gguf_writer *w;
    const struct tiny *spec;
    struct cr_rng rng;
    void *blocks[CR_MAX_LAYERS];
    int n_blocks;
};

static inline void tiny_tensor(struct tiny_writer *tw, const char *name, uint32_t type, int n_in,
                               int n_out, float mean, float spread)
{
    if (tw->spec->without && strcmp(name, tw->spec->without) == 0)
        return;
    size_t n = (size_t)n_in * (size_t)n_out;
    float *x = cr_alloc(n, sizeof *x);
    void *data = cr_alloc((size_t)n_out, cr_row_bytes(type, (size_t)n_in));
    if (!x || !data)
        abort();
    for (size_t i = 0; i < n; i++)
        x[i] = mean + spread * (float)cr_rng_normal(&tw->rng);
    const uint8_t *next = tw->spec->next;
    bool embd = strcmp(name, "token_embd.weight") == 0, out = strcmp(name, "output.weight") == 0;
    if (next && (embd || out)) { /* one-hot rows: the logits of token i are greatest at next[i] */
        memset(x, 0, n * sizeof *x);
        for (int i = 0; i < n_out; i++)
            if (embd)
                x[i * n_in + i] = 1;
            else
                for (int j = 0; j < 256; j++)
                    x[i * n_in + j] = next[j] ? next[j] == i : i == TINY_END;
    }
    cr_quantize_ref(type, data, x, n);
    cr_free(x);
    const uint64_t ne[2] = {(uint64_t)n_in, (uint64_t)n_out};
    cr_gguf_put_tensor(tw->w, name, type, n_out > 1 ? 2 : 1, ne, data);
    tw->blocks[tw->n_blocks++] = data;
}

static inline void tiny_int(struct tiny_writer *tw, const char *name, int v)
{
    char key[80];
    snprintf(key, sizeof key, "%s.%s", tw->spec->arch, name);
    if (!tw->spec->without || strcmp(key, tw->spec->without) != 0)
        cr_gguf_put_u32(tw->w, key,
                        tw->spec->set_key && strcmp(name, tw->spec->set_key) == 0
                            ? tw->spec->set_value
                            : (uint32_t)v);
}

static inline void tiny_vocabulary(cr_gguf_writer *w)
{
    static char alphabet[256][8];
    const char *tokens[TINY_VOCAB];
    uint32_t types[TINY_VOCAB];
    unsigned other = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool self = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        unsigned c = self ? b : other++;
        if (c < 128)
            snprintf(alphabet[b], sizeof alphabet[b], "%c", (int)c);
        else
            snprintf(alphabet[b], sizeof alphabet[b], "%c%c", (int)(0xC0 | c >> 6),
                     (int)(0x80 | (c & 63)));
        tokens[b] = alphabet[b];
        types[b] = 1;
    }
    tokens[TINY_AB] = "ab";
    tokens[TINY_START] = "<|im_start|>";
    tokens[TINY_END] = "<|im_end|>";
    types[TINY_AB] = 1;
    types[TINY_START] = types[TINY_END] = 3;
    const char *const merges[] = {"a b"};
    cr_gguf_put_str(w, "tokenizer.ggml.model", "gpt2");
    cr_gguf_put_str(w, "tokenizer.ggml.pre", "gpt-2");
    cr_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, TINY_VOCAB);
    cr_gguf_put_u32s(w, "tokenizer.ggml.token_type", types, TINY_VOCAB);
    cr_gguf_put_strs(w, "tokenizer.ggml.merges", merges, 1);
    cr_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", TINY_END);
}

static inline void tiny_keys(struct tiny_writer *tw)
{
    const struct tiny *t = tw->spec;
    char key[80];
    cr_gguf_put_str(tw->w, "general.architecture", t->arch);
    cr_gguf_put_str(tw->w, "general.name", "tiny");
    tiny_int(tw, "block_count", t->n_layers);
    tiny_int(tw, "context_length", t->n_ctx);
    tiny_int(tw, "embedding_length", t->n_embd);
    tiny_int(tw, "feed_forward_length", t->n_ff);
    tiny_int(tw, "attention.head_count", t->n_heads);
    tiny_int(tw, "attention.head_count_kv", t->n_kv_heads);
    tiny_int(tw, "attention.key_length", t->head_dim);
    if (t->window)
        tiny_int(tw, "attention.sliding_window", t->window);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", t->arch);
    if (!t->without || strcmp(key, t->without) != 0)
        cr_gguf_put_f32(tw->w, key, 1e-5f);
    if (t->chat)
        cr_gguf_put_str(tw->w, "tokenizer.chat_template", t->chat);
}

static inline void tiny_layer(struct tiny_writer *tw, int l)
{
    const struct tiny *t = tw->spec;
    int E = t->n_embd, Q = t->n_heads * t->head_dim, KV = t->n_kv_heads * t->head_dim, F = t->n_ff;
    const bool gemma = strcmp(t->arch, "gemma3") == 0, phi = strcmp(t->arch, "phi3") == 0;
    const struct {
        const char *name;
        uint32_t type;
        int n_in, n_out;
        bool fused; /* as phi3 has it; else as the others do */
    } m[] = {{"attn_q", t->type, E, Q, false},
             {"attn_k", t->type, E, KV, false},
             {"attn_v", t->v_type, E, KV, false},
             {"attn_qkv", t->type, E, Q + 2 * KV, true},
             {"attn_output", t->type, Q, E, phi},
             {"ffn_gate", t->type, E, F, false},
             {"ffn_up", t->type, E, phi ? 2 * F : F, phi},
             {"ffn_down", t->type, F, E, phi}};
    char name[80];
    for (size_t i = 0; i < sizeof m / sizeof *m; i++) {
        if (m[i].fused != phi)
            continue;
        snprintf(name, sizeof name, "blk.%d.%s.weight", l, m[i].name);
        /* 1 / sqrt(n_in) keeps the size of the activations */
        float spread = t->gain;
        for (int n = m[i].n_in; n > 1; n /= 4)
            spread /= 2;
        tiny_tensor(tw, name, m[i].type, m[i].n_in, m[i].n_out, 0, spread);
    }
    snprintf(name, sizeof name, "blk.%d.attn_norm.weight", l);
    tiny_tensor(tw, name, t->norm_type, E, 1, 1, 0.1f);
    snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", l);
    tiny_tensor(tw, name, t->norm_type, E, 1, 1, 0.1f);
    const char *const bias[] = {"attn_q.bias", "attn_k.bias", "attn_v.bias"};
    for (int i = 0; i < 3 && strcmp(t->arch, "qwen2") == 0; i++) {
        snprintf(name, sizeof name, "blk.%d.%s", l, bias[i]);
        tiny_tensor(tw, name, t->norm_type, i ? KV : Q, 1, 0, 0.5f);
    }
    const char *const norm[] = {"attn_q_norm.weight", "attn_k_norm.weight"};
    for (int i = 0; i < 2 && (gemma || strcmp(t->arch, "qwen3") == 0); i++) {
        snprintf(name, sizeof name, "blk.%d.%s", l, norm[i]);
        tiny_tensor(tw, name, t->norm_type, t->head_dim, 1, 1, 0.1f);
    }
    const char *const post[] = {"post_attention_norm.weight", "post_ffw_norm.weight"};
    for (int i = 0; i < 2 && gemma; i++) {
        snprintf(name, sizeof name, "blk.%d.%s", l, post[i]);
        tiny_tensor(tw, name, t->norm_type, E, 1, 3, 0.1f);
    }
}

static inline void tiny_write(const struct tiny *t, const char *path)
{
    struct tiny_writer tw = {.w = cr_gguf_writer_new(), .spec = t};
    struct cr_error err;
    if (!tw.w)
        abort();
    cr_rng_init(&tw.rng, t->seed);
    tiny_keys(&tw);
    tiny_vocabulary(tw.w);
    tiny_tensor(&tw, "token_embd.weight", t->embd_type, t->n_embd, TINY_VOCAB, 0, 1);
    if (!t->tied)
        tiny_tensor(&tw, "output.weight", t->embd_type, t->n_embd, TINY_VOCAB, 0, 0.2f);
    tiny_tensor(&tw, "output_norm.weight", t->norm_type, t->n_embd, 1, 1, 0.1f);
    for (int l = 0; l < t->n_layers; l++)
        tiny_layer(&tw, l);
    if (t->extra)
        t->extra(tw.w);
    if (cr_gguf_write(tw.w, path, &err) != CR_OK) {
        fprintf(stderr, "tiny model: %s\n", err.msg);
        abort();
    }
    for (int i = 0; i < tw.n_blocks; i++)
        cr_free(tw.blocks[i]);
    cr_gguf_writer_free(tw.w);
}

/* Writes the model to a temporary file and opens it; the file is gone afterwards. */
static inline enum cr_status tiny_try(const struct tiny *t, const struct cr_model_options *opt,
                                      cr_model **m, struct cr_error *err)
{
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        abort();
    close(fd);
    tiny_write(t, path);
    enum cr_status status = cr_model_open(m, path, opt, err);
    unlink(path);
    return status;
}

static inline cr_model *tiny_open(const struct tiny *t, const struct cr_model_options *opt)
{
    cr_model *m;
    struct cr_error err;
    if (tiny_try(t, opt, &m, &err) != CR_OK) {
        fprintf(stderr, "tiny model: %s\n", err.msg);
        abort();
    }
    return m;
}

/* A model that writes `text` after its first byte, then ends: layers change nothing, so that the
 * next token depends on the last one only. No byte of text may occur twice. next: 256 bytes. */
static inline struct tiny tiny_script(const char *text, uint8_t *next)
{
    struct tiny t = tiny_default();
    memset(next, 0, 256);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        next[p[0]] = p[1];
    t.n_embd = 288;
    t.n_layers = 1;
    t.gain = 0;
    t.tied = false;
    t.next = next;
    return t;
}

#endif
