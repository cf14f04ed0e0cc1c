/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs that run the model in another way than token by token. Worker's thread, between passes. */
#ifndef CR_SPECIAL_H
#define CR_SPECIAL_H

#include "serve/job.h"

void cr_special_embed(cr_worker *w, struct cr_job *j); /* embed.c */

#endif
