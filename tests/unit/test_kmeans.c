/* SPDX-License-Identifier: Apache-2.0 */
/* k-means recovers planted blobs, is the same for the same seed, and survives odd input. */
#include "adapt/blend.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DIM = 24, BLOBS = 6, PER_BLOB = 40, N = BLOBS * PER_BLOB };

static void normalise(float *v, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)v[i] * (double)v[i];
    for (int i = 0; i < n; i++)
        v[i] = (float)(v[i] / sqrt(s));
}

static void test_planted_blobs(void **state)
{
    (void)state;
    static float x[N * DIM], centre[BLOBS * DIM], c[BLOBS * DIM];
    static int label[N];
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct cr_rng rng;
        cr_rng_init(&rng, seed);
        for (int b = 0; b < BLOBS; b++) {
            for (int d = 0; d < DIM; d++)
                centre[b * DIM + d] = (float)cr_rng_normal(&rng);
            normalise(centre + b * DIM, DIM);
        }
        for (int i = 0; i < N; i++) {
            for (int d = 0; d < DIM; d++)
                x[i * DIM + d] = centre[i % BLOBS * DIM + d] + 0.06F * (float)cr_rng_normal(&rng);
            normalise(x + i * DIM, DIM);
        }
        assert_int_equal(cr_kmeans(x, N, DIM, BLOBS, 10, seed, c, label, NULL), CR_OK);
        for (int i = BLOBS; i < N; i++)
            assert_int_equal(label[i], label[i % BLOBS]);
        for (int b = 0; b < BLOBS; b++) {
            double cosine = 0, norm = 0;
            for (int d = 0; d < DIM; d++) {
                cosine += (double)centre[b * DIM + d] * (double)c[label[b] * DIM + d];
                norm += (double)c[b * DIM + d] * (double)c[b * DIM + d];
            }
            assert_true(cosine > 0.99);
            assert_true(fabs(norm - 1) < 1e-5);
            for (int o = 0; o < b; o++)
                assert_int_not_equal(label[b], label[o]);
        }
    }
}

static void test_same_seed_same_clusters(void **state)
{
    (void)state;
    static float x[N * DIM], c[2][7 * DIM];
    static int label[2][N];
    struct cr_rng rng;
    cr_rng_init(&rng, 9);
    for (int i = 0; i < N; i++) {
        for (int d = 0; d < DIM; d++)
            x[i * DIM + d] = (float)cr_rng_normal(&rng);
        normalise(x + i * DIM, DIM);
    }
    for (int k = 0; k < 2; k++)
        assert_int_equal(cr_kmeans(x, N, DIM, 7, 3, 5, c[k], label[k], NULL), CR_OK);
    assert_memory_equal(c[0], c[1], sizeof c[0]);
    assert_memory_equal(label[0], label[1], sizeof label[0]);
    for (int i = 0; i < N; i++) /* every row sits with its nearest centroid */
        for (int j = 0; j < 7; j++) {
            double own = 0, other = 0;
            for (int d = 0; d < DIM; d++) {
                own += (double)x[i * DIM + d] * (double)c[0][label[0][i] * DIM + d];
                other += (double)x[i * DIM + d] * (double)c[0][j * DIM + d];
            }
            assert_true(own >= other - 1e-5);
        }
}

static void test_odd_input(void **state)
{
    (void)state;
    struct cr_error err;
    float same[5 * 3], c[5 * 3];
    int label[5];
    for (int i = 0; i < 15; i++)
        same[i] = i % 3 == 1 ? 1 : 0;
    assert_int_equal(cr_kmeans(same, 5, 3, 3, 2, 1, c, label, &err), CR_OK); /* equal rows */
    for (int i = 0; i < 9; i++)
        assert_true(isfinite(c[i]));
    float rows[3 * 3] = {1, 0, 0, 0, 1, 0, 0, 0, 1}; /* as many clusters as rows */
    assert_int_equal(cr_kmeans(rows, 3, 3, 3, 4, 1, c, label, &err), CR_OK);
    assert_true(label[0] != label[1] && label[1] != label[2] && label[0] != label[2]);
    memset(same, 0, sizeof same); /* rows of length 0 */
    assert_int_equal(cr_kmeans(same, 5, 3, 2, 2, 1, c, label, &err), CR_OK);
    for (int i = 0; i < 6; i++)
        assert_true(isfinite(c[i]));
    assert_int_equal(cr_kmeans(rows, 3, 3, 4, 1, 1, c, label, &err), CR_INVALID);
    assert_int_equal(cr_kmeans(rows, 3, 3, 0, 1, 1, c, label, &err), CR_INVALID);
    rows[4] = NAN;
    assert_int_equal(cr_kmeans(rows, 3, 3, 2, 1, 1, c, label, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "row 1"));
    rows[4] = 1;
    size_t before = cr_mem_now();
    for (uint64_t i = 1; i <= 5; i++) {
        cr_mem_fail_at(i, false);
        assert_int_equal(cr_kmeans(rows, 3, 3, 2, 1, 1, c, label, &err), CR_NO_MEMORY);
        cr_mem_fail_at(0, false);
        assert_int_equal(cr_mem_now(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planted_blobs),
        cmocka_unit_test(test_same_seed_same_clusters),
        cmocka_unit_test(test_odd_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
