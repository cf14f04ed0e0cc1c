/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of SQLite that we call; see base/lazy.h. Include it instead of theirs. */
#ifndef CR_SQLITE_CALLS_H
#define CR_SQLITE_CALLS_H

#include "base/lazy.h"

#include <sqlite3.h>

/* Opens SQLite: before any other call of it. CR_NOT_FOUND. */
enum cr_status cr_sqlite_load(struct cr_error *err);

#ifdef CRAYON_LAZY
#define CR_SQLITE_CALLS(X)                                                                         \
    X(sqlite3_bind_double);                                                                        \
    X(sqlite3_bind_int);                                                                           \
    X(sqlite3_bind_int64);                                                                         \
    X(sqlite3_bind_null);                                                                          \
    X(sqlite3_bind_text);                                                                          \
    X(sqlite3_busy_timeout);                                                                       \
    X(sqlite3_changes);                                                                            \
    X(sqlite3_close);                                                                              \
    X(sqlite3_column_double);                                                                      \
    X(sqlite3_column_int);                                                                         \
    X(sqlite3_column_int64);                                                                       \
    X(sqlite3_column_text);                                                                        \
    X(sqlite3_column_type);                                                                        \
    X(sqlite3_errmsg);                                                                             \
    X(sqlite3_errstr);                                                                             \
    X(sqlite3_exec);                                                                               \
    X(sqlite3_finalize);                                                                           \
    X(sqlite3_last_insert_rowid);                                                                  \
    X(sqlite3_libversion);                                                                         \
    X(sqlite3_open_v2);                                                                            \
    X(sqlite3_prepare_v2);                                                                         \
    X(sqlite3_sleep);                                                                              \
    X(sqlite3_snprintf);                                                                           \
    X(sqlite3_step);                                                                               \
    X(sqlite3_wal_checkpoint_v2)

struct cr_sqlite {
    CR_SQLITE_CALLS(CR_LAZY_FIELD);
};
extern struct cr_sqlite cr_sqlite;

#ifndef CR_LAZY_LISTS
#define sqlite3_bind_double cr_sqlite.sqlite3_bind_double
#define sqlite3_bind_int cr_sqlite.sqlite3_bind_int
#define sqlite3_bind_int64 cr_sqlite.sqlite3_bind_int64
#define sqlite3_bind_null cr_sqlite.sqlite3_bind_null
#define sqlite3_bind_text cr_sqlite.sqlite3_bind_text
#define sqlite3_busy_timeout cr_sqlite.sqlite3_busy_timeout
#define sqlite3_changes cr_sqlite.sqlite3_changes
#define sqlite3_close cr_sqlite.sqlite3_close
#define sqlite3_column_double cr_sqlite.sqlite3_column_double
#define sqlite3_column_int cr_sqlite.sqlite3_column_int
#define sqlite3_column_int64 cr_sqlite.sqlite3_column_int64
#define sqlite3_column_text cr_sqlite.sqlite3_column_text
#define sqlite3_column_type cr_sqlite.sqlite3_column_type
#define sqlite3_errmsg cr_sqlite.sqlite3_errmsg
#define sqlite3_errstr cr_sqlite.sqlite3_errstr
#define sqlite3_exec cr_sqlite.sqlite3_exec
#define sqlite3_finalize cr_sqlite.sqlite3_finalize
#define sqlite3_last_insert_rowid cr_sqlite.sqlite3_last_insert_rowid
#define sqlite3_libversion cr_sqlite.sqlite3_libversion
#define sqlite3_open_v2 cr_sqlite.sqlite3_open_v2
#define sqlite3_prepare_v2 cr_sqlite.sqlite3_prepare_v2
#define sqlite3_sleep cr_sqlite.sqlite3_sleep
#define sqlite3_snprintf cr_sqlite.sqlite3_snprintf
#define sqlite3_step cr_sqlite.sqlite3_step
#define sqlite3_wal_checkpoint_v2 cr_sqlite.sqlite3_wal_checkpoint_v2

#endif
#endif
#endif
