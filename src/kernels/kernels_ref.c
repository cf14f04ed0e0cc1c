/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The specification: every kernel as a plain loop. Sums run in float32 from the first index to the
 * last, one rounding per operation (the build turns contraction into fused operations off), so the
 * same bits come out on every machine, but for exp, which is libm's.
 *
 * Products of quantised blocks are exact integers inside a group of 32 (16 in Q6_K):
 *     y = sum over groups b of (d_w[b] d_x[b]) * sum_j q_w[b, j] q_x[b, j]
 *                            + m_w[b] s_x[b]     where the type has minima
 */
#include "kernels/groups.h"
#include "kernels/levels.h"
#include "kernels/plain.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Where row r of w and activation t of x begin; and one output as a function of the two. */
typedef float row_fn(const unsigned char *w, const unsigned char *x, size_t n);

static void each_output(row_fn *fn, float *y, size_t ldy, const void *w, size_t row_bytes,
                        const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    for (size_t t = 0; t < n_tok; t++)
        for (size_t r = 0; r < rows; r++)
            y[t * ldy + r] = fn((const unsigned char *)w + r * row_bytes,
                                (const unsigned char *)x + t * x_bytes, n);
}

static float row_f32(const unsigned char *w, const unsigned char *x, size_t n)
{
    float sum = 0, a, b;
    for (size_t i = 0; i < n; i++) {
        memcpy(&a, w + 4 * i, sizeof a);
        memcpy(&b, x + 4 * i, sizeof b);
        sum += a * b;
    }
    return sum;
}

static float row_f16(const unsigned char *w, const unsigned char *x, size_t n)
{
    float sum = 0, b;
    for (size_t i = 0; i < n; i++) {
        uint16_t a;
        memcpy(&a, w + 2 * i, sizeof a);
        memcpy(&b, x + 4 * i, sizeof b);
        sum += cr_f16_to_f32(a) * b;
    }
    return sum;
}

static float row_bf16(const unsigned char *w, const unsigned char *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t a, b;
        memcpy(&a, w + 2 * i, sizeof a);
        memcpy(&b, x + 2 * i, sizeof b);
        sum += cr_bf16_to_f32(a) * cr_bf16_to_f32(b);
    }
    return sum;
}

/* Groups of 32 in order, halves of 16 in order where each has its own scale. */
static inline float row_groups(enum cr_type type, const unsigned char *w, const unsigned char *x,
                               size_t n)
{
    const size_t size = cr_type_info(type)->block_size, groups = (size_t)groups_of(type);
    const int step = type == CR_Q6_K ? 16 : CR_QK;
    float sum = 0;
    for (size_t i = 0; i < n / CR_QK; i++) {
        struct group a;
        struct cr_block_q8a b;
        unpack_group(&a, type, w + i / groups * size, (int)(i % groups));
        memcpy(&b, x + i * sizeof b, sizeof b);
        for (int j = 0; j < CR_QK; j += step) {
            int32_t dot = 0;
            for (int k = j; k < j + step; k++)
                dot += a.q[k] * b.q[k];
            sum = fmaf(a.d[j / 16] * b.d, (float)dot, sum);
        }
        if (has_minimum(type))
            sum = fmaf(a.m, b.s, sum);
    }
    return sum;
}

#define ROW_GROUPS(name, type)                                                                     \
    static float row_##name(const unsigned char *w, const unsigned char *x, size_t n)              \
    {                                                                                              \
        return row_groups(type, w, x, n);                                                          \
    }
ROW_GROUPS(q8_0, CR_Q8_0)
ROW_GROUPS(q4_0, CR_Q4_0)
ROW_GROUPS(q4_1, CR_Q4_1)
ROW_GROUPS(q5_0, CR_Q5_0)
ROW_GROUPS(q5_1, CR_Q5_1)
ROW_GROUPS(q4_k, CR_Q4_K)
ROW_GROUPS(q5_k, CR_Q5_K)
ROW_GROUPS(q6_k, CR_Q6_K)
ROW_GROUPS(iq4_nl, CR_IQ4_NL)

