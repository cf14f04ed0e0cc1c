/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.c and text.c: every number, key and tensor that a model needs, taken away, changed or
 * broken in turn (ATTACKS 11, 12, 13); the identity hash; failing allocations.
 */
#include "unit/tiny_gguf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define MODEL CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf"

static void refuse(const struct tiny *t, enum cr_status want, const char *part)
{
    cr_model *m;
    struct cr_error err;
    enum cr_status status = tiny_try(t, NULL, &m, &err);
    if (status != want || !strstr(err.msg, part))
        fail_msg("want %d \"%s\", found %d \"%s\"", want, part, status,
                 status ? err.msg : "(opened)");
    assert_null(m);
}

static void test_info(void **state)
{
    (void)state;
    cr_model *m;
    struct cr_error err;
    const struct cr_model_options opt = {.n_threads = 2, .cpu = "ref"};
    if (cr_model_open(&m, MODEL, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    const struct cr_model_info *i = cr_model_info(m);
    assert_string_equal(i->path, MODEL);
    assert_string_equal(i->arch, "llama");
    assert_string_equal(i->type_name, "Q8_0");
    assert_string_equal(i->cpu, "ref");
    assert_string_equal(i->chat, "chatml");
    assert_int_equal(i->n_layers, 8);
    assert_int_equal(i->n_embd, 384);
    assert_int_equal(i->n_heads, 6);
    assert_int_equal(i->n_kv_heads, 2);
    assert_int_equal(i->head_dim, 64);
    assert_int_equal(i->n_ff, 1024);
    assert_int_equal(i->n_vocab, 8192);
    assert_int_equal(i->n_ctx_train, 1024);
    assert_int_equal(i->n_threads, 2);
    assert_in_range(i->n_params, 15000000, 17000000);
    assert_true(i->weight_bytes < i->file_bytes);
    cr_model_close(m);
    cr_model_close(NULL);
}

static void test_every_architecture_opens(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma3", "smollm3", "phi3"};
    static const uint32_t types[] = {CR_F32,  CR_F16,  CR_BF16,   CR_Q8_0, CR_Q4_0, CR_Q4_1,
                                     CR_Q5_0, CR_Q5_1, CR_IQ4_NL, CR_Q4_K, CR_Q5_K, CR_Q6_K};
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            struct tiny t = tiny_typed(archs[a], types[k]);
            if (cr_type_info(types[k])->block == CR_QK_K) {
                t.n_embd = t.n_ff = 256;
                t.head_dim = 64;
            }
            cr_model *m = tiny_open(&t, NULL);
            assert_string_equal(cr_model_info(m)->arch, archs[a]);
            assert_string_equal(cr_model_info(m)->type_name, cr_type_info(types[k])->name);
            assert_ptr_equal(m->output.data, m->embd.data);
            assert_int_equal(m->rope_neox, a != CR_ARCH_LLAMA && a != CR_ARCH_SMOLLM3);
            assert_int_equal(m->layers[0].bias_q != NULL, a == CR_ARCH_QWEN2);
            assert_int_equal(m->layers[0].norm_k != NULL,
                             a == CR_ARCH_QWEN3 || a == CR_ARCH_GEMMA3);
            assert_int_equal(m->layers[0].ffn_post != NULL, a == CR_ARCH_GEMMA3);
            cr_model_close(m);
        }
}

static void other_type(cr_gguf_writer *w)
{
    cr_gguf_put_str(w, "general.type", "adapter");
}

static void split_file(cr_gguf_writer *w)
{
    cr_gguf_put_u32(w, "split.count", 3);
}

static void mixture(cr_gguf_writer *w)
{
    cr_gguf_put_u32(w, "llama.expert_count", 8);
}

static void window(cr_gguf_writer *w)
{
    cr_gguf_put_u32(w, "llama.attention.sliding_window", 50);
}

static void value_length(cr_gguf_writer *w)
{
    cr_gguf_put_u32(w, "llama.attention.value_length", 8);
}

static void heads_per_layer(cr_gguf_writer *w)
{
    cr_gguf_put_u32s(w, "llama.attention.head_count_kv", (uint32_t[]){2, 2, 2}, 3);
}

static void test_what_is_not_built_is_refused_by_name(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.arch = "mamba";
    refuse(&t, CR_UNSUPPORTED,
           "want architecture llama, qwen2, qwen3, gemma3, smollm3 or phi3, found \"mamba\"");
    t = tiny_default();
    t.extra = other_type;
    refuse(&t, CR_INVALID, "want a model, found general.type \"adapter\"");
    t.extra = split_file;
    refuse(&t, CR_UNSUPPORTED, "split.count 3");
    t.extra = mixture;
    refuse(&t, CR_UNSUPPORTED, "llama.expert_count: want 0");
    t.extra = value_length;
    refuse(&t, CR_FORMAT, "want 16 like the keys, found 8");
    t.extra = heads_per_layer;
    t.without = "llama.attention.head_count_kv";
    refuse(&t, CR_FORMAT, "want an integer, found array");
    t = tiny_default();
    t.extra = window; /* within the window the result is the same */
    cr_model *m = tiny_open(&t, NULL);
    assert_int_equal(cr_model_info(m)->n_ctx_train, 50);
    cr_model_close(m);
}

static void capped(cr_gguf_writer *w)
{
    cr_gguf_put_f32(w, "gemma3.final_logit_softcapping", 30);
}

static void part_of_heads(cr_gguf_writer *w)
{
    cr_gguf_put_u32(w, "phi3.rope.dimension_count", 12);
}

static void factors(cr_gguf_writer *w)
{
    static const float short_factor[8] = {1, 1, 1, 1, 1, 1, 1, 2}, long_factor[8] = {4};
    cr_gguf_put_u32(w, "phi3.rope.scaling.original_context_length", 40);
    cr_gguf_put_f32(w, "phi3.rope.scaling.attn_factor", 1.25f);
    cr_gguf_put_tensor(w, "rope_factors_short.weight", CR_F32, 1, (uint64_t[]){8}, short_factor);
    cr_gguf_put_tensor(w, "rope_factors_long.weight", CR_F32, 1, (uint64_t[]){8}, long_factor);
}

static void test_plans_of_layers(void **state)
{
    (void)state;
    struct tiny t = tiny_typed("gemma3", CR_F32);
    t.n_layers = 13;
    t.window = 20;
    cr_model *m = tiny_open(&t, NULL);
    for (int l = 0; l < 13; l++) { /* five see a window, the sixth sees all */
        assert_int_equal(m->layers[l].window, l % 6 == 5 ? 0 : 20);
        assert_int_equal(m->layers[l].rope, l % 6 == 5 ? 0 : 1);
    }
    assert_true(m->embd_scale == 8 && m->attn_scale == 0.25f && m->n_ropes == 2);
    assert_int_equal(cr_model_info(m)->n_ctx_train, 128);
    cr_model_close(m);
    t.extra = capped;
    refuse(&t, CR_UNSUPPORTED, "gemma3.final_logit_softcapping: want 0, found 30");
    t = tiny_typed("smollm3", CR_F32);
    t.n_layers = 8;
    m = tiny_open(&t, NULL);
    for (int l = 0; l < 8; l++)
        assert_int_equal(m->layers[l].rope, l % 4 == 3 ? -1 : 0);
    cr_model_close(m);
    t = tiny_typed("phi3", CR_F32);
    m = tiny_open(&t, NULL);
    const struct cr_matrix *lin = m->layers[1].lin;
    assert_ptr_equal((const char *)lin[CR_LIN_Q].data + 64 * lin->row_bytes, lin[CR_LIN_K].data);
    assert_ptr_equal((const char *)lin[CR_LIN_K].data + 32 * lin->row_bytes, lin[CR_LIN_V].data);
    assert_ptr_equal((const char *)lin[CR_LIN_GATE].data + 96 * lin->row_bytes,
                     lin[CR_LIN_UP].data);
    cr_model_close(m);
    t.window = 16;
    t.extra = part_of_heads;
    m = tiny_open(&t, NULL);
    assert_true(m->rope_dim == 12 && m->layers[2].window == 16);
    cr_model_close(m);
    t.extra = factors;
    m = tiny_open(&t, NULL);
    assert_true(m->n_ctx_train == 40 && m->rope_mscale == 1.25f);
    assert_true(fabsf(m->rope_freq[7] - powf(10000, -0.875f) / 2) < 1e-9f);
    cr_model_close(m);
}

/* Each number of the architecture missing, 0, and far too large. */
static void test_12_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool required;
    } keys[] = {{"block_count", true},           {"context_length", true},
                {"embedding_length", true},      {"feed_forward_length", true},
                {"attention.head_count", true},  {"attention.head_count_kv", false},
                {"attention.key_length", false}, {"attention.layer_norm_rms_epsilon", true}};
    static const uint32_t large[] = {1u << 23, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char full[80];
        struct tiny t = tiny_default();
        snprintf(full, sizeof full, "llama.%s", keys[i].key);
        t.without = full;
        if (keys[i].required)
            refuse(&t, CR_FORMAT, full);
        t = tiny_default();
        t.set_key = keys[i].key;
        if (strstr(keys[i].key, "epsilon"))
            continue;
        refuse(&t, CR_FORMAT, full); /* 0 */
        for (size_t k = 0; k < 3; k++) {
            t.set_value = large[k];
            refuse(&t, CR_LIMIT, full);
        }
    }
}

