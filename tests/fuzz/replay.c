/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small main for fuzz targets outside libFuzzer: runs every file of the corpus folder whole,
 * truncated at many lengths, and with seeded byte changes. usage: fuzz_NAME FOLDER
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state = 1;

static uint64_t next(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

/* A copy of exactly n bytes, so that a sanitizer sees a read past the end. */
static void run_exact(const uint8_t *data, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy)
        exit(1);
    memcpy(copy, data, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

static void run_file(const char *path)
{
    static uint8_t data[1 << 20], changed[1 << 20];
    FILE *f = fopen(path, "rb");
    if (!f)
        return;
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    run_exact(data, n);
    size_t step = n / 400 + 1;
    for (size_t cut = 0; cut < n; cut += step)
        run_exact(data, cut);
    for (int i = 0; n && i < 400; i++) {
        memcpy(changed, data, n);
        for (uint64_t k = next() % 4 + 1; k; k--)
            changed[next() % n] = (uint8_t)(next() % 3 ? next() : next() % 2 ? 0xff : 0);
        run_exact(changed, n);
    }
}

int main(int argc, char **argv)
{
    const char *folder = argc > 1 ? argv[1] : ".";
    DIR *d = opendir(folder);
    if (!d) {
        fprintf(stderr, "no corpus: %s\n", folder);
        return 1;
    }
    int n_files = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char path[4096];
        if (e->d_name[0] == '.' ||
            snprintf(path, sizeof path, "%s/%s", folder, e->d_name) >= (int)sizeof path)
            continue;
        run_file(path);
        n_files++;
    }
    closedir(d);
    printf("%d corpus files\n", n_files);
    return n_files == 0;
}
