/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat templates. Each is a short function that writes markers and text into a builder. The builder
 * gathers text and encodes it in one go up to the next marker, because that is how the reference
 * tokenizes the rendered template: a role, a newline and the content are one piece of text.
 *
 * A marker is looked up in the vocabulary and becomes its token; text is encoded without special
 * tokens. So no content can open or close a turn. Where a template's own marks are plain text (the
 * [INST] of Llama 2, the <|user|> of Zephyr models without such a token) that cannot hold.
 */
#include "model/chat.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/mem.h"

#include <string.h>
#include <utf8proc.h>

enum { MAX_TEXT = 1 << 28 }; /* bytes between two markers */

static const char *const names[] = {
    [CR_CHAT_NONE] = "",         [CR_CHAT_CHATML] = "chatml",   [CR_CHAT_LLAMA2] = "llama2",
    [CR_CHAT_LLAMA3] = "llama3", [CR_CHAT_MISTRAL] = "mistral", [CR_CHAT_GEMMA] = "gemma",
    [CR_CHAT_ZEPHYR] = "zephyr", [CR_CHAT_PHI3] = "phi3",       [CR_CHAT_UNKNOWN] = "unknown",
};

const char *cr_chat_name(enum cr_chat c)
{
    return names[c];
}

enum cr_chat cr_chat_by_name(const char *name)
{
    for (int c = CR_CHAT_CHATML; c < CR_CHAT_UNKNOWN; c++)
        if (strcmp(name, names[c]) == 0)
            return (enum cr_chat)c;
    return CR_CHAT_UNKNOWN;
}

/* ---- recognising ---- */

static bool has(struct cr_str s, const char *mark)
{
    return memmem(s.p, s.n, mark, strlen(mark)) != NULL;
}

enum cr_chat cr_chat_recognise(struct cr_str s)
{
    if (s.n == 0)
        return CR_CHAT_NONE;
    if (has(s, "<|im_start|>"))
        return has(s, "<|im_sep|>") ? CR_CHAT_UNKNOWN : CR_CHAT_CHATML;
    if (has(s, "<|start_header_id|>") && has(s, "<|eot_id|>")) {
        if (has(s, "date_string"))
            cr_log(CR_LOG_WARN, "the chat template of this file adds dates to the system message; "
                                "the template llama3 does not");
        return CR_CHAT_LLAMA3;
    }
    if (has(s, "<start_of_turn>"))
        return CR_CHAT_GEMMA;
    if (has(s, "[INST]"))
        return has(s, "<<SYS>>")           ? CR_CHAT_LLAMA2
               : has(s, "[SYSTEM_PROMPT]") ? CR_CHAT_UNKNOWN
                                           : CR_CHAT_MISTRAL;
    if (!has(s, "<|user|>") || !has(s, "<|assistant|>"))
        return CR_CHAT_UNKNOWN;
    if (has(s, "<|end|>")) {
        if (has(s, "bos_token"))
            cr_log(CR_LOG_WARN, "the chat template of this file begins with the token for the "
                                "beginning of text; the template phi3 does not");
        return CR_CHAT_PHI3;
    }
    return has(s, "eos_token") ? CR_CHAT_ZEPHYR : CR_CHAT_UNKNOWN;
}

