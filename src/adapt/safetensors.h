/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, data. Parsed
 * from memory; ranges must be inside the data, not overlap, and match dtype and shape.
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
struct cr_safetensors {
    struct cr_st_tensor *tensors;
    size_t n;
};
enum cr_status cr_safetensors_parse(struct cr_safetensors *st, const void *data, size_t size,
                                    const char *name, struct cr_error *err);
void cr_safetensors_deinit(struct cr_safetensors *st);
const struct cr_st_tensor *cr_safetensors_find(const struct cr_safetensors *st, const char *name);
/* Writes tensors (data borrowed, aligned) atomically. metadata_format: "pt" or NULL. */
enum cr_status cr_safetensors_write(const struct cr_safetensors *st, const char *path,
                                    struct cr_error *err);

#endif
