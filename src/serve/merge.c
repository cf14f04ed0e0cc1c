/* SPDX-License-Identifier: Apache-2.0 */
/* Schemas looked at without making rules: references, types, two at once, disjointness. */
#include "serve/schema_impl.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- references --------------------------------------------------------------------------- */

/* Undoes %XX, ~1 and ~0 of one part of a pointer, in place. */
static void unescape(char *s)
{
    char *out = s;
    for (; *s; s++) {
        unsigned v;
        if (s[0] == '%' && sscanf(s + 1, "%2x", &v) == 1 && s[1] && s[2] && v) {
            *out++ = (char)v;
            s += 2;
        } else {
            *out++ = *s;
        }
    }
    *out = '\0';
}

static void untilde(char *s)
{
    char *out = s;
    for (; *s; s++) {
        if (s[0] == '~' && (s[1] == '0' || s[1] == '1')) {
            *out++ = s[1] == '0' ? '~' : '/';
            s++;
        } else {
            *out++ = *s;
        }
    }
    *out = '\0';
}

json_t *cr_schema_target(struct cr_compiler *c, const char *ref)
{
    json_t *at = c->root;
    char *copy = ref[0] == '#' ? cr_strdup(ref + 1) : NULL;
    if (!copy || (*copy && *copy != '/')) {
        cr_free(copy);
        cr_schema_refuse(c, "$ref",
                         "\"%.100s\": only references within the schema (#/...) are "
                         "supported",
                         ref);
        return NULL;
    }
    char *part = *copy ? copy + 1 : NULL;
    while (part && at) {
        char *next = strchr(part, '/');
        if (next)
            *next++ = '\0';
        unescape(part);
        untilde(part);
        size_t n = strlen(part);
        if (json_is_array(at))
            at = n && n < 8 && strspn(part, "0123456789") == n
                     ? json_array_get(at, (size_t)strtoul(part, NULL, 10))
                     : NULL;
        else
            at = json_object_get(at, part);
        part = next;
    }
    cr_free(copy);
    if (!at)
        cr_schema_refuse(c, "$ref", "\"%.100s\" leads nowhere", ref);
    return at;
}

/* ---- types -------------------------------------------------------------------------------- */

static const char *const type_names[CR_T_COUNT] = {"null",   "boolean", "object", "array",
                                                   "string", "integer", "number"};

static int type_by_name(const char *name)
{
    int t = 0;
    while (name && t < CR_T_COUNT && strcmp(name, type_names[t]) != 0)
        t++;
    return name && t < CR_T_COUNT ? t : -1;
}

/* Without "type", keywords of one type tell which is meant; else all are. */
static unsigned types_of_keywords(json_t *schema)
{
    static const struct {
        const char *name;
        enum cr_type type;
    } of[] = {{"properties", CR_T_OBJECT},
              {"required", CR_T_OBJECT},
              {"additionalProperties", CR_T_OBJECT},
              {"minProperties", CR_T_OBJECT},
              {"maxProperties", CR_T_OBJECT},
              {"items", CR_T_ARRAY},
              {"prefixItems", CR_T_ARRAY},
              {"minItems", CR_T_ARRAY},
              {"maxItems", CR_T_ARRAY},
              {"uniqueItems", CR_T_ARRAY},
              {"pattern", CR_T_STRING},
              {"minLength", CR_T_STRING},
              {"maxLength", CR_T_STRING},
              {"format", CR_T_STRING},
              {"minimum", CR_T_NUMBER},
              {"maximum", CR_T_NUMBER},
              {"exclusiveMinimum", CR_T_NUMBER},
              {"exclusiveMaximum", CR_T_NUMBER},
              {"multipleOf", CR_T_NUMBER}};
    unsigned types = 0;
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        if (json_object_get(schema, of[i].name))
            types |= 1u << of[i].type;
    return types ? types : (1u << CR_T_COUNT) - 1;
}

bool cr_schema_types(struct cr_compiler *c, json_t *schema, unsigned *types)
{
    json_t *v = json_object_get(schema, "type"), *one;
    size_t i;
    *types = 0;
    if (!v) {
        *types = json_object_get(schema, "enum") || json_object_get(schema, "const")
                     ? (1u << CR_T_COUNT) - 1
                     : types_of_keywords(schema);
        return true;
    }
    if (json_is_string(v)) {
        int t = type_by_name(json_string_value(v));
        *types = t < 0 ? 0 : 1u << t;
    }
    json_array_foreach(v, i, one)
    {
        int t = type_by_name(json_string_value(one));
        if (t < 0) {
            *types = 0;
            break;
        }
        *types |= 1u << t;
    }
    return *types || cr_schema_refuse(c, "type", "is none of JSON's types");
}

/* ---- two at once -------------------------------------------------------------------------- */

static bool is_note(const char *key)
{
    static const char *const notes[] = {"title",    "description", "default",  "examples",
                                        "$comment", "deprecated",  "readOnly", "writeOnly",
                                        "$defs",    "definitions", "$schema",  "$id"};
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++)
        if (strcmp(key, notes[i]) == 0)
            return true;
    return false;
}

