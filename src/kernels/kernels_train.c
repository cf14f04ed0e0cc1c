/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of training: dispatch, the level that every machine has, and the packing of panels. */
#include "kernels/train_body.h"
#include "kernels/train_levels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const struct cr_train_kernels train_plain = {TRAIN_KERNELS("plain")};

#if defined(__x86_64__)
/* AMX-BF16 (CPUID 7.0, EDX bit 22); the AMX level itself stands for tiles that the system grants.
 */
static bool has_amx_bf16(void)
{
    unsigned a, b, c, d;
    return cr_cpu_has(CR_CPU_AMX) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}

/* Where Intel has VDPBF16PS without AMX it is no faster than float32; on Zen it is twice. */
static bool has_fast_dot(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd");
}
#endif

const struct cr_train_kernels *cr_train_kernels_get(enum cr_cpu level)
{
#if defined(__x86_64__)
    if (level == CR_CPU_AMX && has_amx_bf16())
        return &cr_train_amx;
    if (level == CR_CPU_AMX || level == CR_CPU_AVX512)
        return has_fast_dot() ? &cr_train_bf16 : &cr_train_avx512;
    if (level == CR_CPU_AVX2 || level == CR_CPU_AVXVNNI)
        return &cr_train_avx2;
#endif
    (void)level;
    return &train_plain;
}

enum { PANEL = 16 };

size_t cr_bf16_depth(size_t k)
{
    return (k + 31) / 32 * 32;
}

size_t cr_bf16_panels_size(size_t n, size_t k)
{
    return (n + PANEL - 1) / PANEL * PANEL * cr_bf16_depth(k);
}

static uint16_t *place(uint16_t *panels, size_t k, size_t row, size_t col)
{
    return panels + row / PANEL * PANEL * cr_bf16_depth(k) + col / 2 * 2 * PANEL + row % PANEL * 2 +
           col % 2;
}

void cr_bf16_put(uint16_t *panels, size_t k, size_t row0, const float *w, size_t rows)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < k; i++)
            *place(panels, k, row0 + r, i) = cr_f32_to_bf16(w[r * k + i]);
}

void cr_bf16_put_transposed(uint16_t *panels, size_t k, size_t col0, const float *w, size_t rows,
                            size_t n)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++)
            *place(panels, k, i, col0 + r) = cr_f32_to_bf16(w[r * n + i]);
}
