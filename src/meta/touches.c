/*
 * touches.c: a set-associative table; see touches.h.
 */
#include "meta/touches.h"

#include "base/mem.h"

#define WAYS 8u

static uint32_t tag_of(uint64_t hash)
{
	uint32_t tag = (uint32_t)(hash >> 32);

	return tag ? tag : 1;
}

static struct mc_touch *set_of(const struct mc_touches *t, uint64_t hash)
{
	return &t->v[hash & (t->cap - 1) & ~(uint64_t)(WAYS - 1)];
}

int mc_touches_init(struct mc_touches *t, size_t max)
{
	size_t cap = 64;

	while (cap < max)
		cap *= 2;
	*t = (struct mc_touches){.v = mc_calloc(cap, sizeof(*t->v)), .cap = cap};
	return t->v ? 0 : -MC_E_NOMEM;
}

void mc_touches_fini(struct mc_touches *t)
{
	mc_free(t->v);
	*t = (struct mc_touches){0};
}

struct mc_touch *mc_touches_find(const struct mc_touches *t, uint64_t hash)
{
	struct mc_touch *set = set_of(t, hash);
	uint32_t tag = tag_of(hash);

	for (unsigned i = 0; i < WAYS; i++)
		if (set[i].tag == tag)
			return &set[i];
	return NULL;
}

struct mc_touch *mc_touches_get(struct mc_touches *t, uint64_t hash)
{
	struct mc_touch *set = set_of(t, hash), *old = mc_touches_find(t, hash);

	if (old)
		return old;
	old = &set[0];
	for (unsigned i = 0; i < WAYS && old->tag; i++)
		/* ticks wrap after 497 days: the difference decides */
		if (!set[i].tag || (int32_t)(set[i].at_tick - old->at_tick) < 0)
			old = &set[i];
	t->n += old->tag == 0;
	*old = (struct mc_touch){.tag = tag_of(hash)};
	return old;
}
