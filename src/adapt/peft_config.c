/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matching follows PEFT (tuners_utils.check_target_module_exists, other.get_pattern_key): a list
 * entry matches a module of that name or ending in ".entry"; a string is a pattern for the whole
 * name. Patterns come from a file, so they are compiled without JIT and run with limits.
 */
#include "adapt/peft_config.h"

#ifdef CRAYON_JSON

#include "adapt/json_text.h"
#include "base/log.h"
#include "base/mem.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

enum { MAX_PATTERNS = 4096, MAX_PATTERN_LEN = 512, MATCH_LIMIT = 100000, SHOWN = 60 };

struct pattern {      /* of rank_pattern or alpha_pattern */
    const char *text; /* borrowed from the JSON */
    pcre2_code *re;
    double value;
    bool hit;
};
struct patterns {
    struct pattern *v;
    size_t n;
};
struct module_set {     /* target_modules, exclude_modules */
    const json_t *list; /* array of names, or NULL */
    bool *hit;          /* [size of list] */
    pcre2_code *re;     /* of a string, or NULL */
    bool all;           /* "all-linear" */
};

struct cr_peft_config {
    json_t *root;
    uint64_t r;
    double alpha;
    bool rslora, too_costly;
    struct module_set target, exclude;
    const json_t *layers; /* layers_to_transform: integer, array or NULL */
    struct patterns ranks, alphas;
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

/* Keys with no effect on what the adapter computes, and those that are read below. */
static const char *const known_keys[] = {"alpha_pattern",
                                         "auto_mapping",
                                         "base_model_name_or_path",
                                         "bias",
                                         "ensure_weight_tying",
                                         "eva_config",
                                         "exclude_modules",
                                         "inference_mode",
                                         "init_lora_weights",
                                         "layers_pattern",
                                         "layers_to_transform",
                                         "lora_alpha",
                                         "lora_dropout",
                                         "megatron_core",
                                         "peft_type",
                                         "peft_version",
                                         "qalora_group_size",
                                         "r",
                                         "rank_pattern",
                                         "revision",
                                         "runtime_config",
                                         "target_modules",
                                         "task_type",
                                         "use_rslora"};

static bool is_active(const json_t *v)
{
    return v && !json_is_null(v) && !json_is_false(v) &&
           !(json_is_string(v) && json_string_length(v) == 0) &&
           !(json_is_array(v) && json_array_size(v) == 0) &&
           !(json_is_object(v) && json_object_size(v) == 0);
}

static bool is_one_of(const json_t *v, const char *const *names, size_t n)
{
    for (size_t i = 0; json_is_string(v) && i < n; i++)
        if (strcmp(json_string_value(v), names[i]) == 0)
            return true;
    return false;
}

/* "KEY = VALUE", the value as short JSON. */
static void refuse_setting(struct cr_refusals *bad, const char *key, const json_t *v,
                           const char *why)
{
    struct cr_buf text;
    cr_buf_init(&text, 1 << 16);
    bool ok = cr_json_text(&text, v, JSON_ENCODE_ANY | JSON_COMPACT);
    cr_refuse(bad, CR_UNSUPPORTED, "%.*s = %.*s (%s)", SHOWN, key, SHOWN, ok ? text.data : "...",
              why);
    cr_buf_deinit(&text);
}

static void check_settings(const json_t *root, struct cr_refusals *bad)
{
    static const char *const inits[] = {"gaussian", "eva", "orthogonal"};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)root, key, v)
    {
        size_t i = 0, n = sizeof known_keys / sizeof *known_keys;
        while (i < n && strcmp(known_keys[i], key) != 0)
            i++;
        if (i == n && is_active(v))
            refuse_setting(bad, key, v, "not supported");
    }
    v = json_object_get(root, "peft_type");
    if (!json_is_string(v) || strcmp(json_string_value(v), "LORA") != 0)
        refuse_setting(bad, "peft_type", v ? v : json_null(), "want \"LORA\"");
    v = json_object_get(root, "bias");
    if (is_active(v) && !is_one_of(v, (const char *const[]){"none"}, 1))
        refuse_setting(bad, "bias", v, "want \"none\"");
    v = json_object_get(root, "init_lora_weights");
    if (is_active(v) && !json_is_true(v) && !is_one_of(v, inits, 3))
        refuse_setting(bad, "init_lora_weights", v, "it changes the base weights");
    v = json_object_get(root, "layers_pattern");
    if (json_array_size(v) == 1)
        v = json_array_get(v, 0);
    if (is_active(v) && !is_one_of(v, (const char *const[]){"layers"}, 1))
        refuse_setting(bad, "layers_pattern", v, "want \"layers\"");
}

/* NULL (and a refusal) if the pattern is not one. */
static pcre2_code *compile(const char *text, const char *what, struct cr_refusals *bad)
{
    int code;
    PCRE2_SIZE at;
    size_t n = strlen(text);
    pcre2_code *re = NULL;
    if (n <= MAX_PATTERN_LEN)
        re = pcre2_compile((PCRE2_SPTR)text, n,
                           PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_NEVER_BACKSLASH_C, &code, &at,
                           NULL);
    if (!re)
        cr_refuse(bad, CR_FORMAT, "%s: \"%.*s\" is not a pattern we can use", what, SHOWN, text);
    return re;
}

