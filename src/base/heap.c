/*
 * heap.c: the textbook binary heap (Williams 1964) over an array of node pointers; each node knows
 * its place.
 */
#include "base/heap.h"

#include "base/mem.h"

void mc_heap_init(struct mc_heap *heap, size_t nodes_max)
{
	*heap = (struct mc_heap){.max = nodes_max};
}

void mc_heap_fini(struct mc_heap *heap)
{
	for (size_t i = 0; i < heap->len; i++)
		heap->nodes[i]->place = 0;
	mc_free(heap->nodes);
	mc_heap_init(heap, heap->max);
}

int mc_heap_reserve(struct mc_heap *heap, size_t nodes)
{
	void *array = heap->nodes;
	int rc = mc_array_grow(&array, &heap->cap, nodes, heap->max, sizeof(struct mc_heap_node *));

	heap->nodes = array;
	return rc;
}

static void heap_set(struct mc_heap *heap, size_t at, struct mc_heap_node *node)
{
	heap->nodes[at] = node;
	node->place = at + 1;
}

static size_t heap_up(struct mc_heap *heap, size_t at, struct mc_heap_node *node)
{
	while (at > 0) {
		size_t parent = (at - 1) / 2;

		if (heap->nodes[parent]->key <= node->key)
			break;
		heap_set(heap, at, heap->nodes[parent]);
		at = parent;
	}
	return at;
}

static size_t heap_down(struct mc_heap *heap, size_t at, struct mc_heap_node *node)
{
	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= heap->len)
			break;
		if (child + 1 < heap->len && heap->nodes[child + 1]->key < heap->nodes[child]->key)
			child++;
		if (heap->nodes[child]->key >= node->key)
			break;
		heap_set(heap, at, heap->nodes[child]);
		at = child;
	}
	return at;
}

/* Place `node` at the hole `at` or where its key belongs from there. */
static void heap_settle(struct mc_heap *heap, size_t at, struct mc_heap_node *node)
{
	size_t up = heap_up(heap, at, node);

	heap_set(heap, up == at ? heap_down(heap, at, node) : up, node);
}

int mc_heap_push(struct mc_heap *heap, struct mc_heap_node *node, uint64_t key)
{
	int rc;

	mc_assert(!node->place);
	rc = mc_heap_reserve(heap, heap->len + 1);
	if (rc < 0)
		return rc;
	node->key = key;
	heap->len++;
	heap_set(heap, heap_up(heap, heap->len - 1, node), node);
	return 0;
}

void mc_heap_move(struct mc_heap *heap, struct mc_heap_node *node, uint64_t key)
{
	mc_assert(node->place && node->place <= heap->len && heap->nodes[node->place - 1] == node);
	node->key = key;
	heap_settle(heap, node->place - 1, node);
}

void mc_heap_del(struct mc_heap *heap, struct mc_heap_node *node)
{
	struct mc_heap_node *last;
	size_t at;

	if (!node->place)
		return;
	mc_assert(node->place <= heap->len && heap->nodes[node->place - 1] == node);
	at = node->place - 1;
	last = heap->nodes[--heap->len];
	node->place = 0;
	if (last != node)
		heap_settle(heap, at, last);
}

struct mc_heap_node *mc_heap_pop(struct mc_heap *heap)
{
	struct mc_heap_node *node = mc_heap_peek(heap);

	if (node)
		mc_heap_del(heap, node);
	return node;
}
