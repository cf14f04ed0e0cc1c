/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger in SQLite. WAL with synchronous=FULL: a commit is on the disk before the first byte
 * leaves. A folder or file that cannot be written makes open or begin fail, and then the router
 * sends nothing.
 */
#include "route/ledger.h"

#include "base/mem.h"
#include "route/sqlite_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SCHEMA_VERSION = 2, BUSY_MS = 5000 };

struct cr_ledger {
    sqlite3 *db;
    char *path;
    int version;          /* found at opening */
    pthread_mutex_t lock; /* one statement at a time: errors are read from the handle */
};

static const char schema[] = "CREATE TABLE sent ("
                             " id INTEGER PRIMARY KEY AUTOINCREMENT,"
                             " time TEXT NOT NULL,"
                             " request_id TEXT NOT NULL,"
                             " destination TEXT NOT NULL,"
                             " model TEXT NOT NULL,"
                             " reason TEXT NOT NULL,"
                             " status TEXT NOT NULL,"
                             " bytes_out INTEGER NOT NULL,"
                             " bytes_in INTEGER,"
                             " tokens_in INTEGER,"
                             " tokens_out INTEGER,"
                             " tries INTEGER,"
                             " cost REAL,"
                             " duration_ms REAL);";
static const char schema_2[] = "CREATE TABLE decided ("
                               " request_id TEXT PRIMARY KEY,"
                               " time TEXT NOT NULL,"
                               " route TEXT NOT NULL,"
                               " why TEXT NOT NULL,"
                               " detail TEXT NOT NULL) WITHOUT ROWID;"
                               "CREATE INDEX decided_time ON decided (time);"
                               "CREATE INDEX sent_request ON sent (request_id);"
                               "CREATE INDEX sent_time ON sent (time);"
                               "PRAGMA user_version = 2;";

enum cr_status cr_ledger_default_path(char **path, struct cr_error *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    *path = NULL;
    if (state && state[0] == '/')
        *path = cr_asprintf("%s/crayon/ledger.db", state);
    else if (home && home[0] == '/')
        *path = cr_asprintf("%s/.local/state/crayon/ledger.db", home);
    else
        return cr_error_set(err, CR_NOT_FOUND,
                            "ledger: neither $XDG_STATE_HOME nor $HOME is an absolute path");
    return *path ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "ledger: no memory for its path");
}

/* mkdir -p for the folder of `path`, 0700. */
static enum cr_status make_folder(const char *path, struct cr_error *err)
{
    char *dir = cr_strdup(path);
    if (!dir)
        return cr_error_set(err, CR_NO_MEMORY, "ledger: no memory for its path");
    enum cr_status st = CR_OK;
    for (char *p = strchr(dir + 1, '/'); p && st == CR_OK; p = strchr(p + 1, '/')) {
        *p = '\0';
        if (mkdir(dir, 0700) != 0 && errno != EEXIST)
            st = cr_error_errno(err, "cannot make the ledger's folder", dir);
        *p = '/';
    }
    cr_free(dir);
    return st;
}

static enum cr_status db_error(const cr_ledger *l, int rc, const char *what, struct cr_error *err)
{
    enum cr_status st = rc == SQLITE_NOMEM                            ? CR_NO_MEMORY
                        : rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT ? CR_FORMAT
                                                                      : CR_IO;
    return cr_error_set(err, st, "%s: %s: %s", l->path, what,
                        l->db ? sqlite3_errmsg(l->db) : sqlite3_errstr(rc));
}

static int user_version(sqlite3 *db, int *version)
{
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &q, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(q);
        *version = rc == SQLITE_ROW ? sqlite3_column_int(q, 0) : 0;
        rc = rc == SQLITE_ROW ? SQLITE_OK : rc;
    }
    sqlite3_finalize(q);
    return rc;
}

