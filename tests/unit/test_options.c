/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: parser, table, and that help, manual, docs and completions agree with it. */
#include "base/bytes.h"
#include "base/mem.h"
#include "base/rng.h"
#include "options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct cr_args args;
static struct cr_error err;

/* Parses words separated by spaces ("%" stands for an empty word). */
static enum cr_status parse(const char *line)
{
    static char store[4096];
    static const char *argv[256];
    int argc = 0;
    snprintf(store, sizeof store, "crayon %s", line);
    for (char *p = store; *p;) {
        argv[argc++] = strncmp(p, "% ", 2) && strcmp(p, "%") ? p : p + strcspn(p, " ");
        p += strcspn(p, " ");
        if (*p)
            *p++ = '\0';
    }
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "%"))
            argv[i] = "";
    cr_args_deinit(&args);
    memset(&err, 0, sizeof err);
    return cr_args_parse(&args, argc, argv, NULL, &err);
}

static int end_args(void **state)
{
    (void)state;
    cr_args_deinit(&args);
    return 0;
}

static void test_numbers_are_checked_to_the_end(void **state)
{
    (void)state;
    long long i;
    uint64_t u;
    double d;
    static const char *const bad_int[] = {"",    " 1",  "1 ",  "1x", "0x10", "1.0",
                                          "1e3", "--1", "+-1", "-",  "+",    "9223372036854775808"};
    for (size_t k = 0; k < sizeof bad_int / sizeof *bad_int; k++)
        assert_false(cr_parse_int(bad_int[k], &i));
    assert_true(cr_parse_int("-9223372036854775808", &i));
    assert_true(cr_parse_int("+7", &i) && i == 7);
    assert_true(cr_parse_int("007", &i) && i == 7); /* decimal, not octal */
    static const char *const bad_seed[] = {"", "-1", "+1", " 1", "18446744073709551616", "1.5"};
    for (size_t k = 0; k < sizeof bad_seed / sizeof *bad_seed; k++)
        assert_false(cr_parse_seed(bad_seed[k], &u));
    assert_true(cr_parse_seed("18446744073709551615", &u) && u == UINT64_MAX);
    static const char *const bad_real[] = {"",      "nan", "inf", "-inf", "0x1p3", "1e",
                                           "1e999", "1,5", ".",   "1 ",   "e5",    "--1"};
    for (size_t k = 0; k < sizeof bad_real / sizeof *bad_real; k++)
        assert_false(cr_parse_real(bad_real[k], &d));
    assert_true(cr_parse_real("-1.5e-3", &d) && d == -1.5e-3);
    assert_true(cr_parse_real(".5", &d) && d == 0.5);
}

static void test_suggestions(void **state)
{
    (void)state;
    static const char *const words[] = {"temp", "threads", "top-k", "top-p", "q"};
    enum { N = sizeof words / sizeof *words };
    assert_string_equal(cr_suggest("tmep", words, N), "temp");
    assert_string_equal(cr_suggest("thread", words, N), "threads");
    assert_string_equal(cr_suggest("topk", words, N), "top-k");
    assert_null(cr_suggest("zebra", words, N));
    assert_null(cr_suggest("", words, N));
    char big[300];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    assert_null(cr_suggest(big, words, N));
}

static void test_the_table_is_consistent(void **state)
{
    (void)state;
    for (size_t i = 0; i < cr_verbs_count; i++) {
        const struct cr_verb *v = &cr_verbs[i];
        assert_ptr_equal(cr_verb_find(v->name), v);
        assert_true(v->id < CR_VERB_COUNT && v->operands && v->summary && v->about);
        assert_true(v->run || v->missing);
        assert_true(strlen(v->summary) <= 70);
        for (size_t j = 0; j < i; j++)
            assert_true(cr_verbs[j].id != v->id);
        for (const char *p = v->about; *p; p += strcspn(p, "\n"), p += *p == '\n')
            if (strcspn(p, "\n") > 92)
                fail_msg("%s: a line of its help is too long: %.40s...", v->name, p);
    }
    assert_int_equal(cr_verbs_count, CR_VERB_COUNT);
    for (size_t i = 0; i < cr_options_count; i++) {
        const struct cr_option *o = &cr_options[i];
        assert_true(o->name && o->help && o->verbs && !(o->verbs >> CR_VERB_COUNT));
        assert_true((o->type == CR_ARG_FLAG) == !o->value);
        assert_true(strlen(o->name) < 32);
        if (o->help[strlen(o->help) - 1] == '.')
            fail_msg("--%s: the help ends with a full stop", o->name);
        if (o->type == CR_ARG_INT || o->type == CR_ARG_REAL)
            assert_true(o->min < o->max);
        for (size_t j = 0; j < cr_options_count; j++) {
            const struct cr_option *p = &cr_options[j];
            bool same_name = !strcmp(o->name, p->name);
            /* one name is one thing, everywhere */
            if (same_name != (o->id == p->id))
                fail_msg("--%s and --%s: id and name disagree", o->name, p->name);
            if (same_name &&
                (o->letter != p->letter || (o->type == CR_ARG_FLAG) != (p->type == CR_ARG_FLAG)))
                fail_msg("--%s: rows differ in letter or kind", o->name);
            if (i != j && (o->verbs & p->verbs) &&
                (same_name || (o->letter && o->letter == p->letter)))
                fail_msg("--%s and --%s meet in one verb", o->name, p->name);
            /* options before the verb are skipped by the letter alone */
            if (o->letter && o->letter == p->letter)
                assert_true((o->type == CR_ARG_FLAG) == (p->type == CR_ARG_FLAG));
        }
    }
}

