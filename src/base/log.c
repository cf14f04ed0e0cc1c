/* SPDX-License-Identifier: Apache-2.0 */
/* Formats a message and hands it to the program's callback. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static cr_log_fn *log_fn;
static void *log_ud;

void cr_log_set(cr_log_fn *fn, void *ud)
{
    log_fn = fn;
    log_ud = ud;
}

void cr_log(enum cr_log_level level, const char *fmt, ...)
{
    if (!log_fn)
        return;
    char msg[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    log_fn(log_ud, level, msg);
}
