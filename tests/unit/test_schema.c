/* SPDX-License-Identifier: Apache-2.0 */
/* JSON schemas as grammars: what is let through, what is not, what is refused by which name. */
#include "serve/schema.h"

#include "base/mem.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct cr_frames now, next;

static bool accepts(cr_grammar *g, const char *text)
{
    if (!cr_grammar_start(g, &now))
        return false;
    for (; *text; text++) {
        if (!cr_grammar_step(g, &now, (uint8_t)*text, &next) || (!next.n && !next.whole))
            return false;
        now = next;
    }
    return now.whole;
}

static cr_grammar *compile(const char *schema, struct cr_api_error *e)
{
    cr_grammar *g = NULL;
    json_t *v = json_loads(schema, JSON_DECODE_ANY, NULL);
    if (!v)
        fail_msg("bad test: %s", schema);
    cr_schema_compile(&g, v, "response_format", e);
    json_decref(v);
    return g;
}

static void expect(const char *schema, const char *const *good, const char *const *bad)
{
    struct cr_api_error e;
    cr_grammar *g = compile(schema, &e);
    if (!g)
        fail_msg("%s: %s", schema, e.msg);
    for (; *good; good++)
        if (!accepts(g, *good))
            fail_msg("%s does not take %s", schema, *good);
    for (; *bad; bad++)
        if (accepts(g, *bad))
            fail_msg("%s takes %s", schema, *bad);
    cr_grammar_unref(g);
}

#define TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void expect_refused(const char *schema, const char *keyword)
{
    struct cr_api_error e;
    cr_grammar *g = compile(schema, &e);
    char want[64];
    if (g)
        fail_msg("accepted: %s", schema);
    snprintf(want, sizeof want, "keyword %s:", keyword);
    if (e.http != 400 || !strstr(e.msg, want) || strcmp(e.param, "response_format") != 0)
        fail_msg("%s: http %d param %s: %s", schema, e.http, e.param, e.msg);
}

static void test_values_objects_and_arrays(void **state)
{
    (void)state;
    expect("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":"
           "\"string\",\"minLength\":1,\"maxLength\":2},\"c\":{\"type\":[\"null\",\"boolean\"]}},"
           "\"required\":[\"b\"],\"additionalProperties\":false}",
           TEXTS("{\"b\":\"x\"}", "{\"a\": 1, \"b\": \"\\u00e9\"}",
                 "{\n  \"a\":-5,\n  \"b\":\"xy\",\n  \"c\":null\n}",
                 " {\"b\":\"\xc3\xa4\xf0\x9f\x98\x80\"}"),
           TEXTS("{}", "{\"b\":\"\"}", "{\"b\":\"xyz\"}", "{\"b\":\"x\",\"a\":1}", "{\"b\":\"x\",}",
                 "{\"a\":01,\"b\":\"x\"}", "{\"b\":\"x\",\"c\":0}", "{\"b\":\"\xc3\"}",
                 "{\"b\":\"\n\"}", "{\"b\":\"\\ud800\"}"));
    expect(
        "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":\"x\"}],\"items\":{\"type\":"
        "\"null\"},\"minItems\":1,\"maxItems\":3}",
        TEXTS("[1]", "[1,\"x\"]", "[1, \"x\", null]"),
        TEXTS("[]", "[\"x\"]", "[1,null]", "[1,\"x\",null,null]", "[1,\"x\",1]"));
    expect("{}", TEXTS("{\"a\":[1,2.5e3,true,null,\"x\",{}]}", "[]", "-1.5"),
           TEXTS("{a:1}", "[1,]", "nul", "1.", "+1", "\"\\x\""));
    expect("{\"enum\":[\"a\",\"ab\",1,null,{\"k\":[1]}]}",
           TEXTS("\"a\"", "\"ab\"", "1", "null", "{\"k\":[1]}"), TEXTS("\"b\"", "\"abc\"", "11"));
    expect(
        "{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"object\",\"properties\":{\"kids\":{"
        "\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/t\"}}},\"required\":[\"kids\"]}}}",
        TEXTS("{\"kids\":[]}", "{\"kids\":[{\"kids\":[{\"kids\":[]}]}]}"),
        TEXTS("{}", "{\"kids\":[1]}"));
    expect("{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"object\",\"properties\":{\"x\":{}},"
           "\"required\":"
           "[\"x\"]}]}",
           TEXTS("\"a\"", "{\"x\":1}"), TEXTS("1", "{}"));
    expect("{\"type\":\"object\",\"allOf\":[{\"properties\":{\"a\":{\"type\":\"integer\","
           "\"minimum\":3}},"
           "\"required\":[\"a\"]},{\"properties\":{\"a\":{\"maximum\":5}}}]}",
           TEXTS("{\"a\":3}", "{\"a\":5}"), TEXTS("{\"a\":2}", "{\"a\":6}", "{}"));
    expect("{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}",
           TEXTS("{}", "{\"any\":1, \"key\":2}"), TEXTS("{\"any\":\"x\"}"));
}

