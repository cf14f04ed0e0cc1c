/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic: one table of function pointers per level of the CPU. No malloc, no I/O, no model
 * types. kernels_ref.c is the specification; a fast level is tested against it.
 *
 * The law of this folder: the number that a kernel writes for one output depends on that output's
 * inputs only, never on how many rows or tokens were computed in the same call. So a result does
 * not change with the batch, the thread count, or what the cache already held.
 *
 * Legend: n columns (inputs of a dot product), rows outputs, t tokens, d head dimension.
 */
#ifndef CR_KERNELS_H
#define CR_KERNELS_H

#include "kernels/quant.h"

enum cr_cpu {
    CR_CPU_REF,
    CR_CPU_AVX2,
    CR_CPU_AVX512,
    CR_CPU_NEON,
    CR_CPU_AMX,
    CR_CPU_AVXVNNI,
    CR_CPU_DOTPROD,
    CR_CPU_I8MM,
    CR_CPU_COUNT
};

enum { CR_KV_TILE = 16, /* cells */ CR_MAX_LOW_RANK = 64 };

/* y[t * ldy + r] = sum_i W[r, i] * x[t, i]   for r < rows, t < n_tok.
 * W: rows of row_bytes; x: activations in the type's activation format, x_bytes apart:
 * float32 for F32 and F16 (or what split_f32 makes of it), bfloat16 for BF16, struct cr_block_q8a
 * for the quantised types. */
typedef void cr_matmul_fn(float *y, size_t ldy, const void *w, size_t row_bytes, const void *x,
                          size_t x_bytes, size_t rows, size_t n_tok, size_t n);

struct cr_kernels {
    const char *name;
    enum cr_cpu level;

    /* Packed weights: panels of panel_rows rows in the order in which this level reads them (the
     * last panel filled with zeros), panel_bytes(type, n) apart. pack writes the panels of `rows`
     * rows. matmul_packed is matmul with w at the first row of a panel and row_bytes the bytes of a
     * panel: the same bits. Both NULL for types that this level reads as they are, panel_bytes 0
     * for rows that it does not pack; panel_rows 0 where no type is packed. */
    size_t panel_rows;
    size_t (*panel_bytes)(enum cr_type type, size_t n);
    void (*pack[CR_TYPE_END])(void *dst, const void *w, size_t row_bytes, size_t rows, size_t n);
    cr_matmul_fn *matmul_packed[CR_TYPE_END];
    /* The second factor B [rows, rank] of a low-rank change, packed for panels of panel_rows rows:
     * codes of 8 bits with a float16 scale for each row. low_bytes: of all panels.
     *     y[t * ldy + r] += sum_k B[r, k] low[t, first + k]
     * where row 0 begins a panel, low is blocks q8a of 32 ranks, low_row bytes apart, first is a
     * multiple of 4, and of 32 if the ranks pass a block's end; rank <= CR_MAX_LOW_RANK. What
     * follows the ranks up to a multiple of 4 is multiplied with zeros. NULL where panel_rows is 0.
     */
    size_t (*low_bytes)(size_t rows, size_t rank);
    void (*pack_low)(void *dst, const float *b, size_t rows, size_t rank, float gain); /* gain B */
    void (*add_low)(float *y, size_t ldy, const void *b, const void *low, size_t low_row,
                    size_t first, size_t rows, size_t n_tok, size_t rank);

    cr_matmul_fn *matmul[CR_TYPE_END]; /* NULL for unusable types */
    /* Runs rounds of products of bytes in registers, to measure the peak; returns the operations
     * (multiplications and additions) of one round. May be NULL. */
    double (*spin_int8)(size_t rounds);
    /* n float32 to n/32 blocks; d = max|x| / 127, q = round to nearest even of x / d. n % 32 == 0
     */
    void (*quantize_q8a)(struct cr_block_q8a *dst, const float *x, size_t n);
    /* n values of a usable type to float32; n is a multiple of the block. */
    void (*dequantize[CR_TYPE_END])(float *dst, const void *src, size_t n);
    void (*f32_to_f16)(uint16_t *dst, const float *src, size_t n);
    void (*f32_to_bf16)(uint16_t *dst, const float *src, size_t n);
    /* Each float32 as the sum of three bfloat16, term i of value k at dst[i * cr_split_columns(n) +
     * k], zeros up to the next term; exact unless a term is subnormal. NULL: products with F16 take
     * float32. */
    void (*split_f32)(uint16_t *dst, const float *src, size_t n);

