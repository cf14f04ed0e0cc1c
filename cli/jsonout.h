/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes JSON into a buffer. The result is valid whatever goes in: broken UTF-8 becomes U+FFFD,
 * NaN and infinities become null. Pretty output has one member a line; compact has none.
 *
 *     struct cr_json j;
 *     cr_json_begin(&j, &buf, true);
 *     cr_json_open(&j, NULL, '{');
 *     cr_json_str(&j, "name", "x");
 *     cr_json_open(&j, "list", '[');
 *     cr_json_int(&j, NULL, 1);
 *     cr_json_close(&j);
 *     cr_json_close(&j);
 */
#ifndef CR_JSONOUT_H
#define CR_JSONOUT_H

#include "base/bytes.h"

struct cr_json {
    struct cr_buf *out;
    bool pretty;
    int depth;
    struct {
        char kind;   /* '{' or '[' */
        bool any;    /* has a member */
        bool short_; /* members of this one stay on one line */
    } at[32];
};

void cr_json_begin(struct cr_json *j, struct cr_buf *out, bool pretty);
/* key: NULL inside arrays and at the top. kind: '{' or '['; "{-" and "[-" forms stay on one line:
 * pass them with cr_json_open_line. */
void cr_json_open(struct cr_json *j, const char *key, char kind);
void cr_json_open_line(struct cr_json *j, const char *key, char kind);
void cr_json_close(struct cr_json *j);
void cr_json_str(struct cr_json *j, const char *key, const char *s); /* s NULL: null */
void cr_json_strn(struct cr_json *j, const char *key, const char *s, size_t n);
void cr_json_int(struct cr_json *j, const char *key, long long v);
void cr_json_uint(struct cr_json *j, const char *key, unsigned long long v);
void cr_json_real(struct cr_json *j, const char *key,
                  double v); /* nine digits: a float32 exactly */
void cr_json_fixed(struct cr_json *j, const char *key, double v, int decimals);
void cr_json_bool(struct cr_json *j, const char *key, bool v);
void cr_json_null(struct cr_json *j, const char *key);
void cr_json_floats(struct cr_json *j, const char *key, const float *v, size_t n);
void cr_json_ids(struct cr_json *j, const char *key, const int32_t *v, size_t n);
/* Writes the buffer and a newline to standard output; returns 0, or the exit code for out of
 * memory. Empties the buffer. */
int cr_json_flush(struct cr_json *j);

#endif
