/* SPDX-License-Identifier: Apache-2.0 */
/* gguf.c and gguf_write.c: round trips, and every lie that a file can tell (ATTACKS 1-8, 11). */
#include "base/mem.h"
#include "model/gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a file built byte by byte ---- */

static void u32(struct cr_buf *b, uint32_t v)
{
    assert_true(cr_buf_add(b, &v, sizeof v));
}

static void u64(struct cr_buf *b, uint64_t v)
{
    assert_true(cr_buf_add(b, &v, sizeof v));
}

static void bytes(struct cr_buf *b, const void *p, size_t n)
{
    u64(b, n);
    assert_true(cr_buf_add(b, p, n));
}

static void text(struct cr_buf *b, const char *s)
{
    bytes(b, s, strlen(s));
}

static void begin(struct cr_buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    cr_buf_init(b, (size_t)1 << 28);
    cr_buf_puts(b, "GGUF");
    u32(b, version);
    u64(b, n_tensors);
    u64(b, n_kv);
}

static void kv_u32(struct cr_buf *b, const char *key, uint32_t v)
{
    text(b, key);
    u32(b, CR_GGUF_U32);
    u32(b, v);
}

static void tensor(struct cr_buf *b, const char *name, uint32_t n_dims, const uint64_t *ne,
                   uint32_t type, uint64_t offset)
{
    text(b, name);
    u32(b, n_dims);
    for (uint32_t d = 0; d < n_dims && d < 16; d++)
        u64(b, ne[d]);
    u32(b, type);
    u64(b, offset);
}

static void zeros(struct cr_buf *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_true(cr_buf_add(b, "", 1));
}

static void pad(struct cr_buf *b, size_t to)
{
    zeros(b, (to - b->len % to) % to);
}

/* Parses an exact-size copy, so that a sanitizer sees any byte read past the end. */
static enum cr_status parse_copy(const void *data, size_t n, struct cr_error *err)
{
    *err = (struct cr_error){0};
    void *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    if (n)
        memcpy(copy, data, n);
    cr_gguf *g;
    enum cr_status status = cr_gguf_parse(&g, n ? copy : NULL, n, "t.gguf", err);
    if (status == CR_OK)
        cr_gguf_close(g);
    else
        assert_null(g);
    free(copy);
    return status;
}

/* Expects a refusal with this status whose message holds `part`; frees b. */
static void refuse(struct cr_buf *b, enum cr_status want, const char *part)
{
    struct cr_error err;
    enum cr_status status = parse_copy(b->data, b->len, &err);
    if (status != want || !strstr(err.msg, part))
        fail_msg("want status %d and \"%s\", found %d and \"%s\"", want, part, status, err.msg);
    cr_buf_deinit(b);
}

static void accept(struct cr_buf *b)
{
    struct cr_error err;
    if (parse_copy(b->data, b->len, &err) != CR_OK)
        fail_msg("refused: %s", err.msg);
    cr_buf_deinit(b);
}

/* One of everything, two tensors. */
static void small_file(struct cr_buf *b, uint32_t version)
{
    begin(b, version, 2, 6);
    text(b, "general.architecture");
    u32(b, CR_GGUF_STRING);
    text(b, "llama");
    kv_u32(b, "general.alignment", 64);
    text(b, "words");
    u32(b, CR_GGUF_ARRAY);
    u32(b, CR_GGUF_STRING);
    u64(b, 3);
    text(b, "a");
    text(b, "");
    text(b, "c\xc3\xa9");
    text(b, "numbers");
    u32(b, CR_GGUF_ARRAY);
    u32(b, CR_GGUF_I32);
    u64(b, 2);
    u32(b, 7);
    u32(b, (uint32_t)-7);
    text(b, "flag");
    u32(b, CR_GGUF_BOOL);
    cr_buf_add(b, "\1", 1);
    text(b, "half");
    u32(b, CR_GGUF_F32);
    u32(b, 0x3f000000);
    tensor(b, "x", 2, (uint64_t[]){3, 2}, CR_F32, 0);
    tensor(b, "y", 1, (uint64_t[]){64}, CR_Q8_0, 64);
    pad(b, 64);
    zeros(b, 64 + 2 * 34);
}

