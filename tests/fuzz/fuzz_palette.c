/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of palettes: what it accepts is finite and in range. */
#include "adapt/palette.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cr_palette *p;
    struct cr_error err;
    if (cr_palette_parse(&p, (const char *)data, size, "fuzz", &err)) {
        if (p || !err.msg[0])
            abort();
        return 0;
    }
    if (strlen(p->base_hash) != 64 || (p->n && strlen(p->pool_hash) != 64))
        abort();
    for (int i = 0; i < p->n; i++)
        if (!(fabsf(p->weights[i]) <= 1000))
            abort();
    for (int i = 0; i < p->dim; i++)
        if (!isfinite(p->q_c[i]))
            abort();
    cr_palette_close(p);
    return 0;
}
