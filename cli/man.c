/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon man` and `crayon completion`: what the tables say, for man(1), docs/cli.md and shells. */
#include "messages.h"
#include "verbs.h"

#include <string.h>

static int print(void (*write)(struct cr_buf *out))
{
    struct cr_buf b;
    struct cr_error err;
    cr_buf_init(&b, 1 << 22);
    write(&b);
    int code = 0;
    if (b.failed) {
        cr_error_set(&err, CR_NO_MEMORY, "out of memory");
        code = cr_fail(&err);
    } else {
        cr_out(b.data, b.len);
    }
    cr_buf_deinit(&b);
    return code;
}

int cr_cli_man(const struct cr_args *a)
{
    bool roff = !strcmp(cr_arg_text(a, CR_OPT_FORMAT), "roff");
    return print(roff ? cr_manual_roff : cr_manual_markdown);
}

int cr_cli_completion(const struct cr_args *a)
{
    const char *shell = a->rest[0];
    if (!strcmp(shell, "bash"))
        return print(cr_completion_bash);
    if (!strcmp(shell, "zsh"))
        return print(cr_completion_zsh);
    if (!strcmp(shell, "fish"))
        return print(cr_completion_fish);
    return cr_misuse("completion", "unknown shell \"%s\"; should be bash, zsh or fish", shell);
}