static void test_integer_bounds_are_exact(void **state)
{
    (void)state;
    struct cr_rng r;
    cr_rng_init(&r, 7);
    for (int i = 0; i < 60; i++) {
        int lo = (int)cr_rng_below(&r, 2400) - 1200, hi = lo + (int)cr_rng_below(&r, 1300);
        char schema[128], text[16];
        struct cr_api_error e;
        snprintf(schema, sizeof schema,
                 "{\"type\":\"integer\",\"minimum\":%d,\"exclusiveMaximum\":%d}", lo, hi + 1);
        cr_grammar *g = compile(schema, &e);
        assert_non_null(g);
        for (int x = -1300; x <= 2600; x++) {
            snprintf(text, sizeof text, "%d", x);
            if (accepts(g, text) != (x >= lo && x <= hi))
                fail_msg("%s: %d", schema, x);
        }
        cr_grammar_unref(g);
    }
    expect("{\"type\":\"integer\",\"multipleOf\":7}", TEXTS("0", "7", "-14", "700"),
           TEXTS("1", "-8", "07"));
    expect("{\"type\":\"integer\",\"multipleOf\":50,\"minimum\":-70,\"maximum\":120}",
           TEXTS("-50", "0", "50", "100"), TEXTS("-100", "150", "25"));
    expect("{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":2}",
           TEXTS("0.5", "0.000001", "1", "1.25", "2"), TEXTS("0", "0.0", "2.1", "-1", "3"));
    expect("{\"type\":\"number\",\"minimum\":-2,\"exclusiveMaximum\":-1}",
           TEXTS("-2", "-1.5", "-1.01"), TEXTS("-1", "-1.0", "-2.1", "0"));
}

static void test_patterns(void **state)
{
    (void)state;
    expect("{\"type\":\"string\",\"pattern\":\"^[a-c]{2,3}(-\\\\d+|_)?$\"}",
           TEXTS("\"ab\"", "\"abc-12\"", "\"aa_\""),
           TEXTS("\"a\"", "\"abcd\"", "\"ab-\"", "\"xab\""));
    expect("{\"type\":\"string\",\"pattern\":\"x\"}", TEXTS("\"x\"", "\"axb\""),
           TEXTS("\"\"", "\"a\""));
    expect("{\"type\":\"string\",\"pattern\":\"^[^a-z]$\"}",
           TEXTS("\"A\"", "\"\\n\"", "\"\\\"\"", "\"\xc3\xa4\""), TEXTS("\"a\"", "\"\"", "\"AB\""));
    expect("{\"type\":\"string\",\"pattern\":\"^\\\\w+@\\\\u00e4|^$\"}",
           TEXTS("\"a_1@\xc3\xa4zz\"", "\"\""), TEXTS("\"@\xc3\xa4\"", "\"a\""));
    expect("{\"type\":\"string\",\"format\":\"date\"}", TEXTS("\"2024-02-28\""),
           TEXTS("\"2024-02-30\"", "\"24-2-3\""));
}

/* 23: cyclic $ref, "^+", look-behind, "(((...", enum of 10^5, minLength 2^31; 25: all fail closed.
 */
