/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shelf of targets. Files are opened outside of the lock and put in whole; readers take
 * references. Pools are opened once each and stay until the shelf goes, so a target never outlives
 * its pool.
 */
#include "serve/models.h"

#include "adapt/palette.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "model/model.h"

#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { MAX_POOLS = 16, MAX_ADAPTERS = 64, MAX_FILE = 1 << 20 };

struct cr_shelf {
    cr_model *model;
    char *model_name;
    pthread_mutex_t lock;
    struct cr_target *v[CR_SHELF_MAX]; /* [0] is the model itself */
    size_t n;
    cr_pool *pools[MAX_POOLS];
    char *pool_paths[MAX_POOLS];
    size_t n_pools;
    struct cr_shelf_adapter adapters[MAX_ADAPTERS];
    size_t n_adapters;
};

/* ---- targets ------------------------------------------------------------------------------ */

struct cr_target *cr_target_ref(struct cr_target *t)
{
    if (t)
        atomic_fetch_add(&t->refs, 1);
    return t;
}

void cr_target_unref(struct cr_target *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) > 1)
        return;
    cr_delta_free(t->owned);
    cr_worked_deinit(&t->worked);
    cr_palette_close((cr_palette *)(uintptr_t)t->palette);
    cr_free(t->name);
    cr_free(t->path);
    cr_free(t);
}

cr_model *cr_target_model(const struct cr_target *t)
{
    return t->model;
}

struct cr_target *cr_shelf_make(cr_shelf *s, const char *name, cr_delta *delta,
                                struct cr_error *err)
{
    struct cr_target *t = cr_alloc0(1, sizeof *t);
    if (t) {
        atomic_store(&t->refs, 1);
        t->model = s->model;
        t->owned = delta;
        t->delta = delta;
        t->created = (int64_t)time(NULL);
        t->name = cr_strdup(name);
        t->path = cr_strdup("");
    }
    if (!t)
        cr_delta_free(delta);
    if (t && t->name && t->path)
        return t;
    cr_target_unref(t);
    cr_error_set(err, CR_NO_MEMORY, "out of memory for %s", name);
    return NULL;
}

/* ---- the shelf ---------------------------------------------------------------------------- */

enum cr_status cr_shelf_new(cr_shelf **out, cr_model *m, const char *model_name,
                            struct cr_error *err)
{
    *out = NULL;
    cr_shelf *s = cr_alloc0(1, sizeof *s);
    if (!s)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    pthread_mutex_init(&s->lock, NULL);
    s->model = m;
    s->model_name = cr_strdup(model_name);
    s->v[0] = s->model_name ? cr_shelf_make(s, "", NULL, err) : NULL;
    if (!s->v[0]) {
        cr_shelf_free(s);
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    s->n = 1;
    *out = s;
    return CR_OK;
}

void cr_shelf_free(cr_shelf *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++)
        cr_target_unref(s->v[i]);
    for (size_t i = 0; i < s->n_pools; i++) {
        cr_pool_close(s->pools[i]);
        cr_free(s->pool_paths[i]);
    }
    pthread_mutex_destroy(&s->lock);
    cr_free(s->model_name);
    cr_free(s);
}

const char *cr_shelf_model_name(const cr_shelf *s)
{
    return s->model_name;
}

char *cr_shelf_id(const cr_shelf *s, const struct cr_target *t)
{
    return t->name[0] ? cr_asprintf("%s:%s", s->model_name, t->name) : cr_strdup(s->model_name);
}

/* With the lock held: the place of a name, n when it is not there. */
static size_t place_of(const cr_shelf *s, const char *name)
{
    size_t i = 0;
    while (i < s->n && strcmp(s->v[i]->name, name) != 0)
        i++;
    return i;
}

struct cr_target *cr_shelf_find(cr_shelf *s, const char *id)
{
    size_t n = strlen(s->model_name);
    if (strncmp(id, s->model_name, n) != 0 || (id[n] && (id[n] != ':' || !id[n + 1])))
        return NULL;
    const char *name = id[n] ? id + n + 1 : "";
    pthread_mutex_lock(&s->lock);
    size_t i = place_of(s, name);
    if (i == s->n && strcmp(name, "latest") == 0)
        i = 0;
    struct cr_target *t = i < s->n ? cr_target_ref(s->v[i]) : NULL;
    pthread_mutex_unlock(&s->lock);
    return t;
}

