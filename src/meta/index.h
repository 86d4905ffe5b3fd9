/*
 * index.h: the master's index: keys → generation and replicas; leases, pins, groups, tenants; who
 * leaves a full pool; frees that owners have not acknowledged; what an owner that was away may not
 * bring back. Pure: time is an argument, all else too.
 *
 * A *pool* is an owner's memory or its disk. Times are ms of any clock that never goes back.
 *
 * What is to be freed at owners is appended to the caller's mc_index_frees and *pending* until
 * mc_index_freed(): a commit of that key waits for it (an object that is freed late, after its
 * successor was removed, would come back with the next master). An object that replaced another is
 * not looked up before the old one's frees are acknowledged.
 *
 * While an owner is away (dropped, not yet announced again) it may hold what is removed meanwhile:
 * then frees with owner 0 ask the master to write a tombstone; it answers with mc_index_entomb()
 * and mc_index_freed().
 *
 * Costs: every call O(1) a key but where it says so; growth is spread over the commits. One owner.
 */
#ifndef MC_META_INDEX_H
#define MC_META_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "meta/evict.h"
#include "meta/gone.h"
#include "wire/store.h"

#define MC_INDEX_OWNERS_MAX 16384u /* pools: twice as many, those being swept included */
#define MC_INDEX_TENANTS_MAX 4096u
#define MC_INDEX_SAME_HASH_MAX 64u /* keys of one mc_hash64(): more are refused as invalid */

/** Answers beside 0 and MC_STORE_*: ask again when mc_index_freed() said 1 of this key. */
#define MC_INDEX_WAIT 1

struct mc_index;

struct mc_index_conf {
	uint64_t seed; /* secret: strangers choose keys */
	uint32_t lease_ttl_ms;
	uint64_t soft_pin_ttl_ms, soft_pin_ttl_max_ms; /* default; longer ones are cut to the max */
	bool may_evict_soft_pinned;
	bool has_tenants; /* quotas hold, else they are only counted */
	uint64_t quota;	  /* of a tenant that has none of its own; UINT64_MAX: none */
	size_t tombs_max; /* then every owner that is away comes back empty */
	/* Places of one mc_index_evict() for mc_index_due(); 0: what is in memory goes to its
	 * owner's disk without being asked for. */
	uint32_t due_max;
	bool may_skip_disk; /* beyond due_max it is evicted without having been on the disk */
};

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_open(const struct mc_index_conf *conf, struct mc_index **ret);
/** NULL is allowed. */
void mc_index_close(struct mc_index *ix);

/* ---- what is to be freed ---- */

struct mc_index_free {
	uint64_t owner; /* 0: a tombstone (key_hash, gen) for all that are away */
	uint64_t addr, gen, key_hash;
	uint64_t len; /* payload */
	/** Readers that were told this place may use it until then, unless its owner clears it
	 * first; 0: none was. Of a tombstone it says nothing. */
	uint64_t until_ms;
	uint8_t kind; /* enum mc_st_kind */
	bool is_gone; /* the object left the index with it, or before */
};

/** Zeroed: empty. Calls append; the caller resets n. */
struct mc_index_frees {
	struct mc_index_free *v;
	size_t n, cap;
};
void mc_index_frees_fini(struct mc_index_frees *f);

/** Something else that an owner has to free before its key goes on. @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_free(struct mc_index *ix, const struct mc_index_free *f,
				struct mc_index_frees *frees);
/**
 * The owner cleared it (or a tombstone says so).
 * @return 1: nothing is pending of that key any more; 0; -MC_E_NOENT
 */
int mc_index_freed(struct mc_index *ix, uint64_t owner, uint64_t addr, uint64_t gen,
		   uint64_t *ret_key_hash);
/** Everything pending of an owner: to send again, or to entomb. O(all that is pending).
 * @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_pending(const struct mc_index *ix, uint64_t owner,
				   struct mc_index_frees *frees);
/** Is something of this key pending? */
bool mc_index_is_pending(const struct mc_index *ix, uint64_t key_hash);

/* ---- owners ---- */

enum mc_index_owner_state {
	MC_INDEX_OWNER_OK,
	MC_INDEX_OWNER_SUSPECT, /* its replicas are looked up last */
	MC_INDEX_OWNER_AWAY,	/* dropped; may come back */
};

