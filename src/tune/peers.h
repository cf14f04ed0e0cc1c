/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam between training and the other processes that train the same pool. Every process reads
 * the same data and plans the same steps; of each step it runs its share of the micro-batches, and
 * the gradients of all are added. So `--step-tokens` is that of all processes together, and all
 * hold the same parameters after every step.
 */
#ifndef CR_TUNE_PEERS_H
#define CR_TUNE_PEERS_H

#include "base/error.h"

struct cr_train_peers {
    int rank, size;     /* this process of how many; rank 0 writes the files */
    int local, n_local; /* this process of how many on this machine */
    /* Each x becomes the sum over all processes, the same bits in every one. */
    enum cr_status (*sum)(struct cr_train_peers *p, float *x, size_t n, struct cr_error *err);
    enum cr_status (*sum_double)(struct cr_train_peers *p, double *x, size_t n,
                                 struct cr_error *err);
    void *ud;
};

/* The processes that a launcher (mpirun) started with this one, or NULL when it is alone.
 * CR_UNSUPPORTED: started by a launcher, but built without MPI. To be called once. */
enum cr_status cr_peers_open(struct cr_train_peers **out, struct cr_error *err);
/* ok false: ends all of them at once, as they would wait for this one for ever. */
void cr_peers_close(struct cr_train_peers *p, bool ok);

#endif
