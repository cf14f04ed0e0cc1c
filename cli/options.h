/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One table of verbs (table.c) and one of options (table_options.c) make the parser, `--help`, the
 * man page, docs/cli.md and the shell completions, so that they cannot differ.
 *
 * To add an option: a name in enum cr_opt and a row in table_options.c. To add a verb: a name in
 * enum cr_verb_id, a row in table.c, one function `int cr_cli_VERB(const struct cr_args *)`
 * declared in verbs.h, in a file of its own, and its bit in the rows of the options that it takes.
 * Then run `crayon man --format markdown > docs/cli.md`; a test compares them.
 *
 * Rules of the command line: options stand anywhere; `--name value`, `--name=value`, `-n value`,
 * `-nvalue`; letters of flags may be joined; `--` ends options; `-` alone is an operand; the last
 * of a repeated option wins unless it is repeatable; a flag wins over the environment
 * (CRAYON_NAME), which wins over the user's and the system's file (config.h), which win over the
 * default. Numbers are checked to their last character.
 */
#ifndef CR_OPTIONS_H
#define CR_OPTIONS_H

#include "base/bytes.h"

enum cr_verb_id {
    CR_VERB_RUN,
    CR_VERB_TOKENIZE,
    CR_VERB_SCORE,
    CR_VERB_LOGITS,
    CR_VERB_INFO,
    CR_VERB_ADAPTER_CHECK,
    CR_VERB_ADAPTER_INFO,
    CR_VERB_ADAPTER_CONVERT,
    CR_VERB_ADAPTER_MERGE,
    CR_VERB_POOL_TRAIN,
    CR_VERB_POOL_INFO,
    CR_VERB_POOL_EXPORT,
    CR_VERB_POOL_CONVERT,
    CR_VERB_BLEND,
    CR_VERB_EVAL,
    CR_VERB_SERVE,
    CR_VERB_ROUTE_EXPLAIN,
    CR_VERB_ROUTE_CALIBRATE,
    CR_VERB_LEDGER,
    CR_VERB_PULL,
    CR_VERB_LIST,
    CR_VERB_CONFIG_SHOW,
    CR_VERB_BENCH,
    CR_VERB_DOCTOR,
    CR_VERB_VERSION,
    CR_VERB_COMPLETION,
    CR_VERB_MAN,
    CR_VERB_COUNT
};

