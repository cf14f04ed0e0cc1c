/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory this process can still take, from the system and its limits. */
#include "base/mem.h"
#include "tune/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The number behind `key` in a file, or on its own when key is "". False: not there, or "max". */
static bool number_in(const char *path, const char *key, uint64_t *out)
{
    char line[256];
    bool found = false;
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof line, f)) {
        size_t n = strlen(key);
        char *end, *from = line + n;
        if (strncmp(line, key, n) != 0)
            continue;
        unsigned long long v = strtoull(from, &end, 10);
        found = end != from;
        *out = v;
    }
    if (f)
        fclose(f);
    return found;
}

/* The cgroup (version 2) of this process, "" when it cannot be read. */
static void own_cgroup(char *to, size_t size)
{
    char line[512];
    FILE *f = fopen("/proc/self/cgroup", "re");
    to[0] = '\0';
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::", 3) == 0)
            snprintf(to, size, "%s", line + 3);
    }
    if (f)
        fclose(f);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t cgroup_room(void)
{
    char group[512], path[600];
    uint64_t room = UINT64_MAX, max, now, cache;
    own_cgroup(group, sizeof group);
    for (int i = 0; i < 2; i++) { /* its own name may not be visible inside a container */
        const char *dir = i ? "" : group;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", dir);
        if (!number_in(path, "", &max))
            continue;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", dir);
        if (!number_in(path, "", &now))
            continue;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.stat", dir);
        if (number_in(path, "file ", &cache)) /* the page cache gives way */
            now = now > cache ? now - cache : 0;
        room = least(room, max > now ? max - now : 0);
    }
    return room;
}

uint64_t cr_memory_available(void)
{
    uint64_t room = cgroup_room(), kib, pages;
    struct rlimit limit;
    if (number_in("/proc/meminfo", "MemAvailable:", &kib))
        room = least(room, kib * 1024);
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        number_in("/proc/self/statm", "", &pages)) {
        uint64_t used = pages * (uint64_t)sysconf(_SC_PAGESIZE);
        room = least(room, limit.rlim_cur > used ? limit.rlim_cur - used : 0);
    }
    return room;
}