#define MATMUL(type)                                                                               \
    static void matmul_##type(float *y, size_t ldy, const void *w, size_t row_bytes,               \
                              const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)  \
    {                                                                                              \
        each_output(row_##type, y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n);                 \
    }
MATMUL(f32)
MATMUL(f16)
MATMUL(bf16)
MATMUL(q8_0)
MATMUL(q4_0)
MATMUL(q4_1)
MATMUL(q5_0)
MATMUL(q5_1)
MATMUL(q4_k)
MATMUL(q5_k)
MATMUL(q6_k)
MATMUL(iq4_nl)

/* A block with a NaN or an infinity has no scale: d and s are NaN, so the products are too. */
static void quantize_q8a(struct cr_block_q8a *dst, const float *x, size_t n)
{
    for (size_t i = 0; i < n / CR_QK; i++, x += CR_QK) {
        struct cr_block_q8a *b = &dst[i];
        float most = 0;
        for (int j = 0; j < CR_QK; j++) {
            if (!(fabsf(x[j]) <= FLT_MAX)) {
                most = NAN;
                break;
            }
            most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
        }
        int32_t sum = 0;
        b->d = most / 127;
        memset(b->q, 0, sizeof b->q);
        if (b->d > 0) { /* a scale that underflows to a subnormal is coarse: hence the clamp */
            for (int j = 0; j < CR_QK; j++) {
                float q = rintf(x[j] / b->d);
                b->q[j] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
                sum += b->q[j];
            }
        }
        b->sum = sum;
        b->s = b->d * (float)sum;
    }
}

#define DEQUANTIZE(type, id)                                                                       \
    static void dequantize_##type(float *dst, const void *src, size_t n)                           \
    {                                                                                              \
        cr_dequantize_ref(id, dst, src, n);                                                        \
    }
DEQUANTIZE(f32, CR_F32)
DEQUANTIZE(f16, CR_F16)
DEQUANTIZE(bf16, CR_BF16)
DEQUANTIZE(q8_0, CR_Q8_0)
DEQUANTIZE(q4_0, CR_Q4_0)
DEQUANTIZE(q4_1, CR_Q4_1)
DEQUANTIZE(q5_0, CR_Q5_0)
DEQUANTIZE(q5_1, CR_Q5_1)
DEQUANTIZE(q4_k, CR_Q4_K)
DEQUANTIZE(q5_k, CR_Q5_K)
DEQUANTIZE(q6_k, CR_Q6_K)
DEQUANTIZE(iq4_nl, CR_IQ4_NL)

static void f32_to_f16(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = cr_f32_to_f16(src[i]);
}

/* y[i] = w[i] (x[i] r), r = 1 / sqrt(mean(x^2) + eps) */
static void rmsnorm(float *y, const float *x, const float *w, size_t n, float eps)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    float r = 1 / sqrtf(sum / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * r * w[i];
}

static void softmax(float *x, size_t n)
{
    float most = x[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - most);
        sum += x[i];
    }
    float r = 1 / sum;
    for (size_t i = 0; i < n; i++)
        x[i] *= r;
}

static void silu_mul(float *g, const float *u, size_t n)
{
    for (size_t i = 0; i < n; i++)
        g[i] = g[i] / (1 + expf(-g[i])) * u[i];
}

static void gelu_mul(float *g, const float *u, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float v = g[i], z = 1.5957691216f * (v + 0.044715f * (v * v * v));
        g[i] = v / (1 + expf(-z)) * u[i];
    }
}

static float dot(const float *a, const float *b, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void attn_scores_f16(float *s, size_t lds, const float *q, size_t ldq, size_t n_q,
                            const uint16_t *k, size_t begin, size_t end, size_t d, float scale)
{
    for (size_t t = 0; t < n_q; t++)
        for (size_t c = begin; c < end; c++) {
            const uint16_t *key = k + c / CR_KV_TILE * d * CR_KV_TILE + c % CR_KV_TILE;
            float sum = 0;
            for (size_t i = 0; i < d; i++)
                sum += q[t * ldq + i] * cr_f16_to_f32(key[i * CR_KV_TILE]);
            s[t * lds + c - begin] = sum * scale;
        }
}

static void attn_mix_f16(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                         const uint16_t *v, size_t ldv, size_t n, size_t d)
{
    for (size_t t = 0; t < n_q; t++)
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < d; i++)
                y[t * ldy + i] += p[t * ldp + j] * cr_f16_to_f32(v[j * ldv + i]);
}

static void mix_q8_0(float *y, const float *p, const struct cr_block_q8_0 *v, size_t ldv, size_t n,
                     size_t d)
{
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < d; i++) {
            const struct cr_block_q8_0 *b = &v[j * ldv + i / CR_QK];
            y[i] = fmaf(p[j] * cr_f16_to_f32(b->d), (float)b->q[i % CR_QK], y[i]);
        }
}

