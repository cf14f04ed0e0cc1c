/* SPDX-License-Identifier: Apache-2.0 */
/* Finding and opening the model, adapters and palette of a command line; the summary line. */
#include "common.h"

#include "device.h"

#include "adapt/adapter.h"
#include "adapt/palette.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "messages.h"
#include "model/session.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define EMBEDDED "crayon-15m-q8_0.gguf"
enum { MAX_PROMPT = 16 << 20, DEFAULT_CTX = 4096 };

/* ---- where models are ---- */

char *cr_models_dir(void)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (data && data[0] == '/')
        return cr_asprintf("%s/crayon/models", data);
    return home && home[0] == '/' ? cr_asprintf("%s/.local/share/crayon/models", home) : NULL;
}

static bool exists(const char *path)
{
    return path && access(path, F_OK) == 0;
}

/* Takes over `path`: returns it if the file exists, else frees it. */
static char *if_exists(char *path)
{
    if (exists(path))
        return path;
    cr_free(path);
    return NULL;
}

/* The folder of the running program, without a last slash. */
static char *program_dir(void)
{
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return NULL;
    exe[n] = '\0';
    char *slash = strrchr(exe, '/');
    return slash ? cr_strndup(exe, (size_t)(slash - exe)) : NULL;
}

/* A file that comes with the program, or NULL. */
static char *shipped(const char *name)
{
    /* installed beside the program, built in the source tree (build/ or build/PRESET/), installed
     * at the configured place */
    static const char *const near[] = {"../share/crayon/models", "../models", "../../models"};
    char *dir = program_dir(), *found = NULL;
    for (size_t i = 0; dir && !found && i < sizeof near / sizeof *near; i++)
        found = if_exists(cr_asprintf("%s/%s/%s", dir, near[i], name));
    cr_free(dir);
    if (!found)
        found = if_exists(cr_asprintf(CRAYON_DATADIR "/models/%s", name));
    char plain[PATH_MAX]; /* without the "..", for messages */
    if (!found || !realpath(found, plain))
        return found;
    cr_free(found);
    return cr_strdup(plain);
}

enum cr_status cr_model_locate(const char *name, char **path, struct cr_error *err)
{
    *path = NULL;
    if (!name) {
        *path = shipped(EMBEDDED);
        return *path ? CR_OK
                     : cr_error_set(err, CR_NOT_FOUND,
                                    "no model given and the embedded " EMBEDDED
                                    " is not installed; name one with -m");
    }
    char *dir = strchr(name, '/') ? NULL : cr_models_dir();
    *path = if_exists(cr_strdup(name));
    if (!*path && dir)
        *path = if_exists(cr_asprintf("%s/%s", dir, name));
    if (!*path && dir)
        *path = if_exists(cr_asprintf("%s/%s.gguf", dir, name));
    enum cr_status st = CR_OK;
    if (!*path)
        st = cr_error_set(err, CR_NOT_FOUND, "model %s: not found here%s%s", name,
                          dir ? " or in " : "", dir ? dir : "");
    cr_free(dir);
    return st;
}

char *cr_pool_beside(const char *model_path)
{
    size_t n = strlen(model_path);
    if (n > 5 && !strcmp(model_path + n - 5, ".gguf"))
        n -= 5;
    const char *slash = strrchr(model_path, '/');
    size_t least = slash ? (size_t)(slash - model_path) + 1 : 0, whole = n;
    for (int tries = 0; tries < 2 && n > least; tries++) {
        char *found = if_exists(cr_asprintf("%.*s-pool.gguf", (int)n, model_path));
        if (found)
            return found;
        do
            n--;
        while (n > least && model_path[n] != '-');
    }
    if (whole <= least)
        return NULL;
    char *name = cr_asprintf("%.*s-pool.gguf", (int)(whole - least), model_path + least);
    char *found = name ? shipped(name) : NULL;
    cr_free(name);
    return found;
}

enum cr_status cr_split_scale(const char *text, char **path, float *scale, struct cr_error *err)
{
    const char *colon = strrchr(text, ':');
    double v = 1;
    bool split = colon && colon > text && !exists(text);
    if (split && !cr_parse_real(colon + 1, &v))
        return cr_error_set(err, CR_INVALID,
                            "invalid scale \"%s\" in \"%s\"; should be a number, as in FILE:0.5",
                            colon + 1, text);
    if (v < -100 || v > 100)
        return cr_error_set(err, CR_INVALID, "scale %g in \"%s\" is not from -100 to 100", v, text);
    *path = split ? cr_strndup(text, (size_t)(colon - text)) : cr_strdup(text);
    *scale = (float)v;
    return *path ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "out of memory");
}

uint32_t cr_cli_type(const struct cr_args *a)
{
    const char *name = cr_arg_text(a, CR_OPT_TYPE);
    return !strcmp(name, "f32")    ? CR_F32
           : !strcmp(name, "bf16") ? CR_BF16
           : !strcmp(name, "q8_0") ? CR_Q8_0
                                   : CR_F16;
}

