/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA backend against the CPU: gradients tensor by tensor, scores, embeddings; the same bits
 * twice; micro-batches and GPUs that add up. Skipped, and it says so, in a build without the
 * backend and on a machine without a GPU. An argument chooses the tests, as in "tiny*".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#ifndef CRAYON_CUDA

static void not_built(void **state)
{
    (void)state;
    print_message("skip: built without the CUDA backend (CRAYON_CUDA)\n");
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(not_built)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

#include "adapt/adapter.h"
#include "adapt/score.h"
#include "cuda/cuda.h"
#include "tiny_model.h"
#include "tune/ops.h"

#include <stdlib.h>

/* What bfloat16 does to a gradient: distance / norm of a tensor. docs/cuda.md has what was seen,
 * and that the CPU gives the same when it rounds at the same places. */
static double tensor_bound = 0.07;
static const double all_bound = 0.05, loss_bound = 0.01;

static bool no_gpu(void)
{
    struct cr_error err;
    if (cr_cuda_count(&err))
        return false;
    print_message("skip: %s\n", err.msg);
    return true;
}

static double distance(const float *got, const float *want, size_t n)
{
    double off = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        off += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return norm > 0 ? sqrt(off / norm) : sqrt(off);
}

/* Sequences of given lengths, each with some answers; groups of one or two sequences. */
struct data {
    size_t n_seqs, n_groups, longest;
    struct cr_micro micro;
    struct cr_packed packed;
    int32_t *ids, *answer_id;
    size_t *seq, *row, *begin, *answers;
    float *weight, *a;
    uint32_t *key;
};

static void data_init(struct data *d, const cr_model *m, const size_t *length, size_t n, int n_mix)
{
    size_t tokens = 0, answers = 0;
    memset(d, 0, sizeof *d);
    for (size_t s = 0; s < n; s++)
        tokens += length[s];
    d->ids = cr_alloc(tokens, sizeof *d->ids);
    d->answer_id = cr_alloc(tokens, sizeof *d->answer_id);
    d->row = cr_alloc(tokens, sizeof *d->row);
    d->weight = cr_alloc(tokens, sizeof *d->weight);
    d->seq = cr_alloc0(n + 1, sizeof *d->seq);
    d->begin = cr_alloc0(n + 1, sizeof *d->begin);
    d->answers = cr_alloc0(n + 1, sizeof *d->answers);
    d->key = cr_alloc(n, sizeof *d->key);
    d->a = cr_alloc(n * (size_t)n_mix, sizeof *d->a);
    for (size_t t = 0; t < tokens; t++)
        d->ids[t] = (int32_t)((t * 7919 + 13) % (size_t)m->n_vocab);
    for (size_t s = 0; s < n; s++) {
        d->seq[s + 1] = d->seq[s] + length[s];
        d->longest = length[s] > d->longest ? length[s] : d->longest;
        for (size_t i = length[s] / 2; i < length[s]; i += 3) {
            d->row[answers] = d->seq[s] + i;
            d->answer_id[answers] = (int32_t)((answers * 104729 + 5) % (size_t)m->n_vocab);
            d->weight[answers] = 0.1f + 0.01f * (float)(answers % 7);
            answers++;
        }
        if (s % 3 != 2) { /* the third of three joins the second */
            d->begin[d->n_groups] = d->seq[s];
            d->key[d->n_groups] = (uint32_t)d->n_groups;
            d->n_groups++;
        }
        d->answers[d->n_groups] = answers;
    }
    d->begin[d->n_groups] = tokens;
    d->n_seqs = n;
    fill_normal(d->a, d->n_groups * (size_t)n_mix, 0.7, 77);
    d->micro = (struct cr_micro){tokens,
                                 n,
                                 answers,
                                 d->ids,
                                 d->seq,
                                 d->row,
                                 d->answer_id,
                                 d->weight,
                                 {d->n_groups, d->begin, d->a},
                                 {d->n_groups, d->answers, d->a}};
    d->packed = (struct cr_packed){.micros = &d->micro,
                                   .n_micros = 1,
                                   .n_groups = d->n_groups,
                                   .n = n_mix,
                                   .group_key = d->key,
                                   .a = d->a};
}

static void data_deinit(struct data *d)
{
    cr_free(d->ids);
    cr_free(d->answer_id);
    cr_free(d->row);
    cr_free(d->weight);
    cr_free(d->seq);
    cr_free(d->begin);
    cr_free(d->answers);
    cr_free(d->key);
    cr_free(d->a);
}

struct run { /* a step that leaves its gradients in the first moment */
    struct cr_lowrank low;
    struct cr_adamw adam;
    float *params, *m, *v, *new_params;
    double loss, norm;
};

static void start_params(struct run *r)
{
    struct cr_rng rng;
    cr_rng_init(&rng, 5);
    cr_lowrank_start(&r->low, r->params, &rng);
    double noise = 0.03 / sqrt(r->low.n * r->low.rank);
    for (size_t i = 0; i < r->low.n_adapter; i++) /* a trained pool: B is not 0 */
        r->params[i] += (float)(noise * cr_rng_normal(&rng));
}

static void run_init(struct run *r, const cr_model *m, enum cr_pool_form form, int n, int rank,
                     const bool *target, const struct data *d)
{
    memset(r, 0, sizeof *r);
    cr_lowrank_init(&r->low, m, form, n, rank, 2 * (float)rank, target, d->n_groups);
    size_t size = r->low.n_params;
    r->params = cr_alloc0(size, sizeof(float));
    r->new_params = cr_alloc0(size, sizeof(float));
    r->m = cr_alloc0(size, sizeof(float));
    r->v = cr_alloc0(size, sizeof(float));
    start_params(r);
    memcpy(r->params + r->low.weights_at, d->a, d->n_groups * (size_t)n * sizeof(float));
    assert_int_equal(cr_adamw_init(&r->adam, size, NULL), CR_OK);
    r->adam.tail = r->low.weights_at;
    r->adam.lr = 1e-3f;
    r->adam.lr_tail = 1e-2f;
    r->adam.beta2 = 0.99f; /* beta1 0: the first moment is the gradient */
}

static void run_deinit(struct run *r)
{
    cr_adamw_deinit(&r->adam);
    cr_free(r->v);
    cr_free(r->m);
    cr_free(r->new_params);
    cr_free(r->params);
}

static void check(enum cr_status st, const struct cr_error *err)
{
    if (st)
        fail_msg("%s", err->msg);
}

/* One step on n GPUs. */
static void run_gpu(struct run *r, const cr_model *m, const struct data *d,
                    const struct cr_packed *p, int n)
{
    struct cr_error err;
    struct cr_train_device *dev;
    struct cr_device_job job = {
        m,
        &r->low,
        &r->adam,
        {d->micro.n_tokens, d->micro.n_answers, d->n_groups, d->longest, false},
        p->n_micros};
    check(cr_cuda_train_new(&dev, n, NULL, &err), &err);
    check(dev->check(dev, m, &err), &err);
    check(dev->start(dev, &job, r->params, &err), &err);
    check(dev->step(dev, p, 1, 1, &r->loss, &r->norm, &err), &err);
    check(dev->fetch(dev, r->new_params, r->m, r->v, &err), &err);
    dev->close(dev);
}

struct cpu { /* what the CPU says in float32 */
    float *grads, *da;
    double loss;
};

static void run_cpu(struct cpu *c, const struct run *r, const cr_model *m, const struct data *d)
{
    struct cr_pass_shape shape = {d->micro.n_tokens, d->micro.n_answers, d->n_groups, d->longest,
                                  false};
    struct cr_frozen frozen;
    struct cr_pass_shared tables;
    cr_pass *pass;
    c->grads = cr_alloc0(r->low.n_params, sizeof(float));
    c->da = cr_alloc0(d->n_groups * (size_t)r->low.n, sizeof(float));
    assert_int_equal(cr_pass_shared_init(&tables, m, &shape, NULL), CR_OK);
    assert_int_equal(cr_frozen_init(&frozen, m, &r->low, false, NULL), CR_OK);
    assert_int_equal(cr_pass_new(&pass, &frozen, &tables, &shape, NULL), CR_OK);
    c->loss = cr_pass_run(pass, r->params, &d->micro, c->grads, c->da, NULL, 0);
    cr_pass_free(pass);
    cr_frozen_deinit(&frozen);
    cr_pass_shared_deinit(&tables);
}

static void cpu_deinit(struct cpu *c)
{
    cr_free(c->grads);
    cr_free(c->da);
}

static double worst;

static void expect(const char *what, int layer, double error, double bound)
{
    worst = error > worst || error != error ? error : worst;
    if (!(error <= bound))
        print_error("%s, layer %d: relative error %g, bound %g\n", what, layer, error, bound);
}

/* Every tensor's gradient; all bad ones are named. */
static void compare(const char *name, const struct run *r, const struct cpu *c,
                    const struct data *d)
{
    bool bad = false;
    worst = 0;
    for (int l = 0; l < r->low.n_layers; l++)
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &r->low.stage[s];
            size_t a = cr_lowrank_a(&r->low, l, (enum cr_stage)s);
            expect("A", l * 10 + s, distance(r->m + a, c->grads + a, st->n_u * st->n_in),
                   tensor_bound);
            for (int i = 0; i < st->n_lins; i++) {
                size_t b = cr_lowrank_b(&r->low, l, (enum cr_stage)s, i);
                size_t n = (size_t)r->low.n * (size_t)r->low.rank * st->lin_out[i];
                if (st->target[i])
                    expect(cr_linear_names[st->lin[i]], l, distance(r->m + b, c->grads + b, n),
                           tensor_bound);
            }
        }
    bad = !(worst <= tensor_bound);
    double all = distance(r->m, c->grads, r->low.n_adapter);
    double a = distance(r->m + r->low.weights_at, c->da, d->n_groups * (size_t)r->low.n);
    print_message("%s: loss %.6f, CPU %.6f; gradients: all %.2g, worst tensor %.2g, weights %.2g\n",
                  name, r->loss, c->loss, all, worst, a);
    assert_false(bad);
    assert_true(all <= all_bound);
    assert_true(a <= tensor_bound);
    assert_true(fabs(r->loss - c->loss) <= loss_bound * fabs(c->loss));
    assert_true(isfinite(r->norm));
}

