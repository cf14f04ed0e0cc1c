/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion scripts for bash, zsh and fish, written from the tables: verbs, their second words,
 * the options of each verb, and choices or file names for values.
 */
#include "options.h"

#include <string.h>

static bool takes(const struct cr_verb *v, const struct cr_option *o)
{
    return (o->verbs & CR_V(v->id)) != 0;
}

static bool is_file(const struct cr_option *o)
{
    return o->type == CR_ARG_FILE || o->type == CR_ARG_DIR;
}

/* First words of verbs, each once, then "help". */
static void first_words(struct cr_buf *out)
{
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const char *name = cr_verbs[i].name;
        size_t n = strcspn(name, " ");
        bool seen = false;
        for (size_t j = 0; j < i && !seen; j++)
            seen = !strncmp(cr_verbs[j].name, name, n) &&
                   (cr_verbs[j].name[n] == ' ' || !cr_verbs[j].name[n]);
        if (!seen) {
            cr_buf_add(out, name, n);
            cr_buf_puts(out, " ");
        }
    }
    cr_buf_puts(out, "help");
}

static void spaced_choices(struct cr_buf *out, const char *choices)
{
    for (; *choices; choices++)
        cr_buf_add(out, *choices == '|' ? " " : choices, 1);
}

/* ---- bash ---- */

static void bash_values(struct cr_buf *out, const struct cr_verb *v)
{
    cr_buf_printf(out, "        '%s '*)\n            case $prev in\n", v->name);
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if (!takes(v, o) || o->type == CR_ARG_FLAG)
            continue;
        cr_buf_puts(out, "            ");
        if (o->letter)
            cr_buf_printf(out, "-%c|", o->letter);
        cr_buf_printf(out, "--%s) ", o->name);
        if (o->type == CR_ARG_CHOICE) {
            cr_buf_puts(out, "words='");
            spaced_choices(out, o->value);
            cr_buf_puts(out, "' ;;\n");
        } else {
            cr_buf_puts(out, is_file(o) ? "kind=file ;;\n" : "kind=none ;;\n");
        }
    }
    cr_buf_puts(out, "            *) words='");
    for (size_t i = 0; i < cr_options_count; i++)
        if (takes(v, &cr_options[i]))
            cr_buf_printf(out, "--%s ", cr_options[i].name);
    cr_buf_puts(out, "'");
    if (v->complete && strcmp(v->complete, "file")) {
        cr_buf_puts(out, "; operands='");
        spaced_choices(out, v->complete);
        cr_buf_puts(out, "'");
    } else if (!v->complete) {
        cr_buf_puts(out, "; operands=' '");
    }
    cr_buf_puts(out, " ;;\n            esac ;;\n");
}

void cr_completion_bash(struct cr_buf *out)
{
    cr_buf_puts(out, "# bash completion of crayon: eval \"$(crayon completion bash)\"\n"
                     "_crayon() {\n"
                     "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                     "    local words='' kind='' operands='' line=''\n"
                     "    COMPREPLY=()\n"
                     "    [ \"$COMP_CWORD\" -gt 1 ] && line=\"${COMP_WORDS[*]:1:COMP_CWORD-1} \"\n"
                     "    case $line in\n"
                     "        ''|'help ') words='");
    first_words(out);
    cr_buf_puts(out, " --help --version' ;;\n");
    for (size_t i = 0; i < cr_verbs_count; i++)
        bash_values(out, &cr_verbs[i]);
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const char *name = cr_verbs[i].name;
        size_t n = strcspn(name, " ");
        bool family = name[n] == ' ',
             again = i && !strncmp(cr_verbs[i - 1].name, name, n) && cr_verbs[i - 1].name[n] == ' ';
        if (!family || again)
            continue;
        cr_buf_puts(out, "        '");
        cr_buf_add(out, name, n);
        cr_buf_puts(out, " ') words='");
        for (size_t j = i; j < cr_verbs_count; j++)
            if (!strncmp(cr_verbs[j].name, name, n + 1))
                cr_buf_printf(out, "%s ", cr_verbs[j].name + n + 1);
        cr_buf_puts(out, "' ;;\n");
    }
    cr_buf_puts(
        out,
        "    esac\n"
        "    if [ \"$kind\" = none ]; then return; fi\n"
        "    if [ -n \"$operands\" ] && [ \"${cur#-}\" = \"$cur\" ]; then words=$operands; fi\n"
        "    if [ -n \"$words\" ] && { [ \"${cur#-}\" != \"$cur\" ] || [ -z \"$kind\" ]; }; then\n"
        "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
        "        [ ${#COMPREPLY[@]} -gt 0 ] && return\n"
        "    fi\n"
        "    COMPREPLY=($(compgen -f -- \"$cur\"))\n"
        "}\n"
        "complete -o filenames -F _crayon crayon\n");
}

