/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task files on the command line: files, and folders of files. Of a folder the files of one split
 * are taken (NAME.SPLIT.jsonl and the like, also .csv and .xz), in the order of their names; if it
 * has none of that split, all data files whose names carry no split.
 */
#ifndef CR_TASKS_H
#define CR_TASKS_H

#include "options.h"

struct cr_paths {
    char **v; /* [n] */
    size_t n, cap;
};

/* Files of --tasks and of the operands. CR_NOT_FOUND when there is none at all. Free with
 * cr_paths_deinit in both cases. */
enum cr_status cr_task_paths(struct cr_paths *out, const struct cr_args *a, const char *split,
                             struct cr_error *err);
enum cr_status cr_paths_add(struct cr_paths *p, const char *path, struct cr_error *err);
/* Those from `first` on, by name. */
void cr_paths_sort(struct cr_paths *p, size_t first);
void cr_paths_deinit(struct cr_paths *p);
/* "arc_easy" of "data/arc_easy.test.jsonl.xz": file name without split and endings. Free with
 * cr_free; NULL: out of memory. */
char *cr_task_stem(const char *path);
/* The sibling of NAME.test.* for another split, if it exists; NULL: there is none, or `path` is no
 * such file. Free with cr_free. */
char *cr_task_sibling(const char *path, const char *split);

#endif
