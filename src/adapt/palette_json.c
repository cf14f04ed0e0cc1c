/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of palettes; the format is in docs/formats.md. Reading is strict: every key must be
 * there and known, every number finite and in range, so that what is loaded is what was meant.
 */
#include "adapt/palette.h"

#include "base/arena.h"
#include "base/mem.h"

#ifdef CRAYON_JSON
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    VERSION = 1,     /* without worked examples: what every reader knows */
    WITH_WORKED = 2, /* one key more */
    MAX_WEIGHTS = 1024,
    MAX_DIM = 1 << 15,
    MAX_TEXT = 4096,
    MAX_EXAMPLES = 1000000,
    MAX_CHOICES = 256
};
static const double MAX_WEIGHT = 1000;

/* ---- base64 (RFC 4648) of float16 ---- */

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static char *encode_f16(const float *v, int n)
{
    size_t bytes = (size_t)n * 2, len = (bytes + 2) / 3 * 4;
    char *out = cr_alloc(len + 1, 1);
    for (size_t i = 0, at = 0; out && i < bytes; i += 3) {
        uint32_t group = 0;
        for (size_t j = 0; j < 3; j++) {
            size_t k = i + j;
            uint16_t h = k < bytes ? cr_f32_to_f16(v[k / 2]) : 0;
            group = group << 8 | (k % 2 ? h >> 8 : h & 255u);
        }
        for (size_t j = 0; j < 4; j++)
            out[at++] = i + j > bytes ? '=' : digits[group >> (18 - 6 * j) & 63];
    }
    if (out)
        out[len] = '\0';
    return out;
}

/* False when text is not the base64 of exactly n float16, or one is not finite. */
static bool decode_f16(const char *text, float *v, int n)
{
    size_t bytes = (size_t)n * 2, len = (bytes + 2) / 3 * 4;
    if (strlen(text) != len)
        return false;
    uint16_t h = 0;
    for (size_t i = 0; i < len / 4; i++) {
        uint32_t group = 0;
        for (size_t j = 0; j < 4; j++) {
            const char *d = strchr(digits, text[4 * i + j]);
            bool pad = 3 * i + j > bytes;
            if (pad ? text[4 * i + j] != '=' : !d)
                return false;
            group = group << 6 | (pad ? 0 : (uint32_t)(d - digits));
        }
        for (size_t j = 0; j < 3 && 3 * i + j < bytes; j++) {
            size_t k = 3 * i + j;
            uint32_t byte = group >> (16 - 8 * j) & 255u;
            h = (uint16_t)(k % 2 ? h | byte << 8 : byte);
            if (k % 2 && !isfinite(v[k / 2] = cr_f16_to_f32(h)))
                return false;
        }
    }
    return true;
}

/* ---- reading ---- */

struct reader {
    const char *name;
    struct cr_error *err;
    enum cr_status status; /* the first failure; later reads do nothing */
};

static void bad(struct reader *r, const char *key, const char *want)
{
    if (!r->status)
        r->status = cr_error_set(r->err, CR_FORMAT, "%s: \"%s\": want %s", r->name, key, want);
}

/* Every key of o is in `known` (ends with NULL), and every one of them is there. */
static bool has_keys(struct reader *r, const json_t *o, const char *where, const char *const *known)
{
    const char *key;
    json_t *value;
    if (!json_is_object(o)) {
        bad(r, where, "an object");
        return false;
    }
    json_object_foreach((json_t *)(uintptr_t)o, key, value)
    {
        int i = 0;
        while (known[i] && strcmp(known[i], key))
            i++;
        if (!known[i]) {
            if (!r->status)
                r->status = cr_error_set(r->err, CR_FORMAT, "%s: unknown key \"%.60s\" in \"%s\"",
                                         r->name, key, where);
            return false;
        }
    }
    for (int i = 0; known[i]; i++)
        if (!json_object_get(o, known[i]))
            bad(r, known[i], "a value, it is missing");
    return !r->status;
}

