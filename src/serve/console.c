/* SPDX-License-Identifier: Apache-2.0 */
/* The console page and what it reads that no API of others has: the ledger. */
#include "serve/console.h"

#include "base/mem.h"
#include "serve/http.h"
#ifdef CRAYON_ROUTE
#include "route/ledger_text.h"
#endif

#include <string.h>

/* Nothing from elsewhere, no script or style but the two files, in no frame of others. */
static const char policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static const char *type_of(const char *name)
{
    const char *dot = strrchr(name, '.');
    return strcmp(dot, ".css") == 0  ? "text/css; charset=utf-8"
           : strcmp(dot, ".js") == 0 ? "text/javascript; charset=utf-8"
                                     : "text/html; charset=utf-8";
}

enum MHD_Result cr_console_get(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    const char *name = strcmp(t->route->path, "/") == 0 ? "index.html" : t->route->path + 1;
    const struct cr_console_file *f = cr_console_files;
    (void)s;
    while (strcmp(f->name, name) != 0)
        f++;
    struct MHD_Response *r =
        MHD_create_response_from_buffer(f->n, (void *)(uintptr_t)f->data, MHD_RESPMEM_PERSISTENT);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type_of(name));
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(r, "Content-Security-Policy", policy);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
    MHD_add_response_header(r, "Cross-Origin-Opener-Policy", "same-origin");
    MHD_add_response_header(r, "Cross-Origin-Resource-Policy", "same-origin");
    enum MHD_Result done = MHD_queue_response(c, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    t->http = 200;
    return done;
}

#ifdef CRAYON_ROUTE
enum { NEWEST = 200 };

static bool add_row(void *ud, const struct cr_ledger_row *row)
{
    struct cr_buf *b = ud;
    return (b->data[b->len - 1] == '[' || cr_buf_puts(b, ",")) && cr_ledger_json(b, row);
}

enum MHD_Result cr_console_ledger(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    struct cr_error err;
    struct cr_ledger_totals totals = {0};
    struct cr_buf b;
    cr_ledger *l = NULL;
    (void)s;
    cr_buf_init(&b, 1 << 24);
    cr_buf_puts(&b, "{\"entries\":[");
    enum cr_status st = cr_ledger_open_read(&l, NULL, &err);
    if (st == CR_OK)
        st = cr_ledger_each(l, NEWEST, add_row, &b, &err);
    if (st == CR_OK)
        st = cr_ledger_sum(l, &totals, &err);
    if (st == CR_NOT_FOUND) /* nothing has left yet */
        st = CR_OK;
    cr_ledger_close(l);
    cr_buf_puts(&b, "],\"totals\":");
    cr_ledger_totals_json(&b, &totals);
    cr_buf_puts(&b, "}\n");
    enum MHD_Result done =
        st != CR_OK || b.failed
            ? cr_send_error(c, t, 500, NULL, NULL, st != CR_OK ? err.msg : "out of memory")
            : cr_send_bytes(c, t, 200, "application/json", b.data, b.len);
    cr_buf_deinit(&b);
    return done;
}
#else
enum MHD_Result cr_console_ledger(cr_server *s, struct MHD_Connection *c, struct cr_talk *t)
{
    static const char none[] = "{\"entries\":[],\"totals\":{\"rows\":0,\"ok\":0,\"failed\":0,"
                               "\"pending\":0,\"bytes_out\":0,"
                               "\"bytes_in\":0,\"tokens_in\":0,\"tokens_out\":0,\"cost\":null}}\n";
    (void)s;
    return cr_send_bytes(c, t, 200, "application/json", none, sizeof none - 1);
}
#endif