static const bool all_targets[CR_LIN_COUNT] = {true, true, true, true, true, true, true};
static const size_t lengths[] = {9, 6, 2, 12, 64, 1, 35, 150, 17, 5};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

static void equal_gradients(const char *name, const cr_model *m, enum cr_pool_form form, int n,
                            int rank, const bool *target)
{
    struct data d;
    struct run r;
    struct cpu c;
    data_init(&d, m, lengths, N_LENGTHS, n);
    run_init(&r, m, form, n, rank, target, &d);
    run_cpu(&c, &r, m, &d);
    run_gpu(&r, m, &d, &d.packed, 1);
    compare(name, &r, &c, &d);
    cpu_deinit(&c);
    run_deinit(&r);
    data_deinit(&d);
}

static void tiny_gradients(void **state)
{
    (void)state;
    static const bool qv[CR_LIN_COUNT] = {true, false, true, false, false, false, false};
    if (no_gpu())
        skip();
    struct tiny *llama = tiny_new(CR_ARCH_LLAMA, CR_Q8_0), *qwen = tiny_new(CR_ARCH_QWEN2, CR_F32);
    equal_gradients("llama, shared", &llama->m, CR_POOL_SHARED, 3, 2, all_targets);
    equal_gradients("llama, separate", &llama->m, CR_POOL_SEPARATE, 3, 2, all_targets);
    equal_gradients("llama, one adapter", &llama->m, CR_POOL_SHARED, 1, 8, all_targets);
    equal_gradients("llama, N 40 rank 8", &llama->m, CR_POOL_SHARED, 40, 8, all_targets);
    equal_gradients("llama, N 32 rank 8", &llama->m, CR_POOL_SHARED, 32, 8, all_targets);
    equal_gradients("llama, N 4 rank 16", &llama->m, CR_POOL_SHARED, 4, 16, all_targets);
    equal_gradients("llama, separate, rank 8", &llama->m, CR_POOL_SEPARATE, 4, 8, all_targets);
    equal_gradients("llama, q and v only", &llama->m, CR_POOL_SHARED, 3, 2, qv);
    equal_gradients("llama, q and v only, rank 8", &llama->m, CR_POOL_SHARED, 3, 8, qv);
    equal_gradients("qwen2, shared", &qwen->m, CR_POOL_SHARED, 3, 2, all_targets);
    equal_gradients("qwen2, shared, rank 8", &qwen->m, CR_POOL_SHARED, 3, 8, all_targets);
    float freq[16];
    for (int i = 0; i < 16; i++)
        freq[i] = powf(10000, -(float)i / 16);
    llama->m.head_dim = llama->m.rope_dim = qwen->m.head_dim = qwen->m.rope_dim = 32;
    llama->m.n_heads = qwen->m.n_heads = 2;
    llama->m.n_kv_heads = qwen->m.n_kv_heads = 1;
    llama->m.attn_scale = qwen->m.attn_scale = 1 / sqrtf(32);
    llama->m.rope_freq = qwen->m.rope_freq = freq;
    equal_gradients("llama, heads of 32", &llama->m, CR_POOL_SHARED, 3, 2, all_targets);
    equal_gradients("qwen2, heads of 32", &qwen->m, CR_POOL_SHARED, 3, 2, all_targets);
    tiny_free(llama);
    tiny_free(qwen);
}