static char *text(struct reader *r, const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v) || json_string_length(v) > MAX_TEXT) {
        bad(r, key, "a string of at most 4096 bytes");
        return NULL;
    }
    char *s = cr_strdup(json_string_value(v));
    if (!s && !r->status)
        r->status = cr_error_set(r->err, CR_NO_MEMORY, "%s: out of memory", r->name);
    return s;
}

/* 64 hex digits, or nothing where that is allowed. */
static char *hash(struct reader *r, const json_t *o, const char *key, bool may_be_empty)
{
    char *s = text(r, o, key);
    if (s && strspn(s, "0123456789abcdef") == 64 && !s[64])
        return s;
    if (s && !(may_be_empty && !*s))
        bad(r, key, "64 hex digits");
    return s;
}

static float number(struct reader *r, const json_t *v, const char *key, double max)
{
    double x = json_is_number(v) ? json_number_value(v) : NAN;
    if (!(fabs(x) <= max)) {
        bad(r, key, max == MAX_WEIGHT ? "numbers within +-1000" : "a number in its range");
        return 0;
    }
    return (float)x;
}

/* null means: not measured. */
static float number_or_nan(struct reader *r, const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NAN : number(r, v, key, 1e9);
}

static int integer(struct reader *r, const json_t *o, const char *key, int max)
{
    const json_t *v = json_object_get(o, key);
    json_int_t i = json_is_integer(v) ? json_integer_value(v) : -1;
    if (i < 0 || i > max) {
        bad(r, key, "a whole number of 0 or more in its range");
        return 0;
    }
    return (int)i;
}

static int choice(struct reader *r, const json_t *o, const char *key, int (*by_name)(const char *))
{
    const json_t *v = json_object_get(o, key);
    int i = json_is_string(v) ? by_name(json_string_value(v)) : -1;
    if (i < 0)
        bad(r, key, "a known name");
    return i < 0 ? 0 : i;
}

static float *numbers(struct reader *r, const json_t *v, const char *key, size_t n)
{
    float *out = cr_alloc(n, sizeof *out);
    if (!out && !r->status)
        r->status = cr_error_set(r->err, CR_NO_MEMORY, "%s: out of memory", r->name);
    for (size_t i = 0; out && i < n; i++)
        out[i] = number(r, json_array_get(v, i), key, MAX_WEIGHT);
    return out;
}

static void read_weights(struct reader *r, const json_t *o, cr_palette *p)
{
    const json_t *v = json_object_get(o, "weights");
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > MAX_WEIGHTS) {
        bad(r, "weights", "an array of at most 1024 numbers");
        return;
    }
    p->weights = numbers(r, v, "weights", n);
    bool any = !n;
    for (size_t i = 0; p->weights && i < n; i++)
        any |= p->weights[i] != 0;
    if (!any)
        bad(r, "weights", "one that is not 0 (an empty array keeps the base model)");
    p->n = (int)n;
}

static void read_embedding(struct reader *r, const json_t *o, cr_palette *p)
{
    static const char *const keys[] = {"dim", "f16", NULL};
    const json_t *e = json_object_get(o, "embedding");
    if (!has_keys(r, e, "embedding", keys))
        return;
    p->dim = integer(r, e, "dim", MAX_DIM);
    const char *s = json_string_value(json_object_get(e, "f16"));
    p->q_c = cr_alloc((size_t)p->dim, sizeof *p->q_c);
    if (!p->q_c && !r->status)
        r->status = cr_error_set(r->err, CR_NO_MEMORY, "%s: out of memory", r->name);
    if (p->q_c && (!s || !decode_f16(s, p->q_c, p->dim)))
        bad(r, "f16", "base64 of dim finite float16 numbers");
}

/* The knots of one score: as many as there are, ascending. */
static void knots(struct reader *r, const json_t *o, const char *key, float *out)
{
    const json_t *v = json_object_get(o, key);
    if (json_array_size(v) != CR_CALIBRATION_KNOTS) {
        bad(r, key, "33 numbers");
        return;
    }
    for (size_t i = 0; i < CR_CALIBRATION_KNOTS; i++) {
        out[i] = number(r, json_array_get(v, i), key, 1e9);
        if (i && out[i] < out[i - 1])
            bad(r, key, "numbers in ascending order");
    }
}

