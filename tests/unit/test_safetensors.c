/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors: round trip, truncation at every byte, and attack 14. */
#include "adapt/safetensors.h"
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* length + header + data; free with free(). */
static uint8_t *make_file(const char *header, size_t n_data, size_t *size)
{
    uint64_t n = strlen(header);
    *size = 8 + n + n_data;
    uint8_t *f = calloc(1, *size);
    assert_non_null(f);
    memcpy(f, &n, 8);
    memcpy(f + 8, header, n);
    for (size_t i = 0; i < n_data; i++)
        f[8 + n + i] = (uint8_t)i;
    return f;
}

static enum cr_status parse(const char *header, size_t n_data, struct cr_error *err)
{
    size_t size;
    uint8_t *f = make_file(header, n_data, &size);
    struct cr_safetensors st;
    memset(err, 0, sizeof *err);
    enum cr_status status = cr_safetensors_parse(&st, f, size, "t.safetensors", err);
    cr_safetensors_deinit(&st);
    free(f);
    return status;
}

static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                           "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]},"
                           "\"c\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[32,40]},"
                           "\"d\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[40,40]}}  ";

static void test_reads_a_good_file(void **state)
{
    (void)state;
    size_t size;
    uint8_t *f = make_file(good, 40, &size);
    struct cr_safetensors st;
    struct cr_error err;
    assert_int_equal(cr_safetensors_parse(&st, f, size, "t", &err), CR_OK);
    assert_int_equal(st.n, 4);
    const struct cr_st_tensor *a = cr_safetensors_find(&st, "a");
    assert_non_null(a);
    assert_int_equal(a->type, CR_F32);
    assert_int_equal(a->n_dims, 2);
    assert_int_equal(a->shape[1], 3);
    assert_int_equal(a->bytes, 24);
    assert_ptr_equal(a->data, f + size - 40);
    assert_int_equal(cr_safetensors_find(&st, "b")->type, CR_BF16);
    assert_int_equal(cr_safetensors_find(&st, "c")->type, CR_TYPE_END);
    assert_int_equal(cr_safetensors_find(&st, "d")->bytes, 0);
    assert_null(cr_safetensors_find(&st, "e"));
    assert_string_equal(cr_safetensors_note(&st, "format"), "pt");
    assert_null(cr_safetensors_note(&st, "other"));
    cr_safetensors_deinit(&st);
    free(f);
}

static void test_truncated_at_every_byte(void **state)
{
    (void)state;
    size_t size;
    uint8_t *f = make_file(good, 40, &size);
    size_t before = cr_mem_now();
    for (size_t n = 0; n < size; n++) {
        uint8_t *part = malloc(n ? n : 1);
        assert_non_null(part);
        memcpy(part, f, n);
        struct cr_safetensors st;
        struct cr_error err;
        assert_int_not_equal(cr_safetensors_parse(&st, part, n, "t", &err), CR_OK);
        assert_int_equal(st.n, 0);
        free(part);
    }
    assert_int_equal(cr_mem_now(), before);
    free(f);
}

#define T(dtype, shape, range)                                                                     \
    "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" range "}}"

static void test_attack_14_bad_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header, *want;
    } cases[] = {
        {"", "header of 0 bytes"},
        {"[]", "not a JSON object"},
        {"{\"a\":1}", "want exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", "want exactly"},
        {T("\"F33\"", "[2]", "[0,8]"), "unknown dtype F33"},
        {T("7", "[2]", "[0,8]"), "unknown dtype"},
        {T("\"F32\"", "2", "[0,8]"), "shape is not an array"},
        {T("\"F32\"", "[1,1,1,1,2]", "[0,8]"), "at most 4"},
        {T("\"F32\"", "[-2]", "[0,8]"), "dimension 0 is not a size"},
        {T("\"F32\"", "[2.0]", "[0,8]"), "dimension 0 is not a size"},
        {T("\"F32\"", "[4294967296,4294967296,4294967296]", "[0,8]"), "more than the 8 bytes"},
        {T("\"F32\"", "[4611686018427387904]", "[0,0]"), "more than the 8 bytes"},
        {T("\"F32\"", "[2]", "[0,9]"), "outside the 8 bytes"},
        {T("\"F32\"", "[2]", "[8,0]"), "outside"},
        {T("\"F32\"", "[2]", "[-1,7]"), "not a pair"},
        {T("\"F32\"", "[2]", "[0]"), "not a pair"},
        {T("\"F32\"", "[1]", "[0,8]"), "needs 4 bytes, the range has 8"},
        {T("\"F32\"", "[1]", "[4,8]"), "a hole"},
        {T("\"F32\"", "[1]", "[0,4]"), "end at byte 4 of 8"},
        {"{}", "end at byte 0 of 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         "duplicate"},
        {"{\"__metadata__\":{\"k\":1}}", "not a string"},
        {"{\"__metadata__\":7}", "not an object"},
        {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "JSON"},
        {"{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "JSON"},
    };
    struct cr_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (parse(cases[i].header, 8, &err) == CR_OK || !strstr(err.msg, cases[i].want))
            fail_msg("%s: got \"%s\", want \"%s\"", cases[i].header, err.msg, cases[i].want);
    }
}

