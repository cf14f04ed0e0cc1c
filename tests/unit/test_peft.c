/* SPDX-License-Identifier: Apache-2.0 */
/* PEFT directories: what is refused, by name, and what is written. Golden logits: test_adapter.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "adapt/safetensors.h"
#include "lora_fixture.h"

#include <sys/stat.h>

#define L0 "base_model.model.model.layers.0."
#define L1 "base_model.model.model.layers.1."
#define Q0 L0 "self_attn.q_proj"
#define Q1 L1 "self_attn.q_proj"

struct tensor {
    const char *name;
    uint64_t rows, cols;
};
/* q of both layers, rank 2 */
#define GOOD                                                                                       \
    {Q0 ".lora_A.weight", 2, 64}, {Q0 ".lora_B.weight", 64, 2}, {Q1 ".lora_A.weight", 2, 64},      \
    {                                                                                              \
        Q1 ".lora_B.weight", 64, 2                                                                 \
    }
static const struct tensor good[] = {GOOD};
static const char good_config[] =
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"]}";

static float values[1 << 14];

/* A directory with this config and these tensors; n 0: no weights file. */
static const char *write_dir(const char *config, const struct tensor *t, size_t n,
                             const struct cr_st_note *note)
{
    static char dir[256];
    static int at;
    struct cr_st_tensor st[64] = {0};
    struct cr_error err;
    snprintf(dir, sizeof dir, "%s/peft%d", fx_dir, at++);
    assert_int_equal(mkdir(dir, 0700), 0);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (values[i] == 0)
            values[i] = (float)(i % 5) * 0.02f - 0.03f;
    for (size_t i = 0; i < n; i++)
        st[i] = (struct cr_st_tensor){.name = (char *)(uintptr_t)t[i].name,
                                      .type = CR_F32,
                                      .n_dims = 2,
                                      .shape = {t[i].rows, t[i].cols},
                                      .data = values,
                                      .bytes = (size_t)(t[i].rows * t[i].cols) * 4};
    struct cr_st_note notes[1];
    if (note)
        notes[0] = *note;
    struct cr_safetensors file = {st, n, notes, note != NULL};
    char path[300];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    if (n && cr_safetensors_write(&file, path, &err))
        fail_msg("%s", err.msg);
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    if (config && cr_file_write(path, config, strlen(config), &err))
        fail_msg("%s", err.msg);
    return dir;
}

static const char *write_good(const char *config)
{
    return write_dir(config, good, 4, NULL);
}

#define CONFIG(more)                                                                               \
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"]," more "}"

static void test_opens_a_good_directory(void **state)
{
    (void)state;
    cr_adapter *a = fx_open(fx_model, write_good(good_config));
    assert_int_equal(a->n_pairs, 2);
    assert_true(a->pairs[0].scale == 2);
    /* row 1 of GGUF is (i 0, half 1): row D/2 = 8 of the Hugging Face head */
    assert_true(a->pairs[0].b[2] == values[8 * 2] && a->pairs[0].b[3] == values[8 * 2 + 1]);
    assert_true(a->pairs[0].a[65] == values[65]);
    cr_adapter_close(a);
    /* harmless settings, and the forms of target_modules and layers_to_transform */
    static const char *const fine[] = {
        CONFIG(
            "\"bias\":\"none\",\"use_dora\":false,\"modules_to_save\":[],\"fan_in_fan_out\":null,"
            "\"megatron_core\":\"megatron.core\",\"qalora_group_size\":16,\"loftq_config\":{}"),
        CONFIG("\"layers_to_transform\":[0,1],\"layers_pattern\":\"layers\""),
        CONFIG("\"rank_pattern\":{\"q_proj\":2},\"r\":2") /* r twice: refused below */,
        "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4.5,\"target_modules\":\"model.layers."
        "\\\\d.self_attn.q_proj\"}",
        "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":-4,\"target_modules\":["
        "\"model.layers.0.self_attn.q_proj\",\"layers.1.self_attn.q_proj\"]}",
        "{\"peft_type\":\"LORA\",\"r\":7,\"lora_alpha\":1,\"rank_pattern\":{\"self_attn.*\":2},"
        "\"target_modules\":[\"self_attn.q_proj\"]}",
    };
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        const char *dir = write_good(fine[i]);
        if (i == 2)
            fx_refused(fx_model, dir, CR_FORMAT, "duplicate");
        else
            cr_adapter_close(fx_open(fx_model, dir));
    }
}

