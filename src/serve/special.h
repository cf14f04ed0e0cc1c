/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs that run the model in another way than token by token. They have a thread of their own:
 * answers go on beside them, for the threads of the model take work from several callers by turns.
 */
#ifndef CR_SPECIAL_H
#define CR_SPECIAL_H

#include "serve/job.h"

void cr_special_embed(cr_worker *w, struct cr_job *j); /* embed.c */
void cr_special_blend(cr_worker *w, struct cr_job *j); /* blend.c */

#endif
