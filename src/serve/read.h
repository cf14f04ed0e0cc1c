/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one request body field by field. Absent and null are the same. Every reader returns false
 * after it has set the error, which names the field; the first fault wins.
 */
#ifndef CR_READ_H
#define CR_READ_H

#include "serve/api.h"

struct cr_reader {
    json_t *root;
    struct cr_api_error *e;
    struct cr_api_request *r;
};

bool cr_read_bad(struct cr_reader *in, const char *param, const char *fmt, ...) CR_PRINTF(3, 4);
bool cr_read_no_memory(struct cr_reader *in);
json_t *cr_read_field(const struct cr_reader *in, const char *name);
bool cr_read_int(struct cr_reader *in, const char *name, int64_t min, int64_t max, int64_t *out);
bool cr_read_real(struct cr_reader *in, const char *name, double min, double max, float *out);
bool cr_read_bool(struct cr_reader *in, const char *name, bool *out);
/* A string without NUL of at least min bytes; *out stays when absent. Free with cr_free. */
bool cr_read_string(struct cr_reader *in, const char *name, size_t min, char **out);
/* A copy of a JSON string without NUL; NULL and an error when it is none. */
char *cr_read_copy(struct cr_reader *in, const char *param, json_t *v);
bool cr_read_stop(struct cr_reader *in, const char *name);
/* Refuses each named field that is neither absent nor empty nor "none". */
bool cr_read_refuse(struct cr_reader *in, const char *const *names, size_t n);
/* Notes those of the named fields that are present as ignored. */
bool cr_read_ignore(struct cr_reader *in, const char *const *names, size_t n);
/* "crayon" and "lora". */
bool cr_read_extension(struct cr_reader *in);

/* Appends a message; takes content (may be NULL: out of memory). Consecutive messages of tools
 * become one of the user. */
bool cr_read_add_message(struct cr_reader *in, const char *role, char *content);
/* Content that is a string or an array of text parts of the types given; others are refused. */
char *cr_read_content(struct cr_reader *in, const char *param, json_t *content,
                      const char *const *types);

/* tools.c: adds a tool of any dialect; parameters may be NULL. */
bool cr_read_add_tool(struct cr_reader *in, const char *param, json_t *name, json_t *description,
                      json_t *parameters);
/* tools.c: writes a call as the assistant's text holds it, and a result as the user's does. */
bool cr_tool_call_text(struct cr_buf *b, const char *name, const char *arguments);
bool cr_tool_result_text(struct cr_buf *b, const char *result);
/* tools.c: says in the system message which tools there are. */
bool cr_tools_instruct(struct cr_reader *in);

/* One file per dialect. */
bool cr_read_openai(struct cr_reader *in);    /* api.c */
bool cr_read_responses(struct cr_reader *in); /* responses.c */
bool cr_read_claude(struct cr_reader *in);    /* messages.c */
bool cr_read_ollama(struct cr_reader *in);    /* ollama.c */
bool cr_read_embeddings(struct cr_reader *in);
/* response_format, text.format, format: the schema of a format object. */
bool cr_read_schema(struct cr_reader *in, const char *param, json_t *holder);

#endif
