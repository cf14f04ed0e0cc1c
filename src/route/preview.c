/* SPDX-License-Identifier: Apache-2.0 */
/* The preview of what would leave. Reads the same bytes that are sent. */
#include "route/preview.h"

#include <string.h>

/* Control bytes and DEL, also C1 controls as UTF-8 (c2 80 .. c2 9f) and the marks that reverse the
 * direction of text (e2 80 aa..ae, e2 81 a6..a9), become visible. */
static void add_visible(struct cr_buf *b, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const unsigned char *p = (const unsigned char *)s + i;
        size_t hide = p[0] < 0x20 || p[0] == 0x7f ? 1 : 0;
        if (n - i >= 2 && p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
            hide = 2;
        if (n - i >= 3 && p[0] == 0xe2 &&
            ((p[1] == 0x80 && p[2] >= 0xaa && p[2] <= 0xae) ||
             (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9)))
            hide = 3;
        for (size_t k = 0; k < hide; k++)
            cr_buf_printf(b, "\\x%02x", p[k]);
        if (!hide)
            cr_buf_add(b, p, 1);
        i += hide ? hide : 1;
    }
}

enum cr_status cr_preview(const struct cr_outgoing *o, struct cr_buf *b, struct cr_error *err)
{
    cr_buf_printf(b, "would leave this device: %zu bytes of text and settings\n", o->n_body);
    cr_buf_puts(b, "  to:      ");
    add_visible(b, o->url, strlen(o->url));
    if (o->n_masked)
        cr_buf_printf(b, "\n  masked:  %zu personal values, put back in the answer", o->n_masked);
    cr_buf_puts(b, "\n  model:   ");
    add_visible(b, o->model, strlen(o->model));
    for (const struct cr_outgoing *n = o->next; n; n = n->next) {
        cr_buf_puts(b, "\n  if that fails, the same to: ");
        add_visible(b, n->url, strlen(n->url));
        cr_buf_puts(b, " (");
        add_visible(b, n->model, strlen(n->model));
        cr_buf_puts(b, ")");
    }
    cr_buf_printf(b, "\n  key:     %s\n", o->has_key ? "Authorization: Bearer ********" : "none");
    if (*o->reason) {
        cr_buf_puts(b, "  because: ");
        add_visible(b, o->reason, strlen(o->reason));
        cr_buf_puts(b, "\n");
    }
    cr_buf_puts(b, "  body:    ");
    add_visible(b, o->body, o->n_body);
    cr_buf_puts(b, "\n");
    return b->failed ? cr_error_set(err, CR_NO_MEMORY, "preview: out of memory") : CR_OK;
}