static void test_options_stand_anywhere(void **state)
{
    (void)state;
    static const char *const same[] = {"--format markdown man -q", "man --format=markdown --quiet",
                                       "-q man --format markdown", "--format=markdown -q man",
                                       "man -q --format roff --format markdown"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        assert_int_equal(parse(same[i]), CR_OK);
        assert_string_equal(args.verb->name, "man");
        assert_string_equal(cr_arg_text(&args, CR_OPT_FORMAT), "markdown");
        assert_true(cr_arg_given(&args, CR_OPT_FORMAT));
        assert_true(cr_arg_flag(&args, CR_OPT_QUIET));
        assert_int_equal(args.n_rest, 0);
    }
    assert_int_equal(parse("man"), CR_OK);
    assert_string_equal(cr_arg_text(&args, CR_OPT_FORMAT), "roff");
    assert_false(cr_arg_given(&args, CR_OPT_FORMAT));
    assert_int_equal(parse("-qv version --json"), CR_OK);
    assert_true(cr_arg_flag(&args, CR_OPT_VERBOSE));
    assert_int_equal(parse("completion -- bash"), CR_OK);
    assert_string_equal(args.rest[0], "bash");
    assert_int_equal(parse("completion -"), CR_OK);
    assert_string_equal(args.rest[0], "-");
}

static void test_misuse_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"vresion", "did you mean version?"},
        {"man --fromat roff", "did you mean --format?"},
        {"man --format", "needs an argument"},
        {"man --format -q", "found the option -q"},
        {"man --format --", "needs an argument"},
        {"man --format=", "should be roff|markdown"},
        {"man --format rof", "did you mean roff?"},
        {"man --format %", "invalid argument \"\""},
        {"version --json=yes", "takes no argument"},
        {"version --format roff", "belongs to: man"},
        {"version extra", "unexpected operand \"extra\""},
        {"version -- --json", "unexpected operand \"--json\""},
        {"version -", "unexpected operand \"-\""},
        {"version ---json", "unknown option ---json"},
        {"version -qz", "unknown option -z"},
        {"version --=x", "unknown option --"},
        {"completion", "completion needs"},
        {"%", "unknown verb \"\""},
        {"--format roff", "no verb"},
        {"--nonsense", "unknown option --nonsense"},
        {"help nothing", "unknown verb \"nothing\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (parse(cases[i].line) != CR_INVALID)
            fail_msg("\"%s\" was accepted", cases[i].line);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("\"%s\" says \"%s\", not \"%s\"", cases[i].line, err.msg, cases[i].says);
        assert_null(strchr(err.msg, '\n'));
    }
}

static void test_help_wins_over_misuse(void **state)
{
    (void)state;
    assert_int_equal(parse("man --nonsense --help"), CR_OK);
    assert_true(args.help);
    assert_int_equal(parse("help man"), CR_OK);
    assert_true(args.help);
    assert_string_equal(args.verb->name, "man");
    assert_int_equal(parse("--help"), CR_OK);
    assert_true(args.help && !args.verb);
    assert_int_equal(parse("help"), CR_OK);
    assert_true(args.help && !args.verb);
    assert_int_equal(parse("man -qh"), CR_OK);
    assert_true(args.help);
    assert_int_equal(parse("--version"), CR_OK);
    assert_true(args.version);
    assert_int_equal(parse(""), CR_OK);
    assert_true(!args.help && !args.verb && !args.word);
}

static void test_no_argument_breaks_it(void **state)
{
    (void)state;
    struct cr_rng rng;
    cr_rng_init(&rng, 7);
    static const char *const pieces[] = {
        "-", "--",   "=",  "q",   "man",   "version", "json",  "format",  "roff",       "help",
        "%", "\xff", "-h", "--q", "1e400", "|",       "\x1b[", "--json=", "completion", "-qv"};
    char word[256], line[2048];
    for (int round = 0; round < 20000; round++) {
        line[0] = '\0';
        for (uint64_t n = cr_rng_below(&rng, 6); n; n--) {
            word[0] = '\0';
            for (uint64_t k = 1 + cr_rng_below(&rng, 3); k; k--)
                strncat(word, pieces[cr_rng_below(&rng, sizeof pieces / sizeof *pieces)],
                        sizeof word - strlen(word) - 1);
            snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s", *line ? " " : "",
                     word);
        }
        enum cr_status st = parse(line);
        if (st && st != CR_INVALID)
            fail_msg("\"%s\" gave status %d", line, (int)st);
        if (st)
            assert_true(err.msg[0] != '\0');
    }
}

