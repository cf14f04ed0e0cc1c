/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon eval`: task files to tasks with examples and test rows. */
#include "base/arena.h"
#include "base/mem.h"
#include "base/rng.h"
#include "eval.h"
#include "lines.h"
#include "messages.h"
#include "tasks.h"

#include <string.h>

enum { MAX_TASKS = 100000 };

static enum cr_status no_memory(struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "out of memory reading the tasks");
}

/* ---- rows into tasks ---- */

struct task_rows { /* of one task while reading: rows by what they are for */
    struct cr_example *v;
    size_t n, cap;
};

static enum cr_status push(struct task_rows *r, const struct cr_example *e, struct cr_error *err)
{
    if (r->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 64;
        struct cr_example *v = cr_realloc(r->v, cap, sizeof *v);
        if (!v)
            return no_memory(err);
        r->v = v;
        r->cap = cap;
    }
    r->v[r->n++] = *e;
    return CR_OK;
}

static bool is_test(const struct cr_example *e)
{
    return !e->split || !strcmp(e->split, "test");
}

/* A generator for one task and one purpose: other tasks and limits do not change its draws. */
static struct cr_rng rng_of(uint64_t seed, const char *task, uint64_t purpose)
{
    struct cr_rng rng;
    uint64_t h = UINT64_C(14695981039346656037); /* FNV-1a of the name */
    for (; *task; task++)
        h = (h ^ (unsigned char)*task) * UINT64_C(1099511628211);
    cr_rng_init(&rng, seed ^ h ^ purpose << 56);
    return rng;
}

/* Keeps `want` of the n rows, drawn by rng, in their old order. picked [n] tells which. */
static enum cr_status draw(size_t n, size_t want, struct cr_rng rng, bool *picked,
                           struct cr_error *err)
{
    memset(picked, want >= n, n);
    if (want >= n)
        return CR_OK;
    uint32_t *order = cr_alloc(n, sizeof *order);
    if (!order)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    cr_rng_shuffle(&rng, order, n);
    for (size_t i = 0; i < want; i++)
        picked[order[i]] = true;
    cr_free(order);
    return CR_OK;
}

/* Moves `want` drawn rows from `from` to a new array; keep: the others stay in `from`. */
static enum cr_status take(struct task_rows *from, size_t want, struct cr_rng rng, bool keep,
                           struct cr_example **out, size_t *n_out, struct cr_error *err)
{
    size_t n = from->n, left = 0;
    bool *picked = cr_alloc(n, sizeof *picked);
    *out = cr_alloc(want < n ? want : n, sizeof **out);
    *n_out = 0;
    enum cr_status st = picked && *out ? draw(n, want, rng, picked, err) : no_memory(err);
    for (size_t i = 0; !st && i < n; i++) {
        if (picked[i])
            (*out)[(*n_out)++] = from->v[i];
        else
            from->v[left++] = from->v[i];
    }
    if (!st && keep)
        from->n = left;
    cr_free(picked);
    return st;
}

static enum cr_status add_task(struct cr_eval_tasks *t, const char *name, struct cr_error *err)
{
    if (t->n == MAX_TASKS)
        return cr_error_set(err, CR_LIMIT, "more than %d tasks", MAX_TASKS);
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 64;
        struct cr_eval_task *v = cr_realloc(t->v, cap, sizeof *v);
        if (!v)
            return no_memory(err);
        t->v = v;
        t->cap = cap;
    }
    struct cr_eval_task *task = &t->v[t->n];
    memset(task, 0, sizeof *task);
    task->name = cr_strdup(name);
    if (!task->name)
        return no_memory(err);
    t->n++;
    return CR_OK;
}

/* Reads a file; its strings live as long as the tasks. */
static enum cr_status read_file(struct cr_eval_tasks *t, const char *path,
                                const struct cr_examples **out, struct cr_error *err)
{
    if (t->n_files == t->cap_files) {
        size_t cap = t->cap_files ? 2 * t->cap_files : 16;
        struct cr_examples *v = cr_realloc(t->files, cap, sizeof *v);
        if (!v)
            return no_memory(err);
        t->files = v;
        t->cap_files = cap;
    }
    enum cr_status st = cr_examples_read(&t->files[t->n_files], path, err);
    if (!st)
        *out = &t->files[t->n_files++];
    return st;
}

static bool belongs(const struct cr_example *e, const char *task, const char *stem)
{
    return !strcmp(*e->task ? e->task : stem, task);
}

/* Example rows of a sibling file, if there is one. */
static enum cr_status sibling_rows(struct cr_eval_tasks *t, const char *path, const char *task,
                                   struct task_rows *out, struct cr_error *err)
{
    static const char *const splits[] = {"examples", "dev", "train"};
    char *found = NULL, *stem;
    const struct cr_examples *file;
    for (size_t i = 0; !found && i < sizeof splits / sizeof *splits; i++) {
        found = cr_task_sibling(path, splits[i]);
        if (found && !strcmp(found, path)) { /* the file itself is that split */
            cr_free(found);
            found = NULL;
        }
    }
    if (!found)
        return CR_OK;
    enum cr_status st = read_file(t, found, &file, err);
    stem = cr_task_stem(found);
    if (!st && !stem)
        st = no_memory(err);
    for (size_t i = 0; !st && i < file->n; i++)
        if (belongs(&file->v[i], task, stem))
            st = push(out, &file->v[i], err);
    cr_free(stem);
    cr_free(found);
    return st;
}

/* Draws the examples and the test rows of one task from the rows of its file. */
static enum cr_status fill_task(struct cr_eval_tasks *t, size_t at, const char *path,
                                struct task_rows *examples, struct task_rows *test,
                                const struct cr_args *a, struct cr_error *err)
{
    size_t shots = (size_t)cr_arg_int(a, CR_OPT_SHOTS), limit = (size_t)cr_arg_int(a, CR_OPT_LIMIT);
    uint64_t seed = cr_arg_seed(a, CR_OPT_SEED);
    const char *name = t->v[at].name;
    enum cr_status st = CR_OK;
    if (!examples->n)
        st = sibling_rows(t, path, name, examples, err);
    struct cr_eval_task *task = &t->v[at];
    if (!st) /* without a split of their own, examples are drawn from the test rows and leave them
              */
        st = take(examples->n ? examples : test, shots, rng_of(seed, name, 1), !examples->n,
                  &task->examples, &task->n_examples, err);
    if (!st)
        st = take(test, limit ? limit : test->n, rng_of(seed, name, 2), false, &task->test,
                  &task->n_test, err);
    if (!st && task->n_test && task->test[0].group) {
        task->group = cr_strdup(task->test[0].group);
        st = task->group ? CR_OK : no_memory(err);
    }
    return st;
}

/* Index of the task in [first, t->n) or a new one; `hint` is tried first. */
static enum cr_status task_at(struct cr_eval_tasks *t, size_t first, size_t hint, const char *name,
                              size_t *at, struct cr_error *err)
{
    if (hint < t->n && !strcmp(t->v[hint].name, name)) {
        *at = hint;
        return CR_OK;
    }
    for (*at = first; *at < t->n; (*at)++)
        if (!strcmp(t->v[*at].name, name))
            return CR_OK;
    return add_task(t, name, err);
}

static enum cr_status read_tasks(struct cr_eval_tasks *t, const char *path, const struct cr_args *a,
                                 struct cr_error *err)
{
    const struct cr_examples *file;
    size_t first = t->n, at = first;
    struct task_rows *rows = NULL; /* [2 * tasks of this file]: examples, test */
    size_t n_rows = 0;
    char *stem = cr_task_stem(path);
    enum cr_status st = stem ? read_file(t, path, &file, err) : no_memory(err);
    size_t n_file = st ? 0 : file->n;
    const struct cr_example *v = st ? NULL : file->v; /* stays where it is when files grow */
    for (size_t i = 0; !st && i < n_file; i++) {
        const struct cr_example *e = &v[i];
        if (is_test(e) && !e->answer)
            continue;
        st = task_at(t, first, at, *e->task ? e->task : stem, &at, err);
        if (!st && 2 * (t->n - first) > n_rows) {
            struct task_rows *grown = cr_realloc(rows, 2 * (t->n - first), sizeof *rows);
            if (!grown) {
                st = no_memory(err);
                break;
            }
            rows = grown;
            memset(rows + n_rows, 0, (2 * (t->n - first) - n_rows) * sizeof *rows);
            n_rows = 2 * (t->n - first);
        }
        if (!st)
            st = push(&rows[2 * (at - first) + is_test(e)], e, err);
    }
    for (size_t k = first; !st && k < t->n; k++)
        st = fill_task(t, k, path, &rows[2 * (k - first)], &rows[2 * (k - first) + 1], a, err);
    for (size_t i = 0; i < n_rows; i++)
        cr_free(rows[i].v);
    cr_free(rows);
    cr_free(stem);
    return st;
}

enum cr_status cr_eval_tasks_read(struct cr_eval_tasks *t, const struct cr_args *a,
                                  struct cr_error *err)
{
    struct cr_paths paths;
    *t = (struct cr_eval_tasks){NULL, 0, 0, NULL, 0, 0};
    enum cr_status st = cr_task_paths(&paths, a, "test", err);
    for (size_t i = 0; !st && i < paths.n; i++)
        st = read_tasks(t, paths.v[i], a, err);
    cr_paths_deinit(&paths);
    size_t kept = 0;
    for (size_t i = 0; i < t->n; i++) { /* tasks without a row to test say nothing */
        if (t->v[i].n_test) {
            t->v[kept++] = t->v[i];
            continue;
        }
        cr_note("task %s has no test rows with answers", t->v[i].name);
        cr_free(t->v[i].name);
        cr_free(t->v[i].group);
        cr_free(t->v[i].examples);
        cr_free(t->v[i].test);
    }
    t->n = kept;
    if (!st && !t->n)
        st = cr_error_set(err, CR_FORMAT, "the task files hold no test rows with answers");
    return st;
}

void cr_eval_tasks_deinit(struct cr_eval_tasks *t)
{
    for (size_t i = 0; i < t->n; i++) {
        cr_free(t->v[i].name);
        cr_free(t->v[i].group);
        cr_free(t->v[i].examples);
        cr_free(t->v[i].test);
    }
    for (size_t i = 0; i < t->n_files; i++)
        cr_examples_deinit(&t->files[i]);
    cr_free(t->files);
    cr_free(t->v);
    *t = (struct cr_eval_tasks){NULL, 0, 0, NULL, 0, 0};
}

/* ---- groups ---- */

static enum cr_status set_group(struct cr_eval_task *task, const char *group, size_t n,
                                struct cr_error *err)
{
    cr_free(task->group);
    task->group = cr_strndup(group, n);
    return task->group ? CR_OK : no_memory(err);
}

/* Lines "TASK GROUP". */
static enum cr_status read_groups(struct cr_eval_tasks *t, const char *path, struct cr_error *err)
{
    struct cr_lines lines;
    const char *line;
    size_t len;
    enum cr_status st = cr_lines_open(&lines, path, err);
    while (!st) {
        st = cr_lines_next(&lines, &line, &len, err);
        if (st || !line)
            break;
        while (len && strchr(" \t\r", line[len - 1]))
            len--;
        size_t n = 0;
        while (n < len && !strchr(" \t", line[n]))
            n++;
        size_t at = n;
        while (at < len && strchr(" \t", line[at]))
            at++;
        if (!len)
            continue;
        if (!n || at == len) {
            st = cr_lines_bad(&lines, CR_FORMAT, err, "want \"TASK GROUP\"");
            break;
        }
        for (size_t i = 0; !st && i < t->n; i++)
            if (strlen(t->v[i].name) == n && !memcmp(t->v[i].name, line, n))
                st = set_group(&t->v[i], line + at, len - at, err);
    }
    cr_lines_close(&lines);
    return st;
}

static bool in_index(const cr_pool *p, const char *task)
{
    for (int i = 0; i < p->index.n_entries; i++)
        if (!strcmp(p->index.names[i], task))
            return true;
    return false;
}

enum cr_status cr_eval_tasks_group(struct cr_eval_tasks *t, const struct cr_args *a,
                                   const cr_pool *pool, struct cr_error *err)
{
    const char *path = cr_arg_text(a, CR_OPT_GROUPS);
    enum cr_status st = path ? read_groups(t, path, err) : CR_OK;
    bool library = pool && pool->kind == CR_POOL_LIBRARY;
    for (size_t i = 0; !st && i < t->n; i++) {
        const char *group = !library ? "all" : in_index(pool, t->v[i].name) ? "pool" : "unseen";
        if (!t->v[i].group)
            st = set_group(&t->v[i], group, strlen(group), err);
    }
    return st;
}
