/* SPDX-License-Identifier: Apache-2.0 */
/* route/mask.c: what is found, what is not, attack 44, and the way back. */
#include "route/mask.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static cr_masker *masker;
static struct cr_error err;

static int make(void **state)
{
    (void)state;
    return cr_masker_new(&masker, NULL, 0, &err) == CR_OK ? 0 : -1;
}

static int clean(void **state)
{
    (void)state;
    cr_masker_free(masker);
    return 0;
}

/* Masks n texts of the given roles ("u" user, "a" assistant, "t" tool). Free with cr_mask_free. */
static cr_mask *mask(const char *roles, const char *const *texts, const struct cr_message **masked)
{
    struct cr_message m[16];
    cr_mask *out;
    size_t n = strlen(roles);
    for (size_t i = 0; i < n; i++)
        m[i] = (struct cr_message){roles[i] == 'u'   ? "user"
                                   : roles[i] == 'a' ? "assistant"
                                                     : "tool",
                                   texts[i]};
    assert_int_equal(cr_mask_new(&out, masker, m, n, masked, &err), CR_OK);
    return out;
}

/* The one text after masking, with the four digits of the request as "_". Static. */
static const char *masked_text(const char *text)
{
    static char out[4096];
    const struct cr_message *masked;
    cr_mask *m = mask("u", &text, &masked);
    size_t n = 0;
    for (const char *p = masked[0].content; *p && n + 1 < sizeof out;) {
        out[n++] = *p++;
        if (out[n - 1] == '_' && n > 3 && out[n - 2] >= '0' && out[n - 2] <= '9' && p[4] == ']')
            p += 4;
    }
    out[n] = '\0';
    /* and back */
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    assert_true(cr_mask_restore(m, masked[0].content, strlen(masked[0].content), &b));
    assert_true(cr_buf_puts(&b, ""));
    assert_int_equal(b.len, strlen(text));
    assert_memory_equal(b.data ? b.data : "", text, b.len);
    cr_buf_deinit(&b);
    cr_mask_free(m);
    return out;
}

static void test_kinds(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"write to john.doe+x@mail.example.org now", "write to [EMAIL_1_] now"},
        {"J\xc3\xbcrgen@b\xc3\xbc"
         "cher.example and again J\xc3\xbcrgen@b\xc3\xbc"
         "cher.example",
         "[EMAIL_1_] and again [EMAIL_1_]"},
        {"card 4111 1111 1111 1111 ok", "card [CARD_1_] ok"},
        {"card 4111-1111-1111-1111, 378282246310005", "card [CARD_1_], [CARD_2_]"},
        {"4111\xc2\xa0"
         "1111\xe2\x80\x8b"
         "1111\xe2\x80\x91"
         "1111",
         "[CARD_1_]"},
        {"pay DE89 3704 0044 0532 0130 00 today", "pay [IBAN_1_] today"},
        {"gb82west12345698765432", "[IBAN_1_]"},
        {"call +49 (0)30 123 456 78 or 030 1234567", "call [PHONE_1_] or [PHONE_2_]"},
        {"call 415-555-2671 or (415) 555-2671", "call [PHONE_1_] or [PHONE_2_]"},
        {"0049 171 2345678", "[PHONE_1_]"},
        {"key sk-proj-abcdefghijkl1234 end", "key [KEY_1_] end"},
        {"password=hunter2x;", "password=[KEY_1_];"},
        {"Authorization: Bearer abc.def-123", "Authorization: Bearer [KEY_1_]"},
        {"AKIAIOSFODNN7EXAMPLE", "[KEY_1_]"},
        {"3a7bd3e2360a3d29eea436fcfb7e44c735d117c4", "[KEY_1_]"},
        {"x wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY y", "x [KEY_1_] y"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(masked_text(cases[i][0]), cases[i][1]);
}

