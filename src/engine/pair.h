/*
 * pair.h: which local RDMA port is paired with which of the peer's. Pure.
 *
 * Every port of both sides that has a partner at all is used at least once, and no more pairs are
 * made than that takes. Ports that are up come first; then those of the same name, because machines
 * are built alike and their n-th ports usually hang on the same switch; then the nearest address
 * prefix; then the order. Ethernet and InfiniBand ports are never paired.
 */
#ifndef MC_ENGINE_PAIR_H
#define MC_ENGINE_PAIR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define MC_PAIR_PORTS_MAX 8u
#define MC_PAIR_SAME_NAME 1000u /* above any number of bits */
#define MC_PAIR_BOTH_UP 10000u

struct mc_pair_port {
	const char *name;
	uint8_t gid[16];
	bool is_ethernet;
	bool is_down;
};

struct mc_pair {
	uint8_t local, remote; /* indexes */
};

/** Leading bits that two addresses have in common. */
static inline unsigned mc_pair_bits(const uint8_t a[16], const uint8_t b[16])
{
	unsigned i = 0;

	while (i < 16 && a[i] == b[i])
		i++;
	return i == 16 ? 128 : i * 8 + (unsigned)__builtin_clz((uint32_t)(a[i] ^ b[i]) << 24);
}

/** How good a pair is; 0: it cannot be. */
static inline unsigned mc_pair_score(const struct mc_pair_port *a, const struct mc_pair_port *b)
{
	if (a->is_ethernet != b->is_ethernet)
		return 0;
	return 1 + mc_pair_bits(a->gid, b->gid) + (a->is_down || b->is_down ? 0 : MC_PAIR_BOTH_UP) +
	       (strcmp(a->name, b->name) == 0 ? MC_PAIR_SAME_NAME : 0);
}

/**
 * @param nl, nr  at most MC_PAIR_PORTS_MAX
 * @param max     room in ret
 * @return pairs written to ret, the best first
 */
static inline unsigned mc_pair_ports(const struct mc_pair_port *l, unsigned nl,
				     const struct mc_pair_port *r, unsigned nr, struct mc_pair *ret,
				     unsigned max)
{
	unsigned used_l[MC_PAIR_PORTS_MAX] = {0}, used_r[MC_PAIR_PORTS_MAX] = {0}, n = 0;

	while (n < max) {
		/* Least: both unused, then one; of those the highest score, the first in order. */
		unsigned best = 0, best_used = UINT32_MAX, bi = 0, bj = 0;

		for (unsigned i = 0; i < nl; i++)
			for (unsigned j = 0; j < nr; j++) {
				unsigned score = mc_pair_score(&l[i], &r[j]);
				unsigned used = used_l[i] + used_r[j];

				if (score == 0 || (used_l[i] && used_r[j]) || used > best_used ||
				    (used == best_used && score <= best))
					continue;
				best = score;
				best_used = used;
				bi = i;
				bj = j;
			}
		if (best == 0)
			break;
		used_l[bi]++;
		used_r[bj]++;
		ret[n++] = (struct mc_pair){(uint8_t)bi, (uint8_t)bj};
	}
	return n;
}

#endif
