/*
 * index_owner.c: owners and their pools; see index_priv.h.
 */
#include <string.h>

#include "meta/index_priv.h"

static size_t slot_of(const struct mc_index *ix, uint64_t id)
{
	uint64_t state = id;
	size_t i = (size_t)mc_splitmix64(&state) & (ix->owner_at_len - 1);

	while (ix->owner_at[i] && ix->owners[ix->owner_at[i] - 1].id != id)
		i = (i + 1) & (ix->owner_at_len - 1);
	return i;
}

struct owner *mc_ix_owner_find(const struct mc_index *ix, uint64_t id)
{
	uint16_t at;

	if (!ix->owner_at_len || !id)
		return NULL;
	at = ix->owner_at[slot_of(ix, id)];
	return at ? &ix->owners[at - 1] : NULL;
}

/* All ids anew, in a table of this length, a power of two. */
static int table_make(struct mc_index *ix, size_t len)
{
	uint16_t *old = ix->owner_at;
	uint16_t *at = mc_calloc(len, sizeof(*at));

	if (!at)
		return -MC_E_NOMEM;
	ix->owner_at = at;
	ix->owner_at_len = len;
	for (size_t i = 0; i < ix->nowners; i++)
		if (ix->owners[i].id)
			ix->owner_at[slot_of(ix, ix->owners[i].id)] = (uint16_t)(i + 1);
	mc_free(old);
	return 0;
}

static int owner_add(struct mc_index *ix, uint64_t id, struct owner **ret)
{
	void *array = ix->owners;
	size_t i = 0;
	int rc;

	mc_assert(ix->owners || ix->nowners == 0);
	while (i < ix->nowners && ix->owners[i].id)
		i++;
	rc =
	    mc_array_grow(&array, &ix->owners_cap, i + 1, MC_INDEX_OWNERS_MAX, sizeof(*ix->owners));
	if (rc < 0)
		return rc == -MC_E_TOO_BIG ? -MC_E_LIMIT : rc;
	ix->owners = array;
	if (ix->owner_at_len < 2 * (i + 1) &&
	    table_make(ix, mc_max(64ul, 2 * ix->owner_at_len)) < 0)
		return -MC_E_NOMEM;
	ix->owners[i] = (struct owner){.id = id};
	if (i == ix->nowners)
		ix->nowners++;
	ix->owner_at[slot_of(ix, id)] = (uint16_t)(i + 1);
	*ret = &ix->owners[i];
	return 0;
}

static void announced_set(struct mc_index *ix, struct owner *o, bool is_unannounced)
{
	ix->naway += is_unannounced;
	ix->naway -= o->is_unannounced;
	o->is_unannounced = is_unannounced;
	o->adopted = 0;
	if (!ix->naway)
		mc_ix_tombs_drop(ix, 0);
}

int mc_index_owner_join(struct mc_index *ix, uint64_t id)
{
	struct owner *o = mc_ix_owner_find(ix, id);
	int rc;

	mc_assert(id);
	if (!o) {
		rc = owner_add(ix, id, &o);
		if (rc < 0)
			return rc;
		announced_set(ix, o, true);
	}
	o->state = MC_INDEX_OWNER_OK;
	return 0;
}

void mc_index_owner_suspect(struct mc_index *ix, uint64_t id)
{
	struct owner *o = mc_ix_owner_find(ix, id);

	if (o && o->state == MC_INDEX_OWNER_OK)
		o->state = MC_INDEX_OWNER_SUSPECT;
}

static void pool_drop(struct mc_index *ix, struct owner *o, unsigned kind)
{
	if (!o->pool[kind])
		return;
	ix->pools[o->pool[kind] - 1].state = POOL_DEAD;
	ix->ndead++;
	o->pool[kind] = 0;
}

