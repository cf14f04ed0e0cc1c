/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task embeddings. The content of an example is its context and its question, each tokenised as it
 * stands in the prompt (behind a blank). Options are left out: a question that arrives later,
 * alone, must be comparable with the examples that have options. (Options in the embedding were
 * measured on a pool of 175 tasks: they change how often 8 examples find their own task from 66 %
 * to 69 %.)
 *
 *   q_x     W_q mean_t RMSNorm(E[x_t]), the mean over the content tokens. W_q is dequantised row by
 *           row, once for all examples of a call: a row's products with all means, then the next.
 *   middle  the prompt is run up to the middle layer; the mean is over the content tokens only.
 * What follows the content cannot change it (attention looks back) and is not run.
 */
#include "adapt/embed.h"

#include "adapt/prompt.h"
#include "base/log.h"
#include "base/mem.h"
#include "model/compute.h"

#include <string.h>

enum { BATCH_CELLS = 2048 };

const char *cr_view_name(enum cr_view v)
{
    return v == CR_VIEW_QX ? "qx" : v == CR_VIEW_MIDDLE ? "middle" : "unknown";
}

int cr_view_by_name(const char *name)
{
    return !strcmp(name, "qx") ? CR_VIEW_QX : !strcmp(name, "middle") ? CR_VIEW_MIDDLE : -1;
}

int cr_view_dim(const cr_model *m, enum cr_view v)
{
    return v == CR_VIEW_QX ? m->q_dim : m->n_embd;
}

int cr_view_layer(const cr_model *m)
{
    return m->n_layers / 2 - 1;
}

/* ---- q_x ---- */

/* mean [n_embd] = mean over the content tokens of RMSNorm(E[x_t]); ids and row are scratch. */
static enum cr_status content_mean(const cr_model *m, const struct cr_example *e,
                                   struct cr_ids *ids, float *row, float *mean,
                                   struct cr_error *err)
{
    size_t E = (size_t)m->n_embd;
    ids->n = 0;
    enum cr_status st = e->context ? cr_answer_encode(m, e->context, false, ids, err) : CR_OK;
    if (!st)
        st = cr_answer_encode(m, e->question, false, ids, err);
    if (st)
        return st;
    memset(mean, 0, E * sizeof *mean);
    for (size_t t = 0; t < ids->n; t++) {
        cr_model_embed(m, ids->v[t], row);
        m->k->rmsnorm(row, row, m->layers[0].attn_norm, E, m->norm_eps);
        m->k->add(mean, row, E);
    }
    for (size_t i = 0; ids->n && i < E; i++)
        mean[i] /= (float)ids->n;
    return CR_OK;
}

struct query {
    const cr_model *m;
    const float *mean; /* [n, n_embd] */
    size_t n;
    float *out; /* [n, q_dim] */
    float *row; /* [threads, n_embd] */
};

/* out[i, r] = W_q[r] . mean[i] */
static void query_rows(void *ud, size_t begin, size_t end, int thread)
{
    const struct query *q = ud;
    const cr_model *m = q->m;
    const struct cr_matrix *w = cr_model_linear(m, 0, CR_LIN_Q);
    size_t E = (size_t)m->n_embd;
    float *row = q->row + (size_t)thread * E;
    for (size_t r = begin; r < end; r++) {
        m->k->dequantize[w->type](row, (const char *)w->data + r * w->row_bytes, E);
        for (size_t i = 0; i < q->n; i++)
            q->out[i * (size_t)m->q_dim + r] = m->k->dot(row, q->mean + i * E, E);
    }
}

static enum cr_status embed_qx(cr_model *m, const struct cr_example *e, size_t n, float *out,
                               struct cr_error *err)
{
    enum { MANY = 4096 }; /* examples at a time, to bound the means that are held */
    size_t E = (size_t)m->n_embd, many = n < MANY ? n : MANY;
    size_t threads = (size_t)cr_threads_count(m->threads);
    float *mean = cr_alloc((many + threads) * E, sizeof *mean);
    struct cr_ids ids = {0};
    enum cr_status st =
        mean ? CR_OK
             : cr_error_set(err, CR_NO_MEMORY, "embed: out of memory for %zu examples", many);
    for (size_t done = 0; !st && done < n; done += many) {
        size_t now = n - done < many ? n - done : many;
        for (size_t i = 0; !st && i < now; i++)
            st = content_mean(m, &e[done + i], &ids, mean + many * E, mean + i * E, err);
        struct query q = {.m = m,
                          .mean = mean,
                          .n = now,
                          .out = out + done * (size_t)m->q_dim,
                          .row = mean + many * E};
        if (!st)
            cr_threads_run(m->threads, (size_t)m->q_dim, 16, query_rows, &q);
    }
    cr_free(ids.v);
    cr_free(mean);
    return st;
}

/* ---- middle ---- */

struct middle {
    cr_model *m;
    cr_session *s;
    struct cr_batch_token *tokens; /* [cap] */
    uint32_t *owner;               /* [cap] example of each token, from `first` on */
    size_t n, cap, first;
    float *out;      /* [n_examples, n_embd] sums, then means */
    uint32_t *count; /* [n_examples] content tokens */
};

/* Appends text to ids; content text is marked in `content`. */
static enum cr_status put(const cr_model *m, const char *text, bool content, struct cr_ids *ids,
                          struct cr_ids *mark, struct cr_error *err)
{
    size_t before = ids->n;
    enum cr_status st = content ? cr_answer_encode(m, text, false, ids, err)
                                : cr_tokenizer_encode(m->tok, text, strlen(text),
                                                      before ? 0 : CR_TOKENIZE_BOS, ids, err);
    for (; !st && before < ids->n; before++)
        if (!cr_ids_push(mark, content))
            st = cr_error_set(err, CR_NO_MEMORY, "embed: out of memory");
    return st;
}

