/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one allocator. Before each block stand its size, for the counters, and where malloc began it.
 * It is aligned by hand: aligned_alloc of glibc before 2.38 asks for more and gives the ends back,
 * so that a freed block serves no request of its size again, and the memory of a server that runs
 * for long goes to pieces.
 */
#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 };

struct header {
    size_t bytes;
    void *begin;
};

static atomic_size_t bytes_now, bytes_peak;
static atomic_uint_fast64_t n_allocs, fail_at;
static atomic_bool fail_sticky;

size_t cr_mem_now(void)
{
    return atomic_load(&bytes_now);
}

size_t cr_mem_peak(void)
{
    return atomic_load(&bytes_peak);
}

uint64_t cr_mem_count(void)
{
    return atomic_load(&n_allocs);
}

void cr_mem_fail_at(uint64_t n, bool sticky)
{
    atomic_store(&fail_sticky, sticky);
    atomic_store(&fail_at, n ? atomic_load(&n_allocs) + n : 0);
}

static bool must_fail(void)
{
    uint64_t n = atomic_fetch_add(&n_allocs, 1) + 1, at = atomic_load(&fail_at);
    return at && (n == at || (n > at && atomic_load(&fail_sticky)));
}

static void count(size_t add, size_t sub)
{
    size_t now = atomic_fetch_add(&bytes_now, add) + add, peak = atomic_load(&bytes_peak);
    while (now > peak && !atomic_compare_exchange_weak(&bytes_peak, &peak, now)) {
    }
    atomic_fetch_sub(&bytes_now, sub);
}

static struct header *header_of(void *p)
{
    return (struct header *)p - 1;
}

void *cr_alloc(size_t n, size_t size)
{
    const size_t more = sizeof(struct header) + ALIGN - 1;
    if (must_fail() || (size && n > (SIZE_MAX - more) / size))
        return NULL;
    size_t bytes = n * size;
    char *begin = malloc(bytes + more);
    if (!begin)
        return NULL;
    char *p = begin + sizeof(struct header);
    p += (ALIGN - (uintptr_t)p % ALIGN) % ALIGN;
    *header_of(p) = (struct header){bytes, begin};
    count(bytes, 0);
    return p;
}

void *cr_alloc0(size_t n, size_t size)
{
    void *p = cr_alloc(n, size);
    if (p)
        memset(p, 0, n * size);
    return p;
}

void *cr_realloc(void *p, size_t n, size_t size)
{
    void *q = cr_alloc(n, size);
    if (!q || !p)
        return q;
    size_t old = header_of(p)->bytes, now = n * size;
    memcpy(q, p, old < now ? old : now);
    cr_free(p);
    return q;
}

void cr_free(void *p)
{
    if (!p)
        return;
    count(0, header_of(p)->bytes);
    free(header_of(p)->begin);
}

void *cr_huge_area(void *block, size_t bytes)
{
    char *p = block;
    p += (CR_HUGE_PAGE - (uintptr_t)p % CR_HUGE_PAGE) % CR_HUGE_PAGE;
    madvise(p, bytes / CR_HUGE_PAGE * CR_HUGE_PAGE, MADV_HUGEPAGE);
    return p;
}

char *cr_strndup(const char *s, size_t n)
{
    char *d = cr_alloc(n + 1, 1);
    if (d) {
        memcpy(d, s, n);
        d[n] = '\0';
    }
    return d;
}

char *cr_strdup(const char *s)
{
    return cr_strndup(s, strlen(s));
}

char *cr_asprintf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = n < 0 ? NULL : cr_alloc((size_t)n + 1, 1);
    if (!s)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(s, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return s;
}
