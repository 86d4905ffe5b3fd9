/*
 * slab.c: a chunk begins with its own head, so handle 0 is nobody's; see slab.h.
 */
#include "meta/slab.h"

#include <string.h>

#include "base/mem.h"

#define CHUNKS_MAX (UINT32_MAX / MC_SLAB_UNITS)

/* In front of a chunk. Free records hold the unit of the next free one in their first bytes. */
struct chunk {
	uint32_t next, prev; /* chunk + 1, in slab.partial of its class; 0: none */
	uint16_t class, units, used;
	uint16_t free;	/* unit of the first free record; 0: none */
	uint16_t fresh; /* unit from which on nothing was ever used */
};
#define HEAD_UNITS ((uint16_t)((sizeof(struct chunk) + 7) / 8))

static unsigned class_of(size_t len)
{
	if (len <= MC_SLAB_FINE)
		return (unsigned)((len + 7) / 8);
	return (unsigned)(MC_SLAB_FINE / 8 +
			  (len - MC_SLAB_FINE + MC_SLAB_COARSE - 1) / MC_SLAB_COARSE);
}

static uint16_t units_of(unsigned class)
{
	if (class <= MC_SLAB_FINE / 8)
		return (uint16_t) class;
	return (uint16_t)((MC_SLAB_FINE + (class - MC_SLAB_FINE / 8) * MC_SLAB_COARSE) / 8);
}

static struct chunk *chunk_at(const struct mc_slab *s, uint32_t i)
{
	return (struct chunk *)s->chunk[i]; /* malloc's alignment */
}

static bool has_room(const struct chunk *c)
{
	return c->free || (uint32_t)c->fresh + c->units <= MC_SLAB_UNITS;
}

static void partial_push(struct mc_slab *s, uint32_t i)
{
	struct chunk *c = chunk_at(s, i);

	c->prev = 0;
	c->next = s->partial[c->class];
	if (c->next)
		chunk_at(s, c->next - 1)->prev = i + 1;
	s->partial[c->class] = i + 1;
}

static void partial_del(struct mc_slab *s, uint32_t i)
{
	struct chunk *c = chunk_at(s, i);

	if (c->next)
		chunk_at(s, c->next - 1)->prev = c->prev;
	if (c->prev)
		chunk_at(s, c->prev - 1)->next = c->next;
	else
		s->partial[c->class] = c->next;
}

/* A new chunk of this class, in its list. */
static int chunk_open(struct mc_slab *s, unsigned class)
{
	void *array = s->chunk;
	uint32_t i = s->free_chunk;
	struct chunk *c;

	while (i < s->nchunks && s->chunk[i])
		i++;
	if (mc_array_grow(&array, &s->cap, (size_t)i + 1, CHUNKS_MAX, sizeof(*s->chunk)) < 0)
		return -MC_E_NOMEM;
	s->chunk = array;
	c = mc_calloc(1, MC_SLAB_CHUNK);
	if (!c)
		return -MC_E_NOMEM;
	c->class = (uint16_t) class;
	c->units = units_of(class);
	c->fresh = HEAD_UNITS;
	s->chunk[i] = (uint8_t *)c;
	if (i == s->nchunks)
		s->nchunks++;
	s->free_chunk = i + 1;
	s->live_chunks++;
	partial_push(s, i);
	return 0;
}

uint32_t mc_slab_alloc(struct mc_slab *s, size_t len)
{
	unsigned class = class_of(len);
	struct chunk *c;
	uint32_t i;
	uint16_t unit;

	mc_assert(len >= 1 && len <= MC_SLAB_MAX);
	if (!s->partial[class] && chunk_open(s, class) < 0)
		return 0;
	i = s->partial[class] - 1;
	c = chunk_at(s, i);
	unit = c->free;
	if (unit) {
		uint8_t *at = s->chunk[i] + (size_t)unit * 8;

		memcpy(&c->free, at, sizeof(c->free));
		memset(at, 0, (size_t)c->units * 8);
	} else {
		unit = c->fresh;
		c->fresh = (uint16_t)(c->fresh + c->units);
	}
	c->used++;
	if (!has_room(c))
		partial_del(s, i);
	return i * MC_SLAB_UNITS + unit;
}

void mc_slab_free(struct mc_slab *s, uint32_t handle)
{
	uint32_t i = handle / MC_SLAB_UNITS;
	struct chunk *c;
	bool was_full;

	if (!handle)
		return;
	c = chunk_at(s, i);
	was_full = !has_room(c);
	memcpy(mc_slab_at(s, handle), &c->free, sizeof(c->free));
	c->free = (uint16_t)(handle % MC_SLAB_UNITS);
	c->used--;
	if (was_full)
		partial_push(s, i);
	/* The last one with room stays: a record that comes and goes would else cost a chunk. */
	if (c->used || (!c->next && !c->prev))
		return;
	partial_del(s, i);
	mc_free(c);
	s->chunk[i] = NULL;
	s->live_chunks--;
	s->free_chunk = mc_min(s->free_chunk, i);
}

size_t mc_slab_bytes(const struct mc_slab *s)
{
	return s->live_chunks * MC_SLAB_CHUNK + s->cap * sizeof(*s->chunk);
}

void mc_slab_fini(struct mc_slab *s)
{
	for (size_t i = 0; i < s->nchunks; i++)
		mc_free(s->chunk[i]);
	mc_free(s->chunk);
	*s = (struct mc_slab){0};
}
