/*
 * index_evict.c: who leaves a full pool; see index.h.
 */
#include "meta/index_priv.h"

#define SOFT_LOOK 64u	/* soft-pinned ones looked at for one without children */
#define LEASED_LOOK 64u /* leased ones looked at for one that is on the disk, too */
#define HIDDEN_MS 1000u /* what is not published yet is looked at again after that */
#define DISK_MS 20u	/* so is what is not on its owner's disk yet */
#define COST_MIN 64u	/* bytes that an object is taken for at least: its slot */

struct press {
	struct mc_index *ix;
	struct mc_index_frees *frees;
	uint64_t now_ms;
	uint16_t pool;
	uint64_t got, asked;
	uint32_t n;
};

/* @return -MC_E_NOMEM: nothing happened */
static int replica_evict(struct press *p, uint32_t h, uint32_t r)
{
	struct mc_index *ix = p->ix;
	uint64_t len = object_at(ix, h)->len;

	if (mc_ix_frees_reserve(ix, p->frees) < 0)
		return -MC_E_NOMEM;
	if (mc_ix_replica_at(ix, r)->node.pool == p->pool)
		p->got += mc_max(len, (uint64_t)COST_MIN);
	p->n++;
	ix->stats.evicted_objects++;
	ix->stats.evicted_bytes += len;
	if (object_at(ix, h)->nreplicas == 1) {
		const struct pool *pool = &ix->pools[mc_ix_replica_at(ix, r)->node.pool];

		mc_ix_object_leaves(ix, h, MC_GONE_EVICTED, pool->owner, pool->kind);
	}
	mc_ix_free_replica_only(ix, p->frees, h, r);
	return 0;
}

/* It leaves the memory when it has been on the disk. */
static bool is_due_on_disk(const struct press *p, uint32_t h)
{
	const struct pool *pool = &p->ix->pools[p->pool];
	const struct owner *owner;

	if (pool->kind != MC_ST_MEMORY || object_at(p->ix, h)->flags & OBJECT_DISK)
		return false;
	owner = mc_ix_owner_find(p->ix, pool->owner);
	return owner && owner->has_disk;
}

/* Its owner has it on the disk, too: a lease promises a reader the bytes, not a place in memory. */
static bool is_covered(const struct press *p, uint32_t h)
{
	const struct mc_index *ix = p->ix;
	const struct pool *pool = &ix->pools[p->pool], *other;
	uint32_t r = 0;

	if (pool->kind != MC_ST_MEMORY || object_at(ix, h)->flags & (OBJECT_HARD | OBJECT_HIDDEN))
		return false;
	while ((r = mc_ix_replica_next(ix, h, r))) {
		other = &ix->pools[mc_ix_replica_at(ix, r)->node.pool];
		if (other->kind == MC_ST_DISK && other->owner == pool->owner)
			return true;
	}
	return false;
}

/* A member's replicas of this kind, wherever they are. */
static int member_evict(struct press *p, uint32_t h, uint8_t kind)
{
	struct mc_index *ix = p->ix;

	for (;;) {
		uint32_t r = 0;
		bool is_last;
		int rc;

		while ((r = mc_ix_replica_next(ix, h, r)))
			if (ix->pools[mc_ix_replica_at(ix, r)->node.pool].kind == kind)
				break;
		if (!r)
			return 0;
		is_last = object_at(ix, h)->nreplicas == 1;
		rc = replica_evict(p, h, r);
		if (rc < 0 || is_last)
			return rc;
	}
}

/* The object, and its group. */
static int object_evict(struct press *p, uint32_t h, uint32_t r)
{
	struct mc_index *ix = p->ix;
	const struct member *m = mc_ix_object_member(object_at(ix, h));
	uint8_t kind = ix->pools[p->pool].kind;
	uint32_t at;
	int rc = 0;

	if (!m || !m->group)
		return replica_evict(p, h, r);
	at = ((struct ixgroup *)mc_slab_at(&ix->slab, m->group))->first;
	while (at && rc == 0) {
		uint32_t next = mc_ix_object_member(object_at(ix, at))->next;

		if (at == h || (!(object_at(ix, at)->flags & (OBJECT_HARD | OBJECT_HIDDEN)) &&
				!is_due_on_disk(p, at)))
			rc = member_evict(p, at, kind);
		at = next;
	}
	return rc;
}

/* Its owner is asked to write it. @return it may go without that */
static bool is_waived(struct press *p, uint32_t h, uint32_t r)
{
	struct mc_index *ix = p->ix;
	void *due = ix->due;

	if (ix->conf.due_max == 0)
		return false; /* it is written anyway */
	if (ix->ndue >= ix->conf.due_max)
		return ix->conf.may_skip_disk;
	if (mc_array_grow(&due, &ix->due_cap, ix->ndue + 1, ix->conf.due_max, sizeof(*ix->due)) < 0)
		return false;
	ix->due = due;
	ix->due[ix->ndue++] =
	    (struct mc_index_due){mc_ix_replica_at(ix, r)->addr, object_at(ix, h)->gen};
	p->asked += mc_max(object_at(ix, h)->len, (uint64_t)COST_MIN);
	return false;
}

