/* SPDX-License-Identifier: Apache-2.0 */
/* Masking of any messages with any pattern: what comes back is what went in, whole or in pieces. */
#include "route/mask.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_MESSAGES = 8 };

static void check(bool right)
{
    if (!right)
        abort();
}

/* The first byte picks sizes of pieces; the rest is messages, each ended by 0xff. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static cr_masker *masker;
    static const char *const patterns[] = {"(a+)+b", "proj-[0-9]+"};
    struct cr_message messages[MAX_MESSAGES];
    char *texts[MAX_MESSAGES];
    size_t n = 0;
    if (!masker)
        check(cr_masker_new(&masker, patterns, 2, NULL) == CR_OK);
    if (size < 1)
        return 0;
    for (size_t at = 1; at < size && n < MAX_MESSAGES; n++) {
        const uint8_t *end = memchr(data + at, 0xff, size - at);
        size_t len = end ? (size_t)(end - data) - at : size - at;
        texts[n] = cr_strndup((const char *)data + at, len);
        messages[n] = (struct cr_message){n % 2 ? "assistant" : "user", texts[n]};
        at += len + 1;
    }
    cr_mask *m;
    const struct cr_message *masked;
    if (cr_mask_new(&m, masker, messages, n, &masked, NULL) == CR_OK) {
        for (size_t i = 0; i < n; i++) {
            struct cr_buf whole, pieces;
            cr_buf_init(&whole, 1 << 24);
            cr_buf_init(&pieces, 1 << 24);
            size_t len = strlen(masked[i].content), step = 1 + data[0] % 7;
            check(cr_mask_restore(m, masked[i].content, len, &whole));
            check(whole.len == strlen(texts[i]) &&
                  (whole.len == 0 || memcmp(whole.data, texts[i], whole.len) == 0));
            struct cr_unmask u = {.mask = m};
            for (size_t at = 0; at < len; at += step)
                check(cr_unmask_feed(&u, masked[i].content + at, len - at < step ? len - at : step,
                                     &pieces));
            check(cr_unmask_feed(&u, NULL, 0, &pieces));
            check(pieces.len == whole.len &&
                  (whole.len == 0 || memcmp(pieces.data, whole.data, whole.len) == 0));
            cr_buf_deinit(&whole);
            cr_buf_deinit(&pieces);
        }
        cr_mask_free(m);
    }
    for (size_t i = 0; i < n; i++)
        cr_free(texts[i]);
    return 0;
}
