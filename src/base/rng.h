/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A seeded generator, the same on every machine: xoshiro256** (Blackman and Vigna, 2018), seeded by
 * splitmix64. Plain data: copy it to save the state.
 */
#ifndef CR_RNG_H
#define CR_RNG_H

#include <stddef.h>
#include <stdint.h>

struct cr_rng {
    uint64_t s[4];
};
void cr_rng_init(struct cr_rng *r, uint64_t seed);
uint64_t cr_rng_u64(struct cr_rng *r);
double cr_rng_double(struct cr_rng *r);              /* uniform in [0, 1) with 53 bits */
uint64_t cr_rng_below(struct cr_rng *r, uint64_t n); /* uniform in [0, n), no modulo bias; n > 0 */
double cr_rng_normal(struct cr_rng *r);              /* mean 0, standard deviation 1 */
void cr_rng_shuffle(struct cr_rng *r, uint32_t *items, size_t n);

#endif
