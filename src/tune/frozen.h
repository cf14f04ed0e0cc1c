/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frozen weights of the linear layers as training reads them: W_ext = [W; A] of each layer and
 * stage (lowrank.h), for products with W_ext^T (forward) and with W_ext (backward).
 *
 * float32: nothing is kept; a matrix is dequantised into scratch each time it is used.
 * bfloat16: both operands are kept as panels (kernels/train.h), 4 bytes a weight, shared by all
 * workers; the rows of A, which training changes, are put in again after every step.
 */
#ifndef CR_FROZEN_H
#define CR_FROZEN_H

#include "tune/lowrank.h"

struct cr_frozen {
    const cr_model *m;
    const struct cr_lowrank *p;
    bool bf16;
    uint16_t *panels; /* bfloat16 only */
    size_t forward_at[CR_STAGE_COUNT], back_at[CR_STAGE_COUNT], layer_size;
};

/* Bytes that are kept. */
size_t cr_frozen_bytes(const cr_model *m, const struct cr_lowrank *p, bool bf16);
/* m and p are borrowed. bf16 needs p->k->bf16_matmul. Free with cr_frozen_deinit. */
enum cr_status cr_frozen_init(struct cr_frozen *f, const cr_model *m, const struct cr_lowrank *p,
                              bool bf16, struct cr_error *err);
void cr_frozen_deinit(struct cr_frozen *f);
/* Takes A from the parameters; before the first pass and after each step. */
void cr_frozen_refresh(struct cr_frozen *f, const float *params);

/* Scratch of a worker for products with up to n_tokens rows, in floats. Needs m, p and bf16. */
size_t cr_frozen_scratch(const struct cr_frozen *f, size_t n_tokens);
/* y [rows, ld] = x W_ext^T for x [rows, n_in] */
void cr_frozen_forward(const struct cr_frozen *f, const float *params, int layer,
                       enum cr_stage stage, const float *x, size_t rows, float *y, float *scratch);
/* dx [rows, n_in] = dy W_ext for dy [rows, ld] */
void cr_frozen_back(const struct cr_frozen *f, const float *params, int layer, enum cr_stage stage,
                    const float *dy, size_t rows, float *dx, float *scratch);

#endif
