/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the schema compiler share. */
#ifndef CR_SCHEMA_IMPL_H
#define CR_SCHEMA_IMPL_H

#include "serve/pattern.h"
#include "serve/schema.h"

enum { CR_SCHEMA_MAX_DEPTH = 128, CR_SCHEMA_MAX_REFS = 1024 };

struct cr_compiler {
    cr_grammar *g;
    json_t *root;
    const char *param;
    struct cr_api_error *e;
    json_t *keep; /* array of schemas made on the way, so that they live as long as refs to them */
    struct cr_known_ref {
        json_t *schema;
        uint32_t rule;
        uint64_t bytes; /* bytes_before when it was begun */
        bool open;      /* being compiled */
    } refs[CR_SCHEMA_MAX_REFS];
    size_t n_refs;
    uint64_t bytes_before; /* grows with every byte that is certain: tells loops without one */
    int depth;
    /* rules of JSON itself; made at the first use */
    uint32_t space, gap, any_char, string, value, integer, number;
    bool has_json;
};

bool cr_schema_refuse(struct cr_compiler *c, const char *keyword, const char *fmt, ...)
    CR_PRINTF(3, 4);
void cr_schema_json_rules(struct cr_compiler *c);
bool cr_schema_rule(struct cr_compiler *c, json_t *schema, uint32_t *rule); /* schema.c */
/* numbers.c: adds alternatives to rule. */
/* whole: integers only. */
bool cr_schema_number(struct cr_compiler *c, json_t *schema, bool whole, uint32_t rule);
/* Literal JSON values, sharing their beginnings. */
bool cr_schema_literals(struct cr_compiler *c, json_t *values, uint32_t rule);
/* merge.c: a schema that means both; NULL: refused. A new reference. */
json_t *cr_schema_both(struct cr_compiler *c, json_t *a, json_t *b, const char *keyword);
/* No instance can match both. */
bool cr_schema_disjoint(struct cr_compiler *c, json_t *a, json_t *b);
json_t *cr_schema_target(struct cr_compiler *c, const char *ref); /* NULL: refused */
/* A bit for each type that "type" or the keywords allow: enum cr_type. */
enum cr_type {
    CR_T_NULL,
    CR_T_BOOL,
    CR_T_OBJECT,
    CR_T_ARRAY,
    CR_T_STRING,
    CR_T_INTEGER,
    CR_T_NUMBER,
    CR_T_COUNT
};
bool cr_schema_types(struct cr_compiler *c, json_t *schema, unsigned *types);

#endif
