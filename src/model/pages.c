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

static size_t panel_bytes(const cr_model *m, const struct cr_matrix *w)
{
    return m->k->panel_bytes((enum cr_type)w->type, (size_t)w->n_in);
}

static bool is_packed_type(const cr_model *m, const struct cr_matrix *w)
{
    return m->k->panel_rows && m->k->pack[w->type] && panel_bytes(m, w) > 0;
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

void cr_drop_mapped(const void *data, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = (size_t)(uintptr_t)data;
    size_t end = (begin + bytes) / page * page;
    begin = (begin + page - 1) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static char *copy_matrix(cr_model *m, struct cr_matrix *w, char *to)
{
    struct copy c = {m, w, to};
    cr_threads_run(m->threads, (size_t)w->n_out, ROW_GRAIN, copy_rows, &c);
    if (cr_gguf_is_mapped(m->gguf))
        cr_drop_mapped(w->data, (size_t)w->n_out * w->row_bytes);
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

/* Half of what is free: the cache of the session and other programs need the rest. */
bool cr_may_copy(const cr_model *m, size_t bytes)
{
    return m->pages == CR_PAGES_HUGE ||
           (m->pages == CR_PAGES_AUTO && bytes <= available_bytes() / 2);
}

static enum cr_status copy_all(cr_model *m, struct cr_error *err)
{
    size_t total = copy_bytes(m, &m->output);
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++)
            total += copy_bytes(m, &m->layers[l].lin[i]);
    if (!cr_may_copy(m, total))
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
