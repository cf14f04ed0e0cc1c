/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon eval`: which ways to answer are compared. */
#include "adapt/palette.h"
#include "base/mem.h"
#include "eval.h"
#include "messages.h"
#include "model/gguf.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_ROWS = 512 };

static enum cr_status no_memory(struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "out of memory");
}

/* Takes over row.name, row.worked and row.delta. */
static enum cr_status add(struct cr_eval_rows *r, struct cr_eval_row row, struct cr_error *err)
{
    enum cr_status st = row.name ? CR_OK : no_memory(err);
    for (size_t i = 0; !st && i < r->n; i++)
        if (!strcmp(r->v[i].name, row.name))
            st = cr_error_set(err, CR_INVALID, "two rows have the name \"%s\"", row.name);
    if (!st && r->n == MAX_ROWS)
        st = cr_error_set(err, CR_LIMIT, "more than %d rows", MAX_ROWS);
    if (!st && r->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 16;
        struct cr_eval_row *v = cr_realloc(r->v, cap, sizeof *v);
        if (v) {
            r->v = v;
            r->cap = cap;
        } else {
            st = no_memory(err);
        }
    }
    if (st) {
        cr_free(row.name);
        cr_worked_deinit(&row.worked);
        if (!row.shown)
            cr_delta_free(row.delta);
        return st;
    }
    r->v[r->n++] = row;
    return CR_OK;
}

static enum cr_status room_for_pool(struct cr_eval_rows *r, struct cr_error *err)
{
    if (r->n_pools < r->cap_pools)
        return CR_OK;
    size_t cap = r->cap_pools ? 2 * r->cap_pools : 4;
    cr_pool **pools = cr_realloc(r->pools, cap, sizeof *pools);
    r->pools = pools ? pools : r->pools;
    char **paths = cr_realloc(r->pool_paths, cap, sizeof *paths);
    r->pool_paths = paths ? paths : r->pool_paths;
    if (!pools || !paths)
        return no_memory(err);
    r->cap_pools = cap;
    return CR_OK;
}

/* Each pool file is opened once. */
static enum cr_status pool_of(struct cr_eval_rows *r, cr_model *m, const char *path,
                              const cr_pool **out, struct cr_error *err)
{
    for (size_t i = 0; i < r->n_pools; i++)
        if (!strcmp(r->pool_paths[i], path)) {
            *out = r->pools[i];
            return CR_OK;
        }
    enum cr_status st = room_for_pool(r, err);
    char *copy = st ? NULL : cr_strdup(path);
    if (!st)
        st = copy ? cr_pool_open(&r->pools[r->n_pools], m, path, err) : no_memory(err);
    if (st) {
        cr_free(copy);
        return st;
    }
    *out = r->pools[r->n_pools];
    r->pool_paths[r->n_pools++] = copy;
    return CR_OK;
}

static enum cr_status add_adapter(struct cr_eval_rows *r, cr_model *m, const char *name,
                                  const char *text, struct cr_error *err)
{
    char *path;
    float scale;
    cr_adapter *ad = NULL;
    cr_delta *delta = NULL;
    enum cr_status st = cr_split_scale(text, &path, &scale, err);
    if (st)
        return st;
    st = cr_adapter_open(&ad, m, path, err);
    if (!st)
        st = cr_adapters_combine(&delta, m, (const cr_adapter *const *)&ad, &scale, 1, err);
    cr_adapter_close(ad);
    if (!st) {
        size_t n = strlen(path);
        const char *slash = strrchr(path, '/'), *base = slash && slash[1] ? slash + 1 : path;
        n -= (size_t)(base - path);
        n -= n > 5 && !strcmp(base + n - 5, ".gguf") ? 5 : 0;
        char *own = name ? cr_strdup(name) : cr_strndup(base, n);
        st = add(r, (struct cr_eval_row){.name = own, .kind = CR_EVAL_DELTA, .delta = delta}, err);
    }
    cr_free(path);
    return st;
}

static enum cr_status add_palette(struct cr_eval_rows *r, cr_model *m, const char *path,
                                  struct cr_error *err)
{
    cr_palette *p;
    const cr_pool *pool;
    cr_delta *delta = NULL;
    enum cr_status st = cr_palette_open(&p, m, path, err);
    if (!st && *cr_palette_pool_path(p)) {
        pool = NULL; /* one that is open already may be it, wherever it lies now */
        for (size_t i = 0; i < r->n_pools && !pool; i++)
            pool = strcmp(r->pools[i]->hash, p->pool_hash) ? NULL : r->pools[i];
        st = pool ? CR_OK : pool_of(r, m, cr_palette_pool_path(p), &pool, err);
        if (!st)
            st = cr_palette_delta(&delta, p, pool, err);
    }
    struct cr_eval_row row = {.kind = CR_EVAL_DELTA, .delta = delta};
    if (!st) {
        row.name = cr_strdup("palette");
        row.worked = p->worked_ids;
        p->worked_ids = (struct cr_worked){0};
    }
    cr_palette_close(p);
    return st ? st : add(r, row, err);
}

/* Each row once more, with the task's examples in front; one that has some keeps its own. */
static enum cr_status add_shown(struct cr_eval_rows *r, int n_worked, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    for (size_t i = 0, n = n_worked ? r->n : 0; !st && i < n; i++) {
        struct cr_eval_row row = r->v[i];
        if (row.worked.n)
            continue;
        row.name = cr_asprintf("%s, %d worked", row.name, n_worked);
        row.shown = true;
        st = add(r, row, err);
    }
    return st;
}

/* ---- rows of a pool ---- */

static enum cr_view best_view(const cr_pool *p)
{
    return p->index.mid_proto ? CR_VIEW_MIDDLE : CR_VIEW_QX;
}

/* A plain LoRA as a pool of its rank groups, made once for a number of groups. */
static enum cr_status split_of(struct cr_eval_rows *r, const cr_pool **p, int groups,
                               struct cr_error *err)
{
    char *label = cr_asprintf("%s:groups%d", (*p)->path, groups);
    if (!label)
        return no_memory(err);
    for (size_t i = 0; i < r->n_pools; i++)
        if (!strcmp(r->pool_paths[i], label)) {
            cr_free(label);
            *p = r->pools[i];
            return CR_OK;
        }
    enum cr_status st = room_for_pool(r, err);
    if (!st)
        st = cr_pool_split_ranks(&r->pools[r->n_pools], *p, groups, err);
    if (st) {
        cr_free(label);
        return st;
    }
    *p = r->pools[r->n_pools];
    r->pool_paths[r->n_pools++] = label;
    return CR_OK;
}

/* `how`: a solver, "oracle" or the number of an adapter, each with ":qx" or ":middle" or nothing;
 * of a plain LoRA also a solver and ":groupsN". name NULL: made of prefix and how. */
static enum cr_status add_how(struct cr_eval_rows *r, const cr_pool *p, const char *name,
                              const char *prefix, const char *how, size_t n, struct cr_error *err)
{
    char word[64];
    if (n >= sizeof word)
        return cr_error_set(err, CR_INVALID, "\"%.*s\" is no solver", 60, how);
    memcpy(word, how, n);
    word[n] = '\0';
    struct cr_eval_row row = {.kind = CR_EVAL_SOLVER, .pool = p, .view = best_view(p)};
    row.name = name ? cr_strdup(name) : cr_asprintf("%s%s", prefix, word);
    char *colon = strchr(word, ':');
    bool grouped = colon && !strncmp(colon + 1, "groups", 6);
    int view = colon && !grouped ? cr_view_by_name(colon + 1) : (int)row.view, solver;
    long long k;
    if (grouped && cr_parse_int(colon + 7, &k) && k >= 1 && k <= CR_POOL_MAX_N) {
        enum cr_status st = split_of(r, &row.pool, (int)k, err);
        if (st) {
            cr_free(row.name);
            return st;
        }
    } else if (grouped) {
        view = -1;
    }
    if (colon)
        *colon = '\0';
    solver = cr_solver_by_name(word);
    row.view = (enum cr_view)view;
    if (!strcmp(word, "oracle")) {
        row.kind = CR_EVAL_ORACLE;
    } else if (cr_parse_int(word, &k) && k >= 0 && k < p->n) {
        row.kind = CR_EVAL_SINGLE;
        row.single = (int)k;
    } else if (solver < 0 || view < 0) {
        cr_free(row.name);
        return cr_error_set(
            err, CR_INVALID,
            "\"%.*s\" should be uniform, softmax, meanw, simplex, knn, nearest, "
            "mean, pick, refine, oracle or an adapter from 0 to %d, with :qx or "
            ":middle behind it or nothing (of a plain LoRA :groupsN, its rank groups)",
            (int)n, how, p->n - 1);
    } else {
        row.solver = (enum cr_solver)solver;
    }
    return add(r, row, err);
}

/* The solvers that make sense for this kind of pool. */
static const char *default_solvers(const cr_pool *p)
{
    switch (p->kind) {
    case CR_POOL_LIBRARY:
        return "uniform,mean,nearest,knn,pick,refine,oracle";
    case CR_POOL_CENTROID:
        return "uniform,softmax,meanw,simplex,pick,refine";
    case CR_POOL_LORA:
        break;
    }
    return "uniform";
}

static enum cr_status add_pool_rows(struct cr_eval_rows *r, const struct cr_args *a, cr_model *m,
                                    const char *path, struct cr_error *err)
{
    const cr_pool *p;
    const char *list = cr_arg_text(a, CR_OPT_SOLVERS);
    enum cr_status st = pool_of(r, m, path, &p, err);
    if (st)
        return st;
    if (!list)
        list = default_solvers(p);
    for (int k = 0; !st && cr_arg_flag(a, CR_OPT_SINGLES) && k < p->n; k++) {
        char how[16];
        snprintf(how, sizeof how, "%d", k);
        st = add_how(r, p, NULL, "adapter ", how, strlen(how), err);
    }
    while (!st && *list) {
        size_t n = strcspn(list, ",");
        st = add_how(r, p, NULL, "", list, n, err);
        list += n + (list[n] == ',');
    }
    return st;
}

static bool is_pool_file(const char *path)
{
    cr_gguf *g;
    struct cr_str type = {"", 0};
    struct stat sb;
    if (stat(path, &sb) || !S_ISREG(sb.st_mode) || cr_gguf_open(&g, path, NULL))
        return false;
    cr_gguf_str(g, "general.type", false, &type, NULL);
    bool yes = cr_str_eq(type, "crayon.pool");
    cr_gguf_close(g);
    return yes;
}

/* NAME=FILE[:HOW]: HOW may itself hold a colon ("knn:qx"), so the file ends at the last place
 * where what stands before a colon exists. */
static enum cr_status add_given(struct cr_eval_rows *r, cr_model *m, const char *text,
                                struct cr_error *err)
{
    const char *eq = strchr(text, '=');
    if (!eq || eq == text || !eq[1])
        return cr_error_set(err, CR_INVALID,
                            "--row \"%s\" should be NAME=FILE, NAME=LORA:SCALE or NAME=POOL:SOLVER",
                            text);
    char *name = cr_strndup(text, (size_t)(eq - text)), *path = cr_strdup(eq + 1);
    enum cr_status st = name && path ? CR_OK : no_memory(err);
    const char *how = NULL;
    struct stat sb;
    while (!st && stat(path, &sb)) {
        char *colon = strrchr(path, ':');
        if (!colon)
            break;
        *colon = '\0';
        how = eq + 1 + (colon - path) + 1;
    }
    const cr_pool *p;
    if (!st && is_pool_file(path)) {
        st = pool_of(r, m, path, &p, err);
        if (!st && !how)
            how = p->kind == CR_POOL_LIBRARY    ? "knn"
                  : p->kind == CR_POOL_CENTROID ? "softmax"
                                                : "uniform";
        if (!st)
            st = add_how(r, p, name, "", how, strlen(how), err);
    } else if (!st) {
        st = add_adapter(r, m, name, eq + 1, err);
    }
    cr_free(name);
    cr_free(path);
    return st;
}

enum cr_status cr_eval_rows_make(struct cr_eval_rows *r, const struct cr_args *a,
                                 struct cr_setup *s, struct cr_error *err)
{
    size_t n;
    const char *const *texts = cr_arg_texts(a, CR_OPT_ADAPTER, &n);
    const char *palette = cr_arg_text(a, CR_OPT_PALETTE), *pool = cr_arg_text(a, CR_OPT_POOL);
    memset(r, 0, sizeof *r);
    enum cr_status st = add(r, (struct cr_eval_row){.name = cr_strdup("base")}, err);
    for (size_t i = 0; !st && i < n; i++)
        st = add_adapter(r, s->model, NULL, texts[i], err);
    if (!st && pool)
        st = add_pool_rows(r, a, s->model, pool, err);
    if (!st && palette)
        st = add_palette(r, s->model, palette, err);
    texts = cr_arg_texts(a, CR_OPT_ROW, &n);
    for (size_t i = 0; !st && i < n; i++)
        st = add_given(r, s->model, texts[i], err);
    return st ? st : add_shown(r, cr_arg_int(a, CR_OPT_WORKED), err);
}

void cr_eval_rows_deinit(struct cr_eval_rows *r)
{
    for (size_t i = 0; i < r->n; i++) {
        cr_free(r->v[i].name);
        cr_worked_deinit(&r->v[i].worked);
        if (!r->v[i].shown)
            cr_delta_free(r->v[i].delta);
    }
    for (size_t i = 0; i < r->n_pools; i++) {
        cr_pool_close(r->pools[i]);
        cr_free(r->pool_paths[i]);
    }
    cr_free(r->v);
    cr_free(r->pools);
    cr_free(r->pool_paths);
    memset(r, 0, sizeof *r);
}
