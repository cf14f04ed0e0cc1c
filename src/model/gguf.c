/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading GGUF. One pass over the header with the bounds-checked cursor; everything that later code
 * relies on (lengths, types, shapes, offsets, no overlap, no duplicate name) is decided here, so
 * that later reads need no checks. Counts are compared with the bytes that are left before anything
 * is allocated for them. Names are found by binary search in a sorted index: a hash table could be
 * made slow by chosen names.
 */
#include "model/gguf.h"

#include "base/guard.h"
#include "base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum {
    MIN_KV_BYTES = 8 + 1 + 4 + 1,             /* length, key, type, value */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* length, name, n_dims, one dim, type, offset */
    DEFAULT_ALIGNMENT = 32,
    MAX_DIMS = 4
};

struct name_index {
    struct cr_str name;
    uint32_t at;
};

struct cr_gguf {
    struct cr_map map; /* empty when parsed from memory */
    char *name;
    const uint8_t *bytes;
    size_t size, header_size;
    uint32_t version, alignment;
    size_t n_kv, n_tensors;
    struct cr_gguf_kv *kv;            /* [n_kv] */
    struct cr_tensor *tensors;        /* [n_tensors] */
    struct name_index *kv_index;      /* [n_kv] sorted by name */
    struct name_index *tensors_index; /* [n_tensors] sorted by name */
};

static const struct {
    const char *name;
    uint32_t size; /* 0: not of fixed size */
} value_types[] = {{"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
                   {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 0}, {"array", 0},
                   {"u64", 8}, {"i64", 8}, {"f64", 8}};

static const char *value_type_name(uint32_t type)
{
    return type < sizeof value_types / sizeof *value_types ? value_types[type].name : "unknown";
}

/* Names go into messages with "%.*s", cut at a length that a reader can take in. */
static int shown(struct cr_str s)
{
    return s.n < 80 ? (int)s.n : 80;
}

/* ---- the sorted index ---- */

static int compare_str(struct cr_str a, struct cr_str b)
{
    if (a.n != b.n)
        return a.n < b.n ? -1 : 1;
    return a.n ? memcmp(a.p, b.p, a.n) : 0;
}

static int compare_names(const void *a, const void *b)
{
    return compare_str(((const struct name_index *)a)->name, ((const struct name_index *)b)->name);
}

static enum cr_status sort_index(const cr_gguf *g, struct name_index *index, size_t n,
                                 const char *what, struct cr_error *err)
{
    qsort(index, n, sizeof *index, compare_names);
    for (size_t i = 1; i < n; i++)
        if (compare_names(&index[i - 1], &index[i]) == 0)
            return cr_error_set(err, CR_FORMAT, "%s: %s %.*s appears twice", g->name, what,
                                shown(index[i].name), index[i].name.p);
    return CR_OK;
}

static const struct name_index *find(const struct name_index *index, size_t n, const char *name)
{
    struct name_index want = {.name = {name, strlen(name)}};
    return n ? bsearch(&want, index, n, sizeof *index, compare_names) : NULL;
}

/* ---- parsing ---- */

static enum cr_status cut_short(const cr_gguf *g, const struct cr_cursor *c, const char *what,
                                struct cr_error *err)
{
    return cr_error_set_at(err, CR_FORMAT, c->pos,
                           "%s: cut short or damaged: %s at byte %zu does not fit in %zu bytes",
                           g->name, what, c->pos, g->size);
}

static bool take_str(struct cr_cursor *c, struct cr_str *s)
{
    uint64_t n = cr_cursor_u64(c);
    s->p = cr_cursor_take(c, n);
    s->n = s->p ? (size_t)n : 0;
    return s->p != NULL;
}

/* A key or tensor name: 1 to 65535 bytes of UTF-8 without NUL. */
static enum cr_status take_name(cr_gguf *g, struct cr_cursor *c, const char *what,
                                struct cr_str *name, struct cr_error *err)
{
    size_t at = c->pos;
    uint64_t n = cr_cursor_u64(c);
    if (!c->failed && (n == 0 || n >= CR_GGUF_MAX_KEY))
        return cr_error_set_at(err, n ? CR_LIMIT : CR_FORMAT, at,
                               "%s: %s at byte %zu: want 1 to %d bytes, found %" PRIu64, g->name,
                               what, at, CR_GGUF_MAX_KEY - 1, n);
    name->p = cr_cursor_take(c, n);
    name->n = (size_t)n;
    if (!name->p)
        return cut_short(g, c, what, err);
    for (size_t i = 0; i < name->n;) {
        utf8proc_int32_t code;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)name->p + i,
                                              (utf8proc_ssize_t)(name->n - i), &code);
        if (k <= 0 || code == 0)
            return cr_error_set_at(err, CR_FORMAT, at, "%s: %s at byte %zu: %s", g->name, what, at,
                                   k <= 0 ? "not UTF-8" : "contains a NUL byte");
        i += (size_t)k;
    }
    return CR_OK;
}

