/* SPDX-License-Identifier: Apache-2.0 */
/* Steps and micro-batches: every row once an epoch, budgets kept, rows packed where they belong,
 * alone and in chains with worked examples. */
#include "base/mem.h"
#include "base/rng.h"
#include "tune/batch.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { ROWS = 50, KEYS = 4, N = 2, STEP = 100, BATCH = 30, WORKED = 3, CHAIN = 40 };

struct data {
    struct cr_train_data d;
    struct cr_train_row rows[ROWS];
    int32_t ids[ROWS * 40];
    uint32_t key[ROWS];
    float table[(KEYS + 1) * N]; /* the last: general */
    struct cr_batcher b;
};

/* Row r has ids 1000 r, 1000 r + 1, ... */
static void start(struct data *t)
{
    struct cr_rng rng;
    cr_rng_init(&rng, 3);
    memset(t, 0, sizeof *t);
    for (uint32_t r = 0; r < ROWS; r++) {
        uint32_t p = 1 + (uint32_t)cr_rng_below(&rng, 12), a = 1 + (uint32_t)cr_rng_below(&rng, 4);
        t->rows[r] = (struct cr_train_row){t->d.n_ids, p, a, r % KEYS};
        for (uint32_t i = 0; i < p + a; i++)
            t->ids[t->d.n_ids++] = (int32_t)(1000 * r + i);
        size_t n = cr_row_tokens(&t->rows[r]);
        t->d.longest = n > t->d.longest ? n : t->d.longest;
        t->key[r] = r % KEYS;
    }
    for (int i = 0; i < (KEYS + 1) * N; i++)
        t->table[i] = (float)i;
    t->d.rows = t->rows;
    t->d.ids = t->ids;
    t->d.n_rows = ROWS;
    assert_int_equal(cr_batcher_init(&t->b, &t->d, 9, STEP, BATCH, t->key, NULL), CR_OK);
}

static uint32_t row_at(const struct data *t, size_t i)
{
    return t->b.rows[i] & CR_ROW;
}

static uint32_t key_at(const struct data *t, size_t i)
{
    return t->b.rows[i] & CR_GENERAL ? KEYS : t->key[row_at(t, i)];
}

static bool linked(const struct data *t, size_t i)
{
    return i < t->b.n_rows && t->b.rows[i] & CR_LINKED;
}

static void every_row_once_an_epoch(void **state)
{
    (void)state;
    struct data t;
    int seen[ROWS] = {0};
    start(&t);
    for (size_t done = 0; done < 3 * ROWS; done += t.b.n_rows) {
        size_t tokens = 0;
        cr_batcher_next(&t.b, 3 * ROWS - done);
        assert_true(t.b.n_rows > 0 && t.b.n_tokens <= STEP);
        for (size_t i = 0; i < t.b.n_rows; i++) {
            seen[t.b.rows[i]]++;
            tokens += cr_row_tokens(&t.rows[t.b.rows[i]]);
            if (i > 0)
                assert_true(t.key[t.b.rows[i - 1]] <= t.key[t.b.rows[i]]);
        }
        assert_int_equal(tokens, t.b.n_tokens);
    }
    for (int r = 0; r < ROWS; r++)
        assert_int_equal(seen[r], 3);
    cr_batcher_deinit(&t.b);
}

static void the_same_after_rewind(void **state)
{
    (void)state;
    struct data t;
    uint32_t rows[2][STEP];
    start(&t);
    for (int i = 0; i < 2; i++) {
        cr_batcher_rewind(&t.b);
        for (int s = 0; s < 12; s++) /* into the second epoch */
            cr_batcher_next(&t.b, SIZE_MAX);
        memset(rows[i], 0, sizeof rows[i]);
        memcpy(rows[i], t.b.rows, t.b.n_rows * sizeof *t.b.rows);
    }
    assert_true(t.b.epoch > 0);
    assert_memory_equal(rows[0], rows[1], sizeof rows[0]);
    cr_batcher_deinit(&t.b);
}

