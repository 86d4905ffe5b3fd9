/*
 * evict.c: lists by class and age, ordered by rank; see evict.h.
 *
 * A group moves at most once an age bucket, which grow exponentially, so keeping the lists right
 * costs O(log age) in a group's life. Ranks change only when something was learnt; then all lists
 * are sorted, every few thousand touches.
 */
#include "meta/evict.h"

#include <string.h>

#include "base/mem.h"
#include "meta/touches.h"

#define TOUCH_TICK_MS (MC_REUSE_TICK_MS / 10)
#define LISTS (MC_REUSE_CLASSES * MC_REUSE_AGES)
#define FILLED ((LISTS + 63) / 64)
#define LEARN_EVERY 4096u /* touches, or keys / LEARN_SHARE if that is more */
#define LEARN_SHARE 16u
#define LOOK_EVERY 512u /* touches between two looks at what waits */
#define LOOK_KEYS 1024u /* keys of a look */
#define AGED_AT_ONCE 8u /* pools whose groups a request lets grow older; the others when used */
#define MEMORY 128.0	/* lessons after which the past counts 1/e */

enum where {
	OPEN, /* its request is under way */
	LISTED,
	PARKED, /* its deepest object has held children */
	LEASED,
};

/* Alike objects of one pool that one request touched. */
struct group {
	uint32_t prev, next;  /* of a list, of `parked` or of `leased` */
	uint32_t first, last; /* nodes; never empty, but while its request is under way */
	uint64_t at_ms;
	uint32_t lease_ms; /* from at_ms on */
	uint16_t list;
	uint8_t where; /* enum where */
};

/* Groups, first to last. */
struct chain {
	uint32_t first, last;
};

struct pool {
	size_t n;
	struct chain lists[LISTS]; /* oldest first */
	struct chain parked, leased;
	uint64_t filled[FILLED]; /* by place: the list is not empty; of the order `order_at` */
	uint64_t order_at;
	uint64_t aged_ms;		   /* grow_older() was here */
	uint64_t age_at_ms[MC_REUSE_AGES]; /* when groups of this bucket are next looked at */
	uint32_t open[MC_REUSE_CLASSES];   /* groups of the request under way */
	uint32_t next_open;		   /* pool + 1 */
	bool is_open;
};

struct mc_evict {
	struct mc_evict_conf conf;
	struct mc_reuse reuse;
	struct mc_touches touches;
	uint64_t now_ms; /* of the last call that told */
	struct pool **pools;
	size_t pools_cap;
	uint16_t order[LISTS], place[LISTS]; /* lists by rank, and back */
	uint64_t order_at;		     /* counts the orders */
	uint32_t touches_to_learn, touches_to_look;
	uint64_t looked_ms;
	size_t look_at, aged_at;
};

static struct group *group_at(const struct mc_evict *e, uint32_t group)
{
	return mc_slab_at(e->conf.slab, group);
}

static struct mc_evict_node *node_at(const struct mc_evict *e, uint32_t node)
{
	return mc_slab_at(e->conf.slab, node);
}

/* ---- chains of groups ---- */

static void chain_push_back(struct mc_evict *e, struct chain *c, uint32_t group)
{
	struct group *g = group_at(e, group);

	g->prev = c->last;
	g->next = 0;
	if (c->last)
		group_at(e, c->last)->next = group;
	else
		c->first = group;
	c->last = group;
}

static void chain_push_front(struct mc_evict *e, struct chain *c, uint32_t group)
{
	struct group *g = group_at(e, group);

	g->prev = 0;
	g->next = c->first;
	if (c->first)
		group_at(e, c->first)->prev = group;
	else
		c->last = group;
	c->first = group;
}

static void chain_del(struct mc_evict *e, struct chain *c, const struct group *g)
{
	if (g->prev)
		group_at(e, g->prev)->next = g->next;
	else
		c->first = g->next;
	if (g->next)
		group_at(e, g->next)->prev = g->prev;
	else
		c->last = g->prev;
}

/* ---- classes ---- */

static unsigned class_of(unsigned kind, unsigned touches)
{
	return kind * 3 + (touches <= 1 ? 0 : touches == 2 ? 1 : 2);
}

static unsigned kind_of(size_t seen, size_t n)
{
	unsigned share = seen <= 2 || seen * 10 < n ? 0 : seen * 10 < n * 6 ? 1 : 2;
	unsigned length = n <= 4 ? 0 : n <= 16 ? 1 : n <= 64 ? 2 : 3;

	return share * 4 + length;
}

