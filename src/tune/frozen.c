/* SPDX-License-Identifier: Apache-2.0 */
/* Products with the frozen weights: dequantised at each use, or packed once in bfloat16. */
#include "tune/frozen.h"

#include "base/mem.h"
#include "tune/ops.h"

#include <string.h>

enum { MARGIN = 32 }; /* rows of the bf16 operand that a block may read beyond the last */

static void lay_out(struct cr_frozen *f)
{
    size_t at = 0;
    for (int s = 0; s < CR_STAGE_COUNT; s++) {
        const struct cr_stage_shape *st = &f->p->stage[s];
        f->forward_at[s] = at;
        at += cr_bf16_panels_size(st->ld, st->n_in);
        f->back_at[s] = at;
        at += cr_bf16_panels_size(st->n_in, st->ld);
    }
    f->layer_size = at;
}

size_t cr_frozen_bytes(const cr_model *m, const struct cr_lowrank *p, bool bf16)
{
    struct cr_frozen f = {.m = m, .p = p};
    if (!bf16)
        return 0;
    lay_out(&f);
    return f.layer_size * (size_t)m->n_layers * sizeof(uint16_t);
}

/* Puts rows of W_ext from `row0` on, [rows, n_in], into both operands. */
static void put_rows(struct cr_frozen *f, size_t layer, enum cr_stage stage, size_t row0,
                     const float *w, size_t rows)
{
    const struct cr_stage_shape *st = &f->p->stage[stage];
    uint16_t *to = f->panels + layer * f->layer_size;
    cr_bf16_put(to + f->forward_at[stage], st->n_in, row0, w, rows);
    cr_bf16_put_transposed(to + f->back_at[stage], st->ld, row0, w, rows, st->n_in);
}

struct fill {
    struct cr_frozen *f;
    float *rows; /* [threads, widest n_in] */
    size_t widest;
};

static void dequantise_row(const cr_model *m, const struct cr_matrix *w, size_t row, float *to)
{
    m->k->dequantize[w->type](to, (const char *)w->data + row * w->row_bytes, (size_t)w->n_in);
}

/* One layer and stage. */
static void fill_stages(void *ud, size_t begin, size_t end, int thread)
{
    const struct fill *fill = ud;
    struct cr_frozen *f = fill->f;
    float *row = fill->rows + (size_t)thread * fill->widest;
    for (size_t i = begin; i < end; i++) {
        size_t layer = i / CR_STAGE_COUNT, at = 0;
        enum cr_stage stage = (enum cr_stage)(i % CR_STAGE_COUNT);
        const struct cr_stage_shape *st = &f->p->stage[stage];
        for (int k = 0; k < st->n_lins; k++) {
            const struct cr_matrix *w = cr_model_linear(f->m, (int)layer, st->lin[k]);
            for (size_t r = 0; r < st->lin_out[k]; r++) {
                dequantise_row(f->m, w, r, row);
                put_rows(f, layer, stage, at++, row, 1);
            }
        }
    }
}

enum cr_status cr_frozen_init(struct cr_frozen *f, const cr_model *m, const struct cr_lowrank *p,
                              bool bf16, struct cr_error *err)
{
    struct fill fill = {.f = f};
    *f = (struct cr_frozen){.m = m, .p = p, .bf16 = bf16};
    if (!bf16)
        return CR_OK;
    lay_out(f);
    for (int s = 0; s < CR_STAGE_COUNT; s++)
        fill.widest = p->stage[s].n_in > fill.widest ? p->stage[s].n_in : fill.widest;
    f->panels = cr_alloc0(f->layer_size * (size_t)m->n_layers, sizeof *f->panels);
    fill.rows = cr_alloc((size_t)cr_threads_count(m->threads) * fill.widest, sizeof(float));
    if (f->panels && fill.rows)
        cr_threads_run_dynamic(m->threads, (size_t)m->n_layers * CR_STAGE_COUNT, 1, fill_stages,
                               &fill);
    bool ok = f->panels && fill.rows;
    cr_free(fill.rows);
    if (ok)
        return CR_OK;
    cr_frozen_deinit(f);
    return cr_error_set(err, CR_NO_MEMORY, "training: out of memory for %zu bytes of weights",
                        cr_frozen_bytes(m, p, true));
}

void cr_frozen_deinit(struct cr_frozen *f)
{
    cr_free(f->panels);
    f->panels = NULL;
}

struct refresh {
    struct cr_frozen *f;
    const float *params;
};

