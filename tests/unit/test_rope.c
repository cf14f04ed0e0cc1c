/* SPDX-License-Identifier: Apache-2.0 */
/* rope.c: frequencies against transformers 5.23.0 (ROPE_INIT_FUNCTIONS, head_dim 16, theta 10000,
 * factor 4, original context 64), and every scaling that is refused. */
#include "unit/tiny_gguf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void close_to(const cr_model *m, const float *want, float mscale)
{
    for (int i = 0; i < 8; i++)
        if (fabsf(m->rope_freq[i] - want[i]) > 1e-6f * want[i])
            fail_msg("pair %d: want %g, found %g", i, (double)want[i], (double)m->rope_freq[i]);
    assert_true(fabsf(m->rope_mscale - mscale) < 1e-6f);
}

/* Opens a tiny model with extra keys and compares. */
static void expect(void (*extra)(cr_gguf_writer *), const float *want, float mscale)
{
    struct tiny t = tiny_default();
    t.extra = extra;
    cr_model *m = tiny_open(&t, NULL);
    close_to(m, want, mscale);
    cr_model_close(m);
}

static void refuse(void (*extra)(cr_gguf_writer *), enum cr_status want, const char *part)
{
    struct tiny t = tiny_default();
    t.extra = extra;
    cr_model *m;
    struct cr_error err;
    enum cr_status status = tiny_try(&t, NULL, &m, &err);
    if (status != want || !strstr(err.msg, part))
        fail_msg("want %d \"%s\", found %d \"%s\"", want, part, status, err.msg);
    assert_null(m);
}

static void key_linear(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.scaling.type", "linear");
    cr_gguf_put_f32(w, "llama.rope.scaling.factor", 4);
}

static void key_old_linear(cr_gguf_writer *w)
{
    cr_gguf_put_f32(w, "llama.rope.scale_linear", 4);
}

static void key_yarn(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.scaling.type", "yarn");
    cr_gguf_put_f32(w, "llama.rope.scaling.factor", 4);
    cr_gguf_put_u32(w, "llama.rope.scaling.original_context_length", 64);
}

static void key_none(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.scaling.type", "none");
    cr_gguf_put_f32(w, "llama.rope.freq_base", 10000);
}

static float divide[8] = {1, 1, 2, 4, 8, 8, 8, 8};

static void key_tensor(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "rope_freqs.weight", CR_F32, 1, (uint64_t[]){8}, divide);
}

static void test_frequencies(void **state)
{
    (void)state;
    float plain[8], linear[8], llama3[8];
    static const float yarn[8] = {
        1.0f,           0.237170815f,    0.049999997f,    0.00790569466f,
        0.00249999994f, 0.000790569466f, 0.000250000012f, 7.90569466e-05f};
    for (int i = 0; i < 8; i++) {
        plain[i] = (float)pow(10000, -i / 8.0);
        linear[i] = plain[i] / 4;
        llama3[i] = plain[i] / divide[i];
    }
    expect(NULL, plain, 1);
    expect(key_none, plain, 1);
    expect(key_linear, linear, 1);
    expect(key_old_linear, linear, 1);
    expect(key_yarn, yarn, 1.138629436111989f);
    expect(key_tensor, llama3, 1);
}

static void test_angles(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.extra = key_yarn;
    cr_model *m = tiny_open(&t, NULL);
    float cs[16];
    cr_rope_angles(m, 37, cs);
    for (int i = 0; i < 8; i++) {
        double angle = 37 * (double)m->rope_freq[i];
        assert_true(fabs((double)cs[2 * i] - 1.138629436 * cos(angle)) < 1e-5);
        assert_true(fabs((double)cs[2 * i + 1] - 1.138629436 * sin(angle)) < 1e-5);
    }
    cr_model_close(m);
}

static void key_longrope(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.scaling.type", "longrope");
}

static void key_zero_factor(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.scaling.type", "linear");
    cr_gguf_put_f32(w, "llama.rope.scaling.factor", 0);
}

static void key_nan_base(cr_gguf_writer *w)
{
    cr_gguf_put_f32(w, "llama.rope.freq_base", NAN);
}

static void key_zero_context(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.scaling.type", "yarn");
    cr_gguf_put_u32(w, "llama.rope.scaling.original_context_length", 0);
}

static void key_wrong_type(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "llama.rope.freq_base", "10000");
}

static void key_half_rope(cr_gguf_writer *w)
{
    cr_gguf_put_u32(w, "llama.rope.dimension_count", 8);
}

static void short_tensor(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "rope_freqs.weight", CR_F32, 1, (uint64_t[]){7}, divide);
}

static void zero_tensor(cr_gguf_writer *w)
{
    static const float zeros[8];
    cr_gguf_put_tensor(w, "rope_freqs.weight", CR_F32, 1, (uint64_t[]){8}, zeros);
}

static void half_tensor(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "rope_freqs.weight", CR_F16, 1, (uint64_t[]){8}, divide);
}

static void test_refusals(void **state)
{
    (void)state;
    refuse(key_longrope, CR_UNSUPPORTED, "want none, linear or yarn, found longrope");
    refuse(key_zero_factor, CR_FORMAT, "llama.rope.scaling.factor");
    refuse(key_nan_base, CR_FORMAT, "llama.rope.freq_base");
    refuse(key_zero_context, CR_FORMAT, "original_context_length is 0");
    refuse(key_wrong_type, CR_FORMAT, "want f32, found string");
    refuse(key_half_rope, CR_FORMAT, "rope.dimension_count: want 16");
    refuse(short_tensor, CR_FORMAT, "want F32 [8], found F32 [7,1]");
    refuse(zero_tensor, CR_FORMAT, "value 0");
    refuse(half_tensor, CR_FORMAT, "found F16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_angles),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
