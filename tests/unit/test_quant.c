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

static const enum cr_type usable[] = {CR_F32,  CR_F16,  CR_BF16, CR_Q8_0, CR_Q4_0, CR_Q4_1,
                                      CR_Q5_0, CR_Q5_1, CR_Q4_K, CR_Q5_K, CR_Q6_K, CR_IQ4_NL};
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
    assert_string_equal(cr_type_info(10)->name, "Q2_K");
    assert_false(cr_type_info(10)->usable);
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

/* The numbers of 32 values that a bound needs; most_k: the largest magnitude of their 256, range_k:
 * the largest range, with 0, of a group of these. */
struct spread {
    double most, range, most_k, range_k;
};

/* Half a step of the type, plus what rounding the scale (and minimum) to float16 costs over the
 * whole range of codes; in K-types, plus half a step of the group's scale and minimum, which are
 * multiples of 1/63 (1/128) of the largest. */
static double quantize_bound(enum cr_type type, struct spread s)
{
    const double u = 0x1p-11;
    switch (type) {
    case CR_F16:
        return s.most * u;
    case CR_BF16:
        return s.most * 0x1p-8;
    case CR_Q8_0:
        return s.most / 127 * (0.5 + 127 * u) * 1.001;
    case CR_Q4_0: /* the far end of the other sign is one step short */
        return s.most / 8 * (1.0 + 8 * u) * 1.001;
    case CR_Q5_0:
        return s.most / 16 * (1.0 + 16 * u) * 1.001;
    case CR_Q4_1:
        return (s.range / 15 * (0.5 + 15 * u) + s.most * u) * 1.001;
    case CR_Q5_1:
        return (s.range / 31 * (0.5 + 31 * u) + s.most * u) * 1.001;
    case CR_IQ4_NL: /* half the widest gap between two of its values; 113 against -127 */
        return s.most / 127 * (14 + 127 * u) * 1.001;
    case CR_Q4_K:
    case CR_Q5_K: {
        double top = type == CR_Q4_K ? 15 : 31, step = s.range_k / top / 63;
        return (s.range_k / top * 0.5 + step / 2 * (top + 0.5) + s.most_k / 63 / 2) * 1.002;
    }
    case CR_Q6_K: {
        double step = s.most_k / 32 / 128;
        return (s.most / 32 + step / 2 * 33) * 1.002;
    }
    default:
        return 0;
    }
}

static struct spread spread_of(const float *x, int group)
{
    struct spread s = {0};
    for (int j = 0; j < 8; j++) {
        double lo = x[32 * j], hi = lo;
        for (int i = 32 * j; i < 32 * j + 32; i++) {
            lo = fmin(lo, x[i]);
            hi = fmax(hi, x[i]);
        }
        double most = fmax(fabs(lo), fabs(hi));
        s.most_k = fmax(s.most_k, most);
        s.range_k = fmax(s.range_k, fmax(hi, 0) - fmin(lo, 0));
        if (j == group) {
            s.most = most;
            s.range = hi - lo;
        }
    }
    return s;
}

static void test_quantize_within_half_a_step(void **state)
{
    (void)state;
    struct cr_rng rng;
    cr_rng_init(&rng, 7);
    for (int trial = 0; trial < 200; trial++) {
        float x[256], back[256];
        unsigned char raw[1024 + 1];
        for (int i = 0; i < 256; i++)
            x[i] = (float)(cr_rng_normal(&rng) * (i / 32 + 1) + (trial % 3 == 0 ? 2 : 0));
        for (int k = 0; k < N_USABLE; k++) {
            cr_quantize_ref(usable[k], raw + 1, x, 256); /* an odd address on purpose */
            cr_dequantize_ref(usable[k], back, raw + 1, 256);
            for (int i = 0; i < 256; i++)
                assert_true(fabs((double)back[i] - x[i]) <=
                            quantize_bound(usable[k], spread_of(x, i / 32)));
        }
    }
}

/* types.txt: blocks and what another implementation makes of them (tests/golden/README.md). */
static void test_blocks_mean_what_others_say(void **state)
{
    (void)state;
    FILE *f = fopen(CR_SOURCE_DIR "/tests/golden/types.txt", "r");
    assert_non_null(f);
    char name[16], hex[600];
    int n_blocks = 0;
    while (fscanf(f, "%15s %599s", name, hex) == 2) {
        uint32_t type = 0;
        while (type < CR_TYPE_END &&
               !(cr_type_info(type)->name && strcmp(cr_type_info(type)->name, name) == 0))
            type++;
        assert_true(cr_type_info(type)->usable);
        assert_int_equal(strlen(hex), 2 * cr_type_info(type)->block_size);
        unsigned char raw[300];
        for (size_t i = 0; i < strlen(hex) / 2; i++) {
            unsigned byte;
            assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
            raw[i] = (unsigned char)byte;
        }
        float x[256];
        cr_dequantize_ref(type, x, raw, cr_type_info(type)->block);
        for (uint32_t i = 0; i < cr_type_info(type)->block; i++) {
            unsigned want;
            assert_int_equal(fscanf(f, "%x", &want), 1);
            assert_true(bits_of(x[i]) == want || (x[i] == 0 && (want & 0x7fffffffu) == 0));
        }
        n_blocks++;
    }
    fclose(f);
    assert_int_equal(n_blocks, 30);
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
    float x[256], back[256];
    unsigned char raw[1024];
    for (int shift = 0; shift < 8; shift++) {
        for (int i = 0; i < 256; i++)
            x[i] = shift == 7 ? 0 : odd[(i * (shift + 1) + shift) % 8];
        for (int k = 0; k < N_USABLE; k++) {
            cr_quantize_ref(usable[k], raw, x, 256);
            cr_dequantize_ref(usable[k], back, raw, 256);
            if (shift == 7)
                assert_true(back[5] == 0);
        }
    }
    cr_quantize_ref(10, raw, x, 256); /* not usable: nothing happens */
    cr_dequantize_ref(10, back, raw, 256);
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
        cmocka_unit_test(test_blocks_mean_what_others_say),
        cmocka_unit_test(test_quantize_takes_any_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
