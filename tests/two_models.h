/* SPDX-License-Identifier: Apache-2.0 */
/* A model of each tokenizer family, for tests of prompts; after cmocka's includes. */
#ifndef CR_TESTS_TWO_MODELS_H
#define CR_TESTS_TWO_MODELS_H

#include "model/model.h"

static cr_model *models[2]; /* gpt2 BPE, SentencePiece with BOS */
static struct cr_error err;

static void must(enum cr_status st)
{
    if (st)
        fail_msg("%s", err.msg);
}

static int open_models(void **state)
{
    (void)state;
    struct cr_model_options opt = {.n_threads = 1};
    must(cr_model_open(&models[0], CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf", &opt, &err));
    must(cr_model_open(&models[1], CR_SOURCE_DIR "/tests/data/stories260K.gguf", &opt, &err));
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    cr_model_close(models[0]);
    cr_model_close(models[1]);
    return 0;
}

#endif
