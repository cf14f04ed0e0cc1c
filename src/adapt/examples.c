/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader of examples: finds the format, splits the file into lines or CSV records, checks every
 * limit, names the first bad line. JSON itself is in examples_json.c. Unknown fields and columns
 * are ignored, wrong ones never: a row that cannot be used stops the read, because a user who gives
 * ten examples wants all ten.
 */
#include "adapt/examples.h"

#include "adapt/examples_reader.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>
#ifdef CRAYON_LZMA
#include <lzma.h>
#endif

/* ---- the list ---- */

enum cr_status cr_examples_bad(struct cr_examples_reader *r, enum cr_status status, const char *fmt,
                               ...)
{
    char reason[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(reason, sizeof reason, fmt, ap);
    va_end(ap);
    return cr_error_set_at(r->err, status, r->line, "%s: line %zu: %s", r->name, r->line, reason);
}

enum cr_status cr_examples_no_memory(struct cr_examples_reader *r)
{
    return cr_examples_bad(r, CR_NO_MEMORY, "out of memory");
}

enum cr_status cr_examples_add(struct cr_examples_reader *r, struct cr_example e)
{
    struct cr_examples *out = r->out;
    if (out->n == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 64;
        struct cr_example *v = cr_realloc(out->v, cap, sizeof *v);
        if (!v)
            return cr_examples_no_memory(r);
        out->v = v;
        r->cap = cap;
    }
    e.line = r->line;
    if (!e.task && !(e.task = cr_arena_strndup(out->arena, "", 0)))
        return cr_examples_no_memory(r);
    if (e.n_choices && e.answer_index >= 0)
        e.answer = e.choices[e.answer_index];
    out->v[out->n++] = e;
    return CR_OK;
}

enum cr_status cr_examples_match_answer(struct cr_examples_reader *r, struct cr_example *e)
{
    e->answer_index = -1;
    if (!e->answer || !e->n_choices)
        return CR_OK;
    for (int i = 0; i < e->n_choices; i++) {
        if (!strcmp(e->choices[i], e->answer)) {
            e->answer_index = i;
            return CR_OK;
        }
    }
    return cr_examples_bad(r, CR_FORMAT, "the answer \"%.80s\" is not one of the %d choices",
                           e->answer, e->n_choices);
}

/* ---- text and lines ---- */

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\v' || c == '\f';
}

static void trim(const char **s, size_t *n)
{
    while (*n && is_space(**s)) {
        ++*s;
        --*n;
    }
    while (*n && is_space((*s)[*n - 1]))
        --*n;
}

/* Column (from 1) of the first byte that is no UTF-8 or is NUL; 0 when all is well. */
static size_t bad_utf8(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        if (s[i] > 0) {
            i++;
            continue;
        }
        utf8proc_ssize_t k =
            s[i] ? utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c)
                 : -1;
        if (k <= 0)
            return i + 1;
        i += (size_t)k;
    }
    return 0;
}

static enum cr_status check_text(struct cr_examples_reader *r, const char *s, size_t n)
{
    if (n > CR_EXAMPLES_MAX_LINE)
        return cr_examples_bad(r, CR_LIMIT, "%zu bytes, at most %d are read", n,
                               CR_EXAMPLES_MAX_LINE);
    size_t at = bad_utf8(s, n);
    if (at)
        return cr_examples_bad(r, CR_FORMAT, "byte %zu (0x%02X) is not UTF-8 text", at,
                               (unsigned)(unsigned char)s[at - 1]);
    return CR_OK;
}

static enum cr_status check_count(struct cr_examples_reader *r)
{
    return r->line <= CR_EXAMPLES_MAX_LINES
               ? CR_OK
               : cr_examples_bad(r, CR_LIMIT, "at most %d lines are read", CR_EXAMPLES_MAX_LINES);
}

