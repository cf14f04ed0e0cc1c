/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `crayon bench`: how fast this machine runs a model, and how far that is from what the machine
 * could do: bytes of weights read for each token against the bandwidth of reading memory,
 * operations of a prompt against the peak of integer products. Limits and model are measured with
 * the same threads. Token ids are random: speed does not depend on them.
 */
#include "common.h"
#include "facts.h"
#include "messages.h"
#include "verbs.h"

#include "base/mem.h"
#include "base/rng.h"
#include "model/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    READ_BYTES = 1 << 28,  /* more than any cache */
    READ_ROW = 1 << 10,    /* floats */
    PEAK_ROUNDS = 1 << 21, /* some 10 ms of products in registers */
    LIMIT_ROUNDS = 5,
    MAX_ROUNDS = 1000,
    MAX_SEQUENCES = 64
};

/* Times of one row: milliseconds of each round. */
struct times {
    double ms[MAX_ROUNDS];
    int n;
};

struct bench {
    const struct cr_args *a;
    struct cr_setup setup;
    cr_session *s;
    int n_prefill, n_decode, depth, rounds, n_seq;
    int32_t *ids; /* [n_prefill or more] */
    size_t n_ids;
    struct times prefill, decode;
    double read_gb, peak_gop; /* per second */
    struct cr_error err;
};

