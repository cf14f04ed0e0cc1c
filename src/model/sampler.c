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
 * The logits are read in blocks: the largest of each block tells which blocks hold the k most
 * likely, the sum of the weights of each block where a draw among all falls, so that few are looked
 * at twice. Weights and their order are plain C, the same at every level of the CPU: the same
 * logits and seed give the same token everywhere. A logit that is not a number counts as
 * impossible.
 */
#include "model/model.h"

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

enum { MAX_WINDOW = 1024, BLOCK = 64, LANES = 4, FEW = 128 };

/* What every processor that we know adds at a time. */
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t flags __attribute__((vector_size(LANES * sizeof(float))));

struct candidate {
    float logit;
    int32_t id;
};

struct cr_sampler {
    struct cr_sampling p;
    struct cr_rng rng;
    size_t n_vocab, n_blocks;
    int32_t window[MAX_WINDOW]; /* a ring of the last ids */
    size_t window_n, window_at;
    float *scratch;               /* [n_vocab] penalised logits; NULL without a penalty */
    float *largest;               /* [n_blocks] of each block's logits, in them */
    double *sums;                 /* [n_blocks] of each block's weights */
    struct candidate *candidates; /* [room] */
    size_t room;
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
        s->n_vocab = (size_t)m->n_vocab;
        s->n_blocks = (s->n_vocab + BLOCK - 1) / BLOCK;
        s->room = params->top_k > 0 && (size_t)params->top_k < s->n_vocab ? (size_t)params->top_k
                  : params->top_p < 1                                     ? s->n_vocab
                                                                          : 0;
        s->largest = cr_alloc(s->n_blocks, sizeof *s->largest);
        s->sums = cr_alloc(s->n_blocks, sizeof *s->sums);
        if (s->room)
            s->candidates = cr_alloc(s->room, sizeof *s->candidates);
        if (params->repeat_penalty != 1)
            s->scratch = cr_alloc(s->n_vocab, sizeof *s->scratch);
        cr_rng_init(&s->rng, params->seed);
    }
    if (!s || !s->largest || !s->sums || (s->room && !s->candidates) ||
        (params->repeat_penalty != 1 && !s->scratch)) {
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
    cr_free(s->sums);
    cr_free(s->largest);
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

/* ---- blocks ---- */

/* Block i of the logits; the last one filled up in room. */
static const float *block(const cr_sampler *s, const float *logits, size_t i, float room[BLOCK])
{
    size_t n = s->n_vocab - i * BLOCK;
    if (n >= BLOCK)
        return logits + i * BLOCK;
    for (size_t j = 0; j < BLOCK; j++)
        room[j] = j < n ? logits[i * BLOCK + j] : -INFINITY;
    return room;
}

static lanes load(const float *x)
{
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

static lanes all(float x)
{
    return (lanes){x, x, x, x};
}

/* a where the flag is set, else b. */
static lanes pick(flags f, lanes a, lanes b)
{
    return (lanes)((f & (flags)a) | (~f & (flags)b));
}

static float largest(const float *x)
{
    lanes m[2] = {all(-INFINITY), all(-INFINITY)};
    for (size_t i = 0; i < BLOCK; i += 2 * LANES) {
        lanes a = load(x + i), b = load(x + i + LANES);
        m[0] = pick(a > m[0], a, m[0]);
        m[1] = pick(b > m[1], b, m[1]);
    }
    m[0] = pick(m[1] > m[0], m[1], m[0]);
    float most = m[0][0];
    for (size_t j = 1; j < LANES; j++)
        most = m[0][j] > most ? m[0][j] : most;
    return most;
}

/* The lowest id of the largest logit; fills s->largest. */
static int32_t find_best(cr_sampler *s, const float *logits)
{
    float room[BLOCK];
    size_t best = 0;
    for (size_t i = 0; i < s->n_blocks; i++) {
        s->largest[i] = largest(block(s, logits, i, room));
        if (s->largest[i] > s->largest[best])
            best = i;
    }
    float most = s->largest[best];
    for (size_t i = best * BLOCK; i < s->n_vocab; i++)
        if (logits[i] == most)
            return (int32_t)i;
    return 0; /* none is a number */
}

/* w[i] = exp(a), a = (x[i] - most) * scale, 0 where a < lowest or x[i] is not a number; lowest at
 * least -87. Within 2e-7 of the exact value. Returns their sum. */
static double weigh(float w[BLOCK], const float *x, float most, float scale, float lowest)
{
    lanes sum = all(0);
    for (size_t i = 0; i < BLOCK; i += LANES) {
        lanes a = (load(x + i) - most) * scale;
        flags in = a >= lowest;
        a = pick(in, a, all(-87));
        lanes t = a * 1.44269504f + 12582912.0f; /* a / ln 2, rounded, in the low bits */
        lanes n = t - 12582912.0f, f = a - n * 0.693359375f + n * 2.12194440e-4f;
        lanes e = f * (1.0f / 720) + 1.0f / 120;
        e = e * f + 1.0f / 24;
        e = e * f + 1.0f / 6;
        e = e * f + 0.5f;
        e = (e * f + 1.0f) * f + 1.0f;
        e *= (lanes)(((flags)t << 23) + 0x3f800000);
        e = (lanes)(in & (flags)e);
        memcpy(w + i, &e, sizeof e);
        sum += e;
    }
    return ((double)sum[0] + (double)sum[1]) + ((double)sum[2] + (double)sum[3]);
}

static float lowest_of(float min_p)
{
    return min_p > 0 ? fmaxf(logf(min_p), -87) : -87;
}

/* The sum of all weights, in order; fills s->sums. */
static double weigh_all(cr_sampler *s, const float *logits, float most, float temperature,
                        float min_p)
{
    float w[BLOCK], room[BLOCK], lowest = lowest_of(min_p);
    double total = 0;
    for (size_t i = 0; i < s->n_blocks; i++) {
        s->sums[i] = weigh(w, block(s, logits, i, room), most, 1 / temperature, lowest);
        total += s->sums[i];
    }
    return total;
}

/* ---- a draw among all ---- */

static int32_t draw_from_all(cr_sampler *s, const float *logits, float most)
{
    float w[BLOCK], room[BLOCK];
    const struct cr_sampling *p = &s->p;
    double total = weigh_all(s, logits, most, p->temperature, p->min_p), at = 0;
    double r = cr_rng_double(&s->rng) * total;
    int32_t id = 0;
    for (size_t i = 0; i < s->n_blocks; i++) {
        at += s->sums[i];
        if (s->sums[i] == 0 || (r >= at && at < total))
            continue;
        weigh(w, block(s, logits, i, room), most, 1 / p->temperature, lowest_of(p->min_p));
        r -= at - s->sums[i];
        for (size_t j = 0; j < BLOCK; j++) {
            if (w[j] > 0)
                id = (int32_t)(i * BLOCK + j); /* the last one, should rounding leave a rest */
            if ((r -= (double)w[j]) < 0)
                break;
        }
        break;
    }
    return id;
}

/* ---- a draw among the most likely ---- */

static bool before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* A heap with the least likely on top. */
static void sift_down(struct candidate *c, size_t n, size_t i)
{
    struct candidate moving = c[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(c[child], c[child + 1]))
            child++;
        if (!before(moving, c[child]))
            break;
        c[i] = c[child];
    }
    c[i] = moving;
}

/* The k most likely of those with p >= min_p * max p, most likely first; returns how many. */
static size_t take(cr_sampler *s, const float *logits, float most, size_t k)
{
    struct candidate *c = s->candidates;
    double floor = (double)s->p.temperature * log((double)s->p.min_p); /* -inf when min_p is 0 */
    size_t n = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        size_t end = (b + 1) * BLOCK < s->n_vocab ? (b + 1) * BLOCK : s->n_vocab;
        if ((double)s->largest[b] - (double)most < floor || (n == k && s->largest[b] <= c[0].logit))
            continue;
        for (size_t i = b * BLOCK; i < end; i++) {
            const struct candidate one = {logits[i], (int32_t)i};
            if (!(one.logit > -INFINITY && (double)one.logit - (double)most >= floor))
                continue;
            if (n < k) {
                c[n++] = one;
                for (size_t j = n / 2; n == k && j-- > 0;)
                    sift_down(c, n, j);
            } else if (before(one, c[0])) {
                c[0] = one;
                sift_down(c, n, 0);
            }
        }
    }
    for (size_t j = n / 2; n < k && j-- > 0;)
        sift_down(c, n, j);
    for (size_t left = n; left > 1;) {
        struct candidate last = c[0];
        c[0] = c[--left];
        sift_down(c, left, 0);
        c[left] = last;
    }
    return n;
}