/* ---- lists by rank ---- */

static unsigned class_of_list(unsigned list)
{
	return list / MC_REUSE_AGES;
}

static float rank_of_list(const struct mc_evict *e, unsigned list)
{
	return e->reuse.rank[class_of_list(list)][list % MC_REUSE_AGES];
}

static void mark(const struct mc_evict *e, struct pool *p, unsigned list)
{
	uint64_t bit = 1ull << (e->place[list] % 64);

	if (p->lists[list].first)
		p->filled[e->place[list] / 64] |= bit;
	else
		p->filled[e->place[list] / 64] &= ~bit;
}

/* The pool's bits are of an order that is no more. */
static void mark_all(const struct mc_evict *e, struct pool *p)
{
	memset(p->filled, 0, sizeof(p->filled));
	for (unsigned i = 0; i < LISTS; i++)
		if (p->lists[i].first)
			mark(e, p, i);
	p->order_at = e->order_at;
}

static void list_changed(const struct mc_evict *e, struct pool *p, unsigned list)
{
	if (p->order_at == e->order_at)
		mark(e, p, list);
}

/* The worst list with groups; LISTS: all are empty. */
static unsigned worst_list(const struct mc_evict *e, struct pool *p)
{
	if (p->order_at != e->order_at)
		mark_all(e, p);
	for (unsigned i = 0; i < FILLED; i++)
		if (p->filled[i])
			return e->order[i * 64 + (unsigned)__builtin_ctzll(p->filled[i])];
	return LISTS;
}

/* Worst first; among equals the older ages. A stable merge over what is sorted for the most part.
 */
static void order_lists(struct mc_evict *e)
{
	uint16_t tmp[LISTS], *from = e->order, *to = tmp;

	for (unsigned width = 1; width < LISTS; width *= 2) {
		uint16_t *swap = from;

		for (unsigned lo = 0; lo < LISTS; lo += 2 * width) {
			unsigned a = lo, mid = mc_min(lo + width, LISTS), b = mid;
			unsigned hi = mc_min(lo + 2 * width, LISTS);

			for (unsigned k = lo; k < hi; k++)
				to[k] = b == hi || (a < mid && rank_of_list(e, from[a]) <=
								   rank_of_list(e, from[b]))
					    ? from[a++]
					    : from[b++];
		}
		from = to;
		to = swap;
	}
	if (from != e->order)
		memcpy(e->order, from, sizeof(tmp));
	for (unsigned i = 0; i < LISTS; i++)
		e->place[e->order[i]] = (uint16_t)i;
	e->order_at++;
}

/* ---- groups ---- */

/* Where the group belongs now. */
static void group_place(struct mc_evict *e, struct pool *p, uint32_t group)
{
	struct group *g = group_at(e, group);
	struct chain *list;

	if (g->lease_ms && g->at_ms + g->lease_ms > e->now_ms) {
		g->where = LEASED;
		chain_push_back(e, &p->leased, group);
		return;
	}
	if (node_at(e, g->last)->is_parent) {
		g->where = PARKED;
		chain_push_back(e, &p->parked, group);
		return;
	}
	g->where = LISTED;
	g->list =
	    (uint16_t)(class_of_list(g->list) * MC_REUSE_AGES + mc_reuse_age(e->now_ms - g->at_ms));
	list = &p->lists[g->list];
	/* One that was parked is older than most: it goes before younger ones. */
	if (list->first && group_at(e, list->first)->at_ms > g->at_ms)
		chain_push_front(e, list, group);
	else
		chain_push_back(e, list, group);
	list_changed(e, p, g->list);
}

static void group_unplace(struct mc_evict *e, struct pool *p, const struct group *g)
{
	if (g->where == LEASED) {
		chain_del(e, &p->leased, g);
	} else if (g->where == PARKED) {
		chain_del(e, &p->parked, g);
	} else {
		chain_del(e, &p->lists[g->list], g);
		list_changed(e, p, g->list);
	}
}

/* Its last object may have changed. */
static void group_changed(struct mc_evict *e, struct pool *p, uint32_t group)
{
	struct group *g = group_at(e, group);

	/* A lease's place says nothing of the objects. */
	if (g->where == OPEN || (g->where == LEASED && g->first))
		return;
	group_unplace(e, p, g);
	if (g->first)
		group_place(e, p, group);
	else
		mc_slab_free(e->conf.slab, group);
}

