/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon serve`: the model and its palettes behind HTTP until SIGTERM or Ctrl-C, which let the
 * accepted requests finish; SIGHUP reads the palettes again. Prints the address on standard output
 * when it is ready.
 */
#include "serve/serve.h"
#ifdef CRAYON_SERVE
#include "base/mem.h"
#include "common.h"
#include "messages.h"
#include "notify.h"
#include "verbs.h"
#ifdef CRAYON_ROUTE
#include "route/offline.h"
#include "routing.h"
#endif

#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    DRAIN_MS = 30000,
    MAPPED_BYTES = 1 << 20, /* blocks of that size are mapped, and given back when they are freed */
    KEPT_BYTES = 4 << 20    /* so much free memory stays at the end of the heap */
};

/* glibc has a heap for each thread, whose free memory serves no other, and raises its bounds by
 * what it sees freed: a server that runs for long would hold on to more and more that nobody uses.
 */
static void keep_memory_flat(void)
{
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES);
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
#endif
}

/* "dir/model.gguf" is served as "model". */
static char *stem(const char *path)
{
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    const char *dot = strrchr(base, '.');
    return cr_strndup(base, dot && dot > base ? (size_t)(dot - base) : strlen(base));
}

static void on_request(void *ud, const char *line)
{
    const bool *json = ud;
    if (!*json)
        cr_note("%s", line);
    else if (!cr_msg_quiet())
        fprintf(stderr, "%s\n", line);
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

static void wipe(char *key)
{
    if (key)
        memset(key, 0, strlen(key));
    cr_free(key);
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

static void print_address(const char *host, int port)
{
    bool v6 = strchr(host, ':') != NULL;
    char url[300];
    int n = snprintf(url, sizeof url, "http://%s%s%s:%d/v1\n", v6 ? "[" : "", host, v6 ? "]" : "",
                     port);
    cr_out_text(url, (size_t)n); /* flushed: a script waits for it */
}

/* The next signal; meanwhile systemd hears that the process is alive. */
static int next_signal(const sigset_t *signals, int notify, int watchdog_ms)
{
    struct timespec t = {.tv_sec = watchdog_ms / 1000,
                         .tv_nsec = (long)(watchdog_ms % 1000) * 1000000};
    for (;;) {
        int got = watchdog_ms ? sigtimedwait(signals, NULL, &t) : sigwaitinfo(signals, NULL);
        if (got > 0)
            return got;
        if (errno == EAGAIN)
            cr_notify_send(notify, "WATCHDOG=1");
    }
}

/* Until SIGTERM or SIGINT; SIGHUP reads the palettes again. */
static void wait_for_end(cr_server *server, const sigset_t *signals, int notify)
{
    int watchdog_ms = notify >= 0 ? cr_notify_watchdog_ms() : 0;
    while (next_signal(signals, notify, watchdog_ms) == SIGHUP) {
        struct cr_error err;
        size_t n = 0;
        if (cr_server_reload(server, &n, &err) != CR_OK)
            cr_warn("reload: %s", err.msg);
        cr_note("reload: %zu palettes have changed", n);
    }
    cr_notify_send(notify, "STOPPING=1");
    cr_note("finishing what was accepted");
    cr_server_stop(server, DRAIN_MS);
}

static enum cr_status run(const struct cr_args *a, struct cr_serve_options *opt, sigset_t *signals,
                          struct cr_error *err)
{
    cr_server *server = NULL;
    char bytes[16];
    int notify = cr_notify_open(); /* while sockets can still be made */
    bool offline = cr_arg_flag(a, CR_OPT_OFFLINE);
#ifdef CRAYON_ROUTE
    if (offline) /* before any thread starts; seccomp follows when it listens */
        cr_offline_landlock(opt->port);
#endif
    enum cr_status status = cr_notify_socket(&opt->listen_fd, err);
    opt->listen_fd = opt->listen_fd > 0 ? opt->listen_fd : 0;
    if (status == CR_OK)
        status = cr_server_start(&server, opt, err);
    if (status == CR_OK && offline)
        status = go_offline(server, err);
    if (status != CR_OK)
        return status;
    cr_notify_send(notify, "READY=1");
    print_address(opt->host, cr_server_port(server));
    cr_note("serving %s and %zu palettes, %d requests at a time in %s; SIGTERM or Ctrl-C ends it",
            opt->model_name, opt->n_palettes, opt->parallel,
            cr_bytes_text(cr_server_bytes(opt), bytes));
    wait_for_end(server, signals, notify);
    if (notify >= 0)
        close(notify);
    return CR_OK;
}

static enum cr_status serve(const struct cr_args *a, struct cr_setup *setup, sigset_t *signals,
                            struct cr_error *err)
{
    char *key = NULL, *admin_key = NULL, *name = stem(setup->model_path);
    size_t n_palettes, n_adapters;
    const char *const *palettes = cr_arg_texts(a, CR_OPT_PALETTE, &n_palettes);
    const char *const *paths = cr_arg_texts(a, CR_OPT_ADAPTER, &n_adapters);
    const char *alias = cr_arg_text(a, CR_OPT_ALIAS);
    bool log_json = !strcmp(cr_arg_text(a, CR_OPT_LOG), "json");
    struct cr_serve_adapter *adapters = cr_alloc0(setup->n_adapters + 1, sizeof *adapters);
    enum cr_status status =
        name && adapters ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "serve: out of memory");
    for (size_t i = 0; i < setup->n_adapters && status == CR_OK; i++)
        adapters[i] = (struct cr_serve_adapter){setup->adapters[i], paths[i], setup->scales[i]};
    if (status == CR_OK)
        status = read_key(cr_arg_text(a, CR_OPT_SERVER_KEY_FILE), &key, err);
    if (status == CR_OK)
        status = read_key(cr_arg_text(a, CR_OPT_ADMIN_KEY_FILE), &admin_key, err);
    struct cr_serve_options opt = {.model = setup->model,
                                   .model_name = alias ? alias : name,
                                   .palettes = palettes,
                                   .n_palettes = n_palettes,
                                   .adapters = adapters,
                                   .n_adapters = setup->n_adapters,
                                   .pool = cr_arg_text(a, CR_OPT_POOL),
                                   .adapter_dir = cr_arg_text(a, CR_OPT_ADAPTER_DIR),
                                   .host = cr_arg_text(a, CR_OPT_HOST),
                                   .port = cr_arg_int(a, CR_OPT_PORT),
                                   .key = key,
                                   .admin_key = admin_key,
                                   .n_ctx = cr_arg_int(a, CR_OPT_CTX),
                                   .parallel = cr_arg_int(a, CR_OPT_PARALLEL),
                                   .max_queue = cr_arg_int(a, CR_OPT_QUEUE),
                                   .log_json = log_json,
                                   .on_request = on_request,
                                   .ud = &log_json};
#ifdef CRAYON_ROUTE
    if (status == CR_OK)
        status = cr_routing_open(&opt.router, a, err);
#endif
    if (status == CR_OK)
        status = run(a, &opt, signals, err);
#ifdef CRAYON_ROUTE
    cr_router_free(opt.router);
#endif
    wipe(key);
    wipe(admin_key);
    cr_free(adapters);
    cr_free(name);
    return status;
}

int cr_cli_serve(const struct cr_args *a)
{
    struct cr_setup setup = {0};
    struct cr_error err = {.status = CR_OK};
    keep_memory_flat();
    /* Blocked before any thread starts, so that only sigwait takes them. */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    enum cr_status status = cr_setup_open(&setup, a, CR_SETUP_ADAPTERS, &err);
    if (status == CR_OK)
        status = serve(a, &setup, &signals, &err);
    cr_setup_close(&setup);
    return status == CR_OK ? 0 : cr_fail(&err);
}
#endif
