/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads all files (or takes examples), draws the rows of each task, makes tokens of them, and keeps
 * no text but some examples of each task for the index.
 */
#include "tune/data.h"

#include "adapt/prompt.h"
#include "base/arena.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "tune/train.h"

#include <stdlib.h>
#include <string.h>

struct source { /* one line of a file */
    const struct cr_example *e;
    uint32_t task;
};

struct reader {
    struct cr_train_data *d;
    cr_model *m;
    const struct cr_data_options *opt;
    struct cr_examples *files; /* [n_files] */
    struct source *lines;      /* all lines with an answer, then task by task */
    size_t n_lines;
    const struct cr_example **kept; /* [rows] the line of each row */
    struct cr_ids ids;
    size_t cap_tasks;
    struct cr_error *err;
};

static int rising(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static enum cr_status no_memory(struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "training data: out of memory");
}

/* "dir/snips.train.jsonl.xz" -> "snips" */
static size_t stem(const char *path, const char **from)
{
    const char *slash = strrchr(path, '/');
    *from = slash ? slash + 1 : path;
    return strcspn(*from, ".");
}

static enum cr_status find_task(struct reader *r, const char *name, size_t len, uint32_t *task)
{
    struct cr_train_data *d = r->d;
    for (size_t i = d->n_tasks; i-- > 0;) { /* lines of one task stand together: the last first */
        *task = (uint32_t)i;
        if (strlen(d->tasks[i].name) == len && memcmp(d->tasks[i].name, name, len) == 0)
            return CR_OK;
    }
    if (d->n_tasks == CR_TRAIN_MAX_TASKS)
        return cr_error_set(r->err, CR_LIMIT, "training data: more than %d tasks",
                            CR_TRAIN_MAX_TASKS);
    if (d->n_tasks == r->cap_tasks) {
        size_t cap = r->cap_tasks ? 2 * r->cap_tasks : 64;
        struct cr_train_task *grown = cr_realloc(d->tasks, cap, sizeof *grown);
        if (!grown)
            return no_memory(r->err);
        d->tasks = grown;
        r->cap_tasks = cap;
    }
    char *copy = cr_strndup(name, len);
    if (!copy)
        return no_memory(r->err);
    *task = (uint32_t)d->n_tasks;
    d->tasks[d->n_tasks++] = (struct cr_train_task){.name = copy};
    return CR_OK;
}

static bool has_answer(const struct cr_example *e)
{
    return e->answer && e->answer[0];
}

/* `name`: the task of a line that names none. */
static enum cr_status add_line(struct reader *r, const struct cr_example *e, const char *name,
                               size_t len)
{
    struct source *line = &r->lines[r->n_lines];
    if (!has_answer(e)) {
        r->d->n_no_answer++;
        return CR_OK;
    }
    if (e->task[0]) {
        name = e->task;
        len = strlen(name);
    }
    line->e = e;
    enum cr_status status = find_task(r, name, len, &line->task);
    r->n_lines += !status;
    return status;
}

static enum cr_status read_files(struct reader *r)
{
    size_t total = r->opt->n_examples;
    for (size_t f = 0; f < r->opt->n_files; f++) {
        enum cr_status status = cr_examples_read(&r->files[f], r->opt->files[f], r->err);
        if (status)
            return status;
        total += r->files[f].n;
    }
    r->lines = cr_alloc(total, sizeof *r->lines);
    if (!r->lines)
        return no_memory(r->err);
    enum cr_status status = CR_OK;
    for (size_t f = 0; f < r->opt->n_files; f++) {
        const char *name;
        size_t len = stem(r->opt->files[f], &name);
        for (size_t i = 0; i < r->files[f].n && !status; i++)
            status = add_line(r, &r->files[f].v[i], name, len);
    }
    for (size_t i = 0; i < r->opt->n_examples && !status; i++)
        status = add_line(r, &r->opt->examples[i], "examples", 8);
    return status;
}

/* Puts the lines task by task, in the order of reading within each. */
static enum cr_status group_by_task(struct reader *r)
{
    size_t *next = cr_alloc0(r->d->n_tasks + 1, sizeof *next);
    struct source *sorted = cr_alloc(r->n_lines, sizeof *sorted);
    if (next && sorted) {
        for (size_t i = 0; i < r->n_lines; i++)
            next[r->lines[i].task + 1]++;
        for (size_t t = 0; t < r->d->n_tasks; t++)
            next[t + 1] += next[t];
        for (size_t i = 0; i < r->n_lines; i++)
            sorted[next[r->lines[i].task]++] = r->lines[i];
        memcpy(r->lines, sorted, r->n_lines * sizeof *sorted);
    }
    bool ok = next && sorted;
    cr_free(sorted);
    cr_free(next);
    return ok ? CR_OK : no_memory(r->err);
}