static void test_a_long_argument_keeps_the_message_short(void **state)
{
    (void)state;
    static char big[100000];
    memset(big, 'x', sizeof big - 1);
    const char *argv[] = {"crayon", big};
    cr_args_deinit(&args);
    assert_int_equal(cr_args_parse(&args, 2, argv, NULL, &err), CR_INVALID);
    const char *argv2[] = {"crayon", "man", "--format", big};
    cr_args_deinit(&args);
    assert_int_equal(cr_args_parse(&args, 4, argv2, NULL, &err), CR_INVALID);
    memset(big, '-', 40);
    const char *argv3[] = {"crayon", "man", big};
    cr_args_deinit(&args);
    assert_int_equal(cr_args_parse(&args, 3, argv3, NULL, &err), CR_INVALID);
}

static void test_out_of_memory_is_reported(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 100; n++) {
        cr_mem_fail_at(n, true);
        enum cr_status st = parse("man -q --format markdown");
        cr_mem_fail_at(0, false);
        if (!st)
            return;
        assert_int_equal(st, CR_NO_MEMORY);
    }
    fail_msg("parsing never succeeded");
}

static void test_env_names(void **state)
{
    (void)state;
    struct cr_option o = {.name = "upstream-model"};
    char name[64], little[9];
    cr_option_env_name(&o, name, sizeof name);
    assert_string_equal(name, "CRAYON_UPSTREAM_MODEL");
    cr_option_env_name(&o, little, sizeof little);
    assert_string_equal(little, "CRAYON_U");
}

/* Every option of every verb stands in each text that is made for the verb. */
static void test_all_texts_name_every_option(void **state)
{
    (void)state;
    struct cr_buf help, texts[5];
    void (*const write[5])(struct cr_buf *) = {cr_manual_roff, cr_manual_markdown,
                                               cr_completion_bash, cr_completion_zsh,
                                               cr_completion_fish};
    for (int k = 0; k < 5; k++) {
        cr_buf_init(&texts[k], 1 << 22);
        write[k](&texts[k]);
        assert_false(texts[k].failed);
    }
    for (size_t i = 0; i < cr_verbs_count; i++) {
        cr_buf_init(&help, 1 << 20);
        cr_help_verb(&help, &cr_verbs[i]);
        assert_false(help.failed);
        for (size_t k = 0; k < cr_options_count; k++) {
            char flag[64];
            snprintf(flag, sizeof flag, "--%s", cr_options[k].name);
            if (cr_options[k].verbs & CR_V(cr_verbs[i].id))
                assert_non_null(strstr(help.data, flag));
            assert_non_null(strstr(texts[1].data, flag));
            assert_non_null(strstr(texts[2].data, flag));
        }
        assert_non_null(strstr(texts[1].data, cr_verbs[i].name));
        cr_buf_deinit(&help);
    }
    for (int k = 0; k < 5; k++)
        cr_buf_deinit(&texts[k]);
}

static void test_docs_are_up_to_date(void **state)
{
    (void)state;
    char *data;
    size_t len;
    assert_int_equal(cr_file_read(CR_SOURCE_DIR "/docs/cli.md", 1 << 22, &data, &len, &err), CR_OK);
    struct cr_buf want;
    cr_buf_init(&want, 1 << 22);
    cr_manual_markdown(&want);
    if (want.len != len || memcmp(want.data, data, len))
        fail_msg("docs/cli.md differs from `crayon man --format markdown`");
    cr_buf_deinit(&want);
    cr_free(data);
}

/* Every status maps to an exit code that the table of exit codes explains. */
static void test_exit_codes_are_documented(void **state)
{
    (void)state;
    for (int st = 0; st <= (int)CR_INTERNAL; st++) {
        bool found = false;
        for (size_t i = 0; i < cr_exit_codes_count; i++)
            found = found || cr_exit_codes[i].code == cr_status_exit_code((enum cr_status)st);
        assert_true(found);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_are_checked_to_the_end),
        cmocka_unit_test(test_suggestions),
        cmocka_unit_test(test_the_table_is_consistent),
        cmocka_unit_test(test_options_stand_anywhere),
        cmocka_unit_test(test_misuse_is_named),
        cmocka_unit_test(test_help_wins_over_misuse),
        cmocka_unit_test(test_no_argument_breaks_it),
        cmocka_unit_test(test_a_long_argument_keeps_the_message_short),
        cmocka_unit_test(test_out_of_memory_is_reported),
        cmocka_unit_test(test_env_names),
        cmocka_unit_test(test_all_texts_name_every_option),
        cmocka_unit_test(test_docs_are_up_to_date),
        cmocka_unit_test(test_exit_codes_are_documented),
    };
    return cmocka_run_group_tests(tests, NULL, end_args);
}
