/* SPDX-License-Identifier: Apache-2.0 */
/* Blends of both forms against sums made the long way, and the identities. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pool_fixture.h"

enum { N = 4, RANK = 3 };
static const float mixed[N] = {0.7f, -0.25f, 0, 1.5f};

/* Adapter k of a pool the way its users see it: exported as a LoRA file and opened again. */
static cr_delta *exported(cr_pool *p, int k, float scale)
{
    float weights[N] = {0};
    weights[k] = 1;
    cr_delta *one = fx_blend(p, weights);
    cr_adapter *a;
    struct cr_error err;
    assert_int_equal(cr_adapter_from_delta(&a, fx_model, one, "base adapter", &err), CR_OK);
    cr_delta_free(one);
    if (cr_adapter_write_gguf(a, fx_model, fx_path("one.gguf"), CR_F32, &err))
        fail_msg("%s", err.msg);
    cr_adapter_close(a);
    a = fx_open(fx_model, fx_path("one.gguf"));
    cr_delta *d = fx_combine(fx_model, a, scale);
    cr_adapter_close(a);
    return d;
}

/* dense[o, i] += sum_j b[o, j] a[j, i] in double */
static void add_product(double *dense, const struct cr_low_rank *p, const struct cr_matrix *w)
{
    for (int o = 0; o < w->n_out; o++)
        for (int j = 0; j < p->rank; j++)
            for (int i = 0; i < w->n_in; i++)
                dense[o * w->n_in + i] += (double)p->b[o * p->rank + j] * p->a[j * w->n_in + i];
}

/* Largest difference between delta's B A of all linears and the weighted sum straight from the
 * pool's own numbers. */
static double dense_difference(const cr_pool *p, const cr_delta *d, const float *weights)
{
    double worst = 0;
    for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++) {
        enum cr_linear lin = (enum cr_linear)(i % CR_LIN_COUNT);
        const struct cr_matrix *w = cr_model_linear(fx_model, 0, lin);
        if (!p->pairs[i].a) {
            assert_int_equal(d->pairs[i].rank, 0);
            continue;
        }
        size_t n = (size_t)w->n_out * (size_t)w->n_in;
        double *got = calloc(n, sizeof *got), *want = calloc(n, sizeof *want);
        float *b = calloc((size_t)(w->n_out * RANK), sizeof *b);
        assert_true(got && want && b);
        add_product(got, &d->pairs[i], w);
        for (int k = 0; k < N; k++) {
            cr_pool_read_b(p, i / CR_LIN_COUNT, lin, k, b);
            for (int j = 0; j < w->n_out * RANK; j++)
                b[j] *= 1.5f * weights[k];
            int set = p->form == CR_POOL_SEPARATE ? k : 0;
            struct cr_low_rank one = {
                .rank = RANK, .a = p->pairs[i].a + set * RANK * w->n_in, .b = b};
            add_product(want, &one, w);
        }
        for (size_t k = 0; k < n; k++)
            worst = fmax(worst, fabs(got[k] - want[k]));
        free(b);
        free(want);
        free(got);
    }
    return worst;
}

static void test_unit_weights_are_the_adapter_alone(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        cr_pool *p = fx_random_pool(fx_model, (enum cr_pool_form)form, CR_POOL_LIBRARY, N, RANK, 7);
        for (int k = 0; k < N; k++) {
            float weights[N] = {0};
            weights[k] = 1;
            cr_delta *d = fx_blend(p, weights), *alone = exported(p, k, 1);
            assert_int_equal(cr_delta_rank(d), RANK);
            assert_true(dense_difference(p, d, weights) < 1e-6);
            for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++) {
                const struct cr_matrix *w =
                    cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
                assert_int_equal(d->pairs[i].rank, alone->pairs[i].rank);
                size_t r = (size_t)d->pairs[i].rank * sizeof(float);
                if (r == 0)
                    continue;
                assert_memory_equal(d->pairs[i].a, alone->pairs[i].a, r * (size_t)w->n_in);
                assert_memory_equal(d->pairs[i].b, alone->pairs[i].b, r * (size_t)w->n_out);
            }
            assert_true(fx_logits_diff(fx_model, d, fx_model, alone) == 0);
            cr_delta_free(alone);
            cr_delta_free(d);
        }
        cr_pool_close(p);
    }
}

