/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Masking: personal data is replaced by placeholders before a text leaves, and put back in the
 * answer. What is found: e-mail addresses, phone numbers, payment cards (Luhn), IBANs (mod 97),
 * keys and tokens, base64 that holds any of these, and the user's own patterns; also where a match
 * is spread over several messages. A net with holes: it finds what has a form, not names or
 * secrets in words.
 *
 * A placeholder is "[EMAIL_1_7f3a]": kind, number, and four digits drawn for each request that no
 * text of the request contains. So only our own placeholders are restored, whatever the prompt or
 * the server writes. The same value has the same placeholder everywhere in a request.
 *
 *     cr_mask_new(&m, masker, messages, n, &masked, &err);   // masked [n] goes out
 *     cr_mask_restore(m, answer, len, &buf);
 *
 * A masker is immutable and shared by threads; a mask belongs to one request.
 */
#ifndef CR_MASK_H
#define CR_MASK_H

#include "base/bytes.h"

typedef struct cr_masker cr_masker;
typedef struct cr_mask cr_mask;

/* CR_INVALID for a pattern that PCRE2 refuses or that matches nothing but the empty text. Free with
 * cr_masker_free. */
enum cr_status cr_masker_new(cr_masker **out, const char *const *patterns, size_t n,
                             struct cr_error *err);
void cr_masker_free(cr_masker *m);

/* *masked [n]: the messages as they may leave, owned by the mask (roles are borrowed). CR_POLICY
 * when a pattern passes its match limit: then nothing may leave. Free with cr_mask_free. */
enum cr_status cr_mask_new(cr_mask **out, const cr_masker *masker,
                           const struct cr_message *messages, size_t n,
                           const struct cr_message **masked, struct cr_error *err);
void cr_mask_free(cr_mask *m);
size_t cr_mask_count(const cr_mask *m); /* values that were masked */

/* Appends text with our placeholders replaced; false when out is full. */
bool cr_mask_restore(const cr_mask *m, const char *text, size_t len, struct cr_buf *out);

/* The same for a stream: a placeholder may come in pieces, so its beginning is held back. */
struct cr_unmask {
    const cr_mask *mask;
    char held[64];
    size_t n_held;
};
/* Appends what is certain. At the end call with text NULL to get what was held back. */
bool cr_unmask_feed(struct cr_unmask *u, const char *text, size_t len, struct cr_buf *out);

#endif
