/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of the OpenAI API as strings: what is read, what is refused and by which name. */
#include "serve/api.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void expect_refused(bool chat, const char *body, const char *param)
{
    struct cr_api_request r;
    struct cr_api_error e;
    if (cr_api_parse(&r, chat, body, strlen(body), &e))
        fail_msg("accepted: %s", body);
    if (e.http != 400 || strcmp(e.param, param) != 0)
        fail_msg("%s: http %d param \"%s\" (%s)", body, e.http, e.param, e.msg);
    cr_api_request_deinit(&r);
}

static void test_reads_a_chat_request(void **state)
{
    (void)state;
    const char *body =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":"
        "\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":"
        "\"b\"}]}],\"max_tokens\":3,\"max_completion_tokens\":5,\"temperature\":0,\"stop\":\"x\","
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"logprobs\":true,"
        "\"top_logprobs\":2,\"seed\":7,\"user\":\"u\",\"unknown\":[1],\"n\":1,\"tools\":[],"
        "\"stop_\":null,\"top_p\":null}";
    struct cr_api_request r;
    struct cr_api_error e;
    if (!cr_api_parse(&r, true, body, strlen(body), &e))
        fail_msg("%s", e.msg);
    assert_int_equal(r.n_messages, 2);
    assert_string_equal(r.messages[0].role, "system");
    assert_string_equal(r.messages[1].content, "ab");
    assert_int_equal(r.max_tokens, 5);
    assert_true(r.sampling.temperature == 0 && r.sampling.seed == 7 && r.sampling.top_p == 1);
    assert_int_equal(r.n_stop, 1);
    assert_true(r.stream && r.include_usage && r.logprobs && r.top_logprobs == 2);
    cr_api_request_deinit(&r);
}

static void test_reads_prompts_in_four_forms(void **state)
{
    (void)state;
    const struct {
        const char *body;
        size_t n, n_ids;
    } cases[] = {{"{\"model\":\"m\",\"prompt\":\"a b\"}", 1, 0},
                 {"{\"model\":\"m\",\"prompt\":[\"a\",\"b\"]}", 2, 0},
                 {"{\"model\":\"m\",\"prompt\":[1,2,3]}", 1, 3},
                 {"{\"model\":\"m\",\"prompt\":[[1,2],[3]],\"echo\":true,\"logprobs\":1}", 2, 2}};
    for (size_t i = 0; i < 4; i++) {
        struct cr_api_request r;
        struct cr_api_error e;
        if (!cr_api_parse(&r, false, cases[i].body, strlen(cases[i].body), &e))
            fail_msg("%s", e.msg);
        assert_int_equal(r.n_prompts, cases[i].n);
        assert_int_equal(r.prompts[0].n_ids, cases[i].n_ids);
        assert_int_equal(r.max_tokens, 16);
        cr_api_request_deinit(&r);
    }
}

