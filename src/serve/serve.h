/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An HTTP server over one model and its palettes that speaks the APIs of OpenAI, Anthropic and
 * Ollama: docs/api.md.
 *
 * Two kinds of threads. libmicrohttpd's one thread owns the sockets: it reads a request, has it
 * checked (api.c), puts a job into a bounded queue and suspends the connection. One worker
 * (schedule.c) owns the model's only session: it runs all answers together, a token of each per
 * pass, appends bytes to their jobs and wakes the connections. Neither waits for the other; a full
 * queue is answered with 503 at once.
 *
 * Serves only loopback addresses unless a key is set. Every fault is an error object with the right
 * status; nothing that a client sends ends the process. All memory for the model's work is taken at
 * the start.
 */
#ifndef CR_SERVE_H
#define CR_SERVE_H

#include "base/error.h"

typedef struct cr_server cr_server;

struct cr_serve_adapter {
    const cr_adapter *adapter; /* borrowed */
    const char *path;
    float scale;
};

struct cr_serve_options {
    cr_model *model;        /* borrowed */
    const char *model_name; /* what clients call it */
    /* Palettes, GGUF adapters or PEFT directories to serve as "MODEL:NAME". */
    const char *const *palettes;
    size_t n_palettes;
    /* Of "MODEL" itself, in the order of their ids at /lora-adapters. */
    const struct cr_serve_adapter *adapters;
    size_t n_adapters;
    const char *pool;         /* file for blends from examples; NULL: that of a palette */
    const char *adapter_dir;  /* files below it may be loaded by request; NULL: none */
    const char *host;         /* numeric address or "localhost"; NULL: 127.0.0.1 */
    int port;                 /* 0: any free one */
    const char *key;          /* wanted as "Authorization: Bearer KEY"; NULL: none */
    const char *admin_key;    /* wanted for what changes the server; NULL: the key does */
    int n_ctx;                /* of one request; 0: the model's own */
    int parallel;             /* requests that run at the same time; 0: 4 */
    int max_queue;            /* waiting requests; 0: 16 */
    size_t max_body;          /* bytes of a request; 0: 4 MiB */
    struct cr_router *router; /* who may send questions to a server; borrowed; NULL: nobody */
    int listen_fd; /* a socket that listens already (with host and port ignored); 0: none */
    bool log_json; /* lines of on_request are JSON objects */
    /* Told of each finished request, on the worker's thread; may be NULL. No prompts. */
    void (*on_request)(void *ud, const char *line);
    void *ud;
};

/* Bytes that the server takes for its sequences and their samplers: what parallel and n_ctx cost.
 */
size_t cr_server_bytes(const struct cr_serve_options *opt);
/* Starts serving. CR_POLICY for an address beyond loopback without a key. Stop with
 * cr_server_stop, before the model closes. */
enum cr_status cr_server_start(cr_server **out, const struct cr_serve_options *opt,
                               struct cr_error *err);
int cr_server_port(const cr_server *s);
/* Opens the palettes' files again; running answers go on with what they began with. */
enum cr_status cr_server_reload(cr_server *s, size_t *n_changed, struct cr_error *err);
/* Takes no more requests, lets the accepted ones finish for at most drain_ms, then ends. */
void cr_server_stop(cr_server *s, int drain_ms);

#endif
