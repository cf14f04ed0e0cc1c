/* SPDX-License-Identifier: Apache-2.0 */
/* Type table, 16-bit floats (all 65,536 of them, and every rounding boundary), blocks both ways. */
#include "base/rng.h"
#include "kernels/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const enum cr_type usable[] = {CR_F32, CR_F16, CR_BF16, CR_Q8_0, CR_Q4_0, CR_Q4_1};
enum { N_USABLE = sizeof usable / sizeof usable[0] };

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void test_type_table(void **state)
{
    (void)state;
    int n_usable = 0, n_named = 0;
    for (uint32_t t = 0; t < 200; t++) {
        const struct cr_type_info *info = cr_type_info(t);
        n_usable += info->usable;
        n_named += info->name != NULL;
        assert_int_equal(info->name != NULL, info->block != 0);
        assert_int_equal(info->block != 0, info->block_size != 0);
    }
    assert_int_equal(n_usable, N_USABLE);
    assert_true(n_named > 20);
    assert_string_equal(cr_type_info(12)->name, "Q4_K");
    assert_false(cr_type_info(12)->usable);
    assert_int_equal(cr_row_bytes(12, 512), 288);
    assert_int_equal(cr_row_bytes(CR_Q8_0, 576), 612);
    assert_int_equal(cr_row_bytes(CR_Q4_1, 64), 40);
    assert_int_equal(cr_row_bytes(CR_F16, 7), 14);
    assert_int_equal(cr_row_bytes(CR_Q4_0, 33), 0);
    assert_int_equal(cr_row_bytes(CR_F32, SIZE_MAX), 0);
    assert_int_equal(cr_row_bytes(77, 32), 0);
    assert_null(cr_type_info(UINT32_MAX)->name);
}

/* The value of a float16, from its definition. */
static double f16_value(uint16_t h)
{
    int exp = h >> 10 & 31, frac = h & 1023;
    double v = exp ? ldexp(1024 + frac, exp - 25) : ldexp(frac, -24);
    return h & 0x8000 ? -v : v;
}

