/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel test works with: checks that go on, buffers between guard bytes, and random
 * products whose exact values are known. Included by test_kernels.c only.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "base/mem.h"
#include "base/rng.h"
#include "kernels/kernels.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const enum cr_type types[] = {CR_F32,  CR_F16,  CR_BF16, CR_Q8_0, CR_Q4_0, CR_Q4_1,
                                     CR_Q5_0, CR_Q5_1, CR_Q4_K, CR_Q5_K, CR_Q6_K, CR_IQ4_NL};
static const size_t lengths[] = {0,  1,  2,  3,  7,  8,  15,  16,  17,  31,   32,
                                 33, 63, 64, 65, 96, 80, 256, 576, 768, 1023, 4096};
enum { N_TYPES = sizeof types / sizeof types[0], N_LENGTHS = sizeof lengths / sizeof lengths[0] };
enum { GUARD = 64, POISON = 0xa5, MAX_FAILURES = 20 };

static struct cr_rng rng;
static const struct cr_kernels *K, *ref; /* the level under test, and the reference */
static const char *at = "";              /* the kernel under test */
static int n_failed;
static uint64_t n_checked;

/* A failed check says where and goes on, so that one run shows all that is wrong. */
#define CHECK(ok, ...)                                                                             \
    do {                                                                                           \
        n_checked++;                                                                               \
        if (!(ok) && n_failed++ < MAX_FAILURES) {                                                  \
            printf("  FAIL %s %s, line %d: ", K->name, at, __LINE__);                              \
            printf(__VA_ARGS__);                                                                   \
            putchar('\n');                                                                         \
        }                                                                                          \
    } while (0)

static bool tidy; /* benchmarks: aligned, no gaps */

static size_t below(size_t n)
{
    return (size_t)cr_rng_below(&rng, n);
}

/* ---- buffers --------------------------------------------------------------------------- */

struct buf {
    unsigned char *raw, *data;
    size_t size, raw_size;
    bool tight;
};

/* size poisoned bytes, guard bytes before them. After them there are guard bytes too, or, every
 * other time, a page that cannot be read. `offset`: from an aligned address, when not at a page. */
static struct buf buf_new(size_t size, size_t offset)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (2 * GUARD + offset + size + page - 1) / page * page;
    struct buf b = {.size = size, .raw_size = room + page, .tight = !tidy && below(2)};
    b.raw = mmap(NULL, b.raw_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.raw == MAP_FAILED || mprotect(b.raw + room, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(4);
    }
    b.data = b.tight ? b.raw + room - size : b.raw + GUARD + offset;
    memset(b.data - GUARD, POISON, GUARD + size + (b.tight ? 0 : GUARD));
    return b;
}

static void buf_free(struct buf *b)
{
    bool clean = true;
    for (size_t i = 0; i < GUARD; i++)
        clean = clean && b->data[-1 - (ptrdiff_t)i] == POISON &&
                (b->tight || b->data[b->size + i] == POISON);
    CHECK(clean, "bytes outside of the buffer were written");
    munmap(b->raw, b->raw_size);
}

/* A read or write past a buffer ends in its guard page. */
static void on_fault(int signal)
{
    static const char text[] = "  FAIL: memory outside of a buffer was touched in ";
    (void)signal;
    ssize_t n = write(1, text, sizeof text - 1) + write(1, K->name, strlen(K->name)) +
                write(1, " ", 1) + write(1, at, strlen(at)) + write(1, "\n", 1);
    _exit(n > 0 ? 1 : 2);
}

static float *floats(struct buf *b)
{
    return (float *)(void *)b->data;
}

static double uniform(double lo, double hi)
{
    return lo + (hi - lo) * cr_rng_double(&rng);
}

static bool same_bits(const void *a, const void *b, size_t n)
{
    return n == 0 || memcmp(a, b, n) == 0;
}

/* Equal numbers, or both NaN. */
static bool same(float a, float b)
{
    return a == b || (isnan(a) && isnan(b));
}

static double gamma_of(double m)
{
    return m * 0x1p-24 / (1 - m * 0x1p-24);
}

/* Lanes of one float sum at a level; its longest chain of additions is n / lanes and the tree, or n
 * in products of at most 64 columns. */
static double chain(size_t n)
{
    static const size_t lanes[CR_CPU_COUNT] = {1, 8, 16, 4, 16, 8, 4, 4};
    return (double)(n / lanes[K->level]) + 8;
}

enum pattern { ZERO, MOST, ALTERNATE, SUBNORMAL, TINY, REALS, N_PATTERNS };

