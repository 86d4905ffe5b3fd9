/*
 * pool.c: slots of a pool, found by place and by generation. All of it in private memory.
 */
#include <string.h>

#include "owner/priv.h"

#define INDEX_MIN 1024u
#define GUEST_NS (50 * MC_NS_PER_MS) /* whoever fetched a guest has so long to read it */

static uint64_t mix(uint64_t v)
{
	v ^= v >> 32;
	v *= 0x9e3779b97f4a7c15ull;
	return v ^ v >> 29;
}

static uint64_t number_of(const struct mc_opool *p, const struct mc_oindex *x, uint32_t id)
{
	return x == &p->by_off ? p->slots[id].off : p->slots[id].gen;
}

static uint32_t index_find(const struct mc_opool *p, const struct mc_oindex *x, uint64_t number)
{
	size_t i = mix(number) & (x->len - 1);

	for (; x->at[i] != MC_OWNER_NIL; i = (i + 1) & (x->len - 1)) {
		if (number_of(p, x, x->at[i]) == number)
			return x->at[i];
	}
	return MC_OWNER_NIL;
}

static void index_put(const struct mc_opool *p, struct mc_oindex *x, uint32_t id)
{
	size_t i = mix(number_of(p, x, id)) & (x->len - 1);

	while (x->at[i] != MC_OWNER_NIL)
		i = (i + 1) & (x->len - 1);
	x->at[i] = id;
}

/* What stood behind the gap moves up, so that no chain is cut (Knuth 6.4, R). */
static void index_del(const struct mc_opool *p, struct mc_oindex *x, uint32_t id)
{
	size_t mask = x->len - 1, gap = mix(number_of(p, x, id)) & mask, i;

	while (x->at[gap] != id)
		gap = (gap + 1) & mask;
	for (i = (gap + 1) & mask; x->at[i] != MC_OWNER_NIL; i = (i + 1) & mask) {
		size_t home = mix(number_of(p, x, x->at[i])) & mask;

		if (((i - home) & mask) >= ((i - gap) & mask)) {
			x->at[gap] = x->at[i];
			gap = i;
		}
	}
	x->at[gap] = MC_OWNER_NIL;
}

static int index_grow(const struct mc_opool *p, struct mc_oindex *x, size_t want)
{
	struct mc_oindex old = *x;
	size_t len = old.len ? old.len : INDEX_MIN;

	while (want * 4 > len * 3)
		len *= 2;
	if (len == old.len)
		return 0;
	x->at = mc_calloc(len, sizeof(*x->at));
	if (!x->at) {
		*x = old;
		return -MC_E_NOMEM;
	}
	x->len = len;
	for (size_t i = 0; i < old.len; i++) {
		if (old.at[i] != MC_OWNER_NIL)
			index_put(p, x, old.at[i]);
	}
	mc_free(old.at);
	return 0;
}

static void slots_push(struct mc_opool *p, struct mc_oslots *list, uint32_t id)
{
	p->slots[id].prev = list->last;
	p->slots[id].next = MC_OWNER_NIL;
	if (list->last != MC_OWNER_NIL)
		p->slots[list->last].next = id;
	else
		list->first = id;
	list->last = id;
}

static void slots_del(struct mc_opool *p, struct mc_oslots *list, uint32_t id)
{
	const struct mc_oslot *s = &p->slots[id];

	if (s->prev != MC_OWNER_NIL)
		p->slots[s->prev].next = s->next;
	else
		list->first = s->next;
	if (s->next != MC_OWNER_NIL)
		p->slots[s->next].prev = s->prev;
	else
		list->last = s->prev;
}

int mc_opool_init(struct mc_opool *p, uint8_t *base, uint64_t bytes, uint64_t incarnation)
{
	uint64_t slots_max = bytes / (2 * MC_EXTENT_UNIT) + 1; /* a header and a key */
	int rc;

	*p = (struct mc_opool){.base = base, .incarnation = incarnation};
	p->slots_max = mc_min(slots_max, (uint64_t)MC_EXTENTS_MAX);
	p->nslots = 1;
	rc = mc_extent_open(bytes, (uint32_t)p->slots_max, &p->extent);
	if (rc == 0)
		rc = index_grow(p, &p->by_off, 1);
	if (rc == 0)
		rc = index_grow(p, &p->by_gen, 1);
	return rc;
}

void mc_opool_fini(struct mc_opool *p)
{
	for (size_t i = 1; i < p->nslots; i++)
		mc_free(p->slots[i].texts);
	mc_free(p->slots);
	mc_free(p->by_off.at);
	mc_free(p->by_gen.at);
	mc_extent_close(p->extent);
	*p = (struct mc_opool){0};
}