static enum cr_status prepare_file(cr_ledger *l, bool reading, struct cr_error *err)
{
    sqlite3_busy_timeout(l->db, BUSY_MS);
    int version = 0, rc = SQLITE_OK;
    if (!reading) {
        /* SQLite does not wait here when two processes turn the log on at once, so we do. */
        for (int waited = 0; waited <= BUSY_MS; waited += 10) {
            rc = sqlite3_exec(l->db,
                              "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                              "PRAGMA secure_delete=ON;",
                              NULL, NULL, NULL);
            if (rc != SQLITE_BUSY && rc != SQLITE_LOCKED)
                break;
            sqlite3_sleep(10);
        }
        if (rc == SQLITE_OK) /* two processes may come here together */
            rc = sqlite3_exec(l->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    }
    if (rc == SQLITE_OK)
        rc = user_version(l->db, &version);
    if (rc == SQLITE_OK && !reading && version == 0)
        rc = sqlite3_exec(l->db, schema, NULL, NULL, NULL);
    if (rc == SQLITE_OK && !reading && version < 2)
        rc = sqlite3_exec(l->db, schema_2, NULL, NULL, NULL);
    l->version = reading ? version : SCHEMA_VERSION;
    if (rc == SQLITE_OK && !reading)
        rc = sqlite3_exec(l->db, "COMMIT", NULL, NULL, NULL);
    if (rc != SQLITE_OK)
        return db_error(l, rc, "cannot open the ledger", err);
    if (version > SCHEMA_VERSION || (reading && version == 0))
        return cr_error_set(err, CR_FORMAT, "%s: want a ledger of version %d, found %d", l->path,
                            SCHEMA_VERSION, version);
    return CR_OK;
}

static enum cr_status open_mode(cr_ledger **out, const char *path, bool reading,
                                struct cr_error *err)
{
    *out = NULL;
    enum cr_status st = cr_sqlite_load(err);
    if (st != CR_OK)
        return st;
    cr_ledger *l = cr_alloc0(1, sizeof *l);
    if (!l)
        return cr_error_set(err, CR_NO_MEMORY, "ledger: out of memory");
    pthread_mutex_init(&l->lock, NULL);
    if (path) {
        l->path = cr_strdup(path);
        st = l->path ? CR_OK : cr_error_set(err, CR_NO_MEMORY, "ledger: out of memory");
    } else {
        st = cr_ledger_default_path(&l->path, err);
    }
    if (st == CR_OK && !reading)
        st = make_folder(l->path, err);
    if (st != CR_OK)
        goto fail;
    /* Made by us first, so that its mode is right and nothing but a regular file is opened. */
    int fd =
        open(l->path, (reading ? O_RDONLY : O_RDWR | O_CREAT) | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW,
             0600);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        st = cr_error_errno(err, "cannot open the ledger", l->path);
        if (fd >= 0)
            close(fd);
        goto fail;
    }
    close(fd);
    if (!S_ISREG(info.st_mode)) {
        st = cr_error_set(err, CR_FORMAT, "%s: want a ledger, found something that is no file",
                          l->path);
        goto fail;
    }
    int rc = sqlite3_open_v2(
        l->path, &l->db,
        (reading ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE) | SQLITE_OPEN_FULLMUTEX, NULL);
    st = rc == SQLITE_OK ? prepare_file(l, reading, err)
                         : db_error(l, rc, "cannot open the ledger", err);
    if (st != CR_OK)
        goto fail;
    *out = l;
    return CR_OK;
fail:
    cr_ledger_close(l);
    return st;
}

enum cr_status cr_ledger_open(cr_ledger **out, const char *path, struct cr_error *err)
{
    return open_mode(out, path, false, err);
}

enum cr_status cr_ledger_open_read(cr_ledger **out, const char *path, struct cr_error *err)
{
    return open_mode(out, path, true, err);
}

void cr_ledger_close(cr_ledger *l)
{
    if (!l)
        return;
    sqlite3_close(l->db);
    pthread_mutex_destroy(&l->lock);
    cr_free(l->path);
    cr_free(l);
}

const char *cr_ledger_path(const cr_ledger *l)
{
    return l->path;
}

/* The time `hours` ago. A clock that jumps changes which rows count, nothing else. */
static void time_text(char text[32], double hours)
{
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec -= (time_t)(hours * 3600);
    gmtime_r(&ts.tv_sec, &tm);
    char seconds[24];
    strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &tm);
    sqlite3_snprintf(32, text, "%s.%03dZ", seconds, (int)(ts.tv_nsec / 1000000));
}

static int bind_text(sqlite3_stmt *q, int at, const char *s)
{
    return sqlite3_bind_text(q, at, s ? s : "", -1, SQLITE_TRANSIENT);
}

