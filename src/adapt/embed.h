/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task embeddings of one example, from the tokens of its context and its question (the template's
 * own tokens, such as "Question:", and the options are left out).
 *   CR_VIEW_QX      q_x = W_q . mean_t RMSNorm(E[x_t]), first layer, before RoPE, without bias:
 *                   one gather and one matrix-vector product. [q_dim]
 *   CR_VIEW_MIDDLE  mean over content tokens of the hidden state after layer n_layers / 2. [n_embd]
 */
#ifndef CR_EMBED_H
#define CR_EMBED_H

#include "adapt/examples.h"
#include "model/session.h"

enum cr_view { CR_VIEW_QX, CR_VIEW_MIDDLE };

const char *cr_view_name(enum cr_view v); /* "qx", "middle" */
int cr_view_by_name(const char *name);    /* -1 */
int cr_view_dim(const cr_model *m, enum cr_view v);
/* Layer whose output is the middle view: n_layers / 2 - 1, counted from 0. */
int cr_view_layer(const cr_model *m);
/* Fills out [n, cr_view_dim], one row per example, not centred. MIDDLE packs the examples through a
 * session of its own. */
enum cr_status cr_embed_examples(cr_model *m, enum cr_view v, const struct cr_example *e, size_t n,
                                 float *out, struct cr_error *err);

#endif