static void check_packed(struct data *t)
{
    struct cr_packed p;
    struct cr_pass_shape shape = {0};
    assert_int_equal(cr_packed_init(&p, STEP, STEP, STEP, N, NULL), CR_OK);
    for (int s = 0; s < 20; s++) {
        double weight = 0;
        size_t tokens = 0, row = 0, group = 0;
        cr_batcher_next(&t->b, SIZE_MAX);
        cr_batcher_shape(&t->b, &shape);
        cr_packed_fill(&p, &t->b, t->table);
        assert_int_equal(p.n_micros, t->b.n_micros);
        for (size_t k = 0; k < p.n_micros; k++) {
            const struct cr_micro *m = &p.micros[k];
            size_t answer = 0, g = 0;
            tokens += m->n_tokens;
            assert_true(m->n_tokens <= BATCH + shape.longest && m->n_tokens <= shape.n_tokens);
            assert_true(m->n_answers <= shape.n_answers && m->all.n <= shape.n_groups);
            assert_int_equal(m->seq[m->n_seqs], m->n_tokens);
            assert_int_equal(m->all.begin[m->all.n], m->n_tokens);
            assert_int_equal(m->answers.begin[m->answers.n], m->n_answers);
            for (size_t q = 0; q < m->n_seqs; q++) {
                size_t at = m->seq[q];
                assert_false(linked(t, row));
                while (m->all.begin[g + 1] <= at)
                    g++;
                uint32_t key = key_at(t, row); /* a sequence has that of its first row */
                do {
                    uint32_t number = row_at(t, row);
                    const struct cr_train_row *r = &t->rows[number];
                    size_t n = cr_row_tokens(r) + linked(t, row + 1);
                    for (size_t i = 0; i < n; i++)
                        assert_int_equal(m->ids[at + i], (int)(1000 * number + i));
                    assert_memory_equal(m->all.a + g * N, t->table + key * N, N * sizeof(float));
                    assert_int_equal(p.group_key[group + g], key);
                    for (uint32_t i = 0; i < r->n_answer; i++, answer++) {
                        assert_true(m->answers.begin[g] <= answer &&
                                    answer < m->answers.begin[g + 1]);
                        assert_int_equal(m->answer_row[answer], at + r->n_prompt - 1 + i);
                        assert_int_equal(m->answer_id[answer], 1000 * number + r->n_prompt + i);
                        weight += (double)m->answer_weight[answer];
                    }
                    at += n;
                } while (linked(t, ++row));
                assert_int_equal(at, m->seq[q + 1]);
            }
            assert_int_equal(answer, m->n_answers);
            group += m->all.n;
        }
        assert_int_equal(row, t->b.n_rows);
        assert_int_equal(tokens, t->b.n_tokens);
        assert_int_equal(group, p.n_groups);
        assert_true(fabs(weight - 1) < 1e-5);
    }
    cr_packed_deinit(&p);
}

static void packed(void **state)
{
    (void)state;
    struct data t;
    start(&t);
    check_packed(&t);
    assert_int_equal(cr_batcher_chain(&t.b, WORKED, 0.2, CHAIN, NULL), CR_OK);
    check_packed(&t);
    cr_batcher_general(&t.b, 0.5, KEYS);
    check_packed(&t);
    for (uint32_t r = 0; r < ROWS; r++) /* as in a centroid pool: other keys than the tasks */
        t.key[r] = r / 5 % KEYS;
    cr_batcher_rewind(&t.b);
    check_packed(&t);
    cr_batcher_deinit(&t.b);
}