static void test_reads_what_is_there(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        struct cr_buf b;
        small_file(&b, version);
        cr_gguf *g;
        struct cr_error err;
        assert_int_equal(cr_gguf_parse(&g, b.data, b.len, "t.gguf", &err), CR_OK);
        assert_int_equal(cr_gguf_version(g), version);
        assert_int_equal(cr_gguf_size(g), b.len);
        assert_int_equal(cr_gguf_header_size(g), b.len - 64 - 2 * 34);
        assert_int_equal(cr_gguf_n_kv(g), 6);
        assert_string_equal(cr_gguf_name(g), "t.gguf");
        struct cr_str s;
        assert_int_equal(cr_gguf_str(g, "general.architecture", true, &s, &err), CR_OK);
        assert_true(cr_str_eq(s, "llama"));
        assert_false(cr_str_eq(s, "llam"));
        uint32_t u = 0;
        float f = 0;
        bool flag = false;
        assert_int_equal(cr_gguf_u32(g, "general.alignment", true, &u, &err), CR_OK);
        assert_int_equal(u, 64);
        assert_int_equal(cr_gguf_f32(g, "half", true, &f, &err), CR_OK);
        assert_true(f == 0.5f);
        assert_int_equal(cr_gguf_bool(g, "flag", true, &flag, &err), CR_OK);
        assert_true(flag);
        const struct cr_gguf_kv *words = cr_gguf_find(g, "words");
        assert_int_equal(words->n, 3);
        assert_int_equal(words->elem_type, CR_GGUF_STRING);
        const uint8_t *cursor = NULL;
        assert_true(cr_str_eq(cr_gguf_next_str(words, &cursor), "a"));
        assert_true(cr_str_eq(cr_gguf_next_str(words, &cursor), ""));
        assert_true(cr_str_eq(cr_gguf_next_str(words, &cursor), "c\xc3\xa9"));
        assert_ptr_equal(cursor, words->data + words->bytes);
        const struct cr_tensor *y = cr_gguf_tensor(g, "y");
        assert_int_equal(y->bytes, 68);
        assert_int_equal(y->ne[0], 64);
        assert_int_equal(y->ne[3], 1);
        assert_ptr_equal(y->data, (const char *)cr_gguf_bytes(g) + cr_gguf_header_size(g) + 64);
        assert_null(cr_gguf_tensor(g, "z"));
        assert_null(cr_gguf_find(g, ""));
        cr_gguf_close(g);
        cr_buf_deinit(&b);
    }
}

static void test_typed_reads_say_what_they_found(void **state)
{
    (void)state;
    struct cr_buf b;
    small_file(&b, 3);
    cr_gguf *g;
    struct cr_error err = {0};
    assert_int_equal(cr_gguf_parse(&g, b.data, b.len, "t.gguf", &err), CR_OK);
    uint32_t u = 9;
    float f;
    bool flag;
    struct cr_str s;
    assert_int_equal(cr_gguf_u32(g, "absent", false, &u, &err), CR_NOT_FOUND);
    assert_int_equal(u, 9);
    assert_int_equal(err.msg[0], '\0');
    assert_int_equal(cr_gguf_u32(g, "absent", true, &u, &err), CR_FORMAT);
    assert_non_null(strstr(err.msg, "absent"));
    assert_int_equal(cr_gguf_u32(g, "half", false, &u, &err), CR_FORMAT);
    assert_string_equal(err.msg, "t.gguf: key half: want an integer, found f32");
    assert_int_equal(cr_gguf_f32(g, "words", false, &f, &err), CR_FORMAT);
    assert_int_equal(cr_gguf_bool(g, "half", false, &flag, &err), CR_FORMAT);
    assert_int_equal(cr_gguf_str(g, "words", false, &s, &err), CR_FORMAT);
    assert_string_equal(err.msg, "t.gguf: key words: want string, found array");
    cr_gguf_close(g);
    cr_buf_deinit(&b);
}

