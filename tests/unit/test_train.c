/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole trainings of a small model: the same bits at any thread count and after every kind of
 * interruption, each kind of pool, what is refused, and that nothing is lost on a full disk.
 */
#include "adapt/score.h"
#include "base/mem.h"
#include "train_files.h"
#include "tune/fit.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static struct train_files files;

static void must(enum cr_status status, const struct cr_error *err)
{
    if (status)
        fail_msg("%s: %s", cr_status_text(status), err->msg);
}

static cr_trainer *trainer(cr_model *m, const struct cr_train_options *o)
{
    struct cr_error err;
    cr_trainer *t;
    must(cr_trainer_new(&t, m, o, &err), &err);
    return t;
}

/* Trains with the options; returns the last loss. */
static float train(int n_threads, const struct cr_train_options *o)
{
    struct cr_train_report report;
    struct cr_error err;
    cr_model *m = train_model(n_threads);
    cr_trainer *t = trainer(m, o);
    must(cr_trainer_run(t, &report, &err), &err);
    assert_int_equal(report.n_steps, cr_trainer_plan(t)->n_steps);
    assert_true(access(files.checkpoint, F_OK) != 0); /* no longer needed */
    cr_trainer_free(t);
    cr_model_close(m);
    return report.loss_last;
}

static char *file_bytes(const char *path, size_t *n)
{
    struct cr_error err;
    char *data;
    must(cr_file_read(path, 1u << 28, &data, n, &err), &err);
    return data;
}

static void same_files(const char *a, const char *b)
{
    size_t n, k;
    char *x = file_bytes(a, &n), *y = file_bytes(b, &k);
    assert_int_equal(n, k);
    assert_memory_equal(x, y, n);
    cr_free(y);
    cr_free(x);
}

static void refused(struct cr_train_options o, enum cr_status want, const char *text)
{
    struct cr_error err = {0};
    cr_trainer *t;
    cr_model *m = train_model(1);
    enum cr_status got = cr_trainer_new(&t, m, &o, &err);
    if (got != want || !strstr(err.msg, text))
        fail_msg("want %s with \"%s\", got %s: %s", cr_status_text(want), text, cr_status_text(got),
                 err.msg);
    assert_null(t);
    cr_model_close(m);
}

/* ---- the same bits ---- */

static void same_at_any_thread_count(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    o.out = files.other;
    float loss = train(1, &o);
    for (int n = 2; n <= 3; n++) {
        o.out = files.pool;
        assert_true(loss == train(n, &o));
        same_files(files.other, files.pool);
    }
}

static void same_when_recomputed(void **state)
{
    (void)state;
    const enum cr_train_precision precisions[] = {CR_TRAIN_F32, CR_TRAIN_AUTO};
    for (int i = 0; i < 2; i++) {
        struct cr_train_options o = train_options(&files);
        struct cr_error err;
        o.precision = precisions[i];
        o.out = i ? files.other : files.pool; /* files.other: as same_at_any_thread_count left it */
        if (!i)
            train(1, &o);
        char *kept = i ? files.other : files.pool, again[128];
        snprintf(again, sizeof again, "%s/again.gguf", files.dir);
        cr_model *m = train_model(2);
        cr_trainer *t = trainer(m, &o);
        uint64_t bytes = cr_trainer_plan(t)->activations_bytes;
        cr_trainer_free(t);
        o.recompute = true;
        o.out = again;
        t = trainer(m, &o);
        assert_true(cr_trainer_plan(t)->activations_bytes < bytes);
        must(cr_trainer_run(t, NULL, &err), &err);
        same_files(kept, again);
        cr_trainer_free(t);
        cr_model_close(m);
    }
}

static bool stop_at_3(void *ud, const struct cr_train_progress *p)
{
    *(int *)ud += 1;
    return p->step != 3;
}

