/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon serve`: the model and its palettes behind the OpenAI API until SIGTERM or Ctrl-C, which
 * let the accepted requests finish. Prints the address on standard output when it is ready.
 */
#include "serve/serve.h"
#ifdef CRAYON_SERVE
#include "adapt/palette.h"
#include "adapt/pool.h"
#include "base/mem.h"
#include "common.h"
#include "messages.h"
#include "verbs.h"
#ifdef CRAYON_ROUTE
#include "route/offline.h"
#endif

#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { DRAIN_MS = 30000 };

struct kept_palette {
    char *name;
    cr_palette *palette;
    cr_pool *pool; /* NULL when it is shared with an earlier palette */
    cr_delta *delta;
};

struct shelf {
    struct kept_palette *v;
    struct cr_served_palette *served;
    size_t n;
};

/* "dir/mine.palette" is served as "mine". */
static char *palette_name(const char *path)
{
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    const char *dot = strrchr(base, '.');
    return cr_strndup(base, dot && dot > base ? (size_t)(dot - base) : strlen(base));
}

/* Palettes of one pool share its mapping. */
static const cr_pool *pool_for(struct shelf *s, cr_model *m, struct kept_palette *k,
                               struct cr_error *err)
{
    for (struct kept_palette *e = s->v; e < k; e++)
        if (e->pool && strcmp(e->pool->hash, k->palette->pool_hash) == 0)
            return e->pool;
    if (cr_pool_open(&k->pool, m, cr_palette_pool_path(k->palette), err) != CR_OK)
        return NULL;
    return k->pool;
}

static enum cr_status open_palettes(struct shelf *s, cr_model *m, const char *const *paths,
                                    size_t n, struct cr_error *err)
{
    s->v = cr_alloc0(n + 1, sizeof *s->v);
    s->served = cr_alloc0(n + 1, sizeof *s->served);
    if (!s->v || !s->served)
        return cr_error_set(err, CR_NO_MEMORY, "palettes: out of memory");
    for (size_t i = 0; i < n; i++) {
        struct kept_palette *k = &s->v[i];
        s->n = i + 1;
        if (!(k->name = palette_name(paths[i])))
            return cr_error_set(err, CR_NO_MEMORY, "palettes: out of memory");
        for (size_t e = 0; e < i; e++)
            if (strcmp(s->v[e].name, k->name) == 0)
                return cr_error_set(err, CR_INVALID, "two palettes are named \"%s\": %s and %s",
                                    k->name, paths[e], paths[i]);
        enum cr_status status = cr_palette_open(&k->palette, m, paths[i], err);
        if (status != CR_OK)
            return status;
        s->served[i] = (struct cr_served_palette){k->name, NULL};
        if (k->palette->n == 0)
            continue; /* it keeps the base model */
        const cr_pool *pool = pool_for(s, m, k, err);
        if (!pool)
            return err->status;
        status = cr_palette_delta(&k->delta, k->palette, pool, err);
        if (status != CR_OK)
            return status;
        s->served[i].delta = k->delta;
    }
    return CR_OK;
}

static void close_palettes(struct shelf *s)
{
    for (size_t i = s->n; i-- > 0;) {
        cr_delta_free(s->v[i].delta);
        cr_palette_close(s->v[i].palette);
        cr_free(s->v[i].name);
    }
    for (size_t i = s->n; i-- > 0;)
        cr_pool_close(s->v[i].pool);
    cr_free(s->v);
    cr_free(s->served);
}

static void on_request(void *ud, const char *line)
{
    (void)ud;
    cr_note("%s", line);
}

/* The key: one line of a file, so that it never stands in the process list. */
static enum cr_status read_key(const char *path, char **key, struct cr_error *err)
{
    size_t n;
    *key = NULL;
    if (!path)
        return CR_OK;
    enum cr_status status = cr_file_read(path, 4096, key, &n, err);
    if (status != CR_OK)
        return status;
    (*key)[strcspn(*key, "\r\n")] = '\0';
    if ((*key)[0] == '\0')
        return cr_error_set(err, CR_INVALID, "%s: the first line, which is the key, is empty",
                            path);
    return CR_OK;
}

/* From here on only the listening socket and what it accepts can be used, by any thread. */
static enum cr_status go_offline(cr_server *server, struct cr_error *err)
{
#ifdef CRAYON_ROUTE
    enum cr_status status = cr_offline_enter(CR_OFFLINE_LISTENING, err);
#else
    enum cr_status status =
        cr_error_set(err, CR_UNSUPPORTED, "--offline: this program was built without routing");
#endif
    if (status != CR_OK)
        cr_server_stop(server, 0);
    return status;
}

static enum cr_status serve(const struct cr_args *a, struct cr_setup *setup, struct shelf *shelf,
                            sigset_t *stops, struct cr_error *err)
{
    char *key = NULL;
    char *name = NULL;
    cr_server *server = NULL;
    size_t n_paths;
    const char *const *paths = cr_arg_texts(a, CR_OPT_PALETTE, &n_paths);
    enum cr_status status = open_palettes(shelf, setup->model, paths, n_paths, err);
    if (status == CR_OK)
        status = read_key(cr_arg_text(a, CR_OPT_SERVER_KEY_FILE), &key, err);
    if (status == CR_OK && !(name = palette_name(setup->model_path)))
        status = cr_error_set(err, CR_NO_MEMORY, "serve: out of memory");
    if (status == CR_OK) {
        const char *alias = cr_arg_text(a, CR_OPT_ALIAS);
        struct cr_serve_options opt = {.model = setup->model,
                                       .model_name = alias ? alias : name,
                                       .palettes = shelf->served,
                                       .n_palettes = shelf->n,
                                       .delta = setup->delta,
                                       .host = cr_arg_text(a, CR_OPT_HOST),
                                       .port = cr_arg_int(a, CR_OPT_PORT),
                                       .key = key,
                                       .n_ctx = cr_arg_int(a, CR_OPT_CTX),
                                       .max_queue = cr_arg_int(a, CR_OPT_QUEUE),
                                       .on_request = on_request};
        status = cr_server_start(&server, &opt, err);
        if (status == CR_OK && cr_arg_flag(a, CR_OPT_OFFLINE))
            status = go_offline(server, err);
        if (status == CR_OK) {
            const char *host = cr_arg_text(a, CR_OPT_HOST);
            bool v6 = strchr(host, ':') != NULL;
            char url[300];
            int n_url = snprintf(url, sizeof url, "http://%s%s%s:%d/v1\n", v6 ? "[" : "", host,
                                 v6 ? "]" : "", cr_server_port(server));
            cr_out_text(url, (size_t)n_url); /* flushed: a script waits for it */
            cr_note("serving %s and %zu palettes; SIGTERM or Ctrl-C ends it", opt.model_name,
                    shelf->n);
            int got;
            sigwait(stops, &got);
            cr_note("finishing what was accepted");
            cr_server_stop(server, DRAIN_MS);
        }
    }
    if (key)
        memset(key, 0, strlen(key));
    cr_free(key);
    cr_free(name);
    return status;
}

int cr_cli_serve(const struct cr_args *a)
{
    struct cr_setup setup = {0};
    struct shelf shelf = {0};
    struct cr_error err = {.status = CR_OK};
    /* Blocked before any thread starts, so that only sigwait takes them. */
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stops, NULL);
    enum cr_status status = cr_setup_open(&setup, a, CR_SETUP_ADAPTERS, &err);
    if (status == CR_OK)
        status = serve(a, &setup, &shelf, &stops, &err);
    close_palettes(&shelf);
    cr_setup_close(&setup);
    return status == CR_OK ? 0 : cr_fail(&err);
}
#endif