enum cr_opt {
    /* input */
    CR_OPT_PROMPT,
    CR_OPT_SYSTEM,
    CR_OPT_RAW,
    CR_OPT_CHAT,
    CR_OPT_SPECIAL,
    CR_OPT_BOS,
    CR_OPT_LINES,
    CR_OPT_JSONL,
    CR_OPT_TOKENS,
    CR_OPT_EXAMPLES,
    CR_OPT_TASKS,
    CR_OPT_BASE,
    CR_OPT_TASK,
    /* model */
    CR_OPT_MODEL,
    CR_OPT_ADAPTER,
    CR_OPT_PALETTE,
    CR_OPT_POOL,
    CR_OPT_THREADS,
    CR_OPT_CPU,
    CR_OPT_DEVICE,
    CR_OPT_DEVICES,
    CR_OPT_PAGES,
    CR_OPT_KV,
    CR_OPT_LOOKUP,
    CR_OPT_DRAFT,
    CR_OPT_CTX,
    CR_OPT_TEMPLATE,
    /* sampling */
    CR_OPT_MAX_TOKENS,
    CR_OPT_TEMP,
    CR_OPT_TOP_K,
    CR_OPT_TOP_P,
    CR_OPT_MIN_P,
    CR_OPT_REPEAT_PENALTY,
    CR_OPT_REPEAT_LAST_N,
    CR_OPT_SEED,
    CR_OPT_STOP,
    CR_OPT_IGNORE_END,
    /* blend and evaluation */
    CR_OPT_LEVEL,
    CR_OPT_SOLVER,
    CR_OPT_VIEW,
    CR_OPT_TAU,
    CR_OPT_EVALS,
    CR_OPT_HELD_OUT,
    CR_OPT_SHOTS,
    CR_OPT_WORKED,
    CR_OPT_LIMIT,
    CR_OPT_SOLVERS,
    CR_OPT_SINGLES,
    CR_OPT_ROW,
    CR_OPT_GROUPS,
    CR_OPT_AGAINST,
    CR_OPT_F1,
    /* training */
    CR_OPT_KIND,
    CR_OPT_START,
    CR_OPT_FORM,
    CR_OPT_HARD,
    CR_OPT_N,
    CR_OPT_RANK,
    CR_OPT_ALPHA,
    CR_OPT_TARGETS,
    CR_OPT_ROWS,
    CR_OPT_MAX_LENGTH,
    CR_OPT_ALONE,
    CR_OPT_GENERAL,
    CR_OPT_STEPS,
    CR_OPT_EPOCHS,
    CR_OPT_STEP_TOKENS,
    CR_OPT_BATCH_TOKENS,
    CR_OPT_PRECISION,
    CR_OPT_RECOMPUTE,
    CR_OPT_LR,
    CR_OPT_LR_WEIGHTS,
    CR_OPT_BETA1,
    CR_OPT_BETA2,
    CR_OPT_WEIGHT_DECAY,
    CR_OPT_WARM_UP,
    CR_OPT_LR_END,
    CR_OPT_CLIP,
    CR_OPT_CHECKPOINT,
    CR_OPT_CHECKPOINT_SECONDS,
    CR_OPT_CHECKPOINT_STEPS,
    CR_OPT_RESUME,
    CR_OPT_MEMORY,
    CR_OPT_PLAN,
    /* server */
    CR_OPT_HOST,
    CR_OPT_PORT,
    CR_OPT_ALIAS,
    CR_OPT_SERVER_KEY_FILE,
    CR_OPT_ADMIN_KEY_FILE,
    CR_OPT_ADAPTER_DIR,
    CR_OPT_PARALLEL,
    CR_OPT_QUEUE,
    CR_OPT_LOG,
    /* routing */
    CR_OPT_UPSTREAM,
    CR_OPT_UPSTREAM_MODEL,
    CR_OPT_UPSTREAM_KEY_FILE,
    CR_OPT_UPSTREAM_TIMEOUT,
    CR_OPT_UPSTREAM_PRICE,
    CR_OPT_UPSTREAM_INSECURE,
    CR_OPT_UPSTREAM_CA,
    CR_OPT_RULE,
    CR_OPT_BUDGET,
    CR_OPT_MAX_WRONG,
    CR_OPT_BUDGET_WINDOW,
    CR_OPT_MAX_COST,
    CR_OPT_MAX_SPEND,
    CR_OPT_SPEND_HOURS,
    CR_OPT_MASK,
    CR_OPT_MASK_PATTERN,
    CR_OPT_LEARN,
    CR_OPT_EXPORT,
    CR_OPT_PRUNE,
    CR_OPT_INDEX,
    CR_OPT_SHA256,
    CR_OPT_CA,
    CR_OPT_MAX_BYTES,
    CR_OPT_FORCE,
    CR_OPT_ORIGIN,
    CR_OPT_YES,
    CR_OPT_OFFLINE,
    CR_OPT_OUT_OF_SCOPE,
    CR_OPT_ANSWERS,
    CR_OPT_COMPARE_BASE,
    /* bench */
    CR_OPT_PREFILL,
    CR_OPT_DECODE,
    CR_OPT_DEPTH,
    CR_OPT_SEQUENCES,
    CR_OPT_ROUNDS,
    /* output */
    CR_OPT_OUTPUT,
    CR_OPT_NAME,
    CR_OPT_TYPE,
    CR_OPT_SVG,
    CR_OPT_LIST_TENSORS,
    CR_OPT_FORMAT,
    CR_OPT_JSON,
    /* general */
    CR_OPT_QUIET,
    CR_OPT_VERBOSE,
    CR_OPT_HELP,
    CR_OPT_COUNT
};

