/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors as data: a status and a caller-owned message. The first error wins; callers add context in
 * front with cr_error_prefix. Knows nothing of models.
 */
#ifndef CR_ERROR_H
#define CR_ERROR_H

#include "crayon.h"

/* Fills err (may be NULL) and returns status, so that `return cr_error_set(...)` reads well. */
enum cr_status cr_error_set(struct cr_error *err, enum cr_status status, const char *fmt, ...)
    CR_PRINTF(3, 4);
/* The same with a byte offset or line number. */
enum cr_status cr_error_set_at(struct cr_error *err, enum cr_status status, uint64_t pos,
                               const char *fmt, ...) CR_PRINTF(4, 5);
/* Puts "prefix: " before the message and returns the status that err holds. */
enum cr_status cr_error_prefix(struct cr_error *err, enum cr_status status, const char *fmt, ...)
    CR_PRINTF(3, 4);
/* "PATH: what: strerror" from errno: CR_NOT_FOUND for ENOENT, CR_NO_MEMORY for ENOMEM, else CR_IO.
 */
enum cr_status cr_error_errno(struct cr_error *err, const char *what, const char *path);

#endif
