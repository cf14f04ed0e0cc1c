/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From logits to the next token. The steps, each over what the former left:
 *   1 repetition penalty (Keskar et al. 2019, arXiv 1909.05858): the logit of every token in the
 *     window is divided by the penalty when positive, multiplied when negative
 *   2 temperature 0: the largest logit; ties go to the lower id
 *   3 temperature: p ~ exp(logit / T)
 *   4 min-p: tokens with p < min_p * max p go
 *   5 top-k: the k most likely stay
 *   6 top-p: the fewest most likely whose share is at least top_p stay
 *   7 one draw from a seeded generator
 * Candidates come off a heap in order of probability, so only those that can be chosen are sorted.
 * Sums run in double in that order: the same logits and seed give the same token everywhere.
 * A logit that is not a number counts as impossible.
 */
#include "model/model.h"

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

enum { MAX_WINDOW = 1024 };

struct candidate {
    float logit;
    int32_t id;
};

struct cr_sampler {
    struct cr_sampling p;
    const struct cr_kernels *k;
    struct cr_rng rng;
    size_t n_vocab;
    int32_t window[MAX_WINDOW]; /* a ring of the last ids */
    size_t window_n, window_at;
    float *scratch;               /* [n_vocab] */
    struct candidate *candidates; /* [n_vocab] */
};

struct cr_sampling cr_sampling_default(void)
{
    return (struct cr_sampling){.temperature = 0.8f,
                                .top_k = 40,
                                .top_p = 0.95f,
                                .min_p = 0.05f,
                                .repeat_penalty = 1,
                                .repeat_last_n = 64,
                                .seed = 1};
}

static enum cr_status check(const struct cr_sampling *p, struct cr_error *err)
{
    const struct {
        const char *name;
        double v, lo, hi;
    } ranges[] = {{"temperature", (double)p->temperature, 0, 100},
                  {"top_k", p->top_k, 0, INT32_MAX},
                  {"top_p", (double)p->top_p, 0, 1},
                  {"min_p", (double)p->min_p, 0, 1},
                  {"repeat_penalty", (double)p->repeat_penalty, 0.01, 100},
                  {"repeat_last_n", p->repeat_last_n, 0, MAX_WINDOW}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (!(ranges[i].v >= ranges[i].lo && ranges[i].v <= ranges[i].hi))
            return cr_error_set(err, CR_INVALID, "sampling: %s: want %g to %g, got %g",
                                ranges[i].name, ranges[i].lo, ranges[i].hi, ranges[i].v);
    return CR_OK;
}

enum cr_status cr_sampler_new(cr_sampler **out, const cr_model *m, const struct cr_sampling *params,
                              struct cr_error *err)
{
    *out = NULL;
    enum cr_status status = check(params, err);
    if (status != CR_OK)
        return status;
    cr_sampler *s = cr_alloc0(1, sizeof *s);
    if (s) {
        s->p = *params;
        s->k = m->k;
        s->n_vocab = (size_t)m->n_vocab;
        s->scratch = cr_alloc(s->n_vocab, sizeof *s->scratch);
        s->candidates = cr_alloc(s->n_vocab, sizeof *s->candidates);
        cr_rng_init(&s->rng, params->seed);
    }
    if (!s || !s->scratch || !s->candidates) {
        cr_sampler_free(s);
        return cr_error_set(err, CR_NO_MEMORY, "sampler: out of memory");
    }
    *out = s;
    return CR_OK;
}

void cr_sampler_free(cr_sampler *s)
{
    if (!s)
        return;
    cr_free(s->candidates);
    cr_free(s->scratch);
    cr_free(s);
}

void cr_sampler_accept(cr_sampler *s, int32_t id)
{
    size_t cap = (size_t)s->p.repeat_last_n;
    if (cap == 0 || id < 0 || (size_t)id >= s->n_vocab)
        return;
    s->window[s->window_at] = id;
    s->window_at = (s->window_at + 1) % cap;
    s->window_n = s->window_n < cap ? s->window_n + 1 : cap;
}

/* The logits with the penalty applied, in scratch; the logits themselves when there is none. Each
 * id starts from its own logit, so one that occurs twice is punished once. */
static const float *penalise(cr_sampler *s, const float *logits)
{
    if (s->p.repeat_penalty == 1 || s->window_n == 0)
        return logits;
    memcpy(s->scratch, logits, s->n_vocab * sizeof *logits);
    for (size_t i = 0; i < s->window_n; i++) {
        float v = logits[s->window[i]];
        s->scratch[s->window[i]] = v > 0 ? v / s->p.repeat_penalty : v * s->p.repeat_penalty;
    }
    return s->scratch;
}

static int32_t argmax(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i])))
            best = i;
    return (int32_t)best;
}

