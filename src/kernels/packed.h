/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with packed weights: panels of LANES rows, stored as the inner loop reads them, so that
 * a panel is one stream of whole vectors. A panel of n_blocks blocks of 32 columns holds
 *
 *     codes   n_blocks times: vector g has bytes 4g .. 4g + 3 of every row's codes, one row a lane;
 *             8 vectors for Q8_0, else 4 of nibbles, whose high ones are the block's second half.
 *             For types of 5 bits one more: bit g of its byte k is the fifth of value 4g + k; for
 *             Q6_K two, one for each half: bits 2g and 2g + 1 of its byte k are the upper ones
 *     scales  after each block's codes: LANES float16 d; then as many m, where the type has minima.
 *             K-types: before the codes of each 8 blocks d, in Q4_K and Q5_K m, as float16, and 8
 *             times two scales, or scale and minimum, as bytes
 *
 * and is padded to whole cache lines; rows that a last panel lacks are zeros. A level defines,
 * before it includes this file, LANES, vf, vm and the operations v_lanes, v_load_mask,
 * v_store_mask, v_zero, v_set1, v_mul, v_fma of vector.h, v_load_f16, v_store_f16, and
 *
 *     vi                       LANES integers; vi_load(p), vi_set4(p): 4 bytes to every lane
 *     vi_low(v) vi_high(v)     the nibbles of each byte
 *     vi_fifth(v, g)           16 where bit g of a byte is set, else 0
 *     vi_upper(v, g)           16 times bits 2g and 2g + 1 of each byte
 *     vi_values(v)             the values of IQ4_NL's codes, with PACKED_FLIP
 *     vi_or vi_sub
 *     vi_start(type, &sum)     what an integer sum begins with; sum: of the activation's codes
 *     vi_dot(type, acc, w, x)  acc + w x by bytes, four to a lane
 *     vi_float(type, v, &sum)  the finished sum
 *     PACKED_FLIP              0x80 where codes of Q8_0 are stored unsigned, with 128 added
 *     PACKED_SIDE              tokens side by side, by two panels
 *
 * Every output adds its blocks in the order of kernels_ref.c, in its own lane. A level that defines
 * CR_MANY takes many tokens as many.h says; one with STREAMS a single token as levels.h says.
 */
#ifndef CR_PACKED_H
#define CR_PACKED_H

#include "kernels/groups.h"
#include "kernels/levels.h"

#include <math.h>
#include <string.h>

/* ---- packing --------------------------------------------------------------------------- */

INLINE bool has_nibbles(enum cr_type type)
{
    return type != CR_Q8_0;
}

INLINE bool has_fifth(enum cr_type type)
{
    return type == CR_Q5_0 || type == CR_Q5_1 || type == CR_Q5_K;
}

INLINE size_t code_vectors(enum cr_type type)
{
    return type == CR_Q6_K ? 6 : has_fifth(type) ? 5 : has_nibbles(type) ? 4 : 8;
}

/* Bytes of the float16 scales of a block or, in a K-type, of 8. */
INLINE size_t head_bytes(enum cr_type type)
{
    return (size_t)LANES * (has_minimum(type) ? 4 : 2);
}

/* Bytes of the scales of 8 blocks. */
INLINE size_t scales_of_8(enum cr_type type)
{
    return groups_of(type) == 8 ? head_bytes(type) + 16 * (size_t)LANES : 8 * head_bytes(type);
}

/* Bytes of a block, with its share of the scales. */
INLINE size_t share_bytes(enum cr_type type)
{
    return code_vectors(type) * 4 * LANES + scales_of_8(type) / 8;
}

/* Where the codes of block b begin in a panel. */
INLINE size_t codes_at(enum cr_type type, size_t b)
{
    if (groups_of(type) == 8)
        return b * code_vectors(type) * 4 * LANES + (b / 8 + 1) * scales_of_8(type);
    return b * share_bytes(type);
}

/* Where its scales begin, or, in a K-type, those of 8 blocks. */
INLINE size_t scales_at(enum cr_type type, size_t b)
{
    if (groups_of(type) == 8)
        return b / 8 * 8 * share_bytes(type);
    return b * share_bytes(type) + code_vectors(type) * 4 * LANES;
}

static size_t panel_bytes(enum cr_type type, size_t n)
{
    return (n / CR_QK * share_bytes(type) + 63) / 64 * 64;
}