/* Counts below each knot: as many as there are, ascending, at most n. */
static void counts(struct reader *r, const json_t *o, const char *key, int *out, int n)
{
    const json_t *v = json_object_get(o, key);
    if (json_array_size(v) != CR_CALIBRATION_KNOTS) {
        bad(r, key, "33 counts");
        return;
    }
    for (size_t i = 0; i < CR_CALIBRATION_KNOTS; i++) {
        const json_t *x = json_array_get(v, i);
        json_int_t count = json_is_integer(x) ? json_integer_value(x) : -1;
        if (count < (i ? out[i - 1] : 0) || count > n) {
            bad(r, key, "counts in ascending order, none above the number of rows");
            return;
        }
        out[i] = (int)count;
    }
}

static void few_numbers(struct reader *r, const json_t *o, const char *key, float *out)
{
    const json_t *v = json_object_get(o, key);
    if (json_array_size(v) != CR_LEARNED_FEATURES) {
        bad(r, key, "10 numbers");
        return;
    }
    for (size_t i = 0; i < CR_LEARNED_FEATURES; i++)
        out[i] = number(r, json_array_get(v, i), key, 1e9);
}

static void read_learned(struct reader *r, const json_t *v, struct cr_learned *l)
{
    static const char *const keys[] = {"fitted", "rows",  "mean",  "std", "weight",
                                       "bias",   "knots", "wrong", NULL};
    if (!v || json_is_null(v) || !has_keys(r, v, "learned", keys))
        return;
    l->n_fitted = integer(r, v, "fitted", MAX_EXAMPLES);
    l->n_rows = integer(r, v, "rows", MAX_EXAMPLES);
    if (!l->n_rows)
        bad(r, "rows", "1 or more");
    few_numbers(r, v, "mean", l->mean);
    few_numbers(r, v, "std", l->std);
    few_numbers(r, v, "weight", l->weight);
    for (int i = 0; i < CR_LEARNED_FEATURES; i++)
        if (!(l->std[i] > 0))
            bad(r, "std", "numbers above 0");
    l->bias = number(r, json_object_get(v, "bias"), "bias", 1e9);
    knots(r, v, "knots", l->knots);
    counts(r, v, "wrong", l->wrong, l->n_rows);
}

static void read_wrong(struct reader *r, const json_t *v, struct cr_calibration *c)
{
    static const char *const keys[] = {"conf", "scope", "either", NULL};
    c->labelled = v && !json_is_null(v);
    if (!c->labelled || !has_keys(r, v, "wrong", keys))
        return;
    counts(r, v, "conf", c->wrong_conf, c->n_rows);
    if (c->has_scope) {
        counts(r, v, "scope", c->wrong_scope, c->n_rows);
        counts(r, v, "either", c->wrong_either, c->n_rows);
    } else if (!json_is_null(json_object_get(v, "scope")) ||
               !json_is_null(json_object_get(v, "either"))) {
        bad(r, "wrong", "null for scope and either, as the knots are");
    }
}

static void read_calibration(struct reader *r, const json_t *o, struct cr_calibration *c)
{
    static const char *const plain[] = {"rows", "answer", "conf", "scope", "either", NULL};
    static const char *const all[] = {"rows",   "answer", "conf",    "scope",
                                      "either", "wrong",  "learned", NULL};
    const json_t *v = json_object_get(o, "calibration");
    bool more = json_object_get(v, "wrong") || json_object_get(v, "learned");
    if (json_is_null(v) || !has_keys(r, v, "calibration", more ? all : plain))
        return;
    c->n_rows = integer(r, v, "rows", MAX_EXAMPLES);
    if (!c->n_rows)
        bad(r, "rows", "1 or more");
    const char *answer = json_string_value(json_object_get(v, "answer"));
    c->options = answer && !strcmp(answer, "options");
    if (!answer || (!c->options && strcmp(answer, "text")))
        bad(r, "answer", "\"text\" or \"options\"");
    knots(r, v, "conf", c->conf);
    const json_t *scope = json_object_get(v, "scope"), *either = json_object_get(v, "either");
    c->has_scope = !json_is_null(scope);
    if (c->has_scope == json_is_null(either))
        bad(r, "either", "null exactly where \"scope\" is null");
    if (c->has_scope) {
        knots(r, v, "scope", c->scope);
        knots(r, v, "either", c->either);
    }
    read_wrong(r, json_object_get(v, "wrong"), c);
    read_learned(r, json_object_get(v, "learned"), &c->learned);
}