/* files.other holds the pool of a straight run (see above). */
static void stop_and_resume(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_error err;
    int calls = 0;
    o.progress = stop_at_3;
    o.ud = &calls;
    cr_model *m = train_model(2);
    cr_trainer *t = trainer(m, &o);
    assert_int_equal(cr_trainer_run(t, NULL, &err), CR_CANCELLED);
    assert_int_equal(calls, 3);
    cr_trainer_free(t);

    refused(o, CR_INVALID, "resume it or remove it");
    o.resume = true;
    o.progress = NULL;
    struct cr_train_options other = o;
    other.lr = 2e-3f;
    refused(other, CR_INVALID, "lr was 0.00499999989, now it is 0.00200000009");
    other = o;
    other.rank = 4;
    refused(other, CR_INVALID, "rank was 2, now it is 4");

    t = trainer(m, &o);
    assert_int_equal(cr_trainer_plan(t)->resume_step, 3);
    must(cr_trainer_run(t, NULL, &err), &err);
    same_files(files.other, files.pool);
    cr_trainer_free(t);
    cr_model_close(m);
}

/* ---- kill -9 ---- */

static bool tell(void *ud, const struct cr_train_progress *p)
{
    char step = (char)p->step;
    return write(*(int *)ud, &step, 1) == 1;
}

