/*
 * extent.c: the pool as a list of ranges by place, and a treap of the free ones.
 */
#include "meta/extent.h"

#include <stdbool.h>

#include "base/mem.h"
#include "base/rand.h"

#define NIL 0u /* node 0 is the ring's head, in no tree */

/* A range that fits by length may lie badly for 4096; so many are looked at before one is taken
 * that is long enough in any case. */
#define TRIES 64u

struct node {
	uint64_t off, len;
	uint32_t prev, next;  /* by place; of an unused node next is the next unused */
	uint32_t left, right; /* in the treap */
	uint32_t rank;	      /* of the treap's heap */
	bool is_free;
};

struct mc_extent {
	struct node *nodes;
	size_t cap, len; /* nodes ever used: [0, len) */
	size_t max;
	uint32_t unused; /* list of nodes without a range */
	uint32_t nunused;
	uint32_t root;
	uint32_t taken, taken_max;
	uint64_t capacity, used;
	uint64_t rank_state;
};

static bool is_before(const struct node *a, const struct node *b)
{
	return a->len < b->len || (a->len == b->len && a->off < b->off);
}

static void tree_insert(struct mc_extent *e, uint32_t id)
{
	struct node *n = &e->nodes[id];
	uint32_t *link = &e->root, *low = &n->left, *high = &n->right;
	uint32_t at;

	while (*link != NIL && e->nodes[*link].rank >= n->rank)
		link =
		    is_before(n, &e->nodes[*link]) ? &e->nodes[*link].left : &e->nodes[*link].right;
	at = *link;
	*link = id;
	/* What was below is cut in two by n. */
	while (at != NIL) {
		if (is_before(&e->nodes[at], n)) {
			*low = at;
			low = &e->nodes[at].right;
			at = *low;
		} else {
			*high = at;
			high = &e->nodes[at].left;
			at = *high;
		}
	}
	*low = NIL;
	*high = NIL;
}

static void tree_del(struct mc_extent *e, uint32_t id)
{
	const struct node *n = &e->nodes[id];
	uint32_t *link = &e->root;
	uint32_t low = n->left, high = n->right;

	while (*link != id)
		link =
		    is_before(n, &e->nodes[*link]) ? &e->nodes[*link].left : &e->nodes[*link].right;
	while (low != NIL && high != NIL) {
		if (e->nodes[low].rank >= e->nodes[high].rank) {
			*link = low;
			link = &e->nodes[low].right;
			low = *link;
		} else {
			*link = high;
			link = &e->nodes[high].left;
			high = *link;
		}
	}
	*link = low != NIL ? low : high;
}

/* First free range of at least len bytes, and not before place `off` among those of just len. */
static uint32_t tree_from(const struct mc_extent *e, uint64_t len, uint64_t off)
{
	const struct node want = {.len = len, .off = off};
	uint32_t at = e->root, best = NIL;

	while (at != NIL) {
		if (is_before(&e->nodes[at], &want)) {
			at = e->nodes[at].right;
		} else {
			best = at;
			at = e->nodes[at].left;
		}
	}
	return best;
}

/* Room for `n` nodes more, so that node_new() cannot fail so often. */
static int nodes_reserve(struct mc_extent *e, uint32_t n)
{
	size_t want = e->len + (n > e->nunused ? n - e->nunused : 0);
	void *nodes = e->nodes;
	int rc = mc_array_grow(&nodes, &e->cap, want, e->max, sizeof(*e->nodes));

	e->nodes = nodes;
	return rc == -MC_E_TOO_BIG ? -MC_E_LIMIT : rc;
}

/* A node behind `prev`, in the list only. */
static uint32_t node_new(struct mc_extent *e, uint32_t prev, uint64_t off, uint64_t len)
{
	uint32_t id = e->unused, next = e->nodes[prev].next;

	if (id != NIL) {
		e->unused = e->nodes[id].next;
		e->nunused--;
	} else {
		id = (uint32_t)e->len++;
	}
	e->nodes[id] = (struct node){.off = off,
				     .len = len,
				     .prev = prev,
				     .next = next,
				     .rank = (uint32_t)mc_splitmix64(&e->rank_state)};
	e->nodes[prev].next = id;
	e->nodes[next].prev = id;
	return id;
}

static void node_free(struct mc_extent *e, uint32_t id)
{
	struct node *n = &e->nodes[id];

	e->nodes[n->prev].next = n->next;
	e->nodes[n->next].prev = n->prev;
	n->next = e->unused;
	e->unused = id;
	e->nunused++;
}

static void set_free(struct mc_extent *e, uint32_t id)
{
	e->nodes[id].is_free = true;
	tree_insert(e, id);
}

