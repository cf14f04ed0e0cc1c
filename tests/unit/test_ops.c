/* SPDX-License-Identifier: Apache-2.0 */
/* Every operation of a layer against finite differences of its own forward. */
#include "gradient.h"
#include "tune/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static const struct cr_kernels *kernels(void)
{
    const struct cr_kernels *k = NULL;
    assert_int_equal(cr_kernels_get(&k, NULL, NULL), CR_OK);
    return k;
}

static void expect(const char *what, double error, double bound)
{
    if (!(error <= bound))
        fail_msg("%s: relative error %g, bound %g", what, error, bound);
}

/* ---- one row in, one row out: f = sum_i c_i y_i ---- */

enum { N = 64 };
struct row {
    const struct cr_kernels *k;
    const struct cr_train_kernels *t;
    float x[N], u[N], w[N], c[N], y[N];
    cr_model m;
    float cs[N];
    bool gelu;
};

static double weigh(const struct row *r)
{
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += (double)r->c[i] * r->y[i];
    return sum;
}

static double norm_value(void *ud)
{
    struct row *r = ud;
    r->k->rmsnorm(r->y, r->x, r->w, N, 1e-5f);
    return weigh(r);
}

static double gated_value(void *ud)
{
    struct row *r = ud;
    memcpy(r->y, r->x, sizeof r->y);
    (r->gelu ? r->k->gelu_mul : r->k->silu_mul)(r->y, r->u, N);
    return weigh(r);
}

static double rope_value(void *ud)
{
    struct row *r = ud;
    memcpy(r->y, r->x, sizeof r->y);
    cr_rope_row(&r->m, r->y, 2, r->cs);
    return weigh(r);
}

static void start_row(struct row *r)
{
    memset(r, 0, sizeof *r);
    r->k = kernels();
    r->t = cr_train_kernels_get(r->k->level);
    fill_normal(r->x, N, 1, 1);
    fill_normal(r->u, N, 1, 2);
    fill_normal(r->w, N, 1, 3);
    fill_normal(r->c, N, 1, 4);
}

static void rmsnorm_gradient(void **state)
{
    (void)state;
    struct row r;
    float g[N] = {0};
    start_row(&r);
    r.t->rmsnorm_back(g, r.c, r.x, r.w, N, 1e-5f);
    expect("rmsnorm", gradient_error(norm_value, &r, r.x, g, N, 1e-2, 5), 1e-3);
    float twice[N];
    memcpy(twice, g, sizeof g);
    r.t->rmsnorm_back(twice, r.c, r.x, r.w, N, 1e-5f); /* it adds */
    for (int i = 0; i < N; i++)
        expect("added", fabs((double)twice[i] - 2 * (double)g[i]), 1e-6);
}

static void gated_gradients(void **state)
{
    (void)state;
    for (int gelu = 0; gelu < 2; gelu++) {
        struct row r;
        float dg[N], du[N];
        start_row(&r);
        r.gelu = gelu;
        void (*back)(float *, float *, const float *, const float *, const float *, size_t) =
            gelu ? r.t->gelu_mul_back : r.t->silu_mul_back;
        r.x[0] = 30, r.x[1] = -30, r.x[2] = 0;
        back(dg, du, r.c, r.x, r.u, N);
        expect(gelu ? "gelu, gate" : "silu, gate",
               gradient_error(gated_value, &r, r.x, dg, N, 1e-2, 6), 1e-3);
        expect(gelu ? "gelu, up" : "silu, up", gradient_error(gated_value, &r, r.u, du, N, 1e-2, 7),
               1e-3);
        r.x[0] = -200, r.x[1] = 200; /* no overflow far out */
        back(dg, du, r.c, r.x, r.u, N);
        assert_true(fabsf(dg[0]) < 1e-20f && fabsf(du[0]) < 1e-20f);
        expect("far out", fabs((double)dg[1] - (double)(r.c[1] * r.u[1])), 1e-6);
    }
}

static void rope_gradient(void **state)
{
    (void)state;
    for (int neox = 0; neox < 2; neox++) {
        struct row r;
        float freq[N / 4], table[8 * N / 2], back[8 * N / 2], g[N];
        start_row(&r);
        for (int i = 0; i < N / 4; i++)
            freq[i] = powf(10000, -(float)i / (N / 4));
        r.m = (cr_model){.head_dim = N / 2,
                         .rope_dim = N / 2,
                         .rope_neox = neox,
                         .rope_freq = freq,
                         .rope_mscale = 1.25f,
                         .n_ropes = 1,
                         .k = r.k};
        cr_rope_table(&r.m, table, 8, 1);
        cr_rope_table(&r.m, back, 8, -1);
        memcpy(r.cs, table + 7 * N / 2, N / 2 * sizeof(float));
        memcpy(g, r.c, sizeof g);
        cr_rope_row(&r.m, g, 2, back + 7 * N / 2);
        expect(neox ? "rope, neox" : "rope", gradient_error(rope_value, &r, r.x, g, N, 1e-2, 8),
               1e-3);
    }
}

/* ---- cross-entropy ---- */

static double ce_value(void *ud)
{
    struct row *r = ud;
    memcpy(r->y, r->x, sizeof r->y);
    return 0.5 * (double)cr_cross_entropy(r->k, r->y, N, 3, 0.5f);
}

