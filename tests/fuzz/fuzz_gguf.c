/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole model file from hostile bytes: container, tokenizer, binding of tensors and, if all of
 * that is accepted, two tokens of the forward pass. The corpus was written by unit/tiny_gguf.h:
 * one layer of each architecture. The level of the kernels follows the size of the input.
 */
#include "model/session.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run(cr_model *m)
{
    cr_session *s;
    struct cr_error err;
    if (cr_session_new(&s, m, 8, &err))
        return;
    int32_t ids[2] = {0, m->n_vocab - 1};
    if (cr_session_sync(s, ids, 2, NULL, &err) || !cr_session_logits(s))
        abort();
    cr_session_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cr_gguf *g;
    cr_model *m;
    struct cr_error err = {0};
    void *copy = NULL; /* exact size, aligned as a mapping is */
    if (posix_memalign(&copy, 64, size ? size : 1))
        return 0;
    if (size)
        memcpy(copy, data, size);
    const enum cr_cpu level = (enum cr_cpu)(size % CR_CPU_COUNT);
    const struct cr_kernels *k = cr_kernels_level(level);
    const struct cr_model_options opt = {.n_threads = 1, .cpu = k ? k->name : "ref"};
    if (cr_gguf_parse(&g, copy, size, "fuzz", &err)) {
        if (g || !err.msg[0])
            abort();
    } else if (cr_model_from_gguf(&m, g, "fuzz", &opt, &err)) {
        if (m || !err.msg[0])
            abort();
    } else {
        run(m);
        cr_model_hash(m);
        cr_model_close(m);
    }
    if (cr_mem_now())
        abort();
    free(copy);
    return 0;
}
