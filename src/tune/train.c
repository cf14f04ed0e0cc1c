/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The training loop: options, plan, steps, checkpoints, pool. The micro-batches of a step are
 * handed to the workers in order; each adds to the common gradients layer by layer in that order
 * (backward.h), so the workers run a little behind each other and hardly ever wait.
 */
#include "tune/train.h"

#include "base/log.h"
#include "base/mem.h"
#include "tune/ops.h"
#include "tune/trainer.h"

#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* ---- options ---- */

struct cr_train_options cr_train_options_default(void)
{
    return (struct cr_train_options){
        .max_tokens = 1024,
        .kind = CR_POOL_LIBRARY,
        .form = CR_POOL_SHARED,
        .n = 16,
        .rank = 8,
        .alpha = 16,
        .target = {true, true, true, true, true, true, true},
        .epochs = 2,
        .tokens_per_step = 12288,
        .tokens_per_batch = 384,
        .lr = 1e-3f,
        .lr_weights = 1e-2f,
        .beta1 = 0.9f,
        .beta2 = 0.99f,
        .warm_up = 0.05f,
        .lr_end = 0.05f,
        .clip = 1,
        .seed = 1,
        .type = CR_F16,
        .checkpoint_s = 60,
    };
}

static void fill_defaults(struct cr_train_options *o, const cr_model *m)
{
    if (o->max_tokens == 0)
        o->max_tokens = 1024;
    if (o->max_tokens > m->n_ctx_train)
        o->max_tokens = m->n_ctx_train;
    if (o->tokens_per_step == 0)
        o->tokens_per_step = 12288;
    int parallel = o->device ? o->device->n_parallel : 1;
    if (o->tokens_per_batch == 0)
        o->tokens_per_batch = o->device ? (o->tokens_per_step + parallel - 1) / parallel : 384;
    if (o->lr_weights == 0)
        o->lr_weights = 10 * o->lr;
    if (o->checkpoint_s == 0)
        o->checkpoint_s = 60;
}

static bool within(double x, double low, double high)
{
    return x >= low && x <= high; /* false for NaN */
}

static enum cr_status check_number(const char *name, double x, double low, double high,
                                   struct cr_error *err)
{
    if (within(x, low, high))
        return CR_OK;
    return cr_error_set(err, CR_INVALID, "training: %s is %g, want %g to %g", name, x, low, high);
}

static enum cr_status check_options(const struct cr_train_options *o, struct cr_error *err)
{
    const struct {
        const char *name;
        double x, low, high;
    } numbers[] = {
        {"n", o->n, 1, CR_TRAIN_MAX_N},
        {"rank", o->rank, 1, CR_TRAIN_MAX_RANK},
        {"n * rank", (double)o->n * o->rank, 1,
         o->form == CR_POOL_SEPARATE ? CR_TRAIN_MAX_RANK
                                     : (double)CR_TRAIN_MAX_N * CR_TRAIN_MAX_RANK},
        {"alpha", (double)o->alpha, 1e-6, 1e6},
        {"rows per task", o->rows_per_task, 0, 1e9},
        {"max tokens", o->max_tokens, 0, CR_MAX_CTX},
        {"worked examples", o->worked, 0, CR_TRAIN_MAX_WORKED},
        {"share of rows alone", (double)o->alone, 0, 1},
        {"share of general weights", (double)o->general, 0, 1},
        {"steps", (double)o->steps, 0, CR_TRAIN_MAX_STEPS},
        {"epochs", o->steps ? 1 : (double)o->epochs, 1e-6, 1e6},
        {"tokens per step", o->tokens_per_step, 0, 1 << 24},
        {"tokens per batch", o->tokens_per_batch, 0, 1 << 20},
        {"learning rate", (double)o->lr, 0, 10},
        {"learning rate of weights", (double)o->lr_weights, 0, 100},
        {"beta1", (double)o->beta1, 0, 0.999999},
        {"beta2", (double)o->beta2, 0, 0.999999},
        {"weight decay", (double)o->weight_decay, 0, 10},
        {"warm-up", (double)o->warm_up, 0, 1},
        {"final learning rate", (double)o->lr_end, 0, 1},
        {"clip", (double)o->clip, 0, 1e9},
    };
    enum cr_status status = CR_OK;
    bool any = false;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !status; i++)
        status = check_number(numbers[i].name, numbers[i].x, numbers[i].low, numbers[i].high, err);
    for (int i = 0; i < CR_LIN_COUNT; i++)
        any |= o->target[i];
    if (!status && !any)
        status = cr_error_set(err, CR_INVALID, "training: no linear layer is a target");
    if (!status && o->n_files == 0 && o->n_examples == 0)
        status = cr_error_set(err, CR_INVALID, "training: no task files");
    if (!status && o->kind == CR_POOL_LORA && o->n != 1)
        status = cr_error_set(err, CR_INVALID, "training: a plain LoRA has n 1, got %d", o->n);
    if (!status && o->start && o->kind != CR_POOL_LORA)
        status = cr_error_set(err, CR_INVALID,
                              "training: only a plain LoRA (kind lora) can start from an adapter");
    if (!status && o->type != CR_F16 && o->type != CR_F32 && o->type != CR_Q8_0)
        status =
            cr_error_set(err, CR_INVALID, "training: the pool's type is F16, F32 or Q8_0, got %s",
                         cr_type_info(o->type)->name ? cr_type_info(o->type)->name : "unknown");
    return status;
}

