/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores of examples under a delta, packed into few passes with every shared prefix run once.
 * Multiple choice: option k gets the sum of log-probabilities of " " + text after the prompt; the
 * choice is the argmax of sum / UTF-8 bytes of the option text. Short answers: the log-probability
 * of " " + answer + "\n", exact when every token is the argmax.
 */
#ifndef CR_SCORE_H
#define CR_SCORE_H

#include "adapt/worked.h"
#include "model/session.h"

struct cr_option_score {
    float sum; /* log-probability of all tokens of the option */
    int n_tokens, n_bytes;
    bool is_greedy; /* every token was the argmax */
};

struct cr_example_score {
    int n_options;                   /* choices, or 1 for a short answer; 0: nothing to score */
    struct cr_option_score *options; /* [n_options] */
    int choice;                      /* argmax of sum / n_bytes; 0 for a short answer */
    bool has_answer;                 /* the fields below mean something */
    bool correct;                    /* choice == answer_index, or exact short answer */
    float nll;                       /* mean token NLL of the right answer (with "\n" if short) */
    float loss; /* choices: CE over options of 8 * sum / n_bytes, + 0.3 nll; else nll */
};

struct cr_scorer; /* tokenised examples of one file, ready to be scored many times */
typedef struct cr_scorer cr_scorer;

/* Tokenises once, each prompt behind the worked examples (NULL: none) as far as they fit the
 * context with it and its longest option; cr_scorer_n_left_out says how many did not, all prompts
 * together. Prompts that are longer without them lose tokens on the left, and cr_scorer_n_cut says
 * how many did. An option that no prompt token fits beside is CR_LIMIT. Neither examples nor worked
 * are needed afterwards. Free with cr_scorer_free. */
enum cr_status cr_scorer_new(cr_scorer **out, cr_model *m, const struct cr_worked *worked,
                             const struct cr_example *e, size_t n, struct cr_error *err);
void cr_scorer_free(cr_scorer *s);
size_t cr_scorer_n_examples(const cr_scorer *s);
size_t cr_scorer_n_answers(const cr_scorer *s); /* examples whose right answer is known */
size_t cr_scorer_n_tokens(const cr_scorer *s);  /* tokens that one pass runs */
size_t cr_scorer_n_cut(const cr_scorer *s);
size_t cr_scorer_n_left_out(const cr_scorer *s);
/* One pass over all examples that have choices or a short answer. *scores is an array of n, owned
 * by the scorer, valid until the next call. progress (may be NULL) is told done and total tokens;
 * false cancels (CR_CANCELLED). The scores of an example do not depend, bit for bit, on what else
 * is scored in the same pass. */
enum cr_status cr_scorer_run(cr_scorer *s, const cr_delta *delta,
                             const struct cr_example_score **scores,
                             bool (*progress)(void *ud, size_t done, size_t total), void *ud,
                             struct cr_error *err);
/* Log-probabilities of given tokens after a prompt of at least one: logprobs[i] of completion[i];
 * *is_greedy: each was the argmax. Uses the session's cache and leaves it empty. */
enum cr_status cr_score_tokens(cr_session *s, const int32_t *prompt, size_t n_prompt,
                               const int32_t *completion, size_t n, float *logprobs,
                               bool *is_greedy, struct cr_error *err);

struct cr_score_job { /* as the arguments of cr_score_tokens */
    const int32_t *prompt, *completion;
    size_t n_prompt, n;
    float *logprobs; /* [n] */
    bool is_greedy;
};
/* cr_score_tokens for many at once, on the model's device (cr_model.compute), in few batches. */
enum cr_status cr_score_jobs(cr_model *m, const cr_delta *delta, struct cr_score_job *jobs,
                             size_t n_jobs, struct cr_error *err);

#endif
