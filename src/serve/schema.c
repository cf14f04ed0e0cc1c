/* SPDX-License-Identifier: Apache-2.0 */
/* Schemas to rules: dispatch, strings, arrays and objects. */
#include "serve/schema_impl.h"

#include "base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool cr_schema_refuse(struct cr_compiler *c, const char *keyword, const char *fmt, ...)
{
    char msg[300];
    va_list ap;
    if (c->e->http)
        return false;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    cr_api_error_set(c->e, 400, c->param, "unsupported_schema", "%s: schema keyword %s: %s",
                     c->param, keyword, msg);
    return false;
}

/* ---- JSON itself -------------------------------------------------------------------------- */

static void add_text(cr_grammar *g, uint32_t rule, const char *text)
{
    struct cr_row r;
    cr_row_init(&r, g);
    cr_row_text(&r, text, strlen(text));
    cr_rule_add(&r, rule);
}

static void one_rule(cr_grammar *g, uint32_t rule, uint32_t other)
{
    struct cr_row r;
    cr_row_init(&r, g);
    cr_row_rule(&r, other);
    cr_rule_add(&r, rule);
}

/* open W (item (, W item)* )? W close */
static void list_rule(struct cr_compiler *c, uint32_t rule, char open, char close, uint32_t item,
                      uint32_t min, uint32_t max)
{
    struct cr_row r;
    cr_row_init(&r, c->g);
    if (min == 0) {
        cr_row_byte(&r, open);
        cr_row_byte(&r, close);
        cr_rule_add(&r, rule);
    }
    if (max == 0)
        return;
    uint32_t more = cr_rule_new(c->g);
    cr_row_byte(&r, ',');
    cr_row_rule(&r, c->space);
    cr_row_rule(&r, item);
    cr_rule_add(&r, more);
    cr_row_byte(&r, open);
    cr_row_rule(&r, c->space);
    cr_row_rule(&r, item);
    cr_row_repeat(&r, more, min ? min - 1 : 0, max == CR_GRAMMAR_MANY ? max : max - 1);
    cr_row_rule(&r, c->space);
    cr_row_byte(&r, close);
    cr_rule_add(&r, rule);
}

void cr_schema_json_rules(struct cr_compiler *c)
{
    cr_grammar *g = c->g;
    struct cr_row r;
    uint32_t blank = cr_rule_new(g), pair = cr_rule_new(g), object, array;
    if (c->has_json)
        return;
    c->has_json = true;
    cr_row_init(&r, g);
    cr_row_byte(&r, ' ');
    cr_rule_add(&r, blank);
    /* Enough white space for what models write, and no endless row of it. */
    c->space = cr_rule_new(g);
    add_text(g, c->space, "");
    add_text(g, c->space, " ");
    cr_row_byte(&r, '\n');
    cr_row_repeat(&r, blank, 0, 16);
    cr_rule_add(&r, c->space);
    c->gap = cr_rule_new(g); /* behind a colon */
    add_text(g, c->gap, "");
    add_text(g, c->gap, " ");
    c->any_char = cr_any_char_rule(g);
    c->string = cr_rule_new(g);
    cr_row_byte(&r, '"');
    cr_row_repeat(&r, c->any_char, 0, CR_GRAMMAR_MANY);
    cr_row_byte(&r, '"');
    cr_rule_add(&r, c->string);
    c->integer = cr_rule_new(g);
    cr_schema_number(c, NULL, true, c->integer);
    c->number = cr_rule_new(g);
    cr_schema_number(c, NULL, false, c->number);
    c->value = cr_rule_new(g);
    object = cr_rule_new(g);
    array = cr_rule_new(g);
    cr_row_rule(&r, c->string);
    cr_row_byte(&r, ':');
    cr_row_rule(&r, c->gap);
    cr_row_rule(&r, c->value);
    cr_rule_add(&r, pair);
    list_rule(c, object, '{', '}', pair, 0, CR_GRAMMAR_MANY);
    list_rule(c, array, '[', ']', c->value, 0, CR_GRAMMAR_MANY);
    one_rule(g, c->value, object);
    one_rule(g, c->value, array);
    one_rule(g, c->value, c->string);
    one_rule(g, c->value, c->number);
    add_text(g, c->value, "true");
    add_text(g, c->value, "false");
    add_text(g, c->value, "null");
}