/* Steps over the values of a key. */
static enum cr_status take_value(cr_gguf *g, struct cr_cursor *c, struct cr_gguf_kv *kv,
                                 struct cr_error *err)
{
    uint32_t type = kv->type;
    kv->n = 1;
    if (type == CR_GGUF_ARRAY) {
        kv->elem_type = type = cr_cursor_u32(c);
        kv->n = cr_cursor_u64(c);
        if (c->failed)
            return cut_short(g, c, "an array", err);
    }
    if (type > CR_GGUF_F64 || type == CR_GGUF_ARRAY)
        return cr_error_set_at(
            err, CR_FORMAT, c->pos, "%s: key %.*s: %s type %" PRIu32 "%s", g->name, shown(kv->key),
            kv->key.p, kv->type == CR_GGUF_ARRAY ? "array element" : "value", type,
            type == CR_GGUF_ARRAY ? " (nested arrays are not supported)" : " is unknown");
    size_t start = c->pos;
    kv->data = c->data + start;
    if (type == CR_GGUF_STRING) {
        struct cr_str s;
        for (uint64_t i = 0; i < kv->n; i++)
            if (!take_str(c, &s))
                break;
    } else if (kv->n > (c->size - c->pos) / value_types[type].size) {
        c->failed = true;
    } else {
        cr_cursor_take(c, kv->n * value_types[type].size);
    }
    kv->bytes = c->pos - start;
    return c->failed ? cut_short(g, c, "a value", err) : CR_OK;
}

static enum cr_status take_keys(cr_gguf *g, struct cr_cursor *c, struct cr_error *err)
{
    for (size_t i = 0; i < g->n_kv; i++) {
        struct cr_gguf_kv *kv = &g->kv[i];
        enum cr_status status = take_name(g, c, "key", &kv->key, err);
        if (status == CR_OK) {
            kv->type = cr_cursor_u32(c);
            status = c->failed ? cut_short(g, c, "a key", err) : take_value(g, c, kv, err);
        }
        if (status != CR_OK)
            return status;
        g->kv_index[i] = (struct name_index){kv->key, (uint32_t)i};
    }
    return sort_index(g, g->kv_index, g->n_kv, "key", err);
}

static enum cr_status read_alignment(cr_gguf *g, struct cr_error *err)
{
    g->alignment = DEFAULT_ALIGNMENT;
    const struct cr_gguf_kv *kv = cr_gguf_find(g, "general.alignment");
    if (kv && kv->type != CR_GGUF_U32)
        return cr_error_set(err, CR_FORMAT, "%s: key general.alignment: want u32, found %s",
                            g->name, value_type_name(kv->type));
    if (kv)
        memcpy(&g->alignment, kv->data, sizeof g->alignment);
    if (g->alignment < 8 || g->alignment > CR_GGUF_MAX_ALIGNMENT ||
        (g->alignment & (g->alignment - 1)) != 0)
        return cr_error_set(err, CR_FORMAT,
                            "%s: key general.alignment: want a power of two from 8 to %d, found "
                            "%" PRIu32,
                            g->name, CR_GGUF_MAX_ALIGNMENT, g->alignment);
    return CR_OK;
}