/* The codes of a group for lane r. */
INLINE void pack_codes(enum cr_type type, uint8_t *codes, size_t r, const struct group *group)
{
    uint8_t c[CR_QK];
    for (int i = 0; i < CR_QK; i++)
        c[i] = (uint8_t)(group->q[i] + code_offset(type));
    for (size_t i = 0; i < 16; i++)
        codes[4 * (i / 4 * LANES + r) + i % 4] = (uint8_t)((c[i] & 15) | (c[i + 16] & 15) << 4);
    for (size_t i = 0; has_fifth(type) && i < CR_QK; i++) {
        uint8_t *at = codes + 4 * (4 * LANES + r) + i % 4;
        *at = (uint8_t)(*at | c[i] >> 4 << i / 4);
    }
    for (size_t i = 0; type == CR_Q6_K && i < CR_QK; i++) {
        uint8_t *at = codes + 4 * ((4 + i / 16) * LANES + r) + i % 4;
        *at = (uint8_t)(*at | c[i] >> 4 << i / 4 % 4 * 2);
    }
}

/* Types whose codes or scales lie otherwise in the file. */
INLINE void pack_groups(enum cr_type type, uint8_t *dst, const uint8_t *w, size_t row_bytes,
                        size_t rows, size_t n)
{
    const size_t n_blocks = n / CR_QK;
    const size_t groups = (size_t)groups_of(type), size = cr_type_info(type)->block_size;
    memset(dst, 0, panel_bytes(type, n));
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *to = dst + scales_at(type, b);
        for (size_t r = 0; r < rows; r++) {
            const uint8_t *block = w + r * row_bytes + b / groups * size;
            struct group group;
            unpack_group(&group, type, block, (int)(b % groups));
            pack_codes(type, dst + codes_at(type, b), r, &group);
            if (groups == 8) {
                uint8_t *bytes = to + head_bytes(type) + 2 * (b % 8) * LANES + r;
                int first, second;
                six_bits(block + 4, (int)(b % 8), &first, &second);
                memcpy(to + 2 * r, block + (type == CR_Q6_K ? 208 : 0), 2);
                if (type != CR_Q6_K)
                    memcpy(to + 2 * (LANES + r), block + 2, 2);
                bytes[0] = type == CR_Q6_K ? block[192 + 2 * (b % 8)] : (uint8_t)first;
                bytes[LANES] = type == CR_Q6_K ? block[193 + 2 * (b % 8)] : (uint8_t)second;
            } else {
                memcpy(to + 2 * r, block, 2);
                if (has_minimum(type))
                    memcpy(to + 2 * (LANES + r), block + 2, 2);
            }
        }
    }
}

/* One panel from rows row_bytes apart; `rows` of LANES are there. */
INLINE void pack_panel(enum cr_type type, uint8_t *dst, const uint8_t *w, size_t row_bytes,
                       size_t rows, size_t n)
{
    const size_t n_blocks = n / CR_QK, vectors = code_vectors(type), head = type == CR_Q4_1 ? 4 : 2;
    const size_t size = head + 4 * vectors;
    const uint32_t flip = type == CR_Q8_0 ? PACKED_FLIP * 0x01010101u : 0;
    memset(dst, 0, panel_bytes(type, n));
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *codes = dst + codes_at(type, b), *scales = dst + scales_at(type, b);
        for (size_t r = 0; r < rows; r++) {
            const uint8_t *block = w + r * row_bytes + b * size;
            memcpy(scales + 2 * r, block, 2);
            if (head == 4)
                memcpy(scales + 2 * (LANES + r), block + 2, 2);
            UNROLL for (size_t g = 0; g < vectors; g++)
            {
                uint32_t four;
                memcpy(&four, block + head + 4 * g, 4);
                four ^= flip;
                memcpy(codes + 4 * (g * LANES + r), &four, 4);
            }
        }
    }
}

INLINE void pack_rows(enum cr_type type, void *dst, const void *w, size_t row_bytes, size_t rows,
                      size_t n)
{
    const size_t bytes = panel_bytes(type, n);
    uint8_t *to = dst;
    const uint8_t *from = w;
    for (size_t r = 0; r < rows; r += LANES, to += bytes) {
        size_t some = rows - r < LANES ? rows - r : LANES;
        if (groups_of(type) == 8 || has_fifth(type))
            pack_groups(type, to, from + r * row_bytes, row_bytes, some, n);
        else
            pack_panel(type, to, from + r * row_bytes, row_bytes, some, n);
    }
}

/* ---- products -------------------------------------------------------------------------- */

struct packed_job {
    float *y;
    size_t ldy;
    const uint8_t *w; /* the first panel */
    const uint8_t *x; /* the first token */
    size_t bytes, x_bytes, n_blocks;
    size_t apart; /* panels from one to the next of those side by side */
    vm mask;      /* lanes of the last panel that are stored */
    bool ask;     /* for the next panels: these come from memory, and are used by few tokens */
};

