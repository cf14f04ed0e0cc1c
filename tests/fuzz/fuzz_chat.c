/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat templates. First byte even: the rest is the template of a file, which is recognised and
 * whose default system message is taken out. Odd: the rest is messages, each ended by 0xff, whose
 * first byte picks the role; two templates are tried, of the six. Whatever they say, their encoding
 * holds the control tokens of the same turns with the text "x" (or none where there was none), and
 * no others.
 */
#include <stdlib.h>
#include <string.h>

static void check(int ok)
{
    if (!ok)
        abort();
}
#define assert_true(x) check(!!(x))
#define assert_non_null(x) check(!!(x))
#define assert_null(x) check(!(x))
#define assert_int_equal(a, b) check((a) == (b))
#define print_message(x) ((void)0)

#include "../test_vocab.h"
#include "model/chat.h"

enum { MAX_MESSAGES = 5, MAX_CONTENT = 200 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __lsan_disable(void) __attribute__((weak));
void __lsan_enable(void) __attribute__((weak));

/* A byte-level vocabulary with the control tokens of every template; ids from 256 are control. */
static const cr_tokenizer *vocabulary(void)
{
    static cr_gguf *g; /* these live as long as the process */
    static cr_tokenizer *t;
    if (!t) {
        struct vocab v = chat_vocab(CHAT_MARKS);
        /* Empty arrays point past their end, which LeakSanitizer takes for lost. */
        if (__lsan_disable)
            __lsan_disable();
        check(open_vocab(&v, &g, &t, NULL) == CR_OK);
        if (__lsan_enable)
            __lsan_enable();
    }
    return t;
}

static enum cr_status encode(enum cr_chat c, const char *system, const struct cr_message *m,
                             size_t n, bool open, struct cr_ids *ids)
{
    struct cr_error err = {.msg = ""};
    enum cr_status status = cr_chat_encode(c, vocabulary(), system, m, n, open, ids, &err);
    check(status == CR_OK || (ids->n == 0 && err.msg[0]));
    return status;
}

/* The control ids of a, in order, are those of b. */
static void same_control(const struct cr_ids *a, const struct cr_ids *b)
{
    size_t i = 0, k = 0;
    for (;;) {
        while (i < a->n && a->v[i] < 256)
            i++;
        while (k < b->n && b->v[k] < 256)
            k++;
        if (i == a->n || k == b->n)
            break;
        check(a->v[i++] == b->v[k++]);
    }
    check(i == a->n && k == b->n);
}

static void use_template(const char *data, size_t size)
{
    const struct cr_message ask[] = {{"user", "x"}}, told[] = {{"system", "x"}, {"user", "x"}};
    const struct cr_str text = {data, size};
    enum cr_chat c = cr_chat_recognise(text);
    check(c <= CR_CHAT_UNKNOWN && (size || c == CR_CHAT_NONE));
    char *system = cr_chat_default_system(c, text);
    check(system && strlen(system) <= size);
    struct cr_ids got = {0}, plain = {0};
    if (c != CR_CHAT_NONE && c != CR_CHAT_UNKNOWN &&
        encode(c, system, ask, 1, true, &got) == CR_OK &&
        encode(c, NULL, *system ? told : ask, *system ? 2 : 1, true, &plain) == CR_OK)
        same_control(&got, &plain);
    cr_free(got.v);
    cr_free(plain.v);
    cr_free(system);
}

static void use_messages(const uint8_t *data, size_t size)
{
    static const char *const roles[] = {"user", "assistant", "system", "tool", "", "User"};
    static char texts[MAX_MESSAGES][MAX_CONTENT];
    struct cr_message said[MAX_MESSAGES], plain[MAX_MESSAGES];
    size_t n = 0;
    for (size_t at = 0; at < size && n < MAX_MESSAGES; n++) {
        const uint8_t *end = memchr(data + at, 0xff, size - at);
        size_t len = end ? (size_t)(end - data) - at : size - at;
        const char *role = roles[data[at] % 6];
        size_t body = len ? len - 1 : 0;
        body = body < MAX_CONTENT - 1 ? body : MAX_CONTENT - 1;
        memcpy(texts[n], data + at + 1, body);
        texts[n][body] = '\0';
        said[n] = (struct cr_message){role, texts[n]};
        plain[n] = (struct cr_message){role, texts[n][0] ? "x" : ""};
        at += len + 1;
    }
    const int n_templates = CR_CHAT_UNKNOWN - CR_CHAT_CHATML;
    for (int i = 0; i < 2; i++) {
        const int c = CR_CHAT_CHATML + (int)(size + (size_t)i * 3) % n_templates;
        struct cr_ids a = {0}, b = {0};
        enum cr_status x = encode((enum cr_chat)c, NULL, said, n, size % 2, &a);
        enum cr_status y = encode((enum cr_chat)c, NULL, plain, n, size % 2, &b);
        check(x == y);
        if (x == CR_OK)
            same_control(&a, &b);
        cr_free(a.v);
        cr_free(b.v);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    if (data[0] % 2)
        use_messages(data + 1, size - 1);
    else
        use_template((const char *)data + 1, size - 1);
    return 0;
}
