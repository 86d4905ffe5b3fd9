/*
 * evict.c: lists by class and age, ordered by rank; see evict.h.
 *
 * A group moves at most once an age bucket, which grow exponentially, so keeping the lists right
 * costs O(log age) in a group's life. Ranks change only when something was learnt; then all lists
 * are sorted, every few thousand touches.
 */
#include "meta/evict.h"

#include <string.h>

#include "meta/touches.h"

#define TOUCH_TICK_MS (MC_REUSE_TICK_MS / 10)
#define LISTS (MC_REUSE_CLASSES * MC_REUSE_AGES)
#define LEARN_EVERY 4096u /* touches, or keys / LEARN_SHARE if that is more */
#define LEARN_SHARE 16u
#define LOOK_EVERY 512u /* touches between two looks at what waits */
#define LOOK_KEYS 1024u /* keys of a look */
#define MEMORY 128.0	/* lessons after which the past counts 1/e */

/* Alike objects that one request touched. */
struct mc_evict_group {
	struct mc_list link;  /* of a list, or of `parked`: its deepest object has held children */
	struct mc_list nodes; /* never empty, but while its request is under way */
	uint64_t at_ms;
	uint16_t list;
	bool is_parked, is_open;
};

struct mc_evict {
	struct mc_evict_conf conf;
	struct mc_reuse reuse;
	struct mc_touches touches;
	size_t n;
	uint64_t now_ms;	     /* of the last call that told */
	struct mc_list lists[LISTS]; /* mc_evict_group.link, oldest first */
	struct mc_list parked;
	uint16_t order[LISTS], place[LISTS]; /* lists by rank, and back */
	uint64_t filled[(LISTS + 63) / 64];  /* by place: the list is not empty */
	uint64_t age_at_ms[MC_REUSE_AGES];   /* when groups of this bucket are next looked at */
	uint32_t touches_to_learn, touches_to_look;
	uint64_t looked_ms;
	size_t look_at;
};

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

static void mark(struct mc_evict *e, unsigned list)
{
	uint64_t bit = 1ull << (e->place[list] % 64);

	if (mc_list_is_empty(&e->lists[list]))
		e->filled[e->place[list] / 64] &= ~bit;
	else
		e->filled[e->place[list] / 64] |= bit;
}

/* The worst list with groups; LISTS: all are empty. */
static unsigned worst_list(const struct mc_evict *e)
{
	for (unsigned i = 0; i < MC_ARRAY_LEN(e->filled); i++)
		if (e->filled[i])
			return e->order[i * 64 + (unsigned)__builtin_ctzll(e->filled[i])];
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
	memset(e->filled, 0, sizeof(e->filled));
	for (unsigned i = 0; i < LISTS; i++)
		e->place[e->order[i]] = (uint16_t)i;
	for (unsigned i = 0; i < LISTS; i++)
		mark(e, i);
}

/* ---- groups ---- */

static struct mc_evict_node *deepest(struct mc_evict_group *g)
{
	return mc_list_entry(g->nodes.prev, struct mc_evict_node, link);
}

/* Where the group belongs now. */
static void group_place(struct mc_evict *e, struct mc_evict_group *g)
{
	const struct mc_evict_group *first;

	g->is_parked = deepest(g)->nkids > 0;
	if (g->is_parked) {
		mc_list_push_back(&e->parked, &g->link);
		return;
	}
	g->list =
	    (uint16_t)(class_of_list(g->list) * MC_REUSE_AGES + mc_reuse_age(e->now_ms - g->at_ms));
	/* One that was parked is older than most: it goes before younger ones. */
	first = mc_list_first(&e->lists[g->list], struct mc_evict_group, link);
	if (first && first->at_ms > g->at_ms)
		mc_list_push_front(&e->lists[g->list], &g->link);
	else
		mc_list_push_back(&e->lists[g->list], &g->link);
	mark(e, g->list);
}

