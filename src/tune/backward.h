/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forward with kept activations and backward, for one micro-batch of packed sequences through the
 * frozen model with its low-rank part. A pass owns the activations and scratch of one worker;
 * everything else is shared and read-only, but for the gradients, which are added to in the order
 * of the micro-batches (struct cr_turns).
 *
 * Only what the loss needs is computed: in the last layer attention, output and feed-forward run
 * for the answer rows alone, no logits are made elsewhere, and no gradient flows into layer 0's
 * input. Norms, rotations, attention probabilities and SiLU are recomputed on the way back;
 * with cr_pass_shape.recompute also q, k, v, the attention output, gate and up.
 */
#ifndef CR_BACKWARD_H
#define CR_BACKWARD_H

#include "tune/frozen.h"

struct cr_micro {
    size_t n_tokens, n_seqs, n_answers;
    const int32_t *ids;         /* [n_tokens] */
    const size_t *seq;          /* [n_seqs + 1] first row of each sequence; positions restart */
    const size_t *answer_row;   /* [n_answers] rows whose next token is scored, rising */
    const int32_t *answer_id;   /* [n_answers] that next token */
    const float *answer_weight; /* [n_answers] its share of the loss */
    struct cr_groups all;       /* over the tokens */
    struct cr_groups answers;   /* the same groups over the answer rows; same a */
};

/* Workers add to the common gradients in turn: slot s belongs to micro-batch next[s]. */
struct cr_turns {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    size_t n_slots;
    size_t *next; /* [n_slots] */
};
enum cr_status cr_turns_init(struct cr_turns *t, size_t n_slots, struct cr_error *err);
void cr_turns_deinit(struct cr_turns *t);
void cr_turns_reset(struct cr_turns *t); /* before a step */
void cr_turns_wait(struct cr_turns *t, size_t slot, size_t micro);
void cr_turns_done(struct cr_turns *t, size_t slot);
/* Slots that a pass uses: one per layer and stage. */
size_t cr_pass_slots(const cr_model *m);

struct cr_pass_shape { /* the most that any micro-batch has */
    size_t n_tokens, n_answers, n_groups, longest;
    bool recompute; /* keep the residual stream alone; the rest of a layer is computed again on the
                       way back: the same bits for less memory and more work */
};

typedef struct cr_pass cr_pass;

/* Bytes of one pass (one per worker), and of the rotation tables that all share. */
size_t cr_pass_bytes(const struct cr_frozen *f, const struct cr_pass_shape *s);
/* The share of all multiply-adds with frozen weights that recomputing adds: 0.3 is 30 % more. */
double cr_pass_recompute_cost(const struct cr_frozen *f);
size_t cr_pass_shared_bytes(const cr_model *m, const struct cr_pass_shape *s);

struct cr_pass_shared { /* tables for positions 0..longest-1 */
    float *rope, *rope_back;
};
enum cr_status cr_pass_shared_init(struct cr_pass_shared *t, const cr_model *m,
                                   const struct cr_pass_shape *s, struct cr_error *err);
void cr_pass_shared_deinit(struct cr_pass_shared *t);

/* The frozen weights and the tables are borrowed. Free with cr_pass_free. */
enum cr_status cr_pass_new(cr_pass **out, const struct cr_frozen *f,
                           const struct cr_pass_shared *tables, const struct cr_pass_shape *s,
                           struct cr_error *err);
void cr_pass_free(cr_pass *pass);

/* Runs a micro-batch: returns sum over answers of weight * NLL, adds to grads [n_adapter] and
 * writes da [groups, N]. turns NULL: the caller is alone. grads NULL: forward only. */
double cr_pass_run(cr_pass *pass, const float *params, const struct cr_micro *b, float *grads,
                   float *da, struct cr_turns *turns, size_t micro);

#endif
