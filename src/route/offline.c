/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seccomp filter behind --offline. Denied are the calls that make a socket or give one an
 * address, io_uring (which can do both without those calls) and pidfd_getfd (which takes a socket
 * from another process). A call through another architecture's table (int 0x80, x32) kills the
 * process: libseccomp's default, because the numbers mean other calls there.
 */
#include "route/offline.h"

#include <errno.h>
#include <seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* connect, bind and listen too: a socket that was inherited unconnected must stay so. */
static const char *const denied[] = {
    "socket",         "socketpair",     "connect",           "bind",       "listen",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "pidfd_getfd"};
/* The rest of what an inherited socket could do; a listening server needs these. sendto, sendmsg
 * and sendmmsg could name a new address on a datagram socket, but no such socket can be made. */
static const char *const denied_unless_listening[] = {"accept",  "accept4",  "sendto",
                                                      "sendmsg", "sendmmsg", "socketcall"};

static int deny(scmp_filter_ctx ctx, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int nr = seccomp_syscall_resolve_name(names[i]);
        if (nr == __NR_SCMP_ERROR || nr < 0) /* unknown to this library or architecture */
            continue;
        int rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), nr, 0);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- Landlock: not in the headers of older systems, so by number ---- */

struct ruleset {
    uint64_t fs, net;
};
struct port_rule {
    uint64_t allowed, port;
} __attribute__((packed));
enum {
    CREATE = 444,
    ADD_RULE,
    RESTRICT,
    VERSION_FLAG = 1,
    BIND_TCP = 1,
    CONNECT_TCP = 2,
    NET_PORT = 2
};

int cr_offline_landlock_version(void)
{
    long v = syscall(CREATE, NULL, (size_t)0, VERSION_FLAG);
    return v > 0 ? (int)v : 0;
}

bool cr_offline_landlock(int port)
{
    struct ruleset attr = {.net = CONNECT_TCP | BIND_TCP};
    struct port_rule rule = {.allowed = BIND_TCP, .port = (uint64_t)(port > 0 ? port : 0)};
    if (cr_offline_landlock_version() < 4)
        return false;
    int fd = (int)syscall(CREATE, &attr, sizeof attr, 0);
    bool ok = fd >= 0 && (port < 0 || syscall(ADD_RULE, fd, NET_PORT, &rule, 0) == 0) &&
              prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(RESTRICT, fd, 0) == 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

bool cr_offline_holds(void)
{
    static const int families[] = {AF_INET, AF_INET6, AF_NETLINK, AF_UNIX};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        int fd = socket(families[i], SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd >= 0)
            close(fd);
        if (fd >= 0 || errno != EPERM)
            return false;
    }
    return true;
}

enum cr_status cr_offline_enter(enum cr_offline mode, struct cr_error *err)
{
    if (mode == CR_OFFLINE_ALL)
        cr_offline_landlock(-1);
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    if (!ctx)
        return cr_error_set(err, CR_NO_MEMORY, "offline: no memory for the seccomp filter");
    int rc = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
    if (rc == 0)
        rc = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (rc == 0)
        rc = deny(ctx, denied, sizeof denied / sizeof *denied);
    if (rc == 0 && mode == CR_OFFLINE_ALL)
        rc = deny(ctx, denied_unless_listening,
                  sizeof denied_unless_listening / sizeof *denied_unless_listening);
    if (rc == 0)
        rc = seccomp_load(ctx); /* sets no_new_privs too */
    seccomp_release(ctx);
    if (rc < 0)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "offline: the kernel refused the seccomp filter: %s; nothing was run",
                            strerror(-rc));
    if (!cr_offline_holds())
        return cr_error_set(err, CR_UNSUPPORTED,
                            "offline: a socket could be made under the filter; nothing was run");
    return CR_OK;
}
