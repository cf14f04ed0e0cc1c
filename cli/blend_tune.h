/* SPDX-License-Identifier: Apache-2.0 */
/* The level "tuned" of `crayon blend`: gradient steps from the blend, in a file beside the palette
 * that stays under a temporary name until it is kept. */
#ifndef CR_CLI_BLEND_TUNE_H
#define CR_CLI_BLEND_TUNE_H

#include "adapt/pool.h"
#include "messages.h"
#include "options.h"

struct cr_tuned {
    cr_pool *pool; /* as read back from its file; NULL: there is none */
    cr_delta *delta;
    char *path, *temporary;
    long steps;
    double seconds;
    float loss_first, loss_last; /* mean NLL of the answers, before and at the last step */
    uint64_t planned_bytes;
};

/* CR_UNSUPPORTED in a build without training. */
enum cr_status cr_tuned_check(struct cr_error *err);
/* pass_s: seconds of one scoring pass over the examples, for the estimate; 0: not known.
 * CR_CANCELLED: stopped. */
enum cr_status cr_tuned_make(struct cr_tuned *t, const struct cr_args *a, cr_model *m,
                             const cr_pool *pool, const cr_delta *blend, const struct cr_example *e,
                             size_t n, double pass_s, struct cr_error *err);
/* Gives the file its name. */
enum cr_status cr_tuned_keep(struct cr_tuned *t, struct cr_error *err);
/* Removes a file that was not kept. */
void cr_tuned_deinit(struct cr_tuned *t);

#endif
