/* SPDX-License-Identifier: Apache-2.0 */
/* The console page at "/": three files of src/serve/console/, built into the program. */
#ifndef CR_CONSOLE_H
#define CR_CONSOLE_H

#include <stddef.h>

enum { CR_CONSOLE_FILES = 3 };
struct cr_console_file {
    const char *name;
    const unsigned char *data;
    size_t n;
};
extern const struct cr_console_file cr_console_files[CR_CONSOLE_FILES];

#endif
