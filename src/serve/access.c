/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may ask: checks of the headers before a byte of the body is read. A web page must not reach a
 * service on loopback through DNS rebinding or a form: Host has to name loopback, Origin too, the
 * body has to be JSON.
 */
#include "serve/http.h"

#include "base/sha256.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

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

const char *cr_header(struct MHD_Connection *c, const char *name)
{
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

void cr_hash_text(const char *text, char hex[65])
{
    struct cr_sha256 h;
    cr_sha256_init(&h);
    cr_sha256_add(&h, text, strlen(text));
    cr_sha256_hex(&h, hex);
}

const char *cr_access_key(struct MHD_Connection *c)
{
    const char *bearer = cr_header(c, "Authorization"), *key = cr_header(c, "x-api-key");
    if (bearer && strncasecmp(bearer, "Bearer ", 7) == 0)
        return bearer + 7;
    return key ? key : "";
}

/* Digests are compared, so that neither length nor prefix of the key leaks. */
static bool key_is(const char *key, const char hash[65])
{
    char hex[65];
    cr_hash_text(key, hex);
    return cr_sha256_equal(hex, hash);
}

static int refuse_key(const cr_server *s, struct MHD_Connection *c, const struct cr_route *r,
                      const char **msg)
{
    static const char *const in_query[] = {"key", "api_key", "token", "access_token"};
    for (size_t i = 0; i < sizeof in_query / sizeof *in_query; i++)
        if (MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, in_query[i])) {
            *msg = "a key does not belong into the address; send it as a header";
            return 400;
        }
    const char *key = cr_access_key(c);
    bool admin = s->opt.admin_key && key_is(key, s->admin_hash);
    if (r && r->access == CR_ADMIN && s->opt.admin_key && !admin) {
        *msg = "want the administrator's key";
        return *key ? 403 : 401;
    }
    if (s->opt.key && !admin && !key_is(key, s->key_hash)) {
        *msg = "want the right key as \"Authorization: Bearer KEY\"";
        return 401;
    }
    return 0;
}

static int refuse_body(const cr_server *s, struct MHD_Connection *c, const char **msg)
{
    const char *type = cr_header(c, "Content-Type");
    if (!type || strncasecmp(type, "application/json", 16) != 0 || !strchr("; \t", type[16])) {
        *msg = "want Content-Type: application/json";
        return 415;
    }
    const char *length = cr_header(c, "Content-Length");
    if (header_times(c, "Content-Length") > 1 || (length && cr_header(c, "Transfer-Encoding"))) {
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

int cr_access_refuse(const cr_server *s, struct MHD_Connection *c, const struct cr_route *r,
                     bool post, const char **msg)
{
    const char *host = cr_header(c, "Host"), *origin = cr_header(c, "Origin");
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
    int http = r && r->access == CR_PAGE ? 0 : refuse_key(s, c, r, msg);
    return http || !post ? http : refuse_body(s, c, msg);
}
