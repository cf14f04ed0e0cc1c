/* SPDX-License-Identifier: Apache-2.0 */
/* dlopen and dlsym, under one lock. */
#include "base/lazy.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void keep_fault(struct cr_lazy *lib)
{
    const char *words = dlerror();
    if (!*lib->fault)
        snprintf(lib->fault, sizeof lib->fault, "%s", words ? words : "no reason given");
}

void cr_lazy_find(struct cr_lazy *lib, const char *name, void *call)
{
    void *found = dlsym(lib->handle, name);
    if (found)
        memcpy(call, &found, sizeof found);
    else
        keep_fault(lib);
}

enum cr_status cr_lazy_open(struct cr_lazy *lib, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    pthread_mutex_lock(&lock);
    if (!lib->ready) {
        *lib->fault = '\0';
        lib->handle = dlopen(lib->file, RTLD_NOW | RTLD_LOCAL);
        if (lib->handle)
            lib->find(lib);
        else
            keep_fault(lib);
        lib->ready = !*lib->fault;
    }
    if (!lib->ready)
        st = cr_error_set(err, CR_NOT_FOUND, "a library that this needs: %s", lib->fault);
    pthread_mutex_unlock(&lock);
    return st;
}
