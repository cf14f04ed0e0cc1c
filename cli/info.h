/* SPDX-License-Identifier: Apache-2.0 */
/* Describing files, shared by info, adapter info and pool info. */
#ifndef CR_INFO_H
#define CR_INFO_H

#include "facts.h"
#include "model/gguf.h"
#include "options.h"

enum cr_info_kind { CR_INFO_MODEL, CR_INFO_LORA, CR_INFO_PEFT, CR_INFO_POOL, CR_INFO_PALETTE };
enum { CR_INFO_ANY = 31 };

/* Prints what `path` is, refusing kinds whose bit (1 << kind) is not in `kinds`. Returns the exit
 * code. */
int cr_info_print(const struct cr_args *a, const char *path, unsigned kinds);
enum cr_info_kind cr_info_gguf_kind(const cr_gguf *g);
const char *cr_info_kind_name(enum cr_info_kind kind);
/* list.c: the models folder and what is in it. */
void cr_list_models(struct cr_facts *f);
/* Weights as bars, one line each; text only. */
void cr_bars(struct cr_facts *f, const float *w, int n);

#endif
