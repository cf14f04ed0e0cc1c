/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon list`: the models, pools and adapters of the models folder, one line each. Only headers
 * are read, so a folder of large models is listed at once.
 */
#include "base/mem.h"
#include "common.h"
#include "info.h"
#include "messages.h"
#include "model/gguf.h"
#include "tasks.h"
#include "verbs.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { ABOUT = 128 };

static bool ends(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n > k && !strcmp(s + n - k, end);
}

/* A string key for printing; "" where the file has none. */
static const char *text_of(const cr_gguf *g, const char *key, char *out, size_t size)
{
    struct cr_str s = {"", 0};
    if (cr_gguf_str(g, key, false, &s, NULL))
        s = (struct cr_str){"", 0};
    return cr_facts_clean(s.p, s.n, out, size);
}

static uint32_t number_of(const cr_gguf *g, const char *key)
{
    uint32_t v = 0;
    return cr_gguf_u32(g, key, false, &v, NULL) ? 0 : v;
}

/* What is in a GGUF file, in a few words. */
static const char *about_gguf(const cr_gguf *g, enum cr_info_kind kind, char *out, size_t size)
{
    char arch[24], word[24], key[64];
    text_of(g, "general.architecture", arch, sizeof arch);
    if (kind == CR_INFO_POOL) {
        snprintf(out, size, "%s, %s pool, %u adapters of rank %u", arch,
                 text_of(g, "crayon.pool.kind", word, sizeof word),
                 (unsigned)number_of(g, "crayon.pool.n"),
                 (unsigned)number_of(g, "crayon.pool.rank"));
    } else if (kind == CR_INFO_LORA) {
        snprintf(out, size, "%s, %zu tensors", arch, cr_gguf_n_tensors(g));
    } else {
        uint64_t values = 0;
        for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
            const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
            values += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        }
        snprintf(key, sizeof key, "%s.context_length", arch);
        snprintf(out, size, "%s, %.4g million weights, context %u", arch, (double)values / 1e6,
                 (unsigned)number_of(g, key));
    }
    return out;
}

static void add_row(struct cr_facts *f, const char *name, const char *kind, uint64_t bytes,
                    const char *about)
{
    char shown[64], size[16];
    if (f->json) {
        cr_json_open_line(&f->j, NULL, '{');
        cr_json_str(&f->j, "name", name);
        cr_json_str(&f->j, "kind", kind);
        cr_json_uint(&f->j, "bytes", bytes);
        cr_json_str(&f->j, "about", about);
        cr_json_close(&f->j);
    }
    cr_facts_line(f, "  %-36s %-10s %9s  %s",
                  cr_facts_clean(name, strlen(name), shown, sizeof shown), kind,
                  cr_bytes_text(bytes, size), about);
}

/* One file; others than ours are passed over. */
static void add_file(struct cr_facts *f, const char *dir, const char *name)
{
    char about[ABOUT];
    struct cr_error err;
    struct stat sb;
    cr_gguf *g;
    char *path = cr_asprintf("%s/%s", dir, name);
    if (!path || stat(path, &sb)) { /* a link to nothing, or gone meanwhile */
        cr_free(path);
        return;
    }
    if (S_ISREG(sb.st_mode) && ends(name, ".gguf")) {
        if (cr_gguf_open(&g, path, &err)) {
            size_t n = strlen(path); /* messages begin with the path */
            const char *why = strncmp(err.msg, path, n) ? err.msg : err.msg + n + 2;
            add_row(f, name, "broken", (uint64_t)sb.st_size,
                    cr_facts_clean(why, strlen(why), about, sizeof about));
        } else {
            enum cr_info_kind kind = cr_info_gguf_kind(g);
            char *stem = cr_strndup(name, strlen(name) - (kind == CR_INFO_MODEL ? 5 : 0));
            add_row(f, stem ? stem : name, cr_info_kind_name(kind), cr_gguf_size(g),
                    about_gguf(g, kind, about, sizeof about));
            cr_free(stem);
            cr_gguf_close(g);
        }
    } else if (ends(name, ".part")) {
        add_row(f, name, "unfinished", (uint64_t)sb.st_size, "the same `crayon pull` goes on");
    } else if (S_ISDIR(sb.st_mode)) {
        char *config = cr_asprintf("%s/adapter_config.json", path);
        if (config && !stat(config, &sb))
            add_row(f, name, cr_info_kind_name(CR_INFO_PEFT), (uint64_t)sb.st_size, "PEFT folder");
        cr_free(config);
    }
    cr_free(path);
}

void cr_list_models(struct cr_facts *f)
{
    char *dir = cr_models_dir();
    struct cr_paths names = {NULL, 0, 0};
    struct cr_error err;
    cr_fact_str(f, "models_folder", dir ? dir : "none: HOME is not set");
    DIR *d = dir ? opendir(dir) : NULL;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.' && cr_paths_add(&names, e->d_name, &err))
            break;
    cr_paths_sort(&names, 0);
    cr_facts_list(f, "models", "models in that folder");
    for (size_t i = 0; i < names.n; i++)
        add_file(f, dir, names.v[i]);
    cr_facts_list_end(f);
    if (d)
        closedir(d);
    cr_paths_deinit(&names);
    cr_free(dir);
}

int cr_cli_list(const struct cr_args *a)
{
    struct cr_facts f;
    cr_facts_begin(&f, cr_arg_flag(a, CR_OPT_JSON));
    cr_list_models(&f);
    return cr_facts_print(&f);
}
