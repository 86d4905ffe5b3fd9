/*
 * index_tenant.c: who uses how much; see index.h. Objects of a tenant lie in the order of their
 * last request, the deepest of a request first: so its own least used ones make room.
 */
#include <string.h>

#include "meta/index_priv.h"

#define SKIP_MAX 1024u /* that may not go, looked at for one that may */

static int tenant_find(const struct mc_index *ix, const uint8_t *name, uint32_t len)
{
	const struct tenant *last = &ix->tenants[ix->tenant_last];

	if (len == 0)
		return 0;
	if (last->name_len == len && memcmp(last->name, name, len) == 0)
		return ix->tenant_last;
	for (size_t i = 1; i < ix->ntenants; i++)
		if (ix->tenants[i].name_len == len && memcmp(ix->tenants[i].name, name, len) == 0)
			return (int)i;
	return -MC_E_NOENT;
}

static int tenant_get(struct mc_index *ix, const uint8_t *name, uint32_t len)
{
	void *array = ix->tenants;
	int at = tenant_find(ix, name, len);
	struct tenant *t;

	if (at >= 0)
		return at;
	at = mc_array_grow(&array, &ix->tenants_cap, ix->ntenants + 1, MC_INDEX_TENANTS_MAX,
			   sizeof(*ix->tenants));
	if (at < 0)
		return at == -MC_E_TOO_BIG ? -MC_E_LIMIT : at;
	ix->tenants = array;
	t = &ix->tenants[ix->ntenants];
	*t = (struct tenant){.name = mc_calloc(1, len), .name_len = len};
	if (!t->name)
		return -MC_E_NOMEM;
	memcpy(t->name, name, len);
	return (int)ix->ntenants++;
}

int mc_ix_tenant_of(struct mc_index *ix, const struct mc_st_key *key)
{
	int at;

	if (1u + key->bytes[0] > key->len)
		return -MC_E_INVAL;
	at = tenant_get(ix, key->bytes + 1, key->bytes[0]);
	if (at >= 0)
		ix->tenant_last = (uint16_t)at;
	return at;
}

void mc_ix_tenant_order_add(struct mc_index *ix, uint32_t h, uint32_t before)
{
	struct object *o = object_at(ix, h);
	struct tenant *t = &ix->tenants[o->tenant];
	struct order *at = mc_ix_object_order(o), *next = NULL;

	if (before && object_at(ix, before)->tenant == o->tenant)
		next = mc_ix_object_order(object_at(ix, before));
	at->next = next ? before : 0;
	at->prev = next ? next->prev : t->last;
	if (at->prev)
		mc_ix_object_order(object_at(ix, at->prev))->next = h;
	else
		t->first = h;
	if (next)
		next->prev = h;
	else
		t->last = h;
}

void mc_ix_tenant_order_del(struct mc_index *ix, uint32_t h)
{
	struct object *o = object_at(ix, h);
	struct tenant *t = &ix->tenants[o->tenant];
	const struct order *at = mc_ix_object_order(o);

	if (at->prev)
		mc_ix_object_order(object_at(ix, at->prev))->next = at->next;
	else
		t->first = at->next;
	if (at->next)
		mc_ix_object_order(object_at(ix, at->next))->prev = at->prev;
	else
		t->last = at->prev;
}

uint64_t mc_ix_tenant_quota(const struct mc_index *ix, const struct tenant *t)
{
	return t->has_own_quota ? t->quota : ix->conf.quota;
}

bool mc_ix_tenant_make_room(struct mc_index *ix, uint16_t tenant, uint64_t bytes, uint32_t keep,
			    uint64_t now_ms, struct mc_index_frees *frees)
{
	struct tenant *t = &ix->tenants[tenant];
	uint64_t quota = mc_ix_tenant_quota(ix, t);
	uint32_t h = t->first, skipped = 0;

	while (h && skipped < SKIP_MAX && bytes <= quota && t->bytes > quota - bytes) {
		struct object *o = object_at(ix, h);
		uint32_t next = mc_ix_object_order(o)->next;
		const struct soft *s = mc_ix_object_soft(o);

		if (h == keep || !mc_ix_object_may_go(ix, o, now_ms) ||
		    (s && s->place && !ix->conf.may_evict_soft_pinned)) {
			skipped++;
		} else {
			if (mc_ix_frees_reserve(ix, frees) < 0)
				return false;
			ix->stats.evicted_objects++;
			ix->stats.evicted_bytes += o->len * o->nreplicas;
			mc_ix_object_leaves(ix, h, MC_GONE_OVER_QUOTA, 0, MC_ST_MEMORY);
			mc_ix_free_object(ix, frees, h, o->flags & OBJECT_NEWER);
		}
		h = next;
	}
	return bytes <= quota && t->bytes <= quota - bytes;
}

int mc_index_tenant_set(struct mc_index *ix, const uint8_t *name, uint32_t name_len,
			const uint64_t *quota)
{
	int at;

	mc_assert(name_len <= UINT8_MAX);
	at = tenant_get(ix, name, name_len);
	if (at < 0)
		return at;
	ix->tenants[at].has_own_quota = quota != NULL;
	ix->tenants[at].quota = quota ? *quota : 0;
	return 0;
}

bool mc_index_tenant_next(const struct mc_index *ix, size_t *cursor, struct mc_index_tenant *ret)
{
	const struct tenant *t;

	if (*cursor >= ix->ntenants)
		return false;
	t = &ix->tenants[(*cursor)++];
	*ret = (struct mc_index_tenant){.name = t->name ? t->name : (const uint8_t *)"",
					.name_len = t->name_len,
					.quota = mc_ix_tenant_quota(ix, t),
					.bytes = t->bytes,
					.objects = t->objects,
					.has_own_quota = t->has_own_quota};
	return true;
}
