/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The heap of merges that both families share. Every candidate pair is a key (priority, position)
 * in a binary heap. A merge leaves stale keys behind; a key is stale when its position is gone or
 * has another priority now, and is dropped when it comes up. Each merge adds at most two keys, so
 * n symbols need at most 2 n places and O(n log n) time, whatever the text.
 */
#include "model/tokenizer_impl.h"

#include "base/mem.h"

#define NO_MERGE UINT32_MAX
enum { GONE = -2 }; /* symbol.next of a symbol that was merged into the one before */

bool cr_merge_work_reserve(struct cr_merge_work *w, size_t n)
{
    if (n <= w->cap)
        return true;
    size_t cap = n < 256 ? 256 : n + n / 2;
    struct cr_symbol *symbols = cr_alloc(cap, sizeof *symbols);
    uint64_t *heap = cr_alloc(2 * cap, sizeof *heap);
    if (!symbols || !heap) {
        cr_free(symbols);
        cr_free(heap);
        return false;
    }
    cr_merge_work_deinit(w);
    *w = (struct cr_merge_work){symbols, heap, cap};
    return true;
}

void cr_merge_work_deinit(struct cr_merge_work *w)
{
    cr_free(w->symbols);
    cr_free(w->heap);
    *w = (struct cr_merge_work){0};
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t key)
{
    size_t i = (*n)++;
    while (i > 0 && heap[(i - 1) / 2] > key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0], key = heap[--*n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= *n)
            break;
        if (child + 1 < *n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= key)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
    return top;
}

/* Looks at the pair that starts at symbol i and puts it into the heap if it can be merged. */
static void consider(struct cr_merge_work *w, int32_t i, size_t *n_heap, cr_pair_fn *pair,
                     const void *ud)
{
    struct cr_symbol *a = &w->symbols[i];
    a->priority = NO_MERGE;
    if (a->next < 0)
        return;
    pair(ud, a, &w->symbols[a->next]);
    if (a->priority != NO_MERGE)
        heap_push(w->heap, n_heap, (uint64_t)a->priority << 32 | (uint32_t)i);
}

void cr_merge_run(struct cr_merge_work *w, size_t n, cr_pair_fn *pair, const void *ud)
{
    struct cr_symbol *s = w->symbols;
    size_t n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        s[i].prev = (int32_t)i - 1;
        s[i].next = i + 1 < n ? (int32_t)i + 1 : CR_NO_SYMBOL;
    }
    for (size_t i = 0; i < n; i++)
        consider(w, (int32_t)i, &n_heap, pair, ud);
    while (n_heap > 0) {
        uint64_t key = heap_pop(w->heap, &n_heap);
        int32_t at = (int32_t)(uint32_t)key;
        struct cr_symbol *a = &s[at];
        if (a->next < 0 || a->priority != key >> 32)
            continue;
        struct cr_symbol *b = &s[a->next];
        a->id = a->merged;
        a->next = b->next;
        b->next = GONE;
        if (a->next >= 0)
            s[a->next].prev = at;
        consider(w, at, &n_heap, pair, ud);
        if (a->prev >= 0)
            consider(w, a->prev, &n_heap, pair, ud);
    }
}
