/* SPDX-License-Identifier: Apache-2.0 */
/* What systemd wants to hear and what it hands over: sd_notify and socket activation, without its
 * library. Nothing happens where systemd did not start the process. */
#ifndef CR_NOTIFY_H
#define CR_NOTIFY_H

#include "base/error.h"

/* Connects to $NOTIFY_SOCKET, before offline mode makes that impossible. -1: there is none. */
int cr_notify_open(void);
/* "READY=1", "STATUS=...", "STOPPING=1", "WATCHDOG=1". fd -1: nothing. */
void cr_notify_send(int fd, const char *text);
/* Half of WATCHDOG_USEC in milliseconds; 0: no watchdog. */
int cr_notify_watchdog_ms(void);
/* The listening socket of a .socket unit ($LISTEN_FDS, $LISTEN_PID); -1: none. CR_INVALID when
 * there are several, or it does not listen. The variables are taken out of the environment. */
enum cr_status cr_notify_socket(int *fd, struct cr_error *err);

#endif