/* Rank 0 of several processes, or the only one: it alone writes files. */
static bool writes(const cr_trainer *t)
{
    return !t->opt.peers || t->opt.peers->rank == 0;
}

/* The processes must agree on all that decides the result, and on where to go on. */
static enum cr_status check_peers(cr_trainer *t, struct cr_error *err)
{
    struct cr_train_peers *p = t->opt.peers;
    uint32_t hash = 2166136261u;
    if (!p)
        return CR_OK;
    for (const char *c = t->settings; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    double own[2] = {hash, (double)t->step}, all[2] = {hash, (double)t->step};
    enum cr_status status = p->sum_double(p, all, 2, err);
    if (!status && (all[0] != p->size * own[0] || all[1] != p->size * own[1]))
        status = cr_error_set(err, CR_INVALID,
                              "training: the %d processes do not have the same model, data, "
                              "options, CPU level and checkpoint",
                              p->size);
    return status;
}

static enum cr_status choose_precision(cr_trainer *t, struct cr_error *err)
{
    struct cr_train_device *d = t->opt.device;
    if (d) {
        t->plan.precision = d->precision;
        return t->opt.precision == CR_TRAIN_F32
                   ? cr_error_set(err, CR_UNSUPPORTED, "training: %s computes in bfloat16, not f32",
                                  d->name)
                   : d->check(d, t->m, err);
    }
    bool can = cr_train_kernels_get(t->m->k->level)->bf16_matmul != NULL;
    if (t->opt.precision == CR_TRAIN_BF16 && !can)
        return cr_error_set(err, CR_UNSUPPORTED,
                            "training: this CPU (level %s) has no fast bfloat16 products",
                            t->m->k->name);
    t->bf16 = can && t->opt.precision != CR_TRAIN_F32;
    t->plan.precision = t->bf16 ? "bfloat16" : "float32";
    return CR_OK;
}

/* ---- plan ---- */

/* All that decides the result. Threads do not. */
/* A number that tells one start from another; 0 without one. */
static double start_sum(const cr_trainer *t)
{
    const cr_delta *d = t->opt.start;
    double sum = 0;
    for (int i = 0; d && d->pairs && i < t->m->n_layers * CR_LIN_COUNT; i++)
        for (int k = 0; k < d->pairs[i].rank; k++)
            sum += (double)(k + 1) * (double)d->pairs[i].b[k];
    return sum;
}

static enum cr_status write_settings(cr_trainer *t, struct cr_error *err)
{
    static const char *const kinds[] = {"library", "centroid", "lora"};
    const struct cr_train_options *o = &t->opt;
    char hash[65], targets[CR_LIN_COUNT + 1] = {0};
    for (int i = 0, n = 0; i < CR_LIN_COUNT; i++)
        if (o->target[i])
            targets[n++] = "qkvogud"[i];
    cr_data_hash(&t->data, hash);
    t->settings = cr_asprintf(
        "base=%s\ndata=%s\nprecision=%s\nkind=%s\nform=%s\nmode=%s\nn=%d\nrank=%d\nalpha=%."
        "9g\ntargets=%s\n"
        "steps=%ld\nrows=%zu\ntokens_per_step=%d\ntokens_per_batch=%d\nlr=%.9g\nlr_weights=%.9g\n"
        "beta1=%.9g\nbeta2=%.9g\nweight_decay=%.9g\nwarm_up=%.9g\nlr_end=%.9g\nclip=%.9g\n"
        "seed=%llu\nstart=%.9g\nworked=%d\nalone=%.9g\ngeneral=%.9g\n",
        cr_model_hash(t->m), hash, t->plan.precision, kinds[o->kind],
        o->form == CR_POOL_SHARED ? "shared" : "separate", o->hard ? "hard" : "soft", o->n, o->rank,
        (double)o->alpha, targets, t->plan.n_steps, t->rows_total, o->tokens_per_step,
        o->tokens_per_batch, (double)o->lr, (double)o->lr_weights, (double)o->beta1,
        (double)o->beta2, (double)o->weight_decay, (double)o->warm_up, (double)o->lr_end,
        (double)o->clip, (unsigned long long)o->seed, start_sum(t), o->worked, (double)o->alone,
        (double)o->general);
    return t->settings ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
}

/* Runs through all steps without computing, for their number and their largest micro-batch. */
static enum cr_status plan_steps(cr_trainer *t, size_t *most_rows, size_t *most_micros,
                                 struct cr_error *err)
{
    struct cr_batcher *b = &t->batcher;
    const struct cr_train_options *o = &t->opt;
    double rows = (double)o->epochs * (double)t->data.n_rows;
    t->rows_total = o->steps ? SIZE_MAX : (size_t)ceil(rows - 1e-6);
    for (size_t done = 0; o->steps ? t->plan.n_steps < o->steps : done < t->rows_total;) {
        cr_batcher_next(b, t->rows_total - done);
        cr_batcher_shape(b, &t->shape);
        done += b->n_rows;
        if (++t->plan.n_steps > CR_TRAIN_MAX_STEPS)
            return cr_error_set(err, CR_LIMIT, "training: more than %d steps", CR_TRAIN_MAX_STEPS);
        if (done <= t->data.n_rows)
            t->plan.steps_per_epoch = t->plan.n_steps;
        *most_rows = b->n_rows > *most_rows ? b->n_rows : *most_rows;
        *most_micros = b->n_micros > *most_micros ? b->n_micros : *most_micros;
        t->plan.epochs = (double)done / (double)t->data.n_rows;
    }
    cr_batcher_rewind(b);
    return CR_OK;
}

static struct cr_device_job device_job(const cr_trainer *t)
{
    return (struct cr_device_job){t->m, &t->low, &t->adam, t->shape, t->most_micros};
}

static enum cr_status plan_memory(cr_trainer *t, size_t most_rows, size_t most_micros,
                                  struct cr_error *err)
{
    struct cr_train_plan *p = &t->plan;
    size_t threads = (size_t)cr_threads_count(t->m->threads), n = t->low.n_params;
    uint64_t pool = (uint64_t)t->low.n_adapter * (t->opt.type == CR_F32 ? 8 : 6);
    p->n_params = n;
    p->params_bytes = 2 * n * sizeof(float) + cr_adamw_bytes(n);
    struct cr_frozen frozen = {.m = t->m, .p = &t->low, .bf16 = t->bf16};
    p->weights_bytes = cr_frozen_bytes(t->m, &t->low, t->bf16);
    p->recompute = t->shape.recompute;
    p->recompute_cost = cr_pass_recompute_cost(&frozen);
    p->activations_bytes = (t->opt.device ? 0 : threads * cr_pass_bytes(&frozen, &t->shape)) +
                           cr_pass_shared_bytes(t->m, &t->shape);
    t->most_micros = most_micros;
    struct cr_device_job job = device_job(t);
    if (t->opt.device)
        p->device_bytes = t->opt.device->bytes(t->opt.device, &job);
    if (p->activations_bytes + p->weights_bytes < pool) /* the pool is made when they are gone */
        p->activations_bytes = pool - p->weights_bytes;
    p->data_bytes = cr_data_bytes(&t->data) +
                    cr_packed_bytes(t->batcher.tokens_per_step, most_rows, most_micros, t->opt.n) +
                    (t->table ? t->data.n_rows * (size_t)t->opt.n * sizeof(float) : 0) +
                    (size_t)p->n_steps * sizeof(float);
    p->total_bytes = p->weights_bytes + p->params_bytes + p->activations_bytes + p->data_bytes;
    p->available_bytes = t->opt.memory_limit ? t->opt.memory_limit : cr_memory_available();
    if (p->total_bytes <= p->available_bytes)
        return CR_OK;
    return cr_error_set(err, CR_LIMIT,
                        "training needs %.0f MiB (%s weights %.0f, pool and its gradients %.0f, "
                        "activations of %zu threads %.0f, data %.0f), %.0f MiB are available: use "
                        "%sfewer threads, smaller batches or fewer adapters",
                        (double)p->total_bytes / 1048576, p->precision,
                        (double)p->weights_bytes / 1048576, (double)p->params_bytes / 1048576,
                        threads, (double)p->activations_bytes / 1048576,
                        (double)p->data_bytes / 1048576, (double)p->available_bytes / 1048576,
                        p->recompute || t->opt.device ? "" : "--recompute, ");
}

static void plan_data(cr_trainer *t)
{
    const struct cr_train_data *d = &t->data;
    t->plan.n_tasks = d->n_tasks;
    t->plan.n_rows = d->n_rows;
    t->plan.n_tokens = d->n_tokens;
    t->plan.n_answer_tokens = d->n_answer_tokens;
    t->plan.n_too_long = d->n_too_long;
    t->plan.n_no_answer = d->n_no_answer;
    t->plan.n_over_limit = d->n_over_limit;
    t->plan.longest = d->longest;
}

/* ---- making a trainer ---- */

static char *copy_or_null(const char *s)
{
    return s ? cr_strdup(s) : NULL;
}

static enum cr_status own_strings(cr_trainer *t, const struct cr_train_options *o,
                                  struct cr_error *err)
{
    t->opt.out = copy_or_null(o->out);
    t->opt.name = copy_or_null(o->name);
    t->opt.command = copy_or_null(o->command);
    if (o->checkpoint)
        t->checkpoint = cr_strdup(o->checkpoint);
    else if (o->out)
        t->checkpoint = cr_asprintf("%s.checkpoint", o->out);
    t->opt.checkpoint = NULL;
    if ((o->out && !t->opt.out) || (o->name && !t->opt.name) || (o->command && !t->opt.command) ||
        ((o->checkpoint || o->out) && !t->checkpoint))
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
    return CR_OK;
}

/* Which weights each row has, and those that are not learned. */
static enum cr_status choose_weights(cr_trainer *t, struct cr_error *err)
{
    t->key = cr_alloc0(t->data.n_rows, sizeof *t->key);
    if (!t->key)
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
    if (t->opt.kind == CR_POOL_CENTROID)
        return cr_centroid_weights(t, err);
    if (t->opt.kind == CR_POOL_LORA) {
        t->table = cr_alloc(1, sizeof *t->table);
        if (!t->table)
            return cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
        t->table[0] = 1;
        return CR_OK;
    }
    for (size_t i = 0; i < t->data.n_rows; i++)
        t->key[i] = t->data.rows[i].task;
    return CR_OK;
}

size_t cr_trainer_entries(const cr_trainer *t)
{
    if (t->opt.kind == CR_POOL_CENTROID)
        return (size_t)t->opt.n;
    bool more = t->opt.kind == CR_POOL_LIBRARY && t->opt.worked && t->opt.general > 0;
    return t->data.n_tasks + more;
}

static enum cr_status take_memory(cr_trainer *t, size_t most_rows, size_t most_micros,
                                  struct cr_error *err)
{
    size_t n = t->low.n_params;
    enum cr_status status = cr_adamw_init(&t->adam, n, err);
    if (!status)
        status = cr_packed_init(&t->packed, t->batcher.tokens_per_step, most_rows, most_micros,
                                t->opt.n, err);
    if (!status)
        status = cr_pass_shared_init(&t->rope, t->m, &t->shape, err);
    if (!status)
        status = cr_turns_init(&t->turns, cr_pass_slots(t->m), err);
    if (status)
        return status;
    t->params = cr_alloc(n, sizeof(float));
    t->grads = cr_alloc0(n, sizeof(float));
    t->micro_loss = cr_alloc(most_micros, sizeof *t->micro_loss);
    t->losses = cr_alloc0((size_t)t->plan.n_steps, sizeof *t->losses);
    if (!t->params || !t->grads || !t->micro_loss || !t->losses)
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory for %zu parameters", n);
    t->adam.tail = t->low.weights_at;
    t->adam.lr = t->opt.lr;
    t->adam.lr_tail = t->opt.lr_weights;
    t->adam.beta1 = t->opt.beta1;
    t->adam.beta2 = t->opt.beta2;
    t->adam.weight_decay = t->opt.weight_decay;
    t->adam.clip = t->opt.clip;
    return CR_OK;
}

/* Parameters at the start, or where the checkpoint left them. */
static enum cr_status start_or_resume(cr_trainer *t, struct cr_error *err)
{
    struct cr_rng rng;
    cr_rng_init(&rng, t->opt.seed);
    cr_lowrank_start(&t->low, t->params, &rng);
    if (t->opt.start) {
        enum cr_status st = cr_lowrank_import(&t->low, t->opt.start, t->params, err);
        t->opt.start = NULL;
        if (st)
            return st;
    }
    bool there = t->checkpoint && access(t->checkpoint, F_OK) == 0;
    if (there && !t->opt.resume)
        return cr_error_set(err, CR_INVALID,
                            "%s: there is a checkpoint of another run: resume it or remove it",
                            t->checkpoint);
    if (!there)
        return CR_OK;
    enum cr_status status = cr_checkpoint_read(t, err);
    for (long i = 0; i < t->step && !status; i++) {
        cr_batcher_next(&t->batcher, t->rows_total - t->rows_done);
        t->rows_done += t->batcher.n_rows;
    }
    t->plan.resume_step = t->step;
    return status;
}

enum cr_status cr_trainer_new(cr_trainer **out, cr_model *m, const struct cr_train_options *opt,
                              struct cr_error *err)
{
    size_t most_rows = 0, most_micros = 0;
    *out = NULL;
    cr_trainer *t = cr_alloc0(1, sizeof *t);
    if (!t)
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
    t->m = m;
    t->opt = *opt;
    t->opt.out = t->opt.name = t->opt.command = NULL;
    fill_defaults(&t->opt, m);
    enum cr_status status = check_options(&t->opt, err);
    if (!status)
        status = choose_precision(t, err);
    if (!status)
        status = own_strings(t, opt, err);
    struct cr_data_options data = {.files = opt->files,
                                   .n_files = opt->n_files,
                                   .examples = opt->examples,
                                   .n_examples = opt->n_examples,
                                   .rows_per_task = t->opt.rows_per_task,
                                   .max_tokens = t->opt.max_tokens,
                                   .seed = t->opt.seed,
                                   .want_qx = opt->kind == CR_POOL_CENTROID};
    if (!status)
        status = cr_data_read(&t->data, m, &data, err);
    t->opt.examples = NULL;
    if (!status && opt->start && t->data.n_tokens < (size_t)t->opt.tokens_per_step)
        t->opt.tokens_per_step = (int)t->data.n_tokens;
    if (!status)
        status = choose_weights(t, err);
    if (status)
        goto fail;
    plan_data(t);
    t->shape.recompute = t->opt.recompute;
    cr_lowrank_init(&t->low, m, t->opt.form, t->opt.n, t->opt.rank, t->opt.alpha, t->opt.target,
                    t->opt.kind == CR_POOL_LIBRARY ? cr_trainer_entries(t) : 0);
    status = cr_batcher_init(&t->batcher, &t->data, t->opt.seed, (size_t)t->opt.tokens_per_step,
                             (size_t)t->opt.tokens_per_batch, t->key, err);
    if (!status && t->opt.worked)
        status = cr_batcher_chain(&t->batcher, t->opt.worked, (double)t->opt.alone,
                                  (size_t)t->opt.max_tokens, err);
    if (!status && cr_trainer_entries(t) > t->data.n_tasks)
        cr_batcher_general(&t->batcher, (double)t->opt.general, (uint32_t)t->data.n_tasks);
    if (!status)
        status = plan_steps(t, &most_rows, &most_micros, err);
    if (!status)
        status = write_settings(t, err);
    if (!status)
        status = plan_memory(t, most_rows, most_micros, err);
    if (!status)
        status = take_memory(t, most_rows, most_micros, err);
    if (!status)
        status = start_or_resume(t, err);
    if (!status)
        status = check_peers(t, err);
    if (status)
        goto fail;
    *out = t;
    return CR_OK;
fail:
    cr_trainer_free(t);
    return status;
}

static void free_passes(cr_trainer *t)
{
    if (t->opt.device)
        t->opt.device->stop(t->opt.device);
    cr_frozen_deinit(&t->frozen);
    for (int i = 0; i < CR_MAX_THREADS; i++) {
        cr_pass_free(t->passes[i]);
        t->passes[i] = NULL;
    }
}

void cr_trainer_free(cr_trainer *t)
{
    if (!t)
        return;
    free_passes(t);
    cr_free(t->losses);
    cr_free(t->micro_loss);
    cr_free(t->grads);
    cr_free(t->params);
    cr_turns_deinit(&t->turns);
    cr_pass_shared_deinit(&t->rope);
    cr_packed_deinit(&t->packed);
    cr_adamw_deinit(&t->adam);
    cr_batcher_deinit(&t->batcher);
    cr_free(t->settings);
    cr_free(t->qx_mean);
    cr_free(t->centroids);
    cr_free(t->label);
    cr_free(t->table);
    cr_free(t->key);
    cr_data_deinit(&t->data);
    cr_free(t->checkpoint);
    cr_free((void *)(uintptr_t)t->opt.out);
    cr_free((void *)(uintptr_t)t->opt.name);
    cr_free((void *)(uintptr_t)t->opt.command);
    cr_free(t);
}

const struct cr_train_plan *cr_trainer_plan(const cr_trainer *t)
{
    return &t->plan;
}

const char *cr_trainer_task(const cr_trainer *t, size_t i, size_t *n_rows)
{
    if (i >= t->data.n_tasks)
        return NULL;
    *n_rows = t->data.tasks[i].n_rows;
    return t->data.tasks[i].name;
}

/* ---- running ---- */

static enum cr_status make_passes(cr_trainer *t, struct cr_error *err)
{
    struct cr_device_job job = device_job(t);
    if (t->opt.device)
        return t->opt.device->start(t->opt.device, &job, t->params, err);
    enum cr_status status = cr_frozen_init(&t->frozen, t->m, &t->low, t->bf16, err);
    for (int i = 0; i < cr_threads_count(t->m->threads) && !status; i++)
        status = cr_pass_new(&t->passes[i], &t->frozen, &t->rope, &t->shape, err);
    return status;
}

static void run_micros(void *ud, size_t begin, size_t end, int thread)
{
    cr_trainer *t = ud;
    for (size_t k = t->first_micro + begin; k < t->first_micro + end; k++) {
        const struct cr_micro *b = &t->packed.micros[k];
        float *da = t->packed.da + (b->all.a - t->packed.a);
        t->micro_loss[k] = cr_pass_run(t->passes[thread], t->params, b, t->grads, da, &t->turns,
                                       k - t->first_micro);
    }
}

/* One step: its loss, and the norm of its gradients. */
static enum cr_status run_step(cr_trainer *t, double *loss, double *norm, struct cr_error *err)
{
    size_t n = (size_t)t->opt.n;
    float factor = cr_lr_factor(t->step, t->plan.n_steps, t->opt.warm_up, t->opt.lr_end);
    *loss = 0;
    cr_batcher_next(&t->batcher, t->rows_total - t->rows_done);
    cr_packed_fill(&t->packed, &t->batcher, t->table ? t->table : t->params + t->low.weights_at);
    if (t->opt.device)
        return t->opt.device->step(t->opt.device, &t->packed, t->step + 1, factor, loss, norm, err);
    size_t rank = t->opt.peers ? (size_t)t->opt.peers->rank : 0;
    size_t size = t->opt.peers ? (size_t)t->opt.peers->size : 1;
    size_t end = t->packed.n_micros * (rank + 1) / size; /* this process's share */
    t->first_micro = t->packed.n_micros * rank / size;
    memset(t->packed.da, 0, t->packed.n_groups * n * sizeof *t->packed.da);
    cr_frozen_refresh(&t->frozen, t->params);
    cr_turns_reset(&t->turns);
    cr_threads_run_dynamic(t->m->threads, end - t->first_micro, 1, run_micros, t);
    for (size_t k = t->first_micro; k < end; k++)
        *loss += t->micro_loss[k];
    for (size_t g = 0; g < t->packed.n_groups && t->low.learn_weights; g++) {
        float *to = t->grads + t->low.weights_at + t->packed.group_key[g] * n;
        for (size_t i = 0; i < n; i++)
            to[i] += t->packed.da[g * n + i];
    }
    enum cr_status status = CR_OK;
    if (t->opt.peers)
        status = t->opt.peers->sum_double(t->opt.peers, loss, 1, err);
    if (t->opt.peers && !status)
        status = t->opt.peers->sum(t->opt.peers, t->grads, t->low.n_params, err);
    if (status)
        return status;
    *norm = cr_adamw_step(&t->adam, t->m->threads, t->params, t->grads, t->step + 1, factor);
    return CR_OK;
}

/* Parameters and moments, where a device has them. */
static enum cr_status fetch(cr_trainer *t, struct cr_error *err)
{
    struct cr_train_device *d = t->opt.device;
    return d ? d->fetch(d, t->params, t->adam.m, t->adam.v, err) : CR_OK;
}

static float mean_loss(const cr_trainer *t, bool last)
{
    long n = t->plan.n_steps / 20 > 0 ? t->plan.n_steps / 20 : 1, from = last ? t->step - n : 0;
    double sum = 0;
    if (n > t->step)
        return t->step ? t->losses[t->step - 1] : 0;
    for (long i = from; i < from + n; i++)
        sum += (double)t->losses[i];
    return (float)(sum / (double)n);
}

/* A checkpoint that cannot be written must not end the training: it is said, and tried again. */
static bool try_checkpoint(cr_trainer *t)
{
    struct cr_error err;
    if (!t->checkpoint || !writes(t))
        return false;
    if (fetch(t, &err) == CR_OK && cr_checkpoint_write(t, &err) == CR_OK)
        return true;
    cr_log(CR_LOG_WARN, "training goes on, but its checkpoint could not be written: %s", err.msg);
    return false;
}

static enum cr_status train(cr_trainer *t, struct cr_train_report *report, struct cr_error *err)
{
    double start = now_s(), saved_at = start;
    float running = t->step ? t->losses[t->step - 1] : 0;
    long first = t->step;
    while (t->step < t->plan.n_steps) {
        double norm, loss;
        enum cr_status status = run_step(t, &loss, &norm, err);
        if (status)
            return status;
        if (!isfinite(loss) || !isfinite(norm))
            return cr_error_set(err, CR_INVALID,
                                "training: step %ld has loss %g and gradient norm %g: try a "
                                "learning rate below %g",
                                t->step + 1, loss, norm, (double)t->opt.lr);
        t->losses[t->step++] = (float)loss;
        t->rows_done += t->batcher.n_rows;
        running = t->step == 1 ? (float)loss : 0.95f * running + 0.05f * (float)loss;
        report->tokens += t->batcher.n_tokens;
        report->seconds = now_s() - start;
        report->tokens_per_s = (double)report->tokens / report->seconds;

        bool due = (t->opt.checkpoint_steps > 0 && t->step % t->opt.checkpoint_steps == 0) ||
                   (t->opt.checkpoint_s > 0 &&
                    (t->step == t->plan.n_steps || now_s() - saved_at >= t->opt.checkpoint_s));
        bool saved = due && try_checkpoint(t);
        saved_at = due ? now_s() : saved_at;
        struct cr_train_progress p = {
            .step = t->step,
            .n_steps = t->plan.n_steps,
            .loss = (float)loss,
            .loss_mean = running,
            .grad_norm = (float)norm,
            .lr = t->opt.lr *
                  cr_lr_factor(t->step - 1, t->plan.n_steps, t->opt.warm_up, t->opt.lr_end),
            .tokens_per_s = report->tokens_per_s,
            .seconds = report->seconds,
            .eta_s =
                report->seconds / (double)(t->step - first) * (double)(t->plan.n_steps - t->step),
            .saved = saved,
        };
        double stop = t->opt.progress && !t->opt.progress(t->opt.ud, &p);
        if (t->opt.peers)
            status = t->opt.peers->sum_double(t->opt.peers, &stop, 1, err);
        if (!status && stop == 0)
            continue;
        if (!status)
            status = fetch(t, err);
        if (!status && t->checkpoint && writes(t))
            status = cr_checkpoint_write(t, err);
        return status ? status
                      : cr_error_set(err, CR_CANCELLED, "training stopped after step %ld of %ld",
                                     t->step, t->plan.n_steps);
    }
    return fetch(t, err);
}

static enum cr_status replace(char **field, const char *text, struct cr_error *err)
{
    char *copy = cr_strdup(text);
    if (!copy)
        return cr_error_set(err, CR_NO_MEMORY, "training: out of memory");
    cr_free(*field);
    *field = copy;
    return CR_OK;
}

enum cr_status cr_trainer_pool(const cr_trainer *t, cr_pool **out, struct cr_error *err)
{
    const struct cr_train_options *o = &t->opt;
    cr_pool *p = NULL;
    *out = NULL;
    enum cr_status status =
        cr_pool_new(&p, t->m, o->form, o->kind, o->n, o->rank, o->alpha, o->target, err);
    if (!status && o->name)
        status = replace(&p->name, o->name, err);
    if (!status && o->command)
        status = replace(&p->command, o->command, err);
    if (!status && t->step == t->plan.n_steps)
        status = cr_index_build(t, p, err);
    if (status) {
        cr_pool_close(p);
        return status;
    }
    p->hard = o->hard;
    p->steps = (uint32_t)t->step;
    p->worked = (uint32_t)o->worked;
    p->seed = o->seed;
    p->loss = mean_loss(t, true);
    cr_lowrank_export(&t->low, t->params, p);
    *out = p;
    return CR_OK;
}

enum cr_status cr_trainer_run(cr_trainer *t, struct cr_train_report *report, struct cr_error *err)
{
    struct cr_train_report none;
    cr_pool *pool = NULL;
    report = report ? report : &none;
    memset(report, 0, sizeof *report);
    enum cr_status status = make_passes(t, err);
    if (!status)
        status = train(t, report, err);
    free_passes(t);
    report->n_steps = t->step;
    report->loss_first = mean_loss(t, false);
    report->loss_last = mean_loss(t, true);
    if (status || !t->opt.out || !writes(t))
        return status;
    double start = now_s();
    status = cr_trainer_pool(t, &pool, err);
    report->index_seconds = now_s() - start;
    if (!status)
        status = cr_pool_write(pool, t->opt.out, t->opt.type, err);
    cr_pool_close(pool);
    if (!status && t->checkpoint)
        unlink(t->checkpoint); /* absent when it was never due */
    return status;
}
