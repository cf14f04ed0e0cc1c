/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The SIGBUS handler. It may only do what is safe in a handler: read atomics and call mmap. From
 * the page that was touched to the end of the mapping everything is replaced by zero pages: what
 * lies behind a lost page is lost too.
 */
#include "base/guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_MAPPINGS = 64 };

static struct mapping {
    atomic_uintptr_t begin; /* 0: free */
    atomic_uintptr_t end;
    atomic_bool damaged;
} mappings[MAX_MAPPINGS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of those who add and remove */
static struct sigaction old_action;
static uintptr_t page_size;

static struct mapping *find(uintptr_t address)
{
    for (size_t i = 0; i < MAX_MAPPINGS; i++) {
        uintptr_t begin = atomic_load(&mappings[i].begin);
        if (begin && address >= begin && address < atomic_load(&mappings[i].end))
            return &mappings[i];
    }
    return NULL;
}

static void on_bus_error(int sig, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t page = (uintptr_t)info->si_addr / page_size * page_size;
    struct mapping *m = find((uintptr_t)info->si_addr);
    if (m) {
        uintptr_t end = (atomic_load(&m->end) + page_size - 1) / page_size * page_size;
        atomic_store(&m->damaged, true);
        if (mmap((void *)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) != MAP_FAILED)
            return;
    }
    sigaction(sig, &old_action, NULL); /* the same access faults again, the old way */
}

void cr_guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    struct sigaction old;
    sigaction(SIGBUS, &action, &old);
    if (old.sa_sigaction != on_bus_error)
        old_action = old;
}

void cr_guard_add(const void *data, size_t size)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < MAX_MAPPINGS; i++) {
        struct mapping *m = &mappings[i];
        if (atomic_load(&m->begin))
            continue;
        atomic_store(&m->damaged, false);
        atomic_store(&m->end, (uintptr_t)data + size);
        atomic_store(&m->begin, (uintptr_t)data);
        break;
    }
    pthread_mutex_unlock(&lock);
}

void cr_guard_remove(const void *data)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < MAX_MAPPINGS; i++)
        if (atomic_load(&mappings[i].begin) == (uintptr_t)data)
            atomic_store(&mappings[i].begin, 0);
    pthread_mutex_unlock(&lock);
}

bool cr_guard_damaged(const void *data)
{
    const struct mapping *m = data ? find((uintptr_t)data) : NULL;
    return m && atomic_load(&m->damaged);
}
