/* SPDX-License-Identifier: Apache-2.0 */
/* Reading configuration files, and `crayon config show`. */
#include "config.h"

#include "base/bytes.h"
#include "base/mem.h"
#include "jsonout.h"
#include "messages.h"
#include "options.h"
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 1 << 20, MAX_ENTRIES = 4096 };

void cr_config_deinit(struct cr_config *c)
{
    for (size_t i = 0; i < c->n; i++) {
        cr_free(c->v[i].verb);
        cr_free(c->v[i].name);
        cr_free(c->v[i].value);
        cr_free(c->v[i].where);
    }
    cr_free(c->v);
    *c = (struct cr_config){0};
}

static char *trim(char *s)
{
    s += strspn(s, " \t");
    size_t n = strlen(s);
    while (n && strchr(" \t\r", s[n - 1]))
        s[--n] = '\0';
    return s;
}

/* Is there such an option: of the verb, or without one of any verb that reads it from outside? */
static bool known(const struct cr_verb *verb, const char *name)
{
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if (!strcmp(o->name, name) &&
            (verb ? (o->verbs & CR_V(verb->id)) != 0 : (o->flags & CR_OF_ENV) != 0))
            return true;
    }
    return false;
}

static enum cr_status unknown(const struct cr_verb *verb, const char *name, const char *where,
                              struct cr_error *err)
{
    const char *words[2 * CR_OPT_COUNT];
    size_t n = 0;
    for (size_t i = 0; i < cr_options_count && n < 2 * CR_OPT_COUNT; i++)
        if (known(verb, cr_options[i].name))
            words[n++] = cr_options[i].name;
    const char *near = strlen(name) < 32 ? cr_suggest(name, words, n) : NULL;
    return cr_error_set(err, CR_INVALID, "%s: unknown option \"%.60s\"%s%s%s%s%s", where, name,
                        verb ? " of " : " outside of a [VERB] section", verb ? verb->name : "",
                        near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

static enum cr_status add(struct cr_config *c, const struct cr_verb *verb, const char *name,
                          const char *value, const char *where, bool system, struct cr_error *err)
{
    if (c->n == MAX_ENTRIES)
        return cr_error_set(err, CR_LIMIT, "%s: want at most %d settings", where, MAX_ENTRIES);
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 16;
        struct cr_config_entry *v = cr_realloc(c->v, cap, sizeof *v);
        if (!v)
            return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", where);
        c->v = v;
        c->cap = cap;
    }
    const char *home = getenv("HOME");
    struct cr_config_entry *e = &c->v[c->n++];
    *e = (struct cr_config_entry){.verb = cr_strdup(verb ? verb->name : ""),
                                  .name = cr_strdup(name),
                                  .value = !strncmp(value, "~/", 2) && home
                                               ? cr_asprintf("%s%s", home, value + 1)
                                               : cr_strdup(value),
                                  .where = cr_strdup(where),
                                  .system = system};
    return e->verb && e->name && e->value && e->where
               ? CR_OK
               : cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", where);
}

enum cr_status cr_config_parse(struct cr_config *c, char *text, const char *name, bool system,
                               struct cr_error *err)
{
    const struct cr_verb *verb = NULL;
    enum cr_status st = CR_OK;
    int number = 0;
    for (char *next, *line = text; line && !st; line = next) {
        char where[512];
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        snprintf(where, sizeof where, "%.480s:%d", name, ++number);
        char *s = trim(line), *equals = strchr(s, '=');
        size_t n = strlen(s);
        if (!n || *s == '#')
            continue;
        if (*s == '[' && s[n - 1] == ']') {
            s[n - 1] = '\0';
            verb = cr_verb_find(trim(s + 1));
            if (!verb)
                st = cr_error_set(err, CR_INVALID, "%s: unknown verb \"%.60s\"", where, s + 1);
            continue;
        }
        if (!equals) {
            st = cr_error_set(err, CR_INVALID, "%s: want NAME = VALUE, found \"%.60s\"", where, s);
            continue;
        }
        *equals = '\0';
        char *key = trim(s), *value = trim(equals + 1);
        n = strlen(value);
        if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
            value[n - 1] = '\0';
            value++;
        }
        st = known(verb, key) ? add(c, verb, key, value, where, system, err)
                              : unknown(verb, key, where, err);
    }
    return st;
}

static enum cr_status read_file(struct cr_config *c, const char *path, bool system, bool must,
                                struct cr_error *err)
{
    char *text;
    size_t n;
    enum cr_status st = cr_file_read(path, MAX_FILE, &text, &n, err);
    if (st == CR_NOT_FOUND && !must)
        return CR_OK;
    if (st)
        return st;
    if (strlen(text) != n)
        st = cr_error_set(err, CR_INVALID, "%s: holds a NUL byte", path);
    else
        st = cr_config_parse(c, text, path, system, err);
    cr_free(text);
    return st;
}

