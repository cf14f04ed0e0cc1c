/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over a cache of 8 bits, for levels that have the operations of packed.h, which includes
 * this file: integer products of keys with quantised heads, a lane being a cell; values widened to
 * float, a lane being a column. The same bits as in kernels_ref.c.
 */
#ifndef CR_ATTN_Q8_H
#define CR_ATTN_Q8_H

struct q8_scores {
    float *s;
    size_t lds, ldq, begin, end, d;
    const struct cr_block_q8a *q;
    const uint8_t *k;
    float scale;
};

/* V vectors of cells, from c on, by T heads. */
INLINE void score_q8_cells(int V, int T, const struct q8_scores *a, size_t c)
{
    vf acc[4][4];
    const uint8_t *k[4];
    UNROLL for (int v = 0; v < V; v++)
    {
        const size_t cell = c + (size_t)v * LANES;
        k[v] = a->k + cell / CR_KV_TILE * cr_kv8_tile(a->d) + cell % CR_KV_TILE * 4;
        UNROLL for (int t = 0; t < T; t++)
        {
            acc[v][t] = v_zero();
        }
    }
    for (size_t b = 0; b < a->d / CR_QK; b++) {
        vi dot[4][4];
        UNROLL for (int t = 0; t < T; t++)
        {
            const struct cr_block_q8a *q = a->q + (size_t)t * a->ldq + b;
            UNROLL for (int v = 0; v < V; v++)
            {
                dot[v][t] = vi_start(CR_Q8_0, &q->sum);
            }
        }
        UNROLL for (size_t g = 0; g < CR_QK / 4; g++)
        {
            vi key[4];
            UNROLL for (int v = 0; v < V; v++)
            {
                key[v] = vi_load(k[v] + (b * CR_QK / 4 + g) * 4 * CR_KV_TILE);
            }
            UNROLL for (int t = 0; t < T; t++)
            {
                const vi four = vi_set4(a->q[(size_t)t * a->ldq + b].q + 4 * g);
                UNROLL for (int v = 0; v < V; v++)
                {
                    dot[v][t] = vi_dot(CR_Q8_0, dot[v][t], key[v], four);
                }
            }
        }
        UNROLL for (int v = 0; v < V; v++)
        {
            const size_t lane = (c + (size_t)v * LANES) % CR_KV_TILE;
            const uint8_t *scales = k[v] - 4 * lane + CR_KV_TILE * a->d;
            const vf d = v_load_f16((const void *)(scales + 2 * (b * CR_KV_TILE + lane)));
            UNROLL for (int t = 0; t < T; t++)
            {
                const struct cr_block_q8a *q = a->q + (size_t)t * a->ldq + b;
                acc[v][t] =
                    v_fma(v_mul(d, v_set1(q->d)), vi_float(CR_Q8_0, dot[v][t], &q->sum), acc[v][t]);
            }
        }
    }
    UNROLL for (int v = 0; v < V; v++)
    {
        const size_t cell = c + (size_t)v * LANES, first = cell < a->begin ? a->begin - cell : 0;
        const size_t last = a->end - cell < LANES ? a->end - cell : LANES;
        UNROLL for (int t = 0; t < T; t++)
        {
            float *s = a->s + (size_t)t * a->lds + cell - a->begin;
            v_store_mask(s, v_mul(acc[v][t], v_set1(a->scale)), v_lanes(first, last));
        }
    }
}

INLINE void score_q8_heads(int T, const struct q8_scores *a)
{
    enum { MOST = 4 };
    size_t c = a->begin / LANES * LANES;
    for (; T == 1 && a->end > c + (MOST - 1) * LANES; c += MOST * LANES)
        score_q8_cells(MOST, T, a, c);
    for (; a->end > c + LANES; c += 2 * LANES)
        score_q8_cells(2, T, a, c);
    if (a->end > c)
        score_q8_cells(1, T, a, c);
}

static void attn_scores_q8(float *s, size_t lds, const struct cr_block_q8a *q, size_t ldq,
                           size_t n_q, const uint8_t *k, size_t begin, size_t end, size_t d,
                           float scale)
{
    struct q8_scores a = {s, lds, ldq, begin, end, d, q, k, scale};
    for (size_t t = 0, step; t < n_q && begin < end; t += step) {
        step = n_q - t >= 4 ? 4 : n_q - t;
        a.s = s + t * lds;
        a.q = q + t * ldq;
        if (step == 4)
            score_q8_heads(4, &a);
        else if (step == 3)
            score_q8_heads(3, &a);
        else if (step == 2)
            score_q8_heads(2, &a);
        else
            score_q8_heads(1, &a);
    }
}

