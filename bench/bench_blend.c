/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From examples to a palette that is applied, at the instant level: embedding, solver, and the mix
 * of the pool into one low-rank delta. Model and pool are open. Prints one JSON object with the
 * milliseconds of each round; "first" is the round in which the pool is read from its file.
 *
 * "score" has, for each round, the milliseconds of one step of REFINE (a mix of the pool and a pass
 * over the examples) and of a prompt of as many tokens.
 *
 *     bench_blend MODEL POOL EXAMPLES [-t THREADS] [-r ROUNDS] [-c CPU]
 */
#include "bench.h"

#include "adapt/blend.h"
#include "adapt/examples.h"
#include "adapt/score.h"

#include "base/mem.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

/* Steps of REFINE and prompts of as many tokens, in turn. */
static void score(cr_model *m, const cr_pool *pool, const struct cr_examples *examples,
                  float *weights, int rounds)
{
    struct cr_error err;
    cr_scorer *scorer;
    cr_session *s;
    die_if(cr_scorer_new(&scorer, m, NULL, examples->v, examples->n, &err), &err);
    size_t n = cr_scorer_n_tokens(scorer);
    int32_t *ids = cr_alloc(n, sizeof *ids);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i * 7919 % (size_t)m->n_vocab);
    die_if(cr_session_new(&s, m, (int)n, &err), &err);
    printf(", \"tokens\": %zu, \"score\": [", n);
    for (int i = 0; i < rounds; i++) {
        const struct cr_example_score *scores;
        cr_delta *delta;
        double start = now_ms();
        weights[0] += 0.01F;
        die_if(cr_pool_blend(&delta, pool, weights, &err), &err);
        die_if(cr_scorer_run(scorer, delta, &scores, NULL, NULL, &err), &err);
        double scored = now_ms();
        cr_delta_free(delta);
        cr_session_reset(s);
        double begin = now_ms();
        die_if(cr_session_sync(s, ids, n, NULL, &err), &err);
        printf("%s{\"step_ms\": %.4f, \"prompt_ms\": %.4f}", i ? ", " : "", scored - start,
               now_ms() - begin);
    }
    printf("]");
    cr_free(ids);
    cr_session_free(s);
    cr_scorer_free(scorer);
}

int main(int argc, char **argv)
{
    struct cr_model_options options = {0};
    struct cr_blend_options blend = {0};
    struct cr_examples examples;
    struct cr_error err;
    cr_model *m;
    cr_pool *pool;
    int rounds = 20;
    for (int o; (o = getopt(argc, argv, "t:r:c:")) != -1;) {
        if (o == 't')
            options.n_threads = (int)strtol(optarg, NULL, 10);
        else if (o == 'r')
            rounds = (int)strtol(optarg, NULL, 10);
        else if (o == 'c')
            options.cpu = optarg;
        else
            return 2;
    }
    if (argc - optind != 3)
        return 2;
    die_if(cr_model_open(&m, argv[optind], &options, &err), &err);
    die_if(cr_pool_open(&pool, m, argv[optind + 1], &err), &err);
    cr_pool_hold(pool);
    die_if(cr_examples_read(&examples, argv[optind + 2], &err), &err);
    cr_level_options(CR_LEVEL_INSTANT, pool, &blend);
    printf("{\"n\": %d, \"examples\": %zu, \"solver\": \"%s\", \"first\": [", pool->n, examples.n,
           cr_solver_name(blend.solver));
    for (int i = 0; i <= rounds; i++) {
        struct cr_blend_result r;
        cr_delta *delta;
        double start = now_ms();
        die_if(cr_blend_examples(m, pool, &blend, examples.v, examples.n, &r, &err), &err);
        double solved = now_ms(), before = processor_ms();
        die_if(cr_pool_blend(&delta, pool, r.weights, &err), &err);
        double end = now_ms(), cpu = processor_ms() - before;
        printf("%s%s{\"embed_ms\": %.4f, \"solve_ms\": %.4f, \"apply_ms\": %.4f, "
               "\"apply_cpu_ms\": %.4f, \"total_ms\": %.4f}",
               i == 1  ? "], \"rounds\": "
               : i > 1 ? ", "
                       : "",
               i == 1 ? "[" : "", r.embed_ms, r.solve_ms, end - solved, cpu, end - start);
        cr_delta_free(delta);
        if (i == rounds) {
            printf("]");
            score(m, pool, &examples, r.weights, rounds);
        }
        cr_blend_result_deinit(&r);
    }
    printf("}\n");
    cr_examples_deinit(&examples);
    cr_pool_close(pool);
    cr_model_close(m);
    return 0;
}
