/* SPDX-License-Identifier: Apache-2.0 */
/*
 * adapter_config.json of PEFT: which modules carry LoRA, with which rank and alpha. Keys that we
 * know to be harmless are skipped; any other key whose value is active (not null, false, "", [] or
 * {}) is refused by name, so that DoRA, biases or a setting of tomorrow cannot be lost in silence.
 */
#ifndef CR_PEFT_CONFIG_H
#define CR_PEFT_CONFIG_H

#include "adapt/lora_bind.h"

typedef struct cr_peft_config cr_peft_config;

/* Parses the text of a config. Settings that cannot be honoured go to `bad`, a file that makes no
 * sense at all is an error. `path` is used in messages. Free with cr_peft_config_free. */
enum cr_status cr_peft_config_parse(cr_peft_config **out, const char *json, size_t len,
                                    const char *path, struct cr_refusals *bad,
                                    struct cr_error *err);
void cr_peft_config_free(cr_peft_config *c);
bool cr_peft_config_rslora(const cr_peft_config *c);

/* Does the config put LoRA on module `key` ("model.layers.3.mlp.up_proj") of layer `layer`? Counts
 * the target entries that were hit. */
bool cr_peft_config_targets(cr_peft_config *c, const char *key, int layer);
/* Rank and alpha of a module: the first pattern that matches "(.*\.)?(PATTERN)$", else r and
 * lora_alpha. A rank that was refused is given as 0. */
void cr_peft_config_scale(cr_peft_config *c, const char *key, uint64_t *rank, double *alpha);
/* Refuses target entries that no call of cr_peft_config_targets hit and patterns that failed; warns
 * about patterns that matched nothing. */
void cr_peft_config_finish(const cr_peft_config *c, const char *path, struct cr_refusals *bad);

#endif
