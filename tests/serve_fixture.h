/* SPDX-License-Identifier: Apache-2.0 */
/* A live server on a free loopback port, spoken to over plain sockets. For one test file each. */
#ifndef SERVE_FIXTURE_H
#define SERVE_FIXTURE_H

#include "base/bytes.h"
#include "serve/serve.h"

#include <jansson.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static cr_model *model;

static inline int dial_port(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval limit = {.tv_sec = 60};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static inline int dial(const cr_server *s)
{
    return dial_port(cr_server_port(s));
}

static inline void send_text(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Everything until the peer closes; free with cr_free. */
static inline char *read_all(int fd)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 24);
    char chunk[4096];
    for (ssize_t n; (n = recv(fd, chunk, sizeof chunk, 0)) > 0;)
        cr_buf_add(&b, chunk, (size_t)n);
    close(fd);
    return cr_buf_detach(&b, NULL);
}

static inline char *exchange(const cr_server *s, const char *request)
{
    int fd = dial(s);
    send_text(fd, request);
    return read_all(fd);
}

static inline void post_on(int fd, const char *path, const char *body)
{
    char head[512];
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\nConnection: close\r\n\r\n",
             path, strlen(body));
    send_text(fd, head);
    send_text(fd, body);
}

static inline char *post(const cr_server *s, const char *path, const char *body)
{
    int fd = dial(s);
    post_on(fd, path, body);
    return read_all(fd);
}

static inline int status_of(const char *reply)
{
    return strncmp(reply, "HTTP/1.1 ", 9) == 0 ? (int)strtol(reply + 9, NULL, 10) : -1;
}

static inline json_t *body_of(const char *reply)
{
    const char *body = strstr(reply, "\r\n\r\n");
    json_t *v = body ? json_loads(body + 4, 0, NULL) : NULL;
    if (!v)
        fail_msg("no JSON body: %s", reply);
    return v;
}

static inline void expect_status(char *reply, int http)
{
    if (status_of(reply) != http)
        fail_msg("want %d, got: %.300s", http, reply);
    cr_free(reply);
}

static inline cr_server *start(int max_queue, const char *key)
{
    struct cr_serve_options opt = {
        .model = model, .model_name = "m", .n_ctx = 512, .max_queue = max_queue, .key = key};
    cr_server *s;
    struct cr_error err;
    if (cr_server_start(&s, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return s;
}

static inline int open_model(void **state)
{
    (void)state;
    struct cr_error err;
    if (cr_model_open(&model, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", NULL, &err) != CR_OK) {
        print_error("%s\n", err.msg);
        return -1;
    }
    return 0;
}

static inline int close_model(void **state)
{
    (void)state;
    cr_model_close(model);
    return 0;
}

#endif