/** It is there (new, back, or no longer suspect). What it held before a drop stays dropped. A new
 * one counts as away for tombstones until it has announced.
 * @return 0; -MC_E_LIMIT; -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_owner_join(struct mc_index *ix, uint64_t owner);
void mc_index_owner_suspect(struct mc_index *ix, uint64_t owner);
/** Its replicas of this kind are no more, at once; mc_index_step() frees the memory. For a life of
 * its memory that has ended. @return 0; -MC_E_NOMEM (nothing changed) */
MC_MUST_CHECK int mc_index_owner_drop(struct mc_index *ix, uint64_t owner, unsigned kind);
/** Both kinds, and it is away from now on; also for owners of the roster at the start.
 * @return 0; -MC_E_NOMEM; -MC_E_LIMIT */
MC_MUST_CHECK int mc_index_owner_away(struct mc_index *ix, uint64_t owner);
/** It told all it has: it is no longer away, its tombstones are over. */
void mc_index_owner_announced(struct mc_index *ix, uint64_t owner);
/** Does what it has in memory go to a disk of its own? Then mc_index_evict() leaves an object in
 * its memory until that has been on a disk. */
void mc_index_owner_disk(struct mc_index *ix, uint64_t owner, bool has_disk);
/** It never comes back (drained, or its disk was wiped). What is pending of it stays: see
 * mc_index_pending(). */
void mc_index_owner_forget(struct mc_index *ix, uint64_t owner);
/** Unknown keys may be with owners that have not announced yet. Until it is set to false they are
 * answered MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS, but by commit and adopt. */
void mc_index_set_recovering(struct mc_index *ix, bool is_recovering);
/** Whatever owners that are away have is of generations below this one: tombstones for them reach
 * so far. What is committed anew has to be of this one or above. */
void mc_index_set_floor(struct mc_index *ix, uint64_t gen);

struct mc_index_pool {
	uint64_t objects, bytes; /* payload */
	uint64_t freeing;	 /* bytes pending */
};
/** Zeros when it is unknown. */
void mc_index_pool(const struct mc_index *ix, uint64_t owner, unsigned kind,
		   struct mc_index_pool *ret);

/* ---- tombstones ---- */

struct mc_index_tomb {
	uint64_t owner; /* 0: whoever is away */
	uint64_t key_hash,
	    gen; /* of one owner: this generation is dead; of whoever is away: those
		    up to it; key_hash 0 and gen UINT64_MAX: all that the owner has */
};
/** What the master has on disk. Idempotent.
 * @return 0; -MC_E_LIMIT: there are tombs_max; write and entomb {owner, 0, UINT64_MAX} instead;
 * -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_entomb(struct mc_index *ix, const struct mc_index_tomb *tomb);
/** All of them, to write the file anew. Start with *cursor = 0. @return false at the end */
bool mc_index_tomb_next(const struct mc_index *ix, size_t *cursor, struct mc_index_tomb *ret);

/* ---- requests: batches of keys, the root of a prefix first ---- */

/** One call under way; on the caller's stack. Begin, the calls for its keys, end: nothing else in
 * between but frees and statistics. */
struct mc_index_request {
	struct mc_index *ix;
	uint64_t now_ms;
	const struct mc_st_key *keys;
	uint32_t n;
	const uint64_t *hashes; /* [n] mc_hash64(key, len, 0), until mc_index_end() */
	struct mc_evict_request evict;
	uint32_t tenant_at; /* of the tenant's order */
};

/** @param n  1 … MC_ST_RECORDS_MAX. @return 0; -MC_E_NOMEM (then no end) */
MC_MUST_CHECK int mc_index_begin(struct mc_index *ix, struct mc_index_request *q, uint64_t now_ms,
				 const struct mc_st_key *keys, uint32_t n);
void mc_index_end(struct mc_index_request *q);

enum mc_index_flag {
	MC_INDEX_QUIET = 1, /* no lease, no touch */
	MC_INDEX_FORCE = 2, /* remove: a lease does not matter */
};

/**
 * Where is keys[i]? Grants a lease, to its whole group.
 * @param ret  filled, ret->status included; not written but for `status` when it is not 0
 * @return 0; MC_INDEX_WAIT (not published yet; `status` is
 * MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS); MC_STORE_OBJECT_NOT_FOUND;
 * MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS (recovering)
 */
int mc_index_lookup(struct mc_index_request *q, uint32_t i, unsigned flags,
		    struct mc_st_object *ret);
