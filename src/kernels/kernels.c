/* SPDX-License-Identifier: Apache-2.0 */
/* Which level of kernels runs: asked by name, by $CR_CPU, or the best that this machine has. */
#include "kernels/levels.h"

#include <stdlib.h>
#include <string.h>

static const char *const level_names[CR_CPU_COUNT] = {"ref", "avx2", "avx512", "neon"};

/* __builtin_cpu_supports asks the operating system too (XGETBV), not the processor alone. */
bool cr_cpu_has(enum cr_cpu level)
{
    switch (level) {
    case CR_CPU_REF:
        return true;
    default:
        return false;
    }
}

const struct cr_kernels *cr_kernels_level(enum cr_cpu level)
{
    if (!cr_cpu_has(level))
        return NULL;
    switch (level) {
    default:
        return &cr_kernels_ref;
    }
}

enum cr_status cr_kernels_get(const struct cr_kernels **out, const char *name, struct cr_error *err)
{
    static const enum cr_cpu best_first[] = {CR_CPU_AVX512, CR_CPU_AVX2, CR_CPU_NEON, CR_CPU_REF};
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
                        "CPU level \"%s\"%s: should be ref, avx2, avx512, neon or auto", asked,
                        name ? "" : " (from $CR_CPU)");
}