static void group_unplace(struct mc_evict *e, struct mc_evict_group *g)
{
	mc_list_del(&g->link);
	if (!g->is_parked)
		mark(e, g->list);
}

/* Its last object may have changed. */
static void group_changed(struct mc_evict *e, struct mc_evict_group *g)
{
	if (g->is_open)
		return;
	group_unplace(e, g);
	if (mc_list_is_empty(&g->nodes))
		mc_free(g);
	else
		group_place(e, g);
}

static struct mc_evict_group *group_get(struct mc_evict_request *q, unsigned class)
{
	struct mc_evict_group *g = q->group[class];

	if (g)
		return g;
	g = mc_calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	mc_list_init(&g->link);
	mc_list_init(&g->nodes);
	g->at_ms = q->now_ms;
	g->list = (uint16_t)(class * MC_REUSE_AGES);
	g->is_open = true;
	q->group[class] = g;
	return g;
}

static void node_leave(struct mc_evict *e, struct mc_evict_node *node)
{
	struct mc_evict_group *g = node->group;

	mc_list_del(&node->link);
	node->group = NULL;
	group_changed(e, g);
}

static void node_join(struct mc_evict_group *g, struct mc_evict_node *node)
{
	mc_list_push_back(&g->nodes, &node->link);
	node->group = g;
}

/* ---- time ---- */

/* Groups that have grown older go to their next list. */
static void grow_older(struct mc_evict *e, uint64_t now_ms)
{
	e->now_ms = now_ms;
	for (unsigned a = 0; a + 1 < MC_REUSE_AGES; a++) {
		uint64_t end_ms = mc_reuse_age_ms(a + 1);

		if (now_ms < e->age_at_ms[a])
			continue;
		e->age_at_ms[a] = now_ms + (end_ms - mc_reuse_age_ms(a)) / 8 + 1;
		for (unsigned c = 0; c < MC_REUSE_CLASSES; c++) {
			struct mc_list *list = &e->lists[c * MC_REUSE_AGES + a];
			struct mc_evict_group *g;

			while ((g = mc_list_first(list, struct mc_evict_group, link)) &&
			       now_ms - g->at_ms >= end_ms) {
				group_unplace(e, g);
				group_place(e, g);
			}
		}
	}
}

static uint64_t waited_ms(const struct mc_touch *t, uint64_t now_ms)
{
	return (uint64_t)(uint32_t)(now_ms / TOUCH_TICK_MS - t->at_tick) * TOUCH_TICK_MS;
}

