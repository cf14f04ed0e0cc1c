/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The upstream client over libcurl. Each try drives its own multi handle in short steps, so that
 * deadlines, stalls and cancelling are ours and not left to signals. Addresses are judged at the
 * moment a socket would be made, after name resolution, so a name cannot point where it must not.
 */
#include "route/upstream.h"

#include "base/mem.h"
#include "route/reply.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    STEP_MS = 50,
    MAX_KEY = 4096,
    MAX_BODY = 64 << 20,
    MAX_WAIT_MS = 10000, /* a longer Retry-After is not waited for */
    FAILURES_BEFORE_PAUSE = 3,
    MAX_PAUSE_MS = 300000,
    MAX_HEADERS = 256 << 10
};

struct cr_upstream {
    char *url, *model, *key, *ca_file;
    bool insecure, plain; /* plain: http */
    struct cr_upstream_options opt;
    pthread_mutex_t lock; /* of the two below */
    int n_failed;         /* calls in a row */
    int64_t pause_until_ms;
};

struct transfer { /* one try */
    const cr_upstream *u;
    const struct cr_outgoing *o;
    struct cr_reply reply;
    struct cr_buf body;    /* what is not an event stream */
    struct cr_error error; /* set by a callback, status CR_OK when none */
    CURL *easy;
    uint64_t bytes_out, bytes_in;
    int64_t last_byte_ms; /* 0: the reply has not begun */
    bool events, checked;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_ready;
static void start_curl(void)
{
    curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- set-up ---- */

static enum cr_status no_memory(struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "upstream: out of memory");
}

static bool is_this_machine(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    char bare[64];
    size_t n = strlen(host);
    if (strcasecmp(host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return (ntohl(v4.s_addr) >> 24) == 127;
    if (n < 3 || n - 2 >= sizeof bare || host[0] != '[')
        return false;
    memcpy(bare, host + 1, n - 2);
    bare[n - 2] = '\0';
    return inet_pton(AF_INET6, bare, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* "/v1" and "" are completed; a path that ends in /chat/completions stays. */
static char *full_path(const char *path)
{
    static const char tail[] = "/chat/completions";
    size_t n = strlen(path), t = sizeof tail - 1;
    while (n && path[n - 1] == '/')
        n--;
    if (n >= t && memcmp(path + n - t, tail, t) == 0)
        return cr_strndup(path, n);
    return cr_asprintf("%.*s%s%s", (int)n, path, n ? "" : "/v1", tail);
}

static enum cr_status take_url(cr_upstream *u, const char *url, struct cr_error *err)
{
    CURLU *h = curl_url();
    char *scheme = NULL, *host = NULL, *path = NULL, *query = NULL, *fragment = NULL, *all = NULL;
    char *whole = NULL;
    enum cr_status st = CR_OK;
    if (!h)
        return no_memory(err);
    CURLUcode rc = curl_url_set(h, CURLUPART_URL, url, CURLU_DISALLOW_USER);
    if (rc == CURLUE_USER_NOT_ALLOWED) {
        st = cr_error_set(err, CR_INVALID,
                          "upstream: want a URL without a name or password; give the key by "
                          "$CRAYON_API_KEY or a file");
        goto fail;
    }
    if (rc != CURLUE_OK || curl_url_get(h, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(h, CURLUPART_HOST, &host, 0) != CURLUE_OK ||
        curl_url_get(h, CURLUPART_PATH, &path, 0) != CURLUE_OK ||
        (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)) {
        st = cr_error_set(err, CR_INVALID, "upstream: want http://... or https://..., found \"%s\"",
                          url);
        goto fail;
    }
    curl_url_get(h, CURLUPART_QUERY, &query, 0);
    curl_url_get(h, CURLUPART_FRAGMENT, &fragment, 0);
    if (query || fragment) { /* where keys like to hide */
        st = cr_error_set(err, CR_INVALID, "upstream: want a URL without \"?\" and \"#\"");
        goto fail;
    }
    u->plain = strcmp(scheme, "http") == 0;
    if (u->plain && !u->insecure && !is_this_machine(host)) {
        st = cr_error_set(err, CR_POLICY,
                          "upstream: plain http to %s would send text and key in the clear; use "
                          "https, or allow it with --upstream-insecure",
                          host);
        goto fail;
    }
    whole = full_path(path);
    if (!whole || curl_url_set(h, CURLUPART_PATH, whole, 0) != CURLUE_OK ||
        curl_url_get(h, CURLUPART_URL, &all, 0) != CURLUE_OK || !(u->url = cr_strdup(all)))
        st = no_memory(err);
fail:
    cr_free(whole);
    curl_free(all);
    curl_free(fragment);
    curl_free(query);
    curl_free(path);
    curl_free(host);
    curl_free(scheme);
    curl_url_cleanup(h);
    return st;
}

/* A key goes into a header line, so it must be one visible word. */
static enum cr_status check_key(const char *key, struct cr_error *err)
{
    size_t n = strlen(key);
    bool good = n > 0 && n <= MAX_KEY;
    for (size_t i = 0; good && i < n; i++)
        good = key[i] > 0x20 && key[i] < 0x7f;
    return good ? CR_OK
                : cr_error_set(err, CR_INVALID,
                               "upstream key: want one word of 1 to %d visible ASCII letters, "
                               "found %zu bytes",
                               MAX_KEY, n);
}

void cr_key_free(char *key)
{
    if (key)
        explicit_bzero(key, strlen(key));
    cr_free(key);
}

enum cr_status cr_key_read(const char *path, char **key, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    *key = NULL;
    if (path) {
        size_t n;
        st = cr_file_read(path, MAX_KEY + 2, key, &n, err);
        if (st != CR_OK)
            return st;
        while (n && ((*key)[n - 1] == '\n' || (*key)[n - 1] == '\r'))
            (*key)[--n] = '\0';
        st = strlen(*key) == n ? check_key(*key, err)
                               : cr_error_set(err, CR_INVALID, "%s: the key holds a NUL", path);
    } else {
        char *env = getenv("CRAYON_API_KEY");
        if (!env || !*env)
            return CR_OK;
        *key = cr_strdup(env);
        st = *key ? check_key(*key, err) : no_memory(err);
        explicit_bzero(env, strlen(env)); /* out of /proc/PID/environ of us and our children */
        unsetenv("CRAYON_API_KEY");
    }
    if (st != CR_OK) {
        cr_key_free(*key);
        *key = NULL;
    }
    return st;
}

static int or_default(int v, int d)
{
    return v > 0 ? v : d;
}

enum cr_status cr_upstream_new(cr_upstream **out, const struct cr_upstream_options *opt,
                               struct cr_error *err)
{
    *out = NULL;
    pthread_once(&curl_once, start_curl);
    if (curl_ready != CURLE_OK)
        return cr_error_set(err, CR_INTERNAL, "upstream: libcurl does not start: %s",
                            curl_easy_strerror(curl_ready));
    if (!opt->url || !*opt->url)
        return cr_error_set(err, CR_INVALID, "upstream: want a URL");
    if (!opt->model || !*opt->model)
        return cr_error_set(err, CR_INVALID, "upstream: want the name of a model");
    cr_upstream *u = cr_alloc0(1, sizeof *u);
    if (!u)
        return no_memory(err);
    pthread_mutex_init(&u->lock, NULL);
    u->insecure = opt->insecure;
    u->opt = *opt;
    u->opt.url = u->opt.model = u->opt.key = u->opt.ca_file = NULL;
    u->opt.connect_ms = or_default(opt->connect_ms, 5000);
    u->opt.stall_ms = or_default(opt->stall_ms, 30000);
    u->opt.total_ms = or_default(opt->total_ms, 120000);
    u->opt.max_tries = or_default(opt->max_tries, 3);
    u->opt.backoff_ms = or_default(opt->backoff_ms, 500);
    u->opt.pause_ms = or_default(opt->pause_ms, 10000);
    u->opt.max_reply_bytes = opt->max_reply_bytes ? opt->max_reply_bytes : (size_t)4 << 20;
    enum cr_status st = take_url(u, opt->url, err);
    if (st == CR_OK && opt->key)
        st = check_key(opt->key, err);
    if (st == CR_OK &&
        (!(u->model = cr_strdup(opt->model)) || (opt->key && !(u->key = cr_strdup(opt->key))) ||
         (opt->ca_file && !(u->ca_file = cr_strdup(opt->ca_file)))))
        st = no_memory(err);
    if (st != CR_OK) {
        cr_upstream_free(u);
        return st;
    }
    *out = u;
    return CR_OK;
}

void cr_upstream_free(cr_upstream *u)
{
    if (!u)
        return;
    cr_key_free(u->key);
    cr_free(u->ca_file);
    cr_free(u->model);
    cr_free(u->url);
    pthread_mutex_destroy(&u->lock);
    cr_free(u);
}

const char *cr_upstream_url(const cr_upstream *u)
{
    return u->url;
}

const char *cr_upstream_model(const cr_upstream *u)
{
    return u->model;
}

/* ---- the body ---- */

/* Money for so many tokens; -1 without prices. */
static double cost_of(const cr_upstream *u, int64_t tokens_in, int64_t tokens_out)
{
    if (u->opt.price_in <= 0 && u->opt.price_out <= 0)
        return -1;
    return ((double)tokens_in * u->opt.price_in + (double)tokens_out * u->opt.price_out) / 1e6;
}

/* Tokens of answer that max_cost can pay for, taking every byte of the body for one token. */
static enum cr_status pay_for(const cr_upstream *u, const struct cr_ask *ask, int *max_tokens,
                              struct cr_error *err)
{
    size_t bytes = 256;
    for (size_t i = 0; i < ask->n_messages; i++)
        bytes += strlen(ask->messages[i].content) + 16;
    if (u->opt.price_out <= 0)
        return cr_error_set(err, CR_INVALID,
                            "upstream: a cost ceiling of %g needs the server's prices",
                            ask->max_cost);
    double left = ask->max_cost - (double)bytes * u->opt.price_in / 1e6;
    double n = left / u->opt.price_out * 1e6;
    if (n < 1)
        return cr_error_set(err, CR_POLICY,
                            "upstream: the cost ceiling of %g does not pay for a prompt of up to "
                            "%zu tokens and an answer",
                            ask->max_cost, bytes);
    if (*max_tokens == 0 || n < *max_tokens)
        *max_tokens = n < 1e9 ? (int)n : 1000000000;
    return CR_OK;
}

static json_t *messages_json(const struct cr_ask *ask, struct cr_error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < ask->n_messages; i++) {
        const struct cr_message *m = &ask->messages[i];
        json_t *role = m->role ? json_string(m->role) : NULL;
        json_t *content = m->content ? json_string(m->content) : NULL;
        json_t *item = role && content ? json_object() : NULL;
        if (!item) {
            cr_error_set(err, CR_INVALID, "upstream: message %zu: want role and content in UTF-8",
                         i + 1);
            json_decref(role);
            json_decref(content);
            json_decref(list);
            return NULL;
        }
        json_object_set_new(item, "role", role);
        json_object_set_new(item, "content", content);
        json_array_append_new(list, item);
    }
    if (!list)
        no_memory(err);
    return list;
}

static int append_body(const char *data, size_t n, void *ud)
{
    return cr_buf_add(ud, data, n) ? 0 : -1;
}

enum cr_status cr_upstream_prepare(const cr_upstream *u, const struct cr_ask *ask,
                                   struct cr_outgoing *out, struct cr_error *err)
{
    *out = (struct cr_outgoing){.url = u->url,
                                .model = u->model,
                                .has_key = u->key != NULL,
                                .stream = ask->stream || ask->max_cost > 0,
                                .max_cost = ask->max_cost,
                                .on_text = ask->on_text,
                                .cancelled = ask->cancelled,
                                .ud = ask->ud};
    int max_tokens = ask->max_tokens;
    if (ask->n_messages == 0)
        return cr_error_set(err, CR_INVALID, "upstream: want at least one message, found 0");
    if (ask->temperature > 100)
        return cr_error_set(err, CR_INVALID,
                            "upstream: want a temperature of at most 100, found %g",
                            (double)ask->temperature);
    json_t *list = messages_json(ask, err);
    if (!list)
        return err ? err->status : CR_INVALID;
    enum cr_status st = ask->max_cost > 0 ? pay_for(u, ask, &max_tokens, err) : CR_OK;
    json_t *root = st == CR_OK ? json_object() : NULL;
    struct cr_buf buf;
    cr_buf_init(&buf, MAX_BODY);
    if (st == CR_OK) {
        int bad = json_object_set_new(root, "model", json_string(u->model));
        bad |= json_object_set(root, "messages", list);
        if (max_tokens > 0)
            bad |= json_object_set_new(root, "max_tokens", json_integer(max_tokens));
        if (ask->temperature >= 0) /* rounded: a float such as 0.7 must not become 0.699999988 */
            bad |=
                json_object_set_new(root, "temperature",
                                    json_real((double)(int)(ask->temperature * 1e4f + 0.5f) / 1e4));
        bad |= json_object_set_new(root, "stream", json_boolean(out->stream));
        if (bad || json_dump_callback(root, append_body, &buf, JSON_COMPACT) != 0)
            st = cr_error_set(err, CR_LIMIT, "upstream: cannot build a body of up to %d bytes",
                              MAX_BODY);
    }
    if (st == CR_OK) {
        out->body = cr_buf_detach(&buf, &out->n_body);
        out->worst_cost =
            max_tokens > 0 ? cost_of(u, (int64_t)out->n_body, (int64_t)max_tokens) : -1;
        out->request_id = cr_strdup(ask->request_id ? ask->request_id : "");
        out->reason = cr_strdup(ask->reason ? ask->reason : "");
        if (!out->body || !out->request_id || !out->reason)
            st = no_memory(err);
    }
    if (st != CR_OK)
        cr_outgoing_deinit(out);
    cr_buf_deinit(&buf);
    json_decref(root);
    json_decref(list);
    return st;
}

void cr_outgoing_deinit(struct cr_outgoing *o)
{
    if (o->relay)
        o->free_relay(o->relay);
    if (o->next)
        cr_outgoing_deinit(o->next);
    cr_free(o->next);
    cr_free(o->body);
    cr_free(o->request_id);
    cr_free(o->reason);
    *o = (struct cr_outgoing){0};
}

void cr_remote_answer_deinit(struct cr_remote_answer *a)
{
    cr_free(a->text);
    *a = (struct cr_remote_answer){0};
}

/* ---- one try ---- */

static const char *address_fault(const struct transfer *t, const struct sockaddr *sa)
{
    uint32_t v4 = 0;
    bool is_v4 = sa->sa_family == AF_INET, loop = false;
    struct in6_addr v6 = in6addr_any;
    if (is_v4) {
        v4 = ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr);
    } else if (sa->sa_family == AF_INET6) {
        v6 = ((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(&v6)) {
            memcpy(&v4, v6.s6_addr + 12, 4);
            v4 = ntohl(v4);
            is_v4 = true;
        }
    } else {
        return "neither IPv4 nor IPv6";
    }
    if (is_v4) {
        if (v4 >> 16 == 0xa9fe)
            return "link-local";
        if (v4 == 0 || v4 >> 28 >= 0xe)
            return "unspecified or multicast";
        loop = v4 >> 24 == 127;
    } else {
        if (IN6_IS_ADDR_LINKLOCAL(&v6))
            return "link-local";
        if (IN6_IS_ADDR_UNSPECIFIED(&v6) || IN6_IS_ADDR_MULTICAST(&v6))
            return "unspecified or multicast";
        loop = IN6_IS_ADDR_LOOPBACK(&v6);
    }
    return t->u->plain && !t->u->insecure && !loop ? "another machine, by plain http" : NULL;
}

static curl_socket_t open_socket(void *ud, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct transfer *t = ud;
    (void)purpose;
    const char *fault = address_fault(t, &a->addr);
    if (fault) {
        cr_error_set(&t->error, CR_POLICY, "upstream %s: the address is %s: refused", t->u->url,
                     fault);
        return CURL_SOCKET_BAD;
    }
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

/* Counts HTTP bytes. Nothing is printed. */
static int count_bytes(CURL *easy, curl_infotype type, char *data, size_t n, void *ud)
{
    struct transfer *t = ud;
    (void)easy;
    (void)data;
    if (type == CURLINFO_HEADER_OUT || type == CURLINFO_DATA_OUT)
        t->bytes_out += n;
    else if (type == CURLINFO_HEADER_IN || type == CURLINFO_DATA_IN)
        t->bytes_in += n;
    return 0;
}

/* At the first byte of the body: what kind of reply is it? */
static bool judge_headers(struct transfer *t)
{
    long status = 0;
    const char *type = NULL;
    struct curl_header *h = NULL;
    t->checked = true;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t->easy, CURLINFO_CONTENT_TYPE, &type);
    if (curl_easy_header(t->easy, "Content-Encoding", 0, CURLH_HEADER, -1, &h) == CURLHE_OK &&
        strcasecmp(h->value, "identity") != 0) {
        cr_error_set(&t->error, CR_NETWORK,
                     "upstream: the reply is compressed (%.40s), which was not asked for",
                     h->value);
        return false;
    }
    t->events = status == 200 && type && strncasecmp(type, "text/event-stream", 17) == 0;
    return true;
}

static size_t take_bytes(char *data, size_t size, size_t n, void *ud)
{
    struct transfer *t = ud;
    size_t len = size * n;
    t->last_byte_ms = now_ms();
    if (!t->checked && !judge_headers(t))
        return CURL_WRITEFUNC_ERROR;
    if (t->bytes_in > t->u->opt.max_reply_bytes) {
        cr_error_set(&t->error, CR_NETWORK, "upstream: the reply is longer than %zu bytes",
                     t->u->opt.max_reply_bytes);
        return CURL_WRITEFUNC_ERROR;
    }
    if (!t->events) {
        if (!cr_buf_add(&t->body, data, len))
            return CURL_WRITEFUNC_ERROR;
        return len;
    }
    if (cr_reply_feed(&t->reply, data, len, &t->error) != CR_OK)
        return CURL_WRITEFUNC_ERROR;
    if (t->o->max_cost > 0 && cost_of(t->u, 0, t->reply.n_pieces) > t->o->max_cost) {
        cr_error_set(&t->error, CR_LIMIT,
                     "upstream: the cost ceiling of %g was crossed after %lld "
                     "pieces of answer",
                     t->o->max_cost, (long long)t->reply.n_pieces);
        return CURL_WRITEFUNC_ERROR;
    }
    return len;
}

/* Headers have a ceiling of their own: libcurl keeps them all. */
static size_t take_header(char *data, size_t size, size_t n, void *ud)
{
    struct transfer *t = ud;
    (void)data;
    if (t->last_byte_ms == 0 && t->bytes_in > MAX_HEADERS) {
        cr_error_set(&t->error, CR_NETWORK, "upstream: the reply has more than %d bytes of headers",
                     MAX_HEADERS);
        return CURL_WRITEFUNC_ERROR;
    }
    return t->bytes_in > t->u->opt.max_reply_bytes + MAX_HEADERS ? CURL_WRITEFUNC_ERROR : size * n;
}

static struct curl_slist *make_headers(const struct transfer *t)
{
    char auth[MAX_KEY + 32];
    struct curl_slist *list = curl_slist_append(NULL, "Content-Type: application/json"), *next;
    if (list && (next = curl_slist_append(list, "Expect:")) != NULL && t->u->key) {
        snprintf(auth, sizeof auth, "Authorization: Bearer %s", t->u->key);
        next = curl_slist_append(list, auth);
        explicit_bzero(auth, sizeof auth);
    }
    if (list && !next) {
        curl_slist_free_all(list);
        list = NULL;
    }
    return list;
}

static void wipe_headers(struct curl_slist *list)
{
    for (struct curl_slist *p = list; p; p = p->next)
        explicit_bzero(p->data, strlen(p->data));
    curl_slist_free_all(list);
}

static bool set_options(struct transfer *t, struct curl_slist *headers, int64_t left_ms)
{
    CURL *e = t->easy;
    int bad = 0;
#define SET(option, value) bad |= curl_easy_setopt(e, option, value) != CURLE_OK
    SET(CURLOPT_URL, t->u->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, ""); /* whatever the environment says */
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_HTTPAUTH, (long)CURLAUTH_NONE);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    if (t->u->ca_file) {
        SET(CURLOPT_CAINFO, t->u->ca_file);
        SET(CURLOPT_CAPATH, NULL);
    }
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)t->u->opt.connect_ms);
    SET(CURLOPT_TIMEOUT_MS, (long)left_ms);
    SET(CURLOPT_USERAGENT, "crayon/" CR_VERSION);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_HTTP09_ALLOWED, 1L); /* so that its bytes are counted; judge refuses it */
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDS, t->o->body);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->o->n_body);
    SET(CURLOPT_WRITEFUNCTION, take_bytes);
    SET(CURLOPT_WRITEDATA, t);
    SET(CURLOPT_HEADERFUNCTION, take_header);
    SET(CURLOPT_HEADERDATA, t);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, t);
    SET(CURLOPT_DEBUGFUNCTION, count_bytes);
    SET(CURLOPT_DEBUGDATA, t);
    SET(CURLOPT_VERBOSE, 1L); /* calls count_bytes instead of printing */
