/* SPDX-License-Identifier: Apache-2.0 */
/* Steps and micro-batches: which rows, in which order, cut where, packed how. */
#include "tune/batch.h"

#include "base/mem.h"
#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

static enum cr_status no_memory(struct cr_error *err)
{
    return cr_error_set(err, CR_NO_MEMORY, "training batches: out of memory");
}

enum cr_status cr_batcher_init(struct cr_batcher *b, const struct cr_train_data *d, uint64_t seed,
                               size_t tokens_per_step, size_t tokens_per_batch, const uint32_t *key,
                               struct cr_error *err)
{
    memset(b, 0, sizeof *b);
    b->data = d;
    b->seed = seed;
    b->key = key;
    b->tokens_per_step = tokens_per_step > d->longest ? tokens_per_step : d->longest;
    b->tokens_per_batch = tokens_per_batch > 0 ? tokens_per_batch : 1;
    b->order = cr_alloc(d->n_rows, sizeof *b->order);
    b->rows = cr_alloc(b->tokens_per_step, sizeof *b->rows); /* a row has a token at least */
    b->cut = cr_alloc(b->tokens_per_step + 1, sizeof *b->cut);
    b->sort = cr_alloc(b->tokens_per_step, sizeof *b->sort);
    if (!b->order || !b->rows || !b->cut || !b->sort) {
        cr_batcher_deinit(b);
        return no_memory(err);
    }
    cr_batcher_rewind(b);
    return CR_OK;
}

void cr_batcher_deinit(struct cr_batcher *b)
{
    cr_free(b->starts);
    cr_free(b->mixed);
    cr_free(b->by_task);
    cr_free(b->copy);
    b->starts = b->mixed = b->copy = NULL;
    b->by_task = NULL;
    cr_free(b->sort);
    cr_free(b->cut);
    cr_free(b->rows);
    cr_free(b->order);
    b->order = b->rows = NULL;
    b->cut = NULL;
    b->sort = NULL;
}

