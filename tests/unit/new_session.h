/* SPDX-License-Identifier: Apache-2.0 */
/* A session, or a failed test that says why there is none. Include after cmocka.h. */
#ifndef CR_TEST_NEW_SESSION_H
#define CR_TEST_NEW_SESSION_H

#include "model/session.h"

static inline cr_session *new_session(cr_model *m, int n_ctx)
{
    cr_session *s;
    struct cr_error err;
    if (cr_session_new(&s, m, n_ctx, &err) != CR_OK)
        fail_msg("%s", err.msg);
    return s;
}

#endif
