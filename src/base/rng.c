/* SPDX-License-Identifier: Apache-2.0 */
/* xoshiro256** and what is drawn from it. */
#include "base/rng.h"

#include <math.h>

void cr_rng_init(struct cr_rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        r->s[i] = z ^ (z >> 31);
    }
}

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t cr_rng_u64(struct cr_rng *r)
{
    uint64_t *s = r->s, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

double cr_rng_double(struct cr_rng *r)
{
    return (double)(cr_rng_u64(r) >> 11) * 0x1p-53;
}

uint64_t cr_rng_below(struct cr_rng *r, uint64_t n)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do
        x = cr_rng_u64(r);
    while (x >= limit);
    return x % n;
}

double cr_rng_normal(struct cr_rng *r)
{
    /* Box-Muller; the second value is dropped so that the state is only s[4]. */
    double u = 1.0 - cr_rng_double(r), v = cr_rng_double(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void cr_rng_shuffle(struct cr_rng *r, uint32_t *items, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)cr_rng_below(r, i);
        uint32_t t = items[i - 1];
        items[i - 1] = items[j];
        items[j] = t;
    }
}
