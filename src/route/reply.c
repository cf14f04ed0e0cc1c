/* SPDX-License-Identifier: Apache-2.0 */
/* Reads chat completions, whole or as server-sent events. jansson refuses bad UTF-8, duplicate keys
 * and deep nesting; the ceilings on line and text are ours. */
#include "route/reply.h"

#include <jansson.h>
#include <string.h>

void cr_reply_init(struct cr_reply *r, size_t max_text)
{
    *r = (struct cr_reply){.tokens_in = -1, .tokens_out = -1};
    cr_buf_init(&r->text, max_text);
    cr_buf_init(&r->line, CR_REPLY_MAX_LINE);
}

void cr_reply_deinit(struct cr_reply *r)
{
    cr_buf_deinit(&r->text);
    cr_buf_deinit(&r->line);
}

static json_t *parse(const char *data, size_t len, struct cr_error *err)
{
    json_error_t e;
    json_t *root = json_loadb(data, len, JSON_REJECT_DUPLICATES, &e);
    if (!root)
        cr_error_set(err, CR_NETWORK, "the reply is no valid JSON: %s at byte %d of %zu", e.text,
                     e.position, len);
    else if (!json_is_object(root)) {
        cr_error_set(err, CR_NETWORK, "the reply is no JSON object");
        json_decref(root);
        root = NULL;
    }
    return root;
}

/* Borrowed text of the error that an object carries; NULL when it carries none. */
static const char *error_of(const json_t *root)
{
    const json_t *e = json_object_get(root, "error");
    if (!e || json_is_null(e))
        return NULL;
    if (json_is_string(e))
        return json_string_value(e);
    const char *msg = json_string_value(json_object_get(e, "message"));
    return msg ? msg : "an error without a message";
}

static void copy_printable(char *out, size_t size, const char *s)
{
    struct cr_error tmp; /* cr_error_set makes any bytes printable */
    cr_error_set(&tmp, CR_NETWORK, "%s", s);
    size_t n = strlen(tmp.msg);
    if (n >= size) {
        n = size - 1;
        while (n && ((unsigned char)tmp.msg[n] & 0xc0) == 0x80) /* not inside a character */
            n--;
    }
    memcpy(out, tmp.msg, n);
    out[n] = '\0';
}

void cr_reply_error_text(const char *body, size_t len, char *out, size_t size)
{
    out[0] = '\0';
    json_t *root = json_loadb(body, len, JSON_REJECT_DUPLICATES, NULL);
    const char *msg = json_is_object(root) ? error_of(root) : NULL;
    if (!msg)
        msg = json_string_value(json_object_get(root, "detail"));
    if (!msg)
        msg = json_string_value(json_object_get(root, "message"));
    if (msg)
        copy_printable(out, size, msg);
    json_decref(root);
}

static int64_t count_of(const json_t *usage, const char *name)
{
    const json_t *v = json_object_get(usage, name);
    return json_is_integer(v) && json_integer_value(v) >= 0 ? json_integer_value(v) : -1;
}

static void take_usage(struct cr_reply *r, const json_t *root)
{
    const json_t *usage = json_object_get(root, "usage");
    if (!json_is_object(usage))
        return;
    r->tokens_in = count_of(usage, "prompt_tokens");
    r->tokens_out = count_of(usage, "completion_tokens");
}

static void take_finish(struct cr_reply *r, const json_t *choice)
{
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    if (!finish)
        return;
    copy_printable(r->finish, sizeof r->finish, finish);
    r->done = true;
}

static enum cr_status add_text(struct cr_reply *r, const char *s, size_t n, struct cr_error *err)
{
    if (n == 0)
        return CR_OK;
    if (!cr_buf_add(&r->text, s, n))
        return cr_error_set(err, CR_NETWORK, "the answer is longer than %zu bytes", r->text.max);
    if (r->on_text && !r->on_text(r->ud, s, n))
        return cr_error_set(err, CR_CANCELLED, "stopped by the reader of the stream");
    return CR_OK;
}

