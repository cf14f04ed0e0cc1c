/* SPDX-License-Identifier: Apache-2.0 */
/* Notes, warnings, errors, progress, Ctrl-C, and what happens to standard output. */
#include "messages.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double QUICK = 2; /* seconds: shorter work has no progress lines in a log */
static bool quiet, verbose, err_tty, out_tty, color, line_open;
static int out_error; /* errno of the first failed write to standard output */
static volatile sig_atomic_t interrupts;

double cr_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool cr_color_wanted(bool tty, const char *no_color, const char *force, const char *term)
{
    if ((no_color && *no_color) || (term && !strcmp(term, "dumb")))
        return false;
    return (force && *force && strcmp(force, "0")) || (tty && term && *term);
}

static void on_log(void *ud, enum cr_log_level level, const char *msg);

void cr_msg_init(void)
{
    err_tty = isatty(STDERR_FILENO) == 1;
    out_tty = isatty(STDOUT_FILENO) == 1;
    color = cr_color_wanted(err_tty, getenv("NO_COLOR"), getenv("CLICOLOR_FORCE"), getenv("TERM"));
    cr_log_set(on_log, NULL);
}

void cr_msg_set_quiet(bool on)
{
    quiet = on;
}

void cr_msg_set_verbose(bool on)
{
    verbose = on;
}

bool cr_msg_quiet(void)
{
    return quiet;
}

/* ---- text that may go to a terminal ---- */

/* Bytes of the good UTF-8 character at s, 0 if it is broken or a control character. */
static size_t good_char(const unsigned char *s, size_t left)
{
    unsigned char c = s[0];
    if (c < 0x80)
        return (c >= 0x20 && c != 0x7f) || c == '\n' || c == '\t' ? 1 : 0;
    size_t n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((c == 0xc2 && s[1] < 0xa0) || (c == 0xe0 && s[1] < 0xa0) || (c == 0xed && s[1] >= 0xa0) ||
        (c == 0xf0 && s[1] < 0x90) || (c == 0xf4 && s[1] >= 0x90))
        return 0;
    return n;
}

void cr_sanitise(struct cr_buf *out, const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < n;) {
        size_t len = good_char(s + i, n - i);
        if (len)
            cr_buf_add(out, s + i, len);
        else
            cr_buf_puts(out, "\xef\xbf\xbd");
        i += len ? len : 1;
    }
}

/* One line on standard error: "crayon: KIND text". */
static void say(const char *kind, const char *sgr, const char *text)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 16);
    cr_sanitise(&b, text, strlen(text));
    if (line_open) {
        fputs("\r\033[K", stderr);
        line_open = false;
    }
    fflush(stdout); /* keeps the order on a terminal */
    if (color && *sgr)
        fprintf(stderr, "\033[%smcrayon:\033[0m %s%s\n", sgr, kind, b.data ? b.data : "");
    else
        fprintf(stderr, "crayon: %s%s\n", kind, b.data ? b.data : "");
    cr_buf_deinit(&b);
}

static void say_args(const char *kind, const char *sgr, const char *fmt, va_list ap)
{
    char text[4096];
    vsnprintf(text, sizeof text, fmt, ap);
    say(kind, sgr, text);
}

void cr_note(const char *fmt, ...)
{
    if (quiet)
        return;
    va_list ap;
    va_start(ap, fmt);
    say_args("", "", fmt, ap);
    va_end(ap);
}

void cr_warn(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say_args("warning: ", "33", fmt, ap);
    va_end(ap);
}

int cr_fail(const struct cr_error *err)
{
    say("", "31", err->msg);
    return cr_status_exit_code(err->status);
}

int cr_misuse(const char *verb, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    struct cr_buf b;
    cr_buf_init(&b, 2048);
    cr_buf_printf(&b, "%s; try crayon %s%s--help", text, verb ? verb : "", verb ? " " : "");
    say("", "31", b.failed ? text : b.data);
    cr_buf_deinit(&b);
    return cr_status_exit_code(CR_INVALID);
}

static void on_log(void *ud, enum cr_log_level level, const char *msg)
{
    (void)ud;
    if (level == CR_LOG_WARN)
        say("warning: ", "33", msg);
    else if (verbose && !quiet)
        say("", "", msg);
}

/* ---- progress ---- */

void cr_progress_begin(struct cr_progress *p, const char *what)
{
    *p = (struct cr_progress){.what = what, .last_step = -1, .begin = cr_now(), .last_time = -1};
}

void cr_progress_show(struct cr_progress *p, double done, double total, const char *detail)
{
    if (quiet || !(total > 0))
        return;
    double share = fmin(fmax(done / total, 0), 1), now = cr_now();
    if (err_tty) {
        if (p->shown && share < 1 && now - p->last_time < 0.1)
            return;
        fprintf(stderr, "\r\033[K%s %3.0f %%%s%s", p->what, 100 * share, *detail ? "  " : "",
                detail);
        fflush(stderr);
        p->shown = line_open = true;
    } else {
        int step = (int)(10 * share);
        if (step <= p->last_step || now - p->begin < QUICK)
            return;
        p->last_step = step;
        cr_note("%s %d %%%s%s", p->what, 10 * step, *detail ? "  " : "", detail);
    }
    p->last_time = now;
}

void cr_progress_end(struct cr_progress *p)
{
    if (p->shown && line_open)
        fputs("\r\033[K", stderr);
    line_open = p->shown = false;
}

/* ---- Ctrl-C ---- */

static void on_interrupt(int sig)
{
    (void)sig;
    if (interrupts++)
        _exit(130);
}

void cr_interrupt_catch(void)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_interrupt;
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
}

bool cr_interrupted(void)
{
    return interrupts > 0;
}

void cr_interrupt_clear(void)
{
    interrupts = 0;
}

/* ---- standard output ---- */

void cr_out(const void *data, size_t n)
{
    if (!out_error && n && fwrite(data, 1, n, stdout) != n)
        out_error = errno ? errno : EIO;
}

void cr_out_puts(const char *s)
{
    cr_out(s, strlen(s));
}

void cr_outf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (!out_error && vfprintf(stdout, fmt, ap) < 0)
        out_error = errno ? errno : EIO;
    va_end(ap);
}

void cr_out_text(const char *text, size_t n)
{
    if (out_tty) {
        struct cr_buf b;
        cr_buf_init(&b, 3 * n + 1);
        cr_sanitise(&b, text, n);
        cr_out(b.data, b.len);
        if (b.failed && !out_error)
            out_error = ENOMEM;
        cr_buf_deinit(&b);
    } else {
        cr_out(text, n);
    }
    if (!out_error && fflush(stdout))
        out_error = errno ? errno : EIO;
}

bool cr_out_failed(void)
{
    return out_error != 0;
}

bool cr_out_is_tty(void)
{
    return out_tty;
}

int cr_out_finish(int code)
{
    errno = 0;
    if ((fflush(stdout) || ferror(stdout)) && !out_error)
        out_error = errno ? errno : EIO;
    if (!out_error)
        return code;
    if (out_error == EPIPE) {
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    struct cr_error err = {.status = CR_IO};
    snprintf(err.msg, sizeof err.msg, "cannot write standard output: %s", strerror(out_error));
    int failed = cr_fail(&err);
    return code ? code : failed;
}
