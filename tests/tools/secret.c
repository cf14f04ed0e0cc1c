/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For MemorySanitizer (tests/e2e/attacks_build.sh): the digest of a key is marked as not to be
 * looked at, so that a branch or an address that depends on it ends the program. With an argument
 * it is compared by memcmp, which has to be found.
 */
#include "base/sha256.h"

#include <sanitizer/msan_interface.h>
#include <string.h>

int main(int argc, char **argv)
{
    (void)argv;
    char given[65] = {0}, kept[65] = {0};
    for (int i = 0; i < 64; i++)
        given[i] = kept[i] = (char)('a' + i % 6);
    __msan_poison(kept, 64);
    volatile bool same = argc > 1 ? memcmp(given, kept, 64) == 0 : cr_sha256_equal(given, kept);
    __msan_unpoison((void *)&same, sizeof same);
    return 0;
}
