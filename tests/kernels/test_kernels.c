/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel of every level that this machine has, against double precision or the reference.
 * Exact where arithmetic is exact (small integers, codes, quantised products), else within bounds
 * derived in docs/numerics.md. Outputs are poisoned, buffers begin at odd offsets and stand between
 * guard bytes or end where memory does.
 *
 *     test_kernels [--kernel=PATTERN] [--cpu=LEVEL] [--seed=N] [--bench [--csv]]
 */
#include "fixture.h"

#include "kernels/groups.h"

#include <fnmatch.h>
#include <signal.h>
#include <time.h>

static bool untouched(const float *y, size_t n)
{
    const unsigned char *b = (const unsigned char *)y;
    for (size_t i = 0; i < 4 * n; i++)
        if (b[i] != POISON)
            return false;
    return true;
}

static bool packs(enum cr_type type, size_t n)
{
    return K->panel_rows && K->pack[type] && (n == 0 || K->panel_bytes(type, n) > 0);
}

/* Integers: exact. Reals: within the chain bound; groups add one rounded term, and one for their
 * minimum or second half, whose scale is one more rounding. */
static void check_product(enum cr_type type, size_t rows, size_t n_tok, size_t n, enum filling how)
{
    struct product p = product_new(type, rows, n_tok, n, how);
    size_t total = n_tok ? (n_tok - 1) * p.ldy + rows : 0;
    struct buf y = buf_new(4 * total, 4 * below(8));
    product_run(&p, K, floats(&y));
    double m = blocked(type) ? (double)(n / CR_QK) * 2 + 2 : n <= 64 ? (double)n + 1 : chain(n);
    if (K->split_f32 && (type == CR_F16 || type == CR_BF16)) /* a tile's 16 pairs, and the tiles */
        m = (double)(n / 32) + 22;
    for (size_t t = 0; t < n_tok; t++) {
        const float *row = floats(&y) + t * p.ldy;
        for (size_t r = 0; r < rows; r++) {
            double size, want = product_exact(&p, r, t, &size);
            double bound = how == INTEGERS ? 0 : gamma_of(m) * size;
            CHECK(fabs(row[r] - want) <= bound,
                  "%zux%zu, %zu tokens, row %zu token %zu: %.9g, want %.9g +- %g", rows, n, n_tok,
                  r, t, (double)row[r], want, bound);
        }
        if (t + 1 < n_tok)
            CHECK(untouched(row + rows, p.ldy - rows), "the gap after row %zu was written", t);
    }
    if (blocked(type)) { /* the same bits as the reference */
        struct buf z = buf_new(4 * total, 0);
        product_run(&p, ref, floats(&z));
        for (size_t t = 0; t < n_tok; t++)
            CHECK(same_bits(floats(&y) + t * p.ldy, floats(&z) + t * p.ldy, 4 * rows),
                  "%zux%zu, %zu tokens: differs from ref at token %zu", rows, n, n_tok, t);
        buf_free(&z);
    }
    if (packs(type, n)) { /* and packed */
        struct buf z = buf_new(4 * total, 4 * below(8));
        product_run_packed(&p, K, floats(&z), p.ldy, 0, rows, 0, n_tok);
        CHECK(same_bits(floats(&y), floats(&z), 4 * total), "%zux%zu, %zu tokens: packed differs",
              rows, n, n_tok);
        buf_free(&z);
    }
    buf_free(&y);
    product_free(&p);
}

/* The law: any rectangle of the outputs computed alone has the same bits. */
static void check_law(enum cr_type type, size_t n)
{
    struct product p = product_new(type, 45, 37, n, RANDOM_REALS);
    struct buf y = buf_new(4 * p.n_tok * p.ldy, 0);
    product_run(&p, K, floats(&y));
    for (int trial = 0; trial < 200; trial++) {
        size_t r0 = below(p.rows), t0 = below(p.n_tok);
        size_t nr = trial % 4 == 0 ? 1 : 1 + below(p.rows - r0);
        size_t nt = trial % 4 == 1 ? 1 : 1 + below(p.n_tok - t0);
        struct buf z = buf_new(4 * nt * nr, 4 * below(8));
        size_t bytes;
        const void *x = product_x(&p, K, t0, &bytes);
        K->matmul[type](floats(&z), nr, p.w.data + r0 * p.row_bytes, p.row_bytes, x, bytes, nr, nt,
                        n);
        for (size_t t = 0; t < nt; t++)
            CHECK(same_bits(floats(&z) + t * nr, floats(&y) + (t0 + t) * p.ldy + r0, 4 * nr),
                  "n %zu: rows %zu+%zu, tokens %zu+%zu differ from the whole", n, r0, nr, t0, nt);
        if (packs(type, n)) {
            r0 = r0 / K->panel_rows * K->panel_rows;
            product_run_packed(&p, K, floats(&z), nr, r0, nr, t0, nt);
            for (size_t t = 0; t < nt; t++)
                CHECK(same_bits(floats(&z) + t * nr, floats(&y) + (t0 + t) * p.ldy + r0, 4 * nr),
                      "n %zu: packed rows %zu+%zu, tokens %zu+%zu", n, r0, nr, t0, nt);
        }
        buf_free(&z);
    }
    buf_free(&y);
    product_free(&p);
}

/* A NaN or infinity in one weight row or one activation reaches its own outputs and no other. */
static void check_product_specials(enum cr_type type)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 3; k++) {
        size_t n = is_k(type) ? 512 : 96, i = below(n);
        struct product p = product_new(type, 19, k == 0 ? 14 : 21, n, RANDOM_REALS);
        struct buf y = buf_new(4 * p.n_tok * p.ldy, 0), z = buf_new(4 * p.n_tok * p.ldy, 0);
        unsigned char *w = p.w.data + 7 * p.row_bytes, *x = p.x.data + 5 * p.x_bytes;
        if (blocked(type)) {
            uint16_t h = cr_f32_to_f16(odd[k]);
            const struct cr_type_info *info = cr_type_info(type);
            memcpy(w + i / info->block * info->block_size + (type == CR_Q6_K ? 208 : 0), &h, 2);
            memcpy(x + i / CR_QK * sizeof(struct cr_block_q8a), &odd[k], 4);
        } else {
            size_t size = cr_type_info(type)->block_size;
            cr_quantize_ref(type, w + i * size, &odd[k], 1);
            if (type == CR_BF16)
                cr_quantize_ref(type, x + 2 * i, &odd[k], 1);
            else
                memcpy(x + 4 * i, &odd[k], 4);
            split_activations(&p);
        }
        /* A sum of terms may have infinities of both signs, which make a NaN. */
        const bool terms = type == CR_F16 && K->split_f32;
        product_run(&p, K, floats(&y));
        product_run(&p, ref, floats(&z));
        for (size_t t = 0; t < p.n_tok; t++)
            for (size_t r = 0; r < p.rows; r++) {
                float a = floats(&y)[t * p.ldy + r], b = floats(&z)[t * p.ldy + r];
                CHECK(isfinite(b) == (t != 5 && r != 7) && (isfinite(b) ? isfinite(a)
                                                            : terms     ? !isfinite(a)
                                                                        : same(a, b)),
                      "row %zu token %zu: %g, ref %g", r, t, (double)a, (double)b);
            }
        buf_free(&y);
        buf_free(&z);
        product_free(&p);
    }
}

