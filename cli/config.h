/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration files: the system's and the user's, lines NAME = VALUE with the long options'
 * names. `crayon config show --help` has the rules; options.c merges them with environment and
 * flags. An unknown name is an error with its line, so that a typing mistake is never silent.
 */
#ifndef CR_CONFIG_H
#define CR_CONFIG_H

#include "base/error.h"

struct cr_config_entry {
    char *verb;  /* of the section; "" before the first */
    char *name;  /* of the option */
    char *value; /* without blanks around it; one pair of double quotes is taken off */
    char *where; /* "FILE:LINE" */
    bool system;
};

struct cr_config {
    struct cr_config_entry *v; /* [n] in the order of the files */
    size_t n, cap;
};

/* Reads both files; one that is not there is empty. Free with cr_config_deinit in both cases. */
enum cr_status cr_config_read(struct cr_config *c, struct cr_error *err);
/* One file; name stands in messages. text is cut into pieces. */
enum cr_status cr_config_parse(struct cr_config *c, char *text, const char *name, bool system,
                               struct cr_error *err);
void cr_config_deinit(struct cr_config *c);

#endif
