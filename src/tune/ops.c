/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gradients of one layer's operations. Attention recomputes its probabilities in the backward pass
 * (softmax is cheap beside keeping T x T numbers per head) and works on blocks of query rows, so
 * the half of the score matrix that a causal mask hides is mostly never computed.
 */
#include "tune/ops.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { Q_BLOCK = 64 }; /* query rows at a time: a block of scores stays in the L2 cache */

void cr_gemm_single_thread(void)
{
    openblas_set_num_threads(1);
}

void cr_gemm_nn(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                const float *b, size_t ldb, float beta, float *c, size_t ldc)
{
    if (m && n)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)m, (blasint)n, (blasint)k,
                    alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

void cr_gemm_nt(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                const float *b, size_t ldb, float beta, float *c, size_t ldc)
{
    if (m && n)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)m, (blasint)n, (blasint)k,
                    alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

void cr_gemm_tn(size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                const float *b, size_t ldb, float beta, float *c, size_t ldc)
{
    if (m && n)
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)m, (blasint)n, (blasint)k,
                    alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

void cr_rope_row(const cr_model *m, float *x, int n_heads, const float *cs)
{
    size_t d = (size_t)m->head_dim;
    for (int h = 0; h < n_heads; h++) {
        if (m->rope_neox)
            m->k->rope_neox(x + (size_t)h * d, cs, d);
        else
            m->k->rope_norm(x + (size_t)h * d, cs, d);
    }
}

void cr_rope_table(const cr_model *m, float *cs, size_t n, float sign)
{
    size_t half = (size_t)m->head_dim / 2;
    for (size_t pos = 0; pos < n; pos++) {
        for (size_t i = 0; i < half; i++) {
            float angle = (float)pos * m->rope_freq[i];
            cs[(pos * half + i) * 2] = cosf(angle) * m->rope_mscale;
            cs[(pos * half + i) * 2 + 1] = sign * sinf(angle) * m->rope_mscale;
        }
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

size_t cr_attention_scratch(size_t n_kv)
{
    return 2 * Q_BLOCK * n_kv;
}

/* p [rows, n_kv] = causal softmax of q k^T / sqrt(D) for the query rows from `begin`, head h. */
static void probabilities(const struct cr_attention *a, float *p, size_t begin, size_t rows,
                          size_t n_kv, int h)
{
    size_t d = (size_t)a->head_dim, kv = (size_t)(h / (a->n_heads / a->n_kv_heads));
    cr_gemm_nt(rows, n_kv, d, 1.0f / sqrtf((float)d), a->q + begin * a->ldq + (size_t)h * d, a->ldq,
               a->k + kv * d, a->ldk, 0.0f, p, n_kv);
    for (size_t i = 0; i < rows; i++) {
        size_t seen = (size_t)a->limit[begin + i];
        a->kernels->softmax(p + i * n_kv, seen);
        memset(p + i * n_kv + seen, 0, (n_kv - seen) * sizeof *p);
    }
}

void cr_attention_forward(const struct cr_attention *a, float *o, size_t ldo, float *scratch)
{
    size_t d = (size_t)a->head_dim;
    for (int h = 0; h < a->n_heads; h++) {
        size_t kv = (size_t)(h / (a->n_heads / a->n_kv_heads));
        for (size_t begin = 0; begin < a->n_q; begin += Q_BLOCK) {
            size_t rows = a->n_q - begin < Q_BLOCK ? a->n_q - begin : Q_BLOCK;
            size_t n_kv = (size_t)a->limit[begin + rows - 1];
            probabilities(a, scratch, begin, rows, n_kv, h);
            cr_gemm_nn(rows, d, n_kv, 1.0f, scratch, n_kv, a->v + kv * d, a->ldv, 0.0f,
                       o + begin * ldo + (size_t)h * d, ldo);
        }
    }
}

/* dP = dO V^T; dS = P (dP - sum_j dO O) / sqrt(D); dQ = dS K; dK += dS^T Q; dV += P^T dO. */
void cr_attention_back(const struct cr_attention *a, const float *o, const float *d_o, size_t ldo,
                       float *dq, size_t lddq, float *dk, size_t lddk, float *dv, size_t lddv,
                       float *scratch)
{
    size_t d = (size_t)a->head_dim;
    float scale = 1.0f / sqrtf((float)d);
    for (int h = 0; h < a->n_heads; h++) {
        size_t at = (size_t)h * d, kv_at = (size_t)(h / (a->n_heads / a->n_kv_heads)) * d;
        for (size_t begin = 0; begin < a->n_q; begin += Q_BLOCK) {
            size_t rows = a->n_q - begin < Q_BLOCK ? a->n_q - begin : Q_BLOCK;
            size_t n_kv = (size_t)a->limit[begin + rows - 1];
            const float *q = a->q + begin * a->ldq + at, *out = d_o + begin * ldo + at;
            float *p = scratch, *dp = scratch + rows * n_kv;
            probabilities(a, p, begin, rows, n_kv, h);
            cr_gemm_tn(n_kv, d, rows, 1.0f, p, n_kv, out, ldo, 1.0f, dv + kv_at, lddv);
            cr_gemm_nt(rows, n_kv, d, 1.0f, out, ldo, a->v + kv_at, a->ldv, 0.0f, dp, n_kv);
            for (size_t i = 0; i < rows; i++) {
                float sum = a->kernels->dot(out + i * ldo, o + (begin + i) * ldo + at, d);
                a->train->softmax_back(dp + i * n_kv, p + i * n_kv, sum, scale, n_kv);
            }
            cr_gemm_nn(rows, d, n_kv, 1.0f, dp, n_kv, a->k + kv_at, a->ldk, 0.0f,
                       dq + begin * lddq + at, lddq);
            cr_gemm_tn(n_kv, d, rows, 1.0f, dp, n_kv, q, a->ldq, 1.0f, dk + kv_at, lddk);
        }
    }
}
