/* SPDX-License-Identifier: Apache-2.0 */
/* Which level of kernels runs: asked by name, by $CR_CPU, or the best that this machine has. */
#include "kernels/levels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#include <stdlib.h>
#include <string.h>

static const char *const level_names[CR_CPU_COUNT] = {"ref", "avx2",    "avx512",  "neon",
                                                      "amx", "avxvnni", "dotprod", "i8mm"};

#if defined(__x86_64__)
/* Not every compiler's __builtin_cpu_supports knows F16C. It works on the same registers as AVX. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

/* CPUID 7.1, EAX bit 4. It works on the same registers as AVX2. */
static bool has_avx_vnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
}

/* CPUID 7.0, EDX bit 22. */
static bool has_amx_bf16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) != 0;
}

/* Tiles and int8 products in the processor (CPUID 7.0, EDX bits 24 and 25), and the tiles' 8 KiB of
 * state granted by the system: Linux gives it to a process that asks. */
static bool has_amx(void)
{
#if defined(__linux__)
    enum { REQUEST_STATE = 0x1023, TILE_DATA = 18 }; /* arch_prctl(2) */
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 &&
           syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0;
#else
    return false;
#endif
}

static struct cr_kernels avx512_table, amx_table;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void fill_tables(void)
{
    avx512_table = cr_kernels_avx512;
    cr_kernels_fill_amx(&amx_table);
    if (__builtin_cpu_supports("avx512bf16")) {
        cr_kernels_add_bf16(&avx512_table);
        cr_kernels_add_bf16(&amx_table);
        if (has_amx_bf16())
            cr_kernels_add_amx_bf16(&amx_table);
    }
}
#endif

/* __builtin_cpu_supports asks the operating system too (XGETBV), not the processor alone. */
bool cr_cpu_has(enum cr_cpu level)
{
    switch (level) {
    case CR_CPU_REF:
        return true;
#if defined(__x86_64__)
    case CR_CPU_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case CR_CPU_AVX512:
        return cr_cpu_has(CR_CPU_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    case CR_CPU_AVXVNNI:
        return cr_cpu_has(CR_CPU_AVX2) && has_avx_vnni();
    case CR_CPU_AMX:
        return cr_cpu_has(CR_CPU_AVX512) && has_amx();
#elif defined(__aarch64__)
    case CR_CPU_NEON:
        return true;
    case CR_CPU_DOTPROD: /* what the system says of the processor: HWCAP_ASIMDDP, HWCAP2_I8MM */
        return (getauxval(AT_HWCAP) >> 20 & 1) != 0;
    case CR_CPU_I8MM:
        return cr_cpu_has(CR_CPU_DOTPROD) && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
#endif
    default:
        return false;
    }
}

const struct cr_kernels *cr_kernels_level(enum cr_cpu level)
{
    if (!cr_cpu_has(level))
        return NULL;
    switch (level) {
#if defined(__x86_64__)
    case CR_CPU_AVX2:
        return &cr_kernels_avx2;
    case CR_CPU_AVXVNNI:
        return &cr_kernels_avxvnni;
    case CR_CPU_AVX512:
        pthread_once(&tables_once, fill_tables);
        return &avx512_table;
    case CR_CPU_AMX:
        pthread_once(&tables_once, fill_tables);
        return &amx_table;
#elif defined(__aarch64__)
    case CR_CPU_NEON:
        return &cr_kernels_neon;
    case CR_CPU_DOTPROD:
        return &cr_kernels_dotprod;
    case CR_CPU_I8MM:
        return &cr_kernels_i8mm;
#endif
    default:
        return &cr_kernels_ref;
    }
}

enum cr_status cr_kernels_get(const struct cr_kernels **out, const char *name, struct cr_error *err)
{
    static const enum cr_cpu best_first[] = {CR_CPU_AMX,  CR_CPU_AVX512, CR_CPU_AVXVNNI,
                                             CR_CPU_AVX2, CR_CPU_I8MM,   CR_CPU_DOTPROD,
                                             CR_CPU_NEON, CR_CPU_REF};
    *out = NULL;
    const char *asked = name ? name : getenv("CR_CPU");
    if (!asked || !*asked || strcmp(asked, "auto") == 0) {
        for (size_t i = 0; !*out; i++)
            *out = cr_kernels_level(best_first[i]);
        return CR_OK;
    }
    for (int i = 0; i < CR_CPU_COUNT; i++) {
        if (strcmp(asked, level_names[i]) != 0)
            continue;
        *out = cr_kernels_level((enum cr_cpu)i);
        if (*out)
            return CR_OK;
        const struct cr_kernels *best;
        (void)cr_kernels_get(&best, "auto", NULL);
        return cr_error_set(err, CR_UNSUPPORTED, "CPU level %s: this machine has up to %s", asked,
                            best->name);
    }
    return cr_error_set(err, CR_INVALID,
                        "CPU level \"%s\"%s: should be ref, avx2, avxvnni, avx512, "
                        " amx, neon, dotprod, i8mm or auto",
                        asked, name ? "" : " (from $CR_CPU)");
}