static void test_integers_of_any_type_fit_or_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t bits;
        size_t size;
        bool fits;
        uint32_t value;
    } cases[] = {{CR_GGUF_U8, 200, 1, true, 200},
                 {CR_GGUF_I8, 0xff, 1, false, 0},
                 {CR_GGUF_U16, 65535, 2, true, 65535},
                 {CR_GGUF_I16, 0x8000, 2, false, 0},
                 {CR_GGUF_U32, UINT32_MAX, 4, true, UINT32_MAX},
                 {CR_GGUF_I32, 5, 4, true, 5},
                 {CR_GGUF_I32, UINT32_MAX, 4, false, 0},
                 {CR_GGUF_U64, UINT32_MAX, 8, true, UINT32_MAX},
                 {CR_GGUF_U64, (uint64_t)UINT32_MAX + 1, 8, false, 0},
                 {CR_GGUF_U64, (uint64_t)1 << 63, 8, false, 0},
                 {CR_GGUF_I64, UINT64_MAX, 8, false, 0},
                 {CR_GGUF_BOOL, 1, 1, false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cr_buf b;
        begin(&b, 3, 0, 1);
        text(&b, "k");
        u32(&b, cases[i].type);
        cr_buf_add(&b, &cases[i].bits, cases[i].size);
        cr_gguf *g;
        struct cr_error err;
        assert_int_equal(cr_gguf_parse(&g, b.data, b.len, "t", &err), CR_OK);
        uint32_t u = 0;
        assert_int_equal(cr_gguf_u32(g, "k", true, &u, &err), cases[i].fits ? CR_OK : CR_FORMAT);
        assert_int_equal(u, cases[i].value);
        cr_gguf_close(g);
        cr_buf_deinit(&b);
    }
}

/* ---- attacks ---- */

static void test_01_truncation_at_every_byte(void **state)
{
    (void)state;
    struct cr_buf b;
    struct cr_error err;
    small_file(&b, 3);
    for (size_t n = 0; n < b.len; n++) {
        enum cr_status status = parse_copy(b.data, n, &err);
        if (status != CR_FORMAT || !err.msg[0])
            fail_msg("%zu of %zu bytes: status %d, \"%s\"", n, b.len, status, err.msg);
    }
    assert_int_equal(parse_copy(b.data, b.len, &err), CR_OK);
    cr_buf_deinit(&b);
}

/* Not an attack by itself: whatever one changed byte does, nothing may be read out of bounds. */
static void test_01_any_byte_changed(void **state)
{
    (void)state;
    struct cr_buf b;
    struct cr_error err;
    small_file(&b, 3);
    for (size_t i = 0; i < b.len; i++)
        for (int bit = 0; bit < 8; bit++) {
            b.data[i] = (char)(b.data[i] ^ (1 << bit));
            parse_copy(b.data, b.len, &err);
            b.data[i] = (char)(b.data[i] ^ (1 << bit));
        }
    cr_buf_deinit(&b);
}

static void test_01_magic_and_version(void **state)
{
    (void)state;
    struct cr_buf b;
    begin(&b, 3, 0, 0);
    accept(&b);
    begin(&b, 3, 0, 0);
    b.data[0] = 'g';
    refuse(&b, CR_FORMAT, "not a GGUF file");
    static const uint32_t bad[] = {0, 1, 4, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin(&b, bad[i], 0, 0);
        refuse(&b, CR_UNSUPPORTED, "version 2 or 3");
    }
    begin(&b, 0x03000000, 0, 0);
    refuse(&b, CR_UNSUPPORTED, "big-endian version 3");
}

