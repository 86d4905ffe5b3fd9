/*
 * evict.h: which objects stay in full pools. Pure: keys, times and requests in, victims out.
 *
 * Keys of one request (a batch call, root of the prefix first) that are alike form a group: touched
 * together, of one class, so of one rank (reuse.h). Groups lie in lists by class and age; the lists
 * are ordered by rank, so the worst group is found by one bit scan, whatever the number of objects:
 * eviction costs O(evicted). Of the worst group the deepest object leaves first. An object with
 * held children is never a victim: a prefix with a hole is worth nothing. A newcomer that ranks
 * below the worst one held is not worth a place.
 *
 * Class: share of the request's keys that were seen before, length of the request, touches of the
 * key. Keys that are not held are remembered, too (touches.h), bounded. What was learnt is of all
 * pools; lists are each pool's own.
 *
 * Nodes are the first member of records of a slab and are named by their handles; 0: none. One
 * owner (the index).
 */
#ifndef MC_META_EVICT_H
#define MC_META_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "meta/reuse.h"
#include "meta/slab.h"

#define MC_EVICT_POOLS_MAX 32768u

struct mc_evict;

/** First member of the record of what a pool holds. Zeroed: not held. */
struct mc_evict_node {
	uint32_t prev, next; /* of its group, deepest last */
	uint32_t group;
	uint16_t pool;
	bool is_parent; /* has held children */
	uint8_t user;	/* the owner's */
};

struct mc_evict_conf {
	struct mc_slab *slab; /* of nodes; groups are put there, too */
	size_t keys_max;      /* remembered, held or not; a few times the objects held */
};

/** One request under way; nothing of it is a victim before mc_evict_end(). On the caller's stack.
 */
struct mc_evict_request {
	struct mc_evict *e;
	uint64_t now_ms;
	uint32_t lease_ms; /* what it touches is leased for */
	unsigned kind;	   /* class but for the touches */
	uint32_t pools;	   /* with groups of it, linked; index + 1 */
};

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_evict_open(const struct mc_evict_conf *conf, struct mc_evict **ret);
/** Nodes that are still held are the owner's to free. NULL is allowed. */
void mc_evict_close(struct mc_evict *e);
/** Raise keys_max, a little each call. */
void mc_evict_grow(struct mc_evict *e, size_t keys_max);
size_t mc_evict_bytes(const struct mc_evict *e);

/** @param pool  any number below MC_EVICT_POOLS_MAX that is not open. @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_evict_pool_open(struct mc_evict *e, uint16_t pool);
/** It must be empty. */
void mc_evict_pool_close(struct mc_evict *e, uint16_t pool);

/** A request names these keys, in the order of the prefix. Times never go back. */
void mc_evict_begin(struct mc_evict *e, struct mc_evict_request *q, uint64_t now_ms,
		    const uint64_t *hashes, size_t n);
void mc_evict_prefetch(const struct mc_evict *e, uint64_t hash);
/** It asks for this key. @return class for mc_evict_move() */
unsigned mc_evict_touch(struct mc_evict_request *q, uint64_t hash);
/** The key's object is this node, if that is held: of this request from now on. */
void mc_evict_move(struct mc_evict_request *q, uint32_t node, unsigned class);
/** Is an object of this key worth the place of the worst one held? Yes also when nothing is held.
 */
bool mc_evict_is_worth(struct mc_evict_request *q, uint16_t pool, uint64_t hash);
/** Its object is held from now on; node.pool says where. It has no lease. @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_evict_add(struct mc_evict_request *q, uint32_t node, uint64_t hash);
void mc_evict_end(struct mc_evict_request *q);

/** Its object has held children now, or has none any more. Nothing happens to one not held. */
void mc_evict_parent(struct mc_evict *e, uint32_t node, bool is_parent);
/** It lies in another record from now on, which is a copy. */
void mc_evict_rename(struct mc_evict *e, uint32_t old, uint32_t node);
/** It may not go before that time; nor its group. */
void mc_evict_lease(struct mc_evict *e, uint32_t node, uint64_t until_ms);
/** No longer held, or not to be evicted (pinned) until it is added again. */
void mc_evict_del(struct mc_evict *e, uint32_t node);
/**
 * The one to evict first; 0: nothing may be. It stays held until mc_evict_del().
 * @param ret_retry_ms  when it is 0: a lease ends then; UINT64_MAX: there is none. May be NULL
 */
uint32_t mc_evict_victim(struct mc_evict *e, uint16_t pool, uint64_t now_ms,
			 uint64_t *ret_retry_ms);
/** One whose lease began first, about; 0: none is leased. mc_evict_lease() takes it out of the way.
 */
uint32_t mc_evict_leased(const struct mc_evict *e, uint16_t pool);
size_t mc_evict_count(const struct mc_evict *e, uint16_t pool);

#endif
