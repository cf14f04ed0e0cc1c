/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs: bytes from the worker to the HTTP side. */
#include "serve/job.h"

#include "base/mem.h"
#include "serve/reply.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

double cr_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

struct cr_job *cr_job_new(void)
{
    struct cr_job *j = cr_alloc0(1, sizeof *j);
    if (!j)
        return NULL;
    atomic_store(&j->refs, 2);
    pthread_mutex_init(&j->lock, NULL);
    cr_buf_init(&j->out, CR_JOB_MAX_OUT);
    j->fd = -1;
    j->blend_ms = NAN;
    return j;
}

void cr_job_unref(struct cr_job *j)
{
    if (!j || atomic_fetch_sub(&j->refs, 1) > 1)
        return;
    for (size_t i = 0; i < j->n_choices; i++)
        cr_choice_deinit(&j->choices[i]);
    cr_free(j->choices);
    cr_grammar_unref(j->grammar);
    cr_target_unref(j->target);
    json_decref(j->body);
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
    j->sent_ms = cr_now_ms();
    return ok;
}

bool cr_job_puts(struct cr_job *j, const char *text)
{
    pthread_mutex_lock(&j->lock);
    bool ok = cr_buf_puts(&j->out, text);
    if (j->http && j->req.stream)
        wake(j);
    pthread_mutex_unlock(&j->lock);
    j->sent_ms = cr_now_ms();
    return ok;
}

void cr_job_fail(struct cr_job *j, const struct cr_api_error *e)
{
    bool started = j->http != 0;                                   /* only the worker writes it */
    bool lines = cr_writer_of(j->req.kind)->stream_type[0] == 'a'; /* JSON lines, not events */
    json_t *body = cr_api_error_json(j->req.kind, e);
    if (!started)
        cr_job_add(j, "", body, "");
    else if (lines)
        cr_job_add(j, "", body, "\n");
    else
        cr_job_add(j,
                   j->req.kind == CR_API_MESSAGES || j->req.kind == CR_API_RESPONSES
                       ? "event: error\ndata: "
                       : "data: ",
                   body, "\n\n");
    cr_job_news(j, started ? 0 : e->http, true);
}

bool cr_job_client_gone(struct cr_job *j)
{
    char c;
    if (atomic_load(&j->cancelled))
        return true;
    /* A suspended connection keeps its socket; an end of stream there means that nobody waits. */
    pthread_mutex_lock(&j->lock);
    bool gone = j->fd >= 0 && recv(j->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
    pthread_mutex_unlock(&j->lock);
    return gone;
}

void cr_job_measure(const struct cr_job *j, struct cr_metrics *m)
{
    double now = cr_now_ms();
    bool away = j->routed.server;
    cr_metric_request(m, j->metric, j->http, away);
    cr_metric_tokens(m, CR_TOKENS_PROMPT, j->n_prompt, away);
    cr_metric_tokens(m, CR_TOKENS_CACHED, j->n_cached, away);
    cr_metric_tokens(m, CR_TOKENS_ANSWER, j->n_answer, away);
    if (j->first_ms > 0) {
        cr_metric_time(&m->first_token, j->first_ms - j->pushed_ms);
        if (j->n_answer > j->n_choices)
            cr_metric_time(&m->token, (now - j->first_ms) / (double)(j->n_answer - j->n_choices) *
                                          (double)j->n_choices);
    }
    cr_metric_time(&m->blend, j->blend_ms);
}

void cr_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

bool cr_wait_for_zero(const int *n, pthread_mutex_t *lock, pthread_cond_t *change, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(lock);
    while (*n > 0)
        if (pthread_cond_timedwait(change, lock, &until) == ETIMEDOUT)
            break;
    bool zero = *n == 0;
    pthread_mutex_unlock(lock);
    return zero;
}
