/* SPDX-License-Identifier: Apache-2.0 */
/* The library in 40 lines: cc generate.c $(pkg-config --cflags --libs crayon) && ./a.out MODEL TEXT
 */
#include <crayon.h>
#include <stdio.h>
#include <string.h>

static bool print(void *ud, const char *text, size_t n)
{
    (void)ud;
    return fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL.gguf TEXT\n", argv[0]);
        return 2;
    }
    struct cr_error err;
    cr_model *model = NULL;
    cr_session *session = NULL;
    struct cr_generate g = {.max_tokens = 64, .sampling = cr_sampling_default(), .on_text = print};
    struct cr_generated done;
    int32_t *ids = NULL;
    enum cr_status status = cr_model_open(&model, argv[1], NULL, &err);
    if (status == CR_OK)
        status = cr_session_new(&session, model, 0, &err);
    if (status == CR_OK)
        status =
            cr_tokenize(model, argv[2], strlen(argv[2]), CR_TOKENIZE_BOS, &ids, &g.n_prompt, &err);
    g.prompt = ids;
    if (status == CR_OK)
        status = cr_generate(session, &g, &done, &err);
    if (status == CR_OK)
        printf("\n[%zu tokens, %.0f ms]\n", done.n_decode, done.prefill_ms + done.decode_ms);
    else
        fprintf(stderr, "%s\n", err.msg);
    cr_free(ids);
    cr_session_free(session);
    cr_model_close(model);
    return cr_status_exit_code(status);
}
