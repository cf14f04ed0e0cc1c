/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon route explain`: one question answered on the device, every signal with its threshold, and
 * what each rule would do. The process is offline by the kernel's word while it runs.
 */
#ifdef CRAYON_ROUTE

#include "route.h"

#include "adapt/palette.h"
#include "base/mem.h"
#include "messages.h"
#include "route/calibrate.h"
#include "route/ledger_text.h"
#include "route/offline.h"
#include "verbs.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the device ---- */

enum cr_status cr_device_open(struct cr_device *d, const struct cr_args *a, bool entropy_too,
                              struct cr_error *err)
{
    *d = (struct cr_device){.a = a};
    cr_buf_init(&d->text, 1 << 24);
    enum cr_status st = cr_setup_open(&d->setup, a, CR_SETUP_DELTA, err);
    if (!st)
        st = cr_setup_scope(&d->setup, err);
    if (!st)
        st = cr_setup_session(&d->setup, a, 0, &d->session, err);
    if (!st)
        st = cr_meter_init(&d->meter, (size_t)cr_arg_int(a, CR_OPT_MAX_TOKENS) + 1, entropy_too,
                           err);
    if (st)
        return st;
    d->form = cr_form_of(a, &d->setup);
    d->base_too = a->v[CR_OPT_COMPARE_BASE].opt && cr_arg_flag(a, CR_OPT_COMPARE_BASE);
    if (d->base_too) {
        d->first = cr_alloc((size_t)cr_model_info(d->setup.model)->n_vocab, sizeof *d->first);
        st = d->first ? cr_setup_session(&d->setup, a, 0, &d->base, err)
                      : cr_error_set(err, CR_NO_MEMORY, "out of memory");
        if (!st)
            cr_session_set_delta(d->base, NULL);
    }
    return st;
}

void cr_device_close(struct cr_device *d)
{
    cr_session_free(d->base);
    cr_session_free(d->session);
    cr_free(d->first);
    cr_meter_deinit(&d->meter);
    cr_buf_deinit(&d->text);
    cr_setup_close(&d->setup);
}

static bool on_text(void *ud, const char *text, size_t len)
{
    struct cr_device *d = ud;
    return cr_buf_add(&d->text, text, len) && !cr_interrupted();
}

static bool on_token(void *ud, int32_t id, float logprob)
{
    struct cr_device *d = ud;
    const float *logits = cr_session_logits(d->session);
    int n_vocab = cr_model_info(d->setup.model)->n_vocab;
    if (d->first && d->meter.n == 0)
        memcpy(d->first, logits, (size_t)n_vocab * sizeof *logits);
    cr_meter_token(&d->meter, id, logprob, logits, n_vocab);
    return true;
}

static enum cr_status compare_base(struct cr_device *d, const int32_t *ids, size_t n,
                                   struct cr_signals *out, struct cr_error *err)
{
    enum cr_status st = cr_session_sync(d->base, ids, n, NULL, err);
    if (!st && d->meter.n)
        out->change = cr_signal_change(d->first, cr_session_logits(d->base),
                                       cr_model_info(d->setup.model)->n_vocab);
    return st;
}

enum cr_status cr_device_answer(struct cr_device *d, const struct cr_example *e,
                                struct cr_signals *out, struct cr_error *err)
{
    static const char *const line_end[] = {"\n"};
    int32_t *ids;
    struct cr_generated stats;
    size_t n;
    cr_signals_init(out);
    size_t room = cr_worked_room(cr_session_ctx(d->session), cr_arg_int(d->a, CR_OPT_MAX_TOKENS));
    enum cr_status st =
        cr_form_ids(&d->setup, d->form, cr_arg_text(d->a, CR_OPT_SYSTEM), e, room, &ids, &n, err);
    if (st)
        return st;
    struct cr_generate g = {.prompt = ids,
                            .n_prompt = n,
                            .max_tokens = cr_arg_int(d->a, CR_OPT_MAX_TOKENS),
                            .sampling = cr_sampling_of(d->a, d->form),
                            .stop = d->form == CR_FORM_TASK ? line_end : NULL,
                            .n_stop = d->form == CR_FORM_TASK,
                            .on_text = on_text,
                            .on_token = on_token,
                            .ud = d};
    d->text.len = 0;
    cr_meter_reset(&d->meter);
    st = cr_generate(d->session, &g, &stats, err);
    if (!st && cr_interrupted())
        st = cr_error_set(err, CR_CANCELLED, "interrupted");
    if (!st && d->text.failed)
        st = cr_error_set(err, CR_NO_MEMORY, "out of memory for the answer");
    if (!st && d->base_too)
        st = compare_base(d, ids, n, out, err);
    if (!st) {
        float change = out->change;
        cr_signals_text(out, &d->meter);
        out->change = change;
        out->request =
            cr_request_hash(cr_arg_seed(d->a, CR_OPT_SEED), e->question, strlen(e->question));
    }
    cr_free(ids);
    return st;
}

char *cr_example_text(const struct cr_example *e)
{
    return e->context ? cr_asprintf("%s\n%s", e->context, e->question) : cr_strdup(e->question);
}

/* ---- explain ---- */

static void print_signal(const char *name, float v, const char *note)
{
    if (isnan(v))
        cr_outf("  %-12s unknown%s%s\n", name, *note ? ": " : "", note);
    else
        cr_outf("  %-12s %.4f%s%s\n", name, (double)v, *note ? "   " : "", note);
}

static void threshold_note(char out[96], const char *words, float value, const char *unit)
{
    out[0] = '\0';
    if (!isnan(value))
        snprintf(out, 96, "%s %.4f%s", words, (double)value, unit);
}

static void print_explanation(const struct cr_device *d, const struct cr_signals *s,
                              const struct cr_decision by_rule[CR_RULE_COUNT], enum cr_rule rule,
                              double budget)
{
    static const char *const quantiles[] = {"q0", "q10", "q25", "q50"};
    char note[96];
    const struct cr_decision *chosen = &by_rule[rule];
    cr_out_puts("answer on the device:");
    cr_out_text(d->text.data ? d->text.data : "", d->text.len);
    cr_out_puts("\n\nsignals\n");
    threshold_note(note, "sent below", chosen->min_confidence, "");
    print_signal("confidence", s->confidence, note);
    print_signal("p1", s->p1, "");
    print_signal("margin", s->margin, "");
    print_signal("entropy", s->entropy, "");
    print_signal("mean", s->mean, "");
    for (int k = 0; k < CR_N_QUANTILES; k++)
        print_signal(quantiles[k], s->quantile[k], "");
    print_signal("log length", s->log_length, "");
    print_signal("change", s->change, d->base_too ? "" : "ask with --compare-base");
    const char *why = !d->setup.palette ? "there is no palette"
                      : !d->setup.pool  ? "the palette has no pool"
                                        : "";
    print_signal("scope", s->scope, isnan(s->scope) ? why : "");
    threshold_note(note, "sent beyond", chosen->max_far, "");
    print_signal("scope z", s->scope_z, "");
    print_signal("near", s->near, "");
    print_signal("near z", s->near_z, "");
    print_signal("far", s->demand_scope, note);
    cr_outf("\nrules at a budget of %g\n", budget);
    for (int r = 0; r < CR_RULE_COUNT; r++)
        cr_outf("%c %-7s %-7s %s\n", r == (int)rule ? '*' : ' ', cr_rule_name((enum cr_rule)r),
                by_rule[r].server ? "server" : "device", by_rule[r].why);
}

static int explanation_json(const struct cr_device *d, const struct cr_signals *s,
                            const struct cr_decision by_rule[CR_RULE_COUNT], enum cr_rule rule,
                            double budget)
{
    struct cr_buf b;
    struct cr_json j;
    cr_buf_init(&b, 1 << 26);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_strn(&j, "text", d->text.data ? d->text.data : "", d->text.len);
    cr_json_str(&j, "route", by_rule[rule].server ? "server" : "device");
    cr_json_str(&j, "why", by_rule[rule].why);
    cr_json_str(&j, "rule", cr_rule_name(rule));
    cr_json_real(&j, "budget", budget);
    cr_json_open(&j, "signals", '{');
    cr_json_int(&j, "n_tokens", s->n);
    cr_json_real(&j, "confidence", (double)s->confidence);
    cr_json_real(&j, "p1", (double)s->p1);
    cr_json_real(&j, "margin", (double)s->margin);
    cr_json_real(&j, "entropy", (double)s->entropy);
    cr_json_real(&j, "mean", (double)s->mean);
    cr_json_floats(&j, "quantiles", s->quantile, CR_N_QUANTILES);
    cr_json_real(&j, "log_length", (double)s->log_length);
    cr_json_real(&j, "change", (double)s->change);
    cr_json_real(&j, "scope", (double)s->scope);
    cr_json_real(&j, "scope_z", (double)s->scope_z);
    cr_json_real(&j, "near", (double)s->near);
    cr_json_real(&j, "near_z", (double)s->near_z);
    cr_json_real(&j, "far", (double)s->demand_scope);
    cr_json_close(&j);
    cr_json_open(&j, "rules", '{');
    for (int r = 0; r < CR_RULE_COUNT; r++) {
        cr_json_open(&j, cr_rule_name((enum cr_rule)r), '{');
        cr_json_str(&j, "route", by_rule[r].server ? "server" : "device");
        cr_json_str(&j, "why", by_rule[r].why);
        cr_json_real(&j, "min_confidence", (double)by_rule[r].min_confidence);
        cr_json_real(&j, "max_far", (double)by_rule[r].max_far);
        cr_json_close(&j);
    }
    cr_json_close(&j);
    cr_json_close(&j);
    int code = cr_json_flush(&j);
    cr_buf_deinit(&b);
    return code;
}

/* ---- a past request ---- */

struct past {
    bool json;
    size_t n_rows;
    struct cr_buf out;
};

static void past_decision(void *ud, const struct cr_ledger_decision *d)
{
    struct past *p = ud;
    struct cr_json j;
    if (p->json) { /* the detail is an object that we wrote */
        cr_json_begin(&j, &p->out, false);
        cr_json_open(&j, NULL, '{');
        cr_json_str(&j, "request_id", d->request_id);
        cr_json_str(&j, "time", d->time);
        cr_json_str(&j, "route", d->route);
        cr_json_str(&j, "why", d->why);
        cr_json_close(&j);
        p->out.len--; /* the brace */
        cr_buf_printf(&p->out, ",\"detail\":%s", d->detail);
        return;
    }
    cr_buf_printf(&p->out, "%s  %s\nroute  %s\nwhy    %s\n", d->time, d->request_id, d->route,
                  d->why);
    for (const char *c = d->detail; *c; c++) /* {"rule":"crayon","budget":0.1} as lines */
        if (*c == ',' || *c == '{')
            cr_buf_puts(&p->out, *c == ',' ? "\n  " : "  ");
        else if (*c == ':')
            cr_buf_puts(&p->out, "  ");
        else if (!strchr("\"}", *c))
            cr_buf_add(&p->out, c, 1);
    cr_buf_puts(&p->out, "\n");
}

static bool past_row(void *ud, const struct cr_ledger_row *row)
{
    struct past *p = ud;
    if (p->json) {
        cr_buf_puts(&p->out, !p->out.len ? "{\"sent\":[" : p->n_rows ? "," : ",\"sent\":[");
        cr_ledger_json(&p->out, row);
    } else {
        cr_buf_printf(&p->out, "%s: %s, %lld bytes left for %s (%s), because %s\n", row->time,
                      row->status, (long long)row->bytes_out, row->destination, row->model,
                      row->reason);
    }
    p->n_rows++;
    return true;
}

static int explain_past(const char *id, bool json)
{
    struct cr_error err;
    struct past p = {.json = json};
    cr_ledger *l = NULL;
    cr_buf_init(&p.out, 1 << 24);
    enum cr_status st = cr_ledger_open_read(&l, NULL, &err);
    if (!st)
        st = cr_ledger_find(l, id, past_decision, past_row, &p, &err);
    if (!st && json)
        cr_buf_puts(&p.out, p.n_rows ? "]}\n" : ",\"sent\":[]}\n");
    else if (!st && !p.n_rows)
        cr_buf_puts(&p.out, "nothing left the device for it\n");
    if (!st && p.out.failed)
        st = cr_error_set(&err, CR_NO_MEMORY, "out of memory");
    if (!st) { /* texts of servers stand in it */
        struct cr_buf clean;
        cr_buf_init(&clean, 1 << 26);
        cr_sanitise(&clean, p.out.data, p.out.len);
        cr_out_text(clean.data, clean.len);
        cr_buf_deinit(&clean);
    }
    cr_ledger_close(l);
    cr_buf_deinit(&p.out);
    return st ? cr_fail(&err) : 0;
}

int cr_cli_route_explain(const struct cr_args *a)
{
    if (a->n_rest)
        return explain_past(a->rest[0], cr_arg_flag(a, CR_OPT_JSON));
    struct cr_error err;
    struct cr_device d = {0};
    struct cr_signals s;
    struct cr_decision by_rule[CR_RULE_COUNT];
    enum cr_rule rule = (enum cr_rule)cr_rule_by_name(cr_arg_text(a, CR_OPT_RULE));
    double budget = cr_arg_real(a, CR_OPT_BUDGET);
    char *text = NULL;
    size_t len = 0;
    int code = 0;
    cr_interrupt_catch();
    enum cr_status st = cr_offline_enter(CR_OFFLINE_ALL, &err);
    if (!st)
        st = cr_device_open(&d, a, true, &err);
    if (!st)
        st = cr_read_prompt(a, &text, &len, &err);
    if (!st && strlen(text) != len)
        st = cr_error_set(&err, CR_INVALID, "the prompt holds a NUL byte");
    struct cr_example e = {.task = (char *)"", .question = text, .answer_index = -1};
    if (!st)
        st = cr_device_answer(&d, &e, &s, &err);
    if (!st && d.setup.palette && d.setup.pool)
        st = cr_signals_scope(&s, d.setup.model, d.setup.palette, d.setup.pool, &e, &err);
    for (int r = 0; r < CR_RULE_COUNT && !st; r++)
        cr_rule_decide((enum cr_rule)r, budget, d.setup.palette, &s, &by_rule[r]);
    if (st)
        code = cr_fail(&err);
    else if (cr_arg_flag(a, CR_OPT_JSON))
        code = explanation_json(&d, &s, by_rule, rule, budget);
    else
        print_explanation(&d, &s, by_rule, rule, budget);
    cr_free(text);
    cr_device_close(&d);
    return code;
}

#endif
