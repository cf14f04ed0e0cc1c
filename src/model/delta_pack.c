/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packs a delta for the kernels of this machine, in 8 bits: for each input of a layer the A of the
 * linears that share it, stacked, and the B of each linear: two blocks of memory in the order of
 * their use. The palettes of a pool whose adapters share their A have one block of A between them.
 */
#include "base/mem.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

enum { ALIGN = 64 };

struct packing {
    const cr_model *m;
    cr_delta *d;
    char *base; /* NULL: only count */
    size_t at;
};

static bool packs(const cr_model *m, const struct cr_matrix *w, const struct cr_low_rank *p)
{
    return p->rank > 0 && p->rank <= CR_MAX_LOW_RANK && w->n_in % CR_QK == 0 && w->type != CR_F32 &&
           w->type != CR_F16 && w->type != CR_BF16 && m->k->panel_rows;
}

static char *take(struct packing *job, size_t bytes)
{
    char *p = job->base ? job->base + job->at : NULL;
    job->at += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

/* Counts what `place` takes, allocates it, in huge pages where it fills the better part of one, and
 * places. Returns the block; NULL: nothing to pack, or no memory. */
static char *allocate(struct packing *job, void (*place)(struct packing *job))
{
    place(job);
    size_t bytes = job->at, huge = bytes > CR_HUGE_PAGE / 2 ? CR_HUGE_PAGE : 0;
    if (huge)
        bytes = (bytes + huge - 1) / huge * huge;
    char *block = bytes ? cr_alloc(bytes + huge, 1) : NULL;
    if (block) {
        job->base = huge ? cr_huge_area(block, bytes) : block;
        job->at = 0;
        place(job);
    }
    return block;
}

/* ---- A ---- */

static size_t a_bytes(const cr_model *m, int rows, size_t n_in)
{
    size_t panels = ((size_t)rows + m->k->panel_rows - 1) / m->k->panel_rows;
    return panels * m->k->panel_bytes(CR_Q8_0, n_in);
}

/* The first row at or after `at` from which `rank` ranks lie as cr_kernels.add_low wants them. */
static int next_row(int at, int rank)
{
    at = (at + 3) / 4 * 4;
    return at % CR_QK + rank > CR_QK ? (at + CR_QK - 1) / CR_QK * CR_QK : at;
}

static void place_stack(struct packing *job, int layer, enum cr_input input)
{
    struct cr_low_stack *stack = &job->d->own_stacks[layer * CR_INPUT_COUNT + (int)input];
    size_t n_in = 0;
    stack->rows = 0;
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(job->m, layer, (enum cr_linear)i);
        struct cr_low_rank *p = cr_delta_at(job->d, layer, (enum cr_linear)i);
        if (cr_linear_inputs[i] != input || !packs(job->m, w, p))
            continue;
        p->stacked = next_row(stack->rows, p->rank);
        stack->rows = p->stacked + p->rank;
        n_in = (size_t)w->n_in;
    }
    if (stack->rows)
        stack->a = take(job, a_bytes(job->m, stack->rows, n_in));
}

static void place_a(struct packing *job)
{
    for (int l = 0; l < job->d->n_layers; l++)
        for (int i = 0; i < CR_INPUT_COUNT; i++)
            place_stack(job, l, (enum cr_input)i);
}

/* Rows of float32, times a power of two, to Q8_0. */
static void quantise_rows(const cr_model *m, struct cr_block_q8_0 *dst, const float *a, size_t n,
                          int power)
{
    const float gain = ldexpf(1, power);
    struct cr_block_q8a block;
    for (size_t i = 0; i < n; i += CR_QK, a += CR_QK, dst++) {
        m->k->quantize_q8a(&block, a, CR_QK);
        dst->d = cr_f32_to_f16(block.d * gain);
        memcpy(dst->q, block.q, sizeof dst->q);
    }
}

/* Low values side by side in a block share a scale when they are quantised, so the A of a stack
 * are brought to one size, by a power of two that the low values of B take back: the exponent for
 * [rank, n] a. */
static int power_of(const cr_model *m, const float *a, size_t n)
{
    const float sum = m->k->dot(a, a, n);
    int e;
    frexpf(sqrtf(sum / (float)n), &e);
    return sum > 0 && isfinite(sum) ? -6 - e : 0; /* scales of A and B far from subnormal */
}

/* Fills the stack of one input of a layer; rows: room for it as Q8_0. */
static void pack_stack(const struct packing *job, int layer, enum cr_input input,
                       struct cr_block_q8_0 *rows)
{
    const cr_model *m = job->m;
    const struct cr_low_stack *stack = cr_delta_stack(job->d, layer, input);
    size_t n_in = 0;
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(m, layer, (enum cr_linear)i);
        struct cr_low_rank *p = cr_delta_at(job->d, layer, (enum cr_linear)i);
        if (cr_linear_inputs[i] != input || !packs(m, w, p))
            continue;
        if (n_in == 0)
            memset(rows, 0, (size_t)stack->rows * cr_row_bytes(CR_Q8_0, (size_t)w->n_in));
        n_in = (size_t)w->n_in;
        const size_t n = (size_t)p->rank * n_in;
        p->power = power_of(m, p->a, n);
        quantise_rows(m, rows + (size_t)p->stacked * n_in / CR_QK, p->a, n, p->power);
    }
    if (stack->rows)
        m->k->pack[CR_Q8_0]((void *)(uintptr_t)stack->a, rows, cr_row_bytes(CR_Q8_0, n_in),
                            (size_t)stack->rows, n_in);
}

