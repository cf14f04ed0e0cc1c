/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes on the wire to a live server with a tiny model. The first byte says in how many pieces they
 * are sent. What comes back is nothing or replies of HTTP; errors are JSON with an error inside;
 * the server never fails (500) and is there after each thousand.
 */
#include "base/bytes.h"
#include "model/model.h"
#include "serve/serve.h"

#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { WAIT_US = 300, MAX_REPLY = 1 << 20 };

static void check(bool ok)
{
    if (!ok)
        abort();
}

static int server_port(void)
{
    static cr_server *s; /* lives as long as the process */
    static cr_model *m;
    if (!s) {
        const struct cr_model_options one = {.n_threads = 1};
        check(cr_model_open(&m, CR_SOURCE_DIR "/tests/data/stories260K.gguf", &one, NULL) == CR_OK);
        const struct cr_serve_options opt = {
            .model = m, .model_name = "m", .n_ctx = 24, .parallel = 1, .max_body = 1 << 16};
        check(cr_server_start(&s, &opt, NULL) == CR_OK);
    }
    return cr_server_port(s);
}

static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)server_port()),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger hard = {.l_onoff = 1}; /* no port stays behind */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    check(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* Bytes of the reply at the beginning of s; 0: it is not whole. */
static size_t reply_size(const char *s, size_t n)
{
    const char *end = memmem(s, n, "\r\n\r\n", 4);
    if (!end)
        return 0;
    size_t head = (size_t)(end - s) + 4;
    const char *length = memmem(s, head, "\r\nContent-Length: ", 18);
    if (length) {
        size_t body = strtoul(length + 18, NULL, 10);
        return body <= n - head ? head + body : 0;
    }
    end = memmem(s + head, n - head, "\r\n0\r\n\r\n", 7);
    return end ? (size_t)(end - s) + 7 : 0;
}

/* One reply of HTTP. */
static void check_reply(const char *s, size_t n)
{
    check(n > 12 && memcmp(s, "HTTP/1.1 ", 9) == 0);
    long status = strtol(s + 9, NULL, 10);
    check((status >= 200 && status < 500) || status == 501 || status == 503 || status == 505);
    const char *body = memmem(s, n, "\r\n\r\n", 4);
    size_t head = (size_t)(body - s) + 4;
    check(!memmem(s, head, "\r\nAccess-Control", 16));
    if (status < 400 || !memmem(s, head, "application/json", 16) || head == n)
        return;
    json_t *v = json_loadb(s + head, n - head, 0, NULL);
    check(json_object_get(v, "error") != NULL);
    json_decref(v);
}

/* Reads what comes until nothing comes for a moment. */
static void read_replies(int fd)
{
    static char got[MAX_REPLY + 1];
    const struct timespec wait = {.tv_nsec = WAIT_US * 1000};
    struct pollfd p = {.fd = fd, .events = POLLIN};
    size_t n = 0, whole;
    while (n < MAX_REPLY && ppoll(&p, 1, &wait, NULL) == 1) {
        ssize_t k = recv(fd, got + n, MAX_REPLY - n, 0);
        if (k <= 0)
            break;
        n += (size_t)k;
        got[n] = '\0';
        while ((whole = reply_size(got, n)) > 0) {
            check_reply(got, whole);
            memmove(got, got + whole, n - whole + 1);
            n -= whole;
        }
    }
}

static void expect_health(void)
{
    static const char ask[] = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    char got[512];
    int fd = dial();
    struct pollfd p = {.fd = fd, .events = POLLIN};
    check(send(fd, ask, sizeof ask - 1, MSG_NOSIGNAL) == sizeof ask - 1 && poll(&p, 1, 60000) == 1);
    ssize_t n = recv(fd, got, sizeof got, 0);
    check(n > 15 && memcmp(got, "HTTP/1.1 200 OK", 15) == 0);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned n_runs;
    if (!size)
        return 0;
    size_t pieces = data[0] % 4 + 1u;
    int fd = dial();
    for (size_t i = 0, at = 1; i < pieces && at < size; i++) {
        size_t n = i + 1 == pieces ? size - at : (size - 1) / pieces;
        ssize_t sent = send(fd, data + at, n, MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        at += (size_t)sent;
    }
    if (memmem(data, size, "\r\n\r\n", 4)) /* else nothing is said yet */
        read_replies(fd);
    close(fd);
    if (++n_runs % 1000 == 0)
        expect_health();
    return 0;
}
