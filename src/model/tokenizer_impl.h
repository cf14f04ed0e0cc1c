/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the tokenizer: what tokenizer.c (loading, special tokens, interface), pretokenize.c (the
 * published split patterns), merge.c (the heap of merges), bpe.c and spm.c (the two families)
 * share. Nobody else includes this.
 */
#ifndef CR_TOKENIZER_IMPL_H
#define CR_TOKENIZER_IMPL_H

#include "model/tokenizer.h"

/* Limits; the tests go one past each. */
enum {
    CR_MAX_VOCAB = 1 << 22,
    CR_MAX_TOKEN_BYTES = 4096, /* bounds the work per byte of text; real vocabularies stay < 300 */
    CR_MAX_TEXT_BYTES = 1 << 28,
};

/* ---- the heap of merges (merge.c) ---- */

enum { CR_NO_SYMBOL = -1 };
struct cr_symbol {
    int32_t id;         /* token so far; -1: none, spm only */
    int32_t prev, next; /* neighbours; -1: none */
    uint32_t begin;     /* first byte in the word, spm only */
    uint32_t priority;  /* of merging with next; lower is sooner, UINT32_MAX: cannot be merged */
    int32_t merged;     /* what that merge gives */
};
struct cr_merge_work {
    struct cr_symbol *symbols; /* [cap]; live ones are linked from 0 */
    uint64_t *heap;            /* [2 * cap]: priority << 32 | position */
    size_t cap;
};
/* Sets a->priority and a->merged for the pair (a, b). */
typedef void cr_pair_fn(const void *ud, struct cr_symbol *a, const struct cr_symbol *b);

/* Room for n symbols; false when out of memory. Free with cr_merge_work_deinit. */
bool cr_merge_work_reserve(struct cr_merge_work *w, size_t n);
void cr_merge_work_deinit(struct cr_merge_work *w);
/* Symbols 0..n-1 have id and begin. Merges the best pair, leftmost first among equals, until none
 * is left. O(n log n) calls of pair. */
void cr_merge_run(struct cr_merge_work *w, size_t n, cr_pair_fn *pair, const void *ud);

/* ---- split patterns (pretokenize.c) ---- */

struct cr_pretokenizer;
struct cr_pretokenizer_work; /* per call of encode */
/* Returns false to stop (out of memory). */
typedef bool cr_piece_fn(void *ud, const char *text, size_t len);

/* CR_UNSUPPORTED for a name that is not known. */
enum cr_status cr_pretokenizer_new(struct cr_pretokenizer **out, const char *name, size_t name_len,
                                   struct cr_error *err);
void cr_pretokenizer_free(struct cr_pretokenizer *p);
/* Gives fn the pieces of valid UTF-8 in order; together they are the text. */
enum cr_status cr_pretokenizer_run(const struct cr_pretokenizer *p, const char *text, size_t len,
                                   cr_piece_fn *fn, void *ud, struct cr_error *err);

/* ---- the tokenizer ---- */

enum cr_token_family { CR_FAMILY_BPE, CR_FAMILY_SPM };

struct cr_vocab_slot {
    uint32_t hash;
    int32_t id; /* -1: free */
};
struct cr_pair_slot {
    int32_t left, right; /* left -1: free */
    uint32_t rank;
    int32_t merged;
};
struct cr_special {
    const char *text;
    uint32_t len;
    int32_t id;
};

struct cr_tokenizer {
    enum cr_token_family family;
    int32_t n;
    int32_t bos, eos, unk; /* -1: none */
    bool add_bos, add_space_prefix;
    char *bytes;       /* all tokens, decoded: what they stand for in text */
    uint32_t *offsets; /* [n + 1] into bytes */
    uint8_t *types;    /* [n] enum cr_token_type, CR_TOKEN_END added for end tokens */
    /* Tokens that text may become, by their bytes: open addressing, [vocab_cap] slots. */
    struct cr_vocab_slot *vocab;
    uint32_t vocab_cap;
    uint32_t max_len;           /* bytes of the longest of them */
    int32_t byte_ids[256];      /* -1: none */
    struct cr_special *special; /* [n_special] control, unknown and user-defined, sorted by text */
    size_t n_special;
    uint8_t special_first[256]; /* bit 0: starts a user-defined token; bit 1: starts any special */
    /* BPE */
    struct cr_pretokenizer *pre;
    bool ignore_merges; /* llama-bpe: a piece that is a token is that token */
    struct cr_pair_slot *pairs;
    uint32_t pairs_cap;
    /* SPM */
    uint32_t *priority; /* [n] from the scores; lower is sooner */
    bool words_apart;   /* no token has a space after another character */
};
enum { CR_TOKEN_TYPE_MASK = 0x0F, CR_TOKEN_END = 0x80 };

/* The token of these bytes that text may become; -1: none. */
int32_t cr_vocab_find(const cr_tokenizer *t, const char *text, size_t len);
/* Undoes the byte-level alphabet of gpt2 (a space is U+0120 and so on); out has room for s.n.
 * Characters outside the alphabet stay as they are. Returns the length. */
size_t cr_bpe_decode(struct cr_str s, char *out);
/* Reads tokenizer.ggml.pre and .merges; the vocabulary is there. */
enum cr_status cr_bpe_load(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err);
/* Valid UTF-8 without special tokens. */
enum cr_status cr_bpe_encode(const cr_tokenizer *t, const char *text, size_t len,
                             struct cr_ids *ids, struct cr_error *err);
/* Undoes the space of SentencePiece (U+2581); out has room for s.n. */
size_t cr_spm_decode(struct cr_str s, char *out);
/* Reads tokenizer.ggml.scores; the vocabulary is there. */
enum cr_status cr_spm_load(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err);
enum cr_status cr_spm_encode(const cr_tokenizer *t, const char *text, size_t len,
                             struct cr_ids *ids, struct cr_error *err);

#endif