static void test_what_is_left_alone(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "What is 4111 1111 1111 1112?",             /* fails Luhn */
        "41111111111111111111111 is a long number", /* digits before and after */
        "On 2024-01-02 at 10:30 there were 1,234,567 people",
        "pi is 3.14159265358979, 0.123456789 is not",
        "GB82 WEST 1234 5698 7654 33 fails its check digits",
        "user@localhost, @example, a@b",
        "The year 2024. Room 0815.",
        "version 1.2.3-4, 192.168.0.1",
        "Donaudampfschifffahrtsgesellschaftskapitaen",
        "a [EMAIL_1] of mine, [CARD_1_zz]",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_string_equal(masked_text(texts[i]), texts[i]);
}

/* Attack 44. */
static void test_44_message_boundary(void **state)
{
    (void)state;
    const struct cr_message *out;
    static const char *const split[] = {"my card is 4111 1111 ", "go on", "1111 1111 thanks"};
    cr_mask *m = mask("uau", split, &out);
    assert_null(strstr(out[0].content, "4111"));
    assert_null(strstr(out[2].content, "1111"));
    assert_string_equal(out[1].content, "go on");
    cr_mask_free(m);
    static const char *const mail[] = {"john@exam", "ple.org is mine"};
    m = mask("ut", mail, &out); /* across roles */
    assert_null(strstr(out[0].content, "john"));
    assert_null(strstr(out[1].content, "ple.org"));
    assert_non_null(strstr(out[1].content, "is mine"));
    cr_mask_free(m);
}

static void test_44_base64_tool_result_and_file_name(void **state)
{
    (void)state;
    assert_string_equal(masked_text("data am9obi5kb2VAZXhhbXBsZS5vcmc= end"),
                        "data [BASE64_1_] end");
    assert_string_equal(masked_text("url-safe bXkgY2FyZCA0MTExMTExMTExMTExMTExIQ."),
                        "url-safe [KEY_1_].");
    assert_string_equal(masked_text("/home/me/john.doe@example.org/a_4111111111111111.pdf"),
                        "/home/me/[EMAIL_1_]/a_[CARD_1_].pdf");
    const struct cr_message *out;
    static const char *const tool[] = {"look", "{\"email\":\"a.b@example.org\",\"n\":1}"};
    cr_mask *m = mask("ut", tool, &out);
    assert_null(strstr(out[1].content, "example.org"));
    assert_non_null(strstr(out[1].content, "{\"email\":\"[EMAIL_1_"));
    cr_mask_free(m);
}

/* Placeholders of others, in the prompt or made up by the server, stay what they are. */
static void test_44_only_own_placeholders_come_back(void **state)
{
    (void)state;
    const struct cr_message *out;
    static const char *const texts[] = {"mail [EMAIL_1_0000] and a@example.org"};
    cr_mask *m = mask("u", texts, &out);
    struct cr_buf b;
    char answer[256];
    const char *own = strstr(out[0].content, "and [EMAIL_1_") + 4;
    assert_true(strlen(own) < 64);
    snprintf(answer, sizeof answer, "%s [EMAIL_1_0000] [EMAIL_2_%.4s] [CARD_1_%.4s] [EMAIL_1", own,
             own + 9, own + 9);
    cr_buf_init(&b, 4096);
    assert_true(cr_mask_restore(m, answer, strlen(answer), &b) && cr_buf_add(&b, "", 1));
    assert_non_null(strstr(b.data, "a@example.org [EMAIL_1_0000] [EMAIL_2_"));
    assert_null(strstr(b.data + 5, "a@example.org"));
    cr_buf_deinit(&b);
    cr_mask_free(m);
}

static void test_stream_of_single_bytes(void **state)
{
    (void)state;
    const struct cr_message *out;
    static const char *const texts[] = {"a@example.org, [x] and [ and 4111111111111111["};
    cr_mask *m = mask("u", texts, &out);
    struct cr_unmask u = {.mask = m};
    struct cr_buf b;
    cr_buf_init(&b, 4096);
    size_t longest = 0;
    for (const char *p = out[0].content; *p; p++) {
        assert_true(cr_unmask_feed(&u, p, 1, &b));
        longest = u.n_held > longest ? u.n_held : longest;
    }
    assert_true(cr_unmask_feed(&u, NULL, 0, &b) && cr_buf_add(&b, "", 1));
    assert_string_equal(b.data, texts[0]);
    assert_true(longest < 20);
    cr_buf_deinit(&b);
    cr_mask_free(m);
}