#undef SET
    return !bad;
}

/* Drives the transfer to its end, our stall limit or the caller's wish. */
static CURLcode drive(struct transfer *t, CURLM *multi)
{
    int running = 1;
    while (running) {
        if (curl_multi_perform(multi, &running) != CURLM_OK)
            return CURLE_FAILED_INIT;
        if (!running)
            break;
        if (t->o->cancelled && t->o->cancelled(t->o->ud)) {
            cr_error_set(&t->error, CR_CANCELLED, "upstream: cancelled");
            return CURLE_ABORTED_BY_CALLBACK;
        }
        if (t->last_byte_ms && now_ms() - t->last_byte_ms > t->u->opt.stall_ms) {
            cr_error_set(&t->error, CR_NETWORK, "upstream: no byte for %d ms in the reply",
                         t->u->opt.stall_ms);
            return CURLE_OPERATION_TIMEDOUT;
        }
        if (curl_multi_poll(multi, NULL, 0, STEP_MS, NULL) != CURLM_OK)
            return CURLE_FAILED_INIT;
    }
    int left;
    CURLMsg *msg = curl_multi_info_read(multi, &left);
    return msg && msg->msg == CURLMSG_DONE ? msg->data.result : CURLE_FAILED_INIT;
}

/* The server may repeat our key in its error text: it must not get from there into a log. The text
 * may be cut, so what begins like the key is masked too. */
