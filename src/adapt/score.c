/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring by packed passes. An example is one prompt and some options that attach to it:
 *
 *     cells   p0 p1 ... pm | a0 a1 | b0 | c0 c1 c2        options a (3 tokens), b (2), c (4)
 *
 * Every option token sees the prompt's cells and its own option's. The last token of an option is
 * predicted, never run. Logits are asked for at the last prompt token (it predicts the first token
 * of every option) and at each option token that is run. Examples are put one behind the other
 * until the cache is full, run in one call at prefill speed, and the cache is emptied.
 */
#include "adapt/score.h"

#include "base/mem.h"
#include "model/compute.h"

#include <math.h>
#include <string.h>

enum {
    BATCH_CELLS = 2048, /* tokens of a pass; more only for an example that needs more */
    MAX_CELLS = 1 << 15 /* of one example with all its options */
};
static const float LOSS_SHARPNESS = 8.0F, LOSS_NLL = 0.3F; /* docs/method.md, REFINE */

struct item {                    /* an example, tokenised */
    size_t prompt, first_option; /* into ids, into options */
    int n_prompt, n_options;
    int right; /* index of the right option; -1: not known */
    bool is_short;
    size_t n_cells;
};

struct option {
    size_t ids;
    int n, n_bytes;
};

/* Token `id` of option `option` is predicted at some token of the batch. */
struct target {
    int32_t id;
    uint32_t option;
};

/* log softmax of one row of logits, in float with the maximum subtracted: p = softmax(logits) by
 * the kernel, log p_i = logits_i - max + log(p_max). */
struct log_softmax {
    const float *logits;
    float max, log_p_max;
    int32_t argmax; /* ties: the lower id */
};

struct cr_scorer {
    cr_model *m;
    cr_session *session;
    const struct cr_worked *worked; /* while it is made; or NULL */
    size_t n, n_options, n_tokens, n_cut, n_left_out;
    size_t n_cells;         /* room of a batch */
    struct item *items;     /* [n] */
    struct option *options; /* [n_options] */
    struct cr_ids ids;
    struct cr_example_score *scores; /* [n] */
    struct cr_option_score *results; /* [n_options] */
    double *sums;                    /* [n_options] */
    float *p;                        /* [n_vocab] scratch */
    /* the batch being built or run */
    struct cr_batch_token *tokens; /* [n_cells of the session] */
    size_t *first_target;          /* [the same + 1] targets of token t: [first[t], first[t + 1]) */
    struct target *targets;
    size_t n_batch, n_targets, cap_targets;
    /* who watches */
    bool (*progress)(void *ud, size_t done, size_t total);
    void *ud;
    size_t n_done, n_seen; /* tokens of finished batches; of this one, as far as is known */
    const cr_delta *delta; /* of this run */
};

static struct log_softmax log_softmax(const cr_model *m, const float *logits, float *p)
{
    size_t V = (size_t)m->n_vocab, best = 0;
    for (size_t i = 1; i < V; i++)
        best = logits[i] > logits[best] ? i : best;
    memcpy(p, logits, V * sizeof *p);
    m->k->softmax(p, V);
    return (struct log_softmax){logits, logits[best], logf(p[best]), (int32_t)best};
}

static float log_prob(const struct log_softmax *l, int32_t id)
{
    return l->logits[id] - l->max + l->log_p_max;
}

/* ---- tokenising ---- */

static enum cr_status add_option(cr_scorer *s, struct item *it, const char *text, bool end_line,
                                 struct cr_error *err)
{
    struct option *o = &s->options[it->first_option + (size_t)it->n_options];
    o->ids = s->ids.n;
    o->n_bytes = (int)strlen(text);
    enum cr_status st = cr_answer_encode(s->m, text, end_line, &s->ids, err);
    if (st)
        return st;
    o->n = (int)(s->ids.n - o->ids);
    if (o->n < 1)
        return cr_error_set(err, CR_INVALID, "score: the option \"%.80s\" has no tokens", text);
    it->n_options++;
    it->n_cells += (size_t)o->n - 1;
    return CR_OK;
}