static void test_refuses_by_name(void **state)
{
    (void)state;
#define CHAT(more) "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]" more "}"
    expect_refused(true, "", "");
    expect_refused(true, "[1]", "");
    expect_refused(true, "{\"model\":\"m\",\"model\":\"n\"}", "");
    expect_refused(true, "{\"messages\":[]}", "model");
    expect_refused(true, "{\"model\":\"m\",\"messages\":[]}", "messages");
    expect_refused(true, "{\"model\":\"m\",\"messages\":[{\"content\":\"x\"}]}", "messages");
    expect_refused(true, "{\"model\":\"m\",\"messages\":[{\"role\":\"wizard\",\"content\":\"\"}]}",
                   "messages");
    expect_refused(true,
                   "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":"
                   "\"image_url\"}]}]}",
                   "messages");
    expect_refused(true, CHAT(",\"temperature\":-1"), "temperature");
    expect_refused(true, CHAT(",\"temperature\":\"0\""), "temperature");
    expect_refused(true, CHAT(",\"top_p\":1.5"), "top_p");
    expect_refused(true, CHAT(",\"max_tokens\":1.5"), "max_tokens");
    expect_refused(true, CHAT(",\"max_tokens\":-1"), "max_tokens");
    expect_refused(true, CHAT(",\"max_tokens\":9223372036854775807"), "max_tokens");
    expect_refused(true, CHAT(",\"stop\":5"), "stop");
    expect_refused(true, CHAT(",\"stop\":[\"\"]"), "stop");
    expect_refused(true, CHAT(",\"n\":1000"), "n");
    expect_refused(true, CHAT(",\"n\":0"), "n");
    expect_refused(true, CHAT(",\"top_logprobs\":5"), "top_logprobs");
    expect_refused(true, CHAT(",\"logprobs\":true,\"top_logprobs\":1000000"), "top_logprobs");
    expect_refused(true, CHAT(",\"logit_bias\":{\"x\":2}"), "logit_bias");
    expect_refused(true, CHAT(",\"logit_bias\":{\"1\":101}"), "logit_bias");
    expect_refused(true, CHAT(",\"tools\":[{}]"), "tools");
    expect_refused(true, CHAT(",\"tool_choice\":\"required\""), "tool_choice");
    expect_refused(true, CHAT(",\"functions\":[{}]"), "functions");
    expect_refused(true, CHAT(",\"response_format\":{\"type\":\"xml\"}"), "response_format");
    expect_refused(true, CHAT(",\"response_format\":{\"type\":\"json_schema\"}"),
                   "response_format");
    expect_refused(true, CHAT(",\"presence_penalty\":3"), "presence_penalty");
    expect_refused(true, CHAT(",\"audio\":{\"voice\":\"x\"}"), "audio");
    expect_refused(true, CHAT(",\"modalities\":[\"text\",\"audio\"]"), "modalities");
    expect_refused(true, CHAT(",\"crayon\":{\"route\":\"moon\"}"), "crayon.route");
    expect_refused(true, CHAT(",\"lora\":[{\"id\":0}]"), "lora");
    expect_refused(true, CHAT(",\"stream_options\":{}"), "stream_options");
    expect_refused(true, CHAT(",\"seed\":1e400"), "");
    expect_refused(true, CHAT(",\"guided_regex\":\"a\""), "guided_regex");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":\"x\",\"json_schema\":{\"a\":1}}",
                   "json_schema");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":\"x\",\"best_of\":2}", "best_of");
    expect_refused(false, "{\"model\":\"m\"}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[[]]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[-1]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":\"x\",\"echo\":true,\"stream\":true}",
                   "stream");
}

/* A request of a dialect with one more field at its top or in "options". */
static bool parse_with(enum cr_api_kind kind, const char *name, const char *value, bool options,
                       struct cr_api_error *e)
{
    static const char *const bodies[CR_API_KINDS] = {
        [CR_API_CHAT] = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"logprobs\":true",
        [CR_API_COMPLETIONS] = "\"prompt\":\"x\"",
        [CR_API_RESPONSES] = "\"input\":\"x\"",
        [CR_API_MESSAGES] = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]",
        [CR_API_OLLAMA_CHAT] = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"};
    char body[256];
    struct cr_api_request r;
    const char *more =
        kind == CR_API_MESSAGES && strcmp(name, "max_tokens") != 0 ? "\"max_tokens\":1," : "";
    snprintf(body, sizeof body, "{\"model\":\"m\",%s%s,%s\"%s\":%s%s}", more, bodies[kind],
             options ? "\"options\":{" : "", name, value, options ? "}" : "");
    bool ok = cr_api_parse(&r, kind, body, strlen(body), e);
    cr_api_request_deinit(&r);
    return ok;
}

/* 32, 33: every integer field of every dialect at its limits and past them. */
static void test_attack_32_33_integer_fields(void **state)
{
    (void)state;
    enum { TOKENS = 1 << 20 };
    static const struct {
        enum cr_api_kind kind;
        const char *name;
        long long min, max;
        bool options;
    } fields[] = {{CR_API_CHAT, "max_tokens", 1, TOKENS, false},
                  {CR_API_CHAT, "max_completion_tokens", 1, TOKENS, false},
                  {CR_API_CHAT, "n", 1, CR_API_MAX_N, false},
                  {CR_API_CHAT, "top_k", 0, TOKENS, false},
                  {CR_API_CHAT, "top_logprobs", 0, CR_API_MAX_TOP, false},
                  {CR_API_CHAT, "seed", INT64_MIN, INT64_MAX, false},
                  {CR_API_COMPLETIONS, "max_tokens", 0, TOKENS, false},
                  {CR_API_COMPLETIONS, "logprobs", 0, CR_API_MAX_TOP, false},
                  {CR_API_COMPLETIONS, "n", 1, CR_API_MAX_N, false},
                  {CR_API_RESPONSES, "max_output_tokens", 1, TOKENS, false},
                  {CR_API_MESSAGES, "max_tokens", 1, TOKENS, false},
                  {CR_API_MESSAGES, "top_k", 0, TOKENS, false},
                  {CR_API_OLLAMA_CHAT, "num_predict", -2, TOKENS, true},
                  {CR_API_OLLAMA_CHAT, "repeat_last_n", -1, 1024, true},
                  {CR_API_OLLAMA_CHAT, "top_k", 0, TOKENS, true},
                  {CR_API_OLLAMA_CHAT, "seed", INT64_MIN, INT64_MAX, true}};
    static const char *const odd[] = {"1.5",   "\"5\"",  "true", "[1]", "{}", "9223372036854775808",
                                      "1e400", "-1e400", "1e2",  "01"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const long long min = fields[i].min, max = fields[i].max;
        const long long values[] = {INT64_MIN, min > INT64_MIN ? min - 1 : min, min,      -1, 0, 1,
                                    max,       max < INT64_MAX ? max + 1 : max, INT64_MAX};
        struct cr_api_error e;
        char text[32];
        for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
            bool good = values[k] >= min && values[k] <= max;
            snprintf(text, sizeof text, "%lld", values[k]);
            if (parse_with(fields[i].kind, fields[i].name, text, fields[i].options, &e) != good)
                fail_msg("%s: %s: %s", fields[i].name, text, good ? e.msg : "accepted");
            if (!good && (e.http != 400 || strcmp(e.param, fields[i].name) != 0))
                fail_msg("%s: %s: http %d, param %s", fields[i].name, text, e.http, e.param);
        }
        for (size_t k = 0; k < sizeof odd / sizeof *odd; k++) {
            if (parse_with(fields[i].kind, fields[i].name, odd[k], fields[i].options, &e))
                fail_msg("%s: %s: accepted", fields[i].name, odd[k]);
            assert_int_equal(e.http, 400);
        }
        assert_int_equal(parse_with(fields[i].kind, fields[i].name, "-0", fields[i].options, &e),
                         min <= 0);
    }
}