static void test_scale_rules(void **state)
{
    (void)state;
    static const struct {
        const char *more;
        double q0, q1; /* alpha / rank or alpha / sqrt(rank) */
    } cases[] = {
        {"\"alpha_pattern\":{\"layers.1.self_attn.q_proj\":3}", 2, 1.5},
        {"\"alpha_pattern\":{\".*0.*q_proj\":3,\"q_proj\":5}", 1.5, 2.5}, /* the first wins */
        {"\"alpha_pattern\":{\"proj\":9}", 2, 2}, /* a whole part of the name, or nothing */
        {"\"alpha_pattern\":{\"^q_proj\":9}", 2, 2},
        {"\"alpha_pattern\":{\"^model.layers.0.self_attn.q_proj\":9}", 4.5, 2},
        {"\"use_rslora\":true", 2.8284271, 2.8284271},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char config[512];
        snprintf(config, sizeof config,
                 "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"],"
                 "%s}",
                 cases[i].more);
        cr_adapter *a = fx_open(fx_model, write_good(config));
        assert_true(fabs(a->pairs[0].scale - cases[i].q0) < 1e-6);
        assert_true(fabs(a->pairs[CR_LIN_COUNT].scale - cases[i].q1) < 1e-6);
        cr_adapter_close(a);
    }
}

static void test_attack_15_settings_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *config, *want;
    } cases[] = {
        {"{", "adapter_config.json"},
        {"[]", "not an object"},
        {"{}", "peft_type = null"},
        {"{\"peft_type\":\"IA3\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"]}",
         "peft_type = \"IA3\""},
        {CONFIG("\"use_dora\":true"), "use_dora = true"},
        {CONFIG("\"bias\":\"lora_only\""), "bias = \"lora_only\""},
        {CONFIG("\"lora_bias\":true"), "lora_bias = true"},
        {CONFIG("\"modules_to_save\":[\"lm_head\"]"), "modules_to_save = [\"lm_head\"]"},
        {CONFIG("\"fan_in_fan_out\":true"), "fan_in_fan_out = true"},
        {CONFIG("\"layer_replication\":[[0,1]]"), "layer_replication"},
        {CONFIG("\"trainable_token_indices\":[1]"), "trainable_token_indices"},
        {CONFIG("\"target_parameters\":[\"x\"]"), "target_parameters"},
        {CONFIG("\"alora_invocation_tokens\":[1]"), "alora_invocation_tokens"},
        {CONFIG("\"use_of_tomorrow\":1"), "use_of_tomorrow = 1"},
        {CONFIG("\"init_lora_weights\":\"pissa\""), "init_lora_weights = \"pissa\""},
        {CONFIG("\"layers_pattern\":\"h\""), "layers_pattern = \"h\""},
        {CONFIG("\"layers_to_transform\":\"0\""), "layers_to_transform = \"0\""},
        {CONFIG("\"layers_to_transform\":[0]"), "layers.1.self_attn.q_proj (not among the target"},
        {CONFIG("\"exclude_modules\":[\"q_proj\"]"), "(not among the target modules)"},
        {CONFIG("\"rank_pattern\":{\"q_proj\":3}"), "(rank 2, the settings say 3)"},
        {CONFIG("\"rank_pattern\":{\"q_proj\":0}"), "rank_pattern q_proj is 0"},
        {CONFIG("\"rank_pattern\":{\"q_proj\":2.5}"), "rank_pattern q_proj is 2.5"},
        {CONFIG("\"rank_pattern\":{\"q_proj\":\"2\"}"), "rank_pattern = \"2\""},
        {CONFIG("\"rank_pattern\":{\"(q\":2}"), "is not a pattern"},
        {CONFIG("\"alpha_pattern\":{\"q_proj\":0}"), "alpha_pattern q_proj is 0"},
        {CONFIG("\"alpha_pattern\":{\"([a-z0-9._]+)+[x-z]\":1}"), "too costly"},
        {CONFIG("\"use_rslora\":1"), "use_rslora = 1"},
        {"{\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"]}",
         "r = 0"},
        {"{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"]}",
         "(rank 2, the settings say 3)"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":0,\"target_modules\":[\"q_proj\"]}",
         "lora_alpha = 0"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":NaN,\"target_modules\":[\"q_proj\"]}",
         "adapter_config.json"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1e999,\"target_modules\":[\"q_proj\"]}",
         "adapter_config.json"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1e300,\"target_modules\":[\"q_proj\"]}",
         "(alpha 1e+300)"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4}", "target_modules = null"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[1]}",
         "target_modules = 1"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\","
         "\"lm_head\",\"embed_tokens\"]}",
         "target_modules lm_head (not a linear of the layers); target_modules embed_tokens"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\","
         "\"v_proj\"]}",
         "model.layers.0.self_attn.v_proj (a target without tensors)"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":\"all-linear\"}",
         "(a target without tensors)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_adapter *a;
        struct cr_error err = {.msg = ""};
        enum cr_status status = cr_adapter_open(&a, fx_model, write_good(cases[i].config), &err);
        if ((status != CR_FORMAT && status != CR_UNSUPPORTED && status != CR_LIMIT) ||
            !strstr(err.msg, cases[i].want))
            fail_msg("%s: got \"%s\", want \"%s\"", cases[i].config, err.msg, cases[i].want);
    }
}