static void test_blend_is_the_exact_sum(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        cr_pool *p = fx_random_pool(fx_model, (enum cr_pool_form)form, CR_POOL_LIBRARY, N, RANK, 8);
        cr_delta *d = fx_blend(p, mixed);
        assert_int_equal(cr_delta_rank(d), form == CR_POOL_SHARED ? RANK : N * RANK);
        assert_true(dense_difference(p, d, mixed) < 1e-6);
        cr_delta_free(d);
        cr_pool_close(p);
    }
}

/* For one linear and one input: B (A x) of the blend = sum_n w_n B_n (A x) of each alone. */
static void test_shared_blend_is_the_sum_of_separate_forward_deltas(void **state)
{
    (void)state;
    cr_pool *p = fx_random_pool(fx_model, CR_POOL_SHARED, CR_POOL_LIBRARY, N, RANK, 9);
    cr_delta *d = fx_blend(p, mixed), *each[N];
    for (int k = 0; k < N; k++)
        each[k] = exported(p, k, 1);
    struct cr_rng rng;
    cr_rng_init(&rng, 3);
    double worst = 0;
    for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        if (d->pairs[i].rank == 0)
            continue;
        float x[256];
        for (int j = 0; j < w->n_in; j++)
            x[j] = (float)cr_rng_normal(&rng);
        for (int o = 0; o < w->n_out; o++) {
            double sum = 0;
            for (int k = -1; k < N; k++) {
                const struct cr_low_rank *q = k < 0 ? &d->pairs[i] : &each[k]->pairs[i];
                double y = 0;
                for (int r = 0; r < RANK; r++)
                    for (int j = 0; j < w->n_in; j++)
                        y += (double)q->b[o * RANK + r] * q->a[r * w->n_in + j] * x[j];
                sum += k < 0 ? -y : (double)mixed[k] * y;
            }
            worst = fmax(worst, fabs(sum));
        }
    }
    print_message("largest difference %.2e\n", worst);
    assert_true(worst < 1e-6);
    for (int k = 0; k < N; k++)
        cr_delta_free(each[k]);
    cr_delta_free(d);
    cr_pool_close(p);
}

static void test_separate_blend_equals_combined_adapters(void **state)
{
    (void)state;
    cr_pool *p = fx_random_pool(fx_model, CR_POOL_SEPARATE, CR_POOL_LIBRARY, N, RANK, 10);
    cr_adapter *a[N];
    struct cr_error err;
    for (int k = 0; k < N; k++) {
        float weights[N] = {0};
        weights[k] = 1;
        cr_delta *one = fx_blend(p, weights);
        assert_int_equal(cr_adapter_from_delta(&a[k], fx_model, one, "one", &err), CR_OK);
        cr_delta_free(one);
    }
    cr_delta *sum, *d = fx_blend(p, mixed);
    assert_int_equal(
        cr_adapters_combine(&sum, fx_model, (const cr_adapter *const *)a, mixed, N, &err), CR_OK);
    assert_true(fx_logits_diff(fx_model, d, fx_model, sum) < 1e-4f);
    assert_true(fx_logits_diff(fx_model, d, fx_model, NULL) > 0.1f);
    cr_delta_free(d);
    cr_delta_free(sum);
    for (int k = 0; k < N; k++)
        cr_adapter_close(a[k]);
    cr_pool_close(p);
}

static void test_thread_count_changes_nothing(void **state)
{
    (void)state;
    struct cr_model_options one = {.n_threads = 1}, five = {.n_threads = 5};
    const struct cr_model_options *opts[2] = {&one, &five};
    cr_delta *d[2];
    cr_model *m[2];
    cr_pool *p[2];
    struct cr_error err;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cr_model_open(&m[i], FX_LORA "base.gguf", opts[i], &err), CR_OK);
        p[i] = fx_random_pool(m[i], CR_POOL_SHARED, CR_POOL_LIBRARY, N, RANK, 11);
        d[i] = fx_blend(p[i], mixed);
    }
    for (int i = 0; i < fx_model->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        size_t bytes = (size_t)(d[0]->pairs[i].rank * w->n_out) * sizeof(float);
        if (bytes)
            assert_memory_equal(d[0]->pairs[i].b, d[1]->pairs[i].b, bytes);
    }
    for (int i = 0; i < 2; i++) {
        cr_delta_free(d[i]);
        cr_pool_close(p[i]);
        cr_model_close(m[i]);
    }
}

