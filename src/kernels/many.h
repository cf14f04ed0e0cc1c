/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with many tokens where bytes are multiplied by pairs into 16 bits (AVX2 without VNNI).
 * Registers and instructions are the limit there, not memory. So the codes of some panels are made
 * ready once, in the order of the inner loop, as second operands in the first-level cache, and each
 * token goes by them with its own codes in a register:
 *
 *     codes of up to 6 bits   signed, times the activation's code + 128, which is not negative: the
 *                             sums stay in 16 bits over 8, 4 or 2 vectors of pairs, and 128 times
 *                             the sum of the codes is taken off in the end. Types with a minimum
 *                             keep their codes from 0 up; their sums begin at -2^15 instead of 0
 *     Q8_0, IQ4_NL            widened to 16 bits, and the activation's codes too
 *
 * The integer sums are those of any other way, and the floats follow in the same order: the results
 * are the same bits. packed.h includes this file after load_codes and load_scales.
 */
#ifndef CR_MANY_H
#define CR_MANY_H

enum {
    MANY = 16,                      /* more tokens than this take this way */
    MANY_PANELS = 6,                /* side by side: 6 float and 6 integer sums in 16 registers */
    MANY_VECTORS = 96 * MANY_PANELS /* of codes: 18 KB */
};

/* Groups of some panels: vector i of group b of panel p is w[(b * vectors + i) * P + p]. */
struct ready {
    __m256i w[MANY_VECTORS], less[16 * MANY_PANELS * 2];
    __m256 d[16 * MANY_PANELS], m[16 * MANY_PANELS];
};

INLINE size_t ready_vectors(enum cr_type type)
{
    return is_signed(type) ? 16 : 8;
}

/* Groups at a time: whole blocks. */
INLINE size_t ready_groups(enum cr_type type)
{
    return is_signed(type) ? 6 : groups_of(type) == 8 ? 8 : 12;
}

/* Vectors of pairs that are added in 16 bits: pairs are at most 2 * 255 * 31 (32 for Q6_K). */
INLINE int ready_step(enum cr_type type)
{
    return pairs_in_16_bits(type);
}

/* One half of a group's codes: 128 times their sums by row, and what sums begin lower by. */
INLINE __m256i what_is_over(enum cr_type type, const __m256i *w, int n)
{
    const __m256i ones = _mm256_set1_epi8(1);
    __m256i sum = _mm256_maddubs_epi16(ones, w[0]);
    UNROLL for (int g = 1; g < n; g++)
    {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, w[g]));
    }
    sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(128));
    const int begins = has_minimum(type) ? n / ready_step(type) * 65536 : 0;
    return _mm256_sub_epi32(sum, _mm256_set1_epi32(begins));
}

/* Group b of panel p of P. */
INLINE void make_ready(enum cr_type type, int P, struct ready *to, int p, size_t b,
                       const struct tile *t)
{
    __m256i *w = to->w + b * ready_vectors(type) * (size_t)P + p, codes[GROUPS];
    to->d[b * (size_t)P + (size_t)p] = t->d;
    to->m[b * (size_t)P + (size_t)p] = t->m;
    if (is_signed(type)) { /* bytes 0 and 2, then 1 and 3, of each four */
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            w[2 * g * P] = _mm256_srai_epi16(_mm256_slli_epi16(t->w[g], 8), 8);
            w[(2 * g + 1) * P] = _mm256_srai_epi16(t->w[g], 8);
        }
        return;
    }
    UNROLL for (int g = 0; g < GROUPS; g++)
    {
        codes[g] = _mm256_sub_epi8(t->w[g], _mm256_set1_epi8((char)code_offset(type)));
        w[g * P] = codes[g];
    }
    const int parts = type == CR_Q6_K ? 2 : 1;
    UNROLL for (int part = 0; part < parts; part++)
    {
        to->less[(b * (size_t)parts + (size_t)part) * (size_t)P + (size_t)p] =
            what_is_over(type, codes + 4 * part, GROUPS / parts);
    }
}

