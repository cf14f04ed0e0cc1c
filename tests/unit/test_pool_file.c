/* SPDX-License-Identifier: Apache-2.0 */
/* Pool files: round trips, and every way a file can be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/gguf.h"
#include "pool_fixture.h"

#include <sys/stat.h>

enum { N = 3, RANK = 2 };

static cr_pool *random_pool(enum cr_pool_form form, enum cr_pool_kind kind)
{
    return fx_random_pool(fx_model, form, kind, N, RANK, 21);
}

static void write_pool(const cr_pool *p, const char *path, uint32_t type)
{
    struct cr_error err;
    if (cr_pool_write(p, path, type, &err))
        fail_msg("%s", err.msg);
}

static void same_pool(const cr_pool *a, const cr_pool *b)
{
    const struct cr_pool_index *x = &a->index, *y = &b->index;
    assert_int_equal(a->form, b->form);
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->hard, b->hard);
    assert_int_equal(a->n, b->n);
    assert_int_equal(a->rank, b->rank);
    assert_int_equal(a->n_targets, b->n_targets);
    assert_true(a->alpha == b->alpha && a->loss == b->loss && a->seed == b->seed);
    assert_int_equal(a->steps, b->steps);
    assert_int_equal(a->worked, b->worked);
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->command, b->command);
    assert_string_equal(a->base_hash, b->base_hash);
    assert_int_equal(x->n_entries, y->n_entries);
    size_t t = (size_t)x->n_entries, f = sizeof(float);
    for (size_t i = 0; i < t; i++) {
        assert_string_equal(x->names[i], y->names[i]);
        assert_string_equal(x->about[i], y->about[i]);
        assert_int_equal(x->rows[i], y->rows[i]);
    }
    assert_memory_equal(x->weights, y->weights, t * (size_t)a->n * f);
    assert_memory_equal(x->qx_proto, y->qx_proto, t * (size_t)fx_model->q_dim * f);
    assert_memory_equal(x->mid_proto, y->mid_proto, t * (size_t)fx_model->n_embd * f);
    assert_memory_equal(x->mid_std, y->mid_std, (size_t)fx_model->n_embd * f);
    if (a->kind == CR_POOL_CENTROID)
        assert_true(x->tau_qx == y->tau_qx && x->tau_middle == y->tau_middle);
    static float ba[4096], bb[4096];
    for (int i = 0; i < a->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = &fx_model->layers[0].lin[i % CR_LIN_COUNT];
        assert_int_equal(a->pairs[i].a != NULL, b->pairs[i].a != NULL);
        if (!a->pairs[i].a)
            continue;
        size_t sets = a->form == CR_POOL_SEPARATE ? N : 1;
        assert_memory_equal(a->pairs[i].a, b->pairs[i].a, sets * RANK * (size_t)w->n_in * f);
        for (int n = 0; n < N; n++) {
            cr_pool_read_b(a, i / CR_LIN_COUNT, (enum cr_linear)(i % CR_LIN_COUNT), n, ba);
            cr_pool_read_b(b, i / CR_LIN_COUNT, (enum cr_linear)(i % CR_LIN_COUNT), n, bb);
            assert_memory_equal(ba, bb, RANK * (size_t)w->n_out * f);
        }
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    static const uint32_t types[] = {CR_F32, CR_F16};
    for (int form = 0; form < 2; form++)
        for (int kind = 0; kind < 2; kind++)
            for (int t = 0; t < 2; t++) {
                cr_pool *p = random_pool((enum cr_pool_form)form, (enum cr_pool_kind)kind);
                cr_free(p->command);
                p->command = cr_strdup("crayon pool train ...");
                p->steps = 123;
                p->worked = 8;
                p->seed = UINT64_MAX;
                p->loss = 1.25f;
                p->hard = kind == CR_POOL_CENTROID && form == 1;
                write_pool(p, fx_path("p.gguf"), types[t]);
                cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
                same_pool(p, q);
                assert_int_equal(q->b_type, types[t]);
                assert_int_equal(cr_pool_size(q), N);
                assert_int_equal(strlen(q->hash), 64);
                /* an opened pool blends the same bits and can be written again */
                float weights[N] = {0.5f, -1, 2};
                cr_delta *d = fx_blend(p, weights), *e = fx_blend(q, weights);
                assert_true(fx_logits_diff(fx_model, d, fx_model, e) == 0);
                write_pool(q, fx_path("q.gguf"), types[t]);
                cr_pool *r = fx_open_pool(fx_model, fx_path("q.gguf"));
                assert_string_equal(q->hash, r->hash);
                cr_pool_close(r);
                cr_delta_free(e);
                cr_delta_free(d);
                cr_pool_close(q);
                cr_pool_close(p);
            }
}

