/*
 * trace_policies.c: see trace_policies.h. Textbook policies are touched tail first, the better
 * order for all of them: roots become the most recent.
 *
 * Sources: SIEVE (Zhang et al., NSDI 2024), S3-FIFO (Yang et al., SOSP 2023), ARC (Megiddo and
 * Modha, FAST 2003), MIN (Belady, 1966) with bypass.
 */
#include "trace_policies.h"

#include <string.h>

#include "base/hash.h"
#include "base/heap.h"
#include "base/list.h"
#include "base/mem.h"
#include "meta/evict.h"

#define KEYS_MIN 65536u /* remembered by ours: as a master does */
#define KEYS_PER_BLOCK 4u

/* ---- queues of blocks, which the textbook policies are made of ---- */

enum queue {
	OUT,
	Q1, /* FIFO, LRU; S3-FIFO: small; ARC: T1 */
	Q2, /* S3-FIFO: main; ARC: T2 */
	G1, /* ghosts: S3-FIFO's; ARC: B1 */
	G2, /* ARC: B2 */
	QUEUES,
};

struct block {
	struct mc_list link;
	enum queue in;
	uint8_t uses;
	uint64_t used_ms; /* upstream's */
};

struct cache {
	struct block *block;
	struct mc_list q[QUEUES]; /* oldest first */
	size_t n[QUEUES];
	size_t room;
	size_t target; /* ARC: of T1 */
	struct mc_list *hand;
};

static uint32_t number(const struct cache *c, const struct mc_list *link)
{
	return (uint32_t)(mc_list_entry(link, struct block, link) - c->block);
}

static bool holds(const struct cache *c, uint32_t b)
{
	return c->block[b].in == Q1 || c->block[b].in == Q2;
}

static void move(struct cache *c, uint32_t b, enum queue to)
{
	struct block *k = &c->block[b];

	mc_list_del(&k->link);
	c->n[k->in]--;
	k->in = to;
	c->n[to]++;
	if (to != OUT)
		mc_list_push_back(&c->q[to], &k->link);
}

/* The oldest of one queue goes to another. */
static uint32_t shift(struct cache *c, enum queue from, enum queue to)
{
	uint32_t b = number(c, c->q[from].next);

	move(c, b, to);
	return b;
}

static void use(struct cache *c, uint32_t b)
{
	if (c->block[b].uses < 3)
		c->block[b].uses++;
}

static void enter(struct cache *c, uint32_t b, enum queue q)
{
	c->block[b].uses = 0;
	move(c, b, q);
}

static void touch_lru(struct cache *c, uint32_t b)
{
	if (!holds(c, b) && c->n[Q1] >= c->room)
		(void)shift(c, Q1, OUT);
	move(c, b, Q1);
}

static void touch_clock(struct cache *c, uint32_t b)
{
	if (holds(c, b)) {
		use(c, b);
		return;
	}
	while (c->n[Q1] >= c->room) {
		uint32_t old = number(c, c->q[Q1].next);

		if (c->block[old].uses > 0) {
			c->block[old].uses--;
			move(c, old, Q1);
		} else {
			move(c, old, OUT);
		}
	}
	enter(c, b, Q1);
}

static void touch_sieve(struct cache *c, uint32_t b)
{
	if (holds(c, b)) {
		c->block[b].uses = 1;
		return;
	}
	while (c->n[Q1] >= c->room) {
		struct mc_list *at = c->hand && c->hand != &c->q[Q1] ? c->hand : c->q[Q1].next;
		uint32_t old = number(c, at);

		c->hand = at->next;
		if (c->block[old].uses)
			c->block[old].uses = 0;
		else
			move(c, old, OUT);
	}
	enter(c, b, Q1);
}

static void s3_evict_main(struct cache *c)
{
	for (;;) {
		uint32_t old = number(c, c->q[Q2].next);

		if (c->block[old].uses == 0) {
			move(c, old, OUT);
			return;
		}
		c->block[old].uses--;
		move(c, old, Q2);
	}
}

static void s3_evict_small(struct cache *c)
{
	size_t main_room = c->room - mc_max(c->room / 10, (size_t)1);

	while (c->n[Q1] > 0) {
		uint32_t old = number(c, c->q[Q1].next);

		if (c->block[old].uses > 0) {
			enter(c, old, Q2);
			if (c->n[Q2] > main_room) {
				s3_evict_main(c);
				return;
			}
			continue;
		}
		move(c, old, G1);
		if (c->n[G1] > main_room)
			(void)shift(c, G1, OUT);
		return;
	}
}

