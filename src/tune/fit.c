/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning on from a blend. */
#include "tune/fit.h"

void cr_fit_options(struct cr_train_options *o, const cr_pool *pool, const cr_delta *blend)
{
    o->start = blend;
    o->kind = CR_POOL_LORA;
    o->form = CR_POOL_SHARED;
    o->n = 1;
    o->rank = blend->max_rank;
    o->alpha = 2 * (float)o->rank;
    for (int l = 0; l < CR_LIN_COUNT; l++)
        o->target[l] = pool->target[l];
    o->worked = pool->worked < CR_TRAIN_MAX_WORKED ? (int)pool->worked : CR_TRAIN_MAX_WORKED;
    o->steps = 8;
    o->lr = 3e-4F;
    o->warm_up = 0;
    o->lr_end = 1;
    o->checkpoint_s = -1;
}

enum cr_status cr_fit_pool(cr_pool **out, const cr_trainer *t, const cr_pool *pool,
                           struct cr_error *err)
{
    enum cr_status st = cr_trainer_pool(t, out, err);
    if (!st)
        st = cr_pool_index_copy(*out, pool, err);
    if (st) {
        cr_pool_close(*out);
        *out = NULL;
    }
    return st;
}
