/* SPDX-License-Identifier: Apache-2.0 */
/* The preview at the terminal. */
#ifdef CRAYON_ROUTE

#include "consent.h"

#include "messages.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

#endif
