/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON writer: whatever goes in, a strict parser takes what comes out. */
#include "base/mem.h"
#include "jsonout.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#ifdef CRAYON_JSON
#include <jansson.h>
#endif

static struct cr_buf b;
static struct cr_json j;

static void begin(bool pretty)
{
    cr_buf_init(&b, 1 << 20);
    cr_json_begin(&j, &b, pretty);
}

static void test_layout(void **state)
{
    (void)state;
    static const float v[2] = {0.1F, -3};
    for (int pretty = 0; pretty < 2; pretty++) {
        begin(pretty);
        cr_json_open(&j, NULL, '{');
        cr_json_str(&j, "a", "x\"\\\n\r\t\x01");
        cr_json_str(&j, "n", NULL);
        cr_json_floats(&j, "v", v, 2);
        cr_json_open(&j, "e", '[');
        cr_json_close(&j);
        cr_json_open(&j, "o", '{');
        cr_json_bool(&j, "t", true);
        cr_json_int(&j, "i", -5);
        cr_json_uint(&j, "u", UINT64_MAX);
        cr_json_fixed(&j, "f", 1.0 / 3, 3);
        cr_json_close(&j);
        cr_json_close(&j);
        assert_string_equal(
            b.data, pretty ? "{\n  \"a\": \"x\\\"\\\\\\n\\r\\t\\u0001\",\n  \"n\": null,\n"
                             "  \"v\": [0.100000001, -3],\n  \"e\": [],\n  \"o\": {\n"
                             "    \"t\": true,\n    \"i\": -5,\n    \"u\": 18446744073709551615,\n"
                             "    \"f\": 0.333\n  }\n}"
                           : "{\"a\":\"x\\\"\\\\\\n\\r\\t\\u0001\",\"n\":null,"
                             "\"v\":[0.100000001,-3],\"e\":[],\"o\":{\"t\":true,\"i\":-5,"
                             "\"u\":18446744073709551615,\"f\":0.333}}");
        cr_buf_deinit(&b);
    }
}

static void test_numbers_that_json_lacks(void **state)
{
    (void)state;
    begin(false);
    cr_json_open(&j, NULL, '[');
    cr_json_real(&j, NULL, (double)NAN);
    cr_json_real(&j, NULL, (double)INFINITY);
    cr_json_fixed(&j, NULL, (double)-INFINITY, 2);
    cr_json_close(&j);
    assert_string_equal(b.data, "[null,null,null]");
    cr_buf_deinit(&b);
}

static void test_any_bytes_make_valid_json(void **state)
{
    (void)state;
#ifdef CRAYON_JSON
    for (int first = 0; first < 256; first++)
        for (int second = 0; second < 256; second++) {
            char text[4] = {(char)first, (char)second, 'x', (char)first};
            begin(false);
            cr_json_open(&j, NULL, '[');
            cr_json_strn(&j, NULL, text, sizeof text);
            cr_json_close(&j);
            json_error_t error;
            json_t *o = json_loadb(b.data, b.len, JSON_ALLOW_NUL, &error);
            if (!o)
                fail_msg("%02x %02x: %s", first, second, error.text);
            json_decref(o);
            cr_buf_deinit(&b);
        }
#else
    skip();
#endif
}

static void test_float32_survives(void **state)
{
    (void)state;
#ifdef CRAYON_JSON
    static const float v[] = {1e-38F, 0.1F, 16777217.0F, -1.17549435e-38F, 3.4e38F, 1.0F / 3};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        begin(false);
        cr_json_floats(&j, NULL, &v[i], 1);
        json_t *o = json_loadb(b.data, b.len, 0, NULL);
        assert_true((float)json_number_value(json_array_get(o, 0)) == v[i]);
        json_decref(o);
        cr_buf_deinit(&b);
    }
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_numbers_that_json_lacks),
        cmocka_unit_test(test_any_bytes_make_valid_json),
        cmocka_unit_test(test_float32_survives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
