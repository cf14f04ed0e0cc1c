/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The effect probe: does this delta change what the model says, and by how much? A short fixed text
 * runs twice, and the logits of every token are compared. Deltas that are harmless one by one can
 * be probed together by combining them first.
 */
#include "adapt/adapter.h"
#include "base/mem.h"
#include "model/session.h"

#include <math.h>
#include <string.h>

static const char probe_text[] = "The quick brown fox asked: what is 2 + 2? Paris, 1984.";
enum { MAX_TOKENS = 32 };

struct probe {
    float *base; /* [n, n_vocab] logits without the delta */
    size_t n_vocab;
    bool compare;
    float max_diff;
};

static void on_logits(void *ud, size_t token, const float *logits)
{
    struct probe *p = ud;
    float *base = p->base + token * p->n_vocab;
    if (!p->compare) {
        memcpy(base, logits, p->n_vocab * sizeof *base);
        return;
    }
    for (size_t i = 0; i < p->n_vocab; i++) {
        float d = fabsf(logits[i] - base[i]);
        p->max_diff = d > p->max_diff ? d : p->max_diff;
        if (!isfinite(d))
            p->max_diff = INFINITY;
    }
}

enum cr_status cr_delta_effect(cr_model *m, const cr_delta *d, float *max_diff,
                               struct cr_error *err)
{
    *max_diff = 0;
    int32_t *ids = NULL;
    size_t n;
    cr_session *s = NULL;
    struct probe p = {.n_vocab = (size_t)m->n_vocab};
    struct cr_batch_token tokens[MAX_TOKENS];
    enum cr_status status =
        cr_tokenize(m, probe_text, sizeof probe_text - 1, CR_TOKENIZE_BOS, &ids, &n, err);
    if (status != CR_OK)
        return status;
    n = n < MAX_TOKENS ? n : MAX_TOKENS;
    for (size_t i = 0; i < n; i++)
        tokens[i] = (struct cr_batch_token){.id = ids[i], .pos = (int32_t)i, .want = true};
    cr_free(ids);
    status = cr_session_new(&s, m, MAX_TOKENS, err);
    if (status == CR_OK && !(p.base = cr_alloc(n * p.n_vocab, sizeof *p.base)))
        status = cr_error_set(err, CR_NO_MEMORY, "effect probe: out of memory");
    struct cr_batch b = {.tokens = tokens, .n = n, .on_logits = on_logits, .ud = &p};
    if (status == CR_OK)
        status = cr_session_run(s, &b, err);
    if (status == CR_OK) {
        cr_session_set_delta(s, d);
        cr_session_reset(s);
        p.compare = true;
        status = cr_session_run(s, &b, err);
    }
    if (status == CR_OK)
        *max_diff = p.max_diff;
    cr_session_free(s);
    cr_free(p.base);
    return status;
}
