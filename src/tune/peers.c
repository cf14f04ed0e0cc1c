/* SPDX-License-Identifier: Apache-2.0 */
/* Processes of a training that MPI started (CMake option CRAYON_MPI). */
#include "tune/peers.h"

#include <stdlib.h>

/* Set by Open MPI, and by the process managers of MPICH and Slurm. */
static bool launched(void)
{
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *n = getenv(sizes[i]);
        if (n && strtol(n, NULL, 10) > 1)
            return true;
    }
    return false;
}

#ifdef CRAYON_MPI
#include <mpi.h>

enum { PIECE = 1 << 22 }; /* numbers in one message */

/* To rank 0 and back: there the order of additions is one, and all get the same bits. */
static enum cr_status sum_of(void *x, size_t n, size_t size, MPI_Datatype type,
                             const struct cr_train_peers *p, struct cr_error *err)
{
    for (size_t at = 0; at < n; at += PIECE) {
        int some = (int)(n - at < PIECE ? n - at : PIECE);
        void *from = (char *)x + at * size;
        int bad = p->rank == 0
                      ? MPI_Reduce(MPI_IN_PLACE, from, some, type, MPI_SUM, 0, MPI_COMM_WORLD)
                      : MPI_Reduce(from, NULL, some, type, MPI_SUM, 0, MPI_COMM_WORLD);
        bad = bad ? bad : MPI_Bcast(from, some, type, 0, MPI_COMM_WORLD);
        if (bad)
            return cr_error_set(err, CR_IO, "training: MPI gave error %d", bad);
    }
    return CR_OK;
}

static enum cr_status sum(struct cr_train_peers *p, float *x, size_t n, struct cr_error *err)
{
    return sum_of(x, n, sizeof *x, MPI_FLOAT, p, err);
}

static enum cr_status sum_double(struct cr_train_peers *p, double *x, size_t n,
                                 struct cr_error *err)
{
    return sum_of(x, n, sizeof *x, MPI_DOUBLE, p, err);
}

enum cr_status cr_peers_open(struct cr_train_peers **out, struct cr_error *err)
{
    static struct cr_train_peers peers = {.sum = sum, .sum_double = sum_double};
    *out = NULL;
    if (!launched())
        return CR_OK;
    int level;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level))
        return cr_error_set(err, CR_IO, "training: MPI does not start");
    MPI_Comm_rank(MPI_COMM_WORLD, &peers.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &peers.size);
    MPI_Comm here;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, peers.rank, MPI_INFO_NULL, &here);
    MPI_Comm_rank(here, &peers.local);
    MPI_Comm_size(here, &peers.n_local);
    MPI_Comm_free(&here);
    *out = &peers;
    return CR_OK;
}

void cr_peers_close(struct cr_train_peers *p, bool ok)
{
    if (p && !ok)
        MPI_Abort(MPI_COMM_WORLD, 1);
    else if (p)
        MPI_Finalize();
}
#else
enum cr_status cr_peers_open(struct cr_train_peers **out, struct cr_error *err)
{
    *out = NULL;
    return !launched() ? CR_OK
                       : cr_error_set(err, CR_UNSUPPORTED,
                                      "training in several processes needs a build with MPI "
                                      "(cmake -DCRAYON_MPI=ON)");
}

void cr_peers_close(struct cr_train_peers *p, bool ok)
{
    (void)p;
    (void)ok;
}
#endif