static bool says_nothing(json_t *schema)
{
    const char *key;
    json_t *v;
    if (json_is_true(schema))
        return true;
    if (!json_is_object(schema))
        return false;
    json_object_foreach(schema, key, v)
    {
        if (!is_note(key))
            return false;
    }
    return true;
}

/* Types that are in both lists; integer is a number. NULL: none. */
static json_t *both_types(struct cr_compiler *c, json_t *a, json_t *b)
{
    unsigned x, y;
    json_t *list = json_array();
    if (!cr_schema_types(c, a, &x) || !cr_schema_types(c, b, &y))
        return list;
    if (x & 1u << CR_T_NUMBER)
        x |= 1u << CR_T_INTEGER;
    if (y & 1u << CR_T_NUMBER)
        y |= 1u << CR_T_INTEGER;
    for (int t = 0; t < CR_T_COUNT; t++)
        if ((x & y) >> t & 1)
            json_array_append_new(list, json_string(type_names[t]));
    return list;
}

static bool union_required(json_t *to, json_t *more)
{
    json_t *list = json_object_get(to, "required"), *sum = json_copy(list), *one;
    size_t i;
    json_array_foreach(more, i, one) json_array_append(sum, one);
    return json_object_set_new(to, "required", sum) == 0;
}

static bool join_properties(struct cr_compiler *c, json_t *to, json_t *more, const char *keyword)
{
    json_t *sum = json_copy(json_object_get(to, "properties")), *schema;
    const char *name;
    bool ok = true;
    json_object_foreach(more, name, schema)
    {
        json_t *known = json_object_get(sum, name);
        json_t *both = known ? cr_schema_both(c, known, schema, keyword) : json_incref(schema);
        if (!both) {
            ok = false;
            break;
        }
        json_object_set_new(sum, name, both);
    }
    json_object_set_new(to, "properties", sum);
    return ok;
}

/* Bounds: the stricter one. */
static bool join_bound(json_t *to, const char *key, json_t *v)
{
    json_t *have = json_object_get(to, key);
    bool min = strncmp(key, "min", 3) == 0 || strcmp(key, "exclusiveMinimum") == 0;
    if (!json_is_number(have) || !json_is_number(v))
        return false;
    bool take = min ? json_number_value(v) > json_number_value(have)
                    : json_number_value(v) < json_number_value(have);
    return !take || json_object_set(to, key, v) == 0;
}

static bool is_bound(const char *key)
{
    return strncmp(key, "min", 3) == 0 || strncmp(key, "max", 3) == 0 ||
           strncmp(key, "exclusiveM", 10) == 0;
}

/* additionalProperties of one schema is about what only the other declares: that is not joined. */
static bool closed_fits(json_t *closed, json_t *other)
{
    const char *name;
    json_t *v;
    json_t *additional = json_object_get(closed, "additionalProperties");
    if (!additional || json_is_true(additional))
        return true;
    json_object_foreach(json_object_get(other, "properties"), name, v)
    {
        if (!json_object_get(json_object_get(closed, "properties"), name))
            return false;
    }
    return true;
}

/* "items" is about what "prefixItems" of the same schema leaves: those of two are not joined. */
static bool items_fit(json_t *a, json_t *b)
{
    static const char *const names[] = {"items", "prefixItems", "additionalItems"};
    bool in_a = false, in_b = false, differ = false;
    for (size_t i = 0; i < 3; i++) {
        json_t *x = json_object_get(a, names[i]), *y = json_object_get(b, names[i]);
        in_a |= x != NULL;
        in_b |= y != NULL;
        differ |= !x != !y || (x && !json_equal(x, y));
    }
    return !(in_a && in_b && differ);
}

static bool join_keyword(struct cr_compiler *c, json_t *to, const char *key, json_t *v,
                         const char *keyword)
{
    json_t *have = json_object_get(to, key);
    if (!have || is_note(key))
        return json_object_set(to, key, v) == 0;
    if (json_equal(have, v))
        return true;
    if (strcmp(key, "required") == 0 && json_is_array(have) && json_is_array(v))
        return union_required(to, v);
    if (strcmp(key, "properties") == 0 && json_is_object(have) && json_is_object(v))
        return join_properties(c, to, v, keyword);
    if (is_bound(key) && join_bound(to, key, v))
        return true;
    if (strcmp(key, "additionalProperties") == 0 && (json_is_boolean(have) || json_is_boolean(v)))
        return json_is_false(have) || json_is_true(v) || json_object_set(to, key, v) == 0;
    return cr_schema_refuse(c, keyword, "two schemas with different %s at once", key);
}

/* A schema without $ref at its top. A new reference. */
static json_t *without_ref(struct cr_compiler *c, json_t *s, const char *keyword)
{
    json_t *ref = json_object_get(s, "$ref");
    if (!ref)
        return json_incref(s);
    json_t *target = json_is_string(ref) ? cr_schema_target(c, json_string_value(ref)) : NULL;
    if (!target || ++c->depth > CR_SCHEMA_MAX_DEPTH) {
        cr_schema_refuse(c, "$ref", "leads back to itself at once");
        return NULL;
    }
    json_t *rest = json_copy(s);
    json_object_del(rest, "$ref");
    json_t *both = cr_schema_both(c, rest, target, keyword);
    json_decref(rest);
    if (both) {
        json_array_append(c->keep, both);
        json_t *next = without_ref(c, both, keyword);
        json_decref(both);
        both = next;
    }
    c->depth--;
    return both;
}

