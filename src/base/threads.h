/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fixed pool of threads that splits rows. Work items are independent, so results cannot depend on
 * the number of threads. Spins briefly, then sleeps on a futex: an idle pool uses no CPU.
 */
#ifndef CR_THREADS_H
#define CR_THREADS_H

#include "base/error.h"

#include <stdatomic.h>

enum { CR_MAX_THREADS = 64 };

typedef struct cr_threads cr_threads;
/* Works on rows [begin, end) as worker `thread` (0 .. n_threads-1). */
typedef void cr_rows_fn(void *ud, size_t begin, size_t end, int thread);

/* n 0: one per online core. The calling thread is worker 0. Free with cr_threads_free. */
enum cr_status cr_threads_new(cr_threads **out, int n, struct cr_error *err);
void cr_threads_free(cr_threads *t);
int cr_threads_count(const cr_threads *t);
/* Runs fn over [0, n_rows) in pieces that are multiples of `grain` (the last may be short), each on
 * one worker, and returns when all are done. Callers on several threads take turns. */
void cr_threads_run(cr_threads *t, size_t n_rows, size_t grain, cr_rows_fn *fn, void *ud);
/* The same, but pieces of `grain` are handed out as workers become free: for uneven work. */
void cr_threads_run_dynamic(cr_threads *t, size_t n_rows, size_t grain, cr_rows_fn *fn, void *ud);
/* Waits, inside a round, for what another piece that has begun will set. */
void cr_threads_await(const atomic_bool *set);

#endif
