/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, data. Parsed
 * from memory, as strict as the format's own reader: ranges match dtype and shape, do not overlap
 * and leave no hole; duplicate names, unknown dtypes and unknown fields are refused. Without
 * CRAYON_JSON both functions return CR_UNSUPPORTED.
 */
#ifndef CR_SAFETENSORS_H
#define CR_SAFETENSORS_H

#include "base/bytes.h"
#include "kernels/quant.h"

struct cr_st_tensor {
    char *name;
    uint32_t type; /* CR_F32, CR_F16, CR_BF16; other dtypes are kept as CR_TYPE_END */
    uint32_t n_dims;
    uint64_t shape[4]; /* outermost first, as in the file; tensors of more dims are refused */
    const void *data;  /* unaligned, borrowed */
    size_t bytes;
};
struct cr_st_note { /* an entry of "__metadata__" */
    char *key, *value;
};
struct cr_safetensors {
    struct cr_st_tensor *tensors;
    size_t n;
    struct cr_st_note *notes;
    size_t n_notes;
};

/* Limits: bytes of the JSON header, tensors, notes. */
enum { CR_ST_MAX_HEADER = 1 << 24, CR_ST_MAX_TENSORS = 1 << 16, CR_ST_MAX_NOTES = 1 << 10 };

/* `name` is used in messages. Tensor data is borrowed. Free with cr_safetensors_deinit, which a
 * failed parse does not need. */
enum cr_status cr_safetensors_parse(struct cr_safetensors *st, const void *data, size_t size,
                                    const char *name, struct cr_error *err);
void cr_safetensors_deinit(struct cr_safetensors *st);
/* NULL when there is no such tensor or note. Borrowed. */
const struct cr_st_tensor *cr_safetensors_find(const struct cr_safetensors *st, const char *name);
const char *cr_safetensors_note(const struct cr_safetensors *st, const char *key);
/* Writes tensors of type F32, F16, BF16 in the given order, and the notes, whole or not at all.
 * Reads name, type, n_dims, shape, data and bytes; all borrowed. */
enum cr_status cr_safetensors_write(const struct cr_safetensors *st, const char *path,
                                    struct cr_error *err);

#endif