static void touch_s3fifo(struct cache *c, uint32_t b)
{
	bool was_ghost = c->block[b].in == G1;

	if (holds(c, b)) {
		use(c, b);
		return;
	}
	while (c->n[Q1] + c->n[Q2] >= c->room) {
		if (c->n[Q1] >= mc_max(c->room / 10, (size_t)1) || c->n[Q2] == 0)
			s3_evict_small(c);
		else
			s3_evict_main(c);
	}
	enter(c, b, was_ghost ? Q2 : Q1);
}

static void arc_replace(struct cache *c, bool is_in_b2)
{
	if (c->n[Q1] > 0 && (c->n[Q1] > c->target || (is_in_b2 && c->n[Q1] == c->target)))
		(void)shift(c, Q1, G1);
	else if (c->n[Q2] > 0)
		(void)shift(c, Q2, G2);
	else if (c->n[Q1] > 0)
		(void)shift(c, Q1, G1);
}

static void arc_make_room(struct cache *c)
{
	size_t l1 = c->n[Q1] + c->n[G1], all = l1 + c->n[Q2] + c->n[G2];

	if (l1 >= c->room) {
		if (c->n[Q1] < c->room) {
			(void)shift(c, G1, OUT);
			arc_replace(c, false);
		} else {
			(void)shift(c, Q1, OUT);
		}
	} else if (all >= c->room) {
		if (all >= 2 * c->room)
			(void)shift(c, G2, OUT);
		arc_replace(c, false);
	}
}

static void touch_arc(struct cache *c, uint32_t b)
{
	enum queue in = c->block[b].in;
	size_t step;

	if (in == G1) {
		step = mc_max(c->n[G2] / c->n[G1], (size_t)1);
		c->target = mc_min(c->room, c->target + step);
		arc_replace(c, false);
	} else if (in == G2) {
		step = mc_max(c->n[G1] / c->n[G2], (size_t)1);
		c->target -= mc_min(c->target, step);
		arc_replace(c, true);
	} else if (in == OUT) {
		arc_make_room(c);
	}
	move(c, b, in == OUT ? Q1 : Q2);
}

/* ---- upstream's master: from 90 % on it drops the 5 % whose leases (10 s) ended first ---- */

static void touch_upstream(struct cache *c, uint32_t b, uint64_t now_ms)
{
	size_t batch = mc_max(c->room / 20, (size_t)1);

	if (!holds(c, b) && c->n[Q1] * 10 >= c->room * 9) {
		while (batch-- > 0 && c->n[Q1] > 0 &&
		       c->block[number(c, c->q[Q1].next)].used_ms + 10000 <= now_ms)
			(void)shift(c, Q1, OUT);
		if (c->n[Q1] >= c->room)
			return; /* the put fails */
	}
	c->block[b].used_ms = now_ms;
	move(c, b, Q1);
}

/* ---- playing ---- */

static int cache_open(struct cache *c, const struct trace *t, size_t capacity)
{
	*c = (struct cache){.block = mc_calloc(t->nblocks, sizeof(*c->block)), .room = capacity};
	if (!c->block)
		return -MC_E_NOMEM;
	for (int q = 0; q < QUEUES; q++)
		mc_list_init(&c->q[q]);
	for (uint32_t b = 0; b < t->nblocks; b++)
		mc_list_init(&c->block[b].link);
	c->n[OUT] = t->nblocks;
	return 0;
}

static uint32_t prefix(const struct cache *c, const struct trace_request *r)
{
	uint32_t d = 0;

	while (d < r->n && holds(c, r->blocks[d]))
		d++;
	return d;
}

static uint64_t play(const struct trace *t, size_t capacity,
		     void (*touch)(struct cache *c, uint32_t block))
{
	uint64_t hits = 0;
	struct cache c;

	if (cache_open(&c, t, capacity) < 0)
		return UINT64_MAX;
	for (size_t i = 0; i < t->n; i++) {
		const struct trace_request *r = &t->requests[i];

		hits += prefix(&c, r);
		for (uint32_t d = r->nstored; d-- > 0;)
			touch(&c, r->blocks[d]);
	}
	mc_free(c.block);
	return hits;
}

