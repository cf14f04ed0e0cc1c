/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes <-> token ids, from GGUF metadata: `gpt2` byte-level BPE (pre: gpt-2, smollm, llama-bpe,
 * qwen2, default) and `llama` SentencePiece BPE with byte fallback. Immutable after creation.
 *
 * The work of encoding is O(n log n) in the text (a heap of merges), also for 10^6 equal letters.
 * Invalid UTF-8 is text like any other: see docs/formats.md for what each family does with it.
 */
#ifndef CR_TOKENIZER_H
#define CR_TOKENIZER_H

#include "model/gguf.h"

typedef struct cr_tokenizer cr_tokenizer;

enum cr_token_type { /* GGUF tokenizer.ggml.token_type */
                     CR_TOKEN_NORMAL = 1,
                     CR_TOKEN_UNKNOWN,
                     CR_TOKEN_CONTROL,
                     CR_TOKEN_USER_DEFINED,
                     CR_TOKEN_UNUSED,
                     CR_TOKEN_BYTE
};

/* Reads tokenizer.ggml.*; borrows the strings in g, which must outlive it. */
enum cr_status cr_tokenizer_new(cr_tokenizer **out, const cr_gguf *g, struct cr_error *err);
void cr_tokenizer_free(cr_tokenizer *t);
int32_t cr_tokenizer_size(const cr_tokenizer *t);
int32_t cr_tokenizer_bos(const cr_tokenizer *t); /* -1: none */
int32_t cr_tokenizer_eos(const cr_tokenizer *t); /* -1: none */
bool cr_tokenizer_add_bos(const cr_tokenizer *t);
bool cr_tokenizer_is_end(const cr_tokenizer *t, int32_t id); /* eos, eot, <|im_end|>, ... */
bool cr_tokenizer_is_control(const cr_tokenizer *t, int32_t id);
int32_t cr_tokenizer_find(const cr_tokenizer *t, const char *text); /* exact vocabulary entry; -1 */
/* flags: enum cr_tokenize_flags. Appends to ids (array grown with cr_realloc). Control tokens are
 * produced only with CR_TOKENIZE_SPECIAL. */
struct cr_ids {
    int32_t *v;
    size_t n, cap;
};
enum cr_status cr_tokenizer_encode(const cr_tokenizer *t, const char *text, size_t len,
                                   unsigned flags, struct cr_ids *ids, struct cr_error *err);
bool cr_ids_push(struct cr_ids *ids, int32_t id); /* false: out of memory */
/* Bytes of a token; see cr_token_bytes in crayon.h. */
size_t cr_tokenizer_bytes(const cr_tokenizer *t, int32_t id, bool special, const char **bytes);

#endif