/* The prompt up to the end of its content: at most max ids, and 1 in mark for content tokens. */
static enum cr_status content_prompt(const cr_model *m, const struct cr_example *e, size_t max,
                                     struct cr_ids *ids, struct cr_ids *mark, struct cr_error *err)
{
    ids->n = mark->n = 0;
    enum cr_status st = CR_OK;
    if (e->context) {
        st = put(m, "Context:", false, ids, mark, err);
        if (!st)
            st = put(m, e->context, true, ids, mark, err);
    }
    if (!st)
        st = put(m, e->context ? "\nQuestion:" : "Question:", false, ids, mark, err);
    if (!st)
        st = put(m, e->question, true, ids, mark, err);
    if (!st && ids->n > max) {
        cr_log(CR_LOG_WARN, "embed: line %zu: only the first %zu of %zu tokens are embedded",
               e->line, max, ids->n);
        ids->n = max;
    }
    return st;
}

static void add_hidden(void *ud, size_t token, const float *hidden)
{
    struct middle *s = ud;
    size_t i = s->first + s->owner[token], E = (size_t)s->m->n_embd;
    s->m->k->add(s->out + i * E, hidden, E);
    s->count[i]++;
}

/* The batch on a device. */
static enum cr_status flush_compute(struct middle *s, struct cr_error *err)
{
    struct cr_compute *c = s->m->compute;
    size_t E = (size_t)s->m->n_embd, wanted = 0;
    for (size_t t = 0; t < s->n; t++)
        wanted += s->tokens[t].want;
    float *hidden = cr_alloc(wanted * E, sizeof *hidden);
    enum cr_status st = hidden ? c->hidden(c, s->tokens, s->n, cr_view_layer(s->m), hidden, err)
                               : cr_error_set(err, CR_NO_MEMORY, "embed: out of memory");
    for (size_t t = 0, row = 0; !st && t < s->n; t++)
        if (s->tokens[t].want)
            add_hidden(s, t, hidden + row++ * E);
    cr_free(hidden);
    s->n = 0;
    return st;
}

static enum cr_status flush(struct middle *s, struct cr_error *err)
{
    if (s->m->compute)
        return s->n ? flush_compute(s, err) : CR_OK;
    struct cr_batch b = {.tokens = s->tokens,
                         .n = s->n,
                         .on_hidden = add_hidden,
                         .hidden_layer = cr_view_layer(s->m),
                         .stop_at_hidden = true,
                         .ud = s};
    enum cr_status st = s->n ? cr_session_run(s->s, &b, err) : CR_OK;
    cr_session_reset(s->s);
    s->n = 0;
    return st;
}

static enum cr_status embed_middle(cr_model *m, const struct cr_example *e, size_t n, float *out,
                                   struct cr_error *err)
{
    size_t E = (size_t)m->n_embd;
    size_t cap = (size_t)m->n_ctx_train < BATCH_CELLS ? (size_t)m->n_ctx_train : BATCH_CELLS;
    size_t most = cap; /* tokens of an example */
    enum cr_status st = CR_OK;
    if (m->compute)
        cap = m->compute->max_tokens;
    struct middle s = {.m = m, .cap = cap, .out = out};
    struct cr_ids ids = {0}, mark = {0};
    if (!m->compute)
        st = cr_session_new(&s.s, m, (int)cap, err);
    s.tokens = cr_alloc(cap, sizeof *s.tokens);
    s.owner = cr_alloc(cap, sizeof *s.owner);
    s.count = cr_alloc0(n, sizeof *s.count);
    if (!st && (!s.tokens || !s.owner || !s.count))
        st = cr_error_set(err, CR_NO_MEMORY, "embed: out of memory for %zu examples", n);
    memset(out, 0, n * E * sizeof *out);
    for (size_t i = 0; !st && i < n; i++) {
        st = content_prompt(m, &e[i], most, &ids, &mark, err);
        if (st)
            break;
        if (s.n + ids.n > cap)
            st = flush(&s, err);
        if (!s.n)
            s.first = i;
        size_t begin = s.n;
        for (size_t t = 0; t < ids.n; t++, s.n++) {
            s.tokens[s.n] = (struct cr_batch_token){
                .id = ids.v[t], .pos = (int32_t)t, .seg_begin = (int32_t)begin, .want = mark.v[t]};
            s.owner[s.n] = (uint32_t)(i - s.first);
        }
    }
    if (!st)
        st = flush(&s, err);
    for (size_t i = 0; !st && i < n; i++)
        for (size_t d = 0; s.count[i] && d < E; d++)
            out[i * E + d] /= (float)s.count[i];
    cr_free(s.count);
    cr_free(s.owner);
    cr_free(s.tokens);
    cr_session_free(s.s);
    cr_free(mark.v);
    cr_free(ids.v);
    return st;
}

enum cr_status cr_embed_examples(cr_model *m, enum cr_view v, const struct cr_example *e, size_t n,
                                 float *out, struct cr_error *err)
{
    if (!m->layers)
        return cr_error_set(err, CR_INVALID, "embed: %s was opened for its vocabulary only",
                            m->path);
    return v == CR_VIEW_QX ? embed_qx(m, e, n, out, err) : embed_middle(m, e, n, out, err);
}