/* The same step twice gives the same bits; two micro-batches give the sum; so do two GPUs. */
static void tiny_sums(void **state)
{
    (void)state;
    struct cr_error err;
    if (no_gpu())
        skip();
    struct tiny *t = tiny_new(CR_ARCH_LLAMA, CR_F32);
    cr_threads_free(t->m.threads);
    assert_int_equal(cr_threads_new(&t->m.threads, 2, NULL), CR_OK);
    struct data d;
    struct run one, two;
    struct cpu c;
    data_init(&d, &t->m, lengths, N_LENGTHS, 3);
    run_init(&one, &t->m, CR_POOL_SHARED, 3, 2, all_targets, &d);
    run_init(&two, &t->m, CR_POOL_SHARED, 3, 2, all_targets, &d);
    run_gpu(&one, &t->m, &d, &d.packed, 1);
    run_gpu(&two, &t->m, &d, &d.packed, 1);
    assert_memory_equal(one.new_params, two.new_params, one.low.n_params * sizeof(float));
    assert_memory_equal(one.m, two.m, one.low.n_params * sizeof(float));
    assert_true(one.loss == two.loss && one.norm == two.norm);

    struct cr_micro twice[2] = {d.micro, d.micro};
    struct cr_packed p = d.packed;
    uint32_t *key = cr_alloc(2 * d.n_groups, sizeof *key);
    float *a = cr_alloc(2 * d.n_groups * 3, sizeof *a);
    for (size_t i = 0; i < 2 * d.n_groups; i++)
        key[i] = d.key[i % d.n_groups];
    for (size_t i = 0; i < 2 * d.n_groups * 3; i++)
        a[i] = d.a[i % (d.n_groups * 3)];
    twice[0].all.a = twice[0].answers.a = a;
    twice[1].all.a = twice[1].answers.a = a + d.n_groups * 3;
    p.micros = twice;
    p.n_micros = 2;
    p.n_groups *= 2;
    p.group_key = key;
    p.a = a;
    for (int gpus = 1; gpus <= 2 && gpus <= cr_cuda_count(&err); gpus++) {
        run_cpu(&c, &one, &t->m, &d);
        for (size_t i = 0; i < one.low.n_adapter; i++)
            c.grads[i] *= 2;
        for (size_t i = 0; i < d.n_groups * 3; i++)
            c.da[i] *= 2;
        c.loss *= 2;
        run_gpu(&two, &t->m, &d, &p, gpus);
        compare(gpus == 1 ? "two micro-batches" : "two GPUs", &two, &c, &d);
        cpu_deinit(&c);
    }
    cr_free(key);
    cr_free(a);
    run_deinit(&one);
    run_deinit(&two);
    data_deinit(&d);
    tiny_free(t);
}

