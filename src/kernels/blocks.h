/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantised products, the part that all vector levels share: how rows and tokens are walked. A
 * level defines, before it includes this file,
 *
 *     LANES, SIDE           rows side by side (one per lane), most tokens of one inner loop
 *     STREAMS               of a single token (levels.h), or 0
 *     vf v_zero, vm         the float vector and a mask of lanes; v_lanes(begin, end),
 *     v_load_mask, v_store_mask
 *     struct tile           a group of 32 columns of LANES rows, unpacked and transposed
 *     load_tiles(type, out, p, rb)               the groups_of(type) tiles of the block at p and
 *                                                those rb, 2 rb, ... bytes on
 *     multiply(type, T, acc, tile, x, sums, b)   acc[t] += tile * block b of x[t], for t < T
 *     sum_codes(type, sums, x, n_blocks)         SUMS numbers for each block of an activation:
 *                                                whatever multiply wants to know beforehand
 *     sum_factor(type)                           0 where the sums are not used
 *     add_block(type, acc, p, rb, x, more)       if it defines CR_READS_ROWS: acc + the block at p
 *                                                and those rb, 2 rb, ... bytes on, times x, without
 *                                                a tile; more: 32 bytes can be read from each
 *
 * and gets the products of all types with blocks. No sum crosses lanes: every output is made by one
 * lane that takes its blocks in order. With few tokens the tiles live in registers (those of
 * K-types beside the stack's top); with many, a panel of tiles is made once and used for all tokens
 * of a pass.
 */
#ifndef CR_BLOCKS_H
#define CR_BLOCKS_H

#include "kernels/groups.h"
#include "kernels/levels.h"

#include <string.h>

enum {
    PANEL = 48,    /* groups in a panel: its tiles stay in the first- or second-level cache */
    PASS = 64,     /* tokens per pass over the weights */
    SUMS = 2,      /* numbers that sum_codes makes for each group */
    MAX_GROUPS = 8 /* in a block */
};

_Static_assert(PANEL % MAX_GROUPS == 0, "a panel begins where a block does");

/* What the inner loops of one call share. */
struct job {
    float *y;
    size_t ldy;
    const uint8_t *w; /* the first of LANES rows, at the first block of the panel */
    const uint8_t *x; /* the first token, at that block */
    size_t row_bytes, block_size, x_bytes, n_groups, n_tok;
    vm mask;                       /* lanes that are stored */
    bool more;                     /* y holds the sum of earlier panels */
    bool stream;                   /* the rows are far apart, each in its run */
    const struct tile *panel;      /* NULL: take tiles straight from w */
    int32_t (*sums)[PANEL * SUMS]; /* by token */
};

/* LANES rows by the tokens t0 .. t0 + T - 1. */
INLINE void side_by_side(enum cr_type type, int T, const struct job *j, size_t t0)
{
    vf acc[SIDE];
    const struct cr_block_q8a *x[SIDE];
    const int32_t *sums[SIDE];
    UNROLL for (int t = 0; t < T; t++)
    {
        x[t] = (const void *)(j->x + (t0 + (size_t)t) * j->x_bytes);
        sums[t] = j->sums[t0 + (size_t)t];
        acc[t] = j->more ? v_load_mask(j->y + (t0 + (size_t)t) * j->ldy, j->mask) : v_zero();
        __builtin_prefetch(j->y + (t0 + (size_t)t) * j->ldy, 1);
    }
    if (T > 4 || j->panel) {
        for (size_t b = 0; b < j->n_groups; b++)
            multiply(type, T, acc, &j->panel[b], x, sums, b);
    } else {
        const size_t groups = (size_t)groups_of(type), n_blocks = j->n_groups / groups;
        const uint8_t *w = j->w, *next = w + LANES * j->row_bytes;
        size_t ahead = 0; /* rows of the next panel that are on their way */
        for (size_t b = 0; b < j->n_groups; b += groups, w += j->block_size) {
            struct tile tile[MAX_GROUPS];
            for (; j->n_tok > 1 && ahead < LANES && ahead <= b; ahead++)
                ask_for(next + ahead * j->row_bytes, n_blocks * j->block_size);
            if (j->n_tok == 1 && !j->stream) { /* as much of the next panel as of this one */
                ask_for(next, LANES * j->block_size);
                next += LANES * j->block_size;
            }
            load_tiles(type, tile, w, j->row_bytes);
            for (size_t i = 0; i < groups; i++)
                multiply(type, T, acc, &tile[i], x, sums, b + i);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        v_store_mask(j->y + (t0 + (size_t)t) * j->ldy, acc[t], j->mask);
    }
}

/* LANES rows by all tokens of the pass. Few sizes, because each is a long piece of code. */
INLINE void one_panel(enum cr_type type, struct job *j)
{
    struct tile panel[PANEL];
    size_t t = 0, n = j->n_tok;
    j->panel = NULL;
    if (n != 1 && n != 2 && n != 4) {
        const size_t groups = (size_t)groups_of(type);
        for (size_t b = 0; b < j->n_groups; b += groups)
            load_tiles(type, panel + b, j->w + b / groups * j->block_size, j->row_bytes);
        j->panel = panel;
    }
    for (; SIDE > 4 && n - t >= SIDE; t += SIDE)
        side_by_side(type, SIDE, j, t);
    for (; n - t >= 4; t += 4)
        side_by_side(type, 4, j, t);
    for (; n - t >= 2; t += 2)
        side_by_side(type, 2, j, t);
    if (n - t == 1)
        side_by_side(type, 1, j, t);
}

/* One token: a run of rows for each lane, where the runs are long enough for the processor to look
 * ahead in them and where blocks are read from begin to end. Returns how many rows that were. */
INLINE size_t stream_panels(enum cr_type type, const struct job *j, size_t rows)
{
    enum { LONG = 1 << 13 };
    const size_t run = stream_length(rows, LANES, j->row_bytes);
    if (groups_of(type) > 1 || j->more || run * j->row_bytes < LONG)
        return 0;
    float sums[LANES];
    struct job panel = *j;
    panel.y = sums;
    panel.row_bytes = run * j->row_bytes;
    panel.mask = v_lanes(0, LANES);
    panel.stream = true;
    for (size_t r = 0; r < run; r++, panel.w += j->row_bytes) {
        one_panel(type, &panel);
        for (size_t i = 0; i < LANES; i++)
            j->y[i * run + r] = sums[i];
    }
    return LANES * run;
}

/* All rows. The last ones, where they do not fill a panel, are done in a panel that begins earlier,
 * and only they are stored. With fewer than LANES rows in all, each fills a panel alone: its copies
 * are 0 bytes apart. */
INLINE void all_panels(enum cr_type type, struct job j, size_t rows)
{
    const bool alone = rows < LANES;
    size_t r = STREAMS && j.n_tok == 1 ? stream_panels(type, &j, rows) : 0;
    while (r < rows) {
        struct job panel = j;
        size_t first = alone || rows - r >= LANES ? r : rows - LANES;
        panel.w = j.w + first * j.row_bytes;
        panel.y = j.y + first;
        panel.row_bytes = alone ? 0 : j.row_bytes;
        panel.mask = alone ? v_lanes(0, 1) : v_lanes(r - first, LANES);
        one_panel(type, &panel);
        r = alone ? r + 1 : first + LANES;
    }
}

#if defined(CR_READS_ROWS)
/* One token: the tiles would be used but once. Meanwhile what is read next is asked for. */
INLINE void one_token(enum cr_type type, float *y, const uint8_t *w, size_t row_bytes,
                      const struct cr_block_q8a *x, size_t rows, size_t n_groups)
{
    const size_t groups = (size_t)groups_of(type), size = block_bytes(type);
    const size_t ahead = LANES * row_bytes > FAR_AHEAD ? LANES * row_bytes : FAR_AHEAD;
    const bool alone = rows < LANES;
    for (size_t r = 0; r < rows;) { /* the last rows as in all_panels */
        const size_t first = alone || rows - r >= LANES ? r : rows - LANES;
        const uint8_t *p = w + first * row_bytes, *next = p + ahead;
        vf acc = v_zero();
        for (size_t b = 0; b < n_groups; b += groups, p += size, next += LANES * size) {
            const bool last = b + groups == n_groups;
            acc = add_block(type, acc, p, alone ? 0 : row_bytes, x + b, !last, next);
        }
        v_store_mask(y + first, acc, alone ? v_lanes(0, 1) : v_lanes(r - first, LANES));
        r = alone ? r + 1 : first + LANES;
    }
}
#endif

INLINE void matmul_blocks(enum cr_type type, float *y, size_t ldy, const uint8_t *w,
                          size_t row_bytes, const uint8_t *x, size_t x_bytes, size_t rows,
                          size_t n_tok, size_t n_groups)
{
#if defined(CR_READS_ROWS)
    if (n_tok == 1) {
        one_token(type, y, w, row_bytes, (const void *)x, rows, n_groups);
        return;
    }
#endif
#if defined(CR_MANY)
    if (n_tok > MANY && rows >= LANES && n_groups > 0) {
        many_tokens(type,
                    (struct many_job){.y = y,
                                      .ldy = ldy,
                                      .w = w,
                                      .x = x,
                                      .row_bytes = row_bytes,
                                      .x_bytes = x_bytes,
                                      .n_groups = n_groups,
                                      .n_tok = n_tok},
                    rows);
        return;
    }
#endif
    int32_t sums[PASS][PANEL * SUMS];
    struct job j = {.ldy = ldy, .row_bytes = row_bytes, .x_bytes = x_bytes, .sums = sums};
    j.block_size = cr_type_info(type)->block_size;
    for (size_t t = 0; n_groups == 0 && t < n_tok; t++)
        memset(y + t * ldy, 0, rows * sizeof *y);
    /* A token alone has no panel of tiles, and room for the sums of as many as a pass has. */
    const size_t most = n_tok == 1 ? PASS * PANEL : PANEL;
    for (size_t b = 0; b < n_groups; b += most) {
        j.n_groups = n_groups - b < most ? n_groups - b : most;
        j.more = b > 0;
        j.w = w + b / (size_t)groups_of(type) * j.block_size;
        for (size_t t = 0; t < n_tok; t += PASS) {
            j.n_tok = n_tok - t < PASS ? n_tok - t : PASS;
            j.x = x + t * x_bytes + b * sizeof(struct cr_block_q8a);
            j.y = y + t * ldy;
            for (size_t i = 0; sum_factor(type) != 0 && i < j.n_tok; i++)
                sum_codes(type, sums[i], (const void *)(j.x + i * x_bytes), j.n_groups);
            all_panels(type, j, rows);
        }
    }
}

#define MATMUL_BLOCKS(name, type)                                                                  \
    static void matmul_##name(float *y, size_t ldy, const void *w, size_t row_bytes,               \
                              const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)  \
    {                                                                                              \
        matmul_blocks(type, y, ldy, w, row_bytes, x, x_bytes, rows, n_tok, n / CR_QK);             \
    }
MATMUL_BLOCKS(q8_0, CR_Q8_0)
MATMUL_BLOCKS(q4_0, CR_Q4_0)
MATMUL_BLOCKS(q4_1, CR_Q4_1)
MATMUL_BLOCKS(q5_0, CR_Q5_0)
MATMUL_BLOCKS(q5_1, CR_Q5_1)
MATMUL_BLOCKS(q4_k, CR_Q4_K)
MATMUL_BLOCKS(q5_k, CR_Q5_K)
MATMUL_BLOCKS(q6_k, CR_Q6_K)
MATMUL_BLOCKS(iq4_nl, CR_IQ4_NL)

#define MATMUL_QUANTISED                                                                           \
    [CR_Q8_0] = matmul_q8_0, [CR_Q4_0] = matmul_q4_0, [CR_Q4_1] = matmul_q4_1,                     \
    [CR_Q5_0] = matmul_q5_0, [CR_Q5_1] = matmul_q5_1, [CR_Q4_K] = matmul_q4_k,                     \
    [CR_Q5_K] = matmul_q5_k, [CR_Q6_K] = matmul_q6_k, [CR_IQ4_NL] = matmul_iq4_nl

#endif