/* ---- counts ------------------------------------------------------------------------------- */

/* A count such as minItems; absent: *out stays. Whole floats are counts too. */
static bool read_count(struct cr_compiler *c, json_t *schema, const char *name, uint32_t *out)
{
    json_t *v = json_object_get(schema, name);
    if (!v)
        return true;
    double x = json_is_number(v) ? json_number_value(v) : -1;
    if (!(x >= 0) || x != floor(x))
        return cr_schema_refuse(c, name, "want an integer of 0 or more");
    if (x > INT32_MAX)
        return cr_schema_refuse(c, name, "is larger than %d", INT32_MAX);
    *out = (uint32_t)x;
    return true;
}

static bool read_counts(struct cr_compiler *c, json_t *schema, const char *min_name,
                        const char *max_name, uint32_t *min, uint32_t *max)
{
    *min = 0;
    *max = CR_GRAMMAR_MANY;
    return read_count(c, schema, min_name, min) && read_count(c, schema, max_name, max);
}

/* ---- strings ------------------------------------------------------------------------------ */

static const struct {
    const char *name, *pattern;
} formats[] = {
    {"date", "^(19|20)[0-9][0-9]-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"},
    {"time",
     "^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5]"
     "[0-9])$"},
    {"date-time",
     "^(19|20)[0-9][0-9]-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5]"
     "[0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"},
    {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    {"ipv4",
     "^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|"
     "[1-9]?[0-9])$"},
    {"ipv6", "^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$"},
    {"email", "^[A-Za-z0-9_]+(\\.[A-Za-z0-9_]+){0,4}@[a-z0-9]+(\\.[a-z0-9]+){1,3}$"},
    {"hostname", "^[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,4}$"},
    {"duration", "^P[1-9][0-9]{0,3}(D|W|M|Y)$"},
};

static bool string_rule(struct cr_compiler *c, json_t *schema, uint32_t rule)
{
    const char *pattern = json_string_value(json_object_get(schema, "pattern"));
    const char *format = json_string_value(json_object_get(schema, "format"));
    uint32_t min, max, inside;
    char why[160];
    struct cr_row r;
    if (!read_counts(c, schema, "minLength", "maxLength", &min, &max))
        return false;
    bool counted = min > 0 || max != CR_GRAMMAR_MANY;
    if (json_object_get(schema, "pattern") && !pattern)
        return cr_schema_refuse(c, "pattern", "want a string");
    if (format && pattern)
        return cr_schema_refuse(c, "format", "cannot be had together with pattern");
    if ((pattern || format) && counted)
        return cr_schema_refuse(c, min ? "minLength" : "maxLength",
                                "cannot be had together with pattern or format");
    for (size_t i = 0; format && i < sizeof formats / sizeof *formats; i++)
        if (strcmp(format, formats[i].name) == 0)
            pattern = formats[i].pattern;
    if (format && !pattern)
        return cr_schema_refuse(c, "format", "\"%.40s\" is not supported", format);
    cr_row_init(&r, c->g);
    cr_row_byte(&r, '"');
    if (pattern) {
        if (!cr_pattern_rule(c->g, pattern, c->any_char, &inside, why)) {
            cr_row_deinit(&r);
            return cr_schema_refuse(c, "pattern", "%s", why);
        }
        cr_row_rule(&r, inside);
    } else if (max < min) {
        cr_row_deinit(&r);
        return true; /* nothing matches */
    } else {
        cr_row_repeat(&r, c->any_char, min, max);
    }
    cr_row_byte(&r, '"');
    cr_rule_add(&r, rule);
    return true;
}

/* ---- arrays ------------------------------------------------------------------------------- */

/* What comes behind item i of the prefix: the rest, and the closing bracket. */
static uint32_t array_tail(struct cr_compiler *c, const uint32_t *items, size_t n, uint32_t rest,
                           uint32_t min, uint32_t max)
{
    struct cr_row r;
    uint32_t tail = cr_rule_new(c->g);
    cr_row_init(&r, c->g);
    if (rest && max > n) {
        uint32_t more = cr_rule_new(c->g);
        cr_row_byte(&r, ',');
        cr_row_rule(&r, c->space);
        cr_row_rule(&r, rest);
        cr_rule_add(&r, more);
        cr_row_repeat(&r, more, min > n ? min - (uint32_t)n : 0,
                      max == CR_GRAMMAR_MANY ? max : max - (uint32_t)n);
    }
    cr_row_rule(&r, c->space);
    cr_row_byte(&r, ']');
    if (min <= n || (rest && max > n))
        cr_rule_add(&r, tail);
    cr_row_deinit(&r);
    for (size_t i = n; i-- > 1;) {
        uint32_t before = cr_rule_new(c->g);
        if (i < max) {
            cr_row_byte(&r, ',');
            cr_row_rule(&r, c->space);
            cr_row_rule(&r, items[i]);
            cr_row_rule(&r, tail);
            cr_rule_add(&r, before);
        }
        if (min <= i) {
            cr_row_rule(&r, c->space);
            cr_row_byte(&r, ']');
            cr_rule_add(&r, before);
        }
        tail = before;
    }
    return tail;
}

static bool prefix_rule(struct cr_compiler *c, json_t *prefix, uint32_t rest, uint32_t min,
                        uint32_t max, uint32_t rule)
{
    size_t n = json_array_size(prefix);
    uint32_t *items = cr_alloc(n, sizeof *items);
    bool ok = items != NULL;
    for (size_t i = 0; i < n && ok; i++)
        ok = cr_schema_rule(c, json_array_get(prefix, i), &items[i]);
    if (ok) {
        struct cr_row r;
        cr_row_init(&r, c->g);
        if (min == 0)
            add_text(c->g, rule, "[]");
        if (max > 0) {
            cr_row_byte(&r, '[');
            cr_row_rule(&r, c->space);
            cr_row_rule(&r, items[0]);
            cr_row_rule(&r, array_tail(c, items, n, rest, min, max));
            cr_rule_add(&r, rule);
        }
    }
    cr_free(items);
    return ok;
}

static bool array_rule(struct cr_compiler *c, json_t *schema, uint32_t rule)
{
    json_t *items = json_object_get(schema, "items"), *prefix;
    uint32_t min, max, item = 0;
    if (!read_counts(c, schema, "minItems", "maxItems", &min, &max))
        return false;
    if (json_is_true(json_object_get(schema, "uniqueItems")) && max > 1)
        return cr_schema_refuse(c, "uniqueItems", "cannot be promised for more than one item");
    prefix = json_object_get(schema, "prefixItems");
    if (json_is_array(items)) { /* before 2020-12 */
        prefix = items;
        items = json_object_get(schema, "additionalItems");
    }
    c->bytes_before++;
    if (items && !json_is_object(items) && !json_is_boolean(items))
        return cr_schema_refuse(c, "items", "want a schema");
    if (!json_is_false(items) && max > json_array_size(prefix) &&
        !cr_schema_rule(c, items ? items : json_true(), &item))
        return false;
    if (json_array_size(prefix))
        return prefix_rule(c, prefix, item, min, max, rule);
    if (json_is_false(items) || max == 0) {
        if (min == 0)
            add_text(c->g, rule, "[]");
        return true;
    }
    if (max >= min)
        list_rule(c, rule, '[', ']', item, min, max);
    return true;
}

/* ---- objects ------------------------------------------------------------------------------ */

static bool is_required(json_t *required, const char *name)
{
    size_t i;
    json_t *one;
    json_array_foreach(required, i, one)
    {
        if (json_is_string(one) && strcmp(json_string_value(one), name) == 0)
            return true;
    }
    return false;
}

/* "name": value */
static bool pair_row(struct cr_compiler *c, const char *name, json_t *schema, struct cr_row *r)
{
    json_t *s = json_string(name);
    char *text = s ? json_dumps(s, JSON_ENCODE_ANY) : NULL;
    uint32_t value;
    json_decref(s);
    if (!text)
        return cr_schema_refuse(c, "properties", "out of memory");
    cr_row_text(r, text, strlen(text));
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(text);
    if (!cr_schema_rule(c, schema, &value))
        return false;
    cr_row_byte(r, ':');
    cr_row_rule(r, c->gap);
    cr_row_rule(r, value);
    return true;
}

/* The properties in order: rules[i][first] is what may follow when i of them are behind. */
static bool properties_rule(struct cr_compiler *c, json_t *properties, json_t *required,
                            uint32_t rule)
{
    size_t n = json_object_size(properties), i = 0;
    uint32_t *after = cr_alloc(n + 1, sizeof *after), *start = cr_alloc(n + 1, sizeof *start);
    const char *name;
    json_t *schema;
    struct cr_row r;
    bool ok = after && start;
    cr_row_init(&r, c->g);
    for (size_t k = 0; ok && k <= n; k++) {
        after[k] = cr_rule_new(c->g);
        start[k] = cr_rule_new(c->g);
    }
    if (ok)
        json_object_foreach(properties, name, schema)
        {
            uint32_t pair = cr_rule_new(c->g);
            if (!(ok = pair_row(c, name, schema, &r)))
                break;
            cr_rule_add(&r, pair);
            cr_row_byte(&r, ',');
            cr_row_rule(&r, c->space);
            cr_row_rule(&r, pair);
            cr_row_rule(&r, after[i + 1]);
            cr_rule_add(&r, after[i]);
            cr_row_rule(&r, c->space);
            cr_row_rule(&r, pair);
            cr_row_rule(&r, after[i + 1]);
            cr_rule_add(&r, start[i]);
            if (!is_required(required, name)) {
                one_rule(c->g, after[i], after[i + 1]);
                one_rule(c->g, start[i], start[i + 1]);
            }
            i++;
        }
    if (ok) {
        cr_row_rule(&r, c->space);
        cr_row_byte(&r, '}');
        cr_rule_add(&r, after[n]);
        cr_row_byte(&r, '}');
        cr_rule_add(&r, start[n]);
        cr_row_byte(&r, '{');
        cr_row_rule(&r, start[0]);
        cr_rule_add(&r, rule);
    }
    cr_row_deinit(&r);
    cr_free(after);
    cr_free(start);
    return ok;
}

/* An object with any keys. */
static bool map_rule(struct cr_compiler *c, json_t *additional, uint32_t min, uint32_t max,
                     uint32_t rule)
{
    uint32_t value, pair = cr_rule_new(c->g);
    struct cr_row r;
    if (min > 1)
        return cr_schema_refuse(c, "minProperties",
                                "more than 1 cannot be promised, for keys may be equal");
    if (!cr_schema_rule(c, additional ? additional : json_true(), &value))
        return false;
    cr_row_init(&r, c->g);
    cr_row_rule(&r, c->string);
    cr_row_byte(&r, ':');
    cr_row_rule(&r, c->gap);
    cr_row_rule(&r, value);
    cr_rule_add(&r, pair);
    if (max >= min)
        list_rule(c, rule, '{', '}', pair, min, max);
    return true;
}

/* The properties with those that are only required, which get the schema of additional ones. */
static json_t *all_properties(struct cr_compiler *c, json_t *schema)
{
    json_t *properties = json_object_get(schema, "properties"),
           *required = json_object_get(schema, "required"),
           *additional = json_object_get(schema, "additionalProperties"), *one;
    json_t *all = properties ? json_copy(properties) : json_object();
    size_t i;
    json_array_foreach(required, i, one)
    {
        const char *name = json_string_value(one);
        if (!name) {
            cr_schema_refuse(c, "required", "want strings");
            break;
        }
        if (!json_object_get(all, name))
            json_object_set(all, name, additional ? additional : json_true());
    }
    json_array_append_new(c->keep, all);
    return all;
}

static bool object_rule(struct cr_compiler *c, json_t *schema, uint32_t rule)
{
    json_t *properties = json_object_get(schema, "properties"),
           *required = json_object_get(schema, "required"),
           *additional = json_object_get(schema, "additionalProperties");
    uint32_t min, max;
    if (properties && !json_is_object(properties))
        return cr_schema_refuse(c, "properties", "want an object");
    if (required && !json_is_array(required))
        return cr_schema_refuse(c, "required", "want an array");
    if (additional && !json_is_object(additional) && !json_is_boolean(additional))
        return cr_schema_refuse(c, "additionalProperties", "want a schema");
    if (!read_counts(c, schema, "minProperties", "maxProperties", &min, &max))
        return false;
    c->bytes_before++;
    json_t *all = all_properties(c, schema);
    if (c->e->http)
        return false;
    size_t n = json_object_size(all), n_required = 0;
    const char *name;
    json_t *one;
    json_object_foreach(all, name, one) n_required += is_required(required, name);
    if (n == 0 && !json_is_false(additional))
        return map_rule(c, additional, min, max, rule);
    if (min > n_required)
        return cr_schema_refuse(c, "minProperties",
                                "%u cannot be promised where %zu properties are required", min,
                                n_required);
    if (max < n)
        return cr_schema_refuse(c, "maxProperties", "%u is less than the %zu properties", max, n);
    return properties_rule(c, all, required, rule);
}

/* ---- dispatch ----------------------------------------------------------------------------- */

static const char *const refused[] = {"not",
                                      "if",
                                      "then",
                                      "else",
                                      "contains",
                                      "minContains",
                                      "maxContains",
                                      "patternProperties",
                                      "propertyNames",
                                      "dependencies",
                                      "dependentRequired",
                                      "dependentSchemas",
                                      "unevaluatedProperties",
                                      "unevaluatedItems",
                                      "$dynamicRef",
                                      "$recursiveRef",
                                      "contentSchema",
                                      "extends",
                                      "disallow",
                                      "divisibleBy"};

static bool check_keywords(struct cr_compiler *c, json_t *schema)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        json_t *v = json_object_get(schema, refused[i]);
        if (v && !(strncmp(refused[i], "unevaluated", 11) == 0 && json_is_true(v)))
            return cr_schema_refuse(c, refused[i], "is not supported");
    }
    return true;
}

