/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP side: libmicrohttpd's thread, the body within its limit, jobs, and replies that are
 * handed out as the worker makes them.
 */
#include "serve/http.h"

#include "base/log.h"
#include "base/mem.h"
#include "route/route.h"
#include "serve/reply.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 12000, /* less where the system gives fewer descriptors */
    IDLE_SECONDS = 30,
    CONNECTION_BYTES = 32 * 1024
};

/* ---- replies -------------------------------------------------------------------------------- */

enum MHD_Result cr_send_bytes(struct MHD_Connection *c, struct cr_talk *t, int http,
                              const char *type, const char *data, size_t n)
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
    if (t && t->job) {
        MHD_add_response_header(r, "X-Request-Id", t->job->id);
        MHD_add_response_header(r, "X-Crayon-Route", t->job->routed.server ? "server" : "device");
        if (t->job->target && t->job->target->name[0])
            MHD_add_response_header(r, "X-Crayon-Blend", t->job->target->name);
    }
    enum MHD_Result done = MHD_queue_response(c, (unsigned)http, r);
    MHD_destroy_response(r);
    if (t)
        t->http = http;
    return done;
}

enum MHD_Result cr_send_json(struct MHD_Connection *c, struct cr_talk *t, int http, json_t *v)
{
    struct cr_buf b;
    cr_buf_init(&b, CR_JOB_MAX_OUT);
    bool ok = cr_api_dump(&b, "", v, "\n");
    json_decref(v);
    enum MHD_Result done =
        ok ? cr_send_bytes(c, t, http, "application/json", b.data, b.len) : MHD_NO;
    cr_buf_deinit(&b);
    return done;
}

enum MHD_Result cr_send_api_error(struct MHD_Connection *c, struct cr_talk *t,
                                  const struct cr_api_error *e)
{
    enum cr_api_kind kind = t && t->route ? t->route->kind : CR_API_CHAT;
    return cr_send_json(c, t, e->http, cr_api_error_json(kind, e));
}