static enum cr_status text_line(struct cr_examples_reader *r, const char *s, size_t n)
{
    struct cr_example e = {.answer_index = -1};
    if (!(e.question = cr_arena_strndup(r->out->arena, s, n)))
        return cr_examples_no_memory(r);
    return cr_examples_add(r, e);
}

static enum cr_status read_lines(struct cr_examples_reader *r, const char *data, size_t len,
                                 bool json)
{
    for (size_t at = 0; at < len;) {
        const char *s = data + at, *end = memchr(s, '\n', len - at);
        size_t n = end ? (size_t)(end - s) : len - at;
        at += n + 1;
        r->line++;
        enum cr_status st = check_count(r);
        if (!st)
            st = check_text(r, s, n);
        trim(&s, &n);
        if (!st && n)
            st = json ? cr_examples_json_line(r, s, n) : text_line(r, s, n);
        if (st)
            return st;
    }
    return CR_OK;
}

/* ---- CSV (RFC 4180) ---- */

enum column { QUESTION, CONTEXT, ANSWER, CHOICES, TASK, N_COLUMNS };
static const char *const column_names[N_COLUMNS][6] = {
    [QUESTION] = {"question", "text", "input", "query"},
    [CONTEXT] = {"context"},
    [ANSWER] = {"answer", "label", "output", "completion"},
    [CHOICES] = {"choices"},
    [TASK] = {"task"},
};

enum { MAX_FIELDS = 1024 };

struct csv {
    const char *data;
    size_t len, at;
    size_t n_lines; /* line ends passed */
    char comma;
    int n_fields;
    size_t field[MAX_FIELDS + 1]; /* offsets into text; field i ends with a NUL */
    struct cr_buf text;
};

/* A quoted field: at is past the opening quote; ends past the closing one. */
static enum cr_status csv_quoted(struct cr_examples_reader *r, struct csv *c)
{
    for (;;) {
        const char *s = c->data + c->at, *q = memchr(s, '"', c->len - c->at);
        if (!q)
            return cr_examples_bad(r, CR_FORMAT, "a quoted field is not closed");
        for (const char *p = s; p < q; p++)
            c->n_lines += *p == '\n';
        c->at += (size_t)(q - s) + 1;
        bool doubled = c->at < c->len && c->data[c->at] == '"';
        cr_buf_add(&c->text, s, (size_t)(q - s) + doubled);
        if (!doubled)
            return CR_OK;
        c->at++;
    }
}

/* Reads one field and the separator after it; *last when it ended the record. */
static enum cr_status csv_field(struct cr_examples_reader *r, struct csv *c, bool *last)
{
    c->field[c->n_fields] = c->text.len;
    if (c->at < c->len && c->data[c->at] == '"') {
        c->at++;
        enum cr_status st = csv_quoted(r, c);
        if (st)
            return st;
    } else {
        size_t start = c->at;
        while (c->at < c->len && c->data[c->at] != c->comma && c->data[c->at] != '\n') {
            if (c->data[c->at] == '"')
                return cr_examples_bad(r, CR_FORMAT,
                                       "a quote inside a field that does not begin with one");
            c->at++;
        }
        size_t end = c->at;
        if (end > start && c->data[end - 1] == '\r' && (end == c->len || c->data[end] == '\n'))
            end--;
        cr_buf_add(&c->text, c->data + start, end - start);
    }
    if (c->at + 1 < c->len && c->data[c->at] == '\r' && c->data[c->at + 1] == '\n')
        c->at++;
    *last = c->at >= c->len || c->data[c->at] == '\n';
    if (!*last && c->data[c->at] != c->comma)
        return cr_examples_bad(r, CR_FORMAT, "text after the closing quote of a field");
    c->n_lines += *last;
    c->at++;
    cr_buf_add(&c->text, "", 1);
    c->n_fields++;
    return CR_OK;
}

