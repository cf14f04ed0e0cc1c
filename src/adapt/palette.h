/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A palette: JSON of about a kilobyte that names a base model, a pool and the weights between them,
 * with what scope and routing need. weights empty: keep the base model (the blend did not help). It
 * may keep some of the user's examples as text, which then stand in front of each question
 * (worked.h).
 */
#ifndef CR_PALETTE_H
#define CR_PALETTE_H

#include "adapt/blend.h"
#include "adapt/worked.h"

enum { CR_CALIBRATION_KNOTS = 33, CR_LEARNED_FEATURES = 10, CR_PALETTE_WORKED_BYTES = 1 << 16 };

/* The LEARNED rule (route/learned.h): log-odds = bias + weight . (features - mean) / std. JSON:
 * "learned": {"fitted", "rows", "mean", "std", "weight": [10 numbers], "bias", "knots", "wrong"},
 * or null when n_rows is 0. */
struct cr_learned {
    int n_fitted; /* rows that the weights were fitted on */
    int n_rows;   /* other rows, that knots and wrong come from; 0: there is no rule */
    float mean[CR_LEARNED_FEATURES], std[CR_LEARNED_FEATURES], weight[CR_LEARNED_FEATURES], bias;
    float knots[CR_CALIBRATION_KNOTS]; /* of the log-odds */
    int wrong[CR_CALIBRATION_KNOTS];   /* rows answered wrong with log-odds up to the knot */
};

/*
 * Router calibration: quantiles of the demand scores (higher: more demanding) of in-task examples,
 * from which route/calibrate.c takes the threshold for a budget. Knot k stands at the level
 * 1 - (1 - k / 32)^2: dense where budgets are small. JSON: "calibration": {"rows": 200, "answer":
 * "text" | "options", "conf": [33 numbers], "scope": [33] | null, "either": [33] | null}, or null
 * when n_rows is 0. Where the examples had answers, also "wrong": {"conf", "scope", "either": [33
 * counts] | null} and "learned"; both are null or absent else.
 */
struct cr_calibration {
    int n_rows;   /* examples it was made from; 0: none yet */
    bool options; /* answers were options of multiple choice, not generated text */
    bool has_scope;
    float conf[CR_CALIBRATION_KNOTS];   /* ascending, finite */
    float scope[CR_CALIBRATION_KNOTS];  /* the same, if has_scope */
    float either[CR_CALIBRATION_KNOTS]; /* of max(rank of conf, rank of scope), if has_scope */
    bool labelled;                      /* the next three are filled */
    int wrong_conf[CR_CALIBRATION_KNOTS], wrong_scope[CR_CALIBRATION_KNOTS],
        wrong_either[CR_CALIBRATION_KNOTS]; /* wrong answers with a score up to the knot */
    struct cr_learned learned;
};

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
    float *q_c; /* [dim] unit task embedding in `view`, stored as base64 of float16 */
    float scope_mean, scope_std, near_mean, near_std; /* leave-one-out, in `view` */
    int n_examples, n_held_out;
    float before, after; /* accuracy or exact match on held-out lines, NAN: not measured */
    float loss_before, loss_after;
    char *metric;                      /* "accuracy", "exact", "loss" or "" */
    struct cr_calibration calibration; /* filled by `route calibrate` and by blend */
    /* At most CR_WORKED_MAX, each with an answer, of at most CR_PALETTE_WORKED_BYTES in all; n 0:
     * none. As text, and as ids once the palette is opened for a model. */
    struct cr_examples worked;
    struct cr_worked worked_ids;
    char *created; /* ISO 8601 UTC */
};

enum cr_status cr_palette_parse(cr_palette **out, const char *json, size_t len, const char *name,
                                struct cr_error *err);
/* The file's text, for a palette that will lie at path (the pool's path is made relative to it).
 * NULL and err when it cannot be written. Free with cr_free. */
char *cr_palette_text(const cr_palette *p, const char *path, size_t *len, struct cr_error *err);
enum cr_status cr_palette_write(const cr_palette *p, const char *path, struct cr_error *err);
/* The first `most` of the examples [n] that have an answer, as far as a palette keeps them. */
size_t cr_palette_take_worked(const struct cr_example *e, size_t n, size_t most,
                              struct cr_example out[CR_WORKED_MAX]);
/* Bytes of an example's text, as the limit counts them. */
size_t cr_palette_worked_bytes(const struct cr_example *e);

#endif