/* Appends the row's ids; a row that is too long is taken back. */
static enum cr_status add_row(struct reader *r, const struct source *line)
{
    struct cr_train_data *d = r->d;
    struct cr_train_row *row = &d->rows[d->n_rows];
    row->at = r->ids.n;
    row->task = line->task;
    enum cr_status status = cr_prompt_encode(r->m, line->e, &r->ids, r->err);
    row->n_prompt = (uint32_t)(r->ids.n - row->at);
    if (!status)
        status = cr_answer_encode(r->m, line->e->answer, true, &r->ids, r->err);
    row->n_answer = (uint32_t)(r->ids.n - row->at) - row->n_prompt;
    if (status)
        return cr_error_prefix(r->err, status, "task %s, line %zu", d->tasks[line->task].name,
                               line->e->line);
    size_t n = cr_row_tokens(row);
    if (n > (size_t)r->opt->max_tokens || row->n_prompt == 0 || row->n_answer == 0) {
        r->ids.n = row->at;
        d->n_too_long++;
        return CR_OK;
    }
    d->n_rows++;
    d->tasks[line->task].n_rows++;
    d->n_tokens += n;
    d->n_answer_tokens += row->n_answer;
    d->longest = n > d->longest ? n : d->longest;
    r->kept[d->n_rows - 1] = line->e;
    return CR_OK;
}

/* Draws at most rows_per_task lines of one task, and tokenises them in the order of the file. */
static enum cr_status add_task(struct reader *r, uint32_t task, size_t begin, size_t end,
                               uint32_t *drawn)
{
    size_t n = end - begin, keep = r->opt->rows_per_task > 0 ? (size_t)r->opt->rows_per_task : n;
    struct cr_rng rng;
    cr_rng_init(&rng, r->opt->seed * 0x9e3779b97f4a7c15u + task);
    for (size_t i = 0; i < n; i++)
        drawn[i] = (uint32_t)i;
    if (keep < n) {
        cr_rng_shuffle(&rng, drawn, n);
        r->d->n_over_limit += n - keep;
        n = keep;
        qsort(drawn, n, sizeof *drawn, rising);
    }
    enum cr_status status = CR_OK;
    for (size_t i = 0; i < n && !status; i++)
        status = add_row(r, &r->lines[begin + drawn[i]]);
    return status;
}

static enum cr_status add_rows(struct reader *r)
{
    struct cr_train_data *d = r->d;
    uint32_t *drawn = cr_alloc(r->n_lines, sizeof *drawn);
    d->rows = cr_alloc(r->n_lines, sizeof *d->rows);
    r->kept = cr_alloc(r->n_lines, sizeof *r->kept);
    enum cr_status status = drawn && d->rows && r->kept ? CR_OK : no_memory(r->err);
    for (size_t begin = 0, end; begin < r->n_lines && !status; begin = end) {
        for (end = begin; end < r->n_lines && r->lines[end].task == r->lines[begin].task;)
            end++;
        status = add_task(r, r->lines[begin].task, begin, end, drawn);
    }
    cr_free(drawn);
    return status;
}

/* Deep copies of the first examples of each task, for the index. */
static enum cr_status keep_probes(struct reader *r)
{
    struct cr_train_data *d = r->d;
    size_t n = 0;
    for (size_t t = 0; t < d->n_tasks; t++) {
        d->tasks[t].first_probe = n;
        d->tasks[t].n_probes =
            d->tasks[t].n_rows < CR_DATA_PROBES ? d->tasks[t].n_rows : CR_DATA_PROBES;
        n += d->tasks[t].n_probes;
    }
    struct cr_arena *arena = d->probes.arena = cr_arena_new();
    d->probes.v = cr_alloc0(n, sizeof *d->probes.v);
    d->probe_row = cr_alloc(n, sizeof *d->probe_row);
    if (!arena || !d->probes.v || !d->probe_row)
        return no_memory(r->err);
    for (size_t t = 0, first = 0; t < d->n_tasks; first += d->tasks[t++].n_rows) {
        for (size_t i = 0; i < d->tasks[t].n_probes; i++) {
            const struct cr_example *from = r->kept[first + i];
            struct cr_example *to = &d->probes.v[d->probes.n];
            to->answer_index = -1;
            to->task = d->tasks[t].name;
            to->question = cr_arena_strndup(arena, from->question, strlen(from->question));
            if (from->context)
                to->context = cr_arena_strndup(arena, from->context, strlen(from->context));
            if (!to->question || (from->context && !to->context))
                return no_memory(r->err);
            d->probe_row[d->probes.n++] = (uint32_t)(first + i);
        }
    }
    return CR_OK;
}

