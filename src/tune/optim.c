/* SPDX-License-Identifier: Apache-2.0 */
/* AdamW in pieces of 16384 parameters: one pass for the norm, one for the update. */
#include "tune/optim.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

enum { PIECE = 16384 };

static size_t n_pieces(size_t n)
{
    return (n + PIECE - 1) / PIECE;
}

size_t cr_adamw_bytes(size_t n)
{
    return 2 * n * sizeof(float) + n_pieces(n) * sizeof(double);
}

enum cr_status cr_adamw_init(struct cr_adamw *o, size_t n, struct cr_error *err)
{
    o->n = o->tail = n;
    o->m = cr_alloc0(n, sizeof *o->m);
    o->v = cr_alloc0(n, sizeof *o->v);
    o->partial = cr_alloc0(n_pieces(n), sizeof *o->partial);
    if (o->m && o->v && o->partial)
        return CR_OK;
    cr_adamw_deinit(o);
    return cr_error_set(err, CR_NO_MEMORY, "training: out of memory for the moments of %zu numbers",
                        n);
}

void cr_adamw_deinit(struct cr_adamw *o)
{
    cr_free(o->partial);
    cr_free(o->v);
    cr_free(o->m);
    o->m = o->v = NULL;
    o->partial = NULL;
}

struct work {
    struct cr_adamw *o;
    float *params, *grads;
    float gain;         /* on gradients, from clipping */
    float lr[2];        /* of the body and the tail */
    float fix_m, fix_v; /* 1 / (1 - beta^step) */
};

/* A piece's sum of squares, in 16 lanes so that it makes vectors, each lane in order. */
static void sum_squares(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct work *w = ud;
    for (size_t piece = begin; piece < end; piece++) {
        size_t at = piece * PIECE, stop = at + PIECE < w->o->n ? at + PIECE : w->o->n;
        double lanes[16] = {0}, sum = 0;
        for (size_t i = at; i < stop; i++)
            lanes[i % 16] += (double)w->grads[i] * (double)w->grads[i];
        for (int i = 0; i < 16; i++)
            sum += lanes[i];
        w->o->partial[piece] = sum;
    }
}

static void update_range(const struct work *w, size_t begin, size_t end, float lr, float decay)
{
    float *restrict p = w->params, *restrict g = w->grads, *restrict m = w->o->m,
                    *restrict v = w->o->v;
    const float b1 = w->o->beta1, b2 = w->o->beta2;
    for (size_t i = begin; i < end; i++) {
        float x = g[i] * w->gain;
        m[i] = b1 * m[i] + (1.0f - b1) * x;
        v[i] = b2 * v[i] + (1.0f - b2) * x * x;
        p[i] -= lr * (m[i] * w->fix_m / (sqrtf(v[i] * w->fix_v) + 1e-8f) + decay * p[i]);
        g[i] = 0;
    }
}

static void update(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct work *w = ud;
    size_t at = begin * PIECE, stop = end * PIECE < w->o->n ? end * PIECE : w->o->n;
    size_t middle = at > w->o->tail ? at : stop < w->o->tail ? stop : w->o->tail;
    update_range(w, at, middle, w->lr[0], w->o->weight_decay);
    update_range(w, middle, stop, w->lr[1], 0);
}

double cr_adamw_step(struct cr_adamw *o, cr_threads *t, float *params, float *grads, long step,
                     float factor)
{
    struct work w = {.o = o, .params = params, .grads = grads, .gain = 1};
    double sum = 0;
    cr_threads_run(t, n_pieces(o->n), 1, sum_squares, &w);
    for (size_t i = 0; i < n_pieces(o->n); i++)
        sum += o->partial[i];
    double norm = sqrt(sum);
    if (!isfinite(norm)) {
        memset(grads, 0, o->n * sizeof *grads);
        return norm;
    }
    if (o->clip > 0 && norm > (double)o->clip)
        w.gain = (float)((double)o->clip / (norm + 1e-6));
    w.lr[0] = o->lr * factor;
    w.lr[1] = o->lr_tail * factor;
    w.fix_m = (float)(1 / (1 - pow((double)o->beta1, (double)step)));
    w.fix_v = (float)(1 / (1 - pow((double)o->beta2, (double)step)));
    cr_threads_run(t, n_pieces(o->n), 1, update, &w);
    return norm;
}

float cr_lr_factor(long step, long n_steps, float warm_up, float end)
{
    long warm = lroundf(warm_up * (float)n_steps);
    if (step < warm)
        return (float)(step + 1) / (float)warm;
    if (n_steps - warm <= 1)
        return 1;
    double at = (double)(step - warm) / (double)(n_steps - warm - 1);
    return (float)((double)end + (1 - (double)end) * 0.5 * (1 + cos(3.14159265358979323846 * at)));
}