/* A step of AdamW is what the CPU makes of the same gradients. */
static void tiny_adamw(void **state)
{
    (void)state;
    if (no_gpu())
        skip();
    struct tiny *t = tiny_new(CR_ARCH_LLAMA, CR_F32);
    struct data d;
    struct run r;
    data_init(&d, &t->m, lengths, N_LENGTHS, 3);
    run_init(&r, &t->m, CR_POOL_SHARED, 3, 2, all_targets, &d);
    run_gpu(&r, &t->m, &d, &d.packed, 1); /* beta1 0: m is the gradient */
    float *grads = cr_alloc(r.low.n_params, sizeof *grads);
    memcpy(grads, r.m, r.low.n_params * sizeof *grads);
    r.adam.weight_decay = 0.1f;
    r.adam.beta1 = 0.9f;
    r.adam.clip = 0.01f; /* far below the norm: it clips */
    run_gpu(&r, &t->m, &d, &d.packed, 1);
    double norm = cr_adamw_step(&r.adam, t->m.threads, r.params, grads, 1, 1);
    assert_true(fabs(norm - r.norm) <= 1e-6 * norm);
    assert_true(distance(r.new_params, r.params, r.low.n_params) <= 1e-6);
    assert_true(distance(r.m, r.adam.m, r.low.n_params) <= 1e-5);
    assert_true(distance(r.v, r.adam.v, r.low.n_params) <= 1e-5);
    cr_free(grads);
    run_deinit(&r);
    data_deinit(&d);
    tiny_free(t);
}

static const char model_path[] = CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf";

static cr_model *open_model(void)
{
    cr_model *m;
    struct cr_error err;
    struct cr_model_options o = {0};
    const char *path = getenv("CRAYON_TEST_CUDA_MODEL");
    check(cr_model_open(&m, path ? path : model_path, &o, &err), &err);
    return m;
}

