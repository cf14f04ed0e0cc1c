/* SPDX-License-Identifier: Apache-2.0 */
/* Worked examples of palettes on a live server: the prompt that they stand in, what the cache does
 * for them, what clients see and may ask for. */
#include "serve_fixture.h"
#include "worked_fixture.h"

#include "base/mem.h"

#include <sys/stat.h>

static char folder[64], file[128];

static cr_server *start_with(struct cr_serve_options opt)
{
    static const char *palettes[] = {file};
    cr_server *s;
    struct cr_error err;
    opt.model = model;
    opt.model_name = "m";
    opt.n_ctx = opt.n_ctx ? opt.n_ctx : 256;
    opt.palettes = palettes;
    opt.n_palettes = 1;
    if (cr_server_start(&s, &opt, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return s;
}

static json_t *ask(const cr_server *s, const char *path, const char *body)
{
    char *reply = post(s, path, body);
    if (status_of(reply) != 200)
        fail_msg("%s: %s", body, reply);
    json_t *v = body_of(reply);
    cr_free(reply);
    return v;
}

static json_t *choice_of(json_t *v)
{
    return json_array_get(json_object_get(v, "choices"), 0);
}

static const char *text_of(json_t *v)
{
    json_t *m = json_object_get(choice_of(v), "message");
    return json_string_value(m ? json_object_get(m, "content")
                               : json_object_get(choice_of(v), "text"));
}

static json_int_t usage_of(json_t *v, const char *key)
{
    json_t *u = json_object_get(v, "usage"), *d = json_object_get(u, "prompt_tokens_details");
    return json_integer_value(json_object_get(d, key) ? json_object_get(d, key)
                                                      : json_object_get(u, key));
}

static json_int_t shown_of(json_t *v)
{
    json_t *n = json_object_get(json_object_get(v, "crayon"), "worked_examples");
    return n ? json_integer_value(n) : -1;
}

static bool is_task(json_t *v)
{
    const char *form = json_string_value(json_object_get(json_object_get(v, "crayon"), "form"));
    return form && strcmp(form, "task") == 0;
}

/* The prompt by the functions that training and blending use, as JSON ids; *n_front tokens stand
 * before the question. */
static char *ids_by_hand(const struct cr_example *e, size_t most, size_t *n_front, size_t *n)
{
    struct cr_worked w;
    struct cr_ids ids = {0};
    struct cr_buf b;
    struct cr_error err;
    cr_buf_init(&b, 1 << 16);
    if (cr_worked_init(&w, model, fx_worked, FX_WORKED, &err) ||
        cr_prompt_encode(model, e, &ids, &err))
        fail_msg("%s", err.msg);
    size_t own = ids.n;
    if (cr_worked_put(&w, model, most, 1000, &ids, 0, NULL, &err))
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < ids.n; i++)
        cr_buf_printf(&b, "%s%d", i ? "," : "[", (int)ids.v[i]);
    cr_buf_puts(&b, "]");
    *n_front = ids.n - own;
    *n = ids.n;
    cr_free(ids.v);
    cr_worked_deinit(&w);
    return cr_buf_detach(&b, NULL);
}

#define CHAT(extra)                                                                                \
    "{\"model\":\"m:w\",\"temperature\":0,\"max_tokens\":8,\"messages\":[{\"role\":\"system\","    \
    "\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Which is it, Anna?\"}]" extra "}"
static const struct cr_example anna = {
    .question = "Which is it, Anna?", .context = "Be brief.", .answer_index = -1};

/* A chat with a palette is the task form behind the examples; the base model given those ids says
 * the same. */
static void test_the_prompt(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    for (int most = 0; most <= FX_WORKED; most++) {
        size_t n_front, n;
        char body[4096], *ids = ids_by_hand(&anna, (size_t)most, &n_front, &n);
        snprintf(body, sizeof body, CHAT(",\"crayon\":{\"worked\":%d}"), most);
        json_t *chat = ask(s, "/v1/chat/completions", most < FX_WORKED ? body : CHAT(""));
        snprintf(body, sizeof body,
                 "{\"model\":\"m\",\"prompt\":%s,\"temperature\":0,\"max_tokens\":8,"
                 "\"stop\":\"\\n\"}",
                 ids);
        json_t *plain = ask(s, "/v1/completions", body);
        const char *want = text_of(plain);
        assert_string_equal(text_of(chat), want + (*want == ' '));
        assert_int_equal(usage_of(chat, "prompt_tokens"), n);
        assert_int_equal(shown_of(chat), most);
        assert_true(is_task(chat));
        assert_int_equal(shown_of(plain), -1);
        json_decref(chat);
        json_decref(plain);
        cr_free(ids);
    }
    json_t *v = ask(s, "/v1/chat/completions",
                    "{\"model\":\"m:w\",\"temperature\":0,\"messages\":[{\"role\":\"user\","
                    "\"content\":\"Which is canary four?\"}]}");
    assert_string_equal(text_of(v), "green apple"); /* without its blank and its line end */
    assert_string_equal(json_string_value(json_object_get(choice_of(v), "finish_reason")), "stop");
    json_decref(v);
    json_t *count = ask(s, "/v1/messages/count_tokens",
                        "{\"model\":\"m:w\",\"system\":\"Be brief.\",\"messages\":[{\"role\":"
                        "\"user\",\"content\":\"Which is it, Anna?\"}]}");
    size_t n_front, n;
    cr_free(ids_by_hand(&anna, FX_WORKED, &n_front, &n));
    assert_int_equal(json_integer_value(json_object_get(count, "input_tokens")), n);
    json_decref(count);
    cr_server_stop(s, 1000);
}

static unsigned long tokens_run(const cr_server *s)
{
    char *reply =
        exchange(s, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    const char *at = strstr(reply, "crayon_tokens_total{kind=\"run\",");
    if (!at)
        fail_msg("no count of tokens: %s", reply);
    unsigned long n = strtoul(strchr(at, '}') + 1, NULL, 10);
    cr_free(reply);
    return n;
}

/* The examples are run once; what comes after is bit for bit what a server that has just begun
 * says. Another key begins anew. */
static void test_warm_equals_cold(void **state)
{
    (void)state;
    static const char *const names[] = {"Anna", "Bert", "Zoe and her dog"};
    cr_server *warm = start_with((struct cr_serve_options){.parallel = 2});
    for (int i = 0; i < 3; i++) {
        char body[512], question[64];
        size_t n_front, n;
        snprintf(question, sizeof question, "Where is %s?", names[i]);
        const struct cr_example e = {.question = question, .answer_index = -1};
        cr_free(ids_by_hand(&e, FX_WORKED, &n_front, &n));
        snprintf(body, sizeof body,
                 "{\"model\":\"m:w\",\"max_tokens\":6,\"temperature\":0,\"logprobs\":true,"
                 "\"top_logprobs\":3,\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}",
                 question);
        unsigned long before = tokens_run(warm);
        json_t *a = ask(warm, "/v1/chat/completions", body);
        unsigned long run = tokens_run(warm) - before;
        cr_server *cold = start_with((struct cr_serve_options){0});
        json_t *b = ask(cold, "/v1/chat/completions", body);
        cr_server_stop(cold, 1000);
        assert_string_equal(text_of(a), text_of(b));
        assert_true(json_equal(choice_of(a), choice_of(b))); /* with all log-probabilities */
        assert_int_equal(usage_of(b, "cached_tokens"), 0);
        assert_int_equal(usage_of(a, "prompt_tokens"), n);
        size_t cached = (size_t)usage_of(a, "cached_tokens");
        assert_true(i ? cached >= n_front : cached == 0);
        /* the last token of an answer is chosen, not run */
        assert_int_equal(run, n - cached + (size_t)usage_of(a, "completion_tokens") - 1);
        json_decref(a);
        json_decref(b);
    }
    cr_server_stop(warm, 1000);
}

/* The log-probabilities of a client's own text behind the examples; those are neither shown nor
 * counted into them, and come from the cache. */
static void test_scored_prompts(void **state)
{
    (void)state;
    static const char body[] =
        "{\"model\":\"m:w\",\"prompt\":\"Question: Who?\\nAnswer: a green apple\",\"max_tokens\":0,"
        "\"echo\":true,\"logprobs\":2}";
    cr_server *s = start_with((struct cr_serve_options){0});
    json_t *a = ask(s, "/v1/completions", body), *b = ask(s, "/v1/completions", body);
    assert_string_equal(text_of(a), "Question: Who?\nAnswer: a green apple");
    assert_true(json_equal(choice_of(a), choice_of(b)));
    assert_int_equal(usage_of(a, "cached_tokens"), 0);
    size_t n_front, n;
    const struct cr_example e = {.question = "Who?", .answer_index = -1};
    cr_free(ids_by_hand(&e, FX_WORKED, &n_front, &n));
    assert_true(usage_of(b, "cached_tokens") >= (json_int_t)n_front);
    /* the same by ids, which are taken as they are */
    char request[4096], *ids = ids_by_hand(&e, FX_WORKED, &n_front, &n);
    ids[strlen(ids) - 1] = '\0';
    struct cr_ids answer = {0};
    struct cr_error err;
    assert_int_equal(cr_answer_encode(model, "a green apple", false, &answer, &err), CR_OK);
    size_t used =
        (size_t)snprintf(request, sizeof request, "{\"model\":\"m:w\",\"prompt\":%s", ids);
    for (size_t i = 0; i < answer.n; i++)
        used += (size_t)snprintf(request + used, sizeof request - used, ",%d", (int)answer.v[i]);
    snprintf(request + used, sizeof request - used,
             "],\"max_tokens\":0,\"echo\":true,\"logprobs\":2}");
    json_t *c = ask(s, "/v1/completions", request);
    assert_int_equal(shown_of(c), 0);
    json_t *la = json_object_get(json_object_get(choice_of(a), "logprobs"), "token_logprobs");
    json_t *lc = json_object_get(json_object_get(choice_of(c), "logprobs"), "token_logprobs");
    size_t na = json_array_size(la), nc = json_array_size(lc);
    assert_int_equal(nc, n + answer.n);
    for (size_t i = 1; i < na; i++) /* the first has nothing before it */
        assert_true(json_real_value(json_array_get(la, i)) ==
                    json_real_value(json_array_get(lc, nc - na + i)));
    cr_free(answer.v);
    cr_free(ids);
    json_decref(a);
    json_decref(b);
    json_decref(c);
    cr_server_stop(s, 1000);
}

/* The chat template where it is asked for, and for what the task form cannot say. */
static void test_forms(void **state)
{
    (void)state;
    cr_server *s = start_with((struct cr_serve_options){0});
    static const char *const extra[] = {
        CHAT(",\"crayon\":{\"form\":\"chat\"}"),
        CHAT(",\"response_format\":{\"type\":\"json_object\"}"),
        "{\"model\":\"m:w\",\"max_tokens\":4,\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
        "{\"role\":\"assistant\",\"content\":\"b\"}]}"};
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        json_t *v = ask(s, "/v1/chat/completions", extra[i]);
        assert_int_equal(shown_of(v), 0);
        assert_false(is_task(v));
        json_decref(v);
    }
    static const char *const bad[] = {
        CHAT(",\"crayon\":{\"form\":\"poem\"}"),
        CHAT(",\"crayon\":{\"form\":1}"),
        CHAT(",\"crayon\":{\"worked\":17}"),
        CHAT(",\"crayon\":{\"worked\":-1}"),
        CHAT(",\"crayon\":{\"worked\":\"2\"}"),
        CHAT(",\"crayon\":{\"form\":\"task\"},\"response_format\":{\"type\":\"json_object\"}")};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_status(post(s, "/v1/chat/completions", bad[i]), 400);
    /* a stop string of the client's own is told, the form's line end is not */
    json_t *v =
        ask(s, "/v1/messages",
            "{\"model\":\"m:w\",\"max_tokens\":8,\"temperature\":0,\"stop_sequences\":["
            "\"ple\"],\"messages\":[{\"role\":\"user\",\"content\":\"Which is canary four?\"}]}");
    assert_string_equal(json_string_value(json_object_get(v, "stop_sequence")), "ple");
    json_decref(v);
    v = ask(s, "/v1/messages",
            "{\"model\":\"m:w\",\"max_tokens\":8,\"temperature\":0,\"messages\":[{\"role\":"
            "\"user\",\"content\":\"Which is canary four?\"}]}");
    assert_true(json_is_null(json_object_get(v, "stop_sequence")));
    assert_string_equal(json_string_value(json_object_get(v, "stop_reason")), "end_turn");
    json_decref(v);
    cr_server_stop(s, 1000);
}

/* Examples leave before the question loses a token; one that does not fit alone is refused, with
 * both numbers. */
static void test_small_contexts(void **state)
{
    (void)state;
    int seen[FX_WORKED + 1] = {0};
    for (int n_ctx = 40; n_ctx <= 100; n_ctx += 12) {
        size_t n_front, n;
        int fit = FX_WORKED;
        for (; fit > 0; fit--) {
            cr_free(ids_by_hand(&anna, (size_t)fit, &n_front, &n));
            if (n + 8 <= (size_t)n_ctx)
                break;
        }
        cr_server *s = start_with((struct cr_serve_options){.n_ctx = n_ctx});
        json_t *v = ask(s, "/v1/chat/completions", CHAT(""));
        assert_int_equal(shown_of(v), fit);
        seen[fit]++;
        json_decref(v);
        cr_server_stop(s, 1000);
    }
    assert_true(seen[0] && seen[FX_WORKED]);
    cr_server *s = start_with((struct cr_serve_options){.n_ctx = 16});
    char *reply = post(s, "/v1/chat/completions", CHAT(""));
    size_t n_front, n;
    char want[64];
    cr_free(ids_by_hand(&anna, 0, &n_front, &n));
    snprintf(want, sizeof want, "has %zu tokens, the context of this server 16", n);
    if (status_of(reply) != 400 || !strstr(reply, want))
        fail_msg("want %s: %s", want, reply);
    cr_free(reply);
    cr_server_stop(s, 1000);
}

#define EXAMPLES                                                                                   \
    "\"examples\":[{\"question\":\"x?\",\"answer\":\"red stone\"},{\"question\":\"no answer\"},"   \
    "{\"question\":\"y?\",\"answer\":\"red stone\"},{\"question\":\"z?\",\"answer\":\"red "        \
    "stone\"},{\"question\":\"u?\",\"answer\":\"red stone\"}]"
/* Examples of a request stand in front where it asks for it; a blend by its own path keeps them. */
static void test_examples_of_a_request(void **state)
{
    (void)state;
    cr_server *s =
        start_with((struct cr_serve_options){.pool = CR_SOURCE_DIR "/models/crayon-15m-pool.gguf"});
    static const char ask_m[] =
        "{\"model\":\"m\",\"temperature\":0,\"max_tokens\":8,\"messages\":[{\"role\":\"user\","
        "\"content\":\"v?\"}],\"crayon\":{%s" EXAMPLES "}}";
    char body[1024];
    json_t *v[4];
    for (int i = 0; i < 4; i++) { /* 3, 0, 3 again, all */
        static const char *const worked[] = {"\"worked\":3,", "", "\"worked\":3,", "\"worked\":9,"};
        static const int want[] = {3, -1, 3, 4};
        snprintf(body, sizeof body, ask_m, worked[i]);
        v[i] = ask(s, "/v1/chat/completions", body);
        assert_int_equal(shown_of(v[i]), want[i]);
        assert_true(is_task(v[i]));
    }
    assert_true(usage_of(v[0], "prompt_tokens") > usage_of(v[1], "prompt_tokens"));
    assert_string_equal(text_of(v[2]), text_of(v[0]));
    assert_true(usage_of(v[2], "cached_tokens") > 0);
    assert_true(usage_of(v[3], "prompt_tokens") > usage_of(v[0], "prompt_tokens"));
    json_t *made = ask(s, "/v1/crayon/blend",
                       "{\"name\":\"mine\",\"worked\":3,\"level\":\"instant\"," EXAMPLES "}");
    json_t *p = json_object_get(made, "palette");
    assert_int_equal(json_integer_value(json_object_get(p, "version")), 2);
    assert_int_equal(json_array_size(json_object_get(p, "worked")), 3);
    json_t *named = ask(s, "/v1/chat/completions",
                        "{\"model\":\"m:mine\",\"temperature\":0,\"max_tokens\":8,\"messages\":[{"
                        "\"role\":\"user\",\"content\":\"v?\"}]}");
    assert_string_equal(text_of(named), text_of(v[0]));
    assert_int_equal(usage_of(named, "prompt_tokens"), usage_of(v[0], "prompt_tokens"));
    expect_status(post(s, "/v1/crayon/blend", "{\"worked\":17," EXAMPLES "}"), 400);
    expect_status(post(s, "/v1/crayon/blend", "{\"worked\":\"2\"," EXAMPLES "}"), 400);
    for (int i = 0; i < 4; i++)
        json_decref(v[i]);
    json_decref(made);
    json_decref(named);
    cr_server_stop(s, 1000);
}

static int make(void **state)
{
    if (open_model(state))
        return -1;
    snprintf(folder, sizeof folder, "/tmp/crayon-worked-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(file, sizeof file, "%s/w.palette", folder);
    fx_write_worked(file);
    return 0;
}

static int clean(void **state)
{
    remove(file);
    remove(folder);
    return close_model(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_prompt),     cmocka_unit_test(test_warm_equals_cold),
        cmocka_unit_test(test_scored_prompts), cmocka_unit_test(test_forms),
        cmocka_unit_test(test_small_contexts), cmocka_unit_test(test_examples_of_a_request),
    };
    return cmocka_run_group_tests(tests, make, clean);
}
