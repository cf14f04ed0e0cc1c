/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs of the program, one file each. Every function returns the exit code. */
#ifndef CR_VERBS_H
#define CR_VERBS_H

#include "options.h"

int cr_cli_version(const struct cr_args *a);
int cr_cli_completion(const struct cr_args *a);
int cr_cli_man(const struct cr_args *a);

#endif
