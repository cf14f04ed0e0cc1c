/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sets of characters and regular expressions as rules over the bytes of a JSON string's inside:
 * characters in UTF-8, with the quote, the backslash and control characters escaped.
 *
 * Of ECMA 262 what has the same meaning everywhere is taken: characters, classes, groups, | * + ?
 * {}, ^ at the beginning and $ at the end. The rest (look-around, back-references, \b, ...) is
 * refused.
 */
#ifndef CR_PATTERN_H
#define CR_PATTERN_H

#include "serve/grammar.h"

enum { CR_CHARS_MAX = 512 };

struct cr_chars { /* ascending ranges that do not touch */
    struct {
        uint32_t first, last;
    } v[CR_CHARS_MAX];
    size_t n;
    bool failed; /* too many ranges */
};

void cr_chars_add(struct cr_chars *c, uint32_t first, uint32_t last);
void cr_chars_invert(struct cr_chars *c);
/* A rule for one character of the set. */
uint32_t cr_chars_rule(cr_grammar *g, const struct cr_chars *c);
/* A rule for any character of a JSON string, escapes of all kinds included. */
uint32_t cr_any_char_rule(cr_grammar *g);
/* A rule for the inside of a string in which the pattern is found; 0 and a message of what cannot
 * be honoured. any: cr_any_char_rule of this grammar. */
bool cr_pattern_rule(cr_grammar *g, const char *pattern, uint32_t any, uint32_t *rule,
                     char why[160]);

#endif