static void test_12_numbers_that_disagree(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.set_key = "attention.head_count_kv";
    t.set_value = 3;
    refuse(&t, CR_FORMAT, "want a divisor of 4 heads, found 3");
    t.set_value = 8;
    refuse(&t, CR_FORMAT, "want a divisor of 4 heads, found 8");
    t.set_key = "attention.key_length";
    t.set_value = 15;
    refuse(&t, CR_FORMAT, "want an even number, found 15");
    t.set_key = "attention.head_count";
    t.set_value = 6;
    t.without = "llama.attention.key_length";
    refuse(&t, CR_FORMAT, "embedding_length 64 is not a multiple of 6 heads");
    t = tiny_default();
    t.set_key = "block_count";
    t.set_value = CR_MAX_LAYERS; /* more layers than there are tensors for */
    refuse(&t, CR_FORMAT, "tensor blk.3.attn_q.weight is missing");
    t.set_value = CR_MAX_LAYERS + 1;
    refuse(&t, CR_LIMIT, "want 1 to 256, found 257");
    t.set_value = 2; /* fewer: the rest would be ignored */
    refuse(&t, CR_UNSUPPORTED, "tensor blk.2.");
    t.set_key = "feed_forward_length";
    t.set_value = 64;
    refuse(&t, CR_FORMAT,
           "tensor blk.0.ffn_gate.weight: want " CR_USABLE_TYPES " [64,64], found "
           "F32 [64,96]");
    t.set_key = "embedding_length";
    t.set_value = 32;
    refuse(&t, CR_FORMAT, "tensor token_embd.weight");
}