static uint64_t run_lru(const struct trace *t, size_t capacity)
{
	return play(t, capacity, touch_lru);
}

static uint64_t run_clock(const struct trace *t, size_t capacity)
{
	return play(t, capacity, touch_clock);
}

static uint64_t run_sieve(const struct trace *t, size_t capacity)
{
	return play(t, capacity, touch_sieve);
}

static uint64_t run_s3fifo(const struct trace *t, size_t capacity)
{
	return play(t, capacity, touch_s3fifo);
}

static uint64_t run_arc(const struct trace *t, size_t capacity)
{
	return play(t, capacity, touch_arc);
}

static uint64_t run_upstream(const struct trace *t, size_t capacity)
{
	uint64_t hits = 0;
	struct cache c;

	if (cache_open(&c, t, capacity) < 0)
		return UINT64_MAX;
	for (size_t i = 0; i < t->n; i++) {
		const struct trace_request *r = &t->requests[i];

		hits += prefix(&c, r);
		for (uint32_t d = 0; d < r->nstored; d++)
			touch_upstream(&c, r->blocks[d], r->at_ms);
	}
	mc_free(c.block);
	return hits;
}

/* ---- the one that knows the future ---- */

struct seer {
	struct mc_heap heap; /* of who is used last, deepest first: smallest key first */
	struct mc_heap_node *node;
};

static uint64_t seer_key(const struct trace_request *r, uint32_t d)
{
	return UINT64_MAX - (r->next[d] << 20 | mc_min(d, 0xfffffu));
}

static void touch_seer(struct seer *s, const struct trace_request *r, uint32_t d, size_t capacity,
		       bool *ret_is_nomem)
{
	struct mc_heap_node *n = &s->node[r->blocks[d]], *worst;

	if (mc_heap_has(n))
		mc_heap_del(&s->heap, n);
	if (r->next[d] == UINT64_MAX)
		return;
	if (s->heap.len >= capacity) {
		worst = mc_heap_peek(&s->heap);
		if (seer_key(r, d) <= worst->key)
			return;
		(void)mc_heap_pop(&s->heap);
	}
	*ret_is_nomem |= mc_heap_push(&s->heap, n, seer_key(r, d)) < 0;
}

static uint64_t run_seer(const struct trace *t, size_t capacity)
{
	struct seer s = {.node = mc_calloc(t->nblocks, sizeof(*s.node))};
	bool is_nomem = !s.node;
	uint64_t hits = 0;

	mc_heap_init(&s.heap, capacity + 1);
	for (size_t i = 0; i < t->n && !is_nomem; i++) {
		const struct trace_request *r = &t->requests[i];

		for (uint32_t d = 0; d < r->n && mc_heap_has(&s.node[r->blocks[d]]); d++)
			hits++;
		for (uint32_t d = r->nstored; d-- > 0;)
			touch_seer(&s, r, d, capacity, &is_nomem);
	}
	mc_heap_fini(&s.heap);
	mc_free(s.node);
	return is_nomem ? UINT64_MAX : hits;
}

/* ---- ours ---- */

struct stored {
	struct mc_evict_node node;
	uint32_t id;
	uint32_t parent; /* it was stored behind this one; 0: none */
	uint32_t nkids;
};

struct ours {
	struct mc_slab slab;
	struct mc_evict *e;
	uint32_t *block; /* by id: struct stored */
	uint64_t *key;	 /* by id */
};

static struct stored *block_at(struct ours *o, uint32_t handle)
{
	return mc_slab_at(&o->slab, handle);
}

static bool is_held(struct ours *o, uint32_t id)
{
	return block_at(o, o->block[id])->node.group != 0;
}

