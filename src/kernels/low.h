/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second factor B of a low-rank change beside packed weights. A panel has LANES rows: for each
 * four ranks (the last ones filled with zeros) a vector with their codes, one row a lane, then the
 * rows' scales as float16. packed.h includes this file after the operations that both need.
 *
 * What B is multiplied with comes quantised as activations do, in blocks of 32 ranks:
 *     y += scale (sum over blocks b, in order, of d_b * (the integer sum of block b))
 */
#ifndef CR_LOW_H
#define CR_LOW_H

enum { LOW_SIDE = PACKED_SIDE, LOW_MAX_BLOCKS = CR_MAX_LOW_RANK / CR_QK };

INLINE size_t low_fours(size_t rank)
{
    return (rank + 3) / 4;
}

static size_t low_panel_bytes(size_t rank)
{
    return low_fours(rank) * 4 * LANES + LANES * sizeof(uint16_t);
}

static size_t low_bytes(size_t rows, size_t rank)
{
    return (rows + LANES - 1) / LANES * low_panel_bytes(rank);
}

/* Four ranks of LANES rows, from floats rank apart. */
INLINE void pack_four(uint8_t *codes, const float *b, size_t rank, vf inverse)
{
    float q[4][LANES];
    vf v[4];
    v_columns(v, (const void *)b, rank * sizeof *b);
    UNROLL for (int k = 0; k < 4; k++)
    {
        vf code = v_max(v_min(v_round(v_mul(v[k], inverse)), v_set1(127)), v_set1(-127));
        v_store(q[k], code);
    }
    for (size_t r = 0; r < LANES; r++)
        for (size_t k = 0; k < 4; k++)
            codes[4 * r + k] = (uint8_t)((int8_t)q[k][r] ^ PACKED_FLIP);
}

/* LANES rows of a multiple of four ranks. */
INLINE void pack_low_panel(uint8_t *panel, const float *b, size_t rank, float gain)
{
    uint16_t half[LANES];
    float inverse[LANES];
    vf top = v_zero();
    for (size_t k = 0; k < rank; k += 4) {
        vf v[4];
        v_columns(v, (const void *)(b + k), rank * sizeof *b);
        UNROLL for (int i = 0; i < 4; i++)
        {
            top = v_max(top, v_max(v[i], v_sub(v_zero(), v[i])));
        }
    }
    v_store_f16(half, v_div(v_mul(top, v_set1(gain)), v_set1(127)));
    v_store(inverse, v_load_f16(half));
    for (size_t r = 0; r < LANES; r++)
        inverse[r] = inverse[r] > 0 ? gain / inverse[r] : 0;
    for (size_t k = 0; k < rank; k += 4)
        pack_four(panel + k * LANES, b + k, rank, v_load(inverse));
    memcpy(panel + rank * LANES, half, sizeof half);
}

static void pack_low(void *dst, const float *b, size_t rows, size_t rank, float gain)
{
    const size_t n = low_fours(rank) * 4;
    uint8_t *panel = dst;
    for (size_t r = 0; r < rows; r += LANES, b += LANES * rank, panel += low_panel_bytes(rank)) {
        float padded[LANES * (CR_MAX_LOW_RANK + 4)];
        const size_t some = rows - r < LANES ? rows - r : LANES;
        if (some == LANES && n == rank) {
            pack_low_panel(panel, b, rank, gain);
            continue;
        }
        memset(padded, 0, LANES * n * sizeof *padded);
        for (size_t i = 0; i < some; i++)
            memcpy(padded + i * n, b + i * rank, rank * sizeof *b);
        pack_low_panel(panel, padded, n, gain);
    }
}

/* Rows of B by T tokens, whose values begin with four `first` of the block at low. */
struct low_job {
    float *y;
    size_t ldy;
    const uint8_t *panel, *low;
    size_t low_row, first, fours;
    int32_t sums[LOW_MAX_BLOCKS][LOW_SIDE]; /* of the codes that are used, by block and token */
};

INLINE const struct cr_block_q8a *low_block(const struct low_job *j, size_t b, int t)
{
    return (const struct cr_block_q8a *)(const void *)(j->low + (size_t)t * j->low_row) + b;
}

/* One past the last four in block b. */
INLINE size_t low_last(const struct low_job *j, size_t b)
{
    const size_t last = (b + 1) * (CR_QK / 4) - j->first;
    return last < j->fours ? last : j->fours;
}

INLINE void low_sums(int T, struct low_job *j)
{
    for (size_t g = 0, b = 0; PACKED_FLIP && g < j->fours; b++) {
        const size_t last = low_last(j, b), at = 4 * (g + j->first) % CR_QK;
        for (int t = 0; t < T; t++) {
            const int8_t *q = low_block(j, b, t)->q + at;
            int32_t sum = 0;
            for (size_t k = 0; k < 4 * (last - g); k++)
                sum += q[k];
            j->sums[b][t] = sum;
        }
        g = last;
    }
}

/* y += scale sum in the first `rows` lanes. */
INLINE void low_store(float *y, vf scale, vf sum, size_t rows)
{
    const vm mask = v_lanes(0, rows);
    if (rows >= LANES)
        v_store(y, v_fma(scale, sum, v_load(y)));
    else
        v_store_mask(y, v_fma(scale, sum, v_load_mask(y, mask)), mask);
}