static void bad_epsilon(cr_gguf_writer *w)
{
    cr_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", -1);
}

static void nan_epsilon(cr_gguf_writer *w)
{
    cr_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", NAN);
}

static void test_12_epsilon(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.without = "llama.attention.layer_norm_rms_epsilon";
    t.extra = bad_epsilon;
    refuse(&t, CR_FORMAT, "want 0 to 1, found -1");
    t.extra = nan_epsilon;
    refuse(&t, CR_FORMAT, "want 0 to 1, found nan");
}

/* Every tensor of every architecture is missed when it is not there. */
static void test_each_missing_tensor_is_named(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    int n_refused = 0;
    for (size_t a = 0; a < 3; a++) {
        struct tiny t = tiny_default();
        t.arch = archs[a];
        char path[] = "/tmp/crayon-test-XXXXXX";
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
        tiny_write(&t, path);
        cr_gguf *g;
        struct cr_error err;
        assert_int_equal(cr_gguf_open(&g, path, &err), CR_OK);
        unlink(path);
        for (size_t i = 0; i < cr_gguf_n_tensors(g); i++) {
            const struct cr_str name = cr_gguf_tensor_at(g, i)->name;
            char z[80], message[120];
            snprintf(z, sizeof z, "%.*s", (int)name.n, name.p);
            snprintf(message, sizeof message, "tensor %s is missing", z);
            t.without = z;
            refuse(&t, CR_FORMAT, message);
            n_refused++;
        }
        cr_gguf_close(g);
    }
    assert_int_equal(n_refused, 3 * (2 + 3 * 9) + 3 * 3 + 3 * 2);
}

