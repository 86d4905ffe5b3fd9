/*
 * evict_test.c: who leaves, against a model of chains: never a parent before its children, never
 * anything of a request under way; what comes back stays when what does not passes by.
 */
#include "meta/evict.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rand.h"

#define CHAINS 400u
#define DEPTH 12u
#define OBJECTS (CHAINS * DEPTH)

struct object {
	struct mc_evict_node node;
	uint32_t i;
	uint32_t nkids;
};

/* Object i is at depth i % DEPTH of chain i / DEPTH. */
struct pool {
	struct mc_slab slab;
	struct mc_evict *e;
	uint32_t object[OBJECTS];
	size_t room;
};

static uint64_t key(size_t i)
{
	uint32_t v = (uint32_t)i;

	return mc_hash64(&v, sizeof(v), 1);
}

static struct object *object(const struct pool *p, size_t i)
{
	return mc_slab_at(&p->slab, p->object[i]);
}

static void pool_open(struct pool *p, size_t room)
{
	const struct mc_evict_conf conf = {.slab = &p->slab, .keys_max = 4096};

	*p = (struct pool){.room = room};
	assert_int_equal(mc_evict_open(&conf, &p->e), 0);
	assert_int_equal(mc_evict_pool_open(p->e, 0), 0);
	for (uint32_t i = 0; i < OBJECTS; i++) {
		p->object[i] = mc_slab_alloc(&p->slab, sizeof(struct object));
		assert_int_not_equal(p->object[i], 0);
		object(p, i)->i = i;
	}
}

static void pool_close(struct pool *p)
{
	mc_evict_close(p->e);
	mc_slab_fini(&p->slab);
}

static size_t at(const struct pool *p, uint32_t handle)
{
	return ((struct object *)mc_slab_at(&p->slab, handle))->i;
}

static bool is_held(const struct pool *p, size_t i)
{
	return object(p, i)->node.group != 0;
}

static bool has_kid(const struct pool *p, size_t i)
{
	return i % DEPTH + 1 < DEPTH && is_held(p, i + 1);
}

static void add(struct pool *p, struct mc_evict_request *q, size_t i)
{
	object(p, i)->nkids = 0;
	object(p, i)->node.is_parent = false;
	assert_int_equal(mc_evict_add(q, p->object[i], key(i)), 0);
	if (i % DEPTH && is_held(p, i - 1)) {
		object(p, i - 1)->nkids++;
		mc_evict_parent(p->e, p->object[i - 1], true);
	}
}

static void del(struct pool *p, size_t i)
{
	if (!is_held(p, i))
		return;
	mc_evict_del(p->e, p->object[i]);
	if (i % DEPTH && is_held(p, i - 1) && object(p, i - 1)->nkids > 0 &&
	    --object(p, i - 1)->nkids == 0)
		mc_evict_parent(p->e, p->object[i - 1], false);
}

/* One request for the first n objects of a chain, which stores what is missing. @return hits before
 * the first miss */
static unsigned request(struct pool *p, unsigned chain, unsigned n, uint64_t now_ms)
{
	struct mc_evict_request q;
	uint64_t keys[DEPTH] = {0};
	unsigned hits = 0;

	for (unsigned d = 0; d < n; d++)
		keys[d] = key(chain * DEPTH + d);
	while (hits < n && is_held(p, chain * DEPTH + hits))
		hits++;
	mc_evict_begin(p->e, &q, now_ms, keys, n);
	for (unsigned d = 0; d < n; d++)
		mc_evict_move(&q, p->object[chain * DEPTH + d], mc_evict_touch(&q, keys[d]));
	for (unsigned d = hits; d < n; d++) {
		uint32_t victim;

		if (mc_evict_count(p->e, 0) >= p->room) {
			if (!mc_evict_is_worth(&q, 0, keys[d]))
				break;
			victim = mc_evict_victim(p->e, 0, now_ms, NULL);
			if (!victim)
				break;
			assert_int_not_equal(at(p, victim) / DEPTH, chain);
			assert_false(has_kid(p, at(p, victim)));
			del(p, at(p, victim));
			assert_false(is_held(p, at(p, victim)));
		}
		add(p, &q, chain * DEPTH + d);
	}
	mc_evict_end(&q);
	return hits;
}

