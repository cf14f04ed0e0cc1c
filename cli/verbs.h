/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs of the program, one file each. Every function returns the exit code. */
#ifndef CR_VERBS_H
#define CR_VERBS_H

#include "options.h"

int cr_cli_run(const struct cr_args *a);
int cr_cli_tokenize(const struct cr_args *a);
int cr_cli_score(const struct cr_args *a);
int cr_cli_logits(const struct cr_args *a);
int cr_cli_info(const struct cr_args *a);
int cr_cli_adapter_check(const struct cr_args *a);
int cr_cli_adapter_info(const struct cr_args *a);
int cr_cli_adapter_convert(const struct cr_args *a);
int cr_cli_adapter_merge(const struct cr_args *a);
int cr_cli_pool_train(const struct cr_args *a);
int cr_cli_pool_info(const struct cr_args *a);
int cr_cli_pool_export(const struct cr_args *a);
int cr_cli_pool_convert(const struct cr_args *a);
int cr_cli_blend(const struct cr_args *a);
int cr_cli_eval(const struct cr_args *a);
int cr_cli_serve(const struct cr_args *a);
int cr_cli_route_explain(const struct cr_args *a);
int cr_cli_route_calibrate(const struct cr_args *a);
int cr_cli_ledger(const struct cr_args *a);
int cr_cli_pull(const struct cr_args *a);
int cr_cli_list(const struct cr_args *a);
int cr_cli_config_show(const struct cr_args *a);
int cr_cli_bench(const struct cr_args *a);
int cr_cli_doctor(const struct cr_args *a);
int cr_cli_version(const struct cr_args *a);
int cr_cli_completion(const struct cr_args *a);
int cr_cli_man(const struct cr_args *a);

#endif
