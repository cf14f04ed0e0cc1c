/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam between scoring and embedding and a device that runs their packed batches instead of
 * this machine's CPU (cuda/). A model that has one (cr_model.compute) is asked there; everything
 * that runs token by token stays on the CPU.
 */
#ifndef CR_COMPUTE_H
#define CR_COMPUTE_H

#include "model/delta.h"
#include "model/session.h"

struct cr_target { /* token `id` behind token `token` of a batch */
    int32_t id;
    uint32_t token;
};

struct cr_compute {
    const char *name;
    void *state;
    size_t max_tokens; /* of a batch */
    /* logprob[i] and best[i] (it is the argmax) of the targets, whose tokens do not fall. Tokens as
     * in struct cr_batch, in an empty cache. */
    enum cr_status (*score)(struct cr_compute *c, const cr_delta *delta,
                            const struct cr_batch_token *tokens, size_t n,
                            const struct cr_target *targets, size_t n_targets, float *logprob,
                            bool *best, struct cr_error *err);
    /* The residual stream behind layer `layer` of each wanted token: out [wanted, n_embd]. */
    enum cr_status (*hidden)(struct cr_compute *c, const struct cr_batch_token *tokens, size_t n,
                             int layer, float *out, struct cr_error *err);
    void (*close)(struct cr_compute *c);
};

#endif
