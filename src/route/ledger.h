/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger: one row for everything that left the device, in an SQLite file (WAL, every commit
 * synced). The row is written before anything leaves ("pending") and completed after, so a crash
 * leaves a row, never an unrecorded transfer. What cannot be recorded is not sent.
 *
 * Beside it stands every decision, also to stay on the device, so that it can be explained later.
 * Rows hold no text of the conversation and no key. The file is made 0600 in a folder 0700.
 * One handle may be shared by threads; several processes may share one file.
 */
#ifndef CR_LEDGER_H
#define CR_LEDGER_H

#include "base/error.h"

typedef struct cr_ledger cr_ledger;

/* Strings are borrowed; NULL is stored as "". Numbers below 0 are unknown. */
struct cr_ledger_row {
    int64_t id;
    const char *time;        /* ISO 8601 UTC with milliseconds; set by the ledger */
    const char *request_id;  /* as in the reply */
    const char *destination; /* scheme, host, port and path */
    const char *model;
    const char *reason; /* why the router sent it */
    const char *status; /* "pending", "ok" or "failed: ..."; set by the ledger at begin */
    int64_t bytes_out;  /* HTTP bytes with headers, all tries; pending: the body's bytes */
    int64_t bytes_in;   /* the same, received */
    int64_t tokens_in;  /* prompt tokens as the server counts them */
    int64_t tokens_out; /* answer tokens */
    int64_t tries;      /* requests made */
    double cost;        /* in the currency of the price given; below 0: unknown */
    double duration_ms; /* from first byte out to the end */
};

struct cr_ledger_totals {
    int64_t rows, ok, failed, pending;
    int64_t bytes_out, bytes_in, tokens_in, tokens_out;
    double cost;        /* of the rows where it is known */
    int64_t cost_known; /* how many */
};

/* $XDG_STATE_HOME/crayon/ledger.db, else $HOME/.local/state/crayon/ledger.db (a relative variable
 * is ignored, as the XDG specification says). Free *path with cr_free. */
enum cr_status cr_ledger_default_path(char **path, struct cr_error *err);
/* Opens the file, making it and its folder. path NULL: the default one. Close with
 * cr_ledger_close. */
enum cr_status cr_ledger_open(cr_ledger **out, const char *path, struct cr_error *err);
/* The same for reading; CR_NOT_FOUND when there is no ledger yet. */
enum cr_status cr_ledger_open_read(cr_ledger **out, const char *path, struct cr_error *err);
void cr_ledger_close(cr_ledger *l);
const char *cr_ledger_path(const cr_ledger *l);

/* Writes a pending row and syncs it; *id names it. On failure nothing may leave. */
enum cr_status cr_ledger_begin(cr_ledger *l, const struct cr_ledger_row *intent, int64_t *id,
                               struct cr_error *err);
/* Completes row `id` with status, bytes, tokens, tries, cost and duration of `done`. */
enum cr_status cr_ledger_finish(cr_ledger *l, int64_t id, const struct cr_ledger_row *done,
                                struct cr_error *err);

/* One decision of the router, whether it sent or not: numbers and reasons, no text. */
struct cr_ledger_decision {
    const char *request_id, *time; /* time: set by the ledger */
    const char *route;             /* "device" or "server" */
    const char *why;
    const char *detail; /* a JSON object: rule, budget, palette, signals, thresholds */
};
/* Writes a decision down; unlike rows of what left it is not synced one by one. */
enum cr_status cr_ledger_note(cr_ledger *l, const struct cr_ledger_decision *d,
                              struct cr_error *err);
/* The decision of a request, then its rows of what left, oldest first. Either function may be NULL.
 * CR_NOT_FOUND when the ledger knows neither. */
enum cr_status cr_ledger_find(cr_ledger *l, const char *request_id,
                              void (*decision)(void *ud, const struct cr_ledger_decision *d),
                              bool (*row)(void *ud, const struct cr_ledger_row *row), void *ud,
                              struct cr_error *err);
/* Deletes what is older than `days`; *n counts rows of what left and decisions. The bytes are wiped
 * from the file. */
enum cr_status cr_ledger_prune(cr_ledger *l, double days, int64_t *n, struct cr_error *err);

/* Calls fn for the newest `limit` rows (0: all), newest first, until it returns false. */
enum cr_status cr_ledger_each(cr_ledger *l, int limit,
                              bool (*fn)(void *ud, const struct cr_ledger_row *row), void *ud,
                              struct cr_error *err);
/* Money in the rows of the last `hours`, as far as it is known. */
enum cr_status cr_ledger_spent(cr_ledger *l, double hours, double *cost, struct cr_error *err);
enum cr_status cr_ledger_sum(cr_ledger *l, struct cr_ledger_totals *out, struct cr_error *err);

#endif
