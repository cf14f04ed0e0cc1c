/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole pass: gradients of A, B and a against finite differences of the loss, for each
 * architecture, form and kind of weights; packing and turns change nothing.
 */
#include "tiny_model.h"
#include "tune/backward.h"
#include "tune/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { SEQS = 4, GROUPS = 3, TOKENS = 29, ANSWERS = 7, N = 3, RANK = 2 };

struct batch {
    int32_t ids[TOKENS], answer_id[ANSWERS];
    size_t seq[SEQS + 1], answer_row[ANSWERS], group[GROUPS + 1], answer_group[GROUPS + 1];
    float weight[ANSWERS], a[GROUPS * N];
    struct cr_micro micro;
};

/* Four sequences; the second and third are of one group. */
static void batch_init(struct batch *b)
{
    static const size_t seq[] = {0, 9, 15, 17, 29}, row[] = {7, 8, 13, 14, 16, 20, 28};
    static const size_t group[] = {0, 9, 17, 29}, answer_group[] = {0, 2, 5, 7};
    memcpy(b->seq, seq, sizeof seq);
    memcpy(b->answer_row, row, sizeof row);
    memcpy(b->group, group, sizeof group);
    memcpy(b->answer_group, answer_group, sizeof answer_group);
    for (int i = 0; i < TOKENS; i++)
        b->ids[i] = (i * 37 + 11) % TINY_VOCAB;
    for (int i = 0; i < ANSWERS; i++) {
        b->answer_id[i] = (i * 53 + 5) % TINY_VOCAB;
        b->weight[i] = 0.1f + 0.05f * (float)i;
    }
    fill_normal(b->a, GROUPS * N, 0.7, 77);
    b->micro = (struct cr_micro){TOKENS,
                                 SEQS,
                                 ANSWERS,
                                 b->ids,
                                 b->seq,
                                 b->answer_row,
                                 b->answer_id,
                                 b->weight,
                                 {GROUPS, b->group, b->a},
                                 {GROUPS, b->answer_group, b->a}};
}

struct job {
    struct tiny *t;
    struct cr_lowrank p;
    struct cr_frozen frozen;
    struct cr_pass_shared tables;
    cr_pass *pass;
    struct batch b;
    float *params, *grads, *da;
};

static const bool all_targets[CR_LIN_COUNT] = {true, true, true, true, true, true, true};

static bool bf16; /* of the next jobs */

static void job_init(struct job *j, enum cr_arch arch, uint32_t type, enum cr_pool_form form,
                     const bool *target)
{
    struct cr_pass_shape shape = {TOKENS, ANSWERS, GROUPS, 12, false};
    struct cr_rng rng;
    memset(j, 0, sizeof *j);
    j->t = tiny_new(arch, type);
    batch_init(&j->b);
    cr_rng_init(&rng, 5);
    cr_lowrank_init(&j->p, &j->t->m, form, N, RANK, 4, target, GROUPS);
    j->params = cr_alloc(j->p.n_params, sizeof(float));
    j->grads = cr_alloc0(j->p.n_params, sizeof(float));
    j->da = cr_alloc0(GROUPS * N, sizeof(float));
    cr_lowrank_start(&j->p, j->params, &rng);
    for (size_t i = 0; i < j->p.n_adapter; i++) /* a trained pool: B is not 0 */
        j->params[i] += (float)(0.2 * cr_rng_normal(&rng));
    assert_int_equal(cr_pass_shared_init(&j->tables, &j->t->m, &shape, NULL), CR_OK);
    assert_int_equal(cr_frozen_init(&j->frozen, &j->t->m, &j->p, bf16, NULL), CR_OK);
    cr_frozen_refresh(&j->frozen, j->params);
    assert_int_equal(cr_pass_new(&j->pass, &j->frozen, &j->tables, &shape, NULL), CR_OK);
}

static void job_deinit(struct job *j)
{
    cr_pass_free(j->pass);
    cr_frozen_deinit(&j->frozen);
    cr_pass_shared_deinit(&j->tables);
    cr_free(j->da);
    cr_free(j->grads);
    cr_free(j->params);
    tiny_free(j->t);
}

static double loss_of(void *ud)
{
    struct job *j = ud;
    return cr_pass_run(j->pass, j->params, &j->b.micro, NULL, NULL, NULL, 0);
}

static void expect(const char *what, int layer, double error, double bound)
{
    if (!(error <= bound))
        fail_msg("%s, layer %d: relative error %g, bound %g", what, layer, error, bound);
}

static const double gradient_bound = 2e-2; /* of finite differences in float32 */

