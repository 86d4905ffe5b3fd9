/*
 * index_commit.c: what changes objects: commit, adopt, check, remove, drop; see index_priv.h.
 */
#include <string.h>

#include "meta/index_priv.h"

/* ---- how an object is kept ---- */

static uint64_t u64_of(const uint8_t *at)
{
	uint64_t v;

	memcpy(&v, at, sizeof(v)); /* little-endian machines only, as everywhere */
	return v;
}

static int kept_tlv(struct kept *k, uint8_t type, const uint8_t *val, uint16_t len)
{
	uint32_t v32 = 0;

	if (len == sizeof(v32))
		memcpy(&v32, val, sizeof(v32));
	switch (type) {
	case MC_SLOT_TLV_GROUP:
		k->has_group = len > 0;
		k->group = mc_hash64(val, len, 0);
		return 0;
	case MC_SLOT_TLV_PARENT:
		if (len != 8)
			return -MC_E_INVAL;
		k->parent = u64_of(val);
		k->has_parent = k->parent != 0;
		return 0;
	case MC_SLOT_TLV_PINS:
		if (len != 16 || val[1] > MC_STORE_SOFT_PIN_DISABLE)
			return -MC_E_INVAL;
		k->is_hard = val[0] != 0;
		k->soft = val[1];
		k->soft_ms = u64_of(val + 8);
		return 0;
	case MC_SLOT_TLV_TYPE:
		k->type = v32;
		return len == 4 && v32 <= UINT16_MAX ? 0 : -MC_E_INVAL;
	case MC_SLOT_TLV_WANTED:
		k->wanted = v32;
		return len == 4 ? 0 : -MC_E_INVAL;
	default:
		return 0;
	}
}

int mc_ix_kept_parse(const uint8_t *tlv, uint16_t tlv_len, struct kept *ret)
{
	const struct mc_slot_info info = {.tlv = tlv, .tlv_len = tlv_len};
	uint32_t cursor = 0;
	uint8_t type;
	const uint8_t *val;
	uint16_t len;

	*ret = (struct kept){0};
	while (mc_slot_tlv_next(&info, &cursor, &type, &val, &len))
		if (kept_tlv(ret, type, val, len) < 0)
			return -MC_E_INVAL;
	return cursor == tlv_len ? 0 : -MC_E_INVAL;
}

static uint64_t soft_until(const struct mc_index *ix, const struct kept *k, struct object *old,
			   uint64_t now_ms)
{
	const struct soft *s = old ? mc_ix_object_soft(old) : NULL;
	uint64_t ms = k->soft_ms ? k->soft_ms : ix->conf.soft_pin_ttl_ms;

	if (k->soft == MC_STORE_SOFT_PIN_DISABLE)
		return 0;
	if (k->soft == MC_STORE_SOFT_PIN_PRESERVE)
		return s && s->place ? s->until_ms : 0;
	ms = mc_min(ms, ix->conf.soft_pin_ttl_max_ms);
	return now_ms + ms + !ms; /* 0 says that there is none */
}

/* ---- a new object, or a new one for an old ---- */

struct change {
	struct mc_index_request *q;
	uint32_t i;
	uint64_t gen, len;
	const uint8_t *tlv;
	uint16_t tlv_len;
	const struct mc_st_replica *replicas;
	uint32_t nreplicas;
	bool is_upsert, is_committed;
	struct mc_index_frees *frees;
	struct kept kept;
};

static void change_free_one(const struct change *c, const struct mc_st_replica *r)
{
	struct mc_index *ix = c->q->ix;
	const struct owner *owner = mc_ix_owner_find(ix, r->owner);
	const struct mc_index_free f = {.owner = r->owner,
					.addr = r->addr,
					.gen = c->gen,
					.key_hash = c->q->hashes[c->i],
					.len = c->len,
					.kind = r->kind};

	/* Nobody can tell one that is not there; when it announces, it is told. */
	if (owner && owner->state != MC_INDEX_OWNER_AWAY && r->kind < MC_ST_KIND_COUNT)
		mc_ix_free_emit(ix, c->frees, &f);
}

static void change_free(const struct change *c)
{
	for (uint32_t r = 0; r < c->nreplicas; r++)
		change_free_one(c, &c->replicas[r]);
}

static uint32_t replica_find(struct mc_index *ix, uint32_t h, const struct mc_st_replica *want)
{
	uint32_t r = 0;

	while ((r = mc_ix_replica_next(ix, h, r))) {
		const struct replica *at = mc_ix_replica_at(ix, r);
		const struct pool *p = &ix->pools[at->node.pool];

		if (p->state == POOL_LIVE && p->owner == want->owner && p->kind == want->kind &&
		    at->addr == want->addr)
			return r;
	}
	return 0;
}

