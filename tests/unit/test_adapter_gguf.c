/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF LoRA files: round trips, and every way a file can be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lora_fixture.h"
#include "model/gguf.h"

#include <sys/stat.h>

/* A file with one pair on blk.0.attn_q (64 x 64, rank 2), changed by the fields that are set. */
struct file {
    const char *general_type, *adapter_type, *arch, *hash, *prefix;
    float alpha;
    bool no_alpha, text_alpha, alora, no_b;
    uint64_t rank, b_rank, n_in, n_out;
    uint32_t type;
    float value;       /* of A[1] */
    const char *extra; /* one more tensor of ne = [64, 2] by this name */
    const char *name;  /* instead of blk.0.attn_q.weight */
    uint32_t n_dims;
};

static const char *write_file(struct file f)
{
    static float data[1 << 16];
    static uint16_t half[1 << 16];
    uint64_t rank = f.rank ? f.rank : 2, b_rank = f.b_rank ? f.b_rank : rank;
    uint64_t a_ne[3] = {f.n_in ? f.n_in : 64, rank, 2}, b_ne[2] = {b_rank, f.n_out ? f.n_out : 64};
    for (size_t i = 0; i < 1 << 16; i++)
        data[i] = (float)(i % 7) * 0.01f - 0.02f;
    data[1] = f.value != 0 ? f.value : 0.1f;
    for (size_t i = 0; i < 1 << 16; i++)
        half[i] = cr_f32_to_f16(data[i]);
    cr_gguf_writer *w = cr_gguf_writer_new();
    assert_non_null(w);
    cr_gguf_put_str(w, "general.architecture", f.arch ? f.arch : "llama");
    cr_gguf_put_str(w, "general.type", f.general_type ? f.general_type : "adapter");
    cr_gguf_put_str(w, "adapter.type", f.adapter_type ? f.adapter_type : "lora");
    if (f.text_alpha)
        cr_gguf_put_str(w, "adapter.lora.alpha", "4");
    else if (!f.no_alpha)
        cr_gguf_put_f32(w, "adapter.lora.alpha", f.alpha != 0 ? f.alpha : 4);
    if (f.hash)
        cr_gguf_put_str(w, "crayon.base_hash", f.hash);
    if (f.prefix)
        cr_gguf_put_str(w, "adapter.lora.prompt_prefix", f.prefix);
    if (f.alora)
        cr_gguf_put_u32s(w, "adapter.alora.invocation_tokens", (const uint32_t[]){1, 2}, 2);
    char name[2][128];
    for (int i = 0; i < 2; i++)
        snprintf(name[i], sizeof name[i], "%s.lora_%c", f.name ? f.name : "blk.0.attn_q.weight",
                 "ab"[i]);
    const void *v = f.type == CR_F16 ? (const void *)half : (const void *)data;
    cr_gguf_put_tensor(w, name[0], f.type, f.n_dims ? f.n_dims : 2, a_ne, v);
    if (!f.no_b)
        cr_gguf_put_tensor(w, name[1], f.type, 2, b_ne, v);
    if (f.extra)
        cr_gguf_put_tensor(w, f.extra, CR_F32, 2, (const uint64_t[]){64, 2}, data);
    static char path[256];
    snprintf(path, sizeof path, "%s/case.gguf", fx_dir);
    struct cr_error err;
    if (cr_gguf_write(w, path, &err))
        fail_msg("%s", err.msg);
    cr_gguf_writer_free(w);
    return path;
}