static void test_hash_sees_every_tensor(void **state)
{
    (void)state;
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    write_pool(p, fx_path("p.gguf"), CR_F16);
    cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
    p->pairs[CR_LIN_COUNT + CR_LIN_DOWN].b[0] += 1;
    write_pool(p, fx_path("p2.gguf"), CR_F16);
    cr_pool *r = fx_open_pool(fx_model, fx_path("p2.gguf"));
    assert_string_not_equal(q->hash, r->hash);
    cr_pool_close(r);
    cr_pool_close(q);
    cr_pool_close(p);
}

static void test_views_may_be_absent(void **state)
{
    (void)state;
    struct cr_error err;
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    cr_free(p->index.mid_proto);
    p->index.mid_proto = NULL;
    write_pool(p, fx_path("p.gguf"), CR_F16);
    cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
    assert_null(q->index.mid_proto);
    assert_int_equal(cr_pool_check_view(q, CR_VIEW_QX, &err), CR_OK);
    assert_int_equal(cr_pool_check_view(q, CR_VIEW_MIDDLE, &err), CR_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "middle"));
    cr_pool_close(q);
    cr_pool_close(p);
    /* a plain LoRA may have no index at all */
    static const bool target[CR_LIN_COUNT] = {[CR_LIN_V] = true};
    assert_int_equal(cr_pool_new(&p, fx_model, CR_POOL_SHARED, CR_POOL_LORA, 1, 2, 4, target, &err),
                     CR_OK);
    write_pool(p, fx_path("l.gguf"), CR_F32);
    q = fx_open_pool(fx_model, fx_path("l.gguf"));
    assert_int_equal(q->n_targets, 1);
    assert_int_equal(cr_pool_check_view(q, CR_VIEW_QX, &err), CR_UNSUPPORTED);
    cr_pool_close(q);
    p->kind = CR_POOL_LIBRARY;
    assert_int_equal(cr_pool_write(p, fx_path("l.gguf"), CR_F32, &err), CR_INVALID);
    cr_pool_close(p);
}

static void refused(const char *path, enum cr_status status, const char *want)
{
    cr_pool *p;
    struct cr_error err = {.msg = ""};
    size_t before = cr_mem_now();
    enum cr_status got = cr_pool_open(&p, fx_model, path, &err);
    assert_null(p);
    if (got != status || !strstr(err.msg, want))
        fail_msg("got %s \"%s\", want %s \"%s\"", cr_status_text(got), err.msg,
                 cr_status_text(status), want);
    assert_int_equal(cr_mem_now(), before);
}

/* Replaces one run of bytes in a written pool by others of the same length. */
static void patch(const char *from, const char *to, size_t len)
{
    char *data;
    size_t n;
    struct cr_error err;
    assert_int_equal(cr_file_read(fx_path("p.gguf"), 1 << 24, &data, &n, &err), CR_OK);
    char *at = memmem(data, n, from, len);
    assert_non_null(at);
    memcpy(at, to, len);
    assert_int_equal(cr_file_write(fx_path("bad.gguf"), data, n, &err), CR_OK);
    cr_free(data);
}

static void test_keys_are_checked(void **state)
{
    (void)state;
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_CENTROID);
    write_pool(p, fx_path("p.gguf"), CR_F16);
