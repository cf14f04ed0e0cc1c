/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of products that share their input, y[t] = W in[t] + B (A in[t]) for each matrix.
 */
#include "model/session_impl.h"

#include <string.h>

/* The current input in the form that products with a type take. */
static const void *input_for(const cr_session *s, uint32_t type, size_t *row_bytes)
{
    switch (type) {
    case CR_F16:
        if (s->k->split_f32) {
            *row_bytes = cr_split_values(s->n_in) * sizeof *s->terms;
            return s->terms;
        }
        /* fall through */
    case CR_F32:
        *row_bytes = s->n_in * sizeof *s->in;
        return s->in;
    case CR_BF16:
        *row_bytes = s->n_in * sizeof *s->halves;
        return s->halves;
    default:
        *row_bytes = s->quantised_bytes;
        return s->quantised;
    }
}

static size_t ranks_in_tile(const struct cr_low_rank *d, int tile)
{
    int left = d->rank - tile * RANK_TILE;
    return (size_t)(left <= 0 ? 0 : left < RANK_TILE ? left : RANK_TILE);
}

/* The tokens from begin on that share a delta: returns where they end, at most `end`. *d is their
 * change of the part's layer, NULL for none. */
static size_t same_delta(const cr_session *s, const struct part *p, size_t begin, size_t end,
                         const struct cr_low_rank **d)
{
    const cr_delta *delta = s->tokens[begin].t.delta;
    *d = delta && p->lin >= 0 ? cr_delta_at(delta, s->layer, (enum cr_linear)p->lin) : NULL;
    size_t t = begin + 1;
    while (t < end && s->tokens[t].t.delta == delta)
        t++;
    return t;
}

/* The packed A of a delta for the input of the group. */
static const struct cr_low_stack *stack_of(const cr_session *s, const cr_delta *delta)
{
    int lin = s->parts[0].lin;
    const struct cr_low_stack *stack = NULL;
    if (delta && lin >= 0)
        stack = cr_delta_stack(delta, s->layer, cr_linear_inputs[lin]);
    return stack && stack->rows ? stack : NULL;
}

/* Where the quantised low values of token t lie, those of a stack. */
static struct cr_block_q8a *low_codes(const cr_session *s, size_t t)
{
    return s->low_codes + t * LOW_BLOCKS;
}

/* Floats between the low values of two tokens: whole blocks. */
static size_t low_width(const struct cr_low_stack *stack)
{
    return ((size_t)stack->rows + CR_QK - 1) / CR_QK * CR_QK;
}

static void quantise_low(cr_session *s, const struct cr_low_stack *stack, size_t t, float *low)
{
    size_t rows = (size_t)stack->rows, width = low_width(stack);
    memset(low + rows, 0, (width - rows) * sizeof *low);
    s->k->quantize_q8a(low_codes(s, t), low, width);
}

/* Multiplies rows [begin, end) of a stack, begin being a multiple of ROW_GRAIN. */
static void multiply_stack(cr_session *s, const struct cr_low_stack *stack, size_t begin,
                           size_t end, float *y, size_t t, size_t n)
{
    size_t panel = s->k->panel_bytes(CR_Q8_0, s->n_in);
    s->k->matmul_packed[CR_Q8_0](
        y + begin, low_width(stack), (const char *)stack->a + begin / s->k->panel_rows * panel,
        panel, s->quantised + t * s->quantised_bytes, s->quantised_bytes, end - begin, n, s->n_in);
}

/* Do both go with one packed A? Palettes of one pool do, and tokens without a delta. */
static bool same_stack(const cr_session *s, size_t t, size_t u)
{
    const struct cr_low_stack *a = stack_of(s, s->tokens[t].t.delta);
    return a == stack_of(s, s->tokens[u].t.delta);
}

