/* SPDX-License-Identifier: Apache-2.0 */
#include "serve/http_calls.h"

#ifdef CRAYON_LAZY
struct cr_http cr_http;

CR_LAZY_NOTE(CR_LIBMICROHTTPD, "http-server", "serves the OpenAI API");

static void find(struct cr_lazy *lib)
{
    CR_HTTP_CALLS(CR_LAZY_FIND);
}

enum cr_status cr_http_load(struct cr_error *err)
{
    static struct cr_lazy lib = {.file = CR_LIBMICROHTTPD, .find = find};
    return cr_lazy_open(&lib, err);
}
#else
enum cr_status cr_http_load(struct cr_error *err)
{
    (void)err;
    return CR_OK;
}
#endif