static void node_leave(struct mc_evict *e, uint32_t node)
{
	struct mc_evict_node *n = node_at(e, node);
	struct group *g = group_at(e, n->group);
	uint32_t group = n->group;

	if (n->prev)
		node_at(e, n->prev)->next = n->next;
	else
		g->first = n->next;
	if (n->next)
		node_at(e, n->next)->prev = n->prev;
	else
		g->last = n->prev;
	n->group = n->prev = n->next = 0;
	group_changed(e, e->pools[n->pool], group);
}

static void node_join(struct mc_evict *e, uint32_t group, uint32_t node)
{
	struct mc_evict_node *n = node_at(e, node);
	struct group *g = group_at(e, group);

	n->group = group;
	n->prev = g->last;
	n->next = 0;
	if (g->last)
		node_at(e, g->last)->next = node;
	else
		g->first = node;
	g->last = node;
}

/* ---- time ---- */

/* Leases that are over, and groups that have grown older. */
static void grow_older(struct mc_evict *e, struct pool *p)
{
	uint64_t now_ms = e->now_ms;
	uint32_t group;

	if (now_ms == p->aged_ms)
		return;
	p->aged_ms = now_ms;
	while ((group = p->leased.first)) {
		struct group *g = group_at(e, group);

		if (g->at_ms + g->lease_ms > now_ms)
			break;
		chain_del(e, &p->leased, g);
		group_place(e, p, group);
	}
	for (unsigned a = 0; a + 1 < MC_REUSE_AGES; a++) {
		uint64_t end_ms = mc_reuse_age_ms(a + 1);

		if (now_ms < p->age_at_ms[a])
			continue;
		p->age_at_ms[a] = now_ms + (end_ms - mc_reuse_age_ms(a)) / 8 + 1;
		for (unsigned c = 0; c < MC_REUSE_CLASSES; c++) {
			struct chain *list = &p->lists[c * MC_REUSE_AGES + a];

			while ((group = list->first) &&
			       now_ms - group_at(e, group)->at_ms >= end_ms) {
				group_unplace(e, p, group_at(e, group));
				group_place(e, p, group);
			}
		}
	}
}

/* This request's group of a class. 0: no memory */
static uint32_t group_get(struct mc_evict_request *q, uint16_t pool, unsigned class)
{
	struct mc_evict *e = q->e;
	struct pool *p = e->pools[pool];
	struct group *g;

	if (!p->is_open) {
		grow_older(e, p);
		p->is_open = true;
		p->next_open = q->pools;
		q->pools = (uint32_t)pool + 1;
	}
	if (p->open[class])
		return p->open[class];
	p->open[class] = mc_slab_alloc(e->conf.slab, sizeof(*g));
	if (!p->open[class])
		return 0;
	g = group_at(e, p->open[class]);
	g->at_ms = q->now_ms;
	g->lease_ms = q->lease_ms;
	g->list = (uint16_t)(class * MC_REUSE_AGES);
	return p->open[class];
}

static uint64_t waited_ms(const struct mc_touch *t, uint64_t now_ms)
{
	return (uint64_t)(uint32_t)(now_ms / TOUCH_TICK_MS - t->at_tick) * TOUCH_TICK_MS;
}

/* Keys that wait for their next touch, a sample: each stands for its share of all. */
static void look(struct mc_evict *e, uint64_t now_ms)
{
	size_t cap = mc_touches_cap(&e->touches), n = mc_min(cap, (size_t)LOOK_KEYS);
	double seconds = (double)(now_ms - e->looked_ms) / 1000 * (double)cap / (double)n;

	e->looked_ms = now_ms;
	for (size_t i = 0; i < n; i++) {
		const struct mc_touch *t = mc_touches_at(&e->touches, e->look_at++ % cap);

		if (t->tag)
			mc_reuse_exposed(&e->reuse, t->class, mc_reuse_age(waited_ms(t, now_ms)),
					 seconds);
	}
}

static void learn(struct mc_evict *e)
{
	mc_reuse_learn(&e->reuse, 1 - 1 / MEMORY);
	order_lists(e);
	e->touches_to_learn = LEARN_EVERY;
	if (e->touches.n / LEARN_SHARE > LEARN_EVERY)
		e->touches_to_learn = (uint32_t)(e->touches.n / LEARN_SHARE);
}

/* ---- requests ---- */

