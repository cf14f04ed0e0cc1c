/* SPDX-License-Identifier: Apache-2.0 */
/* Lane i is the cells [i * n_ctx, (i + 1) * n_ctx) of one session; a pass is one placed batch. */
#include "serve/lanes.h"

#include "base/mem.h"
#include "model/session.h"

#include <stdio.h>
#include <string.h>

enum { MAX_CELLS = CR_MAX_CTX };

struct lane {
    int32_t *ids; /* [n_ctx] */
    int n;
    const cr_delta *delta;
    uint64_t delta_id;
    char caller[65];
    bool busy;
    uint64_t used; /* when it was given back */
};

struct cr_lanes {
    cr_model *m;
    cr_session *s;
    int n, n_ctx;
    uint64_t clock;
    struct cr_batch_token *tokens; /* [n_tokens], grown */
    size_t n_tokens;
    struct place *places; /* [n_tokens] where a token of the batch comes from */
    struct lane *v;       /* [n] */
};

struct place {
    size_t work, at;
};

static int context_of(const cr_model *m, int n_ctx)
{
    return n_ctx ? n_ctx : m->n_ctx_train;
}

size_t cr_lanes_bytes(const cr_model *m, int n, int n_ctx)
{
    n_ctx = context_of(m, n_ctx);
    return n > MAX_CELLS / n_ctx ? 0 : cr_session_bytes(m, n * n_ctx);
}

enum cr_status cr_lanes_new(cr_lanes **out, cr_model *m, int n, int n_ctx, struct cr_error *err)
{
    *out = NULL;
    n_ctx = context_of(m, n_ctx);
    if (n < 1 || n_ctx < 1 || n > MAX_CELLS / n_ctx)
        return cr_error_set(err, CR_INVALID,
                            "%d requests at a time of %d tokens: want at most %d tokens in all", n,
                            n_ctx, MAX_CELLS);
    cr_lanes *l = cr_alloc0(1, sizeof *l);
    if (!l)
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    *l = (cr_lanes){.m = m, .n = n, .n_ctx = n_ctx, .v = cr_alloc0((size_t)n, sizeof *l->v)};
    enum cr_status status = l->v ? cr_session_new(&l->s, m, n * n_ctx, err) : CR_NO_MEMORY;
    for (int i = 0; i < n && status == CR_OK; i++)
        if (!(l->v[i].ids = cr_alloc((size_t)n_ctx, sizeof(int32_t))))
            status = CR_NO_MEMORY;
    if (status == CR_OK) {
        *out = l;
        return CR_OK;
    }
    if (status == CR_NO_MEMORY)
        cr_error_set(err, CR_NO_MEMORY,
                     "server: out of memory for %d requests at a time of %d tokens", n, n_ctx);
    cr_lanes_free(l);
    return status;
}

void cr_lanes_free(cr_lanes *l)
{
    if (!l)
        return;
    for (int i = 0; l->v && i < l->n; i++)
        cr_free(l->v[i].ids);
    cr_session_free(l->s);
    cr_free(l->tokens);
    cr_free(l->places);
    cr_free(l->v);
    cr_free(l);
}

int cr_lanes_ctx(const cr_lanes *l)
{
    return l->n_ctx;
}

int cr_lanes_count(const cr_lanes *l)
{
    return l->n;
}

static int common(const struct lane *v, uint64_t delta_id, const char *caller, const int32_t *ids,
                  size_t n, size_t most)
{
    int same = 0;
    if (v->delta_id != delta_id || strcmp(v->caller, caller) != 0)
        return 0;
    while (same < v->n && (size_t)same + 1 < n && (size_t)same < most && v->ids[same] == ids[same])
        same++;
    return same;
}

/* The free lane that was given back first, but the lane of the common beginning itself where it
 * holds nothing else. */
static int free_lane(const cr_lanes *l, int source, int same)
{
    int oldest = -1;
    if (source >= 0 && !l->v[source].busy && l->v[source].n == same)
        return source;
    for (int i = 0; i < l->n; i++)
        if (!l->v[i].busy && (oldest < 0 || l->v[i].used < l->v[oldest].used))
            oldest = i;
    return oldest;
}

