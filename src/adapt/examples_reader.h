/* SPDX-License-Identifier: Apache-2.0 */
/* What examples.c shares with examples_json.c: the list that grows, and errors by line number. */
#ifndef CR_EXAMPLES_READER_H
#define CR_EXAMPLES_READER_H

#include "adapt/examples.h"
#include "base/arena.h"

enum {
    CR_EXAMPLES_MAX_LINE = 1 << 20,  /* bytes of a line or CSV record */
    CR_EXAMPLES_MAX_LINES = 1000000, /* lines or CSV records of a file */
    CR_EXAMPLES_MAX_CHOICES = 256,   /* choices, aliases and messages of a line */
    CR_EXAMPLES_MAX_BYTES = 1 << 29  /* of a file, unpacked */
};

struct cr_examples_reader {
    struct cr_examples *out;
    size_t cap;
    const char *name; /* for messages */
    size_t line;      /* being read, from 1 */
    struct cr_error *err;
};

/* "NAME: line N: reason"; the error's pos is the line. */
enum cr_status cr_examples_bad(struct cr_examples_reader *r, enum cr_status status, const char *fmt,
                               ...) CR_PRINTF(3, 4);
enum cr_status cr_examples_no_memory(struct cr_examples_reader *r);
/* Appends e (its strings are in the arena), sets e.line and the defaults of task and answer. */
enum cr_status cr_examples_add(struct cr_examples_reader *r, struct cr_example e);
/* Turns a text answer into the index of the choice that equals it; an error when none does. */
enum cr_status cr_examples_match_answer(struct cr_examples_reader *r, struct cr_example *e);
/* One JSONL line that is not blank. */
enum cr_status cr_examples_json_line(struct cr_examples_reader *r, const char *line, size_t len);

#endif
