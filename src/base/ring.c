/*
 * ring.c: D. Vyukov's bounded queue (1024cores.net), with one consumer; and a push-stack that the
 * consumer takes whole and turns round (Treiber 1986), which tells exactly when a wake-up is due.
 */
#include "base/ring.h"

#include "base/mem.h"

struct ring_cell {
	/* `place` when free for the push of that place; place + 1 when filled; place + slots once
	 * popped */
	_Atomic size_t seq;
	void *item;
};

struct mc_ring {
	struct ring_cell *cells;
	size_t mask;
	_Alignas(MC_CACHELINE) _Atomic size_t tail; /* producers */
	_Alignas(MC_CACHELINE) size_t head;	    /* consumer */
};

int mc_ring_open(size_t slots, struct mc_ring **ret_ring)
{
	struct mc_ring *ring;

	mc_assert(slots >= 2 && (slots & (slots - 1)) == 0);
	ring = mc_aligned_alloc(MC_CACHELINE, sizeof(*ring));
	if (!ring)
		return -MC_E_NOMEM;
	ring->cells = mc_calloc(slots, sizeof(*ring->cells));
	if (!ring->cells) {
		mc_ring_close(ring);
		return -MC_E_NOMEM;
	}
	for (size_t i = 0; i < slots; i++)
		atomic_init(&ring->cells[i].seq, i);
	ring->mask = slots - 1;
	*ret_ring = ring;
	return 0;
}

void mc_ring_close(struct mc_ring *ring)
{
	if (!ring)
		return;
	mc_free(ring->cells);
	mc_free(ring);
}

int mc_ring_push(struct mc_ring *ring, void *item)
{
	size_t place = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	struct ring_cell *cell;

	mc_assert(item);
	for (;;) {
		ptrdiff_t lead;

		cell = &ring->cells[place & ring->mask];
		/* acquire: pairs with the release in mc_ring_pop(), the item there has been read */
		lead = (ptrdiff_t)(atomic_load_explicit(&cell->seq, memory_order_acquire) - place);
		if (lead < 0)
			return -MC_E_AGAIN;
		if (lead > 0)
			place = atomic_load_explicit(&ring->tail, memory_order_relaxed);
		else if (atomic_compare_exchange_weak_explicit(&ring->tail, &place, place + 1,
							       memory_order_relaxed,
							       memory_order_relaxed))
			break;
	}
	cell->item = item;
	/* release: pairs with the acquire in mc_ring_pop() */
	atomic_store_explicit(&cell->seq, place + 1, memory_order_release);
	return 0;
}

bool mc_ring_is_empty(const struct mc_ring *ring)
{
	const struct ring_cell *cell = &ring->cells[ring->head & ring->mask];

	return atomic_load_explicit(&cell->seq, memory_order_acquire) != ring->head + 1;
}

void *mc_ring_pop(struct mc_ring *ring)
{
	struct ring_cell *cell = &ring->cells[ring->head & ring->mask];
	void *item;

	/* acquire: pairs with the release in mc_ring_push() */
	if (atomic_load_explicit(&cell->seq, memory_order_acquire) != ring->head + 1)
		return NULL;
	item = cell->item;
	/* release: pairs with the acquire in mc_ring_push() */
	atomic_store_explicit(&cell->seq, ring->head + ring->mask + 1, memory_order_release);
	ring->head++;
	return item;
}

bool mc_mpsc_push(struct mc_mpsc *queue, struct mc_mpsc_node *node)
{
	struct mc_mpsc_node *newest = atomic_load_explicit(&queue->pushed, memory_order_relaxed);

	do {
		node->next = newest;
		/* release: pairs with the acquire in mc_mpsc_pop() */
	} while (!atomic_compare_exchange_weak_explicit(
	    &queue->pushed, &newest, node, memory_order_release, memory_order_relaxed));
	return !newest;
}

struct mc_mpsc_node *mc_mpsc_pop(struct mc_mpsc *queue)
{
	struct mc_mpsc_node *node;

	if (!queue->ready) {
		/* acquire: pairs with the release in mc_mpsc_push() */
		node = atomic_exchange_explicit(&queue->pushed, NULL, memory_order_acquire);
		while (node) {
			struct mc_mpsc_node *older = node->next;

			node->next = queue->ready;
			queue->ready = node;
			node = older;
		}
	}
	node = queue->ready;
	if (node)
		queue->ready = node->next;
	return node;
}
