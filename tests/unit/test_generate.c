/* SPDX-License-Identifier: Apache-2.0 */
/*
 * generate.c: models that write a known text, so that stop strings, characters cut by tokens,
 * limits and cancelling can be checked byte by byte; and the same text from the same seed.
 */
#include "unit/tiny_gguf.h"

#include "base/utf8.h"
#include "model/session.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define MODEL CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf"

struct heard {
    char text[4096];
    size_t n, n_texts, n_tokens, cancel_text_at, cancel_token_at; /* at 0: never */
    int32_t ids[512];
};

static bool on_text(void *ud, const char *text, size_t n)
{
    struct heard *h = ud;
    assert_true(n > 0 && h->n + n < sizeof h->text);
    assert_int_equal(cr_utf8_valid(text, n), n); /* whole characters, always */
    memcpy(h->text + h->n, text, n);
    h->n += n;
    h->text[h->n] = '\0';
    return ++h->n_texts != h->cancel_text_at;
}

static bool on_token(void *ud, int32_t id, float logprob)
{
    struct heard *h = ud;
    assert_true(logprob <= 1e-5f && logprob > -1e4f);
    assert_true(h->n_tokens < 512);
    h->ids[h->n_tokens++] = id;
    return h->n_tokens != h->cancel_token_at;
}

static struct cr_generate request(struct heard *h, const int32_t *prompt, size_t n)
{
    *h = (struct heard){.n = 0};
    return (struct cr_generate){.prompt = prompt,
                                .n_prompt = n,
                                .max_tokens = 100,
                                .sampling = {.top_p = 1, .repeat_penalty = 1},
                                .on_text = on_text,
                                .on_token = on_token,
                                .ud = h};
}

/* A model that writes text after its first byte, and a session of n_ctx tokens on it. */
static cr_session *scripted(const char *text, int n_ctx)
{
    uint8_t next[256];
    struct tiny t = tiny_script(text, next);
    const struct cr_model_options opt = {.n_threads = 1};
    cr_model *m = tiny_open(&t, &opt);
    cr_session *s;
    struct cr_error err;
    assert_int_equal(cr_session_new(&s, m, n_ctx, &err), CR_OK);
    return s;
}

static void done(cr_session *s)
{
    cr_model *m = cr_session_model(s);
    cr_session_free(s);
    cr_model_close(m);
}