/* @return replicas the object has got, or had, of these; -MC_E_NOMEM when it is why there is none
 */
static int replicas_add(const struct change *c, uint32_t h)
{
	struct mc_index *ix = c->q->ix;
	int n = 0;
	bool is_nomem = false;

	for (uint32_t r = 0; r < c->nreplicas; r++) {
		const struct mc_st_replica *v = &c->replicas[r];
		int64_t pool;

		if (replica_find(ix, h, v)) {
			n++;
			continue;
		}
		if (mc_ix_pend_has(ix, v->owner, v->addr, c->gen))
			continue;
		pool = mc_ix_pool_get(ix, v->owner, v->kind);
		if (pool == 0)
			continue;
		if (pool < 0 || object_at(ix, h)->nreplicas == MC_ST_REPLICAS_MAX ||
		    mc_ix_object_replica_add(c->q, h, (uint32_t)pool - 1, v->addr) < 0) {
			is_nomem |= pool < 0 || object_at(ix, h)->nreplicas < MC_ST_REPLICAS_MAX;
			if (n || object_at(ix, h)->nreplicas)
				change_free_one(c, v);
			continue;
		}
		if (v->kind == MC_ST_DISK)
			object_at(ix, h)->flags |= OBJECT_DISK;
		n++;
	}
	return n ? n : is_nomem ? -MC_E_NOMEM : 0;
}

static bool has_room_in_chain(const struct mc_index *ix, uint64_t hash)
{
	uint32_t want = mc_ix_table_hash(ix, hash), n = 0;

	for (uint32_t h = mc_ltab_first(&ix->objects, want); h; h = object_at(ix, h)->link.next)
		n += object_at(ix, h)->link.hash == want;
	return n < MC_INDEX_SAME_HASH_MAX;
}

/* @param old  to be replaced, or 0. @return 0; MC_STORE_*: nothing changed */
static int object_make(const struct change *c, uint16_t tenant, uint32_t old)
{
	struct mc_index *ix = c->q->ix;
	struct object *was = old ? object_at(ix, old) : NULL;
	struct object_new n = {.key = &c->q->keys[c->i],
			       .hash = c->q->hashes[c->i],
			       .gen = c->gen,
			       .len = c->len,
			       .tlv_len = c->tlv_len,
			       .tenant = tenant,
			       .kept = c->kept,
			       .nkids = was ? was->nkids : 0};
	uint32_t h;
	int rc;

	n.kept.has_parent &= n.kept.parent != n.hash;
	n.soft_until_ms = soft_until(ix, &c->kept, was, c->q->now_ms);
	h = mc_ix_object_open(c->q, &n);
	if (!h)
		return MC_STORE_INTERNAL_ERROR;
	rc = replicas_add(c, h);
	if (rc <= 0) {
		mc_ix_object_close(ix, h);
		return rc < 0 ? MC_STORE_INTERNAL_ERROR : MC_STORE_INVALID_REPLICA;
	}
	if (c->is_upsert || old)
		object_at(ix, h)->flags |= OBJECT_NEWER;
	object_at(ix, h)->is_committed = c->is_committed;
	/* No tombstone that would cover what it makes room for, at owners yet to announce. */
	if (old)
		mc_ix_free_object(ix, c->frees, old,
				  !c->is_upsert && object_at(ix, old)->gen < c->gen);
	if (c->is_upsert) /* an owner that is away may have any that it replaces */
		mc_ix_free_tomb(ix, c->frees, n.hash, c->gen - 1);
	if (mc_index_is_pending(ix, n.hash))
		object_at(ix, h)->flags |= OBJECT_HIDDEN;
	return 0;
}