static void a_parent_never_leaves_before_its_children(void **state)
{
	static struct pool p;
	uint64_t now_ms = 0;
	struct mc_rand r;

	mc_rand_seed(&r, 3);
	pool_open(&p, 700);
	for (int i = 0; i < 20000; i++) {
		now_ms += mc_rand_below(&r, 3000);
		request(&p, (unsigned)mc_rand_below(&r, CHAINS),
			1 + (unsigned)mc_rand_below(&r, DEPTH), now_ms);
		if (i % 50 == 0) {
			/* Somebody removes one, whatever hangs on it. */
			del(&p, mc_rand_below(&r, OBJECTS) / DEPTH * DEPTH + DEPTH - 1);
		}
		assert_true(mc_evict_count(p.e, 0) <= p.room);
	}
	for (size_t i = 0; i < OBJECTS; i++)
		del(&p, i);
	assert_int_equal(mc_evict_count(p.e, 0), 0);
	pool_close(&p);
	(void)state;
}

static void a_removed_parent_leaves_orphans_that_can_go(void **state)
{
	static struct pool p;
	uint32_t victim;
	unsigned n = 0;

	pool_open(&p, 100);
	request(&p, 0, DEPTH, 0);
	del(&p, 3);
	request(&p, 0, 4, 10); /* the fourth again, which has no children of its own now */
	while ((victim = mc_evict_victim(p.e, 0, 1000, NULL))) {
		del(&p, at(&p, victim));
		n++;
	}
	assert_int_equal(n, DEPTH);
	pool_close(&p);
	(void)state;
}

static void nothing_of_an_open_request_is_a_victim(void **state)
{
	static struct pool p;
	struct mc_evict_request q;
	uint64_t k = key(0);

	pool_open(&p, 100);
	mc_evict_begin(p.e, &q, 5, &k, 1);
	mc_evict_touch(&q, k);
	assert_true(mc_evict_is_worth(&q, 0, k));
	add(&p, &q, 0);
	assert_int_equal(mc_evict_victim(p.e, 0, 5, NULL), 0);
	mc_evict_end(&q);
	assert_int_equal(mc_evict_victim(p.e, 0, 5, NULL), p.object[0]);
	del(&p, 0);
	pool_close(&p);
	(void)state;
}

/* Ten chains come back every twenty seconds while three hundred others pass by once each. */
static void what_comes_back_stays_when_a_scan_passes(void **state)
{
	static struct pool p;
	unsigned hits = 0, asked = 0, passing = 20;
	uint64_t now_ms = 0;

	pool_open(&p, 12 * DEPTH); /* LRU would need 30 chains */
	for (unsigned round = 0; round < 400; round++) {
		for (unsigned chain = 0; chain < 10; chain++) {
			unsigned n = request(&p, chain, DEPTH, now_ms += 1000);

			if (round >= 300) {
				hits += n;
				asked += DEPTH;
			}
			request(&p, passing, DEPTH, now_ms += 500);
			request(&p, passing + 1, DEPTH, now_ms += 500);
			passing = passing + 2 < CHAINS - 1 ? passing + 2 : 20;
		}
	}
	if (hits * 10 < asked * 9)
		print_message("%u of %u\n", hits, asked);
	assert_true(hits * 10 >= asked * 9);
	pool_close(&p);
	(void)state;
}

static void choosing_and_removing_allocate_nothing(void **state)
{
	static struct pool p;
	uint32_t victim;
	uint64_t calls;

	pool_open(&p, 500);
	for (unsigned chain = 0; chain < 40; chain++)
		request(&p, chain, DEPTH, chain * 100);
	calls = mc_mem_calls();
	while ((victim = mc_evict_victim(p.e, 0, 10000, NULL)))
		del(&p, at(&p, victim));
	assert_int_equal(mc_mem_calls(), calls);
	pool_close(&p);
	(void)state;
}

