/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon pool train`: the plan, the progress line, the report. */
#ifdef CRAYON_TUNE
#include "tune/train.h"

#include "base/mem.h"
#include "common.h"
#include "device.h"
#include "facts.h"
#include "messages.h"
#include "tasks.h"
#include "tune/fit.h"
#include "tune/peers.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

struct training {
    struct cr_progress line;
    bool bad;
};

static const char *duration(double s, char out[24])
{
    long long t = s > 0 ? (long long)(s + 0.5) : 0;
    if (t >= 3600)
        snprintf(out, 24, "%lldh%02lldm", t / 3600, t / 60 % 60);
    else if (t >= 60)
        snprintf(out, 24, "%lldm%02llds", t / 60, t % 60);
    else
        snprintf(out, 24, "%llds", t);
    return out;
}

static bool on_progress(void *ud, const struct cr_train_progress *p)
{
    struct training *t = ud;
    char detail[160], left[24];
    snprintf(detail, sizeof detail, "step %ld/%ld  loss %.4f  %.0f tok/s  %s left%s", p->step,
             p->n_steps, (double)p->loss_mean, p->tokens_per_s, duration(p->eta_s, left),
             p->saved ? "  (saved)" : "");
    cr_progress_show(&t->line, (double)p->step, (double)p->n_steps, detail);
    return !cr_interrupted();
}

/* "q,k,v" or "all" to target flags. */
static enum cr_status parse_targets(const char *text, bool target[CR_LIN_COUNT],
                                    struct cr_error *err)
{
    static const char *const shorts[CR_LIN_COUNT] = {"q", "k", "v", "o", "gate", "up", "down"};
    bool all = !strcmp(text, "all");
    for (int i = 0; i < CR_LIN_COUNT; i++)
        target[i] = all;
    for (const char *p = text; !all && *p;) {
        size_t n = strcspn(p, ",");
        int hit = -1;
        for (int i = 0; i < CR_LIN_COUNT; i++)
            if ((strlen(shorts[i]) == n && !memcmp(shorts[i], p, n)) ||
                (strlen(cr_linear_names[i]) == n && !memcmp(cr_linear_names[i], p, n)))
                hit = i;
        if (hit < 0)
            return cr_error_set(err, CR_INVALID,
                                "target \"%.*s\" is none of q, k, v, o, gate, up, down",
                                (int)(n < 40 ? n : 40), p);
        target[hit] = true;
        p += n + (p[n] == ',');
    }
    return *text ? CR_OK : cr_error_set(err, CR_INVALID, "--targets is empty");
}

static enum cr_status options_of(const struct cr_args *a, struct cr_train_options *o,
                                 struct cr_error *err)
{
    const char *kind = cr_arg_text(a, CR_OPT_KIND);
    *o = cr_train_options_default();
    o->rows_per_task = cr_arg_int(a, CR_OPT_ROWS);
    o->max_tokens = cr_arg_int(a, CR_OPT_MAX_LENGTH);
    o->worked = cr_arg_int(a, CR_OPT_WORKED);
    o->alone = (float)cr_arg_real(a, CR_OPT_ALONE);
    o->general = (float)cr_arg_real(a, CR_OPT_GENERAL);
    o->kind = !strcmp(kind, "centroid") ? CR_POOL_CENTROID
              : !strcmp(kind, "lora")   ? CR_POOL_LORA
                                        : CR_POOL_LIBRARY;
    o->form = !strcmp(cr_arg_text(a, CR_OPT_FORM), "separate") ? CR_POOL_SEPARATE : CR_POOL_SHARED;
    o->hard = cr_arg_flag(a, CR_OPT_HARD);
    o->n = cr_arg_int(a, CR_OPT_N);
    if (o->n == 1 && !cr_arg_given(a, CR_OPT_KIND))
        o->kind = CR_POOL_LORA; /* `--n 1`: one multi-task LoRA */
    if (o->kind == CR_POOL_LORA && !cr_arg_given(a, CR_OPT_N))
        o->n = 1;
    o->rank = cr_arg_int(a, CR_OPT_RANK);
    o->alpha = (float)cr_arg_real(a, CR_OPT_ALPHA);
    if (!cr_arg_given(a, CR_OPT_ALPHA))
        o->alpha = 2 * (float)o->rank;
    o->name = cr_arg_text(a, CR_OPT_NAME);
    o->steps = cr_arg_int(a, CR_OPT_STEPS);
    o->epochs = (float)cr_arg_real(a, CR_OPT_EPOCHS);
    o->tokens_per_step = cr_arg_int(a, CR_OPT_STEP_TOKENS);
    o->tokens_per_batch = cr_arg_int(a, CR_OPT_BATCH_TOKENS);
    const char *precision = cr_arg_text(a, CR_OPT_PRECISION);
    o->precision = !strcmp(precision, "f32")    ? CR_TRAIN_F32
                   : !strcmp(precision, "bf16") ? CR_TRAIN_BF16
                                                : CR_TRAIN_AUTO;
    o->recompute = cr_arg_flag(a, CR_OPT_RECOMPUTE);
    o->lr = (float)cr_arg_real(a, CR_OPT_LR);
    o->lr_weights = (float)cr_arg_real(a, CR_OPT_LR_WEIGHTS);
    o->beta1 = (float)cr_arg_real(a, CR_OPT_BETA1);
    o->beta2 = (float)cr_arg_real(a, CR_OPT_BETA2);
    o->weight_decay = (float)cr_arg_real(a, CR_OPT_WEIGHT_DECAY);
    o->warm_up = (float)cr_arg_real(a, CR_OPT_WARM_UP);
    o->lr_end = (float)cr_arg_real(a, CR_OPT_LR_END);
    o->clip = (float)cr_arg_real(a, CR_OPT_CLIP);
    o->seed = cr_arg_seed(a, CR_OPT_SEED);
    o->out = cr_arg_text(a, CR_OPT_OUTPUT);
    o->type = cr_cli_type(a);
    o->checkpoint = cr_arg_text(a, CR_OPT_CHECKPOINT);
    o->checkpoint_s = cr_arg_real(a, CR_OPT_CHECKPOINT_SECONDS);
    o->checkpoint_steps = cr_arg_int(a, CR_OPT_CHECKPOINT_STEPS);
    o->resume = cr_arg_flag(a, CR_OPT_RESUME);
    o->memory_limit = cr_arg_bytes(a, CR_OPT_MEMORY);
    return parse_targets(cr_arg_text(a, CR_OPT_TARGETS), o->target, err);
}

static void note_plan(const struct cr_train_plan *p)
{
    char w[16], q[16], x[16], d[16], t[16], v[16];
    cr_note("plan: %zu tasks, %zu rows, %zu tokens, %zu of them answers", p->n_tasks, p->n_rows,
            p->n_tokens, p->n_answer_tokens);
    if (p->n_too_long || p->n_no_answer || p->n_over_limit)
        cr_note("plan: left out %zu rows that are too long, %zu without an answer, %zu over the "
                "limit of a task",
                p->n_too_long, p->n_no_answer, p->n_over_limit);
    cr_note("plan: %ld steps (%.2f epochs), %llu trained numbers", p->n_steps, p->epochs,
            (unsigned long long)p->n_params);
    if (p->resume_step)
        cr_note("plan: going on from step %ld", p->resume_step);
    cr_note("plan: memory %s %s weights + %s adapters + %s activations + %s data = %s of %s",
            cr_bytes_text(p->weights_bytes, w), p->precision, cr_bytes_text(p->params_bytes, q),
            cr_bytes_text(p->activations_bytes, x), cr_bytes_text(p->data_bytes, d),
            cr_bytes_text(p->total_bytes, t), cr_bytes_text(p->available_bytes, v));
    if (p->recompute)
        cr_note("plan: activations are computed again: %.0f %% more work", 100 * p->recompute_cost);
    if (p->device_bytes)
        cr_note("plan: %s of each GPU", cr_bytes_text(p->device_bytes, t));
}

static int print_plan(const struct cr_args *a, const struct cr_trainer *t)
{
    const struct cr_train_plan *p = cr_trainer_plan(t);
    struct cr_facts f;
    cr_facts_begin(&f, cr_arg_flag(a, CR_OPT_JSON));
    cr_fact_int(&f, "tasks", (long long)p->n_tasks);
    cr_fact_int(&f, "rows", (long long)p->n_rows);
    cr_fact_int(&f, "tokens", (long long)p->n_tokens);
    cr_fact_int(&f, "answer_tokens", (long long)p->n_answer_tokens);
    cr_fact_int(&f, "too_long", (long long)p->n_too_long);
    cr_fact_int(&f, "no_answer", (long long)p->n_no_answer);
    cr_fact_int(&f, "over_limit", (long long)p->n_over_limit);
    cr_fact_int(&f, "steps", p->n_steps);
    cr_fact_real(&f, "epochs", p->epochs);
    cr_fact_int(&f, "trained_numbers", (long long)p->n_params);
    cr_fact_str(&f, "precision", p->precision);
    cr_fact_bytes(&f, "weight_bytes", p->weights_bytes);
    cr_fact_bytes(&f, "adapter_bytes", p->params_bytes);
    cr_fact_bytes(&f, "activation_bytes", p->activations_bytes);
    cr_fact_real(&f, "recompute_cost", p->recompute ? p->recompute_cost : 0);
    cr_fact_bytes(&f, "data_bytes", p->data_bytes);
    cr_fact_bytes(&f, "total_bytes", p->total_bytes);
    cr_fact_bytes(&f, "available_bytes", p->available_bytes);
    cr_fact_bytes(&f, "device_bytes", p->device_bytes);
    cr_facts_list(&f, "task_list", "tasks (name, rows)");
    for (size_t i = 0; i < p->n_tasks; i++) {
        size_t rows;
        char shown[64];
        const char *name = cr_trainer_task(t, i, &rows);
        if (f.json) {
            cr_json_open_line(&f.j, NULL, '{');
            cr_json_str(&f.j, "name", name);
            cr_json_uint(&f.j, "rows", rows);
            cr_json_close(&f.j);
        }
        cr_facts_line(&f, "  %-44s %7zu", cr_facts_clean(name, strlen(name), shown, sizeof shown),
                      rows);
    }
    cr_facts_list_end(&f);
    return cr_facts_print(&f);
}

static int print_report(const struct cr_args *a, const struct cr_train_options *o,
                        const struct cr_train_report *r)
{
    char time[24], peak[16];
    cr_note("trained %ld steps, %llu tokens in %s, %.0f tok/s, index %.1f s, loss %.4f -> %.4f, "
            "peak %s",
            r->n_steps, (unsigned long long)r->tokens, duration(r->seconds, time), r->tokens_per_s,
            r->index_seconds, (double)r->loss_first, (double)r->loss_last,
            cr_bytes_text(cr_peak_bytes(), peak));
    cr_note("wrote %s", o->out);
    if (!cr_arg_flag(a, CR_OPT_JSON))
        return 0;
    struct cr_facts f;
    cr_facts_begin(&f, true);
    cr_fact_str(&f, "pool", o->out);
    cr_fact_int(&f, "steps", r->n_steps);
    cr_fact_int(&f, "tokens", (long long)r->tokens);
    cr_fact_real(&f, "seconds", r->seconds);
    cr_fact_real(&f, "tokens_per_s", r->tokens_per_s);
    cr_fact_real(&f, "index_seconds", r->index_seconds);
    cr_fact_real(&f, "loss_first", (double)r->loss_first);
    cr_fact_real(&f, "loss_last", (double)r->loss_last);
    return cr_facts_print(&f);
}

/* The words of the command, as they were given. Free with cr_free. */
static char *command_of(const struct cr_args *a)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 16);
    cr_buf_puts(&b, "crayon");
    for (int i = 1; i < a->argc; i++)
        cr_buf_printf(&b, strpbrk(a->argv[i], " \t\n'\"") ? " '%s'" : " %s", a->argv[i]);
    char *text = cr_buf_detach(&b, NULL); /* NULL also when it is very long: not recorded then */
    cr_buf_deinit(&b);
    return text;
}

/* --start PALETTE: a few gentle steps from its blend; what is not given takes the values that
 * docs/evidence.md found. Pool and delta are to live until the trainer is made. */
static enum cr_status start_of(const struct cr_args *a, cr_model *m, struct cr_train_options *o,
                               cr_pool **pool, cr_delta **delta, struct cr_error *err)
{
    cr_palette *palette;
    enum cr_status st = cr_palette_open(&palette, m, cr_arg_text(a, CR_OPT_START), err);
    if (!st && !*cr_palette_pool_path(palette))
        st = cr_error_set(err, CR_INVALID,
                          "%s keeps the base model: there is no blend to start from",
                          cr_arg_text(a, CR_OPT_START));
    if (!st)
        st = cr_pool_open(pool, m, cr_palette_pool_path(palette), err);
    if (!st)
        st = cr_palette_delta(delta, palette, *pool, err);
    cr_palette_close(palette);
    if (st)
        return st;
    const struct cr_train_options given = *o;
    cr_fit_options(o, *pool, *delta);
    o->checkpoint_s = given.checkpoint_s;
    if (cr_arg_given(a, CR_OPT_ALPHA))
        o->alpha = given.alpha;
    if (cr_arg_given(a, CR_OPT_STEPS) || cr_arg_given(a, CR_OPT_EPOCHS))
        o->steps = given.steps;
    if (cr_arg_given(a, CR_OPT_WORKED))
        o->worked = given.worked;
    if (cr_arg_given(a, CR_OPT_LR))
        o->lr = given.lr;
    if (cr_arg_given(a, CR_OPT_WARM_UP))
        o->warm_up = given.warm_up;
    if (cr_arg_given(a, CR_OPT_LR_END))
        o->lr_end = given.lr_end;
    return CR_OK;
}

int cr_cli_pool_train(const struct cr_args *a)
{
    struct cr_setup s;
    struct cr_error err;
    struct cr_train_options o;
    struct cr_train_report report;
    struct cr_paths files = {NULL, 0, 0};
    cr_trainer *t = NULL;
    struct cr_train_device *device = NULL;
    cr_pool *pool = NULL;
    cr_delta *start = NULL;
    struct cr_train_peers *peers = NULL;
    struct training state;
    char *command = NULL;
    int code = 0;
    if (!cr_arg_text(a, CR_OPT_OUTPUT) && !cr_arg_flag(a, CR_OPT_PLAN))
        return cr_misuse("pool train", "-o/--output is needed, or --plan");
    enum cr_status st = cr_peers_open(&peers, &err);
    if (st)
        return cr_fail(&err);
    bool first = !peers || peers->rank == 0; /* the others stay silent */
    if (!first)
        cr_msg_set_quiet(true);
    cr_progress_begin(&state.line, "training");
    st = cr_setup_open(&s, a, 0, &err);
    if (!st)
        st = options_of(a, &o, &err);
    if (!st && cr_arg_text(a, CR_OPT_START))
        st = start_of(a, s.model, &o, &pool, &start, &err);
    if (!st)
        st = cr_device_train(&device, a, peers, &err);
    if (!st)
        st = cr_task_paths(&files, a, "train", &err);
    if (!st) {
        command = command_of(a);
        o.command = command;
        o.device = device;
        o.peers = peers;
        o.files = (const char *const *)files.v;
        o.n_files = files.n;
        o.progress = on_progress;
        o.ud = &state;
        cr_interrupt_catch();
        st = cr_trainer_new(&t, s.model, &o, &err);
    }
    if (!st && cr_arg_flag(a, CR_OPT_PLAN)) {
        code = first ? print_plan(a, t) : 0;
    } else if (!st) {
        note_plan(cr_trainer_plan(t));
        st = cr_trainer_run(t, &report, &err);
        cr_progress_end(&state.line);
        if (!st && first)
            code = print_report(a, &o, &report);
        else if (st == CR_CANCELLED)
            cr_note("stopped; the same command with --resume goes on");
    }
    cr_trainer_free(t);
    cr_delta_free(start);
    cr_pool_close(pool);
    cr_device_free_train(device);
    cr_free(command);
    cr_paths_deinit(&files);
    cr_setup_close(&s);
    code = st ? cr_fail(&err) : code;
    cr_peers_close(peers, !st || st == CR_CANCELLED);
    return code;
}
#else
typedef int cr_pool_train_is_not_built; /* a file needs something in it */
#endif
