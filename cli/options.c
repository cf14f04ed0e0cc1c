/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line parser. It knows no verb and no option by name: everything comes from the
 * tables. Nothing is copied; values point into argv or the environment.
 */
#include "options.h"

#include "config.h"

#include "base/mem.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- numbers and words ---- */

bool cr_parse_int(const char *s, long long *out)
{
    const char *p = *s == '-' || *s == '+' ? s + 1 : s;
    if (!isdigit((unsigned char)*p))
        return false;
    char *end;
    errno = 0;
    *out = strtoll(s, &end, 10);
    return !*end && !errno;
}

bool cr_parse_seed(const char *s, uint64_t *out)
{
    if (!isdigit((unsigned char)*s))
        return false;
    char *end;
    errno = 0;
    *out = strtoull(s, &end, 10);
    return !*end && !errno;
}

bool cr_parse_real(const char *s, double *out)
{
    if (!*s || strspn(s, "+-.0123456789eE") != strlen(s))
        return false;
    char *end;
    *out = strtod(s, &end); /* the program never leaves the C locale */
    return end != s && !*end && isfinite(*out);
}

bool cr_parse_bytes(const char *s, uint64_t *out)
{
    static const char units[] = "KMGT";
    char digits[24];
    size_t n = strlen(s);
    const char *unit = n ? strchr(units, toupper((unsigned char)s[n - 1])) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    n -= unit != NULL;
    if (!n || n >= sizeof digits)
        return false;
    memcpy(digits, s, n);
    digits[n] = '\0';
    uint64_t v;
    if (!cr_parse_seed(digits, &v) || v > UINT64_MAX >> shift)
        return false;
    *out = v << shift;
    return true;
}

size_t cr_choice_at(const char *choices, size_t i, const char **item)
{
    const char *p = choices;
    for (; i && p; i--) {
        p = strchr(p, '|');
        p = p ? p + 1 : NULL;
    }
    *item = p;
    return p ? strcspn(p, "|") : 0;
}

enum { LONGEST_WORD = 31 };

