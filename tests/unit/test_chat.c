/* SPDX-License-Identifier: Apache-2.0 */
/* chat.c against transformers' apply_chat_template (tests/golden/chat.txt), recognising templates,
 * and refusals. */
#include "model/chat.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "test_vocab.h"

static const char smollm_system[] =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/* The vocabularies toy and toy2 of make_chat.py. */
static void open_toy(bool toy2, cr_gguf **g, cr_tokenizer **t)
{
    struct vocab v = chat_vocab(toy2 ? CHAT_MARKS : 9);
    struct cr_error err;
    assert_int_equal(open_vocab(&v, g, t, &err), CR_OK);
}

/* ---- the golden file ---- */

enum { MAX_MESSAGES = 8, MAX_IDS = 1024 };
struct chat_case {
    char name[16], vocab[16];
    int open;
    struct cr_message messages[MAX_MESSAGES];
    size_t n;
    int32_t ids[MAX_IDS];
    size_t n_ids;
};

static char *unescape_line(char *s)
{
    char *out = s;
    for (char *p = s; *p; p++)
        *out++ = *p != '\\' ? *p : *++p == 'n' ? '\n' : *p;
    *out = '\0';
    return s;
}

/* Reads the next case; strings point into text. False at the end. */
static bool next_case(char **text, struct chat_case *c)
{
    c->n = c->n_ids = 0;
    while (**text) {
        char *line = *text, *end = strchr(line, '\n');
        *text = end + 1;
        *end = '\0';
        char *space = strchr(line, ' ');
        if (!space)
            return true;
        *space = '\0';
        char *value = space + 1;
        if (strcmp(line, "case") == 0) {
            assert_int_equal(sscanf(value, "%15s %15s %d", c->name, c->vocab, &c->open), 3);
        } else if (strcmp(line, "ids") == 0) {
            for (char *p = value; *p && c->n_ids < MAX_IDS;)
                c->ids[c->n_ids++] = (int32_t)strtol(p, &p, 10);
        } else if (strcmp(line, "text") != 0) {
            assert_true(c->n < MAX_MESSAGES);
            c->messages[c->n++] = (struct cr_message){line, unescape_line(value)};
        }
    }
    return false;
}

static void check_vocab(const char *vocab, const cr_tokenizer *t, const char *default_system,
                        int want_cases)
{
    char *data;
    size_t len;
    struct cr_error err;
    assert_int_equal(
        cr_file_read(CR_SOURCE_DIR "/tests/golden/chat.txt", 1 << 20, &data, &len, &err), CR_OK);
    struct chat_case c;
    int n = 0;
    for (char *p = data; next_case(&p, &c);) {
        if (strcmp(c.vocab, vocab) != 0)
            continue;
        struct cr_ids ids = {0};
        enum cr_chat chat = cr_chat_by_name(c.name);
        assert_int_equal(
            cr_chat_encode(chat, t, default_system, c.messages, c.n, c.open, &ids, &err), CR_OK);
        for (size_t i = 0; i < ids.n && i < c.n_ids; i++)
            if (ids.v[i] != c.ids[i])
                fail_msg("%s %s case %d, id %zu: want %d, got %d", c.name, vocab, n, i, c.ids[i],
                         ids.v[i]);
        assert_int_equal(ids.n, c.n_ids);
        cr_free(ids.v);
        n++;
    }
    assert_int_equal(n, want_cases);
    cr_free(data);
}

static void test_golden_toy(void **state)
{
    (void)state;
    for (int toy2 = 0; toy2 < 2; toy2++) {
        cr_gguf *g;
        cr_tokenizer *t;
        open_toy(toy2, &g, &t);
        check_vocab(toy2 ? "toy2" : "toy", t, NULL, toy2 ? 36 : 30);
        cr_tokenizer_free(t);
        cr_gguf_close(g);
    }
}

static struct cr_str template_of(const cr_gguf *g)
{
    struct cr_str s = {0};
    assert_int_equal(cr_gguf_str(g, "tokenizer.chat_template", true, &s, NULL), CR_OK);
    return s;
}

static void test_golden_crayon_15m(void **state)
{
    (void)state;
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &err), CR_OK);
    assert_int_equal(cr_tokenizer_new(&t, g, &err), CR_OK);
    enum cr_chat chat = cr_chat_recognise(template_of(g));
    assert_int_equal(chat, CR_CHAT_CHATML);
    char *system = cr_chat_default_system(chat, template_of(g));
    assert_string_equal(system, "");
    check_vocab("crayon-15m", t, system, 12);
    cr_free(system);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_golden_smollm(void **state)
{
    (void)state;
    void *memory;
    cr_gguf *g;
    cr_tokenizer *t;
    if (!open_xz_vocab("vocab-smollm", &memory, &g, &t))
        skip();
    enum cr_chat chat = cr_chat_recognise(template_of(g));
    assert_int_equal(chat, CR_CHAT_CHATML);
    char *system = cr_chat_default_system(chat, template_of(g));
    assert_string_equal(system, smollm_system);
    check_vocab("smollm", t, system, 12);
    cr_free(system);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
    cr_free(memory);
}

