/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What most verbs need: the model that the options name (or the embedded one), with adapters and a
 * palette summed into one delta; a session; the summary line.
 */
#ifndef CR_COMMON_H
#define CR_COMMON_H

#include "crayon.h"
#include "options.h"

struct cr_setup {
    cr_model *model;
    char *model_path; /* as found */
    cr_adapter **adapters;
    float *scales; /* [n_adapters], as --adapter FILE:SCALE */
    size_t n_adapters;
    cr_palette *palette;        /* of --palette, or NULL */
    cr_pool *pool;              /* of the palette, or NULL */
    cr_delta *delta;            /* all of it summed; NULL: the base model */
    struct cr_compute *compute; /* of --device, or NULL */
    double load_ms;
};

enum {
    CR_SETUP_VOCAB = 1,    /* the tokenizer only */
    CR_SETUP_ADAPTERS = 8, /* read --adapter only */
    CR_SETUP_DELTA = 2,    /* read --adapter and --palette, which the verb takes */
    CR_SETUP_SILENT = 4,   /* do not say which model is used when -m is absent */
};

/* Opens what the options name. Close with cr_setup_close in both cases. */
enum cr_status cr_setup_open(struct cr_setup *s, const struct cr_args *a, unsigned flags,
                             struct cr_error *err);
void cr_setup_close(struct cr_setup *s);
/* Opens the pool of a palette that keeps the base model too: its index tells how far a question
 * lies from the palette's task. Nothing to do without a palette or where the pool is open. */
enum cr_status cr_setup_scope(struct cr_setup *s, struct cr_error *err);

/* The file for a model's name: as given if it exists; a name without a slash also in the models
 * folder, with and without ".gguf". name NULL: the embedded model. Free *path with cr_free. */
enum cr_status cr_model_locate(const char *name, char **path, struct cr_error *err);
/* $XDG_DATA_HOME/crayon/models, else $HOME/.local/share/crayon/models (a relative variable is
 * ignored). Free with cr_free. NULL: there is no home, or out of memory. */
char *cr_models_dir(void);
/* The pool that lies beside a model: DIR/STEM-pool.gguf, where STEM is the model's file name
 * without ".gguf" and, if that is not there, without its last "-part" too; else the pool for just
 * that file name that comes with the program. NULL: there is none. Free with cr_free. */
char *cr_pool_beside(const char *model_path);
/* "FILE:SCALE" or "FILE" (scale 1). A file that exists under the whole name is taken whole. Free
 * *path with cr_free. */
enum cr_status cr_split_scale(const char *text, char **path, float *scale, struct cr_error *err);

/* A session for `need` tokens (0: the model's own context, at most 4096), or for --ctx if that is
 * given. Free with cr_session_free. */
enum cr_status cr_setup_session(const struct cr_setup *s, const struct cr_args *a, size_t need,
                                cr_session **out, struct cr_error *err);

/* --type, one of the verb's choices, as a CR_* type. */
uint32_t cr_cli_type(const struct cr_args *a);

/* Eight hex digits of the SHA-256 of n floats. */
void cr_floats_hash(const float *v, size_t n, char out[9]);
/* The same of the session's last logits; "-" when there are none. */
void cr_logits_hash(const cr_session *s, char out[9]);
/* Bytes of the process that were in memory at most (mapped files included). */
uint64_t cr_peak_bytes(void);
/* The line that ends every run, on standard error unless --quiet:
 * "9+64 tokens, prefill 812.0 tok/s, decode 210.3 tok/s, 3.61 GB/s, peak 41.2 MiB, logits 5f3a9c01"
 * decode_tokens 0: the decode and GB/s parts are left out; logits NULL or "-": that part. */
void cr_summary(const struct cr_model_info *info, size_t prefill_tokens, double prefill_ms,
                size_t decode_tokens, double decode_ms, const char *logits);
/* "12.3 MiB", "512 B"; out of 16 bytes is enough. */
const char *cr_bytes_text(uint64_t bytes, char out[16]);

/* Text of --prompt, else all of standard input (at most 16 MiB) without its last line end. Free
 * *text with cr_free. */
enum cr_status cr_read_prompt(const struct cr_args *a, char **text, size_t *len,
                              struct cr_error *err);

#endif