/* 22, 25: there is no language of grammars to attack; a request that brings one is refused. */
static void test_attack_22_grammars_are_refused(void **state)
{
    (void)state;
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    cr_buf_puts(&b, "{\"model\":\"m\",\"prompt\":\"x\",\"grammar\":\"root ::= ");
    for (int i = 0; i < 60000; i++)
        cr_buf_puts(&b, "(");
    cr_buf_puts(&b, "\"}");
    expect_refused(false, b.data, "grammar");
    cr_buf_deinit(&b);
    expect_refused(true, CHAT(",\"grammar\":\"root ::= root | root\""), "grammar");
    expect_refused(true, CHAT(",\"grammar\":\"root ::= [a]{0,2147483648}\""), "grammar");
}

static void test_dialects_become_one_request(void **state)
{
    (void)state;
    static const struct {
        enum cr_api_kind kind;
        const char *body;
    } cases[] = {
        {CR_API_CHAT,
         "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":"
         "\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"
         "[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":"
         "\"{\\\"a\\\":1}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"r\"}],"
         "\"max_tokens\":9}"},
        {CR_API_RESPONSES, "{\"model\":\"m\",\"instructions\":\"s\",\"input\":[{\"role\":\"user\","
                           "\"content\":[{\"type\":"
                           "\"input_text\",\"text\":\"u\"}]},{\"type\":\"function_call\",\"call_"
                           "id\":\"c\",\"name\":\"f\","
                           "\"arguments\":\"{\\\"a\\\":1}\"},{\"type\":\"function_call_output\","
                           "\"call_id\":\"c\",\"output\":"
                           "\"r\"}],\"max_output_tokens\":9}"},
        {CR_API_MESSAGES, "{\"model\":\"m\",\"system\":\"s\",\"max_tokens\":9,\"messages\":[{"
                          "\"role\":\"user\",\"content\":"
                          "\"u\"},{\"role\":\"assistant\",\"content\":[{\"type\":\"tool_use\","
                          "\"id\":\"c\",\"name\":\"f\","
                          "\"input\":{\"a\":1}}]},{\"role\":\"user\",\"content\":[{\"type\":\"tool_"
                          "result\",\"tool_use_id\":"
                          "\"c\",\"content\":\"r\"}]}]}"},
        {CR_API_OLLAMA_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":"
                             "\"s\"},{\"role\":\"user\","
                             "\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"\",\"tool_"
                             "calls\":[{\"function\":{\"name\":"
                             "\"f\",\"arguments\":{\"a\":1}}}]},{\"role\":\"tool\",\"content\":"
                             "\"r\"}],\"options\":{\"num_predict"
                             "\":9}}"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cr_api_request r;
        struct cr_api_error e;
        if (!cr_api_parse(&r, cases[i].kind, cases[i].body, strlen(cases[i].body), &e))
            fail_msg("%zu: %s", i, e.msg);
        assert_int_equal(r.n_messages, 4);
        assert_int_equal(r.max_tokens, 9);
        assert_string_equal(r.messages[0].content, "s");
        assert_string_equal(r.messages[1].content, "u");
        assert_string_equal(
            r.messages[2].content,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>");
        assert_string_equal(r.messages[3].role, "user");
        assert_string_equal(r.messages[3].content, "<tool_response>\nr\n</tool_response>");
        cr_api_request_deinit(&r);
    }
}

static void test_attack_29_30_invalid_utf8_and_deep_json(void **state)
{
    (void)state;
    expect_refused(true, CHAT(",\"user\":\"\xff\""), "");
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    for (int i = 0; i < 100000; i++)
        cr_buf_puts(&b, "[");
    expect_refused(true, b.data, "");
    cr_buf_deinit(&b);
}

/* 53: whichever allocation fails while a request is read, it says so, and nothing is lost. */
static void test_attack_53_out_of_memory(void **state)
{
    (void)state;
    static const struct {
        enum cr_api_kind kind;
        const char *body;
    } cases[] = {
        {CR_API_CHAT,
         CHAT(",\"stop\":[\"a\",\"b\"],\"logit_bias\":{\"1\":2},\"user\":\"u\",\"tools\":[{"
              "\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}],"
              "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}},"
              "\"lora\":[{\"id\":0,\"scale\":1}],\"crayon\":{\"route\":\"device\","
              "\"adapters\":[\"p\"]}")},
        {CR_API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\"],\"stop\":\"x\"}"},
        {CR_API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":[[1,2],[3]]}"},
        {CR_API_RESPONSES,
         "{\"model\":\"m\",\"instructions\":\"s\",\"input\":[{\"type\":\"function_call\","
         "\"call_id\":\"c\",\"name\":\"f\",\"arguments\":\"{}\"},{\"type\":\"function_"
         "call_output\",\"call_id\":\"c\",\"output\":\"r\"}]}"},
        {CR_API_MESSAGES,
         "{\"model\":\"m\",\"system\":\"s\",\"max_tokens\":9,\"messages\":[{\"role\":"
         "\"assistant\",\"content\":[{\"type\":\"tool_use\",\"id\":\"c\",\"name\":\"f\","
         "\"input\":{\"a\":1}}]},{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\","
         "\"tool_use_id\":\"c\",\"content\":\"r\"},{\"type\":\"text\",\"text\":\"t\"}]}]}"},
        {CR_API_OLLAMA_CHAT,
         "{\"model\":\"m\",\"messages\":[{\"role\":\"tool\",\"content\":\"r\"}],"
         "\"options\":{\"stop\":[\"a\"]}}"},
        {CR_API_OLLAMA_GENERATE, "{\"model\":\"m\",\"prompt\":\"x\",\"system\":\"s\"}"},
        {CR_API_EMBEDDINGS,
         "{\"model\":\"m\",\"input\":[\"a\",\"b\"],\"encoding_format\":\"base64\"}"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t before = cr_mem_now(), n = 1;
        for (bool ok = false; !ok; n++) {
            struct cr_api_request r;
            struct cr_api_error e;
            assert_true(n < 1000);
            cr_mem_fail_at(n, true);
            ok = cr_api_parse(&r, cases[i].kind, cases[i].body, strlen(cases[i].body), &e);
            cr_mem_fail_at(0, false);
            if (!ok && (e.http != 503 || !e.msg[0]))
                fail_msg("case %zu, allocation %zu: %d %s", i, n, e.http, e.msg);
            cr_api_request_deinit(&r);
            if (cr_mem_now() != before)
                fail_msg("case %zu, allocation %zu: %zu bytes stay", i, n, cr_mem_now() - before);
        }
        assert_true(n > 3);
    }
}

static void test_text_is_always_valid(void **state)
{
    (void)state;
    json_t *t = cr_api_text("a\xff\xe2\x82\xac\xe2\x82", 7);
    assert_string_equal(json_string_value(t), "a\xef\xbf\xbd\xe2\x82\xac\xef\xbf\xbd\xef\xbf\xbd");
    json_decref(t);
    t = cr_api_token_text("\xe2\x82", 2);
    assert_string_equal(json_string_value(t), "bytes:\\xe2\\x82");
    json_decref(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_a_chat_request),
        cmocka_unit_test(test_reads_prompts_in_four_forms),
        cmocka_unit_test(test_refuses_by_name),
        cmocka_unit_test(test_attack_32_33_integer_fields),
        cmocka_unit_test(test_attack_22_grammars_are_refused),
        cmocka_unit_test(test_dialects_become_one_request),
        cmocka_unit_test(test_attack_29_30_invalid_utf8_and_deep_json),
        cmocka_unit_test(test_attack_53_out_of_memory),
        cmocka_unit_test(test_text_is_always_valid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
