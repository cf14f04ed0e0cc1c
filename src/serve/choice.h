/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One answer that is being made: its tokens, sampler, constraint, text and log-probabilities. The
 * scheduler feeds it logits; it says which token comes next. Worker's thread only.
 */
#ifndef CR_CHOICE_H
#define CR_CHOICE_H

#include "model/textout.h"
#include "serve/constraint.h"
#include "serve/probs.h"

struct cr_job;

enum { CR_MAX_CALLS = 16 };

struct cr_call { /* of a tool, as the model makes it */
    char id[32];
    char name[128];
    size_t n_name;
    struct cr_buf arguments;
    bool complete;
};

struct cr_choice {
    struct cr_job *job;
    size_t index;
    int32_t *ids; /* the prompt and what was chosen: [n_ids], room for cap */
    size_t n_ids, n_prompt, cap;
    size_t n_hidden; /* of the prompt, before the client's own tokens */
    size_t n_run;    /* of them, in the cache */
    size_t n_cached; /* of the prompt, from an earlier request */
    int lane;        /* -1: none */
    int max_new, n_new;
    cr_sampler *sampler;
    uint16_t *counts; /* [n_vocab] of chosen ids, for penalties; NULL: none */
    struct cr_text_out out;
    struct cr_probs probs;
    struct cr_buf text;
    /* what the text must be */
    cr_constraint *constraint; /* NULL: anything */
    bool watching;             /* the constraint waits for "<tool_call>" */
    size_t n_marker;           /* bytes of it seen */
    uint32_t n_markers, valid; /* "<tool_call>" so far; bit i: the i-th begins a call */
    /* calls in the text */
    struct cr_call *calls; /* [CR_MAX_CALLS] or NULL */
    size_t n_calls;
    int phase;
    size_t at, depth;
    uint32_t n_split;
    size_t n_split_open; /* the item that a stream has open */
    bool in_string, escaped;
    struct cr_buf held; /* text that may be the beginning of a marker */
    /* the end */
    double sum_logprob;
    float *tops; /* [max_new] ln p1 of each step, where the answer may be routed; else NULL */
    size_t n_tops;
    const char *finish; /* "stop", "length", "tool_calls"; NULL: not yet */
    const char *stop_met;
    bool begun, broken;
    /* the token that was chosen early */
    bool picked;
    int32_t next;
    float next_logprob;
    struct cr_error err;
};

/* Room for text and log-probabilities; the tokens are set by the caller. */
enum cr_status cr_choice_init(struct cr_choice *c, struct cr_job *job, size_t index,
                              struct cr_error *err);
void cr_choice_deinit(struct cr_choice *c);
/* Makes the sampler, when its turn has come. */
enum cr_status cr_choice_begin(struct cr_choice *c, struct cr_error *err);
/* Before cr_choice_logits with the same logits, by any thread: chooses the token where only the
 * logits and this choice's sampler matter. */
void cr_choice_early(struct cr_choice *c, size_t at, const float *logits);
/* Takes the logits after the token at place `at` of ids: scores the prompt or chooses the next
 * token. scratch [n_vocab]. An error or the end sets err or finish. */
void cr_choice_logits(struct cr_choice *c, size_t at, const float *logits, float *scratch);
/* Ends it: "length" and the like. */
void cr_choice_finish(struct cr_choice *c, const char *finish);

/* tools.c: takes the calls out of the text as it comes. */
bool cr_split_text(struct cr_choice *c, const char *text, size_t n);
void cr_split_end(struct cr_choice *c);

#endif
