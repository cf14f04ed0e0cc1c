/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTP side's own parts: the server, one connection's state, replies, the table of routes. */
#ifndef CR_HTTP_H
#define CR_HTTP_H

#include "serve/http_calls.h"
#include "serve/job.h"

/* connections.c */
struct cr_connections {
    struct cr_connection *first, *last; /* those that wait, the longest first */
    unsigned n, most;
};
void cr_connection_opened(struct cr_connections *all, struct MHD_Connection *c, void **context);
void cr_connection_closed(struct cr_connections *all, void **context);
/* busy: a whole request is there and is answered. */
void cr_connection_busy(struct cr_connections *all, struct MHD_Connection *c, bool busy);

struct cr_server {
    struct cr_serve_options opt;
    cr_shelf *shelf;
    struct MHD_Daemon *daemon;
    cr_worker *worker;
    struct cr_metrics metrics;
    int port;
    bool open_host; /* listens beyond loopback: any Host header is taken */
    char key_hash[65], admin_hash[65];
    atomic_bool draining;
    atomic_int open_requests;
    struct cr_connections connections;
};

struct cr_route;

/* What one request is doing. */
struct cr_talk {
    const struct cr_route *route;
    char *rest; /* of the path, behind a route that ends with "*" */
    struct cr_buf body;
    struct cr_job *job;
    char caller[65];
    bool full;      /* the queue had no room */
    bool too_large; /* the body passed its limit in chunks */
    int http;       /* what was answered, for the metrics */
};

/* CR_PAGE: to anybody who may know of the server, without a key; it holds nothing secret. */
enum cr_route_access { CR_OPEN, CR_PAGE, CR_USER, CR_ADMIN };

struct cr_route {
    const char *method, *path; /* a path that ends with "*" matches what begins so */
    enum cr_route_access access;
    enum cr_api_kind kind; /* dialect of errors; of the job where handle is NULL */
    size_t metric;
    /* GET and small POSTs: answers on the HTTP thread. NULL: becomes a job. */
    enum MHD_Result (*handle)(cr_server *s, struct MHD_Connection *c, struct cr_talk *t);
    /* A job that is not made of choices. */
    void (*special)(cr_worker *w, struct cr_job *j);
};

int cr_server_ctx(const cr_server *s); /* tokens of one request */
/* Logs it where the rule cannot judge questions to t: they never leave. */
void cr_server_say_what_stays(const cr_server *s, const struct cr_target *t);
/* routes.c. *known: the path exists, with another method. */
const struct cr_route *cr_route_find(const char *method, const char *path, bool *known);

/* console.c: the page's files, and GET /v1/crayon/ledger. */
enum MHD_Result cr_console_get(cr_server *s, struct MHD_Connection *c, struct cr_talk *t);
enum MHD_Result cr_console_ledger(cr_server *s, struct MHD_Connection *c, struct cr_talk *t);

enum MHD_Result cr_send_bytes(struct MHD_Connection *c, struct cr_talk *t, int http,
                              const char *type, const char *data, size_t n);
/* v is taken. */
enum MHD_Result cr_send_json(struct MHD_Connection *c, struct cr_talk *t, int http, json_t *v);
enum MHD_Result cr_send_api_error(struct MHD_Connection *c, struct cr_talk *t,
                                  const struct cr_api_error *e);
enum MHD_Result cr_send_error(struct MHD_Connection *c, struct cr_talk *t, int http,
                              const char *param, const char *code, const char *msg);
const char *cr_header(struct MHD_Connection *c, const char *name);
/* access.c: 0: go on; else the status of *msg. */
int cr_access_refuse(const cr_server *s, struct MHD_Connection *c, const struct cr_route *r,
                     bool post, const char **msg);
void cr_hash_text(const char *text, char hex[65]);
/* The key of a request, "" when there is none. */
const char *cr_access_key(struct MHD_Connection *c);

#endif