/* Keys that wait for their next touch, a sample: each stands for its share of all. */
static void look(struct mc_evict *e, uint64_t now_ms)
{
	size_t n = mc_min(e->touches.cap, (size_t)LOOK_KEYS);
	double seconds =
	    (double)(now_ms - e->looked_ms) / 1000 * (double)e->touches.cap / (double)n;

	e->looked_ms = now_ms;
	for (size_t i = 0; i < n; i++) {
		const struct mc_touch *t = &e->touches.v[e->look_at++ & (e->touches.cap - 1)];

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
	grow_older(e, now_ms);
}

/* What the key's last touch made it, or would make it. */
static unsigned class_for(struct mc_evict_request *q, uint64_t hash)
{
	const struct mc_touch *t = mc_touches_find(&q->e->touches, hash);

	return t ? t->class : class_of(q->kind, 1);
}

void mc_evict_touch(struct mc_evict_request *q, uint64_t hash, struct mc_evict_node *node)
{
	struct mc_evict *e = q->e;
	struct mc_touch *t = mc_touches_get(&e->touches, hash);
	struct mc_evict_group *g;

	if (t->n)
		mc_reuse_event(&e->reuse, t->class, mc_reuse_age(waited_ms(t, q->now_ms)));
	if (t->n < UINT8_MAX)
		t->n++;
	t->class = (uint8_t)class_of(q->kind, t->n);
	t->at_tick = (uint32_t)(q->now_ms / TOUCH_TICK_MS);
	if (node && node->group) {
		g = group_get(q, t->class);
		/* Without memory for a group the object keeps its old age. */
		if (g && g != node->group) {
			node_leave(e, node);
			node_join(g, node);
		}
	}
	if (--e->touches_to_look == 0) {
		look(e, q->now_ms);
		e->touches_to_look = LOOK_EVERY;
	}
	if (--e->touches_to_learn == 0)
		learn(e);
}

bool mc_evict_is_worth(struct mc_evict_request *q, uint64_t hash)
{
	unsigned worst = worst_list(q->e);

	return worst == LISTS ||
	       q->e->reuse.rank[class_for(q, hash)][0] >= rank_of_list(q->e, worst);
}

int mc_evict_add(struct mc_evict_request *q, struct mc_evict_node *node, uint64_t hash,
		 uint64_t parent)
{
	struct mc_evict *e = q->e;
	struct mc_evict_node *up;
	struct mc_evict_group *g = group_get(q, class_for(q, hash));

	mc_assert(!node->group);
	if (!g)
		return -MC_E_NOMEM;
	*node = (struct mc_evict_node){.hash = hash, .parent = parent};
	mc_list_init(&node->link);
	node_join(g, node);
	e->n++;
	up = parent ? e->conf.find(e->conf.user, parent) : NULL;
	if (up && up->group) {
		up->nkids++;
		group_changed(e, up->group);
	}
	return 0;
}

void mc_evict_end(struct mc_evict_request *q)
{
	for (unsigned c = 0; c < MC_REUSE_CLASSES; c++) {
		struct mc_evict_group *g = q->group[c];

		if (!g)
			continue;
		g->is_open = false;
		if (mc_list_is_empty(&g->nodes))
			mc_free(g);
		else
			group_place(q->e, g);
	}
}

void mc_evict_del(struct mc_evict *e, struct mc_evict_node *node)
{
	struct mc_evict_node *up;

	if (!node->group)
		return;
	node_leave(e, node);
	e->n--;
	up = node->parent ? e->conf.find(e->conf.user, node->parent) : NULL;
	/* Another object may stand under the parent's key by now: it counts its own children only.
	 */
	if (up && up->group && up->nkids > 0 && --up->nkids == 0)
		group_changed(e, up->group);
}

struct mc_evict_node *mc_evict_victim(struct mc_evict *e, uint64_t now_ms)
{
	struct mc_evict_group *g;
	unsigned worst;

	grow_older(e, now_ms);
	worst = worst_list(e);
	/* Else parents whose children are pinned, or in a request under way. */
	g = mc_list_first(worst != LISTS ? &e->lists[worst] : &e->parked, struct mc_evict_group,
			  link);
	return g ? deepest(g) : NULL;
}

size_t mc_evict_count(const struct mc_evict *e)
{
	return e->n;
}

/* ---- life ---- */

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
	mc_list_init(&e->parked);
	for (unsigned i = 0; i < LISTS; i++) {
		mc_list_init(&e->lists[i]);
		e->order[i] = (uint16_t)i;
	}
	order_lists(e);
	e->touches_to_learn = LEARN_EVERY;
	e->touches_to_look = LOOK_EVERY;
	*ret = e;
	return 0;
}

static void group_free(struct mc_evict_group *g)
{
	struct mc_evict_node *n;

	mc_list_each (n, &g->nodes, link)
		n->group = NULL;
	mc_free(g);
}

static void groups_free(struct mc_list *list)
{
	struct mc_evict_group *g;

	mc_list_each (g, list, link)
		group_free(g);
}

void mc_evict_close(struct mc_evict *e)
{
	if (!e)
		return;
	if (e->touches.v) {
		for (unsigned i = 0; i < LISTS; i++)
			groups_free(&e->lists[i]);
		groups_free(&e->parked);
	}
	mc_touches_fini(&e->touches);
	mc_free(e);
}
