/* SPDX-License-Identifier: Apache-2.0 */
/* Vocabularies for tests: small ones made in place, real ones from tests/data. Include it after
 * cmocka.h. */
#ifndef TEST_VOCAB_H
#define TEST_VOCAB_H

#include "base/bytes.h"
#include "base/mem.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef CRAYON_LZMA
#include <lzma.h>
#endif

enum { MAX_TOKENS = 600 };
struct vocab {
    const char *model, *pre;
    const char *tokens[MAX_TOKENS];
    uint32_t types[MAX_TOKENS];
    float scores[MAX_TOKENS];
    const char *merges[MAX_TOKENS];
    size_t n, n_types, n_scores, n_merges; /* n_types, n_scores: n unless a test changes them */
    bool no_merges;
    uint32_t bos, eos; /* UINT32_MAX: none */
};

static char alphabet[256][8], byte_names[256][8];

static inline void make_alphabet(void)
{
    unsigned next = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool self = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        unsigned c = self ? b : next++;
        if (c < 128)
            snprintf(alphabet[b], sizeof alphabet[b], "%c", (int)c);
        else
            snprintf(alphabet[b], sizeof alphabet[b], "%c%c", (int)(0xC0 | c >> 6),
                     (int)(0x80 | (c & 63)));
        snprintf(byte_names[b], sizeof byte_names[b], "<0x%02X>", b);
    }
}

static inline uint32_t add(struct vocab *v, const char *token, uint32_t type, float score)
{
    v->tokens[v->n] = token;
    v->types[v->n] = type;
    v->scores[v->n] = score;
    v->n_types = v->n_scores = v->n + 1;
    return (uint32_t)v->n++;
}

/* The 256 bytes of a gpt2 vocabulary: id = byte. */
static inline struct vocab byte_vocab(const char *pre)
{
    struct vocab v = {.model = "gpt2", .pre = pre, .bos = UINT32_MAX, .eos = UINT32_MAX};
    make_alphabet();
    for (int b = 0; b < 256; b++)
        add(&v, alphabet[b], CR_TOKEN_NORMAL, 0);
    return v;
}

/* Bytes, and the first n control tokens of the chat templates from id 256 on:
 * tests/golden/make_chat.py has the same order. */
enum { CHAT_MARKS = 15 };
static inline struct vocab chat_vocab(size_t n)
{
    static const char *const marks[CHAT_MARKS] = {"<s>",
                                                  "</s>",
                                                  "<|im_start|>",
                                                  "<|im_end|>",
                                                  "<|start_header_id|>",
                                                  "<|end_header_id|>",
                                                  "<|eot_id|>",
                                                  "<start_of_turn>",
                                                  "<end_of_turn>",
                                                  "[INST]",
                                                  "[/INST]",
                                                  "<|system|>",
                                                  "<|user|>",
                                                  "<|assistant|>",
                                                  "<|end|>"};
    struct vocab v = byte_vocab("gpt-2");
    for (size_t i = 0; i < n; i++)
        add(&v, marks[i], CR_TOKEN_CONTROL, 0);
    v.bos = 256;
    v.eos = 257;
    return v;
}

static inline enum cr_status open_vocab(const struct vocab *v, cr_gguf **g, cr_tokenizer **t,
                                        struct cr_error *err)
{
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    cr_gguf_writer *w = cr_gguf_writer_new();
    cr_gguf_put_str(w, "tokenizer.ggml.model", v->model);
    if (v->pre)
        cr_gguf_put_str(w, "tokenizer.ggml.pre", v->pre);
    cr_gguf_put_strs(w, "tokenizer.ggml.tokens", v->tokens, v->n);
    cr_gguf_put_u32s(w, "tokenizer.ggml.token_type", v->types, v->n_types);
    if (strcmp(v->model, "llama") == 0)
        cr_gguf_put_f32s(w, "tokenizer.ggml.scores", v->scores, v->n_scores);
    else if (!v->no_merges)
        cr_gguf_put_strs(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    if (v->bos != UINT32_MAX)
        cr_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", v->bos);
    if (v->eos != UINT32_MAX)
        cr_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", v->eos);
    assert_int_equal(cr_gguf_write(w, path, err), CR_OK);
    cr_gguf_writer_free(w);
    assert_int_equal(cr_gguf_open(g, path, err), CR_OK);
    unlink(path);
    enum cr_status status = cr_tokenizer_new(t, *g, err);
    if (status != CR_OK) {
        assert_null(*t);
        cr_gguf_close(*g);
        *g = NULL;
    }
    return status;
}

/* Unpacks a file of at most cap bytes into fresh memory. NULL: built without liblzma. */
static inline void *read_xz(const char *path, size_t cap, size_t *out_len)
{
#ifdef CRAYON_LZMA
    char *xz;
    size_t len, in = 0;
    uint64_t limit = 256u << 20;
    struct cr_error err;
    assert_int_equal(cr_file_read(path, 1 << 20, &xz, &len, &err), CR_OK);
    void *out = cr_alloc(cap, 1);
    assert_non_null(out);
    *out_len = 0;
    assert_int_equal(lzma_stream_buffer_decode(&limit, 0, NULL, (const uint8_t *)xz, &in, len, out,
                                               out_len, cap),
                     LZMA_OK);
    cr_free(xz);
    return out;
#else
    (void)path, (void)cap, (void)out_len;
    print_message("skip: built without liblzma\n");
    return NULL;
#endif
}

/* Opens CR_SOURCE_DIR/tests/data/NAME.gguf.xz over *memory (free with cr_free after closing).
 * False: built without liblzma. */
static inline bool open_xz_vocab(const char *name, void **memory, cr_gguf **g, cr_tokenizer **t)
{
    char path[512];
    size_t len;
    struct cr_error err;
    snprintf(path, sizeof path, CR_SOURCE_DIR "/tests/data/%s.gguf.xz", name);
    *memory = read_xz(path, 4u << 20, &len);
    if (!*memory)
        return false;
    assert_int_equal(cr_gguf_parse(g, *memory, len, name, &err), CR_OK);
    assert_int_equal(cr_tokenizer_new(t, *g, &err), CR_OK);
    return true;
}

#endif