struct filling {
    const struct packing *job;
    struct cr_block_q8_0 *rows; /* [threads, room] */
    size_t room;
};

static void pack_stacks(void *ud, size_t begin, size_t end, int thread)
{
    const struct filling *f = ud;
    for (size_t i = begin; i < end; i++)
        pack_stack(f->job, (int)(i / CR_INPUT_COUNT), (enum cr_input)(i % CR_INPUT_COUNT),
                   f->rows + (size_t)thread * f->room);
}

/* Blocks of the largest stack. */
static size_t most_blocks(const struct packing *job)
{
    size_t most = 0;
    for (int l = 0; l < job->d->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_low_stack *stack = cr_delta_stack(job->d, l, cr_linear_inputs[i]);
            size_t n = (size_t)stack->rows *
                       (size_t)cr_model_linear(job->m, l, (enum cr_linear)i)->n_in / CR_QK;
            most = n > most ? n : most;
        }
    return most;
}

static void drop(cr_delta *d)
{
    for (int i = 0; i < d->n_layers * CR_LIN_COUNT; i++)
        d->pairs[i].packed_b = NULL;
    cr_free(d->own_stacks);
    cr_free(d->packed_a);
    cr_free(d->packed_b);
    d->stacks = d->own_stacks = NULL;
    d->packed_a = d->packed_b = NULL;
}

void cr_delta_pack_a(const cr_model *m, cr_delta *d)
{
    struct packing job = {.m = m, .d = d};
    d->stacks = d->own_stacks =
        cr_alloc0((size_t)d->n_layers * CR_INPUT_COUNT, sizeof *d->own_stacks);
    if (!d->stacks)
        return;
    d->packed_a = allocate(&job, place_a);
    struct filling f = {.job = &job, .room = most_blocks(&job)};
    f.rows = d->packed_a ? cr_alloc((size_t)cr_threads_count(m->threads) * f.room, sizeof *f.rows)
                         : NULL;
    if (f.rows)
        cr_threads_run_dynamic(m->threads, (size_t)d->n_layers * CR_INPUT_COUNT, 1, pack_stacks,
                               &f);
    else
        drop(d);
    cr_free(f.rows);
}

/* ---- B ---- */

/* In the order of use. */
static void place_b(struct packing *job)
{
    for (int i = 0; i < job->d->n_layers * CR_LIN_COUNT; i++) {
        struct cr_low_rank *p = &job->d->pairs[i];
        const struct cr_matrix *w =
            cr_model_linear(job->m, i / CR_LIN_COUNT, (enum cr_linear)(i % CR_LIN_COUNT));
        if (packs(job->m, w, p))
            p->packed_b = take(job, job->m->k->low_bytes((size_t)w->n_out, (size_t)p->rank));
    }
}

bool cr_delta_place_b(const cr_model *m, cr_delta *d, const cr_delta *a)
{
    struct packing job = {.m = m, .d = d};
    if (!a->stacks)
        return false;
    d->stacks = a->stacks;
    for (int i = 0; i < d->n_layers * CR_LIN_COUNT; i++) {
        d->pairs[i].stacked = a->pairs[i].stacked;
        d->pairs[i].power = a->pairs[i].power;
    }
    d->packed_b = allocate(&job, place_b);
    if (!d->packed_b)
        drop(d);
    return d->packed_b != NULL;
}

void cr_delta_pack_b(const cr_model *m, cr_delta *d, int layer, enum cr_linear lin)
{
    const struct cr_low_rank *p = cr_delta_at(d, layer, lin);
    if (p->packed_b)
        m->k->pack_low((void *)(uintptr_t)p->packed_b, p->b,
                       (size_t)cr_model_linear(m, layer, lin)->n_out, (size_t)p->rank,
                       ldexpf(1, -p->power));
}

static void pack_pairs(void *ud, size_t begin, size_t end, int thread)
{
    const struct packing *job = ud;
    (void)thread;
    for (size_t i = begin; i < end; i++)
        cr_delta_pack_b(job->m, job->d, (int)(i / CR_LIN_COUNT),
                        (enum cr_linear)(i % CR_LIN_COUNT));
}

void cr_delta_pack(const cr_model *m, cr_delta *d)
{
    struct packing job = {.m = m, .d = d};
    cr_delta_pack_a(m, d);
    if (cr_delta_place_b(m, d, d))
        cr_threads_run_dynamic(m->threads, (size_t)d->n_layers * CR_LIN_COUNT, 1, pack_pairs, &job);
}
