/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's thread and its passes over the model.
 *
 * Jobs wait in a bounded list. Each round: new jobs are read (tokens, grammar, errors), choices get
 * free lanes, then one pass runs the next token of every choice that decodes and, in what is left
 * of PASS_TOKENS, pieces of the prompts of those that begin. So a long prompt delays the others by
 * one piece at a time, and a choice joins or leaves between any two tokens.
 *
 * Fair order: a lane goes to the job with the fewest running choices, the oldest first among
 * equals; prompt pieces are taken in order of age. Further choices of one prompt begin when it has
 * been run once. No output depends on who else runs
 * (docs/architecture.md).
 */
#include "serve/job.h"

#include "base/mem.h"
#include "serve/blend.h"
#include "serve/lanes.h"
#include "serve/reply.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    PASS_TOKENS = 256,
    PING_MS = 10000,
    MAX_GRAMMARS = 16,        /* kept for the next request */
    MAX_KEPT_FRAMES = 1 << 16 /* of each */
};

struct kept_grammar {
    char key[65];
    cr_grammar *g;
    uint64_t used;
};

struct cr_worker {
    struct cr_serve_options opt;
    struct cr_metrics *metrics;
    cr_routing *routing; /* NULL: nothing is routed */
    cr_lanes *lanes;
    cr_token_tree *tree;
    struct kept_grammar grammars[MAX_GRAMMARS];
    uint64_t clock;
    struct cr_blends blends;
    float *scratch; /* [n_vocab] */
    /* a pass; [lanes] each */
    struct cr_choice **running;
    struct cr_lane_work *work;
    struct cr_choice **of_work;
    size_t n_running, n_work;
    struct cr_job *active; /* in order of age; this thread only */

    pthread_t thread, special_thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    struct cr_job *first, **last; /* pushed, not yet taken */
    struct cr_job *special, **last_special, *running_special;
    int n_waiting; /* jobs that have not begun */
    int n_active;
    atomic_bool closing;
    bool started, special_started;
};

/* ---- rounds ------------------------------------------------------------------------------- */

static void count_waiting(cr_worker *w, int change)
{
    pthread_mutex_lock(&w->lock);
    w->n_waiting += change;
    pthread_mutex_unlock(&w->lock);
}

static void leave_lane(cr_worker *w, struct cr_choice *c, bool keep)
{
    if (c->lane < 0)
        return;
    cr_lanes_end(w->lanes, c->lane, keep);
    c->lane = -1;
    c->job->n_running--;
    for (size_t i = 0; i < w->n_running; i++)
        if (w->running[i] == c) {
            w->n_running--;
            memmove(w->running + i, w->running + i + 1, (w->n_running - i) * sizeof *w->running);
            break;
        }
}

static void end_job(cr_worker *w, struct cr_job *j)
{
    if (!j->routed.away)
        cr_job_measure(j, w->metrics);
    pthread_mutex_lock(&w->lock);
    w->n_waiting -= j->n_begun == 0;
    w->n_active--;
    pthread_cond_broadcast(&w->change);
    pthread_mutex_unlock(&w->lock);
    if (j->routed.away)
        cr_routing_start(w->routing, j);
    else
        cr_job_unref(j);
}

/* The job is over: out of the list. */
static void drop_job(cr_worker *w, struct cr_job *j)
{
    struct cr_job **at = &w->active;
    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
    for (size_t i = 0; i < j->n_choices; i++)
        leave_lane(w, &j->choices[i], j->choices[i].err.status == CR_OK);
    end_job(w, j);
}

static void fail_job(cr_worker *w, struct cr_job *j, const struct cr_api_error *e)
{
    cr_job_fail(j, e);
    drop_job(w, j);
}

static void cancel_job(cr_worker *w, struct cr_job *j, const char *msg)
{
    struct cr_api_error e;
    cr_api_error_set(&e, w->closing ? 503 : 499, NULL, NULL, "%s", msg);
    fail_job(w, j, &e);
}

/* Takes what was pushed; waits when there is nothing to do. False: closing. */
static bool take_jobs(cr_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->closing && !w->first && !w->active)
        pthread_cond_wait(&w->change, &w->lock);
    struct cr_job *taken = w->first;
    w->first = NULL;
    w->last = &w->first;
    bool going = !w->closing;
    pthread_mutex_unlock(&w->lock);
    struct cr_job **end = &w->active;
    while (*end)
        end = &(*end)->next;
    *end = taken;
    return going;
}