static void cross_entropy_gradient(void **state)
{
    (void)state;
    struct row r;
    float g[N];
    double sum = 0;
    start_row(&r);
    memcpy(g, r.x, sizeof g);
    float nll = cr_cross_entropy(r.k, g, N, 3, 0.5f);
    for (int i = 0; i < N; i++)
        sum += exp((double)r.x[i]);
    expect("nll", fabs((double)nll - (log(sum) - (double)r.x[3])), 1e-5);
    expect("cross-entropy", gradient_error(ce_value, &r, r.x, g, N, 1e-2, 9), 1e-3);
    for (int i = 0; i < N; i++) /* a hopeless target stays finite */
        g[i] = i == 5 ? 300.0f : 0.0f;
    expect("hopeless", fabs((double)cr_cross_entropy(r.k, g, N, 3, 1) - 300), 1e-3);
    expect("hopeless", fabs((double)g[3] + 1), 1e-6);
}

/* ---- attention: 4 heads on 2 kv heads, more rows than a block, and rows left out ---- */

enum { D = 8, H = 4, G = 2, T = 150, LDQ = H * D + 3, LDKV = G * D + 5 };
struct attention_case {
    struct cr_attention a;
    float *q, *k, *v, *o, *c, *scratch;
    int32_t limit[T];
};

static double attention_value(void *ud)
{
    struct attention_case *t = ud;
    double sum = 0;
    cr_attention_forward(&t->a, t->o, H * D, t->scratch);
    for (size_t i = 0; i < t->a.n_q * H * D; i++)
        sum += (double)t->c[i] * t->o[i];
    return sum;
}

static void start_attention(struct attention_case *t, size_t n_q, size_t window)
{
    t->q = new_normal(T * LDQ, 1, 11);
    t->k = new_normal(T * LDKV, 1, 12);
    t->v = new_normal(T * LDKV, 1, 13);
    t->c = new_normal(T * H * D, 1, 14);
    t->o = new_normal(T * H * D, 1, 15);
    t->scratch = new_normal(cr_attention_scratch(cr_train_kernels_get(CR_CPU_REF), D, T), 1, 16);
    for (size_t i = 0; i < n_q; i++)
        t->limit[i] = (int32_t)(T - (n_q - 1 - i) * (n_q < T ? 2 : 1));
    t->a = (struct cr_attention){.kernels = kernels(),
                                 .train = cr_train_kernels_get(CR_CPU_REF),
                                 .n_heads = H,
                                 .n_kv_heads = G,
                                 .head_dim = D,
                                 .scale = 0.4f,
                                 .window = window,
                                 .n_q = n_q,
                                 .n_kv = T,
                                 .q = t->q,
                                 .k = t->k,
                                 .v = t->v,
                                 .ldq = LDQ,
                                 .ldk = LDKV,
                                 .ldv = LDKV,
                                 .limit = t->limit};
}

static void stop_attention(struct attention_case *t)
{
    float *all[] = {t->q, t->k, t->v, t->c, t->o, t->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cr_free(all[i]);
}

static void attention_forward(void **state)
{
    (void)state;
    const int windows[] = {0, 1, 40};
    for (int w = 0; w < 3; w++) {
        struct attention_case t;
        start_attention(&t, T, (size_t)windows[w]);
        attention_value(&t);
        for (int h = 0; h < H; h++) {
            for (int i = 0; i < T; i += 37) {
                double p[T], sum = 0, y = 0;
                int first = windows[w] && i >= windows[w] ? i - windows[w] + 1 : 0;
                for (int j = first; j <= i; j++) {
                    double s = 0;
                    for (int x = 0; x < D; x++)
                        s += (double)t.q[i * LDQ + h * D + x] * t.k[j * LDKV + h / 2 * D + x];
                    sum += p[j] = exp(s * (double)t.a.scale);
                }
                for (int j = first; j <= i; j++)
                    y += p[j] / sum * t.v[j * LDKV + h / 2 * D];
                expect("output", fabs((double)t.o[i * H * D + h * D] - y), 1e-5);
            }
        }
        stop_attention(&t);
    }
}

static void attention_gradient(void **state)
{
    (void)state;
    size_t n_qs[] = {T, 5, T}, windows[] = {0, 0, 40};
    for (int pass = 0; pass < 3; pass++) {
        struct attention_case t;
        start_attention(&t, n_qs[pass], windows[pass]);
        float *dq = cr_alloc0(T * LDQ, sizeof *dq), *dk = cr_alloc0(T * LDKV, sizeof *dk),
              *dv = cr_alloc0(T * LDKV, sizeof *dv);
        attention_value(&t);
        cr_attention_back(&t.a, t.o, t.c, H * D, dq, LDQ, dk, LDKV, dv, LDKV, t.scratch);
        size_t n_q = n_qs[pass] * LDQ;
        expect("attention, q", gradient_error(attention_value, &t, t.q, dq, n_q, 1e-2, 17), 2e-3);
        expect("attention, k", gradient_error(attention_value, &t, t.k, dk, T * LDKV, 1e-2, 18),
               2e-3);
        expect("attention, v", gradient_error(attention_value, &t, t.v, dv, T * LDKV, 1e-2, 19),
               2e-3);
        cr_free(dv);
        cr_free(dk);
        cr_free(dq);
        stop_attention(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_gradient),  cmocka_unit_test(gated_gradients),
        cmocka_unit_test(rope_gradient),     cmocka_unit_test(cross_entropy_gradient),
        cmocka_unit_test(attention_forward), cmocka_unit_test(attention_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
