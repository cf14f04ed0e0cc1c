/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors, read and written. The header is JSON from an untrusted file, so every number is
 * checked before it is used; the data is only pointed to. Rules as in the format's own reader: the
 * ranges, sorted, must cover the data exactly, so nothing overlaps and nothing hides between.
 */
#include "adapt/safetensors.h"

#include "adapt/json_text.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

void cr_safetensors_deinit(struct cr_safetensors *st)
{
    for (size_t i = 0; i < st->n; i++)
        cr_free(st->tensors[i].name);
    for (size_t i = 0; i < st->n_notes; i++) {
        cr_free(st->notes[i].key);
        cr_free(st->notes[i].value);
    }
    cr_free(st->tensors);
    cr_free(st->notes);
    *st = (struct cr_safetensors){0};
}

const struct cr_st_tensor *cr_safetensors_find(const struct cr_safetensors *st, const char *name)
{
    for (size_t i = 0; i < st->n; i++)
        if (strcmp(st->tensors[i].name, name) == 0)
            return &st->tensors[i];
    return NULL;
}

const char *cr_safetensors_note(const struct cr_safetensors *st, const char *key)
{
    for (size_t i = 0; i < st->n_notes; i++)
        if (strcmp(st->notes[i].key, key) == 0)
            return st->notes[i].value;
    return NULL;
}

#ifdef CRAYON_JSON
enum { SHOWN = 100 }; /* bytes of a name that go into a message */

static const struct {
    const char *name;
    uint32_t type;
    unsigned size;
} dtypes[] = {{"F32", CR_F32, 4},          {"F16", CR_F16, 2},         {"BF16", CR_BF16, 2},
              {"F64", CR_TYPE_END, 8},     {"I64", CR_TYPE_END, 8},    {"U64", CR_TYPE_END, 8},
              {"I32", CR_TYPE_END, 4},     {"U32", CR_TYPE_END, 4},    {"I16", CR_TYPE_END, 2},
              {"U16", CR_TYPE_END, 2},     {"I8", CR_TYPE_END, 1},     {"U8", CR_TYPE_END, 1},
              {"BOOL", CR_TYPE_END, 1},    {"C64", CR_TYPE_END, 8},    {"F8_E4M3", CR_TYPE_END, 1},
              {"F8_E5M2", CR_TYPE_END, 1}, {"F8_E8M0", CR_TYPE_END, 1}};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

/* Where the parser stands: file name and data for the messages and ranges. */
struct source {
    const char *file;
    const uint8_t *data;
    uint64_t size;
};

/* A non-negative JSON integer. */
static bool get_size(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* dtype and shape -> type, dims and the bytes they need. */
static enum cr_status read_shape(struct cr_st_tensor *t, const struct source *src,
                                 const json_t *dtype, const json_t *shape, uint64_t *want,
                                 struct cr_error *err)
{
    int d = 0;
    const char *dt = json_string_value(dtype);
    while (dt && d < N_DTYPES && strcmp(dtypes[d].name, dt) != 0)
        d++;
    if (!dt || d == N_DTYPES)
        return cr_error_set(err, CR_FORMAT, "%s: %.*s: unknown dtype %.20s", src->file, SHOWN,
                            t->name, dt ? dt : "(not a string)");
    t->type = dtypes[d].type;
    if (!json_is_array(shape) || json_array_size(shape) > 4)
        return cr_error_set(err, CR_FORMAT, "%s: %.*s: shape is not an array of at most 4 numbers",
                            src->file, SHOWN, t->name);
    t->n_dims = (uint32_t)json_array_size(shape);
    *want = dtypes[d].size;
    bool empty = false;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (!get_size(json_array_get(shape, i), &t->shape[i]))
            return cr_error_set(err, CR_FORMAT, "%s: %.*s: dimension %u is not a size", src->file,
                                SHOWN, t->name, i);
        empty = empty || t->shape[i] == 0;
    }
    for (uint32_t i = 0; i < t->n_dims && !empty; i++) {
        if (t->shape[i] > src->size / *want)
            return cr_error_set(err, CR_FORMAT,
                                "%s: %.*s: shape needs more than the %llu bytes "
                                "of data",
                                src->file, SHOWN, t->name, (unsigned long long)src->size);
        *want *= t->shape[i];
    }
    if (empty)
        *want = 0;
    return CR_OK;
}