static int longest_option(const cr_scorer *s, const struct item *it)
{
    int longest = 0;
    for (int k = 0; k < it->n_options; k++) {
        int n = s->options[it->first_option + (size_t)k].n;
        longest = n > longest ? n : longest;
    }
    return longest;
}

/* Drops prompt tokens on the left, behind a BOS, until the longest option fits the context. */
static enum cr_status fit(cr_scorer *s, struct item *it, size_t line, struct cr_error *err)
{
    int longest = longest_option(s, it), max = s->m->n_ctx_train;
    int over = it->n_prompt + longest - max;
    if (over > 0) {
        int32_t *ids = s->ids.v + it->prompt;
        int keep = ids[0] == cr_tokenizer_bos(s->m->tok) ? 1 : 0;
        if (over >= it->n_prompt - keep)
            return cr_error_set_at(err, CR_LIMIT, line,
                                   "line %zu: an option of %d tokens leaves no room for the prompt "
                                   "in a context of %d",
                                   line, longest, max);
        memmove(ids + keep, ids + keep + over, (size_t)(it->n_prompt - keep - over) * sizeof *ids);
        it->n_prompt -= over;
        s->n_cut++;
    }
    it->n_cells += (size_t)it->n_prompt;
    if (it->n_cells > MAX_CELLS)
        return cr_error_set_at(
            err, CR_LIMIT, line,
            "line %zu: the prompt and its %d options need %zu tokens, at most %d "
            "are scored at once",
            line, it->n_options, it->n_cells, MAX_CELLS);
    return CR_OK;
}

/* The prompt, behind as many worked examples as leave room for the longest option. */
static enum cr_status add_prompt(cr_scorer *s, const struct cr_example *e, struct item *it,
                                 struct cr_error *err)
{
    size_t used = 0, longest = (size_t)longest_option(s, it), max = (size_t)s->m->n_ctx_train;
    it->prompt = s->ids.n;
    enum cr_status st = cr_prompt_encode(s->m, e, &s->ids, err);
    if (!st)
        st = cr_worked_put(s->worked, s->m, CR_WORKED_MAX, longest < max ? max - longest : 0,
                           &s->ids, it->prompt, &used, err);
    it->n_prompt = (int)(s->ids.n - it->prompt);
    s->n_left_out += s->worked ? s->worked->n - used : 0;
    return st;
}

static enum cr_status tokenise(cr_scorer *s, const struct cr_example *e, struct item *it,
                               struct cr_error *err)
{
    *it = (struct item){.first_option = s->n_options, .right = -1};
    it->is_short = !e->n_choices;
    if (it->is_short && !e->answer)
        return CR_OK;
    enum cr_status st = CR_OK;
    for (int k = 0; !st && k < e->n_choices; k++)
        st = add_option(s, it, e->choices[k], false, err);
    if (!st && it->is_short)
        st = add_option(s, it, e->answer, true, err);
    if (!st)
        st = add_prompt(s, e, it, err);
    if (st)
        return st;
    it->right = it->is_short ? 0 : e->answer_index;
    s->n_options += (size_t)it->n_options;
    return fit(s, it, e->line, err);
}

static enum cr_status alloc_runs(cr_scorer *s, struct cr_error *err)
{
    size_t cells = 1, total = 0;
    for (size_t i = 0; i < s->n; i++) {
        cells = s->items[i].n_cells > cells ? s->items[i].n_cells : cells;
        total += s->items[i].n_cells;
    }
    size_t batch =
        (size_t)s->m->n_ctx_train < BATCH_CELLS ? (size_t)s->m->n_ctx_train : BATCH_CELLS;
    if (s->m->compute)
        batch = s->m->compute->max_tokens;
    batch = total < batch ? total : batch;
    cells = cells > batch ? cells : batch;
    s->n_tokens = total;
    s->scores = cr_alloc0(s->n, sizeof *s->scores);
    s->results = cr_alloc0(s->n_options, sizeof *s->results);
    s->sums = cr_alloc0(s->n_options, sizeof *s->sums);
    s->p = cr_alloc((size_t)s->m->n_vocab, sizeof *s->p);
    s->tokens = cr_alloc(cells, sizeof *s->tokens);
    s->first_target = cr_alloc(cells + 1, sizeof *s->first_target);
    if (!s->scores || !s->results || !s->sums || !s->p || !s->tokens || !s->first_target)
        return cr_error_set(err, CR_NO_MEMORY, "score: out of memory for %zu examples", s->n);
    s->n_cells = cells;
    return s->m->compute ? CR_OK : cr_session_new(&s->session, s->m, (int)cells, err);
}

