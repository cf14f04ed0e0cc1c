/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON schema (2020-12 and what older drafts share with it) as a grammar whose every text is a
 * valid instance. The grammar may allow less than the schema does: properties come in the order of
 * the schema, numbers have at most 15 digits. A keyword that cannot be honoured is an error that
 * names it. docs/api.md lists what is supported.
 */
#ifndef CR_SCHEMA_H
#define CR_SCHEMA_H

#include "serve/grammar.h"

/* CR_UNSUPPORTED: *e names the keyword and where it stands; param is for the error. */
enum cr_status cr_schema_compile(cr_grammar **out, json_t *schema, const char *param,
                                 struct cr_api_error *e);
/* Any JSON object. */
enum cr_status cr_json_grammar(cr_grammar **out, struct cr_api_error *e);
/* What a request wants its answer to be: false when that is free text. key: SHA-256 of it. */
bool cr_grammar_key(const struct cr_api_request *q, char key[65]);
enum cr_status cr_grammar_of_request(cr_grammar **out, const struct cr_api_request *q,
                                     struct cr_api_error *e);

#endif