#define P(from, to) from, to, sizeof(to) - 1 /* runs of one length; values may hold NUL */
    static const struct {
        const char *from, *to;
        size_t len;
        const char *want;
        enum cr_status status;
    } cases[] = {
        {P("crayon.pool\x0c", "crayon.poot\x0c"), "general.type: want \"crayon.pool\"", CR_FORMAT},
        {P("llama\x0c", "llame\x0c"), "want \"llama\", file has \"llame\"", CR_FORMAT},
        {P("pool.version\4\0\0\0\1", "pool.version\4\0\0\0\3"), "pool version 3", CR_UNSUPPORTED},
        {P("pool.base_hash", "pool.base_hasx"), "crayon.pool.base_hash", CR_FORMAT},
        {P("shared", "sharek"), "crayon.pool.form is \"sharek\"", CR_UNSUPPORTED},
        {P("centroid", "centraid"), "crayon.pool.kind is \"centraid\"", CR_UNSUPPORTED},
        {P("soft", "safe"), "crayon.pool.mode is \"safe\"", CR_UNSUPPORTED},
        {P("pool.n\4\0\0\0\3", "pool.n\4\0\0\0\0"), "0 adapters", CR_FORMAT},
        {P("pool.n\4\0\0\0\3\0", "pool.n\4\0\0\0\1\4"), "1025 adapters", CR_FORMAT},
        {P("pool.n\4\0\0\0\3", "pool.n\4\0\0\0\2"), "(2 x 64 x 3, want 2 x 64 x 2)", CR_FORMAT},
        {P("pool.rank\4\0\0\0\2", "pool.rank\4\0\0\0\0"), "rank 0", CR_FORMAT},
        {P("pool.rank\4\0\0\0\2\0\0", "pool.rank\4\0\0\0\0\0\1"), "rank 65536", CR_FORMAT},
        {P("pool.alpha\6\0\0\0\0\0\x40\x40", "pool.alpha\6\0\0\0\0\0\xc0\x7f"), "alpha is",
         CR_FORMAT},
        {P("pool.alpha\6\0\0\0\0\0\x40\x40", "pool.alpha\6\0\0\0\0\0\0\0"), "alpha is 0",
         CR_FORMAT},
        {P("pool.tau_qx\6\0\0\0\xcd\xcc\xcc\x3d", "pool.tau_qx\6\0\0\0\0\0\0\0"),
         "tau_qx is 0, want more than 0", CR_FORMAT},
        {P("pool.middle_layer\4\0\0\0\0", "pool.middle_layer\4\0\0\0\1"),
         "middle_layer is 1, want 0", CR_UNSUPPORTED},
        {P("pool.tasks", "pool.tasky"), "names 0 entries, want at least 1", CR_FORMAT},
        {P("task 1", "task\xff"
                     "1"),
         "crayon.pool.tasks is not UTF-8", CR_FORMAT},
        {P("task 1", "task\0001"), "crayon.pool.tasks is not UTF-8", CR_FORMAT},
        {P("index.weights", "index.weighty"), "index.weighty (unknown tensor)", CR_FORMAT},
        {P("blk.1.attn_q.weight.lora_b", "blk.1.attn_q.weight.lora_c"),
         "blk.1.attn_q.weight.lora_c (unknown tensor); blk.1.attn_q.weight.lora_b (missing)",
         CR_FORMAT},
        {P("blk.1.attn_q.weight.lora_a", "blk.2.attn_q.weight.lora_a"), "unknown tensor",
         CR_FORMAT},
        {P("blk.1.attn_v.weight.lora_a", "blk.1.attn_k.weight.lora_c"), "unknown tensor",
         CR_FORMAT},
        {P("blk.0.attn_v.weight.lora_a", "blk.0.ffn_up.weight.lora_z"), "(missing)", CR_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        patch(cases[i].from, cases[i].to, cases[i].len);
        refused(fx_path("bad.gguf"), cases[i].status, cases[i].want);
    }
#undef P
    cr_pool_close(p);
}