static void refresh_layers(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct refresh *r = ud;
    for (size_t layer = begin; layer < end; layer++) {
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &r->f->p->stage[s];
            put_rows(r->f, layer, (enum cr_stage)s, st->n_out,
                     r->params + cr_lowrank_a(r->f->p, (int)layer, (enum cr_stage)s), st->n_u);
        }
    }
}

void cr_frozen_refresh(struct cr_frozen *f, const float *params)
{
    struct refresh r = {f, params};
    if (f->bf16)
        cr_threads_run(f->m->threads, (size_t)f->m->n_layers, 1, refresh_layers, &r);
}

/* ---- products ---- */

/* float32: a piece of the matrix is dequantised and packed when it is used. */
enum {
    PIECE = 128 /* rows of W_ext: their panels stay in the L2 cache */
};

size_t cr_frozen_scratch(const struct cr_frozen *f, size_t n_tokens)
{
    size_t most = 0;
    for (int s = 0; s < CR_STAGE_COUNT; s++) {
        const struct cr_stage_shape *st = &f->p->stage[s];
        size_t depth = cr_bf16_depth(st->ld > st->n_in ? st->ld : st->n_in);
        size_t width = (st->n_in + f->p->k->panel_width) * PIECE; /* of a piece, either way round */
        size_t n = f->bf16 ? (n_tokens + MARGIN) * depth / 2 : width + st->n_in * PIECE;
        most = n > most ? n : most;
    }
    return most;
}

/* Rows [from, from + n) of W_ext in float32. */
static void unpack(const struct cr_frozen *f, const float *params, int layer, enum cr_stage stage,
                   size_t from, size_t n, float *to)
{
    const struct cr_stage_shape *st = &f->p->stage[stage];
    for (size_t row = from; row < from + n; row++, to += st->n_in) {
        int i = 0;
        while (i < st->n_lins && row >= st->out_at[i] + st->lin_out[i])
            i++;
        if (i < st->n_lins)
            dequantise_row(f->m, cr_model_linear(f->m, layer, st->lin[i]), row - st->out_at[i], to);
        else
            memcpy(to, params + cr_lowrank_a(f->p, layer, stage) + (row - st->n_out) * st->n_in,
                   st->n_in * sizeof *to);
    }
}

void cr_frozen_forward(const struct cr_frozen *f, const float *params, int layer,
                       enum cr_stage stage, const float *x, size_t rows, float *y, float *scratch)
{
    const struct cr_stage_shape *st = &f->p->stage[stage];
    const struct cr_train_kernels *k = f->p->k;
    if (f->bf16) {
        uint16_t *a = (void *)scratch;
        k->bf16_rows(a, x, st->n_in, rows, st->n_in);
        k->bf16_matmul(y, st->ld, a,
                       f->panels + (size_t)layer * f->layer_size + f->forward_at[stage], rows,
                       st->ld, st->n_in);
        return;
    }
    float *panels = scratch + PIECE * st->n_in;
    for (size_t o = 0, n; o < st->ld; o += n) {
        n = st->ld - o < PIECE ? st->ld - o : PIECE;
        unpack(f, params, layer, stage, o, n, scratch);
        k->pack_rows(panels, st->n_in, scratch, st->n_in, n, st->n_in);
        k->gemm_packed(y + o, st->ld, x, st->n_in, 1, panels, st->n_in, rows, n, st->n_in, 1,
                       false);
    }
}

void cr_frozen_back(const struct cr_frozen *f, const float *params, int layer, enum cr_stage stage,
                    const float *dy, size_t rows, float *dx, float *scratch)
{
    const struct cr_stage_shape *st = &f->p->stage[stage];
    const struct cr_train_kernels *k = f->p->k;
    if (f->bf16) {
        uint16_t *a = (void *)scratch;
        k->bf16_rows(a, dy, st->ld, rows, st->ld);
        k->bf16_matmul(dx, st->n_in, a,
                       f->panels + (size_t)layer * f->layer_size + f->back_at[stage], rows,
                       st->n_in, st->ld);
        return;
    }
    float *panels = scratch + PIECE * st->n_in;
    for (size_t o = 0, n; o < st->ld; o += n) {
        n = st->ld - o < PIECE ? st->ld - o : PIECE;
        unpack(f, params, layer, stage, o, n, scratch);
        k->pack_columns(panels, n, scratch, st->n_in, st->n_in, n);
        k->gemm_packed(dx, st->n_in, dy + o, st->ld, 1, panels, n, rows, st->n_in, n, 1, o > 0);
    }
}