static void read_new_jobs(cr_worker *w)
{
    for (struct cr_job *j = w->active, *next; j; j = next) {
        struct cr_api_error e;
        next = j->next;
        if (j->prepared)
            continue;
        j->prepared = true;
        if (!cr_answer_prepare(w, j, cr_lanes_ctx(w->lanes), &e)) {
            fail_job(w, j, &e);
        } else if (j->routed.away) {
            drop_job(w, j);
        } else if (j->req.stream && !j->routed.hold) {
            cr_writer_of(j->req.kind)->start(j);
            cr_job_news(j, 200, false);
        }
    }
}

static void drop_gone(cr_worker *w)
{
    double now = cr_now_ms();
    for (struct cr_job *j = w->active, *next; j; j = next) {
        next = j->next;
        if (cr_job_client_gone(j))
            cancel_job(w, j, "the client went away");
        else if (j->req.stream && j->http && now - j->sent_ms > PING_MS &&
                 cr_writer_of(j->req.kind)->stream_type[0] == 't')
            cr_job_puts(j, ": ping\n\n");
    }
}

/* The choice that another one of the same prompt begins from. */
static struct cr_choice *first_of_prompt(struct cr_choice *c)
{
    return c - c->index % (size_t)c->job->req.n;
}

static bool waits_for_prompt(const struct cr_job *j)
{
    const struct cr_choice *first = first_of_prompt(&j->choices[j->n_begun]);
    return first->lane >= 0 && first->n_run < first->n_prompt;
}

/* The job that gets the next lane. */
static struct cr_job *next_job(const cr_worker *w)
{
    struct cr_job *best = NULL;
    for (struct cr_job *j = w->active; j; j = j->next)
        if (j->n_begun < j->n_choices && (!best || j->n_running < best->n_running) &&
            !waits_for_prompt(j))
            best = j;
    return best;
}

static void give_lanes(cr_worker *w)
{
    struct cr_job *j;
    while (w->n_running < (size_t)cr_lanes_count(w->lanes) && (j = next_job(w))) {
        struct cr_choice *c = &j->choices[j->n_begun];
        if (j->n_begun++ == 0)
            count_waiting(w, -1);
        if (cr_choice_begin(c, &c->err) != CR_OK)
            continue;
        bool all = j->req.echo && j->req.logprobs;
        if (c->max_new == 0 && !all) {
            cr_choice_finish(c, "length");
            continue;
        }
        /* a prompt that is scored is run from its first token on that the client sent */
        c->lane = cr_lanes_begin(w->lanes, j->target->delta, j->caller, c->ids, c->n_prompt,
                                 all ? c->n_hidden : c->n_prompt, &c->n_cached);
        c->n_run = c->n_cached;
        if (first_of_prompt(c) == c)
            j->n_cached += c->n_cached;
        j->n_running++;
        w->running[w->n_running++] = c;
    }
}

/* The token of `at` in a work, in the ids of its choice. */
static size_t place_of(const cr_worker *w, size_t work, size_t at)
{
    return w->of_work[work]->n_run - w->work[work].n + at;
}

static void early_logits(void *ud, size_t work, size_t at, const float *logits)
{
    cr_worker *w = ud;
    cr_choice_early(w->of_work[work], place_of(w, work, at), logits);
}

static void on_logits(void *ud, size_t work, size_t at, const float *logits)
{
    cr_worker *w = ud;
    struct cr_choice *c = w->of_work[work];
    int before = c->n_new;
    cr_choice_logits(c, place_of(w, work, at), logits, w->scratch);
    c->job->n_answer += (size_t)(c->n_new - before);
}

static void add_work(cr_worker *w, struct cr_choice *c, size_t n)
{
    w->of_work[w->n_work] = c;
    w->work[w->n_work++] = (struct cr_lane_work){.lane = c->lane,
                                                 .ids = c->ids + c->n_run,
                                                 .n = n,
                                                 .last = c->n_run + n == c->n_ids,
                                                 .all = c->job->req.echo && c->job->req.logprobs};
    c->n_run += n;
}

static void pass(cr_worker *w)
{
    size_t budget = PASS_TOKENS;
    struct cr_error err;
    w->n_work = 0;
    for (size_t i = 0; i < w->n_running; i++)
        if (w->running[i]->n_ids - w->running[i]->n_run == 1) {
            add_work(w, w->running[i], 1);
            budget -= budget > 0;
        }
    for (size_t i = 0; i < w->n_running && budget; i++) {
        struct cr_choice *c = w->running[i];
        size_t left = c->n_ids - c->n_run, n = left < budget ? left : budget;
        if (n == 0)
            continue;
        add_work(w, c, n);
        budget -= n;
    }
    size_t total = 0;
    for (size_t i = 0; i < w->n_work; i++)
        total += w->work[i].n;
    cr_metric_tokens(w->metrics, CR_TOKENS_RUN, total, false);
    if (w->n_work == 0 ||
        cr_lanes_run(w->lanes, w->work, w->n_work, early_logits, on_logits, w, &err) == CR_OK)
        return;
    for (size_t i = 0; i < w->n_work; i++)
        w->of_work[i]->err = err;
}