/* ---- recognising ---- */

static struct cr_str str(const char *s)
{
    return (struct cr_str){s, strlen(s)};
}

static void test_recognise(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum cr_chat want;
    } cases[] = {
        {"", CR_CHAT_NONE},
        {"{{ '<|im_start|>' + m.role }}", CR_CHAT_CHATML},
        {"{{ '<|im_start|>user<|im_sep|>' }}", CR_CHAT_UNKNOWN},
        {"{{ '<|start_header_id|>' + x + '<|end_header_id|>' + y + '<|eot_id|>' }}",
         CR_CHAT_LLAMA3},
        {"{{ '<start_of_turn>' + role }}", CR_CHAT_GEMMA},
        {"{{ '[INST] <<SYS>>' }}", CR_CHAT_LLAMA2},
        {"{{ '[INST] ' + m.content + ' [/INST]' }}", CR_CHAT_MISTRAL},
        {"{{ '[SYSTEM_PROMPT]' }}{{ '[INST]' }}", CR_CHAT_UNKNOWN},
        {"{{ '<|user|>\n' + m.content + eos_token }}<|assistant|>", CR_CHAT_ZEPHYR},
        {"{{ '<|user|>\n' + m.content + '<|end|>' }}<|assistant|>{{ eos_token }}", CR_CHAT_PHI3},
        {"{{ '<|user|>\n' + m.content }}<|assistant|>", CR_CHAT_UNKNOWN},
        {"{% for m in messages %}{{ m.content }}{% endfor %}", CR_CHAT_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(cr_chat_recognise(str(cases[i].text)), cases[i].want);
    for (int c = CR_CHAT_CHATML; c < CR_CHAT_UNKNOWN; c++)
        assert_int_equal(cr_chat_by_name(cr_chat_name((enum cr_chat)c)), c);
    assert_int_equal(cr_chat_by_name("wizard"), CR_CHAT_UNKNOWN);
    assert_int_equal(cr_chat_by_name(""), CR_CHAT_UNKNOWN);
    assert_int_equal(cr_chat_by_name("unknown"), CR_CHAT_UNKNOWN);
}

/* 21: a template is looked at, never run: loops, doubling, attribute walks and missing variables
 * cost no more than their length, and nobody's text becomes a template. */
static void test_attack_21_templates_are_not_run(void **state)
{
    (void)state;
    static const char *const evil[] = {
        "{% for a in range(1000000000) %}{% for b in range(1000000000) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 1000000000 }}",
        "{% set s = 'x' %}{% for i in range(64) %}{% set s = s + s %}{% endfor %}{{ s }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ no_such_variable.attribute[9] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}"};
    for (size_t i = 0; i < sizeof evil / sizeof *evil; i++) {
        assert_int_equal(cr_chat_recognise(str(evil[i])), CR_CHAT_UNKNOWN);
        /* Behind the marks of a known one: that one, as it is written here. */
        char text[256];
        snprintf(text, sizeof text, "{{ '<|im_start|>' + m.role }}%s", evil[i]);
        assert_int_equal(cr_chat_recognise(str(text)), CR_CHAT_CHATML);
        char *system = cr_chat_default_system(CR_CHAT_CHATML, str(text));
        assert_string_equal(system, "");
        cr_free(system);
    }
    enum { N = 1 << 20 };
    char *big = malloc(N + 1);
    assert_non_null(big);
    for (size_t i = 0; i < N; i += 2)
        memcpy(big + i, "{{", 2);
    big[N] = '\0';
    assert_int_equal(cr_chat_recognise(str(big)), CR_CHAT_UNKNOWN);
    for (size_t i = 0; i + 12 <= N; i += 12)
        memcpy(big + i, "<|im_start|>", 12);
    assert_int_equal(cr_chat_recognise(str(big)), CR_CHAT_CHATML);
    char *system = cr_chat_default_system(CR_CHAT_CHATML, str(big));
    assert_string_equal(system, "");
    cr_free(system);
    free(big);
}

static void check_default(const char *text, const char *want)
{
    char *got = cr_chat_default_system(CR_CHAT_CHATML, str(text));
    assert_string_equal(got, want);
    cr_free(got);
}

static void test_default_system(void **state)
{
    (void)state;
    check_default("{{ '<|im_start|>system\\nYou\\'re \\\\ it.\\n<|im_end|>\\n' }}",
                  "You're \\ it.\n");
    check_default("{{ \"<|im_start|>system\nDon't.<|im_end|>\" }}", "Don't.");
    check_default("{% if x %}<|im_start|>system\nPlain.<|im_end|>{% endif %}", "Plain.");
    check_default("{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>' }}"
                  "{{ '<|im_start|>system\\nSecond.<|im_end|>' }}",
                  "Second.");
    check_default("<|im_start|>system\n{{ system }}<|im_end|>", "");
    check_default("<|im_start|>system", "");
    check_default("<|im_start|>system\\n", "");
    check_default("<|im_start|>system\\n<|im_end|>", "");
    check_default("", "");
    char *none = cr_chat_default_system(CR_CHAT_LLAMA2, str("<|im_start|>system\nX<|im_end|>"));
    assert_string_equal(none, "");
    cr_free(none);
}

/* ---- refusals ---- */

static void refuse(enum cr_chat c, const cr_tokenizer *t, const struct cr_message *m, size_t n,
                   enum cr_status want, const char *text)
{
    struct cr_error err = {0};
    struct cr_ids ids = {0};
    assert_int_equal(cr_chat_encode(c, t, NULL, m, n, true, &ids, &err), want);
    assert_int_equal(ids.n, 0);
    if (!strstr(err.msg, text))
        fail_msg("message \"%s\" lacks \"%s\"", err.msg, text);
    cr_free(ids.v);
}

static void test_refusals(void **state)
{
    (void)state;
    cr_gguf *g, *g2;
    cr_tokenizer *t, *bare;
    struct cr_error err;
    open_toy(false, &g, &t);
    struct vocab v = byte_vocab("gpt-2");
    assert_int_equal(open_vocab(&v, &g2, &bare, &err), CR_OK);
    const struct cr_message user[] = {{"user", "a"}, {"user", "b"}};
    const struct cr_message wizard[] = {{"user", "a"}, {"wizard", "b"}};
    const struct cr_message empty[] = {{"user", NULL}, {NULL, "x"}};
    const struct cr_message late[] = {{"user", "a"}, {"system", "b"}};
    const struct cr_message system[] = {{"system", "a"}};
    refuse(CR_CHAT_CHATML, t, NULL, 0, CR_INVALID, "no messages");
    refuse(CR_CHAT_CHATML, t, wizard, 2, CR_INVALID, "wizard");
    refuse(CR_CHAT_CHATML, t, empty, 1, CR_INVALID, "no content");
    refuse(CR_CHAT_CHATML, t, empty + 1, 1, CR_INVALID, "no role");
    refuse(CR_CHAT_LLAMA2, t, user, 2, CR_INVALID, "message 1: want the role assistant");
    refuse(CR_CHAT_GEMMA, t, late, 2, CR_INVALID, "found system");
    refuse(CR_CHAT_MISTRAL, t, system, 1, CR_INVALID, "no user message");
    refuse(CR_CHAT_NONE, t, user, 1, CR_UNSUPPORTED, "--template");
    refuse(CR_CHAT_UNKNOWN, t, user, 1, CR_UNSUPPORTED, "--template");
    refuse(CR_CHAT_CHATML, bare, user, 1, CR_UNSUPPORTED, "<|im_start|>");
    refuse(CR_CHAT_LLAMA2, bare, user, 1, CR_UNSUPPORTED, "beginning of text");
    refuse(CR_CHAT_ZEPHYR, bare, user, 1, CR_UNSUPPORTED, "end of text");
    refuse(CR_CHAT_PHI3, t, user, 1, CR_UNSUPPORTED, "<|user|>");
    cr_tokenizer_free(bare);
    cr_gguf_close(g2);
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    cr_gguf *g;
    cr_tokenizer *t;
    open_toy(true, &g, &t);
    const struct cr_message m[] = {{"system", "be brief"}, {"user", "a"}};
    size_t before = cr_mem_now();
    enum cr_status status = CR_NO_MEMORY;
    for (uint64_t n = 1; status != CR_OK; n++) {
        assert_true(n < 1000);
        struct cr_ids ids = {0};
        cr_mem_fail_at(n, true);
        status = cr_chat_encode(CR_CHAT_MISTRAL, t, NULL, m, 2, true, &ids, NULL);
        cr_mem_fail_at(0, false);
        assert_true(status == CR_OK || (status == CR_NO_MEMORY && ids.n == 0));
        cr_free(ids.v);
        assert_int_equal(cr_mem_now(), before);
    }
    cr_tokenizer_free(t);
    cr_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_toy),
        cmocka_unit_test(test_golden_crayon_15m),
        cmocka_unit_test(test_golden_smollm),
        cmocka_unit_test(test_recognise),
        cmocka_unit_test(test_attack_21_templates_are_not_run),
        cmocka_unit_test(test_default_system),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
