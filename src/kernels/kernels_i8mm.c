/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels built for NEON, dot products and the small matrix products of Armv8.6. */
#include "kernels/neon_body.h"

const struct cr_kernels cr_kernels_i8mm = {
    .name = "i8mm",
    .level = CR_CPU_I8MM,
    NEON_KERNELS,
};
