/* SPDX-License-Identifier: Apache-2.0 */
/*
 * N streaming clients of an OpenAI-compatible server in one thread: each sends a prompt, reads the
 * stream to its end and sends the next. Costs the server's cores as little as can be, and says how
 * much that was.
 *
 *     client PORT CLIENTS SECONDS SEED MODEL[,MODEL...]
 *
 * With several models the clients take them in turn. SECONDS 0: each client sends one request as
 * long as any, so that the server has touched all memory that it will use.
 * Prompts of 8 to 72 words and answers of at most 16 to 112 tokens, by the seed: two servers get
 * the same. Prints one JSON object: requests, errors by kind, the tokens that arrived within
 * SECONDS, processor seconds of this program, and the time to the first token of each request in
 * ms.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_LINE = 8192, MAX_FIRST = 1 << 20 };

struct client {
    int fd;
    unsigned index;
    double start, first, again; /* again: not before this time, after a 503 */
    int status;
    bool done, head, body_size; /* head: still in the header; body_size: at a chunk's size */
    size_t chunk;               /* bytes left in it */
    char line[MAX_LINE];
    size_t n_line, n_size;
    char size[16];
};

static const char *const words[] = {"sea",  "ship",  "harbour", "wind", "storm",  "captain",
                                    "map",  "gold",  "island",  "rope", "sail",   "night",
                                    "star", "whale", "letter",  "fire", "garden", "bread"};
static char *models[64];
static unsigned n_models;
static int port;
static uint64_t state;
static double started, until;
static bool warm;
static long requests, refused, errors, cut, tokens, told;
static float *first_ms;
static size_t n_first;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static unsigned dice(unsigned n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(state >> 33) % n;
}

static void send_request(int epoll, struct client *c)
{
    char body[4096], all[5120];
    int n =
        snprintf(body, sizeof body,
                 "{\"model\":\"%s\",\"stream\":true,\"stream_options\":{\"include_usage\":true},"
                 "\"temperature\":0.8,\"top_k\":40,\"seed\":%u,\"max_tokens\":%u,"
                 "\"messages\":[{\"role\":\"user\",\"content\":\"Tell me a story about",
                 models[c->index % n_models], dice(1u << 30), warm ? 1 : 16 + dice(97));
    for (unsigned i = warm ? 220 : 8 + dice(65); i > 0; i--)
        n += snprintf(body + n, sizeof body - (size_t)n, " %s",
                      words[dice(sizeof words / sizeof words[0])]);
    n += snprintf(body + n, sizeof body - (size_t)n, "\"}]}");
    int len = snprintf(all, sizeof all,
                       "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                       "Content-Type: application/json\r\nConnection: close\r\n"
                       "Content-Length: %d\r\n\r\n%s",
                       n, body);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *c = (struct client){
        .fd = socket(AF_INET, SOCK_STREAM, 0), .index = c->index, .head = true, .start = now()};
    requests++;
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        write(c->fd, all, (size_t)len) != len) {
        errors++;
        close(c->fd);
        c->fd = -1;
        c->again = now() + 0.1;
        return;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
}

/* One line of the header or of the stream. */
static void take_line(struct client *c)
{
    const char *p;
    if (c->head) {
        if (c->status == 0)
            c->status = c->n_line > 12 ? (int)strtol(c->line + 9, NULL, 10) : -1;
        if (c->n_line == 0) {
            c->head = false;
            c->body_size = true;
        }
        return;
    }
    if (strncmp(c->line, "data: ", 6) != 0)
        return;
    if (strncmp(c->line, "data: [DONE]", 12) == 0)
        c->done = true;
    if ((p = strstr(c->line, "\"completion_tokens\":")))
        told += strtol(p + 20, NULL, 10);
    if (!(p = strstr(c->line, "\"content\":\"")) || p[11] == '"')
        return;
    double t = now();
    tokens += t < until;
    if (c->first == 0) {
        c->first = t;
        if (n_first < MAX_FIRST)
            first_ms[n_first++] = (float)((t - c->start) * 1e3);
    }
}

static void take_byte(struct client *c, char b)
{
    if (!c->head && c->body_size) { /* "\r\n1f\r\n" between the chunks */
        if (b != '\n') {
            if (b != '\r' && c->n_size + 1 < sizeof c->size)
                c->size[c->n_size++] = b;
        } else if (c->n_size) {
            c->size[c->n_size] = '\0';
            c->chunk = strtoul(c->size, NULL, 16);
            c->n_size = 0;
            c->body_size = c->chunk == 0;
        }
        return;
    }
    if (!c->head && --c->chunk == 0)
        c->body_size = true;
    if (b == '\n') {
        c->line[c->n_line] = '\0';
        take_line(c);
        c->n_line = 0;
    } else if (b != '\r' && c->n_line + 1 < MAX_LINE) {
        c->line[c->n_line++] = b;
    }
}

static void end_request(struct client *c)
{
    close(c->fd);
    c->fd = -1;
    if (c->status == 503) {
        refused++;
        c->again = now() + 1;
    } else if (c->status != 200) {
        errors++;
    } else if (!c->done) {
        cut++;
    }
}

static void read_some(struct client *c)
{
    static char buf[1 << 16];
    ssize_t n = read(c->fd, buf, sizeof buf);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        end_request(c);
        return;
    }
    for (ssize_t i = 0; i < n; i++)
        take_byte(c, buf[i]);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: client PORT CLIENTS SECONDS SEED MODEL[,MODEL...]\n");
        return 2;
    }
    port = (int)strtol(argv[1], NULL, 10);
    int n = (int)strtol(argv[2], NULL, 10), open = 0;
    double seconds = strtod(argv[3], NULL);
    warm = seconds <= 0;
    state = strtoull(argv[4], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    for (char *p = argv[5]; p && n_models < 64; p = strchr(p, ',')) {
        if (n_models)
            *p++ = '\0';
        models[n_models++] = p;
    }
    int epoll = epoll_create1(0);
    struct client *v = calloc((size_t)n, sizeof *v);
    first_ms = malloc(MAX_FIRST * sizeof *first_ms);
    if (!v || !first_ms || epoll < 0)
        return 1;
    started = now();
    until = started + seconds;
    for (int i = 0; i < n; i++)
        v[i] = (struct client){.fd = -1, .index = (unsigned)i};
    do {
        struct epoll_event e[64];
        double t = now();
        open = 0;
        for (int i = 0; i < n; i++) {
            bool due = warm ? requests <= i : t < until && t >= v[i].again;
            if (v[i].fd < 0 && due)
                send_request(epoll, &v[i]);
            open += v[i].fd >= 0;
        }
        int got = epoll_wait(epoll, e, 64, 100);
        for (int i = 0; i < got; i++)
            read_some(e[i].data.ptr);
    } while (now() < until || (open && now() < until + 30));
    for (int i = 0; i < n; i++)
        errors += v[i].fd >= 0; /* never ended */
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    printf("{\"requests\": %ld, \"refused\": %ld, \"errors\": %ld, \"cut\": %ld,"
           " \"tokens\": %ld, \"completion_tokens\": %ld, \"seconds\": %.3f, \"cpu_s\": %.2f,"
           " \"first_ms\": [",
           requests, refused, errors, cut, tokens, told, seconds,
           (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
               (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6);
    for (size_t i = 0; i < n_first; i++)
        printf("%s%.2f", i ? "," : "", (double)first_ms[i]);
    printf("]}\n");
    free(v);
    free(first_ms);
    return 0;
}
