/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing GGUF version 3. Keys are serialised as they come, tensors are remembered; cr_gguf_write
 * puts header, keys, directory and data into a temporary file that is renamed at the end. The
 * first failure is kept, so that callers may put many things and look once.
 */
#include "model/gguf.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 32 };
static const size_t MAX_HEADER = (size_t)1 << 31; /* keys and directory together */

struct name_list { /* for the check of duplicates */
    char **v;
    size_t n, cap;
};

struct pending { /* a tensor whose data follows later */
    const void *data;
    size_t bytes;
    cr_gguf_make_fn *make; /* instead of data, or NULL */
    void *ud;
};

struct cr_gguf_writer {
    struct cr_buf keys, directory;
    struct name_list key_names, tensor_names;
    struct pending *tensors; /* [tensor_names.n] */
    size_t tensors_cap;
    uint64_t offset; /* of the next tensor, relative to the data */
    struct cr_error failed;
};

cr_gguf_writer *cr_gguf_writer_new(void)
{
    cr_gguf_writer *w = cr_alloc0(1, sizeof *w);
    if (w) {
        cr_buf_init(&w->keys, MAX_HEADER);
        cr_buf_init(&w->directory, MAX_HEADER);
    }
    return w;
}

static void free_names(struct name_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        cr_free(l->v[i]);
    cr_free(l->v);
}

void cr_gguf_writer_free(cr_gguf_writer *w)
{
    if (!w)
        return;
    free_names(&w->key_names);
    free_names(&w->tensor_names);
    cr_free(w->tensors);
    cr_buf_deinit(&w->keys);
    cr_buf_deinit(&w->directory);
    cr_free(w);
}

static void out_of_memory(cr_gguf_writer *w)
{
    if (w->failed.status == CR_OK)
        cr_error_set(&w->failed, CR_NO_MEMORY, "GGUF: out of memory");
}

static size_t grown(size_t cap)
{
    return cap ? 2 * cap : 64;
}

static bool add_name(cr_gguf_writer *w, struct name_list *l, const char *name, size_t n)
{
    if (w->failed.status != CR_OK)
        return false;
    if (n == 0 || n >= CR_GGUF_MAX_KEY || memchr(name, '\0', n)) {
        cr_error_set(&w->failed, CR_INVALID, "GGUF: want a name of 1 to %d bytes, got %zu",
                     CR_GGUF_MAX_KEY - 1, n);
        return false;
    }
    if (l->n == l->cap) {
        char **v = cr_realloc(l->v, grown(l->cap), sizeof *v);
        if (!v) {
            out_of_memory(w);
            return false;
        }
        l->v = v;
        l->cap = grown(l->cap);
    }
    if (!(l->v[l->n] = cr_strndup(name, n))) {
        out_of_memory(w);
        return false;
    }
    l->n++;
    return true;
}

static void add_u32(struct cr_buf *b, uint32_t v)
{
    cr_buf_add(b, &v, sizeof v);
}

static void add_u64(struct cr_buf *b, uint64_t v)
{
    cr_buf_add(b, &v, sizeof v);
}

static void add_str(struct cr_buf *b, const char *s, size_t n)
{
    add_u64(b, n);
    cr_buf_add(b, s, n);
}

/* Key and type; false after a failure. */
static bool begin_key(cr_gguf_writer *w, const char *key, size_t n, uint32_t type)
{
    if (!add_name(w, &w->key_names, key, n))
        return false;
    add_str(&w->keys, key, n);
    add_u32(&w->keys, type);
    return true;
}

static void put(cr_gguf_writer *w, const char *key, uint32_t type, const void *v, size_t n)
{
    if (begin_key(w, key, strlen(key), type))
        cr_buf_add(&w->keys, v, n);
}

