/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that the program opens when it needs it, linked: packaging/debian/rules shows this module to
 * dpkg-shlibdeps, which reads the package's dependencies off it. It is not installed.
 */
#define CR_LAZY_LISTS
#include "route/curl_calls.h"
#include "route/sqlite_calls.h"
#include "serve/http_calls.h"

#define NEED(name) *out++ = (void (*)(void))name

__attribute__((visibility("default"))) void cr_needs(void (**out)(void));

void cr_needs(void (**out)(void))
{
    CR_CURL_CALLS(NEED);
    CR_SQLITE_CALLS(NEED);
    CR_HTTP_CALLS(NEED);
}
