/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the weights lie. Mapped, they are the file's own pages: no memory of ours, nothing to do at
 * start, but pages of 4 KiB, which the processor reads at about half the speed of memory. In huge
 * pages they are a private copy, each matrix in the order in which this machine's kernels read it
 * (kernels.h, "packed"). The copy is made with all threads when the first session is made, and each
 * matrix's mapped pages are given back as soon as it is copied, so that no matrix is held twice.
 */
#include "base/mem.h"
#include "model/model.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, ROW_GRAIN = 64 };

struct copy {
    const cr_model *m;
    const struct cr_matrix *w;
    char *to;
};

static bool is_packed_type(const cr_model *m, const struct cr_matrix *w)
{
    return m->k->panel_rows && m->k->pack[w->type];
}

static size_t panel_bytes(const cr_model *m, const struct cr_matrix *w)
{
    return m->k->panel_bytes((enum cr_type)w->type, (size_t)w->n_in);
}

static size_t copy_bytes(const cr_model *m, const struct cr_matrix *w)
{
    size_t rows = (size_t)w->n_out, panel = m->k->panel_rows, bytes = rows * w->row_bytes;
    if (is_packed_type(m, w))
        bytes = (rows + panel - 1) / panel * panel_bytes(m, w);
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static void copy_rows(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct copy *c = ud;
    const struct cr_matrix *w = c->w;
    const char *from = (const char *)w->data + begin * w->row_bytes;
    if (is_packed_type(c->m, w))
        c->m->k->pack[w->type](c->to + begin / c->m->k->panel_rows * panel_bytes(c->m, w), from,
                               w->row_bytes, end - begin, (size_t)w->n_in);
    else
        memcpy(c->to + begin * w->row_bytes, from, (end - begin) * w->row_bytes);
}

/* Lets go of the file's pages that lie wholly in the matrix; they come back when they are read. */
static void drop_mapped(const struct cr_matrix *w)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = (size_t)(uintptr_t)w->data;
    size_t end = (begin + (size_t)w->n_out * w->row_bytes) / page * page;
    begin = (begin + page - 1) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static char *copy_matrix(cr_model *m, struct cr_matrix *w, char *to)
{
    struct copy c = {m, w, to};
    cr_threads_run(m->threads, (size_t)w->n_out, ROW_GRAIN, copy_rows, &c);
    if (cr_gguf_is_mapped(m->gguf))
        drop_mapped(w);
    if (is_packed_type(m, w)) {
        w->packed = to;
        w->panel_bytes = panel_bytes(m, w);
    } else {
        w->data = to;
    }
    return to + copy_bytes(m, w);
}

/* Bytes of memory that can be had without swapping; 0: unknown. */
static uint64_t available_bytes(void)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "MemAvailable: %llu", &kib) != 1) {
    }
    if (f)
        fclose(f);
    return 1024 * (uint64_t)kib;
}

static enum cr_status copy_all(cr_model *m, struct cr_error *err)
{
    size_t total = copy_bytes(m, &m->output);
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++)
            total += copy_bytes(m, &m->layers[l].lin[i]);
    /* Half of what is free: the cache of the session and other programs need the rest. */
    if (m->pages == CR_PAGES_AUTO && total > available_bytes() / 2)
        return CR_OK;
    m->copy = cr_alloc(total + CR_HUGE_PAGE, 1);
    if (!m->copy && m->pages == CR_PAGES_AUTO)
        return CR_OK;
    if (!m->copy)
        return cr_error_set(err, CR_NO_MEMORY,
                            "%s: no memory for a copy of the weights in huge pages, %zu bytes",
                            m->path, total);
    char *to = cr_huge_area(m->copy, total);
    m->info.copy_bytes = total;
    const bool tied = m->output.data == m->embd.data;
    to = copy_matrix(m, &m->output, to);
    if (tied && !m->output.packed)
        m->embd = m->output;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++)
            to = copy_matrix(m, &m->layers[l].lin[i], to);
    return CR_OK;
}