/* One panel, of which `rows` are there. */
INLINE void low_tile(int T, const struct low_job *j, size_t rows)
{
    vf sum[LOW_SIDE], scale = v_load_f16((const void *)(j->panel + j->fours * 4 * LANES));
    UNROLL for (int t = 0; t < T; t++)
    {
        sum[t] = v_zero();
    }
    for (size_t g = 0, b = 0; g < j->fours; b++) {
        const size_t last = low_last(j, b);
        vi dot[LOW_SIDE];
        UNROLL for (int t = 0; t < T; t++)
        {
            dot[t] = vi_start(CR_Q8_0, &j->sums[b][t]);
        }
        for (; g < last; g++) {
            vi w = vi_load(j->panel + g * 4 * LANES);
            UNROLL for (int t = 0; t < T; t++)
            {
                const int8_t *q = low_block(j, b, t)->q + 4 * (g + j->first) % CR_QK;
                dot[t] = vi_dot(CR_Q8_0, dot[t], w, vi_set4(q));
            }
        }
        UNROLL for (int t = 0; t < T; t++)
        {
            sum[t] = v_fma(vi_float(CR_Q8_0, dot[t], &j->sums[b][t]), v_set1(low_block(j, b, t)->d),
                           sum[t]);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        low_store(j->y + (size_t)t * j->ldy, scale, sum[t], rows);
    }
}

/* What low_rows_8 keeps in registers. */
struct low_8 {
    vi x[LOW_SIDE][2], start[LOW_SIDE];
    vf d[LOW_SIDE];
};

/* The first `rows` rows of a panel with two fours. */
INLINE void low_panel_8(int T, const struct low_job *j, const struct low_8 *s, const uint8_t *panel,
                        float *y, size_t rows)
{
    const vi w0 = vi_load(panel), w1 = vi_load(panel + 4 * LANES);
    const vf scale = v_load_f16((const void *)(panel + 8 * LANES));
    UNROLL for (int t = 0; t < T; t++)
    {
        const vi dot =
            vi_dot(CR_Q8_0, vi_dot(CR_Q8_0, s->start[t], w0, s->x[t][0]), w1, s->x[t][1]);
        const vf sum = v_mul(vi_float(CR_Q8_0, dot, &j->sums[0][t]), s->d[t]);
        low_store(y + (size_t)t * j->ldy, scale, sum, rows);
    }
}

/* Two fours in one block, ranks 5 to 8, as pools have. */
INLINE void low_rows_8(int T, const struct low_job *j, size_t rows)
{
    enum { BYTES = 10 * LANES };
    const uint8_t *panel = j->panel;
    float *y = j->y;
    struct low_8 s;
    UNROLL for (int t = 0; t < T; t++)
    {
        const int8_t *q = low_block(j, 0, t)->q + 4 * j->first;
        s.x[t][0] = vi_set4(q);
        s.x[t][1] = vi_set4(q + 4);
        s.start[t] = vi_start(CR_Q8_0, &j->sums[0][t]);
        s.d[t] = v_set1(low_block(j, 0, t)->d);
    }
    for (; rows >= 2 * LANES; rows -= 2 * LANES, panel += 2 * BYTES, y += 2 * LANES) {
        low_panel_8(T, j, &s, panel, y, LANES);
        low_panel_8(T, j, &s, panel + BYTES, y + LANES, LANES);
    }
    if (rows >= LANES) {
        low_panel_8(T, j, &s, panel, y, LANES);
        rows -= LANES;
        panel += BYTES;
        y += LANES;
    }
    if (rows)
        low_panel_8(T, j, &s, panel, y, rows);
}

INLINE void low_rows(int T, struct low_job j, size_t rows)
{
    low_sums(T, &j);
    if (j.fours == 2 && j.first + j.fours <= CR_QK / 4) {
        low_rows_8(T, &j, rows);
        return;
    }
    for (; rows >= LANES; rows -= LANES) {
        low_tile(T, &j, LANES);
        j.panel += (j.fours * 4 + 2) * LANES;
        j.y += LANES;
    }
    if (rows)
        low_tile(T, &j, rows);
}

/* A few tokens by all rows and not the other way: the outputs of a token lie together. */
static void add_low(float *y, size_t ldy, const void *b, const void *low, size_t low_row,
                    size_t first, size_t rows, size_t n_tok, size_t rank)
{
    struct low_job j = {.y = y,
                        .ldy = ldy,
                        .panel = b,
                        .low = (const uint8_t *)low + first / CR_QK * sizeof(struct cr_block_q8a),
                        .low_row = low_row,
                        .first = first % CR_QK / 4,
                        .fours = low_fours(rank)};
    for (size_t t = 0, step; t < n_tok; t += step) {
        step = n_tok - t >= LOW_SIDE ? LOW_SIDE : n_tok - t >= 2 ? 2 : 1;
        if (step == LOW_SIDE)
            low_rows(LOW_SIDE, j, rows);
        else if (step == 2)
            low_rows(2, j, rows);
        else
            low_rows(1, j, rows);
        j.y += step * ldy;
        j.low += step * low_row;
    }
}

#endif
