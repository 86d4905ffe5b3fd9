/*
 * place.h: which owners get the next objects. Pure: what is known of the owners in, choices out;
 * the same state of `rand` gives the same choices.
 *
 * Preferred segments come first, in their order, then owners of the same host if asked for, then
 * the rest. Among equals the choice is random, by weight: free bytes less what was placed there
 * since the view said so, so that a batch spreads; a new owner's weight grows over
 * MC_PLACE_SLOW_START_MS (it would else take all puts at once). With `is_free_first` the one with
 * most free of a few samples is taken. Source of the sampling: M. Mitzenmacher, The Power of Two
 * Choices, 2001.
 *
 * One owner.
 */
#ifndef MC_META_PLACE_H
#define MC_META_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rand.h"

#define MC_PLACE_SLOW_START_MS 10000u
#define MC_PLACE_OWNERS_MAX 16384u
#define MC_PLACE_EXCLUDED_MS 2000u /* see mc_place_exclude() */

/** An owner as the view tells it. Strings are copied. */
struct mc_place_owner {
	uint64_t id, incarnation;
	const char *segment, *host;
	uint64_t capacity, free;
	bool takes_puts;
};

struct mc_place {
	struct mc_place_node *v; /* by id */
	size_t n;
	bool has_view;
	struct mc_rand rand;
};

void mc_place_init(struct mc_place *p, uint64_t seed);
void mc_place_fini(struct mc_place *p);
/** A new view. What is known of owners that stay (exclusion, age) is kept; an owner of the first
 * view is not new. @return 0; -MC_E_TOO_BIG; -MC_E_NOMEM (the old view stays) */
MC_MUST_CHECK int mc_place_view(struct mc_place *p, uint64_t now_ms,
				const struct mc_place_owner *owners, size_t n);

/** The view is as it was: what was placed until now is in its free bytes. */
void mc_place_settle(struct mc_place *p);

struct mc_place_want {
	uint64_t bytes;		      /* of the slot */
	const char *const *preferred; /* names of segments, NULL: none */
	uint32_t npreferred;
	const char *host;	 /* same host first; NULL: any */
	const uint64_t *holders; /* owners that have it, or failed for this put */
	uint32_t nholders;
	bool is_free_first;
};
/**
 * Up to `n` different owners, best first. Bytes are counted as placed until the next view. An owner
 * that seems full is taken only when no other is there: it asks the master for room.
 * @return how many; 0: no owner takes puts
 */
uint32_t mc_place_choose(struct mc_place *p, uint64_t now_ms, const struct mc_place_want *want,
			 uint32_t n, uint64_t *ret_owners);
/** It did not answer: it gets nothing for MC_PLACE_EXCLUDED_MS, doubled each time up to 16 times,
 * unless all are excluded. */
void mc_place_exclude(struct mc_place *p, uint64_t now_ms, uint64_t owner);
bool mc_place_is_excluded(struct mc_place *p, uint64_t now_ms, uint64_t owner);
/** It answered. */
void mc_place_include(struct mc_place *p, uint64_t owner);

#endif