static void read_measured(struct reader *r, const json_t *o, cr_palette *p)
{
    static const char *const keys[] = {"metric",      "before",     "after",
                                       "loss_before", "loss_after", NULL};
    const json_t *m = json_object_get(o, "measured");
    if (!has_keys(r, m, "measured", keys))
        return;
    p->metric = text(r, m, "metric");
    if (p->metric && *p->metric && strcmp(p->metric, "accuracy") && strcmp(p->metric, "exact") &&
        strcmp(p->metric, "loss"))
        bad(r, "metric", "accuracy, exact, loss or nothing");
    p->before = number_or_nan(r, m, "before");
    p->after = number_or_nan(r, m, "after");
    p->loss_before = number_or_nan(r, m, "loss_before");
    p->loss_after = number_or_nan(r, m, "loss_after");
}

static void read_scope(struct reader *r, const json_t *o, cr_palette *p)
{
    static const char *const keys[] = {"mean", "std", "near_mean", "near_std", NULL};
    const json_t *s = json_object_get(o, "scope");
    if (!has_keys(r, s, "scope", keys))
        return;
    p->scope_mean = number_or_nan(r, s, "mean");
    p->scope_std = number_or_nan(r, s, "std");
    p->near_mean = number_or_nan(r, s, "near_mean");
    p->near_std = number_or_nan(r, s, "near_std");
}

/* ---- worked examples ---- */

static void no_memory(struct reader *r)
{
    if (!r->status)
        r->status = cr_error_set(r->err, CR_NO_MEMORY, "%s: out of memory", r->name);
}

static bool known_of_worked(struct reader *r, const json_t *o)
{
    static const char *const known[] = {"question", "context", "choices", "answer"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, key, value)
    {
        size_t i = 0;
        while (i < 4 && strcmp(known[i], key))
            i++;
        if (i < 4)
            continue;
        if (!r->status)
            r->status = cr_error_set(r->err, CR_FORMAT, "%s: unknown key \"%.60s\" in \"worked\"",
                                     r->name, key);
        return false;
    }
    return true;
}

/* A copy in the palette's arena; NULL where the value is absent or there was an error. */
static char *worked_text(struct reader *r, const json_t *v, struct cr_arena *arena, const char *key)
{
    if (!v)
        return NULL;
    if (!json_is_string(v) || !json_string_length(v)) {
        bad(r, key, "a string that is not empty");
        return NULL;
    }
    char *s = cr_arena_strndup(arena, json_string_value(v), json_string_length(v));
    if (!s)
        no_memory(r);
    return s;
}

static void worked_choices(struct reader *r, const json_t *v, struct cr_arena *arena,
                           struct cr_example *e)
{
    size_t n = json_array_size(v);
    if (!v)
        return;
    if (!json_is_array(v) || n < 2 || n > MAX_CHOICES) {
        bad(r, "choices", "2 to 256 strings");
        return;
    }
    if (!(e->choices = cr_arena_alloc(arena, n, sizeof *e->choices)))
        no_memory(r);
    for (size_t i = 0; i < n && !r->status; i++) {
        e->choices[i] = worked_text(r, json_array_get(v, i), arena, "choices");
        if (!r->status && e->answer_index < 0 && !strcmp(e->choices[i], e->answer))
            e->answer_index = (int)i;
    }
    e->n_choices = (int)n;
    if (e->answer_index < 0)
        bad(r, "answer", "one of the choices");
}