static void test_02_counts(void **state)
{
    (void)state;
    static const uint64_t over[] = {(uint64_t)1 << 31, UINT32_MAX, (uint64_t)1 << 63, UINT64_MAX};
    struct cr_buf b;
    begin(&b, 3, 0, CR_GGUF_MAX_KV + 1);
    refuse(&b, CR_LIMIT, "65537");
    begin(&b, 3, CR_GGUF_MAX_TENSORS + 1, 0);
    refuse(&b, CR_LIMIT, "65537");
    for (size_t i = 0; i < 4; i++) {
        begin(&b, 3, over[i], 0);
        refuse(&b, CR_LIMIT, "at most");
        begin(&b, 3, 0, over[i]);
        refuse(&b, CR_LIMIT, "at most");
        begin(&b, 3, 0, 1); /* bytes of a string value */
        text(&b, "k");
        u32(&b, CR_GGUF_STRING);
        u64(&b, over[i]);
        zeros(&b, 8);
        refuse(&b, CR_FORMAT, "does not fit");
        static const uint32_t types[] = {CR_GGUF_U8, CR_GGUF_F64, CR_GGUF_STRING};
        for (size_t k = 0; k < 3; k++) { /* elements of an array */
            begin(&b, 3, 0, 1);
            text(&b, "k");
            u32(&b, CR_GGUF_ARRAY);
            u32(&b, types[k]);
            u64(&b, over[i]);
            zeros(&b, 8);
            refuse(&b, CR_FORMAT, "does not fit");
        }
    }
    /* announced but not there */
    begin(&b, 3, 0, 1);
    refuse(&b, CR_FORMAT, "does not fit");
    begin(&b, 3, 1, 0);
    refuse(&b, CR_FORMAT, "does not fit");
    begin(&b, 3, CR_GGUF_MAX_TENSORS, CR_GGUF_MAX_KV);
    refuse(&b, CR_FORMAT, "does not fit");
    /* fewer than there are: the rest is read as a tensor name */
    begin(&b, 3, 0, 1);
    kv_u32(&b, "a", 1);
    accept(&b);
    begin(&b, 3, 0, 1); /* an empty array and an empty string are fine */
    text(&b, "k");
    u32(&b, CR_GGUF_ARRAY);
    u32(&b, CR_GGUF_STRING);
    u64(&b, 0);
    accept(&b);
}

static void test_02_counts_at_the_limit(void **state)
{
    (void)state;
    struct cr_buf b;
    char name[16];
    begin(&b, 3, CR_GGUF_MAX_TENSORS, CR_GGUF_MAX_KV);
    for (int i = 0; i < CR_GGUF_MAX_KV; i++) {
        snprintf(name, sizeof name, "%d", i);
        kv_u32(&b, name, 1);
    }
    for (uint64_t i = 0; i < CR_GGUF_MAX_TENSORS; i++) {
        snprintf(name, sizeof name, "%d", (int)i);
        tensor(&b, name, 1, (uint64_t[]){8}, CR_F32, 32 * i);
    }
    pad(&b, 32);
    zeros(&b, 32 * CR_GGUF_MAX_TENSORS);
    accept(&b);
}

static void test_03_value_types(void **state)
{
    (void)state;
    struct cr_buf b;
    begin(&b, 3, 0, 1);
    text(&b, "k");
    u32(&b, CR_GGUF_ARRAY);
    u32(&b, CR_GGUF_ARRAY);
    u64(&b, 1);
    zeros(&b, 32);
    refuse(&b, CR_FORMAT, "nested arrays");
    static const uint32_t bad[] = {13, 255, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        begin(&b, 3, 0, 1);
        text(&b, "k");
        u32(&b, bad[i]);
        zeros(&b, 32);
        refuse(&b, CR_FORMAT, "unknown");
        begin(&b, 3, 0, 1);
        text(&b, "k");
        u32(&b, CR_GGUF_ARRAY);
        u32(&b, bad[i]);
        zeros(&b, 32);
        refuse(&b, CR_FORMAT, "unknown");
    }
}