size_t cr_shelf_all(cr_shelf *s, struct cr_target **v, size_t max)
{
    pthread_mutex_lock(&s->lock);
    size_t n = s->n < max ? s->n : max;
    for (size_t i = 0; i < n; i++)
        v[i] = cr_target_ref(s->v[i]);
    pthread_mutex_unlock(&s->lock);
    return n;
}

static size_t delta_bytes(const cr_model *m, const cr_delta *d)
{
    size_t floats = 0;
    for (int l = 0; d && l < d->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            floats +=
                (size_t)cr_delta_at(d, l, (enum cr_linear)i)->rank * (size_t)(w->n_in + w->n_out);
        }
    return floats * sizeof(float);
}

size_t cr_shelf_bytes(cr_shelf *s, size_t *n_palettes)
{
    size_t bytes = 0;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->n; i++)
        bytes += delta_bytes(s->model, s->v[i]->delta);
    *n_palettes = s->n - 1;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}

enum cr_status cr_shelf_put(cr_shelf *s, struct cr_target *t, struct cr_error *err)
{
    struct cr_target *old = t; /* what is dropped */
    pthread_mutex_lock(&s->lock);
    size_t i = place_of(s, t->name);
    bool room = i < CR_SHELF_MAX;
    if (i < s->n) {
        old = s->v[i];
        s->v[i] = t;
    } else if (room) {
        old = NULL;
        s->v[s->n++] = t;
    }
    pthread_mutex_unlock(&s->lock);
    cr_target_unref(old);
    return room ? CR_OK
                : cr_error_set(err, CR_LIMIT, "this server holds %d palettes at most",
                               CR_SHELF_MAX - 1);
}

enum cr_status cr_shelf_unload(cr_shelf *s, const char *name, struct cr_error *err)
{
    struct cr_target *old = NULL;
    pthread_mutex_lock(&s->lock);
    size_t i = name[0] ? place_of(s, name) : s->n;
    if (i < s->n) {
        old = s->v[i];
        s->n--;
        memmove(s->v + i, s->v + i + 1, (s->n - i) * sizeof *s->v);
    }
    pthread_mutex_unlock(&s->lock);
    cr_target_unref(old);
    return old ? CR_OK : cr_error_set(err, CR_NOT_FOUND, "nothing is loaded as \"%s\"", name);
}

/* ---- files -------------------------------------------------------------------------------- */

const cr_pool *cr_shelf_pool(cr_shelf *s, const char *path, struct cr_error *err)
{
    cr_pool *fresh = NULL;
    const cr_pool *found = NULL;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->n_pools && !found; i++)
        if (!path || strcmp(s->pool_paths[i], path) == 0)
            found = s->pools[i];
    pthread_mutex_unlock(&s->lock);
    if (found)
        return found;
    if (!path) {
        cr_error_set(err, CR_NOT_FOUND, "no pool is open: start the server with --pool");
        return NULL;
    }
    if (cr_pool_open(&fresh, s->model, path, err) != CR_OK)
        return NULL;
    cr_pool_hold(fresh);
    char *copy = cr_strdup(path);
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->n_pools && !found; i++) /* the same file by another path */
        if (strcmp(s->pools[i]->hash, fresh->hash) == 0)
            found = s->pools[i];
    if (!found && copy && s->n_pools < MAX_POOLS) {
        s->pool_paths[s->n_pools] = copy;
        s->pools[s->n_pools++] = fresh;
        found = fresh;
        fresh = NULL;
        copy = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    cr_free(copy);
    cr_pool_close(fresh);
    if (!found)
        cr_error_set(err, CR_LIMIT, "%s: this server opens %d pools at most", path, MAX_POOLS);
    return found;
}

/* "dir/mine.palette" is served as "mine". */
static char *name_of_path(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    size_t end = n;
    for (size_t i = begin + 1; i < n; i++)
        if (path[i] == '.')
            end = i;
    return cr_strndup(path + begin, end - begin);
}