static void test_attack_14_header_length(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {9,          17,        1 << 24,   (1 << 24) + 1,
                                       UINT32_MAX, INT64_MAX, UINT64_MAX};
    uint8_t f[16] = {0};
    struct cr_safetensors st;
    struct cr_error err;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memcpy(f, &lengths[i], 8);
        assert_int_not_equal(cr_safetensors_parse(&st, f, sizeof f, "t", &err), CR_OK);
        assert_int_equal(err.status, lengths[i] > CR_ST_MAX_HEADER ? CR_LIMIT : CR_FORMAT);
    }
}

static void test_attack_14_deep_json(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    char *header = malloc(6 * DEPTH + 16);
    assert_non_null(header);
    size_t at = 0;
    for (int i = 0; i < DEPTH; i++, at += 5)
        memcpy(header + at, "{\"a\":", 5);
    header[at++] = '1';
    memset(header + at, '}', DEPTH);
    header[at + DEPTH] = '\0';
    struct cr_error err;
    assert_int_equal(parse(header, 0, &err), CR_FORMAT);
    assert_non_null(strstr(err.msg, "depth"));
    free(header);
}

static void test_round_trip(void **state)
{
    (void)state;
    char path[] = "/tmp/crayon-st-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    float x[6] = {1, 2, 3, 4, 5, 6};
    uint16_t h[5] = {1, 2, 3, 4, 5};
    struct cr_st_tensor t[2] = {{.name = (char *)"x \"quoted\"",
                                 .type = CR_F32,
                                 .n_dims = 2,
                                 .shape = {3, 2},
                                 .data = x,
                                 .bytes = sizeof x},
                                {.name = (char *)"h",
                                 .type = CR_F16,
                                 .n_dims = 1,
                                 .shape = {5},
                                 .data = h,
                                 .bytes = sizeof h}};
    struct cr_st_note note = {(char *)"format", (char *)"pt"};
    struct cr_safetensors st = {t, 2, &note, 1}, back;
    struct cr_error err;
    assert_int_equal(cr_safetensors_write(&st, path, &err), CR_OK);
    char *data;
    size_t len;
    assert_int_equal(cr_file_read(path, 1 << 20, &data, &len, &err), CR_OK);
    assert_int_equal(cr_safetensors_parse(&back, data, len, path, &err), CR_OK);
    assert_int_equal(back.n, 2);
    const struct cr_st_tensor *bx = cr_safetensors_find(&back, "x \"quoted\"");
    assert_non_null(bx);
    assert_memory_equal(bx->data, x, sizeof x);
    assert_int_equal(((uintptr_t)bx->data - (uintptr_t)data) % 8, 0);
    assert_memory_equal(cr_safetensors_find(&back, "h")->data, h, sizeof h);
    assert_string_equal(cr_safetensors_note(&back, "format"), "pt");
    cr_safetensors_deinit(&back);
    cr_free(data);
    t[0].type = CR_TYPE_END;
    assert_int_equal(cr_safetensors_write(&st, path, &err), CR_INVALID);
    t[0].type = CR_F32;
    t[1].name = t[0].name; /* two of one name */
    assert_int_equal(cr_safetensors_write(&st, path, &err), CR_INVALID);
    unlink(path);
    assert_int_equal(cr_safetensors_write(&st, "/nonexistent/x", &err), CR_INVALID);
    t[1].name = (char *)"h";
    assert_int_equal(cr_safetensors_write(&st, "/nonexistent/x", &err), CR_NOT_FOUND);
}

static void test_out_of_memory_at_every_allocation(void **state)
{
    (void)state;
    size_t size;
    uint8_t *f = make_file(good, 40, &size);
    size_t before = cr_mem_now();
    enum cr_status status = CR_NO_MEMORY;
    for (uint64_t n = 1; status != CR_OK; n++) {
        struct cr_safetensors st;
        struct cr_error err;
        cr_mem_fail_at(n, true);
        status = cr_safetensors_parse(&st, f, size, "t", &err);
        cr_mem_fail_at(0, false);
        if (status != CR_OK)
            assert_int_equal(status, CR_NO_MEMORY);
        else
            cr_safetensors_deinit(&st);
        assert_int_equal(cr_mem_now(), before);
        assert_true(n < 100);
    }
    free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_a_good_file),
        cmocka_unit_test(test_truncated_at_every_byte),
        cmocka_unit_test(test_attack_14_bad_headers),
        cmocka_unit_test(test_attack_14_header_length),
        cmocka_unit_test(test_attack_14_deep_json),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_out_of_memory_at_every_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