/* Edits between a and b where a swap of neighbours counts as one (optimal string alignment). */
static size_t edits(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    size_t d[LONGEST_WORD + 1][LONGEST_WORD + 1];
    if (n > LONGEST_WORD || m > LONGEST_WORD)
        return LONGEST_WORD;
    for (size_t i = 0; i <= n; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= n; i++)
        for (size_t j = 1; j <= m; j++) {
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

const char *cr_suggest(const char *s, const char *const *words, size_t n)
{
    const char *best = NULL;
    size_t best_edits = 1 + strlen(s) / 3, least = best_edits + 1;
    for (size_t i = 0; i < n; i++) {
        size_t e = edits(s, words[i]);
        if (e <= best_edits && e < least && e < strlen(words[i])) {
            least = e;
            best = words[i];
        }
    }
    return best;
}

/* ---- looking things up ---- */

const struct cr_verb *cr_verb_find(const char *name)
{
    for (size_t i = 0; i < cr_verbs_count; i++)
        if (!strcmp(cr_verbs[i].name, name))
            return &cr_verbs[i];
    return NULL;
}

bool cr_verb_is_family(const char *word)
{
    size_t n = strlen(word);
    for (size_t i = 0; n && i < cr_verbs_count; i++)
        if (!strncmp(cr_verbs[i].name, word, n) && cr_verbs[i].name[n] == ' ')
            return true;
    return false;
}

/* The row for a long name of n bytes or a letter, of this verb; verb NULL: of any verb. */
static const struct cr_option *find_option(const struct cr_verb *verb, const char *name, size_t n,
                                           char letter)
{
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        bool same = name ? strlen(o->name) == n && !memcmp(o->name, name, n)
                         : letter && o->letter == letter;
        if (same && (!verb || (o->verbs & CR_V(verb->id))))
            return o;
    }
    return NULL;
}

void cr_option_env_name(const struct cr_option *o, char *out, size_t size)
{
    const char *prefix = "CRAYON_";
    size_t n = 0;
    for (; *prefix && n + 1 < size; prefix++)
        out[n++] = *prefix;
    for (const char *p = o->name; *p && n + 1 < size; p++)
        out[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    out[n] = '\0';
}

/* ---- one value ---- */

struct parser {
    struct cr_args *a;
    int argc, at; /* at: the next argument */
    const char *const *argv;
    const char *(*env)(const char *name);
    const struct cr_config *config;
    struct cr_error *err;
};

static enum cr_status bad_choice(const struct cr_option *o, const char *text, const char *where,
                                 struct cr_error *err)
{
    char store[16][LONGEST_WORD + 1];
    const char *words[16], *item, *near;
    size_t n = 0, len;
    for (; n < 16 && (len = cr_choice_at(o->value, n, &item)) != 0; n++) {
        if (len > LONGEST_WORD)
            len = LONGEST_WORD;
        memcpy(store[n], item, len);
        store[n][len] = '\0';
        words[n] = store[n];
    }
    near = cr_suggest(text, words, n);
    return cr_error_set(err, CR_INVALID, "invalid argument \"%s\" for %s; should be %s%s%s%s", text,
                        where, o->value, near ? " (did you mean " : "", near ? near : "",
                        near ? "?)" : "");
}

/* Checks the text and stores it. `where` names the option or the variable in messages. */
static enum cr_status set_value(struct cr_args *a, const struct cr_option *o, const char *text,
                                const char *where, enum cr_origin origin, struct cr_error *err)
{
    struct cr_value *v = &a->v[o->id];
    const char *item;
    switch (o->type) {
    case CR_ARG_FLAG:
        break;
    case CR_ARG_INT:
        if (!cr_parse_int(text, &v->i) || (double)v->i < o->min || (double)v->i > o->max)
            return cr_error_set(
                err, CR_INVALID,
                "invalid argument \"%s\" for %s; should be an integer from %.0f to %.0f", text,
                where, o->min, o->max);
        break;
    case CR_ARG_SEED:
        if (!cr_parse_seed(text, &v->seed))
            return cr_error_set(
                err, CR_INVALID,
                "invalid argument \"%s\" for %s; should be an integer from 0 to %llu", text, where,
                (unsigned long long)UINT64_MAX);
        break;
    case CR_ARG_REAL:
        if (!cr_parse_real(text, &v->real) || v->real < o->min || v->real > o->max)
            return cr_error_set(err, CR_INVALID,
                                "invalid argument \"%s\" for %s; should be a number from %g to %g",
                                text, where, o->min, o->max);
        break;
    case CR_ARG_BYTES:
        if (!cr_parse_bytes(text, &v->seed))
            return cr_error_set(err, CR_INVALID,
                                "invalid argument \"%s\" for %s; should be bytes, as in 512M or 4G",
                                text, where);
        break;
    case CR_ARG_CHOICE:
        for (size_t i = 0, n; (n = cr_choice_at(o->value, i, &item)) != 0; i++)
            if (strlen(text) == n && !memcmp(text, item, n))
                goto good;
        return bad_choice(o, text, where, err);
    case CR_ARG_FILE:
    case CR_ARG_DIR:
        if (!*text)
            return cr_error_set(err, CR_INVALID, "empty name for %s; should be %s", where,
                                o->value);
        break;
    case CR_ARG_TEXT:
        break;
    }
good:
    if (o->type != CR_ARG_FLAG) {
        size_t keep = (o->flags & CR_OF_MANY) && v->origin == origin ? v->n : 0;
        const char **grown = cr_realloc((void *)v->text, keep + 1, sizeof *grown);
        if (!grown)
            return cr_error_set(err, CR_NO_MEMORY, "out of memory reading the command line");
        v->text = grown;
        v->text[keep] = text;
        v->n = keep + 1;
    }
    v->set = v->on = true;
    v->origin = origin;
    return CR_OK;
}

/* Is this argument exactly an option of the verb? Then it is no value: somebody forgot one. */
static bool is_option(const struct cr_verb *verb, const char *arg)
{
    if (arg[0] != '-' || !arg[1])
        return false;
    if (arg[1] != '-')
        return !arg[2] && find_option(verb, NULL, 0, arg[1]);
    return arg[2] && find_option(verb, arg + 2, strcspn(arg + 2, "="), 0);
}

static enum cr_status unknown_option(struct parser *p, const char *shown, const char *name,
                                     size_t n, char letter)
{
    const struct cr_verb *verb = p->a->verb;
    const struct cr_option *other = find_option(NULL, name, n, letter);
    if (other && verb) {
        char list[160] = "";
        for (size_t i = 0; i < cr_verbs_count; i++) {
            const struct cr_option *o = find_option(&cr_verbs[i], name, n, letter);
            size_t used = strlen(list), len = strlen(cr_verbs[i].name);
            if (o && used + len + 6 < sizeof list) {
                if (used)
                    memcpy(list + used, ", ", 3);
                memcpy(list + strlen(list), cr_verbs[i].name, len + 1);
            }
        }
        return cr_error_set(p->err, CR_INVALID, "%s takes no option %s (it belongs to: %s)",
                            verb->name, shown, list);
    }
    const char *words[2 * CR_OPT_COUNT];
    size_t n_words = 0;
    for (size_t i = 0; i < cr_options_count && n_words < 2 * CR_OPT_COUNT; i++)
        if (!verb || (cr_options[i].verbs & CR_V(verb->id)))
            words[n_words++] = cr_options[i].name;
    char typed[LONGEST_WORD + 1] = "";
    if (name && n <= LONGEST_WORD) {
        memcpy(typed, name, n);
        typed[n] = '\0';
    }
    const char *near = *typed ? cr_suggest(typed, words, n_words) : NULL;
    return cr_error_set(p->err, CR_INVALID, "unknown option %s%s%s%s", shown,
                        near ? " (did you mean --" : "", near ? near : "", near ? "?)" : "");
}

/* Stores option o; attached: the value after "=" or the letter, NULL: in the next argument. */
static enum cr_status take_option(struct parser *p, const struct cr_option *o, const char *attached)
{
    char where[64];
    struct cr_buf b;
    cr_buf_init(&b, sizeof where);
    bool ok = o->letter ? cr_buf_printf(&b, "option -%c/--%s", o->letter, o->name)
                        : cr_buf_printf(&b, "option --%s", o->name);
    memcpy(where, ok ? b.data : "option", ok ? b.len + 1 : sizeof "option");
    cr_buf_deinit(&b);
    if (o->type == CR_ARG_FLAG) {
        if (attached)
            return cr_error_set(p->err, CR_INVALID, "%s takes no argument, found \"%s\"", where,
                                attached);
        return set_value(p->a, o, "", where, CR_FROM_FLAG, p->err);
    }
    if (!attached) {
        if (p->at >= p->argc)
            return cr_error_set(p->err, CR_INVALID, "%s needs an argument: %s", where, o->value);
        attached = p->argv[p->at];
        if (is_option(p->a->verb, attached) || !strcmp(attached, "--"))
            return cr_error_set(p->err, CR_INVALID,
                                "%s needs an argument, found the option %s; write --%s=%s if that "
                                "is meant",
                                where, attached, o->name, attached);
        p->at++;
    }
    return set_value(p->a, o, attached, where, CR_FROM_FLAG, p->err);
}

static enum cr_status take_long(struct parser *p, const char *arg)
{
    const char *name = arg + 2;
    size_t n = strcspn(name, "=");
    const struct cr_option *o = find_option(p->a->verb, name, n, 0);
    if (!o) {
        char *shown = cr_strndup(arg, 2 + n);
        enum cr_status st = unknown_option(p, shown ? shown : "?", name, n, 0);
        cr_free(shown);
        return st;
    }
    return take_option(p, o, name[n] ? name + n + 1 : NULL);
}

static enum cr_status take_letters(struct parser *p, const char *arg)
{
    for (const char *c = arg + 1; *c; c++) {
        const struct cr_option *o = find_option(p->a->verb, NULL, 0, *c);
        if (!o) {
            char shown[3] = {'-', *c, '\0'};
            return unknown_option(p, shown, NULL, 0, *c);
        }
        if (o->type != CR_ARG_FLAG)
            return take_option(p, o, c[1] ? c + 1 : NULL);
        enum cr_status st = take_option(p, o, NULL);
        if (st)
            return st;
    }
    return CR_OK;
}

/* ---- the whole line ---- */

/* How many arguments the option at argv[i] takes with it, itself included, by any verb's rows:
 * rows of one name agree on that. Needed to find the verb among options that stand before it. */
static int option_span(int argc, const char *const *argv, int i)
{
    const char *arg = argv[i];
    const struct cr_option *o = NULL;
    bool attached = false;
    if (arg[1] == '-') {
        size_t n = strcspn(arg + 2, "=");
        o = find_option(NULL, arg + 2, n, 0);
        attached = arg[2 + n] != '\0';
    } else {
        for (const char *c = arg + 1; *c && (!o || o->type == CR_ARG_FLAG); c++) {
            o = find_option(NULL, NULL, 0, *c);
            attached = c[1] != '\0';
            if (!o)
                break;
        }
    }
    return o && o->type != CR_ARG_FLAG && !attached && i + 1 < argc ? 2 : 1;
}

/* Index of the next operand at or after i; argc: none. */
static int next_operand(int argc, const char *const *argv, int i)
{
    while (i < argc && argv[i][0] == '-' && argv[i][1]) {
        if (!strcmp(argv[i], "--"))
            return argc;
        i += option_span(argc, argv, i);
    }
    return i < argc ? i : argc;
}

static enum cr_status unknown_verb(const char *word, const char *family, struct cr_error *err)
{
    const char *words[2 * CR_VERB_COUNT + 2] = {NULL};
    char firsts[CR_VERB_COUNT][LONGEST_WORD + 1];
    size_t n = 0, flen = family ? strlen(family) + 1 : 0;
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const char *name = cr_verbs[i].name;
        if (family) {
            if (!strncmp(name, family, flen - 1) && name[flen - 1] == ' ')
                words[n++] = name + flen;
            continue;
        }
        size_t len = strcspn(name, " ");
        memcpy(firsts[i], name, len);
        firsts[i][len] = '\0';
        words[n++] = firsts[i];
    }
    if (!family)
        words[n++] = "help";
    const char *near = cr_suggest(word, words, n);
    return cr_error_set(err, CR_INVALID, "unknown verb \"%s%s%s\"%s%s%s%s%s", family ? family : "",
                        family ? " " : "", word, near ? " (did you mean " : "",
                        near && family ? family : "", near && family ? " " : "", near ? near : "",
                        near ? "?)" : "");
}

/* Finds the verb; skip[0..1] become the indices of its words in argv (0: none). */
static enum cr_status find_verb(struct parser *p, int skip[2])
{
    struct cr_args *a = p->a;
    int first = next_operand(p->argc, p->argv, 1);
    skip[0] = skip[1] = 0;
    if (first == p->argc)
        return CR_OK;
    skip[0] = first;
    const char *word = p->argv[first];
    if (!strcmp(word, "help")) {
        a->help = true;
        first = next_operand(p->argc, p->argv, first + 1);
        if (first == p->argc)
            return CR_OK;
        word = p->argv[skip[1] = first];
    }
    a->verb = cr_verb_find(word);
    if (a->verb)
        return CR_OK;
    if (!cr_verb_is_family(word))
        return unknown_verb(word, NULL, p->err);
    a->word = word;
    int second = next_operand(p->argc, p->argv, first + 1);
    if (second == p->argc)
        return CR_OK;
    char *both = cr_asprintf("%s %s", word, p->argv[second]);
    if (!both)
        return cr_error_set(p->err, CR_NO_MEMORY, "out of memory reading the command line");
    a->verb = cr_verb_find(both);
    cr_free(both);
    skip[1] = second;
    return a->verb ? CR_OK : unknown_verb(p->argv[second], word, p->err);
}

/* A flag may be set or not by a word. */
static enum cr_status set_word(struct parser *p, const struct cr_option *o, const char *text,
                               const char *where, enum cr_origin origin)
{
    if (o->type == CR_ARG_FLAG) {
        if (!strcmp(text, "0") || !strcmp(text, "no") || !strcmp(text, "false")) {
            p->a->v[o->id].on = false;
            return CR_OK;
        }
        if (strcmp(text, "1") && strcmp(text, "yes") && strcmp(text, "true"))
            return cr_error_set(p->err, CR_INVALID, "invalid value \"%s\" of %s; should be 1 or 0",
                                text, where);
    }
    return set_value(p->a, o, text, where, origin, p->err);
}

/* What the files say about an option, the system's first, a verb's section after the general. */
static enum cr_status set_from_files(struct parser *p, const struct cr_option *o)
{
    const struct cr_config *c = p->config;
    enum cr_status st = CR_OK;
    for (int pass = 0; c && pass < 4 && !st; pass++)
        for (size_t i = 0; i < c->n && !st; i++) {
            const struct cr_config_entry *e = &c->v[i];
            bool section = *e->verb != '\0';
            enum cr_origin origin = e->system ? CR_FROM_SYSTEM : CR_FROM_USER;
            if ((pass < 2) != e->system || (pass % 2 != 0) != section || strcmp(e->name, o->name) ||
                (section && strcmp(e->verb, p->a->verb->name)))
                continue;
            struct cr_value *v = &p->a->v[o->id];
            if (pass % 2 && v->origin == origin && v->where && v->pass != pass)
                v->n = 0; /* a section's list takes the place of the general one */
            v->pass = pass;
            st = set_word(p, o, e->value, e->where, origin);
            v->where = e->where;
        }
    return st;
}

/* Defaults, then files, then the environment, for every option of the verb. */
static enum cr_status set_defaults(struct parser *p)
{
    struct cr_args *a = p->a;
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if (!(o->verbs & CR_V(a->verb->id)))
            continue;
        a->v[o->id].opt = o;
        enum cr_status st =
            o->preset ? set_value(a, o, o->preset, o->name, CR_FROM_DEFAULT, p->err) : CR_OK;
        if (!st)
            st = set_from_files(p, o);
        if (st)
            return st;
        char name[64];
        cr_option_env_name(o, name, sizeof name);
        const char *text = p->env && (o->flags & CR_OF_ENV) ? p->env(name) : NULL;
        if (!text || !*text)
            continue;
        a->v[o->id].where = NULL;
        st = set_word(p, o, text, name, CR_FROM_ENV);
        if (st)
            return st;
    }
    return CR_OK;
}