/* Few tokens wait for memory: what lies FAR_AHEAD of block b is asked for; in the next of those
 * panels, where this one ends before. */
INLINE void ask_ahead(enum cr_type type, int P, const uint8_t *panel, size_t b, size_t bytes)
{
    const size_t at = b * share_bytes(type) + FAR_AHEAD;
    ask_for(panel + at + (at < bytes ? 0 : (size_t)(P - 1) * bytes), share_bytes(type));
}

/* Scales and minima of block b of the panel at p; both halves' scales in Q6_K. */
INLINE void load_scales(enum cr_type type, vf *d, vf *m, const uint8_t *p, size_t b)
{
    p += scales_at(type, b);
    if (groups_of(type) == 8) {
        const int8_t *bytes = (const int8_t *)p + head_bytes(type) + 2 * (b % 8) * LANES;
        *d = v_load_f16((const void *)p);
        *m = type == CR_Q6_K ? *d : v_sub(v_zero(), v_load_f16((const void *)(p + 2 * LANES)));
        *d = v_mul(*d, v_load_i8(bytes));
        *m = v_mul(*m, v_load_i8(bytes + LANES));
        return;
    }
    *d = v_load_f16((const void *)p);
    *m = has_minimum(type) ? v_load_f16((const void *)(p + 2 * LANES)) : v_zero();
}

/* The codes of columns 4 g .. 4 g + 3, and 16 on in the second half. */
INLINE vi load_codes(enum cr_type type, const uint8_t *block, vi fifth, int g, int half)
{
    enum { VECTOR = 4 * LANES };
    vi w = vi_load(block + (size_t)(g + (has_nibbles(type) ? 0 : 4 * half)) * VECTOR);
    if (has_nibbles(type))
        w = half ? vi_high(w) : vi_low(w);
    if (has_fifth(type))
        w = vi_or(w, vi_fifth(fifth, g + 4 * half));
    if (type == CR_Q6_K)
        w = vi_or(w, vi_upper(vi_load(block + (size_t)(4 + half) * VECTOR), g));
    return type == CR_IQ4_NL ? vi_values(w) : w;
}

#if defined(CR_MANY)
#include "kernels/many.h" /* needs what is above */
#endif

/* In each lane 32 times the sum of the 16 codes at x: what Q6_K's codes are too large by. */
INLINE vi times_32(const int8_t *x)
{
    static const uint8_t codes[4] = {32, 32, 32, 32};
    const int32_t none = 0;
    vi sum = vi_start(CR_Q4_1, &none);
    UNROLL for (int i = 0; i < 16; i += 4)
    {
        sum = vi_dot(CR_Q6_K, sum, vi_set4(codes), vi_set4(x + i));
    }
    return sum;
}

enum { PANELS = STREAMS > 2 ? STREAMS : 2 }; /* side by side, at most */

