/* SPDX-License-Identifier: Apache-2.0 */
/* The pools in models/ belong to the models that they are named after. */
#include "adapt/pool.h"
#include "base/mem.h"
#include "common.h"
#include "model/gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define SMOLLM2 "smollm2-135m-instruct-q4_1"
/* of the file that tools/get_models.sh fetches */
#define SMOLLM2_HASH "d786a2b8cc33d64f956e024f97bae1fb61bd51c5af8309f333223bc32de73d98"

static struct cr_error err;

static void opens(const char *model, const char *pool, int n)
{
    cr_model *m;
    cr_pool *p;
    assert_int_equal(cr_model_open(&m, model, NULL, &err), CR_OK);
    assert_int_equal(cr_pool_open(&p, m, pool, &err), CR_OK);
    assert_int_equal(cr_pool_size(p), n);
    assert_int_equal(cr_pool_check_view(p, CR_VIEW_MIDDLE, &err), CR_OK);
    cr_pool_close(p);
    cr_model_close(m);
}

static void test_embedded(void **state)
{
    (void)state;
    opens(CR_SOURCE_DIR "/models/crayon-15m-q8_0.gguf",
          CR_SOURCE_DIR "/models/crayon-15m-pool.gguf", 16);
}

static void test_smollm2_names_its_model(void **state)
{
    (void)state;
    cr_gguf *g;
    struct cr_str hash;
    assert_int_equal(cr_gguf_open(&g, CR_SOURCE_DIR "/models/" SMOLLM2 "-pool.gguf", &err), CR_OK);
    assert_int_equal(cr_gguf_str(g, "crayon.pool.base_hash", true, &hash, &err), CR_OK);
    assert_int_equal(hash.n, strlen(SMOLLM2_HASH));
    assert_memory_equal(hash.p, SMOLLM2_HASH, hash.n);
    cr_gguf_close(g);
}

static void test_smollm2(void **state)
{
    (void)state;
    char *model;
    if (cr_model_locate(SMOLLM2, &model, &err)) {
        print_message("skip: %s (make models)\n", err.msg);
        skip();
    }
    opens(model, CR_SOURCE_DIR "/models/" SMOLLM2 "-pool.gguf", 8);
    cr_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embedded),
        cmocka_unit_test(test_smollm2_names_its_model),
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