enum MHD_Result cr_send_error(struct MHD_Connection *c, struct cr_talk *t, int http,
                              const char *param, const char *code, const char *msg)
{
    struct cr_api_error e;
    cr_api_error_set(&e, http, param, code, "%s", msg);
    return cr_send_api_error(c, t, &e);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static ssize_t read_stream(void *ud, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    struct cr_talk *t = ud;
    struct cr_job *j = t->job;
    pthread_mutex_lock(&j->lock);
    size_t n = j->out.len - j->n_sent;
    ssize_t result;
    if (n > 0) {
        n = n < max ? n : max;
        memcpy(buf, j->out.data + j->n_sent, n);
        j->n_sent += n;
        if (j->n_sent == j->out.len) /* so that a long stream takes no more than a short one */
            j->n_sent = j->out.len = 0;
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

static enum MHD_Result send_stream(struct MHD_Connection *c, struct cr_talk *t)
{
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, t, NULL);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE,
                            cr_writer_of(t->job->req.kind)->stream_type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(r, "X-Crayon-Route", t->job->routed.server ? "server" : "device");
    MHD_add_response_header(r, "X-Request-Id", t->job->id);
    if (t->job->target->name[0])
        MHD_add_response_header(r, "X-Crayon-Blend", t->job->target->name);
    enum MHD_Result done = MHD_queue_response(c, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    return done;
}

/* Called when the worker has news before the reply has begun. */
static enum MHD_Result begin_reply(struct MHD_Connection *c, struct cr_talk *t)
{
    struct cr_job *j = t->job;
    pthread_mutex_lock(&j->lock);
    int http = j->http;
    bool finished = j->finished;
    pthread_mutex_unlock(&j->lock);
    if (http == 200 && j->req.stream)
        return send_stream(c, t);
    if (finished && j->out.len)
        return cr_send_bytes(c, t, http, "application/json", j->out.data, j->out.len);
    return cr_send_error(c, t, 503, NULL, NULL, "the server is stopping");
}

static void make_id(struct cr_job *j)
{
    static const char *const prefixes[CR_API_KINDS] = {[CR_API_COMPLETIONS] = "cmpl-",
                                                       [CR_API_CHAT] = "chatcmpl-",
                                                       [CR_API_RESPONSES] = "resp_",
                                                       [CR_API_MESSAGES] = "msg_",
                                                       [CR_API_EMBEDDINGS] = "embd-"};
    uint64_t r[2] = {0};
    const char *prefix = prefixes[j->req.kind];
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r)
        r[0] = (uint64_t)(uintptr_t)j;
    j->created = (int64_t)time(NULL);
    snprintf(j->id, sizeof j->id, "%s%016llx", prefix ? prefix : "req-", (unsigned long long)r[0]);
}

/* The same seed gives the same text as long as this is the same. */
static void make_fingerprint(struct cr_job *j)
{
    char text[512], hex[65];
    cr_model *m = j->target->model;
    snprintf(text, sizeof text, "%s %s %s %s%s", CR_VERSION, cr_model_hash(m), j->target->sha256,
             j->target->name, m->kv == CR_KV_Q8_0 ? " kv q8_0" : "");
    cr_hash_text(text, hex);
    snprintf(j->fingerprint, sizeof j->fingerprint, "fp_%.12s", hex);
}

/* The target of a request: by the model's name, and by `lora` and `crayon.adapters`. */
static struct cr_target *find_target(cr_server *s, const struct cr_api_request *q,
                                     struct cr_api_error *e)
{
    struct cr_target *t = cr_shelf_find(s->shelf, q->model);
    if (!t) {
        cr_api_error_set(e, 404, "model", "model_not_found",
                         "there is no model \"%.200s\" here, see /v1/models", q->model);
        return NULL;
    }
    if (q->adapter) {
        char *id = cr_asprintf("%s:%s", cr_shelf_model_name(s->shelf), q->adapter);
        cr_target_unref(t);
        t = id ? cr_shelf_find(s->shelf, id) : NULL;
        cr_free(id);
        if (!t)
            cr_api_error_set(e, 404, "crayon.adapters", "model_not_found",
                             "there is no palette \"%.200s\" here, see /v1/models", q->adapter);
    }
    if (t && q->has_lora) {
        struct cr_error err;
        int ids[CR_API_MAX_LORA];
        float scales[CR_API_MAX_LORA];
        for (size_t i = 0; i < q->n_lora; i++) {
            ids[i] = q->lora[i].id;
            scales[i] = q->lora[i].scale;
        }
        cr_target_unref(t);
        t = NULL;
        if (cr_shelf_with_scales(s->shelf, ids, scales, q->n_lora, &t, &err) != CR_OK) {
            cr_api_error_from(e, &err);
            snprintf(e->param, sizeof e->param, "lora");
        }
    }
    return t;
}

static bool fill_job(cr_server *s, struct cr_talk *t, struct cr_job *j, struct cr_api_error *e)
{
    if (t->route->special && t->route->kind == CR_API_KINDS) {
        j->req.kind = CR_API_CHAT;
        if (!(j->body = cr_api_load(t->body.data, t->body.len, e)))
            return false;
        j->target = cr_shelf_find(s->shelf, cr_shelf_model_name(s->shelf));
    } else {
        if (!cr_api_parse(&j->req, t->route->kind, t->body.data, t->body.len, e))
            return false;
        j->target = find_target(s, &j->req, e);
    }
    return j->target != NULL;
}

static enum MHD_Result submit(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    struct cr_api_error e = {0};
    struct cr_job *j = cr_job_new();
    if (!j)
        return cr_send_error(c, t, 503, NULL, NULL, "out of memory");
    if (!fill_job(s, t, j, &e)) {
        cr_job_unref(j);
        cr_job_unref(j);
        return cr_send_api_error(c, t, &e);
    }
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    j->special = t->route->special;
    j->metric = t->route->metric;
    j->shelf = s->shelf;
    make_fingerprint(j);
    j->fd = info ? info->connect_fd : -1;
    j->resume = MHD_resume_connection;
    j->waiting = c;
    make_id(j);
    memcpy(j->caller, t->caller, sizeof j->caller);
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

/* ---- requests -------------------------------------------------------------------------------- */

static enum MHD_Result first_call(cr_server *s, struct MHD_Connection *c, const char *path,
                                  const char *method, void **con_cls)
{
    const char *msg = NULL;
    bool post = strcmp(method, "POST") == 0, known = false;
    const struct cr_route *r = cr_route_find(method, path, &known);
    struct cr_talk *t = cr_alloc0(1, sizeof *t);
    if (!t)
        return cr_send_error(c, NULL, 503, NULL, NULL, "out of memory");
    cr_buf_init(&t->body, s->opt.max_body);
    *con_cls = t;
    atomic_fetch_add(&s->open_requests, 1);
    t->route = r;
    int http = r && r->access == CR_OPEN ? 0 : cr_access_refuse(s, c, r, post, &msg);
    if (http)
        return cr_send_error(c, t, http, NULL, http == 401 ? "invalid_api_key" : NULL, msg);
    if (!r)
        return cr_send_error(c, t, known ? 405 : 404, NULL, NULL,
                             known ? "this path takes another method"
                                   : "there is nothing at this path");
    cr_hash_text(cr_access_key(c), t->caller);
    size_t n = strlen(r->path);
    if (r->path[n - 1] == '*' && !(t->rest = cr_strdup(path + n - 1)))
        return cr_send_error(c, t, 503, NULL, NULL, "out of memory");
    if (!post)
        return r->handle(s, c, t);
    if (atomic_load(&s->draining))
        return cr_send_error(c, t, 503, NULL, NULL, "the server is stopping");
    return MHD_YES;
}

static enum MHD_Result on_call(void *ud, struct MHD_Connection *c, const char *path,
                               const char *method, const char *version, const char *data,
                               size_t *n_data, void **con_cls)
{
    (void)version;
    cr_server *s = ud;
    struct cr_talk *t = *con_cls;
    if (!t)
        return first_call(s, c, path, method, con_cls);
    if (*n_data) {
        if (!t->too_large && !cr_buf_add(&t->body, data, *n_data))
            t->too_large = true; /* chunks past the limit are read and forgotten */
        *n_data = 0;
        return MHD_YES;
    }
    cr_connection_busy(&s->connections, c, true);
    if (t->too_large)
        return cr_send_error(c, t, 413, NULL, NULL, "the body is larger than this server takes");
    if (t->full)
        return cr_send_error(c, t, 503, NULL, NULL, "the queue is full, try again");
    if (t->job)
        return begin_reply(c, t);
    return t->route->handle ? t->route->handle(s, c, t) : submit(s, c, t);
}

static void on_completed(void *ud, struct MHD_Connection *c, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    (void)why;
    cr_server *s = ud;
    struct cr_talk *t = *con_cls;
    cr_connection_busy(&s->connections, c, false);
    if (!t)
        return;
    if (t->job) {
        atomic_store(&t->job->cancelled, true);
        pthread_mutex_lock(&t->job->lock);
        t->job->suspended = NULL;
        t->job->fd = -1; /* it is closed after this, and its number may be another's */
        pthread_mutex_unlock(&t->job->lock);
        cr_job_unref(t->job);
    } else if (t->http) {
        cr_metric_request(&s->metrics, t->route ? t->route->metric : CR_METRIC_ENDPOINTS, t->http,
                          false);
    }
    cr_buf_deinit(&t->body);
    cr_free(t->rest);
    cr_free(t);
    *con_cls = NULL;
    atomic_fetch_sub(&s->open_requests, 1);
}

static void on_connection(void *ud, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    cr_server *s = ud;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED)
        cr_connection_closed(&s->connections, context);
    else
        cr_connection_opened(&s->connections, c, context);
}

/* Percent signs in a path: %00 and %2F stay as they are, so that they match nothing. */
static size_t unescape(void *ud, struct MHD_Connection *c, char *s)
{
    (void)ud, (void)c;
    char *out = s;
    for (const char *in = s; *in;) {
        unsigned v = 0;
        int k = 0;
        while (*in == '%' && k < 2) {
            const char *digits = "0123456789abcdef", *d;
            char x = in[1 + k];
            d = x ? strchr(digits, x >= 'A' && x <= 'F' ? x + 32 : x) : NULL;
            if (!d)
                break;
            v = v * 16 + (unsigned)(d - digits);
            k++;
        }
        if (k == 2 && v != 0 && v != '/') {
            *out++ = (char)v;
            in += 3;
        } else {
            *out++ = *in++;
        }
    }
    *out = '\0';
    return (size_t)(out - s);
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
    if (bind(*fd, addr, len) != 0 || listen(*fd, SOMAXCONN) != 0 ||
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

/* The same for a socket that somebody else made listen. */
static enum cr_status take_listener(int given, int *fd, int *bound, bool *loopback,
                                    struct cr_error *err)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    const struct sockaddr_in *a4 = (const struct sockaddr_in *)&a;
    const struct sockaddr_in6 *a6 = (const struct sockaddr_in6 *)&a;
    if (getsockname(given, (struct sockaddr *)&a, &len) != 0 ||
        (a.ss_family != AF_INET && a.ss_family != AF_INET6))
        return cr_error_set(err, CR_INVALID, "the socket that was given listens for no TCP");
    *loopback = a.ss_family == AF_INET ? (ntohl(a4->sin_addr.s_addr) >> 24) == 127
                                       : IN6_IS_ADDR_LOOPBACK(&a6->sin6_addr);
    *bound = ntohs(a.ss_family == AF_INET ? a4->sin_port : a6->sin6_port);
    fcntl(given, F_SETFL, fcntl(given, F_GETFL) | O_NONBLOCK);
    *fd = given;
    return CR_OK;
}

/* Descriptors for connections: all that the system gives but a few for files. */
static unsigned connection_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 256;
    if (r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max < MAX_CONNECTIONS + 256 ? r.rlim_max : MAX_CONNECTIONS + 256;
        setrlimit(RLIMIT_NOFILE, &r);
        getrlimit(RLIMIT_NOFILE, &r);
    }
    rlim_t n = r.rlim_cur > 128 ? r.rlim_cur - 64 : r.rlim_cur / 2;
    return n < MAX_CONNECTIONS ? (unsigned)n : MAX_CONNECTIONS;
}

void cr_server_say_what_stays(const cr_server *s, const struct cr_target *t)
{
    struct cr_error err;
    if (!s->opt.router || cr_router_ready(s->opt.router, t->palette, &err) == CR_OK)
        return;
    char *id = cr_shelf_id(s->shelf, t);
    cr_log(CR_LOG_WARN, "%s: its questions stay here: %s", id ? id : "", err.msg);
    cr_free(id);
}

/* Palettes that the rule cannot judge are served all the same: their questions never leave, which
 * the administrator hears now and each answer tells as its reason. */
static void say_what_stays(const cr_server *s)
{
    struct cr_target *v[CR_SHELF_MAX];
    size_t n = s->opt.router ? cr_shelf_all(s->shelf, v, CR_SHELF_MAX) : 0;
    for (size_t i = 0; i < n; i++) {
        cr_server_say_what_stays(s, v[i]);
        cr_target_unref(v[i]);
    }
}

static enum cr_status fill_shelf(cr_server *s, struct cr_error *err)
{
    const struct cr_serve_options *opt = &s->opt;
    struct cr_shelf_adapter *v = cr_alloc0(opt->n_adapters, sizeof *v);
    enum cr_status status = v ? cr_shelf_new(&s->shelf, opt->model, opt->model_name, err)
                              : cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    for (size_t i = 0; i < opt->n_adapters && status == CR_OK; i++)
        v[i] = (struct cr_shelf_adapter){opt->adapters[i].adapter, opt->adapters[i].path,
                                         opt->adapters[i].scale};
    if (status == CR_OK && opt->n_adapters)
        status = cr_shelf_set_adapters(s->shelf, v, opt->n_adapters, err);
    cr_free(v);
    for (size_t i = 0; i < opt->n_palettes && status == CR_OK; i++)
        status = cr_shelf_load(s->shelf, NULL, opt->palettes[i], true, err);
    if (status == CR_OK && opt->pool && !cr_shelf_pool(s->shelf, opt->pool, err))
        status = err->status;
    if (status == CR_OK)
        say_what_stays(s);
    return status;
}

static enum cr_status fill_options(cr_server *s, const struct cr_serve_options *opt,
                                   struct cr_error *err)
{
    s->opt = *opt;
    if (!s->opt.max_queue)
        s->opt.max_queue = 16;
    if (!s->opt.parallel)
        s->opt.parallel = 4;
    if (!s->opt.max_body)
        s->opt.max_body = (size_t)4 << 20;
    if (opt->key)
        cr_hash_text(opt->key, s->key_hash);
    if (opt->admin_key)
        cr_hash_text(opt->admin_key, s->admin_hash);
    if (opt->n_ctx > cr_model_info(opt->model)->n_ctx_train)
        cr_log(CR_LOG_WARN, "a context of %d tokens, but the model was trained for %d", opt->n_ctx,
               cr_model_info(opt->model)->n_ctx_train);
    s->connections.most = connection_limit();
    return fill_shelf(s, err);
}

static enum cr_status start_http(cr_server *s, int *fd, struct cr_error *err)
{
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_call, s, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL, MHD_OPTION_LISTEN_SOCKET, *fd,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_NOTIFY_CONNECTION, on_connection,
        s, MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL, MHD_OPTION_CONNECTION_LIMIT,
        s->connections.most, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES, MHD_OPTION_STRICT_FOR_CLIENT,
        1, MHD_OPTION_END);
    if (!s->daemon)
        return cr_error_set(err, CR_LIMIT, "server: cannot start on port %d", s->port);
    *fd = -1; /* the daemon closes it */
    return CR_OK;
}

size_t cr_server_bytes(const struct cr_serve_options *opt)
{
    int n = opt->parallel ? opt->parallel : 4;
    size_t sampler = (size_t)cr_model_info(opt->model)->n_vocab * 3 * sizeof(float);
    return cr_lanes_bytes(opt->model, n, opt->n_ctx) + (size_t)n * sampler;
}

static void free_server(cr_server *s)
{
    cr_worker_free(s->worker);
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    cr_shelf_free(s->shelf);
    cr_free(s);
}

enum cr_status cr_server_start(cr_server **out, const struct cr_serve_options *opt,
                               struct cr_error *err)
{
    *out = NULL;
    int fd = -1;
    bool loopback = true;
    struct cr_error local;
    err = err ? err : &local;
    cr_server *s = cr_alloc0(1, sizeof *s);
    if (!s)
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    enum cr_status status = cr_http_load(err);
    if (status == CR_OK)
        status = fill_options(s, opt, err);
    const char *host = opt->host ? opt->host : "127.0.0.1";
    if (status == CR_OK)
        status = opt->listen_fd ? take_listener(opt->listen_fd, &fd, &s->port, &loopback, err)
                                : listen_on(host, opt->port, &fd, &s->port, &loopback, err);
    if (status == CR_OK && !loopback && !opt->key)
        status = cr_error_set(err, CR_POLICY,
                              "host %s can be reached from other machines: set a key first", host);
    s->open_host = !loopback;
    if (status == CR_OK)
        status = cr_worker_new(&s->worker, &s->opt, &s->metrics, err);
    if (status == CR_OK)
        status = start_http(s, &fd, err);
    if (fd >= 0)
        close(fd);
    if (status != CR_OK)
        free_server(s);
    else
        *out = s;
    return status;
}

int cr_server_port(const cr_server *s)
{
    return s->port;
}

enum cr_status cr_server_reload(cr_server *s, size_t *n_changed, struct cr_error *err)
{
    enum cr_status status = cr_shelf_reload(s->shelf, n_changed, err);
    say_what_stays(s);
    return status;
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
    free_server(s);
}

int cr_server_ctx(const cr_server *s)
{
    return s->opt.n_ctx ? s->opt.n_ctx : cr_model_info(s->opt.model)->n_ctx_train;
}
