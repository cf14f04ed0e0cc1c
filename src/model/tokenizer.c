/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading a vocabulary, finding special tokens in text, and the interface; bpe.c and spm.c do the
 * text between special tokens.
 *
 * Tokens are decoded once into one block of bytes. Three kinds are kept apart: what text may become
 * (normal and user-defined) is in the hash table; control, unknown and user-defined tokens are in a
 * sorted list that the matcher walks; byte tokens have a table of 256. Control tokens are in no
 * table that text can reach unless the caller asks for special tokens.
 */
#include "base/mem.h"
#include "base/utf8.h"
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

/* Tokens that end a text or a turn, besides those that the file names by id. */
static const char *const end_names[] = {
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>",
    "<|end|>",    "</s>",          "<eos>",      "<EOT>",      "<|eot|>",         "<|end_of_turn|>",
};

/* ---- the vocabulary's hash table ---- */

static uint32_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = (uint64_t)n * 0x9E3779B97F4A7C15u, w;
    while (n >= sizeof w) {
        memcpy(&w, s, sizeof w);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
        s += sizeof w;
        n -= sizeof w;
    }
    if (n) {
        w = 0;
        memcpy(&w, s, n);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return (uint32_t)((h * 0x9E3779B97F4A7C15u) >> 32);
}

/* The slot that holds these bytes, or the free one where they would go. */
static struct cr_vocab_slot *vocab_slot(const cr_tokenizer *t, const char *text, size_t len,
                                        uint32_t hash)
{
    uint32_t i = (uint32_t)(((uint64_t)hash * t->vocab_cap) >> 32);
    for (;; i = i + 1 == t->vocab_cap ? 0 : i + 1) {
        struct cr_vocab_slot *slot = &t->vocab[i];
        if (slot->id < 0)
            return slot;
        uint32_t begin = t->offsets[slot->id];
        if (slot->hash == hash && t->offsets[slot->id + 1] - begin == len &&
            memcmp(t->bytes + begin, text, len) == 0)
            return slot;
    }
}

int32_t cr_vocab_find(const cr_tokenizer *t, const char *text, size_t len)
{
    if (len == 0 || len > t->max_len)
        return -1;
    return vocab_slot(t, text, len, hash_bytes(text, len))->id;
}

/* ---- loading ---- */

static enum cr_status no_memory(const cr_gguf *g, struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "%s: tokenizer: out of memory", cr_gguf_name(g));
}

static enum cr_status read_id(cr_tokenizer *t, const cr_gguf *g, const char *key, bool end,
                              int32_t *out, struct cr_error *err)
{
    uint32_t id;
    enum cr_status status = cr_gguf_u32(g, key, false, &id, err);
    if (status != CR_OK)
        return status == CR_NOT_FOUND ? CR_OK : status;
    if (id >= (uint32_t)t->n)
        return cr_error_set(err, CR_FORMAT, "%s: %s is %u, the vocabulary has %d tokens",
                            cr_gguf_name(g), key, id, t->n);
    *out = (int32_t)id;
    if (t->types[id] != CR_TOKEN_UNKNOWN) /* text must never become one of these */
        t->types[id] = CR_TOKEN_CONTROL;
    if (end)
        t->types[id] |= CR_TOKEN_END;
    return CR_OK;
}

