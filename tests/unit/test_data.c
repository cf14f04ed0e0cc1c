/* SPDX-License-Identifier: Apache-2.0 */
/* Task files become token rows: tasks, limits, what is left out, and the same draw by seed. */
#include "adapt/prompt.h"
#include "base/mem.h"
#include "train_files.h"
#include "tune/data.h"

static struct train_files files;
static cr_model *model;

static struct cr_train_data read_data(int rows_per_task, int max_tokens, uint64_t seed)
{
    struct cr_data_options o = {.files = files.names,
                                .n_files = 2,
                                .rows_per_task = rows_per_task,
                                .max_tokens = max_tokens,
                                .seed = seed};
    struct cr_train_data d;
    struct cr_error err;
    if (cr_data_read(&d, model, &o, &err))
        fail_msg("%s", err.msg);
    return d;
}

static void tasks_and_rows(void **state)
{
    (void)state;
    struct cr_train_data d = read_data(0, 1000, 1);
    assert_int_equal(d.n_tasks, 2);
    assert_string_equal(d.tasks[0].name, "colour"); /* the lines' own name */
    assert_string_equal(d.tasks[1].name, "animal"); /* the file's */
    assert_int_equal(d.tasks[0].n_rows, 12);
    assert_int_equal(d.tasks[1].n_rows, 9);
    assert_int_equal(d.n_no_answer, 1);
    assert_int_equal(d.probes.n, 21);
    assert_string_equal(d.probes.v[12].question, "Animal 0 barks. Which is it?");
    size_t tokens = 0, at = 0;
    for (size_t i = 0; i < d.n_rows; i++) {
        assert_int_equal(d.rows[i].task, i >= 12);
        assert_int_equal(d.rows[i].at, at);
        at += d.rows[i].n_prompt + d.rows[i].n_answer;
        tokens += cr_row_tokens(&d.rows[i]);
    }
    assert_int_equal(tokens, d.n_tokens);
    assert_int_equal(at, d.n_ids);
    cr_data_deinit(&d);
}

/* A row is the shared prompt and " " + answer + "\n". */
static void ids_are_those_of_scoring(void **state)
{
    (void)state;
    struct cr_train_data d = read_data(0, 1000, 1);
    struct cr_examples e;
    struct cr_ids ids = {0};
    assert_int_equal(cr_examples_read(&e, files.animal, NULL), CR_OK);
    assert_int_equal(cr_prompt_encode(model, &e.v[2], &ids, NULL), CR_OK);
    const struct cr_train_row *row = &d.rows[12 + 2];
    assert_int_equal(row->n_prompt, ids.n);
    assert_int_equal(cr_answer_encode(model, "bird", true, &ids, NULL), CR_OK);
    assert_int_equal(row->n_prompt + row->n_answer, ids.n);
    assert_memory_equal(d.ids + row->at, ids.v, ids.n * sizeof *ids.v);
    cr_free(ids.v);
    cr_examples_deinit(&e);
    cr_data_deinit(&d);
}

static void limits(void **state)
{
    (void)state;
    struct cr_train_data all = read_data(0, 1000, 1), d = read_data(0, (int)all.longest - 1, 1);
    assert_true(d.n_too_long > 0 && d.n_rows + d.n_too_long == all.n_rows);
    assert_true(d.longest < all.longest);
    cr_data_deinit(&d);
    cr_data_deinit(&all);
    d = read_data(4, 1000, 1);
    assert_int_equal(d.n_rows, 8);
    assert_int_equal(d.n_over_limit, 8 + 5);
    cr_data_deinit(&d);
}

static void drawn_by_seed(void **state)
{
    (void)state;
    char one[65], same[65], other[65];
    struct cr_train_data d = read_data(4, 1000, 1);
    cr_data_hash(&d, one);
    cr_data_deinit(&d);
    d = read_data(4, 1000, 1);
    cr_data_hash(&d, same);
    cr_data_deinit(&d);
    d = read_data(4, 1000, 2);
    cr_data_hash(&d, other);
    cr_data_deinit(&d);
    assert_string_equal(one, same);
    assert_string_not_equal(one, other);
}

static void out_of_memory(void **state)
{
    (void)state;
    struct cr_data_options o = {.files = files.names,
                                .n_files = 2,
                                .rows_per_task = 5,
                                .max_tokens = 1000,
                                .seed = 1,
                                .want_qx = true};
    size_t before = cr_mem_now();
    for (uint64_t n = 1;; n++) {
        struct cr_train_data d;
        cr_mem_fail_at(n, true);
        enum cr_status status = cr_data_read(&d, model, &o, NULL);
        cr_mem_fail_at(0, false);
        if (status == CR_OK) {
            assert_non_null(d.qx);
            cr_data_deinit(&d);
            assert_true(n > 20);
            break;
        }
        assert_int_equal(status, CR_NO_MEMORY);
        assert_true(cr_mem_now() == before);
    }
    assert_true(cr_mem_now() == before);
}

static int group_setup(void **state)
{
    (void)state;
    train_files_init(&files);
    model = train_model(1);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    cr_model_close(model);
    train_files_deinit(&files);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tasks_and_rows), cmocka_unit_test(ids_are_those_of_scoring),
        cmocka_unit_test(limits),         cmocka_unit_test(drawn_by_seed),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