static void key_of(struct cr_buf *b, const void *key, size_t n)
{
    begin(b, 3, 0, 1);
    bytes(b, key, n);
    u32(b, CR_GGUF_U32);
    u32(b, 0);
    zeros(b, 16);
}

static void test_04_keys(void **state)
{
    (void)state;
    struct cr_buf b;
    static char big[CR_GGUF_MAX_KEY];
    memset(big, 'k', sizeof big);
    key_of(&b, "", 0);
    refuse(&b, CR_FORMAT, "want 1 to 65535 bytes, found 0");
    key_of(&b, big, sizeof big - 1);
    accept(&b);
    key_of(&b, big, sizeof big);
    refuse(&b, CR_LIMIT, "found 65536");
    key_of(&b, "a\0b", 3);
    refuse(&b, CR_FORMAT, "NUL");
    static const char *const bad[] = {"\xff", "a\xc3", "\xc0\xaf", "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        key_of(&b, bad[i], strlen(bad[i]));
        refuse(&b, CR_FORMAT, "not UTF-8");
    }
    begin(&b, 3, 0, 3);
    kv_u32(&b, "twin", 1);
    kv_u32(&b, "other", 1);
    kv_u32(&b, "twin", 2);
    refuse(&b, CR_FORMAT, "key twin appears twice");
}

