/*
 * index_object.c: objects and their replicas; see index_priv.h.
 */
#include <string.h>

#include "meta/index_priv.h"

#define TOUCH_AGAIN_MS 1000u

/* ---- layout ---- */

/* What stands between the fixed part and `flag`'s. */
static size_t extra_before(unsigned flags, unsigned flag)
{
	size_t at = sizeof(struct object);

	if (flag == OBJECT_PARENT)
		return at;
	at += flags & OBJECT_PARENT ? sizeof(uint64_t) : 0;
	if (flag == OBJECT_SOFT)
		return at;
	at += flags & OBJECT_SOFT ? sizeof(struct soft) : 0;
	if (flag == OBJECT_GROUP)
		return at;
	at += flags & OBJECT_GROUP ? sizeof(struct member) : 0;
	if (flag == OBJECT_TENANT)
		return at;
	return at + (flags & OBJECT_TENANT ? sizeof(struct order) : 0);
}

static void *extra_of(struct object *o, unsigned flag)
{
	if (flag && !(o->flags & flag))
		return NULL;
	return (uint8_t *)o + extra_before(o->flags, flag);
}

uint64_t *mc_ix_object_parent(struct object *o)
{
	return extra_of(o, OBJECT_PARENT);
}

struct soft *mc_ix_object_soft(struct object *o)
{
	return extra_of(o, OBJECT_SOFT);
}

struct member *mc_ix_object_member(struct object *o)
{
	return extra_of(o, OBJECT_GROUP);
}

struct order *mc_ix_object_order(struct object *o)
{
	return extra_of(o, OBJECT_TENANT);
}

uint8_t *mc_ix_object_key(struct object *o)
{
	return extra_of(o, 0);
}

uint64_t mc_ix_object_hash(struct object *o)
{
	return mc_hash64(mc_ix_object_key(o), o->key_len, 0);
}

uint32_t mc_ix_table_hash(const struct mc_index *ix, uint64_t hash)
{
	uint64_t state = hash ^ ix->conf.seed;

	return (uint32_t)mc_splitmix64(&state);
}

/* ---- finding ---- */

static uint32_t find(const struct mc_index *ix, uint64_t hash, const struct mc_st_key *key)
{
	uint32_t want = mc_ix_table_hash(ix, hash), h;

	for (h = mc_ltab_first(&ix->objects, want); h; h = object_at(ix, h)->link.next) {
		struct object *o = object_at(ix, h);

		if (o->link.hash != want)
			continue;
		if (key ? o->key_len == key->len &&
			      !memcmp(mc_ix_object_key(o), key->bytes, key->len)
			: mc_ix_object_hash(o) == hash)
			return h;
	}
	return 0;
}

uint32_t mc_ix_object_find(struct mc_index *ix, uint64_t hash, const struct mc_st_key *key)
{
	uint32_t h = find(ix, hash, key);

	if (!h)
		return 0;
	if (ix->ndead)
		mc_ix_object_prune(ix, h);
	if (!object_at(ix, h)->nreplicas) {
		mc_ix_object_leaves(ix, h, MC_GONE_LOST, ix->lost_owner, MC_ST_MEMORY);
		mc_ix_object_close(ix, h);
		return 0;
	}
	return h;
}

uint32_t mc_ix_object_find_hash(const struct mc_index *ix, uint64_t hash)
{
	return find(ix, hash, NULL);
}

/* ---- replicas ---- */

struct replica *mc_ix_replica_at(const struct mc_index *ix, uint32_t h)
{
	return mc_slab_at(&ix->slab, h);
}

uint32_t mc_ix_replica_next(const struct mc_index *ix, uint32_t object, uint32_t replica)
{
	const struct object *o = object_at(ix, object);

	if (!replica)
		return o->nreplicas ? object : 0;
	if (replica == object)
		return o->more;
	return ((struct more *)mc_slab_at(&ix->slab, replica))->next;
}

uint32_t mc_ix_replica_object(const struct mc_index *ix, uint32_t replica)
{
	if (mc_ix_replica_at(ix, replica)->node.user & REPLICA_MORE)
		return ((struct more *)mc_slab_at(&ix->slab, replica))->object;
	return replica;
}

/* ---- the soft-pinned of a pool: a list through their nodes, which are then in no group ---- */