enum cr_status cr_args_defaults(struct cr_args *a, const struct cr_verb *verb,
                                const char *(*env)(const char *name),
                                const struct cr_config *config, struct cr_error *err)
{
    memset(a, 0, sizeof *a);
    a->verb = verb;
    struct parser p = {.a = a, .env = env, .config = config, .err = err};
    return set_defaults(&p);
}

static enum cr_status check_operands(struct parser *p)
{
    const struct cr_verb *v = p->a->verb;
    if (v->max_rest >= 0 && p->a->n_rest > (size_t)v->max_rest) {
        const char *extra = p->a->rest[v->max_rest];
        return cr_error_set(p->err, CR_INVALID, "unexpected operand \"%s\"; %s takes %s", extra,
                            v->name, *v->operands ? v->operands : "none");
    }
    if (p->a->n_rest < (size_t)v->min_rest)
        return cr_error_set(p->err, CR_INVALID, "%s needs %s", v->name, v->operands);
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        if ((o->verbs & CR_V(v->id)) && (o->flags & CR_OF_MUST) && !p->a->v[o->id].set)
            return cr_error_set(p->err, CR_INVALID, "%s needs the option %s%c%s--%s %s", v->name,
                                o->letter ? "-" : "", o->letter ? o->letter : ' ',
                                o->letter ? "/" : "", o->name, o->value);
    }
    return CR_OK;
}

