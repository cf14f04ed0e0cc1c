/* SPDX-License-Identifier: Apache-2.0 */
/* route/offline.c: promise 5 and attack 45. Each test runs in a child, for there is no way back. */
#include "route/offline.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Runs fn in a child; its exit code, or 1000 + the signal that ended it. */
static int in_child(int (*fn)(void))
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(fn());
    int st = 0;
    if (pid < 0 || waitpid(pid, &st, 0) != pid)
        return -1;
    return WIFSIGNALED(st) ? 1000 + WTERMSIG(st) : WEXITSTATUS(st);
}

static bool refused(int family, int type)
{
    errno = 0;
    int fd = socket(family, type, 0);
    return fd < 0 && errno == EPERM;
}

static bool all_refused(void)
{
    static const int families[] = {AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, AF_PACKET};
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW};
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            if (!refused(families[f], types[t]))
                return false;
    return true;
}

static int sockets(void)
{
    if (cr_offline_holds()) /* not yet: the check itself must be able to fail */
        return 1;
    if (cr_offline_enter(CR_OFFLINE_ALL, NULL) != CR_OK)
        return 2;
    if (!cr_offline_holds() || !all_refused())
        return 3;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 || errno != EPERM)
        return 4;
#ifdef SYS_io_uring_setup
    char params[256] = {0};
    if (syscall(SYS_io_uring_setup, 4, params) >= 0 || errno != EPERM)
        return 5;
#endif
    int fds[2]; /* what is not a socket still works */
    if (pipe(fds) != 0 || write(fds[1], "x", 1) != 1)
        return 6;
    return 0;
}

static int names(void)
{
    if (cr_offline_enter(CR_OFFLINE_ALL, NULL) != CR_OK)
        return 2;
    struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM};
    return getaddrinfo("example.com", "80", &hints, &list) != 0 ? 0 : 3;
}

static pthread_barrier_t barrier;
static void *early_thread(void *ud)
{
    pthread_barrier_wait(&barrier); /* running before the filter */
    pthread_barrier_wait(&barrier); /* filter applied by the other thread */
    *(bool *)ud = all_refused();
    return NULL;
}
static void *late_thread(void *ud)
{
    *(bool *)ud = all_refused();
    return NULL;
}

static int threads(void)
{
    pthread_t early, late;
    bool early_ok = false, late_ok = false;
    pthread_barrier_init(&barrier, NULL, 2);
    if (pthread_create(&early, NULL, early_thread, &early_ok) != 0)
        return 1;
    pthread_barrier_wait(&barrier);
    if (cr_offline_enter(CR_OFFLINE_ALL, NULL) != CR_OK)
        return 2;
    pthread_barrier_wait(&barrier);
    pthread_join(early, NULL);
    if (pthread_create(&late, NULL, late_thread, &late_ok) != 0)
        return 3;
    pthread_join(late, NULL);
    return early_ok && late_ok ? 0 : 4;
}

static int children(void)
{
    if (cr_offline_enter(CR_OFFLINE_ALL, NULL) != CR_OK)
        return 2;
    pid_t pid = fork();
    if (pid == 0)
        _exit(all_refused() ? 0 : 1);
    int st = 0;
    waitpid(pid, &st, 0);
    return WIFEXITED(st) ? WEXITSTATUS(st) : 3;
}

static int listening(void)
{
    int s = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
    int inherited = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (bind(s, (struct sockaddr *)&a, len) != 0 || listen(s, 4) != 0 ||
        getsockname(s, (struct sockaddr *)&a, &len) != 0 ||
        connect(c, (struct sockaddr *)&a, len) != 0)
        return 1;
    if (cr_offline_enter(CR_OFFLINE_LISTENING, NULL) != CR_OK)
        return 2;
    int got = accept(s, NULL, NULL);
    char byte = 0;
    if (got < 0 || send(got, "y", 1, 0) != 1 || recv(c, &byte, 1, 0) != 1 || byte != 'y')
        return 3;
    if (!all_refused())
        return 4;
    if (connect(inherited, (struct sockaddr *)&a, len) == 0 || errno != EPERM)
        return 5;
    return listen(inherited, 1) != 0 && errno == EPERM ? 0 : 6;
}