static int rising(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* ---- chains ---- */

enum cr_status cr_batcher_chain(struct cr_batcher *b, int worked, double alone, size_t max_tokens,
                                struct cr_error *err)
{
    size_t n = b->data->n_rows;
    b->worked = worked;
    b->alone = alone;
    b->chain_tokens = max_tokens < b->tokens_per_step ? max_tokens : b->tokens_per_step;
    b->copy = cr_alloc(b->tokens_per_step, sizeof *b->copy);
    b->by_task = cr_alloc(n, sizeof *b->by_task);
    b->mixed = cr_alloc(n, sizeof *b->mixed);
    b->starts = cr_alloc(n, sizeof *b->starts);
    if (!b->copy || !b->by_task || !b->mixed || !b->starts)
        return no_memory(err);
    cr_batcher_rewind(b);
    return CR_OK;
}

void cr_batcher_general(struct cr_batcher *b, double share, uint32_t key)
{
    b->general = share;
    b->general_key = key;
    cr_batcher_rewind(b);
}

static const struct cr_train_row *row_of(const struct cr_batcher *b, uint32_t entry)
{
    return &b->data->rows[entry & CR_ROW];
}

static uint32_t key_of(const struct cr_batcher *b, uint32_t entry)
{
    return entry & CR_GENERAL ? b->general_key : b->key[entry & CR_ROW];
}

/* One past the chain of v that begins at i. */
static size_t chain_end(const uint32_t *v, size_t n, size_t i)
{
    do
        i++;
    while (i < n && v[i] & CR_LINKED);
    return i;
}

/* Tokens that are run: only the last answer of a chain keeps its last token out. */
static size_t chain_tokens(const struct cr_batcher *b, const uint32_t *v, size_t begin, size_t end)
{
    size_t n = end - begin - 1;
    for (size_t i = begin; i < end; i++)
        n += cr_row_tokens(row_of(b, v[i]));
    return n;
}

/* Alone, or 2 to worked + 1: so that the share `alone` of the rows comes out alone. */
static size_t draw_length(const struct cr_batcher *b, struct cr_rng *rng)
{
    double mean = (b->worked + 3) / 2.0;
    double single = b->alone * mean / (1 - b->alone + b->alone * mean);
    if (cr_rng_double(rng) < single)
        return 1;
    return 2 + (size_t)cr_rng_below(rng, (uint64_t)b->worked);
}

/* Makes chains of the shuffled rows of each task, and shuffles those. */
static void link_rows(struct cr_batcher *b, struct cr_rng *rng)
{
    size_t n = b->data->n_rows, n_chains = 0, k = 0;
    for (size_t i = 0; i < n; i++)
        b->by_task[i] = (uint64_t)row_of(b, b->order[i])->task << 32 | i;
    qsort(b->by_task, n, sizeof *b->by_task, rising);
    for (size_t i = 0; i < n; i++)
        b->mixed[i] = b->order[(uint32_t)b->by_task[i]];
    for (size_t i = 0, end; i < n; i = end) {
        size_t want = draw_length(b, rng), tokens = cr_row_tokens(row_of(b, b->mixed[i]));
        uint32_t task = row_of(b, b->mixed[i])->task;
        b->starts[n_chains++] = (uint32_t)i;
        for (end = i + 1; end < n && end - i < want; end++) {
            const struct cr_train_row *next = row_of(b, b->mixed[end]);
            tokens += 1 + cr_row_tokens(next);
            if (next->task != task || tokens > b->chain_tokens)
                break;
            b->mixed[end] |= CR_LINKED;
        }
        if (b->general > 0 && cr_rng_double(rng) < b->general)
            for (size_t r = i; r < end; r++)
                b->mixed[r] |= CR_GENERAL;
    }
    cr_rng_shuffle(rng, b->starts, n_chains);
    for (size_t c = 0; c < n_chains; c++)
        for (size_t i = b->starts[c], end = chain_end(b->mixed, n, i); i < end; i++)
            b->order[k++] = b->mixed[i];
}

/* ---- steps ---- */

static void start_epoch(struct cr_batcher *b, size_t epoch)
{
    struct cr_rng rng;
    cr_rng_init(&rng, b->seed + 0x632be59bd9b4e019u * (epoch + 1));
    for (size_t i = 0; i < b->data->n_rows; i++)
        b->order[i] = (uint32_t)i;
    cr_rng_shuffle(&rng, b->order, b->data->n_rows);
    if (b->worked)
        link_rows(b, &rng);
    b->epoch = epoch;
    b->at = 0;
}

void cr_batcher_rewind(struct cr_batcher *b)
{
    start_epoch(b, 0);
}

/* By key, then by row; chains by the key of their first row, then as they came. */
static void sort_rows(struct cr_batcher *b)
{
    size_t n = 0, k = 0;
    for (size_t i = 0; i < b->n_rows; i++)
        if (!(b->rows[i] & CR_LINKED))
            b->sort[n++] = (uint64_t)key_of(b, b->rows[i]) << 32 | (b->worked ? i : b->rows[i]);
    qsort(b->sort, n, sizeof *b->sort, rising);
    if (!b->worked) {
        for (size_t i = 0; i < n; i++)
            b->rows[i] = (uint32_t)b->sort[i];
        return;
    }
    memcpy(b->copy, b->rows, b->n_rows * sizeof *b->copy);
    for (size_t c = 0; c < n; c++) {
        size_t i = (uint32_t)b->sort[c], end = chain_end(b->copy, b->n_rows, i);
        while (i < end)
            b->rows[k++] = b->copy[i++];
    }
}

/* Micro-batches of about n_tokens / n_micros: a chain belongs where its middle falls. */
static void cut_step(struct cr_batcher *b)
{
    size_t wanted = (b->n_tokens + b->tokens_per_batch - 1) / b->tokens_per_batch;
    size_t before = 0, last = 0;
    b->n_micros = 0;
    b->cut[0] = 0;
    for (size_t i = 0, end; i < b->n_rows; i = end) {
        end = chain_end(b->rows, b->n_rows, i);
        size_t n = chain_tokens(b, b->rows, i, end);
        size_t place = (2 * before + n) * wanted / (2 * b->n_tokens);
        if (i > 0 && place > last)
            b->cut[++b->n_micros] = i;
        last = place;
        before += n;
    }
    b->cut[++b->n_micros] = b->n_rows;
}

void cr_batcher_next(struct cr_batcher *b, size_t max_rows)
{
    b->n_rows = b->n_tokens = 0;
    while (b->n_rows < max_rows) {
        if (b->at == b->data->n_rows)
            start_epoch(b, b->epoch + 1);
        size_t end = chain_end(b->order, b->data->n_rows, b->at);
        if (end - b->at > max_rows - b->n_rows)
            end = b->at + max_rows - b->n_rows; /* the last step */
        size_t n = chain_tokens(b, b->order, b->at, end);
        if (b->n_tokens + n > b->tokens_per_step)
            break;
        while (b->at < end)
            b->rows[b->n_rows++] = b->order[b->at++];
        b->n_tokens += n;
    }
    sort_rows(b);
    cut_step(b);
}

/* The key of row i of the step: a chain has that of its first row. last: the key of the row before.
 */
static uint32_t key_at(const struct cr_batcher *b, size_t i, uint32_t last)
{
    return b->rows[i] & CR_LINKED ? last : key_of(b, b->rows[i]);
}

void cr_batcher_shape(const struct cr_batcher *b, struct cr_pass_shape *s)
{
    for (size_t k = 0; k < b->n_micros; k++) {
        size_t tokens = 0, answers = 0, groups = 0;
        for (size_t i = b->cut[k], end; i < b->cut[k + 1]; i = end) {
            end = chain_end(b->rows, b->cut[k + 1], i);
            size_t n = chain_tokens(b, b->rows, i, end);
            tokens += n;
            s->longest = n > s->longest ? n : s->longest;
        }
        uint32_t last = 0;
        for (size_t i = b->cut[k]; i < b->cut[k + 1]; i++) {
            uint32_t key = key_at(b, i, last);
            answers += row_of(b, b->rows[i])->n_answer;
            groups += i == b->cut[k] || key != last;
            last = key;
        }
        s->n_tokens = tokens > s->n_tokens ? tokens : s->n_tokens;
        s->n_answers = answers > s->n_answers ? answers : s->n_answers;
        s->n_groups = groups > s->n_groups ? groups : s->n_groups;
    }
}

/* ---- packing ---- */

size_t cr_packed_bytes(size_t tokens, size_t rows, size_t micros, int n)
{
    return tokens * (sizeof(int32_t) * 2 + sizeof(size_t) + sizeof(float)) +
           (rows + micros) * 3 * sizeof(size_t) + rows * sizeof(uint32_t) +
           2 * rows * (size_t)n * sizeof(float) + micros * sizeof(struct cr_micro);
}

enum cr_status cr_packed_init(struct cr_packed *p, size_t tokens, size_t rows, size_t micros, int n,
                              struct cr_error *err)
{
    memset(p, 0, sizeof *p);
    p->n = n;
    p->micros = cr_alloc(micros, sizeof *p->micros);
    p->ids = cr_alloc(tokens, sizeof *p->ids);
    p->answer_id = cr_alloc(tokens, sizeof *p->answer_id);
    p->answer_row = cr_alloc(tokens, sizeof *p->answer_row);
    p->weight = cr_alloc(tokens, sizeof *p->weight);
    p->seq = cr_alloc(rows + micros, sizeof *p->seq);
    p->begin = cr_alloc(rows + micros, sizeof *p->begin);
    p->answer_begin = cr_alloc(rows + micros, sizeof *p->answer_begin);
    p->group_key = cr_alloc(rows, sizeof *p->group_key);
    p->a = cr_alloc(rows * (size_t)n, sizeof *p->a);
    p->da = cr_alloc(rows * (size_t)n, sizeof *p->da);
    if (p->micros && p->ids && p->answer_id && p->answer_row && p->weight && p->seq && p->begin &&
        p->answer_begin && p->group_key && p->a && p->da)
        return CR_OK;
    cr_packed_deinit(p);
    return no_memory(err);
}

void cr_packed_deinit(struct cr_packed *p)
{
    cr_free(p->da);
    cr_free(p->a);
    cr_free(p->group_key);
    cr_free(p->answer_begin);
    cr_free(p->begin);
    cr_free(p->seq);
    cr_free(p->weight);
    cr_free(p->answer_row);
    cr_free(p->answer_id);
    cr_free(p->ids);
    cr_free(p->micros);
    memset(p, 0, sizeof *p);
}

/* Where the next micro-batch goes in the arrays of the step. */
struct fill {
    size_t token, answer, seq, group;
};

/* Input ids, and the ids that its answer positions should give. last: of its chain. */
static void fill_row(struct cr_packed *p, const struct cr_batcher *b,
                     const struct cr_train_row *row, bool last, struct cr_micro *m, struct fill *f)
{
    const int32_t *ids = b->data->ids + row->at;
    size_t n = cr_row_tokens(row) + !last;
    memcpy(p->ids + f->token, ids, n * sizeof *ids);
    for (size_t i = 0; i < row->n_answer; i++, f->answer++, m->n_answers++) {
        p->answer_row[f->answer] = m->n_tokens + row->n_prompt - 1 + i;
        p->answer_id[f->answer] = ids[row->n_prompt + i];
        p->weight[f->answer] = 1.0f / ((float)row->n_answer * (float)b->n_rows);
    }
    f->token += n;
    m->n_tokens += n;
    if (last)
        p->seq[f->seq + ++m->n_seqs] = m->n_tokens;
}

static void fill_micro(struct cr_packed *p, const struct cr_batcher *b, size_t k,
                       const float *table, struct fill *f)
{
    struct cr_micro *m = &p->micros[k];
    size_t n = (size_t)p->n, *begin = p->begin + f->seq, *answers = p->answer_begin + f->seq;
    *m = (struct cr_micro){.ids = p->ids + f->token,
                           .seq = p->seq + f->seq,
                           .answer_row = p->answer_row + f->answer,
                           .answer_id = p->answer_id + f->answer,
                           .answer_weight = p->weight + f->answer};
    size_t n_groups = 0, first_group = f->group;
    uint32_t key = 0;
    p->seq[f->seq] = 0;
    for (size_t i = b->cut[k]; i < b->cut[k + 1]; i++) {
        key = key_at(b, i, key);
        bool last = i + 1 == b->cut[k + 1] || !(b->rows[i + 1] & CR_LINKED);
        if (i == b->cut[k] || key != p->group_key[f->group - 1]) {
            begin[n_groups] = m->n_tokens;
            answers[n_groups++] = m->n_answers;
            memcpy(p->a + f->group * n, table + key * n, n * sizeof *table);
            p->group_key[f->group++] = key;
        }
        fill_row(p, b, row_of(b, b->rows[i]), last, m, f);
    }
    begin[n_groups] = m->n_tokens;
    answers[n_groups] = m->n_answers;
    m->all = (struct cr_groups){n_groups, begin, p->a + first_group * n};
    m->answers = (struct cr_groups){n_groups, answers, p->a + first_group * n};
    f->seq += m->n_seqs + 1;
}

void cr_packed_fill(struct cr_packed *p, const struct cr_batcher *b, const float *table)
{
    struct fill f = {0};
    p->n_micros = b->n_micros;
    for (size_t k = 0; k < b->n_micros; k++)
        fill_micro(p, b, k, table, &f);
    p->n_groups = f.group;
}
