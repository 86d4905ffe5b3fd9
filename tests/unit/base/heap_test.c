/*
 * heap_test.c: order, bounds, the heap against a search.
 */
#include "base/heap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"

#define NODES 200

static void heap_pops_by_key(void **state)
{
	const uint64_t keys[] = {5, 1, 9, 1, UINT64_MAX, 0, 7};
	struct mc_heap_node nodes[MC_ARRAY_LEN(keys)] = {0};
	struct mc_heap heap;
	uint64_t last = 0;

	mc_heap_init(&heap, 100);
	assert_null(mc_heap_peek(&heap));
	assert_null(mc_heap_pop(&heap));
	for (size_t i = 0; i < MC_ARRAY_LEN(keys); i++)
		assert_int_equal(mc_heap_push(&heap, &nodes[i], keys[i]), 0);
	for (size_t i = 0; i < MC_ARRAY_LEN(keys); i++) {
		struct mc_heap_node *n = mc_heap_peek(&heap);

		assert_ptr_equal(mc_heap_pop(&heap), n);
		assert_true(n->key >= last);
		assert_false(mc_heap_has(n));
		last = n->key;
	}
	assert_null(mc_heap_pop(&heap));
	mc_heap_fini(&heap);
	(void)state;
}

static void heap_is_bounded_and_reserves(void **state)
{
	struct mc_heap_node nodes[3] = {0};
	struct mc_heap heap;

	mc_heap_init(&heap, 2);
	assert_int_equal(mc_heap_reserve(&heap, 3), -MC_E_TOO_BIG);
	assert_int_equal(mc_heap_reserve(&heap, 2), 0);
	mc_mem_fail_after(0);
	assert_int_equal(mc_heap_push(&heap, &nodes[0], 1), 0);
	assert_int_equal(mc_heap_push(&heap, &nodes[1], 2), 0);
	mc_mem_fail_after(-1);
	assert_int_equal(mc_heap_push(&heap, &nodes[2], 3), -MC_E_TOO_BIG);
	assert_false(mc_heap_has(&nodes[2]));
	mc_heap_fini(&heap);
	assert_false(mc_heap_has(&nodes[0]));
	(void)state;
}

static void heap_without_memory_is_unchanged(void **state)
{
	struct mc_heap_node node = {0};
	struct mc_heap heap;

	mc_heap_init(&heap, 2);
	mc_mem_fail_after(0);
	assert_int_equal(mc_heap_push(&heap, &node, 1), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	assert_false(mc_heap_has(&node));
	assert_null(mc_heap_peek(&heap));
	mc_heap_fini(&heap);
	(void)state;
}

static void heap_agrees_with_a_search(void **state)
{
	struct mc_heap_node nodes[NODES] = {0};
	struct mc_heap heap;
	struct mc_rand r;

	mc_rand_seed(&r, 5);
	mc_heap_init(&heap, NODES);
	for (int turn = 0; turn < 20000; turn++) {
		struct mc_heap_node *n = &nodes[mc_rand_below(&r, NODES)];
		uint64_t least = UINT64_MAX;

		if (!mc_heap_has(n))
			assert_int_equal(mc_heap_push(&heap, n, mc_rand_below(&r, 1000)), 0);
		else if (mc_rand_below(&r, 2))
			mc_heap_move(&heap, n, mc_rand_below(&r, 1000));
		else
			mc_heap_del(&heap, n);
		for (size_t i = 0; i < NODES; i++) {
			if (mc_heap_has(&nodes[i]))
				least = mc_min(least, nodes[i].key);
		}
		n = mc_heap_peek(&heap);
		assert_true(n ? n->key == least : least == UINT64_MAX);
	}
	mc_heap_del(&heap, &(struct mc_heap_node){0});
	mc_heap_fini(&heap);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(heap_pops_by_key),
	    cmocka_unit_test(heap_is_bounded_and_reserves),
	    cmocka_unit_test(heap_without_memory_is_unchanged),
	    cmocka_unit_test(heap_agrees_with_a_search),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
