/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The upstream client: its settings, the bodies that it sends, and when to try again. A single try
 * is upstream_try.c.
 */
#include "base/mem.h"
#include "route/curl_calls.h"
#include "route/upstream_impl.h"

#include <arpa/inet.h>
#include <jansson.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BODY = 64 << 20, FAILURES_BEFORE_PAUSE = 3, MAX_PAUSE_MS = 300000 };

int64_t cr_upstream_now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

double cr_upstream_cost(const cr_upstream *u, int64_t tokens_in, int64_t tokens_out)
{
    if (u->opt.price_in <= 0 && u->opt.price_out <= 0)
        return -1;
    return ((double)tokens_in * u->opt.price_in + (double)tokens_out * u->opt.price_out) / 1e6;
}

/* ---- set-up ---- */

enum cr_status cr_upstream_no_memory(struct cr_error *err)
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
        return cr_upstream_no_memory(err);
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
        st = cr_upstream_no_memory(err);
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
    bool good = n > 0 && n <= CR_UPSTREAM_MAX_KEY;
    for (size_t i = 0; good && i < n; i++)
        good = key[i] > 0x20 && key[i] < 0x7f;
    return good ? CR_OK
                : cr_error_set(err, CR_INVALID,
                               "upstream key: want one word of 1 to %d visible ASCII letters, "
                               "found %zu bytes",
                               CR_UPSTREAM_MAX_KEY, n);
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
        st = cr_file_read(path, CR_UPSTREAM_MAX_KEY + 2, key, &n, err);
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
        st = *key ? check_key(*key, err) : cr_upstream_no_memory(err);
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
    enum cr_status st = cr_error_prefix(err, cr_curl_load(err), "upstream");
    if (st != CR_OK)
        return st;
    if (!opt->url || !*opt->url)
        return cr_error_set(err, CR_INVALID, "upstream: want a URL");
    if (!opt->model || !*opt->model)
        return cr_error_set(err, CR_INVALID, "upstream: want the name of a model");
    cr_upstream *u = cr_alloc0(1, sizeof *u);
    if (!u)
        return cr_upstream_no_memory(err);
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
    st = take_url(u, opt->url, err);
    if (st == CR_OK && opt->key)
        st = check_key(opt->key, err);
    if (st == CR_OK &&
        (!(u->model = cr_strdup(opt->model)) || (opt->key && !(u->key = cr_strdup(opt->key))) ||
         (opt->ca_file && !(u->ca_file = cr_strdup(opt->ca_file)))))
        st = cr_upstream_no_memory(err);
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
        cr_upstream_no_memory(err);
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
            max_tokens > 0 ? cr_upstream_cost(u, (int64_t)out->n_body, (int64_t)max_tokens) : -1;
        out->request_id = cr_strdup(ask->request_id ? ask->request_id : "");
        out->reason = cr_strdup(ask->reason ? ask->reason : "");
        if (!out->body || !out->request_id || !out->reason)
            st = cr_upstream_no_memory(err);
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

/* ---- all tries ---- */

int64_t cr_upstream_paused_ms(cr_upstream *u)
{
    pthread_mutex_lock(&u->lock);
    int64_t left = u->pause_until_ms - cr_upstream_now_ms();
    pthread_mutex_unlock(&u->lock);
    return left > 0 ? left : 0;
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
        u->pause_until_ms = cr_upstream_now_ms() + (pause < MAX_PAUSE_MS ? pause : MAX_PAUSE_MS);
    }
    pthread_mutex_unlock(&u->lock);
}

/* False when the caller cancelled meanwhile. */
static bool wait_for(const struct cr_outgoing *o, int64_t ms)
{
    for (int64_t end = cr_upstream_now_ms() + ms; cr_upstream_now_ms() < end;) {
        if (o->cancelled && o->cancelled(o->ud))
            return false;
        int64_t step = end - cr_upstream_now_ms();
        struct timespec ts = {
            .tv_nsec = (long)(step > CR_UPSTREAM_STEP_MS ? CR_UPSTREAM_STEP_MS : step) * 1000000};
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
    int64_t start = cr_upstream_now_ms(), end = start + u->opt.total_ms,
            backoff = u->opt.backoff_ms;
    enum cr_status st;
    for (;;) {
        bool again = false;
        int64_t wait_ms = 0;
        answer->tries++;
        int64_t left_ms = end - cr_upstream_now_ms();
        st = cr_upstream_try(u, o, left_ms > 0 ? left_ms : 1, answer, &again, &wait_ms, err);
        if (st == CR_OK || !again || answer->tries >= u->opt.max_tries)
            break;
        wait_ms = wait_ms > backoff ? wait_ms : backoff;
        backoff *= 2;
        if (wait_ms > CR_UPSTREAM_MAX_WAIT_MS || cr_upstream_now_ms() + wait_ms >= end)
            break;
        if (!wait_for(o, wait_ms)) {
            st = cr_error_set(err, CR_CANCELLED, "upstream: cancelled");
            break;
        }
    }
    answer->ms = (double)(cr_upstream_now_ms() - start);
    if (st == CR_OK && answer->tokens_in >= 0 && answer->tokens_out >= 0)
        answer->cost = cr_upstream_cost(u, answer->tokens_in, answer->tokens_out);
    else if (answer->http_status == 200) /* it may be billed: every byte taken for a token */
        answer->cost = cr_upstream_cost(u, (int64_t)o->n_body, (int64_t)answer->bytes_in);
    if (st != CR_OK)
        mask_key(u, err->msg);
    if (st == CR_NETWORK && answer->tries > 1)
        cr_error_prefix(err, st, "after %d tries", answer->tries);
    remember(u, st);
    return st;
}