/** As lookup without the answer. */
int mc_index_exist(struct mc_index_request *q, uint32_t i, unsigned flags);

/**
 * Make keys[i] what `c` says (c->key is not looked at). The generation that is there already: its
 * replicas are added, the rest is as it was.
 * @param ret_gen  of the object that is there afterwards; 0: none
 * @return 0: answer it; MC_INDEX_WAIT: the same call again when mc_index_freed() said 1 of this key
 * (an upsert that replaced waits for its answer, too);
 * MC_STORE_OBJECT_ALREADY_EXISTS (c's replicas are among the frees); MC_STORE_INVALID_VERSION
 * (nothing freed); MC_STORE_INVALID_REPLICA (none, or an owner that is not there: the others are
 * freed); MC_STORE_INVALID_PARAMS (TLV); MC_STORE_INVALID_KEY (empty, too long, hash);
 * MC_STORE_TENANT_QUOTA_EXCEEDED (c's replicas are freed; what could be evicted of that tenant
 * was); MC_STORE_INTERNAL_ERROR (no memory: nothing changed)
 */
int mc_index_commit(struct mc_index_request *q, uint32_t i, const struct mc_st_commit *c,
		    struct mc_index_frees *frees, uint64_t *ret_gen);
/**
 * An owner says that it has keys[i]: one that is known as committed wins, of several the highest
 * generation; the rest is among the frees.
 * Pages of one announcement are to come hot first.
 * @return 0: in the index; 1: it is to be freed (and is among the frees); as commit: INVALID_KEY,
 * INVALID_PARAMS, INVALID_REPLICA (the owner is not there), INTERNAL_ERROR
 */
int mc_index_adopt(struct mc_index_request *q, uint32_t i, uint64_t owner,
		   const struct mc_st_has *h, struct mc_index_frees *frees);
/** An owner sealed keys[i] a while ago: freed unless it is in the index, or pending.
 * @return 0; 1: freed; INTERNAL_ERROR */
int mc_index_check(struct mc_index_request *q, uint32_t i, uint64_t owner,
		   const struct mc_st_has *h, struct mc_index_frees *frees);
/** These owners may have a slot of this generation of keys[i] that is no replica of it: it is freed
 * by its generation alone (address 0), unless it has become one. Without memory it is not. */
void mc_index_left(struct mc_index_request *q, uint32_t i, uint64_t gen, const uint64_t *owners,
		   uint32_t n, struct mc_index_frees *frees);
/** An owner has made another replica of keys[i]: taken if this generation is in the index, else
 * freed. @return 0; 1: freed, or about to be; INVALID_REPLICA (the owner is not there);
 * INTERNAL_ERROR */
int mc_index_more(struct mc_index_request *q, uint32_t i, uint64_t owner, const struct mc_st_has *h,
		  struct mc_index_frees *frees);
/** @return 0 (answer when the frees are acknowledged); MC_STORE_OBJECT_NOT_FOUND;
 * MC_STORE_OBJECT_HAS_LEASE; MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS; MC_STORE_INTERNAL_ERROR */
int mc_index_remove(struct mc_index_request *q, uint32_t i, unsigned flags,
		    struct mc_index_frees *frees);
/** This replica is damaged, or not wanted any more: it is freed; the last one takes the object with
 * it, which is remembered as gone because of `why`.
 * @return 0; MC_STORE_OBJECT_NOT_FOUND (also another generation); MC_STORE_REPLICA_NOT_FOUND;
 * MC_STORE_INTERNAL_ERROR */
int mc_index_drop(struct mc_index_request *q, uint32_t i, uint64_t gen,
		  const struct mc_st_replica *replica, enum mc_gone_why why,
		  struct mc_index_frees *frees);

/** The disk that keys[i] is on does not count: an owner with a disk of its own has it in memory
 * until it has written it, as if it had just been put. */
void mc_index_unwritten(struct mc_index_request *q, uint32_t i);

/* ---- a full pool ---- */

/**
 * Who leaves this pool so that `bytes` get free: children before parents, the soft-pinned last (or
 * never), groups together, neither leased nor hard-pinned ones; but leased ones that their owner
 * has on its disk, too, before nothing does. A parent whose children are all
 * elsewhere, leased or pinned goes when the pool has nothing else. O(evicted).
 *
 * @param max	      replicas at most, about
 * @param ret_retry_ms  when it did not suffice: something more may be evicted at that time;
 *		      UINT64_MAX: not before the pool changes
 * @return bytes of payload that are among the frees now
 */
