/* SPDX-License-Identifier: Apache-2.0 */
/* Examples to weights to a target, by the solvers of adapt/blend.h. */
#include "serve/blend.h"

#include "adapt/palette.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "serve/special.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MAX_EXAMPLES = 256 };

/* ---- examples ------------------------------------------------------------------------------- */

/* The examples as lines of JSON, which the reader of files takes. key: of them and of how many
 * stand in front of a question. */
static enum cr_status read_examples(json_t *list, int worked, struct cr_examples *out, char key[65],
                                    struct cr_error *err)
{
    struct cr_buf b;
    struct cr_sha256 h;
    json_t *one;
    size_t i;
    bool ok = true;
    cr_buf_init(&b, (size_t)1 << 26);
    json_array_foreach(list, i, one) ok = ok && cr_api_dump(&b, "", one, "\n");
    enum cr_status status =
        ok ? cr_examples_parse(out, b.data, b.len, "examples", CR_EXAMPLES_JSONL, err)
           : cr_error_set(err, CR_NO_MEMORY, "out of memory");
    if (status == CR_OK && out->n == 0) {
        status = cr_error_set(err, CR_INVALID, "examples: there are none");
        cr_examples_deinit(out);
    }
    cr_sha256_init(&h);
    cr_sha256_add(&h, b.data ? b.data : "", b.len);
    if (worked > 0)
        cr_sha256_add(&h, &worked, sizeof worked);
    cr_sha256_hex(&h, key);
    cr_buf_deinit(&b);
    return status;
}

struct solved {
    enum cr_level level;
    struct cr_blend_options opt;
    struct cr_blend_result result;
    const cr_pool *pool;
    double apply_ms;
    struct cr_example worked[CR_WORKED_MAX]; /* [n_worked] stand in front; strings borrowed */
    size_t n_worked;
};

static enum cr_status solve(struct cr_job *j, const struct cr_examples *e, int worked,
                            const char *name, struct solved *s, struct cr_target **out,
                            struct cr_error *err)
{
    cr_model *m = j->target->model;
    cr_delta *delta = NULL;
    *out = NULL;
    s->pool = j->target->pool ? j->target->pool : cr_shelf_pool(j->shelf, NULL, err);
    if (!s->pool)
        return err->status;
    cr_level_options(s->level, s->pool, &s->opt);
    enum cr_status status = cr_blend_examples(m, s->pool, &s->opt, e->v, e->n, &s->result, err);
    double start = cr_now_ms();
    if (status == CR_OK)
        status = cr_pool_blend(&delta, s->pool, s->result.weights, err);
    s->apply_ms = cr_now_ms() - start;
    if (status == CR_OK && !(*out = cr_shelf_make(j->shelf, name, delta, err)))
        status = CR_NO_MEMORY;
    if (*out)
        (*out)->pool = s->pool;
    if (*out && worked > 0) {
        s->n_worked = cr_palette_take_worked(e->v, e->n, (size_t)worked, s->worked);
        status = cr_worked_init(&(*out)->worked, m, s->worked, s->n_worked, err);
    }
    return status;
}

/* ---- in a request --------------------------------------------------------------------------- */

void cr_blends_deinit(struct cr_blends *b)
{
    for (size_t i = 0; i < CR_BLENDS_KEPT; i++)
        cr_target_unref(b->v[i].target);
    *b = (struct cr_blends){0};
}

