/* SPDX-License-Identifier: Apache-2.0 */
/*
 * schema_walk N SEED < SCHEMAS: for each line, a JSON schema, prints one line: {"refused": "..."}
 * or
 * {"texts": [...]}, N texts of its grammar walked at random byte by byte. Tests hand the texts to a
 * validator that was written by others.
 */
#include "serve/schema.h"

#include "base/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct cr_frames now, next;

/* A random text; false: it did not come to an end. Prefers to end when it is long. */
static bool walk(cr_grammar *g, struct cr_rng *r, char *out, size_t max)
{
    size_t n = 0;
    if (!cr_grammar_start(g, &now))
        return false;
    while (n + 1 < max) {
        if (now.whole && (now.n == 0 || cr_rng_below(r, 4) == 0 || n > 60)) {
            out[n] = '\0';
            return true;
        }
        /* Closing bytes more often than others, so that the walk ends. */
        static const char closing[] = "\"]},:";
        bool found = false;
        for (int tries = 0; tries < 4000 && !found; tries++) {
            uint8_t b = (uint8_t)cr_rng_below(r, 256);
            if (cr_rng_below(r, n > 30 ? 2 : 8) == 0)
                b = (uint8_t)closing[cr_rng_below(r, 5)];
            if (!cr_grammar_step(g, &now, b, &next))
                return false;
            if (next.n || next.whole) {
                out[n++] = (char)b;
                now = next;
                found = true;
            }
        }
        if (!found)
            return false;
    }
    return false;
}

int main(int argc, char **argv)
{
    static char line[1 << 22], text[1 << 16];
    int n = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 10;
    struct cr_rng r;
    cr_rng_init(&r, argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
    while (fgets(line, sizeof line, stdin)) {
        struct cr_api_error e;
        cr_grammar *g = NULL;
        json_t *schema = json_loads(line, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL), *out = NULL;
        if (!schema) {
            out = json_pack("{s:s}", "refused", "not JSON");
        } else if (cr_schema_compile(&g, schema, "schema", &e) != CR_OK) {
            out = json_pack("{s:s}", "refused", e.msg);
        } else {
            json_t *texts = json_array();
            int unfinished = 0;
            for (int i = 0; i < n; i++) {
                if (walk(g, &r, text, sizeof text))
                    json_array_append_new(texts, json_string(text));
                else
                    unfinished++;
            }
            out = json_pack("{s:o, s:i}", "texts", texts, "unfinished", unfinished);
        }
        char *s = json_dumps(out, JSON_COMPACT);
        puts(s);
        free(s);
        json_decref(out);
        json_decref(schema);
        cr_grammar_unref(g);
    }
    return 0;
}