void mc_evict_begin(struct mc_evict *e, struct mc_evict_request *q, uint64_t now_ms,
		    const uint64_t *hashes, size_t n)
{
	size_t seen = 0;

	*q = (struct mc_evict_request){.e = e, .now_ms = now_ms};
	for (size_t i = 0; i < n; i++)
		seen += mc_touches_find(&e->touches, hashes[i]) != NULL;
	q->kind = kind_of(seen, n);
	e->now_ms = now_ms;
	for (size_t i = 0; i < mc_min((size_t)AGED_AT_ONCE, e->pools_cap); i++) {
		e->aged_at = (e->aged_at + 1) % e->pools_cap;
		if (e->pools[e->aged_at])
			grow_older(e, e->pools[e->aged_at]);
	}
}

void mc_evict_prefetch(const struct mc_evict *e, uint64_t hash)
{
	mc_touches_prefetch(&e->touches, hash);
}

/* What the key's last touch made it, or would make it. */
static unsigned class_for(const struct mc_evict_request *q, uint64_t hash)
{
	const struct mc_touch *t = mc_touches_find(&q->e->touches, hash);

	return t ? t->class : class_of(q->kind, 1);
}

unsigned mc_evict_touch(struct mc_evict_request *q, uint64_t hash)
{
	struct mc_evict *e = q->e;
	struct mc_touch *t = mc_touches_get(&e->touches, hash);
	unsigned class;

	if (t->n)
		mc_reuse_event(&e->reuse, t->class, mc_reuse_age(waited_ms(t, q->now_ms)));
	if (t->n < UINT8_MAX)
		t->n++;
	class = class_of(q->kind, t->n);
	t->class = (uint8_t) class;
	t->at_tick = (uint32_t)(q->now_ms / TOUCH_TICK_MS);
	if (--e->touches_to_look == 0) {
		look(e, q->now_ms);
		e->touches_to_look = LOOK_EVERY;
	}
	if (--e->touches_to_learn == 0)
		learn(e);
	return class;
}

void mc_evict_move(struct mc_evict_request *q, uint32_t node, unsigned class)
{
	struct mc_evict_node *n = node_at(q->e, node);
	uint32_t group;

	if (!n->group)
		return;
	group = group_get(q, n->pool, class);
	/* Without memory for a group the object keeps its old age. */
	if (!group || group == n->group)
		return;
	node_leave(q->e, node);
	node_join(q->e, group, node);
}

bool mc_evict_is_worth(struct mc_evict_request *q, uint16_t pool, uint64_t hash)
{
	struct pool *p = q->e->pools[pool];
	unsigned worst;

	grow_older(q->e, p);
	worst = worst_list(q->e, p);
	return worst == LISTS ||
	       q->e->reuse.rank[class_for(q, hash)][0] >= rank_of_list(q->e, worst);
}

int mc_evict_add(struct mc_evict_request *q, uint32_t node, uint64_t hash)
{
	struct mc_evict_node *n = node_at(q->e, node);
	uint32_t group = group_get(q, n->pool, class_for(q, hash));

	mc_assert(!n->group);
	if (!group)
		return -MC_E_NOMEM;
	node_join(q->e, group, node);
	q->e->pools[n->pool]->n++;
	return 0;
}

static void groups_end(struct mc_evict *e, struct pool *p)
{
	for (unsigned c = 0; c < MC_REUSE_CLASSES; c++) {
		uint32_t group = p->open[c];

		if (!group)
			continue;
		p->open[c] = 0;
		if (group_at(e, group)->first)
			group_place(e, p, group);
		else
			mc_slab_free(e->conf.slab, group);
	}
	p->is_open = false;
}

void mc_evict_end(struct mc_evict_request *q)
{
	while (q->pools) {
		struct pool *p = q->e->pools[q->pools - 1];

		q->pools = p->next_open;
		groups_end(q->e, p);
	}
}

/* ---- nodes ---- */

void mc_evict_parent(struct mc_evict *e, uint32_t node, bool is_parent)
{
	struct mc_evict_node *n = node_at(e, node);

	n->is_parent = is_parent;
	if (n->group)
		group_changed(e, e->pools[n->pool], n->group);
}

void mc_evict_rename(struct mc_evict *e, uint32_t old, uint32_t node)
{
	const struct mc_evict_node *n = node_at(e, node);
	struct group *g;

	if (!n->group)
		return;
	g = group_at(e, n->group);
	if (n->prev)
		node_at(e, n->prev)->next = node;
	else
		g->first = node;
	if (n->next)
		node_at(e, n->next)->prev = node;
	else
		g->last = node;
	node_at(e, old)->group = 0;
}