static void test_values_are_checked(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY};
    struct cr_error err;
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < 2; i++) {
            cr_pool *p = random_pool(CR_POOL_SEPARATE, CR_POOL_LIBRARY);
            p->pairs[CR_LIN_V].b[5] = bad[i]; /* the writer refuses it too */
            assert_int_equal(cr_pool_write(p, fx_path("p.gguf"), t ? CR_F16 : CR_F32, &err),
                             CR_INVALID);
            assert_non_null(strstr(err.msg, "blk.0.attn_v"));
            cr_pool_close(p);
        }
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    p->pairs[CR_LIN_V].b[1] = 123.25f; /* a value to find in the file */
    p->index.mid_std[3] = 77.5f;
    p->index.weights[4] = 99.5f;
    write_pool(p, fx_path("p.gguf"), CR_F32);
    static const float b = 123.25f, s = 77.5f, w = 99.5f, nan_value = NAN, zero = 0, big = 1e30f;
    patch((const char *)&b, (const char *)&nan_value, 4);
    refused(fx_path("bad.gguf"), CR_FORMAT, "blk.0.attn_v.weight.lora_b holds NaN or infinity");
    patch((const char *)&s, (const char *)&zero, 4);
    refused(fx_path("bad.gguf"), CR_FORMAT, "index.middle.std: value 3 is 0");
    patch((const char *)&s, (const char *)&nan_value, 4);
    refused(fx_path("bad.gguf"), CR_FORMAT, "index.middle.std holds NaN");
    patch((const char *)&w, (const char *)&big, 4);
    refused(fx_path("bad.gguf"), CR_FORMAT, "index.weights: row 1 holds 1e+30");
    patch((const char *)&p->index.qx_proto[70], (const char *)&w, 4);
    refused(fx_path("bad.gguf"), CR_FORMAT, "index.qx.proto: row 1 has length");
    cr_pool_close(p);
    p = random_pool(CR_POOL_SHARED, CR_POOL_CENTROID);
    p->index.weights[1] = 1;
    assert_int_equal(cr_pool_write(p, fx_path("p.gguf"), CR_F32, &err), CR_FORMAT);
    assert_non_null(strstr(err.msg, "identity"));
    p->index.weights[1] = 0;
    p->pairs[0].a[0] = 70000;
    assert_int_equal(cr_pool_write(p, fx_path("p.gguf"), CR_F16, &err), CR_INVALID);
    cr_pool_close(p);
}

/* B of q is within half a code of each block of p's (of its largest value: 1/254, and float16). */
static void near_pool(const cr_pool *p, const cr_pool *q)
{
    static float bp[4096], bq[4096];
    for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w = &fx_model->layers[0].lin[i % CR_LIN_COUNT];
        const size_t count = RANK * (size_t)w->n_out;
        for (int n = 0; n < N && p->pairs[i].a; n++) {
            cr_pool_read_b(p, i / CR_LIN_COUNT, (enum cr_linear)(i % CR_LIN_COUNT), n, bp);
            cr_pool_read_b(q, i / CR_LIN_COUNT, (enum cr_linear)(i % CR_LIN_COUNT), n, bq);
            for (size_t k = 0; k < count; k += CR_QK) {
                float top = 0;
                for (size_t j = 0; j < CR_QK; j++)
                    top = fmaxf(top, fabsf(bp[k + j]));
                for (size_t j = 0; j < CR_QK; j++)
                    assert_true(fabsf(bp[k + j] - bq[k + j]) <= top * (1 / 254.0f + 1 / 2048.0f));
            }
        }
    }
}