static void read_one_worked(struct reader *r, const json_t *o, struct cr_arena *arena,
                            struct cr_example *e)
{
    *e = (struct cr_example){.task = (char *)(uintptr_t) "", .answer_index = -1};
    if (!json_object_get(o, "question") || !json_object_get(o, "answer")) {
        bad(r, "worked", "objects with a question and an answer");
        return;
    }
    if (!known_of_worked(r, o))
        return;
    e->question = worked_text(r, json_object_get(o, "question"), arena, "question");
    e->context = worked_text(r, json_object_get(o, "context"), arena, "context");
    e->answer = worked_text(r, json_object_get(o, "answer"), arena, "answer");
    if (!r->status)
        worked_choices(r, json_object_get(o, "choices"), arena, e);
}

static void read_worked(struct reader *r, const json_t *o, cr_palette *p)
{
    const json_t *v = json_object_get(o, "worked");
    size_t n = json_array_size(v), bytes = 0;
    if (!json_is_array(v) || !n || n > CR_WORKED_MAX) {
        bad(r, "worked", "1 to 16 examples");
        return;
    }
    p->worked.arena = cr_arena_new();
    p->worked.v = cr_alloc0(n, sizeof *p->worked.v);
    if (!p->worked.arena || !p->worked.v)
        no_memory(r);
    for (size_t i = 0; i < n && !r->status; i++) {
        read_one_worked(r, json_array_get(v, i), p->worked.arena, &p->worked.v[i]);
        if (!r->status)
            bytes += cr_palette_worked_bytes(&p->worked.v[i]);
        if (bytes > CR_PALETTE_WORKED_BYTES)
            bad(r, "worked", "at most 65536 bytes of text");
    }
    p->worked.n = r->status ? 0 : n;
}

static void read_palette(struct reader *r, const json_t *o, cr_palette *p)
{
    static const char *const keys[] = {"crayon",  "version",  "name",     "base",     "pool",
                                       "weights", "solver",   "level",    "view",     "embedding",
                                       "scope",   "examples", "held_out", "measured", "calibration",
                                       "created", "worked",   NULL};
    const char *plain[sizeof keys / sizeof *keys];
    static const char *const base_keys[] = {"name", "sha256", NULL};
    static const char *const pool_keys[] = {"path", "sha256", NULL};
    const char *kind = json_string_value(json_object_get(o, "crayon"));
    if (!kind || strcmp(kind, "palette")) {
        bad(r, "crayon", "\"palette\"");
        return;
    }
    int version = integer(r, o, "version", INT_MAX);
    if (version != VERSION && version != WITH_WORKED)
        bad(r, "version", "1 or 2");
    memcpy(plain, keys, sizeof keys);
    plain[sizeof keys / sizeof *keys - 2] = NULL; /* version 1: without "worked" */
    if (!has_keys(r, o, "palette", version == WITH_WORKED ? keys : plain))
        return;
    const json_t *base = json_object_get(o, "base"), *pool = json_object_get(o, "pool");
    if (!has_keys(r, base, "base", base_keys) || !has_keys(r, pool, "pool", pool_keys))
        return;
    p->name = text(r, o, "name");
    p->base_name = text(r, base, "name");
    p->base_hash = hash(r, base, "sha256", false);
    p->pool_path = text(r, pool, "path");
    read_weights(r, o, p);
    p->pool_hash = hash(r, pool, "sha256", p->n == 0);
    if (p->n && p->pool_path && !*p->pool_path)
        bad(r, "path", "the pool's path");
    p->solver = (enum cr_solver)choice(r, o, "solver", cr_solver_by_name);
    p->level = (enum cr_level)choice(r, o, "level", cr_level_by_name);
    p->view = (enum cr_view)choice(r, o, "view", cr_view_by_name);
    read_embedding(r, o, p);
    read_scope(r, o, p);
    p->n_examples = integer(r, o, "examples", MAX_EXAMPLES);
    p->n_held_out = integer(r, o, "held_out", MAX_EXAMPLES);
    read_measured(r, o, p);
    read_calibration(r, o, &p->calibration);
    p->created = text(r, o, "created");
    if (version == WITH_WORKED && !r->status)
        read_worked(r, o, p);
}

