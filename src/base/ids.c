/*
 * ids.c: generational handle table.
 *
 * A slot's word packs {generation 39, live 1, pins 24}. The table itself holds one pin while the id
 * is live, so the thread that drops the last pin of a deleted slot, and nobody else, runs the
 * destructor and recycles the slot. get and put are one atomic on the slot's own cache line; add
 * and del lock only the free list. Slots are in chunks that never move. Free slots wait in a queue,
 * so that a slot is reused as late as possible.
 */
#include "base/ids.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/err.h"
#include "base/mem.h"

#define IDS_INDEX_BITS 24
#define IDS_INDEX_MASK ((1ull << IDS_INDEX_BITS) - 1)
#define IDS_GEN_MAX ((1ull << 39) - 1)
#define IDS_CHUNK_SLOTS 256
#define IDS_LIVE (1ull << 24)
#define IDS_PINS_MASK (IDS_LIVE - 1)
#define IDS_GEN_SHIFT 25
#define IDS_NONE UINT32_MAX

struct ids_slot {
	_Atomic uint64_t word; /* generation << 25 | live << 24 | pins */
	void *obj;	       /* written before the word that makes it live; owner: the adder */
	uint32_t next_free;    /* under the lock; only while free */
	uint32_t index;
} __attribute__((aligned(MC_CACHELINE)));

struct mc_ids {
	void (*fini)(void *obj);
	size_t max;
	size_t chunks_max;
	_Atomic(struct ids_slot *)
	    *chunks;			/* chunks_max; filled in order, never freed before close */
	pthread_mutex_t lock;		/* guards what follows; leaf lock */
	size_t slots;			/* created so far */
	size_t used;			/* live or not yet finalised */
	uint32_t free_first, free_last; /* oldest first */
};

int mc_ids_open(size_t max, void (*fini)(void *obj), struct mc_ids **ret_ids)
{
	struct mc_ids *ids;

	mc_assert(max >= 1 && max <= IDS_INDEX_MASK);
	ids = mc_calloc(1, sizeof(*ids));
	if (!ids)
		return -MC_E_NOMEM;
	ids->fini = fini;
	ids->max = max;
	ids->chunks_max = (max + IDS_CHUNK_SLOTS - 1) / IDS_CHUNK_SLOTS;
	ids->free_first = ids->free_last = IDS_NONE;
	ids->chunks = mc_calloc(ids->chunks_max, sizeof(*ids->chunks));
	if (!ids->chunks) {
		mc_free(ids);
		return -MC_E_NOMEM;
	}
	pthread_mutex_init(&ids->lock, NULL);
	*ret_ids = ids;
	return 0;
}

static struct ids_slot *ids_slot_at(struct mc_ids *ids, size_t index)
{
	struct ids_slot *chunk;

	if (index >= ids->max)
		return NULL;
	/* acquire: pairs with the release in ids_slot_take() */
	chunk = atomic_load_explicit(&ids->chunks[index / IDS_CHUNK_SLOTS], memory_order_acquire);
	return chunk ? &chunk[index % IDS_CHUNK_SLOTS] : NULL;
}

void mc_ids_close(struct mc_ids *ids)
{
	if (!ids)
		return;
	for (size_t i = 0; i < ids->slots; i++) {
		struct ids_slot *slot = ids_slot_at(ids, i);
		uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);

		if (!(word & IDS_PINS_MASK))
			continue;
		mc_assert((word & IDS_LIVE) && (word & IDS_PINS_MASK) == 1);
		if (ids->fini)
			ids->fini(slot->obj);
	}
	for (size_t i = 0; i < ids->chunks_max; i++)
		mc_free(atomic_load_explicit(&ids->chunks[i], memory_order_relaxed));
	pthread_mutex_destroy(&ids->lock);
	mc_free(ids->chunks);
	mc_free(ids);
}

/* Caller holds the lock. A new slot while the table is small, so that a freed index rests for long;
 * then the oldest. */
static int ids_slot_take(struct mc_ids *ids, struct ids_slot **ret_slot)
{
	struct ids_slot *slot;

	if (ids->used >= ids->max)
		return -MC_E_LIMIT;
	if (ids->free_first != IDS_NONE) {
		slot = ids_slot_at(ids, ids->free_first);
		ids->free_first = slot->next_free;
		if (ids->free_first == IDS_NONE)
			ids->free_last = IDS_NONE;
	} else {
		_Atomic(struct ids_slot *) *chunk = &ids->chunks[ids->slots / IDS_CHUNK_SLOTS];

		if (ids->slots >= ids->max)
			return -MC_E_LIMIT; /* the rest has used up its generations */
		if (!atomic_load_explicit(chunk, memory_order_relaxed)) {
			slot = mc_aligned_alloc(MC_CACHELINE, IDS_CHUNK_SLOTS * sizeof(*slot));
			if (!slot)
				return -MC_E_NOMEM;
			/* release: pairs with the acquire in ids_slot_at() */
			atomic_store_explicit(chunk, slot, memory_order_release);
		}
		slot = ids_slot_at(ids, ids->slots);
		slot->index = (uint32_t)ids->slots;
		ids->slots++;
	}
	ids->used++;
	*ret_slot = slot;
	return 0;
}