/* Version 2: near what was written, the same bits from then on. */
static void test_eight_bits(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        const float weights[N] = {0.5f, -1, 2};
        cr_pool *p = random_pool((enum cr_pool_form)form, CR_POOL_LIBRARY);
        memset(p->pairs[CR_LIN_V].b, 0, CR_QK * sizeof(float));
        p->pairs[CR_LIN_V].b[CR_QK] = 3e-7f; /* a scale that float16 has not */
        write_pool(p, fx_path("p.gguf"), CR_Q8_0);
        cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
        assert_int_equal(q->b_type, CR_Q8_0);
        assert_int_equal(q->file != NULL, true);
        near_pool(p, q);
        write_pool(q, fx_path("q.gguf"), CR_Q8_0);
        cr_pool *r = fx_open_pool(fx_model, fx_path("q.gguf"));
        assert_string_equal(q->hash, r->hash);
        same_pool(q, r);
        cr_pool_close(r);
        /* what float32 keeps of it blends to the same */
        write_pool(q, fx_path("r.gguf"), CR_F32);
        r = fx_open_pool(fx_model, fx_path("r.gguf"));
        same_pool(q, r);
        cr_delta *d = fx_blend(q, weights), *e = fx_blend(r, weights);
        assert_true(fx_logits_diff(fx_model, d, fx_model, e) < 1e-4f);
        cr_delta_free(e);
        cr_delta_free(d);
        cr_pool_close(r);
        cr_pool_close(q);
        cr_pool_close(p);
    }
}

/* What is less than a block stays float16: A of a model 16 wide, and all of the pool, which an old
 * program then reads, where B of a rank leaves a block open. */
static void test_eight_bits_want_whole_blocks(void **state)
{
    (void)state;
    static const bool target[CR_LIN_COUNT] = {[CR_LIN_V] = true};
    struct cr_error err;
    cr_model *m = fx_open_model(CR_SOURCE_DIR "/tests/fuzz/corpus/fuzz_gguf/smollm3.gguf");
    assert_int_equal(m->layers[0].lin[CR_LIN_V].n_in, 16);
    assert_int_equal(m->layers[0].lin[CR_LIN_V].n_out, 16);
    for (int rank = 2; rank <= 3; rank++) {
        cr_pool *p, *q;
        assert_int_equal(cr_pool_new(&p, m, CR_POOL_SHARED, CR_POOL_LORA, 1, rank, 4, target, &err),
                         CR_OK);
        p->pairs[CR_LIN_V].a[1] = 0.333251953125f; /* a float16 */
        write_pool(p, fx_path("p.gguf"), CR_Q8_0);
        q = fx_open_pool(m, fx_path("p.gguf"));
        assert_int_equal(q->b_type, rank == 2 ? CR_Q8_0 : CR_F16);
        assert_true(q->pairs[CR_LIN_V].a[1] == 0.333251953125f);
        cr_pool_close(q);
        cr_pool_close(p);
    }
    cr_model_close(m);
}

static void test_versions_keep_their_types(void **state)
{
    (void)state;
    static const char one[] = "pool.version\4\0\0\0\1", two[] = "pool.version\4\0\0\0\2";
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    write_pool(p, fx_path("p.gguf"), CR_F16);
    patch(one, two, sizeof one - 1);
    refused(fx_path("bad.gguf"), CR_UNSUPPORTED, "blk.0.attn_q.weight.lora_b (want Q8_0)");
    p->pairs[CR_LIN_V].b[1] = 123.25f; /* its scale is to be found in the file */
    write_pool(p, fx_path("p.gguf"), CR_Q8_0);
    patch(two, one, sizeof one - 1);
    refused(fx_path("bad.gguf"), CR_UNSUPPORTED, "blk.0.attn_q.weight.lora_a (want F16 or F32)");
    patch("pool.rank\4\0\0\0\2", "pool.rank\4\0\0\0\4", 14);
    refused(fx_path("bad.gguf"), CR_FORMAT, "(128 x 3 x 1, want 256 x 3 x 1)");
    cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
    static const uint16_t bad[] = {0x7c00, 0xfc00, 0x7e01};
    const struct cr_block_q8_0 *b = (const void *)q->pairs[CR_LIN_V].b_file;
    struct cr_block_q8_0 from = *b, to = *b;
    assert_int_equal(b->q[1], 127);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        to.d = bad[i];
        patch((const char *)&from, (const char *)&to, sizeof to);
        refused(fx_path("bad.gguf"), CR_FORMAT, "blk.0.attn_v.weight.lora_b holds NaN or infinity");
    }
    from = to = *(const struct cr_block_q8_0 *)(const void *)q->pairs[CR_LIN_UP].b_file;
    to.d = 0x7bff; /* 65504: large, but a number */
    patch((const char *)&from, (const char *)&to, sizeof to);
    cr_pool *r = fx_open_pool(fx_model, fx_path("bad.gguf"));
    cr_pool_close(r);
    cr_pool_close(q);
    cr_pool_close(p);
}

