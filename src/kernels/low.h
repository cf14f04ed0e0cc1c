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

static void pack_low(void *dst, const float *b, size_t rows, size_t rank, float gain)
{
    uint8_t *panel = dst;
    const size_t codes = low_fours(rank) * 4 * LANES;
    for (size_t r = 0; r < rows; r++, b += rank) {
        const size_t lane = r % LANES;
        if (r > 0 && lane == 0)
            panel += low_panel_bytes(rank);
        if (lane == 0) {
            memset(panel, PACKED_FLIP, codes);
            memset(panel + codes, 0, LANES * sizeof(uint16_t));
        }
        float most = 0;
        for (size_t k = 0; k < rank; k++)
            most = fabsf(b[k]) > most ? fabsf(b[k]) : most;
        uint16_t half = cr_f32_to_f16(most * gain / 127);
        float scale = cr_f16_to_f32(half), inverse = scale > 0 ? gain / scale : 0;
        memcpy(panel + codes + 2 * lane, &half, sizeof half);
        for (size_t k = 0; k < rank; k++) {
            float q = rintf(b[k] * inverse);
            int code = (int)(q > 127 ? 127 : q < -127 ? -127 : q);
            panel[4 * (k / 4 * LANES + lane) + k % 4] = (uint8_t)(code ^ PACKED_FLIP);
        }
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

/* One panel. */
INLINE void low_tile(int T, const struct low_job *j, vm mask, bool whole)
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
        float *to = j->y + (size_t)t * j->ldy;
        if (whole)
            v_store(to, v_fma(scale, sum[t], v_load(to)));
        else
            v_store_mask(to, v_fma(scale, sum[t], v_load_mask(to, mask)), mask);
    }
}

INLINE void low_rows(int T, struct low_job j, size_t rows)
{
    low_sums(T, &j);
    for (; rows >= LANES; rows -= LANES) {
        low_tile(T, &j, v_lanes(0, LANES), true);
        j.panel += (j.fours * 4 + 2) * LANES;
        j.y += LANES;
    }
    if (rows)
        low_tile(T, &j, v_lanes(0, rows), false);
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
