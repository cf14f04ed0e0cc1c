/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file or standard input line by line, as a filter reads it: a line is handed out as soon as it
 * is there. Lines may hold any bytes, NUL too. JSON helpers for those who read JSONL.
 */
#ifndef CR_LINES_H
#define CR_LINES_H

#include "base/bytes.h"

enum { CR_LINES_MAX = 64 << 20 }; /* bytes of one line */

struct cr_lines {
    int fd;
    const char *name;   /* for messages: the path, or "standard input" */
    struct cr_buf buf;  /* bytes read and not yet handed out start at `at` */
    size_t at, line_no; /* line_no: of the last line handed out, from 1 */
    bool end;
};

/* path NULL or "-": standard input. Folders are refused. Close with cr_lines_close. */
enum cr_status cr_lines_open(struct cr_lines *l, const char *path, struct cr_error *err);
void cr_lines_close(struct cr_lines *l);
/* The next line without its "\n"; *line NULL at the end. A last line without "\n" counts. Borrowed
 * until the next call. CR_CANCELLED after Ctrl-C. */
enum cr_status cr_lines_next(struct cr_lines *l, const char **line, size_t *len,
                             struct cr_error *err);
/* "NAME: line N: reason", pos = N. */
enum cr_status cr_lines_bad(const struct cr_lines *l, enum cr_status status, struct cr_error *err,
                            const char *fmt, ...) CR_PRINTF(4, 5);

#endif
