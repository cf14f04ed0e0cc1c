/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job: one request on its way from the HTTP thread to the worker and back. The HTTP side and the
 * worker hold one reference each; the last one frees it. The fields below `lock` are guarded by it;
 * those above belong to the HTTP thread until the job is pushed and to the worker after that.
 */
#ifndef CR_JOB_H
#define CR_JOB_H

#include "serve/choice.h"
#include "serve/lanes.h"
#include "serve/metrics.h"
#include "serve/models.h"
#include "serve/routed.h"
#include "serve/serve.h"

#include <pthread.h>
#include <stdatomic.h>

struct MHD_Connection;
typedef struct cr_worker cr_worker;

struct cr_job {
    struct cr_api_request req;
    struct cr_target *target; /* what `model` named; a reference */
    cr_shelf *shelf;
    size_t metric;         /* index of cr_metric_endpoints */
    char id[48];           /* "chatcmpl-..." or "cmpl-..." */
    char fingerprint[24];  /* of the build, the model and the blend */
    char caller[65];       /* SHA-256 of the key: whose cache it may use */
    int64_t created;       /* Unix seconds */
    int fd;                /* the client's socket, to see it go away; -1: closed */
    atomic_bool cancelled; /* the client is gone or the server stops */
    atomic_int refs;
    struct cr_job *next; /* in the worker's list */

    /* the worker's */
    void (*special)(cr_worker *w, struct cr_job *j); /* instead of choices; on its own thread */
    json_t *body;                                    /* of a special job */
    struct cr_choice *choices;                       /* [n_choices] */
    size_t n_choices, n_begun, n_running, n_ended;
    size_t n_prompt, n_answer, n_cached; /* tokens */
    cr_grammar *grammar;                 /* or NULL */
    double pushed_ms, first_ms, sent_ms;
    double blend_ms; /* of examples in the request; NAN: none */
    bool prepared;
    bool task_form;  /* the messages stand in the form that palettes are made in */
    size_t n_worked; /* worked examples in front of the prompt, the fewest of all prompts */
    const char
        *stop[CR_API_MAX_STOP + 1]; /* [n_stop] of the request, and the line end of the form */
    size_t n_stop;
    struct cr_routed routed; /* who answers */
    /* the dialect's stream */
    bool role_sent[CR_API_MAX_CHOICES];
    int sequence, block;
    bool block_open, block_is_call;

    pthread_mutex_t lock;
    struct MHD_Connection *waiting;   /* whose reply this is; HTTP thread only */
    struct MHD_Connection *suspended; /* waits for news, else NULL */
    void (*resume)(struct MHD_Connection *c);
    int http;          /* status, 0 until the worker knows it */
    bool finished;     /* no more bytes come */
    struct cr_buf out; /* the body, or the events so far */
    size_t n_sent;     /* of out, by the HTTP side */
};

enum { CR_JOB_MAX_OUT = 1 << 26 }; /* bytes of one reply */

double cr_now_ms(void);
struct cr_job *cr_job_new(void); /* two references; NULL: out of memory */
void cr_job_unref(struct cr_job *j);
/* Sets the status (0: as it is), appends nothing, and wakes the HTTP side. */
void cr_job_news(struct cr_job *j, int http, bool finished);
/* Appends v (stolen) and wakes the HTTP side; false when the job can take no more. */
bool cr_job_add(struct cr_job *j, const char *before, json_t *v, const char *after);
bool cr_job_puts(struct cr_job *j, const char *text);
/* Ends it with an error, in the shape of its dialect and whether or not bytes have gone out. */
void cr_job_fail(struct cr_job *j, const struct cr_api_error *e);
bool cr_job_client_gone(struct cr_job *j);
/* Counts a job that is over. */
void cr_job_measure(const struct cr_job *j, struct cr_metrics *m);

/* schedule.c: the worker, its bounded queue and the passes. */
enum cr_status cr_worker_new(cr_worker **out, const struct cr_serve_options *opt,
                             struct cr_metrics *metrics, struct cr_error *err);
/* Queues a job (its worker reference is taken). False when the queue is full or closing. */
bool cr_worker_push(cr_worker *w, struct cr_job *j);
/* Queues a job that has been ready before, whatever waits: its server failed. The worker has its
 * reference again; where it is closing the job is failed first, and false. */
bool cr_worker_push_back(cr_worker *w, struct cr_job *j);
int cr_worker_waiting(cr_worker *w); /* jobs that have not begun */
int cr_worker_active(cr_worker *w);  /* all jobs */
/* Waits until nothing is queued or running, at most ms milliseconds. */
bool cr_worker_wait_idle(cr_worker *w, int ms);
/* Cancels what runs, drops what waits, joins the thread. */
void cr_worker_free(cr_worker *w);
const struct cr_serve_options *cr_worker_options(const cr_worker *w);
cr_routing *cr_worker_routing(const cr_worker *w); /* NULL: nothing is routed */

/* job.c: a condition that waits by the monotonic clock. */
void cr_cond_init(pthread_cond_t *c);
/* Waits until *n, which `lock` guards and `change` tells of, is 0, at most ms milliseconds;
 * is it? */
bool cr_wait_for_zero(const int *n, pthread_mutex_t *lock, pthread_cond_t *change, int ms);

/* prompt.c: a request's prompt or messages as ids (free ids.v with cr_free in both cases). n_ctx:
 * tokens that the context holds; worked examples are left out, the first ones first, where they do
 * not fit into it beside the answer. p: NULL for messages. */
struct cr_prompt {
    struct cr_ids ids;
    size_t n_hidden; /* of them, that are not the client's own text */
    size_t n_worked; /* examples that stand in front */
    bool task;       /* messages in the task form: the answer is one line */
};
enum cr_status cr_prompt_make(struct cr_prompt *out, const struct cr_target *t,
                              const struct cr_api_request *q, const struct cr_api_prompt *p,
                              int n_ctx, struct cr_error *err);

/* answer.c: a job's choices from its request. Worker's thread. */
bool cr_answer_prepare(cr_worker *w, struct cr_job *j, int n_ctx, struct cr_api_error *e);
/* Held text goes out as far as it goes before the end: a stream begins. */
void cr_answer_release(struct cr_job *j);
/* The rest of the reply; a line for the log. */
void cr_answer_reply(struct cr_job *j);
void cr_answer_note(const struct cr_serve_options *opt, const struct cr_job *j, const char *how);
/* All choices have ended: the rest of the reply, or a decision that somebody else gives it. */
void cr_answer_end(cr_worker *w, struct cr_job *j);
/* constraint cache of the worker: the grammar of a request, compiled once. */
enum cr_status cr_worker_grammar(cr_worker *w, struct cr_job *j, struct cr_api_error *e);
struct cr_blends *cr_worker_blends(cr_worker *w);
struct cr_token_tree *cr_worker_tree(cr_worker *w, struct cr_error *err);

#endif
