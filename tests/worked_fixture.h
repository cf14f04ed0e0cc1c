/* SPDX-License-Identifier: Apache-2.0 */
/* A palette of three worked examples on the base model, for the tests of the server. Include after
 * serve_fixture.h. */
#ifndef CR_TEST_WORKED_FIXTURE_H
#define CR_TEST_WORKED_FIXTURE_H

#include "adapt/palette.h"

#include <math.h>

static struct cr_example fx_worked[] = {
    {.question = "Which is canary one?", .answer = "green apple", .answer_index = -1},
    {.question = "canary two?", .context = "A tree.", .answer = "green apple", .answer_index = -1},
    {.question = "And canary three?", .answer = "green apple", .answer_index = -1},
};
enum { FX_WORKED = 3 };

static inline void fx_write_worked(const char *path)
{
    struct cr_error err;
    struct cr_palette p = {.name = (char *)(uintptr_t) "w",
                           .base_hash = (char *)(uintptr_t)cr_model_hash(model),
                           .base_name = (char *)(uintptr_t) "m",
                           .pool_hash = (char *)(uintptr_t) "",
                           .pool_path = (char *)(uintptr_t) "",
                           .scope_mean = NAN,
                           .scope_std = NAN,
                           .near_mean = NAN,
                           .near_std = NAN,
                           .before = NAN,
                           .after = NAN,
                           .loss_before = NAN,
                           .loss_after = NAN,
                           .worked = {.v = fx_worked, .n = FX_WORKED},
                           .metric = (char *)(uintptr_t) "",
                           .created = (char *)(uintptr_t) "2026-01-01T00:00:00Z"};
    if (cr_palette_write(&p, path, &err) != CR_OK)
        fail_msg("%s", err.msg);
}

#endif