static float pattern_value(enum pattern p, size_t i)
{
    switch (p) {
    case ZERO:
        return 0;
    case MOST:
        return 1e15f;
    case ALTERNATE:
        return i % 2 ? -1.0f : 1.0f;
    case SUBNORMAL:
        return (float)uniform(-1e-39, 1e-39);
    case TINY: /* a few of the smallest steps, where a scale is coarse */
        return ((float)below(401) - 200) * 0x1p-149f;
    default:
        return (float)uniform(-1, 1);
    }
}

/* ---- products -------------------------------------------------------------------------- */

enum filling { INTEGERS, RANDOM_REALS };

/* A problem: weights and activations in the type's formats, and the same numbers as double. */
struct product {
    enum cr_type type;
    size_t rows, n_tok, n, row_bytes, x_bytes, ldy;
    size_t split_bytes; /* of a token in split: activations of F16 as split_f32 makes them */
    struct buf w, x, split;
    double *wd, *xd, *md; /* exact values; md: what minima add, n / 32 per row */
};

static bool blocked(enum cr_type type)
{
    return cr_type_info(type)->block > 1;
}

static uint16_t f16(double v)
{
    return cr_f32_to_f16((float)v);
}

/* A block as random numbers, before it is packed: group j has value (scale[2 j + i / 16] d) q +
 * min, where q is a code less the type's offset, and min = min[j] m (Q4_1, Q5_1: m; K-types:
 * -min[j] m). */
struct loose {
    uint16_t d, m;
    int scale[16], min[8];
    uint8_t code[256];
};

/* The numbers that a type's codes stand for. */
static int code_value(enum cr_type type, int code)
{
    static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
    switch (type) {
    case CR_Q8_0:
        return code - 128;
    case CR_Q4_0:
        return code - 8;
    case CR_Q5_0:
        return code - 16;
    case CR_Q6_K:
        return code - 32;
    case CR_IQ4_NL:
        return iq4[code];
    default:
        return code;
    }
}

static int n_codes(enum cr_type type)
{
    switch (type) {
    case CR_Q8_0:
        return 256;
    case CR_Q6_K:
        return 64;
    case CR_Q5_0:
    case CR_Q5_1:
    case CR_Q5_K:
        return 32;
    default:
        return 16;
    }
}

static bool is_k(enum cr_type type)
{
    return cr_type_info(type)->block == CR_QK_K;
}

/* Integers: scale times code stays within 15, so that all sums are exact. */
static void fill_loose(struct loose *b, enum cr_type type, bool ints)
{
    b->d = ints ? f16(ldexp(1, (int)below(3) - 1)) : f16(uniform(-0.02, 0.02));
    b->m = ints ? f16((double)below(9) - 4) : f16(uniform(-0.2, 0.2));
    if (!ints && is_k(type)) {
        b->d = f16(uniform(-0.0005, 0.0005));
        b->m = f16(uniform(-0.01, 0.01));
    }
    for (int j = 0; j < 8; j++)
        b->min[j] = !is_k(type) ? 0 : ints ? (int)below(2) : (int)below(64);
    for (int j = 0; j < 16; j++) {
        static const int small[] = {0, 1, 3};
        int scale = ints ? small[below(3)] : (int)below(64);
        if (type == CR_Q6_K)
            scale = ints ? scale - 1 : (int)below(256) - 128;
        b->scale[j] = !is_k(type) ? 1 : type == CR_Q6_K || j % 2 == 0 ? scale : b->scale[j - 1];
    }
    for (uint32_t i = 0; i < cr_type_info(type)->block; i++) {
        int scale = b->scale[i / 16];
        do
            b->code[i] = (uint8_t)below((size_t)n_codes(type));
        while (ints && abs(code_value(type, b->code[i]) * (scale ? scale : 1)) > 15);
    }
}

static void set_bits(unsigned char *byte, int bits, int shift)
{
    *byte = (unsigned char)(*byte | bits << shift);
}