static void test_05_alignment(void **state)
{
    (void)state;
    static const struct {
        uint32_t v;
        bool good;
    } cases[] = {{0, false},       {1, false},       {3, false},        {4, false},
                 {8, true},        {24, false},      {32, true},        {1 << 16, true},
                 {1 << 17, false}, {1 << 30, false}, {1u << 31, false}, {UINT32_MAX, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cr_buf b;
        begin(&b, 3, 0, 1);
        kv_u32(&b, "general.alignment", cases[i].v);
        if (cases[i].good)
            accept(&b);
        else
            refuse(&b, CR_FORMAT, "power of two");
    }
    struct cr_buf b;
    begin(&b, 3, 0, 1);
    text(&b, "general.alignment");
    u32(&b, CR_GGUF_U64);
    u64(&b, 32);
    refuse(&b, CR_FORMAT, "want u32, found u64");
}

/* One tensor in a file with n_data bytes of data. */
static void one_tensor(struct cr_buf *b, uint32_t n_dims, const uint64_t *ne, uint32_t type,
                       uint64_t offset, size_t n_data)
{
    begin(b, 3, 1, 0);
    tensor(b, "x", n_dims, ne, type, offset);
    pad(b, 32);
    zeros(b, n_data);
}

static void test_06_dimensions(void **state)
{
    (void)state;
    struct cr_buf b;
    const uint64_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    for (uint32_t n = 1; n <= 4; n++) {
        one_tensor(&b, n, ones, CR_F32, 0, 4);
        accept(&b);
    }
    static const uint32_t bad[] = {0, 5, 9, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        one_tensor(&b, bad[i], ones, CR_F32, 0, 64);
        refuse(&b, CR_FORMAT, "want 1 to 4 dimensions");
    }
    one_tensor(&b, 2, (uint64_t[]){4, 0}, CR_F32, 0, 64);
    refuse(&b, CR_FORMAT, "dimension 1 is 0");
}

static void test_07_products_that_wrap(void **state)
{
    (void)state;
    const uint64_t two32 = (uint64_t)1 << 32, two62 = (uint64_t)1 << 62, two63 = (uint64_t)1 << 63;
    const uint64_t shapes[][4] = {{two32, two32, 1, 1}, {two62, 1, 1, 1},     {two63, 2, 1, 1},
                                  {two32, 1, two32, 1}, {1, 1, two62, two62}, {4, two62, 1, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct cr_buf b;
        one_tensor(&b, 4, shapes[i], CR_F32, 0, 64);
        refuse(&b, CR_FORMAT, "passes 64 bits");
    }
    struct cr_buf b;
    one_tensor(&b, 2, (uint64_t[]){UINT64_MAX - 31, 1}, CR_Q8_0, 0, 64);
    refuse(&b, CR_FORMAT, "passes 64 bits");
    one_tensor(&b, 2, (uint64_t[]){33, 1}, CR_Q8_0, 0, 128);
    refuse(&b, CR_FORMAT, "not whole blocks");
}

static void test_08_offsets(void **state)
{
    (void)state;
    const uint64_t ne[1] = {8}; /* 32 bytes */
    struct cr_buf b;
    one_tensor(&b, 1, ne, CR_F32, 32, 64);
    accept(&b);
    one_tensor(&b, 1, ne, CR_F32, 32, 63);
    refuse(&b, CR_FORMAT, "do not fit");
    one_tensor(&b, 1, ne, CR_F32, 96, 64);
    refuse(&b, CR_FORMAT, "do not fit");
    one_tensor(&b, 1, ne, CR_F32, 8, 64);
    refuse(&b, CR_FORMAT, "not a multiple");
    one_tensor(&b, 1, ne, CR_F32, (uint64_t)-32, 64); /* would lie inside the header */
    refuse(&b, CR_FORMAT, "do not fit");
    static const uint64_t far[] = {(uint64_t)1 << 31, (uint64_t)1 << 32, (uint64_t)1 << 63};
    for (size_t i = 0; i < 3; i++) {
        one_tensor(&b, 1, ne, CR_F32, far[i], 64);
        refuse(&b, CR_FORMAT, "do not fit");
    }
    begin(&b, 3, 2, 0);
    tensor(&b, "a", 1, (uint64_t[]){9}, CR_F32, 0); /* 36 bytes reach into b */
    tensor(&b, "b", 1, ne, CR_F32, 32);
    pad(&b, 32);
    zeros(&b, 64);
    refuse(&b, CR_FORMAT, "tensors a and b overlap");
    begin(&b, 3, 2, 0);
    tensor(&b, "a", 1, ne, CR_F32, 0);
    tensor(&b, "a", 1, ne, CR_F32, 32);
    pad(&b, 32);
    zeros(&b, 64);
    refuse(&b, CR_FORMAT, "tensor a appears twice");
}

static void test_11_unknown_type_is_named(void **state)
{
    (void)state;
    struct cr_buf b;
    static const uint32_t bad[] = {4, 63, 64, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char part[40];
        snprintf(part, sizeof part, "tensor x: unknown type %u", bad[i]);
        one_tensor(&b, 1, (uint64_t[]){32}, bad[i], 0, 256);
        refuse(&b, CR_UNSUPPORTED, part);
    }
}

/* ---- writing ---- */

static char path[200];

static void test_write_then_read(void **state)
{
    (void)state;
    cr_gguf_writer *w = cr_gguf_writer_new();
    assert_non_null(w);
    const float x[6] = {1, 2, 3, 4, 5, 6};
    const char *const words[] = {"one", "", "three"};
    cr_gguf_put_str(w, "general.type", "adapter");
    cr_gguf_put_u64(w, "big", (uint64_t)1 << 40);
    cr_gguf_put_bool(w, "yes", true);
    cr_gguf_put_f32(w, "pi", 3.25f);
    cr_gguf_put_strs(w, "words", words, 3);
    cr_gguf_put_u32s(w, "ids", (uint32_t[]){3, 4}, 2);
    cr_gguf_put_f32s(w, "floats", x, 6);
    cr_gguf_put_tensor(w, "x", CR_F32, 2, (uint64_t[]){3, 2}, x);
    cr_gguf_put_tensor(w, "y", CR_F32, 1, (uint64_t[]){6}, x);
    struct cr_error err;
    assert_int_equal(cr_gguf_write(w, path, &err), CR_OK);
    cr_gguf_writer_free(w);

    cr_gguf *g, *h;
    assert_int_equal(cr_gguf_open(&g, path, &err), CR_OK);
    assert_int_equal(cr_gguf_n_kv(g), 7);
    assert_int_equal(cr_gguf_header_size(g) % 32, 0);
    assert_memory_equal(cr_gguf_tensor(g, "x")->data, x, sizeof x);
    assert_memory_equal(cr_gguf_tensor(g, "y")->data, x, sizeof x);
    uint32_t u;
    assert_int_equal(cr_gguf_u32(g, "big", true, &u, &err), CR_FORMAT);

    /* every key copied with put_kv is the same, byte for byte */
    w = cr_gguf_writer_new();
    for (size_t i = 0; i < cr_gguf_n_kv(g); i++)
        cr_gguf_put_kv(w, cr_gguf_kv_at(g, i));
    cr_gguf_put_tensor(w, "x", CR_F32, 2, (uint64_t[]){3, 2}, cr_gguf_tensor(g, "x")->data);
    char copy[220];
    snprintf(copy, sizeof copy, "%s.copy", path);
    assert_int_equal(cr_gguf_write(w, copy, &err), CR_OK);
    cr_gguf_writer_free(w);
    assert_int_equal(cr_gguf_open(&h, copy, &err), CR_OK);
    for (size_t i = 0; i < cr_gguf_n_kv(g); i++) {
        const struct cr_gguf_kv *a = cr_gguf_kv_at(g, i), *b = cr_gguf_kv_at(h, i);
        assert_int_equal(a->type, b->type);
        assert_int_equal(a->bytes, b->bytes);
        assert_memory_equal(a->data, b->data, a->bytes);
    }
    cr_gguf_close(h);
    cr_gguf_close(g);
    unlink(copy);
    unlink(path);
}

static void test_write_refuses(void **state)
{
    (void)state;
    struct cr_error err;
    const float x[4] = {0};
    for (int i = 0; i < 7; i++) {
        cr_gguf_writer *w = cr_gguf_writer_new();
        if (i == 0) {
            cr_gguf_put_u32(w, "k", 1);
            cr_gguf_put_u32(w, "k", 2);
        } else if (i == 1) {
            cr_gguf_put_tensor(w, "t", CR_F32, 1, (uint64_t[]){4}, x);
            cr_gguf_put_tensor(w, "t", CR_F32, 1, (uint64_t[]){4}, x);
        } else if (i == 2) {
            cr_gguf_put_tensor(w, "t", CR_Q8_0, 1, (uint64_t[]){4}, x);
        } else if (i == 3) {
            cr_gguf_put_tensor(w, "t", CR_F32, 5, (uint64_t[]){1, 1, 1, 1, 1}, x);
        } else if (i == 4) {
            cr_gguf_put_tensor(w, "t", 99, 1, (uint64_t[]){4}, x);
        } else if (i == 5) {
            cr_gguf_put_u32(w, "", 1);
        } else {
            cr_gguf_put_tensor(w, "t", CR_F32, 2, (uint64_t[]){(uint64_t)1 << 62, 8}, x);
        }
        cr_gguf_put_u32(w, "after", 1);
        assert_int_equal(cr_gguf_write(w, path, &err), CR_INVALID);
        assert_true(err.msg[0]);
        assert_int_not_equal(access(path, F_OK), 0);
        cr_gguf_writer_free(w);
    }
    cr_gguf_writer *w = cr_gguf_writer_new();
    assert_int_equal(cr_gguf_write(w, "/nonexistent/dir/x.gguf", &err), CR_NOT_FOUND);
    cr_gguf_writer_free(w);
}

static void test_09_only_regular_files(void **state)
{
    (void)state;
    cr_gguf *g;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, "/nonexistent.gguf", &err), CR_NOT_FOUND);
    assert_null(g);
    assert_int_equal(cr_gguf_open(&g, "/dev/zero", &err), CR_UNSUPPORTED);
    assert_int_equal(cr_gguf_open(&g, "/", &err), CR_INVALID);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(cr_gguf_open(&g, path, &err), CR_UNSUPPORTED);
    unlink(path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(cr_gguf_open(&g, path, &err), CR_FORMAT);
    unlink(path);
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    struct cr_buf b;
    struct cr_error err;
    small_file(&b, 3);
    size_t before = cr_mem_now();
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        cr_gguf *g;
        cr_mem_fail_at(n, false);
        enum cr_status status = cr_gguf_parse(&g, b.data, b.len, "t", &err);
        cr_mem_fail_at(0, false);
        done = status == CR_OK;
        if (!done)
            assert_int_equal(status, CR_NO_MEMORY);
        cr_gguf_close(g);
        assert_int_equal(cr_mem_now(), before);
    }
    done = false;
    for (uint64_t n = 1; !done; n++) {
        cr_mem_fail_at(n, false);
        cr_gguf_writer *w = cr_gguf_writer_new();
        enum cr_status status = CR_NO_MEMORY;
        if (w) {
            cr_gguf_put_str(w, "k", "v");
            cr_gguf_put_tensor(w, "t", CR_F32, 1, (uint64_t[]){4}, (float[4]){0});
            status = cr_gguf_write(w, path, &err);
        }
        cr_mem_fail_at(0, false);
        cr_gguf_writer_free(w);
        done = status == CR_OK;
        if (!done)
            assert_int_equal(status, CR_NO_MEMORY);
        assert_int_equal(cr_mem_now(), before);
    }
    unlink(path);
    cr_buf_deinit(&b);
}

