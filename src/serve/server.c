/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP side: libmicrohttpd's thread, checks before a byte of the body is read, the body within
 * its limit, the routes, and replies that are handed out as the worker makes them.
 */
#include "serve/job.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/sha256.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 256, IDLE_SECONDS = 30, CONNECTION_BYTES = 64 * 1024 };

struct cr_server {
    struct cr_serve_options opt;
    struct cr_served_palette *models; /* [0] is the model itself */
    size_t n_models;
    struct MHD_Daemon *daemon;
    cr_worker *worker;
    int port;
    bool open_host; /* listens beyond loopback: any Host header is taken */
    char key_hash[65];
    atomic_bool draining;
    atomic_int open_requests;
};

/* What one connection is doing. */
struct talk {
    bool chat;
    struct cr_buf body;
    struct cr_job *job;
    bool full; /* the queue had no room */
};

/* ---- replies -------------------------------------------------------------------------------- */

static enum MHD_Result send_bytes(struct MHD_Connection *c, int http, const char *type,
                                  const char *data, size_t n)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(n, (void *)(uintptr_t)data, MHD_RESPMEM_MUST_COPY);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (http == 503)
        MHD_add_response_header(r, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    if (http == 401)
        MHD_add_response_header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (http == 405)
        MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, POST");
    enum MHD_Result done = MHD_queue_response(c, (unsigned)http, r);
    MHD_destroy_response(r);
    return done;
}

static enum MHD_Result send_json(struct MHD_Connection *c, int http, json_t *v)
{
    struct cr_buf b;
    cr_buf_init(&b, CR_JOB_MAX_OUT);
    bool ok = cr_api_dump(&b, "", v, "\n");
    json_decref(v);
    enum MHD_Result done = ok ? send_bytes(c, http, "application/json", b.data, b.len) : MHD_NO;
    cr_buf_deinit(&b);
    return done;
}

static enum MHD_Result send_error(struct MHD_Connection *c, int http, const char *param,
                                  const char *code, const char *msg)
{
    struct cr_api_error e;
    cr_api_error_set(&e, http, param, code, "%s", msg);
    return send_json(c, http, cr_api_error_json(&e));
}

/* ---- checks before the body ------------------------------------------------------------------ */

static bool is_loopback_name(const char *host, size_t n)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    for (size_t i = 0; i < 3; i++)
        if (strlen(names[i]) == n && strncasecmp(host, names[i], n) == 0)
            return true;
    return false;
}

/* The host of "host[:port]" or of an origin "scheme://host[:port]". */
static bool names_loopback(const char *value)
{
    const char *host = strstr(value, "://");
    host = host ? host + 3 : value;
    const char *colon = host[0] == '[' ? strstr(host, "]:") : strchr(host, ':');
    size_t n = !colon ? strlen(host) : (size_t)(colon - host) + (host[0] == '[');
    return is_loopback_name(host, n);
}

struct header_count {
    const char *name;
    int n;
};

static enum MHD_Result count_header(void *ud, enum MHD_ValueKind kind, const char *key,
                                    const char *value)
{
    (void)kind, (void)value;
    struct header_count *h = ud;
    h->n += strcasecmp(key, h->name) == 0;
    return MHD_YES;
}

static int header_times(struct MHD_Connection *c, const char *name)
{
    struct header_count h = {name, 0};
    MHD_get_connection_values(c, MHD_HEADER_KIND, count_header, &h);
    return h.n;
}

static const char *header(struct MHD_Connection *c, const char *name)
{
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

static void hash_text(const char *text, char hex[65])
{
    struct cr_sha256 h;
    cr_sha256_init(&h);
    cr_sha256_add(&h, text, strlen(text));
    cr_sha256_hex(&h, hex);
}

/* Compares digests in constant time, so that neither length nor prefix of the key leaks. */
static bool key_is_right(const cr_server *s, const char *authorization)
{
    char hex[65];
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0)
        return false;
    hash_text(authorization + 7, hex);
    unsigned differ = 0;
    for (int i = 0; i < 64; i++)
        differ |= (unsigned)(hex[i] ^ s->key_hash[i]);
    return differ == 0;
}

