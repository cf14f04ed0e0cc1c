/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of libcurl that we call; see base/lazy.h. Include it instead of theirs. */
#ifndef CR_CURL_CALLS_H
#define CR_CURL_CALLS_H

#include "base/lazy.h"

#include <curl/curl.h>
#include <stdbool.h>

/* Opens libcurl and starts it, once: before any other call of it. CR_NOT_FOUND, CR_INTERNAL. */
enum cr_status cr_curl_load(struct cr_error *err);

/* What keeps every transfer of ours safe: http and https alone, the peer's certificate checked
 * (against ca_file alone, where given), no proxy, password file or way of signing in from the
 * environment, no signals. False when libcurl refuses one of them. */
bool cr_curl_guard(CURL *e, const char *url, const char *ca_file);

#ifdef CRAYON_LAZY
#undef curl_easy_getinfo /* macros of the header that check types, where it is linked */
#undef curl_easy_setopt

#define CR_CURL_CALLS(X)                                                                           \
    X(curl_easy_cleanup);                                                                          \
    X(curl_easy_getinfo);                                                                          \
    X(curl_easy_header);                                                                           \
    X(curl_easy_init);                                                                             \
    X(curl_easy_perform);                                                                          \
    X(curl_easy_setopt);                                                                           \
    X(curl_easy_strerror);                                                                         \
    X(curl_free);                                                                                  \
    X(curl_global_init);                                                                           \
    X(curl_multi_add_handle);                                                                      \
    X(curl_multi_cleanup);                                                                         \
    X(curl_multi_info_read);                                                                       \
    X(curl_multi_init);                                                                            \
    X(curl_multi_perform);                                                                         \
    X(curl_multi_poll);                                                                            \
    X(curl_multi_remove_handle);                                                                   \
    X(curl_slist_append);                                                                          \
    X(curl_slist_free_all);                                                                        \
    X(curl_url);                                                                                   \
    X(curl_url_cleanup);                                                                           \
    X(curl_url_get);                                                                               \
    X(curl_url_set);                                                                               \
    X(curl_version_info)

struct cr_curl {
    CR_CURL_CALLS(CR_LAZY_FIELD);
};
extern struct cr_curl cr_curl;

#ifndef CR_LAZY_LISTS
#define curl_easy_cleanup cr_curl.curl_easy_cleanup
#define curl_easy_getinfo cr_curl.curl_easy_getinfo
#define curl_easy_header cr_curl.curl_easy_header
#define curl_easy_init cr_curl.curl_easy_init
#define curl_easy_perform cr_curl.curl_easy_perform
#define curl_easy_setopt cr_curl.curl_easy_setopt
#define curl_easy_strerror cr_curl.curl_easy_strerror
#define curl_free cr_curl.curl_free
#define curl_global_init cr_curl.curl_global_init
#define curl_multi_add_handle cr_curl.curl_multi_add_handle
#define curl_multi_cleanup cr_curl.curl_multi_cleanup
#define curl_multi_info_read cr_curl.curl_multi_info_read
#define curl_multi_init cr_curl.curl_multi_init
#define curl_multi_perform cr_curl.curl_multi_perform
#define curl_multi_poll cr_curl.curl_multi_poll
#define curl_multi_remove_handle cr_curl.curl_multi_remove_handle
#define curl_slist_append cr_curl.curl_slist_append
#define curl_slist_free_all cr_curl.curl_slist_free_all
#define curl_url cr_curl.curl_url
#define curl_url_cleanup cr_curl.curl_url_cleanup
#define curl_url_get cr_curl.curl_url_get
#define curl_url_set cr_curl.curl_url_set
#define curl_version_info cr_curl.curl_version_info

#endif
#endif
#endif
