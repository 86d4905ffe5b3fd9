/*
 * gone.h: why an object isn't there any more: a memory of fixed size of the latest departures, by
 * key hash alone, so that who misses an object gets a real answer. Pure; one owner.
 *
 * Sets of eight: of a set that is full the oldest departure is forgotten, and when that was is
 * kept. So "never heard of it" comes with the time since when it would be known.
 */
#ifndef MC_META_GONE_H
#define MC_META_GONE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define MC_GONE_MAX 32768u /* departures remembered, at most */

enum mc_gone_why {
	MC_GONE_EVICTED,    /* its pool was full */
	MC_GONE_OVER_QUOTA, /* its tenant's quota was */
	MC_GONE_REMOVED,
	MC_GONE_LOST,	 /* with its last owner, which is away or began another life */
	MC_GONE_DAMAGED, /* a reader found the last replica damaged */
	MC_GONE_WHY_COUNT,
};

struct mc_gone {
	uint64_t key_hash; /* not 0 */
	uint64_t gen, len, at_ms;
	uint64_t owner; /* of the last replica; 0: several, or not known */
	uint8_t why;	/* enum mc_gone_why */
	uint8_t kind;	/* enum mc_st_kind, of the last replica */
};

struct mc_gone_table;

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_gone_open(struct mc_gone_table **ret);
/** NULL is allowed. */
void mc_gone_close(struct mc_gone_table *t);
/** Remember it, instead of an earlier departure of the same key. */
void mc_gone_add(struct mc_gone_table *t, const struct mc_gone *g);
/** @return false: this hash is not remembered */
bool mc_gone_find(const struct mc_gone_table *t, uint64_t key_hash, struct mc_gone *ret);
/** Departures after this time are all remembered; 0: all there were. */
uint64_t mc_gone_since_ms(const struct mc_gone_table *t);
/** "evicted", "over_quota", "removed", "lost", "damaged". */
const char *mc_gone_why_text(unsigned why);

#endif
