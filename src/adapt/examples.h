/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The user's examples and the task files: one reader for JSONL (task lines or chat messages), CSV
 * with a header, and plain lines of text. The first bad line is named by number.
 *
 * Task line: {"task"?, "question", "context"?, "choices"?: [str...], "answer"?: index or str,
 * "aliases"?: [str...], "group"?, "split"?}. Chat line: {"messages": [{"role", "content"}...]}, the
 * last assistant message is the answer. {"prompt", "completion"} and {"text"} are read too. CSV
 * columns: question (or text, input, query), context, answer (or label, output, completion),
 * choices (separated by " | "), task. A CSV answer is text; it becomes an index where choices hold
 * it.
 */
#ifndef CR_EXAMPLES_H
#define CR_EXAMPLES_H

#include "base/bytes.h"

struct cr_example {
    char *task;     /* "" when not given */
    char *question; /* never NULL */
    char *context;  /* NULL: none */
    char **choices; /* [n_choices] or NULL */
    int n_choices;
    int answer_index; /* of choices, or -1 */
    char *answer;     /* text of the answer; NULL: not given */
    char **aliases;   /* [n_aliases] other right answers */
    int n_aliases;
    char *group, *split; /* of evaluation files, such as "unseen" and "test"; NULL: not given */
    size_t line;         /* in the file, from 1 */
};

struct cr_examples {
    struct cr_example *v;
    size_t n;
    struct cr_arena *arena; /* owns all strings */
};

enum cr_examples_format { CR_EXAMPLES_AUTO, CR_EXAMPLES_JSONL, CR_EXAMPLES_CSV, CR_EXAMPLES_TEXT };

/* Limits: lines of at most 1 MiB, at most 10^6 lines, at most 256 choices. AUTO goes by the name's
 * ending (.jsonl .csv .txt), else by the first byte. `name` is used in messages. */
enum cr_status cr_examples_parse(struct cr_examples *out, const char *data, size_t len,
                                 const char *name, enum cr_examples_format format,
                                 struct cr_error *err);
/* Also reads .xz through liblzma when built with it; else refuses by name. "-" is standard input.
 */
enum cr_status cr_examples_read(struct cr_examples *out, const char *path, struct cr_error *err);
void cr_examples_deinit(struct cr_examples *e);

/* The one prompt of crayon for tasks: "Context: C\nQuestion: Q\nAnswer:" (no context line where
 * there is none). An option or answer is scored as " " + text; a trained answer ends with "\n".
 * Plain text examples (no answer, no choices) are embedded by their question. Free with cr_free. */
char *cr_example_prompt(const struct cr_example *e);
/* Adds a message to the context of a conversation: a line "role: content", of a system message the
 * content alone. */
void cr_example_add_turn(struct cr_buf *context, const char *role, const char *content);

#endif
