/* SPDX-License-Identifier: Apache-2.0 */
/* A merged model file says the same as the adapter beside the weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lora_fixture.h"
#include "model/gguf.h"

/* Base of float16 weights. F32: only the order of the float32 sums and the float16 cache differ;
 * F16 and BF16 round every merged weight once (11 and 8 bits). Logits here reach 3; the bounds are
 * three times what is seen or more. */
static const struct {
    uint32_t type;
    float bound;
} types[] = {{CR_F32, 2e-3f}, {CR_F16, 6e-3f}, {CR_BF16, 0.1f}};

static void test_merged_equals_beside_the_weights(void **state)
{
    (void)state;
    struct cr_error err;
    static const char *const names[] = {FX_LORA "plain", FX_LORA "patterns", FX_LORA "layers"};
    for (int k = 0; k < 3; k++) {
        cr_adapter *a = fx_open(fx_model, names[k]);
        cr_delta *d = fx_combine(fx_model, a, 1);
        for (int i = 0; i < 3; i++) {
            if (cr_merge_write(fx_model, d, fx_path("merged.gguf"), types[i].type, &err))
                fail_msg("%s", err.msg);
            cr_model *m = fx_open_model(fx_path("merged.gguf"));
            float diff = fx_logits_diff(fx_model, d, m, NULL);
            float effect = fx_logits_diff(fx_model, NULL, m, NULL);
            print_message("%s: difference %.2e of an effect of %.2f\n", m->info.type_name, diff,
                          effect);
            assert_true(diff < types[i].bound);
            assert_true(effect > 1);
            cr_model_close(m);
        }
        cr_delta_free(d);
        cr_adapter_close(a);
    }
}

static void test_unchanged_parts_are_copied(void **state)
{
    (void)state;
    struct cr_error err;
    cr_adapter *a = fx_open(fx_model, FX_LORA "layers"); /* k, v, down of layer 1 */
    cr_delta *d = fx_combine(fx_model, a, 1);
    assert_int_equal(cr_merge_write(fx_model, d, fx_path("part.gguf"), CR_F32, &err), CR_OK);
    cr_gguf *g;
    assert_int_equal(cr_gguf_open(&g, fx_path("part.gguf"), &err), CR_OK);
    assert_int_equal(cr_gguf_n_kv(g), cr_gguf_n_kv(fx_model->gguf));
    assert_int_equal(cr_gguf_n_tensors(g), cr_gguf_n_tensors(fx_model->gguf));
    int n_changed = 0;
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *x = cr_gguf_tensor_at(g, i);
        const struct cr_tensor *y = cr_gguf_tensor_at(fx_model->gguf, i);
        assert_int_equal(x->name.n, y->name.n);
        assert_memory_equal(x->name.p, y->name.p, x->name.n);
        assert_memory_equal(x->ne, y->ne, sizeof x->ne);
        if (x->type == y->type)
            assert_memory_equal(x->data, y->data, x->bytes);
        n_changed += x->type != y->type;
    }
    assert_int_equal(n_changed, 3);
    uint32_t type = 99;
    assert_int_equal(cr_gguf_u32(g, "general.file_type", true, &type, &err), CR_OK);
    assert_int_equal(type, 0);
    cr_gguf_close(g);
    cr_delta_free(d);
    cr_adapter_close(a);
}

static void test_refusals(void **state)
{
    (void)state;
    struct cr_error err;
    cr_adapter *a = fx_random_adapter(fx_model, 2, 0.1f, 4);
    cr_delta *d = fx_combine(fx_model, a, 1);
    assert_int_equal(cr_merge_write(fx_model, d, fx_path("q.gguf"), CR_Q8_0, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "Q8_0"));
    assert_int_equal(cr_merge_write(fx_model, d, "/nonexistent/m.gguf", CR_F32, &err),
                     CR_NOT_FOUND);
    d->data[0] = 1e9f; /* A of blk.0.attn_q: too large for float16, fine for bfloat16 */
    assert_int_equal(cr_merge_write(fx_model, d, fx_path("h.gguf"), CR_F16, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "blk.0.attn_q.weight: row 0 does not fit F16"));
    assert_int_not_equal(access(fx_path("h.gguf"), F_OK), 0);
    assert_int_equal(cr_merge_write(fx_model, d, fx_path("h.gguf"), CR_BF16, &err), CR_OK);
    d->n_layers = 1;
    assert_int_equal(cr_merge_write(fx_model, d, fx_path("h.gguf"), CR_F32, &err), CR_INVALID);
    cr_delta_free(d);
    cr_adapter_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merged_equals_beside_the_weights),
        cmocka_unit_test(test_unchanged_parts_are_copied),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
