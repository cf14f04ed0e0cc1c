/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread pool. A round is a job published under a generation counter; workers spin on it for a
 * moment and then sleep on a futex. The caller works too and then waits for the stragglers.
 */
#include "base/threads.h"

#include "base/mem.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 4000 }; /* about 20 us: longer than the gap between two products of one token */

struct cr_threads {
    int n, n_started;
    pthread_t threads[CR_MAX_THREADS];
    pthread_mutex_t turn; /* one round at a time */
    atomic_uint generation, running, next_id, sleepers;
    atomic_bool stop;
    cr_rows_fn *fn;
    void *ud;
    size_t n_rows, grain;
    bool dynamic;
    atomic_size_t next_row;
};

static void futex_wait(atomic_uint *word, unsigned seen)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void do_share(cr_threads *t, int id)
{
    if (t->dynamic) {
        for (;;) {
            size_t begin = atomic_fetch_add(&t->next_row, t->grain);
            if (begin >= t->n_rows)
                return;
            size_t end = begin + t->grain < t->n_rows ? begin + t->grain : t->n_rows;
            t->fn(t->ud, begin, end, id);
        }
    }
    size_t pieces = (t->n_rows + t->grain - 1) / t->grain, n = (size_t)t->n, i = (size_t)id;
    size_t begin = pieces * i / n * t->grain, end = pieces * (i + 1) / n * t->grain;
    if (end > t->n_rows)
        end = t->n_rows;
    if (begin < end)
        t->fn(t->ud, begin, end, id);
}

static void *worker(void *arg)
{
    cr_threads *t = arg;
    int id = (int)atomic_fetch_add(&t->next_id, 1);
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&t->generation) == seen; i++)
            pause_cpu();
        while (atomic_load(&t->generation) == seen) {
            atomic_fetch_add(&t->sleepers, 1);
            futex_wait(&t->generation, seen);
            atomic_fetch_sub(&t->sleepers, 1);
        }
        seen++;
        if (atomic_load(&t->stop))
            return NULL;
        do_share(t, id);
        if (atomic_fetch_sub(&t->running, 1) == 1)
            futex_wake(&t->running);
    }
}

static int cores_online(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

enum cr_status cr_threads_new(cr_threads **out, int n, struct cr_error *err)
{
    *out = NULL;
    if (n < 0 || n > CR_MAX_THREADS)
        return cr_error_set(err, CR_INVALID, "threads: want 0 to %d, got %d", CR_MAX_THREADS, n);
    if (n == 0)
        n = cores_online() < CR_MAX_THREADS ? cores_online() : CR_MAX_THREADS;
    cr_threads *t = cr_alloc0(1, sizeof *t);
    if (!t)
        return cr_error_set(err, CR_NO_MEMORY, "threads: out of memory");
    t->n = n;
    atomic_store(&t->next_id, 1);
    pthread_mutex_init(&t->turn, NULL);
    for (int i = 1; i < n; i++) {
        if (pthread_create(&t->threads[i], NULL, worker, t) != 0) {
            t->n = i; /* the workers that did start are stopped with the pool */
            cr_threads_free(t);
            return cr_error_set(err, CR_LIMIT, "threads: the system gave %d of %d", i, n);
        }
        t->n_started = i;
    }
    *out = t;
    return CR_OK;
}

static void begin_round(cr_threads *t)
{
    atomic_store(&t->running, (unsigned)(t->n - 1));
    atomic_fetch_add(&t->generation, 1);
    if (atomic_load(&t->sleepers))
        futex_wake(&t->generation);
}

void cr_threads_free(cr_threads *t)
{
    if (!t)
        return;
    atomic_store(&t->stop, true);
    begin_round(t);
    futex_wake(&t->generation);
    for (int i = 1; i <= t->n_started; i++)
        pthread_join(t->threads[i], NULL);
    pthread_mutex_destroy(&t->turn);
    cr_free(t);
}

int cr_threads_count(const cr_threads *t)
{
    return t->n;
}

static void run(cr_threads *t, size_t n_rows, size_t grain, bool dynamic, cr_rows_fn *fn, void *ud)
{
    if (n_rows == 0)
        return;
    if (grain == 0)
        grain = 1;
    pthread_mutex_lock(&t->turn);
    if (t->n == 1 || n_rows <= grain) {
        fn(ud, 0, n_rows, 0);
        pthread_mutex_unlock(&t->turn);
        return;
    }
    t->fn = fn;
    t->ud = ud;
    t->n_rows = n_rows;
    t->grain = grain;
    t->dynamic = dynamic;
    atomic_store(&t->next_row, 0);
    begin_round(t);
    do_share(t, 0);
    for (int i = 0; i < SPINS && atomic_load(&t->running); i++)
        pause_cpu();
    for (unsigned left; (left = atomic_load(&t->running)) != 0;)
        futex_wait(&t->running, left);
    pthread_mutex_unlock(&t->turn);
}

void cr_threads_run(cr_threads *t, size_t n_rows, size_t grain, cr_rows_fn *fn, void *ud)
{
    run(t, n_rows, grain, false, fn, ud);
}

void cr_threads_run_dynamic(cr_threads *t, size_t n_rows, size_t grain, cr_rows_fn *fn, void *ud)
{
    run(t, n_rows, grain, true, fn, ud);
}
