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

/* With r = 1 / sqrt(mean(x^2) + eps): dx_i = r w_i dy_i - x_i r^3 / n * sum_j w_j dy_j x_j. */
void cr_rmsnorm_back(float *dx, const float *dy, const float *x, const float *w, size_t n,
                     float eps)
{
    double squares = 0, mixed = 0;
    for (size_t i = 0; i < n; i++) {
        squares += (double)x[i] * x[i];
        mixed += (double)w[i] * dy[i] * x[i];
    }
    double r = 1 / sqrt(squares / (double)n + (double)eps);
    float scale = (float)r, pull = (float)(r * r * r * mixed / (double)n);
    for (size_t i = 0; i < n; i++)
        dx[i] += scale * w[i] * dy[i] - pull * x[i];
}

/* exp(x) by 2^n * p(r), x = n ln 2 + r, |r| <= ln 2 / 2 (Cephes coefficients, about 2 ulp). No
 * branch and no call, so that the compiler makes vectors of it. */
static inline float exp_poly(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    n -= 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

void cr_silu_mul_back(float *restrict dg, float *restrict du, const float *restrict df,
                      const float *restrict g, const float *restrict u, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float s = 1.0f / (1.0f + exp_poly(-g[i]));
        dg[i] = df[i] * u[i] * s * (1.0f + g[i] * (1.0f - s));
        du[i] = df[i] * g[i] * s;
    }
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
                for (size_t j = 0; j < n_kv; j++)
                    dp[i * n_kv + j] = p[i * n_kv + j] * (dp[i * n_kv + j] - sum) * scale;
            }
            cr_gemm_nn(rows, d, n_kv, 1.0f, dp, n_kv, a->k + kv_at, a->ldk, 0.0f,
                       dq + begin * lddq + at, lddq);
            cr_gemm_tn(n_kv, d, rows, 1.0f, dp, n_kv, q, a->ldq, 1.0f, dk + kv_at, lddk);
        }
    }
}