/* ---- opening ---- */

static enum cr_status open_model(struct cr_setup *s, const struct cr_args *a, unsigned flags,
                                 struct cr_error *err)
{
    const char *name = cr_arg_text(a, CR_OPT_MODEL);
    enum cr_status st = cr_model_locate(name, &s->model_path, err);
    if (st)
        return st;
    if (!name && !(flags & CR_SETUP_SILENT))
        cr_note("using the embedded model %s", s->model_path);
    struct cr_model_options opt = {.vocab_only = (flags & CR_SETUP_VOCAB) != 0};
    if (a->v[CR_OPT_THREADS].opt)
        opt.n_threads = cr_arg_int(a, CR_OPT_THREADS);
    if (a->v[CR_OPT_CPU].opt && cr_arg_given(a, CR_OPT_CPU))
        opt.cpu = cr_arg_text(a, CR_OPT_CPU);
    if (a->v[CR_OPT_PAGES].opt) {
        const char *pages = cr_arg_text(a, CR_OPT_PAGES);
        opt.pages = !strcmp(pages, "map")    ? CR_PAGES_MAP
                    : !strcmp(pages, "huge") ? CR_PAGES_HUGE
                                             : CR_PAGES_AUTO;
    }
    if (a->v[CR_OPT_KV].opt && !strcmp(cr_arg_text(a, CR_OPT_KV), "q8_0"))
        opt.kv = CR_KV_Q8_0;
    if (a->v[CR_OPT_TEMPLATE].opt)
        opt.template_name = cr_arg_text(a, CR_OPT_TEMPLATE);
    return cr_model_open(&s->model, s->model_path, &opt, err);
}

static enum cr_status open_adapters(struct cr_setup *s, const struct cr_args *a,
                                    struct cr_error *err)
{
    size_t n;
    const char *const *texts = cr_arg_texts(a, CR_OPT_ADAPTER, &n);
    if (!n)
        return CR_OK;
    s->adapters = cr_alloc0(n + 1, sizeof *s->adapters); /* one more for the palette's */
    s->scales = cr_alloc0(n + 1, sizeof *s->scales);
    if (!s->adapters || !s->scales)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++) {
        char *path;
        enum cr_status st = cr_split_scale(texts[i], &path, &s->scales[i], err);
        if (st)
            return st;
        st = cr_adapter_open(&s->adapters[i], s->model, path, err);
        cr_free(path);
        if (st)
            return st;
        s->n_adapters++;
    }
    return CR_OK;
}

static enum cr_status open_palette(struct cr_setup *s, const struct cr_args *a, cr_delta **delta,
                                   struct cr_error *err)
{
    const char *path = cr_arg_text(a, CR_OPT_PALETTE);
    if (!path)
        return CR_OK;
    enum cr_status st = cr_palette_open(&s->palette, s->model, path, err);
    if (st)
        return st;
    const char *pool = a->v[CR_OPT_POOL].opt ? cr_arg_text(a, CR_OPT_POOL) : NULL;
    if (!pool)
        pool = cr_palette_pool_path(s->palette);
    if (!*pool)
        return CR_OK; /* it keeps the base model */
    st = cr_pool_open(&s->pool, s->model, pool, err);
    if (st)
        return cr_error_prefix(err, st, "%s: its pool", path);
    st = cr_palette_delta(delta, s->palette, s->pool, err);
    return st ? cr_error_prefix(err, st, "%s", path) : CR_OK;
}

static enum cr_status open_delta(struct cr_setup *s, const struct cr_args *a, unsigned flags,
                                 struct cr_error *err)
{
    cr_delta *blend = NULL;
    cr_adapter *as_adapter = NULL;
    enum cr_status st = open_adapters(s, a, err);
    if (!st && (flags & CR_SETUP_DELTA))
        st = open_palette(s, a, &blend, err);
    if (st || !s->n_adapters) {
        s->delta = blend;
        return st;
    }
    size_t n = s->n_adapters;
    if (blend) { /* adapters beside a palette: one sum of all */
        st = cr_adapter_from_delta(&as_adapter, s->model, blend, "palette", err);
        s->adapters[n] = as_adapter;
        s->scales[n] = 1;
        n++;
    }
    if (!st)
        st = cr_adapters_combine(&s->delta, s->model, (const cr_adapter *const *)s->adapters,
                                 s->scales, n, err);
    s->adapters[s->n_adapters] = NULL;
    cr_adapter_close(as_adapter);
    cr_delta_free(blend);
    return st;
}

enum cr_status cr_setup_open(struct cr_setup *s, const struct cr_args *a, unsigned flags,
                             struct cr_error *err)
{
    memset(s, 0, sizeof *s);
    double start = cr_now();
    enum cr_status st = open_model(s, a, flags, err);
    if (!st)
        st = cr_device_compute(&s->compute, s->model, a, err);
    if (!st && (flags & (CR_SETUP_DELTA | CR_SETUP_ADAPTERS)))
        st = open_delta(s, a, flags, err);
    s->load_ms = 1e3 * (cr_now() - start);
    return st;
}

