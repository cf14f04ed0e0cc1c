/* SPDX-License-Identifier: Apache-2.0 */
/* Upstreams in their order, each with its model, key and price; then rule and limits. */
#ifdef CRAYON_ROUTE

#include "routing.h"

#include "base/mem.h"

#include <string.h>
#include <sys/prctl.h>

enum { MAX_UPSTREAMS = 8 };

/* "IN,OUT": money per million tokens. */
static enum cr_status take_price(struct cr_upstream_options *opt, const char *text,
                                 struct cr_error *err)
{
    char in[32];
    const char *comma = strchr(text, ',');
    size_t n = comma ? (size_t)(comma - text) : 0;
    if (n > 0 && n < sizeof in) {
        memcpy(in, text, n);
        in[n] = '\0';
        if (cr_parse_real(in, &opt->price_in) && cr_parse_real(comma + 1, &opt->price_out) &&
            opt->price_in >= 0 && opt->price_out >= 0)
            return CR_OK;
    }
    return cr_error_set(err, CR_INVALID,
                        "--upstream-price: want IN,OUT per million tokens, such as 0.15,0.6, found "
                        "\"%s\"",
                        text);
}

/* The value of a repeated option for upstream i of n; one value stands for all. */
static enum cr_status nth(const struct cr_args *a, enum cr_opt id, const char *name, size_t i,
                          size_t n, const char **out, struct cr_error *err)
{
    size_t have;
    const char *const *v = cr_arg_texts(a, id, &have);
    *out = have == 0 ? NULL : have == 1 ? v[0] : i < have ? v[i] : NULL;
    if (have <= 1 || have == n)
        return CR_OK;
    return cr_error_set(err, CR_INVALID,
                        "--%s: want one, or one for each of %zu upstreams, found %zu", name, n,
                        have);
}

/* A key goes to the upstream that it was given for: one key file, like $CRAYON_API_KEY, belongs to
 * the first one. */
static enum cr_status take_key(const struct cr_args *a, size_t i, size_t n, char **key,
                               struct cr_error *err)
{
    size_t have;
    const char *const *v = cr_arg_texts(a, CR_OPT_UPSTREAM_KEY_FILE, &have);
    if (have > n)
        return cr_error_set(err, CR_INVALID, "--upstream-key-file: found %zu for %zu upstreams",
                            have, n);
    if (i >= have && i > 0)
        return CR_OK;
    return cr_key_read(i < have ? v[i] : NULL, key, err);
}

static enum cr_status upstream_of(struct cr_upstream_options *opt, char **key,
                                  const struct cr_args *a, size_t i, const char *const *urls,
                                  size_t n, struct cr_error *err)
{
    const char *price;
    *opt = (struct cr_upstream_options){
        .url = urls[i],
        .insecure = cr_arg_flag(a, CR_OPT_UPSTREAM_INSECURE),
        .total_ms = (int)(cr_arg_real(a, CR_OPT_UPSTREAM_TIMEOUT) * 1000),
        .ca_file = cr_arg_text(a, CR_OPT_UPSTREAM_CA),
    };
    enum cr_status st = nth(a, CR_OPT_UPSTREAM_MODEL, "upstream-model", i, n, &opt->model, err);
    if (st == CR_OK && !opt->model)
        st = cr_error_set(err, CR_INVALID, "--upstream needs --upstream-model");
    if (st == CR_OK)
        st = nth(a, CR_OPT_UPSTREAM_PRICE, "upstream-price", i, n, &price, err);
    if (st == CR_OK && price)
        st = take_price(opt, price, err);
    if (st == CR_OK)
        st = take_key(a, i, n, key, err);
    if (st == CR_OK && *key)
        prctl(PR_SET_DUMPABLE, 0); /* the key must not be in a core file */
    opt->key = *key;
    return st;
}

/* Options that a verb does not take keep the router's defaults. */
static bool takes(const struct cr_args *a, enum cr_opt id)
{
    return a->v[id].opt != NULL;
}

enum cr_status cr_routing_open(cr_router **out, const struct cr_args *a, struct cr_error *err)
{
    struct cr_upstream_options up[MAX_UPSTREAMS];
    char *keys[MAX_UPSTREAMS] = {NULL};
    size_t n, n_masks = 0;
    const char *const *urls = cr_arg_texts(a, CR_OPT_UPSTREAM, &n);
    *out = NULL;
    if (n == 0)
        return CR_OK;
    if (n > MAX_UPSTREAMS)
        return cr_error_set(err, CR_INVALID, "--upstream: want at most %d, found %zu",
                            MAX_UPSTREAMS, n);
    struct cr_router_options opt = {
        .rule = CR_RULE_RANDOM, .budget = 1, .upstream = up, .n_upstreams = n};
    if (takes(a, CR_OPT_RULE)) {
        opt.rule = (enum cr_rule)cr_rule_by_name(cr_arg_text(a, CR_OPT_RULE));
        opt.budget = cr_arg_real(a, CR_OPT_BUDGET);
        opt.max_wrong = cr_arg_real(a, CR_OPT_MAX_WRONG);
        if (opt.max_wrong > 0 && !cr_arg_given(a, CR_OPT_BUDGET))
            opt.budget = 1; /* the bound on errors decides alone */
        opt.seed = takes(a, CR_OPT_SEED) ? cr_arg_seed(a, CR_OPT_SEED) : 1;
        opt.offline = cr_arg_flag(a, CR_OPT_OFFLINE);
        opt.max_cost = cr_arg_real(a, CR_OPT_MAX_COST);
        opt.max_spend = cr_arg_real(a, CR_OPT_MAX_SPEND);
        opt.spend_hours = cr_arg_real(a, CR_OPT_SPEND_HOURS);
    }
    if (takes(a, CR_OPT_BUDGET_WINDOW))
        opt.window = cr_arg_int(a, CR_OPT_BUDGET_WINDOW);
    if (takes(a, CR_OPT_MASK)) {
        const char *kinds = cr_arg_text(a, CR_OPT_MASK);
        opt.mask = !kinds || strcmp(kinds, "none") != 0;
        opt.mask_patterns = cr_arg_texts(a, CR_OPT_MASK_PATTERN, &n_masks);
        opt.n_mask_patterns = n_masks;
    }
    enum cr_status st = CR_OK;
    for (size_t i = 0; i < n && st == CR_OK; i++)
        st = upstream_of(&up[i], &keys[i], a, i, urls, n, err);
    if (st == CR_OK)
        st = cr_router_new(out, &opt, err);
    for (size_t i = 0; i < n; i++)
        cr_key_free(keys[i]);
    return st;
}

#endif