static enum cr_status read_tensor(struct cr_st_tensor *t, const struct source *src, json_t *entry,
                                  struct cr_error *err)
{
    const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
    const json_t *range = json_object_get(entry, "data_offsets");
    if (!json_is_object(entry) || !dtype || !shape || !range || json_object_size(entry) != 3)
        return cr_error_set(err, CR_FORMAT, "%s: %.*s: want exactly dtype, shape and data_offsets",
                            src->file, SHOWN, t->name);
    uint64_t want = 0, begin, end;
    enum cr_status status = read_shape(t, src, dtype, shape, &want, err);
    if (status != CR_OK)
        return status;
    if (json_array_size(range) != 2 || !get_size(json_array_get(range, 0), &begin) ||
        !get_size(json_array_get(range, 1), &end))
        return cr_error_set(err, CR_FORMAT, "%s: %.*s: data_offsets is not a pair of sizes",
                            src->file, SHOWN, t->name);
    if (begin > end || end > src->size)
        return cr_error_set(err, CR_FORMAT,
                            "%s: %.*s: bytes %llu to %llu are outside the %llu bytes of data",
                            src->file, SHOWN, t->name, (unsigned long long)begin,
                            (unsigned long long)end, (unsigned long long)src->size);
    if (end - begin != want)
        return cr_error_set(err, CR_FORMAT, "%s: %.*s: shape needs %llu bytes, the range has %llu",
                            src->file, SHOWN, t->name, (unsigned long long)want,
                            (unsigned long long)(end - begin));
    t->data = src->data + begin;
    t->bytes = (size_t)want;
    return CR_OK;
}

static enum cr_status read_notes(struct cr_safetensors *st, const char *file, json_t *meta,
                                 struct cr_error *err)
{
    size_t n = json_object_size(meta);
    if (!json_is_object(meta) || n > CR_ST_MAX_NOTES)
        return cr_error_set(err, CR_FORMAT, "%s: __metadata__ is not an object of at most %d texts",
                            file, CR_ST_MAX_NOTES);
    if (!(st->notes = cr_alloc0(n, sizeof *st->notes)))
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", file);
    const char *key;
    json_t *value;
    json_object_foreach(meta, key, value)
    {
        if (!json_is_string(value))
            return cr_error_set(err, CR_FORMAT, "%s: __metadata__ %.*s is not a string", file,
                                SHOWN, key);
        struct cr_st_note *note = &st->notes[st->n_notes++];
        note->key = cr_strdup(key);
        note->value = cr_strdup(json_string_value(value));
        if (!note->key || !note->value)
            return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", file);
    }
    return CR_OK;
}

static int by_address(const void *x, const void *y)
{
    const struct cr_st_tensor *a = *(const struct cr_st_tensor *const *)x;
    const struct cr_st_tensor *b = *(const struct cr_st_tensor *const *)y;
    uintptr_t p = (uintptr_t)a->data, q = (uintptr_t)b->data;
    return p != q ? (p < q ? -1 : 1) : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

/* The ranges must follow one another from the first byte of data to the last. */
static enum cr_status check_cover(const struct cr_safetensors *st, const struct source *src,
                                  struct cr_error *err)
{
    const struct cr_st_tensor **sorted = cr_alloc(st->n, sizeof *sorted);
    if (!sorted)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", src->file);
    for (size_t i = 0; i < st->n; i++)
        sorted[i] = &st->tensors[i];
    qsort(sorted, st->n, sizeof *sorted, by_address);
    enum cr_status status = CR_OK;
    uint64_t at = 0;
    for (size_t i = 0; i < st->n && status == CR_OK; i++) {
        uint64_t begin = (uint64_t)((const uint8_t *)sorted[i]->data - src->data);
        if (begin != at)
            status = cr_error_set(err, CR_FORMAT,
                                  "%s: %.*s: data begins at byte %llu, want %llu "
                                  "(%s)",
                                  src->file, SHOWN, sorted[i]->name, (unsigned long long)begin,
                                  (unsigned long long)at,
                                  begin < at ? "overlaps another tensor" : "a hole before it");
        at = begin + sorted[i]->bytes;
    }
    if (status == CR_OK && at != src->size)
        status = cr_error_set(err, CR_FORMAT, "%s: the tensors end at byte %llu of %llu", src->file,
                              (unsigned long long)at, (unsigned long long)src->size);
    cr_free(sorted);
    return status;
}

static enum cr_status read_header(struct cr_safetensors *st, const struct source *src, json_t *root,
                                  struct cr_error *err)
{
    size_t n = json_object_size(root);
    if (!json_is_object(root))
        return cr_error_set(err, CR_FORMAT, "%s: the header is not a JSON object", src->file);
    if (n > CR_ST_MAX_TENSORS)
        return cr_error_set(err, CR_LIMIT, "%s: %zu tensors, the limit is %d", src->file, n,
                            CR_ST_MAX_TENSORS);
    if (!(st->tensors = cr_alloc0(n, sizeof *st->tensors)))
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", src->file);
    const char *key;
    json_t *value;
    enum cr_status status = CR_OK;
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            status = read_notes(st, src->file, value, err);
        } else {
            struct cr_st_tensor *t = &st->tensors[st->n++];
            t->name = cr_strdup(key);
            status = t->name ? read_tensor(t, src, value, err)
                             : cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", src->file);
        }
        if (status != CR_OK)
            return status;
    }
    return check_cover(st, src, err);
}

