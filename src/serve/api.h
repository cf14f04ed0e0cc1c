/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The APIs as pure functions on strings: a request body of any dialect to one checked struct, and
 * JSON helpers for the replies. No sockets, no model. Known fields that we cannot honour are
 * refused by name, or listed in `ignored` where they cannot change the answer; unknown ones are
 * ignored.
 */
#ifndef CR_API_H
#define CR_API_H

#include "base/bytes.h"

#include <jansson.h>

enum cr_api_kind {
    CR_API_COMPLETIONS,
    CR_API_CHAT,
    CR_API_RESPONSES,
    CR_API_MESSAGES,
    CR_API_COUNT_TOKENS,
    CR_API_OLLAMA_CHAT,
    CR_API_OLLAMA_GENERATE,
    CR_API_EMBEDDINGS,
    CR_API_OLLAMA_EMBED,
    CR_API_KINDS
};

enum {
    CR_API_MAX_STOP = 16,
    CR_API_MAX_STOP_BYTES = 1024,
    CR_API_MAX_TOP = 20,
    CR_API_MAX_MESSAGES = 4096,
    CR_API_MAX_PROMPTS = 256,
    CR_API_MAX_CHOICES = 256, /* prompts times n */
    CR_API_MAX_N = 128,
    CR_API_MAX_BIAS = 4096,
    CR_API_MAX_TOOLS = 256,
    CR_API_MAX_LORA = 64
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

enum cr_api_format { CR_FORMAT_TEXT, CR_FORMAT_JSON, CR_FORMAT_SCHEMA };
enum cr_api_form { CR_PROMPT_AUTO, CR_PROMPT_TASK, CR_PROMPT_CHAT }; /* crayon.form */
enum cr_api_tool_choice { CR_TOOLS_NONE, CR_TOOLS_AUTO, CR_TOOLS_REQUIRED, CR_TOOLS_NAMED };

struct cr_api_request {
    enum cr_api_kind kind;
    bool chat; /* messages, not prompts */
    char *model;
    struct cr_message *messages; /* chat: [n_messages], strings owned */
    size_t n_messages;
    struct cr_api_prompt *prompts; /* completions, embeddings: [n_prompts] */
    size_t n_prompts;
    int max_tokens; /* -1: not given */
    int n;          /* choices of each prompt */
    struct cr_sampling sampling;
    float presence_penalty, frequency_penalty;
    int32_t *bias_ids; /* [n_bias] */
    float *bias;
    size_t n_bias;
    char *stop[CR_API_MAX_STOP];
    size_t n_stop;
    bool stream, include_usage, echo, logprobs, raw;
    int top_logprobs; /* 0 .. CR_API_MAX_TOP */
    enum cr_api_format format;
    json_t *schema; /* CR_FORMAT_SCHEMA */
    char *schema_name;
    json_t *tools; /* [{"name", "description", "parameters"}]; NULL: none */
    enum cr_api_tool_choice tool_choice;
    char *tool_name; /* CR_TOOLS_NAMED */
    bool parallel_tools;
    bool base64;      /* embeddings as base64 of float32 */
    bool view_middle; /* embeddings from the middle of the model, else from its first layer */
    json_t *examples; /* crayon.examples: array of example objects; NULL: none */
    char *adapter;    /* crayon.adapters: ["NAME"] of a palette; NULL: as the model's name says */
    char *route;      /* crayon.route: "auto", "device", "server"; NULL: not given */
    double max_cost;  /* crayon.max_cost; NAN: not given */
    int worked;       /* crayon.worked: worked examples at most; -1: not given */
    enum cr_api_form form;
    struct cr_api_lora {
        int id;
        float scale;
    } * lora; /* llama-server's field `lora`: [n_lora] */
    size_t n_lora;
    bool has_lora;
    json_t *ignored; /* names of known fields that were ignored, as strings */
    json_t *echoed;  /* responses: fields that the reply repeats */
};

/* false: *e says why. Free with cr_api_request_deinit in both cases. */
bool cr_api_parse(struct cr_api_request *r, enum cr_api_kind kind, const char *body, size_t len,
                  struct cr_api_error *e);
void cr_api_request_deinit(struct cr_api_request *r);

void cr_api_error_set(struct cr_api_error *e, int http, const char *param, const char *code,
                      const char *fmt, ...) CR_PRINTF(5, 6);
/* From a library error: status by cr_status_http, CR_LIMIT as context_length_exceeded (400). */
void cr_api_error_from(struct cr_api_error *e, const struct cr_error *err);
/* The error object of a dialect; new reference, NULL when out of memory. */
json_t *cr_api_error_json(enum cr_api_kind kind, const struct cr_api_error *e);

/* Strict JSON: no duplicate keys, no deep nesting; NULL and *e when it is not. */
json_t *cr_api_load(const char *body, size_t len, struct cr_api_error *e);
/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD. */
json_t *cr_api_text(const char *text, size_t n);
/* A token for logprobs: its text, or "bytes:\xNN..." when it is no whole UTF-8. */
json_t *cr_api_token_text(const char *bytes, size_t n);
/* Adds v (stolen) under key; keeps the sum of failures in *ok. */
void cr_api_put(json_t *object, const char *key, json_t *v, bool *ok);
/* Compact text into b, in front `before` and after it `after`. False: out of memory. */
bool cr_api_dump(struct cr_buf *b, const char *before, json_t *v, const char *after);
/* The same as a string of its own; free with cr_free. NULL: out of memory. */
char *cr_api_string(json_t *v, size_t *len);

#endif
