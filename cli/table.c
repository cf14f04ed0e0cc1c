/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line as data: every verb and every exit code; the options are in table_options.c. See
 * options.h for what is made from it and how to add to it.
 */
#include "options.h"
#include "verbs.h"

const char *const cr_group_names[CR_GROUP_COUNT] = {
    [CR_GROUP_INPUT] = "Input",       [CR_GROUP_MODEL] = "Model",
    [CR_GROUP_SAMPLING] = "Sampling", [CR_GROUP_BLEND] = "Blend",
    [CR_GROUP_TRAINING] = "Training", [CR_GROUP_EVALUATION] = "Evaluation",
    [CR_GROUP_ROUTING] = "Routing",   [CR_GROUP_SERVER] = "Server",
    [CR_GROUP_BENCH] = "Bench",       [CR_GROUP_OUTPUT] = "Output",
    [CR_GROUP_GENERAL] = "General",
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

const struct cr_verb cr_verbs[] = {
    {.id = CR_VERB_RUN,
     .name = "run",
     .operands = "",
     .summary = "answer a prompt",
     .about =
         "Streams the answer to standard output. The prompt is --prompt, else standard input\n"
         "without its last line end. On a terminal without a prompt it is a conversation.\n"
         "\n"
         "With a palette the prompt is put as palettes are made, \"Question: PROMPT\\nAnswer:\", "
         "at\n"
         "temperature 0 up to the end of the line. Else it is put into the model's chat template "
         "if\n"
         "the model has a known one, else the model goes on from the prompt. --chat and --raw\n"
         "choose. Text of the user never becomes control tokens, unless --raw --special ask for "
         "it.\n"
         "\n"
         "With --upstream a demanding question may go to a server: --rule and --budget decide, "
         "the\n"
         "preview shows what would leave, and `crayon ledger` what left. On a terminal you are\n"
         "asked; elsewhere it needs --yes. Whatever fails, the device's answer is given.\n"
         "\n"
         "With --json the result is one object: text, tokens, logprobs, finish_reason (stop,\n"
         "length, cancelled), timings and crayon (route, why, confidence, scope,\n"
         "left_device_bytes, cost, blend). The line at the end on standard error tells tokens,\n"
         "speed, the weights read per second, peak memory and a hash of the last logits.",
     .examples = "  crayon run -p \"What is a crayon?\"\n"
                 "  crayon run -m smollm2-135m-instruct-q4_1 --temp 0 --json < question.txt\n"
                 "  crayon run --raw -p \"Once upon a time\" -n 64 --stop \"\\n\"\n"
                 "  crayon run --palette mine.palette -p \"a question\" --budget 0.1 \\\n"
                 "      --upstream https://server.example/v1 --upstream-model big",
     .run = cr_cli_run},
    {.id = CR_VERB_TOKENIZE,
     .name = "tokenize",
     .operands = "[FILE|-]",
     .max_rest = 1,
     .complete = "file",
     .summary = "turn text into token ids",
     .about = "Prints the ids of the whole input on one line, separated by blanks, or as one JSON\n"
              "array with --json. --lines and --jsonl print one JSON array for each line of input.",
     .examples = "  echo -n \"Hello\" | crayon tokenize\n"
                 "  crayon tokenize --lines corpus.txt",
     .run = cr_cli_tokenize},
    {.id = CR_VERB_SCORE,
     .name = "score",
     .operands = "[FILE|-]",
     .max_rest = 1,
     .complete = "file",
     .summary = "log-probabilities of given completions",
     .about =
         "Reads lines {\"prompt\": P, \"completion\": C}, where P and C are text or arrays of "
         "token\n"
         "ids, and prints for each a line {\"tokens\", \"logprobs\", \"sum\", \"is_greedy\"} about "
         "the\n"
         "completion. A text prompt begins with the begin-of-text token where the model asks for\n"
         "it, and with the palette's worked examples as far as they fit. After an empty prompt\n"
         "the first log-probability is null. The first bad line is named by number and ends the\n"
         "work.",
     .examples = "  echo '{\"prompt\": \"2 + 2 =\", \"completion\": \" 4\"}' | crayon score",
     .run = cr_cli_score},
    {.id = CR_VERB_LOGITS,
     .name = "logits",
     .operands = "",
     .summary = "write the logits after each token",
     .about = "Writes raw little-endian float32 [n_tokens, n_vocab]: row i is what the model says\n"
              "after tokens 0 to i.",
     .examples = "  crayon logits --tokens 1,2,3 -o logits.f32",
     .run = cr_cli_logits},
    {.id = CR_VERB_INFO,
     .name = "info",
     .operands = "[FILE|DIR]",
     .max_rest = 1,
     .complete = "file",
     .summary = "tell what a file is and what is in it",
     .about =
         "Knows GGUF models, LoRA files, PEFT folders, pools and palettes. For a model it also\n"
         "says whether this program runs it, and if not, why. Without a file: the embedded\n"
         "model.",
     .run = cr_cli_info},
    {.id = CR_VERB_ADAPTER_CHECK,
     .name = "adapter check",
     .operands = "ADAPTER[:SCALE]",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "file",
     .summary = "does a LoRA fit a model, and does it change anything",
     .about =
         "Every tensor of the adapter must find its place in the model, or the adapter is refused\n"
         "and all offenders are named. Then a fixed text is run with and without it: an adapter\n"
         "that changes no logit is refused too.",
     .examples = "  crayon adapter check -m base.gguf lora.gguf",
     .run = cr_cli_adapter_check},
    {.id = CR_VERB_ADAPTER_INFO,
     .name = "adapter info",
     .operands = "ADAPTER",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "file",
     .summary = "tell what is in a LoRA file or PEFT folder",
     .about = "Needs no model: reads the file alone.",
     .run = cr_cli_adapter_info},
    {.id = CR_VERB_ADAPTER_CONVERT,
     .name = "adapter convert",
     .operands = "ADAPTER",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "file",
     .summary = "write a LoRA as GGUF file or PEFT folder",
     .about = "The base model is needed to know shapes and the order of rows.",
     .examples = "  crayon adapter convert -m base.gguf peft-folder -o lora.gguf\n"
                 "  crayon adapter convert -m base.gguf lora.gguf -o peft-folder --type f32",
     .run = cr_cli_adapter_convert},
    {.id = CR_VERB_ADAPTER_MERGE,
     .name = "adapter merge",
     .operands = "",
     .summary = "write the model with adapters or a palette merged in",
     .about =
         "The changed linears are written as floats of --type; all other weights are copied as\n"
         "they are.",
     .examples = "  crayon adapter merge -m base.gguf --adapter lora.gguf:0.5 -o merged.gguf",
     .run = cr_cli_adapter_merge},
    {.id = CR_VERB_POOL_TRAIN,
     .name = "pool train",
     .operands = "[FILE...]",
     .max_rest = -1,
     .complete = "file",
     .summary = "train a pool of adapters on task files",
     .about =
         "Reads task files, prints the plan with the memory it needs, and trains on the CPU, or "
         "on\n"
         "NVIDIA GPUs with --device cuda. The base model stays as it is, quantised or not. Ctrl-C\n"
         "saves a checkpoint and stops; so does\n"
         "--checkpoint-seconds while it runs, and --resume goes on from there to the same result.\n"
         "\n"
         "A library pool learns a weight vector per task together with the adapters; a centroid "
         "pool\n"
         "takes the weights from k-means of the task embedding; --n 1 trains one LoRA for all "
         "tasks.",
     .examples = "  crayon pool train --tasks data/train.jsonl.xz --n 16 --epochs 2 -o pool.gguf",
#ifdef CRAYON_TUNE
     .run = cr_cli_pool_train,
#endif
     .missing = "pool training (CRAYON_TUNE)"},
    {.id = CR_VERB_POOL_INFO,
     .name = "pool info",
     .operands = "POOL",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "file",
     .summary = "show a pool: its shape, and what each entry of its index is about",
     .about = "Needs no model: reads the file alone.",
     .run = cr_cli_pool_info},
    {.id = CR_VERB_POOL_EXPORT,
     .name = "pool export",
     .operands = "POOL",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "file",
     .summary = "write one adapter or one blend of a pool as a LoRA",
     .about = "What is written works in any program that reads GGUF LoRA files or PEFT folders.",
     .examples = "  crayon pool export pool.gguf --task snips -o snips.gguf\n"
                 "  crayon pool export pool.gguf --palette mine.palette -o mine-peft",
     .run = cr_cli_pool_export},
    {.id = CR_VERB_POOL_CONVERT,
     .name = "pool convert",
     .operands = "POOL",
     .min_rest = 1,
     .max_rest = 1,
     .complete = "file",
     .summary = "write a pool again, its adapters in another type",
     .about = "The new file is a pool of its own: palettes of the old one do not fit it.",
     .examples = "  crayon pool convert pool.gguf -o pool-q8.gguf",
     .run = cr_cli_pool_convert},
    {.id = CR_VERB_BLEND,
     .name = "blend",
     .operands = "",
     .summary = "fit the model to your examples, in milliseconds",
     .about =
         "Turns a handful of your own lines into weights over a pool of adapters, and saves them "
         "as a\n"
         "palette of about a kilobyte that every verb takes with --palette.\n"
         "\n"
         "The levels run one after the other and are timed: instant embeds the lines without "
         "running\n"
         "the model, measured runs half of it, refined uses the answers. Ctrl-C keeps the best so "
         "far.\n"
         "A share of the lines is held out to measure before and after; where the blend does not\n"
         "help, that is said and the palette keeps the base model.\n"
         "\n"
         "Worked examples: above the level instant up to five of your lines with answers are "
         "also\n"
         "tried in front of each question, behind the blend and behind the base model. Where more\n"
         "held-out lines are right so, the palette keeps those lines as text and every verb puts\n"
         "them in front; ties stay with the plain blend. --worked 0 tries none.\n"
         "\n"
         "--level tuned goes on with gradient steps from the blend, and says beforehand how long\n"
         "they take and how much memory. Where the held-out lines are better for it, an adapter\n"
         "NAME.tuned.gguf is left beside the palette, which refers to it; else the blend stays.",
     .examples = "  crayon blend --examples mine.jsonl -o mine.palette\n"
                 "  crayon blend --examples mine.jsonl -o mine.palette --level tuned\n"
                 "  crayon run --palette mine.palette -p \"play some jazz\"",
     .run = cr_cli_blend},
    {.id = CR_VERB_EVAL,
     .name = "eval",
     .operands = "[FILE...]",
     .max_rest = -1,
     .complete = "file",
     .summary = "measure accuracy on task files: base, adapters, blends",
     .about =
         "Multiple choice goes by the log-probability of each option divided by its bytes; a "
         "short\n"
         "answer counts when every token of it is the most likely one. Rows: base, each "
         "--adapter,\n"
         "--palette, and for --pool the uniform blend, each solver and the oracle, which is told "
         "the\n"
         "task. Solvers see --shots examples of a task and never its test rows.\n"
         "\n"
         "Examples come from the file's rows of split examples, train or dev, else from the file\n"
         "NAME.examples, NAME.dev or NAME.train beside NAME.test, else from the test rows, which "
         "are\n"
         "then left out of the test. The intervals are of a bootstrap over tasks and rows.",
     .examples =
         "  crayon eval --tasks data/eval.jsonl.xz --pool pool.gguf --limit 20 --svg chart.svg\n"
         "  crayon eval --tasks tests/ --row lora=lora.gguf --row knn=pool.gguf:knn:qx --json",
     .run = cr_cli_eval},
    {.id = CR_VERB_SERVE,
     .name = "serve",
     .operands = "",
     .summary = "answer the OpenAI API over HTTP, on this machine",
     .about =
         "Speaks the APIs of OpenAI, Anthropic and Ollama; docs/api.md has every path and field.\n"
         "Palettes are models of their own, named MODEL:PALETTE. Prints the address when it is\n"
         "ready. SIGTERM or Ctrl-C lets accepted requests finish; SIGHUP reads the palettes "
         "again.\n"
         "\n"
         "The console is the page at /: chat with the route and confidence of each answer, "
         "fitting\n"
         "to a file of examples, palettes, the ledger. With --upstream demanding questions may go "
         "to\n"
         "a server as in `run`, without asking: what leaves is your rule's and budget's word, and\n"
         "stands in the ledger. A request may say crayon: {\"route\": \"auto|device|server\",\n"
         "\"max_cost\": MONEY}. docs/deploy.md shows the service, containers and a fleet.",
     .examples = "  crayon serve -m model.gguf --palette mine.palette --port 8080\n"
                 "  curl http://127.0.0.1:8080/v1/models",
#ifdef CRAYON_SERVE
     .run = cr_cli_serve,
#endif
     .missing = "the HTTP server (CRAYON_SERVE)"},
    {.id = CR_VERB_ROUTE_EXPLAIN,
     .name = "route explain",
     .operands = "[ID]",
     .max_rest = 1,
     .summary = "show every signal, threshold and decision for a prompt; sends nothing",
     .about =
         "With the id of a past request (X-Request-Id of a reply, request_id of the ledger) it "
         "tells\n"
         "what was decided then, why, and what left.\n"
         "\n"
         "Without one, the device answers as in `run`. Shown are how sure it was, how far the\n"
         "prompt lies from the palette's task, the thresholds that --budget gives, and what each\n"
         "rule would do. The process makes sockets impossible for itself first, as with --offline.",
     .examples = "  crayon route explain --palette mine.palette -p \"a question\" --budget 0.2\n"
                 "  crayon route explain run-0123456789abcdef",
#ifdef CRAYON_ROUTE
     .run = cr_cli_route_explain,
#endif
     .missing = "routing (CRAYON_ROUTE)"},
    {.id = CR_VERB_ROUTE_CALIBRATE,
     .name = "route calibrate",
     .operands = "",
     .summary = "turn budgets into thresholds, from your examples",
     .about =
         "Answers the examples as `run` would and keeps the quantiles of their scores in the\n"
         "palette. Labels are not needed. Take other examples than the palette was made from: "
         "those\n"
         "look closer to the task than fresh questions do.\n"
         "\n"
         "Where all examples have answers, it reports accuracy against the share sent for each\n"
         "rule, the line of chance and the oracle, and how well each signal tells wrong answers.\n"
         "Without --upstream the server is taken to be always right: an upper bound. With it, and\n"
         "with --yes or your word, every example is sent there.",
     .examples = "  crayon route calibrate --palette mine.palette --examples more.jsonl\n"
                 "  crayon route calibrate --palette mine.palette --examples more.jsonl --svg "
                 "chart.svg \\\n"
                 "      --out-of-scope other.jsonl --upstream http://localhost:8081 "
                 "--upstream-model big --yes",
#ifdef CRAYON_ROUTE
     .run = cr_cli_route_calibrate,
#endif
     .missing = "routing (CRAYON_ROUTE)"},
    {.id = CR_VERB_LEDGER,
     .name = "ledger",
     .operands = "",
     .summary = "show what left the device",
     .about =
         "One row for each request to a server: when, where to, why, how many bytes and tokens. A\n"
         "row is written before anything leaves; \"pending\" is one whose end was never seen.",
     .examples = "  crayon ledger --limit 5\n  crayon ledger --export csv > sent.csv\n"
                 "  crayon ledger --prune 90",
#ifdef CRAYON_ROUTE
     .run = cr_cli_ledger,
#endif
     .missing = "routing (CRAYON_ROUTE)"},
    {.id = CR_VERB_PULL,
     .name = "pull",
     .operands = "URL|NAME",
     .min_rest = 1,
     .max_rest = 1,
     .summary = "fetch a model, checked and resumable",
     .about =
         "Puts the file into the models folder and prints where it is. A transfer that was cut is\n"
         "resumed by the next try. With --sha256, or from an index, what came must have that "
         "hash,\n"
         "or it is deleted; the file gets its name only when it is whole and on the disk.\n"
         "\n"
         "An index is a list of lines NAME URL SHA256, in a file or at a URL. Plain http is taken\n"
         "from this machine, or where a SHA-256 is given.",
     .examples = "  crayon pull https://server.example/model.gguf --sha256 HEX\n"
                 "  crayon pull small --index https://server.example/models.txt",
#ifdef CRAYON_ROUTE
     .run = cr_cli_pull,
#endif
     .missing = "downloads (CRAYON_ROUTE)"},
    {.id = CR_VERB_LIST,
     .name = "list",
     .operands = "",
     .summary = "show the models, pools and adapters of the models folder",
     .about = "One line each: the name that -m takes, the kind, the size and what is in it. Says "
              "which\n"
              "transfers of `crayon pull` are unfinished and which files are broken, and why.\n"
              "`crayon info NAME` shows one of them.",
     .examples = "  crayon list --json",
     .run = cr_cli_list},
    {.id = CR_VERB_CONFIG_SHOW,
     .name = "config show",
     .operands = "[VERB]",
     .max_rest = 2,
     .summary = "show what a verb gets from files, environment and defaults",
     .about = "A flag wins over the environment (CRAYON_NAME), that over the user's file, that "
              "over the\n"
              "system's file, that over the default. The files are $XDG_CONFIG_HOME/crayon/config, "
              "else\n"
              "~/.config/crayon/config, and /etc/crayon/config; CRAYON_CONFIG names another file "
              "for the\n"
              "user's, CRAYON_SYSTEM_CONFIG for the system's, empty for none.\n"
              "\n"
              "A file has lines NAME = VALUE, names as the long options; # begins a comment line. "
              "Before\n"
              "the first [VERB] they are for every verb that reads the option from the environment "
              "too;\n"
              "below [VERB] for that verb, any of its options. Without VERB: serve.",
     .examples = "  crayon config show --origin\n  crayon config show run",
     .run = cr_cli_config_show},
    {.id = CR_VERB_BENCH,
     .name = "bench",
     .operands = "",
     .summary = "measure the speed of a model on this machine",
     .about =
         "Measures prompts (prefill) and answers (decode) in rounds and prints tokens a second:\n"
         "the median, and in brackets the slowest and the fastest round. Beside them stands what\n"
         "the machine could do with as many threads: the bandwidth of reading memory, which "
         "bounds\n"
         "an answer, and the peak of integer products, which bounds a prompt; and the shares of\n"
         "them that are reached. A palette or adapters are run with the model.",
     .examples = "  crayon bench\n"
                 "  crayon bench -m smollm2-135m-instruct-q4_1 -t 2 --pages map --json\n"
                 "  crayon bench --sequences 4 --depth 512",
     .run = cr_cli_bench},
    {.id = CR_VERB_DOCTOR,
     .name = "doctor",
     .operands = "",
     .summary = "tell what this machine and this build can do",
     .about = "Machine, kernel levels, memory, libraries, offline mode, folders and models. Exit 1 "
              "when\n"
              "the default model cannot be used.",
     .run = cr_cli_doctor},
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