/* The largest sums that codes and activations can make: no step on the way is too narrow. */
static void check_product_extremes(enum cr_type type)
{
    static const unsigned char bytes[] = {0, 0xff, 0x80, 0x7f, 0x0f, 0xf0};
    const size_t n = is_k(type) ? 512 : 416, size = cr_type_info(type)->block_size;
    const size_t head = type == CR_Q6_K ? 0 : has_minimum(type) ? 4 : 2;
    struct product p = product_new(type, 53, 21, n, RANDOM_REALS);
    struct buf y = buf_new(4 * p.n_tok * p.ldy, 0), z = buf_new(4 * p.n_tok * p.ldy, 0);
    for (size_t r = 0; r < p.rows; r++)
        for (size_t b = 0; b < n / cr_type_info(type)->block; b++)
            memset(p.w.data + r * p.row_bytes + b * size + head, bytes[r % sizeof bytes],
                   size - (type == CR_Q6_K ? 2 : head));
    for (size_t t = 0; t < p.n_tok; t++)
        for (size_t b = 0; b < n / CR_QK; b++) {
            struct cr_block_q8a *x = (struct cr_block_q8a *)(void *)(p.x.data + t * p.x_bytes) + b;
            memset(x->q, t % 2 ? 127 : -127, CR_QK);
            x->sum = CR_QK * x->q[0];
            x->s = x->d * (float)x->sum;
        }
    product_run(&p, ref, floats(&z));
    product_run(&p, K, floats(&y));
    for (size_t t = 0; t < p.n_tok; t++)
        CHECK(same_bits(floats(&y) + t * p.ldy, floats(&z) + t * p.ldy, 4 * p.rows),
              "token %zu differs from ref", t);
    if (packs(type, n))
        product_run_packed(&p, K, floats(&y), p.ldy, 0, p.rows, 0, p.n_tok);
    for (size_t t = 0; t < p.n_tok; t++)
        CHECK(same_bits(floats(&y) + t * p.ldy, floats(&z) + t * p.ldy, 4 * p.rows),
              "packed, token %zu differs from ref", t);
    buf_free(&y);
    buf_free(&z);
    product_free(&p);
}

static void test_matmul(enum cr_type type)
{
    static const size_t rows[] = {0, 1, 2, 5, 8, 15, 16, 17, 24, 33, 100, 203},
                        toks[] = {0, 1, 2, 3, 4, 5, 7, 13, 8, 16, 23, 32};
    for (size_t l = 0; l < N_LENGTHS; l++) {
        size_t n = lengths[l];
        if (n % cr_type_info(type)->block != 0)
            continue;
        for (int trial = 0; trial < (n < 100 ? 12 : 3); trial++) {
            check_product(type, rows[below(12)], toks[below(12)], n, INTEGERS);
            check_product(type, rows[below(12)], toks[below(12)], n, RANDOM_REALS);
        }
    }
    const size_t k = is_k(type) ? 8 : 1;
    check_product(type, 18, 131, 64 * k, RANDOM_REALS); /* more tokens than one pass takes */
    check_law(type, 96 * k);
    check_law(type, 64 * k);
    check_law(type, blocked(type) ? 32 * k : 13);
    check_law(type, is_k(type) ? 2048 : 2080); /* more than one panel of groups */
    check_product_specials(type);
    if (blocked(type))
        check_product_extremes(type);
}

/* ---- conversions ----------------------------------------------------------------------- */

static void test_quantize_q8a(void)
{
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (int p = 0; p < N_PATTERNS + 3 && lengths[l] % CR_QK == 0; p++) {
            size_t n = lengths[l], bytes = n / CR_QK * sizeof(struct cr_block_q8a);
            struct buf x = buf_new(4 * n, 4 * below(8)), a = buf_new(bytes, 4 * below(8));
            struct buf b = buf_new(bytes, 0);
            for (size_t i = 0; i < n; i++)
                floats(&x)[i] = pattern_value(p < N_PATTERNS ? (enum pattern)p : REALS, i);
            if (p >= N_PATTERNS && n > 0) /* one bad value */
                floats(&x)[below(n)] = p == N_PATTERNS ? NAN : p % 2 ? INFINITY : -INFINITY;
            if (p == REALS && n > 0) /* exact halves between codes */
                for (size_t i = 0; i < 32; i++)
                    floats(&x)[i] = i == 0 ? 127 : (float)below(254) - 126.5f;
            K->quantize_q8a((void *)a.data, floats(&x), n);
            ref->quantize_q8a((void *)b.data, floats(&x), n);
            for (size_t i = 0; i < n / CR_QK; i++) {
                struct cr_block_q8a u, v;
                memcpy(&u, a.data + i * sizeof u, sizeof u);
                memcpy(&v, b.data + i * sizeof v, sizeof v);
                CHECK(same(u.d, v.d) && same(u.s, v.s) && same_bits(u.q, v.q, CR_QK),
                      "n %zu, pattern %d, block %zu: d %g %g, s %g %g", n, p, i, (double)u.d,
                      (double)v.d, (double)u.s, (double)v.s);
                for (int j = 0; j < CR_QK && u.d > 0; j++) /* and it is what kernels.h says */
                    CHECK(p == SUBNORMAL || p == TINY ||
                              fabs((double)u.d * u.q[j] - floats(&x)[i * 32 + (size_t)j]) <=
                                  0.5001 * u.d,
                          "n %zu: code %d is not the nearest", n, u.q[j]);
            }
            buf_free(&x);
            buf_free(&a);
            buf_free(&b);
        }
}

