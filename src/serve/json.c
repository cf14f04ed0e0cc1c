/* SPDX-License-Identifier: Apache-2.0 */
/* JSON in and out of strings, and the error objects of the dialects. */
#include "serve/api.h"

#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void cr_api_error_set(struct cr_api_error *e, int http, const char *param, const char *code,
                      const char *fmt, ...)
{
    struct cr_error printable; /* cr_error_set makes the text safe to show */
    char msg[sizeof printable.msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    cr_error_set(&printable, CR_INVALID, "%s", msg);
    *e = (struct cr_api_error){.http = http, .code = code};
    e->type = http == 401   ? "authentication_error"
              : http == 403 ? "permission_error"
              : http == 503 ? "overloaded_error"
              : http >= 500 ? "server_error"
                            : "invalid_request_error";
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    memcpy(e->msg, printable.msg, sizeof e->msg);
}

void cr_api_error_from(struct cr_api_error *e, const struct cr_error *err)
{
    if (err->status == CR_LIMIT)
        cr_api_error_set(e, 400, "messages", "context_length_exceeded", "%s", err->msg);
    else
        cr_api_error_set(e, cr_status_http(err->status), NULL, NULL, "%s", err->msg);
}

json_t *cr_api_error_json(enum cr_api_kind kind, const struct cr_api_error *e)
{
    json_t *msg = cr_api_text(e->msg, strlen(e->msg));
    const char *claude = e->http == 404                     ? "not_found_error"
                         : e->http >= 500 && e->http != 503 ? "api_error"
                                                            : e->type;
    if (kind == CR_API_MESSAGES || kind == CR_API_COUNT_TOKENS)
        return json_pack("{s:s, s:{s:s, s:o}}", "type", "error", "error", "type", claude, "message",
                         msg);
    if (kind == CR_API_OLLAMA_CHAT || kind == CR_API_OLLAMA_GENERATE || kind == CR_API_OLLAMA_EMBED)
        return json_pack("{s:o}", "error", msg);
    return json_pack("{s:{s:o, s:s, s:s?, s:s?}}", "error", "message", msg, "type", e->type,
                     "param", e->param[0] ? e->param : NULL, "code", e->code);
}

json_t *cr_api_load(const char *body, size_t len, struct cr_api_error *e)
{
    json_error_t where;
    json_t *root =
        json_loadb(body ? body : "", len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!root) {
        cr_api_error_set(e, 400, NULL, NULL, "body is not JSON: %s at byte %d", where.text,
                         where.position);
    } else if (!json_is_object(root)) {
        cr_api_error_set(e, 400, NULL, NULL, "body: want a JSON object");
        json_decref(root);
        root = NULL;
    }
    return root;
}

void cr_api_put(json_t *object, const char *key, json_t *v, bool *ok)
{
    if (json_object_set_new(object, key, v) != 0)
        *ok = false;
}

json_t *cr_api_text(const char *text, size_t n)
{
    json_t *whole = json_stringn(n ? text : "", n);
    if (whole)
        return whole;
    struct cr_buf b;
    cr_buf_init(&b, n * 3 + 1);
    for (size_t i = 0; i < n;) {
        size_t k = 1;
        json_t *one = NULL;
        for (; k <= 4 && i + k <= n && !(one = json_stringn(text + i, k)); k++) {
        }
        if (one) {
            cr_buf_add(&b, text + i, k);
            json_decref(one);
            i += k;
        } else {
            cr_buf_puts(&b, "\xef\xbf\xbd");
            i++;
        }
    }
    json_t *v = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.len);
    cr_buf_deinit(&b);
    return v;
}

json_t *cr_api_token_text(const char *bytes, size_t n)
{
    json_t *v = json_stringn(n ? bytes : "", n);
    if (v)
        return v;
    char text[6 + 4 * 64 + 1] = "bytes:";
    size_t len = 6;
    for (size_t i = 0; i < n && i < 64; i++)
        len += (size_t)snprintf(text + len, sizeof text - len, "\\x%02x", (uint8_t)bytes[i]);
    return json_stringn(text, len);
}

static int add_bytes(const char *data, size_t n, void *b)
{
    return cr_buf_add(b, data, n) ? 0 : -1;
}

bool cr_api_dump(struct cr_buf *b, const char *before, json_t *v, const char *after)
{
    return v && cr_buf_puts(b, before) &&
           json_dump_callback(v, add_bytes, b, JSON_COMPACT | JSON_ENCODE_ANY) == 0 &&
           cr_buf_puts(b, after);
}

char *cr_api_string(json_t *v, size_t *len)
{
    struct cr_buf b;
    cr_buf_init(&b, (size_t)1 << 27);
    if (!cr_api_dump(&b, "", v, "")) {
        cr_buf_deinit(&b);
        return NULL;
    }
    return cr_buf_detach(&b, len);
}
