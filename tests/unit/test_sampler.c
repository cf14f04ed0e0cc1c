/* SPDX-License-Identifier: Apache-2.0 */
/* sampler.c: against a naive sampler that sorts everything, and what each setting promises. */
#include "unit/tiny_gguf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static cr_model *model;

static int open_model(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    const struct cr_model_options opt = {.n_threads = 1, .vocab_only = true};
    model = tiny_open(&t, &opt);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    cr_model_close(model);
    return 0;
}

/* Plain sampling at temperature 1. */
static struct cr_sampling plain(void)
{
    return (struct cr_sampling){.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 1};
}

static cr_sampler *new_sampler(const struct cr_sampling *p)
{
    cr_sampler *s;
    struct cr_error err;
    if (cr_sampler_new(&s, model, p, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return s;
}

static void fill(float *logits, float v)
{
    for (int i = 0; i < TINY_VOCAB; i++)
        logits[i] = v;
}

static int32_t once(const struct cr_sampling *p, const float *logits)
{
    cr_sampler *s = new_sampler(p);
    int32_t id = cr_sampler_next(s, logits, NULL);
    cr_sampler_free(s);
    return id;
}

static void test_ranges(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        struct cr_sampling p;
    } bad[] = {{"temperature", {-1, 0, 1, 0, 1, 0, 0}},
               {"temperature", {101, 0, 1, 0, 1, 0, 0}},
               {"temperature", {NAN, 0, 1, 0, 1, 0, 0}},
               {"top_k", {1, -1, 1, 0, 1, 0, 0}},
               {"top_p", {1, 0, 1.5f, 0, 1, 0, 0}},
               {"top_p", {1, 0, -0.1f, 0, 1, 0, 0}},
               {"top_p", {1, 0, NAN, 0, 1, 0, 0}},
               {"min_p", {1, 0, 1, 1.1f, 1, 0, 0}},
               {"min_p", {1, 0, 1, -1, 1, 0, 0}},
               {"repeat_penalty", {1, 0, 1, 0, 0, 0, 0}},
               {"repeat_penalty", {1, 0, 1, 0, INFINITY, 0, 0}},
               {"repeat_last_n", {1, 0, 1, 0, 1, -1, 0}},
               {"repeat_last_n", {1, 0, 1, 0, 1, 1025, 0}}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_sampler *s;
        struct cr_error err;
        assert_int_equal(cr_sampler_new(&s, model, &bad[i].p, &err), CR_INVALID);
        assert_null(s);
        assert_non_null(strstr(err.msg, bad[i].name));
    }
    const struct cr_sampling edge = {100, INT32_MAX, 0, 1, 100, 1024, UINT64_MAX};
    cr_sampler_free(new_sampler(&edge));
    const struct cr_sampling standard = cr_sampling_default();
    cr_sampler_free(new_sampler(&standard));
    cr_sampler_free(NULL);
}

static void test_greedy(void **state)
{
    (void)state;
    float logits[TINY_VOCAB];
    struct cr_sampling p = plain();
    p.temperature = 0;
    fill(logits, -1);
    logits[7] = logits[9] = 2;
    assert_int_equal(once(&p, logits), 7);
    logits[200] = 3;
    assert_int_equal(once(&p, logits), 200);
    fill(logits, NAN);
    assert_int_equal(once(&p, logits), 0);
    logits[5] = -INFINITY;
    assert_int_equal(once(&p, logits), 5);
    logits[6] = -3;
    assert_int_equal(once(&p, logits), 6);
    logits[8] = INFINITY;
    p.temperature = 1;
    assert_int_equal(once(&p, logits), 8);
}

/* ---- the naive sampler ---- */

struct entry {
    float logit;
    int32_t id;
};

static int by_logit(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

/* The documented steps, one by one, on a fully sorted list. Returns the size of what is left. */
static size_t naive_set(const struct cr_sampling *p, const float *logits, struct entry *e)
{
    for (int i = 0; i < TINY_VOCAB; i++)
        e[i] = (struct entry){logits[i], i};
    qsort(e, TINY_VOCAB, sizeof *e, by_logit);
    double w[TINY_VOCAB], total = 0, kept = 0;
    size_t n = 0;
    for (; n < TINY_VOCAB; n++)
        if ((double)e[n].logit - (double)e[0].logit <
            (double)p->temperature * log((double)p->min_p))
            break;
    if (p->top_k && (size_t)p->top_k < n)
        n = (size_t)p->top_k;
    for (size_t i = 0; i < n; i++)
        total += w[i] = exp(((double)e[i].logit - (double)e[0].logit) / (double)p->temperature);
    size_t m = 0;
    while (m < n && (m == 0 || kept < (double)p->top_p * total))
        kept += w[m++];
    return m;
}

static void test_same_sets_as_the_naive_sampler(void **state)
{
    (void)state;
    struct cr_rng rng;
    cr_rng_init(&rng, 11);
    static const int ks[] = {0, 1, 2, 5, 40, 258, 259, 1000};
    static const float ps[] = {1, 0.95f, 0.5f, 0.1f, 0}, ms[] = {0, 0.01f, 0.3f, 1};
    for (int round = 0; round < 8 * 5 * 4; round++) {
        struct cr_sampling p = plain();
        p.top_k = ks[round % 8];
        p.top_p = ps[round / 8 % 5];
        p.min_p = ms[round / 40];
        p.temperature = round % 3 ? 0.7f : 1.6f;
        float logits[TINY_VOCAB];
        for (int i = 0; i < TINY_VOCAB; i++) /* some ties */
            logits[i] = (float)(int)(40 * cr_rng_normal(&rng)) / 16;
        struct entry e[TINY_VOCAB];
        size_t n = naive_set(&p, logits, e);
        cr_sampler *s = new_sampler(&p);
        size_t seen[TINY_VOCAB] = {0};
        for (int i = 0; i < 300; i++)
            seen[cr_sampler_next(s, logits, NULL)]++;
        for (size_t i = n; i < TINY_VOCAB; i++)
            if (seen[e[i].id])
                fail_msg("round %d: token %d is not among the %zu allowed", round, (int)e[i].id, n);
        assert_true(seen[e[0].id] > 0 || n > 20);
        cr_sampler_free(s);
    }
}

static void test_frequencies(void **state)
{
    (void)state;
    enum { DRAWS = 40000 };
    float logits[TINY_VOCAB];
    fill(logits, -200);
    static const double want[] = {0.5, 0.25, 0.15, 0.1};
    for (int i = 0; i < 4; i++)
        logits[10 * i] = (float)log(want[i]);
    for (int top_k = 0; top_k <= 4; top_k += 4) { /* unordered and ordered ways */
        struct cr_sampling p = plain();
        p.top_k = top_k;
        cr_sampler *s = new_sampler(&p);
        int seen[4] = {0};
        for (int i = 0; i < DRAWS; i++) {
            int32_t id = cr_sampler_next(s, logits, NULL);
            assert_true(id % 10 == 0 && id <= 30);
            seen[id / 10]++;
        }
        for (int i = 0; i < 4; i++) { /* five standard deviations */
            double sd = sqrt(DRAWS * want[i] * (1 - want[i]));
            assert_true(fabs(seen[i] - DRAWS * want[i]) < 5 * sd);
        }
        cr_sampler_free(s);
    }
}

static void test_seeds(void **state)
{
    (void)state;
    float logits[TINY_VOCAB];
    fill(logits, 0);
    struct cr_sampling p = plain(), q = plain();
    q.seed = 2;
    cr_sampler *a = new_sampler(&p), *b = new_sampler(&p), *c = new_sampler(&q);
    int differ = 0;
    for (int i = 0; i < 100; i++) {
        int32_t x = cr_sampler_next(a, logits, NULL);
        assert_int_equal(x, cr_sampler_next(b, logits, NULL));
        differ += x != cr_sampler_next(c, logits, NULL);
    }
    assert_true(differ > 80);
    cr_sampler_free(a);
    cr_sampler_free(b);
    cr_sampler_free(c);
}

static void test_repetition_penalty(void **state)
{
    (void)state;
    float logits[TINY_VOCAB];
    fill(logits, -50);
    logits[1] = 4;
    logits[2] = 3;
    logits[3] = 1.9f;
    struct cr_sampling p = plain();
    p.temperature = 0;
    p.repeat_penalty = 2;
    p.repeat_last_n = 2;
    cr_sampler *s = new_sampler(&p);
    /* a token that occurs twice is punished once: 4 / 2 = 2 stays above 1.9 */
    cr_sampler_accept(s, 1);
    cr_sampler_accept(s, 1);
    assert_int_equal(cr_sampler_next(s, logits, NULL), 2); /* window 1 2 */
    assert_int_equal(cr_sampler_next(s, logits, NULL), 1); /* 2, 1.5, 1.9 -> window 2 1 */
    assert_int_equal(cr_sampler_next(s, logits, NULL), 1);
    assert_int_equal(cr_sampler_next(s, logits, NULL), 2); /* 2 has left the window */
    cr_sampler_accept(s, -1);
    cr_sampler_accept(s, TINY_VOCAB);
    cr_sampler_free(s);
    fill(logits, -1); /* negative logits are multiplied */
    logits[4] = -0.5f;
    s = new_sampler(&p);
    cr_sampler_accept(s, 4);
    logits[5] = -0.9f;
    assert_int_equal(cr_sampler_next(s, logits, NULL), 5);
    cr_sampler_free(s);
}

static void test_logprob_is_of_the_unmodified_distribution(void **state)
{
    (void)state;
    struct cr_rng rng;
    cr_rng_init(&rng, 12);
    float logits[TINY_VOCAB], logprob;
    for (int round = 0; round < 50; round++) {
        struct cr_sampling p = cr_sampling_default();
        p.temperature = round % 2 ? 3 : 0;
        p.repeat_penalty = 1.5f;
        p.seed = (uint64_t)round;
        double sum = 0;
        for (int i = 0; i < TINY_VOCAB; i++) {
            logits[i] = 8 * (float)cr_rng_normal(&rng);
            sum += exp((double)logits[i]);
        }
        cr_sampler *s = new_sampler(&p);
        for (int i = 0; i < 3; i++) {
            int32_t id = cr_sampler_next(s, logits, &logprob);
            assert_true(fabs((double)logprob - ((double)logits[id] - log(sum))) < 1e-4);
        }
        cr_sampler_free(s);
    }
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    const struct cr_sampling p = cr_sampling_default();
    size_t before = cr_mem_now();
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        cr_sampler *s;
        struct cr_error err;
        cr_mem_fail_at(n, false);
        enum cr_status status = cr_sampler_new(&s, model, &p, &err);
        cr_mem_fail_at(0, false);
        done = status == CR_OK;
        if (!done) {
            assert_int_equal(status, CR_NO_MEMORY);
            assert_null(s);
        }
        cr_sampler_free(s);
        assert_int_equal(cr_mem_now(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_same_sets_as_the_naive_sampler),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_repetition_penalty),
        cmocka_unit_test(test_logprob_is_of_the_unmodified_distribution),
        cmocka_unit_test(test_every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