static bool matches(cr_peft_config *c, const pcre2_code *re, const char *key)
{
    int rc = pcre2_match(re, (PCRE2_SPTR)key, strlen(key), 0, 0, c->match, c->limits);
    c->too_costly = c->too_costly || (rc < 0 && rc != PCRE2_ERROR_NOMATCH);
    return rc >= 0;
}

static bool read_modules(struct module_set *s, const json_t *v, const char *what,
                         struct cr_refusals *bad)
{
    if (json_is_string(v)) {
        s->all = strcmp(json_string_value(v), "all-linear") == 0;
        s->re = s->all ? NULL : compile(json_string_value(v), what, bad);
        return true;
    }
    if (!json_is_array(v) || json_array_size(v) > MAX_PATTERNS) {
        refuse_setting(bad, what, v ? v : json_null(), "want a list of names or a pattern");
        return true;
    }
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!json_is_string(json_array_get(v, i))) {
            refuse_setting(bad, what, json_array_get(v, i), "want a name");
            return true;
        }
    s->list = v;
    return (s->hit = cr_alloc0(json_array_size(v), sizeof *s->hit)) != NULL;
}

static bool in_modules(cr_peft_config *c, const struct module_set *s, const char *key, bool *exact)
{
    bool found = s->all || (s->re && matches(c, s->re, key));
    size_t n = strlen(key);
    *exact = false;
    for (size_t i = 0; s->list && i < json_array_size(s->list); i++) {
        const char *name = json_string_value(json_array_get(s->list, i));
        size_t k = strlen(name);
        if (k > n || memcmp(key + n - k, name, k) != 0 || (k < n && key[n - k - 1] != '.'))
            continue;
        *exact = *exact || k == n;
        s->hit[i] = found = true;
    }
    return found;
}

static bool read_patterns(struct patterns *p, const json_t *v, const char *what,
                          struct cr_refusals *bad)
{
    if (!is_active(v))
        return true;
    if (!json_is_object(v) || json_object_size(v) > MAX_PATTERNS) {
        refuse_setting(bad, what, v, "want an object of numbers");
        return true;
    }
    if (!(p->v = cr_alloc0(json_object_size(v), sizeof *p->v)))
        return false;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)v, key, value)
    {
        if (!json_is_number(value)) {
            refuse_setting(bad, what, value, "want a number");
            continue;
        }
        char *text = cr_asprintf("(?:.*\\.)?(?:%s)", key);
        if (!text)
            return false;
        struct pattern *one = &p->v[p->n++];
        *one = (struct pattern){key, compile(text, what, bad), json_number_value(value), false};
        cr_free(text);
    }
    return true;
}

static const struct pattern *first_match(cr_peft_config *c, struct patterns *p, const char *key)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->v[i].re && matches(c, p->v[i].re, key)) {
            p->v[i].hit = true;
            return &p->v[i];
        }
    return NULL;
}

static void read_scale(cr_peft_config *c, struct cr_refusals *bad)
{
    const json_t *r = json_object_get(c->root, "r"),
                 *alpha = json_object_get(c->root, "lora_alpha");
    const json_t *rs = json_object_get(c->root, "use_rslora");
    if (json_is_integer(r) && json_integer_value(r) > 0)
        c->r = (uint64_t)json_integer_value(r);
    else
        refuse_setting(bad, "r", r ? r : json_null(), "want a rank of at least 1");
    if (json_is_number(alpha) && json_number_value(alpha) != 0)
        c->alpha = json_number_value(alpha);
    else
        refuse_setting(bad, "lora_alpha", alpha ? alpha : json_null(), "want a number, not 0");
    if (rs && !json_is_null(rs) && !json_is_boolean(rs))
        refuse_setting(bad, "use_rslora", rs, "want true or false");
    c->rslora = json_is_true(rs);
    for (size_t i = 0; i < c->ranks.n; i++) {
        double v = c->ranks.v[i].value;
        if (!(v >= 1 && v <= CR_LORA_MAX_RANK && v == (double)(uint64_t)v))
            cr_refuse(bad, CR_FORMAT, "rank_pattern %.*s is %g, want 1 to %d", SHOWN,
                      c->ranks.v[i].text, v, CR_LORA_MAX_RANK);
    }
    for (size_t i = 0; i < c->alphas.n; i++)
        if (c->alphas.v[i].value == 0)
            cr_refuse(bad, CR_FORMAT, "alpha_pattern %.*s is 0", SHOWN, c->alphas.v[i].text);
}

