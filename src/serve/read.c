/* SPDX-License-Identifier: Apache-2.0 */
/* Strict readers of fields that several dialects share. */
#include "serve/read.h"

#include "adapt/worked.h"
#include "base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool cr_read_bad(struct cr_reader *in, const char *param, const char *fmt, ...)
{
    char msg[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    if (!in->e->http)
        cr_api_error_set(in->e, 400, param, NULL, "%s: %s", param, msg);
    return false;
}

bool cr_read_no_memory(struct cr_reader *in)
{
    if (!in->e->http)
        cr_api_error_set(in->e, 503, NULL, NULL, "out of memory");
    return false;
}

json_t *cr_read_field(const struct cr_reader *in, const char *name)
{
    json_t *v = json_object_get(in->root, name);
    return json_is_null(v) ? NULL : v;
}

bool cr_read_int(struct cr_reader *in, const char *name, int64_t min, int64_t max, int64_t *out)
{
    json_t *v = cr_read_field(in, name);
    if (!v)
        return true;
    if (!json_is_integer(v))
        return cr_read_bad(in, name, "want an integer");
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return cr_read_bad(in, name, "want %lld to %lld, got %lld", (long long)min, (long long)max,
                           (long long)i);
    *out = i;
    return true;
}

bool cr_read_real(struct cr_reader *in, const char *name, double min, double max, float *out)
{
    json_t *v = cr_read_field(in, name);
    if (!v)
        return true;
    if (!json_is_number(v))
        return cr_read_bad(in, name, "want a number");
    double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return cr_read_bad(in, name, "want %g to %g, got %g", min, max, x);
    *out = (float)x;
    return true;
}

bool cr_read_bool(struct cr_reader *in, const char *name, bool *out)
{
    json_t *v = cr_read_field(in, name);
    if (!v)
        return true;
    if (!json_is_boolean(v))
        return cr_read_bad(in, name, "want true or false");
    *out = json_is_true(v);
    return true;
}

char *cr_read_copy(struct cr_reader *in, const char *param, json_t *v)
{
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v)) {
        cr_read_bad(in, param, json_is_string(v) ? "holds a NUL character" : "want a string");
        return NULL;
    }
    char *s = cr_strdup(json_string_value(v));
    if (!s)
        cr_read_no_memory(in);
    return s;
}

bool cr_read_string(struct cr_reader *in, const char *name, size_t min, char **out)
{
    json_t *v = cr_read_field(in, name);
    if (!v)
        return true;
    if (json_is_string(v) && json_string_length(v) < min)
        return cr_read_bad(in, name, "want a string that is not empty");
    char *s = cr_read_copy(in, name, v);
    if (!s)
        return false;
    cr_free(*out);
    *out = s;
    return true;
}

static bool is_harmless(json_t *v)
{
    return !v || json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_string(v) &&
            (strcmp(json_string_value(v), "none") == 0 || json_string_length(v) == 0));
}

bool cr_read_refuse(struct cr_reader *in, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!is_harmless(cr_read_field(in, names[i])))
            return cr_read_bad(in, names[i], "is not supported by this server");
    return true;
}

bool cr_read_ignore(struct cr_reader *in, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (is_harmless(cr_read_field(in, names[i])))
            continue;
        if (!in->r->ignored)
            in->r->ignored = json_array();
        if (json_array_append_new(in->r->ignored, json_string(names[i])) != 0)
            return cr_read_no_memory(in);
    }
    return true;
}

bool cr_read_stop(struct cr_reader *in, const char *name)
{
    struct cr_api_request *r = in->r;
    json_t *v = cr_read_field(in, name);
    if (!v)
        return true;
    if (!json_is_string(v) && !json_is_array(v))
        return cr_read_bad(in, name, "want a string or an array of strings");
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > CR_API_MAX_STOP)
        return cr_read_bad(in, name, "want at most %d strings, got %zu", CR_API_MAX_STOP, n);
    for (size_t i = 0; i < n; i++) {
        json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        size_t len = json_string_length(s);
        if (!json_is_string(s) || len == 0 || len > CR_API_MAX_STOP_BYTES)
            return cr_read_bad(in, name, "element %zu: want a string of 1 to %d bytes", i,
                               CR_API_MAX_STOP_BYTES);
        if (!(r->stop[i] = cr_read_copy(in, name, s)))
            return false;
        r->n_stop = i + 1;
    }
    return true;
}

/* ---- messages --------------------------------------------------------------------------- */

bool cr_read_add_message(struct cr_reader *in, const char *role, char *content)
{
    struct cr_api_request *r = in->r;
    if (!content)
        return cr_read_no_memory(in);
    if (r->n_messages == CR_API_MAX_MESSAGES) {
        cr_free(content);
        return cr_read_bad(in, "messages", "want at most %d messages", CR_API_MAX_MESSAGES);
    }
    if ((r->n_messages & (r->n_messages - 1)) == 0) { /* a power of two: full */
        size_t cap = r->n_messages ? r->n_messages * 2 : 1;
        void *grown = cr_realloc(r->messages, cap, sizeof *r->messages);
        if (!grown) {
            cr_free(content);
            return cr_read_no_memory(in);
        }
        r->messages = grown;
    }
    r->messages[r->n_messages++] = (struct cr_message){role, content};
    return true;
}

static bool is_type(const char *type, const char *const *types)
{
    for (; type && *types; types++)
        if (strcmp(type, *types) == 0)
            return true;
    return false;
}