/* 0: go on; else the status of *msg. A web page must not reach a service on loopback through DNS
 * rebinding or a form: the Host has to name loopback, the Origin too, the body has to be JSON. */
static int refuse(const cr_server *s, struct MHD_Connection *c, bool post, const char **msg)
{
    const char *host = header(c, "Host"), *origin = header(c, "Origin");
    if (!host || header_times(c, "Host") != 1) {
        *msg = "want exactly one Host header";
        return 400;
    }
    if (!s->open_host && !names_loopback(host)) {
        *msg = "this server answers to loopback names only";
        return 403;
    }
    if (origin && !names_loopback(origin)) {
        *msg = "requests from web pages of other origins are not taken";
        return 403;
    }
    if (s->opt.key && !key_is_right(s, header(c, "Authorization"))) {
        *msg = "want the right key as \"Authorization: Bearer KEY\"";
        return 401;
    }
    if (!post)
        return 0;
    const char *type = header(c, "Content-Type");
    if (!type || strncasecmp(type, "application/json", 16) != 0) {
        *msg = "want Content-Type: application/json";
        return 415;
    }
    const char *length = header(c, "Content-Length");
    if (header_times(c, "Content-Length") > 1 || (length && header(c, "Transfer-Encoding"))) {
        *msg = "want one Content-Length or chunks, not both";
        return 400;
    }
    if (length && (strspn(length, "0123456789") != strlen(length) || !*length)) {
        *msg = "Content-Length is no number";
        return 400;
    }
    if (length && (strlen(length) > 15 || strtoull(length, NULL, 10) > s->opt.max_body)) {
        *msg = "the body is larger than this server takes";
        return 413;
    }
    return 0;
}

/* ---- models ---------------------------------------------------------------------------------- */

static bool model_id(const cr_server *s, size_t i, char *id, size_t size)
{
    const char *name = s->models[i].name;
    int n = snprintf(id, size, "%s%s%s", s->opt.model_name, name[0] ? ":" : "", name);
    return n > 0 && (size_t)n < size;
}

static const struct cr_served_palette *find_model(const cr_server *s, const char *wanted)
{
    char id[512];
    for (size_t i = 0; i < s->n_models; i++)
        if (model_id(s, i, id, sizeof id) && strcmp(id, wanted) == 0)
            return &s->models[i];
    return NULL;
}

static json_t *model_json(const char *id)
{
    bool ok = true;
    json_t *m = json_object();
    cr_api_put(m, "id", cr_api_text(id, strlen(id)), &ok);
    cr_api_put(m, "object", json_string("model"), &ok);
    cr_api_put(m, "created", json_integer(0), &ok);
    cr_api_put(m, "owned_by", json_string("crayon"), &ok);
    return m;
}

