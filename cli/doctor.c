/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon doctor`: what this machine and this build can do, and what would get in the way. Exit 1
 * when something is broken; what is merely missing is a note.
 */
#include "base/mem.h"
#include "common.h"
#include "config.h"
#include "info.h"
#include "kernels/kernels.h"
#include "messages.h"
#include "verbs.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>
#ifdef CRAYON_JSON
#include <jansson.h>
#endif
#ifdef CRAYON_ROUTE
#include "route/curl_calls.h"
#include "route/ledger.h"
#include "route/offline.h"
#include "route/sqlite_calls.h"
#endif

/* The value after "KEY" and ":" in a file of /proc; "" when it is not there. */
static void proc_value(const char *path, const char *key, char *out, size_t size)
{
    char line[512];
    FILE *f = fopen(path, "r");
    out[0] = '\0';
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) || !colon)
            continue;
        snprintf(out, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
        out[strcspn(out, "\n")] = '\0';
        break;
    }
    if (f)
        fclose(f);
}

static uint64_t memory_kib(const char *key)
{
    char text[64];
    uint64_t v = 0;
    proc_value("/proc/meminfo", key, text, sizeof text);
    text[strcspn(text, " ")] = '\0';
    return cr_parse_seed(text, &v) ? v : 0;
}

static void machine(struct cr_facts *f)
{
    static const struct {
        enum cr_cpu level;
        const char *name;
    } levels[] = {{CR_CPU_REF, "ref"},         {CR_CPU_AVX2, "avx2"}, {CR_CPU_AVXVNNI, "avxvnni"},
                  {CR_CPU_AVX512, "avx512"},   {CR_CPU_AMX, "amx"},   {CR_CPU_NEON, "neon"},
                  {CR_CPU_DOTPROD, "dotprod"}, {CR_CPU_I8MM, "i8mm"}};
    struct utsname u;
    char cpu[256];
    struct cr_buf b;
    proc_value("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    if (!uname(&u)) {
        cr_fact_str(f, "system", u.sysname);
        cr_fact_str(f, "kernel", u.release);
        cr_fact_str(f, "machine", u.machine);
    }
    cr_fact_str(f, "processor", *cpu ? cpu : NULL);
    cr_fact_int(f, "cores", sysconf(_SC_NPROCESSORS_ONLN));
    cr_buf_init(&b, 256);
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (cr_cpu_has(levels[i].level))
            cr_buf_printf(&b, "%s%s", b.len ? ", " : "", levels[i].name);
    cr_fact_str(f, "kernel_levels", b.data);
    cr_buf_deinit(&b);
    cr_fact_bytes(f, "memory", memory_kib("MemTotal") * 1024);
    cr_fact_bytes(f, "memory_available", memory_kib("MemAvailable") * 1024);
}

static void libraries(struct cr_facts *f)
{
    char pcre2[64] = "";
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    pcre2[strcspn(pcre2, " ")] = '\0';
    cr_fact_str(f, "pcre2", pcre2);
    cr_fact_str(f, "utf8proc", utf8proc_version());
#ifdef CRAYON_JSON
    cr_fact_str(f, "jansson", JANSSON_VERSION);
#endif
#ifdef CRAYON_ROUTE
    struct cr_error err;
    cr_fact_str(f, "sqlite", cr_sqlite_load(&err) ? err.msg : sqlite3_libversion());
    cr_fact_str(f, "curl",
                cr_curl_load(&err) ? err.msg : curl_version_info(CURLVERSION_NOW)->version);
#endif
}

/* The model that runs without -m: is it there, does it open, how long does that take? */
static bool embedded(struct cr_facts *f)
{
    struct cr_error err;
    char *path, *pool;
    cr_model *m;
    if (cr_model_locate(getenv("CRAYON_MODEL"), &path, &err)) {
        cr_fact_str(f, "default_model", err.msg);
        return false;
    }
    cr_fact_str(f, "default_model", path);
    double start = cr_now();
    enum cr_status st = cr_model_open(&m, path, NULL, &err);
    cr_fact_str(f, "it_opens", st ? err.msg : "yes");
    if (!st)
        cr_fact_real(f, "opening_ms", 1e3 * (cr_now() - start));
    cr_model_close(st ? NULL : m);
    pool = cr_pool_beside(path);
    cr_fact_str(f, "its_pool", pool ? pool : "none");
    cr_free(pool);
    cr_free(path);
    return !st;
}

/* The deepest folder of the path that exists decides whether the rest can be made. */
static void writable(struct cr_facts *f, const char *key, const char *variable, const char *below)
{
    const char *base = getenv(variable), *home = getenv("HOME");
    char *path = base && base[0] == '/'   ? cr_asprintf("%s/crayon", base)
                 : home && home[0] == '/' ? cr_asprintf("%s/%s/crayon", home, below)
                                          : NULL;
    if (!path) {
        cr_fact_str(f, key, "none: HOME is not set");
        return;
    }
    char *probe = cr_strdup(path), *slash;
    while (probe && access(probe, F_OK) && (slash = strrchr(probe, '/')) != NULL && slash > probe)
        *slash = '\0';
    bool ok = probe && access(probe, W_OK) == 0;
    char *text = cr_asprintf("%s%s", path, ok ? "" : " (not writable)");
    cr_fact_str(f, key, text ? text : path);
    cr_free(text);
    cr_free(probe);
    cr_free(path);
}

#ifdef CRAYON_ROUTE
/* Tried in a child, since there is no way back. */
static const char *offline_works(void)
{
    pid_t pid = fork();
    if (pid < 0)
        return "unknown: no process could be made";
    if (!pid)
        _exit(cr_offline_enter(CR_OFFLINE_ALL, NULL) || !cr_offline_holds());
    int status;
    if (waitpid(pid, &status, 0) != pid)
        return "unknown";
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "yes" : "no: the kernel has no seccomp";
}
#endif

/* What the files say, or what is wrong with them. */
static bool config(struct cr_facts *f)
{
    struct cr_error err;
    struct cr_config c;
    char text[64];
    bool ok = cr_config_read(&c, &err) == CR_OK;
    snprintf(text, sizeof text, "%zu", c.n);
    cr_fact_str(f, "settings_in_files", ok ? text : err.msg);
    cr_config_deinit(&c);
    return ok;
}

#ifdef CRAYON_ROUTE
/* Opened for reading only: looking must not make one. */
static bool ledger(struct cr_facts *f)
{
    struct cr_error err;
    struct cr_ledger_totals t;
    cr_ledger *l;
    char text[96];
    enum cr_status st = cr_ledger_open_read(&l, NULL, &err);
    if (st == CR_OK)
        st = cr_ledger_sum(l, &t, &err);
    if (st == CR_OK)
        snprintf(text, sizeof text, "%lld rows, %lld bytes left", (long long)t.rows,
                 (long long)t.bytes_out);
    cr_fact_str(f, "ledger", st == CR_OK ? text : st == CR_NOT_FOUND ? "none yet" : err.msg);
    cr_ledger_close(l);
    return st == CR_OK || st == CR_NOT_FOUND;
}
#endif

int cr_cli_doctor(const struct cr_args *a)
{
    struct cr_facts f;
    cr_facts_begin(&f, cr_arg_flag(a, CR_OPT_JSON));
    cr_fact_str(&f, "crayon", CR_VERSION);
    machine(&f);
    libraries(&f);
#ifdef CRAYON_ROUTE
    cr_fact_str(&f, "offline_mode", offline_works());
    cr_fact_int(&f, "landlock_version", cr_offline_landlock_version());
#else
    cr_fact_str(&f, "offline_mode", "not built in");
#endif
    bool ok = embedded(&f);
    writable(&f, "data_folder", "XDG_DATA_HOME", ".local/share");
    writable(&f, "state_folder", "XDG_STATE_HOME", ".local/state");
    writable(&f, "config_folder", "XDG_CONFIG_HOME", ".config");
    bool files = config(&f);
#ifdef CRAYON_ROUTE
    files = ledger(&f) && files;
#endif
    cr_list_models(&f);
    cr_facts_line(&f, "%s", "");
    cr_fact_str(&f, "verdict",
                !ok     ? "no usable default model"
                : files ? "ready"
                        : "a configuration file or the ledger is broken");
    int code = cr_facts_print(&f);
    return code ? code : ok && files ? 0 : 1;
}