static void test_attack_16_same_shapes_other_base(void **state)
{
    (void)state;
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    p->base_hash[0] = p->base_hash[0] == 'a' ? 'b' : 'a';
    write_pool(p, fx_path("p.gguf"), CR_F16);
    refused(fx_path("p.gguf"), CR_INVALID, p->base_hash);
    refused(fx_path("p.gguf"), CR_INVALID, cr_model_hash(fx_model));
    cr_pool_close(p);
}

static void test_attack_17_a_million_entries(void **state)
{
    (void)state;
    enum { MANY = 1000000 };
    static const char *names[MANY];
    for (int i = 0; i < MANY; i++)
        names[i] = "x";
    cr_gguf_writer *w = cr_gguf_writer_new();
    assert_non_null(w);
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    write_pool(p, fx_path("p.gguf"), CR_F16);
    cr_gguf *g;
    struct cr_error err;
    assert_int_equal(cr_gguf_open(&g, fx_path("p.gguf"), &err), CR_OK);
    for (size_t i = 0; i < cr_gguf_n_kv(g); i++)
        if (!cr_str_eq(cr_gguf_kv_at(g, i)->key, "crayon.pool.tasks"))
            cr_gguf_put_kv(w, cr_gguf_kv_at(g, i));
    cr_gguf_put_strs(w, "crayon.pool.tasks", names, MANY);
    for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
        const struct cr_tensor *t = cr_gguf_tensor_at(g, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.p);
        cr_gguf_put_tensor(w, name, t->type, t->n_dims, t->ne, t->data);
    }
    assert_int_equal(cr_gguf_write(w, fx_path("many.gguf"), &err), CR_OK);
    cr_gguf_writer_free(w);
    cr_gguf_close(g);
    cr_pool_close(p);
    refused(fx_path("many.gguf"), CR_LIMIT, "1000000 index entries, the limit is 65536");
}

static void test_attack_17_names_are_only_labels(void **state)
{
    (void)state;
    static const char *const names[] = {"../../../etc/passwd", "/etc/passwd", "a\nb\x1b[31m", ""};
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    assert_int_equal(p->index.n_entries, 4);
    for (int i = 0; i < 4; i++) {
        cr_free(p->index.names[i]);
        p->index.names[i] = cr_strdup(names[i]);
    }
    write_pool(p, fx_path("p.gguf"), CR_F16);
    cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
    for (int i = 0; i < 4; i++)
        assert_string_equal(q->index.names[i], names[i]);
    cr_pool_close(q);
    cr_pool_close(p);
}

static void test_attack_17_fifo_device_directory(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(fx_path("fifo"), 0600), 0);
    refused(fx_path("fifo"), CR_UNSUPPORTED, "FIFO"); /* does not hang */
    refused("/dev/zero", CR_UNSUPPORTED, "device");
    refused(fx_dir, CR_INVALID, "directory");
    refused(fx_path("absent"), CR_NOT_FOUND, "absent");
    assert_int_equal(symlink("loop", fx_path("loop")), 0);
    refused(fx_path("loop"), CR_IO, "loop");
    refused(FX_LORA "base.gguf", CR_FORMAT, "general.type"); /* a model is no pool */
}

static void test_truncated_at_every_byte(void **state)
{
    (void)state;
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    write_pool(p, fx_path("p.gguf"), CR_F16);
    cr_pool_close(p);
    char path[256];
    struct stat st;
    snprintf(path, sizeof path, "%s", fx_path("p.gguf"));
    assert_int_equal(stat(path, &st), 0);
    size_t before = cr_mem_now();
    for (off_t n = st.st_size - 1; n >= 0; n -= n > 6000 ? 97 : 1) { /* the header is 6000 bytes */
        struct cr_error err;
        assert_int_equal(truncate(path, n), 0);
        enum cr_status status = cr_pool_open(&p, fx_model, path, &err);
        assert_true(status == CR_FORMAT || status == CR_UNSUPPORTED);
        assert_null(p);
    }
    assert_int_equal(cr_mem_now(), before);
}