static void check_gradients(struct job *j)
{
    double loss = cr_pass_run(j->pass, j->params, &j->b.micro, j->grads, j->da, NULL, 0);
    assert_true(loss == loss_of(j));
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int s = 0; s < CR_STAGE_COUNT; s++) {
            const struct cr_stage_shape *st = &j->p.stage[s];
            size_t a = cr_lowrank_a(&j->p, l, (enum cr_stage)s);
            if (st->n_u)
                expect("A", l * 10 + s,
                       gradient_error(loss_of, j, j->params + a, j->grads + a, st->n_u * st->n_in,
                                      1e-2, 3),
                       gradient_bound);
            for (int i = 0; i < st->n_lins; i++) {
                size_t b = cr_lowrank_b(&j->p, l, (enum cr_stage)s, i);
                if (st->target[i])
                    expect(cr_linear_names[st->lin[i]], l,
                           gradient_error(loss_of, j, j->params + b, j->grads + b,
                                          st->lin_out[i] * RANK * N, 1e-2, 4),
                           gradient_bound);
            }
        }
    }
    expect("a", -1, gradient_error(loss_of, j, j->b.a, j->da, GROUPS * N, 1e-2, 5), gradient_bound);
}

static void gradients_of(enum cr_arch arch, uint32_t type, enum cr_pool_form form)
{
    struct job j;
    job_init(&j, arch, type, form, all_targets);
    check_gradients(&j);
    job_deinit(&j);
}

static void llama_shared(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_LLAMA, CR_F32, CR_POOL_SHARED);
}

static void llama_separate(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_LLAMA, CR_F32, CR_POOL_SEPARATE);
}

static void qwen2_bias(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_QWEN2, CR_F16, CR_POOL_SHARED);
}

static void qwen3_head_norms(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_QWEN3, CR_F32, CR_POOL_SHARED);
}

static void smollm3_layer_without_rotation(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_SMOLLM3, CR_F32, CR_POOL_SHARED);
}

static void gemma3_windows_gelu_norms_after(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_GEMMA3, CR_F32, CR_POOL_SHARED);
    gradients_of(CR_ARCH_GEMMA3, CR_F32, CR_POOL_SEPARATE);
}

static void phi3_window_part_of_heads(void **state)
{
    (void)state;
    gradients_of(CR_ARCH_PHI3, CR_F32, CR_POOL_SHARED);
}

/* float32 weights of the same values give the same bits. */
static void quantised(void **state)
{
    (void)state;
    const uint32_t types[] = {CR_Q8_0, CR_Q4_1, CR_Q4_0,   CR_F16,
                              CR_BF16, CR_Q5_0, CR_IQ4_NL, CR_Q5_1};
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        struct job q, f;
        job_init(&q, CR_ARCH_LLAMA, types[k], CR_POOL_SHARED, all_targets);
        job_init(&f, CR_ARCH_LLAMA, types[k], CR_POOL_SHARED, all_targets);
        tiny_to_float(f.t);
        double loss = cr_pass_run(q.pass, q.params, &q.b.micro, q.grads, q.da, NULL, 0);
        assert_true(loss == cr_pass_run(f.pass, f.params, &f.b.micro, f.grads, f.da, NULL, 0));
        assert_memory_equal(q.grads, f.grads, q.p.n_adapter * sizeof(float));
        assert_memory_equal(q.da, f.da, GROUPS * N * sizeof(float));
        job_deinit(&f);
        job_deinit(&q);
    }
}

static void some_targets(void **state)
{
    (void)state;
    const bool qv[CR_LIN_COUNT] = {true, false, true, false, false, false, true};
    for (int form = 0; form < 2; form++) {
        struct job j;
        job_init(&j, CR_ARCH_LLAMA, CR_F32, (enum cr_pool_form)form, qv);
        check_gradients(&j);
        job_deinit(&j);
    }
}

/* Sequences packed together give the sum of what they give alone. */
static void packing(void **state)
{
    (void)state;
    struct job j;
    job_init(&j, CR_ARCH_LLAMA, CR_F32, CR_POOL_SHARED, all_targets);
    const struct cr_micro whole = j.b.micro;
    double loss = cr_pass_run(j.pass, j.params, &whole, j.grads, j.da, NULL, 0), sum = 0;
    float *alone = cr_alloc0(j.p.n_params, sizeof *alone), da[N];
    size_t answer = 0;
    for (size_t s = 0; s < SEQS; s++) {
        size_t first = j.b.seq[s], n = j.b.seq[s + 1] - first, rows[ANSWERS], n_answers = 0;
        size_t group = s == 0 ? 0 : s < 3 ? 1 : 2, seq[2] = {0, n};
        for (size_t i = answer; i < ANSWERS && j.b.answer_row[i] < first + n; i++)
            rows[n_answers++] = j.b.answer_row[i] - first;
        size_t answers[2] = {0, n_answers};
        struct cr_micro one = {n,
                               1,
                               n_answers,
                               j.b.ids + first,
                               seq,
                               rows,
                               j.b.answer_id + answer,
                               j.b.weight + answer,
                               {1, seq, j.b.a + group * N},
                               {1, answers, j.b.a + group * N}};
        sum += cr_pass_run(j.pass, j.params, &one, alone, da, NULL, 0);
        answer += n_answers;
    }
    expect("loss", 0, fabs(loss - sum), 1e-6);
    /* Which sums the library of float32 products splits depends on the CPU and on the number of
     * rows: some units in the last place of the largest gradient. */
    double most = 0;
    for (size_t i = 0; i < j.p.n_adapter; i++)
        most = fmax(most, fabs((double)j.grads[i]));
    for (size_t i = 0; i < j.p.n_adapter; i++)
        expect("gradient", (int)i, fabs((double)j.grads[i] - (double)alone[i]) / most, 1e-6);
    cr_free(alone);
    job_deinit(&j);
}

