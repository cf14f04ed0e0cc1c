/* SPDX-License-Identifier: Apache-2.0 */
/* Sums over the GPUs of this machine, or of several processes and machines, by
 * NCCL, which is loaded when it is needed. */
#ifndef CR_CUDA_NCCL_H
#define CR_CUDA_NCCL_H

#include "base/error.h"
#include "tune/peers.h"

#include <cuda_runtime_api.h>

struct cr_nccl;
/* For this process's GPUs first .. first+n-1, and with peers as many of each
 * other process, all of which must call it. CR_NOT_FOUND: libnccl.so.2 is not
 * there. Free with cr_nccl_free. */
enum cr_status cr_nccl_new(struct cr_nccl **out, int first, int n, struct cr_train_peers *peers,
                           struct cr_error *err);
void cr_nccl_free(struct cr_nccl *c);
/* v [n] of every GPU becomes the sum; each GPU's thread calls it for its number
 * from 0 in this process, queued on its stream. */
void cr_nccl_sum(struct cr_nccl *c, int gpu, float *v, size_t n, cudaStream_t stream);
/* The first failure of a sum. */
enum cr_status cr_nccl_check(struct cr_nccl *c, struct cr_error *err);

#endif
