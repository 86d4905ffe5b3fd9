/*
 * index_test.c: the table of the disk log's index against a plain array.
 */
#include "log/index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"

#define KEYS 4000u
#define OBJECTS 1000000u

/* Few homes, so that entries crowd. */
static uint64_t hash_of(uint32_t key)
{
	return (key % 512) | (uint64_t)(key % 3) << 32;
}

static void what_was_added_is_found_until_it_is_deleted(void **state)
{
	static bool is_in[KEYS];
	struct mc_index ix;
	struct mc_rand r;
	uint32_t count = 0, cursor = 0;

	mc_rand_seed(&r, 11);
	mc_index_init(&ix);
	for (unsigned i = 0; i < 60000; i++) {
		uint32_t key = (uint32_t)mc_rand_below(&r, KEYS);
		struct mc_index_entry *e = mc_index_find(&ix, hash_of(key), key);

		assert_int_equal(e != NULL, is_in[key]);
		if (e) {
			assert_int_equal(e->check, key);
			mc_index_del(&ix, e);
		} else {
			assert_non_null(mc_index_add(&ix, hash_of(key), key));
		}
		is_in[key] = !is_in[key];
		count += is_in[key] ? 1u : -1u;
		assert_int_equal(ix.count, count);
	}
	for (unsigned n = 0; n < count; n++)
		assert_true(is_in[mc_index_each(&ix, &cursor)->check]);
	assert_null(mc_index_each(&ix, &cursor));
	mc_index_fini(&ix);
	(void)state;
}

static void an_object_costs_at_most_64_bytes(void **state)
{
	struct mc_index ix;
	uint64_t seed = 1;

	mc_index_init(&ix);
	for (uint32_t i = 1; i <= OBJECTS; i++) {
		assert_non_null(mc_index_add(&ix, mc_splitmix64(&seed), i));
		if (i >= OBJECTS / 2)
			assert_true(mc_index_bytes(&ix) <= 64ull * i);
	}
	mc_index_fini(&ix);
	(void)state;
}

static void without_memory_nothing_is_added(void **state)
{
	struct mc_index ix;

	mc_index_init(&ix);
	for (int64_t n = 0; n < 3; n++) {
		mc_mem_fail_after(n);
		assert_null(mc_index_add(&ix, 1, 1));
		mc_mem_fail_after(-1);
		mc_index_fini(&ix);
	}
	assert_int_equal(mc_index_reserve(&ix, 10), 0);
	mc_mem_fail_after(0);
	for (uint32_t i = 0; i < 10; i++)
		assert_non_null(mc_index_add(&ix, i, i));
	mc_mem_fail_after(-1);
	mc_index_fini(&ix);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_was_added_is_found_until_it_is_deleted),
	    cmocka_unit_test(an_object_costs_at_most_64_bytes),
	    cmocka_unit_test(without_memory_nothing_is_added),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