int mc_ids_add(struct mc_ids *ids, void *obj, uint64_t *ret_id)
{
	struct ids_slot *slot;
	uint64_t gen;
	int rc;

	mc_assert(obj);
	pthread_mutex_lock(&ids->lock);
	rc = ids_slot_take(ids, &slot);
	pthread_mutex_unlock(&ids->lock);
	if (rc < 0)
		return rc;
	gen = (atomic_load_explicit(&slot->word, memory_order_relaxed) >> IDS_GEN_SHIFT) + 1;
	slot->obj = obj;
	/* release: pairs with the acquire in mc_ids_get() */
	atomic_store_explicit(&slot->word, gen << IDS_GEN_SHIFT | IDS_LIVE | 1,
			      memory_order_release);
	*ret_id = gen << IDS_INDEX_BITS | (slot->index + 1u);
	return 0;
}

/* NULL when no such slot was ever made. */
static struct ids_slot *ids_slot_of(struct mc_ids *ids, uint64_t id)
{
	uint64_t index = id & IDS_INDEX_MASK;

	if (!index || id >> 63)
		return NULL;
	return ids_slot_at(ids, index - 1);
}

void *mc_ids_get(struct mc_ids *ids, uint64_t id)
{
	struct ids_slot *slot = ids_slot_of(ids, id);
	uint64_t gen = id >> IDS_INDEX_BITS;
	uint64_t word;

	if (!slot)
		return NULL;
	word = atomic_load_explicit(&slot->word, memory_order_relaxed);
	do {
		if (word >> IDS_GEN_SHIFT != gen || !(word & IDS_LIVE))
			return NULL;
		mc_assert((word & IDS_PINS_MASK) != IDS_PINS_MASK);
		/* acquire: pairs with the release in mc_ids_add() */
	} while (!atomic_compare_exchange_weak_explicit(
	    &slot->word, &word, word + 1, memory_order_acquire, memory_order_relaxed));
	return slot->obj;
}

/* The slot is deleted and unpinned: only this thread still knows it. */
static void ids_slot_recycle(struct mc_ids *ids, struct ids_slot *slot, uint64_t gen)
{
	void *obj = slot->obj;

	slot->obj = NULL;
	if (ids->fini)
		ids->fini(obj);
	pthread_mutex_lock(&ids->lock);
	ids->used--;
	if (gen < IDS_GEN_MAX) { /* else retired: an id never comes again */
		slot->next_free = IDS_NONE;
		if (ids->free_last == IDS_NONE)
			ids->free_first = slot->index;
		else
			ids_slot_at(ids, ids->free_last)->next_free = slot->index;
		ids->free_last = slot->index;
	}
	pthread_mutex_unlock(&ids->lock);
}

void mc_ids_put(struct mc_ids *ids, uint64_t id)
{
	struct ids_slot *slot = ids_slot_of(ids, id);
	uint64_t word;

	mc_assert(slot);
	/* release: our use is over before the last pin's owner, which acquires here, destroys */
	word = atomic_fetch_sub_explicit(&slot->word, 1, memory_order_acq_rel);
	mc_assert(word >> IDS_GEN_SHIFT == id >> IDS_INDEX_BITS && (word & IDS_PINS_MASK));
	if ((word & IDS_PINS_MASK) == 1)
		ids_slot_recycle(ids, slot, id >> IDS_INDEX_BITS);
}

int mc_ids_del(struct mc_ids *ids, uint64_t id)
{
	struct ids_slot *slot = ids_slot_of(ids, id);
	uint64_t gen = id >> IDS_INDEX_BITS;
	uint64_t word;

	if (!slot)
		return -MC_E_STALE;
	word = atomic_load_explicit(&slot->word, memory_order_relaxed);
	do {
		if (word >> IDS_GEN_SHIFT != gen || !(word & IDS_LIVE))
			return -MC_E_STALE;
	} while (!atomic_compare_exchange_weak_explicit(
	    &slot->word, &word, word & ~IDS_LIVE, memory_order_relaxed, memory_order_relaxed));
	mc_ids_put(ids, id); /* the table's own pin */
	return 0;
}