void mc_opool_clear(struct mc_opool *p)
{
	for (size_t i = 1; i < p->nslots; i++)
		if (p->slots[i].state == MC_OSLOT_SEALED)
			mc_slot_clear(p->base + p->slots[i].off);
}

uint32_t mc_opool_of_gen(const struct mc_opool *p, uint64_t gen)
{
	return index_find(p, &p->by_gen, gen);
}

uint32_t mc_opool_at(const struct mc_opool *p, uint64_t addr, uint64_t gen)
{
	uint32_t id = index_find(p, &p->by_off, addr - (uint64_t)(uintptr_t)p->base);

	return id != MC_OWNER_NIL && p->slots[id].gen == gen ? id : MC_OWNER_NIL;
}

/* A slot without bytes. */
static int slot_new(struct mc_opool *p, uint32_t *ret_id)
{
	void *slots = p->slots;
	int rc;

	rc = index_grow(p, &p->by_off, p->live + 1);
	if (rc == 0)
		rc = index_grow(p, &p->by_gen, p->live + 1);
	if (rc < 0)
		return rc;
	if (p->unused != MC_OWNER_NIL) {
		*ret_id = p->unused;
		return 0;
	}
	rc = mc_array_grow(&slots, &p->cap, p->nslots + 1, p->slots_max + 1, sizeof(*p->slots));
	p->slots = slots;
	if (rc < 0)
		return rc == -MC_E_TOO_BIG ? -MC_E_LIMIT : rc;
	p->slots[p->nslots] = (struct mc_oslot){.next = MC_OWNER_NIL};
	p->unused = (uint32_t)p->nslots++;
	*ret_id = p->unused;
	return 0;
}

int mc_opool_take(struct mc_opool *p, const struct mc_st_grant *g, const struct mc_slot_info *info,
		  struct mc_owriter *writer, uint32_t *ret_id)
{
	struct mc_oslot s = {.gen = g->gen, .hash = info->key_hash, .len = g->len};
	uint32_t id, next;
	int rc;

	rc = slot_new(p, &id);
	if (rc < 0)
		return rc;
	s.texts = mc_calloc(1, (size_t)g->key_len + g->tlv_len);
	if (!s.texts)
		return -MC_E_NOMEM;
	rc = mc_extent_alloc(p->extent, info->slot_len, info->align, &s.off, &s.extent);
	if (rc < 0) {
		mc_free(s.texts);
		return rc;
	}
	memcpy(s.texts, g->key, g->key_len);
	if (g->tlv_len)
		memcpy(s.texts + g->key_len, g->tlv, g->tlv_len);
	s.key_len = g->key_len;
	s.tlv_len = g->tlv_len;
	s.state = MC_OSLOT_GRANTED;
	s.writer = writer;
	next = p->slots[id].next;
	p->unused = next;
	p->slots[id] = s;
	p->live++;
	p->ngranted++;
	index_put(p, &p->by_off, id);
	index_put(p, &p->by_gen, id);
	slots_push(p, &writer->grants, id);
	*ret_id = id;
	return 0;
}

static uint64_t slot_len(const struct mc_opool *p, uint32_t id)
{
	struct mc_slot_info info;

	mc_opool_info(p, id, &info);
	return info.slot_len;
}

/* Out of the list that its state says. */
static void slot_unlink(struct mc_opool *p, uint32_t id)
{
	struct mc_oslot *s = &p->slots[id];

	if (s->state == MC_OSLOT_GRANTED || s->state == MC_OSLOT_SEALING) {
		slots_del(p, &s->writer->grants, id);
		s->writer = NULL;
		p->ngranted--;
	} else if (s->state == MC_OSLOT_SEALED && s->is_guest) {
		p->guest_bytes -= slot_len(p, id);
		slots_del(p, &p->guests, id);
		p->nsealed--;
	} else if (s->state == MC_OSLOT_SEALED) {
		if (p->announce == id)
			p->announce = s->prev;
		if (p->check == id)
			p->check = s->next;
		if (p->offload == id)
			p->offload = s->next;
		slots_del(p, &p->sealed, id);
		p->nsealed--;
	}
}

void mc_opool_give(struct mc_opool *p, uint32_t id, struct mc_owriter *writer)
{
	struct mc_oslot *s = &p->slots[id];

	slots_del(p, &s->writer->grants, id);
	s->writer = writer;
	slots_push(p, &writer->grants, id);
}