/* Bytes of a tensor from its shape and type; every product is checked. */
static enum cr_status size_tensor(const cr_gguf *g, struct cr_tensor *t, struct cr_error *err)
{
    int n = shown(t->name);
    const struct cr_type_info *info = cr_type_info(t->type);
    if (!info->name)
        return cr_error_set(err, CR_UNSUPPORTED, "%s: tensor %.*s: unknown type %" PRIu32, g->name,
                            n, t->name.p, t->type);
    if (info->block == 0)
        return cr_error_set(err, CR_UNSUPPORTED, "%s: tensor %.*s: type %s is not supported",
                            g->name, n, t->name.p, info->name);
    if (t->ne[0] % info->block != 0)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tensor %.*s: rows of %" PRIu64 " values are not whole blocks of "
                            "%" PRIu32 " (%s)",
                            g->name, n, t->name.p, t->ne[0], info->block, info->name);
    uint64_t bytes = t->ne[0] / info->block;
    bool wraps = __builtin_mul_overflow(bytes, info->block_size, &bytes);
    for (int d = 1; d < MAX_DIMS && !wraps; d++)
        wraps = __builtin_mul_overflow(bytes, t->ne[d], &bytes);
    if (wraps)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tensor %.*s: shape [%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64
                            "] passes 64 bits",
                            g->name, n, t->name.p, t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    t->bytes = bytes;
    return CR_OK;
}

/* Reads one directory entry. data holds the offset, not yet a pointer: *offset. */
static enum cr_status take_tensor(cr_gguf *g, struct cr_cursor *c, struct cr_tensor *t,
                                  uint64_t *offset, struct cr_error *err)
{
    enum cr_status status = take_name(g, c, "tensor name", &t->name, err);
    if (status != CR_OK)
        return status;
    t->n_dims = cr_cursor_u32(c);
    if (c->failed)
        return cut_short(g, c, "a tensor", err);
    if (t->n_dims < 1 || t->n_dims > MAX_DIMS)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tensor %.*s: want 1 to %d dimensions, found "
                            "%" PRIu32,
                            g->name, shown(t->name), t->name.p, MAX_DIMS, t->n_dims);
    for (uint32_t d = 0; d < MAX_DIMS; d++) {
        t->ne[d] = d < t->n_dims ? cr_cursor_u64(c) : 1;
        if (t->ne[d] == 0 && !c->failed)
            return cr_error_set(err, CR_FORMAT, "%s: tensor %.*s: dimension %" PRIu32 " is 0",
                                g->name, shown(t->name), t->name.p, d);
    }
    t->type = cr_cursor_u32(c);
    *offset = cr_cursor_u64(c);
    return c->failed ? cut_short(g, c, "a tensor", err) : size_tensor(g, t, err);
}

/* Data section: aligned, inside the file. */
static enum cr_status place_tensor(const cr_gguf *g, struct cr_tensor *t, uint64_t offset,
                                   struct cr_error *err)
{
    size_t room = g->size - g->header_size;
    if (offset % g->alignment != 0)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tensor %.*s: offset %" PRIu64 " is not a multiple of the "
                            "alignment %" PRIu32,
                            g->name, shown(t->name), t->name.p, offset, g->alignment);
    if (offset > room || t->bytes > room - offset)
        return cr_error_set(err, CR_FORMAT,
                            "%s: tensor %.*s: %zu bytes at offset %" PRIu64 " do not fit in the "
                            "%zu bytes of data",
                            g->name, shown(t->name), t->name.p, t->bytes, offset, room);
    t->data = g->bytes + g->header_size + offset;
    return CR_OK;
}

static int compare_data(const void *a, const void *b)
{
    const struct cr_tensor *const *x = a, *const *y = b;
    return (*x)->data < (*y)->data ? -1 : (*x)->data > (*y)->data;
}

static enum cr_status check_overlap(const cr_gguf *g, struct cr_error *err)
{
    const struct cr_tensor **by_data = cr_alloc(g->n_tensors, sizeof *by_data);
    if (!by_data)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", g->name);
    for (size_t i = 0; i < g->n_tensors; i++)
        by_data[i] = &g->tensors[i];
    qsort(by_data, g->n_tensors, sizeof *by_data, compare_data);
    enum cr_status status = CR_OK;
    for (size_t i = 1; i < g->n_tensors && status == CR_OK; i++) {
        const struct cr_tensor *a = by_data[i - 1], *b = by_data[i];
        if ((const uint8_t *)a->data + a->bytes > (const uint8_t *)b->data)
            status = cr_error_set(err, CR_FORMAT, "%s: tensors %.*s and %.*s overlap", g->name,
                                  shown(a->name), a->name.p, shown(b->name), b->name.p);
    }
    cr_free(by_data);
    return status;
}

