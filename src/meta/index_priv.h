/*
 * index_priv.h: what the files of the index share; see index.h.
 *
 * An object is one slab record: its first replica, the fixed part, what only some objects have, its
 * key. More replicas are records of their own. Replicas name pools, and a dropped pool is marked
 * dead: whoever meets its replicas takes them out (mc_ix_object_prune()), and a sweep gets the
 * others.
 */
#ifndef MC_META_INDEX_PRIV_H
#define MC_META_INDEX_PRIV_H

#include "base/hash.h"
#include "base/mem.h"
#include "base/rand.h"
#include "meta/index.h"
#include "meta/ltab.h"
#include "meta/slab.h"
#include "meta/slot.h"
#include "mooncake/store.h"

#define POOLS_MAX MC_EVICT_POOLS_MAX
#define TOUCHES_MIN 4096u
#define LEASE_TICK_MS 16u
#define FREES_MAX (2 * MC_ST_REPLICAS_MAX + 2) /* of one object's call */

/* mc_evict_node.user of replicas */
enum replica_flag {
	REPLICA_MORE = 1, /* a record of its own: struct more */
	REPLICA_SOFT = 2, /* among the soft-pinned of its pool */
};

struct replica {
	struct mc_evict_node node;
	uint64_t addr;
};

struct more {
	struct replica r;
	uint32_t object, next;
};

enum object_flag {
	OBJECT_HARD = 1,
	OBJECT_SOFT = 2,    /* has struct soft */
	OBJECT_GROUP = 4,   /* has struct member */
	OBJECT_PARENT = 8,  /* has a parent's key hash */
	OBJECT_TENANT = 16, /* has struct order */
	OBJECT_HIDDEN = 32, /* until nothing of its key is pending */
	OBJECT_NEWER = 64,  /* it replaced another, or might have */
	OBJECT_DISK = 128,  /* it is on a disk, or was */
};

/* Behind it: u64 parent, struct soft, struct member, struct order, as flags say; then the key. */
struct object {
	struct replica first;
	struct mc_ltab_link link;
	uint64_t gen, len;
	uint32_t lease; /* ticks */
	uint32_t nkids; /* objects held whose parent this is */
	uint32_t more;	/* struct more */
	uint16_t key_len, tlv_len, tenant, type;
	uint8_t flags, nreplicas, wanted;
	bool is_committed; /* by its writer, or a master before this one said so */
};

struct soft {
	uint64_t until_ms;
	uint32_t place; /* in the heap, + 1; 0: the pin has ended */
	uint32_t pad32;
};

struct member {
	uint32_t group, prev, next; /* struct object */
	uint32_t pad32;
};

struct order {
	uint32_t prev, next; /* struct object */
};

/* Objects of one MC_SLOT_TLV_GROUP. */
struct ixgroup {
	struct mc_ltab_link link;
	uint64_t hash;
	uint32_t first; /* struct object */
	uint32_t lease; /* ticks */
};

/* One free that is not acknowledged. */
struct pend {
	struct mc_ltab_link by_key, by_place;
	struct mc_index_free f;
};

struct tomb {
	struct mc_ltab_link link; /* by owner and key hash */
	struct mc_index_tomb t;
};

enum pool_state {
	POOL_FREE,
	POOL_LIVE,
	POOL_DEAD,  /* until a sweep that began after that */
	POOL_SWEPT, /* this sweep gets the last */
};

struct pool {
	uint64_t owner;
	struct mc_index_pool use;
	uint32_t soft_first, soft_last; /* soft-pinned replicas, last touched at the end */
	uint64_t held;			/* replicas, dead ones too */
	uint8_t kind, state;
};

struct owner {
	uint64_t id;			 /* 0: free */
	uint32_t pool[MC_ST_KIND_COUNT]; /* + 1; 0: none */
	uint64_t freeing[MC_ST_KIND_COUNT];
	uint64_t adopted;    /* requests of its announcement */
	uint8_t state;	     /* enum mc_index_owner_state */
	bool is_unannounced; /* it may have what the index does not know */
	bool comes_empty;
	bool has_disk; /* what it has in memory goes to its disk before it is evicted */
};

