/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an OpenAI-compatible server answers, from bytes that nobody vouches for: one JSON body, or a
 * stream of server-sent events that arrives in pieces of any size. No sockets here. Any fault ends
 * in CR_NETWORK and a message; nothing grows past its ceiling.
 */
#ifndef CR_REPLY_H
#define CR_REPLY_H

#include "base/bytes.h"

enum { CR_REPLY_MAX_LINE = 1 << 20 }; /* bytes of one line of an event stream */

struct cr_reply {
    struct cr_buf text;            /* the answer so far; whole UTF-8 */
    char finish[24];               /* "stop", "length", ...; "" while unknown */
    int64_t tokens_in, tokens_out; /* as the server counts them; -1: it does not say */
    int64_t n_pieces;              /* stream: pieces of text, about one token each */
    bool done;                     /* stream: [DONE] or a finish reason came */
    /* stream only: told of each new piece; false stops. May be NULL. */
    bool (*on_text)(void *ud, const char *text, size_t len);
    void *ud;
    struct cr_buf line; /* stream: the line that is not complete yet */
    bool after_cr;
};

/* The text may grow to max_text bytes. Free with cr_reply_deinit. */
void cr_reply_init(struct cr_reply *r, size_t max_text);
void cr_reply_deinit(struct cr_reply *r);

/* A whole chat.completion body with a text that is not empty. An error object is an error whatever
 * the HTTP status was. */
enum cr_status cr_reply_json(struct cr_reply *r, const char *body, size_t len,
                             struct cr_error *err);
/* The next bytes of an event stream of chat.completion.chunk objects. */
enum cr_status cr_reply_feed(struct cr_reply *r, const char *data, size_t n, struct cr_error *err);
/* Called at the end of the stream: an answer must have come to its end. */
enum cr_status cr_reply_end(struct cr_reply *r, struct cr_error *err);

/* The message of an error body ({"error": {"message"}}, {"error": str}, {"detail": str}), at most
 * size - 1 bytes of printable text; "" when there is none. */
void cr_reply_error_text(const char *body, size_t len, char *out, size_t size);

#endif