/* Bit by bit as the format's description says, apart from what reads it. */
static void pack(unsigned char *dst, enum cr_type type, const struct loose *b)
{
    memset(dst, 0, cr_type_info(type)->block_size);
    if (type == CR_Q6_K) {
        for (int i = 0; i < 256; i++) {
            int l = i % 32, quarter = i % 128 / 32, half = i / 128;
            set_bits(dst + 64 * half + 32 * (quarter % 2) + l, b->code[i] & 15, quarter / 2 * 4);
            set_bits(dst + 128 + 32 * half + l, b->code[i] >> 4, quarter * 2);
        }
        for (int j = 0; j < 16; j++)
            dst[192 + j] = (unsigned char)b->scale[j];
        memcpy(dst + 208, &b->d, 2);
        return;
    }
    memcpy(dst, &b->d, 2);
    if (is_k(type)) {
        unsigned char *s = dst + 4, *h = dst + 16, *q = dst + (type == CR_Q5_K ? 48 : 16);
        memcpy(dst + 2, &b->m, 2);
        for (int j = 0; j < 8; j++) {
            set_bits(j < 4 ? s + j : s + j + 4, b->scale[2 * j] & (j < 4 ? 63 : 15), 0);
            set_bits(j < 4 ? s + j + 4 : s + j + 4, b->min[j] & (j < 4 ? 63 : 15), j < 4 ? 0 : 4);
            if (j >= 4) {
                set_bits(s + j - 4, b->scale[2 * j] >> 4, 6);
                set_bits(s + j, b->min[j] >> 4, 6);
            }
        }
        for (int i = 0; i < 256; i++) {
            set_bits(q + i / 64 * 32 + i % 32, b->code[i] & 15, i / 32 % 2 * 4);
            if (type == CR_Q5_K)
                set_bits(h + i % 32, b->code[i] >> 4, i / 32);
        }
        return;
    }
    unsigned char *q = dst + 2;
    if (type == CR_Q8_0) {
        for (int j = 0; j < 32; j++)
            q[j] = (unsigned char)(b->code[j] - 128);
        return;
    }
    if (type == CR_Q4_1 || type == CR_Q5_1) {
        memcpy(q, &b->m, 2);
        q += 2;
    }
    if (n_codes(type) == 32) {
        for (int j = 0; j < 32; j++)
            set_bits(q + j / 8, b->code[j] >> 4, j % 8);
        q += 4;
    }
    for (int j = 0; j < 32; j++)
        set_bits(q + j % 16, b->code[j] & 15, j / 16 * 4);
}

static void fill_block(struct product *p, unsigned char *dst, double *wd, double *md,
                       enum filling how)
{
    struct loose b;
    fill_loose(&b, p->type, how == INTEGERS);
    pack(dst, p->type, &b);
    double d = cr_f16_to_f32(b.d), m = cr_f16_to_f32(b.m);
    for (uint32_t i = 0; i < cr_type_info(p->type)->block; i++)
        wd[i] = d * b.scale[i / 16] * code_value(p->type, b.code[i]);
    for (uint32_t j = 0; j < cr_type_info(p->type)->block / CR_QK; j++)
        md[j] = p->type == CR_Q4_1 || p->type == CR_Q5_1   ? m
                : p->type == CR_Q4_K || p->type == CR_Q5_K ? -m * b.min[j]
                                                           : 0;
}

static void fill_weights(struct product *p, enum filling how)
{
    for (size_t r = 0; r < p->rows; r++) {
        unsigned char *row = p->w.data + r * p->row_bytes;
        double *wd = p->wd + r * p->n;
        if (blocked(p->type)) {
            const struct cr_type_info *info = cr_type_info(p->type);
            for (size_t b = 0; b < p->n / info->block; b++)
                fill_block(p, row + b * info->block_size, wd + b * info->block,
                           p->md + (r * p->n + b * info->block) / CR_QK, how);
            continue;
        }
        for (size_t i = 0; i < p->n; i++) {
            float v = how == INTEGERS ? (float)below(31) - 15 : (float)uniform(-1, 1);
            cr_quantize_ref(p->type, row + i * cr_type_info(p->type)->block_size, &v, 1);
            cr_dequantize_ref(p->type, &v, row + i * cr_type_info(p->type)->block_size, 1);
            wd[i] = v;
        }
    }
}

static void fill_activations(struct product *p, enum filling how)
{
    for (size_t t = 0; t < p->n_tok; t++) {
        unsigned char *row = p->x.data + t * p->x_bytes;
        double *xd = p->xd + t * p->n;
        for (size_t i = 0; !blocked(p->type) && i < p->n; i++) {
            float v = how == INTEGERS ? (float)below(31) - 15 : (float)uniform(-1, 1);
            if (p->type == CR_BF16) {
                uint16_t half = cr_f32_to_bf16(v);
                v = cr_bf16_to_f32(half);
                memcpy(row + 2 * i, &half, 2);
            } else {
                memcpy(row + 4 * i, &v, 4);
            }
            xd[i] = v;
        }
        for (size_t b = 0; blocked(p->type) && b < p->n / CR_QK; b++) {
            struct cr_block_q8a a;
            int sum = 0, reach = how == INTEGERS ? 15 : 127;
            a.d = how == INTEGERS ? (float)ldexp(1, (int)below(3) - 1) : (float)uniform(0, 0.05);
            for (int j = 0; j < CR_QK; j++) {
                a.q[j] = (int8_t)((int)below(2 * (size_t)reach + 1) - reach);
                sum += a.q[j];
                xd[b * CR_QK + (size_t)j] = (double)a.d * a.q[j];
            }
            a.sum = sum;
            a.s = a.d * (float)sum;
            memcpy(row + b * sizeof a, &a, sizeof a);
        }
    }
}

