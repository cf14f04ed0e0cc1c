/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels built for NEON. */
#include "kernels/neon_body.h"

const struct cr_kernels cr_kernels_neon = {
    .name = "neon",
    .level = CR_CPU_NEON,
    NEON_KERNELS,
};