static void test_attack_20_weights(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f, -1001};
    struct cr_error err;
    cr_delta *d;
    for (int form = 0; form < 2; form++) {
        cr_pool *p =
            fx_random_pool(fx_model, (enum cr_pool_form)form, CR_POOL_LIBRARY, N, RANK, 12);
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            float weights[N] = {1, 0, bad[i], 0};
            assert_int_equal(cr_pool_blend(&d, p, weights, &err), CR_INVALID);
            assert_null(d);
            assert_non_null(strstr(err.msg, "weight 3"));
        }
        float zeros[N] = {0}, cancel[N] = {2, -2, 0, 0};
        d = fx_blend(p, zeros); /* the base model, bit for bit */
        assert_int_equal(cr_delta_rank(d), 0);
        assert_true(fx_logits_diff(fx_model, d, fx_model, NULL) == 0);
        cr_delta_free(d);
        d = fx_blend(p, cancel); /* a sum of 0 and negative weights are legal */
        assert_true(dense_difference(p, d, cancel) < 1e-6);
        cr_delta_free(d);
        cr_pool_close(p);
    }
}

static void test_new_refuses_bad_numbers(void **state)
{
    (void)state;
    static const bool target[CR_LIN_COUNT] = {true};
    static const struct {
        int n, rank;
        float alpha;
    } bad[] = {{0, 8, 16},  {-1, 8, 16},     {CR_POOL_MAX_N + 1, 1, 16},
               {2, 0, 16},  {2, 4097, 1},    {1024, 8, 16},
               {2, 8, NAN}, {2, 8, INFINITY}};
    cr_pool *p;
    struct cr_error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(cr_pool_new(&p, fx_model, CR_POOL_SEPARATE, CR_POOL_LIBRARY, bad[i].n,
                                     bad[i].rank, bad[i].alpha, target, &err),
                         CR_INVALID);
        assert_null(p);
    }
    assert_int_equal(
        cr_pool_new(&p, fx_model, CR_POOL_SHARED, CR_POOL_LIBRARY, 2, 2, 4, target, &err), CR_OK);
    assert_int_equal(cr_pool_index_alloc(p, CR_POOL_MAX_ENTRIES + 1, &err), CR_LIMIT);
    assert_int_equal(cr_pool_check_view(p, CR_VIEW_QX, &err), CR_UNSUPPORTED);
    cr_pool_close(p);
}

static void test_normalise(void **state)
{
    (void)state;
    cr_pool *p = fx_random_pool(fx_model, CR_POOL_SHARED, CR_POOL_LIBRARY, N, RANK, 13);
    float v[64], out[64], sum = 0;
    for (int i = 0; i < 64; i++) {
        p->index.mid_mean[i] = 1;
        p->index.mid_std[i] = 2;
        v[i] = i == 5 ? 7 : i == 6 ? 9 : 1;
    }
    cr_pool_normalise(p, CR_VIEW_MIDDLE, v, out); /* (3, 4) / 5 */
    assert_true(fabsf(out[5] - 0.6f) < 1e-6f && fabsf(out[6] - 0.8f) < 1e-6f);
    for (int i = 0; i < 64; i++)
        sum += out[i] * out[i];
    assert_true(fabsf(sum - 1) < 1e-6f);
    cr_pool_normalise(p, CR_VIEW_QX, p->index.qx_mean, out);
    for (int i = 0; i < 64; i++)
        assert_true(out[i] == 0);
    cr_pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unit_weights_are_the_adapter_alone),
        cmocka_unit_test(test_blend_is_the_exact_sum),
        cmocka_unit_test(test_shared_blend_is_the_sum_of_separate_forward_deltas),
        cmocka_unit_test(test_separate_blend_equals_combined_adapters),
        cmocka_unit_test(test_thread_count_changes_nothing),
        cmocka_unit_test(test_attack_20_weights),
        cmocka_unit_test(test_new_refuses_bad_numbers),
        cmocka_unit_test(test_normalise),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