/* A in for tokens [begin, end) of the parts that share a packed stack. */
static void stack_pass(cr_session *s, size_t begin, size_t end, int thread)
{
    float *low = s->tmp + (size_t)thread * TMP_TOKENS * TMP_ROWS;
    for (size_t t = begin; t < end; t++) {
        const struct cr_low_stack *stack = stack_of(s, s->tokens[t].t.delta);
        size_t n = 1;
        if (!stack)
            continue;
        while (n < LOW_TOKENS && t + n < end && same_stack(s, t, t + n))
            n++;
        multiply_stack(s, stack, 0, (size_t)stack->rows, low, t, n);
        for (size_t i = 0; i < n; i++)
            quantise_low(s, stack, t + i, low + i * low_width(stack));
        t += n - 1;
    }
}

/* low[t] = A[tile] in[t] for tokens [begin, end) of each part whose delta is not packed. */
static void low_pass(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    cr_session *s = ud;
    const struct cr_low_rank *d;
    for (int i = 0; i < s->n_parts; i++) {
        const struct part *p = &s->parts[i];
        for (size_t t = begin, next; t < end; t = next) {
            next = same_delta(s, p, t, end, &d);
            size_t ranks = d && !d->packed_b ? ranks_in_tile(d, s->tile) : 0;
            if (ranks)
                s->k->matmul[CR_F32](p->low + t * RANK_TILE, RANK_TILE,
                                     d->a + (size_t)s->tile * RANK_TILE * s->n_in,
                                     s->n_in * sizeof(float), s->in + t * s->n_in,
                                     s->n_in * sizeof(float), ranks, next - t, s->n_in);
        }
    }
}

/* Asks for memory that is read soon. Few tokens would wait for each small piece of a delta. */
static void ask_for(const void *p, size_t bytes)
{
    const char *at = p, *end = at + bytes;
    for (; at < end; at += 256) { /* past the end it does no harm */
        __builtin_prefetch(at);
        __builtin_prefetch(at + 64);
        __builtin_prefetch(at + 128);
        __builtin_prefetch(at + 192);
    }
}

static void ask_for_b(cr_session *s, const struct part *p, size_t begin, size_t end)
{
    const struct cr_low_rank *d;
    same_delta(s, p, 0, 1, &d);
    if (d && d->packed_b && s->n == 1) {
        size_t rank = (size_t)d->rank, at = s->k->low_bytes(begin, rank);
        ask_for((const char *)d->packed_b + at, s->k->low_bytes(end, rank) - at);
    }
}

/* Inputs of tokens [begin, end), in the formats that the products take. */
static void input_pass(void *ud, size_t begin, size_t end, int thread)
{
    cr_session *s = ud;
    if (s->stack)
        ask_for(s->stack->a, s->k->panel_bytes(CR_Q8_0, s->n_in));
    for (size_t t = begin; t < end; t++) {
        const float *in = s->input(s, t);
        if (s->quantise)
            s->k->quantize_q8a(
                (struct cr_block_q8a *)(void *)(s->quantised + t * s->quantised_bytes), in,
                s->n_in);
        if (s->halve)
            s->k->f32_to_bf16(s->halves + t * s->n_in, in, s->n_in);
        if (s->split)
            s->k->split_f32(s->terms + t * cr_split_values(s->n_in), in, s->n_in);
    }
    if (!s->max_rank)
        return;
    if (!s->stack)
        stack_pass(s, begin, end, thread);
    low_pass(s, begin, end, thread);
}