/* ---- zsh ---- */

/* Text inside a single-quoted _arguments description. */
static void zsh_text(struct cr_buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '\'')
            cr_buf_puts(out, "'\\''");
        else if (strchr("[]:\\", *s)) {
            cr_buf_puts(out, "\\");
            cr_buf_add(out, s, 1);
        } else {
            cr_buf_add(out, s, 1);
        }
    }
}

static void zsh_option(struct cr_buf *out, const struct cr_option *o)
{
    for (int form = o->letter ? 0 : 1; form < 2; form++) {
        cr_buf_puts(out, "        '");
        if (o->flags & CR_OF_MANY)
            cr_buf_puts(out, "*");
        if (form)
            cr_buf_printf(out, "--%s%s[", o->name, o->type == CR_ARG_FLAG ? "" : "=");
        else
            cr_buf_printf(out, "-%c%s[", o->letter, o->type == CR_ARG_FLAG ? "" : "+");
        zsh_text(out, o->help);
        cr_buf_puts(out, "]");
        if (o->type != CR_ARG_FLAG) {
            cr_buf_puts(out, ":");
            zsh_text(out, o->type == CR_ARG_CHOICE ? o->name : o->value);
            cr_buf_puts(out, ":");
            if (o->type == CR_ARG_CHOICE) {
                cr_buf_puts(out, "(");
                spaced_choices(out, o->value);
                cr_buf_puts(out, ")");
            } else if (is_file(o)) {
                cr_buf_puts(out, o->type == CR_ARG_DIR ? "_files -/" : "_files");
            }
        }
        cr_buf_puts(out, "' \\\n");
    }
}

static void zsh_verb(struct cr_buf *out, const struct cr_verb *v)
{
    cr_buf_printf(out, "    '%s')\n        _arguments -s \\\n", v->name);
    for (size_t i = 0; i < cr_options_count; i++)
        if (takes(v, &cr_options[i]))
            zsh_option(out, &cr_options[i]);
    if (v->complete && !strcmp(v->complete, "file")) {
        cr_buf_puts(out, "        '*:file:_files' ;;\n");
    } else if (v->complete) {
        cr_buf_puts(out, "        ':word:(");
        spaced_choices(out, v->complete);
        cr_buf_puts(out, ")' ;;\n");
    } else {
        cr_buf_puts(out, "        ;;\n");
    }
}

