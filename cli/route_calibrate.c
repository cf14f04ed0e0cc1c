/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon route calibrate`: answers the user's examples as `run` would, keeps the quantiles of
 * their demand scores in the palette, and, where the examples have answers, reports how well each
 * rule chooses. With --upstream and a yes the server answers them too.
 */
#ifdef CRAYON_ROUTE

#include "adapt/score.h"
#include "base/mem.h"
#include "base/rng.h"
#include "consent.h"
#include "measure.h"
#include "messages.h"
#include "route.h"
#include "route/calibrate.h"
#include "routing.h"
#include "verbs.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct calibrate {
    const struct cr_args *a;
    struct cr_device device;
    struct cr_examples file, outside, learn;
    struct cr_study_row *rows; /* [n] */
    size_t n, n_outside, n_labelled;
    float *conf, *scope;          /* [max(n, n_outside)] */
    struct cr_calibration result; /* of the rows */
    struct cr_learned learned;    /* of --learn; n_fitted 0: none */
    bool server_asked;
    struct cr_route_report report;
    cr_router *router; /* NULL without --upstream */
    struct cr_progress line;
    struct cr_error err;
};

/* ---- examples ---- */

/* The first --limit rows of a seeded shuffle, in place. */
static size_t choose(const struct cr_args *a, struct cr_examples *e)
{
    size_t limit = (size_t)cr_arg_int(a, CR_OPT_LIMIT);
    if (limit == 0 || e->n <= limit)
        return e->n;
    struct cr_rng rng;
    cr_rng_init(&rng, cr_arg_seed(a, CR_OPT_SEED));
    for (size_t i = 0; i < limit; i++) {
        size_t k = i + (size_t)cr_rng_below(&rng, e->n - i);
        struct cr_example t = e->v[i];
        e->v[i] = e->v[k];
        e->v[k] = t;
    }
    return limit;
}

static enum cr_status read_rows(struct calibrate *c)
{
    const char *outside = cr_arg_text(c->a, CR_OPT_OUT_OF_SCOPE);
    enum cr_status st = cr_examples_read(&c->file, cr_arg_text(c->a, CR_OPT_EXAMPLES), &c->err);
    if (!st && outside)
        st = cr_examples_read(&c->outside, outside, &c->err);
    if (st)
        return st;
    c->n = choose(c->a, &c->file);
    c->n_outside = choose(c->a, &c->outside);
    if (c->n < c->file.n)
        cr_note("%zu of %zu examples (--limit)", c->n, c->file.n);
    for (size_t i = 0; i < c->n; i++)
        c->n_labelled += c->file.v[i].answer != NULL;
    size_t most = c->n > c->n_outside ? c->n : c->n_outside;
    c->rows = cr_alloc0(most, sizeof *c->rows);
    c->conf = cr_alloc(most, sizeof *c->conf);
    c->scope = cr_alloc(most, sizeof *c->scope);
    return c->rows && c->conf && c->scope
               ? CR_OK
               : cr_error_set(&c->err, CR_NO_MEMORY, "out of memory for %zu examples", most);
}

/* Right when it has the same words as the answer or one of its other forms. */
static bool is_right(const struct cr_example *e, const char *text)
{
    if (!e->answer)
        return false;
    const char *answer = e->answer;
    return cr_token_f1(text, &answer, 1) >= 1 ||
           cr_token_f1(text, (const char *const *)e->aliases, (size_t)e->n_aliases) >= 1;
}

/* ---- signals of all rows ---- */

static enum cr_status add_scope(struct calibrate *c, const struct cr_example *e,
                                struct cr_study_row *rows, size_t n)
{
    const struct cr_setup *s = &c->device.setup;
    if (!s->pool)
        return CR_OK;
    size_t dim = (size_t)cr_view_dim(s->model, s->palette->view);
    float *v = cr_alloc(n * dim, sizeof *v);
    if (!v)
        return cr_error_set(&c->err, CR_NO_MEMORY, "out of memory for %zu embeddings", n);
    enum cr_status st = cr_embed_examples(s->model, s->palette->view, e, n, v, &c->err);
    for (size_t i = 0; i < n && !st; i++)
        st = cr_signals_scope_vector(&rows[i].signals, s->palette, s->pool, v + i * dim, &c->err);
    cr_free(v);
    return st;
}

static enum cr_status answer_rows(struct calibrate *c, const struct cr_example *e,
                                  struct cr_study_row *rows, size_t n, const char *what)
{
    enum cr_status st = CR_OK;
    cr_progress_begin(&c->line, what);
    for (size_t i = 0; i < n && !st; i++) {
        st = cr_device_answer(&c->device, &e[i], &rows[i].signals, &c->err);
        if (st)
            cr_error_prefix(&c->err, st, "line %zu", e[i].line);
        else
            rows[i].device_right = is_right(&e[i], c->device.text.data ? c->device.text.data : "");
        cr_progress_show(&c->line, (double)(i + 1), (double)n, "");
    }
    cr_progress_end(&c->line);
    return st ? st : add_scope(c, e, rows, n);
}

static enum cr_status score_rows(struct calibrate *c, const struct cr_example *e,
                                 struct cr_study_row *rows, size_t n)
{
    cr_scorer *scorer = NULL;
    const struct cr_example_score *score = NULL;
    for (size_t i = 0; i < n; i++)
        if (e[i].n_choices < 2)
            return cr_error_set(&c->err, CR_INVALID,
                                "line %zu: --answers options wants choices, found none", e[i].line);
    enum cr_status st = cr_scorer_new(&scorer, c->device.setup.model,
                                      &c->device.setup.palette->worked_ids, e, n, &c->err);
    if (!st)
        st = cr_scorer_run(scorer, c->device.setup.delta, &score, NULL, NULL, &c->err);
    for (size_t i = 0; i < n && !st; i++) {
        cr_signals_init(&rows[i].signals);
        cr_signals_options(&rows[i].signals, score[i].options, score[i].n_options);
        rows[i].signals.request =
            cr_request_hash(cr_arg_seed(c->a, CR_OPT_SEED), e[i].question, strlen(e[i].question));
        rows[i].device_right = score[i].has_answer && score[i].correct;
    }
    cr_scorer_free(scorer);
    return st ? st : add_scope(c, e, rows, n);
}

static enum cr_status fill_rows(struct calibrate *c, const struct cr_example *e,
                                struct cr_study_row *rows, size_t n, const char *what)
{
    return c->report.options ? score_rows(c, e, rows, n) : answer_rows(c, e, rows, n, what);
}

/* ---- the server ---- */

static bool interrupted(void *ud)
{
    (void)ud;
    return cr_interrupted();
}

static enum cr_status prepare_row(struct calibrate *c, size_t i, struct cr_outgoing *out)
{
    char *text = cr_example_text(&c->file.v[i]);
    if (!text)
        return cr_error_set(&c->err, CR_NO_MEMORY, "out of memory");
    struct cr_message m = {"user", text};
    struct cr_ask ask = {.messages = &m,
                         .n_messages = 1,
                         .max_tokens = cr_arg_int(c->a, CR_OPT_MAX_TOKENS),
                         .temperature = 0,
                         .request_id = "calibrate",
                         .reason = "asked for by route calibrate",
                         .cancelled = interrupted};
    enum cr_status st = cr_router_prepare(c->router, &ask, out, &c->err);
    cr_free(text);
    return st;
}

/* All rows leave, so the question is asked once, with the first body and the sum. */
static enum cr_status consent(struct calibrate *c)
{
    size_t bytes = 0;
    struct cr_outgoing out;
    struct cr_buf b;
    enum cr_status st = CR_OK;
    for (size_t i = c->n; i > 0 && !st; i--) {
        st = prepare_row(c, i - 1, &out);
        bytes += out.n_body;
        if (i > 1 || st)
            cr_outgoing_deinit(&out);
    }
    if (st)
        return st;
    cr_buf_init(&b, 1 << 26);
    st = cr_preview(&out, &b, &c->err);
    cr_outgoing_deinit(&out);
    if (!st && !cr_arg_flag(c->a, CR_OPT_YES)) {
        char question[128];
        snprintf(question, sizeof question, "this is 1 of %zu bodies, %zu bytes in all; send them?",
                 c->n, bytes);
        cr_note("%s", b.data);
        if (cr_consent_question(question) != CR_CONSENT_YES)
            st = cr_error_set(&c->err, CR_POLICY,
                              "not sent: %zu examples would leave the device (%zu bytes); allow it "
                              "with --yes",
                              c->n, bytes);
    }
    cr_buf_deinit(&b);
    return st;
}

static enum cr_status ask_server(struct calibrate *c)
{
    enum cr_status st = cr_routing_open(&c->router, c->a, &c->err);
    if (!st)
        st = consent(c);
    if (st)
        return st;
    cr_progress_begin(&c->line, "asking the server");
    for (size_t i = 0; i < c->n && !st; i++) {
        struct cr_outgoing out;
        struct cr_remote_answer got = {0};
        st = prepare_row(c, i, &out);
        if (!st)
            st = cr_router_send(c->router, &out, &got, &c->err);
        c->report.bytes_out += got.bytes_out;
        if (!st)
            c->rows[i].server_right = is_right(&c->file.v[i], got.text);
        cr_remote_answer_deinit(&got);
        cr_outgoing_deinit(&out);
        cr_progress_show(&c->line, (double)(i + 1), (double)c->n, "");
    }
    cr_progress_end(&c->line);
    return st;
}

/* ---- results ---- */

static enum cr_status fit(struct calibrate *c)
{
    bool has_scope = c->device.setup.pool != NULL;
    for (size_t i = 0; i < c->n; i++) {
        c->conf[i] = c->rows[i].signals.demand_conf;
        c->scope[i] = c->rows[i].signals.demand_scope;
    }
    enum cr_status st = cr_calibration_fit(&c->result, c->conf, has_scope ? c->scope : NULL, c->n,
                                           c->report.options, &c->err);
    if (!st && c->report.has_study)
        st = cr_calibration_label(&c->result, c->rows, c->n, c->server_asked,
                                  c->learned.n_fitted ? &c->learned : NULL, c->report.no_learned,
                                  &c->err);
    else if (!st && c->learned.n_fitted)
        st = cr_calibration_learned(&c->result, c->rows, c->n, &c->learned, &c->err);
    c->report.calibration = &c->result;
    return st;
}

/* The weights of LEARNED from --learn: answered rows of other tasks, so that the examples need no
 * answers. The server is taken to be always right there. */
static enum cr_status learn(struct calibrate *c)
{
    const char *path = cr_arg_text(c->a, CR_OPT_LEARN);
    if (!path)
        return CR_OK;
    enum cr_status st = cr_examples_read(&c->learn, path, &c->err);
    size_t n = st ? 0 : choose(c->a, &c->learn);
    for (size_t i = 0; i < n && !st; i++)
        if (!c->learn.v[i].answer)
            st = cr_error_set(&c->err, CR_INVALID, "%s: line %zu has no answer to learn from", path,
                              c->learn.v[i].line);
    struct cr_study_row *rows = st ? NULL : cr_alloc0(n + 1, sizeof *rows);
    if (!st && !rows)
        st = cr_error_set(&c->err, CR_NO_MEMORY, "out of memory for %zu examples", n);
    if (!st)
        st = fill_rows(c, c->learn.v, rows, n, "answering what to learn from");
    if (!st)
        st = cr_learned_fit(&c->learned, rows, n, false, &c->err);
    cr_free(rows);
    return st;
}

/* How foreign rows fare under the new calibration. */
static enum cr_status measure_outside(struct calibrate *c)
{
    struct cr_study_row *rows = cr_alloc0(c->n_outside, sizeof *rows);
    float *score = cr_alloc(c->n + c->n_outside, sizeof *score);
    bool *outside = cr_alloc0(c->n + c->n_outside, sizeof *outside);
    enum cr_status st =
        rows && score && outside ? CR_OK : cr_error_set(&c->err, CR_NO_MEMORY, "out of memory");
    if (!st)
        st = fill_rows(c, c->outside.v, rows, c->n_outside, "answering out of scope");
    if (!st) {
        struct cr_palette p = {.name = (char *)"new", .calibration = c->result};
        for (size_t i = 0; i < c->n; i++)
            score[i] = c->rows[i].signals.demand_scope;
        for (size_t i = 0; i < c->n_outside; i++) {
            score[c->n + i] = rows[i].signals.demand_scope;
            outside[c->n + i] = true;
            for (int r = 0; r < CR_RULE_COUNT; r++) {
                struct cr_decision d;
                cr_rule_decide((enum cr_rule)r, c->report.budget, &p, &rows[i].signals, &d);
                c->report.sent_outside[r] += d.server / (double)c->n_outside;
            }
        }
        c->report.auroc_outside =
            c->result.has_scope ? cr_auroc(score, outside, c->n + c->n_outside) : (double)NAN;
        c->report.n_outside = c->n_outside;
    }
    cr_free(outside);
    cr_free(score);
    cr_free(rows);
    return st;
}

/* The file again as it is, so that a relative pool path stays relative. */
static enum cr_status store(struct calibrate *c)
{
    const char *path = cr_arg_text(c->a, CR_OPT_PALETTE);
    char *json;
    size_t n;
    cr_palette *p = NULL;
    enum cr_status st = cr_file_read(path, 1 << 20, &json, &n, &c->err);
    if (st)
        return st;
    st = cr_palette_parse(&p, json, n, path, &c->err);
    if (!st) {
        p->calibration = c->result;
        st = cr_palette_write(p, path, &c->err);
        cr_palette_close(p);
    }
    cr_free(json);
    c->report.stored = st == CR_OK;
    return st;
}

static enum cr_status work(struct calibrate *c)
{
    struct cr_route_report *r = &c->report;
    enum cr_status st = read_rows(c);
    if (!st)
        st = cr_device_open(&c->device, c->a, true, &c->err);
    if (!st)
        st = fill_rows(c, c->file.v, c->rows, c->n, "answering on the device");
    r->n = c->n;
    r->has_study = c->n_labelled == c->n && c->n >= 4;
    bool server = cr_arg_text(c->a, CR_OPT_UPSTREAM) != NULL;
    if (!st)
        st = learn(c);
    if (!st && server && !r->has_study)
        st =
            cr_error_set(&c->err, CR_INVALID,
                         "--upstream: want at least 4 examples, all with answers, found %zu of %zu "
                         "with answers",
                         c->n_labelled, c->n);
    if (!st && server)
        st = ask_server(c);
    c->server_asked = server;
    if (!st)
        st = fit(c);
    if (!st && !r->options) /* thresholds for generated text are what run and serve need */
        st = store(c);
    if (!st && r->has_study)
        st = cr_study_make(&r->study, c->rows, c->n, server, &c->err);
    if (!st && c->n_outside)
        st = measure_outside(c);
    return st;
}

int cr_cli_route_calibrate(const struct cr_args *a)
{
    struct calibrate c = {.a = a};
    const char *svg = cr_arg_text(a, CR_OPT_SVG);
    int code = 0;
    c.report =
        (struct cr_route_report){.palette = cr_arg_text(a, CR_OPT_PALETTE),
                                 .examples = cr_arg_text(a, CR_OPT_EXAMPLES),
                                 .options = !strcmp(cr_arg_text(a, CR_OPT_ANSWERS), "options"),
                                 .budget = cr_arg_real(a, CR_OPT_BUDGET)};
    cr_interrupt_catch();
    enum cr_status st = work(&c);
    if (!st && svg && !c.report.has_study)
        st = cr_error_set(&c.err, CR_INVALID, "--svg: the examples have no answers to draw");
    if (!st && svg)
        st = cr_route_report_svg(&c.report, svg, &c.err);
    if (st)
        code = cr_fail(&c.err);
    else if (cr_arg_flag(a, CR_OPT_JSON))
        code = cr_route_report_json(&c.report);
    else
        cr_route_report_print(&c.report);
    cr_router_free(c.router);
    cr_free(c.scope);
    cr_free(c.conf);
    cr_free(c.rows);
    cr_device_close(&c.device);
    cr_examples_deinit(&c.learn);
    cr_examples_deinit(&c.outside);
    cr_examples_deinit(&c.file);
    return code;
}

#endif
