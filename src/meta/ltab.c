/*
 * ltab.c: see ltab.h. With 2^k <= nplaces < 2^(k + 1), places below nplaces - 2^k are split: they
 * and their buddies are told apart by k + 1 bits of the hash, the others by k.
 */
#include "meta/ltab.h"

#include "base/mem.h"

#define SEGMENT 4096u
#define SEGMENTS_MAX ((1u << 31) / SEGMENT)

static uint32_t *head_of(const struct mc_ltab *t, uint32_t place)
{
	return &t->segment[place / SEGMENT][place % SEGMENT];
}

static unsigned log2_of(uint32_t n)
{
	return 31u - (unsigned)__builtin_clz(n);
}

static uint32_t place_of(const struct mc_ltab *t, uint32_t hash)
{
	uint32_t half = 1u << log2_of(t->nplaces);
	uint32_t wide = hash & (2 * half - 1);

	return wide < t->nplaces ? wide : hash & (half - 1);
}

static uint32_t reversed(uint32_t v)
{
	v = (v >> 1 & 0x55555555) | (v & 0x55555555) << 1;
	v = (v >> 2 & 0x33333333) | (v & 0x33333333) << 2;
	v = (v >> 4 & 0x0f0f0f0f) | (v & 0x0f0f0f0f) << 4;
	return __builtin_bswap32(v);
}

static int segment_add(struct mc_ltab *t)
{
	void *array = t->segment;

	if (mc_array_grow(&array, &t->cap, t->nsegments + 1, SEGMENTS_MAX, sizeof(*t->segment)) < 0)
		return -MC_E_NOMEM;
	t->segment = array;
	t->segment[t->nsegments] = mc_calloc(SEGMENT, sizeof(uint32_t));
	if (!t->segment[t->nsegments])
		return -MC_E_NOMEM;
	t->nsegments++;
	return 0;
}

int mc_ltab_init(struct mc_ltab *t, struct mc_slab *slab, size_t offset)
{
	*t = (struct mc_ltab){.slab = slab, .offset = offset, .nplaces = 1};
	if (segment_add(t) < 0) {
		mc_ltab_fini(t);
		return -MC_E_NOMEM;
	}
	return 0;
}

void mc_ltab_fini(struct mc_ltab *t)
{
	for (size_t i = 0; i < t->nsegments; i++)
		mc_free(t->segment[i]);
	mc_free(t->segment);
	*t = (struct mc_ltab){0};
}

/* The next place takes its share from its buddy's chain. */
static void split(struct mc_ltab *t)
{
	uint32_t place = t->nplaces, bit = 1u << log2_of(place), h, *from, *to;

	if (place == SEGMENTS_MAX * SEGMENT ||
	    (place / SEGMENT == t->nsegments && segment_add(t) < 0))
		return;
	from = head_of(t, place - bit);
	to = head_of(t, place);
	while ((h = *from)) {
		struct mc_ltab_link *link = mc_ltab_link_of(t, h);

		if (link->hash & bit) {
			*from = link->next;
			link->next = *to;
			*to = h;
		} else {
			from = &link->next;
		}
	}
	t->nplaces++;
}

/* The last place goes to its buddy. */
static void merge(struct mc_ltab *t)
{
	uint32_t place = t->nplaces - 1, *end = head_of(t, place - (1u << log2_of(place)));

	while (*end)
		end = &mc_ltab_link_of(t, *end)->next;
	*end = *head_of(t, place);
	*head_of(t, place) = 0;
	t->nplaces--;
	if (t->nsegments > place / SEGMENT + 1) /* one in hand: no to and fro */
		mc_free(t->segment[--t->nsegments]);
}

void mc_ltab_add(struct mc_ltab *t, uint32_t handle, uint32_t hash)
{
	struct mc_ltab_link *link = mc_ltab_link_of(t, handle);
	uint32_t *head;

	if (t->n >= t->nplaces)
		split(t);
	head = head_of(t, place_of(t, hash));
	*link = (struct mc_ltab_link){.next = *head, .hash = hash};
	*head = handle;
	t->n++;
}

/* What points to this record. */
static uint32_t *find(struct mc_ltab *t, uint32_t handle)
{
	uint32_t *at = head_of(t, place_of(t, mc_ltab_link_of(t, handle)->hash));

	while (*at != handle) {
		mc_assert(*at);
		at = &mc_ltab_link_of(t, *at)->next;
	}
	return at;
}

void mc_ltab_del(struct mc_ltab *t, uint32_t handle)
{
	*find(t, handle) = mc_ltab_link_of(t, handle)->next;
	t->n--;
	if (t->nplaces > 1 && t->n < t->nplaces / 4)
		merge(t);
}

void mc_ltab_replace(struct mc_ltab *t, uint32_t old, uint32_t handle)
{
	*find(t, old) = handle;
	*mc_ltab_link_of(t, handle) = *mc_ltab_link_of(t, old);
}

uint32_t mc_ltab_first(const struct mc_ltab *t, uint32_t hash)
{
	return *head_of(t, place_of(t, hash));
}

void mc_ltab_prefetch(const struct mc_ltab *t, uint32_t hash)
{
	__builtin_prefetch(head_of(t, place_of(t, hash)));
}

uint32_t mc_ltab_walk(const struct mc_ltab *t, uint64_t *cursor, uint32_t *ret, uint32_t max)
{
	uint32_t at = (uint32_t)*cursor, place = place_of(t, reversed(at)), n = 0, h;
	unsigned bits = log2_of(t->nplaces);

	if (*cursor >> 32)
		return 0;
	/* The place covers all reversed hashes that begin as its own number does. */
	if (place >= 1u << bits || place < t->nplaces - (1u << bits))
		bits++;
	for (h = *head_of(t, place); h; h = mc_ltab_link_of(t, h)->next) {
		/* After a merge some of them were seen before. */
		if (reversed(mc_ltab_link_of(t, h)->hash) < at)
			continue;
		if (n < max)
			ret[n] = h;
		n++;
	}
	if (n <= max)
		*cursor = bits ? (uint64_t)reversed(place) + (1ull << (32 - bits)) : 1ull << 32;
	return n;
}

size_t mc_ltab_bytes(const struct mc_ltab *t)
{
	return t->nsegments * SEGMENT * sizeof(uint32_t) + t->cap * sizeof(*t->segment);
}
