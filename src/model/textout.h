/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From token bytes to text that may be shown. Bytes wait while they may still be the beginning of a
 * stop string or of a character, so what is handed out is whole UTF-8 and never has to be taken
 * back. Bytes that are no UTF-8 become U+FFFD.
 *
 * The first stop string is the one that ends first, whichever way the tokens cut the text; among
 * those that end together, the longest.
 */
#ifndef CR_TEXTOUT_H
#define CR_TEXTOUT_H

#include "base/error.h"

enum {
    CR_TEXT_MAX_STOPS = 64,
    CR_TEXT_MAX_STOP_BYTES = 1024,
    CR_TEXT_PIECE = 256, /* bytes of a token looked at together */
    CR_TEXT_PENDING = CR_TEXT_MAX_STOP_BYTES + CR_TEXT_PIECE + 4
};

struct cr_text_out {
    const char *const *stop; /* [n_stop], borrowed; each 1 to CR_TEXT_MAX_STOP_BYTES */
    size_t n_stop;
    bool (*on_text)(void *ud, const char *text, size_t len); /* false cancels; may be NULL */
    void *ud;
    char pending[CR_TEXT_PENDING];
    size_t n;
    bool stopped, cancelled;
    size_t which; /* index of the stop string that was met, once stopped */
};

enum cr_status cr_text_out_init(struct cr_text_out *o, const char *const *stop, size_t n_stop,
                                bool (*on_text)(void *, const char *, size_t), void *ud,
                                struct cr_error *err);
void cr_text_out_add(struct cr_text_out *o, const char *bytes, size_t n);
/* Hands out what still waits. Not after a stop string. */
void cr_text_out_end(struct cr_text_out *o);

#endif