/* Headings of the help, in this order. */
enum cr_opt_group {
    CR_GROUP_INPUT,
    CR_GROUP_MODEL,
    CR_GROUP_SAMPLING,
    CR_GROUP_BLEND,
    CR_GROUP_TRAINING,
    CR_GROUP_EVALUATION,
    CR_GROUP_ROUTING,
    CR_GROUP_SERVER,
    CR_GROUP_BENCH,
    CR_GROUP_OUTPUT,
    CR_GROUP_GENERAL,
    CR_GROUP_COUNT
};

enum cr_arg_type {
    CR_ARG_FLAG,   /* no value */
    CR_ARG_INT,    /* integer in [min, max] */
    CR_ARG_SEED,   /* integer in [0, 2^64) */
    CR_ARG_REAL,   /* number in [min, max] */
    CR_ARG_BYTES,  /* integer with K, M, G or T (powers of 1024) behind it or nothing */
    CR_ARG_TEXT,   /* any text */
    CR_ARG_FILE,   /* a file name, or other text that completes like one */
    CR_ARG_DIR,    /* a folder name */
    CR_ARG_CHOICE, /* one of `value`, written "a|b|c" */
};

/* cr_option.flags */
enum {
    CR_OF_MANY = 1, /* may be given several times; all values are kept */
    CR_OF_ENV = 2,  /* also read from CRAYON_NAME (upper case, - becomes _) */
    CR_OF_MUST = 4, /* the verb cannot work without it */
};

struct cr_option {
    enum cr_opt id; /* rows with the same id or name have the same letter and type */
    uint64_t verbs; /* bit CR_V(id) of every verb that takes it */
    enum cr_opt_group group;
    char letter;      /* 0: none */
    const char *name; /* without dashes */
    enum cr_arg_type type;
    unsigned flags;
    const char *value;  /* what the help calls the value, or the choices; NULL for flags */
    const char *preset; /* default value as text, NULL: none */
    double min, max;    /* of INT and REAL */
    const char *help;   /* one sentence without a full stop */
};
#define CR_V(id) (UINT64_C(1) << (id))

struct cr_args;
struct cr_verb {
    enum cr_verb_id id;
    const char *name;       /* "run", or two words: "adapter check" */
    const char *operands;   /* as the help shows them: "[FILE]"; "" when there are none */
    int min_rest, max_rest; /* how many operands; max -1: any number */
    const char *complete;   /* operands complete as: "file", "a|b|c" or NULL */
    const char *summary;    /* one line for the list of verbs */
    const char *about;      /* paragraphs for help and manual; lines of at most 88 bytes */
    const char *examples;   /* command lines, one per line, or NULL */
    int (*run)(const struct cr_args *a); /* returns the exit code; NULL: not built in */
    const char *missing;                 /* what the build lacks when run is NULL */
};

struct cr_exit_code {
    int code;
    const char *meaning;
};

/* The tables, each ended by its count. */
extern const struct cr_option cr_options[];
extern const size_t cr_options_count;
extern const struct cr_verb cr_verbs[];
extern const size_t cr_verbs_count;
extern const char *const cr_group_names[CR_GROUP_COUNT];
extern const struct cr_exit_code cr_exit_codes[];
extern const size_t cr_exit_codes_count;

enum cr_origin { CR_FROM_DEFAULT, CR_FROM_SYSTEM, CR_FROM_USER, CR_FROM_ENV, CR_FROM_FLAG };

