/* SPDX-License-Identifier: Apache-2.0 */
/* `--help`, the man page (roff) and docs/cli.md (markdown), all written from the tables. */
#include "options.h"

#include <string.h>

enum { HELP_COLUMN = 30, HELP_WIDTH = 96 };

static const char intro[] =
    "crayon fits a language model to its owner's task on the owner's device, and asks a bigger "
    "model only when it must.";
static const char conventions[] =
    "Results go to standard output and everything else to standard error. Options stand anywhere; "
    "`--` ends them; `-` as a file name is standard input or output. The last of a repeated option "
    "counts, unless the option is repeatable. A flag wins over the environment, which wins over "
    "the default. A FILE[:SCALE] that exists under its whole name is taken whole.";
static const char files[] =
    "Models named without a slash are looked up here and in the models folder, "
    "`$XDG_DATA_HOME/crayon/models` (by default `~/.local/share/crayon/models`), with or without "
    "`.gguf`. Without `-m` the embedded model is used: `$CRAYON_MODEL`, else the one installed "
    "with the program, else the one in the source tree.";
static const char signals[] =
    "Ctrl-C once stops the work and keeps what there is; twice ends the program with 130.";

/* Columns that UTF-8 text takes, one per character. */
static size_t columns(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

/* Adds words of `text`, wrapped, each line after the first indented; `at` columns are in use. */
static void wrap(struct cr_buf *out, const char *text, size_t at, size_t indent, size_t width)
{
    bool first = true;
    while (*text) {
        size_t n = strcspn(text, " \n"), shown = 0;
        for (size_t i = 0; i < n; i++)
            shown += ((unsigned char)text[i] & 0xc0) != 0x80;
        if (!first && at + 1 + shown > width) {
            cr_buf_printf(out, "\n%*s", (int)indent, "");
            at = indent;
        } else if (!first) {
            cr_buf_puts(out, " ");
            at++;
        }
        cr_buf_add(out, text, n);
        at += shown;
        first = false;
        text += n;
        text += strspn(text, " \n");
    }
    cr_buf_puts(out, "\n");
}

/* Ends a helper buffer: what it could not hold is missing from `out` too. */
static void drop(struct cr_buf *out, struct cr_buf *part)
{
    out->failed = out->failed || part->failed;
    cr_buf_deinit(part);
}

/* The sentence of an option with its default, range and variable. */
static void sentence(struct cr_buf *out, const struct cr_option *o)
{
    char env[64];
    cr_buf_puts(out, o->help);
    if (o->flags & CR_OF_MANY)
        cr_buf_puts(out, "; repeatable");
    if (o->flags & CR_OF_MUST)
        cr_buf_puts(out, "; required");
    if (o->preset)
        cr_buf_printf(out, " (default %s)", o->preset);
    if (o->flags & CR_OF_ENV) {
        cr_option_env_name(o, env, sizeof env);
        cr_buf_printf(out, " [%s]", env);
    }
}

static void option_help(struct cr_buf *out, const struct cr_option *o)
{
    struct cr_buf left, right;
    cr_buf_init(&left, 4096);
    cr_buf_init(&right, 4096);
    if (o->letter)
        cr_buf_printf(&left, "  -%c, --%s", o->letter, o->name);
    else
        cr_buf_printf(&left, "      --%s", o->name);
    if (o->value)
        cr_buf_printf(&left, " %s", o->value);
    sentence(&right, o);
    if (!left.failed && !right.failed) {
        size_t n = columns(left.data);
        cr_buf_puts(out, left.data);
        if (n + 2 > HELP_COLUMN)
            cr_buf_printf(out, "\n%*s", HELP_COLUMN, "");
        else
            cr_buf_printf(out, "%*s", (int)(HELP_COLUMN - n), "");
        wrap(out, right.data, HELP_COLUMN, HELP_COLUMN, HELP_WIDTH);
    }
    drop(out, &left);
    drop(out, &right);
}

static bool takes(const struct cr_verb *v, const struct cr_option *o)
{
    return (o->verbs & CR_V(v->id)) != 0;
}

static bool has_group(const struct cr_verb *v, size_t group)
{
    for (size_t i = 0; i < cr_options_count; i++)
        if (takes(v, &cr_options[i]) && cr_options[i].group == (enum cr_opt_group)group)
            return true;
    return false;
}

static void usage(struct cr_buf *out, const struct cr_verb *v)
{
    cr_buf_printf(out, "crayon %s", v->name);
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if (!takes(v, o) || !(o->flags & CR_OF_MUST))
            continue;
        if (o->letter)
            cr_buf_printf(out, " -%c %s", o->letter, o->value);
        else
            cr_buf_printf(out, " --%s %s", o->name, o->value);
    }
    cr_buf_printf(out, " [options]%s%s", *v->operands ? " " : "", v->operands);
}

static void verb_list(struct cr_buf *out, const char *family)
{
    size_t n = family ? strlen(family) : 0;
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const struct cr_verb *v = &cr_verbs[i];
        if (!family || (!strncmp(v->name, family, n) && v->name[n] == ' '))
            cr_buf_printf(out, "  %-16s %s\n", v->name, v->summary);
    }
}

