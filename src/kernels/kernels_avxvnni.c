/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels built for AVX2, FMA, F16C and AVX-VNNI, which multiplies bytes as AVX-512 VNNI does,
 * in 256 bits. */
#include "kernels/avx2_body.h"

const struct cr_kernels cr_kernels_avxvnni = {
    .name = "avxvnni",
    .level = CR_CPU_AVXVNNI,
    AVX2_KERNELS,
};
