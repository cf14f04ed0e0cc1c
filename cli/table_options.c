/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line as data: every option of every verb. See options.h for what is made from it and
 * how to add to it; the verbs are in table.c.
 */
#include "options.h"

/* Sets of verbs that share options. */
#define ALL (CR_V(CR_VERB_COUNT) - 1)
#define RUN CR_V(CR_VERB_RUN)
#define TOKENIZE CR_V(CR_VERB_TOKENIZE)
#define SCORE CR_V(CR_VERB_SCORE)
#define LOGITS CR_V(CR_VERB_LOGITS)
#define INFO CR_V(CR_VERB_INFO)
#define ADAPTER_CHECK CR_V(CR_VERB_ADAPTER_CHECK)
#define ADAPTER_INFO CR_V(CR_VERB_ADAPTER_INFO)
#define CONVERT CR_V(CR_VERB_ADAPTER_CONVERT)
#define MERGE CR_V(CR_VERB_ADAPTER_MERGE)
#define POOL_TRAIN CR_V(CR_VERB_POOL_TRAIN)
#define POOL_INFO CR_V(CR_VERB_POOL_INFO)
#define POOL_EXPORT CR_V(CR_VERB_POOL_EXPORT)
#define POOL_CONVERT CR_V(CR_VERB_POOL_CONVERT)
#define BLEND CR_V(CR_VERB_BLEND)
#define EVAL CR_V(CR_VERB_EVAL)
#define SERVE CR_V(CR_VERB_SERVE)
#define EXPLAIN CR_V(CR_VERB_ROUTE_EXPLAIN)
#define CALIBRATE CR_V(CR_VERB_ROUTE_CALIBRATE)
#define LEDGER CR_V(CR_VERB_LEDGER)
#define PULL CR_V(CR_VERB_PULL)
#define CONFIG CR_V(CR_VERB_CONFIG_SHOW)
#define BENCH CR_V(CR_VERB_BENCH)
#define DOCTOR CR_V(CR_VERB_DOCTOR)
#define LIST CR_V(CR_VERB_LIST)
#define WITH_DELTA                                                                                 \
    (RUN | SCORE | LOGITS | MERGE | EXPLAIN | CALIBRATE | BENCH) /* takes adapters and palettes */
#define COMPUTES                                                                                   \
    (RUN | SCORE | LOGITS | ADAPTER_CHECK | CONVERT | MERGE | POOL_TRAIN | POOL_EXPORT |           \
     POOL_CONVERT | BLEND | EVAL | SERVE | EXPLAIN | CALIBRATE | BENCH)
#define ANSWERS (RUN | EXPLAIN | CALIBRATE) /* generates text */
#define ROUTES (RUN | SERVE)                /* asks by rule */
#define ASKS (ROUTES | CALIBRATE)
#define WITH_MODEL (COMPUTES | TOKENIZE)
#define WITH_JSON                                                                                  \
    (RUN | TOKENIZE | INFO | ADAPTER_CHECK | ADAPTER_INFO | POOL_TRAIN | POOL_INFO | BLEND |       \
     EVAL | EXPLAIN | CALIBRATE | LEDGER | LIST | BENCH | DOCTOR | CONFIG | CR_V(CR_VERB_VERSION))

/*
 * One row per option, or per meaning of an option where verbs differ:
 *   FLAG(id, verbs, group, letter, name, help)
 *   VALUE(id, verbs, group, letter, name, type, flags, value, default, help)
 *   NUMBER(id, verbs, group, letter, name, type, flags, value, default, min, max, help)
 */
#define FLAG(id, v, g, l, n, h)                                                                    \
    {                                                                                              \
        CR_OPT_##id, v, CR_GROUP_##g, l, n, CR_ARG_FLAG, 0, NULL, NULL, 0, 0, h                    \
    }
#define VALUE(id, v, g, l, n, t, f, w, d, h)                                                       \
    {                                                                                              \
        CR_OPT_##id, v, CR_GROUP_##g, l, n, CR_ARG_##t, f, w, d, 0, 0, h                           \
    }
#define NUMBER(id, v, g, l, n, t, f, w, d, lo, hi, h)                                              \
    {                                                                                              \
        CR_OPT_##id, v, CR_GROUP_##g, l, n, CR_ARG_##t, f, w, d, lo, hi, h                         \
    }