static int by_value(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Tokens a second: median, and the slowest and fastest round. */
static void speeds(struct times *t, double tokens, double out[3])
{
    qsort(t->ms, (size_t)t->n, sizeof *t->ms, by_value);
    double median = (t->ms[(t->n - 1) / 2] + t->ms[t->n / 2]) / 2;
    out[0] = 1e3 * tokens / median;
    out[1] = 1e3 * tokens / t->ms[t->n - 1];
    out[2] = 1e3 * tokens / t->ms[0];
}

/* ---- what the machine can do ---- */

struct reading {
    const struct cr_kernels *k;
    const float *from;
    float *sums, row[READ_ROW];
};

/* As a token reads weights. */
static void read_rows(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct reading *r = ud;
    r->k->matmul[CR_F32](r->sums + begin, 0, r->from + begin * READ_ROW, sizeof r->row, r->row,
                         sizeof r->row, end - begin, 1, READ_ROW);
}

/* In one run. */
static void read_in_order(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    struct reading *r = ud;
    for (size_t i = begin; i < end; i++)
        r->sums[i] = r->k->dot(r->from + i * READ_ROW, r->row, READ_ROW);
}

/* Reads memory in the kind of pages in which the weights lie. */
static enum cr_status measure_reading(struct bench *b)
{
    cr_model *m = b->setup.model;
    const size_t rows = READ_BYTES / sizeof(float) / READ_ROW;
    char *block = cr_alloc(READ_BYTES + CR_HUGE_PAGE, 1);
    struct reading r = {.k = m->k, .sums = cr_alloc0(rows, sizeof *r.sums)};
    if (block && r.sums) {
        float *from = m->info.copy_bytes ? cr_huge_area(block, READ_BYTES) : (void *)block;
        memset(from, 0, READ_BYTES);
        r.from = from;
    }
    for (int i = 0; r.from && i < 2 * LIMIT_ROUNDS; i++) {
        double start = cr_now();
        cr_threads_run(m->threads, rows, 64, i % 2 ? read_in_order : read_rows, &r);
        b->read_gb = fmax(b->read_gb, 1e-9 * READ_BYTES / (cr_now() - start));
    }
    cr_free(r.sums);
    cr_free(block);
    return r.from
               ? CR_OK
               : cr_error_set(&b->err, CR_NO_MEMORY, "bench: no memory for %d bytes", READ_BYTES);
}

static void multiply_piece(void *ud, size_t begin, size_t end, int thread)
{
    (void)thread;
    const struct cr_kernels *k = ((struct bench *)ud)->setup.model->k;
    for (size_t i = begin; i < end; i++)
        k->spin_int8(PEAK_ROUNDS);
}

static void measure_products(struct bench *b)
{
    const cr_model *m = b->setup.model;
    int threads = cr_threads_count(m->threads);
    for (int i = 0; i < LIMIT_ROUNDS && m->k->spin_int8; i++) {
        double ops = m->k->spin_int8(0) * PEAK_ROUNDS * threads, start = cr_now();
        cr_threads_run(m->threads, (size_t)threads, 1, multiply_piece, b);
        b->peak_gop = fmax(b->peak_gop, 1e-9 * ops / (cr_now() - start));
    }
}

/* ---- the model ---- */

static enum cr_status prefill(struct bench *b)
{
    cr_session_reset(b->s);
    double start = cr_now();
    enum cr_status st = cr_session_sync(b->s, b->ids, (size_t)b->n_prefill, NULL, &b->err);
    b->prefill.ms[b->prefill.n++] = 1e3 * (cr_now() - start);
    return st;
}

static void ignore(void *ud, size_t token, const float *logits)
{
    (void)ud;
    (void)token;
    (void)logits;
}

/* n_seq sequences, one token of each in a pass, after `depth` tokens of each. */
static enum cr_status decode(struct bench *b)
{
    struct cr_batch_token tokens[MAX_SEQUENCES];
    int room = b->depth + b->n_decode;
    enum cr_status st = CR_OK;
    cr_session_reset(b->s);
    for (int q = 0; q < b->n_seq && b->depth && !st; q++) {
        struct cr_batch_token *t = cr_alloc((size_t)b->depth, sizeof *t);
        if (!t)
            return cr_error_set(&b->err, CR_NO_MEMORY, "out of memory");
        for (int i = 0; i < b->depth; i++)
            t[i] = (struct cr_batch_token){.id = b->ids[(size_t)i % b->n_ids],
                                           .pos = i,
                                           .seg_begin = q * room,
                                           .cell = q * room + i,
                                           .delta = b->setup.delta};
        st = cr_session_run(
            b->s, &(struct cr_batch){.tokens = t, .n = (size_t)b->depth, .placed = true}, &b->err);
        cr_free(t);
    }
    double start = cr_now();
    for (int i = 0; i < b->n_decode && !st; i++) {
        for (int q = 0; q < b->n_seq; q++)
            tokens[q] = (struct cr_batch_token){.id = b->ids[(size_t)(i + q) % b->n_ids],
                                                .pos = b->depth + i,
                                                .seg_begin = q * room,
                                                .cell = q * room + b->depth + i,
                                                .want = true,
                                                .delta = b->setup.delta};
        st = cr_session_run(
            b->s,
            &(struct cr_batch){
                .tokens = tokens, .n = (size_t)b->n_seq, .placed = true, .on_logits = ignore},
            &b->err);
    }
    b->decode.ms[b->decode.n++] = 1e3 * (cr_now() - start);
    return st;
}

static enum cr_status run(struct bench *b)
{
    const struct cr_model_info *info = cr_model_info(b->setup.model);
    size_t need = (size_t)(b->n_seq * (b->depth + b->n_decode));
    need = need > (size_t)b->n_prefill ? need : (size_t)b->n_prefill;
    struct cr_rng rng;
    b->n_ids = (size_t)b->n_prefill;
    b->ids = cr_alloc(b->n_ids, sizeof *b->ids);
    if (!b->ids)
        return cr_error_set(&b->err, CR_NO_MEMORY, "out of memory");
    cr_rng_init(&rng, 1);
    for (size_t i = 0; i < b->n_ids; i++)
        b->ids[i] = (int32_t)cr_rng_below(&rng, (uint64_t)info->n_vocab);
    enum cr_status st = cr_session_new(&b->s, b->setup.model, (int)need, &b->err);
    if (st)
        return st;
    cr_session_set_delta(b->s, b->setup.delta);
    st = cr_session_step(b->s, b->ids[0], &b->err); /* pages in */
    for (int r = 0; r < b->rounds && !st; r++)
        if (!(st = prefill(b)))
            st = decode(b);
    if (!st)
        st = measure_reading(b);
    if (!st)
        measure_products(b);
    return st;
}

/* ---- the report ---- */

/* Multiplications and additions of a token in the layers' products: what a prompt costs. */
static double layer_ops(const cr_model *m)
{
    double n = 0;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            n += 2.0 * w->n_in * w->n_out;
        }
    return n;
}

/* Bytes of weights that a token of an answer reads. */
static double token_bytes(const cr_model *m)
{
    double n = (double)m->output.row_bytes * m->output.n_out;
    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < CR_LIN_COUNT; i++) {
            const struct cr_matrix *w = cr_model_linear(m, l, (enum cr_linear)i);
            n += (double)w->row_bytes * w->n_out;
        }
    return n;
}

