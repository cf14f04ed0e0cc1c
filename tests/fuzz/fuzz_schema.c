/* SPDX-License-Identifier: Apache-2.0 */
/* JSON schemas: what compiles gives texts that are JSON; what does not is an error that says why.
 */
#include "serve/schema.h"

#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct cr_frames now, next;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cr_api_error e;
    cr_grammar *g = NULL;
    json_t *schema = json_loadb((const char *)data, size, JSON_DECODE_ANY, NULL);
    if (!schema)
        return 0;
    enum cr_status status = cr_schema_compile(&g, schema, "schema", &e);
    if (status == CR_OK ? !g : g || e.http < 400 || !e.msg[0])
        abort();
    struct cr_rng r;
    char text[512];
    size_t n = 0;
    cr_rng_init(&r, size);
    bool going = g && cr_grammar_start(g, &now);
    while (going && n < sizeof text && !(now.whole && n > 8)) {
        uint8_t b = 0;
        bool found = false;
        for (int tries = 0; tries < 64 && !found; tries++) {
            b = tries < 8 ? (uint8_t) "\"]},:0 e"[tries] : (uint8_t)cr_rng_below(&r, 256);
            if (tries < 8 && cr_rng_below(&r, 2))
                continue;
            if (!cr_grammar_step(g, &now, b, &next)) {
                going = false; /* past a bound: an error for the request */
                break;
            }
            found = next.n || next.whole;
        }
        if (!going || !found)
            break;
        text[n++] = (char)b;
        now = next;
    }
    if (going && now.whole && n && n < sizeof text) {
        json_t *v = json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        if (!v)
            abort();
        json_decref(v);
    }
    cr_grammar_unref(g);
    json_decref(schema);
    return 0;
}