static bool begin_array(cr_gguf_writer *w, const char *key, uint32_t elem_type, size_t n)
{
    if (!begin_key(w, key, strlen(key), CR_GGUF_ARRAY))
        return false;
    add_u32(&w->keys, elem_type);
    add_u64(&w->keys, n);
    return true;
}

void cr_gguf_put_u32(cr_gguf_writer *w, const char *key, uint32_t v)
{
    put(w, key, CR_GGUF_U32, &v, sizeof v);
}

void cr_gguf_put_u64(cr_gguf_writer *w, const char *key, uint64_t v)
{
    put(w, key, CR_GGUF_U64, &v, sizeof v);
}

void cr_gguf_put_f32(cr_gguf_writer *w, const char *key, float v)
{
    put(w, key, CR_GGUF_F32, &v, sizeof v);
}

void cr_gguf_put_bool(cr_gguf_writer *w, const char *key, bool v)
{
    uint8_t byte = v;
    put(w, key, CR_GGUF_BOOL, &byte, 1);
}

void cr_gguf_put_str(cr_gguf_writer *w, const char *key, const char *v)
{
    if (begin_key(w, key, strlen(key), CR_GGUF_STRING))
        add_str(&w->keys, v, strlen(v));
}

void cr_gguf_put_strs(cr_gguf_writer *w, const char *key, const char *const *v, size_t n)
{
    if (begin_array(w, key, CR_GGUF_STRING, n))
        for (size_t i = 0; i < n; i++)
            add_str(&w->keys, v[i], strlen(v[i]));
}

void cr_gguf_put_u32s(cr_gguf_writer *w, const char *key, const uint32_t *v, size_t n)
{
    if (begin_array(w, key, CR_GGUF_U32, n))
        cr_buf_add(&w->keys, v, n * sizeof *v);
}

void cr_gguf_put_f32s(cr_gguf_writer *w, const char *key, const float *v, size_t n)
{
    if (begin_array(w, key, CR_GGUF_F32, n))
        cr_buf_add(&w->keys, v, n * sizeof *v);
}

void cr_gguf_put_kv(cr_gguf_writer *w, const struct cr_gguf_kv *kv)
{
    if (cr_str_eq(kv->key, "general.alignment") || !begin_key(w, kv->key.p, kv->key.n, kv->type))
        return;
    if (kv->type == CR_GGUF_ARRAY) {
        add_u32(&w->keys, kv->elem_type);
        add_u64(&w->keys, kv->n);
    }
    cr_buf_add(&w->keys, kv->data, kv->bytes);
}

/* Bytes of a tensor; 0 for a shape or type that cannot be. */
static size_t tensor_bytes(uint32_t type, uint32_t n_dims, const uint64_t *ne)
{
    if (n_dims < 1 || n_dims > 4 || !cr_type_info(type)->name)
        return 0;
    size_t bytes = cr_row_bytes(type, ne[0]);
    for (uint32_t d = 1; d < n_dims; d++)
        if (__builtin_mul_overflow(bytes, ne[d], &bytes))
            return 0;
    return bytes;
}