/* The alternatives of anyOf or oneOf, each together with what stands beside it. */
static bool alternatives(struct cr_compiler *c, json_t *schema, const char *keyword, uint32_t rule)
{
    json_t *list = json_object_get(schema, keyword), *beside = json_copy(schema), *one;
    size_t i, k;
    json_array_append_new(c->keep, beside);
    json_object_del(beside, keyword);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return cr_schema_refuse(c, keyword, "want an array of schemas");
    if (json_array_size(list) > 256)
        return cr_schema_refuse(c, keyword, "want at most 256 schemas");
    json_array_foreach(list, i, one)
    {
        for (k = 0; strcmp(keyword, "oneOf") == 0 && k < i; k++)
            if (!cr_schema_disjoint(c, json_array_get(list, k), one))
                return c->e->http
                           ? false
                           : cr_schema_refuse(c, "oneOf",
                                              "an instance could match both %zu and %zu", k, i);
        json_t *both = cr_schema_both(c, beside, one, keyword);
        uint32_t other;
        if (!both)
            return false;
        json_array_append_new(c->keep, both);
        if (!cr_schema_rule(c, both, &other))
            return false;
        one_rule(c->g, rule, other);
    }
    return true;
}

static bool all_of(struct cr_compiler *c, json_t *schema, uint32_t rule)
{
    json_t *list = json_object_get(schema, "allOf"), *sum = json_copy(schema), *one;
    size_t i;
    uint32_t other;
    json_object_del(sum, "allOf");
    json_array_append_new(c->keep, sum);
    if (!json_is_array(list))
        return cr_schema_refuse(c, "allOf", "want an array of schemas");
    json_array_foreach(list, i, one)
    {
        if (!(sum = cr_schema_both(c, sum, one, "allOf")))
            return false;
        json_array_append_new(c->keep, sum);
    }
    if (!cr_schema_rule(c, sum, &other))
        return false;
    one_rule(c->g, rule, other);
    return true;
}

