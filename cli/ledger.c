/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon ledger`: what left the device, newest first, and the totals; as a file for other
 * programs; and what is old, deleted. */
#ifdef CRAYON_ROUTE

#include "route/ledger.h"
#include "base/mem.h"
#include "jsonout.h"
#include "messages.h"
#include "route/ledger_text.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

struct listing {
    struct cr_json *json; /* NULL: a table */
    size_t n;
};

/* A number, or "-" when it is not known. */
static const char *known(int64_t v, char out[24])
{
    if (v < 0)
        return "-";
    snprintf(out, 24, "%lld", (long long)v);
    return out;
}

static void json_known(struct cr_json *j, const char *key, int64_t v)
{
    if (v < 0)
        cr_json_null(j, key);
    else
        cr_json_int(j, key, v);
}

static void json_known_real(struct cr_json *j, const char *key, double v)
{
    if (v < 0)
        cr_json_null(j, key);
    else
        cr_json_real(j, key, v);
}

/* Text from a server or a config: never with control characters. */
static void out_clean(const char *s)
{
    struct cr_buf b;
    cr_buf_init(&b, 1 << 16);
    cr_sanitise(&b, s, strlen(s));
    for (size_t i = 0; i < b.len; i++)
        if (b.data[i] == '\n' || b.data[i] == '\t')
            b.data[i] = ' ';
    cr_out_puts(b.data ? b.data : "");
    cr_buf_deinit(&b);
}

static bool table_row(void *ud, const struct cr_ledger_row *row)
{
    struct listing *l = ud;
    char in[24], tin[24], tout[24];
    if (l->n++ == 0)
        cr_out_puts("time                      bytes out  bytes in  tokens  status\n");
    cr_outf("%-24s  %9lld  %8s  %s/%s  ", row->time, (long long)row->bytes_out,
            known(row->bytes_in, in), known(row->tokens_in, tin), known(row->tokens_out, tout));
    out_clean(row->status);
    cr_out_puts("\n    to ");
    out_clean(row->destination);
    cr_out_puts(" (");
    out_clean(row->model);
    cr_out_puts(")");
    if (*row->reason) {
        cr_out_puts(", because ");
        out_clean(row->reason);
    }
    cr_out_puts("\n");
    return !cr_out_failed();
}

static bool json_row(void *ud, const struct cr_ledger_row *row)
{
    struct listing *l = ud;
    struct cr_json *j = l->json;
    l->n++;
    cr_json_open(j, NULL, '{');
    cr_json_int(j, "id", row->id);
    cr_json_str(j, "time", row->time);
    cr_json_str(j, "request_id", row->request_id);
    cr_json_str(j, "destination", row->destination);
    cr_json_str(j, "model", row->model);
    cr_json_str(j, "reason", row->reason);
    cr_json_str(j, "status", row->status);
    cr_json_int(j, "bytes_out", row->bytes_out);
    json_known(j, "bytes_in", row->bytes_in);
    json_known(j, "tokens_in", row->tokens_in);
    json_known(j, "tokens_out", row->tokens_out);
    json_known(j, "tries", row->tries);
    json_known_real(j, "cost", row->cost);
    json_known_real(j, "duration_ms", row->duration_ms);
    cr_json_close(j);
    return true;
}

static void json_totals(struct cr_json *j, const struct cr_ledger_totals *t)
{
    cr_json_open(j, "totals", '{');
    cr_json_int(j, "rows", t->rows);
    cr_json_int(j, "ok", t->ok);
    cr_json_int(j, "failed", t->failed);
    cr_json_int(j, "pending", t->pending);
    cr_json_int(j, "bytes_out", t->bytes_out);
    cr_json_int(j, "bytes_in", t->bytes_in);
    cr_json_int(j, "tokens_in", t->tokens_in);
    cr_json_int(j, "tokens_out", t->tokens_out);
    if (t->cost_known)
        cr_json_real(j, "cost", t->cost);
    else
        cr_json_null(j, "cost");
    cr_json_close(j);
}

static int print_json(cr_ledger *l, const char *path, int limit, struct cr_error *err)
{
    struct cr_buf b;
    struct cr_json j;
    struct cr_ledger_totals t = {0};
    struct listing list = {.json = &j};
    cr_buf_init(&b, (size_t)1 << 30);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_str(&j, "ledger", path);
    cr_json_open(&j, "entries", '[');
    enum cr_status st = l ? cr_ledger_each(l, limit, json_row, &list, err) : CR_OK;
    cr_json_close(&j);
    if (st == CR_OK && l)
        st = cr_ledger_sum(l, &t, err);
    json_totals(&j, &t);
    cr_json_close(&j);
    int code = st == CR_OK ? cr_json_flush(&j) : cr_fail(err);
    cr_buf_deinit(&b);
    return code;
}

static int print_table(cr_ledger *l, const char *path, int limit, struct cr_error *err)
{
    struct cr_ledger_totals t = {0};
    struct listing list = {0};
    enum cr_status st = l ? cr_ledger_each(l, limit, table_row, &list, err) : CR_OK;
    if (st == CR_OK && l)
        st = cr_ledger_sum(l, &t, err);
    if (st != CR_OK)
        return cr_fail(err);
    if (t.rows == 0) {
        cr_outf("nothing has left this device (%s)\n", path);
        return 0;
    }
    cr_outf("%lld requests (%lld ok, %lld failed, %lld pending): %lld bytes out, %lld bytes in, "
            "%lld + %lld tokens",
            (long long)t.rows, (long long)t.ok, (long long)t.failed, (long long)t.pending,
            (long long)t.bytes_out, (long long)t.bytes_in, (long long)t.tokens_in,
            (long long)t.tokens_out);
    if (t.cost_known)
        cr_outf(", cost %.6g", t.cost);
    cr_outf("\n%s\n", path);
    return 0;
}

/* ---- export ---- */

struct export
{
    struct cr_buf line;
    bool csv;
};

static bool export_row(void *ud, const struct cr_ledger_row *row)
{
    struct export *e = ud;
    e->line.len = 0;
    bool ok = e->csv ? cr_ledger_csv(&e->line, row)
                     : cr_ledger_json(&e->line, row) && cr_buf_puts(&e->line, "\n");
    cr_out_text(e->line.data, e->line.len);
    return ok && !cr_out_failed();
}

static int export_all(cr_ledger *l, bool csv, int limit, struct cr_error *err)
{
    struct export e = {.csv = csv};
    cr_buf_init(&e.line, 1 << 20);
    if (csv && cr_ledger_csv_head(&e.line))
        cr_out_text(e.line.data, e.line.len);
    enum cr_status st = l ? cr_ledger_each(l, limit, export_row, &e, err) : CR_OK;
    if (st == CR_OK && e.line.failed)
        st = cr_error_set(err, CR_NO_MEMORY, "out of memory for a row");
    cr_buf_deinit(&e.line);
    return st == CR_OK ? 0 : cr_fail(err);
}

static int prune(const char *path, double days, struct cr_error *err)
{
    cr_ledger *l;
    int64_t n;
    enum cr_status st = cr_ledger_open(&l, path, err);
    if (st == CR_OK)
        st = cr_ledger_prune(l, days, &n, err);
    if (st == CR_OK)
        cr_outf("%lld rows older than %g days deleted\n", (long long)n, days);
    cr_ledger_close(l);
    return st == CR_OK ? 0 : cr_fail(err);
}

int cr_cli_ledger(const struct cr_args *a)
{
    struct cr_error err;
    cr_ledger *l = NULL;
    char *path;
    const char *export = cr_arg_text(a, CR_OPT_EXPORT);
    /* An export is of all rows unless a limit is given. */
    int limit = export && !cr_arg_given(a, CR_OPT_LIMIT) ? 0 : cr_arg_int(a, CR_OPT_LIMIT), code;
    enum cr_status st = cr_ledger_default_path(&path, &err);
    if (st == CR_OK)
        st = cr_ledger_open_read(&l, path, &err);
    if (st != CR_OK && !(st == CR_NOT_FOUND && path)) /* no ledger yet: nothing has left */
        code = cr_fail(&err);
    else if (cr_arg_given(a, CR_OPT_PRUNE) && l)
        code = prune(path, cr_arg_real(a, CR_OPT_PRUNE), &err);
    else if (export)
        code = export_all(l, strcmp(export, "csv") == 0, limit, &err);
    else if (cr_arg_flag(a, CR_OPT_JSON))
        code = print_json(l, path, limit, &err);
    else
        code = print_table(l, path, limit, &err);
    cr_ledger_close(l);
    cr_free(path);
    return code;
}

#endif
