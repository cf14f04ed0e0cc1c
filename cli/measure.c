/* SPDX-License-Identifier: Apache-2.0 */
/* Accuracy, loss and F1 of rows. */
#include "measure.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_NEW = 32, MAX_WORDS = 512, MAX_TEXT = 4096 };

void cr_measure_scores(const struct cr_example_score *scores, size_t n, struct cr_measure *m,
                       uint8_t *correct)
{
    size_t right = 0;
    double loss = 0;
    *m = (struct cr_measure){.f1 = NAN};
    for (size_t i = 0; i < n; i++) {
        const struct cr_example_score *s = &scores[i];
        if (!s->has_answer)
            continue;
        if (correct)
            correct[m->n] = s->correct;
        m->n++;
        m->n_choices += s->n_options > 1;
        right += s->correct;
        loss += (double)s->loss;
    }
    m->n_short = m->n - m->n_choices;
    m->accuracy = m->n ? (double)right / (double)m->n : NAN;
    m->loss = m->n ? loss / (double)m->n : NAN;
}

/* ---- F1 ---- */

struct words {
    char text[MAX_TEXT];
    const char *v[MAX_WORDS];
    size_t n;
};

static bool is_article(const char *w)
{
    return !strcmp(w, "a") || !strcmp(w, "an") || !strcmp(w, "the");
}

/* Lower case, letters and digits only, split at everything else but punctuation inside a word. */
static void split_words(const char *s, struct words *w)
{
    size_t at = 0, start = 0;
    w->n = 0;
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
    for (bool end = false; !end;) {
        utf8proc_int32_t c = 0;
        utf8proc_ssize_t used = *p ? utf8proc_iterate(p, -1, &c) : 0;
        if (*p && used < 1) { /* broken UTF-8 separates words */
            used = 1;
            c = ' ';
        }
        end = !*p;
        p += used;
        utf8proc_category_t kind = c ? utf8proc_category(c) : UTF8PROC_CATEGORY_ZS;
        bool space = kind == UTF8PROC_CATEGORY_ZS || c < 0x20;
        bool punctuation = kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
        if (space && at > start) {
            w->text[at++] = '\0';
            if (!is_article(w->text + start) && w->n < MAX_WORDS)
                w->v[w->n++] = w->text + start;
            start = at;
        } else if (!space && !punctuation) {
            at +=
                (size_t)utf8proc_encode_char(utf8proc_tolower(c), (utf8proc_uint8_t *)w->text + at);
        }
        if (at + 8 > sizeof w->text) { /* an answer this long is compared by its start */
            w->text[at] = '\0';
            break;
        }
    }
}

static double f1_of(const struct words *a, const struct words *b)
{
    bool used[MAX_WORDS] = {false};
    size_t common = 0;
    if (!a->n || !b->n)
        return a->n == b->n;
    for (size_t i = 0; i < a->n; i++)
        for (size_t j = 0; j < b->n; j++)
            if (!used[j] && !strcmp(a->v[i], b->v[j])) {
                used[j] = true;
                common++;
                break;
            }
    return 2.0 * (double)common / (double)(a->n + b->n);
}

double cr_token_f1(const char *got, const char *const *want, size_t n)
{
    struct words a, b;
    double best = 0;
    split_words(got, &a);
    for (size_t i = 0; i < n; i++) {
        split_words(want[i], &b);
        best = fmax(best, f1_of(&a, &b));
    }
    return best;
}

/* ---- generated answers ---- */

struct reply {
    char text[MAX_TEXT];
    size_t n;
    bool (*cancelled)(void *ud);
    void *ud;
};

static bool on_text(void *ud, const char *text, size_t len)
{
    struct reply *r = ud;
    for (size_t i = 0; i < len && r->n + 1 < sizeof r->text; i++)
        if (text[i])
            r->text[r->n++] = text[i];
    r->text[r->n] = '\0';
    return !r->cancelled || !r->cancelled(r->ud);
}

static enum cr_status f1_row(cr_session *s, const struct cr_worked *worked,
                             const struct cr_example *e, struct reply *r, double *f1,
                             struct cr_error *err)
{
    static const char *const stop[] = {"\n"};
    struct cr_ids ids = {NULL, 0, 0};
    struct cr_generated out;
    size_t room = (size_t)cr_session_ctx(s);
    enum cr_status st = cr_prompt_encode(cr_session_model(s), e, &ids, err);
    if (!st)
        st = cr_worked_put(worked, cr_session_model(s), CR_WORKED_MAX,
                           cr_worked_room((int)room, MAX_NEW), &ids, 0, NULL, err);
    r->n = 0;
    r->text[0] = '\0';
    if (!st && ids.n) {
        /* as scoring does, a prompt that is too long loses tokens on the left */
        size_t cut = ids.n + MAX_NEW > room ? ids.n + MAX_NEW - room : 0;
        cut = cut < ids.n ? cut : ids.n - 1;
        struct cr_generate g = {.prompt = ids.v + cut,
                                .n_prompt = ids.n - cut,
                                .max_tokens = MAX_NEW,
                                .sampling = cr_sampling_default(),
                                .stop = stop,
                                .n_stop = 1,
                                .on_text = on_text,
                                .ud = r};
        g.sampling.temperature = 0;
        st = cr_generate(s, &g, &out, err);
        if (!st && out.finish == CR_FINISH_CANCELLED)
            st = cr_error_set(err, CR_CANCELLED, "interrupted");
    }
    cr_free(ids.v);
    if (st)
        return st;
    const char *right[1] = {e->answer};
    *f1 = cr_token_f1(r->text, right, 1);
    if (e->n_aliases)
        *f1 =
            fmax(*f1, cr_token_f1(r->text, (const char *const *)e->aliases, (size_t)e->n_aliases));
    return CR_OK;
}

enum cr_status cr_measure_f1(cr_session *s, const struct cr_worked *worked,
                             const struct cr_example *e, size_t n, double *f1,
                             bool (*cancelled)(void *ud), void *ud, struct cr_error *err)
{
    struct reply r = {.cancelled = cancelled, .ud = ud};
    double sum = 0;
    size_t count = 0;
    enum cr_status st = CR_OK;
    for (size_t i = 0; !st && i < n; i++) {
        double one = 0;
        if (e[i].n_choices || !e[i].answer)
            continue;
        st = f1_row(s, worked, &e[i], &r, &one, err);
        sum += one;
        count++;
    }
    *f1 = count && !st ? sum / (double)count : NAN;
    return st;
}