bool cr_shelf_is_name(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n <= 128 && strcspn(name, "/\\:\"\r\n\t%") == n && name[0] != '.';
}

static enum cr_status open_palette(cr_shelf *s, struct cr_target *t, const char *path,
                                   const char *text, size_t len, struct cr_error *err)
{
    cr_palette *p;
    struct cr_sha256 h;
    enum cr_status status = cr_palette_open(&p, s->model, path, err);
    if (status != CR_OK)
        return status;
    t->palette = p;
    t->worked = p->worked_ids;
    p->worked_ids = (struct cr_worked){0};
    cr_sha256_init(&h);
    cr_sha256_add(&h, text, len);
    cr_sha256_hex(&h, t->sha256);
    if (p->n == 0)
        return CR_OK; /* it keeps the base model */
    if (!(t->pool = cr_shelf_pool(s, cr_palette_pool_path(p), err)))
        return err->status;
    status = cr_palette_delta(&t->owned, p, t->pool, err);
    t->delta = t->owned;
    return status;
}

static enum cr_status open_adapter(cr_shelf *s, struct cr_target *t, const char *path,
                                   struct cr_error *err)
{
    cr_adapter *a;
    float one = 1;
    enum cr_status status = cr_adapter_open(&a, s->model, path, err);
    if (status != CR_OK)
        return status;
    status = cr_adapters_combine(&t->owned, s->model, (const cr_adapter *const *)&a, &one, 1, err);
    t->delta = t->owned;
    cr_adapter_close(a);
    return status;
}

static enum cr_status open_target(cr_shelf *s, const char *name, const char *path,
                                  struct cr_target **out, struct cr_error *err)
{
    struct cr_error local;
    err = err ? err : &local;
    struct cr_target *t = cr_shelf_make(s, name, NULL, err);
    char *text = NULL;
    size_t len = 0;
    struct stat sb;
    if (!t)
        return CR_NO_MEMORY;
    cr_free(t->path);
    enum cr_status status = (t->path = cr_strdup(path)) ? CR_OK : CR_NO_MEMORY;
    if (status == CR_OK && stat(path, &sb) != 0)
        status = cr_error_errno(err, "cannot open", path);
    bool small = status == CR_OK && S_ISREG(sb.st_mode) && sb.st_size <= MAX_FILE;
    if (small)
        status = cr_file_read(path, MAX_FILE, &text, &len, err);
    if (status == CR_OK)
        status = small && len && text[0] == '{' ? open_palette(s, t, path, text, len, err)
                                                : open_adapter(s, t, path, err);
    cr_free(text);
    if (status != CR_OK)
        cr_target_unref(t);
    else
        *out = t;
    return status;
}

enum cr_status cr_shelf_load(cr_shelf *s, const char *name, const char *path, bool is_new,
                             struct cr_error *err)
{
    char *own = name ? cr_strdup(name) : name_of_path(path);
    struct cr_target *t = NULL;
    enum cr_status status = CR_OK;
    if (!own)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory for %s", path);
    if (!cr_shelf_is_name(own))
        status = cr_error_set(err, CR_INVALID,
                              "\"%s\" is no name for a palette: want 1 to 128 bytes without / \\ : "
                              "%% or quotes",
                              own);
    pthread_mutex_lock(&s->lock);
    size_t i = place_of(s, own);
    if (status == CR_OK && is_new && i < s->n)
        status = cr_error_set(err, CR_INVALID, "two palettes are named \"%s\": %s and %s", own,
                              s->v[i]->path, path);
    pthread_mutex_unlock(&s->lock);
    if (status == CR_OK)
        status = open_target(s, own, path, &t, err);
    if (status == CR_OK)
        status = cr_shelf_put(s, t, err);
    cr_free(own);
    return status;
}