static int bind_known(sqlite3_stmt *q, int at, int64_t v)
{
    return v < 0 ? sqlite3_bind_null(q, at) : sqlite3_bind_int64(q, at, v);
}

static int bind_known_real(sqlite3_stmt *q, int at, double v)
{
    return v >= 0 ? sqlite3_bind_double(q, at, v) : sqlite3_bind_null(q, at);
}

enum cr_status cr_ledger_begin(cr_ledger *l, const struct cr_ledger_row *intent, int64_t *id,
                               struct cr_error *err)
{
    static const char sql[] =
        "INSERT INTO sent (time, request_id, destination, model, reason, status, bytes_out)"
        " VALUES (?, ?, ?, ?, ?, 'pending', ?)";
    char when[32];
    sqlite3_stmt *q = NULL;
    *id = 0;
    time_text(when, 0);
    pthread_mutex_lock(&l->lock);
    int rc = sqlite3_prepare_v2(l->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK) {
        bind_text(q, 1, when);
        bind_text(q, 2, intent->request_id);
        bind_text(q, 3, intent->destination);
        bind_text(q, 4, intent->model);
        bind_text(q, 5, intent->reason);
        sqlite3_bind_int64(q, 6, intent->bytes_out);
        rc = sqlite3_step(q);
    }
    enum cr_status st = CR_OK;
    if (rc == SQLITE_DONE)
        *id = sqlite3_last_insert_rowid(l->db);
    else
        st = db_error(l, rc, "cannot record what would leave, so nothing was sent", err);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&l->lock);
    return st;
}

enum cr_status cr_ledger_finish(cr_ledger *l, int64_t id, const struct cr_ledger_row *done,
                                struct cr_error *err)
{
    static const char sql[] =
        "UPDATE sent SET status = ?, bytes_out = ?, bytes_in = ?, tokens_in = ?, tokens_out = ?,"
        " tries = ?, cost = ?, duration_ms = ? WHERE id = ?";
    sqlite3_stmt *q = NULL;
    pthread_mutex_lock(&l->lock);
    int rc = sqlite3_prepare_v2(l->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK) {
        bind_text(q, 1, done->status);
        sqlite3_bind_int64(q, 2, done->bytes_out);
        bind_known(q, 3, done->bytes_in);
        bind_known(q, 4, done->tokens_in);
        bind_known(q, 5, done->tokens_out);
        bind_known(q, 6, done->tries);
        bind_known_real(q, 7, done->cost);
        bind_known_real(q, 8, done->duration_ms);
        sqlite3_bind_int64(q, 9, id);
        rc = sqlite3_step(q);
    }
    enum cr_status st = CR_OK;
    if (rc != SQLITE_DONE)
        st = db_error(l, rc, "cannot complete a row, it stays pending", err);
    else if (sqlite3_changes(l->db) != 1)
        st = cr_error_set(err, CR_NOT_FOUND, "%s: there is no row %lld", l->path, (long long)id);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&l->lock);
    return st;
}

static const char *column_text(sqlite3_stmt *q, int at)
{
    const unsigned char *s = sqlite3_column_text(q, at);
    return s ? (const char *)s : "";
}

static int64_t column_known(sqlite3_stmt *q, int at)
{
    return sqlite3_column_type(q, at) == SQLITE_NULL ? -1 : sqlite3_column_int64(q, at);
}

static double column_known_real(sqlite3_stmt *q, int at)
{
    return sqlite3_column_type(q, at) == SQLITE_NULL ? -1 : sqlite3_column_double(q, at);
}

#define ROW_COLUMNS                                                                                \
    "SELECT id, time, request_id, destination, model, reason, status, bytes_out, bytes_in,"        \
    " tokens_in, tokens_out, tries, cost, duration_ms FROM sent "

