/* SPDX-License-Identifier: Apache-2.0 */
/* Signals of confidence and scope; formulas in the header, the reasons for them in
 * docs/routing.md. */
#include "route/signals.h"

#include "base/mem.h"
#include "base/sha256.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const float cr_quantile_levels[CR_N_QUANTILES] = {0.0f, 0.10f, 0.25f, 0.50f};

/* ln p below this is none: keeps means finite. */
static const float lowest = -1e4f;
/* Of the choice loss in adapt/score.h: how sharp a difference of log-prob per byte is. */
static const float option_scale = 8.0f;

void cr_signals_init(struct cr_signals *s)
{
    *s = (struct cr_signals){0};
    s->p1 = s->margin = s->entropy = s->mean = s->log_length = s->change = NAN;
    s->scope = s->near = s->scope_z = s->near_z = NAN;
    s->confidence = s->demand_conf = s->demand_scope = NAN;
    for (int i = 0; i < CR_N_QUANTILES; i++)
        s->quantile[i] = NAN;
}

uint64_t cr_request_hash(uint64_t seed, const char *text, size_t len)
{
    struct cr_sha256 sha;
    char hex[65];
    cr_sha256_init(&sha);
    cr_sha256_add(&sha, &seed, sizeof seed);
    cr_sha256_add(&sha, text, len);
    cr_sha256_hex(&sha, hex);
    hex[16] = '\0';
    return strtoull(hex, NULL, 16);
}

enum cr_status cr_meter_init(struct cr_meter *m, size_t max_tokens, bool entropy_too,
                             struct cr_error *err)
{
    *m = (struct cr_meter){.cap = max_tokens, .entropy_too = entropy_too};
    m->tops = cr_alloc(max_tokens, sizeof *m->tops);
    return m->tops ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "signals: out of memory");
}

void cr_meter_deinit(struct cr_meter *m)
{
    cr_free(m->tops);
    *m = (struct cr_meter){0};
}

void cr_meter_reset(struct cr_meter *m)
{
    *m = (struct cr_meter){.tops = m->tops, .cap = m->cap, .entropy_too = m->entropy_too};
}

static void top_two(const float *x, int n, float *top, float *second)
{
    *top = *second = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (x[i] > *top) {
            *second = *top;
            *top = x[i];
        } else if (x[i] > *second) {
            *second = x[i];
        }
    }
}

/* p1, p1 - p2 and the entropy of softmax(x[n]). */
static void shape_of(const float *x, int n, double *p1, double *margin, double *entropy)
{
    float top, second;
    double z = 0, zx = 0; /* sum exp(x - top), sum exp(x - top) (x - top) */
    top_two(x, n, &top, &second);
    for (int i = 0; i < n; i++) {
        float d = x[i] - top, e = expf(d);
        z += (double)e;
        zx += e > 0 ? (double)e * (double)d : 0; /* 0 * -inf is 0 here */
    }
    *p1 = 1 / z;
    *margin = (1 - exp((double)second - (double)top)) / z;
    *entropy = log(z) - zx / z;
}

void cr_meter_token(struct cr_meter *m, int32_t id, float logprob, const float *logits, int n_vocab)
{
    if (m->n == m->cap)
        return;
    m->tops[m->n] = logprob;
    if (logits && id >= 0 && id < n_vocab) {
        float top, second;
        double p1, margin, entropy = 0;
        top_two(logits, n_vocab, &top, &second);
        float ln_p1 = logprob + (top - logits[id]); /* no exp needed */
        m->tops[m->n] = ln_p1 > 0 ? 0 : ln_p1;      /* rounding */
        p1 = exp((double)m->tops[m->n]);
        margin = p1 - p1 * exp((double)second - (double)top);
        if (m->entropy_too)
            shape_of(logits, n_vocab, &p1, &margin, &entropy);
        m->p1 += p1;
        m->margin += margin;
        m->entropy += entropy;
        m->n_dist++;
    }
    if (m->tops[m->n] < lowest)
        m->tops[m->n] = lowest;
    m->n++;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void set_confidence(struct cr_signals *s, double p)
{
    s->confidence = (float)(p < 0 ? 0 : p > 1 ? 1 : p);
    s->demand_conf = 1 - s->confidence;
}

void cr_signals_text(struct cr_signals *s, struct cr_meter *m)
{
    s->options = false;
    s->n = (int)m->n;
    s->log_length = logf(1.0f + (float)m->n);
    if (m->n == 0) { /* an empty answer is no answer */
        set_confidence(s, 0);
        return;
    }
    double sum = 0;
    for (size_t i = 0; i < m->n; i++)
        sum += (double)m->tops[i];
    s->mean = (float)(sum / (double)m->n);
    qsort(m->tops, m->n, sizeof *m->tops, ascending);
    for (int k = 0; k < CR_N_QUANTILES; k++) {
        double at = (double)cr_quantile_levels[k] * (double)(m->n - 1);
        size_t lo = (size_t)at, hi = lo + 1 < m->n ? lo + 1 : lo;
        double f = at - (double)lo;
        s->quantile[k] = (float)((1 - f) * (double)m->tops[lo] + f * (double)m->tops[hi]);
    }
    if (m->n_dist) {
        s->p1 = (float)(m->p1 / (double)m->n_dist);
        s->margin = (float)(m->margin / (double)m->n_dist);
        s->entropy = m->entropy_too ? (float)(m->entropy / (double)m->n_dist) : NAN;
    }
    set_confidence(s, isnan(s->mean) ? 0 : exp((double)s->mean));
}

void cr_signals_options(struct cr_signals *s, const struct cr_option_score *options, int n)
{
    float x[CR_MAX_OPTIONS];
    int best = -1;
    s->options = true;
    s->n = n = n < CR_MAX_OPTIONS ? n : CR_MAX_OPTIONS;
    for (int i = 0; i < n; i++) {
        int bytes = options[i].n_bytes > 0 ? options[i].n_bytes : 1;
        x[i] = option_scale * options[i].sum / (float)bytes;
        if (!isfinite(x[i]))
            x[i] = -INFINITY; /* an option without a score cannot win */
        else if (best < 0 || x[i] > x[best])
            best = i;
    }
    if (best < 0) {
        set_confidence(s, 0);
        return;
    }
    double p1, margin, entropy;
    shape_of(x, n, &p1, &margin, &entropy);
    s->p1 = (float)p1;
    s->margin = (float)margin;
    s->entropy = (float)entropy;
    if (options[best].n_tokens > 0) {
        s->mean = options[best].sum / (float)options[best].n_tokens;
        s->log_length = logf(1.0f + (float)options[best].n_tokens);
    }
    set_confidence(s, p1);
}

static void log_z(const float *x, int n, float *top, double *z)
{
    *top = -INFINITY;
    *z = 0;
    for (int i = 0; i < n; i++)
        *top = x[i] > *top ? x[i] : *top;
    for (int i = 0; i < n; i++)
        *z += (double)expf(x[i] - *top);
}

float cr_signal_change(const float *a, const float *b, int n_vocab)
{
    float ta, tb;
    double za, zb, sum = 0;
    log_z(a, n_vocab, &ta, &za);
    log_z(b, n_vocab, &tb, &zb);
    for (int i = 0; i < n_vocab; i++)
        sum += fabs((double)expf(a[i] - ta) / za - (double)expf(b[i] - tb) / zb);
    return (float)sum;
}