static void test_the_shipped_model(void **state)
{
    (void)state;
    cr_gguf *g;
    struct cr_error err;
    if (cr_gguf_open(&g, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &err) != CR_OK)
        fail_msg("%s", err.msg);
    struct cr_str s;
    assert_int_equal(cr_gguf_str(g, "general.architecture", true, &s, &err), CR_OK);
    assert_true(cr_str_eq(s, "llama"));
    const struct cr_tensor *t = cr_gguf_tensor(g, "token_embd.weight");
    assert_non_null(t);
    assert_int_equal(t->ne[0], 384);
    assert_int_equal(t->ne[1], 8192);
    assert_int_equal(t->type, CR_Q8_0);
    cr_gguf_close(g);
}

int main(void)
{
    snprintf(path, sizeof path, "/tmp/crayon-test-gguf-%ld.gguf", (long)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_what_is_there),
        cmocka_unit_test(test_typed_reads_say_what_they_found),
        cmocka_unit_test(test_integers_of_any_type_fit_or_are_refused),
        cmocka_unit_test(test_01_truncation_at_every_byte),
        cmocka_unit_test(test_01_any_byte_changed),
        cmocka_unit_test(test_01_magic_and_version),
        cmocka_unit_test(test_02_counts),
        cmocka_unit_test(test_02_counts_at_the_limit),
        cmocka_unit_test(test_03_value_types),
        cmocka_unit_test(test_04_keys),
        cmocka_unit_test(test_05_alignment),
        cmocka_unit_test(test_06_dimensions),
        cmocka_unit_test(test_07_products_that_wrap),
        cmocka_unit_test(test_08_offsets),
        cmocka_unit_test(test_09_only_regular_files),
        cmocka_unit_test(test_11_unknown_type_is_named),
        cmocka_unit_test(test_write_then_read),
        cmocka_unit_test(test_write_refuses),
        cmocka_unit_test(test_every_allocation_fails_once),
        cmocka_unit_test(test_the_shipped_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