static void test_dequantize(enum cr_type type)
{
    for (size_t l = 0; l < N_LENGTHS; l++) {
        size_t n = lengths[l];
        if (n % cr_type_info(type)->block != 0)
            continue;
        struct buf src = buf_new(cr_row_bytes(type, n), blocked(type) ? below(8) : 4 * below(8));
        struct buf a = buf_new(4 * n, 4 * below(8)), b = buf_new(4 * n, 0);
        for (size_t i = 0; i < src.size; i++) /* any bytes: NaN scales and subnormals too */
            src.data[i] = (unsigned char)below(256);
        K->dequantize[type](floats(&a), src.data, n);
        ref->dequantize[type](floats(&b), src.data, n);
        for (size_t i = 0; i < n; i++)
            CHECK(same(floats(&a)[i], floats(&b)[i]) &&
                      (isnan(floats(&a)[i]) || !signbit(floats(&a)[i]) == !signbit(floats(&b)[i])),
                  "n %zu, value %zu: %g, ref %g", n, i, (double)floats(&a)[i],
                  (double)floats(&b)[i]);
        buf_free(&src);
        buf_free(&a);
        buf_free(&b);
    }
}

static void test_f32_to_f16(void)
{
    for (size_t l = 0; l < N_LENGTHS; l++) {
        size_t n = lengths[l];
        struct buf x = buf_new(4 * n, 4 * below(8)), h = buf_new(2 * n, 2 * below(8));
        for (size_t i = 0; i < n; i++) {
            uint32_t u = (uint32_t)cr_rng_u64(&rng);
            if (i % 2) /* the range of float16, where rounding matters */
                u = (u & 0x80ffffffu) + 0x33000000u + ((uint32_t)below(32) << 23);
            memcpy(x.data + 4 * i, &u, 4);
        }
        K->f32_to_f16((void *)h.data, floats(&x), n);
        for (size_t i = 0; i < n; i++) {
            uint16_t got, want = cr_f32_to_f16(floats(&x)[i]);
            memcpy(&got, h.data + 2 * i, 2);
            CHECK(got == want, "%.9g: %04x, want %04x", (double)floats(&x)[i], got, want);
        }
        buf_free(&x);
        buf_free(&h);
    }
}

/* ---- vectors --------------------------------------------------------------------------- */

static void test_rmsnorm(void)
{
    for (size_t l = 1; l < N_LENGTHS; l++)
        for (int p = 0; p < N_PATTERNS; p++) {
            size_t n = lengths[l];
            struct buf x = buf_new(4 * n, 4 * below(8)), w = buf_new(4 * n, 4 * below(8));
            struct buf y = buf_new(4 * n, 4 * below(8));
            double sum = 0;
            for (size_t i = 0; i < n; i++) {
                floats(&x)[i] = pattern_value((enum pattern)p, i);
                floats(&w)[i] = (float)uniform(-2, 2);
                sum += (double)floats(&x)[i] * floats(&x)[i];
            }
            K->rmsnorm(floats(&y), floats(&x), floats(&w), n, 1e-5f);
            double r = 1 / sqrt(sum / (double)n + (double)1e-5f);
            for (size_t i = 0; i < n; i++) {
                double want = floats(&x)[i] * r * floats(&w)[i];
                double bound = gamma_of(chain(n) / 2 + 5) * fabs(want) + 3e-45;
                CHECK(fabs(floats(&y)[i] - want) <= bound,
                      "n %zu, pattern %d, value %zu: %.9g, want %.9g", n, p, i,
                      (double)floats(&y)[i], want);
            }
            K->rmsnorm(floats(&x), floats(&x), floats(&w), n, 1e-5f);
            CHECK(same_bits(x.data, y.data, 4 * n), "n %zu: in place differs", n);
            floats(&x)[below(n)] = NAN;
            K->rmsnorm(floats(&y), floats(&x), floats(&w), n, 1e-5f);
            for (size_t i = 0; i < n; i++)
                CHECK(isnan(floats(&y)[i]), "n %zu: NaN was lost at %zu", n, i);
            buf_free(&x);
            buf_free(&w);
            buf_free(&y);
        }
}

/* e^v is within 2 units in the last place; the sum adds its chain. */
static void test_softmax(void)
{
    for (size_t l = 1; l < N_LENGTHS; l++)
        for (int trial = 0; trial < 8; trial++) {
            size_t n = lengths[l];
            struct buf x = buf_new(4 * n, 4 * below(8)), y = buf_new(4 * n, 4 * below(8));
            double sum = 0, most = -INFINITY, reach = trial < 2 ? 1 : trial < 4 ? 20 : 120;
            for (size_t i = 0; i < n; i++) {
                float v = (float)uniform(-reach, reach);
                floats(&y)[i] = v = trial == 7 && i % 3 == 1 ? -INFINITY : v;
                most = v > most ? v : most;
            }
            memcpy(x.data, y.data, 4 * n);
            for (size_t i = 0; i < n; i++)
                sum += exp(floats(&x)[i] - most);
            K->softmax(floats(&y), n);
            for (size_t i = 0; i < n; i++) {
                double want = exp(floats(&x)[i] - most) / sum;
                /* x - max is rounded once more: e^(d (1 + u)) is off by |d| u */
                double d = isinf(floats(&x)[i]) ? 0 : fabs(floats(&x)[i] - most);
                double bound = gamma_of(chain(n) + 12 + d) * want + 3e-45;
                CHECK(fabs(floats(&y)[i] - want) <= bound, "n %zu, value %zu: %.9g, want %.9g", n,
                      i, (double)floats(&y)[i], want);
            }
            floats(&y)[below(n)] = NAN;
            K->softmax(floats(&y), n);
            for (size_t i = 0; i < n; i++)
                CHECK(isnan(floats(&y)[i]), "n %zu: NaN was lost at %zu", n, i);
            buf_free(&x);
            buf_free(&y);
        }
}

/* Of {0, v} with v <= 0 the results' ratio is e^v, 2 units in the last place apart at most. */
static void test_exp(void)
{
    for (int trial = 0; trial < 20000; trial++) {
        float v = (float)-uniform(0, trial % 2 ? 1 : 87), x[2] = {v, 0};
        K->softmax(x, 2);
        double got = (double)x[0] / x[1], want = exp(v);
        CHECK(fabs(got - want) <= gamma_of(4) * want, "exp(%.9g): %.9g, want %.9g", (double)v, got,
              want);
    }
}