/* Undoes \n, \t, \', \" and \\ of a string in a template. */
static char *unescape(const char *s, size_t n)
{
    char *out = cr_alloc(n + 1, 1);
    size_t len = 0;
    for (size_t i = 0; out && i < n; i++) {
        char c = s[i];
        if (c == '\\' && i + 1 < n) {
            c = s[++i];
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        out[len++] = c;
    }
    if (out)
        out[len] = '\0';
    return out;
}

/* ChatML templates write their default as one string "<|im_start|>system\nDEFAULT<|im_end|>"; other
 * uses of the mark go on with a quote or a variable before the end mark. */
char *cr_chat_default_system(enum cr_chat c, struct cr_str s)
{
    static const char open[] = "<|im_start|>system", close[] = "<|im_end|>";
    const char *end = s.p + s.n, *at = s.p;
    while (c == CR_CHAT_CHATML &&
           (at = memmem(at, (size_t)(end - at), open, sizeof open - 1)) != NULL) {
        char quote = at > s.p ? at[-1] : '\0';
        at += sizeof open - 1;
        const char *text = at;
        if (end - text >= 2 && text[0] == '\\' && text[1] == 'n')
            text += 2;
        else if (end - text >= 1 && text[0] == '\n')
            text++;
        else
            continue;
        const char *stop = memmem(text, (size_t)(end - text), close, sizeof close - 1);
        size_t n = stop ? (size_t)(stop - text) : 0;
        bool quoted = quote == '\'' || quote == '"';
        bool closed = false; /* the string ends before the mark */
        for (size_t i = 0; quoted && i < n && !closed; i++) {
            closed = text[i] == quote;
            i += text[i] == '\\';
        }
        if (n && !closed && (quoted || !has((struct cr_str){text, n}, "{")))
            return unescape(text, n);
    }
    return cr_strdup("");
}

/* ---- the builder ---- */

struct builder {
    const cr_tokenizer *t;
    const char *name; /* of the template */
    struct cr_buf text;
    struct cr_ids *ids;
    enum cr_status status;
    struct cr_error *err;
};

static void add_text(struct builder *b, const char *s, size_t n)
{
    if (b->status != CR_OK)
        return;
    if (n > b->text.max - b->text.len)
        b->status = cr_error_set(b->err, CR_LIMIT, "chat: a message passes %zu bytes", b->text.max);
    else if (!cr_buf_add(&b->text, s, n))
        b->status = cr_error_set(b->err, CR_NO_MEMORY, "chat: out of memory");
}

static void add(struct builder *b, const char *s)
{
    add_text(b, s, strlen(s));
}

static void flush(struct builder *b)
{
    if (b->status == CR_OK && b->text.len)
        b->status = cr_tokenizer_encode(b->t, b->text.data, b->text.len, 0, b->ids, b->err);
    b->text.len = 0;
}

static void add_id(struct builder *b, int32_t id, const char *what)
{
    flush(b);
    if (b->status != CR_OK)
        return;
    if (id < 0)
        b->status =
            cr_error_set(b->err, CR_UNSUPPORTED,
                         "chat template %s: this vocabulary has no token %s", b->name, what);
    else if (!cr_ids_push(b->ids, id))
        b->status = cr_error_set(b->err, CR_NO_MEMORY, "chat: out of memory");
}

/* A marker that must be a token of its own. */
static void mark(struct builder *b, const char *s)
{
    int32_t id = cr_tokenizer_find(b->t, s);
    add_id(b, cr_tokenizer_is_control(b->t, id) ? id : -1, s);
}

/* A marker that is a token in some vocabularies and text in others. */
static void mark_or_text(struct builder *b, const char *s)
{
    int32_t id = cr_tokenizer_find(b->t, s);
    if (cr_tokenizer_is_control(b->t, id))
        add_id(b, id, s);
    else
        add(b, s);
}

static void bos(struct builder *b)
{
    add_id(b, cr_tokenizer_bos(b->t), "for the beginning of text");
}

static void eos(struct builder *b)
{
    add_id(b, cr_tokenizer_eos(b->t), "for the end of text");
}

/* White space as Python's str.strip() and so the templates' trim see it. */
static bool is_space(utf8proc_int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

static const char *skip_space(const char *s)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
    utf8proc_int32_t c;
    utf8proc_ssize_t k;
    while (*p && (k = utf8proc_iterate(p, -1, &c)) > 0 && is_space(c))
        p += k;
    return (const char *)p;
}

static struct cr_str trim(const char *s)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
    size_t begin = (size_t)(skip_space(s) - s), end = begin + strlen(s + begin);
    utf8proc_int32_t c;
    while (end > begin) {
        size_t at = end - 1;
        while (at > begin && (p[at] & 0xC0) == 0x80)
            at--;
        if (utf8proc_iterate(p + at, (utf8proc_ssize_t)(end - at), &c) != (int)(end - at) ||
            !is_space(c))
            break;
        end = at;
    }
    return (struct cr_str){s + begin, end - begin};
}

static void add_trimmed(struct builder *b, const char *s)
{
    struct cr_str t = trim(s);
    add_text(b, t.p, t.n);
}

