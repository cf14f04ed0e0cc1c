/* SPDX-License-Identifier: Apache-2.0 */
/* Prometheus text format. Numbers are written with integers only, so no locale can change them. */
#include "serve/metrics.h"

#include <string.h>

const char *const cr_metric_endpoints[CR_METRIC_ENDPOINTS] = {
    "completions",     "chat",       "responses", "messages", "count_tokens", "ollama_chat",
    "ollama_generate", "embeddings", "models",    "tokens",   "admin",        "other"};

static const int codes[CR_METRIC_CODES] = {200, 400, 401, 403, 404, 405, 408, 413,
                                           415, 422, 429, 499, 500, 502, 503, 0};

/* Upper bounds in microseconds. */
static const unsigned long long bounds[CR_METRIC_BUCKETS] = {
    1000,   2500,   5000,    10000,   25000,   50000,    100000,
    250000, 500000, 1000000, 2500000, 5000000, 10000000, 60000000};

void cr_metric_request(struct cr_metrics *m, size_t endpoint, int http, bool by_server)
{
    size_t e = endpoint < CR_METRIC_ENDPOINTS ? endpoint : CR_METRIC_ENDPOINTS - 1, c = 0;
    while (c < CR_METRIC_CODES - 1 && codes[c] != http)
        c++;
    atomic_fetch_add(&m->requests[by_server][e][c], 1);
}

void cr_metric_tokens(struct cr_metrics *m, enum cr_metric_tokens kind, size_t n, bool by_server)
{
    atomic_fetch_add(&m->tokens[by_server][kind], n);
}

void cr_metric_time(struct cr_histogram *h, double ms)
{
    if (!(ms >= 0))
        return;
    unsigned long long us = (unsigned long long)(ms * 1e3);
    size_t b = 0;
    while (b < CR_METRIC_BUCKETS && us > bounds[b])
        b++;
    atomic_fetch_add(&h->bucket[b], 1);
    atomic_fetch_add(&h->sum_us, us);
}

static void seconds(struct cr_buf *out, unsigned long long us)
{
    cr_buf_printf(out, "%llu.%06llu", us / 1000000, us % 1000000);
}

