/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_config.json: settings and patterns from a file, with limits on what matching costs. */
#include "adapt/peft_config.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = {"model.layers.0.self_attn.q_proj",
                                       "model.layers.11.mlp.down_proj", ""};
    cr_peft_config *c;
    struct cr_refusals bad = {0};
    struct cr_error err = {.msg = ""};
    if (cr_peft_config_parse(&c, (const char *)data, size, "fuzz", &bad, &err)) {
        if (c || !err.msg[0])
            abort();
        return 0;
    }
    for (int i = 0; i < 3; i++) {
        uint64_t rank;
        double alpha;
        cr_peft_config_targets(c, keys[i], i);
        cr_peft_config_scale(c, keys[i], &rank, &alpha);
        cr_peft_config_rslora(c);
    }
    cr_peft_config_finish(c, "fuzz", &bad);
    if (bad.n < bad.n_shown || (bad.n != 0) != (cr_refusals_report(&bad, "fuzz", &err) != CR_OK))
        abort();
    cr_peft_config_free(c);
    return 0;
}
