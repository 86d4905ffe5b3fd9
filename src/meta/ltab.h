/*
 * ltab.h: a hash table of slab records by a 32-bit hash, chained through the records. Pure.
 *
 * Linear hashing (W. Litwin, 1980): each insertion may split one place, each deletion merge two, so
 * no call is ever slow, and memory grows with the records. The table costs 4 bytes a record.
 *
 * A walk goes by the bits of the hash from the lowest up, in which order a split or a merge moves
 * nothing past the cursor. One owner.
 */
#ifndef MC_META_LTAB_H
#define MC_META_LTAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "meta/slab.h"

/** In a record, at `offset`. */
struct mc_ltab_link {
	uint32_t next; /* handle of a record; 0: end of the chain */
	uint32_t hash; /* whatever tells records apart well */
};

struct mc_ltab {
	struct mc_slab *slab;
	size_t offset;	    /* of the link in the records */
	uint32_t **segment; /* of heads: handles */
	size_t nsegments, cap;
	uint32_t nplaces; /* in use; the first is always there */
	size_t n;
};

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_ltab_init(struct mc_ltab *t, struct mc_slab *slab, size_t offset);
/** Not the records. */
void mc_ltab_fini(struct mc_ltab *t);
/** Without memory to grow chains get longer. The link's hash is set. */
void mc_ltab_add(struct mc_ltab *t, uint32_t handle, uint32_t hash);
/** It is in. */
void mc_ltab_del(struct mc_ltab *t, uint32_t handle);
/** Another record in the place of one that is in; its link is a copy. */
void mc_ltab_replace(struct mc_ltab *t, uint32_t old, uint32_t handle);
/** First of the chain in which records of this hash are, others too. 0: none */
uint32_t mc_ltab_first(const struct mc_ltab *t, uint32_t hash);
/** Bring the place of this hash into the cache. */
void mc_ltab_prefetch(const struct mc_ltab *t, uint32_t hash);
/**
 * One piece of a walk: `ret` gets the records of one place. At first *cursor = 0.
 * @return how many there are, of which `max` at most are in ret: if it is more, *cursor did not
 * move. *cursor 2^32: that was all
 */
uint32_t mc_ltab_walk(const struct mc_ltab *t, uint64_t *cursor, uint32_t *ret, uint32_t max);
size_t mc_ltab_bytes(const struct mc_ltab *t);

static inline struct mc_ltab_link *mc_ltab_link_of(const struct mc_ltab *t, uint32_t handle)
{
	return (struct mc_ltab_link *)((uint8_t *)mc_slab_at(t->slab, handle) + t->offset);
}

#endif