/* The next record; r->line becomes the line where it begins. */
static enum cr_status csv_record(struct cr_examples_reader *r, struct csv *c)
{
    size_t begin = c->at;
    c->n_fields = 0;
    c->text.len = 0;
    r->line = c->n_lines + 1;
    enum cr_status st = check_count(r);
    for (bool last = false; !st && !last;) {
        if (c->n_fields == MAX_FIELDS)
            return cr_examples_bad(r, CR_LIMIT, "more than %d fields", MAX_FIELDS);
        st = csv_field(r, c, &last);
        if (!st && c->text.failed)
            st = c->at - begin > CR_EXAMPLES_MAX_LINE
                     ? cr_examples_bad(r, CR_LIMIT, "more than %d bytes", CR_EXAMPLES_MAX_LINE)
                     : cr_examples_no_memory(r);
    }
    size_t end = c->at < c->len ? c->at : c->len;
    return st ? st : check_text(r, c->data + begin, end - begin);
}

static const char *csv_text(const struct csv *c, int field)
{
    return c->text.data + c->field[field];
}

/* Which column is which. One name of a group only: two columns for the same thing are a mistake. */
static enum cr_status csv_header(struct cr_examples_reader *r, struct csv *c, int column[N_COLUMNS])
{
    for (int k = 0; k < N_COLUMNS; k++)
        column[k] = -1;
    for (int i = 0; i < c->n_fields; i++) {
        const char *s = csv_text(c, i);
        size_t n = strlen(s);
        trim(&s, &n);
        int found = -1;
        for (int k = 0; k < N_COLUMNS; k++)
            for (int j = 0; column_names[k][j]; j++)
                if (strlen(column_names[k][j]) == n && !strncasecmp(column_names[k][j], s, n))
                    found = k;
        if (found < 0) {
            cr_log(CR_LOG_INFO, "%s: column \"%.*s\" is not used", r->name, (int)(n < 80 ? n : 80),
                   s);
        } else if (column[found] >= 0) {
            return cr_examples_bad(r, CR_FORMAT, "columns \"%.60s\" and \"%.60s\" both give the %s",
                                   csv_text(c, column[found]), csv_text(c, i),
                                   column_names[found][0]);
        } else {
            column[found] = i;
        }
    }
    if (column[QUESTION] >= 0)
        return CR_OK;
    return cr_examples_bad(r, CR_FORMAT,
                           "want a header with a column question (or text, input, query), found "
                           "\"%.100s\"%s",
                           csv_text(c, 0), c->n_fields > 1 ? " and others" : "");
}

/* A trimmed copy of a field; NULL (no error) when the column is absent or empty. */
static enum cr_status csv_take(struct cr_examples_reader *r, const struct csv *c, int field,
                               char **out)
{
    *out = NULL;
    if (field < 0)
        return CR_OK;
    const char *s = csv_text(c, field);
    size_t n = strlen(s);
    trim(&s, &n);
    if (n && !(*out = cr_arena_strndup(r->out->arena, s, n)))
        return cr_examples_no_memory(r);
    return CR_OK;
}

static enum cr_status csv_choices(struct cr_examples_reader *r, struct cr_example *e,
                                  const char *text)
{
    int n = 1;
    for (const char *p = text; (p = strstr(p, " | ")); p += 3)
        n++;
    if (n < 2 || n > CR_EXAMPLES_MAX_CHOICES)
        return cr_examples_bad(r, CR_FORMAT, "%d choices, want 2 to %d, separated by \" | \"", n,
                               CR_EXAMPLES_MAX_CHOICES);
    if (!(e->choices = cr_arena_alloc(r->out->arena, (size_t)n, sizeof *e->choices)))
        return cr_examples_no_memory(r);
    for (const char *p = text; p;) {
        const char *end = strstr(p, " | "), *s = p;
        size_t len = end ? (size_t)(end - p) : strlen(p);
        p = end ? end + 3 : NULL;
        trim(&s, &len);
        if (!len)
            return cr_examples_bad(r, CR_FORMAT, "choice %d is empty", e->n_choices + 1);
        char *copy = cr_arena_strndup(r->out->arena, s, len);
        if (!copy)
            return cr_examples_no_memory(r);
        e->choices[e->n_choices++] = copy;
    }
    return CR_OK;
}

