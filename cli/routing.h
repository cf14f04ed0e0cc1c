/* SPDX-License-Identifier: Apache-2.0 */
/* The routing options of run, serve and route calibrate as a router. Only with CRAYON_ROUTE. */
#ifndef CR_CLI_ROUTING_H
#define CR_CLI_ROUTING_H

#include "options.h"
#include "route/route.h"

/* Makes a router from --upstream and what belongs to it. *out is NULL without --upstream. The keys
 * are kept by the router alone. Free with cr_router_free. */
enum cr_status cr_routing_open(cr_router **out, const struct cr_args *a, struct cr_error *err);

#endif