static void mask_key(const cr_upstream *u, char *s)
{
    enum { SHORTEST = 6 };
    size_t n = u->key ? strlen(u->key) : 0;
    for (char *p = s; n && *p; p++) {
        size_t same = 0;
        while (same < n && p[same] == u->key[same])
            same++;
        if (same == n || same >= SHORTEST)
            memset(p, '*', same);
    }
}

static enum cr_status http_error(struct transfer *t, long status, struct cr_error *err)
{
    char text[200] = "";
    if (status >= 300 && status < 400)
        return cr_error_set(err, CR_NETWORK,
                            "upstream: HTTP %ld, a redirect, is not followed: the key and the text "
                            "are for %s only",
                            status, t->u->url);
    cr_reply_error_text(t->body.data ? t->body.data : "", t->body.len, text, sizeof text);
    return cr_error_set(err, CR_NETWORK, "upstream: HTTP %ld%s%s", status, *text ? ": " : "", text);
}

/* What came of the try: CR_OK with t->reply filled, or an error. *again: worth another try. */
static enum cr_status judge(struct transfer *t, CURLcode rc, long status, bool *again,
                            struct cr_error *err)
{
    *again = false;
    if (t->error.status != CR_OK) { /* one of ours stopped it */
        if (err)
            *err = t->error;
        return t->error.status;
    }
    if (t->body.failed)
        return cr_error_set(err, CR_NETWORK, "upstream: the reply is longer than %zu bytes",
                            t->body.max);
    if (rc != CURLE_OK) {
        *again = rc == CURLE_COULDNT_CONNECT;
        return cr_error_set(err, CR_NETWORK, "upstream %s: %s", t->u->url, curl_easy_strerror(rc));
    }
    if (status < 100)
        return cr_error_set(err, CR_NETWORK, "upstream %s: the reply is no HTTP", t->u->url);
    if (status != 200) {
        *again = status == 429 || status >= 500;
        return http_error(t, status, err);
    }
    if (!t->checked && !judge_headers(t)) {
        if (err)
            *err = t->error;
        return CR_NETWORK;
    }
    enum cr_status st =
        t->events ? cr_reply_end(&t->reply, err)
                  : cr_reply_json(&t->reply, t->body.data ? t->body.data : "", t->body.len, err);
    return cr_error_prefix(err, st, "upstream");
}

