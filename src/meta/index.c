/*
 * index.c: life of the index, requests, and what they read; see index_priv.h.
 */
#include "meta/index.h"

#include <string.h>

#include "meta/index_priv.h"

#define AHEAD 16u /* keys between the fetch into the cache and the use */

/* ---- life ---- */

int mc_index_open(const struct mc_index_conf *conf, struct mc_index **ret)
{
	struct mc_index *ix = mc_calloc(1, sizeof(*ix));
	struct mc_evict_conf evict = {.keys_max = TOUCHES_MIN};

	if (!ix)
		return -MC_E_NOMEM;
	ix->conf = *conf;
	evict.slab = &ix->slab;
	ix->tenants = mc_calloc(1, sizeof(*ix->tenants));
	if (!ix->tenants ||
	    mc_ltab_init(&ix->objects, &ix->slab, offsetof(struct object, link)) < 0 ||
	    mc_ltab_init(&ix->groups, &ix->slab, offsetof(struct ixgroup, link)) < 0 ||
	    mc_ltab_init(&ix->pend_by_key, &ix->slab, offsetof(struct pend, by_key)) < 0 ||
	    mc_ltab_init(&ix->pend_by_place, &ix->slab, offsetof(struct pend, by_place)) < 0 ||
	    mc_ltab_init(&ix->tombs, &ix->slab, offsetof(struct tomb, link)) < 0 ||
	    mc_evict_open(&evict, &ix->evict) < 0 || mc_gone_open(&ix->gone) < 0) {
		mc_index_close(ix);
		return -MC_E_NOMEM;
	}
	ix->ntenants = ix->tenants_cap = 1;
	*ret = ix;
	return 0;
}

void mc_index_close(struct mc_index *ix)
{
	if (!ix)
		return;
	mc_evict_close(ix->evict);
	mc_gone_close(ix->gone);
	mc_ltab_fini(&ix->objects);
	mc_ltab_fini(&ix->groups);
	mc_ltab_fini(&ix->pend_by_key);
	mc_ltab_fini(&ix->pend_by_place);
	mc_ltab_fini(&ix->tombs);
	mc_slab_fini(&ix->slab);
	for (size_t i = 0; i < ix->ntenants; i++)
		mc_free(ix->tenants[i].name);
	mc_free(ix->tenants);
	mc_free(ix->owners);
	mc_free(ix->owner_at);
	mc_free(ix->pools);
	mc_free(ix->soft);
	mc_free(ix->hashes);
	mc_free(ix->due);
	mc_free(ix);
}

/* ---- requests ---- */

int mc_index_begin(struct mc_index *ix, struct mc_index_request *q, uint64_t now_ms,
		   const struct mc_st_key *keys, uint32_t n)
{
	void *array = ix->hashes;

	mc_assert(n >= 1 && n <= MC_ST_RECORDS_MAX);
	if (mc_array_grow(&array, &ix->hashes_cap, n, MC_ST_RECORDS_MAX, sizeof(*ix->hashes)) < 0)
		return -MC_E_NOMEM;
	ix->hashes = array;
	if (!ix->has_base) {
		ix->has_base = true;
		ix->base_ms = now_ms;
	}
	ix->now_ms = now_ms;
	for (uint32_t i = 0; i < n; i++) {
		ix->hashes[i] = mc_hash64(keys[i].bytes, keys[i].len, 0);
		mc_evict_prefetch(ix->evict, ix->hashes[i]);
		mc_ltab_prefetch(&ix->objects, mc_ix_table_hash(ix, ix->hashes[i]));
	}
	*q = (struct mc_index_request){
	    .ix = ix, .now_ms = now_ms, .keys = keys, .n = n, .hashes = ix->hashes};
	mc_evict_begin(ix->evict, &q->evict, now_ms, q->hashes, n);
	return 0;
}

bool mc_index_gone(const struct mc_index_request *q, uint32_t i, struct mc_gone *ret)
{
	mc_assert(i < q->n);
	return mc_gone_find(q->ix->gone, q->hashes[i], ret);
}

uint64_t mc_index_gone_since_ms(const struct mc_index *ix)
{
	return mc_gone_since_ms(ix->gone);
}

void mc_index_end(struct mc_index_request *q)
{
	mc_evict_end(&q->evict);
}

static void fetch_record(const struct mc_index *ix, uint32_t h)
{
	const uint8_t *at = mc_slab_at(&ix->slab, h);

	__builtin_prefetch(at);
	__builtin_prefetch(at + MC_CACHELINE);
}