/* y[t, r] += B[r, tile] low[t] for rows [begin, end) of a part and tokens [first, last). */
static void add_low(cr_session *s, const struct part *p, const struct cr_low_rank *d, size_t begin,
                    size_t end, size_t first, size_t last, float *tmp)
{
    size_t ranks = ranks_in_tile(d, s->tile), n_out = (size_t)p->w->n_out, rank = (size_t)d->rank;
    if (d->packed_b) { /* all ranks go with the first tile; begin begins a panel */
        const char *b = (const char *)d->packed_b + s->k->low_bytes(begin, rank);
        if (s->tile == 0)
            s->k->add_low(p->y + first * n_out + begin, n_out, b, low_codes(s, first),
                          LOW_BLOCKS * sizeof *s->low_codes, (size_t)d->stacked, end - begin,
                          last - first, rank);
        return;
    }
    for (size_t r = begin; r < end && ranks; r += TMP_ROWS) {
        size_t rows = end - r < TMP_ROWS ? end - r : TMP_ROWS;
        const float *b = d->b + r * rank + (size_t)s->tile * RANK_TILE;
        for (size_t t = first; t < last; t += TMP_TOKENS) {
            size_t n = last - t < TMP_TOKENS ? last - t : TMP_TOKENS;
            s->k->matmul[CR_F32](tmp, TMP_ROWS, b, rank * sizeof(float), p->low + t * RANK_TILE,
                                 RANK_TILE * sizeof(float), rows, n, ranks);
            for (size_t i = 0; i < n; i++)
                s->k->add(p->y + (t + i) * n_out + r, tmp + i * TMP_ROWS, rows);
        }
    }
}

static void add_delta(cr_session *s, const struct part *p, size_t begin, size_t end, int thread)
{
    const struct cr_low_rank *d;
    for (size_t t = 0, next; t < s->n; t = next) {
        next = same_delta(s, p, t, s->n, &d);
        if (d)
            add_low(s, p, d, begin, end, t, next, s->tmp + (size_t)thread * TMP_TOKENS * TMP_ROWS);
    }
}

/* Rows of a part in the stack of all parts: each part begins at a multiple of ROW_GRAIN. */
static size_t stacked_rows(const struct part *p)
{
    return ((size_t)p->w->n_out + ROW_GRAIN - 1) / ROW_GRAIN * ROW_GRAIN;
}

/* Rows that the packed stack of a round takes before those of the parts. */
static size_t rows_of_stack(const cr_session *s)
{
    return s->stack ? ((size_t)s->stack->rows + ROW_GRAIN - 1) / ROW_GRAIN * ROW_GRAIN : 0;
}

/* Calls fn for the piece of each part that lies in rows [begin, end) of all parts stacked. */
static void each_part(cr_session *s, size_t begin, size_t end, int thread,
                      void (*fn)(cr_session *, const struct part *, size_t, size_t, int))
{
    size_t first = rows_of_stack(s);
    for (int i = 0; i < s->n_parts; i++) {
        size_t last = first + (size_t)s->parts[i].w->n_out;
        size_t b = cr_larger(begin, first), e = end < last ? end : last;
        if (b < e)
            fn(s, &s->parts[i], b - first, e - first, thread);
        first += stacked_rows(&s->parts[i]);
    }
}

/* Rows [begin, end) of a part by all tokens. */
static void multiply_rows(cr_session *s, const struct part *p, size_t begin, size_t end)
{
    const struct cr_matrix *w = p->w;
    size_t x_bytes;
    const void *x = input_for(s, w->type, &x_bytes);
    const char *rows = (const char *)w->data + begin * w->row_bytes;
    size_t row_bytes = w->row_bytes;
    if (w->packed) { /* begin is a multiple of ROW_GRAIN, so it begins a panel */
        rows = (const char *)w->packed + begin / s->k->panel_rows * w->panel_bytes;
        row_bytes = w->panel_bytes;
    }
    (w->packed ? s->k->matmul_packed : s->k->matmul)[w->type](
        p->y + begin, (size_t)w->n_out, rows, row_bytes, x, x_bytes, end - begin, s->n, s->n_in);
}

/* Rows that get their deltas as soon as they are multiplied, so that the outputs of many tokens are
 * still near: whole groups of the panels that a kernel takes side by side. */
static size_t rows_at_once(const cr_session *s)
{
    return s->k->panel_rows == 8 ? 48 : 64;
}