static void soft_list_add(struct mc_index *ix, uint32_t r)
{
	struct mc_evict_node *n = &mc_ix_replica_at(ix, r)->node;
	struct pool *p = &ix->pools[n->pool];

	n->prev = p->soft_last;
	n->next = 0;
	if (p->soft_last)
		mc_ix_replica_at(ix, p->soft_last)->node.next = r;
	else
		p->soft_first = r;
	p->soft_last = r;
	n->user |= REPLICA_SOFT;
}

static void soft_list_del(struct mc_index *ix, uint32_t r)
{
	struct mc_evict_node *n = &mc_ix_replica_at(ix, r)->node;
	struct pool *p = &ix->pools[n->pool];

	if (!(n->user & REPLICA_SOFT))
		return;
	if (n->prev)
		mc_ix_replica_at(ix, n->prev)->node.next = n->next;
	else
		p->soft_first = n->next;
	if (n->next)
		mc_ix_replica_at(ix, n->next)->node.prev = n->prev;
	else
		p->soft_last = n->prev;
	n->prev = n->next = 0;
	n->user &= (uint8_t)~REPLICA_SOFT;
}

/* ---- the heap of soft pins ---- */

static uint64_t soft_until(const struct mc_index *ix, size_t i)
{
	return mc_ix_object_soft(object_at(ix, ix->soft[i]))->until_ms;
}

static void soft_put(struct mc_index *ix, size_t i, uint32_t h)
{
	ix->soft[i] = h;
	mc_ix_object_soft(object_at(ix, h))->place = (uint32_t)i + 1;
}

