/* SPDX-License-Identifier: Apache-2.0 */
/* route/reply.c: cutting a stream anywhere changes nothing; ceilings hold. test_upstream.c has the
 * malformed replies. */
#include "route/reply.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const char stream[] =
    ": hi\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\xe2\x82\xac\"}}]}\r\n\r\n"
    "event: message\rdata:{\"choices\":[{\"delta\":{\"content\":\"\\n\\\"b\"}}]}\r\r"
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n"
    "data: [DONE]\n\n";

static void test_stream_cut_anywhere(void **state)
{
    (void)state;
    struct cr_error err;
    for (size_t a = 0; a < sizeof stream; a++)
        for (size_t b = a; b < sizeof stream; b += 1 + a % 7) {
            struct cr_reply r;
            cr_reply_init(&r, 1000);
            assert_int_equal(cr_reply_feed(&r, stream, a, &err), CR_OK);
            assert_int_equal(cr_reply_feed(&r, stream + a, b - a, &err), CR_OK);
            assert_int_equal(cr_reply_feed(&r, stream + b, sizeof stream - 1 - b, &err), CR_OK);
            assert_int_equal(cr_reply_end(&r, &err), CR_OK);
            assert_string_equal(r.text.data, "a\xe2\x82\xac\n\"b");
            assert_string_equal(r.finish, "stop");
            assert_int_equal(r.n_pieces, 2);
            assert_int_equal(r.tokens_in, 3);
            assert_int_equal(r.tokens_out, 4);
            cr_reply_deinit(&r);
            if (b + 1 >= sizeof stream)
                break;
        }
}

static void test_stream_truncated_anywhere(void **state)
{
    (void)state;
    const char *done = strstr(stream, "\"finish_reason\"");
    for (size_t n = 0; n < sizeof stream - 1; n++) {
        struct cr_error err;
        struct cr_reply r;
        cr_reply_init(&r, 1000);
        enum cr_status st = cr_reply_feed(&r, stream, n, &err);
        if (st == CR_OK)
            st = cr_reply_end(&r, &err);
        /* half an answer is an error; after the finish reason only the last line may be cut */
        if (stream + n < done + sizeof "\"finish_reason\":\"stop\"}]}" - 1)
            assert_int_equal(st, CR_NETWORK);
        else
            assert_true(st == CR_OK || st == CR_NETWORK);
        cr_reply_deinit(&r);
    }
}

static void test_text_has_a_ceiling(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_reply r;
    cr_reply_init(&r, 3);
    assert_int_equal(cr_reply_feed(&r, stream, sizeof stream - 1, &err), CR_NETWORK);
    assert_non_null(strstr(err.msg, "longer than 3 bytes"));
    cr_reply_deinit(&r);
}

static bool stop_at_once(void *ud, const char *text, size_t len)
{
    (void)text;
    (void)len;
    ++*(int *)ud;
    return false;
}

static void test_reader_can_stop(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_reply r;
    int calls = 0;
    cr_reply_init(&r, 100);
    r.on_text = stop_at_once;
    r.ud = &calls;
    assert_int_equal(cr_reply_feed(&r, stream, sizeof stream - 1, &err), CR_CANCELLED);
    assert_int_equal(calls, 1);
    cr_reply_deinit(&r);
}

static void test_error_text(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"error\":{\"message\":\"m\"}}", "m"},
        {"{\"error\":\"s\"}", "s"},
        {"{\"detail\":\"d\"}", "d"},
        {"{\"message\":\"x\"}", "x"},
        {"{\"error\":{}}", "an error without a message"},
        {"{\"error\":null}", ""},
        {"[]", ""},
        {"", ""},
        {"{\"error\":{\"message\":\"a\\u0007\\nb\"}}", "a??b"},
    };
    char out[40];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_reply_error_text(cases[i][0], strlen(cases[i][0]), out, sizeof out);
        assert_string_equal(out, cases[i][1]);
    }
    static const char wide[] = "{\"error\":\"\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\"}";
    cr_reply_error_text(wide, sizeof wide - 1, out, 6); /* not inside a character */
    assert_string_equal(out, "\xe2\x82\xac");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_cut_anywhere),
        cmocka_unit_test(test_stream_truncated_anywhere),
        cmocka_unit_test(test_text_has_a_ceiling),
        cmocka_unit_test(test_reader_can_stop),
        cmocka_unit_test(test_error_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