/* ---- candidates, most likely first ---- */

static bool before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(struct candidate *c, size_t n, size_t i)
{
    struct candidate moving = c[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(c[child + 1], c[child]))
            child++;
        if (!before(c[child], moving))
            break;
        c[i] = c[child];
    }
    c[i] = moving;
}

/* Takes the best off the heap of *n; it is kept behind the heap, which shrinks. */
static void pop(struct candidate *c, size_t *n)
{
    struct candidate best = c[0];
    (*n)--;
    c[0] = c[*n];
    sift_down(c, *n, 0);
    c[*n] = best;
}

/* Those with p >= min_p * max p, as a heap when an order is needed; returns how many. */
static size_t gather(cr_sampler *s, const float *logits, float most, bool ordered)
{
    double floor = (double)s->p.temperature * log((double)s->p.min_p); /* -inf when min_p is 0 */
    size_t n = 0;
    for (size_t i = 0; i < s->n_vocab; i++)
        if ((double)logits[i] - (double)most >= floor && logits[i] > -INFINITY)
            s->candidates[n++] = (struct candidate){logits[i], (int32_t)i};
    for (size_t i = n / 2; ordered && i-- > 0;)
        sift_down(s->candidates, n, i);
    return n;
}

static double weight(const cr_sampler *s, float logit, float most)
{
    return exp(((double)logit - (double)most) / (double)s->p.temperature);
}

/* Draws from candidates [begin, end), walked from the back. */
static int32_t draw(cr_sampler *s, size_t begin, size_t end, float most)
{
    double total = 0, at = 0;
    for (size_t i = end; i-- > begin;)
        total += weight(s, s->candidates[i].logit, most);
    double r = cr_rng_double(&s->rng) * total;
    for (size_t i = end; i-- > begin;) {
        at += weight(s, s->candidates[i].logit, most);
        if (r < at)
            return s->candidates[i].id;
    }
    return s->candidates[begin].id; /* r == total by rounding */
}

static int32_t sample(cr_sampler *s, const float *logits, int32_t best)
{
    float most = logits[best];
    if (!isfinite(most))
        return best;
    bool ordered = s->p.top_k > 0 || s->p.top_p < 1;
    size_t n = gather(s, logits, most, ordered), left = n, k = (size_t)s->p.top_k;
    if (!ordered)
        return draw(s, 0, n, most);
    double total = 0, kept = 0;
    if (k == 0 || k > n)
        k = n;
    if (k < n || s->p.top_p >= 1) { /* take k; the share of top-p is of these */
        while (left > n - k)
            pop(s->candidates, &left);
        for (size_t i = n; i-- > left;)
            total += weight(s, s->candidates[i].logit, most);
    } else {
        for (size_t i = 0; i < n; i++)
            total += weight(s, s->candidates[i].logit, most);
    }
    size_t end = n, begin = n;
    while (begin > n - k && (begin == end || kept < (double)s->p.top_p * total)) {
        if (begin == left)
            pop(s->candidates, &left);
        begin--;
        kept += weight(s, s->candidates[begin].logit, most);
    }
    return draw(s, begin, end, most);
}

/* log softmax(logits)[id] = logits[id] - max - log(sum); the kernel's largest p is 1 / sum. */
static float log_probability(cr_sampler *s, const float *logits, int32_t id)
{
    int32_t best = argmax(logits, s->n_vocab);
    memcpy(s->scratch, logits, s->n_vocab * sizeof *logits);
    s->k->softmax(s->scratch, s->n_vocab);
    return logits[id] - logits[best] + logf(s->scratch[best]);
}

int32_t cr_sampler_next(cr_sampler *s, const float *logits, float *logprob)
{
    const float *penalised = penalise(s, logits);
    int32_t best = argmax(penalised, s->n_vocab);
    int32_t id = s->p.temperature > 0 ? sample(s, penalised, best) : best;
    if (logprob)
        *logprob = log_probability(s, logits, id);
    cr_sampler_accept(s, id);
    return id;
}
