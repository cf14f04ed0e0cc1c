/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SentencePiece BPE with byte fallback (Kudo and Richardson 2018), as Llama 2 uses it: text starts
 * as characters, the pair whose joined text has the best score is merged first, a character that is
 * no token becomes its bytes. Spaces are kept as spaces here; the file's U+2581 is undone at load,
 * and in the text U+2581 means a space, as it does in the reference.
 */
#include "model/tokenizer_impl.h"

#include "base/log.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define SPACE_MARK "\xE2\x96\x81"

size_t cr_spm_decode(struct cr_str s, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        if (s.n - i >= 3 && memcmp(s.p + i, SPACE_MARK, 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = s.p[i++];
        }
    }
    return n;
}

/* Higher scores give lower numbers; equal scores (also 0 and -0) equal ones. */
static uint32_t priority_of(float score)
{
    uint32_t u;
    score += 0.0f;
    memcpy(&u, &score, sizeof u);
    return u & 0x80000000u ? u : 0x7FFFFFFFu - u;
}

static bool space_inside(const char *s, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (s[i] == ' ' && s[i - 1] != ' ')
            return true;
    return false;
}

enum cr_status cr_spm_load(cr_tokenizer *t, const cr_gguf *g, struct cr_error *err)
{
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "tokenizer.ggml.scores");
    if (!kv || kv->type != CR_GGUF_ARRAY || kv->elem_type != CR_GGUF_F32)
        return cr_error_set(err, CR_FORMAT, "%s: key tokenizer.ggml.scores: %s", cr_gguf_name(g),
                            kv ? "want an array of f32" : "missing");
    if (kv->n != (uint64_t)t->n)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tokenizer.ggml.scores has %llu elements, tokens has %d",
                            cr_gguf_name(g), (unsigned long long)kv->n, t->n);
    t->priority = cr_alloc((size_t)t->n, sizeof *t->priority);
    if (!t->priority)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", cr_gguf_name(g));
    t->words_apart = true;
    for (int32_t i = 0; i < t->n; i++) {
        float score;
        memcpy(&score, kv->data + (size_t)i * sizeof score, sizeof score);
        if (isnan(score))
            return cr_error_set(err, CR_FORMAT, "%s: tokenizer.ggml.scores[%d] is not a number",
                                cr_gguf_name(g), i);
        t->priority[i] = priority_of(score);
        t->words_apart = t->words_apart &&
                         !space_inside(t->bytes + t->offsets[i], t->offsets[i + 1] - t->offsets[i]);
    }
    return CR_OK;
}

/* ---- encoding ---- */

struct encode {
    const cr_tokenizer *t;
    const char *word;
    size_t len;
    struct cr_merge_work work;
    struct cr_ids *ids;
    size_t n_dropped;
    bool after_unknown; /* unknown characters in a row are one unknown token */
};

static size_t symbol_end(const struct encode *e, const struct cr_symbol *s)
{
    return s->next >= 0 ? e->work.symbols[s->next].begin : e->len;
}

static void spm_pair(const void *ud, struct cr_symbol *a, const struct cr_symbol *b)
{
    const struct encode *e = ud;
    int32_t id = cr_vocab_find(e->t, e->word + a->begin, symbol_end(e, b) - a->begin);
    if (id >= 0) {
        a->priority = e->t->priority[id];
        a->merged = id;
    }
}

static bool push_bytes(struct encode *e, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t id = e->t->byte_ids[(unsigned char)s[i]];
        if (id < 0) { /* no byte fallback: one unknown token for all of it */
            e->n_dropped += e->t->unk < 0 ? n - i : 0;
            if (e->t->unk < 0 || e->after_unknown)
                return true;
            e->after_unknown = true;
            return cr_ids_push(e->ids, e->t->unk);
        }
        e->after_unknown = false;
        if (!cr_ids_push(e->ids, id))
            return false;
    }
    return true;
}

static bool encode_word(struct encode *e, const char *word, size_t len)
{
    if (!cr_merge_work_reserve(&e->work, len))
        return false;
    e->word = word;
    e->len = len;
    struct cr_symbol *s = e->work.symbols;
    size_t n = 0;
    for (size_t i = 0, step; i < len; i += step) {
        unsigned char c = (unsigned char)word[i];
        step = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
        s[n].begin = (uint32_t)i;
        s[n++].id = cr_vocab_find(e->t, word + i, step);
    }
    cr_merge_run(&e->work, n, spm_pair, e);
    for (int32_t i = 0; i >= 0; i = s[i].next) {
        bool ok = s[i].id < 0 ? push_bytes(e, word + s[i].begin, symbol_end(e, &s[i]) - s[i].begin)
                              : cr_ids_push(e->ids, s[i].id);
        if (!ok)
            return false;
        if (s[i].id >= 0)
            e->after_unknown = false;
    }
    return true;
}

/* Words are independent where no token crosses from a character to a space. */
static size_t word_end(const char *s, size_t begin, size_t len)
{
    size_t i = begin;
    while (i < len && s[i] == ' ')
        i++;
    while (i < len && s[i] != ' ')
        i++;
    return i;
}

enum cr_status cr_spm_encode(const cr_tokenizer *t, const char *text, size_t len,
                             struct cr_ids *ids, struct cr_error *err)
{
    struct encode e = {.t = t, .ids = ids};
    char *s = cr_alloc(len + 1, 1);
    bool ok = s != NULL;
    if (ok) {
        size_t n = 0;
        if (t->add_space_prefix && len)
            s[n++] = ' ';
        n += cr_spm_decode((struct cr_str){text, len}, s + n);
        for (size_t i = 0, end; ok && i < n; i = end) {
            end = t->words_apart ? word_end(s, i, n) : n;
            ok = encode_word(&e, s + i, end - i);
        }
    }
    cr_merge_work_deinit(&e.work);
    cr_free(s);
    if (e.n_dropped)
        cr_log(CR_LOG_WARN,
               "tokenizer: %zu bytes have no token in this vocabulary and were left out",
               e.n_dropped);
    return ok ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "tokenizer: out of memory");
}
