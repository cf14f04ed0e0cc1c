/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of this folder share: one table per level, and the reference functions, which a
 * level may put into its own table where it has nothing faster.
 */
#ifndef CR_LEVELS_H
#define CR_LEVELS_H

#include "kernels/kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Rows of floats that stay in the second-level cache, a multiple of 4. */
INLINE size_t rows_in_pass(size_t row_bytes)
{
    enum { ROOM = 1 << 18 };
    return row_bytes <= ROOM / 4 ? ROOM / (row_bytes ? row_bytes : 1) / 4 * 4 : 4;
}

/* A single token waits for memory. Rows of floats, and blocks and panels on a level with STREAMS,
 * are read for it as several runs, far apart and each in the order of memory, so that the processor
 * looks ahead in all of them. This is the length of `streams` runs in n pieces of some bytes, the
 * rest being left for later, such that they do not meet in a few sets of the first-level cache. */
INLINE size_t stream_length(size_t n, size_t streams, size_t bytes)
{
    const size_t run = n / streams;
    return run > 1 && (run * bytes + 256) % 2048 < 512 ? run - 1 : run;
}

/* Where a token has one run, what lies FAR_AHEAD is asked for, a little at a time: the processor
 * looks ahead no further than a small page, and waits where much is asked for at once. Past the end
 * of all weights it does no harm. */
enum { FAR_AHEAD = 7232 };

INLINE void ask_for(const uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(p + i);
}

extern const struct cr_kernels cr_kernels_ref;
void cr_attn_scores_q8_ref(float *s, size_t lds, const struct cr_block_q8a *q, size_t ldq,
                           size_t n_q, const uint8_t *k, size_t begin, size_t end, size_t d,
                           float scale);
void cr_attn_mix_q8_ref(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                        const uint8_t *v, size_t begin, size_t end, size_t d, size_t first,
                        size_t last);
#if defined(__x86_64__)
extern const struct cr_kernels cr_kernels_avx2;
extern const struct cr_kernels cr_kernels_avxvnni;
extern const struct cr_kernels cr_kernels_avx512;
void cr_kernels_fill_amx(struct cr_kernels *k);
void cr_kernels_add_bf16(struct cr_kernels *k);     /* where the CPU has AVX512_BF16 */
void cr_kernels_add_amx_bf16(struct cr_kernels *k); /* where it has AMX-BF16 too */
#elif defined(__aarch64__)
extern const struct cr_kernels cr_kernels_neon;
extern const struct cr_kernels cr_kernels_dotprod;
extern const struct cr_kernels cr_kernels_i8mm;
#endif

#endif