static int ours_open(struct ours *o, const struct trace *t, size_t capacity)
{
	struct mc_evict_conf conf = {
	    .slab = &o->slab, .keys_max = mc_max((size_t)KEYS_MIN, KEYS_PER_BLOCK * capacity)};
	int rc;

	*o = (struct ours){.block = mc_calloc(t->nblocks, sizeof(*o->block)),
			   .key = mc_calloc(t->nblocks, sizeof(*o->key))};
	if (!o->block || !o->key)
		return -MC_E_NOMEM;
	for (uint32_t b = 0; b < t->nblocks; b++) {
		o->key[b] = mc_hash64(&b, sizeof(b), 0);
		o->block[b] = mc_slab_alloc(&o->slab, sizeof(struct stored));
		if (!o->block[b])
			return -MC_E_NOMEM;
		block_at(o, o->block[b])->id = b;
	}
	rc = mc_evict_open(&conf, &o->e);
	return rc < 0 ? rc : mc_evict_pool_open(o->e, 0);
}

static void ours_close(struct ours *o)
{
	mc_evict_close(o->e);
	mc_slab_fini(&o->slab);
	mc_free(o->block);
	mc_free(o->key);
}

static void ours_evict(struct ours *o, uint32_t victim)
{
	uint32_t parent = block_at(o, victim)->parent;
	struct stored *up = parent ? block_at(o, parent) : NULL;

	mc_evict_del(o->e, victim);
	if (up && up->node.group && up->nkids > 0 && --up->nkids == 0)
		mc_evict_parent(o->e, parent, false);
}

static int ours_add(struct ours *o, struct mc_evict_request *q, uint32_t id, uint32_t parent)
{
	struct stored *b = block_at(o, o->block[id]);
	int rc = mc_evict_add(q, o->block[id], o->key[id]);

	if (rc < 0)
		return rc;
	b->nkids = 0;
	b->node.is_parent = false;
	b->parent = parent;
	if (parent && block_at(o, parent)->node.group) {
		block_at(o, parent)->nkids++;
		mc_evict_parent(o->e, parent, true);
	}
	return 0;
}

/* As a master does: a prefix is stored from its root on, and not beyond a block that found no
 * place. */
static int ours_store(struct ours *o, struct mc_evict_request *q, const struct trace_request *r,
		      size_t capacity)
{
	for (uint32_t d = 0; d < r->nstored; d++) {
		uint32_t id = r->blocks[d], victim;
		int rc;

		if (is_held(o, id))
			continue;
		if (mc_evict_count(o->e, 0) >= capacity) {
			if (!mc_evict_is_worth(q, 0, o->key[id]))
				return 0;
			victim = mc_evict_victim(o->e, 0, r->at_ms, NULL);
			if (!victim)
				return 0;
			ours_evict(o, victim);
		}
		rc = ours_add(o, q, id, d ? o->block[r->blocks[d - 1]] : 0);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static int ours_request(struct ours *o, const struct trace_request *r, uint64_t *keys,
			size_t capacity, uint64_t *hits)
{
	struct mc_evict_request q;
	int rc;

	for (uint32_t d = 0; d < r->n; d++)
		keys[d] = o->key[r->blocks[d]];
	for (uint32_t d = 0; d < r->n && is_held(o, r->blocks[d]); d++)
		++*hits;
	mc_evict_begin(o->e, &q, r->at_ms, keys, r->n);
	for (uint32_t d = 0; d < r->n; d++)
		mc_evict_move(&q, o->block[r->blocks[d]], mc_evict_touch(&q, keys[d]));
	rc = ours_store(o, &q, r, capacity);
	mc_evict_end(&q);
	return rc;
}

static uint64_t run_ours(const struct trace *t, size_t capacity)
{
	uint64_t hits = 0, *keys = NULL;
	uint32_t most = 1;
	struct ours o;
	int rc = ours_open(&o, t, capacity);

	for (size_t i = 0; i < t->n; i++)
		most = mc_max(most, t->requests[i].n);
	keys = mc_calloc(most, sizeof(*keys));
	if (!keys)
		rc = -MC_E_NOMEM;
	for (size_t i = 0; i < t->n && rc == 0; i++)
		rc = ours_request(&o, &t->requests[i], keys, capacity, &hits);
	mc_free(keys);
	ours_close(&o);
	return rc < 0 ? UINT64_MAX : hits;
}

const struct policy trace_policies[] = {
    {"ours", run_ours},	  {"upstream", run_upstream}, {"LRU", run_lru}, {"CLOCK", run_clock},
    {"SIEVE", run_sieve}, {"S3-FIFO", run_s3fifo},    {"ARC", run_arc}, {"oracle", run_seer},
};
const size_t trace_policies_n = MC_ARRAY_LEN(trace_policies);