struct tenant {
	uint8_t *name;
	uint32_t name_len;
	uint64_t quota, bytes, objects;
	bool has_own_quota;
	uint32_t first, last; /* struct object, those to go first first */
};

struct mc_index {
	struct mc_index_conf conf;
	struct mc_slab slab;
	struct mc_ltab objects, groups, pend_by_key, pend_by_place, tombs;
	struct mc_evict *evict;
	bool is_recovering;
	uint64_t floor;	  /* owners that are away have no generation from it on */
	uint64_t base_ms; /* of the ticks of leases */
	bool has_base;

	struct owner *owners;
	size_t nowners, owners_cap;
	uint16_t *owner_at; /* by hash of the id: index + 1; a power of two, at most half full */
	size_t owner_at_len;
	size_t naway; /* unannounced */
	struct pool *pools;
	size_t npools, pools_cap;
	uint64_t sweep; /* cursor */
	bool is_sweeping;
	size_t ndead;

	struct tenant *tenants; /* the first is the default one */
	size_t ntenants, tenants_cap;
	uint16_t tenant_last; /* that was looked up last */

	uint32_t *soft; /* heap of objects by the end of their pin */
	size_t nsoft, soft_cap;

	uint64_t *hashes; /* of the request under way */
	size_t hashes_cap;
	struct mc_gone_table *gone; /* latest departures */
	uint64_t now_ms;	    /* of the last call that said it */
	uint64_t lost_owner;	    /* whose replica was pruned last */

	struct mc_index_due *due; /* of the last mc_index_evict() */
	size_t ndue, due_cap;

	uint32_t spare[FREES_MAX]; /* struct pend: frees cannot fail for want of memory */
	uint32_t nspare;
	struct mc_index_stats stats;
};

/* ---- objects (index_object.c) ---- */

static inline struct object *object_at(const struct mc_index *ix, uint32_t h)
{
	return mc_slab_at(&ix->slab, h);
}

uint64_t *mc_ix_object_parent(struct object *o);
struct soft *mc_ix_object_soft(struct object *o);
struct member *mc_ix_object_member(struct object *o);
struct order *mc_ix_object_order(struct object *o);
uint8_t *mc_ix_object_key(struct object *o);
uint64_t mc_ix_object_hash(struct object *o);
/* Unseeded hash to that of the table. */
uint32_t mc_ix_table_hash(const struct mc_index *ix, uint64_t hash);
/* 0: none. Dead replicas are pruned, and the object with the last one. */
uint32_t mc_ix_object_find(struct mc_index *ix, uint64_t hash, const struct mc_st_key *key);
/* Any object with this hash. */
uint32_t mc_ix_object_find_hash(const struct mc_index *ix, uint64_t hash);
/* Of `first` and its successors; start with 0; 0 at the end. A replica's handle. */
uint32_t mc_ix_replica_next(const struct mc_index *ix, uint32_t object, uint32_t replica);
struct replica *mc_ix_replica_at(const struct mc_index *ix, uint32_t h);
uint32_t mc_ix_replica_object(const struct mc_index *ix, uint32_t replica);

/* How an object is kept, from its TLV. */
struct kept {
	uint64_t group, parent; /* hashes; has_* */
	uint64_t soft_ms;
	uint32_t type, wanted;
	bool has_group, has_parent, is_hard;
	uint8_t soft; /* enum mc_store_soft_pin */
};
int mc_ix_kept_parse(const uint8_t *tlv, uint16_t tlv_len, struct kept *ret);

struct object_new {
	const struct mc_st_key *key;
	uint64_t hash, gen, len;
	uint16_t tlv_len, tenant;
	struct kept kept;
	uint64_t soft_until_ms; /* 0: not soft-pinned */
	uint32_t nkids;
};
/* In the table, in its group and tenant, without replicas. 0: no memory */
uint32_t mc_ix_object_open(struct mc_index_request *q, const struct object_new *n);
/* -MC_E_NOMEM: as it was */
int mc_ix_object_replica_add(struct mc_index_request *q, uint32_t h, uint32_t pool, uint64_t addr);
/* It is not freed at the owner; an object without replicas stays. */
void mc_ix_object_replica_del(struct mc_index *ix, uint32_t h, uint32_t replica);
/* Gone, with all its replicas. */
void mc_ix_object_close(struct mc_index *ix, uint32_t h);
/* It is about to be closed because of this; replaced ones need no word. The last replica was there.
 */