/* ---- the templates ---- */

static void chatml_message(struct builder *b, const char *role, const char *content)
{
    mark(b, "<|im_start|>");
    add(b, role);
    add(b, "\n");
    add(b, content);
    mark(b, "<|im_end|>");
    add(b, "\n");
}

static void chatml(struct builder *b, const char *system, const struct cr_message *m, size_t n,
                   bool open)
{
    if (system && *system && strcmp(m[0].role, "system") != 0)
        chatml_message(b, "system", system);
    for (size_t i = 0; i < n; i++)
        chatml_message(b, m[i].role, m[i].content);
    if (open) {
        mark(b, "<|im_start|>");
        add(b, "assistant\n");
    }
}

static void llama3_header(struct builder *b, const char *role)
{
    mark(b, "<|start_header_id|>");
    add(b, role);
    mark(b, "<|end_header_id|>");
    add(b, "\n\n");
}

static void llama3(struct builder *b, const struct cr_message *m, size_t n, bool open)
{
    bos(b);
    for (size_t i = 0; i < n; i++) {
        llama3_header(b, m[i].role);
        add_trimmed(b, m[i].content);
        mark(b, "<|eot_id|>");
    }
    if (open)
        llama3_header(b, "assistant");
}

static void zephyr(struct builder *b, const struct cr_message *m, size_t n, bool open)
{
    for (size_t i = 0; i < n; i++) {
        mark_or_text(b, m[i].role[0] == 's'   ? "<|system|>"
                        : m[i].role[0] == 'u' ? "<|user|>"
                                              : "<|assistant|>");
        add(b, "\n");
        add(b, m[i].content);
        eos(b);
        add(b, "\n");
    }
    if (open) {
        mark_or_text(b, "<|assistant|>");
        add(b, "\n");
    }
}

/* The template has a newline after each marker, and the markers of this vocabulary take the white
 * space behind them with them; so what they would take is not written. */
static void phi3(struct builder *b, const struct cr_message *m, size_t n, bool open)
{
    for (size_t i = 0; i < n; i++) {
        if (m[i].role[0] == 's' && !m[i].content[0])
            continue;
        mark(b, m[i].role[0] == 's'   ? "<|system|>"
                : m[i].role[0] == 'u' ? "<|user|>"
                                      : "<|assistant|>");
        add(b, skip_space(m[i].content));
        mark(b, "<|end|>");
    }
    if (open)
        mark(b, "<|assistant|>");
    else
        eos(b);
}

/* The three below know only turns of user and assistant; `system` (NULL: none) goes into the first
 * one and `check_turns` has seen to the order. */
static void gemma(struct builder *b, const char *system, const struct cr_message *m, size_t n,
                  bool open)
{
    bos(b);
    for (size_t i = 0; i < n; i++) {
        mark(b, "<start_of_turn>");
        add(b, i % 2 ? "model\n" : "user\n");
        if (i == 0 && system) {
            add(b, system);
            add(b, "\n\n");
        }
        add_trimmed(b, m[i].content);
        mark(b, "<end_of_turn>");
        add(b, "\n");
    }
    if (open) {
        mark(b, "<start_of_turn>");
        add(b, "model\n");
    }
}

static void llama2(struct builder *b, const char *system, const struct cr_message *m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct cr_str content = trim(m[i].content);
        if (i % 2 == 0) {
            bos(b);
            mark_or_text(b, "[INST]");
            add(b, i == 0 && system ? " <<SYS>>\n" : " ");
            if (i == 0 && system) {
                add(b, system);
                add(b, content.n ? "\n<</SYS>>\n\n" : "\n<</SYS>>");
            }
            if (i == 0 && system && content.n) {
                content.n += (size_t)(content.p - m[i].content); /* trimmed at the end only */
                content.p = m[i].content;
            }
            add_text(b, content.p, content.n);
            add(b, " ");
            mark_or_text(b, "[/INST]");
        } else {
            add(b, " ");
            add_text(b, content.p, content.n);
            add(b, " ");
            eos(b);
        }
    }
}

/* Versions 1 and 2 have [INST] as text and a space before [/INST]; version 3 has tokens, and the
 * space stands before the answer. */