static void row(struct cr_facts *f, const char *name, struct times *t, double tokens)
{
    double v[3];
    char key[64], text[96];
    speeds(t, tokens, v);
    snprintf(key, sizeof key, "%s_tokens_per_s", name);
    if (!f->json) {
        snprintf(text, sizeof text, "%.1f (%.1f-%.1f)", v[0], v[1], v[2]);
        cr_fact_str(f, key, text);
        return;
    }
    cr_fact_real(f, key, v[0]);
    snprintf(key, sizeof key, "%s_lowest", name);
    cr_fact_real(f, key, v[1]);
    snprintf(key, sizeof key, "%s_highest", name);
    cr_fact_real(f, key, v[2]);
}

static void rounded(struct cr_facts *f, const char *key, double v)
{
    cr_fact_real(f, key, round(1e4 * v) / 1e4);
}

static int report(struct bench *b)
{
    const cr_model *m = b->setup.model;
    const struct cr_model_info *info = cr_model_info(m);
    struct cr_facts f;
    double v[3];
    const uint32_t type = m->layers[0].lin[CR_LIN_UP].type;
    cr_facts_begin(&f, cr_arg_flag(b->a, CR_OPT_JSON));
    cr_fact_str(&f, "model", b->setup.model_path);
    cr_fact_str(&f, "type", info->type_name);
    cr_fact_str(&f, "cpu", info->cpu);
    cr_fact_int(&f, "threads", info->n_threads);
    cr_fact_str(&f, "pages", info->copy_bytes ? "huge" : "map");
    cr_fact_bytes(&f, "copied_weight_bytes", info->copy_bytes);
    cr_fact_bytes(&f, "weight_bytes", info->weight_bytes);
    cr_fact_int(&f, "rank_of_palette", b->setup.delta ? cr_delta_rank(b->setup.delta) : 0);
    rounded(&f, "read_gb_per_s", b->read_gb);
    rounded(&f, "int8_peak_gop_per_s", b->peak_gop);
    cr_fact_str(&f, "kv", m->kv == CR_KV_Q8_0 ? "q8_0" : "f16");
    cr_fact_bytes(&f, "kv_bytes", cr_session_kv_bytes(m, cr_session_ctx(b->s)));
    cr_fact_int(&f, "prefill_tokens", b->n_prefill);
    row(&f, "prefill", &b->prefill, b->n_prefill);
    speeds(&b->prefill, b->n_prefill, v);
    rounded(&f, "prefill_gop_per_s", 1e-9 * v[0] * layer_ops(m));
    if (type != CR_F32 && type != CR_F16 && type != CR_BF16 && b->peak_gop > 0)
        rounded(&f, "prefill_share_of_peak", 1e-9 * v[0] * layer_ops(m) / b->peak_gop);
    cr_fact_int(&f, "decode_tokens", b->n_decode);
    cr_fact_int(&f, "decode_depth", b->depth);
    cr_fact_int(&f, "decode_sequences", b->n_seq);
    row(&f, "decode", &b->decode, (double)b->n_decode * b->n_seq);
    speeds(&b->decode, b->n_decode, v);
    rounded(&f, "decode_gb_per_s", 1e-9 * v[0] * token_bytes(m));
    rounded(&f, "decode_share_of_reading", 1e-9 * v[0] * token_bytes(m) / b->read_gb);
    rounded(&f, "load_ms", b->setup.load_ms);
    cr_fact_bytes(&f, "peak_memory", cr_peak_bytes());
    return cr_facts_print(&f);
}

int cr_cli_bench(const struct cr_args *a)
{
    struct bench *b = cr_alloc0(1, sizeof *b);
    if (!b)
        return cr_fail(&(struct cr_error){.status = CR_NO_MEMORY, .msg = "out of memory"});
    b->a = a;
    b->n_prefill = cr_arg_int(a, CR_OPT_PREFILL);
    b->n_decode = cr_arg_int(a, CR_OPT_DECODE);
    b->depth = cr_arg_int(a, CR_OPT_DEPTH);
    b->rounds = cr_arg_int(a, CR_OPT_ROUNDS);
    b->n_seq = cr_arg_int(a, CR_OPT_SEQUENCES);
    enum cr_status st = cr_setup_open(&b->setup, a, CR_SETUP_DELTA, &b->err);
    if (!st)
        st = run(b);
    int code = st ? cr_fail(&b->err) : report(b);
    cr_session_free(b->s);
    cr_free(b->ids);
    cr_setup_close(&b->setup);
    cr_free(b);
    return code;
}