static void multiply(cr_session *s, const struct part *p, size_t begin, size_t end, int thread)
{
    const size_t step = s->max_rank && s->n > FEW_TOKENS ? rows_at_once(s) : end - begin;
    ask_for_b(s, p, begin, end);
    for (size_t r = begin; r < end; r += step) {
        const size_t to = end - r < step ? end : r + step;
        multiply_rows(s, p, r, to);
        if (s->stack)
            cr_threads_await(&s->stack_ready);
        if (s->max_rank)
            add_delta(s, p, r, to, thread);
    }
}

/* The piece of the stack that lies in rows [begin, end): who finishes the last one quantises. */
static void multiply_stack_piece(cr_session *s, size_t begin, size_t end)
{
    size_t rows = (size_t)s->stack->rows;
    end = end < rows ? end : rows;
    if (begin >= end)
        return;
    multiply_stack(s, s->stack, begin, end, s->stack_low, 0, s->n);
    if (atomic_fetch_sub(&s->stack_left, end - begin) > end - begin)
        return;
    for (size_t t = 0; t < s->n; t++)
        quantise_low(s, s->stack, t, s->stack_low + t * low_width(s->stack));
    atomic_store(&s->stack_ready, true);
}

/* Pieces are begun in the order of rows, and those of the stack wait for nothing: so a piece of the
 * parts waits for threads that are at work, if at all. */
static void row_pass(void *ud, size_t begin, size_t end, int thread)
{
    cr_session *s = ud;
    if (s->stack)
        multiply_stack_piece(s, begin, end);
    each_part(s, begin, end, thread, multiply);
}

static void delta_pass(void *ud, size_t begin, size_t end, int thread)
{
    each_part(ud, begin, end, thread, add_delta);
}

/* Few tokens with one packed A: it is multiplied in the round of the parts. */
static const struct cr_low_stack *stack_for_round(cr_session *s)
{
    for (size_t t = 1; t < s->n; t++)
        if (s->n > TOKEN_GRAIN || !same_stack(s, 0, t))
            return NULL;
    return stack_of(s, s->tokens[0].t.delta);
}

/* Runs the products in s->parts. The first tile of a delta goes along; ranks past it, which are
 * rare, take further rounds. */
void cr_products_run(cr_session *s, input_fn *input, const float *in)
{
    size_t rows = 0;
    int rank = 0;
    s->quantise = s->halve = s->split = false;
    s->n_in = (size_t)s->parts[0].w->n_in;
    s->input = input;
    s->in = in;
    s->tile = 0;
    for (int i = 0; i < s->n_parts; i++) {
        struct part *p = &s->parts[i];
        p->low = s->low + (size_t)i * s->chunk * RANK_TILE;
        rows += stacked_rows(p);
        rank = p->lin >= 0 ? s->max_rank : rank;
        s->halve |= p->w->type == CR_BF16;
        s->split |= p->w->type == CR_F16 && s->k->split_f32;
        s->quantise |= p->w->type != CR_F32 && p->w->type != CR_F16 && p->w->type != CR_BF16;
    }
    s->stack = stack_for_round(s);
    if (s->stack) {
        atomic_store(&s->stack_left, (size_t)s->stack->rows);
        atomic_store(&s->stack_ready, false);
        rows += rows_of_stack(s);
    }
    cr_by_tokens(s, input_pass);
    cr_threads_run(s->m->threads, rows, ROW_GRAIN, row_pass, s);
    if (s->stack) {
        rows -= rows_of_stack(s);
        s->stack = NULL;
    }
    for (s->tile = 1; s->tile * RANK_TILE < rank; s->tile++) {
        cr_by_tokens(s, low_pass);
        cr_threads_run(s->m->threads, rows, ROW_GRAIN, delta_pass, s);
    }
}

void cr_products_set(cr_session *s, int i, enum cr_linear lin, float *y)
{
    s->parts[i] = (struct part){.w = &s->m->layers[s->layer].lin[lin], .y = y, .lin = (int)lin};
    s->n_parts = i + 1;
}
