/* SPDX-License-Identifier: Apache-2.0 */
/* The reader of examples: the first byte chooses the format, the rest is the file. */
#include "adapt/examples.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    struct cr_examples e;
    struct cr_error err;
    const char *text = (const char *)data + 1;
    if (cr_examples_parse(&e, text, size - 1, "fuzz", (enum cr_examples_format)(data[0] % 4),
                          &err)) {
        if (e.v || e.arena || !err.msg[0])
            abort();
        return 0;
    }
    for (size_t i = 0; i < e.n; i++) {
        const struct cr_example *x = &e.v[i];
        if (!x->question || !x->task || x->answer_index >= x->n_choices ||
            (x->answer_index >= 0 && strcmp(x->answer, x->choices[x->answer_index])))
            abort();
        char *prompt = cr_example_prompt(x);
        if (prompt && strlen(prompt) < strlen(x->question))
            abort();
        cr_free(prompt);
    }
    cr_examples_deinit(&e);
    return 0;
}