bool cr_blends_apply(struct cr_blends *b, struct cr_job *j, struct cr_api_error *e)
{
    struct cr_examples examples = {0};
    struct cr_error err = {.status = CR_OK};
    struct solved s = {.level = CR_LEVEL_INSTANT};
    struct cr_target *t = NULL;
    char key[65] = "", name[32];
    double start = cr_now_ms();
    enum cr_status status = read_examples(j->req.examples, j->req.worked, &examples, key, &err);
    bool read = status == CR_OK;
    struct cr_kept_blend *oldest = b->v;
    for (size_t i = 0; status == CR_OK && i < CR_BLENDS_KEPT && !t; i++) {
        if (b->v[i].target && strcmp(b->v[i].key, key) == 0) {
            b->v[i].used = ++b->clock;
            t = cr_target_ref(b->v[i].target);
        } else if (b->v[i].used < oldest->used) {
            oldest = &b->v[i];
        }
    }
    if (status == CR_OK && !t) {
        snprintf(name, sizeof name, "examples-%.12s", key);
        status = solve(j, &examples, j->req.worked, name, &s, &t, &err);
        cr_blend_result_deinit(&s.result);
        if (status == CR_OK) {
            memcpy(t->sha256, key, sizeof t->sha256);
            cr_target_unref(oldest->target);
            *oldest = (struct cr_kept_blend){.target = cr_target_ref(t), .used = ++b->clock};
            memcpy(oldest->key, key, sizeof key);
        }
    }
    if (read)
        cr_examples_deinit(&examples);
    if (status != CR_OK) {
        cr_target_unref(t);
        int http = status == CR_NOT_FOUND ? 400 : cr_status_http(status);
        cr_api_error_set(e, http, "crayon.examples", NULL, "crayon.examples: %s", err.msg);
        return false;
    }
    cr_target_unref(j->target);
    j->target = t;
    j->blend_ms = cr_now_ms() - start;
    return true;
}

/* ---- POST /v1/crayon/blend --------------------------------------------------------------------
 */

static json_t *real_or_null(float x)
{
    return isfinite(x) ? json_real((double)x) : json_null();
}

static json_t *report(struct cr_job *j, struct solved *s, struct cr_target *t, size_t n, double ms)
{
    const struct cr_blend_result *r = &s->result;
    json_t *weights = json_array();
    for (int i = 0; i < r->n; i++)
        json_array_append_new(weights, json_real((double)r->weights[i]));
    char *id = t->name[0] ? cr_shelf_id(j->shelf, t) : NULL;
    char created[32];
    time_t now = (time_t)t->created;
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", &tm);
    struct cr_palette p = {.name = t->name,
                           .base_hash = (char *)(uintptr_t)cr_model_hash(t->model),
                           .base_name = (char *)(uintptr_t)cr_model_info(t->model)->name,
                           .pool_hash = (char *)(uintptr_t)s->pool->hash,
                           .pool_path = s->pool->path,
                           .n = r->n,
                           .weights = r->weights,
                           .solver = s->opt.solver,
                           .level = s->level,
                           .view = s->opt.view,
                           .dim = r->q_c ? cr_view_dim(t->model, s->opt.view) : 0,
                           .q_c = r->q_c,
                           .scope_mean = r->scope_mean,
                           .scope_std = r->scope_std,
                           .near_mean = r->near_mean,
                           .near_std = r->near_std,
                           .n_examples = (int)n,
                           .before = NAN,
                           .after = NAN,
                           .loss_before = NAN,
                           .loss_after = NAN,
                           .metric = (char *)(uintptr_t) "",
                           .created = created,
                           .worked = {.v = s->worked, .n = s->n_worked}};
    struct cr_error err;
    size_t len;
    char *text = cr_palette_text(&p, "palette", &len, &err);
    json_t *palette = text ? json_loadb(text, len, 0, NULL) : NULL;
    cr_free(text);
    json_t *o =
        json_pack("{s:s?, s:o, s:o, s:I, s:s, s:s, s:s, s:f, s:f, s:f, s:f}", "model", id,
                  "palette", palette ? palette : json_null(), "weights", weights, "examples",
                  (json_int_t)n, "level", cr_level_name(s->level), "solver",
                  cr_solver_name(s->opt.solver), "view", cr_view_name(s->opt.view), "embed_ms",
                  r->embed_ms, "solve_ms", r->solve_ms, "apply_ms", s->apply_ms, "ms", ms);
    cr_free(id);
    if (o && r->nearest >= 0) {
        json_object_set_new(o, "nearest", json_string(s->pool->index.names[r->nearest]));
        json_object_set_new(o, "similarity", real_or_null(r->nearest_similarity));
    }
    if (o && s->opt.solver >= CR_SOLVE_PICK) {
        json_object_set_new(o, "loss_start", real_or_null(r->loss_start));
        json_object_set_new(o, "loss_end", real_or_null(r->loss_end));
        json_object_set_new(o, "evaluations", json_integer(r->n_evals));
    }
    return o;
}