/* The first choice's text under `field` ("message" or "delta"). */
static enum cr_status take_choice(struct cr_reply *r, const json_t *root, const char *field,
                                  struct cr_error *err)
{
    const json_t *choices = json_object_get(root, "choices");
    if (!json_is_array(choices))
        return cr_error_set(err, CR_NETWORK, "the reply has no array \"choices\"");
    const json_t *choice = json_array_get(choices, 0);
    if (!choice) /* the usage chunk of a stream */
        return CR_OK;
    const json_t *content = json_object_get(json_object_get(choice, field), "content");
    enum cr_status st = CR_OK;
    if (json_is_string(content)) {
        st = add_text(r, json_string_value(content), json_string_length(content), err);
        r->n_pieces += json_string_length(content) > 0;
    } else if (content && !json_is_null(content)) {
        st = cr_error_set(err, CR_NETWORK, "the reply's \"content\" is no string");
    }
    if (st == CR_OK)
        take_finish(r, choice);
    return st;
}

static enum cr_status take_object(struct cr_reply *r, const char *data, size_t len,
                                  const char *field, struct cr_error *err)
{
    json_t *root = parse(data, len, err);
    if (!root)
        return CR_NETWORK;
    char text[200];
    const char *msg = error_of(root);
    enum cr_status st;
    if (msg) {
        copy_printable(text, sizeof text, msg);
        st = cr_error_set(err, CR_NETWORK, "the server says: %s", text);
    } else {
        st = take_choice(r, root, field, err);
        take_usage(r, root);
    }
    json_decref(root);
    return st;
}

enum cr_status cr_reply_json(struct cr_reply *r, const char *body, size_t len, struct cr_error *err)
{
    enum cr_status st = take_object(r, body, len, "message", err);
    if (st == CR_OK && r->text.len == 0)
        st = cr_error_set(err, CR_NETWORK, "the reply holds no text");
    return st;
}

static enum cr_status take_line(struct cr_reply *r, struct cr_error *err)
{
    const char *s = r->line.data;
    size_t n = r->line.len;
    if (n < 5 || memcmp(s, "data:", 5) != 0) /* empty, comment, event:, id:, retry: */
        return CR_OK;
    s += 5;
    n -= 5;
    while (n && *s == ' ') {
        s++;
        n--;
    }
    if (n == 6 && memcmp(s, "[DONE]", 6) == 0) {
        r->done = true;
        return CR_OK;
    }
    return n ? take_object(r, s, n, "delta", err) : CR_OK;
}

enum cr_status cr_reply_feed(struct cr_reply *r, const char *data, size_t n, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    while (n && st == CR_OK) {
        size_t k = 0; /* a line ends with \n, \r or \r\n */
        while (k < n && data[k] != '\n' && data[k] != '\r')
            k++;
        if (r->after_cr && data[0] == '\n') {
            r->after_cr = false;
            data++;
            n--;
            continue;
        }
        r->after_cr = false;
        if (!cr_buf_add(&r->line, data, k))
            return cr_error_set(err, CR_NETWORK, "a line of the stream is longer than %d bytes",
                                CR_REPLY_MAX_LINE);
        if (k == n)
            break;
        r->after_cr = data[k] == '\r';
        st = take_line(r, err);
        r->line.len = 0;
        data += k + 1;
        n -= k + 1;
    }
    return st;
}

enum cr_status cr_reply_end(struct cr_reply *r, struct cr_error *err)
{
    enum cr_status st = r->line.len ? take_line(r, err) : CR_OK;
    r->line.len = 0;
    if (st == CR_OK && !r->done)
        st = cr_error_set(err, CR_NETWORK, "the stream ended after %zu bytes of text, unfinished",
                          r->text.len);
    if (st == CR_OK && r->text.len == 0)
        st = cr_error_set(err, CR_NETWORK, "the stream holds no text");
    return st;
}
