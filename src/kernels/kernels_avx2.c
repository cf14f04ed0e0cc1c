/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels built for AVX2, FMA and F16C. */
#include "kernels/avx2_body.h"

const struct cr_kernels cr_kernels_avx2 = {
    .name = "avx2",
    .level = CR_CPU_AVX2,
    AVX2_KERNELS,
};
