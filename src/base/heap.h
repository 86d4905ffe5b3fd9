/*
 * heap.h: intrusive binary min-heap keyed by uint64, for timers. Not thread-safe. A node is in at
 * most one heap and belongs to the caller; the heap owns only its array of pointers. Pure but for
 * the growth of that array.
 */
#ifndef MC_BASE_HEAP_H
#define MC_BASE_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/** Zeroed means "in no heap". */
struct mc_heap_node {
	uint64_t key;
	size_t place; /* 1 + place in the array; 0: in no heap */
};

struct mc_heap {
	struct mc_heap_node **nodes;
	size_t len, cap, max;
};

void mc_heap_init(struct mc_heap *heap, size_t nodes_max);
/** Forgets the nodes left (they then count as in no heap) and frees the array. */
void mc_heap_fini(struct mc_heap *heap);
/** Make room for `nodes` in all, so that as many pushes cannot fail. @return 0; -MC_E_TOO_BIG;
 * -MC_E_NOMEM */
MC_MUST_CHECK int mc_heap_reserve(struct mc_heap *heap, size_t nodes);
/** @return 0; -MC_E_TOO_BIG when nodes_max are in; -MC_E_NOMEM. O(log n). */
MC_MUST_CHECK int mc_heap_push(struct mc_heap *heap, struct mc_heap_node *node, uint64_t key);
/** Give a node that is in the heap another key. Cannot fail. */
void mc_heap_move(struct mc_heap *heap, struct mc_heap_node *node, uint64_t key);
/** Take a node out; nothing happens when it is in no heap. */
void mc_heap_del(struct mc_heap *heap, struct mc_heap_node *node);
/** Node with the least key taken out, or NULL. */
struct mc_heap_node *mc_heap_pop(struct mc_heap *heap);

/** Node with the least key, or NULL. */
static inline struct mc_heap_node *mc_heap_peek(const struct mc_heap *heap)
{
	return heap->len ? heap->nodes[0] : NULL;
}

static inline bool mc_heap_has(const struct mc_heap_node *node)
{
	return node->place != 0;
}

#endif
