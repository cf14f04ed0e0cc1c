/* SPDX-License-Identifier: Apache-2.0 */
/* Adapters against PEFT's own logits, the exact sum of several, and the identities. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lora_fixture.h"

/* PEFT computed in float64 from the same float16 weights; crayon keeps keys and values of the cache
 * in float16, which alone moves the base model's logits by 8e-4. Three times the largest seen. */
static const float GOLDEN_BOUND = 4e-3f;

static float *read_golden(const char *name)
{
    char path[256], *data;
    size_t len;
    struct cr_error err;
    snprintf(path, sizeof path, FX_LORA "%s.logits.f32", name);
    assert_int_equal(cr_file_read(path, 1 << 20, &data, &len, &err), CR_OK);
    assert_int_equal(len, FX_TOKENS * (size_t)fx_model->n_vocab * sizeof(float));
    return (float *)data;
}

static void check_golden(const char *name, const cr_delta *d)
{
    size_t n = FX_TOKENS * (size_t)fx_model->n_vocab;
    float *want = read_golden(name), *base = read_golden("base"), *got = fx_logits(fx_model, d);
    float diff = fx_max_diff(got, want, n), effect = fx_max_diff(want, base, n);
    print_message("%s: max difference %.2e, the adapter moves logits by %.2f\n", name, diff,
                  effect);
    assert_true(diff < GOLDEN_BOUND);
    assert_true(!d || effect > 200 * GOLDEN_BOUND);
    cr_free(want);
    cr_free(base);
    free(got);
}

static void test_logits_equal_those_of_peft(void **state)
{
    (void)state;
    static const char *const names[] = {"plain", "patterns", "rslora", "layers"};
    check_golden("base", NULL);
    for (int i = 0; i < 4; i++) {
        char path[256];
        snprintf(path, sizeof path, FX_LORA "%s", names[i]);
        cr_adapter *a = fx_open(fx_model, path);
        cr_delta *d = fx_combine(fx_model, a, 1);
        check_golden(names[i], d);
        assert_int_equal(cr_delta_rank(d), i == 1 ? 8 : i == 3 ? 3 : 4);
        cr_delta_free(d);
        cr_adapter_close(a);
    }
}

static void test_sum_of_two_is_exact(void **state)
{
    (void)state;
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    cr_adapter *b = fx_open(fx_model, FX_LORA "patterns");
    const cr_adapter *both[2] = {a, b};
    float scales[2] = {0.5f, -2.0f};
    cr_delta *d;
    struct cr_error err;
    assert_int_equal(cr_adapters_combine(&d, fx_model, both, scales, 2, &err), CR_OK);
    assert_int_equal(cr_delta_at(d, 0, CR_LIN_Q)->rank, 12); /* 4 + 8 */
    assert_int_equal(cr_delta_at(d, 1, CR_LIN_DOWN)->rank, 6);
    assert_int_equal(cr_delta_at(d, 1, CR_LIN_V)->rank, 4); /* only plain has it */
    check_golden("sum", d);
    cr_delta_free(d);
    cr_adapter_close(b);
    cr_adapter_close(a);
}

static void test_combine_of_one_is_the_adapter_alone(void **state)
{
    (void)state;
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    cr_adapter *b = fx_open(fx_model, FX_LORA "patterns");
    const cr_adapter *both[2] = {a, b};
    float scales[2] = {1, 0};
    cr_delta *one = fx_combine(fx_model, a, 1), *two;
    struct cr_error err;
    assert_int_equal(cr_adapters_combine(&two, fx_model, both, scales, 2, &err), CR_OK);
    for (int i = 0; i < fx_model->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        const struct cr_adapter_pair *p = &a->pairs[i];
        assert_int_equal(one->pairs[i].rank, p->rank);
        assert_int_equal(two->pairs[i].rank, p->rank);
        size_t n_b = (size_t)w->n_out * (size_t)p->rank;
        assert_memory_equal(one->pairs[i].a, p->a, (size_t)(p->rank * w->n_in) * sizeof(float));
        assert_memory_equal(one->pairs[i].b, two->pairs[i].b, n_b * sizeof(float));
        for (size_t k = 0; k < n_b; k++)
            assert_true(one->pairs[i].b[k] == p->scale * p->b[k]);
    }
    cr_delta_free(two);
    cr_delta_free(one);
    cr_adapter_close(b);
    cr_adapter_close(a);
}

