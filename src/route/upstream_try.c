/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request over libcurl. Each try drives its own multi handle in short steps, so that deadlines,
 * stalls and cancelling are ours and not left to signals. Addresses are judged at the moment a
 * socket would be made, after name resolution, so a name cannot point where it must not.
 */
#include "base/mem.h"
#include "route/curl_calls.h"
#include "route/reply.h"
#include "route/upstream_impl.h"

#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum { MAX_HEADERS = 256 << 10 };

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
    t->last_byte_ms = cr_upstream_now_ms();
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
    if (t->o->max_cost > 0 && cr_upstream_cost(t->u, 0, t->reply.n_pieces) > t->o->max_cost) {
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
    char auth[CR_UPSTREAM_MAX_KEY + 32];
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
    int bad = !cr_curl_guard(e, t->u->url, t->u->ca_file);
#define SET(option, value) bad |= curl_easy_setopt(e, option, value) != CURLE_OK
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)t->u->opt.connect_ms);
    SET(CURLOPT_TIMEOUT_MS, (long)left_ms);
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
        if (t->last_byte_ms && cr_upstream_now_ms() - t->last_byte_ms > t->u->opt.stall_ms) {
            cr_error_set(&t->error, CR_NETWORK, "upstream: no byte for %d ms in the reply",
                         t->u->opt.stall_ms);
            return CURLE_OPERATION_TIMEDOUT;
        }
        if (curl_multi_poll(multi, NULL, 0, CR_UPSTREAM_STEP_MS, NULL) != CURLM_OK)
            return CURLE_FAILED_INIT;
    }
    int left;
    CURLMsg *msg = curl_multi_info_read(multi, &left);
    return msg && msg->msg == CURLMSG_DONE ? msg->data.result : CURLE_FAILED_INIT;
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

enum cr_status cr_upstream_try(cr_upstream *u, const struct cr_outgoing *o, int64_t left_ms,
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
        st = cr_upstream_no_memory(err);
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
    *wait_ms = retry_after > CR_UPSTREAM_MAX_WAIT_MS ? CR_UPSTREAM_MAX_WAIT_MS + 1
                                                     : (int64_t)retry_after * 1000;
    if (st == CR_OK) {
        a->tokens_in = t.reply.tokens_in;
        a->tokens_out =
            t.reply.tokens_out >= 0 || !t.events ? t.reply.tokens_out : t.reply.n_pieces;
        memcpy(a->finish, t.reply.finish, sizeof a->finish);
        a->text = cr_buf_detach(&t.reply.text, &a->n_text);
        if (!a->text)
            st = cr_upstream_no_memory(err);
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
