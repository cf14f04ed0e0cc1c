/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of requests: the first byte chooses the dialect. A refusal has a status and a message. */
#include "serve/api.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cr_api_request r;
    struct cr_api_error e;
    if (!size)
        return 0;
    enum cr_api_kind kind = (enum cr_api_kind)(data[0] % CR_API_KINDS);
    bool ok = cr_api_parse(&r, kind, (const char *)data + 1, size - 1, &e);
    if (!ok && (e.http < 400 || !e.msg[0]))
        abort();
    if (ok && (!r.model || (r.chat ? r.n_messages == 0 : r.n_prompts == 0)))
        abort();
    for (size_t i = 0; ok && i < r.n_messages; i++)
        if (!r.messages[i].role || !r.messages[i].content)
            abort();
    if (!ok) {
        json_t *v = cr_api_error_json(kind, &e);
        if (!v)
            abort();
        json_decref(v);
    }
    cr_api_request_deinit(&r);
    return 0;
}