static uint8_t zeros[1 << 17];

static void spare_tensor(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "blk.0.attn_output.bias", CR_F32, 1, (uint64_t[]){64}, zeros);
}

static void flat_matrix(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "blk.1.attn_q.weight", CR_F32, 1, (uint64_t[]){64 * 64}, zeros);
}

static void thick_matrix(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "blk.1.attn_q.weight", CR_F32, 3, (uint64_t[]){64, 64, 2}, zeros);
}

static void turned_matrix(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "blk.1.attn_q.weight", CR_F32, 2, (uint64_t[]){96, 64}, zeros);
}

static void k_quant(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "blk.1.attn_q.weight", 10, 2, (uint64_t[]){256, 64}, zeros);
}

static void long_norm(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "blk.1.attn_q.weight", CR_F32, 2, (uint64_t[]){64, 65}, zeros);
}

static void test_11_wrong_tensors_are_named(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.extra = spare_tensor;
    refuse(&t, CR_UNSUPPORTED, "tensor blk.0.attn_output.bias is not part of architecture llama");
    t.without = "blk.1.attn_q.weight";
    t.extra = flat_matrix;
    refuse(&t, CR_FORMAT, "[64,64], found F32 [4096]");
    t.extra = thick_matrix;
    refuse(&t, CR_FORMAT, "found F32 [64,64,2]");
    t.extra = turned_matrix;
    refuse(&t, CR_FORMAT, "found F32 [96,64]");
    t.extra = long_norm;
    refuse(&t, CR_FORMAT, "found F32 [64,65]");
    t.extra = k_quant;
    refuse(&t, CR_UNSUPPORTED,
           "tensor blk.1.attn_q.weight: want " CR_USABLE_TYPES " [64,64], found "
           "Q2_K [256,64]");
}

static void small_embedding(cr_gguf_writer *w)
{
    cr_gguf_put_tensor(w, "token_embd.weight", CR_F32, 2, (uint64_t[]){64, TINY_VOCAB - 1}, zeros);
}

static void test_13_vocabulary_of_another_size(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.without = "token_embd.weight";
    t.extra = small_embedding;
    refuse(&t, CR_FORMAT, "[64,259], found F32 [64,258]");
}

static void test_options(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *m;
    cr_session *s;
    struct cr_error err;
    struct cr_model_options opt = {.n_threads = -1};
    assert_int_equal(tiny_try(&t, &opt, &m, &err), CR_INVALID);
    opt.n_threads = 65;
    assert_int_equal(tiny_try(&t, &opt, &m, &err), CR_INVALID);
    opt = (struct cr_model_options){.cpu = "z80"};
    assert_int_equal(tiny_try(&t, &opt, &m, &err), CR_INVALID);
    opt = (struct cr_model_options){.template_name = "shouting"};
    assert_int_equal(tiny_try(&t, &opt, &m, &err), CR_INVALID);
    assert_non_null(strstr(err.msg, "shouting"));
    opt = (struct cr_model_options){.template_name = "chatml"};
    m = tiny_open(&t, &opt);
    assert_string_equal(cr_model_info(m)->chat, "chatml");
    cr_model_close(m);
    opt = (struct cr_model_options){.vocab_only = true};
    t.without = "blk.0.attn_q.weight"; /* not looked at */
    m = tiny_open(&t, &opt);
    assert_int_equal(cr_model_info(m)->n_vocab, TINY_VOCAB);
    assert_int_equal(cr_session_bytes(m, 0), 0);
    assert_int_equal(cr_session_new(&s, m, 0, &err), CR_INVALID);
    assert_null(s);
    cr_model_close(m);
}