static enum cr_status one_try(cr_upstream *u, const struct cr_outgoing *o, int64_t left_ms,
                              struct cr_remote_answer *a, bool *again, int64_t *wait_ms,
                              struct cr_error *err)
{
    struct transfer t = {.u = u, .o = o};
    struct curl_slist *headers = make_headers(&t);
    CURLM *multi = curl_multi_init();
    enum cr_status st = CR_NO_MEMORY;
    t.easy = curl_easy_init();
    cr_reply_init(&t.reply, u->opt.max_reply_bytes);
    t.reply.on_text = o->on_text;
    t.reply.ud = o->ud;
    cr_buf_init(&t.body, u->opt.max_reply_bytes);
    *again = false;
    if (!headers || !multi || !t.easy || !set_options(&t, headers, left_ms) ||
        curl_multi_add_handle(multi, t.easy) != CURLM_OK) {
        st = no_memory(err);
        goto done;
    }
    CURLcode rc = drive(&t, multi);
    long status = 0;
    curl_off_t retry_after = 0;
    curl_easy_getinfo(t.easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t.easy, CURLINFO_RETRY_AFTER, &retry_after);
    st = judge(&t, rc, status, again, err);
    a->http_status = (int)status;
    a->bytes_out += t.bytes_out;
    a->bytes_in += t.bytes_in;
    a->n_streamed = o->on_text ? t.reply.text.len : 0;
    *again = *again && a->n_streamed == 0;
    *wait_ms = retry_after > MAX_WAIT_MS ? MAX_WAIT_MS + 1 : (int64_t)retry_after * 1000;
    if (st == CR_OK) {
        a->tokens_in = t.reply.tokens_in;
        a->tokens_out =
            t.reply.tokens_out >= 0 || !t.events ? t.reply.tokens_out : t.reply.n_pieces;
        memcpy(a->finish, t.reply.finish, sizeof a->finish);
        a->text = cr_buf_detach(&t.reply.text, &a->n_text);
        if (!a->text)
            st = no_memory(err);
    }
    curl_multi_remove_handle(multi, t.easy);
done:
    curl_easy_cleanup(t.easy);
    curl_multi_cleanup(multi);
    wipe_headers(headers);
    cr_reply_deinit(&t.reply);
    cr_buf_deinit(&t.body);
    return st;
}