    /* y[i] = x[i] * w[i] / sqrt(mean(x^2) + eps); y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *w, size_t n, float eps);
    /* x[i] = exp(x[i] - max) / sum; returns nothing; n >= 1. */
    void (*softmax)(float *x, size_t n);
    /* g[i] = silu(g[i]) * u[i], silu(v) = v / (1 + exp(-v)). */
    void (*silu_mul)(float *g, const float *u, size_t n);
    /* g[i] = gelu(g[i]) * u[i], gelu(v) = v / (1 + exp(-2 z)), z = sqrt(2 / pi) (v + 0.044715 v^3):
     * the form with tanh, 0.5 v (1 + tanh(z)), written without it. */
    void (*gelu_mul)(float *g, const float *u, size_t n);
    void (*add)(float *y, const float *x, size_t n);           /* y += x */
    void (*axpy)(float *y, float a, const float *x, size_t n); /* y += a x */
    float (*dot)(const float *a, const float *b, size_t n);    /* sum a b */
    /* n_q heads against float16 keys of one kv head, which lie in tiles of CR_KV_TILE cells: value
     * i of cell c is k[(c / TILE * d + i) * TILE + c % TILE]. s[t * lds + c - begin] = scale *
     * sum_i q[t * ldq + i] key(c, i)     begin <= c < end Reads whole tiles. */
    void (*attn_scores_f16)(float *s, size_t lds, const float *q, size_t ldq, size_t n_q,
                            const uint16_t *k, size_t begin, size_t end, size_t d, float scale);
    /* y[t * ldy + i] += sum_j p[t * ldp + j] v[j * ldv + i], j < n, i < d, in the order of j. */
    void (*attn_mix_f16)(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                         const uint16_t *v, size_t ldv, size_t n, size_t d);
    /* One sum over rows of blocks, ldv of them apart; d % 32 == 0, d_j is the scale of the block:
     *     y[i] += (p[j] d_j) code_j[i],  fused,  in the order of j. */
    void (*mix_q8_0)(float *y, const float *p, const struct cr_block_q8_0 *v, size_t ldv, size_t n,
                     size_t d);
    /* Attention with a cache of 8 bits, d % 32 == 0: tiles of cr_kv8_tile(d) bytes, codes first and
     * then the cells' scales as float16, one for each 32 values of a head, scale b of cell c at
     * b * TILE + c. Code i of cell c is at (i / 4 * TILE + c) * 4 + i % 4 in keys, exclusive or
     * kv_flip, and at c * d + i in values. q: blocks of heads, ldq of them apart; p begins with
     * cell `begin`. Columns [first, last) of y are added to, both multiples of 32:
     *     s = scale * sum_b (d_k d_q) (integer sum of block b);  y += (p d_v) code,  fused. */
    uint8_t kv_flip;
    void (*attn_scores_q8)(float *s, size_t lds, const struct cr_block_q8a *q, size_t ldq,
                           size_t n_q, const uint8_t *k, size_t begin, size_t end, size_t d,
                           float scale);
    void (*attn_mix_q8)(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                        const uint8_t *v, size_t begin, size_t end, size_t d, size_t first,
                        size_t last);
    /* Rotary embedding of one head vector x[d] with d/2 (cos, sin) pairs cs[2 * i], cs[2 * i + 1].
     * norm: pairs (2i, 2i+1), the order of GGUF `llama` files; neox: pairs (i, i + d/2). */
    void (*rope_norm)(float *x, const float *cs, size_t d);
    void (*rope_neox)(float *x, const float *cs, size_t d);
};

/* Values of one term, and of all, of split_f32. */
static inline size_t cr_split_columns(size_t n)
{
    return (n + CR_QK - 1) / CR_QK * CR_QK;
}
static inline size_t cr_split_values(size_t n)
{
    return 3 * cr_split_columns(n);
}

static inline size_t cr_kv8_tile(size_t d)
{
    return CR_KV_TILE * (d + d / CR_QK * sizeof(uint16_t));
}

/* Is this level built in and supported by the CPU and the operating system? */
bool cr_cpu_has(enum cr_cpu level);
/* "ref", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm", "auto" or NULL (then
 * $CR_CPU, else the best). CR_INVALID for an unknown name, CR_UNSUPPORTED for a level this machine
 * lacks. The table is static. */
enum cr_status cr_kernels_get(const struct cr_kernels **out, const char *name,
                              struct cr_error *err);
const struct cr_kernels *cr_kernels_level(enum cr_cpu level); /* NULL if not available */

#endif