enum cr_status cr_palette_parse(cr_palette **out, const char *json, size_t len, const char *name,
                                struct cr_error *err)
{
    *out = NULL;
    json_error_t je;
    json_t *o = json_loadb(json, len, JSON_REJECT_DUPLICATES, &je);
    if (!o)
        return cr_error_set_at(err, CR_FORMAT, (uint64_t)(je.line > 0 ? je.line : 0),
                               "%s: not valid JSON in line %d: %s", name, je.line, je.text);
    struct reader r = {.name = name, .err = err};
    cr_palette *p = cr_alloc0(1, sizeof *p);
    if (!p)
        r.status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", name);
    else
        read_palette(&r, o, p);
    json_decref(o);
    if (r.status)
        cr_palette_close(p);
    else
        *out = p;
    return r.status;
}

/* ---- writing ---- */

static json_t *real(float v)
{
    return isfinite(v) ? json_real((double)v) : json_null();
}

static json_t *reals(const float *v, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, real(v[i]));
    return a;
}

static json_t *str(const char *s)
{
    return json_string(s ? s : "");
}

static json_t *integers(const int *v)
{
    json_t *a = json_array();
    for (int i = 0; i < CR_CALIBRATION_KNOTS; i++)
        json_array_append_new(a, json_integer(v[i]));
    return a;
}

static json_t *learned(const struct cr_learned *l)
{
    const int n = CR_LEARNED_FEATURES;
    if (!l->n_rows)
        return json_null();
    return json_pack("{s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o}", "fitted", l->n_fitted, "rows",
                     l->n_rows, "mean", reals(l->mean, n), "std", reals(l->std, n), "weight",
                     reals(l->weight, n), "bias", real(l->bias), "knots",
                     reals(l->knots, CR_CALIBRATION_KNOTS), "wrong", integers(l->wrong));
}

static json_t *calibration(const struct cr_calibration *c)
{
    if (!c->n_rows)
        return json_null();
    const int n = CR_CALIBRATION_KNOTS;
    json_t *o = json_pack("{s:i, s:s, s:o, s:o, s:o}", "rows", c->n_rows, "answer",
                          c->options ? "options" : "text", "conf", reals(c->conf, n), "scope",
                          c->has_scope ? reals(c->scope, n) : json_null(), "either",
                          c->has_scope ? reals(c->either, n) : json_null());
    if (o && (c->labelled || c->learned.n_rows)) {
        json_t *scope = c->has_scope ? integers(c->wrong_scope) : json_null();
        json_t *either = c->has_scope ? integers(c->wrong_either) : json_null();
        json_t *wrong = json_pack("{s:o, s:o, s:o}", "conf", integers(c->wrong_conf), "scope",
                                  scope, "either", either);
        json_object_set_new(o, "wrong", c->labelled ? wrong : json_null());
        if (!c->labelled)
            json_decref(wrong);
        json_object_set_new(o, "learned", learned(&c->learned));
    }
    return o;
}

static json_t *worked(const struct cr_examples *w)
{
    json_t *list = json_array();
    for (size_t i = 0; i < w->n; i++) {
        const struct cr_example *e = &w->v[i];
        json_t *one = json_pack("{s:s, s:s*}", "question", e->question, "context", e->context);
        json_t *choices = json_array();
        for (int k = 0; k < e->n_choices; k++)
            json_array_append_new(choices, str(e->choices[k]));
        if (e->n_choices)
            json_object_set(one, "choices", choices);
        json_decref(choices);
        json_object_set_new(one, "answer", str(e->answer));
        json_array_append_new(list, one);
    }
    return list;
}

/* The pool's path as the palette should name it: relative when the pool lies in or below the
 * palette's folder, so that both can move together, else absolute. NULL: out of memory. */
static char *name_pool(const char *pool, const char *palette)
{
    const char *slash = strrchr(palette, '/');
    char *dir = slash ? cr_strndup(palette, (size_t)(slash - palette) + 1) : cr_strdup("./");
    char real_dir[PATH_MAX], real_pool[PATH_MAX];
    char *out = NULL;
    if (dir && *pool && realpath(dir, real_dir) && realpath(pool, real_pool)) {
        size_t n = strlen(real_dir);
        bool below = !strncmp(real_dir, real_pool, n) && real_pool[n] == '/';
        out = cr_strdup(below ? real_pool + n + 1 : real_pool);
    } else if (dir) {
        out = cr_strdup(pool);
    }
    cr_free(dir);
    return out;
}