enum cr_status cr_setup_scope(struct cr_setup *s, struct cr_error *err)
{
    if (!s->palette || s->pool || !s->palette->q_c || !*s->palette->pool_path)
        return CR_OK;
    enum cr_status st = cr_pool_open(&s->pool, s->model, s->palette->pool_path, err);
    return cr_error_prefix(err, st, "the palette's pool");
}

void cr_setup_close(struct cr_setup *s)
{
    cr_delta_free(s->delta);
    cr_palette_close(s->palette);
    cr_pool_close(s->pool);
    for (size_t i = 0; i < s->n_adapters; i++)
        cr_adapter_close(s->adapters[i]);
    cr_free(s->adapters);
    cr_free(s->scales);
    cr_device_free_compute(s->compute);
    cr_model_close(s->model);
    cr_free(s->model_path);
    memset(s, 0, sizeof *s);
}

enum cr_status cr_setup_session(const struct cr_setup *s, const struct cr_args *a, size_t need,
                                cr_session **out, struct cr_error *err)
{
    int own = cr_model_info(s->model)->n_ctx_train, n = cr_arg_int(a, CR_OPT_CTX);
    if (!n && !need)
        n = own < DEFAULT_CTX ? own : DEFAULT_CTX;
    else if (!n)
        n = need < (size_t)own ? (int)need : own;
    if (n > own)
        cr_warn("a context of %d tokens, but %s was trained for %d", n, s->model_path, own);
    enum cr_status st = cr_session_new(out, s->model, n, err);
    if (!st)
        cr_session_set_delta(*out, s->delta);
    return st;
}

/* ---- the end of a run ---- */

void cr_floats_hash(const float *v, size_t n, char out[9])
{
    struct cr_sha256 sha;
    char hex[65];
    cr_sha256_init(&sha);
    cr_sha256_add(&sha, v, n * sizeof *v);
    cr_sha256_hex(&sha, hex);
    memcpy(out, hex, 8);
    out[8] = '\0';
}

void cr_logits_hash(const cr_session *s, char out[9])
{
    const float *logits = s ? cr_session_logits(s) : NULL;
    memcpy(out, "-", 2);
    if (logits)
        cr_floats_hash(logits, (size_t)cr_model_info(cr_session_model(s))->n_vocab, out);
}

uint64_t cr_peak_bytes(void)
{
    struct rusage use;
    return getrusage(RUSAGE_SELF, &use) ? 0 : (uint64_t)use.ru_maxrss * 1024;
}

const char *cr_bytes_text(uint64_t bytes, char out[16])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    for (; v >= 1024 && u + 1 < sizeof units / sizeof *units; u++)
        v /= 1024;
    snprintf(out, 16, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return out;
}

void cr_summary(const struct cr_model_info *info, size_t prefill_tokens, double prefill_ms,
                size_t decode_tokens, double decode_ms, const char *logits)
{
    char speed[128] = "", peak[16], copy[16], pages[64] = "";
    double prefill = prefill_ms > 0 ? 1e3 * (double)prefill_tokens / prefill_ms : 0;
    double decode = decode_ms > 0 ? 1e3 * (double)decode_tokens / decode_ms : 0;
    if (decode_tokens)
        snprintf(speed, sizeof speed, ", decode %.1f tok/s, %.2f GB/s", decode,
                 1e-9 * decode * (double)info->weight_bytes);
    if (info->copy_bytes)
        snprintf(pages, sizeof pages, ", weights copied to huge pages, %s",
                 cr_bytes_text(info->copy_bytes, copy));
    bool hash = logits && *logits != '-';
    cr_note("%zu+%zu tokens, prefill %.1f tok/s%s, peak %s%s%s%s", prefill_tokens, decode_tokens,
            prefill, speed, cr_bytes_text(cr_peak_bytes(), peak), pages, hash ? ", logits " : "",
            hash ? logits : "");
}

enum cr_status cr_read_prompt(const struct cr_args *a, char **text, size_t *len,
                              struct cr_error *err)
{
    const char *given = cr_arg_text(a, CR_OPT_PROMPT);
    if (given) {
        *len = strlen(given);
        *text = cr_strdup(given);
        return *text ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "out of memory");
    }
    if (isatty(STDIN_FILENO) == 1)
        cr_note("reading the prompt from the terminal; Ctrl-D ends it");
    enum cr_status st = cr_file_read("-", MAX_PROMPT, text, len, err);
    if (!st && *len && (*text)[*len - 1] == '\n')
        (*text)[--*len] = '\0';
    if (!st && *len && (*text)[*len - 1] == '\r')
        (*text)[--*len] = '\0';
    return st;
}