struct q8_mix {
    float *y;
    size_t ldy, ldp, begin, end, d;
    const float *p;
    const uint8_t *v;
};

/* The weights of T heads with the cells [begin, end) of a tile, times the scales of columns i on:
 * whole vectors of the tile, of which the cells' are used. */
INLINE void q8_weights(int T, float w[4][CR_KV_TILE], const struct q8_mix *a, const uint8_t *tile,
                       size_t cell, size_t begin, size_t end, size_t i)
{
    const uint8_t *scales = tile + CR_KV_TILE * a->d + i / CR_QK * CR_KV_TILE * 2;
    UNROLL for (size_t c = 0; c < CR_KV_TILE; c += LANES)
    {
        const size_t first = begin > c ? begin - c : 0, last = end > c ? end - c : 0;
        const vm mask = v_lanes(first < LANES ? first : LANES, last < LANES ? last : LANES);
        const vf d = v_load_f16((const void *)(scales + 2 * c));
        UNROLL for (int t = 0; t < T; t++)
        {
            const float *p = a->p + (size_t)t * a->ldp + cell + c - a->begin;
            v_store(w[t] + c, v_mul(v_load_mask(p, mask), d));
        }
    }
}

/* 32 columns by T heads: their sums stay in registers over all cells. */
INLINE void mix_q8_columns(int T, const struct q8_mix *a, size_t i)
{
    enum { C = CR_QK / LANES };
    vf acc[4][C];
    float w[4][CR_KV_TILE];
    UNROLL for (int t = 0; t < T; t++)
    {
        UNROLL for (int c = 0; c < C; c++)
        {
            acc[t][c] = v_load(a->y + (size_t)t * a->ldy + i + (size_t)c * LANES);
        }
    }
    for (size_t cell = a->begin / CR_KV_TILE * CR_KV_TILE; cell < a->end; cell += CR_KV_TILE) {
        const uint8_t *tile = a->v + cell / CR_KV_TILE * cr_kv8_tile(a->d);
        const size_t begin = cell < a->begin ? a->begin - cell : 0;
        const size_t end = a->end - cell < CR_KV_TILE ? a->end - cell : CR_KV_TILE;
        q8_weights(T, w, a, tile, cell, begin, end, i);
        for (size_t j = begin; j < end; j++) {
            vf value[C];
            UNROLL for (int c = 0; c < C; c++)
            {
                value[c] = v_load_i8((const int8_t *)tile + j * a->d + i + (size_t)c * LANES);
            }
            UNROLL for (int t = 0; t < T; t++)
            {
                const vf p = v_set1(w[t][j]);
                UNROLL for (int c = 0; c < C; c++)
                {
                    acc[t][c] = v_fma(p, value[c], acc[t][c]);
                }
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++)
    {
        UNROLL for (int c = 0; c < C; c++)
        {
            v_store(a->y + (size_t)t * a->ldy + i + (size_t)c * LANES, acc[t][c]);
        }
    }
}

static void attn_mix_q8(float *y, size_t ldy, const float *p, size_t ldp, size_t n_q,
                        const uint8_t *v, size_t begin, size_t end, size_t d, size_t first,
                        size_t last)
{
    enum { MOST = LANES == 8 ? 2 : MIX_SIDE }; /* by 32 columns, in 16 registers */
    struct q8_mix a = {y, ldy, ldp, begin, end, d, p, v};
    for (size_t t = 0, step; t < n_q; t += step) {
        step = n_q - t >= MOST ? MOST : n_q - t;
        a.y = y + t * ldy;
        a.p = p + t * ldp;
        for (size_t i = first; i < last; i += CR_QK) {
            if (step == MOST)
                mix_q8_columns(MOST, &a, i);
            else if (step == 3)
                mix_q8_columns(3, &a, i);
            else if (step == 2)
                mix_q8_columns(2, &a, i);
            else
                mix_q8_columns(1, &a, i);
        }
    }
}

#endif