enum cr_status cr_scorer_new(cr_scorer **out, cr_model *m, const struct cr_worked *worked,
                             const struct cr_example *e, size_t n, struct cr_error *err)
{
    *out = NULL;
    size_t most = 0;
    for (size_t i = 0; i < n; i++)
        most += e[i].n_choices ? (size_t)e[i].n_choices : 1;
    cr_scorer *s = cr_alloc0(1, sizeof *s);
    enum cr_status st = CR_OK;
    if (s) {
        s->m = m;
        s->n = n;
        s->worked = worked;
        s->items = cr_alloc(n, sizeof *s->items);
        s->options = cr_alloc(most, sizeof *s->options);
    }
    if (!s || !s->items || !s->options)
        st = cr_error_set(err, CR_NO_MEMORY, "score: out of memory for %zu examples", n);
    for (size_t i = 0; !st && i < n; i++)
        st = tokenise(s, &e[i], &s->items[i], err);
    if (!st)
        st = alloc_runs(s, err);
    if (s)
        s->worked = NULL;
    if (st) {
        cr_scorer_free(s);
        return st;
    }
    *out = s;
    return CR_OK;
}

void cr_scorer_free(cr_scorer *s)
{
    if (!s)
        return;
    cr_session_free(s->session);
    cr_free(s->targets);
    cr_free(s->first_target);
    cr_free(s->tokens);
    cr_free(s->p);
    cr_free(s->sums);
    cr_free(s->results);
    cr_free(s->scores);
    cr_free(s->ids.v);
    cr_free(s->options);
    cr_free(s->items);
    cr_free(s);
}

size_t cr_scorer_n_examples(const cr_scorer *s)
{
    return s->n;
}

size_t cr_scorer_n_answers(const cr_scorer *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += s->items[i].right >= 0;
    return n;
}

size_t cr_scorer_n_tokens(const cr_scorer *s)
{
    return s->n_tokens;
}

size_t cr_scorer_n_cut(const cr_scorer *s)
{
    return s->n_cut;
}

size_t cr_scorer_n_left_out(const cr_scorer *s)
{
    return s->n_left_out;
}

/* ---- running ---- */

static void put_token(cr_scorer *s, struct cr_batch_token t)
{
    s->first_target[s->n_batch] = s->n_targets;
    s->tokens[s->n_batch++] = t;
}

static void put_target(cr_scorer *s, size_t option, int token)
{
    int32_t id = s->ids.v[s->options[option].ids + (size_t)token];
    s->targets[s->n_targets++] = (struct target){id, (uint32_t)option};
}

/* Adds one example to the batch; there is room for its cells. */
static enum cr_status pack(cr_scorer *s, const struct item *it, struct cr_error *err)
{
    size_t need = s->n_targets + it->n_cells + (size_t)it->n_options;
    if (need > s->cap_targets) {
        struct target *t = cr_realloc(s->targets, need * 2, sizeof *t);
        if (!t)
            return cr_error_set(err, CR_NO_MEMORY, "score: out of memory for %zu tokens", need);
        s->targets = t;
        s->cap_targets = need * 2;
    }
    int32_t begin = (int32_t)s->n_batch, end = begin + it->n_prompt;
    for (int i = 0; i < it->n_prompt; i++)
        put_token(s, (struct cr_batch_token){.id = s->ids.v[it->prompt + (size_t)i],
                                             .pos = i,
                                             .seg_begin = begin,
                                             .want = i == it->n_prompt - 1});
    for (int k = 0; k < it->n_options; k++)
        put_target(s, it->first_option + (size_t)k, 0);
    for (int k = 0; k < it->n_options; k++) {
        const struct option *o = &s->options[it->first_option + (size_t)k];
        int32_t seg = (int32_t)s->n_batch;
        for (int i = 0; i + 1 < o->n; i++) {
            put_token(s, (struct cr_batch_token){.id = s->ids.v[o->ids + (size_t)i],
                                                 .pos = it->n_prompt + i,
                                                 .pre_begin = begin,
                                                 .pre_end = end,
                                                 .seg_begin = seg,
                                                 .want = true});
            put_target(s, it->first_option + (size_t)k, i + 1);
        }
    }
    return CR_OK;
}

