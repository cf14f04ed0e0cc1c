/* SPDX-License-Identifier: Apache-2.0 */
/* route/preview.c: the exact body is shown, the key never, and text cannot paint over it. */
#include "route/preview.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_preview(void **state)
{
    (void)state;
    struct cr_upstream_options opt = {
        .url = "https://big.example/v1", .model = "big", .key = "CANARY-77aa11"};
    struct cr_message m = {"user", "Wie hei\xc3\x9ft \"das\"?\n\x1b[2J\xe2\x80\xae"
                                   "drah\x7f\xc2\x9b"};
    struct cr_ask ask = {
        .messages = &m, .n_messages = 1, .temperature = -1, .reason = "confidence\x1b low"};
    struct cr_outgoing out;
    struct cr_buf b;
    cr_upstream *u;
    cr_buf_init(&b, 1 << 20);
    assert_int_equal(cr_upstream_new(&u, &opt, NULL), CR_OK);
    assert_int_equal(cr_upstream_prepare(u, &ask, &out, NULL), CR_OK);
    assert_int_equal(cr_preview(&out, &b, NULL), CR_OK);
    char first[80];
    snprintf(first, sizeof first, "would leave this device: %zu bytes", out.n_body);
    assert_memory_equal(b.data, first, strlen(first));
    assert_non_null(strstr(b.data, "https://big.example/v1/chat/completions\n"));
    assert_non_null(strstr(b.data, "Authorization: Bearer ********\n"));
    assert_null(strstr(b.data, "CANARY")); /* attack 46 */
    assert_null(strchr(b.data, 0x1b));     /* attack 41 */
    assert_null(strstr(b.data, "\xe2\x80\xae"));
    assert_null(strstr(b.data, "\xc2\x9b"));
    assert_non_null(strstr(b.data, "confidence\\x1b low"));
    assert_non_null(strstr(b.data, "\\xe2\\x80\\xae"));
    /* JSON already writes controls as \u001B; the rest of the body is there byte for byte */
    assert_non_null(strstr(b.data, "Wie hei\xc3\x9ft \\\"das\\\"?\\n\\u001B[2J"));
    cr_buf_deinit(&b);
    cr_outgoing_deinit(&out);
    cr_upstream_free(u);

    opt.key = NULL;
    cr_buf_init(&b, 1 << 20);
    m.content = "plain";
    assert_int_equal(cr_upstream_new(&u, &opt, NULL), CR_OK);
    assert_int_equal(cr_upstream_prepare(u, &ask, &out, NULL), CR_OK);
    assert_int_equal(cr_preview(&out, &b, NULL), CR_OK);
    assert_non_null(strstr(b.data, "key:     none\n"));
    assert_non_null(strstr(b.data, out.body));
    cr_buf_deinit(&b);
    cr_buf_init(&b, 10);
    assert_int_equal(cr_preview(&out, &b, NULL), CR_NO_MEMORY);
    cr_buf_deinit(&b);
    cr_outgoing_deinit(&out);
    cr_upstream_free(u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_preview)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