static void test_opens_a_good_file(void **state)
{
    (void)state;
    static const uint32_t types[] = {CR_F32, CR_F16};
    for (int i = 0; i < 2; i++) {
        cr_adapter *a = fx_open(fx_model, write_file((struct file){.type = types[i]}));
        assert_int_equal(a->n_pairs, 1);
        assert_int_equal(a->max_rank, 2);
        assert_int_equal(a->pairs[0].rank, 2);
        assert_true(a->pairs[0].scale == 2); /* alpha 4 / rank 2 */
        assert_true(a->alpha == 4);
        assert_true(fabsf(a->pairs[0].a[1] - 0.1f) < 1e-4f);
        cr_adapter_close(a);
    }
    fx_log[0] = '\0';
    cr_adapter_close(fx_open(fx_model, write_file((struct file){.prefix = "Hello"})));
    assert_non_null(strstr(fx_log, "Hello"));
    cr_adapter_close(fx_open(fx_model, write_file((struct file){.hash = cr_model_hash(fx_model)})));
}

static void test_attack_15_settings_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        struct file f;
        const char *want;
    } cases[] = {
        {{.general_type = "model"}, "general.type: want \"adapter\", file has \"model\""},
        {{.adapter_type = "control"}, "adapter.type: want \"lora\", file has \"control\""},
        {{.arch = "qwen2"}, "general.architecture: want \"llama\", file has \"qwen2\""},
        {{.no_alpha = true}, "adapter.lora.alpha"},
        {{.text_alpha = true}, "adapter.lora.alpha"},
        {{.alpha = NAN}, "adapter.lora.alpha is"},
        {{.alpha = INFINITY}, "adapter.lora.alpha is inf"},
        {{.alora = true}, "adapter.alora.invocation_tokens"},
        {{.no_b = true}, "blk.0.attn_q.weight.lora_a has no B"},
        {{.rank = 65, .n_out = 64}, "rank 65, want 1 to 64"},
        {{.b_rank = 3}, "lora_b (64 x 3, want 64 x 2)"},
        {{.n_in = 32}, "32 inputs, the model has 64"},
        {{.n_out = 32}, "lora_b (32 x 2, want 64 x 2)"},
        {{.n_dims = 3}, "3 dimensions"},
        {{.name = "blk.2.attn_q.weight"}, "blk.2.attn_q.weight.lora_a (the model has 2 layers)"},
        {{.name = "blk.00.attn_q.weight"}, "blk.00.attn_q.weight.lora_a (unknown target)"},
        {{.name = "blk.99999999.attn_q.weight"}, "unknown target"},
        {{.name = "token_embd.weight"}, "token_embd.weight.lora_a (LoRA on the embedding"},
        {{.name = "output.weight"}, "output.weight.lora_b (LoRA on the embedding"},
        {{.extra = "blk.1.attn_norm.weight"}, "blk.1.attn_norm.weight (unknown target)"},
        {{.extra = "blk.1.ffn_up.weight.lora_a"}, "blk.1.ffn_up.weight.lora_a has no B"},
        {{.extra = "blk.1.ffn_up.weight.lora_b"}, "blk.1.ffn_up.weight.lora_b has no A"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = write_file(cases[i].f);
        cr_adapter *a;
        struct cr_error err = {.msg = ""};
        enum cr_status status = cr_adapter_open(&a, fx_model, path, &err);
        if ((status != CR_FORMAT && status != CR_UNSUPPORTED) || !strstr(err.msg, cases[i].want))
            fail_msg("got \"%s\", want \"%s\"", err.msg, cases[i].want);
    }
    /* alpha 0 cannot be said by the struct above */
    const char *path = write_file((struct file){.alpha = 1e-30f});
    char *data;
    size_t len;
    struct cr_error err;
    assert_int_equal(cr_file_read(path, 1 << 20, &data, &len, &err), CR_OK);
    static const float tiny = 1e-30f, zero = 0;
    char *at = memmem(data, len, &tiny, sizeof tiny);
    assert_non_null(at);
    memcpy(at, &zero, sizeof zero);
    assert_int_equal(cr_file_write(path, data, len, &err), CR_OK);
    cr_free(data);
    fx_refused(fx_model, path, CR_FORMAT, "adapter.lora.alpha is 0");
}