/* The integer sums of vectors [begin, end) of a group of P panels: w, with the codes at q. */
INLINE void ready_sums(enum cr_type type, int P, __m256i dot[MANY_PANELS], const __m256i *w,
                       const int8_t *q, int begin, int end)
{
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
    const __m256i start = _mm256_set1_epi16(has_minimum(type) ? INT16_MIN : 0);
    const int step = ready_step(type);
    __m256i pairs[MANY_PANELS];
    UNROLL for (int g = begin; g < end; g++)
    {
        const __m256i x = _mm256_xor_si256(_mm256_set1_epi32(load_i32(q + 4 * g)), flip);
        UNROLL for (int p = 0; p < P; p++)
        {
            const __m256i v = _mm256_maddubs_epi16(x, w[g * P + p]);
            pairs[p] = _mm256_add_epi16(g % step == 0 ? start : pairs[p], v);
        }
        if (g % step < step - 1)
            continue;
        UNROLL for (int p = 0; p < P; p++)
        {
            const __m256i v = _mm256_madd_epi16(pairs[p], ones);
            dot[p] = g < begin + step ? v : _mm256_add_epi32(dot[p], v);
        }
    }
}

INLINE void ready_sums_16(int P, __m256i dot[MANY_PANELS], const __m256i *w, const int8_t *q)
{
    UNROLL for (int g = 0; g < GROUPS; g++)
    {
        const __m256i four = _mm256_set1_epi32(load_i32(q + 4 * g));
        const __m256i x[2] = {_mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8),
                              _mm256_srai_epi16(four, 8)};
        UNROLL for (int i = 0; i < 2; i++)
        {
            UNROLL for (int p = 0; p < P; p++)
            {
                const __m256i v = _mm256_madd_epi16(x[i], w[(2 * g + i) * P + p]);
                dot[p] = g + i == 0 ? v : _mm256_add_epi32(dot[p], v);
            }
        }
    }
}

struct many_job {
    float *y;
    size_t ldy;
    const uint8_t *w, *x;
    size_t row_bytes, x_bytes; /* row_bytes: of a panel, where they are packed */
    size_t n_groups, n_tok;
    bool packed;
    ptrdiff_t last; /* row of the last panel: in rows that do not fill it, it begins earlier */
    vm mask;        /* its lanes that are stored */
    bool whole;     /* all of them are */
};

/* Groups [begin, end) of P panels by one token. */
INLINE void many_token(enum cr_type type, int P, const struct ready *r, const struct many_job *j,
                       size_t t, size_t begin, size_t end)
{
    const int parts = type == CR_Q6_K ? 2 : 1;
    float *y = j->y + t * j->ldy;
    const struct cr_block_q8a *x =
        (const struct cr_block_q8a *)(const void *)(j->x + t * j->x_bytes);
    const __m256i *w = r->w, *less = r->less;
    const __m256 *d = r->d, *m = r->m;
    __m256 acc[MANY_PANELS];
    UNROLL for (int p = 0; p < P; p++)
    {
        acc[p] = begin == 0              ? _mm256_setzero_ps()
                 : p + 1 < P || j->whole ? _mm256_loadu_ps(y + p * LANES)
                                         : _mm256_maskload_ps(y + j->last, j->mask);
    }
    for (size_t b = begin; b < end; b++, d += P, m += P, w += ready_vectors(type) * (size_t)P) {
        UNROLL for (int part = 0; part < parts; part++)
        {
            __m256i dot[MANY_PANELS];
            if (is_signed(type))
                ready_sums_16(P, dot, w, x[b].q);
            else
                ready_sums(type, P, dot, w, x[b].q, part * 4, (part + 1) * GROUPS / parts);
            const __m256 xd = _mm256_set1_ps(x[b].d), xs = _mm256_set1_ps(x[b].s);
            UNROLL for (int p = 0; p < P; p++)
            {
                if (!is_signed(type))
                    dot[p] = _mm256_sub_epi32(dot[p], less[p]);
                const __m256 scale = _mm256_mul_ps(xd, part ? m[p] : d[p]);
                acc[p] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot[p]), acc[p]);
                if (has_minimum(type))
                    acc[p] = _mm256_fmadd_ps(xs, m[p], acc[p]);
            }
            less += P;
        }
    }
    UNROLL for (int p = 0; p < P; p++)
    {
        if (p + 1 < P || j->whole)
            _mm256_storeu_ps(y + p * LANES, acc[p]);
        else
            _mm256_maskstore_ps(y + j->last, j->mask, acc[p]);
    }
}

