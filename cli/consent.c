/* SPDX-License-Identifier: Apache-2.0 */
/* The preview at the terminal, and the options of the upstream. */
#ifdef CRAYON_ROUTE

#include "consent.h"

#include "messages.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Standard input may be the prompt, so the answer is read from the terminal itself. */
enum cr_consent cr_consent_question(const char *question)
{
    char line[16] = "";
    if (isatty(STDERR_FILENO) != 1)
        return CR_CONSENT_NO_ONE;
    int fd = open("/dev/tty", O_RDONLY | O_CLOEXEC);
    FILE *tty = fd >= 0 ? fdopen(fd, "r") : NULL;
    if (!tty) {
        if (fd >= 0)
            close(fd);
        return CR_CONSENT_NO_ONE;
    }
    fprintf(stderr, "%s [y/N] ", question);
    fflush(stderr);
    bool yes = fgets(line, sizeof line, tty) && (line[0] == 'y' || line[0] == 'Y') &&
               (line[1] == '\n' || !strcmp(line + 1, "es\n"));
    fclose(tty);
    return yes ? CR_CONSENT_YES : CR_CONSENT_NO;
}

enum cr_consent cr_consent_ask(const struct cr_outgoing *out, bool yes)
{
    struct cr_buf b;
    bool someone = isatty(STDERR_FILENO) == 1;
    if (!yes && !someone)
        return CR_CONSENT_NO_ONE;
    cr_buf_init(&b, (size_t)1 << 28);
    enum cr_consent c = yes ? CR_CONSENT_YES : CR_CONSENT_NO;
    if (!(yes && cr_msg_quiet()) && cr_preview(out, &b, NULL) == CR_OK) {
        fwrite(b.data, 1, b.len, stderr);
        if (!yes)
            c = cr_consent_question("send it?");
    }
    cr_buf_deinit(&b);
    return c;
}

/* "IN,OUT": money per million tokens. */
static enum cr_status take_price(struct cr_upstream_options *opt, const char *text,
                                 struct cr_error *err)
{
    char in[32];
    const char *comma = strchr(text, ',');
    size_t n = comma ? (size_t)(comma - text) : 0;
    if (n > 0 && n < sizeof in) {
        memcpy(in, text, n);
        in[n] = '\0';
        if (cr_parse_real(in, &opt->price_in) && cr_parse_real(comma + 1, &opt->price_out) &&
            opt->price_in >= 0 && opt->price_out >= 0)
            return CR_OK;
    }
    return cr_error_set(err, CR_INVALID,
                        "--upstream-price: want IN,OUT per million tokens, such as 0.15,0.6, found "
                        "\"%s\"",
                        text);
}

enum cr_status cr_upstream_of(struct cr_upstream_options *opt, char **key, const struct cr_args *a,
                              struct cr_error *err)
{
    *key = NULL;
    *opt = (struct cr_upstream_options){
        .url = cr_arg_text(a, CR_OPT_UPSTREAM),
        .model = cr_arg_text(a, CR_OPT_UPSTREAM_MODEL),
        .insecure = cr_arg_flag(a, CR_OPT_UPSTREAM_INSECURE),
        .total_ms = (int)(cr_arg_real(a, CR_OPT_UPSTREAM_TIMEOUT) * 1000),
    };
    if (!opt->model)
        return cr_error_set(err, CR_INVALID, "--upstream needs --upstream-model");
    const char *price = cr_arg_text(a, CR_OPT_UPSTREAM_PRICE);
    enum cr_status st = price ? take_price(opt, price, err) : CR_OK;
    if (!st)
        st = cr_key_read(cr_arg_text(a, CR_OPT_UPSTREAM_KEY_FILE), key, err);
    if (!st && *key)
        prctl(PR_SET_DUMPABLE, 0); /* the key must not be in a core file */
    opt->key = *key;
    return st;
}

#endif
