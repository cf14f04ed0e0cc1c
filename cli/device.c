/* SPDX-License-Identifier: Apache-2.0 */
/* The one place of the program that knows which devices were built in. */
#include "device.h"

#include "model/model.h"

#include <string.h>
#ifdef CRAYON_CUDA
#include "cuda/cuda.h"
#include "messages.h"
#endif

static bool wants_gpu(const struct cr_args *a)
{
    return a->v[CR_OPT_DEVICE].opt && !strcmp(cr_arg_text(a, CR_OPT_DEVICE), "cuda");
}

#ifndef CRAYON_CUDA

static enum cr_status not_built(struct cr_error *err)
{
    return cr_error_set(err, CR_UNSUPPORTED,
                        "--device cuda: this program was built without the CUDA backend "
                        "(CRAYON_CUDA)");
}

enum cr_status cr_device_compute(struct cr_compute **out, cr_model *m, const struct cr_args *a,
                                 struct cr_error *err)
{
    (void)m;
    *out = NULL;
    return wants_gpu(a) ? not_built(err) : CR_OK;
}

void cr_device_free_compute(struct cr_compute *c)
{
    (void)c;
}

enum cr_status cr_device_train(struct cr_train_device **out, const struct cr_args *a,
                               struct cr_train_peers *peers, struct cr_error *err)
{
    (void)peers;
    *out = NULL;
    return wants_gpu(a) ? not_built(err) : CR_OK;
}

void cr_device_free_train(struct cr_train_device *d)
{
    (void)d;
}

#else

enum cr_status cr_device_compute(struct cr_compute **out, cr_model *m, const struct cr_args *a,
                                 struct cr_error *err)
{
    char name[160];
    *out = NULL;
    if (!wants_gpu(a))
        return CR_OK;
    enum cr_status st = cr_cuda_compute_new(out, m, err);
    if (!st) {
        cr_cuda_name(0, name, sizeof name);
        cr_note("using GPU 0: %s", name);
        m->compute = *out;
    }
    return st;
}

void cr_device_free_compute(struct cr_compute *c)
{
    if (c)
        c->close(c);
}

enum cr_status cr_device_train(struct cr_train_device **out, const struct cr_args *a,
                               struct cr_train_peers *peers, struct cr_error *err)
{
    const char *text = cr_arg_text(a, CR_OPT_DEVICES);
    long long n = 0;
    *out = NULL;
    if (!wants_gpu(a))
        return CR_OK;
    if (strcmp(text, "all") && (!cr_parse_int(text, &n) || n < 1 || n > 64))
        return cr_error_set(err, CR_INVALID, "--devices is \"%s\", want all or 1 to 64", text);
    return cr_cuda_train_new(out, (int)n, peers, err);
}

void cr_device_free_train(struct cr_train_device *d)
{
    if (d)
        d->close(d);
}

#endif
