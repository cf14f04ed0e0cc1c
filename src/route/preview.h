/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What would leave the device, for a person to judge before it does: destination, reason, headers
 * with the key masked, and the exact body. Control bytes are shown as \xNN so that text cannot
 * paint over the preview; all else is as it will be sent.
 */
#ifndef CR_PREVIEW_H
#define CR_PREVIEW_H

#include "route/upstream.h"

/* Appends the preview to b, lines ending in "\n". */
enum cr_status cr_preview(const struct cr_outgoing *o, struct cr_buf *b, struct cr_error *err);

#endif