static void model_gradients(void **state)
{
    (void)state;
    if (no_gpu())
        skip();
    cr_model *m = open_model();
    tensor_bound = 0.15; /* some inputs of ffn_down are far larger than the others */
    equal_gradients("15M, shared", m, CR_POOL_SHARED, 8, 8, all_targets);
    equal_gradients("15M, shared, rank 4", m, CR_POOL_SHARED, 8, 4, all_targets);
    equal_gradients("15M, separate", m, CR_POOL_SEPARATE, 4, 4, all_targets);
    cr_model_close(m);
}

/* A delta that changes much: random pairs. */
static cr_delta *random_delta(const cr_model *m, int rank)
{
    cr_delta *d;
    size_t n = 0, at = 0;
    for (int i = 0; i < CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = cr_model_linear(m, 0, (enum cr_linear)i);
        n += (size_t)rank * (size_t)(w->n_in + w->n_out) * (size_t)m->n_layers;
    }
    assert_int_equal(cr_delta_new(&d, m->n_layers, n, NULL), CR_OK);
    fill_normal(d->data, n, 0.06, 3);
    d->max_rank = rank;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            struct cr_low_rank *pair = cr_delta_at(d, l, (enum cr_linear)i);
            pair->rank = rank;
            pair->a = d->data + at;
            at += (size_t)rank * (size_t)w->n_in;
            pair->b = d->data + at;
            at += (size_t)rank * (size_t)w->n_out;
        }
    return d;
}

static void model_scores(void **state)
{
    (void)state;
    if (no_gpu())
        skip();
    cr_model *m = open_model();
    struct cr_error err;
    struct cr_compute *c;
    char *choices[] = {"yes", "no", "a blue bird that sings", "perhaps not"};
    struct cr_example e[40];
    char text[40][600];
    for (int i = 0; i < 40; i++) {
        int n = snprintf(text[i], sizeof text[i], "Is %d a number that we like", i * 31);
        for (int k = 0; k < i % 12; k++)
            n += snprintf(text[i] + n, sizeof text[i] - (size_t)n, " and is it more than %d", k);
        e[i] = (struct cr_example){.question = text[i],
                                   .answer = choices[i % 4],
                                   .choices = choices,
                                   .n_choices = i % 3 ? 4 : 0,
                                   .answer_index = i % 3 ? i % 4 : 0};
    }
    cr_delta *delta = random_delta(m, 12);
    cr_scorer *cpu, *gpu;
    check(cr_scorer_new(&cpu, m, NULL, e, 40, &err), &err);
    check(cr_cuda_compute_new(&c, m, &err), &err);
    m->compute = c;
    check(cr_scorer_new(&gpu, m, NULL, e, 40, &err), &err);
    for (int with = 0; with < 2; with++) {
        const struct cr_example_score *a, *b;
        double off = 0, most = 0, sum = 0;
        int differ = 0;
        check(cr_scorer_run(cpu, with ? delta : NULL, &a, NULL, NULL, &err), &err);
        check(cr_scorer_run(gpu, with ? delta : NULL, &b, NULL, NULL, &err), &err);
        for (int i = 0; i < 40; i++)
            for (int k = 0; k < a[i].n_options; k++) {
                double x = (double)(a[i].options[k].sum - b[i].options[k].sum);
                off += x * x;
                sum += (double)a[i].options[k].sum * (double)a[i].options[k].sum;
                most = fmax(most, fabs(x));
                differ += a[i].choice != b[i].choice;
            }
        print_message("scores%s: relative distance %.2g, most %.3g, choices that differ %d\n",
                      with ? " with a delta" : "", sqrt(off / sum), most, differ);
        assert_true(sqrt(off / sum) < 0.01);
    }
    size_t dim = (size_t)m->n_embd;
    float *x = cr_alloc(40 * dim, sizeof *x), *y = cr_alloc(40 * dim, sizeof *y);
    check(cr_embed_examples(m, CR_VIEW_MIDDLE, e, 40, y, &err), &err);
    m->compute = NULL;
    check(cr_embed_examples(m, CR_VIEW_MIDDLE, e, 40, x, &err), &err);
    print_message("embedding: relative distance %.2g\n", distance(y, x, 40 * dim));
    assert_true(distance(y, x, 40 * dim) < 0.02);
    cr_free(x);
    cr_free(y);
    cr_scorer_free(cpu);
    cr_scorer_free(gpu);
    cr_delta_free(delta);
    c->close(c);
    cr_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_gradients), cmocka_unit_test(tiny_sums),
        cmocka_unit_test(tiny_adamw),     cmocka_unit_test(model_gradients),
        cmocka_unit_test(model_scores),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