static bool going(void *ud, const char *what, int done, int total)
{
    (void)what, (void)done, (void)total;
    return !cr_job_client_gone(ud);
}

void cr_special_blend(cr_worker *w, struct cr_job *j)
{
    struct cr_api_error e = {0};
    struct cr_error err = {.status = CR_OK};
    struct cr_examples examples;
    struct solved s = {.level = CR_LEVEL_INSTANT};
    struct cr_target *t = NULL;
    char key[65];
    double start = cr_now_ms();
    json_t *list = json_object_get(j->body, "examples");
    const char *level = json_string_value(json_object_get(j->body, "level"));
    const char *name = json_string_value(json_object_get(j->body, "name"));
    int by_name = level ? cr_level_by_name(level) : CR_LEVEL_INSTANT;
    json_t *some = json_object_get(j->body, "worked");
    json_int_t worked = json_is_integer(some) ? json_integer_value(some) : some ? -1 : 0;
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > MAX_EXAMPLES)
        cr_api_error_set(&e, 400, "examples", NULL, "examples: want an array of 1 to %d examples",
                         MAX_EXAMPLES);
    else if (by_name < 0 || by_name > CR_LEVEL_REFINED)
        cr_api_error_set(&e, 400, "level", NULL,
                         "level: want \"instant\", \"measured\" or \"refined\"");
    else if (worked < 0 || worked > CR_WORKED_MAX)
        cr_api_error_set(&e, 400, "worked", NULL, "worked: want 0 to %d", CR_WORKED_MAX);
    else if (name && !cr_shelf_is_name(name))
        cr_api_error_set(&e, 400, "name", NULL, "name: \"%.100s\" is no name for a palette", name);
    if (e.http) {
        cr_job_fail(j, &e);
        return;
    }
    s.level = (enum cr_level)by_name;
    s.opt.progress = going;
    s.opt.ud = j;
    enum cr_status status = read_examples(list, (int)worked, &examples, key, &err);
    if (status == CR_OK) {
        status = solve(j, &examples, (int)worked, name ? name : "", &s, &t, &err);
        j->blend_ms = cr_now_ms() - start;
        json_t *o = status == CR_OK ? report(j, &s, t, examples.n, j->blend_ms) : NULL;
        json_t *routing = o && name ? cr_routing_json(cr_worker_routing(w), t) : NULL;
        if (routing)
            json_object_set_new(o, "crayon", routing);
        cr_examples_deinit(&examples);
        if (status == CR_OK && name) {
            memcpy(t->sha256, key, sizeof t->sha256);
            status = cr_shelf_put(j->shelf, cr_target_ref(t), &err);
        }
        if (status == CR_OK && cr_job_add(j, "", o, "")) {
            o = NULL;
            cr_job_news(j, 200, true);
        } else if (status == CR_OK) {
            o = NULL;
            status = cr_error_set(&err, CR_NO_MEMORY, "out of memory for the reply");
        }
        json_decref(o);
    }
    cr_blend_result_deinit(&s.result);
    cr_target_unref(t);
    if (status != CR_OK) {
        cr_api_error_from(&e, &err);
        if (status == CR_NOT_FOUND)
            e.http = 400;
        cr_job_fail(j, &e);
    }
}
