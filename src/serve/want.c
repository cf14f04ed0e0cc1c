/* SPDX-License-Identifier: Apache-2.0 */
/* What a request wants its answer to look like, as one grammar: a schema, any JSON, or tool calls.
 */
#include "serve/schema_impl.h"

#include "base/mem.h"
#include "base/sha256.h"

#include <string.h>

static struct cr_compiler *compiler_new(const char *param, json_t *root, struct cr_api_error *e)
{
    struct cr_compiler *c = cr_alloc0(1, sizeof *c);
    struct cr_error err;
    *e = (struct cr_api_error){0};
    if (c && cr_grammar_new(&c->g, &err) == CR_OK) {
        c->param = param;
        c->root = root;
        c->e = e;
        c->keep = json_array();
        return c;
    }
    cr_free(c);
    cr_api_error_set(e, 503, NULL, NULL, "out of memory");
    return NULL;
}

/* Ends the compilation at rule `root`; frees c. */
static enum cr_status finish(struct cr_compiler *c, bool ok, uint32_t root, cr_grammar **out)
{
    *out = NULL;
    if (ok && cr_grammar_close(c->g, root))
        *out = cr_grammar_ref(c->g);
    else if (ok && cr_grammar_failed(c->g))
        cr_schema_refuse(c, "(size)", "the schema is too large");
    else if (ok)
        cr_schema_refuse(c, "(all)", "no instance can match it");
    else if (!c->e->http)
        cr_api_error_set(c->e, 503, NULL, NULL, "out of memory");
    enum cr_status status = *out ? CR_OK : CR_UNSUPPORTED;
    cr_grammar_unref(c->g);
    json_decref(c->keep);
    cr_free(c);
    return status;
}

/* Some tokenizers cannot begin a text without a blank. */
static uint32_t with_blank(struct cr_compiler *c, uint32_t value)
{
    uint32_t rule = cr_rule_new(c->g);
    struct cr_row r;
    cr_row_init(&r, c->g);
    cr_row_rule(&r, c->gap);
    cr_row_rule(&r, value);
    cr_rule_add(&r, rule);
    return rule;
}

enum cr_status cr_schema_compile(cr_grammar **out, json_t *schema, const char *param,
                                 struct cr_api_error *e)
{
    struct cr_compiler *c = compiler_new(param, schema, e);
    uint32_t rule = 0;
    *out = NULL;
    if (!c)
        return CR_NO_MEMORY;
    bool ok = cr_schema_rule(c, schema, &rule);
    return finish(c, ok, ok ? with_blank(c, rule) : 0, out);
}

enum cr_status cr_json_grammar(cr_grammar **out, struct cr_api_error *e)
{
    json_t *schema = json_pack("{s:s}", "type", "object");
    enum cr_status status = cr_schema_compile(out, schema, "response_format", e);
    json_decref(schema);
    return status;
}

/* ---- tools -------------------------------------------------------------------------------- */

/* \n{"name": "NAME", "arguments": {...}}\n</tool_call> */
static bool call_rule(struct cr_compiler *c, json_t *tool, uint32_t rule)
{
    static const char *const pieces[] = {"\n{\"name\": \"",
                                         "\", \"arguments\": ", "}\n</tool_call>"};
    const char *name = json_string_value(json_object_get(tool, "name"));
    json_t *schema = json_object_get(tool, "parameters");
    struct cr_row r;
    uint32_t arguments;
    json_t *object = json_pack("{s:s}", "type", "object");
    json_array_append_new(c->keep, object);
    c->root = schema;
    c->n_refs = 0;
    /* Arguments are an object whatever the schema says. */
    json_t *both = cr_schema_both(c, schema, object, "parameters");
    if (!both)
        return false;
    json_array_append_new(c->keep, both);
    if (!cr_schema_rule(c, both, &arguments))
        return false;
    cr_row_init(&r, c->g);
    cr_row_text(&r, pieces[0], strlen(pieces[0]));
    cr_row_text(&r, name, strlen(name));
    cr_row_text(&r, pieces[1], strlen(pieces[1]));
    cr_row_rule(&r, arguments);
    cr_row_text(&r, pieces[2], strlen(pieces[2]));
    cr_rule_add(&r, rule);
    return true;
}

