/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A report as facts, printed as aligned text or as one JSON object from the same calls, so that the
 * two cannot say different things.
 */
#ifndef CR_FACTS_H
#define CR_FACTS_H

#include "jsonout.h"

struct cr_facts {
    bool json;
    struct cr_buf buf;
    struct cr_json j;
};

void cr_facts_begin(struct cr_facts *f, bool json);
/* Labels are JSON keys; text output shows them with blanks for underscores. */
void cr_fact_str(struct cr_facts *f, const char *key, const char *value); /* NULL: left out */
void cr_fact_strn(struct cr_facts *f, const char *key, const char *value, size_t n);
void cr_fact_int(struct cr_facts *f, const char *key, long long value);
void cr_fact_real(struct cr_facts *f, const char *key, double value); /* NAN: left out */
void cr_fact_bool(struct cr_facts *f, const char *key, bool value);
void cr_fact_bytes(struct cr_facts *f, const char *key, uint64_t bytes);
/* A list of rows; each row an object in JSON. Text rows are written by the caller with
 * cr_facts_line, and only when !f->json. */
void cr_facts_list(struct cr_facts *f, const char *key, const char *title);
void cr_facts_list_end(struct cr_facts *f);
void cr_facts_line(struct cr_facts *f, const char *fmt, ...) CR_PRINTF(2, 3);
/* Text of a file inside a line: at most n bytes, printable. Returns out, of `size` bytes. */
const char *cr_facts_clean(const char *text, size_t n, char *out, size_t size);
/* Prints everything; returns the exit code. Frees. */
int cr_facts_print(struct cr_facts *f);
void cr_facts_drop(struct cr_facts *f);

#endif
