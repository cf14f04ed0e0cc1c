/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL through dlopen: one GPU needs no NCCL, and a build needs only its
 * header. */
#include "cuda/nccl.h"

#include "base/mem.h"

#include <dlfcn.h>
#include <nccl.h>
#include <stdatomic.h>

enum { MAX_GPUS = 64 };

struct cr_nccl {
    void *library;
    int n;
    ncclComm_t comm[MAX_GPUS];
    atomic_int failed;
    ncclResult_t (*unique_id)(ncclUniqueId *id);
    ncclResult_t (*init_rank)(ncclComm_t *comm, int n, ncclUniqueId id, int rank);
    ncclResult_t (*group_start)(void);
    ncclResult_t (*group_end)(void);
    ncclResult_t (*all_reduce)(const void *from, void *to, size_t n, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
    ncclResult_t (*destroy)(ncclComm_t comm);
    const char *(*text)(ncclResult_t result);
};

/* POSIX lets the two kinds of pointer be exchanged, ISO C does not. */
static void find(void *library, const char *name, void *to)
{
    *(void **)to = dlsym(library, name);
}

/* The id that rank 0 made; the others add zeros to it. */
static enum cr_status share(ncclUniqueId *id, struct cr_train_peers *peers, struct cr_error *err)
{
    double byte[sizeof id->internal] = {0};
    for (size_t i = 0; i < sizeof id->internal && peers->rank == 0; i++)
        byte[i] = (double)id->internal[i];
    enum cr_status st = peers->sum_double(peers, byte, sizeof id->internal, err);
    for (size_t i = 0; i < sizeof id->internal && !st; i++)
        id->internal[i] = (char)byte[i];
    return st;
}

static enum cr_status join(struct cr_nccl *c, int first, struct cr_train_peers *peers,
                           struct cr_error *err)
{
    ncclUniqueId id;
    ncclResult_t result = peers && peers->rank ? ncclSuccess : c->unique_id(&id);
    if (result == ncclSuccess && peers && share(&id, peers, err))
        return err->status;
    int rank = peers ? peers->rank * c->n : 0, all = peers ? peers->size * c->n : c->n;
    result = result == ncclSuccess ? c->group_start() : result;
    for (int i = 0; i < c->n && result == ncclSuccess; i++) {
        cudaSetDevice(first + i);
        result = c->init_rank(&c->comm[i], all, id, rank + i);
    }
    result = result == ncclSuccess ? c->group_end() : result;
    return result == ncclSuccess
               ? CR_OK
               : cr_error_set(err, CR_INTERNAL, "cuda: NCCL: %s", c->text(result));
}

enum cr_status cr_nccl_new(struct cr_nccl **out, int first, int n, struct cr_train_peers *peers,
                           struct cr_error *err)
{
    *out = NULL;
    if (n > MAX_GPUS)
        return cr_error_set(err, CR_LIMIT, "cuda: at most %d GPUs, got %d", MAX_GPUS, n);
    struct cr_nccl *c = cr_alloc0(1, sizeof *c);
    if (!c)
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory");
    c->n = n;
    c->library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!c->library) {
        cr_nccl_free(c);
        return cr_error_set(err, CR_NOT_FOUND, "cuda: more than one GPU needs NCCL: %s", dlerror());
    }
    find(c->library, "ncclGetUniqueId", &c->unique_id);
    find(c->library, "ncclCommInitRank", &c->init_rank);
    find(c->library, "ncclGroupStart", &c->group_start);
    find(c->library, "ncclGroupEnd", &c->group_end);
    find(c->library, "ncclAllReduce", &c->all_reduce);
    find(c->library, "ncclCommDestroy", &c->destroy);
    find(c->library, "ncclGetErrorString", &c->text);
    if (!c->unique_id || !c->init_rank || !c->group_start || !c->group_end || !c->all_reduce ||
        !c->destroy || !c->text) {
        cr_nccl_free(c);
        return cr_error_set(err, CR_UNSUPPORTED, "cuda: this libnccl.so.2 lacks a function");
    }
    enum cr_status st = join(c, first, peers, err);
    if (st)
        cr_nccl_free(c);
    else
        *out = c;
    return st;
}

void cr_nccl_free(struct cr_nccl *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n; i++)
        if (c->comm[i])
            c->destroy(c->comm[i]);
    if (c->library)
        dlclose(c->library);
    cr_free(c);
}

void cr_nccl_sum(struct cr_nccl *c, int gpu, float *v, size_t n, cudaStream_t stream)
{
    ncclResult_t result = c->all_reduce(v, v, n, ncclFloat, ncclSum, c->comm[gpu], stream);
    if (result != ncclSuccess)
        atomic_store(&c->failed, (int)result);
}

enum cr_status cr_nccl_check(struct cr_nccl *c, struct cr_error *err)
{
    int failed = atomic_load(&c->failed);
    return failed ? cr_error_set(err, CR_INTERNAL, "cuda: NCCL: %s", c->text((ncclResult_t)failed))
                  : CR_OK;
}
