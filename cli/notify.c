/* SPDX-License-Identifier: Apache-2.0 */
/* sd_notify(3) and sd_listen_fds(3) in a few lines: both are plain sockets and variables. */
#include "notify.h"

#include "options.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FIRST_FD = 3 };

int cr_notify_open(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t n = path ? strlen(path) : 0;
    if (n < 2 || n >= sizeof a.sun_path || (path[0] != '/' && path[0] != '@'))
        return -1;
    memcpy(a.sun_path, path, n);
    if (path[0] == '@')
        a.sun_path[0] = '\0'; /* the abstract namespace */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (path[0] == '/'));
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, len) != 0) {
        close(fd);
        fd = -1;
    }
    unsetenv("NOTIFY_SOCKET");
    return fd;
}

void cr_notify_send(int fd, const char *text)
{
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        return; /* nobody listens any more */
}

int cr_notify_watchdog_ms(void)
{
    const char *text = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    long long us, who;
    if (!text || !cr_parse_int(text, &us) || us < 2000 || us / 2000 > 1000000000)
        return 0;
    if (pid && (!cr_parse_int(pid, &who) || who != getpid()))
        return 0;
    return (int)(us / 2000);
}

enum cr_status cr_notify_socket(int *fd, struct cr_error *err)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    long long who, n;
    int listens = 0;
    socklen_t len = sizeof listens;
    *fd = -1;
    bool ours = pid && fds && cr_parse_int(pid, &who) && who == getpid() && cr_parse_int(fds, &n);
    if (!ours || n == 0)
        return CR_OK;
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (n != 1)
        return cr_error_set(err, CR_INVALID, "want one socket of systemd, found %lld", n);
    if (getsockopt(FIRST_FD, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) != 0 || !listens)
        return cr_error_set(err, CR_INVALID, "the socket of systemd does not listen for streams");
    fcntl(FIRST_FD, F_SETFD, FD_CLOEXEC);
    *fd = FIRST_FD;
    return CR_OK;
}
