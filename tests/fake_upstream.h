/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small server on loopback for tests of the upstream client: plain sockets, port 0, one thread.
 * Each connection is one request; `behave` writes whatever it likes.
 */
#ifndef FAKE_UPSTREAM_H
#define FAKE_UPSTREAM_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct fake {
    int listener, port;
    pthread_t thread;
    atomic_bool stop;
    atomic_int n_requests;
    atomic_size_t n_bytes;                           /* received, all requests */
    char request[1 << 16];                           /* the last one, NUL-terminated */
    void (*behave)(struct fake *f, int fd, int nth); /* nth from 1 */
    const char *text;                                /* for the behaviour */
};

static inline void fake_sleep(struct fake *f, int ms)
{
    for (; ms > 0 && !atomic_load(&f->stop); ms -= 10)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

static inline bool fake_write(int fd, const char *s, size_t n)
{
    while (n) {
        ssize_t k = send(fd, s, n, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        s += k;
        n -= (size_t)k;
    }
    return true;
}

static inline bool fake_puts(int fd, const char *s)
{
    return fake_write(fd, s, strlen(s));
}

/* A whole reply with Content-Length. status such as "200 OK"; headers "" or "Name: value\r\n". */
static inline void fake_reply(int fd, const char *status, const char *headers, const char *body)
{
    char head[2048];
    snprintf(head, sizeof head,
             "HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %zu\r\n"
             "Connection: close\r\n\r\n",
             status, headers, strlen(body));
    if (fake_puts(fd, head))
        fake_puts(fd, body);
}

static inline void fake_read_request(struct fake *f, int fd)
{
    size_t n = 0, want = 0;
    while (n + 1 < sizeof f->request && !atomic_load(&f->stop)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t k = recv(fd, f->request + n, sizeof f->request - 1 - n, 0);
        if (k <= 0)
            break;
        n += (size_t)k;
        f->request[n] = '\0';
        char *end = strstr(f->request, "\r\n\r\n"),
             *len = strcasestr(f->request, "Content-Length:");
        if (end && !want)
            want = (size_t)(end + 4 - f->request) + (len ? strtoul(len + 15, NULL, 10) : 0);
        if (want && n >= want)
            break;
    }
    atomic_fetch_add(&f->n_bytes, n);
}

static inline void *fake_run(void *ud)
{
    struct fake *f = ud;
    while (!atomic_load(&f->stop)) {
        struct pollfd p = {.fd = f->listener, .events = POLLIN};
        if (poll(&p, 1, 10) <= 0)
            continue;
        int fd = accept(f->listener, NULL, NULL);
        if (fd < 0)
            continue;
        fake_read_request(f, fd);
        f->behave(f, fd, atomic_fetch_add(&f->n_requests, 1) + 1);
        shutdown(fd, SHUT_WR);
        close(fd);
    }
    return NULL;
}

static inline bool fake_start(struct fake *f, void (*behave)(struct fake *, int, int))
{
    memset(f, 0, sizeof *f);
    f->behave = behave;
    f->listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (f->listener < 0 || bind(f->listener, (struct sockaddr *)&a, len) != 0 ||
        listen(f->listener, 8) != 0 || getsockname(f->listener, (struct sockaddr *)&a, &len) != 0)
        return false;
    f->port = ntohs(a.sin_port);
    return pthread_create(&f->thread, NULL, fake_run, f) == 0;
}

static inline void fake_stop(struct fake *f)
{
    atomic_store(&f->stop, true);
    pthread_join(f->thread, NULL);
    close(f->listener);
}

#endif
