/* SPDX-License-Identifier: Apache-2.0 */
/* route/ledger.c: rows, kill -9 (attack 50), full disk and unwritable homes (51), two
 * processes (52), locales (59). */
#include "locale_fixture.h"

#include "base/bytes.h"
#include "base/mem.h"
#include "route/ledger.h"
#include "route/ledger_text.h"
#include "route/sqlite_calls.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64], file[128];

static int make(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/crayon-ledger-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(file, sizeof file, "%s/state/crayon/ledger.db", folder);
    return 0;
}

static int clean(void **state)
{
    (void)state;
    static const char *const names[] = {"state/crayon/ledger.db", "state/crayon/ledger.db-wal",
                                        "state/crayon/ledger.db-shm", "state/crayon", "state"};
    char path[160];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        remove(path);
    }
    return remove(folder);
}

static const struct cr_ledger_row intent = {.request_id = "r-1",
                                            .destination = "http://127.0.0.1:9/v1/chat/completions",
                                            .model = "big",
                                            .reason = "confidence 0.20 below 0.50",
                                            .bytes_out = 100};

static struct cr_ledger_row seen[4];
static int n_seen;
static char seen_status[4][64];
static bool remember(void *ud, const struct cr_ledger_row *row)
{
    (void)ud;
    snprintf(seen_status[n_seen], sizeof seen_status[n_seen], "%s", row->status);
    seen[n_seen++] = *row;
    return n_seen < 4;
}

static void test_row_is_pending_then_done(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_ledger_totals t;
    cr_ledger *l;
    int64_t id;
    assert_int_equal(cr_ledger_open_read(&l, file, &err), CR_NOT_FOUND);
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    assert_int_equal(t.pending, 1);
    struct cr_ledger_row done = {.status = "ok",
                                 .bytes_out = 321,
                                 .bytes_in = 654,
                                 .tokens_in = 12,
                                 .tokens_out = -1,
                                 .tries = 1,
                                 .cost = -1,
                                 .duration_ms = 3.5};
    assert_int_equal(cr_ledger_finish(l, id, &done, &err), CR_OK);
    assert_int_equal(cr_ledger_finish(l, id + 7, &done, &err), CR_NOT_FOUND);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    cr_ledger_close(l);

    assert_int_equal(cr_ledger_open_read(&l, file, &err), CR_OK);
    n_seen = 0;
    assert_int_equal(cr_ledger_each(l, 0, remember, NULL, &err), CR_OK);
    assert_int_equal(n_seen, 2);
    assert_string_equal(seen_status[0], "pending"); /* newest first */
    assert_string_equal(seen_status[1], "ok");
    assert_int_equal(seen[1].bytes_out, 321);
    assert_int_equal(seen[1].tokens_in, 12);
    assert_int_equal(seen[1].tokens_out, -1);
    assert_true(seen[1].cost < 0);
    n_seen = 0;
    assert_int_equal(cr_ledger_each(l, 1, remember, NULL, &err), CR_OK);
    assert_int_equal(n_seen, 1);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    assert_int_equal(t.rows, 2);
    assert_int_equal(t.bytes_out, 421);
    assert_int_equal(t.cost_known, 0);
    assert_int_not_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK); /* opened for reading */
    cr_ledger_close(l);
}

static void test_50_survives_kill(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        cr_ledger *l;
        int64_t id;
        if (cr_ledger_open(&l, file, NULL) == CR_OK &&
            cr_ledger_begin(l, &intent, &id, NULL) == CR_OK)
            raise(SIGKILL);
        _exit(1);
    }
    int st;
    assert_int_equal(waitpid(pid, &st, 0), pid);
    assert_true(WIFSIGNALED(st));
    struct cr_ledger_totals t;
    cr_ledger *l;
    assert_int_equal(cr_ledger_open(&l, file, NULL), CR_OK);
    assert_int_equal(cr_ledger_sum(l, &t, NULL), CR_OK);
    assert_int_equal(t.pending, 1);
    assert_int_equal(t.bytes_out, 100);
    cr_ledger_close(l);
}

/* Attack 50: killed at random moments while it writes rows and notes as fast as it can. Every row
 * whose begin returned is there, the file is whole, and it goes on. */
