/* SPDX-License-Identifier: Apache-2.0 */
/* Finding task files by name. */
#include "tasks.h"

#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PATHS = 100000 };

static const char *const splits[] = {"train", "dev", "test", "examples"};
enum { N_SPLITS = sizeof splits / sizeof *splits };

void cr_paths_deinit(struct cr_paths *p)
{
    for (size_t i = 0; i < p->n; i++)
        cr_free(p->v[i]);
    cr_free(p->v);
    *p = (struct cr_paths){NULL, 0, 0};
}

enum cr_status cr_paths_add(struct cr_paths *p, const char *path, struct cr_error *err)
{
    if (p->n == MAX_PATHS)
        return cr_error_set(err, CR_LIMIT, "more than %d task files", MAX_PATHS);
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 16;
        char **v = cr_realloc(p->v, cap, sizeof *v);
        if (!v)
            return cr_error_set(err, CR_NO_MEMORY, "out of memory");
        p->v = v;
        p->cap = cap;
    }
    char *copy = cr_strdup(path);
    if (!copy)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    p->v[p->n++] = copy;
    return CR_OK;
}

/* Length of the name without ".xz" and ".jsonl", ".csv", ...; 0 if it is no data file. */
static size_t without_endings(const char *name)
{
    static const char *const endings[] = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"};
    size_t n = strlen(name);
    if (n > 3 && !memcmp(name + n - 3, ".xz", 3))
        n -= 3;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t m = strlen(endings[i]);
        if (n > m && !memcmp(name + n - m, endings[i], m))
            return n - m;
    }
    return 0;
}

/* Which split the first n bytes of a name end in (".test"); -1: none. */
static int split_of(const char *name, size_t n)
{
    for (int i = 0; i < N_SPLITS; i++) {
        size_t m = strlen(splits[i]);
        if (n > m + 1 && name[n - m - 1] == '.' && !memcmp(name + n - m, splits[i], m))
            return i;
    }
    return -1;
}

char *cr_task_stem(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = without_endings(name);
    int split = n ? split_of(name, n) : -1;
    if (split >= 0)
        n -= strlen(splits[split]) + 1;
    return cr_strndup(name, n ? n : strlen(name));
}

char *cr_task_sibling(const char *path, const char *split)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = without_endings(name);
    int at = n ? split_of(name, n) : -1;
    if (at < 0)
        return NULL;
    size_t head = (size_t)(name - path) + n - strlen(splits[at]);
    char *found = cr_asprintf("%.*s%s%s", (int)head, path, split, name + n);
    if (found && access(found, F_OK) == 0)
        return found;
    cr_free(found);
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void cr_paths_sort(struct cr_paths *p, size_t first)
{
    if (p->n > first)
        qsort(p->v + first, p->n - first, sizeof *p->v, by_name);
}

/* Adds the data files of a folder that have the split; split -1: those without any. */
static enum cr_status add_from(struct cr_paths *out, const char *dir, int split,
                               struct cr_error *err)
{
    DIR *d = opendir(dir);
    if (!d)
        return cr_error_errno(err, "cannot open", dir);
    enum cr_status st = CR_OK;
    size_t first = out->n;
    for (struct dirent *e; !st && (e = readdir(d)) != NULL;) {
        size_t n = e->d_name[0] == '.' ? 0 : without_endings(e->d_name);
        if (!n || split_of(e->d_name, n) != split)
            continue;
        char *path = cr_asprintf("%s/%s", dir, e->d_name);
        st = path ? cr_paths_add(out, path, err) : cr_error_set(err, CR_NO_MEMORY, "out of memory");
        cr_free(path);
    }
    closedir(d);
    cr_paths_sort(out, first);
    return st;
}

static enum cr_status add_path(struct cr_paths *out, const char *path, const char *split,
                               struct cr_error *err)
{
    struct stat sb;
    if (stat(path, &sb))
        return cr_error_errno(err, "cannot open", path);
    if (!S_ISDIR(sb.st_mode))
        return cr_paths_add(out, path, err);
    size_t before = out->n;
    int want = -1;
    for (int i = 0; i < N_SPLITS; i++)
        if (!strcmp(splits[i], split))
            want = i;
    enum cr_status st = add_from(out, path, want, err);
    if (!st && out->n == before)
        st = add_from(out, path, -1, err);
    if (!st && out->n == before)
        st = cr_error_set(err, CR_NOT_FOUND, "%s: no NAME.%s.jsonl or other data files in it", path,
                          split);
    return st;
}

enum cr_status cr_task_paths(struct cr_paths *out, const struct cr_args *a, const char *split,
                             struct cr_error *err)
{
    *out = (struct cr_paths){NULL, 0, 0};
    size_t n;
    const char *const *given = cr_arg_texts(a, CR_OPT_TASKS, &n);
    enum cr_status st = CR_OK;
    for (size_t i = 0; !st && i < n; i++)
        st = add_path(out, given[i], split, err);
    for (size_t i = 0; !st && i < a->n_rest; i++)
        st = add_path(out, a->rest[i], split, err);
    if (!st && !out->n)
        st = cr_error_set(err, CR_INVALID, "no task files; name them with --tasks");
    return st;
}
