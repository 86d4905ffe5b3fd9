/*
 * ring.h: two ways to hand work to one consumer thread: a bounded ring of pointers, and an
 * unbounded queue of nodes that the producers bring along. Neither allocates after open; both keep
 * the order of each producer.
 */
#ifndef MC_BASE_RING_H
#define MC_BASE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct mc_ring;

/** @param slots capacity, a power of two >= 2. @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_ring_open(size_t slots, struct mc_ring **ret_ring);
/** Pointers still in the ring stay the caller's. NULL is allowed. */
void mc_ring_close(struct mc_ring *ring);
/** @param item not NULL. @return 0; -MC_E_AGAIN when full. Any thread; lock-free. */
MC_MUST_CHECK int mc_ring_push(struct mc_ring *ring, void *item);
/** Oldest item or NULL when there is none, or the next is just being written. Consumer only. */
void *mc_ring_pop(struct mc_ring *ring);
/** Consumer only: false when the next pop would give an item. */
bool mc_ring_is_empty(const struct mc_ring *ring);

struct mc_mpsc_node {
	struct mc_mpsc_node *next;
};

/** Zeroed means empty. */
struct mc_mpsc {
	struct mc_mpsc_node *ready;	       /* consumer only: oldest first */
	_Atomic(struct mc_mpsc_node *) pushed; /* producers: newest first */
};

/**
 * Append a node; it is the queue's until popped. Any thread; lock-free.
 * @return true when the consumer had nothing new waiting: it may sleep and has to be woken. Whoever
 * sees false may rely on the wake-up of an earlier push that the consumer has not answered yet.
 */
bool mc_mpsc_push(struct mc_mpsc *queue, struct mc_mpsc_node *node);
/** Oldest node or NULL. Consumer only; wait-free; a push that returned before is always seen. */
struct mc_mpsc_node *mc_mpsc_pop(struct mc_mpsc *queue);

/** Consumer only. */
static inline bool mc_mpsc_is_empty(struct mc_mpsc *queue)
{
	return !queue->ready && !atomic_load_explicit(&queue->pushed, memory_order_relaxed);
}

#endif