/* A child trains with a checkpoint after every step and is killed `delay_us` after step `at`. */
static void train_and_kill(struct cr_train_options o, int at, useconds_t delay_us)
{
    int pipe_ends[2];
    assert_int_equal(pipe(pipe_ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct cr_error err;
        cr_trainer *t;
        cr_model *m;
        struct cr_model_options options = {.n_threads = 2};
        o.progress = tell;
        o.ud = &pipe_ends[1];
        _exit(cr_model_open(&m, TRAIN_MODEL, &options, &err) || cr_trainer_new(&t, m, &o, &err) ||
              cr_trainer_run(t, NULL, &err));
    }
    close(pipe_ends[1]);
    char step = 0;
    while (step < at && read(pipe_ends[0], &step, 1) == 1) {
    }
    usleep(delay_us);
    kill(child, SIGKILL);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    close(pipe_ends[0]);
}

static void killed_and_resumed(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    unsigned random = (unsigned)getpid();
    o.checkpoint_steps = 1;
    o.resume = true;
    for (int at = 1; at <= 4; at++) {
        random = random * 1103515245u + 12345u;
        train_and_kill(o, at, random / 65536 % 60000);
    }
    train(2, &o);
    same_files(files.other, files.pool);
}

/* ---- full disk ---- */

static void file_limit(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static bool fill_disk_at_2(void *ud, const struct cr_train_progress *p)
{
    (void)ud;
    assert_true(p->saved == (p->step <= 2));
    if (p->step == 2)
        file_limit(4096);
    return true;
}

static void full_disk(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_error err;
    signal(SIGXFSZ, SIG_IGN);
    o.checkpoint_steps = 1;
    o.progress = fill_disk_at_2;
    unlink(files.pool);
    cr_model *m = train_model(2);
    cr_trainer *t = trainer(m, &o);
    assert_int_equal(cr_trainer_run(t, NULL, &err), CR_IO); /* trained, but no pool */
    assert_true(access(files.pool, F_OK) != 0);
    file_limit(RLIM_INFINITY);
    o.resume = true;
    cr_trainer *again = trainer(m, &o); /* the checkpoint of step 2 is whole */
    assert_int_equal(cr_trainer_plan(again)->resume_step, 2);
    cr_trainer_free(again);
    must(cr_trainer_run(t, NULL, &err), &err); /* there is room now: only the pool is written */
    same_files(files.other, files.pool);
    cr_trainer_free(t);
    cr_model_close(m);
    assert_true(access(files.checkpoint, F_OK) != 0);
}

/* ---- each kind of pool ---- */

static void check_index(const cr_pool *p, int entries, const char *first)
{
    const struct cr_pool_index *x = &p->index;
    assert_int_equal(x->n_entries, entries);
    assert_string_equal(x->names[0], first);
    uint32_t rows = 0;
    for (int i = 0; i < entries; i++)
        rows += x->rows[i];
    assert_int_equal(rows, 21);
}

/* Trains, opens the file, and returns the pool. */
static cr_pool *trained_pool(cr_model *m, const struct cr_train_options *o, float *loss)
{
    struct cr_train_report report;
    struct cr_error err;
    cr_trainer *t = trainer(m, o);
    cr_pool *p;
    must(cr_trainer_run(t, &report, &err), &err);
    assert_true(report.loss_last < report.loss_first - 0.5f);
    *loss = report.loss_last;
    cr_trainer_free(t);
    must(cr_pool_open(&p, m, o->out, &err), &err);
    return p;
}

/* Mean NLL of the answers under the weights of one task, by the engine and not by the trainer. */
static double engine_loss(cr_model *m, const cr_pool *p, const char *file, const float *w)
{
    const struct cr_example_score *scores;
    struct cr_examples e;
    struct cr_error err;
    cr_delta *d = NULL;
    cr_scorer *s;
    double sum = 0;
    must(cr_examples_read(&e, file, &err), &err);
    must(cr_scorer_new(&s, m, NULL, e.v, 9, &err), &err);
    if (w)
        must(cr_pool_blend(&d, p, w, &err), &err);
    must(cr_scorer_run(s, d, &scores, NULL, NULL, &err), &err);
    for (int i = 0; i < 9; i++)
        sum += (double)scores[i].nll / 9;
    cr_scorer_free(s);
    cr_delta_free(d);
    cr_examples_deinit(&e);
    return sum;
}

static void library(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    float loss;
    o.name = "two tasks";
    o.command = "crayon pool train";
    o.type = CR_F16;
    o.steps = 25;
    cr_model *m = train_model(2);
    cr_pool *p = trained_pool(m, &o, &loss);
    assert_string_equal(p->name, "two tasks");
    assert_string_equal(p->command, "crayon pool train");
    assert_int_equal(p->steps, 25);
    assert_true(fabsf(p->loss - loss) < 1e-6f);
    check_index(p, 2, "colour");
    assert_string_equal(p->index.names[1], "animal");
    assert_string_equal(p->index.about[0], "What is the colour of grass?");
    assert_int_equal(p->index.rows[1], 9);
    double before = engine_loss(m, p, files.animal, NULL);
    double after = engine_loss(m, p, files.animal, p->index.weights + p->n);
    if (!(after < 0.5 * before))
        fail_msg("the pool does not help its own task: %g, was %g", after, before);
    cr_pool_close(p);
    cr_model_close(m);
}

/* The trainer's loss of one task before training is the engine's. */
static void loss_is_that_of_the_engine(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_train_report report;
    struct cr_error err;
    const char *one[] = {files.animal};
    o.files = one;
    o.n_files = 1;
    o.precision = CR_TRAIN_F32;
    o.kind = CR_POOL_LORA;
    o.n = 1;
    o.tokens_per_step = 1000;
    o.out = NULL;
    o.checkpoint = files.checkpoint;
    o.checkpoint_s = -1;
    cr_model *m = train_model(1);
    o.steps = 0;
    o.epochs = 1;
    cr_trainer *t = trainer(m, &o);
    const struct cr_train_plan *plan = cr_trainer_plan(t);
    assert_true(plan->n_steps == 1 && plan->n_rows == 9 && plan->n_no_answer == 1);
    must(cr_trainer_run(t, &report, &err), &err);
    double engine = engine_loss(m, NULL, files.animal, NULL);
    if (fabs((double)report.loss_first - engine) > 1e-3 * engine)
        fail_msg("trainer %g, engine %g", (double)report.loss_first, engine);
    cr_trainer_free(t);
    cr_model_close(m);
}

/* Tuning a blend begins at the blend: the first loss is the engine's with it, later ones are lower.
 */
static void start_from_a_blend(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_train_report report;
    struct cr_error err;
    const char *one[] = {files.animal};
    float loss;
    cr_trainer *t = NULL;
    cr_delta *d;
    cr_model *m = train_model(2);
    o.steps = 10;
    cr_pool *p = trained_pool(m, &o, &loss);
    const float *w = p->index.weights + p->n;
    must(cr_pool_blend(&d, p, w, &err), &err);
    double engine = engine_loss(m, p, files.animal, w);

    o.start = d;
    assert_int_equal(cr_trainer_new(&t, m, &o, &err), CR_INVALID); /* a library */
    o.kind = CR_POOL_LORA;
    o.n = 1;
    o.rank = p->rank + 1;
    assert_int_equal(cr_trainer_new(&t, m, &o, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "rank"));
    o.rank = p->rank;
    o.alpha = 5; /* any: the blend's scale is kept */
    o.files = one;
    o.n_files = 1;
    o.precision = CR_TRAIN_F32;
    o.tokens_per_step = 1000;
    o.steps = 8;
    o.out = NULL;
    t = trainer(m, &o);
    cr_delta_free(d);
    must(cr_trainer_run(t, &report, &err), &err);
    /* the engine rounds activations to 8 bits; without the start the loss is twice as high */
    if (fabs((double)report.loss_first - engine) > 1e-2 * engine)
        fail_msg("trainer %g, engine %g", (double)report.loss_first, engine);
    assert_true(report.loss_last < report.loss_first);
    cr_trainer_free(t);
    cr_pool_close(p);
    cr_model_close(m);
}

/* Mean loss of rows that were not trained on, under the delta. */
static double loss_of(cr_model *m, const struct cr_example *e, size_t n, const cr_delta *d)
{
    const struct cr_example_score *scores;
    struct cr_error err;
    cr_scorer *s;
    double sum = 0;
    must(cr_scorer_new(&s, m, NULL, e, n, &err), &err);
    must(cr_scorer_run(s, d, &scores, NULL, NULL, &err), &err);
    for (size_t i = 0; i < n; i++)
        sum += (double)scores[i].loss / (double)n;
    cr_scorer_free(s);
    return sum;
}

/* The level "tuned": from the blend, on examples in memory, better on rows that it has not seen;
 * the file that is read back has the index of the pool it came from. */
static void fit(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_examples e;
    struct cr_error err;
    const float one = 1;
    float loss;
    cr_delta *d, *tuned;
    cr_pool *q;
    cr_model *m = train_model(2);
    o.steps = 6;
    cr_pool *p = trained_pool(m, &o, &loss);
    must(cr_examples_read(&e, files.animal, &err), &err);
    must(cr_pool_blend(&d, p, p->index.weights + p->n, &err), &err);
    double before = loss_of(m, e.v + 6, 3, d);

    o = cr_train_options_default();
    cr_fit_options(&o, p, d);
    o.examples = e.v;
    o.n_examples = 6;
    o.lr = 3e-3f;
    cr_trainer *t = trainer(m, &o);
    const struct cr_train_plan *plan = cr_trainer_plan(t);
    assert_true(plan->n_rows == 6 && plan->n_steps == 8 && plan->epochs == 8); /* once a step */
    must(cr_trainer_run(t, NULL, &err), &err);
    must(cr_fit_pool(&q, t, p, &err), &err);
    must(cr_pool_write(q, files.pool, CR_F16, &err), &err);
    cr_pool_close(q);
    must(cr_pool_open(&q, m, files.pool, &err), &err);
    assert_true(q->kind == CR_POOL_LORA && q->n == 1 && q->rank == p->rank);
    assert_int_equal(q->index.n_entries, p->index.n_entries);
    assert_string_equal(q->index.names[1], "animal");
    assert_true(q->index.weights[0] == 1 && q->index.weights[1] == 1);
    assert_memory_equal(q->index.qx_proto, p->index.qx_proto, 2 * (size_t)m->q_dim * sizeof(float));
    assert_memory_equal(q->index.mid_std, p->index.mid_std, (size_t)m->n_embd * sizeof(float));
    must(cr_pool_blend(&tuned, q, &one, &err), &err);
    double after = loss_of(m, e.v + 6, 3, tuned);
    if (!(after < 0.9 * before))
        fail_msg("tuning does not help: %g, was %g", after, before);
    cr_delta_free(tuned);
    cr_delta_free(d);
    cr_trainer_free(t);
    cr_pool_close(q);
    cr_pool_close(p);
    cr_examples_deinit(&e);
    cr_model_close(m);
}

static void centroids(void **state)
{
    (void)state;
    for (int hard = 0; hard < 2; hard++) {
        struct cr_train_options o = train_options(&files);
        float loss;
        o.kind = CR_POOL_CENTROID;
        o.hard = hard;
        o.steps = 25;
        cr_model *m = train_model(2);
        cr_pool *p = trained_pool(m, &o, &loss);
        check_index(p, 3, "cluster 1");
        assert_true(p->hard == (bool)hard && p->index.tau_qx > 0 && p->index.tau_middle > 0);
        for (int i = 0; i < 9; i++)
            assert_true(p->index.weights[i] == (i % 4 == 0 ? 1.0f : 0.0f));
        cr_pool_close(p);
        cr_model_close(m);
    }
}

static void separate_and_lora(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    float loss;
    cr_model *m = train_model(2);
    o.steps = 25;
    o.form = CR_POOL_SEPARATE;
    cr_pool *p = trained_pool(m, &o, &loss);
    assert_true(p->form == CR_POOL_SEPARATE && p->n == 3);
    double after = engine_loss(m, p, files.animal, p->index.weights + p->n);
    assert_true(after < 0.5 * engine_loss(m, p, files.animal, NULL));
    cr_pool_close(p);

    o.form = CR_POOL_SHARED;
    o.kind = CR_POOL_LORA;
    o.n = 1;
    o.rank = 6;
    o.target[CR_LIN_K] = o.target[CR_LIN_GATE] = false;
    p = trained_pool(m, &o, &loss);
    assert_true(p->kind == CR_POOL_LORA && p->n_targets == 5 && p->index.weights[1] == 1);
    cr_pool_close(p);
    cr_model_close(m);
}

/* ---- refusals ---- */

static void bad_options(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    o.memory_limit = 1u << 20;
    refused(o, CR_LIMIT, "1 MiB are available");
    o = train_options(&files);
    o.n_files = 0;
    refused(o, CR_INVALID, "no task files");
    o = train_options(&files);
    o.rank = 0;
    refused(o, CR_INVALID, "rank is 0, want 1 to 1024");
    o = train_options(&files);
    o.lr = NAN;
    refused(o, CR_INVALID, "learning rate is nan");
    o = train_options(&files);
    memset(o.target, 0, sizeof o.target);
    refused(o, CR_INVALID, "no linear layer is a target");
    o = train_options(&files);
    o.kind = CR_POOL_LORA;
    refused(o, CR_INVALID, "n 1, got 3");
    o = train_options(&files);
    o.max_tokens = 3;
    refused(o, CR_INVALID, "no row with an answer of at most 3 tokens");
    o = train_options(&files);
    o.kind = CR_POOL_CENTROID;
    o.n = 22;
    refused(o, CR_INVALID, "21 rows for 22 clusters");
    o = train_options(&files);
    const char *missing[] = {files.colour, "/nowhere.jsonl"};
    o.files = missing;
    refused(o, CR_NOT_FOUND, "/nowhere.jsonl");
}

static void broken_checkpoint(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_error err;
    int calls = 0;
    size_t n;
    o.progress = stop_at_3;
    o.ud = &calls;
    cr_model *m = train_model(1);
    cr_trainer *t = trainer(m, &o);
    assert_int_equal(cr_trainer_run(t, NULL, &err), CR_CANCELLED);
    cr_trainer_free(t);
    cr_model_close(m);
    char *data = file_bytes(files.checkpoint, &n);
    o.resume = true;
    const size_t cuts[] = {0, 4, 8, 12, 16, 200, 700, n / 2, n - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        must(cr_file_write(files.checkpoint, data, cuts[i], &err), &err);
        refused(o, CR_FORMAT, files.checkpoint);
    }
    data[n / 2] ^= 1;
    must(cr_file_write(files.checkpoint, data, n, &err), &err);
    refused(o, CR_FORMAT, "checksum");
    unlink(files.checkpoint);
    cr_free(data);
}

static void diverging(void **state)
{
    (void)state;
    struct cr_train_options o = train_options(&files);
    struct cr_error err;
    o.lr = 10;
    o.clip = 0;
    o.steps = 60;
    cr_model *m = train_model(2);
    cr_trainer *t = trainer(m, &o);
    enum cr_status status = cr_trainer_run(t, NULL, &err);
    if (status) { /* or it survives with a useless but finite result */
        assert_int_equal(status, CR_INVALID);
        assert_non_null(strstr(err.msg, "try a learning rate below 10"));
    }
    cr_trainer_free(t);
    cr_model_close(m);
    unlink(files.checkpoint);
}

static int group_setup(void **state)
{
    (void)state;
    train_files_init(&files);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    train_files_deinit(&files);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_at_any_thread_count),
        cmocka_unit_test(same_when_recomputed),
        cmocka_unit_test(stop_and_resume),
        cmocka_unit_test(killed_and_resumed),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(library),
        cmocka_unit_test(loss_is_that_of_the_engine),
        cmocka_unit_test(start_from_a_blend),
        cmocka_unit_test(fit),
        cmocka_unit_test(centroids),
        cmocka_unit_test(separate_and_lora),
        cmocka_unit_test(bad_options),
        cmocka_unit_test(broken_checkpoint),
        cmocka_unit_test(diverging),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