/* Chains hold rows of one task, no more than they may, and every row once an epoch. */
static void chains(void **state)
{
    (void)state;
    struct data t;
    int seen[ROWS] = {0};
    size_t n = 0, alone = 0, pairs[2] = {0};
    start(&t);
    assert_int_equal(cr_batcher_chain(&t.b, WORKED, 0, CHAIN, NULL), CR_OK);
    for (size_t done = 0; done < 40 * ROWS; done += t.b.n_rows) {
        size_t tokens = 0;
        cr_batcher_next(&t.b, 40 * ROWS - done);
        assert_true(t.b.n_rows > 0 && t.b.n_tokens <= STEP && !linked(&t, 0));
        for (size_t i = 0, end; i < t.b.n_rows; i = end) {
            size_t chain = 0;
            for (end = i; end == i || linked(&t, end); end++) {
                assert_int_equal(t.key[row_at(&t, end)], t.key[row_at(&t, i)]);
                chain += cr_row_tokens(&t.rows[row_at(&t, end)]) + (end > i);
                seen[row_at(&t, end)]++;
            }
            assert_true(end - i <= WORKED + 1);
            assert_true(chain <= CHAIN || end - i == 1);
            for (size_t k = i + 1; k < end; k++) /* in either order: a shuffle stands behind it */
                pairs[row_at(&t, k) > row_at(&t, k - 1)]++;
            tokens += chain;
            n++;
            alone += end - i == 1;
        }
        assert_int_equal(tokens, t.b.n_tokens);
        for (size_t k = 1; k < t.b.n_micros; k++)
            assert_false(linked(&t, t.b.cut[k]));
    }
    for (int r = 0; r < ROWS; r++)
        assert_int_equal(seen[r], 40);
    /* 2 to 4 rows, but for a chain that is full or the last of its task in an epoch */
    assert_true(n < 40 * ROWS / 2 && alone < n / 2 && alone > 0);
    assert_true(pairs[0] > 200 && pairs[1] > 200);
    cr_batcher_deinit(&t.b);

    double share = 0; /* half of the rows alone, a quarter of the chains with general weights */
    size_t general = 0;
    n = alone = 0;
    start(&t);
    assert_int_equal(cr_batcher_chain(&t.b, WORKED, 0.5, 1000, NULL), CR_OK);
    cr_batcher_general(&t.b, 0.25, KEYS);
    for (size_t done = 0; done < 100 * ROWS; done += t.b.n_rows) {
        cr_batcher_next(&t.b, 100 * ROWS - done);
        for (size_t i = 0; i < t.b.n_rows; i++) {
            alone += !linked(&t, i) && !linked(&t, i + 1);
            general += key_at(&t, i) == KEYS;
            assert_true(!linked(&t, i) || key_at(&t, i) == key_at(&t, i - 1));
            assert_true(i == 0 || key_at(&t, i - 1) <= key_at(&t, i));
        }
    }
    assert_true(general > 20 * ROWS && general < 30 * ROWS);
    share = (double)alone / (100 * ROWS);
    assert_true(share > 0.45 && share < 0.65);
    cr_batcher_deinit(&t.b);
}

/* A row longer than the budgets makes a step and a micro-batch of its own. */
static void small_budgets(void **state)
{
    (void)state;
    struct data t;
    struct cr_batcher b;
    start(&t);
    assert_int_equal(cr_batcher_init(&b, &t.d, 9, 1, 1, t.key, NULL), CR_OK);
    for (int s = 0; s < ROWS; s++) {
        cr_batcher_next(&b, SIZE_MAX);
        assert_true(b.n_rows >= 1 && b.n_tokens <= t.d.longest);
        assert_int_equal(b.n_micros, b.n_rows);
    }
    cr_batcher_deinit(&b);
    cr_batcher_deinit(&t.b);
}

static void out_of_memory(void **state)
{
    (void)state;
    struct data t;
    struct cr_batcher b;
    struct cr_packed p;
    start(&t);
    size_t before = cr_mem_now();
    for (uint64_t n = 1; n <= 4; n++) {
        cr_mem_fail_at(n, false);
        assert_int_equal(cr_batcher_init(&b, &t.d, 9, STEP, BATCH, t.key, NULL), CR_NO_MEMORY);
        assert_true(cr_mem_now() == before);
    }
    for (uint64_t n = 1; n <= 4; n++) {
        assert_int_equal(cr_batcher_init(&b, &t.d, 9, STEP, BATCH, t.key, NULL), CR_OK);
        cr_mem_fail_at(n, false);
        assert_int_equal(cr_batcher_chain(&b, WORKED, 0, CHAIN, NULL), CR_NO_MEMORY);
        cr_mem_fail_at(0, false);
        cr_batcher_deinit(&b);
        assert_true(cr_mem_now() == before);
    }
    for (uint64_t n = 1; n <= 11; n++) {
        cr_mem_fail_at(n, false);
        assert_int_equal(cr_packed_init(&p, STEP, STEP, STEP, N, NULL), CR_NO_MEMORY);
        assert_true(cr_mem_now() == before);
    }
    cr_mem_fail_at(0, false);
    cr_batcher_deinit(&t.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_once_an_epoch),
        cmocka_unit_test(the_same_after_rewind),
        cmocka_unit_test(packed),
        cmocka_unit_test(chains),
        cmocka_unit_test(small_budgets),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
