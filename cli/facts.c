/* SPDX-License-Identifier: Apache-2.0 */
/* Facts as text or JSON. */
#include "facts.h"

#include "common.h"
#include "messages.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LABEL = 18 };

void cr_facts_begin(struct cr_facts *f, bool json)
{
    f->json = json;
    cr_buf_init(&f->buf, 1 << 28);
    cr_json_begin(&f->j, &f->buf, true);
    if (json)
        cr_json_open(&f->j, NULL, '{');
}

static void label(struct cr_facts *f, const char *key)
{
    char text[40];
    snprintf(text, sizeof text, "%s", key);
    for (char *p = text; *p; p++)
        *p = *p == '_' ? ' ' : *p;
    cr_buf_printf(&f->buf, "%-*s ", LABEL, text);
}

void cr_fact_strn(struct cr_facts *f, const char *key, const char *value, size_t n)
{
    if (f->json) {
        cr_json_strn(&f->j, key, value, n);
        return;
    }
    label(f, key);
    cr_sanitise(&f->buf, value, n);
    cr_buf_puts(&f->buf, "\n");
}

void cr_fact_str(struct cr_facts *f, const char *key, const char *value)
{
    if (value)
        cr_fact_strn(f, key, value, strlen(value));
}

void cr_fact_int(struct cr_facts *f, const char *key, long long value)
{
    if (f->json) {
        cr_json_int(&f->j, key, value);
        return;
    }
    label(f, key);
    cr_buf_printf(&f->buf, "%lld\n", value);
}

void cr_fact_real(struct cr_facts *f, const char *key, double value)
{
    if (isnan(value))
        return;
    if (f->json) {
        cr_json_real(&f->j, key, value);
        return;
    }
    label(f, key);
    cr_buf_printf(&f->buf, "%.6g\n", value);
}

void cr_fact_bool(struct cr_facts *f, const char *key, bool value)
{
    if (f->json)
        cr_json_bool(&f->j, key, value);
    else
        cr_fact_str(f, key, value ? "yes" : "no");
}

void cr_fact_bytes(struct cr_facts *f, const char *key, uint64_t bytes)
{
    char text[16];
    if (f->json)
        cr_json_uint(&f->j, key, bytes);
    else
        cr_fact_str(f, key, cr_bytes_text(bytes, text));
}

void cr_facts_list(struct cr_facts *f, const char *key, const char *title)
{
    if (f->json)
        cr_json_open(&f->j, key, '[');
    else
        cr_buf_printf(&f->buf, "\n%s\n", title);
}

void cr_facts_list_end(struct cr_facts *f)
{
    if (f->json)
        cr_json_close(&f->j);
}

void cr_facts_line(struct cr_facts *f, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    if (f->json)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    cr_buf_puts(&f->buf, text);
    cr_buf_puts(&f->buf, "\n");
}

const char *cr_facts_clean(const char *text, size_t n, char *out, size_t size)
{
    struct cr_buf b;
    cr_buf_init(&b, size - 1); /* a character that does not fit whole is left out */
    cr_sanitise(&b, text, n);
    snprintf(out, size, "%s", b.data ? b.data : "");
    cr_buf_deinit(&b);
    for (char *p = out; *p; p++)
        *p = *p == '\n' || *p == '\t' ? ' ' : *p;
    return out;
}

void cr_facts_drop(struct cr_facts *f)
{
    cr_buf_deinit(&f->buf);
}

int cr_facts_print(struct cr_facts *f)
{
    int code = 0;
    if (f->json) {
        cr_json_close(&f->j);
        code = cr_json_flush(&f->j);
    } else if (f->buf.failed) {
        struct cr_error err;
        cr_error_set(&err, CR_NO_MEMORY, "out of memory");
        code = cr_fail(&err);
    } else {
        cr_out(f->buf.data, f->buf.len);
    }
    cr_facts_drop(f);
    return code;
}