static void test_attack_23_24_25_schemas_are_refused_by_name(void **state)
{
    (void)state;
    expect_refused("{\"$ref\":\"#\"}", "$ref");
    expect_refused(
        "{\"anyOf\":[{\"$ref\":\"#/$defs/a\"}],\"$defs\":{\"a\":{\"anyOf\":[{\"$ref\":\"#/$defs/"
        "a\"},{\"type\":\"null\"}]}}}",
        "$ref");
    expect_refused("{\"$ref\":\"http://example.com/x\"}", "$ref");
    expect_refused("{\"$ref\":\"#/$defs/none\"}", "$ref");
    expect_refused("{\"type\":\"string\",\"pattern\":\"^+\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"(?<=a)b\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"(?=a)b\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"(a)\\\\1\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"(a*)*\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"a{1,99999999999}\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"a{0,2147483648}\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"pattern\":\"[z-a]\"}", "pattern");
    expect_refused("{\"type\":\"string\",\"minLength\":2147483648}", "minLength");
    expect_refused("{\"type\":\"string\",\"minLength\":-1}", "minLength");
    expect_refused("{\"type\":\"string\",\"pattern\":\"a\",\"maxLength\":3}", "maxLength");
    expect_refused("{\"not\":{}}", "not");
    expect_refused("{\"type\":\"object\",\"patternProperties\":{}}", "patternProperties");
    expect_refused("{\"if\":{}}", "if");
    expect_refused("{\"type\":\"array\",\"uniqueItems\":true}", "uniqueItems");
    expect_refused("{\"type\":\"array\",\"contains\":{}}", "contains");
    expect_refused("{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "oneOf");
    expect_refused("{\"type\":\"strange\"}", "type");
    expect_refused("{\"type\":\"string\",\"format\":\"regex\"}", "format");
    expect_refused("{\"type\":\"number\",\"multipleOf\":0.01}", "multipleOf");
    expect_refused("{\"enum\":[1],\"minimum\":0}", "minimum");
    /* 24: nothing matches */
    expect_refused("false", "(all)");
    expect_refused(
        "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
        "(all)");
    expect_refused("{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}", "(all)");
    expect_refused("{\"enum\":[]}", "(all)");
}

static void test_attack_22_depth_and_size_end_in_errors(void **state)
{
    (void)state;
    enum { N = 100000 };
    struct cr_buf b;
    struct cr_api_error e;
    cr_buf_init(&b, (size_t)1 << 26);
    cr_buf_puts(&b, "{\"type\":\"string\",\"pattern\":\"");
    for (int i = 0; i < 4000; i++)
        cr_buf_puts(&b, "(");
    cr_buf_puts(&b, "\"}");
    expect_refused(b.data, "pattern");
    b.len = 0;
    for (int i = 0; i < 500; i++)
        cr_buf_puts(&b, "{\"type\":\"array\",\"items\":");
    cr_buf_puts(&b, "{}");
    for (int i = 0; i < 500; i++)
        cr_buf_puts(&b, "}");
    expect_refused(b.data, "(nesting)");
    b.len = 0;
    cr_buf_puts(&b, "{\"enum\":[");
    for (int i = 0; i < N; i++)
        cr_buf_printf(&b, "%s\"value-%d\"", i ? "," : "", i * 7919 % N);
    cr_buf_puts(&b, "]}");
    cr_grammar *g = compile(b.data, &e);
    if (g) {
        assert_true(accepts(g, "\"value-99999\"") && accepts(g, "\"value-1\""));
        assert_false(accepts(g, "\"value-100000\"") || accepts(g, "\"value-\""));
        cr_grammar_unref(g);
    }
    b.len = 0; /* each a beginning of the next */
    cr_buf_puts(&b, "{\"enum\":[");
    for (int i = 0; i < 3000; i++)
        cr_buf_printf(&b, "%s\"%0*d\"", i ? "," : "", i + 1, 0);
    cr_buf_puts(&b, "]}");
    expect_refused(b.data, "enum");
    b.len = 0; /* a long chain of references */
    cr_buf_puts(&b, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
    for (int i = 0; i < 2000; i++)
        cr_buf_printf(&b, "\"d%d\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/d%d\"}},", i,
                      i + 1);
    cr_buf_puts(&b, "\"d2000\":{}}}");
    g = compile(b.data, &e);
    assert_null(g);
    assert_int_equal(e.http, 400);
    cr_buf_deinit(&b);
}

/* 53: whichever allocation fails while a schema is compiled, it is an error, never a looser
 * grammar. */
static void test_attack_53_out_of_memory(void **state)
{
    (void)state;
    json_t *schema = json_loads(
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":-7,"
        "\"maximum\":1234},"
        "\"b\":{\"enum\":[\"x\",\"xy\",3]},\"c\":{\"$ref\":\"#/$defs/"
        "c\"},\"d\":{\"type\":\"string\",\"pattern\":"
        "\"^[a-c]{2,3}(-\\\\d+|_)?$\"}},\"required\":[\"a\",\"b\"],\"additionalProperties\":false,"
        "\"$defs\":{\"c\":{\"type\":\"array\",\"items\":{\"type\":\"number\",\"minimum\":0},"
        "\"maxItems\":3}}}",
        0, NULL);
    assert_non_null(schema);
    size_t before = cr_mem_now(), n = 1;
    for (cr_grammar *g = NULL; !g; n++) {
        struct cr_api_error e;
        assert_true(n < 100000);
        cr_mem_fail_at(n, true);
        enum cr_status status = cr_schema_compile(&g, schema, "schema", &e);
        cr_mem_fail_at(0, false);
        assert_int_equal(status == CR_OK, g != NULL);
        if (g) {
            assert_false(accepts(g, "{\"a\":1235,\"b\":3}"));
            assert_true(accepts(g, "{\"a\":1234,\"b\":\"xy\"}"));
            cr_grammar_unref(g);
            break;
        }
        if (e.http < 400 || !e.msg[0])
            fail_msg("allocation %zu: %d %s", n, e.http, e.msg);
        assert_int_equal(cr_mem_now(), before);
    }
    assert_true(n > 10);
    json_decref(schema);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_objects_and_arrays),
        cmocka_unit_test(test_integer_bounds_are_exact),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_attack_23_24_25_schemas_are_refused_by_name),
        cmocka_unit_test(test_attack_53_out_of_memory),
        cmocka_unit_test(test_attack_22_depth_and_size_end_in_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