/* Without a verb only --help and --version mean something. */
static enum cr_status parse_bare(struct parser *p)
{
    for (int i = 1; i < p->argc; i++) {
        const char *arg = p->argv[i];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h"))
            p->a->help = true;
        else if (!strcmp(arg, "--version") || !strcmp(arg, "-V"))
            p->a->version = true;
        else if (arg[0] == '-' && arg[1] && strcmp(arg, "--"))
            return is_option(NULL, arg)
                       ? cr_error_set(p->err, CR_INVALID, "no verb given with the option %s", arg)
                       : unknown_option(p, arg, arg[1] == '-' ? arg + 2 : NULL,
                                        strcspn(arg + 2, "="), arg[1]);
    }
    return CR_OK;
}

static bool asks_for_help(int argc, const char *const *argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return true;
    return false;
}

enum cr_status cr_args_parse(struct cr_args *a, int argc, const char *const *argv,
                             const char *(*env)(const char *name), struct cr_error *err)
{
    return cr_args_parse_with(a, argc, argv, env, NULL, err);
}

enum cr_status cr_args_parse_with(struct cr_args *a, int argc, const char *const *argv,
                                  const char *(*env)(const char *name),
                                  const struct cr_config *config, struct cr_error *err)
{
    memset(a, 0, sizeof *a);
    a->argc = argc;
    a->argv = argv;
    struct parser p = {
        .a = a, .argc = argc, .at = 1, .argv = argv, .env = env, .config = config, .err = err};
    int skip[2];
    enum cr_status st = find_verb(&p, skip);
    if (st)
        return st;
    if (!a->verb && !a->word)
        return parse_bare(&p);
    a->help = a->help || asks_for_help(argc, argv);
    if (a->help || !a->verb)
        return CR_OK;
    a->rest = cr_alloc((size_t)argc, sizeof *a->rest);
    if (!a->rest)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory reading the command line");
    st = set_defaults(&p);
    bool options = true;
    while (!st && p.at < argc) {
        int i = p.at++;
        const char *arg = argv[i];
        if (i == skip[0] || i == skip[1])
            continue;
        if (!options || arg[0] != '-' || !arg[1])
            a->rest[a->n_rest++] = arg;
        else if (!strcmp(arg, "--"))
            options = false;
        else
            st = arg[1] == '-' ? take_long(&p, arg) : take_letters(&p, arg);
    }
    a->help = !st && a->v[CR_OPT_HELP].on;
    return st || a->help ? st : check_operands(&p);
}

