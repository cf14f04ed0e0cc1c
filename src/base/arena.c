/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of 64 KiB in a list; a piece that is larger than a quarter block gets a block of its own,
 * put behind the current one so that the space left there stays usable. */
#include "base/arena.h"
#include "base/mem.h"

#include <string.h>

enum { BLOCK = 64 * 1024, ALIGN = 16 };

struct block {
    struct block *next;
    size_t used, size;
    _Alignas(ALIGN) char data[];
};

struct cr_arena {
    struct block *first;
};

struct cr_arena *cr_arena_new(void)
{
    return cr_alloc0(1, sizeof(struct cr_arena));
}

void cr_arena_free(struct cr_arena *a)
{
    if (!a)
        return;
    for (struct block *b = a->first, *next; b; b = next) {
        next = b->next;
        cr_free(b);
    }
    cr_free(a);
}

void *cr_arena_alloc(struct cr_arena *a, size_t n, size_t size)
{
    if (size && n > (SIZE_MAX / 2) / size)
        return NULL;
    size_t bytes = (n * size + ALIGN - 1) / ALIGN * ALIGN;
    struct block *b = a->first;
    if (!b || bytes > b->size - b->used) {
        bool alone = b && bytes > BLOCK / 4;
        size_t room = bytes > BLOCK / 4 ? bytes : BLOCK;
        struct block *fresh = cr_alloc(1, sizeof *fresh + room);
        if (!fresh)
            return NULL;
        *fresh = (struct block){.size = room};
        fresh->next = alone ? b->next : b;
        *(alone ? &b->next : &a->first) = fresh;
        b = fresh;
    }
    void *p = b->data + b->used;
    b->used += bytes;
    return p;
}

char *cr_arena_strndup(struct cr_arena *a, const char *s, size_t n)
{
    if (n == SIZE_MAX)
        return NULL;
    char *d = cr_arena_alloc(a, n + 1, 1);
    if (d) {
        if (n)
            memcpy(d, s, n);
        d[n] = '\0';
    }
    return d;
}