static enum cr_status take_tensors(cr_gguf *g, struct cr_cursor *c, struct cr_error *err)
{
    uint64_t *offsets = cr_alloc(g->n_tensors, sizeof *offsets);
    enum cr_status status =
        offsets ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", g->name);
    for (size_t i = 0; i < g->n_tensors && status == CR_OK; i++) {
        status = take_tensor(g, c, &g->tensors[i], &offsets[i], err);
        g->tensors_index[i] = (struct name_index){g->tensors[i].name, (uint32_t)i};
    }
    if (status == CR_OK)
        status = sort_index(g, g->tensors_index, g->n_tensors, "tensor", err);
    /* A file without tensors (a vocabulary) may end without padding. */
    size_t pad = (g->alignment - c->pos % g->alignment) % g->alignment;
    if (status == CR_OK && g->n_tensors && !cr_cursor_has(c, pad))
        status = cut_short(g, c, "the padding", err);
    g->header_size = cr_cursor_has(c, pad) ? c->pos + pad : g->size;
    for (size_t i = 0; i < g->n_tensors && status == CR_OK; i++)
        status = place_tensor(g, &g->tensors[i], offsets[i], err);
    cr_free(offsets);
    return status == CR_OK ? check_overlap(g, err) : status;
}

/* Magic, version and the two counts; then room for what they announce. */
static enum cr_status take_header(cr_gguf *g, struct cr_cursor *c, struct cr_error *err)
{
    const char *magic = cr_cursor_take(c, 4);
    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return cr_error_set(err, CR_FORMAT, "%s: not a GGUF file", g->name);
    g->version = cr_cursor_u32(c);
    uint64_t n_tensors = cr_cursor_u64(c), n_kv = cr_cursor_u64(c);
    if (c->failed)
        return cut_short(g, c, "the header", err);
    if (g->version != 2 && g->version != 3)
        return cr_error_set(err, CR_UNSUPPORTED, "%s: want GGUF version 2 or 3, found %s%" PRIu32,
                            g->name, g->version & 0xffff ? "" : "big-endian version ",
                            g->version & 0xffff ? g->version : __builtin_bswap32(g->version));
    if (n_tensors > CR_GGUF_MAX_TENSORS || n_kv > CR_GGUF_MAX_KV)
        return cr_error_set(err, CR_LIMIT,
                            "%s: want at most %d tensors and %d keys, found %" PRIu64 " and "
                            "%" PRIu64,
                            g->name, CR_GGUF_MAX_TENSORS, CR_GGUF_MAX_KV, n_tensors, n_kv);
    if (!cr_cursor_has(c, n_kv * MIN_KV_BYTES + n_tensors * MIN_TENSOR_BYTES))
        return cut_short(g, c, "the directory", err);
    g->n_kv = (size_t)n_kv;
    g->n_tensors = (size_t)n_tensors;
    g->kv = cr_alloc0(g->n_kv, sizeof *g->kv);
    g->tensors = cr_alloc0(g->n_tensors, sizeof *g->tensors);
    g->kv_index = cr_alloc0(g->n_kv, sizeof *g->kv_index);
    g->tensors_index = cr_alloc0(g->n_tensors, sizeof *g->tensors_index);
    if (!g->kv || !g->tensors || !g->kv_index || !g->tensors_index)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", g->name);
    return CR_OK;
}