static void test_zero_adapter_is_the_base_bit_for_bit(void **state)
{
    (void)state;
    cr_adapter *a = fx_random_adapter(fx_model, 4, 0.1f, 1);
    for (int i = 0; i < fx_model->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        memset(a->pairs[i].b, 0, (size_t)(w->n_out * a->pairs[i].rank) * sizeof(float));
    }
    cr_delta *d = fx_combine(fx_model, a, 1), *none = fx_combine(fx_model, a, 0);
    float *base = fx_logits(fx_model, NULL);
    for (int k = 0; k < 2; k++) {
        float *with = fx_logits(fx_model, k ? none : d);
        assert_memory_equal(base, with, FX_TOKENS * (size_t)fx_model->n_vocab * sizeof(float));
        free(with);
    }
    assert_int_equal(cr_delta_rank(none), 0);
    /* such a file loads, but says so */
    struct cr_error err;
    fx_log[0] = '\0';
    assert_int_equal(cr_adapter_write_gguf(a, fx_model, fx_path("zero.gguf"), CR_F32, &err), CR_OK);
    cr_adapter *b = fx_open(fx_model, fx_path("zero.gguf"));
    assert_non_null(strstr(fx_log, "changes nothing"));
    cr_adapter_close(b);
    free(base);
    cr_delta_free(none);
    cr_delta_free(d);
    cr_adapter_close(a);
}

static void test_attack_20_scales(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f, 1001};
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    const cr_adapter *list[2] = {a, a};
    struct cr_error err;
    cr_delta *d;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        float scales[2] = {1, bad[i]};
        assert_int_equal(cr_adapters_combine(&d, fx_model, list, scales, 2, &err), CR_INVALID);
        assert_null(d);
        assert_non_null(strstr(err.msg, "scale"));
    }
    float opposite[2] = {1, -1}; /* sum 0 is legal and cancels */
    assert_int_equal(cr_adapters_combine(&d, fx_model, list, opposite, 2, &err), CR_OK);
    assert_true(fx_logits_diff(fx_model, d, fx_model, NULL) < GOLDEN_BOUND);
    cr_delta_free(d);
    cr_adapter_close(a);
}

static void test_another_model_is_refused(void **state)
{
    (void)state;
    cr_model *other = fx_open_model(FX_LORA "base.gguf");
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    const cr_adapter *list[1] = {a};
    float scale = 1;
    cr_delta *d;
    struct cr_error err;
    assert_int_equal(cr_adapters_combine(&d, other, list, &scale, 1, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "another model"));
    cr_adapter_close(a);
    cr_model_close(other);
}

static void test_wrong_kinds_of_path(void **state)
{
    (void)state;
    fx_refused(fx_model, fx_path("absent"), CR_NOT_FOUND, "cannot open");
    fx_refused(fx_model, FX_LORA "plain/adapter_config.json", CR_INVALID, "directory");
    fx_refused(fx_model, FX_LORA "plain/adapter_model.safetensors", CR_INVALID, "directory");
    struct cr_error err;
    assert_int_equal(cr_file_write(fx_path("x.bin"), "x", 1, &err), CR_OK);
    fx_refused(fx_model, fx_path("x.bin"), CR_UNSUPPORTED, "pickle");
}

static void test_out_of_memory_at_every_allocation(void **state)
{
    (void)state;
    size_t before = cr_mem_now();
    enum cr_status status = CR_NO_MEMORY;
    for (uint64_t n = 1; status != CR_OK && n < 2000; n++) {
        cr_adapter *a = NULL;
        cr_delta *d = NULL;
        struct cr_error err;
        float scale = 1;
        cr_mem_fail_at(n, true);
        status = cr_adapter_open(&a, fx_model, FX_LORA "rslora", &err);
        const cr_adapter *list[1] = {a};
        if (status == CR_OK)
            status = cr_adapters_combine(&d, fx_model, list, &scale, 1, &err);
        cr_mem_fail_at(0, false);
        if (status != CR_OK)
            assert_int_equal(status, CR_NO_MEMORY);
        cr_delta_free(d);
        cr_adapter_close(a);
        assert_int_equal(cr_mem_now(), before);
    }
    assert_int_equal(status, CR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_equal_those_of_peft),
        cmocka_unit_test(test_sum_of_two_is_exact),
        cmocka_unit_test(test_combine_of_one_is_the_adapter_alone),
        cmocka_unit_test(test_zero_adapter_is_the_base_bit_for_bit),
        cmocka_unit_test(test_attack_20_scales),
        cmocka_unit_test(test_another_model_is_refused),
        cmocka_unit_test(test_wrong_kinds_of_path),
        cmocka_unit_test(test_out_of_memory_at_every_allocation),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
