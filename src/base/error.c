/* SPDX-License-Identifier: Apache-2.0 */
/* Status tables and the caller-owned error message. */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *text;
    int exit_code, http;
} status_table[] = {
#define CR_X(name, text, exit_code, http) {text, exit_code, http},
    CR_STATUS_LIST(CR_X)
#undef CR_X
};

static size_t status_index(enum cr_status status)
{
    size_t i = (size_t)status;
    return i < sizeof status_table / sizeof *status_table ? i : (size_t)CR_INTERNAL;
}

const char *cr_status_text(enum cr_status status)
{
    return status_table[status_index(status)].text;
}

int cr_status_exit_code(enum cr_status status)
{
    return status_table[status_index(status)].exit_code;
}

int cr_status_http(enum cr_status status)
{
    return status_table[status_index(status)].http;
}

/* Control bytes and broken UTF-8 in names from files must not reach a terminal or a JSON reply. */
static void make_printable(char *s)
{
    unsigned char *p = (unsigned char *)s;
    while (*p) {
        size_t n = *p < 0x80 ? 1 : *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : *p >= 0xc2 ? 2 : 0;
        bool good = n != 0 && *p < 0xf5 && !(n == 1 && (*p < 0x20 || *p == 0x7f));
        for (size_t i = 1; good && i < n; i++)
            good = (p[i] & 0xc0) == 0x80;
        /* overlong forms, surrogates, beyond U+10FFFF and the C1 controls */
        if (good && n > 1)
            good = !(p[0] == 0xe0 && p[1] < 0xa0) && !(p[0] == 0xed && p[1] >= 0xa0) &&
                   !(p[0] == 0xf0 && p[1] < 0x90) && !(p[0] == 0xf4 && p[1] >= 0x90) &&
                   !(p[0] == 0xc2 && p[1] < 0xa0);
        if (!good) {
            *p = '?';
            n = 1;
        }
        p += n;
    }
}

static void fill(struct cr_error *err, enum cr_status status, uint64_t pos, const char *fmt,
                 va_list ap)
{
    if (!err)
        return;
    err->status = status;
    err->pos = pos;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    make_printable(err->msg);
}

enum cr_status cr_error_set(struct cr_error *err, enum cr_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, status, 0, fmt, ap);
    va_end(ap);
    return status;
}

enum cr_status cr_error_set_at(struct cr_error *err, enum cr_status status, uint64_t pos,
                               const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, status, pos, fmt, ap);
    va_end(ap);
    return status;
}

enum cr_status cr_error_prefix(struct cr_error *err, enum cr_status status, const char *fmt, ...)
{
    if (!err || status == CR_OK)
        return status;
    char front[sizeof err->msg], all[2 * sizeof err->msg + 4];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(front, sizeof front, fmt, ap);
    va_end(ap);
    snprintf(all, sizeof all, "%s: %s", front, err->msg);
    memcpy(err->msg, all, sizeof err->msg);
    err->msg[sizeof err->msg - 1] = '\0';
    make_printable(err->msg);
    return status;
}

enum cr_status cr_error_errno(struct cr_error *err, const char *what, const char *path)
{
    int e = errno;
    enum cr_status st = e == ENOENT || e == ENOTDIR ? CR_NOT_FOUND
                        : e == ENOMEM               ? CR_NO_MEMORY
                                                    : CR_IO;
    return cr_error_set(err, st, "%s: %s: %s", path, what, strerror(e));
}