static int change_new(const struct change *c, uint32_t old, uint64_t *ret_gen)
{
	struct mc_index *ix = c->q->ix;
	int tenant = mc_ix_tenant_of(ix, &c->q->keys[c->i]), rc;
	uint64_t bytes = c->len * c->nreplicas, had = 0;

	if (tenant < 0) {
		if (tenant == -MC_E_NOMEM)
			return MC_STORE_INTERNAL_ERROR;
		change_free(c);
		return MC_STORE_INVALID_KEY;
	}
	if (!old && !has_room_in_chain(ix, c->q->hashes[c->i])) {
		change_free(c);
		return MC_STORE_INVALID_KEY;
	}
	if (old)
		had = object_at(ix, old)->len * object_at(ix, old)->nreplicas;
	if (bytes > had && ix->conf.has_tenants &&
	    !mc_ix_tenant_make_room(ix, (uint16_t)tenant, bytes - had, old, c->q->now_ms,
				    c->frees)) {
		if (mc_ix_frees_reserve(ix, c->frees) < 0)
			return MC_STORE_INTERNAL_ERROR;
		change_free(c);
		return MC_STORE_TENANT_QUOTA_EXCEEDED;
	}
	if (mc_ix_frees_reserve(ix, c->frees) < 0)
		return MC_STORE_INTERNAL_ERROR;
	rc = object_make(c, (uint16_t)tenant, old);
	if (rc == 0)
		*ret_gen = c->gen;
	/* Old frees are still under way: the answer waits for them. */
	return rc == 0 && mc_index_is_pending(ix, c->q->hashes[c->i]) ? MC_INDEX_WAIT : rc;
}

/* One that has this generation. */
static int change_same(const struct change *c, uint32_t h)
{
	struct mc_index *ix = c->q->ix;
	size_t nfrees;
	int rc = replicas_add(c, h);

	if (rc < 0)
		return MC_STORE_INTERNAL_ERROR;
	object_at(ix, h)->is_committed |= c->is_committed;
	/* It has as many as it may: the rest was freed. */
	if (rc == 0 && object_at(ix, h)->nreplicas < MC_ST_REPLICAS_MAX)
		return MC_STORE_INVALID_REPLICA;
	/* Taken in by an announcement before its commit came: what it replaces may be away. */
	if (c->is_upsert && !(object_at(ix, h)->flags & OBJECT_NEWER)) {
		object_at(ix, h)->flags |= OBJECT_NEWER;
		nfrees = c->frees->n;
		mc_ix_free_tomb(ix, c->frees, c->q->hashes[c->i], c->gen - 1);
		if (c->frees->n > nfrees)
			object_at(ix, h)->flags |= OBJECT_HIDDEN;
	}
	return object_at(ix, h)->flags & OBJECT_HIDDEN ? MC_INDEX_WAIT : 0;
}

static int change_begin(struct change *c)
{
	const struct mc_st_key *key = &c->q->keys[c->i];

	mc_assert(c->i < c->q->n);
	if (mc_ix_frees_reserve(c->q->ix, c->frees) < 0)
		return MC_STORE_INTERNAL_ERROR;
	if (key->len == 0 || key->len > MC_SLOT_KEY_MAX)
		return MC_STORE_INVALID_KEY;
	if (c->gen == 0 || c->len > MC_SLOT_PAYLOAD_MAX ||
	    mc_ix_kept_parse(c->tlv, c->tlv_len, &c->kept) < 0)
		return MC_STORE_INVALID_PARAMS;
	return 0;
}

int mc_index_commit(struct mc_index_request *q, uint32_t i, const struct mc_st_commit *c,
		    struct mc_index_frees *frees, uint64_t *ret_gen)
{
	uint32_t nreplicas = mc_min((uint32_t)c->nreplicas, MC_ST_REPLICAS_MAX);
	struct change ch = {.q = q,
			    .i = i,
			    .gen = c->gen,
			    .len = c->len,
			    .tlv = c->tlv,
			    .tlv_len = c->tlv_len,
			    .replicas = c->replicas,
			    .nreplicas = nreplicas,
			    .is_upsert = c->flags & MC_ST_COMMIT_UPSERT,
			    .is_committed = true,
			    .frees = frees};
	int rc = change_begin(&ch);
	uint32_t h;

	*ret_gen = 0;
	if (rc < 0) {
		if (rc != MC_STORE_INTERNAL_ERROR)
			change_free(&ch);
		return rc;
	}
	h = mc_ix_object_find(q->ix, q->hashes[i], &q->keys[i]);
	if (!h) {
		if (mc_index_is_pending(q->ix, q->hashes[i]))
			return MC_INDEX_WAIT;
		/* An owner that goes away, and comes back with it, would be told to free it. */
		if (mc_ix_tomb_of_all(q->ix, q->hashes[i]) >= c->gen)
			return MC_STORE_INVALID_VERSION;
		return change_new(&ch, 0, ret_gen);
	}
	*ret_gen = object_at(q->ix, h)->gen;
	if (*ret_gen == c->gen)
		return change_same(&ch, h);
	if (!ch.is_upsert) {
		change_free(&ch);
		return MC_STORE_OBJECT_ALREADY_EXISTS;
	}
	if (c->gen < *ret_gen)
		return MC_STORE_INVALID_VERSION;
	return change_new(&ch, h, ret_gen);
}

