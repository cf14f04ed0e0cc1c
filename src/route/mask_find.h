/* SPDX-License-Identifier: Apache-2.0 */
/* Spans of text to be masked, and those that are found by hand: numbers with check digits, and
 * base64. Used by mask.c alone. */
#ifndef CR_MASK_FIND_H
#define CR_MASK_FIND_H

#include "base/bytes.h"

enum cr_mask_kind {
    CR_MASK_EMAIL,
    CR_MASK_PHONE,
    CR_MASK_CARD,
    CR_MASK_IBAN,
    CR_MASK_KEY,
    CR_MASK_BASE64,
    CR_MASK_TEXT, /* by a pattern of the user */
    CR_MASK_KINDS
};

struct cr_span {
    size_t from, to; /* bytes [from, to) */
    enum cr_mask_kind kind;
};

struct cr_spans { /* {0} to begin; free v with cr_free */
    struct cr_span *v;
    size_t n, cap;
};

bool cr_spans_add(struct cr_spans *s, size_t from, size_t to, enum cr_mask_kind kind);
/* Sorts, and joins those that overlap or touch nothing between them; the longest names the kind. */
void cr_spans_merge(struct cr_spans *s);

/* Cards, IBANs, phone numbers, and words that look like keys. False: out of memory. */
bool cr_find_numbers(const char *text, size_t len, struct cr_spans *out);

/* The next run of at least 16 base64 letters at or after *from. */
bool cr_base64_next(const char *text, size_t len, size_t *from, size_t *to);
/* Its bytes, also without padding and in the URL alphabet. NULL: out of memory. */
char *cr_base64_decode(const char *text, size_t len, size_t *n);

#endif
