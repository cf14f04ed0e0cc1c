/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program's voice: everything on standard error goes through here, and standard output through
 * the few functions at the end. Text that came from files, models or servers never reaches a
 * terminal with control characters in it.
 *
 * Colours on standard error: never with NO_COLOR or TERM=dumb, always with CLICOLOR_FORCE, else on
 * a terminal. --quiet keeps errors and warnings only.
 */
#ifndef CR_MESSAGES_H
#define CR_MESSAGES_H

#include "base/bytes.h"

/* Reads the terminal's state and the environment once; main calls it first. */
void cr_msg_init(void);
void cr_msg_set_quiet(bool quiet);
void cr_msg_set_verbose(bool verbose); /* shows the library's log of level info and debug too */
bool cr_msg_quiet(void);
/* The decision on colours as a pure function; the strings may be NULL. */
bool cr_color_wanted(bool tty, const char *no_color, const char *force, const char *term);

void cr_note(const char *fmt, ...) CR_PRINTF(1, 2); /* silent with --quiet */
void cr_warn(const char *fmt, ...) CR_PRINTF(1, 2);
/* "crayon: MESSAGE"; returns the exit code of the status, so that `return cr_fail(&err)` reads. */
int cr_fail(const struct cr_error *err);
/* Misuse found after parsing: the message, "try crayon VERB --help", exit code 2. */
int cr_misuse(const char *verb, const char *fmt, ...) CR_PRINTF(2, 3);

/* Work that takes a while. On a terminal one line that is rewritten, at most ten times a second;
 * elsewhere a line per ten per cent of what takes more than two seconds; nothing with --quiet. */
struct cr_progress {
    const char *what;
    int last_step;
    double begin, last_time;
    bool shown;
};
void cr_progress_begin(struct cr_progress *p, const char *what);
void cr_progress_show(struct cr_progress *p, double done, double total, const char *detail);
void cr_progress_end(struct cr_progress *p);

/* Seconds on a clock that only goes forward. */
double cr_now(void);

/* Ctrl-C: the first sets the flag, the second ends the program with 130. */
void cr_interrupt_catch(void);
bool cr_interrupted(void);
void cr_interrupt_clear(void); /* forgets the first one: a conversation goes on */

/* Standard output. Failures are remembered and reported by cr_out_finish; a reader that went away
 * (EPIPE) is quiet. */
void cr_out(const void *data, size_t n);
void cr_out_puts(const char *s);
void cr_outf(const char *fmt, ...) CR_PRINTF(1, 2);
/* Text of a model or a file: unchanged into files and pipes; on a terminal control characters
 * other than newline and tab become U+FFFD. Flushes. */
void cr_out_text(const char *text, size_t n);
bool cr_out_failed(void);
bool cr_out_is_tty(void);
/* Flushes and closes. Returns `code`, or 1 with a message when output was lost. Ends the process
 * by SIGPIPE when the reader went away, as a filter does. */
int cr_out_finish(int code);
/* A copy of text with controls (C0 but \n and \t, DEL, C1) and broken UTF-8 as U+FFFD. */
void cr_sanitise(struct cr_buf *out, const char *text, size_t n);

#endif
