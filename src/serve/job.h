/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job: one request on its way from the HTTP thread to the worker and back. The HTTP side and the
 * worker hold one reference each; the last one frees it. All fields below `lock` are guarded by it.
 */
#ifndef CR_JOB_H
#define CR_JOB_H

#include "serve/api.h"
#include "serve/serve.h"

#include <pthread.h>
#include <stdatomic.h>

struct MHD_Connection;

struct cr_job {
    struct cr_api_request req;
    const struct cr_served_palette *target; /* what `model` named */
    char id[40];                            /* "chatcmpl-..." or "cmpl-..." */
    char caller[65];                        /* SHA-256 of the Authorization header */
    int64_t created;                        /* Unix seconds */
    int fd;                                 /* the client's socket, to see it go away */
    atomic_bool cancelled;                  /* the client is gone or the server stops */
    atomic_int refs;
    struct cr_job *next; /* in the queue */

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

struct cr_job *cr_job_new(void); /* two references; NULL: out of memory */
void cr_job_unref(struct cr_job *j);
/* Sets the status (0: as it is), appends nothing, and wakes the HTTP side. */
void cr_job_news(struct cr_job *j, int http, bool finished);
/* Appends v (stolen) and wakes the HTTP side; false when the job can take no more. */
bool cr_job_add(struct cr_job *j, const char *before, json_t *v, const char *after);

typedef struct cr_worker cr_worker;
enum cr_status cr_worker_new(cr_worker **out, const struct cr_serve_options *opt,
                             struct cr_error *err);
/* Queues a job (its worker reference is taken). False when the queue is full or closing. */
bool cr_worker_push(cr_worker *w, struct cr_job *j);
/* Waits until nothing is queued or running, at most ms milliseconds. */
bool cr_worker_wait_idle(cr_worker *w, int ms);
/* Cancels what runs, drops what waits, joins the thread. */
void cr_worker_free(cr_worker *w);

/* Fills the job's reply; runs on the worker's thread (answer.c). */
struct cr_answer_context {
    const struct cr_serve_options *opt;
    cr_session *session;
    char caller[65]; /* whose tokens the cache holds */
    const char *fingerprint;
};
void cr_answer_job(struct cr_answer_context *ctx, struct cr_job *j);

#endif
