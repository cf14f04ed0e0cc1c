/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AdamW (Loshchilov and Hutter, 2019) with bias correction, a cap on the global gradient norm, and
 * the learning-rate schedule. Threads split the parameters in fixed pieces; the norm is the sum of
 * the pieces' sums in their order, so nothing depends on the thread count.
 */
#ifndef CR_OPTIM_H
#define CR_OPTIM_H

#include "base/threads.h"

struct cr_adamw {
    float lr, lr_tail;  /* lr_tail: of the parameters from `tail` on */
    size_t n, tail;     /* parameters; first one with lr_tail */
    float beta1, beta2; /* decay of the moments */
    float weight_decay; /* times lr, on all but the tail */
    float clip;         /* of the norm of all gradients; 0: off */
    float *m, *v;       /* [n] moments, owned */
    double *partial;    /* owned: sums of squares of the pieces */
};

size_t cr_adamw_bytes(size_t n);
/* Moments 0. The other fields are the caller's. Free with cr_adamw_deinit. */
enum cr_status cr_adamw_init(struct cr_adamw *o, size_t n, struct cr_error *err);
void cr_adamw_deinit(struct cr_adamw *o);

/* One step, number `step` from 1, at lr * factor; clears grads. Returns the norm before clipping.
 *   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
 *   p -= lr * (m / (1 - b1^step) / (sqrt(v / (1 - b2^step)) + 1e-8) + decay * p)
 * A norm that is not finite changes nothing but the clearing, and is returned. */
double cr_adamw_step(struct cr_adamw *o, cr_threads *t, float *params, float *grads, long step,
                     float factor);

/* Factor of lr for step `step` from 0: linear over the first warm_up share, then a cosine from 1 to
 * `end` at the last step. */
float cr_lr_factor(long step, long n_steps, float warm_up, float end);

#endif
