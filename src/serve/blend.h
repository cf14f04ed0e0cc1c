/* SPDX-License-Identifier: Apache-2.0 */
/* From examples in a request to a target: POST /v1/crayon/blend and the field crayon.examples. */
#ifndef CR_SERVE_BLEND_H
#define CR_SERVE_BLEND_H

#include "serve/job.h"

enum { CR_BLENDS_KEPT = 16 };

/* Blends of examples that were asked for lately, so that the next request with the same examples
 * costs nothing and finds its cache. Worker's thread. */
struct cr_blends {
    struct cr_kept_blend {
        char key[65];
        struct cr_target *target;
        uint64_t used;
    } v[CR_BLENDS_KEPT];
    uint64_t clock;
};
void cr_blends_deinit(struct cr_blends *b);
/* Sets j->target and j->blend_ms from j->req.examples, at the level that needs no run of the model.
 */
bool cr_blends_apply(struct cr_blends *b, struct cr_job *j, struct cr_api_error *e);

#endif
