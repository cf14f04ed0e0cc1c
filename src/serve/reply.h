/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies in the shape of each dialect. Streams get piece, call and finish as the answer is made,
 * then end; whole replies get whole only.
 */
#ifndef CR_REPLY_WRITER_H
#define CR_REPLY_WRITER_H

#include "serve/job.h"

struct cr_writer {
    const char *stream_type; /* of the content */
    void (*start)(struct cr_job *j);
    /* Text of a choice; n 0 may come with log-probabilities of control tokens. */
    bool (*piece)(struct cr_choice *c, const char *text, size_t n);
    /* A call begins (arguments NULL) or goes on. */
    bool (*call)(struct cr_choice *c, size_t call, const char *arguments, size_t n);
    bool (*finish)(struct cr_choice *c);
    void (*end)(struct cr_job *j);
    json_t *(*whole)(struct cr_job *j);
};

const struct cr_writer *cr_writer_of(enum cr_api_kind kind);
extern const struct cr_writer cr_writer_openai;    /* reply.c */
extern const struct cr_writer cr_writer_responses; /* responses.c */
extern const struct cr_writer cr_writer_claude;    /* messages.c */
extern const struct cr_writer cr_writer_ollama;    /* ollama.c */

/* The object "crayon": who answered, with which blend, how sure. */
json_t *cr_reply_crayon(const struct cr_job *j);
/* An event with a name, for streams that have them; o is taken and told its type. */
bool cr_reply_event(struct cr_job *j, const char *type, json_t *o);
bool cr_reply_has_calls(const struct cr_choice *c);

#endif
