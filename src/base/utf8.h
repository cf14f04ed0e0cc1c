/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 as the Unicode Standard defines it (table 3-7): no overlong forms, no surrogates, nothing
 * above U+10FFFF.
 */
#ifndef CR_UTF8_H
#define CR_UTF8_H

#include <stddef.h>

/* Length of the longest valid prefix of s[0..n); n when all of it is valid. */
size_t cr_utf8_valid(const char *s, size_t n);
/* Length of the ill-formed part that starts at s, where no valid character does: the longest
 * prefix of a valid sequence, at least one byte (the "maximal subpart" of the standard, which
 * Python and Rust replace by one U+FFFD). n > 0. */
size_t cr_utf8_bad(const char *s, size_t n);
/* s with each ill-formed part replaced by U+FFFD. NULL: out of memory. Free with cr_free. */
char *cr_utf8_repair(const char *s, size_t n, size_t *out_len);

#endif