static enum cr_status read_types(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err)
{
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "tokenizer.ggml.token_type");
    if (kv && (kv->type != CR_GGUF_ARRAY ||
               (kv->elem_type != CR_GGUF_I32 && kv->elem_type != CR_GGUF_U32)))
        return cr_error_set(err, CR_FORMAT,
                            "%s: key tokenizer.ggml.token_type: want an array of i32",
                            cr_gguf_name(g));
    if (kv && kv->n != (uint64_t)t->n)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tokenizer.ggml.token_type has %llu elements, tokens has %d",
                            cr_gguf_name(g), (unsigned long long)kv->n, t->n);
    for (int32_t i = 0; i < t->n; i++) {
        uint32_t type = CR_TOKEN_NORMAL;
        if (kv)
            memcpy(&type, kv->data + (size_t)i * sizeof type, sizeof type);
        if (type > CR_TOKEN_BYTE)
            return cr_error_set(err, CR_FORMAT,
                                "%s: tokenizer.ggml.token_type[%d]: want 0 to %d, found %d",
                                cr_gguf_name(g), i, CR_TOKEN_BYTE, (int32_t)type);
        t->types[i] = (uint8_t)(type ? type : CR_TOKEN_NORMAL);
    }
    static const struct {
        const char *key;
        bool end;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", false},
        {"tokenizer.ggml.eos_token_id", true},
        {"tokenizer.ggml.eot_token_id", true},
        {"tokenizer.ggml.eom_token_id", true},
    };
    int32_t other = -1, *out[] = {&t->bos, &t->eos, &other, &other};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        enum cr_status status = read_id(t, g, ids[i].key, ids[i].end, out[i], err);
        if (status != CR_OK)
            return status;
    }
    return CR_OK;
}

/* Value of "<0x1F>"; -1 for other text. */
static int byte_token(struct cr_str s)
{
    static const char digits[] = "0123456789ABCDEF";
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>')
        return -1;
    const char *hi = memchr(digits, s.p[3], 16), *lo = memchr(digits, s.p[4], 16);
    return hi && lo ? (int)((hi - digits) * 16 + (lo - digits)) : -1;
}

static bool is_special(int type)
{
    return type == CR_TOKEN_CONTROL || type == CR_TOKEN_UNKNOWN || type == CR_TOKEN_USER_DEFINED;
}

static void put_in_vocab(cr_tokenizer *t, int32_t id, const char *text, size_t len)
{
    uint32_t hash = hash_bytes(text, len);
    struct cr_vocab_slot *slot = vocab_slot(t, text, len, hash);
    if (slot->id >= 0)
        return; /* the lower id stays */
    *slot = (struct cr_vocab_slot){hash, id};
    if (len > t->max_len)
        t->max_len = (uint32_t)len;
}

/* Decodes token i to the end of t->bytes and files it where text will find it. */
static enum cr_status read_token(cr_tokenizer *t, const cr_gguf *g, int32_t i, struct cr_str s,
                                 struct cr_error *err)
{
    if (s.n > CR_MAX_TOKEN_BYTES)
        return cr_error_set(err, CR_LIMIT,
                            "%s: tokenizer.ggml.tokens[%d] has %zu bytes, the limit is %d",
                            cr_gguf_name(g), i, s.n, CR_MAX_TOKEN_BYTES);
    bool spm = t->family == CR_FAMILY_SPM;
    char *text = t->bytes + t->offsets[i];
    size_t len = s.n;
    int type = t->types[i] & CR_TOKEN_TYPE_MASK, byte = -1;
    if (spm && (type == CR_TOKEN_BYTE || type == CR_TOKEN_NORMAL))
        byte = byte_token(s);
    if (byte >= 0) {
        t->types[i] = CR_TOKEN_BYTE;
        if (t->byte_ids[byte] < 0)
            t->byte_ids[byte] = i;
        *text = (char)byte;
        len = 1;
    } else if (spm && type == CR_TOKEN_BYTE) {
        return cr_error_set(err, CR_FORMAT,
                            "%s: tokenizer.ggml.tokens[%d]: want a byte such as <0x0A>, found "
                            "\"%.*s\"",
                            cr_gguf_name(g), i, s.n < 80 ? (int)s.n : 80, s.p);
    } else if (type == CR_TOKEN_CONTROL || type == CR_TOKEN_UNKNOWN ||
               (type == CR_TOKEN_USER_DEFINED && !spm)) {
        memcpy(text, s.p, s.n);
    } else {
        len = spm ? cr_spm_decode(s, text) : cr_bpe_decode(s, text);
    }
    t->offsets[i + 1] = t->offsets[i] + (uint32_t)len;
    t->n_special += is_special(type) && len;
    bool from_text = type == CR_TOKEN_NORMAL || type == CR_TOKEN_USER_DEFINED ||
                     (!spm && (type == CR_TOKEN_BYTE || type == CR_TOKEN_UNUSED));
    if (from_text && byte < 0 && len)
        put_in_vocab(t, i, text, len);
    return CR_OK;
}

