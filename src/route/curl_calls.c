/* SPDX-License-Identifier: Apache-2.0 */
#include "route/curl_calls.h"

#include <pthread.h>

static CURLcode started = CURLE_FAILED_INIT;

static void start(void)
{
    started = curl_global_init(CURL_GLOBAL_DEFAULT);
}

#ifdef CRAYON_LAZY
struct cr_curl cr_curl;

CR_LAZY_NOTE(CR_LIBCURL, "http-client", "asks other servers, fetches models");

static void find(struct cr_lazy *lib)
{
    CR_CURL_CALLS(CR_LAZY_FIND);
}

static enum cr_status open_library(struct cr_error *err)
{
    static struct cr_lazy lib = {.file = CR_LIBCURL, .find = find};
    return cr_lazy_open(&lib, err);
}
#else
static enum cr_status open_library(struct cr_error *err)
{
    (void)err;
    return CR_OK;
}
#endif

enum cr_status cr_curl_load(struct cr_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    enum cr_status st = open_library(err);
    if (st != CR_OK)
        return st;
    pthread_once(&once, start);
    return started == CURLE_OK ? CR_OK
                               : cr_error_set(err, CR_INTERNAL, "libcurl does not start: %s",
                                              curl_easy_strerror(started));
}

bool cr_curl_guard(CURL *e, const char *url, const char *ca_file)
{
    int bad = 0;
#define SET(option, value) bad |= curl_easy_setopt(e, option, value) != CURLE_OK
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_HTTPAUTH, (long)CURLAUTH_NONE);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    if (ca_file) {
        SET(CURLOPT_CAINFO, ca_file);
        SET(CURLOPT_CAPATH, NULL);
    }
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_USERAGENT, "crayon/" CR_VERSION);
#undef SET
    return !bad;
}