static bool by_type(struct cr_compiler *c, json_t *schema, uint32_t rule)
{
    unsigned types;
    bool ok = cr_schema_types(c, schema, &types);
    if (ok && types & 1u << CR_T_NULL)
        add_text(c->g, rule, "null");
    if (ok && types & 1u << CR_T_BOOL) {
        add_text(c->g, rule, "true");
        add_text(c->g, rule, "false");
    }
    if (ok && types & 1u << CR_T_OBJECT)
        ok = object_rule(c, schema, rule);
    if (ok && types & 1u << CR_T_ARRAY)
        ok = array_rule(c, schema, rule);
    if (ok && types & 1u << CR_T_STRING)
        ok = string_rule(c, schema, rule);
    if (ok && types & 1u << CR_T_NUMBER)
        return cr_schema_number(c, schema, false, rule);
    if (ok && types & 1u << CR_T_INTEGER)
        return cr_schema_number(c, schema, true, rule);
    return ok;
}

/* enum and const: the values of the right type. Other demands on them would have to be checked. */
static bool literal_rule(struct cr_compiler *c, json_t *schema, uint32_t rule)
{
    static const char *const beside[] = {"minimum",          "maximum",       "exclusiveMinimum",
                                         "exclusiveMaximum", "multipleOf",    "minLength",
                                         "maxLength",        "pattern",       "items",
                                         "minItems",         "maxItems",      "properties",
                                         "required",         "minProperties", "maxProperties",
                                         "prefixItems",      "uniqueItems"};
    json_t *values = json_object_get(schema, "enum"), *one = json_object_get(schema, "const");
    unsigned types;
    size_t i;
    json_t *v, *fit = json_array();
    json_array_append_new(c->keep, fit);
    if (values && one)
        return cr_schema_refuse(c, "const", "cannot be had together with enum");
    if (values && !json_is_array(values))
        return cr_schema_refuse(c, "enum", "want an array");
    for (i = 0; i < sizeof beside / sizeof *beside; i++)
        if (json_object_get(schema, beside[i]))
            return cr_schema_refuse(c, beside[i], "cannot be had together with %s",
                                    values ? "enum" : "const");
    if (!cr_schema_types(c, schema, &types))
        return false;
    if (!values)
        json_array_append_new(c->keep, values = json_pack("[O]", one));
    json_array_foreach(values, i, v)
    {
        static const enum cr_type of[] = {
            [JSON_OBJECT] = CR_T_OBJECT,   [JSON_ARRAY] = CR_T_ARRAY, [JSON_STRING] = CR_T_STRING,
            [JSON_INTEGER] = CR_T_INTEGER, [JSON_REAL] = CR_T_NUMBER, [JSON_TRUE] = CR_T_BOOL,
            [JSON_FALSE] = CR_T_BOOL,      [JSON_NULL] = CR_T_NULL};
        unsigned bit = 1u << of[json_typeof(v)];
        bool whole = json_is_real(v) && json_real_value(v) == floor(json_real_value(v));
        if (json_is_integer(v))
            bit |= 1u << CR_T_NUMBER;
        if (whole)
            bit |= 1u << CR_T_INTEGER;
        if (types & bit)
            json_array_append(fit, v);
    }
    return cr_schema_literals(c, fit, rule);
}

