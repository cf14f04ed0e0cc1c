/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of a file or of standard input, as they come. */
#include "lines.h"

#include "messages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 1 << 16 };

enum cr_status cr_lines_open(struct cr_lines *l, const char *path, struct cr_error *err)
{
    bool std = !path || !strcmp(path, "-");
    *l = (struct cr_lines){.fd = -1, .name = std ? "standard input" : path};
    cr_buf_init(&l->buf, CR_LINES_MAX + PIECE);
    l->fd = std ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (l->fd < 0)
        return cr_error_errno(err, "cannot open", path);
    struct stat sb;
    if (!fstat(l->fd, &sb) && S_ISDIR(sb.st_mode))
        return cr_error_set(err, CR_INVALID, "%s: is a folder, want a file", l->name);
    return CR_OK;
}

void cr_lines_close(struct cr_lines *l)
{
    if (l->fd > STDIN_FILENO)
        close(l->fd);
    l->fd = -1;
    cr_buf_deinit(&l->buf);
}

/* Reads more; sets end at the end of the file. */
static enum cr_status fill(struct cr_lines *l, struct cr_error *err)
{
    static char piece[PIECE];
    if (l->at) {
        memmove(l->buf.data, l->buf.data + l->at, l->buf.len - l->at);
        l->buf.len -= l->at;
        l->at = 0;
    }
    if (l->buf.len > CR_LINES_MAX) {
        l->line_no++;
        return cr_lines_bad(l, CR_LIMIT, err, "longer than %d bytes", CR_LINES_MAX);
    }
    ssize_t n;
    do {
        if (cr_interrupted())
            return cr_error_set(err, CR_CANCELLED, "%s: interrupted", l->name);
        n = read(l->fd, piece, sizeof piece);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return cr_error_errno(err, "cannot read", l->name);
    l->end = n == 0;
    if (n && !cr_buf_add(&l->buf, piece, (size_t)n))
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", l->name);
    return CR_OK;
}

enum cr_status cr_lines_next(struct cr_lines *l, const char **line, size_t *len,
                             struct cr_error *err)
{
    *line = NULL;
    for (size_t seen = 0;;) {
        size_t left = l->buf.len - l->at;
        const char *p = left ? l->buf.data + l->at : NULL;
        const char *nl = left > seen ? memchr(p + seen, '\n', left - seen) : NULL;
        if (nl || (l->end && left)) {
            *line = p;
            *len = nl ? (size_t)(nl - p) : left;
            l->at += *len + (nl != NULL);
            l->line_no++;
            return CR_OK;
        }
        if (l->end)
            return CR_OK;
        seen = left;
        enum cr_status st = fill(l, err);
        if (st)
            return st;
    }
}

enum cr_status cr_lines_bad(const struct cr_lines *l, enum cr_status status, struct cr_error *err,
                            const char *fmt, ...)
{
    char text[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return cr_error_set_at(err, status, l->line_no, "%s: line %zu: %s", l->name, l->line_no, text);
}
