/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole model file with a delta merged in: W'[o, :] = W[o, :] + sum_j B[o, j] A[j, :] for the
 * changed linears, rounded once to the wanted type; every other tensor and key is copied as it is.
 * One tensor is in memory at a time.
 */
#include "adapt/adapter.h"
#include "base/mem.h"
#include "model/gguf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ROWS_AT_ONCE = 64 };

struct merge { /* one changed linear */
    const cr_model *m;
    const struct cr_matrix *w;
    const struct cr_low_rank *p;
    uint32_t type;
    char name[96];
};

struct rows_job {
    const struct merge *g;
    size_t first;
    float *values;  /* [ROWS_AT_ONCE, n_in] */
    uint8_t *bytes; /* the same as the wanted type */
    bool bad[ROWS_AT_ONCE];
};

static void merge_rows(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct rows_job *job = ud;
    const struct merge *g = job->g;
    size_t n = (size_t)g->w->n_in, row_bytes = cr_row_bytes(g->type, n);
    for (size_t i = begin; i < end; i++) {
        size_t o = job->first + i, rank = (size_t)g->p->rank;
        float *row = job->values + i * n;
        g->m->k->dequantize[g->w->type](row, (const uint8_t *)g->w->data + o * g->w->row_bytes, n);
        for (size_t j = 0; j < rank; j++)
            g->m->k->axpy(row, g->p->b[o * rank + j], g->p->a + j * n, n);
        float limit = g->type == CR_F16 ? 65504.0f : HUGE_VALF;
        for (size_t k = 0; k < n; k++)
            job->bad[i] = job->bad[i] || !(fabsf(row[k]) <= limit) || isinf(row[k]);
        cr_quantize_ref(g->type, job->bytes + i * row_bytes, row, n);
    }
}

/* Writes the bytes of one merged tensor. */
static enum cr_status make_tensor(void *ud, struct cr_file_writer *f, struct cr_error *err)
{
    const struct merge *g = ud;
    size_t n = (size_t)g->w->n_in, n_out = (size_t)g->w->n_out;
    size_t row_bytes = cr_row_bytes(g->type, n);
    struct rows_job job = {.g = g};
    job.values = cr_alloc(ROWS_AT_ONCE * n, sizeof *job.values);
    job.bytes = cr_alloc(ROWS_AT_ONCE, row_bytes);
    enum cr_status status = CR_OK;
    if (!job.values || !job.bytes)
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", g->name);
    for (; job.first < n_out && status == CR_OK; job.first += ROWS_AT_ONCE) {
        size_t rows = n_out - job.first < ROWS_AT_ONCE ? n_out - job.first : ROWS_AT_ONCE;
        cr_threads_run(g->m->threads, rows, 8, merge_rows, &job);
        for (size_t i = 0; i < rows && status == CR_OK; i++)
            if (job.bad[i])
                status = cr_error_set(err, CR_INVALID, "%s: row %zu does not fit %s after merging",
                                      g->name, job.first + i, cr_type_info(g->type)->name);
        if (status == CR_OK)
            status = cr_file_add(f, job.bytes, rows * row_bytes, err);
    }
    cr_free(job.bytes);
    cr_free(job.values);
    return status;
}

/* The linears that the delta changes, by the tensor name in the file. */
static size_t list_changes(const cr_model *m, const cr_delta *d, uint32_t type, struct merge *list)
{
    size_t n = 0;
    for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++) {
        if (d->pairs[i].rank == 0)
            continue;
        enum cr_linear lin = (enum cr_linear)(i % CR_LIN_COUNT);
        list[n] = (struct merge){.m = m,
                                 .p = &d->pairs[i],
                                 .type = type,
                                 .w = cr_model_linear(m, i / CR_LIN_COUNT, lin)};
        snprintf(list[n].name, sizeof list[n].name, "blk.%d.%s.weight", i / CR_LIN_COUNT,
                 cr_linear_names[lin]);
        n++;
    }
    return n;
}

/* All keys but general.file_type, which is the type of the merged tensors now. */
static void put_keys(cr_gguf_writer *w, const cr_gguf *g, uint32_t type)
{
    for (size_t i = 0; i < cr_gguf_n_kv(g); i++)
        if (!cr_str_eq(cr_gguf_kv_at(g, i)->key, "general.file_type"))
            cr_gguf_put_kv(w, cr_gguf_kv_at(g, i));
    cr_gguf_put_u32(w, "general.file_type", type == CR_F32 ? 0 : type == CR_F16 ? 1 : 32);
}

static void put_tensor(cr_gguf_writer *w, const struct cr_tensor *t, struct merge *list, size_t n)
{
    size_t i = 0;
    while (i < n && !cr_str_eq(t->name, list[i].name))
        i++;
    char name[CR_GGUF_MAX_KEY];
    memcpy(name, t->name.p, t->name.n); /* names are shorter than the limit */
    name[t->name.n] = '\0';
    if (i < n)
        cr_gguf_put_tensor_fn(w, name, list[i].type, 2, t->ne, make_tensor, &list[i]);
    else
        cr_gguf_put_tensor(w, name, t->type, t->n_dims, t->ne, t->data);
}

enum cr_status cr_merge_write(const cr_model *m, const cr_delta *d, const char *path, uint32_t type,
                              struct cr_error *err)
{
    if (d->n_layers != m->n_layers)
        return cr_error_set(err, CR_INVALID, "delta of %d layers for a model of %d", d->n_layers,
                            m->n_layers);
    if (type != CR_F32 && type != CR_F16 && type != CR_BF16)
        return cr_error_set(err, CR_INVALID, "%s: cannot merge into %s; want F32, F16 or BF16",
                            path,
                            cr_type_info(type)->name ? cr_type_info(type)->name : "that type");
    if (m->fused)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: cannot merge: in architecture %s one tensor holds several linears",
                            path, m->info.arch);
    struct merge *list = cr_alloc((size_t)m->n_layers * CR_LIN_COUNT, sizeof *list);
    cr_gguf_writer *w = cr_gguf_writer_new();
    enum cr_status status;
    if (!list || !w) {
        status = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    } else {
        size_t n = list_changes(m, d, type, list);
        put_keys(w, m->gguf, type);
        for (size_t i = 0; i < cr_gguf_n_tensors(m->gguf); i++)
            put_tensor(w, cr_gguf_tensor_at(m->gguf, i), list, n);
        status = cr_gguf_write(w, path, err);
    }
    cr_gguf_writer_free(w);
    cr_free(list);
    return status;
}