/* ---- all tries ---- */

int64_t cr_upstream_paused_ms(cr_upstream *u)
{
    pthread_mutex_lock(&u->lock);
    int64_t left = u->pause_until_ms - now_ms();
    pthread_mutex_unlock(&u->lock);
    return left > 0 ? left : 0;
}

static void remember(cr_upstream *u, enum cr_status st)
{
    pthread_mutex_lock(&u->lock);
    if (st == CR_OK) {
        u->n_failed = 0;
        u->pause_until_ms = 0;
    } else if (st == CR_NETWORK && ++u->n_failed >= FAILURES_BEFORE_PAUSE) {
        int64_t pause = u->opt.pause_ms;
        for (int i = FAILURES_BEFORE_PAUSE; i < u->n_failed && pause < MAX_PAUSE_MS; i++)
            pause *= 2;
        u->pause_until_ms = now_ms() + (pause < MAX_PAUSE_MS ? pause : MAX_PAUSE_MS);
    }
    pthread_mutex_unlock(&u->lock);
}

/* False when the caller cancelled meanwhile. */
static bool wait_for(const struct cr_outgoing *o, int64_t ms)
{
    for (int64_t end = now_ms() + ms; now_ms() < end;) {
        if (o->cancelled && o->cancelled(o->ud))
            return false;
        int64_t step = end - now_ms();
        struct timespec ts = {.tv_nsec = (long)(step > STEP_MS ? STEP_MS : step) * 1000000};
        nanosleep(&ts, NULL);
    }
    return true;
}

