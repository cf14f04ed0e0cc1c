/* SPDX-License-Identifier: Apache-2.0 */
/* The library's only voice: a callback that the program sets. Silent by default. */
#ifndef CR_LOG_H
#define CR_LOG_H

#include "crayon.h"

void cr_log(enum cr_log_level level, const char *fmt, ...) CR_PRINTF(2, 3);

#endif