static enum MHD_Result send_models(const cr_server *s, struct MHD_Connection *c, const char *one)
{
    char id[512];
    if (one)
        return find_model(s, one)
                   ? send_json(c, 200, model_json(one))
                   : send_error(c, 404, "model", "model_not_found", "there is no such model");
    bool ok = true;
    json_t *o = json_object(), *list = json_array();
    for (size_t i = 0; i < s->n_models; i++)
        if (model_id(s, i, id, sizeof id))
            json_array_append_new(list, model_json(id));
    cr_api_put(o, "object", json_string("list"), &ok);
    cr_api_put(o, "data", list, &ok);
    return send_json(c, 200, o);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static ssize_t read_stream(void *ud, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    struct talk *t = ud;
    struct cr_job *j = t->job;
    pthread_mutex_lock(&j->lock);
    size_t n = j->out.len - j->n_sent;
    ssize_t result;
    if (n > 0) {
        n = n < max ? n : max;
        memcpy(buf, j->out.data + j->n_sent, n);
        j->n_sent += n;
        result = (ssize_t)n;
    } else if (j->finished) {
        result = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        /* The worker's next news resumes the connection. */
        j->suspended = j->waiting;
        MHD_suspend_connection(j->waiting);
        result = 0;
    }
    pthread_mutex_unlock(&j->lock);
    return result;
}

static enum MHD_Result send_stream(struct MHD_Connection *c, struct talk *t)
{
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, t, NULL);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream");
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(r, "X-Crayon-Route", "device");
    enum MHD_Result done = MHD_queue_response(c, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    return done;
}

/* Called when the worker has news before the reply has begun. */
static enum MHD_Result begin_reply(struct MHD_Connection *c, struct talk *t)
{
    struct cr_job *j = t->job;
    pthread_mutex_lock(&j->lock);
    int http = j->http;
    bool finished = j->finished;
    pthread_mutex_unlock(&j->lock);
    if (http == 200 && j->req.stream)
        return send_stream(c, t);
    if (finished && j->out.len)
        return send_bytes(c, http, "application/json", j->out.data, j->out.len);
    return send_error(c, 503, NULL, NULL, "the server is stopping");
}

static void make_id(struct cr_job *j)
{
    uint64_t r[2] = {0};
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r)
        r[0] = (uint64_t)(uintptr_t)j;
    j->created = (int64_t)time(NULL);
    snprintf(j->id, sizeof j->id, "%s-%016llx", j->req.chat ? "chatcmpl" : "cmpl",
             (unsigned long long)r[0]);
}

static enum MHD_Result submit(cr_server *s, struct MHD_Connection *c, struct talk *t)
{
    struct cr_api_request req;
    struct cr_api_error e;
    if (!cr_api_parse(&req, t->chat, t->body.data, t->body.len, &e)) {
        cr_api_request_deinit(&req);
        return send_json(c, e.http, cr_api_error_json(&e));
    }
    const struct cr_served_palette *target = find_model(s, req.model);
    struct cr_job *j = target ? cr_job_new() : NULL;
    if (!j) {
        cr_api_request_deinit(&req);
        return target ? send_error(c, 503, NULL, NULL, "out of memory")
                      : send_error(c, 404, "model", "model_not_found",
                                   "there is no such model, see /v1/models");
    }
    const char *authorization = header(c, "Authorization");
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    j->req = req;
    j->target = target;
    j->fd = info ? info->connect_fd : -1;
    j->resume = MHD_resume_connection;
    j->waiting = c;
    make_id(j);
    hash_text(authorization ? authorization : "", j->caller);
    cr_buf_deinit(&t->body);
    t->job = j;
    /* Suspended before the worker can see the job, so that its news always finds it so. */
    j->suspended = c;
    MHD_suspend_connection(c);
    if (cr_worker_push(s->worker, j))
        return MHD_YES;
    cr_job_unref(j); /* the worker's reference */
    cr_job_unref(j);
    t->job = NULL;
    t->full = true;
    MHD_resume_connection(c);
    return MHD_YES;
}

/* ---- routes ---------------------------------------------------------------------------------- */

static enum MHD_Result route_get(cr_server *s, struct MHD_Connection *c, const char *path)
{
    if (strcmp(path, "/health") == 0)
        return atomic_load(&s->draining)
                   ? send_bytes(c, 503, "application/json", "{\"status\":\"stopping\"}\n", 22)
                   : send_bytes(c, 200, "application/json", "{\"status\":\"ok\"}\n", 16);
    if (strcmp(path, "/v1/models") == 0)
        return send_models(s, c, NULL);
    if (strncmp(path, "/v1/models/", 11) == 0)
        return send_models(s, c, path + 11);
    bool post = strcmp(path, "/v1/chat/completions") == 0 || strcmp(path, "/v1/completions") == 0;
    return send_error(c, post ? 405 : 404, NULL, NULL,
                      post ? "want POST here" : "there is nothing at this path");
}

