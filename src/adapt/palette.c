/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Palettes as handles: opening one against a model, applying it to a pool, and where its pool is.
 * The JSON is in palette_json.c. A palette names its base model and pool by hash, because shapes
 * alone would let it be applied to the wrong one.
 */
#include "adapt/palette.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 1 << 20 };

void cr_palette_close(cr_palette *p)
{
    if (!p)
        return;
    cr_free(p->name);
    cr_free(p->base_hash);
    cr_free(p->base_name);
    cr_free(p->pool_hash);
    cr_free(p->pool_path);
    cr_free(p->weights);
    cr_free(p->q_c);
    cr_free(p->metric);
    cr_free(p->created);
    cr_examples_deinit(&p->worked);
    cr_worked_deinit(&p->worked_ids);
    cr_free(p);
}

/* A relative pool path is meant from the palette's folder. */
static enum cr_status resolve_pool(cr_palette *p, const char *path, struct cr_error *err)
{
    const char *slash = strrchr(path, '/');
    if (!p->pool_path[0] || p->pool_path[0] == '/' || !slash)
        return CR_OK;
    char *full = cr_asprintf("%.*s/%s", (int)(slash - path), path, p->pool_path);
    if (!full)
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    cr_free(p->pool_path);
    p->pool_path = full;
    return CR_OK;
}

enum cr_status cr_palette_open(cr_palette **out, cr_model *m, const char *path,
                               struct cr_error *err)
{
    *out = NULL;
    char *json;
    size_t len;
    cr_palette *p = NULL;
    enum cr_status st = cr_file_read(path, MAX_BYTES, &json, &len, err);
    if (st)
        return st;
    st = cr_palette_parse(&p, json, len, path, err);
    if (!st)
        st = resolve_pool(p, path, err);
    const char *hash = st ? "" : cr_model_hash(m);
    if (!st && !hash)
        st = cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    if (!st && strcmp(hash, p->base_hash))
        st = cr_error_set(err, CR_INVALID,
                          "%s: the palette was made for the model %.60s (%.16s...), this is %.60s "
                          "(%.16s...)",
                          path, p->base_name, p->base_hash, cr_model_info(m)->name, hash);
    int dim = st ? 0 : cr_view_dim(m, p->view);
    if (!st && p->dim && p->dim != dim)
        st = cr_error_set(err, CR_INVALID,
                          "%s: the task embedding has %d numbers, the model's %s "
                          "view has %d",
                          path, p->dim, cr_view_name(p->view), dim);
    if (!st) {
        st = cr_worked_init(&p->worked_ids, m, p->worked.v, p->worked.n, err);
        if (st)
            cr_error_prefix(err, st, "%s", path);
    }
    cr_free(json);
    if (st)
        cr_palette_close(p);
    else
        *out = p;
    return st;
}

enum cr_status cr_palette_delta(cr_delta **out, const cr_palette *p, const cr_pool *pool,
                                struct cr_error *err)
{
    *out = NULL;
    if (!p->n)
        return CR_OK;
    if (strcmp(p->pool_hash, pool->hash))
        return cr_error_set(err, CR_INVALID,
                            "the palette %s belongs to the pool %.16s..., this is %.16s... (%s)",
                            p->name, p->pool_hash, pool->hash, pool->path ? pool->path : "");
    if (p->n != pool->n)
        return cr_error_set(err, CR_INVALID, "the palette %s has %d weights, the pool %d adapters",
                            p->name, p->n, pool->n);
    for (int i = 0; i < p->n; i++)
        if (p->weights[i] < 0 && pool->kind == CR_POOL_CENTROID)
            return cr_error_set(err, CR_INVALID,
                                "the palette %s: weight %d is %g; a centroid pool takes weights of "
                                "0 or more",
                                p->name, i + 1, (double)p->weights[i]);
    return cr_pool_blend(out, pool, p->weights, err);
}

size_t cr_palette_worked_bytes(const struct cr_example *e)
{
    size_t n = strlen(e->question) + (e->context ? strlen(e->context) : 0) +
               (e->answer ? strlen(e->answer) : 0);
    for (int i = 0; i < e->n_choices; i++)
        n += strlen(e->choices[i]);
    return n;
}

size_t cr_palette_take_worked(const struct cr_example *e, size_t n, size_t most,
                              struct cr_example out[CR_WORKED_MAX])
{
    size_t taken = 0, bytes = 0;
    for (size_t i = 0; i < n && taken < most && taken < CR_WORKED_MAX; i++) {
        if (!e[i].answer || !e[i].answer[0])
            continue;
        bytes += cr_palette_worked_bytes(&e[i]);
        if (bytes > CR_PALETTE_WORKED_BYTES)
            break;
        out[taken++] = e[i];
    }
    return taken;
}

const char *cr_palette_pool_path(const cr_palette *p)
{
    return p->n ? p->pool_path : "";
}