void mc_ix_object_leaves(struct mc_index *ix, uint32_t h, enum mc_gone_why why, uint64_t owner,
			 unsigned kind);
void mc_ix_object_prune(struct mc_index *ix, uint32_t h);

/* Until when; 0: no lease. The group's counts, too. */
uint64_t mc_ix_object_lease_ms(struct mc_index *ix, struct object *o, uint64_t now_ms);
/* Touched by this request, and leased. */
void mc_ix_object_touch(struct mc_index_request *q, uint32_t h, uint64_t hash);
void mc_ix_soft_expire(struct mc_index *ix, uint64_t now_ms, uint32_t max);

/* ---- frees and tombstones (index_free.c) ---- */

int mc_ix_frees_reserve(struct mc_index *ix, struct mc_index_frees *frees);
/* After a reserve: cannot fail. */
void mc_ix_free_emit(struct mc_index *ix, struct mc_index_frees *frees,
		     const struct mc_index_free *f);
/* A replica of the index. */
void mc_ix_free_replica(struct mc_index *ix, struct mc_index_frees *frees, uint32_t object,
			uint32_t replica, uint64_t hash, bool is_gone);
/* Owners that are away might bring it back. */
void mc_ix_free_tomb(struct mc_index *ix, struct mc_index_frees *frees, uint64_t hash,
		     uint64_t gen);
/* The object leaves the index, its replicas the owners. */
void mc_ix_free_object(struct mc_index *ix, struct mc_index_frees *frees, uint32_t h,
		       bool wants_tomb);
/* One replica leaves the index and its owner; the last one takes the object with it. */
void mc_ix_free_replica_only(struct mc_index *ix, struct mc_index_frees *frees, uint32_t h,
			     uint32_t r);
/* Whoever is away may not bring back this generation of the key, nor those below it. */
uint64_t mc_ix_tomb_of_all(const struct mc_index *ix, uint64_t hash);
bool mc_ix_tomb_covers(const struct mc_index *ix, uint64_t owner, uint64_t hash, uint64_t gen);
bool mc_ix_pend_has(const struct mc_index *ix, uint64_t owner, uint64_t addr, uint64_t gen);
/** Is a free of this key and generation pending at this owner? */
bool mc_ix_pend_covers(const struct mc_index *ix, uint64_t owner, uint64_t hash, uint64_t gen);
void mc_ix_tombs_drop(struct mc_index *ix, uint64_t owner);

/* ---- owners (index_owner.c) ---- */

struct owner *mc_ix_owner_find(const struct mc_index *ix, uint64_t id);
/* Live pool of an owner that is there; made when it is the first. @return pool + 1; 0: the owner is
 * not there; -MC_E_NOMEM, -MC_E_LIMIT */
int64_t mc_ix_pool_get(struct mc_index *ix, uint64_t owner, unsigned kind);

/* ---- tenants (index_tenant.c) ---- */

/* @return index; -MC_E_INVAL (the key's first byte is not right); -MC_E_LIMIT; -MC_E_NOMEM */
int mc_ix_tenant_of(struct mc_index *ix, const struct mc_st_key *key);
void mc_ix_tenant_order_add(struct mc_index *ix, uint32_t h, uint32_t before);
void mc_ix_tenant_order_del(struct mc_index *ix, uint32_t h);
uint64_t mc_ix_tenant_quota(const struct mc_index *ix, const struct tenant *t);
/* Evict of this tenant, but `keep`, until `bytes` fit. */
bool mc_ix_tenant_make_room(struct mc_index *ix, uint16_t tenant, uint64_t bytes, uint32_t keep,
			    uint64_t now_ms, struct mc_index_frees *frees);
/* Can a pressed pool or tenant lose it now: no lease, no pin, not hidden. */
bool mc_ix_object_may_go(struct mc_index *ix, struct object *o, uint64_t now_ms);

#endif