static size_t odd(size_t most)
{
    return tidy ? 0 : below(most);
}

/* Activations of F16 as the level takes them. */
static void split_activations(struct product *p)
{
    for (size_t t = 0; t < p->n_tok && p->split.data; t++)
        K->split_f32((void *)(p->split.data + t * p->split_bytes),
                     (const void *)(p->x.data + t * p->x_bytes), p->n);
}

/* Activations from token t on in the form that level k takes. */
static const void *product_x(const struct product *p, const struct cr_kernels *k, size_t t,
                             size_t *bytes)
{
    const bool split = p->type == CR_F16 && k->split_f32;
    *bytes = split ? p->split_bytes : p->x_bytes;
    return (split ? p->split.data : p->x.data) + t * *bytes;
}

static struct product product_new(enum cr_type type, size_t rows, size_t n_tok, size_t n,
                                  enum filling how)
{
    struct product p = {.type = type, .rows = rows, .n_tok = n_tok, .n = n};
    size_t unit = type == CR_F32 ? 4 : blocked(type) ? 1 : 2;
    p.row_bytes = cr_row_bytes(type, n) + unit * odd(5);
    p.x_bytes = (blocked(type)     ? n / CR_QK * sizeof(struct cr_block_q8a)
                 : type == CR_BF16 ? 2 * n
                                   : 4 * n) +
                4 * odd(5);
    p.ldy = rows + odd(5);
    p.w = buf_new(rows * p.row_bytes, unit * odd(8));
    p.x = buf_new(n_tok * p.x_bytes, 4 * odd(8));
    p.split_bytes = 2 * cr_split_values(n) + 4 * odd(5);
    if (type == CR_F16 && K->split_f32)
        p.split = buf_new(n_tok * p.split_bytes, 4 * odd(8));
    p.wd = cr_alloc0(rows * n, sizeof(double));
    p.xd = cr_alloc0(n_tok * n, sizeof(double));
    p.md = cr_alloc0(rows * (n / CR_QK), sizeof(double));
    if (!p.wd || !p.xd || !p.md)
        exit(4);
    fill_weights(&p, how);
    fill_activations(&p, how);
    split_activations(&p);
    return p;
}

static void product_free(struct product *p)
{
    buf_free(&p->w);
    buf_free(&p->x);
    if (p->split.data)
        buf_free(&p->split);
    cr_free(p->wd);
    cr_free(p->xd);
    cr_free(p->md);
}

static void product_run(const struct product *p, const struct cr_kernels *k, float *y)
{
    size_t bytes;
    const void *x = product_x(p, k, 0, &bytes);
    k->matmul[p->type](y, p->ldy, p->w.data, p->row_bytes, x, bytes, p->rows, p->n_tok, p->n);
}

/* The same product from packed weights, for rows from r0 on, which begin a panel, and tokens from
 * t0 on. The panels stand between guard bytes. */
static void product_run_packed(const struct product *p, const struct cr_kernels *k, float *y,
                               size_t ldy, size_t r0, size_t rows, size_t t0, size_t n_tok)
{
    size_t bytes = k->panel_bytes(p->type, p->n), all = p->rows + k->panel_rows - 1;
    struct buf w = buf_new(all / k->panel_rows * bytes, 0);
    k->pack[p->type](w.data, p->w.data, p->row_bytes, p->rows, p->n);
    size_t x_bytes;
    const void *x = product_x(p, k, t0, &x_bytes);
    k->matmul_packed[p->type](y, ldy, w.data + r0 / k->panel_rows * bytes, bytes, x, x_bytes, rows,
                              n_tok, p->n);
    buf_free(&w);
}

/* Output (r, t) in double, and the sum of the magnitudes of its terms. */
static double product_exact(const struct product *p, size_t r, size_t t, double *size)
{
    const double *w = p->wd + r * p->n, *x = p->xd + t * p->n;
    double sum = 0;
    *size = 0;
    for (size_t i = 0; i < p->n; i++) {
        sum += w[i] * x[i];
        *size += fabs(w[i] * x[i]);
    }
    for (size_t b = 0; blocked(p->type) && b < p->n / CR_QK; b++) {
        struct cr_block_q8a a;
        memcpy(&a, p->x.data + t * p->x_bytes + b * sizeof a, sizeof a);
        double v = p->md[r * (p->n / CR_QK) + b] * a.s;
        sum += v;
        *size += fabs(v);
    }
    return sum;
}

#endif
