/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning on from a blend: the plan with its seconds and memory, the steps, the file. */
#include "blend_tune.h"

#include "base/mem.h"
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void cr_tuned_deinit(struct cr_tuned *t)
{
    cr_delta_free(t->delta);
    cr_pool_close(t->pool);
    if (t->temporary)
        unlink(t->temporary);
    cr_free(t->temporary);
    cr_free(t->path);
    *t = (struct cr_tuned){0};
}

enum cr_status cr_tuned_keep(struct cr_tuned *t, struct cr_error *err)
{
    if (rename(t->temporary, t->path))
        return cr_error_set(err, CR_IO, "%s: %s", t->path, strerror(errno));
    cr_free(t->temporary);
    t->temporary = NULL;
    return CR_OK;
}

#ifdef CRAYON_TUNE
#include "tune/fit.h"

/* A gradient step in passes of scoring. Measured 1.3 (long options, which only scoring runs) to
 * 3.6 (short answers), on the 15M and on SmolLM2. */
static const double passes_of_a_step = 2.5;

static bool on_step(void *ud, const struct cr_train_progress *p)
{
    char detail[64];
    snprintf(detail, sizeof detail, "step %ld/%ld  loss %.4f", p->step, p->n_steps,
             (double)p->loss);
    cr_progress_show(ud, (double)p->step, (double)p->n_steps, detail);
    return !cr_interrupted();
}

enum cr_status cr_tuned_check(struct cr_error *err)
{
    (void)err;
    return CR_OK;
}

/* mine.palette -> mine.tuned.gguf */
static enum cr_status name_files(struct cr_tuned *t, const char *palette, struct cr_error *err)
{
    static const char ending[] = ".palette";
    size_t n = strlen(palette), m = sizeof ending - 1;
    if (n > m && !strcmp(palette + n - m, ending))
        n -= m;
    t->path = cr_asprintf("%.*s.tuned.gguf", (int)n, palette);
    t->temporary = cr_asprintf("%.*s.tuned.gguf.%ld", (int)n, palette, (long)getpid());
    return t->path && t->temporary ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "out of memory");
}

static void note_plan(const struct cr_train_plan *p, double pass_s)
{
    char bytes[16], time[48] = "";
    if (pass_s > 0)
        snprintf(time, sizeof time, "about %.1f s, ",
                 pass_s * passes_of_a_step * (double)p->n_steps);
    cr_note("tuned: %ld steps over %zu examples of %zu tokens: %s%s more memory (%s)", p->n_steps,
            p->n_rows, p->n_tokens, time, cr_bytes_text(p->total_bytes, bytes), p->precision);
    if (p->n_too_long)
        cr_warn("%zu examples are too long to tune on", p->n_too_long);
}

static enum cr_status run(struct cr_tuned *t, cr_trainer *trainer, const cr_pool *pool,
                          struct cr_error *err)
{
    struct cr_train_report r;
    cr_pool *made = NULL;
    enum cr_status st = cr_trainer_run(trainer, &r, err);
    if (!st)
        st = cr_fit_pool(&made, trainer, pool, err);
    if (!st)
        st = cr_pool_write(made, t->temporary, CR_F16, err);
    cr_pool_close(made);
    if (st)
        return st;
    char peak[16];
    t->steps = r.n_steps;
    t->seconds = r.seconds;
    t->loss_first = r.loss_first;
    t->loss_last = r.loss_last;
    cr_note("tuned: %ld steps in %.2f s, %.0f tok/s, loss of the answers %.4f -> %.4f, peak %s",
            r.n_steps, r.seconds, r.tokens_per_s, (double)r.loss_first, (double)r.loss_last,
            cr_bytes_text(cr_peak_bytes(), peak));
    return CR_OK;
}

enum cr_status cr_tuned_make(struct cr_tuned *t, const struct cr_args *a, cr_model *m,
                             const cr_pool *pool, const cr_delta *blend, const struct cr_example *e,
                             size_t n, double pass_s, struct cr_error *err)
{
    const float one = 1;
    struct cr_progress line;
    cr_trainer *trainer = NULL;
    struct cr_train_options o = cr_train_options_default();
    cr_fit_options(&o, pool, blend);
    /* short and quick where rows stand alone; in chains gentle steps are as good and forget less */
    if (!pool->worked || cr_arg_given(a, CR_OPT_STEPS))
        o.steps = cr_arg_int(a, CR_OPT_STEPS);
    if (!pool->worked || cr_arg_given(a, CR_OPT_LR))
        o.lr = (float)cr_arg_real(a, CR_OPT_LR);
    o.seed = cr_arg_seed(a, CR_OPT_SEED);
    o.name = cr_arg_text(a, CR_OPT_NAME);
    o.examples = e;
    o.n_examples = n;
    o.progress = on_step;
    o.ud = &line;
    enum cr_status st = name_files(t, cr_arg_text(a, CR_OPT_OUTPUT), err);
    if (!st)
        st = cr_trainer_new(&trainer, m, &o, err);
    if (!st) {
        t->planned_bytes = cr_trainer_plan(trainer)->total_bytes;
        note_plan(cr_trainer_plan(trainer), pass_s);
        cr_progress_begin(&line, "tuned");
        st = run(t, trainer, pool, err);
        cr_progress_end(&line);
    }
    cr_trainer_free(trainer);
    if (!st) /* read back: what is measured is what lies in the file */
        st = cr_pool_open(&t->pool, m, t->temporary, err);
    if (!st)
        st = cr_pool_blend(&t->delta, t->pool, &one, err);
    if (st)
        cr_tuned_deinit(t);
    return st;
}
#else
enum cr_status cr_tuned_check(struct cr_error *err)
{
    return cr_error_set(err, CR_UNSUPPORTED,
                        "this crayon was built without training (CRAYON_TUNE), which the level "
                        "tuned needs");
}

enum cr_status cr_tuned_make(struct cr_tuned *t, const struct cr_args *a, cr_model *m,
                             const cr_pool *pool, const cr_delta *blend, const struct cr_example *e,
                             size_t n, double pass_s, struct cr_error *err)
{
    (void)t, (void)a, (void)m, (void)pool, (void)blend, (void)e, (void)n, (void)pass_s;
    return cr_tuned_check(err);
}
#endif