/* The argument of the exponential is off by a few units times its size. */
static void test_gelu_mul(void)
{
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (int trial = 0; trial < 4; trial++) {
            size_t n = lengths[l];
            struct buf x = buf_new(4 * n, 4 * below(8)), g = buf_new(4 * n, 4 * below(8));
            struct buf u = buf_new(4 * n, 4 * below(8));
            for (size_t i = 0; i < n; i++) {
                double reach = trial == 0 ? 0.01 : trial == 1 ? 4 : 30;
                floats(&x)[i] = floats(&g)[i] = (float)uniform(-reach, reach);
                floats(&u)[i] = trial == 3 ? 1 : (float)uniform(-3, 3);
            }
            K->gelu_mul(floats(&g), floats(&u), n);
            for (size_t i = 0; i < n; i++) {
                double v = floats(&x)[i],
                       z = sqrt(2 / 3.14159265358979) * (v + 0.044715 * v * v * v);
                double want = v / (1 + exp(-2 * z)) * floats(&u)[i];
                double bound = gamma_of(10 + 8 * fabs(z)) * fabs(want) + (z < -43 ? 3e-36 : 3e-45);
                CHECK(fabs(floats(&g)[i] - want) <= bound, "gelu(%.9g) * %.9g: %.9g, want %.9g", v,
                      (double)floats(&u)[i], (double)floats(&g)[i], want);
                if (z > -15) /* the published form */
                    CHECK(fabs(want - 0.5 * v * (1 + tanh(z)) * floats(&u)[i]) <=
                              1e-12 * (1 + fabs(v)),
                          "the formula is wrong at %g", v);
            }
            buf_free(&x);
            buf_free(&g);
            buf_free(&u);
        }
    float odd[4] = {NAN, INFINITY, 3e38f, -3e38f}, one[4] = {1, 1, 1, 1};
    K->gelu_mul(odd, one, 4);
    CHECK(isnan(odd[0]) && isinf(odd[1]) && odd[2] == 3e38f && odd[3] == 0, "special values");
}

static void test_silu_mul(void)
{
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (int trial = 0; trial < 4; trial++) {
            size_t n = lengths[l];
            struct buf x = buf_new(4 * n, 4 * below(8)), g = buf_new(4 * n, 4 * below(8));
            struct buf u = buf_new(4 * n, 4 * below(8));
            for (size_t i = 0; i < n; i++) {
                double reach = trial == 0 ? 0.01 : trial == 1 ? 10 : 100;
                floats(&x)[i] = floats(&g)[i] = (float)uniform(-reach, reach);
                floats(&u)[i] = trial == 3 ? 1 : (float)uniform(-3, 3);
            }
            K->silu_mul(floats(&g), floats(&u), n);
            for (size_t i = 0; i < n; i++) {
                double v = floats(&x)[i], want = v / (1 + exp(-v)) * floats(&u)[i];
                /* below -88, 1 + e^-v may be infinite in float32: the result is then -0 */
                double bound = gamma_of(7) * fabs(want) + (v < -88 ? 3e-36 : 3e-45);
                CHECK(fabs(floats(&g)[i] - want) <= bound, "silu(%.9g) * %.9g: %.9g, want %.9g", v,
                      (double)floats(&u)[i], (double)floats(&g)[i], want);
            }
            buf_free(&x);
            buf_free(&g);
            buf_free(&u);
        }
    float odd[9] = {NAN, INFINITY, 3e38f, -3e38f, 0.0f, -0.0f, 88.8f, -88.8f, 1e-40f}, one[9], r[9];
    memcpy(r, odd, sizeof r);
    for (int i = 0; i < 9; i++)
        one[i] = 1;
    K->silu_mul(odd, one, 9);
    ref->silu_mul(r, one, 9);
    for (int i = 0; i < 9; i++)
        CHECK(same(odd[i], r[i]) || fabsf(odd[i] - r[i]) <= 1e-6f * fabsf(r[i]) + 3e-36f,
              "special %d: %g, ref %g", i, (double)odd[i], (double)r[i]);
}

/* add, axpy, rope_norm, rope_neox: one rounding per operation, so the reference's bits. */
static void check_elementwise(int which, size_t n)
{
    struct buf y = buf_new(4 * n, 4 * below(8)), x = buf_new(4 * n, 4 * below(8));
    struct buf z = buf_new(4 * n, 0);
    for (size_t i = 0; i < n; i++) {
        floats(&y)[i] = floats(&z)[i] = pattern_value(i % 5 ? REALS : SUBNORMAL, i);
        floats(&x)[i] = pattern_value(REALS, i);
    }
    if (n > 2 && which < 2) {
        floats(&x)[below(n)] = NAN;
        floats(&x)[below(n)] = INFINITY;
    }
    if (which == 0) {
        K->add(floats(&y), floats(&x), n);
        ref->add(floats(&z), floats(&x), n);
    } else if (which == 1) {
        K->axpy(floats(&y), 0.37f, floats(&x), n);
        ref->axpy(floats(&z), 0.37f, floats(&x), n);
    } else if (which == 2) {
        K->rope_norm(floats(&y), floats(&x), n);
        ref->rope_norm(floats(&z), floats(&x), n);
    } else {
        K->rope_neox(floats(&y), floats(&x), n);
        ref->rope_neox(floats(&z), floats(&x), n);
    }
    for (size_t i = 0; i < n; i++)
        CHECK(same(floats(&y)[i], floats(&z)[i]), "n %zu, value %zu: %.9g, ref %.9g", n, i,
              (double)floats(&y)[i], (double)floats(&z)[i]);
    buf_free(&y);
    buf_free(&x);
    buf_free(&z);
}

static void test_elementwise(int which)
{
    for (size_t l = 0; l < N_LENGTHS; l++)
        if (which < 2 || lengths[l] % 2 == 0)
            check_elementwise(which, lengths[l]);
}

/* A rotation by hand: a quarter turn takes (a, b) to (-b, a). */
static void test_rope_pairs(void)
{
    float cs[4] = {0, 1, 1, 0}, x[4] = {1, 2, 3, 4}, z[4] = {1, 2, 3, 4};
    K->rope_norm(x, cs, 4);
    CHECK(x[0] == -2 && x[1] == 1 && x[2] == 3 && x[3] == 4, "norm: wrong pairs");
    K->rope_neox(z, cs, 4);
    CHECK(z[0] == -3 && z[2] == 1 && z[1] == 2 && z[3] == 4, "neox: wrong pairs");
}