static enum cr_status embed_rows(struct reader *r)
{
    struct cr_train_data *d = r->d;
    size_t dim = (size_t)cr_view_dim(r->m, CR_VIEW_QX);
    struct cr_example *all = cr_alloc(d->n_rows, sizeof *all);
    d->qx = cr_alloc(d->n_rows * dim, sizeof *d->qx);
    enum cr_status status = all && d->qx ? CR_OK : no_memory(r->err);
    for (size_t i = 0; i < d->n_rows && !status; i++)
        all[i] = *r->kept[i];
    if (!status)
        status = cr_embed_examples(r->m, CR_VIEW_QX, all, d->n_rows, d->qx, r->err);
    cr_free(all);
    return status;
}

/* Tasks that lost all of their rows are left out. */
static void drop_empty_tasks(struct cr_train_data *d)
{
    size_t n = 0, row = 0;
    for (size_t t = 0; t < d->n_tasks; t++) {
        if (d->tasks[t].n_rows == 0) {
            cr_free(d->tasks[t].name);
            continue;
        }
        for (size_t i = 0; i < d->tasks[t].n_rows; i++)
            d->rows[row++].task = (uint32_t)n;
        d->tasks[n++] = d->tasks[t];
    }
    d->n_tasks = n;
}

enum cr_status cr_data_read(struct cr_train_data *d, cr_model *m, const struct cr_data_options *opt,
                            struct cr_error *err)
{
    struct reader r = {.d = d, .m = m, .opt = opt, .err = err};
    memset(d, 0, sizeof *d);
    r.files = cr_alloc0(opt->n_files + 1, sizeof *r.files);
    enum cr_status status = r.files ? read_files(&r) : no_memory(err);
    if (!status)
        status = group_by_task(&r);
    if (!status)
        status = add_rows(&r);
    drop_empty_tasks(d);
    if (!status && d->n_rows == 0)
        status = cr_error_set(err, CR_INVALID,
                              "training data: no row with an answer of at most %d tokens "
                              "(%zu without an answer, %zu too long)",
                              opt->max_tokens, d->n_no_answer, d->n_too_long);
    if (!status)
        status = keep_probes(&r);
    if (!status && opt->want_qx)
        status = embed_rows(&r);
    d->ids = r.ids.v;
    d->n_ids = r.ids.n;
    for (size_t f = 0; r.files && f < opt->n_files; f++)
        cr_examples_deinit(&r.files[f]);
    cr_free(r.kept);
    cr_free(r.lines);
    cr_free(r.files);
    if (status)
        cr_data_deinit(d);
    return status;
}

void cr_data_deinit(struct cr_train_data *d)
{
    cr_free(d->qx);
    cr_free(d->probe_row);
    cr_examples_deinit(&d->probes);
    cr_free(d->ids);
    cr_free(d->rows);
    for (size_t t = 0; t < d->n_tasks; t++)
        cr_free(d->tasks[t].name);
    cr_free(d->tasks);
    memset(d, 0, sizeof *d);
}

size_t cr_data_bytes(const struct cr_train_data *d)
{
    return d->n_rows * sizeof *d->rows + d->n_ids * sizeof *d->ids + d->n_tasks * sizeof *d->tasks +
           d->probes.n * (sizeof *d->probes.v + 256);
}

void cr_data_hash(const struct cr_train_data *d, char hex[65])
{
    struct cr_sha256 s;
    cr_sha256_init(&s);
    for (size_t t = 0; t < d->n_tasks; t++)
        cr_sha256_add(&s, d->tasks[t].name, strlen(d->tasks[t].name) + 1);
    for (size_t i = 0; i < d->n_rows; i++) {
        uint32_t row[3] = {d->rows[i].n_prompt, d->rows[i].n_answer, d->rows[i].task};
        cr_sha256_add(&s, row, sizeof row);
    }
    cr_sha256_add(&s, d->ids, d->n_ids * sizeof *d->ids);
    cr_sha256_hex(&s, hex);
}
