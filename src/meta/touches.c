/*
 * touches.c: a set-associative table; see touches.h. With 2^k <= nsets < 2^(k + 1), sets below
 * nsets - 2^k are split: k + 1 bits of the hash tell them and their buddies apart.
 */
#include "meta/touches.h"

#include "base/mem.h"

#define WAYS 8u
#define SEGMENT 512u /* sets */
#define SEGMENTS_MAX (1u << 20)
#define SPLITS 4u /* a call */

static uint32_t tag_of(uint64_t hash)
{
	uint32_t tag = (uint32_t)(hash >> 32);

	return tag ? tag : 1;
}

static uint16_t low_of(uint64_t hash)
{
	return (uint16_t)(hash >> 3);
}

static size_t half_of(const struct mc_touches *t)
{
	return (size_t)1 << (63 - __builtin_clzll(t->nsets));
}

static struct mc_touch *set_at(const struct mc_touches *t, size_t set)
{
	return &t->segment[set / SEGMENT][set % SEGMENT * WAYS];
}

/* The bits that an entry keeps: the lowest ones choose its set. */
static uint64_t kept_of(uint32_t tag, uint16_t low)
{
	return (uint64_t)tag << 16 | low;
}

static struct mc_touch *set_of(const struct mc_touches *t, uint64_t hash)
{
	size_t half = half_of(t), set = kept_of(tag_of(hash), low_of(hash)) & (2 * half - 1);

	return set_at(t, set < t->nsets ? set : set & (half - 1));
}

static int segments_reserve(struct mc_touches *t, size_t nsets)
{
	void *array = t->segment;
	size_t want = (nsets + SEGMENT - 1) / SEGMENT;

	if (mc_array_grow(&array, &t->segments_cap, want, SEGMENTS_MAX, sizeof(*t->segment)) < 0)
		return -MC_E_NOMEM;
	t->segment = array;
	while (t->nsegments < want) {
		t->segment[t->nsegments] =
		    mc_calloc((size_t)SEGMENT * WAYS, sizeof(struct mc_touch));
		if (!t->segment[t->nsegments])
			return -MC_E_NOMEM;
		t->nsegments++;
	}
	return 0;
}

int mc_touches_init(struct mc_touches *t, size_t max)
{
	size_t cap = 64;

	while (cap < max)
		cap *= 2;
	*t = (struct mc_touches){.nsets = cap / WAYS};
	if (segments_reserve(t, t->nsets) < 0) {
		mc_touches_fini(t);
		return -MC_E_NOMEM;
	}
	return 0;
}

void mc_touches_fini(struct mc_touches *t)
{
	for (size_t i = 0; i < t->nsegments; i++)
		mc_free(t->segment[i]);
	mc_free(t->segment);
	*t = (struct mc_touches){0};
}

/* Its share of the buddy's keys goes to the next set. */
static void split(struct mc_touches *t)
{
	size_t half = half_of(t);
	struct mc_touch *from = set_at(t, t->nsets - half), *to = set_at(t, t->nsets);

	for (unsigned i = 0; i < WAYS; i++) {
		if (!from[i].tag || !(kept_of(from[i].tag, from[i].low) & half))
			continue;
		to[i] = from[i];
		from[i] = (struct mc_touch){0};
	}
	t->nsets++;
}

void mc_touches_grow(struct mc_touches *t, size_t max)
{
	for (unsigned i = 0; i < SPLITS && t->nsets * WAYS < max; i++) {
		if (segments_reserve(t, t->nsets + 1) < 0)
			return;
		split(t);
	}
}

size_t mc_touches_cap(const struct mc_touches *t)
{
	return t->nsets * WAYS;
}

struct mc_touch *mc_touches_at(const struct mc_touches *t, size_t i)
{
	return &set_at(t, i / WAYS)[i % WAYS];
}

size_t mc_touches_bytes(const struct mc_touches *t)
{
	return t->nsegments * SEGMENT * WAYS * sizeof(struct mc_touch) +
	       t->segments_cap * sizeof(*t->segment);
}

void mc_touches_prefetch(const struct mc_touches *t, uint64_t hash)
{
	const struct mc_touch *set = set_of(t, hash);

	__builtin_prefetch(set);
	__builtin_prefetch(&set[WAYS - 1]);
}

struct mc_touch *mc_touches_find(const struct mc_touches *t, uint64_t hash)
{
	struct mc_touch *set = set_of(t, hash);
	uint32_t tag = tag_of(hash);
	uint16_t low = low_of(hash);

	for (unsigned i = 0; i < WAYS; i++)
		if (set[i].tag == tag && set[i].low == low)
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
	*old = (struct mc_touch){.tag = tag_of(hash), .low = low_of(hash)};
	return old;
}
