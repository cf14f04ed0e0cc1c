/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-level BPE (Radford et al. 2019; Sennrich et al. 2016): text is split by the pre-tokenizer,
 * each piece starts as its bytes and is merged by rank. Merges are kept as a hash table from a pair
 * of ids to (rank, id), so that encoding never builds strings.
 *
 * Loading is most of the start-up time of a small model, so it is careful: no allocation per token,
 * and since vocabularies list the results of merges in order, the result of a merge is first looked
 * for behind the result of the one before.
 */
#include "model/tokenizer_impl.h"

#include "base/log.h"
#include "base/mem.h"

#include <string.h>

/* ---- the byte-level alphabet ---- */

/* Bytes 21-7E, A1-AC and AE-FF stand for themselves as code points; the other 68 are U+0100 up in
 * order of the byte. This is the inverse for code points 0 .. 0x143; -1: not in the alphabet. */
static int alphabet_byte(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xFF && c != 0xAD))
        return (int)c;
    if (c < 0x100 || c > 0x143)
        return -1;
    c -= 0x100; /* 33 below 21, then 7F-A0, then AD */
    return c < 33 ? (int)c : c < 67 ? (int)(c - 33 + 0x7F) : 0xAD;
}

size_t cr_bpe_decode(struct cr_str s, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        unsigned char c = (unsigned char)s.p[i];
        if (c >= 0xC2 && c <= 0xC5 && i + 1 < s.n) {
            int byte = alphabet_byte((c & 0x1Fu) << 6 | ((unsigned char)s.p[i + 1] & 0x3Fu));
            if (byte >= 0 && ((unsigned char)s.p[i + 1] & 0xC0) == 0x80) {
                out[n++] = (char)byte;
                i += 2;
                continue;
            }
        }
        out[n++] = s.p[i++];
    }
    return n;
}

/* ---- loading ---- */

static uint32_t pair_slot(const cr_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9E3779B97F4A7C15u;
    key ^= key >> 32;
    key *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(((key >> 32) * t->pairs_cap) >> 32);
}

static const struct cr_pair_slot *find_pair(const cr_tokenizer *t, int32_t left, int32_t right)
{
    uint32_t i = pair_slot(t, left, right);
    while (t->pairs[i].left >= 0) {
        if (t->pairs[i].left == left && t->pairs[i].right == right)
            return &t->pairs[i];
        i = i + 1 == t->pairs_cap ? 0 : i + 1;
    }
    return NULL;
}

static void add_pair(cr_tokenizer *t, struct cr_pair_slot pair)
{
    uint32_t i = pair_slot(t, pair.left, pair.right);
    while (t->pairs[i].left >= 0) {
        if (t->pairs[i].left == pair.left && t->pairs[i].right == pair.right)
            return; /* the first, better rank stays */
        i = i + 1 == t->pairs_cap ? 0 : i + 1;
    }
    t->pairs[i] = pair;
}

static enum cr_status bad_merge(const cr_gguf *g, size_t rank, struct cr_str s, const char *what,
                                struct cr_error *err)
{
    return cr_error_set(err, CR_FORMAT, "%s: tokenizer.ggml.merges[%zu] \"%.*s\": %s",
                        cr_gguf_name(g), rank, s.n < 80 ? (int)s.n : 80, s.p, what);
}

static bool token_is(const cr_tokenizer *t, int32_t id, const char *text, size_t len)
{
    if (id < 0 || id >= t->n || t->offsets[id + 1] - t->offsets[id] != len)
        return false;
    int type = t->types[id] & CR_TOKEN_TYPE_MASK;
    return type != CR_TOKEN_CONTROL && type != CR_TOKEN_UNKNOWN &&
           memcmp(t->bytes + t->offsets[id], text, len) == 0;
}

/* A part of a merge; many are single bytes. */
static int32_t find_part(const cr_tokenizer *t, const char *text, size_t len)
{
    return len == 1 ? t->byte_ids[(unsigned char)*text] : cr_vocab_find(t, text, len);
}

/* "left right" -> a pair of ids and what they make. */
static enum cr_status read_merge(const cr_tokenizer *t, const cr_gguf *g, size_t rank,
                                 struct cr_str s, struct cr_pair_slot *pair, struct cr_error *err)
{
    const char *space = s.n > 1 ? memchr(s.p + 1, ' ', s.n - 1) : NULL;
    if (!space || space + 1 == s.p + s.n)
        return bad_merge(g, rank, s, "want two tokens with a space between", err);
    if (s.n > 4 * CR_MAX_TOKEN_BYTES)
        return bad_merge(g, rank, s, "too long", err);
    char text[4 * CR_MAX_TOKEN_BYTES];
    size_t n_left = cr_bpe_decode((struct cr_str){s.p, (size_t)(space - s.p)}, text);
    size_t n_right =
        cr_bpe_decode((struct cr_str){space + 1, s.n - (size_t)(space + 1 - s.p)}, text + n_left);
    int32_t guess = pair->merged + 1;
    pair->left = find_part(t, text, n_left);
    pair->right = find_part(t, text + n_left, n_right);
    pair->merged = token_is(t, guess, text, n_left + n_right)
                       ? guess
                       : cr_vocab_find(t, text, n_left + n_right);
    pair->rank = (uint32_t)rank;
    if (pair->left < 0 || pair->right < 0)
        return bad_merge(g, rank, s, "its parts are not in the vocabulary", err);
    if (pair->merged < 0)
        return bad_merge(g, rank, s, "its result is not in the vocabulary", err);
    return CR_OK;
}