/* ---- what owners tell ---- */

/* Pages come hot first: later ones count as older. */
static void adopt_age(struct mc_index_request *q, struct owner *owner)
{
	owner->adopted++;
	q->evict.now_ms = q->now_ms - mc_min(q->now_ms, owner->adopted);
}

/* It is being freed: by its place, or whatever its owner has of the generation. */
static bool is_pending(const struct mc_index *ix, uint64_t owner, const struct mc_st_has *h)
{
	return mc_ix_pend_has(ix, owner, h->addr, h->gen) ||
	       (h->kind == MC_ST_MEMORY && mc_ix_pend_has(ix, owner, 0, h->gen));
}

/* Who was committed is; of two that are, or of which neither is known to be, the later one. */
static bool is_better(const struct object *there, const struct change *c)
{
	if (there->gen == c->gen || there->is_committed == c->is_committed)
		return there->gen > c->gen;
	return there->is_committed;
}

int mc_index_adopt(struct mc_index_request *q, uint32_t i, uint64_t owner,
		   const struct mc_st_has *h, struct mc_index_frees *frees)
{
	const struct mc_st_replica at = {.owner = owner, .addr = h->addr, .kind = h->kind};
	struct mc_index *ix = q->ix;
	struct owner *who = mc_ix_owner_find(ix, owner);
	struct change c = {.q = q,
			   .i = i,
			   .gen = h->gen,
			   .len = h->len,
			   .tlv = h->tlv,
			   .tlv_len = h->tlv_len,
			   .replicas = &at,
			   .nreplicas = 1,
			   .is_committed = h->flags & MC_ST_HAS_COMMITTED,
			   .frees = frees};
	int rc = change_begin(&c);
	uint32_t old;
	uint64_t gen;

	if (rc < 0)
		return rc;
	if (!who || who->state == MC_INDEX_OWNER_AWAY || h->kind >= MC_ST_KIND_COUNT)
		return MC_STORE_INVALID_REPLICA;
	if (i == 0)
		adopt_age(q, who);
	if (is_pending(ix, owner, h))
		return 1;
	old = mc_ix_object_find(ix, q->hashes[i], &q->keys[i]);
	if (mc_ix_tomb_covers(ix, owner, q->hashes[i], h->gen) ||
	    (!old && mc_ix_pend_covers(ix, owner, q->hashes[i], h->gen)) ||
	    (old && is_better(object_at(ix, old), &c))) {
		change_free(&c);
		return 1;
	}
	if (old && object_at(ix, old)->gen == h->gen)
		rc = change_same(&c, old);
	else
		rc = change_new(&c, old, &gen);
	if (rc == MC_STORE_TENANT_QUOTA_EXCEEDED)
		return 1;
	return rc == MC_INDEX_WAIT ? 0 : rc;
}

int mc_index_check(struct mc_index_request *q, uint32_t i, uint64_t owner,
		   const struct mc_st_has *h, struct mc_index_frees *frees)
{
	const struct mc_st_replica at = {.owner = owner, .addr = h->addr, .kind = h->kind};
	struct mc_index *ix = q->ix;
	const struct change c = {.q = q,
				 .i = i,
				 .gen = h->gen,
				 .len = h->len,
				 .replicas = &at,
				 .nreplicas = 1,
				 .frees = frees};
	uint32_t o = mc_ix_object_find(ix, q->hashes[i], &q->keys[i]);

	mc_assert(i < q->n);
	if (o && object_at(ix, o)->gen == h->gen && replica_find(ix, o, &at))
		return 0;
	if (is_pending(ix, owner, h))
		return 0;
	if (mc_ix_frees_reserve(ix, frees) < 0)
		return MC_STORE_INTERNAL_ERROR;
	change_free(&c);
	return 1;
}

int mc_index_more(struct mc_index_request *q, uint32_t i, uint64_t owner, const struct mc_st_has *h,
		  struct mc_index_frees *frees)
{
	const struct mc_st_replica at = {.owner = owner, .addr = h->addr, .kind = h->kind};
	struct mc_index *ix = q->ix;
	const struct owner *who = mc_ix_owner_find(ix, owner);
	const struct change c = {.q = q,
				 .i = i,
				 .gen = h->gen,
				 .len = h->len,
				 .replicas = &at,
				 .nreplicas = 1,
				 .frees = frees};
	uint32_t o;
	int rc;