/* Landlock without seccomp: sockets can be made, but connect nowhere, also in threads made later.
 */
static bool connects(in_port_t port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = port};
    int c = socket(AF_INET, SOCK_STREAM, 0);
    bool ok = c >= 0 && connect(c, (struct sockaddr *)&a, sizeof a) == 0;
    close(c);
    return ok;
}
static void *thread_connects(void *ud)
{
    in_port_t *port = ud;
    *port = connects(*port);
    return NULL;
}
static int landlock(void)
{
    int s = socket(AF_INET, SOCK_STREAM, 0), other = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    pthread_t t;
    if (bind(s, (struct sockaddr *)&a, len) != 0 || listen(s, 4) != 0 ||
        getsockname(s, (struct sockaddr *)&a, &len) != 0 || !connects(a.sin_port))
        return 1;
    if (!cr_offline_landlock(-1))
        return 77;
    in_port_t port = a.sin_port;
    if (pthread_create(&t, NULL, thread_connects, &port) != 0 || pthread_join(t, NULL) != 0 || port)
        return 2;
    a.sin_port = 0;
    if (bind(other, (struct sockaddr *)&a, sizeof a) == 0)
        return 3;
    return connects(a.sin_port) ? 4 : 0;
}
static void test_landlock_is_a_second_lock(void **state)
{
    (void)state;
    int code = in_child(landlock);
    if (code == 77) {
        print_message("skip: this kernel has no Landlock with network rules\n");
        skip();
    }
    assert_int_equal(code, 0);
}

static void test_45_no_socket_of_any_family(void **state)
{
    (void)state;
    assert_int_equal(in_child(sockets), 0);
}
static void test_45_no_names_are_resolved(void **state)
{
    (void)state;
    assert_int_equal(in_child(names), 0);
}
static void test_holds_for_threads_before_and_after(void **state)
{
    (void)state;
    assert_int_equal(in_child(threads), 0);
}
static void test_holds_for_children(void **state)
{
    (void)state;
    assert_int_equal(in_child(children), 0);
}
static void test_listening_sockets_go_on(void **state)
{
    (void)state;
    assert_int_equal(in_child(listening), 0);
}

#ifdef __x86_64__
static int foreign_table(void)
{
    if (cr_offline_enter(CR_OFFLINE_ALL, NULL) != CR_OK)
        return 2;
    long rc = 359; /* socket in the table of 32-bit programs */
    __asm__ volatile("int $0x80" : "+a"(rc) : "b"(2L), "c"(1L), "d"(0L) : "memory");
    return 3; /* the call was answered */
}
static int foreign_x32(void)
{
    if (cr_offline_enter(CR_OFFLINE_ALL, NULL) != CR_OK)
        return 2;
    return syscall(0x40000000L | SYS_socket, AF_INET, SOCK_STREAM, 0) >= 0 ? 3 : 4;
}
static void test_other_call_tables_are_closed(void **state)
{
    (void)state;
    assert_int_equal(in_child(foreign_table), 1000 + SIGSYS);
    assert_int_equal(in_child(foreign_x32), 1000 + SIGSYS);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_45_no_socket_of_any_family),
        cmocka_unit_test(test_45_no_names_are_resolved),
        cmocka_unit_test(test_holds_for_threads_before_and_after),
        cmocka_unit_test(test_holds_for_children),
        cmocka_unit_test(test_listening_sockets_go_on),
        cmocka_unit_test(test_landlock_is_a_second_lock),
#ifdef __x86_64__
        cmocka_unit_test(test_other_call_tables_are_closed),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