static enum cr_status read_tokens(cr_tokenizer *t, const cr_gguf *g, const struct cr_gguf_kv *kv,
                                  struct cr_error *err)
{
    size_t raw = kv->bytes - 8 * (size_t)t->n; /* decoding never makes a token longer */
    if (raw > UINT32_MAX)
        return cr_error_set(err, CR_LIMIT,
                            "%s: tokenizer.ggml.tokens has %zu bytes, the limit is "
                            "%u",
                            cr_gguf_name(g), raw, UINT32_MAX);
    t->bytes = cr_alloc(raw + 1, 1);
    t->offsets = cr_alloc((size_t)t->n + 1, sizeof *t->offsets);
    t->vocab_cap = (uint32_t)t->n + (uint32_t)t->n / 2 + 1;
    t->vocab = cr_alloc(t->vocab_cap, sizeof *t->vocab);
    if (!t->bytes || !t->offsets || !t->vocab)
        return no_memory(g, err);
    memset(t->vocab, 0xFF, t->vocab_cap * sizeof *t->vocab); /* id = -1 */
    memset(t->byte_ids, 0xFF, sizeof t->byte_ids);
    t->offsets[0] = 0;
    const uint8_t *cursor = NULL;
    for (int32_t i = 0; i < t->n; i++) {
        enum cr_status status = read_token(t, g, i, cr_gguf_next_str(kv, &cursor), err);
        if (status != CR_OK)
            return status;
    }
    return CR_OK;
}

/* ---- special tokens ---- */

static int compare_special(const void *a, const void *b)
{
    const struct cr_special *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static enum cr_status index_specials(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err)
{
    t->special = cr_alloc(t->n_special, sizeof *t->special);
    if (!t->special)
        return no_memory(g, err);
    size_t n = 0;
    for (int32_t i = 0; i < t->n; i++) {
        int type = t->types[i] & CR_TOKEN_TYPE_MASK;
        uint32_t begin = t->offsets[i], len = t->offsets[i + 1] - begin;
        if (!is_special(type) || !len)
            continue;
        t->special[n++] = (struct cr_special){t->bytes + begin, len, i};
        t->special_first[(unsigned char)t->bytes[begin]] |= type == CR_TOKEN_USER_DEFINED ? 3 : 2;
        if (t->types[i] == CR_TOKEN_UNKNOWN && t->unk < 0) /* and no end token */
            t->unk = i;
    }
    qsort(t->special, n, sizeof *t->special, compare_special);
    for (size_t i = 1; i < n; i++) {
        const struct cr_special *a = &t->special[i - 1], *b = &t->special[i];
        if (compare_special(a, b) == 0)
            return cr_error_set(
                err, CR_FORMAT, "%s: special tokens %d and %d have the same text \"%.*s\"",
                cr_gguf_name(g), a->id < b->id ? a->id : b->id, a->id < b->id ? b->id : a->id,
                a->len < 80 ? (int)a->len : 80, a->text);
    }
    return CR_OK;
}

static void mark_ends(cr_tokenizer *t)
{
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++) {
        struct cr_special want = {.text = end_names[i], .len = (uint32_t)strlen(end_names[i])};
        const struct cr_special *s =
            bsearch(&want, t->special, t->n_special, sizeof want, compare_special);
        if (s && (t->types[s->id] & CR_TOKEN_TYPE_MASK) != CR_TOKEN_UNKNOWN)
            t->types[s->id] = CR_TOKEN_CONTROL | CR_TOKEN_END; /* some files say user-defined */
    }
}

