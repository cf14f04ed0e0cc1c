/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pool training: task files in, a pool file out. The base model is frozen and may be quantised.
 *
 *   y = W x + alpha / rank * sum_n a_n B_n (A_n x)      (SHARED: one A for all n)
 *
 * library pool   a is a free vector per training task, learned with A and B
 * centroid pool  a comes from k-means of q_x: softmax(cos / tau) per example (soft) or one-hot
 * (hard) lora           n = 1 and a = 1: one multi-task LoRA of any rank
 *
 * Loss: the mean over the examples of a step of the mean NLL of the answer's tokens; the prompt is
 * cr_example_prompt, the answer " " + text + "\n". AdamW, linear warm-up, cosine down.
 *
 * The result depends on the options, the data and the CPU level, never on the thread count:
 * a step is cut into micro-batches that do not know of threads, each runs on one worker, and their
 * gradients are added in the order of the micro-batches.
 *
 *     cr_trainer *t;
 *     struct cr_train_options o = cr_train_options_default();
 *     o.files = files; o.n_files = 3; o.out = "pool.gguf";
 *     if (cr_trainer_new(&t, model, &o, &err)) ...      reads and tokenises; CR_LIMIT: does not fit
 *     print(cr_trainer_plan(t));
 *     status = cr_trainer_run(t, &report, &err);        CR_CANCELLED: stopped after a checkpoint
 *     cr_trainer_free(t);
 */
#ifndef CR_TRAIN_H
#define CR_TRAIN_H

#include "adapt/pool.h"

enum {
    CR_TRAIN_MAX_N = 256,      /* base adapters */
    CR_TRAIN_MAX_RANK = 1024,  /* of one adapter */
    CR_TRAIN_MAX_TASKS = 4096, /* of a library pool */
    CR_TRAIN_MAX_STEPS = 1000000,
    CR_TRAIN_MAX_WORKED = 64
};

/* Of the products with the frozen weights; all else is float32. AUTO: bfloat16 where the CPU has
 * matrix instructions for it (AMX, or VDPBF16PS on AMD), which keeps 4 bytes a weight in memory;
 * else float32, which dequantises at each use and keeps nothing. */
enum cr_train_precision { CR_TRAIN_AUTO, CR_TRAIN_F32, CR_TRAIN_BF16 };

struct cr_train_progress {
    long step, n_steps; /* steps done, of how many */
    float loss;         /* of this step */
    float loss_mean;    /* running mean, weight 0.05 for the newest */
    float grad_norm;    /* before clipping */
    float lr;
    double tokens_per_s; /* packed tokens, over this run so far */
    double seconds, eta_s;
    bool saved; /* a checkpoint was written after this step */
};

