/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line as data: every verb, every option, every exit code. See options.h for what is
 * made from it and how to add to it.
 */
#include "options.h"
#include "verbs.h"

const char *const cr_group_names[CR_GROUP_COUNT] = {
    [CR_GROUP_INPUT] = "Input",       [CR_GROUP_MODEL] = "Model",
    [CR_GROUP_SAMPLING] = "Sampling", [CR_GROUP_BLEND] = "Blend",
    [CR_GROUP_TRAINING] = "Training", [CR_GROUP_EVALUATION] = "Evaluation",
    [CR_GROUP_ROUTING] = "Routing",   [CR_GROUP_SERVER] = "Server",
    [CR_GROUP_OUTPUT] = "Output",     [CR_GROUP_GENERAL] = "General",
};

const struct cr_exit_code cr_exit_codes[] = {
    {0, "success"},
    {1, "failure: input, output, or an error inside the program"},
    {2, "misuse of the command line, or an invalid argument"},
    {3, "a model, adapter, pool, palette or data file was refused"},
    {4, "not found"},
    {5, "network"},
    {6, "refused by policy: it would have left the device"},
    {7, "out of memory or past a limit"},
    {130, "interrupted"},
};
const size_t cr_exit_codes_count = sizeof cr_exit_codes / sizeof *cr_exit_codes;

/* Sets of verbs that share options. */
#define ALL (CR_V(CR_VERB_COUNT) - 1)

const struct cr_option cr_options[] = {
    {.id = CR_OPT_FORMAT,
     .verbs = CR_V(CR_VERB_MAN),
     .group = CR_GROUP_OUTPUT,
     .name = "format",
     .type = CR_ARG_CHOICE,
     .value = "roff|markdown",
     .preset = "roff",
     .help = "roff for man(1), markdown for docs/cli.md"},
    {.id = CR_OPT_JSON,
     .verbs = CR_V(CR_VERB_VERSION),
     .group = CR_GROUP_OUTPUT,
     .name = "json",
     .help = "print the result as JSON"},
    {.id = CR_OPT_QUIET,
     .verbs = ALL,
     .group = CR_GROUP_GENERAL,
     .letter = 'q',
     .name = "quiet",
     .help = "no notes, progress or summary on standard error"},
    {.id = CR_OPT_VERBOSE,
     .verbs = ALL,
     .group = CR_GROUP_GENERAL,
     .letter = 'v',
     .name = "verbose",
     .help = "show what the library logs"},
    {.id = CR_OPT_HELP,
     .verbs = ALL,
     .group = CR_GROUP_GENERAL,
     .letter = 'h',
     .name = "help",
     .help = "show this help"},
};
const size_t cr_options_count = sizeof cr_options / sizeof *cr_options;

const struct cr_verb cr_verbs[] = {
    {.id = CR_VERB_VERSION,
     .name = "version",
     .operands = "",
     .summary = "tell the version and what was built in",
     .about = "Prints one line, or an object with --json.",
     .run = cr_cli_version},
    {.id = CR_VERB_COMPLETION,
     .name = "completion",
     .operands = "bash|zsh|fish",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "bash|zsh|fish",
     .summary = "print a completion script for a shell",
     .about = "The script knows every verb, option and choice of this program.",
     .examples = "  eval \"$(crayon completion bash)\"\n  crayon completion fish | source",
     .run = cr_cli_completion},
    {.id = CR_VERB_MAN,
     .name = "man",
     .operands = "",
     .summary = "print the manual page",
     .about = "The manual is written from the same table as the parser and --help.",
     .examples = "  crayon man | man -l -",
     .run = cr_cli_man},
};
const size_t cr_verbs_count = sizeof cr_verbs / sizeof *cr_verbs;
