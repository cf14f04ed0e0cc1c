/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON writer: commas, indentation, escapes. */
#include "jsonout.h"

#include "messages.h"

#include <assert.h>
#include <math.h>
#include <string.h>

void cr_json_begin(struct cr_json *j, struct cr_buf *out, bool pretty)
{
    memset(j, 0, sizeof *j);
    j->out = out;
    j->pretty = pretty;
}

static void indent(struct cr_json *j)
{
    cr_buf_printf(j->out, "\n%*s", 2 * j->depth, "");
}

static void quoted(struct cr_buf *out, const char *s, size_t n)
{
    struct cr_buf clean;
    cr_buf_init(&clean, 3 * n + 1);
    const char *from = s;
    cr_buf_puts(out, "\"");
    for (size_t i = 0; i <= n; i++) { /* runs between characters that need an escape */
        unsigned char c = i < n ? (unsigned char)s[i] : 0;
        if (i < n && c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
            continue;
        clean.len = 0;
        cr_sanitise(&clean, from, (size_t)(s + i - from));
        cr_buf_add(out, clean.data, clean.len);
        from = s + i + 1;
        if (i == n)
            break;
        switch (c) {
        case '"':
            cr_buf_puts(out, "\\\"");
            break;
        case '\\':
            cr_buf_puts(out, "\\\\");
            break;
        case '\n':
            cr_buf_puts(out, "\\n");
            break;
        case '\t':
            cr_buf_puts(out, "\\t");
            break;
        case '\r':
            cr_buf_puts(out, "\\r");
            break;
        default:
            cr_buf_printf(out, "\\u%04x", c);
        }
    }
    cr_buf_puts(out, "\"");
    out->failed = out->failed || clean.failed;
    cr_buf_deinit(&clean);
}

/* What stands before a value: comma, new line, key. */
static void before(struct cr_json *j, const char *key)
{
    if (j->depth) {
        bool line = !j->pretty || j->at[j->depth - 1].short_;
        if (j->at[j->depth - 1].any)
            cr_buf_puts(j->out, line && j->pretty ? ", " : ",");
        if (!line)
            indent(j);
        j->at[j->depth - 1].any = true;
    }
    if (key) {
        quoted(j->out, key, strlen(key));
        cr_buf_puts(j->out, j->pretty ? ": " : ":");
    }
}

static void open_as(struct cr_json *j, const char *key, char kind, bool line)
{
    assert(j->depth < (int)(sizeof j->at / sizeof *j->at));
    before(j, key);
    cr_buf_add(j->out, &kind, 1);
    bool outer = j->depth && j->at[j->depth - 1].short_;
    j->at[j->depth].kind = kind;
    j->at[j->depth].any = false;
    j->at[j->depth].short_ = line || outer;
    j->depth++;
}

void cr_json_open(struct cr_json *j, const char *key, char kind)
{
    open_as(j, key, kind, false);
}

void cr_json_open_line(struct cr_json *j, const char *key, char kind)
{
    open_as(j, key, kind, true);
}

void cr_json_close(struct cr_json *j)
{
    j->depth--;
    if (j->pretty && j->at[j->depth].any && !j->at[j->depth].short_)
        indent(j);
    cr_buf_puts(j->out, j->at[j->depth].kind == '{' ? "}" : "]");
}

void cr_json_strn(struct cr_json *j, const char *key, const char *s, size_t n)
{
    before(j, key);
    quoted(j->out, s, n);
}

void cr_json_str(struct cr_json *j, const char *key, const char *s)
{
    if (s)
        cr_json_strn(j, key, s, strlen(s));
    else
        cr_json_null(j, key);
}

void cr_json_int(struct cr_json *j, const char *key, long long v)
{
    before(j, key);
    cr_buf_printf(j->out, "%lld", v);
}

void cr_json_uint(struct cr_json *j, const char *key, unsigned long long v)
{
    before(j, key);
    cr_buf_printf(j->out, "%llu", v);
}

void cr_json_real(struct cr_json *j, const char *key, double v)
{
    before(j, key);
    if (isfinite(v))
        cr_buf_printf(j->out, "%.9g", v);
    else
        cr_buf_puts(j->out, "null");
}

void cr_json_fixed(struct cr_json *j, const char *key, double v, int decimals)
{
    before(j, key);
    if (isfinite(v))
        cr_buf_printf(j->out, "%.*f", decimals, v);
    else
        cr_buf_puts(j->out, "null");
}

void cr_json_bool(struct cr_json *j, const char *key, bool v)
{
    before(j, key);
    cr_buf_puts(j->out, v ? "true" : "false");
}

void cr_json_null(struct cr_json *j, const char *key)
{
    before(j, key);
    cr_buf_puts(j->out, "null");
}

void cr_json_floats(struct cr_json *j, const char *key, const float *v, size_t n)
{
    cr_json_open_line(j, key, '[');
    for (size_t i = 0; i < n; i++)
        cr_json_real(j, NULL, (double)v[i]);
    cr_json_close(j);
}

void cr_json_ids(struct cr_json *j, const char *key, const int32_t *v, size_t n)
{
    cr_json_open_line(j, key, '[');
    for (size_t i = 0; i < n; i++)
        cr_json_int(j, NULL, v[i]);
    cr_json_close(j);
}

int cr_json_flush(struct cr_json *j)
{
    cr_buf_puts(j->out, "\n");
    if (j->out->failed) {
        struct cr_error err;
        cr_error_set(&err, CR_NO_MEMORY, "out of memory writing JSON");
        return cr_fail(&err);
    }
    cr_out(j->out->data, j->out->len);
    j->out->len = 0;
    return 0;
}