/* Takes over map, also on failure. */
static enum cr_status parse(cr_gguf **out, struct cr_map map, const void *data, size_t size,
                            const char *name, struct cr_error *err)
{
    *out = NULL;
    cr_gguf *g = cr_alloc0(1, sizeof *g);
    if (!g) {
        cr_map_close(&map);
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", name);
    }
    g->map = map;
    g->bytes = data;
    g->size = size;
    g->name = cr_strdup(name);
    struct cr_cursor c = cr_cursor_make(data, size);
    enum cr_status status = CR_OK;
    if (!g->name)
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", name);
    else if ((uintptr_t)data % 8 != 0)
        status = cr_error_set(err, CR_INVALID, "%s: want memory aligned to 8 bytes", name);
    if (status == CR_OK)
        status = take_header(g, &c, err);
    if (status == CR_OK)
        status = take_keys(g, &c, err);
    if (status == CR_OK)
        status = read_alignment(g, err);
    if (status == CR_OK)
        status = take_tensors(g, &c, err);
    if (status != CR_OK) {
        cr_gguf_close(g);
        return status;
    }
    *out = g;
    return CR_OK;
}

enum cr_status cr_gguf_open(cr_gguf **out, const char *path, struct cr_error *err)
{
    *out = NULL;
    struct cr_map map;
    enum cr_status status = cr_map_open(&map, path, err);
    return status == CR_OK ? parse(out, map, map.data, map.size, path, err) : status;
}

enum cr_status cr_gguf_parse(cr_gguf **out, const void *data, size_t size, const char *name,
                             struct cr_error *err)
{
    return parse(out, (struct cr_map){0}, data, size, name, err);
}

void cr_gguf_close(cr_gguf *g)
{
    if (!g)
        return;
    cr_free(g->tensors_index);
    cr_free(g->kv_index);
    cr_free(g->tensors);
    cr_free(g->kv);
    cr_free(g->name);
    cr_map_close(&g->map);
    cr_free(g);
}

/* ---- looking ---- */

uint32_t cr_gguf_version(const cr_gguf *g)
{
    return g->version;
}

size_t cr_gguf_size(const cr_gguf *g)
{
    return g->size;
}

size_t cr_gguf_header_size(const cr_gguf *g)
{
    return g->header_size;
}

const void *cr_gguf_bytes(const cr_gguf *g)
{
    return g->bytes;
}

const char *cr_gguf_name(const cr_gguf *g)
{
    return g->name;
}

bool cr_gguf_is_mapped(const cr_gguf *g)
{
    return g->map.data != NULL;
}

bool cr_gguf_damaged(const cr_gguf *g)
{
    return cr_guard_damaged(g->map.data);
}

size_t cr_gguf_n_kv(const cr_gguf *g)
{
    return g->n_kv;
}

const struct cr_gguf_kv *cr_gguf_kv_at(const cr_gguf *g, size_t i)
{
    return &g->kv[i];
}

const struct cr_gguf_kv *cr_gguf_find(const cr_gguf *g, const char *key)
{
    const struct name_index *at = find(g->kv_index, g->n_kv, key);
    return at ? &g->kv[at->at] : NULL;
}

size_t cr_gguf_n_tensors(const cr_gguf *g)
{
    return g->n_tensors;
}

const struct cr_tensor *cr_gguf_tensor_at(const cr_gguf *g, size_t i)
{
    return &g->tensors[i];
}

const struct cr_tensor *cr_gguf_tensor(const cr_gguf *g, const char *name)
{
    const struct name_index *at = find(g->tensors_index, g->n_tensors, name);
    return at ? &g->tensors[at->at] : NULL;
}

bool cr_str_eq(struct cr_str s, const char *z)
{
    return s.n == strlen(z) && memcmp(s.p, z, s.n) == 0;
}

/* ---- typed reads ---- */

static enum cr_status lookup(const cr_gguf *g, const char *key, bool required,
                             const struct cr_gguf_kv **kv, struct cr_error *err)
{
    *kv = cr_gguf_find(g, key);
    if (*kv)
        return CR_OK;
    return required ? cr_error_set(err, CR_FORMAT, "%s: key %s is missing", g->name, key)
                    : CR_NOT_FOUND;
}

static enum cr_status wrong_type(const cr_gguf *g, const struct cr_gguf_kv *kv, const char *want,
                                 struct cr_error *err)
{
    return cr_error_set(err, CR_FORMAT, "%s: key %.*s: want %s, found %s", g->name, shown(kv->key),
                        kv->key.p, want, value_type_name(kv->type));
}