enum cr_status cr_shelf_reload(cr_shelf *s, size_t *n_changed, struct cr_error *err)
{
    struct cr_target *v[CR_SHELF_MAX];
    size_t n = cr_shelf_all(s, v, CR_SHELF_MAX), changed = 0;
    enum cr_status worst = CR_OK;
    for (size_t i = 0; i < n; i++) {
        struct cr_target *t = NULL;
        struct cr_error one;
        if (!v[i]->path[0])
            continue;
        enum cr_status status = open_target(s, v[i]->name, v[i]->path, &t, &one);
        bool same = status == CR_OK && t->sha256[0] && strcmp(t->sha256, v[i]->sha256) == 0;
        if (same) {
            cr_target_unref(t); /* unchanged: its cache entries stay good */
        } else if (status == CR_OK) {
            status = cr_shelf_put(s, t, &one);
            changed++;
        }
        if (status != CR_OK && worst == CR_OK) {
            worst = status;
            if (err)
                *err = one;
        }
    }
    for (size_t i = 0; i < n; i++)
        cr_target_unref(v[i]);
    if (n_changed)
        *n_changed = changed;
    return worst;
}

/* ---- the model's own adapters --------------------------------------------------------------- */

static enum cr_status combine(cr_shelf *s, const struct cr_shelf_adapter *v, size_t n,
                              struct cr_target **out, struct cr_error *err)
{
    const cr_adapter *adapters[MAX_ADAPTERS];
    float scales[MAX_ADAPTERS];
    size_t used = 0;
    cr_delta *delta = NULL;
    for (size_t i = 0; i < n; i++) {
        if (v[i].scale == 0)
            continue;
        adapters[used] = v[i].adapter;
        scales[used++] = v[i].scale;
    }
    enum cr_status status =
        used ? cr_adapters_combine(&delta, s->model, adapters, scales, used, err) : CR_OK;
    if (status == CR_OK && !(*out = cr_shelf_make(s, "", delta, err)))
        status = CR_NO_MEMORY;
    return status;
}

enum cr_status cr_shelf_set_adapters(cr_shelf *s, const struct cr_shelf_adapter *v, size_t n,
                                     struct cr_error *err)
{
    struct cr_target *t;
    if (n > MAX_ADAPTERS)
        return cr_error_set(err, CR_LIMIT, "want at most %d adapters, got %zu", MAX_ADAPTERS, n);
    enum cr_status status = combine(s, v, n, &t, err);
    if (status != CR_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    s->n_adapters = n;
    for (size_t i = 0; i < n; i++)
        s->adapters[i] = v[i];
    pthread_mutex_unlock(&s->lock);
    return cr_shelf_put(s, t, err);
}

/* A copy of the adapters with the scales of a request. */
static enum cr_status with_scales(cr_shelf *s, const int *ids, const float *scales, size_t n,
                                  struct cr_shelf_adapter *v, size_t *n_v, struct cr_error *err)
{
    pthread_mutex_lock(&s->lock);
    *n_v = s->n_adapters;
    for (size_t i = 0; i < *n_v; i++) {
        v[i] = s->adapters[i];
        v[i].scale = 0;
    }
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        if ((size_t)ids[i] >= *n_v)
            return cr_error_set(err, CR_INVALID, "lora: there is no adapter %d, see /lora-adapters",
                                ids[i]);
        v[ids[i]].scale = scales[i];
    }
    return CR_OK;
}

enum cr_status cr_shelf_with_scales(cr_shelf *s, const int *ids, const float *scales, size_t n,
                                    struct cr_target **out, struct cr_error *err)
{
    struct cr_shelf_adapter v[MAX_ADAPTERS];
    size_t n_v;
    enum cr_status status = with_scales(s, ids, scales, n, v, &n_v, err);
    return status == CR_OK ? combine(s, v, n_v, out, err) : status;
}

enum cr_status cr_shelf_set_scales(cr_shelf *s, const int *ids, const float *scales, size_t n,
                                   struct cr_error *err)
{
    struct cr_shelf_adapter v[MAX_ADAPTERS];
    size_t n_v;
    enum cr_status status = with_scales(s, ids, scales, n, v, &n_v, err);
    return status == CR_OK ? cr_shelf_set_adapters(s, v, n_v, err) : status;
}

json_t *cr_shelf_adapters_json(cr_shelf *s)
{
    json_t *list = json_array();
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->n_adapters; i++)
        json_array_append_new(list, json_pack("{s:i, s:s, s:f}", "id", (int)i, "path",
                                              s->adapters[i].path, "scale",
                                              (double)s->adapters[i].scale));
    pthread_mutex_unlock(&s->lock);
    return list;
}