int mc_extent_open(uint64_t len, uint32_t extents_max, struct mc_extent **ret)
{
	struct mc_extent *e;
	int rc;

	if (len > MC_EXTENT_LEN_MAX || extents_max == 0 || extents_max > MC_EXTENTS_MAX)
		return -MC_E_INVAL;
	e = mc_calloc(1, sizeof(*e));
	if (!e)
		return -MC_E_NOMEM;
	e->capacity = len & ~(uint64_t)(MC_EXTENT_UNIT - 1);
	e->taken_max = extents_max;
	e->max = (size_t)extents_max * 2 + 2; /* a free range before each, one behind, the head */
	rc = nodes_reserve(e, 2);
	if (rc < 0)
		goto fail;
	e->nodes[NIL] = (struct node){0};
	e->len = 1;
	if (e->capacity)
		set_free(e, node_new(e, NIL, 0, e->capacity));
	*ret = e;
	return 0;
fail:
	mc_extent_close(e);
	return rc;
}

void mc_extent_close(struct mc_extent *e)
{
	if (!e)
		return;
	mc_free(e->nodes);
	mc_free(e);
}

/* Where in a free range len bytes begin, or UINT64_MAX. */
static uint64_t place_in(const struct node *n, uint64_t len, uint32_t align)
{
	uint64_t at;

	if (align == MC_EXTENT_UNIT)
		return n->off;
	at = (n->off + n->len - len) & ~(uint64_t)(align - 1);
	return at >= n->off ? at : UINT64_MAX;
}

static uint32_t find(const struct mc_extent *e, uint64_t len, uint32_t align, uint64_t *ret_at)
{
	uint32_t id = tree_from(e, len, 0);

	for (unsigned i = 0; id != NIL; i++) {
		const struct node *n = &e->nodes[id];

		*ret_at = place_in(n, len, align);
		if (*ret_at != UINT64_MAX)
			return id;
		if (i < TRIES)
			id = tree_from(e, n->len, n->off + 1);
		else
			id = tree_from(e, len + align - MC_EXTENT_UNIT, 0);
	}
	return NIL;
}

int mc_extent_alloc(struct mc_extent *e, uint64_t len, uint32_t align, uint64_t *ret_off,
		    uint32_t *ret_id)
{
	uint64_t at, end;
	uint32_t id;
	int rc;

	mc_assert(align >= MC_EXTENT_UNIT && align <= MC_EXTENT_ALIGN_MAX &&
		  (align & (align - 1)) == 0 && len > 0);
	if (len > e->capacity)
		return -MC_E_NOSPACE;
	if (e->taken == e->taken_max)
		return -MC_E_LIMIT;
	len = (len + MC_EXTENT_UNIT - 1) & ~(uint64_t)(MC_EXTENT_UNIT - 1);
	rc = nodes_reserve(e, 2);
	if (rc < 0)
		return rc;
	id = find(e, len, align, &at);
	if (id == NIL)
		return -MC_E_NOSPACE;
	tree_del(e, id);
	end = e->nodes[id].off + e->nodes[id].len;
	if (at + len < end)
		set_free(e, node_new(e, id, at + len, end - at - len));
	if (at > e->nodes[id].off)
		set_free(e,
			 node_new(e, e->nodes[id].prev, e->nodes[id].off, at - e->nodes[id].off));
	e->nodes[id].off = at;
	e->nodes[id].len = len;
	e->nodes[id].is_free = false;
	e->used += len;
	e->taken++;
	*ret_off = at;
	*ret_id = id;
	return 0;
}

void mc_extent_free(struct mc_extent *e, uint32_t id)
{
	struct node *n;
	uint32_t prev, next;

	mc_assert(id != NIL && id < e->len && !e->nodes[id].is_free && e->taken > 0);
	n = &e->nodes[id];
	prev = n->prev;
	next = n->next;
	e->used -= n->len;
	e->taken--;
	if (prev != NIL && e->nodes[prev].is_free) {
		tree_del(e, prev);
		n->off = e->nodes[prev].off;
		n->len += e->nodes[prev].len;
		node_free(e, prev);
	}
	if (next != NIL && e->nodes[next].is_free) {
		tree_del(e, next);
		n->len += e->nodes[next].len;
		node_free(e, next);
	}
	set_free(e, id);
}

uint64_t mc_extent_capacity(const struct mc_extent *e)
{
	return e->capacity;
}

uint64_t mc_extent_used(const struct mc_extent *e)
{
	return e->used;
}

uint64_t mc_extent_largest(const struct mc_extent *e)
{
	uint32_t at = e->root;

	if (at == NIL)
		return 0;
	while (e->nodes[at].right != NIL)
		at = e->nodes[at].right;
	return e->nodes[at].len;
}
