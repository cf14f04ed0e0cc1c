/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters for Prometheus. Labels come from fixed lists, never from a request, so their number is
 * bounded. Thread-safe without locks.
 */
#ifndef CR_METRICS_H
#define CR_METRICS_H

#include "base/bytes.h"

#include <stdatomic.h>

enum { CR_METRIC_BUCKETS = 14, CR_METRIC_ENDPOINTS = 12, CR_METRIC_CODES = 16 };

struct cr_histogram {
    atomic_ullong bucket[CR_METRIC_BUCKETS + 1]; /* not cumulative; the last is +Inf */
    atomic_ullong sum_us;
};

enum cr_metric_tokens {
    CR_TOKENS_PROMPT,
    CR_TOKENS_CACHED,
    CR_TOKENS_ANSWER,
    CR_TOKENS_RUN,
    CR_TOKENS_KINDS
};

struct cr_metrics {
    /* first index: answered by this device, by a server */
    atomic_ullong requests[2][CR_METRIC_ENDPOINTS][CR_METRIC_CODES];
    atomic_ullong tokens[2][CR_TOKENS_KINDS];
    struct cr_histogram first_token, token, blend;
    /* of routing */
    atomic_ullong by_rule, by_wish, failed; /* requests for the server; failed ones of them */
    atomic_ullong upload_bytes, cost_micro; /* left the device; money times 1e6 */
};

/* Endpoint: index of the fixed list below, out of range counts as "other". */
extern const char *const cr_metric_endpoints[CR_METRIC_ENDPOINTS];
void cr_metric_request(struct cr_metrics *m, size_t endpoint, int http, bool by_server);
void cr_metric_tokens(struct cr_metrics *m, enum cr_metric_tokens kind, size_t n, bool by_server);
void cr_metric_time(struct cr_histogram *h, double ms);
/* What the text needs beside the counters. */
struct cr_metric_facts {
    int waiting, running, connections;
    size_t resident_bytes, n_palettes;
    const char *cpu;
};
bool cr_metrics_text(const struct cr_metrics *m, const struct cr_metric_facts *f,
                     struct cr_buf *out);

#endif
