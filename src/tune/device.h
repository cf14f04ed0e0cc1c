/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam between training and a device that runs whole steps instead of this machine's CPU
 * (cuda/). The trainer keeps everything else: data, order, micro-batches, schedule, checkpoints and
 * the pool. A device keeps the parameters and moments between cr_train_device.start and .stop.
 */
#ifndef CR_TUNE_DEVICE_H
#define CR_TUNE_DEVICE_H

#include "tune/batch.h"
#include "tune/optim.h"

struct cr_device_job { /* all borrowed from start to stop */
    const cr_model *m;
    const struct cr_lowrank *low;
    const struct cr_adamw *adam; /* its moments are where start takes them from */
    struct cr_pass_shape shape;  /* the most of a micro-batch */
    size_t most_micros;          /* the most of a step */
};

struct cr_train_device {
    const char *name;      /* for messages */
    const char *precision; /* a setting of checkpoints: other devices round otherwise */
    int n_parallel;        /* micro-batches that run at a time, in all processes */
    void *state;
    /* CR_UNSUPPORTED: a model that the device does not know. */
    enum cr_status (*check)(struct cr_train_device *d, const cr_model *m, struct cr_error *err);
    uint64_t (*bytes)(struct cr_train_device *d, const struct cr_device_job *job);
    enum cr_status (*start)(struct cr_train_device *d, const struct cr_device_job *job,
                            const float *params, struct cr_error *err);
    /* Forward, backward and AdamW step number `step` from 1 at lr * factor. The weights of groups
     * are read from the device's own parameters where they are learned. */
    enum cr_status (*step)(struct cr_train_device *d, const struct cr_packed *p, long step,
                           float factor, double *loss, double *norm, struct cr_error *err);
    enum cr_status (*fetch)(struct cr_train_device *d, float *params, float *m, float *v,
                            struct cr_error *err);
    void (*stop)(struct cr_train_device *d);
    void (*close)(struct cr_train_device *d);
};

#endif