static void test_attack_10_values_that_are_not_numbers(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        fx_refused(fx_model, write_file((struct file){.value = bad[i]}), CR_FORMAT,
                   "lora_a (holds NaN or infinity)");
        fx_refused(fx_model, write_file((struct file){.value = bad[i], .type = CR_F16}), CR_FORMAT,
                   "lora_b (holds NaN or infinity)");
    }
    cr_adapter_close(fx_open(fx_model, write_file((struct file){.value = 1e-40f}))); /* denormal */
}

static void test_attack_16_same_shapes_other_base(void **state)
{
    (void)state;
    char hash[65];
    snprintf(hash, sizeof hash, "%s", cr_model_hash(fx_model));
    hash[5] = hash[5] == '0' ? '1' : '0';
    fx_refused(fx_model, write_file((struct file){.hash = hash}), CR_INVALID, hash);
    fx_refused(fx_model, write_file((struct file){.hash = "short"}), CR_INVALID, "short");
    fx_refused(fx_model, write_file((struct file){.hash = ""}), CR_INVALID, "made for the base");
}

static void test_attack_19_norm_outliers_are_warned_of(void **state)
{
    (void)state;
    fx_log[0] = '\0';
    cr_adapter_close(fx_open(fx_model, write_file((struct file){.value = 0.1f})));
    assert_string_equal(fx_log, "");
    cr_adapter_close(fx_open(fx_model, write_file((struct file){.value = 1e6f})));
    assert_non_null(strstr(fx_log, "larger than the weights"));
    assert_non_null(strstr(fx_log, "blk.0.attn_q"));
}

static void same_adapter(const cr_adapter *a, const cr_adapter *b)
{
    for (int i = 0; i < fx_model->n_layers * CR_LIN_COUNT; i++) {
        const struct cr_matrix *w =
            cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
        assert_int_equal(a->pairs[i].rank, b->pairs[i].rank);
        size_t r = (size_t)a->pairs[i].rank * sizeof(float);
        if (r == 0)
            continue;
        assert_true(a->pairs[i].scale == b->pairs[i].scale);
        assert_memory_equal(a->pairs[i].a, b->pairs[i].a, r * (size_t)w->n_in);
        assert_memory_equal(a->pairs[i].b, b->pairs[i].b, r * (size_t)w->n_out);
    }
}

/* PEFT -> GGUF -> PEFT -> GGUF keeps every bit in float32 where one alpha serves all pairs. */
static void test_round_trip_is_lossless(void **state)
{
    (void)state;
    struct cr_error err;
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    cr_free(a->task_name);
    a->task_name = cr_strdup("a task");
    assert_int_equal(cr_adapter_write_gguf(a, fx_model, fx_path("a.gguf"), CR_F32, &err), CR_OK);
    cr_adapter *b = fx_open(fx_model, fx_path("a.gguf"));
    same_adapter(a, b);
    assert_string_equal(b->name, "plain");
    assert_string_equal(b->task_name, "a task");
    assert_true(b->alpha == 8);
    assert_int_equal(cr_adapter_write_peft(b, fx_model, fx_path("b"), CR_F32, &err), CR_OK);
    cr_adapter *c = fx_open(fx_model, fx_path("b"));
    same_adapter(a, c);
    assert_string_equal(c->name, "plain");
    assert_string_equal(c->task_name, "a task");
    assert_int_equal(cr_adapter_write_gguf(c, fx_model, fx_path("c.gguf"), CR_F32, &err), CR_OK);
    char *x, *y;
    size_t nx, ny;
    assert_int_equal(cr_file_read(fx_path("a.gguf"), 1 << 20, &x, &nx, &err), CR_OK);
    assert_int_equal(cr_file_read(fx_path("c.gguf"), 1 << 20, &y, &ny, &err), CR_OK);
    assert_int_equal(nx, ny);
    assert_memory_equal(x, y, nx);
    cr_free(x);
    cr_free(y);
    cr_adapter_close(c);
    cr_adapter_close(b);
    cr_adapter_close(a);
}

