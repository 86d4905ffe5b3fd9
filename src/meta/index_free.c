/*
 * index_free.c: frees that owners have not acknowledged, and tombstones; see index_priv.h.
 */
#include "meta/index_priv.h"

#define FREES_CAP ((size_t)1 << 32)

static struct pend *pend_at(const struct mc_index *ix, uint32_t h)
{
	return mc_slab_at(&ix->slab, h);
}

static uint32_t place_hash(const struct mc_index *ix, uint64_t owner, uint64_t addr, uint64_t gen)
{
	const uint64_t place[3] = {owner, addr, gen};

	return (uint32_t)mc_hash64(place, sizeof(place), ix->conf.seed);
}

static uint32_t pend_find(const struct mc_index *ix, uint64_t owner, uint64_t addr, uint64_t gen)
{
	uint32_t h = mc_ltab_first(&ix->pend_by_place, place_hash(ix, owner, addr, gen));

	for (; h; h = pend_at(ix, h)->by_place.next) {
		const struct mc_index_free *f = &pend_at(ix, h)->f;

		if (f->owner == owner && f->addr == addr && f->gen == gen)
			return h;
	}
	return 0;
}

bool mc_ix_pend_has(const struct mc_index *ix, uint64_t owner, uint64_t addr, uint64_t gen)
{
	return pend_find(ix, owner, addr, gen) != 0;
}

bool mc_ix_pend_covers(const struct mc_index *ix, uint64_t owner, uint64_t hash, uint64_t gen)
{
	uint32_t h = mc_ltab_first(&ix->pend_by_key, mc_ix_table_hash(ix, hash));

	for (; h; h = pend_at(ix, h)->by_key.next) {
		const struct mc_index_free *f = &pend_at(ix, h)->f;

		if (f->owner == owner && f->key_hash == hash && f->gen == gen)
			return true;
	}
	return false;
}

bool mc_index_is_pending(const struct mc_index *ix, uint64_t key_hash)
{
	uint32_t h = mc_ltab_first(&ix->pend_by_key, mc_ix_table_hash(ix, key_hash));

	while (h && pend_at(ix, h)->f.key_hash != key_hash)
		h = pend_at(ix, h)->by_key.next;
	return h != 0;
}

int mc_ix_frees_reserve(struct mc_index *ix, struct mc_index_frees *frees)
{
	void *array = frees->v;

	while (ix->nspare < FREES_MAX) {
		uint32_t h = mc_slab_alloc(&ix->slab, sizeof(struct pend));

		if (!h)
			return -MC_E_NOMEM;
		ix->spare[ix->nspare++] = h;
	}
	if (mc_array_grow(&array, &frees->cap, frees->n + FREES_MAX, FREES_CAP, sizeof(*frees->v)) <
	    0)
		return -MC_E_NOMEM;
	frees->v = array;
	return 0;
}

void mc_ix_free_emit(struct mc_index *ix, struct mc_index_frees *frees,
		     const struct mc_index_free *f)
{
	struct owner *owner = mc_ix_owner_find(ix, f->owner);
	uint32_t h;

	if (mc_ix_pend_has(ix, f->owner, f->addr, f->gen))
		return;
	mc_assert(ix->nspare && frees->n < frees->cap);
	h = ix->spare[--ix->nspare];
	pend_at(ix, h)->f = *f;
	mc_ltab_add(&ix->pend_by_key, h, mc_ix_table_hash(ix, f->key_hash));
	mc_ltab_add(&ix->pend_by_place, h, place_hash(ix, f->owner, f->addr, f->gen));
	frees->v[frees->n++] = *f;
	if (owner)
		owner->freeing[f->kind] += f->len;
}

int mc_index_free(struct mc_index *ix, const struct mc_index_free *f, struct mc_index_frees *frees)
{
	if (mc_ix_frees_reserve(ix, frees) < 0)
		return -MC_E_NOMEM;
	mc_ix_free_emit(ix, frees, f);
	return 0;
}

void mc_ix_free_replica(struct mc_index *ix, struct mc_index_frees *frees, uint32_t object,
			uint32_t replica, uint64_t hash, bool is_gone)
{
	struct object *o = object_at(ix, object);
	const struct replica *r = mc_ix_replica_at(ix, replica);
	const struct pool *p = &ix->pools[r->node.pool];
	const struct mc_index_free f = {.owner = p->owner,
					.addr = r->addr,
					.gen = o->gen,
					.key_hash = hash,
					.len = o->len,
					.until_ms = mc_ix_object_lease_ms(ix, o, 0),
					.kind = p->kind,
					.is_gone = is_gone};

	if (p->state == POOL_LIVE)
		mc_ix_free_emit(ix, frees, &f);
}