static void test_50_killed_at_random_points(void **state)
{
    (void)state;
    enum { ROUNDS = 25 };
    int64_t acknowledged = 0, rows = 0;
    unsigned random = 12345;
    for (int round = 0; round < ROUNDS; round++) {
        int pipe_fd[2];
        assert_int_equal(pipe(pipe_fd), 0);
        pid_t pid = fork();
        if (pid == 0) {
            cr_ledger *l;
            int64_t id;
            close(pipe_fd[0]);
            if (cr_ledger_open(&l, file, NULL) != CR_OK)
                _exit(1);
            for (int i = 0; i < 100000; i++) {
                char name[32];
                snprintf(name, sizeof name, "r-%d-%d", round, i);
                struct cr_ledger_row row = intent, done = {.status = "ok", .bytes_out = 100};
                struct cr_ledger_decision d = {
                    .request_id = name, .route = "server", .why = "w", .detail = "{}"};
                row.request_id = name;
                if (cr_ledger_note(l, &d, NULL) != CR_OK ||
                    cr_ledger_begin(l, &row, &id, NULL) != CR_OK ||
                    write(pipe_fd[1], "x", 1) != 1 || cr_ledger_finish(l, id, &done, NULL) != CR_OK)
                    _exit(2);
            }
            _exit(3);
        }
        close(pipe_fd[1]);
        char buf[4096];
        ssize_t n;
        if (round % 2) /* every other one is killed at work, the rest maybe while they open */
            acknowledged += read(pipe_fd[0], buf, 1);
        random = random * 1103515245u + 12345u;
        usleep(2000 + (random >> 16) % 30000);
        kill(pid, SIGKILL);
        while ((n = read(pipe_fd[0], buf, sizeof buf)) > 0)
            acknowledged += n;
        close(pipe_fd[0]);
        int st;
        assert_int_equal(waitpid(pid, &st, 0), pid);
        assert_true(WIFSIGNALED(st));
        struct cr_ledger_totals t;
        cr_ledger *l;
        assert_int_equal(cr_ledger_open(&l, file, NULL), CR_OK);
        assert_int_equal(cr_ledger_sum(l, &t, NULL), CR_OK);
        assert_true(t.rows >= acknowledged && t.rows <= acknowledged + round + 1);
        assert_int_equal(t.failed, 0);
        assert_true(t.pending <= round + 1);
        assert_int_equal(t.bytes_out, 100 * t.rows);
        rows = t.rows;
        cr_ledger_close(l);
    }
    print_message("%lld rows acknowledged before %d kills, %lld found\n", (long long)acknowledged,
                  ROUNDS, (long long)rows);
    assert_true(acknowledged > 0);
}

static struct cr_ledger_decision found;
static char found_detail[64];
static void remember_decision(void *ud, const struct cr_ledger_decision *d)
{
    (void)ud;
    found = *d;
    snprintf(found_detail, sizeof found_detail, "%s/%s/%s", d->route, d->why, d->detail);
}

static void test_a_request_can_be_found(void **state)
{
    (void)state;
    struct cr_error err;
    cr_ledger *l;
    int64_t id;
    struct cr_ledger_decision d = {
        .request_id = "r-1", .route = "device", .why = "w", .detail = "{}"};
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_find(l, "r-1", NULL, NULL, NULL, &err), CR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "r-1"));
    assert_int_equal(cr_ledger_note(l, &d, &err), CR_OK);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    n_seen = 0;
    assert_int_equal(cr_ledger_find(l, "r-1", remember_decision, remember, NULL, &err), CR_OK);
    assert_string_equal(found_detail, "device/w/{}");
    assert_int_equal(n_seen, 2);
    assert_int_equal(cr_ledger_find(l, "r-1' OR 1=1 --", NULL, NULL, NULL, &err), CR_NOT_FOUND);
    cr_ledger_close(l);
}

