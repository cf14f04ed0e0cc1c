/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon blend`: the user's examples in, a palette out. The levels run one after the other, each
 * named and timed, so that Ctrl-C keeps the best so far: instant (q_x, no model run), measured
 * (middle view), refined (labels, gradient-free), tuned (gradient steps, when asked for). Part of
 * the user's lines is held out to measure before and after; tuning that does not beat the blend
 * there is dropped, and for a blend that does not help the palette keeps the base model. Worked
 * examples in front of each question are kept where they beat that.
 */
#include "adapt/blend.h"

#include "adapt/palette.h"
#include "base/mem.h"
#include "base/rng.h"
#include "blend_tune.h"
#include "common.h"
#include "info.h"
#include "measure.h"
#include "messages.h"
#include "verbs.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    MIN_LABELLED = 4, /* fewer answers are not split: there would be nothing to measure with */
    MAX_HELD_OUT = 200,
    MIN_HELD_OUT_WORKED = 4, /* fewer say nothing about worked examples (docs/evidence.md) */
    WORKED_IF_TRAINED = 8,   /* tried where the pool was trained with some, unless told */
};

struct blend {
    const struct cr_args *a;
    struct cr_setup setup;
    cr_pool *pool;
    char *pool_path;
    struct cr_examples file;
    struct cr_example *used, *held; /* [n_used], [n_held]: of file, in seeded order */
    size_t n_used, n_held, n_labelled;
    enum cr_level level;         /* reached */
    struct cr_blend_options opt; /* of the level reached */
    struct cr_blend_result result;
    cr_delta *delta;
    double apply_ms;
    struct cr_tuned tuned;
    struct cr_measure before, after, after_tuning;
    struct cr_example worked[CR_WORKED_MAX]; /* [n_worked] tried in front of each question */
    size_t n_worked;
    struct cr_worked worked_ids;
    struct cr_measure worked_base, worked_blend;
    bool measured, helps, tuning_helps;          /* more than the blend */
    bool worked_measured, worked_helps, on_base; /* worked examples help; most, on the base model */
    struct cr_progress line;
    struct cr_error err;
};

/* ---- lines ---- */

static bool is_labelled(const struct cr_example *e)
{
    return e->answer != NULL;
}

/* A share of the lines with answers is held out, at least two; the rest are the examples. */
static enum cr_status split(struct blend *b)
{
    size_t n = b->file.n, want = 0, most = (size_t)cr_arg_int(b->a, CR_OPT_SHOTS);
    uint32_t *order = cr_alloc(n, sizeof *order);
    b->used = cr_alloc(n, sizeof *b->used);
    b->held = cr_alloc(n, sizeof *b->held);
    if (!order || !b->used || !b->held) {
        cr_free(order);
        return cr_error_set(&b->err, CR_NO_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
        b->n_labelled += is_labelled(&b->file.v[i]);
    }
    struct cr_rng rng;
    cr_rng_init(&rng, cr_arg_seed(b->a, CR_OPT_SEED));
    cr_rng_shuffle(&rng, order, n);
    double share = cr_arg_real(b->a, CR_OPT_HELD_OUT);
    if (share > 0 && b->n_labelled >= MIN_LABELLED) {
        want = (size_t)(share * (double)b->n_labelled + 0.5);
        want = want < 2 ? 2 : want > MAX_HELD_OUT ? MAX_HELD_OUT : want;
    }
    for (size_t i = 0; i < n; i++) {
        const struct cr_example *e = &b->file.v[order[i]];
        if (b->n_held < want && is_labelled(e))
            b->held[b->n_held++] = *e;
        else if (b->n_used < most)
            b->used[b->n_used++] = *e;
    }
    cr_free(order);
    size_t left = n - b->n_used - b->n_held;
    cr_note("%zu lines, %zu with answers: %zu are examples, %zu are held out%s", n, b->n_labelled,
            b->n_used, b->n_held, left ? ", the rest is not needed" : "");
    return CR_OK;
}

/* ---- levels ---- */

static bool on_progress(void *ud, const char *what, int done, int total)
{
    struct blend *b = ud;
    char detail[48];
    snprintf(detail, sizeof detail, "%s %d/%d", what, done, total);
    cr_progress_show(&b->line, done, total, detail);
    return !cr_interrupted();
}

static size_t labelled_among(const struct cr_example *e, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += is_labelled(&e[i]);
    return count;
}

/* The last level to run: as asked for, else what the examples and the pool allow. */
static enum cr_level last_level(const struct blend *b)
{
    const char *given = cr_arg_text(b->a, CR_OPT_LEVEL), *solver = cr_arg_text(b->a, CR_OPT_SOLVER);
    if (given)
        return (enum cr_level)cr_level_by_name(given);
    if (solver && cr_solver_by_name(solver) < CR_SOLVE_PICK)
        return b->pool->index.mid_proto ? CR_LEVEL_MEASURED : CR_LEVEL_INSTANT;
    if (solver || labelled_among(b->used, b->n_used) >= MIN_LABELLED)
        return CR_LEVEL_REFINED;
    return b->pool->index.mid_proto ? CR_LEVEL_MEASURED : CR_LEVEL_INSTANT;
}

static void options_of(const struct blend *b, enum cr_level level, bool last,
                       struct cr_blend_options *o)
{
    const char *solver = cr_arg_text(b->a, CR_OPT_SOLVER), *view = cr_arg_text(b->a, CR_OPT_VIEW);
    *o = (struct cr_blend_options){
        .temperature = (float)cr_arg_real(b->a, CR_OPT_TAU),
        .max_evals = cr_arg_int(b->a, CR_OPT_EVALS),
        .seed = cr_arg_seed(b->a, CR_OPT_SEED),
        .progress = on_progress,
        .ud = (void *)b,
    };
    cr_level_options(level, b->pool, o);
    if (last && solver)
        o->solver = (enum cr_solver)cr_solver_by_name(solver);
    if (last && view)
        o->view = (enum cr_view)cr_view_by_name(view);
}

/* Gradient steps on the blend's adapter. What stops them or has no room leaves the blend. */
static enum cr_status tune(struct blend *b)
{
    const struct cr_blend_result *r = &b->result;
    double passes = r->n_evals + 5.0; /* REFINE's, and the starts of PICK */
    if (cr_interrupted())
        return CR_OK;
    enum cr_status st =
        cr_tuned_make(&b->tuned, b->a, b->setup.model, b->pool, b->delta, b->used, b->n_used,
                      b->opt.solver == CR_SOLVE_REFINE ? 1e-3 * r->solve_ms / passes : 0, &b->err);
    if (st == CR_CANCELLED) {
        cr_note("tuned: stopped; the blend stands");
        return CR_OK;
    }
    if (st == CR_LIMIT || st == CR_INVALID) { /* no memory; steps that led to no finite loss */
        cr_warn("%s; the blend stands", b->err.msg);
        return CR_OK;
    }
    return st;
}

/* Runs one level; keeps its result if it came to one. */
static enum cr_status run_level(struct blend *b, enum cr_level level, bool last)
{
    struct cr_blend_options o;
    struct cr_blend_result r;
    options_of(b, level, last, &o);
    cr_progress_begin(&b->line, cr_level_name(level));
    double start = cr_now();
    enum cr_status st =
        cr_blend_examples(b->setup.model, b->pool, &o, b->used, b->n_used, &r, &b->err);
    cr_progress_end(&b->line);
    if (st == CR_CANCELLED && b->result.weights)
        return CR_OK; /* the level before stands */
    if (st)
        return st;
    cr_note("%s: %s by %s in %.2f ms (embed %.2f, solve %.2f)%s", cr_level_name(level),
            cr_solver_name(o.solver), cr_view_name(o.view), 1e3 * (cr_now() - start), r.embed_ms,
            r.solve_ms, r.stopped ? ", stopped: the best so far" : "");
    cr_blend_result_deinit(&b->result);
    b->result = r;
    b->opt = o;
    b->level = level;
    return CR_OK;
}

static enum cr_status solve(struct blend *b)
{
    enum cr_level wanted = last_level(b);
    enum cr_level last = wanted == CR_LEVEL_TUNED ? CR_LEVEL_REFINED : wanted;
    enum cr_status st = CR_OK;
    /* A solver that was asked for by name is run alone; else the levels build up to the last. */
    bool alone = cr_arg_text(b->a, CR_OPT_SOLVER) || cr_arg_text(b->a, CR_OPT_VIEW);
    for (int l = alone ? (int)last : 0; !st && l <= (int)last; l++) {
        bool same = l == CR_LEVEL_MEASURED && !b->pool->index.mid_proto && l != (int)last;
        if (same || (l && cr_interrupted() && b->result.weights))
            continue;
        st = run_level(b, (enum cr_level)l, l == (int)last);
    }
    if (st)
        return st;
    double start = cr_now();
    st = cr_pool_blend(&b->delta, b->pool, b->result.weights, &b->err);
    b->apply_ms = 1e3 * (cr_now() - start);
    return !st && wanted == CR_LEVEL_TUNED ? tune(b) : st;
}

/* ---- before and after ---- */

static bool on_score(void *ud, size_t done, size_t total)
{
    struct blend *b = ud;
    cr_progress_show(&b->line, (double)done, (double)total, "");
    return !cr_interrupted();
}

static bool stop_now(void *ud)
{
    (void)ud;
    return cr_interrupted();
}

static enum cr_status measure_one(struct blend *b, cr_scorer *scorer,
                                  const struct cr_worked *worked, const cr_delta *delta,
                                  const char *what, struct cr_measure *m)
{
    const struct cr_example_score *scores;
    cr_progress_begin(&b->line, what);
    enum cr_status st = cr_scorer_run(scorer, delta, &scores, on_score, b, &b->err);
    cr_progress_end(&b->line);
    if (st)
        return st;
    cr_measure_scores(scores, b->n_held, m, NULL);
    if (!m->n_short)
        return CR_OK;
    cr_session *s;
    st = cr_setup_session(&b->setup, b->a, 0, &s, &b->err);
    if (st)
        return st;
    cr_session_set_delta(s, delta);
    st = cr_measure_f1(s, worked, b->held, b->n_held, &m->f1, stop_now, NULL, &b->err);
    cr_session_free(s);
    return st;
}

/* It helps when more lines are right; among equals the higher F1, then the lower loss. */
static bool is_better(const struct cr_measure *after, const struct cr_measure *before)
{
    if (after->accuracy != before->accuracy)
        return after->accuracy > before->accuracy;
    if (after->n_short && after->f1 != before->f1)
        return after->f1 > before->f1;
    return after->loss < before->loss;
}

/* The measurement of what the palette would keep: the tuned blend or the blend. */
static const struct cr_measure *kept(const struct blend *b)
{
    return b->tuning_helps ? &b->after_tuning : &b->after;
}

/* The same with worked examples, where the palette would keep those. */
static const struct cr_measure *outcome(const struct blend *b)
{
    return !b->worked_helps ? kept(b) : b->on_base ? &b->worked_base : &b->worked_blend;
}

static bool keeps_blend(const struct blend *b)
{
    return b->worked_helps ? !b->on_base : b->helps;
}

/* The first of the examples that have answers, as many as a palette keeps and as take at most half
 * of the context. */
static enum cr_status choose_worked(struct blend *b)
{
    size_t half = (size_t)cr_model_info(b->setup.model)->n_ctx_train / 2;
    int most = b->pool->worked && !cr_arg_given(b->a, CR_OPT_WORKED)
                   ? WORKED_IF_TRAINED
                   : cr_arg_int(b->a, CR_OPT_WORKED);
    b->n_worked = cr_palette_take_worked(b->used, b->n_used, (size_t)most, b->worked);
    enum cr_status st =
        cr_worked_init(&b->worked_ids, b->setup.model, b->worked, b->n_worked, &b->err);
    while (!st && b->n_worked && b->worked_ids.ids.n > half) {
        cr_worked_deinit(&b->worked_ids);
        st = cr_worked_init(&b->worked_ids, b->setup.model, b->worked, --b->n_worked, &b->err);
    }
    return st;
}

/* The blend or the tuned blend, and the base model, each with the worked examples. They help where
 * more lines are right than without them; ties stay with the shorter prompt. */
static enum cr_status measure_worked(struct blend *b)
{
    cr_scorer *scorer = NULL;
    if (b->level == CR_LEVEL_INSTANT || b->n_held < MIN_HELD_OUT_WORKED)
        return CR_OK;
    enum cr_status st = choose_worked(b);
    if (st || !b->n_worked)
        return st;
    /* steps in chains are meant for use behind examples, whatever they are worth alone */
    bool tuned = b->tuning_helps || (b->tuned.pool && b->pool->worked);
    const cr_delta *delta = tuned ? b->tuned.delta : b->delta;
    st = cr_scorer_new(&scorer, b->setup.model, &b->worked_ids, b->held, b->n_held, &b->err);
    if (!st)
        st = measure_one(b, scorer, &b->worked_ids, delta, "worked examples", &b->worked_blend);
    if (!st)
        st = measure_one(b, scorer, &b->worked_ids, NULL, "on the base model", &b->worked_base);
    cr_scorer_free(scorer);
    if (st)
        return st;
    b->worked_measured = true;
    b->on_base = b->worked_base.accuracy > b->worked_blend.accuracy;
    b->worked_helps = (b->on_base ? &b->worked_base : &b->worked_blend)->accuracy >
                      (b->helps ? kept(b) : &b->before)->accuracy;
    if (b->worked_helps && !b->on_base)
        b->tuning_helps = tuned;
    return CR_OK;
}

static enum cr_status measure(struct blend *b)
{
    cr_scorer *scorer;
    b->helps = true; /* not shown otherwise */
    b->tuning_helps = b->tuned.pool != NULL;
    if (!b->n_held)
        return CR_OK;
    enum cr_status st = cr_scorer_new(&scorer, b->setup.model, NULL, b->held, b->n_held, &b->err);
    if (st)
        return st;
    if (cr_scorer_n_cut(scorer))
        cr_warn("%zu held-out prompts are longer than the context and lost their beginning",
                cr_scorer_n_cut(scorer));
    st = measure_one(b, scorer, NULL, NULL, "before", &b->before);
    if (!st)
        st = measure_one(b, scorer, NULL, b->delta, "after", &b->after);
    if (!st && b->tuned.pool)
        st = measure_one(b, scorer, NULL, b->tuned.delta, "tuned", &b->after_tuning);
    cr_scorer_free(scorer);
    if (st == CR_CANCELLED) {
        cr_note("stopped before the held-out lines were measured");
        return CR_OK;
    }
    b->measured = !st;
    if (st)
        return st;
    if (b->tuned.pool)
        b->tuning_helps = is_better(&b->after_tuning, &b->after);
    b->helps = is_better(kept(b), &b->before);
    st = measure_worked(b);
    if (st == CR_CANCELLED) {
        cr_note("stopped before worked examples were measured");
        return CR_OK;
    }
    return st;
}

/* ---- the palette ---- */

/* The pool's path as the palette keeps it: relative where it lies below the palette's folder, so
 * that both can be moved together; else absolute. Free with cr_free. */
static char *pool_path_for(const char *pool, const char *palette)
{
    char full[PATH_MAX], dir[PATH_MAX];
    if (!realpath(pool, full))
        return cr_strdup(pool);
    const char *slash = strrchr(palette, '/');
    char *parent = slash ? cr_strndup(palette, (size_t)(slash - palette) + 1) : cr_strdup(".");
    size_t n = parent && realpath(parent, dir) ? strlen(dir) : 0;
    cr_free(parent);
    if (n > 1 && !strncmp(full, dir, n) && full[n] == '/')
        return cr_strdup(full + n + 1);
    return cr_strdup(full);
}

static void utc_now(char out[32])
{
    time_t now = time(NULL);
    struct tm tm;
    if (!gmtime_r(&now, &tm) || !strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm))
        snprintf(out, 32, "1970-01-01T00:00:00Z");
}

static enum cr_status write_palette(struct blend *b, const char *path)
{
    const struct cr_blend_result *r = &b->result;
    const char *name = cr_arg_text(b->a, CR_OPT_NAME);
    float one = 1;
    bool blended = keeps_blend(b), tuned = blended && b->tuning_helps;
    enum cr_status st = tuned ? cr_tuned_keep(&b->tuned, &b->err) : CR_OK;
    if (st)
        return st;
    b->level = tuned ? CR_LEVEL_TUNED : b->level;
    char created[32], *pool_path = pool_path_for(tuned ? b->tuned.path : b->pool_path, path);
    if (!pool_path)
        return cr_error_set(&b->err, CR_NO_MEMORY, "out of memory");
    utc_now(created);
    bool choices = b->before.n_choices >= b->before.n_short;
    struct cr_palette p = {
        .name = (char *)(name ? name : ""),
        .base_hash = (char *)cr_model_hash(b->setup.model),
        .base_name = (char *)cr_model_info(b->setup.model)->name,
        .pool_hash = tuned ? b->tuned.pool->hash : b->pool->hash,
        .pool_path = pool_path,
        .n = tuned     ? 1
             : blended ? r->n
                       : 0,
        .weights = tuned     ? &one
                   : blended ? r->weights
                             : NULL,
        .solver = b->opt.solver,
        .level = b->level,
        .view = b->opt.view,
        .dim = r->q_c ? cr_view_dim(b->setup.model, b->opt.view) : 0,
        .q_c = r->q_c,
        .scope_mean = r->scope_mean,
        .scope_std = r->scope_std,
        .near_mean = r->near_mean,
        .near_std = r->near_std,
        .n_examples = (int)b->n_used,
        .n_held_out = (int)b->n_held,
        .before = b->measured ? (float)b->before.accuracy : NAN,
        .after = b->measured ? (float)outcome(b)->accuracy : NAN,
        .loss_before = b->measured ? (float)b->before.loss : NAN,
        .loss_after = b->measured ? (float)outcome(b)->loss : NAN,
        .metric = !b->measured ? (char *)""
                  : choices    ? (char *)"accuracy"
                               : (char *)"exact",
        .created = created,
        .worked = {.v = b->worked, .n = b->worked_helps ? b->n_worked : 0},
    };
    st = cr_palette_write(&p, path, &b->err);
    if (!st && b->worked_helps)
        cr_note("the palette keeps %zu of your examples as text", b->n_worked);
    cr_free(pool_path);
    return st;
}

/* ---- the report ---- */

static void measure_facts(struct cr_facts *f, const char *key, const struct cr_measure *m)
{
    if (f->json) {
        cr_json_open(&f->j, key, '{');
        cr_json_real(&f->j, m->n_choices >= m->n_short ? "accuracy" : "exact", m->accuracy);
        if (m->n_short)
            cr_json_real(&f->j, "f1", m->f1);
        cr_json_real(&f->j, "loss", m->loss);
        cr_json_uint(&f->j, "lines", m->n);
        cr_json_close(&f->j);
        return;
    }
    char text[160], f1[32] = "";
    if (m->n_short)
        snprintf(f1, sizeof f1, ", F1 %.3f", m->f1);
    snprintf(text, sizeof text, "%s %.1f %%%s, loss %.4f on %zu held-out lines",
             m->n_choices >= m->n_short ? "accuracy" : "exact", 100 * m->accuracy, f1, m->loss,
             m->n);
    cr_fact_str(f, key, text);
}

static const char *verdict(const struct blend *b)
{
    if (b->worked_helps && b->on_base)
        return "worked examples help most without the blend: the palette keeps them and the base "
               "model";
    if (b->worked_helps)
        return b->tuning_helps ? "the tuned blend helps most behind worked examples"
                               : "the blend helps most behind worked examples";
    if (!b->measured)
        return b->n_held ? "not measured: stopped" : "not measured: no line is held out";
    if (!b->helps)
        return "the blend does not help: the palette keeps the base model";
    if (b->tuned.pool)
        return b->tuning_helps ? "the tuned blend helps"
                               : "the blend helps, tuning does not: the palette keeps the blend";
    return "the blend helps";
}

static void tuned_facts(struct cr_facts *f, const struct blend *b)
{
    struct stat sb;
    const struct cr_tuned *t = &b->tuned;
    cr_fact_int(f, "tuned_steps", t->steps);
    cr_fact_real(f, "tuned_seconds", t->seconds);
    cr_fact_bytes(f, "tuned_memory", t->planned_bytes);
    cr_fact_real(f, "tuned_loss_first", (double)t->loss_first);
    cr_fact_real(f, "tuned_loss_last", (double)t->loss_last);
    if (t->temporary) /* not kept */
        return;
    cr_fact_str(f, "tuned_file", t->path);
    cr_fact_int(f, "tuned_file_bytes", stat(t->path, &sb) ? 0 : (long long)sb.st_size);
}

static int report(struct blend *b, const char *path)
{
    const struct cr_blend_result *r = &b->result;
    struct cr_facts f;
    struct stat sb;
    cr_facts_begin(&f, cr_arg_flag(b->a, CR_OPT_JSON));
    cr_fact_str(&f, "level", cr_level_name(b->level));
    cr_fact_str(&f, "solver", cr_solver_name(b->opt.solver));
    cr_fact_str(&f, "view", cr_view_name(b->opt.view));
    if (b->opt.solver >= CR_SOLVE_PICK) {
        cr_fact_str(&f, "start", cr_solver_name(r->start));
        cr_fact_real(&f, "loss_at_start", (double)r->loss_start);
        cr_fact_real(&f, "loss_at_end", (double)r->loss_end);
        cr_fact_int(&f, "evaluations", r->n_evals);
        cr_fact_int(&f, "accepted", r->n_accepted);
    }
    if (r->nearest >= 0) {
        cr_fact_str(&f, "nearest", b->pool->index.names[r->nearest]);
        cr_fact_real(&f, "similarity", (double)r->nearest_similarity);
    }
    cr_fact_int(&f, "examples", (long long)b->n_used);
    cr_fact_real(&f, "embed_ms", r->embed_ms);
    cr_fact_real(&f, "solve_ms", r->solve_ms);
    cr_fact_real(&f, "apply_ms", b->apply_ms);
    if (f.json)
        cr_json_floats(&f.j, "weights", r->weights, (size_t)r->n);
    cr_facts_line(&f, "weights");
    if (!f.json)
        cr_bars(&f, r->weights, r->n);
    if (b->measured) {
        measure_facts(&f, "before", &b->before);
        measure_facts(&f, "after", &b->after);
        if (b->tuned.pool)
            measure_facts(&f, "after_tuning", &b->after_tuning);
        if (b->worked_measured) {
            measure_facts(&f, "worked_blend", &b->worked_blend);
            measure_facts(&f, "worked_base", &b->worked_base);
        }
        if (f.json)
            cr_json_bool(&f.j, "helps", keeps_blend(b));
    }
    if (b->tuned.pool)
        tuned_facts(&f, b);
    cr_fact_int(&f, "worked_examples", b->worked_helps ? (long long)b->n_worked : 0);
    cr_fact_str(&f, "verdict", verdict(b));
    cr_fact_str(&f, "palette", path);
    cr_fact_int(&f, "palette_bytes", stat(path, &sb) ? 0 : (long long)sb.st_size);
    return cr_facts_print(&f);
}

static enum cr_status open_pool(struct blend *b)
{
    const char *given = cr_arg_text(b->a, CR_OPT_POOL);
    b->pool_path = given ? cr_strdup(given) : cr_pool_beside(b->setup.model_path);
    if (!b->pool_path)
        return cr_error_set(&b->err, CR_NOT_FOUND, "no pool lies beside %s; name one with --pool",
                            b->setup.model_path);
    if (!given)
        cr_note("using the pool %s", b->pool_path);
    return cr_pool_open(&b->pool, b->setup.model, b->pool_path, &b->err);
}

static enum cr_status run(struct blend *b)
{
    const char *level = cr_arg_text(b->a, CR_OPT_LEVEL);
    bool tunes = level && cr_level_by_name(level) == CR_LEVEL_TUNED;
    enum cr_status st = tunes ? cr_tuned_check(&b->err) : CR_OK;
    if (!st)
        st = cr_setup_open(&b->setup, b->a, 0, &b->err);
    if (!st)
        st = open_pool(b);
    if (!st)
        st = cr_examples_read(&b->file, cr_arg_text(b->a, CR_OPT_EXAMPLES), &b->err);
    if (!st && !b->file.n)
        st = cr_error_set(&b->err, CR_FORMAT, "%s: holds no examples",
                          cr_arg_text(b->a, CR_OPT_EXAMPLES));
    if (!st)
        st = split(b);
    if (!st)
        st = solve(b);
    if (!st)
        st = measure(b);
    return st;
}

int cr_cli_blend(const struct cr_args *a)
{
    struct blend b = {.a = a};
    const char *path = cr_arg_text(a, CR_OPT_OUTPUT);
    cr_interrupt_catch();
    enum cr_status st = run(&b);
    if (!st)
        st = write_palette(&b, path);
    int code = st ? cr_fail(&b.err) : report(&b, path);
    cr_worked_deinit(&b.worked_ids);
    cr_tuned_deinit(&b.tuned);
    cr_delta_free(b.delta);
    cr_blend_result_deinit(&b.result);
    cr_free(b.used);
    cr_free(b.held);
    cr_examples_deinit(&b.file);
    cr_pool_close(b.pool);
    cr_free(b.pool_path);
    cr_setup_close(&b.setup);
    return code;
}
