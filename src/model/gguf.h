/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GGUF container, versions 2 and 3: key/value metadata, tensor directory, data; reading from
 * memory (so that it can be fuzzed) or a mapping, and writing.
 *
 * Layout: "GGUF", u32 version, u64 n_tensors, u64 n_kv; then n_kv (string key, u32 type, value);
 * then n_tensors (string name, u32 n_dims, u64 dims[n_dims] innermost first, u32 type, u64 offset);
 * padding to general.alignment (default 32); tensor data, offsets relative to its start.
 * Strings are u64 length + bytes. Everything is checked once at open; after that reads are safe.
 */
#ifndef CR_GGUF_H
#define CR_GGUF_H

#include "base/bytes.h"
#include "kernels/quant.h"

enum cr_gguf_type {
    CR_GGUF_U8,
    CR_GGUF_I8,
    CR_GGUF_U16,
    CR_GGUF_I16,
    CR_GGUF_U32,
    CR_GGUF_I32,
    CR_GGUF_F32,
    CR_GGUF_BOOL,
    CR_GGUF_STRING,
    CR_GGUF_ARRAY,
    CR_GGUF_U64,
    CR_GGUF_I64,
    CR_GGUF_F64
};

struct cr_str { /* borrowed bytes in the file, not NUL-terminated */
    const char *p;
    size_t n;
};

struct cr_gguf_kv {
    struct cr_str key;
    uint32_t type, elem_type; /* elem_type for arrays (nested arrays are refused) */
    uint64_t n;               /* elements of an array, else 1 */
    const uint8_t *data;      /* first value, unaligned */
    size_t bytes;             /* of all values */
};

struct cr_tensor {
    struct cr_str name;
    uint32_t type, n_dims;
    uint64_t ne[4]; /* innermost first; unused ones are 1 */
    const void *data;
    size_t bytes;
};

typedef struct cr_gguf cr_gguf;

/* Limits, each tested at limit and limit + 1. */
enum {
    CR_GGUF_MAX_KV = 1 << 16,
    CR_GGUF_MAX_TENSORS = 1 << 16,
    CR_GGUF_MAX_KEY = 1 << 16,       /* bytes of a key or tensor name: shorter than this */
    CR_GGUF_MAX_ALIGNMENT = 1 << 16, /* a power of two from 8 */
};

/* Maps and checks a file. Free with cr_gguf_close. The file may be replaced (by rename) or removed
 * while it is open, but must not be cut short in place: see base/guard.h. */
enum cr_status cr_gguf_open(cr_gguf **out, const char *path, struct cr_error *err);
/* The same over memory that outlives the handle and is aligned to 8 bytes; `name` is used in
 * messages. */
enum cr_status cr_gguf_parse(cr_gguf **out, const void *data, size_t size, const char *name,
                             struct cr_error *err);
void cr_gguf_close(cr_gguf *g);
uint32_t cr_gguf_version(const cr_gguf *g);
size_t cr_gguf_size(const cr_gguf *g);        /* bytes of the file */
size_t cr_gguf_header_size(const cr_gguf *g); /* bytes before the tensor data */
const void *cr_gguf_bytes(const cr_gguf *g);
bool cr_gguf_is_mapped(const cr_gguf *g); /* a file, not memory */
size_t cr_gguf_n_kv(const cr_gguf *g);
const struct cr_gguf_kv *cr_gguf_kv_at(const cr_gguf *g, size_t i);
const struct cr_gguf_kv *cr_gguf_find(const cr_gguf *g, const char *key); /* NULL: absent */
size_t cr_gguf_n_tensors(const cr_gguf *g);
const struct cr_tensor *cr_gguf_tensor_at(const cr_gguf *g, size_t i);
const struct cr_tensor *cr_gguf_tensor(const cr_gguf *g, const char *name); /* NULL: absent */
const char *cr_gguf_name(const cr_gguf *g);                                 /* for messages */
bool cr_gguf_damaged(const cr_gguf *g); /* the file was cut short while mapped */

/* Typed reads. An absent key leaves *out alone and returns CR_NOT_FOUND without a message when
 * `required` is false; a wrong type is always CR_FORMAT naming key, wanted and found type. Integer
 * reads take any integer type whose value fits. */
enum cr_status cr_gguf_u32(const cr_gguf *g, const char *key, bool required, uint32_t *out,
                           struct cr_error *err);
enum cr_status cr_gguf_f32(const cr_gguf *g, const char *key, bool required, float *out,
                           struct cr_error *err);
enum cr_status cr_gguf_bool(const cr_gguf *g, const char *key, bool required, bool *out,
                            struct cr_error *err);
enum cr_status cr_gguf_str(const cr_gguf *g, const char *key, bool required, struct cr_str *out,
                           struct cr_error *err);
/* Element i of an array kv; the caller has checked elem_type and i < n. cr_gguf_array_str walks, so
 * iterate with a cursor: start *cursor at NULL. */
struct cr_str cr_gguf_next_str(const struct cr_gguf_kv *kv, const uint8_t **cursor);
bool cr_str_eq(struct cr_str s, const char *z);

/* ---- writing: collect keys and tensors, then write atomically ---- */
typedef struct cr_gguf_writer cr_gguf_writer;
cr_gguf_writer *cr_gguf_writer_new(void); /* NULL: out of memory. Free with cr_gguf_writer_free */
void cr_gguf_writer_free(cr_gguf_writer *w);
void cr_gguf_put_u32(cr_gguf_writer *w, const char *key, uint32_t v);
void cr_gguf_put_u64(cr_gguf_writer *w, const char *key, uint64_t v);
void cr_gguf_put_f32(cr_gguf_writer *w, const char *key, float v);
void cr_gguf_put_bool(cr_gguf_writer *w, const char *key, bool v);
void cr_gguf_put_str(cr_gguf_writer *w, const char *key, const char *v);
void cr_gguf_put_strs(cr_gguf_writer *w, const char *key, const char *const *v, size_t n);
void cr_gguf_put_u32s(cr_gguf_writer *w, const char *key, const uint32_t *v, size_t n);
void cr_gguf_put_f32s(cr_gguf_writer *w, const char *key, const float *v, size_t n);
/* Copies a key of another file under its own name; general.alignment is left out, since files
 * are always written with the default of 32. */
void cr_gguf_put_kv(cr_gguf_writer *w, const struct cr_gguf_kv *kv);
/* data is borrowed until _write and must hold the tensor's bytes. */
void cr_gguf_put_tensor(cr_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                        const uint64_t *ne, const void *data);
/* The same for data that is made while the file is written: make adds exactly the tensor's bytes.
 */
typedef enum cr_status cr_gguf_make_fn(void *ud, struct cr_file_writer *f, struct cr_error *err);
void cr_gguf_put_tensor_fn(cr_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                           const uint64_t *ne, cr_gguf_make_fn *make, void *ud);
/* Reports the first failure of any put (out of memory, bad shape) and duplicate names too. */
enum cr_status cr_gguf_write(cr_gguf_writer *w, const char *path, struct cr_error *err);

#endif
