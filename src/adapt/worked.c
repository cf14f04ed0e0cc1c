/* SPDX-License-Identifier: Apache-2.0 */
/* The ids of worked examples; see worked.h. */
#include "adapt/worked.h"

#include "base/mem.h"

#include <string.h>

/* Examples stand inside a text: only the first token of all may be BOS. */
static size_t bos_at(const cr_model *m, const struct cr_ids *ids, size_t at)
{
    int32_t bos = cr_tokenizer_bos(m->tok);
    return bos >= 0 && at < ids->n && ids->v[at] == bos;
}

static enum cr_status add_example(struct cr_worked *w, const cr_model *m,
                                  const struct cr_example *e, struct cr_error *err)
{
    size_t at = w->ids.n;
    if (!e->answer || !e->answer[0])
        return cr_error_set(err, CR_INVALID, "worked example %zu: has no answer", w->n + 1);
    enum cr_status st = cr_prompt_encode(m, e, &w->ids, err);
    if (!st && bos_at(m, &w->ids, at)) {
        w->ids.n--;
        memmove(w->ids.v + at, w->ids.v + at + 1, (w->ids.n - at) * sizeof *w->ids.v);
    }
    if (!st)
        st = cr_answer_encode(m, e->answer, true, &w->ids, err);
    if (!st)
        w->end[w->n++] = w->ids.n;
    return st;
}

enum cr_status cr_worked_init(struct cr_worked *w, const cr_model *m, const struct cr_example *e,
                              size_t n, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    *w = (struct cr_worked){0};
    if (n > CR_WORKED_MAX)
        return cr_error_set(err, CR_LIMIT, "%zu worked examples, at most %d", n, CR_WORKED_MAX);
    for (size_t i = 0; i < n && !st; i++)
        st = add_example(w, m, &e[i], err);
    return st;
}

void cr_worked_deinit(struct cr_worked *w)
{
    cr_free(w->ids.v);
    *w = (struct cr_worked){0};
}

enum cr_status cr_worked_put(const struct cr_worked *w, const cr_model *m, size_t most, size_t room,
                             struct cr_ids *ids, size_t at, size_t *n_used, struct cr_error *err)
{
    size_t own = ids->n - at, has_bos = bos_at(m, ids, at), first = 0, begin = 0;
    size_t bos = !has_bos && cr_tokenizer_add_bos(m->tok) && cr_tokenizer_bos(m->tok) >= 0;
    if (n_used)
        *n_used = 0;
    if (!w || !w->n)
        return CR_OK;
    while (first < w->n && (w->n - first > most || own + bos + w->ids.n - begin > room))
        begin = w->end[first++];
    size_t n = w->ids.n - begin, old = ids->n;
    if (first == w->n)
        return CR_OK;
    for (size_t i = 0; i < bos + n; i++)
        if (!cr_ids_push(ids, 0))
            return cr_error_set(err, CR_NO_MEMORY, "prompt: out of memory");
    int32_t *to = ids->v + at + has_bos;
    memmove(to + bos + n, to, (old - at - has_bos) * sizeof *to);
    if (bos)
        to[0] = cr_tokenizer_bos(m->tok);
    memcpy(to + bos, w->ids.v + begin, n * sizeof *to);
    if (n_used)
        *n_used = w->n - first;
    return CR_OK;
}
