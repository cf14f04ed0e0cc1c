/* SPDX-License-Identifier: Apache-2.0 */
/* route/ledger.c: rows, kill -9 (attack 50), full disk and unwritable homes (51), two processes
 * (52). */
#include "base/bytes.h"
#include "base/mem.h"
#include "route/ledger.h"

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

static void test_survives_kill(void **state)
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

/* A file size limit stands for the full disk: the row cannot be written, begin says so. */
static void test_full_disk_refuses(void **state)
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

static void test_bad_places_refuse(void **state)
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

static void test_threads_and_processes_share(void **state)
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
        cmocka_unit_test_setup_teardown(test_survives_kill, make, clean),
        cmocka_unit_test_setup_teardown(test_full_disk_refuses, make, clean),
        cmocka_unit_test_setup_teardown(test_bad_places_refuse, make, clean),
        cmocka_unit_test(test_default_path),
        cmocka_unit_test_setup_teardown(test_threads_and_processes_share, make, clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
