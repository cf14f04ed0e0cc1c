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
    ncclResult_t (*init_all)(ncclComm_t *comm, int n, const int *devices);
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

enum cr_status cr_nccl_new(struct cr_nccl **out, int n, struct cr_error *err)
{
    *out = NULL;
    if (n > MAX_GPUS)
        return cr_error_set(err, CR_LIMIT, "cuda: at most %d GPUs, got %d", MAX_GPUS, n);
    struct cr_nccl *c = cr_alloc0(1, sizeof *c);
    if (!c)
        return cr_error_set(err, CR_NO_MEMORY, "cuda: out of memory");
    c->library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!c->library) {
        cr_nccl_free(c);
        return cr_error_set(err, CR_NOT_FOUND, "cuda: %d GPUs need NCCL: %s", n, dlerror());
    }
    find(c->library, "ncclCommInitAll", &c->init_all);
    find(c->library, "ncclAllReduce", &c->all_reduce);
    find(c->library, "ncclCommDestroy", &c->destroy);
    find(c->library, "ncclGetErrorString", &c->text);
    if (!c->init_all || !c->all_reduce || !c->destroy || !c->text) {
        cr_nccl_free(c);
        return cr_error_set(err, CR_UNSUPPORTED, "cuda: this libnccl.so.2 lacks a function");
    }
    ncclResult_t result = c->init_all(c->comm, n, NULL);
    if (result != ncclSuccess) {
        cr_error_set(err, CR_INTERNAL, "cuda: NCCL: %s", c->text(result));
        cr_nccl_free(c);
        return CR_INTERNAL;
    }
    c->n = n;
    *out = c;
    return CR_OK;
}

void cr_nccl_free(struct cr_nccl *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n; i++)
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
