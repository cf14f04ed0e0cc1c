/* SPDX-License-Identifier: Apache-2.0 */
/* base/: errors, memory, cursor, buffer, files, threads, generator, SHA-256. */
#include "base/bytes.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "base/threads.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void check_sha256(bool hardware)
{
    struct cr_sha256 s;
    char hex[65];
    cr_sha256_init(&s);
    s.hardware = hardware;
    cr_sha256_hex(&s, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    cr_sha256_init(&s);
    s.hardware = hardware;
    cr_sha256_add(&s, "abc", 3);
    cr_sha256_hex(&s, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    cr_sha256_init(&s); /* a million a, in odd pieces */
    s.hardware = hardware;
    char a[997];
    memset(a, 'a', sizeof a);
    for (size_t left = 1000000; left;) {
        size_t n = left < sizeof a ? left : sizeof a;
        cr_sha256_add(&s, a, n);
        left -= n;
    }
    cr_sha256_hex(&s, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void test_sha256(void **state)
{
    (void)state;
    check_sha256(false);
    if (cr_sha256_has_hardware())
        check_sha256(true);
}

static void test_cursor_stops_at_the_end(void **state)
{
    (void)state;
    uint8_t data[6] = {1, 2, 3, 4, 5, 6};
    struct cr_cursor c = cr_cursor_make(data, sizeof data);
    assert_int_equal(cr_cursor_u32(&c), 0x04030201);
    assert_int_equal(cr_cursor_u32(&c), 0);
    assert_true(c.failed);
    assert_int_equal(cr_cursor_u8(&c), 0);
    c = cr_cursor_make(data, sizeof data);
    assert_null(cr_cursor_take(&c, UINT64_MAX));
}

static void test_buf_keeps_its_ceiling(void **state)
{
    (void)state;
    struct cr_buf b;
    cr_buf_init(&b, 8);
    assert_true(cr_buf_puts(&b, "12345678"));
    assert_false(cr_buf_puts(&b, "9"));
    assert_true(b.failed);
    assert_string_equal(b.data, "12345678");
    cr_buf_deinit(&b);
}

static void test_alloc_overflow_and_failure(void **state)
{
    (void)state;
    assert_null(cr_alloc(SIZE_MAX / 2, 4));
    size_t before = cr_mem_now();
    cr_mem_fail_at(1, false);
    assert_null(cr_alloc(1, 1));
    void *p = cr_alloc(10, 10);
    assert_non_null(p);
    assert_int_equal(cr_mem_now(), before + 100);
    cr_free(p);
    assert_int_equal(cr_mem_now(), before);
    cr_mem_fail_at(0, false);
}

static void test_files(void **state)
{
    (void)state;
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct cr_error err;
    assert_int_equal(cr_file_write(path, "hello", 5, &err), CR_OK);
    char *data;
    size_t len;
    assert_int_equal(cr_file_read(path, 100, &data, &len, &err), CR_OK);
    assert_int_equal(len, 5);
    assert_string_equal(data, "hello");
    cr_free(data);
    assert_int_equal(cr_file_read(path, 4, &data, &len, &err), CR_LIMIT);
    assert_non_null(strstr(err.msg, "4"));
    unlink(path);
    assert_int_equal(cr_file_read(path, 4, &data, &len, &err), CR_NOT_FOUND);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(cr_file_read(path, 4, &data, &len, &err), CR_UNSUPPORTED); /* does not hang */
    struct cr_map map;
    assert_int_equal(cr_map_open(&map, path, &err), CR_UNSUPPORTED);
    unlink(path);
    assert_int_equal(cr_map_open(&map, "/tmp", &err), CR_INVALID);
}

static void test_error_text_is_printable(void **state)
{
    (void)state;
    struct cr_error err;
    cr_error_set(&err, CR_FORMAT, "a\x1b[31m\xff \xe2\x82\xac");
    assert_string_equal(err.msg, "a?[31m? \xe2\x82\xac");
    cr_error_prefix(&err, err.status, "file");
    assert_string_equal(err.msg, "file: a?[31m? \xe2\x82\xac");
}

static void add_rows(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    for (size_t i = begin; i < end; i++)
        ((int *)ud)[i]++;
}

static void test_threads_cover_every_row_once(void **state)
{
    (void)state;
    static int rows[1000];
    for (int n = 1; n <= 5; n++) {
        cr_threads *t;
        assert_int_equal(cr_threads_new(&t, n, NULL), CR_OK);
        for (size_t count = 0; count <= 1000; count += 37) {
            memset(rows, 0, sizeof rows);
            cr_threads_run(t, count, 1 + count % 9, add_rows, rows);
            cr_threads_run_dynamic(t, count, 1 + count % 7, add_rows, rows);
            for (size_t i = 0; i < 1000; i++)
                assert_int_equal(rows[i], i < count ? 2 : 0);
        }
        cr_threads_free(t);
    }
    cr_threads *t;
    assert_int_equal(cr_threads_new(&t, -1, NULL), CR_INVALID);
}

struct pieces {
    atomic_size_t n, smallest;
};

static void count_piece(void *ud, size_t begin, size_t end, int thread)
{
    struct pieces *p = ud;
    (void)thread;
    atomic_fetch_add(&p->n, 1);
    for (size_t seen = atomic_load(&p->smallest); end - begin < seen;)
        if (atomic_compare_exchange_weak(&p->smallest, &seen, end - begin))
            break;
}

/* The rows of SmolLM2's products: a last piece that is left over keeps one thread alone at work. */
static void test_threads_share_evenly(void **state)
{
    static const size_t rows[] = {576, 960, 3072, 384, 1024};
    cr_threads *t;
    (void)state;
    assert_int_equal(cr_threads_new(&t, 2, NULL), CR_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pieces p = {.smallest = SIZE_MAX};
        cr_threads_run(t, rows[i], 16, count_piece, &p);
        assert_int_equal(atomic_load(&p.n) % 2, 0);
        assert_int_equal(atomic_load(&p.n) * atomic_load(&p.smallest), rows[i]);
    }
    cr_threads_free(t);
}

static void test_rng_is_stable(void **state)
{
    (void)state;
    struct cr_rng r;
    cr_rng_init(&r, 1);
    uint64_t first = cr_rng_u64(&r);
    cr_rng_init(&r, 1);
    assert_true(cr_rng_u64(&r) == first);
    double sum = 0, sum2 = 0;
    for (int i = 0; i < 100000; i++) {
        double x = cr_rng_normal(&r);
        sum += x;
        sum2 += x * x;
    }
    assert_true(sum / 1e5 > -0.02 && sum / 1e5 < 0.02);
    assert_true(sum2 / 1e5 > 0.97 && sum2 / 1e5 < 1.03);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),
        cmocka_unit_test(test_cursor_stops_at_the_end),
        cmocka_unit_test(test_buf_keeps_its_ceiling),
        cmocka_unit_test(test_alloc_overflow_and_failure),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_error_text_is_printable),
        cmocka_unit_test(test_threads_cover_every_row_once),
        cmocka_unit_test(test_threads_share_evenly),
        cmocka_unit_test(test_rng_is_stable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