static void check_dot(size_t n, enum filling how)
{
    struct buf a = buf_new(4 * n, 4 * below(8)), b = buf_new(4 * n, 4 * below(8));
    double want = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        floats(&a)[i] = how == INTEGERS ? (float)below(31) - 15 : (float)uniform(-1, 1);
        floats(&b)[i] = how == INTEGERS ? (float)below(31) - 15 : (float)uniform(-1, 1);
        want += (double)floats(&a)[i] * floats(&b)[i];
        size += fabs((double)floats(&a)[i] * floats(&b)[i]);
    }
    double bound = how == INTEGERS ? 0 : gamma_of(chain(n)) * size;
    float got = K->dot(floats(&a), floats(&b), n);
    CHECK(fabs(got - want) <= bound, "n %zu: %.9g, want %.9g +- %g", n, (double)got, want, bound);
    if (n > 0) {
        floats(&a)[below(n)] = NAN;
        CHECK(isnan(K->dot(floats(&a), floats(&b), n)), "n %zu: NaN was lost", n);
    }
    buf_free(&a);
    buf_free(&b);
}

static void test_dot(void)
{
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (int trial = 0; trial < 10; trial++) {
            check_dot(lengths[l], INTEGERS);
            check_dot(lengths[l], RANDOM_REALS);
        }
}

/* ---- attention ------------------------------------------------------------------------- */

/* Where value i of cell c is. */
static size_t cell_at(bool mix, size_t c, size_t i, size_t d)
{
    return mix ? c * d + i : (c / CR_KV_TILE * d + i) * CR_KV_TILE + c % CR_KV_TILE;
}

static void run_attention(bool mix, float *out, size_t ldo, const float *in, size_t ldi, size_t n_q,
                          const uint16_t *kv, size_t begin, size_t end, size_t d, float scale)
{
    if (mix)
        K->attn_mix_f16(out, ldo, in, ldi, n_q, kv + begin * d, d, end - begin, d);
    else
        K->attn_scores_f16(out, ldo, in, ldi, n_q, kv, begin, end, d, scale);
}

/* scores (mix false): a number for each of n_kv cells; mix: d values; for n_q heads. */
static void check_attention(bool mix, size_t n_q, size_t n_kv, size_t d, enum filling how)
{
    size_t begin = below(40), end = begin + n_kv, n_in = mix ? n_kv : d, n_out = mix ? d : n_kv;
    size_t ldi = n_in + below(5), ldo = n_out + below(5), all = (end + 15) / 16 * 16 * d;
    struct buf kv = buf_new(2 * all, 2 * below(8));
    struct buf in = buf_new(4 * n_q * ldi, 4 * below(8)),
               out = buf_new(4 * n_q * ldo, 4 * below(8));
    struct buf again = buf_new(4 * n_q * ldo, 0);
    uint16_t *cache = (uint16_t *)(void *)kv.data;
    for (size_t i = 0; i < all; i++) /* what is not asked for may be anything */
        cache[i] = 0x7e00;
    for (size_t c = begin; c < end; c++)
        for (size_t i = 0; i < d; i++)
            cache[cell_at(mix, c, i, d)] =
                f16(how == INTEGERS ? (double)below(31) - 15 : uniform(-1, 1));
    for (size_t i = 0; i < n_q * ldi; i++)
        floats(&in)[i] = how == INTEGERS ? (float)below(31) - 15 : (float)uniform(-1, 1);
    for (size_t i = 0; mix && i < n_q * ldo; i++)
        floats(&out)[i] = floats(&again)[i] = (float)below(9);
    float scale = how == INTEGERS ? 0.125f : 0.3f;
    run_attention(mix, floats(&out), ldo, floats(&in), ldi, n_q, cache, begin, end, d, scale);
    for (size_t t = 0; t < n_q; t++)
        for (size_t o = 0; o < n_out; o++) {
            double want = mix ? floats(&again)[t * ldo + o] : 0, size = fabs(want);
            for (size_t i = 0; i < n_in; i++) {
                size_t cell = begin + (mix ? i : o), at_i = mix ? o : i;
                double v = (double)floats(&in)[t * ldi + i] *
                           cr_f16_to_f32(cache[cell_at(mix, cell, at_i, d)]);
                want += v;
                size += fabs(v);
            }
            double m = (double)n_in + 2, f = mix ? 1 : (double)scale;
            double bound = how == INTEGERS ? 0 : gamma_of(m) * size * f;
            float got = floats(&out)[t * ldo + o];
            CHECK(fabs(got - want * f) <= bound,
                  "%zu cells, d %zu, head %zu, output %zu: %.9g, want %.9g", n_kv, d, t, o,
                  (double)got, want * f);
        }
    /* each head alone, in two calls, as after a shared prefix */
    for (size_t t = 0; t < n_q; t++) {
        size_t half = below(n_kv + 1), o = mix ? 0 : half, i = mix ? half : 0;
        float *y = floats(&again) + t * ldo, *x = floats(&in) + t * ldi;
        run_attention(mix, y, ldo, x, ldi, 1, cache, begin, begin + half, d, scale);
        run_attention(mix, y + o, ldo, x + i, ldi, 1, cache, begin + half, end, d, scale);
        CHECK(same_bits(floats(&out) + t * ldo, y, 4 * n_out),
              "%zu cells, d %zu: head %zu of %zu alone, in two calls, differs", n_kv, d, t, n_q);
    }
    buf_free(&kv);
    buf_free(&in);
    buf_free(&out);
    buf_free(&again);
}

static void test_attention(bool mix)
{
    static const size_t dims[] = {1, 8, 15, 16, 32, 48, 64, 80, 96, 128, 200, 256};
    static const size_t cells[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 300};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (size_t j = 0; j < sizeof cells / sizeof cells[0]; j++) {
            check_attention(mix, 1 + below(7), cells[j], dims[i], INTEGERS);
            check_attention(mix, 1 + below(7), cells[j], dims[i], RANDOM_REALS);
        }
}