static void test_own_patterns(void **state)
{
    (void)state;
    static const char *const good[] = {"(?i)project-[a-z]+", "x*"}, *const bad[] = {"(unclosed"},
                             *const cruel[] = {"(a+)+$"};
    struct cr_message m = {"user", "about Project-Falcon"};
    const struct cr_message *out;
    cr_masker *own;
    cr_mask *made;
    assert_int_equal(cr_masker_new(&own, bad, 1, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "(unclosed"));
    assert_int_equal(cr_masker_new(&own, good, 2, &err), CR_OK);
    assert_int_equal(cr_mask_new(&made, own, &m, 1, &out, &err), CR_OK);
    assert_memory_equal(out[0].content, "about [TEXT_1_", 14);
    cr_mask_free(made);
    cr_masker_free(own);
    /* a pattern that would take for ever: nothing may leave, and soon */
    char text[4001];
    memset(text, 'a', sizeof text - 2);
    text[sizeof text - 2] = 'b';
    text[sizeof text - 1] = '\0';
    m.content = text;
    assert_int_equal(cr_masker_new(&own, cruel, 1, &err), CR_OK);
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    assert_int_equal(cr_mask_new(&made, own, &m, 1, &out, &err), CR_POLICY);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    assert_true(t1.tv_sec - t0.tv_sec < 5);
    assert_non_null(strstr(err.msg, "nothing was sent"));
    cr_masker_free(own);
}

/* Attack 53: every allocation fails once; nothing leaks out unmasked, nothing crashes. */
static void test_53_out_of_memory(void **state)
{
    (void)state;
    struct cr_message m[2] = {{"user", "a@example.org 4111111111111111 c2VjcmV0QGV4YW1wbGUub3Jn"},
                              {"user", "a@example.org again"}};
    for (uint64_t n = 1; n < 200; n++) {
        const struct cr_message *out;
        cr_mask *made;
        cr_mem_fail_at(n, true);
        enum cr_status st = cr_mask_new(&made, masker, m, 2, &out, &err);
        cr_mem_fail_at(0, false);
        if (st == CR_OK) {
            assert_null(strstr(out[0].content, "@"));
            cr_mask_free(made);
            return;
        }
        assert_null(made);
        assert_null(out);
    }
    fail_msg("masking never succeeded");
}

/* Text made to be slow: a megabyte of what begins like something. */
static void test_time_is_linear(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    static const char *const seeds[] = {"1",  "1 ", "a_", "a",    "a.", "a@",
                                        "+1", "[",  "=",  "AbC1", "0 0"};
    char *text = cr_alloc(N + 1, 1);
    assert_non_null(text);
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        size_t n = strlen(seeds[i]);
        for (size_t k = 0; k < N; k++)
            text[k] = seeds[i][k % n];
        text[N] = '\0';
        struct cr_message m = {"user", text};
        const struct cr_message *out;
        cr_mask *made;
        struct timespec t0, t1;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
        enum cr_status st = cr_mask_new(&made, masker, &m, 1, &out, &err);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
        assert_true(st == CR_OK || st == CR_POLICY);
        if (st == CR_OK)
            cr_mask_free(made);
        double s = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
        print_message("1 MiB of \"%s\": %.2f s\n", seeds[i], s);
        assert_true(s < 20); /* also under sanitizers */
    }
    cr_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_what_is_left_alone),
        cmocka_unit_test(test_44_message_boundary),
        cmocka_unit_test(test_44_base64_tool_result_and_file_name),
        cmocka_unit_test(test_44_only_own_placeholders_come_back),
        cmocka_unit_test(test_stream_of_single_bytes),
        cmocka_unit_test(test_own_patterns),
        cmocka_unit_test(test_53_out_of_memory),
        cmocka_unit_test(test_time_is_linear),
    };
    return cmocka_run_group_tests(tests, make, clean);
}