/* Steps through a prepared SELECT of ROW_COLUMNS. */
static int step_rows(sqlite3_stmt *q, bool (*fn)(void *ud, const struct cr_ledger_row *row),
                     void *ud, int64_t *n)
{
    bool go_on = true;
    int rc = SQLITE_ROW;
    while (rc == SQLITE_ROW) {
        rc = go_on ? sqlite3_step(q) : SQLITE_DONE;
        if (rc != SQLITE_ROW)
            break;
        struct cr_ledger_row row = {
            .id = sqlite3_column_int64(q, 0),
            .time = column_text(q, 1),
            .request_id = column_text(q, 2),
            .destination = column_text(q, 3),
            .model = column_text(q, 4),
            .reason = column_text(q, 5),
            .status = column_text(q, 6),
            .bytes_out = sqlite3_column_int64(q, 7),
            .bytes_in = column_known(q, 8),
            .tokens_in = column_known(q, 9),
            .tokens_out = column_known(q, 10),
            .tries = column_known(q, 11),
            .cost = column_known_real(q, 12),
            .duration_ms = column_known_real(q, 13),
        };
        ++*n;
        go_on = !fn || fn(ud, &row);
    }
    return rc;
}

enum cr_status cr_ledger_each(cr_ledger *l, int limit,
                              bool (*fn)(void *ud, const struct cr_ledger_row *row), void *ud,
                              struct cr_error *err)
{
    sqlite3_stmt *q = NULL;
    int64_t n = 0;
    pthread_mutex_lock(&l->lock);
    int rc = sqlite3_prepare_v2(l->db, ROW_COLUMNS "ORDER BY id DESC LIMIT ?", -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int(q, 1, limit > 0 ? limit : -1);
    if (rc == SQLITE_OK)
        rc = step_rows(q, fn, ud, &n);
    enum cr_status st = rc == SQLITE_DONE ? CR_OK : db_error(l, rc, "cannot read", err);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&l->lock);
    return st;
}

/* A decision that is lost in a power cut loses an explanation, not a record of what left, so it
 * does not wait for the disk. */
enum cr_status cr_ledger_note(cr_ledger *l, const struct cr_ledger_decision *d,
                              struct cr_error *err)
{
    static const char sql[] =
        "INSERT OR REPLACE INTO decided (request_id, time, route, why, detail)"
        " VALUES (?, ?, ?, ?, ?)";
    char when[32];
    sqlite3_stmt *q = NULL;
    time_text(when, 0);
    pthread_mutex_lock(&l->lock);
    sqlite3_exec(l->db, "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
    int rc = sqlite3_prepare_v2(l->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK) {
        bind_text(q, 1, d->request_id);
        bind_text(q, 2, when);
        bind_text(q, 3, d->route);
        bind_text(q, 4, d->why);
        bind_text(q, 5, d->detail);
        rc = sqlite3_step(q);
    }
    enum cr_status st = rc == SQLITE_DONE ? CR_OK : db_error(l, rc, "cannot note a decision", err);
    sqlite3_finalize(q);
    rc = sqlite3_exec(l->db, "PRAGMA synchronous=FULL", NULL, NULL, NULL);
    if (rc != SQLITE_OK && st == CR_OK)
        st = db_error(l, rc, "cannot note a decision", err);
    pthread_mutex_unlock(&l->lock);
    return st;
}

static int find_decision(cr_ledger *l, const char *id,
                         void (*fn)(void *ud, const struct cr_ledger_decision *d), void *ud,
                         int64_t *n)
{
    sqlite3_stmt *q = NULL;
    if (l->version < 2) /* an old ledger, opened for reading */
        return SQLITE_DONE;
    int rc = sqlite3_prepare_v2(
        l->db, "SELECT request_id, time, route, why, detail FROM decided WHERE request_id = ?", -1,
        &q, NULL);
    if (rc == SQLITE_OK)
        rc = bind_text(q, 1, id);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        struct cr_ledger_decision d = {.request_id = column_text(q, 0),
                                       .time = column_text(q, 1),
                                       .route = column_text(q, 2),
                                       .why = column_text(q, 3),
                                       .detail = column_text(q, 4)};
        ++*n;
        if (fn)
            fn(ud, &d);
        rc = SQLITE_DONE;
    }
    sqlite3_finalize(q);
    return rc;
}

