/* SPDX-License-Identifier: Apache-2.0 */
/* The program: parse the command line by the table, call the verb, report what went wrong. */
#include "config.h"
#include "messages.h"
#include "options.h"
#ifdef CRAYON_ROUTE
#include "route/offline.h"
#endif

#include "base/guard.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *from_environment(const char *name)
{
    return getenv(name);
}

/* A closed standard stream would be taken by the next file that is opened. Its number is kept by
 * /dev/null, opened the wrong way round, so that using it is an error and not a silent loss. */
static void keep_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_RDONLY : O_WRONLY) != fd)
            return;
}

static int show_help(const struct cr_args *a)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 20);
    if (a->verb)
        cr_help_verb(&b, a->verb);
    else if (a->word)
        cr_help_family(&b, a->word);
    else
        cr_help_program(&b);
    cr_out(b.data, b.len);
    cr_buf_deinit(&b);
    return 0;
}

/* `serve` does this itself, once it listens. */
static enum cr_status go_offline(struct cr_error *err)
{
#ifdef CRAYON_ROUTE
    return cr_offline_enter(CR_OFFLINE_ALL, err);
#else
    return cr_error_set(err, CR_UNSUPPORTED, "--offline: this program was built without routing");
#endif
}

static int run(const struct cr_args *a)
{
    if (a->help)
        return show_help(a);
    if (a->version) {
        cr_outf("crayon %s\n", CR_VERSION);
        return 0;
    }
    if (!a->verb && a->word)
        return cr_misuse(a->word, "%s needs a second word", a->word);
    if (!a->verb)
        return cr_misuse(NULL, "no verb given");
    if (!a->verb->run) {
        struct cr_error err;
        cr_error_set(&err, CR_UNSUPPORTED, "%s: this program was built without %s", a->verb->name,
                     a->verb->missing);
        return cr_fail(&err);
    }
    cr_msg_set_quiet(cr_arg_flag(a, CR_OPT_QUIET));
    cr_msg_set_verbose(cr_arg_flag(a, CR_OPT_VERBOSE));
    bool here = a->v[CR_OPT_OFFLINE].opt && a->verb->id != CR_VERB_SERVE;
    if (here && cr_arg_flag(a, CR_OPT_OFFLINE)) {
        struct cr_error err;
        if (go_offline(&err)) /* before anything else: no thread, no file, no key yet */
            return cr_fail(&err);
    }
    return a->verb->run(a);
}

int main(int argc, char **argv)
{
    keep_standard_streams();
    cr_guard_install();
    signal(SIGPIPE, SIG_IGN); /* seen as a write error; cr_out_finish then ends quietly */
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is a write error too, not a sudden end */
    cr_msg_init();
    struct cr_args args;
    struct cr_error err;
    int code;
    struct cr_config config = {0};
    enum cr_status st = cr_config_read(&config, &err);
    if (st)
        memset(&args, 0, sizeof args);
    else
        st = cr_args_parse_with(&args, argc, (const char *const *)argv, from_environment, &config,
                                &err);
    if (st)
        code = err.status == CR_INVALID
                   ? cr_misuse(args.verb ? args.verb->name : args.word, "%s", err.msg)
                   : cr_fail(&err);
    else
        code = run(&args);
    cr_args_deinit(&args);
    cr_config_deinit(&config);
    return cr_out_finish(code);
}
