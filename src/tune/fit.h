/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few gentle gradient steps from a blend on the user's own examples: the level "tuned". The
 * result is a plain LoRA of the blend's rank, as a pool of kind lora that keeps the index of the
 * pool it came from, so that its palettes know their scope as before.
 *
 *     struct cr_train_options o = cr_train_options_default();
 *     cr_fit_options(&o, pool, blend);
 *     o.examples = e; o.n_examples = n;
 *     cr_trainer_new(&t, model, &o, &err); cr_trainer_run(t, &report, &err);
 *     cr_fit_pool(&tuned, t, pool, &err);
 */
#ifndef CR_FIT_H
#define CR_FIT_H

#include "tune/train.h"

/* Shape and start from the blend; AdamW, 8 steps of all examples, rate 3e-4 throughout, no
 * checkpoint (docs/evidence.md: of the steps that nothing measures, those that forget least).
 * Examples of a pool that was trained with worked examples stand in chains as its rows did. */
void cr_fit_options(struct cr_train_options *o, const cr_pool *pool, const cr_delta *blend);

/* What the trainer has come to, with the index of `pool`. Free with cr_pool_close. */
enum cr_status cr_fit_pool(cr_pool **out, const cr_trainer *t, const cr_pool *pool,
                           struct cr_error *err);

#endif
