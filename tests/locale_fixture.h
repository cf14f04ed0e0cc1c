/* SPDX-License-Identifier: Apache-2.0 */
/* A locale with another decimal point (attack 59), made on the spot where the system has none. */
#ifndef LOCALE_FIXTURE_H
#define LOCALE_FIXTURE_H

#include <locale.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* false: it cannot be made here (localedef or its sources are missing). */
static inline bool speak_german(void)
{
    char folder[] = "/tmp/crayon-locale-XXXXXX", command[256];
    if (!setlocale(LC_ALL, "de_DE.UTF-8") && mkdtemp(folder)) {
        snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 %s/de_DE.UTF-8 2>/dev/null",
                 folder);
        setenv("LOCPATH", folder, 1);
        if (system(command) != 0 || !setlocale(LC_ALL, "de_DE.UTF-8"))
            printf("skip: no German locale\n");
        snprintf(command, sizeof command, "rm -r %s", folder);
        if (system(command) != 0)
            printf("%s stays\n", folder);
    }
    return strcmp(localeconv()->decimal_point, ",") == 0;
}

#endif
