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

/* Object i is at depth i % DEPTH of chain i / DEPTH. */
struct pool {
	struct mc_evict *e;
	struct mc_evict_node node[OBJECTS];
	size_t room;
};

static uint64_t key(size_t i)
{
	uint32_t v = (uint32_t)i;

	return mc_hash64(&v, sizeof(v), 1);
}

static struct mc_evict_node *find(void *user, uint64_t hash)
{
	struct pool *p = user;

	for (size_t i = 0; i < OBJECTS; i++)
		if (p->node[i].group && p->node[i].hash == hash)
			return &p->node[i];
	return NULL;
}

static void pool_open(struct pool *p, size_t room)
{
	const struct mc_evict_conf conf = {.keys_max = 4096, .find = find, .user = p};

	*p = (struct pool){.room = room};
	assert_int_equal(mc_evict_open(&conf, &p->e), 0);
}

static size_t at(const struct pool *p, const struct mc_evict_node *n)
{
	return (size_t)(n - p->node);
}

static bool has_kid(const struct pool *p, size_t i)
{
	return i % DEPTH + 1 < DEPTH && p->node[i + 1].group;
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
	while (hits < n && p->node[chain * DEPTH + hits].group)
		hits++;
	mc_evict_begin(p->e, &q, now_ms, keys, n);
	for (unsigned d = 0; d < n; d++)
		mc_evict_touch(&q, keys[d], &p->node[chain * DEPTH + d]);
	for (unsigned d = hits; d < n; d++) {
		struct mc_evict_node *victim;

		if (mc_evict_count(p->e) >= p->room) {
			if (!mc_evict_is_worth(&q, keys[d]))
				break;
			victim = mc_evict_victim(p->e, now_ms);
			if (!victim)
				break;
			assert_int_not_equal(at(p, victim) / DEPTH, chain);
			assert_false(has_kid(p, at(p, victim)));
			mc_evict_del(p->e, victim);
			assert_null(victim->group);
		}
		assert_int_equal(
		    mc_evict_add(&q, &p->node[chain * DEPTH + d], keys[d], d ? keys[d - 1] : 0), 0);
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
			mc_evict_del(
			    p.e, &p.node[mc_rand_below(&r, OBJECTS) / DEPTH * DEPTH + DEPTH - 1]);
		}
		assert_true(mc_evict_count(p.e) <= p.room);
	}
	for (size_t i = 0; i < OBJECTS; i++)
		mc_evict_del(p.e, &p.node[i]);
	assert_int_equal(mc_evict_count(p.e), 0);
	mc_evict_close(p.e);
	(void)state;
}

static void a_removed_parent_leaves_orphans_that_can_go(void **state)
{
	static struct pool p;
	struct mc_evict_node *victim;
	unsigned n = 0;

	pool_open(&p, 100);
	request(&p, 0, DEPTH, 0);
	mc_evict_del(p.e, &p.node[3]);
	request(&p, 0, 4, 10); /* the fourth again, which has no children of its own now */
	while ((victim = mc_evict_victim(p.e, 1000))) {
		mc_evict_del(p.e, victim);
		n++;
	}
	assert_int_equal(n, DEPTH);
	mc_evict_close(p.e);
	(void)state;
}

static void nothing_of_an_open_request_is_a_victim(void **state)
{
	static struct pool p;
	struct mc_evict_request q;
	uint64_t k = key(0);

	pool_open(&p, 100);
	mc_evict_begin(p.e, &q, 5, &k, 1);
	mc_evict_touch(&q, k, NULL);
	assert_true(mc_evict_is_worth(&q, k));
	assert_int_equal(mc_evict_add(&q, &p.node[0], k, 0), 0);
	assert_null(mc_evict_victim(p.e, 5));
	mc_evict_end(&q);
	assert_ptr_equal(mc_evict_victim(p.e, 5), &p.node[0]);
	mc_evict_del(p.e, &p.node[0]);
	mc_evict_close(p.e);
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
	mc_evict_close(p.e);
	(void)state;
}

static void choosing_and_removing_allocate_nothing(void **state)
{
	static struct pool p;
	struct mc_evict_node *victim;
	uint64_t calls;

	pool_open(&p, 500);
	for (unsigned chain = 0; chain < 40; chain++)
		request(&p, chain, DEPTH, chain * 100);
	calls = mc_mem_calls();
	while ((victim = mc_evict_victim(p.e, 10000)))
		mc_evict_del(p.e, victim);
	assert_int_equal(mc_mem_calls(), calls);
	mc_evict_close(p.e);
	(void)state;
}

static void without_memory_nothing_is_lost(void **state)
{
	static struct pool p;
	struct mc_evict_request q;
	struct mc_evict *e;
	uint64_t k = key(7);
	const struct mc_evict_conf conf = {.keys_max = 64, .find = find, .user = &p};

	for (int i = 0; i < 2; i++) {
		mc_mem_fail_after(i);
		assert_int_equal(mc_evict_open(&conf, &e), -MC_E_NOMEM);
	}
	mc_mem_fail_after(-1);
	pool_open(&p, 10);
	request(&p, 0, 2, 0);
	mc_mem_fail_after(0);
	mc_evict_begin(p.e, &q, 1, &k, 1);
	mc_evict_touch(&q, key(0), &p.node[0]); /* stays where it is */
	assert_non_null(p.node[0].group);
	assert_int_equal(mc_evict_add(&q, &p.node[7], k, 0), -MC_E_NOMEM);
	assert_null(p.node[7].group);
	mc_evict_end(&q);
	mc_mem_fail_after(-1);
	assert_int_equal(mc_evict_count(p.e), 2);
	mc_evict_close(p.e);
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
	    cmocka_unit_test(without_memory_nothing_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