static void test_prune(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_ledger_totals t;
    cr_ledger *l;
    int64_t id, n;
    struct cr_ledger_decision d = {
        .request_id = "r-1", .route = "device", .why = "w", .detail = "{}"};
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    assert_int_equal(cr_ledger_note(l, &d, &err), CR_OK);
    assert_int_equal(cr_ledger_prune(l, 1, &n, &err), CR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(cr_ledger_prune(l, -1, &n, &err), CR_INVALID);
    usleep(3000);
    assert_int_equal(cr_ledger_prune(l, 0, &n, &err), CR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    assert_int_equal(t.rows, 0);
    cr_ledger_close(l);
    char *data; /* the bytes are gone too */
    size_t len;
    assert_int_equal(cr_file_read(file, 1 << 24, &data, &len, &err), CR_OK);
    assert_null(memmem(data, len, "confidence 0.20", 15));
    cr_free(data);
}

/* Attack 54: times before 1970 and far ahead are only other texts. */
static void test_54_odd_times(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_ledger_totals t;
    cr_ledger *l;
    int64_t id, n;
    double cost;
    sqlite3 *db;
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    assert_int_equal(sqlite3_open_v2(file, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    sqlite3_busy_timeout(db, 1000);
    assert_int_equal(
        sqlite3_exec(db,
                     "UPDATE sent SET time = '2040-01-01T00:00:00.000Z', cost = 2 WHERE id = 1;"
                     "UPDATE sent SET time = '1969-07-20T20:17:40.000Z', cost = 4 WHERE id = 2;",
                     NULL, NULL, NULL),
        SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(cr_ledger_spent(l, 24, &cost, &err), CR_OK);
    assert_true(cost == 2); /* what lies ahead counts: the clock was wrong once */
    assert_int_equal(cr_ledger_spent(l, 24.0 * 36500, &cost, &err), CR_OK);
    assert_true(cost == 6);
    assert_int_equal(cr_ledger_prune(l, 36500, &n, &err), CR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(cr_ledger_prune(l, 3650, &n, &err), CR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    assert_int_equal(t.rows, 2);
    cr_ledger_close(l);
}

static void test_spent(void **state)
{
    (void)state;
    struct cr_error err;
    cr_ledger *l;
    int64_t id;
    double cost;
    struct cr_ledger_row done = {.status = "ok", .cost = 1.25},
                         unknown = {.status = "ok", .cost = -1};
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    assert_int_equal(cr_ledger_finish(l, id, &done, &err), CR_OK);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    assert_int_equal(cr_ledger_finish(l, id, &unknown, &err), CR_OK);
    assert_int_equal(cr_ledger_spent(l, 1, &cost, &err), CR_OK);
    assert_true(cost == 1.25);
    usleep(5000);
    assert_int_equal(cr_ledger_spent(l, 0.000001, &cost, &err), CR_OK);
    assert_true(cost == 0);
    cr_ledger_close(l);
}

/* A ledger of the first version is taken over as it is. */
static void test_version_1_is_widened(void **state)
{
    (void)state;
    struct cr_error err;
    struct cr_ledger_totals t;
    cr_ledger *l;
    int64_t id;
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_begin(l, &intent, &id, &err), CR_OK);
    cr_ledger_close(l);
    sqlite3 *db;
    assert_int_equal(sqlite3_open_v2(file, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db,
                                  "DROP TABLE decided; DROP INDEX sent_request;"
                                  "DROP INDEX sent_time; PRAGMA user_version = 1",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(cr_ledger_open_read(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_find(l, "r-1", NULL, NULL, NULL, &err), CR_OK);
    cr_ledger_close(l);
    struct cr_ledger_decision d = {
        .request_id = "r-2", .route = "device", .why = "w", .detail = "{}"};
    assert_int_equal(cr_ledger_open(&l, file, &err), CR_OK);
    assert_int_equal(cr_ledger_note(l, &d, &err), CR_OK);
    assert_int_equal(cr_ledger_sum(l, &t, &err), CR_OK);
    assert_int_equal(t.rows, 1);
    cr_ledger_close(l);
}

static void test_59_texts(void **state)
{
    (void)state;
    struct cr_ledger_row row = {.id = 7,
                                .time = "2026-01-02T03:04:05.678Z",
                                .request_id = "=cmd()",
                                .destination = "https://a/\"b\",c",
                                .model = "m\xff\n",
                                .reason = "",
                                .status = "ok",
                                .bytes_out = 10,
                                .bytes_in = -1,
                                .tokens_in = 3,
                                .tokens_out = -1,
                                .tries = 1,
                                .cost = 0.25,
                                .duration_ms = -1};
    struct cr_buf b;
    cr_buf_init(&b, 4096);
    speak_german(); /* attack 59 */
    assert_true(cr_ledger_csv(&b, &row) && cr_buf_add(&b, "", 1));
    assert_string_equal(b.data, "7,2026-01-02T03:04:05.678Z,\"'=cmd()\",\"https://a/\"\"b\"\",c\","
                                "\"m\xff\n\",,ok,10,,3,,1,0.25,\r\n");
    b.len = 0;
    assert_true(cr_ledger_json(&b, &row) && cr_buf_add(&b, "", 1));
    assert_string_equal(
        b.data, "{\"id\":7,\"time\":\"2026-01-02T03:04:05.678Z\",\"request_id\":\"=cmd()\","
                "\"destination\":\"https://a/\\\"b\\\",c\",\"model\":\"m?\\u000a\",\"reason\":\"\","
                "\"status\":\"ok\",\"bytes_out\":10,\"bytes_in\":null,\"tokens_in\":3,"
                "\"tokens_out\":null,\"tries\":1,\"cost\":0.25,\"duration_ms\":null}");
    setlocale(LC_ALL, "C");
    cr_buf_deinit(&b);
}

/* A file size limit stands for the full disk: the row cannot be written, begin says so. */
static void test_51_full_disk_refuses(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        cr_ledger *l;
        struct cr_error err;
        int64_t id = 5;
        if (cr_ledger_open(&l, file, &err) != CR_OK)
            _exit(1);
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit none = {.rlim_cur = 0, .rlim_max = 0};
        if (setrlimit(RLIMIT_FSIZE, &none) != 0)
            _exit(2);
        enum cr_status st = cr_ledger_begin(l, &intent, &id, &err);
        _exit(st == CR_IO && id == 0 && strstr(err.msg, "nothing was sent") ? 0 : 3);
    }
    int st;
    assert_int_equal(waitpid(pid, &st, 0), pid);
    assert_true(WIFEXITED(st));
    assert_int_equal(WEXITSTATUS(st), 0);
}

static void test_51_bad_places_refuse(void **state)
{
    (void)state;
    struct cr_error err;
    cr_ledger *l;
    assert_int_not_equal(cr_ledger_open(&l, "/dev/null/x/ledger.db", &err), CR_OK);
    assert_null(l);
    assert_int_not_equal(cr_ledger_open(&l, "/proc/nowhere/ledger.db", &err), CR_OK);
    assert_int_equal(cr_ledger_open(&l, folder, &err), CR_IO); /* a folder */
    char path[160];
    snprintf(path, sizeof path, "%s/state", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_not_equal(cr_ledger_open(&l, path, &err), CR_OK); /* does not hang */
    remove(path);
    assert_int_equal(cr_file_write(path, "this is not a database, just text", 33, &err), CR_OK);
    assert_int_equal(cr_ledger_open(&l, path, &err), CR_FORMAT);
    remove(path);
}

static void test_default_path(void **state)
{
    (void)state;
    struct cr_error err;
    char *path;
    setenv("HOME", "/h", 1);
    setenv("XDG_STATE_HOME", "/s", 1);
    assert_int_equal(cr_ledger_default_path(&path, &err), CR_OK);
    assert_string_equal(path, "/s/crayon/ledger.db");
    cr_free(path);
    setenv("XDG_STATE_HOME", "relative", 1);
    assert_int_equal(cr_ledger_default_path(&path, &err), CR_OK);
    assert_string_equal(path, "/h/.local/state/crayon/ledger.db");
    cr_free(path);
    unsetenv("HOME");
    assert_int_equal(cr_ledger_default_path(&path, &err), CR_NOT_FOUND);
    assert_null(path);
}

static void *write_rows(void *ud)
{
    for (int i = 0; i < 20; i++) {
        int64_t id;
        struct cr_ledger_row done = {.status = "ok", .bytes_out = 10};
        if (cr_ledger_begin(ud, &intent, &id, NULL) != CR_OK ||
            cr_ledger_finish(ud, id, &done, NULL) != CR_OK)
            return ud;
    }
    return NULL;
}

static void test_52_threads_and_processes_share(void **state)
{
    (void)state;
    pid_t pid = fork();
    cr_ledger *l;
    assert_int_equal(cr_ledger_open(&l, file, NULL), CR_OK);
    if (pid == 0)
        _exit(write_rows(l) ? 1 : 0);
    pthread_t t[2];
    void *bad[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&t[i], NULL, write_rows, l), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(t[i], &bad[i]);
        assert_null(bad[i]);
    }
    int st;
    assert_int_equal(waitpid(pid, &st, 0), pid);
    assert_int_equal(WEXITSTATUS(st), 0);
    struct cr_ledger_totals sum;
    assert_int_equal(cr_ledger_sum(l, &sum, NULL), CR_OK);
    assert_int_equal(sum.rows, 60);
    assert_int_equal(sum.ok, 60);
    cr_ledger_close(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_row_is_pending_then_done, make, clean),
        cmocka_unit_test_setup_teardown(test_50_survives_kill, make, clean),
        cmocka_unit_test_setup_teardown(test_50_killed_at_random_points, make, clean),
        cmocka_unit_test_setup_teardown(test_a_request_can_be_found, make, clean),
        cmocka_unit_test_setup_teardown(test_prune, make, clean),
        cmocka_unit_test_setup_teardown(test_54_odd_times, make, clean),
        cmocka_unit_test_setup_teardown(test_spent, make, clean),
        cmocka_unit_test_setup_teardown(test_version_1_is_widened, make, clean),
        cmocka_unit_test_setup_teardown(test_59_texts, make, clean),
        cmocka_unit_test_setup_teardown(test_51_full_disk_refuses, make, clean),
        cmocka_unit_test_setup_teardown(test_51_bad_places_refuse, make, clean),
        cmocka_unit_test(test_default_path),
        cmocka_unit_test_setup_teardown(test_52_threads_and_processes_share, make, clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