static void test_attack_15_tensors_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        struct tensor t[8];
        const char *want;
    } cases[] = {
        {{GOOD, {"base_model.model.lm_head.lora_A.weight", 2, 64}}, "(LoRA on the embedding"},
        {{GOOD, {"base_model.model.model.embed_tokens.lora_embedding_A", 2, 64}},
         "embed_tokens.lora_embedding_A (LoRA on the embedding"},
        {{GOOD, {Q0 ".lora_magnitude_vector", 64, 1}}, "lora_magnitude_vector (DoRA)"},
        {{GOOD, {Q0 ".lora_B.bias", 64, 1}}, "lora_B.bias (bias)"},
        {{GOOD, {L0 "self_attn.qkv_proj.lora_A.weight", 2, 64}}, "qkv_proj.lora_A.weight (unknown"},
        {{GOOD, {"model.layers.0.mlp.up_proj.lora_A.weight", 2, 64}}, "(unknown target)"},
        {{GOOD, {L0 "mlp.up_proj.lora_A.weight", 2, 64}, {L0 "mlp.up_proj.lora_B.weight", 96, 2}},
         "model.layers.0.mlp.up_proj (not among the target modules)"},
        {{GOOD, {"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", 2, 64}},
         "(the model has 2 layers)"},
        {{{Q0 ".lora_A.weight", 2, 64}, {Q0 ".lora_B.weight", 64, 2}, {Q1 ".lora_A.weight", 2, 64}},
         "layers.1.self_attn.q_proj.lora_A.weight has no B"},
        {{{Q0 ".lora_A.weight", 2, 64}, {Q0 ".lora_B.weight", 64, 2}},
         "layers.1.self_attn.q_proj (a target without tensors)"},
        {{{Q0 ".lora_A.weight", 0, 64}, {Q0 ".lora_B.weight", 64, 0}}, "(rank 0, want 1 to 64)"},
        {{{Q0 ".lora_A.weight", 65, 64}, {Q0 ".lora_B.weight", 64, 65}}, "(rank 65, want 1 to 64)"},
        {{{Q0 ".lora_A.weight", 2, 63}, {Q0 ".lora_B.weight", 64, 2}}, "63 inputs"},
        {{{Q0 ".lora_A.weight", 2, 64}, {Q0 ".lora_B.weight", 63, 2}}, "(63 x 2, want 64 x 2)"},
        {{{Q0 ".lora_A.weight", 2, 64}, {Q0 ".lora_B.weight", 64, 3}}, "(64 x 3, want 64 x 2)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = 0;
        while (n < 8 && cases[i].t[n].name)
            n++;
        cr_adapter *a;
        struct cr_error err = {.msg = ""};
        enum cr_status status =
            cr_adapter_open(&a, fx_model, write_dir(good_config, cases[i].t, n, NULL), &err);
        if ((status != CR_FORMAT && status != CR_UNSUPPORTED) || !strstr(err.msg, cases[i].want))
            fail_msg("got \"%s\", want \"%s\"", err.msg, cases[i].want);
    }
}

