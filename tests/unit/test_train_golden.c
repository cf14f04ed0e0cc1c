/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LoRA gradients, tensor by tensor, and ten training losses against transformers and PEFT
 * (tests/golden/make_train.py). CR_TRAIN_MODEL and CR_TRAIN_GOLDEN in the environment add a model.
 */
#include "gradient.h"
#include "tune/batch.h"
#include "tune/ops.h"
#include "tune/optim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { RANK = 2, ROWS = 6, STEPS = 10 };
static const uint32_t prompts[ROWS] = {5, 9, 12, 3, 7, 20}, answers[ROWS] = {1, 3, 2, 4, 1, 2};
static const bool all[CR_LIN_COUNT] = {true, true, true, true, true, true, true};
/* gradients: relative, of the worst tensor; losses: absolute, and in bfloat16 relative */
static const double gradient_bounds[] = {1e-4, 0.06}, loss_bounds[] = {1e-3, 0.01};
static bool bf16;

struct job {
    cr_model *m;
    cr_gguf *golden;
    struct cr_lowrank p;
    struct cr_frozen frozen;
    struct cr_train_data data;
    struct cr_train_row rows[ROWS];
    int32_t ids[128];
    uint32_t key[ROWS];
    struct cr_batcher batcher;
    struct cr_packed packed;
    struct cr_pass_shape shape;
    struct cr_pass_shared rope;
    cr_pass *pass;
    float *params, *grads;
};

/* The script's start_values. */
static void start_values(float *v, int64_t k, size_t n, double bound)
{
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(bound * ((double)(((int64_t)i * 7919 + k * 104729 + 13) % 2003) / 1001 - 1));
}

/* Runs fn for A and B of each linear: its place in the parameters and the name in the file. */
static void each_tensor(struct job *j, void (*fn)(struct job *j, const char *name, int k, size_t at,
                                                  size_t n, double bound))
{
    char name[96];
    for (int l = 0; l < j->p.n_layers; l++) {
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &j->p.stage[s];
            for (int i = 0; i < st->n_lins; i++) {
                int k = l * 14 + (int)st->lin[i] * 2;
                const char *lin = cr_linear_names[st->lin[i]];
                snprintf(name, sizeof name, "blk.%d.%s.weight.lora_a", l, lin);
                fn(j, name, k,
                   cr_lowrank_a(&j->p, l, (enum cr_stage)s) + (st->u_at[i] - st->n_out) * st->n_in,
                   RANK * st->n_in, 1 / sqrt((double)st->n_in));
                snprintf(name, sizeof name, "blk.%d.%s.weight.lora_b", l, lin);
                fn(j, name, k + 1, cr_lowrank_b(&j->p, l, (enum cr_stage)s, i),
                   RANK * st->lin_out[i], 0.02);
            }
        }
    }
}

/* Where value i of a tensor of n values stands: B is kept transposed. */
static size_t place(int k, size_t i, size_t n)
{
    return k % 2 ? i % RANK * (n / RANK) + i / RANK : i;
}

static void start(struct job *j, const char *name, int k, size_t at, size_t n, double bound)
{
    (void)name;
    float *v = cr_alloc(n, sizeof *v);
    start_values(v, k, n, bound);
    for (size_t i = 0; i < n; i++)
        j->params[at + place(k, i, n)] = v[i];
    cr_free(v);
}

static double worst;

static void compare(struct job *j, const char *name, int k, size_t at, size_t n, double bound)
{
    (void)bound;
    const struct cr_tensor *want = cr_gguf_tensor(j->golden, name);
    double off = 0, norm = 0;
    assert_non_null(want);
    assert_true(want->bytes == n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        float w;
        memcpy(&w, (const char *)want->data + i * sizeof w, sizeof w);
        double d = (double)j->grads[at + place(k, i, n)] - (double)w;
        off += d * d;
        norm += (double)w * (double)w;
    }
    off = sqrt(off / norm);
    worst = off > worst ? off : worst;
    if (!(off <= gradient_bounds[bf16]))
        fail_msg("%s: relative error %g, bound %g", name, off, gradient_bounds[bf16]);
}

static void open_job(struct job *j, const char *model, const char *golden)
{
    struct cr_error err;
    struct cr_model_options options = {.n_threads = 1};
    memset(j, 0, sizeof *j);
    if (cr_model_open(&j->m, model, &options, &err) || cr_gguf_open(&j->golden, golden, &err))
        fail_msg("%s", err.msg);
    size_t at = 0;
    for (size_t r = 0; r < ROWS; r++) {
        j->rows[r] = (struct cr_train_row){at, prompts[r], answers[r], 0};
        for (size_t i = 0; i < prompts[r] + answers[r]; i++)
            j->ids[at++] =
                (int32_t)(3 + (r * 37 + i * 11 + r * i * 5) % (size_t)(j->m->n_vocab - 3));
        size_t n = cr_row_tokens(&j->rows[r]);
        j->data.n_tokens += n;
        j->data.longest = n > j->data.longest ? n : j->data.longest;
    }
    j->data.rows = j->rows;
    j->data.ids = j->ids;
    j->data.n_rows = ROWS;
    cr_lowrank_init(&j->p, j->m, CR_POOL_SHARED, 1, RANK, 4, all, 0);
    j->params = cr_alloc(j->p.n_params, sizeof(float));
    j->grads = cr_alloc0(j->p.n_params, sizeof(float));
    each_tensor(j, start);
    /* every step takes all rows, in micro-batches of about 25 tokens */
    assert_int_equal(cr_batcher_init(&j->batcher, &j->data, 1, j->data.n_tokens, 25, j->key, NULL),
                     CR_OK);
    cr_batcher_next(&j->batcher, SIZE_MAX);
    assert_int_equal(j->batcher.n_rows, ROWS);
    assert_true(j->batcher.n_micros > 1);
    cr_batcher_shape(&j->batcher, &j->shape);
    assert_int_equal(cr_packed_init(&j->packed, j->data.n_tokens, ROWS, ROWS, 1, NULL), CR_OK);
    assert_int_equal(cr_pass_shared_init(&j->rope, j->m, &j->shape, NULL), CR_OK);
    assert_int_equal(cr_frozen_init(&j->frozen, j->m, &j->p, bf16, NULL), CR_OK);
    assert_int_equal(cr_pass_new(&j->pass, &j->frozen, &j->rope, &j->shape, NULL), CR_OK);
}

