/* SPDX-License-Identifier: Apache-2.0 */
/* Small task files in a directory of their own, for the tests of training. */
#ifndef CR_TEST_TRAIN_FILES_H
#define CR_TEST_TRAIN_FILES_H

#include "tune/train.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define TRAIN_MODEL CR_SOURCE_DIR "/tests/data/stories260K.gguf"

struct train_files {
    char dir[64], colour[96], animal[96], pool[96], checkpoint[112], other[96];
    const char *names[2];
};

static inline void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

/* Two tasks of 12 and 9 rows in two files: "colour", named by its lines, with choices; "animal",
 * named by its file, with texts and one line without an answer. */
static inline void train_files_init(struct train_files *t)
{
    static const char *const things[] = {"grass", "blood", "the sky", "snow", "coal", "a lemon"};
    static const char *const sounds[] = {"barks", "meows", "sings"};
    static const char *const animals[] = {"dog", "cat", "bird"};
    char text[8192];
    size_t n = 0;
    snprintf(t->dir, sizeof t->dir, "/tmp/crayon-train-XXXXXX");
    assert_non_null(mkdtemp(t->dir));
    snprintf(t->colour, sizeof t->colour, "%s/one.jsonl", t->dir);
    snprintf(t->animal, sizeof t->animal, "%s/animal.train.jsonl", t->dir);
    snprintf(t->pool, sizeof t->pool, "%s/pool.gguf", t->dir);
    snprintf(t->other, sizeof t->other, "%s/other.gguf", t->dir);
    snprintf(t->checkpoint, sizeof t->checkpoint, "%s.checkpoint", t->pool);
    for (int i = 0; i < 12; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "{\"task\":\"colour\",\"question\":\"What is the colour of %s%s?\","
                              "\"choices\":[\"green\",\"red\",\"blue\"],\"answer\":%d}\n",
                              things[i % 6], i < 6 ? "" : " today", i % 3);
    write_text(t->colour, text);
    n = 0;
    for (int i = 0; i < 9; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "{\"question\":\"Animal %d %s. Which is it?\",\"answer\":\"%s\"}\n",
                              i, sounds[i % 3], animals[i % 3]);
    snprintf(text + n, sizeof text - n, "{\"question\":\"Nobody knows?\"}\n");
    write_text(t->animal, text);
    t->names[0] = t->colour;
    t->names[1] = t->animal;
}

static inline void train_files_deinit(struct train_files *t)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", t->dir);
    assert_int_equal(system(command), 0);
}

static inline cr_model *train_model(int n_threads)
{
    struct cr_model_options options = {.n_threads = n_threads};
    struct cr_error err;
    cr_model *m;
    if (cr_model_open(&m, TRAIN_MODEL, &options, &err))
        fail_msg("%s", err.msg);
    return m;
}

/* Six steps of about 400 tokens in micro-batches of 100, N = 3, rank 2. */
static inline struct cr_train_options train_options(const struct train_files *t)
{
    struct cr_train_options o = cr_train_options_default();
    o.files = t->names;
    o.n_files = 2;
    o.n = 3;
    o.rank = 2;
    o.alpha = 4;
    o.steps = 6;
    o.tokens_per_step = 400;
    o.tokens_per_batch = 100;
    o.lr = 5e-3f;
    o.lr_weights = 0;
    o.out = t->pool;
    o.type = CR_F32;
    return o;
}

#endif