	mc_assert(i < q->n);
	if (!who || who->state == MC_INDEX_OWNER_AWAY || h->kind >= MC_ST_KIND_COUNT)
		return MC_STORE_INVALID_REPLICA;
	if (mc_ix_frees_reserve(ix, frees) < 0)
		return MC_STORE_INTERNAL_ERROR;
	if (is_pending(ix, owner, h))
		return 1;
	o = mc_ix_object_find(ix, q->hashes[i], &q->keys[i]);
	if (!o || object_at(ix, o)->gen != h->gen) {
		change_free(&c);
		return 1;
	}
	rc = change_same(&c, o);
	return rc == MC_INDEX_WAIT ? 0 : rc;
}

static bool has_at(struct mc_index *ix, uint32_t h, uint64_t owner)
{
	uint32_t r = 0;

	while ((r = mc_ix_replica_next(ix, h, r))) {
		const struct pool *p = &ix->pools[mc_ix_replica_at(ix, r)->node.pool];

		if (p->state == POOL_LIVE && p->owner == owner)
			return true;
	}
	return false;
}

void mc_index_left(struct mc_index_request *q, uint32_t i, uint64_t gen, const uint64_t *owners,
		   uint32_t n, struct mc_index_frees *frees)
{
	struct mc_index *ix = q->ix;
	uint32_t h = n > 0 ? mc_ix_object_find(ix, q->hashes[i], &q->keys[i]) : 0;

	for (uint32_t k = 0; k < n; k++) {
		const struct mc_index_free f = {
		    .owner = owners[k], .gen = gen, .key_hash = q->hashes[i]};
		const struct owner *who = mc_ix_owner_find(ix, owners[k]);

		if (!who || who->state == MC_INDEX_OWNER_AWAY ||
		    (h && object_at(ix, h)->gen == gen && has_at(ix, h, owners[k])))
			continue;
		if (mc_ix_frees_reserve(ix, frees) == 0)
			mc_ix_free_emit(ix, frees, &f);
	}
}

/* ---- taking ---- */

int mc_index_remove(struct mc_index_request *q, uint32_t i, unsigned flags,
		    struct mc_index_frees *frees)
{
	struct mc_index *ix = q->ix;
	uint64_t gen;
	uint32_t h;

	mc_assert(i < q->n);
	/* An owner that has not announced may have a newer one, which no tombstone would cover. */
	if (ix->is_recovering)
		return MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	h = mc_ix_object_find(ix, q->hashes[i], &q->keys[i]);
	if (!h)
		return MC_STORE_OBJECT_NOT_FOUND;
	if (!(flags & MC_INDEX_FORCE) && mc_ix_object_lease_ms(ix, object_at(ix, h), q->now_ms))
		return MC_STORE_OBJECT_HAS_LEASE;
	if (mc_ix_frees_reserve(ix, frees) < 0)
		return MC_STORE_INTERNAL_ERROR;
	mc_ix_object_leaves(ix, h, MC_GONE_REMOVED, 0, MC_ST_MEMORY);
	gen = mc_max(object_at(ix, h)->gen, ix->floor - (ix->floor > 0));
	mc_ix_free_object(ix, frees, h, false);
	/* An owner that is away may have generations that are higher than this one and older, but
	 * none from the floor on. */
	mc_ix_free_tomb(ix, frees, q->hashes[i], gen);
	return 0;
}

int mc_index_drop(struct mc_index_request *q, uint32_t i, uint64_t gen,
		  const struct mc_st_replica *replica, enum mc_gone_why why,
		  struct mc_index_frees *frees)
{
	struct mc_index *ix = q->ix;
	uint32_t h, r;

	mc_assert(i < q->n);
	h = mc_ix_object_find(ix, q->hashes[i], &q->keys[i]);
	if (!h || object_at(ix, h)->gen != gen)
		return MC_STORE_OBJECT_NOT_FOUND;
	r = replica_find(ix, h, replica);
	if (!r)
		return MC_STORE_REPLICA_NOT_FOUND;
	if (mc_ix_frees_reserve(ix, frees) < 0)
		return MC_STORE_INTERNAL_ERROR;
	if (object_at(ix, h)->nreplicas == 1)
		mc_ix_object_leaves(ix, h, why, replica->owner, replica->kind);
	mc_ix_free_replica_only(ix, frees, h, r);
	return 0;
}

void mc_index_unwritten(struct mc_index_request *q, uint32_t i)
{
	uint32_t h = mc_ix_object_find(q->ix, q->hashes[i], &q->keys[i]);

	if (h)
		object_at(q->ix, h)->flags &= (uint8_t)~OBJECT_DISK;
}
