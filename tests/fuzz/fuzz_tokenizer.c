/* SPDX-License-Identifier: Apache-2.0 */
/* Tokenizers. First byte even: the rest is a GGUF file whose vocabulary is loaded and used; odd:
 * the rest is text for the vocabularies of the 15M model (byte-level) and stories260K
 * (SentencePiece), bit 1 asking for special tokens. */
#include "base/utf8.h"
#include "model/chat.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char sample[] =
    "Ab  ab<s>\n\xC3\xA9\xFF 12 </s><|im_start|>\xE2\x96\x81\xF0\x9F\x98\x80";

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* Ids are in range, none is control unless asked for, and a byte-level vocabulary gives valid text
 * back (exact: every byte has a token). */
static void encode(const cr_tokenizer *t, const char *text, size_t len, unsigned flags, bool exact)
{
    struct cr_ids ids = {0};
    struct cr_error err;
    if (cr_tokenizer_encode(t, text, len, flags, &ids, &err)) {
        check(ids.n == 0 && err.msg[0]);
        cr_free(ids.v);
        return;
    }
    exact = exact && cr_utf8_valid(text, len) == len;
    for (size_t i = 0, at = 0; i < ids.n; i++) {
        check(ids.v[i] >= 0 && ids.v[i] < cr_tokenizer_size(t));
        check(flags || !cr_tokenizer_is_end(t, ids.v[i]));
        const char *bytes;
        size_t n = cr_tokenizer_bytes(t, ids.v[i], true, &bytes);
        check(!exact || (n <= len - at && memcmp(bytes, text + at, n) == 0));
        at += n;
        check(!exact || i + 1 < ids.n || at == len);
    }
    cr_free(ids.v);
}

static void chat(const cr_tokenizer *t, const char *content)
{
    const struct cr_message messages[] = {{"system", "s"}, {"user", content}};
    for (int c = CR_CHAT_CHATML; c < CR_CHAT_UNKNOWN; c++) {
        struct cr_ids ids = {0};
        struct cr_error err;
        enum cr_status status =
            cr_chat_encode((enum cr_chat)c, t, NULL, messages, 2, true, &ids, &err);
        check(status == CR_OK || (ids.n == 0 && err.msg[0]));
        cr_free(ids.v);
    }
}

static void use_file(const char *data, size_t size)
{
    cr_gguf *g;
    cr_tokenizer *t;
    struct cr_error err;
    if (cr_gguf_parse(&g, data, size, "fuzz", &err))
        return;
    struct cr_str text = {0};
    if (cr_gguf_str(g, "tokenizer.chat_template", false, &text, &err) == CR_OK)
        cr_free(cr_chat_default_system(cr_chat_recognise(text), text));
    if (cr_tokenizer_new(&t, g, &err)) {
        check(!t && err.msg[0]);
    } else {
        encode(t, sample, sizeof sample - 1, 0, false);
        encode(t, sample, sizeof sample - 1, CR_TOKENIZE_SPECIAL | CR_TOKENIZE_BOS, false);
        encode(t, data, size < 4096 ? size : 4096, 0, false);
        chat(t, " a<s> ");
        cr_tokenizer_free(t);
    }
    cr_gguf_close(g);
}

static void open_once(cr_gguf **g, cr_tokenizer **t, const char *path)
{
    if (!*t)
        check(cr_gguf_open(g, path, NULL) == CR_OK && cr_tokenizer_new(t, *g, NULL) == CR_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static cr_gguf *g[2]; /* these live as long as the process */
    static cr_tokenizer *bpe, *spm;
    open_once(&g[0], &bpe, CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf");
    open_once(&g[1], &spm, CR_SOURCE_DIR "/tests/data/stories260K.gguf");
    if (!size)
        return 0;
    size_t n = size - 1;
    char *copy = malloc(n ? n : 1); /* aligned, and of exactly the size */
    check(copy != NULL);
    memcpy(copy, data + 1, n);
    if (data[0] % 2 == 0) {
        use_file(copy, n);
    } else {
        unsigned flags = data[0] & 2 ? CR_TOKENIZE_SPECIAL : 0;
        encode(bpe, copy, n, flags, true);
        encode(spm, copy, n, flags, false);
        char *content = strndup(copy, n);
        check(content != NULL);
        chat(bpe, content);
        free(content);
    }
    free(copy);
    return 0;
}
