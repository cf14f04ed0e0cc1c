/* SPDX-License-Identifier: Apache-2.0 */
/* What the small programs of this folder share: clocks, and an end at the first error. */
#ifndef BENCH_H
#define BENCH_H

#include "crayon.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Of all threads together: it does not count the time in which other programs run. */
static inline double processor_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static inline void die_if(enum cr_status status, const struct cr_error *err)
{
    if (status != CR_OK) {
        fprintf(stderr, "%s: %s\n", program_invocation_short_name, err->msg);
        exit(1);
    }
}

#endif
