/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors: whatever is accepted lies inside the data, tensor by tensor, and covers it. */
#include "adapt/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cr_safetensors st;
    struct cr_error err = {.msg = ""};
    if (cr_safetensors_parse(&st, data, size, "fuzz", &err)) {
        if (st.n || st.tensors || st.notes || !err.msg[0])
            abort();
        return 0;
    }
    size_t total = 0;
    for (size_t i = 0; i < st.n; i++) {
        const struct cr_st_tensor *t = &st.tensors[i];
        const uint8_t *p = t->data;
        if (t->n_dims > 4 || p < data || t->bytes > (size_t)(data + size - p) ||
            cr_safetensors_find(&st, t->name) != t)
            abort();
        total += t->bytes;
        volatile uint8_t sum = 0;
        for (size_t k = 0; k < t->bytes; k++)
            sum = (uint8_t)(sum + p[k]);
    }
    uint64_t header;
    memcpy(&header, data, 8);
    if (total != size - 8 - header)
        abort();
    cr_safetensors_deinit(&st);
    return 0;
}
