/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon pool info|export|convert`; train has its own file. */
#include "adapt/pool.h"

#include "adapt/adapter.h"
#include "adapt/palette.h"
#include "base/mem.h"
#include "common.h"
#include "info.h"
#include "messages.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

int cr_cli_pool_info(const struct cr_args *a)
{
    return cr_info_print(a, a->rest[0], 1u << CR_INFO_POOL);
}

/* ---- export ---- */

/* The weights that the options ask for, [pool->n], on the heap. */
static enum cr_status export_weights(const struct cr_args *a, cr_model *m, const cr_pool *p,
                                     float **weights, struct cr_error *err)
{
    const char *task = cr_arg_text(a, CR_OPT_TASK), *palette = cr_arg_text(a, CR_OPT_PALETTE);
    int base = cr_arg_int(a, CR_OPT_BASE);
    float *w = cr_alloc0((size_t)p->n, sizeof *w);
    *weights = w;
    if (!w)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    if (task) {
        for (int t = 0; t < p->index.n_entries; t++)
            if (!strcmp(p->index.names[t], task)) {
                memcpy(w, p->index.weights + (size_t)t * (size_t)p->n, (size_t)p->n * sizeof *w);
                return CR_OK;
            }
        return cr_error_set(err, CR_NOT_FOUND,
                            "%s: no entry \"%s\" in its index; `crayon pool "
                            "info` lists them",
                            p->path, task);
    }
    if (palette) {
        cr_palette *pal;
        enum cr_status st = cr_palette_open(&pal, m, palette, err);
        if (!st && pal->n != p->n)
            st = cr_error_set(err, CR_INVALID, "%s: has %d weights, the pool %d adapters", palette,
                              pal->n, p->n);
        if (!st && strcmp(pal->pool_hash, p->hash))
            st = cr_error_set(err, CR_INVALID, "%s: belongs to pool %.12s..., not %.12s...",
                              palette, pal->pool_hash, p->hash);
        if (!st)
            memcpy(w, pal->weights, (size_t)p->n * sizeof *w);
        cr_palette_close(pal);
        return st;
    }
    if (base < 0 || base >= p->n)
        return cr_error_set(err, CR_INVALID, "--base is %d, should be from 0 to %d", base,
                            p->n - 1);
    w[base] = 1;
    return CR_OK;
}

int cr_cli_pool_export(const struct cr_args *a)
{
    const char *out = cr_arg_text(a, CR_OPT_OUTPUT);
    int ways = cr_arg_given(a, CR_OPT_BASE) + (cr_arg_text(a, CR_OPT_TASK) != NULL) +
               (cr_arg_text(a, CR_OPT_PALETTE) != NULL);
    if (ways != 1)
        return cr_misuse("pool export", "one of --base, --task and --palette is needed");
    if (cr_cli_type(a) == CR_BF16)
        return cr_misuse("pool export", "adapters are written as f32 or f16");
    struct cr_setup s;
    struct cr_error err;
    cr_pool *pool = NULL;
    cr_delta *delta = NULL;
    cr_adapter *ad = NULL;
    float *w = NULL;
    enum cr_status st = cr_setup_open(&s, a, 0, &err);
    if (!st)
        st = cr_pool_open(&pool, s.model, a->rest[0], &err);
    if (!st)
        st = export_weights(a, s.model, pool, &w, &err);
    if (!st)
        st = cr_pool_blend(&delta, pool, w, &err);
    if (!st)
        st = cr_adapter_from_delta(&ad, s.model, delta, pool->name, &err);
    size_t n = strlen(out);
    bool gguf = n > 5 && !strcmp(out + n - 5, ".gguf");
    if (!st)
        st = gguf ? cr_adapter_write_gguf(ad, s.model, out, cr_cli_type(a), &err)
                  : cr_adapter_write_peft(ad, s.model, out, cr_cli_type(a), &err);
    if (!st)
        cr_note("wrote %s, rank %d", out, cr_delta_rank(delta));
    cr_adapter_close(ad);
    cr_delta_free(delta);
    cr_pool_close(pool);
    cr_free(w);
    cr_setup_close(&s);
    return st ? cr_fail(&err) : 0;
}

int cr_cli_pool_convert(const struct cr_args *a)
{
    struct cr_setup s;
    struct cr_error err;
    cr_pool *pool = NULL;
    enum cr_status st = cr_setup_open(&s, a, 0, &err);
    if (!st)
        st = cr_pool_open(&pool, s.model, a->rest[0], &err);
    if (!st)
        st = cr_pool_write(pool, cr_arg_text(a, CR_OPT_OUTPUT), cr_cli_type(a), &err);
    if (!st)
        cr_note("wrote %s", cr_arg_text(a, CR_OPT_OUTPUT));
    cr_pool_close(pool);
    cr_setup_close(&s);
    return st ? cr_fail(&err) : 0;
}
