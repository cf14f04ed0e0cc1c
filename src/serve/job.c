/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs, the bounded queue and the worker's thread. */
#include "serve/job.h"

#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct cr_job *cr_job_new(void)
{
    struct cr_job *j = cr_alloc0(1, sizeof *j);
    if (!j)
        return NULL;
    atomic_store(&j->refs, 2);
    pthread_mutex_init(&j->lock, NULL);
    cr_buf_init(&j->out, CR_JOB_MAX_OUT);
    j->fd = -1;
    return j;
}

void cr_job_unref(struct cr_job *j)
{
    if (!j || atomic_fetch_sub(&j->refs, 1) > 1)
        return;
    cr_api_request_deinit(&j->req);
    cr_buf_deinit(&j->out);
    pthread_mutex_destroy(&j->lock);
    cr_free(j);
}

/* With the lock held. */
static void wake(struct cr_job *j)
{
    struct MHD_Connection *c = j->suspended;
    j->suspended = NULL;
    if (c)
        j->resume(c);
}

void cr_job_news(struct cr_job *j, int http, bool finished)
{
    pthread_mutex_lock(&j->lock);
    if (http)
        j->http = http;
    j->finished = finished;
    if (j->http && (finished || j->req.stream))
        wake(j);
    pthread_mutex_unlock(&j->lock);
}

bool cr_job_add(struct cr_job *j, const char *before, json_t *v, const char *after)
{
    pthread_mutex_lock(&j->lock);
    bool ok = cr_api_dump(&j->out, before, v, after);
    if (j->http && j->req.stream)
        wake(j);
    pthread_mutex_unlock(&j->lock);
    json_decref(v);
    return ok;
}

struct cr_worker {
    struct cr_serve_options opt;
    struct cr_answer_context ctx;
    char fingerprint[24];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    struct cr_job *first, **last, *running;
    int n_waiting;
    bool closing, started;
};

static void *work(void *arg)
{
    cr_worker *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->closing) {
        struct cr_job *j = w->first;
        if (!j) {
            pthread_cond_wait(&w->change, &w->lock);
            continue;
        }
        w->first = j->next;
        if (!w->first)
            w->last = &w->first;
        w->n_waiting--;
        w->running = j;
        pthread_mutex_unlock(&w->lock);
        cr_answer_job(&w->ctx, j);
        pthread_mutex_lock(&w->lock);
        w->running = NULL;
        cr_job_unref(j);
        pthread_cond_broadcast(&w->change);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

enum cr_status cr_worker_new(cr_worker **out, const struct cr_serve_options *opt,
                             struct cr_error *err)
{
    *out = NULL;
    cr_worker *w = cr_alloc0(1, sizeof *w);
    if (!w)
        return cr_error_set(err, CR_NO_MEMORY, "server: out of memory");
    w->opt = *opt;
    w->last = &w->first;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->change, NULL);
    snprintf(w->fingerprint, sizeof w->fingerprint, "fp_%.12s", cr_model_hash(opt->model));
    w->ctx.opt = &w->opt;
    w->ctx.fingerprint = w->fingerprint;
    enum cr_status status = cr_session_new(&w->ctx.session, opt->model, opt->n_ctx, err);
    if (status == CR_OK && pthread_create(&w->thread, NULL, work, w) != 0)
        status = cr_error_set(err, CR_LIMIT, "server: the system gave no thread");
    if (status != CR_OK) {
        cr_worker_free(w);
        return status;
    }
    w->started = true;
    *out = w;
    return CR_OK;
}

bool cr_worker_push(cr_worker *w, struct cr_job *j)
{
    pthread_mutex_lock(&w->lock);
    bool room = !w->closing && w->n_waiting < w->opt.max_queue;
    if (room) {
        *w->last = j;
        w->last = &j->next;
        w->n_waiting++;
        pthread_cond_broadcast(&w->change);
    }
    pthread_mutex_unlock(&w->lock);
    return room;
}

bool cr_worker_wait_idle(cr_worker *w, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&w->lock);
    while (w->first || w->running)
        if (pthread_cond_timedwait(&w->change, &w->lock, &until) == ETIMEDOUT)
            break;
    bool idle = !w->first && !w->running;
    pthread_mutex_unlock(&w->lock);
    return idle;
}

void cr_worker_free(cr_worker *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    if (w->running)
        atomic_store(&w->running->cancelled, true);
    pthread_cond_broadcast(&w->change);
    pthread_mutex_unlock(&w->lock);
    if (w->started)
        pthread_join(w->thread, NULL);
    while (w->first) {
        struct cr_job *j = w->first;
        w->first = j->next;
        cr_job_news(j, 503, true);
        cr_job_unref(j);
    }
    cr_session_free(w->ctx.session);
    pthread_cond_destroy(&w->change);
    pthread_mutex_destroy(&w->lock);
    cr_free(w);
}
