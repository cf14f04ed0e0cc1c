/* SPDX-License-Identifier: Apache-2.0 */
/* How well a delta answers given rows: accuracy, exact match, F1, loss; shared by blend and eval.
 */
#ifndef CR_MEASURE_H
#define CR_MEASURE_H

#include "adapt/score.h"

struct cr_measure {
    size_t n, n_choices, n_short; /* rows with answers; of them with options; without */
    double accuracy;              /* right rows / n: the chosen option, or the exact answer */
    double loss;                  /* mean of cr_example_score.loss */
    double f1;                    /* mean over the short answers; NAN: not generated */
};

/* Sums up the scores of n rows; correct (may be NULL) gets 0 or 1 for each row with an answer, in
 * order: [m.n]. f1 stays NAN. */
void cr_measure_scores(const struct cr_example_score *scores, size_t n, struct cr_measure *m,
                       uint8_t *correct);
/* Generates the answers of rows without options (greedy, to the end of the line, at most 32 tokens)
 * under the session's delta, behind the worked examples that fit (NULL: none); *f1 is the mean of
 * cr_token_f1, NAN when there are no such rows. CR_CANCELLED when cancelled (may be NULL) says so.
 */
enum cr_status cr_measure_f1(cr_session *s, const struct cr_worked *worked,
                             const struct cr_example *e, size_t n, double *f1,
                             bool (*cancelled)(void *ud), void *ud, struct cr_error *err);
/* SQuAD's F1 of two texts: words in lower case without punctuation and English articles, as
 * multisets; the best over `want` [n]. Two texts without words are equal. */
double cr_token_f1(const char *got, const char *const *want, size_t n);

#endif