void cr_attn_scores_q8_ref(float *s, size_t lds, const struct cr_block_q8a *q, size_t ldq,
                           size_t n_q, const uint8_t *k, size_t begin, size_t end, size_t d,
                           float scale)
{
    for (size_t t = 0; t < n_q; t++)
        for (size_t c = begin; c < end; c++) {
            const uint8_t *tile = k + c / CR_KV_TILE * cr_kv8_tile(d);
            const uint16_t *scales = (const uint16_t *)(const void *)(tile + CR_KV_TILE * d);
            const size_t lane = c % CR_KV_TILE;
            float sum = 0;
            for (size_t b = 0; b < d / CR_QK; b++) {
                const struct cr_block_q8a *x = &q[t * ldq + b];
                int32_t dot = 0;
                for (size_t j = 0; j < CR_QK; j++) {
                    const size_t i = b * CR_QK + j;
                    dot += (int8_t)tile[(i / 4 * CR_KV_TILE + lane) * 4 + i % 4] * x->q[j];
                }
                sum = fmaf(cr_f16_to_f32(scales[b * CR_KV_TILE + lane]) * x->d, (float)dot, sum);
            }
            s[t * lds + c - begin] = sum * scale;
        }
}

void cr_attn_mix_q8_ref(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                        const uint8_t *v, size_t begin, size_t end, size_t d, size_t first,
                        size_t last)
{
    for (size_t t = 0; t < n_q; t++)
        for (size_t c = begin; c < end; c++) {
            const uint8_t *tile = v + c / CR_KV_TILE * cr_kv8_tile(d);
            const uint16_t *scales = (const uint16_t *)(const void *)(tile + CR_KV_TILE * d);
            const size_t lane = c % CR_KV_TILE;
            for (size_t i = first; i < last; i++) {
                float w =
                    p[t * ldp + c - begin] * cr_f16_to_f32(scales[i / CR_QK * CR_KV_TILE + lane]);
                y[t * ldy + i] = fmaf(w, (float)(int8_t)tile[lane * d + i], y[t * ldy + i]);
            }
        }
}

/* A rotation of each pair (a, b) by its angle: (a cos - b sin, a sin + b cos). */
static void rope_norm(float *x, const float *cs, size_t d)
{
    for (size_t i = 0; i < d / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1], c = cs[2 * i], s = cs[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

const struct cr_kernels cr_kernels_ref = {
    .name = "ref",
    .level = CR_CPU_REF,
    .matmul = {[CR_F32] = matmul_f32,
               [CR_F16] = matmul_f16,
               [CR_BF16] = matmul_bf16,
               [CR_Q8_0] = matmul_q8_0,
               [CR_Q4_0] = matmul_q4_0,
               [CR_Q4_1] = matmul_q4_1,
               [CR_Q5_0] = matmul_q5_0,
               [CR_Q5_1] = matmul_q5_1,
               [CR_Q4_K] = matmul_q4_k,
               [CR_Q5_K] = matmul_q5_k,
               [CR_Q6_K] = matmul_q6_k,
               [CR_IQ4_NL] = matmul_iq4_nl},
    .quantize_q8a = quantize_q8a,
    .dequantize = {[CR_F32] = dequantize_f32,
                   [CR_F16] = dequantize_f16,
                   [CR_BF16] = dequantize_bf16,
                   [CR_Q8_0] = dequantize_q8_0,
                   [CR_Q4_0] = dequantize_q4_0,
                   [CR_Q4_1] = dequantize_q4_1,
                   [CR_Q5_0] = dequantize_q5_0,
                   [CR_Q5_1] = dequantize_q5_1,
                   [CR_Q4_K] = dequantize_q4_k,
                   [CR_Q5_K] = dequantize_q5_k,
                   [CR_Q6_K] = dequantize_q6_k,
                   [CR_IQ4_NL] = dequantize_iq4_nl},
    .f32_to_f16 = f32_to_f16,
    .f32_to_bf16 = f32_to_bf16,
    .rmsnorm = rmsnorm,
    .softmax = softmax,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .add = add,
    .axpy = axpy,
    .dot = dot,
    .attn_scores_f16 = attn_scores_f16,
    .attn_mix_f16 = attn_mix_f16,
    .mix_q8_0 = mix_q8_0,
    .attn_scores_q8 = cr_attn_scores_q8_ref,
    .attn_mix_q8 = cr_attn_mix_q8_ref,
    .rope_norm = rope_norm,
    .rope_neox = rope_neox,
};