enum cr_status cr_model_place(cr_model *m, struct cr_error *err)
{
    pthread_mutex_lock(&m->lock);
    enum cr_status status = CR_OK;
    if (!m->placed && m->pages != CR_PAGES_MAP)
        status = copy_all(m, err);
    m->placed = status == CR_OK;
    pthread_mutex_unlock(&m->lock);
    return status;
}

/* ---- deltas ---- */

enum { MAX_PACKED_RANK = 64 }; /* what session.c takes in one piece */

static bool packs(const cr_model *m, const struct cr_matrix *w, const struct cr_low_rank *p)
{
    return p->rank > 0 && p->rank <= MAX_PACKED_RANK && w->n_in % CR_QK == 0 && w->type != CR_F32 &&
           w->type != CR_F16 && w->type != CR_BF16 && m->k->panel_rows;
}

/* Bytes of the packed factors. */
static size_t a_bytes(const cr_model *m, const struct cr_matrix *w, int rank)
{
    size_t panels = ((size_t)rank + m->k->panel_rows - 1) / m->k->panel_rows;
    return panels * m->k->panel_bytes(CR_Q8_0, (size_t)w->n_in);
}

static size_t b_bytes(const cr_model *m, const struct cr_matrix *w, int rank)
{
    return (m->k->low_bytes((size_t)w->n_out, (size_t)rank) + ALIGN - 1) / ALIGN * ALIGN;
}

/* Rows of float32 to Q8_0. */
static void quantise_rows(const cr_model *m, struct cr_block_q8_0 *dst, const float *a, size_t n)
{
    struct cr_block_q8a block;
    for (size_t i = 0; i < n; i += CR_QK, a += CR_QK, dst++) {
        m->k->quantize_q8a(&block, a, CR_QK);
        dst->d = cr_f32_to_f16(block.d);
        memcpy(dst->q, block.q, sizeof dst->q);
    }
}

struct packing {
    const cr_model *m;
    cr_delta *d;
};

static void pack_pairs(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct cr_block_q8_0 *rows = NULL;
    const struct packing *job = ud;
    const cr_model *m = job->m;
    for (size_t i = begin; i < end; i++) {
        const struct cr_matrix *w = &m->layers[i / CR_LIN_COUNT].lin[i % CR_LIN_COUNT];
        struct cr_low_rank *p = &job->d->pairs[i];
        if (!p->packed_a)
            continue;
        size_t n = (size_t)w->n_in, rank = (size_t)p->rank;
        struct cr_block_q8_0 *more = cr_realloc(rows, rank * n / CR_QK, sizeof *rows);
        if (!more) {
            p->packed_a = p->packed_b = NULL;
            continue;
        }
        rows = more;
        quantise_rows(m, rows, p->a, rank * n);
        m->k->pack[CR_Q8_0]((void *)(uintptr_t)p->packed_a, rows, cr_row_bytes(CR_Q8_0, n), rank,
                            n);
        m->k->pack_low((void *)(uintptr_t)p->packed_b, p->b, (size_t)w->n_out, rank);
    }
    cr_free(rows);
}

void cr_delta_pack(const cr_model *m, cr_delta *d)
{
    struct packing job = {m, d};
    size_t n_pairs = (size_t)d->n_layers * CR_LIN_COUNT, total = 0;
    for (size_t i = 0; i < n_pairs; i++) {
        const struct cr_matrix *w = &m->layers[i / CR_LIN_COUNT].lin[i % CR_LIN_COUNT];
        if (packs(m, w, &d->pairs[i]))
            total += a_bytes(m, w, d->pairs[i].rank) + b_bytes(m, w, d->pairs[i].rank);
    }
    char *at = d->packed = total ? cr_alloc(total, 1) : NULL;
    for (size_t i = 0; i < n_pairs && at; i++) {
        const struct cr_matrix *w = &m->layers[i / CR_LIN_COUNT].lin[i % CR_LIN_COUNT];
        struct cr_low_rank *p = &d->pairs[i];
        if (!packs(m, w, p))
            continue;
        p->packed_a = at;
        p->packed_b = at + a_bytes(m, w, p->rank);
        at += a_bytes(m, w, p->rank) + b_bytes(m, w, p->rank);
    }
    if (at)
        cr_threads_run_dynamic(m->threads, n_pairs, 4, pack_pairs, &job);
}
