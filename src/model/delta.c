/* SPDX-License-Identifier: Apache-2.0 */
/* Storage of a delta: one block of floats, one table of pairs. */
#include "model/delta.h"

#include "base/error.h"
#include "base/mem.h"

#include <stdatomic.h>

const char *const cr_linear_names[CR_LIN_COUNT] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                   "ffn_gate", "ffn_up", "ffn_down"};
const enum cr_input cr_linear_inputs[CR_LIN_COUNT] = {CR_INPUT_ATTN, CR_INPUT_ATTN, CR_INPUT_ATTN,
                                                      CR_INPUT_O,    CR_INPUT_FFN,  CR_INPUT_FFN,
                                                      CR_INPUT_DOWN};

enum cr_status cr_delta_new(cr_delta **out, int n_layers, size_t n_floats, struct cr_error *err)
{
    static atomic_uint_fast64_t next_id = 1;
    *out = NULL;
    cr_delta *d = cr_alloc0(1, sizeof *d);
    if (d) {
        d->n_layers = n_layers;
        d->pairs = cr_alloc0((size_t)n_layers * CR_LIN_COUNT, sizeof *d->pairs);
        d->data = n_floats ? cr_alloc(n_floats, sizeof(float)) : NULL;
    }
    if (!d || !d->pairs || (n_floats && !d->data)) {
        cr_delta_free(d);
        return cr_error_set(err, CR_NO_MEMORY, "delta: out of memory for %zu floats", n_floats);
    }
    d->id = atomic_fetch_add(&next_id, 1);
    *out = d;
    return CR_OK;
}

void cr_delta_free(cr_delta *d)
{
    if (!d)
        return;
    cr_free(d->pairs);
    cr_free(d->data);
    cr_free(d->own_stacks);
    cr_free(d->packed_a);
    cr_free(d->packed_b);
    cr_free(d);
}

int cr_delta_rank(const cr_delta *d)
{
    return d->max_rank;
}

struct cr_low_rank *cr_delta_at(const cr_delta *d, int layer, enum cr_linear lin)
{
    return &d->pairs[layer * CR_LIN_COUNT + (int)lin];
}

const struct cr_low_stack *cr_delta_stack(const cr_delta *d, int layer, enum cr_input input)
{
    return d->stacks ? &d->stacks[layer * CR_INPUT_COUNT + (int)input] : NULL;
}