/* A schema that is reached by $ref is compiled once; it may lead back to itself behind a byte. */
static bool ref_rule(struct cr_compiler *c, json_t *schema, uint32_t *rule)
{
    json_t *target = cr_schema_target(c, json_string_value(json_object_get(schema, "$ref")));
    if (!target)
        return false;
    for (size_t i = 0; i < c->n_refs; i++)
        if (c->refs[i].schema == target) {
            if (c->refs[i].open && c->refs[i].bytes == c->bytes_before)
                return cr_schema_refuse(c, "$ref", "leads back to itself at once");
            *rule = c->refs[i].rule;
            return true;
        }
    if (c->n_refs == CR_SCHEMA_MAX_REFS)
        return cr_schema_refuse(c, "$ref", "want at most %d targets", CR_SCHEMA_MAX_REFS);
    size_t k = c->n_refs++;
    uint32_t other;
    *rule = cr_rule_new(c->g);
    c->refs[k] = (struct cr_known_ref){target, *rule, c->bytes_before, true};
    if (!cr_schema_rule(c, target, &other))
        return false;
    c->refs[k].open = false;
    one_rule(c->g, *rule, other);
    return true;
}

/* Annotations beside $ref say nothing; anything else has to hold together with the target. */
static bool ref_alone(json_t *schema)
{
    static const char *const notes[] = {
        "$ref",     "title",     "description", "default",     "examples", "$comment", "deprecated",
        "readOnly", "writeOnly", "$defs",       "definitions", "$schema",  "$id"};
    const char *key;
    json_t *v;
    json_object_foreach(schema, key, v)
    {
        size_t i = 0;
        while (i < sizeof notes / sizeof *notes && strcmp(key, notes[i]) != 0)
            i++;
        if (i == sizeof notes / sizeof *notes)
            return false;
    }
    return true;
}

