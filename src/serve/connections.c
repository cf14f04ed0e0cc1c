/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections in the order in which they have waited for a request to be complete. When nearly all
 * places are taken, the one that has waited longest has to go for each that comes: whoever sends a
 * byte now and then, or nothing, cannot keep others out. Those whose request is being answered
 * stay. All of this runs on libmicrohttpd's one thread.
 */
#include "serve/http.h"

#include "base/mem.h"

#include <sys/socket.h>

struct cr_connection {
    struct cr_connection *prev, *next;
    int fd;
    bool waits;
};

static void remove_from(struct cr_connections *all, struct cr_connection *k)
{
    if (!k->waits)
        return;
    *(k->prev ? &k->prev->next : &all->first) = k->next;
    *(k->next ? &k->next->prev : &all->last) = k->prev;
    k->waits = false;
}

static void append(struct cr_connections *all, struct cr_connection *k)
{
    k->prev = all->last;
    k->next = NULL;
    *(k->prev ? &k->prev->next : &all->first) = k;
    all->last = k;
    k->waits = true;
}

static struct cr_connection *of(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

void cr_connection_opened(struct cr_connections *all, struct MHD_Connection *c, void **context)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct cr_connection *k = cr_alloc0(1, sizeof *k), *oldest = all->first;
    *context = k;
    if (++all->n > all->most - all->most / 16 && oldest) {
        remove_from(all, oldest);
        shutdown(oldest->fd, SHUT_RDWR);
    }
    if (k && info) {
        k->fd = info->connect_fd;
        append(all, k);
    }
}

void cr_connection_closed(struct cr_connections *all, void **context)
{
    struct cr_connection *k = *context;
    all->n--;
    if (k)
        remove_from(all, k);
    cr_free(k);
    *context = NULL;
}

void cr_connection_busy(struct cr_connections *all, struct MHD_Connection *c, bool busy)
{
    struct cr_connection *k = of(c);
    if (!k)
        return;
    remove_from(all, k);
    if (!busy)
        append(all, k);
}
