/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of the levels of train.h. */
#ifndef CR_TRAIN_LEVELS_H
#define CR_TRAIN_LEVELS_H

#include "kernels/train.h"

#if defined(__x86_64__)
extern const struct cr_train_kernels cr_train_avx2, cr_train_avx512;
extern const struct cr_train_kernels cr_train_bf16; /* AVX-512 with VDPBF16PS */
extern const struct cr_train_kernels cr_train_amx;  /* AVX-512 with AMX tiles */
#endif

#endif