static enum cr_status csv_example(struct cr_examples_reader *r, const struct csv *c,
                                  const int column[N_COLUMNS])
{
    struct cr_example e = {.answer_index = -1};
    char *choices;
    enum cr_status st = csv_take(r, c, column[QUESTION], &e.question);
    if (!st && !e.question)
        st = cr_examples_bad(r, CR_FORMAT, "the question is empty");
    if (!st)
        st = csv_take(r, c, column[CONTEXT], &e.context);
    if (!st)
        st = csv_take(r, c, column[ANSWER], &e.answer);
    if (!st)
        st = csv_take(r, c, column[TASK], &e.task);
    if (!st)
        st = csv_take(r, c, column[CHOICES], &choices);
    if (!st && choices)
        st = csv_choices(r, &e, choices);
    if (!st)
        st = cr_examples_match_answer(r, &e);
    return st ? st : cr_examples_add(r, e);
}

static enum cr_status read_csv(struct cr_examples_reader *r, const char *data, size_t len)
{
    struct csv *c = cr_alloc0(1, sizeof *c);
    if (!c)
        return cr_examples_no_memory(r);
    c->data = data;
    c->len = len;
    cr_buf_init(&c->text, CR_EXAMPLES_MAX_LINE + MAX_FIELDS + 1);
    size_t head = strcspn(data, "\n");
    c->comma = memchr(data, ',', head)    ? ','
               : memchr(data, ';', head)  ? ';'
               : memchr(data, '\t', head) ? '\t'
                                          : ',';
    int column[N_COLUMNS];
    enum cr_status st = csv_record(r, c);
    if (!st)
        st = csv_header(r, c, column);
    int n_fields = c->n_fields;
    while (!st && c->at < c->len) {
        st = csv_record(r, c);
        if (st || (c->n_fields == 1 && !*csv_text(c, 0)))
            continue; /* an empty line is no record */
        st = c->n_fields == n_fields ? csv_example(r, c, column)
                                     : cr_examples_bad(r, CR_FORMAT, "%d fields, the header has %d",
                                                       c->n_fields, n_fields);
    }
    cr_buf_deinit(&c->text);
    cr_free(c);
    return st;
}

/* ---- entry points ---- */

static bool ends_with(const char *s, size_t n, const char *tail)
{
    size_t k = strlen(tail);
    return n >= k && !strncasecmp(s + n - k, tail, k);
}

static enum cr_examples_format guess(const char *name, const char *data, size_t len)
{
    size_t n = strlen(name);
    if (ends_with(name, n, ".xz"))
        n -= 3;
    if (ends_with(name, n, ".jsonl") || ends_with(name, n, ".ndjson") ||
        ends_with(name, n, ".json"))
        return CR_EXAMPLES_JSONL;
    if (ends_with(name, n, ".csv") || ends_with(name, n, ".tsv"))
        return CR_EXAMPLES_CSV;
    if (ends_with(name, n, ".txt"))
        return CR_EXAMPLES_TEXT;
    trim(&data, &len);
    return len && *data == '{' ? CR_EXAMPLES_JSONL : CR_EXAMPLES_TEXT;
}

enum cr_status cr_examples_parse(struct cr_examples *out, const char *data, size_t len,
                                 const char *name, enum cr_examples_format format,
                                 struct cr_error *err)
{
    struct cr_examples_reader r = {.out = out, .name = name, .err = err};
    *out = (struct cr_examples){.arena = cr_arena_new()};
    /* A NUL-terminated copy, so that the header line can be searched as a string. */
    char *copy = cr_strndup(data, len);
    enum cr_status st = CR_OK;
    if (!copy || !out->arena) {
        st = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", name);
        goto fail;
    }
    const char *text = copy;
    if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) { /* byte order mark */
        text += 3;
        len -= 3;
    }
    if (format == CR_EXAMPLES_AUTO)
        format = guess(name, text, len);
    st = format == CR_EXAMPLES_CSV ? read_csv(&r, text, len)
                                   : read_lines(&r, text, len, format == CR_EXAMPLES_JSONL);
    if (!st && !out->n)
        st = cr_error_set(err, CR_FORMAT, "%s: no examples in %zu bytes", name, len);
