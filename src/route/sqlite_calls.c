/* SPDX-License-Identifier: Apache-2.0 */
#include "route/sqlite_calls.h"

#ifdef CRAYON_LAZY
struct cr_sqlite cr_sqlite;

CR_LAZY_NOTE(CR_LIBSQLITE, "ledger", "keeps the ledger of what left the device");

static void find(struct cr_lazy *lib)
{
    CR_SQLITE_CALLS(CR_LAZY_FIND);
}

enum cr_status cr_sqlite_load(struct cr_error *err)
{
    static struct cr_lazy lib = {.file = CR_LIBSQLITE, .find = find};
    return cr_lazy_open(&lib, err);
}
#else
enum cr_status cr_sqlite_load(struct cr_error *err)
{
    (void)err;
    return CR_OK;
}
#endif