static enum cr_status load_merges(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err)
{
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "tokenizer.ggml.merges");
    if (!kv)
        return cr_error_set(err, CR_FORMAT, "%s: key tokenizer.ggml.merges is missing",
                            cr_gguf_name(g));
    if (kv->type != CR_GGUF_ARRAY || kv->elem_type != CR_GGUF_STRING)
        return cr_error_set(err, CR_FORMAT,
                            "%s: key tokenizer.ggml.merges: want an array of strings",
                            cr_gguf_name(g));
    if (kv->n > 16u * CR_MAX_VOCAB)
        return cr_error_set(err, CR_LIMIT, "%s: want at most %d merges, found %llu",
                            cr_gguf_name(g), 16 * CR_MAX_VOCAB, (unsigned long long)kv->n);
    t->pairs_cap = (uint32_t)(kv->n + kv->n / 2 + 1);
    t->pairs = cr_alloc(t->pairs_cap, sizeof *t->pairs);
    if (!t->pairs)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", cr_gguf_name(g));
    memset(t->pairs, 0xFF, t->pairs_cap * sizeof *t->pairs); /* left = -1 */
    const uint8_t *cursor = NULL;
    struct cr_pair_slot pair = {.merged = -2};
    for (size_t i = 0; i < kv->n; i++) {
        enum cr_status status = read_merge(t, g, i, cr_gguf_next_str(kv, &cursor), &pair, err);
        if (status != CR_OK)
            return status;
        add_pair(t, pair);
    }
    return CR_OK;
}

enum cr_status cr_bpe_load(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err)
{
    struct cr_str pre = {"default", 7};
    enum cr_status status = cr_gguf_str(g, "tokenizer.ggml.pre", false, &pre, err);
    if (status == CR_NOT_FOUND)
        cr_log(CR_LOG_WARN, "%s: no tokenizer.ggml.pre: the pre-tokenizer \"default\" is a guess",
               cr_gguf_name(g));
    else if (status != CR_OK)
        return status;
    status = cr_pretokenizer_new(&t->pre, pre.p, pre.n, err);
    if (status != CR_OK)
        return cr_error_prefix(err, status, "%s", cr_gguf_name(g));
    t->ignore_merges = pre.n >= 5 && memcmp(pre.p, "llama", 5) == 0;
    for (int i = 0; i < 256; i++) {
        char byte = (char)i;
        t->byte_ids[i] = cr_vocab_find(t, &byte, 1);
    }
    return load_merges(t, g, err);
}

/* ---- encoding ---- */

struct encode {
    const cr_tokenizer *t;
    struct cr_merge_work work;
    struct cr_ids *ids;
    size_t n_dropped;
};

static void bpe_pair(const void *ud, struct cr_symbol *a, const struct cr_symbol *b)
{
    const struct cr_pair_slot *pair = find_pair(ud, a->id, b->id);
    if (pair) {
        a->priority = pair->rank;
        a->merged = pair->merged;
    }
}

static bool encode_piece(void *ud, const char *text, size_t len)
{
    struct encode *e = ud;
    const cr_tokenizer *t = e->t;
    int32_t whole = t->ignore_merges ? cr_vocab_find(t, text, len) : -1;
    if (whole >= 0)
        return cr_ids_push(e->ids, whole);
    if (!cr_merge_work_reserve(&e->work, len))
        return false;
    struct cr_symbol *s = e->work.symbols;
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t id = t->byte_ids[(unsigned char)text[i]];
        if (id >= 0)
            s[n++].id = id;
        else
            e->n_dropped++;
    }
    if (n == 0)
        return true;
    cr_merge_run(&e->work, n, bpe_pair, t);
    for (int32_t i = 0; i >= 0; i = s[i].next)
        if (!cr_ids_push(e->ids, s[i].id))
            return false;
    return true;
}

enum cr_status cr_bpe_encode(const cr_tokenizer *t, const char *text, size_t len,
                             struct cr_ids *ids, struct cr_error *err)
{
    struct encode e = {.t = t, .ids = ids};
    enum cr_status status = cr_pretokenizer_run(t->pre, text, len, encode_piece, &e, err);
    cr_merge_work_deinit(&e.work);
    if (e.n_dropped)
        cr_log(CR_LOG_WARN,
               "tokenizer: %zu bytes have no token in this vocabulary and were left "
               "out",
               e.n_dropped);
    return status;
}
