/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The OpenAI API as pure functions on strings: a request body to a checked struct, results to JSON.
 * No sockets, no model. Known fields that we cannot honour are refused by name; unknown ones are
 * ignored.
 */
#ifndef CR_API_H
#define CR_API_H

#include "base/bytes.h"

#include <jansson.h>

enum {
    CR_API_MAX_STOP = 16,
    CR_API_MAX_TOP = 20,
    CR_API_MAX_MESSAGES = 4096,
    CR_API_MAX_PROMPTS = 256
};

struct cr_api_error {
    int http;         /* status of the reply; 0: no error */
    char param[64];   /* the field at fault, or "" */
    const char *type; /* "invalid_request_error", ... */
    const char *code; /* NULL or a constant such as "model_not_found" */
    char msg[480];
};

struct cr_api_prompt { /* one of text or ids */
    char *text;
    size_t n_text;
    int32_t *ids;
    size_t n_ids;
};

struct cr_api_request {
    bool chat;
    char *model;
    struct cr_message *messages; /* chat: [n_messages], strings owned */
    size_t n_messages;
    struct cr_api_prompt *prompts; /* completions: [n_prompts] */
    size_t n_prompts;
    int max_tokens; /* -1: not given */
    struct cr_sampling sampling;
    char *stop[CR_API_MAX_STOP];
    size_t n_stop;
    bool stream, include_usage, echo, logprobs;
    int top_logprobs; /* 0 .. CR_API_MAX_TOP */
};

/* false: *e says why. Free with cr_api_request_deinit in both cases. */
bool cr_api_parse(struct cr_api_request *r, bool chat, const char *body, size_t len,
                  struct cr_api_error *e);
void cr_api_request_deinit(struct cr_api_request *r);

void cr_api_error_set(struct cr_api_error *e, int http, const char *param, const char *code,
                      const char *fmt, ...) CR_PRINTF(5, 6);
/* From a library error: status by cr_status_http, CR_LIMIT as context_length_exceeded (400). */
void cr_api_error_from(struct cr_api_error *e, const struct cr_error *err);
/* {"error": {"message", "type", "param", "code"}}; new reference, NULL when out of memory. */
json_t *cr_api_error_json(const struct cr_api_error *e);

/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD. */
json_t *cr_api_text(const char *text, size_t n);
/* A token for logprobs: its text, or "bytes:\xNN..." when it is no whole UTF-8. */
json_t *cr_api_token_text(const char *bytes, size_t n);
/* Adds v (stolen) under key; keeps the sum of failures in *ok. */
void cr_api_put(json_t *object, const char *key, json_t *v, bool *ok);
/* Compact text into b, in front `before` and after it `after`. False: out of memory. */
bool cr_api_dump(struct cr_buf *b, const char *before, json_t *v, const char *after);

#endif
