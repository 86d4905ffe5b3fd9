/*
 * rand.c: xoshiro256** 1.0 and splitmix64 (S. Vigna, prng.di.unimi.it, public domain algorithms);
 * bounded numbers without bias after D. Lemire, "Fast Random Integer Generation in an Interval"
 * (2019).
 */
#include "base/rand.h"

#include <errno.h>
#include <sys/random.h>

static uint64_t rand_rotl(uint64_t x, int k)
{
	return x << k | x >> (64 - k);
}

void mc_rand_seed(struct mc_rand *r, uint64_t seed)
{
	for (size_t i = 0; i < 4; i++)
		r->s[i] = mc_splitmix64(&seed);
}

uint64_t mc_rand_u64(struct mc_rand *r)
{
	uint64_t *s = r->s;
	uint64_t out = rand_rotl(s[1] * 5, 7) * 9;
	uint64_t t = s[1] << 17;

	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = rand_rotl(s[3], 45);
	return out;
}

uint64_t mc_rand_below(struct mc_rand *r, uint64_t n)
{
	unsigned __int128 wide;
	uint64_t low_min;

	mc_assert(n >= 1);
	wide = (unsigned __int128)mc_rand_u64(r) * n;
	if ((uint64_t)wide < n) {
		low_min = (0 - n) % n;
		while ((uint64_t)wide < low_min)
			wide = (unsigned __int128)mc_rand_u64(r) * n;
	}
	return (uint64_t)(wide >> 64);
}

double mc_rand_unit(struct mc_rand *r)
{
	return (double)(mc_rand_u64(r) >> 11) * 0x1.0p-53;
}

int mc_rand_bytes(void *buf, size_t len_bytes)
{
	uint8_t *at = buf;

	while (len_bytes) {
		ssize_t n = getrandom(at, len_bytes, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -MC_E_UNAVAILABLE;
		at += n;
		len_bytes -= (size_t)n;
	}
	return 0;
}