/* The longest special token that starts at text; user-defined ones only unless `all`. */
static const struct cr_special *match_special(const cr_tokenizer *t, const char *text, size_t len,
                                              bool all)
{
    const struct cr_special *best = NULL;
    size_t lo = 0, hi = t->n_special;
    for (size_t k = 0; k < len; k++) {
        unsigned char c = (unsigned char)text[k];
        size_t end = hi; /* narrow [lo, hi) to those with byte c at k; all are longer than k */
        while (lo < end) {
            size_t mid = lo + (end - lo) / 2;
            if ((unsigned char)t->special[mid].text[k] < c)
                lo = mid + 1;
            else
                end = mid;
        }
        for (size_t from = lo; from < hi;) {
            size_t mid = from + (hi - from) / 2;
            if ((unsigned char)t->special[mid].text[k] > c)
                hi = mid;
            else
                from = mid + 1;
        }
        if (lo == hi)
            break;
        if (t->special[lo].len == k + 1) {
            int type = t->types[t->special[lo].id] & CR_TOKEN_TYPE_MASK;
            if (all || type == CR_TOKEN_USER_DEFINED)
                best = &t->special[lo];
            lo++;
        }
    }
    return best;
}

/* ---- interface ---- */

enum cr_status cr_tokenizer_new(cr_tokenizer **out, const cr_gguf *g, struct cr_error *err)
{
    *out = NULL;
    struct cr_str model;
    enum cr_status status = cr_gguf_str(g, "tokenizer.ggml.model", true, &model, err);
    if (status != CR_OK)
        return status;
    bool spm = cr_str_eq(model, "llama");
    if (!spm && !cr_str_eq(model, "gpt2"))
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: tokenizer.ggml.model: want gpt2 or llama, found \"%.*s\"",
                            cr_gguf_name(g), model.n < 80 ? (int)model.n : 80, model.p);
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "tokenizer.ggml.tokens");
    if (!kv || kv->type != CR_GGUF_ARRAY || kv->elem_type != CR_GGUF_STRING)
        return cr_error_set(err, CR_FORMAT, "%s: key tokenizer.ggml.tokens: %s", cr_gguf_name(g),
                            kv ? "want an array of strings" : "missing");
    if (kv->n < 1 || kv->n > CR_MAX_VOCAB)
        return cr_error_set(err, CR_LIMIT, "%s: want 1 to %d tokens, found %llu", cr_gguf_name(g),
                            CR_MAX_VOCAB, (unsigned long long)kv->n);
    cr_tokenizer *t = cr_alloc0(1, sizeof *t);
    if (!t)
        return no_memory(g, err);
    t->family = spm ? CR_FAMILY_SPM : CR_FAMILY_BPE;
    t->n = (int32_t)kv->n;
    t->bos = t->eos = t->unk = -1;
    t->add_bos = t->add_space_prefix = spm;
    t->types = cr_alloc((size_t)t->n, 1);
    status = t->types ? read_types(t, g, err) : no_memory(g, err);
    if (status == CR_OK)
        status = read_tokens(t, g, kv, err);
    if (status == CR_OK)
        status = index_specials(t, g, err);
    if (status == CR_OK)
        status = spm ? cr_spm_load(t, g, err) : cr_bpe_load(t, g, err);
    if (status == CR_OK) {
        t->add_bos = t->add_bos || t->ignore_merges; /* llama-bpe */
        status = cr_gguf_bool(g, "tokenizer.ggml.add_bos_token", false, &t->add_bos, err);
    }
    if (status == CR_OK || status == CR_NOT_FOUND)
        status =
            cr_gguf_bool(g, "tokenizer.ggml.add_space_prefix", false, &t->add_space_prefix, err);
    if (status != CR_OK && status != CR_NOT_FOUND) {
        cr_tokenizer_free(t);
        return status;
    }
    mark_ends(t);
    *out = t;
    return CR_OK;
}

void cr_tokenizer_free(cr_tokenizer *t)
{
    if (!t)
        return;
    cr_pretokenizer_free(t->pre);
    cr_free(t->priority);
    cr_free(t->pairs);
    cr_free(t->special);
    cr_free(t->vocab);
    cr_free(t->types);
    cr_free(t->offsets);
    cr_free(t->bytes);
    cr_free(t);
}

int32_t cr_tokenizer_size(const cr_tokenizer *t)
{
    return t->n;
}

int32_t cr_tokenizer_bos(const cr_tokenizer *t)
{
    return t->bos;
}

int32_t cr_tokenizer_eos(const cr_tokenizer *t)
{
    return t->eos;
}

