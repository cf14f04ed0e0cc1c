/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon tokenize`: bytes in, token ids out. */
#include "base/mem.h"
#include "common.h"
#include "jsonout.h"
#include "lines.h"
#include "messages.h"
#include "verbs.h"

#include <string.h>

#ifdef CRAYON_JSON
#include <jansson.h>
#endif

enum { MAX_INPUT = 1 << 30 };

static unsigned flags_of(const struct cr_args *a)
{
    return (cr_arg_flag(a, CR_OPT_SPECIAL) ? CR_TOKENIZE_SPECIAL : 0u) |
           (cr_arg_flag(a, CR_OPT_BOS) ? CR_TOKENIZE_BOS : 0u);
}

/* One text -> one line of ids, as a JSON array or separated by blanks. */
static enum cr_status print_ids(const cr_model *m, const char *text, size_t len, unsigned flags,
                                bool json, struct cr_error *err)
{
    int32_t *ids;
    size_t n;
    enum cr_status st = cr_tokenize(m, text, len, flags, &ids, &n, err);
    if (st)
        return st;
    struct cr_buf b;
    cr_buf_init(&b, 1 << 30);
    if (json)
        cr_buf_puts(&b, "[");
    for (size_t i = 0; i < n && !b.failed; i++)
        cr_buf_printf(&b, "%s%d", !i ? "" : json ? "," : " ", (int)ids[i]);
    cr_buf_puts(&b, json ? "]\n" : "\n");
    if (b.failed)
        st = cr_error_set(err, CR_NO_MEMORY, "out of memory");
    else
        cr_out(b.data, b.len);
    cr_buf_deinit(&b);
    cr_free(ids);
    return st;
}

#ifdef CRAYON_JSON
static enum cr_status json_text_line(const cr_model *m, const struct cr_lines *l, const char *line,
                                     size_t len, unsigned flags, struct cr_error *err)
{
    json_error_t je;
    json_t *o = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    const json_t *text = json_object_get(o, "text");
    enum cr_status st;
    if (!o)
        st = cr_lines_bad(l, CR_FORMAT, err, "not valid JSON at byte %d: %s", je.position, je.text);
    else if (!json_is_string(text))
        st = cr_lines_bad(l, CR_FORMAT, err, "want an object with a string \"text\"");
    else
        st = print_ids(m, json_string_value(text), json_string_length(text), flags, true, err);
    json_decref(o);
    return st;
}
#else
static enum cr_status json_text_line(const cr_model *m, const struct cr_lines *l, const char *line,
                                     size_t len, unsigned flags, struct cr_error *err)
{
    (void)m;
    (void)line;
    (void)len;
    (void)flags;
    return cr_lines_bad(l, CR_UNSUPPORTED, err, "is JSON; built without JSON");
}
#endif

static enum cr_status each_line(const cr_model *m, const char *path, bool jsonl, unsigned flags,
                                struct cr_error *err)
{
    struct cr_lines lines;
    enum cr_status st = cr_lines_open(&lines, path, err);
    const char *line = NULL;
    size_t len;
    while (!st && !cr_out_failed()) {
        st = cr_lines_next(&lines, &line, &len, err);
        if (st || !line)
            break;
        st = jsonl ? json_text_line(m, &lines, line, len, flags, err)
                   : print_ids(m, line, len, flags, true, err);
    }
    cr_lines_close(&lines);
    return st;
}

static enum cr_status whole(const cr_model *m, const char *path, bool json, unsigned flags,
                            struct cr_error *err)
{
    char *text;
    size_t len;
    enum cr_status st = cr_file_read(path ? path : "-", MAX_INPUT, &text, &len, err);
    if (st)
        return st;
    st = print_ids(m, text, len, flags, json, err);
    cr_free(text);
    return st;
}

int cr_cli_tokenize(const struct cr_args *a)
{
    bool lines = cr_arg_flag(a, CR_OPT_LINES), jsonl = cr_arg_flag(a, CR_OPT_JSONL);
    if (lines && jsonl)
        return cr_misuse("tokenize", "--lines and --jsonl exclude each other");
    struct cr_setup s;
    struct cr_error err;
    const char *path = a->n_rest ? a->rest[0] : NULL;
    enum cr_status st = cr_setup_open(&s, a, CR_SETUP_VOCAB, &err);
    if (!st && (lines || jsonl))
        st = each_line(s.model, path, jsonl, flags_of(a), &err);
    else if (!st)
        st = whole(s.model, path, cr_arg_flag(a, CR_OPT_JSON), flags_of(a), &err);
    cr_setup_close(&s);
    return st ? cr_fail(&err) : 0;
}
