/* SPDX-License-Identifier: Apache-2.0 */
/* Many small pieces with one lifetime: they are handed out from blocks and freed together. */
#ifndef CR_ARENA_H
#define CR_ARENA_H

#include "crayon.h"

struct cr_arena;

/* NULL: out of memory. Free with cr_arena_free. */
struct cr_arena *cr_arena_new(void);
void cr_arena_free(struct cr_arena *a);
/* n items of size bytes, 16-byte aligned, not cleared. NULL on overflow or when out of memory. */
void *cr_arena_alloc(struct cr_arena *a, size_t n, size_t size);
/* The n bytes at s and a NUL. */
char *cr_arena_strndup(struct cr_arena *a, const char *s, size_t n);

#endif
