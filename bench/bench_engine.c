/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed of the engine alone: open, prefill, decode, with or without a low-rank delta. Prints one
 * JSON object; times are medians over the rounds, in wall milliseconds. Tokens are random, as in
 * other engines' benches; the decode starts after the prefill.
 *
 *     bench_engine MODEL [-t THREADS] [-p PREFILL] [-n DECODE] [-r ROUNDS] [-k RANK] [-c CPU] [-m]
 *
 * -k: rounds with a delta of that rank and without one take turns, and the shares of speed that are
 * left with it are medians over the pairs of rounds, by wall time and by processor time.
 * -m: read the weights where they are mapped.
 */
#include "bench.h"

#include "model/session.h"

#include "base/mem.h"
#include "base/rng.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { MAX_ROUNDS = 1000, START_PROMPT = 16 };

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, compare);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* A delta of random pairs on every linear layer: speed does not depend on the values. */
static cr_delta *random_delta(const cr_model *m, int rank)
{
    size_t n = 0;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            n += (size_t)rank * (size_t)(w->n_in + w->n_out);
        }
    cr_delta *d;
    struct cr_error err;
    struct cr_rng rng;
    die_if(cr_delta_new(&d, m->n_layers, n, &err), &err);
    cr_rng_init(&rng, 1);
    for (size_t i = 0; i < n; i++)
        d->data[i] = 0.01f * (float)cr_rng_normal(&rng);
    float *p = d->data;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            float *a = p, *b = p + (size_t)rank * (size_t)w->n_in;
            *cr_delta_at(d, l, (enum cr_linear)i) =
                (struct cr_low_rank){.rank = rank, .a = a, .b = b};
            p = b + (size_t)rank * (size_t)w->n_out;
        }
    d->max_rank = rank;
    cr_delta_pack(m, d);
    return d;
}

struct times {
    double prefill, decode, prefill_cpu, decode_cpu; /* ms */
};

static struct times measure(cr_session *s, const cr_delta *d, const int32_t *ids, int n_ids,
                            int n_prefill, int n_decode)
{
    struct times t;
    struct cr_error err;
    cr_session_set_delta(s, d);
    cr_session_reset(s);
    double wall = now_ms(), cpu = processor_ms();
    die_if(cr_session_sync(s, ids, (size_t)n_prefill, NULL, &err), &err);
    t.prefill = now_ms() - wall;
    t.prefill_cpu = processor_ms() - cpu;
    wall = now_ms();
    cpu = processor_ms();
    for (int i = 0; i < n_decode; i++)
        die_if(cr_session_step(s, ids[i % n_ids], &err), &err);
    t.decode = now_ms() - wall;
    t.decode_cpu = processor_ms() - cpu;
    return t;
}

int main(int argc, char **argv)
{
    int threads = 0, n_prefill = 512, n_decode = 128, rounds = 5, rank = 0, c;
    struct cr_model_options opt = {0};
    while ((c = getopt(argc, argv, "t:p:n:r:k:c:m")) != -1) {
        int v = optarg ? (int)strtol(optarg, NULL, 10) : 0;
        if (c == 't')
            threads = v;
        else if (c == 'p')
            n_prefill = v;
        else if (c == 'n')
            n_decode = v;
        else if (c == 'r')
            rounds = v;
        else if (c == 'k')
            rank = v;
        else if (c == 'c')
            opt.cpu = optarg;
        else if (c == 'm')
            opt.pages = CR_PAGES_MAP;
        else
            optind = argc;
    }
    if (optind + 1 != argc || n_prefill < 1 || n_decode < 1 || rounds < 1 || rounds > MAX_ROUNDS ||
        rank < 0) {
        fprintf(stderr, "usage: bench_engine MODEL [-t THREADS] [-p PREFILL] [-n DECODE] "
                        "[-r ROUNDS] [-k RANK] [-c CPU] [-m]\n");
        return 2;
    }
    opt.n_threads = threads;
    static double prefill[MAX_ROUNDS], decode[MAX_ROUNDS];
    static double share[4][MAX_ROUNDS];
    struct cr_error err;
    cr_model *m;
    cr_session *s;
    double start = now_ms();
    die_if(cr_model_open(&m, argv[optind], &opt, &err), &err);
    double open_ms = now_ms() - start;
    die_if(cr_session_new(&s, m, n_prefill + n_decode, &err), &err);
    int n_ids = n_prefill > START_PROMPT ? n_prefill : START_PROMPT;
    int32_t *ids = cr_alloc((size_t)n_ids, sizeof *ids);
    struct cr_rng rng;
    cr_rng_init(&rng, 1);
    for (int i = 0; i < n_ids; i++)
        ids[i] = (int32_t)cr_rng_below(&rng, (uint64_t)m->n_vocab);
    die_if(cr_session_sync(s, ids, n_prefill < START_PROMPT ? 1 : START_PROMPT, NULL, &err), &err);
    double first_ms = now_ms() - start;
    struct rusage first;
    getrusage(RUSAGE_SELF, &first);
    cr_delta *d = rank ? random_delta(m, rank) : NULL;
    for (int r = 0; r < rounds; r++) {
        struct times without = {0}, with;
        if (d && r % 2)
            without = measure(s, NULL, ids, n_ids, n_prefill, n_decode);
        with = measure(s, d, ids, n_ids, n_prefill, n_decode);
        if (d && r % 2 == 0)
            without = measure(s, NULL, ids, n_ids, n_prefill, n_decode);
        prefill[r] = with.prefill;
        decode[r] = with.decode;
        share[0][r] = without.prefill / with.prefill;
        share[1][r] = without.decode / with.decode;
        share[2][r] = without.prefill_cpu / with.prefill_cpu;
        share[3][r] = without.decode_cpu / with.decode_cpu;
    }
    double p = median(prefill, rounds), g = median(decode, rounds);
    printf("{\"model\": \"%s\", \"cpu\": \"%s\", \"threads\": %d, \"rank\": %d, "
           "\"open_ms\": %.2f, \"first_token_ms\": %.2f, \"first_rss_mib\": %.1f, "
           "\"file_mib\": %.1f, \"prefill\": %d, \"prefill_ms\": %.2f, \"prefill_per_s\": %.1f, "
           "\"decode\": %d, \"decode_ms\": %.2f, \"decode_per_s\": %.1f",
           argv[optind], m->info.cpu, m->info.n_threads, rank, open_ms, first_ms,
           (double)first.ru_maxrss / 1024, (double)m->info.file_bytes / (1 << 20), n_prefill, p,
           n_prefill / p * 1e3, n_decode, g, n_decode / g * 1e3);
    if (d)
        printf(", \"prefill_share\": %.4f, \"decode_share\": %.4f, \"prefill_cpu_share\": %.4f, "
               "\"decode_cpu_share\": %.4f",
               median(share[0], rounds), median(share[1], rounds), median(share[2], rounds),
               median(share[3], rounds));
    printf("}\n");
    cr_free(ids);
    cr_session_free(s);
    cr_delta_free(d);
    cr_model_close(m);
    return 0;
}
