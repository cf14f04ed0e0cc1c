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
    size_t bytes = 0;
    for (size_t i = 0; i < p->worked.n; i++) {
        const struct cr_example *e = &p->worked.v[i];
        if (!e->question || !*e->question || !e->answer || !*e->answer ||
            (e->n_choices && strcmp(e->choices[e->answer_index], e->answer)))
            abort();
        bytes += cr_palette_worked_bytes(e);
    }
    if (p->worked.n > CR_WORKED_MAX || bytes > CR_PALETTE_WORKED_BYTES)
        abort();
    cr_palette_close(p);
    return 0;
}
