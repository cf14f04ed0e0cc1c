/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread pool. A round is a job cut into pieces. Whoever is awake, the caller too, claims the
 * next piece, until none is left; then the caller waits for the pieces that are still at work, but
 * never for a worker that took none: on a machine where other programs run, a worker may not get a
 * processor for a while, and the others do its share. Workers spin for a moment between rounds and
 * then sleep on a futex.
 *
 * The caller and every other worker take the first half of the pieces in order, the rest the second
 * half, and then what the others left: of two threads each reads memory in its order, and what it
 * asks for ahead of a piece is its own.
 *
 * `claim` holds the number of the round above the counts of pieces left in both halves, in one
 * word: a worker that comes late cannot take a piece of a round that is over, or of another than
 * whose fields it reads.
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

enum {
    SPINS = 4000, /* about 20 us: longer than the gap between two products of one token */
    PIECES = 4    /* for each thread, at most, of even work */
};

struct cr_threads {
    int n, n_started;
    pthread_t threads[CR_MAX_THREADS];
    pthread_mutex_t turn; /* one round at a time */
    atomic_uint generation, done, next_id, sleepers;
    atomic_uint_fast64_t claim; /* round << 32 | pieces left: in the first half << 16 | second */
    unsigned n_pieces;
    atomic_bool stop, waits; /* waits: the caller sleeps until all is done */
    cr_rows_fn *fn;
    void *ud;
    size_t n_rows, piece; /* rows of a piece */
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

/* Pieces of the first half. */
static unsigned first_half(unsigned n_pieces)
{
    return n_pieces - n_pieces / 2;
}

/* Works on pieces of this round until none is left. */
static void do_pieces(cr_threads *t, unsigned round, int id)
{
    unsigned mine = 0, n = 0;
    for (;;) {
        uint_fast64_t claim = atomic_load(&t->claim);
        const unsigned first = (unsigned)claim >> 16, second = (unsigned)claim & 0xffff;
        const bool from_second = second && (id % 2 || !first);
        if (claim >> 32 != round || !(first || second))
            break;
        if (!atomic_compare_exchange_weak(&t->claim, &claim, claim - (from_second ? 1 : 1 << 16)))
            continue;
        /* the round cannot end before this piece is counted, so its fields stay */
        n = t->n_pieces;
        size_t begin = (from_second ? n - second : first_half(n) - first) * t->piece;
        size_t end = begin + t->piece < t->n_rows ? begin + t->piece : t->n_rows;
        t->fn(t->ud, begin, end, id);
        mine++;
    }
    if (mine && atomic_fetch_add(&t->done, mine) + mine == n && atomic_load(&t->waits))
        futex_wake(&t->done);
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
        seen = atomic_load(&t->generation);
        if (atomic_load(&t->stop))
            return NULL;
        do_pieces(t, seen, id);
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
    const unsigned round = atomic_load(&t->generation) + 1, n = t->n_pieces;
    atomic_store(&t->claim, (uint_fast64_t)round << 32 | first_half(n) << 16 | n / 2);
    atomic_store(&t->generation, round);
    if (atomic_load(&t->sleepers))
        futex_wake(&t->generation);
}

void cr_threads_free(cr_threads *t)
{
    if (!t)
        return;
    atomic_store(&t->stop, true);
    t->n_pieces = 0;
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

static void run(cr_threads *t, size_t n_rows, size_t piece, cr_rows_fn *fn, void *ud)
{
    pthread_mutex_lock(&t->turn);
    if (t->n == 1 || n_rows <= piece) {
        fn(ud, 0, n_rows, 0);
        pthread_mutex_unlock(&t->turn);
        return;
    }
    unsigned n = (unsigned)((n_rows + piece - 1) / piece), done;
    t->fn = fn;
    t->ud = ud;
    t->n_rows = n_rows;
    t->piece = piece;
    t->n_pieces = n;
    atomic_store(&t->done, 0);
    begin_round(t);
    do_pieces(t, atomic_load(&t->generation), 0);
    for (int i = 0; i < SPINS && atomic_load(&t->done) != n; i++)
        pause_cpu();
    if (atomic_load(&t->done) != n) {
        atomic_store(&t->waits, true); /* before the last look at done, so that none is missed */
        while ((done = atomic_load(&t->done)) != n)
            futex_wait(&t->done, done);
        atomic_store(&t->waits, false);
    }
    pthread_mutex_unlock(&t->turn);
}

/* The smallest piece, a multiple of the grain, that makes no more pieces than fit `claim`. */
static size_t fitting(size_t n_rows, size_t grain)
{
    grain = grain ? grain : 1;
    return (n_rows >> 16) / grain * grain + grain;
}

/* Rows of a piece, such that n threads of one speed end together: of the counts of pieces that do
 * it best, the largest. */
static size_t even_piece(size_t n_rows, size_t grain, size_t n)
{
    const size_t grains = n_rows / grain + (n_rows % grain != 0);
    size_t best = 0, least = SIZE_MAX;
    for (size_t k = PIECES; k > 0; k--) {
        size_t piece = (grains + n * k - 1) / (n * k), pieces = (grains + piece - 1) / piece;
        size_t longest = (pieces + n - 1) / n * piece; /* what the busiest thread takes */
        if (longest < least) {
            least = longest;
            best = piece;
        }
    }
    return best * grain;
}

void cr_threads_run(cr_threads *t, size_t n_rows, size_t grain, cr_rows_fn *fn, void *ud)
{
    grain = fitting(n_rows, grain);
    if (n_rows)
        run(t, n_rows, even_piece(n_rows, grain, (size_t)t->n), fn, ud);
}

void cr_threads_run_dynamic(cr_threads *t, size_t n_rows, size_t grain, cr_rows_fn *fn, void *ud)
{
    if (n_rows)
        run(t, n_rows, fitting(n_rows, grain), fn, ud);
}

void cr_threads_await(const atomic_bool *set)
{
    for (int i = 0; !atomic_load_explicit(set, memory_order_acquire); i++) {
        if (i < SPINS)
            pause_cpu();
        else
            sched_yield();
    }
}