/* Leased ones go when their lease is over, at the time that was said. */
static void a_lease_keeps_an_object_until_it_ends(void **state)
{
	static struct pool p;
	struct mc_evict_request q;
	uint64_t retry_ms = 0, k = key(0);

	pool_open(&p, 100);
	request(&p, 0, 1, 0);
	mc_evict_begin(p.e, &q, 10, &k, 1);
	q.lease_ms = 500;
	mc_evict_move(&q, p.object[0], mc_evict_touch(&q, k));
	mc_evict_end(&q);
	assert_int_equal(mc_evict_victim(p.e, 0, 509, &retry_ms), 0);
	assert_int_equal(retry_ms, 510);
	assert_int_equal(mc_evict_victim(p.e, 0, 510, &retry_ms), p.object[0]);
	mc_evict_lease(p.e, p.object[0], 700);
	assert_int_equal(mc_evict_victim(p.e, 0, 699, &retry_ms), 0);
	assert_int_equal(retry_ms, 700);
	assert_int_equal(mc_evict_victim(p.e, 0, 700, &retry_ms), p.object[0]);
	del(&p, 0);
	assert_int_equal(mc_evict_victim(p.e, 0, 800, &retry_ms), 0);
	assert_true(retry_ms == UINT64_MAX);
	pool_close(&p);
	(void)state;
}

/* Each pool has its own victims; what was learnt is of both. */
static void pools_do_not_share_victims(void **state)
{
	static struct pool p;
	struct mc_evict_request q;
	uint64_t keys[2] = {key(0), key(DEPTH)};

	pool_open(&p, 100);
	assert_int_equal(mc_evict_pool_open(p.e, 7), 0);
	object(&p, DEPTH)->node.pool = 7;
	mc_evict_begin(p.e, &q, 0, keys, 2);
	add(&p, &q, 0);
	add(&p, &q, DEPTH);
	mc_evict_end(&q);
	assert_int_equal(mc_evict_victim(p.e, 7, 1, NULL), p.object[DEPTH]);
	del(&p, DEPTH);
	assert_int_equal(mc_evict_victim(p.e, 7, 1, NULL), 0);
	assert_int_equal(mc_evict_count(p.e, 7), 0);
	assert_int_equal(mc_evict_victim(p.e, 0, 1, NULL), p.object[0]);
	mc_evict_pool_close(p.e, 7);
	pool_close(&p);
	(void)state;
}

static void without_memory_nothing_is_lost(void **state)
{
	static struct pool p;
	struct mc_evict_request q;
	struct mc_evict *e;
	uint64_t k = key(7);
	const struct mc_evict_conf conf = {.slab = &p.slab, .keys_max = 64};

	for (int i = 0; i < 3; i++) {
		mc_mem_fail_after(i);
		assert_int_equal(mc_evict_open(&conf, &e), -MC_E_NOMEM);
	}
	mc_mem_fail_after(-1);
	pool_open(&p, 10);
	mc_mem_fail_after(0);
	mc_evict_begin(p.e, &q, 1, &k, 1); /* the first group: needs a chunk */
	assert_int_equal(mc_evict_add(&q, p.object[7], k), -MC_E_NOMEM);
	assert_false(is_held(&p, 7));
	mc_evict_end(&q);
	mc_mem_fail_after(-1);
	assert_int_equal(mc_evict_count(p.e, 0), 0);
	pool_close(&p);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_parent_never_leaves_before_its_children),
	    cmocka_unit_test(a_removed_parent_leaves_orphans_that_can_go),
	    cmocka_unit_test(nothing_of_an_open_request_is_a_victim),
	    cmocka_unit_test(what_comes_back_stays_when_a_scan_passes),
	    cmocka_unit_test(choosing_and_removing_allocate_nothing),
	    cmocka_unit_test(a_lease_keeps_an_object_until_it_ends),
	    cmocka_unit_test(pools_do_not_share_victims),
	    cmocka_unit_test(without_memory_nothing_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
