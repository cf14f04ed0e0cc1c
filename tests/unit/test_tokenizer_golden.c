/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizers against Hugging Face tokenizers and sentencepiece: 10,000 texts of many scripts,
 * code, emoji, combining marks, odd spaces and invalid UTF-8, ten families. See tests/golden. */
#include "base/sha256.h"
#include "base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "test_vocab.h"

enum { N_TEXTS = 10000, BLOCK = 100, N_BLOCKS = N_TEXTS / BLOCK };

static char *texts, *golden; /* NUL-terminated texts in a row; the hashes */

static int read_texts(void **state)
{
    (void)state;
    size_t len;
    struct cr_error err;
    texts = read_xz(CR_SOURCE_DIR "/tests/golden/tokens-texts.xz", 2u << 20, &len);
    return cr_file_read(CR_SOURCE_DIR "/tests/golden/tokens.txt", 1 << 20, &golden, &len, &err) !=
           CR_OK;
}

static int free_texts(void **state)
{
    (void)state;
    cr_free(texts);
    cr_free(golden);
    return 0;
}

/* The 16 hex digits for a block: line "FAMILY BEGIN HASH". */
static const char *want_hash(const char *family, int begin)
{
    char key[64];
    snprintf(key, sizeof key, "%s %d ", family, begin);
    for (const char *p = golden; p && *p; p = strchr(p, '\n') + 1)
        if (strncmp(p, key, strlen(key)) == 0)
            return p + strlen(key);
    return "missing";
}

static void add_ids(struct cr_sha256 *sha, const struct cr_ids *ids)
{
    char number[16];
    for (size_t i = 0; i < ids->n; i++) {
        int n = snprintf(number, sizeof number, i ? " %d" : "%d", ids->v[i]);
        cr_sha256_add(sha, number, (size_t)n);
    }
    cr_sha256_add(sha, "\n", 1);
}

static void check_family(const char *family, const cr_tokenizer *t, unsigned flags)
{
    struct cr_ids ids = {0};
    struct cr_error err;
    const char *text = texts;
    for (int block = 0; block < N_BLOCKS; block++) {
        struct cr_sha256 sha;
        char hex[65];
        cr_sha256_init(&sha);
        for (int i = 0; i < BLOCK; i++, text += strlen(text) + 1) {
            ids.n = 0;
            assert_int_equal(cr_tokenizer_encode(t, text, strlen(text), flags, &ids, &err), CR_OK);
            add_ids(&sha, &ids);
        }
        cr_sha256_hex(&sha, hex);
        const char *want = want_hash(family, block * BLOCK);
        if (strncmp(hex, want, 16) != 0)
            fail_msg("%s: texts %d to %d differ: want %.16s, got %.16s", family, block * BLOCK,
                     block * BLOCK + BLOCK - 1, want, hex);
    }
    cr_free(ids.v);
}

/* Valid text comes back byte for byte. */
static void check_round_trip(const cr_tokenizer *t)
{
    struct cr_ids ids = {0};
    struct cr_error err;
    const char *text = texts;
    char back[1 << 16];
    for (int i = 0; i < N_TEXTS; i++, text += strlen(text) + 1) {
        size_t len = strlen(text), n = 0;
        if (cr_utf8_valid(text, len) < len)
            continue;
        ids.n = 0;
        assert_int_equal(cr_tokenizer_encode(t, text, len, 0, &ids, &err), CR_OK);
        for (size_t k = 0; k < ids.n; k++) {
            const char *bytes;
            size_t add_n = cr_tokenizer_bytes(t, ids.v[k], false, &bytes);
            assert_true(n + add_n <= sizeof back);
            memcpy(back + n, bytes, add_n);
            n += add_n;
        }
        assert_int_equal(n, len);
        assert_memory_equal(back, text, len);
    }
    cr_free(ids.v);
}

static void check_file(const char *family, const char *path, bool special)
{
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, path, &err), CR_OK);
    assert_int_equal(cr_tokenizer_new(&t, g, &err), CR_OK);
    check_family(family, t, 0);
    if (special) {
        char name[64];
        snprintf(name, sizeof name, "%s+special", family);
        check_family(name, t, CR_TOKENIZE_SPECIAL);
        check_round_trip(t);
    }
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_crayon_15m(void **state)
{
    (void)state;
    check_file("crayon-15m", CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", true);
}

static void test_stories260k(void **state)
{
    (void)state;
    check_file("stories260K", CR_SOURCE_DIR "/tests/data/stories260K.gguf", false);
}

/* The Llama 2 vocabulary is not free enough to be in the repository. */
static void test_llama2(void **state)
{
    (void)state;
    const char *path = getenv("CRAYON_LLAMA2_VOCAB");
    if (!path) {
        print_message("skip: CRAYON_LLAMA2_VOCAB does not name a GGUF file with its vocabulary\n");
        skip();
    }
    check_file("llama2", path, false);
}

static void test_smollm(void **state)
{
    (void)state;
    void *memory;
    cr_gguf *g;
    cr_tokenizer *t;
    open_xz_vocab("vocab-smollm", &memory, &g, &t);
    check_family("smollm", t, 0);
    check_family("smollm+special", t, CR_TOKENIZE_SPECIAL);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
    cr_free(memory);
}

/* The GPT-2 vocabulary with another pre-tokenizer in its file. */
static void check_pre(const cr_gguf *gpt2, const char *pre)
{
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct cr_error err;
    cr_gguf_writer *w = cr_gguf_writer_new();
    for (size_t i = 0; i < cr_gguf_n_kv(gpt2); i++)
        if (!cr_str_eq(cr_gguf_kv_at(gpt2, i)->key, "tokenizer.ggml.pre"))
            cr_gguf_put_kv(w, cr_gguf_kv_at(gpt2, i));
    cr_gguf_put_str(w, "tokenizer.ggml.pre", pre);
    assert_int_equal(cr_gguf_write(w, path, &err), CR_OK);
    cr_gguf_writer_free(w);
    check_file(pre, path, false);
    unlink(path);
}

static void test_gpt2_and_other_patterns(void **state)
{
    (void)state;
    void *memory;
    cr_gguf *g;
    cr_tokenizer *t;
    open_xz_vocab("vocab-gpt2", &memory, &g, &t);
    check_family("gpt-2", t, 0);
    check_round_trip(t);
    check_pre(g, "llama-bpe");
    check_pre(g, "qwen2");
    check_pre(g, "default");
    cr_tokenizer_free(t);
    cr_gguf_close(g);
    cr_free(memory);
}

int main(void)
{
#ifndef CRAYON_LZMA
    printf("skip: built without liblzma\n");
    return 0;
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crayon_15m),
        cmocka_unit_test(test_smollm),
        cmocka_unit_test(test_stories260k),
        cmocka_unit_test(test_llama2),
        cmocka_unit_test(test_gpt2_and_other_patterns),
    };
    return cmocka_run_group_tests(tests, read_texts, free_texts);
}