enum cr_status cr_config_read(struct cr_config *c, struct cr_error *err)
{
    const char *system = getenv("CRAYON_SYSTEM_CONFIG"), *user = getenv("CRAYON_CONFIG");
    const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    enum cr_status st = CR_OK;
    *c = (struct cr_config){0};
    if (!system || *system)
        st = read_file(c, system ? system : "/etc/crayon/config", true, system != NULL, err);
    if (st || user)
        return st || !*user ? st : read_file(c, user, false, true, err);
    char *path = base && base[0] == '/'   ? cr_asprintf("%s/crayon/config", base)
                 : home && home[0] == '/' ? cr_asprintf("%s/.config/crayon/config", home)
                                          : NULL;
    if (path)
        st = read_file(c, path, false, false, err);
    cr_free(path);
    return st;
}

/* ---- config show ---- */

static const char *from_environment(const char *name)
{
    return getenv(name);
}

static void origin_text(const struct cr_value *v, char out[600])
{
    char name[64];
    cr_option_env_name(v->opt, name, sizeof name);
    if (v->origin == CR_FROM_ENV)
        snprintf(out, 600, "environment: %s", name);
    else if (v->where)
        snprintf(out, 600, "%s: %.560s", v->origin == CR_FROM_SYSTEM ? "system" : "user", v->where);
    else
        snprintf(out, 600, "default");
}

static void show_value(const struct cr_value *v, const char *text, bool origin)
{
    char where[600];
    origin_text(v, where);
    cr_outf("%s%s = %s", v->origin == CR_FROM_DEFAULT && !origin ? "# " : "", v->opt->name, text);
    if (origin)
        cr_outf("    # %s", where);
    cr_out_puts("\n");
}

static void show(const struct cr_args *of, bool origin)
{
    cr_outf("[%s]\n", of->verb->name);
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_value *v = &of->v[cr_options[i].id];
        if (v->opt != &cr_options[i] || !strcmp(v->opt->name, "help"))
            continue;
        if (v->opt->type == CR_ARG_FLAG)
            show_value(v, v->on ? "yes" : "no", origin);
        for (size_t k = 0; k < v->n; k++)
            show_value(v, v->text[k], origin);
    }
}

static int show_json(const struct cr_args *of)
{
    struct cr_buf b;
    struct cr_json j;
    char where[600];
    cr_buf_init(&b, 1 << 24);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_str(&j, "verb", of->verb->name);
    cr_json_open(&j, "options", '[');
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_value *v = &of->v[cr_options[i].id];
        if (v->opt != &cr_options[i] || (!v->n && v->opt->type != CR_ARG_FLAG))
            continue;
        origin_text(v, where);
        cr_json_open_line(&j, NULL, '{');
        cr_json_str(&j, "name", v->opt->name);
        cr_json_open(&j, "values", '[');
        if (v->opt->type == CR_ARG_FLAG)
            cr_json_str(&j, NULL, v->on ? "yes" : "no");
        for (size_t k = 0; k < v->n; k++)
            cr_json_str(&j, NULL, v->text[k]);
        cr_json_close(&j);
        cr_json_str(&j, "origin", where);
        cr_json_close(&j);
    }
    cr_json_close(&j);
    cr_json_close(&j);
    int code = cr_json_flush(&j);
    cr_buf_deinit(&b);
    return code;
}

int cr_cli_config_show(const struct cr_args *a)
{
    struct cr_error err;
    struct cr_config config;
    struct cr_args of = {0};
    char name[64] = "serve";
    if (a->n_rest)
        snprintf(name, sizeof name, "%s%s%s", a->rest[0], a->n_rest > 1 ? " " : "",
                 a->n_rest > 1 ? a->rest[1] : "");
    const struct cr_verb *verb = cr_verb_find(name);
    if (!verb)
        return cr_misuse("config show", "unknown verb \"%.60s\"", name);
    enum cr_status st = cr_config_read(&config, &err);
    if (!st)
        st = cr_args_defaults(&of, verb, from_environment, &config, &err);
    int code = 0;
    if (st)
        code = cr_fail(&err);
    else if (cr_arg_flag(a, CR_OPT_JSON))
        code = show_json(&of);
    else
        show(&of, cr_arg_flag(a, CR_OPT_ORIGIN));
    cr_args_deinit(&of);
    cr_config_deinit(&config);
    return code;
}
