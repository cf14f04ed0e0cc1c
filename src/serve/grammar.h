/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A context-free grammar over bytes and the automaton that follows it.
 *
 * A rule is a list of alternatives, an alternative a row of symbols: a set of bytes, another rule,
 * or a rule repeated min to max times. Where a text stands is a set of frames; a frame is a place
 * in an alternative, what is left of a repetition, and the frame to return to. Frames are made once
 * each, so equal places are equal numbers, and what is known of one (which tokens fit) is kept with
 * it.
 *
 * Rules must not lead back to themselves before a byte (schema.c and pattern.c see to that), a
 * repeated rule must not match nothing. Every amount of work is bounded: what passes a bound fails,
 * and the request with it. One thread at a time.
 */
#ifndef CR_GRAMMAR_H
#define CR_GRAMMAR_H

#include "serve/api.h"

typedef struct cr_grammar cr_grammar;

enum { CR_GRAMMAR_MAX_SYMBOLS = 1 << 20, CR_GRAMMAR_MAX_SET = 2048 };
#define CR_GRAMMAR_MANY UINT32_MAX /* no upper limit of a repetition */
#define CR_NO_FRAME UINT32_MAX

/* ---- making one ---- */

struct cr_symbol { /* 8 bytes */
    uint8_t type, byte;
    uint16_t unused;
    uint32_t i; /* of a set, rule or repetition */
};

/* A row of symbols on its way. Free with cr_row_deinit. */
struct cr_row {
    cr_grammar *g;
    struct cr_symbol *v;
    size_t n, cap;
};

enum cr_status cr_grammar_new(cr_grammar **out, struct cr_error *err);
cr_grammar *cr_grammar_ref(cr_grammar *g);
void cr_grammar_unref(cr_grammar *g);
bool cr_grammar_failed(const cr_grammar *g); /* out of memory, or larger than the limit */
size_t cr_grammar_frames(const cr_grammar *g);

uint32_t cr_rule_new(cr_grammar *g); /* without alternatives: matches nothing */
void cr_row_init(struct cr_row *r, cr_grammar *g);
void cr_row_deinit(struct cr_row *r);
void cr_row_byte(struct cr_row *r, char byte);
void cr_row_text(struct cr_row *r, const char *text, size_t n);
/* bits: 256 of them, bit b of word b / 32. */
void cr_row_set(struct cr_row *r, const uint32_t bits[8]);
void cr_row_range(struct cr_row *r, unsigned first, unsigned last);
void cr_row_rule(struct cr_row *r, uint32_t rule);
void cr_row_repeat(struct cr_row *r, uint32_t rule, uint32_t min, uint32_t max);
/* Adds the row to a rule as an alternative and empties it. */
void cr_rule_add(struct cr_row *r, uint32_t rule);
/* Sets the beginning and drops alternatives that can never end. False: nothing is left. */
bool cr_grammar_close(cr_grammar *g, uint32_t root);

/* ---- following one ---- */

struct cr_frames {
    uint32_t v[CR_GRAMMAR_MAX_SET];
    uint32_t n;
    bool whole; /* the text may end here */
};

bool cr_grammar_start(cr_grammar *g, struct cr_frames *out);
/* out may not be in. False: past a bound or out of memory. out->n == 0 and not whole: no match. */
bool cr_grammar_step(cr_grammar *g, const struct cr_frames *in, uint8_t byte,
                     struct cr_frames *out);
bool cr_frame_step(cr_grammar *g, uint32_t frame, uint8_t byte, struct cr_frames *out);
/* The frame that takes the same tokens of at most `longest` bytes: counts past it are made equal.
 */
uint32_t cr_frame_canonical(cr_grammar *g, uint32_t frame, uint32_t longest);
/* The mask kept with a frame, or NULL; n words. */
const uint32_t *cr_frame_mask(const cr_grammar *g, uint32_t frame);
uint32_t *cr_frame_new_mask(cr_grammar *g, uint32_t frame, size_t n);

#endif