static void test_out_of_memory_at_every_allocation(void **state)
{
    (void)state;
    cr_pool *p = random_pool(CR_POOL_SEPARATE, CR_POOL_LIBRARY);
    write_pool(p, fx_path("p.gguf"), CR_F16);
    cr_pool_close(p);
    size_t before = cr_mem_now();
    enum cr_status status = CR_NO_MEMORY;
    for (uint64_t n = 1; status != CR_OK && n < 3000; n++) {
        struct cr_error err;
        cr_delta *d = NULL;
        const float weights[N] = {1, 2, 3};
        cr_mem_fail_at(n, true);
        status = cr_pool_open(&p, fx_model, fx_path("p.gguf"), &err);
        if (status == CR_OK)
            status = cr_pool_blend(&d, p, weights, &err);
        if (status == CR_OK)
            status = cr_pool_write(p, fx_path("q.gguf"), CR_F16, &err);
        cr_mem_fail_at(0, false);
        if (status != CR_OK)
            assert_int_equal(status, CR_NO_MEMORY);
        cr_delta_free(d);
        cr_pool_close(p);
        assert_int_equal(cr_mem_now(), before);
    }
    assert_int_equal(status, CR_OK);
}

/* What cr_pool_hold copies mixes to the same bits as the file, with and without zero weights. */
static void test_held_blends_the_same_bits(void **state)
{
    const uint32_t type = *(const uint32_t *)*state;
    static const float weights[3][N] = {{0.5f, -1, 2}, {0.5f, 0, 2}, {0, 3, 0}};
    cr_pool *p = random_pool(CR_POOL_SHARED, CR_POOL_LIBRARY);
    write_pool(p, fx_path("p.gguf"), type);
    cr_pool_close(p);
    p = fx_open_pool(fx_model, fx_path("p.gguf"));
    assert_int_equal(p->b_type, type);
    cr_pool *q = fx_open_pool(fx_model, fx_path("p.gguf"));
    cr_pool_hold(q);
    assert_non_null(q->held);
    for (int k = 0; k < 3; k++) {
        cr_delta *d = fx_blend(p, weights[k]), *e = fx_blend(q, weights[k]);
        for (int i = 0; i < p->n_layers * CR_LIN_COUNT; i++) {
            const size_t n_out = (size_t)fx_model->layers[0].lin[i % CR_LIN_COUNT].n_out;
            if (d->pairs[i].b)
                assert_memory_equal(d->pairs[i].b, e->pairs[i].b, RANK * n_out * sizeof(float));
        }
        cr_delta_free(d);
        cr_delta_free(e);
    }
    same_pool(p, q); /* what was let go of is read from the file again */
    cr_pool_close(q);
    cr_pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_hash_sees_every_tensor),
        cmocka_unit_test(test_views_may_be_absent),
        cmocka_unit_test(test_keys_are_checked),
        cmocka_unit_test(test_values_are_checked),
        cmocka_unit_test(test_eight_bits),
        cmocka_unit_test(test_eight_bits_want_whole_blocks),
        cmocka_unit_test(test_versions_keep_their_types),
        cmocka_unit_test(test_attack_16_same_shapes_other_base),
        cmocka_unit_test(test_attack_17_a_million_entries),
        cmocka_unit_test(test_attack_17_names_are_only_labels),
        cmocka_unit_test(test_attack_17_fifo_device_directory),
        cmocka_unit_test(test_truncated_at_every_byte),
        cmocka_unit_test(test_out_of_memory_at_every_allocation),
        cmocka_unit_test_prestate(test_held_blends_the_same_bits, &(uint32_t){CR_F16}),
        cmocka_unit_test_prestate(test_held_blends_the_same_bits, &(uint32_t){CR_Q8_0}),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
