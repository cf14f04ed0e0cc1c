/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one allocator: counts bytes, can be told to fail at the N-th call (tests), aligns to 64.
 * Every failure is NULL; callers return CR_NO_MEMORY. Thread-safe.
 */
#ifndef CR_MEM_H
#define CR_MEM_H

#include "crayon.h"

/* n items of size bytes, 64-byte aligned, not cleared. NULL on overflow or when out of memory.
 * n * size == 0 gives a valid pointer. */
void *cr_alloc(size_t n, size_t size);
/* The same, cleared. */
void *cr_alloc0(size_t n, size_t size);
/* Grows or shrinks; p may be NULL. On failure p stays valid and NULL is returned. */
void *cr_realloc(void *p, size_t n, size_t size);
/* The whole huge pages of a block of bytes + CR_HUGE_PAGE: asks the system for them and returns
 * where they begin. Where it has none the memory is as any other. */
enum { CR_HUGE_PAGE = 1 << 21 };
void *cr_huge_area(void *block, size_t bytes);
char *cr_strdup(const char *s);
char *cr_strndup(const char *s, size_t n);
/* printf into a fresh string. */
char *cr_asprintf(const char *fmt, ...) CR_PRINTF(1, 2);

/* Allocations made so far (for "none in the token loop"), and fail injection: the n-th allocation
 * from now on fails, and all later ones too when sticky; 0 turns it off. */
uint64_t cr_mem_count(void);
void cr_mem_fail_at(uint64_t n, bool sticky);

#endif