char *cr_read_content(struct cr_reader *in, const char *param, json_t *content,
                      const char *const *types)
{
    if (json_is_string(content))
        return cr_read_copy(in, param, content);
    if (!json_is_array(content)) {
        cr_read_bad(in, param, "content: want a string or an array of text parts");
        return NULL;
    }
    struct cr_buf b;
    cr_buf_init(&b, (size_t)1 << 26);
    size_t i;
    json_t *part;
    json_array_foreach(content, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        json_t *text = json_object_get(part, "text");
        if (!is_type(type, types)) {
            cr_read_bad(in, param, "content part %zu: want the type %s, got \"%s\"", i, types[0],
                        type ? type : "none");
            cr_buf_deinit(&b);
            return NULL;
        }
        char *copy = cr_read_copy(in, param, text);
        if (!copy) {
            cr_buf_deinit(&b);
            return NULL;
        }
        cr_buf_puts(&b, copy);
        cr_free(copy);
    }
    cr_buf_puts(&b, "");
    char *s = cr_buf_detach(&b, NULL);
    if (!s)
        cr_read_no_memory(in);
    return s;
}

/* ---- extensions ------------------------------------------------------------------------- */

static bool read_lora(struct cr_reader *in)
{
    json_t *v = cr_read_field(in, "lora"), *one;
    size_t i, n = json_array_size(v);
    if (!v)
        return true;
    if (!json_is_array(v) || n > CR_API_MAX_LORA)
        return cr_read_bad(in, "lora", "want an array of at most %d {\"id\", \"scale\"}",
                           CR_API_MAX_LORA);
    in->r->has_lora = true;
    if (!(in->r->lora = cr_alloc0(n, sizeof *in->r->lora)))
        return cr_read_no_memory(in);
    json_array_foreach(v, i, one)
    {
        json_t *id = json_object_get(one, "id"), *scale = json_object_get(one, "scale");
        double x = json_is_number(scale) ? json_number_value(scale) : NAN;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX || !(x >= -1000 && x <= 1000))
            return cr_read_bad(in, "lora",
                               "element %zu: want {\"id\": integer, \"scale\": -1000 to 1000}", i);
        in->r->lora[i].id = (int)json_integer_value(id);
        in->r->lora[i].scale = (float)x;
        in->r->n_lora = i + 1;
    }
    return true;
}

static bool read_adapters(struct cr_reader *in, json_t *v)
{
    if (!v || json_is_null(v) || (json_is_string(v) && strcmp(json_string_value(v), "auto") == 0))
        return true;
    if (!json_is_array(v) || json_array_size(v) != 1 || !json_is_string(json_array_get(v, 0)))
        return cr_read_bad(in, "crayon.adapters", "want \"auto\" or an array of one palette name");
    return (in->r->adapter = cr_read_copy(in, "crayon.adapters", json_array_get(v, 0))) != NULL;
}

bool cr_read_extension(struct cr_reader *in)
{
    static const char *const routes[] = {"auto", "device", "server"};
    static const char *const forms[] = {"auto", "task", "chat"};
    json_t *v = cr_read_field(in, "crayon");
    in->r->max_cost = NAN;
    in->r->worked = -1;
    if (!read_lora(in))
        return false;
    if (!v)
        return true;
    if (!json_is_object(v))
        return cr_read_bad(in, "crayon", "want an object");
    json_t *examples = json_object_get(v, "examples"), *route = json_object_get(v, "route"),
           *cost = json_object_get(v, "max_cost"), *worked = json_object_get(v, "worked"),
           *form = json_object_get(v, "form");
    if (worked && !json_is_null(worked)) {
        json_int_t n = json_is_integer(worked) ? json_integer_value(worked) : -1;
        if (n < 0 || n > CR_WORKED_MAX)
            return cr_read_bad(in, "crayon.worked", "want 0 to %d", CR_WORKED_MAX);
        in->r->worked = (int)n;
    }
    if (form && !json_is_null(form)) {
        size_t k = 0;
        while (k < 3 && (!json_is_string(form) || strcmp(json_string_value(form), forms[k])))
            k++;
        if (k == 3)
            return cr_read_bad(in, "crayon.form", "want \"auto\", \"task\" or \"chat\"");
        in->r->form = (enum cr_api_form)k;
    }
    if (examples && !json_is_null(examples)) {
        if (!json_is_array(examples) || json_array_size(examples) == 0 ||
            json_array_size(examples) > 256)
            return cr_read_bad(in, "crayon.examples", "want an array of 1 to 256 examples");
        in->r->examples = json_incref(examples);
    }
    if (route && !json_is_null(route)) {
        size_t k = 0;
        while (k < 3 && (!json_is_string(route) || strcmp(json_string_value(route), routes[k])))
            k++;
        if (k == 3)
            return cr_read_bad(in, "crayon.route", "want \"auto\", \"device\" or \"server\"");
        if (!(in->r->route = cr_strdup(routes[k])))
            return cr_read_no_memory(in);
    }
    if (cost && !json_is_null(cost)) {
        if (!json_is_number(cost) || !(json_number_value(cost) >= 0))
            return cr_read_bad(in, "crayon.max_cost", "want a number of 0 or more");
        in->r->max_cost = json_number_value(cost);
    }
    return read_adapters(in, json_object_get(v, "adapters"));
}