static double weight(const cr_sampler *s, float logit, float most)
{
    return exp(((double)logit - (double)most) / (double)s->p.temperature);
}

/* How many of the first n have the share of top-p of total; *kept: their weight. */
static size_t share(const cr_sampler *s, size_t n, float most, double total, double *kept)
{
    size_t i = 0;
    for (*kept = 0; i < n && (i == 0 || *kept < (double)s->p.top_p * total); i++)
        *kept += weight(s, s->candidates[i].logit, most);
    return i;
}

/* Puts those that come first in front of the others, n at least 2; returns how many, 1 to n - 1. */
static size_t split(struct candidate *c, size_t n)
{
    struct candidate a = c[0], b = c[n / 2], d = c[n - 1];
    if (before(b, a)) {
        struct candidate t = a;
        a = b;
        b = t;
    }
    struct candidate middle = n == 2 ? a : before(d, a) ? a : before(d, b) ? d : b;
    for (size_t i = 0, j = n - 1;; i++, j--) {
        while (before(c[i], middle))
            i++;
        while (before(middle, c[j]))
            j--;
        if (i >= j)
            return j + 1;
        struct candidate t = c[i];
        c[i] = c[j];
        c[j] = t;
    }
}

static double sum_of(const struct candidate *c, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)c[i].logit;
    return sum;
}

