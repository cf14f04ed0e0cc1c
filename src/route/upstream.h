/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client of one OpenAI-compatible server: /v1/chat/completions, whole or streamed.
 *
 * What it will not do: follow a redirect (the key stays with the host it is for), use a proxy or
 * credentials from the environment, speak anything but http and https, send plain http to another
 * machine (unless `insecure`), connect to link-local addresses, unpack a compressed reply, accept a
 * bad certificate. What it promises: an end within total_ms, a reply within max_reply_bytes, and an
 * error instead of half an answer.
 *
 * The body is made first (prepare), may be shown, and then exactly these bytes are sent (send).
 * One handle may be used by many threads at once.
 */
#ifndef CR_UPSTREAM_H
#define CR_UPSTREAM_H

#include "base/bytes.h"

typedef struct cr_upstream cr_upstream;

struct cr_upstream_options { /* 0: the default in brackets */
    const char *url;     /* "https://host[:port][/path]"; ".../v1/chat/completions" is completed */
    const char *model;   /* sent as "model" */
    const char *key;     /* bearer token; NULL: none */
    const char *ca_file; /* PEM: trust these certificates alone; NULL: those of the system */
    bool insecure;       /* allow http to hosts that are not this machine */
    int connect_ms;      /* [5000] */
    int stall_ms;        /* [30000] without a byte once the reply has begun */
    int total_ms;        /* [120000] for all tries together */
    int max_tries;       /* [3] on refused connections, 429 and 5xx */
    int backoff_ms;      /* [500] before the second try, doubled after each */
    int pause_ms;        /* [10000] after 3 failed calls in a row, doubled up to 5 minutes */
    size_t max_reply_bytes;     /* [4 MiB] headers included */
    double price_in, price_out; /* money per million tokens; 0: unknown */
};

/* Checks URL and key. CR_INVALID for what is wrong, CR_POLICY for plain http to another machine. */
enum cr_status cr_upstream_new(cr_upstream **out, const struct cr_upstream_options *opt,
                               struct cr_error *err);
void cr_upstream_free(cr_upstream *u);
const char *cr_upstream_url(const cr_upstream *u); /* the full address that is asked */
const char *cr_upstream_model(const cr_upstream *u);

/* The key: the one line of a file, or with path NULL the value of $CRAYON_API_KEY, which is wiped
 * from the environment then. *key is NULL when there is none; free it with cr_key_free. */
enum cr_status cr_key_read(const char *path, char **key, struct cr_error *err);
void cr_key_free(char *key); /* wipes it first */

struct cr_ask {
    const struct cr_message *messages;
    size_t n_messages;
    int max_tokens;         /* 0: not sent */
    float temperature;      /* below 0: not sent */
    double max_cost;        /* 0: no ceiling; else the prices must be known */
    bool stream;            /* on_text is told piece by piece */
    const char *request_id; /* for the ledger; NULL: "" */
    const char *reason;     /* for the ledger; NULL: "" */
    bool (*on_text)(void *ud, const char *text, size_t len); /* stream: false stops; may be NULL */
    bool (*cancelled)(void *ud);                             /* asked every 50 ms; may be NULL */
    void *ud;
};

/* What would leave: made from an ask, sent as it is. */
struct cr_outgoing {
    char *body; /* JSON, n_body bytes */
    size_t n_body;
    const char *url, *model; /* borrowed from the upstream */
    bool has_key, stream;
    double max_cost;
    double worst_cost;      /* what it can cost at most; -1: prices or max_tokens are not known */
    struct cr_relay *relay; /* of the router: the way back from masked text; owned by the first */
    void (*free_relay)(struct cr_relay *relay);
    size_t n_masked;          /* values that placeholders stand for */
    struct cr_outgoing *next; /* for the upstream after this one; owned */
    char *request_id, *reason;
    bool (*on_text)(void *ud, const char *text, size_t len);
    bool (*cancelled)(void *ud);
    void *ud;
};

struct cr_remote_answer {
    char *text; /* free with cr_remote_answer_deinit; NULL on failure */
    size_t n_text;
    char finish[24];               /* "stop", "length", ... or "" */
    int64_t tokens_in, tokens_out; /* -1: the server does not say */
    uint64_t bytes_out, bytes_in;  /* HTTP bytes of all tries, headers included; before TLS */
    int http_status, tries;
    size_t n_streamed; /* bytes given to on_text, also on failure */
    double cost;       /* -1: unknown; an upper bound where the server does not count tokens */
    double ms;
};

/* CR_INVALID for text that is not UTF-8 or a message without a role; CR_POLICY when max_cost cannot
 * pay for one token of the answer. Free with cr_outgoing_deinit. */
enum cr_status cr_upstream_prepare(const cr_upstream *u, const struct cr_ask *ask,
                                   struct cr_outgoing *out, struct cr_error *err);
void cr_outgoing_deinit(struct cr_outgoing *o);

/* Sends and waits. On failure answer still says what left and came. CR_NETWORK, CR_POLICY (an
 * address that is not allowed), CR_LIMIT (max_cost crossed), CR_CANCELLED. */
enum cr_status cr_upstream_send(cr_upstream *u, const struct cr_outgoing *o,
                                struct cr_remote_answer *answer, struct cr_error *err);
void cr_remote_answer_deinit(struct cr_remote_answer *a);

/* Milliseconds until calls are tried again after a run of failures; 0: now. */
int64_t cr_upstream_paused_ms(cr_upstream *u);

#endif
