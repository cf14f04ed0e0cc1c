/* SPDX-License-Identifier: Apache-2.0 */
/* JSON into a growing buffer, without the allocator of the JSON library in between. */
#ifndef CR_JSON_TEXT_H
#define CR_JSON_TEXT_H

#ifdef CRAYON_JSON
#include "base/bytes.h"

#include <jansson.h>

static inline int cr_json_text_add(const char *text, size_t n, void *buf)
{
    return cr_buf_add(buf, text, n) ? 0 : -1;
}

/* Appends v in the format of flags (JSON_COMPACT, ...); false when out of room or memory. */
static inline bool cr_json_text(struct cr_buf *b, const json_t *v, size_t flags)
{
    return json_dump_callback(v, cr_json_text_add, b, flags) == 0;
}
#endif

#endif