const struct cr_option cr_options[] = {
    /* ---- input ---- */
    VALUE(PROMPT, RUN | LOGITS | EXPLAIN, INPUT, 'p', "prompt", TEXT, 0, "TEXT", NULL,
          "the prompt; run reads standard input without it"),
    VALUE(TOKENS, LOGITS, INPUT, 0, "tokens", TEXT, 0, "ID,ID,...", NULL,
          "token ids to run, separated by commas"),
    VALUE(SYSTEM, ANSWERS, INPUT, 0, "system", TEXT, 0, "TEXT", NULL, "system message of the chat"),
    FLAG(CHAT, ANSWERS, INPUT, 0, "chat",
         "put the prompt into the model's chat template; the default where it has a known one"),
    FLAG(RAW, ANSWERS, INPUT, 0, "raw",
         "no template: the model goes on from the prompt; the default where it has none"),
    VALUE(TEMPLATE, ANSWERS, INPUT, 0, "template", CHOICE, 0,
          "chatml|llama2|llama3|mistral|gemma|zephyr|phi3", NULL,
          "chat template to use instead of the model's own"),
    FLAG(LINES, TOKENIZE, INPUT, 0, "lines",
         "each line of any bytes is a text: one JSON array of ids per line"),
    FLAG(JSONL, TOKENIZE, INPUT, 0, "jsonl",
         "each line is {\"text\": ...}: one JSON array of ids per line"),
    FLAG(SPECIAL, RUN | TOKENIZE, INPUT, 0, "special",
         "text such as <|im_start|> becomes control tokens (run: with --raw only)"),
    FLAG(BOS, TOKENIZE, INPUT, 0, "bos",
         "begin with the begin-of-text token where the model asks for it"),
    VALUE(EXAMPLES, BLEND | CALIBRATE, INPUT, 0, "examples", FILE, CR_OF_MUST, "FILE", NULL,
          "your examples: JSONL, CSV with a header, or lines of text; with answers or without; "
          "-: standard input"),
    VALUE(TASKS, EVAL, INPUT, 0, "tasks", FILE, CR_OF_MANY, "FILE|DIR", NULL,
          "task files, or folders whose NAME.test.* files are taken; operands are task files too"),
    NUMBER(SHOTS, EVAL, INPUT, 0, "shots", INT, 0, "N", "8", 0, 4096,
           "examples of each task that the solvers see"),
    NUMBER(WORKED, EVAL, INPUT, 0, "worked", INT, 0, "N", "0", 0, 16,
           "each row also with up to N of the task's examples, worked, in front of each question"),
    NUMBER(LIMIT, EVAL, INPUT, 0, "limit", INT, 0, "N", "0", 0, 1000000,
           "test at most so many rows of each task, drawn by seed; 0: all"),
    VALUE(SEED, EVAL, INPUT, 0, "seed", SEED, 0, "S", "1",
          "of all draws, of refine and of the intervals"),
    VALUE(GROUPS, EVAL, INPUT, 0, "groups", FILE, 0, "FILE", NULL,
          "lines TASK GROUP; else the rows name their group, or the pool does: pool, unseen"),
    NUMBER(SHOTS, BLEND, INPUT, 0, "shots", INT, 0, "N", "32", 1, 4096,
           "blend from at most so many of the lines"),
    NUMBER(HELD_OUT, BLEND, INPUT, 0, "held-out", REAL, 0, "SHARE", "0.3", 0, 0.9,
           "share of the lines with answers that is kept to measure before and after; 0: none"),
    NUMBER(WORKED, BLEND, INPUT, 0, "worked", INT, 0, "N", "5", 0, 16,
           "try up to N of the examples, worked, in front of each question; the palette keeps them "
           "where more of at least 4 held-out lines are right; 0: none; 8 unless given with a pool "
           "trained with --worked"),
    VALUE(SEED, BLEND, INPUT, 0, "seed", SEED, 0, "S", "1",
          "of the split into examples and held-out lines, and of refine"),
    VALUE(TASKS, POOL_TRAIN, INPUT, 0, "tasks", FILE, CR_OF_MANY, "FILE|DIR", NULL,
          "task files, or folders whose NAME.train.* files are taken; operands are task files too"),
    NUMBER(BASE, POOL_EXPORT, INPUT, 0, "base", INT, 0, "K", "0", 0, 1023,
           "adapter K of the pool alone"),
    VALUE(TASK, POOL_EXPORT, INPUT, 0, "task", TEXT, 0, "NAME", NULL,
          "the blend that an entry of the index learned"),
    VALUE(PALETTE, POOL_EXPORT, INPUT, 0, "palette", FILE, CR_OF_ENV, "FILE", NULL,
          "the blend of a palette"),
    /* ---- model ---- */
    VALUE(MODEL, WITH_MODEL, MODEL, 'm', "model", FILE, CR_OF_ENV, "MODEL", NULL,
          "GGUF file, or a name in the models folder; without it the embedded 15M model"),
    VALUE(ADAPTER, EVAL, MODEL, 0, "adapter", FILE, CR_OF_MANY, "FILE[:SCALE]", NULL,
          "a LoRA (GGUF file or PEFT folder), times SCALE, as a row of its own"),
    VALUE(PALETTE, EVAL, MODEL, 0, "palette", FILE, CR_OF_ENV, "FILE", NULL,
          "a palette as a row of its own"),
    VALUE(POOL, BLEND | EVAL, MODEL, 0, "pool", FILE, CR_OF_ENV, "POOL", NULL,
          "the pool; without it blend takes the one beside the model, else one that comes with the "
          "program"),
    VALUE(ADAPTER, WITH_DELTA | SERVE, MODEL, 0, "adapter", FILE, CR_OF_MANY, "FILE[:SCALE]", NULL,
          "LoRA (GGUF file or PEFT folder), times SCALE"),
    VALUE(PALETTE, SERVE, MODEL, 0, "palette", FILE, CR_OF_MANY, "FILE", NULL,
          "palette or adapter to serve as MODEL:NAME, NAME being the file's name"),
    VALUE(POOL, SERVE, MODEL, 0, "pool", FILE, CR_OF_ENV, "POOL", NULL,
          "the pool for blends from the examples of a request; without it that of a palette"),
    VALUE(PALETTE, WITH_DELTA, MODEL, 0, "palette", FILE, CR_OF_ENV, "FILE", NULL,
          "blend saved by `crayon blend`"),
    VALUE(POOL, WITH_DELTA, MODEL, 0, "pool", FILE, CR_OF_ENV, "POOL", NULL,
          "the palette's pool, where it is no longer at the place that the palette names"),
    NUMBER(CTX, RUN | SCORE | LOGITS | SERVE | BLEND | EXPLAIN | CALIBRATE, MODEL, 0, "ctx", INT,
           CR_OF_ENV, "N", "0", 0, 1 << 20,
           "context in tokens; 0: what the work needs, at most what the model was trained for"),
    NUMBER(THREADS, COMPUTES, MODEL, 't', "threads", INT, CR_OF_ENV, "N", "0", 0, 64,
           "threads; 0: one per core; the result does not depend on it"),
    VALUE(CPU, COMPUTES, MODEL, 0, "cpu", CHOICE, CR_OF_ENV,
          "auto|ref|avx2|avxvnni|avx512|amx|neon|dotprod|i8mm", "auto",
          "level of the arithmetic kernels"),
    VALUE(DEVICE, POOL_TRAIN | EVAL | BLEND | SCORE, MODEL, 0, "device", CHOICE, CR_OF_ENV,
          "cpu|cuda", "cpu",
          "where training steps and packed batches run; cuda needs a build with CRAYON_CUDA"),
    VALUE(DEVICES, POOL_TRAIN, MODEL, 0, "devices", TEXT, 0, "N|all", "1",
          "with --device cuda: GPUs to train on; with mpirun, of each process"),
    VALUE(
        PAGES, COMPUTES, MODEL, 0, "pages", CHOICE, CR_OF_ENV, "auto|map|huge", "auto",
        "weights as mapped from the file, or as a private copy in huge pages: faster, as large as "
        "the weights; auto: the copy where half of the free memory holds it"),
    VALUE(KV, COMPUTES, MODEL, 0, "kv", CHOICE, CR_OF_ENV, "f16|q8_0", "f16",
          "what keys and values are kept in: q8_0 takes half of the memory"),
    FLAG(LOOKUP, RUN, MODEL, 0, "lookup",
         "guess tokens by what followed in the text so far: the same text, sooner"),
    VALUE(DRAFT, RUN, MODEL, 0, "draft", FILE, CR_OF_ENV, "FILE", NULL,
          "guess tokens with a smaller model of the same vocabulary: the same text, sooner"),
    /* ---- sampling ---- */
    NUMBER(MAX_TOKENS, ANSWERS, SAMPLING, 'n', "max-tokens", INT, 0, "N", "256", 0, 1 << 20,
           "stop after so many tokens"),
    NUMBER(TEMP, ANSWERS, SAMPLING, 0, "temp", REAL, 0, "T", "0.8", 0, 100,
           "temperature; 0: always the most likely token"),
    NUMBER(TOP_K, ANSWERS, SAMPLING, 0, "top-k", INT, 0, "N", "40", 0, 1 << 24,
           "choose among the N most likely tokens; 0: all"),
    NUMBER(TOP_P, ANSWERS, SAMPLING, 0, "top-p", REAL, 0, "P", "0.95", 0, 1,
           "choose among the most likely tokens that hold probability P together; 1: all"),
    NUMBER(MIN_P, ANSWERS, SAMPLING, 0, "min-p", REAL, 0, "P", "0.05", 0, 1,
           "drop tokens less likely than P times the most likely one; 0: none"),
    NUMBER(REPEAT_PENALTY, ANSWERS, SAMPLING, 0, "repeat-penalty", REAL, 0, "X", "1", 0.01, 100,
           "make recent tokens less likely; 1: off"),
    NUMBER(REPEAT_LAST_N, ANSWERS, SAMPLING, 0, "repeat-last-n", INT, 0, "N", "64", 0, 1024,
           "how many tokens are recent"),
    VALUE(SEED, ANSWERS, SAMPLING, 0, "seed", SEED, 0, "S", "1",
          "the same seed gives the same text, with any number of threads"),
    VALUE(STOP, RUN, SAMPLING, 0, "stop", TEXT, CR_OF_MANY, "TEXT", NULL, "end before this text"),
    FLAG(IGNORE_END, RUN, SAMPLING, 0, "ignore-end", "go on past the model's end tokens"),
    /* ---- blend and evaluation ---- */
    VALUE(LEVEL, BLEND, BLEND, 0, "level", CHOICE, 0, "instant|measured|refined|tuned", NULL,
          "how far to go: instant (no model run), measured (middle view), refined (labels), tuned "
          "(gradient steps on the blend); without it what the examples allow, never tuned"),
    NUMBER(STEPS, BLEND, BLEND, 0, "steps", INT, 0, "N", "4", 1, 1000,
           "gradient steps of the level tuned, each over all examples; 8 unless given with a pool "
           "trained with --worked"),
    NUMBER(LR, BLEND, BLEND, 0, "lr", REAL, 0, "R", "0.001", 0, 10,
           "learning rate of the level tuned; 0.0003 unless given with a pool trained with "
           "--worked"),
    VALUE(SOLVER, BLEND, BLEND, 0, "solver", CHOICE, 0,
          "uniform|softmax|meanw|simplex|knn|nearest|mean|pick|refine", NULL, "this solver alone"),
    VALUE(VIEW, BLEND, BLEND, 0, "view", CHOICE, 0, "qx|middle", NULL,
          "embedding to use: qx is the first layer's query, middle a middle layer"),
    NUMBER(TAU, BLEND | EVAL, BLEND, 0, "tau", REAL, 0, "T", "0", 0, 100,
           "temperature of knn; 0: 0.03"),
    NUMBER(EVALS, BLEND | EVAL, BLEND, 0, "evals", INT, 0, "N", "0", 0, 40,
           "evaluations of refine; 0: 32"),
    VALUE(SOLVERS, EVAL, EVALUATION, 0, "solvers", TEXT, 0, "LIST", NULL,
          "rows of --pool: solvers, oracle or numbers of adapters, separated by commas, each "
          "with :qx or :middle or nothing; without it those that fit the pool"),
    FLAG(SINGLES, EVAL, EVALUATION, 0, "singles", "a row for each single adapter of --pool"),
    VALUE(ROW, EVAL, EVALUATION, 0, "row", FILE, CR_OF_MANY, "NAME=FILE[:HOW]", NULL,
          "one more row: a LoRA with a scale, or a pool with a solver"),
    VALUE(AGAINST, EVAL, EVALUATION, 0, "against", TEXT, 0, "ROW", "base",
          "show the difference of every row from this one"),
    FLAG(F1, EVAL, EVALUATION, 0, "f1", "generate short answers too and give their F1 (slow)"),
    /* ---- training ---- */
    VALUE(KIND, POOL_TRAIN, TRAINING, 0, "kind", CHOICE, 0, "library|centroid|lora", "library",
          "library: learned weights per task; centroid: weights by k-means; lora: one for all"),
    VALUE(START, POOL_TRAIN, TRAINING, 0, "start", FILE, 0, "PALETTE", NULL,
          "tune the blend of a palette on your own examples: --kind lora from there, 8 steps, rate "
          "0.0003 unless given"),
    VALUE(FORM, POOL_TRAIN, TRAINING, 0, "form", CHOICE, 0, "shared|separate", "shared",
          "shared: one A for all adapters; separate: an A for each"),
    FLAG(HARD, POOL_TRAIN, TRAINING, 0, "hard",
         "of a centroid pool: each example trains its nearest adapter only"),
    NUMBER(N, POOL_TRAIN, TRAINING, 0, "n", INT, 0, "N", "16", 1, 256,
           "adapters in the pool; 1 means --kind lora unless that is given"),
    NUMBER(RANK, POOL_TRAIN, TRAINING, 0, "rank", INT, 0, "R", "8", 1, 1024,
           "rank of each adapter"),
    NUMBER(ALPHA, POOL_TRAIN, TRAINING, 0, "alpha", REAL, 0, "A", NULL, 0.001, 100000,
           "scale times rank; without it twice the rank"),
    VALUE(TARGETS, POOL_TRAIN, TRAINING, 0, "targets", TEXT, 0, "LIST", "all",
          "linears to change: all, or some of q,k,v,o,gate,up,down"),
    NUMBER(ROWS, POOL_TRAIN, TRAINING, 0, "rows", INT, 0, "N", "0", 0, 1000000,
           "at most so many rows of each task, drawn by seed; 0: all"),
    NUMBER(MAX_LENGTH, POOL_TRAIN, TRAINING, 0, "max-length", INT, 0, "N", "0", 0, 1 << 20,
           "leave out rows of more tokens; 0: 1024, at most the context"),
    NUMBER(WORKED, POOL_TRAIN, TRAINING, 0, "worked", INT, 0, "K", "0", 0, 64,
           "train rows with up to K worked examples of their task in front, for pools whose "
           "palettes carry some; costs no more tokens"),
    NUMBER(ALONE, POOL_TRAIN, TRAINING, 0, "alone", REAL, 0, "SHARE", "0", 0, 1,
           "with --worked: about this share of the rows is trained alone all the same"),
    NUMBER(GENERAL, POOL_TRAIN, TRAINING, 0, "general", REAL, 0, "SHARE", "0", 0, 1,
           "with --worked, of a library: this share is trained with weights that all tasks share"),
    NUMBER(STEPS, POOL_TRAIN, TRAINING, 0, "steps", INT, 0, "N", "0", 0, 1000000,
           "steps of the optimiser; 0: by --epochs"),
    NUMBER(EPOCHS, POOL_TRAIN, TRAINING, 0, "epochs", REAL, 0, "N", "2", 0.001, 10000,
           "passes over the rows"),
    NUMBER(STEP_TOKENS, POOL_TRAIN, TRAINING, 0, "step-tokens", INT, 0, "N", "0", 0, 1 << 24,
           "packed tokens in a step; 0: 12288"),
    NUMBER(
        BATCH_TOKENS, POOL_TRAIN, TRAINING, 0, "batch-tokens", INT, 0, "N", "0", 0, 1 << 20,
        "packed tokens run at once: memory against speed; 0: 384, on GPUs a step's share of each"),
    VALUE(PRECISION, POOL_TRAIN, TRAINING, 0, "precision", CHOICE, 0, "auto|f32|bf16", "auto",
          "of products with the frozen weights; auto: bf16 where the CPU has matrix instructions "
          "for it, which takes 4 bytes a weight"),
    FLAG(RECOMPUTE, POOL_TRAIN, TRAINING, 0, "recompute",
         "compute parts of a layer again on the way back: a quarter of the activations, more work, "
         "the same result; the plan says how much"),
    NUMBER(LR, POOL_TRAIN, TRAINING, 0, "lr", REAL, 0, "X", "0.001", 0, 100,
           "learning rate of the adapters"),
    NUMBER(LR_WEIGHTS, POOL_TRAIN, TRAINING, 0, "lr-weights", REAL, 0, "X", "0", 0, 100,
           "learning rate of the task weights; 0: ten times --lr"),
    NUMBER(BETA1, POOL_TRAIN, TRAINING, 0, "beta1", REAL, 0, "X", "0.9", 0, 0.9999, "of AdamW"),
    NUMBER(BETA2, POOL_TRAIN, TRAINING, 0, "beta2", REAL, 0, "X", "0.99", 0, 0.9999, "of AdamW"),
    NUMBER(WEIGHT_DECAY, POOL_TRAIN, TRAINING, 0, "weight-decay", REAL, 0, "X", "0", 0, 10,
           "of AdamW"),
    NUMBER(WARM_UP, POOL_TRAIN, TRAINING, 0, "warm-up", REAL, 0, "SHARE", "0.05", 0, 1,
           "share of the steps in which the rate rises"),
    NUMBER(LR_END, POOL_TRAIN, TRAINING, 0, "lr-end", REAL, 0, "SHARE", "0.05", 0, 1,
           "share of the rate that is left at the end of the cosine"),
    NUMBER(CLIP, POOL_TRAIN, TRAINING, 0, "clip", REAL, 0, "X", "1", 0, 1000000,
           "largest norm of the gradient; 0: no limit"),
    VALUE(SEED, POOL_TRAIN, TRAINING, 0, "seed", SEED, 0, "S", "1",
          "the same seed gives the same pool on the same machine"),
    VALUE(CHECKPOINT, POOL_TRAIN, TRAINING, 0, "checkpoint", FILE, 0, "FILE", NULL,
          "where training saves its state; without it OUTPUT.checkpoint"),
    NUMBER(CHECKPOINT_SECONDS, POOL_TRAIN, TRAINING, 0, "checkpoint-seconds", REAL, 0, "S", "60",
           -1, 1000000, "save at most so often; -1: never by time"),
    NUMBER(CHECKPOINT_STEPS, POOL_TRAIN, TRAINING, 0, "checkpoint-steps", INT, 0, "N", "0", 0,
           1000000, "save after every N steps too; 0: by time only"),
    FLAG(RESUME, POOL_TRAIN, TRAINING, 0, "resume", "go on from the checkpoint if it is there"),
    VALUE(MEMORY, POOL_TRAIN, TRAINING, 0, "memory", BYTES, 0, "SIZE", "0",
          "refuse a plan that needs more, as in 4G; 0: what the machine has available"),
    FLAG(PLAN, POOL_TRAIN, TRAINING, 0, "plan", "print the plan and its memory and stop"),
    /* ---- server ---- */
    VALUE(HOST, SERVE, SERVER, 0, "host", TEXT, CR_OF_ENV, "ADDRESS", "127.0.0.1",
          "address to listen on; beyond loopback only with --key-file"),
    NUMBER(PORT, SERVE, SERVER, 0, "port", INT, CR_OF_ENV, "P", "8080", 0, 65535,
           "port to listen on; 0: any free one, printed"),
    VALUE(ALIAS, SERVE, SERVER, 0, "alias", TEXT, 0, "NAME", NULL,
          "what clients call the model; without it the name of its file"),
    VALUE(SERVER_KEY_FILE, SERVE, SERVER, 0, "key-file", FILE, CR_OF_ENV, "FILE", NULL,
          "file whose first line clients must send as bearer token"),
    VALUE(ADMIN_KEY_FILE, SERVE, SERVER, 0, "admin-key-file", FILE, CR_OF_ENV, "FILE", NULL,
          "file whose first line is wanted for what changes the server, such as loading adapters"),
    VALUE(ADAPTER_DIR, SERVE, SERVER, 0, "adapter-dir", FILE, CR_OF_ENV, "DIR", NULL,
          "folder whose palettes and adapters may be loaded by request; without it none"),
    NUMBER(PARALLEL, SERVE, SERVER, 0, "parallel", INT, CR_OF_ENV, "N", "4", 1, 256,
           "answers that are made at the same time; each has a context of its own"),
    VALUE(LOG, SERVE, SERVER, 0, "log", CHOICE, CR_OF_ENV, "text|json", "text",
          "form of the line that each request leaves on standard error; never its text"),
    NUMBER(QUEUE, SERVE, SERVER, 0, "queue", INT, 0, "N", "16", 1, 4096,
           "requests that may wait; one more is answered with 503"),
    /* ---- routing ---- */
    NUMBER(LIMIT, CALIBRATE, INPUT, 0, "limit", INT, 0, "N", "300", 0, 1000000,
           "take at most so many examples, drawn by seed; 0: all"),
    NUMBER(LIMIT, LEDGER, OUTPUT, 0, "limit", INT, 0, "N", "20", 0, 1000000,
           "show at most so many rows, the newest first; 0: all"),
    VALUE(EXPORT, LEDGER, OUTPUT, 0, "export", CHOICE, 0, "jsonl|csv", NULL,
          "print rows for other programs, all unless --limit is given, the newest first"),
    NUMBER(PRUNE, LEDGER, OUTPUT, 0, "prune", REAL, 0, "DAYS", NULL, 0, 36500,
           "delete what is older, and wipe it from the file"),
    VALUE(OUT_OF_SCOPE, CALIBRATE, INPUT, 0, "out-of-scope", FILE, 0, "FILE", NULL,
          "examples of other tasks: measure how well scope tells them"),
    VALUE(ANSWERS, CALIBRATE, ROUTING, 0, "answers", CHOICE, 0, "text|options", "text",
          "text: generated, as run does; options: choose among each example's choices, for a "
          "report that is not stored"),
    FLAG(COMPARE_BASE, EXPLAIN, ROUTING, 0, "compare-base",
         "also run the base model, to tell how much the blend changes the first token"),
    VALUE(LEARN, CALIBRATE, INPUT, 0, "learn", FILE, 0, "FILE", NULL,
          "answered rows of other tasks to fit the rule learned on; without it half of the "
          "examples, where all have answers"),
    VALUE(UPSTREAM, ASKS, ROUTING, 0, "upstream", TEXT, CR_OF_MANY | CR_OF_ENV, "URL", NULL,
          "an OpenAI-compatible server that demanding questions may go to; http only to this "
          "machine; repeatable: the next is asked when one fails"),
    VALUE(UPSTREAM_MODEL, ASKS, ROUTING, 0, "upstream-model", TEXT, CR_OF_MANY | CR_OF_ENV, "NAME",
          NULL, "the model to ask there; one for all, or one for each --upstream"),
    VALUE(UPSTREAM_KEY_FILE, ASKS, ROUTING, 0, "upstream-key-file", FILE, CR_OF_MANY | CR_OF_ENV,
          "FILE", NULL,
          "file that holds the server's key, one for each --upstream in order; without it "
          "$CRAYON_API_KEY for the first, no key for the others"),
    NUMBER(UPSTREAM_TIMEOUT, ASKS, ROUTING, 0, "upstream-timeout", REAL, CR_OF_ENV, "SECONDS",
           "120", 0.1, 86400, "an answer must have come after so long, all tries together"),
    VALUE(UPSTREAM_PRICE, ASKS, ROUTING, 0, "upstream-price", TEXT, CR_OF_MANY | CR_OF_ENV,
          "IN,OUT", NULL,
          "what the server takes per million tokens of prompt and answer, for the ledger"),
    VALUE(UPSTREAM_CA, ASKS, ROUTING, 0, "upstream-ca", FILE, CR_OF_ENV, "FILE", NULL,
          "trust the certificates that this PEM file signs, and no others"),
    FLAG(UPSTREAM_INSECURE, ASKS, ROUTING, 0, "upstream-insecure",
         "allow http to other machines: text and key travel in the clear"),
    VALUE(RULE, ROUTES | EXPLAIN, ROUTING, 0, "rule", CHOICE, CR_OF_ENV,
          "random|conf|scope|crayon|learned", "crayon",
          "what makes a question demanding: chance, low confidence, far from the task, one of the "
          "last two, or the learned chance that a server mends the answer"),
    NUMBER(BUDGET, ROUTES | EXPLAIN | CALIBRATE, ROUTING, 0, "budget", REAL, CR_OF_ENV, "SHARE",
           "0.1", 0, 1, "share of questions that may leave the device"),
    NUMBER(MAX_WRONG, ROUTES | EXPLAIN, ROUTING, 0, "max-wrong", REAL, CR_OF_ENV, "SHARE", "0", 0,
           0.99,
           "choose the threshold by this bound on questions kept and answered wrong, not by the "
           "budget, which stays a cap if it is given; 0: by the budget"),
    NUMBER(BUDGET_WINDOW, SERVE, ROUTING, 0, "budget-window", INT, CR_OF_ENV, "N", "1000", 0,
           1 << 20, "the budget holds over the last N questions; 0: over all"),
    NUMBER(MAX_COST, ROUTES, ROUTING, 0, "max-cost", REAL, CR_OF_ENV, "MONEY", "0", 0, 1000000,
           "most that one answer may cost, by --upstream-price; 0: no limit"),
    NUMBER(MAX_SPEND, ROUTES, ROUTING, 0, "max-spend", REAL, CR_OF_ENV, "MONEY", "0", 0, 1e9,
           "most that all answers of --spend-hours may cost, by the ledger; 0: no limit"),
    NUMBER(SPEND_HOURS, ROUTES, ROUTING, 0, "spend-hours", REAL, CR_OF_ENV, "H", "24", 0.001, 87600,
           "the sliding window of --max-spend"),
    VALUE(MASK, ROUTES, ROUTING, 0, "mask", CHOICE, CR_OF_ENV, "personal|none", "none",
          "personal: put placeholders in the place of e-mail addresses, phone, card and account "
          "numbers, keys and --mask-pattern before anything leaves, and put them back in the "
          "answer"),
    VALUE(MASK_PATTERN, ROUTES, ROUTING, 0, "mask-pattern", TEXT, CR_OF_MANY, "REGEX", NULL,
          "with --mask personal: what else is masked, a PCRE2 pattern; repeatable"),
    FLAG(YES, RUN | CALIBRATE, ROUTING, 0, "yes",
         "send without asking; needed where there is no terminal"),
    FLAG(OFFLINE, COMPUTES | TOKENIZE | INFO, ROUTING, 0, "offline",
         "make sockets impossible for this process, by the kernel"),
    /* ---- fetching and configuration ---- */
    VALUE(INDEX, PULL, INPUT, 0, "index", TEXT, CR_OF_ENV, "FILE|URL", NULL,
          "where names are looked up: lines NAME URL SHA256"),
    VALUE(SHA256, PULL, INPUT, 0, "sha256", TEXT, 0, "HEX", NULL,
          "what the SHA-256 of the file must be"),
    VALUE(CA, PULL, INPUT, 0, "ca", FILE, CR_OF_ENV, "FILE", NULL,
          "trust the certificates that this PEM file signs, and no others"),
    VALUE(MAX_BYTES, PULL, INPUT, 0, "max-bytes", BYTES, CR_OF_ENV, "SIZE", "0",
          "refuse a larger file, as in 4G; 0: no limit but the disk"),
    FLAG(FORCE, PULL, INPUT, 0, "force", "fetch a file again that is there"),
    VALUE(OUTPUT, PULL, OUTPUT, 'o', "output", FILE, 0, "FILE", NULL,
          "where the file goes; without it the models folder"),
    FLAG(ORIGIN, CONFIG, OUTPUT, 0, "origin", "say where each value comes from"),
    /* ---- bench ---- */
    NUMBER(PREFILL, BENCH, BENCH, 0, "prefill", INT, 0, "N", "512", 1, 1 << 17,
           "tokens of the prompt"),
    NUMBER(DECODE, BENCH, BENCH, 0, "decode", INT, 0, "N", "128", 1, 1 << 16,
           "tokens of the answer"),
    NUMBER(DEPTH, BENCH, BENCH, 0, "depth", INT, 0, "N", "0", 0, 1 << 17,
           "tokens of context before the answer"),
    NUMBER(SEQUENCES, BENCH, BENCH, 0, "sequences", INT, 0, "N", "1", 1, 64,
           "answers that are decoded together"),
    NUMBER(ROUNDS, BENCH, BENCH, 0, "rounds", INT, 0, "N", "5", 1, 1000,
           "rounds; the median is told"),
    /* ---- output ---- */
    VALUE(OUTPUT, BLEND, OUTPUT, 'o', "output", FILE, CR_OF_MUST, "FILE", NULL,
          "the palette to write"),
    VALUE(SVG, EVAL | CALIBRATE, OUTPUT, 0, "svg", FILE, 0, "FILE", NULL,
          "draw the result as a chart"),
    VALUE(OUTPUT, CONVERT | POOL_EXPORT, OUTPUT, 'o', "output", FILE, CR_OF_MUST, "FILE|DIR", NULL,
          "NAME.gguf for a GGUF file, any other name for a PEFT folder"),
    VALUE(OUTPUT, POOL_CONVERT, OUTPUT, 'o', "output", FILE, CR_OF_MUST, "FILE", NULL,
          "the pool to write"),
    VALUE(OUTPUT, MERGE, OUTPUT, 'o', "output", FILE, CR_OF_MUST, "FILE", NULL,
          "the GGUF file to write"),
    VALUE(OUTPUT, POOL_TRAIN, OUTPUT, 'o', "output", FILE, 0, "FILE", NULL,
          "the pool to write; needed unless --plan"),
    VALUE(NAME, POOL_TRAIN | BLEND, OUTPUT, 0, "name", TEXT, 0, "TEXT", NULL,
          "name inside the file; without it the name of the file"),
    VALUE(TYPE, CONVERT | MERGE | POOL_EXPORT, OUTPUT, 0, "type", CHOICE, 0, "f16|f32|bf16", "f16",
          "type of the numbers in the file (bf16: merge only)"),
    VALUE(TYPE, POOL_TRAIN | POOL_CONVERT, OUTPUT, 0, "type", CHOICE, 0, "q8_0|f16|f32", "q8_0",
          "type of the adapters in the file (q8_0: f16 where rank times outputs is no multiple of "
          "32)"),
    FLAG(LIST_TENSORS, INFO | ADAPTER_INFO | POOL_INFO, OUTPUT, 0, "list-tensors",
         "name every tensor with its type and shape"),
    VALUE(OUTPUT, LOGITS, OUTPUT, 'o', "output", FILE, CR_OF_MUST, "FILE", NULL,
          "where the numbers go; -: standard output"),
    VALUE(FORMAT, CR_V(CR_VERB_MAN), OUTPUT, 0, "format", CHOICE, 0, "roff|markdown", "roff",
          "roff for man(1), markdown for docs/cli.md"),
    FLAG(JSON, WITH_JSON, OUTPUT, 0, "json", "print the result as JSON"),
    /* ---- general ---- */
    FLAG(QUIET, ALL, GENERAL, 'q', "quiet", "no notes, progress or summary on standard error"),
    FLAG(VERBOSE, ALL, GENERAL, 'v', "verbose", "show what the library logs"),
    FLAG(HELP, ALL, GENERAL, 'h', "help", "show this help"),
};
const size_t cr_options_count = sizeof cr_options / sizeof *cr_options;
