/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adapters in memory: opening by kind of file, the exact sum of several, and back from a delta.
 * The sum of B_i A_i over adapters is one pair of the summed rank: the A's stacked, the B's side by
 * side with the scales folded in. Averaging A and B apart would be another update altogether.
 */
#include "adapt/adapter.h"

#include "adapt/lora_bind.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

enum cr_status cr_adapter_open(cr_adapter **out, const cr_model *m, const char *path,
                               struct cr_error *err)
{
    *out = NULL;
    struct stat st;
    if (stat(path, &st) != 0)
        return cr_error_errno(err, "cannot open the adapter", path);
    if (!m->layers)
        return cr_error_set(err, CR_INVALID, "%s: the model was opened for its vocabulary only",
                            path);
    if (S_ISDIR(st.st_mode))
        return cr_adapter_open_peft(out, m, path, err);
    if (ends_with(path, ".bin") || ends_with(path, ".pt") || ends_with(path, ".pth"))
        return cr_error_set(err, CR_UNSUPPORTED,
                            "%s: a pickle can run code and is never read; save the adapter as "
                            "safetensors or GGUF",
                            path);
    if (ends_with(path, ".safetensors") || ends_with(path, ".json"))
        return cr_error_set(err, CR_INVALID,
                            "%s: part of a PEFT adapter; give the directory that holds it", path);
    return cr_adapter_open_gguf(out, m, path, err);
}

void cr_adapter_close(cr_adapter *a)
{
    if (!a)
        return;
    cr_free(a->path);
    cr_free(a->name);
    cr_free(a->task_name);
    cr_free(a->pairs);
    cr_free(a->data);
    cr_free(a);
}

/* Rank of pair i in the sum, over adapters whose scale is not 0. */
static int summed_rank(const cr_adapter *const *adapters, const float *scales, size_t n, int i)
{
    int rank = 0;
    for (size_t j = 0; j < n; j++)
        if (scales[j] != 0)
            rank += adapters[j]->pairs[i].rank;
    return rank;
}

/* Appends one adapter's part at rank offset `at` of a pair of `rank`:
 * A[at + j, :] = a[j, :], B[o, at + j] = scale * b[o, j]. */
static void append_pair(float *big_a, float *big_b, int rank, int at,
                        const struct cr_adapter_pair *p, float scale, const struct cr_matrix *w)
{
    size_t r = (size_t)p->rank, n_in = (size_t)w->n_in;
    memcpy(big_a + (size_t)at * n_in, p->a, r * n_in * sizeof *p->a);
    for (size_t o = 0; o < (size_t)w->n_out; o++)
        for (size_t j = 0; j < r; j++)
            big_b[o * (size_t)rank + (size_t)at + j] = scale * p->scale * p->b[o * r + j];
}

static enum cr_status check_combine(const cr_model *m, const cr_adapter *const *adapters,
                                    const float *scales, size_t n, struct cr_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (adapters[i]->model != m)
            return cr_error_set(err, CR_INVALID, "%s: was opened for another model",
                                adapters[i]->path);
        if (!(fabsf(scales[i]) <= CR_MAX_SCALE))
            return cr_error_set(err, CR_INVALID, "%s: scale %g, want a number within +-%g",
                                adapters[i]->path, (double)scales[i], (double)CR_MAX_SCALE);
    }
    return CR_OK;
}

enum cr_status cr_adapters_combine(cr_delta **out, const cr_model *m,
                                   const cr_adapter *const *adapters, const float *scales, size_t n,
                                   struct cr_error *err)
{
    *out = NULL;
    enum cr_status status = check_combine(m, adapters, scales, n, err);
    if (status != CR_OK)
        return status;
    int n_pairs = m->n_layers * CR_LIN_COUNT;
    size_t floats = 0;
    for (int i = 0; i < n_pairs; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        int rank = summed_rank(adapters, scales, n, i);
        if (rank > CR_LORA_MAX_RANK)
            return cr_error_set(err, CR_LIMIT, "%zu adapters: summed rank %d, the limit is %d", n,
                                rank, CR_LORA_MAX_RANK);
        floats += (size_t)rank * ((size_t)w->n_in + (size_t)w->n_out);
    }
    cr_delta *d;
    status = cr_delta_new(&d, m->n_layers, floats, err);
    if (status != CR_OK)
        return status;
    float *at = d->data;
    for (int i = 0; i < n_pairs; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        int rank = summed_rank(adapters, scales, n, i), done = 0;
        float *a = at, *b = at + (size_t)rank * (size_t)w->n_in;
        for (size_t j = 0; j < n; j++) {
            const struct cr_adapter_pair *p = &adapters[j]->pairs[i];
            if (scales[j] == 0 || p->rank == 0)
                continue;
            append_pair(a, b, rank, done, p, scales[j], w);
            done += p->rank;
        }
        if (rank)
            d->pairs[i] = (struct cr_low_rank){.rank = rank, .a = a, .b = b};
        at = b + (size_t)rank * (size_t)w->n_out;
        d->max_rank = rank > d->max_rank ? rank : d->max_rank;
    }
    cr_delta_pack(m, d);
    *out = d;
    return CR_OK;
}

enum cr_status cr_adapter_from_delta(cr_adapter **out, const cr_model *m, const cr_delta *d,
                                     const char *name, struct cr_error *err)
{
    *out = NULL;
    if (d->n_layers != m->n_layers)
        return cr_error_set(err, CR_INVALID, "delta of %d layers for a model of %d", d->n_layers,
                            m->n_layers);
    int n_pairs = m->n_layers * CR_LIN_COUNT;
    size_t floats = 0;
    for (int i = 0; i < n_pairs; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        floats += (size_t)d->pairs[i].rank * ((size_t)w->n_in + (size_t)w->n_out);
    }
    cr_adapter *a = cr_alloc0(1, sizeof *a);
    if (a) {
        a->model = m;
        a->n_layers = m->n_layers;
        a->alpha = (float)d->max_rank;
        a->path = cr_strdup("(delta)");
        a->name = cr_strdup(name);
        a->task_name = cr_strdup("");
        a->pairs = cr_alloc0((size_t)n_pairs, sizeof *a->pairs);
        a->data = cr_alloc(floats, sizeof(float));
    }
    if (!a || !a->path || !a->name || !a->task_name || !a->pairs || !a->data) {
        cr_adapter_close(a);
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory for %zu floats", name, floats);
    }
    float *at = a->data;
    for (int i = 0; i < n_pairs; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        const struct cr_low_rank *p = &d->pairs[i];
        if (p->rank == 0)
            continue;
        size_t na = (size_t)p->rank * (size_t)w->n_in, nb = (size_t)p->rank * (size_t)w->n_out;
        a->pairs[i] = (struct cr_adapter_pair){p->rank, 1, at, at + na};
        memcpy(at, p->a, na * sizeof *at);
        memcpy(at + na, p->b, nb * sizeof *at);
        at += na + nb;
        a->n_pairs++;
    }
    a->max_rank = d->max_rank;
    *out = a;
    return CR_OK;
}