json_t *cr_schema_both(struct cr_compiler *c, json_t *a, json_t *b, const char *keyword)
{
    if (json_is_false(a) || json_is_false(b))
        return json_false();
    if (says_nothing(a))
        return json_incref(b);
    if (says_nothing(b))
        return json_incref(a);
    if (!json_is_object(a) || !json_is_object(b)) {
        cr_schema_refuse(c, keyword, "want schemas");
        return NULL;
    }
    if (++c->depth > CR_SCHEMA_MAX_DEPTH) {
        cr_schema_refuse(c, keyword, "schemas are nested too deep");
        return NULL;
    }
    json_t *x = without_ref(c, a, keyword), *y = x ? without_ref(c, b, keyword) : NULL, *sum = NULL;
    if (x && y && json_is_object(x) && json_is_object(y)) {
        const char *key;
        json_t *v;
        bool ok = closed_fits(x, y) && closed_fits(y, x);
        if (!ok)
            cr_schema_refuse(c, keyword,
                             "additionalProperties beside properties of another schema");
        if (ok && !(ok = items_fit(x, y)))
            cr_schema_refuse(c, keyword, "items of two schemas at once");
        sum = json_copy(x);
        bool typed = json_object_get(x, "type") && json_object_get(y, "type");
        if (typed)
            json_object_set_new(sum, "type", both_types(c, x, y));
        json_object_foreach(y, key, v)
        {
            if (ok && !(typed && strcmp(key, "type") == 0))
                ok = join_keyword(c, sum, key, v, keyword);
        }
        if (ok && typed && json_array_size(json_object_get(sum, "type")) == 0) {
            json_decref(sum);
            sum = json_false();
        }
        if (!ok) {
            json_decref(sum);
            sum = NULL;
        }
    } else if (x && y) {
        sum = json_is_false(x) || json_is_false(y) ? json_false()
              : json_is_object(x)                  ? json_incref(x)
                                                   : json_incref(y);
    }
    json_decref(x);
    json_decref(y);
    c->depth--;
    return sum;
}

/* ---- disjointness ------------------------------------------------------------------------- */

static json_t *literals_of(json_t *schema)
{
    json_t *one = json_object_get(schema, "const"), *many = json_object_get(schema, "enum");
    return one ? json_pack("[O]", one) : many ? json_incref(many) : NULL;
}

static bool equal_values(json_t *a, json_t *b)
{
    return json_equal(a, b) ||
           (json_is_number(a) && json_is_number(b) && json_number_value(a) == json_number_value(b));
}

static bool different_literals(json_t *a, json_t *b)
{
    json_t *x = literals_of(a), *y = literals_of(b), *v, *w;
    size_t i, k;
    bool different = x && y;
    json_array_foreach(x, i, v)
    {
        json_array_foreach(y, k, w) different = different && !equal_values(v, w);
    }
    json_decref(x);
    json_decref(y);
    return different;
}

static bool requires_name(json_t *schema, const char *name)
{
    json_t *required = json_object_get(schema, "required"), *one;
    size_t i;
    json_array_foreach(required, i, one)
    {
        if (json_is_string(one) && strcmp(json_string_value(one), name) == 0)
            return true;
    }
    return false;
}

static bool disjoint_types(struct cr_compiler *c, json_t *a, json_t *b)
{
    unsigned x, y, numbers = 1u << CR_T_NUMBER | 1u << CR_T_INTEGER;
    if (!json_object_get(a, "type") || !json_object_get(b, "type") || !cr_schema_types(c, a, &x) ||
        !cr_schema_types(c, b, &y))
        return false;
    x |= x & numbers ? numbers : 0;
    y |= y & numbers ? numbers : 0;
    return (x & y) == 0;
}

bool cr_schema_disjoint(struct cr_compiler *c, json_t *a, json_t *b)
{
    json_t *x = json_is_object(a) ? without_ref(c, a, "oneOf") : json_incref(a);
    json_t *y = json_is_object(b) ? without_ref(c, b, "oneOf") : json_incref(b);
    const char *name;
    json_t *schema;
    bool disjoint = json_is_false(x) || json_is_false(y);
    if (x && y && json_is_object(x) && json_is_object(y)) {
        disjoint = disjoint_types(c, x, y) || different_literals(x, y);
        /* Objects that are told apart by a property which both must have. */
        bool objects = json_object_get(x, "type") && json_object_get(y, "type");
        json_object_foreach(json_object_get(x, "properties"), name, schema)
        {
            json_t *other = json_object_get(json_object_get(y, "properties"), name);
            if (objects && !disjoint && other && requires_name(x, name) && requires_name(y, name))
                disjoint = different_literals(schema, other) || disjoint_types(c, schema, other);
        }
    }
    json_decref(x);
    json_decref(y);
    return disjoint;
}
