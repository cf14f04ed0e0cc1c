/* SPDX-License-Identifier: Apache-2.0 */
/* Steps and micro-batches: every row once an epoch, budgets kept, rows packed where they belong. */
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

enum { ROWS = 50, KEYS = 4, N = 2, STEP = 100, BATCH = 30 };

struct data {
    struct cr_train_data d;
    struct cr_train_row rows[ROWS];
    int32_t ids[ROWS * 40];
    uint32_t key[ROWS];
    float table[KEYS * N];
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
    for (int i = 0; i < KEYS * N; i++)
        t->table[i] = (float)i;
    t->d.rows = t->rows;
    t->d.ids = t->ids;
    t->d.n_rows = ROWS;
    assert_int_equal(cr_batcher_init(&t->b, &t->d, 9, STEP, BATCH, t->key, NULL), CR_OK);
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

static void packed(void **state)
{
    (void)state;
    struct data t;
    struct cr_packed p;
    struct cr_pass_shape shape = {0};
    start(&t);
    assert_int_equal(cr_packed_init(&p, STEP, STEP, STEP, N, NULL), CR_OK);
    for (int s = 0; s < 20; s++) {
        double weight = 0;
        size_t tokens = 0, row = 0, group = 0;
        cr_batcher_next(&t.b, SIZE_MAX);
        cr_batcher_shape(&t.b, &shape);
        cr_packed_fill(&p, &t.b, t.table);
        assert_int_equal(p.n_micros, t.b.n_micros);
        for (size_t k = 0; k < p.n_micros; k++) {
            const struct cr_micro *m = &p.micros[k];
            size_t answer = 0, g = 0;
            tokens += m->n_tokens;
            assert_true(m->n_tokens <= BATCH + t.d.longest && m->n_tokens <= shape.n_tokens);
            assert_true(m->n_answers <= shape.n_answers && m->all.n <= shape.n_groups);
            assert_int_equal(m->seq[m->n_seqs], m->n_tokens);
            assert_int_equal(m->all.begin[m->all.n], m->n_tokens);
            assert_int_equal(m->answers.begin[m->answers.n], m->n_answers);
            for (size_t q = 0; q < m->n_seqs; q++, row++) {
                const struct cr_train_row *r = &t.rows[t.b.rows[row]];
                const int32_t *ids = m->ids + m->seq[q];
                assert_int_equal(m->seq[q + 1] - m->seq[q], cr_row_tokens(r));
                assert_int_equal(ids[0], 1000 * (int)t.b.rows[row]);
                while (m->all.begin[g + 1] <= m->seq[q])
                    g++;
                assert_memory_equal(m->all.a + g * N, t.table + t.key[t.b.rows[row]] * N,
                                    N * sizeof(float));
                assert_int_equal(p.group_key[group + g], t.key[t.b.rows[row]]);
                for (uint32_t i = 0; i < r->n_answer; i++, answer++) {
                    assert_true(m->answers.begin[g] <= answer && answer < m->answers.begin[g + 1]);
                    assert_int_equal(m->answer_row[answer], m->seq[q] + r->n_prompt - 1 + i);
                    assert_int_equal(m->answer_id[answer], ids[0] + (int)(r->n_prompt + i));
                    weight += (double)m->answer_weight[answer];
                }
            }
            assert_int_equal(answer, m->n_answers);
            group += m->all.n;
        }
        assert_int_equal(row, t.b.n_rows);
        assert_int_equal(tokens, t.b.n_tokens);
        assert_int_equal(group, p.n_groups);
        assert_true(fabs(weight - 1) < 1e-5);
    }
    cr_packed_deinit(&p);
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
        cmocka_unit_test(small_budgets),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
