/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes: the sequences that can run at the same time, each with its place in the KV cache, which is
 * all allocated at the start. A lane keeps its tokens, so that another sequence of the same caller
 * with the same delta goes on from the longest common beginning, which is copied where the lane is
 * at work or holds more; another caller or another delta never sees them. One thread at a time.
 */
#ifndef CR_LANES_H
#define CR_LANES_H

#include "base/error.h"

typedef struct cr_lanes cr_lanes;

struct cr_lane_work {
    int lane;
    const int32_t *ids; /* [n] to append */
    size_t n;
    bool last, all; /* logits after the last token, after every token */
};

/* Bytes that n lanes of n_ctx tokens hold (0: the model's own context length). */
size_t cr_lanes_bytes(const cr_model *m, int n, int n_ctx);
enum cr_status cr_lanes_new(cr_lanes **out, cr_model *m, int n, int n_ctx, struct cr_error *err);
void cr_lanes_free(cr_lanes *l);
int cr_lanes_ctx(const cr_lanes *l);
int cr_lanes_count(const cr_lanes *l);
/* A free lane for a sequence that begins with ids [n]; -1 when none is free. *n_cached tokens are
 * there already, never all n and at most `most`. */
int cr_lanes_begin(cr_lanes *l, const cr_delta *delta, const char *caller, const int32_t *ids,
                   size_t n, size_t most, size_t *n_cached);
/* keep false: what it holds is dropped. */
void cr_lanes_end(cr_lanes *l, int lane, bool keep);
typedef void cr_lane_logits_fn(void *ud, size_t work, size_t at, const float *logits);
/* Runs all work in one pass. on_logits is told of each wanted token: its work, its place in it.
 * early comes before it, from several threads at a time. */
enum cr_status cr_lanes_run(cr_lanes *l, const struct cr_lane_work *work, size_t n,
                            cr_lane_logits_fn *early, cr_lane_logits_fn *on_logits, void *ud,
                            struct cr_error *err);

#endif
