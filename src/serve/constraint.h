/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Constrained decoding: which tokens keep the text inside a grammar. See grammar.h for the grammar
 * and schema.h for how a JSON schema becomes one.
 */
#ifndef CR_CONSTRAINT_H
#define CR_CONSTRAINT_H

#include "serve/schema.h"

typedef struct cr_token_tree cr_token_tree; /* all tokens of a model by their bytes */
typedef struct cr_constraint cr_constraint; /* one text on its way */

enum cr_status cr_token_tree_new(cr_token_tree **out, const cr_model *m, struct cr_error *err);
void cr_token_tree_free(cr_token_tree *t);

/* At the beginning of the grammar's language; holds a reference to g. All constraints of a tree
 * belong to one thread. */
enum cr_status cr_constraint_new(cr_constraint **out, cr_token_tree *t, cr_grammar *g,
                                 struct cr_error *err);
void cr_constraint_free(cr_constraint *c);
/* Back to the beginning. */
bool cr_constraint_reset(cr_constraint *c);
/* Sets the logits of tokens that would leave the language to -infinity. False: nothing is left, or
 * out of memory. */
bool cr_constraint_mask(cr_constraint *c, const cr_model *m, float *logits);
/* Goes on by bytes; false when they leave the language (nothing is changed then). */
bool cr_constraint_accept(cr_constraint *c, const char *bytes, size_t n);
bool cr_constraint_may_end(const cr_constraint *c);  /* the text is whole */
bool cr_constraint_must_end(const cr_constraint *c); /* and nothing can follow */

#endif