uint64_t mc_index_evict(struct mc_index *ix, uint64_t now_ms, uint64_t owner, unsigned kind,
			uint64_t bytes, uint32_t max, struct mc_index_frees *frees,
			uint64_t *ret_retry_ms);

/** What the last mc_index_evict() found to go next, once its owner has written it to its disk. */
struct mc_index_due {
	uint64_t addr, gen;
};
/** @param ret  until the next mc_index_evict(). @return how many */
uint32_t mc_index_due(const struct mc_index *ix, const struct mc_index_due **ret);

/* ---- over all objects ---- */

struct mc_index_view {
	struct mc_st_key key; /* until the index changes */
	uint64_t key_hash;
	struct mc_st_object object; /* lease_ms: what is left */
	uint8_t wanted;		    /* replicas asked for; 0: not said */
	bool is_hard_pinned, is_soft_pinned;
	bool is_committed; /* by its writer, or its owner says so; else it was only announced */
};
/** keys[i], for observers: no lease, no touch; what waits is shown. @return 0;
 * MC_STORE_OBJECT_NOT_FOUND; MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS */
int mc_index_view(struct mc_index_request *q, uint32_t i, struct mc_index_view *ret);
/** Where did keys[i], which is not there, go? @return false: not remembered; it never was there, or
 * left before mc_index_gone_since_ms() */
bool mc_index_gone(const struct mc_index_request *q, uint32_t i, struct mc_gone *ret);
/** As mc_gone_since_ms(). */
uint64_t mc_index_gone_since_ms(const struct mc_index *ix);
/**
 * A piece of a walk over all objects; the index may change between the pieces: what is there all
 * the time is seen exactly once. `each` must not change it.
 * @param cursor  0 at first
 * @param budget  objects and empty places to look at, about; 1000 take well below a millisecond
 * @return false: that was all
 */
bool mc_index_walk(struct mc_index *ix, uint64_t now_ms, uint64_t *cursor, uint32_t budget,
		   void (*each)(void *user, const struct mc_index_view *v), void *user);

/** A page in the order of keys: the first `max` behind `after` that begin with `prefix`. */
struct mc_index_list;
/** @param prefix, after  copied; after NULL: from the beginning. @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_list_open(struct mc_index *ix, const struct mc_st_key *prefix,
				     const struct mc_st_key *after, uint32_t max,
				     struct mc_index_list **ret);
void mc_index_list_close(struct mc_index_list *l);
/** Look at some more of the index. @return 1: more to do; 0: the page is complete; -MC_E_NOMEM: the
 * page is lost */
MC_MUST_CHECK int mc_index_list_step(struct mc_index_list *l, uint32_t budget);
/** Of a complete page, in order; they may have gone since. @return how many; ret_keys lives as long
 * as the list */
uint32_t mc_index_list_keys(struct mc_index_list *l, const struct mc_st_key **ret_keys);

/** Work that waits: places of dropped pools, pins that end, growth. To be called every second, and
 * again at once while it returns true. */
bool mc_index_step(struct mc_index *ix, uint64_t now_ms, uint32_t budget);

/* ---- tenants ---- */

struct mc_index_tenant {
	const uint8_t *name; /* "": the default one; as long as the index */
	uint32_t name_len;
	uint64_t quota; /* UINT64_MAX: none */
	uint64_t bytes, objects;
	bool has_own_quota;
};
/** @param quota  NULL: back to the default. @return 0; -MC_E_LIMIT; -MC_E_NOMEM */
MC_MUST_CHECK int mc_index_tenant_set(struct mc_index *ix, const uint8_t *name, uint32_t name_len,
				      const uint64_t *quota);
/** Start with *cursor = 0. */
bool mc_index_tenant_next(const struct mc_index *ix, size_t *cursor, struct mc_index_tenant *ret);

/* ---- numbers ---- */

struct mc_index_stats {
	uint64_t objects, bytes; /* payload of all replicas */
	uint64_t replicas[MC_ST_KIND_COUNT];
	uint64_t hard_pinned, soft_pinned;
	uint64_t evicted_objects, evicted_bytes; /* replicas, so far */
	uint64_t pending, tombs;
	uint64_t memory_bytes; /* of the index itself */
};
void mc_index_stats(const struct mc_index *ix, struct mc_index_stats *ret);

#endif
