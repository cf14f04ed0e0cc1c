/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A palette: JSON of about a kilobyte that names a base model, a pool and the weights between them,
 * with what scope and routing need. weights empty: keep the base model (the blend did not help).
 */
#ifndef CR_PALETTE_H
#define CR_PALETTE_H

#include "adapt/blend.h"

struct cr_palette {
    char *name, *base_hash, *base_name;
    char *pool_hash,
        *pool_path; /* path as given at save, resolved beside the palette when relative */
    int n;
    float *weights; /* [n]; n 0: the base model as it is */
    enum cr_solver solver;
    enum cr_level level;
    enum cr_view view;
    int dim;
    float *q_c; /* [dim] unit task embedding (q_x view), stored as base64 of float16 */
    float scope_mean, scope_std, near_mean, near_std;
    int n_examples, n_held_out;
    float before, after; /* accuracy or exact match on held-out lines, NAN: not measured */
    float loss_before, loss_after;
    char *metric; /* "accuracy", "exact", "loss" or "" */
    /* router calibration, filled by `route calibrate` and by blend */
    float
        *calibration; /* sorted demand scores of held-out in-task examples [n_calibration <= 64] */
    int n_calibration;
    char *created; /* ISO 8601 UTC */
};

enum cr_status cr_palette_parse(cr_palette **out, const char *json, size_t len, const char *name,
                                struct cr_error *err);
enum cr_status cr_palette_write(const cr_palette *p, const char *path, struct cr_error *err);

#endif
