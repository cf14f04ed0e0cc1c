/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger against the wire: a proxy that knows nothing of HTTP stands between the router and the
 * server and counts bytes both ways. After whole answers, streams, chunks, errors, retries, cuts
 * and cancels the totals of the ledger are what went over it.
 */
#include "fake_upstream.h"

#include "base/bytes.h"
#include "route/route.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define GOOD                                                                                       \
    "{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Paris\"},"       \
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}"
#define EVENT(text) "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" text "\"}}]}\n\n"
#define STREAM_HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

static struct fake server;
static int proxy_fd, proxy_port;
static pthread_t proxy_thread;
static atomic_bool proxy_stop;
static atomic_size_t n_out, n_in; /* from the router, to the router */

static void pass(int client)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)server.port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int up = socket(AF_INET, SOCK_STREAM, 0);
    bool open_client = true, open_up = connect(up, (struct sockaddr *)&a, sizeof a) == 0;
    char buf[65536];
    while ((open_client || open_up) && !atomic_load(&proxy_stop)) {
        struct pollfd p[2] = {{.fd = open_client ? client : -1, .events = POLLIN},
                              {.fd = open_up ? up : -1, .events = POLLIN}};
        if (poll(p, 2, 20) <= 0)
            continue;
        if (p[0].revents) {
            ssize_t n = recv(client, buf, sizeof buf, 0);
            open_client = n > 0;
            atomic_fetch_add(&n_out, n > 0 ? (size_t)n : 0);
            if (n <= 0) {
                shutdown(up, SHUT_WR);
                break;
            }
            fake_write(up, buf, (size_t)n);
        }
        if (p[1].revents) {
            ssize_t n = recv(up, buf, sizeof buf, 0);
            open_up = n > 0;
            if (n > 0 && fake_write(client, buf, (size_t)n))
                atomic_fetch_add(&n_in, (size_t)n);
            if (n <= 0)
                shutdown(client, SHUT_WR);
        }
    }
    close(up);
    close(client);
}

static void *run_proxy(void *ud)
{
    (void)ud;
    while (!atomic_load(&proxy_stop)) {
        struct pollfd p = {.fd = proxy_fd, .events = POLLIN};
        if (poll(&p, 1, 10) > 0) {
            int fd = accept(proxy_fd, NULL, NULL);
            if (fd >= 0)
                pass(fd);
        }
    }
    return NULL;
}

/* What the server does with its nth request. */
static void behave(struct fake *f, int fd, int nth)
{
    (void)f;
    switch (nth) {
    case 1:
        fake_reply(fd, "200 OK", "", GOOD);
        break;
    case 2:
        fake_puts(fd, STREAM_HEAD "Connection: close\r\n\r\n" EVENT("Pa")
                          EVENT("ris") "data: [DONE]\n\n");
        break;
    case 3: { /* in chunks, with an extension and a trailer */
        static const char event[] = EVENT("Paris") "data: [DONE]\n\n";
        char head[64];
        fake_puts(fd, STREAM_HEAD "Transfer-Encoding: chunked\r\n\r\n");
        snprintf(head, sizeof head, "%zx;a=b\r\n", sizeof event - 1);
        fake_puts(fd, head);
        fake_puts(fd, event);
        fake_puts(fd, "\r\n0\r\nX-Trailer: 1\r\n\r\n");
        break;
    }
    case 4:
        fake_reply(fd, "400 Bad", "", "{\"error\":{\"message\":\"no\"}}");
        break;
    case 5: /* tried again */
    case 6:
        fake_reply(fd, "503 Busy", "", "{}");
        break;
    case 7:
        fake_reply(fd, "200 OK", "", GOOD);
        break;
    case 8:
        fake_puts(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"cho");
        break;
    case 9:
        fake_reply(fd, "302 Away", "Location: http://127.0.0.1:1/\r\n", "");
        break;
    default:
        fake_puts(fd, "no HTTP at all\r\n\r\n");
        break;
    }
}

static void test_totals_are_the_bytes_on_the_wire(void **state)
{
    (void)state;
    char folder[64], file[128], url[64];
    struct cr_error err;
    cr_router *r;
    cr_ledger *l;
    struct cr_ledger_totals t;
    struct cr_message m = {"user", "The capital of France?"};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    snprintf(folder, sizeof folder, "/tmp/crayon-wire-XXXXXX");
    assert_non_null(mkdtemp(folder));
    assert_true(fake_start(&server, behave));
    proxy_fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(proxy_fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(proxy_fd, 8), 0);
    assert_int_equal(getsockname(proxy_fd, (struct sockaddr *)&a, &len), 0);
    proxy_port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&proxy_thread, NULL, run_proxy, NULL), 0);
    snprintf(file, sizeof file, "%s/ledger.db", folder);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", proxy_port);
    struct cr_upstream_options up = {
        .url = url, .model = "big", .key = "key-of-the-wire", .backoff_ms = 1, .pause_ms = 1};
    struct cr_router_options opt = {
        .rule = CR_RULE_RANDOM, .budget = 1, .upstream = &up, .ledger_path = file};
    assert_int_equal(cr_router_new(&r, &opt, &err), CR_OK);
    enum { ASKS = 9 };
    static const bool good[ASKS] = {true, true, true, false, true, false, false, false, false};
    for (int i = 0; i < ASKS; i++) {
        struct cr_ask ask = {
            .messages = &m, .n_messages = 1, .temperature = -1, .stream = i == 1 || i == 2};
        struct cr_remote_answer answer;
        enum cr_status st = cr_router_ask(r, &ask, &answer, &err);
        print_message("%d: %s\n", i + 1, st == CR_OK ? "ok" : err.msg);
        assert_true((st == CR_OK) == good[i]);
        if (st == CR_OK)
            assert_string_equal(answer.text, "Paris");
        cr_remote_answer_deinit(&answer);
        usleep(5000); /* the pause after three failures */
    }
    cr_router_free(r);
    usleep(100000);
    assert_int_equal(cr_ledger_open_read(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    cr_ledger_close(l);
    print_message("ledger %lld out, %lld in; wire %zu out, %zu in\n", (long long)t.bytes_out,
                  (long long)t.bytes_in, atomic_load(&n_out), atomic_load(&n_in));
    assert_int_equal(t.bytes_out, atomic_load(&n_out));
    assert_int_equal(t.bytes_in, atomic_load(&n_in));
    assert_int_equal(t.pending, 0);
    atomic_store(&proxy_stop, true);
    pthread_join(proxy_thread, NULL);
    close(proxy_fd);
    fake_stop(&server);
    static const char *const ends[] = {"", "-wal", "-shm"};
    for (int i = 0; i < 3; i++) {
        char path[160];
        snprintf(path, sizeof path, "%s%s", file, ends[i]);
        remove(path);
    }
    remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_totals_are_the_bytes_on_the_wire)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