void cr_help_program(struct cr_buf *out)
{
    wrap(out, intro, 0, 0, HELP_WIDTH);
    cr_buf_puts(out, "\nusage: crayon VERB [options] [operands]\n\nVerbs:\n");
    verb_list(out, NULL);
    cr_buf_puts(out,
                "\n`crayon VERB --help` tells the options of one verb, `crayon man | man -l -` "
                "shows everything.\n\nExit codes:\n");
    for (size_t i = 0; i < cr_exit_codes_count; i++)
        cr_buf_printf(out, "  %3d  %s\n", cr_exit_codes[i].code, cr_exit_codes[i].meaning);
}

void cr_help_family(struct cr_buf *out, const char *word)
{
    cr_buf_printf(out, "usage: crayon %s VERB [options] [operands]\n\nVerbs:\n", word);
    verb_list(out, word);
    cr_buf_printf(out, "\n`crayon %s VERB --help` tells the options of one verb.\n", word);
}

void cr_help_verb(struct cr_buf *out, const struct cr_verb *v)
{
    cr_buf_printf(out, "crayon %s: %s\n\nusage: ", v->name, v->summary);
    usage(out, v);
    cr_buf_printf(out, "\n\n%s\n", v->about);
    for (size_t g = 0; g < CR_GROUP_COUNT; g++) {
        if (!has_group(v, g))
            continue;
        cr_buf_printf(out, "\n%s:\n", cr_group_names[g]);
        for (size_t i = 0; i < cr_options_count; i++)
            if (takes(v, &cr_options[i]) && cr_options[i].group == (enum cr_opt_group)g)
                option_help(out, &cr_options[i]);
    }
    if (v->examples)
        cr_buf_printf(out, "\nExamples:\n%s\n", v->examples);
    if (!v->run)
        cr_buf_printf(out, "\nThis program was built without %s.\n", v->missing);
}

/* ---- man page ---- */

/* Text for roff: hyphens as typed, no accidental requests, no escapes, backquotes as bold. */
static void roff_text(struct cr_buf *out, const char *s)
{
    bool line_start = true, bold = false;
    for (; *s; s++) {
        if (line_start && (*s == '.' || *s == '\''))
            cr_buf_puts(out, "\\&");
        line_start = *s == '\n';
        if (*s == '\\')
            cr_buf_puts(out, "\\e");
        else if (*s == '-')
            cr_buf_puts(out, "\\-");
        else if (*s == '`') {
            bold = !bold;
            cr_buf_puts(out, bold ? "\\fB" : "\\fR");
        } else
            cr_buf_add(out, s, 1);
    }
}

static void roff_paragraphs(struct cr_buf *out, const char *s)
{
    while (*s) {
        const char *end = strstr(s, "\n\n");
        struct cr_buf one;
        cr_buf_init(&one, 1 << 16);
        cr_buf_add(&one, s, end ? (size_t)(end - s) : strlen(s));
        cr_buf_puts(out, ".PP\n");
        if (!one.failed)
            roff_text(out, one.data);
        cr_buf_puts(out, "\n");
        drop(out, &one);
        s = end ? end + 2 : s + strlen(s);
    }
}

static void roff_verb(struct cr_buf *out, const struct cr_verb *v)
{
    struct cr_buf line;
    cr_buf_init(&line, 1 << 16);
    usage(&line, v);
    cr_buf_puts(out, ".SS \"");
    roff_text(out, v->name);
    cr_buf_puts(out, "\"\n.B ");
    if (!line.failed)
        roff_text(out, line.data);
    cr_buf_puts(out, "\n.PP\n");
    roff_text(out, v->summary);
    cr_buf_puts(out, ".\n");
    roff_paragraphs(out, v->about);
    for (size_t g = 0; g < CR_GROUP_COUNT; g++)
        for (size_t i = 0; i < cr_options_count; i++) {
            const struct cr_option *o = &cr_options[i];
            if (!takes(v, o) || o->group != (enum cr_opt_group)g)
                continue;
            cr_buf_puts(out, ".TP\n");
            if (o->letter)
                cr_buf_printf(out, "\\fB\\-%c\\fR, ", o->letter);
            cr_buf_puts(out, "\\fB\\-\\-");
            roff_text(out, o->name);
            cr_buf_puts(out, "\\fR");
            if (o->value) {
                cr_buf_puts(out, " \\fI");
                roff_text(out, o->value);
                cr_buf_puts(out, "\\fR");
            }
            cr_buf_puts(out, "\n");
            struct cr_buf text;
            cr_buf_init(&text, 4096);
            sentence(&text, o);
            if (!text.failed)
                roff_text(out, text.data);
            cr_buf_puts(out, ".\n");
            drop(out, &text);
        }
    if (v->examples) {
        cr_buf_puts(out, ".PP\nExamples:\n.PP\n.nf\n");
        roff_text(out, v->examples);
        cr_buf_puts(out, "\n.fi\n");
    }
    drop(out, &line);
}