static void test_f16_every_value_and_boundary(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = cr_f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(f));
            assert_int_equal(cr_f32_to_f16(f) & 0x7e00, 0x7e00);
            assert_int_equal(cr_f32_to_f16(f) & 0x8000, h & 0x8000);
            continue;
        }
        if ((h & 0x7fff) == 0x7c00)
            assert_true(isinf(f) && (f < 0) == (h > 0x8000));
        else
            assert_true((double)f == f16_value((uint16_t)h));
        assert_int_equal(cr_f32_to_f16(f), h);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        /* Halfway to the next value goes to the even one; a hair off goes to the nearer. */
        float half = (float)((f16_value((uint16_t)h) + f16_value((uint16_t)(h + 1))) / 2);
        assert_int_equal(cr_f32_to_f16(half), h & 1 ? h + 1 : h);
        float away = copysignf(INFINITY, half);
        assert_int_equal(cr_f32_to_f16(nextafterf(half, away)), h + 1);
        assert_int_equal(cr_f32_to_f16(nextafterf(half, 0)), h);
    }
    assert_int_equal(cr_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(cr_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(cr_f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(cr_f32_to_f16(1e-30f), 0);
}

static void test_bf16_every_value_and_boundary(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = cr_bf16_to_f32((uint16_t)h), half, above, below;
        assert_int_equal(bits_of(f), h << 16);
        if (isnan(f)) {
            assert_true(isnan(cr_bf16_to_f32(cr_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(cr_f32_to_bf16(f), h);
        if (isinf(f))
            continue;
        uint32_t u = h << 16 | 0x8000, up = u + 1, down = u - 1;
        memcpy(&half, &u, 4);
        memcpy(&above, &up, 4);
        memcpy(&below, &down, 4);
        assert_int_equal(cr_f32_to_bf16(half), h & 1 ? h + 1 : h);
        assert_int_equal(cr_f32_to_bf16(above), h + 1);
        assert_int_equal(cr_f32_to_bf16(below), h);
    }
    uint32_t low_nan = 0x7f800001; /* its payload lies in the bits that go away */
    float f;
    memcpy(&f, &low_nan, 4);
    assert_true(isnan(cr_bf16_to_f32(cr_f32_to_bf16(f))));
}

/* Half a step of the type, for a block whose largest magnitude is `most` and range is `range`, plus
 * what rounding the scale (and minimum) to float16 costs over the whole range of codes. */
static double quantize_bound(enum cr_type type, double most, double range)
{
    switch (type) {
    case CR_F16:
        return most * 0x1p-11;
    case CR_BF16:
        return most * 0x1p-8;
    case CR_Q8_0:
        return most / 127 * (0.5 + 127 * 0x1p-11) * 1.001;
    case CR_Q4_0: /* the far end of the other sign is one step short */
        return most / 8 * (1.0 + 8 * 0x1p-11) * 1.001;
    case CR_Q4_1:
        return (range / 15 * (0.5 + 15 * 0x1p-11) + most * 0x1p-11) * 1.001;
    default:
        return 0;
    }
}

static void test_quantize_within_half_a_step(void **state)
{
    (void)state;
    struct cr_rng rng;
    cr_rng_init(&rng, 7);
    for (int trial = 0; trial < 200; trial++) {
        float x[64], back[64];
        unsigned char raw[256 + 1];
        for (int i = 0; i < 64; i++)
            x[i] = (float)(cr_rng_normal(&rng) + (trial % 3 == 0 ? 2 : 0));
        for (int k = 0; k < N_USABLE; k++) {
            cr_quantize_ref(usable[k], raw + 1, x, 64); /* an odd address on purpose */
            cr_dequantize_ref(usable[k], back, raw + 1, 64);
            for (int b = 0; b < 64; b += 32) {
                double most = 0, lo = x[b], hi = x[b];
                for (int i = b; i < b + 32; i++) {
                    most = fmax(most, fabsf(x[i]));
                    lo = fmin(lo, x[i]);
                    hi = fmax(hi, x[i]);
                }
                for (int i = b; i < b + 32; i++)
                    assert_true(fabs((double)back[i] - x[i]) <=
                                quantize_bound(usable[k], most, hi - lo));
            }
        }
    }
}

static void test_blocks_that_are_codes_already_come_back(void **state)
{
    (void)state;
    float x[32], back[32];
    unsigned char raw[128];
    for (int i = 0; i < 32; i++)
        x[i] = 0.25f * (float)(i % 16 - 8);
    cr_quantize_ref(CR_Q4_0, raw, x, 32);
    cr_dequantize_ref(CR_Q4_0, back, raw, 32);
    assert_memory_equal(x, back, sizeof x);
    cr_quantize_ref(CR_Q4_1, raw, x, 32);
    cr_dequantize_ref(CR_Q4_1, back, raw, 32);
    assert_memory_equal(x, back, sizeof x);
    for (int i = 0; i < 32; i++)
        x[i] = 0.5f * (float)(i == 31 ? -127 : 4 * i);
    cr_quantize_ref(CR_Q8_0, raw, x, 32);
    cr_dequantize_ref(CR_Q8_0, back, raw, 32);
    assert_memory_equal(x, back, sizeof x);
}

/* Byte j of a 4-bit block holds values j and j + 16. */
static void test_block_layout(void **state)
{
    (void)state;
    unsigned char raw[20] = {0x00, 0x3c}; /* d = 1 */
    float x[32];
    raw[2 + 3] = 0x9f;
    cr_dequantize_ref(CR_Q4_0, x, raw, 32);
    assert_true(x[3] == 7 && x[19] == 1 && x[0] == -8);
    memset(raw + 2, 0, 18);
    raw[3] = 0x40; /* m = 2 */
    raw[4 + 15] = 0x21;
    cr_dequantize_ref(CR_Q4_1, x, raw, 32);
    assert_true(x[15] == 3 && x[31] == 4 && x[0] == 2);
}

static void test_quantize_takes_any_input(void **state)
{
    (void)state;
    static const float odd[] = {0, -0.0f, NAN, INFINITY, -INFINITY, 1e-45f, 3e38f, -3e38f};
    float x[32], back[32];
    unsigned char raw[128];
    for (int shift = 0; shift < 8; shift++) {
        for (int i = 0; i < 32; i++)
            x[i] = shift == 7 ? 0 : odd[(i * (shift + 1) + shift) % 8];
        for (int k = 0; k < N_USABLE; k++) {
            cr_quantize_ref(usable[k], raw, x, 32);
            cr_dequantize_ref(usable[k], back, raw, 32);
            if (shift == 7)
                assert_true(back[5] == 0);
        }
    }
    cr_quantize_ref(12, raw, x, 32); /* not usable: nothing happens */
    cr_dequantize_ref(12, back, raw, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_type_table),
        cmocka_unit_test(test_f16_every_value_and_boundary),
        cmocka_unit_test(test_bf16_every_value_and_boundary),
        cmocka_unit_test(test_quantize_within_half_a_step),
        cmocka_unit_test(test_blocks_that_are_codes_already_come_back),
        cmocka_unit_test(test_block_layout),
        cmocka_unit_test(test_quantize_takes_any_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
