/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.c, bpe.c, spm.c, merge.c, pretokenize.c: small vocabularies made here, the 15M model's
 * own, attack 13. The comparison with other implementations is test_tokenizer_golden.c. */
#include "base/mem.h"
#include "model/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "test_vocab.h"

#define MODEL CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf"

/* 256 bytes (id = byte), then ab, abc, " ab", aab; two control tokens and two user-defined. */
static struct vocab bpe_vocab(void)
{
    struct vocab v = byte_vocab("gpt-2");
    add(&v, "ab", CR_TOKEN_NORMAL, 0);
    add(&v, "abc", CR_TOKEN_NORMAL, 0);
    add(&v,
        "\xC4\xA0"
        "ab",
        CR_TOKEN_NORMAL, 0);
    add(&v, "aab", CR_TOKEN_NORMAL, 0);
    add(&v, "<|a|>", CR_TOKEN_CONTROL, 0);
    add(&v, "<|a|>b", CR_TOKEN_CONTROL, 0);
    add(&v, "<u>", CR_TOKEN_USER_DEFINED, 0);
    add(&v, "<u><u>", CR_TOKEN_USER_DEFINED, 0);
    static const char *const merges[] = {"a b", "ab c", "\xC4\xA0 ab", "a ab"};
    memcpy(v.merges, merges, sizeof merges);
    v.n_merges = 4;
    return v;
}

static struct vocab spm_vocab(void)
{
    struct vocab v = {.model = "llama", .bos = 1, .eos = 2};
    add(&v, "<unk>", CR_TOKEN_UNKNOWN, 0);
    add(&v, "<s>", CR_TOKEN_CONTROL, 0);
    add(&v, "</s>", CR_TOKEN_CONTROL, 0);
    for (int b = 0; b < 256; b++)
        add(&v, byte_names[b], CR_TOKEN_BYTE, 0);
    add(&v, "\xE2\x96\x81", CR_TOKEN_NORMAL, -10); /* 259 */
    add(&v, "a", CR_TOKEN_NORMAL, -11);
    add(&v, "b", CR_TOKEN_NORMAL, -12);
    add(&v, "ab", CR_TOKEN_NORMAL, -2); /* 262 */
    add(&v,
        "\xE2\x96\x81"
        "a",
        CR_TOKEN_NORMAL, -1); /* 263 */
    add(&v, "ba", CR_TOKEN_NORMAL, -2);
    add(&v, "<", CR_TOKEN_NORMAL, -3); /* 265 */
    add(&v, "s", CR_TOKEN_NORMAL, -3);
    add(&v, ">", CR_TOKEN_NORMAL, -3);
    add(&v, "<s", CR_TOKEN_NORMAL, -3); /* 268 */
    return v;
}

static void refuse(const struct vocab *v, enum cr_status want, const char *a, const char *b)
{
    struct cr_error err = {0};
    cr_gguf *g;
    cr_tokenizer *t;
    assert_int_equal(open_vocab(v, &g, &t, &err), want);
    if (!strstr(err.msg, a) || !strstr(err.msg, b))
        fail_msg("message \"%s\" lacks \"%s\" or \"%s\"", err.msg, a, b);
}

#define END (-100)
/* Encodes text and compares with the ids up to END. */
static void check(const cr_tokenizer *t, const char *text, size_t len, unsigned flags, ...)
{
    struct cr_ids ids = {0};
    struct cr_error err;
    assert_int_equal(cr_tokenizer_encode(t, text, len, flags, &ids, &err), CR_OK);
    va_list ap;
    va_start(ap, flags);
    size_t i = 0;
    for (int32_t want; (want = va_arg(ap, int32_t)) != END; i++) {
        assert_true(i < ids.n);
        assert_int_equal(ids.v[i], want);
    }
    va_end(ap);
    assert_int_equal(ids.n, i);
    cr_free(ids.v);
}
#define CHECK(t, text, flags, ...) check(t, text, sizeof(text) - 1, flags, __VA_ARGS__, END)

/* ---- tests ---- */