int cr_lanes_begin(cr_lanes *l, const cr_delta *delta, const char *caller, const int32_t *ids,
                   size_t n, size_t most, size_t *n_cached)
{
    int source = -1, best_same = 0;
    uint64_t delta_id = delta ? delta->id : 0;
    for (int i = 0; i < l->n; i++) {
        int same = common(&l->v[i], delta_id, caller, ids, n, most);
        if (same > best_same) {
            source = i;
            best_same = same;
        }
    }
    int lane = free_lane(l, source, best_same);
    if (lane < 0)
        return -1;
    struct lane *v = &l->v[lane];
    if (source >= 0 && source != lane) {
        cr_session_copy(l->s, source * l->n_ctx, lane * l->n_ctx, best_same);
        memcpy(v->ids, ids, (size_t)best_same * sizeof *ids);
    }
    v->n = best_same;
    v->delta = delta;
    v->delta_id = delta_id;
    snprintf(v->caller, sizeof v->caller, "%s", caller);
    v->busy = true;
    *n_cached = (size_t)best_same;
    return lane;
}

void cr_lanes_end(cr_lanes *l, int lane, bool keep)
{
    struct lane *v = &l->v[lane];
    v->busy = false;
    v->delta = NULL; /* may be freed now; its id stays as the key */
    v->used = keep ? ++l->clock : 0;
    if (!keep)
        v->n = 0;
}

/* ---- a pass ---- */

static bool make_room(cr_lanes *l, size_t n)
{
    if (n <= l->n_tokens)
        return true;
    struct cr_batch_token *tokens = cr_realloc(l->tokens, n, sizeof *tokens);
    if (tokens)
        l->tokens = tokens;
    struct place *places = tokens ? cr_realloc(l->places, n, sizeof *places) : NULL;
    if (places)
        l->places = places;
    if (places)
        l->n_tokens = n;
    return places != NULL;
}

/* Appends the tokens of one work to the batch of n. */
static size_t add_work(cr_lanes *l, size_t n, const struct cr_lane_work *w, size_t index)
{
    struct lane *v = &l->v[w->lane];
    int32_t begin = w->lane * l->n_ctx;
    for (size_t t = 0; t < w->n; t++, n++) {
        l->tokens[n] = (struct cr_batch_token){.id = w->ids[t],
                                               .pos = v->n,
                                               .seg_begin = begin,
                                               .cell = begin + v->n,
                                               .delta = v->delta,
                                               .want = w->all || (w->last && t + 1 == w->n)};
        l->places[n] = (struct place){index, t};
        v->ids[v->n++] = w->ids[t];
    }
    return n;
}

struct pass {
    const cr_lanes *l;
    cr_lane_logits_fn *early, *on_logits;
    void *ud;
};

static void give_early(void *ud, size_t token, const float *logits)
{
    const struct pass *p = ud;
    p->early(p->ud, p->l->places[token].work, p->l->places[token].at, logits);
}

static void give(void *ud, size_t token, const float *logits)
{
    const struct pass *p = ud;
    p->on_logits(p->ud, p->l->places[token].work, p->l->places[token].at, logits);
}

enum cr_status cr_lanes_run(cr_lanes *l, const struct cr_lane_work *work, size_t n,
                            cr_lane_logits_fn *early, cr_lane_logits_fn *on_logits, void *ud,
                            struct cr_error *err)
{
    size_t total = 0, done = 0;
    for (size_t i = 0; i < n; i++) {
        if (work[i].n > (size_t)(l->n_ctx - l->v[work[i].lane].n))
            return cr_error_set(err, CR_LIMIT, "server: %zu tokens after %d do not fit in %d",
                                work[i].n, l->v[work[i].lane].n, l->n_ctx);
        total += work[i].n;
    }
    if (!make_room(l, total))
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    /* Those with the same delta stand together, which costs fewer calls. */
    for (size_t i = 0; i < n; i++) {
        const cr_delta *d = l->v[work[i].lane].delta;
        bool first = true;
        for (size_t k = 0; k < i && first; k++)
            first = l->v[work[k].lane].delta != d;
        for (size_t k = i; k < n && first; k++)
            if (l->v[work[k].lane].delta == d)
                done = add_work(l, done, &work[k], k);
    }
    struct pass p = {l, early, on_logits, ud};
    struct cr_batch b = {.tokens = l->tokens,
                         .n = done,
                         .placed = true,
                         .on_logits = give,
                         .on_logits_early = give_early,
                         .hidden_layer = -1,
                         .ud = &p};
    return cr_session_run(l->s, &b, err);
}