static void test_all_offenders_are_counted(void **state)
{
    (void)state;
    struct tensor t[44] = {GOOD};
    static char names[40][96];
    for (int i = 0; i < 40; i++) {
        snprintf(names[i], sizeof names[i], "base_model.model.score%d.lora_A.weight", i);
        t[4 + i] = (struct tensor){names[i], 2, 64};
    }
    cr_adapter *a;
    struct cr_error err;
    const char *dir = write_dir(CONFIG("\"use_dora\":true"), t, 44, NULL);
    assert_int_equal(cr_adapter_open(&a, fx_model, dir, &err), CR_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "use_dora"));
    assert_non_null(strstr(err.msg, "score0.lora_A.weight"));
    const char *more = strstr(err.msg, "; and ");
    assert_non_null(more);
    int shown = 1, count = 0;
    for (const char *p = err.msg; (p = strstr(p, "score")); p++)
        shown++;
    assert_int_equal(sscanf(more, "; and %d more", &count), 1);
    assert_int_equal(shown + count, 41);
}

static void test_attack_16_same_shapes_other_base(void **state)
{
    (void)state;
    char hash[65];
    struct cr_st_note note = {(char *)"crayon.base_hash", hash};
    snprintf(hash, sizeof hash, "%s", cr_model_hash(fx_model));
    cr_adapter_close(fx_open(fx_model, write_dir(good_config, good, 4, &note)));
    hash[63] = hash[63] == '0' ? '1' : '0';
    fx_refused(fx_model, write_dir(good_config, good, 4, &note), CR_INVALID, hash);
}

static void test_attack_10_values_that_are_not_numbers(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        values[7] = bad[i];
        fx_refused(fx_model, write_good(good_config), CR_FORMAT,
                   "q_proj.lora_A.weight (holds NaN or infinity)");
    }
    values[7] = 0.1f;
}

static void test_pickles_and_missing_files(void **state)
{
    (void)state;
    struct cr_error err;
    char path[300];
    const char *dir = write_dir(good_config, NULL, 0, NULL);
    fx_refused(fx_model, dir, CR_NOT_FOUND, "adapter_model.safetensors");
    snprintf(path, sizeof path, "%s/adapter_model.bin", dir);
    assert_int_equal(cr_file_write(path, "\x80\x02", 2, &err), CR_OK);
    fx_refused(fx_model, dir, CR_UNSUPPORTED, "adapter_model.bin");
    fx_refused(fx_model, dir, CR_UNSUPPORTED, "pickle");
    fx_refused(fx_model, write_dir(NULL, good, 4, NULL), CR_NOT_FOUND, "adapter_config.json");
}

/* attack 17, as far as it concerns directories: FIFOs and directories in place of files */
static void test_attack_17_fifo_does_not_hang(void **state)
{
    (void)state;
    char path[300];
    const char *dir = write_dir(good_config, NULL, 0, NULL);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    fx_refused(fx_model, dir, CR_UNSUPPORTED, "FIFO");
    dir = write_dir(NULL, good, 4, NULL);
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    fx_refused(fx_model, dir, CR_UNSUPPORTED, "FIFO");
}

