/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of LoRA files and pools share: a folder that is removed at the end, the tiny
 * random model of tests/golden/lora (see make_lora.py), logits of its fixed prompt, and random
 * adapters. Include after cmocka.h.
 */
#ifndef CR_TEST_LORA_FIXTURE_H
#define CR_TEST_LORA_FIXTURE_H

#include "adapt/adapter.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/session.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FX_LORA CR_SOURCE_DIR "/tests/golden/lora/"
enum { FX_TOKENS = 12 };

static char fx_dir[64];
static cr_model *fx_model;
static char fx_log[4096]; /* all that the library logged */

static inline void fx_on_log(void *ud, enum cr_log_level level, const char *msg)
{
    (void)ud;
    size_t n = strlen(fx_log);
    if (level == CR_LOG_WARN)
        snprintf(fx_log + n, sizeof fx_log - n, "%s\n", msg);
}

static inline cr_model *fx_open_model(const char *path)
{
    cr_model *m;
    struct cr_error err;
    struct cr_model_options opt = {.n_threads = 2};
    if (cr_model_open(&m, path, &opt, &err))
        fail_msg("%s", err.msg);
    return m;
}

static inline int fx_setup(void **state)
{
    (void)state;
    snprintf(fx_dir, sizeof fx_dir, "/tmp/crayon-test-XXXXXX");
    if (!mkdtemp(fx_dir))
        return 1;
    cr_log_set(fx_on_log, NULL);
    fx_model = fx_open_model(FX_LORA "base.gguf");
    return 0;
}

static inline int fx_remove(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static inline int fx_teardown(void **state)
{
    (void)state;
    cr_model_close(fx_model);
    size_t left = cr_mem_now();
    nftw(fx_dir, fx_remove, 8, FTW_DEPTH | FTW_PHYS);
    if (left)
        print_error("%zu bytes were not freed\n", left);
    return left != 0;
}

/* fx_dir/name in a buffer of its own, four at a time. */
static inline char *fx_path(const char *name)
{
    static char paths[4][256];
    static int at;
    char *p = paths[at++ % 4];
    snprintf(p, 256, "%s/%s", fx_dir, name);
    return p;
}

static inline void fx_collect(void *ud, size_t token, const float *logits)
{
    float *out = ud;
    memcpy(out + token * (size_t)fx_model->n_vocab, logits,
           (size_t)fx_model->n_vocab * sizeof *out);
}

/* Logits of the fixed prompt [FX_TOKENS, n_vocab]; free with free(). Vocabulary as fx_model's. */
static inline float *fx_logits(cr_model *m, const cr_delta *d)
{
    static const int32_t ids[FX_TOKENS] = {1, 72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 263};
    struct cr_batch_token t[FX_TOKENS];
    for (int i = 0; i < FX_TOKENS; i++)
        t[i] = (struct cr_batch_token){.id = ids[i], .pos = i, .want = true};
    float *out = calloc(FX_TOKENS * (size_t)m->n_vocab, sizeof *out);
    cr_session *s;
    struct cr_error err;
    assert_non_null(out);
    if (cr_session_new(&s, m, FX_TOKENS, &err))
        fail_msg("%s", err.msg);
    cr_session_set_delta(s, d);
    struct cr_batch b = {.tokens = t, .n = FX_TOKENS, .on_logits = fx_collect, .ud = out};
    if (cr_session_run(s, &b, &err))
        fail_msg("%s", err.msg);
    cr_session_free(s);
    return out;
}

static inline float fx_max_diff(const float *a, const float *b, size_t n)
{
    float max = 0;
    for (size_t i = 0; i < n; i++)
        max = fmaxf(max, fabsf(a[i] - b[i]));
    return max;
}

/* Largest difference of the logits of two runs of the fixed prompt. */
static inline float fx_logits_diff(cr_model *m1, const cr_delta *d1, cr_model *m2,
                                   const cr_delta *d2)
{
    float *a = fx_logits(m1, d1), *b = fx_logits(m2, d2);
    float max = fx_max_diff(a, b, FX_TOKENS * (size_t)m1->n_vocab);
    free(a);
    free(b);
    return max;
}

static inline cr_adapter *fx_open(cr_model *m, const char *path)
{
    cr_adapter *a;
    struct cr_error err;
    if (cr_adapter_open(&a, m, path, &err))
        fail_msg("%s", err.msg);
    return a;
}

static inline cr_delta *fx_combine(cr_model *m, cr_adapter *a, float scale)
{
    cr_delta *d;
    struct cr_error err;
    const cr_adapter *list[1] = {a};
    if (cr_adapters_combine(&d, m, list, &scale, 1, &err))
        fail_msg("%s", err.msg);
    return d;
}

/* An adapter of a rank on every linear, values N(0, 1) * size; zero_b: B = 0. */
static inline cr_adapter *fx_random_adapter(cr_model *m, int rank, float size, uint64_t seed)
{
    struct cr_rng rng;
    struct cr_error err;
    cr_rng_init(&rng, seed);
    size_t floats = 0;
    for (int i = 0; i < CR_LIN_COUNT; i++)
        floats += (size_t)(m->layers[0].lin[i].n_in + m->layers[0].lin[i].n_out) * (size_t)rank;
    cr_delta *d;
    assert_int_equal(cr_delta_new(&d, m->n_layers, floats * (size_t)m->n_layers, &err), CR_OK);
    float *at = d->data;
    for (int i = 0; i < m->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = &m->layers[0].lin[i % CR_LIN_COUNT];
        float *a = at, *b = at + rank * w->n_in;
        d->pairs[i] = (struct cr_low_rank){.rank = rank, .a = a, .b = b};
        at = b + rank * w->n_out;
        for (float *p = a; p < at; p++)
            *p = size * (float)cr_rng_normal(&rng);
    }
    d->max_rank = rank;
    cr_adapter *out;
    if (cr_adapter_from_delta(&out, m, d, "random", &err))
        fail_msg("%s", err.msg);
    cr_delta_free(d);
    return out;
}

/* Opening must fail with this status and a message that holds `want`. */
static inline void fx_refused(cr_model *m, const char *path, enum cr_status status,
                              const char *want)
{
    cr_adapter *a;
    struct cr_error err = {.msg = ""};
    size_t before = cr_mem_now();
    enum cr_status got = cr_adapter_open(&a, m, path, &err);
    assert_null(a);
    if (got != status || !strstr(err.msg, want))
        fail_msg("got %s \"%s\", want %s \"%s\"", cr_status_text(got), err.msg,
                 cr_status_text(status), want);
    assert_int_equal(cr_mem_now(), before);
}

#endif
