/* SPDX-License-Identifier: Apache-2.0 */
/* Pool files and GGUF LoRA files over the tiny model of tests/golden/lora; what opens must run. */
#include "adapt/adapter.h"
#include "adapt/pool.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_pool(const cr_pool *p)
{
    struct cr_error err;
    cr_delta *d;
    float *weights = calloc((size_t)p->n, sizeof *weights);
    if (!weights)
        return;
    for (int n = 0; n < p->n; n++)
        weights[n] = (float)(n % 3) - 1;
    if (cr_pool_blend(&d, p, weights, &err) == CR_OK) {
        for (int i = 0; i < d->n_layers * CR_LIN_COUNT; i++)
            if (d->pairs[i].rank && !isfinite(d->pairs[i].a[0]))
                abort();
        cr_delta_free(d);
    }
    free(weights);
}

static void use_adapter(const cr_model *m, const cr_adapter *a)
{
    struct cr_error err;
    cr_delta *d;
    float scale = 1;
    if (a->n_pairs < 1 || a->max_rank < 1)
        abort();
    if (cr_adapters_combine(&d, m, &a, &scale, 1, &err))
        abort();
    cr_delta_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static cr_model *m;
    struct cr_error err = {.msg = ""};
    struct cr_model_options opt = {.n_threads = 1};
    char path[32];
    if (!m && cr_model_open(&m, CR_SOURCE_DIR "/tests/golden/lora/base.gguf", &opt, &err))
        abort();
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    cr_pool *p;
    if (cr_pool_open(&p, m, path, &err) == CR_OK)
        use_pool(p);
    else if (p || !err.msg[0])
        abort();
    cr_pool_close(p);
    cr_adapter *a;
    err.msg[0] = '\0';
    if (cr_adapter_open(&a, m, path, &err) == CR_OK)
        use_adapter(m, a);
    else if (a || !err.msg[0])
        abort();
    cr_adapter_close(a);
    close(fd);
    return 0;
}