/* Keys and values in 8 bits: the bits of the reference, with some columns only, and in pieces. */
static void check_q8(size_t n_q, size_t n_kv, size_t d)
{
    const struct cr_kernels *plain = cr_kernels_level(CR_CPU_REF);
    const size_t begin = below(40), end = begin + n_kv, blocks = d / CR_QK, ldy = d + below(5);
    const size_t tiles = end / CR_KV_TILE + 1, bytes = tiles * cr_kv8_tile(d),
                 lds = n_kv + below(5);
    struct buf cache = buf_new(bytes, 0), flipped = buf_new(bytes, 2 * below(8));
    struct buf q = buf_new(4 * n_q * d, 0),
               q8 = buf_new(n_q * blocks * sizeof(struct cr_block_q8a), 0);
    struct buf s = buf_new(4 * n_q * lds, 0), s_ref = buf_new(4 * n_q * lds, 0);
    struct buf y = buf_new(4 * n_q * ldy, 4 * below(8)), y_ref = buf_new(4 * n_q * ldy, 0);
    uint8_t *to = (uint8_t *)cache.data, *other = (uint8_t *)flipped.data;
    for (size_t i = 0; i < bytes; i++)
        to[i] = (uint8_t)(1 + below(255)); /* -127 to 127 */
    for (size_t t = 0; t < tiles; t++)
        for (size_t i = 0; i < blocks * CR_KV_TILE; i++) {
            uint16_t scale = f16(uniform(0, 0.1));
            memcpy(to + t * cr_kv8_tile(d) + CR_KV_TILE * d + 2 * i, &scale, 2);
        }
    for (size_t i = 0; i < bytes; i++)
        if (to[i] == 0x80 && i % cr_kv8_tile(d) < CR_KV_TILE * d)
            to[i] = 0;
    memcpy(other, to, bytes);
    for (size_t i = 0; i < n_q * d; i++)
        floats(&q)[i] = (float)uniform(-1, 1);
    K->quantize_q8a((void *)q8.data, floats(&q), n_q * d);
    for (size_t i = 0; i < n_q * ldy; i++)
        floats(&y)[i] = floats(&y_ref)[i] = (float)uniform(-1, 1);
    for (size_t i = 0; i < n_q * lds; i++)
        floats(&s)[i] = floats(&s_ref)[i] = 7;
    const size_t half = begin + below(n_kv + 1);
    const size_t first = CR_QK * below(blocks),
                 last = first + CR_QK * (1 + below(blocks - first / CR_QK));
    struct buf p = buf_new(4 * n_q * lds, 0);
    for (size_t i = 0; i < n_q * lds; i++)
        floats(&p)[i] = (float)uniform(0, 1);
    plain->attn_mix_q8(floats(&y_ref), ldy, floats(&p), lds, n_q, to, begin, end, d, first, last);
    K->attn_mix_q8(floats(&y), ldy, floats(&p), lds, n_q, other, begin, half, d, first, last);
    K->attn_mix_q8(floats(&y), ldy, floats(&p) + half - begin, lds, n_q, other, half, end, d, first,
                   last);
    CHECK(same_bits(floats(&y), floats(&y_ref), 4 * n_q * ldy), "mix: %zu cells from %zu, d %zu",
          n_kv, begin, d);
    for (size_t t = 0; t < tiles; t++)
        for (size_t i = 0; i < CR_KV_TILE * d; i++)
            other[t * cr_kv8_tile(d) + i] ^= K->kv_flip;
    plain->attn_scores_q8(floats(&s_ref), lds, (void *)q8.data, blocks, n_q, to, begin, end, d,
                          0.3f);
    K->attn_scores_q8(floats(&s), lds, (void *)q8.data, blocks, n_q, other, begin, half, d, 0.3f);
    K->attn_scores_q8(floats(&s) + half - begin, lds, (void *)q8.data, blocks, n_q, other, half,
                      end, d, 0.3f);
    CHECK(same_bits(floats(&s), floats(&s_ref), 4 * n_q * lds), "scores: %zu cells from %zu, d %zu",
          n_kv, begin, d);
    buf_free(&cache);
    buf_free(&flipped);
    buf_free(&q);
    buf_free(&q8);
    buf_free(&s);
    buf_free(&s_ref);
    buf_free(&y);
    buf_free(&y_ref);
    buf_free(&p);
}

static void test_attention_q8(void)
{
    for (int trial = 0; trial < 300; trial++)
        check_q8(1 + below(7), below(trial % 8 ? 40 : 300), CR_QK * (1 + below(4)));
}

/* Rows of blocks: the bits of the reference, in two calls, and nothing but the columns. */
static void check_mix_q8_0(size_t n, size_t blocks)
{
    const struct cr_kernels *plain = cr_kernels_level(CR_CPU_REF);
    const size_t ldv = blocks + below(3), half = below(n + 1), d = blocks * CR_QK;
    struct buf rows = buf_new((n * ldv + 1) * sizeof(struct cr_block_q8_0), 2 * below(8));
    struct buf p = buf_new(4 * n + 4, 0), z = buf_new(4 * d, 0), y = buf_new(4 * d, 4 * below(8));
    struct cr_block_q8_0 *v = (void *)rows.data;
    for (size_t i = 0; i < n * ldv; i++) {
        v[i].d = f16(uniform(-0.02, 0.02));
        for (int k = 0; k < CR_QK; k++)
            v[i].q[k] = (int8_t)((int)below(256) - 128);
    }
    for (size_t i = 0; i < n; i++)
        floats(&p)[i] = (float)uniform(-1, 1);
    for (size_t i = 0; i < d; i++)
        floats(&y)[i] = floats(&z)[i] = (float)uniform(-1, 1);
    plain->mix_q8_0(floats(&z), floats(&p), v, ldv, n, d);
    K->mix_q8_0(floats(&y), floats(&p), v, ldv, half, d);
    K->mix_q8_0(floats(&y), floats(&p) + half, v + half * ldv, ldv, n - half, d);
    CHECK(same_bits(floats(&y), floats(&z), 4 * d), "%zu rows of %zu blocks, %zu apart", n, blocks,
          ldv);
    /* and the reference: small integers, whose sum is exact */
    for (size_t i = 0; i < n * ldv; i++)
        v[i].d = f16((double)below(3));
    for (size_t i = 0; i < n; i++)
        floats(&p)[i] = (float)below(9) - 4;
    memset(y.data, 0, 4 * d);
    K->mix_q8_0(floats(&y), floats(&p), v, ldv, n, d);
    for (size_t i = 0; i < d; i++) {
        float want = 0;
        for (size_t j = 0; j < n; j++) {
            const struct cr_block_q8_0 *b = &v[j * ldv + i / CR_QK];
            want += floats(&p)[j] * cr_f16_to_f32(b->d) * (float)b->q[i % CR_QK];
        }
        CHECK(floats(&y)[i] == want, "%zu rows, column %zu: %g, want %g", n, i,
              (double)floats(&y)[i], (double)want);
    }
    buf_free(&rows);
    buf_free(&p);
    buf_free(&z);
    buf_free(&y);
}

static void test_mix_q8_0(void)
{
    for (size_t n = 0; n < 70; n += 1 + n / 8)
        for (size_t blocks = 0; blocks < 8; blocks++)
            check_mix_q8_0(n, blocks);
}

/* ---- the second factor of a low-rank change -------------------------------------------- */

