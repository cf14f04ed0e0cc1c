/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes in and out: a bounds-checked little-endian read cursor, a growing buffer with a ceiling, a
 * read-only file mapping, and an atomic file writer (temporary file, fsync, rename).
 */
#ifndef CR_BYTES_H
#define CR_BYTES_H

#include "base/error.h"

/* Reads never pass `size`. After the first failure `failed` stays set and every read gives 0. */
struct cr_cursor {
    const uint8_t *data;
    size_t size, pos;
    bool failed;
};
struct cr_cursor cr_cursor_make(const void *data, size_t size);
bool cr_cursor_has(const struct cr_cursor *c, uint64_t n);
/* Pointer to n bytes and past them; NULL (and failed) when they are not there. */
const void *cr_cursor_take(struct cr_cursor *c, uint64_t n);
uint8_t cr_cursor_u8(struct cr_cursor *c);
uint16_t cr_cursor_u16(struct cr_cursor *c);
uint32_t cr_cursor_u32(struct cr_cursor *c);
uint64_t cr_cursor_u64(struct cr_cursor *c);
float cr_cursor_f32(struct cr_cursor *c);
double cr_cursor_f64(struct cr_cursor *c);

/* A byte buffer that grows up to `max`. Appends return false (and set failed) past the ceiling or
 * when out of memory; the content so far stays. Always NUL-terminated. Free with cr_buf_deinit. */
struct cr_buf {
    char *data;
    size_t len, cap, max;
    bool failed;
};
void cr_buf_init(struct cr_buf *b, size_t max);
void cr_buf_deinit(struct cr_buf *b);
bool cr_buf_add(struct cr_buf *b, const void *data, size_t n);
bool cr_buf_puts(struct cr_buf *b, const char *s);
bool cr_buf_printf(struct cr_buf *b, const char *fmt, ...) CR_PRINTF(2, 3);
/* Hands the content over (free with cr_free) and empties b. NULL if b failed. */
char *cr_buf_detach(struct cr_buf *b, size_t *len);

/* A regular file mapped read-only. FIFOs, devices and directories are refused without blocking. */
struct cr_map {
    const uint8_t *data; /* NULL when size is 0 */
    size_t size;
};
enum cr_status cr_map_open(struct cr_map *m, const char *path, struct cr_error *err);
void cr_map_close(struct cr_map *m);

/* A whole regular file of at most max bytes. NUL-terminated; free *data with cr_free. "-" is
 * standard input. */
enum cr_status cr_file_read(const char *path, size_t max, char **data, size_t *len,
                            struct cr_error *err);
/* Writes the file whole or not at all: PATH.tmp.PID, fsync, rename. */
enum cr_status cr_file_write(const char *path, const void *data, size_t len, struct cr_error *err);

/* The same in pieces. begin -> add... -> commit (or abort: nothing is left). */
struct cr_file_writer {
    int fd;
    char *tmp, *path;
    uint64_t pos;
    enum cr_status status;
};
enum cr_status cr_file_begin(struct cr_file_writer *w, const char *path, struct cr_error *err);
enum cr_status cr_file_add(struct cr_file_writer *w, const void *data, size_t n,
                           struct cr_error *err);
enum cr_status cr_file_commit(struct cr_file_writer *w, struct cr_error *err);
void cr_file_abort(struct cr_file_writer *w);

#endif