static void close_job(struct job *j)
{
    cr_pass_free(j->pass);
    cr_frozen_deinit(&j->frozen);
    cr_pass_shared_deinit(&j->rope);
    cr_packed_deinit(&j->packed);
    cr_batcher_deinit(&j->batcher);
    cr_free(j->grads);
    cr_free(j->params);
    cr_gguf_close(j->golden);
    cr_model_close(j->m);
}

static double run_step(struct job *j)
{
    static const float one = 1;
    double loss = 0;
    cr_frozen_refresh(&j->frozen, j->params);
    cr_packed_fill(&j->packed, &j->batcher, &one);
    for (size_t k = 0; k < j->packed.n_micros; k++)
        loss +=
            cr_pass_run(j->pass, j->params, &j->packed.micros[k], j->grads, j->packed.da, NULL, k);
    return loss;
}

static void check_precision(const char *model, const char *golden)
{
    struct job j;
    struct cr_adamw adam = {0};
    cr_threads *threads;
    float losses[STEPS];
    double off, most = 0;
    open_job(&j, model, golden);
    const struct cr_gguf_kv *kv = cr_gguf_find(j.golden, "train.losses");
    assert_non_null(kv);
    assert_true(kv->n == STEPS && kv->elem_type == CR_GGUF_F32);
    memcpy(losses, kv->data, sizeof losses);
    assert_int_equal(cr_threads_new(&threads, 1, NULL), CR_OK);
    assert_int_equal(cr_adamw_init(&adam, j.p.n_params, NULL), CR_OK);
    adam.lr = 5e-3f;
    adam.beta1 = 0.9f;
    adam.beta2 = 0.99f;
    adam.clip = 1;
    worst = 0;
    for (long step = 0; step < STEPS; step++) {
        off = fabs(run_step(&j) - (double)losses[step]) / (bf16 ? (double)losses[step] : 1);
        most = off > most ? off : most;
        if (!(off <= loss_bounds[bf16]))
            fail_msg("%s: step %ld: loss differs by %g, bound %g", model, step, off,
                     loss_bounds[bf16]);
        if (step == 0)
            each_tensor(&j, compare);
        cr_adamw_step(&adam, threads, j.params, j.grads, step + 1,
                      cr_lr_factor(step, STEPS, 0.2f, 0.05f));
    }
    print_message("%s, %s: gradients within %.1e (relative, worst tensor), losses within %.1e\n",
                  strrchr(model, '/') + 1, bf16 ? "bfloat16" : "float32", worst, most);
    cr_adamw_deinit(&adam);
    cr_threads_free(threads);
    close_job(&j);
}

static void check(const char *model, const char *golden)
{
    bf16 = false;
    check_precision(model, golden);
    const struct cr_kernels *k;
    bf16 = cr_kernels_get(&k, NULL, NULL) == CR_OK && cr_train_kernels_get(k->level)->bf16_matmul;
    if (bf16)
        check_precision(model, golden);
}

static void llama(void **state)
{
    (void)state;
    check(CR_SOURCE_DIR "/tests/data/stories260K.gguf",
          CR_SOURCE_DIR "/tests/golden/train-stories260K.gguf");
}

static void qwen2(void **state)
{
    (void)state;
    check(CR_SOURCE_DIR "/tests/data/random-qwen2.gguf",
          CR_SOURCE_DIR "/tests/golden/train-random-qwen2.gguf");
}

static void qwen3(void **state)
{
    (void)state;
    check(CR_SOURCE_DIR "/tests/data/random-qwen3.gguf",
          CR_SOURCE_DIR "/tests/golden/train-random-qwen3.gguf");
}

static void smollm3(void **state)
{
    (void)state;
    check(CR_SOURCE_DIR "/tests/data/random-smollm3.gguf",
          CR_SOURCE_DIR "/tests/golden/train-random-smollm3.gguf");
}

static void gemma3(void **state)
{
    (void)state;
    check(CR_SOURCE_DIR "/tests/data/random-gemma3.gguf",
          CR_SOURCE_DIR "/tests/golden/train-random-gemma3.gguf");
}

static void another(void **state)
{
    (void)state;
    const char *model = getenv("CR_TRAIN_MODEL"), *golden = getenv("CR_TRAIN_GOLDEN");
    if (model && golden)
        check(model, golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama),   cmocka_unit_test(qwen2),  cmocka_unit_test(qwen3),
        cmocka_unit_test(smollm3), cmocka_unit_test(gemma3), cmocka_unit_test(another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