/* No wait is forgotten: running with turns ends, and gives the same bits. */
static void turns(void **state)
{
    (void)state;
    struct job j;
    struct cr_turns t;
    job_init(&j, CR_ARCH_LLAMA, CR_F32, CR_POOL_SHARED, all_targets);
    assert_int_equal(cr_turns_init(&t, cr_pass_slots(&j.t->m), NULL), CR_OK);
    float *first = cr_alloc0(j.p.n_params, sizeof *first);
    cr_pass_run(j.pass, j.params, &j.b.micro, first, j.da, NULL, 0);
    cr_pass_run(j.pass, j.params, &j.b.micro, first, j.da, NULL, 1);
    cr_pass_run(j.pass, j.params, &j.b.micro, j.grads, j.da, &t, 0);
    cr_pass_run(j.pass, j.params, &j.b.micro, j.grads, j.da, &t, 1);
    assert_memory_equal(first, j.grads, j.p.n_adapter * sizeof *first);
    cr_free(first);
    cr_turns_deinit(&t);
    job_deinit(&j);
}

static double distance(const float *got, const float *want, size_t n)
{
    double off = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        off += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(off / norm);
}

/* Products in bfloat16 give the same gradients up to its rounding. */
static void bfloat16(void **state)
{
    (void)state;
    const struct cr_kernels *k;
    if (cr_kernels_get(&k, NULL, NULL) || !cr_train_kernels_get(k->level)->bf16_matmul) {
        print_message("skip: this CPU has no fast bfloat16 products\n");
        skip();
    }
    for (int arch = CR_ARCH_LLAMA; arch <= CR_ARCH_PHI3; arch++) {
        struct job half, full;
        bf16 = false;
        job_init(&full, (enum cr_arch)arch, CR_F32, CR_POOL_SHARED, all_targets);
        bf16 = true;
        job_init(&half, (enum cr_arch)arch, CR_F32, CR_POOL_SHARED, all_targets);
        bf16 = false;
        double a = cr_pass_run(full.pass, full.params, &full.b.micro, full.grads, full.da, NULL, 0);
        double b = cr_pass_run(half.pass, half.params, &half.b.micro, half.grads, half.da, NULL, 0);
        expect("loss", arch, fabs(a - b), 0.01 * a);
        double bound = arch <= CR_ARCH_QWEN3 ? 0.03 : 0.06;
        expect("adapters", arch, distance(half.grads, full.grads, full.p.n_adapter), bound);
        expect("weights", arch, distance(half.da, full.da, GROUPS * N), bound);
        job_deinit(&half);
        job_deinit(&full);
    }
}

static void out_of_memory(void **state)
{
    (void)state;
    struct tiny *t = tiny_new(CR_ARCH_LLAMA, CR_F32);
    struct cr_pass_shape shape = {TOKENS, ANSWERS, GROUPS, 12, false};
    struct cr_lowrank p;
    struct cr_frozen frozen;
    struct cr_pass_shared tables;
    cr_pass *pass;
    cr_lowrank_init(&p, &t->m, CR_POOL_SHARED, N, RANK, 4, all_targets, GROUPS);
    assert_int_equal(cr_frozen_init(&frozen, &t->m, &p, false, NULL), CR_OK);
    for (uint64_t n = 1; n <= 2; n++) {
        cr_mem_fail_at(n, false);
        assert_int_equal(cr_pass_shared_init(&tables, &t->m, &shape, NULL), CR_NO_MEMORY);
    }
    cr_mem_fail_at(0, false);
    assert_int_equal(cr_pass_shared_init(&tables, &t->m, &shape, NULL), CR_OK);
    size_t before = cr_mem_now();
    for (uint64_t n = 1; n <= 5; n++) {
        cr_mem_fail_at(n, false);
        assert_int_equal(cr_pass_new(&pass, &frozen, &tables, &shape, NULL), CR_NO_MEMORY);
        assert_true(cr_mem_now() == before);
    }
    cr_mem_fail_at(0, false);
    assert_int_equal(cr_pass_new(&pass, &frozen, &tables, &shape, NULL), CR_OK);
    assert_true(cr_mem_now() - before == cr_pass_bytes(&frozen, &shape)); /* the plan is exact */
    cr_pass_free(pass);
    cr_pass_shared_deinit(&tables);
    tiny_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_shared),
        cmocka_unit_test(llama_separate),
        cmocka_unit_test(qwen2_bias),
        cmocka_unit_test(qwen3_head_norms),
        cmocka_unit_test(smollm3_layer_without_rotation),
        cmocka_unit_test(gemma3_windows_gelu_norms_after),
        cmocka_unit_test(phi3_window_part_of_heads),
        cmocka_unit_test(quantised),
        cmocka_unit_test(some_targets),
        cmocka_unit_test(packing),
        cmocka_unit_test(turns),
        cmocka_unit_test(bfloat16),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