static struct cr_generated run(cr_session *s, const struct cr_generate *g)
{
    struct cr_generated out;
    struct cr_error err;
    if (cr_generate(s, g, &out, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return out;
}

static void test_writes_the_text_and_ends(void **state)
{
    (void)state;
    cr_session *s = scripted("Hi, world\xC3\xA9!", 0);
    const int32_t prompt[] = {'H'};
    struct heard h;
    struct cr_generate g = request(&h, prompt, 1);
    struct cr_generated out = run(s, &g);
    assert_string_equal(h.text, "i, world\xC3\xA9!");
    assert_int_equal(out.finish, CR_FINISH_STOP);
    assert_int_equal(out.n_decode, 12);
    assert_int_equal(h.n_tokens, 12); /* the end token is told, too */
    assert_int_equal(h.ids[11], TINY_END);
    assert_int_equal(out.n_prefill, 1);
    assert_int_equal(out.n_cached, 0);
    assert_true(out.prefill_ms >= 0 && out.decode_ms >= 0 && out.first_token_ms > 0);
    g = request(&h, prompt, 1); /* and again on the same session */
    run(s, &g);
    assert_string_equal(h.text, "i, world\xC3\xA9!");
    done(s);
}

/* Text after the first byte of `script`, with these stop strings. */
static void expect(const char *script, const char *const *stop, size_t n_stop, const char *want,
                   bool stopped)
{
    cr_session *s = scripted(script, 0);
    const int32_t prompt[] = {(unsigned char)script[0]};
    struct heard h;
    struct cr_generate g = request(&h, prompt, 1);
    g.stop = stop;
    g.n_stop = n_stop;
    struct cr_generated out = run(s, &g);
    if (strcmp(h.text, want) != 0)
        fail_msg("\"%s\": want \"%s\", found \"%s\"", script, want, h.text);
    assert_int_equal(out.finish, CR_FINISH_STOP);
    assert_int_equal(h.ids[h.n_tokens - 1] == TINY_END, !stopped);
    done(s);
}

static void test_stop_strings(void **state)
{
    (void)state;
#define STOP(...) (const char *const[]){__VA_ARGS__}, sizeof(char *[]){__VA_ARGS__} / sizeof(char *)
    expect("0abcdefgh", STOP("def"), "abc", true);
    expect("0abcdefgh", STOP("a"), "", true);
    expect("0abcdefgh", STOP("h"), "abcdefg", true);
    expect("0abcdefgh", STOP("0a"), "abcdefgh", false); /* the prompt is not part of the text */
    expect("0abcdefgh", STOP("defX", "ghX", "Xa"), "abcdefgh", false);
    expect("0abcdefgh", STOP("bcd", "cd", "d"), "a", true); /* end together: the longest */
    expect("0abcdefgh", STOP("bcdef", "cd"), "ab", true);   /* the one that ends first */
    expect("0abcdefgh", STOP("cdeX", "defg"), "abc", true); /* a false start before the true one */
    expect("0a\xF0\x9F\x98\x80z", STOP("\xF0\x9F\x98\x80"), "a", true);
    expect("0a\xF0\x9F\x98\x80z", STOP("\xF0\x9F\x98\x81"), "a\xF0\x9F\x98\x80z", false);
}

static void test_characters_are_never_cut(void **state)
{
    (void)state;
    expect("0a\xE2\x82\xAC"
           "b\xF0\x9F\x98\x80",
           NULL, 0,
           "a\xE2\x82\xAC"
           "b\xF0\x9F\x98\x80",
           false);
    /* bytes that are no UTF-8: U+FFFD for each ill-formed part, also at the end */
    expect("0a\xFF"
           "b",
           NULL, 0,
           "a\xEF\xBF\xBD"
           "b",
           false);
    expect("0a\xF0\x9F"
           "b",
           NULL, 0,
           "a\xEF\xBF\xBD"
           "b",
           false);
    expect("0a\xF0\x9F\x98", NULL, 0, "a\xEF\xBF\xBD", false);
    /* cut by the number of tokens */
    cr_session *s = scripted("0a\xF0\x9F\x98\x80", 0);
    const int32_t prompt[] = {'0'};
    struct heard h;
    struct cr_generate g = request(&h, prompt, 1);
    g.max_tokens = 3;
    assert_int_equal(run(s, &g).finish, CR_FINISH_LENGTH);
    assert_string_equal(h.text, "a\xEF\xBF\xBD");
    done(s);
}

static void test_limits(void **state)
{
    (void)state;
    cr_session *s = scripted("0abcdefgh", 6);
    const int32_t prompt[] = {'0', 'a', 'b', 'c', 'd', 'e', 'f'};
    struct heard h;
    struct cr_error err;
    struct cr_generated out;
    struct cr_generate g = request(&h, prompt, 1);
    g.max_tokens = 0;
    assert_int_equal(run(s, &g).finish, CR_FINISH_LENGTH);
    assert_int_equal(h.n_tokens, 0);
    assert_int_equal(cr_session_length(s), 1);
    g.max_tokens = 3;
    out = run(s, &g);
    assert_int_equal(out.finish, CR_FINISH_LENGTH);
    assert_string_equal(h.text, "abc");
    g = request(&h, prompt, 1); /* six cells: the prompt, five tokens; a sixth is chosen, not run */
    out = run(s, &g);
    assert_int_equal(out.finish, CR_FINISH_LENGTH);
    assert_int_equal(out.n_decode, 6);
    assert_string_equal(h.text, "abcdef");
    g = request(&h, prompt, 6); /* a prompt that fills it */
    out = run(s, &g);
    assert_string_equal(h.text, "f");
    assert_int_equal(out.n_cached, 5);
    g = request(&h, prompt, 7);
    assert_int_equal(cr_generate(s, &g, &out, &err), CR_LIMIT);
    g = request(&h, prompt, 0);
    assert_int_equal(cr_generate(s, &g, &out, &err), CR_INVALID);
    g = request(&h, prompt, 1);
    g.max_tokens = -1;
    assert_int_equal(cr_generate(s, &g, NULL, &err), CR_INVALID);
    g = request(&h, prompt, 1);
    g.sampling.temperature = -1;
    assert_int_equal(cr_generate(s, &g, NULL, NULL), CR_INVALID);
    done(s);
}

static void test_limits_of_stop_strings(void **state)
{
    (void)state;
    cr_session *s = scripted("0ab", 0);
    const int32_t prompt[] = {'0'};
    static char longest[1026];
    const char *stop[65];
    struct heard h;
    struct cr_error err;
    memset(longest, 'x', 1024);
    for (int i = 0; i < 65; i++)
        stop[i] = longest;
    struct cr_generate g = request(&h, prompt, 1);
    g.stop = stop;
    g.n_stop = 64;
    run(s, &g);
    assert_string_equal(h.text, "ab");
    g.n_stop = 65;
    assert_int_equal(cr_generate(s, &g, NULL, &err), CR_LIMIT);
    g.n_stop = 1;
    longest[1024] = 'x';
    assert_int_equal(cr_generate(s, &g, NULL, &err), CR_LIMIT);
    longest[0] = '\0';
    assert_int_equal(cr_generate(s, &g, NULL, &err), CR_INVALID);
    done(s);
}

static void test_cancel(void **state)
{
    (void)state;
    cr_session *s = scripted("0abcdefgh", 0);
    const int32_t prompt[] = {'0'};
    struct heard h;
    struct cr_generate g = request(&h, prompt, 1);
    h.cancel_text_at = 2;
    assert_int_equal(run(s, &g).finish, CR_FINISH_CANCELLED);
    assert_string_equal(h.text, "ab");
    g = request(&h, prompt, 1);
    h.cancel_token_at = 3;
    assert_int_equal(run(s, &g).finish, CR_FINISH_CANCELLED);
    assert_string_equal(h.text, "ab");
    g = request(&h, prompt, 1); /* nobody listens */
    g.on_text = NULL;
    g.on_token = NULL;
    assert_int_equal(run(s, &g).n_decode, 9);
    done(s);
}

static void test_past_the_end_token(void **state)
{
    (void)state;
    cr_session *s = scripted("0ab", 0);
    const int32_t prompt[] = {'0'};
    struct heard h;
    struct cr_generate g = request(&h, prompt, 1);
    g.ignore_end = true;
    g.max_tokens = 10;
    struct cr_generated out = run(s, &g);
    assert_int_equal(out.n_decode, 10);
    assert_int_equal(out.finish, CR_FINISH_LENGTH);
    assert_memory_equal(h.text, "ab", 2); /* the control token itself has no text */
    done(s);
}

/* A model whose weights hold a NaN gives an error, not a wrong text (ATTACKS 10). */
static void put_nan(cr_gguf_writer *w)
{
    static float norm[64];
    for (int i = 0; i < 64; i++)
        norm[i] = NAN;
    cr_gguf_put_tensor(w, "output_norm.weight", CR_F32, 1, (uint64_t[]){64}, norm);
}

static void test_10_weights_that_are_no_numbers(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.without = "output_norm.weight";
    t.extra = put_nan;
    cr_model *m = tiny_open(&t, NULL);
    cr_session *s;
    struct cr_error err;
    assert_int_equal(cr_session_new(&s, m, 0, &err), CR_OK);
    const int32_t prompt[] = {1, 2};
    struct heard h;
    for (int i = 0; i < 2; i++) {
        struct cr_generate g = request(&h, prompt, 2);
        g.sampling.temperature = (float)i;
        assert_int_equal(cr_generate(s, &g, NULL, &err), CR_FORMAT);
        assert_non_null(strstr(err.msg, "not a number"));
        assert_int_equal(h.n_tokens, 0);
    }
    done(s);
}

/* The same seed, the same text: at any thread count, cold or with a warm cache; and no allocation
 * per token. */
static void test_same_seed_same_text(void **state)
{
    (void)state;
    int32_t *ids = NULL;
    size_t n;
    char first[4096] = "";
    for (int threads = 1; threads <= 3; threads++) {
        const struct cr_model_options opt = {.n_threads = threads};
        cr_model *m;
        cr_session *s;
        struct cr_error err;
        if (cr_model_open(&m, MODEL, &opt, &err) != CR_OK)
            fail_msg("%s", err.msg);
        assert_int_equal(cr_session_new(&s, m, 256, &err), CR_OK);
        const char *text = "The old man went down to the sea and";
        assert_int_equal(cr_tokenize(m, text, strlen(text), 0, &ids, &n, &err), CR_OK);
        uint64_t counts[2];
        for (int round = 0; round < 2; round++) {
            struct heard h;
            struct cr_generate g = request(&h, ids, n);
            g.sampling = cr_sampling_default();
            g.sampling.seed = 42;
            g.max_tokens = round ? 40 : 20;
            g.ignore_end = true;
            counts[round] = cr_mem_count();
            struct cr_generated out = run(s, &g);
            counts[round] = cr_mem_count() - counts[round];
            assert_int_equal(out.n_cached, round ? n - 1 : 0);
            if (round && threads == 1)
                memcpy(first, h.text, sizeof first);
            else if (round)
                assert_string_equal(h.text, first);
            else if (threads > 1)
                assert_memory_equal(h.text, first, h.n);
        }
        assert_int_equal(counts[0], counts[1]);
        cr_free(ids);
        cr_session_free(s);
        cr_model_close(m);
    }
    assert_true(strlen(first) > 20);
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    cr_session *s = scripted("0abcdefgh", 0);
    const int32_t prompt[] = {'0'};
    size_t before = cr_mem_now();
    bool ok = false;
    for (uint64_t n = 1; !ok; n++) {
        struct heard h;
        struct cr_error err;
        struct cr_generate g = request(&h, prompt, 1);
        cr_mem_fail_at(n, false);
        enum cr_status status = cr_generate(s, &g, NULL, &err);
        cr_mem_fail_at(0, false);
        ok = status == CR_OK;
        if (!ok)
            assert_int_equal(status, CR_NO_MEMORY);
        assert_int_equal(cr_mem_now(), before);
    }
    done(s);
}

/* Guesses change nothing but the number of passes: ids, finish and the last logits are those of
 * plain decoding, greedy and not, to the end of the context; and the session goes on as if nothing
 * had been guessed. */
static void test_guesses_change_nothing(void **state)
{
    (void)state;
    cr_model *m, *small;
    struct cr_error err;
    assert_int_equal(cr_model_open(&m, MODEL, NULL, &err), CR_OK);
    assert_int_equal(cr_model_open(&small, MODEL, NULL, &err), CR_OK);
    int32_t *prompt;
    size_t n, guessed = 0, accepted = 0;
    const char *text = "one two three four. one two three four. one two three four. one two";
    assert_int_equal(cr_tokenize(m, text, strlen(text), 0, &prompt, &n, &err), CR_OK);
    for (int trial = 0; trial < 12; trial++) {
        int n_ctx = trial % 3 == 2 ? (int)n + 30 : (int)n + 120;
        cr_session *plain, *s, *draft;
        assert_int_equal(cr_session_new(&plain, m, n_ctx, &err), CR_OK);
        assert_int_equal(cr_session_new(&s, m, n_ctx, &err), CR_OK);
        assert_int_equal(cr_session_new(&draft, small, n_ctx, &err), CR_OK);
        struct heard a, b;
        struct cr_generate g = request(&a, prompt, n);
        g.ignore_end = trial % 2;
        g.sampling = cr_sampling_default();
        g.sampling.temperature = trial % 4 < 2 ? 0 : 0.6f;
        g.sampling.repeat_penalty = trial % 4 == 1 ? 1.1f : 1;
        g.sampling.seed = (uint64_t)trial;
        struct cr_generated x = run(plain, &g), y;
        struct cr_generate h = request(&b, prompt, n);
        g.ud = h.ud;
        g.lookup = trial % 3 != 1;
        g.draft = trial % 3 ? draft : NULL;
        y = run(s, &g);
        assert_int_equal(x.n_decode, y.n_decode);
        assert_int_equal(x.finish, y.finish);
        assert_memory_equal(a.ids, b.ids, a.n_tokens * sizeof *a.ids);
        assert_string_equal(a.text, b.text);
        size_t V = (size_t)m->n_vocab;
        assert_memory_equal(cr_session_logits(plain), cr_session_logits(s), V * sizeof(float));
        assert_int_equal(cr_session_length(plain), cr_session_length(s));
        if (cr_session_length(s) < n_ctx) {
            assert_int_equal(cr_session_step(plain, 5, &err), CR_OK);
            assert_int_equal(cr_session_step(s, 5, &err), CR_OK);
            assert_memory_equal(cr_session_logits(plain), cr_session_logits(s), V * sizeof(float));
        }
        assert_int_equal(x.n_guessed, 0);
        guessed += y.n_guessed;
        accepted += y.n_accepted;
        cr_session_free(plain);
        cr_session_free(s);
        cr_session_free(draft);
    }
    assert_true(accepted > 0 && accepted < guessed);
    /* a draft with another vocabulary is refused */
    cr_session *s, *other = scripted("Hi", 0);
    assert_int_equal(cr_session_new(&s, m, 64, &err), CR_OK);
    struct heard h;
    struct cr_generate g = request(&h, prompt, 3);
    g.draft = other;
    assert_int_equal(cr_generate(s, &g, NULL, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "draft model: want a vocabulary of 8192"));
    done(other);
    cr_session_free(s);
    cr_free(prompt);
    cr_model_close(small);
    cr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes_the_text_and_ends),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_characters_are_never_cut),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_limits_of_stop_strings),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_past_the_end_token),
        cmocka_unit_test(test_10_weights_that_are_no_numbers),
        cmocka_unit_test(test_same_seed_same_text),
        cmocka_unit_test(test_guesses_change_nothing),
        cmocka_unit_test(test_every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