bool cr_tokenizer_add_bos(const cr_tokenizer *t)
{
    return t->add_bos && t->bos >= 0;
}

bool cr_tokenizer_is_end(const cr_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n && (t->types[id] & CR_TOKEN_END);
}

bool cr_tokenizer_is_control(const cr_tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->n)
        return false;
    int type = t->types[id] & CR_TOKEN_TYPE_MASK;
    return type == CR_TOKEN_CONTROL || type == CR_TOKEN_UNKNOWN;
}

int32_t cr_tokenizer_find(const cr_tokenizer *t, const char *text)
{
    size_t len = strlen(text);
    if (len > CR_MAX_TOKEN_BYTES)
        return -1;
    struct cr_special want = {.text = text, .len = (uint32_t)len};
    const struct cr_special *s =
        bsearch(&want, t->special, t->n_special, sizeof want, compare_special);
    return s ? s->id : cr_vocab_find(t, text, len);
}

size_t cr_tokenizer_bytes(const cr_tokenizer *t, int32_t id, bool special, const char **bytes)
{
    *bytes = "";
    if (id < 0 || id >= t->n || (!special && cr_tokenizer_is_control(t, id)))
        return 0;
    *bytes = t->bytes + t->offsets[id];
    return t->offsets[id + 1] - t->offsets[id];
}

bool cr_ids_push(struct cr_ids *ids, int32_t id)
{
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? 2 * ids->cap : 64;
        int32_t *v = cr_realloc(ids->v, cap, sizeof *v);
        if (!v)
            return false;
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return true;
}

static enum cr_status encode_plain(const cr_tokenizer *t, const char *text, size_t len,
                                   struct cr_ids *ids, struct cr_error *err)
{
    if (len == 0)
        return CR_OK;
    return t->family == CR_FAMILY_SPM ? cr_spm_encode(t, text, len, ids, err)
                                      : cr_bpe_encode(t, text, len, ids, err);
}

/* Valid UTF-8, special tokens among it. */
static enum cr_status encode_text(const cr_tokenizer *t, const char *text, size_t len, bool all,
                                  struct cr_ids *ids, struct cr_error *err)
{
    uint8_t starts = all ? 2 : 1;
    size_t begin = 0;
    for (size_t i = 0; i < len;) {
        const struct cr_special *s = t->special_first[(unsigned char)text[i]] & starts
                                         ? match_special(t, text + i, len - i, all)
                                         : NULL;
        if (!s) {
            i++;
            continue;
        }
        enum cr_status status = encode_plain(t, text + begin, i - begin, ids, err);
        if (status == CR_OK && !cr_ids_push(ids, s->id))
            status = cr_error_set(err, CR_NO_MEMORY, "tokenizer: out of memory");
        if (status != CR_OK)
            return status;
        i += s->len;
        begin = i;
    }
    return encode_plain(t, text + begin, len - begin, ids, err);
}

enum cr_status cr_tokenizer_encode(const cr_tokenizer *t, const char *text, size_t len,
                                   unsigned flags, struct cr_ids *ids, struct cr_error *err)
{
    size_t before = ids->n;
    char *repaired = NULL;
    if (len > CR_MAX_TEXT_BYTES)
        return cr_error_set(err, CR_LIMIT, "text to tokenize has %zu bytes, the limit is %d", len,
                            CR_MAX_TEXT_BYTES);
    enum cr_status status = CR_OK;
    if (cr_utf8_valid(text, len) < len) {
        text = repaired = cr_utf8_repair(text, len, &len);
        if (!text)
            return cr_error_set(err, CR_NO_MEMORY, "tokenizer: out of memory");
    }
    if ((flags & CR_TOKENIZE_BOS) && cr_tokenizer_add_bos(t) && !cr_ids_push(ids, t->bos))
        status = cr_error_set(err, CR_NO_MEMORY, "tokenizer: out of memory");
    if (status == CR_OK)
        status = encode_text(t, text, len, flags & CR_TOKENIZE_SPECIAL, ids, err);
    if (status != CR_OK)
        ids->n = before;
    cr_free(repaired);
    return status;
}