static bool object_schema(struct cr_compiler *c, json_t *schema, uint32_t *rule)
{
    json_t *ref = json_object_get(schema, "$ref");
    if (ref && !json_is_string(ref))
        return cr_schema_refuse(c, "$ref", "want a string");
    if (ref && ref_alone(schema))
        return ref_rule(c, schema, rule);
    if (ref) {
        json_t *target = cr_schema_target(c, json_string_value(ref)), *beside = json_copy(schema);
        json_array_append_new(c->keep, beside);
        json_object_del(beside, "$ref");
        json_t *both = target ? cr_schema_both(c, beside, target, "$ref") : NULL;
        if (!both)
            return false;
        json_array_append_new(c->keep, both);
        return cr_schema_rule(c, both, rule);
    }
    *rule = cr_rule_new(c->g);
    if (!check_keywords(c, schema))
        return false;
    if (json_object_get(schema, "allOf"))
        return all_of(c, schema, *rule);
    if (json_object_get(schema, "anyOf"))
        return alternatives(c, schema, "anyOf", *rule);
    if (json_object_get(schema, "oneOf"))
        return alternatives(c, schema, "oneOf", *rule);
    if (json_object_get(schema, "enum") || json_object_get(schema, "const"))
        return literal_rule(c, schema, *rule);
    return by_type(c, schema, *rule);
}

bool cr_schema_rule(struct cr_compiler *c, json_t *schema, uint32_t *rule)
{
    cr_schema_json_rules(c);
    if (c->depth >= CR_SCHEMA_MAX_DEPTH)
        return cr_schema_refuse(c, "(nesting)", "schemas are nested deeper than %d",
                                CR_SCHEMA_MAX_DEPTH);
    if (cr_grammar_failed(c->g))
        return cr_schema_refuse(c, "(size)", "the schema is too large");
    if (json_is_true(schema) || (json_is_object(schema) && json_object_size(schema) == 0)) {
        *rule = c->value;
        return true;
    }
    if (json_is_false(schema)) {
        *rule = cr_rule_new(c->g); /* nothing matches */
        return true;
    }
    if (!json_is_object(schema))
        return cr_schema_refuse(c, "(schema)", "want an object or a boolean");
    c->depth++;
    uint64_t bytes = c->bytes_before;
    bool ok = object_schema(c, schema, rule);
    c->bytes_before = bytes;
    c->depth--;
    return ok;
}