/* Choices that have ended leave their lanes, jobs that have ended get the rest of their reply. */
static void end_jobs(cr_worker *w)
{
    for (struct cr_job *j = w->active, *next; j; j = next) {
        bool bad = false;
        size_t ended = 0;
        next = j->next;
        for (size_t i = 0; i < j->n_begun; i++) {
            struct cr_choice *c = &j->choices[i];
            bad |= c->err.status != CR_OK;
            ended += c->finish != NULL;
            if (c->finish)
                leave_lane(w, c, true);
        }
        if (bad || ended == j->n_choices) {
            cr_answer_end(w, j);
            drop_job(w, j);
        }
    }
}

static void *work(void *arg)
{
    cr_worker *w = arg;
    while (take_jobs(w)) {
        read_new_jobs(w);
        drop_gone(w);
        give_lanes(w);
        pass(w);
        end_jobs(w);
    }
    while (w->active)
        cancel_job(w, w->active, "the server is stopping");
    return NULL;
}

/* Embeddings and blends, one after the other. */
static void *work_special(void *arg)
{
    cr_worker *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->closing || w->special) {
        struct cr_job *j = w->special;
        if (!j) {
            pthread_cond_wait(&w->change, &w->lock);
            continue;
        }
        if (!(w->special = j->next))
            w->last_special = &w->special;
        w->running_special = j;
        bool closing = w->closing;
        pthread_mutex_unlock(&w->lock);
        if (closing || cr_job_client_gone(j)) {
            struct cr_api_error e;
            cr_api_error_set(&e, closing ? 503 : 499, NULL, NULL,
                             closing ? "the server is stopping" : "the client went away");
            cr_job_fail(j, &e);
        } else {
            j->special(w, j);
        }
        pthread_mutex_lock(&w->lock);
        w->running_special = NULL;
        pthread_mutex_unlock(&w->lock);
        end_job(w, j);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- grammars ------------------------------------------------------------------------------- */

struct cr_token_tree *cr_worker_tree(cr_worker *w, struct cr_error *err)
{
    if (!w->tree && cr_token_tree_new(&w->tree, w->opt.model, err) != CR_OK)
        return NULL;
    return w->tree;
}

enum cr_status cr_worker_grammar(cr_worker *w, struct cr_job *j, struct cr_api_error *e)
{
    char key[65];
    struct cr_error err = {.status = CR_OK};
    if (!cr_grammar_key(&j->req, key))
        return CR_OK; /* free text */
    struct kept_grammar *oldest = w->grammars;
    for (size_t i = 0; i < MAX_GRAMMARS; i++) {
        struct kept_grammar *k = &w->grammars[i];
        if (k->g && cr_grammar_frames(k->g) > MAX_KEPT_FRAMES) {
            cr_grammar_unref(k->g); /* grown by long texts: made anew when it is wanted */
            *k = (struct kept_grammar){0};
        }
        if (k->g && strcmp(k->key, key) == 0) {
            k->used = ++w->clock;
            j->grammar = cr_grammar_ref(k->g);
            return CR_OK;
        }
        if (k->used < oldest->used)
            oldest = k;
    }
    if (!cr_worker_tree(w, &err)) {
        cr_api_error_from(e, &err);
        return err.status;
    }
    enum cr_status status = cr_grammar_of_request(&j->grammar, &j->req, e);
    if (status != CR_OK)
        return status;
    cr_grammar_unref(oldest->g);
    *oldest = (struct kept_grammar){.g = cr_grammar_ref(j->grammar), .used = ++w->clock};
    memcpy(oldest->key, key, sizeof key);
    return CR_OK;
}

struct cr_blends *cr_worker_blends(cr_worker *w)
{
    return &w->blends;
}

/* ---- start and stop ------------------------------------------------------------------------- */

cr_routing *cr_worker_routing(const cr_worker *w)
{
    return w->routing;
}

const struct cr_serve_options *cr_worker_options(const cr_worker *w)
{
    return &w->opt;
}

enum cr_status cr_worker_new(cr_worker **out, const struct cr_serve_options *opt,
                             struct cr_metrics *metrics, struct cr_error *err)
{
    *out = NULL;
    cr_worker *w = cr_alloc0(1, sizeof *w);
    if (!w)
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    w->opt = *opt;
    w->metrics = metrics;
    w->last = &w->first;
    w->last_special = &w->special;
    pthread_mutex_init(&w->lock, NULL);
    cr_cond_init(&w->change);
    size_t n = (size_t)opt->parallel, n_vocab = (size_t)cr_model_info(opt->model)->n_vocab;
    w->running = cr_alloc(n, sizeof(struct cr_choice *));
    w->of_work = cr_alloc(n, sizeof(struct cr_choice *));
    w->work = cr_alloc(n, sizeof *w->work);
    w->scratch = cr_alloc(n_vocab, sizeof *w->scratch);
    enum cr_status status = w->running && w->of_work && w->work && w->scratch
                                ? CR_OK
                                : cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    if (status == CR_OK)
        status = cr_routing_new(&w->routing, &w->opt, metrics, w, err);
    if (status == CR_OK)
        status = cr_lanes_new(&w->lanes, opt->model, opt->parallel, opt->n_ctx, err);
    if (status == CR_OK) {
        w->started = pthread_create(&w->thread, NULL, work, w) == 0;
        w->special_started = pthread_create(&w->special_thread, NULL, work_special, w) == 0;
        if (!w->started || !w->special_started)
            status = cr_error_set(err, CR_LIMIT, "server: the system gave no thread");
    }
    if (status != CR_OK) {
        cr_worker_free(w);
        return status;
    }
    *out = w;
    return CR_OK;
}

/* Unless max_waiting jobs wait, or the worker is closing. */
static bool enqueue(cr_worker *w, struct cr_job *j, int max_waiting)
{
    pthread_mutex_lock(&w->lock);
    bool room = !w->closing && w->n_waiting < max_waiting;
    if (room) {
        struct cr_job ***last = j->special ? &w->last_special : &w->last;
        j->next = NULL;
        **last = j;
        *last = &j->next;
        w->n_waiting++;
        w->n_active++;
        pthread_cond_broadcast(&w->change);
    }
    pthread_mutex_unlock(&w->lock);
    return room;
}

bool cr_worker_push(cr_worker *w, struct cr_job *j)
{
    j->pushed_ms = j->sent_ms = cr_now_ms();
    return enqueue(w, j, w->opt.max_queue);
}

bool cr_worker_push_back(cr_worker *w, struct cr_job *j)
{
    if (enqueue(w, j, INT_MAX))
        return true;
    struct cr_api_error e;
    cr_api_error_set(&e, 503, NULL, NULL, "the server is stopping");
    cr_job_fail(j, &e);
    return false;
}

int cr_worker_waiting(cr_worker *w)
{
    pthread_mutex_lock(&w->lock);
    int n = w->n_waiting;
    pthread_mutex_unlock(&w->lock);
    return n;
}

int cr_worker_active(cr_worker *w)
{
    pthread_mutex_lock(&w->lock);
    int n = w->n_active;
    pthread_mutex_unlock(&w->lock);
    return n;
}

static int left_ms(double end)
{
    double left = end - cr_now_ms();
    return left > 0 ? (int)left : 0;
}

bool cr_worker_wait_idle(cr_worker *w, int ms)
{
    double end = cr_now_ms() + ms;
    bool idle;
    do { /* what a server did not answer comes back */
        idle = cr_wait_for_zero(&w->n_active, &w->lock, &w->change, left_ms(end)) &&
               cr_routing_wait(w->routing, left_ms(end));
    } while (idle && cr_worker_active(w) > 0);
    return idle;
}

void cr_worker_free(cr_worker *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    if (w->running_special)
        atomic_store(&w->running_special->cancelled, true);
    pthread_cond_broadcast(&w->change);
    pthread_mutex_unlock(&w->lock);
    if (w->started)
        pthread_join(w->thread, NULL);
    if (w->special_started)
        pthread_join(w->special_thread, NULL);
    cr_routing_free(w->routing);
    cr_blends_deinit(&w->blends);
    for (size_t i = 0; i < MAX_GRAMMARS; i++)
        cr_grammar_unref(w->grammars[i].g);
    cr_token_tree_free(w->tree);
    cr_lanes_free(w->lanes);
    cr_free(w->running);
    cr_free(w->of_work);
    cr_free(w->work);
    cr_free(w->scratch);
    pthread_cond_destroy(&w->change);
    pthread_mutex_destroy(&w->lock);
    cr_free(w);
}