static void read_layers(cr_peft_config *c, struct cr_refusals *bad)
{
    const json_t *v = json_object_get(c->root, "layers_to_transform");
    bool good = !is_active(v) || json_is_integer(v) || json_is_array(v);
    for (size_t i = 0; i < json_array_size(v); i++)
        good = good && json_is_integer(json_array_get(v, i));
    if (!good)
        refuse_setting(bad, "layers_to_transform", v, "want a number or a list of numbers");
    else if (is_active(v))
        c->layers = v;
}

static bool layer_is_on(const cr_peft_config *c, int layer)
{
    if (!c->layers)
        return true;
    if (json_is_integer(c->layers))
        return json_integer_value(c->layers) == layer;
    for (size_t i = 0; i < json_array_size(c->layers); i++)
        if (json_integer_value(json_array_get(c->layers, i)) == layer)
            return true;
    return false;
}

enum cr_status cr_peft_config_parse(cr_peft_config **out, const char *json, size_t len,
                                    const char *path, struct cr_refusals *bad, struct cr_error *err)
{
    *out = NULL;
    json_error_t why;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(root)) {
        json_decref(root);
        return cr_error_set_at(err, CR_FORMAT, root ? 0 : (uint64_t)why.line,
                               "%s: adapter_config.json: %s", path,
                               root ? "not an object" : why.text);
    }
    cr_peft_config *c = cr_alloc0(1, sizeof *c);
    if (!c) {
        json_decref(root);
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    }
    c->root = root;
    c->match = pcre2_match_data_create(1, NULL);
    c->limits = pcre2_match_context_create(NULL);
    const json_t *exclude = json_object_get(root, "exclude_modules");
    bool ok = c->match && c->limits;
    if (ok) {
        pcre2_set_match_limit(c->limits, MATCH_LIMIT);
        pcre2_set_depth_limit(c->limits, MATCH_LIMIT);
        check_settings(root, bad);
        ok =
            read_modules(&c->target, json_object_get(root, "target_modules"), "target_modules",
                         bad) &&
            (!is_active(exclude) || read_modules(&c->exclude, exclude, "exclude_modules", bad)) &&
            read_patterns(&c->ranks, json_object_get(root, "rank_pattern"), "rank_pattern", bad) &&
            read_patterns(&c->alphas, json_object_get(root, "alpha_pattern"), "alpha_pattern", bad);
    }
    if (!ok) {
        cr_peft_config_free(c);
        return cr_error_set(err, CR_NO_MEMORY, "%s: out of memory", path);
    }
    read_scale(c, bad);
    read_layers(c, bad);
    *out = c;
    return CR_OK;
}

static void free_patterns(struct patterns *p)
{
    for (size_t i = 0; i < p->n; i++)
        pcre2_code_free(p->v[i].re);
    cr_free(p->v);
}

void cr_peft_config_free(cr_peft_config *c)
{
    if (!c)
        return;
    free_patterns(&c->ranks);
    free_patterns(&c->alphas);
    pcre2_code_free(c->target.re);
    pcre2_code_free(c->exclude.re);
    cr_free(c->target.hit);
    cr_free(c->exclude.hit);
    pcre2_match_data_free(c->match);
    pcre2_match_context_free(c->limits);
    json_decref(c->root);
    cr_free(c);
}

bool cr_peft_config_rslora(const cr_peft_config *c)
{
    return c->rslora;
}

bool cr_peft_config_targets(cr_peft_config *c, const char *key, int layer)
{
    bool exact;
    if (in_modules(c, &c->exclude, key, &exact))
        return false;
    return in_modules(c, &c->target, key, &exact) && (exact || layer_is_on(c, layer));
}

void cr_peft_config_scale(cr_peft_config *c, const char *key, uint64_t *rank, double *alpha)
{
    const struct pattern *r = first_match(c, &c->ranks, key);
    const struct pattern *a = first_match(c, &c->alphas, key);
    *rank = !r ? c->r : r->value >= 1 && r->value <= CR_LORA_MAX_RANK ? (uint64_t)r->value : 0;
    *alpha = a ? a->value : c->alpha;
}

void cr_peft_config_finish(const cr_peft_config *c, const char *path, struct cr_refusals *bad)
{
    for (size_t i = 0; c->target.list && i < json_array_size(c->target.list); i++)
        if (!c->target.hit[i])
            cr_refuse(bad, CR_UNSUPPORTED, "target_modules %.*s (not a linear of the layers)",
                      SHOWN, json_string_value(json_array_get(c->target.list, i)));
    if (c->too_costly)
        cr_refuse(bad, CR_LIMIT, "a pattern of adapter_config.json is too costly to match");
    for (size_t i = 0; i < c->ranks.n; i++)
        if (!c->ranks.v[i].hit)
            cr_log(CR_LOG_WARN, "%s: rank_pattern %s matches no module", path, c->ranks.v[i].text);
    for (size_t i = 0; i < c->alphas.n; i++)
        if (!c->alphas.v[i].hit)
            cr_log(CR_LOG_WARN, "%s: alpha_pattern %s matches no module", path,
                   c->alphas.v[i].text);
}
#endif /* CRAYON_JSON; without it peft.c refuses every directory */