enum cr_status cr_upstream_send(cr_upstream *u, const struct cr_outgoing *o,
                                struct cr_remote_answer *answer, struct cr_error *err)
{
    struct cr_error local;
    err = err ? err : &local;
    *answer = (struct cr_remote_answer){.tokens_in = -1, .tokens_out = -1, .cost = -1};
    int64_t paused = cr_upstream_paused_ms(u);
    if (paused > 0)
        return cr_error_set(err, CR_NETWORK,
                            "upstream: paused for %lld ms more after repeated failures",
                            (long long)paused);
    int64_t start = now_ms(), end = start + u->opt.total_ms, backoff = u->opt.backoff_ms;
    enum cr_status st;
    for (;;) {
        bool again = false;
        int64_t wait_ms = 0;
        answer->tries++;
        int64_t left_ms = end - now_ms();
        st = one_try(u, o, left_ms > 0 ? left_ms : 1, answer, &again, &wait_ms, err);
        if (st == CR_OK || !again || answer->tries >= u->opt.max_tries)
            break;
        wait_ms = wait_ms > backoff ? wait_ms : backoff;
        backoff *= 2;
        if (wait_ms > MAX_WAIT_MS || now_ms() + wait_ms >= end)
            break;
        if (!wait_for(o, wait_ms)) {
            st = cr_error_set(err, CR_CANCELLED, "upstream: cancelled");
            break;
        }
    }
    answer->ms = (double)(now_ms() - start);
    if (st == CR_OK && answer->tokens_in >= 0 && answer->tokens_out >= 0)
        answer->cost = cost_of(u, answer->tokens_in, answer->tokens_out);
    else if (answer->http_status == 200) /* it may be billed: every byte taken for a token */
        answer->cost = cost_of(u, (int64_t)o->n_body, (int64_t)answer->bytes_in);
    if (st != CR_OK)
        mask_key(u, err->msg);
    if (st == CR_NETWORK && answer->tries > 1)
        cr_error_prefix(err, st, "after %d tries", answer->tries);
    remember(u, st);
    return st;
}
