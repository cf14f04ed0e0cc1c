/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the device knows about its own answer: how sure it was (from the log-probabilities of the
 * pass that made the answer) and how far the question lies from the palette's task (from its
 * embedding). Numbers only: no rule ever reads the text.
 *
 *   confidence of text     exp(mean over tokens of ln p1), p1 the probability of the likeliest
 *                          token at each step: it does not depend on how the token was then drawn,
 *                          so one calibration serves every temperature; greedy: the chosen token
 *   confidence of options  p1 = the largest of softmax over options of 8 * sum / bytes
 *   demand_conf            1 - confidence
 *   scope                  q~_x . q_c, both unit vectors in the palette's view
 *   near                   max over the pool's index of q~_x . proto_t
 *   scope_z, near_z        (mean - value) / std with the leave-one-out mean and std of the user's
 *                          examples: how many deviations the question lies outside
 *   demand_scope           scope_z + (near - its mean) / (2 std of scope): far from the task, and
 *                          nearer than usual to something else
 */
#ifndef CR_SIGNALS_H
#define CR_SIGNALS_H

#include "adapt/palette.h"

enum { CR_N_QUANTILES = 4, CR_MAX_OPTIONS = 256 /* as in adapt/examples.h */ };
extern const float cr_quantile_levels[CR_N_QUANTILES]; /* 0, 0.10, 0.25, 0.50 */

struct cr_signals {
    bool options;              /* the answer was chosen among options; else it was generated */
    int n;                     /* tokens of the answer, or options */
    float p1, margin, entropy; /* options: of their distribution; text: means over tokens, where the
                                * logits were given; margin = p1 - p2, entropy in nats */
    float mean;                /* of ln p1 over tokens; options: of the chosen one's log-prob */
    float quantile[CR_N_QUANTILES]; /* of ln p1 over tokens; NAN for options */
    float log_length;               /* ln(1 + tokens of the answer) */
    float change;                   /* |p_custom - p_base|_1 at the first token, in [0, 2] */
    float scope, near, scope_z, near_z;
    float confidence, demand_conf, demand_scope;
    uint64_t request; /* hash of the request, for RANDOM */
};                    /* what is not known is NAN */

void cr_signals_init(struct cr_signals *s);
/* The first 8 bytes of SHA-256(seed, text): what RANDOM draws from. */
uint64_t cr_request_hash(uint64_t seed, const char *text, size_t len);

/* Collects one generated answer. No allocation after init. */
struct cr_meter {
    float *tops; /* [cap] ln p1 of each step */
    size_t n, cap;
    bool entropy_too;           /* costs an exp per vocabulary entry and token */
    double p1, margin, entropy; /* sums over n_dist tokens */
    size_t n_dist;
};
enum cr_status cr_meter_init(struct cr_meter *m, size_t max_tokens, bool entropy_too,
                             struct cr_error *err);
void cr_meter_deinit(struct cr_meter *m);
void cr_meter_reset(struct cr_meter *m); /* before each answer */
/* One chosen token with its log-probability and the logits [n_vocab] that it was drawn from; NULL:
 * the chosen token counts as the likeliest. Tokens past the capacity are left out. */
void cr_meter_token(struct cr_meter *m, int32_t id, float logprob, const float *logits,
                    int n_vocab);
/* Fills confidence and its parts. Sorts the meter's numbers. */
void cr_signals_text(struct cr_signals *s, struct cr_meter *m);
void cr_signals_options(struct cr_signals *s, const struct cr_option_score *options, int n);
/* |softmax(a) - softmax(b)|_1. */
float cr_signal_change(const float *a, const float *b, int n_vocab);

/* Scope from an embedding v [dim of the palette's view], not centred. pool NULL: nothing is known
 * and CR_OK. */
enum cr_status cr_signals_scope_vector(struct cr_signals *s, const cr_palette *p,
                                       const cr_pool *pool, const float *v, struct cr_error *err);
/* Embeds an example and does the same. */
enum cr_status cr_signals_scope(struct cr_signals *s, cr_model *m, const cr_palette *p,
                                const cr_pool *pool, const struct cr_example *e,
                                struct cr_error *err);

#endif