enum cr_status cr_safetensors_parse(struct cr_safetensors *st, const void *data, size_t size,
                                    const char *name, struct cr_error *err)
{
    *st = (struct cr_safetensors){0};
    struct cr_cursor c = cr_cursor_make(data, size);
    uint64_t len = cr_cursor_u64(&c);
    if (c.failed)
        return cr_error_set(err, CR_FORMAT, "%s: %zu bytes are too few for safetensors", name,
                            size);
    if (len > CR_ST_MAX_HEADER)
        return cr_error_set(err, CR_LIMIT, "%s: header of %llu bytes, the limit is %d", name,
                            (unsigned long long)len, CR_ST_MAX_HEADER);
    const char *text = cr_cursor_take(&c, len);
    if (!text || len == 0)
        return cr_error_set(err, CR_FORMAT, "%s: header of %llu bytes in a file of %zu", name,
                            (unsigned long long)len, size);
    json_error_t why;
    json_t *root = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return cr_error_set_at(err, CR_FORMAT, 8 + (uint64_t)why.position,
                               "%s: bad JSON header: %s", name, why.text);
    struct source src = {name, c.data + c.pos, size - c.pos};
    enum cr_status status = read_header(st, &src, root, err);
    json_decref(root);
    if (status != CR_OK)
        cr_safetensors_deinit(st);
    return status;
}

static json_t *tensor_entry(const struct cr_st_tensor *t, uint64_t at)
{
    int d = 0;
    while (dtypes[d].type != t->type)
        d++;
    json_t *shape = json_array();
    for (uint32_t i = 0; i < t->n_dims; i++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtypes[d].name, "shape", shape, "data_offsets",
                     (json_int_t)at, (json_int_t)(at + t->bytes));
}

/* The JSON header. Free *text with cr_buf_deinit, also after a failure. */
static enum cr_status header_text(const struct cr_safetensors *st, const char *path,
                                  struct cr_buf *text, struct cr_error *err)
{
    json_t *root = json_object(), *meta = json_object();
    bool ok = root && meta, twice = false;
    for (size_t i = 0; i < st->n_notes; i++)
        ok = ok && !json_object_set_new(meta, st->notes[i].key, json_string(st->notes[i].value));
    if (st->n_notes)
        ok = ok && !json_object_set(root, "__metadata__", meta);
    uint64_t at = 0;
    for (size_t i = 0; i < st->n; i++) {
        const struct cr_st_tensor *t = &st->tensors[i];
        twice = twice || json_object_get(root, t->name);
        ok = ok && !json_object_set_new(root, t->name, tensor_entry(t, at));
        at += t->bytes;
    }
    cr_buf_init(text, CR_ST_MAX_HEADER);
    ok = ok && cr_json_text(text, root, JSON_COMPACT);
    while (ok && text->len % 8) /* the data starts at a multiple of 8 */
        ok = cr_buf_puts(text, " ");
    json_decref(meta);
    json_decref(root);
    if (twice)
        return cr_error_set(err, CR_INVALID, "%s: two tensors have one name", path);
    return ok ? CR_OK
              : cr_error_set(err, CR_NO_MEMORY,
                             "%s: cannot make the header: out of memory, too large, or a name is "
                             "not UTF-8",
                             path);
}

enum cr_status cr_safetensors_write(const struct cr_safetensors *st, const char *path,
                                    struct cr_error *err)
{
    for (size_t i = 0; i < st->n; i++)
        if (st->tensors[i].type != CR_F32 && st->tensors[i].type != CR_F16 &&
            st->tensors[i].type != CR_BF16)
            return cr_error_set(err, CR_INVALID, "%s: %.*s: type %u is not F32, F16 or BF16", path,
                                SHOWN, st->tensors[i].name, st->tensors[i].type);
    struct cr_buf text;
    struct cr_file_writer w;
    enum cr_status status = header_text(st, path, &text, err);
    uint64_t len = text.len;
    if (status == CR_OK)
        status = cr_file_begin(&w, path, err);
    if (status != CR_OK) {
        cr_buf_deinit(&text);
        return status;
    }
    cr_file_add(&w, &len, sizeof len, err); /* after a failed add the writer ignores the rest */
    cr_file_add(&w, text.data, text.len, err);
    for (size_t i = 0; i < st->n; i++)
        cr_file_add(&w, st->tensors[i].data, st->tensors[i].bytes, err);
    cr_buf_deinit(&text);
    if (w.status == CR_OK)
        return cr_file_commit(&w, err);
    status = w.status;
    cr_file_abort(&w);
    return status;
}

#else /* without CRAYON_JSON */

enum cr_status cr_safetensors_parse(struct cr_safetensors *st, const void *data, size_t size,
                                    const char *name, struct cr_error *err)
{
    (void)data;
    (void)size;
    *st = (struct cr_safetensors){0};
    return cr_error_set(err, CR_UNSUPPORTED, "%s: safetensors: built without JSON", name);
}

enum cr_status cr_safetensors_write(const struct cr_safetensors *st, const char *path,
                                    struct cr_error *err)
{
    (void)st;
    return cr_error_set(err, CR_UNSUPPORTED, "%s: safetensors: built without JSON", path);
}

#endif