static void test_bpe_merges_by_rank(void **state)
{
    (void)state;
    struct vocab v = bpe_vocab();
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(open_vocab(&v, &g, &t, &err), CR_OK);
    assert_int_equal(cr_tokenizer_size(t), (int)v.n);
    CHECK(t, "ab", 0, 256);
    CHECK(t, "abc", 0, 257);
    CHECK(t, " abc", 0, ' ', 257); /* "ab c" before " ab": ranks, not length */
    CHECK(t, " ab", 0, 258);
    CHECK(t, "aabab", 0, 259, 256);
    CHECK(t, "ab ab", 0, 256, 258);
    CHECK(t, "\0a", 0, 0, 'a');
    check(t, "", 0, 0, END);
    CHECK(t,
          "\xFF"
          "a",
          0, 0xEF, 0xBF, 0xBD, 'a');
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_special_tokens_only_on_request(void **state)
{
    (void)state;
    struct vocab v = bpe_vocab();
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    v.eos = 260;
    assert_int_equal(open_vocab(&v, &g, &t, &err), CR_OK);
    CHECK(t, "<|a|>", CR_TOKENIZE_SPECIAL, 260);
    CHECK(t, "<|a|>", 0, '<', '|', 'a', '|', '>');
    CHECK(t, "x<|a|>by", CR_TOKENIZE_SPECIAL, 'x', 261, 'y'); /* the longest */
    CHECK(t, "<|a<|a|>", CR_TOKENIZE_SPECIAL, '<', '|', 'a', 260);
    CHECK(t, "a<u>b", 0, 'a', 262, 'b'); /* user-defined: always */
    CHECK(t, "<u><u><u>", 0, 263, 262);
    assert_true(cr_tokenizer_is_end(t, 260));
    assert_false(cr_tokenizer_is_end(t, 261));
    assert_false(cr_tokenizer_is_end(t, -1));
    assert_false(cr_tokenizer_is_end(t, (int32_t)v.n));
    assert_true(cr_tokenizer_is_control(t, 261));
    assert_false(cr_tokenizer_is_control(t, 262));
    assert_int_equal(cr_tokenizer_find(t, "<|a|>b"), 261);
    assert_int_equal(cr_tokenizer_find(t, " ab"), 258);
    assert_int_equal(cr_tokenizer_find(t, "<|b|>"), -1);
    const char *bytes;
    assert_int_equal(cr_tokenizer_bytes(t, 260, false, &bytes), 0);
    assert_int_equal(cr_tokenizer_bytes(t, 260, true, &bytes), 5);
    assert_memory_equal(bytes, "<|a|>", 5);
    assert_int_equal(cr_tokenizer_bytes(t, 258, false, &bytes), 3);
    assert_memory_equal(bytes, " ab", 3);
    assert_int_equal(cr_tokenizer_bytes(t, 5000, false, &bytes), 0);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_spm(void **state)
{
    (void)state;
    struct vocab v = spm_vocab();
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(open_vocab(&v, &g, &t, &err), CR_OK);
    assert_true(cr_tokenizer_add_bos(t));
    CHECK(t, "ab", CR_TOKENIZE_BOS, 1, 263, 261); /* " a" scores best */
    CHECK(t, "bab", 0, 259, 264, 261);            /* equal scores: leftmost */
    CHECK(t,
          "a\xE2\x96\x81"
          "a",
          0, 263, 263); /* U+2581 is a space */
    CHECK(t, "\n\xC3\xA9", 0, 259, 3 + 0x0A, 3 + 0xC3, 3 + 0xA9);
    CHECK(t, "<s>", 0, 259, 268, 267); /* never the control token */
    CHECK(t, "<s>a</s>", CR_TOKENIZE_SPECIAL, 1, 263, 2);
    check(t, "", 0, CR_TOKENIZE_BOS, 1, END);
    const char *bytes;
    assert_int_equal(cr_tokenizer_bytes(t, 263, false, &bytes), 2);
    assert_memory_equal(bytes, " a", 2);
    assert_int_equal(cr_tokenizer_bytes(t, 3 + 0xC3, false, &bytes), 1);
    assert_int_equal((unsigned char)*bytes, 0xC3);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_spm_without_bytes_uses_unknown(void **state)
{
    (void)state;
    struct vocab v = {.model = "llama", .bos = UINT32_MAX, .eos = UINT32_MAX};
    add(&v, "<unk>", CR_TOKEN_UNKNOWN, 0);
    add(&v, "\xE2\x96\x81", CR_TOKEN_NORMAL, 0);
    add(&v, "a", CR_TOKEN_NORMAL, 0);
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(open_vocab(&v, &g, &t, &err), CR_OK);
    CHECK(t, "axyaz", 0, 1, 2, 0, 2, 0);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

/* Expected ids by Hugging Face tokenizers on models/crayon-15m's tokenizer.json. */
static void test_the_15m_model(void **state)
{
    (void)state;
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, MODEL, &err), CR_OK);
    assert_int_equal(cr_tokenizer_new(&t, g, &err), CR_OK);
    assert_int_equal(cr_tokenizer_bos(t), 0);
    assert_int_equal(cr_tokenizer_eos(t), 2);
    assert_true(cr_tokenizer_is_end(t, 2)); /* by id */
    assert_true(cr_tokenizer_is_end(t, 0)); /* <|endoftext|>, by name */
    assert_false(cr_tokenizer_is_end(t, 1));
    CHECK(t, "Hello world 123  it's", CR_TOKENIZE_BOS, 0, 43, 486, 82, 991, 2994, 22, 224, 337,
          413);
    CHECK(t, "<|im_start|>x", CR_TOKENIZE_SPECIAL, 1, 91);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_round_trip_is_exact(void **state)
{
    (void)state;
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, MODEL, &err), CR_OK);
    assert_int_equal(cr_tokenizer_new(&t, g, &err), CR_OK);
    static const char text[] = "int main(void) {\r\n\treturn 0;  \n}\n\xC2\xA0 \xE2\x80\xAF"
                               "na\xC3\xAFve <|im_end|> \xD0\x9F\xD1\x80\xD0\xB8 \xE4\xBD\xA0\xE5"
                               "\xA5\xBD e\xCC\x81\xCC\x81 \xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F"
                               "\x9A\x80 '\xC5\xBF 12\xC2\xBD\xE2\x85\xA7\0 end   ";
    struct cr_ids ids = {0};
    assert_int_equal(cr_tokenizer_encode(t, text, sizeof text, 0, &ids, &err), CR_OK);
    char back[2 * sizeof text];
    size_t n = 0;
    for (size_t i = 0; i < ids.n; i++) {
        const char *bytes;
        size_t len = cr_tokenizer_bytes(t, ids.v[i], false, &bytes);
        assert_true(n + len < sizeof back);
        memcpy(back + n, bytes, len);
        n += len;
    }
    assert_int_equal(n, sizeof text);
    assert_memory_equal(back, text, n);
    cr_free(ids.v);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Attack 35. The bound is far above what it takes (0.2 s) and far below quadratic time. */
static void test_attack_35_long_runs(void **state)
{
    (void)state;
    static const char *const units[] = {"a", "\xCC\x80", " ", "\xFF", "<", "\n ", "7", "'"};
    enum { N = 1000000 };
    cr_gguf *g[3];
    cr_tokenizer *t[3];
    struct cr_error err;
    struct vocab spm = spm_vocab(), llama3 = bpe_vocab();
    llama3.pre = "llama-bpe";
    assert_int_equal(cr_gguf_open(&g[0], MODEL, &err), CR_OK);
    assert_int_equal(cr_tokenizer_new(&t[0], g[0], &err), CR_OK);
    assert_int_equal(open_vocab(&spm, &g[1], &t[1], &err), CR_OK);
    assert_int_equal(open_vocab(&llama3, &g[2], &t[2], &err), CR_OK);
    char *text = cr_alloc(2 * N, 1);
    for (size_t k = 0; k < 3; k++) {
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t len = strlen(units[u]);
            for (size_t i = 0; i < N; i++)
                memcpy(text + i * len, units[u], len);
            struct cr_ids ids = {0};
            double start = seconds();
            assert_int_equal(cr_tokenizer_encode(t[k], text, N * len, 3, &ids, &err), CR_OK);
            assert_true(seconds() - start < 20);
            assert_true(ids.n > 1000);
            cr_free(ids.v);
        }
        cr_tokenizer_free(t[k]);
        cr_gguf_close(g[k]);
    }
    cr_free(text);
}

static void test_attack_13_vocabulary(void **state)
{
    (void)state;
    struct vocab v = bpe_vocab();
    v.merges[2] = "a zz";
    refuse(&v, CR_FORMAT, "merges[2]", "a zz");
    v = bpe_vocab();
    v.merges[2] = "b a"; /* both parts are tokens, the result is not */
    refuse(&v, CR_FORMAT, "merges[2]", "result");
    v = bpe_vocab();
    v.merges[1] = " ab"; /* would merge a token with nothing into itself */
    refuse(&v, CR_FORMAT, "merges[1]", "two tokens");
    v.merges[1] = "ab ";
    refuse(&v, CR_FORMAT, "merges[1]", "two tokens");
    v.merges[1] = "ab";
    refuse(&v, CR_FORMAT, "merges[1]", "two tokens");
    v.merges[1] = "";
    refuse(&v, CR_FORMAT, "merges[1]", "two tokens");
    v = bpe_vocab(); /* a merge that makes a control token out of text */
    v.merges[2] = "< |a|>";
    refuse(&v, CR_FORMAT, "merges[2]", "parts");
    v = bpe_vocab();
    v.no_merges = true;
    refuse(&v, CR_FORMAT, "merges", "missing");
    v = bpe_vocab();
    add(&v, "<|a|>", CR_TOKEN_CONTROL, 0);
    refuse(&v, CR_FORMAT, "260 and 264", "<|a|>");
    v = bpe_vocab();
    v.n_types--;
    refuse(&v, CR_FORMAT, "token_type has 263", "264");
    v = bpe_vocab();
    v.types[7] = 77;
    refuse(&v, CR_FORMAT, "token_type[7]", "77");
    v = bpe_vocab();
    v.eos = (uint32_t)v.n;
    refuse(&v, CR_FORMAT, "eos_token_id is 264", "264 tokens");
    v = bpe_vocab();
    v.pre = "gpt-9";
    refuse(&v, CR_UNSUPPORTED, "gpt-9", "qwen2");
    v.model = "bert";
    refuse(&v, CR_UNSUPPORTED, "bert", "gpt2");
    v = spm_vocab();
    v.n_scores++;
    refuse(&v, CR_FORMAT, "scores has 270", "269");
    v = spm_vocab();
    v.scores[5] = (float)strtod("nan", NULL);
    refuse(&v, CR_FORMAT, "scores[5]", "not a number");
    v = spm_vocab();
    v.tokens[40] = "<0xZZ>";
    refuse(&v, CR_FORMAT, "tokens[40]", "<0xZZ>");
    v = spm_vocab();
    v.n = 0;
    refuse(&v, CR_LIMIT, "1 to", "found 0");
}

static void test_attack_13_long_token(void **state)
{
    (void)state;
    enum { LIMIT = 4096, HUGE = 1 << 20 };
    char *token = cr_alloc0(HUGE + 1, 1);
    memset(token, 'a', HUGE);
    struct vocab v = bpe_vocab();
    add(&v, token, CR_TOKEN_NORMAL, 0);
    refuse(&v, CR_LIMIT, "tokens[264] has 1048576 bytes", "4096");
    token[LIMIT + 1] = '\0';
    refuse(&v, CR_LIMIT, "4097", "4096");
    token[LIMIT] = '\0';
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(open_vocab(&v, &g, &t, &err), CR_OK);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
    cr_free(token);
}

static void test_files_without_tokens(void **state)
{
    (void)state;
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct cr_error err;
    for (int kind = 0; kind < 3; kind++) {
        cr_gguf_writer *w = cr_gguf_writer_new();
        if (kind > 0)
            cr_gguf_put_str(w, "tokenizer.ggml.model", "gpt2");
        if (kind > 1)
            cr_gguf_put_u32(w, "tokenizer.ggml.tokens", 5);
        cr_gguf_put_str(w, "general.architecture", "llama");
        assert_int_equal(cr_gguf_write(w, path, &err), CR_OK);
        cr_gguf_writer_free(w);
        cr_gguf *g;
        cr_tokenizer *t;
        assert_int_equal(cr_gguf_open(&g, path, &err), CR_OK);
        assert_int_equal(cr_tokenizer_new(&t, g, &err), CR_FORMAT);
        assert_non_null(strstr(err.msg, kind ? "tokenizer.ggml.tokens" : "tokenizer.ggml.model"));
        cr_gguf_close(g);
    }
    unlink(path);
}

static void put_u64(struct cr_buf *b, uint64_t v)
{
    assert_true(cr_buf_add(b, &v, sizeof v)); /* tests run on little-endian machines */
}

static void put_u32(struct cr_buf *b, uint32_t v)
{
    assert_true(cr_buf_add(b, &v, sizeof v));
}

static void put_string(struct cr_buf *b, const char *s)
{
    put_u64(b, strlen(s));
    assert_true(cr_buf_puts(b, s));
}

/* A file of n tokens without text. At the limit it goes on to miss the merges. */
static void test_limits(void **state)
{
    (void)state;
    enum { MAX_VOCAB = 1 << 22, MAX_TEXT = 1 << 28 };
    for (int past = 0; past < 2; past++) {
        uint64_t n = MAX_VOCAB + (uint64_t)past;
        struct cr_buf b;
        cr_buf_init(&b, SIZE_MAX / 2);
        assert_true(cr_buf_puts(&b, "GGUF"));
        put_u32(&b, 3);
        put_u64(&b, 0);
        put_u64(&b, 2);
        put_string(&b, "tokenizer.ggml.model");
        put_u32(&b, CR_GGUF_STRING);
        put_string(&b, "gpt2");
        put_string(&b, "tokenizer.ggml.tokens");
        put_u32(&b, CR_GGUF_ARRAY);
        put_u32(&b, CR_GGUF_STRING);
        put_u64(&b, n);
        char *empty = cr_alloc0(n, 8);
        assert_true(cr_buf_add(&b, empty, 8 * n));
        cr_free(empty);
        cr_gguf *g;
        cr_tokenizer *t;
        struct cr_error err;
        assert_int_equal(cr_gguf_parse(&g, b.data, b.len, "limit", &err), CR_OK);
        assert_int_equal(cr_tokenizer_new(&t, g, &err), past ? CR_LIMIT : CR_FORMAT);
        assert_non_null(strstr(err.msg, past ? "4194305" : "merges is missing"));
        cr_gguf_close(g);
        cr_buf_deinit(&b);
    }
    struct vocab v = bpe_vocab();
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    struct cr_ids ids = {0};
    assert_int_equal(open_vocab(&v, &g, &t, &err), CR_OK);
    assert_int_equal(cr_tokenizer_encode(t, "", (size_t)MAX_TEXT + 1, 0, &ids, &err), CR_LIMIT);
    assert_non_null(strstr(err.msg, "268435457"));
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

/* Every allocation fails once: the right status, nothing lost, nothing leaked. */
static void test_out_of_memory(void **state)
{
    (void)state;
    struct vocab bpe = bpe_vocab(), spm = spm_vocab();
    for (int k = 0; k < 2; k++) {
        cr_gguf *g;
        cr_tokenizer *t;
        struct cr_error err;
        assert_int_equal(open_vocab(k ? &spm : &bpe, &g, &t, &err), CR_OK);
        cr_tokenizer_free(t);
        size_t before = cr_mem_now();
        struct cr_ids ids = {0};
        enum cr_status status = CR_NO_MEMORY;
        uint64_t n = 0;
        while (status != CR_OK && n < 1000) {
            cr_mem_fail_at(++n, true);
            status = cr_tokenizer_new(&t, g, &err);
            if (status == CR_OK)
                status = cr_tokenizer_encode(t, "aabab ab\xFF<|a|>", 14, 3, &ids, &err);
            cr_mem_fail_at(0, false);
            cr_tokenizer_free(t);
            if (status != CR_OK) {
                assert_int_equal(status, CR_NO_MEMORY);
                assert_int_equal(ids.n, 0);
            }
            cr_free(ids.v);
            ids = (struct cr_ids){0};
            assert_int_equal(cr_mem_now(), before);
        }
        assert_int_equal(status, CR_OK);
        assert_true(n > 10);
        cr_gguf_close(g);
    }
}

int main(void)
{
    make_alphabet();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_merges_by_rank),
        cmocka_unit_test(test_special_tokens_only_on_request),
        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_spm_without_bytes_uses_unknown),
        cmocka_unit_test(test_the_15m_model),
        cmocka_unit_test(test_round_trip_is_exact),
        cmocka_unit_test(test_attack_35_long_runs),
        cmocka_unit_test(test_attack_13_vocabulary),
        cmocka_unit_test(test_attack_13_long_token),
        cmocka_unit_test(test_files_without_tokens),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
