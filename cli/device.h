/* SPDX-License-Identifier: Apache-2.0 */
/* --device and --devices: where batches and training steps run. */
#ifndef CR_CLI_DEVICE_H
#define CR_CLI_DEVICE_H

#include "crayon.h"
#include "options.h"

struct cr_compute;
struct cr_train_device;
struct cr_train_peers;

/* NULL where the verb has no --device, or it says cpu. CR_UNSUPPORTED: a build without CUDA.
 * Free with cr_device_free_compute once the model is no longer used. */
enum cr_status cr_device_compute(struct cr_compute **out, cr_model *m, const struct cr_args *a,
                                 struct cr_error *err);
void cr_device_free_compute(struct cr_compute *c);
/* The same for training, on --devices GPUs; with peers, on as many for each process. */
enum cr_status cr_device_train(struct cr_train_device **out, const struct cr_args *a,
                               struct cr_train_peers *peers, struct cr_error *err);
void cr_device_free_train(struct cr_train_device *d);

#endif
