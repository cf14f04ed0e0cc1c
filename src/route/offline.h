/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Offline by the kernel's word: a seccomp filter under which this process, all its threads and all
 * its children can make no socket of any family. Calls that would use the network fail with EPERM;
 * the process goes on. There is no way back. Where the kernel has Landlock with network rules
 * (version 4, Linux 6.7), TCP connect and bind are closed by it as well: two locks, of which one is
 * enough.
 *
 * Limits: a descriptor that was inherited as a connected socket (say, standard output under a
 * socket activator) still takes write(); nothing new can be opened or addressed.
 */
#ifndef CR_OFFLINE_H
#define CR_OFFLINE_H

#include "base/error.h"

enum cr_offline {
    CR_OFFLINE_ALL,      /* no socket at all: `run` */
    CR_OFFLINE_LISTENING /* sockets that listen already may accept and answer: `serve` */
};

/* Applies the filter to every thread of the process (before or after they start) and checks by a
 * call that it holds. CR_UNSUPPORTED when the kernel has no seccomp: the caller must stop then. */
enum cr_status cr_offline_enter(enum cr_offline mode, struct cr_error *err);
/* Landlock for this thread and those that it starts from now on: no TCP connect, and no bind but to
 * `port` (0: any free one, -1: none). A server calls it before its threads start and
 * cr_offline_enter when it listens. True when the kernel has it. */
bool cr_offline_landlock(int port);
int cr_offline_landlock_version(void); /* 0: none */
/* Asks the kernel, not a flag: true when socket() fails with EPERM. */
bool cr_offline_holds(void);

#endif
