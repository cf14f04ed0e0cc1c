/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of libmicrohttpd that we call; see base/lazy.h. Include it instead of theirs. */
#ifndef CR_HTTP_CALLS_H
#define CR_HTTP_CALLS_H

#include "base/lazy.h"

#include <microhttpd.h>

/* Opens libmicrohttpd: before any other call of it. CR_NOT_FOUND. */
enum cr_status cr_http_load(struct cr_error *err);

#ifdef CRAYON_LAZY
#define CR_HTTP_CALLS(X)                                                                           \
    X(MHD_add_response_header);                                                                    \
    X(MHD_create_response_from_buffer);                                                            \
    X(MHD_create_response_from_callback);                                                          \
    X(MHD_destroy_response);                                                                       \
    X(MHD_get_connection_info);                                                                    \
    X(MHD_get_connection_values);                                                                  \
    X(MHD_lookup_connection_value);                                                                \
    X(MHD_queue_response);                                                                         \
    X(MHD_resume_connection);                                                                      \
    X(MHD_start_daemon);                                                                           \
    X(MHD_stop_daemon);                                                                            \
    X(MHD_suspend_connection)

struct cr_http {
    CR_HTTP_CALLS(CR_LAZY_FIELD);
};
extern struct cr_http cr_http;

#ifndef CR_LAZY_LISTS
#define MHD_add_response_header cr_http.MHD_add_response_header
#define MHD_create_response_from_buffer cr_http.MHD_create_response_from_buffer
#define MHD_create_response_from_callback cr_http.MHD_create_response_from_callback
#define MHD_destroy_response cr_http.MHD_destroy_response
#define MHD_get_connection_info cr_http.MHD_get_connection_info
#define MHD_get_connection_values cr_http.MHD_get_connection_values
#define MHD_lookup_connection_value cr_http.MHD_lookup_connection_value
#define MHD_queue_response cr_http.MHD_queue_response
#define MHD_resume_connection cr_http.MHD_resume_connection
#define MHD_start_daemon cr_http.MHD_start_daemon
#define MHD_stop_daemon cr_http.MHD_stop_daemon
#define MHD_suspend_connection cr_http.MHD_suspend_connection

#endif
#endif
#endif