static void on_logits(void *ud, size_t token, const float *logits)
{
    cr_scorer *s = ud;
    struct log_softmax l = log_softmax(s->m, logits, s->p);
    for (size_t i = s->first_target[token]; i < s->first_target[token + 1]; i++) {
        const struct target *t = &s->targets[i];
        s->sums[t->option] += (double)log_prob(&l, t->id);
        s->results[t->option].is_greedy &= t->id == l.argmax;
    }
    s->n_seen = token + 1;
}

/* Asked between the chunks of a pass. */
static bool cancelled(void *ud)
{
    cr_scorer *s = ud;
    return s->progress && !s->progress(s->ud, s->n_done + s->n_seen, s->n_tokens);
}

/* The batch on a device. */
static enum cr_status run_compute(cr_scorer *s, struct cr_error *err)
{
    struct cr_compute *c = s->m->compute;
    struct cr_target *targets = cr_alloc(s->n_targets, sizeof *targets);
    float *logprob = cr_alloc(s->n_targets, sizeof *logprob);
    bool *best = cr_alloc(s->n_targets, sizeof *best);
    enum cr_status st = CR_OK;
    if (!targets || !logprob || !best)
        st = cr_error_set(err, CR_NO_MEMORY, "score: out of memory for %zu tokens", s->n_targets);
    for (size_t t = 0; !st && t < s->n_batch; t++)
        for (size_t i = s->first_target[t]; i < s->first_target[t + 1]; i++)
            targets[i] = (struct cr_target){s->targets[i].id, (uint32_t)t};
    if (!st)
        st =
            c->score(c, s->delta, s->tokens, s->n_batch, targets, s->n_targets, logprob, best, err);
    for (size_t i = 0; !st && i < s->n_targets; i++) {
        s->sums[s->targets[i].option] += (double)logprob[i];
        s->results[s->targets[i].option].is_greedy &= best[i];
    }
    if (!st && cancelled(s))
        st = cr_error_set(err, CR_CANCELLED, "score: cancelled");
    cr_free(best);
    cr_free(logprob);
    cr_free(targets);
    return st;
}

static enum cr_status run_batch(cr_scorer *s, struct cr_error *err)
{
    s->n_seen = 0;
    s->first_target[s->n_batch] = s->n_targets;
    struct cr_batch b = {.tokens = s->tokens,
                         .n = s->n_batch,
                         .on_logits = on_logits,
                         .ud = s,
                         .cancelled = cancelled};
    enum cr_status st = CR_OK;
    if (s->n_batch)
        st = s->session ? cr_session_run(s->session, &b, err) : run_compute(s, err);
    if (s->session)
        cr_session_reset(s->session);
    s->n_done += s->n_batch;
    s->n_batch = s->n_targets = 0;
    return st;
}

/* ---- results ---- */

/* CE over options of 8 * sum / bytes: sharp enough that the length-normalised scores, which differ
 * by tenths, become a choice. */
static float choice_loss(const struct cr_option_score *o, int n, int right)
{
    double max = -INFINITY, sum = 0, z;
    for (int k = 0; k < n; k++) {
        z = (double)(LOSS_SHARPNESS * o[k].sum / (float)o[k].n_bytes);
        max = z > max ? z : max;
    }
    for (int k = 0; k < n; k++)
        sum += exp((double)(LOSS_SHARPNESS * o[k].sum / (float)o[k].n_bytes) - max);
    z = (double)(LOSS_SHARPNESS * o[right].sum / (float)o[right].n_bytes);
    return (float)(max + log(sum) - z);
}

