/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packs a delta for the kernels of this machine, in 8 bits: for each input of a layer the A of the
 * linears that share it, stacked, then the B of each: one block of memory in the order of its use.
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

/* Places the stack of one input and the B of its linears. */
static void place_input(struct packing *job, int layer, enum cr_input input)
{
    struct cr_low_stack *stack = &job->d->stacks[layer * CR_INPUT_COUNT + (int)input];
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
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(job->m, layer, (enum cr_linear)i);
        struct cr_low_rank *p = cr_delta_at(job->d, layer, (enum cr_linear)i);
        if (cr_linear_inputs[i] == input && packs(job->m, w, p))
            p->packed_b = take(job, job->m->k->low_bytes((size_t)w->n_out, (size_t)p->rank));
    }
}

static void place_all(struct packing *job)
{
    job->at = 0;
    for (int l = 0; l < job->d->n_layers; l++)
        for (int i = 0; i < CR_INPUT_COUNT; i++)
            place_input(job, l, (enum cr_input)i);
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

/* Fills one input of a layer; rows: room for its stack as Q8_0. */
static void pack_input(const struct packing *job, int layer, enum cr_input input,
                       struct cr_block_q8_0 *rows)
{
    const cr_model *m = job->m;
    const struct cr_low_stack *stack = cr_delta_stack(job->d, layer, input);
    size_t n_in = 0;
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(m, layer, (enum cr_linear)i);
        const struct cr_low_rank *p = cr_delta_at(job->d, layer, (enum cr_linear)i);
        if (cr_linear_inputs[i] != input || !packs(m, w, p))
            continue;
        if (n_in == 0)
            memset(rows, 0, (size_t)stack->rows * cr_row_bytes(CR_Q8_0, (size_t)w->n_in));
        n_in = (size_t)w->n_in;
        const size_t n = (size_t)p->rank * n_in;
        const int power = power_of(m, p->a, n);
        quantise_rows(m, rows + (size_t)p->stacked * n_in / CR_QK, p->a, n, power);
        m->k->pack_low((void *)(uintptr_t)p->packed_b, p->b, (size_t)w->n_out, (size_t)p->rank,
                       ldexpf(1, -power));
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

static void pack_inputs(void *ud, size_t begin, size_t end, int thread)
{
    const struct filling *f = ud;
    for (size_t i = begin; i < end; i++)
        pack_input(f->job, (int)(i / CR_INPUT_COUNT), (enum cr_input)(i % CR_INPUT_COUNT),
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

/* Nothing is packed. */
static void drop(cr_delta *d)
{
    for (int i = 0; i < d->n_layers * CR_LIN_COUNT; i++)
        d->pairs[i].packed_b = NULL;
    cr_free(d->stacks);
    cr_free(d->packed);
    d->stacks = NULL;
    d->packed = NULL;
}

void cr_delta_pack(const cr_model *m, cr_delta *d)
{
    struct packing job = {.m = m, .d = d};
    d->stacks = cr_alloc0((size_t)d->n_layers * CR_INPUT_COUNT, sizeof *d->stacks);
    if (!d->stacks)
        return;
    place_all(&job);
    struct filling f = {.job = &job, .room = most_blocks(&job)};
    if (job.at == 0) {
        drop(d);
        return;
    }
    size_t bytes = job.at, huge = bytes >= CR_HUGE_PAGE ? CR_HUGE_PAGE : 0;
    d->packed = cr_alloc(bytes + huge, 1);
    f.rows = cr_alloc((size_t)cr_threads_count(m->threads) * f.room, sizeof *f.rows);
    if (d->packed && f.rows) {
        job.base = huge ? cr_huge_area(d->packed, bytes) : d->packed;
        place_all(&job);
        cr_threads_run_dynamic(m->threads, (size_t)d->n_layers * CR_INPUT_COUNT, 1, pack_inputs,
                               &f);
    } else {
        drop(d);
    }
    cr_free(f.rows);
}
