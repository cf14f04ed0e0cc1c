/* SPDX-License-Identifier: Apache-2.0 */
/*
 * REFINE: a (1+1) evolution strategy on the weights, for a loss that can only be evaluated.
 *
 *   try w' = w + sigma * normal; accept if the mean loss falls and the mean over neither half of
 *   the examples rises; sigma *= 1.5 on success, 0.9 else.
 *
 * The halves (every other example) guard against fitting one odd example: a handful is all there
 * is, nothing can be held out. A loss that is not finite is never accepted.
 */
#include "adapt/solve.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

struct means {
    double all, half[2];
};

static struct means average(const float *loss, size_t n)
{
    struct means m = {0};
    size_t count[2] = {0};
    for (size_t i = 0; i < n; i++) {
        m.half[i & 1] += (double)loss[i];
        count[i & 1]++;
    }
    m.all = (m.half[0] + m.half[1]) / (double)n;
    for (int h = 0; h < 2; h++)
        m.half[h] = count[h] ? m.half[h] / (double)count[h] : 0;
    return m;
}

static bool better(const struct means *now, const struct means *best)
{
    return now->all < best->all && now->half[0] <= best->half[0] && now->half[1] <= best->half[1];
}

enum cr_status cr_refine(struct cr_refine *r, float *w, const float *start_loss,
                         struct cr_error *err)
{
    size_t n = (size_t)r->n;
    r->n_evals = r->n_accepted = 0;
    r->stopped = false;
    struct means best = average(start_loss, r->n_examples);
    r->loss_start = r->loss_end = (float)best.all;
    if (!r->n_examples || !(r->sigma > 0) || !isfinite(r->sigma))
        return cr_error_set(err, CR_INVALID, "refine: %zu examples, step %g", r->n_examples,
                            (double)r->sigma);
    float *trial = cr_alloc(n + r->n_examples, sizeof *trial);
    if (!trial)
        return cr_error_set(err, CR_NO_MEMORY, "refine: out of memory");
    float *loss = trial + n;
    struct cr_rng rng;
    cr_rng_init(&rng, r->seed);
    double sigma = (double)r->sigma;
    enum cr_status st = CR_OK;
    while (r->n_evals < r->max_evals) {
        for (size_t i = 0; i < n; i++) {
            trial[i] = (float)((double)w[i] + sigma * cr_rng_normal(&rng));
            if (r->not_negative && trial[i] < 0)
                trial[i] = 0;
        }
        st = r->loss(r->ud, trial, loss, err);
        if (st)
            break;
        r->n_evals++;
        struct means now = average(loss, r->n_examples);
        if (better(&now, &best)) {
            best = now;
            memcpy(w, trial, n * sizeof *w);
            r->n_accepted++;
            sigma *= 1.5;
        } else {
            sigma *= 0.9;
        }
    }
    r->loss_end = (float)best.all;
    if (st == CR_CANCELLED) {
        r->stopped = true;
        st = CR_OK;
    }
    cr_free(trial);
    return st;
}