void mc_evict_lease(struct mc_evict *e, uint32_t node, uint64_t until_ms)
{
	const struct mc_evict_node *n = node_at(e, node);
	struct group *g;

	if (!n->group || until_ms <= e->now_ms)
		return;
	g = group_at(e, n->group);
	if (until_ms - g->at_ms > UINT32_MAX) /* months old are as good as years */
		g->at_ms = until_ms - UINT32_MAX;
	if (g->where != OPEN)
		group_unplace(e, e->pools[n->pool], g);
	g->lease_ms = (uint32_t)(until_ms - g->at_ms);
	if (g->where == OPEN)
		return;
	group_place(e, e->pools[n->pool], n->group);
}

void mc_evict_del(struct mc_evict *e, uint32_t node)
{
	struct mc_evict_node *n = node_at(e, node);

	if (!n->group)
		return;
	node_leave(e, node);
	e->pools[n->pool]->n--;
}

uint32_t mc_evict_victim(struct mc_evict *e, uint16_t pool, uint64_t now_ms, uint64_t *ret_retry_ms)
{
	struct pool *p = e->pools[pool];
	const struct group *leased;
	unsigned worst;
	uint32_t group;

	e->now_ms = now_ms;
	grow_older(e, p);
	worst = worst_list(e, p);
	/* Else parents whose children are elsewhere, leased, or in a request under way. */
	group = worst != LISTS ? p->lists[worst].first : p->parked.first;
	if (group)
		return group_at(e, group)->last;
	leased = p->leased.first ? group_at(e, p->leased.first) : NULL;
	if (ret_retry_ms)
		/* One that came to the front within this millisecond may be over: at once, then. */
		*ret_retry_ms =
		    leased ? mc_max(leased->at_ms + leased->lease_ms, now_ms) : UINT64_MAX;
	return 0;
}

uint32_t mc_evict_leased(const struct mc_evict *e, uint16_t pool)
{
	uint32_t group = e->pools[pool]->leased.first;

	return group ? group_at(e, group)->last : 0;
}

size_t mc_evict_count(const struct mc_evict *e, uint16_t pool)
{
	return e->pools[pool]->n;
}

/* ---- life ---- */

int mc_evict_pool_open(struct mc_evict *e, uint16_t pool)
{
	void *array = e->pools;
	size_t old = e->pools_cap;

	if (mc_array_grow(&array, &e->pools_cap, (size_t)pool + 1, MC_EVICT_POOLS_MAX,
			  sizeof(*e->pools)) < 0)
		return -MC_E_NOMEM;
	e->pools = array;
	memset(&e->pools[old], 0, (e->pools_cap - old) * sizeof(*e->pools));
	mc_assert(!e->pools[pool]);
	e->pools[pool] = mc_calloc(1, sizeof(**e->pools));
	if (!e->pools[pool])
		return -MC_E_NOMEM;
	e->pools[pool]->aged_ms = UINT64_MAX;
	return 0;
}

void mc_evict_pool_close(struct mc_evict *e, uint16_t pool)
{
	mc_assert(e->pools[pool]->n == 0);
	mc_free(e->pools[pool]);
	e->pools[pool] = NULL;
}

int mc_evict_open(const struct mc_evict_conf *conf, struct mc_evict **ret)
{
	struct mc_evict *e = mc_calloc(1, sizeof(*e));

	if (!e)
		return -MC_E_NOMEM;
	e->conf = *conf;
	if (mc_touches_init(&e->touches, conf->keys_max) < 0) {
		mc_evict_close(e);
		return -MC_E_NOMEM;
	}
	mc_reuse_init(&e->reuse);
	for (unsigned i = 0; i < LISTS; i++)
		e->order[i] = (uint16_t)i;
	order_lists(e);
	e->touches_to_learn = LEARN_EVERY;
	e->touches_to_look = LOOK_EVERY;
	*ret = e;
	return 0;
}

void mc_evict_grow(struct mc_evict *e, size_t keys_max)
{
	mc_touches_grow(&e->touches, keys_max);
}

size_t mc_evict_bytes(const struct mc_evict *e)
{
	size_t n = sizeof(*e) + mc_touches_bytes(&e->touches) + e->pools_cap * sizeof(*e->pools);

	for (size_t i = 0; i < e->pools_cap; i++)
		n += e->pools[i] ? sizeof(**e->pools) : 0;
	return n;
}

void mc_evict_close(struct mc_evict *e)
{
	if (!e)
		return;
	for (size_t i = 0; i < e->pools_cap; i++)
		mc_free(e->pools[i]);
	mc_free(e->pools);
	mc_touches_fini(&e->touches);
	mc_free(e);
}