void mc_opool_release(struct mc_opool *p, uint32_t id)
{
	struct mc_oslot *s = &p->slots[id];

	mc_assert(s->state != MC_OSLOT_NONE && s->pins == 0);
	slot_unlink(p, id);
	/* A granted slot has no header of ours, but perhaps one that its writer wrote. */
	mc_slot_clear(p->base + s->off);
	index_del(p, &p->by_off, id);
	index_del(p, &p->by_gen, id);
	mc_extent_free(p->extent, s->extent);
	mc_free(s->texts);
	*s = (struct mc_oslot){.next = p->unused};
	p->unused = id;
	p->live--;
}

void mc_opool_sealed(struct mc_opool *p, uint32_t id, uint64_t now_ns)
{
	struct mc_oslot *s = &p->slots[id];

	slot_unlink(p, id);
	s->state = MC_OSLOT_SEALED;
	s->when_ns = now_ns;
	p->nsealed++;
	if (s->is_guest) {
		p->guest_bytes += slot_len(p, id);
		slots_push(p, &p->guests, id);
		return;
	}
	slots_push(p, &p->sealed, id);
	if (p->check == MC_OWNER_NIL)
		p->check = id;
	if (p->offload == MC_OWNER_NIL)
		p->offload = id;
}

void mc_opool_guest(struct mc_opool *p, uint32_t id, bool is_kept, uint64_t now_ns)
{
	mc_assert(p->slots[id].state == MC_OSLOT_SEALED && p->slots[id].is_guest);
	slot_unlink(p, id);
	p->slots[id].is_guest = !is_kept;
	p->slots[id].state = MC_OSLOT_NONE; /* in no list */
	mc_opool_sealed(p, id, now_ns);
}

bool mc_opool_reclaim(struct mc_opool *p, uint64_t now_ns)
{
	uint32_t id = p->guests.first;

	while (id != MC_OWNER_NIL && p->slots[id].pins > 0)
		id = p->slots[id].next;
	return id != MC_OWNER_NIL && now_ns - p->slots[id].when_ns >= GUEST_NS &&
	       mc_opool_kill(p, id);
}

uint64_t mc_opool_reclaim_ns(const struct mc_opool *p)
{
	uint32_t id = p->guests.first;

	return id == MC_OWNER_NIL ? MC_TIME_NEVER : p->slots[id].when_ns + GUEST_NS;
}

uint64_t mc_opool_used(const struct mc_opool *p)
{
	return mc_extent_used(p->extent) - p->guest_bytes;
}

bool mc_opool_kill(struct mc_opool *p, uint32_t id)
{
	struct mc_oslot *s = &p->slots[id];

	if (s->state != MC_OSLOT_SEALED) {
		s->is_doomed = true;
		return false;
	}
	mc_slot_clear(p->base + s->off);
	if (s->pins == 0) {
		mc_opool_release(p, id);
		return true;
	}
	slot_unlink(p, id);
	s->state = MC_OSLOT_DEAD;
	return false;
}

static size_t dropped_at(uint64_t gen)
{
	return mc_hash64(&gen, sizeof(gen), 0) % MC_OWNER_DROPPED;
}

void mc_opool_drop(struct mc_opool *p, uint64_t gen)
{
	p->dropped[dropped_at(gen)] = gen;
}

void mc_opool_undrop(struct mc_opool *p, uint64_t gen)
{
	if (mc_opool_is_dropped(p, gen))
		p->dropped[dropped_at(gen)] = 0;
}

bool mc_opool_is_dropped(const struct mc_opool *p, uint64_t gen)
{
	return p->dropped[dropped_at(gen)] == gen;
}

void mc_opool_regen(struct mc_opool *p, uint32_t id, uint64_t gen)
{
	index_del(p, &p->by_gen, id);
	p->slots[id].gen = gen;
	p->slots[id].is_committed = false;
	index_put(p, &p->by_gen, id);
}

void mc_opool_info(const struct mc_opool *p, uint32_t id, struct mc_slot_info *ret)
{
	const struct mc_oslot *s = &p->slots[id];
	int rc;

	*ret = (struct mc_slot_info){.gen = s->gen,
				     .incarnation = p->incarnation,
				     .key_hash = s->hash,
				     .len = s->len,
				     .key = s->texts,
				     .tlv = s->texts + s->key_len,
				     .key_len = s->key_len,
				     .tlv_len = s->tlv_len};
	rc = mc_slot_layout(ret);
	mc_assert(rc == 0); /* as it was when the slot was taken */
}
