/* SPDX-License-Identifier: Apache-2.0 */
/* Replies of an upstream: the first byte chooses whole JSON or an event stream and how it is cut
 * into pieces. */
#include "route/reply.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    const char *text = (const char *)data + 1;
    size_t n = size - 1, piece = data[0] / 2 + 1u;
    struct cr_reply r;
    struct cr_error err = {0};
    char msg[50];
    cr_reply_init(&r, 1 << 16);
    enum cr_status st = CR_OK;
    if (data[0] % 2) {
        for (size_t at = 0; at < n && st == CR_OK; at += piece)
            st = cr_reply_feed(&r, text + at, n - at < piece ? n - at : piece, &err);
        if (st == CR_OK)
            st = cr_reply_end(&r, &err);
    } else {
        st = cr_reply_json(&r, text, n, &err);
    }
    if (st == CR_OK ? r.text.len == 0 : !err.msg[0])
        abort();
    if (r.text.data && strlen(r.text.data) != r.text.len) /* jansson lets no NUL through */
        abort();
    cr_reply_error_text(text, n, msg, sizeof msg);
    if (strlen(msg) >= sizeof msg)
        abort();
    cr_reply_deinit(&r);
    return 0;
}
