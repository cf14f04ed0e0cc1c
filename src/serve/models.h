/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What clients can ask for: the model, and its palettes and adapters as "MODEL:NAME". A target
 * lives as long as someone holds a reference, so that one can be replaced or removed while answers
 * are made with it. Thread-safe.
 */
#ifndef CR_MODELS_H
#define CR_MODELS_H

#include "adapt/worked.h"

#include <jansson.h>
#include <stdatomic.h>

struct cr_palette;
typedef struct cr_shelf cr_shelf;

struct cr_target {
    atomic_int refs;
    char *name;            /* "" for the model itself */
    char *path;            /* of the file, "" when there is none */
    char sha256[65];       /* of the file or of the palette's text; "" for the model itself */
    const cr_delta *delta; /* NULL: the base model */
    cr_delta *owned;       /* the same, when it is this target's */
    const struct cr_palette *palette; /* or NULL; what routing needs */
    const cr_pool *pool;              /* of the palette, or NULL */
    struct cr_worked worked;          /* stand in front of each question; owned */
    cr_model *model;
    int64_t created; /* Unix seconds */
};

enum { CR_SHELF_MAX = 256 };

enum cr_status cr_shelf_new(cr_shelf **out, cr_model *m, const char *model_name,
                            struct cr_error *err);
void cr_shelf_free(cr_shelf *s);
/* The adapters of the model itself, borrowed, with their scales. */
struct cr_shelf_adapter {
    const cr_adapter *adapter;
    const char *path;
    float scale;
};
enum cr_status cr_shelf_set_adapters(cr_shelf *s, const struct cr_shelf_adapter *v, size_t n,
                                     struct cr_error *err);
/* New scales for the model itself; ids that are not named get 0. */
enum cr_status cr_shelf_set_scales(cr_shelf *s, const int *ids, const float *scales, size_t n,
                                   struct cr_error *err);
/* The model with these scales, for one request. */
enum cr_status cr_shelf_with_scales(cr_shelf *s, const int *ids, const float *scales, size_t n,
                                    struct cr_target **out, struct cr_error *err);
json_t *cr_shelf_adapters_json(cr_shelf *s);

/* 1 to 128 bytes that fit into a model's name and an address. */
bool cr_shelf_is_name(const char *name);
/* Opens a palette, a GGUF adapter or a PEFT directory and serves it under name (NULL: from the
 * file's name); an entry of that name is replaced unless it must be new. */
enum cr_status cr_shelf_load(cr_shelf *s, const char *name, const char *path, bool is_new,
                             struct cr_error *err);
enum cr_status cr_shelf_unload(cr_shelf *s, const char *name, struct cr_error *err);
/* Opens every file again that has changed; what cannot be opened stays as it was and is named in
 * err. *n_changed may be NULL. */
enum cr_status cr_shelf_reload(cr_shelf *s, size_t *n_changed, struct cr_error *err);
/* A target with this delta (taken, also on failure), not on the shelf. */
struct cr_target *cr_shelf_make(cr_shelf *s, const char *name, cr_delta *delta,
                                struct cr_error *err);
/* Puts t on the shelf (takes the reference). */
enum cr_status cr_shelf_put(cr_shelf *s, struct cr_target *t, struct cr_error *err);
/* The pool of this file, opened once and kept until the shelf goes; path NULL: the first that was
 * opened. NULL and err when there is none. */
const cr_pool *cr_shelf_pool(cr_shelf *s, const char *path, struct cr_error *err);

/* "MODEL", "MODEL:NAME", also "MODEL:latest"; a reference, or NULL. */
struct cr_target *cr_shelf_find(cr_shelf *s, const char *id);
struct cr_target *cr_target_ref(struct cr_target *t);
void cr_target_unref(struct cr_target *t);
cr_model *cr_target_model(const struct cr_target *t);
/* References to all, the model itself first; at most max. */
size_t cr_shelf_all(cr_shelf *s, struct cr_target **v, size_t max);
const char *cr_shelf_model_name(const cr_shelf *s);
/* "MODEL" or "MODEL:NAME"; free with cr_free. */
char *cr_shelf_id(const cr_shelf *s, const struct cr_target *t);
size_t cr_shelf_bytes(cr_shelf *s, size_t *n_palettes);

#endif
