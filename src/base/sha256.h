/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4), for identities of files and models in the core, which has no libsodium. */
#ifndef CR_SHA256_H
#define CR_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cr_sha256 {
    uint32_t h[8];
    uint64_t n_bytes;
    uint8_t block[64];
    bool hardware; /* set by init where the CPU has the instructions; tests clear it */
};
bool cr_sha256_has_hardware(void);
void cr_sha256_init(struct cr_sha256 *s);
void cr_sha256_add(struct cr_sha256 *s, const void *data, size_t n);
/* 64 lower-case hex digits and a NUL. */
void cr_sha256_hex(struct cr_sha256 *s, char hex[65]);
/* Takes the same time wherever the two differ: for digests of keys. */
bool cr_sha256_equal(const char a[64], const char b[64]);

#endif