static void finish(cr_scorer *s, size_t i)
{
    const struct item *it = &s->items[i];
    struct cr_option_score *o = s->results + it->first_option;
    struct cr_example_score *r = &s->scores[i];
    *r = (struct cr_example_score){.n_options = it->n_options, .options = o};
    for (int k = 0; k < it->n_options; k++) {
        const struct option *opt = &s->options[it->first_option + (size_t)k];
        o[k].sum = (float)s->sums[it->first_option + (size_t)k];
        o[k].n_tokens = opt->n;
        o[k].n_bytes = opt->n_bytes;
        if (o[k].sum / (float)o[k].n_bytes > o[r->choice].sum / (float)o[r->choice].n_bytes)
            r->choice = k;
    }
    r->has_answer = it->right >= 0;
    if (!r->has_answer)
        return;
    const struct cr_option_score *right = &o[it->right];
    r->correct = it->is_short ? right->is_greedy : r->choice == it->right;
    r->nll = -right->sum / (float)right->n_tokens;
    r->loss = it->is_short ? r->nll : choice_loss(o, it->n_options, it->right) + LOSS_NLL * r->nll;
}

enum cr_status cr_scorer_run(cr_scorer *s, const cr_delta *delta,
                             const struct cr_example_score **scores,
                             bool (*progress)(void *ud, size_t done, size_t total), void *ud,
                             struct cr_error *err)
{
    *scores = NULL;
    s->progress = progress;
    s->ud = ud;
    s->n_done = s->n_batch = s->n_targets = 0;
    for (size_t k = 0; k < s->n_options; k++) {
        s->sums[k] = 0;
        s->results[k].is_greedy = true;
    }
    if (s->session)
        cr_session_set_delta(s->session, delta);
    s->delta = delta;
    size_t room = s->n_cells;
    enum cr_status st = CR_OK;
    for (size_t i = 0; !st && i < s->n; i++) {
        const struct item *it = &s->items[i];
        if (s->n_batch + it->n_cells > room)
            st = run_batch(s, err);
        if (!st && it->n_options)
            st = pack(s, it, err);
    }
    if (!st)
        st = run_batch(s, err);
    if (s->session)
        cr_session_set_delta(s->session, NULL); /* the caller may free it now */
    s->delta = NULL;
    for (size_t i = 0; !st && i < s->n; i++)
        finish(s, i);
    if (!st)
        *scores = s->scores;
    if (!st && progress)
        progress(ud, s->n_tokens, s->n_tokens);
    return st;
}

/* ---- one completion ---- */

struct single {
    const cr_model *m;
    const int32_t *completion;
    size_t n_prompt;
    float *logprobs, *p;
    bool greedy;
};

static void single_logits(void *ud, size_t token, const float *logits)
{
    struct single *s = ud;
    struct log_softmax l = log_softmax(s->m, logits, s->p);
    size_t i = token + 1 - s->n_prompt;
    s->logprobs[i] = log_prob(&l, s->completion[i]);
    s->greedy &= s->completion[i] == l.argmax;
}

enum cr_status cr_score_tokens(cr_session *s, const int32_t *prompt, size_t n_prompt,
                               const int32_t *completion, size_t n, float *logprobs,
                               bool *is_greedy, struct cr_error *err)
{
    const cr_model *m = cr_session_model(s);
    if (is_greedy)
        *is_greedy = false;
    if (!n_prompt || !n)
        return cr_error_set(err, CR_INVALID,
                            "score: want at least one token of prompt and of completion, found "
                            "%zu and %zu",
                            n_prompt, n);
    if (n_prompt > CR_MAX_CTX || n > CR_MAX_CTX)
        return cr_error_set(err, CR_LIMIT, "score: %zu and %zu tokens, at most %d", n_prompt, n,
                            CR_MAX_CTX);
    for (size_t i = 0; i < n; i++)
        if (completion[i] < 0 || completion[i] >= m->n_vocab)
            return cr_error_set(err, CR_INVALID, "score: want an id from 0 to %d, got %d",
                                m->n_vocab - 1, (int)completion[i]);
    size_t n_run = n_prompt + n - 1; /* the last token is predicted, not run */
    struct cr_batch_token *tokens = cr_alloc0(n_run, sizeof *tokens);
    struct single one = {m, completion, n_prompt, logprobs, NULL, true};
    one.p = cr_alloc((size_t)m->n_vocab, sizeof *one.p);
    enum cr_status st = CR_OK;
    if (!tokens || !one.p)
        st = cr_error_set(err, CR_NO_MEMORY, "score: out of memory for %zu tokens", n_run);
    for (size_t i = 0; !st && i < n_run; i++)
        tokens[i] =
            (struct cr_batch_token){.id = i < n_prompt ? prompt[i] : completion[i - n_prompt],
                                    .pos = (int32_t)i,
                                    .want = i + 1 >= n_prompt};
    struct cr_batch b = {.tokens = tokens, .n = n_run, .on_logits = single_logits, .ud = &one};
    cr_session_reset(s);
    if (!st)
        st = cr_session_run(s, &b, err);
    cr_session_reset(s);
    if (!st && is_greedy)
        *is_greedy = one.greedy;
    cr_free(one.p);
    cr_free(tokens);
    return st;
}

