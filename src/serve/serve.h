/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An OpenAI-compatible HTTP server over one model and its palettes.
 *
 * Two kinds of threads. libmicrohttpd's one thread owns the sockets: it reads a request, has it
 * checked (api.c), puts a job into a bounded queue and suspends the connection. One worker owns the
 * only session, and so all KV state: it takes jobs in order, appends bytes to the job and wakes the
 * connection. Neither waits for the other; a full queue is answered with 503 at once.
 *
 * Serves only loopback addresses unless a key is set. Every fault is an error object with the right
 * status; nothing that a client sends ends the process.
 */
#ifndef CR_SERVE_H
#define CR_SERVE_H

#include "base/error.h"

typedef struct cr_server cr_server;

struct cr_served_palette {
    const char *name;      /* clients ask for "MODEL:NAME" */
    const cr_delta *delta; /* NULL: the palette keeps the base model */
};

struct cr_serve_options {
    cr_model *model;        /* borrowed */
    const char *model_name; /* what clients call it */
    const struct cr_served_palette *palettes;
    size_t n_palettes;
    const cr_delta *delta; /* of "MODEL" itself (--adapter, --palette); NULL: none */
    const char *host;      /* numeric address or "localhost"; NULL: 127.0.0.1 */
    int port;              /* 0: any free one */
    const char *key;       /* wanted as "Authorization: Bearer KEY"; NULL: none */
    int n_ctx;             /* 0: the model's own */
    int max_queue;         /* waiting requests; 0: 16 */
    size_t max_body;       /* bytes of a request; 0: 4 MiB */
    /* Told of each finished request, on the worker's thread; may be NULL. No prompts. */
    void (*on_request)(void *ud, const char *line);
    void *ud;
};

/* Starts serving. CR_POLICY for an address beyond loopback without a key. Stop with
 * cr_server_stop, before the model closes. */
enum cr_status cr_server_start(cr_server **out, const struct cr_serve_options *opt,
                               struct cr_error *err);
int cr_server_port(const cr_server *s);
/* Takes no more requests, lets the accepted ones finish for at most drain_ms, then ends. */
void cr_server_stop(cr_server *s, int drain_ms);

#endif