/* Patterns, layers and rsLoRA survive writing exactly, in float32. */
static void test_round_trip_keeps_every_pair(void **state)
{
    (void)state;
    static const char *const names[] = {"plain", "patterns", "rslora", "layers"};
    struct cr_error err;
    for (int k = 0; k < 4; k++) {
        char from[256], to[300];
        snprintf(from, sizeof from, FX_LORA "%s", names[k]);
        snprintf(to, sizeof to, "%s/again-%s", fx_dir, names[k]);
        cr_adapter *a = fx_open(fx_model, from);
        if (cr_adapter_write_peft(a, fx_model, to, CR_F32, &err))
            fail_msg("%s", err.msg);
        cr_adapter *b = fx_open(fx_model, to);
        for (int i = 0; i < fx_model->n_layers * CR_LIN_COUNT; i++) {
            const struct cr_matrix *w =
                cr_model_linear(fx_model, 0, (enum cr_linear)(i % CR_LIN_COUNT));
            size_t r = (size_t)a->pairs[i].rank * sizeof(float);
            assert_int_equal(a->pairs[i].rank, b->pairs[i].rank);
            assert_true(a->pairs[i].scale == b->pairs[i].scale);
            if (r == 0)
                continue;
            assert_memory_equal(a->pairs[i].a, b->pairs[i].a, r * (size_t)w->n_in);
            assert_memory_equal(a->pairs[i].b, b->pairs[i].b, r * (size_t)w->n_out);
        }
        cr_adapter_close(b);
        cr_adapter_close(a);
    }
}

/* Only `llama` files have permuted rows: a qwen2 model takes B as it is in the file. */
static void test_other_architectures_keep_the_row_order(void **state)
{
    (void)state;
    cr_model *m = fx_open_model(CR_SOURCE_DIR "/tests/data/random-qwen2.gguf");
    assert_string_equal(cr_model_info(m)->arch, "qwen2");
    const struct cr_matrix *q = cr_model_linear(m, 0, CR_LIN_Q);
    struct tensor t[2] = {{Q0 ".lora_A.weight", 2, (uint64_t)q->n_in},
                          {Q0 ".lora_B.weight", (uint64_t)q->n_out, 2}};
    const char *dir = write_dir(CONFIG("\"layers_to_transform\":0"), t, 2, NULL);
    cr_adapter *a = fx_open(m, dir);
    assert_memory_equal(a->pairs[CR_LIN_Q].b, values, (size_t)q->n_out * 2 * sizeof *values);
    struct cr_error err;
    if (cr_adapter_write_peft(a, m, fx_path("qwen2"), CR_F32, &err))
        fail_msg("%s", err.msg);
    cr_adapter *b = fx_open(m, fx_path("qwen2"));
    assert_memory_equal(b->pairs[CR_LIN_Q].b, values, (size_t)q->n_out * 2 * sizeof *values);
    fx_refused(fx_model, fx_path("qwen2"), CR_INVALID, "made for the base model");
    cr_adapter_close(b);
    cr_adapter_close(a);
    cr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_a_good_directory),
        cmocka_unit_test(test_scale_rules),
        cmocka_unit_test(test_attack_15_settings_are_refused_by_name),
        cmocka_unit_test(test_attack_15_tensors_are_refused_by_name),
        cmocka_unit_test(test_all_offenders_are_counted),
        cmocka_unit_test(test_attack_16_same_shapes_other_base),
        cmocka_unit_test(test_attack_10_values_that_are_not_numbers),
        cmocka_unit_test(test_pickles_and_missing_files),
        cmocka_unit_test(test_attack_17_fifo_does_not_hang),
        cmocka_unit_test(test_round_trip_keeps_every_pair),
        cmocka_unit_test(test_other_architectures_keep_the_row_order),
    };
    return cmocka_run_group_tests(tests, fx_setup, fx_teardown);
}