/* auto: what follows "<tool_call>"; else the whole text, one call or more. */
static enum cr_status tools_grammar(cr_grammar **out, const struct cr_api_request *q,
                                    struct cr_api_error *e)
{
    struct cr_compiler *c = compiler_new("tools", NULL, e);
    json_t *tool;
    size_t i, n = 0;
    *out = NULL;
    if (!c)
        return CR_NO_MEMORY;
    cr_schema_json_rules(c);
    uint32_t call = cr_rule_new(c->g), root = call;
    bool ok = true, named = q->tool_choice == CR_TOOLS_NAMED;
    json_array_foreach(q->tools, i, tool)
    {
        const char *name = json_string_value(json_object_get(tool, "name"));
        if (!ok || (named && strcmp(name, q->tool_name) != 0))
            continue;
        ok = call_rule(c, tool, call);
        n++;
    }
    if (ok && n == 0) {
        cr_api_error_set(e, 400, "tool_choice", NULL, "tool_choice: there is no tool %.64s",
                         q->tool_name ? q->tool_name : "");
        ok = false;
    }
    if (q->tool_choice != CR_TOOLS_AUTO) {
        struct cr_row r;
        uint32_t more = cr_rule_new(c->g);
        root = cr_rule_new(c->g);
        cr_row_init(&r, c->g);
        cr_row_text(&r, "\n<tool_call>", 12);
        cr_row_rule(&r, call);
        cr_rule_add(&r, more);
        cr_row_text(&r, "<tool_call>", 11);
        cr_row_rule(&r, call);
        if (q->parallel_tools && !named)
            cr_row_repeat(&r, more, 0, 7);
        cr_rule_add(&r, root);
    }
    return finish(c, ok, root, out);
}

/* ---- requests ----------------------------------------------------------------------------- */

static const char *param_of(const struct cr_api_request *q)
{
    return q->kind == CR_API_RESPONSES                                          ? "text.format"
           : q->kind == CR_API_OLLAMA_CHAT || q->kind == CR_API_OLLAMA_GENERATE ? "format"
                                                                                : "response_"
                                                                                  "format";
}

static bool add_json(struct cr_sha256 *h, json_t *v)
{
    size_t n = 0;
    char *text = v ? cr_api_string(v, &n) : NULL;
    cr_sha256_add(h, text ? text : "", n);
    cr_free(text);
    return text != NULL;
}

bool cr_grammar_key(const struct cr_api_request *q, char key[65])
{
    struct cr_sha256 h;
    uint8_t head[4] = {(uint8_t)q->format, (uint8_t)q->tool_choice, q->parallel_tools, q->kind};
    if (q->format == CR_FORMAT_TEXT && q->tool_choice == CR_TOOLS_NONE)
        return false;
    cr_sha256_init(&h);
    cr_sha256_add(&h, head, sizeof head);
    if (q->format == CR_FORMAT_SCHEMA)
        add_json(&h, q->schema);
    if (q->tool_choice != CR_TOOLS_NONE)
        add_json(&h, q->tools);
    if (q->tool_name)
        cr_sha256_add(&h, q->tool_name, strlen(q->tool_name));
    cr_sha256_hex(&h, key);
    return true;
}

enum cr_status cr_grammar_of_request(cr_grammar **out, const struct cr_api_request *q,
                                     struct cr_api_error *e)
{
    if (q->tool_choice != CR_TOOLS_NONE)
        return tools_grammar(out, q, e);
    if (q->format == CR_FORMAT_SCHEMA)
        return cr_schema_compile(out, q->schema, param_of(q), e);
    return cr_json_grammar(out, e);
}
