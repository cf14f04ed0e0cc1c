/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Splitting text before byte-level BPE, with the patterns as their authors published them. A
 * pre-tokenizer is a list of patterns; each one splits every piece that the one before left, into
 * its matches and what lies between them. Matching sees one piece only, so that a look-ahead stops
 * at its end.
 *
 * PCRE2 interprets the patterns (no JIT: it would need writable code). The patterns are ours and
 * each match is linear in what it consumes; the match limit is there all the same.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tokenizer_impl.h"

#include "base/mem.h"

#include <pcre2.h>
#include <string.h>

/* Unicode White_Space, which is what \s means in the published patterns. PCRE2's \s has U+180E too,
 * which stopped being white space in Unicode 6.3. */
#define S                                                                                          \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"    \
    "\\x{205F}\\x{3000}"
#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" S "\\p{L}\\p{N}]+|[" S "]+(?![^" S "])"     \
    "|[" S "]+"
#define LLAMA3(digits)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" S                 \
    "\\p{L}\\p{N}]+[\\r\\n]*|[" S "]*[\\r\\n]+|[" S "]+(?![^" S "])|[" S "]+"

enum { MAX_PATTERNS = 4 };

static const struct pre {
    const char *names; /* separated by spaces */
    const char *patterns[MAX_PATTERNS];
} pres[] = {
    {"gpt-2 phi-2", {GPT2}},
    {"smollm", {"\\p{N}", GPT2}},
    {"llama-bpe llama3 llama-v3", {LLAMA3("\\p{N}{1,3}")}},
    {"qwen2 deepseek-r1-qwen", {LLAMA3("\\p{N}")}},
    {"default", {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

struct cr_pretokenizer {
    pcre2_general_context *memory;
    pcre2_code *code[MAX_PATTERNS];
    int n;
};

struct run {
    const struct cr_pretokenizer *p;
    pcre2_match_data *match;
    pcre2_match_context *context;
    cr_piece_fn *fn;
    void *ud;
    struct cr_error *err;
};

static void *pcre_alloc(size_t n, void *ud)
{
    (void)ud;
    return cr_alloc(n, 1);
}

static void pcre_free(void *p, void *ud)
{
    (void)ud;
    cr_free(p);
}

static bool has_name(const char *names, const char *name, size_t len)
{
    while (*names) {
        size_t n = strcspn(names, " ");
        if (n == len && memcmp(names, name, n) == 0)
            return true;
        names += n + (names[n] == ' ');
    }
    return false;
}

enum cr_status cr_pretokenizer_new(struct cr_pretokenizer **out, const char *name, size_t name_len,
                                   struct cr_error *err)
{
    *out = NULL;
    const struct pre *pre = NULL;
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++)
        if (has_name(pres[i].names, name, name_len))
            pre = &pres[i];
    if (!pre)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "tokenizer.ggml.pre: want gpt-2, smollm, llama-bpe, qwen2 or default, "
                            "found \"%.*s\"",
                            name_len < 80 ? (int)name_len : 80, name);
    struct cr_pretokenizer *p = cr_alloc0(1, sizeof *p);
    if (!p)
        return cr_error_set(err, CR_NO_MEMORY, "pre-tokenizer: out of memory");
    p->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    pcre2_compile_context *context = p->memory ? pcre2_compile_context_create(p->memory) : NULL;
    bool ok = context != NULL;
    for (; ok && p->n < MAX_PATTERNS && pre->patterns[p->n]; p->n++) {
        int code;
        PCRE2_SIZE at;
        p->code[p->n] = pcre2_compile((PCRE2_SPTR)pre->patterns[p->n], PCRE2_ZERO_TERMINATED,
                                      PCRE2_UTF | PCRE2_UCP, &code, &at, context);
        ok = p->code[p->n] != NULL;
    }
    pcre2_compile_context_free(context);
    if (!ok) { /* the patterns are constants: only memory can be missing */
        cr_pretokenizer_free(p);
        return cr_error_set(err, CR_NO_MEMORY, "pre-tokenizer: out of memory");
    }
    *out = p;
    return CR_OK;
}

void cr_pretokenizer_free(struct cr_pretokenizer *p)
{
    if (!p)
        return;
    for (int i = 0; i < MAX_PATTERNS; i++)
        pcre2_code_free(p->code[i]);
    pcre2_general_context_free(p->memory);
    cr_free(p);
}

static enum cr_status split(const struct run *r, int stage, const char *text, size_t len)
{
    if (len == 0)
        return CR_OK;
    if (stage == r->p->n)
        return r->fn(r->ud, text, len)
                   ? CR_OK
                   : cr_error_set(r->err, CR_NO_MEMORY, "tokenizer: out of memory");
    for (size_t pos = 0; pos < len;) {
        int n = pcre2_match(r->p->code[stage], (PCRE2_SPTR)text, len, pos, PCRE2_NO_UTF_CHECK,
                            r->match, r->context);
        if (n == PCRE2_ERROR_NOMATCH)
            return split(r, stage + 1, text + pos, len - pos);
        if (n == PCRE2_ERROR_NOMEMORY)
            return cr_error_set(r->err, CR_NO_MEMORY, "tokenizer: out of memory");
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(r->match);
        if (n < 0 || at[1] <= pos) /* no pattern matches the empty string */
            return cr_error_set(r->err, n == PCRE2_ERROR_MATCHLIMIT ? CR_LIMIT : CR_INTERNAL,
                                "pre-tokenizer: pattern %d stopped with code %d at byte %zu", stage,
                                n, pos);
        size_t begin = at[0], end = at[1];
        enum cr_status status = split(r, stage + 1, text + pos, begin - pos);
        if (status == CR_OK)
            status = split(r, stage + 1, text + begin, end - begin);
        if (status != CR_OK)
            return status;
        pos = end;
    }
    return CR_OK;
}

enum cr_status cr_pretokenizer_run(const struct cr_pretokenizer *p, const char *text, size_t len,
                                   cr_piece_fn *fn, void *ud, struct cr_error *err)
{
    struct run r = {.p = p, .fn = fn, .ud = ud, .err = err};
    r.match = pcre2_match_data_create(1, p->memory);
    r.context = pcre2_match_context_create(p->memory);
    enum cr_status status;
    if (r.match && r.context) {
        /* One unit for each byte that one run of spaces can give back, and some for the rest. */
        pcre2_set_match_limit(r.context, (uint32_t)(2 * len + 100000));
        status = split(&r, 0, text, len);
    } else {
        status = cr_error_set(err, CR_NO_MEMORY, "pre-tokenizer: out of memory");
    }
    pcre2_match_context_free(r.context);
    pcre2_match_data_free(r.match);
    return status;
}
