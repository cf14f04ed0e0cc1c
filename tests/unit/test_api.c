/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of the OpenAI API as strings: what is read, what is refused and by which name. */
#include "serve/api.h"

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
    expect_refused(true, CHAT(",\"n\":2"), "n");
    expect_refused(true, CHAT(",\"top_logprobs\":5"), "top_logprobs");
    expect_refused(true, CHAT(",\"logprobs\":true,\"top_logprobs\":1000000"), "top_logprobs");
    expect_refused(true, CHAT(",\"logit_bias\":{\"1\":2}"), "logit_bias");
    expect_refused(true, CHAT(",\"tools\":[{}]"), "tools");
    expect_refused(true, CHAT(",\"response_format\":{\"type\":\"json_object\"}"),
                   "response_format");
    expect_refused(true, CHAT(",\"presence_penalty\":1"), "presence_penalty");
    expect_refused(true, CHAT(",\"stream_options\":{}"), "stream_options");
    expect_refused(true, CHAT(",\"seed\":1e400"), "");
    expect_refused(false, "{\"model\":\"m\"}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[[]]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":[-1]}", "prompt");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix");
    expect_refused(false, "{\"model\":\"m\",\"prompt\":\"x\",\"echo\":true,\"stream\":true}",
                   "stream");
}

static void test_refuses_invalid_utf8_and_deep_json(void **state)
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
        cmocka_unit_test(test_refuses_invalid_utf8_and_deep_json),
        cmocka_unit_test(test_text_is_always_valid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