/* Codes of 127 at most, one of them in each row and in each block of the factor: all is exact. */
static void check_low(size_t rows, size_t rank, size_t n_tok)
{
    const size_t first = rank <= CR_QK ? 4 * below((CR_QK - rank) / 4 + 1) : 0;
    size_t ldy = rows + below(5), blocks = (rank + CR_QK - 1) / CR_QK, n = blocks * CR_QK;
    size_t row = (blocks + below(2)) * sizeof(struct cr_block_q8a);
    struct buf y = buf_new(4 * n_tok * ldy, 4 * below(8)), z = buf_new(4 * n_tok * ldy, 0);
    struct buf low = buf_new(4 * n_tok * n, 0), b = buf_new(4 * rows * rank, 0);
    struct buf packed = buf_new(K->low_bytes(rows, rank), 0), x = buf_new(n_tok * row, 0);
    for (size_t i = 0; i < n_tok * ldy; i++)
        floats(&y)[i] = floats(&z)[i] = (float)below(9);
    for (size_t t = 0; t < n_tok; t++) {
        float *v = floats(&low) + t * n;
        for (size_t k = 0; k < n; k++)
            v[k] = k % CR_QK ? (float)below(255) - 127 : 127;
        K->quantize_q8a((void *)((char *)x.data + t * row), v, n);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < rank; k++) {
            float code = k == r % rank ? 127 : (float)below(255) - 127;
            floats(&b)[r * rank + k] = code * (r % 2 ? 0.5f : 2);
        }
    K->pack_low(packed.data, floats(&b), rows, rank, 0.25f);
    K->add_low(floats(&y), ldy, packed.data, x.data, row, first, rows, n_tok, rank);
    for (size_t t = 0; t < n_tok; t++) {
        for (size_t r = 0; r < rows; r++) {
            float want = floats(&z)[t * ldy + r];
            for (size_t k = 0; k < rank; k++)
                want += 0.25f * floats(&b)[r * rank + k] * floats(&low)[t * n + first + k];
            CHECK(floats(&y)[t * ldy + r] == want, "%zux%zu, row %zu token %zu of %zu: %g, want %g",
                  rows, rank, r, t, n_tok, (double)floats(&y)[t * ldy + r], (double)want);
        }
        CHECK(same_bits(floats(&y) + t * ldy + rows, floats(&z) + t * ldy + rows, 4 * (ldy - rows)),
              "%zux%zu: the gap after token %zu was written", rows, rank, t);
    }
    buf_free(&y);
    buf_free(&z);
    buf_free(&low);
    buf_free(&b);
    buf_free(&packed);
    buf_free(&x);
}

static void test_low(void)
{
    for (int trial = 0; trial < 300 && K->panel_rows; trial++)
        check_low(1 + below(70), 1 + below(trial % 2 ? 9 : 64), 1 + below(20));
}

/* ---- dispatch -------------------------------------------------------------------------- */

static void test_dispatch(void)
{
    static const char *const names[] = {"ref", "avx2",    "avx512",  "neon",
                                        "amx", "avxvnni", "dotprod", "i8mm"};
    const struct cr_kernels *k;
    struct cr_error err;
    CHECK(cr_kernels_get(&k, "sse9", &err) == CR_INVALID && !k && strstr(err.msg, "sse9"),
          "an unknown level is not refused by name");
    for (int i = 0; i < CR_CPU_COUNT; i++) {
        bool has = cr_cpu_has((enum cr_cpu)i);
        enum cr_status s = cr_kernels_get(&k, names[i], &err);
        CHECK(s == (has ? CR_OK : CR_UNSUPPORTED) && (k != NULL) == has, "level %s", names[i]);
        CHECK(!has || (k->level == (enum cr_cpu)i && strcmp(k->name, names[i]) == 0), "level %s",
              names[i]);
        CHECK(k == cr_kernels_level((enum cr_cpu)i), "level %s", names[i]);
    }
    setenv("CR_CPU", "ref", 1);
    CHECK(cr_kernels_get(&k, NULL, &err) == CR_OK && k->level == CR_CPU_REF, "$CR_CPU is not read");
    setenv("CR_CPU", "nonsense", 1);
    CHECK(cr_kernels_get(&k, NULL, &err) == CR_INVALID && strstr(err.msg, "CR_CPU"), "bad $CR_CPU");
    CHECK(cr_kernels_get(&k, "auto", &err) == CR_OK && k, "auto fails");
    unsetenv("CR_CPU");
    for (uint32_t t = 0; t < CR_TYPE_END; t++)
        CHECK((K->matmul[t] != NULL) == cr_type_info(t)->usable &&
                  (K->dequantize[t] != NULL) == cr_type_info(t)->usable,
              "type %u: usable and the table disagree", (unsigned)t);
}

/* ---- benchmark ------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* others may run meanwhile */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of a call over at least 0.1 s and 5 calls. */
static double time_product(const struct product *p, float *y)
{
    double times[2000], begin = now();
    size_t n = 0;
    product_run(p, K, y);
    while (n < 5 || (n < 2000 && now() - begin < 0.1)) {
        double t = now();
        product_run(p, K, y);
        times[n++] = now() - t;
    }
    qsort(times, n, sizeof times[0], by_size);
    return times[n / 2];
}

static void bench_matmul(enum cr_type type, bool csv)
{
    static const size_t shapes[][2] = {
        {576, 576},  {1536, 576}, {576, 1536},  {384, 384},   {1536, 8},    {1536, 16},  {1536, 64},
        {1024, 384}, {8192, 384}, {49152, 576}, {1024, 1024}, {4096, 1024}, {1024, 4096}};
    static const size_t toks[] = {1, 4, 16, 64, 256, 512};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (size_t j = 0; j < sizeof toks / sizeof toks[0]; j++) {
            size_t rows = shapes[i][0], n = shapes[i][1], n_tok = toks[j];
            if (n % cr_type_info(type)->block != 0 || (n < 100 && type != CR_F32))
                continue;
            double ops = 2.0 * (double)rows * (double)n * (double)n_tok;
            if (ops > (K->level == CR_CPU_REF ? 1e8 : 4e9))
                continue;
            struct product p = product_new(type, rows, n_tok, n, RANDOM_REALS);
            struct buf y = buf_new(4 * n_tok * p.ldy, 0);
            double s = time_product(&p, floats(&y)), bytes = (double)(rows * p.row_bytes);
            printf(csv ? "%s,%s,%zu,%zu,%zu,%.0f,%.2f,%.1f\n"
                       : "%-7s %-5s %6zu x %-5zu %4zu tokens %12.0f ns %8.2f GB/s %8.1f GOP/s\n",
                   K->name, cr_type_info(type)->name, rows, n, n_tok, s * 1e9, bytes / s * 1e-9,
                   ops / s * 1e-9);
            buf_free(&y);
            product_free(&p);
        }
}