void cr_completion_zsh(struct cr_buf *out)
{
    cr_buf_puts(out, "#compdef crayon\n# zsh completion of crayon: put it in a folder of $fpath as "
                     "_crayon\n_crayon() {\n    local -a verbs\n    local verb=$words[2]\n"
                     "    if (( CURRENT == 2 )); then\n        verbs=(");
    first_words(out);
    cr_buf_puts(out,
                ")\n        _describe verb verbs\n        return\n    fi\n    case $verb in\n");
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const char *name = cr_verbs[i].name;
        size_t n = strcspn(name, " ");
        bool again = i && !strncmp(cr_verbs[i - 1].name, name, n) && cr_verbs[i - 1].name[n] == ' ';
        if (name[n] != ' ' || again)
            continue;
        cr_buf_puts(out, "    ");
        cr_buf_add(out, name, n);
        cr_buf_puts(out, ")\n        if (( CURRENT == 3 )); then\n            verbs=(");
        for (size_t j = i; j < cr_verbs_count; j++)
            if (!strncmp(cr_verbs[j].name, name, n + 1))
                cr_buf_printf(out, "%s ", cr_verbs[j].name + n + 1);
        cr_buf_puts(out, ")\n            _describe verb verbs\n            return\n        fi\n"
                         "        verb=\"$verb $words[3]\"\n        shift words\n"
                         "        (( CURRENT-- )) ;;\n");
    }
    cr_buf_puts(out, "    esac\n    shift words\n    (( CURRENT-- ))\n    case $verb in\n");
    for (size_t i = 0; i < cr_verbs_count; i++)
        zsh_verb(out, &cr_verbs[i]);
    cr_buf_puts(out, "    esac\n}\n_crayon \"$@\"\n");
}

/* ---- fish ---- */

static void fish_text(struct cr_buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '\'' || *s == '\\')
            cr_buf_puts(out, "\\");
        cr_buf_add(out, s, 1);
    }
}

/* The condition under which completions of a verb count. */
static void fish_when(struct cr_buf *out, const struct cr_verb *v)
{
    const char *space = strchr(v->name, ' ');
    cr_buf_puts(out, "complete -c crayon -n '__fish_seen_subcommand_from ");
    cr_buf_add(out, v->name, space ? (size_t)(space - v->name) : strlen(v->name));
    if (space)
        cr_buf_printf(out, "; and __fish_seen_subcommand_from %s", space + 1);
    cr_buf_puts(out, "' ");
}

static void fish_verb(struct cr_buf *out, const struct cr_verb *v)
{
    const char *space = strchr(v->name, ' ');
    if (space) {
        cr_buf_puts(out, "complete -c crayon -f -n '__fish_seen_subcommand_from ");
        cr_buf_add(out, v->name, (size_t)(space - v->name));
        cr_buf_printf(out, "' -a %s -d '", space + 1);
    } else {
        cr_buf_printf(out, "complete -c crayon -f -n __fish_use_subcommand -a %s -d '", v->name);
    }
    fish_text(out, v->summary);
    cr_buf_puts(out, "'\n");
    if (v->complete && strcmp(v->complete, "file")) {
        fish_when(out, v);
        cr_buf_puts(out, "-f -a '");
        spaced_choices(out, v->complete);
        cr_buf_puts(out, "'\n");
    }
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if (!takes(v, o))
            continue;
        fish_when(out, v);
        cr_buf_printf(out, "-l %s ", o->name);
        if (o->letter)
            cr_buf_printf(out, "-s %c ", o->letter);
        if (o->type == CR_ARG_CHOICE) {
            cr_buf_puts(out, "-x -a '");
            spaced_choices(out, o->value);
            cr_buf_puts(out, "' ");
        } else if (o->type != CR_ARG_FLAG) {
            cr_buf_puts(out, is_file(o) ? "-r -F " : "-x ");
        }
        cr_buf_puts(out, "-d '");
        fish_text(out, o->help);
        cr_buf_puts(out, "'\n");
    }
}

void cr_completion_fish(struct cr_buf *out)
{
    cr_buf_puts(out, "# fish completion of crayon: crayon completion fish | source\n");
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const char *name = cr_verbs[i].name;
        size_t n = strcspn(name, " ");
        bool again = i && !strncmp(cr_verbs[i - 1].name, name, n) && cr_verbs[i - 1].name[n] == ' ';
        if (name[n] == ' ' && !again) {
            cr_buf_puts(out, "complete -c crayon -f -n __fish_use_subcommand -a ");
            cr_buf_add(out, name, n);
            cr_buf_puts(out, "\n");
        }
        fish_verb(out, &cr_verbs[i]);
    }
}
