/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels built for NEON and the dot products of Armv8.2. */
#include "kernels/neon_body.h"

const struct cr_kernels cr_kernels_dotprod = {
    .name = "dotprod",
    .level = CR_CPU_DOTPROD,
    NEON_KERNELS,
};
