/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving the device needs a yes. Only with CRAYON_ROUTE. */
#ifndef CR_CONSENT_H
#define CR_CONSENT_H

#include "route/preview.h"

enum cr_consent {
    CR_CONSENT_YES,
    CR_CONSENT_NO,    /* a person said no */
    CR_CONSENT_NO_ONE /* there is no terminal to ask at */
};

/* Shows the preview on standard error and, without `yes`, asks at the terminal. With `yes` and
 * --quiet nothing is shown. */
enum cr_consent cr_consent_ask(const struct cr_outgoing *out, bool yes);
/* The question alone, after the caller showed what it is about. */
enum cr_consent cr_consent_question(const char *question);

#endif