/* Records of the keys to come into the cache: the first of the chain, then its successor. */
static void fetch_ahead(const struct mc_index_request *q, uint32_t i)
{
	const struct mc_index *ix = q->ix;
	uint32_t h;

	if (i + AHEAD < q->n) {
		h = mc_ltab_first(&ix->objects, mc_ix_table_hash(ix, q->hashes[i + AHEAD]));
		if (h)
			fetch_record(ix, h);
	}
	if (i + AHEAD / 2 < q->n) {
		h = mc_ltab_first(&ix->objects, mc_ix_table_hash(ix, q->hashes[i + AHEAD / 2]));
		h = h ? object_at(ix, h)->link.next : 0;
		if (h)
			fetch_record(ix, h);
	}
}

/* An object that may be shown. @param ret_h  set when the result is 0 or MC_INDEX_WAIT */
static int shown(struct mc_index_request *q, uint32_t i, uint32_t *ret_h)
{
	struct mc_index *ix = q->ix;

	mc_assert(i < q->n);
	fetch_ahead(q, i);
	*ret_h = mc_ix_object_find(ix, q->hashes[i], &q->keys[i]);
	if (!*ret_h)
		return ix->is_recovering ? MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS
					 : MC_STORE_OBJECT_NOT_FOUND;
	return object_at(ix, *ret_h)->flags & OBJECT_HIDDEN ? MC_INDEX_WAIT : 0;
}

static void replicas_fill(const struct mc_index *ix, uint32_t h, struct mc_st_object *ret)
{
	uint32_t r = 0, n = 0, rest = 0;
	struct mc_st_replica last[MC_ST_REPLICAS_MAX];

	/* Memory of owners that are well first; those of suspects last. */
	while ((r = mc_ix_replica_next(ix, h, r))) {
		const struct replica *at = mc_ix_replica_at(ix, r);
		const struct pool *p = &ix->pools[at->node.pool];
		const struct owner *owner = mc_ix_owner_find(ix, p->owner);
		struct mc_st_replica v = {.owner = p->owner, .addr = at->addr, .kind = p->kind};

		if (p->state != POOL_LIVE)
			continue;
		if (owner && owner->state == MC_INDEX_OWNER_SUSPECT) {
			last[rest++] = v;
			continue;
		}
		ret->replicas[n++] = v;
		if (v.kind == MC_ST_MEMORY && n > 1 && ret->replicas[0].kind != MC_ST_MEMORY) {
			ret->replicas[n - 1] = ret->replicas[0];
			ret->replicas[0] = v;
		}
	}
	for (uint32_t i = 0; i < rest; i++)
		ret->replicas[n++] = last[i];
	ret->nreplicas = (uint8_t)n;
}

static void object_fill(struct mc_index *ix, uint32_t h, uint64_t now_ms, struct mc_st_object *ret)
{
	struct object *o = object_at(ix, h);
	uint64_t until_ms = mc_ix_object_lease_ms(ix, o, now_ms);

	ret->status = 0;
	ret->gen = o->gen;
	ret->len = o->len;
	ret->type = o->type;
	ret->tlv_len = o->tlv_len;
	ret->flags = 0;
	ret->lease_ms = until_ms ? (uint32_t)(until_ms - now_ms) : 0;
	replicas_fill(ix, h, ret);
}

/* Keys that are not there are remembered, too: what is asked for again is worth more. */
static void touch(struct mc_index_request *q, uint32_t i, int rc, uint32_t h)
{
	if (rc == 0)
		mc_ix_object_touch(q, h, q->hashes[i]);
	else if (rc == MC_STORE_OBJECT_NOT_FOUND)
		(void)mc_evict_touch(&q->evict, q->hashes[i]); /* no node to move */
}

int mc_index_exist(struct mc_index_request *q, uint32_t i, unsigned flags)
{
	uint32_t h;
	int rc = shown(q, i, &h);

	if (!(flags & MC_INDEX_QUIET))
		touch(q, i, rc, h);
	return rc;
}

int mc_index_lookup(struct mc_index_request *q, uint32_t i, unsigned flags,
		    struct mc_st_object *ret)
{
	uint32_t h;
	int rc = shown(q, i, &h);

	if (!(flags & MC_INDEX_QUIET))
		touch(q, i, rc, h);
	if (rc != 0) {
		ret->status = rc == MC_INDEX_WAIT ? MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS : rc;
		return rc;
	}
	object_fill(q->ix, h, q->now_ms, ret);
	/* Never longer than what was promised: the lease itself is rounded up. */
	ret->lease_ms = mc_min(ret->lease_ms, q->ix->conf.lease_ttl_ms);
	return 0;
}

static void view_fill(struct mc_index *ix, uint32_t h, uint64_t now_ms, struct mc_index_view *ret)
{
	struct object *o = object_at(ix, h);
	const struct soft *s = mc_ix_object_soft(o);

	memset(ret, 0, sizeof(*ret));
	ret->key = (struct mc_st_key){.len = o->key_len, .bytes = mc_ix_object_key(o)};
	ret->key_hash = mc_ix_object_hash(o);
	ret->wanted = o->wanted;
	ret->is_hard_pinned = o->flags & OBJECT_HARD;
	ret->is_committed = o->is_committed;
	ret->is_soft_pinned = s && s->place;
	object_fill(ix, h, now_ms, &ret->object);
}

