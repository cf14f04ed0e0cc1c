/* SPDX-License-Identifier: Apache-2.0 */
/* Rows as JSON and CSV. Texts in them come from servers and are not trusted. Numbers do not depend
 * on the locale. */
#include "route/ledger_text.h"

#include "base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A JSON string; bytes that are no UTF-8 become '?'. */
static void add_string(struct cr_buf *b, const char *s)
{
    size_t len = strlen(s), good = cr_utf8_valid(s, len);
    cr_buf_puts(b, "\"");
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (i == good) {
            cr_buf_puts(b, "?");
            good = i + 1 + cr_utf8_valid(s + i + 1, len - i - 1);
        } else if (c == '"' || c == '\\') {
            cr_buf_printf(b, "\\%c", c);
        } else if (c < 0x20 || c == 0x7f) {
            cr_buf_printf(b, "\\u%04x", c);
        } else {
            cr_buf_add(b, s + i, 1);
        }
    }
    cr_buf_puts(b, "\"");
}

/* A decimal point in every locale; at most 9 digits. */
static void add_real(struct cr_buf *b, double v)
{
    char text[32];
    snprintf(text, sizeof text, "%.9g", v);
    for (char *p = text; *p; p++)
        if (*p == ',')
            *p = '.';
    cr_buf_puts(b, text);
}

static void member(struct cr_buf *b, const char *name)
{
    cr_buf_printf(b, "%s\"%s\":", b->len && b->data[b->len - 1] == '{' ? "" : ",", name);
}

static void text_member(struct cr_buf *b, const char *name, const char *s)
{
    member(b, name);
    add_string(b, s);
}

static void int_member(struct cr_buf *b, const char *name, int64_t v)
{
    member(b, name);
    if (v < 0)
        cr_buf_puts(b, "null");
    else
        cr_buf_printf(b, "%lld", (long long)v);
}

static void real_member(struct cr_buf *b, const char *name, double v)
{
    member(b, name);
    if (v >= 0 && isfinite(v))
        add_real(b, v);
    else
        cr_buf_puts(b, "null");
}

bool cr_ledger_json(struct cr_buf *b, const struct cr_ledger_row *row)
{
    cr_buf_puts(b, "{");
    int_member(b, "id", row->id);
    text_member(b, "time", row->time);
    text_member(b, "request_id", row->request_id);
    text_member(b, "destination", row->destination);
    text_member(b, "model", row->model);
    text_member(b, "reason", row->reason);
    text_member(b, "status", row->status);
    int_member(b, "bytes_out", row->bytes_out);
    int_member(b, "bytes_in", row->bytes_in);
    int_member(b, "tokens_in", row->tokens_in);
    int_member(b, "tokens_out", row->tokens_out);
    int_member(b, "tries", row->tries);
    real_member(b, "cost", row->cost);
    real_member(b, "duration_ms", row->duration_ms);
    return cr_buf_puts(b, "}");
}

bool cr_ledger_totals_json(struct cr_buf *b, const struct cr_ledger_totals *t)
{
    cr_buf_puts(b, "{");
    int_member(b, "rows", t->rows);
    int_member(b, "ok", t->ok);
    int_member(b, "failed", t->failed);
    int_member(b, "pending", t->pending);
    int_member(b, "bytes_out", t->bytes_out);
    int_member(b, "bytes_in", t->bytes_in);
    int_member(b, "tokens_in", t->tokens_in);
    int_member(b, "tokens_out", t->tokens_out);
    real_member(b, "cost", t->cost_known ? t->cost : -1);
    return cr_buf_puts(b, "}");
}

bool cr_ledger_csv_head(struct cr_buf *b)
{
    return cr_buf_puts(b, "id,time,request_id,destination,model,reason,status,bytes_out,bytes_in,"
                          "tokens_in,tokens_out,tries,cost,duration_ms\r\n");
}

static void cell(struct cr_buf *b, const char *s)
{
    cr_buf_puts(b, ",");
    bool formula = *s && strchr("=+-@\t\r", *s);
    if (!formula && !strpbrk(s, ",\"\r\n")) {
        cr_buf_puts(b, s);
        return;
    }
    cr_buf_puts(b, formula ? "\"'" : "\"");
    for (; *s; s++)
        cr_buf_puts(b, *s == '"' ? "\"\"" : (char[]){*s, '\0'});
    cr_buf_puts(b, "\"");
}

static void int_cell(struct cr_buf *b, int64_t v)
{
    cr_buf_puts(b, ",");
    if (v >= 0)
        cr_buf_printf(b, "%lld", (long long)v);
}

static void real_cell(struct cr_buf *b, double v)
{
    cr_buf_puts(b, ",");
    if (v >= 0 && isfinite(v))
        add_real(b, v);
}

bool cr_ledger_csv(struct cr_buf *b, const struct cr_ledger_row *row)
{
    cr_buf_printf(b, "%lld", (long long)row->id);
    cell(b, row->time);
    cell(b, row->request_id);
    cell(b, row->destination);
    cell(b, row->model);
    cell(b, row->reason);
    cell(b, row->status);
    int_cell(b, row->bytes_out);
    int_cell(b, row->bytes_in);
    int_cell(b, row->tokens_in);
    int_cell(b, row->tokens_out);
    int_cell(b, row->tries);
    real_cell(b, row->cost);
    real_cell(b, row->duration_ms);
    return cr_buf_puts(b, "\r\n");
}