/* P panels by T tokens. More than two are the next ones of as many runs, which meet one token. */
INLINE void packed_tile(enum cr_type type, int P, int T, const struct packed_job *j)
{
    enum { N = PACKED_SIDE, VECTOR = 4 * LANES };
    const int parts = type == CR_Q6_K ? 2 : 1; /* halves with a scale each */
    const size_t apart = P > 2 ? j->apart : 1, bytes = apart * j->bytes, n_blocks = j->n_blocks;
    vf acc[PANELS][N];
    UNROLL for (int p = 0; p < P; p++)
    {
        UNROLL for (int t = 0; t < T; t++)
        {
            acc[p][t] = v_zero();
        }
    }
    for (size_t b = 0; b < n_blocks; b++) {
        const uint8_t *codes = j->w + codes_at(type, b);
        const uint8_t *x = j->x + b * sizeof(struct cr_block_q8a);
        vf d[PANELS], m[PANELS];
        vi dot[PANELS][N], fifth[PANELS];
        UNROLL for (int p = 0; p < P; p++)
        {
            fifth[p] = vi_load(codes + (size_t)p * bytes + (has_fifth(type) ? 4 * VECTOR : 0));
        }
        if (j->ask) {
            UNROLL for (int p = 0; p < P; p++)
            {
                ask_ahead(type, P, j->w + (size_t)p * bytes, b, bytes);
            }
        }
        UNROLL for (int part = 0; part < parts; part++)
        {
            UNROLL for (int t = 0; t < T; t++)
            {
                const struct cr_block_q8a *xb = (const void *)(x + (size_t)t * j->x_bytes);
                UNROLL for (int p = 0; p < P; p++)
                {
                    dot[p][t] = vi_start(parts == 2 ? CR_Q4_1 : type, &xb->sum);
                }
            }
            UNROLL for (int i = 0; i < 8 / parts; i++)
            {
                const int g = parts == 2 ? i : i / 2, half = parts == 2 ? part : i % 2;
                vi w[PANELS];
                UNROLL for (int p = 0; p < P; p++)
                {
                    w[p] = load_codes(type, codes + (size_t)p * bytes, fifth[p], g, half);
                }
                UNROLL for (int t = 0; t < T; t++)
                {
                    const struct cr_block_q8a *xb = (const void *)(x + (size_t)t * j->x_bytes);
                    vi four = vi_set4(xb->q + 4 * g + 16 * half);
                    UNROLL for (int p = 0; p < P; p++)
                    {
                        dot[p][t] = vi_dot(type, dot[p][t], w[p], four);
                    }
                }
            }
            UNROLL for (int p = 0; part == 0 && p < P; p++)
            {
                load_scales(type, &d[p], &m[p], j->w + (size_t)p * bytes, b);
            }
            UNROLL for (int t = 0; t < T; t++)
            {
                const struct cr_block_q8a *xb = (const void *)(x + (size_t)t * j->x_bytes);
                const vi less = parts == 2 ? times_32(xb->q + 16 * part) : fifth[0];
                UNROLL for (int p = 0; p < P; p++)
                {
                    vi sum = parts == 2 ? vi_sub(dot[p][t], less) : dot[p][t];
                    acc[p][t] = v_fma(v_mul(part ? m[p] : d[p], v_set1(xb->d)),
                                      vi_float(type, sum, &xb->sum), acc[p][t]);
                    if (has_minimum(type))
                        acc[p][t] = v_fma(m[p], v_set1(xb->s), acc[p][t]);
                }
            }
        }
    }
    UNROLL for (int p = 0; p < P; p++)
    {
        UNROLL for (int t = 0; t < T; t++)
        {
            v_store_mask(j->y + (size_t)t * j->ldy + (size_t)p * apart * LANES, acc[p][t],
                         p + 1 < P ? v_lanes(0, LANES) : j->mask);
        }
    }
}

enum { FEW = 16 }; /* tokens that wait for memory, not for products */

INLINE void packed_panels(enum cr_type type, int P, struct packed_job j, size_t n_tok)
{
    for (j.ask = n_tok <= FEW; n_tok > 0; j.ask = false) {
        size_t step = n_tok >= PACKED_SIDE            ? PACKED_SIDE
                      : PACKED_SIDE > 4 && n_tok >= 4 ? 4
                      : PACKED_SIDE > 3 && n_tok >= 3 ? 3
                      : n_tok >= 2                    ? 2
                                                      : 1;
        if (step == PACKED_SIDE)
            packed_tile(type, P, PACKED_SIDE, &j);
        else if (step == 4)
            packed_tile(type, P, PACKED_SIDE > 4 ? 4 : 1, &j);
        else if (step == 3)
            packed_tile(type, P, 3, &j);
        else if (step == 2)
            packed_tile(type, P, 2, &j);
        else
            packed_tile(type, P, 1, &j);
        j.x += step * j.x_bytes;
        j.y += step * j.ldy;
        n_tok -= step;
    }
}

/* Runs of panels by one token. Returns how many rows that were. */
INLINE size_t stream_packed(enum cr_type type, struct packed_job j, size_t rows)
{
    size_t left = rows / LANES; /* whole panels */
    j.mask = v_lanes(0, LANES);
    while ((j.apart = stream_length(left, PANELS, j.bytes)) > 0) {
        for (size_t i = 0; i < j.apart; i++, j.w += j.bytes, j.y += LANES)
            packed_tile(type, PANELS, 1, &j);
        j.w += (PANELS - 1) * j.apart * j.bytes;
        j.y += (PANELS - 1) * j.apart * LANES;
        left -= PANELS * j.apart;
    }
    return (rows / LANES - left) * LANES;
}