/* Mixed ranks and alphas: GGUF has one alpha, so B takes the factor, rounded once. */
static void test_patterns_become_one_alpha(void **state)
{
    (void)state;
    static const char *const names[] = {FX_LORA "patterns", FX_LORA "rslora", FX_LORA "layers"};
    struct cr_error err;
    for (int i = 0; i < 3; i++) {
        cr_adapter *a = fx_open(fx_model, names[i]);
        assert_int_equal(cr_adapter_write_gguf(a, fx_model, fx_path("p.gguf"), CR_F32, &err),
                         CR_OK);
        cr_adapter *b = fx_open(fx_model, fx_path("p.gguf"));
        cr_delta *da = fx_combine(fx_model, a, 1), *db = fx_combine(fx_model, b, 1);
        assert_int_equal(a->n_pairs, b->n_pairs);
        assert_true(fx_logits_diff(fx_model, da, fx_model, db) < 5e-3f); /* flips in the cache */
        for (int k = 0; k < fx_model->n_layers * CR_LIN_COUNT; k++)
            for (int j = 0; j < da->pairs[k].rank; j++)
                assert_true(fabsf(da->pairs[k].b[j] - db->pairs[k].b[j]) <=
                            3e-7f * fabsf(da->pairs[k].b[j]));
        cr_delta_free(db);
        cr_delta_free(da);
        cr_adapter_close(b);
        cr_adapter_close(a);
    }
}

static void test_float16_and_its_limit(void **state)
{
    (void)state;
    struct cr_error err;
    cr_adapter *a = fx_open(fx_model, FX_LORA "plain");
    assert_int_equal(cr_adapter_write_gguf(a, fx_model, fx_path("h.gguf"), CR_F16, &err), CR_OK);
    cr_adapter *b = fx_open(fx_model, fx_path("h.gguf"));
    assert_true(fabsf(a->pairs[0].b[3] - b->pairs[0].b[3]) <= 1e-3f * fabsf(a->pairs[0].b[3]));
    cr_adapter_close(b);
    a->pairs[CR_LIN_UP].b[3] = 70000;
    assert_int_equal(cr_adapter_write_gguf(a, fx_model, fx_path("h2.gguf"), CR_F16, &err),
                     CR_INVALID);
    assert_non_null(strstr(err.msg, "blk.0.ffn_up"));
    assert_int_not_equal(access(fx_path("h2.gguf"), F_OK), 0);
    assert_int_equal(cr_adapter_write_gguf(a, fx_model, fx_path("h2.gguf"), CR_Q8_0, &err),
                     CR_INVALID);
    cr_adapter_close(a);
}

static void test_truncated_at_every_byte(void **state)
{
    (void)state;
    const char *path = write_file((struct file){.alpha = 4});
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    size_t before = cr_mem_now();
    for (off_t n = st.st_size - 1; n >= 0; n--) {
        cr_adapter *a = NULL;
        struct cr_error err;
        assert_int_equal(truncate(path, n), 0);
        enum cr_status status = cr_adapter_open(&a, fx_model, path, &err);
        assert_true(status == CR_FORMAT || status == CR_UNSUPPORTED);
        assert_null(a);
    }
    assert_int_equal(cr_mem_now(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_a_good_file),
        cmocka_unit_test(test_attack_15_settings_are_refused_by_name),
        cmocka_unit_test(test_attack_10_values_that_are_not_numbers),
        cmocka_unit_test(test_attack_16_same_shapes_other_base),
        cmocka_unit_test(test_attack_19_norm_outliers_are_warned_of),
        cmocka_unit_test(test_round_trip_is_lossless),
        cmocka_unit_test(test_patterns_become_one_alpha),
        cmocka_unit_test(test_float16_and_its_limit),
        cmocka_unit_test(test_truncated_at_every_byte),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