static enum MHD_Result first_call(cr_server *s, struct MHD_Connection *c, const char *path,
                                  const char *method, void **con_cls)
{
    const char *msg = NULL;
    bool post = strcmp(method, "POST") == 0, chat = strcmp(path, "/v1/chat/completions") == 0;
    /* /health says nothing worth protecting and is asked by monitors without a key. */
    bool health = !post && strcmp(path, "/health") == 0;
    int http = health ? 0 : refuse(s, c, post, &msg);
    if (http)
        return send_error(c, http, NULL, http == 401 ? "invalid_api_key" : NULL, msg);
    if (strcmp(method, "GET") == 0)
        return route_get(s, c, path);
    if (!post)
        return send_error(c, 405, NULL, NULL, "want GET or POST");
    if (!chat && strcmp(path, "/v1/completions") != 0)
        return send_error(c, 404, NULL, NULL, "there is nothing at this path");
    if (atomic_load(&s->draining))
        return send_error(c, 503, NULL, NULL, "the server is stopping");
    struct talk *t = cr_alloc0(1, sizeof *t);
    if (!t)
        return send_error(c, 503, NULL, NULL, "out of memory");
    t->chat = chat;
    cr_buf_init(&t->body, s->opt.max_body);
    *con_cls = t;
    atomic_fetch_add(&s->open_requests, 1);
    return MHD_YES;
}

static enum MHD_Result on_call(void *ud, struct MHD_Connection *c, const char *path,
                               const char *method, const char *version, const char *data,
                               size_t *n_data, void **con_cls)
{
    (void)version;
    cr_server *s = ud;
    struct talk *t = *con_cls;
    if (!t)
        return first_call(s, c, path, method, con_cls);
    if (*n_data) {
        if (!cr_buf_add(&t->body, data, *n_data))
            return MHD_NO; /* chunks past the limit: the connection ends */
        *n_data = 0;
        return MHD_YES;
    }
    if (t->full)
        return send_error(c, 503, NULL, NULL, "the queue is full, try again");
    return t->job ? begin_reply(c, t) : submit(s, c, t);
}

static void on_completed(void *ud, struct MHD_Connection *c, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    (void)c, (void)why;
    cr_server *s = ud;
    struct talk *t = *con_cls;
    if (!t)
        return;
    if (t->job) {
        atomic_store(&t->job->cancelled, true);
        pthread_mutex_lock(&t->job->lock);
        t->job->suspended = NULL;
        pthread_mutex_unlock(&t->job->lock);
        cr_job_unref(t->job);
    }
    cr_buf_deinit(&t->body);
    cr_free(t);
    *con_cls = NULL;
    atomic_fetch_sub(&s->open_requests, 1);
}

static void on_mhd_log(void *ud, const char *fmt, va_list ap) CR_PRINTF(2, 0);
static void on_mhd_log(void *ud, const char *fmt, va_list ap)
{
    (void)ud;
    char msg[256];
    vsnprintf(msg, sizeof msg, fmt, ap);
    cr_log(CR_LOG_DEBUG, "http: %s", msg);
}

/* ---- start and stop -------------------------------------------------------------------------- */