int mc_index_view(struct mc_index_request *q, uint32_t i, struct mc_index_view *ret)
{
	uint32_t h;
	int rc = shown(q, i, &h);

	if (rc < 0)
		return rc;
	view_fill(q->ix, h, q->now_ms, ret);
	return 0;
}

/* ---- walks ---- */

#define PLACE_MAX 1024u /* records of one place: far beyond chance and MC_INDEX_SAME_HASH_MAX */

bool mc_index_walk(struct mc_index *ix, uint64_t now_ms, uint64_t *cursor, uint32_t budget,
		   void (*each)(void *user, const struct mc_index_view *v), void *user)
{
	uint32_t some[PLACE_MAX];

	while (!(*cursor >> 32)) {
		uint32_t n = mc_ltab_walk(&ix->objects, cursor, some, MC_ARRAY_LEN(some));

		mc_assert(n <= MC_ARRAY_LEN(some));
		for (uint32_t i = 0; i < n; i++) {
			struct mc_index_view v;

			view_fill(ix, some[i], now_ms, &v);
			if (v.object.nreplicas)
				each(user, &v);
		}
		if (budget <= n + 1)
			break;
		budget -= n + 1;
	}
	return !(*cursor >> 32);
}

static void sweep_begin(struct mc_index *ix)
{
	for (size_t i = 0; i < ix->npools; i++)
		if (ix->pools[i].state == POOL_DEAD)
			ix->pools[i].state = POOL_SWEPT;
	ix->sweep = 0;
	ix->is_sweeping = true;
}

static void sweep_end(struct mc_index *ix)
{
	ix->is_sweeping = false;
	for (size_t i = 0; i < ix->npools; i++) {
		if (ix->pools[i].state != POOL_SWEPT)
			continue;
		mc_assert(ix->pools[i].held == 0);
		mc_evict_pool_close(ix->evict, (uint16_t)i);
		ix->pools[i] = (struct pool){0};
		ix->ndead--;
	}
}

bool mc_index_step(struct mc_index *ix, uint64_t now_ms, uint32_t budget)
{
	uint32_t some[PLACE_MAX];

	ix->now_ms = now_ms;
	mc_ix_soft_expire(ix, now_ms, budget);
	if (!ix->is_sweeping && ix->ndead)
		sweep_begin(ix);
	while (ix->is_sweeping) {
		uint32_t n = mc_ltab_walk(&ix->objects, &ix->sweep, some, MC_ARRAY_LEN(some));

		mc_assert(n <= MC_ARRAY_LEN(some));
		for (uint32_t i = 0; i < n; i++) {
			mc_ix_object_prune(ix, some[i]);
			if (object_at(ix, some[i])->nreplicas)
				continue;
			mc_ix_object_leaves(ix, some[i], MC_GONE_LOST, ix->lost_owner,
					    MC_ST_MEMORY);
			mc_ix_object_close(ix, some[i]);
		}
		if (ix->sweep >> 32)
			sweep_end(ix);
		else if (budget <= n + 1)
			return true;
		else
			budget -= n + 1;
	}
	return ix->ndead ||
	       (ix->nsoft && mc_ix_object_soft(object_at(ix, ix->soft[0]))->until_ms <= now_ms);
}

/* ---- numbers ---- */

void mc_index_set_recovering(struct mc_index *ix, bool is_recovering)
{
	ix->is_recovering = is_recovering;
}

void mc_index_set_floor(struct mc_index *ix, uint64_t gen)
{
	ix->floor = gen;
}

void mc_index_stats(const struct mc_index *ix, struct mc_index_stats *ret)
{
	*ret = ix->stats;
	ret->soft_pinned = ix->nsoft;
	ret->pending = ix->pend_by_place.n;
	ret->tombs = ix->tombs.n;
	ret->memory_bytes = sizeof(*ix) + mc_slab_bytes(&ix->slab) + mc_ltab_bytes(&ix->objects) +
			    mc_ltab_bytes(&ix->groups) + mc_ltab_bytes(&ix->pend_by_key) +
			    mc_ltab_bytes(&ix->pend_by_place) + mc_ltab_bytes(&ix->tombs) +
			    mc_evict_bytes(ix->evict) + ix->owners_cap * sizeof(*ix->owners) +
			    ix->owner_at_len * sizeof(*ix->owner_at) +
			    ix->pools_cap * sizeof(*ix->pools) +
			    ix->tenants_cap * sizeof(*ix->tenants) +
			    ix->soft_cap * sizeof(*ix->soft) + ix->hashes_cap * sizeof(*ix->hashes);
}
