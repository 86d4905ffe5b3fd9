/*
 * touches.h: the last touch of many keys, whether their objects are held or not: when, in which
 * class, the how manieth. Bounded: a set of eight loses its oldest. Pure.
 *
 * The bound may be raised: sets split one by one (linear hashing), so no call is slow.
 */
#ifndef MC_META_TOUCHES_H
#define MC_META_TOUCHES_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct mc_touch {
	uint32_t tag;	  /* upper half of the key's hash; 0: free */
	uint32_t at_tick; /* of MC_REUSE_TICK_MS / 10 */
	uint16_t low;	  /* bits 3 ... 18 of the hash */
	uint8_t class;
	uint8_t n; /* touches, saturating */
};

struct mc_touches {
	struct mc_touch **segment;
	size_t nsegments, segments_cap;
	size_t nsets, n;
};

/** @param max  keys remembered at most, rounded up to a power of two >= 64 */
MC_MUST_CHECK int mc_touches_init(struct mc_touches *t, size_t max);
void mc_touches_fini(struct mc_touches *t);
/** Towards as many keys, a few sets a call. Without memory it stays as it is. */
void mc_touches_grow(struct mc_touches *t, size_t max);
/** Places there are; and one of them, i below that. */
size_t mc_touches_cap(const struct mc_touches *t);
struct mc_touch *mc_touches_at(const struct mc_touches *t, size_t i);
size_t mc_touches_bytes(const struct mc_touches *t);
void mc_touches_prefetch(const struct mc_touches *t, uint64_t hash);
/** NULL: not known (any more). */
struct mc_touch *mc_touches_find(const struct mc_touches *t, uint64_t hash);
/** The key's entry, new ones with n 0; another key's may have made room. */
struct mc_touch *mc_touches_get(struct mc_touches *t, uint64_t hash);

#endif