void mc_ix_free_tomb(struct mc_index *ix, struct mc_index_frees *frees, uint64_t hash, uint64_t gen)
{
	/* The place of a tombstone is its key. */
	const struct mc_index_free f = {.addr = hash, .gen = gen, .key_hash = hash};

	if (ix->naway)
		mc_ix_free_emit(ix, frees, &f);
}

void mc_ix_free_object(struct mc_index *ix, struct mc_index_frees *frees, uint32_t h,
		       bool wants_tomb)
{
	struct object *o = object_at(ix, h);
	uint64_t hash = mc_ix_object_hash(o);
	uint32_t r = 0;

	while ((r = mc_ix_replica_next(ix, h, r)))
		mc_ix_free_replica(ix, frees, h, r, hash, true);
	if (wants_tomb)
		mc_ix_free_tomb(ix, frees, hash, o->gen);
	mc_ix_object_close(ix, h);
}

void mc_ix_free_replica_only(struct mc_index *ix, struct mc_index_frees *frees, uint32_t h,
			     uint32_t r)
{
	struct object *o = object_at(ix, h);
	uint64_t hash = mc_ix_object_hash(o);

	mc_ix_free_replica(ix, frees, h, r, hash, o->nreplicas == 1);
	mc_ix_object_replica_del(ix, h, r);
	if (o->nreplicas)
		return;
	if (o->flags & OBJECT_NEWER)
		mc_ix_free_tomb(ix, frees, hash, o->gen);
	mc_ix_object_close(ix, h);
}

void mc_index_frees_fini(struct mc_index_frees *f)
{
	mc_free(f->v);
	*f = (struct mc_index_frees){0};
}

int mc_index_freed(struct mc_index *ix, uint64_t owner, uint64_t addr, uint64_t gen,
		   uint64_t *ret_key_hash)
{
	uint32_t h = pend_find(ix, owner, addr, gen);
	struct owner *who = mc_ix_owner_find(ix, owner);
	struct mc_index_free f;

	if (!h)
		return -MC_E_NOENT;
	f = pend_at(ix, h)->f;
	if (who)
		who->freeing[f.kind] -= mc_min(who->freeing[f.kind], f.len);
	mc_ltab_del(&ix->pend_by_key, h);
	mc_ltab_del(&ix->pend_by_place, h);
	mc_slab_free(&ix->slab, h);
	*ret_key_hash = f.key_hash;
	if (mc_index_is_pending(ix, f.key_hash))
		return 0;
	/* Others of this hash are published with it: they waited for the same. */
	for (h = mc_ltab_first(&ix->objects, mc_ix_table_hash(ix, f.key_hash)); h;
	     h = object_at(ix, h)->link.next)
		if (mc_ix_object_hash(object_at(ix, h)) == f.key_hash)
			object_at(ix, h)->flags &= (uint8_t)~OBJECT_HIDDEN;
	return 1;
}

int mc_index_pending(const struct mc_index *ix, uint64_t owner, struct mc_index_frees *frees)
{
	uint64_t cursor = 0;
	uint32_t some[256];

	while (!(cursor >> 32)) {
		uint32_t n = mc_ltab_walk(&ix->pend_by_place, &cursor, some, MC_ARRAY_LEN(some));
		void *array = frees->v;

		/* A chain of so many hashes by chance alone does not happen. */
		mc_assert(n <= MC_ARRAY_LEN(some));
		if (mc_array_grow(&array, &frees->cap, frees->n + n, FREES_CAP, sizeof(*frees->v)) <
		    0)
			return -MC_E_NOMEM;
		frees->v = array;
		for (uint32_t i = 0; i < n; i++)
			if (pend_at(ix, some[i])->f.owner == owner)
				frees->v[frees->n++] = pend_at(ix, some[i])->f;
	}
	return 0;
}

/* ---- tombstones ---- */

static struct tomb *tomb_at(const struct mc_index *ix, uint32_t h)
{
	return mc_slab_at(&ix->slab, h);
}

static uint32_t tomb_hash(const struct mc_index *ix, uint64_t owner, uint64_t hash)
{
	return mc_ix_table_hash(ix, hash + owner * 0x9e3779b97f4a7c15ull);
}

/* Of one owner: those it was to free, and no other. A put that came too late has a higher
 * generation than the object that was first, and that one stays. For all owners: this generation
 * and below. */