/* Any integer as a sign and a magnitude; false for other types. */
static bool integer_value(const struct cr_gguf_kv *kv, int64_t *v, bool *too_large)
{
    struct cr_cursor c = cr_cursor_make(kv->data, kv->bytes);
    uint64_t u = 0;
    *too_large = false;
    switch (kv->type) {
    case CR_GGUF_U8:
        *v = cr_cursor_u8(&c);
        return true;
    case CR_GGUF_I8:
        *v = (int8_t)cr_cursor_u8(&c);
        return true;
    case CR_GGUF_U16:
        *v = cr_cursor_u16(&c);
        return true;
    case CR_GGUF_I16:
        *v = (int16_t)cr_cursor_u16(&c);
        return true;
    case CR_GGUF_U32:
        *v = cr_cursor_u32(&c);
        return true;
    case CR_GGUF_I32:
        *v = (int32_t)cr_cursor_u32(&c);
        return true;
    case CR_GGUF_I64:
        *v = (int64_t)cr_cursor_u64(&c);
        return true;
    case CR_GGUF_U64:
        u = cr_cursor_u64(&c);
        *too_large = u > INT64_MAX;
        *v = *too_large ? INT64_MAX : (int64_t)u;
        return true;
    default:
        return false;
    }
}

enum cr_status cr_gguf_u32(const cr_gguf *g, const char *key, bool required, uint32_t *out,
                           struct cr_error *err)
{
    const struct cr_gguf_kv *kv;
    enum cr_status status = lookup(g, key, required, &kv, err);
    if (status != CR_OK)
        return status;
    int64_t v;
    bool too_large;
    if (!integer_value(kv, &v, &too_large))
        return wrong_type(g, kv, "an integer", err);
    if (v < 0 || v > UINT32_MAX)
        return cr_error_set(err, CR_FORMAT, "%s: key %s: want 0 to %" PRIu32 ", found %s%" PRId64,
                            g->name, key, UINT32_MAX, too_large ? "more than " : "", v);
    *out = (uint32_t)v;
    return CR_OK;
}

enum cr_status cr_gguf_f32(const cr_gguf *g, const char *key, bool required, float *out,
                           struct cr_error *err)
{
    const struct cr_gguf_kv *kv;
    enum cr_status status = lookup(g, key, required, &kv, err);
    if (status != CR_OK)
        return status;
    struct cr_cursor c = cr_cursor_make(kv->data, kv->bytes);
    if (kv->type == CR_GGUF_F32)
        *out = cr_cursor_f32(&c);
    else if (kv->type == CR_GGUF_F64)
        *out = (float)cr_cursor_f64(&c);
    else
        return wrong_type(g, kv, "f32", err);
    return CR_OK;
}

enum cr_status cr_gguf_bool(const cr_gguf *g, const char *key, bool required, bool *out,
                            struct cr_error *err)
{
    const struct cr_gguf_kv *kv;
    enum cr_status status = lookup(g, key, required, &kv, err);
    if (status != CR_OK)
        return status;
    if (kv->type != CR_GGUF_BOOL)
        return wrong_type(g, kv, "bool", err);
    if (*kv->data > 1)
        return cr_error_set(err, CR_FORMAT, "%s: key %s: want 0 or 1, found %d", g->name, key,
                            *kv->data);
    *out = *kv->data != 0;
    return CR_OK;
}

enum cr_status cr_gguf_str(const cr_gguf *g, const char *key, bool required, struct cr_str *out,
                           struct cr_error *err)
{
    const struct cr_gguf_kv *kv;
    enum cr_status status = lookup(g, key, required, &kv, err);
    if (status != CR_OK)
        return status;
    if (kv->type != CR_GGUF_STRING)
        return wrong_type(g, kv, "string", err);
    const uint8_t *cursor = NULL;
    *out = cr_gguf_next_str(kv, &cursor);
    return CR_OK;
}

struct cr_str cr_gguf_next_str(const struct cr_gguf_kv *kv, const uint8_t **cursor)
{
    const uint8_t *p = *cursor ? *cursor : kv->data;
    uint64_t n;
    memcpy(&n, p, sizeof n);
    *cursor = p + sizeof n + n;
    return (struct cr_str){(const char *)p + sizeof n, (size_t)n};
}
