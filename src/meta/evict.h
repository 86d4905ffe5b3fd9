/*
 * evict.h: which objects stay in a full pool. Pure: keys, times and requests in, victims out.
 *
 * Keys of one request (a batch call, root of the prefix first) that are alike form a group: touched
 * together, of one class, so of one rank (reuse.h). Groups lie in lists by class and age; the lists
 * are ordered by rank, so the worst group is found by one bit scan, whatever the number of objects:
 * eviction costs O(evicted). Of the worst group the deepest object leaves first. An object with
 * held children is never a victim: a prefix with a hole is worth nothing. A newcomer that ranks
 * below the worst one held is not worth a place.
 *
 * Class: share of the request's keys that were seen before, length of the request, touches of the
 * key. Keys that are not held are remembered, too (touches.h), bounded.
 *
 * One owner (a shard of the index).
 */
#ifndef MC_META_EVICT_H
#define MC_META_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"
#include "meta/reuse.h"

struct mc_evict;
struct mc_evict_group;

/** In the owner's entry of an object. Zeroed: not held. */
struct mc_evict_node {
	struct mc_list link; /* mc_evict_group.nodes, deepest last */
	struct mc_evict_group *group;
	uint64_t hash, parent; /* of keys; parent 0: none */
	uint32_t nkids;	       /* held objects whose parent this is */
};

struct mc_evict_conf {
	size_t keys_max; /* remembered, held or not; a few times the objects held */
	/** The held object of this key, or NULL. */
	struct mc_evict_node *(*find)(void *user, uint64_t hash);
	void *user;
};

/** One request under way; nothing of it is a victim before mc_evict_end(). On the caller's stack.
 */
struct mc_evict_request {
	struct mc_evict *e;
	uint64_t now_ms;
	unsigned kind; /* class but for the touches */
	struct mc_evict_group *group[MC_REUSE_CLASSES];
};

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_evict_open(const struct mc_evict_conf *conf, struct mc_evict **ret);
/** Nodes that are still held are the owner's to free. NULL is allowed. */
void mc_evict_close(struct mc_evict *e);

/** A request names these keys, in the order of the prefix. Times never go back. */
void mc_evict_begin(struct mc_evict *e, struct mc_evict_request *q, uint64_t now_ms,
		    const uint64_t *hashes, size_t n);
/** It asks for this key; node: its object when it is held, else NULL. */
void mc_evict_touch(struct mc_evict_request *q, uint64_t hash, struct mc_evict_node *node);
/** Is an object of this key worth the place of the worst one held? Yes also when nothing is held.
 */
bool mc_evict_is_worth(struct mc_evict_request *q, uint64_t hash);
/** Its object is held from now on. @param parent  key before it in the prefix, 0: none
 * @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_evict_add(struct mc_evict_request *q, struct mc_evict_node *node,
			       uint64_t hash, uint64_t parent);
void mc_evict_end(struct mc_evict_request *q);

/** No longer held, or not to be evicted (pinned) until it is added again. */
void mc_evict_del(struct mc_evict *e, struct mc_evict_node *node);
/** The one to evict first; NULL: nothing may be. It stays held until mc_evict_del(). */
struct mc_evict_node *mc_evict_victim(struct mc_evict *e, uint64_t now_ms);
size_t mc_evict_count(const struct mc_evict *e);

#endif
