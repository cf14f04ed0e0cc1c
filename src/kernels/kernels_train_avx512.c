/* SPDX-License-Identifier: Apache-2.0 */
/* The training kernels built for AVX-512. */
#include "kernels/train_body.h"
#include "kernels/train_levels.h"

const struct cr_train_kernels cr_train_avx512 = {TRAIN_KERNELS("avx512")};