/* Top-p where it keeps many: all with their weights in the place of the logits, of which the last
 * one that is kept is found without sorting. After weigh_all. */
static int32_t draw_from_many(cr_sampler *s, const float *logits, float most, double total)
{
    float w[BLOCK], room[BLOCK];
    struct candidate *c = s->candidates;
    size_t n = 0, first = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        if (s->sums[b] == 0)
            continue;
        weigh(w, block(s, logits, b, room), most, 1 / s->p.temperature, lowest_of(s->p.min_p));
        for (size_t j = 0; j < BLOCK; j++)
            if (w[j] > 0)
                c[n++] = (struct candidate){w[j], (int32_t)(b * BLOCK + j)};
    }
    double above = 0; /* the weight of those before `first`, which are kept; behind n none is */
    while (n - first > 1) {
        size_t front = split(c + first, n - first);
        double weight = sum_of(c + first, front);
        if (above + weight >= (double)s->p.top_p * total) {
            n = first + front;
        } else {
            above += weight;
            first += front;
        }
    }
    double r = cr_rng_double(&s->rng) * sum_of(c, n);
    size_t i = 0;
    while (i + 1 < n && (r -= (double)c[i].logit) >= 0)
        i++;
    return c[i].id;
}

static int32_t draw_from_best(cr_sampler *s, const float *logits, float most)
{
    size_t n, m, k = (size_t)s->p.top_k;
    double total = 0, kept = 0, at = 0;
    if (k > 0 && k < s->n_vocab) {
        n = m = take(s, logits, most, k);
        for (size_t i = 0; i < n; i++)
            total += weight(s, s->candidates[i].logit, most);
        kept = total;
        if (s->p.top_p < 1)
            m = share(s, n, most, total, &kept);
    } else {
        total = weigh_all(s, logits, most, s->p.temperature, s->p.min_p);
        k = FEW < s->n_vocab ? FEW : s->n_vocab; /* enough, as a rule */
        n = take(s, logits, most, k);
        m = share(s, n, most, total, &kept);
        if (n == k && k < s->n_vocab && kept < (double)s->p.top_p * total)
            return draw_from_many(s, logits, most, total);
    }
    double r = cr_rng_double(&s->rng) * kept;
    for (size_t i = 0; i < m; i++) {
        at += weight(s, s->candidates[i].logit, most);
        if (r < at)
            return s->candidates[i].id;
    }
    return s->candidates[m - 1].id; /* r == kept by rounding */
}

int32_t cr_sampler_next(cr_sampler *s, const float *logits, float *logprob)
{
    const float *penalised = penalise(s, logits);
    int32_t best = find_best(s, penalised), id = best;
    float most = penalised[best];
    if (s->p.temperature > 0 && isfinite(most))
        id = s->room ? draw_from_best(s, penalised, most) : draw_from_all(s, penalised, most);
    if (logprob) {
        most = penalised == logits ? most : logits[find_best(s, logits)];
        *logprob = logits[id] - most - (float)log(weigh_all(s, logits, most, 1, 0));
    }
    cr_sampler_accept(s, id);
    return id;
}
