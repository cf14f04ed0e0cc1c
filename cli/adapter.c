/* SPDX-License-Identifier: Apache-2.0 */
/* `crayon adapter check|info|convert|merge`: LoRA files and folders. */
#include "adapt/adapter.h"

#include "base/mem.h"
#include "common.h"
#include "info.h"
#include "messages.h"
#include "verbs.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int cr_cli_adapter_info(const struct cr_args *a)
{
    return cr_info_print(a, a->rest[0], 1u << CR_INFO_LORA | 1u << CR_INFO_PEFT);
}

/* ---- check ---- */

/* Which linears it changes and in how many layers. */
static void pair_facts(struct cr_facts *f, const cr_adapter *ad)
{
    cr_facts_list(f, "targets", "changes (linear, layers, ranks, scale)");
    for (int lin = 0; lin < CR_LIN_COUNT; lin++) {
        int layers = 0, least = 0, most = 0;
        float scale = 0;
        for (int l = 0; l < ad->n_layers; l++) {
            const struct cr_adapter_pair *p = &ad->pairs[l * CR_LIN_COUNT + lin];
            if (!p->rank)
                continue;
            layers++;
            least = !least || p->rank < least ? p->rank : least;
            most = p->rank > most ? p->rank : most;
            scale = p->scale;
        }
        if (!layers)
            continue;
        if (f->json) {
            cr_json_open_line(&f->j, NULL, '{');
            cr_json_str(&f->j, "linear", cr_linear_names[lin]);
            cr_json_int(&f->j, "layers", layers);
            cr_json_int(&f->j, "least_rank", least);
            cr_json_int(&f->j, "most_rank", most);
            cr_json_real(&f->j, "scale", (double)scale);
            cr_json_close(&f->j);
        }
        cr_facts_line(f, "  %-12s %3d layers, rank %d to %d, scale %g", cr_linear_names[lin],
                      layers, least, most, (double)scale);
    }
    cr_facts_list_end(f);
}

int cr_cli_adapter_check(const struct cr_args *a)
{
    struct cr_setup s;
    struct cr_error err;
    struct cr_facts f;
    cr_adapter *ad = NULL;
    cr_delta *delta = NULL;
    char *path = NULL;
    float scale, effect = 0;
    enum cr_status st = cr_setup_open(&s, a, 0, &err);
    if (!st)
        st = cr_split_scale(a->rest[0], &path, &scale, &err);
    if (!st)
        st = cr_adapter_open(&ad, s.model, path, &err);
    if (!st)
        st = cr_adapters_combine(&delta, s.model, (const cr_adapter *const *)&ad, &scale, 1, &err);
    if (!st)
        st = cr_delta_effect(s.model, delta, &effect, &err);
    if (!st && !(effect > 0))
        st = cr_error_set(&err, CR_FORMAT, "%s: fits %s but changes nothing", path, s.model_path);
    if (!st && !isfinite(effect))
        st = cr_error_set(&err, CR_FORMAT, "%s: gives logits that are not finite", path);
    int code = 0;
    if (!st) {
        cr_facts_begin(&f, cr_arg_flag(a, CR_OPT_JSON));
        cr_fact_str(&f, "adapter", ad->path);
        cr_fact_str(&f, "name", *ad->name ? ad->name : NULL);
        cr_fact_str(&f, "model", s.model_path);
        cr_fact_bool(&f, "fits", true);
        cr_fact_int(&f, "pairs", ad->n_pairs);
        cr_fact_int(&f, "rank", ad->max_rank);
        cr_fact_real(&f, "alpha", (double)ad->alpha);
        cr_fact_real(&f, "largest_change", (double)effect);
        pair_facts(&f, ad);
        code = cr_facts_print(&f);
    }
    cr_delta_free(delta);
    cr_adapter_close(ad);
    cr_free(path);
    cr_setup_close(&s);
    return st ? cr_fail(&err) : code;
}

/* ---- convert ---- */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

int cr_cli_adapter_convert(const struct cr_args *a)
{
    const char *out = cr_arg_text(a, CR_OPT_OUTPUT);
    bool gguf = ends_with(out, ".gguf");
    if (cr_cli_type(a) == CR_BF16)
        return cr_misuse("adapter convert", "adapters are written as f32 or f16");
    struct cr_setup s;
    struct cr_error err;
    cr_adapter *ad = NULL;
    enum cr_status st = cr_setup_open(&s, a, 0, &err);
    if (!st)
        st = cr_adapter_open(&ad, s.model, a->rest[0], &err);
    if (!st)
        st = gguf ? cr_adapter_write_gguf(ad, s.model, out, cr_cli_type(a), &err)
                  : cr_adapter_write_peft(ad, s.model, out, cr_cli_type(a), &err);
    if (!st)
        cr_note("wrote %s, %d pairs of rank up to %d", out, ad->n_pairs, ad->max_rank);
    cr_adapter_close(ad);
    cr_setup_close(&s);
    return st ? cr_fail(&err) : 0;
}

/* ---- merge ---- */

int cr_cli_adapter_merge(const struct cr_args *a)
{
    const char *out = cr_arg_text(a, CR_OPT_OUTPUT);
    size_t n;
    cr_arg_texts(a, CR_OPT_ADAPTER, &n);
    if (!n && !cr_arg_text(a, CR_OPT_PALETTE))
        return cr_misuse("adapter merge", "nothing to merge; give --adapter or --palette");
    struct cr_setup s;
    struct cr_error err;
    struct stat sb;
    enum cr_status st = cr_setup_open(&s, a, CR_SETUP_DELTA, &err);
    if (!st && !s.delta)
        st = cr_error_set(&err, CR_INVALID, "%s keeps the base model: nothing to merge",
                          cr_arg_text(a, CR_OPT_PALETTE));
    if (!st)
        st = cr_merge_write(s.model, s.delta, out, cr_cli_type(a), &err);
    if (!st) {
        char size[16];
        cr_note("wrote %s, %s", out,
                cr_bytes_text(stat(out, &sb) ? 0 : (uint64_t)sb.st_size, size));
    }
    cr_setup_close(&s);
    return st ? cr_fail(&err) : 0;
}
