/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forward pass. crayon.h has the one-sequence view (sync, step, logits). Below is the general
 * batch that scoring, blending and embedding use: many sequences with shared prefixes packed into
 * one pass, every token saying which cache cells it may see.
 *
 * Cell i of the KV cache holds the i-th token run since the last reset. Token t of a batch placed
 * at cell c sees the cells [pre_begin, pre_end) and then [seg_begin, c], in that order. One plain
 * sequence: pre_begin = pre_end = 0, seg_begin = 0, pos = c. The result for a token is the same,
 * bit for bit, however its sequence was packed or split into calls.
 *
 * A daemon that runs several sequences at a time owns the cells itself: it gives each sequence a
 * range of cells [begin, end) of one session, sets `placed`, and puts into one batch the next token
 * of every sequence that decodes and a piece of the prompt of one that begins. Each token then says
 * its cell (seg_begin = begin, pos = cell - begin) and its delta, so that sequences with different
 * palettes share the pass over the weights. To drop a sequence is to use its cells for another.
 */
#ifndef CR_SESSION_H
#define CR_SESSION_H

#include "model/model.h"

struct cr_batch_token {
    int32_t id;
    int32_t pos;                /* for RoPE */
    int32_t pre_begin, pre_end; /* cells of a shared prefix; equal: none */
    int32_t seg_begin;          /* first cell of this token's own segment */
    bool want;                  /* give this token to on_logits / on_hidden */
    /* Only in a placed batch: */
    int32_t cell;          /* where k and v go; a batch names no cell twice */
    const cr_delta *delta; /* NULL: the base model */
};

struct cr_batch {
    const struct cr_batch_token *tokens;
    size_t n;
    /* Tokens say their own cell and delta; what they see must have been run before, or stand before
     * them in the batch. Else they go into the next cells, in order, with the session's delta. */
    bool placed;
    /* Called in token order for each wanted token with its logits [n_vocab]; the buffer is valid
     * during the call. NULL: no logits are computed at all. */
    void (*on_logits)(void *ud, size_t token, const float *logits);
    /* Called before that for the same tokens, by several threads at a time and in any order: for
     * work on one token's logits alone. May be NULL. */
    void (*on_logits_early)(void *ud, size_t token, const float *logits);
    /* Called for each wanted token with the residual stream [n_embd] after layer hidden_layer
     * (0 = after the first; -1 = the embedding); with stop_at_hidden nothing later is computed: the
     * cells then hold no later layer either, so only batches that stop there may go on from them.
     */
    void (*on_hidden)(void *ud, size_t token, const float *hidden);
    int hidden_layer;
    bool stop_at_hidden;
    void *ud;
    bool (*cancelled)(void *ud); /* asked between chunks; may be NULL */
};

/* Copies n cells: what was run in [from, from + n) is then in [to, to + n) too; the ranges do not
 * overlap. */
void cr_session_copy(cr_session *s, int from, int to, int n);
/* Empties the cache. */
void cr_session_reset(cr_session *s);
/* Keeps the first n cells. */
void cr_session_truncate(cr_session *s, int n);
/* Runs a batch of any size in chunks, appending one cell per token. CR_LIMIT when the cache is full
 * (nothing is run then). Does not touch the ids that cr_session_sync remembers: reset first when
 * mixing. A placed batch appends nothing: the session is as long as its last used cell, and
 * cr_session_sync begins anew after it. */
enum cr_status cr_session_run(cr_session *s, const struct cr_batch *b, struct cr_error *err);
/* Guesses of one plain sequence (speculate.h): appends ids[0] and guesses ids[1 .. n) as
 * cr_session_step does one by one, n at most cr_session_try_most, and keeps the logits after each.
 * cr_session_logits gives those after ids[0], after cr_session_select those after ids[i]. */
enum cr_status cr_session_try(cr_session *s, const int32_t *ids, int n, struct cr_error *err);
int cr_session_try_most(const cr_session *s);
void cr_session_select(cr_session *s, int i);
/* Keeps the first n cells, and the logits that are there. */
void cr_session_keep(cr_session *s, int n);
cr_model *cr_session_model(const cr_session *s);
const cr_delta *cr_session_delta(const cr_session *s);

#endif