fail:
    cr_free(copy);
    if (st)
        cr_examples_deinit(out);
    return st;
}

#ifdef CRAYON_LZMA
/* The bounds of memory and of unpacked size stop a file that is made to burst. */
static enum cr_status unpack_xz(const char *path, char **data, size_t *len, struct cr_error *err)
{
    lzma_stream s = LZMA_STREAM_INIT;
    struct cr_buf out;
    cr_buf_init(&out, CR_EXAMPLES_MAX_BYTES);
    uint8_t *piece = cr_alloc(1, 1 << 16);
    lzma_ret ret = piece ? lzma_stream_decoder(&s, 256u << 20, LZMA_CONCATENATED) : LZMA_MEM_ERROR;
    s.next_in = (const uint8_t *)*data;
    s.avail_in = *len;
    while (ret == LZMA_OK) {
        s.next_out = piece;
        s.avail_out = 1 << 16;
        ret = lzma_code(&s, LZMA_FINISH);
        if (!cr_buf_add(&out, piece, (1 << 16) - s.avail_out))
            ret = LZMA_MEMLIMIT_ERROR;
    }
    lzma_end(&s);
    cr_free(piece);
    cr_free(*data);
    *data = ret == LZMA_STREAM_END ? cr_buf_detach(&out, len) : NULL;
    cr_buf_deinit(&out);
    if (ret == LZMA_MEMLIMIT_ERROR)
        return cr_error_set(err, CR_LIMIT, "%s: unpacks to more than %d bytes", path,
                            CR_EXAMPLES_MAX_BYTES);
    if (*data)
        return CR_OK;
    return ret == LZMA_MEM_ERROR || ret == LZMA_STREAM_END
               ? cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path)
               : cr_error_set(err, CR_FORMAT, "%s: damaged or cut xz data (liblzma error %d)", path,
                              (int)ret);
}
#else
static enum cr_status unpack_xz(const char *path, char **data, size_t *len, struct cr_error *err)
{
    cr_free(*data);
    *data = NULL;
    *len = 0;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: is xz data; built without liblzma", path);
}
#endif

enum cr_status cr_examples_read(struct cr_examples *out, const char *path, struct cr_error *err)
{
    *out = (struct cr_examples){0};
    char *data = NULL;
    size_t len;
    enum cr_status st = cr_file_read(path, CR_EXAMPLES_MAX_BYTES, &data, &len, err);
    if (!st && len >= 6 &&
        !memcmp(data,
                "\xfd"
                "7zXZ",
                6))
        st = unpack_xz(path, &data, &len, err);
    if (!st)
        st = cr_examples_parse(out, data, len, strcmp(path, "-") ? path : "standard input",
                               CR_EXAMPLES_AUTO, err);
    cr_free(data);
    return st;
}

void cr_examples_deinit(struct cr_examples *e)
{
    cr_free(e->v);
    cr_arena_free(e->arena);
    *e = (struct cr_examples){0};
}

void cr_example_add_turn(struct cr_buf *context, const char *role, const char *content)
{
    bool system = !strcmp(role, "system");
    cr_buf_printf(context, "%s%s%s%s", context->len ? "\n" : "", system ? "" : role,
                  system ? "" : ": ", content);
}

char *cr_example_prompt(const struct cr_example *e)
{
    const char *c = e->context;
    return cr_asprintf("%s%s%sQuestion: %s\nAnswer:", c ? "Context: " : "", c ? c : "",
                       c ? "\n" : "", e->question);
}