void cr_manual_roff(struct cr_buf *out)
{
    cr_buf_puts(out, ".TH CRAYON 1 \"\" \"crayon " CR_VERSION "\" \"User Commands\"\n.SH NAME\n"
                     "crayon \\- fit a language model to your task on your device\n"
                     ".SH SYNOPSIS\n.B crayon\n.I VERB\n[\\fIoptions\\fR] [\\fIoperands\\fR]\n"
                     ".SH DESCRIPTION\n");
    roff_text(out, intro);
    cr_buf_puts(out, "\n.PP\n");
    roff_text(out, conventions);
    cr_buf_puts(out, "\n.PP\n");
    roff_text(out, signals);
    cr_buf_puts(out, "\n.SH VERBS\n");
    for (size_t i = 0; i < cr_verbs_count; i++)
        roff_verb(out, &cr_verbs[i]);
    cr_buf_puts(out, ".SH EXIT STATUS\n");
    for (size_t i = 0; i < cr_exit_codes_count; i++) {
        cr_buf_printf(out, ".TP\n.B %d\n", cr_exit_codes[i].code);
        roff_text(out, cr_exit_codes[i].meaning);
        cr_buf_puts(out, "\n");
    }
    cr_buf_puts(out, ".SH FILES\n");
    roff_text(out, files);
    cr_buf_puts(out, "\n.SH ENVIRONMENT\n");
    roff_text(out, "Options marked [CRAYON_NAME] are read from that variable. `NO_COLOR`, "
                   "`CLICOLOR_FORCE` and `TERM` choose colours on standard error.");
    cr_buf_puts(out, "\n");
}

/* ---- docs/cli.md ---- */

static void md_cell(struct cr_buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '|')
            cr_buf_puts(out, "\\");
        cr_buf_add(out, s, 1);
    }
}

static void md_verb(struct cr_buf *out, const struct cr_verb *v)
{
    cr_buf_printf(out, "\n## crayon %s\n\n    ", v->name);
    usage(out, v);
    cr_buf_printf(out, "\n\n%s\n\n| option | what it does |\n|---|---|\n", v->about);
    for (size_t g = 0; g < CR_GROUP_COUNT; g++)
        for (size_t i = 0; i < cr_options_count; i++) {
            const struct cr_option *o = &cr_options[i];
            if (!takes(v, o) || o->group != (enum cr_opt_group)g || g == CR_GROUP_GENERAL)
                continue;
            cr_buf_puts(out, "| `");
            if (o->letter)
                cr_buf_printf(out, "-%c`, `", o->letter);
            cr_buf_printf(out, "--%s", o->name);
            if (o->value) {
                cr_buf_puts(out, " ");
                md_cell(out, o->value);
            }
            cr_buf_puts(out, "` | ");
            struct cr_buf text;
            cr_buf_init(&text, 4096);
            sentence(&text, o);
            if (!text.failed)
                md_cell(out, text.data);
            drop(out, &text);
            cr_buf_puts(out, " |\n");
        }
    cr_buf_puts(out, "| | and the options of every verb: ");
    bool first = true;
    for (size_t i = 0; i < cr_options_count; i++)
        if (takes(v, &cr_options[i]) && cr_options[i].group == CR_GROUP_GENERAL) {
            cr_buf_printf(out, "%s`--%s`", first ? "" : ", ", cr_options[i].name);
            first = false;
        }
    cr_buf_puts(out, " |\n");
    if (!v->examples)
        return;
    cr_buf_puts(out, "\n");
    for (const char *p = v->examples; *p;) { /* four more columns make a code block */
        size_t n = strcspn(p, "\n");
        cr_buf_puts(out, "  ");
        cr_buf_add(out, p, n);
        cr_buf_puts(out, "\n");
        p += n + (p[n] == '\n');
    }
}

void cr_manual_markdown(struct cr_buf *out)
{
    cr_buf_puts(out, "# The command line\n\n"
                     "Written by `crayon man --format markdown`; a test compares the two.\n\n");
    cr_buf_printf(out, "%s\n\n%s\n\n%s\n\n%s\n\n| verb | what it does |\n|---|---|\n", intro,
                  conventions, files, signals);
    for (size_t i = 0; i < cr_verbs_count; i++)
        cr_buf_printf(out, "| `crayon %s` | %s |\n", cr_verbs[i].name, cr_verbs[i].summary);
    cr_buf_puts(out, "\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (size_t i = 0; i < cr_exit_codes_count; i++)
        cr_buf_printf(out, "| %d | %s |\n", cr_exit_codes[i].code, cr_exit_codes[i].meaning);
    cr_buf_puts(out, "\n## Options of every verb\n\n| option | what it does |\n|---|---|\n");
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if (o->group != CR_GROUP_GENERAL)
            continue;
        cr_buf_puts(out, "| `");
        if (o->letter)
            cr_buf_printf(out, "-%c`, `", o->letter);
        cr_buf_printf(out, "--%s%s%s` | ", o->name, o->value ? " " : "", o->value ? o->value : "");
        sentence(out, o);
        cr_buf_puts(out, " |\n");
    }
    for (size_t i = 0; i < cr_verbs_count; i++)
        md_verb(out, &cr_verbs[i]);
}