/* ---- many completions, on a device ---- */

struct packed {
    struct cr_batch_token *tokens;
    struct cr_target *targets;
    float *logprob;
    bool *best;
    size_t n_tokens, n_targets;
};

/* Its tokens as a segment of their own, its completion as targets; the last token is not run. */
static void pack_job(struct packed *p, const struct cr_score_job *j)
{
    size_t begin = p->n_tokens;
    for (size_t i = 0; i + 1 < j->n_prompt + j->n; i++) {
        bool want = i + 1 >= j->n_prompt;
        if (want)
            p->targets[p->n_targets++] =
                (struct cr_target){j->completion[i + 1 - j->n_prompt], (uint32_t)p->n_tokens};
        p->tokens[p->n_tokens++] = (struct cr_batch_token){
            .id = i < j->n_prompt ? j->prompt[i] : j->completion[i - j->n_prompt],
            .pos = (int32_t)i,
            .seg_begin = (int32_t)begin,
            .want = want};
    }
}

/* Jobs [from, to) in one batch. */
static enum cr_status run_jobs(struct cr_compute *c, const cr_delta *delta,
                               struct cr_score_job *jobs, size_t from, size_t to, size_t n_tokens,
                               struct cr_error *err)
{
    struct packed p = {cr_alloc(n_tokens, sizeof *p.tokens),
                       cr_alloc(n_tokens, sizeof *p.targets),
                       cr_alloc(n_tokens, sizeof *p.logprob),
                       cr_alloc(n_tokens, sizeof *p.best),
                       0,
                       0};
    enum cr_status st = CR_OK;
    if (!p.tokens || !p.targets || !p.logprob || !p.best)
        st = cr_error_set(err, CR_NO_MEMORY, "score: out of memory for %zu tokens", n_tokens);
    for (size_t i = from; !st && i < to; i++)
        pack_job(&p, &jobs[i]);
    if (!st)
        st = c->score(c, delta, p.tokens, p.n_tokens, p.targets, p.n_targets, p.logprob, p.best,
                      err);
    for (size_t i = from, at = 0; !st && i < to; i++) {
        jobs[i].is_greedy = true;
        for (size_t k = 0; k < jobs[i].n; k++, at++) {
            jobs[i].logprobs[k] = p.logprob[at];
            jobs[i].is_greedy &= p.best[at];
        }
    }
    cr_free(p.best);
    cr_free(p.logprob);
    cr_free(p.targets);
    cr_free(p.tokens);
    return st;
}

enum cr_status cr_score_jobs(cr_model *m, const cr_delta *delta, struct cr_score_job *jobs,
                             size_t n_jobs, struct cr_error *err)
{
    enum cr_status st = CR_OK;
    for (size_t i = 0; i < n_jobs; i++)
        if (!jobs[i].n_prompt || !jobs[i].n)
            return cr_error_set(err, CR_INVALID,
                                "score: want at least one token of prompt and of completion, found "
                                "%zu and %zu",
                                jobs[i].n_prompt, jobs[i].n);
    for (size_t from = 0, to; !st && from < n_jobs; from = to) {
        size_t n = 0;
        for (to = from; to < n_jobs; to++) {
            size_t more = jobs[to].n_prompt + jobs[to].n - 1;
            if (to > from && n + more > m->compute->max_tokens)
                break;
            n += more;
        }
        st = run_jobs(m->compute, delta, jobs, from, to, n, err);
    }
    return st;
}
