/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training shared by several processes, with threads that stand for them: every one ends with the
 * same bits, close to what one process makes of the same steps. The real thing is e2e/mpi.sh.
 */
#include "base/mem.h"
#include "train_files.h"
#include "tune/trainer.h"

#include <math.h>
#include <pthread.h>

enum { MAX_PEERS = 3 };

/* Relative to the largest trained number, after six steps; seen: 1e-4. AdamW's first steps turn a
 * rounding of a gradient near zero into a share of the learning rate. */
#define BOUND 1e-3

struct meeting {
    pthread_barrier_t barrier;
    void *x[MAX_PEERS];
};

struct peer {
    struct cr_train_peers peers;
    struct meeting *at;
    struct cr_train_options options;
    pthread_t thread;
    enum cr_status status;
    struct cr_error err;
    float *params;
    size_t n_params;
    double loss;
    int stop_at;
};

static struct train_files files;

/* Adds in the order of ranks, in every peer. */
static void add(struct peer *p, void *x, size_t n, bool wide)
{
    float *f = cr_alloc0(n, sizeof *f);
    double *d = cr_alloc0(n, sizeof *d);
    p->at->x[p->peers.rank] = x;
    pthread_barrier_wait(&p->at->barrier);
    for (int r = 0; r < p->peers.size; r++)
        for (size_t i = 0; i < n; i++) {
            if (wide)
                d[i] += ((double *)p->at->x[r])[i];
            else
                f[i] += ((float *)p->at->x[r])[i];
        }
    pthread_barrier_wait(&p->at->barrier);
    memcpy(x, wide ? (void *)d : (void *)f, n * (wide ? sizeof *d : sizeof *f));
    cr_free(d);
    cr_free(f);
}

static enum cr_status sum(struct cr_train_peers *p, float *x, size_t n, struct cr_error *err)
{
    (void)err;
    add(p->ud, x, n, false);
    return CR_OK;
}

static enum cr_status sum_double(struct cr_train_peers *p, double *x, size_t n,
                                 struct cr_error *err)
{
    (void)err;
    add(p->ud, x, n, true);
    return CR_OK;
}

static bool progress(void *ud, const struct cr_train_progress *p)
{
    const struct peer *peer = ud;
    return peer->stop_at != p->step;
}

static void *train(void *arg)
{
    struct peer *p = arg;
    struct cr_train_report report;
    cr_model *m = train_model(1);
    cr_trainer *t = NULL;
    p->options.progress = progress;
    p->options.ud = p;
    p->status = cr_trainer_new(&t, m, &p->options, &p->err);
    if (!p->status) {
        p->status = cr_trainer_run(t, &report, &p->err);
        p->loss = (double)report.loss_last;
        p->n_params = t->low.n_params;
        p->params = cr_alloc(p->n_params, sizeof(float));
        memcpy(p->params, t->params, p->n_params * sizeof(float));
    }
    cr_trainer_free(t);
    cr_model_close(m);
    return NULL;
}

static void train_together(struct peer *all, int size, const struct cr_train_options *o)
{
    struct meeting at;
    assert_int_equal(pthread_barrier_init(&at.barrier, NULL, (unsigned)size), 0);
    for (int r = 0; r < size; r++) {
        all[r].at = &at;
        all[r].peers = (struct cr_train_peers){r, size, r, size, sum, sum_double, &all[r]};
        all[r].options = *o;
        all[r].options.peers = &all[r].peers;
        all[r].options.lr += (float)(all[r].stop_at < 0) * (float)r; /* other options */
        assert_int_equal(pthread_create(&all[r].thread, NULL, train, &all[r]), 0);
    }
    for (int r = 0; r < size; r++)
        pthread_join(all[r].thread, NULL);
    pthread_barrier_destroy(&at.barrier);
}

static void clear(struct peer *all, int size)
{
    for (int r = 0; r < size; r++)
        cr_free(all[r].params);
    memset(all, 0, (size_t)size * sizeof *all);
}

static void same_as_one(void **state)
{
    (void)state;
    const enum cr_pool_kind kinds[] = {CR_POOL_LIBRARY, CR_POOL_CENTROID};
    for (int kind = 0; kind < 2; kind++) {
        struct peer one = {0}, all[MAX_PEERS] = {0};
        struct cr_train_options o = train_options(&files);
        o.kind = kinds[kind];
        o.precision = CR_TRAIN_F32;
        one.options = o;
        train(&one);
        assert_int_equal(one.status, CR_OK);
        for (int size = 2; size <= MAX_PEERS; size++) {
            double worst = 0, most = 0;
            train_together(all, size, &o);
            for (int r = 0; r < size; r++) {
                assert_int_equal(all[r].status, CR_OK);
                assert_memory_equal(all[r].params, all[0].params, one.n_params * sizeof(float));
                assert_true(fabs(all[r].loss - one.loss) < 1e-4);
            }
            for (size_t i = 0; i < one.n_params; i++) {
                most = fmax(most, fabs((double)one.params[i]));
                worst = fmax(worst, fabs((double)one.params[i] - (double)all[0].params[i]));
            }
            print_message("%d processes: worst difference %.2g of %.2g\n", size, worst, most);
            assert_true(worst <= BOUND * most);
            clear(all, size);
        }
        clear(&one, 1);
    }
}

static void stopped_together(void **state)
{
    (void)state;
    struct peer all[2] = {{.stop_at = 0}, {.stop_at = 2}}; /* one of them is interrupted */
    struct cr_train_options o = train_options(&files);
    train_together(all, 2, &o);
    for (int r = 0; r < 2; r++)
        assert_int_equal(all[r].status, CR_CANCELLED);
    assert_int_equal(access(files.checkpoint, F_OK), 0);
    clear(all, 2);
    o.resume = true;
    train_together(all, 2, &o);
    for (int r = 0; r < 2; r++)
        assert_int_equal(all[r].status, CR_OK);
    assert_int_equal(access(files.pool, F_OK), 0);
    assert_int_not_equal(access(files.checkpoint, F_OK), 0);
    clear(all, 2);
}

static void must_agree(void **state)
{
    (void)state;
    struct peer all[2] = {{.stop_at = -1}, {.stop_at = -1}};
    struct cr_train_options o = train_options(&files);
    train_together(all, 2, &o);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(all[r].status, CR_INVALID);
        assert_non_null(strstr(all[r].err.msg, "the 2 processes do not have the same"));
    }
}

static int setup(void **state)
{
    (void)state;
    train_files_init(&files);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    train_files_deinit(&files);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_one),
        cmocka_unit_test(stopped_together),
        cmocka_unit_test(must_agree),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