/* A listening socket on a numeric address; *loopback tells whether only this machine reaches it. */
static enum cr_status listen_on(const char *host, int port, int *fd, int *bound, bool *loopback,
                                struct cr_error *err)
{
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    bool v4 = strcmp(host, "localhost") == 0 || inet_pton(AF_INET, host, &a4.sin_addr) == 1;
    if (strcmp(host, "localhost") == 0)
        a4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!v4 && inet_pton(AF_INET6, host, &a6.sin6_addr) != 1)
        return cr_error_set(err, CR_INVALID, "host: want an address or localhost, got \"%s\"",
                            host);
    *loopback = v4 ? (ntohl(a4.sin_addr.s_addr) >> 24) == 127 : IN6_IS_ADDR_LOOPBACK(&a6.sin6_addr);
    const struct sockaddr *addr = v4 ? (struct sockaddr *)&a4 : (struct sockaddr *)&a6;
    socklen_t len = v4 ? sizeof a4 : sizeof a6;
    int one = 1;
    *fd = socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0)
        return cr_error_errno(err, "cannot make a socket", host);
    setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_storage got;
    socklen_t got_len = sizeof got;
    if (bind(*fd, addr, len) != 0 || listen(*fd, 128) != 0 ||
        getsockname(*fd, (struct sockaddr *)&got, &got_len) != 0) {
        char what[64];
        snprintf(what, sizeof what, "cannot listen on port %d", port);
        enum cr_status status = cr_error_errno(err, what, host);
        close(*fd);
        *fd = -1;
        return status;
    }
    *bound = ntohs(got.ss_family == AF_INET ? ((struct sockaddr_in *)&got)->sin_port
                                            : ((struct sockaddr_in6 *)&got)->sin6_port);
    return CR_OK;
}

static enum cr_status fill_options(cr_server *s, const struct cr_serve_options *opt,
                                   struct cr_error *err)
{
    s->opt = *opt;
    if (!s->opt.max_queue)
        s->opt.max_queue = 16;
    if (!s->opt.max_body)
        s->opt.max_body = (size_t)4 << 20;
    s->n_models = opt->n_palettes + 1;
    if (!(s->models = cr_alloc(s->n_models, sizeof *s->models)))
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    s->models[0] = (struct cr_served_palette){"", opt->delta};
    for (size_t i = 0; i < opt->n_palettes; i++)
        s->models[i + 1] = opt->palettes[i];
    if (opt->key)
        hash_text(opt->key, s->key_hash);
    return CR_OK;
}

enum cr_status cr_server_start(cr_server **out, const struct cr_serve_options *opt,
                               struct cr_error *err)
{
    *out = NULL;
    int fd = -1;
    bool loopback = true;
    cr_server *s = cr_alloc0(1, sizeof *s);
    if (!s)
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    enum cr_status status = fill_options(s, opt, err);
    const char *host = opt->host ? opt->host : "127.0.0.1";
    if (status == CR_OK)
        status = listen_on(host, opt->port, &fd, &s->port, &loopback, err);
    if (status == CR_OK && !loopback && !opt->key)
        status = cr_error_set(err, CR_POLICY,
                              "host %s can be reached from other machines: set a key first", host);
    s->open_host = !loopback;
    if (status == CR_OK)
        status = cr_worker_new(&s->worker, &s->opt, err);
    if (status == CR_OK) {
        s->daemon = MHD_start_daemon(
            MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL,
            NULL, on_call, s, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
            MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,
            MHD_OPTION_CONNECTION_LIMIT, (unsigned)MAX_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
            (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
            MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
        if (!s->daemon)
            status = cr_error_set(err, CR_LIMIT, "server: cannot start on port %d", s->port);
        else
            fd = -1; /* the daemon closes it */
    }
    if (fd >= 0)
        close(fd);
    if (status != CR_OK) {
        cr_worker_free(s->worker);
        cr_free(s->models);
        cr_free(s);
        return status;
    }
    *out = s;
    return CR_OK;
}

int cr_server_port(const cr_server *s)
{
    return s->port;
}

void cr_server_stop(cr_server *s, int drain_ms)
{
    if (!s)
        return;
    atomic_store(&s->draining, true);
    struct timespec nap = {.tv_nsec = 5000000};
    cr_worker_wait_idle(s->worker, drain_ms);
    for (int waited = 0; atomic_load(&s->open_requests) && waited < 1000 && waited < drain_ms;
         waited += 5)
        nanosleep(&nap, NULL); /* the last bytes are on their way */
    cr_worker_free(s->worker);
    MHD_stop_daemon(s->daemon);
    cr_free(s->models);
    cr_free(s);
}