static void bench_vectors(bool csv)
{
    enum { N = 1536, CALLS = 200, D = 64, CELLS = 256 };
    static const char *const names[] = {"quantize_q8a", "rmsnorm", "softmax", "silu_mul",
                                        "dot",          "add",     "scores",  "mix"};
    struct buf a = buf_new(4 * N, 0), b = buf_new(4 * N, 0),
               q = buf_new(N / 32 * sizeof(struct cr_block_q8a), 0);
    struct buf y = buf_new(4 * N, 0), kv = buf_new(2 * D * CELLS, 0);
    for (size_t i = 0; i < D * CELLS; i++)
        ((uint16_t *)(void *)kv.data)[i] = f16(uniform(-1, 1));
    for (int k = 0; k < 8; k++) {
        double times[51];
        float sink = 0;
        for (int trial = 0; trial < 51; trial++) {
            for (size_t i = 0; i < N; i++)
                floats(&a)[i] = floats(&b)[i] = (float)uniform(-1, 1);
            double t = now();
            for (int c = 0; c < CALLS; c++) {
                if (k == 0)
                    K->quantize_q8a((void *)q.data, floats(&a), N);
                else if (k == 1)
                    K->rmsnorm(floats(&y), floats(&a), floats(&b), N, 1e-5f);
                else if (k == 2)
                    K->softmax(floats(&a), N);
                else if (k == 3) {
                    memcpy(y.data, a.data, 4 * N); /* else it runs away to subnormals */
                    K->silu_mul(floats(&y), floats(&b), N);
                } else if (k == 4)
                    sink += K->dot(floats(&a), floats(&b), N);
                else if (k == 5)
                    K->add(floats(&a), floats(&b), N);
                else if (k == 6)
                    K->attn_scores_f16(floats(&a), 0, floats(&b), 0, 1, (void *)kv.data, 0, CELLS,
                                       D, 0.1f);
                else
                    K->attn_mix_f16(floats(&a), 0, floats(&b), 0, 1, (void *)kv.data, D, CELLS, D);
            }
            times[trial] = (now() - t) / CALLS;
        }
        qsort(times, 51, sizeof times[0], by_size);
        floats(&a)[0] = sink;
        printf(csv ? "%s,%s,,%d,,%.0f,,\n" : "%-7s %-13s n %d %12.0f ns\n", K->name, names[k], N,
               times[25] * 1e9);
    }
    buf_free(&a);
    buf_free(&b);
    buf_free(&q);
    buf_free(&kv);
    buf_free(&y);
}

/* ---- main ------------------------------------------------------------------------------ */

static const char *pattern = "*";

static bool wanted(const char *name)
{
    at = name;
    return fnmatch(pattern, name, 0) == 0 || strstr(name, pattern) != NULL;
}

static void test_level(void)
{
    char name[64];
    for (int i = 0; i < N_TYPES; i++) {
        snprintf(name, sizeof name, "matmul_%s", cr_type_info(types[i])->name);
        if (wanted(name))
            test_matmul(types[i]);
        snprintf(name, sizeof name, "dequantize_%s", cr_type_info(types[i])->name);
        if (wanted(name))
            test_dequantize(types[i]);
    }
    static const struct {
        const char *name;
        void (*fn)(void);
    } plain[] = {{"quantize_q8a", test_quantize_q8a},
                 {"f32_to_f16", test_f32_to_f16},
                 {"rmsnorm", test_rmsnorm},
                 {"softmax", test_softmax},
                 {"exp", test_exp},
                 {"silu_mul", test_silu_mul},
                 {"gelu_mul", test_gelu_mul},
                 {"low", test_low},
                 {"mix_q8_0", test_mix_q8_0},
                 {"dot", test_dot},
                 {"rope_pairs", test_rope_pairs},
                 {"dispatch", test_dispatch}};
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++)
        if (wanted(plain[i].name))
            plain[i].fn();
    static const char *const elementwise[] = {"add", "axpy", "rope_norm", "rope_neox"};
    for (int i = 0; i < 4; i++)
        if (wanted(elementwise[i]))
            test_elementwise(i);
    if (wanted("attn_q8"))
        test_attention_q8();
    if (wanted("attn_scores_f16"))
        test_attention(false);
    if (wanted("attn_mix_f16"))
        test_attention(true);
}

static void bench_level(bool csv)
{
    char name[64];
    for (int i = 0; i < N_TYPES; i++) {
        snprintf(name, sizeof name, "matmul_%s", cr_type_info(types[i])->name);
        if (wanted(name))
            bench_matmul(types[i], csv);
    }
    if (wanted("vectors"))
        bench_vectors(csv);
}

int main(int argc, char **argv)
{
    bool bench = false, csv = false;
    const char *cpu = NULL;
    uint64_t seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        char *end = NULL;
        if (strncmp(argv[i], "--kernel=", 9) == 0)
            pattern = argv[i] + 9;
        else if (strncmp(argv[i], "--cpu=", 6) == 0)
            cpu = argv[i] + 6;
        else if (strcmp(argv[i], "--bench") == 0)
            bench = true;
        else if (strcmp(argv[i], "--csv") == 0)
            csv = true;
        else if (strncmp(argv[i], "--seed=", 7) == 0 && argv[i][7])
            seed = strtoull(argv[i] + 7, &end, 10);
        else
            end = argv[i];
        if (end && *end) {
            fprintf(stderr,
                    "%s: should be --kernel=PATTERN, --cpu=LEVEL, --seed=N, --bench or --csv\n",
                    argv[i]);
            return 2;
        }
    }
    ref = cr_kernels_level(CR_CPU_REF);
    signal(SIGSEGV, on_fault);
    if (csv)
        puts("level,kernel,rows,n,tokens,ns,GB/s,GOP/s");
    else
        printf("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < CR_CPU_COUNT; i++) {
        K = cr_kernels_level((enum cr_cpu)i);
        if (!K || (cpu && strcmp(cpu, K->name) != 0))
            continue;
        cr_rng_init(&rng, seed);
        int before = n_failed;
        n_checked = 0;
        tidy = bench;
        if (bench)
            bench_level(csv);
        else
            test_level();
        if (!bench)
            printf("%-7s %" PRIu64 " checks, %d failed\n", K->name, n_checked, n_failed - before);
    }
    return n_failed ? 1 : 0;
}
