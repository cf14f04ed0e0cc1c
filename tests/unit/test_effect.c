/* SPDX-License-Identifier: Apache-2.0 */
/* The effect probe: zero for what does nothing, large for a pair that is harmless one by one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lora_fixture.h"
#include "model/gguf.h"

static float effect_on(cr_model *m, const cr_delta *d)
{
    float x = -1;
    struct cr_error err;
    if (cr_delta_effect(m, d, &x, &err))
        fail_msg("%s", err.msg);
    return x;
}

static float effect(const cr_delta *d)
{
    return effect_on(fx_model, d);
}

static void test_zero_and_not_zero(void **state)
{
    (void)state;
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    cr_delta *none = fx_combine(fx_model, a, 0), *small = fx_combine(fx_model, a, 0.01f);
    cr_delta *full = fx_combine(fx_model, a, 1);
    assert_true(effect(none) == 0);
    assert_true(effect(small) > 1e-4f && effect(small) < 0.5f);
    assert_true(effect(full) > 1);
    assert_true(effect(full) == effect(full));
    cr_delta_free(full);
    cr_delta_free(small);
    cr_delta_free(none);
    cr_adapter_close(a);
}

static void test_attack_10_logits_that_are_not_finite(void **state)
{
    (void)state;
    cr_adapter *a = fx_random_adapter(fx_model, 2, 1e30f, 5);
    cr_delta *d = fx_combine(fx_model, a, 1);
    assert_true(isinf(effect(d)));
    cr_delta_free(d);
    cr_adapter_close(a);
}

/* The base model with a dead head: nothing writes the values of the first group of layer 0 and
 * nothing reads them. */
static cr_model *open_with_dead_head(void)
{
    struct cr_error err;
    char *data;
    size_t len;
    assert_int_equal(cr_file_read(FX_LORA "base.gguf", 1 << 20, &data, &len, &err), CR_OK);
    const char *begin = cr_gguf_bytes(fx_model->gguf);
    const struct cr_matrix *v = cr_model_linear(fx_model, 0, CR_LIN_V);
    const struct cr_matrix *o = cr_model_linear(fx_model, 0, CR_LIN_O);
    const char *v_data = cr_gguf_tensor(fx_model->gguf, "blk.0.attn_v.weight")->data;
    const char *o_data = cr_gguf_tensor(fx_model->gguf, "blk.0.attn_output.weight")->data;
    memset(data + (v_data - begin), 0, 16 * v->row_bytes);
    for (int r = 0; r < o->n_out; r++)
        memset(data + (o_data - begin) + (size_t)r * o->row_bytes, 0, 32 * 2);
    assert_int_equal(cr_file_write(fx_path("dead.gguf"), data, len, &err), CR_OK);
    cr_free(data);
    return fx_open_model(fx_path("dead.gguf"));
}

/* One adapter writes the dead head, the other reads it: each alone does exactly nothing. */
static void test_attack_18_pair_that_is_harmless_one_by_one(void **state)
{
    (void)state;
    cr_model *m = open_with_dead_head();
    cr_adapter *write = fx_random_adapter(m, 2, 0, 6), *read = fx_random_adapter(m, 2, 0, 7);
    struct cr_rng rng;
    cr_rng_init(&rng, 8);
    struct cr_adapter_pair *v = &write->pairs[CR_LIN_V], *o = &read->pairs[CR_LIN_O];
    for (int i = 0; i < 64; i++)
        v->a[i] = (float)cr_rng_normal(&rng);
    for (int i = 0; i < 16; i++)
        v->b[2 * i] = (float)cr_rng_normal(&rng); /* values 0 to 15: the dead head */
    for (int i = 0; i < 32; i++)
        o->a[i] = (float)cr_rng_normal(&rng); /* heads 0 and 1 read that group */
    for (int i = 0; i < 64; i++)
        o->b[2 * i] = (float)cr_rng_normal(&rng);
    const cr_adapter *both[2] = {write, read};
    float scales[2] = {1, 1};
    struct cr_error err;
    cr_delta *one = fx_combine(m, write, 1), *two = fx_combine(m, read, 1), *sum;
    assert_int_equal(cr_adapters_combine(&sum, m, both, scales, 2, &err), CR_OK);
    assert_true(effect_on(m, one) == 0);
    assert_true(effect_on(m, two) == 0);
    assert_true(effect_on(m, sum) > 0.5f);
    cr_delta_free(sum);
    cr_delta_free(two);
    cr_delta_free(one);
    cr_adapter_close(read);
    cr_adapter_close(write);
    cr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_and_not_zero),
        cmocka_unit_test(test_attack_10_logits_that_are_not_finite),
        cmocka_unit_test(test_attack_18_pair_that_is_harmless_one_by_one),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