struct cr_value {
    const struct cr_option *opt; /* NULL: the verb does not take it */
    enum cr_origin origin;
    const char *where; /* "FILE:LINE" of a file, else NULL */
    int pass;          /* of the parser */
    bool set;          /* has a value, if only the default */
    bool on;
    long long i;
    uint64_t seed;
    double real;
    const char **text; /* [n]; borrowed strings */
    size_t n;
};

struct cr_args {
    const struct cr_verb *verb; /* NULL: no verb was given, or only the first of two words */
    const char *word;           /* that first word, or NULL */
    bool help, version;
    struct cr_value v[CR_OPT_COUNT];
    const char **rest; /* operands, borrowed from argv */
    size_t n_rest;
    int argc; /* the whole line, as it was given */
    const char *const *argv;
};

struct cr_config;

/* Parses argv[1..argc). env (may be NULL: none) looks a variable up. On misuse CR_INVALID with a
 * one-line message; args->verb or args->word then still say which help to point to. Free with
 * cr_args_deinit in both cases. */
enum cr_status cr_args_parse(struct cr_args *a, int argc, const char *const *argv,
                             const char *(*env)(const char *name), struct cr_error *err);
/* The same with configuration files (NULL: none), which must outlive the arguments. */
enum cr_status cr_args_parse_with(struct cr_args *a, int argc, const char *const *argv,
                                  const char *(*env)(const char *name),
                                  const struct cr_config *config, struct cr_error *err);
/* The same without a command line: what a verb gets from files, env and defaults. */
enum cr_status cr_args_defaults(struct cr_args *a, const struct cr_verb *verb,
                                const char *(*env)(const char *name),
                                const struct cr_config *config, struct cr_error *err);
void cr_args_deinit(struct cr_args *a);

/* Values of options that the verb takes. Text is NULL when there is none. */
bool cr_arg_flag(const struct cr_args *a, enum cr_opt id);
int cr_arg_int(const struct cr_args *a, enum cr_opt id);
uint64_t cr_arg_seed(const struct cr_args *a, enum cr_opt id);
uint64_t cr_arg_bytes(const struct cr_args *a, enum cr_opt id);
double cr_arg_real(const struct cr_args *a, enum cr_opt id);
const char *cr_arg_text(const struct cr_args *a, enum cr_opt id);
const char *const *cr_arg_texts(const struct cr_args *a, enum cr_opt id, size_t *n);
/* Given by flag or environment, not by default. */
bool cr_arg_given(const struct cr_args *a, enum cr_opt id);

/* Numbers, checked to the last byte: no spaces, no hexadecimal, no "inf" or "nan". */
bool cr_parse_int(const char *s, long long *out);
bool cr_parse_seed(const char *s, uint64_t *out);
bool cr_parse_real(const char *s, double *out);
bool cr_parse_bytes(const char *s, uint64_t *out);
/* The word among `n` closest to `s` in edits (insert, delete, replace, swap), if close enough to
 * be a typing mistake; else NULL. */
const char *cr_suggest(const char *s, const char *const *words, size_t n);
/* Item i of "a|b|c": its length, 0 past the end. *item is borrowed. */
size_t cr_choice_at(const char *choices, size_t i, const char **item);
/* "CRAYON_UPSTREAM_MODEL" for upstream-model. */
void cr_option_env_name(const struct cr_option *o, char *out, size_t size);

/* The verb of exactly this name, or NULL. */
const struct cr_verb *cr_verb_find(const char *name);
/* Is `word` the first of a two-word verb? */
bool cr_verb_is_family(const char *word);

/* Help and manual as text, appended to out. */
void cr_help_program(struct cr_buf *out);
void cr_help_family(struct cr_buf *out, const char *word);
void cr_help_verb(struct cr_buf *out, const struct cr_verb *v);
void cr_manual_roff(struct cr_buf *out);
void cr_manual_markdown(struct cr_buf *out);
void cr_completion_bash(struct cr_buf *out);
void cr_completion_zsh(struct cr_buf *out);
void cr_completion_fish(struct cr_buf *out);

#endif
