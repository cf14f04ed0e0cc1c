/* SPDX-License-Identifier: Apache-2.0 */
/* What the two files of the upstream client share. */
#ifndef CR_UPSTREAM_IMPL_H
#define CR_UPSTREAM_IMPL_H

#include "route/upstream.h"

#include <pthread.h>

enum {
    CR_UPSTREAM_STEP_MS = 50, /* between two looks at deadlines and wishes */
    CR_UPSTREAM_MAX_KEY = 4096,
    CR_UPSTREAM_MAX_WAIT_MS = 10000 /* a longer Retry-After is not waited for */
};

struct cr_upstream {
    char *url, *model, *key, *ca_file;
    bool insecure, plain; /* plain: http */
    struct cr_upstream_options opt;
    pthread_mutex_t lock; /* of the two below */
    int n_failed;         /* calls in a row */
    int64_t pause_until_ms;
};

int64_t cr_upstream_now_ms(void); /* of a clock that nobody sets */
enum cr_status cr_upstream_no_memory(struct cr_error *err);

/* Money for so many tokens; -1 without prices. */
double cr_upstream_cost(const cr_upstream *u, int64_t tokens_in, int64_t tokens_out);

/* One request and its reply within left_ms: adds to *answer what left and came. *again: another try
 * may help, after wait_ms. */
enum cr_status cr_upstream_try(cr_upstream *u, const struct cr_outgoing *o, int64_t left_ms,
                               struct cr_remote_answer *answer, bool *again, int64_t *wait_ms,
                               struct cr_error *err);

#endif