static void mistral(struct builder *b, const char *system, const struct cr_message *m, size_t n)
{
    bool v3 = cr_tokenizer_is_control(b->t, cr_tokenizer_find(b->t, "[INST]"));
    bos(b);
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) {
            mark_or_text(b, "[INST]");
            add(b, " ");
            if (i == 0 && system) {
                add(b, system);
                add(b, "\n\n");
            }
            add(b, m[i].content);
            add(b, v3 ? "" : " ");
            mark_or_text(b, "[/INST]");
        } else {
            add(b, v3 ? " " : "");
            add(b, m[i].content);
            eos(b);
        }
    }
}

static enum cr_status check_roles(const struct cr_message *m, size_t n, struct cr_error *err)
{
    if (n == 0)
        return cr_error_set(err, CR_INVALID, "chat: there are no messages");
    for (size_t i = 0; i < n; i++) {
        if (!m[i].role || !m[i].content)
            return cr_error_set(err, CR_INVALID, "chat: message %zu has no %s", i,
                                m[i].role ? "content" : "role");
        if (strcmp(m[i].role, "system") != 0 && strcmp(m[i].role, "user") != 0 &&
            strcmp(m[i].role, "assistant") != 0)
            return cr_error_set(err, CR_INVALID,
                                "chat: message %zu: want the role system, user or assistant, found "
                                "\"%.40s\"",
                                i, m[i].role);
    }
    return CR_OK;
}

static enum cr_status check_turns(const char *name, const struct cr_message *m, size_t n,
                                  size_t first, struct cr_error *err)
{
    if (n == 0)
        return cr_error_set(err, CR_INVALID, "chat template %s: there is no user message", name);
    for (size_t i = 0; i < n; i++) {
        const char *want = i % 2 ? "assistant" : "user";
        if (strcmp(m[i].role, want) != 0)
            return cr_error_set(err, CR_INVALID,
                                "chat template %s: message %zu: want the role %s, found %s", name,
                                first + i, want, m[i].role);
    }
    return CR_OK;
}

enum cr_status cr_chat_encode(enum cr_chat c, const cr_tokenizer *t, const char *default_system,
                              const struct cr_message *m, size_t n, bool open_turn,
                              struct cr_ids *ids, struct cr_error *err)
{
    if (c == CR_CHAT_NONE || c == CR_CHAT_UNKNOWN)
        return cr_error_set(
            err, CR_UNSUPPORTED,
            "%s; choose one with --template chatml, llama2, llama3, mistral, gemma, "
            "zephyr or phi3",
            c == CR_CHAT_NONE ? "the model has no chat template"
                              : "the model's chat template is not known");
    enum cr_status status = check_roles(m, n, err);
    bool turns = c == CR_CHAT_LLAMA2 || c == CR_CHAT_MISTRAL || c == CR_CHAT_GEMMA;
    const char *system = NULL;
    if (status == CR_OK && turns) {
        size_t first = strcmp(m[0].role, "system") == 0;
        system = first ? m[0].content : default_system && *default_system ? default_system : NULL;
        m += first;
        n -= first;
        status = check_turns(cr_chat_name(c), m, n, first, err);
    }
    if (status != CR_OK)
        return status;
    size_t before = ids->n;
    struct builder b = {.t = t, .name = cr_chat_name(c), .ids = ids, .err = err};
    cr_buf_init(&b.text, MAX_TEXT);
    if (c == CR_CHAT_CHATML)
        chatml(&b, default_system, m, n, open_turn);
    else if (c == CR_CHAT_LLAMA3)
        llama3(&b, m, n, open_turn);
    else if (c == CR_CHAT_ZEPHYR)
        zephyr(&b, m, n, open_turn);
    else if (c == CR_CHAT_PHI3)
        phi3(&b, m, n, open_turn);
    else if (c == CR_CHAT_GEMMA)
        gemma(&b, system, m, n, open_turn);
    else if (c == CR_CHAT_LLAMA2)
        llama2(&b, system, m, n);
    else
        mistral(&b, system, m, n);
    flush(&b);
    cr_buf_deinit(&b.text);
    if (b.status != CR_OK)
        ids->n = before;
    return b.status;
}
