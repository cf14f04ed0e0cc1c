/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gradients of one layer's operations. Attention recomputes its probabilities in the backward pass
 * (softmax is cheap beside keeping T x T numbers per head) and works on blocks of query rows, so
 * the half of the score matrix that a causal mask hides is mostly never computed.
 */
#include "tune/ops.h"

#include <math.h>
#include <string.h>

enum { Q_BLOCK = 60 }; /* query rows at a time: a block of scores stays in the L2 cache */

void cr_rope_row(const cr_model *m, float *x, int n_heads, const float *cs)
{
    for (int h = 0; h < n_heads; h++)
        (m->rope_neox ? m->k->rope_neox : m->k->rope_norm)(x + h * m->head_dim, cs,
                                                           (size_t)m->rope_dim);
}

void cr_rope_table(const cr_model *m, float *cs, size_t n, float sign)
{
    size_t width = (size_t)m->n_ropes * (size_t)m->rope_dim;
    for (size_t pos = 0; pos < n; pos++) {
        cr_rope_angles(m, (int32_t)pos, cs + pos * width);
        for (size_t i = 1; i < width; i += 2)
            cs[pos * width + i] *= sign;
    }
}

float cr_cross_entropy(const struct cr_kernels *k, float *logits, size_t n, int32_t target,
                       float weight)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    float behind = logits[best] - logits[target];
    k->softmax(logits, n);
    float nll = behind - logf(logits[best]); /* softmax of the largest is 1 / sum exp(x - max) */
    for (size_t i = 0; i < n; i++)
        logits[i] *= weight;
    logits[target] -= weight;
    return nll;
}

/* ---- attention ---- */

/* The keys and values of one kv head as panels: k_t for q k^T, v for p v; for the way back v_t for
 * dO v^T and k for dS k. */
struct panels {
    float *k_t, *v, *v_t, *k;
};

size_t cr_attention_scratch(const struct cr_train_kernels *k, int head_dim, size_t n_kv)
{
    size_t d = (size_t)head_dim;
    return 2 * (Q_BLOCK * n_kv + cr_panels_floats(k, n_kv, d) + cr_panels_floats(k, d, n_kv));
}

/* Packs kv head g; returns the scratch that is left. */
static float *pack(const struct cr_attention *a, int g, bool back, struct panels *to,
                   float *scratch)
{
    const struct cr_train_kernels *k = a->train;
    size_t d = (size_t)a->head_dim, n = a->n_kv, at = (size_t)g * d;
    to->k_t = scratch;
    to->v = to->k_t + cr_panels_floats(k, n, d);
    to->v_t = to->v + cr_panels_floats(k, d, n);
    to->k = to->v_t + (back ? cr_panels_floats(k, n, d) : 0);
    k->pack_rows(to->k_t, d, a->k + at, a->ldk, n, d);
    if (!back) {
        k->pack_columns(to->v, n, a->v + at, a->ldv, d, n);
        return to->v_t;
    }
    k->pack_rows(to->v_t, d, a->v + at, a->ldv, n, d);
    k->pack_columns(to->k, n, a->k + at, a->ldk, d, n);
    return to->k + cr_panels_floats(k, d, n);
}

/* p [rows, n_kv] = causal softmax of scale q k^T for the query rows from `begin`, head h. */
static void probabilities(const struct cr_attention *a, const struct panels *panels, float *p,
                          size_t begin, size_t rows, size_t n_kv, int h)
{
    size_t d = (size_t)a->head_dim;
    a->train->gemm_packed(p, n_kv, a->q + begin * a->ldq + (size_t)h * d, a->ldq, 1, panels->k_t, d,
                          rows, n_kv, d, a->scale, false);
    for (size_t i = 0; i < rows; i++) {
        size_t end = (size_t)a->limit[begin + i];
        size_t first = a->window && end > a->window ? end - a->window : 0;
        memset(p + i * n_kv, 0, first * sizeof *p);
        a->kernels->softmax(p + i * n_kv + first, end - first);
        memset(p + i * n_kv + end, 0, (n_kv - end) * sizeof *p);
    }
}

void cr_attention_forward(const struct cr_attention *a, float *o, size_t ldo, float *scratch)
{
    size_t d = (size_t)a->head_dim;
    int shared = a->n_heads / a->n_kv_heads;
    struct panels panels;
    float *p = NULL;
    for (int h = 0; h < a->n_heads; h++) {
        if (h % shared == 0)
            p = pack(a, h / shared, false, &panels, scratch);
        for (size_t begin = 0; begin < a->n_q; begin += Q_BLOCK) {
            size_t rows = a->n_q - begin < Q_BLOCK ? a->n_q - begin : Q_BLOCK;
            size_t n_kv = (size_t)a->limit[begin + rows - 1];
            probabilities(a, &panels, p, begin, rows, n_kv, h);
            a->train->gemm_packed(o + begin * ldo + (size_t)h * d, ldo, p, n_kv, 1, panels.v,
                                  a->n_kv, rows, d, n_kv, 1, false);
        }
    }
}

/* dP = dO V^T; dS = P (dP - sum_j dO O) scale; dQ = dS K; dK += dS^T Q; dV += P^T dO. */
void cr_attention_back(const struct cr_attention *a, const float *o, const float *d_o, size_t ldo,
                       float *dq, size_t lddq, float *dk, size_t lddk, float *dv, size_t lddv,
                       float *scratch)
{
    const struct cr_train_kernels *k = a->train;
    size_t d = (size_t)a->head_dim;
    float *p = NULL;
    int shared = a->n_heads / a->n_kv_heads;
    struct panels panels;
    for (int h = 0; h < a->n_heads; h++) {
        size_t at = (size_t)h * d, kv_at = (size_t)(h / shared) * d;
        if (h % shared == 0)
            p = pack(a, h / shared, true, &panels, scratch);
        for (size_t begin = 0; begin < a->n_q; begin += Q_BLOCK) {
            size_t rows = a->n_q - begin < Q_BLOCK ? a->n_q - begin : Q_BLOCK;
            size_t n_kv = (size_t)a->limit[begin + rows - 1];
            const float *q = a->q + begin * a->ldq + at, *out = d_o + begin * ldo + at;
            float *dp = p + rows * n_kv;
            probabilities(a, &panels, p, begin, rows, n_kv, h);
            k->gemm_tn(n_kv, d, rows, 1, p, n_kv, out, ldo, true, dv + kv_at, lddv);
            k->gemm_packed(dp, n_kv, out, ldo, 1, panels.v_t, d, rows, n_kv, d, 1, false);
            for (size_t i = 0; i < rows; i++) {
                float sum = a->kernels->dot(out + i * ldo, o + (begin + i) * ldo + at, d);
                k->softmax_back(dp + i * n_kv, p + i * n_kv, sum, a->scale, n_kv);
            }
            k->gemm_packed(dq + begin * lddq + at, lddq, dp, n_kv, 1, panels.k, a->n_kv, rows, d,
                           n_kv, 1, false);
            k->gemm_tn(n_kv, d, rows, 1, dp, n_kv, q, a->ldq, true, dk + kv_at, lddk);
        }
    }
}