void cr_args_deinit(struct cr_args *a)
{
    for (size_t i = 0; i < CR_OPT_COUNT; i++)
        cr_free((void *)a->v[i].text);
    cr_free((void *)a->rest);
    a->rest = NULL;
    memset(a->v, 0, sizeof a->v);
}

/* ---- values ---- */

static const struct cr_value *value_of(const struct cr_args *a, enum cr_opt id)
{
    assert(a->v[id].opt && "the verb does not take this option: see table_options.c");
    return &a->v[id];
}

bool cr_arg_flag(const struct cr_args *a, enum cr_opt id)
{
    return value_of(a, id)->on;
}

int cr_arg_int(const struct cr_args *a, enum cr_opt id)
{
    return (int)value_of(a, id)->i;
}

uint64_t cr_arg_seed(const struct cr_args *a, enum cr_opt id)
{
    return value_of(a, id)->seed;
}

uint64_t cr_arg_bytes(const struct cr_args *a, enum cr_opt id)
{
    return value_of(a, id)->seed;
}

double cr_arg_real(const struct cr_args *a, enum cr_opt id)
{
    return value_of(a, id)->real;
}

const char *cr_arg_text(const struct cr_args *a, enum cr_opt id)
{
    const struct cr_value *v = value_of(a, id);
    return v->n ? v->text[v->n - 1] : NULL;
}

const char *const *cr_arg_texts(const struct cr_args *a, enum cr_opt id, size_t *n)
{
    const struct cr_value *v = value_of(a, id);
    *n = v->n;
    return v->text;
}

bool cr_arg_given(const struct cr_args *a, enum cr_opt id)
{
    return value_of(a, id)->origin != CR_FROM_DEFAULT;
}