/* Until when nothing of the object's group may go; 0: it may. */
static uint64_t kept_until(struct press *p, uint32_t h, uint32_t r)
{
	struct mc_index *ix = p->ix;
	uint64_t now_ms = p->now_ms;
	struct object *o = object_at(ix, h);
	uint64_t until = mc_ix_object_lease_ms(ix, o, now_ms);

	if (o->flags & OBJECT_HIDDEN)
		until = mc_max(until, now_ms + HIDDEN_MS);
	if (is_due_on_disk(p, h) && (until || !is_waived(p, h, r)))
		until = mc_max(until, now_ms + DISK_MS);
	return until;
}

/* Of those that nobody but a lease keeps here. */
static uint32_t leased_victim(struct press *p)
{
	struct mc_index *ix = p->ix;
	uint32_t r;

	for (unsigned n = 0; n < LEASED_LOOK && (r = mc_evict_leased(ix->evict, p->pool)); n++) {
		uint32_t h = mc_ix_replica_object(ix, r);

		if (is_covered(p, h))
			return r;
		mc_evict_lease(ix->evict, r, mc_max(kept_until(p, h, r), p->now_ms + 1));
	}
	return 0;
}

/* The last resort; without children if there is one among the first. */
static uint32_t soft_victim(struct press *p, uint64_t *ret_retry_ms)
{
	struct mc_index *ix = p->ix;
	uint32_t best = 0, n = 0;

	if (!ix->conf.may_evict_soft_pinned)
		return 0;
	for (uint32_t r = ix->pools[p->pool].soft_first; r && n < SOFT_LOOK;
	     r = mc_ix_replica_at(ix, r)->node.next, n++) {
		uint64_t until = kept_until(p, mc_ix_replica_object(ix, r), r);

		if (until) {
			*ret_retry_ms = mc_min(*ret_retry_ms, until);
			continue;
		}
		if (!mc_ix_replica_at(ix, r)->node.is_parent)
			return r;
		if (!best)
			best = r;
	}
	return best;
}

uint64_t mc_index_evict(struct mc_index *ix, uint64_t now_ms, uint64_t owner, unsigned kind,
			uint64_t bytes, uint32_t max, struct mc_index_frees *frees,
			uint64_t *ret_retry_ms)
{
	struct owner *who = mc_ix_owner_find(ix, owner);
	struct press p = {.ix = ix, .frees = frees, .now_ms = now_ms};

	mc_assert(kind < MC_ST_KIND_COUNT);
	*ret_retry_ms = UINT64_MAX;
	ix->now_ms = now_ms;
	ix->ndue = 0;
	if (!who || !who->pool[kind])
		return 0;
	p.pool = (uint16_t)(who->pool[kind] - 1);
	mc_ix_soft_expire(ix, now_ms, max);
	while (p.got + p.asked < bytes) {
		uint64_t retry_ms = UINT64_MAX, until = 0;
		uint32_t r, leased = 0;
		int rc;

		if (p.n >= max) {
			*ret_retry_ms = now_ms;
			break;
		}
		r = mc_evict_victim(ix->evict, p.pool, now_ms, &retry_ms);
		if (!r)
			r = leased = leased_victim(&p);
		if (!r)
			r = soft_victim(&p, &retry_ms);
		if (!r) {
			*ret_retry_ms = retry_ms;
			break;
		}
		if (!leased)
			until = kept_until(&p, mc_ix_replica_object(ix, r), r);
		if (until) {
			mc_evict_lease(ix->evict, r, until);
			if (ix->conf.due_max == 0 || ix->ndue < ix->conf.due_max ||
			    ix->conf.may_skip_disk)
				continue;
			break; /* enough has been asked for */
		}
		/* Of a leased group only what is on the disk goes, and only from here. */
		rc = leased ? replica_evict(&p, mc_ix_replica_object(ix, r), r)
			    : object_evict(&p, mc_ix_replica_object(ix, r), r);
		if (rc < 0) {
			*ret_retry_ms = now_ms;
			break;
		}
	}
	if (p.asked > 0)
		*ret_retry_ms = mc_min(*ret_retry_ms, now_ms + DISK_MS);
	return p.got;
}

uint32_t mc_index_due(const struct mc_index *ix, const struct mc_index_due **ret)
{
	*ret = ix->due;
	return (uint32_t)ix->ndue;
}
