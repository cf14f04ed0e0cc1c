/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon version`: the program and what was built in. */
#include "jsonout.h"
#include "messages.h"
#include "verbs.h"

static const struct {
    const char *name;
    bool on;
} parts[] = {
#ifdef CRAYON_JSON
    {"json", true},
#else
    {"json", false},
#endif
#ifdef CRAYON_LZMA
    {"lzma", true},
#else
    {"lzma", false},
#endif
#ifdef CRAYON_TUNE
    {"tune", true},
#else
    {"tune", false},
#endif
#ifdef CRAYON_MPI
    {"mpi", true},
#else
    {"mpi", false},
#endif
#ifdef CRAYON_ROUTE
    {"route", true},
#else
    {"route", false},
#endif
#ifdef CRAYON_SERVE
    {"serve", true},
#else
    {"serve", false},
#endif
#ifdef CRAYON_CUDA
    {"cuda", true},
#else
    {"cuda", false},
#endif
};
enum { N_PARTS = sizeof parts / sizeof *parts };

#if defined(__x86_64__)
static const char machine[] = "x86_64";
#elif defined(__aarch64__)
static const char machine[] = "aarch64";
#else
static const char machine[] = "other";
#endif

int cr_cli_version(const struct cr_args *a)
{
    if (!cr_arg_flag(a, CR_OPT_JSON)) {
        cr_outf("crayon %s (%s;", CR_VERSION, machine);
        for (size_t i = 0; i < N_PARTS; i++)
            cr_outf(" %s%s", parts[i].on ? "+" : "-", parts[i].name);
        cr_out_puts(")\n");
        return 0;
    }
    struct cr_buf b;
    struct cr_json j;
    cr_buf_init(&b, 1 << 16);
    cr_json_begin(&j, &b, true);
    cr_json_open(&j, NULL, '{');
    cr_json_str(&j, "version", CR_VERSION);
    cr_json_str(&j, "machine", machine);
    cr_json_str(&j, "compiler", __VERSION__);
    cr_json_open(&j, "built_with", '{');
    for (size_t i = 0; i < N_PARTS; i++)
        cr_json_bool(&j, parts[i].name, parts[i].on);
    cr_json_close(&j);
    cr_json_close(&j);
    int code = cr_json_flush(&j);
    cr_buf_deinit(&b);
    return code;
}