int mc_index_owner_drop(struct mc_index *ix, uint64_t id, unsigned kind)
{
	struct owner *o = mc_ix_owner_find(ix, id);

	mc_assert(kind < MC_ST_KIND_COUNT);
	if (!o)
		return 0;
	pool_drop(ix, o, kind);
	/* It tells anew what it has. */
	announced_set(ix, o, true);
	return 0;
}

int mc_index_owner_away(struct mc_index *ix, uint64_t id)
{
	struct owner *o = mc_ix_owner_find(ix, id);
	int rc;

	mc_assert(id);
	if (!o) {
		rc = owner_add(ix, id, &o);
		if (rc < 0)
			return rc;
	}
	for (unsigned kind = 0; kind < MC_ST_KIND_COUNT; kind++)
		pool_drop(ix, o, kind);
	announced_set(ix, o, true);
	o->state = MC_INDEX_OWNER_AWAY;
	return 0;
}

void mc_index_owner_announced(struct mc_index *ix, uint64_t id)
{
	struct owner *o = mc_ix_owner_find(ix, id);

	if (!o)
		return;
	o->comes_empty = false;
	announced_set(ix, o, false);
	mc_ix_tombs_drop(ix, id);
}

void mc_index_owner_disk(struct mc_index *ix, uint64_t id, bool has_disk)
{
	struct owner *o = mc_ix_owner_find(ix, id);

	if (o)
		o->has_disk = has_disk;
}

void mc_index_owner_forget(struct mc_index *ix, uint64_t id)
{
	struct owner *o = mc_ix_owner_find(ix, id);

	if (!o)
		return;
	for (unsigned kind = 0; kind < MC_ST_KIND_COUNT; kind++)
		pool_drop(ix, o, kind);
	announced_set(ix, o, false);
	mc_ix_tombs_drop(ix, id);
	o->id = 0;
	/* Those behind it in the table may be found through its place only. */
	for (size_t i = 0; i < ix->owner_at_len; i++)
		ix->owner_at[i] = 0;
	for (size_t i = 0; i < ix->nowners; i++)
		if (ix->owners[i].id)
			ix->owner_at[slot_of(ix, ix->owners[i].id)] = (uint16_t)(i + 1);
}

static int pool_add(struct mc_index *ix, uint64_t owner, unsigned kind, uint32_t *ret)
{
	void *array = ix->pools;
	size_t i = 0;
	int rc;

	while (i < ix->npools && ix->pools[i].state != POOL_FREE)
		i++;
	rc = mc_array_grow(&array, &ix->pools_cap, i + 1, POOLS_MAX, sizeof(*ix->pools));
	if (rc < 0)
		return rc == -MC_E_TOO_BIG ? -MC_E_LIMIT : rc;
	ix->pools = array;
	rc = mc_evict_pool_open(ix->evict, (uint16_t)i);
	if (rc < 0)
		return rc;
	ix->pools[i] = (struct pool){.owner = owner, .kind = (uint8_t)kind, .state = POOL_LIVE};
	if (i == ix->npools)
		ix->npools++;
	*ret = (uint32_t)i + 1;
	return 0;
}

int64_t mc_ix_pool_get(struct mc_index *ix, uint64_t id, unsigned kind)
{
	struct owner *o = mc_ix_owner_find(ix, id);
	int rc;

	if (!o || o->state == MC_INDEX_OWNER_AWAY || kind >= MC_ST_KIND_COUNT)
		return 0;
	if (!o->pool[kind]) {
		rc = pool_add(ix, id, kind, &o->pool[kind]);
		if (rc < 0)
			return rc;
	}
	return o->pool[kind];
}

void mc_index_pool(const struct mc_index *ix, uint64_t id, unsigned kind, struct mc_index_pool *ret)
{
	const struct owner *o = mc_ix_owner_find(ix, id);

	mc_assert(kind < MC_ST_KIND_COUNT);
	memset(ret, 0, sizeof(*ret));
	if (!o)
		return;
	if (o->pool[kind])
		*ret = ix->pools[o->pool[kind] - 1].use;
	ret->freeing = o->freeing[kind];
}