static void histogram(struct cr_buf *out, const char *name, const char *label, const char *help,
                      const struct cr_histogram *h)
{
    unsigned long long n = 0;
    const char *comma = label[0] ? "," : "";
    cr_buf_printf(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (size_t b = 0; b <= CR_METRIC_BUCKETS; b++) {
        n += atomic_load(&h->bucket[b]);
        cr_buf_printf(out, "%s_bucket{%s%sle=\"", name, label, comma);
        if (b < CR_METRIC_BUCKETS)
            seconds(out, bounds[b]);
        else
            cr_buf_puts(out, "+Inf");
        cr_buf_printf(out, "\"} %llu\n", n);
    }
    cr_buf_printf(out, "%s_sum%s%s%s ", name, label[0] ? "{" : "", label, label[0] ? "}" : "");
    seconds(out, atomic_load(&h->sum_us));
    cr_buf_printf(out, "\n%s_count%s%s%s %llu\n", name, label[0] ? "{" : "", label,
                  label[0] ? "}" : "", n);
}

bool cr_metrics_text(const struct cr_metrics *m, const struct cr_metric_facts *f,
                     struct cr_buf *out)
{
    static const char *const kinds[CR_TOKENS_KINDS] = {"prompt", "cached", "answer", "run"};
    static const char *const routes[2] = {"device", "server"};
    cr_buf_puts(out, "# HELP crayon_requests_total Requests by endpoint and status.\n"
                     "# TYPE crayon_requests_total counter\n");
    for (size_t i = 0; i < 2 * CR_METRIC_ENDPOINTS * CR_METRIC_CODES; i++) {
        size_t c = i % CR_METRIC_CODES, e = i / CR_METRIC_CODES % CR_METRIC_ENDPOINTS;
        size_t r = i / CR_METRIC_CODES / CR_METRIC_ENDPOINTS;
        unsigned long long n = atomic_load(&m->requests[r][e][c]);
        if (n == 0)
            continue;
        cr_buf_printf(out, "crayon_requests_total{endpoint=\"%s\",code=\"", cr_metric_endpoints[e]);
        if (codes[c])
            cr_buf_printf(out, "%d", codes[c]);
        else
            cr_buf_puts(out, "other");
        cr_buf_printf(out, "\",route=\"%s\"} %llu\n", routes[r], n);
    }
    cr_buf_puts(out,
                "# HELP crayon_tokens_total Tokens of prompts, of them reused from the cache, of "
                "answers, and run through the model.\n# TYPE crayon_tokens_total counter\n");
    for (size_t r = 0; r < 2; r++)
        for (size_t k = 0; k < CR_TOKENS_KINDS; k++)
            if (r == 0 || k == CR_TOKENS_PROMPT || k == CR_TOKENS_ANSWER)
                cr_buf_printf(out, "crayon_tokens_total{kind=\"%s\",route=\"%s\"} %llu\n", kinds[k],
                              routes[r], (unsigned long long)atomic_load(&m->tokens[r][k]));
    histogram(out, "crayon_time_to_first_token_seconds", "",
              "From the end of the request to the first token.", &m->first_token);
    histogram(out, "crayon_token_seconds", "",
              "From one token of an answer to the next, mean of a "
              "request.",
              &m->token);
    histogram(out, "crayon_blend_seconds", "path=\"branch\"", "From examples to an applied blend.",
              &m->blend);
    cr_buf_printf(
        out,
        "# HELP crayon_escalations_total Requests that were sent to a server, by reason.\n"
        "# TYPE crayon_escalations_total counter\n"
        "crayon_escalations_total{reason=\"rule\"} %llu\n"
        "crayon_escalations_total{reason=\"wish\"} %llu\n"
        "# HELP crayon_escalations_failed_total Those that no server answered.\n"
        "# TYPE crayon_escalations_failed_total counter\n"
        "crayon_escalations_failed_total %llu\n"
        "# HELP crayon_upload_bytes_total HTTP bytes that left the device.\n"
        "# TYPE crayon_upload_bytes_total counter\n"
        "crayon_upload_bytes_total %llu\n"
        "# HELP crayon_cost_usd_total What answers cost, in the currency of the prices.\n"
        "# TYPE crayon_cost_usd_total counter\ncrayon_cost_usd_total ",
        (unsigned long long)atomic_load(&m->by_rule), (unsigned long long)atomic_load(&m->by_wish),
        (unsigned long long)atomic_load(&m->failed),
        (unsigned long long)atomic_load(&m->upload_bytes));
    seconds(out, atomic_load(&m->cost_micro));
    cr_buf_puts(out, "\n");
    unsigned long long prompt = atomic_load(&m->tokens[0][CR_TOKENS_PROMPT]),
                       cached = atomic_load(&m->tokens[0][CR_TOKENS_CACHED]);
    unsigned long long share = prompt ? cached * 1000000 / prompt : 0;
    cr_buf_puts(out, "# HELP crayon_kv_hit_ratio Share of prompt tokens found in the cache.\n"
                     "# TYPE crayon_kv_hit_ratio gauge\ncrayon_kv_hit_ratio ");
    seconds(out, share);
    cr_buf_printf(out,
                  "\n# HELP crayon_queue_depth Requests that wait.\n"
                  "# TYPE crayon_queue_depth gauge\ncrayon_queue_depth %d\n"
                  "# HELP crayon_running Answers that are being made.\n"
                  "# TYPE crayon_running gauge\ncrayon_running %d\n"
                  "# HELP crayon_adapter_resident_bytes Memory of the palettes' deltas.\n"
                  "# TYPE crayon_adapter_resident_bytes gauge\n"
                  "crayon_adapter_resident_bytes %zu\n"
                  "# HELP crayon_palettes Palettes that are served.\n"
                  "# TYPE crayon_palettes gauge\ncrayon_palettes %zu\n"
                  "# HELP crayon_memory_bytes Memory that the program has allocated.\n"
                  "# TYPE crayon_memory_bytes gauge\ncrayon_memory_bytes %zu\n"
                  "# HELP crayon_build_info What runs.\n# TYPE crayon_build_info gauge\n"
                  "crayon_build_info{version=\"" CR_VERSION "\",simd=\"%s\"} 1\n",
                  f->waiting, f->running, f->resident_bytes, f->n_palettes, cr_mem_now(), f->cpu);
    return !out->failed;
}