struct cr_train_options {
    /* data: one task per file, or the "task" field of its lines where they have one */
    const char *const *files; /* borrowed while the trainer lives */
    size_t n_files;
    const struct cr_example *examples; /* in place of files; borrowed while the trainer is made */
    size_t n_examples;
    int rows_per_task; /* at most so many of each task, drawn by seed; 0: all */
    int max_tokens;    /* longer rows are left out and counted; 0: 1024, at most the context */
    int worked;        /* up to so many worked examples in front of a row; 0: none (tune/batch.h) */
    float alone;       /* then: the share of the rows that stand alone all the same */
    float general; /* of a library pool, with worked: the share of the chains that is learned with
                      weights that all tasks share; the index then has one entry more */
    /* the pool */
    enum cr_pool_kind kind;
    enum cr_pool_form form;
    bool hard; /* centroid pools: one adapter per example */
    int n, rank;
    float alpha;
    bool target[CR_LIN_COUNT];
    const char *name;    /* general.name of the pool; NULL: the file's name */
    const char *command; /* recorded in the pool; NULL: "" */
    /* the run */
    long steps;           /* 0: by epochs */
    float epochs;         /* when steps is 0 */
    int tokens_per_step;  /* packed tokens in a step; 0: 12288 */
    int tokens_per_batch; /* packed tokens of a micro-batch: memory against speed; 0: 384, or with
                             a device a step's share of each that runs at a time */
    enum cr_train_precision precision;
    bool recompute;       /* activations: less memory, more work, the same result */
    float lr, lr_weights; /* lr_weights (of a): 0: 10 * lr */
    float beta1, beta2, weight_decay;
    float warm_up; /* share of the steps */
    float lr_end;  /* share of lr at the end of the cosine */
    float clip;    /* of the global gradient norm; 0: off */
    /* Where a plain LoRA (kind lora) begins: an adapter of the same rank and targets, such as a
     * blend; borrowed while the trainer is made. NULL: the usual random A and zero B. From a start
     * no step holds a row twice, however few there are. */
    const cr_delta *start;
    uint64_t seed;
    /* files and limits; the threads are those of the model */
    const char *out;              /* pool file; NULL: none is written (cr_trainer_pool) */
    uint32_t type;                /* of the adapters in the file: CR_F16, CR_F32 or CR_Q8_0 */
    const char *checkpoint;       /* NULL: OUT.checkpoint; removed once the pool is written */
    double checkpoint_s;          /* at most so often; 0: 60; < 0: never */
    long checkpoint_steps;        /* also every so many steps; 0: by time only */
    bool resume;                  /* go on from the checkpoint if it is there */
    uint64_t memory_limit;        /* bytes for the whole of it; 0: what the machine has available */
    struct cr_train_peers *peers; /* processes that share the steps (tune/peers.h); NULL: alone */
    struct cr_train_device *device; /* runs the steps (tune/device.h); borrowed; NULL: the CPU */
    /* Called after every step. Return false to save a checkpoint and stop. May be NULL. */
    bool (*progress)(void *ud, const struct cr_train_progress *p);
    void *ud;
};
/* METHOD.md's recipe: library, shared, n 16, rank 8, alpha 16, all seven linears, 2 epochs, lr
 * 1e-3, AdamW (0.9, 0.99), no decay, warm-up 0.05, end 0.05, clip 1, seed 1, float16. */
struct cr_train_options cr_train_options_default(void);

struct cr_train_plan {
    size_t n_tasks, n_rows, n_tokens, n_answer_tokens; /* rows that are trained on, once each */
    size_t n_too_long, n_no_answer, n_over_limit;      /* rows left out, and why */
    size_t longest;                                    /* tokens of the longest row */
    long n_steps, steps_per_epoch;
    double epochs;
    uint64_t n_params;          /* that are trained */
    const char *precision;      /* "float32" or "bfloat16" */
    uint64_t weights_bytes;     /* packed frozen weights */
    uint64_t params_bytes;      /* adapters, gradients, both moments */
    uint64_t activations_bytes; /* of all threads */
    bool recompute;
    double recompute_cost; /* what recomputing adds to the work, whether or not it is on */
    uint64_t data_bytes;
    uint64_t total_bytes, available_bytes;
    uint64_t device_bytes; /* of each device's own memory; 0: the CPU runs the steps */
    long resume_step;      /* 0: from the start */
};

struct cr_train_report {
    long n_steps;
    float loss_first, loss_last; /* means of the first and last 5 % of the steps (at least 1) */
    double seconds, tokens_per_s, index_seconds;
    uint64_t tokens; /* run in this process */
};

typedef struct cr_trainer cr_trainer;

/* Reads the files, makes the plan, takes the memory. CR_LIMIT: does not fit, naming both numbers;
 * CR_INVALID: an option, or a checkpoint made with other options. Free with cr_trainer_free. */
enum cr_status cr_trainer_new(cr_trainer **out, cr_model *m, const struct cr_train_options *opt,
                              struct cr_error *err);
void cr_trainer_free(cr_trainer *t);
const struct cr_train_plan *cr_trainer_plan(const cr_trainer *t);
const char *cr_trainer_task(const cr_trainer *t, size_t i, size_t *n_rows); /* name; borrowed */
/* Trains to the end, builds the index, writes opt.out. CR_CANCELLED when progress returned false
 * (a checkpoint is there). After CR_IO (disk full) the trainer can be run again: it goes on. */
enum cr_status cr_trainer_run(cr_trainer *t, struct cr_train_report *report, struct cr_error *err);
/* The pool as it is now, without an index before the run has ended. Free with cr_pool_close. */
enum cr_status cr_trainer_pool(const cr_trainer *t, cr_pool **out, struct cr_error *err);

#endif