static struct tomb *tomb_find(const struct mc_index *ix, uint64_t owner, uint64_t hash,
			      uint64_t gen)
{
	uint32_t h = mc_ltab_first(&ix->tombs, tomb_hash(ix, owner, hash));

	for (; h; h = tomb_at(ix, h)->link.next)
		if (tomb_at(ix, h)->t.owner == owner && tomb_at(ix, h)->t.key_hash == hash &&
		    (!owner || tomb_at(ix, h)->t.gen == gen))
			return tomb_at(ix, h);
	return NULL;
}

/* One that the master has not written yet counts. */
static bool pend_tomb_covers(const struct mc_index *ix, uint64_t hash, uint64_t gen)
{
	uint32_t h = mc_ltab_first(&ix->pend_by_key, mc_ix_table_hash(ix, hash));

	for (; h; h = pend_at(ix, h)->by_key.next) {
		const struct mc_index_free *f = &pend_at(ix, h)->f;

		if (f->owner == 0 && f->key_hash == hash && f->gen >= gen)
			return true;
	}
	return false;
}

bool mc_ix_tomb_covers(const struct mc_index *ix, uint64_t owner, uint64_t hash, uint64_t gen)
{
	const struct owner *who = mc_ix_owner_find(ix, owner);
	const struct tomb *own, *all;

	if (who && who->is_unannounced && pend_tomb_covers(ix, hash, gen))
		return true;
	own = tomb_find(ix, owner, hash, gen);
	all = who && who->is_unannounced ? tomb_find(ix, 0, hash, gen) : NULL;
	return (who && who->comes_empty) || own || (all && gen <= all->t.gen);
}

uint64_t mc_ix_tomb_of_all(const struct mc_index *ix, uint64_t hash)
{
	const struct tomb *t = ix->naway ? tomb_find(ix, 0, hash, 0) : NULL;

	return t ? t->t.gen : 0;
}

int mc_index_entomb(struct mc_index *ix, const struct mc_index_tomb *tomb)
{
	struct tomb *t = tomb_find(ix, tomb->owner, tomb->key_hash, tomb->gen);
	bool is_all = tomb->key_hash == 0 && tomb->gen == UINT64_MAX;
	uint32_t h;

	if (t) {
		t->t.gen = mc_max(t->t.gen, tomb->gen);
		return 0;
	}
	if (!is_all && ix->tombs.n >= ix->conf.tombs_max)
		return -MC_E_LIMIT;
	h = mc_slab_alloc(&ix->slab, sizeof(*t));
	if (!h)
		return -MC_E_NOMEM;
	tomb_at(ix, h)->t = *tomb;
	mc_ltab_add(&ix->tombs, h, tomb_hash(ix, tomb->owner, tomb->key_hash));
	for (size_t i = 0; is_all && i < ix->nowners; i++)
		if (ix->owners[i].id && (tomb->owner == ix->owners[i].id ||
					 (!tomb->owner && ix->owners[i].is_unannounced)))
			ix->owners[i].comes_empty = true;
	return 0;
}

void mc_ix_tombs_drop(struct mc_index *ix, uint64_t owner)
{
	uint64_t cursor = 0;
	uint32_t some[256];

	while (!(cursor >> 32)) {
		uint32_t n = mc_ltab_walk(&ix->tombs, &cursor, some, MC_ARRAY_LEN(some));

		mc_assert(n <= MC_ARRAY_LEN(some));
		for (uint32_t i = 0; i < n; i++) {
			if (tomb_at(ix, some[i])->t.owner != owner)
				continue;
			mc_ltab_del(&ix->tombs, some[i]);
			mc_slab_free(&ix->slab, some[i]);
		}
	}
}

bool mc_index_tomb_next(const struct mc_index *ix, size_t *cursor, struct mc_index_tomb *ret)
{
	/* Upper half: the walk's cursor; lower byte: within its piece. */
	while (*cursor >> 8 <= UINT32_MAX) {
		uint64_t at = *cursor >> 8, next = at;
		uint32_t some[256], i = *cursor & 255;
		uint32_t n = mc_ltab_walk(&ix->tombs, &next, some, MC_ARRAY_LEN(some));

		mc_assert(n <= MC_ARRAY_LEN(some));
		if (i < n) {
			*ret = tomb_at(ix, some[i])->t;
			*cursor += 1;
			if (i + 1 == n || i + 1 == 256)
				*cursor = next << 8;
			return true;
		}
		*cursor = next << 8;
	}
	return false;
}