INLINE void matmul_packed(enum cr_type type, float *y, size_t ldy, const void *w, size_t bytes,
                          const void *x, size_t x_bytes, size_t rows, size_t n_tok, size_t n)
{
    struct packed_job j = {.y = y,
                           .ldy = ldy,
                           .w = w,
                           .x = x,
                           .bytes = bytes,
                           .x_bytes = x_bytes,
                           .n_blocks = n / CR_QK};
#if defined(CR_MANY)
    if (n_tok > MANY && n > 0) {
        many_tokens(type,
                    (struct many_job){.y = y,
                                      .ldy = ldy,
                                      .w = w,
                                      .x = x,
                                      .row_bytes = bytes,
                                      .x_bytes = x_bytes,
                                      .n_groups = n / CR_QK,
                                      .n_tok = n_tok,
                                      .packed = true},
                    rows);
        return;
    }
#endif
    size_t r = 0;
    if (STREAMS && n_tok == 1) {
        r = stream_packed(type, j, rows);
        j.w += r / LANES * bytes;
        j.y += r;
    }
    while (r < rows) {
        size_t panels = n_tok > 1 && rows - r > LANES ? 2 : 1;
        size_t end = r + panels * LANES < rows ? r + panels * LANES : rows;
        j.mask = v_lanes(0, end - r - (panels - 1) * LANES);
        if (panels == 2)
            packed_panels(type, 2, j, n_tok);
        else
            packed_panels(type, 1, j, n_tok);
        j.w += panels * bytes;
        j.y += panels * LANES;
        r = end;
    }
}

#define PACKED(name, type)                                                                         \
    static void matmul_packed_##name(float *y, size_t ldy, const void *w, size_t bytes,            \
                                     const void *x, size_t x_bytes, size_t rows, size_t n_tok,     \
                                     size_t n)                                                     \
    {                                                                                              \
        matmul_packed(type, y, ldy, w, bytes, x, x_bytes, rows, n_tok, n);                         \
    }                                                                                              \
    static void pack_##name(void *dst, const void *w, size_t row_bytes, size_t rows, size_t n)     \
    {                                                                                              \
        pack_rows(type, dst, w, row_bytes, rows, n);                                               \
    }
PACKED(q8_0, CR_Q8_0)
PACKED(q4_0, CR_Q4_0)
PACKED(q4_1, CR_Q4_1)
PACKED(q5_0, CR_Q5_0)
PACKED(q5_1, CR_Q5_1)
PACKED(q4_k, CR_Q4_K)
PACKED(q5_k, CR_Q5_K)
PACKED(q6_k, CR_Q6_K)
PACKED(iq4_nl, CR_IQ4_NL)

#include "kernels/attn_q8.h" /* needs the operations above */
#include "kernels/low.h"     /* needs the operations above */

/* ---- the peak -------------------------------------------------------------------------- */

static double spin_int8(size_t rounds)
{
    enum { CHAINS = 12 };
    static volatile float sink;
    static const uint8_t codes[4 * LANES] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};
    const int32_t none = 0;
    vi sum[CHAINS], w = vi_load(codes), x = vi_set4(codes);
    UNROLL for (int i = 0; i < CHAINS; i++)
    { /* all different, or the compiler would make one of them */
        sum[i] = vi_set4(codes + i);
    }
    for (size_t r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++)
        {
            sum[i] = vi_dot(CR_Q8_0, sum[i], w, x);
        }
    }
    vf all = v_zero();
    UNROLL for (int i = 0; i < CHAINS; i++)
    {
        all = v_add(all, vi_float(CR_Q4_1, sum[i], &none));
    }
    sink = v_sum(all) + sink;
    return CHAINS * 8.0 * LANES;
}

/* The entries of a level's table that come from here. */
#define PACKED_KERNELS                                                                             \
    .panel_rows = LANES, .panel_bytes = panel_bytes, .low_bytes = low_bytes, .pack_low = pack_low, \
    .add_low = add_low, .kv_flip = PACKED_FLIP, .attn_scores_q8 = attn_scores_q8,                  \
    .attn_mix_q8 = attn_mix_q8, .spin_int8 = spin_int8,                                            \
    .pack = {[CR_Q8_0] = pack_q8_0, [CR_Q4_0] = pack_q4_0, [CR_Q4_1] = pack_q4_1,                  \
             [CR_Q5_0] = pack_q5_0, [CR_Q5_1] = pack_q5_1, [CR_Q4_K] = pack_q4_k,                  \
             [CR_Q5_K] = pack_q5_k, [CR_Q6_K] = pack_q6_k, [CR_IQ4_NL] = pack_iq4_nl},             \
    .matmul_packed = {[CR_Q8_0] = matmul_packed_q8_0,    [CR_Q4_0] = matmul_packed_q4_0,           \
                      [CR_Q4_1] = matmul_packed_q4_1,    [CR_Q5_0] = matmul_packed_q5_0,           \
                      [CR_Q5_1] = matmul_packed_q5_1,    [CR_Q4_K] = matmul_packed_q4_k,           \
                      [CR_Q5_K] = matmul_packed_q5_k,    [CR_Q6_K] = matmul_packed_q6_k,           \
                      [CR_IQ4_NL] = matmul_packed_iq4_nl}

#endif
