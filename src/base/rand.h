/*
 * rand.h: seeded pseudo-random numbers (pure, for policies, jitter and tests) and random bytes of
 * the kernel (for nonces). Never use the first where a stranger must not guess.
 */
#ifndef MC_BASE_RAND_H
#define MC_BASE_RAND_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/** xoshiro256** (Blackman and Vigna, 2018). One owner. */
struct mc_rand {
	uint64_t s[4];
};

/** One splitmix64 step: advances *state and returns 64 well-mixed bits. */
static inline uint64_t mc_splitmix64(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/** Any seed is good, 0 included: the state is filled by splitmix64. */
void mc_rand_seed(struct mc_rand *r, uint64_t seed);
uint64_t mc_rand_u64(struct mc_rand *r);
/** Uniform in [0, n); n >= 1. */
uint64_t mc_rand_below(struct mc_rand *r, uint64_t n);
/** Uniform in [0, 1). */
double mc_rand_unit(struct mc_rand *r);

/** Bytes of getrandom(2). May wait early in a machine's boot. @return 0; -MC_E_UNAVAILABLE. Any
 * thread. */
MC_MUST_CHECK int mc_rand_bytes(void *buf, size_t len_bytes);

#endif
