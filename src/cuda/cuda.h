/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA backend as the program sees it: training steps (tune/device.h) and
 * batches of scores and embeddings (model/compute.h) on NVIDIA GPUs.
 * docs/cuda.md.
 */
#ifndef CR_CUDA_H
#define CR_CUDA_H

#include "model/compute.h"
#include "tune/device.h"
#include "tune/peers.h"

/* GPUs that can be used; 0 with an error that says why. */
int cr_cuda_count(struct cr_error *err);
/* Name, memory and version of GPU i, as one line. */
void cr_cuda_name(int i, char *to, size_t size);

/* Training on n GPUs (0: all). With peers each process takes n of its machine's, or its share of
 * all of them; peers are borrowed until close. End with device->close. */
enum cr_status cr_cuda_train_new(struct cr_train_device **out, int n, struct cr_train_peers *peers,
                                 struct cr_error *err);
/* Scores and embeddings of m on the first GPU; m is borrowed. End with
 * compute->close. */
enum cr_status cr_cuda_compute_new(struct cr_compute **out, cr_model *m, struct cr_error *err);

#endif