enum cr_status cr_ledger_find(cr_ledger *l, const char *request_id,
                              void (*decision)(void *ud, const struct cr_ledger_decision *d),
                              bool (*row)(void *ud, const struct cr_ledger_row *row), void *ud,
                              struct cr_error *err)
{
    sqlite3_stmt *q = NULL;
    int64_t n = 0;
    enum cr_status st = CR_OK;
    pthread_mutex_lock(&l->lock);
    int rc = find_decision(l, request_id, decision, ud, &n);
    if (rc == SQLITE_DONE)
        rc =
            sqlite3_prepare_v2(l->db, ROW_COLUMNS "WHERE request_id = ? ORDER BY id", -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = bind_text(q, 1, request_id);
    if (rc == SQLITE_OK)
        rc = step_rows(q, row, ud, &n);
    if (rc != SQLITE_DONE)
        st = db_error(l, rc, "cannot read", err);
    else if (n == 0)
        st = cr_error_set(err, CR_NOT_FOUND, "%s: there is no request \"%.80s\"", l->path,
                          request_id);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&l->lock);
    return st;
}

static int delete_before(cr_ledger *l, const char *sql, const char *before, int64_t *n)
{
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(l->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = bind_text(q, 1, before);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    if (rc == SQLITE_DONE)
        *n += sqlite3_changes(l->db);
    sqlite3_finalize(q);
    return rc;
}

enum cr_status cr_ledger_prune(cr_ledger *l, double days, int64_t *n, struct cr_error *err)
{
    char before[32];
    *n = 0;
    if (!(days >= 0 && days <= 36500))
        return cr_error_set(err, CR_INVALID, "prune: want 0 to 36500 days, found %g", days);
    time_text(before, 24 * days);
    pthread_mutex_lock(&l->lock);
    int rc = delete_before(l, "DELETE FROM sent WHERE time < ?", before, n);
    if (rc == SQLITE_DONE)
        rc = delete_before(l, "DELETE FROM decided WHERE time < ?", before, n);
    if (rc == SQLITE_DONE) /* out of the log too; while another process reads it stays there */
        sqlite3_wal_checkpoint_v2(l->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    enum cr_status st = rc == SQLITE_DONE ? CR_OK : db_error(l, rc, "cannot prune", err);
    pthread_mutex_unlock(&l->lock);
    return st;
}

enum cr_status cr_ledger_spent(cr_ledger *l, double hours, double *cost, struct cr_error *err)
{
    char since[32];
    sqlite3_stmt *q = NULL;
    *cost = 0;
    time_text(since, hours);
    pthread_mutex_lock(&l->lock);
    int rc = sqlite3_prepare_v2(l->db, "SELECT ifnull(sum(cost), 0) FROM sent WHERE time >= ?", -1,
                                &q, NULL);
    if (rc == SQLITE_OK) {
        bind_text(q, 1, since);
        rc = sqlite3_step(q);
    }
    enum cr_status st = CR_OK;
    if (rc == SQLITE_ROW)
        *cost = sqlite3_column_double(q, 0);
    else
        st = db_error(l, rc, "cannot read", err);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&l->lock);
    return st;
}

enum cr_status cr_ledger_sum(cr_ledger *l, struct cr_ledger_totals *out, struct cr_error *err)
{
    static const char sql[] =
        "SELECT count(*), ifnull(sum(status = 'ok'), 0), ifnull(sum(status = 'pending'), 0),"
        " ifnull(sum(bytes_out), 0), ifnull(sum(bytes_in), 0), ifnull(sum(tokens_in), 0),"
        " ifnull(sum(tokens_out), 0), ifnull(sum(cost), 0), count(cost) FROM sent";
    sqlite3_stmt *q = NULL;
    *out = (struct cr_ledger_totals){0};
    pthread_mutex_lock(&l->lock);
    int rc = sqlite3_prepare_v2(l->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    enum cr_status st = CR_OK;
    if (rc == SQLITE_ROW)
        *out = (struct cr_ledger_totals){
            .rows = sqlite3_column_int64(q, 0),
            .ok = sqlite3_column_int64(q, 1),
            .pending = sqlite3_column_int64(q, 2),
            .failed = sqlite3_column_int64(q, 0) - sqlite3_column_int64(q, 1) -
                      sqlite3_column_int64(q, 2),
            .bytes_out = sqlite3_column_int64(q, 3),
            .bytes_in = sqlite3_column_int64(q, 4),
            .tokens_in = sqlite3_column_int64(q, 5),
            .tokens_out = sqlite3_column_int64(q, 6),
            .cost = sqlite3_column_double(q, 7),
            .cost_known = sqlite3_column_int64(q, 8),
        };
    else
        st = db_error(l, rc, "cannot read", err);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&l->lock);
    return st;
}
