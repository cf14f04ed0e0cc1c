/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon pull`: a model, pool or adapter from a URL into the models folder, or by a name that an
 * index knows: lines "NAME URL SHA256", of a file or a URL.
 */
#ifdef CRAYON_ROUTE

#include "base/mem.h"
#include "common.h"
#include "messages.h"
#include "route/fetch.h"
#include "verbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_INDEX = 4 << 20 };

struct pull {
    const struct cr_args *a;
    char *url, *sha256, *dir, *path;
    struct cr_progress line;
    struct cr_error err;
};

static bool on_progress(void *ud, uint64_t done, uint64_t total)
{
    struct pull *p = ud;
    char a[16], b[16], detail[48];
    if (total) {
        snprintf(detail, sizeof detail, "%s of %s", cr_bytes_text(done, a),
                 cr_bytes_text(total, b));
        cr_progress_show(&p->line, (double)done, (double)total, detail);
    }
    return !cr_interrupted();
}

/* ---- index ---- */

static bool is_url(const char *s)
{
    return !strncmp(s, "https://", 8) || !strncmp(s, "http://", 7);
}

/* "NAME URL SHA256"; # begins a comment. */
static enum cr_status look_up(struct pull *p, char *text, const char *index, const char *name)
{
    int line = 0;
    for (char *next, *s = text; s; s = next) {
        char *word[3], *save = NULL;
        next = strchr(s, '\n');
        if (next)
            *next++ = '\0';
        line++;
        for (int i = 0; i < 3; i++)
            word[i] = strtok_r(i ? NULL : s, " \t\r", &save);
        if (!word[0] || word[0][0] == '#')
            continue;
        if (!word[2] || !is_url(word[1]) || strlen(word[2]) != 64)
            return cr_error_set(&p->err, CR_FORMAT, "%s: line %d: want NAME URL SHA256", index,
                                line);
        if (strcmp(word[0], name))
            continue;
        p->url = cr_strdup(word[1]);
        p->sha256 = cr_strdup(word[2]);
        return p->url && p->sha256 ? CR_OK
                                   : cr_error_set(&p->err, CR_NO_MEMORY, "pull: out of memory");
    }
    return cr_error_set(&p->err, CR_NOT_FOUND, "%s: knows no \"%s\"", index, name);
}

static enum cr_status ask_index(struct pull *p, const char *name)
{
    const char *index = cr_arg_text(p->a, CR_OPT_INDEX);
    char *copy = NULL, *text = NULL;
    size_t n;
    enum cr_status st = CR_OK;
    if (!index)
        return cr_error_set(&p->err, CR_INVALID,
                            "\"%s\" is no URL; a name needs --index FILE|URL, lines of NAME URL "
                            "SHA256",
                            name);
    if (is_url(index)) {
        copy = cr_asprintf("%s/.index", p->dir);
        struct cr_fetched got;
        struct cr_fetch f = {.url = index,
                             .path = copy,
                             .ca_file = cr_arg_text(p->a, CR_OPT_CA),
                             .max_bytes = MAX_INDEX};
        st = copy ? cr_fetch_file(&f, &got, &p->err)
                  : cr_error_set(&p->err, CR_NO_MEMORY, "pull: out of memory");
    }
    if (!st)
        st = cr_file_read(copy ? copy : index, MAX_INDEX, &text, &n, &p->err);
    if (!st)
        st = look_up(p, text, index, name);
    if (copy)
        unlink(copy);
    cr_free(text);
    cr_free(copy);
    return st;
}

/* ---- where to ---- */

static enum cr_status make_dir(const char *dir, struct cr_error *err)
{
    char *path = cr_asprintf("%s/", dir);
    enum cr_status st = path ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "pull: out of memory");
    for (char *p = path ? strchr(path + 1, '/') : NULL; p && !st; p = strchr(p + 1, '/')) {
        *p = '\0';
        if (mkdir(path, 0755) && errno != EEXIST)
            st = cr_error_errno(err, "cannot make the folder", path);
        *p = '/';
    }
    cr_free(path);
    return st;
}

/* The last part of the URL, as a file name that cannot leave the folder. */
static char *name_of(const char *url)
{
    size_t n = strcspn(url, "?#");
    while (n && url[n - 1] == '/')
        n--;
    size_t from = n;
    while (from && url[from - 1] != '/')
        from--;
    return cr_strndup(url + from, n - from);
}

static bool good_name(const char *s)
{
    size_t n = strlen(s);
    return n && n < 200 && s[0] != '.' &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-") == n;
}

static enum cr_status place(struct pull *p, const char *wanted)
{
    const char *output = cr_arg_text(p->a, CR_OPT_OUTPUT);
    char *name = output ? NULL : name_of(is_url(wanted) ? wanted : p->url);
    enum cr_status st = CR_OK;
    if (output)
        p->path = cr_strdup(output);
    else if (name && !good_name(name))
        st = cr_error_set(&p->err, CR_INVALID,
                          "the URL ends in \"%.100s\", which is no file name; give one with -o",
                          name);
    else if (name)
        p->path = cr_asprintf("%s/%s", p->dir, name);
    if (!st && !p->path)
        st = cr_error_set(&p->err, CR_NO_MEMORY, "pull: out of memory");
    cr_free(name);
    return st;
}

int cr_cli_pull(const struct cr_args *a)
{
    struct pull p = {.a = a};
    struct cr_fetched got;
    const char *wanted = a->rest[0], *sha = cr_arg_text(a, CR_OPT_SHA256);
    cr_interrupt_catch();
    p.dir = cr_models_dir();
    enum cr_status st =
        p.dir ? make_dir(p.dir, &p.err)
              : cr_error_set(&p.err, CR_NOT_FOUND, "there is no models folder: HOME is not set");
    if (!st && is_url(wanted))
        p.url = cr_strdup(wanted);
    else if (!st)
        st = ask_index(&p, wanted);
    if (!st && !p.url)
        st = cr_error_set(&p.err, CR_NO_MEMORY, "pull: out of memory");
    if (!st)
        st = place(&p, wanted);
    if (!st && !access(p.path, F_OK) && !cr_arg_flag(a, CR_OPT_FORCE)) {
        cr_outf("%s\n", p.path);
        cr_note("it is there already; --force fetches it again");
        cr_free(p.url), cr_free(p.sha256), cr_free(p.dir), cr_free(p.path);
        return 0;
    }
    if (!st) {
        struct cr_fetch f = {.url = p.url,
                             .path = p.path,
                             .sha256 = sha ? sha : p.sha256,
                             .ca_file = cr_arg_text(a, CR_OPT_CA),
                             .max_bytes = cr_arg_bytes(a, CR_OPT_MAX_BYTES),
                             .on_progress = on_progress,
                             .ud = &p};
        cr_progress_begin(&p.line, "fetching");
        st = cr_fetch_file(&f, &got, &p.err);
        cr_progress_end(&p.line);
        if (!st) {
            char text[16];
            if (got.resumed_from)
                cr_note("resumed at %llu bytes", (unsigned long long)got.resumed_from);
            cr_note("%s, SHA-256 %s%s", cr_bytes_text(got.bytes, text), got.sha256,
                    f.sha256 ? "" : " (not checked: none was given)");
            cr_outf("%s\n", p.path);
        }
    }
    cr_free(p.url);
    cr_free(p.sha256);
    cr_free(p.dir);
    cr_free(p.path);
    return st ? cr_fail(&p.err) : 0;
}

#endif