static void soft_sift(struct mc_index *ix, size_t i)
{
	uint32_t h = ix->soft[i];
	uint64_t until = soft_until(ix, i);

	while (i && soft_until(ix, (i - 1) / 2) > until) {
		soft_put(ix, i, ix->soft[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	for (;;) {
		size_t kid = 2 * i + 1;

		if (kid + 1 < ix->nsoft && soft_until(ix, kid + 1) < soft_until(ix, kid))
			kid++;
		if (kid >= ix->nsoft || soft_until(ix, kid) >= until)
			break;
		soft_put(ix, i, ix->soft[kid]);
		i = kid;
	}
	soft_put(ix, i, h);
}

/* No longer in the heap. */
static void object_unsoft(struct mc_index *ix, uint32_t h)
{
	struct soft *s = mc_ix_object_soft(object_at(ix, h));
	size_t i;

	if (!s || !s->place)
		return;
	i = s->place - 1;
	s->place = 0;
	ix->nsoft--;
	if (i < ix->nsoft) {
		soft_put(ix, i, ix->soft[ix->nsoft]);
		soft_sift(ix, i);
	}
}

/* Pins that ended: their replicas are evicted like others. Without memory they wait. */
void mc_ix_soft_expire(struct mc_index *ix, uint64_t now_ms, uint32_t max)
{
	struct mc_evict_request q;

	if (!ix->nsoft || soft_until(ix, 0) > now_ms)
		return;
	mc_evict_begin(ix->evict, &q, now_ms, NULL, 0);
	while (max-- && ix->nsoft && soft_until(ix, 0) <= now_ms) {
		uint32_t h = ix->soft[0], r = 0;
		uint64_t hash = mc_ix_object_hash(object_at(ix, h));

		object_unsoft(ix, h);
		while ((r = mc_ix_replica_next(ix, h, r))) {
			soft_list_del(ix, r);
			if (mc_evict_add(&q, r, hash) < 0)
				soft_list_add(ix, r); /* a victim of the last resort */
		}
	}
	mc_evict_end(&q);
}

/* ---- adding and taking ---- */

static void use_change(struct mc_index *ix, const struct object *o, uint16_t pool, int sign)
{
	struct pool *p = &ix->pools[pool];
	struct tenant *t = &ix->tenants[o->tenant];

	p->held += (uint64_t)sign;
	p->use.objects += (uint64_t)sign;
	p->use.bytes += (uint64_t)sign * o->len;
	t->bytes += (uint64_t)sign * o->len;
	ix->stats.bytes += (uint64_t)sign * o->len;
	ix->stats.replicas[p->kind] += (uint64_t)sign;
}

int mc_ix_object_replica_add(struct mc_index_request *q, uint32_t h, uint32_t pool, uint64_t addr)
{
	struct mc_index *ix = q->ix;
	struct object *o = object_at(ix, h);
	const struct soft *s = mc_ix_object_soft(o);
	uint32_t r = h;
	struct replica *at;

	if (o->nreplicas) {
		struct more *m;

		r = mc_slab_alloc(&ix->slab, sizeof(*m));
		if (!r)
			return -MC_E_NOMEM;
		m = mc_slab_at(&ix->slab, r);
		m->object = h;
		m->r.node.user = REPLICA_MORE;
	}
	at = mc_ix_replica_at(ix, r);
	at->node.pool = (uint16_t)pool;
	at->node.is_parent = o->nkids > 0;
	at->addr = addr;
	if (s && s->place) {
		soft_list_add(ix, r);
	} else if (!(o->flags & OBJECT_HARD) &&
		   mc_evict_add(&q->evict, r, mc_ix_object_hash(o)) < 0) {
		if (r != h)
			mc_slab_free(&ix->slab, r);
		return -MC_E_NOMEM;
	}
	if (r != h) {
		((struct more *)mc_slab_at(&ix->slab, r))->next = o->more;
		o->more = r;
	}
	o->nreplicas++;
	use_change(ix, o, (uint16_t)pool, 1);
	return 0;
}

/* The first of the others takes the place in the object. */
static void more_to_first(struct mc_index *ix, struct object *o, uint32_t h)
{
	uint32_t r = o->more;
	struct more *m = mc_slab_at(&ix->slab, r);
	bool is_soft = m->r.node.user & REPLICA_SOFT;

	if (is_soft)
		soft_list_del(ix, r);
	o->first = m->r;
	o->first.node.user = 0;
	o->more = m->next;
	if (is_soft)
		soft_list_add(ix, h);
	else
		mc_evict_rename(ix->evict, r, h);
	mc_slab_free(&ix->slab, r);
}

void mc_ix_object_replica_del(struct mc_index *ix, uint32_t h, uint32_t replica)
{
	struct object *o = object_at(ix, h);

	use_change(ix, o, mc_ix_replica_at(ix, replica)->node.pool, -1);
	soft_list_del(ix, replica);
	mc_evict_del(ix->evict, replica);
	o->nreplicas--;
	if (replica == h) {
		if (o->more)
			more_to_first(ix, o, h);
		return;
	}
	for (uint32_t *at = &o->more;; at = &((struct more *)mc_slab_at(&ix->slab, *at))->next) {
		if (*at != replica)
			continue;
		*at = ((struct more *)mc_slab_at(&ix->slab, replica))->next;
		break;
	}
	mc_slab_free(&ix->slab, replica);
}

void mc_ix_object_prune(struct mc_index *ix, uint32_t h)
{
	uint32_t r = mc_ix_replica_next(ix, h, 0);

	while (r) {
		uint32_t next = mc_ix_replica_next(ix, h, r);

		if (ix->pools[mc_ix_replica_at(ix, r)->node.pool].state != POOL_LIVE) {
			ix->lost_owner = ix->pools[mc_ix_replica_at(ix, r)->node.pool].owner;
			mc_ix_object_replica_del(ix, h, r);
			if (r == h && object_at(ix, h)->nreplicas)
				next = h; /* another is there now */
		}
		r = next;
	}
}

/* ---- parents ---- */

static void kids_change(struct mc_index *ix, uint64_t parent, int sign)
{
	uint32_t h = mc_ix_object_find_hash(ix, parent), r = 0;
	struct object *o;

	if (!h)
		return;
	o = object_at(ix, h);
	/* Children of an object that stood under this key before are not counted. */
	if (sign < 0 && !o->nkids)
		return;
	o->nkids += (uint32_t)sign;
	if (sign < 0 && o->nkids)
		return;
	while ((r = mc_ix_replica_next(ix, h, r)))
		mc_evict_parent(ix->evict, r, o->nkids > 0);
}

/* ---- groups ---- */

static uint32_t group_find(const struct mc_index *ix, uint64_t hash)
{
	uint32_t g = mc_ltab_first(&ix->groups, (uint32_t)hash);

	while (g && ((struct ixgroup *)mc_slab_at(&ix->slab, g))->hash != hash)
		g = ((struct ixgroup *)mc_slab_at(&ix->slab, g))->link.next;
	return g;
}

static int group_join(struct mc_index *ix, uint32_t h, uint64_t hash)
{
	struct member *m = mc_ix_object_member(object_at(ix, h));
	uint32_t group = group_find(ix, hash);
	struct ixgroup *g;

	if (!group) {
		group = mc_slab_alloc(&ix->slab, sizeof(*g));
		if (!group)
			return -MC_E_NOMEM;
		((struct ixgroup *)mc_slab_at(&ix->slab, group))->hash = hash;
		mc_ltab_add(&ix->groups, group, (uint32_t)hash);
	}
	g = mc_slab_at(&ix->slab, group);
	m->group = group;
	m->next = g->first;
	if (g->first)
		mc_ix_object_member(object_at(ix, g->first))->prev = h;
	g->first = h;
	return 0;
}

static void group_leave(struct mc_index *ix, uint32_t h)
{
	struct member *m = mc_ix_object_member(object_at(ix, h));
	struct ixgroup *g;

	if (!m || !m->group)
		return;
	g = mc_slab_at(&ix->slab, m->group);
	if (m->prev)
		mc_ix_object_member(object_at(ix, m->prev))->next = m->next;
	else
		g->first = m->next;
	if (m->next)
		mc_ix_object_member(object_at(ix, m->next))->prev = m->prev;
	if (!g->first) {
		mc_ltab_del(&ix->groups, m->group);
		mc_slab_free(&ix->slab, m->group);
	}
	m->group = 0;
}

/* ---- life ---- */

static int soft_join(struct mc_index *ix, uint32_t h, uint64_t until_ms)
{
	void *array = ix->soft;

	if (mc_array_grow(&array, &ix->soft_cap, ix->nsoft + 1, UINT32_MAX, sizeof(*ix->soft)) < 0)
		return -MC_E_NOMEM;
	ix->soft = array;
	mc_ix_object_soft(object_at(ix, h))->until_ms = until_ms;
	soft_put(ix, ix->nsoft++, h);
	soft_sift(ix, ix->nsoft - 1);
	return 0;
}

static unsigned flags_of(const struct mc_index *ix, const struct object_new *n)
{
	unsigned flags = 0;

	flags |= n->kept.is_hard ? OBJECT_HARD : 0;
	flags |= n->soft_until_ms && !n->kept.is_hard ? OBJECT_SOFT : 0;
	flags |= n->kept.has_group ? OBJECT_GROUP : 0;
	flags |= n->kept.has_parent ? OBJECT_PARENT : 0;
	flags |= ix->conf.has_tenants && !n->kept.is_hard ? OBJECT_TENANT : 0;
	return flags;
}

uint32_t mc_ix_object_open(struct mc_index_request *q, const struct object_new *n)
{
	struct mc_index *ix = q->ix;
	unsigned flags = flags_of(ix, n);
	uint32_t h = mc_slab_alloc(&ix->slab, extra_before(flags, 0) + n->key->len);
	struct object *o;

	if (!h)
		return 0;
	o = object_at(ix, h);
	o->flags = (uint8_t)flags;
	o->gen = n->gen;
	o->len = n->len;
	o->key_len = n->key->len;
	o->tlv_len = n->tlv_len;
	o->tenant = n->tenant;
	o->type = (uint16_t)n->kept.type;
	o->wanted = (uint8_t)mc_min(n->kept.wanted, 255u);
	o->nkids = n->nkids;
	memcpy(mc_ix_object_key(o), n->key->bytes, n->key->len);
	if ((flags & OBJECT_GROUP && group_join(ix, h, n->kept.group) < 0) ||
	    (flags & OBJECT_SOFT && soft_join(ix, h, n->soft_until_ms) < 0)) {
		group_leave(ix, h);
		mc_slab_free(&ix->slab, h);
		return 0;
	}
	if (flags & OBJECT_TENANT)
		mc_ix_tenant_order_add(ix, h, 0);
	mc_ltab_add(&ix->objects, h, mc_ix_table_hash(ix, n->hash));
	if (flags & OBJECT_PARENT) {
		memcpy(mc_ix_object_parent(o), &n->kept.parent, sizeof(uint64_t));
		kids_change(ix, n->kept.parent, 1);
	}
	ix->stats.objects++;
	ix->stats.hard_pinned += (flags & OBJECT_HARD) != 0;
	ix->tenants[n->tenant].objects++;
	mc_evict_grow(ix->evict, ix->objects.n + ix->objects.n / 2);
	return h;
}

void mc_ix_object_leaves(struct mc_index *ix, uint32_t h, enum mc_gone_why why, uint64_t owner,
			 unsigned kind)
{
	struct object *o = object_at(ix, h);
	const struct mc_gone g = {.key_hash = mc_ix_object_hash(o),
				  .gen = o->gen,
				  .len = o->len,
				  .at_ms = ix->now_ms,
				  .owner = owner,
				  .why = (uint8_t)why,
				  .kind = (uint8_t)kind};

	mc_gone_add(ix->gone, &g);
}

void mc_ix_object_close(struct mc_index *ix, uint32_t h)
{
	struct object *o = object_at(ix, h);
	const uint64_t *parent = mc_ix_object_parent(o);

	while (o->nreplicas)
		mc_ix_object_replica_del(ix, h, h);
	object_unsoft(ix, h);
	group_leave(ix, h);
	if (o->flags & OBJECT_TENANT)
		mc_ix_tenant_order_del(ix, h);
	mc_ltab_del(&ix->objects, h);
	if (parent)
		kids_change(ix, *parent, -1);
	ix->stats.objects--;
	ix->stats.hard_pinned -= (o->flags & OBJECT_HARD) != 0;
	ix->tenants[o->tenant].objects--;
	mc_slab_free(&ix->slab, h);
}

/* ---- leases ---- */

static uint32_t lease_now(const struct mc_index *ix, uint64_t now_ms)
{
	return (uint32_t)((now_ms - ix->base_ms) / LEASE_TICK_MS) + 1;
}

uint64_t mc_ix_object_lease_ms(struct mc_index *ix, struct object *o, uint64_t now_ms)
{
	const struct member *m = mc_ix_object_member(o);
	uint32_t lease = o->lease;
	uint64_t until_ms;

	if (m && m->group)
		lease = mc_max(lease, ((struct ixgroup *)mc_slab_at(&ix->slab, m->group))->lease);
	if (!lease)
		return 0;
	until_ms = ix->base_ms + (uint64_t)(lease - 1) * LEASE_TICK_MS;
	return until_ms > now_ms ? until_ms : 0;
}

void mc_ix_object_touch(struct mc_index_request *q, uint32_t h, uint64_t hash)
{
	struct mc_index *ix = q->ix;
	struct object *o = object_at(ix, h);
	const struct member *m = mc_ix_object_member(o);
	uint32_t r = 0, was = o->lease;
	unsigned class;

	o->lease = lease_now(ix, q->now_ms + ix->conf.lease_ttl_ms + LEASE_TICK_MS - 1);
	if (m && m->group)
		((struct ixgroup *)mc_slab_at(&ix->slab, m->group))->lease = o->lease;
	/* Existence and place are asked one after the other: that is one use. */
	if (was && o->lease - was < TOUCH_AGAIN_MS / LEASE_TICK_MS)
		return;
	q->evict.lease_ms = ix->conf.lease_ttl_ms;
	class = mc_evict_touch(&q->evict, hash);
	while ((r = mc_ix_replica_next(ix, h, r))) {
		if (mc_ix_replica_at(ix, r)->node.user & REPLICA_SOFT) {
			soft_list_del(ix, r);
			soft_list_add(ix, r);
		} else {
			mc_evict_move(&q->evict, r, class);
		}
	}
	if (o->flags & OBJECT_TENANT) {
		mc_ix_tenant_order_del(ix, h);
		mc_ix_tenant_order_add(ix, h, q->tenant_at);
		q->tenant_at = h;
	}
}

bool mc_ix_object_may_go(struct mc_index *ix, struct object *o, uint64_t now_ms)
{
	return !(o->flags & (OBJECT_HARD | OBJECT_HIDDEN)) && !mc_ix_object_lease_ms(ix, o, now_ms);
}