static void put_tensor(cr_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                       const uint64_t *ne, struct pending from)
{
    size_t bytes = tensor_bytes(type, n_dims, ne);
    if (bytes == 0 && w->failed.status == CR_OK)
        cr_error_set(&w->failed, CR_INVALID,
                     "GGUF: tensor %s: bad shape or type (%" PRIu32 " dimensions, type %" PRIu32
                     ")",
                     name, n_dims, type);
    if (w->failed.status == CR_OK && w->tensor_names.n == w->tensors_cap) {
        struct pending *p = cr_realloc(w->tensors, grown(w->tensors_cap), sizeof *p);
        if (!p) {
            out_of_memory(w);
            return;
        }
        w->tensors = p;
        w->tensors_cap = grown(w->tensors_cap);
    }
    if (!add_name(w, &w->tensor_names, name, strlen(name)))
        return;
    from.bytes = bytes;
    w->tensors[w->tensor_names.n - 1] = from;
    add_str(&w->directory, name, strlen(name));
    add_u32(&w->directory, n_dims);
    for (uint32_t d = 0; d < n_dims; d++)
        add_u64(&w->directory, ne[d]);
    add_u32(&w->directory, type);
    add_u64(&w->directory, w->offset);
    w->offset += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void cr_gguf_put_tensor(cr_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                        const uint64_t *ne, const void *data)
{
    put_tensor(w, name, type, n_dims, ne, (struct pending){.data = data});
}

void cr_gguf_put_tensor_fn(cr_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                           const uint64_t *ne, cr_gguf_make_fn *make, void *ud)
{
    put_tensor(w, name, type, n_dims, ne, (struct pending){.make = make, .ud = ud});
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static enum cr_status check_names(struct name_list *l, size_t max, const char *what,
                                  struct cr_error *err)
{
    if (l->n > max)
        return cr_error_set(err, CR_LIMIT, "GGUF: want at most %zu %ss, got %zu", max, what, l->n);
    if (l->n)
        qsort(l->v, l->n, sizeof *l->v, compare_strings); /* the order is not needed again */
    for (size_t i = 1; i < l->n; i++)
        if (strcmp(l->v[i - 1], l->v[i]) == 0)
            return cr_error_set(err, CR_INVALID, "GGUF: %s %s was put twice", what, l->v[i]);
    return CR_OK;
}

static enum cr_status add_tensor(struct cr_file_writer *f, const struct pending *t,
                                 struct cr_error *err)
{
    uint64_t begin = f->pos;
    if (!t->make)
        return cr_file_add(f, t->data, t->bytes, err);
    enum cr_status status = t->make(t->ud, f, err);
    if (status == CR_OK && f->pos - begin != t->bytes)
        status = cr_error_set(err, CR_INTERNAL, "GGUF: a tensor of %zu bytes was given %" PRIu64,
                              t->bytes, f->pos - begin);
    return f->status = f->status == CR_OK ? status : f->status;
}

static void pad(struct cr_file_writer *f, struct cr_error *err)
{
    static const uint8_t zeros[ALIGNMENT];
    cr_file_add(f, zeros, (ALIGNMENT - f->pos % ALIGNMENT) % ALIGNMENT, err);
}

enum cr_status cr_gguf_write(cr_gguf_writer *w, const char *path, struct cr_error *err)
{
    if (w->failed.status == CR_OK && (w->keys.failed || w->directory.failed))
        out_of_memory(w);
    if (w->failed.status != CR_OK) {
        if (err)
            *err = w->failed;
        return w->failed.status;
    }
    enum cr_status status = check_names(&w->key_names, CR_GGUF_MAX_KV, "key", err);
    if (status == CR_OK)
        status = check_names(&w->tensor_names, CR_GGUF_MAX_TENSORS, "tensor", err);
    struct cr_file_writer f;
    if (status == CR_OK)
        status = cr_file_begin(&f, path, err);
    if (status != CR_OK)
        return status;
    const uint32_t version = 3;
    const uint64_t counts[2] = {w->tensor_names.n, w->key_names.n};
    /* After a failed add the writer ignores the rest; the status is looked at once. */
    cr_file_add(&f, "GGUF", 4, err);
    cr_file_add(&f, &version, sizeof version, err);
    cr_file_add(&f, counts, sizeof counts, err);
    cr_file_add(&f, w->keys.data, w->keys.len, err);
    cr_file_add(&f, w->directory.data, w->directory.len, err);
    pad(&f, err);
    for (size_t i = 0; i < w->tensor_names.n && f.status == CR_OK; i++) {
        add_tensor(&f, &w->tensors[i], err);
        pad(&f, err);
    }
    if (f.status != CR_OK) {
        status = f.status;
        cr_file_abort(&f);
        return status;
    }
    return cr_file_commit(&f, err);
}