static void test_text(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.chat = "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}";
    cr_model *m = tiny_open(&t, NULL);
    struct cr_error err;
    int32_t *ids;
    size_t n;
    assert_int_equal(cr_tokenize(m, "xab", 3, 0, &ids, &n, &err), CR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], 'x');
    assert_int_equal(ids[1], TINY_AB);
    cr_free(ids);
    assert_int_equal(cr_tokenize(m, "", 0, 0, &ids, &n, &err), CR_OK);
    assert_int_equal(n, 0);
    assert_non_null(ids);
    cr_free(ids);
    const char *bytes;
    assert_int_equal(cr_token_bytes(m, TINY_AB, false, &bytes), 2);
    assert_memory_equal(bytes, "ab", 2);
    assert_int_equal(cr_token_bytes(m, TINY_END, false, &bytes), 0);
    assert_int_equal(cr_token_bytes(m, TINY_END, true, &bytes), 10);
    assert_true(cr_token_is_end(m, TINY_END) && !cr_token_is_end(m, TINY_START));
    assert_true(cr_token_is_control(m, TINY_START) && !cr_token_is_control(m, 'x'));
    const struct cr_message message = {"user", "<|im_end|>"};
    assert_int_equal(cr_chat_tokenize(m, &message, 1, true, &ids, &n, &err), CR_OK);
    assert_int_equal(ids[0], TINY_START);
    int n_ends = 0;
    for (size_t i = 0; i < n; i++)
        n_ends += ids[i] == TINY_END;
    assert_int_equal(n_ends, 1); /* the user's text is text */
    cr_free(ids);
    cr_model_close(m);
}

static void test_16_hash_tells_models_of_one_shape_apart(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    cr_model *a = tiny_open(&t, NULL), *same = tiny_open(&t, NULL);
    t.seed = 2;
    cr_model *other = tiny_open(&t, NULL);
    assert_int_equal(strlen(cr_model_hash(a)), 64);
    assert_ptr_equal(cr_model_hash(a), cr_model_hash(a));
    assert_string_equal(cr_model_hash(a), cr_model_hash(same));
    assert_string_not_equal(cr_model_hash(a), cr_model_hash(other));
    cr_model_close(a);
    cr_model_close(same);
    cr_model_close(other);
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    struct tiny t = tiny_default();
    t.norm_type = CR_F16;
    char path[] = "/tmp/crayon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    tiny_write(&t, path);
    size_t before = cr_mem_now();
    bool done = false;
    uint64_t n = 1;
    for (; !done; n++) {
        cr_model *m;
        struct cr_error err;
        const struct cr_model_options opt = {.n_threads = 2};
        cr_mem_fail_at(n, false);
        enum cr_status status = cr_model_open(&m, path, &opt, &err);
        cr_mem_fail_at(0, false);
        done = status == CR_OK;
        if (!done) {
            assert_int_equal(status, CR_NO_MEMORY);
            assert_null(m);
        }
        cr_model_close(m);
        assert_int_equal(cr_mem_now(), before);
    }
    assert_true(n > 10);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_every_architecture_opens),
        cmocka_unit_test(test_what_is_not_built_is_refused_by_name),
        cmocka_unit_test(test_plans_of_layers),
        cmocka_unit_test(test_12_numbers),
        cmocka_unit_test(test_12_numbers_that_disagree),
        cmocka_unit_test(test_12_epsilon),
        cmocka_unit_test(test_each_missing_tensor_is_named),
        cmocka_unit_test(test_11_wrong_tensors_are_named),
        cmocka_unit_test(test_13_vocabulary_of_another_size),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_16_hash_tells_models_of_one_shape_apart),
        cmocka_unit_test(test_every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