/* Group b of the panel at w, from its packed form. */
INLINE struct tile packed_group(enum cr_type type, const uint8_t *w, size_t b)
{
    const uint8_t *codes = w + codes_at(type, b);
    const vi fifth = vi_load(codes + (has_fifth(type) ? 4 * 4 * LANES : 0));
    struct tile t;
    UNROLL for (int i = 0; i < GROUPS; i++)
    {
        t.w[i] = load_codes(type, codes, fifth, i % 4, i / 4);
    }
    load_scales(type, &t.d, &t.m, w, b);
    return t;
}

/* Groups [begin, end) of panel p of P. */
INLINE void make_panel_ready(enum cr_type type, int P, struct ready *to, const struct many_job *j,
                             int p, size_t begin, size_t end)
{
    const size_t blocks = (size_t)groups_of(type);
    if (j->packed) {
        for (size_t b = begin; b < end; b++) {
            struct tile t = packed_group(type, j->w + (size_t)p * j->row_bytes, b);
            make_ready(type, P, to, p, b - begin, &t);
        }
        return;
    }
    const ptrdiff_t row = p + 1 < P ? p * LANES : j->last;
    const uint8_t *w = j->w + row * (ptrdiff_t)j->row_bytes;
    for (size_t b = begin; b < end; b += blocks) {
        struct tile t[8];
        load_tiles(type, t, w + b / blocks * block_bytes(type), j->row_bytes);
        for (size_t i = 0; i < blocks; i++)
            make_ready(type, P, to, p, b + i - begin, &t[i]);
    }
}

/* P panels by all tokens. */
INLINE void many_panels(enum cr_type type, int P, const struct many_job *j)
{
    struct ready r;
    const size_t step = ready_groups(type);
    for (size_t b = 0, end; b < j->n_groups; b = end) {
        end = j->n_groups - b < step ? j->n_groups : b + step;
        for (int p = 0; p < P; p++)
            make_panel_ready(type, P, &r, j, p, b, end);
        for (size_t t = 0; t < j->n_tok; t++)
            many_token(type, P, &r, j, t, b, end);
    }
}

/* All rows; where they are not packed, at least LANES. */
INLINE void many_tokens(enum cr_type type, struct many_job j, size_t rows)
{
    for (size_t r = 0, step; r < rows; r += step) {
        const size_t left = (rows - r + LANES - 1) / LANES;
        const size_t panels = left >= MANY_PANELS ? MANY_PANELS : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        step = panels * LANES < rows - r ? panels * LANES : rows - r;
        j.whole = step == panels * LANES;
        j.last = j.packed ? (ptrdiff_t)(panels - 1) * LANES : (ptrdiff_t)step - LANES;
        j.mask = j.packed ? v_lanes(0, step - (panels - 1) * LANES)
                          : v_lanes(panels * LANES - step, LANES);
        if (panels == MANY_PANELS)
            many_panels(type, MANY_PANELS, &j);
        else if (panels == 4)
            many_panels(type, 4, &j);
        else if (panels == 2)
            many_panels(type, 2, &j);
        else
            many_panels(type, 1, &j);
        j.w += panels * (j.packed ? 1 : LANES) * j.row_bytes;
        j.y += step;
    }
}

#endif