static json_t *to_json(const cr_palette *p, const char *pool_path, const char *q_c)
{
    return json_pack(
        "{s:s, s:i, s:o, s:{s:o, s:o}, s:{s:s, s:o}, s:o, s:s, s:s, s:s, s:{s:i, s:s},"
        " s:{s:o, s:o, s:o, s:o}, s:i, s:i, s:{s:o, s:o, s:o, s:o, s:o}, s:o, s:o}",
        "crayon", "palette", "version", p->worked.n ? WITH_WORKED : VERSION, "name", str(p->name),
        "base", "name", str(p->base_name), "sha256", str(p->base_hash), "pool", "path", pool_path,
        "sha256", str(p->pool_hash), "weights", reals(p->weights, p->n), "solver",
        cr_solver_name(p->solver), "level", cr_level_name(p->level), "view", cr_view_name(p->view),
        "embedding", "dim", p->dim, "f16", q_c, "scope", "mean", real(p->scope_mean), "std",
        real(p->scope_std), "near_mean", real(p->near_mean), "near_std", real(p->near_std),
        "examples", p->n_examples, "held_out", p->n_held_out, "measured", "metric", str(p->metric),
        "before", real(p->before), "after", real(p->after), "loss_before", real(p->loss_before),
        "loss_after", real(p->loss_after), "calibration", calibration(&p->calibration), "created",
        str(p->created));
}

/* One key a line, values compact: readable, and still about a kilobyte. */
static bool print(const json_t *o, struct cr_buf *b)
{
    const char *key, *comma = "{\n";
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, key, value)
    {
        char *s = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        if (!s)
            return false;
        cr_buf_printf(b, "%s\"%s\": ", comma, key);
        cr_buf_puts(b, s);
        void (*release)(void *);
        json_get_alloc_funcs(NULL, &release);
        release(s);
        comma = ",\n";
    }
    return cr_buf_puts(b, "\n}\n");
}

char *cr_palette_text(const cr_palette *p, const char *path, size_t *len, struct cr_error *err)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    char *pool = name_pool(p->n && p->pool_path ? p->pool_path : "", path), *text = NULL;
    char *q_c = encode_f16(p->q_c, p->dim);
    json_t *o = pool && q_c ? to_json(p, pool, q_c) : NULL;
    if (o && p->worked.n && json_object_set_new(o, "worked", worked(&p->worked))) {
        json_decref(o);
        o = NULL;
    }
    cr_palette *check = NULL;
    if (!o || !print(o, &b))
        cr_error_set(err, pool && q_c ? CR_INVALID : CR_NO_MEMORY,
                     "%s: the palette cannot be written: out of memory, or text that is no UTF-8",
                     path);
    else if (cr_palette_parse(&check, b.data, b.len, path, err) ==
                 CR_OK && /* it must be readable */
             !(text = cr_buf_detach(&b, len)))
        cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    cr_palette_close(check);
    json_decref(o);
    cr_free(q_c);
    cr_free(pool);
    cr_buf_deinit(&b);
    return text;
}

enum cr_status cr_palette_write(const cr_palette *p, const char *path, struct cr_error *err)
{
    struct cr_error local;
    size_t len;
    err = err ? err : &local;
    char *text = cr_palette_text(p, path, &len, err);
    enum cr_status st = text ? cr_file_write(path, text, len, err) : err->status;
    cr_free(text);
    return st;
}

#else /* CRAYON_JSON */

enum cr_status cr_palette_parse(cr_palette **out, const char *json, size_t len, const char *name,
                                struct cr_error *err)
{
    (void)json;
    (void)len;
    *out = NULL;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: built without JSON", name);
}

char *cr_palette_text(const cr_palette *p, const char *path, size_t *len, struct cr_error *err)
{
    (void)p;
    *len = 0;
    cr_error_set(err, CR_UNSUPPORTED, "%s: built without JSON", path);
    return NULL;
}

enum cr_status cr_palette_write(const cr_palette *p, const char *path, struct cr_error *err)
{
    (void)p;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: built without JSON", path);
}

#endif
